//! One stream from its request head to its true end. `Active` owns the exchange while filters and router work; `ResponseBody`
//! owns it while the codec pulls the response. Whoever holds it last writes the access log and the stats, however the
//! stream ends: complete, reset by either side, or dropped with its connection. Belongs to one worker.

use crate::config::LocalConfig;
use crate::router::UpstreamMeter;
use nuncio_core::filter::Needs;
use nuncio_core::{Body, BodySource, Exchange, Frame, ResponseFlags, StreamError};
use nuncio_format::AccessLogType;
use nuncio_format::FormatContext;
use nuncio_http::StreamControl;
use std::borrow::Cow;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

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
    outcome: Outcome,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// Nothing was answered yet, or the response is on its way.
    Open,
    /// The last byte went to the transport.
    Sent,
    /// We reset the stream.
    Reset,
}

impl Active {
    /// Begins a stream.
    pub fn new(ex: Box<Exchange>, config: LocalConfig) -> Self {
        config.stats.request(ex.request.version);
        Self { ex, config, upstream_meter: None, headless: false, control: StreamControl::none(), has_body: false, outcome: Outcome::Open }
    }

    /// Turns the finished response phase into the body that the codec pulls.
    pub fn into_body(mut self) -> Body {
        let inner = std::mem::take(&mut self.ex.response_body);
        Body::Stream(Box::new(ResponseBody { active: self, inner }))
    }

    fn finish(&mut self) {
        let ex = &mut *self.ex;
        let stats = &self.config.stats;
        stats.downstream_rq_active.dec();
        match self.outcome {
            Outcome::Sent => {}
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
            let upstream = ex.info.upstream_mut();
            upstream.wire_tx_bytes = meter.tx_bytes.get();
            upstream.wire_rx_bytes = meter.rx_bytes.get();
        }
        ex.info.wire_rx_bytes = self.control.bytes_received();
        ex.info.wire_tx_bytes = self.control.bytes_sent();
        let elapsed = ex.info.elapsed();
        ex.info.duration = Some(elapsed);
        if ex.info.response_code != 0 && !ex.info.health_check {
            stats.response(ex.info.response_code);
            self.config.listener_stats.response(ex.info.response_code);
            stats.downstream_rq_time.record(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX));
        }
        if self.config.filters.needs(Needs::COMPLETE) {
            self.config.filters.on_complete(ex);
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
        let next = std::task::ready!(self.inner.poll_frame(cx));
        let ex = &mut *self.active.ex;
        Poll::Ready(match next {
            Some(Ok(Frame::Data(data))) => {
                ex.info.bytes_sent += data.len() as u64;
                Some(Ok(Frame::Data(data)))
            }
            Some(Ok(Frame::Trailers(mut trailers))) => {
                self.active.config.filters.on_response_trailers(ex, &mut trailers);
                ex.response_trailers = Some(trailers.clone());
                Some(Ok(Frame::Trailers(trailers)))
            }
            Some(Err(error)) => {
                self.active.outcome = Outcome::Reset;
                crate::router::errors::after_response_started(&mut ex.info, &error);
                let stats = &self.active.config.stats;
                match error {
                    StreamError::LocalReset(crate::router::errors::MAX_DURATION) => stats.downstream_rq_max_duration_reached.inc(),
                    StreamError::LocalReset(crate::router::errors::STREAM_IDLE_TIMEOUT) => stats.downstream_rq_idle_timeout.inc(),
                    _ => {}
                }
                self.active.config.stats.rq_reset_after_downstream_response_started.inc();
                Some(Err(error))
            }
            None => None,
        })
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
    fn on_sent(&mut self) {
        self.inner.on_sent();
    }
}
