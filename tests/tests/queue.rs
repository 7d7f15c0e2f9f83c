//! nuncio.filters.http.concurrency_queue as `examples/concurrency-queue.yaml` sets it up: a stall costs late answers, not memory
//! and not refusals.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use nuncio_tests::client::request;
use nuncio_tests::gateway::Gateway;
use nuncio_tests::upstream::{Behaviour, Upstream};
use nuncio_tests::{eventually, free_port};
use std::net::SocketAddr;
use std::time::Duration;

/// Requests in flight while the upstream stalls, and the size of their bodies.
const REQUESTS: usize = 600;
const BODY: usize = 100_000;

fn start(upstream: &Upstream, change: impl Fn(String) -> String) -> (Gateway, SocketAddr) {
    let example = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/concurrency-queue.yaml")).unwrap();
    let (admin, port) = (free_port(), free_port());
    let mut text = example.clone();
    for (from, to) in [(9901, admin), (8080, port), (9001, upstream.address.port())] {
        text = text.replace(&format!("port_value: {from}"), &format!("port_value: {to}"));
    }
    (Gateway::start(admin, &[("bootstrap.yaml", change(text))]), ([127, 0, 0, 1], port).into())
}

fn resident_kb(gateway: &Gateway) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.pid())).unwrap();
    status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap().trim().trim_end_matches(" kB").trim().parse().unwrap()
}

#[test]
fn a_stall_costs_late_answers_and_little_memory() {
    let upstream = Upstream::start("reports");
    upstream.behave(Behaviour { delay: Duration::from_secs(3), body: Some(b"done".to_vec()), ..Behaviour::default() });
    let (gateway, address) = start(&upstream, |text| text);
    let before = resident_kb(&gateway);
    let body = vec![b'x'; BODY];
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..REQUESTS)
            .map(|i| {
                let body = &body;
                let client = if i % 10 == 0 { "modest" } else { "greedy" };
                let one = move || request(address, "POST", "x", "/", &[("x-api-client", client)], body).map(|r| r.status);
                std::thread::Builder::new().stack_size(256 << 10).spawn_scoped(scope, one).unwrap()
            })
            .collect();
        eventually("a full line", || gateway.stat("reports.concurrency_queue.waiting") as usize == REQUESTS - 32);
        let grown = resident_kb(&gateway).saturating_sub(before);
        // With their bodies it would be 100 kB more for each. (This build is not optimised.)
        assert!(grown < REQUESTS * 60, "{grown} kB for {REQUESTS} requests");
        assert_eq!(gateway.stat("reports.concurrency_queue.active"), 32);
        assert_eq!(request(address, "GET", "x", "/healthz", &[], b"").unwrap().status, 200, "the route without a limit");
        upstream.behave(Behaviour { body: Some(b"done".to_vec()), ..Behaviour::default() });
        for client in clients {
            assert_eq!(client.join().unwrap().unwrap(), 200);
        }
    });
    assert_eq!(gateway.stat("reports.concurrency_queue.admitted") as usize, REQUESTS);
    eventually("places given back", || gateway.stat("reports.concurrency_queue.active") == 0);
}

#[test]
fn who_cannot_wait_any_longer_is_told_so() {
    let upstream = Upstream::start("reports");
    upstream.behave(Behaviour { delay: Duration::from_secs(2), ..Behaviour::default() });
    let (gateway, address) = start(&upstream, |text| {
        text.replace("max_concurrency: 32", "max_concurrency: 1")
            .replace("max_wait: 10s", "max_wait: 0.1s")
            .replace("max_queue: 20000", "max_queue: 1")
    });
    std::thread::scope(|scope| {
        let first = scope.spawn(|| request(address, "GET", "x", "/", &[], b"").unwrap().status);
        eventually("the first", || gateway.stat("reports.concurrency_queue.active") == 1);
        assert_eq!(request(address, "GET", "x", "/", &[], b"").unwrap().status, 503);
        assert_eq!(first.join().unwrap(), 200);
    });
    eventually("the access log", || gateway.stdout().contains(" 503 CQ "));
    assert_eq!(gateway.stat("reports.concurrency_queue.timeout"), 1);
}
