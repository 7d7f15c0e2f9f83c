//! Rate limit actions: what a request counts as. Turns `RateLimit` messages of routes and filters into descriptors for the rate
//! limit filters. Compiled on the control thread where the filter has them, else once per route on first use.
//! Source: `envoy/config/route/v3/route_components.proto` RateLimit, Envoy's `router/router_ratelimit.cc`.

use nuncio_core::diag::{At, Report};
use nuncio_core::registry::{Runtime, Server};
use nuncio_core::views::filter_metadata;
use nuncio_core::{Exchange, HeaderKey};
use nuncio_format::{FormatContext, Formatter};
use nuncio_matcher::{Cidr, HeaderMatcher, IpSet, QueryParameterMatcher};
use nuncio_proto::envoy::config::route::v3 as proto;
use nuncio_proto::envoy::r#type::metadata::v3::{MetadataKey, metadata_key::path_segment::Segment};
use nuncio_proto::envoy::r#type::v3::RateLimitUnit;
use nuncio_proto::{Struct, Value};
use prost_types::value::Kind;
use proto::rate_limit::XRateLimitOption;
use proto::rate_limit::action::{ActionSpecifier as Spec, meta_data::Source};
use proto::rate_limit::r#override::OverrideSpecifier;
use std::net::IpAddr;
use std::sync::Arc;

/// One entry of a descriptor.
pub type Entry = (String, String);

/// What a request counts as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    pub entries: Vec<Entry>,
    /// Tokens that the request costs.
    pub hits: u64,
    /// Whether the configuration says what it costs; the default of one is not sent to a service.
    pub hits_given: bool,
    /// The hits are given back.
    pub negative: bool,
    /// The limit that the service is to use: requests per unit, and the unit.
    pub limit: Option<(u32, RateLimitUnit)>,
    /// Whether the answer shows limits, if the descriptor says so.
    pub show_headers: Option<bool>,
}

/// A compiled `RateLimit`.
#[derive(Debug)]
pub struct Limit {
    stage: u32,
    disable_key: String,
    on_stream_done: bool,
    negative: bool,
    limit: Option<Override>,
    actions: Vec<Action>,
    hits: Hits,
    show_headers: Option<bool>,
}

/// A limit that overrides the service's, here or in dynamic metadata.
#[derive(Debug)]
enum Override {
    Fixed(u32, RateLimitUnit),
    Metadata(String, Vec<Segment>),
}

impl Override {
    fn limit(&self, ex: &Exchange) -> Option<(u32, RateLimitUnit)> {
        match self {
            Self::Fixed(requests, unit) => Some((*requests, *unit)),
            Self::Metadata(namespace, path) => limit_of(ex.info.metadata(namespace)?, path),
        }
    }
}

#[derive(Debug)]
enum Hits {
    /// One, because nobody says otherwise.
    One,
    Fixed(u64),
    Format(Formatter),
}

#[derive(Debug)]
enum Action {
    SourceCluster(String),
    DestinationCluster,
    Header { name: HeaderKey, key: String, skip: bool },
    Query { name: String, key: String, skip: bool },
    RemoteAddress,
    MaskedRemoteAddress { v4: u8, v6: u8 },
    Text { key: String, value: Text },
    HeaderMatch { key: String, value: Text, expect: bool, headers: Box<[HeaderMatcher]> },
    QueryMatch { key: String, value: Text, expect: bool, parameters: Box<[QueryParameterMatcher]> },
    AddressMatch { key: String, value: Text, ranges: IpSet, invert: bool },
    Metadata { key: String, source: Source, namespace: String, path: Vec<Segment>, default: String, skip: bool },
}

/// A value, with operators if it has any.
#[derive(Debug)]
struct Text {
    format: Formatter,
    default: String,
}

impl Text {
    fn compile(format: &str, default: &str, at: &At<'_>, report: &mut Report) -> Option<Self> {
        Some(Self { format: Formatter::header(format, at, report)?, default: default.to_string() })
    }
    fn get(&self, ex: &Exchange) -> Option<String> {
        let mut out = String::new();
        self.format.format(&FormatContext::exchange(ex), &mut out);
        if out.is_empty() {
            out.clone_from(&self.default);
        }
        (!out.is_empty()).then_some(out)
    }
}

fn or(text: &str, default: &str) -> String {
    if text.is_empty() { default.to_string() } else { text.to_string() }
}

impl Limit {
    /// Compiles `RateLimit`s; none if one of them is wrong or not supported.
    pub fn compile_list(limits: &[proto::RateLimit], server: &Server, at: &At<'_>, report: &mut Report) -> Option<Vec<Self>> {
        let errors = report.errors();
        let limits: Vec<_> = limits.iter().enumerate().filter_map(|(i, l)| Self::compile(l, server, &at.index(i), report)).collect();
        (report.errors() == errors).then_some(limits)
    }
    fn compile(p: &proto::RateLimit, server: &Server, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let limit = match p.limit.as_ref().and_then(|l| l.override_specifier.as_ref()) {
            Some(OverrideSpecifier::DynamicMetadata(m)) => {
                let (namespace, path) = path(m.metadata_key.as_ref(), &at.field("limit"), report)?;
                Some(Override::Metadata(namespace, path))
            }
            Some(OverrideSpecifier::RateLimit(l)) => match RateLimitUnit::try_from(l.unit) {
                Ok(unit) => Some(Override::Fixed(l.requests_per_unit, unit)),
                Err(_) => {
                    report.error(&at.field("limit"), l.unit.to_string(), "use a unit of RateLimitUnit");
                    return None;
                }
            },
            None => None,
        };
        let actions = at.field("actions");
        let compiled: Vec<_> = p.actions.iter().enumerate().filter_map(|(i, a)| action(a, server, &actions.index(i), report)).collect();
        if compiled.len() < p.actions.len() {
            return None;
        }
        let hits = match &p.hits_addend {
            None => Hits::One,
            Some(h) if !h.format.is_empty() => Hits::Format(Formatter::header(&h.format, &at.field("hits_addend"), report)?),
            Some(h) => Hits::Fixed(h.number.unwrap_or(1)),
        };
        let show_headers = match XRateLimitOption::try_from(p.x_ratelimit_option).unwrap_or_default() {
            XRateLimitOption::Unspecified => None,
            XRateLimitOption::Off => Some(false),
            XRateLimitOption::DraftVersion03 => Some(true),
        };
        Some(Self {
            stage: p.stage.unwrap_or(0),
            disable_key: p.disable_key.clone(),
            on_stream_done: p.apply_on_stream_done,
            negative: p.hits_addend.as_ref().is_some_and(|h| h.is_negative_hits),
            limit,
            actions: compiled,
            hits,
            show_headers,
        })
    }
    /// Adds the descriptor of a request, if every action yields its part.
    pub fn describe(&self, ex: &Exchange, out: &mut Vec<Descriptor>) {
        let mut entries = Vec::with_capacity(self.actions.len());
        if self.actions.iter().any(|a| !a.describe(ex, &mut entries)) || entries.is_empty() {
            return;
        }
        let hits = match &self.hits {
            Hits::One => 1,
            Hits::Fixed(n) => *n,
            Hits::Format(format) => {
                let mut text = String::new();
                format.format(&FormatContext::exchange(ex), &mut text);
                match text.parse() {
                    Ok(n) => n,
                    Err(_) => return,
                }
            }
        };
        out.push(Descriptor {
            entries,
            hits,
            hits_given: !matches!(self.hits, Hits::One),
            negative: self.negative,
            limit: self.limit.as_ref().and_then(|l| l.limit(ex)),
            show_headers: self.show_headers,
        });
    }
    /// Whether local limits of `stage` count by it. They know nothing of runtime keys, and cannot count what has happened.
    pub fn applies(&self, stage: u32) -> bool {
        self.stage == stage && self.disable_key.is_empty() && !self.needs_service()
    }
    /// Whether only a service can count by it.
    pub fn needs_service(&self) -> bool {
        self.on_stream_done || self.negative
    }
    /// Whether the service's limits of `stage` count by it, before the request goes on or when the stream is `done`.
    pub fn applies_to_service(&self, stage: u32, done: bool, runtime: &Runtime) -> bool {
        let enabled = || self.disable_key.is_empty() || percent(runtime, &format!("ratelimit.{}.http_filter_enabled", self.disable_key));
        self.stage == stage && self.on_stream_done == done && enabled()
    }
}

/// Whether a runtime feature is on for this request: a percentage, 100 if nobody set it.
pub fn percent(runtime: &Runtime, key: &str) -> bool {
    let value = runtime.integer(key, 100);
    value >= 100 || fastrand::u64(..100) < value
}

/// A limit in dynamic metadata: `requests_per_unit` and the name of a `unit`.
fn limit_of(root: &Struct, path: &[Segment]) -> Option<(u32, RateLimitUnit)> {
    let Some(Kind::StructValue(limit)) = &value_at(root, path)?.kind else { return None };
    let field = |name: &str| limit.fields.get(name).and_then(|v| v.kind.as_ref());
    let (Some(Kind::NumberValue(requests)), Some(Kind::StringValue(unit))) = (field("requests_per_unit"), field("unit")) else {
        return None;
    };
    if !(0.0..=f64::from(u32::MAX)).contains(requests) {
        return None;
    }
    Some((*requests as u32, RateLimitUnit::from_str_name(unit)?))
}

#[allow(deprecated)]
fn action(p: &proto::rate_limit::Action, server: &Server, at: &At<'_>, report: &mut Report) -> Option<Action> {
    let header = |name: &str, at: &At<'_>, report: &mut Report| {
        let key = HeaderKey::parse(name);
        if key.is_none() {
            report.error(&at.field("header_name"), format!("{name:?}"), "give a valid header name");
        }
        key
    };
    Some(match &p.action_specifier {
        Some(Spec::SourceCluster(_)) => Action::SourceCluster(server.node.cluster.clone()),
        Some(Spec::DestinationCluster(_)) => Action::DestinationCluster,
        Some(Spec::RequestHeaders(h)) => {
            let name = header(&h.header_name, &at.field("request_headers"), report)?;
            Action::Header { name, key: h.descriptor_key.clone(), skip: h.skip_if_absent }
        }
        Some(Spec::QueryParameters(q)) => {
            Action::Query { name: q.query_parameter_name.clone(), key: q.descriptor_key.clone(), skip: q.skip_if_absent }
        }
        Some(Spec::RemoteAddress(_)) => Action::RemoteAddress,
        Some(Spec::MaskedRemoteAddress(m)) => {
            let length = |value: Option<u32>, max: u8, name: &str, report: &mut Report| match u8::try_from(value.unwrap_or(u32::from(max)))
            {
                Ok(length) if length <= max => Some(length),
                _ => {
                    report.error(&at.field(name), format!("{value:?}"), format!("give at most {max}"));
                    None
                }
            };
            let v4 = length(m.v4_prefix_mask_len, 32, "v4_prefix_mask_len", report)?;
            Action::MaskedRemoteAddress { v4, v6: length(m.v6_prefix_mask_len, 128, "v6_prefix_mask_len", report)? }
        }
        Some(Spec::GenericKey(g)) => {
            let value = Text::compile(&g.descriptor_value, &g.default_value, &at.field("generic_key"), report)?;
            Action::Text { key: or(&g.descriptor_key, "generic_key"), value }
        }
        Some(Spec::HeaderValueMatch(m)) => {
            let at = at.field("header_value_match");
            Action::HeaderMatch {
                key: or(&m.descriptor_key, "header_match"),
                value: Text::compile(&m.descriptor_value, &m.default_value, &at, report)?,
                expect: m.expect_match.unwrap_or(true),
                headers: HeaderMatcher::compile_list(&m.headers, &at.field("headers"), report)?,
            }
        }
        Some(Spec::QueryParameterValueMatch(m)) => {
            let at = at.field("query_parameter_value_match");
            Action::QueryMatch {
                key: or(&m.descriptor_key, "query_match"),
                value: Text::compile(&m.descriptor_value, &m.default_value, &at, report)?,
                expect: m.expect_match.unwrap_or(true),
                parameters: QueryParameterMatcher::compile_list(&m.query_parameters, &at.field("query_parameters"), report)?,
            }
        }
        Some(Spec::RemoteAddressMatch(m)) => {
            let at = at.field("remote_address_match");
            let matcher = m.address_matcher.clone().unwrap_or_default();
            Action::AddressMatch {
                key: or(&m.descriptor_key, "remote_address_match"),
                value: Text::compile(&m.descriptor_value, &m.default_value, &at, report)?,
                ranges: IpSet::compile_xds(&matcher.ranges, &at.field("address_matcher"), report)?,
                invert: matcher.invert_match,
            }
        }
        Some(Spec::DynamicMetadata(m)) => {
            let (namespace, path) = path(m.metadata_key.as_ref(), &at.field("dynamic_metadata"), report)?;
            Action::Metadata {
                key: m.descriptor_key.clone(),
                source: Source::Dynamic,
                namespace,
                path,
                default: m.default_value.clone(),
                skip: false,
            }
        }
        Some(Spec::Metadata(m)) => {
            let at = at.field("metadata");
            let (namespace, path) = path(m.metadata_key.as_ref(), &at, report)?;
            let Ok(source) = Source::try_from(m.source) else {
                report.error(&at.field("source"), m.source.to_string(), "use a value of MetaData.Source");
                return None;
            };
            if source == Source::ClusterLocalityEntry {
                report.unsupported(&at.field("source"), "metadata of localities");
                return None;
            }
            Action::Metadata {
                key: m.descriptor_key.clone(),
                source,
                namespace,
                path,
                default: m.default_value.clone(),
                skip: m.skip_if_absent,
            }
        }
        Some(Spec::Extension(extension)) => {
            report.unsupported(&at.field("extension"), format_args!("rate limit descriptor {}", extension.name));
            return None;
        }
        None => {
            report.error(at, "no action", "set one of the actions");
            return None;
        }
    })
}

fn path(key: Option<&MetadataKey>, at: &At<'_>, report: &mut Report) -> Option<(String, Vec<Segment>)> {
    let Some(key) = key.filter(|k| !k.key.is_empty() && !k.path.is_empty()) else {
        report.error(&at.field("metadata_key"), "no key or no path", "name the namespace and the path in it");
        return None;
    };
    Some((key.key.clone(), key.path.iter().filter_map(|s| s.segment.clone()).collect()))
}

fn value_at<'a>(root: &'a Struct, path: &[Segment]) -> Option<&'a Value> {
    let (Segment::Key(first), rest) = path.split_first()? else { return None };
    let mut value: &Value = root.fields.get(first)?;
    for segment in rest {
        value = match (segment, &value.kind) {
            (Segment::Key(name), Some(Kind::StructValue(inner))) => inner.fields.get(name)?,
            (Segment::Index(index), Some(Kind::ListValue(list))) => list.values.get(usize::try_from(*index).ok()?)?,
            _ => return None,
        };
    }
    Some(value)
}

fn at_path<'a>(root: &'a Struct, path: &[Segment]) -> Option<&'a str> {
    match &value_at(root, path)?.kind {
        Some(Kind::StringValue(text)) => Some(text),
        _ => None,
    }
}

impl Action {
    /// Adds this action's entry; false if the request has none, which ends the whole descriptor.
    fn describe(&self, ex: &Exchange, out: &mut Vec<Entry>) -> bool {
        let ip = || ex.info.remote.socket().map(|a| a.ip());
        let (key, value) = match self {
            Self::SourceCluster(name) => ("source_cluster", Some(name.clone())),
            Self::DestinationCluster => ("destination_cluster", ex.route.as_ref().and_then(|r| r.cluster_name()).map(|c| c.to_string())),
            Self::Header { name, key, skip } => match ex.request.header(name) {
                Some(value) => (key.as_str(), Some(String::from_utf8_lossy(&value).into_owned())),
                None => return *skip,
            },
            Self::Query { name, key, skip } => match ex.request.query().and_then(|q| nuncio_matcher::query::parameter(q, name)) {
                Some(value) => (key.as_str(), Some(value.to_string())),
                None => return *skip,
            },
            Self::RemoteAddress => ("remote_address", ip().map(|ip| ip.to_string())),
            Self::MaskedRemoteAddress { v4, v6 } => {
                let masked = ip().and_then(|ip| {
                    let length = if matches!(ip, IpAddr::V4(_)) { *v4 } else { *v6 };
                    Cidr::new(ip, length).map(|c| format!("{}/{length}", c.base()))
                });
                ("masked_remote_address", masked)
            }
            Self::Text { key, value } => (key.as_str(), value.get(ex)),
            Self::HeaderMatch { key, value, expect, headers } => {
                let matched = HeaderMatcher::all_match(headers, &ex.request) == *expect;
                (key.as_str(), matched.then(|| value.get(ex)).flatten())
            }
            Self::QueryMatch { key, value, expect, parameters } => {
                let matched = QueryParameterMatcher::all_match(parameters, &ex.request) == *expect;
                (key.as_str(), matched.then(|| value.get(ex)).flatten())
            }
            Self::AddressMatch { key, value, ranges, invert } => {
                let matched = ip().is_some_and(|ip| ranges.contains(ip) != *invert);
                (key.as_str(), matched.then(|| value.get(ex)).flatten())
            }
            Self::Metadata { key, source, namespace, path, default, skip } => {
                let namespace = match source {
                    Source::Dynamic => ex.info.metadata(namespace),
                    Source::RouteEntry => filter_metadata(ex.route.as_ref().and_then(|r| r.metadata()), namespace),
                    Source::ClusterEntry => filter_metadata(ex.cluster.as_ref().and_then(|c| c.metadata()), namespace),
                    Source::ClusterLocalityEntry => None,
                };
                let value = namespace.and_then(|n| at_path(n, path)).filter(|v| !v.is_empty()).unwrap_or(default);
                if value.is_empty() {
                    return *skip;
                }
                (key.as_str(), Some(value.to_string()))
            }
        };
        match value {
            Some(value) => {
                out.push((key.to_string(), value));
                true
            }
            None => false,
        }
    }
}

/// Limits of a route and of its virtual host.
#[derive(Debug, Default)]
pub struct RouteLimits {
    pub route: Vec<Limit>,
    pub virtual_host: Vec<Limit>,
    pub include_virtual_host: bool,
}

impl RouteLimits {
    /// The limits of the matched route, compiled once per worker and route. What cannot be compiled is left out with a word in
    /// the log: routes are accepted without regard to the filters that read them.
    pub fn of(ex: &Exchange, server: &Server) -> Option<Arc<Self>> {
        let route = ex.route.as_ref()?;
        let entry = route.as_any().downcast_ref::<nuncio_route::RouteEntry>()?;
        let virtual_host = &entry.vhost().rate_limits;
        let forward = entry.forward();
        if virtual_host.is_empty() && forward.is_none_or(|f| f.rate_limits().is_empty()) {
            return None;
        }
        cache::get(route, || {
            let mut report = Report::new();
            let mut compile = |limits: &[proto::RateLimit]| {
                // Envoy does not look at the hits of limits that stand in routes.
                let one = |limit: &proto::RateLimit| {
                    Limit::compile(limit, server, &At::Root, &mut report).map(|l| Limit { hits: Hits::One, negative: false, ..l })
                };
                limits.iter().filter_map(one).collect::<Vec<_>>()
            };
            let out = Self {
                route: forward.map(|f| compile(f.rate_limits())).unwrap_or_default(),
                virtual_host: compile(virtual_host),
                include_virtual_host: forward.is_some_and(|f| f.include_vh_rate_limits()),
            };
            if report.has_errors() {
                log::warn!("rate_limits of route {:?} of {}: {}", route.name(), route.virtual_host(), report.summary());
            }
            out
        })
    }
}

/// Compiled limits of routes, per worker.
mod cache {
    use super::RouteLimits;
    use nuncio_core::views::RouteView;
    use std::cell::RefCell;
    use std::collections::HashMap;
    use std::sync::{Arc, Weak};

    /// A weak reference keeps the address of the route from being used again.
    type Known = (Weak<dyn RouteView>, Arc<RouteLimits>);
    /// Routes that are remembered before those that are gone are looked for.
    const SWEEP: usize = 1_000;

    thread_local! {
        static ROUTES: RefCell<HashMap<usize, Known>> = RefCell::default();
    }

    pub fn get(route: &Arc<dyn RouteView>, make: impl FnOnce() -> RouteLimits) -> Option<Arc<RouteLimits>> {
        ROUTES.with_borrow_mut(|routes| {
            let id = Arc::as_ptr(route).cast::<()>().addr();
            if let Some((_, limits)) = routes.get(&id) {
                return Some(limits.clone());
            }
            if routes.len() >= SWEEP {
                routes.retain(|_, (route, _)| route.strong_count() > 0);
            }
            let limits = Arc::new(make());
            routes.insert(id, (Arc::downgrade(route), limits.clone()));
            Some(limits)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue, Method};
    use nuncio_core::RequestHead;
    use nuncio_core::test_kit::{self as kit, FakeRoute};
    use proto::rate_limit::action as a;

    fn limit(actions: Vec<Spec>) -> proto::RateLimit {
        let actions = actions.into_iter().map(|s| proto::rate_limit::Action { action_specifier: Some(s) }).collect();
        proto::RateLimit { actions, ..Default::default() }
    }
    fn describe(limit: &proto::RateLimit) -> Option<Vec<Entry>> {
        let mut ex = kit::exchange(RequestHead::new(Method::GET, "shop", "/p?user=bob"));
        ex.request.headers.append(HeaderName::from_static("x-tier"), HeaderValue::from_static("gold"));
        ex.route = Some(Arc::new(FakeRoute::new("r", "backend")));
        ex.info.set_metadata("ns", kit::fields([("a", kit::object(kit::fields([("b", kit::text("deep"))])))]));
        let mut report = Report::new();
        let limits = Limit::compile_list(std::slice::from_ref(limit), &kit::server(Default::default()), &At::Root, &mut report);
        let mut out = Vec::new();
        limits.unwrap_or_else(|| panic!("{}", report.summary())).iter().for_each(|l| l.describe(&ex, &mut out));
        out.pop().map(|d| d.entries)
    }
    fn entry(key: &str, value: &str) -> Option<Vec<Entry>> {
        Some(vec![(key.to_string(), value.to_string())])
    }

    #[test]
    fn actions() {
        let header = |name: &str, skip| {
            Spec::RequestHeaders(a::RequestHeaders { header_name: name.into(), descriptor_key: "tier".into(), skip_if_absent: skip })
        };
        assert_eq!(describe(&limit(vec![header("x-tier", false)])), entry("tier", "gold"));
        assert_eq!(describe(&limit(vec![header("x-none", false)])), None);
        let generic = |value: &str| Spec::GenericKey(a::GenericKey { descriptor_value: value.into(), ..Default::default() });
        assert_eq!(describe(&limit(vec![generic("v"), header("x-none", true)])), entry("generic_key", "v"));
        assert_eq!(describe(&limit(vec![generic("v"), header("x-none", false)])), None);
        assert_eq!(describe(&limit(vec![Spec::RemoteAddress(a::RemoteAddress {})])), entry("remote_address", "10.0.0.1"));
        let masked = Spec::MaskedRemoteAddress(a::MaskedRemoteAddress { v4_prefix_mask_len: Some(24), v6_prefix_mask_len: None });
        assert_eq!(describe(&limit(vec![masked])), entry("masked_remote_address", "10.0.0.0/24"));
        assert_eq!(describe(&limit(vec![Spec::DestinationCluster(a::DestinationCluster {})])), entry("destination_cluster", "backend"));
        let query = Spec::QueryParameters(a::QueryParameters {
            query_parameter_name: "user".into(),
            descriptor_key: "u".into(),
            skip_if_absent: false,
        });
        assert_eq!(describe(&limit(vec![query])), entry("u", "bob"));
        let segment =
            |k: &str| nuncio_proto::envoy::r#type::metadata::v3::metadata_key::PathSegment { segment: Some(Segment::Key(k.into())) };
        let key = MetadataKey { key: "ns".into(), path: vec![segment("a"), segment("b")] };
        let metadata = Spec::Metadata(a::MetaData { descriptor_key: "m".into(), metadata_key: Some(key), ..Default::default() });
        assert_eq!(describe(&limit(vec![metadata])), entry("m", "deep"));
        let matching = |expect| {
            let headers = vec![proto::HeaderMatcher { name: "x-tier".into(), ..Default::default() }];
            Spec::HeaderValueMatch(a::HeaderValueMatch {
                descriptor_value: "yes".into(),
                expect_match: Some(expect),
                headers,
                ..Default::default()
            })
        };
        assert_eq!(describe(&limit(vec![matching(true)])), entry("header_match", "yes"));
        assert_eq!(describe(&limit(vec![matching(false)])), None);
    }
}
