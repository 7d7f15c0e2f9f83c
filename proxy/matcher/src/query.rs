//! `QueryParameterMatcher` and `CookieMatcher`. Values are compared as they were sent, not percent-decoded.
//! Source: `envoy/config/route/v3/route_components.proto`, Envoy's `router/config_utility.cc`.

use crate::{StringMatcher, compile_all};
use nuncio_core::diag::{At, Report};
use nuncio_core::{Headers, RequestHead};
use nuncio_proto::envoy::config::route::v3 as proto;
use std::borrow::Cow;

/// The first value of parameter `name` in `query` (the text after `?`); empty if it has no `=`.
pub fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| match pair.split_once('=') {
        Some((key, value)) if key == name => Some(value),
        None if pair == name => Some(""),
        _ => None,
    })
}

/// `text` with `%41` as `A`; what is no escape stays, and so does `+`.
pub fn decoded(text: &str) -> Cow<'_, [u8]> {
    if !text.contains('%') {
        return Cow::Borrowed(text.as_bytes());
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(b) = bytes.get(at) {
        let hex = |i: usize| bytes.get(i).and_then(|b| char::from(*b).to_digit(16));
        match (*b, hex(at + 1), hex(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 3;
            }
            _ => {
                out.push(*b);
                at += 1;
            }
        }
    }
    Cow::Owned(out)
}

/// The value of cookie `name`, without surrounding quotes; the first one if there are several.
pub fn cookie<'a>(headers: &'a Headers, name: &str) -> Option<&'a str> {
    headers.iter().filter(|(n, _)| **n == http::header::COOKIE).find_map(|(_, value)| {
        let text = std::str::from_utf8(value.as_bytes()).ok()?;
        text.split(';').find_map(|pair| {
            let (key, value) = pair.split_once('=')?;
            (key.trim_ascii_start() == name).then(|| unquoted(value.trim_ascii()))
        })
    })
}

fn unquoted(value: &str) -> &str {
    value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value)
}

/// A compiled `QueryParameterMatcher`.
#[derive(Clone, Debug)]
pub struct QueryParameterMatcher {
    name: Box<str>,
    test: Test,
}

#[derive(Clone, Debug)]
enum Test {
    Present(bool),
    String(StringMatcher),
}

impl QueryParameterMatcher {
    /// Compiles one `QueryParameterMatcher`; without a condition the parameter must be present.
    pub fn compile(proto: &proto::QueryParameterMatcher, at: &At<'_>, report: &mut Report) -> Option<Self> {
        use proto::query_parameter_matcher::QueryParameterMatchSpecifier as S;
        if proto.name.is_empty() || proto.name.len() > 1024 {
            report.error(&at.field("name"), format!("a name of {} bytes", proto.name.len()), "give 1 to 1024 bytes");
            return None;
        }
        let test = match &proto.query_parameter_match_specifier {
            None => Test::Present(true),
            Some(S::PresentMatch(present)) => Test::Present(*present),
            Some(S::StringMatch(s)) => Test::String(StringMatcher::compile(s, &at.field("string_match"), report)?),
        };
        Some(Self { name: proto.name.as_str().into(), test })
    }
    /// Compiles a repeated field.
    pub fn compile_list(protos: &[proto::QueryParameterMatcher], at: &At<'_>, report: &mut Report) -> Option<Box<[Self]>> {
        compile_all(protos, at, report, Self::compile)
    }
    /// Whether the parameter's first value in `query` (the text after `?`, if there is one) satisfies the condition.
    pub fn matches(&self, query: Option<&str>) -> bool {
        let value = query.and_then(|q| parameter(q, &self.name));
        match &self.test {
            Test::Present(present) => value.is_some() == *present,
            Test::String(s) => value.is_some_and(|v| s.matches(v)),
        }
    }
    /// Whether all of `matchers` match.
    pub fn all_match(matchers: &[Self], request: &RequestHead) -> bool {
        matchers.is_empty() || {
            let query = request.query();
            matchers.iter().all(|m| m.matches(query))
        }
    }
}

/// A compiled `CookieMatcher`.
#[derive(Clone, Debug)]
pub struct CookieMatcher {
    name: Box<str>,
    value: StringMatcher,
    invert: bool,
}

impl CookieMatcher {
    /// Compiles one `CookieMatcher`.
    pub fn compile(proto: &proto::CookieMatcher, at: &At<'_>, report: &mut Report) -> Option<Self> {
        if proto.name.is_empty() || proto.name.len() > 1024 {
            report.error(&at.field("name"), format!("a name of {} bytes", proto.name.len()), "give 1 to 1024 bytes");
            return None;
        }
        let Some(value) = &proto.string_match else {
            report.error(&at.field("string_match"), "nothing", "say which value the cookie must have");
            return None;
        };
        let value = StringMatcher::compile(value, &at.field("string_match"), report)?;
        Some(Self { name: proto.name.as_str().into(), value, invert: proto.invert_match })
    }
    /// Compiles a repeated field.
    pub fn compile_list(protos: &[proto::CookieMatcher], at: &At<'_>, report: &mut Report) -> Option<Box<[Self]>> {
        compile_all(protos, at, report, Self::compile)
    }
    /// Whether the cookie satisfies the condition; a missing cookie satisfies the inverted one.
    pub fn matches(&self, headers: &Headers) -> bool {
        cookie(headers, &self.name).is_some_and(|v| self.value.matches(v)) != self.invert
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderValue, header};
    use nuncio_proto::envoy::r#type::matcher::v3::{StringMatcher as StringProto, string_matcher::MatchPattern};
    use proto::query_parameter_matcher::QueryParameterMatchSpecifier as S;

    fn exact(s: &str) -> StringProto {
        StringProto { ignore_case: false, match_pattern: Some(MatchPattern::Exact(s.into())) }
    }
    fn query(specifier: Option<S>, query: Option<&str>) -> bool {
        let proto = proto::QueryParameterMatcher { name: "q".into(), query_parameter_match_specifier: specifier };
        QueryParameterMatcher::compile(&proto, &At::Root, &mut Report::new()).unwrap().matches(query)
    }

    #[test]
    fn parameters() {
        for (specifier, text, wanted) in [
            (None, Some("q"), true),
            (None, Some("a=1&q=2"), true),
            (None, Some("qq=1"), false),
            (None, None, false),
            (Some(S::PresentMatch(false)), Some("a=1"), true),
            (Some(S::StringMatch(exact("2"))), Some("a=1&q=2&q=3"), true),
            (Some(S::StringMatch(exact("3"))), Some("a=1&q=2&q=3"), false),
            (Some(S::StringMatch(exact("a=b"))), Some("q=a=b"), true),
            (Some(S::StringMatch(exact(""))), Some("q"), true),
            (Some(S::StringMatch(exact(" "))), Some("q=%20"), false),
        ] {
            assert_eq!(query(specifier.clone(), text), wanted, "{specifier:?} {text:?}");
        }
    }

    #[test]
    fn cookies() {
        let mut headers = Headers::new();
        headers.append(header::COOKIE, HeaderValue::from_static("a=1; b=\"two\"; c"));
        headers.append(header::COOKIE, HeaderValue::from_static("d=4"));
        assert_eq!(cookie(&headers, "a"), Some("1"));
        assert_eq!(cookie(&headers, "b"), Some("two"));
        assert_eq!(cookie(&headers, "c"), None);
        assert_eq!(cookie(&headers, "d"), Some("4"));
        let matcher = |name: &str, value: &str, invert_match| {
            let proto = proto::CookieMatcher { name: name.into(), string_match: Some(exact(value)), invert_match };
            CookieMatcher::compile(&proto, &At::Root, &mut Report::new()).unwrap().matches(&headers)
        };
        assert!(matcher("a", "1", false));
        assert!(!matcher("a", "2", false));
        assert!(matcher("a", "2", true));
        assert!(matcher("x", "2", true));
    }
}
