//! Counters that filters keep below a request's cluster. By name and lock: only for filters that call a service, beside which that is
//! nothing. Runs on workers.

use nuncio_core::Exchange;
use nuncio_upstream::{Charge, Cluster};

/// The cluster that the request would go to.
pub fn cluster(ex: &Exchange) -> Option<&Cluster> {
    ex.cluster.as_ref()?.as_any().downcast_ref()
}

/// Counts `cluster.<name>.<prefix><what>`.
pub fn count(ex: &Exchange, prefix: &str, what: &str) {
    if let Some(cluster) = cluster(ex) {
        cluster.endpoint_stats().counter(&format!("{prefix}{what}")).inc();
    }
}

/// Counts a response that a filter gave in the cluster's place, as an internal one.
pub fn charge(ex: &Exchange, code: u16) {
    if let Some(cluster) = cluster(ex) {
        cluster.stats().charge_response(code, &Charge { internal: true, ..Charge::default() });
    }
}
