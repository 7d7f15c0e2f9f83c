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

/// Hundreds of endpoints in three zones, of which `gone` says who is missing.
fn crowd(hosts: u32, gone: impl Fn(u32) -> bool) -> ClusterLoadAssignment {
    use nuncio_proto::envoy::config::core::v3 as core;
    use nuncio_proto::envoy::config::endpoint::v3 as pb;
    let endpoint = |i: u32| {
        let socket = core::SocketAddress {
            address: std::net::Ipv4Addr::from(0x0a00_0000 + i).to_string(),
            port_specifier: Some(core::socket_address::PortSpecifier::PortValue(80)),
            ..Default::default()
        };
        let address = core::Address { address: Some(core::address::Address::SocketAddress(socket)) };
        let endpoint = pb::Endpoint { address: Some(address), ..Default::default() };
        pb::LbEndpoint { host_identifier: Some(pb::lb_endpoint::HostIdentifier::Endpoint(endpoint)), ..Default::default() }
    };
    let zone = |zone: u32| pb::LocalityLbEndpoints {
        locality: Some(core::Locality { zone: format!("z{zone}"), ..Default::default() }),
        lb_endpoints: (0..hosts).filter(|i| i % 3 == zone && !gone(*i)).map(endpoint).collect(),
        ..Default::default()
    };
    ClusterLoadAssignment { cluster_name: "big".into(), endpoints: (0..3).map(zone).collect(), ..Default::default() }
}

#[test]
fn large_clusters_churn() {
    const HOSTS: u32 = 900;
    for policy in ["ROUND_ROBIN", "LEAST_REQUEST", "MAGLEV"] {
        let m = manager("{}");
        let yaml = format!("name: big\ntype: EDS\nlb_policy: {policy}\neds_cluster_config: {{eds_config: {{ads: {{}}}}}}");
        m.apply(&proto(&yaml), true, &mut Report::new()).unwrap();
        m.update_endpoints("big", Some(&crowd(HOSTS, |_| false))).unwrap_or_else(|r| panic!("{}", r.summary()));
        let c = m.get("big").unwrap();
        let first: HashMap<_, _> = c.hosts().iter().map(|h| (h.address().clone(), h.clone())).collect();
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        // Another worker picks all the while.
        let (busy, stopped) = (c.clone(), stop.clone());
        let picking = std::thread::spawn(move || {
            let mut picks = 0u64;
            while !stopped.load(Ordering::Relaxed) || picks == 0 {
                let cx = LbContext { hash: Some(picks.wrapping_mul(0x9e37_79b9_7f4a_7c15)), ..LbContext::default() };
                assert!(Upstreams::current().pick(&busy, &cx).is_some());
                picks += 1;
            }
        });
        for round in 0..8u32 {
            let gone = |i: u32| (i + round).is_multiple_of(10);
            m.update_endpoints("big", Some(&crowd(HOSTS, gone))).unwrap_or_else(|r| panic!("{}", r.summary()));
            let hosts = c.hosts();
            assert_eq!((hosts.len(), c.membership().healthy), (810, 810));
            // Nobody who stays is another, and nobody who left is picked.
            let always = hosts.iter().filter(|h| h.same(&first[h.address()])).count();
            assert!(always >= 810 - 90 * round as usize, "{always} in round {round}");
            let here: std::collections::HashSet<_> = hosts.iter().map(|h| h.address().to_string()).collect();
            let picked = spread(&c, 900, &LbContext::default());
            assert!(picked.keys().all(|host| here.contains(host)));
            assert!(policy != "ROUND_ROBIN" || picked.len() == 810, "{} picked", picked.len());
        }
        stop.store(true, Ordering::Relaxed);
        picking.join().unwrap();
        assert_eq!(c.endpoint_stats().counter("membership_change").value(), 9);
        m.update_endpoints("big", Some(&crowd(0, |_| true))).unwrap_or_else(|r| panic!("{}", r.summary()));
        assert_eq!(c.hosts().len(), 0);
        assert!(first.values().all(|h| h.is_removed()));
    }
}
