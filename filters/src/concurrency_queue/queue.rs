//! Places and a fair waiting line for one scope, shared by all workers. While nobody waits, taking and giving back a place is one
//! atomic exchange; the line has a lock.

use nuncio_core::stats::{Counter, Gauge, Scope};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use tokio::sync::oneshot;

/// How many requests there may be.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// In progress; at least 1.
    pub concurrency: u32,
    /// Waiting.
    pub queue: u32,
    /// Waiting, of one consumer.
    pub per_consumer: u32,
}

/// What happened, over all scopes of a configuration.
#[derive(Debug)]
pub struct Stats {
    pub admitted: Counter,
    pub queued: Counter,
    pub overflow: Counter,
    pub timeout: Counter,
    pub active: Gauge,
    pub waiting: Gauge,
}

impl Stats {
    pub fn new(scope: &Scope) -> Self {
        Self {
            admitted: scope.counter("admitted"),
            queued: scope.counter("queued"),
            overflow: scope.counter("overflow"),
            timeout: scope.counter("timeout"),
            active: scope.gauge("active"),
            waiting: scope.gauge("waiting"),
        }
    }
}

/// One waiter in `state`; the places taken are in the lower half.
const WAITER: u64 = 1 << 32;

fn active(state: u64) -> u64 {
    state & (WAITER - 1)
}
fn waiting(state: u64) -> u64 {
    state >> 32
}

/// The places of one scope.
#[derive(Debug)]
pub struct Queue {
    limits: Limits,
    stats: Arc<Stats>,
    /// Waiters and places taken in one word, so that a place is never given back past somebody who just began to wait. Waiters are
    /// counted under the lock of `line` only.
    state: AtomicU64,
    line: Mutex<Line>,
}

/// Who waits: each consumer's requests in the order in which they came, and the consumers in turn.
#[derive(Debug, Default)]
struct Line {
    consumers: HashMap<Arc<str>, BTreeMap<u64, oneshot::Sender<Place>>>,
    turns: VecDeque<Arc<str>>,
    next: u64,
}

impl Line {
    /// Takes out who is next.
    fn pop(&mut self) -> Option<oneshot::Sender<Place>> {
        while let Some(consumer) = self.turns.pop_front() {
            let Some(requests) = self.consumers.get_mut(&consumer) else { continue };
            let first = requests.pop_first();
            if requests.is_empty() {
                self.consumers.remove(&consumer);
            } else {
                self.turns.push_back(consumer);
            }
            if let Some((_, sender)) = first {
                return Some(sender);
            }
        }
        None
    }
    /// Takes a waiter out who gave up; false if it was taken out already.
    fn remove(&mut self, consumer: &Arc<str>, number: u64) -> bool {
        let Some(requests) = self.consumers.get_mut(consumer) else { return false };
        let found = requests.remove(&number).is_some();
        if requests.is_empty() {
            self.consumers.remove(consumer);
            self.turns.retain(|c| c != consumer);
        }
        found
    }
}

/// What asking for a place gave.
pub enum Asked {
    Admitted(Place),
    Wait(Waiting),
    /// The line is full.
    Full,
}

impl Queue {
    pub fn new(limits: Limits, stats: Arc<Stats>) -> Arc<Self> {
        Arc::new(Self { limits, stats, state: AtomicU64::new(0), line: Mutex::default() })
    }
    /// Whether nothing is in progress and nobody waits.
    pub fn is_idle(&self) -> bool {
        self.state.load(Ordering::Acquire) == 0
    }
    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// A place, if one is free and nobody waits for it.
    fn try_enter(self: &Arc<Self>) -> Option<Place> {
        let free = |s: u64| (waiting(s) == 0 && active(s) < u64::from(self.limits.concurrency)).then_some(s + 1);
        self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, free).ok()?;
        self.stats.active.inc();
        self.stats.admitted.inc();
        Some(Place(Some(self.clone())))
    }
    /// Asks for a place for a request of `consumer`.
    pub fn enter(self: &Arc<Self>, consumer: &str) -> Asked {
        if let Some(place) = self.try_enter() {
            return Asked::Admitted(place);
        }
        let mut line = self.line();
        loop {
            // A place may have come free before the lock was ours.
            if let Some(place) = self.try_enter() {
                return Asked::Admitted(place);
            }
            let state = self.state.load(Ordering::Acquire);
            if waiting(state) == 0 && active(state) < u64::from(self.limits.concurrency) {
                continue;
            }
            let own = line.consumers.get(consumer).map_or(0, BTreeMap::len);
            if waiting(state) >= u64::from(self.limits.queue) || own >= self.limits.per_consumer as usize {
                self.stats.overflow.inc();
                return Asked::Full;
            }
            // Fails if a place was given back meanwhile: it may be for us.
            if self.state.compare_exchange(state, state + WAITER, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                break;
            }
        }
        let (sender, receiver) = oneshot::channel();
        let number = line.next;
        line.next += 1;
        let known = line.consumers.get_key_value(consumer).map(|(name, _)| name.clone());
        let name = known.unwrap_or_else(|| {
            let name: Arc<str> = consumer.into();
            line.turns.push_back(name.clone());
            name
        });
        line.consumers.entry(name.clone()).or_default().insert(number, sender);
        drop(line);
        self.stats.queued.inc();
        self.stats.waiting.inc();
        Asked::Wait(Waiting { queue: self.clone(), consumer: name, number, place: receiver })
    }
    /// Gives a place back: to who waits longest, or to whoever comes.
    fn leave(self: &Arc<Self>) {
        loop {
            let alone = |s: u64| (waiting(s) == 0).then_some(s.saturating_sub(1));
            if self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, alone).is_ok() {
                self.stats.active.dec();
                return;
            }
            let mut line = self.line();
            while let Some(next) = line.pop() {
                self.state.fetch_sub(WAITER, Ordering::AcqRel);
                self.stats.waiting.dec();
                match next.send(Place(Some(self.clone()))) {
                    Ok(()) => {
                        self.stats.admitted.inc();
                        return;
                    }
                    // It gave up this moment. Not dropped here: that would come back to this function, and its lock.
                    Err(mut place) => drop(place.0.take()),
                }
            }
        }
    }
}

/// A place in a queue; given back when dropped.
#[derive(Debug)]
pub struct Place(Option<Arc<Queue>>);

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(queue) = self.0.take() {
            queue.leave();
        }
    }
}

/// A request in the line. Resolves when it is its turn; dropping it leaves the line.
#[derive(Debug)]
pub struct Waiting {
    queue: Arc<Queue>,
    consumer: Arc<str>,
    number: u64,
    place: oneshot::Receiver<Place>,
}

impl Waiting {
    /// Counts that the time was up.
    pub fn timed_out(self) {
        self.queue.stats.timeout.inc();
    }
}

impl Future for Waiting {
    type Output = Option<Place>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.place).poll(cx).map(Result::ok)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut line = self.queue.line();
        if line.remove(&self.consumer, self.number) {
            self.queue.state.fetch_sub(WAITER, Ordering::AcqRel);
            self.queue.stats.waiting.dec();
        }
        // If it was not there any more, a place may be on its way in the channel; that is dropped next and gives the place on.
    }
}
