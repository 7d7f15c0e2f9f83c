//! Tests of the filter: messages, results, names of methods.

use super::*;
use http::{HeaderValue, Method, StatusCode, header::CONTENT_TYPE};
use nuncio_core::registry::Server;
use nuncio_core::test_kit::{self as kit, FakeCluster};
use nuncio_core::{Exchange, Frame, Headers, RequestHead, ResponseHead};
use nuncio_proto::envoy::config::core::v3::{GrpcMethodList, grpc_method_list::Service};

const TWO: &[u8] = b"\0\0\0\0\x02ab\0\0\0\0\0";
const ONE: &[u8] = b"\0\0\0\0\x01a";

fn exchange(path: &'static str, content_type: &'static str) -> Exchange {
    let mut ex = kit::exchange(RequestHead::new(Method::POST, "shop", path));
    ex.request.headers.append(CONTENT_TYPE, HeaderValue::from_static(content_type));
    ex.request_body = kit::data([TWO]);
    kit::send_to(&mut ex, FakeCluster::new("c"), None);
    ex
}

async fn run(config: &FilterConfig, path: &'static str) -> (Arc<Server>, Exchange) {
    let server = kit::server(Default::default());
    let filter = kit::compile(&Factory, config, &server).unwrap();
    let mut ex = exchange(path, "application/grpc");
    kit::request(&*filter, "g", &mut ex).await;
    kit::collect(&mut ex.request_body).await.unwrap();
    let mut head = ResponseHead::new(StatusCode::OK);
    head.headers.append(CONTENT_TYPE, HeaderValue::from_static("application/grpc+proto"));
    let mut trailers = Headers::new();
    trailers.append(GRPC_STATUS, HeaderValue::from_static("5"));
    let data = [ONE, TWO].map(|d| Frame::Data(d.into()));
    let body = kit::body(data.into_iter().chain([Frame::Trailers(Box::new(trailers))]));
    kit::respond(&*filter, "g", &mut ex, head, body);
    kit::collect(&mut ex.response_body).await.unwrap();
    kit::complete(&*filter, "g", &mut ex);
    (server, ex)
}

fn value(server: &Server, name: &str) -> u64 {
    server.stats.root().counter(name).value()
}

#[tokio::test]
async fn counts_messages_and_results() {
    let config = FilterConfig { emit_filter_state: true, ..FilterConfig::default() };
    let (server, ex) = run(&config, "/pkg.Shop/Buy").await;
    let object = ex.info.filter_state.get(GRPC_STATS).unwrap();
    assert_eq!(object.as_string().as_deref(), Some("2,3"));
    let object = GrpcStatsObject::of(object).unwrap();
    assert_eq!((object.responses(), object.status()), (3, Some(5)));
    for (name, n) in
        [("request_message_count", 2), ("response_message_count", 3), ("5", 1), ("0", 0), ("failure", 1), ("success", 0), ("total", 1)]
    {
        assert_eq!(value(&server, &format!("cluster.c.grpc.{name}")), n, "{name}");
    }
}

#[tokio::test]
async fn methods_have_counters_where_asked_for() {
    let list = GrpcMethodList { services: vec![Service { name: "pkg.Shop".into(), method_names: vec!["Buy".into()] }] };
    let config = FilterConfig {
        per_method_stat_specifier: Some(PerMethodStatSpecifier::IndividualMethodStatsAllowlist(list)),
        replace_dots_in_grpc_service_name: true,
        ..FilterConfig::default()
    };
    let (server, ex) = run(&config, "/pkg.Shop/Buy").await;
    assert_eq!(value(&server, "cluster.c.grpc.pkg_Shop.Buy.total"), 1);
    assert!(ex.info.filter_state.get(GRPC_STATS).is_none());
    let (server, _) = run(&config, "/pkg.Shop/Other").await;
    assert_eq!(value(&server, "cluster.c.grpc.total"), 1);

    let all = FilterConfig { per_method_stat_specifier: Some(PerMethodStatSpecifier::StatsForAllMethods(true)), ..FilterConfig::default() };
    let (server, _) = run(&all, "/pkg.Shop/Other").await;
    assert_eq!(value(&server, "cluster.c.grpc.pkg.Shop.Other.failure"), 1);
}

#[tokio::test]
async fn other_requests_are_left_alone() {
    let config = FilterConfig { emit_filter_state: true, ..FilterConfig::default() };
    let filter = kit::compile(&Factory, &config, &kit::server(Default::default())).unwrap();
    let mut ex = exchange("/", "application/json");
    kit::request(&*filter, "g", &mut ex).await;
    assert!(ex.info.filter_state.get(GRPC_STATS).is_none());
}
