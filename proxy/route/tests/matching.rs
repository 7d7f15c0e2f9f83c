//! Which route a request is matched to. Expectations are those of Envoy's documentation of RouteMatch and VirtualHost.

mod kit;

use http::Method;
use kit::{get, routes, table};
use nuncio_core::filter_state::StringState;
use nuncio_core::{RequestHead, TlsInfo, test_kit};
use std::rc::Rc;
use std::sync::Arc;

#[test]
fn the_first_route_that_matches_wins() {
    let lab = routes(
        "
- {name: exact, match: {path: /a}, route: {cluster: c}}
- {name: get-only, match: {prefix: /a, headers: [{name: ':method', string_match: {exact: POST}}]}, route: {cluster: c}}
- {name: separated, match: {path_separated_prefix: /a/b}, route: {cluster: c}}
- {name: regex, match: {safe_regex: {regex: '/a/[0-9]+'}}, route: {cluster: c}}
- {name: caseless, match: {prefix: /UP, case_sensitive: false}, route: {cluster: c}}
- {name: late-exact, match: {path: /a/b/c}, route: {cluster: c}}
- {name: template, match: {path_match_policy: {name: t, typed_config: {'@type': type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig, path_template: '/t/{x}/**'}}}, route: {cluster: c}}
- {name: connect, match: {connect_matcher: {}}, route: {cluster: c}}
- {name: all, match: {prefix: /}, route: {cluster: c}}",
    );
    for (path, wanted) in [
        ("/a", "exact"),
        ("/a?x=/b", "exact"),
        ("/a#f", "exact"),
        ("/a/b", "separated"),
        ("/a/b/c", "separated"),
        ("/a/bc", "all"),
        ("/a/12", "regex"),
        ("/a/12?y", "regex"),
        ("/up/x", "caseless"),
        ("/t/1/2/3", "template"),
        ("/t/1", "all"),
        ("/", "all"),
    ] {
        assert_eq!(lab.name(&get("h", path, &[])), wanted, "{path}");
    }
    assert_eq!(lab.name(&RequestHead::new(Method::POST, "h", "/a/x")), "get-only");
    assert_eq!(lab.name(&RequestHead::new(Method::CONNECT, "h:443", "")), "connect");
    assert_eq!(lab.name(&get("h", "", &[])), "-");
}

#[test]
fn conditions_apart_from_the_path() {
    let lab = routes(
        "
- {name: header, match: {prefix: /, headers: [{name: x-a, string_match: {prefix: v}}, {name: x-b, present_match: true, invert_match: true}]}, route: {cluster: c}}
- {name: query, match: {prefix: /, query_parameters: [{name: q, string_match: {exact: '1'}}, {name: r}]}, route: {cluster: c}}
- {name: cookie, match: {prefix: /, cookies: [{name: s, string_match: {exact: x}}]}, route: {cluster: c}}
- {name: grpc, match: {prefix: /, grpc: {}}, route: {cluster: c}}
- {name: none, match: {prefix: /}, route: {cluster: c}}",
    );
    assert_eq!(lab.name(&get("h", "/", &[("x-a", "v1")])), "header");
    assert_eq!(lab.name(&get("h", "/", &[("x-a", "v1"), ("x-b", "")])), "none");
    assert_eq!(lab.name(&get("h", "/?q=1&r", &[])), "query");
    assert_eq!(lab.name(&get("h", "/?q=1", &[])), "none");
    assert_eq!(lab.name(&get("h", "/", &[("cookie", "a=b; s=x")])), "cookie");
    assert_eq!(lab.name(&get("h", "/", &[("content-type", "application/grpc+proto")])), "grpc");
    assert_eq!(lab.name(&get("h", "/", &[("content-type", "application/json")])), "none");
}

#[test]
fn runtime_fraction_is_of_the_streams_random_number() {
    let lab = routes(
        "
- {name: canary, match: {prefix: /, runtime_fraction: {default_value: {numerator: 25}, runtime_key: k}}, route: {cluster: c}}
- {name: stable, match: {prefix: /}, route: {cluster: c}}",
    );
    let info = test_kit::stream_info();
    let canary = |lab: &kit::Lab| {
        use nuncio_core::views::RouteView;
        (0..100).filter(|r| lab.find_with(&get("h", "/", &[]), &info, *r).unwrap().name().as_ref() == "canary").count()
    };
    assert_eq!(canary(&lab), 25);
    lab.server.runtime.set("k", "50");
    assert_eq!(canary(&lab), 50);
}

/// An address in filter state.
struct Ip;
impl nuncio_core::filter_state::StateObject for Ip {
    fn as_string(&self) -> Option<String> {
        Some("10.2.3.4:80".to_string())
    }
    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

#[test]
fn tls_metadata_and_filter_state() {
    let lab = routes(
        "
- {name: validated, match: {prefix: /, tls_context: {validated: true}}, route: {cluster: c}}
- {name: presented, match: {prefix: /, tls_context: {presented: true}}, route: {cluster: c}}
- {name: claims, match: {prefix: /, dynamic_metadata: [{filter: jwt, path: [{key: role}], value: {string_match: {exact: admin}}}]}, route: {cluster: c}}
- {name: state, match: {prefix: /, filter_state: [{key: k, string_match: {prefix: v}}]}, route: {cluster: c}}
- {name: ip, match: {prefix: /, filter_state: [{key: ip, address_match: {ranges: [{address_prefix: 10.0.0.0, prefix_len: 8}]}}]}, route: {cluster: c}}
- {name: plain, match: {prefix: /, tls_context: {presented: false}}, route: {cluster: c}}",
    );
    use nuncio_core::views::RouteView;
    let name = |info: &nuncio_core::StreamInfo| lab.find_with(&get("h", "/", &[]), info, 0).map(|e| e.name().to_string());
    let with_tls = |tls: TlsInfo| {
        let connection = nuncio_core::ConnectionInfo { tls: Some(Arc::new(tls)), ..test_kit::connection() };
        nuncio_core::StreamInfo::new(Rc::new(connection), None)
    };
    assert_eq!(
        name(&with_tls(TlsInfo { peer_chain: vec![vec![1]], peer_validated: true, ..Default::default() })).as_deref(),
        Some("validated")
    );
    assert_eq!(name(&with_tls(TlsInfo { peer_chain: vec![vec![1]], ..Default::default() })).as_deref(), Some("presented"));
    let mut info = test_kit::stream_info();
    assert_eq!(name(&info).as_deref(), Some("plain"));
    info.filter_state.set("ip", Arc::new(StringState("10.2.3.4:80".into())));
    assert_eq!(name(&info).as_deref(), Some("plain"), "a text is no address");
    info.filter_state.set("ip", Arc::new(Ip));
    assert_eq!(name(&info).as_deref(), Some("ip"));
    info.filter_state.set("k", Arc::new(StringState("v1".into())));
    assert_eq!(name(&info).as_deref(), Some("state"));
    info.set_metadata("jwt", test_kit::fields([("role", test_kit::text("admin"))]));
    assert_eq!(name(&info).as_deref(), Some("claims"));
}

const HOSTS: &str = "
name: t
virtual_hosts:
- {name: exact, domains: [www.foo.com], routes: [{match: {prefix: /}, route: {cluster: exact}}]}
- {name: suffix, domains: ['*.foo.com'], routes: [{match: {prefix: /}, route: {cluster: suffix}}]}
- {name: longer, domains: ['*-bar.foo.com'], routes: [{match: {prefix: /}, route: {cluster: longer}}]}
- {name: prefix, domains: ['www.*', 'm.foo.*'], routes: [{match: {prefix: /}, route: {cluster: prefix}}]}
- {name: 'blackhole:80', domains: [empty.foo.com]}
- {name: any, domains: ['*'], routes: [{match: {prefix: /}, route: {cluster: any}}]}
";

#[test]
fn virtual_hosts_by_domain() {
    let lab = table(HOSTS);
    for (host, wanted) in [
        ("www.foo.com", "exact"),
        ("WWW.FOO.COM", "exact"),
        ("www.foo.com:80", "prefix"),
        ("a.foo.com", "suffix"),
        ("a-bar.foo.com", "longer"),
        ("www.else.org", "prefix"),
        ("m.foo.de", "prefix"),
        ("empty.foo.com", "-"),
        ("else", "any"),
    ] {
        assert_eq!(lab.name(&get(host, "/", &[])), wanted, "{host}");
    }
    let lab = table(&format!("{HOSTS}ignore_port_in_host_matching: true\n"));
    assert_eq!(lab.name(&get("www.foo.com:8080", "/", &[])), "exact");
    assert_eq!(lab.name(&get("[::1]:8080", "/", &[])), "any");
    let lab = table(&format!("{HOSTS}vhost_header: x-host\n"));
    assert_eq!(lab.name(&get("else", "/", &[("x-host", "www.foo.com")])), "exact");
    assert_eq!(lab.name(&get("www.foo.com", "/", &[])), "-");
}

#[test]
fn ten_thousand_virtual_hosts() {
    let hosts: String = (0..10_000)
        .map(|i| format!("- {{name: v{i}, domains: [h{i}.example, '*.w{i}.example'], routes: [{{match: {{prefix: /}}, route: {{cluster: c{i}}}}}]}}\n"))
        .collect();
    let lab = table(&format!("name: t\nvirtual_hosts:\n{hosts}"));
    for i in [0, 1, 4711, 9999] {
        assert_eq!(lab.name(&get(&format!("h{i}.example"), "/", &[])), format!("c{i}"));
        assert_eq!(lab.name(&get(&format!("x.w{i}.example"), "/", &[])), format!("c{i}"));
    }
    assert_eq!(lab.name(&get("h10000.example", "/", &[])), "-");
}

#[test]
fn require_tls_redirects() {
    let yaml = |kind| {
        format!(
            "name: t\nvirtual_hosts:\n- {{name: v, domains: ['*'], require_tls: {kind}, routes: [{{name: r, match: {{prefix: /}}, route: {{cluster: c}}}}]}}"
        )
    };
    let plain = get("h:80", "/a?b", &[("x-forwarded-proto", "http")]);
    let secure = get("h:80", "/a?b", &[("x-forwarded-proto", "https")]);
    let internal = get("h:80", "/a?b", &[("x-forwarded-proto", "http"), ("x-envoy-internal", "true")]);
    let all = table(&yaml("ALL"));
    assert_eq!(all.location(&plain), "https://h:80/a?b");
    assert_eq!(all.location(&internal), "https://h:80/a?b");
    assert_eq!(all.name(&secure), "r");
    let external = table(&yaml("EXTERNAL_ONLY"));
    assert_eq!(external.location(&plain), "https://h:80/a?b");
    assert_eq!(external.name(&internal), "r");
    assert_eq!(table(&yaml("NONE")).name(&plain), "r");
}

#[test]
fn path_parameters_are_ignored_where_asked() {
    let yaml = "{name: t, ignore_path_parameters_in_path_matching: true, virtual_hosts: [{name: v, domains: ['*'], routes: [{name: r, match: {path: /a/b}, route: {cluster: c}}]}]}";
    assert_eq!(table(yaml).name(&get("h", "/a;x=1/b;y?q", &[])), "r");
    assert_eq!(table(&yaml.replace("true", "false")).name(&get("h", "/a;x=1/b;y?q", &[])), "-");
}

#[test]
fn match_trees() {
    let input = |name: &str| {
        format!(
            "input: {{name: i, typed_config: {{'@type': type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput, header_name: '{name}'}}}}"
        )
    };
    let route = |name: &str| {
        format!(
            "{{action: {{name: a, typed_config: {{'@type': type.googleapis.com/envoy.config.route.v3.Route, name: {name}, match: {{prefix: /}}, route: {{cluster: c}}}}}}}}"
        )
    };
    let list = "{action: {name: a, typed_config: {'@type': type.googleapis.com/envoy.config.route.v3.RouteList, routes: [{name: l1, match: {prefix: /one}, route: {cluster: c}}, {name: l2, match: {prefix: /two}, route: {cluster: c}}]}}}";
    let yaml = format!(
        "
name: t
virtual_hosts:
- name: v
  domains: ['*']
  matcher:
    matcher_list:
      matchers:
      - predicate: {{and_matcher: {{predicate: [{{single_predicate: {{{x}, value_match: {{prefix: a}}}}}}, {{not_matcher: {{single_predicate: {{{x}, value_match: {{exact: ab}}}}}}}}]}}}}
        on_match: {a}
      - predicate: {{single_predicate: {{{x}, value_match: {{exact: list}}}}}}
        on_match: {list}
      - predicate: {{single_predicate: {{{x}, value_match: {{exact: tree}}}}}}
        on_match: {{matcher: {{matcher_tree: {{{path}, prefix_match_map: {{map: {{/p: {p}, /p/q: {q}}}}}}}}}}}
    on_no_match: {none}",
        x = input("x"),
        path = input(":path"),
        a = route("a"),
        p = route("p"),
        q = route("q"),
        none = route("none"),
    );
    let lab = table(&yaml);
    for (x, path, wanted) in [
        ("a", "/", "a"),
        ("ab", "/", "none"),
        ("list", "/two", "l2"),
        ("list", "/three", "-"),
        ("tree", "/p/x", "p"),
        ("tree", "/p/q/r", "q"),
        ("tree", "/z", "none"),
        ("", "/", "none"),
    ] {
        assert_eq!(lab.name(&get("h", path, &[("x", x)])), wanted, "{x} {path}");
    }
}
