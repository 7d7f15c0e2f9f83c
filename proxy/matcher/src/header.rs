//! `HeaderMatcher`: conditions on one header of a request, response or trailer map. Several fields of one name are looked at one
//! by one, so that a rule about `admin` sees `x-role: user` beside `x-role: admin` (CVE-2026-26308). Headers that Envoy's codec
//! joins when they arrive are seen joined. Source: `envoy/config/route/v3/route_components.proto`, Envoy 1.40's release notes.

use crate::{Regex, StringMatcher, compile_all};
use nuncio_core::diag::{At, Report};
use nuncio_core::message::joined;
use nuncio_core::{HeaderKey, Headers, RequestHead, ResponseHead};
use nuncio_proto::envoy::config::route::v3 as proto;
use std::borrow::Cow;

/// Where headers are looked up.
pub trait HeaderLookup {
    /// All values of `key` joined by `,`; none if absent.
    fn lookup<'a>(&'a self, key: &HeaderKey) -> Option<Cow<'a, [u8]>>;
    /// The fields in which ordinary headers are.
    fn fields(&self) -> &Headers;
}

impl HeaderLookup for RequestHead {
    fn lookup<'a>(&'a self, key: &HeaderKey) -> Option<Cow<'a, [u8]>> {
        self.header(key)
    }
    fn fields(&self) -> &Headers {
        &self.headers
    }
}
impl HeaderLookup for ResponseHead {
    fn lookup<'a>(&'a self, key: &HeaderKey) -> Option<Cow<'a, [u8]>> {
        self.header(key)
    }
    fn fields(&self) -> &Headers {
        &self.headers
    }
}
impl HeaderLookup for Headers {
    fn lookup<'a>(&'a self, key: &HeaderKey) -> Option<Cow<'a, [u8]>> {
        match key {
            HeaderKey::Name(name) => joined(self, name),
            _ => None,
        }
    }
    fn fields(&self) -> &Headers {
        self
    }
}

/// Headers whose fields Envoy's header map joins when they arrive (its inline headers). Sorted.
const JOINED: &[&str] = &[
    "accept",
    "accept-encoding",
    "access-control-request-headers",
    "access-control-request-method",
    "authorization",
    "cache-control",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "etag",
    "expect",
    "grpc-accept-encoding",
    "grpc-timeout",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "keep-alive",
    "origin",
    "pragma",
    "proxy-connection",
    "referer",
    "te",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "via",
    "x-client-trace-id",
    "x-envoy-external-address",
    "x-envoy-internal",
    "x-forwarded-client-cert",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-request-id",
];

/// A compiled `HeaderMatcher`.
#[derive(Clone, Debug)]
pub struct HeaderMatcher {
    key: HeaderKey,
    test: Test,
    invert: bool,
    missing_is_empty: bool,
    /// Look at the fields joined instead of one by one.
    joined: bool,
}

#[derive(Clone, Debug)]
enum Test {
    Present(bool),
    String(StringMatcher),
    Regex(Regex),
    /// Start inclusive, end exclusive.
    Range(i64, i64),
    /// Deprecated `exact_match: ""`, which any value satisfies.
    AnyValue,
}

impl HeaderMatcher {
    /// Compiles one `HeaderMatcher`, the deprecated kinds included.
    #[allow(deprecated)]
    pub fn compile(proto: &proto::HeaderMatcher, at: &At<'_>, report: &mut Report) -> Option<Self> {
        use proto::header_matcher::HeaderMatchSpecifier as S;
        let Some(key) = HeaderKey::parse(&proto.name) else {
            report.error(&at.field("name"), format!("\"{}\"", proto.name), "give a valid header name");
            return None;
        };
        let text = |kind: &str, text: &str, report: &mut Report| {
            if text.is_empty() {
                report.error(&at.field(kind), "an empty text", "give at least one character");
                return None;
            }
            Some(())
        };
        let test = match &proto.header_match_specifier {
            None => Test::Present(true),
            Some(S::PresentMatch(present)) => Test::Present(*present),
            Some(S::StringMatch(s)) => Test::String(StringMatcher::compile(s, &at.field("string_match"), report)?),
            Some(S::ExactMatch(s)) if s.is_empty() => Test::AnyValue,
            Some(S::ExactMatch(s)) => Test::String(StringMatcher::exact(s)),
            Some(S::SafeRegexMatch(r)) => Test::Regex(Regex::compile(r, &at.field("safe_regex_match"), report)?),
            Some(S::PrefixMatch(s)) => {
                text("prefix_match", s, report)?;
                Test::String(StringMatcher::prefix(s))
            }
            Some(S::SuffixMatch(s)) => {
                text("suffix_match", s, report)?;
                Test::String(StringMatcher::suffix(s))
            }
            Some(S::ContainsMatch(s)) => {
                text("contains_match", s, report)?;
                Test::String(StringMatcher::contains(s))
            }
            Some(S::RangeMatch(range)) => Test::Range(range.start, range.end),
        };
        let joined = match &key {
            HeaderKey::Name(name) => JOINED.binary_search(&name.as_str()).is_ok(),
            _ => true,
        };
        Some(Self { key, test, invert: proto.invert_match, missing_is_empty: proto.treat_missing_header_as_empty, joined })
    }
    /// Compiles a repeated field.
    pub fn compile_list(protos: &[proto::HeaderMatcher], at: &At<'_>, report: &mut Report) -> Option<Box<[Self]>> {
        compile_all(protos, at, report, Self::compile)
    }
    /// The header that is looked at.
    pub fn key(&self) -> &HeaderKey {
        &self.key
    }
    /// Whether the header of `headers` satisfies the condition. A missing header satisfies none but `present_match`, not even an
    /// inverted one, unless it counts as empty.
    pub fn matches(&self, headers: &impl HeaderLookup) -> bool {
        let found = match &self.key {
            HeaderKey::Name(name) if !self.joined => {
                let mut values = headers.fields().get_all(name).map(|v| v.as_bytes()).peekable();
                values.peek().is_some().then(|| values.any(|v| self.test.holds(v)))
            }
            key => headers.lookup(key).map(|v| self.test.holds(&v)),
        };
        if let Test::Present(present) = self.test {
            let there = found.is_some() || self.missing_is_empty;
            return (there == present) != self.invert;
        }
        let matched = match found {
            Some(matched) => matched,
            None if self.missing_is_empty => self.test.holds(b""),
            None => return false,
        };
        matched != self.invert
    }
    /// Whether all of `matchers` match, which none at all do.
    pub fn all_match(matchers: &[Self], headers: &impl HeaderLookup) -> bool {
        matchers.iter().all(|m| m.matches(headers))
    }
}

impl Test {
    fn holds(&self, value: &[u8]) -> bool {
        match self {
            Self::Present(_) | Self::AnyValue => true,
            Self::String(s) => s.matches(value),
            Self::Regex(r) => r.matches(value),
            Self::Range(start, end) => std::str::from_utf8(value)
                .ok()
                .and_then(|v| v.trim_ascii().parse::<i64>().ok())
                .is_some_and(|v| (*start..*end).contains(&v)),
        }
    }
}

#[cfg(test)]
#[allow(deprecated)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue, Method};
    use nuncio_proto::envoy::r#type::matcher::v3::{RegexMatcher, StringMatcher as StringProto, string_matcher::MatchPattern};
    use nuncio_proto::envoy::r#type::v3::Int64Range;
    use proto::header_matcher::HeaderMatchSpecifier as S;

    fn head() -> RequestHead {
        let mut head = RequestHead::new(Method::POST, "shop.example:8080", "/cart?x=1");
        let fields =
            [("x-one", "1"), ("x-many", "a"), ("x-many", "b"), ("x-empty", ""), ("x-text", "Hello"), ("accept", "q"), ("accept", "r")];
        for (n, v) in fields {
            head.headers.append(HeaderName::from_static(n), HeaderValue::from_static(v));
        }
        head
    }
    fn run(name: &str, specifier: Option<S>, invert: bool, missing: bool) -> bool {
        let mut report = Report::new();
        let proto = proto::HeaderMatcher {
            name: name.into(),
            invert_match: invert,
            treat_missing_header_as_empty: missing,
            header_match_specifier: specifier,
        };
        let matcher = HeaderMatcher::compile(&proto, &At::Root, &mut report).unwrap_or_else(|| panic!("{}", report.summary()));
        matcher.matches(&head())
    }
    fn exact(s: &str) -> Option<S> {
        Some(S::StringMatch(StringProto { ignore_case: false, match_pattern: Some(MatchPattern::Exact(s.into())) }))
    }
    fn range(start: i64, end: i64) -> Option<S> {
        Some(S::RangeMatch(Int64Range { start, end }))
    }

    #[test]
    fn pseudo_headers() {
        assert!(run(":method", exact("POST"), false, false));
        assert!(run(":path", exact("/cart?x=1"), false, false));
        assert!(run(":authority", exact("shop.example:8080"), false, false));
        assert!(run("Host", exact("shop.example:8080"), false, false));
        assert!(run(":scheme", exact("http"), false, false));
    }

    #[test]
    fn several_fields_are_seen_one_by_one() {
        assert!(run("X-Many", exact("a"), false, false));
        assert!(run("x-many", exact("b"), false, false));
        assert!(!run("x-many", exact("a,b"), false, false));
        // Inverted: no field may match.
        assert!(!run("x-many", exact("b"), true, false));
        assert!(run("x-many", exact("c"), true, false));
        assert!(run("x-many", Some(S::PresentMatch(true)), false, false));
        // Envoy joins these when they arrive.
        assert!(run("accept", exact("q,r"), false, false));
        assert!(!run("accept", exact("q"), false, false));
        assert!(JOINED.is_sorted());
    }

    #[test]
    fn every_kind() {
        for (name, specifier, wanted) in [
            ("x-one", None, true),
            ("x-none", None, false),
            ("x-empty", None, true),
            ("x-one", Some(S::PresentMatch(true)), true),
            ("x-one", Some(S::PresentMatch(false)), false),
            ("x-none", Some(S::PresentMatch(false)), true),
            ("x-one", range(1, 2), true),
            ("x-one", range(0, 1), false),
            ("x-text", range(0, 10), false),
            ("x-text", Some(S::ExactMatch("Hello".into())), true),
            ("x-text", Some(S::ExactMatch(String::new())), true),
            ("x-text", Some(S::PrefixMatch("He".into())), true),
            ("x-text", Some(S::SuffixMatch("lo".into())), true),
            ("x-text", Some(S::ContainsMatch("ell".into())), true),
            ("x-text", Some(S::SafeRegexMatch(RegexMatcher { regex: "H.*o".into(), ..Default::default() })), true),
            ("x-text", Some(S::SafeRegexMatch(RegexMatcher { regex: "H".into(), ..Default::default() })), false),
        ] {
            assert_eq!(run(name, specifier.clone(), false, false), wanted, "{name} {specifier:?}");
        }
    }

    #[test]
    fn inversion_and_missing_headers() {
        assert!(run("x-one", exact("2"), true, false));
        // Missing: neither the condition nor its inversion holds ...
        assert!(!run("x-none", exact("2"), false, false));
        assert!(!run("x-none", exact("2"), true, false));
        // ... unless missing means empty.
        assert!(run("x-none", exact("2"), true, true));
        assert!(run("x-none", exact(""), false, true));
        assert!(run("x-none", range(0, 10), true, true));
        assert!(run("x-none", Some(S::PresentMatch(true)), true, false));
        assert!(!run("x-one", Some(S::PresentMatch(true)), true, false));
    }

    #[test]
    fn refuses_bad_names() {
        let mut report = Report::new();
        let bad = proto::HeaderMatcher { name: "a b".into(), ..Default::default() };
        assert!(HeaderMatcher::compile(&bad, &At::Root, &mut report).is_none());
        assert!(report.summary().starts_with("name: \"a b\""));
    }
}
