//! Heads, chunks and trailers to bytes: I/O-free. The encoder, not the header map, decides framing: fields that belong to
//! the connection are left out of the map and written anew, so that nothing in it can split or desynchronise a message.

use crate::h1::body::Framing;
use crate::h1::response::Asked;
use crate::options::{H1Options, HeaderKeyFormat};
use crate::validate::{self, details};
use http::{HeaderName, Method, StatusCode, header};
use nuncio_core::headers::OriginalNames;
use nuncio_core::{Headers, HttpVersion, RequestHead, ResponseHead, StreamError};

fn put_name(out: &mut Vec<u8>, name: &HeaderName, headers: &Headers, format: HeaderKeyFormat) {
    let lower = name.as_str().as_bytes();
    let proper = match format {
        HeaderKeyFormat::Lower => false,
        HeaderKeyFormat::ProperCase => true,
        HeaderKeyFormat::PreserveCase { proper_case_unknown } => match headers.original_names().and_then(|names| names.get(name)) {
            Some(text) => return out.extend_from_slice(text),
            None => proper_case_unknown,
        },
    };
    if !proper {
        return out.extend_from_slice(lower);
    }
    let mut capital = true;
    for b in lower {
        out.push(if capital { b.to_ascii_uppercase() } else { *b });
        capital = !b.is_ascii_alphanumeric();
    }
}

fn put_field(out: &mut Vec<u8>, name: &HeaderName, value: &[u8], headers: &Headers, format: HeaderKeyFormat) {
    put_name(out, name, headers, format);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn put_number(out: &mut Vec<u8>, n: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(n).as_bytes());
}

/// Writes every field of `headers` that a message may carry end to end, and `length` as content-length at the place of the
/// map's own; gives it back if there is none. With `upgrade`, `connection: upgrade` and `upgrade` stay where they are.
fn put_fields(out: &mut Vec<u8>, headers: &Headers, format: HeaderKeyFormat, mut length: Option<u64>, upgrade: bool) -> Option<u64> {
    let (mut connection, mut protocol) = (upgrade, upgrade);
    for (name, value) in headers.iter() {
        match name.as_str().len() {
            4 if *name == header::HOST => continue,
            14 if *name == header::CONTENT_LENGTH => {
                if let Some(n) = length.take() {
                    put_length(out, n, headers, format);
                }
                continue;
            }
            7 if *name == header::UPGRADE && std::mem::take(&mut protocol) => {}
            10 if *name == header::CONNECTION
                && validate::tokens(value.as_bytes()).any(|t| t.eq_ignore_ascii_case(b"upgrade"))
                && connection =>
            {
                connection = false;
            }
            7 | 10 | 14 | 16 | 17 if validate::is_connection_specific(name) => continue,
            _ => {}
        }
        put_field(out, name, value.as_bytes(), headers, format);
    }
    if connection {
        put_field(out, &header::CONNECTION, b"upgrade", headers, format);
    }
    length
}

fn put_length(out: &mut Vec<u8>, length: u64, headers: &Headers, format: HeaderKeyFormat) {
    put_name(out, &header::CONTENT_LENGTH, headers, format);
    out.extend_from_slice(b": ");
    put_number(out, length);
    out.extend_from_slice(b"\r\n");
}

/// The one valid content-length of a head; none if there is none, or if several differ or cannot be read.
fn declared_length(headers: &Headers) -> Option<u64> {
    let mut all = headers.get_all(&header::CONTENT_LENGTH).map(|v| validate::content_length(v.as_bytes()));
    let first = all.next()??;
    all.all(|n| n == Some(first)).then_some(first)
}

/// Appends a request head. `end`: there is no body. Gives the framing of the body that follows. Refuses what would not
/// arrive as one request: a target or host with white space or control characters, a path that does not begin with `/`.
pub fn request(out: &mut Vec<u8>, head: &RequestHead, end: bool, options: &H1Options) -> Result<(Framing, Asked), StreamError> {
    let connect = head.method == Method::CONNECT;
    let upgrade = !connect && validate::is_upgrade(&head.headers);
    let target: &[u8] = if connect { head.authority.as_bytes() } else { head.path.as_bytes() };
    let origin_form = connect || target.starts_with(b"/") || (target == b"*".as_slice() && head.method == Method::OPTIONS);
    if !origin_form || !validate::is_valid_target(target) {
        return Err(StreamError::LocalReset(details::INVALID_URL));
    }
    let absolute = options.send_fully_qualified_url && !connect && target.starts_with(b"/");
    if head.authority.bytes().any(|b| b.is_ascii_control()) || absolute && !validate::is_valid_target(head.authority.as_bytes()) {
        return Err(StreamError::LocalReset(details::INVALID_AUTHORITY));
    }
    out.extend_from_slice(head.method.as_str().as_bytes());
    out.push(b' ');
    if absolute {
        out.extend_from_slice(if head.scheme.is_empty() { b"http" } else { head.scheme.as_bytes() });
        out.extend_from_slice(b"://");
        out.extend_from_slice(head.authority.as_bytes());
    }
    out.extend_from_slice(target);
    out.extend_from_slice(b" HTTP/1.1\r\n");
    let format = options.header_key_format;
    put_field(out, &header::HOST, head.authority.as_bytes(), &head.headers, format);
    let declared = if connect { None } else { declared_length(&head.headers) };
    let framing = if end {
        Framing::None
    } else {
        match declared {
            Some(n) => Framing::Length(n),
            // What follows is raw, and not before the other side switched.
            None if connect || upgrade => Framing::None,
            None => Framing::Chunked,
        }
    };
    // Methods whose requests mostly have no body do not say so (`HeaderUtility::requestShouldHaveNoBody`).
    let silent = connect || upgrade || matches!(head.method, Method::GET | Method::HEAD | Method::DELETE | Method::TRACE);
    let length = match framing {
        Framing::Length(n) => Some(n),
        Framing::None if declared == Some(0) || !silent => Some(0),
        _ => None,
    };
    if let Some(n) = put_fields(out, &head.headers, format, length, upgrade) {
        put_length(out, n, &head.headers, format);
    }
    if framing == Framing::Chunked {
        put_field(out, &header::TRANSFER_ENCODING, b"chunked", &head.headers, format);
    }
    out.extend_from_slice(b"\r\n");
    Ok((framing, Asked { head: head.method == Method::HEAD, connect, upgrade }))
}

/// How the connection goes on after a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// HTTP/1.1 says nothing; HTTP/1.0 is told.
    KeepAlive,
    Close,
    /// Raw bytes follow.
    Upgraded,
}

/// Appends a final response head. `remaining`: the body's length, if known. Gives the framing of the body; `UntilClose` for
/// an HTTP/1.0 body of unknown length means that the connection ends with it, whatever `after` was.
pub fn response(
    out: &mut Vec<u8>,
    head: &ResponseHead,
    asked: Asked,
    version: HttpVersion,
    remaining: Option<u64>,
    after: After,
    options: &H1Options,
) -> Framing {
    let http10 = version == HttpVersion::Http10;
    put_status_line(out, head, http10);
    let format = options.header_key_format;
    let declared = declared_length(&head.headers);
    let bodiless = matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) || head.status.is_informational();
    let framing = if after == After::Upgraded {
        Framing::UntilClose
    } else if asked.head || bodiless {
        Framing::None
    } else {
        match declared.or(remaining) {
            Some(n) => Framing::Length(n),
            None if http10 => Framing::UntilClose,
            None => Framing::Chunked,
        }
    };
    let length = match framing {
        Framing::Length(n) => Some(n),
        // What a GET would have had.
        Framing::None if asked.head => declared,
        Framing::None if head.status == StatusCode::NOT_MODIFIED => Some(declared.unwrap_or(0)),
        _ => None,
    };
    let lengthless = head.status == StatusCode::NO_CONTENT || head.status.is_informational();
    let length = if lengthless { None } else { length };
    let switching = after == After::Upgraded && head.status == StatusCode::SWITCHING_PROTOCOLS;
    let implied = put_fields(out, &head.headers, format, length, switching);
    match after {
        After::Upgraded => {}
        After::KeepAlive if http10 && framing != Framing::UntilClose => {
            put_field(out, &header::CONNECTION, b"keep-alive", &head.headers, format);
        }
        After::KeepAlive if !http10 => {}
        _ => put_field(out, &header::CONNECTION, b"close", &head.headers, format),
    }
    if let Some(n) = implied {
        put_length(out, n, &head.headers, format);
    }
    // As Envoy: a response to HEAD that tells no length would have been chunked.
    if framing == Framing::Chunked || (asked.head && length.is_none() && !lengthless && !http10) {
        put_field(out, &header::TRANSFER_ENCODING, b"chunked", &head.headers, format);
    }
    out.extend_from_slice(b"\r\n");
    framing
}

/// Appends a 1xx head.
pub fn informational(out: &mut Vec<u8>, head: &ResponseHead, options: &H1Options) {
    put_status_line(out, head, false);
    let _ = put_fields(out, &head.headers, options.header_key_format, None, false);
    out.extend_from_slice(b"\r\n");
}

fn put_status_line(out: &mut Vec<u8>, head: &ResponseHead, http10: bool) {
    out.extend_from_slice(if http10 { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
    out.extend_from_slice(head.status.as_str().as_bytes());
    out.push(b' ');
    // As Envoy: whatever became of the status since.
    match head.headers.original_names().map(OriginalNames::reason) {
        Some(reason) if !reason.is_empty() => out.extend_from_slice(reason),
        _ => out.extend_from_slice(crate::reason_phrase(head.status).as_bytes()),
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends the size line of a chunk of `n` bytes; `n` must not be 0.
pub fn chunk_size(out: &mut Vec<u8>, n: usize) {
    let digits = (usize::BITS - n.leading_zeros()).div_ceil(4);
    for shift in (0..digits).rev() {
        let digit = ((n >> (shift * 4)) & 0xf) as u32;
        out.push(char::from_digit(digit, 16).map_or(b'0', |c| c as u8));
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends the last chunk and, if there are any, trailers.
pub fn last_chunk(out: &mut Vec<u8>, trailers: Option<&Headers>, options: &H1Options) {
    out.extend_from_slice(b"0\r\n");
    if let Some(trailers) = trailers {
        for (name, value) in trailers.iter().filter(|(name, _)| validate::is_valid_trailer(name)) {
            put_field(out, name, value.as_bytes(), trailers, options.header_key_format);
        }
    }
    out.extend_from_slice(b"\r\n");
}
