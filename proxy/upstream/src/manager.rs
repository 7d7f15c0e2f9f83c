//! The clusters of the process by name: warming, endpoint updates, DNS, health checks, timers. Control thread; `Sync` so that
//! tests and admin may ask from elsewhere.
//!
//! Life of a cluster: compiled -> warming (waits for endpoints, a DNS answer, health checks or secrets) -> active (in its slot)
//! -> retired (removed or replaced; its connections drain). What a warming cluster replaces serves until then.

use crate::cluster::{Cluster, ClusterCx};
use crate::orca::oob;
use crate::shared::Shared;
use crate::spec::Discovery;
use crate::timers::{Due, Timers};
use crate::{dns, forward_proxy, health_check};
use nuncio_core::diag::{At, Report};
use nuncio_core::registry::{Registry, Server};
use nuncio_core::views::{ClusterSlots, ClusterView};
use nuncio_proto::Message;
use nuncio_proto::envoy::config::bootstrap::v3::ClusterManager as ClusterManagerProto;
use nuncio_proto::envoy::config::cluster::v3 as pb;
use nuncio_proto::envoy::config::core::v3::ConfigSource;
use nuncio_proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use nuncio_stats::{Counter, Gauge};
use nuncio_tls::SecretStore;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use twox_hash::XxHash64;

/// What the manager is built from.
pub struct ManagerOptions {
    pub server: Arc<Server>,
    pub secrets: Arc<SecretStore>,
    pub registry: Arc<Registry>,
    pub slots: Arc<ClusterSlots>,
    /// `Bootstrap.cluster_manager`: local cluster, event log, bind config.
    pub bootstrap: ClusterManagerProto,
}

/// An endpoint assignment that some cluster wants.
#[derive(Clone, Debug)]
pub struct EdsWanted {
    /// `service_name`, else the cluster's name.
    pub name: Arc<str>,
    /// `eds_cluster_config.eds_config`.
    pub source: Arc<ConfigSource>,
}

/// How a worker hears of hosts and clusters that left.
#[derive(Debug, Default)]
pub struct WorkerFeed {
    changes: Option<watch::Receiver<u64>>,
}

impl WorkerFeed {
    /// Resolves when something left.
    pub(crate) async fn changed(&mut self) {
        let alive = match &mut self.changes {
            Some(changes) => changes.changed().await.is_ok(),
            None => false,
        };
        if !alive {
            std::future::pending().await
        }
    }
}

/// What `apply` did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// The very same configuration is in use.
    Unchanged,
    /// In use now.
    Active,
    /// Waits for endpoints, DNS or secrets; what it replaces serves until then.
    Warming,
}

/// How long secrets may keep a cluster warming: SDS' `initial_fetch_timeout` by default.
const SECRETS_PATIENCE: Duration = Duration::from_secs(15);

/// One name.
struct Entry {
    /// Of the configuration that came last.
    hash: u64,
    active: Option<Arc<Cluster>>,
    warming: Option<(Arc<Cluster>, Instant)>,
}

impl Entry {
    fn all(&self) -> impl Iterator<Item = &Arc<Cluster>> {
        self.active.iter().chain(self.warming.as_ref().map(|(c, _)| c))
    }
    fn tally(&self) -> Tally {
        Tally { active: i64::from(self.active.is_some()), warming: i64::from(self.warming.is_some()) }
    }
}

/// How many clusters are in use, and how many warm.
#[derive(Clone, Copy, Default)]
struct Tally {
    active: i64,
    warming: i64,
}

impl Tally {
    /// An entry changed from `before` to `after`. Counted so, because counting all of thousands after each change is quadratic.
    fn note(&mut self, before: Self, after: Self) {
        self.active += after.active - before.active;
        self.warming += after.warming - before.warming;
    }
}

#[derive(Default)]
struct State {
    clusters: BTreeMap<Arc<str>, Entry>,
    /// Clusters by the assignment that they want.
    by_assignment: HashMap<Arc<str>, Vec<Weak<Cluster>>>,
    tally: Tally,
}

struct Stats {
    added: Counter,
    modified: Counter,
    removed: Counter,
    updated: Counter,
    active: Gauge,
    warming: Gauge,
}

type Callback = Box<dyn Fn() + Send + Sync>;

/// Clusters by name.
pub struct ClusterManager {
    options: ManagerOptions,
    shared: Arc<Shared>,
    state: Mutex<State>,
    callbacks: Mutex<Vec<Callback>>,
    stats: Stats,
    /// Clusters whose tasks and timers are to be started by `run`.
    starts: mpsc::UnboundedSender<Weak<Cluster>>,
    started: Mutex<Option<mpsc::UnboundedReceiver<Weak<Cluster>>>>,
}

impl ClusterManager {
    /// A manager without clusters. Findings about `bootstrap` go to `report`.
    pub fn new(options: ManagerOptions, report: &mut Report) -> Arc<Self> {
        let shared = Arc::new(Shared::new(&options.bootstrap, report));
        let scope = options.server.stats.root().scope("cluster_manager.");
        let stats = Stats {
            added: scope.counter("cluster_added"),
            modified: scope.counter("cluster_modified"),
            removed: scope.counter("cluster_removed"),
            updated: scope.counter("cluster_updated"),
            active: scope.gauge("active_clusters"),
            warming: scope.gauge("warming_clusters"),
        };
        let (starts, started) = mpsc::unbounded_channel();
        let manager = Arc::new(Self {
            options,
            shared,
            state: Mutex::default(),
            callbacks: Mutex::default(),
            stats,
            starts,
            started: Mutex::new(Some(started)),
        });
        let weak = Arc::downgrade(&manager);
        manager.options.server.runtime.watch(move |key| {
            if let Some(manager) = weak.upgrade() {
                manager.runtime_changed(key);
            }
        });
        manager
    }
    /// A runtime key was set or removed.
    fn runtime_changed(&self, key: &str) {
        if key.starts_with("outlier_detection.") {
            for (_, entry) in self.state().clusters.iter() {
                entry.all().for_each(|cluster| cluster.read_outlier_runtime());
            }
            return;
        }
        let breakers = key.strip_prefix("circuit_breakers.");
        if breakers.is_none() && !key.starts_with("upstream.") {
            return;
        }
        // Names may hold dots, so that the key does not say where the name ends.
        let meant = |name: &str| breakers.is_none_or(|rest| rest.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')));
        for (_, entry) in self.state().clusters.iter().filter(|(name, _)| meant(name)) {
            entry.all().for_each(|cluster| cluster.read_runtime(breakers.is_some()));
        }
    }
    /// The slots that clusters are put into.
    pub fn slots(&self) -> &Arc<ClusterSlots> {
        &self.options.slots
    }
    /// What [`crate::Upstreams::install`] of a worker takes.
    pub fn worker_feed(&self) -> WorkerFeed {
        WorkerFeed { changes: Some(self.shared.subscribe()) }
    }
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// Adds or replaces a cluster. Errors refuse it alone; warnings go to `report` either way.
    pub fn apply(&self, proto: &pb::Cluster, added_via_api: bool, report: &mut Report) -> Option<Applied> {
        let hash = XxHash64::oneshot(0, &proto.encode_to_vec());
        {
            let state = self.state();
            if let Some(entry) = state.clusters.get(proto.name.as_str()) {
                if entry.hash == hash {
                    return Some(Applied::Unchanged);
                }
                if added_via_api && entry.all().any(|c| !c.added_via_api()) {
                    report.warning(&At::Root.field("name"), proto.name.as_str(), "a cluster of the bootstrap is not replaced by CDS");
                    return Some(Applied::Unchanged);
                }
            }
        }
        let cluster = Cluster::compile(
            proto,
            &mut ClusterCx {
                server: &self.options.server,
                secrets: &self.options.secrets,
                registry: &self.options.registry,
                shared: &self.shared,
                report,
                added_via_api,
            },
        )?;
        self.options.slots.slot(cluster.name()).expect();
        let applied = {
            let mut state = self.state();
            self.inherit(&state, &cluster);
            if let Some(name) = cluster.eds_name() {
                let wanted = state.by_assignment.entry(name.clone()).or_default();
                wanted.retain(|c| c.strong_count() > 0);
                wanted.push(Arc::downgrade(&cluster));
            }
            let name = cluster.name().clone();
            let known = state.clusters.contains_key(&name);
            let State { clusters, tally, .. } = &mut *state;
            let entry = clusters.entry(name).or_insert_with(|| Entry { hash, active: None, warming: None });
            let before = entry.tally();
            entry.hash = hash;
            if known {
                self.stats.modified.inc()
            } else {
                self.stats.added.inc()
            }
            if let Some((old, _)) = entry.warming.replace((cluster.clone(), Instant::now())) {
                old.retire();
            }
            let applied = if self.settle(entry, Instant::now()) { Applied::Active } else { Applied::Warming };
            tally.note(before, entry.tally());
            applied
        };
        self.count();
        // Nobody hears of it if `run` ended; then the process ends.
        let _ = self.starts.send(Arc::downgrade(&cluster));
        self.changed();
        Some(applied)
    }
    /// Gives a new cluster the hosts of the one that it replaces, or of another that has the same assignment (which the
    /// control plane does not send again).
    fn inherit(&self, state: &State, cluster: &Arc<Cluster>) {
        let replaced = state.clusters.get(cluster.name()).and_then(|e| e.active.as_ref()).filter(|old| cluster.same_source(old));
        if let Some(old) = replaced {
            return cluster.inherit(old);
        }
        let Some(name) = cluster.eds_name() else { return };
        let others = state.by_assignment.get(name).into_iter().flatten().filter_map(Weak::upgrade);
        if let Some(other) = others.into_iter().find(|o| cluster.same_source(o) && o.has_endpoints()) {
            cluster.copy_endpoints(&other);
        }
    }
    /// Puts the warming cluster of `entry` in use if it is warm; whether none is left warming.
    fn settle(&self, entry: &mut Entry, now: Instant) -> bool {
        let Some((cluster, since)) = &entry.warming else { return true };
        let secrets = cluster.secrets_ready() || now.saturating_duration_since(*since) >= SECRETS_PATIENCE;
        if !(secrets && cluster.is_initialized()) {
            cluster.endpoint_stats().gauge("warming_state").set(1);
            return false;
        }
        let Some((cluster, _)) = entry.warming.take() else { return true };
        cluster.endpoint_stats().gauge("warming_state").set(0);
        self.options.slots.slot(cluster.name()).set(Some(cluster.clone()));
        if let Some(old) = entry.active.replace(cluster.clone()) {
            self.stats.updated.inc();
            old.retire();
        }
        cluster.announce();
        true
    }
    /// Looks at warming clusters again; `which` says at which.
    fn settle_all(&self, which: impl Fn(&Cluster) -> bool) {
        let now = Instant::now();
        let mut any = false;
        {
            let mut state = self.state();
            let State { clusters, tally, .. } = &mut *state;
            for entry in clusters.values_mut() {
                if entry.warming.as_ref().is_some_and(|(c, _)| which(c)) {
                    let before = entry.tally();
                    any |= self.settle(entry, now);
                    tally.note(before, entry.tally());
                }
            }
        }
        if any {
            self.count();
            self.changed();
        }
    }
    /// `cluster` may be warm now.
    pub(crate) fn settle_one(&self, cluster: &Cluster) {
        let settled = {
            let mut state = self.state();
            let State { clusters, tally, .. } = &mut *state;
            match clusters.get_mut(cluster.name()) {
                Some(entry) if entry.warming.as_ref().is_some_and(|(c, _)| c.id == cluster.id) => {
                    let before = entry.tally();
                    let settled = self.settle(entry, Instant::now());
                    tally.note(before, entry.tally());
                    settled
                }
                _ => false,
            }
        };
        if settled {
            self.count();
            self.changed();
        }
    }
    fn count(&self) {
        let tally = self.state().tally;
        self.stats.active.set(tally.active);
        self.stats.warming.set(tally.warming);
    }
    fn changed(&self) {
        for callback in self.callbacks.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            callback();
        }
    }
    /// Removes a cluster that came from CDS; false if there is none, or it is from the bootstrap.
    pub fn remove(&self, name: &str) -> bool {
        let entry = {
            let mut state = self.state();
            if state.clusters.get(name).is_none_or(|e| e.all().any(|c| !c.added_via_api())) {
                return false;
            }
            let entry = state.clusters.remove(name);
            if let Some(entry) = &entry {
                state.tally.note(entry.tally(), Tally::default());
            }
            entry
        };
        let Some(entry) = entry else { return false };
        if let Some(slot) = self.options.slots.lookup(name) {
            slot.set(None);
        }
        for cluster in entry.all() {
            cluster.retire();
            cluster.forget_stats();
        }
        self.stats.removed.inc();
        self.count();
        self.changed();
        true
    }
    /// Assignments to subscribe to, each name once, active and warming clusters alike.
    pub fn eds_wanted(&self) -> Vec<EdsWanted> {
        let state = self.state();
        let mut wanted: BTreeMap<Arc<str>, Arc<ConfigSource>> = BTreeMap::new();
        for cluster in state.clusters.values().flat_map(Entry::all) {
            if let Some((name, source)) = cluster.eds() {
                wanted.entry(name.clone()).or_insert_with(|| source.clone());
            }
        }
        wanted.into_iter().map(|(name, source)| EdsWanted { name, source }).collect()
    }
    /// Living clusters that want assignment `name`.
    fn wanting(&self, name: &str) -> Vec<Arc<Cluster>> {
        let mut state = self.state();
        let Some(list) = state.by_assignment.get_mut(name) else { return Vec::new() };
        list.retain(|c| c.upgrade().is_some_and(|c| !c.is_retired()));
        let found: Vec<_> = list.iter().filter_map(Weak::upgrade).collect();
        if found.is_empty() {
            state.by_assignment.remove(name);
        }
        found
    }
    /// Gives an assignment to every cluster that wants it. None: the resource was removed, which keeps the hosts. Errors
    /// refuse the assignment.
    pub fn update_endpoints(&self, name: &str, assignment: Option<&ClusterLoadAssignment>) -> Result<(), Report> {
        let mut refused = None;
        for cluster in self.wanting(name) {
            let stats = cluster.endpoint_stats();
            stats.counter("update_attempt").inc();
            let result = match assignment {
                Some(assignment) => cluster.update_endpoints(assignment),
                None => {
                    stats.counter("update_empty").inc();
                    cluster.give_up_waiting();
                    Ok(())
                }
            };
            match result {
                Ok(()) => stats.counter("update_success").inc(),
                Err(report) => {
                    stats.counter("update_rejected").inc();
                    refused = Some(report);
                }
            }
            self.settle_one(&cluster);
        }
        refused.map_or(Ok(()), Err)
    }
    /// `initial_fetch_timeout` of an assignment fired: clusters that wait for it go on without endpoints.
    pub fn endpoints_timeout(&self, name: &str) {
        for cluster in self.wanting(name) {
            if !cluster.is_initialized() {
                cluster.endpoint_stats().counter("init_fetch_timeout").inc();
                cluster.give_up_waiting();
                self.settle_one(&cluster);
            }
        }
    }
    /// A secret arrived, or waiting for it ended: clusters that wait for secrets are looked at again.
    pub fn secrets_changed(&self) {
        self.settle_all(|_| true);
    }
    /// Clusters in use, by name.
    pub fn active(&self) -> Vec<Arc<Cluster>> {
        self.state().clusters.values().filter_map(|e| e.active.clone()).collect()
    }
    /// Clusters that wait, by name.
    pub fn warming(&self) -> Vec<Arc<Cluster>> {
        self.state().clusters.values().filter_map(|e| e.warming.as_ref().map(|(c, _)| c.clone())).collect()
    }
    /// Whether any cluster warms; cheap.
    pub fn is_warming(&self) -> bool {
        self.state().tally.warming > 0
    }
    /// The cluster in use under `name`.
    pub fn get(&self, name: &str) -> Option<Arc<Cluster>> {
        self.state().clusters.get(name)?.active.clone()
    }
    /// Calls `callback` on the control thread whenever the set of wanted assignments, or warming, changed.
    pub fn on_change(&self, callback: Box<dyn Fn() + Send + Sync>) {
        self.callbacks.lock().unwrap_or_else(PoisonError::into_inner).push(callback);
    }
    /// Timers, DNS and health checks. Runs for ever on the control thread, inside a `LocalSet`; only the first call does.
    pub async fn run(self: Arc<Self>) {
        let Some(mut starts) = self.started.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            return std::future::pending().await;
        };
        tokio::task::spawn_local(forward_proxy::run(forward_proxy::DnsCaches::of(&self.options.server), Arc::downgrade(&self)));
        let mut timers = Timers::default();
        let mut warming = tokio::time::interval(Duration::from_secs(1));
        warming.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                start = starts.recv() => {
                    let Some(cluster) = start.as_ref().and_then(Weak::upgrade).filter(|c| !c.is_retired()) else { continue };
                    self.start(&cluster, &mut timers);
                }
                () = timers.next() => timers.fire(Instant::now(), |cluster, due, now| {
                    match due {
                        Due::Outlier => {
                            cluster.outlier_tick(now);
                            return cluster.outlier_interval();
                        }
                        Due::Cleanup => cluster.cleanup(),
                        Due::Weights => cluster.update_orca_weights(now),
                    }
                    None
                }),
                _ = warming.tick() => {
                    let now = Instant::now();
                    let late = {
                        let state = self.state();
                        let late = |e: &Entry| e.warming.as_ref().is_some_and(|(_, since)| now.duration_since(*since) >= SECRETS_PATIENCE);
                        state.clusters.values().any(late)
                    };
                    if late {
                        self.settle_all(|c| !c.secrets_ready());
                    }
                }
            }
        }
    }
    /// Begins what a cluster does by itself.
    fn start(self: &Arc<Self>, cluster: &Arc<Cluster>, timers: &mut Timers) {
        let now = Instant::now();
        if let Some(interval) = cluster.outlier_interval() {
            timers.add(cluster, Due::Outlier, interval, now);
        }
        if let Some(orca) = &cluster.spec.lb.orca {
            timers.add(cluster, Due::Weights, orca.update, now);
            if orca.oob.is_some() {
                tokio::task::spawn_local(oob::run(Arc::downgrade(cluster)));
            }
        }
        match &cluster.spec.discovery {
            Discovery::OriginalDst(spec) => timers.add(cluster, Due::Cleanup, spec.cleanup_interval, now),
            Discovery::Dns(spec) => {
                for index in 0..spec.targets.len() {
                    let task = dns::run(Arc::downgrade(cluster), index, self.shared.dns.clone(), Arc::downgrade(self));
                    tokio::task::spawn_local(task);
                }
                if spec.targets.is_empty() {
                    cluster.give_up_waiting();
                    self.settle_one(cluster);
                }
            }
            Discovery::Forward(_) => forward_proxy::sub::start(cluster, self),
            Discovery::Static | Discovery::Eds { .. } | Discovery::Aggregate(_) => {}
        }
        if !cluster.spec.health_checks.is_empty() {
            tokio::task::spawn_local(health_check::run(Arc::downgrade(cluster), Arc::downgrade(self)));
        }
    }
}
