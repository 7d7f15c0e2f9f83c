//! Initialisation in Envoy's order: static clusters, then CDS and the clusters it names, then LDS and the listeners it names.
//! `server.state` goes from PRE_INITIALIZING over INITIALIZING to LIVE. Control thread.
//!
//! One difference to Envoy: listeners of the bootstrap accept as soon as the static clusters are there, because an Istio gateway
//! answers its probes on one of them while it still waits for istiod. If clusters come from a file, listeners wait until it is read.

use crate::control::Control;
use crate::source::{self, Source};
use crate::subscriptions::{ALL, Kind};
use nuncio_admin::State;
use nuncio_core::diag::{At, Report};
use nuncio_core::views::ClusterView;
use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How long LDS waits for clusters of CDS that warm. Envoy waits for ever if their source says so; one cluster without endpoints
/// would then keep a gateway from ever being ready.
const WARMING_PATIENCE: Duration = Duration::from_secs(10);

/// How far initialisation has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Static clusters warm.
    #[default]
    StaticClusters,
    /// CDS has not answered, or clusters of its first answer warm.
    Clusters,
    /// LDS has not answered, or listeners warm.
    Listeners,
    Live,
}

/// Progress of initialisation.
#[derive(Debug, Default)]
pub struct Init {
    phase: Cell<Phase>,
    since: Cell<Option<Instant>>,
    workers_started: Cell<bool>,
}

impl Init {
    /// How far initialisation has come.
    pub fn phase(&self) -> Phase {
        self.phase.get()
    }
    fn enter(&self, phase: Phase) {
        self.phase.set(phase);
        self.since.set(Some(Instant::now()));
    }
    fn waited(&self) -> Duration {
        self.since.get().map_or(Duration::ZERO, |s| s.elapsed())
    }
}

impl Control {
    /// `/ready` and `server.state`.
    pub(crate) fn state(&self) -> State {
        if self.health_failed.get() || self.draining.get() {
            return State::Draining;
        }
        match self.init.phase() {
            Phase::StaticClusters => State::PreInitializing,
            Phase::Clusters | Phase::Listeners => State::Initializing,
            Phase::Live => State::Live,
        }
    }

    /// Publishes the state as gauges.
    pub(crate) fn publish_state(&self) {
        let state = match self.state() {
            State::Live => 0,
            State::Draining => 1,
            State::PreInitializing => 2,
            State::Initializing => 3,
        };
        self.stats.state.set(state);
        self.stats.live.set(i64::from(state == 0));
    }

    /// Takes every step of initialisation that can be taken now.
    pub(crate) fn advance(self: &Rc<Self>) {
        loop {
            let dynamic = self.bootstrap.dynamic_resources.as_ref();
            match self.init.phase() {
                Phase::StaticClusters => {
                    if self.clusters.is_warming() && self.init.waited() < WARMING_PATIENCE {
                        return;
                    }
                    self.start_static_listeners();
                    self.init.enter(Phase::Clusters);
                    let source = dynamic.and_then(|d| d.cds_config.as_ref());
                    let from_file =
                        source.is_some_and(|s| matches!(source::resolve(s, &At::Root, &mut Report::new()), Some(Source::File(_))));
                    if !from_file {
                        self.start_workers();
                    }
                    if let Some(source) = source {
                        self.subscriptions.subscribe_all(self, Kind::Cluster, source);
                    }
                }
                Phase::Clusters => {
                    let answered = self.subscriptions.settled(Kind::Cluster, ALL);
                    let warm = !self.clusters.is_warming() || self.init.waited() >= WARMING_PATIENCE;
                    if !answered || !warm {
                        return;
                    }
                    self.init.enter(Phase::Listeners);
                    self.start_workers();
                    if let Some(source) = dynamic.and_then(|d| d.lds_config.as_ref()) {
                        self.subscriptions.subscribe_all(self, Kind::Listener, source);
                    }
                }
                Phase::Listeners => {
                    if !self.subscriptions.settled(Kind::Listener, ALL) || self.listeners.borrow().warming() > 0 {
                        return;
                    }
                    self.init.enter(Phase::Live);
                    let took = self.server.started.elapsed();
                    self.stats.initialization_time_ms.record(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
                    log::info!(target: "main", "all clusters and listeners are initialized; serving");
                    self.grown.notify_one();
                }
                Phase::Live => return,
            }
            self.publish_state();
        }
    }

    fn start_static_listeners(self: &Rc<Self>) {
        let listeners = std::mem::take(&mut self.statics.borrow_mut().listeners);
        for listener in listeners {
            if let Err(reason) = self.add_static_listener(&listener) {
                // Envoy does not start with a listener that it cannot bind.
                crate::logger::critical("main", format_args!("error initializing listener '{}': {reason}", listener.name));
                self.failed.set(true);
                self.quit.notify_one();
            }
        }
        self.sync_secrets();
        self.sync_routes();
    }

    fn start_workers(&self) {
        if !self.init.workers_started.replace(true) {
            self.listener_manager.borrow_mut().start();
        }
    }

    /// What initialisation waits for, by name.
    pub(crate) fn waits_for(&self) -> Vec<String> {
        let mut all = Vec::new();
        match self.init.phase() {
            Phase::StaticClusters | Phase::Clusters => {
                if self.init.phase() == Phase::Clusters && !self.subscriptions.settled(Kind::Cluster, ALL) {
                    all.push("CDS: no answer from the control plane yet".to_string());
                }
                let warming = self.clusters.warming();
                all.extend(warming.iter().take(20).map(|c| format!("cluster '{}' waits for endpoints, DNS or secrets", c.name())));
            }
            Phase::Listeners => {
                if !self.subscriptions.settled(Kind::Listener, ALL) {
                    all.push("LDS: no answer from the control plane yet".to_string());
                }
                for (name, what) in self.listeners.borrow().waiting(|needs| self.undiscovered(needs)) {
                    all.push(format!("listener '{name}' waits for {}", what.join(", ")));
                }
            }
            Phase::Live => {}
        }
        all
    }
}
