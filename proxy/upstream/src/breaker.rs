//! Circuit breakers: shared limits per cluster and routing priority. Compiled on the control thread, counted on every worker.
//! Source: Envoy's `envoy/config/cluster/v3/circuit_breaker.proto` and `resource_manager_impl.h`.

use crate::context::RoutingPriority;
use crate::host::millis;
use nuncio_core::registry::Runtime;
use nuncio_stats::Gauge;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// One counted resource.
#[derive(Debug)]
pub struct Resource {
    /// The limit now; runtime may change it.
    max: AtomicU32,
    /// The limit without runtime.
    configured: u32,
    current: AtomicU64,
}

impl Resource {
    /// A resource that may be held `max` times at once.
    pub fn new(max: u32) -> Self {
        Self { max: AtomicU32::new(max), configured: max, current: AtomicU64::new(0) }
    }
    /// The limit.
    pub fn max(&self) -> u32 {
        self.max.load(Ordering::Relaxed)
    }
    /// How often it is held now.
    pub fn current(&self) -> u64 {
        self.current.load(Ordering::Relaxed)
    }
    /// Whether one more fits.
    pub fn can_create(&self) -> bool {
        self.current() < u64::from(self.max())
    }
    /// Whether the limit is reached (`*_open` gauges).
    pub fn is_open(&self) -> bool {
        !self.can_create()
    }
    /// Takes one, whatever the limit; Envoy allows small overshoot. True if this reached the limit.
    pub(crate) fn acquire(&self) -> bool {
        self.current.fetch_add(1, Ordering::Relaxed) + 1 == u64::from(self.max())
    }
    /// Gives one back. True if this left the limit.
    pub(crate) fn release(&self) -> bool {
        self.current.fetch_sub(1, Ordering::Relaxed) == u64::from(self.max())
    }
}

/// `CircuitBreakers.Thresholds.RetryBudget`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryBudget {
    /// Percent of active and pending requests that may be retries. Default 20.
    pub budget_percent: f64,
    /// Retries that are always allowed. Default 3.
    pub min_retry_concurrency: u32,
    /// `budget_interval`: requests begun within it count too, not only those that run; zero for none.
    pub interval: Duration,
}

/// A retry budget as runtime has it now.
#[derive(Debug)]
pub struct LiveBudget {
    pub configured: RetryBudget,
    /// Bits of the percentage.
    percent: AtomicU64,
    least: AtomicU32,
}

impl LiveBudget {
    fn new(configured: RetryBudget) -> Self {
        Self {
            configured,
            percent: AtomicU64::new(configured.budget_percent.to_bits()),
            least: AtomicU32::new(configured.min_retry_concurrency),
        }
    }
    /// `budget_percent`.
    pub fn percent(&self) -> f64 {
        f64::from_bits(self.percent.load(Ordering::Relaxed))
    }
    /// `min_retry_concurrency`.
    pub fn least(&self) -> u32 {
        self.least.load(Ordering::Relaxed)
    }
}

/// Requests begun in about the last interval: the current slice, and the previous one as far as it still reaches.
#[derive(Debug, Default)]
struct Recent {
    /// Number of the current slice, and what began in it and the one before; one word each, no lock.
    slice: AtomicU64,
    current: AtomicU64,
    previous: AtomicU64,
}

impl Recent {
    /// Goes on to the slice of `now`; gives how far it is gone, 0 to 1. Workers may race; a budget may be off by their requests.
    fn turn(&self, interval: Duration, now: u64) -> f64 {
        let length = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX).max(1);
        let slice = now / length;
        let seen = self.slice.load(Ordering::Relaxed);
        if seen != slice && self.slice.compare_exchange(seen, slice, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            let last = self.current.swap(0, Ordering::Relaxed);
            self.previous.store(if slice == seen + 1 { last } else { 0 }, Ordering::Relaxed);
        }
        (now % length) as f64 / length as f64
    }
    fn count(&self, interval: Duration, now: u64) -> u64 {
        let gone = self.turn(interval, now);
        self.current.load(Ordering::Relaxed) + (self.previous.load(Ordering::Relaxed) as f64 * (1.0 - gone)) as u64
    }
}

/// `CircuitBreakers.Thresholds` of one priority.
#[derive(Debug)]
pub struct Thresholds {
    pub connections: Resource,
    pub pending: Resource,
    pub requests: Resource,
    pub retries: Resource,
    /// `max_connection_pools`; unlimited by default.
    pub pools: Resource,
    pub budget: Option<LiveBudget>,
    /// `track_remaining`: whether `remaining_*` gauges are kept.
    pub track_remaining: bool,
    recent: Option<Box<Recent>>,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self::new(1024, 1024, 1024, 3, u32::MAX, None, false)
    }
}

impl Thresholds {
    pub(crate) fn new(
        connections: u32,
        pending: u32,
        requests: u32,
        retries: u32,
        pools: u32,
        budget: Option<RetryBudget>,
        track_remaining: bool,
    ) -> Self {
        Self {
            connections: Resource::new(connections),
            pending: Resource::new(pending),
            requests: Resource::new(requests),
            retries: Resource::new(retries),
            pools: Resource::new(pools),
            recent: budget.filter(|b| !b.interval.is_zero()).map(|_| Box::default()),
            budget: budget.map(LiveBudget::new),
            track_remaining,
        }
    }
    /// How many retries may run at once now: `max_retries`, or what the budget gives.
    pub fn max_retries(&self) -> u64 {
        match &self.budget {
            None => u64::from(self.retries.max()),
            Some(budget) => {
                let mut active = self.requests.current().saturating_add(self.pending.current());
                if let Some(recent) = &self.recent {
                    active = active.max(recent.count(budget.configured.interval, millis(Instant::now())));
                }
                let share = (budget.percent() / 100.0 * active as f64) as u64;
                share.max(u64::from(budget.least()))
            }
        }
    }
    /// Takes the limits from runtime: `circuit_breakers.<cluster>.<priority>.max_connections` and so on. Control thread. `stats`: the
    /// gauges, if the cluster was used.
    pub(crate) fn read_runtime(&self, runtime: &Runtime, prefix: &str, stats: Option<&BreakerStats>) {
        let limit =
            |name: &str, default: u32| u32::try_from(runtime.integer(&format!("{prefix}.{name}"), u64::from(default))).unwrap_or(u32::MAX);
        for kind in Kind::ALL {
            let resource = self.resource(kind);
            resource.max.store(limit(kind.key(), resource.configured), Ordering::Relaxed);
            if let Some(stats) = stats {
                stats.open(kind).set(i64::from(resource.is_open()));
                self.show_remaining(kind, stats);
            }
        }
        if let Some(budget) = &self.budget {
            let key = format!("{prefix}.retry_budget.budget_percent");
            let percent = runtime.get(&key).and_then(|v| v.parse::<f64>().ok()).filter(|p| (0.0..=100.0).contains(p));
            budget.percent.store(percent.unwrap_or(budget.configured.budget_percent).to_bits(), Ordering::Relaxed);
            let least = limit("retry_budget.min_retry_concurrency", budget.configured.min_retry_concurrency);
            budget.least.store(least, Ordering::Relaxed);
        }
    }
    /// Sets the `remaining_*` gauge of `kind`, if it is kept.
    pub(crate) fn show_remaining(&self, kind: Kind, stats: &BreakerStats) {
        if self.track_remaining {
            let resource = self.resource(kind);
            stats.remaining(kind).set(i64::from(resource.max()).saturating_sub_unsigned(resource.current()).max(0));
        }
    }
    /// A request begins; only budgets with an interval look.
    pub(crate) fn request_began(&self) {
        if let (Some(recent), Some(budget)) = (&self.recent, &self.budget) {
            recent.turn(budget.configured.interval, millis(Instant::now()));
            recent.current.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The circuit breakers of a cluster.
#[derive(Debug, Default)]
pub struct CircuitBreakers {
    pub default: Thresholds,
    pub high: Thresholds,
}

impl CircuitBreakers {
    /// The thresholds of `priority`.
    pub fn at(&self, priority: RoutingPriority) -> &Thresholds {
        match priority {
            RoutingPriority::Default => &self.default,
            RoutingPriority::High => &self.high,
        }
    }
}

/// Gauges of `cluster.<name>.circuit_breakers.<priority>.`; set on transitions only.
#[derive(Debug, Default)]
pub struct BreakerStats {
    pub cx_open: Gauge,
    pub rq_pending_open: Gauge,
    pub rq_open: Gauge,
    pub rq_retry_open: Gauge,
    pub cx_pool_open: Gauge,
    pub remaining_cx: Gauge,
    pub remaining_pending: Gauge,
    pub remaining_rq: Gauge,
    pub remaining_retries: Gauge,
    pub remaining_cx_pools: Gauge,
}

/// Which resource of [`Thresholds`] is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Connection,
    Pending,
    Request,
    Retry,
    Pool,
}

impl Kind {
    pub(crate) const ALL: [Self; 5] = [Self::Connection, Self::Pending, Self::Request, Self::Retry, Self::Pool];
    /// The field of `Thresholds`, and the end of the runtime key.
    fn key(self) -> &'static str {
        match self {
            Self::Connection => "max_connections",
            Self::Pending => "max_pending_requests",
            Self::Request => "max_requests",
            Self::Retry => "max_retries",
            Self::Pool => "max_connection_pools",
        }
    }
}

impl Thresholds {
    fn resource(&self, kind: Kind) -> &Resource {
        match kind {
            Kind::Connection => &self.connections,
            Kind::Pending => &self.pending,
            Kind::Request => &self.requests,
            Kind::Retry => &self.retries,
            Kind::Pool => &self.pools,
        }
    }
    /// Takes one of `kind` and keeps the gauges true.
    pub(crate) fn acquire(&self, kind: Kind, stats: &BreakerStats) {
        let resource = self.resource(kind);
        if resource.acquire() {
            stats.open(kind).set(1);
        }
        self.show_remaining(kind, stats);
    }
    /// Takes one of `kind` if it fits.
    pub(crate) fn try_acquire(&self, kind: Kind, stats: &BreakerStats) -> bool {
        let fits = match kind {
            Kind::Retry => self.retries.current() < self.max_retries(),
            _ => self.resource(kind).can_create(),
        };
        if fits {
            self.acquire(kind, stats);
        }
        fits
    }
    /// Gives one of `kind` back and keeps the gauges true.
    pub(crate) fn release(&self, kind: Kind, stats: &BreakerStats) {
        let resource = self.resource(kind);
        if resource.release() {
            stats.open(kind).set(0);
        }
        self.show_remaining(kind, stats);
    }
}

impl BreakerStats {
    fn open(&self, kind: Kind) -> &Gauge {
        match kind {
            Kind::Connection => &self.cx_open,
            Kind::Pending => &self.rq_pending_open,
            Kind::Request => &self.rq_open,
            Kind::Retry => &self.rq_retry_open,
            Kind::Pool => &self.cx_pool_open,
        }
    }
    fn remaining(&self, kind: Kind) -> &Gauge {
        match kind {
            Kind::Connection => &self.remaining_cx,
            Kind::Pending => &self.remaining_pending,
            Kind::Request => &self.remaining_rq,
            Kind::Retry => &self.remaining_retries,
            Kind::Pool => &self.remaining_cx_pools,
        }
    }
}
