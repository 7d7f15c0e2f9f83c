//! Tests of the filter: cookies and headers that name a host.

use super::state::CookieValue;
use super::*;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use nuncio_core::test_kit::{self as kit, FakeCluster, FakeHost, FakeRoute};
use nuncio_core::{Body, Exchange, RequestHead, ResponseHead};
use nuncio_proto::Any;
use nuncio_proto::envoy::config::core::v3::TypedExtensionConfig;
use nuncio_proto::envoy::extensions::http::stateful_session::cookie::v3::CookieBasedSessionState;
use nuncio_proto::envoy::extensions::http::stateful_session::envelope::v3::{EnvelopeSessionState, envelope_session_state::Header};
use nuncio_proto::envoy::extensions::http::stateful_session::header::v3::HeaderBasedSessionState;
use nuncio_proto::envoy::r#type::http::v3::Cookie;
use prost::{Message, Name};

fn session<M: Message + Name>(state: &M, strict: bool) -> proto::StatefulSession {
    let any = Any { type_url: M::type_url(), value: state.encode_to_vec() };
    proto::StatefulSession {
        session_state: Some(TypedExtensionConfig { name: "s".into(), typed_config: Some(any) }),
        strict,
        stat_prefix: "p".into(),
        ..Default::default()
    }
}

fn cookie(ttl: i64, path: &str) -> proto::StatefulSession {
    let ttl = (ttl > 0).then_some(nuncio_proto::Duration { seconds: ttl, nanos: 0 });
    let cookie = Cookie { name: "sid".into(), ttl, path: path.into(), ..Default::default() };
    session(&CookieBasedSessionState { cookie: Some(cookie) }, false)
}

fn value(address: &str, expires: u64) -> String {
    STANDARD.encode(CookieValue { address: address.into(), expires }.encode_to_vec())
}

/// Sends a request with one header through the filter; the answer comes from 10.0.1.1:80.
async fn run(config: &proto::StatefulSession, path: &'static str, field: &str, text: &str, answer: &[(&'static str, &str)]) -> Exchange {
    let server = kit::server(Default::default());
    let filter = kit::compile(&Factory, config, &server).unwrap();
    let mut ex = kit::exchange(RequestHead::new(Method::GET, "shop", path));
    if !field.is_empty() {
        ex.request.headers.append(HeaderName::try_from(field).unwrap(), HeaderValue::try_from(text).unwrap());
    }
    assert!(kit::request(&*filter, "s", &mut ex).await.is_none());
    kit::send_to(&mut ex, FakeCluster::new("c"), Some(FakeHost::new(None)));
    let mut head = ResponseHead::new(StatusCode::OK);
    for (name, value) in answer {
        head.headers.append(HeaderName::from_static(name), HeaderValue::try_from(*value).unwrap());
    }
    kit::respond(&*filter, "s", &mut ex, head, Body::Empty);
    ex
}

fn got<'a>(ex: &'a Exchange, name: &'static str) -> Option<&'a str> {
    ex.response.as_ref()?.headers.get_str(&HeaderName::from_static(name))
}
fn wanted(ex: &Exchange) -> Option<&str> {
    ex.override_host.as_ref().map(|o| o.address.as_str())
}

#[tokio::test]
async fn cookies_name_hosts() {
    let ex = run(&cookie(0, ""), "/", "", "", &[]).await;
    assert_eq!(got(&ex, "set-cookie").unwrap(), format!("sid=\"{}\"; HttpOnly", value("10.0.1.1:80", 0)));
    let known = format!("sid=\"{}\"", value("10.0.1.1:80", 0));
    let ex = run(&cookie(0, ""), "/", "cookie", &known, &[]).await;
    assert_eq!((wanted(&ex), got(&ex, "set-cookie")), (Some("10.0.1.1:80"), None));
    // Another host answered: the client hears of it.
    let ex = run(&cookie(0, ""), "/", "cookie", &format!("sid={}", value("10.9.9.9:80", 0)), &[]).await;
    assert!(wanted(&ex) == Some("10.9.9.9:80") && got(&ex, "set-cookie").is_some());
}

#[tokio::test]
async fn cookies_expire() {
    let far = u64::MAX / 2;
    for (expires, ttl, good) in [(1, 10, false), (far, 10, true), (0, 10, false), (0, 0, true), (1, 0, false)] {
        let ex = run(&cookie(ttl, ""), "/", "cookie", &format!("sid={}", value("10.0.1.1:80", expires)), &[]).await;
        assert_eq!(wanted(&ex).is_some(), good, "{expires} {ttl}");
    }
    let ex = run(&cookie(60, "/a"), "/a", "", "", &[]).await;
    assert!(got(&ex, "set-cookie").unwrap().ends_with("; Max-Age=60; Path=/a; HttpOnly"));
}

#[tokio::test]
async fn cookies_belong_to_paths() {
    for (path, request, sent) in [
        ("/a", "/a", true),
        ("/a", "/a/b", true),
        ("/a", "/a?q", true),
        ("/a", "/ab", false),
        ("/a/", "/a", false),
        ("/a/", "/a/b", true),
        ("/", "/x", true),
    ] {
        let ex = run(&cookie(0, path), request, "", "", &[]).await;
        assert_eq!(got(&ex, "set-cookie").is_some(), sent, "{path} {request}");
    }
}

#[tokio::test]
async fn junk_is_no_session() {
    for text in ["sid=", "sid=!!!", "sid=AAAA=", "other=1"] {
        let ex = run(&cookie(0, ""), "/", "cookie", text, &[]).await;
        assert_eq!(wanted(&ex), None, "{text}");
    }
    // What old Envoys sent.
    let ex = run(&cookie(0, ""), "/", "cookie", &format!("sid={}", STANDARD.encode("127.0.0.1:8080")), &[]).await;
    assert_eq!(wanted(&ex), Some("127.0.0.1:8080"));
}

#[tokio::test]
async fn headers_name_hosts() {
    let config = session(&HeaderBasedSessionState { name: "x-host".into() }, true);
    let ex = run(&config, "/", "x-host", &STANDARD.encode("10.0.1.1:80"), &[]).await;
    assert!(wanted(&ex) == Some("10.0.1.1:80") && ex.override_host.as_ref().is_some_and(|o| o.strict && o.status == 503));
    assert_eq!(got(&ex, "x-host"), None);
    let ex = run(&config, "/", "", "", &[]).await;
    assert_eq!(got(&ex, "x-host"), Some(STANDARD.encode("10.0.1.1:80").as_str()));
}

#[tokio::test]
async fn envelopes_are_opened_and_sealed() {
    let config = session(&EnvelopeSessionState { header: Some(Header { name: "mcp-session".into() }) }, false);
    let sealed = format!("{};UV:{}", STANDARD.encode("10.0.1.1:80"), STANDARD.encode("theirs"));
    let ex = run(&config, "/", "mcp-session", &sealed, &[("mcp-session", "theirs")]).await;
    assert_eq!(wanted(&ex), Some("10.0.1.1:80"));
    assert_eq!(ex.request.headers.get_str(&HeaderName::from_static("mcp-session")), Some("theirs"));
    assert_eq!(got(&ex, "mcp-session"), Some(sealed.as_str()));
    for wrong in ["", ";", "AAAA", "AAAA;UV:", "AAAA;UV:!", "plain"] {
        let ex = run(&config, "/", "mcp-session", wrong, &[]).await;
        assert!(wanted(&ex).is_none() && got(&ex, "mcp-session").is_none(), "{wrong}");
    }
}

#[tokio::test]
async fn routes_switch_off_and_replace() {
    let server = kit::server(Default::default());
    let filter = kit::compile(&Factory, &cookie(0, ""), &server).unwrap();
    let replaced = session(&HeaderBasedSessionState { name: "x-host".into() }, false);
    for (route, names) in [
        (proto::stateful_session_per_route::Override::Disabled(true), [None, None]),
        (proto::stateful_session_per_route::Override::StatefulSession(replaced), [None, Some("x-host")]),
    ] {
        let route = proto::StatefulSessionPerRoute { r#override: Some(route) };
        let mut ex = kit::exchange(RequestHead::new(Method::GET, "shop", "/"));
        ex.route = Some(Arc::new(FakeRoute::new("r", "c").with("s", kit::compile_route(&Factory, &route, &server).unwrap())));
        kit::request(&*filter, "s", &mut ex).await;
        kit::send_to(&mut ex, FakeCluster::new("c"), Some(FakeHost::new(None)));
        kit::respond(&*filter, "s", &mut ex, ResponseHead::new(StatusCode::OK), Body::Empty);
        assert_eq!([got(&ex, "set-cookie").map(|_| "set-cookie"), got(&ex, "x-host").map(|_| "x-host")], names);
    }
}

#[test]
fn wrong_configurations_are_refused() {
    let server = kit::server(Default::default());
    let refused = |config: &proto::StatefulSession| kit::compile(&Factory, config, &server).unwrap_err();
    assert!(refused(&session(&Cookie::default(), false)).contains("session state"));
    assert!(refused(&session(&HeaderBasedSessionState { name: "no good".into() }, false)).contains("no good"));
    assert!(refused(&session(&CookieBasedSessionState::default(), false)).contains("cookie"));
    let config = proto::StatefulSession { strict: true, status_on_strict_destination_not_found: 99, ..Default::default() };
    assert!(refused(&config).contains("99"));
}
