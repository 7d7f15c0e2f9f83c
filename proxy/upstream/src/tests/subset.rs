//! Subsets: what Envoy's docs say of each fallback is checked side by side with Envoy (`tests/differential/cases/subsets.py`);
//! here is what cannot be seen from outside: what survives churn, dynamic metadata, stats, refusals.

use super::*;
use nuncio_proto::Struct;
use prost_types::value::Kind;

fn host(address: &str, metadata: &str, more: &str) -> (String, String) {
    (address.to_string(), format!("metadata: {{filter_metadata: {{envoy.lb: {metadata}}}}}{more}"))
}

fn yaml(config: &str, hosts: &[(String, String)]) -> String {
    let hosts: Vec<(&str, &str)> = hosts.iter().map(|(a, m)| (a.as_str(), m.as_str())).collect();
    static_cluster(config, &hosts)
}

fn fields(pairs: &[(&str, &str)]) -> Struct {
    let value = |v: &str| nuncio_proto::Value { kind: Some(Kind::StringValue(v.to_string())) };
    Struct { fields: pairs.iter().map(|(k, v)| (k.to_string(), value(v))).collect() }
}

fn hosts() -> Vec<(String, String)> {
    vec![host("10.0.0.1:80", "{v: '1'}", ""), host("10.0.0.2:80", "{v: '1'}", ""), host("10.0.0.3:80", "{v: '2'}", "")]
}

const EDS: &str = "name: c
type: EDS
lb_policy: MAGLEV
eds_cluster_config: {eds_config: {ads: {}}}
lb_subset_config: {fallback_policy: ANY_ENDPOINT, subset_selectors: [{keys: [v]}]}";

fn update(cluster: &Cluster, hosts: &[(String, String)]) {
    let text = yaml("", hosts);
    let (_, text) = text.split_once("load_assignment:\n").unwrap();
    cluster.update_endpoints(&assignment(text)).unwrap_or_else(|e| panic!("{}", e.summary()));
}

/// The groups' views by the addresses in them.
fn views(cluster: &Cluster) -> HashMap<String, Arc<crate::view::View>> {
    let view = cluster.view();
    let parts: Vec<_> = view.subsets.as_ref().unwrap().parts().cloned().collect();
    let name = |v: &crate::view::View| v.endpoints.hosts().map(|h| h.address().to_string()).collect::<Vec<_>>().join(" ");
    parts.into_iter().map(|p| (name(&p.view), p.view)).collect()
}

#[test]
fn churn_rebuilds_only_what_changed() {
    let c = cluster(EDS);
    update(&c, &hosts());
    let before = views(&c);
    assert_eq!(before.len(), 3, "two versions and any endpoint: {:?}", before.keys());
    let mut more = hosts();
    more.push(host("10.0.0.4:80", "{v: '2'}", ""));
    update(&c, &more);
    let after = views(&c);
    let (old, new) = (&before["10.0.0.1:80 10.0.0.2:80"], &after["10.0.0.1:80 10.0.0.2:80"]);
    assert!(Arc::ptr_eq(old, new), "the other version grew, not this one");
    assert!(after.contains_key("10.0.0.3:80 10.0.0.4:80"));
    // Health counts, of the group's own hosts only.
    let third = c.hosts().into_iter().find(|h| h.address().to_string() == "10.0.0.3:80").unwrap();
    third.set_flag(crate::HealthFlags::FAILED_ACTIVE_HC);
    c.health_changed(&third, false);
    let ill = views(&c);
    assert!(Arc::ptr_eq(&after["10.0.0.1:80 10.0.0.2:80"], &ill["10.0.0.1:80 10.0.0.2:80"]));
    assert!(!Arc::ptr_eq(&after["10.0.0.3:80 10.0.0.4:80"], &ill["10.0.0.3:80 10.0.0.4:80"]));
    // A host that says something else of itself moves.
    more[0] = host("10.0.0.1:80", "{v: '2'}", "");
    update(&c, &more);
    assert!(views(&c).contains_key("10.0.0.1:80 10.0.0.3:80 10.0.0.4:80"));
}

#[test]
fn stats_follow_the_groups() {
    let c = cluster(EDS);
    // As in Envoy, each worker and the main thread count.
    let times = server().concurrency + 1;
    let lb = |c: &Cluster| {
        let lb = &c.stats().lb;
        let (created, removed) = (lb.lb_subsets_created.value(), lb.lb_subsets_removed.value());
        (lb.lb_subsets_active.value() / times as i64, created / times as u64, removed / times as u64)
    };
    assert_eq!(lb(&c), (0, 0, 0));
    update(&c, &hosts());
    assert_eq!(lb(&c), (2, 2, 0), "without any traffic");
    update(&c, &hosts()[..2]);
    assert_eq!(lb(&c), (1, 2, 1));
    update(&c, &hosts());
    assert_eq!(lb(&c), (2, 3, 1));
    c.retire();
    assert_eq!(lb(&c), (0, 3, 3));
}

#[test]
fn round_robin_goes_on_through_churn() {
    let config = "lb_subset_config: {subset_selectors: [{keys: [v]}]}";
    let c = cluster(&yaml(config, &hosts()));
    let wanted = fields(&[("v", "1")]);
    let cx = LbContext { metadata_match: Some(&wanted), ..LbContext::default() };
    let upstreams = Upstreams::current();
    let pick = || upstreams.pick(&c, &cx).unwrap().address().to_string();
    let first = pick();
    let mut more = hosts();
    more.push(host("10.0.0.9:80", "{v: '2'}", ""));
    update(&c, &more);
    let second = pick();
    assert_ne!(first, second, "each in turn");
    let count = spread(&c, 100, &cx);
    assert_eq!(count.len(), 2);
    assert!(count.values().all(|n| *n == 50), "{count:?}");
}

#[test]
fn dynamic_metadata_wins_over_the_route() {
    let c = cluster(&yaml("lb_subset_config: {subset_selectors: [{keys: [v]}]}", &hosts()));
    let wanted = fields(&[("v", "1")]);
    let mut info = kit::stream_info();
    info.set_metadata("envoy.lb", fields(&[("v", "2")]));
    let cx = LbContext { metadata_match: Some(&wanted), stream: Some(&info), ..LbContext::default() };
    assert_eq!(spread(&c, 10, &cx), HashMap::from([("10.0.0.3:80".to_string(), 10)]));
    let cx = LbContext { stream: Some(&info), ..LbContext::default() };
    assert_eq!(spread(&c, 10, &cx), HashMap::from([("10.0.0.3:80".to_string(), 10)]));
    assert_eq!(spread(&c, 3, &LbContext::default()), HashMap::from([("none".to_string(), 3)]));
}

#[test]
fn one_host_each() {
    let config = "lb_subset_config: {subset_selectors: [{keys: [v], single_host_per_subset: true}]}";
    let c = cluster(&yaml(config, &hosts()));
    let view = c.view();
    let subsets = view.subsets.as_ref().unwrap();
    assert_eq!((subsets.len(), subsets.duplicates, subsets.parts().count()), (2, 1, 0));
    assert_eq!(c.endpoint_stats().gauge("lb_subsets_single_host_per_subset_duplicate").value(), 1);
}

#[test]
fn lists_multiply_within_bounds() {
    let list = |n: usize| format!("[{}]", (0..n).map(|i| format!("'{i}'")).collect::<Vec<_>>().join(","));
    let metadata = format!("{{a: {}, b: {}}}", list(200), list(200));
    let config = "lb_subset_config: {list_as_any: true, subset_selectors: [{keys: [a, b]}, {keys: [a]}]}";
    let c = cluster(&yaml(config, &[host("10.0.0.1:80", &metadata, "")]));
    assert_eq!(c.view().subsets.as_ref().unwrap().len(), 1024 + 200, "40,000 combinations are cut");
}

#[test]
fn refuses_what_envoy_refuses() {
    let refused = |config: &str| match compile_with(&server(), &Arc::default(), &proto(&yaml(config, &hosts()))) {
        Ok(_) => panic!("accepted: {config}"),
        Err(report) => report.summary(),
    };
    let selector = |fields: &str| format!("lb_subset_config: {{subset_selectors: [{{keys: [a, b], {fields}}}]}}");
    for fields in [
        "fallback_policy: KEYS_SUBSET",
        "fallback_policy: KEYS_SUBSET, fallback_keys_subset: [a, b]",
        "fallback_policy: KEYS_SUBSET, fallback_keys_subset: [c]",
        "fallback_policy: ANY_ENDPOINT, fallback_keys_subset: [a]",
    ] {
        let why = refused(&selector(fields));
        assert!(why.contains("fallback_keys_subset"), "{fields}: {why}");
    }
    let random = "load_balancing_policy: {policies: [{typed_extension_config: {name: r, typed_config: {'@type': type.googleapis.com/envoy.extensions.load_balancing_policies.random.v3.Random}}}]}";
    assert!(refused(&format!("{random}\nlb_subset_config: {{subset_selectors: [{{keys: [a]}}]}}")).contains("lb_subset_config"));
    assert!(refused(&format!("{random}\ncommon_lb_config: {{locality_weighted_lb_config: {{}}}}")).contains("common_lb_config"));
}
