//! What one http_connection_manager was compiled to: immutable, shared by all workers, replaced as a whole.

use crate::chain::FilterChain;
use crate::host::HostPolicy;
use crate::identity::Identity;
use crate::local_reply::LocalReplyConfig;
use crate::path::PathPolicy;
use crate::router::RouterConfig;
use crate::stats::{HcmStats, ListenerHttpStats};
use arc_swap::Guard;
use http::HeaderValue;
use nuncio_core::registry::Server;
use nuncio_format::AccessLogs;
use nuncio_http::ServerOptions;
use nuncio_route::{HeaderMutations, RouteSlot, RouteTable};
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
}

/// Timeouts of the connection manager; none is no limit.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timeouts {
    pub stream_idle: Option<Duration>,
    pub request: Option<Duration>,
    pub max_stream_duration: Option<Duration>,
    pub max_connection_duration: Option<Duration>,
    /// Between the GOAWAY or `connection: close` of a drain and the end.
    pub drain: Duration,
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
    /// RDS, or a fixed slot for a table inside of the listener.
    pub routes: Arc<RouteSlot>,
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
    pub upgrades: Vec<Upgrade>,
    pub timeouts: Timeouts,
    pub proxy_100_continue: bool,
    pub always_set_request_id_in_response: bool,
}

impl HcmConfig {
    /// The route table, none while RDS has not answered.
    pub fn routes(&self) -> Guard<Option<Arc<RouteTable>>> {
        self.routes.load()
    }
    /// The RDS name that has not arrived yet.
    pub fn pending_routes(&self) -> Option<String> {
        self.routes.load().is_none().then(|| self.routes.name.to_string())
    }
    /// Whether upgrades of `kind` go through.
    pub fn upgrade_allowed(&self, kind: &str) -> bool {
        self.upgrades.iter().find(|u| u.kind.eq_ignore_ascii_case(kind)).is_some_and(|u| u.enabled)
    }
}
