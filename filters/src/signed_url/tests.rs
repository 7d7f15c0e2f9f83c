//! signed_url with links made as docs/filters/signed_url.md says.

use super::*;
use crate::signing::now;
use http::{HeaderName, HeaderValue};
use nuncio_core::test_kit::{self as kit, FakeRoute};
use nuncio_proto::json::{UnknownFields, parse_text};

const SECRET: &str = "the secret of the links";

fn compiled(more: &str) -> Arc<dyn HttpFilter> {
    let config = format!("{{keys: [{{id: k1, secret: {{data_source: {{inline_string: {SECRET}}}}}}}]{more}}}");
    let config = parse_text::<proto::SignedUrl>(&config, UnknownFields::Refuse).unwrap().value;
    kit::compile(&Factory, &config, &kit::server(Default::default())).unwrap()
}

/// A signed link to `path` with this query, written down here a second time.
fn link(path: &str, query: &str, expires: u64, client: &str) -> String {
    let mut pairs: Vec<String> = query.split('&').filter(|p| !p.is_empty()).map(String::from).collect();
    pairs.extend([format!("expires={expires}"), "key_id=k1".into()]);
    let sent = pairs.join("&");
    pairs.sort();
    let signed = format!("GET\ncdn.test\n{path}\n{}\n{client}", pairs.join("&"));
    let mac = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes()), signed.as_bytes());
    format!("{path}?{sent}&signature={}", URL_SAFE_NO_PAD.encode(mac))
}

fn get(link: &str, referer: Option<&'static str>) -> Exchange {
    let mut ex = kit::exchange(RequestHead::new(Method::GET, "CDN.test", link.to_string()));
    if let Some(value) = referer {
        ex.request.headers.append(HeaderName::from_static("referer"), HeaderValue::from_static(value));
    }
    ex
}

async fn run(filter: &dyn HttpFilter, mut ex: Exchange) -> Option<String> {
    let reply = kit::request(filter, "s", &mut ex).await?;
    assert_eq!(reply.status, 403);
    Some(reply.details.trim_start_matches("signed_url_denied{").trim_end_matches('}').to_string())
}

#[tokio::test]
async fn links() {
    let filter = compiled("");
    let good = link("/film.mp4", "b=2&a=1", now() + 60, "");
    let mut ex = get(&good, None);
    assert!(kit::request(&*filter, "s", &mut ex).await.is_none());
    assert_eq!(ex.request.path, "/film.mp4?b=2&a=1");
    assert_eq!(ex.info.metadata(NAMESPACE).map(|m| m.fields.len()), Some(2));
    let mut ex = get(&good, None);
    ex.request.method = Method::HEAD;
    assert!(run(&*filter, ex).await.is_none());
    let mut ex = get(&good, None);
    ex.request.method = Method::DELETE;
    assert_eq!(run(&*filter, ex).await.as_deref(), Some("bad_signature"));
    for (changed, why) in [
        (good.replace("film", "other"), "bad_signature"),
        (good.replace("a=1", "a=2"), "bad_signature"),
        (format!("{good}&c=3"), "bad_signature"),
        (good.replace("k1", "k2"), "unknown_key"),
        (good.replace("expires=", "expires=9"), "bad_signature"),
        (good.replace("expires=", "expires=-"), "malformed"),
        (good.replace("signature=", "signature=!"), "malformed"),
        (format!("{good}&expires=99999999999"), "parameter_twice"),
        (format!("{good}&signature=x"), "parameter_twice"),
        ("/film.mp4".into(), "missing"),
        ("/film.mp4?expires=1&signature=x".into(), "missing"),
        (link("/film.mp4", "", now() - 1, ""), "expired"),
    ] {
        assert_eq!(run(&*filter, get(&changed, None)).await.as_deref(), Some(why), "{changed}");
    }
}

#[tokio::test]
async fn lifetime_address_and_names() {
    let filter = compiled(", max_lifetime: 100s, bind_client_address: true, forward: true");
    let bound = link("/a", "", now() + 60, "10.0.0.1");
    let mut ex = get(&bound, None);
    assert!(kit::request(&*filter, "s", &mut ex).await.is_none());
    assert_eq!(ex.request.path.as_str(), bound);
    assert_eq!(run(&*filter, get(&link("/a", "", now() + 60, "10.0.0.2"), None)).await.as_deref(), Some("bad_signature"));
    assert_eq!(run(&*filter, get(&link("/a", "", now() + 200, "10.0.0.1"), None)).await.as_deref(), Some("lifetime"));
    let mut ex = get(&link("/a", "", now() + 60, ""), None);
    ex.info.remote = nuncio_core::Address::Pipe("/run/client".into());
    assert_eq!(run(&*filter, ex).await.as_deref(), Some("no_client_address"));
    let filter = compiled(", expires_parameter: e, key_parameter: k, signature_parameter: s");
    assert_eq!(run(&*filter, get(&link("/a", "", now() + 60, ""), None)).await.as_deref(), Some("missing"));
}

#[tokio::test]
async fn referers() {
    let filter = compiled(", referer: {hosts: [{exact: shop.test}, {suffix: .shop.test}], required: true}");
    let good = link("/a", "", now() + 60, "");
    for (referer, passes) in [
        (Some("https://shop.test/page"), true),
        (Some("https://WWW.shop.test:8443/"), true),
        (Some("https://shop.test.evil.test/"), false),
        (Some("https://evil.test/?https://shop.test"), false),
        (Some("https://shop.test@evil.test/"), false),
        (Some("https://evil.test\\@shop.test/"), false),
        (Some("javascript://shop.test/"), false),
        (Some("shop.test"), false),
        (None, false),
    ] {
        assert_eq!(run(&*filter, get(&good, referer)).await.is_none(), passes, "{referer:?}");
    }
    let mut ex = get(&good, Some("https://shop.test/"));
    ex.request.headers.append(HeaderName::from_static("referer"), HeaderValue::from_static("https://shop.test/"));
    assert!(run(&*filter, ex).await.is_some());
}

#[tokio::test]
async fn routes() {
    let server = kit::server(Default::default());
    let filter = compiled("");
    let run_on = async |config: &str, link: &str| {
        let config = parse_text::<proto::SignedUrlPerRoute>(config, UnknownFields::Refuse).unwrap().value;
        let mut ex = get(link, None);
        ex.route = Some(Arc::new(FakeRoute::new("r", "c").with("s", kit::compile_route(&Factory, &config, &server).unwrap())));
        run(&*filter, ex).await
    };
    assert!(run_on("{disabled: true}", "/a").await.is_none());
    assert_eq!(run_on("{referer: {required: true}}", &link("/a", "", now() + 60, "")).await.as_deref(), Some("referer"));
}
