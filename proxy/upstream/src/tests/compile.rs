//! What is taken, refused and warned about.

use super::*;
use nuncio_core::HttpVersion;
use nuncio_core::views::ClusterView;
use std::time::Duration;

fn refused(yaml: &str) -> String {
    match compile_with(&server(), &Arc::default(), &proto(yaml)) {
        Ok(_) => panic!("accepted: {yaml}"),
        Err(report) => report.summary(),
    }
}

fn warned(yaml: &str) -> String {
    let (_, report) = compile_with(&server(), &Arc::default(), &proto(yaml)).unwrap_or_else(|r| panic!("{}", r.summary()));
    report.items.iter().map(|i| i.to_string()).collect::<Vec<_>>().join("; ")
}

#[test]
fn defaults_are_envoys() {
    let c = cluster("name: x");
    assert_eq!(c.connect_timeout(), Duration::from_secs(5));
    assert_eq!(c.buffer_limit(), 1 << 20);
    assert_eq!(c.spec.lb.panic_threshold, 50);
    assert_eq!(c.spec.http.idle_timeout, Some(Duration::from_secs(3600)));
    let b = &c.breakers().default;
    assert_eq!((b.connections.max(), b.pending.max(), b.requests.max(), b.max_retries()), (1024, 1024, 1024, 3));
    assert_eq!(&**c.observability_name(), "x");
    assert_eq!(c.upstream_protocol(HttpVersion::Http2), HttpVersion::Http11);
    let c = cluster("name: x\nalt_stat_name: 'y;'");
    assert_eq!(c.stats().scope().prefix(), "cluster.y;.");
}

#[test]
fn names_what_is_wrong() {
    for (yaml, path, words) in [
        ("connect_timeout: 1s", "name", "a cluster needs a name"),
        ("name: x\ntype: EDS", "eds_cluster_config", "missing"),
        ("name: x\ntype: STATIC\neds_cluster_config: {eds_config: {ads: {}}}", "eds_cluster_config", "not EDS"),
        ("name: x\nconnect_timeout: 0s", "connect_timeout", "above zero"),
        ("name: x\nlb_policy: CLUSTER_PROVIDED", "lb_policy", "ORIGINAL_DST"),
        ("name: x\ntype: ORIGINAL_DST", "lb_policy", "CLUSTER_PROVIDED"),
        ("name: x\nlb_policy: MAGLEV\nmaglev_lb_config: {table_size: 10}", "maglev_lb_config.table_size", "prime"),
        (
            "name: x\nlb_policy: RING_HASH\nring_hash_lb_config: {minimum_ring_size: 9, maximum_ring_size: 8}",
            "ring_hash_lb_config",
            "above",
        ),
        ("name: x\nlb_policy: LEAST_REQUEST\nleast_request_lb_config: {choice_count: 1}", "choice_count", "at least 2"),
        ("name: x\noutlier_detection: {max_ejection_percent: 101}", "outlier_detection.max_ejection_percent", "0 to 100"),
        ("name: x\nlb_subset_config: {subset_selectors: [{keys: [a], fallback_policy: KEYS_SUBSET}]}", "fallback_keys_subset", "not all"),
        (
            "name: x\ntransport_socket: {name: t, typed_config: {'@type': type.googleapis.com/envoy.extensions.transport_sockets.tap.v3.Tap}}",
            "transport_socket.typed_config",
            "not supported",
        ),
        (
            "name: x\nload_assignment: {cluster_name: x, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: a.b, port_value: 1}}}}]}]}",
            "load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address",
            "malformed IP address: a.b",
        ),
        (
            "name: x\nload_assignment: {cluster_name: x, endpoints: [{lb_endpoints: [{endpoint: {address: {envoy_internal_address: {server_listener_name: l}}}}]}]}",
            "endpoint.address",
            "internal listener address envoy://l/",
        ),
        (
            "name: x\ntype: LOGICAL_DNS\nload_assignment: {cluster_name: x, endpoints: [{lb_endpoints: []}, {lb_endpoints: []}]}",
            "load_assignment",
            "one locality with one endpoint",
        ),
        (
            "name: x\nload_balancing_policy: {policies: [{typed_extension_config: {name: p, typed_config: {'@type': type.googleapis.com/envoy.extensions.load_balancing_policies.load_aware_locality.v3.LoadAwareLocality}}}]}",
            "load_balancing_policy.policies",
            "no known policy",
        ),
        (
            "name: x\nfilters: [{name: f, typed_config: {'@type': type.googleapis.com/google.protobuf.Duration, value: 1s}}]",
            "filters[0].typed_config",
            "upstream network filter f",
        ),
        (
            "name: x\ntyped_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {'@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {http3_protocol_options: {}}}}",
            "explicit_http_config",
            "HTTP/3",
        ),
    ] {
        let summary = refused(yaml);
        assert!(summary.contains(path) && summary.contains(words), "{yaml}\n-> {summary}");
    }
    assert!(warned("name: x\ntrack_timeout_budgets: true").contains("track_timeout_budgets"));
    assert!(warned("name: x\ncommon_lb_config: {update_merge_window: 1s}").contains("update_merge_window"));
    assert_eq!(warned("name: x\ncommon_lb_config: {update_merge_window: 0s, healthy_panic_threshold: {}}"), "");
}

#[test]
fn typed_policies() {
    let policy = |name: &str, fields: &str| {
        let c = cluster(&format!(
            "name: x\nload_balancing_policy: {{policies: [{{typed_extension_config: {{name: unknown.one, typed_config: {{'@type': type.googleapis.com/google.protobuf.Empty}}}}}}, {{typed_extension_config: {{name: p, typed_config: {{'@type': type.googleapis.com/envoy.extensions.load_balancing_policies.{name}{fields}}}}}}}]}}"
        ));
        format!("{:?} {:?}", c.spec.lb.kind, c.spec.lb.locality)
    };
    assert_eq!(policy("round_robin.v3.RoundRobin", ""), "RoundRobin Ignore");
    assert_eq!(policy("random.v3.Random", ", locality_lb_config: {locality_weighted_lb_config: {}}"), "Random Weighted");
    assert_eq!(
        policy("least_request.v3.LeastRequest", ", choice_count: 3, active_request_bias: {default_value: 0.5, runtime_key: k}"),
        "LeastRequest { choices: 3, bias: 0.5, full_scan: false } Ignore"
    );
    assert_eq!(policy("maglev.v3.Maglev", ", table_size: 101"), "Maglev { table_size: 101 } Ignore");
    assert_eq!(
        policy(
            "override_host.v3.OverrideHost",
            ", override_host_sources: [{header: x-host}], fallback_policy: {policies: [{typed_extension_config: {name: f, typed_config: {'@type': type.googleapis.com/envoy.extensions.load_balancing_policies.random.v3.Random}}}]}"
        ),
        "Random Ignore"
    );
}

#[test]
fn protocols() {
    let mode = |options: &str| {
        let c = cluster(&format!(
            "name: x\ntyped_extension_protocol_options: {{envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {{'@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, {options}}}}}"
        ));
        (c.upstream_protocol(HttpVersion::Http11), c.upstream_protocol(HttpVersion::Http2))
    };
    let (h1, h2) = (HttpVersion::Http11, HttpVersion::Http2);
    assert_eq!(mode("explicit_http_config: {http_protocol_options: {}}"), (h1, h1));
    assert_eq!(mode("explicit_http_config: {http2_protocol_options: {}}"), (h2, h2));
    assert_eq!(mode("use_downstream_protocol_config: {http2_protocol_options: {}}"), (h1, h2));
    let old = cluster("name: x\nhttp2_protocol_options: {max_concurrent_streams: 7}\nmax_requests_per_connection: 1");
    assert_eq!((old.upstream_protocol(h1), old.spec.http.h2.max_concurrent_streams, old.spec.http.max_requests), (h2, 7, 1));
    let (server, shared) = (server(), Arc::default());
    let compile = |yaml: &str| compile_with(&server, &shared, &proto(yaml)).unwrap().0;
    let (a, b) = (compile("name: a\nhttp2_protocol_options: {}"), compile("name: b\nhttp2_protocol_options: {}"));
    assert!(Arc::ptr_eq(&a.spec.http, &b.spec.http), "equal options are kept once");
}

/// Every cluster that istiod generates compiles, but for upstream filters, whose factories are not here.
#[test]
fn istiods_clusters_compile() {
    let folder = std::path::Path::new("/work/shared/reference/istiod");
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let mut seen = 0;
    for entry in entries {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        let dump: serde_json::Value = serde_json::from_str(&text).unwrap();
        let mut found = Vec::new();
        collect(&dump, &mut found);
        for value in found {
            let read = nuncio_proto::json::parse::<ClusterProto>(&value, UnknownFields::Ignore).unwrap_or_else(|e| panic!("{e:?}"));
            let mut proto = read.value;
            proto.filters.clear();
            if let Err(report) = compile_with(&server(), &Arc::default(), &proto) {
                panic!("{}: {}", proto.name, report.summary());
            }
            seen += 1;
        }
    }
    assert!(seen > 20, "only {seen} clusters found");
}

fn collect(value: &serde_json::Value, found: &mut Vec<serde_json::Value>) {
    match value {
        serde_json::Value::Object(map) => {
            if map.get("@type").and_then(|t| t.as_str()) == Some("type.googleapis.com/envoy.config.cluster.v3.Cluster") {
                let mut map = map.clone();
                map.remove("@type");
                found.push(serde_json::Value::Object(map));
                return;
            }
            map.values().for_each(|v| collect(v, found));
        }
        serde_json::Value::Array(list) => list.iter().for_each(|v| collect(v, found)),
        _ => {}
    }
}
