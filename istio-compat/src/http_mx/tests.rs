//! Tests of the exchange of peer metadata in headers.

use super::*;
use http::Method;
use nuncio_core::test_kit::{self as kit, FakeCluster, fields, object, text};
use nuncio_core::{Body, Exchange, RequestHead, ResponseHead};
use nuncio_proto::Value;
use nuncio_proto::io::istio::http::peer_metadata::config::{Baggage, IstioHeaders, WorkloadDiscovery};

fn node() -> Struct {
    fields([
        ("NAME", text("gw-1")),
        ("NAMESPACE", text("istio-system")),
        ("WORKLOAD_NAME", text("gw")),
        ("CLUSTER_ID", text("Kubernetes")),
        ("LABELS", object(fields([("service.istio.io/canonical-name", text("gw"))]))),
    ])
}

fn headers_method(skip_external_clusters: bool) -> IstioHeaders {
    IstioHeaders { skip_external_clusters }
}

fn client(skip: bool) -> Arc<dyn HttpFilter> {
    let config = Config {
        upstream_discovery: vec![
            DiscoveryMethod { method_specifier: Some(Discover::IstioHeaders(headers_method(false))) },
            DiscoveryMethod { method_specifier: Some(Discover::WorkloadDiscovery(WorkloadDiscovery {})) },
        ],
        upstream_propagation: vec![PropagationMethod { method_specifier: Some(Propagate::IstioHeaders(headers_method(skip))) }],
        ..Config::default()
    };
    kit::compile(&Factory, &config, &kit::server(node())).unwrap()
}

fn server() -> Arc<dyn HttpFilter> {
    let config = Config {
        downstream_discovery: vec![DiscoveryMethod { method_specifier: Some(Discover::IstioHeaders(headers_method(false))) }],
        downstream_propagation: vec![PropagationMethod { method_specifier: Some(Propagate::IstioHeaders(headers_method(false))) }],
        ..Config::default()
    };
    kit::compile(&Factory, &config, &kit::server(node())).unwrap()
}

fn exchange() -> Exchange {
    kit::exchange(RequestHead::new(Method::GET, "shop", "/"))
}

fn encoded(peer: &Peer) -> HeaderValue {
    HeaderValue::from_str(&BASE64.encode(peer.to_struct().encode_to_vec())).unwrap()
}

fn cluster(name: &str, key: &str) -> FakeCluster {
    let flag = Value { kind: Some(Kind::BoolValue(true)) };
    FakeCluster { metadata: Some(kit::metadata("istio", fields([(key, flag)]))), ..FakeCluster::new(name) }
}

#[tokio::test]
async fn a_client_overwrites_what_the_caller_claims() {
    let filter = client(false);
    let mut ex = exchange();
    ex.request.headers.append(PEER_METADATA_ID, HeaderValue::from_static("liar"));
    ex.request.headers.append(PEER_METADATA, HeaderValue::from_static("bGlhcg=="));
    ex.request.headers.append(PEER_METADATA, HeaderValue::from_static("bGlhcg=="));
    kit::request(&*filter, "mx", &mut ex).await;
    assert_eq!(ex.request.headers.len(), 2);
    assert_eq!(ex.request.headers.get_str(&PEER_METADATA_ID), Some("router~10.0.0.2~gw.ns~ns.svc"));
    let said = ex.request.headers.get(&PEER_METADATA).unwrap().as_bytes();
    let said = Peer::from_struct(&Struct::decode(BASE64.decode(said).unwrap().as_slice()).unwrap(), &[]);
    assert_eq!((said.workload.as_str(), said.canonical_name.as_str()), ("gw", "gw"));
    assert!(ex.info.filter_state.get(DOWNSTREAM_PEER).is_none());
}

#[tokio::test]
async fn a_client_learns_from_the_response_and_strips_it() {
    let filter = client(false);
    let mut ex = exchange();
    kit::request(&*filter, "mx", &mut ex).await;
    let peer = Peer { workload: "shop".into(), namespace: "demo".into(), ..Peer::default() };
    let mut head = ResponseHead::new(http::StatusCode::OK);
    head.headers.append(PEER_METADATA, encoded(&peer));
    head.headers.append(PEER_METADATA_ID, HeaderValue::from_static("sidecar~x"));
    kit::respond(&*filter, "mx", &mut ex, head, Body::Empty);
    assert!(ex.response.as_ref().unwrap().headers.is_empty());
    assert_eq!(*Peer::find(&ex.info, UPSTREAM_PEER).unwrap(), peer);
    assert_eq!(ex.info.filter_state.get(UPSTREAM_PEER_OBJ).unwrap().field("workload").as_deref(), Some("shop"));
}

#[tokio::test]
async fn skipped_clusters_learn_nothing() {
    for (filter, cluster, told) in [
        (client(false), cluster("a", "disable_mx"), false),
        (client(false), cluster("a", "external"), true),
        (client(true), cluster("a", "external"), false),
        (client(true), FakeCluster::new("PassthroughCluster"), false),
        (client(false), FakeCluster::new("PassthroughCluster"), true),
    ] {
        let mut ex = exchange();
        kit::send_to(&mut ex, cluster, None);
        kit::request(&*filter, "mx", &mut ex).await;
        assert_eq!(ex.request.headers.contains(&PEER_METADATA), told);
    }
}

#[tokio::test]
async fn a_server_reads_strips_and_answers_only_what_was_asked() {
    let filter = server();
    let mut ex = exchange();
    let peer = Peer { workload: "client".into(), ..Peer::default() };
    ex.request.headers.append(PEER_METADATA, encoded(&peer));
    kit::request(&*filter, "mx", &mut ex).await;
    assert!(ex.request.headers.is_empty());
    assert_eq!(Peer::find(&ex.info, DOWNSTREAM_PEER).unwrap().workload, "client");
    kit::respond(&*filter, "mx", &mut ex, ResponseHead::new(http::StatusCode::OK), Body::Empty);
    let headers = &ex.response.as_ref().unwrap().headers;
    assert!(headers.contains(&PEER_METADATA) && !headers.contains(&PEER_METADATA_ID));

    let mut ex = exchange();
    kit::request(&*filter, "mx", &mut ex).await;
    kit::respond(&*filter, "mx", &mut ex, ResponseHead::new(http::StatusCode::OK), Body::Empty);
    assert!(ex.response.as_ref().unwrap().headers.is_empty());
}

#[tokio::test]
async fn garbage_is_no_peer_and_is_stripped() {
    let filter = server();
    for garbage in ["!!!!", "AAAA", "////", "CgA"] {
        let mut ex = exchange();
        ex.request.headers.append(PEER_METADATA, HeaderValue::from_static(garbage));
        kit::request(&*filter, "mx", &mut ex).await;
        assert!(ex.request.headers.is_empty());
    }
}

#[test]
fn the_peer_cache_is_bounded() {
    let labels: Arc<[String]> = Vec::new().into();
    for i in 0..3 * MAX_PEERS {
        let mut headers = Headers::new();
        headers.append(PEER_METADATA, encoded(&Peer { workload: i.to_string(), ..Peer::default() }));
        assert_eq!(from_headers(&headers, &labels).unwrap().workload, i.to_string());
    }
    assert!(PEERS.with_borrow(|p| p.len()) <= MAX_PEERS);
}

#[test]
fn baggage_is_only_discovered_downstream() {
    let method = DiscoveryMethod { method_specifier: Some(Discover::Baggage(Baggage {})) };
    let config = Config { upstream_discovery: vec![method], shared_with_upstream: true, ..Config::default() };
    let (_, report) = kit::compile_in(&Factory, &config, &kit::server(node()), Default::default()).unwrap();
    assert_eq!(report.items.len(), 2);
}
