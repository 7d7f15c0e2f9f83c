//! Filters that ask services about connections, against real services.

use super::*;
use bytes::BytesMut;
use nuncio_callout::test_kit::{Answer, GrpcServer, HTTP2, cluster, run};
use nuncio_core::diag::{At, Report};
use nuncio_core::info::TrafficDirection;
use nuncio_core::network::{NetworkAction, NetworkFilter, NetworkFilterConfig};
use nuncio_core::registry::{FactoryCx, NetworkFilterFactory, Server};
use nuncio_core::test_kit as kit;
use nuncio_core::{ConnectionInfo, ResponseFlags, StreamInfo};
use nuncio_proto::envoy::extensions::filters::network::ext_authz::v3::ExtAuthz;
use nuncio_proto::envoy::extensions::filters::network::ratelimit::v3::RateLimit;
use nuncio_proto::envoy::service::auth::v3::{CheckRequest, CheckResponse};
use nuncio_proto::envoy::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse};
use nuncio_proto::json::{UnknownFields, parse_text};
use nuncio_proto::{Message, Name};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;

const AUTH: &str = "stat_prefix: p, transport_api_version: V3, grpc_service: {envoy_grpc: {cluster_name: service}, timeout: 10s}";
const LIMIT: &str = "stat_prefix: p, domain: shop, timeout: 10s, descriptors: [{entries: [{key: ip, value: '%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%'}, \
                     {key: all, value: 'yes'}]}], rate_limit_service: {transport_api_version: V3, grpc_service: {envoy_grpc: {cluster_name: service}}}";

fn read<M: Message + Name + Default>(yaml: &str) -> M {
    parse_text(yaml, UnknownFields::Refuse).unwrap_or_else(|e| panic!("{e:?}\n{yaml}")).value
}

fn try_compile(
    factory: &dyn NetworkFilterFactory,
    config: &impl Message,
    server: &Arc<Server>,
) -> (Option<Arc<dyn NetworkFilterConfig>>, String) {
    let mut report = Report::new();
    let scope = server.stats.root();
    let mut cx = FactoryCx { server, scope: &scope, direction: TrafficDirection::Unspecified, report: &mut report };
    let compiled = factory.compile(&config.encode_to_vec(), &At::Root, &mut cx);
    let found: Vec<_> = report.items.iter().map(ToString::to_string).collect();
    (compiled.filter(|_| !report.has_errors()), found.join("\n"))
}

/// A server with the filter's cluster, whose service answers with `answer`, and the compiled filter.
struct Rig {
    service: GrpcServer,
    server: Arc<Server>,
    config: Arc<dyn NetworkFilterConfig>,
    prefix: &'static str,
}

impl Rig {
    async fn new(factory: &dyn NetworkFilterFactory, config: &impl Message, prefix: &'static str, answer: Answer) -> Self {
        let service = GrpcServer::start(move |_| answer.clone()).await;
        let server = kit::server(kit::fields([("LABELS", kit::object(kit::fields([("app", kit::text("shop"))])))]));
        cluster(&server, "service", service.address, HTTP2);
        let (config, problems) = try_compile(factory, config, &server);
        let config = config.unwrap_or_else(|| panic!("{problems}"));
        Self { service, server, config, prefix }
    }
    async fn auth(more: &str, answer: Answer) -> Self {
        Self::new(&ExtAuthzFactory, &read::<ExtAuthz>(&format!("{{{AUTH}{more}}}")), "ext_authz.p.", answer).await
    }
    async fn limit(more: &str, answer: Answer) -> Self {
        Self::new(&RateLimitFactory, &read::<RateLimit>(&format!("{{{LIMIT}{more}}}")), "ratelimit.p.", answer).await
    }
    fn connection(&self) -> Open {
        let connection: Rc<ConnectionInfo> = Rc::new(kit::connection());
        Open { filter: self.config.create(&connection).unwrap(), info: StreamInfo::new(connection, None) }
    }
    fn count(&self, name: &str) -> u64 {
        self.server.stats.root().scope(self.prefix).counter(name).value()
    }
    fn active(&self) -> i64 {
        self.server.stats.root().scope(self.prefix).gauge("active").value()
    }
    fn asked<M: Message + Default>(&self) -> M {
        self.service.calls.borrow().last().map(|c| c.decode()).unwrap_or_default()
    }
}

struct Open {
    filter: Box<dyn NetworkFilter>,
    info: StreamInfo,
}

impl Open {
    fn begin(&mut self) -> NetworkAction {
        self.filter.on_new(&mut self.info, &mut BytesMut::new())
    }
    fn read(&mut self, data: &str) -> NetworkAction {
        self.filter.on_read(&mut self.info, &mut BytesMut::from(data), false)
    }
    async fn wait(&mut self) -> NetworkAction {
        poll_fn(|cx| self.filter.poll_wait(cx, &mut self.info)).await
    }
}

fn closed(why: &NetworkAction) -> bool {
    matches!(why, NetworkAction::Close(why) if why.is_empty())
}

fn check(yaml: &str) -> Answer {
    Answer::message(&read::<CheckResponse>(yaml))
}

#[test]
fn a_connection_is_authorized_by_its_first_bytes() {
    run(async {
        let more = ", bootstrap_metadata_labels_key: LABELS, include_tls_session: true, metadata_context_namespaces: [given, absent]";
        let rig = Rig::auth(more, check("{status: {code: 0}, dynamic_metadata: {team: red}}")).await;
        let mut open = rig.connection();
        open.info.connection.metadata.borrow_mut().insert("given".into(), kit::fields([("k", kit::text("v"))]));
        assert_eq!((open.begin(), open.read("")), (NetworkAction::Continue, NetworkAction::Hold));
        assert_eq!((rig.count("total"), open.filter.wants_data()), (0, true), "there was nothing to ask about");
        assert_eq!((open.read("x"), rig.active()), (NetworkAction::Wait, 1));
        assert_eq!(open.wait().await, NetworkAction::Continue);
        assert_eq!((rig.count("total"), rig.count("ok"), rig.active(), open.filter.wants_data()), (1, 1, 0, false));
        let metadata = open.info.metadata("envoy.filters.network.ext_authz").unwrap();
        assert!(metadata.fields.contains_key("team") && metadata.fields.contains_key("ext_authz_duration"));
        let attributes = rig.asked::<CheckRequest>().attributes.unwrap();
        assert_eq!(attributes.destination.unwrap().labels.get("app").map(String::as_str), Some("shop"));
        assert!(
            attributes.tls_session.is_some_and(|s| s.sni.is_empty()) && attributes.request.is_none(),
            "there is neither TLS nor a request"
        );
        assert_eq!(attributes.metadata_context.unwrap().filter_metadata.keys().collect::<Vec<_>>(), ["given"]);
    });
}

#[test]
fn a_refused_connection_is_closed() {
    run(async {
        let rig = Rig::auth("", check("{status: {code: 7}}")).await;
        let mut open = rig.connection();
        open.read("x");
        assert!(closed(&open.wait().await) && open.info.flags.has(ResponseFlags::UNAUTHORIZED_EXTERNAL_SERVICE));
        assert_eq!(open.info.details.as_deref(), Some("ext_authz_denied"));
        assert_eq!((rig.count("denied"), rig.count("cx_closed"), rig.active()), (1, 1, 0));
        for answer in [Answer::Reset, Answer::Raw(b"\0\0\0\0\x01\xff"), Answer::Status(13, "broken"), Answer::Http(500)] {
            let (shut, allowing) = (Rig::auth("", answer.clone()).await, Rig::auth(", failure_mode_allow: true", answer).await);
            let (mut one, mut other) = (shut.connection(), allowing.connection());
            assert_eq!((one.read("x"), other.read("x")), (NetworkAction::Wait, NetworkAction::Wait));
            assert!(closed(&one.wait().await) && one.info.details.as_deref() == Some("ext_authz_error"));
            assert_eq!(other.wait().await, NetworkAction::Continue);
            assert_eq!((shut.count("error"), shut.count("cx_closed"), shut.count("failure_mode_allowed")), (1, 1, 0));
            assert_eq!((allowing.count("error"), allowing.count("cx_closed"), allowing.count("failure_mode_allowed")), (1, 0, 1));
        }
    });
}

#[test]
fn shadow_mode_only_tells() {
    run(async {
        let rig = Rig::auth(", shadow_mode: true", check("{status: {code: 7}, denied_response: {status: {code: 401}}}")).await;
        let mut open = rig.connection();
        open.read("x");
        assert_eq!(open.wait().await, NetworkAction::Continue);
        assert_eq!((rig.count("denied"), rig.count("cx_closed")), (1, 0));
        let state = open.info.connection.filter_state.borrow();
        let decision = state.get("envoy.filters.network.ext_authz").unwrap();
        assert_eq!(decision.as_string().as_deref(), Some(r#"{"check_result":"DENIED","status_code":401}"#));
        assert_eq!(decision.as_json().as_deref(), Some(r#"{"checkResult":"DENIED","statusCode":401}"#));
        assert_eq!((decision.field("check_result").as_deref(), decision.field("other")), (Some("DENIED"), None));
    });
}

#[test]
fn metadata_says_who_is_asked_about() {
    run(async {
        let enabled = ", filter_enabled_metadata: {filter: ns, path: [{key: k}], value: {string_match: {exact: v}}}";
        let rig = Rig::auth(enabled, check("{status: {code: 7}}")).await;
        let mut open = rig.connection();
        assert_eq!((open.read("x"), rig.count("disabled"), rig.count("total")), (NetworkAction::Continue, 1, 0));
        open.info.set_metadata("ns", kit::fields([("k", kit::text("v"))]));
        assert_eq!((open.read("y"), rig.count("disabled"), rig.count("total")), (NetworkAction::Wait, 1, 1), "metadata may come later");
        let listeners = rig.connection();
        listeners.info.connection.metadata.borrow_mut().insert("ns".into(), kit::fields([("k", kit::text("v"))]));
        assert_eq!({ listeners }.read("x"), NetworkAction::Wait, "that of listener filters counts");
    });
}

#[test]
fn a_connection_that_ends_ends_the_call() {
    run(async {
        for rig in [Rig::auth("", Answer::Hang).await, Rig::limit("", Answer::Hang).await] {
            let mut open = rig.connection();
            let asked = [open.begin(), open.read("x")].contains(&NetworkAction::Wait);
            tokio::select! {
                biased;
                _ = open.wait() => panic!("nobody answered"),
                () = rig.service.wait_for(1) => {}
            }
            assert_eq!((asked, rig.active()), (true, 1));
            drop(open);
            assert_eq!((rig.active(), rig.count("total"), rig.count("error")), (0, 1, 0));
        }
    });
}

#[test]
fn connections_are_counted_by_a_service() {
    run(async {
        let said = |yaml: &str| Answer::message(&read::<RateLimitResponse>(yaml));
        let rig = Rig::limit("", said("{overall_code: OK, dynamic_metadata: {left: 3}}")).await;
        let mut open = rig.connection();
        assert_eq!((open.begin(), rig.active()), (NetworkAction::Wait, 1), "before it says anything");
        assert_eq!(open.wait().await, NetworkAction::Continue);
        assert_eq!((rig.count("total"), rig.count("ok"), rig.active()), (1, 1, 0));
        assert!(open.info.metadata("envoy.filters.network.ratelimit").unwrap().fields.contains_key("left"));
        let question: RateLimitRequest = rig.asked();
        let entries: Vec<_> = question.descriptors[0].entries.iter().map(|e| (e.key.as_str(), e.value.as_str())).collect();
        assert_eq!((question.domain.as_str(), entries), ("shop", vec![("ip", "10.0.0.1"), ("all", "yes")]));

        let rig = Rig::limit("", said("{overall_code: OVER_LIMIT}")).await;
        let mut open = rig.connection();
        open.begin();
        assert!(closed(&open.wait().await));
        assert_eq!((rig.count("over_limit"), rig.count("cx_closed")), (1, 1));
        rig.server.runtime.set("ratelimit.tcp_filter_enforcing", "0");
        let mut open = rig.connection();
        open.begin();
        assert_eq!((open.wait().await, rig.count("over_limit"), rig.count("cx_closed")), (NetworkAction::Continue, 2, 1));
        rig.server.runtime.set("ratelimit.tcp_filter_enabled", "0");
        assert_eq!((rig.connection().begin(), rig.count("total")), (NetworkAction::Continue, 2));

        let (open, shut) = (Rig::limit("", Answer::Reset).await, Rig::limit(", failure_mode_deny: true", Answer::Reset).await);
        let (mut one, mut other) = (open.connection(), shut.connection());
        assert_eq!((one.begin(), other.begin()), (NetworkAction::Wait, NetworkAction::Wait));
        assert_eq!(one.wait().await, NetworkAction::Continue);
        assert!(closed(&other.wait().await));
        assert_eq!((open.count("error"), open.count("failure_mode_allowed"), shut.count("cx_closed")), (1, 1, 1));
    });
}

#[test]
fn what_cannot_be_done_is_refused_by_name() {
    let server = kit::server(Default::default());
    let auth = |yaml: &str| try_compile(&ExtAuthzFactory, &read::<ExtAuthz>(yaml), &server);
    let limit = |yaml: &str| try_compile(&RateLimitFactory, &read::<RateLimit>(yaml), &server);
    let expect =
        |(compiled, report): (Option<_>, String), field: &str| assert!(compiled.is_none() && report.contains(field), "{field}: {report}");
    expect(auth(&format!("{{{}}}", AUTH.replace("stat_prefix: p", "stat_prefix: ''"))), "stat_prefix");
    expect(auth(&format!("{{{}}}", AUTH.replace("V3", "V2"))), "transport_api_version");
    expect(auth("{stat_prefix: p, transport_api_version: V3}"), "grpc_service");
    expect(
        auth("{stat_prefix: p, transport_api_version: V3, grpc_service: {google_grpc: {target_uri: a, stat_prefix: b}}}"),
        "google_grpc",
    );
    expect(auth(&format!("{{{AUTH}, send_tls_alert_on_denial: true}}")), "send_tls_alert_on_denial");
    expect(auth(&format!("{{{AUTH}, filter_enabled_metadata: {{}}}}")), "filter_enabled_metadata");
    let (compiled, report) = auth(&format!("{{{AUTH}, typed_metadata_context_namespaces: [x]}}"));
    assert!(compiled.is_some() && report.contains("typed_metadata_context_namespaces"), "{report}");

    for (from, to, field) in [
        ("stat_prefix: p", "stat_prefix: ''", "stat_prefix"),
        ("domain: shop", "domain: ''", "domain"),
        ("timeout: 10s", "timeout: -1s", "timeout"),
        ("key: all", "key: ''", "key"),
        ("value: 'yes'", "value: '%NOTHING%'", "value"),
        ("value: 'yes'", "value: ''", "value"),
        ("cluster_name: service", "cluster_name: ''", "cluster_name"),
        ("transport_api_version: V3", "transport_api_version: V2", "transport_api_version"),
    ] {
        expect(limit(&format!("{{{}}}", LIMIT.replace(from, to))), field);
    }
    let service = "rate_limit_service: {transport_api_version: V3, grpc_service: {envoy_grpc: {cluster_name: service}}}";
    expect(limit(&format!("{{stat_prefix: p, domain: d, {service}}}")), "descriptors");
    expect(limit(&format!("{{stat_prefix: p, domain: d, {service}, descriptors: [{{}}]}}")), "entries");
    expect(limit("{stat_prefix: p, domain: d, descriptors: [{entries: [{key: k, value: v}]}]}"), "rate_limit_service");
    let (compiled, report) =
        limit(&format!("{{stat_prefix: p, domain: d, {service}, descriptors: [{{entries: [{{key: k, value: v}}], hits_addend: 2}}]}}"));
    assert!(compiled.is_some() && report.contains("hits_addend"), "{report}");
}
