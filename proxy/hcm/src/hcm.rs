//! The http_connection_manager as a terminal network filter: one connection from its first byte to its end.
//! Runs on the worker that accepted the connection; `adopt` on the control thread.

use crate::client_io::ClientIo;
use crate::config::{Codec, HcmConfig, LocalConfig};
use crate::service::{HttpConnection, codec};
use arc_swap::ArcSwap;
use bytes::BytesMut;
use futures_util::future::LocalBoxFuture;
use nuncio_core::HttpVersion;
use nuncio_core::{ConnectionInfo, StreamInfo};
use nuncio_http::auto::{self, Detect};
use nuncio_http::{ConnControl, ConnectionEnd, serve_h1, serve_h2};
use nuncio_listener::{Connection, DrainWatch, Filters, Passed, Terminal};
use nuncio_tls::Transport;
use std::any::Any;
use std::borrow::Cow;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The place of a connection manager's configuration; a new generation is put into the slots of the old ones, so that their
/// living connections see it with their next request.
#[derive(Debug)]
pub struct HcmSlot(ArcSwap<HcmConfig>);

impl HcmSlot {
    /// The newest configuration.
    pub fn load(&self) -> Arc<HcmConfig> {
        self.0.load_full()
    }
    /// Replaces `mine` if there is a newer one.
    pub fn refresh(&self, mine: &mut LocalConfig) {
        let newest = self.0.load();
        if !Arc::ptr_eq(&newest, mine) {
            *mine = Rc::new(Arc::clone(&newest));
        }
    }
}

/// A compiled http_connection_manager.
#[derive(Debug)]
pub struct Hcm {
    slot: Arc<HcmSlot>,
}

impl Hcm {
    /// A connection manager with `config`.
    pub fn new(config: HcmConfig) -> Self {
        Self { slot: Arc::new(HcmSlot(ArcSwap::from_pointee(config))) }
    }
    /// The newest configuration.
    pub fn config(&self) -> Arc<HcmConfig> {
        self.slot.load()
    }
}

impl Terminal for Hcm {
    fn serve(self: Arc<Self>, connection: Connection) -> LocalBoxFuture<'static, ()> {
        Box::pin(serve(self.slot.clone(), connection))
    }

    fn adopt(&self, new: &Arc<dyn Terminal>) -> bool {
        let Some(new) = new.as_any().downcast_ref::<Hcm>() else { return false };
        let config = new.slot.load();
        // What a connection fixes at its start: codec and codec limits.
        let old = self.slot.load();
        if old.codec != config.codec {
            return false;
        }
        self.slot.0.store(config);
        true
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn pending(&self) -> Vec<String> {
        self.slot.load().pending_routes()
    }
}

async fn serve(slot: Arc<HcmSlot>, connection: Connection) {
    let Connection { mut io, info, filters, mut leftover, drain } = connection;
    let config = slot.load();
    let counted = Counted::new(config.clone(), &info);
    let mut network = NetworkFilters { filters: Filters::new(filters), info: StreamInfo::new(info.clone(), None) };
    // Boxed: connections without such filters must not have room for it.
    if !network.filters.is_empty() && !Box::pin(network.open(&mut io, &mut leftover, config.options.idle_timeout)).await {
        return;
    }
    let Some(version) = choose(&config, &info, &mut io, &mut leftover).await else { return };
    config.stats.codec_opened(version);
    let control = Rc::new(ConnControl::new());
    let service = Rc::new(HttpConnection::new(slot, info.clone(), control.clone(), drain.clone()));
    let options = config.options.clone();
    let end = if version == HttpVersion::Http2 {
        // Boxed: the task of an HTTP/1 connection must not have room for an HTTP/2 one.
        let run = Box::pin(serve_h2(io, leftover, service, options, control.clone()));
        drive(run, &config, &drain, &control, version).await
    } else {
        let run = pin!(serve_h1(ClientIo::new(io, control.clone()), leftover, service, options, control.clone()));
        drive(run, &config, &drain, &control, version).await
    };
    config.stats.codec_closed(version);
    counted.ended(&end);
}

/// Runs the codec beside what may end the connection from outside: drain, close, `max_connection_duration`.
async fn drive(
    mut run: impl Future<Output = ConnectionEnd> + Unpin,
    config: &HcmConfig,
    drain: &DrainWatch,
    control: &ConnControl,
    version: HttpVersion,
) -> ConnectionEnd {
    let mut draining = pin!(drain.draining());
    let mut closing = pin!(drain.closing());
    let mut lifetime = pin!(lifetime(config, control, version));
    let (mut drained, mut closed, mut expired) = (false, false, config.timeouts.max_connection_duration.is_none());
    poll_fn(|cx| {
        if let Poll::Ready(end) = Pin::new(&mut run).poll(cx) {
            return Poll::Ready(end);
        }
        let mut changed = false;
        if !drained && draining.as_mut().poll(cx).is_ready() {
            drained = true;
            changed = true;
            config.stats.downstream_cx_drain_close.inc();
            control.drain();
        }
        if !closed && closing.as_mut().poll(cx).is_ready() {
            closed = true;
            changed = true;
            control.close();
        }
        if !expired && lifetime.as_mut().poll(cx).is_ready() {
            expired = true;
            changed = true;
        }
        // The codec must see what was just asked of it.
        if changed { Pin::new(&mut run).poll(cx) } else { Poll::Pending }
    })
    .await
}

/// Ends the connection at `max_connection_duration`, but no stream: HTTP/2 is told to go away. A client of HTTP/1 cannot be told between
/// two requests, so the next response is the last one, for which the connection waits until `drain_timeout`, or
/// with `http1_safe_max_connection_duration` for ever.
async fn lifetime(config: &HcmConfig, control: &ConnControl, version: HttpVersion) {
    let timeouts = &config.timeouts;
    let Some(limit) = timeouts.max_connection_duration else { return };
    tokio::time::sleep(longer(limit, timeouts.max_connection_jitter)).await;
    config.stats.downstream_cx_max_duration_reached.inc();
    if !version.is_multiplexed() {
        if timeouts.http1_safe {
            return control.drain_at_next();
        }
        control.drain_patiently();
        tokio::time::sleep(longer(timeouts.drain, timeouts.drain_jitter)).await;
    }
    control.drain();
}

/// `duration` and up to `part` of it more.
fn longer(duration: Duration, part: f64) -> Duration {
    if part > 0.0 { duration.saturating_add(duration.mul_f64(part * fastrand::f64())) } else { duration }
}

/// The codec by configuration and ALPN, else by the first bytes. None if the client left before it said anything.
async fn choose(config: &HcmConfig, info: &ConnectionInfo, io: &mut Transport, leftover: &mut BytesMut) -> Option<HttpVersion> {
    if let Some(version) = codec(config, info) {
        return Some(version);
    }
    debug_assert_eq!(config.codec, Codec::Auto);
    loop {
        match auto::detect(leftover) {
            Detect::H2 => return Some(HttpVersion::Http2),
            Detect::H1 => return Some(HttpVersion::Http11),
            Detect::NeedMore => {
                let read = io.read_buf(leftover);
                let count = match config.options.idle_timeout {
                    Some(limit) => tokio::time::timeout(limit, read).await.ok()?,
                    None => read.await,
                };
                if count.ok()? == 0 {
                    return None;
                }
            }
        }
    }
}

/// Connection counters, given back when the connection ends in whatever way.
struct Counted {
    config: Arc<HcmConfig>,
    tls: bool,
    start: std::time::Instant,
}

impl Counted {
    fn new(config: Arc<HcmConfig>, info: &ConnectionInfo) -> Self {
        let stats = &config.stats;
        let tls = info.tls.is_some();
        stats.downstream_cx_total.inc();
        stats.downstream_cx_active.inc();
        if tls {
            stats.downstream_cx_ssl_total.inc();
            stats.downstream_cx_ssl_active.inc();
        }
        Self { config, tls, start: info.start_instant }
    }
    fn ended(&self, end: &ConnectionEnd) {
        let stats = &self.config.stats;
        match end {
            ConnectionEnd::Remote | ConnectionEnd::Transport(_) => stats.downstream_cx_destroy_remote.inc(),
            ConnectionEnd::Local | ConnectionEnd::KeepAliveTimeout => stats.downstream_cx_destroy_local.inc(),
            ConnectionEnd::IdleTimeout => {
                stats.downstream_cx_destroy_local.inc();
                stats.downstream_cx_idle_timeout.inc();
            }
            // Counted as protocol error where the refused request was answered.
            ConnectionEnd::Protocol(_) => stats.downstream_cx_destroy_local.inc(),
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let stats = &self.config.stats;
        stats.downstream_cx_active.dec();
        stats.downstream_cx_destroy.inc();
        if self.tls {
            stats.downstream_cx_ssl_active.dec();
        }
        let millis = self.start.elapsed().min(Duration::from_secs(u64::from(u32::MAX))).as_millis();
        stats.downstream_cx_length_ms.record(u64::try_from(millis).unwrap_or(u64::MAX));
    }
}

/// The chain's network filters before the connection manager.
struct NetworkFilters {
    filters: Filters,
    info: StreamInfo,
}

/// Room for the first bytes that network filters want to see.
const FIRST_READ: usize = 1024;

/// What came first while network filters hold a connection.
enum Next {
    Passed(Passed),
    /// Bytes.
    Read,
}

impl NetworkFilters {
    /// Tells the filters of the connection and shows them what arrives until all of them let it pass; `leftover` is then what they let
    /// through. False if one closes it, if the client leaves, or if nothing happens for `idle`.
    async fn open(&mut self, io: &mut Transport, leftover: &mut BytesMut, idle: Option<Duration>) -> bool {
        let (mut out, mut shown) = (BytesMut::new(), false);
        let mut passed = self.filters.begin(&mut self.info, &mut out);
        if !leftover.is_empty() && !matches!(passed, Passed::Closed(_)) {
            passed = self.filters.read(&mut self.info, leftover, false, &mut out);
        }
        loop {
            if !out.is_empty() && io.write_all(&out.split()).await.is_err() {
                return false;
            }
            match passed {
                Passed::Closed(why) => return self.refuse(why).await,
                // Filters that want to see the first bytes say so when they are shown none.
                Passed::On if leftover.is_empty() && !shown => {
                    shown = true;
                    passed = self.filters.read(&mut self.info, leftover, false, &mut out);
                    continue;
                }
                Passed::On => {
                    self.info.connection.clone().learn(&mut self.info);
                    return true;
                }
                Passed::Held => {}
            }
            let next = self.next(io, leftover, &mut out);
            let next = match idle {
                Some(limit) => tokio::time::timeout(limit, next).await.unwrap_or(None),
                None => next.await,
            };
            passed = match next {
                None => return false,
                Some(Next::Passed(passed)) => passed,
                Some(Next::Read) => self.filters.read(&mut self.info, leftover, false, &mut out),
            };
        }
    }
    /// Waits for bytes, and for filters that wait for a service; what is to go on is put into `data`. None if the client is gone.
    async fn next(&mut self, io: &mut Transport, data: &mut BytesMut, out: &mut BytesMut) -> Option<Next> {
        let (waiting, more) = (self.filters.is_waiting(), self.filters.wants_more());
        let (mut arrived, mut held) = (BytesMut::with_capacity(FIRST_READ), BytesMut::new());
        let next = tokio::select! {
            biased;
            passed = self.filters.wait(&mut self.info, &mut held, out), if waiting => Next::Passed(passed),
            count = io.read_buf(&mut arrived), if more => count.ok().filter(|n| *n > 0).map(|_| Next::Read)?,
        };
        *data = if let Next::Read = next { arrived } else { held };
        Some(next)
    }
    /// A filter closes the connection: false, once that is due.
    async fn refuse(&self, why: Cow<'static, str>) -> bool {
        if !why.is_empty() {
            *self.info.connection.termination_details.borrow_mut() = Some(why);
        }
        let delay = self.info.connection.close_delay.get();
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        false
    }
}

impl Drop for NetworkFilters {
    fn drop(&mut self) {
        self.filters.close(&mut self.info);
        self.info.connection.clone().learn(&mut self.info);
    }
}
