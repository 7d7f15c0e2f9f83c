//! envoy.filters.http.jwt_authn: verifies JSON Web Tokens and passes on what they say: to the upstream in headers, to RBAC, routing and
//! logs in dynamic metadata. Compiled on the control thread, run on the workers.
//! Source: `envoy/extensions/filters/http/jwt_authn/v3/config.proto`.

mod cache;
mod extract;
mod json;
pub mod jwks;
mod key;
mod provider;
mod remote;
mod requirement;
mod rules;
mod status;
#[cfg(test)]
mod tests;
mod token;
mod verify;

use crate::config::{decode, stat_scope};
use futures_util::FutureExt;
use http::{HeaderName, HeaderValue, Method, header};
use nuncio_core::diag::At;
use nuncio_core::filter::{FilterAction, FilterCx, HttpFilter, Needs, Outcome};
use nuncio_core::filter_state::StringState;
use nuncio_core::registry::{FactoryCx, HttpFilterFactory};
use nuncio_core::stats::{Counter, Scope};
use nuncio_core::{Exchange, LocalReply, RequestHead};
use nuncio_proto::Struct;
use nuncio_proto::envoy::extensions::filters::http::jwt_authn::v3::{
    JwtAuthentication, PerRouteConfig, per_route_config::RequirementSpecifier, requirement_rule::RequirementType,
};
use provider::{Keys, Provider};
use requirement::Requirement;
use rules::Rule;
use status::Status;
use std::any::Any;
use std::sync::Arc;

/// Namespace of the dynamic metadata.
const NAMESPACE: &str = "envoy.filters.http.jwt_authn";
/// Bytes of the path that the realm of a challenge shows.
const MAX_REALM_PATH: usize = 256;
const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");

/// Factory of `envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication`.
#[derive(Debug)]
pub struct Factory;

impl HttpFilterFactory for Factory {
    fn name(&self) -> &'static str {
        NAMESPACE
    }
    fn types(&self) -> &'static [&'static str] {
        &["envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication"]
    }
    fn route_types(&self) -> &'static [&'static str] {
        &["envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig"]
    }
    fn compile(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn HttpFilter>> {
        Some(Arc::new(Config::compile(&decode(config, at, cx.report)?, at, cx)?))
    }
    fn compile_route(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn Any + Send + Sync>> {
        let config: PerRouteConfig = decode(config, at, cx.report)?;
        Some(Arc::new(match config.requirement_specifier {
            Some(RequirementSpecifier::Disabled(true)) => PerRoute::Disabled,
            Some(RequirementSpecifier::RequirementName(name)) if !name.is_empty() => PerRoute::Named(name.into()),
            _ => {
                cx.report.error(at, "neither disabled: true nor a requirement_name", "set one of them");
                return None;
            }
        }))
    }
}

/// A compiled `PerRouteConfig`. The requirement is found when a request comes: the filter that it belongs to is not known before.
#[derive(Debug)]
enum PerRoute {
    Disabled,
    Named(Box<str>),
}

/// Counters of the filter.
#[derive(Debug)]
struct Stats {
    allowed: Counter,
    denied: Counter,
    preflight: Counter,
    cache_hit: Counter,
    cache_miss: Counter,
}

/// Counters of fetches of keys.
#[derive(Clone, Debug)]
pub struct Fetches {
    pub success: Counter,
    pub failed: Counter,
    /// Requests that were judged by keys that are out of date because their server does not answer; not Envoy's.
    pub stale: Counter,
}

/// Requirements by name.
type Named = Box<[(Box<str>, Requirement)]>;

/// The compiled filter.
#[derive(Debug)]
struct Config {
    /// By name.
    providers: Box<[(Box<str>, Provider)]>,
    rules: Box<[(Rule, Option<Requirement>)]>,
    /// Name of the filter state, and requirements by its value.
    by_state: Option<(Box<str>, Named)>,
    by_name: Named,
    bypass_preflight: bool,
    strip: bool,
    /// Whether headers that carry claims are removed for every provider, not only for those that a requirement names.
    sanitize_all: bool,
    stats: Stats,
}

impl Config {
    fn compile(config: &JwtAuthentication, at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Self> {
        let scope = stat_scope(cx.scope, "jwt_authn", &config.stat_prefix);
        let fetches = Fetches {
            success: scope.counter("jwks_fetch_success"),
            failed: scope.counter("jwks_fetch_failed"),
            stale: scope.counter("jwks_stale"),
        };
        let errors = cx.report.errors();
        let (mut providers, map) = (Vec::new(), at.field("providers"));
        for (name, provider) in &config.providers {
            let provider = Provider::compile(name, provider, fetches.clone(), &map.key(name), cx);
            providers.extend(provider.map(|p| (Box::from(name.as_str()), p)));
        }
        if cx.report.errors() > errors {
            return None;
        }
        let (mut by_name, map) = (Vec::new(), at.field("requirement_map"));
        for (name, requirement) in &config.requirement_map {
            by_name.extend(Requirement::compile(requirement, &providers, &map.key(name), cx.report).map(|r| (Box::from(name.as_str()), r)));
        }
        let (mut rules, list) = (Vec::new(), at.field("rules"));
        for (i, rule) in config.rules.iter().enumerate() {
            let at = list.index(i);
            let requirement = match &rule.requirement_type {
                None => None,
                Some(RequirementType::Requires(requirement)) => {
                    Some(Requirement::compile(requirement, &providers, &at.field("requires"), cx.report)?)
                }
                Some(RequirementType::RequirementName(name)) => {
                    let Some(requirement) = config.requirement_map.get(name) else {
                        cx.report.error(&at.field("requirement_name"), format!("\"{name}\""), "name an entry of requirement_map");
                        return None;
                    };
                    Some(Requirement::compile(requirement, &providers, &map.key(name), cx.report)?)
                }
            };
            let Some(route_match) = &rule.r#match else {
                cx.report.error(&at.field("match"), "nothing", "say which requests the rule is for");
                return None;
            };
            rules.push((Rule::compile(route_match, &at.field("match"), cx.report)?, requirement));
        }
        let by_state = match &config.filter_state_rules {
            None => None,
            Some(state) => {
                let at = at.field("filter_state_rules");
                if state.name.is_empty() {
                    cx.report.error(&at.field("name"), "nothing", "name the filter state");
                }
                let (mut all, map) = (Vec::new(), at.field("requires"));
                for (value, requirement) in &state.requires {
                    all.extend(
                        Requirement::compile(requirement, &providers, &map.key(value), cx.report).map(|r| (Box::from(value.as_str()), r)),
                    );
                }
                Some((state.name.as_str().into(), all.into()))
            }
        };
        (cx.report.errors() == errors).then(|| Self {
            providers: providers.into(),
            rules: rules.into(),
            by_state,
            by_name: by_name.into(),
            bypass_preflight: config.bypass_cors_preflight,
            strip: config.strip_failure_response,
            sanitize_all: cx.server.runtime.boolean("envoy.reloadable_features.jwt_authn_sanitize_payload_headers_filter_wide", true),
            stats: Stats::new(&scope),
        })
    }
    fn provider(&self, index: usize) -> Option<&Provider> {
        self.providers.get(index).map(|(_, p)| p)
    }
    /// The first provider of `issuer`; if there is none, the first one without an issuer.
    fn by_issuer(&self, issuer: &str) -> Option<usize> {
        let of = |issuer: &str| self.providers.iter().position(|(_, p)| *p.issuer == *issuer);
        of(issuer).or_else(|| of(""))
    }
    /// What the request must fulfil; an error is the name of a requirement that does not exist.
    fn requirement(&self, cx: &FilterCx<'_>) -> Result<Option<&Requirement>, Arc<PerRoute>> {
        if let Some(route) = cx.route_config::<PerRoute>() {
            let PerRoute::Named(name) = &*route else { return Ok(None) };
            return match named(&self.by_name, name) {
                Some(requirement) => Ok(Some(requirement)),
                None => Err(route),
            };
        }
        if let Some((_, requirement)) = self.rules.iter().find(|(rule, _)| rule.matches(&cx.ex.request)) {
            return Ok(requirement.as_ref());
        }
        let Some((name, requirements)) = &self.by_state else { return Ok(None) };
        let info = &cx.ex.info;
        let of_connection = info.connection.filter_state.borrow();
        let state = info.filter_state.get_as::<StringState>(name).or_else(|| of_connection.get_as::<StringState>(name));
        Ok(state.and_then(|value| named(requirements, &value.0)))
    }
    async fn verify(&self, requirement: &Requirement, ex: &mut Exchange) -> Option<Box<LocalReply>> {
        let realm = Realm::of(&ex.request);
        let mut extracted = Struct::default();
        let status = requirement.check(self, ex, &mut extracted).await;
        if !extracted.fields.is_empty() {
            ex.info.set_metadata(NAMESPACE, extracted);
        }
        if status == Status::Ok {
            self.stats.allowed.inc();
            return None;
        }
        self.stats.denied.inc();
        let code = if status == Status::AudienceNotAllowed { 403 } else { 401 };
        let body = if self.strip { "" } else { status.text() };
        let mut reply = LocalReply::new(code, body, details(status.text()));
        if !self.strip {
            let error = if status == Status::JwtMissed { "" } else { ", error=\"invalid_token\"" };
            if let Ok(challenge) = HeaderValue::try_from(format!("Bearer realm=\"{}\"{error}", realm.text())) {
                reply.headers.insert(header::WWW_AUTHENTICATE, challenge);
            }
        }
        Some(Box::new(reply))
    }
}

fn named<'a>(requirements: &'a [(Box<str>, Requirement)], name: &str) -> Option<&'a Requirement> {
    requirements.iter().find(|(n, _)| **n == *name).map(|(_, r)| r)
}

impl Stats {
    fn new(scope: &Scope) -> Self {
        Self {
            allowed: scope.counter("allowed"),
            denied: scope.counter("denied"),
            preflight: scope.counter("cors_preflight_bypassed"),
            cache_hit: scope.counter("jwt_cache_hit"),
            cache_miss: scope.counter("jwt_cache_miss"),
        }
    }
}

/// The URI as the client asked for it, kept from before the verification, which may change the path.
struct Realm {
    scheme: nuncio_core::ByteStr,
    authority: nuncio_core::ByteStr,
    path: nuncio_core::ByteStr,
    original: Option<HeaderValue>,
}

impl Realm {
    fn of(request: &RequestHead) -> Self {
        let original = request.headers.get(&ORIGINAL_PATH).cloned();
        Self { scheme: request.scheme.clone(), authority: request.authority.clone(), path: request.path.clone(), original }
    }
    fn text(&self) -> String {
        let path = self.original.as_ref().and_then(|v| v.to_str().ok()).unwrap_or(self.path.as_str());
        let mut end = path.len().min(MAX_REALM_PATH);
        while !path.is_char_boundary(end) {
            end -= 1;
        }
        format!("{}://{}{}", self.scheme, self.authority, path.get(..end).unwrap_or_default())
    }
}

/// Response code details: a text without spaces.
fn details(text: &str) -> String {
    format!("jwt_authn_access_denied{{{}}}", text.replace(char::is_whitespace, "_"))
}

fn is_preflight(request: &RequestHead) -> bool {
    let has = |name| request.headers.get(&name).is_some_and(|v| !v.is_empty());
    request.method == Method::OPTIONS && has(header::ORIGIN) && has(header::ACCESS_CONTROL_REQUEST_METHOD)
}

impl HttpFilter for Config {
    fn needs(&self) -> Needs {
        Needs::REQUEST_HEADERS
    }
    fn on_request<'a>(&'a self, cx: FilterCx<'a>) -> FilterAction<'a> {
        if self.sanitize_all {
            self.providers.iter().for_each(|(_, provider)| verify::sanitize(provider, cx.ex));
        }
        if self.bypass_preflight && is_preflight(&cx.ex.request) {
            self.stats.preflight.inc();
            self.stats.allowed.inc();
            return FilterAction::Continue;
        }
        let requirement = match self.requirement(&cx) {
            Ok(Some(requirement)) => requirement,
            Ok(None) => {
                self.stats.allowed.inc();
                return FilterAction::Continue;
            }
            Err(route) => return FilterAction::Respond(self.wrong_name(&route)),
        };
        let ex = cx.ex;
        let is_ready = |index: &usize| match self.provider(*index).map(|p| &p.keys) {
            Some(Keys::Remote(remote)) => remote.is_fresh(),
            _ => true,
        };
        // Nothing to wait for: the future is done at the first poll and needs no box.
        if requirement.remote().iter().all(is_ready)
            && let Some(reply) = self.verify(requirement, ex).now_or_never()
        {
            return reply.map_or(FilterAction::Continue, FilterAction::Respond);
        }
        FilterAction::Await(Box::pin(async move {
            match self.verify(requirement, ex).await {
                Some(reply) => Outcome::Respond(reply),
                None => Outcome::Continue,
            }
        }))
    }
}

impl Config {
    fn wrong_name(&self, route: &PerRoute) -> Box<LocalReply> {
        self.stats.denied.inc();
        let name = match route {
            PerRoute::Named(name) => name,
            PerRoute::Disabled => "",
        };
        let names: Vec<&str> = self.by_name.iter().map(|(n, _)| &**n).collect();
        let why = format!("Wrong requirement_name: {name}. It should be one of [{}]", names.join(","));
        let body = if self.strip { String::new() } else { format!("Failed JWT authentication: {why}") };
        Box::new(LocalReply::new(403, body, details(&why)))
    }
}
