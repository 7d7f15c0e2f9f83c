//! Request heads: I/O-free parser with Envoy's checks and details (`ServerConnectionImpl` over Balsa), or stricter: bare LF,
//! folds, doubled separators and two Host fields are refused, which Envoy repairs.

use crate::h1::body::Framing;
use crate::h1::head::{HeadError, HeadScanner, Limits, parse_fields};
use crate::options::{HeaderKeyFormat, HeadersWithUnderscores, PROXY_CONNECTION, ServerOptions};
use crate::service::Malformed;
use crate::validate::{self, details};
use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderName, Method, StatusCode, header};
use nuncio_core::headers::OriginalNames;
use nuncio_core::{ByteStr, HttpVersion, RequestHead};

/// A request head and what it says of its message and its connection.
#[derive(Debug)]
pub struct ParsedRequest {
    pub head: RequestHead,
    pub framing: Framing,
    /// An upgrade or CONNECT: raw bytes may follow the body.
    pub upgrade: bool,
    /// Whether the client lets the connection live.
    pub keep_alive: bool,
    /// Wire bytes of the head.
    pub bytes: usize,
}

/// Parses request heads out of a growing buffer.
#[derive(Clone, Debug, Default)]
pub struct RequestParser {
    scanner: HeadScanner,
    line_checked: bool,
}

impl From<HeadError> for Malformed {
    fn from(error: HeadError) -> Self {
        let (status, details) = match error {
            HeadError::Bad(details::LOW_VERSION) => (StatusCode::UPGRADE_REQUIRED, details::LOW_VERSION),
            HeadError::Bad(details) => (StatusCode::BAD_REQUEST, details),
            HeadError::TooLarge(details) => (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, details),
            HeadError::NotImplemented(details) => (StatusCode::NOT_IMPLEMENTED, details),
        };
        Self { status, details, head: None, recoverable: false }
    }
}

/// The limits of request heads and trailers.
pub fn limits(options: &ServerOptions) -> Limits {
    Limits { bytes: (options.max_headers_kb as usize).saturating_mul(1024), count: options.max_headers_count as usize }
}

struct Line<'a> {
    method: &'a [u8],
    target: &'a [u8],
    version: HttpVersion,
}

/// Splits a request line. Any `HTTP/x.y` but 1.1 counts as HTTP/1.0, as in Envoy.
fn request_line<'a>(line: &'a [u8], options: &ServerOptions) -> Result<Line<'a>, HeadError> {
    const BAD: HeadError = HeadError::Bad(details::CODEC_ERROR);
    let space = memchr::memchr(b' ', line).ok_or(BAD)?;
    let (method, rest) = (line.get(..space).unwrap_or_default(), line.get(space + 1..).unwrap_or_default());
    if !(validate::is_known_method(method) || options.h1.allow_custom_methods && Method::from_bytes(method).is_ok()) {
        return Err(BAD);
    }
    let Some(space) = memchr::memrchr(b' ', rest) else {
        // HTTP/0.9 has no version.
        return Err(if validate::is_valid_target(rest) && rest.starts_with(b"/") { HeadError::Bad(details::LOW_VERSION) } else { BAD });
    };
    let (target, version) = (rest.get(..space).unwrap_or_default(), rest.get(space + 1..).unwrap_or_default());
    let version = match version {
        b"HTTP/1.1" => HttpVersion::Http11,
        [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9'] => HttpVersion::Http10,
        _ => return Err(BAD),
    };
    if target.is_empty() || !validate::is_valid_target(target) {
        let control = target.iter().any(|b| *b != b'\t' && b.is_ascii_control());
        return Err(if control { HeadError::Bad(details::INVALID_CHARACTERS) } else { BAD });
    }
    Ok(Line { method, target, version })
}

/// Fields that decide framing and routing, gathered while the fields are read.
#[derive(Default)]
struct Special {
    host: Option<ByteStr>,
    length: Option<u64>,
    transfer_encoding: bool,
    chunked: bool,
    upgrade: bool,
    hop_by_hop: bool,
    connection: bool,
}

impl RequestParser {
    /// The next head, once it is all there; it is taken from `buf`. `None`: more bytes are needed.
    pub fn parse(&mut self, buf: &mut BytesMut, options: &ServerOptions) -> Result<Option<ParsedRequest>, Malformed> {
        if !self.line_checked {
            // Empty lines before a request are left over from a previous body (RFC 9112, section 2.2).
            while buf.starts_with(b"\r\n") {
                buf.advance(2);
            }
            match buf.first() {
                None => return Ok(None),
                // Half of an empty line.
                Some(b'\r') if buf.len() == 1 => return Ok(None),
                // Envoy, too, refuses what cannot begin a method at its first byte: TLS on a plaintext port.
                Some(b) if !(b.is_ascii_uppercase() || options.h1.allow_custom_methods && b.is_ascii_graphic()) => {
                    return Err(HeadError::Bad(details::CODEC_ERROR).into());
                }
                Some(_) => {}
            }
        }
        let end = match self.scanner.find_end(buf, limits(options), false) {
            Ok(Some(end)) => end,
            // A request that can never be right is refused before the rest of it is waited for, and for its own reason.
            incomplete => {
                if !self.line_checked
                    && let Some(line) = self.scanner.first_line(buf, limits(options))
                {
                    request_line(line, options)?;
                    self.line_checked = true;
                }
                return incomplete.map(|_| None).map_err(Malformed::from);
            }
        };
        *self = Self::default();
        let head = buf.split_to(end).freeze();
        parse_head(&head, options).map(Some)
    }
}

fn parse_head(bytes: &Bytes, options: &ServerOptions) -> Result<ParsedRequest, Malformed> {
    let line_end = memchr::memchr(b'\n', bytes).map_or(bytes.len(), |at| at + 1);
    let line = request_line(bytes.get(..line_end.saturating_sub(2)).unwrap_or_default(), options)?;
    let method = Method::from_bytes(line.method).map_err(|_| Malformed::from(HeadError::Bad(details::CODEC_ERROR)))?;
    let preserve = matches!(options.h1.header_key_format, HeaderKeyFormat::PreserveCase { .. }).then(OriginalNames::default);
    let mut special = Special::default();
    let mut headers = parse_fields(bytes, line_end, limits(options), preserve, |name, value| field(name, value, &mut special, options))?;

    let connect = method == Method::CONNECT;
    let mut upgrade = connect;
    if special.upgrade && special.connection && line.version == HttpVersion::Http11 && validate::is_upgrade(&headers) {
        upgrade |= !is_ignored_upgrade(headers.get(&header::UPGRADE).map_or(b"", |v| v.as_bytes()), options);
    }
    let keep_alive = keeps_alive(&headers, line.version, special.connection);
    if special.hop_by_hop && !validate::strip_hop_by_hop(&mut headers, upgrade && !connect) {
        return Err(HeadError::Bad(details::CONNECTION_HEADER).into());
    }
    if connect {
        match special.length {
            Some(0) => {
                headers.remove(&header::CONTENT_LENGTH);
            }
            Some(_) => return Err(HeadError::Bad(details::BODY_DISALLOWED).into()),
            None => {}
        }
    }
    let framing = framing(&special, connect, line.version, options)?;
    if special.length.is_some() && framing == Framing::Chunked {
        headers.remove(&header::CONTENT_LENGTH);
    }
    let target = ByteStr::from_utf8(bytes.slice_ref(line.target)).map_err(|_| Malformed::from(HeadError::Bad(details::CODEC_ERROR)))?;
    let mut head = RequestHead {
        method,
        scheme: ByteStr::from_static(if options.tls { "https" } else { "http" }),
        authority: ByteStr::default(),
        path: ByteStr::default(),
        protocol: None,
        version: line.version,
        headers,
    };
    // An empty Host field is a host that was sent; only its absence is refused.
    let has_host = special.host.is_some();
    head.authority = special.host.unwrap_or_default();
    let has_host = split_target(&mut head, target, options)? || has_host;
    if !validate::is_valid_authority(head.authority.as_bytes()) {
        return Err(HeadError::Bad(details::INVALID_AUTHORITY).into());
    }
    if upgrade && !connect {
        head.protocol = head.headers.get(&header::UPGRADE).and_then(|v| ByteStr::from_utf8(Bytes::copy_from_slice(v.as_bytes())).ok());
    }
    if head.version == HttpVersion::Http10 {
        if !options.h1.accept_http_10 {
            let status = StatusCode::UPGRADE_REQUIRED;
            return Err(Malformed { status, details: details::LOW_VERSION, head: None, recoverable: false });
        }
        if !has_host && !options.h1.default_host_for_http_10.is_empty() {
            head.authority = options.h1.default_host_for_http_10.clone();
            return Ok(ParsedRequest { head, framing, upgrade, keep_alive, bytes: bytes.len() });
        }
    }
    if !has_host {
        let recoverable = framing == Framing::None && keep_alive;
        let status = StatusCode::BAD_REQUEST;
        return Err(Malformed { status, details: details::MISSING_HOST, head: Some(Box::new(head)), recoverable });
    }
    Ok(ParsedRequest { head, framing, upgrade, keep_alive, bytes: bytes.len() })
}

/// Looks at one field; says whether it stays among the headers.
fn field(name: &HeaderName, value: &Bytes, special: &mut Special, options: &ServerOptions) -> Result<bool, HeadError> {
    const BAD: HeadError = HeadError::Bad(details::CODEC_ERROR);
    // Lengths first: most fields are none of these.
    match name.as_str().len() {
        2 if *name == header::TE => special.hop_by_hop = true,
        4 if *name == header::HOST => {
            // Envoy joins several; nobody can tell which one an upstream would believe.
            if special.host.is_some() {
                return Err(BAD);
            }
            special.host = Some(ByteStr::from_utf8(value.clone()).map_err(|_| HeadError::Bad(details::INVALID_AUTHORITY))?);
            return Ok(false);
        }
        7 if *name == header::UPGRADE => (special.upgrade, special.hop_by_hop) = (true, true),
        10 if *name == header::CONNECTION => (special.connection, special.hop_by_hop) = (true, true),
        10 if *name == crate::options::KEEP_ALIVE => special.hop_by_hop = true,
        14 if *name == crate::options::HTTP2_SETTINGS => special.hop_by_hop = true,
        14 if *name == header::CONTENT_LENGTH => {
            if special.length.is_some() {
                return Err(BAD);
            }
            special.length = Some(validate::content_length(value).ok_or(BAD)?);
        }
        16 if *name == PROXY_CONNECTION => (special.connection, special.hop_by_hop) = (true, true),
        17 if *name == header::TRANSFER_ENCODING => {
            special.chunked = !special.transfer_encoding && value.eq_ignore_ascii_case(b"chunked");
            special.transfer_encoding = true;
            return Ok(false);
        }
        _ => {}
    }
    if options.headers_with_underscores != HeadersWithUnderscores::Allow && name.as_str().contains('_') {
        if options.headers_with_underscores == HeadersWithUnderscores::DropHeader {
            options.stats.dropped_headers_with_underscores.inc();
            return Ok(false);
        }
        options.stats.requests_rejected_with_underscores_in_headers.inc();
        return Err(HeadError::Bad(details::UNDERSCORE));
    }
    Ok(true)
}

/// Envoy never upgrades to h2c, and leaves out what `ignore_http_11_upgrade` names.
fn is_ignored_upgrade(value: &[u8], options: &ServerOptions) -> bool {
    value.eq_ignore_ascii_case(b"h2c") || options.h1.ignore_upgrades.iter().any(|ignored| value.eq_ignore_ascii_case(ignored.as_bytes()))
}

fn keeps_alive(headers: &nuncio_core::Headers, version: HttpVersion, connection: bool) -> bool {
    let says = |token| {
        connection && (validate::has_token(headers, &header::CONNECTION, token) || validate::has_token(headers, &PROXY_CONNECTION, token))
    };
    if version == HttpVersion::Http10 { says(b"keep-alive") && !says(b"close") } else { !says(b"close") }
}

fn framing(special: &Special, connect: bool, version: HttpVersion, options: &ServerOptions) -> Result<Framing, HeadError> {
    if special.transfer_encoding {
        if special.length.is_some() && !(special.chunked && options.h1.allow_chunked_length) {
            return Err(HeadError::Bad(details::CHUNKED_CONTENT_LENGTH));
        }
        if !special.chunked || connect {
            return Err(HeadError::NotImplemented(details::INVALID_TRANSFER_ENCODING));
        }
        // RFC 9112, section 6.1: an HTTP/1.0 message with a transfer coding has faulty framing. If HTTP/1.0 is refused
        // altogether, that is the answer.
        if version == HttpVersion::Http10 && options.h1.accept_http_10 {
            return Err(HeadError::Bad(details::CODEC_ERROR));
        }
        return Ok(Framing::Chunked);
    }
    Ok(match special.length {
        Some(n) if n > 0 && !connect => Framing::Length(n),
        _ => Framing::None,
    })
}

/// Fills authority, scheme and path from the request target; true if the target named the authority.
fn split_target(head: &mut RequestHead, target: ByteStr, options: &ServerOptions) -> Result<bool, HeadError> {
    const BAD_URL: HeadError = HeadError::Bad(details::INVALID_URL);
    if head.method == Method::CONNECT {
        let (_, port) = target.rsplit_once(':').ok_or(BAD_URL)?;
        if !is_port(port) || !is_host(target.as_str()) {
            return Err(BAD_URL);
        }
        head.authority = target;
        return Ok(true);
    }
    if target.starts_with('/') || (head.method == Method::OPTIONS && target == "*") {
        head.path = target;
        return Ok(false);
    }
    if !options.h1.allow_absolute_url {
        head.path = target;
        return Ok(false);
    }
    let bytes = target.as_bytes();
    let (scheme, rest) = target.split_once("://").ok_or(if target == "*" { BAD_URL } else { HeadError::Bad(details::CODEC_ERROR) })?;
    let https = scheme.eq_ignore_ascii_case("https");
    if !https && !scheme.eq_ignore_ascii_case("http") {
        return Err(HeadError::Bad(details::INVALID_SCHEME));
    }
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    // RFC 9110, section 4.2.4: user information is not passed on.
    let (user, authority) = authority.rsplit_once('@').unwrap_or(("", authority));
    if path.starts_with('#') || !user.bytes().all(is_user_byte) {
        return Err(HeadError::Bad(details::CODEC_ERROR));
    }
    let host_end = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => {
            if !is_port(port) {
                return Err(BAD_URL);
            }
            host.len()
        }
        _ => authority.len(),
    };
    if host_end == 0 || !is_host(authority) {
        return Err(BAD_URL);
    }
    let slice = |text: &str| ByteStr::from_utf8(bytes.slice_ref(text.as_bytes())).map_err(|_| BAD_URL);
    let (authority, path) = (slice(authority)?, if path.is_empty() { ByteStr::from_static("/") } else { slice(path)? });
    head.scheme = ByteStr::from_static(if https { "https" } else { "http" });
    head.authority = authority;
    head.path = path;
    Ok(true)
}

fn is_port(port: &str) -> bool {
    !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok()
}

/// Whether a byte may stand in the user information of a target, as Envoy's parser of URLs has it: no second `@`, and no `\` after which
/// others would see another host.
fn is_user_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"-_.!~*'()%;:&=+$,".contains(&b)
}

/// A host with or without port, of the bytes that Envoy's parser of URLs takes: no path, no user, brackets only around an IPv6 address.
fn is_host(authority: &str) -> bool {
    let rest = match authority.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((v6, port)) => return v6.parse::<std::net::Ipv6Addr>().is_ok() && (port.is_empty() || port.starts_with(':')),
            None => return false,
        },
        None => authority,
    };
    let host = rest.rsplit_once(':').map_or(rest, |(host, _)| host);
    !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}
