//! Listener filters: what looks at a connection before its filter chain is chosen. Compiled on the control thread, run on the worker
//! that accepted the connection. They peek: what they read stays in the socket for the codec or the handshake, except for a PROXY
//! header, which is taken off.

mod http_inspector;
mod local_ratelimit;
mod original;
mod peek;
mod predicate;
mod proxy_protocol;
mod tls_inspector;

use crate::stats::ListenerStats;
use nuncio_core::diag::{At, Report};
use nuncio_core::filter_state::FilterState;
use nuncio_core::registry::Server;
use nuncio_core::{Address, ByteStr};
use nuncio_proto::Struct;
use nuncio_proto::envoy::config::listener::v3::{ListenerFilter as FilterProto, listener_filter::ConfigType};
use nuncio_proto::typed;
use nuncio_tls::Transport;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

pub(crate) use peek::Peeked;

/// What is known of a connection while listener filters run.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub direct_remote: Address,
    pub direct_local: Address,
    pub remote: Address,
    pub local: Address,
    /// A filter set `local` to where the client meant to go.
    pub restored: bool,
    /// `tls`, `raw_buffer`; empty before something is known.
    pub transport: &'static str,
    pub protocols: Vec<String>,
    pub server_name: Option<ByteStr>,
    pub filter_state: FilterState,
    pub metadata: BTreeMap<String, Struct>,
}

impl Accepted {
    pub(crate) fn new(local: Address, remote: Address) -> Self {
        Self {
            direct_remote: remote.clone(),
            direct_local: local.clone(),
            remote,
            local,
            restored: false,
            transport: "",
            protocols: Vec::new(),
            server_name: None,
            filter_state: FilterState::default(),
            metadata: BTreeMap::new(),
        }
    }
    /// Destination port, for predicates.
    fn port(&self) -> Option<u16> {
        self.local.socket().map(|a: SocketAddr| a.port())
    }
}

/// What follows a filter.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Continue,
    /// Close the connection; the reason is for the log.
    Close(&'static str),
    /// The peer closed before it had sent enough.
    RemoteClosed,
    /// Reading failed.
    Error,
}

#[derive(Debug)]
enum Kind {
    TlsInspector(tls_inspector::TlsInspector),
    HttpInspector(http_inspector::HttpInspector),
    ProxyProtocol(proxy_protocol::ProxyProtocol),
    OriginalDst { transparent: bool },
    OriginalSrc { mark: u32 },
    LocalRateLimit(local_ratelimit::LocalRateLimit),
}

/// A compiled listener filter with the predicate that switches it off.
#[derive(Debug)]
pub(crate) struct ListenerFilter {
    disabled: Option<predicate::Predicate>,
    kind: Kind,
}

impl ListenerFilter {
    /// Compiles one filter. None means refused.
    pub(crate) fn compile(proto: &FilterProto, transparent: bool, server: &Arc<Server>, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let disabled = match &proto.filter_disabled {
            None => None,
            Some(p) => Some(predicate::Predicate::compile(p, &at.field("filter_disabled"), report)?),
        };
        let any = match &proto.config_type {
            Some(ConfigType::TypedConfig(any)) => any,
            Some(ConfigType::ConfigDiscovery(_)) => {
                report.unsupported(&at.field("config_discovery"), format_args!("discovery of the listener filter `{}`", proto.name));
                return None;
            }
            None => {
                report.error(
                    &at.field("typed_config"),
                    format!("listener filter `{}` has no configuration", proto.name),
                    "give typed_config",
                );
                return None;
            }
        };
        let at = at.field("typed_config");
        let config = typed::unpack(any).map_err(|e| report.error(&at, e, "give a valid configuration")).ok()?;
        let kind = match config.name.as_str() {
            "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector" => {
                Kind::TlsInspector(tls_inspector::TlsInspector::compile(&decode(&config, &at, report)?, server, &at, report)?)
            }
            "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector" => {
                Kind::HttpInspector(http_inspector::HttpInspector::new(server))
            }
            "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol" => {
                Kind::ProxyProtocol(proxy_protocol::ProxyProtocol::compile(&decode(&config, &at, report)?, server, &at, report)?)
            }
            "envoy.extensions.filters.listener.original_dst.v3.OriginalDst" => Kind::OriginalDst { transparent },
            "envoy.extensions.filters.listener.original_src.v3.OriginalSrc" => {
                let proto: nuncio_proto::envoy::extensions::filters::listener::original_src::v3::OriginalSrc =
                    decode(&config, &at, report)?;
                if proto.bind_port {
                    report.unsupported(&at.field("bind_port"), "bind_port (Envoy neither)");
                    return None;
                }
                Kind::OriginalSrc { mark: proto.mark }
            }
            "envoy.extensions.filters.listener.local_ratelimit.v3.LocalRateLimit" => {
                Kind::LocalRateLimit(local_ratelimit::LocalRateLimit::compile(&decode(&config, &at, report)?, server, &at, report)?)
            }
            other => {
                report.unsupported(&at, format_args!("listener filter `{}` ({other})", proto.name));
                return None;
            }
        };
        Some(Self { disabled, kind })
    }
    /// The filter that Envoy adds for `use_original_dst`.
    pub(crate) fn original_dst(transparent: bool) -> Self {
        Self { disabled: None, kind: Kind::OriginalDst { transparent } }
    }
    /// The filter that Envoy adds if chain matches need it.
    pub(crate) fn tls_inspector(server: &Arc<Server>) -> Self {
        Self { disabled: None, kind: Kind::TlsInspector(tls_inspector::TlsInspector::new(server)) }
    }
    pub(crate) fn is_tls_inspector(&self) -> bool {
        matches!(self.kind, Kind::TlsInspector(_))
    }
    pub(crate) fn is_original_dst(&self) -> bool {
        matches!(self.kind, Kind::OriginalDst { .. })
    }
    async fn run(&self, io: &mut Transport, peeked: &mut Peeked, accepted: &mut Accepted) -> Verdict {
        if self.disabled.as_ref().is_some_and(|p| p.matches(accepted.port())) {
            return Verdict::Continue;
        }
        match &self.kind {
            Kind::TlsInspector(filter) => filter.run(io, peeked, accepted).await,
            Kind::HttpInspector(filter) => filter.run(io, peeked, accepted).await,
            Kind::ProxyProtocol(filter) => filter.run(io, peeked, accepted).await,
            Kind::OriginalDst { transparent } => original::destination(io, *transparent, accepted),
            Kind::OriginalSrc { mark } => original::source(*mark, accepted),
            Kind::LocalRateLimit(filter) => filter.run(),
        }
    }
}

/// Runs `filters` in order; counts how it ended.
pub(crate) async fn run(filters: &[ListenerFilter], io: &mut Transport, accepted: &mut Accepted, stats: &ListenerStats) -> Verdict {
    // One buffer for all of them, gone before the handshake begins.
    let mut peeked = Peeked::default();
    for filter in filters {
        match filter.run(io, &mut peeked, accepted).await {
            Verdict::Continue => {}
            end => {
                match end {
                    Verdict::RemoteClosed => stats.listener_filter_remote_close.inc(),
                    Verdict::Error => stats.listener_filter_error.inc(),
                    Verdict::Close(_) | Verdict::Continue => {}
                }
                return end;
            }
        }
    }
    Verdict::Continue
}

fn decode<T: prost::Message + Default>(config: &typed::Typed<'_>, at: &At<'_>, report: &mut Report) -> Option<T> {
    T::decode(config.value.as_ref())
        .map_err(|e| report.error(at, format!("{} cannot be decoded: {e}", config.name), "give a valid message"))
        .ok()
}
