//! The runtime form of one `envoy.config.cluster.v3.Cluster`: compiled on the control thread, immutable but for endpoints,
//! health and counters, read by every worker through its `ClusterSlot`.

use crate::breaker::{CircuitBreakers, Kind};
use crate::context::RoutingPriority;
use crate::host::{Host, LazyMetadata};
use crate::outlier::Outcome;
use crate::stats::ClusterStats;
use nuncio_core::HttpVersion;
use nuncio_core::diag::Report;
use nuncio_core::registry::{Registry, Server};
use nuncio_core::views::ClusterView;
use nuncio_proto::envoy::config::cluster::v3 as pb;
use nuncio_proto::envoy::config::core::v3::Metadata;
use nuncio_proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use nuncio_tls::SecretStore;
use std::any::Any;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// What compiling a cluster needs.
pub struct ClusterCx<'a> {
    pub server: &'a Arc<Server>,
    pub secrets: &'a Arc<SecretStore>,
    /// Factories of `Cluster.filters`.
    pub registry: &'a Registry,
    pub report: &'a mut Report,
    /// From CDS, not from the bootstrap.
    pub added_via_api: bool,
}

/// A cluster.
pub struct Cluster {
    name: Arc<str>,
    observability_name: Arc<str>,
    metadata: LazyMetadata,
    breakers: CircuitBreakers,
    stats: OnceLock<Box<ClusterStats>>,
    server: Arc<Server>,
}

impl Cluster {
    /// Compiles `proto`; None means refused, the reasons are in `cx.report`. STATIC clusters have their hosts at once;
    /// EDS clusters wait for [`Self::update_endpoints`], DNS clusters for their manager.
    pub fn compile(_proto: &pb::Cluster, _cx: &mut ClusterCx<'_>) -> Option<Arc<Self>> {
        None
    }
    /// Takes an endpoint assignment. Hosts are known by address: counters, outlier state and connections of those that stay
    /// are kept. Errors refuse the whole assignment.
    pub fn update_endpoints(&self, _assignment: &ClusterLoadAssignment) -> Result<(), Report> {
        Ok(())
    }
    /// Stats under `cluster.<alt_stat_name or name>.`, made on first use.
    pub fn stats(&self) -> &ClusterStats {
        self.stats.get_or_init(|| {
            Box::new(ClusterStats::new(&self.server.stats.root().scope(&format!("cluster.{}.", self.observability_name)), (false, false)))
        })
    }
    /// The circuit breakers.
    pub fn breakers(&self) -> &CircuitBreakers {
        &self.breakers
    }
    /// A place for one retry, held until the retry ends; none if `max_retries` or the retry budget forbids (then
    /// `upstream_rq_retry_overflow` is the caller's to count).
    pub fn try_retry(self: &Arc<Self>, priority: RoutingPriority) -> Option<RetryGuard> {
        let stats = self.breaker_stats(priority);
        self.breakers.at(priority).try_acquire(Kind::Retry, stats).then(|| RetryGuard { cluster: self.clone(), priority })
    }
    /// Tells outlier detection how `host` did, and ejects it if it is due.
    pub fn report(&self, _host: &Host, _outcome: Outcome) {}
    /// `common_http_protocol_options.max_stream_duration` towards the upstream.
    pub fn max_stream_duration(&self) -> Option<Duration> {
        None
    }
    /// `per_connection_buffer_limit_bytes`. Default 1 MiB.
    pub fn buffer_limit(&self) -> u32 {
        1 << 20
    }
    /// Whether this request is to be dropped (`ClusterLoadAssignment.policy.drop_overloads`); answer 503 with flag DO and
    /// details `drop_overload`. Counts nothing.
    pub fn should_drop(&self) -> bool {
        false
    }
    /// Hosts of all priorities as they are now, in the order of the assignment.
    pub fn hosts(&self) -> Vec<Arc<Host>> {
        Vec::new()
    }
    /// Number of hosts of all priorities; 0 makes the router answer `no_healthy_upstream`.
    pub fn host_count(&self) -> usize {
        0
    }
    pub(crate) fn breaker_stats(&self, priority: RoutingPriority) -> &crate::breaker::BreakerStats {
        match priority {
            RoutingPriority::Default => &self.stats().default_breakers,
            RoutingPriority::High => &self.stats().high_breakers,
        }
    }
}

impl ClusterView for Cluster {
    fn name(&self) -> &Arc<str> {
        &self.name
    }
    fn observability_name(&self) -> &Arc<str> {
        &self.observability_name
    }
    fn metadata(&self) -> Option<&Metadata> {
        self.metadata.get()
    }
    fn upstream_protocol(&self, _downstream: HttpVersion) -> HttpVersion {
        HttpVersion::Http11
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A retry that runs; counted against `max_retries` until dropped.
#[derive(Debug)]
pub struct RetryGuard {
    cluster: Arc<Cluster>,
    priority: RoutingPriority,
}

impl Drop for RetryGuard {
    fn drop(&mut self) {
        self.cluster.breakers.at(self.priority).release(Kind::Retry, self.cluster.breaker_stats(self.priority));
    }
}
