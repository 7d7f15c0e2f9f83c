//! Filters whose configuration arrives by ECDS: one slot per name, which a filter chain holds from the start and the control
//! thread fills when the configuration comes. Until then the default configuration answers, or requests get a 500 with flag NFCF.
//! Source: `envoy/config/core/v3/extension.proto` ExtensionConfigSource.

use arc_swap::ArcSwapOption;
use nuncio_core::diag::{At, Report};
use nuncio_core::filter::{FilterAction, FilterCx, HttpFilter, Needs};
use nuncio_core::info::TrafficDirection;
use nuncio_core::registry::{FactoryCx, Registry, Server};
use nuncio_core::{Headers, LocalReply, ResponseFlags};
use nuncio_proto::envoy::config::core::v3::{ExtensionConfigSource, TypedExtensionConfig};
use nuncio_stats::Scope;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// One extension configuration by name.
#[derive(Debug)]
pub struct EcdsSlot {
    name: String,
    /// Type names that the chain accepts.
    types: Vec<String>,
    scope: Scope,
    direction: TrafficDirection,
    server: Arc<Server>,
    current: ArcSwapOption<Arc<dyn HttpFilter>>,
}

impl EcdsSlot {
    fn compile(&self, config: &TypedExtensionConfig, registry: &Registry, at: &At<'_>, report: &mut Report) -> Option<Arc<dyn HttpFilter>> {
        let any = config.typed_config.clone().unwrap_or_default();
        let typed = match nuncio_proto::typed::unpack(&any) {
            Ok(typed) => typed,
            Err(why) => {
                report.error(at, why, "use a filter type that Nuncio knows");
                return None;
            }
        };
        if !self.types.contains(&typed.name) {
            report.error(at, format!("type {}", typed.name), format!("one of type_urls: {}", self.types.join(", ")));
            return None;
        }
        let Some(factory) = registry.http(&typed.name) else {
            report.unsupported(at, format!("HTTP filter {:?} of type {}", config.name, typed.name));
            return None;
        };
        let mut cx = FactoryCx { server: &self.server, scope: &self.scope, direction: self.direction, report };
        factory.compile(&typed.value, at, &mut cx)
    }
}

/// Every slot that a living filter chain holds.
#[derive(Debug, Default)]
pub struct EcdsSlots {
    slots: Mutex<HashMap<String, Vec<Weak<EcdsSlot>>>>,
}

impl EcdsSlots {
    /// Names that somebody waits for.
    pub fn wanted(&self) -> Vec<String> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.retain(|_, all| {
            all.retain(|s| s.strong_count() > 0);
            !all.is_empty()
        });
        let mut names: Vec<_> = slots.keys().cloned().collect();
        names.sort();
        names
    }
    /// Puts an arrived configuration into every slot of its name. Errors refuse it; what was there stays.
    pub fn apply(&self, config: &TypedExtensionConfig, registry: &Registry, report: &mut Report) -> bool {
        let holders = self.slots.lock().unwrap_or_else(PoisonError::into_inner).get(&config.name).cloned().unwrap_or_default();
        let at = At::Root;
        let at = at.field("typed_config");
        let compiled: Vec<_> =
            holders.iter().filter_map(Weak::upgrade).map(|slot| (slot.compile(config, registry, &at, report), slot)).collect();
        if report.has_errors() {
            return false;
        }
        for (filter, slot) in compiled {
            slot.current.store(filter.map(Arc::new));
        }
        true
    }
    /// The filter that a chain holds for `source`; compiled from the default configuration until ECDS answers.
    pub fn filter(
        &self,
        name: &str,
        source: &ExtensionConfigSource,
        registry: &Registry,
        at: &At<'_>,
        cx: &mut FactoryCx<'_>,
    ) -> Option<Arc<dyn HttpFilter>> {
        let slot = Arc::new(EcdsSlot {
            name: name.to_string(),
            types: source.type_urls.iter().map(|t| t.rsplit('/').next().unwrap_or(t).to_string()).collect(),
            scope: cx.scope.clone(),
            direction: cx.direction,
            server: cx.server.clone(),
            current: ArcSwapOption::empty(),
        });
        let known = slot.types.iter().any(|t| registry.http(t).is_some());
        if !known {
            cx.report.unsupported(&at.field("type_urls"), format!("every filter type of {name:?} ({})", slot.types.join(", ")));
            return None;
        }
        if let Some(default) = &source.default_config {
            let default = TypedExtensionConfig { name: name.to_string(), typed_config: Some(default.clone()) };
            let filter = slot.compile(&default, registry, &at.field("default_config"), cx.report)?;
            slot.current.store(Some(Arc::new(filter)));
        }
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).entry(name.to_string()).or_default().push(Arc::downgrade(&slot));
        Some(Arc::new(DiscoveredFilter { slot }))
    }
}

/// A filter that asks its slot at each callback.
#[derive(Debug)]
struct DiscoveredFilter {
    slot: Arc<EcdsSlot>,
}

/// The filter that one exchange began with.
struct Begun(Arc<dyn HttpFilter>);

impl HttpFilter for DiscoveredFilter {
    fn needs(&self) -> Needs {
        let headers = Needs::REQUEST_HEADERS.and(Needs::RESPONSE_HEADERS);
        headers.and(Needs::RESPONSE_BODY).and(Needs::RESPONSE_TRAILERS).and(Needs::COMPLETE)
    }
    fn on_request<'a>(&'a self, mut cx: FilterCx<'a>) -> FilterAction<'a> {
        let Some(filter) = self.slot.current.load().as_ref().map(|f| Arc::clone(f.as_ref())) else {
            log::debug!(target: "filter", "no configuration for filter {:?} yet", self.slot.name);
            return FilterAction::Respond(Box::new(
                LocalReply::new(500, "", "filter_config_not_found").flag(ResponseFlags::NO_FILTER_CONFIG_FOUND),
            ));
        };
        cx.set_state(Begun(filter.clone()));
        cx.index += STATE_OFFSET;
        if !filter.needs().has(Needs::REQUEST_HEADERS) {
            return FilterAction::Continue;
        }
        FilterAction::Await(Box::pin(async move {
            match filter.on_request(cx) {
                FilterAction::Continue => nuncio_core::filter::Outcome::Continue,
                FilterAction::Respond(reply) => nuncio_core::filter::Outcome::Respond(reply),
                FilterAction::Await(wait) => wait.await,
            }
        }))
    }
    fn hold_response(&self, mut cx: FilterCx<'_>) -> Option<usize> {
        begun(&mut cx, Needs::RESPONSE_BODY)?.hold_response(cx)
    }
    fn on_response(&self, mut cx: FilterCx<'_>) {
        if let Some(filter) = begun(&mut cx, Needs::RESPONSE_HEADERS) {
            filter.on_response(cx);
        }
    }
    fn on_response_trailers(&self, mut cx: FilterCx<'_>, trailers: &mut Headers) {
        if let Some(filter) = begun(&mut cx, Needs::RESPONSE_TRAILERS) {
            filter.on_response_trailers(cx, trailers);
        }
    }
    fn on_complete(&self, mut cx: FilterCx<'_>) {
        if let Some(filter) = begun(&mut cx, Needs::COMPLETE) {
            filter.on_complete(cx);
        }
    }
}

/// Filters by ECDS keep their state beside the handle of the filter itself: far above the indices of the chain.
const STATE_OFFSET: usize = 64;

fn begun(cx: &mut FilterCx<'_>, phase: Needs) -> Option<Arc<dyn HttpFilter>> {
    let filter = cx.state::<Begun>().map(|b| b.0.clone()).filter(|f| f.needs().has(phase))?;
    cx.index += STATE_OFFSET;
    Some(filter)
}
