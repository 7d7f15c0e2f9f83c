//! What a table says of hosts that it does not have, of headers that only insiders may send, and clusters that a match tree finds.

mod kit;

use kit::{compile, config, get, refused, table};
use nuncio_core::test_kit;

const SPECIFIER: &str = "
name: t
cluster_specifier_plugins:
- extension:
    name: by-header
    typed_config:
      '@type': type.googleapis.com/envoy.extensions.router.cluster_specifiers.matcher.v3.MatcherClusterSpecifier
      cluster_matcher:
        matcher_list:
          matchers:
          - predicate:
              single_predicate:
                input: {name: x, typed_config: {'@type': type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput, header_name: x-to}}
                value_match: {exact: a}
            on_match: {action: {name: c, typed_config: {'@type': type.googleapis.com/envoy.extensions.router.cluster_specifiers.matcher.v3.ClusterAction, cluster: one}}}
- {is_optional: true, extension: {name: gone, typed_config: {'@type': type.googleapis.com/google.protobuf.Struct, value: {}}}}
virtual_hosts:
- name: v
  domains: ['*']
  routes:
  - {match: {prefix: /gone}, route: {cluster_specifier_plugin: gone}}
  - {match: {prefix: /}, route: {cluster_specifier_plugin: by-header}}
";

#[test]
fn a_match_tree_finds_the_cluster_of_each_request() {
    let lab = table(SPECIFIER);
    assert!(lab.warnings.iter().any(|w| w.contains("cluster_specifier_plugins[1]")), "{:?}", lab.warnings);
    let found = |path: &str, headers: &[(&str, &str)]| {
        let head = get("h", path, headers);
        let entry = lab.must(&head);
        assert!(entry.cluster_slot().is_none(), "not known before the request is");
        entry.cluster_for(&head, &test_kit::stream_info()).map(|slot| slot.name.to_string())
    };
    assert_eq!(found("/", &[("x-to", "a")]).as_deref(), Some("one"));
    assert_eq!(found("/", &[("x-to", "b")]), None);
    assert_eq!(found("/gone", &[("x-to", "a")]), None);
}

#[test]
fn plugins_need_names_and_actions_clusters() {
    assert!(refused(&SPECIFIER.replace("name: by-header", "name: ''")).contains("extension.name"));
    assert!(refused(&SPECIFIER.replace("cluster: one", "cluster: ''")).contains("name a cluster"));
    assert!(refused(&SPECIFIER.replace("is_optional: true, ", "")).contains("cluster_specifier_plugins[1]"));
    let twice = SPECIFIER.replace("name: gone", "name: by-header");
    let (lab, _) = compile(&config(&twice.replace("cluster_specifier_plugin: gone", "cluster_specifier_plugin: by-header")), false);
    assert!(lab.is_some_and(|lab| lab.warnings.iter().any(|w| w.contains("the first one counts"))));
}

#[test]
fn hosts_are_missed_only_where_more_may_come() {
    let hosts = "virtual_hosts: [{name: v, domains: [known.test], routes: []}]";
    let grows = table(&format!("{{name: t, vhds: {{config_source: {{ads: {{}}}}}}, {hosts}}}"));
    assert_eq!(grows.table.missing_host(&get("Other.test:80", "/", &[])).as_deref(), Some("other.test:80"));
    assert_eq!(grows.table.missing_host(&get("known.test", "/", &[])), None);
    assert_eq!(grows.table.missing_host(&get("", "/", &[])), None);
    assert_eq!(grows.table.missing_host(&get(&"x".repeat(10_000), "/", &[])), None, "nobody has such a host");
    assert_eq!(table(&format!("{{name: t, {hosts}}}")).table.missing_host(&get("other.test", "/", &[])), None);
}

#[test]
fn internal_headers_are_told_in_lower_case() {
    let lab = table("{name: t, internal_only_headers: [X-Secret, x-b]}");
    assert_eq!(lab.table.internal_only_headers().iter().map(|n| n.as_str()).collect::<Vec<_>>(), ["x-secret", "x-b"]);
}
