//! The state of the control thread, and what happens when an update, a timeout or a change of warming arrives. Everything runs
//! on one thread: an update is applied in batches with yields between them, so that admin and other streams go on.

use crate::args::Args;
use crate::bootstrap::Layer;
use crate::init::{Init, Phase};
use crate::listeners::Listeners;
use crate::raw::TypeStore;
use crate::scopes::Feeds;
use crate::stats::ServerStats;
use crate::subscriptions::{ALL, Kind, Subscriptions};
use crate::vhds::Discovered;
use bytes::Bytes;
use nuncio_core::diag::{At, Report, Severity};
use nuncio_core::registry::{Registry, Server};
use nuncio_core::views::{ClusterSlots, ClusterView};
use nuncio_hcm::{EcdsSlots, RouteDiscovery};
use nuncio_listener::ListenerManager;
use nuncio_proto::envoy::config::bootstrap::v3::{Bootstrap, bootstrap::StaticResources};
use nuncio_proto::envoy::config::core::v3::ConfigSource;
use nuncio_route::RouteSlots;
use nuncio_tls::SecretStore;
use nuncio_upstream::ClusterManager;
use nuncio_xds::{Refused, Update};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::Notify;

/// Endpoints in an update that is worth tidying up after.
const LARGE_UPDATE: usize = 64;

/// For so long nothing large must have come before memory is tidied up, so that it is done once for many updates.
const QUIET: Duration = Duration::from_secs(1);

/// The kinds in the order of `Control::raw`.
const RAW: [Kind; 8] =
    [Kind::Cluster, Kind::Endpoint, Kind::Listener, Kind::Route, Kind::Secret, Kind::Extension, Kind::Scope, Kind::VirtualHost];

/// What the whole process shares; terminal filter factories are made from it.
#[derive(Clone)]
pub struct Shared {
    pub server: Arc<Server>,
    pub registry: Arc<Registry>,
    pub clusters: Arc<ClusterSlots>,
    pub routes: Arc<RouteSlots>,
    pub secrets: Arc<SecretStore>,
    pub extensions: Arc<EcdsSlots>,
    pub discovery: Arc<RouteDiscovery>,
}

/// The control thread's state.
pub struct Control {
    pub(crate) args: Args,
    pub(crate) server: Arc<Server>,
    pub(crate) shared: Shared,
    /// The final bootstrap without its static resources.
    pub(crate) bootstrap: Bootstrap,
    /// Static resources that were not taken yet: each list is taken by who compiles it, and dropped with that. Secrets stay.
    pub(crate) statics: RefCell<StaticResources>,
    /// The final bootstrap as wire bytes, the node completed.
    pub(crate) bootstrap_raw: Bytes,
    pub(crate) loaded_at: SystemTime,
    pub(crate) layers: RefCell<Vec<Layer>>,
    pub(crate) clusters: Arc<ClusterManager>,
    pub(crate) listener_manager: RefCell<ListenerManager>,
    pub(crate) listeners: RefCell<Listeners>,
    pub(crate) subscriptions: Subscriptions,
    pub(crate) init: Init,
    pub(crate) stats: ServerStats,
    pub(crate) health_failed: Cell<bool>,
    /// `/drain_listeners` or SIGTERM began.
    pub(crate) draining: Cell<bool>,
    /// Whether the process ends with an error.
    pub(crate) failed: Cell<bool>,
    /// Set by `/quitquitquit` and by the end of a drain; wakes the main task.
    pub(crate) quit: Notify,
    /// Wakes housekeeping: warming, wanted endpoints or wanted secrets changed. Shared with the cluster manager's callback.
    pub(crate) changed: Arc<Notify>,
    /// Wakes [`Self::tend_memory`]: much was compiled.
    pub(crate) grown: Notify,
    clusters_changed: Arc<AtomicBool>,
    /// Updates that are being applied now.
    updating: Cell<usize>,
    pub(crate) scope_feeds: RefCell<Feeds>,
    pub(crate) discovered: RefCell<Discovered>,
    raw: [RefCell<TypeStore>; 8],
}

/// What [`Control::new`] is given.
pub(crate) struct Parts {
    pub args: Args,
    pub shared: Shared,
    pub bootstrap: Bootstrap,
    pub bootstrap_raw: Bytes,
    pub layers: Vec<Layer>,
    pub clusters: Arc<ClusterManager>,
    pub listener_manager: ListenerManager,
    pub stats: ServerStats,
}

impl Control {
    pub(crate) fn new(mut parts: Parts) -> Rc<Self> {
        let statics = parts.bootstrap.static_resources.take().unwrap_or_default();
        let changed = Arc::new(Notify::new());
        let clusters_changed = Arc::new(AtomicBool::new(true));
        let (wake, flag) = (changed.clone(), clusters_changed.clone());
        parts.clusters.on_change(Box::new(move || {
            flag.store(true, Ordering::Relaxed);
            wake.notify_one();
        }));
        Rc::new(Self {
            server: parts.shared.server.clone(),
            args: parts.args,
            shared: parts.shared,
            bootstrap: parts.bootstrap,
            statics: RefCell::new(statics),
            bootstrap_raw: parts.bootstrap_raw,
            loaded_at: SystemTime::now(),
            layers: RefCell::new(parts.layers),
            clusters: parts.clusters,
            listener_manager: RefCell::new(parts.listener_manager),
            listeners: RefCell::default(),
            subscriptions: Subscriptions::default(),
            init: Init::default(),
            stats: parts.stats,
            health_failed: Cell::new(false),
            draining: Cell::new(false),
            failed: Cell::new(false),
            quit: Notify::new(),
            changed,
            grown: Notify::new(),
            clusters_changed,
            updating: Cell::new(0),
            scope_feeds: RefCell::default(),
            discovered: RefCell::default(),
            raw: RAW.map(|k| RefCell::new(TypeStore::new(k.type_url()))),
        })
    }

    /// Raw resources of a kind.
    pub(crate) fn raw(&self, kind: Kind) -> &RefCell<TypeStore> {
        let [cluster, endpoint, listener, route, secret, extension, scope, virtual_host] = &self.raw;
        match kind {
            Kind::Cluster => cluster,
            Kind::Endpoint => endpoint,
            Kind::Listener => listener,
            Kind::Route => route,
            Kind::Secret => secret,
            Kind::Extension => extension,
            Kind::Scope => scope,
            Kind::VirtualHost => virtual_host,
        }
    }

    /// Applies an update that came by the aggregated stream (`source` none) or by a source of its own. Returns what was refused.
    pub(crate) async fn update(self: &Rc<Self>, kind: Kind, update: Update, source: Option<Arc<ConfigSource>>) -> Vec<Refused> {
        let begun = Instant::now();
        let count = update.resources.len();
        for error in &update.server_errors {
            log::warn!(target: "config", "{}: the control plane reports an error for '{}': {}", kind.label(), error.name, error.reason);
        }
        self.updating.set(self.updating.get() + 1);
        let refused = match kind {
            Kind::Cluster => self.update_clusters(&update).await,
            Kind::Endpoint => self.update_endpoints(&update).await,
            Kind::Listener => self.update_listeners(&update).await,
            Kind::Route => self.update_routes(&update).await,
            Kind::Secret => self.update_secrets(&update, source.as_ref()),
            Kind::Extension => self.update_extensions(&update),
            Kind::Scope => self.update_scopes(&update, source.as_ref()).await,
            Kind::VirtualHost => self.update_virtual_hosts(&update).await,
        };
        self.updating.set(self.updating.get() - 1);
        self.record(kind, &update, &refused, begun, source.as_ref());
        // Endpoints change all day; the rest is worth a line.
        let level = if kind == Kind::Endpoint { log::Level::Debug } else { log::Level::Info };
        log::log!(
            target: "config",
            level,
            "{}: {count} added or updated, {} removed, {} refused, version '{}'",
            kind.label(), update.removed.len(), refused.len() + update.refused.len(), update.version
        );
        // Compiling anything but endpoints runs much code that serving does not.
        if kind != Kind::Endpoint || count >= LARGE_UPDATE {
            self.grown.notify_one();
        }
        if kind == Kind::Endpoint {
            self.settle_clusters();
            self.advance();
        } else {
            self.housekeep();
        }
        refused
    }

    /// Raw store, stats and log of an update that was applied.
    fn record(&self, kind: Kind, update: &Update, refused: &[Refused], begun: Instant, source: Option<&Arc<ConfigSource>>) {
        let all: Vec<&Refused> = update.refused.iter().chain(refused).collect();
        let mut store = self.raw(kind).borrow_mut();
        let values: HashMap<&str, &Bytes> =
            if all.is_empty() { HashMap::new() } else { update.resources.iter().map(|r| (r.name.as_ref(), &r.value)).collect() };
        for bad in &all {
            log::warn!(target: "config", "{}: '{}' is refused: {}", kind.label(), bad.name, bad.reason);
            // What was refused is shown by config_dump; a private key must not be.
            let value = values.get(bad.name.as_ref()).filter(|_| kind != Kind::Secret);
            store.refuse(bad, value.map(|v| (*v).clone()), &update.version);
        }
        let took = begun.elapsed();
        let wildcard = matches!(kind, Kind::Cluster | Kind::Listener | Kind::Scope);
        if wildcard {
            if all.is_empty() {
                store.version = update.version.clone();
            }
            self.subscriptions.each(kind, ALL, |w| {
                if !w.is_from(source) {
                    return;
                }
                w.received.set(true);
                if let Some(stats) = &w.stats {
                    if all.is_empty() { stats.accepted(&update.version, took) } else { stats.rejected() }
                }
            });
            return;
        }
        if kind == Kind::VirtualHost {
            // Subscriptions are to tables, resources are virtual hosts; an answer without any is one too.
            self.subscriptions.each_of(kind, |w| {
                if w.is_from(source) {
                    w.received.set(true);
                    if let Some(stats) = &w.stats {
                        if all.is_empty() { stats.accepted(&update.version, took) } else { stats.rejected() }
                    }
                }
            });
            return;
        }
        let bad = |name: &str| all.iter().any(|r| *r.name == *name);
        // What was refused here is among the resources; what the session could not read is not.
        for name in update.resources.iter().map(|r| &r.name).chain(&update.removed).chain(update.refused.iter().map(|r| &r.name)) {
            self.subscriptions.each(kind, name, |w| {
                w.received.set(true);
                if let Some(stats) = &w.stats {
                    if bad(name) { stats.rejected() } else { stats.accepted(&update.version, took) }
                }
            });
        }
    }

    /// `initial_fetch_timeout` of some names fired: what waited for them goes on without.
    pub(crate) fn fetch_timed_out(self: &Rc<Self>, kind: Kind, names: &[Arc<str>]) {
        for name in names {
            log::warn!(target: "config", "{}: initial fetch timed out for '{name}'", kind.label());
            if kind == Kind::Endpoint {
                self.clusters.endpoints_timeout(name);
            }
        }
        if kind == Kind::Secret {
            self.clusters.secrets_changed();
        }
        self.changed.notify_one();
    }

    /// Brings subscriptions and warming up to date with what is configured. Cheap if nothing changed; while an update is being
    /// applied it does nothing, because the end of the update does it once for all its resources.
    pub(crate) fn housekeep(self: &Rc<Self>) {
        if self.updating.get() > 0 {
            return;
        }
        self.settle_clusters();
        self.sync_secrets();
        self.recheck_listeners();
        self.sync_routes();
        self.settle_demands();
        self.advance();
    }

    /// Follows the cluster manager: which assignments are wanted, and which clusters wait no more.
    fn settle_clusters(self: &Rc<Self>) {
        if self.updating.get() > 0 || !self.clusters_changed.swap(false, Ordering::Relaxed) {
            return;
        }
        self.sync_endpoints();
        let mut warming: Vec<Arc<str>> = self.clusters.warming().iter().map(|c| c.name().clone()).collect();
        warming.sort();
        self.raw(Kind::Cluster).borrow_mut().activate_except(&warming);
    }

    /// Runs [`Self::housekeep`] when something changed, and now and then while something waits for time to pass.
    pub(crate) async fn keep_house(self: Rc<Self>) {
        loop {
            let waiting = self.listeners.borrow().warming() > 0 || self.init.phase() != Phase::Live;
            let patience = if waiting { Duration::from_millis(200) } else { Duration::from_secs(3600) };
            // A timeout is as good a reason to look as a notification.
            let _ = tokio::time::timeout(patience, self.changed.notified()).await;
            self.housekeep();
        }
    }

    /// Lets go of what only starting up or a large update needed, some time after each.
    pub(crate) async fn tend_memory(self: Rc<Self>) {
        loop {
            self.grown.notified().await;
            while tokio::time::timeout(QUIET, self.grown.notified()).await.is_ok() {}
            crate::pages::release();
        }
    }

    /// Logs the warnings of one resource; the report is given back if there are errors.
    pub(crate) fn findings(kind: Kind, name: &str, report: Report) -> Result<(), Report> {
        for finding in report.items.iter().filter(|d| d.severity == Severity::Warning) {
            log::warn!(target: "config", "{} '{name}': {finding}", kind.label());
        }
        if report.has_errors() { Err(report) } else { Ok(()) }
    }

    /// A report with one error about the whole resource.
    pub(crate) fn undecodable(what: &str, error: impl std::fmt::Display) -> Report {
        let mut report = Report::new();
        report.error(&At::Root, format!("is no valid {what}: {error}"), "send the message that its type URL names");
        report
    }
}

/// The errors of a report in one line, as the reason of a refusal. Never empty.
pub(crate) fn reason(report: &Report) -> String {
    let text = report.summary();
    let text = text.trim_start_matches(": ").to_string();
    if text.is_empty() { "cannot be used".to_string() } else { text }
}
