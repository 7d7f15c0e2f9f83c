//! Requests through the binary: routing changes on living connections, retries, timeouts, WebSockets, bodies, limits.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use nuncio_tests::{Behaviour, Connection, Gateway, Upstream, config, eventually, free_port, get, request};
use std::net::SocketAddr;
use std::time::Duration;

struct Web {
    gateway: Gateway,
    address: SocketAddr,
    port: u16,
}

fn start(clusters: &[String], routes: &str, extra: &str) -> Web {
    let (admin, port) = (free_port(), free_port());
    let gateway = Gateway::start(
        admin,
        &[
            ("bootstrap.yaml", config::bootstrap(admin)),
            ("lds.yaml", config::lds("1", port, extra)),
            ("cds.yaml", config::cds("1", clusters)),
            ("rds.yaml", config::rds("1", routes)),
        ],
    );
    Web { gateway, address: ([127, 0, 0, 1], port).into(), port }
}

const TO_A: &str = "    - match: {prefix: /}\n      route: {cluster: a}";

#[test]
fn forwards_with_envoys_headers() {
    let a = Upstream::start("a");
    let web = start(&[config::cluster("a", &[&a], "")], TO_A, "");
    let reply = request(
        web.address,
        "GET",
        "shop.example",
        "/x?y=1",
        &[("x-envoy-internal", "true"), ("connection", "close, x-hop"), ("x-hop", "1")],
        &[],
    )
    .unwrap();
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("server"), Some("envoy"));
    assert!(reply.header("x-envoy-upstream-service-time").is_some());
    assert!(reply.header("date").is_some());
    let seen = reply.text();
    assert!(seen.starts_with("GET /x?y=1 HTTP/1.1\r\n"), "{seen}");
    // As Envoy: a client on loopback is told by an address of this machine that others can reach.
    for header in ["host: shop.example\r\n", "\nx-forwarded-for: ", "x-forwarded-proto: http\r\n", "x-request-id: "] {
        assert!(seen.contains(header), "{header:?} is missing in {seen}");
    }
    for header in ["x-hop", "x-envoy-internal: true\r\nx-forwarded", "\r\nconnection:"] {
        assert!(!seen.contains(header), "{header:?} must not pass: {seen}");
    }
}

#[test]
fn a_route_change_applies_to_the_next_request_of_a_connection() {
    let (a, b) = (Upstream::start("a"), Upstream::start("b"));
    let web = start(&[config::cluster("a", &[&a], ""), config::cluster("b", &[&b], "")], TO_A, "");
    let mut connection = Connection::open(web.address).unwrap();
    assert_eq!(connection.request("GET", "x", "/", &[], &[]).unwrap().header("x-upstream"), Some("a"));
    web.gateway.write("rds.yaml", &config::rds("2", "    - match: {prefix: /}\n      route: {cluster: b}"));
    eventually("the change", || connection.request("GET", "x", "/", &[], &[]).unwrap().header("x-upstream") == Some("b"));
}

#[test]
fn a_filter_change_keeps_connections_and_websockets() {
    let a = Upstream::start("a");
    let web = start(&[config::cluster("a", &[&a], "")], TO_A, "");
    let mut plain = Connection::open(web.address).unwrap();
    plain.request("GET", "x", "/", &[], &[]).unwrap();
    let mut socket = Connection::open(web.address).unwrap();
    let upgraded = socket.request("GET", "x", "/ws", &[("connection", "Upgrade"), ("upgrade", "websocket")], &[]).unwrap();
    assert_eq!(upgraded.status, 101);
    socket.send(b"before").unwrap();
    assert_eq!(socket.read_raw(100).unwrap(), b"before");
    web.gateway.write("lds.yaml", &config::lds("2", web.port, "        server_name: changed"));
    eventually("the change", || plain.request("GET", "x", "/", &[], &[]).unwrap().header("server") == Some("changed"));
    socket.send(b"after").unwrap();
    assert_eq!(socket.read_raw(100).unwrap(), b"after");
}

#[test]
fn a_bad_resource_is_refused_alone_and_the_last_good_one_serves() {
    let a = Upstream::start("a");
    let web = start(&[config::cluster("a", &[&a], "")], TO_A, "");
    web.gateway.write("rds.yaml", &config::rds("2", "    - match: {safe_regex: {regex: \"/(unclosed\"}}\n      route: {cluster: a}"));
    eventually("the refusal", || web.gateway.admin("/config_dump").text().contains("error_state"));
    let dump = web.gateway.admin("/config_dump").text();
    assert!(dump.contains("unclosed"), "the dump names what was refused");
    assert_eq!(get(web.address, "x", "/").unwrap().status, 200);
    let unknown =
        "        http_filters:\n        - {name: example.unknown, typed_config: {\"@type\": type.googleapis.com/google.protobuf.Empty}}\n";
    web.gateway.write("lds.yaml", &config::lds("2", web.port, "").replace("        http_filters:\n", unknown));
    eventually("the second refusal", || web.gateway.stat("listener_manager.lds.update_rejected") > 0);
    assert_eq!(get(web.address, "x", "/").unwrap().status, 200);
    web.gateway.write("rds.yaml", &config::rds("3", "    - match: {prefix: /}\n      direct_response: {status: 204}"));
    eventually("recovery", || get(web.address, "x", "/").unwrap().status == 204);
}

#[test]
fn retries_go_to_another_host() {
    let (bad, good) = (Upstream::start("bad"), Upstream::start("good"));
    bad.answer(503);
    let routes = "    - match: {prefix: /}\n      route: {cluster: both, retry_policy: {retry_on: 5xx, num_retries: 3, retry_host_predicate: [{name: envoy.retry_host_predicates.previous_hosts, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate}}], host_selection_retry_max_attempts: 5}}";
    let web = start(&[config::cluster("both", &[&bad, &good], "")], routes, "");
    for _ in 0..20 {
        let reply = request(web.address, "POST", "x", "/", &[], b"the body").unwrap();
        assert_eq!(reply.header("x-upstream"), Some("good"));
        assert!(reply.text().ends_with("the body"), "the body is sent again: {}", reply.text());
    }
    assert!(bad.hits() > 0 && web.gateway.stat("cluster.both.upstream_rq_retry_success") > 0);
}

#[test]
fn failures_have_envoys_answers() {
    let slow = Upstream::start("slow");
    slow.behave(Behaviour { delay: Duration::from_secs(5), ..Behaviour::default() });
    let closing = Upstream::start("closing");
    closing.behave(Behaviour { close: true, ..Behaviour::default() });
    let gone = Upstream::start("gone");
    let clusters = [
        config::cluster("slow", &[&slow], ""),
        config::cluster("closing", &[&closing], ""),
        config::cluster("gone", &[&gone], ""),
        config::cluster("empty", &[], ""),
    ];
    drop(gone);
    let routes = ["slow", "closing", "gone", "empty", "nowhere"]
        .map(|c| format!("    - match: {{prefix: /{c}}}\n      route: {{cluster: {c}, timeout: 0.3s}}"))
        .join("\n");
    let web = start(&clusters, &routes, "");
    let (timeout, reset) = (get(web.address, "x", "/slow").unwrap(), get(web.address, "x", "/closing").unwrap());
    assert_eq!((timeout.status, timeout.text().as_str()), (504, "upstream request timeout"));
    assert_eq!(reset.status, 503);
    assert_eq!(reset.text(), "upstream connect error or disconnect/reset before headers. reset reason: connection termination");
    let refused = get(web.address, "x", "/gone").unwrap();
    assert_eq!(refused.status, 503);
    assert!(refused.text().contains("reset reason: remote connection failure"), "{}", refused.text());
    let none = get(web.address, "x", "/empty").unwrap();
    assert_eq!((none.status, none.text().as_str()), (503, "no healthy upstream"));
    assert_eq!(get(web.address, "x", "/nowhere").unwrap().status, 503);
    assert_eq!(get(web.address, "x", "/unrouted").unwrap().status, 404);
    eventually("the log", || web.gateway.stdout().lines().count() >= 6);
    let log = web.gateway.stdout();
    for flag in [" 504 UT ", " 503 UC ", " 503 UF ", " 503 UH ", " 503 NC ", " 404 NR "] {
        assert!(log.contains(flag), "{flag} is missing in {log}");
    }
}

#[test]
fn bodies_of_all_kinds_pass() {
    let a = Upstream::start("a");
    let web = start(&[config::cluster("a", &[&a], "")], TO_A, "");
    let mut connection = Connection::open(web.address).unwrap();
    let large = vec![b'z'; 3_000_000];
    let reply = connection.request("POST", "x", "/", &[], &large).unwrap();
    assert!(reply.body.ends_with(&large));
    connection.send(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n").unwrap();
    assert!(connection.read(false).unwrap().text().ends_with("hello world"));
    let head = connection.request("HEAD", "x", "/", &[], &[]).unwrap();
    assert!(head.header("content-length").is_some() && head.body.is_empty());
    connection.send(b"GET /1 HTTP/1.1\r\nhost: x\r\n\r\nGET /2 HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    assert!(connection.read(false).unwrap().text().starts_with("GET /1"));
    assert!(connection.read(false).unwrap().text().starts_with("GET /2"));
}

#[test]
fn hostile_requests_get_the_right_status_and_harm_nobody() {
    let a = Upstream::start("a");
    let web = start(&[config::cluster("a", &[&a], "")], TO_A, "");
    let long = format!("GET / HTTP/1.1\r\nhost: x\r\nx-long: {}\r\n\r\n", "y".repeat(70_000));
    let many = format!("GET / HTTP/1.1\r\nhost: x\r\n{}\r\n", (0..120).map(|i| format!("h{i}: 1\r\n")).collect::<String>());
    for (bytes, status) in [
        ("GET / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nhost: x\r\nx : y\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nhost: x\r\na: b\r\n c\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.0\r\nhost: x\r\n\r\n", 426),
        ("GET / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip\r\n\r\n", 501),
        ("nonsense\r\n\r\n", 400),
        (&long, 431),
        (&many, 431),
    ] {
        let mut connection = Connection::open(web.address).unwrap();
        connection.send(bytes.as_bytes()).unwrap();
        let reply = connection.read(false).unwrap();
        assert_eq!(reply.status, status, "{}", &bytes[..bytes.len().min(90)]);
        assert!(connection.is_closed(), "closes after {}", &bytes[..bytes.len().min(90)]);
    }
    let mut huge = Connection::open(web.address).unwrap();
    huge.send(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 4294967296\r\n\r\nabc").unwrap();
    drop(huge);
    assert_eq!(get(web.address, "x", "/").unwrap().status, 200, "still serves");
    assert_eq!(a.hits(), 1, "none of them reached the upstream");
}

#[test]
fn sigterm_drains_and_exits_0() {
    let a = Upstream::start("a");
    a.behave(Behaviour { delay: Duration::from_millis(700), ..Behaviour::default() });
    let mut web = start(&[config::cluster("a", &[&a], "")], TO_A, "");
    let address = web.address;
    let running = std::thread::spawn(move || get(address, "x", "/").unwrap().status);
    eventually("the request", || a.hits() == 1);
    web.gateway.terminate();
    assert_eq!(running.join().unwrap(), 200, "a running request ends well");
    assert_eq!(web.gateway.exit_code(), Some(0));
}

#[test]
fn connections_come_back_and_idle_ones_are_reused() {
    let a = Upstream::start("a");
    let web = start(&[config::cluster("a", &[&a], "")], TO_A, "");
    let mut connection = Connection::open(web.address).unwrap();
    for _ in 0..50 {
        assert_eq!(connection.request("GET", "x", "/", &[], &[]).unwrap().status, 200);
    }
    assert_eq!(a.connections.load(std::sync::atomic::Ordering::SeqCst), 1);
}

#[test]
fn a_websocket_whose_client_does_not_read_is_still_heard() {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (tell, heard) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").unwrap();
        let mut reader = stream.try_clone().unwrap();
        // More than all buffers on the way hold: it stops when the client does not read.
        std::thread::spawn(move || while stream.write_all(&[0; 65536]).is_ok() {});
        let mut buffer = [0; 100];
        while let Ok(n @ 1..) = reader.read(&mut buffer) {
            tell.send(buffer[..n].to_vec()).unwrap();
        }
    });
    let cluster = format!(
        "- {{\"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster, name: a, type: STATIC, load_assignment: {{cluster_name: a, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]}}}}\n"
    );
    let web = start(&[cluster], TO_A, "");
    let mut client = Connection::open(web.address).unwrap();
    client.send(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").unwrap();
    assert_eq!(client.read(false).unwrap().status, 101);
    // Everything on the way back has filled up once the gateway takes no more from the upstream.
    let mut last = 0;
    eventually("full buffers", || {
        std::thread::sleep(Duration::from_millis(100));
        let now = web.gateway.stat("cluster.a.upstream_cx_rx_bytes_total");
        std::mem::replace(&mut last, now) == now && now > 0
    });
    for word in [b"first", b"later"] {
        client.send(word).unwrap();
        assert_eq!(heard.recv_timeout(Duration::from_secs(20)).expect("the upstream hears the client"), word);
    }
}

#[test]
fn a_request_goes_on_after_its_response_began_and_while_nobody_reads_that() {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (tell, heard) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut buffer = [0; 4096];
        let first = stream.read(&mut buffer).unwrap();
        // What came of the body with the head counts.
        let mut all = buffer[..first].iter().filter(|b| **b == b'x').count();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n").unwrap();
        let mut reader = stream.try_clone().unwrap();
        std::thread::spawn(move || while stream.write_all(&[0; 65536]).is_ok() {});
        while all < 3_000_000 {
            all += reader.read(&mut buffer).unwrap();
        }
        tell.send(all).unwrap();
    });
    let cluster = format!(
        "- {{\"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster, name: a, type: STATIC, load_assignment: {{cluster_name: a, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]}}}}\n"
    );
    let web = start(&[cluster], TO_A, "");
    let mut client = Connection::open(web.address).unwrap();
    client.send(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 3000000\r\n\r\n").unwrap();
    client.send(&vec![b'x'; 3_000_000]).unwrap();
    assert!(heard.recv_timeout(Duration::from_secs(20)).is_ok(), "all of it arrived");
}
