//! The path condition of a route. Source: RouteMatch.path_specifier.

use crate::cx::RouteCx;
use nuncio_core::RequestHead;
use nuncio_core::diag::At;
use nuncio_matcher::path::without_query;
use nuncio_matcher::{Regex, UriTemplate};
use nuncio_proto::envoy::config::route::v3::RouteMatch;
use nuncio_proto::envoy::config::route::v3::route_match::PathSpecifier;
use std::borrow::Cow;
use std::sync::Arc;

/// A compiled path condition.
#[derive(Clone, Debug)]
pub(crate) enum PathCondition {
    Prefix {
        text: Box<str>,
        ignore_case: bool,
    },
    Exact {
        text: Box<str>,
        ignore_case: bool,
    },
    /// `/a` matches `/a` and `/a/b`, not `/ab`.
    Separated {
        text: Box<str>,
        ignore_case: bool,
    },
    Regex(Regex),
    Template(Arc<UriTemplate>),
    /// CONNECT requests, and nothing else.
    Connect,
}

/// The path of one request as routes see it.
pub(crate) struct RequestPath<'a> {
    /// None for CONNECT without a path, which only `connect_matcher` matches.
    pub exists: bool,
    /// Without query and fragment.
    pub path: &'a str,
    /// Also without path parameters, where the table ignores them.
    pub bare: Cow<'a, str>,
    pub is_connect: bool,
}

impl<'a> RequestPath<'a> {
    /// The path of `request`.
    pub fn new(request: &'a RequestHead, ignore_parameters: bool) -> Self {
        let path = without_query(request.path.as_str());
        let bare = if ignore_parameters { without_parameters(path) } else { Cow::Borrowed(path) };
        let udp = || request.protocol.as_ref().is_some_and(|p| p.eq_ignore_ascii_case("connect-udp"));
        Self { exists: !request.path.is_empty(), path, bare, is_connect: request.method == http::Method::CONNECT || udp() }
    }
}

/// `/a;x=1/b;y` without what follows a semicolon in each segment.
pub(crate) fn without_parameters(path: &str) -> Cow<'_, str> {
    if !path.contains(';') {
        return Cow::Borrowed(path);
    }
    let mut bare = String::with_capacity(path.len());
    for (i, segment) in path.split('/').enumerate() {
        if i > 0 {
            bare.push('/');
        }
        bare.push_str(segment.split(';').next().unwrap_or(segment));
    }
    Cow::Owned(bare)
}

fn starts_with(path: &str, prefix: &str, ignore_case: bool) -> bool {
    if !ignore_case {
        return path.starts_with(prefix);
    }
    path.as_bytes().get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix.as_bytes()))
}

impl PathCondition {
    /// Compiles the `path_specifier` of `route_match`.
    pub fn compile(route_match: &RouteMatch, at: &At<'_>, cx: &mut RouteCx<'_>) -> Option<Self> {
        let ignore_case = !route_match.case_sensitive.unwrap_or(true);
        match &route_match.path_specifier {
            Some(PathSpecifier::Prefix(text)) => Some(Self::Prefix { text: text.as_str().into(), ignore_case }),
            Some(PathSpecifier::Path(text)) => Some(Self::Exact { text: text.as_str().into(), ignore_case }),
            Some(PathSpecifier::PathSeparatedPrefix(text)) => {
                if text.len() < 2 || text.ends_with('/') || text.contains(['?', '#']) {
                    let remedy = "give at least two characters, no ? or #, and no / at the end";
                    return cx.refuse(&at.field("path_separated_prefix"), format!("\"{text}\""), remedy);
                }
                Some(Self::Separated { text: text.as_str().into(), ignore_case })
            }
            Some(PathSpecifier::SafeRegex(regex)) => Some(Self::Regex(Regex::compile(regex, &at.field("safe_regex"), cx.report)?)),
            Some(PathSpecifier::ConnectMatcher(_)) => Some(Self::Connect),
            Some(PathSpecifier::PathMatchPolicy(policy)) => {
                let at = at.field("path_match_policy");
                let at = at.field("typed_config");
                let Some(config) = &policy.typed_config else {
                    return cx.refuse(&at, "nothing", "configure envoy.path.match.uri_template.uri_template_matcher");
                };
                Some(Self::Template(Arc::new(UriTemplate::compile(config, &at, cx.report)?)))
            }
            None => cx.refuse(
                at,
                "no path_specifier",
                "set prefix, path, path_separated_prefix, safe_regex, connect_matcher or path_match_policy",
            ),
        }
    }
    /// Whether the request's path matches.
    pub fn matches(&self, path: &RequestPath<'_>) -> bool {
        if let Self::Connect = self {
            return path.is_connect;
        }
        if !path.exists {
            return false;
        }
        match self {
            Self::Prefix { text, ignore_case } => starts_with(&path.bare, text, *ignore_case),
            Self::Exact { text, ignore_case: false } => path.bare == text.as_ref(),
            Self::Exact { text, ignore_case: true } => path.bare.eq_ignore_ascii_case(text),
            Self::Separated { text, ignore_case } => {
                starts_with(&path.bare, text, *ignore_case) && matches!(path.bare.as_bytes().get(text.len()), None | Some(b'/'))
            }
            Self::Regex(regex) => regex.matches(path.bare.as_ref()),
            Self::Template(template) => template.matches(path.path),
            Self::Connect => path.is_connect,
        }
    }
    /// What a `prefix_rewrite` replaces: the length of the configured text, or none for all of the path.
    pub fn rewritten_length(&self) -> Option<usize> {
        match self {
            Self::Prefix { text, .. } | Self::Exact { text, .. } | Self::Separated { text, .. } => Some(text.len()),
            Self::Regex(_) | Self::Template(_) | Self::Connect => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;

    #[test]
    fn conditions() {
        let prefix = |t: &str, ignore_case| PathCondition::Prefix { text: t.into(), ignore_case };
        let exact = |t: &str, ignore_case| PathCondition::Exact { text: t.into(), ignore_case };
        let separated = |t: &str, ignore_case| PathCondition::Separated { text: t.into(), ignore_case };
        let regex = |t: &str| PathCondition::Regex(Regex::new(t).unwrap());
        for (condition, path, wanted) in [
            (prefix("/a", false), "/ab?x", true),
            (prefix("/a", false), "/A", false),
            (prefix("/a", true), "/AB", true),
            (prefix("", false), "/", true),
            // The query is not part of what is matched.
            (prefix("/a?x", false), "/a?x", false),
            (exact("/a", false), "/a?x=/b", true),
            (exact("/a", false), "/a/", false),
            (exact("/a", true), "/A#f", true),
            (separated("/a", false), "/a", true),
            (separated("/a", false), "/a/b", true),
            (separated("/a", false), "/a?b", true),
            (separated("/a", false), "/ab", false),
            (separated("/a", true), "/A/b", true),
            (regex("/a/[0-9]+"), "/a/12?x", true),
            (regex("/a/[0-9]+"), "/a/12/b", false),
            (PathCondition::Connect, "/a", false),
        ] {
            let head = RequestHead::new(Method::GET, "h", path);
            assert_eq!(condition.matches(&RequestPath::new(&head, false)), wanted, "{condition:?} {path}");
        }
        let connect = RequestHead::new(Method::CONNECT, "h:443", "");
        assert!(PathCondition::Connect.matches(&RequestPath::new(&connect, false)));
        assert!(!prefix("", false).matches(&RequestPath::new(&connect, false)));
    }

    #[test]
    fn path_parameters() {
        for (path, bare) in [("/a;x=1/b;y", "/a/b"), ("/a", "/a"), (";", ""), ("/;a/b", "//b")] {
            assert_eq!(without_parameters(path), bare);
        }
        let head = RequestHead::new(Method::GET, "h", "/a;x?y;z");
        assert_eq!(RequestPath::new(&head, true).bare, "/a");
        assert_eq!(RequestPath::new(&head, false).bare, "/a;x");
    }
}
