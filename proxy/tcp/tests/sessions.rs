//! Whole connections through a compiled filter, over loopback sockets. The expected log lines are Envoy 1.40's for the same events.

// Helpers outside of test functions.
#![allow(clippy::unwrap_used, clippy::panic)]

use bytes::BytesMut;
use nuncio_core::StreamInfo;
use nuncio_core::diag::{At, Report};
use nuncio_core::filter_state::StringState;
use nuncio_core::info::TrafficDirection;
use nuncio_core::network::{NetworkAction, NetworkFilter};
use nuncio_core::registry::{FactoryCx, Registry, Server};
use nuncio_core::test_kit::{self, fields};
use nuncio_core::views::ClusterSlots;
use nuncio_format::Files;
use nuncio_listener::drain::{DrainSignal, DrainState};
use nuncio_listener::{ChainCx, Connection, DrainWatch, Terminal, TerminalFactory};
use nuncio_proto::Message;
use nuncio_proto::envoy::config::accesslog::v3::{AccessLog, access_log::ConfigType};
use nuncio_proto::envoy::config::cluster::v3::{self as cluster, CircuitBreakers, Cluster, circuit_breakers::Thresholds};
use nuncio_proto::envoy::config::core::v3::{self as core, SubstitutionFormatString, data_source, substitution_format_string::Format};
use nuncio_proto::envoy::config::endpoint::v3::{self as endpoint, ClusterLoadAssignment, LbEndpoint, LocalityLbEndpoints};
use nuncio_proto::envoy::extensions::access_loggers::file::v3::{FileAccessLog, file_access_log::AccessLogFormat};
use nuncio_proto::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use nuncio_proto::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::{
    ClusterSpecifier, TcpAccessLogOptions, TunnelingConfig, WeightedCluster, weighted_cluster::ClusterWeight,
};
use nuncio_proto::typed::pack;
use nuncio_tcp::TcpProxyFactory;
use nuncio_tls::{SecretStore, Transport};
use nuncio_upstream::{ClusterManager, ManagerOptions};
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, oneshot};
use tokio::task::LocalSet;

const FORMAT: &str = "F=%RESPONSE_FLAGS% RC=%RESPONSE_CODE% P=%PROTOCOL% RX=%BYTES_RECEIVED% TX=%BYTES_SENT% \
    A=%UPSTREAM_REQUEST_ATTEMPT_COUNT% C=%UPSTREAM_CLUSTER% W=%DOWNSTREAM_WIRE_BYTES_RECEIVED%/%DOWNSTREAM_WIRE_BYTES_SENT% \
    UW=%UPSTREAM_WIRE_BYTES_SENT%/%UPSTREAM_WIRE_BYTES_RECEIVED% L=%ACCESS_LOG_TYPE%\n";

/// A server, its clusters, and a log file of its own.
struct World {
    server: Arc<Server>,
    clusters: Arc<ClusterManager>,
    slots: Arc<ClusterSlots>,
    log: PathBuf,
}

impl World {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let log = std::env::temp_dir().join(format!("nuncio-tcp-{}-{}.log", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        let server = test_kit::server(fields([]));
        let slots = Arc::new(ClusterSlots::default());
        let mut report = Report::new();
        let options = ManagerOptions {
            server: server.clone(),
            secrets: SecretStore::new(),
            registry: Arc::new(Registry::default()),
            slots: slots.clone(),
            bootstrap: Default::default(),
        };
        let clusters = ClusterManager::new(options, &mut report);
        assert!(!report.has_errors(), "{}", report.summary());
        Self { server, clusters, slots, log }
    }
    fn cluster(&self, name: &str, port: Option<u16>, change: impl FnOnce(&mut Cluster)) {
        let address = |port| core::Address {
            address: Some(core::address::Address::SocketAddress(core::SocketAddress {
                address: "127.0.0.1".into(),
                port_specifier: Some(core::socket_address::PortSpecifier::PortValue(port)),
                ..Default::default()
            })),
        };
        let host = |port: u16| LbEndpoint {
            host_identifier: Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(endpoint::Endpoint {
                address: Some(address(u32::from(port))),
                ..Default::default()
            })),
            ..Default::default()
        };
        let locality = LocalityLbEndpoints { lb_endpoints: port.into_iter().map(host).collect(), ..Default::default() };
        let assignment = ClusterLoadAssignment { cluster_name: name.into(), endpoints: vec![locality], ..Default::default() };
        let mut proto = Cluster {
            name: name.into(),
            load_assignment: Some(assignment),
            cluster_discovery_type: Some(cluster::cluster::ClusterDiscoveryType::Type(cluster::cluster::DiscoveryType::Static as i32)),
            ..Default::default()
        };
        change(&mut proto);
        let mut report = Report::new();
        assert!(self.clusters.apply(&proto, true, &mut report).is_some(), "{}", report.summary());
    }
    fn proto(&self, cluster: &str) -> TcpProxy {
        let source = core::DataSource { specifier: Some(data_source::Specifier::InlineString(FORMAT.into())), ..Default::default() };
        let format = SubstitutionFormatString { format: Some(Format::TextFormatSource(source)), ..Default::default() };
        let path = self.log.to_str().unwrap().to_string();
        let file = FileAccessLog { path, access_log_format: Some(AccessLogFormat::LogFormat(format)) };
        let log = AccessLog { name: "log".into(), filter: None, config_type: Some(ConfigType::TypedConfig(pack(&file))) };
        TcpProxy {
            stat_prefix: "t".into(),
            cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.into())),
            access_log: vec![log],
            ..Default::default()
        }
    }
    fn compile(&self, proto: &TcpProxy) -> Result<Arc<dyn Terminal>, String> {
        let mut report = Report::new();
        let scope = self.server.stats.root();
        let name: Arc<str> = "l".into();
        let secrets = SecretStore::new();
        let chain = ChainCx {
            listener: &name,
            chain: "",
            listener_scope: &scope,
            listener_metadata: None,
            chain_metadata: None,
            tls: false,
            buffer_limit: 1 << 20,
            drain_modify_only: false,
            secrets: &secrets,
        };
        let mut cx = FactoryCx { server: &self.server, scope: &scope, direction: TrafficDirection::Inbound, report: &mut report };
        let factory = TcpProxyFactory::new(self.slots.clone());
        let terminal = factory.compile(&proto.encode_to_vec(), &At::Root, &mut cx, &chain);
        terminal.ok_or_else(|| report.summary())
    }
    /// Serves one connection; gives the client's end and the task.
    async fn serve(&self, proto: &TcpProxy) -> (TcpStream, tokio::task::JoinHandle<()>) {
        self.serve_with(self.compile(proto).unwrap(), DrainWatch::never(), |_| {}).await
    }
    /// As `serve`, behind a network filter.
    async fn serve_behind(&self, proto: &TcpProxy, filter: impl NetworkFilter + 'static) -> (TcpStream, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (client, accepted) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let io = Transport::Tcp(accepted.unwrap().0);
        let (info, drain) = (Rc::new(test_kit::connection()), DrainWatch::never());
        let connection = Connection { io, info, filters: vec![Box::new(filter)], leftover: BytesMut::new(), drain };
        (client.unwrap(), tokio::task::spawn_local(self.compile(proto).unwrap().serve(connection)))
    }
    async fn serve_with(
        &self,
        terminal: Arc<dyn Terminal>,
        drain: DrainWatch,
        change: impl FnOnce(&mut nuncio_core::ConnectionInfo),
    ) -> (TcpStream, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (client, accepted) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let mut info = test_kit::connection();
        change(&mut info);
        let io = Transport::Tcp(accepted.unwrap().0);
        let connection = Connection { io, info: Rc::new(info), filters: Vec::new(), leftover: BytesMut::new(), drain };
        (client.unwrap(), tokio::task::spawn_local(terminal.serve(connection)))
    }
    fn lines(&self) -> Vec<String> {
        Files::flush();
        std::fs::read_to_string(&self.log).unwrap().lines().map(str::to_string).collect()
    }
    fn stat(&self, name: &str) -> i64 {
        self.server.stats.value(name).unwrap_or_default()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.log);
    }
}

/// Echoes; `RST` makes it reset the connection, `BYE` makes it end after the echo.
async fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::task::spawn_local(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::task::spawn_local(async move {
                let mut buffer = [0; 4096];
                while let Ok(n) = stream.read(&mut buffer).await {
                    if buffer[..n].starts_with(b"RST") {
                        stream.set_zero_linger().unwrap();
                        return;
                    }
                    if n == 0 || stream.write_all(&buffer[..n]).await.is_err() || buffer[..n].starts_with(b"BYE") {
                        return;
                    }
                }
            });
        }
    });
    port
}

/// A port of the loopback interface on which nothing listens.
async fn closed_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

async fn local<F: Future>(test: F) -> F::Output {
    LocalSet::new().run_until(test).await
}

async fn rest(client: &mut TcpStream) -> Result<Vec<u8>, std::io::ErrorKind> {
    let mut all = Vec::new();
    client.read_to_end(&mut all).await.map(|_| all).map_err(|e| e.kind())
}

/// Waits for an answer, at the start of a connection or at its first bytes.
struct Asks {
    at_start: bool,
    asked: Rc<Notify>,
    answer: oneshot::Receiver<NetworkAction>,
}

impl NetworkFilter for Asks {
    fn on_new(&mut self, _info: &mut StreamInfo, _write: &mut BytesMut) -> NetworkAction {
        if self.at_start { NetworkAction::Wait } else { NetworkAction::Continue }
    }
    fn on_read(&mut self, _info: &mut StreamInfo, _data: &mut BytesMut, _end: bool) -> NetworkAction {
        if self.at_start || self.answer.is_terminated() { NetworkAction::Continue } else { NetworkAction::Wait }
    }
    fn poll_wait(&mut self, cx: &mut Context<'_>, _info: &mut StreamInfo) -> Poll<NetworkAction> {
        self.asked.notify_one();
        Pin::new(&mut self.answer).poll(cx).map(|answer| answer.unwrap())
    }
}

#[tokio::test]
async fn a_connection_waits_for_its_filters() {
    local(async {
        let world = World::new();
        world.cluster("a", Some(echo().await), |_| {});
        for (at_start, answer) in [
            (true, NetworkAction::Continue),
            (false, NetworkAction::Continue),
            (true, NetworkAction::Close("no".into())),
            (false, NetworkAction::Close("no".into())),
        ] {
            let allowed = answer == NetworkAction::Continue;
            let (asked, (tell, told)) = (Rc::<Notify>::default(), oneshot::channel());
            let (mut client, task) = world.serve_behind(&world.proto("a"), Asks { at_start, asked: asked.clone(), answer: told }).await;
            client.write_all(b"hello").await.unwrap();
            asked.notified().await;
            tell.send(answer).unwrap();
            if allowed {
                client.shutdown().await.unwrap();
            }
            // What a filter left unread makes a reset of the close.
            let got = rest(&mut client).await.unwrap_or_default();
            assert_eq!(got, if allowed { b"hello".as_ref() } else { b"" }, "at its start: {at_start}");
            task.await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_wait() {
    local(async {
        let world = World::new();
        world.cluster("a", Some(echo().await), |_| {});
        for at_start in [true, false] {
            let (asked, (tell, told)) = (Rc::<Notify>::default(), oneshot::channel());
            let (mut client, task) = world.serve_behind(&world.proto("a"), Asks { at_start, asked: asked.clone(), answer: told }).await;
            client.write_all(b"hello").await.unwrap();
            asked.notified().await;
            client.set_zero_linger().unwrap();
            drop(client);
            task.await.unwrap();
            assert!(tell.is_closed(), "the filter is gone");
        }
    })
    .await;
}

#[tokio::test]
async fn bytes_go_through_and_half_close_is_kept() {
    local(async {
        let world = World::new();
        world.cluster("a", Some(echo().await), |_| {});
        let (mut client, task) = world.serve(&world.proto("a")).await;
        client.write_all(b"hello").await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(rest(&mut client).await.unwrap(), b"hello");
        task.await.unwrap();
        assert_eq!(world.lines(), ["F=- RC=0 P=- RX=5 TX=5 A=1 C=a W=5/5 UW=5/5 L=TcpConnectionEnd"]);
        assert_eq!(world.stat("tcp.t.downstream_cx_total"), 1);
        assert_eq!(world.stat("cluster.a.upstream_cx_total"), 1);
        assert_eq!((world.stat("cluster.a.upstream_cx_tx_bytes_total"), world.stat("cluster.a.upstream_cx_rx_bytes_total")), (5, 5));
        assert_eq!(world.stat("cluster.a.upstream_cx_active"), 0);
    })
    .await;
}

#[tokio::test]
async fn a_reset_of_the_upstream_resets_the_client() {
    local(async {
        let world = World::new();
        world.cluster("a", Some(echo().await), |_| {});
        let (mut client, task) = world.serve(&world.proto("a")).await;
        client.write_all(b"RST").await.unwrap();
        assert_eq!(rest(&mut client).await, Err(std::io::ErrorKind::ConnectionReset));
        task.await.unwrap();
        assert_eq!(world.lines(), ["F=UR RC=0 P=- RX=3 TX=0 A=1 C=a W=3/0 UW=3/0 L=TcpConnectionEnd"]);
    })
    .await;
}

#[tokio::test]
async fn connections_that_cannot_be_made_say_why() {
    local(async {
        let world = World::new();
        world.cluster("down", Some(closed_port().await), |_| {});
        world.cluster("empty", None, |_| {});
        let limits =
            CircuitBreakers { thresholds: vec![Thresholds { max_connections: Some(0), ..Default::default() }], ..Default::default() };
        world.cluster("limited", Some(echo().await), |c| c.circuit_breakers = Some(limits));
        let thrice = |mut proto: TcpProxy| {
            proto.max_connect_attempts = Some(3);
            proto
        };
        let protos = [world.proto("down"), thrice(world.proto("down")), world.proto("empty"), world.proto("nope"), world.proto("limited")];
        for proto in &protos {
            let (mut client, task) = world.serve(proto).await;
            assert_eq!(rest(&mut client).await.unwrap(), b"");
            task.await.unwrap();
        }
        let end = "W=0/0 UW=0/0 L=TcpConnectionEnd";
        let expected = [
            format!("F=UF,URX RC=0 P=- RX=0 TX=0 A=1 C=down {end}"),
            format!("F=UF,URX RC=0 P=- RX=0 TX=0 A=3 C=down {end}"),
            format!("F=UH RC=0 P=- RX=0 TX=0 A=0 C=empty {end}"),
            format!("F=NC RC=0 P=- RX=0 TX=0 A=0 C=- {end}"),
            format!("F=UO RC=0 P=- RX=0 TX=0 A=0 C=limited {end}"),
        ];
        assert_eq!(world.lines(), expected);
        assert_eq!(world.stat("tcp.t.downstream_cx_no_route"), 1);
        assert_eq!(world.stat("cluster.down.upstream_cx_connect_attempts_exceeded"), 2);
        assert_eq!(world.stat("cluster.down.upstream_cx_connect_fail"), 4);
        assert_eq!(world.stat("cluster.empty.upstream_cx_none_healthy"), 1);
        assert_eq!(world.stat("cluster.limited.upstream_cx_overflow"), 1);
    })
    .await;
}

fn proto_duration(millis: i32) -> Option<nuncio_proto::Duration> {
    Some(nuncio_proto::Duration { seconds: 0, nanos: millis * 1_000_000 })
}

#[tokio::test]
async fn limits_of_time_end_connections() {
    local(async {
        let world = World::new();
        world.cluster("a", Some(echo().await), |_| {});
        let idle = TcpProxy { idle_timeout: proto_duration(30), ..world.proto("a") };
        let limited = TcpProxy { max_downstream_connection_duration: proto_duration(30), ..world.proto("a") };
        for proto in [idle, limited] {
            let (mut client, task) = world.serve(&proto).await;
            client.write_all(b"x").await.unwrap();
            assert_eq!(rest(&mut client).await.unwrap(), b"x");
            task.await.unwrap();
        }
        let end = "RC=0 P=- RX=1 TX=1 A=1 C=a W=1/1 UW=1/1 L=TcpConnectionEnd";
        assert_eq!(world.lines(), [format!("F=- {end}"), format!("F=DT {end}")]);
        assert_eq!((world.stat("tcp.t.idle_timeout"), world.stat("tcp.t.max_downstream_connection_duration")), (1, 1));
    })
    .await;
}

#[tokio::test]
async fn logs_are_written_at_every_stage_that_is_asked_for() {
    local(async {
        let world = World::new();
        world.cluster("a", Some(echo().await), |_| {});
        let options = TcpAccessLogOptions {
            access_log_flush_interval: proto_duration(5),
            flush_access_log_on_connected: true,
            flush_access_log_on_start: true,
        };
        let (mut client, task) = world.serve(&TcpProxy { access_log_options: Some(options), ..world.proto("a") }).await;
        while !world.lines().iter().any(|l| l.ends_with("L=TcpPeriodic")) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        client.shutdown().await.unwrap();
        rest(&mut client).await.unwrap();
        task.await.unwrap();
        let kinds: Vec<_> = world.lines().iter().map(|l| l.rsplit_once("L=").unwrap().1.to_string()).collect();
        assert_eq!(kinds[..3], ["TcpConnectionStart", "TcpUpstreamConnected", "TcpPeriodic"]);
        assert_eq!(kinds.last().unwrap(), "TcpConnectionEnd");
    })
    .await;
}

#[tokio::test]
async fn drain_ends_the_connection_and_a_dropped_task_still_logs() {
    local(async {
        let world = World::new();
        world.cluster("a", Some(echo().await), |_| {});
        let signal = DrainSignal::new(DrainState::default());
        let terminal = world.compile(&world.proto("a")).unwrap();
        let (mut client, task) = world.serve_with(terminal.clone(), DrainWatch::new(signal.clone()), |_| {}).await;
        client.write_all(b"x").await.unwrap();
        client.read_exact(&mut [0]).await.unwrap();
        signal.set(DrainState { closing: true, ..Default::default() });
        assert_eq!(rest(&mut client).await.unwrap(), b"");
        task.await.unwrap();
        let (mut client, task) = world.serve_with(terminal, DrainWatch::never(), |_| {}).await;
        client.write_all(b"x").await.unwrap();
        client.read_exact(&mut [0]).await.unwrap();
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        assert_eq!(world.lines(), ["F=- RC=0 P=- RX=1 TX=1 A=1 C=a W=1/1 UW=1/1 L=TcpConnectionEnd"; 2]);
    })
    .await;
}

#[tokio::test]
async fn weights_and_filter_state_choose_the_cluster() {
    local(async {
        let world = World::new();
        let port = echo().await;
        ["a", "b", "c"].into_iter().for_each(|name| world.cluster(name, Some(port), |_| {}));
        let weight = |name: &str, weight| ClusterWeight { name: name.into(), weight, metadata_match: None };
        let weighted = WeightedCluster { clusters: vec![weight("a", 1), weight("b", 1)] };
        let proto = TcpProxy { cluster_specifier: Some(ClusterSpecifier::WeightedClusters(weighted)), ..world.proto("a") };
        let terminal = world.compile(&proto).unwrap();
        for _ in 0..64 {
            let (mut client, task) = world.serve_with(terminal.clone(), DrainWatch::never(), |_| {}).await;
            client.write_all(b"BYE").await.unwrap();
            assert_eq!(rest(&mut client).await.unwrap(), b"BYE");
            drop(client);
            task.await.unwrap();
        }
        // With even weights, all 64 on one side has a chance of 2^-63.
        let (a, b) = (world.stat("cluster.a.upstream_cx_total"), world.stat("cluster.b.upstream_cx_total"));
        assert!(a > 0 && b > 0 && a + b == 64, "{a} {b}");
        let named = |info: &mut nuncio_core::ConnectionInfo| {
            info.filter_state.borrow_mut().set("envoy.tcp_proxy.cluster", Arc::new(StringState("c".into())));
        };
        let (mut client, task) = world.serve_with(terminal, DrainWatch::never(), named).await;
        client.write_all(b"BYE").await.unwrap();
        assert_eq!(rest(&mut client).await.unwrap(), b"BYE");
        drop(client);
        task.await.unwrap();
        assert_eq!(world.stat("cluster.c.upstream_cx_total"), 1);
    })
    .await;
}

#[test]
fn what_is_refused_and_what_is_adopted() {
    let world = World::new();
    let refused = |proto: TcpProxy, words: &str| {
        let said = world.compile(&proto).unwrap_err();
        assert!(said.contains(words), "{said}");
    };
    refused(TcpProxy { stat_prefix: String::new(), ..world.proto("a") }, "stat_prefix");
    refused(TcpProxy { cluster_specifier: None, ..world.proto("a") }, "no cluster");
    refused(TcpProxy { tunneling_config: Some(TunnelingConfig::default()), ..world.proto("a") }, "tunneling_config.hostname");
    refused(TcpProxy { on_demand: Some(Default::default()), ..world.proto("a") }, "on_demand");
    refused(TcpProxy { max_connect_attempts: Some(0), ..world.proto("a") }, "max_connect_attempts");
    refused(TcpProxy { hash_policy: vec![Default::default()], ..world.proto("a") }, "hash_policy[0]");
    refused(TcpProxy { upstream_connect_mode: 1, ..world.proto("a") }, "max_early_data_bytes");
    let weighted = WeightedCluster { clusters: vec![ClusterWeight { name: "a".into(), weight: 0, metadata_match: None }] };
    refused(
        TcpProxy { cluster_specifier: Some(ClusterSpecifier::WeightedClusters(weighted)), ..world.proto("a") },
        "weighted_clusters.clusters[0].weight",
    );
    let old = world.compile(&world.proto("a")).unwrap();
    assert!(old.adopt(&world.compile(&TcpProxy { idle_timeout: proto_duration(5), ..world.proto("a") }).unwrap()));
    assert!(!old.adopt(&world.compile(&world.proto("b")).unwrap()));
}
