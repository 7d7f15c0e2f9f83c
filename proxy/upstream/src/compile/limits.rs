//! Circuit breakers and outlier detection from protobuf.

use super::{duration, ignore, positive};
use crate::breaker::{CircuitBreakers, RetryBudget, Thresholds};
use crate::outlier::OutlierSpec;
use crate::spec::Preconnect;
use nuncio_core::diag::{At, Report};
use nuncio_core::registry::Runtime;
use nuncio_matcher::MetadataMatcher;
use nuncio_proto::envoy::config::cluster::v3 as pb;
use std::time::Duration;

/// The circuit breakers of cluster `name`; runtime keys `circuit_breakers.<name>.<priority>.*` win.
pub(crate) fn breakers(
    proto: Option<&pb::CircuitBreakers>,
    name: &str,
    runtime: &Runtime,
    at: &At<'_>,
    report: &mut Report,
) -> CircuitBreakers {
    let mut all = CircuitBreakers::default();
    for (priority, key, slot) in [(0, "default", &mut all.default), (1, "high", &mut all.high)] {
        let found = proto.into_iter().flat_map(|p| &p.thresholds).enumerate().find(|(_, t)| t.priority == priority);
        let none = pb::circuit_breakers::Thresholds::default();
        let (index, limits) = found.unwrap_or((0, &none));
        let list = at.field("thresholds");
        *slot = thresholds(limits, &list.index(index), report);
        slot.read_runtime(runtime, &format!("circuit_breakers.{name}.{key}"), None);
    }
    for (i, t) in proto.into_iter().flat_map(|p| &p.thresholds).enumerate() {
        if !(0..=1).contains(&t.priority) {
            let list = at.field("thresholds");
            report.error(&list.index(i).field("priority"), t.priority.to_string(), "DEFAULT or HIGH");
        }
    }
    all
}

fn thresholds(t: &pb::circuit_breakers::Thresholds, at: &At<'_>, report: &mut Report) -> Thresholds {
    let budget = t.retry_budget.as_ref().map(|b| {
        let percent = b.budget_percent.map_or(20.0, |p| p.value);
        if !(0.0..=100.0).contains(&percent) {
            report.error(&at.field("retry_budget"), format!("budget_percent {percent}"), "0 to 100");
        }
        let at = at.field("retry_budget");
        RetryBudget {
            budget_percent: percent,
            min_retry_concurrency: b.min_retry_concurrency.unwrap_or(3),
            interval: duration(b.budget_interval.as_ref(), Duration::ZERO, &at.field("budget_interval"), report),
        }
    });
    Thresholds::new(
        t.max_connections.unwrap_or(1024),
        t.max_pending_requests.unwrap_or(1024),
        t.max_requests.unwrap_or(1024),
        t.max_retries.unwrap_or(3),
        t.max_connection_pools.unwrap_or(u32::MAX),
        budget,
        t.track_remaining,
    )
}

/// `per_host_thresholds`: connections per host, default and high priority.
pub(crate) fn per_host(proto: Option<&pb::CircuitBreakers>, at: &At<'_>, report: &mut Report) -> [Option<u32>; 2] {
    let mut limits = [None, None];
    let at = at.field("per_host_thresholds");
    for (i, t) in proto.into_iter().flat_map(|p| &p.per_host_thresholds).enumerate() {
        let at = at.index(i);
        let others = t.max_pending_requests.is_some() || t.max_requests.is_some() || t.max_retries.is_some() || t.retry_budget.is_some();
        if others || t.track_remaining || t.max_connection_pools.is_some() {
            // Envoy refuses these too.
            report.error(&at, "a limit other than max_connections", "per host only max_connections is supported");
        }
        if let Some(slot) = usize::try_from(t.priority).ok().and_then(|p| limits.get_mut(p)) {
            *slot = slot.or(t.max_connections);
        }
    }
    limits
}

/// `OutlierDetection`; defaults are Envoy's.
pub(crate) fn outlier(o: &pb::OutlierDetection, at: &At<'_>, report: &mut Report) -> OutlierSpec {
    let mut percent = |name: &str, value: Option<u32>, default: u32| {
        let value = value.unwrap_or(default);
        if value > 100 {
            report.error(&at.field(name), value.to_string(), "0 to 100");
        }
        value.min(100)
    };
    let spec = OutlierSpec {
        consecutive_5xx: o.consecutive_5xx.unwrap_or(5),
        enforcing_consecutive_5xx: percent("enforcing_consecutive_5xx", o.enforcing_consecutive_5xx, 100),
        consecutive_gateway_failure: o.consecutive_gateway_failure.unwrap_or(5),
        enforcing_consecutive_gateway_failure: percent("enforcing_consecutive_gateway_failure", o.enforcing_consecutive_gateway_failure, 0),
        split: o.split_external_local_origin_errors,
        consecutive_local_origin_failure: o.consecutive_local_origin_failure.unwrap_or(5),
        enforcing_consecutive_local_origin_failure: percent(
            "enforcing_consecutive_local_origin_failure",
            o.enforcing_consecutive_local_origin_failure,
            100,
        ),
        max_ejection_percent: percent("max_ejection_percent", o.max_ejection_percent, 10),
        always_eject_one: o.always_eject_one_host.unwrap_or(false),
        enforcing_success_rate: percent("enforcing_success_rate", o.enforcing_success_rate, 100),
        success_rate_minimum_hosts: o.success_rate_minimum_hosts.unwrap_or(5),
        success_rate_request_volume: o.success_rate_request_volume.unwrap_or(100),
        success_rate_stdev_factor: o.success_rate_stdev_factor.unwrap_or(1900),
        enforcing_local_origin_success_rate: percent("enforcing_local_origin_success_rate", o.enforcing_local_origin_success_rate, 100),
        failure_percentage_threshold: percent("failure_percentage_threshold", o.failure_percentage_threshold, 85),
        enforcing_failure_percentage: percent("enforcing_failure_percentage", o.enforcing_failure_percentage, 0),
        enforcing_failure_percentage_local_origin: percent(
            "enforcing_failure_percentage_local_origin",
            o.enforcing_failure_percentage_local_origin,
            0,
        ),
        failure_percentage_minimum_hosts: o.failure_percentage_minimum_hosts.unwrap_or(5),
        failure_percentage_request_volume: o.failure_percentage_request_volume.unwrap_or(50),
        detect_degraded: o.detect_degraded_hosts.unwrap_or(false),
        uneject_on_health_check: o.successful_active_health_check_uneject_host.unwrap_or(true),
        interval: positive(o.interval.as_ref(), Duration::from_secs(10), &at.field("interval"), report),
        base_ejection_time: positive(o.base_ejection_time.as_ref(), Duration::from_secs(30), &at.field("base_ejection_time"), report),
        max_ejection_time: Duration::ZERO,
        jitter: duration(o.max_ejection_time_jitter.as_ref(), Duration::ZERO, &at.field("max_ejection_time_jitter"), report),
    };
    // Without a maximum it is 300 s, or the base if that is longer.
    let default = spec.base_ejection_time.max(Duration::from_secs(300));
    let max_at = at.field("max_ejection_time");
    let max = positive(o.max_ejection_time.as_ref(), default, &max_at, report);
    if max < spec.base_ejection_time {
        report.error(&max_at, format!("{max:?}"), "at least base_ejection_time");
    }
    ignore(report, at, &[(!o.monitors.is_empty(), "monitors", "monitors by extension are not run")]);
    OutlierSpec { max_ejection_time: max, ..spec }
}

/// `preconnect_policy`; ratios outside of 1 to 3 are errors, as in Envoy.
pub(super) fn preconnect(proto: Option<&pb::cluster::PreconnectPolicy>, at: &At<'_>, report: &mut Report) -> Preconnect {
    let mut ratio = |value: Option<f64>, field: &str| match value {
        None => 1.0,
        Some(ratio) if (1.0..=3.0).contains(&ratio) => ratio,
        Some(other) => {
            report.error(&at.field(field), other.to_string(), "1 to 3");
            1.0
        }
    };
    let none = pb::cluster::PreconnectPolicy::default();
    let proto = proto.unwrap_or(&none);
    Preconnect {
        per_upstream: ratio(proto.per_upstream_preconnect_ratio, "per_upstream_preconnect_ratio"),
        predictive: ratio(proto.predictive_preconnect_ratio, "predictive_preconnect_ratio"),
        eligible: proto
            .preconnect_enabled_metadata
            .as_ref()
            .and_then(|m| MetadataMatcher::compile(m, &at.field("preconnect_enabled_metadata"), report))
            .map(Box::new),
    }
}
