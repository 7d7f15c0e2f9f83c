//! Redirects that a route answers itself. Source: RedirectAction, Envoy's `Http::Utility::newUri`.

use crate::path::PathCondition;
use crate::rewrite::{replace_prefix, replace_regex};
use http::{HeaderName, StatusCode};
use nuncio_core::diag::{At, Report};
use nuncio_core::{RequestHead, StreamInfo};
use nuncio_format::{FormatContext, Formatter};
use nuncio_matcher::RegexRewrite;
use nuncio_matcher::path::without_query;
use nuncio_proto::envoy::config::route::v3 as proto;
use std::fmt::Write;

static X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// A compiled redirect.
#[derive(Debug)]
pub struct Redirect {
    status: StatusCode,
    target: Target,
}

#[derive(Debug)]
enum Target {
    /// `require_tls`: the same URL with https.
    Tls,
    Configured(Box<Configured>),
}

#[derive(Debug)]
struct Configured {
    /// None keeps the request's.
    scheme: Option<Box<str>>,
    host: Option<Box<str>>,
    port: Option<u32>,
    path: PathChange,
    strip_query: bool,
}

#[derive(Debug)]
enum PathChange {
    None,
    /// The whole path; its own query wins over the request's.
    Path {
        path: Box<str>,
        has_query: bool,
    },
    Prefix {
        text: Box<str>,
        matched: Option<usize>,
    },
    Regex(RegexRewrite),
    /// The new path without query.
    Format(Formatter),
}

/// The protocol that the client used, as the connection manager settled it.
pub(crate) fn forwarded_proto(request: &RequestHead) -> &str {
    request.headers.get_str(&X_FORWARDED_PROTO).filter(|p| !p.is_empty()).unwrap_or(request.scheme.as_str())
}

impl Redirect {
    /// The redirect of `require_tls`.
    pub(crate) fn tls() -> Self {
        Self { status: StatusCode::MOVED_PERMANENTLY, target: Target::Tls }
    }
    /// Compiles `RedirectAction`.
    pub(crate) fn compile(action: &proto::RedirectAction, condition: &PathCondition, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let refuse = |at: &At<'_>, found: String, remedy: &str, report: &mut Report| {
            report.error(at, found, remedy);
            None
        };
        use proto::redirect_action::{PathRewriteSpecifier as P, RedirectResponseCode as Code, SchemeRewriteSpecifier as S};
        let status = match Code::try_from(action.response_code) {
            Ok(Code::MovedPermanently) => StatusCode::MOVED_PERMANENTLY,
            Ok(Code::Found) => StatusCode::FOUND,
            Ok(Code::SeeOther) => StatusCode::SEE_OTHER,
            Ok(Code::TemporaryRedirect) => StatusCode::TEMPORARY_REDIRECT,
            Ok(Code::PermanentRedirect) => StatusCode::PERMANENT_REDIRECT,
            Err(_) => {
                return refuse(&at.field("response_code"), action.response_code.to_string(), "use a value of RedirectResponseCode", report);
            }
        };
        let scheme = match &action.scheme_rewrite_specifier {
            None | Some(S::HttpsRedirect(false)) => None,
            Some(S::HttpsRedirect(true)) => Some("https".into()),
            Some(S::SchemeRedirect(scheme)) => (!scheme.is_empty()).then(|| scheme.as_str().into()),
        };
        let path = match &action.path_rewrite_specifier {
            None => PathChange::None,
            Some(P::PathRedirect(path)) if path.is_empty() => PathChange::None,
            Some(P::PathRedirect(path)) => PathChange::Path { path: path.as_str().into(), has_query: path.contains('?') },
            Some(P::PrefixRewrite(text)) if text.is_empty() => PathChange::None,
            Some(P::PrefixRewrite(text)) => {
                if let PathCondition::Template(_) = condition {
                    let found = "prefix_rewrite beside path_match_policy".to_string();
                    return refuse(&at.field("prefix_rewrite"), found, "use regex_rewrite", report);
                }
                PathChange::Prefix { text: text.as_str().into(), matched: condition.rewritten_length() }
            }
            Some(P::RegexRewrite(regex)) => PathChange::Regex(RegexRewrite::compile(regex, &at.field("regex_rewrite"), report)?),
            Some(P::PathRewrite(format)) if format.is_empty() => PathChange::None,
            Some(P::PathRewrite(format)) => PathChange::Format(Formatter::text_with(format, &[], true, &at.field("path_rewrite"), report)?),
        };
        crate::rewrite::literal(&action.host_redirect, &at.field("host_redirect"), report)?;
        if action.port_redirect > 65_535 {
            return refuse(&at.field("port_redirect"), action.port_redirect.to_string(), "give a port up to 65535", report);
        }
        let target = Configured {
            scheme,
            host: (!action.host_redirect.is_empty()).then(|| action.host_redirect.as_str().into()),
            port: (action.port_redirect != 0).then_some(action.port_redirect),
            path,
            strip_query: action.strip_query,
        };
        Some(Self { status, target: Target::Configured(Box::new(target)) })
    }
    /// Compiles the `RedirectAction` of a filter: no route's path is there to be rewritten.
    pub fn compile_alone(action: &proto::RedirectAction, at: &At<'_>, report: &mut Report) -> Option<Self> {
        Self::compile(action, &PathCondition::Connect, at, report)
    }
    /// 301, 302, 303, 307 or 308.
    pub fn status(&self) -> u16 {
        self.status.as_u16()
    }
    /// The `location` for `request`.
    pub fn location(&self, request: &RequestHead, info: &StreamInfo) -> String {
        match &self.target {
            Target::Tls => format!("https://{}{}", request.authority, request.path),
            Target::Configured(target) => target.location(request, info),
        }
    }
}

impl Configured {
    fn location(&self, request: &RequestHead, info: &StreamInfo) -> String {
        let path = request.path.as_str();
        let rewritten;
        let mut out = String::with_capacity(request.authority.len() + path.len() + 16);
        let scheme = self.scheme.as_deref().unwrap_or_else(|| request.scheme.as_str());
        out.push_str(scheme);
        out.push_str("://");
        match &self.host {
            Some(host) => out.push_str(host),
            None => out.push_str(self.request_host(request, scheme)),
        }
        if let Some(port) = self.port {
            // Writing to a String cannot fail.
            let _ = write!(out, ":{port}");
        }
        let new = match &self.path {
            PathChange::Path { path: new, has_query } => {
                out.push_str(new);
                if !has_query && !self.strip_query {
                    out.push_str(path.find('?').and_then(|q| path.get(q..)).unwrap_or_default());
                }
                return out;
            }
            PathChange::None => path,
            PathChange::Prefix { text, matched } => {
                rewritten = replace_prefix(path, *matched, text);
                &rewritten
            }
            PathChange::Regex(regex) => {
                rewritten = replace_regex(path, regex).unwrap_or_else(|| path.to_string());
                &rewritten
            }
            PathChange::Format(format) => {
                let mut new = String::new();
                format.format(&FormatContext::request(info, request), &mut new);
                rewritten = if new.is_empty() { path.to_string() } else { new + path.get(without_query(path).len()..).unwrap_or_default() };
                &rewritten
            }
        };
        let end = if self.strip_query { new.find('?').unwrap_or(new.len()) } else { new.len() };
        out.push_str(new.get(..end).unwrap_or(new));
        out
    }
    /// The request's host. Its port goes if the redirect has one, and if it is the default port of a scheme that changes.
    fn request_host<'a>(&self, request: &'a RequestHead, scheme: &str) -> &'a str {
        let host = request.authority.as_str();
        let bare = crate::domains::split_port(host).0;
        let Some(port) = host.strip_prefix(bare).filter(|p| !p.is_empty()) else { return host };
        let proto = forwarded_proto(request);
        let default = scheme != proto && ((proto == "https" && port == ":443") || (proto == "http" && port == ":80"));
        if self.port.is_some() || default { bare } else { host }
    }
}

/// Whether the request comes from inside the mesh (`x-envoy-internal: true`).
pub(crate) fn is_internal(request: &RequestHead) -> bool {
    static X_ENVOY_INTERNAL: HeaderName = HeaderName::from_static("x-envoy-internal");
    request.headers.get(&X_ENVOY_INTERNAL).is_some_and(|v| v.as_bytes() == b"true")
}
