//! Internal redirects: a redirect of the upstream that the route lets the proxy follow. The request is changed to ask for the target, and
//! the connection manager begins it anew, filters and all. Runs on the worker that owns the stream.
//! Source: InternalRedirectPolicy, docs "HTTP connection management" (internal redirects), Envoy's `Filter::setupRedirect`.

use super::attempt::Try;
use super::finish;
use super::forward::Forwarding;
use crate::config::HcmConfig;
use crate::names::X_ENVOY_ORIGINAL_URL;
use crate::service::{entry, resolve_route};
use crate::stream::Active;
use http::{HeaderValue, Method, StatusCode, header};
use nuncio_core::message::joined;
use nuncio_core::views::RouteView;
use nuncio_core::{Body, Exchange, RequestHead, ResponseHead};
use nuncio_route::AbsoluteUrl;
use nuncio_route::internal_redirect::{InternalRedirectPolicy, RedirectPredicate};
use std::sync::Arc;

/// The redirects that one client's request took so far.
#[derive(Debug, Default)]
pub struct Redirects {
    taken: u32,
    /// Names of routes: from which, to which; for `previous_routes`.
    routes: Vec<(Arc<str>, Arc<str>)>,
}

impl Forwarding<'_> {
    /// Follows a redirect. The body of the request that asks for the target; none if the redirect goes to the client.
    pub(super) fn follow(&mut self, policy: &InternalRedirectPolicy, response: &Try) -> Option<Body> {
        // What is not there in full, or was not kept, cannot be asked for again.
        let replayable = self.pump.received_all() && self.pump.can_replay();
        let location = joined(&response.head.headers, &header::LOCATION).filter(|_| replayable);
        let followed = location.is_some_and(|location| redirect(self.active, policy, &response.head, &location));
        let traffic = &self.cluster.stats().traffic;
        if !followed {
            traffic.upstream_internal_redirect_failed_total.inc();
            return None;
        }
        traffic.upstream_internal_redirect_succeeded_total.inc();
        let ex = &mut *self.active.ex;
        finish::note_upstream(&mut ex.info, &response.stream);
        ex.info.details = Some("internal_redirect".into());
        ex.info.response_code = response.head.status.as_u16();
        ex.response = Some(response.head.clone());
        let body = self.pump.take_kept();
        if drops_body(response.head.status, &ex.request.method) { make_get(&mut ex.request) } else { Some(body) }
    }
}

/// Takes a filter's wish to ask another target ([`nuncio_core::exchange::Again`]). False, and the request as it was but for the headers
/// that the filter added, if no route leads there. Source: Envoy's custom_response `RedirectPolicy::encodeHeaders`.
pub fn again(config: &HcmConfig, ex: &mut Exchange) -> bool {
    let Some(again) = ex.again.take() else { return false };
    let request = &mut ex.request;
    let before = (
        std::mem::replace(&mut request.scheme, again.scheme),
        std::mem::replace(&mut request.authority, again.authority),
        std::mem::replace(&mut request.path, again.path),
    );
    ex.info.route_name = None;
    (again.change)(ex);
    resolve_route(config, ex);
    ex.info.upstream_mut().cluster = ex.cluster.clone();
    if ex.route.is_none() {
        again.no_route.inc();
        (ex.request.scheme, ex.request.authority, ex.request.path) = before;
        return false;
    }
    let (name, state) = again.state;
    ex.info.filter_state.set(name, state);
    ex.info.details = Some("internal_redirect".into());
    ex.info.response_code = ex.response.as_ref().map_or(0, |response| response.status.as_u16());
    make_get(&mut ex.request);
    true
}

/// RFC 9110, 15.4.4: a 303 is followed by GET.
fn drops_body(status: StatusCode, method: &Method) -> bool {
    status == StatusCode::SEE_OTHER && *method != Method::GET && *method != Method::HEAD
}

fn make_get(request: &mut RequestHead) -> Option<Body> {
    request.method = Method::GET;
    request.headers.remove(&header::CONTENT_LENGTH);
    Some(Body::Empty)
}

/// Turns the request into one for the target; false, and the request as it was, if the policy does not allow it.
fn redirect(active: &mut Active, policy: &InternalRedirectPolicy, response: &ResponseHead, location: &[u8]) -> bool {
    let config = active.config.clone();
    let stats = &config.stats;
    let Some(target) = AbsoluteUrl::parse(location) else {
        stats.passthrough_internal_redirect_bad_location.inc();
        return false;
    };
    let ex = &mut *active.ex;
    let from_http = ex.request.scheme.eq_ignore_ascii_case("http") || ex.info.connection.tls.is_none();
    let to_http = target.scheme == "http";
    if !policy.allow_cross_scheme_redirect && from_http != to_http {
        stats.passthrough_internal_redirect_unsafe_scheme.inc();
        return false;
    }
    if !to_http && target.scheme != "https" {
        stats.passthrough_internal_redirect_bad_location.inc();
        return false;
    }
    let mut redirects = active.redirects.take().unwrap_or_default();
    if redirects.taken >= policy.max_internal_redirects {
        active.redirects = Some(redirects);
        stats.passthrough_internal_redirect_too_many_redirects.inc();
        return false;
    }
    let before = ex.request.clone();
    for name in &policy.response_headers_to_copy {
        ex.request.headers.remove(name);
        for value in response.headers.get_all(name) {
            ex.request.headers.append(name.clone(), value.clone());
        }
    }
    ex.request.scheme = target.scheme.clone();
    ex.request.authority = target.authority;
    ex.request.path = target.path;
    let from = ex.route.as_ref().map(|r| RouteView::name(r.as_ref()).clone()).unwrap_or_default();
    ex.info.route_name = None;
    // As Envoy, whose filters and logs see the target's route from here on, even if the redirect is not followed.
    resolve_route(&config, ex);
    ex.info.upstream_mut().cluster = ex.cluster.clone();
    let refused = match entry(ex) {
        None => Some(&stats.passthrough_internal_redirect_no_route),
        Some(to) => {
            let to = RouteView::name(to);
            let accepts = |predicate: &RedirectPredicate| match predicate {
                RedirectPredicate::PreviousRoutes => redirects.visit(&from, to),
                RedirectPredicate::AllowListedRoutes(names) => names.iter().any(|name| **name == **to),
                RedirectPredicate::SafeCrossScheme => !from_http || to_http,
            };
            (!policy.predicates.iter().all(accepts)).then_some(&stats.passthrough_internal_redirect_predicate)
        }
    };
    if let Some(counter) = refused {
        counter.inc();
        ex.request = before;
        active.redirects = Some(redirects);
        return false;
    }
    redirects.taken += 1;
    active.redirects = Some(redirects);
    let scheme = if from_http { "http" } else { "https" };
    if let Ok(url) = HeaderValue::try_from(format!("{scheme}://{}{}", before.authority, before.path)) {
        ex.request.headers.insert(X_ENVOY_ORIGINAL_URL.clone(), url);
    }
    true
}

impl Redirects {
    /// Notes a redirect from one route to another; false if it was taken before.
    fn visit(&mut self, from: &Arc<str>, to: &Arc<str>) -> bool {
        if self.routes.iter().any(|(f, t)| f == from && t == to) {
            return false;
        }
        self.routes.push((from.clone(), to.clone()));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_is_visited_once_from_each_other() {
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let mut redirects = Redirects::default();
        assert!(redirects.visit(&a, &b) && redirects.visit(&b, &a));
        assert!(!redirects.visit(&a, &b));
    }
}
