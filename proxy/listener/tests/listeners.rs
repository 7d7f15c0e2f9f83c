//! Listeners over real loopback sockets and worker threads. The terminal filter of these tests answers each line with one line that
//! says what it knows: `<configuration> <remote> <local> <worker> <close?>`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests

use futures_util::future::LocalBoxFuture;
use nuncio_core::diag::{At, Report};
use nuncio_core::registry::{FactoryCx, Registry, Runtime, Server};
use nuncio_listener::drain::DrainStrategy;
use nuncio_listener::{
    ChainCx, Connection, DrainOptions, ListenerManager, ListenerManagerCx, Terminal, TerminalFactory, TerminalRegistry, Workers,
    spawn_workers,
};
use nuncio_proto::envoy::config::core::v3::{self as core, address::Address as AddressKind, socket_address::PortSpecifier};
use nuncio_proto::envoy::config::listener::v3::listener::ConnectionBalanceConfig;
use nuncio_proto::envoy::config::listener::v3::listener::connection_balance_config::{BalanceType, ExactBalance};
use nuncio_proto::envoy::config::listener::v3::{Filter, FilterChain, FilterChainMatch, Listener, ListenerFilter, filter, listener_filter};
use nuncio_proto::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
use nuncio_proto::envoy::extensions::filters::listener::proxy_protocol::v3::{
    ProxyProtocol, proxy_protocol::KeyValuePair, proxy_protocol::Rule,
};
use nuncio_proto::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use nuncio_proto::envoy::extensions::transport_sockets::tls::v3::{CommonTlsContext, DownstreamTlsContext, TlsCertificate};
use nuncio_proto::{Any, Duration as ProtoDuration, typed};
use nuncio_stats::Store;
use nuncio_tls::SecretStore;
use std::any::Any as AnyType;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt};

#[derive(Debug)]
struct Line {
    text: Mutex<String>,
}
impl Terminal for Line {
    fn serve(self: Arc<Self>, connection: Connection) -> LocalBoxFuture<'static, ()> {
        Box::pin(async move {
            let Connection { io, info, drain, .. } = connection;
            let mut io = tokio::io::BufReader::new(io);
            let mut line = String::new();
            loop {
                line.clear();
                tokio::select! {
                    read = io.read_line(&mut line) => match read { Ok(n) if n > 0 => {} _ => return },
                    () = drain.closing() => return,
                }
                let thread = std::thread::current().name().unwrap_or_default().to_string();
                let tlv = info.metadata.borrow().get("ns").map(|s| format!("{:?}", s.fields)).unwrap_or_default();
                let text = self.text.lock().unwrap().clone();
                let answer = format!("{text} {} {} {thread} {}{tlv}\n", info.remote, info.local, drain.should_close());
                if io.get_mut().write_all(answer.as_bytes()).await.is_err() || io.get_mut().flush().await.is_err() {
                    return;
                }
            }
        })
    }
    fn adopt(&self, new: &Arc<dyn Terminal>) -> bool {
        let Some(new) = new.as_any().downcast_ref::<Self>() else { return false };
        let text = new.text.lock().unwrap().clone();
        // A configuration that says so cannot be taken over.
        if text.contains("stubborn") {
            return false;
        }
        *self.text.lock().unwrap() = text;
        true
    }
    fn as_any(&self) -> &dyn AnyType {
        self
    }
}
struct Lines;
impl TerminalFactory for Lines {
    fn types(&self) -> &[&str] {
        &["test.Line"]
    }
    fn compile(&self, config: &[u8], _at: &At<'_>, _cx: &mut FactoryCx<'_>, _chain: &ChainCx<'_>) -> Option<Arc<dyn Terminal>> {
        Some(Arc::new(Line { text: Mutex::new(String::from_utf8_lossy(config).into_owned()) }))
    }
}

struct Proxy {
    manager: ListenerManager,
    workers: Workers,
    server: Arc<Server>,
}
impl Drop for Proxy {
    fn drop(&mut self) {
        self.workers.exit();
    }
}
impl Proxy {
    fn new(workers: usize) -> Self {
        let server = Arc::new(Server {
            node: Default::default(),
            stats: Store::new(),
            runtime: Runtime::default(),
            started: Instant::now(),
            concurrency: workers,
            drain_time: Duration::from_millis(200),
            clusters: Arc::default(),
        });
        let workers = spawn_workers(workers, |_| {}).unwrap();
        let cx = ListenerManagerCx {
            server: server.clone(),
            registry: Arc::new(Registry::default()),
            terminals: Arc::new(TerminalRegistry { factories: vec![Box::new(Lines)] }),
            secrets: SecretStore::new(),
            drain_strategy: DrainStrategy::Immediate,
        };
        let mut manager = ListenerManager::new(cx, workers.clone());
        manager.start();
        Self { manager, workers, server }
    }
    fn apply(&mut self, listener: &Listener) -> Result<(), String> {
        let mut report = Report::new();
        let compiled = self.manager.compile(listener, &mut report).ok_or_else(|| report.summary())?;
        self.manager.apply(compiled).map_err(|report| report.summary())
    }
    fn address(&self, name: &str) -> SocketAddr {
        let status = self.manager.listeners().into_iter().find(|l| &*l.name == name).unwrap();
        status.addresses[0].socket().unwrap()
    }
    fn counter(&self, name: &str) -> u64 {
        self.server.stats.root().counter(name).value()
    }
    fn stat(&self, address: SocketAddr, name: &str) -> u64 {
        self.counter(&format!("listener.{}.{name}", address.to_string().replace(':', "_")))
    }
}

fn address(port: u16) -> Option<core::Address> {
    let port_specifier = Some(PortSpecifier::PortValue(port.into()));
    let socket = core::SocketAddress { address: "127.0.0.1".into(), port_specifier, ..Default::default() };
    Some(core::Address { address: Some(AddressKind::SocketAddress(socket)) })
}
fn line(text: &str) -> Vec<Filter> {
    let any = Any { type_url: "type.googleapis.com/test.Line".into(), value: text.as_bytes().to_vec() };
    vec![Filter { name: "line".into(), config_type: Some(filter::ConfigType::TypedConfig(any)) }]
}
fn chain(text: &str, matched: FilterChainMatch) -> FilterChain {
    FilterChain { name: text.into(), filters: line(text), filter_chain_match: Some(matched), ..Default::default() }
}
fn listener(name: &str, port: u16, chains: Vec<FilterChain>) -> Listener {
    Listener { name: name.into(), address: address(port), filter_chains: chains, ..Default::default() }
}
fn plain(name: &str, port: u16, text: &str) -> Listener {
    listener(name, port, vec![chain(text, FilterChainMatch::default())])
}
fn listener_filter<T: prost::Message + prost::Name>(message: &T) -> ListenerFilter {
    ListenerFilter {
        name: "f".into(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(typed::pack(message))),
        ..Default::default()
    }
}
/// A port that nobody listens on right now.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

struct Client(BufReader<TcpStream>);
impl Client {
    fn new(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self(BufReader::new(stream))
    }
    fn send(&mut self, bytes: &[u8]) -> &mut Self {
        // The peer may have closed already; what it answered is what counts.
        let _closed = self.0.get_mut().write_all(bytes);
        self
    }
    /// The answer; none if the connection ends instead.
    fn answer(&mut self) -> Option<Vec<String>> {
        let mut text = String::new();
        match self.0.read_line(&mut text) {
            Ok(n) if n > 0 => Some(text.trim_end().split(' ').map(str::to_string).collect()),
            Ok(_) => None,
            Err(e) if e.kind() == ErrorKind::ConnectionReset => None,
            Err(e) => panic!("{e}"),
        }
    }
    fn ask(&mut self) -> Option<Vec<String>> {
        self.send(b"x\n").answer()
    }
    fn text(&mut self) -> String {
        self.ask().map_or_else(String::new, |a| a[0].clone())
    }
    /// Waits for the end; panics after 20 s.
    fn ended(&mut self) {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::ConnectionReset => {}
            Err(e) => panic!("the connection did not end: {e}"),
        }
    }
}
fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !is() {
        assert!(Instant::now() < until, "{what} did not come true");
        std::thread::sleep(Duration::from_millis(5));
    }
}

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
