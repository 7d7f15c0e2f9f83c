//! envoy.filters.http.rbac: decides by request. Any worker. Source: `envoy/extensions/filters/http/rbac/v3/rbac.proto`.

use super::engine::{Engine, Named};
use super::rule::{Layer, Subject};
use super::{Stats, compile_engine, details, prefixed, result, text};
use crate::config::decode;
use nuncio_core::LocalReply;
use nuncio_core::diag::At;
use nuncio_core::filter::{FilterAction, FilterCx, HttpFilter, Needs};
use nuncio_core::registry::{FactoryCx, HttpFilterFactory};
use nuncio_core::stats::Scope;
use nuncio_proto::envoy::extensions::filters::http::rbac::v3::{Rbac, RbacPerRoute};
use nuncio_proto::{Struct, Value};
use prost_types::value::Kind;
use std::any::Any;
use std::sync::Arc;

/// Namespace of the decisions in dynamic metadata, whatever the filter is called.
const NAMESPACE: &str = "envoy.filters.http.rbac";

/// Factory of `envoy.extensions.filters.http.rbac.v3.RBAC`, per route `RBACPerRoute`.
#[derive(Debug)]
pub struct Factory;

impl HttpFilterFactory for Factory {
    fn name(&self) -> &'static str {
        "envoy.filters.http.rbac"
    }
    fn types(&self) -> &'static [&'static str] {
        &["envoy.extensions.filters.http.rbac.v3.RBAC"]
    }
    fn route_types(&self) -> &'static [&'static str] {
        &["envoy.extensions.filters.http.rbac.v3.RBACPerRoute"]
    }
    fn compile(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn HttpFilter>> {
        let config: Rbac = decode(config, at, cx.report)?;
        let mut settings = Settings::compile(&config, at, cx)?;
        let (enforced, shadow) = (prefixed(cx.scope, &config.rules_stat_prefix), prefixed(cx.scope, &config.shadow_rules_stat_prefix));
        if settings.per_rule {
            settings.enforced.iter_mut().for_each(|e| e.track(&enforced, ""));
            settings.shadow.iter_mut().for_each(|e| e.track(&shadow, "shadow_"));
        }
        Some(Arc::new(Filter { settings, stats: Stats::new(&enforced, &shadow), scopes: (enforced, shadow) }))
    }
    fn compile_route(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn Any + Send + Sync>> {
        let config: RbacPerRoute = decode(config, at, cx.report)?;
        // Nothing inside switches the filter off.
        Some(Arc::new(Settings::compile(&config.rbac.unwrap_or_default(), &at.field("rbac"), cx)?))
    }
}

/// What a listener or a route says.
#[derive(Debug)]
struct Settings {
    enforced: Option<Engine>,
    shadow: Option<Engine>,
    /// Prefixes of the keys in dynamic metadata.
    rules_prefix: Box<str>,
    shadow_prefix: Box<str>,
    per_rule: bool,
}

impl Settings {
    fn compile(config: &Rbac, at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Self> {
        let enforced = compile_engine((config.rules.as_ref(), "rules"), (config.matcher.as_ref(), "matcher"), Layer::Http, at, cx);
        let shadow = compile_engine(
            (config.shadow_rules.as_ref(), "shadow_rules"),
            (config.shadow_matcher.as_ref(), "shadow_matcher"),
            Layer::Http,
            at,
            cx,
        );
        Some(Self {
            enforced: enforced?,
            shadow: shadow?,
            rules_prefix: config.rules_stat_prefix.as_str().into(),
            shadow_prefix: config.shadow_rules_stat_prefix.as_str().into(),
            per_rule: config.track_per_rule_stats,
        })
    }
}

#[derive(Debug)]
struct Filter {
    settings: Settings,
    stats: Stats,
    /// Of enforced and of shadow rules, for policies of routes.
    scopes: (Scope, Scope),
}

impl HttpFilter for Filter {
    fn needs(&self) -> Needs {
        Needs::REQUEST_HEADERS
    }
    fn on_request<'a>(&'a self, cx: FilterCx<'a>) -> FilterAction<'a> {
        let of_route = cx.route_config::<Settings>();
        let settings = of_route.as_deref().unwrap_or(&self.settings);
        let ex = cx.ex;
        let subject = Subject { request: Some(&ex.request), info: &ex.info, route: ex.route.as_deref() };
        let shadow = settings.shadow.as_ref().map(|engine| engine.decide(&subject));
        let enforced = settings.enforced.as_ref().map(|engine| engine.decide(&subject));
        // A route's policies are counted with the listener's stats, which only the listener's filter knows.
        let by_name = of_route.is_some() && settings.per_rule;
        let mut fields = Struct::default();
        let mut tell = |prefix: &str, kind: &str, policy: Option<&Named>, allowed: bool| {
            if let Some(policy) = policy {
                fields.fields.insert([prefix, kind, "effective_policy_id"].concat(), text(&policy.name));
            }
            fields.fields.insert([prefix, kind, "engine_result"].concat(), result(allowed));
        };
        if let Some(decision) = &shadow {
            self.stats.shadow(decision.allowed);
            if let Some(policy) = decision.policy {
                policy.count(decision.allowed);
                if by_name {
                    count_by_name(&self.scopes.1, "shadow_", policy, decision.allowed);
                }
            }
            tell(first(&settings.shadow_prefix, &self.settings.shadow_prefix), "shadow_", decision.policy, decision.allowed);
        }
        if let Some(decision) = &enforced {
            self.stats.enforced(decision.allowed);
            if let Some(policy) = decision.policy {
                policy.count(decision.allowed);
                if by_name {
                    count_by_name(&self.scopes.0, "", policy, decision.allowed);
                }
            }
            tell(first(&settings.rules_prefix, &self.settings.rules_prefix), "enforced_", decision.policy, decision.allowed);
        }
        let verdict = enforced.as_ref().filter(|d| !d.allowed).map(|d| details(d.policy.map(|p| &*p.name)));
        let log = enforced.and_then(|d| d.log);
        if let Some(log) = log {
            ex.info.set_metadata("envoy.common", access_log_hint(log));
        }
        if !fields.fields.is_empty() {
            ex.info.set_metadata(NAMESPACE, fields);
        }
        match verdict {
            Some(details) => FilterAction::Respond(Box::new(LocalReply::new(403, "RBAC: access denied", details))),
            None => FilterAction::Continue,
        }
    }
}

/// The route's prefix if it has one, else the listener's.
fn first<'a>(route: &'a str, listener: &'a str) -> &'a str {
    if route.is_empty() { listener } else { route }
}

fn count_by_name(scope: &Scope, kind: &str, policy: &Named, allowed: bool) {
    let what = if allowed { "allowed" } else { "denied" };
    scope.counter(&format!("policy.{}.{kind}{what}", policy.name)).inc();
}

/// `envoy.common` / `access_log_hint`, by which access logs choose.
pub(super) fn access_log_hint(log: bool) -> Struct {
    Struct { fields: [("access_log_hint".to_string(), Value { kind: Some(Kind::BoolValue(log)) })].into() }
}
