//! `make demo`: the main job on one machine, without Kubernetes. Starts three small upstreams and the gateway with a
//! file-based xDS source, sends real requests through it, and shows what happens. Ends by itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use nuncio_tests::{Connection, Gateway, Upstream, config, eventually, free_port, get};
use std::collections::BTreeMap;
use std::net::SocketAddr;

fn main() {
    let (admin, port) = (free_port(), free_port());
    let (v1, v2a, v2b) = (Upstream::start("v1"), Upstream::start("v2-a"), Upstream::start("v2-b"));
    let outlier = "  outlier_detection: {consecutive_5xx: 3, interval: 0.5s, base_ejection_time: 2s, max_ejection_percent: 100}";
    let clusters = [config::cluster("catalog-v1", &[&v1], ""), config::cluster("catalog-v2", &[&v2a, &v2b], outlier)];
    let gateway = Gateway::start(
        admin,
        &[
            ("bootstrap.yaml", config::bootstrap(admin)),
            ("lds.yaml", config::lds("1", port, "")),
            ("cds.yaml", config::cds("1", &clusters)),
            ("rds.yaml", config::rds("1", &config::split(&[("catalog-v1", 50), ("catalog-v2", 50)]))),
        ],
    );
    let web = SocketAddr::from(([127, 0, 0, 1], port));
    println!("gateway on {web}, admin on http://127.0.0.1:{admin}/\n");

    println!("1. A 50/50 canary: 1000 requests on one connection");
    let canary = spread(web, 1000);
    show(&canary);
    let share = canary.get("v1").copied().unwrap_or(0);
    assert!((430..=570).contains(&share), "v1 should get about half, got {share}");

    println!("\n2. A live route change to 0/100, on the connection that is open");
    let mut connection = Connection::open(web).unwrap();
    connection.request("GET", "shop", "/", &[], &[]).unwrap();
    gateway.write("rds.yaml", &config::rds("2", &config::split(&[("catalog-v1", 0), ("catalog-v2", 100)])));
    eventually("the route change", || {
        gateway.admin("/config_dump?resource=dynamic_route_configs").text().contains("\"version_info\": \"2\"")
    });
    let after: Vec<_> = (0..100).map(|_| who(&connection.request("GET", "shop", "/", &[], &[]).unwrap())).collect();
    assert!(after.iter().all(|n| n != "v1"), "v1 gets nothing any more");
    println!("   100 requests on the same connection: none to v1");

    println!("\n3. v2-b begins to fail: it is ejected, and comes back");
    v2b.answer(503);
    let mut failed = 0;
    eventually("the ejection", || {
        failed += usize::from(get(web, "shop", "/").unwrap().status == 503);
        clusters_line(&gateway, &v2b).contains("/failed_outlier_check")
    });
    println!("   {failed} requests saw its 503, then:\n   {}", clusters_line(&gateway, &v2b));
    let during = spread(web, 50);
    assert_eq!(during.get("v2-b"), None);
    println!("   50 requests while it is out: {during:?}");
    v2b.answer(200);
    eventually("the return", || clusters_line(&gateway, &v2b).contains("healthy"));
    println!("   {}", clusters_line(&gateway, &v2b));
    eventually("traffic to the returned host", || spread(web, 20).contains_key("v2-b"));

    println!("\n4. What /config_dump says of the route");
    let dump: String = gateway.admin("/config_dump?resource=dynamic_route_configs").text();
    dump.lines()
        .filter(|l| l.contains("version_info") || l.contains("\"name\": \"catalog") || l.contains("\"weight\""))
        .for_each(|l| println!("   {}", l.trim()));
    println!("\n5. The access log's last line\n   {}", gateway.stdout().lines().last().unwrap_or("(not flushed yet)"));
    println!("\ndemo passed");
}

fn who(reply: &nuncio_tests::Reply) -> String {
    reply.header("x-upstream").unwrap_or("nobody").to_string()
}

/// Who answers `n` requests on one connection.
fn spread(web: SocketAddr, n: usize) -> BTreeMap<String, usize> {
    let mut connection = Connection::open(web).unwrap();
    let mut counts = BTreeMap::new();
    for _ in 0..n {
        let reply = connection.request("GET", "shop", "/", &[], &[]).unwrap();
        *counts.entry(who(&reply)).or_default() += 1;
    }
    counts
}

fn show(counts: &BTreeMap<String, usize>) {
    counts.iter().for_each(|(name, n)| println!("   {name:<6} {n}"));
}

/// The line of /clusters that says how `host` is.
fn clusters_line(gateway: &Gateway, host: &Upstream) -> String {
    let key = format!("::{}::health_flags::", host.address);
    gateway.admin("/clusters").text().lines().find(|l| l.contains(&key)).unwrap_or_default().to_string()
}
