//! envoy.filters.network.rbac: decides by connection, when its first bytes arrive or whenever some do. The worker that owns the
//! connection. Source: `envoy/extensions/filters/network/rbac/v3/rbac.proto`.

use super::engine::Engine;
use super::http::access_log_hint;
use super::rule::{Layer, Subject};
use super::{Stats, compile_engine, details, dotted, prefixed, result, text};
use crate::config::{decode, duration};
use bytes::BytesMut;
use nuncio_core::diag::At;
use nuncio_core::network::{NetworkAction, NetworkFilter, NetworkFilterConfig};
use nuncio_core::registry::{FactoryCx, NetworkFilterFactory};
use nuncio_core::{ConnectionInfo, StreamInfo};
use nuncio_proto::Struct;
use nuncio_proto::envoy::extensions::filters::network::rbac::v3::{Rbac, rbac::EnforcementType};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

const NAMESPACE: &str = "envoy.filters.network.rbac";

/// Factory of `envoy.extensions.filters.network.rbac.v3.RBAC`.
#[derive(Debug)]
pub struct Factory;

impl NetworkFilterFactory for Factory {
    fn name(&self) -> &'static str {
        "envoy.filters.network.rbac"
    }
    fn types(&self) -> &'static [&'static str] {
        &["envoy.extensions.filters.network.rbac.v3.RBAC"]
    }
    fn compile(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn NetworkFilterConfig>> {
        let config: Rbac = decode(config, at, cx.report)?;
        if config.stat_prefix.is_empty() {
            cx.report.error(&at.field("stat_prefix"), "nothing", "name the stats of this filter");
            return None;
        }
        let Ok(enforcement) = EnforcementType::try_from(config.enforcement_type) else {
            let found = config.enforcement_type.to_string();
            cx.report.error(&at.field("enforcement_type"), found, "use ONE_TIME_ON_FIRST_BYTE or CONTINUOUS");
            return None;
        };
        let delay = match &config.delay_deny {
            Some(delay) => duration(delay, &at.field("delay_deny"), cx.report)?,
            None => Duration::ZERO,
        };
        let enforced = compile_engine((config.rules.as_ref(), "rules"), (config.matcher.as_ref(), "matcher"), Layer::Network, at, cx);
        let shadow = compile_engine(
            (config.shadow_rules.as_ref(), "shadow_rules"),
            (config.shadow_matcher.as_ref(), "shadow_matcher"),
            Layer::Network,
            at,
            cx,
        );
        let root = cx.server.stats.root().scope(&dotted(&config.stat_prefix));
        let stats = Stats::new(&prefixed(&root, ""), &prefixed(&root, &config.shadow_rules_stat_prefix));
        let (enforced, shadow) = (enforced?, shadow?);
        Some(Arc::new(Config(Arc::new(Shared {
            enforced,
            shadow,
            shadow_prefix: config.shadow_rules_stat_prefix.into(),
            continuous: enforcement == EnforcementType::Continuous,
            delay,
            stats,
        }))))
    }
}

#[derive(Debug)]
struct Config(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    enforced: Option<Engine>,
    shadow: Option<Engine>,
    shadow_prefix: Box<str>,
    continuous: bool,
    delay: Duration,
    stats: Stats,
}

impl NetworkFilterConfig for Config {
    fn create(&self, _connection: &Rc<ConnectionInfo>) -> Option<Box<dyn NetworkFilter>> {
        let idle = self.0.enforced.is_none() && self.0.shadow.is_none();
        (!idle).then(|| Box::new(Filter { config: self.0.clone(), decided: false }) as Box<dyn NetworkFilter>)
    }
}

struct Filter {
    config: Arc<Shared>,
    decided: bool,
}

impl Filter {
    /// Judges the connection; what closes it, if it is refused.
    fn judge(&self, info: &mut StreamInfo) -> Option<NetworkAction> {
        let config = &*self.config;
        let subject = Subject { request: None, info, route: None };
        let shadow = config.shadow.as_ref().map(|engine| engine.decide(&subject));
        let enforced = config.enforced.as_ref().map(|engine| engine.decide(&subject));
        if let Some(decision) = &shadow {
            config.stats.shadow(decision.allowed);
            let mut fields = Struct::default();
            if let Some(policy) = decision.policy {
                fields.fields.insert([&*config.shadow_prefix, "shadow_effective_policy_id"].concat(), text(&policy.name));
            }
            fields.fields.insert([&*config.shadow_prefix, "shadow_engine_result"].concat(), result(decision.allowed));
            info.set_metadata(NAMESPACE, fields);
        }
        let decision = enforced?;
        config.stats.enforced(decision.allowed);
        if let Some(log) = decision.log {
            info.set_metadata("envoy.common", access_log_hint(log));
        }
        if decision.allowed {
            return None;
        }
        let details = details(decision.policy.map(|p| &*p.name)).into();
        info.connection.close_delay.set(config.delay);
        info.connection.local_close.set(Some("rbac_deny_close"));
        Some(NetworkAction::Close(details))
    }
}

impl NetworkFilter for Filter {
    fn on_read(&mut self, info: &mut StreamInfo, data: &mut BytesMut, end: bool) -> NetworkAction {
        if data.is_empty() && !end && !self.decided {
            return NetworkAction::Hold;
        }
        if self.decided && !self.config.continuous {
            return NetworkAction::Continue;
        }
        self.decided = true;
        self.judge(info).unwrap_or(NetworkAction::Continue)
    }
    fn wants_data(&self) -> bool {
        self.config.continuous || !self.decided
    }
}
