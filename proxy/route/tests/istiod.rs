//! The tables that istiod really sends compile, and route as they should.

mod kit;

use kit::{compile, get};
use nuncio_proto::envoy::config::route::v3::RouteConfiguration;
use nuncio_proto::json::{UnknownFields, parse};
use serde_json::Value;

const DUMPS: [&str; 6] =
    ["gateway-rich", "gateway-shop", "sidecar-client-rich", "sidecar-client-shop", "sidecar-server-rich", "sidecar-server-shop"];

/// Every route configuration in a config dump, inline ones included.
fn tables(value: &Value, found: &mut Vec<Value>) {
    match value {
        Value::Object(fields) => {
            if fields.contains_key("virtualHosts") || fields.contains_key("virtual_hosts") {
                found.push(value.clone());
                return;
            }
            fields.values().for_each(|v| tables(v, found));
        }
        Value::Array(all) => all.iter().for_each(|v| tables(v, found)),
        _ => {}
    }
}

#[allow(clippy::panic, clippy::unwrap_used)]
fn dump(name: &str) -> Vec<RouteConfiguration> {
    let path = format!("{}/../../tests/fixtures/istiod/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).unwrap();
    let mut found = Vec::new();
    tables(&serde_json::from_str(&text).unwrap(), &mut found);
    let configs = found.iter().map(|table| {
        let mut table = table.clone();
        table.as_object_mut().unwrap().remove("@type");
        parse::<RouteConfiguration>(&table, UnknownFields::Refuse).unwrap_or_else(|e| panic!("{name}: {e}")).value
    });
    configs.collect()
}

#[test]
fn every_table_compiles() {
    let mut count = 0;
    for name in DUMPS {
        for config in dump(name) {
            let (lab, report) = compile(&config, false);
            assert!(lab.is_some(), "{name} {}: {}", config.name, report.summary());
            assert!(report.items.is_empty(), "{name} {}: {:?}", config.name, report.items);
            count += 1;
        }
    }
    assert!(count > 10, "{count}");
}

#[test]
fn every_route_of_a_sidecar_is_reachable_by_its_domains() {
    for config in dump("sidecar-client-shop") {
        let (lab, _) = compile(&config, false);
        let lab = lab.unwrap();
        for host in &config.virtual_hosts {
            let Some(domain) = host.domains.iter().find(|d| !d.contains('*')) else { continue };
            let request = get(domain, "/", &[]);
            assert_eq!(lab.table.virtual_host(&request).map(|v| v.name.to_string()), Some(host.name.clone()));
        }
    }
}
