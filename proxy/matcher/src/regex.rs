//! Regular expressions as Envoy means them: RE2 syntax, whole-value match for matchers, all matches for rewrites.
//! Compiled on the control thread, used by any worker. Source: `envoy/type/matcher/v3/regex.proto`.

use crate::re2;
use nuncio_core::diag::{At, Report};
use nuncio_proto::envoy::r#type::matcher::v3 as proto;
use regex::bytes;
use std::borrow::Cow;
use std::sync::atomic::{AtomicU32, Ordering};

/// Bytes that one compiled expression may take, and bytes of its lazily built automaton per thread.
const SIZE_LIMIT: usize = 8 << 20;
const CACHE_LIMIT: usize = 512 << 10;

/// `re2.max_program_size.error_level`; Envoy's own default when the runtime does not say otherwise is set by the bootstrap.
static MAX_PROGRAM_SIZE: AtomicU32 = AtomicU32::new(u32::MAX);

/// Sets the runtime limit `re2.max_program_size.error_level` for expressions compiled from now on. Called by nuncio-control
/// when the runtime is loaded; without a call there is no limit but that of memory (8 MiB for each expression).
pub fn set_max_program_size(limit: u32) {
    MAX_PROGRAM_SIZE.store(limit, Ordering::Relaxed);
}

/// A regular expression that must match the whole value (`RE2::FullMatch`).
#[derive(Clone, Debug)]
pub struct Regex {
    compiled: bytes::Regex,
}

impl Regex {
    /// Compiles `RegexMatcher`.
    pub fn compile(proto: &proto::RegexMatcher, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let compiled = build(proto, true, at, report)?;
        Some(Self { compiled })
    }
    /// Compiles RE2 text. The error says what is wrong with it.
    pub fn new(pattern: &str) -> Result<Self, String> {
        Ok(Self { compiled: build_pattern(pattern, true)? })
    }
    /// Whether the expression matches all of `value`.
    pub fn matches(&self, value: impl AsRef<[u8]>) -> bool {
        self.compiled.is_match(value.as_ref())
    }
}

/// An expression and what replaces each of its matches: `RegexMatchAndSubstitute` (`RE2::GlobalReplace`).
#[derive(Clone, Debug)]
pub struct RegexRewrite {
    compiled: bytes::Regex,
    parts: Box<[Part]>,
}

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Text(Box<[u8]>),
    Group(usize),
}

impl RegexRewrite {
    /// Compiles `RegexMatchAndSubstitute`. A `\N` without such a group, or another escape than `\\`, is refused.
    pub fn compile(proto: &proto::RegexMatchAndSubstitute, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let Some(pattern) = &proto.pattern else {
            report.error(&at.field("pattern"), "no pattern", "set pattern.regex");
            return None;
        };
        let compiled = build(pattern, false, &at.field("pattern"), report)?;
        match parse_substitution(&proto.substitution, compiled.captures_len() - 1) {
            Ok(parts) => Some(Self { compiled, parts }),
            Err(why) => {
                report.error(
                    &at.field("substitution"),
                    format!("\"{}\": {why}", proto.substitution),
                    "use \\0 to \\9 for groups and \\\\ for a backslash",
                );
                None
            }
        }
    }
    /// `value` with every match replaced; borrowed if nothing matches.
    pub fn replace_all<'a>(&self, value: &'a str) -> Cow<'a, str> {
        match self.replace_all_bytes(value.as_bytes()) {
            Cow::Borrowed(_) => Cow::Borrowed(value),
            // Matches fall on character boundaries and the substitution is text, so the result is text.
            Cow::Owned(bytes) => String::from_utf8(bytes).map_or(Cow::Borrowed(value), Cow::Owned),
        }
    }
    /// As [`Self::replace_all`], for header values.
    pub fn replace_all_bytes<'a>(&self, value: &'a [u8]) -> Cow<'a, [u8]> {
        let mut out: Option<Vec<u8>> = None;
        let mut copied = 0;
        for found in self.compiled.captures_iter(value) {
            let Some(whole) = found.get(0) else { continue };
            let out = out.get_or_insert_with(|| Vec::with_capacity(value.len()));
            out.extend_from_slice(value.get(copied..whole.start()).unwrap_or_default());
            for part in &self.parts {
                match part {
                    Part::Text(text) => out.extend_from_slice(text),
                    Part::Group(n) => out.extend_from_slice(found.get(*n).map_or(&[], |m| m.as_bytes())),
                }
            }
            copied = whole.end();
        }
        match out {
            None => Cow::Borrowed(value),
            Some(mut out) => {
                out.extend_from_slice(value.get(copied..).unwrap_or_default());
                Cow::Owned(out)
            }
        }
    }
}

fn parse_substitution(text: &str, groups: usize) -> Result<Box<[Part]>, String> {
    let mut parts = Vec::new();
    let mut literal = Vec::new();
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        if b != b'\\' {
            literal.push(b);
            continue;
        }
        match bytes.next() {
            Some(b'\\') => literal.push(b'\\'),
            Some(digit @ b'0'..=b'9') => {
                let n = usize::from(digit - b'0');
                if n > groups {
                    return Err(format!("\\{n} names a group that the pattern does not have (it has {groups})"));
                }
                if !literal.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut literal).into()));
                }
                parts.push(Part::Group(n));
            }
            _ => return Err("a backslash must be followed by a digit or a backslash".to_string()),
        }
    }
    if !literal.is_empty() {
        parts.push(Part::Text(literal.into()));
    }
    Ok(parts.into())
}

#[allow(deprecated)]
fn build(proto: &proto::RegexMatcher, whole: bool, at: &At<'_>, report: &mut Report) -> Option<bytes::Regex> {
    let at = at.field("regex");
    if proto.regex.is_empty() {
        report.error(&at, "an empty regular expression", "give an expression in RE2 syntax");
        return None;
    }
    let found = || format!("regular expression \"{}\"", proto.regex);
    let limit = match &proto.engine_type {
        Some(proto::regex_matcher::EngineType::GoogleRe2(re2)) => re2.max_program_size,
        None => None,
    };
    let limit = limit.unwrap_or_else(|| MAX_PROGRAM_SIZE.load(Ordering::Relaxed));
    match re2::program_size(&proto.regex) {
        Err(why) => {
            report.error(&at, format!("{}: {why}", found()), "use RE2 syntax");
            return None;
        }
        Ok(size) if size > u64::from(limit) => {
            report.error(
                &at,
                format!("{} has an RE2 program size of about {size}", found()),
                format!("the limit is {limit}: simplify it, or raise the runtime key re2.max_program_size.error_level"),
            );
            return None;
        }
        Ok(_) => {}
    }
    match build_pattern(&proto.regex, whole) {
        Ok(compiled) => Some(compiled),
        Err(why) => {
            report.error(&at, format!("{}: {why}", found()), "use RE2 syntax");
            None
        }
    }
}

fn build_pattern(pattern: &str, whole: bool) -> Result<bytes::Regex, String> {
    let translated = re2::translate(pattern)?;
    let text = if whole { format!(r"\A(?:{translated})\z") } else { translated };
    bytes::RegexBuilder::new(&text).size_limit(SIZE_LIMIT).dfa_size_limit(CACHE_LIMIT).build().map_err(|e| re2::explain(&e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewrite(pattern: &str, substitution: &str) -> Result<RegexRewrite, String> {
        let mut report = Report::new();
        let proto = proto::RegexMatchAndSubstitute {
            pattern: Some(proto::RegexMatcher { regex: pattern.into(), ..Default::default() }),
            substitution: substitution.into(),
        };
        RegexRewrite::compile(&proto, &At::Root, &mut report).ok_or_else(|| report.summary())
    }

    #[test]
    fn matches_the_whole_value() {
        let re = Regex::new("/api/v[0-9]+").unwrap();
        assert!(re.matches("/api/v12"));
        assert!(!re.matches("/api/v12/"));
        assert!(!re.matches("x/api/v12"));
        // The leftmost alternative is a prefix of the value: the other one must still be found.
        assert!(Regex::new("a|ab").unwrap().matches("ab"));
        assert!(Regex::new("(?i)abc").unwrap().matches("aBC"));
        // Not UTF-8: `.` is a character, so it does not match a stray byte.
        assert!(!Regex::new(".").unwrap().matches(b"\xff"));
        assert!(!Regex::new("a.b").unwrap().matches("a\nb"));
    }

    #[test]
    fn replaces_every_match() {
        for (pattern, substitution, value, wanted) in [
            ("^/service/([^/]+)(/.*)$", r"\2/instance/\1", "/service/foo/v1/api", "/v1/api/instance/foo"),
            ("one", "two", "/xxx/one/yyy/one/zzz", "/xxx/two/yyy/two/zzz"),
            ("^(.*?)one(.*)$", r"\1two\2", "/xxx/one/yyy/one/zzz", "/xxx/two/yyy/one/zzz"),
            ("(?i)/xxx/", "/yyy/", "/aaa/XxX/bbb", "/aaa/yyy/bbb"),
            ("b*", "-", "abc", "-a-c-"),
            ("x", r"\\\0", "axb", r"a\xb"),
            ("none", "z", "abc", "abc"),
        ] {
            assert_eq!(rewrite(pattern, substitution).unwrap().replace_all(value), wanted, "{pattern}");
        }
        assert!(rewrite("(a)", r"\2").unwrap_err().contains("substitution"));
        assert!(rewrite("(a)", r"\n").unwrap_err().contains("backslash"));
    }

    #[test]
    fn refuses_with_field_and_value() {
        let mut report = Report::new();
        let bad = proto::RegexMatcher { regex: "(a".into(), ..Default::default() };
        assert!(Regex::compile(&bad, &At::Root.field("safe_regex"), &mut report).is_none());
        let text = report.summary();
        assert!(text.starts_with("safe_regex.regex: regular expression \"(a\""), "{text}");
        #[allow(deprecated)]
        let big = proto::RegexMatcher {
            regex: "(a{100}){100}".into(),
            engine_type: Some(proto::regex_matcher::EngineType::GoogleRe2(proto::regex_matcher::GoogleRe2 { max_program_size: Some(100) })),
        };
        let mut report = Report::new();
        assert!(Regex::compile(&big, &At::Root, &mut report).is_none());
        assert!(report.summary().contains("program size"), "{}", report.summary());
    }
}
