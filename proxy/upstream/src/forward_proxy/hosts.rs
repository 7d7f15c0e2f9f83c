//! Hosts of a dynamic forward proxy cluster: one for each name of its cache. Made on the control thread, picked on workers.

use super::{CacheEntry, DYNAMIC_HOST, DYNAMIC_PORT, ForwardSpec, default_port, name};
use crate::cluster::Cluster;
use crate::context::LbContext;
use crate::host::{Health, Host};
use arc_swap::ArcSwap;
use hashbrown::HashMap;
use nuncio_core::StreamInfo;
use std::sync::{Arc, Mutex, PoisonError};

type Hosts = HashMap<Box<str>, (Arc<Host>, Arc<CacheEntry>), foldhash::fast::RandomState>;

/// The hosts by name.
#[derive(Debug, Default)]
pub(crate) struct ForwardHosts {
    hosts: ArcSwap<Hosts>,
    changing: Mutex<()>,
    /// Of `sub_clusters_config`.
    pub(super) subs: Arc<super::sub::SubClusters>,
}

impl ForwardHosts {
    /// Every host.
    pub(crate) fn all(&self) -> Vec<Arc<Host>> {
        self.hosts.load().values().map(|(host, _)| host.clone()).collect()
    }
    /// Takes the states of the hosts of the cluster that this one replaces, so that their connections and counters live on.
    pub(crate) fn adopt(&self, old: &Self) {
        self.subs.adopt(&old.subs);
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let (theirs, mine) = (old.hosts.load(), self.hosts.load());
        let mut after = mine.as_ref().clone();
        for (key, (host, _)) in after.iter_mut() {
            if let Some((known, _)) = theirs.get(key) {
                *host = Arc::new(Host { state: known.state.clone(), ..host.describe() });
            }
        }
        self.hosts.store(Arc::new(after));
    }
    /// The name has these addresses now. True if it is new.
    pub(crate) fn update(&self, entry: &Arc<CacheEntry>) -> bool {
        let mut addresses = entry.addresses().into_iter();
        let Some(address) = addresses.next() else { return false };
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut after = self.hosts.load().as_ref().clone();
        let known = after.get(&entry.key).map(|(host, _)| host.state.clone());
        let new = known.is_none();
        let mut host = Host::found(address, entry.key.as_ref().into());
        host.additional = addresses.collect();
        if let Some(state) = known {
            host.state = state;
        }
        after.insert(entry.key.clone(), (Arc::new(host), entry.clone()));
        self.hosts.store(Arc::new(after));
        new
    }
    /// Forgets a name. True if it was known.
    pub(crate) fn forget(&self, key: &str) -> bool {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut after = self.hosts.load().as_ref().clone();
        let Some((host, _)) = after.remove(key) else { return false };
        host.set_removed(true);
        self.hosts.store(Arc::new(after));
        true
    }
    /// The sub cluster whose host this is.
    pub(crate) fn owner(&self, spec: &ForwardSpec, host: &Host) -> Option<Arc<Cluster>> {
        match (spec, host.address.socket()) {
            (ForwardSpec::Sub(_), Some(address)) => self.subs.get(&name::key(&host.hostname, address.port())),
            _ => None,
        }
    }
    fn get(&self, key: &str) -> Option<Arc<Host>> {
        let hosts = self.hosts.load();
        let (host, entry) = hosts.get(key)?;
        if host.health() == Health::Unhealthy {
            return None;
        }
        entry.touch();
        Some(host.clone())
    }
}

/// Filter state `key` of the stream, else of its connection.
fn state(info: &StreamInfo, key: &str) -> Option<String> {
    let of_stream = info.filter_state.get(key).and_then(|o| o.as_string());
    of_stream.or_else(|| info.connection.filter_state.borrow().get(key).and_then(|o| o.as_string()))
}

/// Where a stream wants to go, as the authority of its request or its SNI say it, and the port of names without one.
pub fn wanted(info: Option<&StreamInfo>, cx: &LbContext<'_>, default: u16) -> Option<(String, u16)> {
    let host = info.and_then(|i| state(i, DYNAMIC_HOST)).or_else(|| match cx.request {
        Some(request) => Some(request.authority.as_str().to_string()),
        None => cx.downstream?.requested_server_name.as_ref().map(|n| n.as_str().to_string()),
    })?;
    let port = info.and_then(|i| state(i, DYNAMIC_PORT)).and_then(|p| p.parse().ok()).filter(|p| *p > 0);
    (!host.is_empty()).then(|| (host, port.unwrap_or(default)))
}

/// The host that a stream wants, or the sub cluster that has it.
pub(crate) enum Picked {
    Host(Arc<Host>),
    Cluster(Arc<Cluster>),
}

/// Picks for a dynamic forward proxy cluster.
pub(crate) fn pick(cluster: &Cluster, spec: &ForwardSpec, hosts: &ForwardHosts, cx: &LbContext<'_>) -> Option<Picked> {
    let (host, port) = wanted(cx.stream, cx, default_port(cluster))?;
    match spec {
        ForwardSpec::Cache(_) => hosts.get(&name::key(&host, port)).map(Picked::Host),
        ForwardSpec::Sub(_) => hosts.subs.get(&name::key(&host, port)).map(Picked::Cluster),
    }
}
