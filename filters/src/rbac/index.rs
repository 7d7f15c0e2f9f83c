//! Finds the policies that can apply to a subject without trying all of them. A policy that asks for one of some exact paths, or for
//! one of some exact names in the client's certificate, is looked up by these; all others are always tried. Built on the control
//! thread, read by any worker.

use super::rule::Subject;
use nuncio_proto::envoy::config::rbac::v3 as proto;
use nuncio_proto::envoy::r#type::matcher::v3::{StringMatcher, path_matcher, string_matcher::MatchPattern};
use proto::permission::Rule as P;
use proto::principal::Identifier as I;
use smallvec::SmallVec;
use std::collections::{BTreeMap, HashMap};

/// Fewer policies are tried one by one: that is cheaper than looking up.
const WORTH_IT: usize = 8;

type Lists = HashMap<Box<str>, Box<[u32]>>;

/// Which policies to try, by their position.
#[derive(Debug, Default)]
pub struct Index {
    by_path: Lists,
    by_name: Lists,
    rest: Box<[u32]>,
}

impl Index {
    /// An index of `policies`, in their order; none if trying all is as good.
    pub fn new<'a>(policies: impl ExactSizeIterator<Item = &'a proto::Policy>) -> Option<Self> {
        if policies.len() < WORTH_IT {
            return None;
        }
        let mut by_path: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
        let mut by_name = BTreeMap::new();
        let mut rest = Vec::new();
        for (position, policy) in (0..).zip(policies) {
            let (lists, keys) = match (one_of(&policy.permissions, paths), one_of(&policy.principals, names)) {
                (Some(paths), _) => (&mut by_path, paths),
                (None, Some(names)) => (&mut by_name, names),
                (None, None) => {
                    rest.push(position);
                    continue;
                }
            };
            for key in keys {
                let list = lists.entry(key).or_default();
                if list.last() != Some(&position) {
                    list.push(position);
                }
            }
        }
        let boxed = |lists: BTreeMap<&str, Vec<u32>>| lists.into_iter().map(|(key, list)| (key.into(), list.into())).collect();
        (!by_path.is_empty() || !by_name.is_empty()).then(|| Self { by_path: boxed(by_path), by_name: boxed(by_name), rest: rest.into() })
    }
    /// The first position, of those that can apply to `subject`, that `applies` to it.
    pub fn first(&self, subject: &Subject<'_>, mut applies: impl FnMut(u32) -> bool) -> Option<u32> {
        let mut lists: SmallVec<[&[u32]; 6]> = SmallVec::new();
        lists.push(&self.rest);
        if !self.by_path.is_empty()
            && let Some(path) = subject.path()
        {
            lists.extend(self.by_path.get(path.as_ref()).map(AsRef::as_ref));
        }
        if !self.by_name.is_empty() && subject.info.connection.tls.is_some() {
            let mut add = |name: &str| lists.extend(self.by_name.get(name).map(AsRef::as_ref));
            match subject.certificate() {
                Some(c) => c.uri_sans.iter().chain(&c.dns_sans).chain([&c.subject]).for_each(|name| add(name)),
                // Without a certificate the name is empty, and a rule may ask for that.
                None => add(""),
            }
        }
        loop {
            let next = lists.iter().filter_map(|list| list.first().copied()).min()?;
            if applies(next) {
                return Some(next);
            }
            for list in &mut lists {
                if let Some((first, behind)) = list.split_first()
                    && *first == next
                {
                    *list = behind;
                }
            }
        }
    }
}

/// The texts of which a subject must have one, if `all` are alternatives; none if some alternative asks for no text.
fn one_of<'a, T>(all: &'a [T], texts: fn(&'a T) -> Option<Vec<&'a str>>) -> Option<Vec<&'a str>> {
    all.iter().map(texts).collect::<Option<Vec<_>>>().map(|lists| lists.concat())
}

/// The same if `all` must hold: any one of them will do, the shortest is best.
fn all_of<'a, T>(all: &'a [T], texts: fn(&'a T) -> Option<Vec<&'a str>>) -> Option<Vec<&'a str>> {
    all.iter().filter_map(texts).min_by_key(Vec::len)
}

fn exact(matcher: &StringMatcher) -> Option<Vec<&str>> {
    match &matcher.match_pattern {
        Some(MatchPattern::Exact(text)) if !matcher.ignore_case => Some(vec![text.as_str()]),
        _ => None,
    }
}

fn paths(permission: &proto::Permission) -> Option<Vec<&str>> {
    match permission.rule.as_ref()? {
        P::AndRules(set) => all_of(&set.rules, paths),
        P::OrRules(set) => one_of(&set.rules, paths),
        P::UrlPath(path) => match path.rule.as_ref()? {
            path_matcher::Rule::Path(path) => exact(path),
        },
        _ => None,
    }
}

fn names(principal: &proto::Principal) -> Option<Vec<&str>> {
    match principal.identifier.as_ref()? {
        I::AndIds(set) => all_of(&set.ids, names),
        I::OrIds(set) => one_of(&set.ids, names),
        I::Authenticated(authenticated) => exact(authenticated.principal_name.as_ref()?),
        _ => None,
    }
}
