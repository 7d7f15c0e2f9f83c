//! Stats of one cluster under `cluster.<alt_stat_name or name>.`. Names are those of Envoy's docs, "Cluster manager statistics".
//! Handles are made when a cluster is first used, because most clusters of a gateway never are. Counted on every worker.

use crate::breaker::BreakerStats;
use nuncio_stats::{Counter, Gauge, Histogram, Scope};
use std::sync::{Mutex, OnceLock, PoisonError};

macro_rules! stats {
    ($(#[$doc:meta])* $name:ident { $($kind:ident { $($field:ident),* $(,)? })* }) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name { $($(pub $field: stats!(@type $kind),)*)* }
        impl $name {
            /// Makes the stats below `scope`.
            pub(crate) fn new(scope: &Scope) -> Self {
                Self { $($($field: scope.$kind(stringify!($field)),)*)* }
            }
        }
    };
    (@type counter) => { Counter };
    (@type gauge) => { Gauge };
    (@type histogram) => { Histogram };
}
pub(crate) use stats;

stats! {
    /// Traffic: connections and requests.
    TrafficStats {
        counter {
            bind_errors, original_dst_host_invalid, retry_or_shadow_abandoned,
            upstream_cx_close_notify, upstream_cx_connect_attempts_exceeded, upstream_cx_connect_fail, upstream_cx_connect_timeout,
            upstream_cx_destroy, upstream_cx_destroy_local, upstream_cx_destroy_local_with_active_rq, upstream_cx_destroy_remote,
            upstream_cx_destroy_remote_with_active_rq, upstream_cx_destroy_with_active_rq, upstream_cx_http1_total,
            upstream_cx_http2_total, upstream_cx_idle_timeout, upstream_cx_max_duration_reached, upstream_cx_max_requests,
            upstream_cx_none_healthy, upstream_cx_overflow, upstream_cx_pool_overflow, upstream_cx_preconnect_skipped, upstream_cx_protocol_error,
            upstream_cx_rx_bytes_total, upstream_cx_total, upstream_cx_tx_bytes_total,
            upstream_flow_control_backed_up_total, upstream_flow_control_drained_total,
            upstream_flow_control_paused_reading_total, upstream_flow_control_resumed_reading_total,
            upstream_internal_redirect_failed_total, upstream_internal_redirect_succeeded_total,
            upstream_rq_active_overflow, upstream_rq_cancelled, upstream_rq_completed, upstream_rq_maintenance_mode,
            upstream_rq_max_duration_reached, upstream_rq_pending_failure_eject, upstream_rq_pending_overflow,
            upstream_rq_pending_total, upstream_rq_per_try_idle_timeout, upstream_rq_per_try_timeout, upstream_rq_retry,
            upstream_rq_retry_backoff_exponential, upstream_rq_retry_backoff_ratelimited, upstream_rq_retry_limit_exceeded,
            upstream_rq_retry_overflow, upstream_rq_retry_success, upstream_rq_rx_reset, upstream_rq_timeout, upstream_rq_total,
            upstream_rq_tx_reset,
        }
        gauge { upstream_cx_active, upstream_cx_rx_bytes_buffered, upstream_cx_tx_bytes_buffered, upstream_rq_active, upstream_rq_pending_active }
        histogram { upstream_cx_connect_ms, upstream_cx_length_ms, upstream_rq_per_cx }
    }
}

stats! {
    /// Load balancing.
    LbStats {
        counter {
            lb_healthy_panic, lb_local_cluster_not_ok, lb_recalculate_zone_structures, lb_subsets_created, lb_subsets_fallback,
            lb_subsets_fallback_panic, lb_subsets_removed, lb_subsets_selected, lb_zone_cluster_too_small,
            lb_zone_no_capacity_left, lb_zone_routing_all_directly, lb_zone_routing_cross_zone, lb_zone_routing_sampled,
        }
        gauge { lb_subsets_active, max_host_weight }
    }
}

stats! {
    /// `lb_orca_oob.`
    OobStats {
        counter { report_errors, reports_received, stream_failures, stream_terminated }
        gauge { active_sessions }
    }
}

stats! {
    /// `outlier_detection.`; names with deprecated duplicates as in Envoy.
    OutlierStats {
        counter {
            ejections_consecutive_5xx, ejections_detected_consecutive_5xx, ejections_detected_consecutive_gateway_failure,
            ejections_detected_consecutive_local_origin_failure, ejections_detected_degradation, ejections_detected_failure_percentage,
            ejections_detected_local_origin_failure_percentage, ejections_detected_local_origin_success_rate,
            ejections_detected_success_rate, ejections_enforced_consecutive_5xx, ejections_enforced_consecutive_gateway_failure,
            ejections_enforced_consecutive_local_origin_failure, ejections_enforced_failure_percentage,
            ejections_enforced_local_origin_failure_percentage, ejections_enforced_local_origin_success_rate,
            ejections_enforced_success_rate, ejections_enforced_total, ejections_overflow, ejections_success_rate, ejections_total,
        }
        gauge { ejections_active }
    }
}

/// Codes seen so far of one prefix (`upstream_rq_`, `internal.upstream_rq_`, ...). The first few are found without a lock.
#[derive(Debug)]
struct CodeStats {
    completed: Counter,
    classes: [Counter; 5],
    codes: [OnceLock<(u16, Counter)>; 6],
    more: Mutex<Vec<(u16, Counter)>>,
}

impl CodeStats {
    fn new(scope: &Scope) -> Self {
        let class = |c: u16| scope.counter(&format!("upstream_rq_{c}xx"));
        Self {
            completed: scope.counter("upstream_rq_completed"),
            classes: [class(1), class(2), class(3), class(4), class(5)],
            codes: Default::default(),
            more: Mutex::default(),
        }
    }
    fn charge(&self, scope: &Scope, prefix: &str, code: u16) {
        self.completed.inc();
        if let Some(class) = usize::from(code / 100).checked_sub(1).and_then(|c| self.classes.get(c)) {
            class.inc();
        }
        for slot in &self.codes {
            let (known, counter) = slot.get_or_init(|| (code, scope.counter(&format!("{prefix}upstream_rq_{code}"))));
            if *known == code {
                return counter.inc();
            }
        }
        let mut more = self.more.lock().unwrap_or_else(PoisonError::into_inner);
        match more.iter().find(|(known, _)| *known == code) {
            Some((_, counter)) => counter.inc(),
            None => {
                let counter = scope.counter(&format!("{prefix}upstream_rq_{code}"));
                counter.inc();
                more.push((code, counter));
            }
        }
    }
}

/// Response codes and times of one prefix.
#[derive(Debug)]
pub(crate) struct Responses {
    codes: CodeStats,
    time: Histogram,
}

impl Responses {
    /// Makes the stats below `scope`, but for single codes.
    pub(crate) fn new(scope: &Scope) -> Self {
        Self { codes: CodeStats::new(scope), time: scope.histogram("upstream_rq_time") }
    }
    /// Counts a response; its code counts as `<prefix>upstream_rq_<code>` below `scope`.
    pub(crate) fn charge(&self, scope: &Scope, prefix: &str, code: u16) {
        self.codes.charge(scope, prefix, code);
    }
    /// Records how long a response took, in milliseconds.
    pub(crate) fn time(&self, millis: u64) {
        self.time.record(millis);
    }
}

/// What kind of response is charged.
#[derive(Clone, Copy, Debug, Default)]
pub struct Charge<'a> {
    /// The request was internal (`x-envoy-internal`).
    pub internal: bool,
    /// The host was a canary, or the response says so (`x-envoy-upstream-canary`).
    pub canary: bool,
    /// Our zone and the host's zone; stats per zone pair only if both are known.
    pub zones: Option<(&'a str, &'a str)>,
}

/// All stats of a cluster that traffic touches.
#[derive(Debug)]
pub struct ClusterStats {
    scope: Scope,
    pub traffic: TrafficStats,
    pub lb: LbStats,
    pub default_breakers: BreakerStats,
    pub high_breakers: BreakerStats,
    all: Responses,
    internal: OnceLock<Box<Responses>>,
    external: OnceLock<Box<Responses>>,
    canary: OnceLock<Box<Responses>>,
    retry: OnceLock<Box<Responses>>,
    zones: Zones,
    outlier: OnceLock<Box<OutlierStats>>,
}

/// Responses by pair of zones; a process has one zone and its hosts a few.
#[derive(Debug, Default)]
struct Zones {
    first: [OnceLock<Box<Zone>>; 4],
    more: Mutex<Vec<Zone>>,
}

#[derive(Debug)]
struct Zone {
    from: Box<str>,
    to: Box<str>,
    prefix: Box<str>,
    responses: Responses,
}

impl Zone {
    fn new(scope: &Scope, from: &str, to: &str) -> Self {
        let prefix = format!("zone.{from}.{to}.").into_boxed_str();
        let scope = scope.scope(&prefix);
        let responses = Responses::new(&scope);
        Self { from: from.into(), to: to.into(), prefix, responses }
    }
    fn is(&self, from: &str, to: &str) -> bool {
        *self.to == *to && *self.from == *from
    }
}

impl Zones {
    fn with(&self, scope: &Scope, (from, to): (&str, &str), run: impl FnOnce(&Zone)) {
        for slot in &self.first {
            let zone = slot.get_or_init(|| Box::new(Zone::new(scope, from, to)));
            if zone.is(from, to) {
                return run(zone);
            }
        }
        let mut more = self.more.lock().unwrap_or_else(PoisonError::into_inner);
        let at = more.iter().position(|z| z.is(from, to)).unwrap_or_else(|| {
            more.push(Zone::new(scope, from, to));
            more.len() - 1
        });
        if let Some(zone) = more.get(at) {
            run(zone);
        }
    }
}

impl ClusterStats {
    pub(crate) fn new(scope: &Scope, track: (bool, bool)) -> Self {
        Self {
            traffic: TrafficStats::new(scope),
            lb: LbStats::new(scope),
            default_breakers: breakers(&scope.scope("circuit_breakers.default."), track.0),
            high_breakers: breakers(&scope.scope("circuit_breakers.high."), track.1),
            all: Responses::new(scope),
            internal: OnceLock::new(),
            external: OnceLock::new(),
            canary: OnceLock::new(),
            retry: OnceLock::new(),
            zones: Zones::default(),
            outlier: OnceLock::new(),
            scope: scope.clone(),
        }
    }
    /// `cluster.<name>.`.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }
    /// `outlier_detection.*`.
    pub fn outlier(&self) -> &OutlierStats {
        self.outlier.get_or_init(|| Box::new(OutlierStats::new(&self.scope.scope("outlier_detection."))))
    }
    fn responses<'a>(&'a self, slot: &'a OnceLock<Box<Responses>>, prefix: &str) -> &'a Responses {
        slot.get_or_init(|| Box::new(Responses::new(&self.scope.scope(prefix))))
    }
    /// Counts a response code: `upstream_rq_completed`, `upstream_rq_2xx`, `upstream_rq_200`, the same under `internal.` or
    /// `external.`, `canary.`, and `zone.<from>.<to>.`. Source: Envoy's `Http::CodeStatsImpl::chargeResponseStat`.
    pub fn charge_response(&self, code: u16, how: &Charge<'_>) {
        self.all.charge(&self.scope, "", code);
        if how.internal {
            self.responses(&self.internal, "internal.").charge(&self.scope, "internal.", code);
        } else {
            self.responses(&self.external, "external.").charge(&self.scope, "external.", code);
        }
        if how.canary {
            self.responses(&self.canary, "canary.").charge(&self.scope, "canary.", code);
        }
        if let Some(zones) = how.zones {
            self.zones.with(&self.scope, zones, |zone| zone.responses.charge(&self.scope, &zone.prefix, code));
        }
    }
    /// Counts the code of a response that was not passed on because the request is tried again: `retry.upstream_rq_503`, ..
    pub fn charge_retried(&self, code: u16) {
        self.responses(&self.retry, "retry.").charge(&self.scope, "retry.", code);
    }
    /// Records how long a response took in milliseconds: `upstream_rq_time`, and the same by kind.
    pub fn charge_time(&self, millis: u64, how: &Charge<'_>) {
        self.all.time(millis);
        if how.internal {
            self.responses(&self.internal, "internal.").time(millis);
        } else {
            self.responses(&self.external, "external.").time(millis);
        }
        if how.canary {
            self.responses(&self.canary, "canary.").time(millis);
        }
        if let Some(zones) = how.zones {
            self.zones.with(&self.scope, zones, |zone| zone.responses.time(millis));
        }
    }
}

fn breakers(scope: &Scope, track: bool) -> BreakerStats {
    let remaining = |name: &str| if track { scope.gauge(name) } else { Gauge::default() };
    BreakerStats {
        cx_open: scope.gauge("cx_open"),
        rq_pending_open: scope.gauge("rq_pending_open"),
        rq_open: scope.gauge("rq_open"),
        rq_retry_open: scope.gauge("rq_retry_open"),
        cx_pool_open: scope.gauge("cx_pool_open"),
        remaining_cx: remaining("remaining_cx"),
        remaining_pending: remaining("remaining_pending"),
        remaining_rq: remaining("remaining_rq"),
        remaining_retries: remaining("remaining_retries"),
        remaining_cx_pools: remaining("remaining_cx_pools"),
    }
}
