//! The compiled, immutable parts of a cluster. Made by `compile`, read by everything else.

use crate::dns::DnsSpec;
use crate::forward_proxy::ForwardSpec;
use crate::health_check::HealthCheckSpec;
use crate::host::Host;
use crate::lb::ring::HashFunction;
use crate::lb::subset::SubsetSpec;
use crate::orca::OrcaSpec;
use crate::outlier::OutlierSpec;
use nuncio_core::HeaderKey;
use nuncio_core::network::NetworkFilterConfig;
use nuncio_core::proxy_protocol::PassTlvs;
use nuncio_core::registry::Runtime;
use nuncio_format::Tlvs;
use nuncio_http::options::{H1Options, H2Options};
use nuncio_matcher::MetadataMatcher;
use nuncio_proto::Value;
use nuncio_proto::envoy::config::core::v3::ConfigSource;
use nuncio_route::HashPolicy;
use nuncio_tls::UpstreamTls;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// Where hosts come from.
#[derive(Debug)]
pub(crate) enum Discovery {
    Static,
    Eds {
        name: Arc<str>,
        source: Arc<ConfigSource>,
    },
    Dns(Box<DnsSpec>),
    OriginalDst(Box<OriginalDstSpec>),
    /// `envoy.clusters.dynamic_forward_proxy`.
    Forward(ForwardSpec),
    /// Names of the clusters whose hosts these are, in order.
    Aggregate(Box<[Arc<str>]>),
}

/// `Cluster.OriginalDstLbConfig` and `cleanup_interval`.
#[derive(Debug)]
pub(crate) struct OriginalDstSpec {
    /// `use_http_header`: the header that may name the destination.
    pub header: Option<HeaderKey>,
    /// `metadata_key`: dynamic metadata that may name it.
    pub metadata: Option<MetadataPath>,
    pub port_override: Option<u16>,
    /// How long an unused host is kept. Default 5 s.
    pub cleanup_interval: Duration,
}

/// `type.metadata.v3.MetadataKey`.
#[derive(Debug, PartialEq)]
pub(crate) struct MetadataPath {
    pub namespace: Box<str>,
    pub path: Box<[Box<str>]>,
}

/// The load balancing policy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum LbKind {
    RoundRobin,
    /// `bias`: `active_request_bias`; `choices`: `choice_count`, at least 2.
    LeastRequest {
        choices: u32,
        bias: f64,
        full_scan: bool,
    },
    Random,
    RingHash {
        min: u64,
        max: u64,
        function: HashFunction,
    },
    Maglev {
        table_size: u64,
    },
    /// ORIGINAL_DST.
    ClusterProvided,
}

/// `SlowStartConfig`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SlowStart {
    pub window_ms: u64,
    pub aggression: f64,
    /// `min_weight_percent` as a factor; 0.1 by default.
    pub min_weight: f64,
}

/// `ZoneAwareLbConfig`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ZoneSpec {
    /// `routing_enabled` in percent.
    pub enabled: f64,
    pub min_cluster_size: u64,
    pub fail_on_panic: bool,
    /// `force_locality_direct_routing`.
    pub force_direct: bool,
    /// `force_local_zone.min_size`.
    pub force_local_min: Option<u32>,
    /// `locality_basis: HEALTHY_HOSTS_WEIGHT`.
    pub by_weight: bool,
}

impl Default for ZoneSpec {
    fn default() -> Self {
        Self { enabled: 100.0, min_cluster_size: 6, fail_on_panic: false, force_direct: false, force_local_min: None, by_weight: false }
    }
}

/// What runtime may change of balancing while it goes on. Read by workers, set on the control thread.
#[derive(Debug, Default)]
pub(crate) struct LiveLb {
    panic: AtomicU32,
    /// Bits of the percentage.
    zone_enabled: AtomicU64,
    zone_min: AtomicU64,
}

impl LiveLb {
    /// Takes the values from runtime keys `upstream.healthy_panic_threshold`, `upstream.zone_routing.enabled` and
    /// `upstream.zone_routing.min_cluster_size`, or from the configuration.
    pub(crate) fn read(&self, panic: u32, locality: &LocalityMode, runtime: &Runtime) {
        let panic = runtime.integer("upstream.healthy_panic_threshold", u64::from(panic));
        self.panic.store(u32::try_from(panic.min(100)).unwrap_or(100), Ordering::Relaxed);
        if let LocalityMode::ZoneAware(zone) = locality {
            let enabled = runtime.get("upstream.zone_routing.enabled").and_then(|v| v.parse::<f64>().ok()).unwrap_or(zone.enabled);
            self.zone_enabled.store(enabled.to_bits(), Ordering::Relaxed);
            let min = runtime.integer("upstream.zone_routing.min_cluster_size", zone.min_cluster_size);
            self.zone_min.store(min, Ordering::Relaxed);
        }
    }
    pub(crate) fn panic_threshold(&self) -> u32 {
        self.panic.load(Ordering::Relaxed)
    }
    /// `min_cluster_size` of zone-aware routing.
    pub(crate) fn min_cluster_size(&self) -> u64 {
        self.zone_min.load(Ordering::Relaxed)
    }
    /// Whether this request is routed by zone at all.
    pub(crate) fn samples(&self) -> bool {
        let enabled = f64::from_bits(self.zone_enabled.load(Ordering::Relaxed));
        enabled >= 100.0 || fastrand::f64() * 100.0 < enabled
    }
}

/// What localities mean for a pick.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum LocalityMode {
    Ignore,
    Weighted,
    ZoneAware(ZoneSpec),
}

impl LocalityMode {
    /// `fail_traffic_on_panic`.
    pub(crate) fn fails_on_panic(&self) -> bool {
        matches!(self, Self::ZoneAware(zone) if zone.fail_on_panic)
    }
}

/// Where `override_host` looks for addresses.
#[derive(Debug, PartialEq)]
pub(crate) enum OverrideSource {
    Header(HeaderKey),
    Metadata(MetadataPath),
}

/// `load_balancing_policies.override_host`.
#[derive(Debug)]
pub(crate) struct OverrideSpec {
    pub sources: Box<[OverrideSource]>,
    /// `selected_host_key`: where the picked host is told.
    pub selected: Option<MetadataPath>,
}

/// Everything about picking.
#[derive(Debug)]
pub(crate) struct LbSpec {
    pub kind: LbKind,
    pub locality: LocalityMode,
    /// `healthy_panic_threshold`, 0 to 100, without runtime. Default 50.
    pub panic_threshold: u32,
    pub live: LiveLb,
    pub slow_start: Option<Box<SlowStart>>,
    /// `use_hostname_for_hashing`.
    pub hash_hostname: bool,
    /// `consistent_hashing_lb_config.hash_policy`, which counts instead of the route's.
    pub hash_policy: Option<Box<HashPolicy>>,
    /// `hash_balance_factor` in percent, at least 100.
    pub hash_balance_factor: Option<u32>,
    /// `load_balancing_policies.override_host`.
    pub overrides: Option<Box<OverrideSpec>>,
    /// `override_host_status` as bits of [`HealthStatus`](nuncio_proto::envoy::config::core::v3::HealthStatus).
    pub override_status: u8,
    /// Weights are the hosts' own (`client_side_weighted_round_robin`).
    pub orca: Option<Box<OrcaSpec>>,
    /// `lb_subset_config`, or the subset policy; what is above is the policy in each subset.
    pub subsets: Option<Box<SubsetSpec>>,
    /// This is the local cluster, whose localities others look at.
    pub is_local: bool,
}

/// Which HTTP is spoken to hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProtocolMode {
    H1,
    H2,
    UseDownstream,
    /// By ALPN; HTTP/1 without TLS.
    Auto,
}

/// `HttpProtocolOptions`, shared by all clusters that say the same.
#[derive(Debug)]
pub(crate) struct HttpSpec {
    pub mode: ProtocolMode,
    pub h1: H1Options,
    pub h2: H2Options,
    pub max_headers_kb: u32,
    pub max_headers_count: u32,
    /// Default 1 h; none for never.
    pub idle_timeout: Option<Duration>,
    pub max_connection_duration: Option<Duration>,
    /// In percent of `max_connection_duration`, added at random.
    pub max_connection_duration_jitter: f64,
    /// 0 for no limit.
    pub max_requests: u32,
    pub max_stream_duration: Option<Duration>,
    pub auto_sni: bool,
    /// `override_auto_sni_header`; `:authority` if none.
    pub auto_sni_header: Option<HeaderKey>,
    pub auto_san: bool,
}

/// A transport socket.
#[derive(Clone, Debug)]
pub(crate) enum Socket {
    Raw,
    Tls(Arc<UpstreamTls>),
    /// `upstream_proxy_protocol` over one of the others.
    Proxy(Arc<ProxySocket>),
}

/// `ProxyProtocolUpstreamTransport`.
#[derive(Debug)]
pub(crate) struct ProxySocket {
    pub v2: bool,
    /// TLVs of the downstream connection that are told (version 2).
    pub pass: PassTlvs,
    /// `added_tlvs`; they win over passed ones of their types, and those of the host over them.
    pub added: Tlvs,
    pub inner: Socket,
}

impl Socket {
    /// The TLS context, if there is one.
    pub(crate) fn tls(&self) -> Option<&Arc<UpstreamTls>> {
        match self {
            Self::Raw => None,
            Self::Tls(tls) => Some(tls),
            Self::Proxy(proxy) => proxy.inner.tls(),
        }
    }
}

/// Keys and values that metadata must hold.
pub(crate) type Criteria = Box<[(Box<str>, Value)]>;

/// One `transport_socket_matches` entry; the cluster's own socket is entry 0 and matches by default.
#[derive(Debug)]
pub(crate) struct TransportMatch {
    pub name: Box<str>,
    /// All of these must be in the endpoint's `envoy.transport_socket_match` metadata.
    pub criteria: Criteria,
    pub socket: Socket,
}

/// `upstream_bind_config`.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct BindSpec {
    /// First whose family is the target's.
    pub sources: Box<[BindSource]>,
    pub freebind: bool,
    /// Of sources without options of their own, and without a source.
    pub options: Box<[SocketOpt]>,
}

/// An address to connect from.
#[derive(Debug, PartialEq)]
pub(crate) struct BindSource {
    pub address: SocketAddr,
    /// `extra_source_addresses.socket_options`: instead of those of all.
    pub options: Option<Box<[SocketOpt]>>,
}

/// Socket options that can be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SocketOpt {
    KeepAlive(bool),
    KeepIdle(Duration),
    KeepInterval(Duration),
    KeepCount(u32),
    NoDelay(bool),
    UserTimeout(Duration),
    Mark(u32),
    Tos(u32),
    ReuseAddress(bool),
    SendBuffer(usize),
    ReceiveBuffer(usize),
}

/// How sockets are made.
#[derive(Debug, Default)]
pub(crate) struct SocketSpec {
    pub bind: Option<Arc<BindSpec>>,
    /// `tcp_keepalive`: probes, time, interval; 0 for the system's.
    pub keepalive: Option<(u32, u32, u32)>,
    /// `happy_eyeballs_config`: whether IPv4 goes first, and how many of a family before the other. Default IPv6, 1.
    pub v4_first: Option<bool>,
    pub family_count: usize,
}

/// `Cluster.PreconnectPolicy`: streams that there is room for, to streams that are there; 1 for no more than are needed.
#[derive(Debug)]
pub(crate) struct Preconnect {
    /// Of each host.
    pub per_upstream: f64,
    /// Of the whole cluster: connections are made to the hosts that are picked next.
    pub predictive: f64,
    /// `preconnect_enabled_metadata`: hosts whose metadata this does not match get connections only when they are needed.
    pub eligible: Option<Box<MetadataMatcher>>,
}

/// All compiled parts.
#[derive(Debug)]
pub(crate) struct Spec {
    pub discovery: Discovery,
    pub lb: LbSpec,
    pub http: Arc<HttpSpec>,
    pub connect_timeout: Duration,
    pub buffer_limit: u32,
    pub transports: Box<[TransportMatch]>,
    pub socket: SocketSpec,
    pub filters: Box<[Arc<dyn NetworkFilterConfig>]>,
    pub outlier: Option<Box<OutlierSpec>>,
    pub health_checks: Box<[HealthCheckSpec]>,
    /// `circuit_breakers.per_host_thresholds.max_connections`: default and high.
    pub per_host_connections: [Option<u32>; 2],
    /// `ignore_new_hosts_until_first_hc`: new hosts do not count, not even as unhealthy, before their first check.
    pub ignore_new_hosts: bool,
    /// `ignore_health_on_host_removal`.
    pub ignore_health_on_removal: bool,
    /// `close_connections_on_host_set_change`.
    pub close_on_host_set_change: bool,
    /// `close_connections_on_host_health_failure`.
    pub close_on_health_failure: bool,
    /// `connection_pool_per_downstream_connection`.
    pub pool_per_downstream: bool,
    /// `preconnect_policy`.
    pub preconnect: Preconnect,
    /// `wait_for_warm_on_init`.
    pub wait_for_warm: bool,
}

impl Spec {
    /// The transport socket of connections to `host` that are not for requests: the first match that `criteria` meet, or the cluster's
    /// own; without criteria the host's.
    pub(crate) fn transport_for(&self, host: &Host, criteria: Option<&Criteria>) -> Option<&TransportMatch> {
        let Some(criteria) = criteria else { return self.transports.get(usize::from(host.transport)) };
        let meets = |t: &&TransportMatch| t.criteria.iter().all(|(k, v)| criteria.iter().any(|(name, value)| name == k && value == v));
        self.transports.iter().skip(1).find(meets).or(self.transports.first())
    }
}
