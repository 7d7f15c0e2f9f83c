//! `HeaderMutationRules`: what a service may change in the headers of a request. Compiled on the control thread, asked on workers.
//! Source: `envoy/config/common/mutation_rules/v3/mutation_rules.proto`, Envoy's `MutationRules::Checker`.

use nuncio_core::diag::{At, Report};
use nuncio_matcher::Regex;
use nuncio_proto::envoy::config::common::mutation_rules::v3::HeaderMutationRules;

/// What becomes of one change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permit {
    Allowed,
    /// Leave it out.
    Ignored,
    /// The whole answer is wrong (`disallow_is_error`).
    Failed,
}

/// Compiled rules. The default ones forbid routing headers and Envoy's own.
#[derive(Debug, Default)]
pub struct MutationRules {
    allow_all_routing: bool,
    allow_envoy: bool,
    disallow_system: bool,
    disallow_all: bool,
    is_error: bool,
    allow: Option<Regex>,
    disallow: Option<Regex>,
}

impl MutationRules {
    /// Compiles `rules`; none means refused.
    pub fn compile(rules: &HeaderMutationRules, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let flag = |b: Option<bool>| b.unwrap_or(false);
        let allow = match &rules.allow_expression {
            Some(regex) => Some(Regex::compile(regex, &at.field("allow_expression"), report)?),
            None => None,
        };
        let disallow = match &rules.disallow_expression {
            Some(regex) => Some(Regex::compile(regex, &at.field("disallow_expression"), report)?),
            None => None,
        };
        Some(Self {
            allow_all_routing: flag(rules.allow_all_routing),
            allow_envoy: flag(rules.allow_envoy),
            disallow_system: flag(rules.disallow_system),
            disallow_all: flag(rules.disallow_all),
            is_error: flag(rules.disallow_is_error),
            allow,
            disallow,
        })
    }
    /// Whether header `name` (lower case, pseudo-headers with their colon) may be set or appended to.
    pub fn set(&self, name: &str) -> Permit {
        self.permit(self.allows(name))
    }
    /// Whether it may be removed: never what a request cannot be without.
    pub fn remove(&self, name: &str) -> Permit {
        self.permit(!name.starts_with(':') && name != "host" && self.allows(name))
    }
    fn permit(&self, allowed: bool) -> Permit {
        match (allowed, self.is_error) {
            (true, _) => Permit::Allowed,
            (false, false) => Permit::Ignored,
            (false, true) => Permit::Failed,
        }
    }
    fn allows(&self, name: &str) -> bool {
        if self.disallow.as_ref().is_some_and(|r| r.matches(name)) {
            return false;
        }
        if self.allow.as_ref().is_some_and(|r| r.matches(name)) {
            return true;
        }
        let routing = matches!(name, "host" | ":authority" | ":scheme" | ":method");
        !(self.disallow_all
            || (self.disallow_system && name.starts_with(':'))
            || (routing && !self.allow_all_routing)
            || (name.starts_with("x-envoy-") && !self.allow_envoy))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nuncio_proto::envoy::r#type::matcher::v3::RegexMatcher;

    fn rules(p: HeaderMutationRules) -> MutationRules {
        MutationRules::compile(&p, &At::Root, &mut Report::new()).unwrap()
    }

    #[test]
    fn defaults_and_switches() {
        let none = MutationRules::default();
        for name in ["host", ":authority", ":scheme", ":method", "x-envoy-retry-on"] {
            assert_eq!(none.set(name), Permit::Ignored, "{name}");
        }
        assert_eq!((none.set("x-user"), none.set(":path"), none.remove(":path")), (Permit::Allowed, Permit::Allowed, Permit::Ignored));
        let all = rules(HeaderMutationRules { allow_all_routing: Some(true), allow_envoy: Some(true), ..Default::default() });
        assert_eq!((all.set(":authority"), all.set("x-envoy-a")), (Permit::Allowed, Permit::Allowed));
        let system = rules(HeaderMutationRules { disallow_system: Some(true), disallow_is_error: Some(true), ..Default::default() });
        assert_eq!((system.set(":path"), system.set("a")), (Permit::Failed, Permit::Allowed));
    }

    #[test]
    fn expressions_win() {
        let regex = |r: &str| Some(RegexMatcher { regex: r.into(), ..Default::default() });
        let p = HeaderMutationRules {
            disallow_all: Some(true),
            allow_expression: regex("x-.*"),
            disallow_expression: regex("x-secret"),
            ..Default::default()
        };
        let r = rules(p);
        assert_eq!((r.set("x-user"), r.set("x-secret"), r.set("other")), (Permit::Allowed, Permit::Ignored, Permit::Ignored));
    }
}
