//! Cluster specifier plugins: routes whose cluster is found per request by an extension. There is one, the match tree.
//! Compiled on the control thread. Source: ClusterSpecifierPlugin, `envoy/extensions/router/cluster_specifiers/matcher/v3/matcher.proto`.

use crate::cx::RouteCx;
use crate::target::ClusterRef;
use nuncio_core::diag::At;
use nuncio_matcher::MatchTree;
use nuncio_proto::envoy::config::route::v3::ClusterSpecifierPlugin;
use nuncio_proto::envoy::extensions::router::cluster_specifiers::matcher::v3::{ClusterAction, MatcherClusterSpecifier};
use nuncio_proto::{Name, typed};
use std::collections::HashMap;
use std::sync::Arc;

/// `RouteConfiguration.cluster_specifier_plugins` by name.
#[derive(Debug, Default)]
pub(crate) struct Plugins(HashMap<Box<str>, ClusterRef>);

impl Plugins {
    /// Compiles the plugins of a table.
    pub fn compile(plugins: &[ClusterSpecifierPlugin], at: &At<'_>, cx: &mut RouteCx<'_>) -> Option<Self> {
        let mut all = HashMap::with_capacity(plugins.len());
        for (i, plugin) in plugins.iter().enumerate() {
            let at = at.index(i);
            let compiled = specifier(plugin, &at, cx)?;
            let name = plugin.extension.as_ref().map_or("", |e| e.name.as_str());
            if all.contains_key(name) {
                cx.report.warning(&at.field("extension").field("name"), format!("\"{name}\" twice"), "the first one counts, as in Envoy");
            } else {
                all.insert(Box::from(name), compiled);
            }
        }
        Some(Self(all))
    }
    /// The plugin that a route names.
    pub fn get(&self, name: &str, at: &At<'_>, cx: &mut RouteCx<'_>) -> Option<ClusterRef> {
        match self.0.get(name) {
            Some(plugin) => Some(plugin.clone()),
            None => cx.refuse(at, format!("unknown cluster specifier plugin \"{name}\""), "define it in cluster_specifier_plugins"),
        }
    }
}

/// Compiles one plugin. An optional one of unknown type gives routes that find no cluster, as in Envoy.
pub(crate) fn specifier(plugin: &ClusterSpecifierPlugin, at: &At<'_>, cx: &mut RouteCx<'_>) -> Option<ClusterRef> {
    let at = at.field("extension");
    let Some(extension) = &plugin.extension else {
        return cx.refuse(&at, "nothing", "give the plugin");
    };
    if extension.name.is_empty() {
        return cx.refuse(&at.field("name"), "nothing", "name the plugin");
    }
    let config_at = at.field("typed_config");
    let any = extension.typed_config.clone().unwrap_or_default();
    let known = typed::unpack(&any).is_ok_and(|typed| typed.name == MatcherClusterSpecifier::full_name());
    if !known && plugin.is_optional {
        cx.report.warning(&config_at, any.type_url, "routes with this optional plugin find no cluster");
        return Some(ClusterRef::Nowhere);
    }
    if !known {
        cx.report.unsupported(&config_at, format_args!("cluster specifier plugin {} of type {}", extension.name, any.type_url));
        return None;
    }
    let config: MatcherClusterSpecifier = match typed::unpack_as(&any) {
        Ok(config) => config,
        Err(why) => return cx.refuse(&config_at, why, "send a valid MatcherClusterSpecifier"),
    };
    let tree_at = config_at.field("cluster_matcher");
    let Some(matcher) = &config.cluster_matcher else {
        return cx.refuse(&tree_at, "nothing", "say how the cluster is found");
    };
    let clusters = cx.clusters;
    let tree = MatchTree::compile(matcher, &tree_at, cx.report, &mut |action, at, report| {
        let at = at.field("typed_config");
        match typed::unpack_as::<ClusterAction>(&action.typed_config.clone().unwrap_or_default()) {
            Ok(action) if action.cluster.is_empty() => report.error(&at.field("cluster"), "nothing", "name a cluster"),
            Ok(action) => return Some(clusters.slot(&action.cluster)),
            Err(why) => report.error(&at, why, "give a ClusterAction"),
        }
        None
    })?;
    Some(ClusterRef::Matcher(Arc::new(tree)))
}
