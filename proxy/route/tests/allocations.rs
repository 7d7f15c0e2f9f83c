//! Matching a request allocates nothing: not for the host's case, not for conditions, not in a large table.
// Counting allocations takes an allocator, and an allocator is unsafe to implement.
#![allow(unsafe_code)]

mod kit;

use kit::{get, table};
use nuncio_core::{RequestHead, test_kit};
use nuncio_route::{RouteInput, RouteMatch};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

struct Counting;
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|c| c.set(c.get() + 1));
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn matching_does_not_allocate() {
    let services: String = (0..500)
        .map(|i| format!("- {{name: 's{i}:80', domains: ['s{i}.ns.svc.cluster.local', s{i}.ns, s{i}, '*.s{i}.example'], routes: [{{match: {{prefix: /}}, route: {{cluster: c{i}}}}}]}}\n"))
        .collect();
    let paths: String = (0..500).map(|i| format!("  - {{match: {{prefix: /p{i}/}}, route: {{cluster: c}}}}\n")).collect();
    let lab = table(&format!(
        "
name: t
ignore_port_in_host_matching: true
virtual_hosts:
{services}- name: shop
  domains: ['shop.example']
  routes:
{paths}  - match: {{prefix: /, headers: [{{name: x-user, string_match: {{prefix: a}}}}, {{name: ':method', string_match: {{exact: GET}}}}], query_parameters: [{{name: q}}]}}
    route: {{cluster: canary}}
  - match: {{prefix: /}}
    route: {{weighted_clusters: {{clusters: [{{name: c, weight: 90}}, {{name: d, weight: 10}}]}}}}
"
    ));
    let info = test_kit::stream_info();
    let cases: [(RequestHead, &str); 6] = [
        (get("s400.ns.svc.cluster.local:80", "/", &[]), "c400"),
        (get("S400.NS", "/", &[]), "c400"),
        (get("a.b.s123.example", "/x?y", &[]), "c123"),
        (get("shop.example", "/p321/cart", &[]), "c"),
        (get("shop.example", "/home?q=1", &[("x-user", "anna")]), "canary"),
        (get("shop.example", "/home", &[("x-user", "bert")]), "c"),
    ];
    for (head, wanted) in cases {
        let input = RouteInput { info: &info, random: 3, runtime: &lab.server.runtime };
        let before = COUNT.with(Cell::get);
        let found = lab.table.route(&head, &input);
        let allocations = COUNT.with(Cell::get) - before;
        let RouteMatch::Route(entry) = found else { panic!("nothing for {}", kit::shown(&head)) };
        assert_eq!(entry.cluster_slot().unwrap().name.as_ref(), wanted);
        assert_eq!(allocations, 0, "{}", kit::shown(&head));
    }
}

#[test]
fn static_header_values_cost_no_formatting() {
    let lab = kit::routes(
        "
- match: {prefix: /}
  route: {cluster: c}
  request_headers_to_add: [{header: {key: x-a, value: one}}, {header: {key: x-b, value: two}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}]
  request_headers_to_remove: [x-c]",
    );
    let info = test_kit::stream_info();
    let head = get("h", "/", &[("x-b", "old"), ("x-c", "gone"), ("x-d", "kept")]);
    let entry = lab.must(&head);
    // The first use turns the values into shared ones.
    entry.finalize_request(&mut head.clone(), &info, true);
    let mut head = head.clone();
    let before = COUNT.with(Cell::get);
    entry.finalize_request(&mut head, &info, true);
    assert_eq!(COUNT.with(Cell::get) - before, 0);
    assert_eq!(kit::shown(&head), "h / [x-d: kept, x-b: two, x-a: one]");
}
