//! Clusters and HTTP filters of every kind through the binary, a look at each.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use nuncio_tests::{Behaviour, Connection, Gateway, Upstream, config, eventually, free_port, get, request};
use std::net::SocketAddr;
use std::time::Duration;

fn start(clusters: &[String], routes: &str, edit: impl Fn(String) -> String) -> (Gateway, SocketAddr) {
    let (admin, port) = (free_port(), free_port());
    let files = [
        ("bootstrap.yaml", config::bootstrap(admin)),
        ("lds.yaml", edit(config::lds("1", port, ""))),
        ("cds.yaml", config::cds("1", clusters)),
        ("rds.yaml", config::rds("1", routes)),
    ];
    (Gateway::start(admin, &files), ([127, 0, 0, 1], port).into())
}

fn routes(clusters: &[&str]) -> String {
    clusters
        .iter()
        .map(|c| {
            format!("    - match: {{prefix: /{c}}}\n      route: {{cluster: {c}, hash_policy: [{{header: {{header_name: x-user}}}}]}}\n")
        })
        .collect()
}

#[test]
fn clusters_of_every_kind_find_their_hosts() {
    let (a, b) = (Upstream::start("a"), Upstream::start("b"));
    let named = |kind: &str| {
        config::cluster(kind, &[&a], "")
            .replace("127.0.0.1", "localhost")
            .replace("type: STATIC", &format!("type: {kind}\n  dns_lookup_family: V4_ONLY"))
    };
    let original = "- {\"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster, name: ORIGINAL, type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED, original_dst_lb_config: {use_http_header: true}}\n".to_string();
    let balanced = |policy: &str| config::cluster(policy, &[&a, &b], &format!("  lb_policy: {policy}"));
    let names = ["STRICT_DNS", "LOGICAL_DNS", "ORIGINAL", "LEAST_REQUEST", "RING_HASH", "MAGLEV", "RANDOM", "ROUND_ROBIN"];
    let clusters = [
        named("STRICT_DNS"),
        named("LOGICAL_DNS"),
        original,
        balanced("LEAST_REQUEST"),
        balanced("RING_HASH"),
        balanced("MAGLEV"),
        balanced("RANDOM"),
        balanced("ROUND_ROBIN"),
    ];
    let (_gateway, address) = start(&clusters, &routes(&names), |lds| lds);
    let to = b.address.to_string();
    for name in names {
        let ask = |user: &str| {
            request(address, "GET", "x", &format!("/{name}"), &[("x-user", user), ("x-envoy-original-dst-host", &to)], &[]).unwrap()
        };
        eventually(name, || ask("1").status == 200);
        let mut seen: Vec<_> = (0..40).map(|i| ask(&format!("{i}")).header("x-upstream").unwrap().to_string()).collect();
        let again: Vec<_> = (0..40).map(|i| ask(&format!("{i}")).header("x-upstream").unwrap().to_string()).collect();
        if ["RING_HASH", "MAGLEV"].contains(&name) {
            assert_eq!(seen, again, "{name}: a user stays where it is");
        }
        seen.sort();
        seen.dedup();
        let wanted: &[&str] = match name {
            "STRICT_DNS" | "LOGICAL_DNS" => &["a"],
            "ORIGINAL" => &["b"],
            _ => &["a", "b"],
        };
        assert_eq!(seen, wanted, "{name}");
    }
}

#[test]
fn a_full_circuit_breaker_answers_at_once() {
    let a = Upstream::start("a");
    a.behave(Behaviour { delay: Duration::from_millis(600), ..Behaviour::default() });
    let cluster =
        config::cluster("a", &[&a], "  circuit_breakers: {thresholds: [{max_connections: 1, max_pending_requests: 1, max_requests: 1}]}");
    let (gateway, address) = start(&[cluster], &routes(&["a"]), |lds| lds);
    let first = std::thread::spawn(move || get(address, "x", "/a").unwrap().status);
    eventually("the first request", || a.hits() == 1);
    // One may wait for a connection; the ones after it may not.
    let rest: Vec<_> = (0..4).map(|_| std::thread::spawn(move || get(address, "x", "/a").unwrap())).collect();
    let rest: Vec<_> = rest.into_iter().map(|t| t.join().unwrap()).collect();
    assert_eq!(first.join().unwrap(), 200);
    let refused: Vec<_> = rest.iter().filter(|r| r.status == 503).collect();
    assert!(refused.len() >= 3, "{rest:?}");
    for reply in refused {
        assert_eq!(reply.header("x-envoy-overloaded"), Some("true"));
        assert_eq!(reply.text(), "upstream connect error or disconnect/reset before headers. reset reason: overflow");
    }
    eventually("the log", || gateway.stdout().contains(" 503 UO "));
    assert!(gateway.stat("cluster.a.upstream_rq_active_overflow") + gateway.stat("cluster.a.upstream_rq_pending_overflow") >= 3);
}

#[test]
fn a_failing_host_is_ejected_and_comes_back() {
    let (bad, good) = (Upstream::start("bad"), Upstream::start("good"));
    bad.answer(503);
    let cluster = config::cluster(
        "a",
        &[&bad, &good],
        "  outlier_detection: {consecutive_5xx: 3, interval: 0.1s, base_ejection_time: 0.3s, max_ejection_time: 0.3s, max_ejection_percent: 100}",
    );
    let (gateway, address) = start(&[cluster], &routes(&["a"]), |lds| lds);
    eventually("the ejection", || {
        get(address, "x", "/a").unwrap();
        gateway.stat("cluster.a.outlier_detection.ejections_active") == 1
    });
    bad.answer(200);
    eventually("the return", || get(address, "x", "/a").unwrap().header("x-upstream") == Some("bad"));
    assert!(gateway.stat("cluster.a.outlier_detection.ejections_enforced_consecutive_5xx") >= 1);
}

#[test]
fn connections_serve_as_many_requests_as_they_may() {
    let a = Upstream::start("a");
    let (_gateway, address) = start(&[config::cluster("a", &[&a], "  max_requests_per_connection: 2")], &routes(&["a"]), |lds| {
        lds.replace(
            "        use_remote_address: true",
            "        use_remote_address: true\n        common_http_protocol_options: {max_requests_per_connection: 3}",
        )
    });
    let mut client = Connection::open(address).unwrap();
    for i in 1..=3 {
        let reply = client.request("GET", "x", "/a", &[], &[]).unwrap();
        assert_eq!((reply.status, reply.header("connection")), (200, (i == 3).then_some("close")), "request {i}");
    }
    assert!(client.is_closed());
    // One client is served by one worker, which has a pool of its own.
    assert_eq!(a.connections.load(std::sync::atomic::Ordering::SeqCst), 2, "three requests, two for each connection");
}

#[test]
fn filters_work_side_by_side() {
    let a = Upstream::start("a");
    a.behave(Behaviour {
        headers: vec![("content-type".into(), "text/plain".into())],
        body: Some(vec![b'a'; 5000]),
        ..Behaviour::default()
    });
    let filter = |name: &str, proto: &str, fields: &str| {
        format!(
            "        - {{name: {name}, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.http.{proto}, {fields}}}}}\n"
        )
    };
    let filters = [
        filter("envoy.filters.http.cors", "cors.v3.Cors", ""),
        filter("envoy.filters.http.fault", "fault.v3.HTTPFault", "abort: {http_status: 418, percentage: {numerator: 100}}, headers: [{name: x-fault, present_match: true}]"),
        filter("envoy.filters.http.local_ratelimit", "local_ratelimit.v3.LocalRateLimit", "stat_prefix: rl"),
        filter("envoy.filters.http.header_mutation", "header_mutation.v3.HeaderMutation", "mutations: {response_mutations: [{append: {header: {key: x-added, value: \"%RESPONSE_CODE%\"}}}]}"),
        filter("envoy.filters.http.compressor", "compressor.v3.Compressor", "compressor_library: {name: gzip, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.compression.gzip.compressor.v3.Gzip}}"),
    ]
    .concat();
    let routes = r#"    - match: {prefix: /limited}
      route: {cluster: a}
      typed_per_filter_config:
        envoy.filters.http.local_ratelimit: {"@type": type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit, stat_prefix: rl, token_bucket: {max_tokens: 1, tokens_per_fill: 1, fill_interval: 3600s}, filter_enabled: {default_value: {numerator: 100}}, filter_enforced: {default_value: {numerator: 100}}}
    - match: {prefix: /}
      route: {cluster: a}
      typed_per_filter_config:
        envoy.filters.http.cors: {"@type": type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy, allow_origin_string_match: [{exact: "https://shop.example"}], allow_methods: "GET, PUT"}"#;
    let (gateway, address) = start(&[config::cluster("a", &[&a], "")], routes, |lds| {
        lds.replace("        http_filters:\n", &format!("        http_filters:\n{filters}"))
    });
    let ask = |method: &str, path: &str, headers: &[(&str, &str)]| request(address, method, "x", path, headers, &[]).unwrap();
    let plain = ask("GET", "/", &[]);
    assert_eq!(
        (plain.status, plain.header("x-added"), plain.header("content-encoding"), plain.body.len()),
        (200, Some("200"), None, 5000),
        "{}",
        gateway.log()
    );
    let packed = ask("GET", "/", &[("accept-encoding", "gzip")]);
    assert_eq!((packed.status, packed.header("content-encoding")), (200, Some("gzip")));
    assert!(packed.body.len() < 1000);
    assert_eq!(ask("GET", "/", &[("x-fault", "1")]).status, 418);
    let before = a.hits();
    let preflight = ask("OPTIONS", "/", &[("origin", "https://shop.example"), ("access-control-request-method", "PUT")]);
    assert_eq!((preflight.status, preflight.header("access-control-allow-origin")), (200, Some("https://shop.example")));
    assert_eq!(a.hits(), before, "the preflight is answered here");
    assert_eq!(ask("GET", "/limited", &[]).status, 200);
    let limited = ask("GET", "/limited", &[]);
    assert_eq!((limited.status, limited.text().as_str()), (429, "local_rate_limited"));
    eventually("the log", || gateway.stdout().contains(" 429 RL ") && gateway.stdout().contains(" 418 FI "));
}

#[test]
fn the_runtime_says_how_large_expressions_may_be() {
    let (long, routes) = ("[a-z]{40}".to_string(), |regex: &str| {
        config::rds("1", &format!("    - match: {{safe_regex: {{regex: \"/{regex}\"}}}}\n      direct_response: {{status: 200}}"))
    });
    for (layer, status) in
        [("", 404), ("layered_runtime: {layers: [{name: static, static_layer: {re2.max_program_size.error_level: 32768}}]}\n", 200)]
    {
        let (admin, port) = (free_port(), free_port());
        let lds = config::lds("1", port, "");
        let files = [
            ("bootstrap.yaml", config::bootstrap(admin) + layer),
            ("lds.yaml", lds),
            ("cds.yaml", config::cds("1", &[])),
            ("rds.yaml", routes(&long.repeat(3))),
        ];
        let gateway = Gateway::launch(admin, &files, &[]);
        let path = format!("/{}", "a".repeat(120));
        let address: SocketAddr = ([127, 0, 0, 1], port).into();
        if status == 200 {
            gateway.wait_ready();
            assert_eq!(get(address, "x", &path).unwrap().status, status);
        } else {
            eventually("the refusal", || gateway.log().contains("re2.max_program_size.error_level"));
        }
    }
}
