//! The listeners of the process, on the control thread: compile, add, update, remove, drain.
//!
//! An update that keeps addresses and socket options keeps the sockets and their accept queues; it swaps what new connections are
//! served by. Of living connections, those whose chain is the same (match and transport socket) stay: their terminal adopts the new
//! configuration. The others are told to drain, and end when the drain time is over.

use crate::config::CompiledChain;
pub use crate::config::CompiledListener;
use crate::drain::{DrainState, DrainStrategy};
use crate::slot::{Active, Chain, ChainDrain, Shared, Slot};
use crate::socket::SocketSpec;
use crate::stats::ManagerStats;
use crate::terminal::TerminalRegistry;
use crate::worker::{Worker, Workers};
use nuncio_core::Address;
use nuncio_core::diag::{At, Report};
use nuncio_core::info::TrafficDirection;
use nuncio_core::registry::{Registry, Server};
use nuncio_proto::envoy::config::listener::v3::Listener;
use nuncio_tls::SecretStore;
use socket2::Socket;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// What listeners are made with.
#[derive(Clone)]
pub struct ListenerManagerCx {
    pub server: Arc<Server>,
    pub registry: Arc<Registry>,
    pub terminals: Arc<TerminalRegistry>,
    pub secrets: Arc<SecretStore>,
    /// `--drain-strategy`.
    pub drain_strategy: DrainStrategy,
}

/// `/drain_listeners`.
#[derive(Clone, Copy, Debug, Default)]
pub struct DrainOptions {
    /// Keep accepting for the drain time; without it listeners stop at once.
    pub graceful: bool,
    /// Only listeners with `traffic_direction: INBOUND`.
    pub inbound_only: bool,
    /// Never stop listening (native sidecars); needs `graceful`.
    pub skip_exit: bool,
}

/// One live listener, for `/listeners`.
#[derive(Clone, Debug)]
pub struct ListenerStatus {
    pub name: Arc<str>,
    /// Bound addresses (port 0 resolved), additional ones after the first; the configured ones if `bind_to_port` is false.
    pub addresses: Vec<Address>,
    pub direction: TrafficDirection,
    /// Connections on all workers.
    pub connections: u64,
}

/// A listener with what it was bound with.
struct Live {
    slot: Arc<Slot>,
    specs: Vec<SocketSpec>,
    /// Bound, but not handed to workers before [`ListenerManager::start`].
    parked: Vec<(SocketSpec, Vec<Socket>)>,
    listening: bool,
}

/// The listeners of the process.
pub struct ListenerManager {
    cx: ListenerManagerCx,
    workers: Workers,
    shared: Arc<Shared>,
    stats: Arc<ManagerStats>,
    live: BTreeMap<Arc<str>, Live>,
    started: bool,
    /// Process drains that have begun: of inbound listeners, of all.
    inbound_drain: Option<DrainState>,
    full_drain: Option<DrainState>,
    health_failed: bool,
    unnamed: Cell<u64>,
}

impl ListenerManager {
    /// A manager without listeners. Sockets are bound as listeners are applied; nothing is accepted before [`Self::start`].
    pub fn new(cx: ListenerManagerCx, workers: Workers) -> Self {
        let shared = Shared {
            workers: workers.clone(),
            by_address: RwLock::default(),
            connections: AtomicU64::new(0),
            max_connections: AtomicU64::new(u64::MAX),
            stop_accepting: AtomicBool::new(false),
            reject: AtomicU32::new(0),
        };
        let stats = Arc::new(ManagerStats::new(&cx.server.stats.root()));
        Self {
            cx,
            workers,
            shared: Arc::new(shared),
            stats,
            live: BTreeMap::new(),
            started: false,
            inbound_drain: None,
            full_drain: None,
            health_failed: false,
            unnamed: Cell::new(0),
        }
    }

    /// Compiles `listener` without any effect outside (except names wanted from the secret store). None, with findings, if it is refused.
    pub fn compile(&self, listener: &Listener, report: &mut Report) -> Option<Arc<CompiledListener>> {
        let name: Arc<str> = if listener.name.is_empty() {
            // Envoy gives static listeners without a name a UUID.
            self.unnamed.set(self.unnamed.get() + 1);
            format!("unnamed-{}", self.unnamed.get()).into()
        } else {
            listener.name.as_str().into()
        };
        CompiledListener::compile(listener, &name, &self.cx, self.workers.handles.len(), report)
    }

    /// Makes a compiled listener live: binds (or keeps) its sockets, swaps the chains, lets living connections adopt or drain.
    /// Errors (address taken, by whom) refuse this listener alone; the one that was live stays.
    pub fn apply(&mut self, listener: Arc<CompiledListener>) -> Result<(), Report> {
        if self.live.get(&listener.name).is_some_and(|l| l.slot.active.load().listener.fingerprint == listener.fingerprint) {
            return Ok(());
        }
        self.refuse_duplicates(&listener)?;
        match self.live.remove(&listener.name) {
            Some(old) if old.specs == listener.specs => {
                self.swap(&old, listener.clone());
                self.stats.listener_modified.inc();
                self.stats.listener_in_place_updated.inc();
                self.live.insert(listener.name.clone(), old);
            }
            old => {
                let new = match self.open(listener.clone()) {
                    Ok(new) => new,
                    Err(report) => {
                        // The one that was live goes on.
                        self.live.extend(old.map(|o| (listener.name.clone(), o)));
                        return Err(report);
                    }
                };
                match old {
                    Some(old) => {
                        self.stats.listener_modified.inc();
                        let scope = old.slot.active.load().listener.scope.clone();
                        self.retire(old);
                        if scope.prefix() != listener.scope.prefix() {
                            scope.remove();
                        }
                    }
                    None => {
                        self.stats.listener_added.inc();
                        self.stats.total_listeners_active.inc();
                    }
                }
                self.register(&new);
                self.live.insert(listener.name.clone(), new);
            }
        }
        Ok(())
    }

    /// Removes `name`: stops accepting at once, drains its connections. False if there is none.
    pub fn remove(&mut self, name: &str) -> bool {
        let Some(old) = self.live.remove(name) else { return false };
        self.stats.listener_removed.inc();
        self.stats.total_listeners_active.dec();
        old.slot.active.load().listener.scope.remove();
        self.retire(old);
        true
    }

    /// Lets the workers accept (`listener_manager.workers_started`).
    pub fn start(&mut self) {
        self.started = true;
        for live in self.live.values_mut() {
            let (slot, parked) = (&live.slot, std::mem::take(&mut live.parked));
            for (spec, sockets) in parked {
                if let Err(e) = listen(slot, &spec, sockets) {
                    log::error!("listener `{}`: cannot listen on {}: {e}", slot.active.load().listener.name, spec.address);
                    self.stats.listener_create_failure.inc();
                }
            }
            live.listening = true;
        }
        self.stats.workers_started.set(1);
    }

    /// Begins a drain of all (or inbound) listeners. Repeated calls change nothing.
    pub fn drain(&mut self, options: DrainOptions) {
        if !options.graceful {
            self.stop(options.inbound_only);
            return;
        }
        let begun = if options.inbound_only { &mut self.inbound_drain } else { &mut self.full_drain };
        if begun.is_some() {
            return;
        }
        let state =
            DrainState { draining: Some((Instant::now(), self.cx.server.drain_time, self.cx.drain_strategy)), ..DrainState::default() };
        *begun = Some(state);
        let (mut told, mut slots) = (Vec::new(), Vec::new());
        for live in self.live.values().filter(|l| !options.inbound_only || inbound(l)) {
            slots.push(live.slot.id);
            for chain in &live.slot.active.load().chains {
                told.push((chain.drain.id, chain.drain.change(|s| s.draining = s.draining.or(state.draining))));
            }
        }
        self.tell(told, None);
        if !options.skip_exit {
            // Listeners go on accepting for the drain time, and stop then. Connections are not closed: that is for the process's end.
            let slots: Arc<[u64]> = slots.into();
            for worker in self.workers.handles.iter() {
                let (slots, time, first) = (slots.clone(), self.cx.server.drain_time, worker.index == 0);
                let stopped = self.stats.listener_stopped.clone();
                worker.run(move || {
                    tokio::task::spawn_local(async move {
                        tokio::time::sleep(time).await;
                        Worker::with(|w| slots.iter().for_each(|id| w.unlisten(*id)));
                        if first {
                            stopped.add(slots.len() as u64);
                        }
                    });
                });
            }
        }
    }

    /// Whether [`Self::drain`] has begun for all listeners.
    pub fn is_draining(&self) -> bool {
        self.full_drain.is_some()
    }

    /// Closes every listening socket; living connections go on.
    pub fn stop_accepting(&mut self) {
        self.stop(false);
    }

    /// Closes the listening sockets of inbound listeners; living connections go on.
    pub fn stop_accepting_inbound(&mut self) {
        self.stop(true);
    }

    /// `/healthcheck/fail` (true) and `/healthcheck/ok` (false).
    pub fn set_health_failed(&mut self, failed: bool) {
        self.health_failed = failed;
        let mut told = Vec::new();
        for live in self.live.values() {
            let active = live.slot.active.load();
            if !active.listener.drain_modify_only {
                told.extend(active.chains.iter().map(|c| (c.drain.id, c.drain.change(|s| s.health_failed = failed))));
            }
        }
        self.tell(told, None);
    }

    /// Limit of connections over all listeners (`envoy.resource_monitors.global_downstream_max_connections`); none for no limit.
    pub fn set_max_connections(&mut self, limit: Option<u64>) {
        self.shared.max_connections.store(limit.unwrap_or(u64::MAX), Ordering::Relaxed);
    }
    /// Overload action `stop_accepting_connections`: listeners that do not bypass it leave connections in the queue.
    pub fn set_overload_stop_accepting(&mut self, stop: bool) {
        self.shared.stop_accepting.store(stop, Ordering::Relaxed);
    }
    /// Overload action `reject_incoming_connections`: accepted connections are closed with this probability (0 to 1).
    pub fn set_overload_reject(&mut self, probability: f64) {
        self.shared.reject.store((probability.clamp(0.0, 1.0) * 65_536.0) as u32, Ordering::Relaxed);
    }
    /// Living connections of the listeners that obey the global limit.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }
    /// Every live listener, by name.
    pub fn listeners(&self) -> Vec<ListenerStatus> {
        let status = |(name, live): (&Arc<str>, &Live)| ListenerStatus {
            name: name.clone(),
            addresses: live.slot.addresses.clone(),
            direction: live.slot.active.load().listener.direction,
            connections: live.slot.connections(),
        };
        self.live.iter().map(status).collect()
    }
    /// How long a drain takes (`--drain-time-s`).
    pub fn drain_time(&self) -> Duration {
        self.cx.server.drain_time
    }

    fn refuse_duplicates(&self, listener: &CompiledListener) -> Result<(), Report> {
        let mut report = Report::new();
        for spec in listener.specs.iter().filter(|s| s.address.socket().is_none_or(|a| a.port() != 0)) {
            let other = self.live.iter().find(|(name, live)| **name != listener.name && live.slot.addresses.contains(&spec.address));
            if let Some((other, _)) = other {
                let found = format!(
                    "error adding listener: '{}' has duplicate address '{}' as existing listener '{other}'",
                    listener.name, spec.address
                );
                report.error(&At::Root.field("address"), found, "give it another address, or remove the other listener");
                self.stats.listener_create_failure.inc();
            }
        }
        if report.has_errors() { Err(report) } else { Ok(()) }
    }

    fn open(&self, listener: Arc<CompiledListener>) -> Result<Live, Report> {
        let refused = |spec: &SocketSpec, what: &str, e: std::io::Error| {
            self.stats.listener_create_failure.inc();
            let mut report = Report::new();
            let found = format!("listener '{}' cannot {what} {}: {e}", listener.name, spec.address);
            report.error(&At::Root.field("address"), found, "free the address, or give another one");
            report
        };
        let (mut addresses, mut parked) = (Vec::new(), Vec::new());
        for spec in &listener.specs {
            let (address, sockets) = spec.open(self.workers.handles.len()).map_err(|e| refused(spec, "bind to", e))?;
            addresses.push(address);
            parked.push((spec.clone(), sockets));
        }
        let specs = listener.specs.clone();
        let chains = listener
            .chains
            .iter()
            .map(|spec| Arc::new(Chain { spec: spec.clone(), drain: self.new_drain(&listener), earlier: Vec::new() }))
            .collect();
        let slot = Slot::new(Active { listener: listener.clone(), chains }, self.shared.clone(), addresses);
        let mut live = Live { slot, specs, parked: Vec::new(), listening: false };
        if self.started {
            for (spec, sockets) in parked {
                if let Err(e) = listen(&live.slot, &spec, sockets) {
                    self.unlisten(&live);
                    return Err(refused(&spec, "listen on", e));
                }
            }
            live.listening = true;
        } else {
            live.parked = parked;
        }
        self.stats.listener_create_success.add(self.workers.handles.len() as u64);
        Ok(live)
    }

    /// The state that connections of a new chain begin with.
    fn new_drain(&self, listener: &CompiledListener) -> Arc<ChainDrain> {
        let process = match listener.direction {
            TrafficDirection::Inbound => self.inbound_drain.or(self.full_drain),
            _ => self.full_drain,
        };
        let health_failed = self.health_failed && !listener.drain_modify_only;
        ChainDrain::new(DrainState { health_failed, ..process.unwrap_or_default() })
    }

    /// Gives a living slot a new listener of the same sockets.
    fn swap(&self, live: &Live, listener: Arc<CompiledListener>) {
        let old = live.slot.active.load_full();
        let mut gone: Vec<Arc<Chain>> = old.chains.clone();
        let mut chains = Vec::with_capacity(listener.chains.len());
        for spec in &listener.chains {
            let at = gone.iter().position(|c| c.spec.identity == spec.identity);
            let before = at.map(|i| gone.swap_remove(i));
            chains.push(match before {
                Some(before) if before.spec.fingerprint == spec.fingerprint => before,
                Some(before) => {
                    let mut earlier: Vec<_> = before.earlier.iter().filter(|t| t.strong_count() > 0).cloned().collect();
                    earlier.push(Arc::downgrade(&before.spec.terminal));
                    let adopted = earlier.iter().filter_map(std::sync::Weak::upgrade).all(|terminal| terminal.adopt(&spec.terminal));
                    if adopted {
                        let spec = keep_tls(&before.spec, spec);
                        Arc::new(Chain { spec, drain: before.drain.clone(), earlier })
                    } else {
                        gone.push(before);
                        Arc::new(Chain { spec: spec.clone(), drain: self.new_drain(&listener), earlier: Vec::new() })
                    }
                }
                None => Arc::new(Chain { spec: spec.clone(), drain: self.new_drain(&listener), earlier: Vec::new() }),
            });
        }
        // New connections first: none may begin on a chain that is about to drain.
        live.slot.active.store(Arc::new(Active { listener, chains }));
        self.drain_chains(&gone, &self.stats.total_filter_chains_draining.clone());
    }

    /// Drains chains that are gone, and closes what is left when the drain time is over. `gauge` counts them meanwhile.
    fn drain_chains(&self, gone: &[Arc<Chain>], gauge: &nuncio_stats::Gauge) {
        if gone.is_empty() {
            return;
        }
        let time = self.cx.server.drain_time;
        let draining = Some((Instant::now(), time, self.cx.drain_strategy));
        let told = gone.iter().map(|c| (c.drain.id, c.drain.change(|s| s.draining = draining))).collect();
        self.tell(told, Some(Instant::now() + time));
        let gauge = gauge.clone();
        let count = i64::try_from(gone.len()).unwrap_or(i64::MAX);
        self.after(time, gauge, count);
    }

    /// Adds to a gauge now and takes it back later, on a worker, because the manager has no time of its own.
    fn after(&self, time: Duration, gauge: nuncio_stats::Gauge, count: i64) {
        if let Some(worker) = self.workers.handles.first() {
            gauge.add(count);
            worker.run(move || {
                tokio::task::spawn_local(async move {
                    tokio::time::sleep(time).await;
                    gauge.add(-count);
                });
            });
        }
    }

    /// Ends a listener: no more connections, and those that live drain.
    fn retire(&self, old: Live) {
        self.unlisten(&old);
        let mut by_address = self.shared.by_address.write().unwrap_or_else(PoisonError::into_inner);
        by_address.retain(|_, slot| slot.id != old.slot.id);
        drop(by_address);
        let active = old.slot.active.load_full();
        let draining = Some((Instant::now(), self.cx.server.drain_time, self.cx.drain_strategy));
        let told = active.chains.iter().map(|c| (c.drain.id, c.drain.change(|s| s.draining = draining))).collect();
        self.tell(told, Some(Instant::now() + self.cx.server.drain_time));
        self.after(self.cx.server.drain_time, self.stats.total_listeners_draining.clone(), 1);
    }

    fn register(&self, live: &Live) {
        let mut by_address = self.shared.by_address.write().unwrap_or_else(PoisonError::into_inner);
        for (address, spec) in live.slot.addresses.iter().zip(&live.specs) {
            for address in spec.owned(address) {
                by_address.insert(address, live.slot.clone());
            }
        }
    }

    fn stop(&mut self, inbound_only: bool) {
        let mut stopped = 0;
        for live in self.live.values_mut().filter(|l| !inbound_only || inbound(l)) {
            if live.listening || !live.parked.is_empty() {
                stopped += 1;
            }
            live.parked.clear();
            live.listening = false;
        }
        for live in self.live.values().filter(|l| !inbound_only || inbound(l)) {
            self.unlisten(live);
        }
        self.stats.listener_stopped.add(stopped);
    }

    fn unlisten(&self, live: &Live) {
        let id = live.slot.id;
        for worker in self.workers.handles.iter() {
            worker.run(move || Worker::with(|w| w.unlisten(id)));
        }
    }

    fn tell(&self, chains: Vec<(u64, DrainState)>, close_at: Option<Instant>) {
        if chains.is_empty() {
            return;
        }
        let chains: Arc<[_]> = chains.into();
        for worker in self.workers.handles.iter() {
            let chains = chains.clone();
            worker.run(move || Worker::with(|w| w.drain(&chains, close_at)));
        }
    }
}

/// `new`, with the TLS context of `old` if that is the same: its session tickets stay good and nothing is built again.
fn keep_tls(old: &CompiledChain, new: &Arc<CompiledChain>) -> Arc<CompiledChain> {
    match (&old.tls, &new.tls) {
        (Some(before), Some(now)) if before.same(now) => Arc::new(CompiledChain { tls: Some(before.clone()), ..CompiledChain::clone(new) }),
        _ => new.clone(),
    }
}

fn inbound(live: &Live) -> bool {
    live.slot.active.load().listener.direction == TrafficDirection::Inbound
}

/// Begins to listen on `sockets` and gives them to the workers: one each, or the only one to all.
fn listen(slot: &Arc<Slot>, spec: &SocketSpec, sockets: Vec<Socket>) -> std::io::Result<()> {
    let unix = matches!(spec.address, Address::Pipe(_));
    let handles = &slot.shared.workers.handles;
    let mut per_worker = Vec::with_capacity(handles.len());
    for socket in sockets {
        spec.listen(&socket)?;
        per_worker.push(socket);
    }
    if let [only] = per_worker.as_slice() {
        let only = only.try_clone()?;
        while per_worker.len() < handles.len() {
            per_worker.push(only.try_clone()?);
        }
    }
    for (worker, socket) in handles.iter().zip(per_worker) {
        let slot = slot.clone();
        worker.run(move || Worker::with(|w| w.listen(slot, socket, unix)));
    }
    Ok(())
}
