//! Endpoint updates: what stays, what comes, what goes.

use super::*;
use crate::host::HealthFlags;

fn eds() -> Arc<Cluster> {
    cluster("name: test\ntype: EDS\neds_cluster_config: {eds_config: {ads: {}}}")
}

fn hosts(list: &[(&str, u32)]) -> ClusterLoadAssignment {
    let one = |(a, w): &(&str, u32)| {
        let (ip, port) = a.rsplit_once(':').unwrap();
        format!("{{load_balancing_weight: {w}, endpoint: {{address: {{socket_address: {{address: {ip}, port_value: {port}}}}}}}}}")
    };
    assignment(&format!("cluster_name: test\nendpoints: [{{lb_endpoints: [{}]}}]", list.iter().map(one).collect::<Vec<_>>().join(", ")))
}

#[test]
fn hosts_are_known_by_address() {
    let c = eds();
    assert!(!c.is_initialized());
    c.update_endpoints(&hosts(&[("10.0.0.1:80", 1), ("10.0.0.2:80", 1)])).unwrap();
    assert!(c.is_initialized());
    let before = c.hosts();
    before[0].stats.rq_total.store(7, Ordering::Relaxed);
    before[0].set_flag(HealthFlags::FAILED_OUTLIER_CHECK);
    c.update_endpoints(&hosts(&[("10.0.0.3:80", 1), ("10.0.0.1:80", 5)])).unwrap();
    let after = c.hosts();
    let same = after.iter().find(|h| h.same(&before[0])).unwrap();
    assert_eq!((same.weight(), same.stats.rq_total.load(Ordering::Relaxed)), (5, 7));
    assert!(same.flags().has(HealthFlags::FAILED_OUTLIER_CHECK));
    assert!(before[1].is_removed() && !before[0].is_removed());
    assert_eq!(c.endpoint_stats().gauge("membership_total").value(), 2);
    // Gone and back again: another host.
    c.update_endpoints(&hosts(&[("10.0.0.3:80", 1)])).unwrap();
    c.update_endpoints(&hosts(&[("10.0.0.3:80", 1), ("10.0.0.1:80", 1)])).unwrap();
    assert!(!c.hosts().iter().any(|h| h.same(&before[0])));
}

#[test]
fn unchanged_updates_change_nothing() {
    let c = eds();
    let list = hosts(&[("10.0.0.1:80", 1), ("10.0.0.2:80", 2)]);
    c.update_endpoints(&list).unwrap();
    let (view, host) = (c.view(), c.hosts()[0].clone());
    c.update_endpoints(&list).unwrap();
    assert!(Arc::ptr_eq(&view, &c.view()) && Arc::ptr_eq(&host, &c.hosts()[0]));
    assert_eq!(c.endpoint_stats().counter("update_no_rebuild").value(), 1);
    assert_eq!(c.endpoint_stats().counter("membership_change").value(), 1);
}

#[test]
fn bad_assignments_are_refused_whole() {
    let c = eds();
    c.update_endpoints(&hosts(&[("10.0.0.1:80", 1)])).unwrap();
    let bad = assignment(
        "cluster_name: test\nendpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 10.0.0.2, port_value: 80}}}}, {endpoint: {address: {socket_address: {address: nowhere, port_value: 80}}}}]}]",
    );
    let report = c.update_endpoints(&bad).unwrap_err();
    assert!(report.summary().contains("endpoints[0].lb_endpoints[1].endpoint.address"), "{}", report.summary());
    assert_eq!(c.hosts().len(), 1);
    assert!(!c.hosts()[0].is_removed());
}

#[test]
fn metadata_chooses_the_transport_socket() {
    let raw = "{name: raw, typed_config: {'@type': type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer}}";
    let c = cluster(&format!(
        "name: test\ntype: EDS\neds_cluster_config: {{eds_config: {{ads: {{}}}}}}\ntransport_socket_matches: [{{name: tlsMode-istio, match: {{tlsMode: istio}}, transport_socket: {raw}}}, {{name: tlsMode-disabled, match: {{}}, transport_socket: {raw}}}]"
    ));
    let list = assignment(
        "cluster_name: test\nendpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 10.0.0.1, port_value: 80}}}, metadata: {filter_metadata: {envoy.transport_socket_match: {tlsMode: istio, x: y}}}}, {endpoint: {hostname: h, address: {pipe: {path: /tmp/p}}}}]}]",
    );
    c.update_endpoints(&list).unwrap();
    let hosts = c.hosts();
    assert_eq!(c.transport_socket_of(&hosts[0]), "tlsMode-istio");
    assert_eq!(c.transport_socket_of(&hosts[1]), "tlsMode-disabled");
    assert_eq!((hosts[1].hostname(), hosts[1].address().to_string()), ("h", "/tmp/p".to_string()));
    assert!(hosts[0].metadata().unwrap().filter_metadata.contains_key("envoy.transport_socket_match"));
    assert!(hosts[1].metadata().is_none());
}

#[test]
fn drop_overload_drops_its_share() {
    let c = eds();
    let list =
        assignment("cluster_name: test\npolicy: {drop_overloads: [{category: c, drop_percentage: {numerator: 25, denominator: HUNDRED}}]}");
    c.update_endpoints(&list).unwrap();
    let dropped = (0..20_000).filter(|_| c.should_drop()).count();
    assert!((4600..5400).contains(&dropped), "{dropped}");
}

#[test]
fn the_same_address_twice_is_one_host() {
    let c = eds();
    c.update_endpoints(&hosts(&[("10.0.0.1:80", 1), ("10.0.0.1:80", 9)])).unwrap();
    assert_eq!(c.hosts().len(), 1);
}
