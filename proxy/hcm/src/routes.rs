//! Where a connection manager finds the route table of a request: one slot (RDS or a table inside of the listener), or one of
//! several by scope. Compiled on the control thread, read by workers once per match.

use crate::compile::HcmFactory;
use crate::on_demand::Missing;
use nuncio_core::RequestHead;
use nuncio_core::diag::At;
use nuncio_core::registry::FactoryCx;
use nuncio_proto::envoy::config::route::v3::RouteConfiguration;
use nuncio_proto::envoy::extensions::filters::network::http_connection_manager::v3 as pb;
use nuncio_route::scopes::{self, Scope, ScopeKeyBuilder, Scopes, ScopesSlot};
use nuncio_route::{RouteCx, RouteSlot, RouteTable};
use pb::http_connection_manager::RouteSpecifier;
use pb::scoped_routes::ConfigSpecifier;
use std::sync::Arc;

/// `route_specifier`.
#[derive(Debug)]
pub enum Routes {
    Table(Arc<RouteSlot>),
    Scoped { builder: ScopeKeyBuilder, scopes: Arc<ScopesSlot> },
}

impl Routes {
    /// Runs `read` with the table of `request`; none if there is none, or none yet.
    pub fn with_table<T>(&self, request: &RequestHead, read: impl FnOnce(&RouteTable) -> T) -> Option<T> {
        match self {
            Self::Table(slot) => slot.load().as_deref().map(read),
            Self::Scoped { builder, scopes } => {
                let scopes = scopes.load();
                let scope = scopes.as_ref()?.get(&builder.key(request)?)?;
                scope.slot.load().as_deref().map(read)
            }
        }
    }
    /// What could be loaded on demand so that `request` has a route: the table of its scope, or its virtual host.
    pub fn missing(&self, request: &RequestHead) -> Option<Missing> {
        if let Self::Scoped { builder, scopes } = self {
            let scopes = scopes.load();
            let scope = scopes.as_ref()?.get(&builder.key(request)?)?;
            if scope.slot.load().is_none() {
                return scope.on_demand.then(|| Missing::Scope { name: scope.name.clone(), table: scope.slot.name.clone() });
            }
        }
        self.with_table(request, |table| {
            let host = table.missing_host(request)?;
            Some(Missing::Host { table: table.name().clone(), host })
        })?
    }
    /// RDS names that have not arrived yet. Tables that are loaded on demand are waited for by requests only.
    pub fn pending(&self) -> Vec<String> {
        let missing = |slot: &RouteSlot| slot.load().is_none().then(|| slot.name.to_string());
        match self {
            Self::Table(slot) => missing(slot).into_iter().collect(),
            Self::Scoped { scopes, .. } => {
                let scopes = scopes.load();
                let all = scopes.iter().flat_map(|s| s.all()).filter(|s| !s.on_demand);
                all.filter_map(|s| missing(&s.slot)).collect()
            }
        }
    }
}

impl HcmFactory {
    /// Compiles `route_specifier`; none if something was refused.
    pub(crate) fn routes(&self, proto: &pb::HttpConnectionManager, at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Routes> {
        match &proto.route_specifier {
            Some(RouteSpecifier::RouteConfig(config)) => self.inline(config, &at.field("route_config"), cx).map(Routes::Table),
            Some(RouteSpecifier::Rds(rds)) => {
                if rds.route_config_name.is_empty() {
                    cx.report.error(&at.field("rds").field("route_config_name"), "empty", "name the route configuration");
                    return None;
                }
                Some(Routes::Table(self.routes.slot(&rds.route_config_name)))
            }
            Some(RouteSpecifier::ScopedRoutes(scoped)) => self.scoped(scoped, &at.field("scoped_routes"), cx),
            None => {
                cx.report.error(at, "no route_specifier", "set rds, route_config or scoped_routes");
                None
            }
        }
    }

    fn inline(&self, config: &RouteConfiguration, at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<RouteSlot>> {
        if config.vhds.is_some() {
            cx.report.error(&at.field("vhds"), "set in a table inside of the listener", "virtual host discovery needs RDS");
            return None;
        }
        let root = cx.server.stats.root();
        let mut route_cx = RouteCx {
            clusters: &self.clusters,
            registry: &self.registry,
            server: cx.server,
            scope: &root,
            direction: cx.direction,
            validate_clusters: true,
            report: cx.report,
        };
        RouteTable::compile(config, at, &mut route_cx).map(RouteSlot::fixed)
    }

    fn scoped(&self, scoped: &pb::ScopedRoutes, at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Routes> {
        if scoped.name.is_empty() {
            cx.report.error(&at.field("name"), "empty", "name the scoped routes");
        }
        let builder_at = at.field("scope_key_builder");
        let Some(builder) = &scoped.scope_key_builder else {
            cx.report.error(&builder_at, "not set", "say how the key of a request is made");
            return None;
        };
        let builder = ScopeKeyBuilder::compile(builder, &builder_at, cx.report)?;
        let scopes = match &scoped.config_specifier {
            Some(ConfigSpecifier::ScopedRouteConfigurationsList(list)) => {
                let at = at.field("scoped_route_configurations_list");
                let at = at.field("scoped_route_configurations");
                if list.scoped_route_configurations.is_empty() {
                    cx.report.error(&at, "no scopes", "give at least one");
                    return None;
                }
                let mut all = Scopes::default();
                for (i, config) in list.scoped_route_configurations.iter().enumerate() {
                    let at = at.index(i);
                    let key = scopes::scope_key(config, &at, cx.report)?;
                    let slot = match &config.route_configuration {
                        Some(table) => self.inline(table, &at.field("route_configuration"), cx)?,
                        None => self.routes.slot(&config.route_configuration_name),
                    };
                    let scope = Scope { name: config.name.as_str().into(), slot, on_demand: config.on_demand };
                    if let Some(other) = all.replace(key, scope) {
                        let found = format!("the key of scope \"{}\"", other.name);
                        cx.report.warning(&at.field("key"), found, "the later scope gets the requests, as in Envoy");
                    }
                }
                ScopesSlot::fixed(all)
            }
            Some(ConfigSpecifier::ScopedRds(srds)) => {
                if !srds.srds_resources_locator.is_empty() {
                    cx.report.unsupported(&at.field("scoped_rds").field("srds_resources_locator"), "a resource locator");
                    return None;
                }
                self.discovery.scopes.slot(srds.scoped_rds_config_source.as_ref())
            }
            None => {
                cx.report.error(at, "no config_specifier", "set scoped_route_configurations_list or scoped_rds");
                return None;
            }
        };
        Some(Routes::Scoped { builder, scopes })
    }
}
