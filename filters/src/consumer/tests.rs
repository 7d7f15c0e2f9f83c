//! consumer, with credentials of every kind.

use super::*;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use nuncio_core::RequestHead;
use nuncio_core::info::StreamInfo;
use nuncio_core::registry::Server;
use nuncio_core::test_kit::{self as kit, FakeRoute, fields, object, text};
use nuncio_proto::json::{UnknownFields, parse_text};
use std::rc::Rc;

const CONFIG: &str = r#"
consumers:
- name: acme
  attributes: {plan: gold}
  credentials:
  - api_key: {data_source: {inline_string: "acme-old\nacme-new\n"}}
  - basic_auth: {username: acme, password: {data_source: {inline_string: "open:sesame"}}}
  - hmac_key_id: web-1
- name: bob
  credentials:
  - api_key: {data_source: {inline_string: bobs-key}}
  - basic_auth: {username: bob, password: {data_source: {inline_string: one}}}
  - basic_auth: {username: bob, password: {data_source: {inline_string: two}}}
  - jwt_claim: bob@example.com
  - certificate: {uri_san: "spiffe://example.com/bob"}
methods:
- api_key: {places: [{header: X-Api-Key}, {query: key}, {cookie: key}]}
- basic_auth: {realm: shop}
- jwt: {claim: [user, mail]}
- hmac: {}
- certificate: {}
upstream_headers: {name: x-consumer, method: x-consumer-method, attributes: {plan: x-plan}}
"#;

fn compiled(text: &str) -> (Arc<dyn HttpFilter>, Arc<Server>) {
    let server = kit::server(Default::default());
    let config = parse_text::<proto::ConsumerAuth>(text, UnknownFields::Refuse).unwrap().value;
    (kit::compile(&Factory, &config, &server).unwrap(), server)
}

fn exchange(path: &'static str, headers: &[(&'static str, &str)]) -> Exchange {
    let mut ex = kit::exchange(RequestHead::new(Method::GET, "shop.test", path));
    for (name, value) in headers {
        ex.request.headers.append(HeaderName::from_static(name), HeaderValue::try_from(*value).unwrap());
    }
    ex
}

fn basic(pair: &str) -> String {
    format!("Basic {}", STANDARD.encode(pair))
}

/// The consumer's name and method as metadata says them, or the status of the refusal.
async fn who(filter: &dyn HttpFilter, ex: &mut Exchange) -> Result<String, u16> {
    if let Some(reply) = kit::request(filter, "c", ex).await {
        return Err(reply.status);
    }
    let of = |key: &str| match ex.info.metadata(NAMESPACE).and_then(|m| m.fields.get(key)).and_then(|v| v.kind.clone()) {
        Some(Kind::StringValue(text)) => text,
        _ => String::new(),
    };
    Ok(format!("{} by {}", of("name"), of("method")))
}

#[tokio::test]
async fn every_kind_of_credential() {
    let (filter, server) = compiled(CONFIG);
    let acme = "acme by api_key".to_string();
    for (path, headers, expected) in [
        ("/", vec![("x-api-key", "acme-old".to_string())], Ok(acme.clone())),
        ("/", vec![("x-api-key", "Bearer acme-new".into())], Ok(acme.clone())),
        ("/?a=1&key=acme%2Dnew", vec![], Ok(acme.clone())),
        ("/", vec![("cookie", "a=b; key=acme-new".into())], Ok(acme)),
        ("/", vec![("x-api-key", "acme-ne".into())], Err(401)),
        ("/", vec![("x-api-key", String::new())], Err(401)),
        ("/", vec![("x-api-key", "acme-old".into()), ("x-api-key", "bobs-key".into())], Err(401)),
        ("/?key=acme-old&key=bobs-key", vec![], Err(401)),
        ("/", vec![("authorization", basic("acme:open:sesame"))], Ok("acme by basic_auth".into())),
        ("/", vec![("authorization", basic("bob:one"))], Ok("bob by basic_auth".into())),
        ("/", vec![("authorization", basic("bob:two"))], Ok("bob by basic_auth".into())),
        ("/", vec![("authorization", basic("bob:three"))], Err(401)),
        ("/", vec![("authorization", basic("acme:one"))], Err(401)),
        ("/", vec![("authorization", basic("nobody"))], Err(401)),
        ("/", vec![("authorization", "Basic !".into())], Err(401)),
        ("/", vec![("authorization", basic("bob:one")), ("authorization", basic("bob:one"))], Err(401)),
        // The first kind that is there decides, good or bad.
        ("/", vec![("x-api-key", "wrong".into()), ("authorization", basic("bob:one"))], Err(401)),
        ("/", vec![("authorization", "Bearer x".into())], Err(401)),
        ("/", vec![], Err(401)),
    ] {
        let headers: Vec<_> = headers.iter().map(|(n, v)| (*n, v.as_str())).collect();
        assert_eq!(who(&*filter, &mut exchange(path, &headers)).await, expected, "{path} {headers:?}");
    }
    let count = |name: &str| server.stats.root().counter(&format!("http.test.consumer.{name}")).value();
    assert_eq!((count("identified"), count("unknown"), count("missing")), (7, 10, 2));
    assert_eq!((count("consumer.acme.requests"), count("consumer.bob.requests")), (5, 2));
}

#[tokio::test]
async fn what_other_filters_and_the_handshake_verified() {
    let (filter, _) = compiled(CONFIG);
    let mut ex = exchange("/", &[]);
    let claims = fields([("payload", object(fields([("user", object(fields([("mail", text("bob@example.com"))])))])))]);
    ex.info.set_metadata("envoy.filters.http.jwt_authn", claims);
    assert_eq!(who(&*filter, &mut ex).await, Ok("bob by jwt".into()));
    let mut ex = exchange("/", &[]);
    ex.info.set_metadata("envoy.filters.http.jwt_authn", fields([("payload", object(fields([("sub", text("x"))])))]));
    assert_eq!(who(&*filter, &mut ex).await, Err(401), "a token without the claim");
    let mut ex = exchange("/", &[]);
    ex.info.set_metadata(crate::hmac_auth::NAMESPACE, fields([("key_id", text("web-1"))]));
    assert_eq!(who(&*filter, &mut ex).await, Ok("acme by hmac".into()));
    for (san, expected) in [("spiffe://example.com/bob", Ok("bob by certificate".to_string())), ("spiffe://example.com/eve", Err(401))] {
        let mut connection = kit::connection();
        connection.tls = Some(kit::tls(None, &[san], &[]));
        let mut ex = exchange("/", &[]);
        ex.info = StreamInfo::new(Rc::new(connection), ex.info.protocol);
        assert_eq!(who(&*filter, &mut ex).await, expected);
    }
}

#[tokio::test]
async fn the_upstream_is_told_by_this_filter_alone() {
    let (filter, _) = compiled(CONFIG);
    let spoofed = [("x-consumer", "root"), ("x-plan", "gold"), ("x-consumer-method", "x")];
    let get = |ex: &Exchange, name| ex.request.headers.get_str(&HeaderName::from_static(name)).map(String::from);
    let mut ex = exchange("/a?key=acme-old&b=1", &spoofed);
    who(&*filter, &mut ex).await.unwrap();
    assert_eq!(ex.request.path, "/a?b=1");
    let told = (get(&ex, "x-consumer"), get(&ex, "x-consumer-method"), get(&ex, "x-plan"));
    assert_eq!(told, (Some("acme".into()), Some("api_key".into()), Some("gold".into())));
    assert_eq!(ex.info.filter_state.get_as::<StringState>(NAMESPACE).map(|s| s.0.as_str()), Some("acme"));
    // Bob has no plan, and cannot bring one.
    let mut ex = exchange("/", &[&spoofed[..], &[("x-api-key", "bobs-key"), ("cookie", "key=x; a=b")]].concat());
    who(&*filter, &mut ex).await.unwrap();
    assert_eq!((get(&ex, "x-plan"), get(&ex, "x-api-key"), get(&ex, "cookie")), (None, None, Some("a=b".into())));
    let mut ex = exchange("/", &[("cookie", "key=bobs-key; a=b")]);
    who(&*filter, &mut ex).await.unwrap();
    assert_eq!(get(&ex, "cookie"), Some("a=b".into()));
}

#[tokio::test]
async fn anonymous_and_routes() {
    let (filter, server) = compiled(&format!("{CONFIG}\nanonymous: {{allow: true, name: guest}}"));
    assert_eq!(who(&*filter, &mut exchange("/", &[])).await, Ok("guest by anonymous".into()));
    assert_eq!(who(&*filter, &mut exchange("/", &[("x-api-key", "wrong")])).await, Err(401));
    let on = async |config: &str, key: &str| {
        let config = parse_text::<proto::ConsumerAuthPerRoute>(config, UnknownFields::Refuse).unwrap().value;
        let mut ex = exchange("/", &[]);
        if !key.is_empty() {
            ex.request.headers.insert(HeaderName::from_static("x-api-key"), HeaderValue::try_from(key).unwrap());
        }
        ex.route = Some(Arc::new(FakeRoute::new("r", "c").with("c", kit::compile_route(&Factory, &config, &server).unwrap())));
        who(&*filter, &mut ex).await
    };
    assert_eq!(on("{allow: [acme]}", "acme-old").await, Ok("acme by api_key".into()));
    assert_eq!(on("{allow: [acme]}", "bobs-key").await, Err(403));
    assert_eq!(on("{allow: [acme]}", "").await, Err(403));
    assert_eq!(on("{deny: [bob]}", "bobs-key").await, Err(403));
    assert_eq!(on("{anonymous: {}}", "").await, Err(401));
    assert_eq!(on("{disabled: true}", "wrong").await, Ok(" by ".into()));
}

#[tokio::test]
async fn challenges() {
    let (filter, _) = compiled(CONFIG);
    let reply = kit::request(&*filter, "c", &mut exchange("/", &[])).await.unwrap();
    assert_eq!(reply.details, "consumer_denied{missing}");
    assert_eq!(reply.headers.get_str(&header::WWW_AUTHENTICATE), Some("Basic realm=\"shop\""));
}

#[tokio::test(start_paused = true)]
async fn a_file_of_consumers_and_a_key_of_a_file_rotate_at_once() {
    let folder = std::env::temp_dir().join(format!("nuncio-consumers-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (list, key) = (folder.join("consumers.yaml"), folder.join("key"));
    let consumers =
        |key: &str| format!("consumers: [{{name: carol, credentials: [{{api_key: {{data_source: {{inline_string: {key}}}}}}}]}}]");
    std::fs::write(&list, consumers("carol-1")).unwrap();
    std::fs::write(&key, "dave-1\n").unwrap();
    let (filter, _) = compiled(&format!(
        "{{consumers: [{{name: dave, credentials: [{{api_key: {{data_source: {{filename: {}}}}}}}]}}], consumers_from: {{filename: {}}}, methods: [{{api_key: {{}}}}]}}",
        key.display(),
        list.display()
    ));
    let is = async |key: &str| who(&*filter, &mut exchange("/", &[("x-api-key", key)])).await.is_ok();
    assert!(is("carol-1").await && is("dave-1").await);
    std::fs::write(&list, consumers("carol-22")).unwrap();
    std::fs::write(&key, "dave-1\ndave-2\n").unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    assert!(!is("carol-1").await && is("carol-22").await && is("dave-1").await && is("dave-2").await);
    // One that is no good changes nothing.
    std::fs::write(&list, "consumers: 1").unwrap();
    std::fs::write(&key, "dave-22").unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    assert!(is("carol-22").await && !is("dave-1").await && is("dave-22").await);
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn refused_without_a_word_of_the_secret() {
    let server = kit::server(Default::default());
    let key = "{api_key: {data_source: {inline_string: hunter2}}}";
    let list = |text: &str| format!("{{consumers_from: {{inline_string: '{text}'}}, methods: [{{api_key: {{}}}}]}}");
    for (bad, place) in [
        ("{methods: [{api_key: {}}]}".to_string(), "consumers"),
        (format!("{{consumers: [{{name: a, credentials: [{key}]}}]}}"), "methods"),
        (
            format!("{{consumers: [{{name: a, credentials: [{key}]}}, {{name: b, credentials: [{key}]}}], methods: [{{api_key: {{}}}}]}}"),
            "consumers",
        ),
        (format!("{{consumers: [{{credentials: [{key}]}}], methods: [{{api_key: {{}}}}]}}"), "consumers[0]"),
        ("{consumers: [{name: a, credentials: [{}]}], methods: [{api_key: {}}]}".into(), "consumers[0]"),
        ("{consumers: [{name: a, credentials: [{certificate: {subject: ''}}]}], methods: [{certificate: {}}]}".into(), "consumers[0]"),
        ("{consumers: [{name: a, credentials: [{api_key: {}}]}], methods: [{api_key: {}}]}".into(), "credentials[0].api_key"),
        (format!("{{consumers: [{{name: a, credentials: [{key}]}}], methods: [{{}}]}}"), "methods[0]"),
        (list("hunter2"), "consumers_from"),
        (
            list(r#"{"consumers":[{"name":"hunter2","credentials":[{"api_key":{"data_source":{"filename":"/x"}}}]}]}"#)
                .replace("hunter2\",\"c", "x\",\"c"),
            "consumers_from",
        ),
    ] {
        let config = parse_text::<proto::ConsumerAuth>(&bad, UnknownFields::Refuse).unwrap().value;
        let error = kit::compile(&Factory, &config, &server).unwrap_err();
        assert!(error.contains(place) && !error.contains("hunter2"), "{bad}: {error}");
    }
}

#[tokio::test]
async fn no_credential_reaches_the_upstream() {
    let (filter, _) = compiled(CONFIG);
    let headers = [("x-api-key", "acme-old".to_string()), ("cookie", "a=b; key=bobs-key".into()), ("authorization", basic("bob:one"))];
    let headers: Vec<(&'static str, &str)> = headers.iter().map(|(n, v)| (*n, v.as_str())).collect();
    let mut ex = exchange("/p?key=acme-new&a=1", &headers);
    assert_eq!(who(&*filter, &mut ex).await, Ok("acme by api_key".to_string()));
    let left: Vec<_> =
        ex.request.headers.iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())).filter(|h| !h.starts_with("x-")).collect();
    assert_eq!((ex.request.path.as_str(), left), ("/p?a=1", vec!["cookie: a=b".to_string()]));
    // What is no credential of this filter stays.
    let mut ex = exchange("/", &[("x-api-key", "acme-old"), ("authorization", "Bearer abc.def")]);
    assert!(who(&*filter, &mut ex).await.is_ok());
    assert!(ex.request.headers.contains(&header::AUTHORIZATION));
}

#[tokio::test]
async fn a_redirect_that_the_proxy_follows_names_nobody() {
    let (filter, _) = compiled(&format!("{CONFIG}anonymous: {{allow: true}}\n"));
    let mut first = exchange("/", &[("x-api-key", "acme-old")]);
    assert!(who(&*filter, &mut first).await.is_ok());
    let shown = |ex: &Exchange| ex.info.filter_state.get(NAMESPACE).and_then(|s| s.as_string());
    assert_eq!(shown(&first).as_deref(), Some("acme"));
    let mut second = exchange("/target", &[]);
    second.info.filter_state = first.info.filter_state.clone();
    assert_eq!(who(&*filter, &mut second).await, Ok(" by ".to_string()));
    assert_eq!(shown(&second), None);
}
