//! hmac_auth with signatures made as docs/filters/hmac_auth.md says.

use super::*;
use crate::signing::{HASHES, now};
use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use nuncio_core::RequestHead;
use nuncio_core::registry::Server;
use nuncio_core::test_kit::{self as kit, FakeRoute, fields, text};
use nuncio_proto::json::{UnknownFields, parse_text};

const SECRET: &str = "the secret of the web shop";

fn compiled(more: &str) -> (Arc<dyn HttpFilter>, Arc<Server>) {
    let server = kit::server(Default::default());
    let config = format!(
        "{{keys: [{{id: web-1, secret: {{data_source: {{inline_string: {SECRET}}}}}}}, {{id: web-2, secret: {{data_source: {{inline_string: other}}}}}}]{more}}}"
    );
    let config = parse_text::<HmacAuth>(&config, UnknownFields::Refuse).unwrap().value;
    (kit::compile(&Factory, &config, &server).unwrap(), server)
}

#[derive(Clone)]
struct Request {
    algorithm: usize,
    secret: &'static str,
    key_id: &'static str,
    time: u64,
    nonce: &'static str,
    body: &'static [u8],
    /// What is signed as the body's digest, if not the digest.
    unsigned: bool,
}

fn request() -> Request {
    Request { algorithm: 0, secret: SECRET, key_id: "web-1", time: now(), nonce: "n-1", body: b"", unsigned: false }
}

impl Request {
    /// An exchange with a signature over what the documentation says, written down here a second time.
    fn exchange(&self) -> Exchange {
        let scheme = ["NUNCIO-HMAC-SHA256", "NUNCIO-HMAC-SHA384", "NUNCIO-HMAC-SHA512"][self.algorithm];
        let digest = digest::digest([&digest::SHA256, &digest::SHA384, &digest::SHA512][self.algorithm], self.body);
        let digest = if self.unsigned { "UNSIGNED".to_string() } else { signing::hex(digest.as_ref()) };
        let Self { time, nonce, key_id, .. } = self;
        let signed = format!("{scheme}\n{time}\n{nonce}\nPOST\nshop.test\n/orders\na=1&a=2&b=%26\nx-tenant:blue\nx-none:\n{digest}");
        let mac = hmac::sign(&hmac::Key::new(HASHES[self.algorithm], self.secret.as_bytes()), signed.as_bytes());
        let mut ex = kit::exchange(RequestHead::new(Method::POST, "Shop.test", "/orders?b=%26&a=2&a=1"));
        ex.request.headers.insert(HeaderName::from_static("x-tenant"), HeaderValue::from_static(" blue "));
        let value = format!(
            "{scheme} key_id=\"{key_id}\", timestamp={time}, nonce=\"{nonce}\", headers=\"x-tenant;x-none\", signature=\"{}\"",
            STANDARD.encode(mac)
        );
        ex.request.headers.insert(header::AUTHORIZATION, HeaderValue::try_from(value).unwrap());
        if !self.body.is_empty() {
            ex.request_body = kit::data([self.body]);
        }
        ex
    }
}

async fn detail(filter: &dyn HttpFilter, mut ex: Exchange) -> Option<(u16, String)> {
    kit::request(filter, "h", &mut ex).await.map(|r| (r.status, r.details.trim_start_matches("hmac_auth_denied").to_string()))
}

fn denied(why: &str) -> Option<(u16, String)> {
    Some((401, format!("{{{why}}}")))
}

#[tokio::test]
async fn good_ones_pass_with_any_hash_and_any_live_key() {
    let (filter, _) = compiled("");
    for algorithm in 0..3 {
        for body in [&b""[..], b"{}"] {
            let mut ex = Request { algorithm, body, ..request() }.exchange();
            assert!(kit::request(&*filter, "h", &mut ex).await.is_none(), "{algorithm}");
            assert!(!ex.request.headers.contains(&header::AUTHORIZATION));
            let scheme = text(["NUNCIO-HMAC-SHA256", "NUNCIO-HMAC-SHA384", "NUNCIO-HMAC-SHA512"][algorithm]);
            assert_eq!(ex.info.metadata(NAMESPACE), Some(&fields([("key_id", text("web-1")), ("algorithm", scheme)])));
            assert_eq!(kit::collect(&mut ex.request_body).await.unwrap().0, body);
        }
    }
    assert_eq!(detail(&*filter, Request { key_id: "web-2", secret: "other", ..request() }.exchange()).await, None);
}

#[tokio::test]
async fn whatever_is_changed_is_noticed() {
    let (filter, _) = compiled("");
    type Change = fn(&mut Exchange);
    let changes: [Change; 9] = [
        |ex| ex.request.method = Method::PUT,
        |ex| ex.request.path = "/order?b=%26&a=2&a=1".into(),
        |ex| ex.request.path = "/orders?b=&&a=2&a=1".into(),
        |ex| ex.request.path = "/orders?b=%26&a=2&a=1&c=3".into(),
        |ex| ex.request.authority = "other.test".into(),
        |ex| ex.request.headers.insert(HeaderName::from_static("x-tenant"), HeaderValue::from_static("red")),
        |ex| ex.request.headers.append(HeaderName::from_static("x-tenant"), HeaderValue::from_static("blue")),
        |ex| ex.request.headers.insert(HeaderName::from_static("x-none"), HeaderValue::from_static("now there")),
        |ex| ex.request_body = kit::data([&b"x"[..]]),
    ];
    for (i, change) in changes.into_iter().enumerate() {
        let mut ex = request().exchange();
        change(&mut ex);
        assert_eq!(detail(&*filter, ex).await, denied("bad_signature"), "{i}");
    }
    for (request, why) in [
        (Request { secret: "wrong", ..request() }, "bad_signature"),
        (Request { key_id: "web-2", ..request() }, "bad_signature"),
        (Request { key_id: "web-3", ..request() }, "unknown_key"),
        (Request { time: now() - 301, ..request() }, "expired"),
        (Request { time: now() + 303, ..request() }, "expired"),
        (Request { time: u64::MAX, ..request() }, "expired"),
        (Request { unsigned: true, ..request() }, "bad_signature"),
    ] {
        assert_eq!(detail(&*filter, request.exchange()).await, denied(why), "{why}");
    }
}

#[test]
fn headers_are_signed_byte_by_byte() {
    let [one, other] = [b"\xe1", b"\xe2"].map(|value| {
        let mut ex = request().exchange();
        ex.request.headers.insert(HeaderName::from_static("x-tenant"), HeaderValue::from_bytes(value).unwrap());
        let signature = Signature::parse(&ex.request.headers).unwrap().unwrap();
        signature.canonical(&ex.request, None)
    });
    assert_ne!(one, other);
}

#[tokio::test]
async fn headers_that_cannot_be_read() {
    let (filter, server) = compiled("");
    let good = request().exchange().request.headers.get_str(&header::AUTHORIZATION).unwrap().to_string();
    for bad in [
        "NUNCIO-HMAC-SHA256".to_string(),
        "NUNCIO-HMAC-SHA256 x".into(),
        good.replace("web-1", ""),
        good.replace("key_id", "keyid"),
        good.replace("timestamp=", "timestamp=x"),
        good.replace("x-none", "x none"),
        good.replace("x-none", "authorization"),
        good.replace("n-1", &"n".repeat(200)),
        good.replace("signature=\"", "signature=\"!"),
        format!("{good}, nonce=\"2\""),
        format!("{good}, x=\"{}\"", "y".repeat(5000)),
    ] {
        let mut ex = request().exchange();
        ex.request.headers.insert(header::AUTHORIZATION, HeaderValue::try_from(bad.clone()).unwrap());
        assert_eq!(detail(&*filter, ex).await, denied("malformed"), "{bad}");
    }
    let mut ex = request().exchange();
    ex.request.headers.append(header::AUTHORIZATION, HeaderValue::from_static("Bearer x"));
    assert_eq!(detail(&*filter, ex).await, denied("malformed"));
    for other in ["Bearer x", "Basic eDp5"] {
        let mut ex = request().exchange();
        ex.request.headers.insert(header::AUTHORIZATION, HeaderValue::from_static(other));
        assert_eq!(detail(&*filter, ex).await, denied("missing"));
    }
    assert_eq!(server.stats.root().counter("http.test.hmac_auth.missing").value(), 2);
}

#[tokio::test]
async fn nonces_count_once() {
    let (filter, server) = compiled(", replay: {}");
    let again = request();
    assert_eq!(detail(&*filter, again.exchange()).await, None);
    // The same configuration once more, as an update brings it.
    assert_eq!(detail(&*compiled(", replay: {}").0, again.exchange()).await, denied("replayed"));
    assert_eq!(detail(&*filter, again.exchange()).await, denied("replayed"));
    assert_eq!(detail(&*filter, Request { nonce: "n-2", ..request() }.exchange()).await, None);
    assert_eq!(detail(&*filter, Request { nonce: "", ..request() }.exchange()).await, denied("no_nonce"));
    // A bad signature does not use a nonce up.
    assert_eq!(detail(&*filter, Request { nonce: "n-3", secret: "wrong", ..request() }.exchange()).await, denied("bad_signature"));
    assert_eq!(detail(&*filter, Request { nonce: "n-3", ..request() }.exchange()).await, None);
    assert_eq!(server.stats.root().counter("http.test.hmac_auth.replayed").value(), 1);
}

/// A body without bytes that ends once the clock has passed a second.
struct Slow(u64);
impl nuncio_core::BodySource for Slow {
    fn poll_frame(
        &mut self,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<nuncio_core::Frame, nuncio_core::StreamError>>> {
        if now() > self.0 {
            return std::task::Poll::Ready(None);
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
        cx.waker().wake_by_ref();
        std::task::Poll::Pending
    }
}

#[tokio::test]
async fn a_slow_body_does_not_outlive_the_window() {
    let (filter, _) = compiled(", window: 1s");
    let request = request();
    let mut ex = request.exchange();
    ex.request_body = nuncio_core::Body::Stream(Box::new(Slow(request.time + 1)));
    assert_eq!(detail(&*filter, ex).await, denied("expired"));
}

#[tokio::test]
async fn a_body_that_breaks_off_goes_nowhere() {
    let (filter, server) = compiled("");
    let mut ex = Request { secret: "wrong", ..request() }.exchange();
    ex.request_body = crate::whole::failing();
    assert_eq!(detail(&*filter, ex).await, Some((400, "request_body_failed".into())));
    assert_eq!(server.stats.root().counter("http.test.hmac_auth.denied").value(), 1);
}

#[tokio::test]
async fn settings() {
    let (filter, _) = compiled(", algorithms: [HMAC_SHA512], required_headers: [X-Tenant]");
    assert_eq!(detail(&*filter, request().exchange()).await, denied("algorithm_not_allowed"));
    assert_eq!(detail(&*filter, Request { algorithm: 2, ..request() }.exchange()).await, None);
    let (filter, _) = compiled(", required_headers: [x-date]");
    assert_eq!(detail(&*filter, request().exchange()).await, denied("header_not_signed"));
    let (filter, _) = compiled(", body: UNSIGNED, allow_missing: true");
    assert_eq!(detail(&*filter, Request { unsigned: true, body: b"anything", ..request() }.exchange()).await, None);
    assert_eq!(detail(&*filter, kit::exchange(RequestHead::new(Method::GET, "shop.test", "/"))).await, None);
    let (filter, _) = compiled(", max_body_bytes: 3");
    let reply = detail(&*filter, Request { body: b"four", ..request() }.exchange()).await;
    assert_eq!(reply.unwrap().0, 413);
}

#[tokio::test]
async fn routes() {
    let (filter, server) = compiled("");
    let run = async |config: &str, ex: Exchange| {
        let config = parse_text::<HmacAuthPerRoute>(config, UnknownFields::Refuse).unwrap().value;
        let mut ex = ex;
        ex.route = Some(Arc::new(FakeRoute::new("r", "c").with("h", kit::compile_route(&Factory, &config, &server).unwrap())));
        detail(&*filter, ex).await.map(|(status, _)| status)
    };
    assert_eq!(run("{disabled: true}", kit::exchange(RequestHead::new(Method::GET, "shop.test", "/"))).await, None);
    assert_eq!(run("{allow_keys: [web-2]}", request().exchange()).await, Some(403));
    assert_eq!(run("{allow_keys: [web-1]}", request().exchange()).await, None);
}

#[test]
fn refused_without_a_word_of_the_secret() {
    let server = kit::server(Default::default());
    let key = "{id: a, secret: {data_source: {inline_string: hunter2}}}";
    for (bad, place) in [
        ("{}".to_string(), "keys"),
        (format!("{{keys: [{key}, {key}]}}"), "keys[1].id"),
        ("{keys: [{id: 'a b', secret: {data_source: {inline_string: hunter2}}}]}".into(), "keys[0].id"),
        ("{keys: [{id: a}]}".into(), "keys[0].secret"),
        ("{keys: [{id: a, secret: {data_source: {inline_string: ' '}}}]}".into(), "keys[0].secret.data_source"),
        (format!("{{keys: [{key}], window: 0s}}"), "window"),
        (format!("{{keys: [{key}], required_headers: [authorization]}}"), "required_headers[0]"),
    ] {
        let config = parse_text::<HmacAuth>(&bad, UnknownFields::Refuse).unwrap().value;
        let error = kit::compile(&Factory, &config, &server).unwrap_err();
        assert!(error.contains(place) && !error.contains("hunter2"), "{bad}: {error}");
    }
    let (filter, _) = compiled("");
    assert!(!format!("{filter:?}").contains(SECRET));
}

#[tokio::test(start_paused = true)]
async fn a_key_of_a_file_rotates_at_once() {
    let path = std::env::temp_dir().join(format!("nuncio-hmac-{}", std::process::id()));
    std::fs::write(&path, SECRET).unwrap();
    let server = kit::server(Default::default());
    let config = format!("{{keys: [{{id: web-1, secret: {{data_source: {{filename: {}}}}}}}]}}", path.display());
    let filter = kit::compile(&Factory, &parse_text::<HmacAuth>(&config, UnknownFields::Refuse).unwrap().value, &server).unwrap();
    assert_eq!(detail(&*filter, request().exchange()).await, None);
    std::fs::write(&path, "a new secret\n").unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    assert_eq!(detail(&*filter, request().exchange()).await, denied("bad_signature"));
    assert_eq!(detail(&*filter, Request { secret: "a new secret", ..request() }.exchange()).await, None);
    std::fs::remove_file(&path).unwrap();
}
