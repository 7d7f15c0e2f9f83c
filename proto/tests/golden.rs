//! What Envoy's admin port and istiod really say, read into protobuf and written again: the text must come out as it was.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // It is a test.

use nuncio_proto::envoy::admin::v3::ConfigDump;
use nuncio_proto::envoy::config::bootstrap::v3::Bootstrap;
use nuncio_proto::json::{self, Descriptors, Options, UnknownFields};
use nuncio_proto::{Message, Name, typed};
use serde_json::Value;

fn reference(file: &str) -> String {
    std::fs::read_to_string(format!("{}/tests/data/{file}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// The text with the keys of every object in order: maps and Structs have none in protobuf.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().map(|(k, v)| (k.clone(), sorted(v))).collect();
            fields.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(fields.into_iter().collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(sorted).collect()),
        other => other.clone(),
    }
}

fn there_and_back(name: &str, text: &str, options: Options) -> String {
    let value: Value = serde_json::from_str(text).unwrap();
    let read = json::from_json(name, &value, UnknownFields::Refuse).unwrap_or_else(|e| panic!("{name}: {e}"));
    json::to_json(name, read.value, options).unwrap()
}

fn assert_same(path: &str, name: &str, options: Options) {
    let text = reference(path);
    let again = there_and_back(name, &text, options);
    let (before, after): (Value, Value) = (serde_json::from_str(&text).unwrap(), serde_json::from_str(&again).unwrap());
    assert_eq!(sorted(&before), sorted(&after), "{path}");
    let (before, after): (Vec<&str>, Vec<&str>) = (text.trim_end().lines().collect(), again.lines().collect());
    assert_eq!(before.len(), after.len(), "{path} is laid out otherwise");
    let mut lines = (before.clone(), after.clone());
    lines.0.sort_unstable_by_key(|l| l.trim_end_matches(','));
    lines.1.sort_unstable_by_key(|l| l.trim_end_matches(','));
    for (a, b) in lines.0.iter().zip(&lines.1) {
        assert_eq!(a.trim_end_matches(','), b.trim_end_matches(','), "{path}");
    }
}

#[test]
fn config_dumps_come_out_as_envoy_wrote_them() {
    let options = Options { redact: true, ..Options::default() };
    assert_same("config_dump_include_eds.json", "envoy.admin.v3.ConfigDump", options);
    assert_same("sidecar_config_dump.json", "envoy.admin.v3.ConfigDump", options);
}

#[test]
fn other_answers_come_out_as_envoy_wrote_them() {
    let all = Options { defaults: true, ..Options::default() };
    assert_same("clusters.json", "envoy.admin.v3.Clusters", Options::default());
    assert_same("listeners.json", "envoy.admin.v3.Listeners", Options::default());
    assert_same("server_info.json", "envoy.admin.v3.ServerInfo", all);
    assert_same("certs.json", "envoy.admin.v3.Certificates", all);
    assert_same("memory.json", "envoy.admin.v3.Memory", all);
}

#[test]
fn what_istiod_sends_is_read() {
    let value: Value = serde_json::from_str(&reference("istiod.json")).unwrap();
    let read = json::parse::<ConfigDump>(&value, UnknownFields::Refuse).unwrap_or_else(|e| panic!("{e}"));
    assert!(!read.value.configs.is_empty());
}

/// pilot-agent's bootstrap: names of both kinds, numbers as strings, TypedStruct, a trailing comma.
#[test]
fn bootstrap_is_read_and_its_typed_struct_unpacked() {
    let text = reference("bootstrap.json");
    let read = json::parse_text::<Bootstrap>(&text, UnknownFields::Refuse).unwrap_or_else(|e| panic!("{e}"));
    let bootstrap = read.value;
    assert_eq!(bootstrap.static_resources.as_ref().unwrap().clusters.len(), 4);
    let extension = bootstrap.bootstrap_extensions.first().unwrap().typed_config.as_ref().unwrap();
    assert!(extension.type_url.ends_with("udpa.type.v1.TypedStruct"), "{}", extension.type_url);
    let unpacked = typed::unpack(extension).unwrap();
    assert_eq!(unpacked.name, "envoy.extensions.bootstrap.internal_listener.v3.InternalListener");
    assert_eq!(
        json::to_json(&unpacked.name, unpacked.value.into_owned(), Options { compact: true, ..Options::default() }).unwrap(),
        "{\"buffer_size_kb\":64}"
    );
}

/// In pieces of any size the text is the same.
#[test]
fn pieces_add_up_to_the_whole() {
    let value: Value = serde_json::from_str(&reference("config_dump_include_eds.json")).unwrap();
    let wire = json::from_json(&ConfigDump::full_name(), &value, UnknownFields::Refuse).unwrap().value;
    let whole = json::to_json(&ConfigDump::full_name(), wire.clone(), Options::default()).unwrap();
    for piece in [1, 100, 4096] {
        let mut renderer =
            json::Renderer::message(Descriptors::shared(), &ConfigDump::full_name(), wire.clone().into(), Options::default()).unwrap();
        let (mut text, mut out) = (Vec::new(), Vec::new());
        loop {
            let done = renderer.fill(&mut out, piece);
            assert!(out.len() < piece + 4096, "a piece of {} bytes", out.len());
            text.append(&mut out);
            if done {
                break;
            }
        }
        assert!(text == whole.as_bytes(), "pieces of {piece}");
    }
    let mut written = Vec::new();
    json::write_json(&ConfigDump::full_name(), wire.clone(), Options::default(), &mut written).unwrap();
    assert!(written == whole.as_bytes());
    assert_eq!(ConfigDump::decode(wire.as_slice()).unwrap().configs.len(), 7);
}
