//! Listeners over real loopback sockets and worker threads: updates, drain and refusals.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may fail a test")]

mod common;

use common::{Client, Proxy, chain, eventually, free_port, line, listener, listener_filter, plain};
use nuncio_listener::DrainOptions;
use nuncio_proto::envoy::config::listener::v3::{FilterChain, FilterChainMatch, Listener, filter};
use nuncio_proto::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
use nuncio_proto::{Any, Duration as ProtoDuration};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

#[test]
fn serves_and_counts() {
    let mut proxy = Proxy::new(2);
    proxy.apply(&plain("a", 0, "one")).unwrap();
    let at = proxy.address("a");
    let mut client = Client::new(at);
    let answer = client.ask().unwrap();
    assert_eq!(answer[0], "one");
    assert_eq!(answer[1], client.0.get_ref().local_addr().unwrap().to_string());
    assert_eq!(answer[2], at.to_string());
    assert!(answer[3].starts_with("wrk:worker_"));
    assert_eq!(answer[4], "false");
    // The configured address names the stats.
    assert_eq!(proxy.counter("listener.127.0.0.1_0.downstream_cx_total"), 1);
    assert_eq!(proxy.manager.connections(), 1);
    drop(client);
    eventually("destroy", || proxy.counter("listener.127.0.0.1_0.downstream_cx_destroy") == 1);
    eventually("no connections", || proxy.manager.connections() == 0);
    assert_eq!(proxy.counter("listener_manager.listener_create_success"), 2);
}

#[test]
fn a_filter_change_reaches_living_connections() {
    let mut proxy = Proxy::new(1);
    let port = free_port();
    proxy.apply(&plain("a", port, "one")).unwrap();
    let mut first = Client::new(proxy.address("a"));
    assert_eq!(first.text(), "one");
    // Two generations: both adopt the third.
    proxy.apply(&plain("a", port, "two")).unwrap();
    let mut second = Client::new(proxy.address("a"));
    assert_eq!((first.text(), second.text()), ("two".into(), "two".into()));
    proxy.apply(&plain("a", port, "three")).unwrap();
    assert_eq!((first.text(), second.text()), ("three".into(), "three".into()));
    assert_eq!(proxy.counter("listener_manager.listener_in_place_updated"), 2);
    // What cannot be adopted drains: no more than the drain time, then it ends. New connections see the new one at once.
    proxy.apply(&plain("a", port, "stubborn")).unwrap();
    assert_eq!(Client::new(proxy.address("a")).text(), "stubborn");
    first.ended();
    second.ended();
}

#[test]
fn chains_that_go_drain_and_others_do_not_notice() {
    let mut proxy = Proxy::new(2);
    let port = free_port();
    let http = |text: &str| {
        chain(
            text,
            FilterChainMatch {
                application_protocols: vec!["http/1.1".into()],
                transport_protocol: "raw_buffer".into(),
                ..Default::default()
            },
        )
    };
    let two = |text: &str, chains: Vec<FilterChain>| Listener {
        listener_filters: vec![listener_filter(&HttpInspector {})],
        default_filter_chain: Some(chain(text, FilterChainMatch::default())),
        ..listener("a", port, chains)
    };
    proxy.apply(&two("rest", vec![http("http")])).unwrap();
    let at = proxy.address("a");
    let mut web = Client::new(at);
    assert_eq!(web.send(b"GET / HTTP/1.1\r\n").answer().unwrap()[0], "http");
    let mut other = Client::new(at);
    assert_eq!(other.text(), "rest");
    proxy.apply(&two("rest", vec![])).unwrap();
    web.ended();
    assert_eq!(other.text(), "rest");
    assert_eq!(Client::new(at).send(b"GET / HTTP/1.1\r\n").answer().unwrap()[0], "rest");
}

#[test]
fn updates_under_connections_refuse_none() {
    let mut proxy = Proxy::new(2);
    let port = free_port();
    proxy.apply(&plain("a", port, "0")).unwrap();
    let at = proxy.address("a");
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let clients: Vec<_> = (0..2)
        .map(|_| {
            let done = done.clone();
            std::thread::spawn(move || {
                let mut n = 0;
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    assert!(!Client::new(at).text().is_empty());
                    n += 1;
                }
                n
            })
        })
        .collect();
    for i in 1..100 {
        proxy.apply(&plain("a", port, &i.to_string())).unwrap();
        std::thread::sleep(Duration::from_millis(1));
    }
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    for client in clients {
        assert!(client.join().unwrap() > 0);
    }
    assert_eq!(Client::new(at).text(), "99");
}

#[test]
fn another_address_drains_the_old_one() {
    let mut proxy = Proxy::new(1);
    proxy.apply(&plain("a", free_port(), "one")).unwrap();
    let old = proxy.address("a");
    let mut client = Client::new(old);
    assert_eq!(client.text(), "one");
    proxy.apply(&plain("a", free_port(), "two")).unwrap();
    assert_ne!(proxy.address("a"), old);
    assert_eq!(Client::new(proxy.address("a")).text(), "two");
    client.ended();
    eventually("refusal", || TcpStream::connect(old).is_err());
    assert!(proxy.manager.remove("a") && !proxy.manager.remove("a"));
    assert!(proxy.manager.listeners().is_empty());
}

#[test]
fn added_and_removed_at_once_leaves_no_socket() {
    let mut proxy = Proxy::new(2);
    let port = free_port();
    for _ in 0..20 {
        proxy.apply(&plain("a", port, "one")).unwrap();
        assert!(proxy.manager.remove("a"));
    }
    eventually("refusal", || TcpStream::connect(("127.0.0.1", port)).is_err());
}

#[test]
fn addresses_in_use_are_refused_by_name() {
    let mut proxy = Proxy::new(2);
    let port = free_port();
    proxy.apply(&plain("a", port, "one")).unwrap();
    let error = proxy.apply(&plain("b", port, "two")).unwrap_err();
    assert!(error.contains("'b' has duplicate address") && error.contains("listener 'a'"), "{error}");
    let foreign = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = foreign.local_addr().unwrap();
    let error = proxy.apply(&plain("a", taken.port(), "three")).unwrap_err();
    assert!(error.contains(&format!("cannot bind to {taken}")), "{error}");
    assert_eq!(Client::new(proxy.address("a")).text(), "one", "the live one stays");
    assert_eq!(proxy.counter("listener_manager.listener_create_failure"), 2);
}

#[test]
fn what_is_unknown_is_refused_by_name() {
    let mut proxy = Proxy::new(1);
    let base = plain("a", 0, "x");
    let unknown = Any { type_url: "type.googleapis.com/test.Unknown".into(), value: Vec::new() };
    let mut filters = line("x");
    filters[0].config_type = Some(filter::ConfigType::TypedConfig(unknown));
    let twice = || vec![line("x").remove(0), line("x").remove(0)];
    for (listener, why) in [
        (Listener { filter_chains: vec![FilterChain { filters, ..Default::default() }], ..base.clone() }, "test.Unknown"),
        (Listener { filter_chains: vec![FilterChain { filters: twice(), ..Default::default() }], ..base.clone() }, "not the last filter"),
        (Listener { filter_chains: Vec::new(), ..base.clone() }, "no filter chains"),
        (Listener { address: None, ..base.clone() }, "address"),
        (Listener { udp_listener_config: Some(Default::default()), ..base.clone() }, "udp_listener_config"),
        (Listener { filter_chain_matcher: Some(Default::default()), ..base.clone() }, "filter_chain_matcher"),
        (listener("a", 0, vec![chain("x", FilterChainMatch::default()), chain("y", FilterChainMatch::default())]), "same matching rules"),
        (Listener { listener_filters_timeout: Some(ProtoDuration { seconds: -1, nanos: 0 }), ..base.clone() }, "listener_filters_timeout"),
    ] {
        let error = proxy.apply(&listener).unwrap_err();
        assert!(error.contains(why), "{error} does not say {why}");
    }
}

#[test]
fn graceful_drain_keeps_accepting_and_stop_does_not() {
    let mut proxy = Proxy::new(2);
    let (inbound, outbound) = (free_port(), free_port());
    proxy.apply(&Listener { traffic_direction: 1, ..plain("in", inbound, "in") }).unwrap();
    proxy.apply(&Listener { traffic_direction: 2, ..plain("out", outbound, "out") }).unwrap();
    let (mut before, mut other) = (Client::new(proxy.address("in")), Client::new(proxy.address("out")));
    assert_eq!(before.ask().unwrap()[4], "false");
    assert_eq!(other.ask().unwrap()[4], "false");
    proxy.manager.drain(DrainOptions { graceful: true, inbound_only: true, skip_exit: true });
    eventually("drain of living connections", || before.ask().unwrap()[4] == "true");
    assert_eq!(other.ask().unwrap()[4], "false");
    assert_eq!(Client::new(proxy.address("in")).ask().unwrap()[4], "true", "new connections are told, too");
    // A listener that comes during the drain is told, too.
    proxy.apply(&Listener { traffic_direction: 1, ..plain("late", free_port(), "late") }).unwrap();
    assert_eq!(Client::new(proxy.address("late")).ask().unwrap()[4], "true");
    // A graceful drain without skip_exit stops listening when the drain time is over.
    proxy.manager.drain(DrainOptions { graceful: true, ..Default::default() });
    eventually("refusal", || TcpStream::connect(("127.0.0.1", inbound)).is_err() && TcpStream::connect(("127.0.0.1", outbound)).is_err());
    assert_eq!(before.ask().unwrap()[0], "in", "living connections go on");
    proxy.apply(&plain("b", free_port(), "b")).unwrap();
    let b = proxy.address("b");
    assert_eq!(Client::new(b).text(), "b");
    proxy.manager.stop_accepting();
    eventually("refusal", || TcpStream::connect(b).is_err());
}

#[test]
fn failed_health_shows_and_can_be_taken_back() {
    let mut proxy = Proxy::new(1);
    proxy.apply(&plain("a", 0, "a")).unwrap();
    let mut client = Client::new(proxy.address("a"));
    assert_eq!(client.ask().unwrap()[4], "false");
    proxy.manager.set_health_failed(true);
    eventually("close", || client.ask().unwrap()[4] == "true");
    proxy.manager.set_health_failed(false);
    eventually("no close", || client.ask().unwrap()[4] == "false");
}
