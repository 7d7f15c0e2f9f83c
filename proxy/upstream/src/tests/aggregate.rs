//! Aggregate clusters: the priorities of the members in a row, live changes, and whose connections are made.

use super::*;
use crate::context::PriorityRetry;
use crate::{HealthFlags, Outcome};

const AGGREGATE: &str = "name: all
lb_policy: CLUSTER_PROVIDED
cluster_type: {name: envoy.clusters.aggregate, typed_config: {'@type': type.googleapis.com/envoy.extensions.clusters.aggregate.v3.ClusterConfig, clusters: [one, two]}}";

fn apply(manager: &Arc<ClusterManager>, yaml: &str) {
    let mut report = Report::new();
    let applied = manager.apply(&proto(yaml), true, &mut report);
    assert!(applied.is_some() && !report.has_errors(), "{}", report.summary());
}

/// A member: `(priority, address)`.
fn member(name: &str, more: &str, hosts: &[(u32, &str)]) -> String {
    let mut yaml = format!("name: {name}\n{more}\nload_assignment:\n  cluster_name: {name}\n  endpoints:\n");
    for (priority, address) in hosts {
        let (ip, port) = address.rsplit_once(':').unwrap();
        yaml += &format!(
            "  - {{priority: {priority}, lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: '{ip}', port_value: {port}}}}}}}}}]}}\n"
        );
    }
    yaml
}

fn fail(cluster: &Cluster, address: &str) {
    let host = cluster.hosts().into_iter().find(|h| h.address().to_string() == address).unwrap();
    host.set_flag(HealthFlags::FAILED_ACTIVE_HC);
    cluster.health_changed(&host, false);
}

const A: &str = "10.0.0.1:80";
const B: &str = "10.0.0.2:80";
const C: &str = "10.0.0.3:80";
const D: &str = "10.0.0.4:80";

fn shares(cluster: &Arc<Cluster>) -> HashMap<String, usize> {
    spread(cluster, 200, &LbContext::default())
}

fn only(address: &str) -> HashMap<String, usize> {
    HashMap::from([(address.to_string(), 200)])
}

#[test]
fn priorities_of_members_in_a_row() {
    let manager = manager("{}");
    apply(&manager, AGGREGATE);
    let all = manager.get("all").unwrap();
    assert_eq!(all.kind(), "AGGREGATE");
    assert_eq!(shares(&all), only("none"), "no member yet");
    apply(&manager, &member("two", "", &[(0, C), (1, D)]));
    assert_eq!(shares(&all), only(C));
    // Priority 1 of the first member is before priority 0 of the second; the gap at priority 0 does not count.
    apply(&manager, &member("one", "", &[(1, A), (3, B)]));
    assert_eq!(shares(&all), only(A));
    let one = manager.get("one").unwrap();
    fail(&one, A);
    assert_eq!(shares(&all), only(B), "the other priority of the same member");
    fail(&one, B);
    assert_eq!(shares(&all), only(C), "the next member");
    fail(&manager.get("two").unwrap(), C);
    assert_eq!(shares(&all), only(D));
    // A member that changes, goes, comes back.
    apply(&manager, &member("one", "", &[(0, "10.0.0.9:80")]));
    assert_eq!(shares(&all), only("10.0.0.9:80"));
    assert!(manager.remove("one"));
    assert_eq!(shares(&all), only(D));
    assert!(manager.remove("two"));
    assert_eq!(shares(&all), only("none"));
}

#[test]
fn all_members_failed_is_panic_over_all_hosts() {
    let manager = manager("{}");
    apply(&manager, AGGREGATE);
    apply(&manager, &member("one", "", &[(0, A)]));
    apply(&manager, &member("two", "", &[(0, B)]));
    for (name, host) in [("one", A), ("two", B)] {
        fail(&manager.get(name).unwrap(), host);
    }
    let count = spread(&manager.get("all").unwrap(), 10_000, &LbContext::default());
    // Half of the hosts each: six standard deviations of a fair coin.
    assert!(count[A].abs_diff(5000) < 300 && count[B].abs_diff(5000) < 300, "{count:?}");
}

#[test]
fn retries_leave_priorities_that_were_tried() {
    let manager = manager("{}");
    apply(&manager, AGGREGATE);
    apply(&manager, &member("one", "", &[(0, A)]));
    apply(&manager, &member("two", "", &[(0, B)]));
    let all = manager.get("all").unwrap();
    let first = Upstreams::current().pick(&all, &LbContext::default()).unwrap();
    let tried = [first.clone()];
    let retry = PriorityRetry { update_frequency: 1, attempted: &[0], hosts: &tried };
    let cx = LbContext { retry_priority: Some(retry), ..LbContext::default() };
    assert_eq!(spread(&all, 20, &cx), HashMap::from([(B.to_string(), 20)]));
}

#[test]
fn members_own_hosts_and_connections() {
    run(async {
        let server = TestServer::start(Manner::KeepAlive).await;
        let manager = manager("{}");
        apply(&manager, AGGREGATE);
        apply(
            &manager,
            &member("one", "outlier_detection: {consecutive_5xx: 1, max_ejection_percent: 100}", &[(0, &server.address.to_string())]),
        );
        let (all, one) = (manager.get("all").unwrap(), manager.get("one").unwrap());
        assert!(all.hosts().is_empty(), "as /clusters shows it");
        assert_eq!(all.candidates().len(), 1);
        assert!(fetch(&all).await.is_ok());
        let total = |c: &Cluster| (c.stats().traffic.upstream_cx_total.value(), c.stats().traffic.upstream_rq_total.value());
        assert_eq!((total(&all), total(&one)), ((0, 0), (1, 1)));
        let host = Upstreams::current().pick(&all, &LbContext::default()).unwrap();
        all.report(&host, Outcome::HttpCode(503));
        assert!(host.flags().has(HealthFlags::FAILED_OUTLIER_CHECK), "ejected by the member's outlier detection");
        assert!(Upstreams::current().connect(&all, &host, &OpenOptions::default()).await.is_ok());
        manager.remove("one");
        assert!(Upstreams::current().pick(&all, &LbContext::default()).is_none());
        let gone = Upstreams::current().open(&all, &host, &get(), true, &OpenOptions::default()).await;
        assert!(matches!(gone, Err(StreamError::ConnectFailed(_))));
    });
}

#[test]
fn refuses_an_empty_one_and_other_policies() {
    let refused = |yaml: &str| match compile_with(&server(), &Arc::default(), &proto(yaml)) {
        Ok(_) => panic!("accepted: {yaml}"),
        Err(report) => report.summary(),
    };
    assert!(refused(&AGGREGATE.replace(", clusters: [one, two]", "")).contains("clusters"));
    assert!(refused(&AGGREGATE.replace("CLUSTER_PROVIDED", "RANDOM")).contains("CLUSTER_PROVIDED"));
}
