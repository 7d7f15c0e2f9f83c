//! Tests of the language: what expressions give, and what is refused.

use super::*;
use crate::peer::{Peer, PeerState, UPSTREAM_PEER};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use nuncio_core::test_kit::{self as kit, FakeCluster};
use nuncio_core::{Body, RequestHead, ResponseHead};
use proptest::prelude::*;
use std::sync::Arc;

fn run(source: &str) -> Option<String> {
    let mut ex = kit::exchange(RequestHead::new(Method::POST, "shop.example", "/a/b?x=1&y"));
    ex.request.headers.append(HeaderName::from_static("x-team"), HeaderValue::from_static("blue"));
    ex.response = Some(ResponseHead::new(StatusCode::NOT_FOUND));
    ex.response_body = Body::Empty;
    ex.info.response_code = 404;
    kit::send_to(&mut ex, FakeCluster::new("outbound|80||shop"), None);
    ex.info.set_metadata("ns", kit::fields([("key", kit::text("value"))]));
    let peer = Peer { workload: "shop".into(), labels: vec![("role".into(), "front".into())], ..Peer::default() };
    ex.info.filter_state.set(UPSTREAM_PEER, Arc::new(PeerState(Arc::new(peer))));
    let server = kit::server(kit::fields([("NAMESPACE", kit::text("istio-system"))]));
    let attributes = Attributes {
        info: &ex.info,
        request: Some(&ex.request),
        response: ex.response.as_ref(),
        trailers: None,
        route: None,
        server: Some(&server),
    };
    let program = Program::compile(source).unwrap();
    let mut out = String::new();
    program.print(&attributes, &mut out).then_some(out)
}

#[test]
fn attributes_of_the_stream() {
    for (source, text) in [
        ("request.host", "shop.example"),
        ("request.url_path", "/a/b"),
        ("request.path", "/a/b?x=1&y"),
        ("request.query", "x=1&y"),
        ("request.method", "POST"),
        ("request['host']", "shop.example"),
        ("request.headers['x-team']", "blue"),
        ("request.headers[':authority']", "shop.example"),
        ("response.code", "404"),
        ("string(response.code)", "404"),
        ("source.address", "10.0.0.1:40000"),
        ("destination.port", "8080"),
        ("xds.cluster_name", "outbound|80||shop"),
        ("xds.node.metadata.NAMESPACE", "istio-system"),
        ("metadata.filter_metadata['ns']['key']", "value"),
        ("filter_state.upstream_peer.workload", "shop"),
        ("filter_state['upstream_peer'].labels['role']", "front"),
        ("connection.mtls", "false"),
        ("request.headers", "map value"),
    ] {
        assert_eq!(run(source).as_deref(), Some(text), "{source}");
    }
}

#[test]
fn operators_and_functions() {
    for (source, text) in [
        ("response.code >= 400 && response.code < 500 ? '4xx' : 'other'", "4xx"),
        ("has(request.headers.x_none) ? 'a' : 'b'", "b"),
        ("'x-team' in request.headers", "true"),
        ("request.method in ['GET', 'POST']", "true"),
        ("request.host.startsWith('shop.') || request.none", "true"),
        ("request.none || request.host.endsWith('example')", "true"),
        ("!(request.url_path.contains('zzz'))", "true"),
        ("request.url_path.matches('^/a/[a-z]+$')", "true"),
        ("matches(request.url_path, 'b')", "true"),
        ("size(request.host) + 1", "13"),
        ("1 + 2 * 3 - -4", "11"),
        ("7 / 2 == 3 && 7 % 2 == 1", "true"),
        ("1.5 + 1.0", "2.5"),
        ("int('42') == 42u", "true"),
        ("b'ab' == bytes('ab')", "true"),
        ("duration('1.5s') > duration('900ms')", "true"),
        ("\"\\x41\\u00e9\" + r'\\n'", "Aé\\n"),
        ("null == null", "true"),
        ("[1, 2][1]", "2"),
        ("request.host != 'x' // why", "true"),
    ] {
        assert_eq!(run(source).as_deref(), Some(text), "{source}");
    }
}

#[test]
fn failures_are_no_value() {
    for source in
        ["request.headers['none']", "request.referer", "1 / 0", "request.none", "upstream_peer.name", "1 + 'a'", "9223372036854775807 + 1"]
    {
        assert_eq!(run(source), None, "{source}");
    }
    assert_eq!(Program::compile("request.none || nobody").unwrap().unknown(), ["request.none", "nobody"]);
}

#[test]
fn wrong_and_unsupported_are_told_apart() {
    for source in ["", "request.", "(1", "'a", "1 +", "a b", "\u{1}", "size()"] {
        assert!(!Program::compile(source).unwrap_err().unsupported, "{source}");
    }
    for source in ["[1].map(x, x)", "foo(1)", "{'a': 1}", &"(".repeat(1000), &"!".repeat(1000), &"1+".repeat(1000)] {
        assert!(Program::compile(source).unwrap_err().unsupported, "{source}");
    }
}

proptest! {
    #[test]
    fn any_text_is_parsed_or_refused(source in "[a-z0-9.()\\[\\]'\"+*!?:,<>=&| \\\\{}-]{0,60}") {
        let _ = Program::compile(&source);
    }
}
