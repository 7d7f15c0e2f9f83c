//! Distribution of picks, with tolerances of at least five standard deviations.

use super::*;
use crate::context::{OverrideHost, PriorityRetry};
use crate::host::HealthFlags;

const A: &str = "10.0.0.1:80";
const B: &str = "10.0.0.2:80";
const C: &str = "10.0.0.3:80";

fn near(count: &HashMap<String, usize>, host: &str, expected: f64, tolerance: f64) {
    let total: usize = count.values().sum();
    let share = *count.get(host).unwrap_or(&0) as f64 / total as f64;
    assert!((share - expected).abs() <= tolerance, "{host}: {share} instead of {expected}: {count:?}");
}

#[test]
fn round_robin_in_turn_and_by_weight() {
    let c = cluster(&static_cluster("", &[(A, ""), (B, ""), (C, "")]));
    let upstreams = Upstreams::current();
    let cx = LbContext::default();
    let picks: Vec<_> = (0..6).map(|_| upstreams.pick(&c, &cx).unwrap().address().to_string()).collect();
    assert_eq!(picks[..3], picks[3..], "a fixed order");
    assert_eq!(picks[..3].iter().collect::<std::collections::HashSet<_>>().len(), 3);
    let c =
        cluster(&static_cluster("", &[(A, "load_balancing_weight: 1"), (B, "load_balancing_weight: 2"), (C, "load_balancing_weight: 7")]));
    let count = spread(&c, 1000, &cx);
    near(&count, A, 0.1, 0.002);
    near(&count, B, 0.2, 0.002);
    near(&count, C, 0.7, 0.002);
}

#[test]
fn random_is_even() {
    let c = cluster(&static_cluster("lb_policy: RANDOM", &[(A, ""), (B, ""), (C, "")]));
    let count = spread(&c, 30_000, &LbContext::default());
    for host in [A, B, C] {
        near(&count, host, 1.0 / 3.0, 0.015);
    }
}

#[test]
fn least_request_avoids_the_busy() {
    let c = cluster(&static_cluster("lb_policy: LEAST_REQUEST", &[(A, ""), (B, ""), (C, "")]));
    let busy = c.hosts().into_iter().find(|h| h.address().to_string() == A).unwrap();
    busy.stats.rq_active.store(10, Ordering::Relaxed);
    let count = spread(&c, 30_000, &LbContext::default());
    // With two choices the busiest of three is picked only if it is drawn twice.
    near(&count, A, 1.0 / 9.0, 0.012);
    near(&count, B, 4.0 / 9.0, 0.016);
    // Weighted: weight / (active + 1).
    let c = cluster(&static_cluster(
        "lb_policy: LEAST_REQUEST",
        &[(A, "load_balancing_weight: 4"), (B, "load_balancing_weight: 2"), (C, "load_balancing_weight: 2")],
    ));
    let busy = c.hosts().into_iter().find(|h| h.address().to_string() == A).unwrap();
    busy.stats.rq_active.store(3, Ordering::Relaxed);
    let count = spread(&c, 5000, &LbContext::default());
    near(&count, A, 0.2, 0.01);
    near(&count, B, 0.4, 0.01);
    let full = "load_balancing_policy: {policies: [{typed_extension_config: {name: l, typed_config: {'@type': type.googleapis.com/envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest, selection_method: FULL_SCAN}}}]}";
    let c = cluster(&static_cluster(full, &[(A, ""), (B, ""), (C, "")]));
    c.hosts()[0].stats.rq_active.store(1, Ordering::Relaxed);
    let count = spread(&c, 9000, &LbContext::default());
    assert_eq!(count.get(A), None);
    near(&count, B, 0.5, 0.03);
}

#[test]
fn hashes_stick_and_move_on() {
    for policy in ["RING_HASH", "MAGLEV"] {
        let c = cluster(&static_cluster(&format!("lb_policy: {policy}"), &[(A, ""), (B, ""), (C, "")]));
        let upstreams = Upstreams::current();
        let mut used = std::collections::HashSet::new();
        for hash in (0..2000u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15)) {
            let cx = LbContext { hash: Some(hash), ..LbContext::default() };
            let first = upstreams.pick(&c, &cx).unwrap();
            assert!(upstreams.pick(&c, &cx).unwrap().same(&first));
            used.insert(first.address().to_string());
            let avoid = [first.clone()];
            let other = upstreams.pick(&c, &LbContext { avoid: &avoid, attempts: 50, ..cx }).unwrap();
            assert!(!other.same(&first), "{policy}");
        }
        assert_eq!(used.len(), 3);
    }
}

#[test]
fn bounded_load_spills_over() {
    let c = cluster(&static_cluster(
        "lb_policy: RING_HASH\ncommon_lb_config: {consistent_hashing_lb_config: {hash_balance_factor: 150}}",
        &[(A, ""), (B, ""), (C, "")],
    ));
    let upstreams = Upstreams::current();
    let cx = LbContext { hash: Some(42), ..LbContext::default() };
    let first = upstreams.pick(&c, &cx).unwrap();
    first.stats.rq_active.store(100, Ordering::Relaxed);
    c.stats().traffic.upstream_rq_active.add(100);
    let other = upstreams.pick(&c, &cx).unwrap();
    assert!(!other.same(&first));
    assert!(upstreams.pick(&c, &cx).unwrap().same(&other), "the same hash spills to the same host");
}

#[test]
fn unhealthy_endpoints_get_nothing_unless_panic() {
    let hosts = [(A, ""), (B, "health_status: UNHEALTHY"), (C, "health_status: DRAINING")];
    let c = cluster(&static_cluster("common_lb_config: {healthy_panic_threshold: {value: 0}}", &hosts));
    assert_eq!(spread(&c, 100, &LbContext::default()), HashMap::from([(A.to_string(), 100)]));
    // Who drains is not counted at all: one of two is no panic.
    let c = cluster(&static_cluster("", &hosts));
    assert_eq!(spread(&c, 100, &LbContext::default()).len(), 1);
    let c = cluster(&static_cluster("", &[hosts[0], hosts[1], (C, "health_status: TIMEOUT")]));
    let count = spread(&c, 300, &LbContext::default());
    assert_eq!(count.len(), 3, "a third is below 50%: panic");
    assert_eq!(c.stats().lb.lb_healthy_panic.value(), 300);
    let all = [(A, "health_status: UNHEALTHY"), (B, "health_status: TIMEOUT")];
    let c = cluster(&static_cluster("common_lb_config: {healthy_panic_threshold: {value: 0}}", &all));
    assert_eq!(spread(&c, 10, &LbContext::default()), HashMap::from([("none".to_string(), 10)]));
    assert_eq!(c.stats().traffic.upstream_cx_none_healthy.value(), 10);
}

fn failover(more: &str, p0: &[(&str, &str)], p1: &[(&str, &str)]) -> Arc<Cluster> {
    let list = |hosts: &[(&str, &str)]| {
        let one = |(a, health): &(&str, &str)| {
            let (ip, port) = a.rsplit_once(':').unwrap();
            format!("{{health_status: {health}, endpoint: {{address: {{socket_address: {{address: {ip}, port_value: {port}}}}}}}}}")
        };
        hosts.iter().map(one).collect::<Vec<_>>().join(", ")
    };
    cluster(&format!(
        "name: test\n{more}\nload_assignment: {{cluster_name: test, endpoints: [{{priority: 0, lb_endpoints: [{}]}}, {{priority: 1, lb_endpoints: [{}]}}]}}",
        list(p0),
        list(p1)
    ))
}

#[test]
fn priorities_share_as_they_can() {
    let c = failover("", &[(A, "HEALTHY"), (B, "UNHEALTHY")], &[(C, "HEALTHY")]);
    let count = spread(&c, 20_000, &LbContext::default());
    near(&count, A, 0.7, 0.02);
    near(&count, C, 0.3, 0.02);
    let c = failover("", &[(A, "HEALTHY"), (B, "HEALTHY")], &[(C, "HEALTHY")]);
    assert_eq!(spread(&c, 100, &LbContext::default()).get(C), None);
    let retry =
        LbContext { retry_priority: Some(PriorityRetry { update_frequency: 1, attempted: &[0], hosts: &[] }), ..LbContext::default() };
    assert_eq!(spread(&c, 100, &retry), HashMap::from([(C.to_string(), 100)]));
    let c = failover("", &[(A, "DEGRADED")], &[(C, "HEALTHY")]);
    assert_eq!(spread(&c, 100, &LbContext::default()), HashMap::from([(C.to_string(), 100)]), "healthy ones go first");
}

#[test]
fn localities_by_weight() {
    let yaml = |weights: (u32, u32), mode: &str| {
        format!(
            "name: test\ncommon_lb_config: {{{mode}}}\nload_assignment: {{cluster_name: test, endpoints: [\
             {{locality: {{zone: a}}, load_balancing_weight: {}, lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 10.0.0.1, port_value: 80}}}}}}}}]}},\
             {{locality: {{zone: b}}, load_balancing_weight: {}, lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 10.0.0.2, port_value: 80}}}}}}}}, {{endpoint: {{address: {{socket_address: {{address: 10.0.0.3, port_value: 80}}}}}}}}]}}]}}",
            weights.0, weights.1
        )
    };
    let c = cluster(&yaml((80, 20), "locality_weighted_lb_config: {}"));
    let count = spread(&c, 1000, &LbContext::default());
    near(&count, A, 0.8, 0.003);
    near(&count, B, 0.1, 0.003);
    let c = cluster(&yaml((80, 20), ""));
    near(&spread(&c, 999, &LbContext::default()), A, 1.0 / 3.0, 0.01);
    let c = cluster(&yaml((0, 20), "locality_weighted_lb_config: {}"));
    assert_eq!(spread(&c, 100, &LbContext::default()).get(A), None, "no weight, no traffic");
}

#[test]
fn zone_aware_keeps_to_the_zone() {
    let zone = |z: &str| format!("{{region: r, zone: {z}}}");
    let endpoints = |per_zone: &[(&str, usize)], net: u8| {
        let mut all = Vec::new();
        for (z, (name, n)) in per_zone.iter().enumerate() {
            let hosts: Vec<_> = (0..*n)
                .map(|i| format!("{{endpoint: {{address: {{socket_address: {{address: 10.{net}.{z}.{i}, port_value: 80}}}}}}}}"))
                .collect();
            all.push(format!("{{locality: {}, lb_endpoints: [{}]}}", zone(name), hosts.join(", ")));
        }
        all.join(", ")
    };
    let mut server = kit::server(kit::fields([]));
    Arc::get_mut(&mut server).unwrap().node.locality =
        Some(nuncio_proto::envoy::config::core::v3::Locality { region: "r".into(), zone: "a".into(), sub_zone: String::new() });
    let bootstrap: ClusterManagerProto = parse_text("local_cluster_name: me", UnknownFields::Refuse).unwrap().value;
    let shared = Arc::new(Shared::new(&bootstrap, &mut Report::new()));
    let make = |name: &str, hosts: &str| {
        let yaml = format!("name: {name}\nload_assignment: {{cluster_name: {name}, endpoints: [{hosts}]}}");
        compile_with(&server, &shared, &proto(&yaml)).unwrap_or_else(|r| panic!("{}", r.summary())).0
    };
    let me = make("me", &endpoints(&[("a", 2), ("b", 2)], 1));
    me.announce();
    let even = make("even", &endpoints(&[("a", 4), ("b", 4)], 2));
    let count = spread(&even, 400, &LbContext::default());
    assert!(count.keys().all(|h| h.starts_with("10.2.0.")), "{count:?}");
    assert_eq!(even.stats().lb.lb_zone_routing_all_directly.value(), 400);
    let scarce = make("scarce", &endpoints(&[("a", 2), ("b", 6)], 3));
    let count = spread(&scarce, 20_000, &LbContext::default());
    let here: usize = count.iter().filter(|(h, _)| h.starts_with("10.3.0.")).map(|(_, n)| n).sum();
    // Half of the requests come from this zone, a quarter of the hosts is here: half of ours can stay.
    assert!((here as f64 / 20_000.0 - 0.5).abs() < 0.02, "{here}");
    let small = make("small", &endpoints(&[("a", 1), ("b", 2)], 4));
    near(&spread(&small, 3000, &LbContext::default()), "10.4.0.0:80", 1.0 / 3.0, 0.01);
}

#[test]
fn hosts_by_name() {
    let c = cluster(&static_cluster("", &[(A, ""), (B, "health_status: UNHEALTHY"), (C, "")]));
    let pick = |address: &str, strict: bool| {
        let cx = LbContext { override_host: Some(OverrideHost { address, strict }), ..LbContext::default() };
        Upstreams::current().pick(&c, &cx).map(|h| h.address().to_string())
    };
    assert_eq!(pick(C, true).as_deref(), Some(C));
    assert_eq!(pick("10.9.9.9:80", true), None);
    assert_eq!(pick(B, true), None, "unhealthy is not among the default override_host_status");
    assert!(pick("10.9.9.9:80", false).is_some());
    let policy = "load_balancing_policy: {policies: [{typed_extension_config: {name: o, typed_config: {'@type': type.googleapis.com/envoy.extensions.load_balancing_policies.override_host.v3.OverrideHost, override_host_sources: [{header: x-to}], fallback_policy: {policies: [{typed_extension_config: {name: r, typed_config: {'@type': type.googleapis.com/envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin}}}]}}}}]}";
    let c = cluster(&static_cluster(policy, &[(A, ""), (B, ""), (C, "")]));
    let mut request = get();
    request.headers.append(http::HeaderName::from_static("x-to"), http::HeaderValue::from_static("10.9.9.9:80, 10.0.0.2:80"));
    let cx = LbContext { request: Some(&request), ..LbContext::default() };
    assert_eq!(spread(&c, 50, &cx), HashMap::from([(B.to_string(), 50)]));
}

#[test]
fn slow_start_gives_newcomers_little() {
    let slow =
        "lb_policy: ROUND_ROBIN\nround_robin_lb_config: {slow_start_config: {slow_start_window: 3600s, min_weight_percent: {value: 20}}}";
    let c = cluster(&static_cluster(slow, &[(A, ""), (B, "")]));
    for host in c.hosts() {
        // A is old, B is new.
        if host.address().to_string() == A {
            host.state().forget_healthy_since();
        }
    }
    let count = spread(&c, 1200, &LbContext::default());
    near(&count, B, 1.0 / 6.0, 0.01);
}

#[test]
fn original_dst_goes_where_the_client_wanted() {
    let c = cluster(
        "name: test\ntype: ORIGINAL_DST\nlb_policy: CLUSTER_PROVIDED\noriginal_dst_lb_config: {use_http_header: true, upstream_port_override: 99}",
    );
    let connection = kit::connection();
    let cx = LbContext { downstream: Some(&connection), ..LbContext::default() };
    let upstreams = Upstreams::current();
    let host = upstreams.pick(&c, &cx).unwrap();
    assert_eq!(host.address().to_string(), "10.0.0.2:99");
    assert!(upstreams.pick(&c, &cx).unwrap().same(&host));
    let mut request = get();
    request.headers.append(http::HeaderName::from_static("x-envoy-original-dst-host"), http::HeaderValue::from_static("1.2.3.4:5"));
    let named = upstreams.pick(&c, &LbContext { request: Some(&request), ..cx }).unwrap();
    assert_eq!(named.address().to_string(), "1.2.3.4:99");
    request.headers.clear();
    request.headers.append(http::HeaderName::from_static("x-envoy-original-dst-host"), http::HeaderValue::from_static("nonsense"));
    assert!(upstreams.pick(&c, &LbContext { request: Some(&request), ..cx }).unwrap().same(&host));
    assert_eq!(c.stats().traffic.original_dst_host_invalid.value(), 1);
    assert_eq!(c.host_count(), 2);
    c.cleanup();
    assert_eq!(c.host_count(), 2, "both were used");
    c.cleanup();
    assert_eq!(c.host_count(), 0);
    let again = upstreams.pick(&c, &cx).unwrap();
    assert!(!again.same(&host) && host.is_removed());
}

#[test]
fn health_changes_are_seen_at_the_next_pick() {
    let c = cluster(&static_cluster("", &[(A, ""), (B, ""), (C, "")]));
    assert_eq!(spread(&c, 30, &LbContext::default()).len(), 3);
    let host = c.hosts()[0].clone();
    host.set_flag(HealthFlags::FAILED_OUTLIER_CHECK);
    c.health_changed(&host, false);
    let count = spread(&c, 30, &LbContext::default());
    assert_eq!(count.len(), 2);
    assert_eq!(c.endpoint_stats().gauge("membership_healthy").value(), 2);
}

/// Picks that Envoy 1.40 made for `key-0` to `key-47` (header hash policy) on 127.0.0.1:21001 to 21005.
#[test]
fn hashes_fall_as_in_envoy() {
    let weighted = [1, 2, 3, 4, 5];
    for (policy, weights, expected) in [
        ("lb_policy: RING_HASH", [1; 5], "004403112021204403412412301131442210401243321411"),
        ("lb_policy: RING_HASH", weighted, "314433114023244403442442304141442412434243344441"),
        (
            "lb_policy: RING_HASH\nring_hash_lb_config: {hash_function: MURMUR_HASH_2, minimum_ring_size: 100}",
            [1; 5],
            "134440234313410334430041011142424440342344023114",
        ),
        ("lb_policy: MAGLEV", [1; 5], "403231214040102201301331312044120144031334414313"),
        ("lb_policy: MAGLEV\nmaglev_lb_config: {table_size: 1009}", weighted, "441244313443333414424032413304234103012314344244"),
    ] {
        let hosts: Vec<_> =
            weights.iter().enumerate().map(|(i, w)| (format!("127.0.0.1:{}", 21001 + i), format!("load_balancing_weight: {w}"))).collect();
        // One locality for all, as Envoy was given them.
        let list: Vec<_> = hosts
            .iter()
            .map(|(a, w)| format!("{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}}}, {w}}}", &a[10..]))
            .collect();
        let c = cluster(&format!(
            "name: x\n{policy}\nload_assignment: {{cluster_name: x, endpoints: [{{lb_endpoints: [{}]}}]}}",
            list.join(", ")
        ));
        let picks: String = (0..48)
            .map(|i| {
                let hash = twox_hash::XxHash64::oneshot(0, format!("key-{i}").as_bytes());
                let host = Upstreams::current().pick(&c, &LbContext { hash: Some(hash), ..LbContext::default() }).unwrap();
                (host.address().socket().unwrap().port() - 21001).to_string()
            })
            .collect();
        assert_eq!(picks, expected, "{policy} {weights:?}");
    }
}

#[test]
fn the_policy_hashes_by_itself() {
    let policy = |fields: &str| {
        format!(
            "load_balancing_policy: {{policies: [{{typed_extension_config: {{name: p, typed_config: {{'@type': type.googleapis.com/envoy.extensions.load_balancing_policies.{fields}}}}}}}]}}"
        )
    };
    let hash = "consistent_hashing_lb_config: {hash_policy: [{header: {header_name: x-user}}, {cookie: {name: c, ttl: 0s}}]}";
    for kind in ["ring_hash.v3.RingHash", "maglev.v3.Maglev"] {
        let c = cluster(&static_cluster(&policy(&format!("{kind}, {hash}")), &[(A, ""), (B, "")]));
        let mut request = get();
        request.headers.append(http::HeaderName::from_static("x-user"), http::HeaderValue::from_static("me"));
        let info = nuncio_core::StreamInfo::new(std::rc::Rc::new(kit::connection()), None);
        let result = c.hash_policy().unwrap().hash(&request, &info);
        assert!(result.hash.is_some() && result.set_cookies.len() == 1);
    }
    assert!(cluster(&static_cluster(&policy("maglev.v3.Maglev"), &[(A, "")])).hash_policy().is_none());
    let wrong = policy("maglev.v3.Maglev, consistent_hashing_lb_config: {hash_policy: [{header: {header_name: ''}}]}");
    let refused = compile_with(&server(), &Arc::default(), &proto(&static_cluster(&wrong, &[(A, "")])));
    assert!(refused.is_err_and(|r| r.summary().contains("hash_policy[0].header.header_name")));
}

#[test]
fn the_picked_host_is_told() {
    let policy = "load_balancing_policy: {policies: [{typed_extension_config: {name: p, typed_config: {'@type': type.googleapis.com/envoy.extensions.load_balancing_policies.override_host.v3.OverrideHost, override_host_sources: [{header: x-h}], selected_host_key: {key: envoy.lb, path: [{key: a}, {key: b}]}, fallback_policy: {policies: [{typed_extension_config: {name: r, typed_config: {'@type': type.googleapis.com/envoy.extensions.load_balancing_policies.random.v3.Random}}}]}}}}]}";
    let c = cluster(&static_cluster(policy, &[(A, "")]));
    let mut info = nuncio_core::StreamInfo::new(std::rc::Rc::new(kit::connection()), None);
    c.tell_selected(&c.hosts()[0], &mut info);
    assert!(format!("{:?}", info.metadata("envoy.lb").unwrap()).contains(A));
    let mut info = nuncio_core::StreamInfo::new(std::rc::Rc::new(kit::connection()), None);
    let plain = cluster(&static_cluster("", &[(A, "")]));
    plain.tell_selected(&plain.hosts()[0], &mut info);
    assert!(info.metadata.is_none());
}
