//! The clusters of the process by name: warming, endpoint updates, DNS, health checks, timers. Control thread; `Sync` so that
//! tests and admin may ask from elsewhere.

use crate::cluster::Cluster;
use nuncio_core::diag::Report;
use nuncio_core::registry::{Registry, Server};
use nuncio_core::views::ClusterSlots;
use nuncio_proto::envoy::config::bootstrap::v3::ClusterManager as ClusterManagerProto;
use nuncio_proto::envoy::config::cluster::v3 as pb;
use nuncio_proto::envoy::config::core::v3::ConfigSource;
use nuncio_proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use nuncio_tls::SecretStore;
use std::sync::Arc;

/// What the manager is built from.
pub struct ManagerOptions {
    pub server: Arc<Server>,
    pub secrets: Arc<SecretStore>,
    pub registry: Arc<Registry>,
    pub slots: Arc<ClusterSlots>,
    /// `Bootstrap.cluster_manager`: local cluster, event log, bind config.
    pub bootstrap: ClusterManagerProto,
}

/// An endpoint assignment that some cluster wants.
#[derive(Clone, Debug)]
pub struct EdsWanted {
    /// `service_name`, else the cluster's name.
    pub name: Arc<str>,
    /// `eds_cluster_config.eds_config`.
    pub source: Arc<ConfigSource>,
}

/// How a worker hears of hosts and clusters that left.
#[derive(Debug, Default)]
pub struct WorkerFeed {}

/// What `apply` did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// The very same configuration is in use.
    Unchanged,
    /// In use now.
    Active,
    /// Waits for endpoints, DNS or secrets; what it replaces serves until then.
    Warming,
}

/// Clusters by name.
pub struct ClusterManager {
    options: ManagerOptions,
}

impl ClusterManager {
    /// A manager without clusters. Findings about `bootstrap` go to `report`.
    pub fn new(options: ManagerOptions, _report: &mut Report) -> Arc<Self> {
        Arc::new(Self { options })
    }
    /// The slots that clusters are put into.
    pub fn slots(&self) -> &Arc<ClusterSlots> {
        &self.options.slots
    }
    /// What [`crate::Upstreams::install`] of a worker takes.
    pub fn worker_feed(&self) -> WorkerFeed {
        WorkerFeed::default()
    }
    /// Adds or replaces a cluster. Errors refuse it alone; warnings go to `report` either way.
    pub fn apply(&self, _proto: &pb::Cluster, _added_via_api: bool, _report: &mut Report) -> Option<Applied> {
        None
    }
    /// Removes a cluster that came from CDS; false if there is none, or it is from the bootstrap.
    pub fn remove(&self, _name: &str) -> bool {
        false
    }
    /// Assignments to subscribe to, each name once, active and warming clusters alike.
    pub fn eds_wanted(&self) -> Vec<EdsWanted> {
        Vec::new()
    }
    /// Gives an assignment to every cluster that wants it. None: the resource was removed, which keeps the hosts. Errors
    /// refuse the assignment.
    pub fn update_endpoints(&self, _name: &str, _assignment: Option<&ClusterLoadAssignment>) -> Result<(), Report> {
        Ok(())
    }
    /// `initial_fetch_timeout` of an assignment fired: clusters that wait for it go on without endpoints.
    pub fn endpoints_timeout(&self, _name: &str) {}
    /// A secret arrived, or waiting for it ended: clusters that wait for secrets are looked at again.
    pub fn secrets_changed(&self) {}
    /// Clusters in use, by name.
    pub fn active(&self) -> Vec<Arc<Cluster>> {
        Vec::new()
    }
    /// Clusters that wait, by name.
    pub fn warming(&self) -> Vec<Arc<Cluster>> {
        Vec::new()
    }
    /// The cluster in use under `name`.
    pub fn get(&self, _name: &str) -> Option<Arc<Cluster>> {
        None
    }
    /// Calls `callback` on the control thread whenever the set of wanted assignments, or warming, changed.
    pub fn on_change(&self, _callback: Box<dyn Fn() + Send + Sync>) {}
    /// Timers, DNS and health checks. Runs for ever on the control thread, inside a `LocalSet`.
    pub async fn run(self: Arc<Self>) {
        std::future::pending::<()>().await;
    }
}
