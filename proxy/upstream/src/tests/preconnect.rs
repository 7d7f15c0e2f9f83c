//! `preconnect_policy` against real loopback servers.

use super::*;

#[test]
fn each_host_has_room_for_more() {
    run(async {
        let server = TestServer::start(Manner::KeepAlive).await;
        let c = cluster(&static_cluster("preconnect_policy: {per_upstream_preconnect_ratio: 2}", &[(&server.address.to_string(), "")]));
        let host = c.hosts()[0].clone();
        let first = open(&c, &host).await.unwrap();
        until("one more", || server.connections() == 2).await;
        let second = open(&c, &host).await.unwrap();
        until("two more", || server.connections() == 4).await;
        finish(first).await.unwrap();
        finish(second).await.unwrap();
        // What is there serves what comes.
        assert!(fetch(&c).await.is_ok());
        assert_eq!(server.connections(), 4);
    });
}

#[test]
fn circuit_breakers_bound_it() {
    run(async {
        let server = TestServer::start(Manner::KeepAlive).await;
        let more = "preconnect_policy: {per_upstream_preconnect_ratio: 3}\ncircuit_breakers: {thresholds: [{max_connections: 2}]}";
        let c = cluster(&static_cluster(more, &[(&server.address.to_string(), "")]));
        let host = c.hosts()[0].clone();
        let stream = open(&c, &host).await.unwrap();
        until("one more", || server.connections() == 2).await;
        finish(stream).await.unwrap();
        assert!(fetch(&c).await.is_ok());
        assert_eq!((server.connections(), c.stats().traffic.upstream_cx_overflow.value()), (2, 0));
    });
}

#[test]
fn the_next_hosts_are_connected_ahead() {
    run(async {
        let (a, b) = (TestServer::start(Manner::KeepAlive).await, TestServer::start(Manner::KeepAlive).await);
        let hosts = [(a.address.to_string(), ""), (b.address.to_string(), "")];
        let hosts: Vec<_> = hosts.iter().map(|(h, m)| (h.as_str(), *m)).collect();
        let c = cluster(&static_cluster("preconnect_policy: {predictive_preconnect_ratio: 2}", &hosts));
        assert!(fetch(&c).await.is_ok());
        until("the other host is connected", || a.connections() > 0 && b.connections() > 0).await;
        let before = a.connections() + b.connections();
        assert!(fetch(&c).await.is_ok());
        assert!(a.requests.load(Ordering::SeqCst) == 1 && b.requests.load(Ordering::SeqCst) == 1, "the pick ahead is the next pick");
        assert!(before >= 2);
    });
}

#[test]
fn only_hosts_with_the_metadata() {
    run(async {
        let (a, b) = (TestServer::start(Manner::KeepAlive).await, TestServer::start(Manner::KeepAlive).await);
        let (first, second) = (a.address.to_string(), b.address.to_string());
        let hosts = [(first.as_str(), "metadata: {filter_metadata: {pool: {eager: true}}}"), (second.as_str(), "")];
        let more = "preconnect_policy: {per_upstream_preconnect_ratio: 2, preconnect_enabled_metadata: {filter: pool, path: [{key: eager}], value: {bool_match: true}}}";
        let c = cluster(&static_cluster(more, &hosts));
        let hosts = c.hosts();
        finish(open(&c, &hosts[1]).await.unwrap()).await.unwrap();
        assert!(c.stats().traffic.upstream_cx_preconnect_skipped.value() > 0);
        finish(open(&c, &hosts[0]).await.unwrap()).await.unwrap();
        until("one more where it is wanted", || a.connections() == 2).await;
        assert_eq!(b.connections(), 1);
    });
}

#[test]
fn ratios_have_limits() {
    for (field, value) in [("per_upstream_preconnect_ratio", "0.5"), ("predictive_preconnect_ratio", "3.5")] {
        let yaml = static_cluster(&format!("preconnect_policy: {{{field}: {value}}}"), &[("127.0.0.1:1", "")]);
        let report = compile_with(&server(), &Arc::default(), &proto(&yaml)).err().unwrap();
        assert!(report.summary().contains(field), "{}", report.summary());
    }
}
