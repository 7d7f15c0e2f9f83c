//! Parts of the request and response: headers, host, path and query.

use crate::FormatContext;
use nuncio_core::{HeaderKey, RequestHead};
use nuncio_core::{Headers as Fields, ResponseHead};

/// Headers whose repeated values Envoy keeps as one, joined by commas. Of others it shows the first value.
const JOINED: [&str; 14] = [
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
    "user-agent",
    "via",
    "te",
    "content-type",
    "content-length",
    "connection",
    "upgrade",
    "x-request-id",
    "x-envoy-external-address",
    "server",
];

/// A header's name as an operator refers to it.
#[derive(Debug)]
pub(crate) struct Name {
    key: HeaderKey,
    joined: bool,
}

impl Name {
    pub fn parse(name: &str) -> Option<Self> {
        let key = HeaderKey::parse(name)?;
        let joined = JOINED.contains(&key.as_str());
        Some(Self { key, joined })
    }
    fn field(&self, headers: &Fields, out: &mut Vec<u8>) -> bool {
        let HeaderKey::Name(name) = &self.key else { return false };
        if self.joined {
            return super::joined(out, headers.get_all(name).map(|v| v.as_bytes()));
        }
        let Some(value) = headers.get(name) else { return false };
        out.extend_from_slice(value.as_bytes());
        true
    }
    fn request(&self, request: &RequestHead, out: &mut Vec<u8>) -> bool {
        let text = match &self.key {
            HeaderKey::Method => request.method.as_str(),
            HeaderKey::Scheme => &request.scheme,
            HeaderKey::Authority => &request.authority,
            HeaderKey::Path => &request.path,
            HeaderKey::Protocol => request.protocol.as_deref().unwrap_or_default(),
            HeaderKey::Status => return false,
            HeaderKey::Name(_) => return self.field(&request.headers, out),
        };
        out.extend_from_slice(text.as_bytes());
        !text.is_empty()
    }
    fn response(&self, response: &ResponseHead, out: &mut Vec<u8>) -> bool {
        if self.key == HeaderKey::Status {
            out.extend_from_slice(response.status.as_str().as_bytes());
            return true;
        }
        self.field(&response.headers, out)
    }
}

/// Where a header is looked for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum From {
    Request,
    /// Without the query part (`%REQ_WITHOUT_QUERY%`).
    RequestWithoutQuery,
    Response,
    Trailers,
}

/// `%REQ(MAIN?OTHER)%` and its kin.
#[derive(Debug)]
pub(crate) struct Headers {
    pub from: From,
    pub main: Name,
    pub other: Option<Name>,
}

impl Headers {
    /// Appends the value; false if there is none.
    pub fn write(&self, cx: &FormatContext<'_>, out: &mut Vec<u8>) -> bool {
        let start = out.len();
        let mut find = |name: &Name| match self.from {
            From::Request | From::RequestWithoutQuery => cx.request.is_some_and(|r| name.request(r, out)),
            From::Response => cx.response.is_some_and(|r| name.response(r, out)),
            From::Trailers => cx.trailers.is_some_and(|t| name.field(t, out)),
        };
        let found = find(&self.main) || self.other.as_ref().is_some_and(find);
        if matches!(self.from, From::RequestWithoutQuery)
            && let Some(at) = out.get(start..).and_then(|value| memchr::memchr(b'?', value))
        {
            out.truncate(start + at);
        }
        found
    }
}

/// Which host name `%REQUESTED_SERVER_NAME%` prefers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostChoice {
    pub sni: Sni,
    pub host: HostSource,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sni {
    Only,
    First,
    /// The host comes first.
    Last,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum HostSource {
    Original,
    Authority,
    OriginalOrAuthority,
}

fn original<'a>(request: &'a RequestHead, name: &'static str) -> Option<&'a [u8]> {
    request.headers.get(&http::HeaderName::from_static(name)).map(|v| v.as_bytes())
}

impl HostChoice {
    pub fn write(self, cx: &FormatContext<'_>, out: &mut Vec<u8>) -> bool {
        let sni = || cx.info.connection.requested_server_name.as_deref().map(str::as_bytes);
        let host = || {
            let request = cx.request?;
            let authority = || Some(request.authority.as_bytes().as_ref());
            match self.host {
                HostSource::Original => original(request, "x-envoy-original-host"),
                HostSource::Authority => authority(),
                HostSource::OriginalOrAuthority => original(request, "x-envoy-original-host").or_else(authority),
            }
        };
        let present = |v: &&[u8]| !v.is_empty();
        let found = match self.sni {
            Sni::Only => sni(),
            Sni::First => sni().filter(present).or_else(host),
            Sni::Last => host().filter(present).or_else(sni),
        };
        let found = found.unwrap_or_default();
        out.extend_from_slice(found);
        !found.is_empty()
    }
}

/// Which path `%PATH%` means.
#[derive(Clone, Copy, Debug)]
pub(crate) enum PathSource {
    Original,
    Path,
    OriginalOrPath,
}

impl PathSource {
    pub fn write(self, cx: &FormatContext<'_>, query: bool, out: &mut Vec<u8>) -> bool {
        let Some(request) = cx.request else { return false };
        let path = || Some(request.path.as_bytes().as_ref()).filter(|p: &&[u8]| !p.is_empty());
        let found = match self {
            Self::Original => original(request, "x-envoy-original-path"),
            Self::Path => path(),
            Self::OriginalOrPath => original(request, "x-envoy-original-path").or_else(path),
        };
        let Some(found) = found else { return false };
        let end = if query { None } else { memchr::memchr(b'?', found) };
        out.extend_from_slice(end.and_then(|at| found.get(..at)).unwrap_or(found));
        true
    }
}

/// Appends `text` with `%XX` decoded; a `%` without two hex digits stays.
fn decoded(out: &mut Vec<u8>, text: &str) {
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(&b) = bytes.get(at) {
        let hex = |i: usize| bytes.get(i).and_then(|c| (*c as char).to_digit(16));
        if b == b'%'
            && let (Some(high), Some(low)) = (hex(at + 1), hex(at + 2))
        {
            out.push((high * 16 + low) as u8);
            at += 3;
        } else {
            out.push(b);
            at += 1;
        }
    }
}

/// `%QUERY_PARAM(name)%`: the first value, decoded.
pub(crate) fn query_param(cx: &FormatContext<'_>, name: &str, out: &mut Vec<u8>) -> bool {
    let Some(query) = cx.request.and_then(|r| r.query()) else { return false };
    for pair in query.split('&') {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let start = out.len();
        if key.contains('%') {
            decoded(out, key)
        } else {
            out.extend_from_slice(key.as_bytes())
        }
        let same = out.get(start..) == Some(name.as_bytes());
        out.truncate(start);
        if same {
            decoded(out, value);
            return true;
        }
    }
    false
}

/// `%QUERY_PARAMS%`: everything behind the `?`.
pub(crate) fn query_params(cx: &FormatContext<'_>, decode: bool, out: &mut Vec<u8>) -> bool {
    let Some(query) = cx.request.and_then(|r| r.query()).filter(|q| !q.is_empty()) else { return false };
    if decode {
        decoded(out, query)
    } else {
        out.extend_from_slice(query.as_bytes())
    }
    true
}
