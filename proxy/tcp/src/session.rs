//! One downstream connection from its first filter to its access log. Runs on the worker that owns the connection; the task may
//! be dropped at any moment (drain), and then still reports and logs.

use crate::config::{Config, TcpProxy};
use crate::connect::connect;
use crate::pump::{End, Flow};
use crate::upstream::Upstream;
use nuncio_core::info::DetectedClose;
use nuncio_core::{ResponseFlags, StreamInfo};
use nuncio_format::{AccessLogType, FormatContext};
use nuncio_listener::{Connection, DrainWatch, Filters, Passed};
use nuncio_tls::Transport;
use std::borrow::Cow;
use std::future::{Future, pending, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::time::Sleep;

/// A connection being served. What must happen at its end, however that comes, is in `drop`.
struct Session {
    proxy: Arc<TcpProxy>,
    config: Arc<Config>,
    flow: Flow,
    upstream: Option<Upstream>,
    deadlines: Deadlines,
}

/// Moments at which something is to be done; one timer serves all.
struct Deadlines {
    timer: Option<Pin<Box<Sleep>>>,
    end: Option<Instant>,
    /// Next report of downstream filters, of upstream filters, and next periodic log, with their periods.
    report: Option<(Instant, Duration)>,
    upstream_report: Option<(Instant, Duration)>,
    log: Option<(Instant, Duration)>,
}

fn every(period: Option<Duration>) -> Option<(Instant, Duration)> {
    let period = period.filter(|p| !p.is_zero())?;
    Some((Instant::now() + period, period))
}

/// Whether `next` has come; it is then moved one period ahead.
fn due(next: &mut Option<(Instant, Duration)>, now: Instant) -> bool {
    match next {
        Some((at, period)) if *at <= now => {
            *at = now + *period;
            true
        }
        _ => false,
    }
}

/// Why a connection was closed by its own timers.
#[derive(Debug, PartialEq, Eq)]
enum Stop {
    Idle,
    MaxDuration,
    Flow(End),
    Draining,
    Drained,
}

/// A random UUID, what Envoy gives TCP streams as `%STREAM_ID%`.
pub(crate) fn uuid() -> String {
    let random = fastrand::u128(..) & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{random:032x}");
    let part = |range: std::ops::Range<usize>| hex.get(range).unwrap_or_default();
    format!("{}-{}-{}-{}-{}", part(0..8), part(8..12), part(12..16), part(16..20), part(20..32))
}

impl Session {
    fn new(proxy: Arc<TcpProxy>, connection_info: StreamInfo, filters: Filters) -> Self {
        let config = proxy.config.load_full();
        config.stats.cx_total.inc();
        let mut info = connection_info;
        (info.start, info.start_instant) = (info.connection.start, info.connection.start_instant);
        let end = config.max_duration.map(|d| Instant::now() + d + d.mul_f64(fastrand::f64() * config.jitter / 100.0));
        let deadlines = Deadlines {
            timer: None,
            end,
            report: every(filters.report_interval()),
            upstream_report: None,
            log: every(config.log_interval),
        };
        Self { proxy, flow: Flow::new(info, filters), config, upstream: None, deadlines }
    }
    fn log(&self, kind: AccessLogType) {
        self.config.logs.log(&FormatContext::new(&self.flow.info).of_type(kind));
    }
    /// Takes over what filters of the upstream connection found out.
    fn refresh(&mut self) {
        if let Some(upstream) = &mut self.upstream {
            upstream.note(&mut self.flow.info);
            let found = &upstream.info().filter_state;
            let known = &mut self.flow.info.upstream_mut().filter_state;
            if found.iter().count() != known.iter().count() {
                *known = found.clone();
            }
        }
    }
    /// Does what is due and sets the timer to the next moment; why the connection is over, if it is.
    fn poll_deadlines(&mut self, cx: &mut Context<'_>) -> Poll<Stop> {
        loop {
            let now = Instant::now();
            let deadlines = &mut self.deadlines;
            if deadlines.end.is_some_and(|end| end <= now) {
                return Poll::Ready(Stop::MaxDuration);
            }
            let idle = self.config.idle.map(|idle| self.flow.moved + idle);
            if idle.is_some_and(|idle| idle <= now) {
                return Poll::Ready(Stop::Idle);
            }
            if due(&mut deadlines.report, now) {
                self.refresh();
                self.flow.filters.report(&mut self.flow.info);
            }
            if due(&mut self.deadlines.upstream_report, now)
                && let Some(upstream) = &mut self.upstream
            {
                upstream.report();
            }
            if due(&mut self.deadlines.log, now) {
                self.refresh();
                self.log(AccessLogType::TcpPeriodic);
            }
            let deadlines = &mut self.deadlines;
            let periodic = [&deadlines.report, &deadlines.upstream_report, &deadlines.log];
            let next = periodic.into_iter().flatten().map(|(at, _)| *at).chain(idle).chain(deadlines.end).min();
            let Some(next) = next else { return Poll::Pending };
            let timer = deadlines.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(next.into())));
            // A timer that fires too early only asks again; one that was set for an earlier moment need not be touched.
            if timer.is_elapsed() || timer.deadline() > next.into() {
                timer.as_mut().reset(next.into());
            }
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
    /// Copies until the connection is over.
    async fn copy(&mut self, io: &mut Transport, drain: &DrainWatch) -> Stop {
        let check_drain = self.config.check_drain;
        let draining = async { if check_drain { drain.draining().await } else { pending().await } };
        let copying = poll_fn(|cx| {
            if let Some(upstream) = &mut self.upstream
                && let Poll::Ready(end) = self.flow.poll(cx, io, upstream, &self.config.stats)
            {
                return Poll::Ready(Stop::Flow(end));
            }
            self.poll_deadlines(cx)
        });
        tokio::select! {
            biased;
            stop = copying => stop,
            () = drain.closing() => Stop::Drained,
            () = draining => Stop::Draining,
        }
    }
    /// Waits for filters that ask a service about the connection. Nothing is read meanwhile, as in Envoy.
    async fn admit(&mut self, io: &Transport, drain: &DrainWatch) -> Result<(), Stop> {
        let asked = poll_fn(|cx| match self.flow.poll_waiting(cx) {
            Poll::Ready(result) => Poll::Ready(result.map_err(Stop::Flow)),
            Poll::Pending => self.poll_deadlines(cx).map(Err),
        });
        tokio::select! {
            biased;
            result = asked => result,
            () = gone(io) => {
                self.flow.info.connection.detected_close.set(DetectedClose::RemoteReset);
                Err(Stop::Flow(End::Downstream))
            }
            () = drain.closing() => Err(Stop::Drained),
        }
    }
    /// Everything up to a connected upstream; why the connection is over, if it is.
    async fn open(&mut self, io: &mut Transport, drain: &DrainWatch, leftover: bytes::BytesMut) -> Result<(), Stop> {
        if let Passed::Closed(why) = self.flow.begin() {
            return Err(Stop::Flow(End::Filter(why)));
        }
        if self.flow.filters.is_waiting() {
            // Boxed: connections that nobody asks about must not have room for it.
            Box::pin(self.admit(io, drain)).await?;
        }
        // A connection that a filter refused at once has no id, as in Envoy.
        if !self.config.logs.is_empty() {
            self.flow.info.request_id = Some(uuid().into());
        }
        self.flow.take_in(leftover, &self.config.stats).map_err(Stop::Flow)?;
        let wait_for_data = self.config.wait_for_data;
        let first = poll_fn(|cx| {
            if let Poll::Ready(result) = self.flow.poll_first(cx, io, wait_for_data, &self.config.stats) {
                return Poll::Ready(result.map_err(Stop::Flow));
            }
            self.poll_deadlines(cx).map(Err)
        });
        tokio::select! {
            biased;
            result = first => result?,
            () = drain.closing() => return Err(Stop::Drained),
        }
        if wait_for_data {
            self.config.stats.early_data.inc();
        }
        if self.config.log_on_start {
            self.log(AccessLogType::TcpConnectionStart);
        }
        let limit = self.deadlines.end;
        let too_long = async {
            match limit {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => pending().await,
            }
        };
        self.upstream = tokio::select! {
            biased;
            upstream = connect(&self.config, &mut self.flow.info) => upstream,
            () = gone(io) => {
                self.flow.info.connection.detected_close.set(DetectedClose::RemoteReset);
                return Err(Stop::Flow(End::Downstream));
            }
            () = drain.closing() => return Err(Stop::Drained),
            () = too_long => return Err(Stop::MaxDuration),
        };
        let Some(upstream) = &self.upstream else { return Err(Stop::Flow(End::Upstream)) };
        self.deadlines.upstream_report = every(upstream.report_interval());
        self.flow.moved = Instant::now();
        if self.config.log_on_connected {
            self.refresh();
            self.log(AccessLogType::TcpUpstreamConnected);
        }
        Ok(())
    }
    /// Counts and flags what `stop` means; true if the peer is to see a reset.
    fn settle(&mut self, stop: Stop) -> bool {
        log::trace!("connection {}: {stop:?}", self.flow.info.connection.id);
        let connection = self.flow.info.connection.clone();
        let reason = match stop {
            Stop::Idle => Some("tcp_session_idle_timeout"),
            Stop::MaxDuration => Some("max_connection_duration_reached"),
            Stop::Draining => Some("tcp_proxy_drain_close"),
            // A filter said why itself.
            _ => connection.local_close.get(),
        };
        connection.local_close.set(reason);
        if let Some(upstream) = self.flow.info.upstream.as_deref_mut().filter(|_| self.upstream.is_some()) {
            upstream.local_close = reason;
        }
        match stop {
            Stop::Idle => self.config.stats.idle_timeout.inc(),
            Stop::MaxDuration => {
                self.config.stats.max_duration.inc();
                self.flow.info.flags.set(ResponseFlags::DURATION_TIMEOUT);
            }
            Stop::Draining => self.config.stats.cx_drain_close.inc(),
            Stop::Flow(End::Filter(why)) if why.is_empty() => {}
            Stop::Flow(End::Filter(why)) => {
                *self.flow.info.connection.termination_details.borrow_mut() = Some(why);
            }
            Stop::Flow(End::UpstreamReset) => {
                self.flow.info.flags.set(ResponseFlags::UPSTREAM_REMOTE_RESET);
                self.flow.info.upstream_mut().detected_close = DetectedClose::RemoteReset;
                connection.detected_close.set(DetectedClose::LocalReset);
                return true;
            }
            Stop::Drained => {
                self.flow.info.connection.termination_details.borrow_mut().get_or_insert(Cow::Borrowed("drain_timeout"));
            }
            Stop::Flow(_) => {}
        }
        false
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.refresh();
        self.flow.release(&self.config.stats);
        self.flow.info.duration = Some(self.flow.info.elapsed());
        self.flow.filters.close(&mut self.flow.info);
        // The newest logs: a listener update may have changed them since the connection began.
        self.config = self.proxy.config.load_full();
        self.log(AccessLogType::TcpConnectionEnd);
        let connection = self.flow.info.connection.clone();
        connection.learn(&mut self.flow.info);
    }
}

/// Resolves when the peer has reset the connection. An orderly end does not count: the peer may still want the answer.
async fn gone(io: &Transport) {
    let error = match io.socket() {
        Transport::Tcp(socket) => socket.ready(Interest::ERROR).await,
        Transport::Unix(socket) => socket.ready(Interest::ERROR).await,
        Transport::Tls(_) => pending().await,
    };
    if error.is_err() {
        pending().await
    }
}

/// Serves one connection to its end.
pub(crate) async fn serve(proxy: Arc<TcpProxy>, connection: Connection) {
    let Connection { mut io, info, filters, leftover, drain, .. } = connection;
    let mut session = Session::new(proxy, StreamInfo::new(info, None), Filters::new(filters));
    let stop = match session.open(&mut io, &drain, leftover).await {
        Ok(()) => session.copy(&mut io, &drain).await,
        Err(stop) => stop,
    };
    let delay = session.flow.info.connection.close_delay.get();
    if !delay.is_zero() && matches!(stop, Stop::Flow(End::Filter(_))) {
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = drain.closing() => {}
        }
    }
    if session.settle(stop) {
        // Fails only if the socket is gone already.
        let _ = io.reset_on_close();
    }
}
