//! Configuration of the usual test gateway: one HTTP listener whose listeners, clusters, routes and endpoints come from files.

use crate::upstream::Upstream;

/// A bootstrap with file-based LDS and CDS beside it.
pub fn bootstrap(admin_port: u16) -> String {
    format!(
        r#"
node: {{id: demo, cluster: demo}}
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {admin_port}}}}}}}
dynamic_resources:
  lds_config: {{path_config_source: {{path: lds.yaml}}, resource_api_version: V3}}
  cds_config: {{path_config_source: {{path: cds.yaml}}, resource_api_version: V3}}
"#
    )
}

/// A discovery response with one listener on `port` whose routes come from `rds.yaml`. `extra` is YAML of connection manager fields.
pub fn lds(version: &str, port: u16, extra: &str) -> String {
    format!(
        r#"
version_info: "{version}"
resources:
- "@type": type.googleapis.com/envoy.config.listener.v3.Listener
  name: web
  address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
  filter_chains:
  - filters:
    - name: envoy.filters.network.http_connection_manager
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
        stat_prefix: web
        use_remote_address: true
        upgrade_configs: [{{upgrade_type: websocket}}]
        access_log:
        - name: envoy.access_loggers.stdout
          typed_config: {{"@type": type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog}}
        rds: {{route_config_name: web, config_source: {{path_config_source: {{path: rds.yaml}}, resource_api_version: V3}}}}
        http_filters:
        - name: envoy.filters.http.router
          typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
{extra}
"#
    )
}

/// A discovery response with the route configuration `web` and `routes` (YAML list, indented by 4) for every host.
pub fn rds(version: &str, routes: &str) -> String {
    format!(
        r#"
version_info: "{version}"
resources:
- "@type": type.googleapis.com/envoy.config.route.v3.RouteConfiguration
  name: web
  virtual_hosts:
  - name: all
    domains: ["*"]
    routes:
{routes}
"#
    )
}

/// A weighted split between clusters, as RDS routes.
pub fn split(weights: &[(&str, u32)]) -> String {
    let clusters: Vec<_> = weights.iter().map(|(name, weight)| format!("{{name: {name}, weight: {weight}}}")).collect();
    format!("    - match: {{prefix: /}}\n      route: {{weighted_clusters: {{clusters: [{}]}}}}", clusters.join(", "))
}

/// A static cluster of `hosts`. `extra` is YAML of cluster fields, indented by 2.
pub fn cluster(name: &str, hosts: &[&Upstream], extra: &str) -> String {
    let endpoints: Vec<_> = hosts
        .iter()
        .map(|h| {
            format!("{{endpoint: {{address: {{socket_address: {{address: {}, port_value: {}}}}}}}}}", h.address.ip(), h.address.port())
        })
        .collect();
    format!(
        r#"- "@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
  name: {name}
  type: STATIC
  connect_timeout: 1s
  load_assignment: {{cluster_name: {name}, endpoints: [{{lb_endpoints: [{}]}}]}}
{extra}
"#,
        endpoints.join(", ")
    )
}

/// A discovery response with `clusters`.
pub fn cds(version: &str, clusters: &[String]) -> String {
    format!("version_info: \"{version}\"\nresources:\n{}", clusters.concat())
}
