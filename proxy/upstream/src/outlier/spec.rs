//! What outlier detection is told: the configuration, and what runtime makes of it. Compiled and changed on the control thread.
//! Source: `envoy/config/cluster/v3/outlier_detection.proto`, docs "Outlier detection" (runtime).

use nuncio_core::registry::Runtime;
use std::time::Duration;

/// `OutlierDetection`; numbers are counts or percent.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct OutlierSpec {
    pub consecutive_5xx: u32,
    pub enforcing_consecutive_5xx: u32,
    pub consecutive_gateway_failure: u32,
    pub enforcing_consecutive_gateway_failure: u32,
    /// `split_external_local_origin_errors`.
    pub split: bool,
    pub consecutive_local_origin_failure: u32,
    pub enforcing_consecutive_local_origin_failure: u32,
    pub max_ejection_percent: u32,
    pub always_eject_one: bool,
    pub enforcing_success_rate: u32,
    pub success_rate_minimum_hosts: u32,
    pub success_rate_request_volume: u32,
    /// In thousandths.
    pub success_rate_stdev_factor: u32,
    pub enforcing_local_origin_success_rate: u32,
    pub failure_percentage_threshold: u32,
    pub enforcing_failure_percentage: u32,
    pub enforcing_failure_percentage_local_origin: u32,
    pub failure_percentage_minimum_hosts: u32,
    pub failure_percentage_request_volume: u32,
    /// `successful_active_health_check_uneject_host`.
    pub uneject_on_health_check: bool,
    /// `detect_degraded_hosts`: responses with `x-envoy-degraded` make their host degraded.
    pub detect_degraded: bool,
    pub interval: Duration,
    pub base_ejection_time: Duration,
    pub max_ejection_time: Duration,
    pub jitter: Duration,
}

impl OutlierSpec {
    /// This configuration with the values of runtime keys `outlier_detection.*`, which count for all clusters.
    pub(crate) fn with_runtime(&self, runtime: &Runtime) -> Self {
        let value = |name: &str, default: u64| runtime.integer(&format!("outlier_detection.{name}"), default);
        let number = |name: &str, default: u32| u32::try_from(value(name, u64::from(default))).unwrap_or(u32::MAX);
        let percent = |name: &str, default: u32| number(name, default).min(100);
        let time =
            |name: &str, default: Duration| Duration::from_millis(value(name, u64::try_from(default.as_millis()).unwrap_or(u64::MAX)));
        Self {
            consecutive_5xx: number("consecutive_5xx", self.consecutive_5xx),
            enforcing_consecutive_5xx: percent("enforcing_consecutive_5xx", self.enforcing_consecutive_5xx),
            consecutive_gateway_failure: number("consecutive_gateway_failure", self.consecutive_gateway_failure),
            enforcing_consecutive_gateway_failure: percent(
                "enforcing_consecutive_gateway_failure",
                self.enforcing_consecutive_gateway_failure,
            ),
            consecutive_local_origin_failure: number("consecutive_local_origin_failure", self.consecutive_local_origin_failure),
            enforcing_consecutive_local_origin_failure: percent(
                "enforcing_consecutive_local_origin_failure",
                self.enforcing_consecutive_local_origin_failure,
            ),
            max_ejection_percent: percent("max_ejection_percent", self.max_ejection_percent),
            enforcing_success_rate: percent("enforcing_success_rate", self.enforcing_success_rate),
            success_rate_minimum_hosts: number("success_rate_minimum_hosts", self.success_rate_minimum_hosts),
            success_rate_request_volume: number("success_rate_request_volume", self.success_rate_request_volume),
            success_rate_stdev_factor: number("success_rate_stdev_factor", self.success_rate_stdev_factor),
            enforcing_local_origin_success_rate: percent("enforcing_local_origin_success_rate", self.enforcing_local_origin_success_rate),
            failure_percentage_threshold: number("failure_percentage_threshold", self.failure_percentage_threshold),
            enforcing_failure_percentage: percent("enforcing_failure_percentage", self.enforcing_failure_percentage),
            enforcing_failure_percentage_local_origin: percent(
                "enforcing_failure_percentage_local_origin",
                self.enforcing_failure_percentage_local_origin,
            ),
            failure_percentage_minimum_hosts: number("failure_percentage_minimum_hosts", self.failure_percentage_minimum_hosts),
            failure_percentage_request_volume: number("failure_percentage_request_volume", self.failure_percentage_request_volume),
            // A timer that is always due would never let anything else run.
            interval: time("interval_ms", self.interval).max(Duration::from_millis(1)),
            base_ejection_time: time("base_ejection_time_ms", self.base_ejection_time),
            max_ejection_time: time("max_ejection_time_ms", self.max_ejection_time),
            jitter: time("max_ejection_time_jitter_ms", self.jitter),
            split: self.split,
            always_eject_one: self.always_eject_one,
            uneject_on_health_check: self.uneject_on_health_check,
            detect_degraded: self.detect_degraded,
        }
    }
}
