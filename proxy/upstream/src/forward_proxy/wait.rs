//! Waiting for names: what a network filter leaves for tcp_proxy to wait for before it connects, and what a pick itself waits for if
//! no filter asked. Belongs to one stream.

use super::{CacheEntry, ForwardSpec, Lookup, PendingLookup, default_port, wanted};
use crate::cluster::Cluster;
use crate::context::LbContext;
use nuncio_core::StreamInfo;
use nuncio_core::filter_state::StateObject;
use std::any::Any;
use std::sync::{Arc, Mutex, PoisonError};

/// A lookup that is under way.
#[derive(Debug)]
pub struct WaitForLookup {
    entry: Arc<CacheEntry>,
    pending: Mutex<Option<PendingLookup>>,
}

impl WaitForLookup {
    /// Its name in the stream's filter state.
    pub const KEY: &'static str = "nuncio.forward_proxy.lookup";

    /// Waits for `entry`; `pending` is given back when it is there.
    pub fn new(entry: Arc<CacheEntry>, pending: PendingLookup) -> Self {
        Self { entry, pending: Mutex::new(Some(pending)) }
    }
}

impl StateObject for WaitForLookup {
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Waits for the lookup that a filter of this stream began, if one did.
pub async fn wait(info: &StreamInfo) {
    let Some(object) = info.filter_state.get(WaitForLookup::KEY).cloned() else { return };
    if let Some(lookup) = object.as_any().downcast_ref::<WaitForLookup>() {
        lookup.entry.ready().await;
        drop(lookup.pending.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

/// Before a pick in a dynamic forward proxy cluster: looks the name up that the pick will look for, if no filter did. Gives the reason if
/// it does not resolve. Costs nothing for other clusters.
pub async fn prepare(cluster: &Cluster, cx: &LbContext<'_>) -> Option<String> {
    let (ForwardSpec::Cache(cache), _) = cluster.forward()? else { return None };
    let (host, port) = wanted(cx.stream, cx, default_port(cluster))?;
    let entry = match cache.look_up(&host, port) {
        Lookup::Known(entry) => entry,
        Lookup::Loading(entry) => {
            entry.ready().await;
            entry
        }
        Lookup::Overflow => return None,
    };
    entry.address().is_none().then(|| entry.failure())
}
