//! What idle clusters weigh.

use super::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// Counts what this thread allocates and frees.
struct Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static MADE: Cell<usize> = const { Cell::new(0) };
}

// A test's allocator cannot be written otherwise; it only passes on.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = LIVE.try_with(|l| l.set(l.get() + layout.size() as isize));
        let _ = MADE.try_with(|m| m.set(m.get() + 1));
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        let _ = LIVE.try_with(|l| l.set(l.get() - layout.size() as isize));
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// As istiod sends it, TLS contexts aside (they are nuncio-tls').
fn istio(i: usize) -> (ClusterProto, ClusterLoadAssignment) {
    let name = format!("outbound|8080||service-{i}.namespace-{i}.svc.cluster.local");
    let cluster = proto(&format!(
        "name: '{name}'\nalt_stat_name: '{name};'\ntype: EDS\nconnect_timeout: 10s\nlb_policy: LEAST_REQUEST\n\
         eds_cluster_config: {{eds_config: {{ads: {{}}, initial_fetch_timeout: 0s}}, service_name: '{name}'}}\n\
         circuit_breakers: {{thresholds: [{{max_connections: 4294967295, max_pending_requests: 4294967295, max_requests: 4294967295, max_retries: 4294967295, track_remaining: true}}]}}\n\
         outlier_detection: {{consecutive_5xx: 5, interval: 10s}}\n\
         common_lb_config: {{healthy_panic_threshold: {{}}}}\n\
         metadata: {{filter_metadata: {{istio: {{services: [{{host: service-{i}.namespace-{i}.svc.cluster.local, name: service-{i}, namespace: namespace-{i}}}]}}}}}}\n\
         typed_extension_protocol_options: {{envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {{'@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, use_downstream_protocol_config: {{http_protocol_options: {{}}, http2_protocol_options: {{}}}}}}}}\n\
         transport_socket_matches: [{{name: tlsMode-disabled, match: {{}}, transport_socket: {{name: envoy.transport_sockets.raw_buffer, typed_config: {{'@type': type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer}}}}}}]"
    ));
    let endpoint = |n: usize| {
        format!(
            "{{endpoint: {{address: {{socket_address: {{address: 10.{}.{}.{n}, port_value: 8080}}}}}}, health_status: HEALTHY, load_balancing_weight: 1, metadata: {{filter_metadata: {{envoy.transport_socket_match: {{tlsMode: istio}}, istio: {{workload: 'workload-{i};namespace-{i};workload-{i};v1;Kubernetes'}}}}}}}}",
            i / 250,
            i % 250
        )
    };
    let list = assignment(&format!(
        "cluster_name: '{name}'\nendpoints: [{{locality: {{region: r, zone: z}}, lb_endpoints: [{}, {}]}}]",
        endpoint(1),
        endpoint(2)
    ));
    (cluster, list)
}

#[test]
fn idle_clusters_are_light() {
    const N: usize = 200;
    let m = manager("{}");
    let protos: Vec<_> = (0..N).map(istio).collect();
    let mut report = Report::new();
    let apply = |i: usize, report: &mut Report| {
        m.apply(&protos[i].0, true, report).unwrap();
        m.update_endpoints(&protos[i].0.name, Some(&protos[i].1)).unwrap();
    };
    // What all share is there after the first few.
    (0..8).for_each(|i| apply(i, &mut report));
    let before = LIVE.get();
    (8..N).for_each(|i| apply(i, &mut report));
    let each = (LIVE.get() - before) / (N as isize - 8);
    let stats = m.active()[0].endpoint_stats().gauge("membership_total").enabled();
    println!("(stats {stats}) an idle cluster with two endpoints weighs {each} bytes; Cluster itself {}", size_of::<Cluster>());
    assert!(each <= 4096, "{each} bytes");
    assert_eq!(m.active().len(), N);
}

/// Allocations of `run`, and its time per round in nanoseconds (of a debug build).
fn cost(rounds: usize, mut run: impl FnMut()) -> (usize, u128) {
    run();
    let (before, began) = (MADE.get(), std::time::Instant::now());
    (0..rounds).for_each(|_| run());
    (MADE.get() - before, began.elapsed().as_nanos() / rounds as u128)
}

#[test]
fn a_warm_request_allocates_nothing_here() {
    run(async {
        let server = TestServer::start(Manner::KeepAlive).await;
        let address = server.address.to_string();
        for policy in ["ROUND_ROBIN", "LEAST_REQUEST", "RANDOM", "MAGLEV"] {
            let c = cluster(&static_cluster(
                &format!("lb_policy: {policy}\noutlier_detection: {{}}"),
                &[(&address, "load_balancing_weight: 5"), ("10.0.0.1:80", "load_balancing_weight: 3"), ("10.0.0.2:80", "")],
            ));
            let upstreams = Upstreams::current();
            let cx = LbContext { hash: Some(7), ..LbContext::default() };
            let (made, time) = cost(1000, || drop(upstreams.pick(&c, &cx)));
            println!("{policy}: pick {time} ns");
            assert_eq!(made, 0, "{policy}");
            let host = c.hosts().into_iter().find(|h| h.address().to_string() == address).unwrap();
            finish(open(&c, &host).await.unwrap()).await.unwrap();
            let (made, time) = cost(1000, || upstreams.checkout_for_test(&c, &host, get_shared()));
            println!("{policy}: checkout and release {time} ns");
            assert_eq!(made, 0, "{policy}");
        }
    });
}

/// Which subset a request falls on is decided on the stack, and so is the member of an aggregate cluster.
#[test]
fn a_pick_allocates_nothing() {
    use prost_types::value::Kind;
    let host = |address: &str, version: &str| {
        (address.to_string(), format!("metadata: {{filter_metadata: {{envoy.lb: {{v: '{version}', s: x}}}}}}"))
    };
    let hosts = [host("10.0.0.1:80", "1"), host("10.0.0.2:80", "1"), host("10.0.0.3:80", "2")];
    let hosts: Vec<_> = hosts.iter().map(|(a, m)| (a.as_str(), m.as_str())).collect();
    let subsets = "lb_subset_config: {fallback_policy: ANY_ENDPOINT, subset_selectors: [{keys: [v, s]}]}";
    let manager = manager("{}");
    let text = |v: &str| nuncio_proto::Value { kind: Some(Kind::StringValue(v.to_string())) };
    let wanted = |v: &str| nuncio_proto::Struct { fields: [("v".to_string(), text(v)), ("s".to_string(), text("x"))].into() };
    let (found, missing) = (wanted("1"), wanted("9"));
    for policy in ["ROUND_ROBIN", "LEAST_REQUEST", "RANDOM", "MAGLEV"] {
        let member = static_cluster(&format!("lb_policy: {policy}\n{subsets}"), &hosts);
        manager.apply(&proto(&member), true, &mut Report::new()).unwrap();
        let aggregate = "name: all\nlb_policy: CLUSTER_PROVIDED\ncluster_type: {name: envoy.clusters.aggregate, typed_config: {'@type': type.googleapis.com/envoy.extensions.clusters.aggregate.v3.ClusterConfig, clusters: [test]}}";
        manager.apply(&proto(aggregate), true, &mut Report::new()).unwrap();
        for name in ["test", "all"] {
            let cluster = manager.get(name).unwrap();
            for metadata in [Some(&found), Some(&missing), None] {
                let cx = LbContext { metadata_match: metadata, hash: Some(7), ..LbContext::default() };
                let (made, _) = cost(1000, || assert!(Upstreams::current().pick(&cluster, &cx).is_some()));
                assert_eq!(made, 0, "{policy} {name}");
            }
        }
    }
}

fn get_shared() -> &'static RequestHead {
    thread_local! {
        static REQUEST: &'static RequestHead = Box::leak(Box::new(get()));
    }
    REQUEST.with(|r| *r)
}
