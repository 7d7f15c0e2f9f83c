//! tcp_proxy and the PROXY protocol through the binary.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use nuncio_tests::{Connection, Gateway, Upstream, config, eventually, free_port};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

fn lds(port: u16, listener_filters: &str, filters: &str) -> String {
    format!(
        r#"
version_info: "1"
resources:
- "@type": type.googleapis.com/envoy.config.listener.v3.Listener
  name: tcp
  address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
  listener_filters: [{listener_filters}]
  filter_chains: [{{filters: [{filters}]}}]
"#
    )
}

fn proxy(fields: &str) -> String {
    format!(
        "{{name: tcp, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, access_log: [{{name: stdout, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog, log_format: {{text_format_source: {{inline_string: \"%DOWNSTREAM_REMOTE_ADDRESS% %UPSTREAM_CLUSTER% %BYTES_RECEIVED% %BYTES_SENT% %RESPONSE_FLAGS%\\n\"}}}}}}}}], {fields}}}}}"
    )
}

const PROXY_PROTOCOL: &str =
    "{name: pp, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol}}";

fn start(clusters: &[String], listener_filters: &str, filters: &str) -> (Gateway, SocketAddr) {
    let (admin, port) = (free_port(), free_port());
    let files = [
        ("bootstrap.yaml", config::bootstrap(admin)),
        ("lds.yaml", lds(port, listener_filters, filters)),
        ("cds.yaml", config::cds("1", clusters)),
    ];
    (Gateway::start(admin, &files), ([127, 0, 0, 1], port).into())
}

/// Echoes bytes until the client ends, then says goodbye.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut buffer = [0; 16384];
                while let Ok(n @ 1..) = stream.read(&mut buffer) {
                    let _sent = stream.write_all(&buffer[..n]);
                }
                let _sent = stream.write_all(b"bye");
            });
        }
    });
    address
}

fn cluster(name: &str, address: SocketAddr) -> String {
    format!(
        "- {{\"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster, name: {name}, type: STATIC, connect_timeout: 1s, load_assignment: {{cluster_name: {name}, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: {}, port_value: {}}}}}}}}}]}}]}}}}\n",
        address.ip(),
        address.port()
    )
}

#[test]
fn bytes_pass_both_ways_and_half_close_is_kept() {
    let (gateway, address) = start(&[cluster("echo", echo())], "", &proxy("cluster: echo"));
    let mut client = TcpStream::connect(address).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let sent: Vec<u8> = (0..2_000_000_u32).map(|i| (i % 251) as u8).collect();
    let mut writer = client.try_clone().unwrap();
    let bytes = sent.clone();
    let writing = std::thread::spawn(move || {
        writer.write_all(&bytes).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut all = Vec::new();
    client.read_to_end(&mut all).unwrap();
    writing.join().unwrap();
    assert!(all.ends_with(b"bye"), "the answer to the end of input arrives");
    assert_eq!(all[..all.len() - 3], sent);
    eventually("the log", || gateway.stdout().contains("echo 2000000 2000003 -"));
    assert_eq!(gateway.stat("tcp.t.downstream_cx_total"), 1);
}

#[test]
fn weights_split_connections_and_failures_are_flagged() {
    let (a, b) = (Upstream::start("a"), Upstream::start("b"));
    let clusters = [config::cluster("a", &[&a], ""), config::cluster("b", &[&b], "")];
    let (gateway, address) = start(&clusters, "", &proxy("weighted_clusters: {clusters: [{name: a, weight: 80}, {name: b, weight: 20}]}"));
    for _ in 0..300 {
        assert_eq!(nuncio_tests::get(address, "x", "/").unwrap().status, 200);
    }
    // 60 of 300 with a deviation of 7: six of them is far away.
    assert!((18..=102).contains(&b.hits()), "{} of 300", b.hits());
    drop(gateway);
    let gone = Upstream::start("gone");
    let cluster = config::cluster("gone", &[&gone], "");
    drop(gone);
    let (gateway, address) = start(&[cluster], "", &proxy("cluster: gone"));
    let mut client = Connection::open(address).unwrap();
    assert!(client.is_closed());
    eventually("the log", || gateway.stdout().contains("UF"));
}

#[test]
fn the_proxy_protocol_names_the_client() {
    let (gateway, address) = start(&[cluster("echo", echo())], PROXY_PROTOCOL, &proxy("cluster: echo"));
    let v1 = b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 443\r\n".to_vec();
    let mut v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c".to_vec();
    v2.extend([192, 0, 2, 8, 192, 0, 2, 1, 0x12, 0x67, 1, 187]);
    for (header, name) in [(v1, "192.0.2.7:4711"), (v2, "192.0.2.8:4711")] {
        let mut client = Connection::open(address).unwrap();
        // In pieces, as a slow network brings it.
        for piece in header.chunks(5) {
            client.send(piece).unwrap();
            std::thread::sleep(Duration::from_millis(2));
        }
        client.send(b"hello").unwrap();
        assert_eq!(client.read_raw(100).unwrap(), b"hello");
        drop(client);
        eventually("the log", || gateway.stdout().contains(name));
    }
}

#[test]
fn a_hostile_proxy_header_ends_its_connection_alone() {
    let (gateway, address) = start(&[cluster("echo", echo())], PROXY_PROTOCOL, &proxy("cluster: echo"));
    let long = format!("PROXY TCP4 {}\r\n", "1".repeat(300));
    let too_long_v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff".iter().copied().chain(std::iter::repeat_n(b'x', 70_000)).collect::<Vec<u8>>();
    for bad in [
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
        b"PROXY TCP4 999.0.2.7 192.0.2.1 4711 443\r\n".to_vec(),
        b"PROXY TCP4 192.0.2.7 192.0.2.1 99999 443\r\n".to_vec(),
        b"PROXY TCP6 192.0.2.7 192.0.2.1 1 443\r\n".to_vec(),
        b"PROXY\r\n".to_vec(),
        long.into_bytes(),
        b"\r\n\r\n\0\r\nQUIT\n\x31\x11\x00\x0c123456789012".to_vec(),
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x01x".to_vec(),
        b"\r\n\r\n\0\r\nQUIT\n\x2f\x11\x00\x0c123456789012".to_vec(),
    ] {
        let mut client = Connection::open(address).unwrap();
        client.send(&bad).unwrap();
        assert!(client.is_closed(), "{}", String::from_utf8_lossy(&bad[..bad.len().min(60)]).escape_debug());
    }
    let mut client = Connection::open(address).unwrap();
    let _sent = client.send(&too_long_v2);
    drop(client);
    assert_eq!(gateway.stat("tcp.t.downstream_cx_total"), 0, "none was let through");
    let mut client = Connection::open(address).unwrap();
    client.send(b"PROXY UNKNOWN\r\nhello").unwrap();
    assert_eq!(client.read_raw(100).unwrap(), b"hello");
}

/// Needs CAP_NET_ADMIN; without it the connection fails, and the log says what is missing.
#[test]
fn original_src_connects_from_the_clients_address() {
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = upstream.local_addr().unwrap().port();
    let source =
        "{name: src, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.listener.original_src.v3.OriginalSrc}}";
    let address = ([127, 0, 0, 1], port).into();
    let (gateway, address) = start(&[cluster("up", address)], &format!("{PROXY_PROTOCOL}, {source}"), &proxy("cluster: up"));
    let mut client = Connection::open(address).unwrap();
    client.send(b"PROXY TCP4 127.0.0.77 127.0.0.1 1000 80\r\nhello").unwrap();
    upstream.set_nonblocking(true).unwrap();
    for _ in 0..2000 {
        if let Ok((_, peer)) = upstream.accept() {
            assert_eq!(peer.ip().to_string(), "127.0.0.77");
            return;
        }
        if gateway.log().contains("CAP_NET_ADMIN") {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("neither connected nor refused: {}", gateway.log());
}
