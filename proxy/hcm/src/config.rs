//! What one http_connection_manager was compiled to: immutable, shared by all workers, replaced as a whole.

use crate::chain::FilterChain;
use crate::host::HostPolicy;
use crate::identity::Identity;
use crate::local_reply::LocalReplyConfig;
use crate::path::PathPolicy;
use crate::proxy_status::ProxyStatus;
use crate::router::RouterConfig;
use crate::routes::Routes;
use crate::stats::{HcmStats, ListenerHttpStats};
use http::HeaderValue;
use nuncio_core::registry::Server;
use nuncio_format::AccessLogs;
use nuncio_http::ServerOptions;
use nuncio_route::HeaderMutations;
use nuncio_stats::Histogram;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// `codec_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    Auto,
    Http1,
    Http2,
}

/// `server_header_transformation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerHeader {
    Overwrite,
    AppendIfAbsent,
    PassThrough,
}

/// One `upgrade_configs` entry.
#[derive(Debug)]
pub struct Upgrade {
    /// `upgrade_type`, compared without case.
    pub kind: String,
    pub enabled: bool,
    /// Filters of its own, in the place of the connection manager's.
    pub filters: Option<FilterChain>,
}

/// Timeouts of the connection manager; none is no limit.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timeouts {
    pub stream_idle: Option<Duration>,
    /// `stream_flush_timeout`, by default as long.
    pub flush: Option<Duration>,
    pub request: Option<Duration>,
    pub max_stream_duration: Option<Duration>,
    pub max_connection_duration: Option<Duration>,
    /// How long an HTTP/1 connection that reached its duration waits for its next request, which it answers as its last.
    pub drain: Duration,
    /// By which part `max_connection_duration` and `drain` may grow at random, 0 to 1.
    pub max_connection_jitter: f64,
    pub drain_jitter: f64,
    /// `http1_safe_max_connection_duration`: that wait has no end.
    pub http1_safe: bool,
}

/// When log lines are written beside that of the stream's end (`access_log_options`).
#[derive(Clone, Copy, Debug, Default)]
pub struct LogOptions {
    pub interval: Option<Duration>,
    /// As soon as the request's headers are there.
    pub on_new_request: bool,
    /// When a CONNECT was answered with 200.
    pub on_tunnel: bool,
}

/// A configuration as one worker holds it: the shared count is touched once per connection and change, not per request.
pub type LocalConfig = Rc<Arc<HcmConfig>>;

/// A compiled connection manager.
#[derive(Debug)]
pub struct HcmConfig {
    pub server: Arc<Server>,
    pub codec: Codec,
    pub options: Arc<ServerOptions>,
    pub stats: HcmStats,
    pub listener_stats: ListenerHttpStats,
    pub filters: FilterChain,
    pub router: RouterConfig,
    pub routes: Arc<Routes>,
    /// `record_route_resolution_stats`: time in microseconds and number of resolutions of a stream.
    pub route_resolution: Option<(Histogram, Histogram)>,
    pub access_logs: AccessLogs,
    pub identity: Identity,
    pub path: PathPolicy,
    pub host: HostPolicy,
    /// `http_reject_path_with_fragment`: true rejects, false strips nothing and routes as it is.
    pub reject_fragment: bool,
    pub early_mutations: Vec<HeaderMutations>,
    pub local_reply: LocalReplyConfig,
    pub server_header: ServerHeader,
    pub server_name: HeaderValue,
    pub proxy_status: Option<Box<ProxyStatus>>,
    pub upgrades: Vec<Upgrade>,
    pub timeouts: Timeouts,
    pub log_options: LogOptions,
    pub proxy_100_continue: bool,
    pub always_set_request_id_in_response: bool,
}

impl HcmConfig {
    /// RDS names that have not arrived yet.
    pub fn pending_routes(&self) -> Vec<String> {
        self.routes.pending()
    }
    /// The filters of a request: those of the upgrade at this place of `upgrades`, if it has any, else the connection manager's.
    pub fn chain(&self, upgrade: Option<usize>) -> &FilterChain {
        upgrade.and_then(|at| self.upgrades.get(at)?.filters.as_ref()).unwrap_or(&self.filters)
    }
    /// Whether upgrades of `kind` go through.
    pub fn upgrade_allowed(&self, kind: &str) -> bool {
        self.upgrades.iter().find(|u| u.kind.eq_ignore_ascii_case(kind)).is_some_and(|u| u.enabled)
    }
}
