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
        ("request.headers", "CelMap value"),
        ("[1]", "CelList value"),
        ("null", "NULL"),
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
    for source in [
        "",
        "request.",
        "(1",
        "'a",
        "1 +",
        "a b",
        "\u{1}",
        "size()",
        "{1}",
        "{'a': }",
        "[1].all(x, true, true)",
        "9223372036854775808",
        "duration()",
    ] {
        assert!(!Program::compile(source).unwrap_err().unsupported, "{source}");
    }
    for source in [
        "foo(1)",
        "'a'.matches(request.host)",
        "request.time.getHours('Europe/Zurich')",
        &"(".repeat(1000),
        &"!".repeat(1000),
        &"1+".repeat(1000),
    ] {
        assert!(Program::compile(source).unwrap_err().unsupported, "{source}");
    }
}

/// Expected values are what Envoy 1.40 printed, but for those of macros, which it refuses.
#[test]
fn maps_times_types_and_texts() {
    for (source, text) in [
        ("{'a': 1}", "CelMap value"),
        ("{'a': 1}['a']", "1"),
        ("{'a': {'b': 2}}.a.b", "2"),
        ("{1: 'x', true: 'y'}[true]", "y"),
        ("'a' in {'a': 1} && !(2 in {1: 1}) && 1u in {1: 2}", "true"),
        ("size({'a': 1, 'b': 2})", "2"),
        ("{'a': 1, 'b': [1.0]} == {'b': [1], 'a': 1}", "true"),
        ("has({'a': 1}.b)", "false"),
        ("metadata.filter_metadata.ns == {'key': 'value'}", "true"),
        ("timestamp('2024-01-02T03:04:05Z') < request.time", "true"),
        ("timestamp('2024-01-02T03:04:05Z').getFullYear()", "2024"),
        ("timestamp('2024-01-02T03:04:05Z').getHours('-08:30')", "18"),
        ("int(timestamp('2024-01-02T03:04:05Z'))", "1704164645"),
        ("timestamp('2024-01-01T03:04:05Z') - timestamp('2024-01-02T03:04:05Z')", "-24h"),
        ("timestamp(0) + duration('1h') - duration('-1.5s')", "1970-01-01T01:00:01.5+00:00"),
        ("duration('3661.5s').getMinutes()", "61"),
        ("type(1) == int && type('a') != int && type(type(1)) == type", "true"),
        ("type(1)", "CelType value"),
        ("dyn(1) == 1 && bool('true')", "true"),
        (".request.host", "shop.example"),
        ("-9223372036854775808", "-9223372036854775808"),
        ("'aBc'.lowerAscii() + 'aBc'.upperAscii()", "abcABC"),
        ("' a '.trim() + 'abc'.charAt(1) + 'abc'.reverse()", "abcba"),
        ("'a,b,c'.split(',', 2).join('|')", "a|b,c"),
        ("'abc'.split('', 2).join('|')", "a|bc"),
        ("'aXbXc'.replace('X', '-', 1)", "a-bXc"),
        ("'héllo'.substring(1, 3) + 'héllo'.substring(4)", "élo"),
        ("'héllo'.indexOf('l') * 10 + 'héllo'.lastIndexOf('l')", "23"),
        ("'abab'.indexOf('b', 2) * 10 + 'abab'.lastIndexOf('ab', 1) + 'a'.indexOf('z')", "29"),
    ] {
        assert_eq!(run(source).as_deref(), Some(text), "{source}");
    }
    for source in [
        "{'a': 1, 'a': 2}",
        "{1.5: 2}",
        "{'a': 1}['b']",
        "timestamp('nonsense')",
        "duration('1d')",
        "bool('yes')",
        "'abc'.substring(2, 1)",
        "'abc'.charAt(9)",
    ] {
        assert_eq!(run(source), None, "{source}");
    }
}

#[test]
fn macros_go_over_lists_and_keys() {
    for (source, text) in [
        ("[1, 2, 3].exists(x, x > 2) && ![1].exists(x, x > 2) && ![].exists(x, true)", "true"),
        ("[1, 2].all(x, x > 0) && [].all(x, false) && ![1, 2].all(x, x > 1)", "true"),
        ("[1, 2, 2].exists_one(x, x == 1) && ![1, 2, 2].exists_one(x, x == 2)", "true"),
        ("[1, 2, 3].filter(x, x % 2 == 1).map(x, x * 10) == [10, 30]", "true"),
        ("[1, 2, 3].map(x, x > 1, x * 2) == [4, 6]", "true"),
        ("{'a': 1, 'b': 2}.all(k, k in ['a', 'b'])", "true"),
        ("request.headers['x-team'].split(',').exists(t, t == 'blue')", "true"),
        // The inner variable hides the outer, and outer ones are seen from inside.
        ("[[1, 2], [3]].map(x, x.map(y, y + size(x))) == [[3, 4], [4]]", "true"),
        ("[1].map(x, [2].map(x, x)[0] + x) == [3]", "true"),
        // What decides, decides, whatever else fails.
        ("['a', 1].exists(x, x + 1 == 2) && !['a', 1].all(x, x + 1 == 3)", "true"),
        // A variable hides the stream's.
        ("['x'].exists(request, request == 'x')", "true"),
    ] {
        assert_eq!(run(source).as_deref(), Some(text), "{source}");
    }
    for source in ["[1].exists(x, 'a')", "1.all(x, true)", "['a'].exists_one(x, x + 1 == 2)", "request.headers.all(k, true)"] {
        assert_eq!(Program::compile(source).ok().and_then(|_| run(source)), None, "{source}");
    }
}

#[test]
fn no_expression_explodes() {
    let ten = "[0,1,2,3,4,5,6,7,8,9]";
    let nested = (0..8).fold("1".to_string(), |inner, i| format!("{ten}.map(v{i}, {inner})"));
    let began = std::time::Instant::now();
    assert_eq!(run(&format!("size({nested}) > 0")), None, "10^8 elements");
    // A text that doubles with every element; a long one that is copied for each of many.
    let doubled = (0..30).fold("'xxxxxxxxxxxxxxxx'".to_string(), |text, _| format!("[{text}].map(t, t + t)[0]"));
    assert_eq!(run(&doubled), None);
    assert!(began.elapsed().as_secs() < 20);
    assert_eq!(run(&format!("{ten}.map(a, {ten}.map(b, a * b)).exists(l, 81 in l)")).as_deref(), Some("true"));
}

proptest! {
    #[test]
    fn any_text_is_parsed_or_refused(source in "[a-z0-9.()\\[\\]'\"+*!?:,<>=&| \\\\{}-]{0,60}") {
        let _ = Program::compile(&source);
    }
}
