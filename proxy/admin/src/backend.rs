//! What the control thread shows to the admin endpoints, and what they ask of it. nuncio-control implements [`Backend`];
//! everything here runs on the control thread, so nothing needs to be `Send`.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use nuncio_core::Address;
use nuncio_proto::envoy::admin::v3::{Certificate, Memory, ServerInfo};
use nuncio_stats::Store;

/// The process as the admin port sees it. Methods are called between other work of the control thread and must not block.
/// Iterators are `'static` and lazy: a dump takes one element, writes it to the peer, and only then asks for the next, so they
/// hold a snapshot or a cursor (the last name), never a borrow.
pub trait Backend {
    /// All stats (`/stats`, `/stats/prometheus`, `/reset_counters`).
    fn stats(&self) -> Store;

    /// The final bootstrap as wire bytes of `envoy.config.bootstrap.v3.Bootstrap`, and when it was loaded.
    fn bootstrap(&self) -> (Bytes, SystemTime);

    /// `version_info` of the last accepted wildcard update of this kind (clusters and listeners); empty if there was none.
    fn version_info(&self, kind: ResourceKind) -> String;

    /// Every resource of a kind, sorted by name. Called once per field of the dump's section.
    fn resources(&self, kind: ResourceKind) -> Box<dyn Iterator<Item = Resource>>;

    /// Every cluster with its hosts, sorted by name (`/clusters`).
    fn clusters(&self) -> Box<dyn Iterator<Item = ClusterStatus>>;

    /// Active listeners in the order in which they were added (`/listeners`).
    fn listeners(&self) -> Vec<ListenerStatus>;

    /// `/server_info`.
    fn server_info(&self) -> ServerInfo;

    /// Certificates of every TLS context in use (`/certs`).
    fn certificates(&self) -> Vec<Certificate>;

    /// What initialisation waits for (`/init_dump`): one entry per init manager with targets that are not ready.
    fn unready_targets(&self) -> Vec<UnreadyTargets>;

    /// `/ready` and `server.state`.
    fn state(&self) -> State;

    /// Why the state is not LIVE, one line each: what is waited for, by name. Shown by `/ready` after the state.
    fn not_ready_because(&self) -> Vec<String>;

    /// `/runtime`.
    fn runtime(&self) -> Runtime;

    /// `/runtime_modify`: sets these keys in the admin layer; an empty value removes the override. The error says why it cannot
    /// (no admin layer).
    fn modify_runtime(&self, changes: &[(String, String)]) -> Result<(), String>;

    /// Components of the log and their levels, as Envoy names both, in Envoy's order (`/logging`).
    fn log_levels(&self) -> Vec<(String, &'static str)>;

    /// Sets the level of one component, or of all. The component is one of [`Self::log_levels`], the level one of
    /// [`LOG_LEVELS`].
    fn set_log_level(&self, component: Option<&str>, level: &str);

    /// `/healthcheck/fail` (true) and `/healthcheck/ok` (false).
    fn fail_health_checks(&self, fail: bool);

    /// `/drain_listeners`. Repeated calls do nothing new.
    fn drain_listeners(&self, how: Drain);

    /// `/quitquitquit`: ends the process in good order once the answer is written.
    fn quit(&self);

    /// `/reopen_logs`: opens every access log and application log file anew.
    fn reopen_logs(&self);

    /// `/memory`.
    fn memory(&self) -> Memory;
}

/// Log levels as Envoy names them.
pub const LOG_LEVELS: [&str; 7] = ["trace", "debug", "info", "warning", "error", "critical", "off"];

/// `envoy.admin.v3.ServerInfo.State`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Serving.
    Live,
    /// Health checks are failed on request, or listeners drain.
    Draining,
    /// Clusters are not there yet.
    PreInitializing,
    /// Listeners wait for their configuration.
    Initializing,
}

impl State {
    /// As `/ready` and server_info say it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Live => "LIVE",
            Self::Draining => "DRAINING",
            Self::PreInitializing => "PRE_INITIALIZING",
            Self::Initializing => "INITIALIZING",
        }
    }
}

/// Kinds of resources that `/config_dump` has a section for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ResourceKind {
    Cluster,
    Endpoint,
    Listener,
    Route,
    Secret,
    /// ECDS.
    ExtensionConfig,
    /// All scopes of one `ScopedRoutes`: the value is an encoded `DynamicScopedRouteConfigs` that has nothing but the scopes.
    ScopedRoute,
}

/// One resource by name, in all the states that it is in.
#[derive(Clone, Debug)]
pub struct Resource {
    pub name: Arc<str>,
    /// From the bootstrap; otherwise from xDS or a file source.
    pub is_static: bool,
    /// What serves.
    pub active: Option<Version>,
    /// What will serve once it has what it needs (clusters, listeners, secrets that are wanted but not there).
    pub warming: Option<Version>,
    /// What served before and still has connections (listeners).
    pub draining: Option<Version>,
    /// The last update, if it was refused.
    pub error: Option<UpdateFailure>,
}

/// A resource as it was received.
#[derive(Clone, Debug)]
pub struct Version {
    /// xDS version; empty for static resources.
    pub version_info: Arc<str>,
    pub last_updated: SystemTime,
    /// The bytes as received, with their type URL. An empty type URL shows no resource (a wanted secret).
    pub type_url: Arc<str>,
    pub value: Bytes,
}

/// `envoy.admin.v3.UpdateFailureState`.
#[derive(Clone, Debug)]
pub struct UpdateFailure {
    /// Type URL and bytes of what was refused, if they are kept.
    pub configuration: Option<(Arc<str>, Bytes)>,
    pub at: SystemTime,
    /// Every problem, with field path.
    pub details: String,
    pub version_info: String,
}

/// A cluster in `/clusters`.
#[derive(Clone, Debug)]
pub struct ClusterStatus {
    pub name: Arc<str>,
    /// alt_stat_name, or the name.
    pub observability_name: Arc<str>,
    pub added_via_api: bool,
    /// Empty if it is the cluster's name or there is no EDS.
    pub eds_service_name: String,
    /// Present if the cluster has outlier detection.
    pub outlier: Option<OutlierStatus>,
    /// Limits of the default and of the high priority.
    pub default_priority: Limits,
    pub high_priority: Limits,
    pub hosts: Vec<HostStatus>,
}

/// Success rates in percent; -1 where there is none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OutlierStatus {
    pub success_rate_average: f64,
    pub success_rate_ejection_threshold: f64,
    pub local_origin_success_rate_average: f64,
    pub local_origin_success_rate_ejection_threshold: f64,
}

impl Default for OutlierStatus {
    fn default() -> Self {
        Self {
            success_rate_average: -1.0,
            success_rate_ejection_threshold: -1.0,
            local_origin_success_rate_average: -1.0,
            local_origin_success_rate_ejection_threshold: -1.0,
        }
    }
}

/// Circuit breaker thresholds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub max_connections: u32,
    pub max_pending_requests: u32,
    pub max_requests: u32,
    pub max_retries: u32,
}

/// A host of a cluster.
#[derive(Clone, Debug)]
pub struct HostStatus {
    pub address: Address,
    pub hostname: String,
    pub stats: HostStats,
    pub health: HostHealth,
    pub weight: u32,
    pub region: String,
    pub zone: String,
    pub sub_zone: String,
    pub canary: bool,
    pub priority: u32,
    /// In percent; -1 if there is none.
    pub success_rate: f64,
    pub local_origin_success_rate: f64,
}

/// Counters and gauges of a host, under Envoy's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostStats {
    pub cx_active: u64,
    pub cx_connect_fail: u64,
    pub cx_total: u64,
    pub rq_active: u64,
    pub rq_error: u64,
    pub rq_pending_active: u64,
    pub rq_success: u64,
    pub rq_timeout: u64,
    pub rq_total: u64,
}

/// `envoy.admin.v3.HostHealthStatus`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostHealth {
    pub failed_active_health_check: bool,
    pub failed_outlier_check: bool,
    pub failed_active_degraded_check: bool,
    pub pending_dynamic_removal: bool,
    pub pending_active_hc: bool,
    pub excluded_via_immediate_hc_fail: bool,
    pub active_hc_timeout: bool,
    pub failed_degraded_outlier_detection: bool,
    /// `envoy.config.core.v3.HealthStatus` of the endpoint. UNKNOWN is shown as HEALTHY, as Envoy does.
    pub eds_health_status: i32,
}

/// A listener in `/listeners`.
#[derive(Clone, Debug)]
pub struct ListenerStatus {
    pub name: String,
    pub local_address: Address,
    pub additional_local_addresses: Vec<Address>,
}

/// An init manager with targets that are not ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnreadyTargets {
    /// `init manager Server`, `init manager Listener-init-manager name ..`.
    pub name: String,
    pub targets: Vec<String>,
    /// Whether it belongs to a listener (`/init_dump?mask=listener`).
    pub listener: bool,
}

/// Runtime layers and keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Runtime {
    /// Layer names, lowest first.
    pub layers: Vec<String>,
    pub entries: Vec<RuntimeEntry>,
}

/// One runtime key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeEntry {
    pub key: String,
    /// What applies.
    pub final_value: String,
    /// The value in each layer; empty where it is not set.
    pub layer_values: Vec<String>,
}

/// Parameters of `/drain_listeners`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drain {
    /// Drain for `--drain-time-s` before listeners are stopped.
    pub graceful: bool,
    /// Only listeners whose traffic_direction is INBOUND.
    pub inbound_only: bool,
    /// Drain, but never stop listeners.
    pub skip_exit: bool,
}
