//! envoy.filters.http.admission_control: refuses some requests while too few of the recent ones succeed. Each worker judges by what it
//! saw itself. Source: `envoy/extensions/filters/http/admission_control/v3/admission_control.proto`.

use crate::config::{FeatureFlag, decode, duration};
use nuncio_core::diag::{At, Report};
use nuncio_core::filter::{FilterAction, FilterCx, HttpFilter, Needs};
use nuncio_core::message::is_grpc_content_type;
use nuncio_core::registry::{FactoryCx, HttpFilterFactory, Runtime, Server};
use nuncio_core::stats::{Counter, worker};
use nuncio_core::{Headers, LocalReply};
use nuncio_proto::envoy::config::core::v3::{RuntimeDouble, RuntimePercent};
use nuncio_proto::envoy::extensions::filters::http::admission_control::v3 as proto;
use proto::admission_control::{EvaluationCriteria, SuccessCriteria};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// gRPC codes that are no failure of the service, if the configuration names none.
const GRPC_SUCCESS: [u32; 11] = [0, 1, 2, 3, 5, 6, 7, 9, 11, 12, 16];
const GRPC_STATUS: http::HeaderName = http::HeaderName::from_static("grpc-status");

/// Factory of `envoy.extensions.filters.http.admission_control.v3.AdmissionControl`.
#[derive(Debug)]
pub struct Factory;

impl HttpFilterFactory for Factory {
    fn name(&self) -> &'static str {
        "envoy.filters.http.admission_control"
    }
    fn types(&self) -> &'static [&'static str] {
        &["envoy.extensions.filters.http.admission_control.v3.AdmissionControl"]
    }
    fn compile(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn HttpFilter>> {
        let config: proto::AdmissionControl = decode(config, at, cx.report)?;
        let Some(EvaluationCriteria::SuccessCriteria(criteria)) = &config.evaluation_criteria else {
            cx.report.error(&at.field("success_criteria"), "nothing", "say what counts as success");
            return None;
        };
        let success = Success::compile(criteria, &at.field("success_criteria"), cx.report)?;
        let window_at = at.field("sampling_window");
        let window = match &config.sampling_window {
            Some(window) => duration(window, &window_at, cx.report)?,
            None => Duration::from_secs(30),
        };
        // As Envoy, which counts whole seconds.
        let window = Duration::from_secs(window.as_secs());
        if window.is_zero() {
            cx.report.error(&window_at, "less than a second", "give at least 1s");
            return None;
        }
        let threshold = Number::percent(config.sr_threshold.as_ref(), 95.0);
        if threshold.default < 1.0 {
            cx.report.error(&at.field("sr_threshold"), threshold.default.to_string(), "give at least 1 percent");
            return None;
        }
        let scope = cx.scope.scope("admission_control.");
        let rps = config.rps_threshold.as_ref();
        Some(Arc::new(Filter {
            enabled: FeatureFlag::new(config.enabled.as_ref(), true),
            success,
            window,
            threshold,
            aggression: Number::new(config.aggression.as_ref(), 1.0),
            rps: (rps.map_or(0, |r| r.default_value), rps.map_or_else(String::new, |r| r.runtime_key.clone())),
            max: Number::percent(config.max_rejection_probability.as_ref(), 80.0),
            workers: (0..cx.server.concurrency + 1).map(|_| Mutex::default()).collect(),
            server: cx.server.clone(),
            rejected: scope.counter("rq_rejected"),
            succeeded: scope.counter("rq_success"),
            failed: scope.counter("rq_failure"),
        }))
    }
}

/// A number that the runtime may override.
#[derive(Debug)]
struct Number {
    default: f64,
    key: String,
}

impl Number {
    fn new(p: Option<&RuntimeDouble>, default: f64) -> Self {
        p.map_or(Self { default, key: String::new() }, |p| Self { default: p.default_value, key: p.runtime_key.clone() })
    }
    /// A percentage.
    fn percent(p: Option<&RuntimePercent>, default: f64) -> Self {
        let Some(p) = p else { return Self { default, key: String::new() } };
        Self { default: p.default_value.as_ref().map_or(default, |v| v.value), key: p.runtime_key.clone() }
    }
    fn get(&self, runtime: &Runtime) -> f64 {
        runtime.get(&self.key).and_then(|v| v.parse().ok()).unwrap_or(self.default)
    }
}

/// What counts as success.
#[derive(Debug)]
struct Success {
    http: Vec<Range<i32>>,
    grpc: Vec<u32>,
}

impl Success {
    fn compile(p: &SuccessCriteria, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let mut http = Vec::new();
        let ranges_at = at.field("http_criteria");
        let ranges_at = ranges_at.field("http_success_status");
        for (i, range) in p.http_criteria.iter().flat_map(|c| &c.http_success_status).enumerate() {
            if range.start >= range.end || range.start < 100 || range.end > 600 {
                report.error(
                    &ranges_at.index(i),
                    format!("{} to {}", range.start, range.end),
                    "give a start below the end, from 100 to 600",
                );
                return None;
            }
            http.push(range.start..range.end);
        }
        if p.http_criteria.is_some() && http.is_empty() {
            report.error(&ranges_at, "nothing", "give at least one range");
            return None;
        }
        let grpc_at = at.field("grpc_criteria");
        let grpc_at = grpc_at.field("grpc_success_status");
        let grpc = match &p.grpc_criteria {
            None => GRPC_SUCCESS.to_vec(),
            Some(criteria) => criteria.grpc_success_status.clone(),
        };
        if let Some(bad) = grpc.iter().find(|code| **code > 16) {
            report.error(&grpc_at, bad.to_string(), "give gRPC codes, 0 to 16");
            return None;
        }
        if grpc.is_empty() {
            report.error(&grpc_at, "nothing", "give at least one code");
            return None;
        }
        if http.is_empty() {
            http.push(100..500);
        }
        Some(Self { http, grpc })
    }
    fn http(&self, status: u16) -> bool {
        self.http.iter().any(|r| r.contains(&i32::from(status)))
    }
    fn grpc(&self, headers: &Headers) -> Option<bool> {
        let status = headers.get_str(&GRPC_STATUS)?.parse().ok();
        Some(status.is_some_and(|s| self.grpc.contains(&s)))
    }
}

/// What one worker saw, in parts of a second.
#[derive(Debug, Default)]
struct Window {
    parts: VecDeque<Part>,
    requests: u32,
    successes: u32,
}

#[derive(Debug)]
struct Part {
    began: Instant,
    requests: u32,
    successes: u32,
}

impl Window {
    fn forget(&mut self, now: Instant, window: Duration) {
        while let Some(oldest) = self.parts.front().filter(|p| now.duration_since(p.began) > window) {
            self.requests = self.requests.saturating_sub(oldest.requests);
            self.successes = self.successes.saturating_sub(oldest.successes);
            self.parts.pop_front();
        }
    }
    fn record(&mut self, success: bool, window: Duration) {
        let now = Instant::now();
        self.forget(now, window);
        if self.parts.back().is_none_or(|p| now.duration_since(p.began) >= Duration::from_secs(1)) {
            self.parts.push_back(Part { began: now, requests: 0, successes: 0 });
        }
        if let Some(part) = self.parts.back_mut() {
            part.requests += 1;
            part.successes += u32::from(success);
            self.requests = self.requests.saturating_add(1);
            self.successes += u32::from(success);
        }
    }
    fn per_second(&self) -> u32 {
        let age = self.parts.front().map_or(0, |oldest| oldest.began.elapsed().as_secs());
        self.requests / u32::try_from(age).unwrap_or(u32::MAX).max(1)
    }
}

#[derive(Debug)]
struct Filter {
    enabled: FeatureFlag,
    success: Success,
    window: Duration,
    threshold: Number,
    aggression: Number,
    /// Below so many requests per second nothing is refused.
    rps: (u32, String),
    max: Number,
    /// By worker: each locks its own, so that nobody waits.
    workers: Box<[Mutex<Window>]>,
    server: Arc<Server>,
    rejected: Counter,
    succeeded: Counter,
    failed: Counter,
}

/// State: the request is to be counted, and was not yet.
struct Counting;

impl Filter {
    fn mine<T>(&self, f: impl FnOnce(&mut Window) -> T) -> Option<T> {
        let window = self.workers.get(worker()).or(self.workers.last())?;
        Some(f(&mut window.lock().unwrap_or_else(PoisonError::into_inner)))
    }
    fn refuses(&self) -> bool {
        let runtime = &self.server.runtime;
        let found = self.mine(|window| {
            window.forget(Instant::now(), self.window);
            (window.per_second(), f64::from(window.requests), f64::from(window.successes))
        });
        let Some((per_second, requests, successes)) = found else { return false };
        let least = runtime.integer(&self.rps.1, self.rps.0.into());
        if u64::from(per_second) < least {
            return false;
        }
        let threshold = (self.threshold.get(runtime) / 100.0).clamp(0.01, 1.0);
        let probability = ((requests - successes / threshold) / (requests + 1.0)).max(0.0);
        let aggression = self.aggression.get(runtime).max(1.0);
        let max = (self.max.get(runtime) / 100.0).clamp(0.0, 1.0);
        probability.powf(1.0 / aggression).min(max) * 10_000.0 > f64::from(fastrand::u32(0..10_000))
    }
    fn record(&self, success: bool) {
        if success {
            self.succeeded.inc()
        } else {
            self.failed.inc()
        }
        self.mine(|window| window.record(success, self.window));
    }
    /// Counts the request if that is still to be done.
    fn settle(&self, mut cx: FilterCx<'_>, success: bool) {
        if cx.state::<Option<Counting>>().and_then(Option::take).is_some() {
            self.record(success);
        }
    }
}

impl HttpFilter for Filter {
    fn needs(&self) -> Needs {
        Needs::REQUEST_HEADERS.and(Needs::RESPONSE_HEADERS).and(Needs::RESPONSE_TRAILERS).and(Needs::COMPLETE)
    }
    fn on_request<'a>(&'a self, mut cx: FilterCx<'a>) -> FilterAction<'a> {
        if !self.enabled.enabled(&self.server.runtime) || cx.ex.info.health_check {
            return FilterAction::Continue;
        }
        if self.refuses() {
            self.rejected.inc();
            return FilterAction::Respond(Box::new(LocalReply::new(503, "", "denied_by_admission_control")));
        }
        cx.set_state(Some(Counting));
        FilterAction::Continue
    }
    fn on_response(&self, cx: FilterCx<'_>) {
        let Some(response) = &cx.ex.response else { return };
        let success = match is_grpc_content_type(&response.headers) {
            true => self.success.grpc(&response.headers),
            false => Some(self.success.http(response.status.as_u16())),
        };
        // Without a status in the headers it comes in the trailers.
        if let Some(success) = success {
            self.settle(cx, success);
        }
    }
    fn on_response_trailers(&self, cx: FilterCx<'_>, trailers: &mut Headers) {
        let success = self.success.grpc(trailers).unwrap_or(false);
        self.settle(cx, success);
    }
    fn on_complete(&self, cx: FilterCx<'_>) {
        // Nothing that could be judged came.
        self.settle(cx, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderValue, Method, StatusCode, header};
    use nuncio_core::test_kit as kit;
    use nuncio_core::{Body, RequestHead, ResponseHead};
    use nuncio_proto::json::{UnknownFields, parse_text};

    fn filter(yaml: &str, server: &Arc<Server>) -> Result<Arc<dyn HttpFilter>, String> {
        let config: proto::AdmissionControl = parse_text(yaml, UnknownFields::Refuse).unwrap_or_else(|e| panic!("{e}")).value;
        kit::compile(&Factory, &config, server)
    }
    /// One request that is answered so; false if it was refused.
    async fn run(filter: &Arc<dyn HttpFilter>, status: Option<u16>, grpc: Option<&'static str>) -> bool {
        let mut ex = kit::exchange(RequestHead::new(Method::GET, "h", "/"));
        if let Some(reply) = kit::request(&**filter, "a", &mut ex).await {
            assert_eq!((reply.status, reply.details.as_ref()), (503, "denied_by_admission_control"));
            return false;
        }
        if let Some(status) = status {
            let mut head = ResponseHead::new(StatusCode::from_u16(status).unwrap());
            if grpc.is_some() {
                head.headers.append(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            }
            kit::respond(&**filter, "a", &mut ex, head, Body::Empty);
            if let Some(code) = grpc {
                let mut trailers = Headers::new();
                trailers.append(GRPC_STATUS, HeaderValue::from_static(code));
                kit::trailers(&**filter, "a", &mut ex, &mut trailers);
            }
        }
        kit::complete(&**filter, "a", &mut ex);
        true
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_answered_by_refusals() {
        let server = kit::server(Default::default());
        let filter =
            filter("{success_criteria: {}, sampling_window: 10s, max_rejection_probability: {default_value: {value: 100}}}", &server)
                .unwrap();
        for _ in 0..50 {
            assert!(run(&filter, Some(200), None).await);
        }
        let (mut refused, mut asked) = (0, 0);
        for _ in 0..2000 {
            asked += 1;
            refused += u32::from(!run(&filter, Some(503), None).await);
        }
        assert!(refused > asked / 2, "{refused} of {asked}");
        let root = server.stats.root();
        assert_eq!(root.counter("http.test.admission_control.rq_rejected").value(), u64::from(refused));
        assert_eq!(root.counter("http.test.admission_control.rq_success").value(), 50);
        // What is older than the window is forgotten.
        tokio::time::advance(Duration::from_secs(30)).await;
        assert!(run(&filter, Some(200), None).await);
    }

    #[tokio::test]
    async fn what_counts_as_success() {
        for (criteria, status, grpc, succeeds) in [
            ("{}", Some(499), None, true),
            ("{}", Some(500), None, false),
            ("{}", None, None, false),
            ("{}", Some(200), Some("5"), true),
            ("{}", Some(200), Some("14"), false),
            ("{}", Some(200), Some("x"), false),
            ("{http_criteria: {http_success_status: [{start: 500, end: 501}]}}", Some(500), None, true),
            ("{http_criteria: {http_success_status: [{start: 500, end: 501}]}}", Some(200), None, false),
            ("{grpc_criteria: {grpc_success_status: [14]}}", Some(200), Some("14"), true),
        ] {
            let server = kit::server(Default::default());
            let filter = filter(&format!("{{success_criteria: {criteria}}}"), &server).unwrap();
            assert!(run(&filter, status, grpc).await);
            let counted = |name: &str| server.stats.root().counter(&format!("http.test.admission_control.rq_{name}")).value();
            assert_eq!(
                (counted("success"), counted("failure")),
                (u64::from(succeeds), u64::from(!succeeds)),
                "{criteria} {status:?} {grpc:?}"
            );
        }
    }

    #[tokio::test]
    async fn thresholds_and_switches() {
        let server = kit::server(Default::default());
        for yaml in [
            "{success_criteria: {}, rps_threshold: {default_value: 1000000, runtime_key: r}}",
            "{success_criteria: {}, max_rejection_probability: {default_value: {value: 0}}}",
            "{success_criteria: {}, enabled: {default_value: false, runtime_key: e}}",
        ] {
            let filter = filter(yaml, &server).unwrap();
            for _ in 0..100 {
                assert!(run(&filter, Some(500), None).await, "{yaml}");
            }
        }
        for yaml in [
            "{}",
            "{success_criteria: {http_criteria: {}}}",
            "{success_criteria: {http_criteria: {http_success_status: [{start: 300, end: 200}]}}}",
            "{success_criteria: {grpc_criteria: {grpc_success_status: [17]}}}",
            "{success_criteria: {}, sampling_window: 0.5s}",
            "{success_criteria: {}, sr_threshold: {default_value: {value: 0}}}",
        ] {
            assert!(filter(yaml, &server).is_err(), "{yaml}");
        }
    }
}
