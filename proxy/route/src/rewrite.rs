//! Path and host rewriting of a forwarded request. Source: RouteAction.prefix_rewrite, regex_rewrite, path_rewrite_policy,
//! path_rewrite, host_rewrite_specifier; Envoy's `RouteEntryImplBase::finalizeRequestHeaders`.

use crate::cx::RouteCx;
use crate::path::PathCondition;
use http::{HeaderName, HeaderValue};
use nuncio_core::diag::{At, Report};
use nuncio_core::{ByteStr, HeaderKey, RequestHead};
use nuncio_format::{FormatContext, Formatter};
use nuncio_matcher::path::without_query;
use nuncio_matcher::{RegexRewrite, UriTemplateRewrite};
use nuncio_proto::envoy::config::route::v3::RouteAction;
use nuncio_proto::envoy::config::route::v3::route_action::HostRewriteSpecifier;

pub(crate) static X_ENVOY_ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");
static X_ENVOY_ORIGINAL_HOST: HeaderName = HeaderName::from_static("x-envoy-original-host");
static X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// How the path changes.
#[derive(Debug)]
pub(crate) enum PathRewrite {
    /// Replaces what the route matched: so many bytes, or all of the path.
    Prefix {
        text: Box<str>,
        matched: Option<usize>,
    },
    /// Replaces matches in the path without query.
    Regex(RegexRewrite),
    Template(UriTemplateRewrite),
    /// The new path without query.
    Format(Formatter),
}

impl PathRewrite {
    /// Compiles the rewrite of a route action; the outer `None` means refused.
    pub fn compile(action: &RouteAction, condition: &PathCondition, at: &At<'_>, cx: &mut RouteCx<'_>) -> Option<Option<Self>> {
        let given = [
            !action.prefix_rewrite.is_empty(),
            action.regex_rewrite.is_some(),
            action.path_rewrite_policy.is_some(),
            !action.path_rewrite.is_empty(),
        ];
        if given.into_iter().filter(|g| *g).count() > 1 {
            return cx.refuse(
                at,
                "more than one path rewrite",
                "keep one of prefix_rewrite, regex_rewrite, path_rewrite_policy, path_rewrite",
            );
        }
        if !action.prefix_rewrite.is_empty() {
            if let PathCondition::Template(_) = condition {
                return cx.refuse(&at.field("prefix_rewrite"), "prefix_rewrite beside path_match_policy", "use path_rewrite_policy");
            }
            return Some(Some(Self::Prefix { text: action.prefix_rewrite.as_str().into(), matched: condition.rewritten_length() }));
        }
        if let Some(regex) = &action.regex_rewrite {
            return Some(Some(Self::Regex(RegexRewrite::compile(regex, &at.field("regex_rewrite"), cx.report)?)));
        }
        if let Some(policy) = &action.path_rewrite_policy {
            let at = at.field("path_rewrite_policy");
            let PathCondition::Template(template) = condition else {
                return cx.refuse(&at, "path_rewrite_policy without path_match_policy", "match with a uri_template");
            };
            let at = at.field("typed_config");
            let Some(config) = &policy.typed_config else {
                return cx.refuse(&at, "nothing", "configure envoy.path.rewrite.uri_template.uri_template_rewriter");
            };
            return Some(Some(Self::Template(UriTemplateRewrite::compile(config, template, &at, cx.report)?)));
        }
        if !action.path_rewrite.is_empty() {
            return Some(Some(Self::Format(Formatter::text_with(&action.path_rewrite, &[], true, &at.field("path_rewrite"), cx.report)?)));
        }
        Some(None)
    }
    /// The new path, query included; none if it stays.
    pub fn apply(&self, path: &str, cx: impl FnOnce(&mut dyn FnMut(&FormatContext<'_>))) -> Option<String> {
        match self {
            Self::Prefix { text, matched } => Some(replace_prefix(path, *matched, text)),
            Self::Regex(regex) => replace_regex(path, regex),
            Self::Template(template) => {
                let only = without_query(path);
                let new = template.rewrite(only).filter(|new| !new.is_empty())?;
                Some(new + path.get(only.len()..).unwrap_or_default())
            }
            Self::Format(format) => {
                let mut new = String::new();
                cx(&mut |cx| format.format(cx, &mut new));
                (!new.is_empty()).then(|| new + path.get(without_query(path).len()..).unwrap_or_default())
            }
        }
    }
}

/// `path` with its first `matched` bytes (none: all but the query) replaced by `text`.
pub(crate) fn replace_prefix(path: &str, matched: Option<usize>, text: &str) -> String {
    let end = matched.unwrap_or_else(|| without_query(path).len());
    // A filter may have shortened the path since it was matched.
    [text, path.get(end..).unwrap_or_default()].concat()
}

/// `path` with the matches of `regex` in the part before the query replaced; none if nothing is left of it.
pub(crate) fn replace_regex(path: &str, regex: &RegexRewrite) -> Option<String> {
    let only = without_query(path);
    let new = regex.replace_all(only);
    (!new.is_empty()).then(|| [&new, path.get(only.len()..).unwrap_or_default()].concat())
}

/// How the host changes.
#[derive(Debug)]
pub(crate) enum HostRewrite {
    Literal(ByteStr),
    /// The router sets the host name of the chosen endpoint.
    Auto,
    Header(HeaderKey),
    PathRegex(RegexRewrite),
    Format(Formatter),
}

impl HostRewrite {
    /// Compiles `host_rewrite_specifier`; the outer `None` means refused.
    pub fn compile(action: &RouteAction, at: &At<'_>, cx: &mut RouteCx<'_>) -> Option<Option<Self>> {
        Some(match &action.host_rewrite_specifier {
            None | Some(HostRewriteSpecifier::AutoHostRewrite(false)) => None,
            Some(HostRewriteSpecifier::AutoHostRewrite(true)) => Some(Self::Auto),
            Some(HostRewriteSpecifier::HostRewriteLiteral(host)) => {
                literal(host, &at.field("host_rewrite_literal"), cx.report)?.map(Self::Literal)
            }
            Some(HostRewriteSpecifier::HostRewriteHeader(name)) if name.is_empty() => None,
            Some(HostRewriteSpecifier::HostRewriteHeader(name)) => match HeaderKey::parse(name) {
                Some(key) => Some(Self::Header(key)),
                None => return cx.refuse(&at.field("host_rewrite_header"), format!("\"{name}\""), "give a valid header name"),
            },
            Some(HostRewriteSpecifier::HostRewritePathRegex(regex)) => {
                Some(Self::PathRegex(RegexRewrite::compile(regex, &at.field("host_rewrite_path_regex"), cx.report)?))
            }
            Some(HostRewriteSpecifier::HostRewrite(format)) if format.is_empty() => None,
            Some(HostRewriteSpecifier::HostRewrite(format)) => {
                Some(Self::Format(Formatter::text_with(format, &[], false, &at.field("host_rewrite"), cx.report)?))
            }
        })
    }
    /// The new host; none if it stays.
    pub fn apply(&self, request: &RequestHead, cx: impl FnOnce(&mut dyn FnMut(&FormatContext<'_>))) -> Option<ByteStr> {
        let host = match self {
            Self::Literal(host) => host.clone(),
            Self::Auto => return None,
            Self::Header(HeaderKey::Name(name)) => text(request.headers.get(name)?.as_bytes())?,
            Self::Header(key) => text(&request.header(key)?)?,
            Self::PathRegex(regex) => ByteStr::from(regex.replace_all(without_query(request.path.as_str())).as_ref()),
            Self::Format(format) => {
                let mut host = String::new();
                cx(&mut |cx| format.format(cx, &mut host));
                ByteStr::from(host)
            }
        };
        (!host.is_empty()).then_some(host)
    }
}

fn text(bytes: &[u8]) -> Option<ByteStr> {
    std::str::from_utf8(bytes).ok().map(ByteStr::from)
}

/// A host that configuration gives; empty is none. The outer `None` means refused.
pub(crate) fn literal(host: &str, at: &At<'_>, report: &mut Report) -> Option<Option<ByteStr>> {
    if HeaderValue::from_str(host).is_err() {
        report.error(at, format!("\"{}\"", host.escape_debug()), "remove the characters that a header value cannot hold");
        return None;
    }
    Some((!host.is_empty()).then(|| ByteStr::from(host)))
}

/// Sets the host. `append_forwarded` appends the old one to `x-forwarded-host` unless it is the last one there; `keep_original`
/// leaves it in `x-envoy-original-host`.
pub fn update_authority(request: &mut RequestHead, host: ByteStr, append_forwarded: bool, keep_original: bool) {
    let old = std::mem::replace(&mut request.authority, host);
    if old.is_empty() {
        return;
    }
    let Ok(value) = HeaderValue::from_maybe_shared(old.into_bytes()) else { return };
    if keep_original {
        request.headers.insert(X_ENVOY_ORIGINAL_HOST.clone(), value.clone());
    }
    if append_forwarded {
        match request.headers.get(&X_FORWARDED_HOST).filter(|v| !v.is_empty()) {
            None => request.headers.insert(X_FORWARDED_HOST.clone(), value.clone()),
            Some(existing) => {
                // Compared as it stands, blanks included, as Envoy does.
                let last = existing.as_bytes().rsplit(|b| *b == b',').next();
                if last != Some(value.as_bytes()) {
                    let all = [existing.as_bytes(), b",", value.as_bytes()].concat();
                    if let Ok(all) = HeaderValue::from_bytes(&all) {
                        request.headers.insert(X_FORWARDED_HOST.clone(), all);
                    }
                }
            }
        }
    }
}
