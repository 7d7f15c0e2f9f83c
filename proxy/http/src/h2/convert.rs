//! Heads between the `http` crate's types, which `h2` speaks, and ours. Pure functions.

use crate::options::{CodecStats, H2Options, HeadersWithUnderscores, ServerOptions};
use crate::service::Malformed;
use crate::validate::{self, details};
use bytes::{Bytes, BytesMut};
use h2::ext::Protocol;
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header, request, response};
use nuncio_core::{ByteStr, Headers, HttpVersion, RequestHead, ResponseHead, StreamError};

/// A request that came in.
pub struct Incoming {
    pub head: RequestHead,
    /// CONNECT, plain or extended: raw bytes instead of a body.
    pub upgrade: bool,
    pub extended: bool,
    /// Size of the header list as HTTP/2 counts it.
    pub bytes: u64,
}

/// Why a request is not served.
pub enum Refused {
    Malformed(Box<Malformed>),
    /// The stream is reset; with response code details.
    Reset(h2::Reason, &'static str),
}

/// Header fields in order; several cookies become one, as RFC 9113, section 8.2.3 asks of whoever leaves HTTP/2.
fn fields(map: HeaderMap) -> Headers {
    let mut headers = Headers::with_capacity(map.len() + 6);
    let cookies = map.get_all(header::COOKIE).iter().count();
    let mut name = None;
    let mut joined: Option<BytesMut> = None;
    for (next, value) in map {
        if next.is_some() {
            name = next;
        }
        let Some(name) = &name else { continue };
        if cookies > 1 && *name == header::COOKIE {
            let all = joined.get_or_insert_default();
            if !all.is_empty() {
                all.extend_from_slice(b"; ");
            }
            all.extend_from_slice(value.as_bytes());
            continue;
        }
        headers.append(name.clone(), value);
    }
    if let Some(cookie) = joined.and_then(|c| HeaderValue::from_maybe_shared(c.freeze()).ok()) {
        headers.append(header::COOKIE, cookie);
    }
    headers
}

fn text(s: &str) -> ByteStr {
    match s {
        "/" => ByteStr::from_static("/"),
        "" => ByteStr::default(),
        s => ByteStr::from(s),
    }
}

/// A request of a client. `fragment`: its path had one, which `h2` has cut off; whoever is called is to see that. `h2` has checked the pseudo-headers, the names, and that nothing is connection-specific.
pub fn request_in(parts: request::Parts, fragment: bool, options: &ServerOptions) -> Result<Incoming, Refused> {
    let bytes = size(&parts.headers) + (parts.uri.path().len() + 64) as u64;
    let fields_seen = parts.headers.len();
    let scheme_fits = parts.uri.scheme_str().is_none_or(is_scheme);
    if !scheme_fits || !hosts_fit(&parts.headers) || !fields_fit(&parts.headers, &options.h2) {
        return Err(Refused::Reset(h2::Reason::PROTOCOL_ERROR, details::H2_MESSAGING));
    }
    let mut headers = fields(parts.headers);
    underscores(&mut headers, options.headers_with_underscores, &options.stats)?;
    let host = headers.remove(&header::HOST);
    // Envoy: `:authority` wins over a host header.
    let authority = match parts.uri.authority() {
        Some(authority) => Some(text(authority.as_str())),
        None => match host {
            Some(host) => {
                Some(ByteStr::from_utf8(Bytes::copy_from_slice(host.as_bytes())).map_err(|_| malformed(details::INVALID_AUTHORITY, None))?)
            }
            None => None,
        },
    };
    let has_authority = authority.is_some();
    let extended = parts.extensions.get::<Protocol>().map(|p| text(p.as_str()));
    let connect = parts.method == Method::CONNECT;
    let scheme = match parts.uri.scheme_str() {
        Some("https") => ByteStr::from_static("https"),
        Some("http") => ByteStr::from_static("http"),
        Some(other) => text(other),
        None => ByteStr::from_static(if options.tls { "https" } else { "http" }),
    };
    let mut head = RequestHead {
        method: parts.method,
        scheme,
        authority: authority.unwrap_or_default(),
        path: text(parts.uri.path_and_query().map_or("", PathAndQuery::as_str)),
        protocol: None,
        version: HttpVersion::Http2,
        headers,
    };
    if fragment {
        head.path = ByteStr::from(format!("{}#", head.path));
    }
    if connect && extended.is_none() {
        head.path = ByteStr::default();
    }
    if let Some(protocol) = &extended {
        // In HTTP/1 form, so that everything above knows one form only.
        head.method = Method::GET;
        head.headers.remove(&header::CONTENT_LENGTH);
        let value = HeaderValue::from_maybe_shared(protocol.as_bytes().clone())
            .map_err(|_| Refused::Reset(h2::Reason::PROTOCOL_ERROR, details::H2_MESSAGING))?;
        head.headers.append(header::UPGRADE, value);
        head.headers.append(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
    let upgrade = connect;
    let is_extended = extended.is_some();
    head.protocol = extended;
    if fields_seen > options.max_headers_count as usize {
        options.stats.header_overflow.inc();
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        let error = Malformed { status, details: details::H2_TOO_MANY_HEADERS, head: Some(Box::new(head)), recoverable: true };
        return Err(Refused::Malformed(Box::new(error)));
    }
    // RFC 9113, section 8.3.1: no user information.
    if !validate::is_valid_authority(head.authority.as_bytes()) || head.authority.contains('@') {
        return Err(malformed(details::INVALID_AUTHORITY, Some(head)));
    }
    if !has_authority {
        return Err(malformed(details::MISSING_HOST, Some(head)));
    }
    Ok(Incoming { head, upgrade, extended: is_extended, bytes })
}

fn malformed(details: &'static str, head: Option<RequestHead>) -> Refused {
    Refused::Malformed(Box::new(Malformed { status: StatusCode::BAD_REQUEST, details, head: head.map(Box::new), recoverable: true }))
}

fn underscores(headers: &mut Headers, action: HeadersWithUnderscores, stats: &CodecStats) -> Result<(), Refused> {
    let has = |name: &HeaderName| name.as_str().contains('_');
    if action == HeadersWithUnderscores::Allow || !headers.iter().any(|(name, _)| has(name)) {
        return Ok(());
    }
    if action == HeadersWithUnderscores::RejectRequest {
        stats.h2_requests_rejected_with_underscores_in_headers.inc();
        return Err(Refused::Reset(h2::Reason::INTERNAL_ERROR, details::H2_UNDERSCORE));
    }
    headers.retain(|name, _| {
        if has(name) {
            stats.h2_dropped_headers_with_underscores.inc();
        }
        !has(name)
    });
    Ok(())
}

/// Trailers that came in. Their fields count by themselves.
pub fn trailers_in(map: HeaderMap, h2: &H2Options, max_count: u32) -> Result<Box<Headers>, StreamError> {
    if map.len() > max_count as usize {
        return Err(StreamError::TooLarge(details::H2_TOO_MANY_HEADERS));
    }
    // Not after the body (nghttp2, as RFC 9110, section 6.5.1, has it).
    if map.contains_key(header::CONTENT_LENGTH) || !fields_fit(&map, h2) {
        return Err(StreamError::Protocol(details::H2_MESSAGING));
    }
    Ok(Box::new(fields(map)))
}

/// Whether the fields of a head or of trailers are such as nghttp2 takes, as far as `h2` does not look: at most one content-length, which
/// is a number (`h2` takes an empty one, and holds the body to the first); no quote in a name, which the `http` crate takes for a token; no
/// bytes above 0x7f in values, if `disallow_obs_text`.
pub fn fields_fit(map: &HeaderMap, h2: &H2Options) -> bool {
    let mut lengths = map.get_all(header::CONTENT_LENGTH).iter();
    let length = lengths.next().is_none_or(|value| validate::content_length(value.as_bytes()).is_some()) && lengths.next().is_none();
    length
        && map.keys().all(|name| !name.as_str().as_bytes().contains(&b'"'))
        && !(h2.disallow_obs_text && map.values().any(|value| !value.as_bytes().is_ascii()))
}

/// At most one `host`, and in it what an authority may be.
fn hosts_fit(map: &HeaderMap) -> bool {
    let mut hosts = map.get_all(header::HOST).iter();
    let fits = hosts.next().is_none_or(|host| !host.is_empty() && validate::is_valid_authority(host.as_bytes()));
    fits && hosts.next().is_none()
}

/// RFC 3986, section 3.1.
fn is_scheme(scheme: &str) -> bool {
    scheme.as_bytes().first().is_some_and(u8::is_ascii_alphabetic)
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
}

/// Size of a header list as SETTINGS_MAX_HEADER_LIST_SIZE counts it.
pub fn size(map: &HeaderMap) -> u64 {
    map.iter().map(|(n, v)| (n.as_str().len() + v.len() + 32) as u64).sum()
}

/// Header fields for `h2`: connection-specific ones are left out, `te` is `trailers` or nothing.
pub fn map(headers: &Headers) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers.iter() {
        if validate::is_connection_specific(name) || *name == header::HOST || (*name == header::TE && value != "trailers") {
            continue;
        }
        // Full maps refuse; the limit is far above what any peer accepts.
        let _ = map.try_append(name.clone(), value.clone());
    }
    map
}

/// Trailers for `h2`.
pub fn trailers_out(headers: &Headers) -> HeaderMap {
    let mut map = map(headers);
    map.remove(header::CONTENT_LENGTH);
    map
}

/// A response to a client. `extended`: 101 is told as 200.
pub fn response_out(head: &ResponseHead, extended: bool) -> Response<()> {
    let mut response = Response::new(());
    *response.version_mut() = Version::HTTP_2;
    let switching = head.status == StatusCode::SWITCHING_PROTOCOLS;
    *response.status_mut() = if extended && switching { StatusCode::OK } else { head.status };
    *response.headers_mut() = map(&head.headers);
    if switching || head.status == StatusCode::NO_CONTENT {
        response.headers_mut().remove(header::CONTENT_LENGTH);
    }
    response
}

/// A request to a server. Refuses what would not arrive as it is meant.
pub fn request_out(head: &RequestHead, extended_allowed: bool) -> Result<(Request<()>, Option<ByteStr>), StreamError> {
    let upgrade = head.method != Method::CONNECT && validate::is_upgrade(&head.headers);
    let plain_connect = head.method == Method::CONNECT;
    let authority =
        Authority::from_maybe_shared(head.authority.as_bytes().clone()).map_err(|_| StreamError::LocalReset(details::INVALID_AUTHORITY))?;
    let mut uri = http::uri::Parts::default();
    uri.authority = Some(authority);
    if !plain_connect {
        uri.scheme = Some(match head.scheme.as_str() {
            "https" => Scheme::HTTPS,
            _ => Scheme::HTTP,
        });
        uri.path_and_query = Some(path(&head.path)?);
    }
    let mut request = Request::new(());
    *request.version_mut() = Version::HTTP_2;
    *request.method_mut() = if upgrade { Method::CONNECT } else { head.method.clone() };
    *request.uri_mut() = Uri::from_parts(uri).map_err(|_| StreamError::LocalReset("http.invalid_path"))?;
    *request.headers_mut() = map(&head.headers);
    let mut protocol = None;
    if upgrade {
        if !extended_allowed {
            return Err(StreamError::LocalReset("http2.extended_connect_not_supported"));
        }
        let token = head.headers.get_str(&header::UPGRADE).unwrap_or_default();
        request.extensions_mut().insert(Protocol::from(token));
        request.headers_mut().remove(header::CONTENT_LENGTH);
        protocol = Some(ByteStr::from(token));
    }
    Ok((request, protocol))
}

/// The path; bytes that Envoy lets through and `http` does not are percent-encoded, which means the same to every server.
fn path(path: &ByteStr) -> Result<PathAndQuery, StreamError> {
    const BAD: StreamError = StreamError::LocalReset("http.invalid_path");
    if path.is_empty() || !validate::is_valid_target(path.as_bytes()) {
        return Err(BAD);
    }
    let plain = path.as_bytes().clone();
    if !plain.contains(&b'#')
        && let Ok(path) = PathAndQuery::from_maybe_shared(plain)
    {
        return Ok(path);
    }
    let mut encoded = String::with_capacity(path.len() + 16);
    for c in path.chars() {
        match c {
            '<' | '>' | '"' | '`' | '^' | '{' | '}' | '|' | '\\' | '#' => encoded.push_str(&format!("%{:02X}", c as u32)),
            c => encoded.push(c),
        }
    }
    PathAndQuery::try_from(encoded).map_err(|_| BAD)
}

/// A response of a server. `protocol`: the request was an extended CONNECT, whose 200 is told as 101.
pub fn response_in(parts: response::Parts, protocol: Option<&ByteStr>) -> ResponseHead {
    let mut head = ResponseHead { status: parts.status, version: HttpVersion::Http2, headers: fields(parts.headers) };
    if let Some(protocol) = protocol
        && head.status == StatusCode::OK
    {
        head.status = StatusCode::SWITCHING_PROTOCOLS;
        if let Ok(value) = HeaderValue::from_maybe_shared(protocol.as_bytes().clone()) {
            head.headers.append(header::UPGRADE, value);
        }
        head.headers.append(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
    head
}
