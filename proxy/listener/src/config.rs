//! `envoy.config.listener.v3.Listener` compiled: every field is used, refused by name, or warned about. Control thread; the result is
//! immutable and read by every worker.

// Fields that Envoy deprecated are still sent and must be read or refused.
#![allow(deprecated)]

use crate::chain_match::{self, ChainIndex};
use crate::listener_filter::ListenerFilter;
use crate::manager::ListenerManagerCx;
use crate::socket::{SharedSpec, SocketSpec, stat_name};
use crate::stats::ListenerStats;
use crate::terminal::{ChainCx, Terminal};
use nuncio_core::diag::{At, Report};
use nuncio_core::info::TrafficDirection;
use nuncio_core::network::NetworkFilterConfig;
use nuncio_core::registry::FactoryCx;
use nuncio_format::AccessLogs;
use nuncio_proto::envoy::config::core::v3::transport_socket::ConfigType as SocketConfig;
use nuncio_proto::envoy::config::core::v3::{Metadata, TransportSocket};
use nuncio_proto::envoy::config::listener::v3::listener::connection_balance_config::BalanceType;
use nuncio_proto::envoy::config::listener::v3::listener::{DrainType, ListenerSpecifier};
use nuncio_proto::envoy::config::listener::v3::{FilterChain, Listener, filter::ConfigType};
use nuncio_proto::envoy::extensions::transport_sockets::tls::v3::DownstreamTlsContext;
use nuncio_proto::{Duration as ProtoDuration, typed};
use nuncio_stats::Scope;
use nuncio_tls::DownstreamTls;
use prost::Message;
use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;
use std::time::Duration;

/// Envoy's default of `listener_filters_timeout`.
const FILTERS_TIMEOUT: Duration = Duration::from_secs(15);
/// Envoy's default of `per_connection_buffer_limit_bytes`.
const BUFFER_LIMIT: u32 = 1024 * 1024;

/// A compiled filter chain.
#[derive(Clone, Debug)]
pub(crate) struct CompiledChain {
    pub name: Arc<str>,
    pub metadata: Option<Arc<Metadata>>,
    /// What makes it the same chain across an update: match and transport socket.
    pub identity: u128,
    /// Everything that went into it; equal means that nothing changed.
    pub fingerprint: u128,
    pub tls: Option<Arc<DownstreamTls>>,
    pub connect_timeout: Option<Duration>,
    pub filters: Vec<Arc<dyn NetworkFilterConfig>>,
    pub terminal: Arc<dyn Terminal>,
}

/// A compiled listener that is not live yet (it may warm first).
#[derive(Debug)]
pub struct CompiledListener {
    pub(crate) name: Arc<str>,
    /// Digest of the whole resource.
    pub(crate) fingerprint: u128,
    pub(crate) specs: Vec<SocketSpec>,
    pub(crate) chains: Vec<Arc<CompiledChain>>,
    pub(crate) index: ChainIndex,
    pub(crate) filters: Vec<ListenerFilter>,
    pub(crate) filters_timeout: Option<Duration>,
    pub(crate) continue_on_timeout: bool,
    pub(crate) use_original_dst: bool,
    /// Connections accepted before other work gets its turn.
    pub(crate) max_accept: u32,
    pub(crate) exact_balance: bool,
    pub(crate) ignore_global_limit: bool,
    pub(crate) bypass_overload: bool,
    pub(crate) direction: TrafficDirection,
    pub(crate) metadata: Option<Arc<Metadata>>,
    pub(crate) drain_modify_only: bool,
    /// Runtime `envoy.resource_limits.listener.<name>.connection_limit`.
    pub(crate) connection_limit: Option<u64>,
    /// Shared with living connections, which must not hold the rest.
    pub(crate) access_logs: Arc<AccessLogs>,
    pub(crate) stats: Arc<ListenerStats>,
    pub(crate) scope: Scope,
}

impl CompiledListener {
    /// `Listener.name`.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }
    /// What it waits for (RDS names of its terminals); empty when it may go live.
    pub fn pending(&self) -> Vec<String> {
        self.chains.iter().flat_map(|c| c.terminal.pending()).collect()
    }
    /// Whether every SDS secret of its chains has arrived. A missing one fails handshakes and nothing else.
    pub fn secrets_ready(&self) -> bool {
        self.chains.iter().filter_map(|c| c.tls.as_ref()).all(|tls| tls.ready())
    }

    /// Compiles `proto`. None means refused.
    pub(crate) fn compile(
        proto: &Listener,
        name: &Arc<str>,
        cx: &ListenerManagerCx,
        workers: usize,
        report: &mut Report,
    ) -> Option<Arc<Self>> {
        let (at, before) = (&At::Root, report.errors());
        refuse_unsupported(proto, at, report);
        let specs = specs(proto, at, report);
        let address = specs.first().map(|s| stat_name(&s.address)).unwrap_or_default();
        let prefix = if proto.stat_prefix.is_empty() { address } else { proto.stat_prefix.replace("://", "_").replace(':', "_") };
        let scope = cx.server.stats.root().scope(&format!("listener.{prefix}."));

        let transparent = proto.transparent.unwrap_or_default();
        let field = at.field("listener_filters");
        let mut filters = Vec::new();
        for (i, filter) in proto.listener_filters.iter().enumerate() {
            filters.extend(ListenerFilter::compile(filter, transparent, &cx.server, &field.index(i), report));
        }
        let use_original_dst = proto.use_original_dst.unwrap_or_default();
        if use_original_dst && !filters.iter().any(ListenerFilter::is_original_dst) {
            filters.push(ListenerFilter::original_dst(transparent));
        }
        let needs_tls = proto.filter_chains.iter().filter_map(|c| c.filter_chain_match.as_ref()).any(chain_match::needs_tls_inspector);
        if needs_tls && report.errors() == before && !filters.iter().any(ListenerFilter::is_tls_inspector) {
            // Envoy adds it too. (Plaintext protocols of http_inspector also count as application protocols.)
            filters.push(ListenerFilter::tls_inspector(&cx.server));
        }

        let direction = match proto.traffic_direction {
            1 => TrafficDirection::Inbound,
            2 => TrafficDirection::Outbound,
            _ => TrafficDirection::Unspecified,
        };
        let buffer_limit = proto.per_connection_buffer_limit_bytes.unwrap_or(BUFFER_LIMIT);
        let metadata = proto.metadata.clone().map(Arc::new);
        let drain_modify_only = proto.drain_type == DrainType::ModifyOnly as i32;
        let surroundings =
            Surroundings { name, scope: &scope, metadata: metadata.as_ref(), direction, buffer_limit, drain_modify_only, cx };
        let mut chains = Vec::new();
        let field = at.field("filter_chains");
        for (i, chain) in proto.filter_chains.iter().enumerate() {
            chains.extend(surroundings.chain(chain, false, &field.index(i), report));
        }
        if let Some(chain) = &proto.default_filter_chain {
            chains.extend(surroundings.chain(chain, true, &at.field("default_filter_chain"), report));
        }
        if proto.filter_chains.is_empty() && proto.default_filter_chain.is_none() {
            report.error(&field, "no filter chains specified", "give at least one filter chain");
        }
        let matches: Vec<_> = proto.filter_chains.iter().map(|c| c.filter_chain_match.as_ref()).collect();
        let names: Vec<_> = proto.filter_chains.iter().map(|c| c.name.as_str()).collect();
        let default = proto.default_filter_chain.is_some().then_some(matches.len());
        let index = ChainIndex::compile(&matches, &names, default, &field, report);

        let filters_timeout = match &proto.listener_filters_timeout {
            None => Some(FILTERS_TIMEOUT),
            Some(d) => duration(d, &at.field("listener_filters_timeout"), report).filter(|d| !d.is_zero()),
        };
        let access_logs = AccessLogs::compile(&proto.access_log, &cx.server, &at.field("access_log"), report);
        let limit = format!("envoy.resource_limits.listener.{name}.connection_limit");
        let connection_limit = cx.server.runtime.get(&limit).and_then(|text| text.parse().ok());
        let (index, access_logs) = (index?, access_logs?);
        if report.errors() > before {
            return None;
        }
        Some(Arc::new(Self {
            name: name.clone(),
            fingerprint: digest(&[&proto.encode_to_vec()]),
            stats: Arc::new(ListenerStats::new(&scope, workers)),
            specs,
            chains,
            index,
            filters,
            filters_timeout,
            continue_on_timeout: proto.continue_on_listener_filters_timeout,
            use_original_dst,
            max_accept: proto.max_connections_to_accept_per_socket_event.unwrap_or(u32::MAX),
            exact_balance: proto.connection_balance_config.is_some(),
            ignore_global_limit: proto.ignore_global_conn_limit,
            bypass_overload: proto.bypass_overload_manager,
            direction,
            metadata,
            drain_modify_only,
            connection_limit,
            access_logs: Arc::new(access_logs),
            scope,
        }))
    }
}

fn refuse_unsupported(proto: &Listener, at: &At<'_>, report: &mut Report) {
    let balance = proto.connection_balance_config.as_ref();
    let exact = matches!(balance.map(|b| &b.balance_type), None | Some(Some(BalanceType::ExactBalance(_))));
    for (set, name) in [
        (proto.stats_matcher.is_some(), "stats_matcher"),
        (proto.fcds_config.is_some(), "fcds_config"),
        (proto.filter_chain_matcher.is_some(), "filter_chain_matcher"),
        (proto.per_connection_buffer_high_watermark_timeout.is_some(), "per_connection_buffer_high_watermark_timeout"),
        (proto.udp_listener_config.is_some(), "udp_listener_config"),
        (proto.api_listener.is_some(), "api_listener"),
        (matches!(proto.listener_specifier, Some(ListenerSpecifier::InternalListener(_))), "internal_listener"),
        (!exact, "connection_balance_config other than exact_balance"),
    ] {
        if set {
            report.unsupported(&at.field(name), name);
        }
    }
    if proto.reuse_port && proto.enable_reuse_port == Some(false) {
        report.warning(&at.field("reuse_port"), "deprecated, and contradicted by enable_reuse_port", "enable_reuse_port wins");
    }
    if DrainType::try_from(proto.drain_type).is_err() {
        report.error(&at.field("drain_type"), proto.drain_type.to_string(), "give DEFAULT or MODIFY_ONLY");
    }
    if proto.max_connections_to_accept_per_socket_event == Some(0) {
        report.error(&at.field("max_connections_to_accept_per_socket_event"), "0", "give at least 1");
    }
}

fn specs(proto: &Listener, at: &At<'_>, report: &mut Report) -> Vec<SocketSpec> {
    let deprecated = proto.deprecated_v1.as_ref().and_then(|d| d.bind_to_port);
    let bind = proto.bind_to_port.or(deprecated).unwrap_or(true);
    let shared = SharedSpec {
        reuse_port: proto.enable_reuse_port.unwrap_or(true),
        transparent: proto.transparent,
        freebind: proto.freebind,
        fast_open: proto.tcp_fast_open_queue_length,
        backlog: proto.tcp_backlog_size,
        mptcp: proto.enable_mptcp,
    };
    let mut specs = Vec::new();
    specs.extend(SocketSpec::compile(
        proto.address.as_ref(),
        &proto.socket_options,
        proto.tcp_keepalive.as_ref(),
        &shared,
        bind,
        at,
        report,
    ));
    let field = at.field("additional_addresses");
    for (i, extra) in proto.additional_addresses.iter().enumerate() {
        // Options of the address replace those of the listener.
        let options = extra.socket_options.as_ref().map_or(proto.socket_options.as_slice(), |o| &o.socket_options);
        let keepalive = extra.tcp_keepalive.as_ref().or(proto.tcp_keepalive.as_ref());
        specs.extend(SocketSpec::compile(extra.address.as_ref(), options, keepalive, &shared, bind, &field.index(i), report));
    }
    for (i, spec) in specs.iter().enumerate() {
        let again = specs.iter().take(i).any(|other| other.address == spec.address);
        if again && spec.address.socket().is_none_or(|a| a.port() != 0) {
            report.error(&field, format!("address {} occurs twice", spec.address), "name each address once");
        }
    }
    specs
}

/// What chains may know of their listener.
struct Surroundings<'a> {
    name: &'a Arc<str>,
    scope: &'a Scope,
    metadata: Option<&'a Arc<Metadata>>,
    direction: TrafficDirection,
    buffer_limit: u32,
    drain_modify_only: bool,
    cx: &'a ListenerManagerCx,
}

impl Surroundings<'_> {
    fn chain(&self, proto: &FilterChain, default: bool, at: &At<'_>, report: &mut Report) -> Option<Arc<CompiledChain>> {
        let before = report.errors();
        if proto.use_proxy_proto.unwrap_or_default() {
            report.error(
                &at.field("use_proxy_proto"),
                "true",
                "configure the listener filter envoy.filters.listener.proxy_protocol instead",
            );
        }
        let tls = self.transport_socket(proto.transport_socket.as_ref(), &at.field("transport_socket"), report);
        let connect_timeout = proto.transport_socket_connect_timeout.as_ref();
        let connect_timeout =
            connect_timeout.and_then(|d| duration(d, &at.field("transport_socket_connect_timeout"), report)).filter(|d| !d.is_zero());
        let tls = tls?;
        let chain = ChainCx {
            listener: self.name,
            chain: &proto.name,
            listener_scope: self.scope,
            listener_metadata: self.metadata,
            chain_metadata: proto.metadata.as_ref(),
            tls: tls.is_some(),
            buffer_limit: self.buffer_limit,
            drain_modify_only: self.drain_modify_only,
            secrets: &self.cx.secrets,
        };
        let root = self.cx.server.stats.root();
        let (mut filters, mut terminal) = (Vec::new(), None);
        let field = at.field("filters");
        if proto.filters.is_empty() {
            report.error(&field, "a filter chain without filters", "give a terminal filter (http_connection_manager, tcp_proxy)");
        }
        for (i, filter) in proto.filters.iter().enumerate() {
            let (at, last) = (field.index(i), i + 1 == proto.filters.len());
            let any = match &filter.config_type {
                Some(ConfigType::TypedConfig(any)) => any,
                Some(ConfigType::ConfigDiscovery(_)) => {
                    report.unsupported(&at.field("config_discovery"), format_args!("discovery of the network filter `{}`", filter.name));
                    continue;
                }
                None => {
                    report.error(
                        &at.field("typed_config"),
                        format!("network filter `{}` has no configuration", filter.name),
                        "give typed_config",
                    );
                    continue;
                }
            };
            let at = at.field("typed_config");
            let config = match typed::unpack(any) {
                Ok(config) => config,
                Err(e) => {
                    report.error(&at, e, "give a valid configuration");
                    continue;
                }
            };
            let mut cx = FactoryCx { server: &self.cx.server, scope: &root, direction: self.direction, report: &mut *report };
            if let Some(factory) = self.cx.terminals.get(&config.name) {
                if !last {
                    let found = format!("terminal filter named {} of type {} is not the last filter", filter.name, config.name);
                    cx.report.error(&at, found, "put it at the end of the filter chain");
                    continue;
                }
                terminal = factory.compile(&config.value, &at, &mut cx, &chain);
                if terminal.is_none() && cx.report.errors() == before {
                    cx.report.error(&at, format!("network filter `{}` was refused", filter.name), "see its documentation");
                }
            } else if let Some(factory) = self.cx.registry.network(&config.name) {
                if last {
                    let found = format!(
                        "non-terminal filter named {} of type {} is the last filter in a network filter chain",
                        filter.name, config.name
                    );
                    cx.report.error(&at, found, "end the chain with http_connection_manager or tcp_proxy");
                }
                filters.extend(factory.compile(&config.value, &at, &mut cx));
            } else {
                cx.report.unsupported(&at, format_args!("network filter `{}` ({})", filter.name, config.name));
            }
        }
        let kind: &[u8] = if default { b"default" } else { b"match" };
        let matched = proto.filter_chain_match.as_ref().filter(|_| !default).map(Message::encode_to_vec).unwrap_or_default();
        let socket = proto.transport_socket.as_ref().map(Message::encode_to_vec).unwrap_or_default();
        let metadata = self.metadata.map(|m| m.encode_to_vec()).unwrap_or_default();
        let around = format!("{:?} {} {} {}", self.direction, self.buffer_limit, self.drain_modify_only, self.scope.prefix());
        let terminal = terminal.filter(|_| report.errors() == before)?;
        Some(Arc::new(CompiledChain {
            name: proto.name.as_str().into(),
            metadata: proto.metadata.clone().map(Arc::new),
            identity: digest(&[kind, &matched, &socket]),
            fingerprint: digest(&[kind, &proto.encode_to_vec(), &metadata, around.as_bytes()]),
            tls,
            connect_timeout,
            filters,
            terminal,
        }))
    }

    /// `Some(None)` is plaintext.
    fn transport_socket(&self, proto: Option<&TransportSocket>, at: &At<'_>, report: &mut Report) -> Option<Option<Arc<DownstreamTls>>> {
        let Some(proto) = proto else { return Some(None) };
        let Some(SocketConfig::TypedConfig(any)) = &proto.config_type else {
            if proto.name == "envoy.transport_sockets.raw_buffer" {
                return Some(None);
            }
            report.error(&at.field("typed_config"), format!("transport socket `{}` has no configuration", proto.name), "give typed_config");
            return None;
        };
        let at = at.field("typed_config");
        let config = typed::unpack(any).map_err(|e| report.error(&at, e, "give a valid configuration")).ok()?;
        match config.name.as_str() {
            "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer" => Some(None),
            "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext" => {
                let context = DownstreamTlsContext::decode(config.value.as_ref());
                let context = context
                    .map_err(|e| report.error(&at, format!("DownstreamTlsContext cannot be decoded: {e}"), "give a valid message"))
                    .ok()?;
                DownstreamTls::compile(&context, &self.cx.secrets, self.scope, &at, report).map(Some)
            }
            other => {
                report.unsupported(&at, format_args!("transport socket `{}` ({other})", proto.name));
                None
            }
        }
    }
}

fn duration(proto: &ProtoDuration, at: &At<'_>, report: &mut Report) -> Option<Duration> {
    Duration::try_from(*proto).map_err(|_| report.error(at, format!("{} s", proto.seconds), "give a duration of 0 s or more")).ok()
}

/// A digest that tells configurations apart. 128 bits of SipHash: the control plane is no adversary, chance is the only one.
fn digest(parts: &[&[u8]]) -> u128 {
    let half = |seed: u8| {
        let mut hasher = DefaultHasher::new();
        hasher.write_u8(seed);
        for part in parts {
            hasher.write_usize(part.len());
            hasher.write(part);
        }
        u128::from(hasher.finish())
    };
    half(0) << 64 | half(1)
}
