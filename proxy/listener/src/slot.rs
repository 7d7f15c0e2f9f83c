//! The live listener as workers see it: one slot per listener for as long as its sockets live, with the configuration swapped in it.

use crate::config::{CompiledChain, CompiledListener};
use crate::drain::DrainState;
use crate::terminal::Terminal;
use crate::worker::Workers;
use arc_swap::ArcSwap;
use hashbrown::HashMap;
use nuncio_core::Address;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

/// What every listener shares.
#[derive(Debug)]
pub(crate) struct Shared {
    pub workers: Workers,
    /// Listeners by address, for hand-over by original destination.
    pub by_address: RwLock<HashMap<SocketAddr, Arc<Slot>, foldhash::fast::RandomState>>,
    /// Connections of all listeners that obey the global limit, and that limit.
    pub connections: AtomicU64,
    pub max_connections: AtomicU64,
    pub stop_accepting: AtomicBool,
    /// Probability, in 1/65536, that an accepted connection is closed at once.
    pub reject: AtomicU32,
}

impl Shared {
    /// The listener that owns `address`: itself, or its port on any address.
    pub(crate) fn owner(&self, address: SocketAddr) -> Option<Arc<Slot>> {
        let all = self.by_address.read().unwrap_or_else(PoisonError::into_inner);
        let any = match address.ip() {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        all.get(&address).or_else(|| all.get(&SocketAddr::new(any, address.port()))).cloned()
    }
}

/// Drain state of a chain; what living connections of a chain across updates share.
#[derive(Debug)]
pub(crate) struct ChainDrain {
    pub id: u64,
    state: Mutex<DrainState>,
}

impl ChainDrain {
    pub(crate) fn new(state: DrainState) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Arc::new(Self { id: NEXT.fetch_add(1, Ordering::Relaxed), state: Mutex::new(state) })
    }
    pub(crate) fn state(&self) -> DrainState {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// Changes the state and gives the new one.
    pub(crate) fn change(&self, change: impl FnOnce(&mut DrainState)) -> DrainState {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state);
        *state
    }
}

/// A chain in use.
#[derive(Debug)]
pub(crate) struct Chain {
    pub spec: Arc<CompiledChain>,
    pub drain: Arc<ChainDrain>,
    /// Terminals of earlier generations that may still serve connections; they adopt each new configuration.
    pub earlier: Vec<Weak<dyn Terminal>>,
}

/// What new connections of a listener are served by.
#[derive(Debug)]
pub(crate) struct Active {
    pub listener: Arc<CompiledListener>,
    /// In the order of `listener.chains`.
    pub chains: Vec<Arc<Chain>>,
}

/// A live listener.
#[derive(Debug)]
pub(crate) struct Slot {
    pub id: u64,
    pub active: ArcSwap<Active>,
    pub shared: Arc<Shared>,
    /// Bound addresses.
    pub addresses: Vec<Address>,
    /// Open connections per worker, those in listener filters included.
    pub load: Box<[AtomicUsize]>,
}

impl Slot {
    pub(crate) fn new(active: Active, shared: Arc<Shared>, addresses: Vec<Address>) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let load = shared.workers.handles.iter().map(|_| AtomicUsize::new(0)).collect();
        Arc::new(Self { id: NEXT.fetch_add(1, Ordering::Relaxed), active: ArcSwap::from_pointee(active), shared, addresses, load })
    }
    /// Open connections on all workers.
    pub(crate) fn connections(&self) -> u64 {
        self.load.iter().map(|n| n.load(Ordering::Relaxed) as u64).sum()
    }
    /// The worker with the fewest connections; `mine` if none has fewer.
    pub(crate) fn least_busy(&self, mine: usize) -> usize {
        let load = |i: usize| self.load.get(i).map_or(usize::MAX, |n| n.load(Ordering::Relaxed));
        (0..self.load.len()).fold(mine, |best, i| if load(i) < load(best) { i } else { best })
    }
}

/// A connection's place in the counts, from accept to close.
#[derive(Debug)]
pub(crate) struct Place {
    slot: Arc<Slot>,
    worker: usize,
    global: bool,
}

impl Place {
    /// Takes a place for a connection on `worker`; none if a limit says no (which is counted).
    pub(crate) fn take(slot: &Arc<Slot>, active: &Active, worker: usize) -> Option<Self> {
        let listener = &active.listener;
        if listener.connection_limit.is_some_and(|limit| slot.connections() >= limit) {
            listener.stats.cx_overflow.inc();
            return None;
        }
        let shared = &slot.shared;
        let global = !listener.ignore_global_limit;
        if global && shared.connections.fetch_add(1, Ordering::Relaxed) >= shared.max_connections.load(Ordering::Relaxed) {
            shared.connections.fetch_sub(1, Ordering::Relaxed);
            listener.stats.global_cx_overflow.inc();
            return None;
        }
        let reject = shared.reject.load(Ordering::Relaxed);
        let place = Self { slot: slot.clone(), worker, global };
        if let Some(load) = slot.load.get(worker) {
            load.fetch_add(1, Ordering::Relaxed);
        }
        if reject > 0 && !listener.bypass_overload && fastrand::u32(0..65_536) < reject {
            listener.stats.cx_overload_reject.inc();
            return None;
        }
        Some(place)
    }
}
impl Drop for Place {
    fn drop(&mut self) {
        if let Some(load) = self.slot.load.get(self.worker) {
            load.fetch_sub(1, Ordering::Relaxed);
        }
        if self.global {
            self.slot.shared.connections.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
