//! The listeners of the process, on the control thread: compile, add, update, remove, drain.

use crate::drain::DrainStrategy;
use crate::terminal::TerminalRegistry;
use crate::worker::Workers;
use nuncio_core::Address;
use nuncio_core::diag::Report;
use nuncio_core::info::TrafficDirection;
use nuncio_core::registry::{Registry, Server};
use nuncio_proto::envoy::config::listener::v3::Listener;
use nuncio_tls::SecretStore;
use std::sync::Arc;
use std::time::Duration;

/// What listeners are made with.
#[derive(Clone)]
pub struct ListenerManagerCx {
    pub server: Arc<Server>,
    pub registry: Arc<Registry>,
    pub terminals: Arc<TerminalRegistry>,
    pub secrets: Arc<SecretStore>,
    /// Access logs of listeners are compiled with it.
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

/// A compiled listener that is not live yet (it may warm first).
#[derive(Debug)]
pub struct CompiledListener {
    name: Arc<str>,
}

impl CompiledListener {
    /// `Listener.name`.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }
    /// What it waits for (RDS names of its terminals); empty when it may go live.
    pub fn pending(&self) -> Vec<String> {
        Vec::new()
    }
    /// Whether every SDS secret of its chains has arrived. A missing one fails handshakes and nothing else.
    pub fn secrets_ready(&self) -> bool {
        true
    }
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

/// The listeners of the process.
pub struct ListenerManager {}

impl ListenerManager {
    /// A manager without listeners. Sockets are bound as listeners are applied; nothing is accepted before [`Self::start`].
    pub fn new(_cx: ListenerManagerCx, _workers: Workers) -> Self {
        Self {}
    }
    /// Compiles `listener` without any effect outside (except names wanted from the secret store). None, with findings, if it is refused.
    pub fn compile(&self, _listener: &Listener, _report: &mut Report) -> Option<Arc<CompiledListener>> {
        None
    }
    /// Makes a compiled listener live: binds (or keeps) its sockets, swaps the chains, lets living connections adopt or drain.
    /// Errors (address taken, by whom) refuse this listener alone; the one that was live stays.
    pub fn apply(&mut self, _listener: Arc<CompiledListener>) -> Result<(), Report> {
        Ok(())
    }
    /// Removes `name`: stops accepting at once, drains its connections. False if there is none.
    pub fn remove(&mut self, _name: &str) -> bool {
        false
    }
    /// Lets the workers accept (`listener_manager.workers_started`).
    pub fn start(&mut self) {}
    /// Begins a drain of all (or inbound) listeners. Repeated calls change nothing.
    pub fn drain(&mut self, _options: DrainOptions) {}
    /// Closes every listening socket; living connections go on.
    pub fn stop_accepting(&mut self) {}
    /// `/healthcheck/fail` (true) and `/healthcheck/ok` (false).
    pub fn set_health_failed(&mut self, _failed: bool) {}
    /// Limit of connections over all listeners (`envoy.resource_monitors.global_downstream_max_connections`); none for no limit.
    pub fn set_max_connections(&mut self, _limit: Option<u64>) {}
    /// Overload action `stop_accepting_connections`: listeners that do not bypass it leave connections in the queue.
    pub fn set_overload_stop_accepting(&mut self, _stop: bool) {}
    /// Overload action `reject_incoming_connections`: accepted connections are closed with this probability (0 to 1).
    pub fn set_overload_reject(&mut self, _probability: f64) {}
    /// Living connections over all listeners.
    pub fn connections(&self) -> u64 {
        0
    }
    /// Every live listener.
    pub fn listeners(&self) -> Vec<ListenerStatus> {
        Vec::new()
    }
    /// How long a drain takes (`--drain-time-s`).
    pub fn drain_time(&self) -> Duration {
        Duration::ZERO
    }
}
