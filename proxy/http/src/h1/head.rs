//! Finding and reading the field section of a head or of trailers: I/O-free, shared by both sides. `httparse` reads the
//! fields; what it tolerates and a proxy must not (bare LF, growth without end) is refused by the scanner before it.

use crate::validate::details;
use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue};
use nuncio_core::Headers;
use nuncio_core::headers::OriginalNames;
use std::sync::Arc;

/// Why a head was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadError {
    /// 400, or the upstream broke the protocol. Envoy's details.
    Bad(&'static str),
    /// 431, or the upstream sent too much. Envoy's details.
    TooLarge(&'static str),
    /// 501.
    NotImplemented(&'static str),
}

/// Size limits of one head.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub bytes: usize,
    pub count: usize,
}

/// Looks for the empty line, remembering how far it looked, so that bytes that trickle in are looked at once.
#[derive(Clone, Debug, Default)]
pub struct HeadScanner {
    /// Bytes looked at.
    scanned: usize,
    /// Where the current line began.
    line: usize,
}

impl HeadScanner {
    /// The length of the head with its empty line, once it is all there. `lenient` (responses): a line may end in LF alone,
    /// and folds are left to the caller. An empty line at the very start is a head of its own (a trailer section without fields).
    pub fn find_end(&mut self, buf: &[u8], limits: Limits, lenient: bool) -> Result<Option<usize>, HeadError> {
        while let Some(unseen) = buf.get(self.scanned..) {
            let Some(at) = memchr::memchr(b'\n', unseen) else {
                self.scanned = buf.len();
                break;
            };
            let lf = self.scanned + at;
            self.scanned = lf + 1;
            let line = buf.get(self.line..lf).unwrap_or_default();
            // Size before form, so that the answer does not depend on how the bytes arrived.
            if lf >= limits.bytes && lf - self.line > 1 {
                return Err(HeadError::TooLarge(details::HEADERS_TOO_LARGE));
            }
            let (line, complete) = match line.split_last() {
                Some((b'\r', rest)) => (rest, true),
                _ => (line, false),
            };
            if !complete && !lenient {
                return Err(HeadError::Bad(details::CODEC_ERROR));
            }
            if line.is_empty() {
                let end = self.scanned;
                *self = Self::default();
                return if end > limits.bytes.saturating_add(2) {
                    Err(HeadError::TooLarge(details::HEADERS_TOO_LARGE))
                } else {
                    Ok(Some(end))
                };
            }
            if !lenient && matches!(line.first(), Some(b' ' | b'\t')) {
                return Err(HeadError::Bad(details::CODEC_ERROR));
            }
            self.line = self.scanned;
        }
        if buf.len() > limits.bytes.saturating_add(1) { Err(HeadError::TooLarge(details::HEADERS_TOO_LARGE)) } else { Ok(None) }
    }
    /// The first line, if it is complete and within the limits, without its line end. Lets a request that can never be right
    /// be refused early.
    pub fn first_line<'a>(&self, buf: &'a [u8], limits: Limits) -> Option<&'a [u8]> {
        let end = memchr::memchr(b'\n', buf).filter(|end| *end < limits.bytes)?;
        let line = buf.get(..end)?;
        Some(line.strip_suffix(b"\r").unwrap_or(line))
    }
}

/// Replaces each fold of a lenient head by spaces (RFC 9112, section 5.2, for proxies that keep a folded response).
pub fn unfold(head: Bytes) -> Bytes {
    let is_fold = |at: usize| matches!(head.get(at + 1), Some(b' ' | b'\t'));
    if !memchr::memchr_iter(b'\n', &head).any(is_fold) {
        return head;
    }
    let mut plain = BytesMut::from(head.as_ref());
    for lf in memchr::memchr_iter(b'\n', &head).filter(|at| is_fold(*at)) {
        for at in lf.saturating_sub(1)..=lf {
            if let Some(b @ (b'\r' | b'\n')) = plain.get_mut(at) {
                *b = b' ';
            }
        }
    }
    plain.freeze()
}

/// Reads the fields of `head` from `start` to its end (the empty line included), calling `field` for each; it says whether to
/// keep it. Values share `head`'s memory. `original`: where the spelling of the names is kept, if it is.
pub fn parse_fields(
    head: &Bytes,
    start: usize,
    limits: Limits,
    mut original: Option<OriginalNames>,
    mut field: impl FnMut(&HeaderName, &Bytes) -> Result<bool, HeadError>,
) -> Result<Headers, HeadError> {
    // Most heads have fewer fields; clearing room for the limit would cost more than reading them.
    const INLINE: usize = 48;
    let section = head.get(start..).unwrap_or_default();
    let mut inline = [httparse::EMPTY_HEADER; INLINE];
    let mut many = Vec::new();
    let mut parsed = httparse::parse_headers(section, inline.get_mut(..limits.count.min(INLINE)).unwrap_or_default());
    if parsed == Err(httparse::Error::TooManyHeaders) && limits.count > INLINE {
        // Never more than there can be lines.
        many.resize(limits.count.min(section.len() / 2 + 1), httparse::EMPTY_HEADER);
        parsed = httparse::parse_headers(section, &mut many);
    }
    let fields = match parsed {
        Ok(httparse::Status::Complete((_, fields))) => fields,
        Ok(httparse::Status::Partial) => return Err(HeadError::Bad(details::CODEC_ERROR)),
        Err(httparse::Error::TooManyHeaders) => return Err(HeadError::TooLarge(details::TOO_MANY_HEADERS)),
        Err(httparse::Error::HeaderValue) => return Err(HeadError::Bad(details::INVALID_CHARACTERS)),
        Err(_) => return Err(HeadError::Bad(details::CODEC_ERROR)),
    };
    let mut headers = Headers::with_capacity(fields.len() + 4);
    for raw in fields.iter() {
        let name = HeaderName::from_bytes(raw.name.as_bytes()).map_err(|_| HeadError::Bad(details::CODEC_ERROR))?;
        // The empty value of httparse need not point into the section.
        let bytes = if raw.value.is_empty() { Bytes::new() } else { head.slice_ref(raw.value) };
        if let Some(original) = &mut original {
            // Host too, which does not stay among the headers.
            original.add(name.clone(), head.slice_ref(raw.name.as_bytes()));
        }
        if field(&name, &bytes)? {
            let value = HeaderValue::from_maybe_shared(bytes).map_err(|_| HeadError::Bad(details::INVALID_CHARACTERS))?;
            headers.append(name, value);
        }
    }
    if let Some(original) = original {
        headers.set_original_names(Arc::new(original));
    }
    Ok(headers)
}
