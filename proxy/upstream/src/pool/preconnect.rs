//! `preconnect_policy` in one pool: connections for streams that are still to come. Belongs to one worker.
//! Source: Envoy docs "Prefetching", `conn_pool_base.cc`.

use super::{H2Conn, Inner, Pool};
use crate::host::Health;
use std::rc::Rc;

impl Pool {
    /// Whether `preconnect_policy` wants one more connection than streams need; `next` counts a stream that is to come.
    /// Source: Envoy's `ConnPoolImplBase::shouldCreateNewConnection`.
    pub(super) fn wants_more(&self, inner: &Inner, coming: usize, ratio: f64, next: bool) -> bool {
        if ratio <= 1.0 || self.host.borrow().health() != Health::Healthy {
            return false;
        }
        let (active, free) = Self::load(inner);
        let wanted = (inner.waiters.len() + active + usize::from(next)) as f64 * ratio;
        wanted > coming.saturating_add(free).saturating_add(active) as f64 && self.is_eligible()
    }
    /// Whether `preconnect_enabled_metadata` lets the host have more connections than it needs.
    fn is_eligible(&self) -> bool {
        let Some(matcher) = &self.cluster.spec.preconnect.eligible else { return true };
        let eligible = matcher.matches_metadata(self.host.borrow().metadata.get());
        if !eligible {
            self.cluster.stats().traffic.upstream_cx_preconnect_skipped.inc();
        }
        eligible
    }
    /// Streams that run, and streams that connections have room for.
    fn load(inner: &Inner) -> (usize, usize) {
        let room = |conn: &Rc<H2Conn>| conn.client.max_streams().saturating_sub(conn.leases.get());
        let running: usize = inner.h2.iter().map(|c| c.leases.get()).sum();
        (inner.busy + running, inner.idle.len().saturating_add(inner.h2.iter().map(room).fold(0, usize::saturating_add)))
    }
    /// Waiting and running streams, and room for more: what predictive preconnecting sums up.
    pub(crate) fn capacity(&self) -> (usize, usize) {
        let inner = self.inner.borrow();
        let (active, free) = Self::load(&inner);
        (inner.waiters.len() + active, active.saturating_add(free).saturating_add(self.coming(&inner)))
    }
    /// A stream began: keeps the room that `per_upstream_preconnect_ratio` asks for.
    pub(crate) fn preconnect(self: &Rc<Self>) {
        if self.cluster.spec.preconnect.per_upstream > 1.0 {
            // Fails only for those who wait.
            let _ = self.connect_more();
        }
    }
    /// A stream will probably come here next: one more connection if `ratio` allows it.
    pub(crate) fn anticipate(self: &Rc<Self>, ratio: f64) -> bool {
        let wanted = {
            let inner = self.inner.borrow();
            self.wants_more(&inner, self.coming(&inner), ratio, true)
        };
        if !wanted || !self.may_connect() {
            return false;
        }
        self.begin();
        true
    }
}
