//! The filter against a real service.

use super::*;
use http::Method;
use nuncio_callout::test_kit::{Answer, GrpcServer, HTTP2, cluster, run};
use nuncio_core::registry::Server;
use nuncio_core::test_kit::{self as kit, FakeRoute};
use nuncio_core::views::ClusterView;
use nuncio_core::{Body, RequestHead, ResponseHead};
use nuncio_proto::envoy::extensions::filters::http::ratelimit::v3 as proto;
use nuncio_proto::json::{UnknownFields, parse_text};

fn read<M: nuncio_proto::Message + nuncio_proto::Name + Default>(yaml: &str) -> M {
    parse_text(yaml, UnknownFields::Refuse).unwrap_or_else(|e| panic!("{e:?}")).value
}

fn filter(server: &Arc<Server>, more: &str) -> Arc<dyn HttpFilter> {
    let yaml = format!(
        "{{domain: shop, rate_limit_service: {{transport_api_version: V3, grpc_service: {{envoy_grpc: {{cluster_name: limits}}}}}}, \
         timeout: 60s, rate_limits: [{{actions: [{{request_headers: {{header_name: x-user, descriptor_key: user}}}}]}}, \
         {{stage: 1, actions: [{{generic_key: {{descriptor_value: late}}}}]}}]{more}}}"
    );
    kit::compile(&Factory, &read::<proto::RateLimit>(&yaml), server).unwrap_or_else(|e| panic!("{e}"))
}

fn request(backend: &Arc<dyn ClusterView>) -> Exchange {
    let mut head = RequestHead::new(Method::GET, "shop.test", "/");
    head.headers.append(HeaderName::from_static("x-user"), HeaderValue::from_static("ann"));
    let mut ex = kit::exchange(head);
    ex.route = Some(Arc::new(FakeRoute::new("r", "backend")));
    ex.cluster = Some(backend.clone());
    ex
}

async fn set_up(yaml: &'static str) -> (GrpcServer, Arc<Server>, Arc<dyn ClusterView>) {
    let service = GrpcServer::start(move |_| Answer::message(&read::<RateLimitResponse>(yaml))).await;
    let server = kit::server(kit::fields([]));
    cluster(&server, "limits", service.address, HTTP2);
    let backend = cluster(&server, "backend", service.address, "");
    (service, server, backend)
}

fn counted(server: &Server, name: &str) -> u64 {
    server.stats.root().scope("cluster.backend.").counter(name).value()
}

fn asked(service: &GrpcServer) -> RateLimitRequest {
    service.calls.borrow().last().map(|c| c.decode()).unwrap_or_default()
}

fn text(headers: &Headers, name: &'static str) -> Option<String> {
    headers.get_str(&HeaderName::from_static(name)).map(str::to_string)
}

const OK: &str = "{overall_code: OK, statuses: [{code: OK, current_limit: {name: per-user, requests_per_unit: 5, unit: MINUTE}, limit_remaining: 3, \
                  duration_until_reset: 42s}, {code: OK, current_limit: {requests_per_unit: 9, unit: HOUR}, limit_remaining: 8}], \
                  response_headers_to_add: [{key: x-plan, value: free}], request_headers_to_add: [{key: x-left, value: '3'}], dynamic_metadata: {plan: free}}";

#[test]
fn requests_within_the_limit() {
    run(async {
        let (service, server, backend) = set_up(OK).await;
        let filter = filter(&server, ", enable_x_ratelimit_headers: DRAFT_VERSION_03, stat_prefix: edge");
        let mut ex = request(&backend);
        assert!(kit::request(&*filter, "limit", &mut ex).await.is_none());
        assert_eq!(text(&ex.request.headers, "x-left").as_deref(), Some("3"));
        assert!(ex.info.metadata(NAME).is_some());
        kit::respond(&*filter, "limit", &mut ex, ResponseHead::new(http::StatusCode::OK), Body::Empty);
        let headers = &ex.response.as_ref().unwrap().headers;
        let all =
            ["x-plan", "x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"].map(|n| text(headers, n).unwrap_or_default());
        assert_eq!(all, ["free", "5, 5;w=60;name=\"per-user\", 9;w=3600", "3", "42"]);
        assert_eq!(counted(&server, "ratelimit.edge.ok"), 1);
        let asked = asked(&service);
        assert_eq!((asked.domain.as_str(), asked.hits_addend, asked.descriptors.len()), ("shop", 0, 1));
        let entry = &asked.descriptors[0].entries[0];
        assert_eq!((entry.key.as_str(), entry.value.as_str(), asked.descriptors[0].hits_addend), ("user", "ann", None));
    });
}

#[test]
fn requests_over_the_limit() {
    run(async {
        let (_service, server, backend) =
            set_up("{overall_code: OVER_LIMIT, raw_body: c2xvdw==, response_headers_to_add: [{key: content-type, value: a/b}]}").await;
        let refusing = filter(
            &server,
            ", rate_limited_as_resource_exhausted: true, response_headers_to_add: [{header: {key: x-more, value: '%REQ(x-user)%'}}]",
        );
        let reply = kit::request(&*refusing, "limit", &mut request(&backend)).await.unwrap();
        assert_eq!(
            (reply.status, reply.body.as_ref(), reply.details.as_ref(), reply.grpc_status),
            (429, b"slow".as_ref(), "request_rate_limited", Some(8))
        );
        assert!(reply.flags.has(ResponseFlags::RATE_LIMITED));
        let headers = ["x-envoy-ratelimited", "content-type", "x-more"].map(|n| text(&reply.headers, n).unwrap_or_default());
        assert_eq!(headers, ["true", "a/b", "ann"]);
        let other = filter(&server, ", rate_limited_status: {code: ServiceUnavailable}, disable_x_envoy_ratelimited_header: true");
        let reply = kit::request(&*other, "limit", &mut request(&backend)).await.unwrap();
        assert_eq!((reply.status, text(&reply.headers, "x-envoy-ratelimited")), (503, None));
        let watching = filter(&server, ", filter_enforced: {default_value: {numerator: 0}}");
        let mut ex = request(&backend);
        assert!(kit::request(&*watching, "limit", &mut ex).await.is_none());
        server.runtime.set("ratelimit.http_filter_enforcing", "0");
        assert!(kit::request(&*refusing, "limit", &mut ex).await.is_none());
        assert_eq!((counted(&server, "ratelimit.over_limit"), counted(&server, "upstream_rq_429")), (4, 3));
    });
}

#[test]
fn failures_allow_unless_told_otherwise() {
    run(async {
        let server = kit::server(kit::fields([]));
        let service = GrpcServer::start(|_| Answer::Status(14, "down")).await;
        let backend: Arc<dyn ClusterView> = cluster(&server, "backend", service.address, "");
        let ask = async |more: &str| kit::request(&*filter(&server, more), "limit", &mut request(&backend)).await;
        assert!(ask("").await.is_none(), "there is no cluster");
        cluster(&server, "limits", service.address, HTTP2);
        assert!(ask("").await.is_none());
        let reply = ask(", failure_mode_deny: true").await.unwrap();
        assert_eq!((reply.status, reply.details.as_ref()), (500, "rate_limiter_error"));
        assert!(reply.flags.has(ResponseFlags::RATE_LIMIT_SERVICE_ERROR));
        assert_eq!(ask(", failure_mode_deny: true, status_on_error: {code: ServiceUnavailable}").await.unwrap().status, 503);
        assert!(ask(", failure_mode_deny: true, failure_mode_deny_percent: {default_value: {numerator: 0}}").await.is_none());
        assert_eq!((counted(&server, "ratelimit.error"), counted(&server, "ratelimit.failure_mode_allowed")), (5, 3));
    });
}

#[test]
fn what_does_not_count_is_not_asked_about() {
    run(async {
        let (service, server, backend) = set_up("{overall_code: OVER_LIMIT}").await;
        let pass = async |more: &str, ex: &mut Exchange| kit::request(&*filter(&server, more), "limit", ex).await.is_none();
        let mut ex = request(&backend);
        assert!(pass(", request_type: internal", &mut ex).await);
        ex.request.headers.insert(X_ENVOY_INTERNAL, HeaderValue::from_static("true"));
        assert!(pass(", request_type: external", &mut ex).await);
        assert!(pass(", filter_enabled: {default_value: {numerator: 0}}", &mut ex).await);
        ex.request.headers.remove(&HeaderName::from_static("x-user"));
        assert!(pass("", &mut ex).await, "no descriptor");
        assert!(service.calls.borrow().is_empty());
        assert!(!pass(", stage: 1", &mut ex).await);
        assert_eq!(asked(&service).descriptors[0].entries[0].value, "late");
    });
}

#[test]
fn routes_and_the_end_of_streams() {
    run(async {
        let (service, server, backend) = set_up(OK).await;
        let filter = filter(&server, "");
        let yaml = "{domain: other, rate_limits: [{actions: [{generic_key: {descriptor_value: a}}], hits_addend: {number: 3}, limit: {dynamic_metadata: {metadata_key: \
                    {key: ns, path: [{key: limit}]}}}}, {apply_on_stream_done: true, actions: [{generic_key: {descriptor_value: b}}], hits_addend: {format: '%BYTES_SENT%', is_negative_hits: true}}]}";
        let route = kit::compile_route(&Factory, &read::<proto::RateLimitPerRoute>(yaml), &server).unwrap();
        let mut ex = request(&backend);
        ex.route = Some(Arc::new(FakeRoute::new("r", "backend").with("limit", route)));
        let limit = kit::fields([
            ("requests_per_unit", nuncio_proto::Value { kind: Some(prost_types::value::Kind::NumberValue(7.0)) }),
            ("unit", kit::text("HOUR")),
        ]);
        ex.info.set_metadata("ns", kit::fields([("limit", kit::object(limit))]));
        kit::request(&*filter, "limit", &mut ex).await;
        let first = asked(&service);
        assert_eq!((first.domain.as_str(), first.descriptors.len(), first.descriptors[0].hits_addend), ("other", 1, Some(3)));
        assert_eq!(first.descriptors[0].limit.as_ref().map(|l| (l.requests_per_unit, l.unit)), Some((7, 3)));
        ex.info.bytes_sent = 11;
        kit::complete(&*filter, "limit", &mut ex);
        service.wait_for(2).await;
        let last = asked(&service);
        assert_eq!(
            (last.descriptors[0].entries[0].value.as_str(), last.descriptors[0].hits_addend, last.descriptors[0].is_negative_hits),
            ("b", Some(11), true)
        );
    });
}

#[test]
fn wrong_configurations_are_refused() {
    let server = kit::server(kit::fields([]));
    let base = "rate_limit_service: {transport_api_version: V3, grpc_service: {envoy_grpc: {cluster_name: a}}}";
    for (yaml, word) in [
        (format!("{{{base}}}"), "domain"),
        (format!("{{domain: a, request_type: some, {base}}}"), "request_type"),
        (format!("{{domain: a, stage: 11, {base}}}"), "stage"),
        ("{domain: a}".to_string(), "rate_limit_service"),
    ] {
        let error = kit::compile(&Factory, &read::<proto::RateLimit>(&yaml), &server).err().unwrap_or_default();
        assert!(error.contains(word), "{yaml}: {error}");
    }
}

#[test]
fn refused_clients_hear_when_to_come_again() {
    run(async {
        let over = "{overall_code: OVER_LIMIT, statuses: [{code: OVER_LIMIT, duration_until_reset: 3s}, {code: OVER_LIMIT, duration_until_reset: 42s}, {code: OK, duration_until_reset: 99s}]}";
        let (_service, server, backend) = set_up(over).await;
        let told = async |more: &str| {
            let reply = kit::request(&*filter(&server, more), "limit", &mut request(&backend)).await.unwrap();
            reply.headers.get_str(&header::RETRY_AFTER).map(str::to_string)
        };
        assert_eq!(told(", enable_retry_after_header: true").await.as_deref(), Some("42"));
        assert_eq!(told(", enable_retry_after_header: true, rate_limited_status: {code: ServiceUnavailable}").await, None);
        assert_eq!(told("").await, None);
    });
    run(async {
        let own = "{overall_code: OVER_LIMIT, statuses: [{code: OVER_LIMIT, duration_until_reset: 0s}], response_headers_to_add: [{key: retry-after, value: '7'}]}";
        let (_service, server, backend) = set_up(own).await;
        let reply = kit::request(&*filter(&server, ", enable_retry_after_header: true"), "limit", &mut request(&backend)).await.unwrap();
        assert_eq!(reply.headers.get_all(&header::RETRY_AFTER).collect::<Vec<_>>(), ["7"]);
    });
}
