//! A dump of a large mesh takes the memory of a piece, and a reader that stalls stops it. Alone in its binary, because it looks
//! at the memory of the process.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // It is a test.

mod kit;

use std::cell::Cell;
use std::rc::Rc;

use bytes::Bytes;
use kit::*;
use nuncio_admin::*;
use nuncio_core::Address;
use nuncio_proto::Message;
use nuncio_proto::envoy::admin::v3::{Certificate, Memory, ServerInfo};
use nuncio_proto::envoy::config::cluster::v3::Cluster;
use nuncio_stats::Store;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const CLUSTERS: usize = 30_000;

/// Clusters that are made as they are asked for, each about what istiod sends.
struct Mesh {
    raw: Bytes,
    made: Rc<Cell<usize>>,
    inner: Fake,
}

impl Mesh {
    fn new() -> Self {
        let inner = Fake::reference();
        let dynamic = inner.resources.iter().filter(|(kind, r)| *kind == ResourceKind::Cluster && !r.is_static);
        let raw = dynamic.map(|(_, r)| r.active.clone().unwrap().value).max_by_key(Bytes::len).unwrap();
        assert!(Cluster::decode(raw.clone()).is_ok());
        Self { raw, made: Rc::default(), inner: Fake::default() }
    }
}

impl Backend for Mesh {
    fn resources(&self, kind: ResourceKind) -> Box<dyn Iterator<Item = Resource>> {
        let (raw, made) = (self.raw.clone(), self.made.clone());
        let n = if kind == ResourceKind::Cluster { CLUSTERS } else { 0 };
        Box::new((0..n).map(move |i| {
            made.set(made.get() + 1);
            cluster(&format!("outbound|{i}||"), raw.clone())
        }))
    }
    fn stats(&self) -> Store {
        self.inner.stats()
    }
    fn bootstrap(&self) -> (Bytes, std::time::SystemTime) {
        self.inner.bootstrap()
    }
    fn version_info(&self, kind: ResourceKind) -> String {
        self.inner.version_info(kind)
    }
    fn clusters(&self) -> Box<dyn Iterator<Item = ClusterStatus>> {
        self.inner.clusters()
    }
    fn listeners(&self) -> Vec<ListenerStatus> {
        self.inner.listeners()
    }
    fn server_info(&self) -> ServerInfo {
        self.inner.server_info()
    }
    fn certificates(&self) -> Vec<Certificate> {
        self.inner.certificates()
    }
    fn unready_targets(&self) -> Vec<UnreadyTargets> {
        self.inner.unready_targets()
    }
    fn state(&self) -> State {
        self.inner.state()
    }
    fn not_ready_because(&self) -> Vec<String> {
        self.inner.not_ready_because()
    }
    fn runtime(&self) -> Runtime {
        self.inner.runtime()
    }
    fn modify_runtime(&self, changes: &[(String, String)]) -> Result<(), String> {
        self.inner.modify_runtime(changes)
    }
    fn log_levels(&self) -> Vec<(String, &'static str)> {
        self.inner.log_levels()
    }
    fn set_log_level(&self, component: Option<&str>, level: &str) {
        self.inner.set_log_level(component, level);
    }
    fn fail_health_checks(&self, fail: bool) {
        self.inner.fail_health_checks(fail);
    }
    fn drain_listeners(&self, how: Drain) {
        self.inner.drain_listeners(how);
    }
    fn quit(&self) {}
    fn reopen_logs(&self) {}
    fn memory(&self) -> Memory {
        self.inner.memory()
    }
}

/// Peak resident memory of this process in KiB.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

async fn open(address: &Address, target: &str) -> tokio::net::TcpStream {
    let mut io = tokio::net::TcpStream::connect(address.socket().unwrap()).await.unwrap();
    io.write_all(format!("GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).await.unwrap();
    io
}

#[test]
fn thirty_thousand_clusters_in_the_memory_of_a_piece() {
    let mesh = Mesh::new();
    let made = mesh.made.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let server = AdminServer::bind(&Address::Ip("127.0.0.1:0".parse().unwrap()), 0).unwrap();
        let at = server.local_address().clone();
        let client = async {
            // A reader that takes nothing: the dump stops once the sockets are full.
            let mut stalled = open(&at, "/config_dump?mask=dynamic_active_clusters").await;
            let mut before = usize::MAX;
            while made.get() != before {
                before = made.get();
                // The server makes all the progress that it can between two requests of another client.
                for _ in 0..50 {
                    assert_eq!(get(&at, "/ready").await.status, 200);
                }
            }
            assert!(before > 0 && before < CLUSTERS / 2, "{before} clusters were rendered for nobody");
            let start = peak();
            let mut total = 0;
            let mut buffer = vec![0; 64 << 10];
            loop {
                match stalled.read(&mut buffer).await.unwrap() {
                    0 => break,
                    n => total += n,
                }
            }
            assert_eq!(made.get(), CLUSTERS);
            assert!(buffer[..64].len() == 64 && total > CLUSTERS * 1000, "{total} bytes");
            let grown = peak().saturating_sub(start);
            assert!(grown < 8 << 10, "{grown} KiB more for {total} bytes");
        };
        tokio::select! {
            () = server.run(Rc::new(mesh), AdminOptions::open()) => {}
            () = client => {}
        }
    });
}
