//! What tests of listeners share: a terminal filter that answers each line with one that says what it knows, `<configuration> <remote>
//! <local> <worker> <close?>`, behind real loopback sockets and worker threads.
#![allow(dead_code, reason = "each test binary uses its part")]

use futures_util::future::LocalBoxFuture;
use nuncio_core::diag::{At, Report};
use nuncio_core::registry::{FactoryCx, Registry, Runtime, Server};
use nuncio_listener::drain::DrainStrategy;
use nuncio_listener::{
    ChainCx, Connection, ListenerManager, ListenerManagerCx, Terminal, TerminalFactory, TerminalRegistry, Workers, spawn_workers,
};
use nuncio_proto::envoy::config::core::v3 as core;
use nuncio_proto::envoy::config::core::v3::address::Address as AddressKind;
use nuncio_proto::envoy::config::core::v3::socket_address::PortSpecifier;
use nuncio_proto::envoy::config::listener::v3::{Filter, FilterChain, FilterChainMatch, Listener, ListenerFilter, filter, listener_filter};
use nuncio_proto::{Any, typed};
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

pub struct Proxy {
    pub manager: ListenerManager,
    workers: Workers,
    pub server: Arc<Server>,
}
impl Drop for Proxy {
    fn drop(&mut self) {
        self.workers.exit();
    }
}
impl Proxy {
    pub fn new(workers: usize) -> Self {
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
    pub fn apply(&mut self, listener: &Listener) -> Result<(), String> {
        let mut report = Report::new();
        let compiled = self.manager.compile(listener, &mut report).ok_or_else(|| report.summary())?;
        self.manager.apply(compiled).map_err(|report| report.summary())
    }
    pub fn address(&self, name: &str) -> SocketAddr {
        let status = self.manager.listeners().into_iter().find(|l| &*l.name == name).unwrap();
        status.addresses[0].socket().unwrap()
    }
    pub fn counter(&self, name: &str) -> u64 {
        self.server.stats.root().counter(name).value()
    }
    pub fn stat(&self, address: SocketAddr, name: &str) -> u64 {
        self.counter(&format!("listener.{}.{name}", address.to_string().replace(':', "_")))
    }
}

pub fn address(port: u16) -> Option<core::Address> {
    let port_specifier = Some(PortSpecifier::PortValue(port.into()));
    let socket = core::SocketAddress { address: "127.0.0.1".into(), port_specifier, ..Default::default() };
    Some(core::Address { address: Some(AddressKind::SocketAddress(socket)) })
}
pub fn line(text: &str) -> Vec<Filter> {
    let any = Any { type_url: "type.googleapis.com/test.Line".into(), value: text.as_bytes().to_vec() };
    vec![Filter { name: "line".into(), config_type: Some(filter::ConfigType::TypedConfig(any)) }]
}
pub fn chain(text: &str, matched: FilterChainMatch) -> FilterChain {
    FilterChain { name: text.into(), filters: line(text), filter_chain_match: Some(matched), ..Default::default() }
}
pub fn listener(name: &str, port: u16, chains: Vec<FilterChain>) -> Listener {
    Listener { name: name.into(), address: address(port), filter_chains: chains, ..Default::default() }
}
pub fn plain(name: &str, port: u16, text: &str) -> Listener {
    listener(name, port, vec![chain(text, FilterChainMatch::default())])
}
pub fn listener_filter<T: prost::Message + prost::Name>(message: &T) -> ListenerFilter {
    ListenerFilter {
        name: "f".into(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(typed::pack(message))),
        ..Default::default()
    }
}
/// A port that nobody listens on right now.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub struct Client(pub BufReader<TcpStream>);
impl Client {
    pub fn new(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self(BufReader::new(stream))
    }
    pub fn send(&mut self, bytes: &[u8]) -> &mut Self {
        // The peer may have closed already; what it answered is what counts.
        let _closed = self.0.get_mut().write_all(bytes);
        self
    }
    /// The answer; none if the connection ends instead.
    pub fn answer(&mut self) -> Option<Vec<String>> {
        let mut text = String::new();
        match self.0.read_line(&mut text) {
            Ok(n) if n > 0 => Some(text.trim_end().split(' ').map(str::to_string).collect()),
            Ok(_) => None,
            Err(e) if e.kind() == ErrorKind::ConnectionReset => None,
            Err(e) => panic!("{e}"),
        }
    }
    pub fn ask(&mut self) -> Option<Vec<String>> {
        self.send(b"x\n").answer()
    }
    pub fn text(&mut self) -> String {
        self.ask().map_or_else(String::new, |a| a[0].clone())
    }
    /// Waits for the end; panics after 20 s.
    pub fn ended(&mut self) {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::ConnectionReset => {}
            Err(e) => panic!("the connection did not end: {e}"),
        }
    }
}
pub fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !is() {
        assert!(Instant::now() < until, "{what} did not come true");
        std::thread::sleep(Duration::from_millis(5));
    }
}
