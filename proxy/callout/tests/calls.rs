//! Calls against services that answer well, badly, slowly and not at all, through real clusters.
#![allow(clippy::unwrap_used)] // A test that cannot go on stops.

use bytes::Bytes;
use http::{Method, StatusCode};
use nuncio_callout::test_kit::{Answer, GrpcServer, HTTP2, HttpServer, cluster, run};
use nuncio_callout::{CalloutError, FetchOptions, GrpcClient, HttpTarget, compile_retry, fetch};
use nuncio_core::diag::{At, Report};
use nuncio_core::registry::Server;
use nuncio_core::test_kit as kit;
use nuncio_core::{RequestHead, StreamError};
use nuncio_format::FormatContext;
use nuncio_proto::Duration as Message;
use nuncio_proto::envoy::config::core::v3::{GrpcService, HttpUri, RetryPolicy};
use nuncio_proto::json::{UnknownFields, parse_text};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

fn server() -> Arc<Server> {
    kit::server(kit::fields([]))
}

fn value(server: &Server, name: &str) -> String {
    let all: String = server.stats.text(&Default::default()).collect();
    let line = all.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(": ").map(str::to_string));
    line.unwrap_or_default()
}

fn get() -> RequestHead {
    RequestHead::new(Method::GET, "svc", "/")
}

fn ok(body: &str) -> Option<String> {
    Some(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()))
}

#[test]
fn a_request_and_its_answer() {
    run(async {
        let service = HttpServer::start(|_| ok("hello")).await;
        let server = server();
        cluster(&server, "svc", service.address, "");
        let slot = server.clusters.slot("svc");
        let mut head = RequestHead::new(Method::POST, "svc.test", "/check?a=b");
        head.headers.append(http::HeaderName::from_static("x-forwarded-for"), http::HeaderValue::from_static("1.2.3.4"));
        let (head, body) = fetch(&slot, head, Bytes::from_static(b"data"), &FetchOptions::default()).await.unwrap();
        assert_eq!((head.status, body), (StatusCode::OK, Bytes::from_static(b"hello")));
        let seen = service.last();
        assert!(seen.starts_with("POST /check?a=b HTTP/1.1\r\nhost: svc.test\r\n") && seen.ends_with("\r\n\r\ndata"), "{seen}");
        for line in ["content-length: 4", "x-envoy-internal: true", "x-forwarded-for: 1.2.3.4,", "x-envoy-expected-rq-timeout-ms: 15000"] {
            assert!(seen.contains(line), "{line} in {seen}");
        }
        for (name, wanted) in [("upstream_rq_total", "1"), ("upstream_rq_200", "1"), ("internal.upstream_rq_200", "1")] {
            assert_eq!(value(&server, &format!("cluster.svc.{name}")), wanted, "{name}");
        }
    });
}

#[test]
fn failures_have_names() {
    run(async {
        let server = server();
        let options = FetchOptions { max_body: 10, timeout: Some(Duration::from_millis(50)), ..FetchOptions::default() };
        let unknown = fetch(&server.clusters.slot("nope"), get(), Bytes::new(), &options).await;
        assert_eq!(unknown.unwrap_err(), CalloutError::UnknownCluster);

        let long = HttpServer::start(|_| ok("01234567890")).await;
        let silent = HttpServer::start(|_| None).await;
        let closing = HttpServer::start(|_| Some(String::new())).await;
        let garbage = HttpServer::start(|_| Some("what is this\r\n\r\n".to_string())).await;
        let endless = HttpServer::start(|_| {
            Some("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n5\r\nhello\r\n5\r\nhello\r\n".to_string())
        })
        .await;
        let gone = { HttpServer::start(|_| None).await.address };
        for (name, address) in [
            ("long", long.address),
            ("silent", silent.address),
            ("closing", closing.address),
            ("garbage", garbage.address),
            ("endless", endless.address),
            ("gone", gone),
        ] {
            cluster(&server, name, address, "outlier_detection: {consecutive_5xx: 1}");
        }
        let ask = async |name: &str| fetch(&server.clusters.slot(name), get(), Bytes::new(), &options).await.unwrap_err();
        assert_eq!(ask("long").await, CalloutError::TooLarge);
        assert_eq!(ask("endless").await, CalloutError::TooLarge);
        assert_eq!(ask("silent").await, CalloutError::Timeout);
        assert!(matches!(ask("closing").await, CalloutError::Stream(StreamError::ConnectionClosed(_))));
        assert!(matches!(ask("garbage").await, CalloutError::Stream(StreamError::Protocol(_))));
        assert!(matches!(ask("gone").await, CalloutError::Stream(StreamError::ConnectFailed(_))));
        assert_eq!(value(&server, "cluster.silent.upstream_rq_timeout"), "1");
        assert_eq!(value(&server, "cluster.silent.upstream_rq_504"), "1");
        assert_eq!(value(&server, "cluster.gone.upstream_rq_503"), "1");
        assert_eq!(value(&server, "cluster.gone.outlier_detection.ejections_detected_consecutive_5xx"), "1");
        assert_eq!(value(&server, "cluster.silent.upstream_rq_active"), "0", "a call that was given up holds nothing");
    });
}

#[test]
fn circuit_breakers_count() {
    run(async {
        let service = HttpServer::start(|_| ok("x")).await;
        let server = server();
        cluster(&server, "svc", service.address, "circuit_breakers: {thresholds: [{max_requests: 0}]}");
        let error = fetch(&server.clusters.slot("svc"), get(), Bytes::new(), &FetchOptions::default()).await.unwrap_err();
        assert_eq!(error, CalloutError::Stream(StreamError::Overflow));
    });
}

#[test]
fn tries_again_as_the_policy_says() {
    run(async {
        let count = Arc::new(AtomicUsize::new(0));
        let counted = count.clone();
        let service = HttpServer::start(move |_| match counted.fetch_add(1, Ordering::SeqCst) {
            0 => Some("HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n".to_string()),
            1 => Some(String::new()),
            _ => ok("third"),
        })
        .await;
        let server = server();
        cluster(&server, "svc", service.address, "");
        let policy: RetryPolicy =
            parse_text("{num_retries: 2, retry_back_off: {base_interval: 0.001s, max_interval: 5s}}", UnknownFields::Refuse).unwrap().value;
        let mut report = Report::new();
        let retry = compile_retry(Some(&policy), None, &server, &At::Root, &mut report).unwrap();
        let options = FetchOptions { retry, ..FetchOptions::default() };
        let (_, body) = fetch(&server.clusters.slot("svc"), get(), Bytes::new(), &options).await.unwrap();
        assert_eq!((body.as_ref(), count.load(Ordering::SeqCst)), (b"third".as_ref(), 3));
        assert_eq!(value(&server, "cluster.svc.upstream_rq_retry"), "2");
        assert_eq!(value(&server, "cluster.svc.circuit_breakers.default.rq_retry_open"), "0");
    });
}

#[test]
fn uris() {
    let server = server();
    let target = |yaml: &str| {
        let uri: HttpUri = parse_text(yaml, UnknownFields::Refuse).unwrap().value;
        let mut report = Report::new();
        HttpTarget::compile(&uri, &server, &At::Root, &mut report).ok_or(report.summary())
    };
    let full = target("{uri: 'https://a.test:8443/keys?x=1', cluster: c, timeout: 2s}").unwrap();
    let parts = (full.scheme.as_str(), full.authority.as_str(), full.path.as_str(), full.timeout);
    assert_eq!(parts, ("https", "a.test:8443", "/keys?x=1", Duration::from_secs(2)));
    assert_eq!(target("{uri: a.test, cluster: c, timeout: 2s}").unwrap().path, "/");
    for bad in ["{uri: a.test, timeout: 1s}", "{uri: a.test, cluster: c}", "{uri: 'http:///x', cluster: c, timeout: 1s}"] {
        assert!(target(bad).is_err(), "{bad}");
    }
}

fn client(server: &Arc<Server>, yaml: &str) -> Result<GrpcClient, String> {
    let service: GrpcService = parse_text(yaml, UnknownFields::Refuse).unwrap().value;
    let mut report = Report::new();
    GrpcClient::compile(&service, server, &At::Root, &mut report).ok_or(report.summary())
}

#[test]
fn unary_calls() {
    run(async {
        let service = GrpcServer::start(|call| match call.decode::<Message>().seconds {
            1 => Answer::message(&Message { seconds: 10, nanos: 0 }),
            2 => Answer::Status(7, "no%20entry"),
            3 => Answer::Http(503),
            4 => Answer::Raw(&[0, 0, 0, 0, 2, 0xff, 0xff]),
            5 => Answer::Reset,
            6 => Answer::Raw(&[0, 0xff, 0xff, 0xff, 0xff]),
            7 => Answer::Nothing,
            _ => Answer::Hang,
        })
        .await;
        let server = server();
        cluster(&server, "svc", service.address, HTTP2);
        let yaml = "{envoy_grpc: {cluster_name: svc, authority: auth.test}, timeout: 0.05s, initial_metadata: [{key: x-a, value: fixed}, \
                    {key: x-path, value: '%REQ(:PATH)%'}]}";
        let client = client(&server, yaml).unwrap();
        let ex = kit::exchange(RequestHead::new(Method::GET, "shop", "/cart"));
        let ask = async |seconds| {
            client.unary::<Message>("/test.Service/Ask", &Message { seconds, nanos: 0 }, Some(&FormatContext::exchange(&ex))).await
        };
        assert_eq!(ask(1).await.unwrap().seconds, 10);
        let call = service.calls.borrow().first().cloned().unwrap();
        let header = |name: &str| call.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_string();
        assert_eq!((call.path.as_str(), header("x-a").as_str(), header("x-path").as_str()), ("/test.Service/Ask", "fixed", "/cart"));
        assert_eq!(
            (header("te"), header("content-type"), header("grpc-timeout")),
            ("trailers".into(), "application/grpc".into(), "50m".into())
        );
        let error = ask(2).await.unwrap_err();
        assert_eq!((error.code, error.message.as_str(), error.cause), (7, "no entry", None));
        let codes = [ask(3).await, ask(4).await, ask(5).await, ask(6).await, ask(7).await, ask(8).await].map(|r| r.unwrap_err().code);
        assert_eq!(codes, [14, 13, 14, 8, 13, 4]);
        assert_eq!(value(&server, "cluster.svc.upstream_rq_active"), "0");
    });
}

#[test]
fn streams_both_ways() {
    run(async {
        let service = GrpcServer::start(|call| match call.decode::<Message>().seconds {
            9 => Answer::Status(8, "enough"),
            n => Answer::message(&Message { seconds: n * 2, nanos: 0 }),
        })
        .await;
        let server = server();
        cluster(&server, "svc", service.address, HTTP2);
        let client = client(&server, "{envoy_grpc: {cluster_name: svc}}").unwrap();
        let mut stream = client.stream::<Message>("/test.Service/Talk", None).await.unwrap();
        for n in 1..4 {
            stream.send(&Message { seconds: n, nanos: 0 });
            assert_eq!(stream.message().await.unwrap().unwrap().seconds, n * 2);
        }
        assert_eq!(stream.queued(), 0);
        stream.finish();
        assert_eq!(stream.message().await, Ok(None));
        drop(stream);
        let mut stream = client.stream::<Message>("/test.Service/Talk", None).await.unwrap();
        stream.send(&Message { seconds: 9, nanos: 0 });
        assert_eq!(stream.message().await.unwrap_err().code, 8);
        assert_eq!(stream.message().await, Ok(None), "it is over");
        drop(stream);
        assert_eq!(value(&server, "cluster.svc.upstream_rq_active"), "0");
        assert_eq!(client_of_nobody(&server).await, 14);
    });
}

async fn client_of_nobody(server: &Arc<Server>) -> u32 {
    let client = client(server, "{envoy_grpc: {cluster_name: nobody}}").unwrap();
    client.stream::<Message>("/test.Service/Talk", None).await.err().map_or(0, |e| e.code)
}

#[test]
fn other_clients_are_refused_by_name() {
    let server = server();
    assert!(client(&server, "{google_grpc: {target_uri: a, stat_prefix: b}}").unwrap_err().contains("google_grpc"));
    assert!(client(&server, "{envoy_grpc: {cluster_name: ''}}").unwrap_err().contains("cluster_name"));
    assert!(client(&server, "{envoy_grpc: {cluster_name: a}, timeout: -1s}").unwrap_err().contains("timeout"));
}
