//! One upstream HTTP stream: a codec stream plus what its end must give back (connection, circuit breakers, counters).
//! Made by [`crate::Upstreams::open`]; belongs to one worker.

use crate::host::Host;
use bytes::Bytes;
use nuncio_core::info::UpstreamInfo;
use nuncio_core::{Frame, Headers, HttpVersion, ResponseHead, StreamError};
use std::sync::Arc;
use std::task::{Context, Poll};

/// One upstream stream. Dropping it before [`Self::is_end`] resets it. Methods as in [`nuncio_http::ClientStream`].
pub struct UpstreamStream {
    host: Arc<Host>,
    info: UpstreamInfo,
}

impl UpstreamStream {
    /// The host that was connected to.
    pub fn host(&self) -> &Arc<Host> {
        &self.host
    }
    /// Facts of the connection: host, addresses, TLS, protocol, connection id, connect time, filter state. Moments and bytes
    /// of this stream are the router's to fill.
    pub fn info(&self) -> &UpstreamInfo {
        &self.info
    }
    /// Ready when there is room for one more data frame.
    pub fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        Poll::Pending
    }
    /// Queues body bytes; `end` closes the request.
    pub fn send_data(&mut self, _data: Bytes, _end: bool) -> Result<(), StreamError> {
        Ok(())
    }
    /// Queues trailers and closes the request.
    pub fn send_trailers(&mut self, _trailers: &Headers) -> Result<(), StreamError> {
        Ok(())
    }
    /// Writes what is queued.
    pub fn poll_flush(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        Poll::Pending
    }
    /// The response head; 1xx heads (but not 101) come first, each once.
    pub fn poll_response(&mut self, _cx: &mut Context<'_>) -> Poll<Result<ResponseHead, StreamError>> {
        Poll::Pending
    }
    /// The next body frame; `None` at the end.
    pub fn poll_frame(&mut self, _cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        Poll::Pending
    }
    /// Response body bytes still to come, if known.
    pub fn remaining(&self) -> Option<u64> {
        None
    }
    /// Whether the response came to its end.
    pub fn is_end(&self) -> bool {
        false
    }
    /// Whether the request was sent in full.
    pub fn is_sent(&self) -> bool {
        false
    }
    /// Wire bytes written; 0 means that the peer cannot have seen the request.
    pub fn bytes_written(&self) -> u64 {
        0
    }
    /// Wire bytes read.
    pub fn bytes_read(&self) -> u64 {
        0
    }
    /// Protocol of the connection.
    pub fn version(&self) -> HttpVersion {
        HttpVersion::Http11
    }
    /// Whether the connection carried a stream before this one: a close before any response byte is then worth a retry.
    pub fn is_reused(&self) -> bool {
        false
    }
    /// Ends the stream early.
    pub fn reset(self) {}
}
