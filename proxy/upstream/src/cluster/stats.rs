//! What a cluster counts and what it bounds: stats (`cluster.<name>.`), options of codecs with counters in them, circuit breakers.
//! Handles are made on first use, by workers or the control thread.

use super::Cluster;
use crate::breaker::{BreakerStats, CircuitBreakers, Kind, Thresholds};
use crate::context::RoutingPriority;
use crate::spec::ProtocolMode;
use crate::stats::ClusterStats;
use nuncio_http::options::{ClientOptions, CodecStats};
use nuncio_stats::{Scope, Store};
use std::sync::Arc;

/// `cluster.<name>.`, with what separates names from stats replaced as in Envoy.
pub(crate) fn scope(store: &Store, name: &str) -> Scope {
    let name = name.replace("://", "_").replace(":/", "_").replace(':', "_");
    store.root().scope(&format!("cluster.{name}."))
}

impl Cluster {
    /// Its stats go as soon as nobody holds them; unless a cluster of the same name comes again.
    pub(crate) fn forget_stats(&self) {
        scope(&self.server.stats, &self.observability_name).remove();
    }
    /// Stats under `cluster.<alt_stat_name or name>.`, made on first use.
    pub fn stats(&self) -> &ClusterStats {
        self.stats.get_or_init(|| {
            let track = (self.breakers.default.track_remaining, self.breakers.high.track_remaining);
            let stats = Box::new(ClusterStats::new(self.endpoint_stats(), track));
            for kind in Kind::ALL {
                self.breakers.default.show_remaining(kind, &stats.default_breakers);
                self.breakers.high.show_remaining(kind, &stats.high_breakers);
            }
            stats
        })
    }
    /// `cluster.<name>.`, for what the control thread counts of endpoints and subscriptions: by name and when it happens, because
    /// handles of thousands of idle clusters would weigh more than the clusters.
    pub fn endpoint_stats(&self) -> &Scope {
        self.scope.get_or_init(|| scope(&self.server.stats, &self.observability_name))
    }
    /// Codec options with this cluster's counters.
    // The codecs may count more one day.
    #[allow(clippy::needless_update)]
    pub(crate) fn codec(&self) -> &Arc<ClientOptions> {
        self.codec.get_or_init(|| {
            let http = &self.spec.http;
            let h2 = http.mode == ProtocolMode::H2;
            let scope = self.stats().scope().scope(if h2 { "http2." } else { "http1." });
            let mut h2_options = http.h2.clone();
            h2_options.max_send_buffer = h2_options.max_send_buffer.min(self.spec.buffer_limit.max(16_384) as usize);
            Arc::new(ClientOptions {
                h1: http.h1.clone(),
                h2: h2_options,
                max_headers_kb: http.max_headers_kb,
                max_headers_count: http.max_headers_count,
                stats: CodecStats {
                    dropped_headers_with_underscores: scope.counter("dropped_headers_with_underscores"),
                    requests_rejected_with_underscores_in_headers: scope.counter("requests_rejected_with_underscores_in_headers"),
                    header_overflow: scope.counter("header_overflow"),
                    keepalive_timeout: scope.counter("keepalive_timeout"),
                    rx_reset: scope.counter("rx_reset"),
                    tx_reset: scope.counter("tx_reset"),
                    rx_messaging_error: scope.counter("rx_messaging_error"),
                    trailers: scope.counter("trailers"),
                    goaway_sent: scope.counter("goaway_sent"),
                    inbound_empty_frames_flood: scope.counter("inbound_empty_frames_flood"),
                    inbound_priority_frames_flood: scope.counter("inbound_priority_frames_flood"),
                    inbound_window_update_frames_flood: scope.counter("inbound_window_update_frames_flood"),
                    ..CodecStats::default()
                },
            })
        })
    }
    /// The circuit breakers.
    pub fn breakers(&self) -> &CircuitBreakers {
        &self.breakers
    }
    pub(crate) fn breaker(&self, priority: RoutingPriority) -> (&Thresholds, &BreakerStats) {
        let stats = self.stats();
        match priority {
            RoutingPriority::Default => (&self.breakers.default, &stats.default_breakers),
            RoutingPriority::High => (&self.breakers.high, &stats.high_breakers),
        }
    }
    /// A place for one retry, held until the retry ends; none if `max_retries` or the retry budget forbids (then
    /// `upstream_rq_retry_overflow` is the caller's to count).
    pub fn try_retry(self: &Arc<Self>, priority: RoutingPriority) -> Option<RetryGuard> {
        let (thresholds, stats) = self.breaker(priority);
        thresholds.try_acquire(Kind::Retry, stats).then(|| RetryGuard { cluster: self.clone(), priority })
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
        let (thresholds, stats) = self.cluster.breaker(self.priority);
        thresholds.release(Kind::Retry, stats);
    }
}
