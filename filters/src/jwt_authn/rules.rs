//! Which requests a rule is for: the part of `RouteMatch` that Envoy's jwt_authn looks at. Compiled on the control thread, run on
//! the workers. Source: Envoy's `jwt_authn/matcher.h`.

use http::Method;
use nuncio_core::RequestHead;
use nuncio_core::diag::{At, Report};
use nuncio_matcher::path::without_query;
use nuncio_matcher::{HeaderMatcher, QueryParameterMatcher, Regex, StringMatcher, UriTemplate};
use nuncio_proto::envoy::config::route::v3::{RouteMatch, route_match::PathSpecifier};
use nuncio_proto::envoy::r#type::matcher::v3::{self as matcher, string_matcher::MatchPattern};

/// A compiled `RequirementRule.match`.
#[derive(Debug)]
pub struct Rule {
    path: Path,
    headers: Box<[HeaderMatcher]>,
    query: Box<[QueryParameterMatcher]>,
}

#[derive(Debug)]
enum Path {
    String(StringMatcher),
    /// A prefix that ends where a segment does, and its length.
    Separated(StringMatcher, usize),
    Regex(Regex),
    Template(UriTemplate),
    Connect,
}

impl Rule {
    /// Compiles `route_match`; what Envoy does not look at is warned about.
    pub fn compile(route_match: &RouteMatch, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let m = route_match;
        let ignored = [
            ("runtime_fraction", m.runtime_fraction.is_some()),
            ("grpc", m.grpc.is_some()),
            ("tls_context", m.tls_context.is_some()),
            ("dynamic_metadata", !m.dynamic_metadata.is_empty()),
            ("filter_state", !m.filter_state.is_empty()),
            ("cookies", !m.cookies.is_empty()),
        ];
        for (field, _) in ignored.into_iter().filter(|(_, set)| *set) {
            report.warning(
                &at.field(field),
                "a condition",
                "rules of jwt_authn do not look at it, as in Envoy; the rule applies without it",
            );
        }
        let ignore_case = !m.case_sensitive.unwrap_or(true);
        let mut text = |pattern| StringMatcher::compile(&matcher::StringMatcher { match_pattern: Some(pattern), ignore_case }, at, report);
        let path = match &m.path_specifier {
            Some(PathSpecifier::Prefix(prefix)) if prefix.is_empty() => Path::String(StringMatcher::prefix("")),
            Some(PathSpecifier::Prefix(prefix)) => Path::String(text(MatchPattern::Prefix(prefix.clone()))?),
            Some(PathSpecifier::Path(path)) => Path::String(text(MatchPattern::Exact(path.clone()))?),
            Some(PathSpecifier::PathSeparatedPrefix(prefix)) => Path::Separated(text(MatchPattern::Prefix(prefix.clone()))?, prefix.len()),
            Some(PathSpecifier::SafeRegex(regex)) => Path::Regex(Regex::compile(regex, &at.field("safe_regex"), report)?),
            Some(PathSpecifier::ConnectMatcher(_)) => Path::Connect,
            Some(PathSpecifier::PathMatchPolicy(policy)) => {
                let at = at.field("path_match_policy");
                let config = policy.typed_config.clone().unwrap_or_default();
                Path::Template(UriTemplate::compile(&config, &at.field("typed_config"), report)?)
            }
            None => {
                report.error(at, "no path_specifier", "set prefix, path, path_separated_prefix, safe_regex or connect_matcher");
                return None;
            }
        };
        Some(Self {
            path,
            headers: HeaderMatcher::compile_list(&m.headers, &at.field("headers"), report)?,
            query: QueryParameterMatcher::compile_list(&m.query_parameters, &at.field("query_parameters"), report)?,
        })
    }
    /// Whether the rule is for `request`.
    pub fn matches(&self, request: &RequestHead) -> bool {
        let path = without_query(request.path.as_str());
        let by_path = match &self.path {
            Path::String(text) => text.matches(path),
            Path::Separated(prefix, length) => prefix.matches(path) && matches!(path.as_bytes().get(*length), None | Some(b'/')),
            Path::Regex(regex) => regex.matches(path),
            Path::Template(template) => template.matches(path),
            Path::Connect => request.method == Method::CONNECT || request.protocol.is_some(),
        };
        by_path && HeaderMatcher::all_match(&self.headers, request) && QueryParameterMatcher::all_match(&self.query, request)
    }
}
