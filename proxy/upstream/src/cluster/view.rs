//! The view of a cluster: what load balancing works on, built anew when endpoints, health, weights or runtime changed. The control
//! thread builds it ahead for clusters in use; otherwise the first worker that needs it does.

use super::Cluster;
use crate::host::Host;
use crate::lb::subset::Subsets;
use crate::spec::LocalityMode;
use crate::view::View;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

impl Cluster {
    /// Whether something changed since the view was built.
    pub(crate) fn current_epoch(&self) -> u64 {
        let local = if self.shared.has_local() && !self.spec.lb.is_local { self.shared.local_epoch() } else { 0 };
        self.epoch.load(Ordering::Acquire).wrapping_add(local)
    }
    pub(super) fn bump(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
        self.announce();
    }
    /// Shows the local cluster's hosts to the zone-aware balancers of the others.
    pub(crate) fn announce(&self) {
        if self.spec.lb.is_local {
            self.shared.set_local_view(Some(self.view()));
        }
    }
    /// Whether `view` is what load balancing should work on.
    pub(crate) fn is_current(&self, view: &View) -> bool {
        view.epoch == self.current_epoch()
    }
    /// What load balancing works on, built if it is not there.
    pub(crate) fn view(&self) -> Arc<View> {
        if let Some(view) = self.view.load_full().filter(|v| self.is_current(v)) {
            return view;
        }
        let building = self.building.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(view) = self.view.load_full().filter(|v| self.is_current(v)) {
            return view;
        }
        let epoch = self.current_epoch();
        let local = match (&self.spec.lb.locality, self.spec.lb.is_local) {
            (LocalityMode::ZoneAware(_), false) => self.shared.local_view(),
            _ => None,
        };
        let stats = local.as_ref().map(|_| &self.stats().lb);
        let before = self.view.load_full();
        let view = View::build(epoch, self.endpoints.load_full(), &self.spec.lb, local.as_deref(), stats, before.as_deref());
        let view = Arc::new(view);
        if let Some(subsets) = &view.subsets {
            self.count_subsets(subsets);
        }
        self.view.store(Some(view.clone()));
        if let Some(stats) = self.stats.get() {
            let heaviest = view.endpoints.hosts().map(|h| h.weight()).max().unwrap_or(0);
            stats.lb.max_host_weight.set(i64::from(heaviest));
        }
        drop(building);
        view
    }
    /// `lb_subsets_*`. Envoy has every subset once per worker and once on its main thread, and counts them so.
    fn count_subsets(&self, subsets: &Subsets) {
        if self.is_retired() {
            return;
        }
        let stats = &self.stats().lb;
        let times = self.server.concurrency + 1;
        stats.lb_subsets_created.add((subsets.created * times) as u64);
        stats.lb_subsets_removed.add((subsets.removed * times) as u64);
        stats.lb_subsets_active.add((subsets.created * times) as i64 - (subsets.removed * times) as i64);
        let gauge = self.endpoint_stats().gauge("lb_subsets_single_host_per_subset_duplicate");
        gauge.set(i64::try_from(subsets.duplicates).unwrap_or(i64::MAX));
    }
    /// Builds the view now if this cluster is in use, so that no worker has to. Subsets show in stats before they are used.
    pub(super) fn prepare(&self) {
        if self.view.load().is_some() || self.spec.lb.subsets.is_some() {
            self.view().prepare(&self.spec.lb);
        }
    }
    /// A host became unhealthy (or healthy again).
    pub(crate) fn health_changed(&self, _host: &Host, healthy: bool) {
        self.bump();
        self.host_set_changed();
        self.count_membership();
        if !healthy {
            self.shared.signal();
        }
    }
    /// Weights of hosts changed, and nothing else.
    pub(crate) fn weights_changed(&self) {
        self.bump();
        self.prepare();
    }
    /// Takes what it reads from runtime anew: limits of circuit breakers, or what balancing looks at.
    pub(crate) fn read_runtime(&self, breakers: bool) {
        let runtime = self.runtime();
        if breakers {
            let stats = self.stats.get();
            for (thresholds, key, stats) in [
                (&self.breakers.default, "default", stats.map(|s| &s.default_breakers)),
                (&self.breakers.high, "high", stats.map(|s| &s.high_breakers)),
            ] {
                thresholds.read_runtime(runtime, &format!("circuit_breakers.{}.{key}", self.name), stats);
            }
            return;
        }
        let lb = &self.spec.lb;
        lb.live.read(lb.panic_threshold, &lb.locality, runtime);
        if let Some(aggregate) = &self.aggregate {
            aggregate.set_panic_threshold(lb.live.panic_threshold());
        }
        self.bump();
    }
}
