//! `ValueMatcher`, `DoubleMatcher` and `ListMatcher` on values of dynamic metadata. Source: `envoy/type/matcher/v3/value.proto`.

use crate::{StringMatcher, compile_all};
use nuncio_core::diag::{At, Report};
use nuncio_proto::Value;
use nuncio_proto::envoy::r#type::matcher::v3 as proto;
use prost_types::value::Kind;

/// How deeply a matcher may nest.
const MAX_DEPTH: usize = 32;

/// A compiled `ValueMatcher`.
#[derive(Clone, Debug)]
pub enum ValueMatcher {
    Null,
    Double(DoubleMatcher),
    String(StringMatcher),
    Bool(bool),
    Present(bool),
    List(Box<ListMatcher>),
    Or(Box<[ValueMatcher]>),
}

impl ValueMatcher {
    /// Compiles `ValueMatcher`.
    pub fn compile(matcher: &proto::ValueMatcher, at: &At<'_>, report: &mut Report) -> Option<Self> {
        Self::nested(matcher, 0, at, report)
    }
    fn nested(matcher: &proto::ValueMatcher, depth: usize, at: &At<'_>, report: &mut Report) -> Option<Self> {
        use proto::value_matcher::MatchPattern as P;
        if depth > MAX_DEPTH {
            report.error(at, format!("more than {MAX_DEPTH} matchers inside each other"), "simplify the matcher");
            return None;
        }
        Some(match &matcher.match_pattern {
            Some(P::NullMatch(_)) => Self::Null,
            Some(P::DoubleMatch(d)) => Self::Double(DoubleMatcher::compile(d, &at.field("double_match"), report)?),
            Some(P::StringMatch(s)) => Self::String(StringMatcher::compile(s, &at.field("string_match"), report)?),
            Some(P::BoolMatch(b)) => Self::Bool(*b),
            Some(P::PresentMatch(p)) => Self::Present(*p),
            Some(P::ListMatch(l)) => Self::List(Box::new(ListMatcher::nested(l, depth + 1, &at.field("list_match"), report)?)),
            Some(P::OrMatch(or)) => {
                let at = at.field("or_match");
                if or.value_matchers.len() < 2 {
                    report.error(&at.field("value_matchers"), format!("{} matchers", or.value_matchers.len()), "give at least 2");
                    return None;
                }
                let nested = |m: &proto::ValueMatcher, at: &At<'_>, report: &mut Report| Self::nested(m, depth + 1, at, report);
                Self::Or(compile_all(&or.value_matchers, &at.field("value_matchers"), report, nested)?)
            }
            None => {
                report.error(
                    at,
                    "no match_pattern",
                    "set one of null_match, double_match, string_match, bool_match, present_match, list_match, or_match",
                );
                return None;
            }
        })
    }
    /// Whether `value` matches; a value that is not there matches nothing.
    pub fn matches(&self, value: Option<&Value>) -> bool {
        let Some(kind) = value.and_then(|v| v.kind.as_ref()) else { return false };
        match (self, kind) {
            (Self::Null, Kind::NullValue(_)) => true,
            (Self::Double(d), Kind::NumberValue(n)) => d.matches(*n),
            (Self::String(s), Kind::StringValue(v)) => s.matches(v),
            (Self::Bool(b), Kind::BoolValue(v)) => b == v,
            (Self::Present(wanted), _) => *wanted,
            (Self::List(l), _) => l.matches(value),
            (Self::Or(all), _) => all.iter().any(|m| m.matches(value)),
            _ => false,
        }
    }
}

/// A compiled `DoubleMatcher`.
#[derive(Clone, Copy, Debug)]
pub enum DoubleMatcher {
    /// Start inclusive, end exclusive.
    Range(f64, f64),
    Exact(f64),
}

impl DoubleMatcher {
    /// Compiles `DoubleMatcher`.
    pub fn compile(matcher: &proto::DoubleMatcher, at: &At<'_>, report: &mut Report) -> Option<Self> {
        match &matcher.match_pattern {
            Some(proto::double_matcher::MatchPattern::Range(r)) => Some(Self::Range(r.start, r.end)),
            Some(proto::double_matcher::MatchPattern::Exact(v)) => Some(Self::Exact(*v)),
            None => {
                report.error(at, "no match_pattern", "set range or exact");
                None
            }
        }
    }
    /// Whether `value` matches.
    pub fn matches(&self, value: f64) -> bool {
        match self {
            Self::Range(start, end) => *start <= value && value < *end,
            Self::Exact(v) => *v == value,
        }
    }
}

/// A compiled `ListMatcher`: one element of a list must match.
#[derive(Clone, Debug)]
pub struct ListMatcher {
    one_of: ValueMatcher,
}

impl ListMatcher {
    /// Compiles `ListMatcher`.
    pub fn compile(matcher: &proto::ListMatcher, at: &At<'_>, report: &mut Report) -> Option<Self> {
        Self::nested(matcher, 0, at, report)
    }
    fn nested(matcher: &proto::ListMatcher, depth: usize, at: &At<'_>, report: &mut Report) -> Option<Self> {
        match &matcher.match_pattern {
            Some(proto::list_matcher::MatchPattern::OneOf(v)) => {
                Some(Self { one_of: ValueMatcher::nested(v, depth, &at.field("one_of"), report)? })
            }
            None => {
                report.error(at, "no match_pattern", "set one_of");
                None
            }
        }
    }
    /// Whether `value` is a list with a matching element.
    pub fn matches(&self, value: Option<&Value>) -> bool {
        match value.and_then(|v| v.kind.as_ref()) {
            Some(Kind::ListValue(list)) => list.values.iter().any(|v| self.one_of.matches(Some(v))),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nuncio_proto::envoy::r#type::v3::DoubleRange;
    use prost_types::ListValue;
    use proto::value_matcher::{MatchPattern as P, NullMatch};

    fn matcher(pattern: P) -> ValueMatcher {
        ValueMatcher::compile(&proto::ValueMatcher { match_pattern: Some(pattern) }, &At::Root, &mut Report::new()).unwrap()
    }
    fn value(kind: Kind) -> Value {
        Value { kind: Some(kind) }
    }
    fn string(s: &str) -> P {
        P::StringMatch(proto::StringMatcher {
            ignore_case: false,
            match_pattern: Some(proto::string_matcher::MatchPattern::Exact(s.into())),
        })
    }
    fn double(pattern: proto::double_matcher::MatchPattern) -> P {
        P::DoubleMatch(proto::DoubleMatcher { match_pattern: Some(pattern) })
    }

    #[test]
    fn every_kind() {
        use proto::double_matcher::MatchPattern as D;
        let list = |kinds: Vec<Kind>| Kind::ListValue(ListValue { values: kinds.into_iter().map(value).collect() });
        let one_of = |p: P| {
            let element = Box::new(proto::ValueMatcher { match_pattern: Some(p) });
            P::ListMatch(Box::new(proto::ListMatcher { match_pattern: Some(proto::list_matcher::MatchPattern::OneOf(element)) }))
        };
        let or = P::OrMatch(proto::OrMatcher {
            value_matchers: vec![
                proto::ValueMatcher { match_pattern: Some(string("a")) },
                proto::ValueMatcher { match_pattern: Some(one_of(string("a"))) },
            ],
        });
        for (pattern, kind, wanted) in [
            (P::NullMatch(NullMatch {}), Kind::NullValue(0), true),
            (P::NullMatch(NullMatch {}), Kind::BoolValue(false), false),
            (double(D::Exact(1.5)), Kind::NumberValue(1.5), true),
            (double(D::Range(DoubleRange { start: 1.0, end: 2.0 })), Kind::NumberValue(2.0), false),
            (double(D::Range(DoubleRange { start: 1.0, end: 2.0 })), Kind::NumberValue(1.0), true),
            (string("a"), Kind::StringValue("a".into()), true),
            (string("a"), Kind::NumberValue(1.0), false),
            (P::BoolMatch(true), Kind::BoolValue(true), true),
            (P::BoolMatch(true), Kind::BoolValue(false), false),
            (P::PresentMatch(true), Kind::NullValue(0), true),
            (P::PresentMatch(false), Kind::NullValue(0), false),
            (one_of(string("a")), list(vec![Kind::NumberValue(1.0), Kind::StringValue("a".into())]), true),
            (one_of(string("a")), list(vec![]), false),
            (one_of(string("a")), Kind::StringValue("a".into()), false),
            (or.clone(), Kind::StringValue("a".into()), true),
            (or.clone(), list(vec![Kind::StringValue("a".into())]), true),
            (or.clone(), Kind::StringValue("b".into()), false),
        ] {
            assert_eq!(matcher(pattern.clone()).matches(Some(&value(kind.clone()))), wanted, "{pattern:?} {kind:?}");
        }
        assert!(!matcher(P::PresentMatch(true)).matches(None));
    }

    #[test]
    fn refuses_endless_nesting() {
        let mut proto = proto::ValueMatcher { match_pattern: Some(P::PresentMatch(true)) };
        for _ in 0..100 {
            let one_of = proto::list_matcher::MatchPattern::OneOf(Box::new(proto));
            proto = proto::ValueMatcher { match_pattern: Some(P::ListMatch(Box::new(proto::ListMatcher { match_pattern: Some(one_of) }))) };
        }
        assert!(ValueMatcher::compile(&proto, &At::Root, &mut Report::new()).is_none());
    }
}
