//! Compiles `TcpProxy`; runs on the control thread.

use crate::session;
use crate::stats::Stats;
use crate::tlvs::Tlvs;
use crate::tunnel::Tunneling;
use arc_swap::ArcSwap;
use futures_util::future::LocalBoxFuture;
use nuncio_core::diag::{At, Report};
use nuncio_core::registry::FactoryCx;
use nuncio_core::views::{ClusterSlot, ClusterSlots, filter_metadata};
use nuncio_core::{Address, StreamInfo};
use nuncio_format::AccessLogs;
use nuncio_listener::{ChainCx, Connection, Terminal, TerminalFactory};
use nuncio_proto::envoy::config::core::v3::{BackoffStrategy, Metadata};
use nuncio_proto::envoy::extensions::filters::network::tcp_proxy::v3::{self as proto, TcpProxy as Proto, tcp_proxy::ClusterSpecifier};
use nuncio_proto::envoy::r#type::v3::hash_policy::PolicySpecifier;
use nuncio_proto::{Message, Struct};
use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

const DEFAULT_IDLE: Duration = Duration::from_secs(3600);
/// Namespace of load balancing metadata.
const LB: &str = "envoy.lb";

/// Where connections go.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub slot: Arc<ClusterSlot>,
    pub weight: u32,
    /// What a host's metadata must hold.
    pub metadata: Option<Arc<Struct>>,
}

/// What the hash of consistent balancers is made of.
#[derive(Debug)]
pub(crate) enum Hash {
    SourceIp,
    FilterState(Box<str>),
}

impl Hash {
    /// The hash, none if the connection has no such fact.
    pub fn of(&self, info: &StreamInfo) -> Option<u64> {
        let xxhash = |text: &str| twox_hash::XxHash64::oneshot(0, text.as_bytes());
        match self {
            Self::SourceIp => match &info.connection.remote {
                Address::Ip(address) => Some(xxhash(&address.ip().to_string())),
                _ => None,
            },
            Self::FilterState(key) => state(info, key).map(|text| xxhash(&text)),
        }
    }
}

/// The text of filter state `key` of the stream, else of the connection.
pub(crate) fn state(info: &StreamInfo, key: &str) -> Option<String> {
    let of_stream = info.filter_state.get(key).and_then(|o| o.as_string());
    of_stream.or_else(|| info.connection.filter_state.borrow().get(key).and_then(|o| o.as_string()))
}

/// The whole configuration of one filter.
#[derive(Debug)]
pub(crate) struct Config {
    pub stats: Stats,
    /// One, or several with weights.
    pub targets: Box<[Target]>,
    pub total_weight: u64,
    /// For clusters that filter state names.
    pub slots: Arc<ClusterSlots>,
    pub hash: Box<[Hash]>,
    pub idle: Option<Duration>,
    pub max_duration: Option<Duration>,
    /// Largest part of `max_duration` that is added at random, in percent.
    pub jitter: f64,
    pub max_attempts: u32,
    /// First and largest pause between attempts.
    pub backoff: Option<(Duration, Duration)>,
    pub logs: AccessLogs,
    pub log_on_start: bool,
    pub log_on_connected: bool,
    pub log_interval: Option<Duration>,
    /// Connect when the peer has sent something.
    pub wait_for_data: bool,
    /// End connections when a drain begins, not only when it is over.
    pub check_drain: bool,
    pub tunneling: Option<Box<Tunneling>>,
    pub tlvs: Option<Tlvs>,
}

impl Config {
    /// The target of a new connection.
    pub fn target(&self, info: &StreamInfo) -> Option<Target> {
        // Set by sni_cluster and set_filter_state.
        if let Some(name) = state(info, "envoy.tcp_proxy.cluster") {
            return Some(Target { slot: self.slots.lookup(&name)?, weight: 0, metadata: None });
        }
        if let [only] = self.targets.as_ref() {
            return Some(only.clone());
        }
        let mut left = fastrand::u64(..self.total_weight.max(1));
        for target in &self.targets {
            let weight = u64::from(target.weight);
            if left < weight {
                return Some(target.clone());
            }
            left -= weight;
        }
        None
    }
}

/// A compiled filter; living connections see the newest configuration of the same targets where that makes sense (access logs).
#[derive(Debug)]
pub(crate) struct TcpProxy {
    pub config: ArcSwap<Config>,
}

impl Terminal for TcpProxy {
    fn serve(self: Arc<Self>, connection: Connection) -> LocalBoxFuture<'static, ()> {
        Box::pin(session::serve(self, connection))
    }
    fn adopt(&self, new: &Arc<dyn Terminal>) -> bool {
        let Some(new) = new.as_any().downcast_ref::<Self>() else { return false };
        let (new, old) = (new.config.load_full(), self.config.load());
        let names = |c: &Config| c.targets.iter().map(|t| (t.slot.name.clone(), t.weight, t.metadata.clone())).collect::<Vec<_>>();
        // Connections stay where they are, so only a filter that would send them there too may keep them.
        if names(&new) != names(&old) {
            return false;
        }
        self.config.store(new);
        true
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Compiles `envoy.filters.network.tcp_proxy`.
#[derive(Debug)]
pub struct TcpProxyFactory {
    clusters: Arc<ClusterSlots>,
}

impl TcpProxyFactory {
    /// A factory whose filters find clusters in `clusters`.
    pub fn new(clusters: Arc<ClusterSlots>) -> Self {
        Self { clusters }
    }
}

impl TerminalFactory for TcpProxyFactory {
    fn types(&self) -> &[&str] {
        &["envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"]
    }
    fn compile(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>, _chain: &ChainCx<'_>) -> Option<Arc<dyn Terminal>> {
        let proto = Proto::decode(config).map_err(|e| cx.report.error(at, format!("TcpProxy: {e}"), "correct the bytes")).ok()?;
        let config = compile(&proto, &self.clusters, at, cx)?;
        Some(Arc::new(TcpProxy { config: ArcSwap::from_pointee(config) }))
    }
}

/// A duration that must not be negative; none if it is not set.
fn duration(value: Option<&nuncio_proto::Duration>, at: &At<'_>, report: &mut Report) -> Option<Duration> {
    let value = value?;
    match Duration::try_from(*value) {
        Ok(d) => Some(d),
        Err(_) => {
            report.error(at, format!("{}s {}ns", value.seconds, value.nanos), "give a duration that is not negative");
            None
        }
    }
}

fn lb_metadata(metadata: Option<&Metadata>, base: Option<&Arc<Struct>>) -> Option<Arc<Struct>> {
    let Some(own) = filter_metadata(metadata, LB) else { return base.cloned() };
    let mut merged = base.map(|b| b.as_ref().clone()).unwrap_or_default();
    merged.fields.extend(own.fields.clone());
    Some(Arc::new(merged))
}

fn targets(proto: &Proto, clusters: &ClusterSlots, at: &At<'_>, report: &mut Report) -> Option<Vec<Target>> {
    let base = lb_metadata(proto.metadata_match.as_ref(), None);
    match &proto.cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) if !name.is_empty() => {
            Some(vec![Target { slot: clusters.slot(name), weight: 1, metadata: base }])
        }
        Some(ClusterSpecifier::WeightedClusters(weighted)) if !weighted.clusters.is_empty() => {
            let at = at.field("weighted_clusters");
            let list = at.field("clusters");
            let mut all = Vec::with_capacity(weighted.clusters.len());
            for (i, cluster) in weighted.clusters.iter().enumerate() {
                let at = list.index(i);
                if cluster.name.is_empty() {
                    report.error(&at.field("name"), "an empty name", "name a cluster");
                } else if cluster.weight == 0 {
                    report.error(&at.field("weight"), "0", "give a weight of at least 1");
                } else {
                    let metadata = lb_metadata(cluster.metadata_match.as_ref(), base.as_ref());
                    all.push(Target { slot: clusters.slot(&cluster.name), weight: cluster.weight, metadata });
                }
            }
            (all.len() == weighted.clusters.len()).then_some(all)
        }
        _ => {
            report.error(at, "no cluster", "set cluster or weighted_clusters");
            None
        }
    }
}

fn backoff(config: &BackoffStrategy, at: &At<'_>, report: &mut Report) -> Option<(Duration, Duration)> {
    let base = duration(config.base_interval.as_ref(), &at.field("base_interval"), report);
    let Some(base) = base.filter(|b| *b >= Duration::from_millis(1)) else {
        report.error(&at.field("base_interval"), "less than 1 ms", "give at least 1 ms");
        return None;
    };
    let max = duration(config.max_interval.as_ref(), &at.field("max_interval"), report).unwrap_or(base * 10);
    if max < base {
        report.error(&at.field("max_interval"), "less than base_interval", "give at least base_interval");
        return None;
    }
    Some((base, max))
}

#[allow(deprecated)]
fn compile(proto: &Proto, clusters: &Arc<ClusterSlots>, at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Config> {
    let errors = cx.report.errors();
    let report = &mut *cx.report;
    if proto.stat_prefix.is_empty() {
        report.error(&at.field("stat_prefix"), "nothing", "set stat_prefix");
    }
    if proto.on_demand.is_some() {
        report.unsupported(&at.field("on_demand"), "on_demand of tcp_proxy");
    }
    let tunneling = proto.tunneling_config.as_ref().map(|t| Tunneling::compile(t, &at.field("tunneling_config"), report));
    let tlvs = Tlvs::compile(&proto.proxy_protocol_tlvs, proto.proxy_protocol_tlv_merge_policy, at, report);
    // Envoy has these fields and does nothing with them.
    for (field, present) in [
        ("downstream_idle_timeout", proto.downstream_idle_timeout.is_some()),
        ("upstream_idle_timeout", proto.upstream_idle_timeout.is_some()),
    ] {
        if present {
            report.warning(&at.field(field), format!("{field} has no effect, as in Envoy"), "use idle_timeout");
        }
    }
    let targets = targets(proto, clusters, at, report);
    let hash = proto.hash_policy.iter().enumerate().filter_map(|(i, policy)| match &policy.policy_specifier {
        Some(PolicySpecifier::SourceIp(_)) => Some(Hash::SourceIp),
        Some(PolicySpecifier::FilterState(f)) if !f.key.is_empty() => Some(Hash::FilterState(f.key.as_str().into())),
        _ => {
            report.error(&at.field("hash_policy").index(i), "an empty policy", "give source_ip or filter_state with a key");
            None
        }
    });
    let hash: Box<[Hash]> = hash.collect();
    let idle = duration(proto.idle_timeout.as_ref(), &at.field("idle_timeout"), report).unwrap_or(DEFAULT_IDLE);
    let max_at = at.field("max_downstream_connection_duration");
    let max_duration = duration(proto.max_downstream_connection_duration.as_ref(), &max_at, report);
    if max_duration.is_some_and(|d| d < Duration::from_millis(1)) {
        report.error(&max_at, "less than 1 ms", "give at least 1 ms");
    }
    let jitter = proto.max_downstream_connection_duration_jitter_percentage.as_ref().map_or(0.0, |p| p.value);
    if !(0.0..=100.0).contains(&jitter) {
        report.error(&at.field("max_downstream_connection_duration_jitter_percentage"), format!("{jitter}"), "give 0 to 100");
    }
    let max_attempts = proto.max_connect_attempts.unwrap_or(1);
    if max_attempts == 0 {
        report.error(&at.field("max_connect_attempts"), "0", "give at least 1");
    }
    let backoff = proto.backoff_options.as_ref().and_then(|b| backoff(b, &at.field("backoff_options"), report));
    let options = proto.access_log_options.unwrap_or_default();
    let options_at = at.field("access_log_options");
    let old = duration(proto.access_log_flush_interval.as_ref(), &at.field("access_log_flush_interval"), report);
    let log_interval = duration(options.access_log_flush_interval.as_ref(), &options_at.field("access_log_flush_interval"), report).or(old);
    if log_interval.is_some_and(|d| d < Duration::from_millis(1)) {
        report.error(&options_at.field("access_log_flush_interval"), "less than 1 ms", "give at least 1 ms");
    }
    let wait_for_data = match proto::UpstreamConnectMode::try_from(proto.upstream_connect_mode) {
        Ok(proto::UpstreamConnectMode::OnDownstreamData) if proto.max_early_data_bytes.is_none() => {
            report.error(&at.field("max_early_data_bytes"), "nothing", "set it with upstream_connect_mode ON_DOWNSTREAM_DATA");
            true
        }
        Ok(mode) => mode == proto::UpstreamConnectMode::OnDownstreamData,
        Err(_) => {
            report.error(&at.field("upstream_connect_mode"), format!("{}", proto.upstream_connect_mode), "use a known mode");
            false
        }
    };
    let logs = AccessLogs::compile(&proto.access_log, cx.server, &at.field("access_log"), report);
    if report.errors() > errors {
        return None;
    }
    let targets: Box<[Target]> = targets?.into();
    Some(Config {
        stats: Stats::new(cx.scope, &proto.stat_prefix),
        total_weight: targets.iter().map(|t| u64::from(t.weight)).sum(),
        targets,
        slots: clusters.clone(),
        hash,
        idle: (!idle.is_zero()).then_some(idle),
        max_duration,
        jitter,
        max_attempts,
        backoff,
        logs: logs?,
        log_on_start: options.flush_access_log_on_start,
        log_on_connected: options.flush_access_log_on_connected || proto.flush_access_log_on_connected,
        log_interval,
        wait_for_data,
        check_drain: proto.check_drain_close.unwrap_or(false),
        tunneling: match tunneling {
            None => None,
            Some(tunneling) => Some(Box::new(tunneling?)),
        },
        tlvs: tlvs?,
    })
}
