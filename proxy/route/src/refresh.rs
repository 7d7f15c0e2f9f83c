//! The cluster of a retry that may go to another one than the attempt before. Asked by the router, on a worker.
//! Source: RetryPolicy.refresh_cluster_on_retry, Envoy's `RouteEntry::refreshRouteCluster`.

use crate::entry::RouteEntry;
use crate::target::ClusterRef;
use nuncio_core::views::ClusterSlot;
use nuncio_core::{RequestHead, StreamInfo};
use std::sync::Arc;

/// The weighted clusters of a route whose retries may change between them.
#[derive(Debug)]
pub(crate) struct Alternatives(pub Box<[(u32, ClusterRef)]>);

impl RouteEntry {
    /// The cluster of the next retry: the one that the request names by now, or by weight and `random` one of the weighted clusters that
    /// was not tried yet. `tried` remembers these, and begins anew when all were tried. None if there is no such cluster.
    pub fn refreshed_cluster(
        &self,
        request: &RequestHead,
        info: &StreamInfo,
        tried: &mut Vec<usize>,
        random: u64,
    ) -> Option<Arc<ClusterSlot>> {
        let clusters = &self.route.vhost.table.clusters;
        let Some(Alternatives(all)) = self.route.alternatives.get() else {
            return self.cluster.as_ref()?.resolve(clusters, request, Some(info));
        };
        if tried.is_empty() {
            let own = self.cluster.as_ref()?;
            tried.extend(all.iter().position(|(_, cluster)| same(cluster, own)));
        }
        let untried =
            |tried: &[usize]| -> u64 { all.iter().enumerate().filter(|(i, _)| !tried.contains(i)).map(|(_, c)| u64::from(c.0)).sum() };
        let mut total = untried(tried);
        if total == 0 {
            // All over again, but not with the one that was tried last unless there is no other.
            tried.drain(..tried.len().saturating_sub(1));
            total = untried(tried);
        }
        if total == 0 {
            tried.clear();
            total = untried(tried);
        }
        let mut left = random.checked_rem(total)?;
        for (i, (weight, cluster)) in all.iter().enumerate() {
            if tried.contains(&i) {
                continue;
            }
            if left < u64::from(*weight) {
                let found = cluster.resolve(clusters, request, Some(info));
                tried.push(i);
                return found;
            }
            left -= u64::from(*weight);
        }
        None
    }
}

fn same(one: &ClusterRef, other: &ClusterRef) -> bool {
    match (one, other) {
        (ClusterRef::Slot(a), ClusterRef::Slot(b)) => Arc::ptr_eq(a, b),
        (ClusterRef::Header(a), ClusterRef::Header(b)) => a == b,
        _ => false,
    }
}
