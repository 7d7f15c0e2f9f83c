//! Outlier detection: which hosts answer badly, and for how long they are left out. Consecutive counters act at once on the
//! worker that sees the result; success rates and ejection times are the control thread's ([`tick`]). Source: Envoy's
//! `envoy/config/cluster/v3/outlier_detection.proto` and `outlier_detection_impl.cc`.

mod event;
mod spec;

pub(crate) use event::{EventLog, timestamp};
pub(crate) use spec::OutlierSpec;

use crate::cluster::Cluster;
use crate::host::{HealthFlags, Host, millis};
use crate::stats::OutlierStats;
use arc_swap::ArcSwapOption;
use event::{event, since_last};
use http::HeaderName;
use nuncio_core::Headers;
use nuncio_core::registry::Runtime;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What happened to a request or connection; Envoy's `Upstream::Outlier::Result` and `putHttpResponseCode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A response with this code (gRPC status already mapped to HTTP by the caller, as Envoy's router does).
    HttpCode(u16),
    /// Connecting worked, and what is spoken on the connection will be judged by itself.
    LocalOriginConnectSuccess,
    /// Connecting worked, and nothing else will be known of the connection (tcp_proxy).
    LocalOriginConnectSuccessFinal,
    /// Connecting failed, or the connection was lost before an answer.
    LocalOriginConnectFailed,
    /// No answer in time: connect timeout, per-try timeout, global timeout.
    LocalOriginTimeout,
    /// A remote request failed after it was sent (external origin; non-HTTP protocols).
    ExternalOriginRequestFailed,
    /// A remote request worked (external origin; non-HTTP protocols).
    ExternalOriginRequestSuccess,
    /// The host says of itself that it is degraded. Its answer is reported as well.
    Degraded,
}

/// Requests of one interval.
#[derive(Debug, Default)]
struct Bucket {
    total: AtomicU64,
    success: AtomicU64,
}

impl Bucket {
    fn count(&self, success: bool) {
        self.total.fetch_add(1, Ordering::Relaxed);
        if success {
            self.success.fetch_add(1, Ordering::Relaxed);
        }
    }
    /// Success rate in percent and number of requests since the last call; none without requests.
    fn take(&self) -> Option<(f64, u64)> {
        let (success, total) = (self.success.swap(0, Ordering::Relaxed), self.total.swap(0, Ordering::Relaxed));
        (total > 0).then(|| (100.0 * success.min(total) as f64 / total as f64, total))
    }
}

/// Outlier state of one host. Made when the host's first result is reported.
#[derive(Debug)]
pub struct HostMonitor {
    consecutive_5xx: AtomicU32,
    consecutive_gateway_failure: AtomicU32,
    consecutive_local_origin_failure: AtomicU32,
    external: Bucket,
    local: Bucket,
    ejections: AtomicU32,
    /// Multiplier of the ejection time.
    backoff: AtomicU32,
    /// Milliseconds; plus one, 0 for never.
    ejected_at: AtomicU64,
    unejected_at: AtomicU64,
    jitter: AtomicU64,
    /// Of being degraded, which takes turns of its own: as above.
    degraded_backoff: AtomicU32,
    degraded_at: AtomicU64,
    degraded_jitter: AtomicU64,
    /// Bits of the last success rates in percent; -1 if unknown.
    success_rate: AtomicU64,
    local_success_rate: AtomicU64,
}

impl Default for HostMonitor {
    fn default() -> Self {
        let unknown = || AtomicU64::new((-1.0f64).to_bits());
        Self {
            consecutive_5xx: AtomicU32::new(0),
            consecutive_gateway_failure: AtomicU32::new(0),
            consecutive_local_origin_failure: AtomicU32::new(0),
            external: Bucket::default(),
            local: Bucket::default(),
            ejections: AtomicU32::new(0),
            backoff: AtomicU32::new(0),
            ejected_at: AtomicU64::new(0),
            unejected_at: AtomicU64::new(0),
            jitter: AtomicU64::new(0),
            degraded_backoff: AtomicU32::new(0),
            degraded_at: AtomicU64::new(0),
            degraded_jitter: AtomicU64::new(0),
            success_rate: unknown(),
            local_success_rate: unknown(),
        }
    }
}

impl HostMonitor {
    /// Success rate of the last interval in percent; -1 if there were too few requests.
    pub fn success_rate(&self) -> f64 {
        f64::from_bits(self.success_rate.load(Ordering::Relaxed))
    }
    /// As [`Self::success_rate`], of connecting.
    pub fn local_origin_success_rate(&self) -> f64 {
        f64::from_bits(self.local_success_rate.load(Ordering::Relaxed))
    }
    /// How often the host was ejected.
    pub fn ejections(&self) -> u32 {
        self.ejections.load(Ordering::Relaxed)
    }
    fn reset_consecutive(&self) {
        self.consecutive_5xx.store(0, Ordering::Relaxed);
        self.consecutive_gateway_failure.store(0, Ordering::Relaxed);
        self.consecutive_local_origin_failure.store(0, Ordering::Relaxed);
    }
}

/// Why a host is ejected; `data.cluster.v3.OutlierEjectionType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Consecutive5xx,
    ConsecutiveGatewayFailure,
    ConsecutiveLocalOriginFailure,
    SuccessRate,
    SuccessRateLocalOrigin,
    FailurePercentage,
    FailurePercentageLocalOrigin,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Consecutive5xx => "CONSECUTIVE_5XX",
            Self::ConsecutiveGatewayFailure => "CONSECUTIVE_GATEWAY_FAILURE",
            Self::ConsecutiveLocalOriginFailure => "CONSECUTIVE_LOCAL_ORIGIN_FAILURE",
            Self::SuccessRate => "SUCCESS_RATE",
            Self::SuccessRateLocalOrigin => "SUCCESS_RATE_LOCAL_ORIGIN",
            Self::FailurePercentage => "FAILURE_PERCENTAGE",
            Self::FailurePercentageLocalOrigin => "FAILURE_PERCENTAGE_LOCAL_ORIGIN",
        }
    }
    /// How many of a hundred detections are acted upon.
    fn enforcing(self, spec: &OutlierSpec) -> u32 {
        match self {
            Self::Consecutive5xx => spec.enforcing_consecutive_5xx,
            Self::ConsecutiveGatewayFailure => spec.enforcing_consecutive_gateway_failure,
            Self::ConsecutiveLocalOriginFailure => spec.enforcing_consecutive_local_origin_failure,
            Self::SuccessRate => spec.enforcing_success_rate,
            Self::SuccessRateLocalOrigin => spec.enforcing_local_origin_success_rate,
            Self::FailurePercentage => spec.enforcing_failure_percentage,
            Self::FailurePercentageLocalOrigin => spec.enforcing_failure_percentage_local_origin,
        }
    }
    fn count_detected(self, stats: &OutlierStats) {
        match self {
            Self::Consecutive5xx => {
                stats.ejections_consecutive_5xx.inc();
                stats.ejections_detected_consecutive_5xx.inc();
            }
            Self::ConsecutiveGatewayFailure => stats.ejections_detected_consecutive_gateway_failure.inc(),
            Self::ConsecutiveLocalOriginFailure => stats.ejections_detected_consecutive_local_origin_failure.inc(),
            Self::SuccessRate => {
                stats.ejections_success_rate.inc();
                stats.ejections_detected_success_rate.inc();
            }
            Self::SuccessRateLocalOrigin => {
                stats.ejections_success_rate.inc();
                stats.ejections_detected_local_origin_success_rate.inc();
            }
            Self::FailurePercentage => stats.ejections_detected_failure_percentage.inc(),
            Self::FailurePercentageLocalOrigin => stats.ejections_detected_local_origin_failure_percentage.inc(),
        }
    }
    fn count_enforced(self, stats: &OutlierStats) {
        stats.ejections_enforced_total.inc();
        match self {
            Self::Consecutive5xx => stats.ejections_enforced_consecutive_5xx.inc(),
            Self::ConsecutiveGatewayFailure => stats.ejections_enforced_consecutive_gateway_failure.inc(),
            Self::ConsecutiveLocalOriginFailure => stats.ejections_enforced_consecutive_local_origin_failure.inc(),
            Self::SuccessRate => stats.ejections_enforced_success_rate.inc(),
            Self::SuccessRateLocalOrigin => stats.ejections_enforced_local_origin_success_rate.inc(),
            Self::FailurePercentage => stats.ejections_enforced_failure_percentage.inc(),
            Self::FailurePercentageLocalOrigin => stats.ejections_enforced_local_origin_failure_percentage.inc(),
        }
    }
}

/// Success rates of a cluster's last interval, for admin; -1 if there were too few hosts or requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    pub average: f64,
    pub threshold: f64,
}

impl Default for Rates {
    fn default() -> Self {
        Self { average: -1.0, threshold: -1.0 }
    }
}

/// Outlier state of one cluster.
#[derive(Debug, Default)]
pub(crate) struct OutlierState {
    /// Ejections are decided one at a time, so that workers together keep the percentage.
    deciding: Mutex<()>,
    pub rates: Mutex<(Rates, Rates)>,
    /// What counts now, if runtime makes it another than is configured.
    live: ArcSwapOption<OutlierSpec>,
}

impl OutlierState {
    /// The state of a cluster that is configured so.
    pub(crate) fn new(spec: &OutlierSpec, runtime: &Runtime) -> Self {
        let state = Self::default();
        state.read_runtime(spec, runtime);
        state
    }
    /// Takes what runtime says of `spec` anew.
    pub(crate) fn read_runtime(&self, spec: &OutlierSpec, runtime: &Runtime) {
        let live = spec.with_runtime(runtime);
        self.live.store((live != *spec).then(|| Arc::new(live)));
    }
}

impl Cluster {
    /// Tells outlier detection that `host` answered: `code` as for [`Outcome::HttpCode`], with `headers` of the response.
    pub fn report_response(&self, host: &Host, code: u16, headers: &Headers) {
        self.report(host, Outcome::HttpCode(code));
        if code < 500 && self.spec.outlier.as_ref().is_some_and(|o| o.detect_degraded) && headers.contains(&X_ENVOY_DEGRADED) {
            self.report(host, Outcome::Degraded);
        }
    }
    /// Takes `outlier_detection.*` of runtime anew. Control thread.
    pub(crate) fn read_outlier_runtime(&self) {
        if let Some(spec) = &self.spec.outlier {
            self.outlier_state().read_runtime(spec, self.runtime());
        }
    }
    /// How often [`Self::outlier_tick`] is due; none without outlier detection.
    pub fn outlier_interval(&self) -> Option<Duration> {
        let live = self.outlier_state().live.load();
        live.as_deref().or(self.spec.outlier.as_deref()).map(|spec| spec.interval)
    }
}

static X_ENVOY_DEGRADED: HeaderName = HeaderName::from_static("x-envoy-degraded");

/// A result of `host`.
pub(crate) fn report(cluster: &Cluster, host: &Host, outcome: Outcome) {
    let live = cluster.outlier_state().live.load();
    let Some(spec) = live.as_deref().or(cluster.spec.outlier.as_deref()) else { return };
    let monitor = host.monitor.get_or_init(Box::default);
    if outcome == Outcome::Degraded {
        return degrade(cluster, spec, host, monitor, Instant::now());
    }
    if spec.split {
        match outcome {
            Outcome::HttpCode(code) => response(cluster, spec, host, monitor, code),
            Outcome::LocalOriginConnectSuccess | Outcome::LocalOriginConnectSuccessFinal => {
                monitor.local.count(true);
                monitor.consecutive_local_origin_failure.store(0, Ordering::Relaxed);
            }
            Outcome::LocalOriginConnectFailed | Outcome::LocalOriginTimeout => {
                monitor.local.count(false);
                if reached(&monitor.consecutive_local_origin_failure, spec.consecutive_local_origin_failure) {
                    detected(cluster, spec, host, monitor, Kind::ConsecutiveLocalOriginFailure);
                }
            }
            Outcome::ExternalOriginRequestFailed => response(cluster, spec, host, monitor, 500),
            Outcome::ExternalOriginRequestSuccess => response(cluster, spec, host, monitor, 200),
            Outcome::Degraded => {}
        }
        return;
    }
    let code = match outcome {
        Outcome::HttpCode(code) => code,
        Outcome::LocalOriginConnectSuccess | Outcome::Degraded => return,
        Outcome::LocalOriginConnectSuccessFinal | Outcome::ExternalOriginRequestSuccess => 200,
        Outcome::LocalOriginConnectFailed => 503,
        Outcome::LocalOriginTimeout => 504,
        Outcome::ExternalOriginRequestFailed => 500,
    };
    response(cluster, spec, host, monitor, code);
}

fn response(cluster: &Cluster, spec: &OutlierSpec, host: &Host, monitor: &HostMonitor, code: u16) {
    let failed = (500..600).contains(&code);
    monitor.external.count(!failed);
    if !failed {
        // Loads are cheaper than stores that other cores would have to hear of.
        for counter in [&monitor.consecutive_5xx, &monitor.consecutive_gateway_failure] {
            if counter.load(Ordering::Relaxed) != 0 {
                counter.store(0, Ordering::Relaxed);
            }
        }
        return;
    }
    if (502..=504).contains(&code) {
        if reached(&monitor.consecutive_gateway_failure, spec.consecutive_gateway_failure) {
            detected(cluster, spec, host, monitor, Kind::ConsecutiveGatewayFailure);
        }
    } else {
        monitor.consecutive_gateway_failure.store(0, Ordering::Relaxed);
    }
    if reached(&monitor.consecutive_5xx, spec.consecutive_5xx) {
        detected(cluster, spec, host, monitor, Kind::Consecutive5xx);
    }
}

/// Counts one more; whether that makes `limit`.
fn reached(counter: &AtomicU32, limit: u32) -> bool {
    counter.fetch_add(1, Ordering::Relaxed).wrapping_add(1) == limit
}

/// A row of failures is complete. The counter starts anew, so that the next row is seen even without a success in between.
fn detected(cluster: &Cluster, spec: &OutlierSpec, host: &Host, monitor: &HostMonitor, kind: Kind) {
    if !host.flags().has(HealthFlags::FAILED_OUTLIER_CHECK) && !host.is_removed() {
        kind.count_detected(cluster.stats().outlier());
        eject(cluster, spec, host, monitor, kind, Instant::now());
    }
    match kind {
        Kind::Consecutive5xx => monitor.consecutive_5xx.store(0, Ordering::Relaxed),
        Kind::ConsecutiveGatewayFailure => monitor.consecutive_gateway_failure.store(0, Ordering::Relaxed),
        _ => monitor.consecutive_local_origin_failure.store(0, Ordering::Relaxed),
    }
}

fn eject(cluster: &Cluster, spec: &OutlierSpec, host: &Host, monitor: &HostMonitor, kind: Kind, now: Instant) {
    let guard = cluster.outlier_state().deciding.lock().unwrap_or_else(PoisonError::into_inner);
    if host.flags().has(HealthFlags::FAILED_OUTLIER_CHECK) {
        return;
    }
    let stats = cluster.stats().outlier();
    let (ejected, hosts) = cluster.count_hosts(|h| h.flags().has(HealthFlags::FAILED_OUTLIER_CHECK));
    let percent = 100.0 * (ejected as f64 + 1.0) / (hosts.max(1) as f64);
    if percent > f64::from(spec.max_ejection_percent) && !(ejected == 0 && spec.always_eject_one) {
        stats.ejections_overflow.inc();
        return;
    }
    if matches!(kind, Kind::Consecutive5xx | Kind::SuccessRate) {
        stats.ejections_total.inc();
    }
    let enforced = fastrand::u32(0..100) < kind.enforcing(spec);
    if enforced {
        host.set_flag(HealthFlags::FAILED_OUTLIER_CHECK);
        monitor.ejections.fetch_add(1, Ordering::Relaxed);
        monitor.ejected_at.store(millis(now).saturating_add(1), Ordering::Relaxed);
        monitor.jitter.store(jitter(spec), Ordering::Relaxed);
        longer(spec, &monitor.backoff);
        kind.count_enforced(stats);
        stats.ejections_active.inc();
    }
    drop(guard);
    if enforced {
        cluster.health_changed(host, false);
    }
    cluster.log_outlier(|| {
        let since = since_last(monitor, now, true);
        let base = event(cluster, host, kind.name(), "EJECT", since, monitor.ejections());
        let (external, local) = *cluster.outlier_state().rates.lock().unwrap_or_else(PoisonError::into_inner);
        let rates = |rates: Rates, own: f64| {
            format!(
                "\"eject_success_rate_event\":{{\"host_success_rate\":{},\"cluster_average_success_rate\":{},\"cluster_success_rate_ejection_threshold\":{}}}",
                own as i64, rates.average as i64, rates.threshold as i64
            )
        };
        let what = match kind {
            Kind::SuccessRate => rates(external, monitor.success_rate()),
            Kind::SuccessRateLocalOrigin => rates(local, monitor.local_origin_success_rate()),
            Kind::FailurePercentage => failure_event(monitor.success_rate()),
            Kind::FailurePercentageLocalOrigin => failure_event(monitor.local_origin_success_rate()),
            _ => "\"eject_consecutive_event\":{}".to_string(),
        };
        format!("{base},\"enforced\":{enforced},{what}}}\n")
    });
}

/// A random part of `max_ejection_time_jitter`, in milliseconds.
fn jitter(spec: &OutlierSpec) -> u64 {
    u64::try_from(spec.jitter.mul_f64(fastrand::f64()).as_millis()).unwrap_or(0)
}

/// Multiplies the next time that `backoff` stands for, up to the maximum.
fn longer(spec: &OutlierSpec, backoff: &AtomicU32) {
    let times = backoff.load(Ordering::Relaxed);
    if spec.base_ejection_time.saturating_mul(times) < spec.max_ejection_time.saturating_add(spec.base_ejection_time) {
        backoff.store(times.saturating_add(1), Ordering::Relaxed);
    }
}

/// Whether the time that began at `since` (milliseconds plus one) is over.
fn is_over(spec: &OutlierSpec, backoff: &AtomicU32, since: &AtomicU64, jitter: &AtomicU64, now: Instant) -> bool {
    let time = spec.base_ejection_time.saturating_mul(backoff.load(Ordering::Relaxed)).min(spec.max_ejection_time);
    let time = u64::try_from(time.as_millis()).unwrap_or(u64::MAX).saturating_add(jitter.load(Ordering::Relaxed));
    millis(now).saturating_add(1).saturating_sub(since.load(Ordering::Relaxed)) >= time
}

/// A host said that it is degraded: it gets what healthy hosts cannot take, for as long as it would be ejected. No percentage of the
/// cluster bounds that, because the host goes on serving.
fn degrade(cluster: &Cluster, spec: &OutlierSpec, host: &Host, monitor: &HostMonitor, now: Instant) {
    if host.is_removed() || !host.set_flag(HealthFlags::DEGRADED_OUTLIER_DETECTION) {
        return;
    }
    cluster.stats().outlier().ejections_detected_degradation.inc();
    monitor.degraded_at.store(millis(now).saturating_add(1), Ordering::Relaxed);
    monitor.degraded_jitter.store(jitter(spec), Ordering::Relaxed);
    longer(spec, &monitor.degraded_backoff);
    cluster.health_changed(host, true);
    cluster.log_outlier(|| {
        let base = event(cluster, host, "DEGRADED", "EJECT", since_last(monitor, now, true), monitor.ejections());
        format!("{base},\"enforced\":true,\"eject_consecutive_event\":{{}}}}\n")
    });
}

/// Logs that a host is taken back; as in Envoy, whatever the reason was.
fn log_return(cluster: &Cluster, host: &Host, monitor: &HostMonitor, now: Instant) {
    cluster.log_outlier(|| {
        let since = since_last(monitor, now, false);
        format!("{},\"enforced\":false}}\n", event(cluster, host, "CONSECUTIVE_5XX", "UNEJECT", since, monitor.ejections()))
    });
}

fn failure_event(rate: f64) -> String {
    format!("\"eject_failure_percentage_event\":{{\"host_success_rate\":{}}}", rate as i64)
}

/// Takes a host back.
fn uneject(cluster: &Cluster, host: &Host, monitor: &HostMonitor, now: Instant) {
    if !host.clear_flag(HealthFlags::FAILED_OUTLIER_CHECK) {
        return;
    }
    monitor.reset_consecutive();
    monitor.unejected_at.store(millis(now).saturating_add(1), Ordering::Relaxed);
    cluster.stats().outlier().ejections_active.dec();
    cluster.health_changed(host, true);
    log_return(cluster, host, monitor, now);
}

/// An active health check passed: the host may come back early.
pub(crate) fn health_check_passed(cluster: &Cluster, host: &Host) {
    if cluster.spec.outlier.as_ref().is_some_and(|spec| spec.uneject_on_health_check)
        && let Some(monitor) = host.monitor.get()
    {
        uneject(cluster, host, monitor, Instant::now());
    }
}

/// A host leaves the cluster: it is not among the ejected any more.
pub(crate) fn host_removed(cluster: &Cluster, host: &Host) {
    if host.clear_flag(HealthFlags::FAILED_OUTLIER_CHECK) {
        cluster.stats().outlier().ejections_active.dec();
    }
}

/// The end of an interval: hosts whose time is over come back, success rates are judged. Control thread.
pub(crate) fn tick(cluster: &Cluster, now: Instant) {
    let live = cluster.outlier_state().live.load();
    let Some(spec) = live.as_deref().or(cluster.spec.outlier.as_deref()) else { return };
    let hosts: Vec<Arc<Host>> = cluster.hosts();
    let mut external = Vec::new();
    let mut local = Vec::new();
    for host in &hosts {
        let Some(monitor) = host.monitor.get() else { continue };
        if host.flags().has(HealthFlags::FAILED_OUTLIER_CHECK) {
            if is_over(spec, &monitor.backoff, &monitor.ejected_at, &monitor.jitter, now) {
                uneject(cluster, host, monitor, now);
            }
        } else {
            let backoff = monitor.backoff.load(Ordering::Relaxed);
            monitor.backoff.store(backoff.saturating_sub(1), Ordering::Relaxed);
        }
        if !host.flags().has(HealthFlags::DEGRADED_OUTLIER_DETECTION) {
            let backoff = monitor.degraded_backoff.load(Ordering::Relaxed);
            monitor.degraded_backoff.store(backoff.saturating_sub(1), Ordering::Relaxed);
        } else if is_over(spec, &monitor.degraded_backoff, &monitor.degraded_at, &monitor.degraded_jitter, now)
            && host.clear_flag(HealthFlags::DEGRADED_OUTLIER_DETECTION)
        {
            cluster.health_changed(host, true);
            log_return(cluster, host, monitor, now);
        }
        monitor.success_rate.store((-1.0f64).to_bits(), Ordering::Relaxed);
        monitor.local_success_rate.store((-1.0f64).to_bits(), Ordering::Relaxed);
        let (e, l) = (monitor.external.take(), monitor.local.take());
        if !host.flags().has(HealthFlags::FAILED_OUTLIER_CHECK) {
            external.extend(e.map(|e| (host, monitor.as_ref(), e)));
            local.extend(l.map(|l| (host, monitor.as_ref(), l)));
        }
    }
    let mut rates = (Rates::default(), Rates::default());
    judge(cluster, spec, hosts.len(), &external, false, &mut rates, now);
    judge(cluster, spec, hosts.len(), &local, true, &mut rates, now);
}

type Sample<'a> = (&'a Arc<Host>, &'a HostMonitor, (f64, u64));

/// Ejects by success rate and by failure percentage.
fn judge(
    cluster: &Cluster,
    spec: &OutlierSpec,
    hosts: usize,
    samples: &[Sample<'_>],
    local: bool,
    rates: &mut (Rates, Rates),
    now: Instant,
) {
    let (rate_hosts, failure_hosts) = (spec.success_rate_minimum_hosts as usize, spec.failure_percentage_minimum_hosts as usize);
    let enough = hosts >= rate_hosts || hosts >= failure_hosts;
    let (rate_volume, failure_volume) = (u64::from(spec.success_rate_request_volume), u64::from(spec.failure_percentage_request_volume));
    let samples = if enough { samples } else { &[] };
    for (_, monitor, (rate, volume)) in samples {
        if *volume >= rate_volume.min(failure_volume) {
            let place = if local { &monitor.local_success_rate } else { &monitor.success_rate };
            place.store(rate.to_bits(), Ordering::Relaxed);
        }
    }
    let valid = |least: u64| samples.iter().filter(move |s| s.2.1 >= least);
    let by_rate: Vec<_> = valid(rate_volume).collect();
    let judged = (!by_rate.is_empty() && by_rate.len() >= rate_hosts).then(|| {
        let values: Vec<f64> = by_rate.iter().map(|s| s.2.0).collect();
        threshold(&values, f64::from(spec.success_rate_stdev_factor) / 1000.0)
    });
    if let Some(found) = judged {
        *(if local { &mut rates.1 } else { &mut rates.0 }) = found;
    }
    *cluster.outlier_state().rates.lock().unwrap_or_else(PoisonError::into_inner) = *rates;
    if let Some(found) = judged {
        let kind = if local { Kind::SuccessRateLocalOrigin } else { Kind::SuccessRate };
        for (host, monitor, _) in by_rate.iter().filter(|s| s.2.0 < found.threshold) {
            kind.count_detected(cluster.stats().outlier());
            eject(cluster, spec, host, monitor, kind, now);
        }
    }
    let by_failure: Vec<_> = valid(failure_volume).collect();
    if !by_failure.is_empty() && by_failure.len() >= failure_hosts {
        let kind = if local { Kind::FailurePercentageLocalOrigin } else { Kind::FailurePercentage };
        for (host, monitor, _) in by_failure.iter().filter(|s| 100.0 - s.2.0 >= f64::from(spec.failure_percentage_threshold)) {
            kind.count_detected(cluster.stats().outlier());
            eject(cluster, spec, host, monitor, kind, now);
        }
    }
}

/// Mean, and mean less `factor` standard deviations.
fn threshold(rates: &[f64], factor: f64) -> Rates {
    let n = rates.len().max(1) as f64;
    let average = rates.iter().sum::<f64>() / n;
    let variance = rates.iter().map(|r| (r - average) * (r - average)).sum::<f64>() / n;
    Rates { average, threshold: average - factor * variance.sqrt() }
}
