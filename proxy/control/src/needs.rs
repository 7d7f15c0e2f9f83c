//! What a listener needs to be live: RDS names, ECDS names, and the route tables that it brings itself. Read from the listener's
//! protobuf on the control thread, so that subscriptions follow the configuration and not what happens to be compiled.

use crate::source;
use bytes::Bytes;
use nuncio_core::diag::{At, Report};
use nuncio_core::info::TrafficDirection;
use nuncio_proto::envoy::config::core::v3::{ConfigSource, TrafficDirection as Direction};
use nuncio_proto::envoy::config::listener::v3::{FilterChain, Listener, filter::ConfigType};
use nuncio_proto::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, ScopedRouteConfigurationsList, ScopedRoutes, http_connection_manager::RouteSpecifier, http_filter,
    scoped_routes::ConfigSpecifier,
};
use nuncio_proto::{Message, typed};
use std::sync::Arc;

const HCM: &str = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

/// One name to subscribe to.
#[derive(Clone, Debug)]
pub struct Need {
    pub name: Arc<str>,
    pub source: Arc<ConfigSource>,
    /// HCM's stat_prefix, for `http.<prefix>.rds.<name>.`.
    pub stat_prefix: Arc<str>,
    /// Whether the listener waits for it. A filter with `apply_default_config_without_warming` does not.
    pub waits: bool,
}

/// Everything that one listener needs.
#[derive(Clone, Debug, Default)]
pub struct Needs {
    pub routes: Vec<Need>,
    pub extensions: Vec<Need>,
    pub scopes: Vec<ScopeNeed>,
    /// Route tables inside of the listener, as wire bytes: the dump's static_route_configs.
    pub inline_routes: Vec<Bytes>,
    /// Scopes inside of the listener: the dump's inline_scoped_route_configs.
    pub inline_scopes: Vec<(Arc<str>, ScopedRouteConfigurationsList)>,
    pub direction: TrafficDirection,
}

/// Scoped routes of one connection manager.
#[derive(Clone, Debug)]
pub struct ScopeNeed {
    /// `ScopedRoutes.name`.
    pub name: Arc<str>,
    pub stat_prefix: Arc<str>,
    /// `rds_config_source`.
    pub rds_source: Option<Arc<ConfigSource>>,
    pub from: ScopesFrom,
}

/// Where scopes come from.
#[derive(Clone, Debug)]
pub enum ScopesFrom {
    /// The listener: RDS names, and whether they are loaded on demand.
    Inline(Vec<(Arc<str>, bool)>),
    Source(Arc<ConfigSource>),
}

/// What `listener` needs. Sources that cannot be used are reported.
pub fn of(listener: &Listener, report: &mut Report) -> Needs {
    let mut needs = Needs {
        direction: match Direction::try_from(listener.traffic_direction) {
            Ok(Direction::Inbound) => TrafficDirection::Inbound,
            Ok(Direction::Outbound) => TrafficDirection::Outbound,
            _ => TrafficDirection::Unspecified,
        },
        ..Needs::default()
    };
    let root = At::Root;
    let chains = root.field("filter_chains");
    for (i, chain) in listener.filter_chains.iter().enumerate() {
        of_chain(chain, &chains.index(i), &mut needs, report);
    }
    if let Some(chain) = &listener.default_filter_chain {
        of_chain(chain, &root.field("default_filter_chain"), &mut needs, report);
    }
    needs
}

fn of_chain(chain: &FilterChain, at: &At<'_>, needs: &mut Needs, report: &mut Report) {
    let filters = at.field("filters");
    for (i, filter) in chain.filters.iter().enumerate() {
        let Some(ConfigType::TypedConfig(any)) = &filter.config_type else { continue };
        // What cannot be read here is reported where it is compiled.
        let Ok(unpacked) = typed::unpack(any) else { continue };
        if unpacked.name != HCM {
            continue;
        }
        let Ok(hcm) = HttpConnectionManager::decode(unpacked.value.as_ref()) else { continue };
        let at = filters.index(i);
        of_hcm(&hcm, &at.field("typed_config"), needs, report);
    }
}

fn of_hcm(hcm: &HttpConnectionManager, at: &At<'_>, needs: &mut Needs, report: &mut Report) {
    let stat_prefix: Arc<str> = hcm.stat_prefix.as_str().into();
    match &hcm.route_specifier {
        Some(RouteSpecifier::Rds(rds)) => {
            let at = at.field("rds");
            let Some(config_source) = &rds.config_source else {
                return report.error(&at.field("config_source"), "not set", "say where the routes come from");
            };
            source::check(config_source, &at.field("config_source"), report);
            if needs.routes.iter().all(|n| *n.name != *rds.route_config_name) {
                let source = Arc::new(config_source.clone());
                needs.routes.push(Need {
                    name: rds.route_config_name.as_str().into(),
                    source,
                    stat_prefix: stat_prefix.clone(),
                    waits: true,
                });
            }
        }
        Some(RouteSpecifier::RouteConfig(routes)) => needs.inline_routes.push(routes.encode_to_vec().into()),
        Some(RouteSpecifier::ScopedRoutes(scoped)) => of_scopes(scoped, &stat_prefix, &at.field("scoped_routes"), needs, report),
        None => {}
    }
    let filters = at.field("http_filters");
    for (i, filter) in hcm.http_filters.iter().enumerate() {
        let Some(http_filter::ConfigType::ConfigDiscovery(discovery)) = &filter.config_type else { continue };
        let at = filters.index(i);
        let at = at.field("config_discovery");
        let Some(config_source) = &discovery.config_source else {
            report.error(&at.field("config_source"), "not set", "say where the filter's configuration comes from");
            continue;
        };
        source::check(config_source, &at.field("config_source"), report);
        if needs.extensions.iter().all(|n| *n.name != *filter.name) {
            let source = Arc::new(config_source.clone());
            let waits = !discovery.apply_default_config_without_warming;
            needs.extensions.push(Need { name: filter.name.as_str().into(), source, stat_prefix: stat_prefix.clone(), waits });
        }
    }
}

fn of_scopes(scoped: &ScopedRoutes, stat_prefix: &Arc<str>, at: &At<'_>, needs: &mut Needs, report: &mut Report) {
    let rds_at = at.field("rds_config_source");
    if let Some(source) = &scoped.rds_config_source {
        source::check(source, &rds_at, report);
    }
    let mut by_rds = true;
    let from = match &scoped.config_specifier {
        Some(ConfigSpecifier::ScopedRouteConfigurationsList(list)) => {
            let mut names = Vec::new();
            for scope in &list.scoped_route_configurations {
                match &scope.route_configuration {
                    Some(table) => needs.inline_routes.push(table.encode_to_vec().into()),
                    None => names.push((Arc::from(scope.route_configuration_name.as_str()), scope.on_demand)),
                }
            }
            by_rds = !names.is_empty();
            needs.inline_scopes.push((scoped.name.as_str().into(), list.clone()));
            ScopesFrom::Inline(names)
        }
        Some(ConfigSpecifier::ScopedRds(srds)) => {
            let at = at.field("scoped_rds");
            let at = at.field("scoped_rds_config_source");
            let Some(source) = &srds.scoped_rds_config_source else {
                return report.error(&at, "not set", "say where the scopes come from");
            };
            source::check(source, &at, report);
            ScopesFrom::Source(Arc::new(source.clone()))
        }
        // Refused where it is compiled.
        None => return,
    };
    if by_rds && scoped.rds_config_source.is_none() {
        return report.error(&rds_at, "not set", "say where the routes of the scopes come from");
    }
    needs.scopes.push(ScopeNeed {
        name: scoped.name.as_str().into(),
        stat_prefix: stat_prefix.clone(),
        rds_source: scoped.rds_config_source.clone().map(Arc::new),
        from,
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use nuncio_proto::json::{UnknownFields, parse_text};

    fn read(hcm: &str) -> (Needs, Report) {
        let yaml = format!(
            r#"{{traffic_direction: OUTBOUND, filter_chains: [{{filters: [{{name: x, typed_config:
            {{"@type": type.googleapis.com/{HCM}, stat_prefix: web, {hcm}}}}}]}}]}}"#
        );
        let listener = parse_text::<Listener>(&yaml, UnknownFields::Refuse).unwrap().value;
        let mut report = Report::new();
        (of(&listener, &mut report), report)
    }

    #[test]
    fn routes_and_filters_by_discovery() {
        let (needs, report) = read(
            "rds: {route_config_name: r, config_source: {ads: {}}}, http_filters: [{name: w, config_discovery: \
             {config_source: {ads: {}}, apply_default_config_without_warming: true, type_urls: [a]}}]",
        );
        assert!(!report.has_errors());
        assert_eq!((needs.routes[0].name.as_ref(), needs.routes[0].stat_prefix.as_ref()), ("r", "web"));
        assert_eq!((needs.extensions[0].name.as_ref(), needs.extensions[0].waits), ("w", false));
        assert_eq!(needs.direction, TrafficDirection::Outbound);
    }

    #[test]
    fn inline_routes_are_kept_and_bad_sources_refused_with_their_place() {
        let (needs, _) = read("route_config: {name: here}");
        assert_eq!(nuncio_xds::resource_name(&needs.inline_routes[0]).as_deref(), Ok("here"));
        let (_, report) =
            read("rds: {route_config_name: r, config_source: {api_config_source: {api_type: REST, transport_api_version: V3}}}");
        assert!(report.summary().contains("filter_chains[0].filters[0].typed_config.rds.config_source.api_config_source.api_type"));
        assert!(read("rds: {route_config_name: r}").1.has_errors());
    }
}
