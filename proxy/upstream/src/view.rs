//! Endpoints, and the view of them that load balancing works on. [`Endpoints`] is what the last update said; a [`View`] adds what
//! follows from health: lists of healthy and degraded hosts, priority loads, hash tables. Views are rebuilt when somebody looks
//! after endpoints or health changed, so that clusters without traffic never pay. Any thread builds, all share.

use crate::host::{Health, HealthFlags, Host};
use crate::lb::ring::{HashFunction, Maglev, Ring, Share};
use crate::lb::subset::{self, Subsets};
use crate::priority::{self, Loads, SetHealth};
use crate::spec::{LbKind, LbSpec, LocalityMode};
use crate::stats::LbStats;
use hashbrown::HashMap;
use nuncio_core::views::HostView;
use nuncio_proto::Value;
use nuncio_proto::envoy::config::core::v3::Locality;
use std::sync::{Arc, OnceLock};

/// `LocalityLbEndpoints` of one priority, the local locality first if it is there.
#[derive(Debug, Default)]
pub(crate) struct EndpointLocality {
    pub locality: Option<Arc<Locality>>,
    /// `load_balancing_weight` of the locality; 0 if absent.
    pub weight: u32,
    pub hosts: Box<[Arc<Host>]>,
}

/// One priority of an assignment.
#[derive(Debug, Default)]
pub(crate) struct EndpointSet {
    pub localities: Box<[EndpointLocality]>,
    /// Whether the first locality is this proxy's own.
    pub has_local: bool,
}

impl EndpointSet {
    pub(crate) fn hosts(&self) -> impl Iterator<Item = &Arc<Host>> {
        self.localities.iter().flat_map(|l| l.hosts.iter())
    }
}

/// What the last endpoint update said.
#[derive(Debug)]
pub(crate) struct Endpoints {
    pub sets: Box<[EndpointSet]>,
    /// `policy.overprovisioning_factor`, in percent.
    pub overprovisioning: u32,
    /// `policy.weighted_priority_health`.
    pub weighted_health: bool,
    /// `policy.drop_overloads`, as a probability.
    pub drop_overload: f64,
}

impl Default for Endpoints {
    fn default() -> Self {
        Self { sets: Box::default(), overprovisioning: 140, weighted_health: false, drop_overload: 0.0 }
    }
}

impl Endpoints {
    /// Whether both say the same of the same hosts, in the same order.
    pub(crate) fn same_as(&self, other: &Self) -> bool {
        let same_locality = |a: &EndpointLocality, b: &EndpointLocality| {
            a.weight == b.weight
                && a.locality == b.locality
                && a.hosts.len() == b.hosts.len()
                && a.hosts.iter().zip(&b.hosts).all(|(a, b)| Arc::ptr_eq(a, b))
        };
        let same_set = |a: &EndpointSet, b: &EndpointSet| {
            a.localities.len() == b.localities.len() && a.localities.iter().zip(&b.localities).all(|(a, b)| same_locality(a, b))
        };
        self.overprovisioning == other.overprovisioning
            && self.weighted_health == other.weighted_health
            && self.drop_overload == other.drop_overload
            && self.sets.len() == other.sets.len()
            && self.sets.iter().zip(&other.sets).all(|(a, b)| same_set(a, b))
    }
    /// Adds a host to a priority, in the locality that is `like`.
    pub(crate) fn add(&mut self, priority: usize, like: &EndpointLocality, host: Arc<Host>) {
        let mut sets = std::mem::take(&mut self.sets).into_vec();
        if sets.len() <= priority {
            sets.resize_with(priority + 1, EndpointSet::default);
        }
        if let Some(set) = sets.get_mut(priority) {
            let mut localities = std::mem::take(&mut set.localities).into_vec();
            match localities.iter_mut().find(|l| l.locality == like.locality) {
                Some(place) => {
                    let mut hosts = std::mem::take(&mut place.hosts).into_vec();
                    hosts.push(host);
                    place.hosts = hosts.into_boxed_slice();
                }
                None => localities.push(EndpointLocality { locality: like.locality.clone(), weight: like.weight, hosts: [host].into() }),
            }
            set.localities = localities.into_boxed_slice();
        }
        self.sets = sets.into_boxed_slice();
    }
    /// The same with every host put through `change`; none leaves it out.
    pub(crate) fn map(&self, change: impl Fn(&Arc<Host>) -> Option<Arc<Host>>) -> Self {
        let locality = |l: &EndpointLocality| EndpointLocality {
            locality: l.locality.clone(),
            weight: l.weight,
            hosts: l.hosts.iter().filter_map(&change).collect(),
        };
        let set = |s: &EndpointSet| EndpointSet { localities: s.localities.iter().map(locality).collect(), has_local: s.has_local };
        Self {
            sets: self.sets.iter().map(set).collect(),
            overprovisioning: self.overprovisioning,
            weighted_health: self.weighted_health,
            drop_overload: self.drop_overload,
        }
    }
    /// Every host, priorities in order.
    pub(crate) fn hosts(&self) -> impl Iterator<Item = &Arc<Host>> {
        self.sets.iter().flat_map(EndpointSet::hosts)
    }
}

/// Hosts to pick from.
#[derive(Debug, Default)]
pub(crate) struct HostList {
    pub hosts: Box<[Arc<Host>]>,
    /// All weights are the same, so that no scheduler is needed.
    pub equal: bool,
}

impl HostList {
    fn new(hosts: Vec<Arc<Host>>) -> Self {
        let equal = hosts.windows(2).all(|w| matches!(w, [a, b] if a.weight() == b.weight()));
        Self { hosts: hosts.into_boxed_slice(), equal }
    }
    fn same_as(&self, other: &Self) -> bool {
        self.hosts.len() == other.hosts.len() && self.hosts.iter().zip(&other.hosts).all(|(a, b)| Arc::ptr_eq(a, b))
    }
}

/// One locality, by health.
#[derive(Debug, Default)]
pub(crate) struct LocalityView {
    pub locality: Option<Arc<Locality>>,
    pub weight: u32,
    pub all: usize,
    pub excluded: usize,
    pub healthy: HostList,
    pub degraded: HostList,
}

/// One priority, by health.
#[derive(Debug, Default)]
pub(crate) struct SetView {
    pub all: HostList,
    pub healthy: HostList,
    pub degraded: HostList,
    pub excluded: usize,
    /// Empty unless the policy looks at localities.
    pub localities: Box<[LocalityView]>,
    pub has_local: bool,
    pub health: SetHealth,
    table: OnceLock<Table>,
}

/// A consistent hash table and the hosts that it indexes.
#[derive(Debug)]
pub(crate) struct Table {
    kind: TableKind,
    hosts: Box<[(Arc<Host>, f64)]>,
}

#[derive(Debug)]
enum TableKind {
    Ring(Ring),
    Maglev(Maglev),
}

/// What load balancing works on.
#[derive(Debug)]
pub(crate) struct View {
    pub epoch: u64,
    pub endpoints: Arc<Endpoints>,
    pub sets: Box<[SetView]>,
    pub loads: Loads,
    /// How priority 0 spreads over zones; none if it does not.
    pub zone: Option<crate::lb::zone::ZoneRouting>,
    /// None without subset load balancing.
    pub subsets: Option<Box<Subsets>>,
    by_address: OnceLock<HashMap<Box<str>, Arc<Host>, foldhash::fast::RandomState>>,
}

/// Numbers for `membership_*` and admin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Membership {
    pub total: usize,
    pub healthy: usize,
    pub degraded: usize,
    pub excluded: usize,
}

impl View {
    /// The view of `endpoints` with the hosts' health as it is now. `local` is the local cluster's view, for zone-aware routing;
    /// `before` the view so far, of which unchanged subsets are kept.
    pub(crate) fn build(
        epoch: u64,
        endpoints: Arc<Endpoints>,
        lb: &LbSpec,
        local: Option<&View>,
        stats: Option<&LbStats>,
        before: Option<&View>,
    ) -> Self {
        let mut view = Self::plain(epoch, endpoints, lb, local, stats);
        if let Some(spec) = &lb.subsets {
            let build = subset::Build { spec, endpoints: &view.endpoints, lb, local, stats };
            view.subsets = Some(Box::new(build.run(before.and_then(|b| b.subsets.as_deref()))));
        }
        view
    }
    /// The view without subsets, or the view of one.
    pub(crate) fn plain(epoch: u64, endpoints: Arc<Endpoints>, lb: &LbSpec, local: Option<&View>, stats: Option<&LbStats>) -> Self {
        let zone_aware = matches!(lb.locality, LocalityMode::ZoneAware(_)) && local.is_some();
        let per_locality = lb.locality == LocalityMode::Weighted || zone_aware || lb.is_local;
        let sets: Box<[SetView]> = endpoints.sets.iter().map(|set| SetView::build(set, &endpoints, per_locality)).collect();
        let health: Vec<SetHealth> = sets.iter().map(|s| s.health).collect();
        let loads = priority::loads(&health, lb.live.panic_threshold());
        let zone = match (&lb.locality, local, sets.first()) {
            (LocalityMode::ZoneAware(zone), Some(local), Some(first)) => {
                crate::lb::zone::ZoneRouting::build(zone, &lb.live, first, (local, stats))
            }
            _ => None,
        };
        Self { epoch, endpoints, sets, loads, zone, subsets: None, by_address: OnceLock::new() }
    }
    /// Whether picks from both are the same: same endpoints, same health.
    pub(crate) fn picks_like(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.endpoints, &other.endpoints)
            && self.loads == other.loads
            && self.zone == other.zone
            && self.sets.len() == other.sets.len()
            && self.sets.iter().zip(&other.sets).all(|(a, b)| {
                a.health == b.health && a.healthy.same_as(&b.healthy) && a.degraded.same_as(&b.degraded) && a.all.same_as(&b.all)
            })
    }
    /// The host whose address is written `address`, in any priority.
    pub(crate) fn host_at(&self, address: &str) -> Option<&Arc<Host>> {
        let map =
            self.by_address.get_or_init(|| self.endpoints.hosts().map(|h| (h.address().to_string().into_boxed_str(), h.clone())).collect());
        map.get(address)
    }
    /// Builds what the first pick would otherwise have to wait for.
    pub(crate) fn prepare(&self, lb: &LbSpec) {
        if let Some(subsets) = &self.subsets {
            return subsets.parts().for_each(|p| p.view.prepare(lb));
        }
        if matches!(lb.kind, LbKind::RingHash { .. } | LbKind::Maglev { .. }) {
            for (set, panic) in self.sets.iter().zip(&self.loads.panic) {
                set.table(lb, *panic);
            }
        }
    }
}

impl SetView {
    fn build(set: &EndpointSet, endpoints: &Endpoints, per_locality: bool) -> Self {
        let mut view = Self { has_local: set.has_local, ..Self::default() };
        let (mut all, mut healthy, mut degraded) = (Vec::new(), Vec::new(), Vec::new());
        let mut weights = (0u64, 0u64, 0u64);
        let mut localities = Vec::new();
        for locality in &set.localities {
            let (mut good, mut low, mut out) = (Vec::new(), Vec::new(), 0);
            for host in &locality.hosts {
                let flags = host.flags();
                all.push(host.clone());
                if flags.has(HealthFlags::EXCLUDED) {
                    out += 1;
                } else {
                    weights.2 += u64::from(host.weight());
                }
                match flags.coarse() {
                    Health::Healthy => {
                        weights.0 += u64::from(host.weight());
                        good.push(host.clone());
                    }
                    Health::Degraded => {
                        weights.1 += u64::from(host.weight());
                        low.push(host.clone());
                    }
                    Health::Unhealthy => {}
                }
            }
            view.excluded += out;
            healthy.extend(good.iter().cloned());
            degraded.extend(low.iter().cloned());
            if per_locality {
                localities.push(LocalityView {
                    locality: locality.locality.clone(),
                    weight: locality.weight,
                    all: locality.hosts.len(),
                    excluded: out,
                    healthy: HostList::new(good),
                    degraded: HostList::new(low),
                });
            }
        }
        view.health = SetHealth {
            hosts: all.len(),
            excluded: view.excluded,
            healthy: healthy.len(),
            degraded: degraded.len(),
            overprovisioning: endpoints.overprovisioning,
            weights: endpoints.weighted_health.then_some(weights),
        };
        view.all = HostList::new(all);
        view.healthy = HostList::new(healthy);
        view.degraded = HostList::new(degraded);
        view.localities = localities.into_boxed_slice();
        view
    }
    /// The share that locality `index` gets of this priority: its weight, less as its hosts are fewer than they were.
    /// Source: Envoy's `HostSetImpl::effectiveLocalityWeight`.
    pub(crate) fn locality_weight(&self, index: usize, degraded: bool) -> f64 {
        let Some(locality) = self.localities.get(index) else { return 0.0 };
        let count = locality.all.saturating_sub(locality.excluded);
        if count == 0 {
            return 0.0;
        }
        let eligible = if degraded { &locality.degraded } else { &locality.healthy };
        let available = eligible.hosts.len() as f64 / count as f64;
        f64::from(locality.weight) * (f64::from(self.health.overprovisioning) / 100.0 * available).min(1.0)
    }
    /// The hash table of this priority, built on first use.
    pub(crate) fn table(&self, lb: &LbSpec, panic: bool) -> &Table {
        self.table.get_or_init(|| Table::build(self, lb, panic))
    }
}

impl Table {
    fn build(set: &SetView, lb: &LbSpec, panic: bool) -> Self {
        let mut hosts: Vec<(Arc<Host>, f64)> = Vec::new();
        let mut add = |list: &mut dyn Iterator<Item = &Arc<Host>>, share: f64| {
            let list: Vec<_> = list.collect();
            let sum: u64 = list.iter().map(|h| u64::from(h.weight())).sum();
            hosts.extend(list.into_iter().map(|h| (h.clone(), f64::from(h.weight()) * share / sum as f64)));
        };
        let total: u64 = set.localities.iter().map(|l| u64::from(l.weight)).sum();
        if lb.locality == LocalityMode::Weighted && total > 0 {
            for locality in set.localities.iter().filter(|l| l.weight > 0) {
                let share = f64::from(locality.weight) / total as f64;
                if panic {
                    let mut same = set.all.hosts.iter().filter(|h| h.locality == locality.locality);
                    add(&mut same, share);
                } else {
                    add(&mut locality.healthy.hosts.iter(), share);
                }
            }
        } else {
            let list = if panic { &set.all } else { &set.healthy };
            add(&mut list.hosts.iter(), 1.0);
        }
        let keys: Vec<String> = hosts.iter().map(|(h, _)| hash_key(h, lb.hash_hostname)).collect();
        let shares: Vec<Share<'_>> = keys.iter().zip(&hosts).map(|(key, (_, weight))| Share { key, weight: *weight }).collect();
        let kind = match lb.kind {
            LbKind::Maglev { table_size } => TableKind::Maglev(Maglev::new(&shares, table_size)),
            LbKind::RingHash { min, max, function } => TableKind::Ring(Ring::new(&shares, min, max, function)),
            _ => TableKind::Ring(Ring::new(&shares, 1024, 8 << 20, HashFunction::XxHash)),
        };
        Self { kind, hosts: hosts.into_boxed_slice() }
    }
    /// The host of `hash`; `attempt` counts retries of the same pick. `balance` is `hash_balance_factor` in percent with the
    /// cluster's active requests: no host takes more than that share of the average, as long as another can.
    pub(crate) fn pick(&self, hash: u64, attempt: u32, balance: Option<(u32, u64)>) -> Option<&Arc<Host>> {
        let index = match &self.kind {
            TableKind::Ring(ring) => ring.pick(hash, attempt),
            TableKind::Maglev(table) => table.pick(hash, attempt),
        }?;
        let (first, weight) = self.hosts.get(index)?;
        let Some((factor, active)) = balance else { return Some(first) };
        let slots = (active + 1).saturating_mul(u64::from(factor)).saturating_add(99) / 100;
        let overload = |host: &Host, weight: f64| {
            let most = (slots as f64 * weight).ceil().max(1.0);
            host.stats.rq_active.load(std::sync::atomic::Ordering::Relaxed).max(0) as f64 / most
        };
        let mut least = (first, overload(first, *weight));
        if least.1 <= 1.0 {
            return Some(first);
        }
        // A random order that is the same for the same hash: sessions that are moved stay together.
        let mut random = fastrand::Rng::with_seed(hash);
        let mut order: Vec<usize> = (0..self.hosts.len()).collect();
        for i in 0..order.len() {
            let other = random.usize(i..order.len());
            order.swap(i, other);
            let Some((host, weight)) = order.get(i).and_then(|k| self.hosts.get(*k)) else { continue };
            if host.same(first) {
                continue;
            }
            let load = overload(host, *weight);
            if load <= 1.0 {
                return Some(host);
            }
            if load < least.1 {
                least = (host, load);
            }
        }
        Some(least.0)
    }
}

/// What a host is hashed by: metadata `envoy.lb` `hash_key`, the hostname if asked, else the address.
fn hash_key(host: &Host, hostname: bool) -> String {
    let metadata = nuncio_core::views::filter_metadata(host.metadata(), "envoy.lb").and_then(|s| s.fields.get("hash_key"));
    match metadata.and_then(|v: &Value| v.kind.as_ref()) {
        Some(prost_types::value::Kind::StringValue(key)) if !key.is_empty() => key.clone(),
        _ if hostname => host.hostname().to_string(),
        _ => host.address().to_string(),
    }
}
