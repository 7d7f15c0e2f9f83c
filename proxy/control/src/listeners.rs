//! LDS, RDS and ECDS, and the warming of listeners: a listener is live once its routes (and filters by ECDS) are there or their
//! timeouts fired; until then the one before serves. Missing secrets delay it by [`SECRET_PATIENCE`] at most.

use crate::clusters::BATCH;
use crate::control::{Control, reason};
use crate::needs::{self, Needs, ScopeNeed, ScopesFrom};
use crate::raw::Standing;
use crate::subscriptions::Kind;
use nuncio_core::diag::{At, Report};
use nuncio_core::info::TrafficDirection;
use nuncio_listener::manager::CompiledListener;
use nuncio_proto::Message;
use nuncio_proto::envoy::config::core::v3::TypedExtensionConfig;
use nuncio_proto::envoy::config::listener::v3::Listener;
use nuncio_proto::envoy::config::route::v3::RouteConfiguration;
use nuncio_proto::envoy::extensions::filters::network::http_connection_manager::v3::ScopedRouteConfigurationsList;
use nuncio_route::{RouteCx, RouteTable};
use nuncio_xds::{Refused, Update};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a listener waits for secrets that have not arrived. A gateway whose Secret does not exist never gets it; its other
/// servers must not wait for that.
const SECRET_PATIENCE: Duration = Duration::from_secs(2);

/// Listeners by name: what serves and what warms.
#[derive(Default)]
pub struct Listeners {
    all: BTreeMap<Arc<str>, State>,
}

#[derive(Default)]
struct State {
    live: Option<Needs>,
    warming: Option<Warming>,
}

struct Warming {
    compiled: Arc<CompiledListener>,
    needs: Needs,
    secrets_until: Instant,
}

impl Listeners {
    /// Names of listeners that are not live yet, with what they wait for; `undiscovered` is [`Control::undiscovered`].
    pub fn waiting(&self, undiscovered: impl Fn(&Needs) -> Vec<String>) -> Vec<(Arc<str>, Vec<String>)> {
        let waiting = self.all.iter().filter_map(|(name, s)| Some((name, s.warming.as_ref()?)));
        waiting
            .map(|(name, w)| {
                let mut what: Vec<String> = w.compiled.pending().into_iter().map(|r| format!("RDS {r}")).collect();
                what.extend(undiscovered(&w.needs));
                if !w.compiled.secrets_ready() {
                    what.push("SDS".to_string());
                }
                (name.clone(), what)
            })
            .collect()
    }
    /// Number of listeners that warm.
    pub fn warming(&self) -> usize {
        self.all.values().filter(|s| s.warming.is_some()).count()
    }
    /// Route tables inside of live listeners.
    pub fn inline_routes(&self) -> Vec<bytes::Bytes> {
        self.all.values().filter_map(|s| s.live.as_ref()).flat_map(|n| n.inline_routes.iter().cloned()).collect()
    }
    /// Scoped routes of all listeners.
    pub fn scopes(&self) -> Vec<ScopeNeed> {
        self.needs().flat_map(|n| n.scopes.iter().cloned()).collect()
    }
    /// Scopes inside of live listeners.
    pub fn inline_scopes(&self) -> Vec<(Arc<str>, ScopedRouteConfigurationsList)> {
        self.all.values().filter_map(|s| s.live.as_ref()).flat_map(|n| n.inline_scopes.iter().cloned()).collect()
    }
    fn needs(&self) -> impl Iterator<Item = &Needs> {
        self.all.values().flat_map(|s| s.live.iter().chain(s.warming.as_ref().map(|w| &w.needs)))
    }
    /// Direction of the first listener that uses an RDS name.
    fn direction(&self, route: &str) -> TrafficDirection {
        self.needs().find(|n| n.routes.iter().any(|r| *r.name == *route)).map_or(TrafficDirection::Unspecified, |n| n.direction)
    }
}

impl Control {
    pub(crate) async fn update_listeners(self: &Rc<Self>, update: &Update) -> Vec<Refused> {
        let mut refused = Vec::new();
        // Removals first: a listener may take the address of one that leaves with the same update.
        for name in &update.removed {
            self.remove_listener(name);
        }
        for (i, resource) in update.resources.iter().enumerate() {
            if i % BATCH == BATCH - 1 {
                tokio::task::yield_now().await;
            }
            let standing = self.raw(Kind::Listener).borrow().standing(&resource.name, &resource.value);
            match standing {
                Standing::Static => {
                    log::warn!(target: "config", "LDS: listener '{}' is in the bootstrap and is not changed", resource.name);
                    continue;
                }
                Standing::Unchanged => continue,
                Standing::Changed => {}
            }
            let mut proto = match Listener::decode(resource.value.as_ref()) {
                Ok(proto) => proto,
                Err(e) => {
                    refused.push(Refused { name: resource.name.clone(), reason: format!("is no valid Listener: {e}") });
                    continue;
                }
            };
            if proto.name.is_empty() {
                proto.name = resource.name.to_string();
            }
            match self.compile_listener(&proto) {
                Ok(warming) => {
                    self.raw(Kind::Listener).borrow_mut().accept(resource, true);
                    self.listeners.borrow_mut().all.entry(resource.name.clone()).or_default().warming = Some(warming);
                    // Whether its address can be had shows at once, if it has not to wait: then it can still be refused.
                    if let Err(reason) = self.recheck_listener(&resource.name) {
                        refused.push(Refused { name: resource.name.clone(), reason });
                    }
                }
                Err(report) => refused.push(Refused { name: resource.name.clone(), reason: reason(&report) }),
            }
        }
        refused
    }

    /// Adds a listener of the bootstrap.
    pub(crate) fn add_static_listener(self: &Rc<Self>, proto: &Listener) -> Result<(), String> {
        let warming = self.compile_listener(proto).map_err(|report| reason(&report))?;
        let name: Arc<str> = proto.name.as_str().into();
        self.raw(Kind::Listener).borrow_mut().put_static(&name, proto.encode_to_vec().into());
        self.listeners.borrow_mut().all.entry(name.clone()).or_default().warming = Some(warming);
        self.recheck_listener(&name)
    }

    fn compile_listener(&self, proto: &Listener) -> Result<Warming, Report> {
        let mut report = Report::new();
        let needs = needs::of(proto, &mut report);
        let compiled = self.listener_manager.borrow().compile(proto, &mut report);
        let outcome = Self::findings(Kind::Listener, &proto.name, report).and_then(|()| compiled.ok_or_else(Report::new));
        if outcome.is_err() {
            self.server.stats.root().counter("listener_manager.listener_create_failure").inc();
        }
        outcome.map(|compiled| Warming { compiled, needs, secrets_until: Instant::now() + SECRET_PATIENCE })
    }

    fn remove_listener(&self, name: &Arc<str>) {
        if self.raw(Kind::Listener).borrow().get(name).is_some_and(|e| e.is_static) {
            log::warn!(target: "config", "LDS: listener '{name}' is in the bootstrap and is not removed");
            return;
        }
        if self.listeners.borrow_mut().all.remove(name).is_some() {
            self.listener_manager.borrow_mut().remove(name);
        }
        self.raw(Kind::Listener).borrow_mut().remove(name);
    }

    /// Makes listeners live that wait for nothing any more.
    pub(crate) fn recheck_listeners(self: &Rc<Self>) {
        let waiting: Vec<Arc<str>> = {
            let listeners = self.listeners.borrow();
            listeners.all.iter().filter(|(_, s)| s.warming.is_some()).map(|(n, _)| n.clone()).collect()
        };
        for name in waiting {
            if let Err(reason) = self.recheck_listener(&name) {
                log::error!(target: "config", "listener '{name}' cannot be used: {reason}");
                let update = Refused { name: name.clone(), reason };
                self.subscriptions.each(Kind::Listener, crate::subscriptions::ALL, |w| w.stats.iter().for_each(|s| s.rejected()));
                self.raw(Kind::Listener).borrow_mut().fail_warming(&name, update.reason);
            }
        }
    }

    fn recheck_listener(self: &Rc<Self>, name: &Arc<str>) -> Result<(), String> {
        let ready = {
            let listeners = self.listeners.borrow();
            let Some(warming) = listeners.all.get(name).and_then(|s| s.warming.as_ref()) else { return Ok(()) };
            self.is_ready(warming)
        };
        if !ready {
            return Ok(());
        }
        let Some(warming) = self.listeners.borrow_mut().all.get_mut(name).and_then(|s| s.warming.take()) else { return Ok(()) };
        match self.listener_manager.borrow_mut().apply(warming.compiled) {
            Ok(()) => {
                if let Some(state) = self.listeners.borrow_mut().all.get_mut(name) {
                    state.live = Some(warming.needs);
                }
                self.raw(Kind::Listener).borrow_mut().activate(name);
                Ok(())
            }
            Err(report) => {
                let mut listeners = self.listeners.borrow_mut();
                if listeners.all.get(name).is_some_and(|s| s.live.is_none()) {
                    listeners.all.remove(name);
                }
                drop(listeners);
                self.raw(Kind::Listener).borrow_mut().fail_warming(name, reason(&report));
                Err(reason(&report))
            }
        }
    }

    /// Whether a subscription was answered or given up.
    fn answered(&self, kind: Kind, name: &str) -> bool {
        self.subscriptions.received(kind, name) || self.subscriptions.timed_out(kind, name)
    }

    /// Scopes and virtual hosts that a listener still waits for.
    pub(crate) fn undiscovered(&self, needs: &Needs) -> Vec<String> {
        let scopes = needs.scopes.iter().filter_map(|n| match &n.from {
            ScopesFrom::Source(source) if !self.scopes_settled(source) => Some(format!("SRDS {}", n.name)),
            ScopesFrom::Source(_) | ScopesFrom::Inline(_) => None,
        });
        let known = self.discovered.borrow();
        // A table that just came is not subscribed for yet.
        let open = |name: &str| known.has(name) && !self.answered(Kind::VirtualHost, name);
        let hosts = needs.routes.iter().filter(|n| open(&n.name)).map(|n| format!("VHDS {}", n.name));
        scopes.chain(hosts).collect()
    }

    fn is_ready(&self, warming: &Warming) -> bool {
        // A table that is there is used, whoever asked for it first; else its subscription must have been answered or given up.
        let discovered = self.undiscovered(&warming.needs).is_empty();
        let routes = warming.compiled.pending().iter().all(|name| self.answered(Kind::Route, name));
        let filters = warming.needs.extensions.iter().filter(|n| n.waits).all(|n| self.answered(Kind::Extension, &n.name));
        let secrets = warming.compiled.secrets_ready() || Instant::now() >= warming.secrets_until;
        discovered && routes && filters && secrets
    }

    /// Subscribes to the route tables and filters that listeners need, and to no others.
    pub(crate) fn sync_routes(self: &Rc<Self>) {
        let by_scope = self.sync_scopes();
        let (mut routes, extensions) = {
            let listeners = self.listeners.borrow();
            let routes: Vec<_> = listeners.needs().flat_map(|n| n.routes.iter().cloned()).collect();
            let extensions: Vec<_> = listeners.needs().flat_map(|n| n.extensions.iter().cloned()).collect();
            (routes, extensions)
        };
        routes.extend(by_scope);
        let prefixes: HashMap<_, _> = match self.discovered.borrow().is_empty() {
            true => HashMap::new(),
            false => routes.iter().map(|n| (n.name.clone(), n.stat_prefix.clone())).collect(),
        };
        let gone = self.subscriptions.sync(self, Kind::Route, routes);
        for name in &gone {
            self.raw(Kind::Route).borrow_mut().remove(name);
            let slot = self.shared.routes.slot(name);
            // Draining connections of a removed listener keep their slot, and with it their table.
            if Arc::strong_count(&slot) <= 2 {
                slot.set(None);
            }
        }
        if !gone.is_empty() {
            self.shared.routes.sweep();
        }
        self.sync_virtual_hosts(&prefixes);
        for name in self.subscriptions.sync(self, Kind::Extension, extensions) {
            self.raw(Kind::Extension).borrow_mut().remove(&name);
        }
    }

    pub(crate) async fn update_routes(self: &Rc<Self>, update: &Update) -> Vec<Refused> {
        let mut refused = Vec::new();
        for resource in &update.resources {
            tokio::task::yield_now().await;
            let slot = self.shared.routes.slot(&resource.name);
            if slot.load().is_some() && self.raw(Kind::Route).borrow().is_unchanged(&resource.name, &resource.value) {
                continue;
            }
            match self.compile_routes(resource) {
                Ok((table, proto)) => {
                    self.note_table(&resource.name, proto);
                    slot.set(Some(table));
                    self.raw(Kind::Route).borrow_mut().accept(resource, false);
                }
                Err(report) => refused.push(Refused { name: resource.name.clone(), reason: reason(&report) }),
            }
        }
        // Envoy keeps the last table of a removed RDS resource, and so does this.
        refused
    }

    /// Compiles one route configuration from RDS, with the virtual hosts that came by VHDS; the error is the reason of the refusal.
    pub(crate) fn compile_routes(&self, resource: &nuncio_xds::Resource) -> Result<(Arc<RouteTable>, RouteConfiguration), Report> {
        let proto = RouteConfiguration::decode(resource.value.as_ref()).map_err(|e| Self::undecodable("RouteConfiguration", e))?;
        let mut report = Report::new();
        let table = match &proto.vhds {
            None => self.compile_table(&proto, &resource.name, &At::Root, &mut report),
            Some(_) => {
                let merged = self.with_discovered(proto.clone(), &mut report);
                self.compile_table(&merged, &resource.name, &At::Root, &mut report)
            }
        };
        Self::findings(Kind::Route, &resource.name, report)?;
        table.map(|table| (table, proto)).ok_or_else(Report::new)
    }

    /// Compiles a route table that listeners know as `name`.
    pub(crate) fn compile_table(
        &self,
        proto: &RouteConfiguration,
        name: &str,
        at: &At<'_>,
        report: &mut Report,
    ) -> Option<Arc<RouteTable>> {
        let scope = self.server.stats.root();
        let mut cx = RouteCx {
            clusters: &self.shared.clusters,
            registry: &self.shared.registry,
            server: &self.server,
            scope: &scope,
            direction: self.listeners.borrow().direction(name),
            validate_clusters: false,
            report,
        };
        RouteTable::compile(proto, at, &mut cx)
    }

    pub(crate) fn update_extensions(self: &Rc<Self>, update: &Update) -> Vec<Refused> {
        let mut refused = Vec::new();
        for resource in &update.resources {
            let mut report = Report::new();
            let root = At::Root;
            match TypedExtensionConfig::decode(resource.value.as_ref()) {
                Ok(config) => {
                    self.shared.extensions.apply(&config, &self.shared.registry, &mut report);
                }
                Err(e) => report.error(&root, format!("is no valid TypedExtensionConfig: {e}"), "send a valid one"),
            }
            match Self::findings(Kind::Extension, &resource.name, report) {
                Ok(()) => self.raw(Kind::Extension).borrow_mut().accept(resource, false),
                Err(report) => refused.push(Refused { name: resource.name.clone(), reason: reason(&report) }),
            }
        }
        refused
    }
}
