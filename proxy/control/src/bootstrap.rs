//! The bootstrap: read (`-c`, YAML, JSON or binary), merged with `--config-yaml`, the node completed, runtime layers flattened.
//! Called once by `main`'s control thread, and by `--mode validate`.

use crate::args::{self, Args};
use nuncio_core::diag::{At, Report};
use nuncio_core::registry::{Registry, Runtime};
use nuncio_proto::envoy::config::bootstrap::v3::{Bootstrap, runtime_layer::LayerSpecifier};
use nuncio_proto::envoy::config::core::v3::{BuildVersion, Extension, Locality, Node, node::UserAgentVersionType};
use nuncio_proto::envoy::r#type::v3::SemanticVersion;
use nuncio_proto::json::{self, UnknownFields};
use nuncio_proto::{Message, Name, Struct, Value};
use prost_types::value::Kind;
use std::path::Path;

/// A bootstrap that was read.
#[derive(Debug)]
pub struct Loaded {
    pub bootstrap: Bootstrap,
    /// Fields that the message does not have, left out (`--allow-unknown-static-fields`): `server.static_unknown_fields`.
    pub unknown: Vec<String>,
}

/// Reads the bootstrap. The errors are findings with paths; a file that cannot be read or is empty is one of them.
pub fn load(args: &Args) -> Result<Loaded, Vec<String>> {
    if args.config_path.is_empty() && args.config_yaml.is_empty() {
        return Err(vec!["At least one of --config-path or --config-yaml should be non-empty".to_string()]);
    }
    let policy = if args.allow_unknown_static_fields { UnknownFields::Ignore } else { UnknownFields::Refuse };
    let mut wire = Vec::new();
    let mut unknown = Vec::new();
    let mut problems = Vec::new();
    let mut text = |source: &str, text: &str| match json::to_value(text) {
        Ok(serde_json::Value::Null) => {}
        Ok(value) => match json::from_json(&Bootstrap::full_name(), &value, policy) {
            Ok(read) => {
                json::merge(&mut wire, &read.value);
                unknown.extend(read.unknown);
            }
            Err(all) => problems.extend(all.items.iter().map(|p| format!("{source}: {p}"))),
        },
        Err(problem) => problems.push(format!("{source}: {problem}")),
    };
    let mut binary = None;
    if !args.config_path.is_empty() {
        let path = &args.config_path;
        match std::fs::read(path) {
            Err(e) => return Err(vec![format!("{path}: cannot be read: {e}")]),
            Ok(bytes) if Path::new(path).extension().is_some_and(|e| e == "pb") => binary = Some(bytes),
            Ok(bytes) => match String::from_utf8(bytes) {
                Ok(content) => text(path, &content),
                Err(e) => {
                    return Err(vec![format!(
                        "{path}: is not UTF-8 text at byte {}; binary bootstraps end in .pb",
                        e.utf8_error().valid_up_to()
                    )]);
                }
            },
        }
    }
    if !args.config_yaml.is_empty() {
        text("--config-yaml", &args.config_yaml);
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    if let Some(mut base) = binary {
        json::merge(&mut base, &wire);
        wire = base;
    }
    let bootstrap = Bootstrap::decode(wire.as_slice()).map_err(|e| vec![format!("{}: is no valid Bootstrap: {e}", args.config_path)])?;
    Ok(Loaded { bootstrap, unknown })
}

/// The node as the control plane sees it: the bootstrap's, overridden by the command line, with what the proxy says of itself.
pub fn node(bootstrap: &Bootstrap, args: &Args, extensions: Vec<Extension>) -> Node {
    let mut node = bootstrap.node.clone().unwrap_or_default();
    if !args.service_node.is_empty() {
        node.id.clone_from(&args.service_node);
    }
    if !args.service_cluster.is_empty() {
        node.cluster.clone_from(&args.service_cluster);
    }
    if !args.service_zone.is_empty() {
        node.locality.get_or_insert_with(Locality::default).zone.clone_from(&args.service_zone);
    }
    // Control planes decide by this name which resources they send; the build metadata below says what it really is.
    node.user_agent_name = "envoy".to_string();
    let (major, minor, patch) = args::ENVOY_VERSION;
    let text = |s: &str| Value { kind: Some(Kind::StringValue(s.to_string())) };
    let metadata = [
        ("build.type", if cfg!(debug_assertions) { "DEBUG" } else { "RELEASE" }),
        ("implementation", concat!("nuncio/", env!("CARGO_PKG_VERSION"))),
        ("revision.sha", args::revision()),
        ("revision.status", args::REVISION_STATUS),
        ("ssl.version", args::SSL_VERSION),
    ];
    node.user_agent_version_type = Some(UserAgentVersionType::UserAgentBuildVersion(BuildVersion {
        version: Some(SemanticVersion { major_number: major, minor_number: minor, patch }),
        metadata: Some(Struct { fields: metadata.into_iter().map(|(k, v)| (k.to_string(), text(v))).collect() }),
    }));
    node.extensions = extensions;
    node
}

/// Names of what is compiled in, for `node.extensions` and server_info.
pub fn extensions(registry: &Registry) -> Vec<Extension> {
    let mut all = Vec::new();
    let mut add = |category: &str, name: &str, types: Vec<String>| {
        all.push(Extension { name: name.to_string(), category: category.to_string(), type_urls: types, ..Extension::default() });
    };
    let owned = |types: &[&str]| types.iter().map(|t| (*t).to_string()).collect::<Vec<_>>();
    for f in &registry.http {
        add("envoy.filters.http", f.name(), [owned(f.types()), owned(f.route_types())].concat());
    }
    for f in &registry.network {
        add("envoy.filters.network", f.name(), owned(f.types()));
    }
    for f in &registry.upstream_network {
        add("envoy.filters.upstream_network", f.name(), owned(f.types()));
    }
    for (category, name, t) in BUILT_IN {
        add(category, name, vec![(*t).to_string()]);
    }
    all
}

/// Extensions that are not in a registry.
const BUILT_IN: &[(&str, &str, &str)] = &[
    (
        "envoy.filters.network",
        "envoy.filters.network.http_connection_manager",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
    ),
    ("envoy.filters.network", "envoy.filters.network.tcp_proxy", "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"),
    ("envoy.access_loggers", "envoy.access_loggers.file", "envoy.extensions.access_loggers.file.v3.FileAccessLog"),
    ("envoy.access_loggers", "envoy.access_loggers.stdout", "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog"),
    ("envoy.access_loggers", "envoy.access_loggers.stderr", "envoy.extensions.access_loggers.stream.v3.StderrAccessLog"),
    ("envoy.bootstrap", "envoy.bootstrap.internal_listener", "envoy.extensions.bootstrap.internal_listener.v3.InternalListener"),
    ("envoy.filters.listener", "envoy.filters.listener.tls_inspector", "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"),
    (
        "envoy.filters.listener",
        "envoy.filters.listener.http_inspector",
        "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector",
    ),
    ("envoy.filters.listener", "envoy.filters.listener.original_dst", "envoy.extensions.filters.listener.original_dst.v3.OriginalDst"),
    (
        "envoy.filters.listener",
        "envoy.filters.listener.proxy_protocol",
        "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol",
    ),
    ("envoy.transport_sockets.downstream", "envoy.transport_sockets.tls", "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"),
    ("envoy.transport_sockets.upstream", "envoy.transport_sockets.tls", "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"),
    (
        "envoy.transport_sockets.upstream",
        "envoy.transport_sockets.raw_buffer",
        "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer",
    ),
    (
        "envoy.upstream_options",
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
    ),
];

/// One runtime layer, flattened: `/runtime` shows them side by side.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Layer {
    pub name: String,
    /// Key and value, sorted.
    pub values: Vec<(String, String)>,
    /// Whether `/runtime_modify` writes here.
    pub admin: bool,
}

/// The runtime layers of the bootstrap, least important first. What is not supported goes to `report`.
pub fn layers(bootstrap: &Bootstrap, report: &mut Report) -> Vec<Layer> {
    let mut layers = Vec::new();
    let at = At::Root;
    let at = at.field("layered_runtime");
    let at = at.field("layers");
    for (i, layer) in bootstrap.layered_runtime.iter().flat_map(|r| &r.layers).enumerate() {
        let at = at.index(i);
        if layers.iter().any(|l: &Layer| l.name == layer.name) {
            report.error(&at.field("name"), format!("duplicate layer name '{}'", layer.name), "give each layer a name of its own");
        }
        let mut flat = Layer { name: layer.name.clone(), ..Layer::default() };
        match &layer.layer_specifier {
            Some(LayerSpecifier::StaticLayer(values)) => flatten("", values, &mut flat.values),
            Some(LayerSpecifier::AdminLayer(_)) => flat.admin = true,
            Some(LayerSpecifier::DiskLayer(_)) => report.unsupported(&at.field("disk_layer"), "a runtime layer on disk"),
            Some(LayerSpecifier::RtdsLayer(_)) => report.unsupported(&at.field("rtds_layer"), "runtime discovery (RTDS)"),
            None => report.error(&at, "no layer specifier", "set static_layer or admin_layer"),
        }
        flat.values.sort();
        layers.push(flat);
    }
    layers
}

/// Puts the layers into the runtime.
pub fn apply_layers(layers: &[Layer], runtime: &Runtime) {
    for (key, value) in layers.iter().flat_map(|l| &l.values) {
        runtime.set(key, value);
    }
}

fn flatten(prefix: &str, values: &Struct, out: &mut Vec<(String, String)>) {
    for (key, value) in &values.fields {
        let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match &value.kind {
            // A fractional percent is a value, not a directory.
            Some(Kind::StructValue(s)) if s.fields.contains_key("numerator") || s.fields.contains_key("denominator") => {
                out.push((key, scalar(value)));
            }
            Some(Kind::StructValue(s)) => flatten(&key, s, out),
            _ => out.push((key, scalar(value))),
        }
    }
}

fn scalar(value: &Value) -> String {
    match &value.kind {
        Some(Kind::StringValue(s)) => s.clone(),
        Some(Kind::BoolValue(b)) => b.to_string(),
        Some(Kind::NumberValue(n)) => n.to_string(),
        Some(Kind::StructValue(s)) => {
            let part = |k: &str| s.fields.get(k).map(scalar).unwrap_or_default();
            let (numerator, denominator) = (part("numerator"), part("denominator"));
            let of = match denominator.as_str() {
                "TEN_THOUSAND" => "10000",
                "MILLION" => "1000000",
                _ => "100",
            };
            format!("{}/{of}", if numerator.is_empty() { "0" } else { &numerator })
        }
        Some(Kind::ListValue(_)) | Some(Kind::NullValue(_)) | None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(path: &str, yaml: &str) -> Args {
        Args { config_path: path.to_string(), config_yaml: yaml.to_string(), allow_unknown_static_fields: true, ..Args::default() }
    }

    #[test]
    fn reads_what_pilot_agent_writes_and_lays_config_yaml_over_it() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/bootstrap-gateway.json");
        let over = "{node: {cluster: other}, layeredRuntime: {layers: [{name: more, static_layer: {a: {b: \"1\", c: true}}}]}}";
        let loaded = load(&args(path, over)).unwrap();
        let node = node(&loaded.bootstrap, &Args { service_node: "me".into(), ..Args::default() }, Vec::new());
        assert_eq!((node.id.as_str(), node.cluster.as_str(), node.user_agent_name.as_str()), ("me", "other", "envoy"));
        let mut report = Report::new();
        let layers = layers(&loaded.bootstrap, &mut report);
        assert!(!report.has_errors());
        assert_eq!(layers.last().unwrap().values, vec![("a.b".to_string(), "1".to_string()), ("a.c".to_string(), "true".to_string())]);
        assert!(layers.iter().any(|l| l.admin));
    }

    #[test]
    fn unknown_fields_are_an_error_unless_allowed_and_then_listed() {
        let yaml = "{admin: {nonsense: 1}}";
        assert!(load(&Args { config_yaml: yaml.into(), ..Args::default() }).unwrap_err()[0].contains("nonsense"));
        assert_eq!(load(&args("", yaml)).unwrap().unknown.len(), 1);
        assert!(load(&args("/does/not/exist.yaml", "")).unwrap_err()[0].contains("/does/not/exist.yaml"));
        assert!(load(&args("", "")).is_err());
    }

    #[test]
    fn fractions_are_runtime_values() {
        let loaded =
            load(&args("", "{layered_runtime: {layers: [{name: a, static_layer: {x: {numerator: 5, denominator: MILLION}, n: 3}}]}}"))
                .unwrap();
        let layers = layers(&loaded.bootstrap, &mut Report::new());
        assert_eq!(layers[0].values, vec![("n".to_string(), "3".to_string()), ("x".to_string(), "5/1000000".to_string())]);
    }
}
