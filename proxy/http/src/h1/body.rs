//! Message bodies of HTTP/1 by their framing: I/O-free decoder for both sides, and the counterpart for writing.

use crate::h1::chunked::{ChunkDecoder, Event};
use crate::h1::head::{HeadError, Limits};
use bytes::{Bytes, BytesMut};

/// How a message body is delimited (RFC 9112, section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    None,
    Length(u64),
    Chunked,
    /// By the end of the connection: responses without length, and everything after an upgrade.
    UntilClose,
}

/// Decodes one body.
#[derive(Clone, Debug)]
pub enum BodyDecoder {
    Done,
    Length(u64),
    Chunked(ChunkDecoder),
    UntilClose,
}

impl BodyDecoder {
    /// A decoder for a body that begins.
    pub fn new(framing: Framing) -> Self {
        match framing {
            Framing::None | Framing::Length(0) => Self::Done,
            Framing::Length(n) => Self::Length(n),
            Framing::Chunked => Self::Chunked(ChunkDecoder::default()),
            Framing::UntilClose => Self::UntilClose,
        }
    }
    /// Whether the body was taken to its end.
    pub fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }
    /// Bytes still to come, if known.
    pub fn remaining(&self) -> Option<u64> {
        match self {
            Self::Done => Some(0),
            Self::Length(n) => Some(*n),
            Self::Chunked(_) | Self::UntilClose => None,
        }
    }
    /// Takes the next piece from `buf`. `None`: more bytes are needed.
    pub fn decode(&mut self, buf: &mut BytesMut, limits: Limits, keep_trailers: bool) -> Result<Option<Event>, HeadError> {
        match self {
            Self::Done => Ok(Some(Event::End)),
            Self::Length(left) => {
                if buf.is_empty() {
                    return Ok(None);
                }
                let n = usize::try_from(*left).unwrap_or(usize::MAX).min(buf.len());
                *left -= n as u64;
                if *left == 0 {
                    *self = Self::Done;
                }
                Ok(Some(Event::Data(take(buf, n))))
            }
            Self::Chunked(decoder) => {
                let event = decoder.decode(buf, limits, keep_trailers)?;
                if matches!(event, Some(Event::End | Event::Trailers(_))) {
                    *self = Self::Done;
                }
                Ok(event)
            }
            Self::UntilClose => Ok((!buf.is_empty()).then(|| Event::Data(take(buf, buf.len())))),
        }
    }
    /// The transport ended. Whether the body is complete so.
    pub fn eof(&mut self) -> bool {
        if matches!(self, Self::UntilClose) {
            *self = Self::Done;
        }
        self.is_done()
    }
}

/// The first `n` bytes of `buf`. An emptied buffer lets go of its memory, which is the reader's alone from then on.
pub fn take(buf: &mut BytesMut, n: usize) -> Bytes {
    if n == buf.len() { std::mem::take(buf).freeze() } else { buf.split_to(n).freeze() }
}
