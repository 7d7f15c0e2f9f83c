//! Tests of policies and matchers, for requests and connections.

use super::engine::Engine;
use super::rule::{Layer, Subject};
use super::*;
use ::http::{HeaderName, HeaderValue, Method};
use bytes::BytesMut;
use nuncio_core::diag::Report;
use nuncio_core::filter::HttpFilter;
use nuncio_core::info::TrafficDirection;
use nuncio_core::info::{CertInfo, TlsInfo};
use nuncio_core::network::{NetworkAction, NetworkFilter};
use nuncio_core::registry::{NetworkFilterFactory, Server};
use nuncio_core::test_kit::{self as kit, FakeRoute};
use nuncio_core::{ConnectionInfo, Exchange, LocalReply, RequestHead, StreamInfo};
use nuncio_format::{Expression, ExpressionSource, FormatContext, set_expressions};
use nuncio_proto::Message;
use nuncio_proto::envoy::extensions::filters::http::rbac::v3::{Rbac as HttpRbac, RbacPerRoute};
use nuncio_proto::envoy::extensions::filters::network::rbac::v3::Rbac as NetworkRbac;
use nuncio_proto::json::{UnknownFields, parse_text};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

fn read<T: Message + nuncio_proto::Name + Default>(yaml: &str) -> T {
    parse_text(yaml, UnknownFields::Refuse).unwrap_or_else(|e| panic!("{e}: {yaml}")).value
}
fn request(path: &str, fields: &[(&'static str, &'static str)]) -> Exchange {
    let mut ex = kit::exchange(RequestHead::new(Method::GET, "host", path));
    for (name, value) in fields {
        ex.request.headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    ex
}
fn filter(yaml: &str, server: &Arc<Server>) -> Arc<dyn HttpFilter> {
    kit::compile(&HttpFactory, &read::<HttpRbac>(yaml), server).unwrap_or_else(|e| panic!("{e}"))
}
async fn run(filter: &Arc<dyn HttpFilter>, mut ex: Exchange) -> (Option<LocalReply>, Exchange) {
    let reply = kit::request(&**filter, "r", &mut ex).await;
    (reply, ex)
}
fn policy(permission: &str) -> String {
    format!("{{permissions: [{permission}], principals: [{{any: true}}]}}")
}

#[tokio::test]
async fn refusals_name_their_policy() {
    let server = kit::server(Default::default());
    let deny =
        filter(&format!("rules: {{action: DENY, policies: {{'ns[a] b': {}}}}}", policy("{url_path: {path: {prefix: /admin}}}")), &server);
    let (reply, ex) = run(&deny, request("/admin?x", &[])).await;
    let reply = reply.unwrap();
    assert_eq!((reply.status, reply.body.as_ref()), (403, b"RBAC: access denied".as_slice()));
    assert_eq!(reply.details, "rbac_access_denied_matched_policy[ns[a]_b]");
    let fields = &ex.info.metadata("envoy.filters.http.rbac").unwrap().fields;
    assert_eq!(fields.get("enforced_effective_policy_id"), Some(&kit::text("ns[a] b")));
    assert_eq!(fields.get("enforced_engine_result"), Some(&kit::text("denied")));
    assert!(run(&deny, request("/x?/admin", &[])).await.0.is_none());
    let nobody = filter("rules: {action: ALLOW}", &server);
    assert_eq!(run(&nobody, request("/", &[])).await.0.unwrap().details, "rbac_access_denied_matched_policy[none]");
    assert_eq!(server.stats.root().counter("http.test.rbac.denied").value(), 2);
}

#[tokio::test]
async fn several_fields_of_one_name_do_not_hide_one() {
    let server = kit::server(Default::default());
    let role = "{header: {name: x-role, string_match: {exact: admin}}}";
    let deny = filter(&format!("rules: {{action: DENY, policies: {{p: {}}}}}", policy(role)), &server);
    let allow_others = filter(&format!("rules: {{action: ALLOW, policies: {{p: {}}}}}", policy(&format!("{{not_rule: {role}}}"))), &server);
    for fields in [[("x-role", "user"), ("x-role", "admin")], [("x-role", "admin"), ("x-role", "user")]] {
        assert!(run(&deny, request("/", &fields)).await.0.is_some());
        assert!(run(&allow_others, request("/", &fields)).await.0.is_some());
    }
    assert!(run(&deny, request("/", &[("x-role", "user")])).await.0.is_none());
}

#[tokio::test]
async fn shadow_rules_only_tell() {
    let server = kit::server(Default::default());
    let rules = format!(
        "shadow_rules: {{action: DENY, policies: {{p: {}}}}}\nshadow_rules_stat_prefix: istio_dry_run_\ntrack_per_rule_stats: true",
        policy("{any: true}")
    );
    let shadow = filter(&rules, &server);
    let (reply, ex) = run(&shadow, request("/", &[])).await;
    assert!(reply.is_none());
    let fields = &ex.info.metadata("envoy.filters.http.rbac").unwrap().fields;
    assert_eq!(fields.get("istio_dry_run_shadow_effective_policy_id"), Some(&kit::text("p")));
    assert_eq!(fields.get("istio_dry_run_shadow_engine_result"), Some(&kit::text("denied")));
    let root = server.stats.root();
    assert_eq!(root.counter("http.test.rbac.istio_dry_run_.shadow_denied").value(), 1);
    assert_eq!(root.counter("http.test.rbac.istio_dry_run_.policy.p.shadow_denied").value(), 1);
    let log = filter(&format!("rules: {{action: LOG, policies: {{p: {}}}}}", policy("{url_path: {path: {exact: /log}}}")), &server);
    for (path, wanted) in [("/log", true), ("/other", false)] {
        let (reply, ex) = run(&log, request(path, &[])).await;
        assert!(reply.is_none());
        let hint = ex.info.metadata("envoy.common").unwrap().fields.get("access_log_hint").and_then(|v| v.kind.clone());
        assert_eq!(hint, Some(Kind::BoolValue(wanted)));
    }
}

#[tokio::test]
async fn routes_replace_and_switch_off() {
    let server = kit::server(Default::default());
    let deny = filter("rules: {action: ALLOW}", &server);
    let with = |yaml: &str| {
        let route = kit::compile_route(&HttpFactory, &read::<RbacPerRoute>(yaml), &server).unwrap();
        let mut ex = request("/", &[]);
        ex.route = Some(Arc::new(FakeRoute::new("r", "c").with("r", route)));
        ex
    };
    assert!(run(&deny, with("{}")).await.0.is_none());
    let own = format!("rbac: {{rules: {{action: DENY, policies: {{mine: {}}}}}, track_per_rule_stats: true}}", policy("{any: true}"));
    assert_eq!(run(&deny, with(&own)).await.0.unwrap().details, "rbac_access_denied_matched_policy[mine]");
    assert_eq!(server.stats.root().counter("http.test.rbac.policy.mine.denied").value(), 1);
}

#[derive(Debug)]
struct IsTeam;
impl Expression for IsTeam {
    fn holds(&self, cx: &FormatContext<'_>) -> bool {
        cx.request.is_some_and(|r| r.headers.contains(&HeaderName::from_static("x-team")))
    }
    fn print(&self, _: &FormatContext<'_>, _: &mut Vec<u8>) -> bool {
        false
    }
}

#[tokio::test]
async fn conditions_decide_too() {
    set_expressions(Box::new(|source| match source {
        ExpressionSource::Parsed(expr) if expr.id == 7 => Ok(Box::new(IsTeam)),
        _ => Err("an expression that is not known".into()),
    }));
    let server = kit::server(Default::default());
    for field in ["condition: {id: 7}", "checked_condition: {expr: {id: 7}}"] {
        let yaml = format!("rules: {{policies: {{p: {{permissions: [{{any: true}}], principals: [{{any: true}}], {field}}}}}}}");
        let allow = filter(&yaml, &server);
        assert!(run(&allow, request("/", &[("x-team", "a")])).await.0.is_none());
        assert!(run(&allow, request("/", &[])).await.0.is_some());
        let bad = yaml.replace("id: 7", "id: 8");
        assert!(kit::compile(&HttpFactory, &read::<HttpRbac>(&bad), &server).unwrap_err().contains("not known"));
    }
}

#[test]
fn wrong_rules_are_refused() {
    let server = kit::server(Default::default());
    for (rules, what) in [
        ("policies: {p: {}}", "rules.policies[\"p\"].permissions"),
        ("policies: {p: {permissions: [{any: false}], principals: [{any: true}]}}", "permissions[0].any"),
        ("policies: {p: {permissions: [{and_rules: {}}], principals: [{any: true}]}}", "and_rules"),
        ("policies: {p: {permissions: [{destination_port: 65536}], principals: [{any: true}]}}", "65536"),
        ("policies: {p: {permissions: [{destination_port_range: {start: 9, end: 9}}], principals: [{any: true}]}}", "9 to 9"),
        (
            "policies: {p: {permissions: [{matcher: {name: upstream, typed_config: {'@type': type.googleapis.com/envoy.extensions.rbac.matchers.upstream_ip_port.v3.UpstreamIpPortMatcher}}}], principals: [{any: true}]}}",
            "neither field",
        ),
        (
            "policies: {p: {permissions: [{any: true}], principals: [{custom: {name: m, typed_config: {'@type': type.googleapis.com/envoy.extensions.rbac.principals.mtls_authenticated.v3.Config}}}]}}",
            "neither field",
        ),
    ] {
        let why = kit::compile(&HttpFactory, &read::<HttpRbac>(&format!("rules: {{{rules}}}")), &server).unwrap_err();
        assert!(why.contains(what), "{why}");
    }
    let both = "rules: {}\nmatcher: {on_no_match: {action: {name: a, typed_config: {'@type': type.googleapis.com/envoy.config.rbac.v3.Action, name: x}}}}";
    assert!(kit::compile(&HttpFactory, &read::<HttpRbac>(both), &server).unwrap_err().contains("both rules and matcher"));
}

/// A mesh's worth of policies, some of which the index finds by path, some by name, some not at all.
fn many(count: usize) -> Rbac {
    let policies: Vec<String> = (0..count)
        .map(|n| {
            let permission = match n % 4 {
                0 => format!("{{and_rules: {{rules: [{{or_rules: {{rules: [{{url_path: {{path: {{exact: /p{n}}}}}}}, {{url_path: {{path: {{exact: /q{}}}}}}}]}}}}]}}}}", n % 9),
                1 => format!("{{url_path: {{path: {{prefix: /p{n}}}}}}}"),
                _ => "{any: true}".to_string(),
            };
            let principal = match n % 4 {
                2 => format!("{{and_ids: {{ids: [{{authenticated: {{principal_name: {{exact: 'spiffe://m/sa/{}'}}}}}}, {{any: true}}]}}}}", n % 5),
                3 => format!("{{direct_remote_ip: {{address_prefix: 10.0.{n}.0, prefix_len: 24}}}}"),
                _ => "{any: true}".to_string(),
            };
            format!("p{n:04}: {{permissions: [{permission}], principals: [{principal}]}}")
        })
        .collect();
    read(&format!("{{policies: {{{}}}}}", policies.join(", ")))
}

#[test]
fn an_index_decides_as_trying_all_does() {
    let rules = many(240);
    let mut report = Report::new();
    let indexed = Engine::of_rules(&rules, Layer::Http, &At::Root, &mut report).unwrap();
    // Each policy alone is tried without an index.
    let alone: Vec<(String, Engine)> = rules
        .policies
        .iter()
        .map(|(name, policy)| {
            let one = Rbac { policies: [(name.clone(), policy.clone())].into(), ..Rbac::default() };
            (name.clone(), Engine::of_rules(&one, Layer::Http, &At::Root, &mut report).unwrap())
        })
        .collect();
    let mut matched = 0;
    for path in ["/", "/p0", "/p4", "/p4/x", "/p5", "/p5/x", "/p236", "/q0", "/q8", "/q8?p4", "/P4", ""] {
        for names in [&[][..], &["spiffe://m/sa/1"], &["spiffe://m/sa/4", "spiffe://m/sa/0"], &["other"]] {
            for remote in ["10.0.3.1:1", "10.0.239.9:1", "11.0.0.1:1"] {
                let mut connection = kit::connection();
                connection.direct_remote = nuncio_core::Address::Ip(remote.parse().unwrap());
                connection.tls = (!names.is_empty()).then(|| kit::tls(None, names, &[]));
                let info = StreamInfo::new(Rc::new(connection), None);
                let head = RequestHead::new(Method::GET, "host", path);
                let subject = Subject { request: Some(&head), info: &info, route: None };
                let wanted = alone.iter().find(|(_, engine)| engine.decide(&subject).allowed).map(|(name, _)| name.as_str());
                assert_eq!(indexed.decide(&subject).policy.map(|p| &*p.name), wanted, "{path} {names:?} {remote}");
                matched += usize::from(wanted.is_some());
            }
        }
    }
    assert!(matched > 20);
}

#[test]
fn names_of_certificates() {
    let mtls = |san: &str| {
        format!(
            "{{custom: {{name: m, typed_config: {{'@type': type.googleapis.com/envoy.extensions.rbac.principals.mtls_authenticated.v3.Config, {san}}}}}}}"
        )
    };
    for (principal, tls, wanted) in [
        ("{authenticated: {}}".to_string(), Some(kit::tls(None, &[], &[])), true),
        ("{authenticated: {}}".to_string(), None, false),
        (
            "{authenticated: {principal_name: {suffix: /sa/b}}}".to_string(),
            Some(kit::tls(None, &["spiffe://x", "spiffe://m/sa/b"], &[])),
            true,
        ),
        ("{authenticated: {principal_name: {exact: ''}}}".to_string(), Some(kit::tls(None, &[], &[])), true),
        ("{authenticated: {principal_name: {exact: ''}}}".to_string(), None, false),
        (mtls("any_validated_client_certificate: true"), Some(kit::tls(None, &["spiffe://x"], &[])), true),
        (mtls("any_validated_client_certificate: true"), Some(kit::tls(None, &[], &[])), false),
        (mtls("san_matcher: {san_type: URI, matcher: {exact: 'spiffe://x'}}"), Some(kit::tls(None, &["spiffe://x"], &[])), true),
        (mtls("san_matcher: {san_type: DNS, matcher: {exact: 'spiffe://x'}}"), Some(kit::tls(None, &["spiffe://x"], &[])), false),
    ] {
        let rules: Rbac = read(&format!("policies: {{p: {{permissions: [{{any: true}}], principals: [{principal}]}}}}"));
        let engine = Engine::of_rules(&rules, Layer::Network, &At::Root, &mut Report::new()).unwrap();
        let info = StreamInfo::new(Rc::new(ConnectionInfo { tls, ..kit::connection() }), None);
        let subject = Subject { request: None, info: &info, route: None };
        assert_eq!(engine.decide(&subject).allowed, wanted, "{principal}");
    }
}

#[test]
fn other_names_are_told_by_their_oid() {
    let certificate = CertInfo {
        other_sans: vec!["ann".into(), "bob".into()],
        other_san_oids: vec!["1.2.3".into(), "1.2.4".into()],
        ..CertInfo::default()
    };
    let mut tls = TlsInfo { peer_chain: vec![vec![0]], peer_validated: true, ..TlsInfo::default() };
    tls.peer = std::sync::OnceLock::from(certificate);
    let tls = std::sync::Arc::new(tls);
    for (oid, name, wanted) in [("1.2.3", "ann", true), ("1.2.3", "bob", false), ("1.2.4", "bob", true), ("1.2", "ann", false)] {
        let config = "type.googleapis.com/envoy.extensions.rbac.principals.mtls_authenticated.v3.Config";
        let san = format!("{{san_type: OTHER_NAME, oid: '{oid}', matcher: {{exact: {name}}}}}");
        let principal = format!("{{custom: {{name: m, typed_config: {{'@type': {config}, san_matcher: {san}}}}}}}");
        let rules: Rbac = read(&format!("policies: {{p: {{permissions: [{{any: true}}], principals: [{principal}]}}}}"));
        let engine = Engine::of_rules(&rules, Layer::Network, &At::Root, &mut Report::new()).unwrap();
        let info = StreamInfo::new(Rc::new(ConnectionInfo { tls: Some(tls.clone()), ..kit::connection() }), None);
        assert_eq!(engine.decide(&Subject { request: None, info: &info, route: None }).allowed, wanted, "{oid} {name}");
    }
}

#[tokio::test]
async fn addresses_of_upstreams() {
    let server = kit::server(Default::default());
    let matcher = |fields: &str| {
        let kind = "envoy.extensions.rbac.matchers.upstream_ip_port.v3.UpstreamIpPortMatcher";
        policy(&format!("{{matcher: {{name: m, typed_config: {{'@type': type.googleapis.com/{kind}, {fields}}}}}}}"))
    };
    for (fields, address, wanted) in [
        ("upstream_ip: {address_prefix: 10.0.0.0, prefix_len: 8}", Some("10.1.1.1:80"), true),
        ("upstream_ip: {address_prefix: 10.0.0.0, prefix_len: 8}", Some("11.1.1.1:80"), false),
        ("upstream_ip: {address_prefix: 10.0.0.0, prefix_len: 8}", None, false),
        ("upstream_port_range: {start: 79, end: 80}", Some("11.1.1.1:80"), true),
        ("upstream_ip: {address_prefix: 10.0.0.0, prefix_len: 8}, upstream_port_range: {start: 81, end: 90}", Some("10.1.1.1:80"), false),
    ] {
        let allow = filter(&format!("rules: {{policies: {{p: {}}}}}", matcher(fields)), &server);
        let mut ex = request("/", &[]);
        if let Some(address) = address {
            let address = nuncio_core::Address::Ip(address.parse().unwrap());
            ex.info
                .filter_state
                .set(crate::dynamic_forward_proxy::UPSTREAM_ADDRESS, Arc::new(crate::dynamic_forward_proxy::UpstreamAddress(address)));
        }
        assert_eq!(run(&allow, ex).await.0.is_none(), wanted, "{fields} {address:?}");
    }
}

struct Connection {
    filter: Box<dyn NetworkFilter>,
    info: StreamInfo,
}

fn connect(yaml: &str, server: &Arc<Server>) -> Result<Option<Connection>, String> {
    let mut report = Report::new();
    let scope = server.stats.root();
    let mut cx = FactoryCx { server, scope: &scope, direction: TrafficDirection::Unspecified, report: &mut report };
    let config = NetworkFactory.compile(&read::<NetworkRbac>(yaml).encode_to_vec(), &At::Root, &mut cx).ok_or_else(|| report.summary())?;
    let connection = Rc::new(kit::connection());
    Ok(config.create(&connection).map(|filter| Connection { filter, info: StreamInfo::new(connection, None) }))
}

#[test]
fn connections_are_judged_by_their_first_bytes() {
    let server = kit::server(Default::default());
    let here = "{permissions: [{any: true}], principals: [{source_ip: {address_prefix: 10.0.0.0, prefix_len: 8}}]}";
    let mut data = BytesMut::from("x".as_bytes());
    let mut denied =
        connect(&format!("stat_prefix: tcp.\nrules: {{action: DENY, policies: {{p: {here}}}}}\ndelay_deny: 2s"), &server).unwrap().unwrap();
    assert_eq!(denied.filter.on_new(&mut denied.info, &mut BytesMut::new()), NetworkAction::Continue);
    assert_eq!(denied.filter.on_read(&mut denied.info, &mut BytesMut::new(), false), NetworkAction::Hold);
    assert_eq!(
        denied.filter.on_read(&mut denied.info, &mut data, false),
        NetworkAction::Close("rbac_access_denied_matched_policy[p]".into())
    );
    assert_eq!(denied.info.connection.close_delay.get(), Duration::from_secs(2));
    for (mode, count) in [("ONE_TIME_ON_FIRST_BYTE", 1), ("CONTINUOUS", 3)] {
        let yaml = format!(
            "stat_prefix: {mode}\nrules: {{policies: {{p: {here}}}}}\nenforcement_type: {mode}\nshadow_rules: {{policies: {{s: {here}}}}}"
        );
        let mut allowed = connect(&yaml, &server).unwrap().unwrap();
        for _ in 0..3 {
            assert_eq!(allowed.filter.on_read(&mut allowed.info, &mut data, false), NetworkAction::Continue);
        }
        assert_eq!(allowed.filter.wants_data(), count > 1);
        assert_eq!(server.stats.root().counter(&format!("{mode}.rbac.allowed")).value(), count);
        let fields = &allowed.info.metadata("envoy.filters.network.rbac").unwrap().fields;
        assert_eq!(fields.get("shadow_effective_policy_id"), Some(&kit::text("s")));
    }
    // Without rules there is nothing to do.
    assert!(connect("stat_prefix: t", &server).unwrap().is_none());
}

#[test]
fn connections_have_no_headers() {
    let server = kit::server(Default::default());
    let header = "rules: {policies: {p: {permissions: [{not_rule: {header: {name: a, present_match: true}}}], principals: [{any: true}]}}}";
    let tree = "matcher: {matcher_tree: {input: {name: i, typed_config: {'@type': type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput, header_name: a}},
        exact_match_map: {map: {x: {action: {name: a, typed_config: {'@type': type.googleapis.com/envoy.config.rbac.v3.Action, name: x}}}}}}}";
    for rules in [header, tree] {
        assert!(connect(&format!("stat_prefix: t\n{rules}"), &server).err().unwrap().contains("network filter"));
    }
    assert!(connect("rules: {}", &server).err().unwrap().contains("stat_prefix"));
}
