//! Writing protobuf JSON: secrets, Any, odd and hostile bytes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // It is a test.

use nuncio_proto::envoy::config::core::v3::{DataSource, Metadata};
use nuncio_proto::envoy::extensions::transport_sockets::tls::v3::Secret;
use nuncio_proto::json::{self, Descriptors, Options, Renderer, UnknownFields};
use nuncio_proto::{Any, Message, Name};
use proptest::prelude::*;
use serde_json::{Value, json};

const REDACT: Options = Options { defaults: false, redact: true, compact: true, indent: 0 };
const COMPACT: Options = Options { redact: false, ..REDACT };

fn wire(name: &str, value: &Value) -> Vec<u8> {
    json::from_json(name, value, UnknownFields::Refuse).unwrap_or_else(|e| panic!("{e}")).value
}

fn shown(name: &str, value: &Value, options: Options) -> Value {
    serde_json::from_str(&json::to_json(name, wire(name, value), options).unwrap()).unwrap()
}

/// Expected values are what Envoy 1.40 showed for the same configuration.
#[test]
fn secrets_are_redacted() {
    let name = Secret::full_name();
    let secret = json!({"name": "s", "tls_certificate": {
        "certificate_chain": {"inline_string": "cert"},
        "private_key": {"filename": "/key"},
        "password": {"inline_bytes": "aGVsbG8="},
    }});
    assert_eq!(shown(&name, &secret, COMPACT), secret);
    let expected = json!({"name": "s", "tls_certificate": {
        "certificate_chain": {"inline_string": "cert"},
        "private_key": {"filename": "[redacted]"},
        "password": {"inline_bytes": "W3JlZGFjdGVkXQ=="},
    }});
    assert_eq!(shown(&name, &secret, REDACT), expected);
    let tickets = json!({"session_ticket_keys": {"keys": [{"inline_bytes": "AAAA"}]}});
    let expected = json!({"session_ticket_keys": {"keys": [{"inline_bytes": "W3JlZGFjdGVkXQ=="}]}});
    assert_eq!(shown(&name, &tickets, REDACT), expected);
}

#[test]
fn secrets_are_redacted_inside_any_and_typed_struct() {
    let context = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
    let of = |key: &str| json!({"sni": "x", "common_tls_context": {"tls_certificates": [{"certificate_chain": {"filename": "/c"}, "private_key": {"inline_string": key}}]}});
    for kind in ["xds.type.v3.TypedStruct", "udpa.type.v1.TypedStruct"] {
        let socket = |key: &str| {
            let typed = json!({"@type": format!("type.googleapis.com/{kind}"), "type_url": format!("type.googleapis.com/{context}"), "value": of(key)});
            json!({"name": "tls", "typed_config": typed})
        };
        let name = "envoy.config.core.v3.TransportSocket";
        assert_eq!(shown(name, &socket("secret"), REDACT), socket("[redacted]"));
        assert_eq!(shown(name, &socket("secret"), COMPACT), socket("secret"));
    }
    let mut inner = of("secret");
    inner["@type"] = json!(format!("type.googleapis.com/{context}"));
    let mut expected = of("[redacted]");
    expected["@type"] = inner["@type"].clone();
    let name = "envoy.config.core.v3.TransportSocket";
    assert_eq!(shown(name, &json!({"name": "t", "typed_config": inner}), REDACT), json!({"name": "t", "typed_config": expected}));
}

#[test]
fn symmetric_keys_in_key_sets_are_redacted() {
    let name = "envoy.extensions.filters.http.jwt_authn.v3.JwtProvider";
    let keys = |k: &str| format!(r#"{{"keys": [{{"kty":"oct","k":"{k}","kid":"a"}}, {{"kty":"RSA","n":"abc"}}]}}"#);
    let provider = |k: &str| json!({"issuer": "i", "local_jwks": {"inline_string": keys(k)}});
    assert_eq!(shown(name, &provider("c2VjcmV0"), COMPACT), provider("c2VjcmV0"));
    assert_eq!(shown(name, &provider("c2VjcmV0"), REDACT), provider("[redacted]"));
    let bytes = |k: &str| json!({"local_jwks": {"inline_bytes": base64(keys(k).as_bytes())}});
    assert_eq!(shown(name, &bytes("c2VjcmV0"), REDACT), bytes("[redacted]"));
    let typed = |k: &str| json!({"type_url": format!("type.googleapis.com/{name}"), "value": provider(k)});
    assert_eq!(shown("xds.type.v3.TypedStruct", &typed("c2VjcmV0"), REDACT), typed("[redacted]"));
    let public = json!({"local_jwks": {"inline_string": "{\"keys\": [{\"kty\":\"RSA\",\"k\":\"x\"}]}"}});
    assert_eq!(shown(name, &public, REDACT), public);
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[test]
fn any_of_what_is_not_known_or_malformed() {
    let any = |url: &str, value: &[u8]| {
        let any = Any { type_url: url.into(), value: value.to_vec() };
        serde_json::from_str::<Value>(&json::to_json("google.protobuf.Any", any.encode_to_vec(), COMPACT).unwrap()).unwrap()
    };
    assert_eq!(any("", b""), json!({}));
    assert_eq!(any("x/a.B", b"\x01\x02"), json!({"@type": "x/a.B", "value": "AQI="}));
    let url = "type.googleapis.com/envoy.config.core.v3.Node";
    assert_eq!(any(url, b"\x0a\x01i"), json!({"@type": url, "id": "i"}));
    assert_eq!(any(url, b"\x0a\x09i"), json!({"@type": url, "value": "Cglp"}), "it ends early");
    let url = "type.googleapis.com/google.protobuf.Duration";
    assert_eq!(any(url, b"\x08\x01"), json!({"@type": url, "value": "1s"}));
    let nested = Any { type_url: url.into(), value: b"\x08\x01".to_vec() };
    let outer = "type.googleapis.com/google.protobuf.Any";
    assert_eq!(any(outer, &nested.encode_to_vec()), json!({"@type": outer, "value": {"@type": url, "value": "1s"}}));
}

#[test]
fn repeated_occurrences_merge_and_unknown_things_are_passed_over() {
    let cluster = |bytes: &[u8]| -> Value {
        serde_json::from_str(&json::to_json("envoy.config.cluster.v3.Cluster", bytes.to_vec(), COMPACT).unwrap()).unwrap()
    };
    let mut bytes =
        wire("envoy.config.cluster.v3.Cluster", &json!({"name": "a", "type": "EDS", "metadata": {"filter_metadata": {"x": {"a": 1}}}}));
    bytes.extend(wire(
        "envoy.config.cluster.v3.Cluster",
        &json!({"name": "b", "cluster_type": {"name": "n"}, "metadata": {"filter_metadata": {"x": {"b": 2}, "y": {}}}}),
    ));
    let expected = json!({"name": "b", "cluster_type": {"name": "n"}, "metadata": {"filter_metadata": {"x": {"b": 2}, "y": {}}}});
    assert_eq!(cluster(&bytes), expected);
    // Field 15000 is not there; lb_policy has no value 99; field 1 as a varint is no name.
    bytes = vec![0xc0, 0xa9, 0x07, 1, 6 << 3, 99, 1 << 3, 5];
    assert_eq!(cluster(&bytes), json!({"lb_policy": 99}));
}

#[test]
fn a_renderer_gives_up_on_depth_without_overflow() {
    let name = "envoy.config.common.matcher.v3.MatchPredicate";
    // not_match within not_match, 100,000 times; each level needs its length, so build inside out.
    let mut bytes: Vec<u8> = Vec::new();
    let any_match = wire(name, &json!({"any_match": true}));
    bytes.extend(&any_match);
    for _ in 0..3000 {
        let mut outer = vec![3 << 3 | 2];
        prost::encoding::encode_varint(bytes.len() as u64, &mut outer);
        outer.extend(&bytes);
        bytes = outer;
    }
    let text = json::to_json(name, bytes, COMPACT).unwrap();
    assert!(text.contains("\"not_match\":{}"));
    let mut any = Any::default();
    for _ in 0..3000 {
        any = Any { type_url: "type.googleapis.com/google.protobuf.Any".into(), value: any.encode_to_vec() };
    }
    let mut out = Vec::new();
    assert!(Renderer::any(Descriptors::shared(), &any.type_url, any.value.into(), COMPACT).fill(&mut out, usize::MAX));
    serde_json::from_slice::<Value>(&out).unwrap();
}

#[test]
fn unknown_types_have_no_json() {
    assert!(json::to_json("no.such.Type", Vec::new(), COMPACT).is_none());
    assert_eq!(
        json::write_json("no.such.Type", Vec::new(), COMPACT, &mut Vec::new()).unwrap_err().kind(),
        std::io::ErrorKind::InvalidInput
    );
}

const TYPES: &[&str] = &[
    "envoy.config.cluster.v3.Cluster",
    "envoy.config.listener.v3.Listener",
    "envoy.config.route.v3.RouteConfiguration",
    "envoy.admin.v3.ConfigDump",
    "google.protobuf.Struct",
    "google.protobuf.Any",
    "envoy.config.core.v3.Metadata",
];

proptest! {
    /// Whatever the bytes are, the text is JSON, the same in pieces as in one.
    #[test]
    fn any_bytes_give_json(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0..TYPES.len(), piece in 1usize..50) {
        for options in [COMPACT, Options { defaults: true, redact: true, compact: false, indent: 2 }] {
            let whole = json::to_json(TYPES[kind], bytes.clone(), options).unwrap();
            serde_json::from_str::<Value>(&whole).unwrap();
            let mut renderer = Renderer::message(Descriptors::shared(), TYPES[kind], bytes.clone().into(), options).unwrap();
            let mut text = Vec::new();
            loop {
                let until = text.len() + piece;
                if renderer.fill(&mut text, until) {
                    break;
                }
            }
            prop_assert_eq!(String::from_utf8(text).unwrap(), whole);
        }
    }

    /// Strings, numbers and bytes come back as they were.
    #[test]
    fn values_survive(text in ".*", number in any::<f64>(), bytes in proptest::collection::vec(any::<u8>(), 0..50)) {
        let source = DataSource { specifier: Some(nuncio_proto::envoy::config::core::v3::data_source::Specifier::InlineBytes(bytes)), ..Default::default() };
        let value: Value = serde_json::from_str(&json::to_json(&DataSource::full_name(), source.encode_to_vec(), COMPACT).unwrap()).unwrap();
        prop_assert_eq!(json::parse::<DataSource>(&value, UnknownFields::Refuse).unwrap().value, source);
        let value = prost_types::Value { kind: Some(prost_types::value::Kind::NumberValue(number)) };
        let name = prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(text.clone())) };
        let fields = [("n".to_string(), value), (text, name)].into_iter().collect();
        let metadata = Metadata { filter_metadata: [("x".to_string(), prost_types::Struct { fields })].into_iter().collect(), ..Default::default() };
        let shown = json::to_json(&Metadata::full_name(), metadata.encode_to_vec(), Options::default()).unwrap();
        let again = json::parse::<Metadata>(&serde_json::from_str(&shown).unwrap(), UnknownFields::Refuse).unwrap().value;
        let number_of = |m: &Metadata| match m.filter_metadata["x"].fields.get("n").and_then(|v| v.kind.clone()) {
            Some(prost_types::value::Kind::NumberValue(n)) => n,
            _ => 0.0,
        };
        if number.is_finite() {
            prop_assert_eq!(number_of(&again), number_of(&metadata));
        }
        let strings = |m: &Metadata| -> Vec<_> {
            let is_string = |v: &prost_types::Value| matches!(v.kind, Some(prost_types::value::Kind::StringValue(_)));
            m.filter_metadata["x"].fields.iter().filter(|(_, v)| is_string(v)).map(|(k, v)| (k.clone(), v.clone())).collect()
        };
        if number.is_finite() {
            prop_assert_eq!(strings(&again), strings(&metadata));
        }
    }

    /// The reader survives any tree of values.
    #[test]
    fn any_text_is_read_or_refused(text in "[\\[\\]{}:, \\n\"a-c0-9.-]{0,60}") {
        let _ = json::parse_text::<Metadata>(&text, UnknownFields::Ignore);
        let _ = json::parse_text::<DataSource>(&text, UnknownFields::Refuse);
    }
}
