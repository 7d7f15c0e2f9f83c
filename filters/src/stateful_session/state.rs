//! How a session is carried between client and proxy. Source: `envoy/extensions/http/stateful_session/*/v3/*.proto` and
//! `source/extensions/http/stateful_session`: the forms on the wire are Envoy's, so that clients may come from one to the other.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderName, HeaderValue, header};
use nuncio_core::diag::{At, Report};
use nuncio_core::{RequestHead, ResponseHead};
use nuncio_matcher::query;
use nuncio_proto::envoy::config::core::v3::TypedExtensionConfig;
use nuncio_proto::envoy::extensions::http::stateful_session::{
    cookie::v3::CookieBasedSessionState, envelope::v3::EnvelopeSessionState, header::v3::HeaderBasedSessionState,
};
use nuncio_proto::typed::{unpack, unpack_as};
use nuncio_route::Cookie;
use prost::Message;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Marks the part of an envelope that holds the upstream's own value.
const ORIGINAL: &str = "UV:";

/// One kind of session state.
#[derive(Debug)]
pub(super) enum SessionState {
    Cookie(Cookie),
    Header(HeaderName),
    Envelope(HeaderName),
}

/// What the value of a session cookie is made of. Source: `cookie.proto`, message `Cookie`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct CookieValue {
    #[prost(string, tag = "1")]
    pub address: String,
    /// Seconds; 0 for never.
    #[prost(uint64, tag = "2")]
    pub expires: u64,
}

fn decode64(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok().filter(|bytes| !bytes.is_empty())
}

fn address64(text: &str) -> Option<String> {
    String::from_utf8(decode64(text)?).ok()
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

impl SessionState {
    /// Compiles `session_state`; others than Envoy's three are refused.
    pub(super) fn compile(extension: &TypedExtensionConfig, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let at = at.field("typed_config");
        let any = extension.typed_config.clone().unwrap_or_default();
        let name = unpack(&any).map(|t| t.name).unwrap_or_default();
        let wrong = |report: &mut Report, why: String| {
            report.error(&at, why, "correct the session state");
            None
        };
        match name.as_str() {
            "envoy.extensions.http.stateful_session.cookie.v3.CookieBasedSessionState" => {
                match unpack_as::<CookieBasedSessionState>(&any) {
                    Ok(config) => cookie(&config, &at.field("cookie"), report).map(Self::Cookie),
                    Err(why) => wrong(report, why.to_string()),
                }
            }
            "envoy.extensions.http.stateful_session.header.v3.HeaderBasedSessionState" => {
                match unpack_as::<HeaderBasedSessionState>(&any) {
                    Ok(config) => header_name(&config.name, &at.field("name"), report).map(Self::Header),
                    Err(why) => wrong(report, why.to_string()),
                }
            }
            "envoy.extensions.http.stateful_session.envelope.v3.EnvelopeSessionState" => match unpack_as::<EnvelopeSessionState>(&any) {
                Ok(config) => {
                    let name = config.header.unwrap_or_default().name;
                    header_name(&name, &at.field("header").field("name"), report).map(Self::Envelope)
                }
                Err(why) => wrong(report, why.to_string()),
            },
            _ => {
                report.unsupported(&at, format_args!("session state {} ({name})", extension.name));
                None
            }
        }
    }
    /// The address that the request names; the outer none if the request can have no session. An envelope is opened: the upstream
    /// gets its own value back.
    pub(super) fn read(&self, request: &mut RequestHead) -> Option<Option<String>> {
        match self {
            Self::Cookie(cookie) => on_path(&cookie.path, request.path.as_str()).then(|| cookie_address(cookie, request)),
            Self::Header(name) => Some(request.headers.get_str(name).and_then(address64)),
            Self::Envelope(name) => Some(open(name, request)),
        }
    }
    /// Tells the client of `host`, where the request went; `changed` if that is not what it asked for. Whether the session changed.
    pub(super) fn write(&self, host: &str, changed: bool, response: &mut ResponseHead) -> bool {
        match self {
            Self::Cookie(cookie) if changed => {
                let expires = cookie.ttl.filter(|t| t.as_secs() > 0).map_or(0, |ttl| (now() + ttl).as_secs());
                let value = STANDARD.encode(CookieValue { address: host.to_string(), expires }.encode_to_vec());
                if let Ok(value) = HeaderValue::try_from(cookie.set(&value)) {
                    response.headers.append(header::SET_COOKIE, value);
                }
            }
            Self::Header(name) if changed => {
                if let Ok(value) = HeaderValue::try_from(STANDARD.encode(host)) {
                    response.headers.insert(name.clone(), value);
                }
            }
            Self::Envelope(name) => {
                let mut values = response.headers.get_all(name);
                // Without one value of the upstream's there is no session.
                let (Some(theirs), None) = (values.next(), values.next()) else { return false };
                let sealed = format!("{};{ORIGINAL}{}", STANDARD.encode(host), STANDARD.encode(theirs.as_bytes()));
                drop(values);
                if let Ok(value) = HeaderValue::try_from(sealed) {
                    response.headers.insert(name.clone(), value);
                }
            }
            Self::Cookie(_) | Self::Header(_) => {}
        }
        changed
    }
}

fn header_name(name: &str, at: &At<'_>, report: &mut Report) -> Option<HeaderName> {
    let parsed = HeaderName::try_from(name).ok();
    if parsed.is_none() {
        report.error(at, format!("{name:?}"), "give a valid header name");
    }
    parsed
}

fn cookie(config: &CookieBasedSessionState, at: &At<'_>, report: &mut Report) -> Option<Cookie> {
    let Some(proto) = &config.cookie else {
        report.error(at, "nothing", "describe the cookie");
        return None;
    };
    if proto.name.is_empty() {
        report.error(&at.field("name"), "empty", "name the cookie");
        return None;
    }
    let ttl = match &proto.ttl {
        None => None,
        Some(ttl) => Some(crate::config::duration(ttl, &at.field("ttl"), report)?),
    };
    let attributes = proto.attributes.iter().map(|a| (a.name.as_str().into(), a.value.as_str().into())).collect();
    let cookie = Cookie { name: proto.name.as_str().into(), ttl, path: proto.path.as_str().into(), attributes };
    if HeaderValue::try_from(cookie.set("0")).is_err() {
        report.error(at, "characters that a header value cannot hold", "remove them from name, path and attributes");
        return None;
    }
    Some(cookie)
}

/// Whether a cookie of `path` is sent with a request for `request`.
fn on_path(path: &str, request: &str) -> bool {
    if path.is_empty() || path == "/" {
        return true;
    }
    match request.strip_prefix(path) {
        None => false,
        Some(rest) => path.ends_with('/') || rest.is_empty() || rest.starts_with(['/', '?', '#']),
    }
}

fn cookie_address(cookie: &Cookie, request: &RequestHead) -> Option<String> {
    let bytes = decode64(query::cookie(&request.headers, &cookie.name)?)?;
    let Ok(value) = CookieValue::decode(bytes.as_slice()) else {
        // The form of old Envoys: nothing but the address.
        return String::from_utf8(bytes).ok();
    };
    if value.address.is_empty() {
        return None;
    }
    let lasts = cookie.ttl.is_some_and(|t| t.as_secs() > 0);
    match value.expires {
        0 => (!lasts).then_some(value.address),
        expires => (now().as_secs() <= expires).then_some(value.address),
    }
}

fn open(name: &HeaderName, request: &mut RequestHead) -> Option<String> {
    let sealed = request.headers.get_str(name)?;
    let mut parts = sealed.split(';').filter(|p| !p.is_empty());
    let address = parts.next()?;
    let original = decode64(parts.find_map(|p| p.strip_prefix(ORIGINAL))?)?;
    let address = address64(address);
    request.headers.insert(name.clone(), HeaderValue::from_bytes(&original).ok()?);
    address
}
