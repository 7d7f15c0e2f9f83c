//! Redirects of custom_response: another target is asked, and its answer goes to the client with the first one's status. Begun and finished
//! in the response phase, on the worker that owns the stream.
//! Source: `envoy/extensions/http/custom_response/redirect_policy/v3/redirect_policy.proto`, Envoy's `redirect_policy.cc`.

use http::StatusCode;
use nuncio_core::Exchange;
use nuncio_core::diag::{At, Report};
use nuncio_core::exchange::Again;
use nuncio_core::filter_state::StateObject;
use nuncio_core::stats::{Counter, Scope};
use nuncio_format::FormatContext;
use nuncio_proto::envoy::config::route::v3::redirect_action::PathRewriteSpecifier;
use nuncio_proto::envoy::extensions::http::custom_response::redirect_policy::v3::{
    RedirectPolicy, redirect_policy::RedirectActionSpecifier,
};
use nuncio_route::redirect::Redirect as RouteRedirect;
use nuncio_route::{AbsoluteUrl, HeaderParser};
use std::any::Any;
use std::sync::Arc;

/// Where the filter finds, when the answer comes, that it is one to a redirect.
const STATE: &str = "envoy.filters.http.custom_response";

/// A compiled redirect policy.
#[derive(Debug)]
pub struct Redirect {
    target: Target,
    /// In place of the first answer's status.
    status: Option<StatusCode>,
    request_headers: Arc<HeaderParser>,
    response_headers: HeaderParser,
    no_route: Counter,
    invalid_uri: Counter,
}

#[derive(Debug)]
enum Target {
    Uri(AbsoluteUrl),
    /// Made of the request's URL.
    Action(RouteRedirect),
}

impl Redirect {
    /// Compiles the policy; its stats are in `scope`.
    pub fn compile(policy: &RedirectPolicy, at: &At<'_>, scope: &Scope, report: &mut Report) -> Option<Self> {
        let target = match &policy.redirect_action_specifier {
            Some(RedirectActionSpecifier::Uri(uri)) => match parse(uri) {
                Some(url) => Target::Uri(url),
                None => {
                    report.error(&at.field("uri"), format!("\"{}\"", uri.escape_debug()), "give an absolute http or https URL");
                    return None;
                }
            },
            Some(RedirectActionSpecifier::RedirectAction(action)) => {
                let at = at.field("redirect_action");
                match &action.path_rewrite_specifier {
                    Some(PathRewriteSpecifier::PathRedirect(path)) if path.contains('#') => {
                        report.error(&at.field("path_redirect"), format!("\"{}\"", path.escape_debug()), "remove the fragment");
                        return None;
                    }
                    None | Some(PathRewriteSpecifier::PathRedirect(_)) => {}
                    Some(_) => {
                        report.unsupported(&at, "a rewrite of the path other than path_redirect, which Envoy ignores here,");
                        return None;
                    }
                }
                Target::Action(RouteRedirect::compile_alone(action, &at, report)?)
            }
            None => {
                report.error(at, "neither uri nor redirect_action", "set one of them");
                return None;
            }
        };
        if policy.modify_request_headers_action.is_some() {
            report.unsupported(&at.field("modify_request_headers_action"), "an extension that changes headers");
        }
        let status = match policy.status_code {
            None => None,
            Some(code) => match u16::try_from(code).ok().filter(|c| (100..600).contains(c)).map(StatusCode::from_u16) {
                Some(Ok(status)) => Some(status),
                _ => {
                    report.error(&at.field("status_code"), code.to_string(), "give a status from 100 to 599");
                    return None;
                }
            },
        };
        let request_headers =
            HeaderParser::compile(&policy.request_headers_to_add, &at.field("request_headers_to_add"), &[], &At::Root, report)?;
        let response_headers =
            HeaderParser::compile(&policy.response_headers_to_add, &at.field("response_headers_to_add"), &[], &At::Root, report)?;
        Some(Self {
            target,
            status,
            request_headers: Arc::new(request_headers),
            response_headers,
            no_route: scope.counter("custom_response_redirect_no_route"),
            invalid_uri: scope.counter("custom_response_invalid_uri"),
        })
    }

    /// Has another target asked in place of the response.
    pub fn begin(self: Arc<Self>, ex: &mut Exchange) {
        let url = match &self.target {
            Target::Uri(url) => Some(url.clone()),
            Target::Action(action) => parse(&action.location(&ex.request, &ex.info)),
        };
        let Some(AbsoluteUrl { scheme, authority, path }) = url else {
            self.invalid_uri.inc();
            return;
        };
        let Some(status) = ex.response.as_ref().map(|response| response.status) else { return };
        let headers = self.request_headers.clone();
        let change = move |ex: &mut Exchange| {
            let mut changed = ex.request.headers.clone();
            headers.apply(&mut changed, &FormatContext::exchange(ex));
            ex.request.headers = changed;
        };
        let no_route = self.no_route.clone();
        let state = Arc::new(Redirected { status: self.status.unwrap_or(status), policy: self });
        ex.again = Some(Box::new(Again { scheme, authority, path, change: Box::new(change), no_route, state: (STATE, state) }));
    }
}

/// An absolute URL that a request can be sent to.
fn parse(uri: &str) -> Option<AbsoluteUrl> {
    AbsoluteUrl::parse(uri.as_bytes()).filter(|url| matches!(url.scheme.as_str(), "http" | "https"))
}

/// In filter state of the stream that asks the target.
#[derive(Debug)]
struct Redirected {
    policy: Arc<Redirect>,
    status: StatusCode,
}

impl StateObject for Redirected {
    fn as_string(&self) -> Option<String> {
        None
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Finishes the answer to a redirect. False: it is none.
pub fn finish(ex: &mut Exchange) -> bool {
    let Some(Redirected { policy, status }) = ex.info.filter_state.get_as::<Redirected>(STATE) else { return false };
    let (policy, status) = (policy.clone(), *status);
    let Some(response) = &mut ex.response else { return true };
    let mut headers = response.headers.clone();
    policy.response_headers.apply(&mut headers, &FormatContext::exchange(ex));
    if let Some(response) = &mut ex.response {
        response.headers = headers;
        response.status = status;
    }
    true
}
