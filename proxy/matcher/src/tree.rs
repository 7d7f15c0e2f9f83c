//! The xDS unified matcher (`xds.type.matcher.v3.Matcher`): lists of predicates and trees over one input, whose leaves are
//! actions of the caller's kind. Compiled on the control thread, walked by any worker.
//! Source: `xds/type/matcher/v3/matcher.proto`, Envoy's `common/matcher`.

use crate::tree_input::{Input, MatchData};
use crate::{Cidr, IpSet, StringMatcher, ValueMatcher};
use nuncio_core::diag::{At, Report};
use nuncio_proto::envoy::config::common::matcher::v3::Matcher as EnvoyMatcher;
use nuncio_proto::envoy::extensions::matching::input_matchers::{ip::v3::Ip, metadata::v3::Metadata};
use nuncio_proto::xds::core::v3::TypedExtensionConfig;
use nuncio_proto::xds::r#type::matcher::v3 as xds;
use nuncio_proto::xds::r#type::matcher::v3::matcher::{self, matcher_list, matcher_tree};
use nuncio_proto::{Message, Name, typed};
use std::collections::HashMap;

/// How deeply matchers and predicates may nest.
const MAX_DEPTH: usize = 32;

/// A compiled matcher with actions of type `A`.
#[derive(Debug)]
pub struct MatchTree<A> {
    kind: Kind<A>,
    on_no_match: Option<Box<OnMatch<A>>>,
}

#[derive(Debug)]
enum Kind<A> {
    /// Nothing but `on_no_match`.
    Empty,
    List(Box<[Guarded<A>]>),
    Exact(Input, HashMap<Box<[u8]>, OnMatch<A>>),
    /// Longest prefix first.
    Prefix(Input, Box<[Keyed<A>]>),
    /// Longest range first.
    Ip(Input, Box<[IpRange<A>]>),
    ServerName(Input, HashMap<Box<str>, usize>, Box<[OnMatch<A>]>),
}

/// What follows a value of the input.
type Keyed<A> = (Box<[u8]>, OnMatch<A>);
/// What follows a predicate that holds.
type Guarded<A> = (Predicate, OnMatch<A>);

#[derive(Debug)]
struct IpRange<A> {
    ranges: Box<[Cidr]>,
    /// Nothing shorter is looked at if this one's nested matcher finds nothing.
    exclusive: bool,
    on_match: OnMatch<A>,
}

#[derive(Debug)]
struct OnMatch<A> {
    target: Target<A>,
    /// The match counts as none, for the sake of its side effects, of which Nuncio has none.
    keep_matching: bool,
}

#[derive(Debug)]
enum Target<A> {
    Action(A),
    Matcher(Box<MatchTree<A>>),
}

#[derive(Debug)]
enum Predicate {
    Text(Input, StringMatcher),
    Ip(Input, IpSet),
    Value(Input, ValueMatcher, bool),
    Or(Box<[Predicate]>),
    And(Box<[Predicate]>),
    Not(Box<Predicate>),
}

/// Compiles an action; errors go to the report.
pub type CompileAction<'a, A> = dyn FnMut(&TypedExtensionConfig, &At<'_>, &mut Report) -> Option<A> + 'a;

impl<A> MatchTree<A> {
    /// Compiles `xds.type.matcher.v3.Matcher`.
    pub fn compile(proto: &xds::Matcher, at: &At<'_>, report: &mut Report, action: &mut CompileAction<'_, A>) -> Option<Self> {
        Compiler { report, action }.tree(proto, 0, at)
    }
    /// Compiles `envoy.config.common.matcher.v3.Matcher`, which says the same in the same numbers.
    pub fn compile_envoy(proto: &EnvoyMatcher, at: &At<'_>, report: &mut Report, action: &mut CompileAction<'_, A>) -> Option<Self> {
        match xds::Matcher::decode(proto.encode_to_vec().as_slice()) {
            Ok(proto) => Self::compile(&proto, at, report, action),
            Err(why) => {
                report.error(at, format!("a matcher that cannot be read: {why}"), "use xds.type.matcher.v3.Matcher");
                None
            }
        }
    }
    /// The action for `data`; none if nothing matches.
    pub fn find(&self, data: &MatchData<'_>) -> Option<&A> {
        let found = match &self.kind {
            Kind::Empty => None,
            Kind::List(all) => all.iter().find_map(|(predicate, on_match)| predicate.matches(data).then(|| on_match.find(data)).flatten()),
            Kind::Exact(input, all) => input.text(data).and_then(|text| all.get(text.as_ref())?.find(data)),
            Kind::Prefix(input, all) => input
                .text(data)
                .and_then(|text| all.iter().find_map(|(prefix, on_match)| text.starts_with(prefix).then(|| on_match.find(data)).flatten())),
            Kind::Ip(input, all) => input.ip(data).and_then(|ip| find_ip(all, ip, data)),
            Kind::ServerName(input, names, all) => input.text(data).and_then(|name| find_name(names, all, &name, data)),
        };
        found.or_else(|| self.on_no_match.as_ref()?.find(data))
    }
}

impl<A> MatchTree<A> {
    /// Calls `each` with every action, in no particular order. For what is only known once all are compiled.
    pub fn each_action_mut(&mut self, each: &mut dyn FnMut(&mut A)) {
        let mut visit = |on_match: &mut OnMatch<A>| match &mut on_match.target {
            Target::Action(action) => each(action),
            Target::Matcher(matcher) => matcher.each_action_mut(each),
        };
        match &mut self.kind {
            Kind::Empty => {}
            Kind::List(all) => all.iter_mut().for_each(|(_, on_match)| visit(on_match)),
            Kind::Exact(_, all) => all.values_mut().for_each(visit),
            Kind::Prefix(_, all) => all.iter_mut().for_each(|(_, on_match)| visit(on_match)),
            Kind::Ip(_, all) => all.iter_mut().for_each(|range| visit(&mut range.on_match)),
            Kind::ServerName(_, _, all) => all.iter_mut().for_each(visit),
        }
        if let Some(on_match) = &mut self.on_no_match {
            match &mut on_match.target {
                Target::Action(action) => each(action),
                Target::Matcher(matcher) => matcher.each_action_mut(each),
            }
        }
    }
    /// Whether some input is of a request or a response, which a connection does not have.
    pub fn looks_at_http(&self) -> bool {
        let nested = |on_match: &OnMatch<A>| match &on_match.target {
            Target::Action(_) => false,
            Target::Matcher(matcher) => matcher.looks_at_http(),
        };
        let here = match &self.kind {
            Kind::Empty => false,
            Kind::List(all) => all.iter().any(|(predicate, on_match)| predicate.looks_at_http() || nested(on_match)),
            Kind::Exact(input, all) => input.is_http() || all.values().any(nested),
            Kind::Prefix(input, all) => input.is_http() || all.iter().any(|(_, on_match)| nested(on_match)),
            Kind::Ip(input, all) => input.is_http() || all.iter().any(|range| nested(&range.on_match)),
            Kind::ServerName(input, _, all) => input.is_http() || all.iter().any(nested),
        };
        here || self.on_no_match.as_deref().is_some_and(nested)
    }
}

impl<A> OnMatch<A> {
    fn find(&self, data: &MatchData<'_>) -> Option<&A> {
        let found = match &self.target {
            Target::Action(action) => Some(action),
            Target::Matcher(matcher) => matcher.find(data),
        };
        found.filter(|_| !self.keep_matching)
    }
}

fn find_ip<'a, A>(all: &'a [IpRange<A>], ip: std::net::IpAddr, data: &MatchData<'_>) -> Option<&'a A> {
    // The entry with the longest range that holds the address goes first.
    let length = |range: &IpRange<A>| range.ranges.iter().filter(|r| r.contains(ip)).map(Cidr::length).max();
    let mut holding: smallvec::SmallVec<[(u8, &IpRange<A>); 4]> = all.iter().filter_map(|r| Some((length(r)?, r))).collect();
    holding.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
    for (_, range) in holding {
        let found = range.on_match.find(data);
        if found.is_some() || range.exclusive {
            return found;
        }
    }
    None
}

fn find_name<'a, A>(names: &HashMap<Box<str>, usize>, all: &'a [OnMatch<A>], name: &[u8], data: &MatchData<'_>) -> Option<&'a A> {
    let name = std::str::from_utf8(name).ok()?.to_ascii_lowercase();
    let find = |key: &str| all.get(*names.get(key)?)?.find(data);
    // `a.b.c`, then `*.b.c`, `*.c`, `*`.
    let wildcards = name.match_indices('.').filter_map(|(dot, _)| Some(format!("*{}", name.get(dot..)?)));
    find(&name).or_else(|| wildcards.into_iter().find_map(|key| find(&key))).or_else(|| find("*"))
}

impl Predicate {
    fn looks_at_http(&self) -> bool {
        match self {
            Self::Text(input, _) | Self::Ip(input, _) | Self::Value(input, ..) => input.is_http(),
            Self::Or(all) | Self::And(all) => all.iter().any(Self::looks_at_http),
            Self::Not(predicate) => predicate.looks_at_http(),
        }
    }
    fn matches(&self, data: &MatchData<'_>) -> bool {
        match self {
            Self::Text(input, matcher) => input.text(data).is_some_and(|text| matcher.matches(&text)),
            Self::Ip(input, set) => input.ip(data).is_some_and(|ip| set.contains(ip)),
            Self::Value(input, matcher, invert) => input.with_value(data, |v| matcher.matches(Some(v))).unwrap_or(false) != *invert,
            Self::Or(all) => all.iter().any(|p| p.matches(data)),
            Self::And(all) => all.iter().all(|p| p.matches(data)),
            Self::Not(predicate) => !predicate.matches(data),
        }
    }
}

struct Compiler<'a, 'b, A> {
    report: &'a mut Report,
    action: &'a mut CompileAction<'b, A>,
}

impl<A> Compiler<'_, '_, A> {
    fn refuse<T>(&mut self, at: &At<'_>, found: &str, remedy: &str) -> Option<T> {
        self.report.error(at, found, remedy);
        None
    }
    fn tree(&mut self, proto: &xds::Matcher, depth: usize, at: &At<'_>) -> Option<MatchTree<A>> {
        if depth > MAX_DEPTH {
            return self.refuse(at, "matchers nested more than 32 deep", "simplify the matcher");
        }
        let kind = match &proto.matcher_type {
            None => Kind::Empty,
            Some(matcher::MatcherType::MatcherList(list)) => Kind::List(self.list(list, depth, &at.field("matcher_list"))?),
            Some(matcher::MatcherType::MatcherTree(tree)) => self.map(tree, depth, &at.field("matcher_tree"))?,
        };
        let on_no_match = match &proto.on_no_match {
            Some(on) => Some(Box::new(self.on_match(on, depth, &at.field("on_no_match"))?)),
            None => None,
        };
        Some(MatchTree { kind, on_no_match })
    }
    fn list(&mut self, list: &matcher::MatcherList, depth: usize, at: &At<'_>) -> Option<Box<[Guarded<A>]>> {
        let at = at.field("matchers");
        if list.matchers.is_empty() {
            return self.refuse(&at, "no matchers", "give at least one");
        }
        let mut all = Vec::with_capacity(list.matchers.len());
        for (i, field) in list.matchers.iter().enumerate() {
            let at = at.index(i);
            let Some(predicate) = &field.predicate else { return self.refuse(&at.field("predicate"), "nothing", "give a predicate") };
            let predicate = self.predicate(predicate, depth + 1, &at.field("predicate"))?;
            all.push((predicate, self.required_on_match(field.on_match.as_ref(), depth, &at)?));
        }
        Some(all.into())
    }
    fn map(&mut self, tree: &matcher::MatcherTree, depth: usize, at: &At<'_>) -> Option<Kind<A>> {
        let input = Input::compile(tree.input.as_ref(), at, self.report)?;
        match &tree.tree_type {
            Some(matcher_tree::TreeType::ExactMatchMap(map)) => {
                let entries = self.entries(map, depth, &at.field("exact_match_map"))?;
                Some(Kind::Exact(input, entries.into_iter().collect()))
            }
            Some(matcher_tree::TreeType::PrefixMatchMap(map)) => {
                let mut entries = self.entries(map, depth, &at.field("prefix_match_map"))?;
                entries.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
                Some(Kind::Prefix(input, entries.into()))
            }
            Some(matcher_tree::TreeType::CustomMatch(custom)) => self.custom_tree(input, custom, depth, &at.field("custom_match")),
            None => self.refuse(at, "no tree_type", "set exact_match_map, prefix_match_map or custom_match"),
        }
    }
    fn entries(&mut self, map: &matcher_tree::MatchMap, depth: usize, at: &At<'_>) -> Option<Vec<Keyed<A>>> {
        let at = at.field("map");
        let mut all = Vec::with_capacity(map.map.len());
        for (key, on_match) in &map.map {
            all.push((key.as_bytes().into(), self.on_match(on_match, depth, &at.key(key))?));
        }
        Some(all)
    }
    fn custom_tree(&mut self, input: Input, custom: &TypedExtensionConfig, depth: usize, at: &At<'_>) -> Option<Kind<A>> {
        let at = at.field("typed_config");
        let any = custom.typed_config.clone().unwrap_or_default();
        let name = any.type_url.rsplit('/').next().unwrap_or_default().to_string();
        if name == xds::IpMatcher::full_name() {
            let proto: xds::IpMatcher = self.unpack(&any, &at)?;
            let at = at.field("range_matchers");
            let mut all = Vec::with_capacity(proto.range_matchers.len());
            for (i, range) in proto.range_matchers.iter().enumerate() {
                let at = at.index(i);
                let ranges = crate::compile_all(&range.ranges, &at.field("ranges"), self.report, Cidr::compile_xds)?;
                let on_match = self.required_on_match(range.on_match.as_ref(), depth, &at)?;
                all.push(IpRange { ranges, exclusive: range.exclusive, on_match });
            }
            return Some(Kind::Ip(input, all.into()));
        }
        if name == xds::ServerNameMatcher::full_name() {
            let proto: xds::ServerNameMatcher = self.unpack(&any, &at)?;
            let at = at.field("domain_matchers");
            let mut names = HashMap::new();
            let mut all = Vec::with_capacity(proto.domain_matchers.len());
            for (i, domain) in proto.domain_matchers.iter().enumerate() {
                let at = at.index(i);
                for (d, name) in domain.domains.iter().enumerate() {
                    if names.insert(name.to_ascii_lowercase().into(), i).is_some() {
                        return self.refuse(
                            &at.field("domains").index(d),
                            &format!("domain \"{name}\" is there twice"),
                            "give each domain once",
                        );
                    }
                }
                all.push(self.required_on_match(domain.on_match.as_ref(), depth, &at)?);
            }
            return Some(Kind::ServerName(input, names, all.into()));
        }
        self.report.unsupported(&at, format_args!("custom matcher {name}"));
        None
    }
    fn unpack<T: Message + Name + Default>(&mut self, any: &nuncio_proto::Any, at: &At<'_>) -> Option<T> {
        typed::unpack_as(any).map_err(|why| self.report.error(at, why, "give a valid configuration")).ok()
    }
    fn required_on_match(&mut self, on_match: Option<&matcher::OnMatch>, depth: usize, at: &At<'_>) -> Option<OnMatch<A>> {
        let at = at.field("on_match");
        match on_match {
            Some(on_match) => self.on_match(on_match, depth, &at),
            None => self.refuse(&at, "nothing", "say what follows a match"),
        }
    }
    fn on_match(&mut self, on_match: &matcher::OnMatch, depth: usize, at: &At<'_>) -> Option<OnMatch<A>> {
        let target = match &on_match.on_match {
            Some(matcher::on_match::OnMatch::Action(action)) => Target::Action((self.action)(action, &at.field("action"), self.report)?),
            Some(matcher::on_match::OnMatch::Matcher(nested)) => {
                Target::Matcher(Box::new(self.tree(nested, depth + 1, &at.field("matcher"))?))
            }
            None => return self.refuse(at, "neither action nor matcher", "set one of them"),
        };
        Some(OnMatch { target, keep_matching: on_match.keep_matching })
    }
    fn predicate(&mut self, predicate: &matcher_list::Predicate, depth: usize, at: &At<'_>) -> Option<Predicate> {
        use matcher_list::predicate::MatchType as T;
        if depth > MAX_DEPTH {
            return self.refuse(at, "predicates nested more than 32 deep", "simplify the matcher");
        }
        match &predicate.match_type {
            Some(T::SinglePredicate(single)) => self.single(single, &at.field("single_predicate")),
            Some(T::OrMatcher(list)) => Some(Predicate::Or(self.predicates(list, depth, &at.field("or_matcher"))?)),
            Some(T::AndMatcher(list)) => Some(Predicate::And(self.predicates(list, depth, &at.field("and_matcher"))?)),
            Some(T::NotMatcher(not)) => Some(Predicate::Not(Box::new(self.predicate(not, depth + 1, &at.field("not_matcher"))?))),
            None => self.refuse(at, "no match_type", "set single_predicate, or_matcher, and_matcher or not_matcher"),
        }
    }
    fn predicates(&mut self, list: &matcher_list::predicate::PredicateList, depth: usize, at: &At<'_>) -> Option<Box<[Predicate]>> {
        let at = at.field("predicate");
        if list.predicate.len() < 2 {
            return self.refuse(&at, &format!("{} predicates", list.predicate.len()), "give at least 2");
        }
        let mut all = Vec::with_capacity(list.predicate.len());
        for (i, predicate) in list.predicate.iter().enumerate() {
            all.push(self.predicate(predicate, depth + 1, &at.index(i))?);
        }
        Some(all.into())
    }
    fn single(&mut self, single: &matcher_list::predicate::SinglePredicate, at: &At<'_>) -> Option<Predicate> {
        use matcher_list::predicate::single_predicate::Matcher as M;
        let input = Input::compile(single.input.as_ref(), at, self.report)?;
        match &single.matcher {
            Some(M::ValueMatch(matcher)) => {
                Some(Predicate::Text(input, StringMatcher::compile_xds(matcher, &at.field("value_match"), self.report)?))
            }
            Some(M::CustomMatch(custom)) => {
                let at = at.field("custom_match");
                let at = at.field("typed_config");
                let any = custom.typed_config.clone().unwrap_or_default();
                let name = any.type_url.rsplit('/').next().unwrap_or_default().to_string();
                if name == Ip::full_name() {
                    let ip: Ip = self.unpack(&any, &at)?;
                    return Some(Predicate::Ip(input, IpSet::compile(&ip.cidr_ranges, &at.field("cidr_ranges"), self.report)?));
                }
                if name == Metadata::full_name() {
                    let metadata: Metadata = self.unpack(&any, &at)?;
                    let value = metadata.value.unwrap_or_default();
                    return Some(Predicate::Value(input, ValueMatcher::compile(&value, &at.field("value"), self.report)?, metadata.invert));
                }
                self.report.unsupported(&at, format_args!("input matcher {name}"));
                None
            }
            None => self.refuse(at, "no matcher", "set value_match or custom_match"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nuncio_core::{Address, ByteStr, ConnectionInfo, test_kit};
    use nuncio_proto::json::{UnknownFields, parse_text};

    fn tree(yaml: &str) -> Result<MatchTree<String>, String> {
        let proto: xds::Matcher = parse_text(yaml, UnknownFields::Refuse).unwrap_or_else(|e| panic!("{e}")).value;
        let mut report = Report::new();
        MatchTree::compile(&proto, &At::Root, &mut report, &mut |action, _, _| Some(action.name.clone())).ok_or_else(|| report.summary())
    }
    fn connection(local: &str, name: Option<&str>) -> ConnectionInfo {
        ConnectionInfo {
            local: Address::Ip(local.parse().unwrap()),
            requested_server_name: name.map(ByteStr::from),
            ..test_kit::connection()
        }
    }
    fn input(kind: &str) -> String {
        format!(
            "input: {{name: i, typed_config: {{'@type': type.googleapis.com/envoy.extensions.matching.common_inputs.network.v3.{kind}}}}}"
        )
    }

    #[test]
    fn the_longest_range_goes_first() {
        let tree = tree(&format!(
            "
matcher_tree:
  {}
  custom_match:
    name: ip
    typed_config:
      '@type': type.googleapis.com/xds.type.matcher.v3.IPMatcher
      range_matchers:
      - {{ranges: [{{address_prefix: 10.0.0.0, prefix_len: 8}}], on_match: {{action: {{name: eight}}}}}}
      - {{ranges: [{{address_prefix: 10.1.0.0, prefix_len: 16}}], on_match: {{matcher: {{matcher_tree: {{{}, exact_match_map: {{map: {{'80': {{action: {{name: port}}}}}}}}}}}}}}}}
      - {{ranges: [{{address_prefix: 10.2.0.0, prefix_len: 16}}], exclusive: true, on_match: {{action: {{name: skipped}}, keep_matching: true}}}}
on_no_match: {{action: {{name: none}}}}",
            input("DestinationIPInput"),
            input("DestinationPortInput")
        ))
        .unwrap();
        for (local, wanted) in
            [("10.9.0.1:1", "eight"), ("10.1.0.1:80", "port"), ("10.1.0.1:81", "eight"), ("10.2.0.1:1", "none"), ("11.0.0.1:1", "none")]
        {
            assert_eq!(tree.find(&MatchData::connection(&connection(local, None))).map(String::as_str), Some(wanted), "{local}");
        }
    }

    #[test]
    fn server_names_and_lists() {
        let tree = tree(&format!(
            "
matcher_list:
  matchers:
  - predicate: {{single_predicate: {{{ip}, custom_match: {{name: ip, typed_config: {{'@type': type.googleapis.com/envoy.extensions.matching.input_matchers.ip.v3.Ip, cidr_ranges: [{{address_prefix: 192.168.0.0, prefix_len: 16}}], stat_prefix: s}}}}}}}}
    on_match: {{action: {{name: private}}}}
on_no_match:
  matcher:
    matcher_tree:
      {name}
      custom_match:
        name: sni
        typed_config:
          '@type': type.googleapis.com/xds.type.matcher.v3.ServerNameMatcher
          domain_matchers:
          - {{domains: [a.example.com], on_match: {{action: {{name: exact}}}}}}
          - {{domains: ['*.example.com'], on_match: {{action: {{name: suffix}}}}}}
          - {{domains: ['*'], on_match: {{action: {{name: any}}}}}}",
            ip = input("DestinationIPInput"),
            name = input("ServerNameInput")
        ))
        .unwrap();
        for (local, name, wanted) in [
            ("192.168.1.1:1", None, Some("private")),
            ("1.1.1.1:1", Some("A.example.com"), Some("exact")),
            ("1.1.1.1:1", Some("x.y.example.com"), Some("suffix")),
            ("1.1.1.1:1", Some("other"), Some("any")),
            ("1.1.1.1:1", None, None),
        ] {
            assert_eq!(tree.find(&MatchData::connection(&connection(local, name))).map(String::as_str), wanted, "{local} {name:?}");
        }
    }

    #[test]
    fn refuses_by_name() {
        let any = "{name: n, typed_config: {'@type': type.googleapis.com/envoy.type.matcher.v3.RegexMatcher}}";
        for (yaml, wanted) in [
            ("{matcher_list: {}}".to_string(), "matcher_list.matchers: no matchers"),
            (
                format!("{{matcher_tree: {{input: {any}, exact_match_map: {{}}}}}}"),
                "matching input envoy.type.matcher.v3.RegexMatcher is not supported",
            ),
            (
                format!("{{matcher_tree: {{{}, custom_match: {any}}}}}", input("ServerNameInput")),
                "custom matcher envoy.type.matcher.v3.RegexMatcher",
            ),
            ("{on_no_match: {}}".to_string(), "on_no_match: neither action nor matcher"),
        ] {
            let found = tree(&yaml).err().unwrap_or_default();
            assert!(found.contains(wanted), "{yaml}\n{found}");
        }
    }
}
