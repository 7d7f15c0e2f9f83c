//! Which routes of a virtual host can match a path, in their order, without asking each of them. Literal paths and prefixes are
//! in one compressed trie; whatever cannot be decided from the path alone is a candidate for every request.

use crate::path::PathCondition;
use smallvec::SmallVec;

/// Below this number of routes a scan is cheaper than the trie.
const WORTHWHILE: usize = 8;

/// An index over the routes of one virtual host.
#[derive(Debug)]
pub(crate) struct RouteIndex {
    nodes: Vec<Node>,
    /// Routes whose path condition is not literal.
    always: Box<[u32]>,
}

/// A place in the trie. Its text is that of its ancestors and its own label. Lists are ascending.
#[derive(Debug, Default)]
struct Node {
    label: Box<[u8]>,
    /// First byte of each child's label and its node, by byte.
    children: Vec<(u8, u32)>,
    /// Routes that match every path that begins with this text.
    prefix: Vec<u32>,
    /// Routes that match this text only.
    exact: Vec<u32>,
    /// Routes that match this text, and paths that go on with a slash.
    separated: Vec<u32>,
}

enum Kind {
    Prefix,
    Exact,
    Separated,
}

impl RouteIndex {
    /// An index over `conditions`; none if a scan is as good.
    pub fn new<'a>(conditions: impl ExactSizeIterator<Item = &'a PathCondition>) -> Option<Self> {
        if conditions.len() < WORTHWHILE {
            return None;
        }
        Some(Self::build(conditions))
    }
    fn build<'a>(conditions: impl Iterator<Item = &'a PathCondition>) -> Self {
        let mut index = Self { nodes: vec![Node::default()], always: Box::default() };
        let mut always = Vec::new();
        for (i, condition) in conditions.enumerate() {
            let i = u32::try_from(i).unwrap_or(u32::MAX);
            match condition {
                PathCondition::Prefix { text, ignore_case: false } => index.insert(text.as_bytes(), i, Kind::Prefix),
                PathCondition::Exact { text, ignore_case: false } => index.insert(text.as_bytes(), i, Kind::Exact),
                PathCondition::Separated { text, ignore_case: false } => index.insert(text.as_bytes(), i, Kind::Separated),
                _ => always.push(i),
            }
        }
        index.always = always.into();
        index
    }
    fn insert(&mut self, text: &[u8], route: u32, kind: Kind) {
        let at = self.place(text);
        if let Some(node) = self.nodes.get_mut(at) {
            match kind {
                Kind::Prefix => node.prefix.push(route),
                Kind::Exact => node.exact.push(route),
                Kind::Separated => node.separated.push(route),
            }
        }
    }
    /// The node of `text`, made if there is none.
    fn place(&mut self, mut text: &[u8]) -> usize {
        let mut at = 0;
        while let Some(first) = text.first() {
            let Some(node) = self.nodes.get(at) else { return at };
            let position = match node.children.binary_search_by_key(first, |(b, _)| *b) {
                Err(position) => {
                    let child = self.push(Node { label: text.into(), ..Node::default() });
                    if let Some(node) = self.nodes.get_mut(at) {
                        node.children.insert(position, (*first, child));
                    }
                    return child as usize;
                }
                Ok(position) => position,
            };
            let child = node.children.get(position).map_or(0, |(_, child)| *child as usize);
            let Some(label) = self.nodes.get(child).map(|n| n.label.clone()) else { return at };
            let shared = label.iter().zip(text).take_while(|(a, b)| a == b).count();
            if shared < label.len() {
                // Split: a new node takes the shared part and the child keeps the rest.
                let (head, tail) = label.split_at(shared);
                let tail_first = tail.first().copied().unwrap_or_default();
                let middle = self.push(Node { label: head.into(), children: vec![(tail_first, child as u32)], ..Node::default() });
                if let Some(child) = self.nodes.get_mut(child) {
                    child.label = tail.into();
                }
                if let Some(entry) = self.nodes.get_mut(at).and_then(|n| n.children.get_mut(position)) {
                    entry.1 = middle;
                }
                at = middle as usize;
            } else {
                at = child;
            }
            text = text.get(shared..).unwrap_or_default();
        }
        at
    }
    fn push(&mut self, node: Node) -> u32 {
        self.nodes.push(node);
        u32::try_from(self.nodes.len() - 1).unwrap_or(u32::MAX)
    }
    /// The routes that may match `path`, ascending.
    pub fn candidates<'a>(&'a self, path: &str) -> Candidates<'a> {
        let mut lists: Lists<'a> = SmallVec::new();
        let mut add = |list: &'a [u32]| {
            if !list.is_empty() {
                lists.push(list);
            }
        };
        add(&self.always);
        let mut rest = path.as_bytes();
        let mut node = self.nodes.first();
        while let Some(here) = node {
            add(&here.prefix);
            match rest.first() {
                None => {
                    add(&here.exact);
                    add(&here.separated);
                    break;
                }
                Some(b'/') => add(&here.separated),
                Some(_) => {}
            }
            let child = rest.first().and_then(|b| here.children.binary_search_by_key(b, |(c, _)| *c).ok());
            node = child.and_then(|c| here.children.get(c)).and_then(|(_, n)| self.nodes.get(*n as usize));
            match node.and_then(|n| rest.strip_prefix(n.label.as_ref())) {
                Some(after) => rest = after,
                None => break,
            }
        }
        Candidates { lists }
    }
}

type Lists<'a> = SmallVec<[&'a [u32]; 8]>;

/// Ascending merge of ascending lists.
pub(crate) struct Candidates<'a> {
    lists: Lists<'a>,
}

impl Iterator for Candidates<'_> {
    type Item = u32;
    fn next(&mut self) -> Option<u32> {
        let (at, first) = self.lists.iter().enumerate().filter_map(|(i, l)| l.first().map(|f| (i, *f))).min_by_key(|(_, f)| *f)?;
        let list = self.lists.get_mut(at)?;
        *list = list.get(1..).unwrap_or_default();
        Some(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::RequestPath;
    use nuncio_core::RequestHead;
    use nuncio_matcher::Regex;
    use proptest::prelude::*;

    fn condition() -> impl Strategy<Value = PathCondition> {
        let text = "(/[ab]{0,3}){0,3}";
        prop_oneof![
            (text, any::<bool>()).prop_map(|(t, ignore_case)| PathCondition::Prefix { text: t.into(), ignore_case }),
            (text, any::<bool>()).prop_map(|(t, ignore_case)| PathCondition::Exact { text: t.into(), ignore_case }),
            (text, any::<bool>()).prop_map(|(t, ignore_case)| PathCondition::Separated { text: t.into(), ignore_case }),
            Just(PathCondition::Regex(Regex::new("/a/.*").unwrap())),
            Just(PathCondition::Connect),
        ]
    }

    proptest! {
        #[test]
        fn the_index_agrees_with_a_scan(conditions in prop::collection::vec(condition(), 0..40), path in "(/[abA]{0,3}){0,4}") {
            let head = RequestHead::new(http::Method::GET, "h", path.as_str());
            let path = RequestPath::new(&head, false);
            let scan: Vec<u32> = (0u32..).zip(&conditions).filter(|(_, c)| c.matches(&path)).map(|(i, _)| i).collect();
            let index = RouteIndex::build(conditions.iter());
            let indexed: Vec<u32> = index
                .candidates(&path.bare)
                .filter(|i| conditions[*i as usize].matches(&path))
                .collect();
            prop_assert_eq!(indexed, scan);
        }
    }

    #[test]
    fn a_thousand_routes_cost_a_few_comparisons() {
        let conditions: Vec<_> = (0..1000)
            .map(|i| {
                let text = format!("/service-{i}/v1").into_boxed_str();
                if i % 2 == 0 {
                    PathCondition::Prefix { text, ignore_case: false }
                } else {
                    PathCondition::Separated { text, ignore_case: false }
                }
            })
            .chain([PathCondition::Prefix { text: "/".into(), ignore_case: false }])
            .collect();
        let index = RouteIndex::new(conditions.iter()).unwrap();
        assert_eq!(index.candidates("/service-777/v1/cart").collect::<Vec<_>>(), [777, 1000]);
        assert_eq!(index.candidates("/nothing").collect::<Vec<_>>(), [1000]);
        for i in 0..1000 {
            assert!(index.candidates(&format!("/service-{i}/v1")).count() <= 2);
        }
        assert!(RouteIndex::new(conditions.iter().take(3).collect::<Vec<_>>().into_iter()).is_none());
    }
}
