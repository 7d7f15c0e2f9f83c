//! A body that is compressed while it passes. What waits in the encoder is flushed as soon as the source has nothing more for
//! now, so that streams keep their pace.

use super::encoder::Encoder;
use nuncio_core::stats::Counter;
use nuncio_core::{Body, BodySource, Frame, Headers, StreamError};
use std::io;
use std::task::{Context, Poll};

/// Output that is passed on without waiting for more.
const CHUNK: usize = 16 * 1024;
/// Input that one poll takes at most: other streams of the worker wait meanwhile.
const BUDGET: usize = 256 * 1024;

pub struct Compressed {
    inner: Body,
    /// None at the end.
    encoder: Option<Encoder>,
    /// Whether the encoder holds input back.
    dirty: bool,
    trailers: Option<Box<Headers>>,
    from: Counter,
    to: Counter,
}

impl Compressed {
    pub fn new(inner: Body, encoder: Encoder, from: Counter, to: Counter) -> Self {
        Self { inner, encoder: Some(encoder), dirty: false, trailers: None, from, to }
    }
    fn emit(&self, data: bytes::Bytes) -> Poll<Option<Result<Frame, StreamError>>> {
        self.to.add(data.len() as u64);
        Poll::Ready(Some(Ok(Frame::Data(data))))
    }
    fn finish(&mut self) -> Poll<Option<Result<Frame, StreamError>>> {
        match self.encoder.take().map(Encoder::finish) {
            Some(Ok(data)) if !data.is_empty() => self.emit(data),
            Some(Err(e)) => failed(&e),
            _ => Poll::Ready(self.trailers.take().map(|t| Ok(Frame::Trailers(t)))),
        }
    }
}

fn failed(error: &io::Error) -> Poll<Option<Result<Frame, StreamError>>> {
    log::error!("compression failed: {error}");
    Poll::Ready(Some(Err(StreamError::LocalReset("compressor_failed"))))
}

impl BodySource for Compressed {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        let mut taken = 0;
        loop {
            let Some(encoder) = &mut self.encoder else {
                return Poll::Ready(self.trailers.take().map(|t| Ok(Frame::Trailers(t))));
            };
            let frame = match self.inner.poll_frame(cx) {
                Poll::Ready(frame) => frame,
                Poll::Pending if self.dirty => {
                    self.dirty = false;
                    if let Err(e) = encoder.flush() {
                        return failed(&e);
                    }
                    let data = encoder.take();
                    if data.is_empty() {
                        return Poll::Pending;
                    }
                    return self.emit(data);
                }
                Poll::Pending => return Poll::Pending,
            };
            match frame {
                Some(Ok(Frame::Data(data))) => {
                    self.from.add(data.len() as u64);
                    taken += data.len();
                    self.dirty = true;
                    let mut result = encoder.write(&data);
                    let yields = taken >= BUDGET && !self.inner.is_end();
                    if result.is_ok() && yields {
                        self.dirty = false;
                        result = encoder.flush();
                    }
                    if let Err(e) = result {
                        return failed(&e);
                    }
                    if encoder.ready() >= CHUNK || (yields && encoder.ready() > 0) {
                        let data = encoder.take();
                        return self.emit(data);
                    }
                }
                Some(Ok(Frame::Trailers(trailers))) => {
                    self.trailers = Some(trailers);
                    return self.finish();
                }
                None => return self.finish(),
                Some(Err(e)) => {
                    self.encoder = None;
                    return Poll::Ready(Some(Err(e)));
                }
            }
        }
    }
    fn is_end(&self) -> bool {
        self.encoder.is_none() && self.trailers.is_none()
    }
    fn inner(&mut self) -> Option<&mut Body> {
        Some(&mut self.inner)
    }
}
