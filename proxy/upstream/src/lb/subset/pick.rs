//! Which subset a request goes to, and the pick in it. Per worker, once per pick; criteria are borrowed and stand on the stack.

use super::{Entry, Fallback, Part, SubsetSpec, Subsets};
use crate::host::Host;
use crate::lb::{Ask, WorkerLb};
use nuncio_proto::{Struct, Value};
use prost_types::value::Kind;
use smallvec::SmallVec;
use std::sync::Arc;

/// What the route and the request's dynamic metadata want, sorted by key.
type Criteria<'a> = SmallVec<[(&'a str, &'a Value); 8]>;

/// The key that lists alternatives for `metadata_fallback_policy: FALLBACK_LIST`.
const FALLBACK_LIST: &str = "fallback_list";

/// `base` with `over` over it.
fn merged<'a>(base: &[(&'a str, &'a Value)], over: Option<&'a Struct>) -> Criteria<'a> {
    let mut all: Criteria<'a> = base.into();
    for (key, value) in over.into_iter().flat_map(|s| &s.fields) {
        match all.binary_search_by(|(k, _)| (*k).cmp(key.as_str())) {
            Ok(at) => {
                if let Some(place) = all.get_mut(at) {
                    place.1 = value;
                }
            }
            Err(at) => all.insert(at, (key.as_str(), value)),
        }
    }
    all
}

/// Those of `criteria` whose key is in `keys`, which are sorted.
fn only<'a>(criteria: &[(&'a str, &'a Value)], keys: &[Box<str>]) -> Criteria<'a> {
    criteria.iter().copied().filter(|(name, _)| keys.binary_search_by(|k| k.as_ref().cmp(name)).is_ok()).collect()
}

/// One pick with all that it needs.
struct Pick<'p, 'c> {
    worker: &'p mut WorkerLb,
    subsets: &'p Subsets,
    spec: &'p SubsetSpec,
    ask: &'p Ask<'p, 'c>,
}

impl WorkerLb {
    /// Picks a host of the subset that `cx` asks for. Source: Envoy's `SubsetLoadBalancer::chooseHost`.
    pub(in crate::lb) fn pick_subset(&mut self, spec: &SubsetSpec, ask: &Ask<'_, '_>) -> Option<Arc<Host>> {
        let view = self.view().clone();
        let subsets = view.subsets.as_deref()?;
        Pick { worker: self, subsets, spec, ask }.run()
    }
}

impl Pick<'_, '_> {
    fn run(&mut self) -> Option<Arc<Host>> {
        // Dynamic metadata, if a filter wrote any, wins over the route's.
        let dynamic = self.ask.cx.stream.and_then(|s| s.metadata("envoy.lb"));
        let Some(first) = self.ask.cx.metadata_match.or(dynamic) else { return self.choose(None) };
        let mut criteria = merged(&merged(&[], Some(first)), dynamic);
        if !self.spec.fallback_list {
            return self.choose(Some(&criteria));
        }
        let Some(at) = criteria.iter().position(|(key, _)| *key == FALLBACK_LIST) else { return self.choose(Some(&criteria)) };
        let (_, list) = criteria.remove(at);
        let list = match &list.kind {
            Some(Kind::ListValue(list)) => list.values.as_slice(),
            _ => &[],
        };
        if list.is_empty() {
            return self.choose(Some(&criteria));
        }
        list.iter().find_map(|alternative| {
            let over = match &alternative.kind {
                Some(Kind::StructValue(over)) => Some(over),
                _ => None,
            };
            self.choose(Some(&merged(&criteria, over)))
        })
    }
    fn choose(&mut self, criteria: Option<&[(&str, &Value)]>) -> Option<Arc<Host>> {
        if let Some(wanted) = criteria {
            let narrowed = self.narrowed(wanted);
            let wanted = narrowed.as_deref().unwrap_or(wanted);
            let at = self.spec.selectors.iter().position(|s| s.keys.iter().map(AsRef::as_ref).eq(wanted.iter().map(|(key, _)| *key)));
            if let Some((at, selector)) = at.and_then(|at| Some((at, self.spec.selectors.get(at)?))) {
                let subsets = self.subsets;
                if let Some(entry) = subsets.find(at, wanted.iter().map(|(_, value)| *value)) {
                    self.ask.stats.lb_subsets_selected.inc();
                    return match entry {
                        Entry::One(host) => Some(host.clone()),
                        Entry::Many(part) => self.pick(part),
                    };
                }
                match &selector.fallback {
                    None => {}
                    Some(Fallback::None) => return None,
                    Some(Fallback::Any) => return self.pick(subsets.any.as_ref()?),
                    Some(Fallback::Default) => return self.pick(subsets.default.as_ref()?),
                    // Fewer keys than this selector has, so that this ends.
                    Some(Fallback::Keys(keys)) => return self.choose(Some(&only(wanted, keys))),
                }
            }
        }
        let subsets = self.subsets;
        let fallback = match &self.spec.fallback {
            Fallback::Any => subsets.any.as_ref()?,
            Fallback::Default => subsets.default.as_ref()?,
            Fallback::None | Fallback::Keys(_) => return None,
        };
        if let Some(host) = self.pick(fallback) {
            self.ask.stats.lb_subsets_fallback.inc();
            return Some(host);
        }
        if !self.spec.panic_mode_any {
            return None;
        }
        let host = self.pick(subsets.any.as_ref()?)?;
        self.ask.stats.lb_subsets_fallback_panic.inc();
        Some(host)
    }
    /// `allow_redundant_keys`: the criteria that the first selector with nothing missing looks at.
    fn narrowed<'a>(&self, criteria: &[(&'a str, &'a Value)]) -> Option<Criteria<'a>> {
        if !self.spec.allow_redundant_keys {
            return None;
        }
        let has = |key: &str| criteria.binary_search_by(|(k, _)| (*k).cmp(key)).is_ok();
        let selector = self.spec.selectors.iter().find(|s| s.keys.iter().all(|k| has(k)))?;
        Some(only(criteria, &selector.keys))
    }
    fn pick(&mut self, part: &Part) -> Option<Arc<Host>> {
        self.worker.part(part).pick_plain(self.ask)
    }
}
