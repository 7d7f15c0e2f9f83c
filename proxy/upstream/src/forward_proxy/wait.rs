//! What a network filter leaves for tcp_proxy to wait for before it connects. Belongs to one connection.

use super::{CacheEntry, PendingLookup};
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
