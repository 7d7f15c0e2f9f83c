//! Active health checks against loopback servers.

use super::*;
use crate::host::HealthFlags;
use crate::manager::Applied;

const TIMES: &str = "timeout: 1s, interval: 0.02s, no_traffic_interval: 0.02s, unhealthy_threshold: 2, healthy_threshold: 2";

fn apply(m: &Arc<ClusterManager>, check: &str, hosts: &[(&str, &str)]) -> Applied {
    let mut report = Report::new();
    let yaml = static_cluster(&format!("health_checks: [{{{TIMES}, {check}}}]"), hosts);
    m.apply(&proto(&yaml), true, &mut report).unwrap_or_else(|| panic!("{}", report.summary()))
}

#[test]
fn http_checks_decide_who_is_healthy() {
    run(async {
        let good = TestServer::start(Manner::KeepAlive).await;
        let bad = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let m = manager("{}");
        tokio::task::spawn_local(m.clone().run());
        let hosts = [(good.address.to_string(), ""), (bad.to_string(), "")];
        let hosts: Vec<_> = hosts.iter().map(|(a, e)| (a.as_str(), *e)).collect();
        assert_eq!(apply(&m, "http_health_check: {path: /healthz}", &hosts), Applied::Warming, "not before the first checks");
        until("warm", || m.get("test").is_some()).await;
        let c = m.get("test").unwrap();
        until("one of two", || c.membership().healthy == 1).await;
        assert!(c.hosts()[1].flags().has(HealthFlags::FAILED_ACTIVE_HC));
        assert_eq!(fetch(&c).await.unwrap().0.status.as_u16(), 200);
        let checked = good.requests.load(Ordering::SeqCst);
        until("more checks", || good.requests.load(Ordering::SeqCst) > checked + 3).await;
        assert!(good.connections() <= 2, "checks reuse their connection");
        let stats = c.endpoint_stats();
        assert!(stats.counter("health_check.success").value() > 0 && stats.counter("health_check.network_failure").value() > 0);
        drop(good);
    });
}

#[test]
fn answers_that_are_not_expected_are_failures() {
    run(async {
        let server = TestServer::start(Manner::KeepAlive).await;
        let address = server.address.to_string();
        for (check, healthy) in [
            ("http_health_check: {path: /, expected_statuses: [{start: 204, end: 205}]}", 0),
            ("http_health_check: {path: /, expected_statuses: [{start: 200, end: 300}]}", 1),
            ("http_health_check: {path: /, receive: [{text: '6f6b'}]}", 1),
            ("http_health_check: {path: /, receive: [{text: '6f6f'}]}", 0),
            ("tcp_health_check: {}", 1),
            ("grpc_health_check: {}", 0),
        ] {
            let m = manager("{}");
            let task = tokio::task::spawn_local(m.clone().run());
            apply(&m, check, &[(&address, "")]);
            until(check, || m.get("test").is_some()).await;
            // Network failures take two checks.
            until(check, || m.get("test").is_some_and(|c| c.membership().healthy == healthy)).await;
            task.abort();
        }
    });
}

#[test]
fn healthy_hosts_outlive_their_removal() {
    run(async {
        let server = TestServer::start(Manner::KeepAlive).await;
        let m = manager("{}");
        tokio::task::spawn_local(m.clone().run());
        let mut report = Report::new();
        let yaml = format!(
            "name: e\ntype: EDS\neds_cluster_config: {{eds_config: {{ads: {{}}}}}}\nhealth_checks: [{{{TIMES}, tcp_health_check: {{}}}}]"
        );
        m.apply(&proto(&yaml), true, &mut report).unwrap();
        let list = assignment(&format!(
            "cluster_name: e\nendpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}}}}}]}}]",
            server.address.port()
        ));
        m.update_endpoints("e", Some(&list)).unwrap();
        until("healthy", || m.get("e").is_some_and(|c| c.membership().healthy == 1)).await;
        let c = m.get("e").unwrap();
        m.update_endpoints("e", Some(&assignment("cluster_name: e"))).unwrap();
        assert!(c.hosts()[0].flags().has(HealthFlags::PENDING_DYNAMIC_REMOVAL));
        drop(server);
        until("gone", || c.hosts().is_empty()).await;
    });
}

#[test]
fn new_hosts_count_unless_told_otherwise() {
    for (ignore, excluded) in [(false, 0), (true, 1)] {
        let yaml = format!(
            "name: e\ntype: EDS\neds_cluster_config: {{eds_config: {{ads: {{}}}}}}\nhealth_checks: [{{{TIMES}, tcp_health_check: {{}}}}]\ncommon_lb_config: {{ignore_new_hosts_until_first_hc: {ignore}}}"
        );
        let c = cluster(&yaml);
        let list =
            "cluster_name: e\nendpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 1}}}}]}]";
        c.update_endpoints(&assignment(list)).unwrap();
        let host = &c.hosts()[0];
        assert!(host.is_unchecked() && host.flags().has(HealthFlags::FAILED_ACTIVE_HC));
        assert_eq!((c.membership().excluded, host.flags().has(HealthFlags::PENDING_ACTIVE_HC)), (excluded, ignore));
    }
}

#[test]
fn what_is_wrong_is_named() {
    let refused = |check: &str| {
        let yaml = format!("name: x\nhealth_checks: [{{{check}}}]");
        compile_with(&server(), &Arc::default(), &proto(&yaml)).err().map(|r| r.summary()).unwrap_or_default()
    };
    assert!(refused(TIMES).contains("no checker"));
    assert!(refused("timeout: 1s, http_health_check: {path: /}").contains("health_checks[0].interval: missing"));
    assert!(refused(&format!("{TIMES}, tcp_health_check: {{send: {{text: xyz}}}}")).contains("hexadecimal"));
    assert!(refused(&format!("{TIMES}, custom_health_check: {{name: redis}}")).contains("health check redis"));
    assert!(refused(&format!("{TIMES}, http_health_check: {{path: ''}}")).contains("path"));
}
