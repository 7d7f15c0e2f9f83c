//! One upstream connection's byte stream: the transport, `Cluster.filters` for as long as they want bytes, and the counters
//! that every connection keeps. Belongs to one worker.

use crate::breaker::Kind;
use crate::cluster::Cluster;
use crate::context::RoutingPriority;
use crate::host::Host;
use bytes::{Buf, BytesMut};
use nuncio_core::info::UpstreamInfo;
use nuncio_core::network::{NetworkAction, NetworkFilter};
use nuncio_core::{ConnectionInfo, HttpVersion, StreamInfo};
use nuncio_tls::Transport;
use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is counted of one connection.
pub(crate) struct Meta {
    pub id: u64,
    pub cluster: Arc<Cluster>,
    pub host: Arc<Host>,
    pub priority: RoutingPriority,
    pub began: Instant,
    /// The peer closed, or the transport failed.
    pub remote: Cell<bool>,
    /// Streams that run now, and that ran ever.
    pub active: Cell<u32>,
    pub streams: Cell<u64>,
    /// Whether the handshakes are done.
    pub established: Cell<bool>,
}

/// The connection in the counters, from the first SYN to the close.
pub(crate) struct Opened {
    pub meta: Rc<Meta>,
}

impl Opened {
    /// A connection begins.
    pub(crate) fn new(cluster: &Arc<Cluster>, host: &Arc<Host>, priority: RoutingPriority) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let (thresholds, stats) = cluster.breaker(priority);
        thresholds.acquire(Kind::Connection, stats);
        let traffic = &cluster.stats().traffic;
        traffic.upstream_cx_total.inc();
        traffic.upstream_cx_active.inc();
        host.stats.cx_total.fetch_add(1, Ordering::Relaxed);
        host.stats.cx_active.fetch_add(1, Ordering::Relaxed);
        Self {
            meta: Rc::new(Meta {
                id: NEXT.fetch_add(1, Ordering::Relaxed),
                cluster: cluster.clone(),
                host: host.clone(),
                priority,
                began: Instant::now(),
                remote: Cell::new(false),
                active: Cell::new(0),
                streams: Cell::new(0),
                established: Cell::new(false),
            }),
        }
    }
    /// The handshakes are done; `version` is none for raw connections.
    pub(crate) fn established(&self, version: Option<HttpVersion>) {
        self.meta.established.set(true);
        let traffic = &self.meta.cluster.stats().traffic;
        match version {
            Some(HttpVersion::Http2 | HttpVersion::Http3) => traffic.upstream_cx_http2_total.inc(),
            Some(_) => traffic.upstream_cx_http1_total.inc(),
            None => {}
        }
        traffic.upstream_cx_connect_ms.record(ms(self.meta.began.elapsed()));
    }
    /// Connecting failed.
    pub(crate) fn failed(&self, timeout: bool) {
        let traffic = &self.meta.cluster.stats().traffic;
        traffic.upstream_cx_connect_fail.inc();
        self.meta.host.stats.cx_connect_fail.fetch_add(1, Ordering::Relaxed);
        if timeout {
            traffic.upstream_cx_connect_timeout.inc();
        } else {
            self.meta.remote.set(true);
        }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        let meta = &self.meta;
        let (thresholds, stats) = meta.cluster.breaker(meta.priority);
        thresholds.release(Kind::Connection, stats);
        let traffic = &meta.cluster.stats().traffic;
        traffic.upstream_cx_active.dec();
        meta.host.stats.cx_active.fetch_sub(1, Ordering::Relaxed);
        traffic.upstream_cx_destroy.inc();
        let active = meta.active.get() > 0;
        if active {
            traffic.upstream_cx_destroy_with_active_rq.inc();
        }
        match (meta.remote.get(), active) {
            (true, false) => traffic.upstream_cx_destroy_remote.inc(),
            (true, true) => {
                traffic.upstream_cx_destroy_remote.inc();
                traffic.upstream_cx_destroy_remote_with_active_rq.inc();
            }
            (false, false) => traffic.upstream_cx_destroy_local.inc(),
            (false, true) => {
                traffic.upstream_cx_destroy_local.inc();
                traffic.upstream_cx_destroy_local_with_active_rq.inc();
            }
        }
        if meta.established.get() {
            traffic.upstream_cx_length_ms.record(ms(meta.began.elapsed()));
            traffic.upstream_rq_per_cx.record(meta.streams.get());
        }
    }
}

/// Whole milliseconds.
pub(crate) fn ms(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

/// `Cluster.filters` on one connection.
pub(crate) struct Filters {
    filters: Vec<Box<dyn NetworkFilter>>,
    pub info: StreamInfo,
    /// Read from the transport, held by a filter.
    held: BytesMut,
    /// Let through, not yet read.
    ready: BytesMut,
    /// Went through the filters, not yet written.
    out: BytesMut,
    eof: bool,
}

impl Filters {
    /// The filters that want this connection; none if there are none. `downstream` is the connection that it is made for.
    pub(crate) fn new(cluster: &Cluster, downstream: &Rc<ConnectionInfo>, upstream: &UpstreamInfo) -> Option<Box<Self>> {
        let filters: Vec<_> = cluster.spec.filters.iter().filter_map(|f| f.create(downstream)).collect();
        if filters.is_empty() {
            return None;
        }
        let mut info = StreamInfo::new(downstream.clone(), None);
        info.upstream = Some(Box::new(upstream.clone()));
        Some(Box::new(Self { filters, info, held: BytesMut::new(), ready: BytesMut::new(), out: BytesMut::new(), eof: false }))
    }
    /// Tells the filters that the connection is up; what they want to say first is written with the first flush.
    pub(crate) fn begin(&mut self) -> io::Result<()> {
        for filter in &mut self.filters {
            if let NetworkAction::Close(why) = filter.on_new(&mut self.info, &mut self.out) {
                return Err(io::Error::other(why.into_owned()));
            }
        }
        Ok(())
    }
    /// Whether bytes must pass here.
    fn wants(&self) -> bool {
        self.filters.iter().any(|f| f.wants_data())
    }
    fn on_read(&mut self, end: bool) -> io::Result<()> {
        for filter in self.filters.iter_mut().filter(|f| f.wants_data()) {
            match filter.on_read(&mut self.info, &mut self.held, end) {
                NetworkAction::Continue => {}
                NetworkAction::Hold if end => {}
                NetworkAction::Hold => return Ok(()),
                NetworkAction::Wait => return Err(io::Error::other("a filter of a cluster cannot wait")),
                NetworkAction::Close(why) => return Err(io::Error::other(why.into_owned())),
            }
        }
        if self.ready.is_empty() {
            self.ready = self.held.split();
        } else {
            self.ready.extend_from_slice(&self.held.split());
        }
        Ok(())
    }
    fn on_write(&mut self, data: &[u8], end: bool) -> io::Result<()> {
        let mut data = BytesMut::from(data);
        for filter in self.filters.iter_mut().filter(|f| f.wants_data()) {
            if let NetworkAction::Close(why) = filter.on_write(&mut self.info, &mut data, end) {
                return Err(io::Error::other(why.into_owned()));
            }
        }
        self.out.extend_from_slice(&data);
        Ok(())
    }
    /// The shortest period at which a filter wants to report.
    pub(crate) fn report_interval(&self) -> Option<Duration> {
        self.filters.iter().filter_map(|f| f.report_interval()).min()
    }
    pub(crate) fn report(&mut self) {
        for filter in &mut self.filters {
            filter.on_report(&mut self.info);
        }
    }
}

impl Drop for Filters {
    fn drop(&mut self) {
        for filter in &mut self.filters {
            filter.on_close(&mut self.info);
        }
    }
}

/// An established upstream connection.
pub(crate) struct PoolIo {
    pub io: Transport,
    pub filters: Option<Box<Filters>>,
    pub opened: Opened,
}

impl PoolIo {
    /// The transport, if nothing needs to see bytes (any more) and nothing is held back.
    pub(crate) fn plain(&mut self) -> Option<&mut Transport> {
        match &self.filters {
            Some(f) if f.wants() || !f.held.is_empty() || !f.ready.is_empty() || !f.out.is_empty() => None,
            _ => Some(&mut self.io),
        }
    }
    fn meta(&self) -> &Meta {
        &self.opened.meta
    }
    fn poll_raw(io: &mut Transport, meta: &Meta, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = ready!(Pin::new(io).poll_read(cx, buf));
        let n = buf.filled().len() - before;
        if n > 0 {
            meta.cluster.stats().traffic.upstream_cx_rx_bytes_total.add(n as u64);
        } else if result.is_err() || buf.remaining() > 0 {
            meta.remote.set(true);
        }
        Poll::Ready(result)
    }
    /// Writes what filters let through.
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(filters) = &mut self.filters else { return Poll::Ready(Ok(())) };
        while !filters.out.is_empty() {
            let n = ready!(Pin::new(&mut self.io).poll_write(cx, &filters.out))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.opened.meta.cluster.stats().traffic.upstream_cx_tx_bytes_total.add(n as u64);
            filters.out.advance(n);
        }
        Poll::Ready(Ok(()))
    }
    fn count_write(&self, result: &Poll<io::Result<usize>>) {
        match result {
            Poll::Ready(Ok(n)) => self.meta().cluster.stats().traffic.upstream_cx_tx_bytes_total.add(*n as u64),
            Poll::Ready(Err(_)) => self.meta().remote.set(true),
            Poll::Pending => {}
        }
    }
}

impl AsyncRead for PoolIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let Self { io, filters, opened } = this;
        let Some(filters) = filters else { return Self::poll_raw(io, &opened.meta, cx, buf) };
        loop {
            if !filters.ready.is_empty() {
                let n = filters.ready.len().min(buf.remaining());
                buf.put_slice(&filters.ready.split_to(n));
                return Poll::Ready(Ok(()));
            }
            if filters.eof {
                return Poll::Ready(Ok(()));
            }
            if !filters.wants() && filters.held.is_empty() {
                return Self::poll_raw(io, &opened.meta, cx, buf);
            }
            let mut chunk = [0u8; 4096];
            let mut chunk = ReadBuf::new(&mut chunk);
            ready!(Self::poll_raw(io, &opened.meta, cx, &mut chunk))?;
            filters.eof = chunk.filled().is_empty();
            filters.held.extend_from_slice(chunk.filled());
            let end = filters.eof;
            filters.on_read(end)?;
        }
    }
}

impl AsyncWrite for PoolIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_out(cx))?;
        if let Some(filters) = this.filters.as_mut().filter(|f| f.wants()) {
            filters.on_write(buf, false)?;
            // Taken in any case; what does not fit now goes out with the next write or flush.
            if let Poll::Ready(Err(e)) = this.poll_out(cx) {
                return Poll::Ready(Err(e));
            }
            return Poll::Ready(Ok(buf.len()));
        }
        let result = Pin::new(&mut this.io).poll_write(cx, buf);
        this.count_write(&result);
        result
    }
    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if self.filters.is_some() {
            let first = bufs.iter().find(|b| !b.is_empty()).map_or(&[][..], |b| b);
            return self.poll_write(cx, first);
        }
        let this = self.get_mut();
        let result = Pin::new(&mut this.io).poll_write_vectored(cx, bufs);
        this.count_write(&result);
        result
    }
    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_out(cx))?;
        Pin::new(&mut this.io).poll_flush(cx)
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_out(cx))?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}
