//! Tests of the whole crate: clusters from YAML, real loopback servers, one worker per test.

mod aggregate;
mod balance;
mod compile;
mod distribution;
mod endpoints;
mod forward_proxy;
mod health;
mod manager;
mod outlier;
mod pool;
mod preconnect;
mod runtime;
mod secure;
mod subset;
mod weight;

use crate::cluster::{Cluster, ClusterCx};
use crate::shared::Shared;
use crate::{ClusterManager, Host, LbContext, ManagerOptions, OpenOptions, UpstreamStream, Upstreams};
use nuncio_core::diag::Report;
use nuncio_core::registry::{Registry, Server};
use nuncio_core::test_kit as kit;
use nuncio_core::views::HostView;
use nuncio_core::{Frame, RequestHead, ResponseHead, StreamError};
use nuncio_proto::envoy::config::bootstrap::v3::ClusterManager as ClusterManagerProto;
use nuncio_proto::envoy::config::cluster::v3::Cluster as ClusterProto;
use nuncio_proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use nuncio_proto::json::{UnknownFields, parse_text};
use nuncio_tls::SecretStore;
use std::collections::HashMap;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub(crate) fn proto(yaml: &str) -> ClusterProto {
    parse_text(yaml, UnknownFields::Refuse).unwrap_or_else(|e| panic!("{e:?}")).value
}

pub(crate) fn assignment(yaml: &str) -> ClusterLoadAssignment {
    parse_text(yaml, UnknownFields::Refuse).unwrap_or_else(|e| panic!("{e:?}")).value
}

pub(crate) fn server() -> Arc<Server> {
    kit::server(kit::fields([]))
}

pub(crate) fn compile_with(server: &Arc<Server>, shared: &Arc<Shared>, proto: &ClusterProto) -> Result<(Arc<Cluster>, Report), Report> {
    let mut report = Report::new();
    let (secrets, registry) = (SecretStore::new(), Registry::default());
    let mut cx = ClusterCx { server, secrets: &secrets, registry: &registry, shared, report: &mut report, added_via_api: true };
    match Cluster::compile(proto, &mut cx) {
        Some(cluster) if !report.has_errors() => Ok((cluster, report)),
        _ => Err(report),
    }
}

/// Compiles a cluster that must be right.
pub(crate) fn cluster(yaml: &str) -> Arc<Cluster> {
    match compile_with(&server(), &Arc::default(), &proto(yaml)) {
        Ok((cluster, _)) => cluster,
        Err(report) => panic!("{}", report.summary()),
    }
}

/// A STATIC cluster of `hosts` (`ip:port` and further fields of the endpoint), with more YAML in front.
pub(crate) fn static_cluster(more: &str, hosts: &[(&str, &str)]) -> String {
    let mut yaml = format!("name: test\n{more}\nload_assignment:\n  cluster_name: test\n  endpoints:\n");
    for (address, extra) in hosts {
        let (ip, port) = address.rsplit_once(':').unwrap();
        yaml += &format!(
            "  - {{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: '{}', port_value: {port}}}}}}}{}}}]}}\n",
            ip.trim_matches(['[', ']']),
            if extra.is_empty() { String::new() } else { format!(", {extra}") }
        );
    }
    yaml
}

pub(crate) fn manager(cluster_manager: &str) -> Arc<ClusterManager> {
    manager_of(server(), cluster_manager)
}

pub(crate) fn manager_of(server: Arc<Server>, cluster_manager: &str) -> Arc<ClusterManager> {
    let bootstrap: ClusterManagerProto = parse_text(cluster_manager, UnknownFields::Refuse).unwrap_or_else(|e| panic!("{e:?}")).value;
    let mut report = Report::new();
    let options =
        ManagerOptions { secrets: SecretStore::new(), registry: Arc::default(), slots: server.clusters.clone(), server, bootstrap };
    let manager = ClusterManager::new(options, &mut report);
    assert!(!report.has_errors(), "{}", report.summary());
    manager
}

/// How often each host is picked.
pub(crate) fn spread(cluster: &Arc<Cluster>, picks: usize, cx: &LbContext<'_>) -> HashMap<String, usize> {
    let upstreams = Upstreams::current();
    let mut count = HashMap::new();
    for _ in 0..picks {
        let host = upstreams.pick(cluster, cx).map_or_else(|| "none".to_string(), |h| h.address().to_string());
        *count.entry(host).or_insert(0) += 1;
    }
    count
}

/// Runs `test` on a worker-like thread.
pub(crate) fn run<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        tokio::time::timeout(std::time::Duration::from_secs(30), test).await.expect("the test hangs");
    });
}

/// Waits until `done` says so; panics after 20 s.
pub(crate) async fn until(what: &str, done: impl Fn() -> bool) {
    for _ in 0..4000 {
        if done() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    panic!("never: {what}");
}

/// An HTTP/1 server that answers every request alike, and counts.
pub(crate) struct TestServer {
    pub address: SocketAddr,
    pub connections: Arc<AtomicUsize>,
    pub requests: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

/// What a test server does.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Manner {
    /// Answers and keeps the connection.
    KeepAlive,
    /// Answers and closes without having said so.
    CloseAfter,
    /// Closes at once.
    CloseAtOnce,
    /// Answers after a while.
    Slow(u64),
}

impl TestServer {
    pub(crate) async fn start(manner: Manner) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (connections, requests) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (c, r) = (connections.clone(), requests.clone());
        let task = tokio::task::spawn_local(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                c.fetch_add(1, Ordering::SeqCst);
                let r = r.clone();
                if manner == Manner::CloseAtOnce {
                    continue;
                }
                tokio::task::spawn_local(async move {
                    let mut seen = Vec::new();
                    loop {
                        while let Some(end) = seen.windows(4).position(|w| w == b"\r\n\r\n") {
                            seen.drain(..end + 4);
                            r.fetch_add(1, Ordering::SeqCst);
                            if let Manner::Slow(ms) = manner {
                                tokio::time::sleep(std::time::Duration::from_millis(ms)).await;
                            }
                            if socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.is_err() {
                                return;
                            }
                            if manner == Manner::CloseAfter {
                                return;
                            }
                        }
                        if !matches!(socket.read_buf(&mut seen).await, Ok(n) if n > 0) {
                            return;
                        }
                    }
                });
            }
        });
        Self { address, connections, requests, task }
    }
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) fn get() -> RequestHead {
    RequestHead::new(http::Method::GET, "test.local", "/")
}

/// The response's head, body and the stream at its end.
pub(crate) async fn finish(mut stream: UpstreamStream) -> Result<(ResponseHead, Vec<u8>), StreamError> {
    let head = poll_fn(|cx| stream.poll_response(cx)).await?;
    let mut body = Vec::new();
    while let Some(frame) = poll_fn(|cx| stream.poll_frame(cx)).await {
        if let Frame::Data(data) = frame? {
            body.extend_from_slice(&data);
        }
    }
    Ok((head, body))
}

/// One GET to whatever host is picked.
pub(crate) async fn fetch(cluster: &Arc<Cluster>) -> Result<(ResponseHead, Vec<u8>), StreamError> {
    let upstreams = Upstreams::current();
    let host = upstreams.pick(cluster, &LbContext::default()).ok_or(StreamError::LocalReset("no_healthy_upstream"))?;
    finish(open(cluster, &host).await?).await
}

pub(crate) async fn open(cluster: &Arc<Cluster>, host: &Arc<Host>) -> Result<UpstreamStream, StreamError> {
    Upstreams::current().open(cluster, host, &get(), true, &OpenOptions::default()).await
}
