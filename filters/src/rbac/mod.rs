//! envoy.filters.http.rbac and envoy.filters.network.rbac: who may do what. Istio's AuthorizationPolicy becomes these filters.
//! Rules are compiled on the control thread; any worker decides by them. Source: `envoy/config/rbac/v3/rbac.proto`,
//! `envoy/extensions/filters/{http,network}/rbac/v3/rbac.proto`.

mod engine;
mod http;
mod index;
mod network;
mod rule;

pub use http::Factory as HttpFactory;
pub use network::Factory as NetworkFactory;

use engine::Engine;
use nuncio_core::diag::At;
use nuncio_core::registry::FactoryCx;
use nuncio_core::stats::{Counter, Scope};
use nuncio_proto::Value;
use nuncio_proto::envoy::config::rbac::v3::Rbac;
use nuncio_proto::xds::r#type::matcher::v3::Matcher;
use prost_types::value::Kind;
use rule::Layer;

/// `rbac_access_denied_matched_policy[...]`, what a refusal says of itself. Blanks of names would break log lines.
fn details(policy: Option<&str>) -> String {
    let name: String = policy.unwrap_or("none").chars().map(|c| if c.is_ascii_whitespace() || c == '\x0b' { '_' } else { c }).collect();
    format!("rbac_access_denied_matched_policy[{name}]")
}

/// `rules` or else `matcher`; the outer `None` means refused, the inner one that neither is there.
fn compile_engine(
    rules: (Option<&Rbac>, &str),
    matcher: (Option<&Matcher>, &str),
    layer: Layer,
    at: &At<'_>,
    cx: &mut FactoryCx<'_>,
) -> Option<Option<Engine>> {
    match (rules.0, matcher.0) {
        (Some(_), Some(_)) => {
            cx.report.error(&at.field(matcher.1), format!("both {} and {}", rules.1, matcher.1), "set one of them");
            None
        }
        (Some(policies), None) => Engine::of_rules(policies, layer, &at.field(rules.1), cx.report).map(Some),
        (None, Some(tree)) => Engine::of_matcher(tree, layer, &at.field(matcher.1), cx.report).map(Some),
        (None, None) => Some(None),
    }
}

/// Where stats of a prefix go: `rbac.` and the prefix, which ends in a dot.
fn prefixed(base: &Scope, prefix: &str) -> Scope {
    let rbac = base.scope("rbac.");
    match prefix {
        "" => rbac,
        _ => rbac.scope(&dotted(prefix)),
    }
}

/// `prefix` with a dot at its end.
fn dotted(prefix: &str) -> String {
    if prefix.ends_with('.') { prefix.to_string() } else { format!("{prefix}.") }
}

/// Counters of both modes.
#[derive(Debug)]
struct Stats {
    allowed: Counter,
    denied: Counter,
    shadow_allowed: Counter,
    shadow_denied: Counter,
}

impl Stats {
    fn new(enforced: &Scope, shadow: &Scope) -> Self {
        Self {
            allowed: enforced.counter("allowed"),
            denied: enforced.counter("denied"),
            shadow_allowed: shadow.counter("shadow_allowed"),
            shadow_denied: shadow.counter("shadow_denied"),
        }
    }
    fn enforced(&self, allowed: bool) {
        if allowed { self.allowed.inc() } else { self.denied.inc() }
    }
    fn shadow(&self, allowed: bool) {
        if allowed { self.shadow_allowed.inc() } else { self.shadow_denied.inc() }
    }
}

fn text(value: &str) -> Value {
    Value { kind: Some(Kind::StringValue(value.to_string())) }
}

/// How dynamic metadata names a decision.
fn result(allowed: bool) -> Value {
    text(if allowed { "allowed" } else { "denied" })
}

#[cfg(test)]
mod tests;
