//! CDS and EDS. Clusters are compiled by the cluster manager, which also lets them warm; here are batches, raw bytes, subscriptions.

use crate::control::{Control, reason};
use crate::needs::Need;
use crate::raw::Standing;
use crate::source;
use crate::subscriptions::Kind;
use nuncio_core::diag::{At, Report};
use nuncio_core::views::ClusterView;
use nuncio_proto::Message;
use nuncio_proto::envoy::config::cluster::v3::Cluster;
use nuncio_proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use nuncio_upstream::manager::Applied;
use nuncio_xds::{Refused, Update};
use std::rc::Rc;
use std::sync::Arc;

/// Resources compiled between two yields: about a millisecond's work.
pub(crate) const BATCH: usize = 16;

impl Control {
    pub(crate) async fn update_clusters(self: &Rc<Self>, update: &Update) -> Vec<Refused> {
        let mut refused = Vec::new();
        for (i, resource) in update.resources.iter().enumerate() {
            if i % BATCH == BATCH - 1 {
                tokio::task::yield_now().await;
            }
            let standing = self.raw(Kind::Cluster).borrow().standing(&resource.name, &resource.value);
            match standing {
                Standing::Static => {
                    log::warn!(target: "upstream", "CDS: cluster '{}' is in the bootstrap and is not changed", resource.name);
                    continue;
                }
                Standing::Unchanged => continue,
                Standing::Changed => {}
            }
            match self.apply_cluster(&resource.value, true) {
                Ok(applied) => self.raw(Kind::Cluster).borrow_mut().accept(resource, applied == Applied::Warming),
                Err(report) => refused.push(Refused { name: resource.name.clone(), reason: reason(&report) }),
            }
        }
        for (i, name) in update.removed.iter().enumerate() {
            if i % BATCH == BATCH - 1 {
                tokio::task::yield_now().await;
            }
            self.clusters.remove(name);
            self.raw(Kind::Cluster).borrow_mut().remove(name);
        }
        if !update.removed.is_empty() {
            self.shared.clusters.sweep();
        }
        refused
    }

    /// Decodes, checks and applies one cluster.
    pub(crate) fn apply_cluster(&self, value: &[u8], added_via_api: bool) -> Result<Applied, Report> {
        let proto = Cluster::decode(value).map_err(|e| Self::undecodable("Cluster", e))?;
        let mut report = Report::new();
        if let Some(config) = proto.eds_cluster_config.as_ref().and_then(|e| e.eds_config.as_ref()) {
            let root = At::Root;
            let at = root.field("eds_cluster_config");
            source::check(config, &at.field("eds_config"), &mut report);
        }
        Self::findings(Kind::Cluster, &proto.name, report)?;
        let mut report = Report::new();
        let applied = self.clusters.apply(&proto, added_via_api, &mut report);
        Self::findings(Kind::Cluster, &proto.name, report)?;
        applied.ok_or_else(Report::new)
    }

    pub(crate) async fn update_endpoints(self: &Rc<Self>, update: &Update) -> Vec<Refused> {
        let mut refused = Vec::new();
        // istiod repeats all assignments after each CDS request: only a warming cluster needs to see one again.
        let anyone_waits = self.clusters.is_warming();
        for (i, resource) in update.resources.iter().enumerate() {
            if i % BATCH == BATCH - 1 {
                tokio::task::yield_now().await;
            }
            if !anyone_waits && self.raw(Kind::Endpoint).borrow().is_unchanged(&resource.name, &resource.value) {
                self.count_endpoints(&resource.name, "update_no_rebuild");
                continue;
            }
            let result = match ClusterLoadAssignment::decode(resource.value.as_ref()) {
                Err(e) => Err(format!("is no valid ClusterLoadAssignment: {e}")),
                Ok(assignment) if *assignment.cluster_name != *resource.name => {
                    Err(format!("cluster_name '{}' is not the name of the resource", assignment.cluster_name))
                }
                Ok(assignment) => self.clusters.update_endpoints(&resource.name, Some(&assignment)).map_err(|report| reason(&report)),
            };
            match result {
                Ok(()) => {
                    self.raw(Kind::Endpoint).borrow_mut().accept(resource, false);
                    self.count_endpoints(&resource.name, "update_success");
                }
                Err(reason) => {
                    self.count_endpoints(&resource.name, "update_rejected");
                    refused.push(Refused { name: resource.name.clone(), reason });
                }
            }
        }
        for name in &update.removed {
            // Never an error: None only ends the wait of a cluster that warms.
            if let Err(report) = self.clusters.update_endpoints(name, None) {
                log::warn!(target: "upstream", "EDS: '{name}': {}", report.summary());
            }
            self.raw(Kind::Endpoint).borrow_mut().remove(name);
        }
        refused
    }

    /// `cluster.<name>.update_*`. Assignments whose service name differs from their cluster's count only there if it is active.
    fn count_endpoints(&self, name: &str, counter: &str) {
        let Some(cluster) = self.clusters.get(name) else { return };
        let scope = self.server.stats.root().scope(&format!("cluster.{}.", cluster.observability_name()));
        scope.counter(counter).inc();
        if counter != "update_no_rebuild" {
            scope.counter("update_attempt").inc();
        }
    }

    /// Subscribes to the assignments that clusters want, and to no others.
    pub(crate) fn sync_endpoints(self: &Rc<Self>) {
        let none: Arc<str> = "".into();
        let wanted = self.clusters.eds_wanted().into_iter();
        let needs = wanted.map(|w| Need { name: w.name, source: w.source, stat_prefix: none.clone(), waits: true });
        let gone = self.subscriptions.sync(self, Kind::Endpoint, needs.collect());
        let mut store = self.raw(Kind::Endpoint).borrow_mut();
        for name in gone {
            store.remove(&name);
        }
    }
}
