//! HTTP/2 through the binary, with curl and nghttp as clients. Requests pass twice through one gateway: HTTP/1 or 2 in, HTTP/2
//! to the second listener, HTTP/1 to the upstream.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use nuncio_tests::{Behaviour, Connection, Gateway, Upstream, config, eventually, free_port};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

fn listener(name: &str, port: u16, cluster: &str, fields: &str) -> String {
    format!(
        r#"
- "@type": type.googleapis.com/envoy.config.listener.v3.Listener
  name: {name}
  address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
  filter_chains:
  - filters:
    - name: envoy.filters.network.http_connection_manager
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
        stat_prefix: {name}
        http_protocol_options: {{enable_trailers: true}}
        upgrade_configs: [{{upgrade_type: websocket}}]
        http2_protocol_options: {{allow_connect: true}}
        {fields}
        route_config: {{validate_clusters: false, virtual_hosts: [{{name: all, domains: ["*"], routes: [{{match: {{prefix: /}}, route: {{cluster: {cluster}}}}}]}}]}}
        http_filters: [{{name: router, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]"#
    )
}

fn cluster(name: &str, address: SocketAddr, protocol: &str) -> String {
    format!(
        r#"- "@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
  name: {name}
  type: STATIC
  typed_extension_protocol_options:
    envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
      "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
      explicit_http_config: {{{protocol}}}
  load_assignment: {{cluster_name: {name}, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: {}, port_value: {}}}}}}}}}]}}]}}
"#,
        address.ip(),
        address.port()
    )
}

struct Chain {
    gateway: Gateway,
    front: SocketAddr,
}

fn start(upstream: SocketAddr, fields: &str) -> Chain {
    let (admin, front, back) = (free_port(), free_port(), free_port());
    let lds = format!("version_info: \"1\"\nresources:{}{}", listener("front", front, "back", fields), listener("back", back, "a", fields));
    let (front, back): (SocketAddr, SocketAddr) = (([127, 0, 0, 1], front).into(), ([127, 0, 0, 1], back).into());
    let clusters = [
        cluster("back", back, "http2_protocol_options: {allow_connect: true}"),
        cluster("a", upstream, "http_protocol_options: {enable_trailers: true}"),
    ];
    let files = [("bootstrap.yaml", config::bootstrap(admin)), ("lds.yaml", lds), ("cds.yaml", config::cds("1", &clusters))];
    Chain { gateway: Gateway::start(admin, &files), front }
}

fn run(program: &str, args: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writing = std::thread::spawn(move || stdin.write_all(&input));
    let out = child.wait_with_output().unwrap();
    let _written = writing.join();
    assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    out.stdout
}

/// An upstream that answers every connection with fixed bytes once a head has arrived.
fn scripted(answer: &'static [u8]) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut buffer = [0; 65536];
                while let Ok(1..) = stream.read(&mut buffer) {
                    let _sent = stream.write_all(answer);
                }
            });
        }
    });
    address
}

#[test]
fn bodies_of_both_ways_survive_every_protocol() {
    let a = Upstream::start("a");
    let chain = start(a.address, "");
    let body: Vec<u8> = (0..5_000_000_u32).map(|i| (i % 253) as u8).collect();
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let url = format!("http://{}/up", chain.front);
        let got = run("curl", &["-sS", "--max-time", "60", version, "--data-binary", "@-", "-H", "expect:", &url], &body);
        assert!(got.starts_with(b"POST /up HTTP/1.1\r\n"), "{version}");
        assert!(got.ends_with(&body), "{version}: {} bytes", got.len());
    }
    assert!(chain.gateway.stat("http.back.downstream_rq_http2_total") >= 2);
}

#[test]
fn trailers_pass_through_every_protocol() {
    let answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ntransfer-encoding: chunked\r\ntrailer: grpc-status\r\n\r\n5\r\nhello\r\n0\r\ngrpc-status: 7\r\ngrpc-message: no\r\n\r\n";
    let chain = start(scripted(answer), "");
    let mut client = Connection::open(chain.front).unwrap();
    let reply = client.request("GET", "x", "/", &[("te", "trailers")], &[]).unwrap();
    assert_eq!((reply.text().as_str(), reply.header("grpc-status"), reply.header("grpc-message")), ("hello", Some("7"), Some("no")));
    let seen = run("nghttp", &["-v", "-H", "te: trailers", &format!("http://{}/", chain.front)], &[]);
    let seen = String::from_utf8_lossy(&seen);
    assert!(seen.contains("grpc-status: 7") && seen.contains("grpc-message: no"), "{seen}");
}

#[test]
fn request_trailers_reach_the_upstream() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let upstream = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
        while !String::from_utf8_lossy(&all).contains("x-late: yes\r\n\r\n") {
            let n = stream.read(&mut buffer).unwrap();
            assert!(n > 0, "{}", String::from_utf8_lossy(&all));
            all.extend_from_slice(&buffer[..n]);
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
    });
    let chain = start(address, "");
    let mut client = Connection::open(chain.front).unwrap();
    client
        .send(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\ntrailer: x-late\r\n\r\n3\r\nabc\r\n0\r\nx-late: yes\r\n\r\n")
        .unwrap();
    assert_eq!(client.read(false).unwrap().status, 200);
    upstream.join().unwrap();
}

#[test]
fn a_100_continue_of_the_upstream_is_passed_if_asked_for() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
            let mut continued = false;
            loop {
                let n = stream.read(&mut buffer).unwrap_or(0);
                if n == 0 {
                    break;
                }
                all.extend_from_slice(&buffer[..n]);
                let text = String::from_utf8_lossy(&all).to_lowercase();
                if !continued && text.contains("\r\n\r\n") {
                    assert!(text.contains("expect: 100-continue"), "{text}");
                    assert!(text.ends_with("\r\n\r\n"), "the body waits: {text}");
                    continued = true;
                    // Once is all that the client gets, as from Envoy: repeats without end would pile up before a client that does not read.
                    stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n").unwrap();
                } else if text.ends_with("hello") {
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").unwrap();
                }
            }
        }
    });
    let chain = start(address, "proxy_100_continue: true");
    let mut client = Connection::open(chain.front).unwrap();
    client.send(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\n").unwrap();
    assert_eq!(client.read_any(false).unwrap().status, 100);
    client.send(b"hello").unwrap();
    let answer = client.read_any(false).unwrap();
    assert_eq!((answer.status, answer.text()), (200, "ok".to_string()));
}

#[test]
fn a_websocket_crosses_http2() {
    let a = Upstream::start("a");
    let chain = start(a.address, "");
    let mut client = Connection::open(chain.front).unwrap();
    client.send(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").unwrap();
    assert_eq!(client.read(false).unwrap().status, 101);
    for word in ["one", "two"] {
        client.send(word.as_bytes()).unwrap();
        assert_eq!(client.read_raw(100).unwrap(), word.as_bytes());
    }
}

#[test]
fn many_streams_share_a_connection() {
    let a = Upstream::start("a");
    let chain = start(a.address, "");
    let out = run("h2load", &["-n", "400", "-c", "2", "-m", "50", &format!("http://{}/", chain.front)], &[]);
    let out = String::from_utf8_lossy(&out);
    assert!(out.contains("400 succeeded, 0 failed, 0 errored"), "{out}");
    assert_eq!(chain.gateway.stat("http.front.downstream_cx_http2_total"), 2);
}

#[test]
fn a_drain_says_goaway_and_ends_what_runs() {
    let a = Upstream::start("a");
    a.behave(Behaviour { delay: Duration::from_millis(800), ..Behaviour::default() });
    let (admin, port) = (free_port(), free_port());
    let lds = format!("version_info: \"1\"\nresources:{}", listener("back", port, "a", ""));
    let cds = config::cds("1", &[cluster("a", a.address, "http_protocol_options: {}")]);
    let files = [("bootstrap.yaml", config::bootstrap(admin)), ("lds.yaml", lds), ("cds.yaml", cds)];
    let mut gateway = Gateway::launch(admin, &files, &["--drain-strategy", "immediate"]);
    gateway.wait_ready();
    let url = format!("http://127.0.0.1:{port}/");
    let client = std::thread::spawn(move || run("nghttp", &["-v", &url], &[]));
    eventually("the request", || a.hits() == 1);
    gateway.terminate();
    let seen = client.join().unwrap();
    let seen = String::from_utf8_lossy(&seen);
    assert!(seen.contains(":status: 200") && seen.contains("recv GOAWAY"), "{seen}");
    assert_eq!(gateway.exit_code(), Some(0));
}
