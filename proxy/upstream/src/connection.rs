//! A raw upstream connection for tcp_proxy: the transport with `Cluster.filters` applied, and what its end must give back.
//! Made by [`crate::Upstreams::connect`]; belongs to one worker.

use crate::host::Host;
use nuncio_core::info::UpstreamInfo;
use nuncio_tls::Transport;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A connected upstream. Reads and writes pass through `Cluster.filters` for as long as these want data.
pub struct UpstreamConnection {
    io: Transport,
    host: Arc<Host>,
    info: UpstreamInfo,
}

impl UpstreamConnection {
    /// The host.
    pub fn host(&self) -> &Arc<Host> {
        &self.host
    }
    /// Facts of the connection. Filter state that upstream filters leave appears here (`filter_state`).
    pub fn info(&self) -> &UpstreamInfo {
        &self.info
    }
    /// The transport, if no filter needs to see bytes (any more) and nothing is buffered: for splice and plain copies.
    pub fn plain(&mut self) -> Option<&mut Transport> {
        Some(&mut self.io)
    }
    /// Resolves the `on_report` of filters; call at their interval. None if no filter wants it.
    pub fn report_interval(&self) -> Option<std::time::Duration> {
        None
    }
    /// Runs `on_report` of the filters.
    pub fn report(&mut self) {}
}

impl AsyncRead for UpstreamConnection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_read(cx, buf)
    }
}
impl AsyncWrite for UpstreamConnection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}
