//! envoy.filters.http.bandwidth_limit: bytes per second of all requests or responses together, of a listener or of a route. Workers
//! share a bucket without a lock. Source: `envoy/extensions/filters/http/bandwidth_limit/v3/bandwidth_limit.proto`.

use crate::config::{FeatureFlag, decode, duration};
use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use nuncio_core::diag::At;
use nuncio_core::filter::{FilterAction, FilterCx, HttpFilter, Needs};
use nuncio_core::registry::{FactoryCx, HttpFilterFactory, Server};
use nuncio_core::stats::{Counter, Gauge, Histogram, Scope};
use nuncio_core::{Body, BodySource, Frame, Headers, StreamError};
use nuncio_proto::envoy::extensions::filters::http::bandwidth_limit::v3::{BandwidthLimit, bandwidth_limit::EnableMode};
use std::any::Any;
use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep};

/// Factory of `envoy.extensions.filters.http.bandwidth_limit.v3.BandwidthLimit`, on listeners and per route.
#[derive(Debug)]
pub struct Factory;

impl HttpFilterFactory for Factory {
    fn name(&self) -> &'static str {
        "envoy.filters.http.bandwidth_limit"
    }
    fn types(&self) -> &'static [&'static str] {
        &["envoy.extensions.filters.http.bandwidth_limit.v3.BandwidthLimit"]
    }
    fn route_types(&self) -> &'static [&'static str] {
        self.types()
    }
    fn compile(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn HttpFilter>> {
        Some(Arc::new(Filter(Arc::new(Config::compile(&decode(config, at, cx.report)?, at, cx)?))))
    }
    fn compile_route(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn Any + Send + Sync>> {
        let config: BandwidthLimit = decode(config, at, cx.report)?;
        if config.limit_kbps.is_none() {
            cx.report.error(&at.field("limit_kbps"), "nothing", "a route needs a limit");
            return None;
        }
        Some(Arc::new(Config::compile(&config, at, cx)?))
    }
}

/// How often waiting bytes are looked at, if the configuration does not say.
const INTERVAL: Duration = Duration::from_millis(50);

#[derive(Debug)]
struct Config {
    mode: EnableMode,
    bucket: Bucket,
    interval: Duration,
    enabled: FeatureFlag,
    server: Arc<Server>,
    request: Stats,
    response: Stats,
    /// Names of the trailers that tell how long requests and responses were held up, if they are wanted.
    trailers: Option<[HeaderName; 4]>,
}

impl Config {
    fn compile(p: &BandwidthLimit, at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Self> {
        let Ok(mode) = EnableMode::try_from(p.enable_mode) else {
            cx.report.error(&at.field("enable_mode"), p.enable_mode.to_string(), "use DISABLED, REQUEST, RESPONSE or REQUEST_AND_RESPONSE");
            return None;
        };
        if p.stat_prefix.is_empty() {
            cx.report.error(&at.field("stat_prefix"), "nothing", "name the stats of this filter");
            return None;
        }
        let kib = p.limit_kbps.unwrap_or(0);
        if kib == 0 && (p.limit_kbps.is_some() || mode != EnableMode::Disabled) {
            cx.report.error(&at.field("limit_kbps"), "nothing or 0", "give at least 1 KiB per second");
            return None;
        }
        let interval_at = at.field("fill_interval");
        let interval = match &p.fill_interval {
            Some(interval) => duration(interval, &interval_at, cx.report)?,
            None => INTERVAL,
        };
        if !(Duration::from_millis(20)..=Duration::from_secs(1)).contains(&interval) {
            cx.report.error(&interval_at, format!("{interval:?}"), "give 20ms to 1s");
            return None;
        }
        let trailers = match p.enable_response_trailers {
            false => None,
            true => {
                let prefix = match p.response_trailer_prefix.as_str() {
                    "" => String::new(),
                    prefix => format!("{prefix}-"),
                };
                let name = |rest: &str| HeaderName::from_bytes(format!("{prefix}bandwidth-{rest}").as_bytes());
                let names = ["request-duration-ms", "response-duration-ms", "request-delay-ms", "response-delay-ms"].map(name);
                let [Ok(a), Ok(b), Ok(c), Ok(d)] = names else {
                    let found = format!("\"{}\"", p.response_trailer_prefix);
                    cx.report.error(&at.field("response_trailer_prefix"), found, "give text that a header's name may contain");
                    return None;
                };
                Some([a, b, c, d])
            }
        };
        let scope = cx.server.stats.root().scope(&format!("{}.http_bandwidth_limit.", p.stat_prefix));
        Some(Self {
            mode,
            bucket: Bucket::new(kib.saturating_mul(1024)),
            interval,
            enabled: FeatureFlag::new(p.runtime_enabled.as_ref(), true),
            server: cx.server.clone(),
            request: Stats::new(&scope, "request_"),
            response: Stats::new(&scope, "response_"),
            trailers,
        })
    }
    fn limits(&self, direction: EnableMode) -> bool {
        (self.mode == direction || self.mode == EnableMode::RequestAndResponse) && self.enabled.enabled(&self.server.runtime)
    }
}

#[derive(Debug)]
struct Stats {
    enabled: Counter,
    enforced: Counter,
    pending: Gauge,
    incoming_size: Gauge,
    allowed_size: Gauge,
    incoming_total: Counter,
    allowed_total: Counter,
    duration: Histogram,
}

impl Stats {
    fn new(scope: &Scope, direction: &str) -> Self {
        let name = |rest: &str| format!("{direction}{rest}");
        Self {
            enabled: scope.counter(&name("enabled")),
            enforced: scope.counter(&name("enforced")),
            pending: scope.gauge(&name("pending")),
            incoming_size: scope.gauge(&name("incoming_size")),
            allowed_size: scope.gauge(&name("allowed_size")),
            incoming_total: scope.counter(&name("incoming_total_size")),
            allowed_total: scope.counter(&name("allowed_total_size")),
            duration: scope.histogram(&name("transfer_duration")),
        }
    }
}

/// Bytes that may pass: at most those of a second, filled evenly. One atomic holds the nanosecond at which the bucket was empty.
#[derive(Debug)]
struct Bucket {
    per_second: u64,
    start: Instant,
    empty: AtomicU64,
}

const SECOND: u64 = 1_000_000_000;

impl Bucket {
    fn new(per_second: u64) -> Self {
        // Full, as if it had been empty a second before it was made.
        Self { per_second, start: Instant::now(), empty: AtomicU64::new(0) }
    }
    /// Nanoseconds since a second before the bucket was made.
    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX).saturating_add(SECOND)
    }
    /// Takes up to `wanted` bytes; says how many.
    fn take(&self, wanted: u64) -> u64 {
        let now = self.now();
        let mut taken = 0;
        let _ = self.empty.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |empty| {
            // More than a second's worth is not saved up.
            let empty = empty.max(now.saturating_sub(SECOND));
            let there = u128::from(now.saturating_sub(empty)) * u128::from(self.per_second) / u128::from(SECOND);
            taken = wanted.min(u64::try_from(there).unwrap_or(u64::MAX));
            let cost = (u128::from(taken) * u128::from(SECOND)).div_ceil(u128::from(self.per_second.max(1)));
            Some(empty.saturating_add(u64::try_from(cost).unwrap_or(u64::MAX)).min(now))
        });
        taken
    }
}

#[derive(Debug)]
struct Filter(Arc<Config>);

/// Milliseconds that a request took to pass, and was held up.
type Told = Rc<Cell<(u64, u64)>>;

impl HttpFilter for Filter {
    fn needs(&self) -> Needs {
        Needs::REQUEST_HEADERS.and(Needs::RESPONSE_HEADERS)
    }
    fn on_request<'a>(&'a self, mut cx: FilterCx<'a>) -> FilterAction<'a> {
        let config = cx.route_config::<Config>().unwrap_or_else(|| self.0.clone());
        if config.limits(EnableMode::Request) {
            config.request.enabled.inc();
            if !cx.ex.request_body.is_end() {
                let told = Told::default();
                cx.set_state(told.clone());
                let inner = std::mem::take(&mut cx.ex.request_body);
                cx.ex.request_body = Body::Stream(Box::new(Limited::new(inner, config, EnableMode::Request, told)));
            }
        }
        FilterAction::Continue
    }
    fn on_response(&self, mut cx: FilterCx<'_>) {
        let config = cx.route_config::<Config>().unwrap_or_else(|| self.0.clone());
        if config.limits(EnableMode::Response) {
            config.response.enabled.inc();
            if !cx.ex.response_body.is_end() {
                let told = cx.state::<Told>().cloned().unwrap_or_default();
                let inner = std::mem::take(&mut cx.ex.response_body);
                cx.ex.response_body = Body::Stream(Box::new(Limited::new(inner, config, EnableMode::Response, told)));
            }
        }
    }
}

/// A body that takes its bytes from the bucket before it passes them on.
struct Limited {
    inner: Body,
    config: Arc<Config>,
    direction: EnableMode,
    told: Told,
    waiting: Bytes,
    timer: Option<Pin<Box<Sleep>>>,
    /// When the first bytes came.
    begun: Option<Instant>,
    /// Since when the waiting bytes wait.
    held: Option<Instant>,
    delay: Duration,
    ended: bool,
}

impl Limited {
    fn new(inner: Body, config: Arc<Config>, direction: EnableMode, told: Told) -> Self {
        Self {
            inner,
            config,
            direction,
            told,
            waiting: Bytes::new(),
            timer: None,
            begun: None,
            held: None,
            delay: Duration::ZERO,
            ended: false,
        }
    }
    fn stats(&self) -> &Stats {
        if self.direction == EnableMode::Request { &self.config.request } else { &self.config.response }
    }
    fn arrived(&mut self, data: Bytes) {
        let size = data.len() as u64;
        if self.begun.is_none() {
            self.begun = Some(Instant::now());
            self.stats().pending.inc();
        }
        self.stats().incoming_size.set(i64::try_from(size).unwrap_or(i64::MAX));
        self.stats().incoming_total.add(size);
        self.waiting = data;
    }
    /// Stats of the end, and trailers of a response that are wanted.
    fn over(&mut self, trailers: Option<Box<Headers>>) -> Option<Result<Frame, StreamError>> {
        self.ended = true;
        let took = self.begun.take().map(|begun| begun.elapsed());
        let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        if let Some(took) = took {
            self.stats().pending.dec();
            self.stats().duration.record(millis(took));
        }
        let mine = (took.map_or(0, millis), millis(self.delay));
        if self.direction == EnableMode::Request {
            self.told.set(mine);
            return trailers.map(|t| Ok(Frame::Trailers(t)));
        }
        let Some(names) = &self.config.trailers else { return trailers.map(|t| Ok(Frame::Trailers(t))) };
        let (request, mut trailers) = (self.told.get(), trailers);
        for (name, value) in names.iter().zip([request.0, mine.0, request.1, mine.1]) {
            if value > 0 {
                trailers.get_or_insert_default().append(name.clone(), HeaderValue::from(value));
            }
        }
        trailers.map(|t| Ok(Frame::Trailers(t)))
    }
}

impl BodySource for Limited {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        loop {
            if self.waiting.is_empty() {
                match std::task::ready!(self.inner.poll_frame(cx)) {
                    Some(Ok(Frame::Data(data))) => self.arrived(data),
                    Some(Ok(Frame::Trailers(trailers))) => return Poll::Ready(self.over(Some(trailers))),
                    None => return Poll::Ready(self.over(None)),
                    Some(Err(error)) => {
                        self.over(None);
                        return Poll::Ready(Some(Err(error)));
                    }
                }
                continue;
            }
            if let Some(timer) = &mut self.timer {
                std::task::ready!(timer.as_mut().poll(cx));
                self.timer = None;
            }
            let taken = self.config.bucket.take(self.waiting.len() as u64);
            if taken > 0 {
                if let Some(held) = self.held.take() {
                    self.delay += held.elapsed();
                }
                let stats = self.stats();
                stats.allowed_size.set(i64::try_from(taken).unwrap_or(i64::MAX));
                stats.allowed_total.add(taken);
                let data = self.waiting.split_to(usize::try_from(taken).unwrap_or(usize::MAX).min(self.waiting.len()));
                return Poll::Ready(Some(Ok(Frame::Data(data))));
            }
            self.stats().enforced.inc();
            self.held.get_or_insert_with(Instant::now);
            self.timer = Some(Box::pin(sleep(self.config.interval)));
        }
    }
    fn remaining(&self) -> Option<u64> {
        // Trailers that are added keep the length from being announced as the whole message.
        if self.direction == EnableMode::Response && self.config.trailers.is_some() {
            return None;
        }
        self.inner.remaining().map(|n| n + self.waiting.len() as u64)
    }
    fn is_end(&self) -> bool {
        self.ended
    }
    fn inner(&mut self) -> Option<&mut Body> {
        Some(&mut self.inner)
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        if self.begun.is_some() {
            self.stats().pending.dec();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{Method, StatusCode};
    use nuncio_core::test_kit::{self as kit, FakeRoute};
    use nuncio_core::{RequestHead, ResponseHead};

    fn config(mode: EnableMode, kib: u64) -> BandwidthLimit {
        BandwidthLimit { stat_prefix: "bw".into(), enable_mode: mode.into(), limit_kbps: Some(kib), ..Default::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn streams_share_a_second() {
        let server = kit::server(Default::default());
        let filter = kit::compile(&Factory, &config(EnableMode::Response, 1), &server).unwrap();
        let start = Instant::now();
        // The first kibibyte is there at once; two more take two seconds, whichever stream they are of.
        for _ in 0..3 {
            let mut ex = kit::exchange(RequestHead::new(Method::GET, "h", "/"));
            assert!(kit::request(&*filter, "b", &mut ex).await.is_none());
            kit::respond(&*filter, "b", &mut ex, ResponseHead::new(StatusCode::OK), kit::data([[7; 1024].as_slice()]));
            assert_eq!(kit::collect(&mut ex.response_body).await.unwrap().0.len(), 1024);
        }
        let passed = start.elapsed();
        assert!(passed >= Duration::from_millis(1900) && passed <= Duration::from_millis(2200), "{passed:?}");
        let root = server.stats.root();
        assert_eq!(root.counter("bw.http_bandwidth_limit.response_enabled").value(), 3);
        assert_eq!(root.counter("bw.http_bandwidth_limit.response_allowed_total_size").value(), 3072);
        assert_eq!(root.gauge("bw.http_bandwidth_limit.response_pending").value(), 0);
        assert_eq!(root.counter("bw.http_bandwidth_limit.request_enabled").value(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn trailers_tell_delays() {
        let server = kit::server(Default::default());
        let wanted = BandwidthLimit {
            enable_response_trailers: true,
            response_trailer_prefix: "x".into(),
            ..config(EnableMode::RequestAndResponse, 1)
        };
        let filter = kit::compile(&Factory, &wanted, &server).unwrap();
        let mut ex = kit::exchange(RequestHead::new(Method::POST, "h", "/"));
        ex.request_body = kit::data([[7; 2048].as_slice()]);
        assert!(kit::request(&*filter, "b", &mut ex).await.is_none());
        kit::collect(&mut ex.request_body).await.unwrap();
        kit::respond(&*filter, "b", &mut ex, ResponseHead::new(StatusCode::OK), kit::data([[7; 512].as_slice()]));
        let (_, trailers) = kit::collect(&mut ex.response_body).await.unwrap();
        let trailers = trailers.unwrap();
        let value = |name: &'static str| trailers.get_str(&HeaderName::from_static(name)).and_then(|v| v.parse::<u64>().ok()).unwrap();
        assert!(value("x-bandwidth-request-duration-ms") >= 900);
        assert!(value("x-bandwidth-response-delay-ms") >= 400);
    }

    #[tokio::test(start_paused = true)]
    async fn routes_have_their_own_bucket() {
        let server = kit::server(Default::default());
        let filter = kit::compile(&Factory, &config(EnableMode::Disabled, 1), &server).unwrap();
        let route = kit::compile_route(&Factory, &config(EnableMode::Request, 1), &server).unwrap();
        let start = Instant::now();
        for limited in [false, true] {
            let mut ex = kit::exchange(RequestHead::new(Method::POST, "h", "/"));
            ex.request_body = kit::data([[7; 4096].as_slice()]);
            if limited {
                ex.route = Some(Arc::new(FakeRoute::new("r", "c").with("b", route.clone())));
            }
            assert!(kit::request(&*filter, "b", &mut ex).await.is_none());
            kit::collect(&mut ex.request_body).await.unwrap();
            assert_eq!(start.elapsed() >= Duration::from_secs(2), limited);
        }
        let none = BandwidthLimit { limit_kbps: None, ..config(EnableMode::Request, 1) };
        assert!(kit::compile_route(&Factory, &none, &server).is_err() && kit::compile(&Factory, &none, &server).is_err());
    }
}
