//! Runtime keys that change limits and balancing while clusters run.

use super::*;
use crate::breaker::Kind;

const A: &str = "10.0.0.1:80";
const B: &str = "10.0.0.2:80";
const C: &str = "10.0.0.3:80";

fn apply(manager: &Arc<ClusterManager>, yaml: &str) -> Arc<Cluster> {
    let mut report = Report::new();
    let proto = proto(yaml);
    assert!(manager.apply(&proto, true, &mut report).is_some(), "{}", report.summary());
    manager.get(&proto.name).unwrap()
}

#[test]
fn limits_change_while_they_are_used() {
    let server = server();
    let manager = manager_of(server.clone(), "{}");
    let yaml = static_cluster("circuit_breakers: {thresholds: [{max_requests: 5, track_remaining: true}]}", &[(A, "")]);
    let cluster = apply(&manager, &yaml.replacen("name: test", "name: a.default.b", 1));
    let other = apply(&manager, &yaml.replacen("name: test", "name: a", 1));
    let requests = &cluster.breakers().default.requests;
    let stats = &cluster.stats().default_breakers;
    assert_eq!((requests.max(), stats.remaining_rq.value(), stats.remaining_cx.value()), (5, 5, 1024), "all is left at first");
    cluster.breakers().default.acquire(Kind::Request, stats);
    let key = "circuit_breakers.a.default.b.default.max_requests";
    server.runtime.set(key, "1");
    assert_eq!((requests.max(), requests.is_open(), stats.rq_open.value(), stats.remaining_rq.value()), (1, true, 1, 0));
    assert_eq!(other.breakers().default.requests.max(), 5, "another cluster, though its name begins the key");
    server.runtime.set(key, "");
    assert_eq!((requests.max(), stats.rq_open.value(), stats.remaining_rq.value()), (5, 0, 4), "as configured again");
    server.runtime.set("circuit_breakers.a.default.b.high.max_retries", "0");
    assert!(cluster.try_retry(crate::RoutingPriority::High).is_none() && cluster.try_retry(crate::RoutingPriority::Default).is_some());
    // A new cluster begins with what runtime says.
    server.runtime.set("circuit_breakers.c.default.max_pending_requests", "7");
    let late = apply(&manager, "name: c\ntype: STATIC");
    assert_eq!(late.breakers().default.pending.max(), 7);
}

#[test]
fn budgets_change() {
    let server = server();
    let manager = manager_of(server.clone(), "{}");
    let cluster = apply(&manager, "name: r\ntype: STATIC\ncircuit_breakers: {thresholds: [{retry_budget: {budget_percent: {value: 50}}}]}");
    let thresholds = &cluster.breakers().default;
    for _ in 0..20 {
        thresholds.acquire(Kind::Request, &cluster.stats().default_breakers);
    }
    assert_eq!(thresholds.max_retries(), 10);
    server.runtime.set("circuit_breakers.r.default.retry_budget.budget_percent", "25");
    assert_eq!(thresholds.max_retries(), 5);
    server.runtime.set("circuit_breakers.r.default.retry_budget.min_retry_concurrency", "8");
    assert_eq!(thresholds.max_retries(), 8);
    server.runtime.set("circuit_breakers.r.default.retry_budget.budget_percent", "nonsense");
    assert_eq!(thresholds.max_retries(), 10, "what is no percentage is not there");
}

#[test]
fn the_panic_threshold_changes() {
    let server = server();
    let manager = manager_of(server.clone(), "{}");
    let cluster = apply(&manager, &static_cluster("", &[(A, ""), (B, "health_status: UNHEALTHY"), (C, "health_status: UNHEALTHY")]));
    let hosts = |c: &Arc<Cluster>| spread(c, 60, &LbContext::default()).len();
    assert_eq!(hosts(&cluster), 3, "a third is healthy, which is panic");
    server.runtime.set("upstream.healthy_panic_threshold", "20");
    assert_eq!(hosts(&cluster), 1);
    server.runtime.set("upstream.healthy_panic_threshold", "");
    assert_eq!(hosts(&cluster), 3);
}

#[test]
fn outlier_detection_changes() {
    let server = server();
    server.runtime.set("outlier_detection.max_ejection_percent", "100");
    let manager = manager_of(server.clone(), "{}");
    let yaml =
        static_cluster("outlier_detection: {consecutive_5xx: 3, interval: 7s, base_ejection_time: 30s}", &[(A, ""), (B, ""), (C, "")]);
    let cluster = apply(&manager, &yaml);
    let hosts = cluster.hosts();
    let fail = |host: usize, times: usize| {
        for _ in 0..times {
            cluster.report(&hosts[host], crate::Outcome::HttpCode(500));
        }
        hosts[host].flags().has(crate::HealthFlags::FAILED_OUTLIER_CHECK)
    };
    server.runtime.set("outlier_detection.consecutive_5xx", "2");
    assert!(fail(0, 2), "a new cluster begins with what runtime says, and follows it");
    server.runtime.set("outlier_detection.enforcing_consecutive_5xx", "0");
    assert!(!fail(1, 2), "found, but not ejected");
    server.runtime.set("outlier_detection.enforcing_consecutive_5xx", "");
    server.runtime.set("outlier_detection.consecutive_5xx", "");
    assert!(!fail(1, 2));
    assert!(fail(1, 1), "as configured again");
    assert_eq!(cluster.outlier_interval(), Some(std::time::Duration::from_secs(7)));
    server.runtime.set("outlier_detection.interval_ms", "250");
    assert_eq!(cluster.outlier_interval(), Some(std::time::Duration::from_millis(250)));
    server.runtime.set("outlier_detection.base_ejection_time_ms", "1000");
    cluster.outlier_tick(std::time::Instant::now() + std::time::Duration::from_secs(2));
    assert!(!fail(0, 0) && !fail(1, 0));
    server.runtime.set("outlier_detection.max_ejection_percent", "0");
    assert!(!fail(2, 3));
    assert_eq!(cluster.stats().outlier().ejections_overflow.value(), 1);
}
