//! Per-filter configuration of tables, virtual hosts, routes and weighted clusters (`typed_per_filter_config`), compiled by the
//! filters' factories and merged per route, so that a request finds what concerns a filter in one short list.

use crate::cx::RouteCx;
use nuncio_core::diag::At;
use nuncio_core::views::PerFilterConfig;
use nuncio_proto::Any;
use nuncio_proto::envoy::config::route::v3::cors_policy::EnabledSpecifier;
use nuncio_proto::envoy::config::route::v3::{CorsPolicy as LegacyCors, FilterConfig};
use nuncio_proto::envoy::extensions::filters::http::cors::v3::CorsPolicy;
use nuncio_proto::typed::{self, Typed};
use nuncio_proto::{Message, Name};
use smallvec::{SmallVec, smallvec};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Every configuration that one route has for filters, by filter name.
#[derive(Clone, Debug, Default)]
pub(crate) struct FilterConfigs(Option<Arc<[Merged]>>);

/// One filter's configurations, least specific first.
#[derive(Clone, Debug)]
struct Merged {
    filter: Arc<str>,
    configs: SmallVec<[PerFilterConfig; 1]>,
}

/// What one level says.
pub(crate) type Level = Vec<(Arc<str>, PerFilterConfig)>;

impl FilterConfigs {
    /// These, and `level`, which is more specific.
    pub fn with(&self, level: Level) -> Self {
        if level.is_empty() {
            return self.clone();
        }
        let mut all: Vec<Merged> = self.0.as_deref().unwrap_or_default().to_vec();
        for (filter, config) in level {
            match all.iter_mut().find(|m| m.filter == filter) {
                Some(merged) => merged.configs.push(config),
                None => all.push(Merged { filter, configs: smallvec![config] }),
            }
        }
        Self(Some(all.into()))
    }
    /// The configurations of `filter`, least specific first.
    pub fn of(&self, filter: &str) -> &[PerFilterConfig] {
        self.0.as_deref().and_then(|all| all.iter().find(|m| m.filter.as_ref() == filter)).map_or(&[], |m| &m.configs)
    }
}

/// Name under which the deprecated `cors` fields stand: no filter of a chain has it, whatever the cors filter is called there.
pub const DEPRECATED_CORS: &str = "envoy.filters.http.cors\0deprecated";
/// Canonical name of the cors filter, which compiles them.
const CORS: &str = "envoy.filters.http.cors";

/// Compiles the `typed_per_filter_config` of one level and its deprecated `cors` field.
pub(crate) fn compile(configs: &BTreeMap<String, Any>, cors: Option<&LegacyCors>, at: &At<'_>, cx: &mut RouteCx<'_>) -> Option<Level> {
    let mut level = Level::new();
    let at_map = at.field("typed_per_filter_config");
    for (filter, any) in configs {
        let config = entry(filter, any, &at_map.key(filter), cx)?;
        level.extend(config.map(|config| (filter.as_str().into(), config)));
    }
    if let Some(cors) = cors {
        let at = at.field("cors");
        let any = typed::pack(&modern_cors(cors));
        level.extend(extension(CORS, &any, false, &at, cx)?.map(|config| (DEPRECATED_CORS.into(), config)));
    }
    Some(level)
}

/// One entry of the map; the inner `None` is an optional configuration of an unknown filter.
fn entry(filter: &str, any: &Any, at: &At<'_>, cx: &mut RouteCx<'_>) -> Option<Option<PerFilterConfig>> {
    if any.type_url.rsplit('/').next() != Some(FilterConfig::full_name().as_str()) {
        return extension(filter, any, false, at, cx);
    }
    let config = match FilterConfig::decode(any.value.as_slice()) {
        Ok(config) => config,
        Err(why) => return cx.refuse(at, format!("FilterConfig cannot be decoded: {why}"), "give a valid FilterConfig"),
    };
    if config.disabled {
        return Some(Some(PerFilterConfig::Disabled));
    }
    match &config.config {
        Some(any) => extension(filter, any, config.is_optional, &at.field("config"), cx),
        None => cx.refuse(at, format!("an empty configuration of filter {filter}"), "set config, or disabled"),
    }
}

fn extension(filter: &str, any: &Any, optional: bool, at: &At<'_>, cx: &mut RouteCx<'_>) -> Option<Option<PerFilterConfig>> {
    let ignored = "ignored, because it is optional";
    let Typed { name, value } = match typed::unpack(any) {
        Ok(typed) => typed,
        Err(why) if optional => {
            cx.report.warning(at, why, ignored);
            return Some(None);
        }
        Err(why) => return cx.refuse(at, why, "give a valid configuration"),
    };
    let registry = cx.registry;
    let Some(factory) = registry.http_route(&name) else {
        if optional {
            cx.report.warning(at, format!("configuration of type {name} for filter {filter}, which no filter understands"), ignored);
            return Some(None);
        }
        let remedy =
            "remove it, or wrap it in envoy.config.route.v3.FilterConfig with is_optional; docs/envoy-coverage.md lists what is supported";
        return cx.refuse(at, format!("configuration of type {name} for filter {filter} is not supported by Nuncio"), remedy);
    };
    let before = cx.report.errors();
    match factory.compile_route(&value, at, &mut cx.factory()) {
        Some(config) => Some(Some(PerFilterConfig::Config(config))),
        // The factory has said why; one that said nothing must not refuse without a word.
        None if cx.report.errors() > before => None,
        None => cx.refuse(at, format!("configuration of type {name} for filter {filter}"), "this filter takes no configuration per route"),
    }
}

fn modern_cors(cors: &LegacyCors) -> CorsPolicy {
    CorsPolicy {
        allow_origin_string_match: cors.allow_origin_string_match.clone(),
        allow_methods: cors.allow_methods.clone(),
        allow_headers: cors.allow_headers.clone(),
        expose_headers: cors.expose_headers.clone(),
        max_age: cors.max_age.clone(),
        allow_credentials: cors.allow_credentials,
        filter_enabled: cors.enabled_specifier.as_ref().map(|EnabledSpecifier::FilterEnabled(fraction)| fraction.clone()),
        shadow_enabled: cors.shadow_enabled.clone(),
        allow_private_network_access: cors.allow_private_network_access,
        forward_not_matching_preflights: cors.forward_not_matching_preflights,
    }
}
