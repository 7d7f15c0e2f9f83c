//! `ListenerFilter.filter_disabled`.

use nuncio_core::diag::{At, Report};
use nuncio_proto::envoy::config::listener::v3::ListenerFilterChainMatchPredicate;
use nuncio_proto::envoy::config::listener::v3::listener_filter_chain_match_predicate::Rule;

/// How deep predicates may be nested; protobuf itself stops at 100.
const MAX_DEPTH: usize = 32;

#[derive(Debug)]
pub(super) enum Predicate {
    Or(Vec<Predicate>),
    And(Vec<Predicate>),
    Not(Box<Predicate>),
    Any,
    /// Start and end, the end excluded.
    Port(i32, i32),
}

impl Predicate {
    pub(super) fn compile(proto: &ListenerFilterChainMatchPredicate, at: &At<'_>, report: &mut Report) -> Option<Self> {
        Self::nested(proto, at, 0, report)
    }
    fn nested(proto: &ListenerFilterChainMatchPredicate, at: &At<'_>, depth: usize, report: &mut Report) -> Option<Self> {
        if depth > MAX_DEPTH {
            report.error(at, "the predicate is nested too deeply", format!("nest at most {MAX_DEPTH} levels"));
            return None;
        }
        let mut all = |set: &[ListenerFilterChainMatchPredicate], name: &'static str| {
            let field = at.field(name);
            let field = field.field("rules");
            if set.len() < 2 {
                report.error(&field, format!("{} rules", set.len()), "give at least two");
                return None;
            }
            set.iter().enumerate().map(|(i, rule)| Self::nested(rule, &field.index(i), depth + 1, report)).collect::<Option<Vec<_>>>()
        };
        match &proto.rule {
            Some(Rule::OrMatch(set)) => all(&set.rules, "or_match").map(Self::Or),
            Some(Rule::AndMatch(set)) => all(&set.rules, "and_match").map(Self::And),
            Some(Rule::NotMatch(rule)) => Self::nested(rule, &at.field("not_match"), depth + 1, report).map(|r| Self::Not(Box::new(r))),
            Some(Rule::AnyMatch(true)) => Some(Self::Any),
            Some(Rule::DestinationPortRange(range)) => Some(Self::Port(range.start, range.end)),
            Some(Rule::AnyMatch(false)) | None => {
                report.error(at, "an empty predicate", "give or_match, and_match, not_match, any_match or destination_port_range");
                None
            }
        }
    }
    pub(super) fn matches(&self, port: Option<u16>) -> bool {
        match self {
            Self::Or(all) => all.iter().any(|p| p.matches(port)),
            Self::And(all) => all.iter().all(|p| p.matches(port)),
            Self::Not(p) => !p.matches(port),
            Self::Any => true,
            Self::Port(start, end) => port.is_some_and(|p| (*start..*end).contains(&i32::from(p))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nuncio_proto::envoy::config::listener::v3::listener_filter_chain_match_predicate::MatchSet;
    use nuncio_proto::envoy::r#type::v3::Int32Range;

    fn port(start: i32, end: i32) -> ListenerFilterChainMatchPredicate {
        ListenerFilterChainMatchPredicate { rule: Some(Rule::DestinationPortRange(Int32Range { start, end })) }
    }

    #[test]
    fn ports_or_and_not() {
        let or = Rule::OrMatch(MatchSet { rules: vec![port(80, 81), port(443, 445)] });
        let not = ListenerFilterChainMatchPredicate {
            rule: Some(Rule::NotMatch(Box::new(ListenerFilterChainMatchPredicate { rule: Some(or) }))),
        };
        let mut report = Report::new();
        let predicate = Predicate::compile(&not, &At::Root, &mut report).unwrap();
        for (p, disabled) in [(80, false), (81, true), (444, false), (445, true)] {
            assert_eq!(predicate.matches(Some(p)), disabled, "{p}");
        }
        assert!(predicate.matches(None));
        assert!(Predicate::compile(&ListenerFilterChainMatchPredicate::default(), &At::Root, &mut report).is_none());
    }
}
