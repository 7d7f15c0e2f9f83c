//! How picks spread, for every policy, against the exact probabilities. Random picks are judged by chi-square with p < 1e-9: a right
//! balancer fails one run in a thousand million, and the seed is fixed, so that a run that passed passes again. What is not random
//! is compared exactly. Slow start has a clock that the test sets.

use super::*;
use crate::HealthFlags;
use crate::host::TEST_CLOCK;

/// Normal quantile of 1 - 1e-9.
const Z: f64 = 5.997_807;

/// The value that chi-square with `degrees` of freedom exceeds with p = 1e-9 (Wilson and Hilferty).
fn critical(degrees: f64) -> f64 {
    let a = 2.0 / (9.0 * degrees);
    degrees * (1.0 - a + Z * a.sqrt()).powi(3)
}

/// Judges counts against shares, which sum up to 1. Shares of zero must have no pick at all.
fn fits(counts: &[usize], shares: &[f64]) {
    let total: usize = counts.iter().sum();
    assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-9 && counts.len() == shares.len());
    let (mut chi, mut degrees) = (0.0, -1.0);
    for (count, share) in counts.iter().zip(shares) {
        if *share == 0.0 {
            assert_eq!(*count, 0, "{counts:?} instead of {shares:?}");
            continue;
        }
        let expected = share * total as f64;
        assert!(expected >= 5.0, "too few picks for the test");
        chi += (*count as f64 - expected).powi(2) / expected;
        degrees += 1.0;
    }
    if degrees > 0.0 {
        assert!(chi < critical(degrees), "chi-square {chi:.1} of {degrees}: {counts:?} instead of {shares:?}");
    }
}

#[test]
fn the_judge_is_right() {
    // Exactly known: the square of the two-sided normal quantile, and -2 ln p. The approximation is on the safe side of both.
    assert!(critical(1.0) > 6.1094f64.powi(2) && critical(2.0) > -2.0 * 1e-9f64.ln());
    fits(&[5000, 5100], &[0.5, 0.5]);
    assert!(std::panic::catch_unwind(|| fits(&[5000, 6000], &[0.5, 0.5])).is_err());
}

/// One priority after another; in each `(zone, weight of the zone, hosts)`; a host is the fields of its LbEndpoint.
type Zones<'a> = &'a [(&'a str, u32, &'a [&'a str])];

fn eds(policy: &str, priorities: &[Zones<'_>]) -> String {
    let mut yaml = format!("name: c\n{policy}\nload_assignment:\n  cluster_name: c\n  endpoints:\n");
    let mut number = 0;
    for (priority, zones) in priorities.iter().enumerate() {
        for (zone, weight, hosts) in *zones {
            let hosts: Vec<String> = hosts
                .iter()
                .map(|fields| {
                    number += 1;
                    let more = if fields.is_empty() { String::new() } else { format!(", {fields}") };
                    format!("{{endpoint: {{address: {{socket_address: {{address: 10.0.0.{number}, port_value: 80}}}}}}{more}}}")
                })
                .collect();
            let weight = if *weight == 0 { String::new() } else { format!("load_balancing_weight: {weight}, ") };
            yaml += &format!(
                "  - {{priority: {priority}, locality: {{region: r, zone: {zone}}}, {weight}lb_endpoints: [{}]}}\n",
                hosts.join(", ")
            );
        }
    }
    yaml
}

/// Picks of each host in the order of the assignment, after seeding this thread.
fn picks(cluster: &Arc<Cluster>, n: usize, cx: &LbContext<'_>) -> Vec<usize> {
    fastrand::seed(0x5eed);
    let count = spread(cluster, n, cx);
    cluster.hosts().iter().map(|h| count.get(&h.address().to_string()).copied().unwrap_or(0)).collect()
}

fn plain(policy: &str, hosts: &[&str]) -> Arc<Cluster> {
    cluster(&eds(policy, &[&[("a", 0, hosts)]]))
}

const GOOD: &str = "";
const BAD: &str = "health_status: UNHEALTHY";
const WEAK: &str = "health_status: DEGRADED";
const N: usize = 40_000;

#[test]
fn round_robin_and_weights_are_exact() {
    let cx = LbContext::default();
    assert_eq!(picks(&plain("", &[GOOD; 7]), 700, &cx), [100; 7]);
    let weights = [1, 2, 3, 5, 8, 13];
    let hosts: Vec<String> = weights.iter().map(|w| format!("load_balancing_weight: {w}")).collect();
    let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
    let c = plain("", &hosts);
    // Earliest deadline first: a host is at most one pick away from its share, wherever the schedule begins.
    for n in [1, 16, 31, 32, 320, 3201] {
        for (count, weight) in picks(&c, n, &cx).iter().zip(weights) {
            let share = n as f64 * f64::from(weight) / 32.0;
            assert!((*count as f64 - share).abs() <= 1.0 + 1e-9, "{n}: {count} instead of {share}");
        }
    }
}

#[test]
fn random_is_even_and_ignores_weights() {
    let hosts = ["load_balancing_weight: 9", GOOD, GOOD, GOOD, GOOD];
    fits(&picks(&plain("lb_policy: RANDOM", &hosts), N, &LbContext::default()), &[0.2; 5]);
}

#[test]
fn least_request_draws_and_takes_the_idlest() {
    for choices in [2, 3, 5] {
        let c = plain(&format!("lb_policy: LEAST_REQUEST\nleast_request_lb_config: {{choice_count: {choices}}}"), &[GOOD; 4]);
        for (host, active) in c.hosts().iter().zip([0, 1, 2, 3]) {
            host.stats.rq_active.store(active, Ordering::Relaxed);
        }
        // The k-th idlest wins if all draws are at least as busy, but not all busier.
        let at_least = |k: i32| (f64::from(4 - k) / 4.0).powi(choices);
        let shares: Vec<f64> = (0..4).map(|k| at_least(k) - at_least(k + 1)).collect();
        fits(&picks(&c, N, &LbContext::default()), &shares);
    }
    // With weights: exact shares of weight / (active + 1) ^ bias.
    for (bias, shares) in [(1.0, [4.0 / 4.0, 2.0, 6.0]), (2.0, [4.0 / 16.0, 2.0, 6.0]), (0.0, [4.0, 2.0, 6.0])] {
        let hosts = ["load_balancing_weight: 4", "load_balancing_weight: 2", "load_balancing_weight: 6"];
        let policy = format!(
            "lb_policy: LEAST_REQUEST\nleast_request_lb_config: {{active_request_bias: {{default_value: {bias}, runtime_key: b}}}}"
        );
        let c = plain(&policy, &hosts);
        c.hosts()[0].stats.rq_active.store(3, Ordering::Relaxed);
        let (counts, sum) = (picks(&c, 7000, &LbContext::default()), shares.iter().sum::<f64>());
        for (count, share) in counts.iter().zip(shares) {
            assert!((*count as f64 - 7000.0 * share / sum).abs() <= 2.0, "{bias}: {counts:?}");
        }
    }
}

/// Where each of many hashes goes.
fn placed(cluster: &Arc<Cluster>, hashes: u64) -> Vec<String> {
    let pick = |i: u64| {
        let hash = twox_hash::XxHash64::oneshot(7, &i.to_le_bytes());
        let cx = LbContext { hash: Some(hash), ..LbContext::default() };
        Upstreams::current().pick(cluster, &cx).map(|h| h.address().to_string()).unwrap_or_default()
    };
    (0..hashes).map(pick).collect()
}

#[test]
fn hashes_stay_when_a_host_goes() {
    let policies = [("RING_HASH\nring_hash_lb_config: {minimum_ring_size: 65536}", 0.02), ("MAGLEV", 0.06)];
    for (policy, moved_at_most) in policies {
        let c = plain(&format!("lb_policy: {policy}"), &[GOOD; 12]);
        let before = placed(&c, 20_000);
        let gone = c.hosts()[4].clone();
        gone.set_flag(HealthFlags::FAILED_ACTIVE_HC);
        let mut others = c.hosts();
        others.retain(|h| !h.same(&gone));
        // Eleven of twelve stay, so that nothing panics.
        c.health_changed(&gone, false);
        let after = placed(&c, 20_000);
        let name = gone.address().to_string();
        assert!(!after.contains(&name));
        // Keys of hosts that stayed hardly move. Nothing here is random: the bounds are those of the algorithms (a ring grows each
        // host's points by 1/11 of a twelfth of the keys at most; Maglev reshuffles a few places), measured with room above.
        let (stayed, moved) =
            before.iter().zip(&after).filter(|(b, _)| **b != name).fold((0, 0), |(s, m), (b, a)| (s + 1, m + usize::from(a != b)));
        let share = f64::from(u32::try_from(moved).unwrap()) / f64::from(stayed);
        assert!(share <= moved_at_most + 1.0 / 11.0 * f64::from(policy.starts_with("RING")), "{policy}: {share}");
        gone.clear_flag(HealthFlags::FAILED_ACTIVE_HC);
        c.health_changed(&gone, true);
        assert_eq!(placed(&c, 20_000), before, "all come back");
    }
}

#[test]
fn hashes_follow_weights() {
    for policy in ["RING_HASH\nring_hash_lb_config: {minimum_ring_size: 1000000}", "MAGLEV"] {
        let c =
            plain(&format!("lb_policy: {policy}"), &["load_balancing_weight: 1", "load_balancing_weight: 2", "load_balancing_weight: 5"]);
        let mut count = HashMap::new();
        placed(&c, 40_000).into_iter().for_each(|host| *count.entry(host).or_insert(0usize) += 1);
        for (host, share) in c.hosts().iter().zip([0.125, 0.25, 0.625]) {
            let found = count[&host.address().to_string()] as f64 / 40_000.0;
            // Table places are within 0.3% of the share, and 40,000 hashes within six standard deviations of the places.
            let tolerance = 0.003 + 6.0 * (share * (1.0 - share) / 40_000.0f64).sqrt();
            assert!((found - share).abs() < tolerance, "{policy}: {found} instead of {share}");
        }
    }
}

#[test]
fn localities_by_weight_and_health() {
    let policy = "common_lb_config: {locality_weighted_lb_config: {}}";
    let c = cluster(&eds(policy, &[&[("a", 1, &[GOOD]), ("b", 3, &[GOOD, GOOD]), ("c", 4, &[GOOD])]]));
    for (count, wanted) in picks(&c, 800, &LbContext::default()).iter().zip([100usize, 150, 150, 400]) {
        assert!(count.abs_diff(wanted) <= 1, "a schedule that begins anywhere is at most one pick off");
    }
    // A zone with 4 of 10 healthy hosts keeps 56% of its weight (overprovisioning 1.4).
    let mut half = vec![GOOD; 4];
    half.extend([BAD; 6]);
    let c = cluster(&eds(policy, &[&[("a", 50, &half), ("b", 50, &[GOOD; 10])]]));
    let counts = picks(&c, 15_600, &LbContext::default());
    let (first, second) = (counts[..10].iter().sum::<usize>(), counts[10..].iter().sum::<usize>());
    assert!(first.abs_diff(5600) <= 1 && second.abs_diff(10_000) <= 1, "{first} {second}");
    assert!(counts[4..10].iter().all(|n| *n == 0));
}

#[test]
fn priorities_spill_over() {
    // 140% of what is healthy: 5/10 is 70%, the rest goes on to the next.
    let mix = |good: usize, bad: usize| [vec![GOOD; good], vec![BAD; bad]].concat();
    for (first, second, shares) in [
        (mix(5, 5), mix(4, 0), [0.7, 0.3]),
        (mix(8, 2), mix(4, 0), [1.0, 0.0]),
        (mix(1, 9), mix(4, 0), [0.14, 0.86]),
        (mix(5, 5), mix(2, 8), [0.72, 0.28]),
        (mix(0, 4), mix(4, 0), [0.0, 1.0]),
    ] {
        let c = cluster(&eds(
            "lb_policy: RANDOM\ncommon_lb_config: {healthy_panic_threshold: {value: 0}}",
            &[&[("a", 0, &first)], &[("a", 0, &second)]],
        ));
        let counts = picks(&c, N, &LbContext::default());
        let (one, two) = counts.split_at(first.len());
        fits(&[one.iter().sum(), two.iter().sum()], &shares);
    }
}

#[test]
fn degraded_hosts_take_what_the_healthy_cannot() {
    let policy = "lb_policy: RANDOM";
    let c = plain(policy, &[GOOD, GOOD, WEAK, WEAK, WEAK, WEAK, WEAK, WEAK, WEAK, WEAK]);
    // 2 of 10 are healthy: 28% of the load, shared by two; eight degraded ones share the rest.
    let shares = [vec![0.14; 2], vec![0.09; 8]].concat();
    fits(&picks(&c, N, &LbContext::default()), &shares);
    assert_eq!(c.stats().lb.lb_healthy_panic.value(), 0);
    fits(&picks(&plain(policy, &[GOOD, GOOD, GOOD, WEAK]), N, &LbContext::default()), &[1.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0, 0.0]);
}

#[test]
fn panic_takes_everybody() {
    let hosts = [GOOD, BAD, BAD, BAD];
    let c = plain("lb_policy: RANDOM", &hosts);
    fits(&picks(&c, N, &LbContext::default()), &[0.25; 4]);
    assert_eq!(c.stats().lb.lb_healthy_panic.value(), N as u64);
    let calm = plain("lb_policy: RANDOM\ncommon_lb_config: {healthy_panic_threshold: {value: 25}}", &hosts);
    fits(&picks(&calm, N, &LbContext::default()), &[1.0, 0.0, 0.0, 0.0]);
}

/// A cluster with zone-aware routing, of which `here` hosts stand in this proxy's zone, and `there` in each other zone; the proxies
/// themselves are spread as `local` says.
fn zoned(policy: &str, local: &[usize], upstream: &[usize]) -> (Arc<Cluster>, Arc<Cluster>) {
    let mut server = kit::server(kit::fields([]));
    let locality = nuncio_proto::envoy::config::core::v3::Locality { region: "r".into(), zone: "a".into(), sub_zone: String::new() };
    Arc::get_mut(&mut server).unwrap().node.locality = Some(locality);
    let bootstrap: ClusterManagerProto = parse_text("local_cluster_name: me", UnknownFields::Refuse).unwrap().value;
    let shared = Arc::new(Shared::new(&bootstrap, &mut Report::new()));
    let names = ["a", "b", "c", "d"];
    let make = |name: &str, policy: &str, sizes: &[usize]| {
        let hosts: Vec<Vec<&str>> = sizes.iter().map(|n| vec![GOOD; *n]).collect();
        let zones: Vec<_> = names.iter().zip(&hosts).map(|(zone, hosts)| (*zone, 0, hosts.as_slice())).collect();
        let yaml = eds(policy, &[&zones]).replacen("name: c", &format!("name: {name}"), 1);
        compile_with(&server, &shared, &proto(&yaml)).unwrap_or_else(|r| panic!("{}", r.summary())).0
    };
    let me = make("me", "", local);
    me.announce();
    (make("up", policy, upstream), me)
}

fn by_zone(cluster: &Arc<Cluster>, sizes: &[usize]) -> Vec<usize> {
    let counts = picks(cluster, N, &LbContext::default());
    let mut rest = counts.as_slice();
    sizes
        .iter()
        .map(|n| {
            let (zone, more) = rest.split_at(*n);
            rest = more;
            zone.iter().sum()
        })
        .collect()
}

#[test]
fn zones_keep_what_they_can() {
    // A third of the proxies in each zone; this zone has a fifth of the hosts, the others two fifths each: 60% stays, and what is left
    // is what the others have above a third each, which is the same.
    let (up, _me) = zoned("lb_policy: RANDOM", &[2, 2, 2], &[2, 4, 4]);
    let whole = |part: f64| (part * 10_000.0).floor() / 10_000.0;
    let stays = (whole(0.2) * 10_000.0 / (whole(1.0 / 3.0) * 10_000.0) * 10_000.0).floor() / 10_000.0;
    fits(&by_zone(&up, &[2, 4, 4]), &[stays, (1.0 - stays) / 2.0, (1.0 - stays) / 2.0]);
    // More room here than load: all stays.
    let (up, _me) = zoned("lb_policy: RANDOM", &[1, 1], &[4, 4]);
    fits(&by_zone(&up, &[4, 4]), &[1.0, 0.0]);
    // What is left goes where there is room: zone c has none.
    let (up, _me) = zoned("lb_policy: RANDOM", &[5, 1, 4], &[2, 6, 2]);
    fits(&by_zone(&up, &[2, 6, 2]), &[0.4, 0.6, 0.0]);
    // Half of the requests by zone, half by nothing.
    let half = "lb_policy: RANDOM\ncommon_lb_config: {zone_aware_lb_config: {routing_enabled: {value: 50}}}";
    let (up, _me) = zoned(half, &[1, 1], &[4, 4]);
    fits(&by_zone(&up, &[4, 4]), &[0.75, 0.25]);
}

#[test]
fn slow_start_grows_with_time() {
    let start = |aggression: f64, policy: &str| {
        format!(
            "lb_policy: {policy}\n{}_lb_config: {{slow_start_config: {{slow_start_window: 100s, aggression: {{default_value: {aggression}, runtime_key: k}}, min_weight_percent: {{value: 10}}}}}}",
            policy.to_lowercase()
        )
    };
    for policy in ["ROUND_ROBIN", "LEAST_REQUEST"] {
        for aggression in [1.0f64, 2.0] {
            TEST_CLOCK.set(Some(1_000_000));
            let c = plain(&start(aggression, policy), &[GOOD, GOOD, GOOD]);
            let hosts = c.hosts();
            // Two have served for long.
            hosts[0].set_healthy_since(0);
            hosts[1].set_healthy_since(0);
            for seconds in [0u64, 5, 25, 50, 90, 100, 500] {
                TEST_CLOCK.set(Some(1_000_000 + seconds * 1000));
                let passed = seconds as f64 / 100.0;
                let factor = if seconds >= 100 { 1.0 } else { passed.powf(1.0 / aggression).max(0.1) };
                if factor == 1.0 && policy == "LEAST_REQUEST" {
                    // No weights left to schedule by: draws again.
                    c.health_changed(&hosts[0], true);
                    fits(&picks(&c, N, &LbContext::default()), &[1.0 / 3.0; 3]);
                    continue;
                }
                // A new schedule, as it begins when hosts change.
                c.health_changed(&hosts[0], true);
                let counts = picks(&c, 21_000, &LbContext::default());
                let share = 21_000.0 * factor / (2.0 + factor);
                assert!((counts[2] as f64 - share).abs() <= 2.0, "{policy} {aggression} after {seconds} s: {counts:?} instead of {share}");
            }
        }
    }
    TEST_CLOCK.set(None);
}

#[test]
fn ejections_stay_below_their_percentage() {
    for percent in [0, 10, 30, 50, 100] {
        let c =
            plain(&format!("lb_policy: RANDOM\noutlier_detection: {{consecutive_5xx: 1, max_ejection_percent: {percent}}}"), &[GOOD; 10]);
        for host in c.hosts() {
            c.report(&host, crate::Outcome::HttpCode(500));
        }
        let ejected = c.hosts().iter().filter(|h| h.flags().has(HealthFlags::FAILED_OUTLIER_CHECK)).count();
        assert_eq!(ejected, percent / 10, "{percent}%");
        assert_eq!(c.stats().outlier().ejections_overflow.value(), 10 - ejected as u64);
    }
}

#[test]
fn ejections_are_enforced_at_their_percentage() {
    fastrand::seed(0x5eed);
    let c = plain("outlier_detection: {consecutive_5xx: 1, enforcing_consecutive_5xx: 30, max_ejection_percent: 100}", &[GOOD; 1]);
    let host = c.hosts()[0].clone();
    let mut ejected = 0;
    for _ in 0..N {
        c.report(&host, crate::Outcome::HttpCode(500));
        if host.flags().has(HealthFlags::FAILED_OUTLIER_CHECK) {
            ejected += 1;
            host.clear_flag(HealthFlags::FAILED_OUTLIER_CHECK);
        }
    }
    fits(&[ejected, N - ejected], &[0.3, 0.7]);
}
