//! envoy.filters.http.ext_authz: a service decides whether a request may go on, and may change it. The request waits for the answer on
//! its worker; nothing else does. Source: `envoy/extensions/filters/http/ext_authz/v3/ext_authz.proto`, Envoy's `ext_authz.cc`.

mod apply;
pub(crate) mod check;
pub(crate) mod grpc;
mod http;
pub(crate) mod settings;
mod state;
#[cfg(test)]
mod tests;
pub(crate) mod verdict;

use crate::cluster_stats;
use crate::config::decode;
use crate::whole::{Collected, broken, collect_request, too_long};
use ::http::{HeaderName, HeaderValue};
use check::Sent;
use nuncio_callout::Meter;
use nuncio_core::diag::At;
use nuncio_core::filter::{FilterAction, FilterCx, HttpFilter, Needs, Outcome};
use nuncio_core::registry::{FactoryCx, HttpFilterFactory};
use nuncio_core::views::PerFilterConfig;
use nuncio_core::{Exchange, LocalReply, ResponseFlags};
use nuncio_format::FormatContext;
use nuncio_proto::Value;
use prost_types::value::Kind;
use settings::{PerRoute, Service, Settings};
use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;
use verdict::{ResponseHeaders, Status, Verdict};

const NAMESPACE: &str = "envoy.filters.http.ext_authz";
const FAILURE_MODE_ALLOWED: HeaderName = HeaderName::from_static("x-envoy-auth-failure-mode-allowed");
/// Most response headers if `enforce_response_header_limits` asks for a limit: Envoy's default `max_headers_count`.
const MAX_HEADERS: usize = 100;

/// Factory of `envoy.extensions.filters.http.ext_authz.v3.ExtAuthz`, per route `ExtAuthzPerRoute`.
#[derive(Debug)]
pub struct Factory;

impl HttpFilterFactory for Factory {
    fn name(&self) -> &'static str {
        NAMESPACE
    }
    fn types(&self) -> &'static [&'static str] {
        &["envoy.extensions.filters.http.ext_authz.v3.ExtAuthz"]
    }
    fn route_types(&self) -> &'static [&'static str] {
        &["envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute"]
    }
    fn compile(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn HttpFilter>> {
        Some(Arc::new(Filter(Settings::compile(&decode(config, at, cx.report)?, at, cx)?)))
    }
    fn compile_route(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn Any + Send + Sync>> {
        Some(Arc::new(PerRoute::compile(config, at, cx)?))
    }
}

#[derive(Debug)]
struct Filter(Settings);

impl HttpFilter for Filter {
    fn needs(&self) -> Needs {
        Needs::REQUEST_HEADERS.and(Needs::RESPONSE_HEADERS)
    }

    fn on_request<'a>(&'a self, mut cx: FilterCx<'a>) -> FilterAction<'a> {
        let route = cx.route_config::<PerRoute>();
        // What has no route is not asked about: it goes nowhere.
        if cx.ex.route.is_none() || route.as_ref().is_some_and(|r| r.disabled) {
            return FilterAction::Continue;
        }
        if !self.is_enabled(cx.ex) {
            self.0.stats.disabled.inc();
            let deny = self
                .0
                .deny_at_disable
                .as_ref()
                .is_some_and(|flag| self.0.server.runtime.boolean(&flag.runtime_key, flag.default_value.unwrap_or(false)));
            return match deny {
                true if self.0.shadow => {
                    cx.ex.info.flags.set(ResponseFlags::UNAUTHORIZED_EXTERNAL_SERVICE);
                    self.0.stats.shadow_denied.inc();
                    remember(&mut cx, "DENIED", self.0.status_on_error, Vec::new());
                    FilterAction::Continue
                }
                true => FilterAction::Respond(self.refusal()),
                false => FilterAction::Continue,
            };
        }
        FilterAction::Await(Box::pin(self.decide(cx, route)))
    }

    fn on_response(&self, mut cx: FilterCx<'_>) {
        let Some(headers) = cx.state::<ResponseHeaders>().map(std::mem::take) else { return };
        let Some(head) = &mut cx.ex.response else { return };
        if apply::respond(&headers, &mut head.headers, self.limit()) {
            self.0.stats.omitted_response_headers.inc();
        }
    }
}

impl Filter {
    fn limit(&self) -> Option<usize> {
        self.0.limit_response_headers.then_some(MAX_HEADERS)
    }

    fn is_enabled(&self, ex: &Exchange) -> bool {
        let settings = &self.0;
        settings.enabled.as_ref().is_none_or(|f| f.contains(&settings.server.runtime, fastrand::u64(..)))
            && settings.enabled_metadata.as_ref().is_none_or(|m| m.matches(&ex.info))
    }

    /// The answer when the service cannot be asked, or may not be.
    fn refusal(&self) -> Box<LocalReply> {
        Box::new(LocalReply::new(self.0.status_on_error, "", "ext_authz_error").flag(ResponseFlags::UNAUTHORIZED_EXTERNAL_SERVICE))
    }

    async fn decide(&self, mut cx: FilterCx<'_>, route: Option<Arc<PerRoute>>) -> Outcome {
        let settings = &self.0;
        let buffering = route.as_ref().and_then(|r| r.buffering).unwrap_or(settings.buffering);
        let mut body = None;
        if let Some(buffering) = buffering.filter(|_| !cx.ex.request_body.is_end() && cx.ex.request.protocol.is_none()) {
            body = match collect_request(cx.ex, buffering.max, buffering.partial).await {
                Collected::Whole(data, _) => Some(Sent { size: data.len(), data }).filter(|s| s.size > 0),
                Collected::Part(data, size) => Some(Sent { data, size }),
                Collected::TooLong => return Outcome::Respond(too_long()),
                // The service was not asked.
                Collected::Failed => return Outcome::Respond(broken()),
            };
        }
        let began = Instant::now();
        let meter = settings.emit_stats.then(Meter::default);
        let mut bytes = None;
        let service = route.as_ref().and_then(|r| r.service.as_ref()).unwrap_or(&settings.service);
        let verdict = match service {
            Service::Grpc(client) => {
                let request = settings.attributes.http(cx.ex, body.as_ref(), extensions(cx.ex, cx.name));
                let verdict = grpc::check(client, &request, &FormatContext::exchange(cx.ex), meter.as_ref()).await;
                bytes = meter.as_ref().map(|m| (m.sent.get(), m.received.get()));
                verdict
            }
            Service::Http(service) => service.check(cx.ex, &settings.attributes, body.as_ref()).await,
        };
        if settings.emit_stats {
            let call = state::Call { latency: began.elapsed(), bytes };
            cx.ex.info.filter_state.set(cx.name.to_string(), Arc::new(call));
        }
        self.conclude(&mut cx, verdict, began)
    }

    fn conclude(&self, cx: &mut FilterCx<'_>, mut verdict: Verdict, began: Instant) -> Outcome {
        let settings = &self.0;
        if verdict.invalid_action && settings.checks.validate {
            return self.invalid(cx.ex);
        }
        if !verdict.metadata.fields.is_empty() {
            if settings.take_metadata {
                if verdict.status == Status::Ok {
                    let millis = Value { kind: Some(Kind::NumberValue(began.elapsed().as_millis() as f64)) };
                    verdict.metadata.fields.insert("ext_authz_duration".to_string(), millis);
                }
                cx.ex.info.set_metadata(NAMESPACE, std::mem::take(&mut verdict.metadata));
            } else {
                settings.stats.ignored_dynamic_metadata.inc();
            }
        }
        match verdict.status {
            Status::Ok => self.allow(cx, verdict),
            Status::Denied => self.deny(cx, verdict),
            Status::Error => self.fail(cx, verdict),
        }
    }

    fn allow(&self, cx: &mut FilterCx<'_>, mut verdict: Verdict) -> Outcome {
        let changes = self.0.clear_route_cache && verdict.changes_routing(&self.0.clearing_headers);
        if self.0.checks.apply(&verdict, &mut cx.ex.request).is_err() {
            return self.invalid(cx.ex);
        }
        if verdict.adds() && cx.ex.header_limits.are_exceeded(&cx.ex.request) {
            self.0.stats.request_header_limits_reached.inc();
            return self.invalid(cx.ex);
        }
        if changes {
            cx.ex.route_cleared = true;
        }
        if !verdict.response.is_empty() {
            cx.set_state(std::mem::take(&mut verdict.response));
        }
        self.count(cx.ex, "ok");
        self.0.stats.ok.inc();
        if self.0.shadow {
            remember(cx, "OK", 200, Vec::new());
        }
        Outcome::Continue
    }

    fn deny(&self, cx: &mut FilterCx<'_>, mut verdict: Verdict) -> Outcome {
        let ex = &*cx.ex;
        self.0.stats.denied.inc();
        // A shadow counts what the service said, be it no status of a response.
        let code = if self.0.shadow || (200..600).contains(&verdict.code) { verdict.code } else { 403 };
        self.count(ex, "denied");
        if self.0.charge_cluster {
            cluster_stats::charge(ex, code);
        }
        if self.0.shadow {
            self.0.stats.shadow_denied.inc();
            remember(cx, "DENIED", verdict.code, verdict.sent_headers());
            return Outcome::Continue;
        }
        verdict.reframe();
        if self.0.checks.validate && verdict.set.iter().any(|pair| apply::parsed(pair).is_none()) {
            return self.invalid(ex);
        }
        Outcome::Respond(self.reply(ex, code, verdict, "ext_authz_denied"))
    }

    fn fail(&self, cx: &mut FilterCx<'_>, verdict: Verdict) -> Outcome {
        self.count(cx.ex, "error");
        self.0.stats.error.inc();
        if self.0.shadow {
            self.0.stats.shadow_error.inc();
            let code = if verdict.custom_error && verdict.code != 0 { verdict.code } else { self.0.status_on_error };
            remember(cx, "ERROR", code, Vec::new());
            return Outcome::Continue;
        }
        let ex = &mut *cx.ex;
        if self.0.failure_mode_allow {
            self.0.stats.failure_mode_allowed.inc();
            self.count(ex, "failure_mode_allowed");
            if self.0.failure_mode_header {
                ex.request.headers.append(FAILURE_MODE_ALLOWED, HeaderValue::from_static("true"));
            }
            return Outcome::Continue;
        }
        // An error's own response that cannot be sent is left for the filter's.
        if !verdict.custom_error || verdict.set.iter().any(|pair| apply::parsed(pair).is_none()) {
            return Outcome::Respond(self.refusal());
        }
        let code = if (200..600).contains(&verdict.code) { verdict.code } else { self.0.status_on_error };
        Outcome::Respond(self.reply(ex, code, verdict, "ext_authz_error"))
    }

    /// The service's own response.
    fn reply(&self, ex: &Exchange, code: u16, mut verdict: Verdict, details: &'static str) -> Box<LocalReply> {
        if ex.request.is_grpc() {
            // The body becomes grpc-message.
            verdict.set.retain(|(name, _)| !name.eq_ignore_ascii_case("content-length"));
        }
        let mut body = verdict.body;
        if self.0.max_denied_body > 0 {
            body.truncate(self.0.max_denied_body);
        }
        let mut reply = LocalReply::new(code, body, details).flag(ResponseFlags::UNAUTHORIZED_EXTERNAL_SERVICE);
        let pairs = verdict.set.iter().filter_map(apply::parsed);
        for (name, value) in pairs {
            if self.limit().is_some_and(|limit| reply.headers.len() >= limit) {
                self.0.stats.omitted_response_headers.inc();
                break;
            }
            reply.headers.append(name, value);
        }
        Box::new(reply)
    }

    fn invalid(&self, ex: &Exchange) -> Outcome {
        self.count(ex, "invalid");
        self.0.stats.invalid.inc();
        Outcome::Respond(Box::new(LocalReply::new(500, "", "ext_authz_invalid").flag(ResponseFlags::UNAUTHORIZED_EXTERNAL_SERVICE)))
    }

    /// Counts an answer below the request's cluster.
    fn count(&self, ex: &Exchange, what: &str) {
        cluster_stats::count(ex, &self.0.cluster_prefix, what);
    }
}

/// Leaves in filter state what would have become of the request.
fn remember(cx: &mut FilterCx<'_>, result: &'static str, status: u16, headers: Vec<verdict::Pair>) {
    let decision = state::Decision { result, status, headers };
    cx.ex.info.filter_state.set(format!("{}.shadow", cx.name), Arc::new(decision));
}

/// Context extensions of every level, the more specific ones winning.
fn extensions(ex: &Exchange, name: &str) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    if let Some(route) = &ex.route {
        route.filter_configs(name, &mut |config| {
            if let PerFilterConfig::Config(config) = config
                && let Some(route) = config.downcast_ref::<PerRoute>()
            {
                all.extend(route.extensions.iter().map(|(k, v)| (k.clone(), v.clone())));
            }
        });
    }
    all
}
