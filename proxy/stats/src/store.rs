//! The registry: every stat of the process by full name, and the scopes under which they were made. Filled on the control
//! thread (and, for stats that requests bring about, by workers under its lock); read by the admin endpoints.

use crate::config::{Problem, Settings};
use crate::handle::{Counter, Gauge, Histogram, TextReadout};
use crate::histogram::Recorder;
use crate::render::Kind;
use crate::tags::Tag;
use hashbrown::{HashMap, HashSet, HashTable};
use nuncio_proto::envoy::config::metrics::v3::StatsConfig;
use std::cell::RefCell;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

/// The name without tags, and the tags.
#[derive(Debug)]
pub(crate) struct Labels {
    pub name: Arc<str>,
    pub tags: Arc<[Tag]>,
}

/// What only stats with explicit tags have: they may expire.
#[derive(Debug, Default)]
struct Expiry {
    seen: AtomicU64,
    gone: AtomicBool,
}

/// What every stat has.
#[derive(Debug)]
pub(crate) struct Meta {
    hash: u64,
    kind: Kind,
    prefix: Arc<str>,
    suffix: Arc<str>,
    labels: OnceLock<Box<Labels>>,
    expiry: Option<Box<Expiry>>,
    /// Its scope was removed: it goes with its last handle.
    doomed: AtomicBool,
}

impl Meta {
    pub fn evicted(&self) -> bool {
        self.expiry.as_ref().is_some_and(|e| e.gone.load(Ordering::Relaxed))
    }
    fn is(&self, kind: Kind, name: &str) -> bool {
        self.kind == kind && name.strip_prefix(&*self.prefix).is_some_and(|rest| rest == &*self.suffix)
    }
    /// The full name, in order of bytes.
    pub fn bytes(&self) -> impl Iterator<Item = u8> {
        self.prefix.bytes().chain(self.suffix.bytes())
    }
    /// Appends the full name.
    pub fn write_name(&self, out: &mut String) {
        out.push_str(&self.prefix);
        out.push_str(&self.suffix);
    }
}

/// A counter or a gauge.
#[derive(Debug)]
pub(crate) struct Number {
    pub meta: Meta,
    pub cell: crate::cell::Cell,
}

/// A text readout.
#[derive(Debug)]
pub(crate) struct Text {
    pub meta: Meta,
    pub value: Mutex<Option<Box<str>>>,
}
impl Text {
    pub fn get(&self) -> Option<Box<str>> {
        self.value.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Any stat.
#[derive(Clone, Debug)]
pub(crate) enum Entry {
    Number(Arc<Number>),
    Histogram(Arc<Recorder>),
    Text(Arc<Text>),
}

impl Entry {
    pub fn meta(&self) -> &Meta {
        match self {
            Self::Number(n) => &n.meta,
            Self::Histogram(h) => &h.meta,
            Self::Text(t) => &t.meta,
        }
    }
    pub fn kind(&self) -> Kind {
        self.meta().kind
    }
    pub fn used(&self) -> bool {
        match self {
            Self::Number(n) => n.cell.used(),
            Self::Histogram(h) => h.used(),
            Self::Text(t) => t.get().is_some(),
        }
    }
    fn references(&self) -> usize {
        match self {
            Self::Number(n) => Arc::strong_count(n),
            Self::Histogram(h) => Arc::strong_count(h),
            Self::Text(t) => Arc::strong_count(t),
        }
    }
    fn same(&self, other: &Self) -> bool {
        std::ptr::eq(self.meta(), other.meta())
    }
    /// A number that changes whenever the stat is written.
    fn activity(&self) -> u64 {
        match self {
            Self::Number(n) => n.cell.value(),
            Self::Histogram(h) => h.count(),
            Self::Text(_) => 0,
        }
    }
}

#[derive(Debug, Default)]
struct ScopeStats {
    parent: Option<Arc<str>>,
    stats: Vec<Entry>,
}

type Set<T> = HashSet<T, foldhash::fast::RandomState>;
type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

#[derive(Debug, Default)]
struct Registry {
    table: HashTable<Entry>,
    /// Text shared by many stats: suffixes, names without tags, tag lists.
    texts: Set<Arc<str>>,
    tag_lists: Set<Arc<[Tag]>>,
    scopes: Map<Arc<str>, ScopeStats>,
    doomed: Vec<Entry>,
}

impl Registry {
    fn text(&mut self, text: &str) -> Arc<str> {
        self.texts.get_or_insert_with(text, |t| Arc::from(t)).clone()
    }
    fn remove(&mut self, entry: &Entry) {
        if let Ok(found) = self.table.find_entry(entry.meta().hash, |e| e.same(entry)) {
            found.remove();
        }
    }
    /// Drops stats of removed scopes that nobody holds any more.
    fn sweep(&mut self) {
        let doomed = std::mem::take(&mut self.doomed);
        for entry in doomed {
            if !entry.meta().doomed.load(Ordering::Relaxed) {
                continue;
            }
            // The table and this list.
            if entry.references() <= 2 {
                self.remove(&entry);
            } else {
                self.doomed.push(entry);
            }
        }
    }
    fn forget_texts(&mut self) {
        self.texts.retain(|t| Arc::strong_count(t) > 1);
        self.tag_lists.retain(|t| Arc::strong_count(t) > 1);
    }
}

#[derive(Debug)]
struct Inner {
    settings: Settings,
    hasher: foldhash::fast::RandomState,
    registry: Mutex<Registry>,
    /// Envoy's custom stat namespaces.
    namespaces: RwLock<Vec<String>>,
}

/// All stats of the process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store(Arc<Inner>);

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}

thread_local! {
    static NAME: RefCell<String> = const { RefCell::new(String::new()) };
}

impl Store {
    /// A store that keeps everything, with Envoy's default tags.
    pub fn new() -> Self {
        Self::build(&StatsConfig::default(), &mut Vec::new())
    }
    /// A store as `Bootstrap.stats_config` describes it; every problem of it otherwise.
    pub fn with_config(config: &StatsConfig) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let store = Self::build(config, &mut problems);
        if problems.is_empty() { Ok(store) } else { Err(problems) }
    }
    fn build(config: &StatsConfig, problems: &mut Vec<Problem>) -> Self {
        let settings = Settings::compile(config, problems);
        Self(Arc::new(Inner { settings, hasher: Default::default(), registry: Mutex::default(), namespaces: RwLock::default() }))
    }
    /// The root scope (empty prefix).
    pub fn root(&self) -> Scope {
        Scope { store: self.clone(), prefix: "".into(), parent: None }
    }
    /// Registers a custom stat namespace: stats whose names begin with `namespace.` are shown in Prometheus form without the
    /// namespace and without `envoy_` (Istio's `istiocustom`).
    pub fn register_namespace(&self, namespace: &str) {
        let mut all = self.0.namespaces.write().unwrap_or_else(PoisonError::into_inner);
        let namespace = format!("{namespace}.");
        if !all.contains(&namespace) {
            all.push(namespace);
        }
    }
    pub(crate) fn namespaces(&self) -> Vec<String> {
        self.0.namespaces.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
    /// Sets every counter to zero (`/reset_counters`).
    pub fn reset_counters(&self) {
        for entry in self.entries(|e| e.kind() == Kind::Counter) {
            if let Entry::Number(n) = entry
                && n.cell.used()
            {
                n.cell.set(0);
            }
        }
    }
    /// Ends the interval of histograms and drops what removed scopes left. Call every `stats_flush_interval` (5 s by default).
    pub fn flush(&self) {
        for entry in self.entries(|e| e.kind() == Kind::Histogram) {
            if let Entry::Histogram(h) = entry {
                h.flush();
            }
        }
        let mut registry = self.lock();
        registry.sweep();
        registry.forget_texts();
    }
    /// Drops counters and histograms with explicit tags that were not written since the last call (`stats_eviction_interval`).
    /// Handles to them stay valid but are seen no more; see [`Counter::evicted`].
    pub fn evict_unused(&self) {
        let mut registry = self.lock();
        let mut idle = Vec::new();
        for entry in registry.table.iter().filter(|e| matches!(e.kind(), Kind::Counter | Kind::Histogram)) {
            if let Some(expiry) = &entry.meta().expiry {
                let now = entry.activity();
                if expiry.seen.swap(now, Ordering::Relaxed) == now {
                    idle.push(entry.clone());
                }
            }
        }
        for entry in idle {
            registry.remove(&entry);
            let meta = entry.meta();
            if let Some(expiry) = &meta.expiry {
                expiry.gone.store(true, Ordering::Relaxed);
            }
            if let Some(scope) = registry.scopes.get_mut(&meta.prefix) {
                scope.stats.retain(|e| !e.same(&entry));
            }
        }
        registry.forget_texts();
    }
    /// Number of stats.
    pub fn len(&self) -> usize {
        self.lock().table.len()
    }
    /// Whether there are no stats.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.0.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// The stats that `keep` chooses, in no order.
    pub(crate) fn entries(&self, keep: impl Fn(&Entry) -> bool) -> Vec<Entry> {
        self.lock().table.iter().filter(|e| keep(e)).cloned().collect()
    }
    /// The tags of a stat, extracted on first use.
    pub(crate) fn labels<'a>(&self, meta: &'a Meta) -> &'a Labels {
        meta.labels.get_or_init(|| {
            let mut name = String::new();
            meta.write_name(&mut name);
            let (name, tags) = self.0.settings.tags.extract(&name);
            Box::new(self.shared(&name, tags))
        })
    }
    fn shared(&self, name: &str, tags: Vec<Tag>) -> Labels {
        let mut registry = self.lock();
        let name = registry.text(name);
        let tags: Arc<[Tag]> = tags.into();
        Labels { name, tags: registry.tag_lists.get_or_insert(tags).clone() }
    }

    /// The stat `prefix` + `name`, made if there is none; none if the matcher refuses it.
    fn stat(&self, scope: &Scope, kind: Kind, name: &str, labels: Option<&[(&str, &str)]>) -> Option<Entry> {
        NAME.with_borrow_mut(|full| {
            full.clear();
            full.push_str(&scope.prefix);
            full.push_str(name);
            for (tag, value) in labels.into_iter().flatten() {
                for part in [".", tag, ".", value] {
                    full.push_str(part);
                }
            }
            let inner = &*self.0;
            if !inner.settings.accepts(full) {
                return None;
            }
            let hash = inner.hasher.hash_one(full.as_str());
            let mut registry = self.lock();
            if let Some(found) = registry.table.find(hash, |e| e.meta().hash == hash && e.meta().is(kind, full)) {
                let found = found.clone();
                if found.meta().doomed.swap(false, Ordering::Relaxed) {
                    registry.keep(scope, &found);
                }
                return Some(found);
            }
            let suffix = full.get(scope.prefix.len()..).unwrap_or_default();
            let meta = Meta {
                hash,
                kind,
                prefix: scope.prefix.clone(),
                suffix: registry.text(suffix),
                labels: OnceLock::new(),
                expiry: labels.map(|_| Box::default()),
                doomed: AtomicBool::new(false),
            };
            if let Some(labels) = labels {
                let own = labels.iter().map(|(t, v)| (registry.text(t), registry.text(v)));
                let tags: Arc<[Tag]> = own.chain(inner.settings.tags.fixed().iter().cloned()).collect();
                let name = full.get(..scope.prefix.len() + name.len()).unwrap_or_default();
                let _ =
                    meta.labels.set(Box::new(Labels { name: registry.text(name), tags: registry.tag_lists.get_or_insert(tags).clone() }));
            }
            let entry = match kind {
                Kind::Counter | Kind::Gauge => Entry::Number(Arc::new(Number { meta, cell: Default::default() })),
                Kind::Histogram => Entry::Histogram(Arc::new(Recorder::new(meta, inner.settings.buckets(full)))),
                Kind::TextReadout => Entry::Text(Arc::new(Text { meta, value: Mutex::default() })),
            };
            registry.keep(scope, &entry);
            registry.table.insert_unique(hash, entry.clone(), |e| e.meta().hash);
            Some(entry)
        })
    }
}

impl Registry {
    /// Notes that `entry` belongs to `scope`.
    fn keep(&mut self, scope: &Scope, entry: &Entry) {
        let stats =
            self.scopes.entry(scope.prefix.clone()).or_insert_with(|| ScopeStats { parent: scope.parent.clone(), stats: Vec::new() });
        stats.stats.push(entry.clone());
    }
    /// Whether scope `prefix` is `root` or below it.
    fn below(&self, mut prefix: Arc<str>, root: &str) -> bool {
        while *prefix != *root {
            let Some(parent) = self.scopes.get(&prefix).and_then(|s| s.parent.clone()) else { return false };
            prefix = parent;
        }
        true
    }
}

/// A prefix under which stats are made. Names are Envoy's, dots included. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Scope {
    store: Store,
    prefix: Arc<str>,
    parent: Option<Arc<str>>,
}

impl Scope {
    /// `prefix` below this scope; ends with a dot if it is to be separated.
    pub fn scope(&self, prefix: &str) -> Scope {
        let parent = Some(self.prefix.clone());
        Scope { store: self.store.clone(), prefix: format!("{}{prefix}", self.prefix).into(), parent }
    }
    /// The full prefix.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }
    /// The store that this scope belongs to.
    pub fn store(&self) -> &Store {
        &self.store
    }
    /// The counter `name`. The same full name always gives the same counter.
    pub fn counter(&self, name: &str) -> Counter {
        self.number(Kind::Counter, name, None).map_or_else(Counter::default, |n| Counter(Some(n)))
    }
    /// The gauge `name`.
    pub fn gauge(&self, name: &str) -> Gauge {
        self.number(Kind::Gauge, name, None).map_or_else(Gauge::default, |n| Gauge(Some(n)))
    }
    /// The histogram `name`.
    pub fn histogram(&self, name: &str) -> Histogram {
        self.recorder(name, None)
    }
    /// The text readout `name`.
    pub fn text_readout(&self, name: &str) -> TextReadout {
        match self.store.stat(self, Kind::TextReadout, name, None) {
            Some(Entry::Text(t)) => TextReadout(Some(t)),
            _ => TextReadout::default(),
        }
    }
    /// The counter `name` with these tags and no others (fixed tags apart). It expires if unused ([`Store::evict_unused`]).
    /// Its full name, which the stats matcher sees, is `name.tag.value.tag.value...`.
    pub fn counter_with_tags(&self, name: &str, tags: &[(&str, &str)]) -> Counter {
        self.number(Kind::Counter, name, Some(tags)).map_or_else(Counter::default, |n| Counter(Some(n)))
    }
    /// As [`Self::counter_with_tags`]; gauges do not expire.
    pub fn gauge_with_tags(&self, name: &str, tags: &[(&str, &str)]) -> Gauge {
        self.number(Kind::Gauge, name, Some(tags)).map_or_else(Gauge::default, |n| Gauge(Some(n)))
    }
    /// As [`Self::counter_with_tags`].
    pub fn histogram_with_tags(&self, name: &str, tags: &[(&str, &str)]) -> Histogram {
        self.recorder(name, Some(tags))
    }
    fn number(&self, kind: Kind, name: &str, tags: Option<&[(&str, &str)]>) -> Option<Arc<Number>> {
        match self.store.stat(self, kind, name, tags) {
            Some(Entry::Number(n)) => Some(n),
            _ => None,
        }
    }
    fn recorder(&self, name: &str, tags: Option<&[(&str, &str)]>) -> Histogram {
        match self.store.stat(self, Kind::Histogram, name, tags) {
            Some(Entry::Histogram(h)) => Histogram(Some(h)),
            _ => Histogram::default(),
        }
    }
    /// Removes every stat made through this prefix or a scope below it, each as soon as its last handle is gone. For clusters
    /// and listeners that were removed; a stat that is asked for again meanwhile stays.
    pub fn remove(&self) {
        let mut registry = self.store.lock();
        let candidates: Vec<_> = registry.scopes.keys().filter(|p| p.starts_with(&*self.prefix)).cloned().collect();
        let scopes: Vec<_> = candidates.into_iter().filter(|p| registry.below(p.clone(), &self.prefix)).collect();
        for prefix in scopes {
            let Some(scope) = registry.scopes.remove(&prefix) else { continue };
            for entry in scope.stats {
                entry.meta().doomed.store(true, Ordering::Relaxed);
                registry.doomed.push(entry);
            }
        }
        registry.sweep();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_name_same_handle() {
        let store = Store::new();
        store.root().scope("a.").scope("b.").counter("c").add(2);
        store.root().scope("a.").counter("b.c").inc();
        assert_eq!(store.root().counter("a.b.c").value(), 3);
        assert_eq!(store.root().gauge("a.b.c").value(), 0);
        assert_eq!(store.len(), 2);
    }

    #[test]
    fn removed_scopes_leave_nothing() {
        let store = Store::new();
        let clusters = store.root().scope("cluster.");
        for round in 0..100 {
            let scope = clusters.scope(&format!("c{round}."));
            let held = scope.counter("upstream_cx_total");
            scope.scope("outlier.").gauge("active").set(1);
            scope.remove();
            assert_eq!(store.len(), 1, "the held counter stays");
            drop(held);
            store.flush();
            assert_eq!(store.len(), 0);
        }
        let registry = store.lock();
        assert_eq!((registry.scopes.len(), registry.texts.len(), registry.doomed.len()), (0, 0, 0));
    }

    #[test]
    fn removal_spares_names_that_only_look_alike_and_stats_in_new_use() {
        let store = Store::new();
        let clusters = store.root().scope("cluster.");
        let (a, ab) = (clusters.scope("a."), clusters.scope("a.b."));
        let kept = ab.counter("x");
        let held = a.counter("x");
        drop(kept);
        a.remove();
        assert_eq!(store.len(), 2);
        held.inc();
        let again = clusters.scope("a.").counter("x");
        drop(held);
        store.flush();
        assert_eq!(again.value(), 1);
        drop(again);
        store.flush();
        assert_eq!(store.len(), 2);
        clusters.scope("a.").remove();
        assert_eq!(store.len(), 1);
    }

    #[test]
    fn tagged_stats_expire() {
        let store = Store::new();
        let scope = store.root().scope("istiocustom.");
        let used = scope.counter_with_tags("istio_requests_total", &[("code", "200")]);
        let idle = scope.counter_with_tags("istio_requests_total", &[("code", "404")]);
        used.inc();
        idle.inc();
        store.evict_unused();
        used.inc();
        store.evict_unused();
        assert!(idle.evicted() && !used.evicted());
        assert_eq!(store.len(), 1);
        let fresh = scope.counter_with_tags("istio_requests_total", &[("code", "404")]);
        fresh.inc();
        assert_eq!(fresh.value(), 1);
    }

    #[test]
    fn the_matcher_disables_what_it_refuses() {
        use nuncio_proto::envoy::config::metrics::v3::{StatsMatcher, stats_matcher};
        use nuncio_proto::envoy::r#type::matcher::v3::{ListStringMatcher, StringMatcher, string_matcher::MatchPattern};
        let patterns = vec![
            StringMatcher { match_pattern: Some(MatchPattern::Prefix("server".into())), ignore_case: false },
            StringMatcher { match_pattern: Some(MatchPattern::Suffix("RBAC.allowed".into())), ignore_case: true },
        ];
        let matcher = Some(stats_matcher::StatsMatcher::InclusionList(ListStringMatcher { patterns }));
        let config = StatsConfig { stats_matcher: Some(StatsMatcher { stats_matcher: matcher }), ..Default::default() };
        let store = Store::with_config(&config).unwrap();
        let root = store.root();
        assert!(root.counter("server.x").enabled());
        assert!(root.counter("http.a.rbac.allowed").enabled());
        let refused = root.counter("cluster.a.x");
        refused.inc();
        assert!(!refused.enabled() && refused.value() == 0);
        assert_eq!(store.len(), 2);
    }

    #[test]
    fn counters_can_be_reset() {
        let store = Store::new();
        let (counter, gauge) = (store.root().counter("c"), store.root().gauge("g"));
        counter.add(7);
        gauge.set(7);
        store.reset_counters();
        assert_eq!((counter.value(), gauge.value()), (0, 7));
        counter.inc();
        assert_eq!(counter.value(), 1);
    }
}
