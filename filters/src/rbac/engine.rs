//! Decides by policies or by a match tree. Compiled on the control thread; any worker decides, without allocation.
//! Source: `envoy/config/rbac/v3/rbac.proto`, Envoy's `filters/common/rbac/engine_impl.cc`.

use super::index::Index;
use super::rule::{Compiler, Layer, Rule, Subject};
use nuncio_core::diag::{At, Report};
use nuncio_core::stats::{Counter, Scope};
use nuncio_format::{Expression, ExpressionSource, FormatContext, compile_expression};
use nuncio_matcher::{MatchData, MatchTree};
use nuncio_proto::envoy::config::rbac::v3 as proto;
use nuncio_proto::typed;
use nuncio_proto::xds::r#type::matcher::v3::Matcher;
use proto::rbac::Action;

/// What a policy, or a leaf of a match tree, is called, with its own counters if they are wanted.
#[derive(Debug)]
pub struct Named {
    pub name: Box<str>,
    counters: Option<(Counter, Counter)>,
}

impl Named {
    /// Counts a decision of this policy.
    pub fn count(&self, allowed: bool) {
        if let Some((yes, no)) = &self.counters {
            if allowed { yes.inc() } else { no.inc() }
        }
    }
}

/// A decision.
#[derive(Debug)]
pub struct Decision<'a> {
    pub allowed: bool,
    /// The policy that decided.
    pub policy: Option<&'a Named>,
    /// Whether the request is to be logged, where rules say so.
    pub log: Option<bool>,
}

#[derive(Debug)]
struct Policy {
    named: Named,
    permissions: Box<[Rule]>,
    principals: Box<[Rule]>,
    condition: Option<Box<dyn Expression>>,
}

impl Policy {
    fn applies(&self, subject: &Subject<'_>) -> bool {
        self.permissions.iter().any(|r| r.matches(subject))
            && self.principals.iter().any(|r| r.matches(subject))
            && self.condition.as_ref().is_none_or(|condition| {
                condition.holds(&FormatContext { request: subject.request, route: subject.route, ..FormatContext::new(subject.info) })
            })
    }
}

#[derive(Debug)]
struct Leaf {
    named: Named,
    action: Action,
}

/// Compiled rules.
#[derive(Debug)]
pub struct Engine(Kind);

#[derive(Debug)]
enum Kind {
    /// In the order of their names; the first that applies decides.
    Policies {
        action: Action,
        policies: Box<[Policy]>,
        index: Option<Index>,
    },
    Tree {
        tree: MatchTree<Leaf>,
        logs: bool,
    },
}

impl Engine {
    /// Compiles `RBAC`.
    pub fn of_rules(rules: &proto::Rbac, layer: Layer, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let errors = report.errors();
        let Ok(action) = Action::try_from(rules.action) else {
            report.error(&at.field("action"), rules.action.to_string(), "use ALLOW, DENY or LOG");
            return None;
        };
        if rules.audit_logging_options.is_some() {
            report.warning(&at.field("audit_logging_options"), "audit loggers", "they are ignored, as Envoy ignores them; use access logs");
        }
        let all = at.field("policies");
        let mut policies = Vec::with_capacity(rules.policies.len());
        for (name, policy) in &rules.policies {
            policies.extend(compile_policy(name, policy, layer, &all.key(name), report));
        }
        let index = Index::new(rules.policies.values());
        (report.errors() == errors).then(|| Self(Kind::Policies { action, policies: policies.into(), index }))
    }
    /// Compiles a match tree with `envoy.config.rbac.v3.Action` at its leaves.
    pub fn of_matcher(matcher: &Matcher, layer: Layer, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let mut logs = false;
        let tree = MatchTree::compile(matcher, at, report, &mut |action, at, report| {
            let at = at.field("typed_config");
            let leaf: proto::Action = match typed::unpack_as(&action.typed_config.clone().unwrap_or_default()) {
                Ok(leaf) => leaf,
                Err(why) => {
                    report.error(&at, why, "use envoy.config.rbac.v3.Action");
                    return None;
                }
            };
            if leaf.name.is_empty() {
                report.error(&at.field("name"), "nothing", "name the action");
                return None;
            }
            let Ok(action) = Action::try_from(leaf.action) else {
                report.error(&at.field("action"), leaf.action.to_string(), "use ALLOW, DENY or LOG");
                return None;
            };
            logs |= action == Action::Log;
            Some(Leaf { named: Named { name: leaf.name.into(), counters: None }, action })
        })?;
        if layer == Layer::Network && tree.looks_at_http() {
            report.error(at, "an input of HTTP in a network filter", "use envoy.filters.http.rbac, or inputs of connections");
            return None;
        }
        Some(Self(Kind::Tree { tree, logs }))
    }
    /// Gives every policy counters: `policy.<name>.allowed` and so on, with `prefix` before the last part.
    pub fn track(&mut self, scope: &Scope, prefix: &str) {
        let mut make = |named: &mut Named| {
            let counter = |what: &str| scope.counter(&format!("policy.{}.{prefix}{what}", named.name));
            named.counters = Some((counter("allowed"), counter("denied")));
        };
        match &mut self.0 {
            Kind::Policies { policies, .. } => policies.iter_mut().map(|p| &mut p.named).for_each(&mut make),
            Kind::Tree { tree, .. } => {
                tree.each_action_mut(&mut |leaf| make(&mut leaf.named));
            }
        }
    }
    /// Decides.
    pub fn decide(&self, subject: &Subject<'_>) -> Decision<'_> {
        match &self.0 {
            Kind::Policies { action, policies, index } => {
                let found = match index {
                    Some(index) => {
                        let position = |p: u32| policies.get(p as usize);
                        index.first(subject, |p| position(p).is_some_and(|policy| policy.applies(subject))).and_then(position)
                    }
                    None => policies.iter().find(|p| p.applies(subject)),
                };
                let (allowed, log) = match action {
                    Action::Allow => (found.is_some(), None),
                    Action::Deny => (found.is_none(), None),
                    Action::Log => (true, Some(found.is_some())),
                };
                Decision { allowed, policy: found.map(|p| &p.named), log }
            }
            Kind::Tree { tree, logs } => {
                let connection = Some(&*subject.info.connection);
                let data = MatchData { request: subject.request, info: Some(subject.info), connection, ..MatchData::default() };
                match tree.find(&data) {
                    Some(leaf) => Decision {
                        allowed: leaf.action != Action::Deny,
                        policy: Some(&leaf.named),
                        log: logs.then_some(leaf.action == Action::Log),
                    },
                    // What no leaf allows is denied.
                    None => Decision { allowed: false, policy: None, log: None },
                }
            }
        }
    }
}

fn compile_policy(name: &str, policy: &proto::Policy, layer: Layer, at: &At<'_>, report: &mut Report) -> Option<Policy> {
    let mut compiler = Compiler { layer, report };
    let permissions = compiler.permissions(&policy.permissions, &at.field("permissions"));
    let principals = compiler.principals(&policy.principals, &at.field("principals"));
    let checked = policy.checked_condition.as_ref();
    let condition = match (&policy.condition, checked) {
        (Some(_), Some(_)) => {
            report.error(&at.field("checked_condition"), "both condition and checked_condition", "set one of them");
            return None;
        }
        (Some(condition), None) => Some((condition, "condition")),
        (None, Some(checked)) => match &checked.expr {
            Some(condition) => Some((condition, "checked_condition")),
            None => {
                report.error(&at.field("checked_condition"), "no expression", "set expr");
                return None;
            }
        },
        (None, None) => None,
    };
    let condition = match condition {
        None => None,
        Some((condition, field)) => match compile_expression(ExpressionSource::Parsed(condition)) {
            Ok(condition) => Some(condition),
            Err(why) => {
                report.error(&at.field(field), why, "docs/envoy-coverage.md lists what is supported of CEL");
                return None;
            }
        },
    };
    Some(Policy { named: Named { name: name.into(), counters: None }, permissions: permissions?, principals: principals?, condition })
}
