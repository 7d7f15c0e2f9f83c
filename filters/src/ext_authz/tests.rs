//! The filter against real services, over gRPC and HTTP.

use super::*;
use ::http::Method;
use bytes::Bytes;
use nuncio_callout::test_kit::{Answer, GrpcServer, HTTP2, HttpServer, cluster, run};
use nuncio_core::registry::Server;
use nuncio_core::test_kit::{self as kit, FakeRoute};
use nuncio_core::{Body, RequestHead, ResponseHead};
use nuncio_proto::envoy::extensions::filters::http::ext_authz::v3 as proto;
use nuncio_proto::envoy::service::auth::v3::{CheckRequest, CheckResponse};
use nuncio_proto::json::{UnknownFields, parse_text};

fn read<M: nuncio_proto::Message + nuncio_proto::Name + Default>(yaml: &str) -> M {
    parse_text(yaml, UnknownFields::Refuse).unwrap_or_else(|e| panic!("{e:?}")).value
}

fn filter(server: &Arc<Server>, yaml: &str) -> Arc<dyn HttpFilter> {
    kit::compile(&Factory, &read::<proto::ExtAuthz>(yaml), server).unwrap_or_else(|e| panic!("{e}"))
}

/// Timeouts: one that no busy machine runs into, and one that a service which hangs costs.
const PATIENT: &str = "60s";
const HASTY: &str = "0.05s";
const GRPC: &str = "{transport_api_version: V3, grpc_service: {envoy_grpc: {cluster_name: auth}, timeout: 60s}";

fn with(base: &str, more: &str) -> String {
    format!("{base}{more}}}")
}

fn request() -> Exchange {
    let mut head = RequestHead::new(Method::GET, "shop.test", "/cart?a=1&b=2");
    for (name, value) in [("x-user", "ann"), ("x-user", "bob"), ("authorization", "secret"), ("x-envoy-auth-partial-body", "lie")] {
        head.headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    let mut ex = kit::exchange(head);
    ex.route = Some(Arc::new(FakeRoute::new("r", "c")));
    ex
}

fn header(ex: &Exchange, name: &'static str) -> Option<String> {
    ex.request.header(&nuncio_core::HeaderKey::parse(name)?).map(|v| String::from_utf8_lossy(&v).into_owned())
}

fn count(server: &Server, name: &str) -> u64 {
    server.stats.root().scope("http.test.ext_authz.").counter(name).value()
}

async fn grpc_server(yaml: &'static str) -> (GrpcServer, Arc<Server>) {
    let service = GrpcServer::start(move |_| Answer::message(&read::<CheckResponse>(yaml))).await;
    let server = kit::server(kit::fields([("LABELS", kit::object(kit::fields([("app", kit::text("shop"))])))]));
    cluster(&server, "auth", service.address, HTTP2);
    (service, server)
}

fn asked(service: &GrpcServer) -> CheckRequest {
    service.calls.borrow().last().map(|c| c.decode()).unwrap_or_default()
}

#[test]
fn allows_and_changes_the_request() {
    run(async {
        let yaml = "{status: {code: 0}, dynamic_metadata: {team: red}, ok_response: {headers: [{header: {key: x-user, value: eve}, append: true}, \
                    {header: {key: x-new, value: n}, append: true}, {header: {key: x-set, value: s}}, {header: {key: ':path', value: '/other?a=1&b=2&c=3'}}], \
                    headers_to_remove: [authorization, ':method', host], query_parameters_to_set: [{key: a, value: '9'}, {key: z, value: '1'}], \
                    query_parameters_to_remove: [b], response_headers_to_add: [{header: {key: x-r, value: one}}, {header: {key: x-o, value: two}, append_action: OVERWRITE_IF_EXISTS}]}}";
        let (service, server) = grpc_server(yaml).await;
        let filter =
            filter(&server, &with(GRPC, ", clear_route_cache: true, bootstrap_metadata_labels_key: LABELS, include_tls_session: true"));
        let mut ex = request();
        assert!(kit::request(&*filter, "auth", &mut ex).await.is_none());
        assert_eq!(header(&ex, "x-user").as_deref(), Some("ann,bob,eve"));
        assert_eq!((header(&ex, "x-new"), header(&ex, "x-set").as_deref()), (None, Some("s")), "append changes only what is there");
        assert_eq!((header(&ex, "authorization"), ex.request.method.as_str()), (None, "GET"));
        assert_eq!(ex.request.path, "/other?a=9&c=3&z=1");
        assert!(ex.route_cleared && count(&server, "ok") == 1);
        let metadata = ex.info.metadata(NAMESPACE).unwrap();
        assert!(metadata.fields.contains_key("team") && metadata.fields.contains_key("ext_authz_duration"));
        let mut head = ResponseHead::new(::http::StatusCode::OK);
        head.headers.append(HeaderName::from_static("x-r"), HeaderValue::from_static("zero"));
        kit::respond(&*filter, "auth", &mut ex, head, Body::Empty);
        let headers = &ex.response.as_ref().unwrap().headers;
        assert_eq!(headers.get_all(&HeaderName::from_static("x-r")).count(), 2);
        assert!(!headers.contains(&HeaderName::from_static("x-o")));

        let attributes = asked(&service).attributes.unwrap();
        let http = attributes.request.unwrap().http.unwrap();
        assert_eq!(
            (http.method.as_str(), http.path.as_str(), http.host.as_str(), http.protocol.as_str()),
            ("GET", "/cart?a=1&b=2", "shop.test", "HTTP/1.1")
        );
        assert_eq!(http.headers.get("x-user").map(String::as_str), Some("ann,bob"));
        assert_eq!(http.headers.get(":path").map(String::as_str), Some("/cart?a=1&b=2"));
        assert!(!http.headers.contains_key("x-envoy-auth-partial-body"), "a client does not speak for the proxy");
        assert_eq!(attributes.destination.unwrap().labels.get("app").map(String::as_str), Some("shop"));
        assert!(attributes.tls_session.is_some_and(|s| s.sni.is_empty()), "there is no TLS");
    });
}

#[test]
fn denies_as_the_service_says() {
    run(async {
        let yaml = "{status: {code: 7}, denied_response: {status: {code: 401}, body: 'go away', headers: [{header: {key: set-cookie, value: a}}, {header: {key: set-cookie, value: b}}]}}";
        let (_service, server) = grpc_server(yaml).await;
        let filter = filter(&server, &with(GRPC, ", max_denied_response_body_bytes: 2"));
        let mut ex = request();
        let reply = kit::request(&*filter, "auth", &mut ex).await.unwrap();
        assert_eq!((reply.status, reply.body.as_ref(), reply.details.as_ref()), (401, b"go".as_ref(), "ext_authz_denied"));
        assert!(reply.flags.has(ResponseFlags::UNAUTHORIZED_EXTERNAL_SERVICE) && reply.headers.len() == 2);
        assert_eq!((count(&server, "denied"), count(&server, "ok")), (1, 0));
    });
}

#[test]
fn a_denial_without_words_is_403() {
    run(async {
        let (_service, server) = grpc_server("{status: {code: 16}}").await;
        let reply = kit::request(&*filter(&server, &with(GRPC, "")), "auth", &mut request()).await.unwrap();
        assert_eq!((reply.status, reply.details.as_ref()), (403, "ext_authz_denied"));
    });
}

#[test]
fn errors_close_or_open() {
    run(async {
        let server = kit::server(kit::fields([]));
        let closed = filter(&server, &with(GRPC, ", status_on_error: {code: ServiceUnavailable}"));
        let reply = kit::request(&*closed, "auth", &mut request()).await.unwrap();
        assert_eq!((reply.status, reply.details.as_ref(), reply.body.len()), (503, "ext_authz_error", 0));
        let open = filter(&server, &with(GRPC, ", failure_mode_allow: true, failure_mode_allow_header_add: true"));
        let mut ex = request();
        assert!(kit::request(&*open, "auth", &mut ex).await.is_none());
        assert_eq!(header(&ex, "x-envoy-auth-failure-mode-allowed").as_deref(), Some("true"));
        assert_eq!((count(&server, "error"), count(&server, "failure_mode_allowed")), (2, 1));
        // A service that hangs costs its timeout, and its garbage is an error.
        let hasty = filter(&server, &with(&GRPC.replace(PATIENT, HASTY), ", status_on_error: {code: ServiceUnavailable}"));
        for answer in [Answer::Hang, Answer::Reset, Answer::Raw(b"\0\0\0\0\x01\xff"), Answer::Status(13, "broken"), Answer::Http(500)] {
            let said = answer.clone();
            let service = GrpcServer::start(move |_| said.clone()).await;
            cluster(&server, "auth", service.address, HTTP2);
            let filter = if matches!(answer, Answer::Hang) { &hasty } else { &closed };
            assert_eq!(kit::request(&**filter, "auth", &mut request()).await.unwrap().status, 503);
        }
    });
}

#[test]
fn an_error_may_have_its_own_response() {
    run(async {
        let (_service, server) = grpc_server("{error_response: {status: {code: 429}, body: later}}").await;
        let reply = kit::request(&*filter(&server, &with(GRPC, "")), "auth", &mut request()).await.unwrap();
        assert_eq!((reply.status, reply.body.as_ref(), reply.details.as_ref()), (429, b"later".as_ref(), "ext_authz_error"));
    });
}

#[test]
fn mutations_are_checked() {
    run(async {
        let yaml = "{ok_response: {headers: [{header: {key: 'bad name', value: x}}, {header: {key: x-good, value: y}}]}}";
        let (_service, server) = grpc_server(yaml).await;
        let strict = filter(&server, &with(GRPC, ", validate_mutations: true"));
        let reply = kit::request(&*strict, "auth", &mut request()).await.unwrap();
        assert_eq!((reply.status, reply.details.as_ref(), count(&server, "invalid")), (500, "ext_authz_invalid", 1));
        let mut ex = request();
        assert!(kit::request(&*filter(&server, &with(GRPC, "")), "auth", &mut ex).await.is_none());
        assert_eq!(header(&ex, "x-good").as_deref(), Some("y"));
        let mut ex = request();
        let ruled = filter(&server, &with(GRPC, ", decoder_header_mutation_rules: {disallow_all: true}"));
        assert!(kit::request(&*ruled, "auth", &mut ex).await.is_none());
        assert_eq!(header(&ex, "x-good"), None);
    });
}

#[test]
fn bodies_are_sent_whole_or_in_part() {
    run(async {
        let (service, server) = grpc_server("{}").await;
        let body = || kit::data([b"abc".as_slice(), b"def", b"ghi"]);
        let whole = filter(&server, &with(GRPC, ", with_request_body: {max_request_bytes: 9}"));
        let mut ex = request();
        ex.request_body = body();
        assert!(kit::request(&*whole, "auth", &mut ex).await.is_none());
        let http = |service: &GrpcServer| asked(service).attributes.unwrap().request.unwrap().http.unwrap();
        assert_eq!(
            (http(&service).body.as_str(), http(&service).headers.get("x-envoy-auth-partial-body").unwrap().as_str()),
            ("abcdefghi", "false")
        );
        assert_eq!(kit::collect(&mut ex.request_body).await.unwrap().0, "abcdefghi");

        let small = filter(&server, &with(GRPC, ", with_request_body: {max_request_bytes: 8}, failure_mode_allow: true"));
        let mut ex = request();
        ex.request_body = body();
        let reply = kit::request(&*small, "auth", &mut ex).await.unwrap();
        assert_eq!((reply.status, reply.details.as_ref()), (413, "request_payload_too_large"));

        let part =
            filter(&server, &with(GRPC, ", with_request_body: {max_request_bytes: 4, allow_partial_message: true, pack_as_bytes: true}"));
        let mut ex = request();
        ex.request_body = body();
        assert!(kit::request(&*part, "auth", &mut ex).await.is_none());
        let sent = http(&service);
        assert_eq!(
            (sent.raw_body.as_slice(), sent.headers.get("x-envoy-auth-partial-body").unwrap().as_str()),
            (b"abcd".as_slice(), "true")
        );
        assert_eq!(kit::collect(&mut ex.request_body).await.unwrap().0, "abcdefghi", "the upstream gets all of it");
    });
}

#[test]
fn a_body_that_breaks_off_is_not_let_through() {
    run(async {
        let (service, server) = grpc_server("{}").await;
        let filter = filter(&server, &with(GRPC, ", with_request_body: {max_request_bytes: 9}, failure_mode_allow: true"));
        let mut ex = request();
        ex.request_body = crate::whole::failing();
        let reply = kit::request(&*filter, "auth", &mut ex).await.unwrap();
        assert_eq!((reply.status, reply.details.as_ref()), (400, "request_body_failed"));
        assert!(service.calls.borrow().is_empty());
    });
}

#[test]
fn routes_have_their_say() {
    run(async {
        let (service, server) = grpc_server("{status: {code: 7}}").await;
        let filter = filter(&server, &with(GRPC, ""));
        let route = |yaml: &str| kit::compile_route(&Factory, &read::<proto::ExtAuthzPerRoute>(yaml), &server).unwrap();
        let mut ex = request();
        ex.route = Some(Arc::new(FakeRoute::new("r", "c").with("auth", route("{disabled: true}"))));
        assert!(kit::request(&*filter, "auth", &mut ex).await.is_none());
        let base = route("{check_settings: {context_extensions: {a: '1', b: '2'}}}");
        let more = route("{check_settings: {context_extensions: {b: '3'}}}");
        ex.route = Some(Arc::new(FakeRoute::new("r", "c").with("auth", base).with("auth", more)));
        assert!(kit::request(&*filter, "auth", &mut ex).await.is_some());
        let extensions = asked(&service).attributes.unwrap().context_extensions;
        assert_eq!(extensions.into_iter().map(|(k, v)| k + &v).collect::<Vec<_>>(), ["a1", "b3"]);
        let elsewhere = route("{check_settings: {grpc_service: {envoy_grpc: {cluster_name: nobody}}}}");
        ex.route = Some(Arc::new(FakeRoute::new("r", "c").with("auth", elsewhere)));
        assert_eq!(kit::request(&*filter, "auth", &mut ex).await.unwrap().details, "ext_authz_error");
        ex.route = None;
        assert!(kit::request(&*filter, "auth", &mut ex).await.is_none(), "without a route nobody is asked");
    });
}

#[test]
fn enabled_by_metadata_and_runtime() {
    run(async {
        let server = kit::server(kit::fields([]));
        let istio = filter(
            &server,
            &with(
                GRPC,
                ", filter_enabled_metadata: {filter: envoy.filters.http.rbac, path: [{key: istio-ext-authz-x-shadow_effective_policy_id}], value: {string_match: {prefix: istio-ext-authz}}}",
            ),
        );
        let mut ex = request();
        assert!(kit::request(&*istio, "auth", &mut ex).await.is_none());
        let rbac = kit::fields([("istio-ext-authz-x-shadow_effective_policy_id", kit::text("istio-ext-authz-ns[foo]-policy"))]);
        ex.info.set_metadata("envoy.filters.http.rbac", rbac);
        assert!(kit::request(&*istio, "auth", &mut ex).await.is_some());
        let off = ", filter_enabled: {default_value: {numerator: 0}}, deny_at_disable: {default_value: true, runtime_key: deny}";
        let off = filter(&server, &with(GRPC, off));
        assert_eq!(kit::request(&*off, "auth", &mut request()).await.unwrap().details, "ext_authz_error");
        server.runtime.set("deny", "false");
        assert!(kit::request(&*off, "auth", &mut request()).await.is_none());
        assert_eq!(count(&server, "disabled"), 3);
    });
}

const HTTP: &str = "{http_service: {server_uri: {uri: 'http://auth.test:9000', cluster: auth, timeout: 60s}, path_prefix: /check, \
                    authorization_request: {headers_to_add: [{key: x-added, value: '%REQ(:METHOD)%'}]}, authorization_response: {allowed_upstream_headers: {patterns: [{prefix: x-up}]}, \
                    allowed_client_headers: {patterns: [{exact: x-why}]}, allowed_client_headers_on_success: {patterns: [{exact: x-ok}]}, dynamic_metadata_from_headers: {patterns: [{exact: x-meta}]}}}";

async fn http_server(answer: &'static str) -> (HttpServer, Arc<Server>) {
    let service = HttpServer::start(move |_| (answer != "hang").then(|| answer.to_string())).await;
    let server = kit::server(kit::fields([]));
    cluster(&server, "auth", service.address, "");
    (service, server)
}

#[test]
fn http_service_allows() {
    run(async {
        let answer = "HTTP/1.1 200 OK\r\nx-up-a: 1\r\nx-other: 2\r\nx-ok: yes\r\nx-meta: m\r\nx-envoy-auth-headers-to-remove: x-user, authorization\r\ncontent-length: 0\r\n\r\n";
        let (service, server) = http_server(answer).await;
        let filter = filter(
            &server,
            &with(HTTP, ", allowed_headers: {patterns: [{exact: x-user}]}, disallowed_headers: {patterns: [{exact: authorization}]}"),
        );
        let mut ex = request();
        assert!(kit::request(&*filter, "auth", &mut ex).await.is_none());
        assert_eq!(
            (header(&ex, "x-up-a").as_deref(), header(&ex, "x-other"), header(&ex, "x-user"), header(&ex, "authorization")),
            (Some("1"), None, None, None)
        );
        assert!(ex.info.metadata(NAMESPACE).unwrap().fields.contains_key("x-meta"));
        kit::respond(&*filter, "auth", &mut ex, ResponseHead::new(::http::StatusCode::OK), Body::Empty);
        assert_eq!(ex.response.as_ref().unwrap().headers.get_str(&HeaderName::from_static("x-ok")), Some("yes"));
        let seen = service.last();
        assert!(seen.starts_with("GET /check/cart?a=1&b=2 HTTP/1.1\r\nhost: shop.test\r\n"), "{seen}");
        assert!(
            seen.contains("x-user: ann,bob\r\n") && seen.contains("x-added: GET\r\n") && seen.contains("content-length: 0\r\n"),
            "{seen}"
        );
        assert!(!seen.contains("secret"), "{seen}");
    });
}

#[test]
fn http_service_denies() {
    run(async {
        let answer = "HTTP/1.1 401 No\r\nx-why: because\r\nx-hidden: 1\r\nwww-authenticate: Basic\r\ncontent-length: 4\r\n\r\nnope";
        let (_service, server) = http_server(answer).await;
        let mut ex = request();
        ex.request_body = Body::Full(Bytes::from_static(b"body"));
        let reply =
            kit::request(&*filter(&server, &with(HTTP, ", with_request_body: {max_request_bytes: 10}")), "auth", &mut ex).await.unwrap();
        assert_eq!((reply.status, reply.body.as_ref()), (401, b"nope".as_ref()));
        let names: Vec<_> = reply.headers.iter().map(|(n, _)| n.as_str().to_string()).collect();
        assert_eq!(names, ["x-why", "www-authenticate", "content-length"]);
    });
}

#[test]
fn http_service_fails() {
    run(async {
        for answer in ["HTTP/1.1 503 Down\r\ncontent-length: 0\r\n\r\n", "hang", "", "garbage\r\n\r\n"] {
            let (_service, server) = http_server(answer).await;
            let reply = kit::request(
                &*filter(&server, &with(&HTTP.replace(PATIENT, if answer == "hang" { HASTY } else { PATIENT }), "")),
                "auth",
                &mut request(),
            )
            .await
            .unwrap();
            assert_eq!((reply.status, reply.details.as_ref()), (403, "ext_authz_error"), "{answer}");
        }
    });
}

#[test]
fn wrong_configurations_are_refused() {
    let server = kit::server(kit::fields([]));
    for (yaml, word) in [
        ("{}", "grpc_service or http_service"),
        ("{grpc_service: {envoy_grpc: {cluster_name: a}}}", "transport_api_version"),
        (&with(GRPC, ", with_request_body: {}"), "max_request_bytes"),
        ("{http_service: {path_prefix: a, server_uri: {uri: 'a', cluster: b, timeout: 1s}}}", "path_prefix"),
    ] {
        let error = kit::compile(&Factory, &read::<proto::ExtAuthz>(yaml), &server).err().unwrap_or_default();
        assert!(error.contains(word), "{yaml}: {error}");
    }
    assert!(kit::compile_route(&Factory, &proto::ExtAuthzPerRoute::default(), &server).is_err());
}

/// What a filter left under a name: its text, or a field of it.
fn left(ex: &Exchange, name: &str, field: Option<&str>) -> Option<String> {
    let object = ex.info.filter_state.get(name)?;
    field.map_or_else(|| object.as_string(), |field| object.field(field))
}

#[test]
fn a_shadow_decides_and_refuses_nobody() {
    run(async {
        let yaml = "{status: {code: 7}, denied_response: {status: {code: 401}, body: no, headers: [{header: {key: x-why, value: a}}]}}";
        let (_service, server) = grpc_server(yaml).await;
        let shadow = filter(&server, &with(GRPC, ", shadow_mode: true"));
        let mut ex = request();
        assert!(kit::request(&*shadow, "auth", &mut ex).await.is_none());
        let said = r#"{"check_result":"DENIED","status_code":401,"response_headers":[{"key":"x-why","value":"a"}]}"#;
        assert_eq!(left(&ex, "auth.shadow", None).as_deref(), Some(said));
        let json = ex.info.filter_state.get("auth.shadow").and_then(|o| o.as_json());
        assert_eq!(json.as_deref(), Some(r#"{"checkResult":"DENIED","statusCode":401,"responseHeaders":[{"key":"x-why","value":"a"}]}"#));
        assert_eq!((count(&server, "denied"), count(&server, "shadow_denied"), ex.info.flags.is_empty()), (1, 1, true));
        let off =
            ", shadow_mode: true, filter_enabled: {default_value: {numerator: 0}}, deny_at_disable: {runtime_key: x, default_value: true}";
        let mut ex = request();
        assert!(kit::request(&*filter(&server, &with(GRPC, off)), "auth", &mut ex).await.is_none());
        assert_eq!(left(&ex, "auth.shadow", None).as_deref(), Some(r#"{"check_result":"DENIED","status_code":403}"#));
        assert!(ex.info.flags.has(ResponseFlags::UNAUTHORIZED_EXTERNAL_SERVICE));
    });
}

#[test]
fn calls_tell_what_they_took() {
    run(async {
        let (_service, server) = grpc_server("{status: {code: 0}}").await;
        let told = filter(&server, &with(GRPC, ", emit_filter_state_stats: true, filter_metadata: {a: b}"));
        let mut ex = request();
        assert!(kit::request(&*told, "auth", &mut ex).await.is_none());
        let number = |name: &str| left(&ex, "auth", Some(name)).and_then(|n| n.parse::<u64>().ok());
        assert!(
            number("latency_us").is_some()
                && number("bytesSent").is_some_and(|n| n > 50)
                && number("bytesReceived").is_some_and(|n| n > 10)
        );
        let mut ex = request();
        kit::request(&*filter(&server, &with(GRPC, "")), "auth", &mut ex).await;
        assert!(ex.info.filter_state.get("auth").is_none());
    });
}

#[test]
fn listed_headers_clear_the_route_cache() {
    run(async {
        let (_service, server) =
            grpc_server("{status: {code: 0}, ok_response: {headers: [{header: {key: x-set, value: s}}], headers_to_remove: [x-gone]}}")
                .await;
        for (listed, cleared) in [("[X-Set]", true), ("[x-gone]", true), ("[x-other]", false), ("[]", true)] {
            let filter = filter(&server, &with(GRPC, &format!(", clear_route_cache: true, clear_route_cache_headers: {listed}")));
            let mut ex = request();
            kit::request(&*filter, "auth", &mut ex).await;
            assert_eq!(ex.route_cleared, cleared, "{listed}");
        }
    });
}
