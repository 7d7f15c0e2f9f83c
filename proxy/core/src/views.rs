//! What filters and formatters may see of routes, clusters and hosts, and the slots through which routes reach clusters.
//! Implemented by nuncio-route and nuncio-upstream; the data path downcasts with `as_any` where it needs more.

use crate::{Address, HttpVersion};
use arc_swap::{ArcSwapOption, Guard};
use nuncio_proto::Struct;
use nuncio_proto::envoy::config::core::v3::{Locality, Metadata};
use std::any::Any;
use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Compiled `typed_per_filter_config` of one filter at one level.
#[derive(Clone, Debug)]
pub enum PerFilterConfig {
    /// `FilterConfig.disabled`.
    Disabled,
    /// What the filter's factory compiled.
    Config(Arc<dyn Any + Send + Sync>),
}

/// A matched route (with its weighted cluster already chosen).
pub trait RouteView: Any + Debug + Send + Sync {
    /// `Route.name`, empty if none.
    fn name(&self) -> &Arc<str>;
    /// `VirtualHost.name`.
    fn virtual_host(&self) -> &Arc<str>;
    /// `RouteConfiguration.name`.
    fn route_config(&self) -> &Arc<str>;
    /// The cluster that requests go to; none for redirect and direct response, and for cluster_header.
    fn cluster_name(&self) -> Option<&Arc<str>>;
    /// `Route.metadata`.
    fn metadata(&self) -> Option<&Metadata>;
    /// `VirtualHost.metadata`.
    fn virtual_host_metadata(&self) -> Option<&Metadata> {
        None
    }
    /// Most specific configuration of filter instance `filter`: weighted cluster, route, virtual host, table.
    fn filter_config(&self, filter: &str) -> Option<&PerFilterConfig>;
    /// Every configuration of `filter`, least specific first.
    fn filter_configs(&self, filter: &str, each: &mut dyn FnMut(&PerFilterConfig));
    /// For downcasts.
    fn as_any(&self) -> &dyn Any;
}

/// A cluster.
pub trait ClusterView: Any + Debug + Send + Sync {
    /// `Cluster.name`.
    fn name(&self) -> &Arc<str>;
    /// `alt_stat_name`, else the name (`%UPSTREAM_CLUSTER%`).
    fn observability_name(&self) -> &Arc<str>;
    /// `Cluster.metadata`.
    fn metadata(&self) -> Option<&Metadata>;
    /// Protocol towards the hosts for a request that came as `downstream`.
    fn upstream_protocol(&self, downstream: HttpVersion) -> HttpVersion;
    /// For downcasts.
    fn as_any(&self) -> &dyn Any;
}

/// An upstream host.
pub trait HostView: Any + Debug + Send + Sync {
    fn address(&self) -> &Address;
    /// `Endpoint.hostname`, or the DNS name; empty if none.
    fn hostname(&self) -> &str;
    /// `LbEndpoint.metadata`.
    fn metadata(&self) -> Option<&Metadata>;
    fn locality(&self) -> Option<&Locality>;
    /// For downcasts.
    fn as_any(&self) -> &dyn Any;
}

/// `metadata.filter_metadata[namespace]`.
pub fn filter_metadata<'a>(metadata: Option<&'a Metadata>, namespace: &str) -> Option<&'a Struct> {
    metadata?.filter_metadata.get(namespace)
}

/// The place of a cluster name. Routes keep the slot; the cluster behind it comes, changes and goes.
#[derive(Debug)]
pub struct ClusterSlot {
    pub name: Arc<str>,
    known: AtomicBool,
    current: ArcSwapOption<Arc<dyn ClusterView>>,
}

impl ClusterSlot {
    /// The cluster, none if it is unknown or removed.
    pub fn get(&self) -> Option<Arc<dyn ClusterView>> {
        self.current.load().as_ref().map(|c| Arc::clone(c.as_ref()))
    }
    /// The cluster without touching its reference count.
    pub fn load(&self) -> Guard<Option<Arc<Arc<dyn ClusterView>>>> {
        self.current.load()
    }
    /// A cluster of this name is warming. Control thread only.
    pub fn expect(&self) {
        self.known.store(true, Ordering::Relaxed);
    }
    /// Whether a cluster of this name is in use or warming: what `validate_clusters` asks.
    pub fn is_known(&self) -> bool {
        self.known.load(Ordering::Relaxed)
    }
    /// Puts a cluster into the slot, or takes it out. Control thread only.
    pub fn set(&self, cluster: Option<Arc<dyn ClusterView>>) {
        self.known.store(cluster.is_some(), Ordering::Relaxed);
        self.current.store(cluster.map(Arc::new));
    }
}

/// Every slot by name. Shared by route compilation, the cluster manager and `cluster_header` routes.
#[derive(Debug, Default)]
pub struct ClusterSlots {
    slots: Mutex<HashMap<Arc<str>, Arc<ClusterSlot>, foldhash::fast::RandomState>>,
    local: OnceLock<Arc<ClusterSlot>>,
}

impl ClusterSlots {
    /// The slot of `name`, made if there is none.
    pub fn slot(&self, name: &str) -> Arc<ClusterSlot> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.get(name) {
            return slot.clone();
        }
        let name: Arc<str> = name.into();
        let slot = Arc::new(ClusterSlot { name: name.clone(), known: AtomicBool::new(false), current: ArcSwapOption::empty() });
        slots.insert(name, slot.clone());
        slot
    }
    /// The slot of `name`, if it exists; for names that come from requests.
    pub fn lookup(&self, name: &str) -> Option<Arc<ClusterSlot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }
    /// Says that the cluster `name` is the one that this proxy belongs to (`ClusterManager.local_cluster_name`). The first call counts.
    pub fn set_local(&self, name: &str) {
        let slot = self.slot(name);
        self.local.get_or_init(|| slot);
    }
    /// The slot of the cluster that this proxy belongs to; none if the bootstrap names none.
    pub fn local(&self) -> Option<&Arc<ClusterSlot>> {
        self.local.get()
    }
    /// Forgets slots without a cluster that nothing else holds.
    pub fn sweep(&self) {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, slot| Arc::strong_count(slot) > 1 || slot.load().is_some());
    }
}
