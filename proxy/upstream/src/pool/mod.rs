//! Connections to one host of one kind (see [`key`]) on one worker: idle HTTP/1 connections (last in, first out), HTTP/2
//! connections with their streams, and those who wait, first in, first out. Source: Envoy docs "Connection pooling",
//! `conn_pool_base.cc`.
//!
//! Life of an HTTP/1 connection: connecting -> leased to a stream <-> idle -> closed (used up, too old, idle too long, closed by
//! the peer, host or cluster gone). An HTTP/2 connection stays in the pool and is leased to many streams at once.

pub(crate) mod connect;
pub(crate) mod io;
pub(crate) mod key;
mod preconnect;
pub(crate) mod proxy;

use crate::breaker::Kind;
use crate::cluster::Cluster;
use crate::host::{HealthFlags, Host};
use connect::Connected;
use io::{Meta, Opened, PoolIo};
use key::{Key, Speaks};
use nuncio_core::StreamError;
use nuncio_core::info::UpstreamInfo;
use nuncio_http::{h1, h2};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

/// How long an unused connection is taken to be open without a look.
const FRESH: Duration = Duration::from_millis(20);

/// An HTTP/1 connection that nobody else has.
pub(crate) struct H1Conn {
    pub client: h1::Client<PoolIo>,
    pub facts: Box<Facts>,
}

/// What is known of a connection beside its codec.
pub(crate) struct Facts {
    pub meta: Rc<Meta>,
    pub info: UpstreamInfo,
    /// `max_connection_duration` is over.
    expires: Option<Instant>,
    idle_since: Instant,
    /// The pool's generation when it was made; an older one is not used again.
    generation: u32,
}

/// An HTTP/2 connection.
pub(crate) struct H2Conn {
    pub client: h2::Client,
    pub facts: Facts,
    /// Streams that run or are promised.
    leases: Cell<usize>,
    idle_since: Cell<Instant>,
}

/// The right to begin one stream.
pub(crate) enum Lease {
    H1(H1Conn),
    H2(Rc<H2Conn>),
}

/// Someone who waits for a lease.
#[derive(Default)]
struct Waiter {
    state: RefCell<WaitState>,
}

#[derive(Default)]
enum WaitState {
    #[default]
    New,
    Waiting(Waker),
    Ready(Result<Lease, StreamError>),
    Gone,
}

/// Connections of one kind to one host.
pub(crate) struct Pool {
    pub cluster: Arc<Cluster>,
    pub key: Key,
    /// The latest description of the host.
    host: RefCell<Arc<Host>>,
    inner: RefCell<Inner>,
    /// The cluster's [`Cluster::host_sets`] that the connections belong to.
    host_sets: Cell<u64>,
}

#[derive(Default)]
struct Inner {
    idle: Vec<H1Conn>,
    h2: Vec<Rc<H2Conn>>,
    waiters: VecDeque<Rc<Waiter>>,
    connecting: usize,
    /// HTTP/1 connections that streams have.
    busy: usize,
    generation: u32,
    /// Streams that an HTTP/2 peer allowed at once; a new connection is taken to allow no more before it has said so.
    allowed: Option<usize>,
    /// Of `Speaks::Auto`: what the last handshake chose.
    negotiated: Option<Speaks>,
    /// The host was unhealthy at the last sweep.
    unhealthy: bool,
}

impl Drop for Pool {
    fn drop(&mut self) {
        let (thresholds, stats) = self.cluster.breaker(self.key.priority);
        thresholds.release(Kind::Pool, stats);
    }
}

impl Pool {
    /// An empty pool; none if `max_connection_pools` forbids it.
    pub(crate) fn new(cluster: &Arc<Cluster>, host: &Arc<Host>, key: Key) -> Option<Rc<Self>> {
        let (thresholds, stats) = cluster.breaker(key.priority);
        if !thresholds.try_acquire(Kind::Pool, stats) {
            cluster.stats().traffic.upstream_cx_pool_overflow.inc();
            return None;
        }
        let host_sets = Cell::new(cluster.host_sets());
        Some(Rc::new(Self { cluster: cluster.clone(), key, host: RefCell::new(host.clone()), inner: RefCell::default(), host_sets }))
    }
    /// The host as it is now described; new connections go there.
    pub(crate) fn set_host(&self, host: &Arc<Host>) {
        let mut known = self.host.borrow_mut();
        if !Arc::ptr_eq(&known, host) {
            *known = host.clone();
        }
    }
    fn http(&self) -> &crate::spec::HttpSpec {
        &self.cluster.spec.http
    }
    /// A lease that is to be had at once.
    pub(crate) fn checkout(&self) -> Option<Lease> {
        self.follow_host_set();
        let mut inner = self.inner.borrow_mut();
        if !inner.waiters.is_empty() {
            return None;
        }
        self.take(&mut inner)
    }
    /// `close_connections_on_host_set_change`: drains what was made before the set of hosts changed.
    fn follow_host_set(&self) {
        let now = self.cluster.host_sets();
        if self.host_sets.replace(now) != now {
            self.drain();
        }
    }
    fn take(&self, inner: &mut Inner) -> Option<Lease> {
        while let Some(mut conn) = inner.idle.pop() {
            if self.is_over(&conn.facts, conn.facts.idle_since, Instant::now()) {
                continue;
            }
            // A new connection is given out as it is: a peer that closes at once must fail a request, or requests would
            // wait for ever while one connection after the other is made.
            let fresh = conn.facts.meta.streams.get() == 0 && conn.facts.idle_since.elapsed() < FRESH;
            if !fresh && !conn.client.is_reusable() {
                conn.facts.meta.remote.set(true);
                continue;
            }
            inner.busy += 1;
            return Some(Lease::H1(conn));
        }
        self.take_h2(inner).map(Lease::H2)
    }
    fn take_h2(&self, inner: &mut Inner) -> Option<Rc<H2Conn>> {
        if inner.h2.is_empty() {
            return None;
        }
        let generation = inner.generation;
        inner.h2.retain(|conn| conn.facts.generation == generation && !conn.client.is_draining());
        let now = Instant::now();
        let limit = self.http().max_requests;
        let mut found = None;
        let allowed = inner.h2.iter().filter(|c| c.facts.meta.streams.get() > 0).map(|c| c.client.max_streams()).min();
        inner.allowed = allowed.or(inner.allowed);
        let most = inner.allowed.unwrap_or(usize::MAX);
        inner.h2.retain(|conn| {
            if found.is_some() {
                return true;
            }
            if conn.leases.get() == 0 && self.is_over(&conn.facts, conn.idle_since.get(), now) {
                conn.client.drain();
                return false;
            }
            if conn.leases.get() >= conn.client.max_streams().min(most).max(1) {
                return true;
            }
            conn.leases.set(conn.leases.get() + 1);
            conn.facts.meta.streams.set(conn.facts.meta.streams.get() + 1);
            found = Some(conn.clone());
            if limit > 0 && conn.facts.meta.streams.get() >= u64::from(limit) {
                // This one is the last; the connection closes behind it.
                self.cluster.stats().traffic.upstream_cx_max_requests.inc();
                return false;
            }
            true
        });
        found
    }
    /// Whether an unused connection must not be used (any more); counts why.
    fn is_over(&self, facts: &Facts, idle_since: Instant, now: Instant) -> bool {
        let traffic = &self.cluster.stats().traffic;
        if self.http().idle_timeout.is_some_and(|t| now.saturating_duration_since(idle_since) >= t) {
            traffic.upstream_cx_idle_timeout.inc();
            return true;
        }
        if facts.expires.is_some_and(|at| now >= at) {
            traffic.upstream_cx_max_duration_reached.inc();
            return true;
        }
        false
    }
    /// Waits for a lease. Dropping the future gives up the place.
    pub(crate) async fn wait(self: &Rc<Self>) -> Result<Lease, StreamError> {
        let waiter = Rc::new(Waiter::default());
        self.inner.borrow_mut().waiters.push_back(waiter.clone());
        let place = Place { pool: self, waiter };
        self.connect_more()?;
        poll_fn(|cx| {
            let mut state = place.waiter.state.borrow_mut();
            match std::mem::replace(&mut *state, WaitState::Gone) {
                WaitState::Ready(result) => Poll::Ready(result),
                WaitState::Waiting(waker) if waker.will_wake(cx.waker()) => {
                    *state = WaitState::Waiting(waker);
                    Poll::Pending
                }
                _ => {
                    *state = WaitState::Waiting(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
    /// Begins as many connections as waiters need and circuit breakers allow. Fails if nothing could ever serve the waiters.
    fn connect_more(self: &Rc<Self>) -> Result<(), StreamError> {
        let ratio = self.cluster.spec.preconnect.per_upstream;
        loop {
            let (connections, needed) = {
                let inner = self.inner.borrow();
                // Connections that are on their way serve this many.
                let coming = self.coming(&inner);
                let needed = inner.waiters.len() > coming;
                if !needed && !self.wants_more(&inner, coming, ratio, false) {
                    return Ok(());
                }
                (inner.connecting + inner.busy + inner.idle.len() + inner.h2.len(), needed)
            };
            if !self.may_connect() {
                if !needed {
                    return Ok(());
                }
                self.cluster.stats().traffic.upstream_cx_overflow.inc();
                // Other pools hold all connections: this one gets its first all the same, or its waiters would wait for ever.
                if connections > 0 {
                    return Ok(());
                }
                if self.per_host_full() {
                    return Err(StreamError::Overflow);
                }
            }
            self.begin();
        }
    }
    /// Streams that the connections on their way serve.
    fn coming(&self, inner: &Inner) -> usize {
        match self.speaks(inner) {
            Speaks::H1 => inner.connecting,
            Speaks::H2 => {
                let ours = self.http().h2.max_concurrent_streams as usize;
                inner.connecting.saturating_mul(inner.allowed.map_or(ours, |theirs| theirs.min(ours)).max(1))
            }
            // Until a handshake has told, one connection must do: it may serve all.
            Speaks::Auto => {
                if inner.connecting > 0 {
                    usize::MAX
                } else {
                    0
                }
            }
        }
    }
    /// Begins a connection. It counts from now on, so that those who ask next see it.
    fn begin(self: &Rc<Self>) {
        self.inner.borrow_mut().connecting += 1;
        let host = self.host.borrow().clone();
        let opened = Opened::new(&self.cluster, &host, self.key.priority);
        tokio::task::spawn_local(connecting(self.clone(), host, opened));
    }
    fn speaks(&self, inner: &Inner) -> Speaks {
        match self.key.speaks {
            Speaks::Auto => inner.negotiated.unwrap_or(Speaks::Auto),
            known => known,
        }
    }
    fn may_connect(&self) -> bool {
        let (thresholds, _) = self.cluster.breaker(self.key.priority);
        thresholds.connections.can_create() && !self.per_host_full()
    }
    fn per_host_full(&self) -> bool {
        per_host_full(&self.cluster, &self.host.borrow(), &self.key)
    }
    /// A connection is up.
    async fn connected(self: &Rc<Self>, made: Connected) -> Result<(), StreamError> {
        let Connected { io, info, alpn_h2 } = made;
        let meta = io.opened.meta.clone();
        let h2 = match self.key.speaks {
            Speaks::H1 => false,
            Speaks::H2 => true,
            Speaks::Auto => alpn_h2,
        };
        let options = self.cluster.codec().clone();
        let now = Instant::now();
        let expires = self.http().max_connection_duration.map(|d| {
            let jitter = self.http().max_connection_duration_jitter / 100.0;
            now + d + if jitter > 0.0 { d.mul_f64(jitter * fastrand::f64()) } else { Duration::ZERO }
        });
        let generation = self.inner.borrow().generation;
        let facts = Facts { meta, info, expires, idle_since: now, generation };
        if h2 {
            let client = h2::Client::connect(io, options).await?;
            if client.is_draining() {
                return Err(StreamError::ConnectionClosed(String::new()));
            }
            let conn = Rc::new(H2Conn { client, facts, leases: Cell::new(0), idle_since: Cell::new(now) });
            let mut inner = self.inner.borrow_mut();
            inner.negotiated = Some(Speaks::H2);
            inner.h2.push(conn);
        } else {
            let conn = H1Conn { client: h1::Client::new(io, options), facts: Box::new(facts) };
            let mut inner = self.inner.borrow_mut();
            inner.negotiated = Some(Speaks::H1);
            inner.idle.push(conn);
        }
        Ok(())
    }
    /// Gives leases to those who wait, in their order.
    fn serve(self: &Rc<Self>) {
        loop {
            let (waiter, lease) = {
                let mut inner = self.inner.borrow_mut();
                while inner.waiters.front().is_some_and(|w| matches!(*w.state.borrow(), WaitState::Gone)) {
                    inner.waiters.pop_front();
                }
                if inner.waiters.is_empty() {
                    return;
                }
                let Some(lease) = self.take(&mut inner) else { break };
                let Some(waiter) = inner.waiters.pop_front() else { return };
                (waiter, lease)
            };
            waiter.finish(Ok(lease));
        }
        // What was to serve them is gone (closed, used up): they need new connections.
        if let Err(error) = self.connect_more() {
            self.fail(&error);
        }
    }
    /// Fails everybody who waits.
    fn fail(&self, error: &StreamError) {
        let waiters = std::mem::take(&mut self.inner.borrow_mut().waiters);
        for waiter in waiters {
            if !matches!(*waiter.state.borrow(), WaitState::Gone) {
                waiter.finish(Err(error.clone()));
            }
        }
    }
    /// Whether a connection may go on; false closes it.
    fn keeps(&self, facts: &Facts) -> bool {
        self.follow_host_set();
        let inner = self.inner.borrow();
        facts.generation == inner.generation && !self.cluster.is_retired() && !self.host.borrow().is_removed()
    }
    /// An HTTP/1 stream ended; `client` is its connection if it may carry another.
    pub(crate) fn release_h1(self: &Rc<Self>, client: Option<h1::Client<PoolIo>>, mut facts: Box<Facts>) {
        let limit = self.http().max_requests;
        let used_up = limit > 0 && facts.meta.streams.get() >= u64::from(limit);
        if used_up {
            self.cluster.stats().traffic.upstream_cx_max_requests.inc();
        }
        let keep = client.filter(|_| !used_up && self.keeps(&facts));
        let mut inner = self.inner.borrow_mut();
        inner.busy = inner.busy.saturating_sub(1);
        if let Some(client) = keep {
            if facts.expires.is_none_or(|at| Instant::now() < at) {
                facts.idle_since = Instant::now();
                inner.idle.push(H1Conn { client, facts });
            } else {
                self.cluster.stats().traffic.upstream_cx_max_duration_reached.inc();
            }
        }
        let waiting = !inner.waiters.is_empty();
        drop(inner);
        if waiting {
            self.serve();
        }
    }
    /// An HTTP/2 stream ended.
    pub(crate) fn release_h2(self: &Rc<Self>, conn: &Rc<H2Conn>) {
        conn.leases.set(conn.leases.get().saturating_sub(1));
        if conn.leases.get() == 0 {
            conn.idle_since.set(Instant::now());
            if !self.keeps(&conn.facts) {
                conn.client.drain();
            }
        }
        if !self.inner.borrow().waiters.is_empty() {
            self.serve();
        }
    }
    /// Puts back a lease that was not used.
    pub(crate) fn give_back(self: &Rc<Self>, lease: Lease) {
        match lease {
            Lease::H1(conn) => self.release_h1(Some(conn.client), conn.facts),
            Lease::H2(conn) => {
                conn.facts.meta.streams.set(conn.facts.meta.streams.get().saturating_sub(1));
                self.release_h2(&conn);
            }
        }
    }
    /// Uses none of the present connections again: idle ones close now, others after their streams.
    pub(crate) fn drain(&self) {
        let (idle, h2) = {
            let mut inner = self.inner.borrow_mut();
            inner.generation = inner.generation.wrapping_add(1);
            (std::mem::take(&mut inner.idle), std::mem::take(&mut inner.h2))
        };
        drop(idle);
        for conn in h2 {
            conn.client.drain();
        }
    }
    /// Housekeeping. True if the pool is of no use any more.
    pub(crate) fn sweep(&self, now: Instant) -> bool {
        self.follow_host_set();
        let host = self.host.borrow().clone();
        let gone = self.cluster.is_retired() || host.is_removed();
        let unhealthy = host.flags().has(HealthFlags::FAILED_ACTIVE_HC | HealthFlags::FAILED_OUTLIER_CHECK);
        let failed = unhealthy && !std::mem::replace(&mut self.inner.borrow_mut().unhealthy, unhealthy);
        self.inner.borrow_mut().unhealthy = unhealthy;
        if gone || failed {
            self.drain();
        }
        let mut closed = Vec::new();
        let mut inner = self.inner.borrow_mut();
        let idle = std::mem::take(&mut inner.idle);
        for mut conn in idle {
            if self.is_over(&conn.facts, conn.facts.idle_since, now) {
                closed.push(conn);
            } else if !conn.client.is_reusable() {
                conn.facts.meta.remote.set(true);
                closed.push(conn);
            } else {
                inner.idle.push(conn);
            }
        }
        inner.h2.retain(|conn| {
            if conn.client.is_draining() {
                return false;
            }
            let idle = conn.leases.get() == 0 && self.is_over(&conn.facts, conn.idle_since.get(), now);
            let expired = conn.leases.get() > 0 && conn.facts.expires.is_some_and(|at| now >= at);
            if expired {
                self.cluster.stats().traffic.upstream_cx_max_duration_reached.inc();
            }
            if idle || expired {
                conn.client.drain();
            }
            !(idle || expired)
        });
        let empty = inner.idle.is_empty() && inner.h2.is_empty() && inner.waiters.is_empty() && inner.connecting == 0 && inner.busy == 0;
        drop(inner);
        // Closing may run code of others (counters); not while the pool is borrowed.
        drop(closed);
        empty
    }
}

/// `per_host_thresholds.max_connections`.
pub(crate) fn per_host_full(cluster: &Cluster, host: &Host, key: &Key) -> bool {
    let [default, high] = cluster.spec.per_host_connections;
    let limit = match key.priority {
        crate::context::RoutingPriority::Default => default,
        crate::context::RoutingPriority::High => high,
    };
    limit.is_some_and(|limit| host.stats.cx_active.load(Ordering::Relaxed) >= i64::from(limit))
}

/// Makes one connection for whoever waits first when it is up.
async fn connecting(pool: Rc<Pool>, host: Arc<Host>, opened: Opened) {
    // The future is large; it lives only while connecting.
    let made = Box::pin(connect::connect(&pool.cluster, &host, &pool.key, true, None, opened)).await;
    let result = match made {
        Ok(made) => pool.connected(made).await,
        Err(error) => Err(error),
    };
    {
        let mut inner = pool.inner.borrow_mut();
        inner.connecting = inner.connecting.saturating_sub(1);
    }
    match result {
        Ok(()) => pool.serve(),
        Err(error) => {
            log::debug!("connecting to {} failed: {error}", connect::describe(&pool.cluster, &host));
            // As in Envoy: who waits is told, and may try another host.
            pool.fail(&error);
        }
    }
}

impl Waiter {
    fn finish(&self, result: Result<Lease, StreamError>) {
        let before = std::mem::replace(&mut *self.state.borrow_mut(), WaitState::Ready(result));
        if let WaitState::Waiting(waker) = before {
            waker.wake();
        }
    }
}

/// A place in the queue; given up when dropped, and what it was already given goes to the next.
struct Place<'a> {
    pool: &'a Rc<Pool>,
    waiter: Rc<Waiter>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let state = std::mem::replace(&mut *self.waiter.state.borrow_mut(), WaitState::Gone);
        match state {
            WaitState::Ready(Ok(lease)) => self.pool.give_back(lease),
            WaitState::New | WaitState::Waiting(_) => self.pool.cluster.stats().traffic.upstream_rq_cancelled.inc(),
            WaitState::Ready(Err(_)) | WaitState::Gone => {}
        }
        let mut inner = self.pool.inner.borrow_mut();
        if let Some(at) = inner.waiters.iter().position(|w| Rc::ptr_eq(w, &self.waiter)) {
            inner.waiters.remove(at);
        }
    }
}

impl Lease {
    /// Facts of the connection.
    pub(crate) fn meta(&self) -> &Rc<Meta> {
        match self {
            Self::H1(conn) => &conn.facts.meta,
            Self::H2(conn) => &conn.facts.meta,
        }
    }
}
