//! What a server connection calls, and the handles that it gives to one stream. Implemented by nuncio-hcm; one worker.

use http::StatusCode;
use nuncio_core::{Body, HttpVersion, RequestHead, ResponseHead};
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

/// Answers the requests of one connection.
pub trait Service: 'static {
    /// Answers one request. HTTP/1 polls the future inside the connection's task, HTTP/2 spawns one local task per stream.
    /// Implementations may write `async fn call(self: Rc<Self>, request: Request) -> Response`. The future is not dropped
    /// when the client goes away: it learns so from [`StreamControl::closed`], ends its exchange and returns anything.
    fn call(self: Rc<Self>, request: Request) -> impl Future<Output = Response> + 'static;
    /// The codec refused a request. The answer is sent and, unless the options say otherwise, the connection closed.
    fn malformed(&self, error: &Malformed) -> Response;
    /// A request that ended before it could be served and that nothing is left to be answered to: only to be logged and counted.
    fn unserved(&self, request: &Unserved) {
        let _ = request;
    }
}

/// A request that the codec has dealt with by itself.
#[derive(Clone, Copy, Debug)]
pub struct Unserved {
    pub version: HttpVersion,
    /// What the client was told; 0 if its stream was reset or it went away.
    pub status: u16,
    /// Envoy's response code details.
    pub details: &'static str,
    pub why: WhyUnserved,
}

/// Decides the response flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhyUnserved {
    /// The client went away in the middle of the head.
    Disconnected,
    /// The head breaks the protocol.
    Malformed,
    /// The stream was reset for what the options forbid.
    Reset,
}

/// A request that the codec refused.
#[derive(Clone, Debug)]
pub struct Malformed {
    /// 400, 408, 426, 431 or 501.
    pub status: StatusCode,
    /// Envoy's response code details (`http1.codec_error`, `low_version`, ...).
    pub details: &'static str,
    /// The head, if it could be read.
    pub head: Option<Box<RequestHead>>,
    /// The message ended with its head, so that the next one can be told from it.
    pub recoverable: bool,
}

/// One request.
#[derive(Debug)]
pub struct Request {
    /// Without hop-by-hop fields: `connection` (and what it names), `keep-alive`, `proxy-connection` and `transfer-encoding`
    /// are gone, `te` is `trailers` or gone; an upgrade keeps `connection: upgrade` and `upgrade`.
    pub head: RequestHead,
    /// The framed body. Of an upgrade, what content-length or chunked coding announced (mostly nothing).
    pub body: Body,
    /// Raw bytes from the client, if it asked for an upgrade or CONNECT: pending until a 101 (CONNECT and HTTP/2: 2xx) was
    /// written, ended if anything else was.
    pub upgrade: Option<Body>,
    pub informational: Informational,
    pub stream: StreamControl,
}

/// One response.
#[derive(Debug)]
pub struct Response {
    pub head: ResponseHead,
    /// After 101 (or 2xx to CONNECT): raw bytes to the client.
    pub body: Body,
    /// End the connection after this response: `connection: close` in HTTP/1, GOAWAY in HTTP/2.
    pub close: bool,
    /// Reset the stream (HTTP/2: RST_STREAM with this code; HTTP/1: close) instead of sending anything.
    pub reset: Option<u32>,
    /// How long the client may leave the end of this response unread, in the place of
    /// [`crate::ServerOptions::stream_flush_timeout`]; the inner none is no limit.
    pub flush_timeout: Option<Option<Duration>>,
}

impl Response {
    /// A response that leaves the connection open.
    pub fn new(head: ResponseHead, body: Body) -> Self {
        Self { head, body, close: false, reset: None, flush_timeout: None }
    }
    /// No response at all: the stream is reset with HTTP/2 `code`, an HTTP/1 connection closed.
    pub fn reset(code: u32) -> Self {
        Self {
            head: ResponseHead::new(StatusCode::SERVICE_UNAVAILABLE),
            body: Body::Empty,
            close: false,
            reset: Some(code),
            flush_timeout: None,
        }
    }
}

/// What both codecs implement for the handles below. `serial` tells streams of one HTTP/1 connection apart.
pub(crate) trait StreamOps {
    fn send_informational(&self, serial: u64, head: &ResponseHead);
    fn poll_closed(&self, serial: u64, cx: &mut Context<'_>) -> Poll<()>;
    /// Whether the client ended this stream alone, and not its connection.
    fn was_reset(&self, serial: u64) -> bool;
    fn bytes_received(&self, serial: u64) -> u64;
    fn bytes_sent(&self, serial: u64) -> u64;
}

/// Sends 1xx responses ahead of the final one.
#[derive(Clone)]
pub struct Informational {
    pub(crate) ops: Option<Rc<dyn StreamOps>>,
    pub(crate) serial: u64,
}

impl Informational {
    /// A handle that sends nothing, for requests that have no client (mirrors, tests).
    pub fn none() -> Self {
        Self { ops: None, serial: 0 }
    }
    /// Sends `head` (1xx, not 101) at once. Nothing happens after the final response began, or to an HTTP/1.0 client.
    pub fn send(&self, head: &ResponseHead) {
        if let Some(ops) = &self.ops
            && head.status.is_informational()
            && head.status != StatusCode::SWITCHING_PROTOCOLS
        {
            ops.send_informational(self.serial, head);
        }
    }
}

/// One stream as its connection sees it.
#[derive(Clone)]
pub struct StreamControl {
    pub(crate) ops: Option<Rc<dyn StreamOps>>,
    pub(crate) serial: u64,
}

impl StreamControl {
    /// A stream that is never closed, for requests that have no client (tests).
    pub fn none() -> Self {
        Self { ops: None, serial: 0 }
    }
    /// Resolves when the client reset the stream or went away before the response was sent, or the connection was closed by
    /// [`crate::ConnControl::close`]. Also ready once the stream is over. Until a request body is read to its end, HTTP/1
    /// notices only through reads of that body. Any number of callers may wait.
    pub async fn closed(&self) {
        poll_fn(|cx| self.poll_closed(cx)).await;
    }
    /// As [`Self::closed`].
    pub fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<()> {
        match &self.ops {
            Some(ops) => ops.poll_closed(self.serial, cx),
            None => Poll::Pending,
        }
    }
    /// Whether the client reset the stream and kept its connection (HTTP/2 RST_STREAM).
    pub fn was_reset(&self) -> bool {
        self.ops.as_ref().is_some_and(|ops| ops.was_reset(self.serial))
    }
    /// Wire bytes of this stream received so far (`%DOWNSTREAM_WIRE_BYTES_RECEIVED%`); HTTP/2 counts frames before HPACK.
    /// 0 once the next request of an HTTP/1 connection has begun.
    pub fn bytes_received(&self) -> u64 {
        self.ops.as_ref().map_or(0, |ops| ops.bytes_received(self.serial))
    }
    /// Wire bytes of this stream sent so far (`%DOWNSTREAM_WIRE_BYTES_SENT%`); as [`Self::bytes_received`].
    pub fn bytes_sent(&self) -> u64 {
        self.ops.as_ref().map_or(0, |ops| ops.bytes_sent(self.serial))
    }
}

impl std::fmt::Debug for Informational {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Informational")
    }
}
impl std::fmt::Debug for StreamControl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StreamControl")
    }
}
