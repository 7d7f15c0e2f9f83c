//! Listeners and clusters as control planes send them, of any bytes: they compile or are refused by a word, and nothing panics.

use nuncio_core::diag::Report;
use nuncio_core::registry::{Registry, Server};
use nuncio_core::test_kit;
use nuncio_hcm::HcmFactory;
use nuncio_listener::drain::DrainStrategy;
use nuncio_listener::{ListenerManager, ListenerManagerCx, TerminalRegistry, spawn_workers};
use nuncio_proto::envoy::config::cluster::v3::Cluster;
use nuncio_proto::envoy::config::listener::v3::Listener;
use nuncio_proto::json::{UnknownFields, parse_text};
use nuncio_proto::{Message, Name};
use nuncio_tls::SecretStore;
use nuncio_upstream::{ClusterManager, ManagerOptions};
use std::sync::Arc;

/// Wire bytes, or YAML: seeds that people are to read.
fn read<M: Message + Default + Name>(data: &[u8]) -> Option<M> {
    match std::str::from_utf8(data).ok().filter(|text| text.starts_with("---\n")) {
        Some(text) => Some(parse_text::<M>(text, UnknownFields::Refuse).ok()?.value),
        None => M::decode(data).ok(),
    }
}

fn lab() -> (Arc<Server>, Arc<Registry>) {
    thread_local! {
        static REGISTRY: Arc<Registry> = {
            let mut registry = Registry::default();
            nuncio_filters::register(&mut registry);
            nuncio_istio::register(&mut registry);
            Arc::new(registry)
        };
    }
    (test_kit::server(Default::default()), REGISTRY.with(Arc::clone))
}

/// LDS.
pub fn listener(data: &[u8]) {
    let Some(listener) = read::<Listener>(data) else { return };
    let (server, registry) = lab();
    let clusters = server.clusters.clone();
    let manager = HcmFactory {
        registry: registry.clone(),
        routes: Arc::default(),
        clusters: clusters.clone(),
        extensions: Arc::default(),
        discovery: Arc::default(),
    };
    let terminals = TerminalRegistry { factories: vec![Box::new(manager), Box::new(nuncio_tcp::TcpProxyFactory::new(clusters))] };
    let cx = ListenerManagerCx {
        server,
        registry,
        terminals: Arc::new(terminals),
        secrets: SecretStore::new(),
        drain_strategy: DrainStrategy::Immediate,
    };
    let manager = ListenerManager::new(cx, spawn_workers(0, |_| {}).unwrap());
    let mut report = Report::new();
    if manager.compile(&listener, &mut report).is_none() {
        assert!(report.has_errors(), "refused without a word");
    }
}

/// CDS.
pub fn cluster(data: &[u8]) {
    let Some(cluster) = read::<Cluster>(data) else { return };
    let (server, registry) = lab();
    let slots = server.clusters.clone();
    let options = ManagerOptions { server, secrets: SecretStore::new(), registry, slots, bootstrap: Default::default() };
    let mut report = Report::new();
    let manager = ClusterManager::new(options, &mut report);
    let mut report = Report::new();
    if manager.apply(&cluster, true, &mut report).is_none() {
        assert!(report.has_errors(), "refused without a word");
    }
}
