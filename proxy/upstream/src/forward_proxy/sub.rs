//! Sub clusters: with `sub_clusters_config` every name that requests ask for is a DNS cluster `DFPCluster:<host>:<port>` of its own,
//! made on the control thread when it is first asked for, removed when nobody asked for it for `sub_cluster_ttl`.

use super::{ForwardSpec, Job, SubSpec, default_port, name};
use crate::cluster::Cluster;
use crate::host::millis;
use crate::manager::ClusterManager;
use hashbrown::HashMap;
use nuncio_core::diag::Report;
use nuncio_proto::envoy::config::cluster::v3::Cluster as ClusterProto;
use nuncio_proto::envoy::config::core::v3::address::Address as AddressKind;
use nuncio_proto::envoy::config::core::v3::socket_address::PortSpecifier;
use nuncio_proto::envoy::config::core::v3::{Address, SocketAddress};
use nuncio_proto::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use nuncio_proto::envoy::config::endpoint::v3::{ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How often a sub cluster that warms is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// One sub cluster.
#[derive(Debug)]
pub struct SubCluster {
    name: String,
    /// The cluster once it is in use; an outer none as long as it warms.
    made: watch::Sender<Option<Weak<Cluster>>>,
    last_used: AtomicU64,
}

impl SubCluster {
    /// Resolves when the cluster is in use.
    pub async fn ready(&self) {
        let _ = self.made.subscribe().wait_for(Option::is_some).await;
    }
    fn cluster(&self) -> Option<Arc<Cluster>> {
        self.made.borrow().as_ref()?.upgrade()
    }
    fn touch(&self) {
        self.last_used.store(millis(Instant::now()), Ordering::Relaxed);
    }
}

/// What asking for a sub cluster gives.
#[derive(Debug)]
pub enum SubLookup {
    Known,
    /// Wait for [`SubCluster::ready`].
    Loading(Arc<SubCluster>),
    /// `max_sub_clusters` are there.
    Overflow,
}

/// The sub clusters of one cluster, by `host:port`.
#[derive(Debug, Default)]
pub(crate) struct SubClusters(Mutex<HashMap<String, Arc<SubCluster>, foldhash::fast::RandomState>>);

impl SubClusters {
    pub(super) fn get(&self, key: &str) -> Option<Arc<Cluster>> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(key)?.cluster()
    }
    fn look_up(&self, spec: &SubSpec, authority: &str, default: u16) -> SubLookup {
        let key = name::key(authority, default);
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sub) = known.get(&key) {
            sub.touch();
            return if sub.cluster().is_some() { SubLookup::Known } else { SubLookup::Loading(sub.clone()) };
        }
        if known.len() >= spec.max {
            return SubLookup::Overflow;
        }
        let (host, port) = name::split(authority);
        let port = port.unwrap_or(default);
        let sub = Arc::new(SubCluster {
            name: format!("DFPCluster:{host}:{port}"),
            made: watch::Sender::new(None),
            last_used: AtomicU64::new(millis(Instant::now())),
        });
        known.insert(key, sub.clone());
        // Nobody hears of it if the control thread ended; then the process ends.
        let _ = spec.caches.jobs().send(Job::Cluster(Box::new(proto(&spec.template, &sub.name, host, port)), sub.clone()));
        SubLookup::Loading(sub)
    }
    /// Names of the sub clusters that nobody asked for within `ttl`; they are forgotten.
    fn idle(&self, ttl: Duration) -> Vec<String> {
        let now = millis(Instant::now());
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = known.extract_if(|_, sub| u128::from(now.saturating_sub(sub.last_used.load(Ordering::Relaxed))) > ttl.as_millis());
        idle.map(|(_, sub)| sub.name.clone()).collect()
    }
    /// Takes over the sub clusters of the cluster that this one replaces.
    pub(super) fn adopt(&self, old: &Self) {
        let theirs = std::mem::take(&mut *old.0.lock().unwrap_or_else(PoisonError::into_inner));
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(theirs);
    }
    fn all(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).drain().map(|(_, sub)| sub.name.clone()).collect()
    }
}

/// Asks `cluster` for the sub cluster of `authority`; none if it has no sub clusters.
pub fn look_up(cluster: &Cluster, authority: &str) -> Option<SubLookup> {
    let (ForwardSpec::Sub(spec), hosts) = cluster.forward()? else { return None };
    Some(hosts.subs.look_up(spec, authority, default_port(cluster)))
}

fn proto(template: &ClusterProto, name: &str, host: &str, port: u16) -> ClusterProto {
    let socket =
        SocketAddress { address: host.into(), port_specifier: Some(PortSpecifier::PortValue(port.into())), ..SocketAddress::default() };
    let address = Address { address: Some(AddressKind::SocketAddress(socket)) };
    let endpoint = Endpoint { address: Some(address), ..Endpoint::default() };
    let endpoint = LbEndpoint { host_identifier: Some(HostIdentifier::Endpoint(endpoint)), ..LbEndpoint::default() };
    let locality = LocalityLbEndpoints { lb_endpoints: vec![endpoint], ..LocalityLbEndpoints::default() };
    let assignment = ClusterLoadAssignment { cluster_name: name.into(), endpoints: vec![locality], ..ClusterLoadAssignment::default() };
    ClusterProto { name: name.into(), load_assignment: Some(assignment), ..template.clone() }
}

/// Adds a sub cluster and waits until it is in use. Control thread.
pub(super) async fn make(manager: Arc<ClusterManager>, proto: Box<ClusterProto>, sub: Arc<SubCluster>) {
    let mut report = Report::new();
    if manager.apply(&proto, true, &mut report).is_none() {
        log::warn!("sub cluster {}: {}", sub.name, report.summary());
        return;
    }
    drop(proto);
    let began = Instant::now();
    loop {
        if let Some(cluster) = manager.get(&sub.name) {
            sub.made.send_replace(Some(Arc::downgrade(&cluster)));
            return;
        }
        // Whoever waits has given up long before.
        if began.elapsed() > Duration::from_secs(60) {
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Removes sub clusters that nobody uses, for as long as `cluster` lives, and then all of them. Control thread.
async fn keep(cluster: Weak<Cluster>, subs: Arc<SubClusters>, ttl: Duration, manager: Weak<ClusterManager>) {
    while cluster.upgrade().is_some_and(|c| !c.is_retired()) {
        // Often enough to see that the cluster went.
        tokio::time::sleep(ttl.min(Duration::from_secs(1))).await;
        let Some(manager) = manager.upgrade() else { return };
        for name in subs.idle(ttl) {
            log::debug!("{name} was not used for long");
            manager.remove(&name);
        }
    }
    let Some(manager) = manager.upgrade() else { return };
    for name in subs.all() {
        manager.remove(&name);
    }
}

/// Makes the sub clusters that are wanted from the start, and looks after all of them. Control thread.
pub(crate) fn start(cluster: &Arc<Cluster>, manager: &Arc<ClusterManager>) {
    let Some((ForwardSpec::Sub(spec), hosts)) = cluster.forward() else { return };
    for (host, port) in &spec.preresolve {
        hosts.subs.look_up(spec, host, *port);
    }
    tokio::task::spawn_local(keep(Arc::downgrade(cluster), hosts.subs.clone(), spec.ttl, Arc::downgrade(manager)));
}
