//! `StringMatcher`: exact, prefix, suffix, contains, regular expression, with or without ASCII case.
//! Source: `envoy/type/matcher/v3/string.proto`.

use crate::{Regex, compile_all};
use nuncio_core::diag::{At, Report};
use nuncio_proto::envoy::r#type::matcher::v3 as proto;
use nuncio_proto::xds::r#type::matcher::v3 as xds;

/// A compiled `StringMatcher`. Values are bytes, because header values are.
#[derive(Clone, Debug)]
pub struct StringMatcher {
    pattern: Pattern,
    ignore_case: bool,
}

#[derive(Clone, Debug)]
enum Pattern {
    Exact(Box<str>),
    Prefix(Box<str>),
    Suffix(Box<str>),
    /// Built once, because building a searcher costs more than a search.
    Contains(Box<memchr::memmem::Finder<'static>>),
    /// The lower-cased text, searched by hand.
    ContainsIgnoreCase(Box<str>),
    Regex(Regex),
}

impl StringMatcher {
    /// Compiles `envoy.type.matcher.v3.StringMatcher`. `custom` matchers are refused.
    pub fn compile(proto: &proto::StringMatcher, at: &At<'_>, report: &mut Report) -> Option<Self> {
        use proto::string_matcher::MatchPattern as P;
        let ignore_case = proto.ignore_case;
        let pattern = match &proto.match_pattern {
            Some(P::Exact(s)) => Pattern::Exact(s.as_str().into()),
            Some(P::Prefix(s)) => Pattern::Prefix(required(s, &at.field("prefix"), report)?),
            Some(P::Suffix(s)) => Pattern::Suffix(required(s, &at.field("suffix"), report)?),
            Some(P::Contains(s)) => contains(required(s, &at.field("contains"), report)?, ignore_case),
            Some(P::SafeRegex(regex)) => {
                if ignore_case {
                    report.error(&at.field("ignore_case"), "true beside safe_regex", "write (?i) at the beginning of the expression");
                    return None;
                }
                Pattern::Regex(Regex::compile(regex, &at.field("safe_regex"), report)?)
            }
            Some(P::Custom(custom)) => {
                report.unsupported(&at.field("custom"), format_args!("string matcher {}", custom.name));
                return None;
            }
            None => {
                report.error(at, "no match_pattern", "set one of exact, prefix, suffix, contains, safe_regex");
                return None;
            }
        };
        Some(Self { pattern, ignore_case })
    }
    /// Compiles `xds.type.matcher.v3.StringMatcher`, which says the same.
    pub fn compile_xds(matcher: &xds::StringMatcher, at: &At<'_>, report: &mut Report) -> Option<Self> {
        use xds::string_matcher::MatchPattern as X;
        let match_pattern = matcher.match_pattern.as_ref().map(|pattern| match pattern {
            X::Exact(s) => proto::string_matcher::MatchPattern::Exact(s.clone()),
            X::Prefix(s) => proto::string_matcher::MatchPattern::Prefix(s.clone()),
            X::Suffix(s) => proto::string_matcher::MatchPattern::Suffix(s.clone()),
            X::Contains(s) => proto::string_matcher::MatchPattern::Contains(s.clone()),
            X::SafeRegex(r) => {
                proto::string_matcher::MatchPattern::SafeRegex(proto::RegexMatcher { regex: r.regex.clone(), ..Default::default() })
            }
            X::Custom(c) => proto::string_matcher::MatchPattern::Custom(c.clone()),
        });
        Self::compile(&proto::StringMatcher { match_pattern, ignore_case: matcher.ignore_case }, at, report)
    }
    /// Compiles a repeated field.
    pub fn compile_list(protos: &[proto::StringMatcher], at: &At<'_>, report: &mut Report) -> Option<Box<[Self]>> {
        compile_all(protos, at, report, Self::compile)
    }
    /// Matches exactly `text`.
    pub fn exact(text: &str) -> Self {
        Self { pattern: Pattern::Exact(text.into()), ignore_case: false }
    }
    /// Matches what begins with `text`.
    pub fn prefix(text: &str) -> Self {
        Self { pattern: Pattern::Prefix(text.into()), ignore_case: false }
    }
    /// Matches what ends with `text`.
    pub fn suffix(text: &str) -> Self {
        Self { pattern: Pattern::Suffix(text.into()), ignore_case: false }
    }
    /// Matches what contains `text`.
    pub fn contains(text: &str) -> Self {
        Self { pattern: contains(text.into(), false), ignore_case: false }
    }
    /// Matches what `regex` matches as a whole.
    pub fn regex(regex: Regex) -> Self {
        Self { pattern: Pattern::Regex(regex), ignore_case: false }
    }
    /// The text of an exact matcher that minds case, for indexes over many matchers.
    pub fn as_exact(&self) -> Option<&str> {
        match &self.pattern {
            Pattern::Exact(s) if !self.ignore_case => Some(s),
            _ => None,
        }
    }
    /// The text of a prefix matcher that minds case.
    pub fn as_prefix(&self) -> Option<&str> {
        match &self.pattern {
            Pattern::Prefix(s) if !self.ignore_case => Some(s),
            _ => None,
        }
    }
    /// Whether `value` matches.
    pub fn matches(&self, value: impl AsRef<[u8]>) -> bool {
        self.matches_bytes(value.as_ref())
    }
    fn matches_bytes(&self, value: &[u8]) -> bool {
        let equal = |a: &[u8], b: &str| if self.ignore_case { a.eq_ignore_ascii_case(b.as_bytes()) } else { a == b.as_bytes() };
        match &self.pattern {
            Pattern::Exact(s) => equal(value, s),
            Pattern::Prefix(s) => value.get(..s.len()).is_some_and(|head| equal(head, s)),
            Pattern::Suffix(s) => value.len().checked_sub(s.len()).and_then(|from| value.get(from..)).is_some_and(|tail| equal(tail, s)),
            Pattern::Contains(finder) => finder.find(value).is_some(),
            Pattern::ContainsIgnoreCase(s) => value.windows(s.len()).any(|w| w.eq_ignore_ascii_case(s.as_bytes())),
            Pattern::Regex(regex) => regex.matches(value),
        }
    }
}

/// Whether any of `matchers` matches.
pub fn any_matches(matchers: &[StringMatcher], value: impl AsRef<[u8]>) -> bool {
    let value = value.as_ref();
    matchers.iter().any(|m| m.matches(value))
}

fn contains(text: Box<str>, ignore_case: bool) -> Pattern {
    if ignore_case {
        Pattern::ContainsIgnoreCase(text)
    } else {
        Pattern::Contains(Box::new(memchr::memmem::Finder::new(text.as_bytes()).into_owned()))
    }
}

fn required(text: &str, at: &At<'_>, report: &mut Report) -> Option<Box<str>> {
    if text.is_empty() {
        report.error(at, "an empty text", "give at least one character");
        return None;
    }
    Some(text.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::string_matcher::MatchPattern as P;

    fn compile(pattern: P, ignore_case: bool) -> Result<StringMatcher, String> {
        let mut report = Report::new();
        let proto = proto::StringMatcher { ignore_case, match_pattern: Some(pattern) };
        StringMatcher::compile(&proto, &At::Root, &mut report).ok_or_else(|| report.summary())
    }

    #[test]
    fn matches_every_kind() {
        let regex = P::SafeRegex(proto::RegexMatcher { regex: "a.c".into(), ..Default::default() });
        for (pattern, ignore_case, value, wanted) in [
            (P::Exact("abc".into()), false, "abc", true),
            (P::Exact("abc".into()), false, "ABC", false),
            (P::Exact("abc".into()), true, "aBC", true),
            (P::Exact("".into()), false, "", true),
            (P::Prefix("ab".into()), false, "abc", true),
            (P::Prefix("ab".into()), false, "a", false),
            (P::Prefix("AB".into()), true, "abc", true),
            (P::Suffix("bc".into()), false, "abc", true),
            (P::Suffix("bc".into()), false, "c", false),
            (P::Suffix("BC".into()), true, "abc", true),
            (P::Contains("b".into()), false, "abc", true),
            (P::Contains("B".into()), false, "abc", false),
            (P::Contains("B".into()), true, "abc", true),
            (P::Contains("abcd".into()), true, "abc", false),
            (regex.clone(), false, "abc", true),
            (regex.clone(), false, "abcd", false),
        ] {
            let matcher = compile(pattern.clone(), ignore_case).unwrap();
            assert_eq!(matcher.matches(value), wanted, "{pattern:?} {ignore_case} {value}");
        }
    }

    #[test]
    fn refuses() {
        assert!(compile(P::Prefix("".into()), false).unwrap_err().contains("prefix"));
        let regex = P::SafeRegex(proto::RegexMatcher { regex: "a".into(), ..Default::default() });
        assert!(compile(regex, true).unwrap_err().contains("ignore_case"));
        let custom = nuncio_proto::xds::core::v3::TypedExtensionConfig { name: "lua".into(), typed_config: None };
        assert!(compile(P::Custom(custom), false).unwrap_err().contains("lua"));
        let mut report = Report::new();
        assert!(StringMatcher::compile(&Default::default(), &At::Root, &mut report).is_none());
    }
}
