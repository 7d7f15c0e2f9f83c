//! A raw upstream connection for tcp_proxy: the transport with `Cluster.filters` applied, and what its end must give back.
//! Made by [`crate::Upstreams::connect`]; belongs to one worker.

use crate::breaker::Kind;
use crate::host::Host;
use crate::pool::connect::Connected;
use crate::pool::io::{Meta, PoolIo};
use nuncio_core::info::UpstreamInfo;
use nuncio_tls::Transport;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A connected upstream. Reads and writes pass through `Cluster.filters` for as long as these want data.
pub struct UpstreamConnection {
    io: PoolIo,
    host: Arc<Host>,
    info: UpstreamInfo,
    _counted: Counted,
}

/// The connection as the one request that it carries, in the counters.
struct Counted(Rc<Meta>);

impl Counted {
    fn new(meta: &Rc<Meta>) -> Self {
        let (thresholds, stats) = meta.cluster.breaker(meta.priority);
        thresholds.acquire(Kind::Request, stats);
        let traffic = &meta.cluster.stats().traffic;
        traffic.upstream_rq_total.inc();
        traffic.upstream_rq_active.inc();
        meta.host.stats.rq_total.fetch_add(1, Ordering::Relaxed);
        meta.host.stats.rq_active.fetch_add(1, Ordering::Relaxed);
        meta.active.set(1);
        meta.streams.set(1);
        Self(meta.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let (thresholds, stats) = self.0.cluster.breaker(self.0.priority);
        thresholds.release(Kind::Request, stats);
        self.0.cluster.stats().traffic.upstream_rq_active.dec();
        self.0.host.stats.rq_active.fetch_sub(1, Ordering::Relaxed);
        self.0.active.set(0);
    }
}

impl UpstreamConnection {
    pub(crate) fn new(made: Connected, host: &Arc<Host>) -> Self {
        let Connected { io, mut info, .. } = made;
        info.connection_streams = 1;
        let _counted = Counted::new(&io.opened.meta);
        Self { host: host.clone(), info, io, _counted }
    }
    /// The host.
    pub fn host(&self) -> &Arc<Host> {
        &self.host
    }
    /// Facts of the connection. Filter state that upstream filters leave appears here (`filter_state`).
    pub fn info(&self) -> &UpstreamInfo {
        self.io.filters.as_ref().and_then(|f| f.info.upstream.as_deref()).unwrap_or(&self.info)
    }
    /// The transport, if no filter needs to see bytes (any more) and nothing is buffered: for splice and plain copies. Bytes
    /// that go through it are not counted here; tell them to [`Self::count`].
    pub fn plain(&mut self) -> Option<&mut Transport> {
        self.io.plain()
    }
    /// Adds bytes that went through [`Self::plain`] to `upstream_cx_rx_bytes_total` and `upstream_cx_tx_bytes_total`.
    pub fn count(&self, received: u64, sent: u64) {
        let traffic = &self.io.opened.meta.cluster.stats().traffic;
        traffic.upstream_cx_rx_bytes_total.add(received);
        traffic.upstream_cx_tx_bytes_total.add(sent);
    }
    /// The peer ended the connection, as seen through [`Self::plain`]; for `upstream_cx_destroy_remote`.
    pub fn closed_by_peer(&self) {
        self.io.opened.meta.remote.set(true);
    }
    /// The shortest period at which a filter wants [`Self::report`]; none if no filter does.
    pub fn report_interval(&self) -> Option<Duration> {
        self.io.filters.as_ref().and_then(|f| f.report_interval())
    }
    /// Runs `on_report` of the filters.
    pub fn report(&mut self) {
        if let Some(filters) = &mut self.io.filters {
            filters.report();
        }
    }
    /// Whether the connection should be given up: its host failed its health checks and the cluster says
    /// `close_connections_on_host_health_failure`, or the host left such a cluster.
    pub fn should_close(&self) -> bool {
        use crate::host::HealthFlags;
        let failed = HealthFlags::FAILED_ACTIVE_HC | HealthFlags::FAILED_OUTLIER_CHECK;
        self.io.opened.meta.cluster.spec.close_on_health_failure && (self.host.flags().has(failed) || self.host.is_removed())
    }
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
    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}
