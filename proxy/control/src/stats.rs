//! Stats of subscriptions and of the server, under Envoy's names. Made and written on the control thread.

use nuncio_stats::{Counter, Gauge, Histogram, Scope, TextReadout};
use std::hash::Hasher;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use twox_hash::XxHash64;

/// `update_*` of one subscription: `cluster_manager.cds.`, `listener_manager.lds.`, `http.<prefix>.rds.<name>.`, `sds.<name>.`.
#[derive(Debug, Default)]
pub struct SubscriptionStats {
    attempt: Counter,
    success: Counter,
    failure: Counter,
    rejected: Counter,
    init_fetch_timeout: Counter,
    time: Gauge,
    version: Gauge,
    version_text: TextReadout,
    duration: Histogram,
}

impl SubscriptionStats {
    /// Stats under `scope`; the first attempt counts when they are made, as in Envoy.
    pub fn new(scope: &Scope) -> Self {
        let stats = Self {
            attempt: scope.counter("update_attempt"),
            success: scope.counter("update_success"),
            failure: scope.counter("update_failure"),
            rejected: scope.counter("update_rejected"),
            init_fetch_timeout: scope.counter("init_fetch_timeout"),
            time: scope.gauge("update_time"),
            version: scope.gauge("version"),
            version_text: scope.text_readout("version_text"),
            duration: scope.histogram("update_duration"),
        };
        stats.attempt.inc();
        stats
    }
    /// An update was applied; empty ones too.
    pub fn accepted(&self, version: &str, took: Duration) {
        self.success.inc();
        self.attempt.inc();
        self.time.set(now_ms());
        self.version.set(version_hash(version));
        self.version_text.set(version);
        self.duration.record(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
    }
    /// An update was refused, or a part of it.
    pub fn rejected(&self) {
        self.rejected.inc();
        self.attempt.inc();
    }
    /// The stream or the file failed.
    pub fn failed(&self) {
        self.failure.inc();
        self.attempt.inc();
    }
    /// `initial_fetch_timeout` fired.
    pub fn timed_out(&self) {
        self.init_fetch_timeout.inc();
        self.attempt.inc();
    }
}

/// Envoy shows versions as xxHash64 of their text.
pub fn version_hash(version: &str) -> i64 {
    let mut hasher = XxHash64::with_seed(0);
    hasher.write(version.as_bytes());
    // A gauge is 64 bits; the sign is a matter of reading it.
    hasher.finish() as i64
}

/// Milliseconds since the epoch.
pub fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).ok().and_then(|d| i64::try_from(d.as_millis()).ok()).unwrap_or(0)
}

/// `control_plane.*`.
#[derive(Debug)]
pub struct ControlPlaneStats {
    pub connected: Gauge,
    pub pending: Gauge,
    pub rate_limited: Counter,
    pub identifier: TextReadout,
}

impl ControlPlaneStats {
    /// Stats under `scope` + `control_plane.`.
    pub fn new(scope: &Scope) -> Self {
        let scope = scope.scope("control_plane.");
        Self {
            connected: scope.gauge("connected_state"),
            pending: scope.gauge("pending_requests"),
            rate_limited: scope.counter("rate_limit_enforced"),
            identifier: scope.text_readout("identifier"),
        }
    }
}

/// `server.*`.
#[derive(Debug)]
pub struct ServerStats {
    pub state: Gauge,
    pub live: Gauge,
    pub uptime: Gauge,
    pub memory_allocated: Gauge,
    pub memory_heap_size: Gauge,
    pub memory_physical_size: Gauge,
    pub total_connections: Gauge,
    /// `listener_manager.total_listeners_warming`.
    pub listeners_warming: Gauge,
    pub days_until_first_cert_expiring: Gauge,
    pub initialization_time_ms: Histogram,
    pub static_unknown_fields: Counter,
}

impl ServerStats {
    /// Makes every `server.*` stat of Envoy, those that stay zero here included: dashboards show them.
    pub fn new(root: &Scope, concurrency: usize, version: i64) -> Self {
        let scope = root.scope("server.");
        for name in ["hot_restart_epoch", "parent_connections", "seconds_until_first_ocsp_response_expiring"] {
            scope.gauge(name).set(0);
        }
        scope.gauge("compilation_settings.fips_mode").set(0);
        for name in [
            "debug_assertion_failures",
            "envoy_bug_failures",
            "envoy_notifications",
            "dropped_stat_flushes",
            "dynamic_unknown_fields",
            "wip_protos",
        ] {
            scope.counter(name);
        }
        for thread in std::iter::once("main_thread".to_string()).chain((0..concurrency).map(|i| format!("worker_{i}"))) {
            for name in ["watchdog_miss", "watchdog_mega_miss"] {
                scope.counter(&format!("{thread}.{name}"));
            }
        }
        scope.gauge("concurrency").set(i64::try_from(concurrency).unwrap_or(i64::MAX));
        scope.gauge("version").set(version);
        Self {
            state: scope.gauge("state"),
            live: scope.gauge("live"),
            uptime: scope.gauge("uptime"),
            memory_allocated: scope.gauge("memory_allocated"),
            memory_heap_size: scope.gauge("memory_heap_size"),
            memory_physical_size: scope.gauge("memory_physical_size"),
            total_connections: scope.gauge("total_connections"),
            listeners_warming: root.gauge("listener_manager.total_listeners_warming"),
            days_until_first_cert_expiring: scope.gauge("days_until_first_cert_expiring"),
            initialization_time_ms: scope.histogram("initialization_time_ms"),
            static_unknown_fields: scope.counter("static_unknown_fields"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_hash_as_in_envoy() {
        // From shared/reference/envoy-admin/gateway/stats.txt.
        assert_eq!(version_hash("2026-11-21T06:04:57Z/3"), 7_769_841_578_873_659_422);
    }

    #[test]
    fn attempts_count_as_in_envoy() {
        let store = nuncio_stats::Store::new();
        let scope = store.root().scope("cluster_manager.cds.");
        let stats = SubscriptionStats::new(&scope);
        stats.accepted("1", Duration::from_millis(2));
        stats.rejected();
        assert_eq!(scope.counter("update_attempt").value(), 3);
        assert_eq!((scope.counter("update_success").value(), scope.counter("update_rejected").value()), (1, 1));
        assert_eq!(scope.text_readout("version_text").value(), "1");
    }
}
