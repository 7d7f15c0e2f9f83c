//! Chunked transfer coding, decoding side: I/O-free, both directions. Strict: CRLF only, sizes that fit 64 bits, extensions
//! of bounded length that are dropped (RFC 9112, section 7.1).

use crate::h1::body::take;
use crate::h1::head::{HeadError, HeadScanner, Limits, parse_fields};
use crate::validate::{self, details};
use bytes::{Buf, Bytes, BytesMut};
use nuncio_core::Headers;

/// Bytes that the size lines of one body may spend on extensions, white space and leading zeros, beyond what their chunks allow.
const MAX_OVERHEAD: u32 = 16 * 1024;
/// What each chunk allows, and each byte in it: a body of any length may have reasonable size lines.
const ALLOWED_PER_CHUNK: u64 = 16;
const ALLOWED_PER_BYTE: u64 = 2;

/// What a decoder found.
#[derive(Debug)]
pub enum Event {
    Data(Bytes),
    /// Trailers; the body is over.
    Trailers(Box<Headers>),
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The first digit of a size.
    Start,
    Size,
    /// White space after the size.
    Space,
    Extension,
    /// LF of the size line.
    SizeLf,
    Data,
    DataCr,
    DataLf,
    Trailers,
    Done,
}

/// Decodes one chunked body.
#[derive(Clone, Debug)]
pub struct ChunkDecoder {
    state: State,
    /// The size being read, then what is left of the chunk.
    size: u64,
    overhead: u32,
    scanner: HeadScanner,
}

impl Default for ChunkDecoder {
    fn default() -> Self {
        Self { state: State::Start, size: 0, overhead: 0, scanner: HeadScanner::default() }
    }
}

impl ChunkDecoder {
    /// Takes from `buf` what it can use. `None`: more bytes are needed. After `Trailers`, `End` or an error it must not be
    /// called again. `keep_trailers`: otherwise trailers are checked and dropped.
    pub fn decode(&mut self, buf: &mut BytesMut, limits: Limits, keep_trailers: bool) -> Result<Option<Event>, HeadError> {
        const BAD: HeadError = HeadError::Bad(details::CODEC_ERROR);
        loop {
            match self.state {
                State::Data => {
                    if buf.is_empty() {
                        return Ok(None);
                    }
                    let n = usize::try_from(self.size).unwrap_or(usize::MAX).min(buf.len());
                    self.size -= n as u64;
                    if self.size == 0 {
                        self.state = State::DataCr;
                    }
                    return Ok(Some(Event::Data(take(buf, n))));
                }
                State::Trailers => return self.trailers(buf, limits, keep_trailers),
                State::Done => return Ok(Some(Event::End)),
                _ => {}
            }
            let Some(&byte) = buf.first() else { return Ok(None) };
            self.state = match (self.state, byte) {
                (State::Start | State::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                    let digit = char::from(byte).to_digit(16).unwrap_or_default();
                    if self.size == 0 {
                        self.spend()?;
                    }
                    self.size = self.size.checked_mul(16).and_then(|n| n.checked_add(u64::from(digit))).ok_or(BAD)?;
                    State::Size
                }
                (State::Size | State::Space | State::Extension, b'\r') => State::SizeLf,
                (State::Size | State::Space, b' ' | b'\t') => {
                    self.spend()?;
                    State::Space
                }
                (State::Size | State::Space, b';') => State::Extension,
                (State::Extension, b'\t' | b' '..=b'~' | 0x80..) => {
                    self.spend()?;
                    State::Extension
                }
                (State::SizeLf, b'\n') if self.size == 0 => State::Trailers,
                (State::SizeLf, b'\n') => {
                    let allowed = self.size.saturating_mul(ALLOWED_PER_BYTE).saturating_add(ALLOWED_PER_CHUNK);
                    self.overhead = self.overhead.saturating_sub(u32::try_from(allowed).unwrap_or(u32::MAX));
                    State::Data
                }
                (State::DataCr, b'\r') => State::DataLf,
                (State::DataLf, b'\n') => State::Start,
                _ => return Err(BAD),
            };
            buf.advance(1);
        }
    }

    fn spend(&mut self) -> Result<(), HeadError> {
        self.overhead += 1;
        if self.overhead > MAX_OVERHEAD { Err(HeadError::Bad(details::CODEC_ERROR)) } else { Ok(()) }
    }

    fn trailers(&mut self, buf: &mut BytesMut, limits: Limits, keep: bool) -> Result<Option<Event>, HeadError> {
        let Some(end) = self.scanner.find_end(buf, limits, false)? else { return Ok(None) };
        let section = buf.split_to(end).freeze();
        self.state = State::Done;
        if section.as_ref() == b"\r\n" {
            return Ok(Some(Event::End));
        }
        let headers = parse_fields(&section, 0, limits, None, |name, _| Ok(validate::is_valid_trailer(name)))?;
        Ok(Some(if keep && !headers.is_empty() { Event::Trailers(Box::new(headers)) } else { Event::End }))
    }
}
