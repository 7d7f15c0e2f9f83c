//! istio.stats: Istio's standard metrics for HTTP, gRPC and TCP. Compiled on the control thread; run on workers at the end of
//! each stream, where one hash lookup finds the handles of its label set. Names, labels and fallbacks are those of Envoy contrib
//! `istio/filters/http/istio_stats`; configuration is `stats.PluginConfig`.

mod facts;
mod gather;
mod http;
mod labels;
mod overrides;
mod series;
mod sink;
mod tcp;
#[cfg(test)]
mod tests;

use crate::peer::{object, text};
use nuncio_core::diag::At;
use nuncio_core::filter::HttpFilter;
use nuncio_core::info::TrafficDirection;
use nuncio_core::network::NetworkFilterConfig;
use nuncio_core::registry::{FactoryCx, HttpFilterFactory, NetworkFilterFactory, Server};
use nuncio_core::stats::Scope;
use nuncio_core::{Headers, StreamInfo};
use nuncio_proto::Struct;
use nuncio_proto::stats::PluginConfig;
use overrides::Overrides;
use prost::Message;
use series::Shared;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use std::time::Duration;

/// Who reports: decides which side's labels come from the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Reporter {
    /// Outbound listeners and gateways: `source`.
    Client,
    /// Inbound listeners: `destination`.
    Server,
    /// `waypoint`.
    Waypoint,
}

/// A compiled `stats.PluginConfig`. Equal ones on listeners of one direction share everything.
#[derive(Debug)]
struct Config {
    reporter: Reporter,
    host_fallback: bool,
    /// Period of TCP and gRPC message counters; none for only at the end.
    interval: Option<Duration>,
    overrides: Overrides,
    local: Local,
    server: Arc<Server>,
    scope: Scope,
    shared: Shared,
}

/// Labels of this proxy's own workload: constant for the process.
#[derive(Debug)]
struct Local {
    workload: String,
    namespace: String,
    canonical_name: String,
    canonical_revision: String,
    app: String,
    version: String,
    cluster: String,
}

impl Local {
    fn of(node: &Struct) -> Self {
        let get = |key: &str| node.fields.get(key).map(text).unwrap_or_default().to_string();
        let labels = node.fields.get("LABELS").and_then(object);
        let label = |key: &str| labels.and_then(|l| l.fields.get(key)).map(text).unwrap_or_default().to_string();
        Self {
            workload: get("WORKLOAD_NAME"),
            namespace: get("NAMESPACE"),
            canonical_name: label("service.istio.io/canonical-name"),
            canonical_revision: label("service.istio.io/canonical-revision"),
            app: label("app"),
            version: label("version"),
            cluster: get("CLUSTER_ID"),
        }
    }
}

/// Compiled configurations by what they were compiled from: a gateway has one per filter chain, all alike.
static CONFIGS: LazyLock<Mutex<HashMap<ConfigKey, Weak<Config>>>> = LazyLock::new(Mutex::default);
/// Bytes, reporter, and the server that the configuration belongs to (tests run several in one process).
type ConfigKey = (Vec<u8>, Reporter, usize);

fn compile(bytes: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<Config>> {
    let config = match PluginConfig::decode(bytes) {
        Ok(config) => config,
        Err(e) => {
            cx.report.error(at, format!("undecodable configuration ({e})"), "send stats.PluginConfig");
            return None;
        }
    };
    let reporter = match nuncio_proto::stats::Reporter::try_from(config.reporter) {
        Ok(nuncio_proto::stats::Reporter::Unspecified) if cx.direction == TrafficDirection::Inbound => Reporter::Server,
        Ok(nuncio_proto::stats::Reporter::Unspecified) => Reporter::Client,
        Ok(nuncio_proto::stats::Reporter::ServerGateway) => Reporter::Waypoint,
        Err(_) => {
            cx.report.error(&at.field("reporter"), format!("unknown reporter {}", config.reporter), "use UNSPECIFIED or SERVER_GATEWAY");
            return None;
        }
    };
    warn_ignored(&config, at, cx);
    let interval = match &config.tcp_reporting_duration {
        None => Some(Duration::from_secs(5)),
        Some(d) => match Duration::try_from(*d) {
            Ok(d) => Some(d).filter(|d| !d.is_zero()),
            Err(_) => {
                cx.report.error(&at.field("tcp_reporting_duration"), format!("{d:?}"), "give a duration that is not negative");
                return None;
            }
        },
    };
    // Compiled even if an equal one exists, because what it reports belongs to this listener too.
    let overrides = Overrides::compile(&config, at, cx.report)?;
    let key = (bytes.to_vec(), reporter, Arc::as_ptr(cx.server).addr());
    let mut configs = CONFIGS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(existing) = configs.get(&key).and_then(Weak::upgrade) {
        return Some(existing);
    }
    let node = cx.server.node_metadata();
    let scope = cx.server.stats.root();
    let version = node.fields.get("ISTIO_VERSION").map(text).filter(|v| !v.is_empty()).unwrap_or("unknown").to_string();
    cx.server.stats.register_namespace(sink::NAMESPACE);
    sink::gauge(&scope, "istio_build", &[("component", "proxy"), ("tag", &version)]).set(1);
    let compiled = Arc::new(Config {
        reporter,
        host_fallback: !config.disable_host_header_fallback,
        interval,
        overrides,
        local: Local::of(node),
        server: cx.server.clone(),
        scope,
        shared: Shared::default(),
    });
    configs.retain(|_, c| c.strong_count() > 0);
    configs.insert(key, Arc::downgrade(&compiled));
    Some(compiled)
}

/// Fields of the retired WebAssembly plugin, which Envoy's filter does not read either.
fn warn_ignored(config: &PluginConfig, at: &At<'_>, cx: &mut FactoryCx<'_>) {
    let fields = [
        ("debug", config.debug),
        ("max_peer_cache_size", config.max_peer_cache_size != 0),
        ("stat_prefix", !config.stat_prefix.is_empty()),
        ("field_separator", !config.field_separator.is_empty()),
        ("value_separator", !config.value_separator.is_empty()),
        ("rotation_interval", config.rotation_interval.is_some()),
        ("graceful_deletion_interval", config.graceful_deletion_interval.is_some()),
    ];
    for (name, _) in fields.iter().filter(|(_, set)| *set) {
        cx.report.warning(&at.field(name), "a value", "Envoy ignores it, and so does Nuncio; remove it");
    }
}

/// Factory of the HTTP filter.
#[derive(Debug)]
pub struct HttpFactory;

impl HttpFilterFactory for HttpFactory {
    fn name(&self) -> &'static str {
        "istio.stats"
    }
    fn types(&self) -> &'static [&'static str] {
        &["stats.PluginConfig"]
    }
    fn compile(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn HttpFilter>> {
        Some(Arc::new(http::Filter(compile(config, at, cx)?)))
    }
}

/// Factory of the network filter.
#[derive(Debug)]
pub struct NetworkFactory;

impl NetworkFilterFactory for NetworkFactory {
    fn name(&self) -> &'static str {
        "istio.stats"
    }
    fn types(&self) -> &'static [&'static str] {
        &["stats.PluginConfig"]
    }
    fn compile(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn NetworkFilterConfig>> {
        Some(Arc::new(tcp::FilterConfig(compile(config, at, cx)?)))
    }
}

/// The gRPC status of a stream: of its trailers, else its headers, else of the local reply, else as the HTTP status maps to it.
/// -1 for a status that gRPC does not know. Source: Envoy's `Grpc::Common::getGrpcStatus`.
pub fn grpc_status(trailers: Option<&Headers>, headers: Option<&Headers>, info: &StreamInfo) -> Option<i32> {
    static GRPC_STATUS: ::http::HeaderName = ::http::HeaderName::from_static("grpc-status");
    let said = |headers: Option<&Headers>| {
        let value = headers?.get(&GRPC_STATUS).map(|v| v.as_bytes()).filter(|v| !v.is_empty())?;
        let code = std::str::from_utf8(value).ok().and_then(|v| v.parse().ok()).filter(|c| (0..=16).contains(c));
        Some(code.unwrap_or(-1))
    };
    let mapped = match info.response_code {
        0 => None,
        400 => Some(13),
        401 => Some(16),
        403 => Some(7),
        404 => Some(12),
        429 | 502 | 503 | 504 => Some(14),
        _ => Some(2),
    };
    said(trailers).or_else(|| said(headers)).or_else(|| info.grpc_status.and_then(|s| i32::try_from(s).ok())).or(mapped)
}
