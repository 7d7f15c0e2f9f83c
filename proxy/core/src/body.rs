//! A body as a pulled stream of frames. One concrete enum: an empty or complete body costs no allocation, a streamed one
//! costs one box per message, never one per frame. Owned by one worker (not `Send`).

use crate::Headers;
use bytes::Bytes;
use std::{
    fmt,
    task::{Context, Poll},
};

/// One piece of a body.
#[derive(Debug)]
pub enum Frame {
    Data(Bytes),
    /// Trailers end the body; nothing follows.
    Trailers(Box<Headers>),
}

/// Why a stream ended before its end. What codecs and pools report; the connection manager maps it to flags and details.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamError {
    /// The peer reset the stream (HTTP/2 RST_STREAM code; 0 for HTTP/1).
    RemoteReset(u32),
    /// The peer refused the stream before it did any work (REFUSED_STREAM, or GOAWAY below this stream).
    RemoteRefused,
    /// The connection closed or failed. The text is the transport's reason, empty if none.
    ConnectionClosed(String),
    /// The connection could not be made. The text is the reason.
    ConnectFailed(String),
    /// Connecting took longer than the cluster's `connect_timeout`.
    ConnectTimeout,
    /// The peer broke the protocol; the text is Envoy's detail (`http1.codec_error`, ...).
    Protocol(&'static str),
    /// A circuit breaker, `max_pending_requests` or a full pool refused the stream.
    Overflow,
    /// A size limit was passed; the text names which.
    TooLarge(&'static str),
    /// This side gave up (timeout, drain, filter); the text is the detail.
    LocalReset(&'static str),
}

impl fmt::Display for StreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RemoteReset(code) => write!(f, "remote reset ({code})"),
            Self::RemoteRefused => f.write_str("remote refused stream"),
            Self::ConnectionClosed(why) => write!(f, "connection closed: {why}"),
            Self::ConnectFailed(why) => write!(f, "connection failure: {why}"),
            Self::ConnectTimeout => f.write_str("connection timeout"),
            Self::Protocol(detail) | Self::TooLarge(detail) | Self::LocalReset(detail) => f.write_str(detail),
            Self::Overflow => f.write_str("overflow"),
        }
    }
}
impl std::error::Error for StreamError {}

/// Something that yields a body frame by frame. `None` ends it; after `None` or an error it is not polled again.
/// Dropping it before the end means that nobody wants the rest: the source resets or closes its stream.
pub trait BodySource {
    /// The next frame.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>>;
    /// Bytes still to come, if known (content-length).
    fn remaining(&self) -> Option<u64> {
        None
    }
    /// Whether no more frames will come; lets codecs send END_STREAM with the last data.
    fn is_end(&self) -> bool {
        false
    }
    /// The body that this one changes or watches, if that is what it does: it is asked when nobody reads, and told when all is sent.
    fn inner(&mut self) -> Option<&mut Body> {
        None
    }
    /// Polled instead of [`Self::poll_frame`] while the reader takes no more, so that time limits count then too. Ready if the stream
    /// must end; after that nothing is polled.
    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        self.inner().map_or(Poll::Pending, |inner| inner.poll_stalled(cx))
    }
    /// Called once when the codec has handed the last byte to the transport. Not called when the stream is reset.
    fn on_sent(&mut self) {
        if let Some(inner) = self.inner() {
            inner.on_sent();
        }
    }
}

/// A message body.
#[derive(Default)]
pub enum Body {
    /// No body, and none announced.
    #[default]
    Empty,
    /// A complete body.
    Full(Bytes),
    /// A body that arrives over time.
    Stream(Box<dyn BodySource>),
}

impl Body {
    /// Bytes still to come, if known.
    pub fn remaining(&self) -> Option<u64> {
        match self {
            Self::Empty => Some(0),
            Self::Full(b) => Some(b.len() as u64),
            Self::Stream(s) => s.remaining(),
        }
    }
    /// Whether no more frames will come.
    pub fn is_end(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(b) => b.is_empty(),
            Self::Stream(s) => s.is_end(),
        }
    }
    /// The next frame; `None` at the end.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        match self {
            Self::Empty => Poll::Ready(None),
            Self::Full(b) => {
                let data = std::mem::take(b);
                *self = Self::Empty;
                Poll::Ready((!data.is_empty()).then_some(Ok(Frame::Data(data))))
            }
            Self::Stream(s) => s.poll_frame(cx),
        }
    }
    /// The next frame; `None` at the end.
    pub async fn frame(&mut self) -> Option<Result<Frame, StreamError>> {
        std::future::poll_fn(|cx| self.poll_frame(cx)).await
    }
    /// Time limits of a source that nobody reads from now: ready if the stream must end.
    pub fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        match self {
            Self::Empty | Self::Full(_) => Poll::Pending,
            Self::Stream(s) => s.poll_stalled(cx),
        }
    }
    /// Tells the source that its last byte was handed to the transport.
    pub fn on_sent(&mut self) {
        if let Self::Stream(s) = self {
            s.on_sent();
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("Empty"),
            Self::Full(b) => write!(f, "Full({})", b.len()),
            Self::Stream(_) => f.write_str("Stream"),
        }
    }
}
