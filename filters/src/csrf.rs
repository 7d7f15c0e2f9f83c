//! envoy.filters.http.csrf: refuses changing requests whose origin is not the target. Policies of routes replace that of the filter.
//! Source: `envoy/extensions/filters/http/csrf/v3/csrf.proto`.

use crate::config::decode;
use http::{HeaderName, Method, header};
use nuncio_core::diag::At;
use nuncio_core::filter::{FilterAction, FilterCx, HttpFilter, Needs};
use nuncio_core::registry::{FactoryCx, HttpFilterFactory, Server};
use nuncio_core::stats::Counter;
use nuncio_core::{LocalReply, RequestHead};
use nuncio_matcher::{RuntimeFraction, StringMatcher};
use nuncio_proto::envoy::extensions::filters::http::csrf::v3::CsrfPolicy;
use std::any::Any;
use std::sync::Arc;

/// Factory of `envoy.extensions.filters.http.csrf.v3.CsrfPolicy`, on listeners and per route.
#[derive(Debug)]
pub struct Factory;

impl HttpFilterFactory for Factory {
    fn name(&self) -> &'static str {
        "envoy.filters.http.csrf"
    }
    fn types(&self) -> &'static [&'static str] {
        &["envoy.extensions.filters.http.csrf.v3.CsrfPolicy"]
    }
    fn route_types(&self) -> &'static [&'static str] {
        self.types()
    }
    fn compile(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn HttpFilter>> {
        let policy = Policy::compile(&decode(config, at, cx.report)?, at, cx)?;
        let scope = cx.scope.scope("csrf.");
        Some(Arc::new(Filter {
            policy: Arc::new(policy),
            server: cx.server.clone(),
            missing: scope.counter("missing_source_origin"),
            invalid: scope.counter("request_invalid"),
            valid: scope.counter("request_valid"),
        }))
    }
    fn compile_route(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn Any + Send + Sync>> {
        Some(Arc::new(Policy::compile(&decode(config, at, cx.report)?, at, cx)?))
    }
}

#[derive(Debug)]
struct Policy {
    enabled: RuntimeFraction,
    shadow: Option<RuntimeFraction>,
    additional: Box<[StringMatcher]>,
}

impl Policy {
    fn compile(p: &CsrfPolicy, at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Self> {
        let Some(enabled) = &p.filter_enabled else {
            cx.report.error(&at.field("filter_enabled"), "nothing", "say for how many requests the filter is enabled");
            return None;
        };
        let shadow = match &p.shadow_enabled {
            Some(shadow) => Some(RuntimeFraction::compile(shadow, &at.field("shadow_enabled"), cx.report)?),
            None => None,
        };
        Some(Self {
            enabled: RuntimeFraction::compile(enabled, &at.field("filter_enabled"), cx.report)?,
            shadow,
            additional: StringMatcher::compile_list(&p.additional_origins, &at.field("additional_origins"), cx.report)?,
        })
    }
}

#[derive(Debug)]
struct Filter {
    policy: Arc<Policy>,
    server: Arc<Server>,
    missing: Counter,
    invalid: Counter,
    valid: Counter,
}

impl HttpFilter for Filter {
    fn needs(&self) -> Needs {
        Needs::REQUEST_HEADERS
    }
    fn on_request<'a>(&'a self, cx: FilterCx<'a>) -> FilterAction<'a> {
        let request = &cx.ex.request;
        if ![Method::POST, Method::PUT, Method::DELETE, Method::PATCH].contains(&request.method) {
            return FilterAction::Continue;
        }
        let route = cx.route_config::<Policy>();
        let policy = route.as_ref().unwrap_or(&self.policy);
        let hits = |f: &RuntimeFraction| f.contains(&self.server.runtime, fastrand::u64(..));
        let enabled = hits(&policy.enabled);
        if !enabled && !policy.shadow.as_ref().is_some_and(hits) {
            return FilterAction::Continue;
        }
        let source = origin(request, &header::ORIGIN).or_else(|| origin(request, &header::REFERER)).unwrap_or_default();
        let target = request.authority.as_str();
        if source.is_empty() {
            self.missing.inc();
        } else if source == host_and_port(target).unwrap_or(target) || policy.additional.iter().any(|m| m.matches(source)) {
            self.valid.inc();
            return FilterAction::Continue;
        } else {
            self.invalid.inc();
        }
        if !enabled {
            return FilterAction::Continue;
        }
        FilterAction::Respond(Box::new(LocalReply::new(403, "Invalid origin", "csrf_origin_mismatch")))
    }
}

fn origin<'a>(request: &'a RequestHead, name: &HeaderName) -> Option<&'a str> {
    request.headers.get_str(name).and_then(host_and_port).filter(|origin| !origin.is_empty())
}

/// Host and port of an absolute URL; none for other text, such as the origin `null`.
fn host_and_port(url: &str) -> Option<&str> {
    url.split_once("://")?.1.split(['/', '?', '#']).next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use nuncio_core::test_kit::{self as kit, FakeRoute};
    use nuncio_proto::envoy::config::core::v3::RuntimeFractionalPercent;
    use nuncio_proto::envoy::r#type::matcher::v3::{StringMatcher as Matcher, string_matcher::MatchPattern};
    use nuncio_proto::envoy::r#type::v3::FractionalPercent;

    fn percent(numerator: u32) -> Option<RuntimeFractionalPercent> {
        Some(RuntimeFractionalPercent { default_value: Some(FractionalPercent { numerator, denominator: 0 }), runtime_key: String::new() })
    }
    fn policy(enabled: u32) -> CsrfPolicy {
        let partner = Matcher { match_pattern: Some(MatchPattern::Suffix(".partner.example".into())), ignore_case: false };
        CsrfPolicy { filter_enabled: percent(enabled), shadow_enabled: percent(100), additional_origins: vec![partner] }
    }
    async fn run(
        policy: &CsrfPolicy,
        method: Method,
        headers: &[(HeaderName, &'static str)],
        route: Option<&CsrfPolicy>,
    ) -> (Option<LocalReply>, Arc<Server>) {
        let server = kit::server(Default::default());
        let filter = kit::compile(&Factory, policy, &server).unwrap();
        let mut ex = kit::exchange(RequestHead::new(method, "shop.example:8080", "/"));
        for (name, value) in headers {
            ex.request.headers.append(name.clone(), HeaderValue::from_static(value));
        }
        if let Some(route) = route {
            ex.route = Some(Arc::new(FakeRoute::new("r", "c").with("c", kit::compile_route(&Factory, route, &server).unwrap())));
        }
        (kit::request(&*filter, "c", &mut ex).await, server)
    }

    #[tokio::test]
    async fn origins() {
        for (headers, passes) in [
            (vec![(header::ORIGIN, "https://shop.example:8080")], true),
            (vec![(header::REFERER, "https://shop.example:8080/cart?x")], true),
            (vec![(header::ORIGIN, "https://www.partner.example")], true),
            (vec![(header::ORIGIN, "https://evil.example")], false),
            (vec![(header::ORIGIN, "null")], false),
            (vec![], false),
        ] {
            let (reply, _) = run(&policy(100), Method::POST, &headers, None).await;
            assert_eq!(reply.is_none(), passes, "{headers:?}");
            if let Some(reply) = reply {
                assert_eq!((reply.status, reply.details.as_ref()), (403, "csrf_origin_mismatch"));
            }
        }
        assert!(run(&policy(100), Method::GET, &[], None).await.0.is_none());
    }

    #[tokio::test]
    async fn shadow_and_routes() {
        let (reply, server) = run(&policy(0), Method::PUT, &[(header::ORIGIN, "https://evil.example")], None).await;
        assert!(reply.is_none());
        assert_eq!(server.stats.root().counter("http.test.csrf.request_invalid").value(), 1);
        assert!(run(&policy(0), Method::PUT, &[], Some(&policy(100))).await.0.is_some());
    }
}
