//! Load reports and the weights that follow. Time is given, not waited for.

use super::*;
use crate::LbContext;
use crate::tests::{assignment, cluster, compile_with, proto, server, spread, static_cluster};
use std::sync::Arc;

const A: &str = "10.0.0.1:80";
const B: &str = "10.0.0.2:80";
const C: &str = "10.0.0.3:80";

fn policy(fields: &str) -> String {
    format!(
        "load_balancing_policy: {{policies: [{{typed_extension_config: {{name: w, typed_config: {{'@type': type.googleapis.com/envoy.extensions.load_balancing_policies.client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin{fields}}}}}}}]}}"
    )
}

fn weighted(fields: &str) -> Arc<Cluster> {
    cluster(&static_cluster(&policy(fields), &[(A, "load_balancing_weight: 9"), (B, ""), (C, "")]))
}

fn headers(name: &'static str, value: &str) -> Headers {
    let mut headers = Headers::new();
    headers.append(HeaderName::from_static(name), http::HeaderValue::from_str(value).unwrap());
    headers
}

fn report(cluster: &Cluster, host: usize, text: &str) -> bool {
    let spec = cluster.spec.lb.orca.as_deref().unwrap();
    take_report(spec, &cluster.hosts()[host], &headers("endpoint-load-metrics", text))
}

fn weights(cluster: &Cluster) -> Vec<u32> {
    cluster.hosts().iter().map(|h| h.weight()).collect()
}

fn later(seconds: u64) -> Instant {
    Instant::now() + Duration::from_secs(seconds)
}

#[test]
fn weights_follow_reports_after_the_blackout() {
    let c = weighted("");
    assert_eq!(weights(&c), [1, 1, 1], "weights of the assignment do not count");
    assert!(report(&c, 0, "TEXT rps_fractional=100, application_utilization=0.5"));
    assert!(report(&c, 1, "TEXT rps_fractional=100,cpu_utilization=0.25"));
    c.update_orca_weights(later(9));
    assert_eq!(weights(&c), [1, 1, 1], "blackout");
    c.update_orca_weights(later(11));
    assert_eq!(weights(&c), [200, 400, 300], "the third has the median of the others");
    let count = spread(&c, 900, &LbContext::default());
    // A schedule that begins anywhere is at most one pick off.
    assert!([(A, 200), (B, 400), (C, 300)].iter().all(|(host, n)| count[*host].abs_diff(*n) <= 1), "{count:?}");
    // The last report expires.
    c.update_orca_weights(later(182));
    assert_eq!(weights(&c), [1, 1, 1]);
    assert!(report(&c, 0, "TEXT rps_fractional=10, application_utilization=0.5"));
    c.update_orca_weights(later(5));
    assert_eq!(weights(&c), [1, 1, 1], "another blackout");
    c.update_orca_weights(later(15));
    assert_eq!(weights(&c), [20, 20, 20]);
}

#[test]
fn hosts_that_come_have_the_median() {
    let c = cluster(&format!("name: c\ntype: EDS\neds_cluster_config: {{eds_config: {{ads: {{}}}}}}\n{}", policy(", blackout_period: 0s")));
    let update = |ports: &[u16]| {
        let hosts: Vec<String> = ports
            .iter()
            .map(|p| format!("{{endpoint: {{address: {{socket_address: {{address: 10.0.0.1, port_value: {p}}}}}}}}}"))
            .collect();
        let text = format!("{{cluster_name: c, endpoints: [{{lb_endpoints: [{}]}}]}}", hosts.join(", "));
        c.update_endpoints(&assignment(&text)).unwrap_or_else(|e| panic!("{}", e.summary()));
    };
    update(&[1, 2]);
    report(&c, 0, "TEXT rps_fractional=10,application_utilization=1");
    report(&c, 1, "TEXT rps_fractional=30,application_utilization=1");
    update(&[1, 2, 3]);
    assert_eq!(weights(&c), [10, 30, 20]);
}

#[test]
fn what_a_report_is_worth() {
    let spec = |metrics: &[&str], error_penalty| OrcaSpec {
        oob: None,
        blackout: Duration::ZERO,
        expiration: Duration::ZERO,
        update: Duration::ZERO,
        error_penalty,
        metrics: metrics.iter().map(|m| (*m).into()).collect(),
    };
    let worth = |spec: &OrcaSpec, text: &str| weight_of(spec, &text_report(text).unwrap());
    let none = spec(&[], 0.0);
    assert_eq!(worth(&none, "rps_fractional=10"), None, "no utilization");
    assert_eq!(worth(&none, "cpu_utilization=0.5"), None, "no requests");
    assert_eq!(worth(&none, "rps_fractional=10,cpu_utilization=0.3"), Some(33), "cut off");
    assert_eq!(worth(&none, "rps_fractional=10,cpu_utilization=1e-300"), Some(u32::MAX));
    let named = spec(&["named_metrics.a", "utilization.*", "mem_utilization"], 0.0);
    assert_eq!(worth(&named, "rps_fractional=10,application_utilization=5,named_metrics.a=1,named_metrics.b=9"), Some(10), "named first");
    assert_eq!(worth(&named, "rps_fractional=10,named_metrics.a=1,utilization.x=2,utilization.y=4,mem_utilization=0.1"), Some(2));
    assert_eq!(worth(&named, "rps_fractional=10,named_metrics.b=9,application_utilization=5"), Some(2));
    assert_eq!(worth(&spec(&[], 2.0), "rps_fractional=10,eps=5,application_utilization=1"), Some(5), "1 + 2 * 5 / 10");
}

#[test]
fn formats() {
    let wanted =
        Report { cpu_utilization: 0.5, rps_fractional: 10.0, named_metrics: HashMap::from([("q".to_string(), 2.0)]), ..Report::default() };
    let binary = base64::engine::general_purpose::STANDARD.encode(wanted.encode_to_vec());
    assert_eq!(binary_report(&binary).as_ref(), Some(&wanted));
    assert_eq!(binary_report(binary.trim_end_matches('=')).as_ref(), Some(&wanted), "as gRPC sends it");
    assert_eq!(text_report(" cpu_utilization=0.5 , rps_fractional:10,named_metrics.q=2").as_ref(), Some(&wanted));
    assert_eq!(json_report(r#"{"cpu_utilization": 0.5, "rpsFractional": "10", "namedMetrics": {"q": 2}}"#).as_ref(), Some(&wanted));
    for wrong in ["eps", "eps=", "eps=x", "eps=nan", "eps=inf", "other=1", "named_metrics.=1", "eps=1,eps=1", "other.a=1", "=1"] {
        assert_eq!(text_report(wrong), None, "{wrong}");
    }
    for wrong in ["", "[]", "{", r#"{"other": 1}"#, r#"{"eps": {}}"#, r#"{"named_metrics": {"a": "b"}}"#] {
        assert_eq!(json_report(wrong), None, "{wrong}");
    }
    for wrong in ["", "!", "AAAA"] {
        assert_eq!(binary_report(wrong), None, "{wrong}");
    }
    let c = weighted("");
    let spec = c.spec.lb.orca.as_deref().unwrap();
    let take = |name, value: &str| take_report(spec, &c.hosts()[0], &headers(name, value));
    assert!(take("endpoint-load-metrics", &format!("BIN {binary}")) && take("endpoint-load-metrics-bin", &binary));
    assert!(!take("endpoint-load-metrics", &binary) && !take("endpoint-load-metrics", "YAML a: 1") && !take("other", "TEXT eps=1"));
}

#[test]
fn out_of_band_reports_are_asked_for() {
    assert!(weighted(", oob_reporting_config: {port_value: 9}").spec.lb.orca.as_ref().unwrap().oob.is_none(), "not enabled");
    let c = weighted(
        ", enable_oob_load_report: true, oob_reporting_config: {port_value: 9, authority: a, transport_socket_match_criteria: {k: v}}",
    );
    let oob = c.spec.lb.orca.as_ref().unwrap().oob.as_ref().unwrap();
    assert_eq!((oob.period, oob.port, &*oob.authority, oob.criteria.as_ref().unwrap().len()), (Duration::from_secs(10), Some(9), "a", 1));
    let wrong = ", enable_oob_load_report: true, oob_reporting_config: {port_value: 65536}";
    let refused = compile_with(&server(), &Arc::default(), &proto(&static_cluster(&policy(wrong), &[(A, "")])));
    assert!(refused.is_err_and(|r| r.summary().contains("oob_reporting_config.port_value")));
}
