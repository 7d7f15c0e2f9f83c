//! Request and response heads as the data path sees them, whatever codec they came from.

use crate::{ByteStr, HeaderKey, Headers};
use http::{Method, StatusCode};
use std::borrow::Cow;

/// Protocol of one side of a stream. The text forms are Envoy's `%PROTOCOL%`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HttpVersion {
    Http10,
    Http11,
    Http2,
    Http3,
}

impl HttpVersion {
    /// `HTTP/1.0`, `HTTP/1.1`, `HTTP/2` or `HTTP/3`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http10 => "HTTP/1.0",
            Self::Http11 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
            Self::Http3 => "HTTP/3",
        }
    }
    /// Whether streams share the connection, so that one can end without the others.
    pub fn is_multiplexed(self) -> bool {
        self >= Self::Http2
    }
}

/// A request without its body. `authority` holds HTTP/1's Host; `headers` never hold `host`.
#[derive(Clone, Debug)]
pub struct RequestHead {
    pub method: Method,
    /// `http` or `https`; may be empty before the connection manager sets it.
    pub scheme: ByteStr,
    /// `:authority`; empty if the client sent none.
    pub authority: ByteStr,
    /// `:path`: path and query as sent; empty for CONNECT without a path.
    pub path: ByteStr,
    /// `:protocol` of extended CONNECT, or the HTTP/1 `upgrade` token once the connection manager accepted it.
    pub protocol: Option<ByteStr>,
    pub version: HttpVersion,
    pub headers: Headers,
}

/// What the header fields of a request, pseudo-headers among them, may come to: `max_request_headers_kb` and `max_headers_count` of the
/// connection manager. Filters that add fields for somebody else hold him to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderLimits {
    /// Bytes of names and values.
    pub bytes: usize,
    pub count: usize,
}

impl Default for HeaderLimits {
    /// None.
    fn default() -> Self {
        Self { bytes: usize::MAX, count: usize::MAX }
    }
}

impl HeaderLimits {
    /// Whether `head` is over a limit.
    pub fn are_exceeded(&self, head: &RequestHead) -> bool {
        let pseudo =
            [(":method", head.method.as_str()), (":scheme", &*head.scheme), (":authority", &*head.authority), (":path", &*head.path)];
        let (mut bytes, mut count) = (head.headers.byte_size(), head.headers.len());
        for (name, value) in pseudo.into_iter().filter(|(_, value)| !value.is_empty()) {
            bytes += name.len() + value.len();
            count += 1;
        }
        bytes > self.bytes || count > self.count
    }
}

impl RequestHead {
    /// An HTTP/1.1 request for `path` without headers.
    pub fn new(method: Method, authority: impl Into<ByteStr>, path: impl Into<ByteStr>) -> Self {
        Self {
            method,
            scheme: ByteStr::from_static("http"),
            authority: authority.into(),
            path: path.into(),
            protocol: None,
            version: HttpVersion::Http11,
            headers: Headers::new(),
        }
    }
    /// The path without query and fragment.
    pub fn path_only(&self) -> &str {
        let path = self.path.as_str();
        path.split(['?', '#']).next().unwrap_or(path)
    }
    /// The query without `?`, none if there is no `?`.
    pub fn query(&self) -> Option<&str> {
        self.path.as_str().split_once('?').map(|(_, q)| q.split('#').next().unwrap_or(q))
    }
    /// All values of a header joined by `,` as Envoy's matchers and formatters see it; pseudo-headers included.
    pub fn header<'a>(&'a self, key: &HeaderKey) -> Option<Cow<'a, [u8]>> {
        let text = |s: &'a ByteStr| (!s.is_empty()).then(|| Cow::Borrowed(s.as_bytes().as_ref()));
        match key {
            HeaderKey::Method => Some(Cow::Borrowed(self.method.as_str().as_bytes())),
            HeaderKey::Scheme => text(&self.scheme),
            HeaderKey::Authority => text(&self.authority),
            HeaderKey::Path => text(&self.path),
            HeaderKey::Protocol => self.protocol.as_ref().and_then(text),
            HeaderKey::Status => None,
            HeaderKey::Name(name) => joined(&self.headers, name),
        }
    }
    /// Whether the content type is gRPC (`application/grpc` or `application/grpc+...`), as Envoy's `Grpc::Common`.
    pub fn is_grpc(&self) -> bool {
        is_grpc_content_type(&self.headers)
    }
}

/// A response without its body.
#[derive(Clone, Debug)]
pub struct ResponseHead {
    pub status: StatusCode,
    pub version: HttpVersion,
    pub headers: Headers,
}

impl ResponseHead {
    /// An HTTP/1.1 response without headers.
    pub fn new(status: StatusCode) -> Self {
        Self { status, version: HttpVersion::Http11, headers: Headers::new() }
    }
    /// As [`RequestHead::header`].
    pub fn header<'a>(&'a self, key: &HeaderKey) -> Option<Cow<'a, [u8]>> {
        match key {
            HeaderKey::Status => Some(Cow::Owned(self.status.as_str().as_bytes().to_vec())),
            HeaderKey::Name(name) => joined(&self.headers, name),
            _ => None,
        }
    }
}

/// Whether `headers` say gRPC.
pub fn is_grpc_content_type(headers: &Headers) -> bool {
    headers
        .get(&http::header::CONTENT_TYPE)
        .is_some_and(|v| v.as_bytes().strip_prefix(b"application/grpc").is_some_and(|rest| rest.is_empty() || rest.starts_with(b"+")))
}

/// All values of `name` joined by `,`.
pub fn joined<'a>(headers: &'a Headers, name: &http::HeaderName) -> Option<Cow<'a, [u8]>> {
    let mut values = headers.iter().filter(|(n, _)| *n == name).map(|(_, v)| v);
    let first = values.next()?;
    let Some(second) = values.next() else { return Some(Cow::Borrowed(first.as_bytes())) };
    let mut all = first.as_bytes().to_vec();
    for v in std::iter::once(second).chain(values) {
        all.push(b',');
        all.extend_from_slice(v.as_bytes());
    }
    Some(Cow::Owned(all))
}
