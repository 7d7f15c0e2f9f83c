//! A body that is decompressed while it passes. Output is made as it is asked for, and never more than the input can honestly stand for.

use super::Direction;
use super::decoder::{Broken, Decoder};
use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use nuncio_core::{Body, BodySource, Frame, Headers, StreamError};
use std::sync::Arc;
use std::task::{Context, Poll};

/// Output that is never too much.
const FREE: u64 = 64 * 1024;
/// Steps without output that one poll takes: other streams of the worker wait meanwhile.
const STEPS: usize = 1024;

pub struct Decompressed {
    inner: Body,
    /// None at the end.
    decoder: Option<Decoder>,
    input: Bytes,
    /// The decoder may hold output though it has no input.
    more: bool,
    received: u64,
    made: u64,
    /// Most bytes of output for one of input.
    ratio: u64,
    trailers: Option<Box<Headers>>,
    direction: Arc<Direction>,
}

impl Decompressed {
    pub fn new(inner: Body, decoder: Decoder, ratio: u32, direction: Arc<Direction>) -> Self {
        let decoder = Some(decoder);
        let (input, trailers) = (Bytes::new(), None);
        Self { inner, decoder, input, more: false, received: 0, made: 0, ratio: ratio.into(), trailers, direction }
    }
    fn emit(&mut self, data: Vec<u8>) -> Poll<Option<Result<Frame, StreamError>>> {
        self.made += data.len() as u64;
        if self.made > FREE.max(self.received.saturating_mul(self.ratio)) {
            return self.fail("more output than the ratio allows");
        }
        self.direction.uncompressed_bytes.add(data.len() as u64);
        Poll::Ready(Some(Ok(Frame::Data(data.into()))))
    }
    fn fail(&mut self, why: &str) -> Poll<Option<Result<Frame, StreamError>>> {
        log::debug!("decompression stopped: {why}");
        self.decoder = None;
        self.trailers = None;
        self.direction.errors.inc();
        Poll::Ready(Some(Err(StreamError::LocalReset("decompressor_failed"))))
    }
    fn finish(&mut self) -> Poll<Option<Result<Frame, StreamError>>> {
        let rest = match self.decoder.take().map(Decoder::finish) {
            Some(Ok(rest)) => rest,
            Some(Err(Broken)) => return self.fail("the input ends too early"),
            None => Vec::new(),
        };
        let mut trailers = self.trailers.take().unwrap_or_default();
        let sizes = [self.received, self.made + rest.len() as u64];
        for (name, size) in self.direction.trailers.iter().zip(sizes) {
            trailers.append(HeaderName::clone(name), HeaderValue::from(size));
        }
        if rest.is_empty() {
            return Poll::Ready(Some(Ok(Frame::Trailers(trailers))));
        }
        self.trailers = Some(trailers);
        self.emit(rest)
    }
}

impl BodySource for Decompressed {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        for _ in 0..STEPS {
            let Some(decoder) = &mut self.decoder else {
                return Poll::Ready(self.trailers.take().map(|t| Ok(Frame::Trailers(t))));
            };
            if self.more || !self.input.is_empty() {
                match decoder.step(&mut self.input) {
                    Ok(data) if data.is_empty() => self.more = false,
                    Ok(data) => {
                        self.more = true;
                        return self.emit(data);
                    }
                    Err(Broken) => return self.fail("broken input"),
                }
                continue;
            }
            match std::task::ready!(self.inner.poll_frame(cx)) {
                Some(Ok(Frame::Data(data))) => {
                    self.received += data.len() as u64;
                    self.direction.compressed_bytes.add(data.len() as u64);
                    self.input = data;
                }
                Some(Ok(Frame::Trailers(trailers))) => {
                    self.trailers = Some(trailers);
                    return self.finish();
                }
                None => return self.finish(),
                Some(Err(e)) => {
                    self.decoder = None;
                    return Poll::Ready(Some(Err(e)));
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
    fn is_end(&self) -> bool {
        self.decoder.is_none() && self.trailers.is_none()
    }
    fn inner(&mut self) -> Option<&mut Body> {
        Some(&mut self.inner)
    }
}
