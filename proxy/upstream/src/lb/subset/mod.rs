//! Subset load balancing: the hosts of a cluster grouped by values of their `envoy.lb` metadata, each group balanced by itself.
//! [`SubsetSpec`] is compiled on the control thread; [`Subsets`] are part of a view, built with it by any thread and shared by all;
//! [`pick`] runs on workers. A group whose hosts and their health did not change keeps its view, and with it its hash table and
//! what workers remember. Source: Envoy docs "Load Balancer Subsets", `subset_lb.cc`.

pub(crate) mod pick;

use crate::host::Host;
use crate::spec::LbSpec;
use crate::stats::LbStats;
use crate::view::{EndpointLocality, EndpointSet, Endpoints, View};
use foldhash::fast::FixedState;
use hashbrown::HashTable;
use nuncio_core::views::{HostView, filter_metadata};
use nuncio_proto::Value;
use prost_types::value::Kind;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a host's metadata may add up to with `list_as_any`, at most: lists multiply.
const MOST_GROUPS: usize = 1024;

/// What happens when no subset is found.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Fallback {
    None,
    Any,
    Default,
    /// KEYS_SUBSET: these keys, sorted, of the same criteria.
    Keys(Box<[Box<str>]>),
}

/// `LbSubsetSelector`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Selector {
    /// Sorted, each once.
    pub keys: Box<[Box<str>]>,
    /// None for the cluster's own.
    pub fallback: Option<Fallback>,
    pub single_host: bool,
}

/// `LbSubsetConfig`, or the subset policy.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SubsetSpec {
    pub fallback: Fallback,
    /// `default_subset`.
    pub default: crate::spec::Criteria,
    /// Each set of keys once.
    pub selectors: Box<[Selector]>,
    pub locality_weight_aware: bool,
    pub scale_locality_weight: bool,
    pub panic_mode_any: bool,
    pub list_as_any: bool,
    pub allow_redundant_keys: bool,
    /// `metadata_fallback_policy: FALLBACK_LIST`.
    pub fallback_list: bool,
}

impl SubsetSpec {
    fn uses(&self, wanted: &Fallback) -> bool {
        self.fallback == *wanted || self.selectors.iter().any(|s| s.fallback.as_ref() == Some(wanted))
    }
}

/// A group with a view of its own. `id` stays from view to view.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub id: u64,
    pub view: Arc<View>,
}

#[derive(Clone, Debug)]
pub(crate) enum Entry {
    Many(Part),
    /// `single_host_per_subset`: no balancing, and health does not count, as in Envoy.
    One(Arc<Host>),
}

#[derive(Debug)]
struct Subset {
    values: Box<[Value]>,
    entry: Entry,
}

/// The groups of one state of a cluster.
#[derive(Debug)]
pub(crate) struct Subsets {
    /// By selector.
    groups: Box<[HashTable<Subset>]>,
    pub any: Option<Part>,
    pub default: Option<Part>,
    /// Hosts left out because their `single_host_per_subset` group had one.
    pub duplicates: usize,
    /// Groups that the state before did not have, and those that are gone since.
    pub created: usize,
    pub removed: usize,
}

fn hash_value(value: &Value, hasher: &mut impl Hasher) {
    std::mem::discriminant(&value.kind).hash(hasher);
    match &value.kind {
        None | Some(Kind::NullValue(_)) => {}
        Some(Kind::NumberValue(n)) => (if *n == 0.0 { 0.0 } else { *n }).to_bits().hash(hasher),
        Some(Kind::StringValue(s)) => s.hash(hasher),
        Some(Kind::BoolValue(b)) => b.hash(hasher),
        Some(Kind::StructValue(s)) => s.fields.iter().for_each(|(key, value)| {
            key.hash(hasher);
            hash_value(value, hasher);
        }),
        Some(Kind::ListValue(list)) => list.values.iter().for_each(|v| hash_value(v, hasher)),
    }
}

fn hash_of<'a>(values: impl Iterator<Item = &'a Value>) -> u64 {
    let mut hasher = FixedState::default().build_hasher();
    values.for_each(|v| hash_value(v, &mut hasher));
    hasher.finish()
}

fn lb_fields(host: &Host) -> Option<&nuncio_proto::Struct> {
    filter_metadata(host.metadata(), "envoy.lb")
}

/// What a host has under `keys`: nothing if one is missing; several with `list_as_any`.
fn values_of(host: &Host, keys: &[Box<str>], list_as_any: bool) -> Vec<Vec<Value>> {
    let Some(fields) = lb_fields(host) else { return Vec::new() };
    let mut all: Vec<Vec<Value>> = vec![Vec::with_capacity(keys.len())];
    for key in keys {
        let Some(value) = fields.fields.get(key.as_ref()) else { return Vec::new() };
        match &value.kind {
            Some(Kind::ListValue(list)) if list_as_any => {
                let each = |so_far: &Vec<Value>| {
                    let so_far = so_far.clone();
                    list.values.iter().map(move |v| so_far.iter().cloned().chain([v.clone()]).collect::<Vec<_>>()).collect::<Vec<_>>()
                };
                all = all.iter().flat_map(each).take(MOST_GROUPS).collect();
            }
            _ => all.iter_mut().for_each(|so_far| so_far.push(value.clone())),
        }
    }
    all
}

/// Whether `host` has what `default_subset` says.
fn is_default(host: &Host, spec: &SubsetSpec) -> bool {
    let fields = lb_fields(host);
    spec.default.iter().all(|(key, wanted)| match fields.and_then(|f| f.fields.get(key.as_ref())) {
        None => false,
        Some(Value { kind: Some(Kind::ListValue(list)) }) if spec.list_as_any => list.values.contains(wanted),
        Some(value) => value == wanted,
    })
}

/// Where a host stands: priority, locality, host.
type Place<'a> = (usize, usize, &'a Arc<Host>);

fn places(endpoints: &Endpoints) -> impl Iterator<Item = Place<'_>> {
    let sets = endpoints.sets.iter().enumerate();
    let localities = sets.flat_map(|(p, set)| set.localities.iter().enumerate().map(move |(l, locality)| (p, l, locality)));
    localities.flat_map(|(p, l, locality)| locality.hosts.iter().map(move |host| (p, l, host)))
}

/// What building needs.
pub(crate) struct Build<'a> {
    pub spec: &'a SubsetSpec,
    pub endpoints: &'a Endpoints,
    pub lb: &'a LbSpec,
    /// The local cluster, for zone-aware routing.
    pub local: Option<&'a View>,
    pub stats: Option<&'a LbStats>,
}

impl Build<'_> {
    /// The endpoints with these hosts alone.
    fn filtered(&self, members: &[Place<'_>]) -> Endpoints {
        let mut rest = members;
        let mut take = |priority: usize, locality: usize| {
            let end = rest.iter().position(|(p, l, _)| (*p, *l) != (priority, locality)).unwrap_or(rest.len());
            let (now, later) = rest.split_at(end);
            rest = later;
            now.iter().map(|(_, _, host)| (*host).clone()).collect::<Box<[_]>>()
        };
        let mut sets = Vec::with_capacity(self.endpoints.sets.len());
        for (p, set) in self.endpoints.sets.iter().enumerate() {
            let mut localities = Vec::with_capacity(set.localities.len());
            for (l, locality) in set.localities.iter().enumerate() {
                let hosts = take(p, l);
                let weight = self.weight(locality, hosts.len());
                localities.push(EndpointLocality { locality: locality.locality.clone(), weight, hosts });
            }
            sets.push(EndpointSet { localities: localities.into_boxed_slice(), has_local: set.has_local });
        }
        Endpoints {
            sets: sets.into_boxed_slice(),
            overprovisioning: self.endpoints.overprovisioning,
            weighted_health: self.endpoints.weighted_health,
            drop_overload: 0.0,
        }
    }
    /// The weight of a locality that has `left` of its hosts in the group.
    fn weight(&self, locality: &EndpointLocality, left: usize) -> u32 {
        let all = locality.hosts.len();
        match (self.spec.locality_weight_aware, self.spec.scale_locality_weight) {
            (false, _) => 0,
            (true, false) => locality.weight,
            (true, true) if all == 0 => 0,
            (true, true) => (f64::from(locality.weight) * left as f64 / all as f64).round() as u32,
        }
    }
    /// A group; the one before if nothing about it changed.
    fn part(&self, members: &[Place<'_>], before: Option<&Part>) -> Part {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let endpoints = self.filtered(members);
        let endpoints = match before {
            Some(before) if endpoints.same_as(&before.view.endpoints) => before.view.endpoints.clone(),
            _ => Arc::new(endpoints),
        };
        let view = View::plain(0, endpoints, self.lb, self.local, self.stats);
        match before {
            Some(before) if view.picks_like(&before.view) => before.clone(),
            Some(before) => Part { id: before.id, view: Arc::new(view) },
            None => Part { id: NEXT.fetch_add(1, Ordering::Relaxed), view: Arc::new(view) },
        }
    }
    /// All groups. `before`: those of the state before.
    pub(crate) fn run(&self, before: Option<&Subsets>) -> Subsets {
        let spec = self.spec;
        let (mut duplicates, mut created, mut removed) = (0, 0, 0);
        let mut groups = Vec::with_capacity(spec.selectors.len());
        for (at, selector) in spec.selectors.iter().enumerate() {
            let mut members: HashTable<(Vec<Value>, Vec<Place<'_>>)> = HashTable::new();
            for place in places(self.endpoints) {
                for values in values_of(place.2, &selector.keys, spec.list_as_any) {
                    let hash = hash_of(values.iter());
                    let group = members.entry(hash, |(known, _)| *known == values, |(known, _)| hash_of(known.iter()));
                    let mut group = group.or_insert_with(|| (values, Vec::new()));
                    let hosts = &mut group.get_mut().1;
                    // A host may say the same value twice.
                    if !hosts.last().is_some_and(|(_, _, last)| Arc::ptr_eq(last, place.2)) {
                        hosts.push(place);
                    }
                }
            }
            let known = before.and_then(|b| b.groups.get(at));
            let mut table = HashTable::with_capacity(members.len());
            for (values, hosts) in members {
                let hash = hash_of(values.iter());
                let old = known.and_then(|k| k.find(hash, |s| *s.values == *values)).map(|s| &s.entry);
                created += usize::from(old.is_none());
                let entry = match (selector.single_host, hosts.first()) {
                    (true, Some((_, _, host))) => {
                        duplicates += hosts.len() - 1;
                        Entry::One((*host).clone())
                    }
                    _ => Entry::Many(self.part(&hosts, old.and_then(Entry::part))),
                };
                table.insert_unique(hash, Subset { values: values.into(), entry }, |s| hash_of(s.values.iter()));
            }
            let gone = |s: &&Subset| table.find(hash_of(s.values.iter()), |now: &Subset| now.values == s.values).is_none();
            removed += known.map_or(0, |k| k.iter().filter(gone).count());
            groups.push(table);
        }
        let all: Vec<Place<'_>> = places(self.endpoints).collect();
        let any = spec.panic_mode_any || spec.uses(&Fallback::Any);
        let any = any.then(|| self.part(&all, before.and_then(|b| b.any.as_ref())));
        let default = spec.uses(&Fallback::Default).then(|| {
            let members: Vec<Place<'_>> = all.iter().copied().filter(|(_, _, host)| is_default(host, spec)).collect();
            self.part(&members, before.and_then(|b| b.default.as_ref()))
        });
        Subsets { groups: groups.into_boxed_slice(), any, default, duplicates, created, removed }
    }
}

impl Entry {
    fn part(&self) -> Option<&Part> {
        match self {
            Self::Many(part) => Some(part),
            Self::One(_) => None,
        }
    }
}

impl Subsets {
    /// The group of selector `at` with these values, in the order of its keys.
    fn find<'a>(&self, at: usize, values: impl Iterator<Item = &'a Value> + Clone) -> Option<&Entry> {
        let same = |s: &Subset| s.values.iter().eq(values.clone());
        self.groups.get(at)?.find(hash_of(values.clone()), same).map(|s| &s.entry)
    }
    /// Number of groups (`lb_subsets_active`).
    pub(crate) fn len(&self) -> usize {
        self.groups.iter().map(HashTable::len).sum()
    }
    /// Every group that has a view.
    pub(crate) fn parts(&self) -> impl Iterator<Item = &Part> {
        let groups = self.groups.iter().flat_map(|g| g.iter().filter_map(|s| s.entry.part()));
        groups.chain(self.any.as_ref()).chain(self.default.as_ref())
    }
}
