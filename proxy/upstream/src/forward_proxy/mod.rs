//! The dynamic forward proxy: clusters whose hosts are what requests ask for, resolved when they are first asked for. Filters
//! (`dynamic_forward_proxy`, `sni_dynamic_forward_proxy`) look names up in a [`DnsCache`] and wait; the cluster of the same cache has
//! the host by then. Names are resolved, and sub clusters made, on the control thread; everything else happens on workers.
//! Source: Envoy docs "HTTP dynamic forward proxy", `source/extensions/common/dynamic_forward_proxy`,
//! `source/extensions/clusters/dynamic_forward_proxy`.

mod cache;
mod compile;
pub(crate) mod hosts;
mod name;
pub(crate) mod sub;
mod wait;

pub use cache::{CacheEntry, DnsCache, Lookup, PendingLookup};
pub(crate) use compile::{ForwardSpec, SubSpec, cluster};
pub use hosts::wanted;
pub use sub::{SubCluster, SubLookup, look_up as sub_cluster};
pub use wait::{WaitForLookup, prepare, wait};

use crate::cluster::Cluster;
use crate::dns::DnsService;
use crate::manager::ClusterManager;
use nuncio_core::diag::{At, Report};
use nuncio_core::registry::Server;
use nuncio_proto::envoy::config::cluster::v3::Cluster as ClusterProto;
use nuncio_proto::envoy::extensions::common::dynamic_forward_proxy::v3::DnsCacheConfig;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::mpsc;

/// Filter state that names the host and the port to go to, before authority and SNI.
pub const DYNAMIC_HOST: &str = "envoy.upstream.dynamic_host";
pub const DYNAMIC_PORT: &str = "envoy.upstream.dynamic_port";

/// What workers ask the control thread for.
pub(crate) enum Job {
    Resolve(Weak<DnsCache>, Arc<CacheEntry>),
    Cluster(Box<ClusterProto>, Arc<SubCluster>),
}

/// Every DNS cache of a server, by name.
#[derive(Debug)]
pub struct DnsCaches {
    known: Mutex<HashMap<String, (DnsCacheConfig, Weak<DnsCache>)>>,
    dns: Arc<DnsService>,
    jobs: mpsc::UnboundedSender<Job>,
    waiting: Mutex<Option<mpsc::UnboundedReceiver<Job>>>,
}

impl DnsCaches {
    /// The caches of `server`: one set for clusters and filters alike.
    pub fn of(server: &Arc<Server>) -> Arc<Self> {
        static ALL: Mutex<Vec<(Weak<Server>, Arc<DnsCaches>)>> = Mutex::new(Vec::new());
        let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|(server, _)| server.strong_count() > 0);
        if let Some((_, caches)) = all.iter().find(|(known, _)| std::ptr::eq(known.as_ptr(), Arc::as_ptr(server))) {
            return caches.clone();
        }
        let (jobs, waiting) = mpsc::unbounded_channel();
        let caches = Arc::new(Self { known: Mutex::default(), dns: Arc::default(), jobs, waiting: Mutex::new(Some(waiting)) });
        all.push((Arc::downgrade(server), caches.clone()));
        caches
    }
    /// The cache that `config` describes. All who name a cache must say the same of it.
    pub fn cache(&self, config: &DnsCacheConfig, server: &Arc<Server>, at: &At<'_>, report: &mut Report) -> Option<Arc<DnsCache>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, (_, cache)| cache.strong_count() > 0);
        if let Some((said, cache)) = known.get(&config.name) {
            if said != config {
                report.error(
                    &at.field("name"),
                    config.name.as_str(),
                    "a DNS cache of this name has other settings; say the same, or name another",
                );
                return None;
            }
            if let Some(cache) = cache.upgrade() {
                return Some(cache);
            }
        }
        let spec = compile::cache(config, at, report)?;
        let cache = DnsCache::new(&config.name, spec, self.dns.clone(), self.jobs.clone(), &server.stats.root());
        known.insert(config.name.clone(), (config.clone(), Arc::downgrade(&cache)));
        Some(cache)
    }
    pub(crate) fn jobs(&self) -> &mpsc::UnboundedSender<Job> {
        &self.jobs
    }
}

/// Serves what workers ask for. Control thread; runs as long as `manager` does.
pub(crate) async fn run(caches: Arc<DnsCaches>, manager: Weak<ClusterManager>) {
    let Some(mut jobs) = caches.waiting.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
    drop(caches);
    while let Some(job) = jobs.recv().await {
        match job {
            Job::Resolve(cache, entry) => drop(tokio::task::spawn_local(cache::resolve(cache, entry))),
            Job::Cluster(proto, sub) => {
                let Some(manager) = manager.upgrade() else { return };
                tokio::task::spawn_local(sub::make(manager, proto, sub));
            }
        }
    }
}

/// Whether requests to `cluster` are for the dynamic forward proxy at all.
pub fn is_forward_proxy(cluster: &Cluster) -> bool {
    cluster.forward_spec().is_some()
}

/// Whether `cluster` has a sub cluster for every name (`sub_clusters_config`).
pub fn has_sub_clusters(cluster: &Cluster) -> bool {
    matches!(cluster.forward_spec(), Some(ForwardSpec::Sub(_)))
}

/// Port of names without one: 443 if the cluster speaks TLS, else 80.
pub fn default_port(cluster: &Cluster) -> u16 {
    let secure = cluster.spec.transports.first().is_some_and(|t| t.socket.tls().is_some());
    if secure { 443 } else { 80 }
}
