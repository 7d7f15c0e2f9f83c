//! What idle clusters weigh.

use super::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// Counts what this thread allocates and frees.
struct Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
}

// A test's allocator cannot be written otherwise; it only passes on.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = LIVE.try_with(|l| l.set(l.get() + layout.size() as isize));
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
