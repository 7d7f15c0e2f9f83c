//! Changes of configuration under load: no request fails.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use nuncio_tests::{Connection, Gateway, Load, Upstream, config, eventually, free_port, get};
use std::net::SocketAddr;

struct Web {
    gateway: Gateway,
    address: SocketAddr,
    port: u16,
}

const TO_A: &str = "    - match: {prefix: /}\n      route: {cluster: a}";

fn start(clusters: &[String], routes: &str) -> Web {
    let (admin, port) = (free_port(), free_port());
    let files = [
        ("bootstrap.yaml", config::bootstrap(admin)),
        ("lds.yaml", config::lds("1", port, "")),
        ("cds.yaml", config::cds("1", clusters)),
        ("rds.yaml", config::rds("1", routes)),
    ];
    Web { gateway: Gateway::start(admin, &files), address: ([127, 0, 0, 1], port).into(), port }
}

fn none_failed(load: Load) {
    let failed = load.stop();
    assert!(failed.is_empty(), "{} failed: {:?}", failed.len(), &failed[..failed.len().min(5)]);
}

#[test]
fn a_cluster_changes_in_every_way() {
    let (a, b) = (Upstream::start("a"), Upstream::start("b"));
    let web = start(&[config::cluster("a", &[&a], "")], TO_A);
    let load = Load::start(web.address, "x", "/", 3);
    load.pass(50);
    let changes = [
        config::cluster("a", &[&a, &b], "  lb_policy: LEAST_REQUEST"),
        config::cluster("a", &[&b], "  lb_policy: RING_HASH"),
        config::cluster("a", &[&a, &b], "  lb_policy: MAGLEV"),
        config::cluster("a", &[&a], "  lb_policy: RANDOM\n  circuit_breakers: {thresholds: [{max_connections: 1000}]}"),
        config::cluster("a", &[&a], "").replace("type: STATIC", "type: STRICT_DNS\n  dns_lookup_family: V4_ONLY"),
        config::cluster("a", &[&b], "  max_requests_per_connection: 2"),
        config::cluster("a", &[&a], ""),
    ];
    for (i, change) in changes.into_iter().enumerate() {
        let version = format!("{}", i + 2);
        web.gateway.write("cds.yaml", &config::cds(&version, &[change]));
        eventually("the change", || {
            web.gateway.admin("/config_dump?resource=dynamic_active_clusters").text().contains(&format!("\"version_info\": \"{version}\""))
        });
        load.pass(50);
    }
    none_failed(load);
}

#[test]
fn a_cluster_that_is_gone_comes_back() {
    let (a, b) = (Upstream::start("a"), Upstream::start("b"));
    let both = [config::cluster("a", &[&a], ""), config::cluster("b", &[&b], "")];
    let web = start(&both, TO_A);
    let load = Load::start(web.address, "x", "/", 2);
    for round in 0..3 {
        web.gateway.write("cds.yaml", &config::cds(&format!("without {round}"), &both[..1]));
        eventually("the removal", || !web.gateway.admin("/clusters").text().contains("b::"));
        load.pass(20);
        web.gateway.write("cds.yaml", &config::cds(&format!("with {round}"), &both));
        eventually("the return", || web.gateway.admin("/clusters").text().contains("b::"));
        web.gateway.write("rds.yaml", &config::rds(&format!("b {round}"), &TO_A.replace("cluster: a", "cluster: b")));
        eventually("the route", || get(web.address, "x", "/").unwrap().header("x-upstream") == Some("b"));
        load.pass(20);
        web.gateway.write("rds.yaml", &config::rds(&format!("a {round}"), TO_A));
        eventually("the route", || get(web.address, "x", "/").unwrap().header("x-upstream") == Some("a"));
    }
    none_failed(load);
    web.gateway.write("cds.yaml", &config::cds("none", &[]));
    eventually("503", || get(web.address, "x", "/").unwrap().status == 503);
    web.gateway.write("cds.yaml", &config::cds("again", &both));
    eventually("200", || get(web.address, "x", "/").unwrap().status == 200);
}

#[test]
fn listeners_come_move_and_go() {
    let a = Upstream::start("a");
    let web = start(&[config::cluster("a", &[&a], "")], TO_A);
    let load = Load::start(web.address, "x", "/", 3);
    load.pass(20);
    let second = |port: u16| {
        config::lds("x", port, "").replace("name: web\n  address", "name: other\n  address").split_once("resources:").unwrap().1.to_string()
    };
    let (first, moved) = (free_port(), free_port());
    let base = |version: &str| config::lds(version, web.port, "");
    let up = |port: u16| move || get(([127, 0, 0, 1], port).into(), "x", "/").is_ok_and(|r| r.status == 200);
    let down = |port: u16| move || std::net::TcpStream::connect(("127.0.0.1", port)).is_err();
    web.gateway.write("lds.yaml", &(base("2") + &second(first)));
    eventually("the second listener", up(first));
    load.pass(20);
    let mut living = Connection::open(([127, 0, 0, 1], first).into()).unwrap();
    assert_eq!(living.request("GET", "x", "/", &[], &[]).unwrap().status, 200);
    web.gateway.write("lds.yaml", &(base("3") + &second(moved)));
    eventually("the new port", up(moved));
    eventually("the end of the old port", down(first));
    // What was connected to the old port is answered, and asked to go.
    let last = living.request("GET", "x", "/", &[], &[]);
    assert!(last.as_ref().is_ok_and(|r| r.status == 200), "{last:?}");
    web.gateway.write("lds.yaml", &base("4"));
    eventually("the end of the second listener", down(moved));
    load.pass(20);
    // Another filter chain changes nothing for those that are connected.
    let chain = "  - filter_chain_match: {source_prefix_ranges: [{address_prefix: 192.0.2.0, prefix_len: 24}]}\n    filters: [{name: t, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: a}}]\n";
    web.gateway.write("lds.yaml", &base("5").replace("  filter_chains:\n", &format!("  filter_chains:\n{chain}")));
    eventually("the chain", || web.gateway.admin("/config_dump?resource=dynamic_listeners").text().contains("192.0.2.0"));
    load.pass(20);
    none_failed(load);
}

#[test]
fn ten_thousand_virtual_hosts_arrive_at_once() {
    let a = Upstream::start("a");
    let web = start(&[config::cluster("a", &[&a], "")], TO_A);
    let load = Load::start(web.address, "x", "/", 2);
    load.pass(20);
    let mut routes = config::rds("2", TO_A);
    for i in 0..10_000 {
        routes.push_str(&format!("  - {{name: h{i}, domains: [h{i}.example], routes: [{{match: {{prefix: /}}, direct_response: {{status: 200, body: {{inline_string: h{i}}}}}}}]}}\n"));
    }
    web.gateway.write("rds.yaml", &routes);
    eventually("the last host", || get(web.address, "h9999.example", "/").unwrap().text() == "h9999");
    assert_eq!(get(web.address, "h5000.example", "/").unwrap().text(), "h5000");
    load.pass(20);
    web.gateway.write("rds.yaml", &config::rds("3", TO_A));
    eventually("the end of hosts", || get(web.address, "h9999.example", "/").unwrap().text() != "h9999");
    load.pass(20);
    none_failed(load);
}
