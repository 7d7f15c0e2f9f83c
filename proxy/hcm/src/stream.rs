//! One stream from its request head to its true end. `Active` owns the exchange while filters and router work; `ResponseBody`
//! owns it while the codec pulls the response. Whoever holds it last writes the access log and the stats, however the
//! stream ends: complete, reset by either side, or dropped with its connection. Belongs to one worker.

use crate::config::{HcmConfig, LocalConfig};
use crate::router::{Redirects, UpstreamMeter};
use nuncio_core::filter::Needs;
use nuncio_core::{Body, BodySource, Exchange, Frame, ResponseFlags, StreamError, StreamInfo};
use nuncio_format::AccessLogType;
use nuncio_format::FormatContext;
use nuncio_http::StreamControl;
use std::borrow::Cow;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::time::Sleep;

/// The exchange and the configuration that it began with.
pub struct Active {
    pub ex: Box<Exchange>,
    pub config: LocalConfig,
    /// Filled by the upstream's body at its end.
    pub upstream_meter: Option<Rc<UpstreamMeter>>,
    /// The codec refused the request before its head was whole: logs show no request.
    pub headless: bool,
    /// The client's stream, to tell how it ended.
    pub control: StreamControl,
    /// The request has a body.
    pub has_body: bool,
    /// Redirects of upstreams that were followed for the client's request.
    pub redirects: Option<Box<Redirects>>,
    /// The entry of `upgrades` whose filters see the request.
    pub upgrade: Option<usize>,
    /// When the next line of a stream that is not over is due.
    ticks: Ticks,
    upgrading: bool,
    charged: bool,
    outcome: Outcome,
}

/// Writes the lines of `access_log_flush_interval`.
#[derive(Default)]
pub struct Ticks(Option<Pin<Box<Sleep>>>);

impl Ticks {
    /// Writes a line if one is due, and has the task woken for the next.
    pub fn poll(&mut self, ex: &Exchange, config: &HcmConfig, cx: &mut Context<'_>) {
        let Some(interval) = config.log_options.interval else { return };
        let timer = self.0.get_or_insert_with(|| Box::pin(tokio::time::sleep(interval)));
        while timer.as_mut().poll(cx).is_ready() {
            log(ex, config, AccessLogType::DownstreamPeriodic);
            timer.as_mut().reset(tokio::time::Instant::now() + interval);
        }
    }
}

fn log(ex: &Exchange, config: &HcmConfig, kind: AccessLogType) {
    if !config.access_logs.is_empty() {
        config.access_logs.log(&FormatContext::exchange(ex).of_type(kind));
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// Nothing was answered yet, or the response is on its way.
    Open,
    /// The last byte went to the transport.
    Sent,
    /// We reset the stream.
    Reset,
    /// Another stream goes on for the same client.
    Redirected,
}

impl Active {
    /// Begins a stream.
    pub fn new(mut ex: Box<Exchange>, config: LocalConfig) -> Self {
        ex.info.grpc_request = ex.request.is_grpc();
        config.stats.request(ex.request.version);
        Self {
            ex,
            config,
            upstream_meter: None,
            headless: false,
            control: StreamControl::none(),
            has_body: false,
            redirects: None,
            upgrade: None,
            ticks: Ticks::default(),
            upgrading: false,
            charged: false,
            outcome: Outcome::Open,
        }
    }

    /// Counts the response by its status, once it begins: a long one counts while it lasts.
    pub fn charge(&mut self) {
        let info = &self.ex.info;
        if !self.charged && info.response_code != 0 && !info.health_check {
            self.charged = true;
            self.config.stats.response(info.response_code);
            self.config.listener_stats.response(info.response_code);
        }
    }

    /// The stream is an upgrade or CONNECT that may go on.
    pub fn begin_upgrade(&mut self) {
        self.upgrading = true;
        self.config.stats.downstream_cx_upgrades_total.inc();
        self.config.stats.downstream_cx_upgrades_active.inc();
    }

    /// Writes a line of a stream that goes on.
    pub fn log(&self, kind: AccessLogType) {
        log(&self.ex, &self.config, kind);
    }

    /// The exchange beside what writes its periodic lines.
    pub fn ticking(&mut self) -> (&Exchange, &mut Ticks) {
        (&self.ex, &mut self.ticks)
    }

    /// Ends this stream at a redirect that the proxy follows, and begins the one for its target. Source: Envoy's `recreateStream`.
    pub fn redirected(mut self, body: Body) -> Self {
        let old = &mut *self.ex;
        let mut info = StreamInfo::new(old.info.connection.clone(), old.info.protocol);
        // What the client did, and what was settled about it.
        (info.start, info.start_instant) = (old.info.start, old.info.start_instant);
        info.remote = old.info.remote.clone();
        info.request_id.clone_from(&old.info.request_id);
        info.sampled = old.info.sampled;
        info.health_check = old.info.health_check;
        // As Envoy, which counts the body again.
        let again = body.remaining().unwrap_or_default();
        info.request_meter.bytes.set(old.info.request_meter.bytes.get() + again);
        info.request_meter.last.set(old.info.request_meter.last.get());
        info.last_downstream_rx = old.info.last_downstream_rx;
        info.filter_state = old.info.filter_state.clone();
        info.request_header_bytes = old.info.request_header_bytes;
        let mut exchange = Exchange::new(old.request.clone(), body, info);
        (exchange.random, exchange.header_limits) = (old.random, old.header_limits);
        let mut next = Self::new(Box::new(exchange), self.config.clone());
        next.control = self.control.clone();
        next.has_body = self.has_body;
        next.redirects = self.redirects.take();
        self.outcome = Outcome::Redirected;
        next
    }

    /// Ends a stream that the codec has dealt with: there is no request to show.
    pub fn unserved(mut self) {
        self.headless = true;
        self.outcome = Outcome::Sent;
    }

    /// Turns the finished response phase into the body that the codec pulls.
    pub fn into_body(mut self) -> Body {
        let inner = std::mem::take(&mut self.ex.response_body);
        Body::Stream(Box::new(ResponseBody { active: self, inner }))
    }

    /// The response breaks off.
    fn cut(&mut self, error: &StreamError) {
        self.outcome = Outcome::Reset;
        crate::router::errors::after_response_started(&mut self.ex.info, error);
        let stats = &self.config.stats;
        match error {
            StreamError::LocalReset(crate::router::errors::MAX_DURATION) => stats.downstream_rq_max_duration_reached.inc(),
            StreamError::LocalReset(crate::router::errors::STREAM_IDLE_TIMEOUT) => stats.downstream_rq_idle_timeout.inc(),
            _ => {}
        }
        stats.rq_reset_after_downstream_response_started.inc();
    }

    fn finish(&mut self) {
        let ex = &mut *self.ex;
        let stats = &self.config.stats;
        stats.downstream_rq_active.dec();
        if self.upgrading {
            stats.downstream_cx_upgrades_active.dec();
        }
        match self.outcome {
            Outcome::Sent | Outcome::Redirected => {}
            Outcome::Reset => stats.downstream_rq_tx_reset.inc(),
            Outcome::Open => {
                // The client went away, or reset its stream.
                stats.downstream_rq_rx_reset.inc();
                let (flag, details) = match self.control.was_reset() {
                    true => (ResponseFlags::DOWNSTREAM_REMOTE_RESET, "http2.remote_reset"),
                    false => (ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION, "downstream_remote_disconnect"),
                };
                if ex.info.flags.is_empty() || ex.info.response_code == 0 {
                    ex.info.flags.set(flag);
                }
                if ex.info.details.is_none() || ex.info.response_code != 0 {
                    ex.info.details = Some(Cow::Borrowed(details));
                }
            }
        }
        if let Some(meter) = &self.upstream_meter {
            meter.tell(&mut ex.info);
        }
        ex.info.wire_rx_bytes = self.control.bytes_received();
        ex.info.wire_tx_bytes = self.control.bytes_sent();
        let elapsed = ex.info.elapsed();
        ex.info.duration = Some(elapsed);
        if ex.info.response_code != 0 && !ex.info.health_check && self.outcome != Outcome::Redirected {
            if !self.charged {
                stats.response(ex.info.response_code);
                self.config.listener_stats.response(ex.info.response_code);
            }
            stats.downstream_rq_time.record(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX));
        }
        if let Some((time, count)) = &self.config.route_resolution {
            time.record(u64::try_from(ex.info.route_resolution_time.as_micros()).unwrap_or(u64::MAX));
            count.record(u64::from(ex.info.route_resolutions));
        }
        let filters = self.config.chain(self.upgrade);
        if filters.needs(Needs::COMPLETE) {
            filters.on_complete(ex);
        }
        if !self.config.access_logs.is_empty() {
            let mut context = FormatContext::exchange(ex).of_type(AccessLogType::DownstreamEnd);
            if self.headless {
                context.request = None;
            }
            self.config.access_logs.log(&context);
        }
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.finish();
    }
}

/// The response's body on its way to the codec: counts, shows trailers to filters, ends the stream.
struct ResponseBody {
    /// Dropped before `active`, whose log line tells what it counted.
    inner: Body,
    active: Active,
}

impl BodySource for ResponseBody {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        self.active.ticks.poll(&self.active.ex, &self.active.config, cx);
        let next = std::task::ready!(self.inner.poll_frame(cx));
        let ex = &mut *self.active.ex;
        Poll::Ready(match next {
            Some(Ok(Frame::Data(data))) => {
                ex.info.bytes_sent += data.len() as u64;
                Some(Ok(Frame::Data(data)))
            }
            Some(Ok(Frame::Trailers(mut trailers))) => {
                self.active.config.chain(self.active.upgrade).on_response_trailers(ex, &mut trailers);
                ex.response_trailers = Some(trailers.clone());
                Some(Ok(Frame::Trailers(trailers)))
            }
            Some(Err(error)) => {
                self.active.cut(&error);
                Some(Err(error))
            }
            None => None,
        })
    }

    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        self.active.ticks.poll(&self.active.ex, &self.active.config, cx);
        let error = std::task::ready!(self.inner.poll_stalled(cx));
        self.active.cut(&error);
        Poll::Ready(error)
    }

    fn remaining(&self) -> Option<u64> {
        self.inner.remaining()
    }

    fn is_end(&self) -> bool {
        self.inner.is_end()
    }

    fn on_sent(&mut self) {
        self.inner.on_sent();
        self.active.outcome = Outcome::Sent;
        let info = &mut self.active.ex.info;
        info.last_downstream_tx = Some(info.elapsed());
    }
}

/// Counts the request's body into the stream's meter; the router polls it.
pub struct MeteredBody {
    inner: Body,
    meter: Rc<nuncio_core::info::BodyMeter>,
}

impl MeteredBody {
    /// Wraps a streamed body; a complete one is counted at once and stays as it is.
    pub fn wrap(body: Body, meter: &Rc<nuncio_core::info::BodyMeter>) -> Body {
        match body {
            Body::Empty => Body::Empty,
            Body::Full(data) => {
                meter.bytes.set(data.len() as u64);
                Body::Full(data)
            }
            inner => Body::Stream(Box::new(Self { inner, meter: meter.clone() })),
        }
    }
}

impl BodySource for MeteredBody {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        let next = std::task::ready!(self.inner.poll_frame(cx));
        match &next {
            Some(Ok(Frame::Data(data))) => {
                self.meter.bytes.set(self.meter.bytes.get() + data.len() as u64);
                self.meter.last.set(Some(Instant::now()));
            }
            _ => self.meter.last.set(Some(Instant::now())),
        }
        Poll::Ready(next)
    }
    fn remaining(&self) -> Option<u64> {
        self.inner.remaining()
    }
    fn is_end(&self) -> bool {
        self.inner.is_end()
    }
    fn inner(&mut self) -> Option<&mut Body> {
        Some(&mut self.inner)
    }
}
