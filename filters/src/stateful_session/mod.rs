//! envoy.filters.http.stateful_session: requests of one session go to one host, as long as it can take them. The session is named by a
//! cookie, a header, or an envelope around a header of the upstream's (see [`state`]). Compiled on the control thread, run on workers.
//! Source: `envoy/extensions/filters/http/stateful_session/v3/stateful_session.proto`.

mod state;
#[cfg(test)]
mod tests;

use crate::config::decode;
use nuncio_core::diag::At;
use nuncio_core::filter::{FilterAction, FilterCx, HttpFilter, Needs};
use nuncio_core::registry::{FactoryCx, HttpFilterFactory};
use nuncio_core::stats::Counter;
use nuncio_core::{ResponseFlags, UpstreamOverride};
use nuncio_proto::envoy::extensions::filters::http::stateful_session::v3 as proto;
use state::SessionState;
use std::any::Any;
use std::sync::Arc;

const UNAVAILABLE: u16 = 503;

/// Factory of `envoy.extensions.filters.http.stateful_session.v3.StatefulSession`.
#[derive(Debug)]
pub struct Factory;

impl HttpFilterFactory for Factory {
    fn name(&self) -> &'static str {
        "envoy.filters.http.stateful_session"
    }
    fn types(&self) -> &'static [&'static str] {
        &["envoy.extensions.filters.http.stateful_session.v3.StatefulSession"]
    }
    fn route_types(&self) -> &'static [&'static str] {
        &["envoy.extensions.filters.http.stateful_session.v3.StatefulSessionPerRoute"]
    }
    fn compile(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn HttpFilter>> {
        let proto: proto::StatefulSession = decode(config, at, cx.report)?;
        let session = Arc::new(Session::compile(&proto, at, cx)?);
        let stats = (!proto.stat_prefix.is_empty()).then(|| {
            let scope = cx.scope.scope(&format!("stateful_session.{}.", proto.stat_prefix));
            Stats {
                routed: scope.counter("routed"),
                failed_open: scope.counter("failed_open"),
                failed_closed: scope.counter("failed_closed"),
                no_session: scope.counter("no_session"),
            }
        });
        Some(Arc::new(Filter { session, stats }))
    }
    fn compile_route(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn Any + Send + Sync>> {
        use proto::stateful_session_per_route::Override;
        let proto: proto::StatefulSessionPerRoute = decode(config, at, cx.report)?;
        let session = match &proto.r#override {
            // Envoy's only value is true; false would mean nothing else.
            Some(Override::Disabled(true)) => None,
            Some(Override::Disabled(false)) => {
                cx.report.error(&at.field("disabled"), "false", "set disabled: true, or stateful_session");
                return None;
            }
            Some(Override::StatefulSession(session)) => {
                let at = at.field("stateful_session");
                if !session.stat_prefix.is_empty() {
                    cx.report.warning(
                        &at.field("stat_prefix"),
                        session.stat_prefix.as_str(),
                        "routes have no counters of their own, as in Envoy",
                    );
                }
                Some(Arc::new(Session::compile(session, &at, cx)?))
            }
            None => {
                cx.report.error(at, "no override", "set disabled or stateful_session");
                return None;
            }
        };
        Some(Arc::new(PerRoute { session }))
    }
}

/// One way to keep sessions.
#[derive(Debug)]
struct Session {
    /// None keeps no sessions at all.
    state: Option<SessionState>,
    strict: bool,
    status: u16,
}

impl Session {
    fn compile(proto: &proto::StatefulSession, at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Self> {
        let status_at = at.field("status_on_strict_destination_not_found");
        let status = match (proto.strict, u16::try_from(proto.status_on_strict_destination_not_found)) {
            (_, Ok(0)) => UNAVAILABLE,
            (strict, Ok(status @ 200..=599)) => {
                if strict {
                    status
                } else {
                    UNAVAILABLE
                }
            }
            _ => {
                let status = proto.status_on_strict_destination_not_found.to_string();
                cx.report.error(&status_at, status, "give an HTTP status, 200 to 599");
                return None;
            }
        };
        let state = match &proto.session_state {
            None => None,
            Some(extension) => Some(SessionState::compile(extension, &at.field("session_state"), cx.report)?),
        };
        Some(Self { state, strict: proto.strict, status })
    }
}

/// What a route says.
#[derive(Debug)]
struct PerRoute {
    /// None switches the filter off.
    session: Option<Arc<Session>>,
}

#[derive(Debug)]
struct Stats {
    routed: Counter,
    failed_open: Counter,
    failed_closed: Counter,
    no_session: Counter,
}

#[derive(Debug)]
struct Filter {
    session: Arc<Session>,
    stats: Option<Stats>,
}

/// What is remembered from request to response.
struct Running {
    session: Arc<Session>,
    /// The address that the client named; the outer none if this request cannot have a session (its path is not the cookie's).
    wanted: Option<Option<String>>,
}

impl HttpFilter for Filter {
    fn needs(&self) -> Needs {
        Needs::REQUEST_HEADERS.and(Needs::RESPONSE_HEADERS)
    }
    fn on_request<'a>(&'a self, mut cx: FilterCx<'a>) -> FilterAction<'a> {
        let session = match cx.route_config::<PerRoute>() {
            None => self.session.clone(),
            Some(route) => match &route.session {
                None => return FilterAction::Continue,
                Some(session) => session.clone(),
            },
        };
        let wanted = session.state.as_ref().and_then(|state| state.read(&mut cx.ex.request));
        if let Some(Some(address)) = &wanted {
            let (strict, status) = (session.strict, session.status);
            cx.ex.override_host = Some(Box::new(UpstreamOverride { address: address.clone(), strict, status }));
        }
        cx.set_state(Running { session, wanted });
        FilterAction::Continue
    }
    fn on_response(&self, mut cx: FilterCx<'_>) {
        let Some(Running { session, wanted }) = cx.state::<Running>() else { return };
        let (session, wanted) = (session.clone(), wanted.take());
        let ex = cx.ex;
        let host = ex.info.upstream.as_ref().and_then(|u| u.host.as_ref()).map(|h| h.address().to_string());
        let count = |which: fn(&Stats) -> &Counter| {
            // Routes that say otherwise count nothing, as in Envoy.
            if let Some(stats) = self.stats.as_ref().filter(|_| Arc::ptr_eq(&session, &self.session)) {
                which(stats).inc();
            }
        };
        let (Some(state), Some(wanted)) = (&session.state, wanted) else {
            if host.is_some() {
                count(|s| &s.no_session);
            }
            return;
        };
        let Some(host) = host else {
            if session.strict && ex.info.flags.has(ResponseFlags::NO_HEALTHY_UPSTREAM) {
                count(|s| &s.failed_closed);
            }
            return;
        };
        let moved = wanted.as_deref() != Some(host.as_str());
        let changed = ex.response.as_mut().is_some_and(|response| state.write(&host, moved, response));
        match (changed, session.strict) {
            (false, _) => count(|s| &s.routed),
            (true, false) => count(|s| &s.failed_open),
            (true, true) => {}
        }
    }
}
