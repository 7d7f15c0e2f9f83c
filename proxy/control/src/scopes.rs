//! SRDS: scopes as each source gives them, and the route tables that they name. Control thread.

use crate::control::{Control, reason};
use crate::needs::{Need, ScopesFrom};
use crate::subscriptions::{ALL, Kind};
use nuncio_admin::{Resource as Shown, Version};
use nuncio_core::diag::{At, Report};
use nuncio_proto::envoy::admin::v3::scoped_routes_config_dump::DynamicScopedRouteConfigs;
use nuncio_proto::envoy::config::core::v3::ConfigSource;
use nuncio_proto::envoy::config::route::v3::ScopedRouteConfiguration;
use nuncio_proto::{Any, Message};
use nuncio_route::RouteSlot;
use nuncio_route::scopes::{Scope, ScopeKey, Scopes, ScopesSlot, is_aggregated, scope_key};
use nuncio_xds::{Refused, Resource, Update};
use std::collections::{BTreeMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;

/// The scopes of every source.
#[derive(Default)]
pub struct Feeds {
    all: Vec<Feed>,
    /// RDS names of scopes with `on_demand` that a request asked for.
    demanded: HashSet<Arc<str>>,
}

struct Feed {
    /// None is the aggregated stream.
    source: Option<Arc<ConfigSource>>,
    scopes: BTreeMap<Arc<str>, Held>,
    slot: Arc<ScopesSlot>,
}

/// One accepted scope.
struct Held {
    key: ScopeKey,
    scope: Scope,
    /// Its table comes by RDS.
    by_rds: bool,
}

impl Feed {
    /// Shows workers what is held.
    fn publish(&self) {
        let mut scopes = Scopes::default();
        for held in self.scopes.values() {
            // Keys were found to differ when the scopes were accepted.
            let _ = scopes.insert(held.key.clone(), held.scope.clone());
        }
        self.slot.set(Arc::new(scopes));
    }
}

fn same(a: Option<&Arc<ConfigSource>>, b: Option<&Arc<ConfigSource>>) -> bool {
    match (a, b) {
        (None, None) => true,
        (Some(a), Some(b)) => Arc::ptr_eq(a, b) || a == b,
        _ => false,
    }
}

impl Control {
    /// A request asks for the table of a scope that is loaded on demand.
    pub(crate) fn demand_scope(self: &Rc<Self>, table: &Arc<str>) {
        if self.scope_feeds.borrow_mut().demanded.insert(table.clone()) {
            self.sync_routes();
        }
    }

    /// Subscribes to the scopes that listeners need, and gives the RDS tables that are needed because of scopes.
    pub(crate) fn sync_scopes(self: &Rc<Self>) -> Vec<Need> {
        let wanted = self.listeners.borrow().scopes();
        let sources: Vec<Need> = wanted
            .iter()
            .filter_map(|need| match &need.from {
                ScopesFrom::Source(source) => Some(Need {
                    name: ALL.into(),
                    source: source.clone(),
                    stat_prefix: format!("{}.scoped_rds.{}", need.stat_prefix, need.name).into(),
                    waits: true,
                }),
                ScopesFrom::Inline(_) => None,
            })
            .collect();
        let key = |source: &Arc<ConfigSource>| (!is_aggregated(source)).then(|| source.clone());
        let keys: Vec<_> = sources.iter().map(|n| key(&n.source)).collect();
        if !sources.is_empty() || !self.scope_feeds.borrow().all.is_empty() {
            self.subscriptions.sync(self, Kind::Scope, sources);
        }
        let mut feeds = self.scope_feeds.borrow_mut();
        let Feeds { all: fed, demanded } = &mut *feeds;
        fed.retain(|feed| {
            let keep = keys.iter().any(|k| same(k.as_ref(), feed.source.as_ref()));
            if !keep {
                feed.scopes.keys().for_each(|name| self.raw(Kind::Scope).borrow_mut().remove(name));
            }
            keep
        });
        let root = self.server.stats.root();
        let mut tables = Vec::new();
        let mut named: HashSet<Arc<str>> = HashSet::new();
        for need in &wanted {
            let Some(rds) = &need.rds_source else { continue };
            let mut add = |table: &Arc<str>, on_demand: bool| {
                named.insert(table.clone());
                if !on_demand || demanded.contains(table) {
                    let (source, stat_prefix) = (rds.clone(), need.stat_prefix.clone());
                    tables.push(Need { name: table.clone(), source, stat_prefix, waits: true });
                }
            };
            match &need.from {
                ScopesFrom::Inline(all) => all.iter().for_each(|(table, on_demand)| add(table, *on_demand)),
                ScopesFrom::Source(source) => {
                    let feed = fed.iter().find(|f| same(f.source.as_ref(), key(source).as_ref()));
                    let all = || feed.into_iter().flat_map(|f| f.scopes.values());
                    all().filter(|h| h.by_rds).for_each(|h| add(&h.scope.slot.name, h.scope.on_demand));
                    let count = |f: &dyn Fn(&Held) -> bool| i64::try_from(all().filter(|h| f(h)).count()).unwrap_or(i64::MAX);
                    let scope = root.scope(&format!("http.{}.scoped_rds.{}.", need.stat_prefix, need.name));
                    scope.gauge("all_scopes").set(count(&|_| true));
                    scope.gauge("on_demand_scopes").set(count(&|h| h.scope.on_demand));
                    let active = |h: &Held| h.by_rds && (!h.scope.on_demand || demanded.contains(&h.scope.slot.name));
                    scope.gauge("active_scopes").set(count(&active));
                }
            }
        }
        demanded.retain(|table| named.contains(table));
        tables
    }

    /// Scopes as the dump shows them: one element for each `ScopedRoutes`, inside of listeners and by SRDS.
    pub(crate) fn scopes_shown(&self) -> Vec<Shown> {
        let type_url: Arc<str> = Kind::Scope.type_url().into();
        let shown = |name: Arc<str>, is_static, values: Vec<Vec<u8>>, version_info: Arc<str>, last_updated| {
            let scope = |value| Any { type_url: type_url.to_string(), value };
            let set = DynamicScopedRouteConfigs { scoped_route_configs: values.into_iter().map(scope).collect(), ..Default::default() };
            let active = Version { version_info, last_updated, type_url: type_url.clone(), value: set.encode_to_vec().into() };
            Shown { name, is_static, active: Some(active), warming: None, draining: None, error: None }
        };
        let listeners = self.listeners.borrow();
        let mut all: Vec<_> = listeners
            .inline_scopes()
            .into_iter()
            .map(|(name, list)| {
                let values = list.scoped_route_configurations.iter().map(Message::encode_to_vec).collect();
                shown(name, true, values, "".into(), self.loaded_at)
            })
            .collect();
        let raw = self.raw(Kind::Scope).borrow();
        let feeds = self.scope_feeds.borrow();
        for need in listeners.scopes() {
            let ScopesFrom::Source(source) = &need.from else { continue };
            let key = (!is_aggregated(source)).then_some(source);
            let Some(feed) = feeds.all.iter().find(|f| same(f.source.as_ref(), key)) else { continue };
            let held: Vec<_> = feed.scopes.keys().filter_map(|name| raw.get(name)?.latest()).collect();
            let updated = held.iter().map(|raw| raw.updated).max().unwrap_or(self.loaded_at);
            let values = held.iter().map(|raw| raw.value.to_vec()).collect();
            all.push(shown(need.name.clone(), false, values, raw.version.clone(), updated));
        }
        all
    }

    /// Whether the scopes of `source` were answered or given up.
    pub(crate) fn scopes_settled(&self, source: &Arc<ConfigSource>) -> bool {
        let mut settled = false;
        self.subscriptions.each(Kind::Scope, ALL, |w| {
            let this = same(Some(&w.source), Some(source)) || (is_aggregated(&w.source) && is_aggregated(source));
            settled |= this && (w.received.get() || w.timed_out.get());
        });
        settled
    }

    pub(crate) async fn update_scopes(self: &Rc<Self>, update: &Update, source: Option<&Arc<ConfigSource>>) -> Vec<Refused> {
        let mut refused = Vec::new();
        // Compiled before anything changes hands: tables inside of scopes may be large.
        let mut compiled = Vec::with_capacity(update.resources.len());
        for resource in &update.resources {
            tokio::task::yield_now().await;
            match self.compile_scope(resource) {
                Ok(held) => compiled.push((resource, held)),
                Err(report) => refused.push(Refused { name: resource.name.clone(), reason: reason(&report) }),
            }
        }
        let mut feeds = self.scope_feeds.borrow_mut();
        let at = feeds.all.iter().position(|f| same(f.source.as_ref(), source)).unwrap_or_else(|| {
            let slot = self.shared.discovery.scopes.slot(source.map(|s| &**s));
            feeds.all.push(Feed { source: source.cloned(), scopes: BTreeMap::new(), slot });
            feeds.all.len() - 1
        });
        let Some(feed) = feeds.all.get_mut(at) else { return refused };
        let mut raw = self.raw(Kind::Scope).borrow_mut();
        for name in &update.removed {
            feed.scopes.remove(name);
            raw.remove(name);
        }
        // What this update moves to another key leaves its old one to others of the update.
        let before: Vec<_> = compiled.iter().filter_map(|(resource, _)| feed.scopes.remove_entry(&resource.name)).collect();
        for (resource, held) in compiled {
            let other = feed.scopes.values().find(|h| h.key == held.key).map(|h| h.scope.name.clone());
            match other {
                Some(other) => {
                    let reason =
                        format!("key: scope key conflict found, scope '{other}' has the same key; give each scope a key of its own");
                    refused.push(Refused { name: resource.name.clone(), reason });
                }
                None => {
                    feed.scopes.insert(resource.name.clone(), held);
                    raw.accept(resource, false);
                }
            }
        }
        for (name, held) in before {
            if !feed.scopes.contains_key(&name) && feed.scopes.values().all(|h| h.key != held.key) {
                feed.scopes.insert(name, held);
            }
        }
        feed.publish();
        refused
    }

    fn compile_scope(&self, resource: &Resource) -> Result<Held, Report> {
        let proto =
            ScopedRouteConfiguration::decode(resource.value.as_ref()).map_err(|e| Self::undecodable("ScopedRouteConfiguration", e))?;
        let mut report = Report::new();
        let root = At::Root;
        let key = scope_key(&proto, &root, &mut report);
        let slot = match &proto.route_configuration {
            Some(table) if table.vhds.is_some() => {
                report.error(&root.field("route_configuration").field("vhds"), "set", "virtual host discovery needs RDS");
                None
            }
            Some(table) => self.compile_table(table, &resource.name, &root.field("route_configuration"), &mut report).map(RouteSlot::fixed),
            None => Some(self.shared.routes.slot(&proto.route_configuration_name)),
        };
        Self::findings(Kind::Scope, &resource.name, report)?;
        let (Some(key), Some(slot)) = (key, slot) else { return Err(Report::new()) };
        let scope = Scope { name: proto.name.as_str().into(), slot, on_demand: proto.on_demand };
        Ok(Held { key, scope, by_rds: proto.route_configuration.is_none() })
    }
}
