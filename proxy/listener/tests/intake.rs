//! What happens to a connection before its filter chain serves it: PROXY headers, redirection, choice of the chain, time and
//! connection limits, balance between workers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may fail a test")]

mod common;

use common::{Client, Proxy, chain, eventually, free_port, listener, listener_filter, plain};
use nuncio_proto::envoy::config::core::v3 as core;
use nuncio_proto::envoy::config::core::v3::address::Address as AddressKind;
use nuncio_proto::envoy::config::core::v3::socket_address::PortSpecifier;
use nuncio_proto::envoy::config::listener::v3::listener::ConnectionBalanceConfig;
use nuncio_proto::envoy::config::listener::v3::listener::connection_balance_config::{BalanceType, ExactBalance};
use nuncio_proto::envoy::config::listener::v3::{FilterChain, FilterChainMatch, Listener};
use nuncio_proto::envoy::extensions::filters::listener::proxy_protocol::v3::ProxyProtocol;
use nuncio_proto::envoy::extensions::filters::listener::proxy_protocol::v3::proxy_protocol::{KeyValuePair, Rule};
use nuncio_proto::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use nuncio_proto::envoy::extensions::transport_sockets::tls::v3::{CommonTlsContext, DownstreamTlsContext, TlsCertificate};
use nuncio_proto::{Duration as ProtoDuration, typed};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

fn proxy_protocol(optional: bool) -> ProxyProtocol {
    let pair = KeyValuePair { metadata_namespace: "ns".into(), key: "k".into(), ..Default::default() };
    ProxyProtocol {
        rules: vec![Rule { tlv_type: 0xea, on_tlv_present: Some(pair) }],
        allow_requests_without_proxy_protocol: optional,
        ..Default::default()
    }
}

#[test]
fn proxy_headers_set_the_peer() {
    let mut proxy = Proxy::new(1);
    let make =
        |name: &str, optional| Listener { listener_filters: vec![listener_filter(&proxy_protocol(optional))], ..plain(name, 0, name) };
    proxy.apply(&make("strict", false)).unwrap();
    proxy.apply(&make("lax", true)).unwrap();
    let (strict, lax) = (proxy.address("strict"), proxy.address("lax"));
    let answer = Client::new(strict).send(b"PROXY TCP4 1.2.3.4 5.6.7.8 1000 80\r\nx\n").answer().unwrap();
    assert_eq!(answer[1..3], ["1.2.3.4:1000", "5.6.7.8:80"]);
    let v2 = [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x11"[..], &[1, 2, 3, 4, 5, 6, 7, 8, 3, 232, 0, 80], &[0xea, 0, 2], b"hi", b"x\n"].concat();
    // One byte at a time: nothing is taken before the header is whole.
    let mut client = Client::new(strict);
    client.0.get_ref().set_nodelay(true).unwrap();
    for byte in &v2 {
        client.send(&[*byte]);
    }
    let answer = client.answer().unwrap();
    assert_eq!(answer[1], "1.2.3.4:1000");
    assert!(answer.join(" ").contains("hi"), "{answer:?}");
    let plain_peer = Client::new(lax).ask().unwrap();
    assert!(plain_peer[1].starts_with("127.0.0.1:"));
    for hostile in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"PROXY TCP4 1.2.3.4\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x05aaaaa",
        &[&b"PROXY "[..], &[b'A'; 500]].concat(),
        // A TLV that claims more than the header holds.
        &[&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0f"[..], &[1, 2, 3, 4, 5, 6, 7, 8, 3, 232, 0, 80], &[0xea, 0xff, 0xff]].concat(),
    ] {
        Client::new(strict).send(hostile).ended();
    }
    assert_eq!(proxy.counter("proxy_proto.not_found_disallowed"), 1);
    assert_eq!(proxy.counter("proxy_proto.not_found_allowed"), 1);
    assert_eq!(proxy.counter("proxy_proto.versions.v2.found"), 1);
    assert_eq!(proxy.counter("proxy_proto.versions.v2.error"), 2);
    assert_eq!(proxy.counter("proxy_proto.versions.v1.error"), 2);
    // A peer that goes away in the middle of its header.
    Client::new(strict).send(b"PROXY TC");
    eventually("remote close", || proxy.counter("listener.127.0.0.1_0.downstream_listener_filter_remote_close") == 1);
}

#[test]
fn redirected_connections_go_to_the_owner_of_their_destination() {
    let mut proxy = Proxy::new(2);
    // PROXY headers restore a destination as SO_ORIGINAL_DST does.
    let outbound = Listener {
        use_original_dst: Some(true),
        listener_filters: vec![listener_filter(&proxy_protocol(true))],
        ..plain("virtualOutbound", 0, "catch-all")
    };
    proxy.apply(&outbound).unwrap();
    let owner = |name: &str, ip: &str, port: u32| {
        let socket = core::SocketAddress { address: ip.into(), port_specifier: Some(PortSpecifier::PortValue(port)), ..Default::default() };
        let address = Some(core::Address { address: Some(AddressKind::SocketAddress(socket)) });
        Listener { address, bind_to_port: Some(false), ..plain(name, 0, name) }
    };
    proxy.apply(&owner("0.0.0.0_80", "0.0.0.0", 80)).unwrap();
    proxy.apply(&owner("10.0.0.1_80", "10.0.0.1", 80)).unwrap();
    let at = proxy.address("virtualOutbound");
    let to = |destination: &str| {
        Client::new(at).send(format!("PROXY TCP4 1.2.3.4 {destination} 9 80\r\nx\n").as_bytes()).answer().unwrap()[0].clone()
    };
    assert_eq!(to("10.0.0.1"), "10.0.0.1_80");
    assert_eq!(to("10.0.0.2"), "0.0.0.0_80");
    assert_eq!(Client::new(at).text(), "catch-all", "a direct connection stays");
    assert_eq!(proxy.counter("listener.10.0.0.1_80.downstream_cx_total"), 1, "counted where they belong");
    assert_eq!(proxy.counter("listener.127.0.0.1_0.downstream_cx_total"), 1);
    assert!(proxy.manager.remove("10.0.0.1_80"));
    assert_eq!(to("10.0.0.1"), "0.0.0.0_80");
    assert!(proxy.manager.remove("0.0.0.0_80"));
    assert_eq!(to("10.0.0.1"), "catch-all");
}

fn inline(text: String) -> Option<core::DataSource> {
    Some(core::DataSource { specifier: Some(core::data_source::Specifier::InlineString(text)), ..Default::default() })
}
fn tls_chain(text: &str, name: &str) -> FilterChain {
    let cert = rcgen::generate_simple_self_signed(vec![name.to_string()]).unwrap();
    let certificate = TlsCertificate {
        certificate_chain: inline(cert.cert.pem()),
        private_key: inline(cert.signing_key.serialize_pem()),
        ..Default::default()
    };
    let common = CommonTlsContext { tls_certificates: vec![certificate], ..Default::default() };
    let context = DownstreamTlsContext { common_tls_context: Some(common), ..Default::default() };
    FilterChain {
        transport_socket: Some(core::TransportSocket {
            name: "envoy.transport_sockets.tls".into(),
            config_type: Some(core::transport_socket::ConfigType::TypedConfig(typed::pack(&context))),
        }),
        transport_socket_connect_timeout: Some(ProtoDuration { seconds: 15, nanos: 0 }),
        ..chain(text, FilterChainMatch { server_names: vec![name.into()], ..Default::default() })
    }
}
/// The first byte of the answer to a ClientHello for `sni`; none if the connection is closed.
fn hello(at: SocketAddr, sni: &str) -> Option<u8> {
    let roots = rustls::RootCertStore::empty();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let mut session = rustls::ClientConnection::new(Arc::new(config), sni.to_string().try_into().unwrap()).unwrap();
    let mut bytes = Vec::new();
    session.write_tls(&mut bytes).unwrap();
    let mut client = Client::new(at);
    // In two pieces: the inspector must wait for the rest.
    let (head, tail) = bytes.split_at(bytes.len() / 2);
    client.send(head);
    std::thread::sleep(Duration::from_millis(5));
    client.send(tail);
    let mut first = [0; 1];
    client.0.read_exact(&mut first).ok().map(|()| first[0])
}

#[test]
fn tls_chains_by_server_name() {
    let mut proxy = Proxy::new(1);
    let listener = Listener {
        listener_filters: vec![listener_filter(&TlsInspector::default())],
        ..listener("a", 0, vec![tls_chain("a", "a.example.com"), tls_chain("wild", "*.example.org")])
    };
    proxy.apply(&listener).unwrap();
    let at = proxy.address("a");
    assert_eq!(hello(at, "a.example.com"), Some(22), "a ServerHello");
    assert_eq!(hello(at, "b.example.org"), Some(22));
    assert_eq!(hello(at, "nobody.example.net"), None);
    Client::new(at).send(b"GET / HTTP/1.1\r\n\r\n").ended();
    assert_eq!(proxy.counter("listener.127.0.0.1_0.no_filter_chain_match"), 2);
    assert_eq!(proxy.counter("tls_inspector.tls_found"), 3);
    assert_eq!(proxy.counter("tls_inspector.tls_not_found"), 1);
    // The inspector is added if matches need it.
    proxy.apply(&Listener { listener_filters: Vec::new(), ..listener.clone() }).unwrap();
    assert_eq!(hello(at, "a.example.com"), Some(22));
    assert_eq!(hello(at, "nobody.example.net"), None);
}

#[test]
fn silent_clients_time_out_or_go_on() {
    let mut proxy = Proxy::new(1);
    let make = |name: &str, go_on| Listener {
        listener_filters: vec![listener_filter(&TlsInspector::default())],
        listener_filters_timeout: Some(ProtoDuration { seconds: 0, nanos: 50_000_000 }),
        continue_on_listener_filters_timeout: go_on,
        ..plain(name, 0, name)
    };
    proxy.apply(&make("close", false)).unwrap();
    Client::new(proxy.address("close")).ended();
    assert_eq!(proxy.counter("listener.127.0.0.1_0.downstream_pre_cx_timeout"), 1);
    assert!(proxy.manager.remove("close"));
    proxy.apply(&make("go-on", true)).unwrap();
    let mut client = Client::new(proxy.address("go-on"));
    eventually("timeout", || proxy.counter("listener.127.0.0.1_0.downstream_pre_cx_timeout") == 1);
    assert_eq!(client.text(), "go-on");
}

#[test]
fn exact_balance_spreads_connections() {
    let mut proxy = Proxy::new(3);
    let balance = ConnectionBalanceConfig { balance_type: Some(BalanceType::ExactBalance(ExactBalance {})) };
    proxy.apply(&Listener { connection_balance_config: Some(balance), enable_reuse_port: Some(false), ..plain("a", 0, "x") }).unwrap();
    let mut clients = Vec::new();
    let mut seen = std::collections::BTreeMap::<String, usize>::new();
    for _ in 0..12 {
        let mut client = Client::new(proxy.address("a"));
        *seen.entry(client.ask().unwrap()[3].clone()).or_default() += 1;
        clients.push(client);
    }
    assert_eq!(seen.values().copied().collect::<Vec<_>>(), [4, 4, 4]);
}

#[test]
fn limits() {
    let mut proxy = Proxy::new(1);
    proxy.server.runtime.set("envoy.resource_limits.listener.few.connection_limit", "1");
    proxy.apply(&plain("few", 0, "few")).unwrap();
    let mut first = Client::new(proxy.address("few"));
    assert_eq!(first.text(), "few");
    Client::new(proxy.address("few")).ended();
    assert_eq!(proxy.counter("listener.127.0.0.1_0.downstream_cx_overflow"), 1);
    proxy.manager.set_max_connections(Some(1));
    proxy.apply(&plain("many", free_port(), "many")).unwrap();
    proxy.apply(&Listener { ignore_global_conn_limit: true, ..plain("free", free_port(), "free") }).unwrap();
    let many = proxy.address("many");
    Client::new(many).ended();
    assert_eq!(proxy.stat(many, "downstream_global_cx_overflow"), 1);
    assert_eq!(Client::new(proxy.address("free")).text(), "free");
    proxy.manager.set_max_connections(None);
    assert_eq!(Client::new(many).text(), "many");
    proxy.manager.set_overload_reject(1.0);
    Client::new(many).ended();
    assert_eq!(proxy.stat(many, "downstream_cx_overload_reject"), 1);
}

#[test]
fn unix_sockets_with_mode_and_leftovers() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;
    let path = std::env::temp_dir().join(format!("nuncio-listener-{}.sock", std::process::id()));
    let _stale = std::os::unix::net::UnixListener::bind(&path);
    let mut proxy = Proxy::new(2);
    let pipe = core::Pipe { path: path.to_string_lossy().into_owned(), mode: 0o600 };
    let address = Some(core::Address { address: Some(AddressKind::Pipe(pipe)) });
    proxy.apply(&Listener { address, ..plain("uds", 0, "uds") }).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"x\n").unwrap();
    let mut answer = [0; 3];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"uds");
    std::fs::remove_file(&path).unwrap();
}
