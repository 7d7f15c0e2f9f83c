//! envoy.filters.http.cors: answers preflight requests and marks responses that other origins may read. The filter itself is an
//! empty placeholder; policies come from routes and virtual hosts, the most specific value of each field wins.
//! Source: `envoy/extensions/filters/http/cors/v3/cors.proto`.

use crate::config::decode;
use http::{HeaderName, HeaderValue, Method, header};
use nuncio_core::diag::At;
use nuncio_core::filter::{FilterAction, FilterCx, HttpFilter, Needs};
use nuncio_core::registry::{FactoryCx, HttpFilterFactory, Server};
use nuncio_core::stats::Counter;
use nuncio_core::views::{PerFilterConfig, RouteView};
use nuncio_core::{Headers, LocalReply, RequestHead};
use nuncio_matcher::{RuntimeFraction, StringMatcher};
use nuncio_proto::envoy::extensions::filters::http::cors::v3 as proto;
use nuncio_route::{DEPRECATED_CORS, RouteEntry};
use smallvec::SmallVec;
use std::any::Any;
use std::sync::Arc;

const REQUEST_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-request-private-network");
const ALLOW_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-allow-private-network");
const TRUE: HeaderValue = HeaderValue::from_static("true");

/// Factory of `envoy.extensions.filters.http.cors.v3.Cors`, per route `CorsPolicy`.
#[derive(Debug)]
pub struct Factory;

impl HttpFilterFactory for Factory {
    fn name(&self) -> &'static str {
        "envoy.filters.http.cors"
    }
    fn types(&self) -> &'static [&'static str] {
        &["envoy.extensions.filters.http.cors.v3.Cors"]
    }
    fn route_types(&self) -> &'static [&'static str] {
        &["envoy.extensions.filters.http.cors.v3.CorsPolicy"]
    }
    fn compile(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn HttpFilter>> {
        let proto::Cors {} = decode(config, at, cx.report)?;
        let scope = cx.scope.scope("cors.");
        Some(Arc::new(Filter { server: cx.server.clone(), valid: scope.counter("origin_valid"), invalid: scope.counter("origin_invalid") }))
    }
    fn compile_route(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn Any + Send + Sync>> {
        Some(Arc::new(Policy::compile(&decode(config, at, cx.report)?, at, cx)?))
    }
}

/// A compiled `CorsPolicy`. What is not set is left to less specific policies.
#[derive(Debug)]
struct Policy {
    origins: Box<[StringMatcher]>,
    methods: Option<HeaderValue>,
    headers: Option<HeaderValue>,
    expose: Option<HeaderValue>,
    max_age: Option<HeaderValue>,
    credentials: Option<bool>,
    private_network: Option<bool>,
    forward_not_matching: Option<bool>,
    enabled: Option<RuntimeFraction>,
    shadow: Option<RuntimeFraction>,
}

impl Policy {
    fn compile(p: &proto::CorsPolicy, at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Self> {
        let errors = cx.report.errors();
        let report = &mut *cx.report;
        let origins = StringMatcher::compile_list(&p.allow_origin_string_match, &at.field("allow_origin_string_match"), report);
        let mut value = |name: &str, text: &str| {
            let value = HeaderValue::from_str(text).ok();
            if value.is_none() {
                report.error(&at.field(name), format!("{text:?}"), "give a text that fits into a header");
            }
            value.filter(|v| !v.is_empty())
        };
        let (methods, headers) = (value("allow_methods", &p.allow_methods), value("allow_headers", &p.allow_headers));
        let (expose, max_age) = (value("expose_headers", &p.expose_headers), value("max_age", &p.max_age));
        let enabled = p.filter_enabled.as_ref().and_then(|f| RuntimeFraction::compile(f, &at.field("filter_enabled"), report));
        let shadow = p.shadow_enabled.as_ref().and_then(|f| RuntimeFraction::compile(f, &at.field("shadow_enabled"), report));
        (cx.report.errors() == errors).then_some(Self {
            origins: origins?,
            methods,
            headers,
            expose,
            max_age,
            credentials: p.allow_credentials,
            private_network: p.allow_private_network_access,
            forward_not_matching: p.forward_not_matching_preflights,
            enabled,
            shadow,
        })
    }
}

/// Policies that apply, most specific first.
#[derive(Clone)]
struct Policies(SmallVec<[Arc<Policy>; 3]>);

impl Policies {
    fn of(cx: &FilterCx<'_>) -> Self {
        let mut all = SmallVec::new();
        // As Envoy: what the proxy answers itself is not for this filter.
        let forwards = |route: &dyn RouteView| route.as_any().downcast_ref::<RouteEntry>().is_none_or(|entry| entry.forward().is_some());
        let Some(route) = cx.ex.route.as_deref().filter(|route| forwards(*route)) else { return Self(all) };
        // Envoy asks for the typed configuration first and for the deprecated fields after that.
        for name in [cx.name, DEPRECATED_CORS] {
            route.filter_configs(name, &mut |config| {
                if let PerFilterConfig::Config(any) = config
                    && let Ok(policy) = any.clone().downcast::<Policy>()
                {
                    all.insert(0, policy);
                }
            });
            if !all.is_empty() {
                break;
            }
        }
        Self(all)
    }
    fn first<T>(&self, field: impl FnMut(&Arc<Policy>) -> Option<T>) -> Option<T> {
        self.0.iter().find_map(field)
    }
    fn allows(&self, origin: &[u8]) -> bool {
        let origins = self.0.iter().find(|p| !p.origins.is_empty()).map(|p| &p.origins);
        origins.is_some_and(|o| o.iter().any(|m| m.matches("*") || m.matches(origin)))
    }
    fn credentials(&self) -> bool {
        self.first(|p| p.credentials).unwrap_or(false)
    }
}

/// State of an answerable cross-origin request.
struct Allowed {
    origin: HeaderValue,
    policies: Policies,
}

#[derive(Debug)]
struct Filter {
    server: Arc<Server>,
    valid: Counter,
    invalid: Counter,
}

impl HttpFilter for Filter {
    fn needs(&self) -> Needs {
        Needs::REQUEST_HEADERS.and(Needs::RESPONSE_HEADERS)
    }
    fn on_request<'a>(&'a self, mut cx: FilterCx<'a>) -> FilterAction<'a> {
        let request = &cx.ex.request;
        let Some(origin) = request.headers.get(&header::ORIGIN).filter(|o| !o.is_empty()) else { return FilterAction::Continue };
        let origin = origin.clone();
        let policies = Policies::of(&cx);
        let Some(first) = policies.0.first() else { return FilterAction::Continue };
        let runtime = &self.server.runtime;
        let enabled = first.enabled.as_ref().is_none_or(|f| f.contains(runtime, fastrand::u64(..)));
        if !enabled && !first.shadow.as_ref().is_some_and(|f| f.contains(runtime, fastrand::u64(..))) {
            return FilterAction::Continue;
        }
        let allowed = policies.allows(origin.as_bytes());
        if allowed {
            self.valid.inc()
        } else {
            self.invalid.inc()
        }
        if !enabled {
            return FilterAction::Continue;
        }
        let preflight =
            request.method == Method::OPTIONS && request.headers.get(&header::ACCESS_CONTROL_REQUEST_METHOD).is_some_and(|m| !m.is_empty());
        if preflight && (allowed || !policies.first(|p| p.forward_not_matching).unwrap_or(true)) {
            let mut reply = LocalReply::new(200, "", "cors_response");
            answer(&policies, request, allowed.then_some(origin.clone()), &mut reply.headers);
            if allowed {
                // The answer goes through the response phase too.
                cx.set_state(Allowed { origin, policies });
            }
            return FilterAction::Respond(Box::new(reply));
        }
        if allowed {
            cx.set_state(Allowed { origin, policies });
        }
        FilterAction::Continue
    }
    fn on_response(&self, mut cx: FilterCx<'_>) {
        let Some(state) = cx.state::<Allowed>() else { return };
        let (origin, credentials, expose) =
            (state.origin.clone(), state.policies.credentials(), state.policies.first(|p| p.expose.clone()));
        let Some(response) = &mut cx.ex.response else { return };
        response.headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        if credentials {
            response.headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE);
        }
        if let Some(expose) = expose {
            response.headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, expose);
        }
    }
}

/// Headers of the answer to a preflight request. `*` stands for what the request asks for.
fn answer(policies: &Policies, request: &RequestHead, origin: Option<HeaderValue>, out: &mut Headers) {
    if let Some(origin) = origin {
        out.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    }
    if policies.credentials() {
        out.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE);
    }
    let mut list = |name: HeaderName, configured: Option<HeaderValue>, asked: &HeaderName| {
        let value =
            configured.map(|v| if v == "*" { request.headers.get(asked).cloned().unwrap_or(HeaderValue::from_static("")) } else { v });
        if let Some(value) = value {
            out.insert(name, value);
        }
    };
    list(header::ACCESS_CONTROL_ALLOW_METHODS, policies.first(|p| p.methods.clone()), &header::ACCESS_CONTROL_REQUEST_METHOD);
    list(header::ACCESS_CONTROL_ALLOW_HEADERS, policies.first(|p| p.headers.clone()), &header::ACCESS_CONTROL_REQUEST_HEADERS);
    if let Some(max_age) = policies.first(|p| p.max_age.clone()) {
        out.insert(header::ACCESS_CONTROL_MAX_AGE, max_age);
    }
    if policies.first(|p| p.private_network).unwrap_or(false) && request.headers.get(&REQUEST_PRIVATE_NETWORK).is_some_and(|v| v == "true")
    {
        out.insert(ALLOW_PRIVATE_NETWORK, TRUE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::StatusCode;
    use nuncio_core::test_kit::{self as kit, FakeRoute};
    use nuncio_core::{Body, Exchange, ResponseHead};
    use nuncio_proto::envoy::config::core::v3::RuntimeFractionalPercent;
    use nuncio_proto::envoy::r#type::matcher::v3::{StringMatcher as Matcher, string_matcher::MatchPattern};
    use nuncio_proto::envoy::r#type::v3::FractionalPercent;

    fn exact(origin: &str) -> Matcher {
        Matcher { match_pattern: Some(MatchPattern::Exact(origin.into())), ignore_case: false }
    }
    fn percent(numerator: u32) -> Option<RuntimeFractionalPercent> {
        Some(RuntimeFractionalPercent { default_value: Some(FractionalPercent { numerator, denominator: 0 }), runtime_key: String::new() })
    }
    fn policy() -> proto::CorsPolicy {
        proto::CorsPolicy {
            allow_origin_string_match: vec![exact("https://a.example")],
            allow_methods: "GET,POST".into(),
            allow_headers: "*".into(),
            expose_headers: "x-shown".into(),
            max_age: "86400".into(),
            allow_credentials: Some(true),
            allow_private_network_access: Some(true),
            ..Default::default()
        }
    }
    fn setup(method: Method, origin: &'static str, policies: &[proto::CorsPolicy]) -> (Arc<dyn HttpFilter>, Exchange, Arc<Server>) {
        let server = kit::server(Default::default());
        let filter = kit::compile(&Factory, &proto::Cors {}, &server).unwrap();
        let mut ex = kit::exchange(RequestHead::new(method, "shop", "/"));
        if !origin.is_empty() {
            ex.request.headers.append(header::ORIGIN, HeaderValue::from_static(origin));
        }
        let route =
            policies.iter().fold(FakeRoute::new("r", "c"), |r, p| r.with("cors", kit::compile_route(&Factory, p, &server).unwrap()));
        ex.route = Some(Arc::new(route));
        (filter, ex, server)
    }
    fn asks(ex: &mut Exchange) {
        ex.request.headers.append(header::ACCESS_CONTROL_REQUEST_METHOD, HeaderValue::from_static("PUT"));
        ex.request.headers.append(header::ACCESS_CONTROL_REQUEST_HEADERS, HeaderValue::from_static("x-a, x-b"));
        ex.request.headers.append(REQUEST_PRIVATE_NETWORK, TRUE);
    }
    fn count(server: &Server, name: &str) -> u64 {
        server.stats.root().counter(&format!("http.test.cors.{name}")).value()
    }

    #[tokio::test]
    async fn answers_preflight() {
        let (filter, mut ex, server) = setup(Method::OPTIONS, "https://a.example", &[policy()]);
        asks(&mut ex);
        let reply = kit::request(&*filter, "cors", &mut ex).await.unwrap();
        assert_eq!((reply.status, reply.details.as_ref()), (200, "cors_response"));
        let get = |name: &HeaderName| reply.headers.get_str(name).unwrap_or_default();
        assert_eq!(get(&header::ACCESS_CONTROL_ALLOW_ORIGIN), "https://a.example");
        assert_eq!(get(&header::ACCESS_CONTROL_ALLOW_METHODS), "GET,POST");
        assert_eq!(get(&header::ACCESS_CONTROL_ALLOW_HEADERS), "x-a, x-b");
        assert_eq!(get(&header::ACCESS_CONTROL_MAX_AGE), "86400");
        assert_eq!(get(&header::ACCESS_CONTROL_ALLOW_CREDENTIALS), "true");
        assert_eq!(get(&ALLOW_PRIVATE_NETWORK), "true");
        assert_eq!(count(&server, "origin_valid"), 1);
    }

    #[tokio::test]
    async fn marks_simple_responses() {
        let (filter, mut ex, _) = setup(Method::GET, "https://a.example", &[policy()]);
        assert!(kit::request(&*filter, "cors", &mut ex).await.is_none());
        kit::respond(&*filter, "cors", &mut ex, ResponseHead::new(StatusCode::OK), Body::Empty);
        let headers = &ex.response.as_ref().unwrap().headers;
        assert_eq!(headers.get_str(&header::ACCESS_CONTROL_ALLOW_ORIGIN), Some("https://a.example"));
        assert_eq!(headers.get_str(&header::ACCESS_CONTROL_EXPOSE_HEADERS), Some("x-shown"));
    }

    #[tokio::test]
    async fn other_origins_pass_unmarked() {
        let (filter, mut ex, server) = setup(Method::OPTIONS, "https://b.example", &[policy()]);
        asks(&mut ex);
        assert!(kit::request(&*filter, "cors", &mut ex).await.is_none());
        kit::respond(&*filter, "cors", &mut ex, ResponseHead::new(StatusCode::OK), Body::Empty);
        assert!(ex.response.as_ref().unwrap().headers.is_empty());
        assert_eq!(count(&server, "origin_invalid"), 1);

        let strict = proto::CorsPolicy { forward_not_matching_preflights: Some(false), ..policy() };
        let (filter, mut ex, _) = setup(Method::OPTIONS, "https://b.example", &[strict]);
        asks(&mut ex);
        let reply = kit::request(&*filter, "cors", &mut ex).await.unwrap();
        assert!(!reply.headers.contains(&header::ACCESS_CONTROL_ALLOW_ORIGIN));
    }

    #[tokio::test]
    async fn the_most_specific_value_wins_field_by_field() {
        let route = proto::CorsPolicy { allow_methods: "DELETE".into(), ..Default::default() };
        let (filter, mut ex, _) = setup(Method::OPTIONS, "https://a.example", &[policy(), route]);
        asks(&mut ex);
        let reply = kit::request(&*filter, "cors", &mut ex).await.unwrap();
        assert_eq!(reply.headers.get_str(&header::ACCESS_CONTROL_ALLOW_METHODS), Some("DELETE"));
        assert_eq!(reply.headers.get_str(&header::ACCESS_CONTROL_MAX_AGE), Some("86400"));
    }

    #[tokio::test]
    async fn shadow_only_counts_and_disabled_does_nothing() {
        let shadow = proto::CorsPolicy { filter_enabled: percent(0), shadow_enabled: percent(100), ..policy() };
        let (filter, mut ex, server) = setup(Method::OPTIONS, "https://a.example", &[shadow]);
        asks(&mut ex);
        assert!(kit::request(&*filter, "cors", &mut ex).await.is_none());
        assert_eq!(count(&server, "origin_valid"), 1);
        let off = proto::CorsPolicy { filter_enabled: percent(0), ..policy() };
        let (filter, mut ex, server) = setup(Method::OPTIONS, "https://a.example", &[off]);
        asks(&mut ex);
        assert!(kit::request(&*filter, "cors", &mut ex).await.is_none());
        assert_eq!(count(&server, "origin_valid"), 0);
    }

    #[tokio::test]
    async fn requests_without_origin_or_policy_pass() {
        for (origin, policies) in [("", vec![policy()]), ("https://a.example", vec![])] {
            let (filter, mut ex, _) = setup(Method::OPTIONS, origin, &policies);
            asks(&mut ex);
            assert!(kit::request(&*filter, "cors", &mut ex).await.is_none());
        }
    }

    #[test]
    fn wrong_policies_are_refused() {
        let bad = proto::CorsPolicy { max_age: "a\nb".into(), ..policy() };
        assert!(kit::compile_route(&Factory, &bad, &kit::server(Default::default())).unwrap_err().contains("max_age"));
    }
}
