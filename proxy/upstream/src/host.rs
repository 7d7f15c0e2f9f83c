//! Upstream hosts. A [`Host`] is an immutable description out of one endpoint update; what lives longer than an update
//! (counters, health, outlier state) is in its [`HostState`], which hosts of the same address share from update to update.
//! Described on the control thread, counted and flagged on every worker.

use crate::orca::OrcaHost;
use crate::outlier::HostMonitor;
use nuncio_core::Address;
use nuncio_core::views::HostView;
use nuncio_proto::Message;
use nuncio_proto::envoy::config::core::v3::{HealthStatus, Locality, Metadata};
use std::any::Any;
use std::fmt;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

/// Why a host is not plainly healthy; Envoy's `Host::HealthFlag`. Bits may be combined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HealthFlags(pub u32);

impl HealthFlags {
    pub const FAILED_ACTIVE_HC: u32 = 1;
    pub const FAILED_OUTLIER_CHECK: u32 = 1 << 1;
    pub const FAILED_EDS_HEALTH: u32 = 1 << 2;
    pub const DEGRADED_ACTIVE_HC: u32 = 1 << 3;
    pub const DEGRADED_EDS_HEALTH: u32 = 1 << 4;
    pub const PENDING_DYNAMIC_REMOVAL: u32 = 1 << 5;
    pub const PENDING_ACTIVE_HC: u32 = 1 << 6;
    pub const EXCLUDED_VIA_IMMEDIATE_HC_FAIL: u32 = 1 << 7;
    pub const ACTIVE_HC_TIMEOUT: u32 = 1 << 8;
    pub const EDS_STATUS_DRAINING: u32 = 1 << 9;
    pub const DEGRADED_OUTLIER_DETECTION: u32 = 1 << 10;
    /// Hosts that do not count when health is turned into load.
    pub const EXCLUDED: u32 = Self::PENDING_ACTIVE_HC | Self::EXCLUDED_VIA_IMMEDIATE_HC_FAIL | Self::EDS_STATUS_DRAINING;
    const UNHEALTHY: u32 = Self::FAILED_ACTIVE_HC | Self::FAILED_OUTLIER_CHECK | Self::FAILED_EDS_HEALTH | Self::EDS_STATUS_DRAINING;
    const DEGRADED: u32 = Self::DEGRADED_ACTIVE_HC | Self::DEGRADED_EDS_HEALTH | Self::DEGRADED_OUTLIER_DETECTION;
    const NAMES: [(u32, &'static str); 11] = [
        (Self::FAILED_ACTIVE_HC, "/failed_active_hc"),
        (Self::FAILED_OUTLIER_CHECK, "/failed_outlier_check"),
        (Self::FAILED_EDS_HEALTH, "/failed_eds_health"),
        (Self::DEGRADED_ACTIVE_HC, "/degraded_active_hc"),
        (Self::DEGRADED_EDS_HEALTH, "/degraded_eds_health"),
        (Self::PENDING_DYNAMIC_REMOVAL, "/pending_dynamic_removal"),
        (Self::PENDING_ACTIVE_HC, "/pending_active_hc"),
        (Self::EXCLUDED_VIA_IMMEDIATE_HC_FAIL, "/excluded_via_immediate_hc_fail"),
        (Self::ACTIVE_HC_TIMEOUT, "/active_hc_timeout"),
        (Self::EDS_STATUS_DRAINING, "/eds_status_draining"),
        (Self::DEGRADED_OUTLIER_DETECTION, "/degraded_outlier_detection"),
    ];

    /// Whether any of `flag` is set.
    pub fn has(self, flag: u32) -> bool {
        self.0 & flag != 0
    }
    /// The three classes that load balancing knows.
    pub fn coarse(self) -> Health {
        if self.has(Self::UNHEALTHY) {
            Health::Unhealthy
        } else if self.has(Self::DEGRADED) {
            Health::Degraded
        } else {
            Health::Healthy
        }
    }
}

impl fmt::Display for HealthFlags {
    /// `healthy`, or `/failed_outlier_check/...` as `/clusters` shows it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("healthy");
        }
        Self::NAMES.iter().filter(|(bit, _)| self.has(*bit)).try_for_each(|(_, name)| f.write_str(name))
    }
}

/// Health as load balancing sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    Unhealthy,
    Degraded,
    Healthy,
}

/// Counters of one host; Envoy's `HostStats`. Shared by the workers.
#[derive(Debug, Default)]
pub struct HostStats {
    pub cx_active: AtomicI64,
    pub cx_total: AtomicU64,
    pub cx_connect_fail: AtomicU64,
    pub rq_active: AtomicI64,
    pub rq_pending_active: AtomicI64,
    pub rq_total: AtomicU64,
    pub rq_success: AtomicU64,
    pub rq_error: AtomicU64,
    pub rq_timeout: AtomicU64,
}

/// What of a host outlives endpoint updates.
#[derive(Debug)]
pub struct HostState {
    /// Process-wide unique; key of the pools.
    pub id: u64,
    pub stats: HostStats,
    flags: AtomicU32,
    removed: AtomicBool,
    used: AtomicBool,
    /// No active health check has ended yet, so that the cluster warms.
    unchecked: AtomicBool,
    /// Milliseconds since [`epoch`] plus one at which the host became healthy (slow start); 0 for never.
    healthy_since: AtomicU64,
    pub(crate) monitor: OnceLock<Box<HostMonitor>>,
    orca: OnceLock<Box<OrcaHost>>,
}

/// The moment that host times are counted from.
pub(crate) fn epoch() -> Instant {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    *EPOCH.get_or_init(Instant::now)
}

/// Milliseconds from [`epoch`] to `now`.
pub(crate) fn millis(now: Instant) -> u64 {
    u64::try_from(now.saturating_duration_since(epoch()).as_millis()).unwrap_or(u64::MAX)
}

/// [`millis`] of this moment, for balancing: tests say what time it is.
pub(crate) fn clock() -> u64 {
    #[cfg(test)]
    if let Some(at) = TEST_CLOCK.get() {
        return at;
    }
    millis(Instant::now())
}

#[cfg(test)]
thread_local! {
    /// The time on this thread, if a test stopped it.
    pub(crate) static TEST_CLOCK: std::cell::Cell<Option<u64>> = const { std::cell::Cell::new(None) };
}

impl HostState {
    /// A host never seen before.
    pub(crate) fn new() -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        // Fixed now, so that no host is older than time.
        epoch();
        Arc::new(Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            stats: HostStats::default(),
            flags: AtomicU32::new(0),
            removed: AtomicBool::new(false),
            used: AtomicBool::new(true),
            unchecked: AtomicBool::new(false),
            healthy_since: AtomicU64::new(0),
            monitor: OnceLock::new(),
            orca: OnceLock::new(),
        })
    }
    /// The flags that are set now.
    pub fn flags(&self) -> HealthFlags {
        HealthFlags(self.flags.load(Ordering::Relaxed))
    }
    /// Sets `flag`; true if it was not set.
    pub(crate) fn set_flag(&self, flag: u32) -> bool {
        self.flags.fetch_or(flag, Ordering::Relaxed) & flag == 0
    }
    /// Clears `flag`; true if it was set.
    pub(crate) fn clear_flag(&self, flag: u32) -> bool {
        self.flags.fetch_and(!flag, Ordering::Relaxed) & flag != 0
    }
    /// Health as load balancing sees it.
    pub fn health(&self) -> Health {
        self.flags().coarse()
    }
    /// Load reports; made on first use, by clusters that weigh by them.
    pub(crate) fn orca(&self) -> &OrcaHost {
        self.orca.get_or_init(Box::default)
    }
    /// Whether the host left its cluster; its connections drain.
    pub fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Relaxed)
    }
    pub(crate) fn set_removed(&self, removed: bool) {
        self.removed.store(removed, Ordering::Relaxed);
    }
    /// Whether its first active health check is still to come.
    pub(crate) fn is_unchecked(&self) -> bool {
        self.unchecked.load(Ordering::Relaxed)
    }
    pub(crate) fn set_unchecked(&self, unchecked: bool) {
        self.unchecked.store(unchecked, Ordering::Relaxed);
    }
    /// ORIGINAL_DST: marks the host as used since the last cleanup.
    pub(crate) fn touch(&self) {
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
    }
    /// ORIGINAL_DST: whether the host was used since the last call.
    pub(crate) fn take_used(&self) -> bool {
        self.used.swap(false, Ordering::Relaxed)
    }
    /// When the host became healthy, in milliseconds since [`epoch`]; none if never recorded.
    pub(crate) fn healthy_since(&self) -> Option<u64> {
        self.healthy_since.load(Ordering::Relaxed).checked_sub(1)
    }
    #[cfg(test)]
    pub(crate) fn forget_healthy_since(&self) {
        self.healthy_since.store(0, Ordering::Relaxed);
    }
    pub(crate) fn set_healthy_since(&self, millis: u64) {
        self.healthy_since.store(millis.saturating_add(1), Ordering::Relaxed);
    }
}

/// Metadata kept as wire bytes and decoded when somebody asks: most clusters and hosts are never asked, and decoded maps
/// cost some twenty times their bytes.
#[derive(Debug, Default)]
pub struct LazyMetadata {
    bytes: Box<[u8]>,
    decoded: OnceLock<Box<Metadata>>,
}

impl LazyMetadata {
    /// Keeps `metadata`.
    pub fn new(metadata: Option<&Metadata>) -> Self {
        Self { bytes: metadata.map(|m| m.encode_to_vec().into_boxed_slice()).unwrap_or_default(), decoded: OnceLock::new() }
    }
    /// The metadata; none if there is none.
    pub fn get(&self) -> Option<&Metadata> {
        if self.bytes.is_empty() {
            return None;
        }
        // The bytes were encoded by `new`, so decoding cannot fail; empty metadata stands for the impossible case.
        Some(self.decoded.get_or_init(|| Box::new(Metadata::decode(self.bytes.as_ref()).unwrap_or_default())))
    }
    /// The wire bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// One upstream host as one endpoint update described it.
#[derive(Debug)]
pub struct Host {
    pub(crate) state: Arc<HostState>,
    /// Of LOGICAL_DNS the first address resolved last; it may change while the state stays.
    pub(crate) address: Address,
    pub(crate) hostname: Arc<str>,
    pub(crate) metadata: Arc<LazyMetadata>,
    pub(crate) locality: Option<Arc<Locality>>,
    /// `load_balancing_weight`, at least 1.
    pub(crate) weight: u32,
    pub(crate) priority: u32,
    pub(crate) canary: bool,
    /// `health_status` of the endpoint.
    pub(crate) eds_health: HealthStatus,
    /// Index of the transport socket match that its metadata chose; 0 is the cluster's own socket.
    pub(crate) transport: u16,
    /// `additional_addresses`, for happy eyeballs; the first address is not among them.
    pub(crate) additional: Box<[Address]>,
    /// Where active health checks go, if elsewhere; none inside for the host itself.
    pub(crate) health_check: Option<Box<HealthCheckTarget>>,
}

/// `Endpoint.HealthCheckConfig`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HealthCheckTarget {
    pub address: Option<Address>,
    pub hostname: String,
    pub disabled: bool,
}

impl Host {
    /// A new, healthy host that no endpoint of a configuration describes.
    pub(crate) fn found(address: Address, hostname: Arc<str>) -> Self {
        let state = HostState::new();
        state.set_healthy_since(millis(Instant::now()));
        Self {
            state,
            address,
            hostname,
            metadata: Arc::new(LazyMetadata::default()),
            locality: None,
            weight: 1,
            priority: 0,
            canary: false,
            eds_health: HealthStatus::Unknown,
            transport: 0,
            additional: Box::default(),
            health_check: None,
        }
    }
    /// What outlives endpoint updates.
    pub fn state(&self) -> &Arc<HostState> {
        &self.state
    }
    /// `load_balancing_weight`, or what the host's load reports make of it; at least 1.
    pub fn weight(&self) -> u32 {
        self.state.orca.get().map_or(self.weight, |orca| orca.weight())
    }
    /// `LocalityLbEndpoints.priority`.
    pub fn priority(&self) -> u32 {
        self.priority
    }
    /// Metadata `envoy.lb` `canary`.
    pub fn canary(&self) -> bool {
        self.canary
    }
    /// `health_status` of the endpoint as it was sent.
    pub fn eds_health(&self) -> HealthStatus {
        self.eds_health
    }
    /// The same description of the same host as a new object.
    pub(crate) fn describe(&self) -> Self {
        Self {
            state: self.state.clone(),
            address: self.address.clone(),
            hostname: self.hostname.clone(),
            metadata: self.metadata.clone(),
            locality: self.locality.clone(),
            weight: self.weight,
            priority: self.priority,
            canary: self.canary,
            eds_health: self.eds_health,
            transport: self.transport,
            additional: self.additional.clone(),
            health_check: self.health_check.clone(),
        }
    }
    /// Whether `other` says the same of the same host.
    pub(crate) fn same_description(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.state, &other.state)
            && self.address == other.address
            && self.weight == other.weight
            && self.priority == other.priority
            && self.transport == other.transport
            && self.eds_health == other.eds_health
            && self.canary == other.canary
            && self.hostname == other.hostname
            && self.locality == other.locality
            && self.additional == other.additional
            && self.health_check == other.health_check
            && self.metadata.bytes() == other.metadata.bytes()
    }
    /// Whether both describe the same host, whatever update they came from.
    pub fn same(&self, other: &Self) -> bool {
        self.state.id == other.state.id
    }
}

impl Deref for Host {
    type Target = HostState;
    fn deref(&self) -> &HostState {
        &self.state
    }
}

impl HostView for Host {
    fn address(&self) -> &Address {
        &self.address
    }
    fn hostname(&self) -> &str {
        &self.hostname
    }
    fn metadata(&self) -> Option<&Metadata> {
        self.metadata.get()
    }
    fn locality(&self) -> Option<&Locality> {
        self.locality.as_deref()
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}
