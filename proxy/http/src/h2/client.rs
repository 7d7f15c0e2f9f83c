//! The client side of HTTP/2: one connection, driven by its own local task, that carries many streams.

use crate::ClientOptions;
use bytes::Bytes;
use nuncio_core::{Frame, Headers, RequestHead, ResponseHead, StreamError};
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite};

/// A handle to an HTTP/2 connection; clones share it. The connection closes gracefully when the last handle and the last
/// stream are gone.
#[derive(Clone)]
pub struct Client {
    _options: Arc<ClientOptions>,
}

impl Client {
    /// Sends the preface and spawns the connection's task on the current `LocalSet`.
    pub async fn connect<IO: AsyncRead + AsyncWrite + Unpin + 'static>(_io: IO, _options: Arc<ClientOptions>) -> Result<Self, StreamError> {
        Err(StreamError::Overflow)
    }
    /// Begins a stream. `end`: the request has no body. Fails with `RemoteRefused` if the connection takes no more streams.
    pub fn send(&self, _head: &RequestHead, _end: bool) -> Result<Stream, StreamError> {
        Err(StreamError::Overflow)
    }
    /// Whether a stream may begin now: no GOAWAY, not closed, below [`Self::max_streams`].
    pub fn is_ready(&self) -> bool {
        false
    }
    /// Whether the peer sent GOAWAY, or the connection closed, or `drain` was called: it takes no more streams.
    pub fn is_draining(&self) -> bool {
        true
    }
    /// Takes no more streams and closes after the last one.
    pub fn drain(&self) {}
    /// Closes now; streams fail with `ConnectionClosed`.
    pub fn close(&self) {}
    /// Resolves when the connection is closed, with the reason; empty text if nothing went wrong.
    pub async fn closed(&self) -> String {
        String::new()
    }
    /// Resolves when the connection takes no more streams (GOAWAY, closed, drained).
    pub async fn draining(&self) {}
    /// Streams that are open now.
    pub fn active_streams(&self) -> usize {
        0
    }
    /// The lesser of our option and the peer's SETTINGS_MAX_CONCURRENT_STREAMS.
    pub fn max_streams(&self) -> usize {
        0
    }
    /// Streams that the connection carried.
    pub fn streams(&self) -> u64 {
        0
    }
}

/// One stream of an HTTP/2 connection. Methods as in [`crate::ClientStream`].
pub struct Stream {
    client: Client,
}

impl Stream {
    pub fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        Poll::Pending
    }
    pub fn send_data(&mut self, _data: Bytes, _end: bool) -> Result<(), StreamError> {
        Ok(())
    }
    pub fn send_trailers(&mut self, _trailers: &Headers) -> Result<(), StreamError> {
        Ok(())
    }
    pub fn poll_flush(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        Poll::Ready(Ok(()))
    }
    pub fn poll_response(&mut self, _cx: &mut Context<'_>) -> Poll<Result<ResponseHead, StreamError>> {
        Poll::Pending
    }
    pub fn poll_frame(&mut self, _cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        Poll::Pending
    }
    pub fn remaining(&self) -> Option<u64> {
        None
    }
    pub fn is_end(&self) -> bool {
        false
    }
    pub fn is_sent(&self) -> bool {
        false
    }
    pub fn bytes_written(&self) -> u64 {
        0
    }
    pub fn bytes_read(&self) -> u64 {
        0
    }
    pub fn reset(self) {
        drop(self.client);
    }
}
