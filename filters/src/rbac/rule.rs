//! Permissions and principals: one kind of rule, because both are conditions on the same subject. Compiled on the control thread;
//! `matches` is called by any worker. Source: `envoy/config/rbac/v3/rbac.proto`, Envoy's `filters/common/rbac/matchers.cc`.

use crate::dynamic_forward_proxy::{UPSTREAM_ADDRESS, UpstreamAddress};
use nuncio_core::diag::{At, Report};
use nuncio_core::info::CertInfo;
use nuncio_core::views::RouteView;
use nuncio_core::{Address, Headers, RequestHead, StreamInfo};
use nuncio_matcher::path::without_query;
use nuncio_matcher::{Cidr, FilterStateMatcher, HeaderMatcher, MetadataMatcher, PathMatcher, StringMatcher, UriTemplate};
use nuncio_proto::envoy::config::core::v3::{CidrRange, TypedExtensionConfig};
use nuncio_proto::envoy::config::rbac::v3 as proto;
use nuncio_proto::envoy::extensions::rbac::matchers::upstream_ip_port::v3::UpstreamIpPortMatcher;
use nuncio_proto::envoy::extensions::rbac::principals::mtls_authenticated::v3::Config as MtlsConfig;
use nuncio_proto::envoy::extensions::transport_sockets::tls::v3::subject_alt_name_matcher::SanType;
use nuncio_proto::envoy::r#type::matcher::v3::MetadataMatcher as MetadataProto;
use nuncio_proto::{Name, typed};
use nuncio_route::RouteEntry;
use prost::Message;
use proto::MetadataSource;
use proto::permission::Rule as P;
use proto::principal::Identifier as I;
use std::borrow::Cow;
use std::ops::{Range, RangeInclusive};

/// What is asked for: a request, or a connection.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    pub request: Option<&'a RequestHead>,
    pub info: &'a StreamInfo,
    pub route: Option<&'a dyn RouteView>,
}

impl<'a> Subject<'a> {
    /// The path without query, and without path parameters where the route table ignores them. None if there is no path.
    pub fn path(&self) -> Option<Cow<'a, str>> {
        let path = without_query(&self.request?.path);
        if path.is_empty() {
            return None;
        }
        match self.route.and_then(|r| r.as_any().downcast_ref::<RouteEntry>()) {
            Some(entry) => Some(entry.match_path(path)),
            None => Some(Cow::Borrowed(path)),
        }
    }
    /// The client's certificate; none without TLS, or if it sent none.
    pub fn certificate(&self) -> Option<&'a CertInfo> {
        self.info.connection.tls.as_ref()?.peer_cert()
    }
}

/// Which filter the rules are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    Http,
    Network,
}

/// A compiled condition.
#[derive(Debug)]
pub enum Rule {
    Any,
    And(Box<[Rule]>),
    Or(Box<[Rule]>),
    Not(Box<Rule>),
    Header(HeaderMatcher),
    UrlPath(PathMatcher),
    UriTemplate(UriTemplate),
    /// Where the connection went.
    LocalIp(Cidr),
    LocalPort(Range<u32>),
    /// The client as x-forwarded-for tells it.
    RemoteIp(Cidr),
    /// The connection's client: after PROXY protocol, before x-forwarded-for.
    ConnectionIp(Cidr),
    /// The socket's peer.
    DirectIp(Cidr),
    Dynamic(MetadataMatcher),
    OfRoute(MetadataMatcher),
    ServerName(StringMatcher),
    /// TLS; with a name, a certificate that bears it.
    Authenticated(Option<StringMatcher>),
    FilterState(FilterStateMatcher),
    /// Where the dynamic forward proxy found the request's host to be.
    Upstream {
        range: Option<Cidr>,
        ports: Option<RangeInclusive<i64>>,
    },
    /// A certificate that a CA vouches for; with a name, one that bears it.
    Mtls(Option<SanMatcher>),
}

/// `SubjectAltNameMatcher`.
#[derive(Debug)]
pub struct SanMatcher {
    kind: SanType,
    matcher: StringMatcher,
    /// Dotted OID of OTHER_NAME.
    oid: String,
}

/// Compiles rules, and says what is wrong with them. Nesting is bounded by the protobuf decoder.
pub struct Compiler<'r> {
    pub layer: Layer,
    pub report: &'r mut Report,
}

impl Compiler<'_> {
    fn refuse<T>(&mut self, at: &At<'_>, found: impl Into<String>, remedy: &str) -> Option<T> {
        self.report.error(at, found, remedy);
        None
    }
    /// One of several permissions.
    pub fn permissions(&mut self, all: &[proto::Permission], at: &At<'_>) -> Option<Box<[Rule]>> {
        self.each(all, at, Self::permission)
    }
    /// One of several principals.
    pub fn principals(&mut self, all: &[proto::Principal], at: &At<'_>) -> Option<Box<[Rule]>> {
        self.each(all, at, Self::principal)
    }
    fn each<T>(&mut self, all: &[T], at: &At<'_>, one: fn(&mut Self, &T, &At<'_>) -> Option<Rule>) -> Option<Box<[Rule]>> {
        if all.is_empty() {
            return self.refuse(at, "nothing", "give at least one");
        }
        let compiled: Vec<Option<Rule>> = all.iter().enumerate().map(|(i, rule)| one(self, rule, &at.index(i))).collect();
        compiled.into_iter().collect()
    }
    #[allow(deprecated)]
    fn permission(&mut self, permission: &proto::Permission, at: &At<'_>) -> Option<Rule> {
        Some(match &permission.rule {
            Some(P::AndRules(set)) => Rule::And(self.permissions(&set.rules, &at.field("and_rules").field("rules"))?),
            Some(P::OrRules(set)) => Rule::Or(self.permissions(&set.rules, &at.field("or_rules").field("rules"))?),
            Some(P::NotRule(rule)) => Rule::Not(Box::new(self.permission(rule, &at.field("not_rule"))?)),
            Some(P::Any(any)) => return self.any(*any, &at.field("any")),
            Some(P::Header(header)) => return self.header(header, &at.field("header")),
            Some(P::UrlPath(path)) => Rule::UrlPath(PathMatcher::compile(path, &at.field("url_path"), self.report)?),
            Some(P::UriTemplate(config)) => {
                let at = at.field("uri_template");
                let at = at.field("typed_config");
                Rule::UriTemplate(UriTemplate::compile(&config.typed_config.clone().unwrap_or_default(), &at, self.report)?)
            }
            Some(P::DestinationIp(range)) => Rule::LocalIp(self.cidr(range, &at.field("destination_ip"))?),
            Some(P::DestinationPort(port)) if *port <= 65535 => Rule::LocalPort(*port..*port + 1),
            Some(P::DestinationPort(port)) => return self.refuse(&at.field("destination_port"), port.to_string(), "give at most 65535"),
            Some(P::DestinationPortRange(range)) => match (u32::try_from(range.start), u32::try_from(range.end)) {
                (Ok(start), Ok(end)) if start < end && end <= 65536 => Rule::LocalPort(start..end),
                _ => {
                    let found = format!("{} to {}", range.start, range.end);
                    return self.refuse(&at.field("destination_port_range"), found, "give a start below the end, from 0 to 65536");
                }
            },
            Some(P::Metadata(matcher)) => return self.metadata(Some(matcher), MetadataSource::Dynamic as i32, &at.field("metadata")),
            Some(P::SourcedMetadata(m)) => {
                return self.metadata(m.metadata_matcher.as_ref(), m.metadata_source, &at.field("sourced_metadata"));
            }
            Some(P::RequestedServerName(name)) => {
                Rule::ServerName(StringMatcher::compile(name, &at.field("requested_server_name"), self.report)?)
            }
            Some(P::Matcher(extension)) => return self.matcher(extension, &at.field("matcher")),
            None => return self.refuse(at, "no rule", "set one"),
        })
    }
    #[allow(deprecated)]
    fn principal(&mut self, principal: &proto::Principal, at: &At<'_>) -> Option<Rule> {
        Some(match &principal.identifier {
            Some(I::AndIds(set)) => Rule::And(self.principals(&set.ids, &at.field("and_ids").field("ids"))?),
            Some(I::OrIds(set)) => Rule::Or(self.principals(&set.ids, &at.field("or_ids").field("ids"))?),
            Some(I::NotId(id)) => Rule::Not(Box::new(self.principal(id, &at.field("not_id"))?)),
            Some(I::Any(any)) => return self.any(*any, &at.field("any")),
            Some(I::Authenticated(authenticated)) => Rule::Authenticated(match &authenticated.principal_name {
                Some(name) => {
                    let at = at.field("authenticated");
                    Some(StringMatcher::compile(name, &at.field("principal_name"), self.report)?)
                }
                None => None,
            }),
            Some(I::SourceIp(range)) => Rule::ConnectionIp(self.cidr(range, &at.field("source_ip"))?),
            Some(I::DirectRemoteIp(range)) => Rule::DirectIp(self.cidr(range, &at.field("direct_remote_ip"))?),
            Some(I::RemoteIp(range)) => Rule::RemoteIp(self.cidr(range, &at.field("remote_ip"))?),
            Some(I::Header(header)) => return self.header(header, &at.field("header")),
            Some(I::UrlPath(path)) => Rule::UrlPath(PathMatcher::compile(path, &at.field("url_path"), self.report)?),
            Some(I::Metadata(matcher)) => return self.metadata(Some(matcher), MetadataSource::Dynamic as i32, &at.field("metadata")),
            Some(I::SourcedMetadata(m)) => {
                return self.metadata(m.metadata_matcher.as_ref(), m.metadata_source, &at.field("sourced_metadata"));
            }
            Some(I::FilterState(state)) => Rule::FilterState(FilterStateMatcher::compile(state, &at.field("filter_state"), self.report)?),
            Some(I::Custom(extension)) => return self.custom(extension, &at.field("custom")),
            None => return self.refuse(at, "no identifier", "set one"),
        })
    }
    fn any(&mut self, any: bool, at: &At<'_>) -> Option<Rule> {
        if any { Some(Rule::Any) } else { self.refuse(at, "false", "set true, or use a not rule") }
    }
    fn header(&mut self, header: &nuncio_proto::envoy::config::route::v3::HeaderMatcher, at: &At<'_>) -> Option<Rule> {
        if self.layer == Layer::Network {
            return self.refuse(at, "a header in a network filter", "use envoy.filters.http.rbac: connections have no headers");
        }
        Some(Rule::Header(HeaderMatcher::compile(header, at, self.report)?))
    }
    fn cidr(&mut self, range: &CidrRange, at: &At<'_>) -> Option<Cidr> {
        Cidr::compile(range, at, self.report)
    }
    fn metadata(&mut self, matcher: Option<&MetadataProto>, source: i32, at: &At<'_>) -> Option<Rule> {
        let Some(matcher) = matcher else { return self.refuse(&at.field("metadata_matcher"), "nothing", "say what is matched") };
        let compiled = MetadataMatcher::compile(matcher, at, self.report)?;
        match MetadataSource::try_from(source) {
            Ok(MetadataSource::Dynamic) => Some(Rule::Dynamic(compiled)),
            Ok(MetadataSource::Route) => Some(Rule::OfRoute(compiled)),
            Err(_) => self.refuse(&at.field("metadata_source"), source.to_string(), "use DYNAMIC or ROUTE"),
        }
    }
    fn unknown<T>(&mut self, extension: &TypedExtensionConfig, kind: &str, at: &At<'_>) -> Option<T> {
        let type_url = extension.typed_config.as_ref().map_or("", |any| any.type_url.as_str());
        let name = type_url.rsplit('/').next().filter(|n| !n.is_empty()).unwrap_or(&extension.name);
        self.report.unsupported(at, format_args!("{kind} {name}"));
        None
    }
    fn matcher(&mut self, extension: &TypedExtensionConfig, at: &At<'_>) -> Option<Rule> {
        let config = self.unpack::<UpstreamIpPortMatcher>(extension, "RBAC matcher", at)?;
        let at = at.field("typed_config");
        if config.upstream_ip.is_none() && config.upstream_port_range.is_none() {
            return self.refuse(&at, "neither field", "set upstream_ip, upstream_port_range or both");
        }
        let range = match &config.upstream_ip {
            Some(range) => Some(self.cidr(range, &at.field("upstream_ip"))?),
            None => None,
        };
        // Its end is inclusive, unlike that of other ranges.
        Some(Rule::Upstream { range, ports: config.upstream_port_range.map(|ports| ports.start..=ports.end) })
    }
    fn unpack<T: Message + Name + Default>(&mut self, extension: &TypedExtensionConfig, kind: &str, at: &At<'_>) -> Option<T> {
        let any = extension.typed_config.clone().unwrap_or_default();
        let config = match typed::unpack(&any) {
            Ok(typed) if typed.name == T::full_name() => T::decode(typed.value.as_ref()).map_err(|e| e.to_string()),
            Ok(_) => return self.unknown(extension, kind, at),
            Err(why) => Err(why),
        };
        match config {
            Ok(config) => Some(config),
            Err(why) => self.refuse(&at.field("typed_config"), why, "give a valid configuration"),
        }
    }
    fn custom(&mut self, extension: &TypedExtensionConfig, at: &At<'_>) -> Option<Rule> {
        let config = self.unpack::<MtlsConfig>(extension, "principal", at)?;
        let at = at.field("typed_config");
        let Some(san) = &config.san_matcher else {
            return match config.any_validated_client_certificate {
                true => Some(Rule::Mtls(None)),
                false => self.refuse(&at, "neither field", "set san_matcher or any_validated_client_certificate"),
            };
        };
        let at = at.field("san_matcher");
        let kind = match SanType::try_from(san.san_type) {
            Ok(SanType::OtherName) if san.oid.is_empty() => {
                return self.refuse(&at.field("oid"), "OTHER_NAME without an oid", "give the OID");
            }
            Ok(SanType::Unspecified) | Err(_) => {
                return self.refuse(&at.field("san_type"), san.san_type.to_string(), "name the kind of SAN");
            }
            Ok(kind) => kind,
        };
        let Some(matcher) = &san.matcher else { return self.refuse(&at.field("matcher"), "nothing", "say which names match") };
        let matcher = StringMatcher::compile(matcher, &at.field("matcher"), self.report)?;
        Some(Rule::Mtls(Some(SanMatcher { kind, matcher, oid: san.oid.clone() })))
    }
}

fn holds(range: &Cidr, address: &Address) -> bool {
    address.socket().is_some_and(|a| range.contains(a.ip()))
}

impl Rule {
    /// Whether the condition holds for `subject`.
    pub fn matches(&self, subject: &Subject<'_>) -> bool {
        static NONE: Headers = Headers::new();
        let info = subject.info;
        let connection = &info.connection;
        match self {
            Self::Any => true,
            Self::And(rules) => rules.iter().all(|r| r.matches(subject)),
            Self::Or(rules) => rules.iter().any(|r| r.matches(subject)),
            Self::Not(rule) => !rule.matches(subject),
            Self::Header(matcher) => match subject.request {
                Some(request) => matcher.matches(request),
                None => matcher.matches(&NONE),
            },
            Self::UrlPath(matcher) => subject.path().is_some_and(|path| matcher.matches(&path)),
            Self::UriTemplate(template) => subject.path().is_some_and(|path| template.matches(&path)),
            Self::LocalIp(range) => holds(range, &connection.local),
            Self::LocalPort(ports) => connection.local.socket().is_some_and(|a| ports.contains(&u32::from(a.port()))),
            Self::RemoteIp(range) => holds(range, &info.remote),
            Self::ConnectionIp(range) => holds(range, &connection.remote),
            Self::DirectIp(range) => holds(range, &connection.direct_remote),
            Self::Dynamic(matcher) => match (subject.request, info.metadata(matcher.namespace())) {
                // What listener filters said is the connection's, and no request's.
                (None, None) => matcher.matches_namespace(connection.metadata.borrow().get(matcher.namespace())),
                (_, namespace) => matcher.matches_namespace(namespace),
            },
            Self::OfRoute(matcher) => subject.route.is_some_and(|route| matcher.matches_metadata(route.metadata())),
            Self::ServerName(matcher) => matcher.matches(connection.requested_server_name.as_deref().unwrap_or_default()),
            Self::Authenticated(None) => connection.tls.is_some(),
            Self::Authenticated(Some(name)) => connection.tls.is_some() && has_name(subject.certificate(), name),
            Self::FilterState(matcher) => matcher.matches(info),
            Self::Upstream { range, ports } => {
                let state = info.filter_state.get_as::<UpstreamAddress>(UPSTREAM_ADDRESS);
                state.and_then(|s| s.0.socket()).is_some_and(|address| {
                    range.as_ref().is_none_or(|r| r.contains(address.ip()))
                        && ports.as_ref().is_none_or(|p| p.contains(&i64::from(address.port())))
                })
            }
            Self::Mtls(san) => {
                connection.tls.as_ref().is_some_and(|tls| tls.peer_validated)
                    && san.as_ref().is_none_or(|san| subject.certificate().is_some_and(|c| has_san(c, san)))
            }
        }
    }
}

/// URI SANs, then DNS SANs, then the subject.
fn has_name(certificate: Option<&CertInfo>, matcher: &StringMatcher) -> bool {
    let Some(certificate) = certificate else { return matcher.matches("") };
    certificate.uri_sans.iter().chain(&certificate.dns_sans).any(|san| matcher.matches(san)) || matcher.matches(&certificate.subject)
}

fn has_san(certificate: &CertInfo, SanMatcher { kind, matcher, oid }: &SanMatcher) -> bool {
    let sans = match kind {
        SanType::Email => &certificate.email_sans,
        SanType::Dns => &certificate.dns_sans,
        SanType::Uri => &certificate.uri_sans,
        SanType::IpAddress => &certificate.ip_sans,
        SanType::OtherName => {
            let mut all = certificate.other_san_oids.iter().zip(&certificate.other_sans);
            return all.any(|(kind, value)| kind == oid && matcher.matches(value));
        }
        SanType::Unspecified => return false,
    };
    match matcher.as_exact().filter(|_| *kind == SanType::Dns) {
        Some(name) => sans.iter().any(|san| is_dns_name(san, name)),
        None => sans.iter().any(|san| matcher.matches(san)),
    }
}

/// Whether a certificate's DNS name, which may begin with `*.` for one label, is `name`.
fn is_dns_name(san: &str, name: &str) -> bool {
    match san.strip_prefix("*.") {
        Some(parent) => name.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest.eq_ignore_ascii_case(parent)),
        None => san.eq_ignore_ascii_case(name),
    }
}
