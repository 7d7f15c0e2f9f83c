//! Bodies of gRPC-Web: base64 in, and messages, trailers and base64 out.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use nuncio_core::{Body, BodySource, Frame, Headers, StreamError};
use std::task::{Context, Poll, ready};

/// Flag of the message that holds trailers.
const TRAILERS: u8 = 0x80;

/// A request body that arrives as base64.
pub struct Decoded {
    inner: Body,
    /// Up to three characters that wait for the rest of their group.
    rest: BytesMut,
    ended: bool,
}

impl Decoded {
    pub fn new(inner: Body) -> Self {
        Self { inner, rest: BytesMut::new(), ended: false }
    }
}

/// Decodes whole groups of four. Clients may join pieces that are padded each: only the last group of a piece has padding.
fn decode(mut text: &[u8]) -> Option<Bytes> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    while let Some(padding) = text.iter().position(|b| *b == b'=') {
        let (piece, rest) = text.split_at_checked((padding / 4 + 1) * 4)?;
        STANDARD.decode_vec(piece, &mut out).ok()?;
        text = rest;
    }
    STANDARD.decode_vec(text, &mut out).ok()?;
    Some(out.into())
}

impl BodySource for Decoded {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        loop {
            if self.ended {
                return Poll::Ready(None);
            }
            match ready!(self.inner.poll_frame(cx)) {
                Some(Ok(Frame::Data(data))) => {
                    self.rest.extend_from_slice(&data);
                    let whole = self.rest.len() / 4 * 4;
                    if whole == 0 {
                        continue;
                    }
                    let text = self.rest.split_to(whole);
                    return Poll::Ready(Some(decode(&text).map(Frame::Data).ok_or(StreamError::Protocol("grpc_base_64_decode_failed"))));
                }
                Some(Ok(Frame::Trailers(trailers))) => {
                    self.ended = true;
                    return Poll::Ready(Some(Ok(Frame::Trailers(trailers))));
                }
                None => {
                    self.ended = true;
                    if !self.rest.is_empty() {
                        return Poll::Ready(Some(Err(StreamError::Protocol("grpc_base_64_decode_failed_bad_size"))));
                    }
                }
                Some(Err(e)) => return Poll::Ready(Some(Err(e))),
            }
        }
    }
    fn is_end(&self) -> bool {
        self.ended || (self.rest.is_empty() && self.inner.is_end())
    }
    fn inner(&mut self) -> Option<&mut Body> {
        Some(&mut self.inner)
    }
}

/// A response body whose trailers become a message, in base64 if asked for.
pub struct Encoded<F> {
    inner: Body,
    text: bool,
    on_trailers: F,
    ended: bool,
}

impl<F: FnMut(&Headers)> Encoded<F> {
    pub fn new(inner: Body, text: bool, on_trailers: F) -> Self {
        Self { inner, text, on_trailers, ended: false }
    }
    fn emit(&self, data: Bytes) -> Poll<Option<Result<Frame, StreamError>>> {
        let data = if self.text { Bytes::from(STANDARD.encode(&data)) } else { data };
        Poll::Ready(Some(Ok(Frame::Data(data))))
    }
}

impl<F: FnMut(&Headers)> BodySource for Encoded<F> {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        match ready!(self.inner.poll_frame(cx)) {
            Some(Ok(Frame::Data(data))) => self.emit(data),
            Some(Ok(Frame::Trailers(trailers))) => {
                self.ended = true;
                (self.on_trailers)(&trailers);
                self.emit(message(&trailers))
            }
            None => {
                self.ended = true;
                Poll::Ready(None)
            }
            Some(Err(e)) => Poll::Ready(Some(Err(e))),
        }
    }
    fn is_end(&self) -> bool {
        self.ended
    }
    fn inner(&mut self) -> Option<&mut Body> {
        Some(&mut self.inner)
    }
}

/// Trailers as a message: `name:value` lines behind flag and length.
fn message(trailers: &Headers) -> Bytes {
    let mut lines = BytesMut::new();
    for (name, value) in trailers.iter() {
        lines.put_slice(name.as_str().as_bytes());
        lines.put_u8(b':');
        lines.put_slice(value.as_bytes());
        lines.put_slice(b"\r\n");
    }
    let mut out = BytesMut::with_capacity(5 + lines.len());
    out.put_u8(TRAILERS);
    out.put_u32(u32::try_from(lines.len()).unwrap_or(u32::MAX));
    out.unsplit(lines);
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn joined_pieces() {
        assert_eq!(decode(b"YQ==Yg==YWJj").as_deref(), Some(b"ababc".as_slice()));
        assert_eq!(decode(b"YWI=YQ==").as_deref(), Some(b"aba".as_slice()));
        assert_eq!(decode(b"Y==="), None);
        assert_eq!(decode(b"!!!!"), None);
    }

    proptest! {
        #[test]
        fn goes_round(data in proptest::collection::vec(any::<u8>(), 0..50)) {
            let text = STANDARD.encode(&data);
            prop_assert_eq!(decode(text.as_bytes()).unwrap_or_default(), data);
        }
        #[test]
        fn hostile(text in proptest::collection::vec(any::<u8>(), 0..50)) {
            let _ = decode(&text);
        }
        #[test]
        fn cuts_do_not_matter(text in "([AYQZg=]{4}){0,6}") {
            let pieces: Option<Vec<Bytes>> = text.as_bytes().chunks(4).map(decode).collect();
            prop_assert_eq!(decode(text.as_bytes()).map(|b| b.to_vec()), pieces.map(|p| p.concat()));
        }
    }
}
