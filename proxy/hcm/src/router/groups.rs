//! Stats that a request is counted in beside those of its cluster: its virtual cluster and its route's `stat_prefix`.
//! Runs on a worker; a request of a virtual host that has neither costs nothing.

use nuncio_core::RequestHead;
use nuncio_core::StreamInfo;
use nuncio_route::RouteEntry;
use nuncio_upstream::GroupStats;

/// The groups of one request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Groups<'a> {
    virtual_cluster: Option<&'a GroupStats>,
    route: Option<&'a GroupStats>,
}

impl<'a> Groups<'a> {
    /// The groups of `request`, as the client sent it; the virtual cluster's name is noted for `%VIRTUAL_CLUSTER_NAME%`.
    pub fn of(entry: &'a RouteEntry, request: &RequestHead, info: &mut StreamInfo) -> Self {
        let virtual_cluster = entry.virtual_cluster(request);
        // What counts the rest has no name in Envoy.
        info.virtual_cluster = virtual_cluster.filter(|c| !c.is_other()).map(|c| c.name.clone());
        Self { virtual_cluster: virtual_cluster.and_then(|c| c.stats(GroupStats::new)), route: entry.stats(GroupStats::new) }
    }
    /// Calls `count` for each.
    pub fn each(&self, count: impl Fn(&GroupStats)) {
        self.virtual_cluster.into_iter().chain(self.route).for_each(count);
    }
}
