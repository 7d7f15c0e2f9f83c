//! Picking a host: Envoy's load balancers. What all workers share is in the [`View`]; what a worker remembers between picks
//! (round robin positions, schedulers) is in its [`WorkerLb`]. Per worker, a few nanoseconds, no lock.
//! Source: `load_balancer_impl.cc` and the extensions in `envoy/extensions/load_balancing_policies`.

mod edf;
pub(crate) mod ring;
pub(crate) mod subset;
pub(crate) mod zone;

use crate::context::LbContext;
use crate::host::{Health, Host, clock};
use crate::priority::{self, Availability};
use crate::spec::{LbKind, LbSpec, LocalityMode, SlowStart};
use crate::stats::LbStats;
use crate::view::{HostList, SetView, View};
use edf::Edf;
use hashbrown::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Which list of a view a pick is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Source {
    priority: usize,
    /// None for all localities together.
    locality: Option<usize>,
    kind: SourceKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SourceKind {
    All,
    Healthy,
    Degraded,
}

impl From<Availability> for SourceKind {
    fn from(a: Availability) -> Self {
        match a {
            Availability::Healthy => Self::Healthy,
            Availability::Degraded => Self::Degraded,
        }
    }
}

/// One pick with what it needs.
#[derive(Clone, Copy)]
pub(crate) struct Ask<'a, 'c> {
    pub lb: &'a LbSpec,
    pub cx: &'a LbContext<'c>,
    pub stats: &'a LbStats,
    /// Requests of the whole cluster now, for bounded loads.
    pub active: u64,
    /// The priority, if it was chosen already (aggregate clusters).
    pub at: Option<(usize, Availability)>,
}

/// What a worker remembers of one list.
#[derive(Debug)]
struct State {
    source: Source,
    next: usize,
    /// None if all weights are the same.
    edf: Option<Edf>,
    /// Whether `edf` was decided for this view.
    decided: bool,
}

/// Schedulers of localities of one priority.
#[derive(Debug)]
struct Localities {
    priority: usize,
    degraded: bool,
    /// Localities that have weight and hosts; what the scheduler indexes.
    indices: Vec<usize>,
    edf: Edf,
}

/// What a worker remembers of one cluster's load balancing.
#[derive(Debug)]
pub(crate) struct WorkerLb {
    view: Arc<View>,
    states: Vec<State>,
    localities: Vec<Localities>,
    /// Of subsets that were picked from here, by [`subset::Part::id`].
    parts: HashMap<u64, WorkerLb, foldhash::fast::RandomState>,
}

impl WorkerLb {
    pub(crate) fn new(view: Arc<View>) -> Self {
        Self { view, states: Vec::new(), localities: Vec::new(), parts: HashMap::default() }
    }
    /// The view that the last pick used.
    pub(crate) fn view(&self) -> &Arc<View> {
        &self.view
    }
    /// Goes on with a newer view. Round robin goes on where it was; schedulers begin anew at a random place.
    pub(crate) fn refresh(&mut self, view: Arc<View>) {
        self.view = view;
        self.localities.clear();
        let sets = self.view.sets.len();
        self.states.retain(|s| s.source.priority < sets);
        for state in &mut self.states {
            state.edf = None;
            state.decided = false;
        }
        if !self.parts.is_empty() {
            let known: Vec<u64> = self.view.subsets.iter().flat_map(|s| s.parts()).map(|p| p.id).collect();
            self.parts.retain(|id, _| known.contains(id));
        }
    }
    /// What this worker remembers of a subset.
    fn part(&mut self, part: &subset::Part) -> &mut Self {
        let known = self.parts.entry(part.id).or_insert_with(|| Self::new(part.view.clone()));
        if !Arc::ptr_eq(&known.view, &part.view) {
            known.refresh(part.view.clone());
        }
        known
    }
    /// Picks a host by the cluster's policy.
    pub(crate) fn pick(&mut self, ask: &Ask<'_, '_>) -> Option<Arc<Host>> {
        match &ask.lb.subsets {
            Some(spec) => self.pick_subset(spec, ask),
            None => self.pick_plain(ask),
        }
    }
    fn pick_plain(&mut self, ask: &Ask<'_, '_>) -> Option<Arc<Host>> {
        let Ask { lb, cx, .. } = *ask;
        let attempts = if cx.avoid.is_empty() { 1 } else { cx.attempts.saturating_add(1) };
        if let LbKind::RingHash { .. } | LbKind::Maglev { .. } = lb.kind {
            return self.pick_hashed(ask, attempts);
        }
        let mut last = None;
        for _ in 0..attempts {
            let host = self.pick_once(ask)?;
            if !cx.avoid.iter().any(|a| a.same(&host)) {
                return Some(host);
            }
            last = Some(host);
        }
        last
    }
    fn pick_hashed(&mut self, ask: &Ask<'_, '_>, attempts: u32) -> Option<Arc<Host>> {
        let Ask { lb, cx, stats, active, at } = *ask;
        let hash = cx.hash.unwrap_or_else(|| fastrand::u64(..));
        let loads = &self.view.loads;
        let (priority, _) = at.unwrap_or_else(|| priority::choose(&loads.healthy, &loads.degraded, hash));
        let panic = loads.panic.get(priority).copied().unwrap_or(false);
        if panic {
            stats.lb_healthy_panic.inc();
        }
        let set = self.view.sets.get(priority)?;
        let table = set.table(lb, panic);
        let balance = lb.hash_balance_factor.map(|factor| (factor, active));
        let mut last = None;
        for attempt in 0..attempts {
            let host = table.pick(hash, attempt, balance)?;
            if !cx.avoid.iter().any(|a| a.same(host)) {
                return Some(host.clone());
            }
            last = Some(host);
        }
        last.cloned()
    }
    fn pick_once(&mut self, ask: &Ask<'_, '_>) -> Option<Arc<Host>> {
        let lb = ask.lb;
        let source = self.source(ask)?;
        let list = list(&self.view, source)?;
        match list.hosts.len() {
            0 => return None,
            1 => return list.hosts.first().cloned(),
            _ => {}
        }
        if matches!(lb.kind, LbKind::Random) {
            return list.hosts.get(fastrand::usize(0..list.hosts.len())).cloned();
        }
        let at = match self.states.iter().position(|s| s.source == source) {
            Some(at) => at,
            None => {
                self.states.push(State { source, next: fastrand::usize(..), edf: None, decided: false });
                self.states.len() - 1
            }
        };
        let state = self.states.get_mut(at)?;
        if !state.decided {
            state.decided = true;
            if !list.equal || lb.slow_start.as_ref().is_some_and(|s| in_slow_start(list, s)) {
                let now = now_for(lb);
                state.edf = Some(Edf::new(list.hosts.len(), fastrand::u32(..), |i| list.hosts.get(i).map_or(1.0, |h| weight(lb, h, now))));
            }
        }
        if let Some(edf) = &mut state.edf {
            let now = now_for(lb);
            let index = edf.pick(|i| list.hosts.get(i).map_or(1.0, |h| weight(lb, h, now)))?;
            return list.hosts.get(index).cloned();
        }
        match lb.kind {
            LbKind::LeastRequest { full_scan: true, .. } => least_of_all(list),
            LbKind::LeastRequest { choices, .. } => least_of(list, choices),
            _ => {
                let index = state.next % list.hosts.len();
                state.next = state.next.wrapping_add(1);
                list.hosts.get(index).cloned()
            }
        }
    }
    /// Priority, then panic, then locality. Source: Envoy's `hostSourceToUse`.
    fn source(&mut self, ask: &Ask<'_, '_>) -> Option<Source> {
        let Ask { lb, cx, stats, .. } = *ask;
        let view = &self.view;
        let (priority, availability) = if let Some(at) = ask.at {
            at
        } else if view.sets.len() == 1 && view.loads.degraded.first() == Some(&0) {
            (0, Availability::Healthy)
        } else {
            let hash = fastrand::u64(..);
            let retry = cx.retry_priority.and_then(|retry| {
                let health: Vec<_> = view.sets.iter().map(|s| s.health).collect();
                priority::retry_loads(&health, retry.update_frequency, retry.attempted)
            });
            let loads = retry.as_ref().unwrap_or(&view.loads);
            priority::choose(&loads.healthy, &loads.degraded, hash)
        };
        let set = view.sets.get(priority)?;
        if view.loads.panic.get(priority).copied().unwrap_or(false) {
            stats.lb_healthy_panic.inc();
            if lb.locality.fails_on_panic() {
                return None;
            }
            return Some(Source { priority, locality: None, kind: SourceKind::All });
        }
        let kind = SourceKind::from(availability);
        let locality = match &lb.locality {
            LocalityMode::Ignore => None,
            LocalityMode::Weighted => self.weighted_locality(priority, availability),
            LocalityMode::ZoneAware(_) => match &view.zone {
                Some(routing) if priority == 0 && set.localities.len() > 1 && lb.live.samples() => match routing.local_panic(stats) {
                    true if lb.locality.fails_on_panic() => return None,
                    true => None,
                    false => Some(routing.choose(stats)),
                },
                _ => None,
            },
        };
        Some(Source { priority, locality, kind })
    }
    /// The next locality by effective weight; none if weights say nothing.
    fn weighted_locality(&mut self, priority: usize, availability: Availability) -> Option<usize> {
        let degraded = availability == Availability::Degraded;
        let set = self.view.sets.get(priority)?;
        let at = match self.localities.iter().position(|l| l.priority == priority && l.degraded == degraded) {
            Some(at) => at,
            None => {
                let indices: Vec<usize> = (0..set.localities.len()).filter(|i| set.locality_weight(*i, degraded) > 0.0).collect();
                let weight = |i: usize| indices.get(i).map_or(0.0, |l| set.locality_weight(*l, degraded));
                let edf = Edf::new(indices.len(), fastrand::u32(..), weight);
                self.localities.push(Localities { priority, degraded, indices, edf });
                self.localities.len() - 1
            }
        };
        let Localities { indices, edf, .. } = self.localities.get_mut(at)?;
        let picked = edf.pick(|i| indices.get(i).map_or(0.0, |l| set.locality_weight(*l, degraded)))?;
        indices.get(picked).copied()
    }
}

fn list(view: &View, source: Source) -> Option<&HostList> {
    let set: &SetView = view.sets.get(source.priority)?;
    match (source.locality.and_then(|l| set.localities.get(l)), source.kind) {
        (None, SourceKind::All) | (Some(_), SourceKind::All) => Some(&set.all),
        (None, SourceKind::Healthy) => Some(&set.healthy),
        (None, SourceKind::Degraded) => Some(&set.degraded),
        (Some(l), SourceKind::Healthy) => Some(&l.healthy),
        (Some(l), SourceKind::Degraded) => Some(&l.degraded),
    }
}

/// The time, for those who need it: slow start.
fn now_for(lb: &LbSpec) -> u64 {
    if lb.slow_start.is_some() { clock() } else { 0 }
}

fn in_slow_start(list: &HostList, slow: &SlowStart) -> bool {
    let now = clock();
    list.hosts.iter().any(|h| h.health() == Health::Healthy && h.healthy_since().is_some_and(|t| now.saturating_sub(t) < slow.window_ms))
}

/// A host's weight at this moment.
fn weight(lb: &LbSpec, host: &Host, now: u64) -> f64 {
    let mut weight = f64::from(host.weight());
    if let LbKind::LeastRequest { bias, .. } = lb.kind
        && bias != 0.0
    {
        let active = (host.stats.rq_active.load(Ordering::Relaxed).max(0) as f64) + 1.0;
        weight /= if bias == 1.0 { active } else { active.powf(bias) };
    }
    match &lb.slow_start {
        Some(slow) => weight * slow_start_factor(slow, host, now),
        None => weight,
    }
}

/// Source: Envoy's `applySlowStartFactor`.
fn slow_start_factor(slow: &SlowStart, host: &Host, now: u64) -> f64 {
    let Some(since) = host.healthy_since().filter(|_| host.health() == Health::Healthy) else { return 1.0 };
    let passed = now.saturating_sub(since);
    if passed >= slow.window_ms {
        return 1.0;
    }
    let time = passed.max(1) as f64 / slow.window_ms as f64;
    let factor = if slow.aggression == 1.0 { time } else { time.powf(1.0 / slow.aggression) };
    factor.max(slow.min_weight)
}

/// The least busy of `choices` hosts drawn at random, with repetition as in Envoy.
fn least_of(list: &HostList, choices: u32) -> Option<Arc<Host>> {
    let mut best: Option<(&Arc<Host>, i64)> = None;
    for _ in 0..choices {
        let host = list.hosts.get(fastrand::usize(0..list.hosts.len()))?;
        let active = host.stats.rq_active.load(Ordering::Relaxed);
        if best.is_none_or(|(_, least)| active < least) {
            best = Some((host, active));
        }
    }
    best.map(|(h, _)| h.clone())
}

/// The least busy host of all; ties fall at random, each alike.
fn least_of_all(list: &HostList) -> Option<Arc<Host>> {
    let mut best: Option<(&Arc<Host>, i64)> = None;
    let mut ties = 0u32;
    for host in &list.hosts {
        let active = host.stats.rq_active.load(Ordering::Relaxed);
        match best {
            Some((_, least)) if active > least => {}
            Some((_, least)) if active == least => {
                ties += 1;
                if fastrand::u32(0..=ties) == 0 {
                    best = Some((host, active));
                }
            }
            _ => {
                best = Some((host, active));
                ties = 0;
            }
        }
    }
    best.map(|(h, _)| h.clone())
}
