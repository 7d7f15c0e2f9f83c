//! Endpoints of a cluster: how they come, change and go. Control thread, one update at a time; workers see them as one swap.

use super::Cluster;
use crate::compile;
use crate::host::{Health, HealthFlags, Host};
use crate::outlier;
use crate::spec::Discovery;
use crate::view::{Endpoints, Membership};
use nuncio_core::diag::{At, Report};
use nuncio_proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

impl Cluster {
    /// Takes an endpoint assignment. Hosts are known by address: counters, outlier state and connections of those that stay
    /// are kept. Errors refuse the whole assignment.
    pub fn update_endpoints(&self, assignment: &ClusterLoadAssignment) -> Result<(), Report> {
        let updating = self.updating.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.endpoints.load_full();
        let mut report = Report::new();
        let locality = self.server.node.locality.as_ref();
        let Some(after) = compile::endpoints(assignment, &self.spec, &before, locality, &At::Root, &mut report) else {
            return Err(report);
        };
        if assignment.endpoints.is_empty() {
            self.endpoint_stats().counter("update_empty").inc();
        }
        self.replace_endpoints(&before, after);
        drop(updating);
        Ok(())
    }
    /// Whether the endpoints of both come from the very same source, so that [`Self::inherit`] makes sense.
    pub(crate) fn same_source(&self, other: &Self) -> bool {
        match (&self.spec.discovery, &other.spec.discovery) {
            (Discovery::Eds { name: a, source: b }, Discovery::Eds { name: c, source: d }) => a == c && b == d,
            (Discovery::Dns(a), Discovery::Dns(b)) => a.assignment == b.assignment && a.logical == b.logical && a.family == b.family,
            (Discovery::Static, Discovery::Static)
            | (Discovery::OriginalDst(_), Discovery::OriginalDst(_))
            | (Discovery::Forward(_), Discovery::Forward(_)) => true,
            _ => false,
        }
    }
    /// Takes over the hosts of the cluster that this one replaces, and what is known of them.
    pub(crate) fn inherit(&self, old: &Self) {
        let updating = self.updating.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.endpoints.load_full();
        // Which transport socket a host needs is this cluster's own business.
        let adapt = |host: &Arc<Host>| {
            let transport = compile::transport(&self.spec.transports, host.metadata.get());
            if transport == host.transport {
                return Some(host.clone());
            }
            Some(Arc::new(Host { transport, ..host.describe() }))
        };
        match &self.spec.discovery {
            Discovery::Static => {
                // The hosts are this cluster's, their states the old one's.
                let known: HashMap<_, _> = old.endpoints.load().hosts().map(|h| (h.address.clone(), h.state.clone())).collect();
                let after = before.map(|h| match known.get(&h.address) {
                    Some(state) => Some(Arc::new(Host { state: state.clone(), ..h.describe() })),
                    None => Some(h.clone()),
                });
                self.replace_endpoints(&before, after);
            }
            Discovery::OriginalDst(_) => {
                if let (Some(mine), Some(theirs)) = (&self.original_dst, &old.original_dst) {
                    mine.adopt(theirs);
                }
            }
            Discovery::Aggregate(_) => {}
            Discovery::Forward(_) => {
                if let (Some(mine), Some(theirs)) = (&self.forward, &old.forward) {
                    mine.adopt(theirs);
                }
            }
            Discovery::Eds { .. } | Discovery::Dns(_) => {
                if !old.initialized.load(Ordering::Acquire) {
                    return;
                }
                if let (Some(mine), Some(theirs)) = (&self.dns, &old.dns) {
                    let theirs = theirs.lock().unwrap_or_else(PoisonError::into_inner);
                    *mine.lock().unwrap_or_else(PoisonError::into_inner) = theirs.clone();
                }
                self.replace_endpoints(&before, old.endpoints.load().map(adapt));
            }
        }
        drop(updating);
    }
    fn replace_endpoints(&self, before: &Arc<Endpoints>, after: Endpoints) {
        let staying: HashSet<u64, foldhash::fast::RandomState> = after.hosts().map(|h| h.id).collect();
        let known: HashSet<u64, foldhash::fast::RandomState> = before.hosts().map(|h| h.id).collect();
        let after = self.keep_pending(before, after, &staying);
        let mut left = 0u64;
        for host in before.hosts().filter(|h| !staying.contains(&h.id)) {
            if host.flags().has(HealthFlags::PENDING_DYNAMIC_REMOVAL) {
                continue;
            }
            left += 1;
            host.set_removed(true);
            if self.outlier.is_some() {
                outlier::host_removed(self, host);
            }
        }
        let came = after.hosts().filter(|h| !known.contains(&h.id)).count() as u64;
        let first = !self.initialized.swap(true, Ordering::AcqRel);
        let same = !first && came == 0 && left == 0 && after.same_as(before);
        if same {
            self.endpoint_stats().counter("update_no_rebuild").inc();
            return;
        }
        self.endpoints.store(Arc::new(after));
        self.update_orca_weights(Instant::now());
        self.bump();
        if let Some(news) = &self.news {
            news.notify_one();
        }
        self.count_membership();
        if came + left > 0 {
            self.endpoint_stats().counter("membership_change").inc();
        }
        if left > 0 {
            self.shared.signal();
        }
        self.host_set_changed();
        self.prepare();
    }
    /// Active health checks keep hosts that are gone from the assignment for as long as they are healthy, unless told otherwise.
    fn keep_pending(&self, before: &Endpoints, mut after: Endpoints, staying: &HashSet<u64, foldhash::fast::RandomState>) -> Endpoints {
        if self.spec.health_checks.is_empty() || self.spec.ignore_health_on_removal {
            return after;
        }
        for (priority, set) in before.sets.iter().enumerate() {
            for locality in &set.localities {
                for host in locality.hosts.iter().filter(|h| !staying.contains(&h.id)) {
                    if !host.flags().has(HealthFlags::FAILED_ACTIVE_HC) {
                        host.set_flag(HealthFlags::PENDING_DYNAMIC_REMOVAL);
                        after.add(priority, locality, host.clone());
                    }
                }
            }
        }
        after
    }
    /// Whether endpoints came already.
    pub(crate) fn has_endpoints(&self) -> bool {
        self.initialized.load(Ordering::Acquire)
    }
    /// Takes over the assignment of another cluster that has the same one; its hosts have states of their own here.
    pub(crate) fn copy_endpoints(&self, other: &Self) {
        let updating = self.updating.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.endpoints.load_full();
        let copy = |host: &Arc<Host>| {
            let transport = compile::transport(&self.spec.transports, host.metadata.get());
            Some(Arc::new(Host { transport, state: compile::fresh(&self.spec, host.eds_health), ..host.describe() }))
        };
        self.replace_endpoints(&before, other.endpoints.load().map(copy));
        drop(updating);
    }
    /// Removes hosts that were only kept because they were healthy, once they are not.
    pub(crate) fn drop_pending(&self) {
        let _updating = self.updating.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.endpoints.load_full();
        let both = HealthFlags::PENDING_DYNAMIC_REMOVAL | HealthFlags::FAILED_ACTIVE_HC;
        let gone: HashSet<u64> = before.hosts().filter(|h| h.flags().0 & both == both).map(|h| h.id).collect();
        if gone.is_empty() {
            return;
        }
        for host in before.hosts().filter(|h| gone.contains(&h.id)) {
            host.clear_flag(HealthFlags::PENDING_DYNAMIC_REMOVAL);
        }
        self.replace_endpoints(&before, before.map(|h| (!gone.contains(&h.id)).then(|| h.clone())));
    }
    pub(super) fn count_membership(&self) {
        let stats = self.endpoint_stats();
        let membership = self.membership();
        // What was never more than zero need not be a stat.
        let mut often = self.seen.load(Ordering::Relaxed);
        let numbers = [membership.total, membership.healthy, membership.degraded, membership.excluded];
        let names = ["membership_total", "membership_healthy", "membership_degraded", "membership_excluded"];
        for (i, (n, name)) in numbers.into_iter().zip(names).enumerate() {
            let bit = 1u8 << i;
            if n > 0 || i < 2 || often & bit != 0 {
                often |= bit;
                stats.gauge(name).set(i64::try_from(n).unwrap_or(i64::MAX));
            }
        }
        self.seen.store(often, Ordering::Relaxed);
    }
    /// Number of hosts, as in `membership_total`.
    pub fn member_count(&self) -> usize {
        self.endpoints.load().hosts().count()
    }
    pub(crate) fn membership(&self) -> Membership {
        let mut m = Membership::default();
        let named = self.forward.as_ref().map(|f| f.all()).unwrap_or_default();
        for host in self.endpoints.load().hosts().chain(&named) {
            let flags = host.flags();
            m.total += 1;
            m.excluded += usize::from(flags.has(HealthFlags::EXCLUDED));
            match flags.coarse() {
                Health::Healthy => m.healthy += 1,
                Health::Degraded => m.degraded += 1,
                Health::Unhealthy => {}
            }
        }
        m
    }
    /// What target `index` resolved to.
    pub(crate) fn dns_answer(&self, index: usize, answer: Result<crate::dns::Answer, String>) {
        let (Some(state), Some(spec)) = (&self.dns, self.dns_spec()) else { return };
        let updating = self.updating.lock().unwrap_or_else(PoisonError::into_inner);
        let stats = self.endpoint_stats();
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        state.answers.resize(spec.targets.len(), None);
        state.errors.resize(spec.targets.len(), None);
        match answer {
            Ok(answer) => {
                stats.counter("update_success").inc();
                if answer.addresses.is_empty() {
                    stats.counter("update_empty").inc();
                }
                if let Some(error) = state.errors.get_mut(index) {
                    *error = answer.addresses.is_empty().then(|| "no addresses".to_string());
                }
                // A logical host without address keeps the one it has.
                if let Some(place) = state.answers.get_mut(index)
                    && !(spec.logical && answer.addresses.is_empty())
                {
                    *place = Some(answer.addresses);
                }
            }
            Err(why) => {
                stats.counter("update_failure").inc();
                if let Some(error) = state.errors.get_mut(index) {
                    *error = Some(why);
                }
            }
        }
        let before = self.endpoints.load_full();
        let after = crate::resolved::endpoints(spec, &mut state, &self.spec, &before, self.server.node.locality.as_ref());
        drop(state);
        self.replace_endpoints(&before, after);
        drop(updating);
    }
}
