//! One upstream stream over either codec. Used by nuncio-upstream, on one worker. Everything is pulled by its user: nothing
//! is read or written between calls, except by the connection task of HTTP/2.

use crate::{h1, h2};
use bytes::Bytes;
use nuncio_core::{Frame, Headers, HttpVersion, ResponseHead, StreamError};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite};

/// One upstream stream. Dropping it before [`Self::is_end`] resets it (HTTP/1: closes the connection).
pub enum ClientStream<IO> {
    H1(h1::Stream<IO>),
    H2(h2::Stream),
}

macro_rules! each {
    ($self:ident, $s:ident => $e:expr) => {
        match $self {
            ClientStream::H1($s) => $e,
            ClientStream::H2($s) => $e,
        }
    };
}

impl<IO: AsyncRead + AsyncWrite + Unpin + 'static> ClientStream<IO> {
    /// Ready when there is room for one more data frame. An HTTP/1 upgrade has none from the end of its framed body until
    /// 101 (or 2xx to CONNECT) arrived.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        each!(self, s => s.poll_ready(cx))
    }
    /// Queues body bytes; `end` closes the request. Small frames are gathered: nothing is sure to be written before
    /// [`Self::poll_flush`]. Fails with `LocalReset` if the body does not fit its content-length.
    pub fn send_data(&mut self, data: Bytes, end: bool) -> Result<(), StreamError> {
        each!(self, s => s.send_data(data, end))
    }
    /// Queues trailers and closes the request. HTTP/1 drops them unless enabled and the body is chunked.
    pub fn send_trailers(&mut self, trailers: &Headers) -> Result<(), StreamError> {
        each!(self, s => s.send_trailers(trailers))
    }
    /// Writes what is queued. HTTP/2: ready at once, its task writes.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        each!(self, s => s.poll_flush(cx))
    }
    /// The response head. 1xx heads (but not 101) come first, each once; nothing is given twice. Flushes first, and keeps
    /// flushing while it is pending. The response may arrive before the request was sent.
    pub fn poll_response(&mut self, cx: &mut Context<'_>) -> Poll<Result<ResponseHead, StreamError>> {
        each!(self, s => s.poll_response(cx))
    }
    /// The next body frame after the final head; `None` at the end. Flow control is released as frames are taken.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        each!(self, s => s.poll_frame(cx))
    }
    /// Response body bytes still to come, if known.
    pub fn remaining(&self) -> Option<u64> {
        each!(self, s => s.remaining())
    }
    /// Whether the response came to its end.
    pub fn is_end(&self) -> bool {
        each!(self, s => s.is_end())
    }
    /// Whether the request was closed by `end` or trailers (HTTP/1: and completely written).
    pub fn is_sent(&self) -> bool {
        each!(self, s => s.is_sent())
    }
    /// Wire bytes of this stream written to the transport (`%UPSTREAM_WIRE_BYTES_SENT%`). 0 means that the peer cannot have
    /// seen the request, so that it is safe to send it again. HTTP/2 counts frames as they are queued, before HPACK.
    pub fn bytes_written(&self) -> u64 {
        each!(self, s => s.bytes_written())
    }
    /// Wire bytes of this stream read; 0 means that the peer has not begun to answer.
    pub fn bytes_read(&self) -> u64 {
        each!(self, s => s.bytes_read())
    }
    /// Ends the stream early: RST_STREAM CANCEL, or the HTTP/1 connection closes.
    pub fn reset(self) {
        each!(self, s => s.reset())
    }
    /// Protocol of the connection.
    pub fn version(&self) -> HttpVersion {
        match self {
            Self::H1(_) => HttpVersion::Http11,
            Self::H2(_) => HttpVersion::Http2,
        }
    }
    /// The HTTP/1 connection, if the exchange is over on both sides and it may carry another. None for HTTP/2, whose
    /// connection never left the pool.
    pub fn into_client(self) -> Option<h1::Client<IO>> {
        match self {
            Self::H1(s) => s.into_client(),
            Self::H2(_) => None,
        }
    }
}
