//! What a worker has of all clusters: load balancer state and connection pools. One per worker, thread local, not `Send`.

use crate::aggregate::AggregateState;
use crate::breaker::Kind;
use crate::cluster::Cluster;
use crate::connection::UpstreamConnection;
use crate::context::{LbContext, OpenOptions, RoutingPriority};
use crate::forward_proxy::{self, hosts::Picked};
use crate::host::{Health, HealthFlags, Host};
use crate::lb::{Ask, WorkerLb};
use crate::manager::WorkerFeed;
use crate::original_dst;
use crate::outlier::Outcome;
use crate::pool::key::KeyRef;
use crate::pool::{Pool, connect, io::Opened, key::Key, per_host_full};
use crate::priority::Availability;
use crate::spec::{Discovery, LbKind, OverrideSource};
use crate::stream::UpstreamStream;
use hashbrown::HashMap;
use nuncio_core::views::HostView;
use nuncio_core::{RequestHead, StreamError};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

thread_local! {
    static CURRENT: RefCell<Option<Rc<Upstreams>>> = const { RefCell::new(None) };
}

/// Time between two looks at idle connections: a peer's close is noticed within it.
const SWEEP: Duration = Duration::from_secs(1);
/// Sweeps after which a cluster that nobody used is forgotten on this worker.
const FORGET: u32 = 300;

/// How often a stream is begun anew because its HTTP/2 connection went away in between.
const TRIES: usize = 3;

/// One cluster on one worker.
struct WorkerCluster {
    cluster: Arc<Cluster>,
    lb: RefCell<Option<WorkerLb>>,
    pools: RefCell<Map<Key, Rc<Pool>>>,
    /// ORIGINAL_DST: hosts that this worker used.
    destinations: RefCell<Map<SocketAddr, Arc<Host>>>,
    /// Hosts that were picked ahead (predictive preconnecting), for the next picks.
    ahead: RefCell<VecDeque<Arc<Host>>>,
    unused: Cell<u32>,
}

/// The upstream side of one worker.
pub struct Upstreams {
    clusters: RefCell<Map<u64, Rc<WorkerCluster>>>,
    /// The cluster that was used last: most requests of a burst go to the same.
    last: RefCell<Option<Rc<WorkerCluster>>>,
}

impl Upstreams {
    fn new() -> Rc<Self> {
        Rc::new(Self { clusters: RefCell::default(), last: RefCell::default() })
    }
    /// Makes this thread's upstreams and starts their housekeeping (idle connections, removed hosts and clusters) as a local
    /// task. Called once per worker, inside its `LocalSet`, with [`crate::ClusterManager::worker_feed`].
    pub fn install(feed: WorkerFeed) -> Rc<Self> {
        let upstreams = Self::new();
        CURRENT.with(|c| *c.borrow_mut() = Some(upstreams.clone()));
        tokio::task::spawn_local(housekeeping(Rc::downgrade(&upstreams), feed));
        upstreams
    }
    /// This thread's upstreams; made without housekeeping if `install` was not called (tests).
    pub fn current() -> Rc<Self> {
        CURRENT.with(|c| c.borrow_mut().get_or_insert_with(Self::new).clone())
    }
    fn cluster(&self, cluster: &Arc<Cluster>) -> Rc<WorkerCluster> {
        if let Some(last) = self.last.borrow().as_ref().filter(|l| l.cluster.id == cluster.id) {
            return last.clone();
        }
        let mut clusters = self.clusters.borrow_mut();
        let found = clusters.entry(cluster.id).or_insert_with(|| {
            Rc::new(WorkerCluster {
                cluster: cluster.clone(),
                lb: RefCell::default(),
                pools: RefCell::default(),
                destinations: RefCell::default(),
                ahead: RefCell::default(),
                unused: Cell::new(0),
            })
        });
        found.unused.set(0);
        *self.last.borrow_mut() = Some(found.clone());
        found.clone()
    }
    /// Picks a host. None: no healthy host (count `upstream_cx_none_healthy`, done here; answer 503 UH).
    pub fn pick(&self, cluster: &Arc<Cluster>, cx: &LbContext<'_>) -> Option<Arc<Host>> {
        let host = match (cluster.aggregate(), cluster.forward()) {
            (None, None) => self.cluster(cluster).pick(cx),
            (Some(aggregate), _) => self.pick_member(aggregate, cx),
            (None, Some((spec, hosts))) => match forward_proxy::hosts::pick(cluster, spec, hosts, cx) {
                Some(Picked::Host(host)) => Some(host),
                Some(Picked::Cluster(sub)) => self.cluster(&sub).pick(cx),
                None => None,
            },
        };
        if host.is_none() {
            cluster.stats().traffic.upstream_cx_none_healthy.inc();
        }
        host
    }
    /// A pick of an aggregate cluster. As in Envoy, hosts that are asked for by name are not looked for in the members.
    fn pick_member(&self, aggregate: &AggregateState, cx: &LbContext<'_>) -> Option<Arc<Host>> {
        if cx.override_host.is_some_and(|wanted| wanted.strict) {
            return None;
        }
        let placed = aggregate.place(cx)?;
        let cx = LbContext { override_host: None, ..*cx };
        self.cluster(&placed.cluster).balance(&cx, Some((placed.priority, placed.availability)))
    }
    /// A stream to `host` with the head of `request` queued (`end`: it has no body). Waits for a connection if none is free.
    /// Dropping the future gives up the place in the queue. Fails with `Overflow` (circuit breaker), `ConnectFailed`,
    /// `ConnectTimeout` and codec errors. Connection failures are reported to outlier detection here; results of the request
    /// ([`Cluster::report`]) are the router's.
    pub async fn open(
        &self,
        cluster: &Arc<Cluster>,
        host: &Arc<Host>,
        request: &RequestHead,
        end: bool,
        options: &OpenOptions<'_>,
    ) -> Result<UpstreamStream, StreamError> {
        let owner = owner(cluster, host)?;
        let cluster = owner.as_ref().unwrap_or(cluster);
        let worker = self.cluster(cluster);
        let pool = worker.pool(host, &KeyRef::http(cluster, host, request, options))?;
        worker.anticipate(|next| KeyRef::http(cluster, next, request, options));
        let (thresholds, _) = cluster.breaker(options.priority);
        for last in (0..TRIES).rev() {
            let lease = match pool.checkout() {
                Some(lease) => lease,
                None => {
                    let _pending = Pending::new(cluster, host, options.priority)?;
                    match pool.wait().await {
                        Ok(lease) => lease,
                        Err(error) => {
                            if matches!(error, StreamError::ConnectFailed(_) | StreamError::ConnectTimeout) {
                                cluster.stats().traffic.upstream_rq_pending_failure_eject.inc();
                                cluster.report(host, Outcome::LocalOriginConnectFailed);
                            }
                            return Err(error);
                        }
                    }
                }
            };
            if !thresholds.requests.can_create() {
                cluster.stats().traffic.upstream_rq_active_overflow.inc();
                pool.give_back(lease);
                return Err(StreamError::Overflow);
            }
            match UpstreamStream::begin(&pool, host, lease, request, end, options.priority) {
                // The connection went away between lease and stream; nothing was sent.
                Err(StreamError::RemoteRefused) if last > 0 => {}
                Err(error) => return Err(error),
                Ok(stream) => {
                    pool.preconnect();
                    if cluster.spec.outlier.is_some() {
                        cluster.report(host, Outcome::LocalOriginConnectSuccess);
                    }
                    return Ok(stream);
                }
            }
        }
        Err(StreamError::RemoteRefused)
    }
    /// A new raw connection to `host`, after its TLS handshake if there is one. Failures are reported to outlier detection here;
    /// that it worked ([`Outcome::LocalOriginConnectSuccessFinal`]) as well.
    pub async fn connect(
        &self,
        cluster: &Arc<Cluster>,
        host: &Arc<Host>,
        options: &OpenOptions<'_>,
    ) -> Result<UpstreamConnection, StreamError> {
        let owner = owner(cluster, host)?;
        let cluster = owner.as_ref().unwrap_or(cluster);
        let key = KeyRef::raw(cluster, host, options).to_owned();
        let (thresholds, _) = cluster.breaker(options.priority);
        if !thresholds.connections.can_create() || per_host_full(cluster, host, &key) {
            cluster.stats().traffic.upstream_cx_overflow.inc();
            return Err(StreamError::Overflow);
        }
        let _pending = Pending::new(cluster, host, options.priority)?;
        let opened = Opened::new(cluster, host, key.priority);
        let made = Box::pin(connect::connect(cluster, host, &key, false, options.downstream, opened)).await;
        match made {
            Ok(made) => {
                cluster.report(host, Outcome::LocalOriginConnectSuccessFinal);
                Ok(UpstreamConnection::new(made, host))
            }
            Err(error) => {
                cluster.report(host, Outcome::LocalOriginConnectFailed);
                Err(error)
            }
        }
    }
    /// One round of housekeeping.
    fn sweep(&self) {
        let now = Instant::now();
        *self.last.borrow_mut() = None;
        let clusters: Vec<_> = self.clusters.borrow().values().cloned().collect();
        let mut idle = Vec::new();
        for worker in &clusters {
            if worker.sweep(now) {
                idle.push(worker.cluster.id);
            }
        }
        drop(clusters);
        let mut known = self.clusters.borrow_mut();
        for id in idle {
            known.remove(&id);
        }
    }
    /// A lease that is given back at once.
    #[cfg(test)]
    pub(crate) fn checkout_for_test(&self, cluster: &Arc<Cluster>, host: &Arc<Host>, request: &RequestHead) {
        let key = KeyRef::http(cluster, host, request, &OpenOptions::default());
        let pool = self.cluster(cluster).pool(host, &key).unwrap_or_else(|e| panic!("{e}"));
        let lease = pool.checkout().unwrap_or_else(|| panic!("no warm connection"));
        pool.give_back(lease);
    }
    #[cfg(test)]
    pub(crate) fn sweep_now(&self) {
        self.sweep();
    }
    /// Closes idle connections of every pool now, for tests and for the end of the process.
    pub fn close_idle(&self) {
        let clusters: Vec<_> = self.clusters.borrow().values().cloned().collect();
        for worker in clusters {
            let pools: Vec<_> = worker.pools.borrow().values().cloned().collect();
            pools.iter().for_each(|p| p.drain());
        }
    }
}

/// The member of an aggregate cluster, or the sub cluster, that connects to `host`; none if `cluster` has neither.
fn owner(cluster: &Arc<Cluster>, host: &Host) -> Result<Option<Arc<Cluster>>, StreamError> {
    if let Some((spec, hosts)) = cluster.forward() {
        return Ok(hosts.owner(spec, host));
    }
    match cluster.aggregate() {
        None => Ok(None),
        Some(aggregate) => aggregate.owner(host).map(Some).ok_or(StreamError::ConnectFailed("the host left".into())),
    }
}

async fn housekeeping(upstreams: Weak<Upstreams>, mut feed: WorkerFeed) {
    let mut tick = tokio::time::interval(SWEEP);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = feed.changed() => {}
        }
        let Some(upstreams) = upstreams.upgrade() else { return };
        upstreams.sweep();
    }
}

impl WorkerCluster {
    /// The pool of `key`, made if there is none.
    fn pool(&self, host: &Arc<Host>, key: &KeyRef<'_>) -> Result<Rc<Pool>, StreamError> {
        if let Some(pool) = self.pools.borrow().get(key) {
            pool.set_host(host);
            return Ok(pool.clone());
        }
        let Some(pool) = Pool::new(&self.cluster, host, key.to_owned()) else { return Err(StreamError::Overflow) };
        self.pools.borrow_mut().insert(key.to_owned(), pool.clone());
        Ok(pool)
    }
    fn pick(&self, cx: &LbContext<'_>) -> Option<Arc<Host>> {
        let cluster = &self.cluster;
        if let Discovery::OriginalDst(spec) = &cluster.spec.discovery {
            let address = original_dst::destination(spec, cx, &cluster.stats().traffic)?;
            return self.destination(address);
        }
        let lb = &cluster.spec.lb;
        if let Some(wanted) = &cx.override_host {
            match cluster.view().host_at(wanted.address).filter(|h| selectable(h, lb.override_status)) {
                Some(host) => return Some(host.clone()),
                None if wanted.strict => return None,
                None => {}
            }
        }
        if let Some(overrides) = &lb.overrides
            && let Some(host) = self.named(&overrides.sources, cx)
        {
            return Some(host);
        }
        if let Some(host) = self.next_ahead(cx) {
            return Some(host);
        }
        self.balance(cx, None)
    }
    /// A host that was picked ahead, if this pick may take any.
    fn next_ahead(&self, cx: &LbContext<'_>) -> Option<Arc<Host>> {
        if self.cluster.spec.preconnect.predictive <= 1.0 || !cx.avoid.is_empty() || cx.retry_priority.is_some() {
            return None;
        }
        let mut ahead = self.ahead.borrow_mut();
        while let Some(host) = ahead.pop_front() {
            if !host.is_removed() && host.health() == Health::Healthy {
                return Some(host);
            }
        }
        None
    }
    /// `predictive_preconnect_ratio`: connects to the hosts that will be picked next, as far as the ratio goes.
    /// Source: Envoy's `ClusterManagerImpl::maybePreconnect`.
    fn anticipate<'a>(&self, key: impl Fn(&Host) -> KeyRef<'a>) {
        /// Connections begun ahead at once.
        const AT_ONCE: usize = 3;
        let ratio = self.cluster.spec.preconnect.predictive;
        let lb = &self.cluster.spec.lb;
        // Who hashes, or looks at metadata, cannot know the next host.
        let foreseeable = matches!(lb.kind, LbKind::RoundRobin | LbKind::Random | LbKind::LeastRequest { .. });
        if ratio <= 1.0 || !foreseeable || lb.subsets.is_some() {
            return;
        }
        for _ in 0..AT_ONCE {
            let sum = |(a, c): (usize, usize), (x, y): (usize, usize)| (a + x, c.saturating_add(y));
            let (wanted, room) = self.pools.borrow().values().map(|p| p.capacity()).fold((0, 0), sum);
            if (wanted + 1) as f64 * ratio <= room as f64 || self.ahead.borrow().len() >= self.cluster.host_count() {
                return;
            }
            let Some(host) = self.balance(&LbContext::default(), None) else { return };
            self.ahead.borrow_mut().push_back(host.clone());
            let Ok(pool) = self.pool(&host, &key(&host)) else { return };
            if !pool.anticipate(ratio) {
                return;
            }
        }
    }
    /// A pick by the policy. `at`: in this priority, whatever the loads are.
    fn balance(&self, cx: &LbContext<'_>, at: Option<(usize, Availability)>) -> Option<Arc<Host>> {
        let cluster = &self.cluster;
        let lb = &cluster.spec.lb;
        let mut state = self.lb.borrow_mut();
        let state = match &mut *state {
            Some(state) => {
                if !cluster.is_current(state.view()) {
                    state.refresh(cluster.view());
                }
                state
            }
            none => none.insert(WorkerLb::new(cluster.view())),
        };
        let stats = cluster.stats();
        let active =
            if lb.hash_balance_factor.is_some() { u64::try_from(stats.traffic.upstream_rq_active.value()).unwrap_or(0) } else { 0 };
        state.pick(&Ask { lb, cx, stats: &stats.lb, active, at })
    }
    fn destination(&self, address: SocketAddr) -> Option<Arc<Host>> {
        let state = self.cluster.original_dst()?;
        let mut known = self.destinations.borrow_mut();
        if let Some(host) = known.get(&address)
            && !host.is_removed()
        {
            host.touch();
            return Some(host.clone());
        }
        let host = state.host(address, &self.cluster.name);
        host.touch();
        known.insert(address, host.clone());
        Some(host)
    }
    /// `override_host`: the first host of a source's list that was not tried before and can be picked.
    fn named(&self, sources: &[OverrideSource], cx: &LbContext<'_>) -> Option<Arc<Host>> {
        let view = self.cluster.view();
        let tried = cx.stream.and_then(|s| s.upstream.as_ref()).map(|u| u.attempted.as_slice()).unwrap_or_default();
        let find = |list: &str| {
            let named = list.split(',').map(str::trim).filter(|a| !a.is_empty());
            named.filter_map(|a| view.host_at(a)).find(|h| !tried.iter().any(|t| t.address() == h.address())).cloned()
        };
        sources.iter().find_map(|source| match source {
            OverrideSource::Header(key) => find(std::str::from_utf8(&cx.request?.header(key)?).ok()?),
            OverrideSource::Metadata(path) => find(original_dst::metadata_text(cx.stream?, path)?),
        })
    }
    /// Housekeeping. True if nothing is left here.
    fn sweep(&self, now: Instant) -> bool {
        let pools: Vec<_> = self.pools.borrow().iter().map(|(k, p)| (k.clone(), p.clone())).collect();
        for (key, pool) in pools {
            // A pool without connections goes; whoever comes next makes another.
            if pool.sweep(now) {
                self.pools.borrow_mut().remove(&key);
            }
        }
        self.destinations.borrow_mut().retain(|_, host| !host.is_removed());
        if !self.pools.borrow().is_empty() {
            self.unused.set(0);
            return false;
        }
        self.unused.set(self.unused.get().saturating_add(1));
        self.cluster.is_retired() || self.unused.get() > FORGET
    }
}

/// Whether a host may be picked by name. Source: Envoy's `HostUtility::selectOverrideHost`, `HostImpl::healthStatus`.
fn selectable(host: &Host, allowed: u8) -> bool {
    use nuncio_proto::envoy::config::core::v3::HealthStatus as Status;
    let flags = host.flags();
    let status = if flags.has(HealthFlags::FAILED_ACTIVE_HC | HealthFlags::FAILED_OUTLIER_CHECK) {
        Status::Unhealthy
    } else {
        match host.eds_health() {
            said @ (Status::Unhealthy | Status::Draining | Status::Timeout) => said,
            _ if flags.has(HealthFlags::DEGRADED_ACTIVE_HC) => Status::Degraded,
            said => said,
        }
    };
    allowed & 1u8.checked_shl(status as u32).unwrap_or(0) != 0
}

/// A request that waits for a connection, in the counters.
struct Pending<'a> {
    cluster: &'a Arc<Cluster>,
    host: &'a Arc<Host>,
    priority: RoutingPriority,
}

impl<'a> Pending<'a> {
    fn new(cluster: &'a Arc<Cluster>, host: &'a Arc<Host>, priority: RoutingPriority) -> Result<Self, StreamError> {
        let (thresholds, stats) = cluster.breaker(priority);
        let traffic = &cluster.stats().traffic;
        if !thresholds.try_acquire(Kind::Pending, stats) {
            traffic.upstream_rq_pending_overflow.inc();
            return Err(StreamError::Overflow);
        }
        traffic.upstream_rq_pending_total.inc();
        traffic.upstream_rq_pending_active.inc();
        host.stats.rq_pending_active.fetch_add(1, Ordering::Relaxed);
        Ok(Self { cluster, host, priority })
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        let (thresholds, stats) = self.cluster.breaker(self.priority);
        thresholds.release(Kind::Pending, stats);
        self.cluster.stats().traffic.upstream_rq_pending_active.dec();
        self.host.stats.rq_pending_active.fetch_sub(1, Ordering::Relaxed);
    }
}
