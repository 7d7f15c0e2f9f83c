//! Response heads: I/O-free parser with Envoy's checks and details (`ClientConnectionImpl` over Balsa). Line ends in LF alone
//! and folds are repaired, as Envoy does for old servers: a response is read by one reader, so nothing can be smuggled by it.

use crate::h1::body::Framing;
use crate::h1::head::{HeadError, HeadScanner, Limits, parse_fields, unfold};
use crate::options::{ClientOptions, HeaderKeyFormat, PROXY_CONNECTION};
use crate::validate::{self, details};
use bytes::{Bytes, BytesMut};
use http::{StatusCode, header};
use nuncio_core::headers::OriginalNames;
use nuncio_core::{HttpVersion, ResponseHead};

/// What the request was, as far as its response depends on it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked {
    pub head: bool,
    pub connect: bool,
    pub upgrade: bool,
}

/// A response head and what it says of its message and its connection.
#[derive(Debug)]
pub struct ParsedResponse {
    pub head: ResponseHead,
    pub framing: Framing,
    /// 1xx but not 101: another head follows.
    pub informational: bool,
    /// 101, or 2xx to CONNECT: raw bytes follow in both directions.
    pub upgraded: bool,
    /// Whether the server lets the connection live.
    pub keep_alive: bool,
    /// Wire bytes of the head.
    pub bytes: usize,
}

/// Parses response heads out of a growing buffer.
#[derive(Clone, Debug, Default)]
pub struct ResponseParser {
    scanner: HeadScanner,
}

/// The limits of response heads and trailers.
pub fn limits(options: &ClientOptions) -> Limits {
    Limits { bytes: (options.max_headers_kb as usize).saturating_mul(1024), count: options.max_headers_count as usize }
}

impl ResponseParser {
    /// The next head, once it is all there; it is taken from `buf`. `None`: more bytes are needed.
    pub fn parse(&mut self, buf: &mut BytesMut, options: &ClientOptions, asked: Asked) -> Result<Option<ParsedResponse>, HeadError> {
        let seen = buf.len().min(5);
        if buf.get(..seen) != b"HTTP/".get(..seen) {
            return Err(HeadError::Bad(details::CODEC_ERROR));
        }
        let Some(end) = self.scanner.find_end(buf, limits(options), true)? else { return Ok(None) };
        let head = buf.split_to(end).freeze();
        // A fold of the status line.
        if matches!(memchr::memchr(b'\n', &head).and_then(|at| head.get(at + 1)), Some(b' ' | b'\t')) {
            return Err(HeadError::Bad(details::CODEC_ERROR));
        }
        let head = unfold(head);
        parse_head(&head, options, asked).map(Some)
    }
}

/// Version, status, and the reason phrase, which may be empty.
fn status_line(line: &[u8]) -> Option<(HttpVersion, StatusCode, &[u8])> {
    let rest = line.strip_prefix(b"HTTP/1.")?;
    let (version, rest) = rest.split_first()?;
    let version = match version {
        b'1' => HttpVersion::Http11,
        b'0' => HttpVersion::Http10,
        _ => return None,
    };
    let rest = rest.strip_prefix(b" ")?;
    let (code, reason) = rest.split_at_checked(3)?;
    let reason_ok = reason.first().is_none_or(|b| *b == b' ') && reason.iter().all(|b| *b == b'\t' || !b.is_ascii_control());
    let status = StatusCode::from_bytes(code).ok()?;
    reason_ok.then_some((version, status, reason.strip_prefix(b" ").unwrap_or(reason)))
}

fn parse_head(bytes: &Bytes, options: &ClientOptions, asked: Asked) -> Result<ParsedResponse, HeadError> {
    const BAD: HeadError = HeadError::Bad(details::CODEC_ERROR);
    let line_end = memchr::memchr(b'\n', bytes).map_or(bytes.len(), |at| at + 1);
    let line = bytes.get(..line_end.saturating_sub(1)).unwrap_or_default();
    let (version, status, reason) = status_line(line.strip_suffix(b"\r").unwrap_or(line)).ok_or(BAD)?;

    let mut length: Option<u64> = None;
    let (mut transfer_encoding, mut chunked) = (false, false);
    let (mut close, mut keep) = (false, false);
    let (mut upgrade, mut upgrade_token) = (false, false);
    let mut original = None;
    if matches!(options.h1.header_key_format, HeaderKeyFormat::PreserveCase { .. }) {
        let names = original.insert(OriginalNames::default());
        if options.h1.forward_reason_phrase && !reason.is_empty() {
            names.set_reason(bytes.slice_ref(reason));
        }
    }
    let mut headers = parse_fields(bytes, line_end, limits(options), original, |name, value| {
        match name.as_str().len() {
            14 if *name == header::CONTENT_LENGTH => {
                if length.is_some() {
                    return Err(BAD);
                }
                length = Some(validate::content_length(value).ok_or(BAD)?);
            }
            17 if *name == header::TRANSFER_ENCODING => {
                chunked = !transfer_encoding && value.eq_ignore_ascii_case(b"chunked");
                transfer_encoding = true;
                return Ok(false);
            }
            10 if *name == header::CONNECTION => {
                for token in validate::tokens(value) {
                    close |= token.eq_ignore_ascii_case(b"close");
                    keep |= token.eq_ignore_ascii_case(b"keep-alive");
                    upgrade_token |= token.eq_ignore_ascii_case(b"upgrade");
                }
                return Ok(status == StatusCode::SWITCHING_PROTOCOLS);
            }
            16 if *name == PROXY_CONNECTION => {
                close |= validate::tokens(value).any(|t| t.eq_ignore_ascii_case(b"close"));
                keep |= validate::tokens(value).any(|t| t.eq_ignore_ascii_case(b"keep-alive"));
                return Ok(false);
            }
            7 if *name == header::UPGRADE => upgrade = true,
            10 if *name == crate::options::KEEP_ALIVE => return Ok(false),
            _ => {}
        }
        Ok(true)
    })?;

    let switching = status == StatusCode::SWITCHING_PROTOCOLS;
    if switching && !asked.upgrade {
        return Err(BAD);
    }
    let informational = status.is_informational() && !switching;
    let upgraded = switching || (asked.connect && status.is_success());
    if status.is_informational() || status == StatusCode::NO_CONTENT {
        if transfer_encoding {
            return Err(HeadError::Bad(details::TRANSFER_ENCODING_NOT_ALLOWED));
        }
        if length.is_some_and(|n| n != 0) {
            return Err(HeadError::Bad(details::CONTENT_LENGTH_NOT_ALLOWED));
        }
        headers.remove(&header::CONTENT_LENGTH);
    }
    if transfer_encoding && length.is_some() {
        if !(chunked && options.h1.allow_chunked_length) {
            return Err(HeadError::Bad(details::CHUNKED_CONTENT_LENGTH));
        }
        headers.remove(&header::CONTENT_LENGTH);
    }
    if transfer_encoding && !chunked {
        return Err(HeadError::Bad(details::INVALID_TRANSFER_ENCODING));
    }
    if !(switching && upgrade && upgrade_token) {
        headers.remove(&header::UPGRADE);
        headers.remove(&header::CONNECTION);
    }
    let framing = if upgraded {
        headers.remove(&header::CONTENT_LENGTH);
        Framing::UntilClose
    } else if asked.head || status.is_informational() || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED {
        Framing::None
    } else if chunked {
        Framing::Chunked
    } else {
        match length {
            Some(0) => Framing::None,
            Some(n) => Framing::Length(n),
            None => Framing::UntilClose,
        }
    };
    // RFC 9112, section 6.1: a connection with a chunked HTTP/1.0 message is not to be trusted further.
    let keep_alive = !close && framing != Framing::UntilClose && (version == HttpVersion::Http11 || (keep && !chunked));
    Ok(ParsedResponse { head: ResponseHead { status, version, headers }, framing, informational, upgraded, keep_alive, bytes: bytes.len() })
}
