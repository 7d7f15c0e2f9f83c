//! Hash policies: what ring hash and Maglev see of a request. The functions are Envoy's (xxHash64 with seed 0), so that both
//! proxies send one client to one host. Source: RouteAction.hash_policy, Envoy's `http/hash_policy.cc`.

use http::HeaderValue;
use nuncio_core::diag::{At, Report};
use nuncio_core::{Address, HeaderKey, RequestHead, StreamInfo};
use nuncio_matcher::{RegexRewrite, query};
use nuncio_proto::envoy::config::route::v3::route_action as proto;
use smallvec::SmallVec;
use std::io::Write;
use std::net::IpAddr;
use std::time::Duration;
use twox_hash::XxHash64;

/// A compiled list of hash policies.
#[derive(Debug)]
pub struct HashPolicy {
    methods: Box<[Method]>,
}

/// What a request hashes to.
#[derive(Debug, Default)]
pub struct HashResult {
    /// None if no policy found what it hashes.
    pub hash: Option<u64>,
    /// `set-cookie` values that the response must carry (generated session cookies).
    pub set_cookies: SmallVec<[HeaderValue; 1]>,
}

#[derive(Debug)]
struct Method {
    kind: Kind,
    terminal: bool,
}

#[derive(Debug)]
enum Kind {
    Header { key: HeaderKey, rewrite: Option<RegexRewrite> },
    Cookie(Cookie),
    SourceIp,
    Query(Box<str>),
    FilterState(Box<str>),
}

/// A cookie that the proxy itself makes: of hash policies, and of stateful sessions.
#[derive(Debug)]
pub struct Cookie {
    pub name: Box<str>,
    /// Of hash policies: none does not generate; zero generates a session cookie.
    pub ttl: Option<Duration>,
    pub path: Box<str>,
    pub attributes: Box<[(Box<str>, Box<str>)]>,
}

impl HashPolicy {
    /// Compiles a repeated `HashPolicy`; the outer `None` means refused, the inner one that there is none.
    pub fn compile(policies: &[proto::HashPolicy], at: &At<'_>, report: &mut Report) -> Option<Option<Self>> {
        let mut methods = Vec::with_capacity(policies.len());
        for (i, policy) in policies.iter().enumerate() {
            let kind = kind(policy, &at.index(i), report)?;
            methods.extend(kind.map(|kind| Method { kind, terminal: policy.terminal }));
        }
        Some((!methods.is_empty()).then(|| Self { methods: methods.into() }))
    }
    /// Hashes a request. Source: `HashPolicyImpl::generateHash`.
    pub fn hash(&self, request: &RequestHead, info: &StreamInfo) -> HashResult {
        let mut result = HashResult::default();
        for method in &self.methods {
            if let Some(new) = method.kind.hash(request, info, &mut result.set_cookies) {
                // Rotated, so that the same value under two policies does not cancel itself out.
                result.hash = Some(result.hash.unwrap_or(0).rotate_left(1) ^ new);
            }
            if method.terminal && result.hash.is_some() {
                break;
            }
        }
        result
    }
}

/// Reports `found` at `at` and gives none, for `?`.
fn refuse<T>(report: &mut Report, at: &At<'_>, found: impl Into<String>, remedy: &str) -> Option<T> {
    report.error(at, found, remedy);
    None
}

fn kind(policy: &proto::HashPolicy, at: &At<'_>, report: &mut Report) -> Option<Option<Kind>> {
    use proto::hash_policy::PolicySpecifier as P;
    let required = |text: &str, at: &At<'_>, report: &mut Report| match text {
        "" => refuse(report, at, "nothing", "give a name"),
        text => Some(Box::<str>::from(text)),
    };
    Some(Some(match &policy.policy_specifier {
        None => {
            return refuse(report, at, "no policy_specifier", "set header, cookie, connection_properties, query_parameter or filter_state");
        }
        Some(P::Header(header)) => {
            let at = at.field("header");
            let Some(key) = HeaderKey::parse(&header.header_name) else {
                return refuse(report, &at.field("header_name"), format!("\"{}\"", header.header_name), "give a valid header name");
            };
            let rewrite = match &header.regex_rewrite {
                Some(regex) => Some(RegexRewrite::compile(regex, &at.field("regex_rewrite"), report)?),
                None => None,
            };
            Kind::Header { key, rewrite }
        }
        Some(P::Cookie(cookie)) => {
            let at = at.field("cookie");
            let name = required(&cookie.name, &at.field("name"), report)?;
            let ttl = match cookie.ttl.map(Duration::try_from) {
                None => None,
                Some(Ok(ttl)) => Some(ttl),
                Some(Err(e)) => return refuse(report, &at.field("ttl"), e.to_string(), "give a duration that is not negative"),
            };
            let attributes: Box<[_]> = cookie.attributes.iter().map(|a| (a.name.as_str().into(), a.value.as_str().into())).collect();
            let cookie = Cookie { name, ttl, path: cookie.path.as_str().into(), attributes };
            if HeaderValue::try_from(cookie.set("0")).is_err() {
                return refuse(report, &at, "characters that a header value cannot hold", "remove them from name, path and attributes");
            }
            Kind::Cookie(cookie)
        }
        Some(P::ConnectionProperties(properties)) if properties.source_ip => Kind::SourceIp,
        Some(P::ConnectionProperties(_)) => return Some(None),
        Some(P::QueryParameter(parameter)) => Kind::Query(required(&parameter.name, &at.field("query_parameter").field("name"), report)?),
        Some(P::FilterState(state)) => Kind::FilterState(required(&state.key, &at.field("filter_state").field("key"), report)?),
    }))
}

fn xxhash(bytes: &[u8]) -> u64 {
    XxHash64::oneshot(0, bytes)
}

impl Kind {
    fn hash(&self, request: &RequestHead, info: &StreamInfo, set_cookies: &mut SmallVec<[HeaderValue; 1]>) -> Option<u64> {
        match self {
            Self::Header { key, rewrite } => hash_header(request, key, rewrite.as_ref()),
            Self::Cookie(cookie) => {
                if let Some(value) = query::cookie(&request.headers, &cookie.name).filter(|v| !v.is_empty()) {
                    return Some(xxhash(value.as_bytes()));
                }
                cookie.ttl?;
                // The same for every request of a connection, so that parallel first requests get one cookie.
                let connection = format!("{}{}", info.connection.remote, info.connection.local);
                let value = format!("{:016x}", xxhash(connection.as_bytes()));
                set_cookies.extend(HeaderValue::try_from(cookie.set(&value)).ok());
                Some(xxhash(value.as_bytes()))
            }
            Self::SourceIp => match &info.remote {
                Address::Ip(address) => Some(xxhash_ip(address.ip())),
                _ => None,
            },
            Self::Query(name) => query::parameter(request.query()?, name).map(|v| xxhash(v.as_bytes())),
            Self::FilterState(key) => {
                let object = info.filter_state.get(key).cloned().or_else(|| info.connection.filter_state.borrow().get(key).cloned());
                object?.as_string().map(|text| xxhash(text.as_bytes()))
            }
        }
    }
}

/// Hash of an address' text form, written on the stack.
fn xxhash_ip(ip: IpAddr) -> u64 {
    let mut text = std::io::Cursor::new([0u8; 48]);
    // No address is longer than 45 characters.
    let _ = write!(text, "{ip}");
    let length = usize::try_from(text.position()).unwrap_or_default();
    xxhash(text.get_ref().get(..length).unwrap_or_default())
}

/// Several fields of one name are hashed in sorted order, each hash being the seed of the next.
fn hash_header(request: &RequestHead, key: &HeaderKey, rewrite: Option<&RegexRewrite>) -> Option<u64> {
    let rewritten = |value: &[u8], seed| match rewrite {
        None => XxHash64::oneshot(seed, value),
        Some(rewrite) => XxHash64::oneshot(seed, &rewrite.replace_all_bytes(value)),
    };
    let HeaderKey::Name(name) = key else { return request.header(key).map(|v| rewritten(&v, 0)) };
    let mut values: SmallVec<[_; 4]> = request.headers.get_all(name).map(|v| v.as_bytes()).collect();
    if values.is_empty() {
        return None;
    }
    if values.len() == 1 || rewrite.is_none() {
        values.sort_unstable();
        return Some(values.iter().fold(0, |seed, v| rewritten(v, seed)));
    }
    let mut all: Vec<_> = values.iter().filter_map(|v| rewrite.map(|r| r.replace_all_bytes(v))).collect();
    all.sort_unstable();
    Some(all.iter().fold(0, |seed, v| XxHash64::oneshot(seed, v)))
}

impl Cookie {
    /// The `set-cookie` value. Source: Envoy's `Http::Utility::makeSetCookieValue`.
    pub fn set(&self, value: &str) -> String {
        let mut out = format!("{}=\"{value}\"", self.name);
        if let Some(ttl) = self.ttl.filter(|t| t.as_secs() > 0) {
            out.push_str(&format!("; Max-Age={}", ttl.as_secs()));
        }
        if !self.path.is_empty() {
            out.push_str("; Path=");
            out.push_str(&self.path);
        }
        for (name, value) in &self.attributes {
            out.push_str("; ");
            out.push_str(name);
            if !value.is_empty() {
                out.push('=');
                out.push_str(value);
            }
        }
        out.push_str("; HttpOnly");
        out
    }
}
