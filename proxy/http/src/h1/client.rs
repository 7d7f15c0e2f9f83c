//! The client side of HTTP/1: one connection that carries one stream at a time.

use crate::ClientOptions;
use bytes::Bytes;
use nuncio_core::{Frame, Headers, RequestHead, ResponseHead, StreamError};
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite};

/// An idle HTTP/1 connection.
pub struct Client<IO> {
    io: IO,
    options: Arc<ClientOptions>,
}

impl<IO: AsyncRead + AsyncWrite + Unpin + 'static> Client<IO> {
    /// Takes a connected transport.
    pub fn new(io: IO, options: Arc<ClientOptions>) -> Self {
        Self { io, options }
    }
    /// Whether the connection may carry another stream: nothing was said against it and nothing was read since.
    pub fn is_reusable(&self) -> bool {
        true
    }
    /// To be polled while idle (registers for reads) and once before reuse: ready when the peer closed, or sent bytes that
    /// nobody asked for. The connection is useless then.
    pub fn poll_idle_check(&mut self, _cx: &mut Context<'_>) -> Poll<StreamError> {
        Poll::Pending
    }
    /// Begins a stream. `end`: the request has no body. The head is encoded but written only with the first flush, so that
    /// a body chunk that is at hand shares its write.
    pub fn send(self, _head: &RequestHead, _end: bool) -> Result<Stream<IO>, StreamError> {
        Err(StreamError::Overflow)
    }
    /// Streams that the connection carried.
    pub fn streams(&self) -> u64 {
        0
    }
    /// The transport.
    pub fn io(&self) -> &IO {
        let _ = &self.options;
        &self.io
    }
}

/// The one stream of an HTTP/1 connection. Methods as in [`crate::ClientStream`].
pub struct Stream<IO> {
    client: Client<IO>,
}

impl<IO: AsyncRead + AsyncWrite + Unpin + 'static> Stream<IO> {
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
        Poll::Pending
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
    pub fn reset(self) {}
    /// The connection, if it may carry another stream.
    pub fn into_client(self) -> Option<Client<IO>> {
        Some(self.client)
    }
}
