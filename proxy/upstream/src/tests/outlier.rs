//! Outlier detection. Time is given, not waited for.

use super::*;
use crate::host::HealthFlags;
use crate::outlier::Outcome;
use std::time::{Duration, Instant};

fn five(more: &str) -> Arc<Cluster> {
    let hosts: Vec<String> = (1..=5).map(|i| format!("10.0.0.{i}:80")).collect();
    let list: Vec<_> = hosts.iter().map(|h| (h.as_str(), "")).collect();
    cluster(&static_cluster(&format!("outlier_detection: {{{more}}}"), &list))
}

fn report(c: &Arc<Cluster>, host: &Host, n: usize, outcome: Outcome) {
    for _ in 0..n {
        c.report(host, outcome);
    }
}

fn ejected(host: &Host) -> bool {
    host.flags().has(HealthFlags::FAILED_OUTLIER_CHECK)
}

#[test]
fn five_failures_in_a_row_eject_at_once() {
    let c = five("max_ejection_percent: 50");
    let hosts = c.hosts();
    report(&c, &hosts[0], 4, Outcome::HttpCode(500));
    report(&c, &hosts[0], 1, Outcome::HttpCode(200));
    report(&c, &hosts[0], 4, Outcome::HttpCode(503));
    assert!(!ejected(&hosts[0]));
    report(&c, &hosts[0], 1, Outcome::LocalOriginConnectFailed);
    assert!(ejected(&hosts[0]));
    let stats = c.stats().outlier();
    assert_eq!((stats.ejections_active.value(), stats.ejections_enforced_consecutive_5xx.value()), (1, 1));
    assert_eq!(spread(&c, 40, &LbContext::default()).len(), 4);
}

#[test]
fn gateway_failures_are_their_own_row() {
    let c =
        five("consecutive_5xx: 100, consecutive_gateway_failure: 3, enforcing_consecutive_gateway_failure: 100, max_ejection_percent: 50");
    let hosts = c.hosts();
    report(&c, &hosts[0], 2, Outcome::HttpCode(502));
    report(&c, &hosts[0], 1, Outcome::HttpCode(500));
    report(&c, &hosts[0], 2, Outcome::HttpCode(504));
    assert!(!ejected(&hosts[0]));
    report(&c, &hosts[0], 1, Outcome::LocalOriginTimeout);
    assert!(ejected(&hosts[0]));
}

#[test]
fn percent_is_kept_and_one_only_if_asked() {
    // 10% of 5 is less than one.
    let c = five("");
    report(&c, &c.hosts()[0], 5, Outcome::HttpCode(500));
    assert!(!ejected(&c.hosts()[0]));
    assert_eq!(c.stats().outlier().ejections_overflow.value(), 1);
    let c = five("always_eject_one_host: true");
    let hosts = c.hosts();
    report(&c, &hosts[0], 5, Outcome::HttpCode(500));
    report(&c, &hosts[1], 5, Outcome::HttpCode(500));
    assert!(ejected(&hosts[0]) && !ejected(&hosts[1]));
    let c = five("max_ejection_percent: 40");
    let hosts = c.hosts();
    for host in &hosts[..3] {
        report(&c, host, 5, Outcome::HttpCode(500));
    }
    assert_eq!(hosts.iter().filter(|h| ejected(h)).count(), 2);
}

#[test]
fn ejection_time_grows_and_shrinks() {
    let c = five("max_ejection_percent: 100, base_ejection_time: 30s, max_ejection_time: 60s, interval: 10s");
    let host = c.hosts()[0].clone();
    let start = Instant::now();
    let eject = || report(&c, &host, 5, Outcome::HttpCode(500));
    eject();
    c.outlier_tick(start + Duration::from_secs(29));
    assert!(ejected(&host));
    c.outlier_tick(start + Duration::from_secs(31));
    assert!(!ejected(&host), "30 s are over");
    eject();
    c.outlier_tick(start + Duration::from_secs(58));
    assert!(ejected(&host), "the second time takes twice as long");
    c.outlier_tick(start + Duration::from_secs(61));
    assert!(!ejected(&host));
    eject();
    c.outlier_tick(start + Duration::from_secs(61));
    assert!(!ejected(&host), "but no longer than the maximum");
    // Good behaviour is remembered too: each interval takes one step back.
    for _ in 0..5 {
        c.outlier_tick(start + Duration::from_secs(61));
    }
    eject();
    c.outlier_tick(start + Duration::from_secs(31));
    assert!(!ejected(&host));
}

#[test]
fn local_origin_apart_if_split() {
    let c = five("split_external_local_origin_errors: true, consecutive_local_origin_failure: 2, max_ejection_percent: 100");
    let host = c.hosts()[0].clone();
    report(&c, &host, 1, Outcome::LocalOriginConnectFailed);
    report(&c, &host, 1, Outcome::LocalOriginConnectSuccess);
    report(&c, &host, 4, Outcome::HttpCode(500));
    report(&c, &host, 1, Outcome::LocalOriginTimeout);
    assert!(!ejected(&host));
    report(&c, &host, 1, Outcome::LocalOriginConnectFailed);
    assert!(ejected(&host));
    assert_eq!(c.stats().outlier().ejections_enforced_consecutive_local_origin_failure.value(), 1);
}

#[test]
fn success_rate_judges_the_odd_one_out() {
    let c = five("consecutive_5xx: 1000, max_ejection_percent: 100, success_rate_stdev_factor: 1000");
    let hosts = c.hosts();
    for (i, host) in hosts.iter().enumerate() {
        for n in 0..200 {
            let bad = if i == 0 { n % 2 == 0 } else { n % 20 == 0 };
            c.report(host, Outcome::HttpCode(if bad { 500 } else { 200 }));
        }
    }
    c.outlier_tick(Instant::now());
    assert!(ejected(&hosts[0]) && !hosts[1..].iter().any(|h| ejected(h)));
    let (external, local) = c.success_rates().unwrap();
    // 50, 95, 95, 95, 95: mean 86, deviation 18.
    assert!((external.average - 86.0).abs() < 1e-9 && (external.threshold - 68.0).abs() < 1e-9, "{external:?}");
    assert_eq!(local.average, -1.0);
    assert_eq!(hosts[1].monitor.get().unwrap().success_rate(), 95.0);
    c.outlier_tick(Instant::now());
    assert_eq!(hosts[1].monitor.get().unwrap().success_rate(), -1.0, "nothing in this interval");
}

#[test]
fn failure_percentage() {
    let c = five("consecutive_5xx: 1000, max_ejection_percent: 100, enforcing_success_rate: 0, enforcing_failure_percentage: 100");
    let hosts = c.hosts();
    for (i, host) in hosts.iter().enumerate() {
        report(&c, host, 90, Outcome::HttpCode(if i == 0 { 500 } else { 200 }));
        report(&c, host, 10, Outcome::HttpCode(200));
    }
    c.outlier_tick(Instant::now());
    assert!(ejected(&hosts[0]) && !ejected(&hosts[1]));
    assert_eq!(c.stats().outlier().ejections_enforced_failure_percentage.value(), 1);
}

#[test]
fn enforcing_zero_only_looks() {
    let c = five("enforcing_consecutive_5xx: 0, max_ejection_percent: 100");
    report(&c, &c.hosts()[0], 10, Outcome::HttpCode(500));
    assert!(!ejected(&c.hosts()[0]));
    assert_eq!(c.stats().outlier().ejections_detected_consecutive_5xx.value(), 2);
}

#[test]
fn hosts_that_leave_are_not_counted_any_more() {
    let c = cluster("name: test\ntype: EDS\neds_cluster_config: {eds_config: {ads: {}}}\noutlier_detection: {max_ejection_percent: 100}");
    let list = |ips: &[&str]| {
        let one = |ip: &&str| format!("{{endpoint: {{address: {{socket_address: {{address: {ip}, port_value: 80}}}}}}}}");
        assignment(&format!("cluster_name: test\nendpoints: [{{lb_endpoints: [{}]}}]", ips.iter().map(one).collect::<Vec<_>>().join(", ")))
    };
    c.update_endpoints(&list(&["10.0.0.1", "10.0.0.2"])).unwrap();
    report(&c, &c.hosts()[0], 5, Outcome::HttpCode(500));
    assert_eq!(c.stats().outlier().ejections_active.value(), 1);
    c.update_endpoints(&list(&["10.0.0.2"])).unwrap();
    assert_eq!(c.stats().outlier().ejections_active.value(), 0);
}

#[test]
fn events_are_logged() {
    let path = std::env::temp_dir().join(format!("nuncio-outlier-{}.log", std::process::id()));
    let yaml = format!("outlier_detection: {{event_log_path: {}}}", path.display());
    let bootstrap: ClusterManagerProto = parse_text(&yaml, UnknownFields::Refuse).unwrap().value;
    let shared = Arc::new(Shared::new(&bootstrap, &mut Report::new()));
    let yaml = static_cluster("outlier_detection: {max_ejection_percent: 100}", &[("10.0.0.1:80", "")]);
    let c = compile_with(&server(), &shared, &proto(&yaml)).unwrap().0;
    report(&c, &c.hosts()[0], 5, Outcome::HttpCode(500));
    c.outlier_tick(Instant::now() + Duration::from_secs(40));
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!((lines[0]["action"].as_str(), lines[0]["type"].as_str()), (Some("EJECT"), Some("CONSECUTIVE_5XX")));
    assert_eq!((lines[0]["enforced"].as_bool(), lines[0]["upstream_url"].as_str()), (Some(true), Some("10.0.0.1:80")));
    assert_eq!(lines[1]["action"].as_str(), Some("UNEJECT"));
    assert_eq!(lines[1]["secs_since_last_action"].as_str(), Some("40"));
}

#[test]
fn degraded_hosts_come_back_after_their_own_time() {
    let c = five("detect_degraded_hosts: true, max_ejection_percent: 0, base_ejection_time: 30s");
    let hosts = c.hosts();
    let degraded = |i: usize| hosts[i].flags().has(HealthFlags::DEGRADED_OUTLIER_DETECTION);
    let said = |value: &'static str| {
        let mut headers = nuncio_core::Headers::new();
        headers.append(http::HeaderName::from_static("x-envoy-degraded"), http::HeaderValue::from_static(value));
        headers
    };
    let start = Instant::now();
    c.report_response(&hosts[0], 503, &said("true"));
    c.report_response(&hosts[1], 200, &nuncio_core::Headers::new());
    assert!(!degraded(0) && !degraded(1));
    // The value does not matter, nor how many there are.
    c.report_response(&hosts[0], 404, &said("false"));
    c.report_response(&hosts[1], 200, &said(""));
    assert!(degraded(0) && degraded(1) && !ejected(&hosts[0]));
    assert_eq!(c.stats().outlier().ejections_detected_degradation.value(), 2);
    assert_eq!(c.membership().degraded, 2);
    c.outlier_tick(start + Duration::from_secs(29));
    assert!(degraded(0));
    c.outlier_tick(start + Duration::from_secs(31));
    assert!(!degraded(0) && !degraded(1));
    // The next time is twice as long.
    c.report_response(&hosts[0], 200, &said("1"));
    c.outlier_tick(start + Duration::from_secs(45));
    assert!(degraded(0));
    c.outlier_tick(start + Duration::from_secs(62));
    assert!(!degraded(0));
    assert_eq!(c.stats().outlier().ejections_enforced_total.value(), 0);
}

#[test]
fn nobody_is_degraded_unless_asked() {
    let c = five("");
    let mut headers = nuncio_core::Headers::new();
    headers.append(http::HeaderName::from_static("x-envoy-degraded"), http::HeaderValue::from_static("true"));
    c.report_response(&c.hosts()[0], 200, &headers);
    assert_eq!(c.hosts()[0].flags().0, 0);
}
