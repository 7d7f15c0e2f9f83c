//! Tests of the filter: whom faults meet, delays, aborts, throttled bodies.

use super::*;
use http::{HeaderValue, Method, StatusCode};
use nuncio_core::test_kit::{self as kit, FakeRoute};
use nuncio_core::{RequestHead, ResponseHead};
use nuncio_proto::envoy::config::route::v3::{HeaderMatcher, header_matcher::HeaderMatchSpecifier};
use nuncio_proto::envoy::extensions::filters::common::fault::v3::{
    FaultDelay, FaultRateLimit, fault_delay::FaultDelaySecifier, fault_delay::HeaderDelay, fault_rate_limit::FixedLimit,
    fault_rate_limit::LimitType,
};
use nuncio_proto::envoy::extensions::filters::http::fault::v3::{FaultAbort, fault_abort::ErrorType, fault_abort::HeaderAbort};
use nuncio_proto::envoy::r#type::v3::FractionalPercent;

fn percent(numerator: u32) -> Option<FractionalPercent> {
    Some(FractionalPercent { numerator, denominator: 0 })
}
fn delay(ms: i32, numerator: u32) -> Option<FaultDelay> {
    let fixed = nuncio_proto::Duration { seconds: 0, nanos: ms * 1_000_000 };
    Some(FaultDelay { percentage: percent(numerator), fault_delay_secifier: Some(FaultDelaySecifier::FixedDelay(fixed)) })
}
fn abort(kind: ErrorType, numerator: u32) -> Option<FaultAbort> {
    Some(FaultAbort { percentage: percent(numerator), error_type: Some(kind), ..Default::default() })
}

struct Kit {
    server: Arc<Server>,
    filter: Arc<dyn HttpFilter>,
    ex: Exchange,
}
impl Kit {
    fn new(listener: &HttpFault, route: Option<&HttpFault>) -> Self {
        let server = kit::server(Default::default());
        let filter = kit::compile(&Factory, listener, &server).unwrap();
        let mut ex = kit::exchange(RequestHead::new(Method::GET, "shop", "/"));
        let mut fake = FakeRoute::new("r", "c");
        if let Some(route) = route {
            fake = fake.with("fault", kit::compile_route(&Factory, route, &server).unwrap());
        }
        ex.route = Some(Arc::new(fake));
        Self { server, filter, ex }
    }
    fn header(mut self, name: &'static str, value: &'static str) -> Self {
        self.ex.request.headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        self
    }
    async fn run(&mut self) -> Option<LocalReply> {
        kit::request(&*self.filter, "fault", &mut self.ex).await
    }
    fn count(&self, name: &str) -> u64 {
        self.server.stats.root().counter(&format!("http.test.fault.{name}")).value()
    }
    fn active(&self) -> i64 {
        self.server.stats.root().gauge("http.test.fault.active_faults").value()
    }
}

#[tokio::test(start_paused = true)]
async fn delays_then_aborts_by_route() {
    let route = HttpFault { delay: delay(200, 100), abort: abort(ErrorType::HttpStatus(503), 100), ..Default::default() };
    let mut kit = Kit::new(&HttpFault::default(), Some(&route)).header("x-envoy-downstream-service-cluster", "caller");
    let start = tokio::time::Instant::now();
    let reply = kit.run().await.unwrap();
    assert_eq!(start.elapsed(), Duration::from_millis(200));
    assert_eq!((reply.status, reply.details.as_ref(), reply.body.as_ref()), (503, "fault_filter_abort", b"fault filter abort".as_slice()));
    assert!(reply.flags.has(ResponseFlags::FAULT_INJECTED) && kit.ex.info.flags.has(ResponseFlags::DELAY_INJECTED));
    assert_eq!((kit.count("delays_injected"), kit.count("aborts_injected"), kit.count("caller.aborts_injected")), (1, 1, 1));
    assert_eq!(kit.active(), 1);
    kit.ex = kit::exchange(RequestHead::new(Method::GET, "shop", "/"));
    assert_eq!(kit.active(), 0);
}

#[tokio::test]
async fn an_empty_filter_and_zero_percent_do_nothing() {
    assert!(Kit::new(&HttpFault::default(), None).run().await.is_none());
    let never = HttpFault { abort: abort(ErrorType::HttpStatus(503), 0), ..Default::default() };
    assert!(Kit::new(&never, None).run().await.is_none());
}

#[tokio::test]
async fn grpc_and_header_aborts() {
    let grpc = HttpFault { abort: abort(ErrorType::GrpcStatus(14), 100), ..Default::default() };
    let reply = Kit::new(&grpc, None).run().await.unwrap();
    assert_eq!((reply.status, reply.grpc_status), (200, Some(14)));
    let header = HttpFault { abort: abort(ErrorType::HeaderAbort(HeaderAbort {}), 100), ..Default::default() };
    assert!(Kit::new(&header, None).run().await.is_none());
    assert_eq!(Kit::new(&header, None).header("x-envoy-fault-abort-request", "429").run().await.unwrap().status, 429);
    assert!(Kit::new(&header, None).header("x-envoy-fault-abort-request", "99").run().await.is_none());
    let reply = Kit::new(&header, None).header("x-envoy-fault-abort-grpc-request", "7").run().await.unwrap();
    assert_eq!(reply.grpc_status, Some(7));
    let lowered = Kit::new(&header, None).header("x-envoy-fault-abort-request", "429");
    assert!(lowered.header("x-envoy-fault-abort-request-percentage", "0").run().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn header_delays() {
    let by_header = FaultDelay { percentage: percent(100), fault_delay_secifier: Some(FaultDelaySecifier::HeaderDelay(HeaderDelay {})) };
    let config = HttpFault { delay: Some(by_header), ..Default::default() };
    let start = tokio::time::Instant::now();
    assert!(Kit::new(&config, None).header("x-envoy-fault-delay-request", "70").run().await.is_none());
    assert_eq!(start.elapsed(), Duration::from_millis(70));
}

#[tokio::test]
async fn conditions() {
    let always = HttpFault { abort: abort(ErrorType::HttpStatus(500), 100), ..Default::default() };
    let elsewhere = HttpFault { upstream_cluster: "other".into(), ..always.clone() };
    assert!(Kit::new(&elsewhere, None).run().await.is_none());
    let here = HttpFault { upstream_cluster: "c".into(), ..always.clone() };
    assert!(Kit::new(&here, None).run().await.is_some());
    let nodes = HttpFault { downstream_nodes: vec!["n1".into()], ..always.clone() };
    assert!(Kit::new(&nodes, None).run().await.is_none());
    assert!(Kit::new(&nodes, None).header("x-envoy-downstream-service-node", "n1").run().await.is_some());
    let matcher = HeaderMatcher {
        name: "x-test".into(),
        header_match_specifier: Some(HeaderMatchSpecifier::PresentMatch(true)),
        ..Default::default()
    };
    let headers = HttpFault { headers: vec![matcher], ..always };
    assert!(Kit::new(&headers, None).run().await.is_none());
    assert!(Kit::new(&headers, None).header("x-test", "1").run().await.is_some());
}

#[tokio::test]
async fn runtime_and_overflow() {
    let config = HttpFault { abort: abort(ErrorType::HttpStatus(500), 0), ..Default::default() };
    let mut kit = Kit::new(&config, None);
    kit.server.runtime.set("fault.http.abort.abort_percent", "100");
    kit.server.runtime.set("fault.http.abort.http_status", "404");
    assert_eq!(kit.run().await.unwrap().status, 404);
    let full = HttpFault { abort: abort(ErrorType::HttpStatus(500), 100), max_active_faults: Some(0), ..Default::default() };
    let mut kit = Kit::new(&full, None);
    assert!(kit.run().await.is_none());
    assert_eq!(kit.count("faults_overflow"), 1);
}

#[tokio::test(start_paused = true)]
async fn slows_responses() {
    let limit = FaultRateLimit { percentage: percent(100), limit_type: Some(LimitType::FixedLimit(FixedLimit { limit_kbps: 1 })) };
    let mut kit = Kit::new(&HttpFault { response_rate_limit: Some(limit), ..Default::default() }, None);
    assert!(kit.run().await.is_none());
    let start = tokio::time::Instant::now();
    kit::respond(&*kit.filter.clone(), "fault", &mut kit.ex, ResponseHead::new(StatusCode::OK), kit::data([[1; 2048].as_slice()]));
    assert_eq!(kit::collect(&mut kit.ex.response_body).await.unwrap().0.len(), 2048);
    assert!(start.elapsed() > Duration::from_millis(1500));
    assert_eq!(kit.count("response_rl_injected"), 1);
}

#[test]
fn wrong_configurations_are_refused() {
    let server = kit::server(Default::default());
    for (config, place) in [
        (HttpFault { abort: abort(ErrorType::HttpStatus(99), 1), ..Default::default() }, "abort.http_status"),
        (HttpFault { abort: Some(FaultAbort::default()), ..Default::default() }, "abort"),
        (HttpFault { delay: delay(-5, 1), ..Default::default() }, "delay.fixed_delay"),
    ] {
        let error = kit::compile(&Factory, &config, &server).unwrap_err();
        assert!(error.starts_with(place), "{error}");
    }
}
