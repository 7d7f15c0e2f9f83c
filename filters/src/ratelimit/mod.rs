//! envoy.filters.http.ratelimit: a service that many proxies share counts requests and says which are too many. The request waits for
//! the answer on its worker. Source: `envoy/extensions/filters/http/ratelimit/v3/rate_limit.proto`, Envoy's `ratelimit.cc`.

mod answer;
pub(crate) mod settings;
#[cfg(test)]
mod tests;

use crate::cluster_stats::{charge, count};
use crate::config::decode;
use crate::rate_limit::{Descriptor, Limit, RouteLimits};
use http::{HeaderName, HeaderValue, header};
use nuncio_core::diag::At;
use nuncio_core::filter::{FilterAction, FilterCx, HttpFilter, Needs, Outcome};
use nuncio_core::registry::{FactoryCx, HttpFilterFactory};
use nuncio_core::{Exchange, Headers, LocalReply, ResponseFlags};
use nuncio_format::FormatContext;
use nuncio_proto::envoy::extensions::common::ratelimit::v3::RateLimitDescriptor;
use nuncio_proto::envoy::extensions::common::ratelimit::v3::rate_limit_descriptor::{Entry, RateLimitOverride};
use nuncio_proto::envoy::extensions::filters::http::ratelimit::v3::rate_limit_per_route::VhRateLimitsOptions;
use nuncio_proto::envoy::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse, rate_limit_response::Code};
use settings::{PerRoute, Requests, Settings};
use std::any::Any;
use std::sync::Arc;

const NAME: &str = "envoy.filters.http.ratelimit";
/// The call of the service.
pub(crate) const SHOULD_RATE_LIMIT: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";
const X_ENVOY_INTERNAL: HeaderName = HeaderName::from_static("x-envoy-internal");
const X_ENVOY_RATELIMITED: HeaderName = HeaderName::from_static("x-envoy-ratelimited");
/// Filter state with the hits that the whole request costs.
const HITS_ADDEND: &str = "envoy.ratelimit.hits_addend";

/// Factory of `envoy.extensions.filters.http.ratelimit.v3.RateLimit`, per route `RateLimitPerRoute`.
#[derive(Debug)]
pub struct Factory;

impl HttpFilterFactory for Factory {
    fn name(&self) -> &'static str {
        NAME
    }
    fn types(&self) -> &'static [&'static str] {
        &["envoy.extensions.filters.http.ratelimit.v3.RateLimit"]
    }
    fn route_types(&self) -> &'static [&'static str] {
        &["envoy.extensions.filters.http.ratelimit.v3.RateLimitPerRoute"]
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

/// State: headers for the response.
struct Told(Headers);

impl HttpFilter for Filter {
    fn needs(&self) -> Needs {
        Needs::REQUEST_HEADERS.and(Needs::RESPONSE_HEADERS).and(Needs::COMPLETE)
    }

    fn on_request<'a>(&'a self, cx: FilterCx<'a>) -> FilterAction<'a> {
        if !self.0.is_enabled() {
            return FilterAction::Continue;
        }
        let internal = cx.ex.request.headers.get(&X_ENVOY_INTERNAL).is_some_and(|v| v.as_bytes() == b"true");
        let counts = match self.0.requests {
            Requests::Both => true,
            Requests::Internal => internal,
            Requests::External => !internal,
        };
        if !counts {
            return FilterAction::Continue;
        }
        let route = cx.route_config::<PerRoute>();
        let Some(request) = self.request(cx.ex, route.as_deref(), false) else { return FilterAction::Continue };
        FilterAction::Await(Box::pin(self.ask(cx, request)))
    }

    fn on_response(&self, mut cx: FilterCx<'_>) {
        let Some(Told(headers)) = cx.state() else { return };
        let headers = std::mem::take(headers);
        if let Some(response) = &mut cx.ex.response {
            headers.iter().for_each(|(name, value)| response.headers.append(name.clone(), value.clone()));
        }
    }

    fn on_complete(&self, cx: FilterCx<'_>) {
        let route = cx.route_config::<PerRoute>();
        let Some(request) = self.request(cx.ex, route.as_deref(), true) else { return };
        let client = self.0.client.clone();
        // Nobody waits for what the service says of a request that is over.
        tokio::task::spawn_local(async move {
            let _counted = client.unary::<RateLimitResponse>(SHOULD_RATE_LIMIT, &request, None).await;
        });
    }
}

impl Filter {
    /// What the service is asked; none if the request counts as nothing.
    fn request(&self, ex: &Exchange, route: Option<&PerRoute>, done: bool) -> Option<RateLimitRequest> {
        ex.cluster.as_ref()?;
        let settings = &self.0;
        let mut found = Vec::new();
        let mut describe = |limits: &[Limit]| {
            let applying = limits.iter().filter(|l| l.applies_to_service(settings.stage, done, &settings.server.runtime));
            applying.for_each(|l| l.describe(ex, &mut found));
        };
        match route.filter(|r| !r.limits.is_empty()) {
            Some(route) => describe(&route.limits),
            None if !settings.limits.is_empty() => describe(&settings.limits),
            None => {
                let limits = RouteLimits::of(ex, &settings.server)?;
                describe(&limits.route);
                let include = limits.include_virtual_host
                    || match route.map_or(VhRateLimitsOptions::Override, |r| r.virtual_host) {
                        VhRateLimitsOptions::Include => true,
                        VhRateLimitsOptions::Ignore => false,
                        VhRateLimitsOptions::Override => limits.route.is_empty(),
                    };
                if include {
                    describe(&limits.virtual_host);
                }
            }
        }
        let hits = || ex.info.filter_state.get(HITS_ADDEND).and_then(|s| s.as_string()?.parse().ok());
        (!found.is_empty()).then(|| RateLimitRequest {
            domain: route.map(|r| &r.domain).filter(|d| !d.is_empty()).unwrap_or(&settings.domain).clone(),
            descriptors: found.into_iter().map(descriptor).collect(),
            hits_addend: hits().unwrap_or(0),
        })
    }

    async fn ask(&self, mut cx: FilterCx<'_>, request: RateLimitRequest) -> Outcome {
        let settings = &self.0;
        let answer = settings.client.unary::<RateLimitResponse>(SHOULD_RATE_LIMIT, &request, Some(&FormatContext::exchange(cx.ex))).await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                log::debug!(target: "ratelimit", "rate limit service of cluster '{}': {error}", settings.client.cluster());
                return self.failed(cx.ex);
            }
        };
        if let Some(metadata) = answer.dynamic_metadata.filter(|m| !m.fields.is_empty()) {
            cx.ex.info.set_metadata(&settings.namespace, metadata);
        }
        let limited = answer.overall_code == Code::OverLimit as i32;
        let mut headers = Headers::new();
        answer::append(&answer.response_headers_to_add, &mut headers);
        if limited {
            count(cx.ex, &settings.prefix, "over_limit");
            charge(cx.ex, settings.status);
            if settings.show_limited {
                headers.insert(X_ENVOY_RATELIMITED, HeaderValue::from_static("true"));
            }
        } else {
            count(cx.ex, &settings.prefix, "ok");
        }
        if settings.show_headers {
            answer::tell(&answer.statuses, &mut headers);
        }
        if limited && settings.is_enforced() {
            let mut reply = LocalReply::new(settings.status, answer.raw_body, "request_rate_limited").flag(ResponseFlags::RATE_LIMITED);
            reply.grpc_status = settings.grpc_status;
            if settings.retry_after
                && !headers.contains(&header::RETRY_AFTER)
                && let Some(seconds) = answer::retry_after(&answer.statuses)
            {
                headers.append(header::RETRY_AFTER, HeaderValue::from(seconds));
            }
            settings.response_headers.apply(&mut headers, &FormatContext::exchange(cx.ex));
            reply.headers = headers;
            return Outcome::Respond(Box::new(reply));
        }
        answer::append(&answer.request_headers_to_add, &mut cx.ex.request.headers);
        if !headers.is_empty() {
            cx.set_state(Told(headers));
        }
        Outcome::Continue
    }

    /// The service could not be asked.
    fn failed(&self, ex: &Exchange) -> Outcome {
        count(ex, &self.0.prefix, "error");
        if !self.0.denies() {
            count(ex, &self.0.prefix, "failure_mode_allowed");
            return Outcome::Continue;
        }
        let reply = LocalReply::new(self.0.status_on_error, "", "rate_limiter_error").flag(ResponseFlags::RATE_LIMIT_SERVICE_ERROR);
        Outcome::Respond(Box::new(reply))
    }
}

fn descriptor(from: Descriptor) -> RateLimitDescriptor {
    RateLimitDescriptor {
        entries: from.entries.into_iter().map(|(key, value)| Entry { key, value }).collect(),
        limit: from.limit.map(|(requests_per_unit, unit)| RateLimitOverride { requests_per_unit, unit: unit.into(), ..Default::default() }),
        hits_addend: from.hits_given.then_some(from.hits),
        is_negative_hits: from.negative,
    }
}
