//! What refuses a table, and how the report says so: place, value, remedy.

mod kit;

use kit::{compile, config, refused, refused_routes};

fn route(action: &str) -> String {
    refused_routes(&format!("- {{match: {{prefix: /}}, route: {action}}}"))
}

#[test]
fn routes_are_refused_by_name() {
    let any = |name: &str| format!("{{name: n, typed_config: {{'@type': type.googleapis.com/{name}}}}}");
    let cases = [
        ("- {match: {}, route: {cluster: c}}".to_string(), "virtual_hosts[0].routes[0].match: no path_specifier"),
        ("- {match: {prefix: /}}".to_string(), "virtual_hosts[0].routes[0]: no action"),
        ("- {route: {cluster: c}}".to_string(), "virtual_hosts[0].routes[0].match: nothing"),
        (
            "- {match: {safe_regex: {regex: '('}}, route: {cluster: c}}".to_string(),
            "routes[0].match.safe_regex.regex: regular expression \"(\"",
        ),
        ("- {match: {path_separated_prefix: /a/}, route: {cluster: c}}".to_string(), "routes[0].match.path_separated_prefix: \"/a/\""),
        ("- {match: {prefix: /, headers: [{name: 'a b'}]}, route: {cluster: c}}".to_string(), "routes[0].match.headers[0].name: \"a b\""),
        ("- {match: {prefix: /}, filter_action: {}}".to_string(), "routes[0].filter_action: filter_action is not supported"),
        ("- {match: {prefix: /}, direct_response: {status: 99}}".to_string(), "routes[0].direct_response.status: 99"),
        (
            "- {match: {prefix: /}, direct_response: {status: 200, body: {filename: /no/such/file}}}".to_string(),
            "direct_response.body.filename: \"/no/such/file\"",
        ),
        ("- {match: {prefix: /}, redirect: {port_redirect: 70000}}".to_string(), "routes[0].redirect.port_redirect: 70000"),
        (
            "- {match: {prefix: /}, route: {cluster: c}, request_headers_to_add: [{header: {key: ':path', value: x}}]}".to_string(),
            "routes[0].request_headers_to_add[0].header.key: \":path\"",
        ),
        (
            "- {match: {prefix: /}, route: {cluster: c}, request_headers_to_remove: [Host]}".to_string(),
            "routes[0].request_headers_to_remove[0]: \"Host\"",
        ),
        (
            "- {match: {prefix: /}, route: {cluster: c}, response_headers_to_add: [{header: {key: x, value: '%NO_SUCH_OPERATOR%'}}]}"
                .to_string(),
            "routes[0].response_headers_to_add[0].header.value",
        ),
        (
            format!(
                "- {{match: {{prefix: /}}, route: {{cluster: c}}, typed_per_filter_config: {{f: {{'@type': type.googleapis.com/{}}}}}}}",
                "envoy.extensions.filters.http.csrf.v3.CsrfPolicy"
            ),
            "routes[0].typed_per_filter_config[\"f\"]: configuration of type envoy.extensions.filters.http.csrf.v3.CsrfPolicy for filter f is not supported",
        ),
        (
            format!("- {{match: {{path_match_policy: {}}}, route: {{cluster: c}}}}", any("envoy.config.route.v3.Route")),
            "routes[0].match.path_match_policy.typed_config: type envoy.config.route.v3.Route",
        ),
    ];
    for (yaml, wanted) in cases {
        let found = refused_routes(&yaml);
        assert!(found.contains(wanted), "{yaml}\n{found}");
        assert!(found.contains("; "), "no remedy: {found}");
    }
}

#[test]
fn route_actions_are_refused_by_name() {
    for (action, wanted) in [
        ("{}", "route: no cluster_specifier"),
        ("{cluster: ''}", "route.cluster: an empty cluster name"),
        ("{cluster_specifier_plugin: p}", "route.cluster_specifier_plugin: unknown cluster specifier plugin \"p\""),
        (
            "{inline_cluster_specifier_plugin: {extension: {name: p}}}",
            "inline_cluster_specifier_plugin.extension.typed_config: cluster specifier plugin p",
        ),
        ("{weighted_clusters: {clusters: []}}", "route.weighted_clusters.clusters: no clusters"),
        ("{weighted_clusters: {clusters: [{name: a, weight: 0}]}}", "add up to 0"),
        ("{weighted_clusters: {clusters: [{name: a, weight: 4294967295}, {name: b, weight: 1}]}}", "add up to 4294967296"),
        ("{weighted_clusters: {clusters: [{weight: 1}]}}", "route.weighted_clusters.clusters[0]: neither name nor cluster_header"),
        ("{cluster: c, prefix_rewrite: /a, path_rewrite: /b}", "route: more than one path rewrite"),
        ("{cluster: c, regex_rewrite: {pattern: {regex: a}, substitution: '\\2'}}", "route.regex_rewrite.substitution: \"\\2\""),
        ("{cluster: c, timeout: -1s}", "route.timeout: -1"),
        (
            "{cluster: c, retry_policy: {retry_back_off: {base_interval: 1s, max_interval: 0.5s}}}",
            "retry_policy.retry_back_off.max_interval",
        ),
        (
            "{cluster: c, retry_policy: {retry_options_predicates: [{name: p}]}}",
            "retry_options_predicates[0]: retry options predicate p is not supported",
        ),
        ("{cluster: c, request_mirror_policies: [{}]}", "request_mirror_policies[0]: neither cluster nor cluster_header"),
        ("{cluster: c, hash_policy: [{}]}", "hash_policy[0]: no policy_specifier"),
        ("{cluster: c, upgrade_configs: [{upgrade_type: a}, {upgrade_type: A}]}", "upgrade_configs[1].upgrade_type: \"A\""),
        ("{cluster: c, upgrade_configs: [{upgrade_type: websocket, connect_config: {}}]}", "upgrade_configs[0].connect_config"),
        (
            "{cluster: c, upgrade_configs: [{upgrade_type: CONNECT-UDP, connect_config: {}}]}",
            "connect_config: ending CONNECT-UDP here is not supported",
        ),
        (
            "{cluster: c, internal_redirect_policy: {response_headers_to_copy: ['host']}}",
            "internal_redirect_policy.response_headers_to_copy[0]: \"host\"",
        ),
        (
            "{cluster: c, host_rewrite_path_regex: {pattern: {regex: ''}}}",
            "host_rewrite_path_regex.pattern.regex: an empty regular expression",
        ),
    ] {
        let found = route(action);
        assert!(found.contains(wanted), "{action}\n{found}");
    }
}

#[test]
fn tables_and_virtual_hosts_are_refused_by_name() {
    for (yaml, wanted) in [
        (
            "{name: t, cluster_specifier_plugins: [{extension: {name: p}}]}",
            "cluster_specifier_plugins[0].extension.typed_config: cluster specifier plugin p",
        ),
        ("{name: t, internal_only_headers: ['x a']}", "internal_only_headers[0]: \"x a\""),
        ("{name: t, virtual_hosts: [{name: v}]}", "virtual_hosts[0].domains: no domains"),
        ("{name: t, virtual_hosts: [{domains: [a]}]}", "virtual_hosts[0].name: nothing"),
        (
            "{name: t, virtual_hosts: [{name: v, domains: [a]}, {name: w, domains: [A]}]}",
            "virtual_hosts[1].domains[0]: domain \"A\" is there twice",
        ),
        ("{name: t, virtual_hosts: [{name: v, domains: [a], virtual_clusters: [{name: c}]}]}", "virtual_clusters[0].headers: no headers"),
        (
            "{name: t, virtual_hosts: [{name: v, domains: [a], matcher: {}, routes: [{match: {prefix: /}, route: {cluster: c}}]}]}",
            "virtual_hosts[0].matcher: matcher beside routes",
        ),
        (
            "{name: t, virtual_hosts: [{name: v, domains: [a], matcher: {on_no_match: {action: {name: a, typed_config: {'@type': type.googleapis.com/envoy.config.route.v3.RouteAction}}}}}]}",
            "virtual_hosts[0].matcher.on_no_match.action.typed_config: type envoy.config.route.v3.RouteAction",
        ),
    ] {
        let found = refused(yaml);
        assert!(found.contains(wanted), "{yaml}\n{found}");
    }
}

#[test]
fn one_report_names_everything_that_is_wrong() {
    let found = refused_routes("- {match: {prefix: /}}\n- {match: {prefix: /}, route: {cluster: c}}\n- {match: {}, route: {cluster: c}}");
    assert!(found.contains("routes[0]: no action") && found.contains("routes[2].match: no path_specifier"), "{found}");
}

#[test]
fn unknown_clusters_refuse_where_they_are_validated() {
    let yaml = |validate: &str| {
        config(&format!(
            "{{name: t, {validate} virtual_hosts: [{{name: v, domains: ['*'], routes: [{{match: {{prefix: /}}, route: {{cluster: nope}}}}]}}]}}"
        ))
    };
    assert!(compile(&yaml(""), false).0.is_some());
    let (lab, report) = compile(&yaml(""), true);
    assert!(lab.is_none() && report.summary().contains("unknown cluster \"nope\""), "{}", report.summary());
    assert!(compile(&yaml("validate_clusters: false,"), true).0.is_some());
    assert!(compile(&yaml("validate_clusters: true,"), false).0.is_none());
}
