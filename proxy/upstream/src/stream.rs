//! One upstream HTTP stream: a codec stream plus what its end must give back (connection, circuit breakers, counters).
//! Made by [`crate::Upstreams::open`]; belongs to one worker.

use crate::breaker::Kind;
use crate::cluster::Cluster;
use crate::context::RoutingPriority;
use crate::health_check;
use crate::host::Host;
use crate::orca;
use crate::pool::io::{Meta, PoolIo};
use crate::pool::{Facts, H2Conn, Lease, Pool};
use bytes::Bytes;
use http::HeaderName;
use nuncio_core::info::UpstreamInfo;
use nuncio_core::{Frame, Headers, HttpVersion, RequestHead, ResponseHead, StreamError};
use nuncio_http::ClientStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

/// What of the connection the stream holds.
enum Conn {
    H1(Box<Facts>),
    /// The facts are the connection's; those of this stream are a copy.
    H2(Rc<H2Conn>, Box<UpstreamInfo>),
}

/// One upstream stream. Dropping it before [`Self::is_end`] resets it. Methods as in [`nuncio_http::ClientStream`].
pub struct UpstreamStream {
    /// Taken by drop only.
    stream: Option<ClientStream<PoolIo>>,
    conn: Option<Conn>,
    pool: Rc<Pool>,
    host: Arc<Host>,
    counted: Counted,
    reused: bool,
    /// A load report is still to come: the cluster weighs by them, and the response had none so far.
    report_due: bool,
}

/// A request in the counters, from its begin on a connection to its end.
struct Counted {
    cluster: Arc<Cluster>,
    meta: Rc<Meta>,
    priority: RoutingPriority,
}

impl Counted {
    fn new(cluster: &Arc<Cluster>, meta: &Rc<Meta>, priority: RoutingPriority) -> Self {
        let (thresholds, stats) = cluster.breaker(priority);
        thresholds.acquire(Kind::Request, stats);
        thresholds.request_began();
        let traffic = &cluster.stats().traffic;
        traffic.upstream_rq_total.inc();
        traffic.upstream_rq_active.inc();
        meta.host.stats.rq_total.fetch_add(1, Ordering::Relaxed);
        meta.host.stats.rq_active.fetch_add(1, Ordering::Relaxed);
        meta.active.set(meta.active.get() + 1);
        Self { cluster: cluster.clone(), meta: meta.clone(), priority }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let (thresholds, stats) = self.cluster.breaker(self.priority);
        thresholds.release(Kind::Request, stats);
        self.cluster.stats().traffic.upstream_rq_active.dec();
        self.meta.host.stats.rq_active.fetch_sub(1, Ordering::Relaxed);
        self.meta.active.set(self.meta.active.get().saturating_sub(1));
    }
}

impl UpstreamStream {
    /// Begins a stream on a leased connection.
    pub(crate) fn begin(
        pool: &Rc<Pool>,
        host: &Arc<Host>,
        lease: Lease,
        request: &RequestHead,
        end: bool,
        priority: RoutingPriority,
    ) -> Result<Self, StreamError> {
        let counted = Counted::new(&pool.cluster, lease.meta(), priority);
        let (stream, conn, reused) = match lease {
            Lease::H1(conn) => {
                let meta = &conn.facts.meta;
                let reused = meta.streams.get() > 0;
                meta.streams.set(meta.streams.get() + 1);
                let mut facts = conn.facts;
                facts.info.connection_streams = facts.meta.streams.get();
                if reused {
                    facts.info.connect_time = Some(Duration::ZERO);
                }
                match conn.client.send(request, end) {
                    Ok(stream) => (ClientStream::H1(stream), Conn::H1(facts), reused),
                    Err(error) => {
                        drop(counted);
                        pool.release_h1(None, facts);
                        return Err(error);
                    }
                }
            }
            Lease::H2(conn) => {
                let mut info = Box::new(conn.facts.info.clone());
                info.connection_streams = conn.facts.meta.streams.get();
                let reused = info.connection_streams > 1;
                if reused {
                    info.connect_time = Some(Duration::ZERO);
                }
                match conn.client.send(request, end) {
                    Ok(stream) => (ClientStream::H2(stream), Conn::H2(conn, info), reused),
                    Err(error) => {
                        drop(counted);
                        pool.release_h2(&conn);
                        return Err(error);
                    }
                }
            }
        };
        Ok(Self {
            stream: Some(stream),
            conn: Some(conn),
            pool: pool.clone(),
            host: host.clone(),
            counted,
            reused,
            report_due: pool.cluster.spec.lb.orca.is_some(),
        })
    }
    /// The host that was connected to.
    pub fn host(&self) -> &Arc<Host> {
        &self.host
    }
    /// The cluster that it is a host of.
    pub fn cluster(&self) -> &Arc<Cluster> {
        &self.counted.cluster
    }
    /// Facts of the connection: host, addresses, TLS, protocol, connection id, connect time, filter state. Moments and bytes
    /// of this stream are the router's to fill.
    pub fn info(&self) -> &UpstreamInfo {
        static_info(self.conn.as_ref())
    }
    /// Ready when there is room for one more data frame.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        self.with(|s| s.poll_ready(cx)).unwrap_or(Poll::Ready(Err(over())))
    }
    /// Queues body bytes; `end` closes the request.
    pub fn send_data(&mut self, data: Bytes, end: bool) -> Result<(), StreamError> {
        self.with(|s| s.send_data(data, end)).unwrap_or(Err(over()))
    }
    /// Queues trailers and closes the request.
    pub fn send_trailers(&mut self, trailers: &Headers) -> Result<(), StreamError> {
        self.with(|s| s.send_trailers(trailers)).unwrap_or(Err(over()))
    }
    /// Writes what is queued.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        self.with(|s| s.poll_flush(cx)).unwrap_or(Poll::Ready(Err(over())))
    }
    /// The response head; 1xx heads (but not 101) come first, each once.
    pub fn poll_response(&mut self, cx: &mut Context<'_>) -> Poll<Result<ResponseHead, StreamError>> {
        let result = self.with(|s| s.poll_response(cx)).unwrap_or(Poll::Ready(Err(over())));
        match &result {
            Poll::Ready(Err(error)) => self.note(error),
            Poll::Ready(Ok(head)) if !head.status.is_informational() => self.look_at(head),
            _ => {}
        }
        result
    }
    /// What a response says about its host: load, and that it is about to fail its health checks.
    fn look_at(&mut self, head: &ResponseHead) {
        if self.report_due {
            self.take_report(&head.headers);
        }
        let checked = !self.pool.cluster.spec.health_checks.is_empty();
        if checked && head.headers.contains(&HeaderName::from_static("x-envoy-immediate-health-check-fail")) {
            health_check::fail_now(&self.pool.cluster, &self.host);
        }
    }
    /// Passes a load report on to the host's weight.
    fn take_report(&mut self, headers: &Headers) {
        if let Some(spec) = &self.pool.cluster.spec.lb.orca {
            self.report_due = !orca::take_report(spec, &self.host, headers);
        }
    }
    /// The next body frame; `None` at the end.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        let result = self.with(|s| s.poll_frame(cx)).unwrap_or(Poll::Ready(None));
        match &result {
            Poll::Ready(Some(Err(error))) => self.note(error),
            Poll::Ready(Some(Ok(Frame::Trailers(trailers)))) if self.report_due => self.take_report(trailers),
            _ => {}
        }
        result
    }
    /// Response body bytes still to come, if known.
    pub fn remaining(&self) -> Option<u64> {
        self.stream.as_ref()?.remaining()
    }
    /// Whether the response came to its end.
    pub fn is_end(&self) -> bool {
        self.stream.as_ref().is_none_or(ClientStream::is_end)
    }
    /// Whether the request was sent in full.
    pub fn is_sent(&self) -> bool {
        self.stream.as_ref().is_none_or(ClientStream::is_sent)
    }
    /// Wire bytes written; 0 means that the peer cannot have seen the request.
    pub fn bytes_written(&self) -> u64 {
        self.stream.as_ref().map_or(0, ClientStream::bytes_written)
    }
    /// Wire bytes read.
    pub fn bytes_read(&self) -> u64 {
        self.stream.as_ref().map_or(0, ClientStream::bytes_read)
    }
    /// Protocol of the connection.
    pub fn version(&self) -> HttpVersion {
        self.stream.as_ref().map_or(HttpVersion::Http11, ClientStream::version)
    }
    /// Whether the connection carried a stream before this one: a close before any response byte is then worth a retry.
    pub fn is_reused(&self) -> bool {
        self.reused
    }
    /// Ends the stream early.
    pub fn reset(self) {}
    fn with<T>(&mut self, run: impl FnOnce(&mut ClientStream<PoolIo>) -> T) -> Option<T> {
        self.stream.as_mut().map(run)
    }
    /// Counts what a failure says of the connection.
    fn note(&self, error: &StreamError) {
        if matches!(error, StreamError::Protocol(_) | StreamError::TooLarge(_)) {
            self.counted.cluster.stats().traffic.upstream_cx_protocol_error.inc();
        }
    }
}

fn over() -> StreamError {
    StreamError::LocalReset("stream_over")
}

fn static_info(conn: Option<&Conn>) -> &UpstreamInfo {
    static EMPTY: std::sync::OnceLock<UpstreamInfo> = std::sync::OnceLock::new();
    match conn {
        Some(Conn::H1(facts)) => &facts.info,
        Some(Conn::H2(_, info)) => info,
        // Only while being dropped.
        None => EMPTY.get_or_init(UpstreamInfo::default),
    }
}

impl Drop for UpstreamStream {
    fn drop(&mut self) {
        let stream = self.stream.take();
        let over = stream.as_ref().is_none_or(|s| s.is_end() && s.is_sent());
        // As Envoy, which counts only where a stream can be reset without its connection.
        if !over && matches!(self.conn, Some(Conn::H2(..))) {
            self.counted.cluster.stats().traffic.upstream_rq_tx_reset.inc();
        }
        match self.conn.take() {
            Some(Conn::H1(facts)) => {
                let client = stream.and_then(ClientStream::into_client);
                self.pool.release_h1(client, facts);
            }
            Some(Conn::H2(conn, _)) => {
                drop(stream);
                self.pool.release_h2(&conn);
            }
            None => {}
        }
    }
}
