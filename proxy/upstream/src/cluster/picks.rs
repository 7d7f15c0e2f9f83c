//! What clusters ask of those who pick a host, and tell them of the pick. On workers, once per request.

use super::Cluster;
use crate::host::Host;
use nuncio_core::views::HostView;
use nuncio_core::{RequestHead, StreamInfo};
use nuncio_proto::{Struct, Value};
use nuncio_route::{HashPolicy, HashResult};
use prost_types::value::Kind;
use std::sync::atomic::Ordering;

impl Cluster {
    /// `hash_policy` of a consistent hashing policy, which counts instead of that of the route.
    pub fn hash_policy(&self) -> Option<&HashPolicy> {
        self.spec.lb.hash_policy.as_deref()
    }
    /// [`Self::hash_policy`] of a stream that is not HTTP.
    pub fn hash_of_stream(&self, info: &StreamInfo) -> Option<u64> {
        let HashResult { hash, .. } = self.hash_policy()?.hash(&RequestHead::new(http::Method::GET, "", ""), info);
        hash
    }
    /// Writes the address of the picked host to the metadata that `override_host.selected_host_key` names. Source: Envoy's
    /// `OverrideHostLoadBalancer::addSelectedHostKey`.
    pub fn tell_selected(&self, host: &Host, info: &mut StreamInfo) {
        let Some(key) = self.spec.lb.overrides.as_ref().and_then(|o| o.selected.as_ref()) else { return };
        let mut value = Value { kind: Some(Kind::StringValue(host.address().to_string())) };
        for (depth, name) in key.path.iter().enumerate().rev() {
            let outer = Struct { fields: [(name.to_string(), value)].into_iter().collect() };
            if depth == 0 {
                return info.set_metadata(&key.namespace, outer);
            }
            value = Value { kind: Some(Kind::StructValue(outer)) };
        }
    }
    /// Grows with every change of the set of hosts, or of what is known of them.
    pub(crate) fn host_sets(&self) -> u64 {
        self.host_sets.load(Ordering::Acquire)
    }
    /// The set of hosts changed: with `close_connections_on_host_set_change`, workers drain what they have.
    pub(super) fn host_set_changed(&self) {
        if self.spec.close_on_host_set_change {
            self.host_sets.fetch_add(1, Ordering::AcqRel);
            self.shared.signal();
        }
    }
}
