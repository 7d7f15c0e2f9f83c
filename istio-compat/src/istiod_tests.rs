//! Every filter that istiod really sends, and that this crate and nuncio-filters register, compiles without a word.

use nuncio_core::diag::{At, Report};
use nuncio_core::info::TrafficDirection;
use nuncio_core::registry::{FactoryCx, Registry};
use nuncio_core::test_kit as kit;
use nuncio_proto::Any;
use nuncio_proto::json::{UnknownFields, parse};
use nuncio_proto::typed::unpack;
use serde_json::Value;
use std::collections::BTreeMap;

const DUMPS: [&str; 6] =
    ["gateway-rich", "gateway-shop", "sidecar-client-rich", "sidecar-client-shop", "sidecar-server-rich", "sidecar-server-shop"];

/// Every typed configuration in a config dump.
fn any(value: &Value, wanted: &dyn Fn(&str) -> bool, found: &mut Vec<Any>) {
    match value {
        Value::Object(fields) => {
            if let Some(name) = fields.get("@type").and_then(Value::as_str)
                && wanted(name.rsplit('/').next().unwrap_or(name))
            {
                found.push(parse::<Any>(value, UnknownFields::Refuse).unwrap_or_else(|e| panic!("{name}: {e}")).value);
            }
            fields.values().for_each(|v| any(v, wanted, found));
        }
        Value::Array(all) => all.iter().for_each(|v| any(v, wanted, found)),
        _ => {}
    }
}

#[test]
fn every_filter_compiles() {
    let mut registry = Registry::default();
    crate::register(&mut registry);
    nuncio_filters::register(&mut registry);
    let wanted = |name: &str| {
        name.ends_with("TypedStruct")
            || registry.http(name).is_some()
            || registry.http_route(name).is_some()
            || registry.network(name).is_some()
            || registry.upstream_network(name).is_some()
    };
    let server = kit::server(Default::default());
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for name in DUMPS {
        let path = format!("{}/../tests/fixtures/istiod/{name}.json", env!("CARGO_MANIFEST_DIR"));
        let mut found = Vec::new();
        any(&serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap(), &wanted, &mut found);
        for any in &found {
            let Ok(typed) = unpack(any) else { continue };
            let mut report = Report::new();
            let scope = server.stats.root();
            let mut cx = FactoryCx { server: &server, scope: &scope, direction: TrafficDirection::Outbound, report: &mut report };
            let at = At::Root;
            let places = [
                registry.http(&typed.name).map(|f| f.compile(&typed.value, &at, &mut cx).is_some()),
                registry.http_route(&typed.name).map(|f| f.compile_route(&typed.value, &at, &mut cx).is_some()),
                registry.network(&typed.name).map(|f| f.compile(&typed.value, &at, &mut cx).is_some()),
                registry.upstream_network(&typed.name).map(|f| f.compile(&typed.value, &at, &mut cx).is_some()),
            ];
            for compiled in places.into_iter().flatten() {
                assert!(compiled, "{name}: {}: {}", typed.name, report.summary());
                *seen.entry(typed.name.clone()).or_default() += 1;
            }
            assert!(report.items.is_empty(), "{name}: {}: {:?}", typed.name, report.items);
        }
    }
    for name in [
        "io.istio.http.peer_metadata.Config",
        "stats.PluginConfig",
        "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig",
        "envoy.tcp.metadataexchange.config.MetadataExchange",
        "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig",
        "envoy.extensions.filters.http.fault.v3.HTTPFault",
        "envoy.extensions.filters.http.cors.v3.Cors",
        "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
    ] {
        assert!(seen.get(name).is_some_and(|n| *n > 0), "{name} is not among {seen:?}");
    }
}
