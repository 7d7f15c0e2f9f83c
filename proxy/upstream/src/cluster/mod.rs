//! The runtime form of one `envoy.config.cluster.v3.Cluster`: compiled on the control thread, immutable but for endpoints,
//! health and counters, read by every worker through its `ClusterSlot`.

mod picks;
mod stats;
mod update;
mod view;

pub use stats::RetryGuard;
pub(crate) use stats::scope;

use crate::aggregate::AggregateState;
use crate::breaker::CircuitBreakers;
use crate::compile;
use crate::dns::{DnsSpec, DnsState};
use crate::forward_proxy::{CacheEntry, ForwardSpec, hosts::ForwardHosts};
use crate::host::{Host, LazyMetadata, millis};
use crate::original_dst::OriginalDstState;
use crate::outlier::{self, Outcome, OutlierState, Rates};
use crate::shared::Shared;
use crate::spec::{Discovery, ProtocolMode, Spec};
use crate::stats::ClusterStats;
use crate::view::{Endpoints, View};
use arc_swap::{ArcSwap, ArcSwapOption};
use nuncio_core::HttpVersion;
use nuncio_core::diag::{At, Report};
use nuncio_core::registry::{Registry, Runtime, Server};
use nuncio_core::views::ClusterView;
use nuncio_http::options::ClientOptions;
use nuncio_proto::envoy::config::cluster::v3 as pb;
use nuncio_proto::envoy::config::core::v3::{ConfigSource, Metadata};
use nuncio_stats::Scope;
use nuncio_tls::SecretStore;
use std::any::Any;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// What compiling a cluster needs.
pub struct ClusterCx<'a> {
    pub server: &'a Arc<Server>,
    pub secrets: &'a Arc<SecretStore>,
    /// Factories of `Cluster.filters`.
    pub registry: &'a Registry,
    pub shared: &'a Arc<Shared>,
    pub report: &'a mut Report,
    /// From CDS, not from the bootstrap.
    pub added_via_api: bool,
}

/// A cluster.
pub struct Cluster {
    pub(crate) id: u64,
    pub(crate) name: Arc<str>,
    observability_name: Arc<str>,
    metadata: LazyMetadata,
    pub(crate) spec: Spec,
    breakers: CircuitBreakers,
    endpoints: ArcSwap<Endpoints>,
    /// Endpoint updates come one at a time.
    updating: Mutex<()>,
    view: ArcSwapOption<View>,
    building: Mutex<()>,
    /// Grows with every change of endpoints or health.
    epoch: AtomicU64,
    stats: OnceLock<Box<ClusterStats>>,
    scope: OnceLock<Scope>,
    codec: OnceLock<Arc<ClientOptions>>,
    outlier: Option<Box<OutlierState>>,
    dns: Option<Box<Mutex<DnsState>>>,
    original_dst: Option<Box<OriginalDstState>>,
    forward: Option<Box<ForwardHosts>>,
    aggregate: Option<Box<AggregateState>>,
    this: Weak<Self>,
    /// The first endpoints (or the first answer) are there.
    initialized: AtomicBool,
    /// Every host was checked once; true without health checks.
    checked: AtomicBool,
    /// Endpoints changed; for health checks only.
    news: Option<Arc<Notify>>,
    /// Which `membership_*` gauges there are.
    seen: AtomicU8,
    /// See [`Cluster::host_sets`].
    host_sets: AtomicU64,
    retired: AtomicBool,
    added_via_api: bool,
    server: Arc<Server>,
    shared: Arc<Shared>,
}

impl Cluster {
    /// Compiles `proto`; None means refused, the reasons are in `cx.report`. STATIC clusters have their hosts at once;
    /// EDS clusters wait for [`Self::update_endpoints`], DNS clusters for their manager.
    pub fn compile(proto: &pb::Cluster, cx: &mut ClusterCx<'_>) -> Option<Arc<Self>> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let at = At::Root;
        let errors = cx.report.errors();
        let spec = compile::spec(proto, &at, cx)?;
        let breakers_at = at.field("circuit_breakers");
        let breakers = compile::breakers(proto.circuit_breakers.as_ref(), &proto.name, &cx.server.runtime, &breakers_at, cx.report);
        let locality = cx.server.node.locality.as_ref();
        let endpoints = match (&spec.discovery, &proto.load_assignment) {
            (Discovery::Static, Some(assignment)) => {
                compile::endpoints(assignment, &spec, &Endpoints::default(), locality, &at.field("load_assignment"), cx.report)?
            }
            _ => Endpoints::default(),
        };
        if cx.report.errors() > errors {
            return None;
        }
        let name: Arc<str> = proto.name.as_str().into();
        let observability_name = if proto.alt_stat_name.is_empty() { name.clone() } else { proto.alt_stat_name.as_str().into() };
        let aggregate = match &spec.discovery {
            Discovery::Aggregate(names) => {
                let slots = names.iter().map(|name| cx.server.clusters.slot(name)).collect();
                Some(Box::new(AggregateState::new(slots, spec.lb.live.panic_threshold())))
            }
            _ => None,
        };
        let initialized = !matches!(spec.discovery, Discovery::Eds { .. } | Discovery::Dns(_));
        let cluster = Arc::new_cyclic(|this| Self {
            this: this.clone(),
            aggregate,
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            metadata: LazyMetadata::new(proto.metadata.as_ref()),
            breakers,
            endpoints: ArcSwap::from_pointee(endpoints),
            updating: Mutex::new(()),
            view: ArcSwapOption::empty(),
            building: Mutex::new(()),
            epoch: AtomicU64::new(1),
            stats: OnceLock::new(),
            scope: OnceLock::new(),
            codec: OnceLock::new(),
            outlier: spec.outlier.as_ref().map(|o| Box::new(OutlierState::new(o, &cx.server.runtime))),
            dns: matches!(spec.discovery, Discovery::Dns(_)).then(Box::default),
            forward: matches!(spec.discovery, Discovery::Forward(_)).then(Box::default),
            original_dst: matches!(spec.discovery, Discovery::OriginalDst(_)).then(Box::default),
            initialized: AtomicBool::new(initialized),
            checked: AtomicBool::new(spec.health_checks.is_empty()),
            news: (!spec.health_checks.is_empty()).then(Arc::default),
            seen: AtomicU8::new(0),
            host_sets: AtomicU64::new(0),
            retired: AtomicBool::new(false),
            added_via_api: cx.added_via_api,
            server: cx.server.clone(),
            shared: cx.shared.clone(),
            spec,
            name,
            observability_name,
        });
        if matches!(cluster.spec.discovery, Discovery::Static) {
            cluster.update_orca_weights(Instant::now());
            cluster.count_membership();
            cluster.prepare();
        }
        if let Discovery::Forward(ForwardSpec::Cache(cache)) = &cluster.spec.discovery {
            cache.attach(&cluster);
        }
        Some(cluster)
    }
    /// ORIGINAL_DST: forgets hosts that nobody used for a while.
    pub(crate) fn cleanup(&self) {
        if let Some(state) = &self.original_dst
            && state.cleanup() > 0
        {
            self.shared.signal();
        }
    }
    /// An active health check passed for the first time, or again.
    pub(crate) fn passed_health_check(&self, host: &Host, now: Instant) {
        host.set_healthy_since(millis(now));
    }
    /// Tells outlier detection how `host` did, and ejects it if it is due.
    pub fn report(&self, host: &Host, outcome: Outcome) {
        if let Some(owner) = self.aggregate.as_ref().and_then(|a| a.owner(host)) {
            return owner.report(host, outcome);
        }
        if self.spec.outlier.is_some() {
            outlier::report(self, host, outcome);
        }
    }
    /// One interval of outlier detection. Called by the manager; tests call it with any `now`.
    pub fn outlier_tick(&self, now: Instant) {
        if self.spec.outlier.is_some() {
            outlier::tick(self, now);
        }
    }
    /// `common_http_protocol_options.max_stream_duration` towards the upstream.
    pub fn max_stream_duration(&self) -> Option<Duration> {
        self.spec.http.max_stream_duration
    }
    /// `per_connection_buffer_limit_bytes`. Default 1 MiB.
    pub fn buffer_limit(&self) -> u32 {
        self.spec.buffer_limit
    }
    /// `connect_timeout`.
    pub fn connect_timeout(&self) -> Duration {
        self.spec.connect_timeout
    }
    /// Whether this request is to be dropped (`ClusterLoadAssignment.policy.drop_overloads`); answer 503 with flag DO and
    /// details `drop_overload`. Counts nothing.
    pub fn should_drop(&self) -> bool {
        let drop = self.endpoints.load().drop_overload;
        drop > 0.0 && fastrand::f64() < drop
    }
    /// Hosts of all priorities as they are now, in the order of the assignment.
    pub fn hosts(&self) -> Vec<Arc<Host>> {
        match (&self.original_dst, &self.forward) {
            (Some(state), _) => state.all(),
            (None, Some(forward)) => forward.all(),
            (None, None) => self.endpoints.load().hosts().cloned().collect(),
        }
    }
    /// Hosts that a pick may give: its own, or those of the members of an aggregate cluster.
    pub fn candidates(&self) -> Vec<Arc<Host>> {
        match &self.aggregate {
            Some(aggregate) => aggregate.hosts(),
            None => self.hosts(),
        }
    }
    /// Number of hosts of all priorities; 0 makes the router answer `no_healthy_upstream`.
    pub fn host_count(&self) -> usize {
        self.count_hosts(|_| false).1
    }
    /// How many hosts meet `which`, and how many there are.
    pub(crate) fn count_hosts(&self, which: impl Fn(&Host) -> bool) -> (usize, usize) {
        let count =
            |hosts: &mut dyn Iterator<Item = &Arc<Host>>| hosts.fold((0, 0), |(meets, all), h| (meets + usize::from(which(h)), all + 1));
        match (&self.original_dst, &self.forward) {
            (Some(state), _) => count(&mut state.all().iter()),
            (None, Some(forward)) => count(&mut forward.all().iter()),
            (None, None) => count(&mut self.endpoints.load().hosts()),
        }
    }
    /// Whether it came from CDS.
    pub fn added_via_api(&self) -> bool {
        self.added_via_api
    }
    /// The assignment that an EDS cluster wants.
    pub fn eds_name(&self) -> Option<&Arc<str>> {
        self.eds().map(|(name, _)| name)
    }
    pub(crate) fn eds(&self) -> Option<(&Arc<str>, &Arc<ConfigSource>)> {
        match &self.spec.discovery {
            Discovery::Eds { name, source } => Some((name, source)),
            _ => None,
        }
    }
    /// Whether endpoints came from EDS, so that admin shows `eds_service_name`.
    pub fn kind(&self) -> &'static str {
        match &self.spec.discovery {
            Discovery::Static => "STATIC",
            Discovery::Eds { .. } => "EDS",
            Discovery::Dns(dns) if dns.logical => "LOGICAL_DNS",
            Discovery::Dns(_) => "STRICT_DNS",
            Discovery::OriginalDst(_) => "ORIGINAL_DST",
            Discovery::Forward(_) => "envoy.clusters.dynamic_forward_proxy",
            Discovery::Aggregate(_) => "AGGREGATE",
        }
    }
    /// Success rates of the last interval: external and local origin; none without outlier detection.
    pub fn success_rates(&self) -> Option<(Rates, Rates)> {
        self.outlier.as_ref().map(|o| *o.rates.lock().unwrap_or_else(PoisonError::into_inner))
    }
    /// Transport socket matches by name, and the one that `host` uses (`default` for the cluster's own).
    pub fn transport_socket_of(&self, host: &Host) -> &str {
        self.spec.transports.get(usize::from(host.transport)).map_or("default", |t| &t.name)
    }
    /// Last DNS failures, each with its name; empty if all is well.
    pub fn dns_errors(&self) -> Vec<(String, String)> {
        let (Some(state), Some(spec)) = (&self.dns, self.dns_spec()) else { return Vec::new() };
        let state = state.lock().unwrap_or_else(PoisonError::into_inner);
        let named = spec.targets.iter().zip(&state.errors).filter_map(|(t, e)| Some((t.name.to_string(), e.clone()?)));
        named.collect()
    }
    pub(crate) fn dns_spec(&self) -> Option<&DnsSpec> {
        match &self.spec.discovery {
            Discovery::Dns(spec) => Some(spec),
            _ => None,
        }
    }
    /// What makes this a dynamic forward proxy, if it is one.
    pub(crate) fn forward(&self) -> Option<(&ForwardSpec, &ForwardHosts)> {
        Some((self.forward_spec()?, self.forward.as_deref()?))
    }
    pub(crate) fn forward_spec(&self) -> Option<&ForwardSpec> {
        match &self.spec.discovery {
            Discovery::Forward(spec) => Some(spec),
            _ => None,
        }
    }
    /// The dynamic forward proxy's cache knows new addresses of a name. Control thread.
    pub(crate) fn forward_host(&self, entry: &Arc<CacheEntry>) {
        if self.forward.as_ref().is_some_and(|f| f.update(entry)) {
            self.endpoint_stats().counter("membership_change").inc();
            self.count_membership();
        }
    }
    /// The dynamic forward proxy's cache forgot a name. Control thread.
    pub(crate) fn forget_forward_host(&self, key: &str) {
        if self.forward.as_ref().is_some_and(|f| f.forget(key)) {
            self.endpoint_stats().counter("membership_change").inc();
            self.count_membership();
            self.shared.signal();
        }
    }
    pub(crate) fn original_dst(&self) -> Option<&OriginalDstState> {
        self.original_dst.as_deref()
    }
    /// The process's runtime; its lookups lock, so it is for the control thread.
    pub(crate) fn runtime(&self) -> &Runtime {
        &self.server.runtime
    }
    /// Hosts as the last update has them.
    pub(crate) fn endpoints(&self) -> Arc<Endpoints> {
        self.endpoints.load_full()
    }
    /// Members, if this is an aggregate cluster.
    pub(crate) fn aggregate(&self) -> Option<&AggregateState> {
        self.aggregate.as_deref()
    }
    /// The shared pointer to itself.
    pub(crate) fn shared_self(&self) -> Option<Arc<Self>> {
        self.this.upgrade()
    }
    /// State of outlier detection; what is never used if it is not configured.
    pub(crate) fn outlier_state(&self) -> &OutlierState {
        static NONE: OnceLock<OutlierState> = OnceLock::new();
        self.outlier.as_deref().unwrap_or_else(|| NONE.get_or_init(OutlierState::default))
    }
    pub(crate) fn log_outlier(&self, line: impl FnOnce() -> String) {
        if let Some(log) = &self.shared.event_log {
            log.write(&line());
        }
    }
    /// Whether the first endpoints are there; without `wait_for_warm_on_init` it says so at once.
    pub fn is_initialized(&self) -> bool {
        let ready = self.initialized.load(Ordering::Acquire) && self.checked.load(Ordering::Acquire);
        !self.spec.wait_for_warm || ready
    }
    /// Every host was checked once; whether that is new.
    pub(crate) fn checked(&self) -> bool {
        !self.checked.swap(true, Ordering::AcqRel)
    }
    /// Wakes when endpoints change.
    pub(crate) fn news(&self) -> Arc<Notify> {
        self.news.clone().unwrap_or_default()
    }
    /// Whether a connection was ever made to one of its hosts.
    pub(crate) fn had_traffic(&self) -> bool {
        self.stats.get().is_some_and(|s| s.traffic.upstream_cx_total.value() > 0)
    }
    /// Goes on without endpoints.
    pub(crate) fn give_up_waiting(&self) {
        self.initialized.store(true, Ordering::Release);
        if let Some(news) = &self.news {
            news.notify_one();
        }
    }
    /// Whether every secret of its transport sockets is there.
    pub(crate) fn secrets_ready(&self) -> bool {
        self.spec.transports.iter().filter_map(|t| t.socket.tls()).all(|tls| tls.ready())
    }
    /// Whether it was removed or replaced; its connections drain.
    pub fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Relaxed)
    }
    pub(crate) fn retire(&self) {
        let again = self.retired.swap(true, Ordering::Relaxed);
        if let Some(subsets) = self.view.load().as_ref().and_then(|v| v.subsets.as_ref()).filter(|_| !again) {
            let stats = &self.stats().lb;
            let left = subsets.len() * (self.server.concurrency + 1);
            stats.lb_subsets_removed.add(left as u64);
            stats.lb_subsets_active.add(-(left as i64));
        }
        if self.spec.lb.is_local {
            self.shared.set_local_view(None);
        }
        self.shared.signal();
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
    fn upstream_protocol(&self, downstream: HttpVersion) -> HttpVersion {
        match self.spec.http.mode {
            ProtocolMode::H1 | ProtocolMode::Auto => HttpVersion::Http11,
            ProtocolMode::H2 => HttpVersion::Http2,
            ProtocolMode::UseDownstream => match downstream {
                HttpVersion::Http2 | HttpVersion::Http3 => HttpVersion::Http2,
                HttpVersion::Http10 | HttpVersion::Http11 => HttpVersion::Http11,
            },
        }
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("name", &self.name).field("type", &self.kind()).finish_non_exhaustive()
    }
}
