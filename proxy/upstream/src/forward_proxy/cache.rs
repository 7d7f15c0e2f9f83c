//! Names and what they resolved to. Workers read a snapshot without locks; names are added under a lock, resolved on the control
//! thread, and removed when nobody asked for them for `host_ttl`. Source: Envoy's `dns_cache_impl.cc`.

use super::{Job, name};
use crate::cluster::Cluster;
use crate::dns::{Answer, DnsService, Family, ResolverSpec, backoff};
use crate::host::millis;
use arc_swap::ArcSwap;
use hashbrown::HashMap;
use nuncio_core::Address;
use nuncio_stats::{Counter, Gauge, Scope};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

/// A compiled `DnsCacheConfig`.
#[derive(Debug)]
pub(super) struct CacheSpec {
    pub family: Family,
    pub resolver: ResolverSpec,
    /// While a name is not resolved, and of answers without TTL.
    pub refresh: Duration,
    pub min_refresh: Duration,
    pub failure: Option<(Duration, Duration)>,
    /// `disable_dns_refresh_on_failure`: a name that does not resolve is forgotten.
    pub forget_failed: bool,
    pub host_ttl: Duration,
    pub max_hosts: usize,
    pub max_pending: u32,
    pub preresolve: Box<[(String, u16)]>,
    pub timeout: Duration,
}

#[derive(Debug)]
struct Stats {
    attempt: Counter,
    failure: Counter,
    success: Counter,
    timeout: Counter,
    added: Counter,
    changed: Counter,
    overflow: Counter,
    removed: Counter,
    hosts: Gauge,
    pending_overflow: Counter,
    pending_open: Gauge,
}

impl Stats {
    fn new(scope: &Scope) -> Self {
        Self {
            attempt: scope.counter("dns_query_attempt"),
            failure: scope.counter("dns_query_failure"),
            success: scope.counter("dns_query_success"),
            timeout: scope.counter("dns_query_timeout"),
            added: scope.counter("host_added"),
            changed: scope.counter("host_address_changed"),
            overflow: scope.counter("host_overflow"),
            removed: scope.counter("host_removed"),
            hosts: scope.gauge("num_hosts"),
            pending_overflow: scope.counter("dns_rq_pending_overflow"),
            pending_open: scope.gauge("circuit_breakers.rq_pending_open"),
        }
    }
}

/// What a name resolved to.
#[derive(Debug, Default)]
struct Resolved {
    addresses: Vec<Address>,
    /// Why there is none.
    why: String,
}

/// One name.
#[derive(Debug)]
pub struct CacheEntry {
    /// `host:port`.
    pub(crate) key: Box<str>,
    host: Box<str>,
    port: u16,
    /// The first answer is there.
    ready: watch::Sender<bool>,
    resolved: ArcSwap<Resolved>,
    last_used: AtomicU64,
    /// It failed and is not asked for again by itself; whoever wants it asks anew.
    given_up: AtomicBool,
}

impl CacheEntry {
    fn new(key: String, host: &str, port: u16) -> Arc<Self> {
        Arc::new(Self {
            key: key.into(),
            host: host.into(),
            port,
            ready: watch::Sender::new(false),
            resolved: ArcSwap::default(),
            last_used: AtomicU64::new(millis(Instant::now())),
            given_up: AtomicBool::new(false),
        })
    }
    /// Resolves when the name was looked up once, with or without success.
    pub async fn ready(&self) {
        // The sender is `self`'s own, so this cannot fail while we are here.
        let _ = self.ready.subscribe().wait_for(|ready| *ready).await;
    }
    /// Where the name leads first; none if it did not resolve.
    pub fn address(&self) -> Option<Address> {
        self.resolved.load().addresses.first().cloned()
    }
    pub(crate) fn addresses(&self) -> Vec<Address> {
        self.resolved.load().addresses.clone()
    }
    /// Why there is no address, without blanks.
    pub fn failure(&self) -> String {
        self.resolved.load().why.split_whitespace().collect::<Vec<_>>().join("_")
    }
    fn is_ready(&self) -> bool {
        *self.ready.borrow()
    }
    /// Somebody wants the name.
    pub(crate) fn touch(&self) {
        self.last_used.store(millis(Instant::now()), Ordering::Relaxed);
    }
}

type Entries = HashMap<Box<str>, Arc<CacheEntry>, foldhash::fast::RandomState>;

/// What looking a name up gives.
#[derive(Debug)]
pub enum Lookup {
    Known(Arc<CacheEntry>),
    /// Wait for [`CacheEntry::ready`].
    Loading(Arc<CacheEntry>),
    /// `max_hosts` names are there.
    Overflow,
}

/// The place of a request that may wait for DNS (`dns_cache_circuit_breaker`).
#[derive(Debug)]
pub struct PendingLookup(Arc<DnsCache>);

impl Drop for PendingLookup {
    fn drop(&mut self) {
        if self.0.pending.fetch_sub(1, Ordering::Relaxed) == i64::from(self.0.spec.max_pending) {
            self.0.stats.pending_open.set(0);
        }
    }
}

/// A named cache.
#[derive(Debug)]
pub struct DnsCache {
    spec: CacheSpec,
    entries: ArcSwap<Entries>,
    changing: Mutex<()>,
    /// Clusters that have a host for every name.
    clusters: Mutex<Vec<Weak<Cluster>>>,
    stats: Stats,
    pending: AtomicI64,
    dns: Arc<DnsService>,
    jobs: mpsc::UnboundedSender<Job>,
}

impl DnsCache {
    pub(super) fn new(name: &str, spec: CacheSpec, dns: Arc<DnsService>, jobs: mpsc::UnboundedSender<Job>, root: &Scope) -> Arc<Self> {
        let cache = Arc::new(Self {
            spec,
            entries: ArcSwap::default(),
            changing: Mutex::default(),
            clusters: Mutex::default(),
            stats: Stats::new(&root.scope(&format!("dns_cache.{name}."))),
            pending: AtomicI64::new(0),
            dns,
            jobs,
        });
        for (host, port) in &cache.spec.preresolve {
            cache.look_up(host, *port);
        }
        cache
    }
    /// A place among those who may wait; none if too many do.
    pub fn admit(self: &Arc<Self>) -> Option<PendingLookup> {
        let most = i64::from(self.spec.max_pending);
        let before = self.pending.fetch_add(1, Ordering::Relaxed);
        if before >= most {
            self.pending.fetch_sub(1, Ordering::Relaxed);
            self.stats.pending_overflow.inc();
            return None;
        }
        if before + 1 == most {
            self.stats.pending_open.set(1);
        }
        Some(PendingLookup(self.clone()))
    }
    /// Looks `authority` up; `default` is the port of names without one.
    pub fn look_up(self: &Arc<Self>, authority: &str, default: u16) -> Lookup {
        let key = name::key(authority, default);
        if let Some(entry) = self.entries.load().get(key.as_str()).filter(|e| !e.given_up.load(Ordering::Relaxed)) {
            return Self::known(entry);
        }
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let entries = self.entries.load_full();
        let stale = match entries.get(key.as_str()) {
            Some(entry) if !entry.given_up.load(Ordering::Relaxed) => return Self::known(entry),
            stale => stale.is_some(),
        };
        if stale {
            self.stats.removed.inc();
        } else if entries.len() >= self.spec.max_hosts {
            self.stats.overflow.inc();
            return Lookup::Overflow;
        }
        let (host, port) = name::split(authority);
        let entry = CacheEntry::new(key, host, port.unwrap_or(default));
        let mut after = entries.as_ref().clone();
        after.insert(entry.key.clone(), entry.clone());
        self.publish(after);
        self.stats.added.inc();
        // Nobody hears of it if the control thread ended; then the process ends.
        let _ = self.jobs.send(Job::Resolve(Arc::downgrade(self), entry.clone()));
        Lookup::Loading(entry)
    }
    fn known(entry: &Arc<CacheEntry>) -> Lookup {
        entry.touch();
        if entry.is_ready() { Lookup::Known(entry.clone()) } else { Lookup::Loading(entry.clone()) }
    }
    fn publish(&self, entries: Entries) {
        self.stats.hosts.set(i64::try_from(entries.len()).unwrap_or(i64::MAX));
        self.entries.store(Arc::new(entries));
    }
    /// Gives `cluster` a host for every name, now and later.
    pub(crate) fn attach(&self, cluster: &Arc<Cluster>) {
        let mut clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        clusters.retain(|c| c.strong_count() > 0);
        clusters.push(Arc::downgrade(cluster));
        for entry in self.entries.load().values() {
            cluster.forward_host(entry);
        }
    }
    fn each_cluster(&self, run: impl Fn(&Cluster)) {
        let clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner).clone();
        clusters.iter().filter_map(Weak::upgrade).filter(|c| !c.is_retired()).for_each(|c| run(&c));
    }
    fn remove(&self, entry: &CacheEntry) {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut after = self.entries.load().as_ref().clone();
        if after.get(&entry.key).is_some_and(|known| std::ptr::eq(known.as_ref(), entry)) {
            after.remove(&entry.key);
            self.publish(after);
            self.stats.removed.inc();
        }
        if !entry.addresses().is_empty() {
            self.each_cluster(|cluster| cluster.forget_forward_host(&entry.key));
        }
    }
    /// Takes an answer and says when to ask again; none for never.
    fn take(&self, entry: &Arc<CacheEntry>, answer: Result<Answer, String>, failures: &mut u32) -> Option<Duration> {
        let before = entry.resolved.load_full();
        let pause = match answer {
            Ok(answer) => {
                *failures = 0;
                self.stats.success.inc();
                let addresses: Vec<_> = answer.addresses.into_iter().map(|ip| Address::Ip(SocketAddr::new(ip, entry.port))).collect();
                let pause = match answer.ttl {
                    _ if addresses.is_empty() => self.spec.refresh,
                    Some(ttl) => ttl.max(self.spec.min_refresh),
                    None => self.spec.refresh,
                };
                // What was resolved once stays, whatever comes after it.
                if addresses.is_empty() {
                    self.note(entry, &before, "no_records".to_string());
                } else if addresses != before.addresses {
                    self.stats.changed.inc();
                    entry.resolved.store(Arc::new(Resolved { addresses, why: String::new() }));
                    self.each_cluster(|cluster| cluster.forward_host(entry));
                }
                Some(pause)
            }
            Err(why) => {
                *failures = failures.saturating_add(1);
                self.stats.failure.inc();
                self.note(entry, &before, why);
                match self.spec.failure {
                    _ if self.spec.forget_failed && before.addresses.is_empty() => {
                        entry.given_up.store(true, Ordering::Relaxed);
                        None
                    }
                    Some((base, max)) => Some(backoff(base, max, *failures)),
                    None => Some(self.spec.refresh),
                }
            }
        };
        entry.ready.send_if_modified(|ready| !std::mem::replace(ready, true));
        pause
    }
    fn note(&self, entry: &CacheEntry, before: &Resolved, why: String) {
        log::debug!("dynamic forward proxy: {} did not resolve: {why}", entry.key);
        if before.addresses.is_empty() {
            entry.resolved.store(Arc::new(Resolved { addresses: Vec::new(), why }));
        }
    }
}

/// Resolves one name until it is forgotten. Control thread.
pub(super) async fn resolve(cache: Weak<DnsCache>, entry: Arc<CacheEntry>) {
    let mut failures = 0;
    loop {
        let pause = {
            let Some(cache) = cache.upgrade() else { break };
            cache.stats.attempt.inc();
            let asked = cache.dns.resolve(&entry.host, cache.spec.family, &cache.spec.resolver);
            let answer = match tokio::time::timeout(cache.spec.timeout, asked).await {
                Ok(answer) => answer,
                Err(_) => {
                    cache.stats.timeout.inc();
                    Err("resolve_timeout".to_string())
                }
            };
            match cache.take(&entry, answer, &mut failures) {
                Some(pause) => pause,
                None => cache.spec.host_ttl,
            }
        };
        // Only a weak reference waits, so that a cache that nobody uses goes.
        tokio::time::sleep(pause).await;
        let Some(cache) = cache.upgrade() else { break };
        if entry.given_up.load(Ordering::Relaxed) {
            return cache.remove(&entry);
        }
        let unused = millis(Instant::now()).saturating_sub(entry.last_used.load(Ordering::Relaxed));
        if u128::from(unused) > cache.spec.host_ttl.as_millis() {
            return cache.remove(&entry);
        }
    }
    // Whoever waits for a cache that went is told that there is nothing.
    entry.ready.send_replace(true);
}
