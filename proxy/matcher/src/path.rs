//! `PathMatcher`: a string matcher on the path without query and fragment. Source: `envoy/type/matcher/v3/path.proto`.

use crate::StringMatcher;
use nuncio_core::diag::{At, Report};
use nuncio_proto::envoy::r#type::matcher::v3 as proto;

/// A compiled `PathMatcher`.
#[derive(Clone, Debug)]
pub struct PathMatcher(StringMatcher);

impl PathMatcher {
    /// Compiles `PathMatcher`.
    pub fn compile(matcher: &proto::PathMatcher, at: &At<'_>, report: &mut Report) -> Option<Self> {
        match &matcher.rule {
            Some(proto::path_matcher::Rule::Path(path)) => Some(Self(StringMatcher::compile(path, &at.field("path"), report)?)),
            None => {
                report.error(at, "no rule", "set path");
                None
            }
        }
    }
    /// Whether `path`, its query and fragment ignored, matches.
    pub fn matches(&self, path: &str) -> bool {
        self.0.matches(without_query(path))
    }
}

/// `path` up to the first `?` or `#`.
pub fn without_query(path: &str) -> &str {
    path.find(['?', '#']).and_then(|end| path.get(..end)).unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::{StringMatcher as StringProto, string_matcher::MatchPattern};

    #[test]
    fn ignores_query_and_fragment() {
        let rule = StringProto { ignore_case: false, match_pattern: Some(MatchPattern::Exact("/a".into())) };
        let proto = proto::PathMatcher { rule: Some(proto::path_matcher::Rule::Path(rule)) };
        let matcher = PathMatcher::compile(&proto, &At::Root, &mut Report::new()).unwrap();
        assert!(matcher.matches("/a"));
        assert!(matcher.matches("/a?b=/c"));
        assert!(matcher.matches("/a#x?y"));
        assert!(!matcher.matches("/a/"));
    }
}
