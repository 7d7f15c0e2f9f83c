//! Tests of the filter: buckets, descriptors, headers, enforcement.

use super::*;
use http::{Method, StatusCode};
use nuncio_core::test_kit::{self as kit, FakeRoute};
use nuncio_core::{Body, RequestHead, ResponseHead};
use nuncio_proto::envoy::config::core::v3::{HeaderValue as ProtoHeader, HeaderValueOption, RuntimeFractionalPercent};
use nuncio_proto::envoy::config::route::v3::{RateLimit, rate_limit};
use nuncio_proto::envoy::extensions::common::ratelimit::v3::{LocalRateLimitDescriptor, rate_limit_descriptor};
use nuncio_proto::envoy::r#type::v3::{FractionalPercent, HttpStatus, TokenBucket};
use std::time::Duration;

fn percent(numerator: u32) -> Option<RuntimeFractionalPercent> {
    Some(RuntimeFractionalPercent { default_value: Some(FractionalPercent { numerator, denominator: 0 }), runtime_key: String::new() })
}
fn tokens(max: u32) -> Option<TokenBucket> {
    let fill_interval = Some(nuncio_proto::Duration { seconds: 60, nanos: 0 });
    Some(TokenBucket { max_tokens: max, tokens_per_fill: Some(max), fill_interval })
}
fn header(key: &str, value: &str) -> HeaderValueOption {
    HeaderValueOption { header: Some(ProtoHeader { key: key.into(), value: value.into(), ..Default::default() }), ..Default::default() }
}
fn config(max: u32) -> LocalRateLimit {
    LocalRateLimit {
        stat_prefix: "rl".into(),
        token_bucket: tokens(max),
        filter_enabled: percent(100),
        filter_enforced: percent(100),
        ..Default::default()
    }
}
fn exchange(tier: &str) -> Exchange {
    let mut ex = kit::exchange(RequestHead::new(Method::GET, "shop", "/"));
    ex.request.headers.append(HeaderName::from_static("x-tier"), HeaderValue::from_str(tier).unwrap());
    ex
}
async fn run(filter: &dyn HttpFilter, tier: &str) -> Option<LocalReply> {
    kit::request(filter, "rl", &mut exchange(tier)).await
}

#[tokio::test(start_paused = true)]
async fn refuses_beyond_the_bucket_and_recovers() {
    let server = kit::server(Default::default());
    let config = LocalRateLimit { response_headers_to_add: vec![header("x-limited", "yes")], enable_retry_after_header: true, ..config(2) };
    let filter = kit::compile(&Factory, &config, &server).unwrap();
    assert!(run(&*filter, "a").await.is_none());
    assert!(run(&*filter, "a").await.is_none());
    let reply = run(&*filter, "a").await.unwrap();
    assert_eq!((reply.status, reply.details.as_ref(), reply.body.as_ref()), (429, "local_rate_limited", b"local_rate_limited".as_slice()));
    assert!(reply.flags.has(ResponseFlags::RATE_LIMITED));
    assert_eq!(reply.headers.get_str(&HeaderName::from_static("x-limited")), Some("yes"));
    assert_eq!(reply.headers.get_str(&header::RETRY_AFTER), Some("30"));
    tokio::time::advance(Duration::from_secs(31)).await;
    assert!(run(&*filter, "a").await.is_none());
    let count = |n: &str| server.stats.root().counter(&format!("rl.http_local_rate_limit.{n}")).value();
    assert_eq!((count("enabled"), count("ok"), count("rate_limited"), count("enforced")), (4, 3, 1, 1));
}

#[tokio::test]
async fn watches_without_enforcement() {
    let config =
        LocalRateLimit { filter_enforced: percent(0), request_headers_to_add_when_not_enforced: vec![header("x-over", "1")], ..config(1) };
    let filter = kit::compile(&Factory, &config, &kit::server(Default::default())).unwrap();
    assert!(run(&*filter, "a").await.is_none());
    let mut ex = exchange("a");
    assert!(kit::request(&*filter, "rl", &mut ex).await.is_none());
    assert!(ex.request.headers.contains(&HeaderName::from_static("x-over")));
    let off = LocalRateLimit { filter_enabled: None, ..config };
    let filter = kit::compile(&Factory, &off, &kit::server(Default::default())).unwrap();
    for _ in 0..5 {
        assert!(run(&*filter, "a").await.is_none());
    }
}

#[tokio::test]
async fn descriptors_and_wildcards() {
    let action = rate_limit::action::RequestHeaders { header_name: "x-tier".into(), descriptor_key: "tier".into(), skip_if_absent: false };
    let action = rate_limit::Action { action_specifier: Some(rate_limit::action::ActionSpecifier::RequestHeaders(action)) };
    let descriptor = |value: &str, max| LocalRateLimitDescriptor {
        entries: vec![rate_limit_descriptor::Entry { key: "tier".into(), value: value.into() }],
        token_bucket: tokens(max),
        shadow_mode: false,
    };
    let config = LocalRateLimit {
        rate_limits: vec![RateLimit { actions: vec![action], ..Default::default() }],
        descriptors: vec![descriptor("gold", 3), descriptor("", 1)],
        max_dynamic_descriptors: Some(2),
        always_consume_default_token_bucket: Some(false),
        ..config(100)
    };
    let filter = kit::compile(&Factory, &config, &kit::server(Default::default())).unwrap();
    let mut passed = Vec::new();
    for tier in ["gold", "gold", "gold", "gold", "bob", "bob", "eve", "bob", "joe", "eve"] {
        passed.push(run(&*filter, tier).await.is_none());
    }
    // joe's bucket displaces that of eve, which was unused for longest, so that eve begins anew.
    assert_eq!(passed, [true, true, true, false, true, false, true, false, true, true]);
}

#[tokio::test]
async fn per_route_per_connection_and_headers() {
    let server = kit::server(Default::default());
    let filter = kit::compile(&Factory, &LocalRateLimit { stat_prefix: "x".into(), ..Default::default() }, &server).unwrap();
    let route = LocalRateLimit {
        enable_x_ratelimit_headers: 1,
        local_rate_limit_per_downstream_connection: true,
        status: Some(HttpStatus { code: 503 }),
        rate_limited_as_resource_exhausted: true,
        ..config(1)
    };
    let route = Arc::new(FakeRoute::new("r", "c").with("rl", kit::compile_route(&Factory, &route, &server).unwrap()));
    for _ in 0..2 {
        let mut ex = exchange("a");
        ex.route = Some(route.clone());
        assert!(kit::request(&*filter, "rl", &mut ex).await.is_none());
        kit::respond(&*filter, "rl", &mut ex, ResponseHead::new(StatusCode::OK), Body::Empty);
        let headers = &ex.response.as_ref().unwrap().headers;
        assert_eq!((headers.get_str(&LIMIT), headers.get_str(&REMAINING), headers.get_str(&RESET)), (Some("1"), Some("0"), Some("60")));
        let mut second = Exchange::new(ex.request.clone(), Body::Empty, nuncio_core::StreamInfo::new(ex.info.connection.clone(), None));
        second.route = Some(route.clone());
        let reply = kit::request(&*filter, "rl", &mut second).await.unwrap();
        assert_eq!((reply.status, reply.grpc_status), (503, Some(8)));
    }
}

#[test]
fn refused() {
    let server = kit::server(Default::default());
    let error = |c: &LocalRateLimit| kit::compile(&Factory, c, &server).unwrap_err();
    let fast =
        Some(TokenBucket { max_tokens: 1, tokens_per_fill: None, fill_interval: Some(nuncio_proto::Duration { seconds: 0, nanos: 1 }) });
    assert!(error(&LocalRateLimit { token_bucket: fast, ..config(1) }).contains("token_bucket.fill_interval"));
    assert!(error(&LocalRateLimit { stat_prefix: String::new(), ..config(1) }).contains("stat_prefix"));
    let route = LocalRateLimit { token_bucket: None, ..config(1) };
    assert!(kit::compile_route(&Factory, &route, &server).unwrap_err().contains("token_bucket"));
}

#[tokio::test]
async fn members_of_the_local_cluster_share_a_limit() {
    use nuncio_proto::envoy::extensions::common::ratelimit::v3::LocalClusterRateLimit;
    let server = kit::server(Default::default());
    let shared = LocalRateLimit { local_cluster_rate_limit: Some(LocalClusterRateLimit {}), ..config(10) };
    assert!(kit::compile(&Factory, &shared, &server).unwrap_err().contains("local_cluster_name"));
    server.clusters.set_local("me");
    let alone = kit::compile(&Factory, &shared, &server).unwrap();
    assert!(run(&*alone, "a").await.is_none(), "a cluster that is not there has one member");
    let both = LocalRateLimit { local_rate_limit_per_downstream_connection: true, ..shared.clone() };
    assert!(kit::compile(&Factory, &both, &server).unwrap_err().contains("per_downstream_connection"));
    // Three members: each request costs three tokens.
    let plan = limiter::Plan::compile(&config(10), &At::Root, &mut nuncio_core::diag::Report::default()).unwrap();
    let limiter = Limiter::new(&plan);
    let allowed: Vec<bool> = (0..4).map(|_| limiter.judge(&[], 3).allowed).collect();
    assert_eq!(allowed, [true, true, true, false]);
}

#[test]
fn statuses_are_those_that_have_a_name() {
    let server = kit::server(Default::default());
    for code in [0, 299, 499, 600] {
        let config = LocalRateLimit { status: Some(HttpStatus { code }), ..config(1) };
        assert!(kit::compile(&Factory, &config, &server).unwrap_err().contains("status"), "{code}");
    }
}
