//! Tests of Istio's standard metrics: labels, counts, reporting intervals.

use super::*;
use crate::peer::{NO_PEER, Peer, PeerState, UPSTREAM_PEER};
use ::http::{HeaderValue, Method, StatusCode, header::CONTENT_TYPE};
use nuncio_core::filter_state::StringState;
use nuncio_core::test_kit::{self as kit, FakeCluster, FakeHost, fields, list, object, text};
use nuncio_core::{Body, Exchange, RequestHead, ResponseFlags, ResponseHead};
use nuncio_filters::grpc_stats;
use nuncio_proto::envoy::extensions::filters::http::grpc_stats::v3::FilterConfig as GrpcStatsConfig;
use nuncio_proto::stats::{MetricConfig, MetricDefinition, MetricType};
use std::rc::Rc;

fn node() -> Struct {
    fields([
        ("NAMESPACE", text("istio-system")),
        ("WORKLOAD_NAME", text("gw")),
        ("CLUSTER_ID", text("Kubernetes")),
        ("ISTIO_VERSION", text("1.30")),
        ("LABELS", object(fields([("service.istio.io/canonical-name", text("gw-svc")), ("app", text("gw-app"))]))),
    ])
}

fn cluster() -> FakeCluster {
    let service = fields([("host", text("shop.demo.svc")), ("name", text("shop")), ("namespace", text("demo"))]);
    let metadata = kit::metadata("istio", fields([("services", list(vec![object(service)]))]));
    FakeCluster { metadata: Some(metadata), ..FakeCluster::new("outbound|80||shop.demo.svc") }
}

fn host() -> FakeHost {
    FakeHost::new(Some(kit::metadata("istio", fields([("workload", text("shop;demo;shop-canon;v1;Kubernetes"))]))))
}

fn config() -> PluginConfig {
    PluginConfig { disable_host_header_fallback: true, ..PluginConfig::default() }
}

fn finished(filter: &dyn HttpFilter, ex: &mut Exchange, status: StatusCode) {
    kit::respond(filter, "istio.stats", ex, ResponseHead::new(status), Body::Empty);
    kit::complete(filter, "istio.stats", ex);
}

async fn request(filter: &dyn HttpFilter) -> Exchange {
    let mut ex = kit::exchange(RequestHead::new(Method::GET, "shop.example", "/a?b"));
    kit::send_to(&mut ex, cluster(), Some(host()));
    kit::request(filter, "istio.stats", &mut ex).await;
    ex
}

fn prometheus(server: &Server) -> Vec<String> {
    let all: String = server.stats.prometheus(&nuncio_core::stats::Query::default()).text();
    all.lines().filter(|l| l.starts_with("istio")).map(ToString::to_string).collect()
}

#[tokio::test]
async fn a_gateway_reports_as_source_with_endpoint_metadata() {
    let server = kit::server(node());
    let filter = kit::compile(&HttpFactory, &config(), &server).unwrap();
    let mut ex = request(&*filter).await;
    ex.info.upstream_mut().tls =
        Some(kit::tls(None, &["spiffe://cluster.local/ns/demo/sa/shop"], &["spiffe://cluster.local/ns/istio-system/sa/gw"]));
    ex.info.flags.set(ResponseFlags::UPSTREAM_CONNECTION_FAILURE);
    finished(&*filter, &mut ex, StatusCode::SERVICE_UNAVAILABLE);
    let all = prometheus(&server);
    let expected = concat!(
        "istio_requests_total{reporter=\"source\",source_workload=\"gw\",source_canonical_service=\"gw-svc\",source_canonical_revision=\"\",",
        "source_workload_namespace=\"istio-system\",source_principal=\"spiffe://cluster.local/ns/istio-system/sa/gw\",source_app=\"gw-app\",",
        "source_version=\"\",source_cluster=\"Kubernetes\",destination_workload=\"shop\",destination_workload_namespace=\"demo\",",
        "destination_principal=\"spiffe://cluster.local/ns/demo/sa/shop\",destination_app=\"unknown\",destination_version=\"unknown\",",
        "destination_service=\"shop.demo.svc\",destination_canonical_service=\"shop-canon\",destination_canonical_revision=\"v1\",",
        "destination_service_name=\"shop\",destination_service_namespace=\"demo\",destination_cluster=\"Kubernetes\",",
        "request_protocol=\"http\",response_code=\"503\",grpc_response_status=\"\",response_flags=\"UF\",",
        "connection_security_policy=\"unknown\"} 1"
    );
    assert!(all.iter().any(|l| l == expected), "{all:#?}");
    assert!(all.iter().any(|l| l == "istio_build{component=\"proxy\",tag=\"1.30\"} 1"), "{all:#?}");
    for name in ["istio_request_duration_milliseconds_bucket{", "istio_request_bytes_count{", "istio_response_bytes_sum{"] {
        assert!(all.iter().any(|l| l.starts_with(name)), "{name}");
    }
}

#[tokio::test]
async fn discovered_peers_win_over_endpoint_metadata() {
    let server = kit::server(node());
    let filter = kit::compile(&HttpFactory, &config(), &server).unwrap();
    let mut ex = request(&*filter).await;
    let peer = Peer { workload: "shop-v2".into(), version: "v2".into(), identity: "spiffe://t/ns/x/sa/y".into(), ..Peer::default() };
    ex.info.filter_state.set(UPSTREAM_PEER, Arc::new(PeerState(Arc::new(peer))));
    finished(&*filter, &mut ex, StatusCode::OK);
    let all = prometheus(&server).join("\n");
    for label in [
        "destination_workload=\"shop-v2\"",
        "destination_version=\"v2\"",
        "destination_workload_namespace=\"x\"",
        "destination_principal=\"spiffe://t/ns/x/sa/y\"",
        "destination_canonical_revision=\"latest\"",
        "source_principal=\"unknown\"",
        "response_flags=\"-\"",
    ] {
        assert!(all.contains(label), "{label} in {all}");
    }
}

#[tokio::test]
async fn an_inbound_listener_reports_as_destination() {
    let server = kit::server(node());
    let (filter, _) = kit::compile_in(&HttpFactory, &PluginConfig::default(), &server, TrafficDirection::Inbound).unwrap();
    let mut connection = kit::connection();
    connection.tls = Some(kit::tls(None, &["spiffe://t/ns/client-ns/sa/c"], &["spiffe://t/ns/me/sa/m"]));
    let info = StreamInfo::new(Rc::new(connection), None);
    let mut ex = Exchange::new(RequestHead::new(Method::GET, "host.example", "/"), Body::Empty, info);
    kit::request(&*filter, "istio.stats", &mut ex).await;
    finished(&*filter, &mut ex, StatusCode::OK);
    let all = prometheus(&server).join("\n");
    for label in [
        "reporter=\"destination\"",
        "source_principal=\"spiffe://t/ns/client-ns/sa/c\"",
        "source_workload_namespace=\"client-ns\"",
        "source_workload=\"unknown\"",
        "destination_workload=\"gw\"",
        "destination_service=\"host.example\"",
        "destination_service_name=\"host.example\"",
        "connection_security_policy=\"mutual_tls\"",
    ] {
        assert!(all.contains(label), "{label} in {all}");
    }
}

#[tokio::test]
async fn routes_and_clusters_that_stand_for_no_service() {
    for (route, cluster, name) in [
        (Some("block_all"), "x", "BlackHoleCluster"),
        (Some("allow_any"), "x", "PassthroughCluster"),
        (None, "InboundPassthroughCluster", "InboundPassthroughCluster"),
    ] {
        let server = kit::server(node());
        let filter = kit::compile(&HttpFactory, &config(), &server).unwrap();
        let mut ex = request(&*filter).await;
        ex.info.route_name = route.map(Into::into);
        kit::send_to(&mut ex, FakeCluster::new(cluster), None);
        finished(&*filter, &mut ex, StatusCode::OK);
        let all = prometheus(&server).join("\n");
        assert!(all.contains(&format!("destination_service_name=\"{name}\"")), "{all}");
        assert!(all.contains("destination_service=\"unknown\""), "{all}");
    }
}

#[tokio::test]
async fn telemetry_overrides() {
    let metric = |name: &str| MetricConfig { name: name.into(), ..MetricConfig::default() };
    let dimension = |label: &str, source: &str| (label.to_string(), source.to_string());
    let config = PluginConfig {
        metrics: vec![
            MetricConfig { tags_to_remove: vec!["source_app".into(), "nonsense".into()], ..metric("") },
            MetricConfig {
                dimensions: [
                    dimension("request_host", "request.host"),
                    dimension("response_code", "string(response.code / 100) + 'xx'"),
                    dimension("team", "request.headers['x-team']"),
                    dimension("wrong", "1 +"),
                ]
                .into(),
                ..metric("requests_total")
            },
            MetricConfig { drop: true, ..metric("request_bytes") },
            MetricConfig { dimensions: [dimension("method", "request.method")].into(), ..metric("custom_total") },
        ],
        definitions: vec![
            MetricDefinition { name: "custom_total".into(), value: "response.code".into(), r#type: MetricType::Counter.into() },
            MetricDefinition { name: "requests_total".into(), value: "1".into(), r#type: 0 },
        ],
        ..config()
    };
    let server = kit::server(node());
    let (filter, report) = kit::compile_in(&HttpFactory, &config, &server, TrafficDirection::Outbound).unwrap();
    assert_eq!(report.items.len(), 3, "{:?}", report.items);
    let mut ex = request(&*filter).await;
    finished(&*filter, &mut ex, StatusCode::NOT_FOUND);
    let all = prometheus(&server);
    let requests = all.iter().find(|l| l.starts_with("istio_requests_total{")).unwrap();
    assert!(requests.contains("request_host=\"shop.example\"") && requests.contains("response_code=\"4xx\""), "{requests}");
    assert!(requests.contains("team=\"unknown\"") && !requests.contains("source_app") && !requests.contains("wrong"), "{requests}");
    assert!(!all.iter().any(|l| l.contains("source_app") || l.starts_with("istio_request_bytes")));
    assert!(all.iter().any(|l| l == "istio_custom_total{method=\"GET\"} 404"), "{all:#?}");
}

#[test]
fn unsupported_expressions_are_refused_by_name() {
    let metric = MetricConfig { dimensions: [("l".to_string(), "'%s'.format([1])".to_string())].into(), ..MetricConfig::default() };
    let config = PluginConfig { metrics: vec![metric], ..config() };
    let error = kit::compile(&HttpFactory, &config, &kit::server(node())).unwrap_err();
    assert!(error.contains("metrics[0].dimensions[\"l\"]") && error.contains("format()"), "{error}");
}

#[test]
fn ignored_fields_are_named() {
    let config = PluginConfig { stat_prefix: "x".into(), debug: true, ..PluginConfig::default() };
    let (_, report) = kit::compile_in(&HttpFactory, &config, &kit::server(node()), TrafficDirection::Outbound).unwrap();
    assert_eq!(report.items.len(), 2);
}

#[tokio::test]
async fn label_sets_are_bounded() {
    let config = PluginConfig {
        metrics: vec![MetricConfig { dimensions: [("path".to_string(), "request.path".to_string())].into(), ..MetricConfig::default() }],
        ..config()
    };
    let server = kit::server(node());
    let filter = kit::compile(&HttpFactory, &config, &server).unwrap();
    for i in 0..series::MAX_SETS + 20 {
        let mut ex = kit::exchange(RequestHead::new(Method::GET, "shop.example", format!("/{i}")));
        kit::request(&*filter, "istio.stats", &mut ex).await;
        finished(&*filter, &mut ex, StatusCode::OK);
    }
    let overflow: Vec<_> =
        prometheus(&server).into_iter().filter(|l| l.starts_with("istio_requests_total") && l.contains("overflow")).collect();
    assert_eq!(overflow.len(), 1);
    assert!(overflow[0].ends_with(" 20"), "{overflow:?}");
}

#[tokio::test(start_paused = true)]
async fn grpc_reports_status_and_messages() {
    let server = kit::server(node());
    let filter = kit::compile(&HttpFactory, &config(), &server).unwrap();
    let counts = kit::compile(&grpc_stats::Factory, &GrpcStatsConfig { emit_filter_state: true, ..Default::default() }, &server).unwrap();
    let mut ex = kit::exchange(RequestHead::new(Method::POST, "shop.example", "/s/m"));
    kit::send_to(&mut ex, cluster(), Some(host()));
    ex.request.headers.append(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    ex.request_body = kit::data([b"\0\0\0\0\0\0\0\0\0\0".as_slice()]);
    // Each filter has its own place in the chain.
    let run = |ex: &mut Exchange| {
        let cx = nuncio_core::filter::FilterCx { ex, name: "g", index: 1 };
        let _ = counts.on_request(cx);
    };
    run(&mut ex);
    kit::request(&*filter, "istio.stats", &mut ex).await;
    kit::collect(&mut ex.request_body).await.unwrap();
    finished(&*filter, &mut ex, StatusCode::NOT_FOUND);
    let all = prometheus(&server);
    let find = |name: &str| all.iter().find(|l| l.starts_with(name)).cloned().unwrap_or_default();
    assert!(
        find("istio_requests_total{").contains("request_protocol=\"grpc\",response_code=\"404\",grpc_response_status=\"12\""),
        "{all:#?}"
    );
    let messages = find("istio_request_messages_total{");
    assert!(messages.ends_with("} 2") && !messages.contains("response_code"), "{messages}");
}

#[test]
fn grpc_status_of_a_stream() {
    let mut info = kit::stream_info();
    let with = |value: &'static str| {
        let mut headers = Headers::new();
        headers.append(::http::HeaderName::from_static("grpc-status"), HeaderValue::from_static(value));
        headers
    };
    assert_eq!(grpc_status(None, None, &info), None);
    info.response_code = 200;
    assert_eq!(grpc_status(None, None, &info), Some(2));
    assert_eq!(grpc_status(Some(&with("5")), Some(&with("0")), &info), Some(5));
    assert_eq!(grpc_status(None, Some(&with("0")), &info), Some(0));
    assert_eq!(grpc_status(Some(&with("99")), None, &info), Some(-1));
    assert_eq!(grpc_status(Some(&with("x")), None, &info), Some(-1));
    info.grpc_status = Some(14);
    assert_eq!(grpc_status(None, None, &info), Some(14));
}

#[test]
fn tcp_reports_open_bytes_and_closed() {
    let server = kit::server(node());
    let scope = server.stats.root();
    let mut report = nuncio_core::diag::Report::new();
    let mut cx = FactoryCx { server: &server, scope: &scope, direction: TrafficDirection::Outbound, report: &mut report };
    let config = NetworkFactory.compile(&config().encode_to_vec(), &At::Root, &mut cx).unwrap();
    let mut info = kit::stream_info();
    info.upstream_mut().cluster = Some(Arc::new(cluster()));
    info.upstream_mut().host = Some(Arc::new(host()));
    let mut filter = config.create(&info.connection).unwrap();
    assert_eq!(filter.report_interval(), Some(Duration::from_secs(5)));
    assert!(!filter.wants_data());
    info.connection.rx_bytes.set(10);
    filter.on_report(&mut info);
    let find = |name: &str| prometheus(&server).into_iter().find(|l| l.starts_with(name)).unwrap_or_default();
    assert_eq!(find("istio_tcp"), "");
    info.upstream_mut().filter_state.set(NO_PEER, Arc::new(StringState("true".into())));
    filter.on_report(&mut info);
    info.connection.rx_bytes.set(30);
    info.connection.tx_bytes.set(7);
    filter.on_close(&mut info);
    let received = find("istio_tcp_received_bytes_total{");
    assert!(received.ends_with("} 30"), "{received}");
    assert!(received.contains("request_protocol=\"tcp\",response_flags=\"-\",connection_security_policy=\"unknown\""), "{received}");
    assert!(received.contains("destination_workload=\"shop\""));
    assert!(find("istio_tcp_sent_bytes_total{").ends_with("} 7"));
    assert!(find("istio_tcp_connections_opened_total{").ends_with("} 1"));
    assert!(find("istio_tcp_connections_closed_total{").ends_with("} 1"));
}
