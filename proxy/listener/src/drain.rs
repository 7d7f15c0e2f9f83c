//! Drain: how a connection learns that it should end. State is set per filter chain on the control thread, told to every worker over
//! its channel, and read there from a cell: asking costs nothing, and no core waits for another.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

/// `--drain-strategy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DrainStrategy {
    /// The share of requests that end their connection grows over the drain time.
    #[default]
    Gradual,
    /// Every request ends its connection from the first moment.
    Immediate,
}

/// Where a filter chain stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DrainState {
    /// A drain that began at this moment, and how long it may take.
    pub draining: Option<(Instant, Duration, DrainStrategy)>,
    /// `/healthcheck/fail`: connections end after their request; may be taken back.
    pub health_failed: bool,
    /// The drain time is over: connections end now.
    pub closing: bool,
}

/// One filter chain's state on one worker.
#[derive(Debug, Default)]
pub struct DrainSignal {
    state: Cell<DrainState>,
    wakers: RefCell<slab::Slab<Waker>>,
}

impl DrainSignal {
    /// A signal in `state`.
    pub fn new(state: DrainState) -> Rc<Self> {
        Rc::new(Self { state: Cell::new(state), wakers: RefCell::default() })
    }
    /// Changes the state and wakes who waits.
    pub fn set(&self, state: DrainState) {
        self.state.set(state);
        for waker in self.wakers.take() {
            waker.1.wake();
        }
    }
    /// The state.
    pub fn get(&self) -> DrainState {
        self.state.get()
    }
}

/// A connection's view of its chain's drain. Belongs to one worker.
#[derive(Clone, Debug)]
pub struct DrainWatch {
    signal: Rc<DrainSignal>,
}

impl DrainWatch {
    /// Watches `signal`.
    pub fn new(signal: Rc<DrainSignal>) -> Self {
        Self { signal }
    }
    /// A watch that never fires; for tests and for connections that nothing drains.
    pub fn never() -> Self {
        Self::new(DrainSignal::new(DrainState::default()))
    }
    /// Whether the response that is about to be sent should be the connection's last (`connection: close`, GOAWAY). Under the gradual
    /// strategy it is decided by chance anew at each call, more often as time passes. Envoy: `DrainDecision::drainClose`.
    pub fn should_close(&self) -> bool {
        let state = self.signal.get();
        if state.closing || state.health_failed {
            return true;
        }
        match state.draining {
            None => false,
            Some((_, _, DrainStrategy::Immediate)) => true,
            Some((since, time, DrainStrategy::Gradual)) => {
                let passed = since.elapsed();
                passed >= time || fastrand::f64() * time.as_secs_f64() < passed.as_secs_f64()
            }
        }
    }
    /// Whether a drain has begun, whatever the strategy.
    pub fn is_draining(&self) -> bool {
        let state = self.signal.get();
        state.closing || state.draining.is_some()
    }
    /// Whether connections must end now.
    pub fn is_closing(&self) -> bool {
        self.signal.get().closing
    }
    /// Resolves when this connection should wind down (finish what runs, take nothing new, leave if idle): at once when an immediate
    /// drain begins, at a random moment of the drain time when a gradual one does. Not for `/healthcheck/fail`, which only shows in `should_close`.
    pub async fn draining(&self) {
        let (since, time, strategy) = self
            .wait(|state| match state.draining {
                _ if state.closing => Some((Instant::now(), Duration::ZERO, DrainStrategy::Immediate)),
                other => other,
            })
            .await;
        if strategy == DrainStrategy::Gradual {
            let at = since + time.mul_f64(fastrand::f64());
            tokio::select! {
                () = tokio::time::sleep_until(at.into()) => {}
                () = self.closing() => {}
            }
        }
    }
    /// Resolves when the drain time is over and the connection must end now.
    pub async fn closing(&self) {
        self.wait(|state| state.closing.then_some(())).await;
    }
    async fn wait<T>(&self, until: impl Fn(DrainState) -> Option<T>) -> T {
        let mut entry = Registered { signal: &self.signal, key: None };
        poll_fn(|cx| match until(self.signal.get()) {
            Some(result) => Poll::Ready(result),
            None => {
                entry.register(cx.waker());
                Poll::Pending
            }
        })
        .await
    }
}

/// A waker's place in the list; leaves it when the future is dropped.
struct Registered<'a> {
    signal: &'a DrainSignal,
    key: Option<usize>,
}
impl Registered<'_> {
    fn register(&mut self, waker: &Waker) {
        let mut wakers = self.signal.wakers.borrow_mut();
        match self.key.and_then(|key| wakers.get_mut(key)) {
            Some(mine) => mine.clone_from(waker),
            None => self.key = Some(wakers.insert(waker.clone())),
        }
    }
}
impl Drop for Registered<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.signal.wakers.borrow_mut().try_remove(key);
        }
    }
}
