//! Reading protobuf JSON: what is accepted, and how what is wrong is said.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // It is a test.

use nuncio_proto::envoy::config::bootstrap::v3::Bootstrap;
use nuncio_proto::envoy::config::cluster::v3::Cluster;
use nuncio_proto::envoy::config::core::v3::{Metadata, Pipe, SocketOption};
use nuncio_proto::envoy::config::listener::v3::Listener;
use nuncio_proto::envoy::config::route::v3::{RouteConfiguration, VirtualHost};
use nuncio_proto::json::{self, Read, UnknownFields};
use nuncio_proto::xds::r#type::v3::TypedStruct;
use nuncio_proto::{Any, Message, Name, typed};
use serde_json::{Value, json};

fn read<T: Message + Name + Default>(value: Value) -> T {
    json::parse(&value, UnknownFields::Refuse).unwrap_or_else(|e| panic!("{e}")).value
}

fn problems<T: Message + Name + Default + std::fmt::Debug>(value: Value) -> Vec<String> {
    let problems = json::parse::<T>(&value, UnknownFields::Refuse).expect_err("refused");
    problems.items.iter().map(ToString::to_string).collect()
}

#[test]
fn names_numbers_enums_and_durations_in_every_form() {
    let cluster: Cluster = read(json!({
        "name": "c", "connectTimeout": "0.250s", "lb_policy": "LEAST_REQUEST", "type": 3, "per_connection_buffer_limit_bytes": "32768",
        "maxRequestsPerConnection": 7, "track_cluster_stats": null, "dns_lookup_family": "2", "ignoreHealthOnHostRemoval": true,
        "common_lb_config": {"healthy_panic_threshold": {"value": "12.5"}},
        "circuit_breakers": {"thresholds": [{"priority": "HIGH", "max_connections": 4294967295u32, "max_requests": "5e3"}]},
    }));
    assert_eq!(cluster.name, "c");
    assert_eq!(cluster.connect_timeout.unwrap().nanos, 250_000_000);
    assert_eq!((cluster.lb_policy, cluster.dns_lookup_family), (1, 2));
    assert_eq!(cluster.per_connection_buffer_limit_bytes, Some(32768));
    let threshold = &cluster.circuit_breakers.unwrap().thresholds[0];
    assert_eq!((threshold.priority, threshold.max_connections, threshold.max_requests), (1, Some(u32::MAX), Some(5000)));
    let pipe: Pipe = read(json!({"path": "p", "mode": "0644"}));
    assert_eq!(pipe.mode, 0o644, "octal, as YAML 1.1 has it");
    let option: SocketOption = read(json!({"level": "-5", "int_value": 1.0, "buf_value": null, "state": "STATE_PREBIND"}));
    assert_eq!(option.level, -5);
}

#[test]
fn any_struct_maps_and_bytes() {
    let metadata: Metadata = read(json!({"filter_metadata": {"a.b": {"n": 1.5, "l": [null, true, {"x": "y"}]}}}));
    let fields = &metadata.filter_metadata["a.b"].fields;
    assert_eq!(fields["n"].kind, Some(prost_types::value::Kind::NumberValue(1.5)));
    let host: VirtualHost = read(json!({"typed_per_filter_config": {
        "f": {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "isOptional": true},
        "d": {"@type": "type.googleapis.com/google.protobuf.Duration", "value": "1s"},
        "e": {"@type": "type.googleapis.com/google.protobuf.Empty"},
        "nothing": {},
    }}));
    assert_eq!(host.typed_per_filter_config["f"].value, [0x10, 1]);
    assert_eq!(host.typed_per_filter_config["d"].value, [8, 1]);
    assert_eq!(host.typed_per_filter_config["e"].value, [0u8; 0]);
    assert_eq!(host.typed_per_filter_config["nothing"], Any::default());
    for text in ["-_8=", "+/8=", "-_8"] {
        let source: nuncio_proto::envoy::config::core::v3::DataSource = read(json!({"inline_bytes": text}));
        assert!(format!("{source:?}").contains("\\xfb\\xff") || format!("{source:?}").contains("251, 255"), "{source:?}");
    }
}

#[test]
fn every_problem_at_once_with_path_and_remedy() {
    let found = problems::<Bootstrap>(json!({
        "static_resources": {"clusters": [
            {"name": 5, "conect_timeout": "1s"},
            {"connect_timeout": "1m", "lb_policy": "LEAST", "max_requests_per_connection": -1, "metadata": []},
            {"transport_socket": {"typed_config": {"@type": "type.googleapis.com/envoy.Nope"}}},
            {"transport_socket": {"typed_config": {"a": 1}}, "connectTimeout": "1s", "connect_timeout": "1s"},
        ]},
        "node": "n",
    }));
    let expected = [
        "static_resources.clusters[0].name: found the number 5; expected a string: quote it, \"5\"",
        "static_resources.clusters[0].conect_timeout: envoy.config.cluster.v3.Cluster has no field \"conect_timeout\"; did you mean connect_timeout?",
        "static_resources.clusters[1].connect_timeout: found \"1m\"; expected a duration in seconds such as \"0.25s\"",
        "static_resources.clusters[1].lb_policy: found \"LEAST\"; expected one of ROUND_ROBIN, LEAST_REQUEST, RING_HASH, RANDOM, MAGLEV, CLUSTER_PROVIDED, LOAD_BALANCING_POLICY_CONFIG",
        "static_resources.clusters[1].max_requests_per_connection: found the number -1; expected a whole number from 0 to 4294967295",
        "static_resources.clusters[1].metadata: found a list of 0 elements; expected an object (envoy.config.core.v3.Metadata)",
        "static_resources.clusters[2].transport_socket.typed_config.@type: the type \"envoy.Nope\" is not known; use a type of Envoy or Istio",
        "static_resources.clusters[3].transport_socket.typed_config: found an object with 1 fields (\"a\"..); name its type: \"@type\": \"type.googleapis.com/...\"",
        "static_resources.clusters[3].connect_timeout: the field is given twice, in snake_case and lowerCamel; give it once",
        "node: found \"n\"; expected an object (envoy.config.core.v3.Node)",
    ];
    assert_eq!(found, expected);
}

#[test]
fn members_of_a_oneof_exclude_each_other() {
    let found = problems::<Cluster>(json!({"type": "EDS", "cluster_type": {"name": "x"}}));
    assert_eq!(found, ["cluster_type: cluster_type and type exclude each other; give one of them"]);
}

#[test]
fn unknown_fields_are_ignored_by_name() {
    let value = json!({"name": "c", "a": 1, "eds_cluster_config": {"b": {}}, "lb_policy": "NEW_ONE", "health_checks": [{"c": null}]});
    let Read { value, unknown } = json::parse::<Cluster>(&value, UnknownFields::Ignore).unwrap();
    assert_eq!(value.name, "c");
    assert_eq!(unknown, ["a", "eds_cluster_config.b", "lb_policy: \"NEW_ONE\"", "health_checks[0].c"]);
}

#[test]
fn text_in_yaml_with_words_and_merge_keys() {
    let text = "
defaults: &defaults {connect_timeout: 1s, track_cluster_stats: &t {timeout_budgets: on}}
name: on
<<: *defaults
ignore_health_on_host_removal: yes
";
    let read = json::parse_text::<Cluster>(text, UnknownFields::Ignore).unwrap();
    assert_eq!(read.unknown, ["defaults"]);
    assert_eq!(read.value.name, "on");
    assert!(read.value.ignore_health_on_host_removal && read.value.track_cluster_stats.unwrap().timeout_budgets);
    let problems = json::parse_text::<Cluster>("name: [", UnknownFields::Refuse).unwrap_err();
    assert!(problems.to_string().starts_with("line 2 column 1: "), "{problems}");
}

#[test]
fn hostile_nesting_is_refused() {
    let mut value = json!({});
    for _ in 0..120 {
        value = json!({"and_match": {"rules": [value]}});
    }
    let found = problems::<nuncio_proto::envoy::config::common::matcher::v3::MatchPredicate>(value);
    assert!(found.iter().any(|p| p.contains("nested deeper than 100 levels")), "{found:?}");
}

fn packed(url: &str, value: Value) -> Any {
    let typed: TypedStruct = read(json!({"type_url": url, "value": value}));
    Any { type_url: "type.googleapis.com/udpa.type.v1.TypedStruct".into(), value: typed.encode_to_vec() }
}

#[test]
fn typed_struct_stands_for_its_message() {
    let any = packed("type.googleapis.com/envoy.config.listener.v3.Listener", json!({"name": "l", "tcpBacklogSize": 64, "new_field": 1}));
    let listener: Listener = typed::unpack_as(&any).unwrap();
    assert_eq!((listener.name.as_str(), listener.tcp_backlog_size), ("l", Some(64)));
    let error = typed::unpack(&packed("type.googleapis.com/envoy.Nope", json!({}))).unwrap_err();
    assert_eq!(error, "TypedStruct of envoy.Nope: the message type envoy.Nope is not known; use a type of Envoy or Istio");
    let error = typed::unpack(&packed("type.googleapis.com/envoy.config.listener.v3.Listener", json!({"name": 5}))).unwrap_err();
    assert_eq!(error, "TypedStruct of envoy.config.listener.v3.Listener: name: found the number 5.0; expected a string: quote it, \"5.0\"");
    assert_eq!(typed::unpack(&packed("", json!({}))).unwrap_err(), "TypedStruct names no type: set type_url");
}

/// `--config-yaml` over `-c`.
#[test]
fn merging_is_protobufs() {
    let name = Bootstrap::full_name();
    let wire = |value: Value| json::from_json(&name, &value, UnknownFields::Refuse).unwrap().value;
    let mut base = wire(json!({"node": {"id": "a", "cluster": "c"}, "static_resources": {"clusters": [{"name": "1"}]}}));
    json::merge(&mut base, &wire(json!({"node": {"id": "b"}, "static_resources": {"clusters": [{"name": "2"}]}, "admin": {}})));
    let merged = Bootstrap::decode(base.as_slice()).unwrap();
    let node = merged.node.unwrap();
    assert_eq!((node.id.as_str(), node.cluster.as_str()), ("b", "c"));
    assert_eq!(merged.static_resources.unwrap().clusters.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["1", "2"]);
    assert!(merged.admin.is_some());
}

#[test]
fn empty_text_is_an_empty_message() {
    assert_eq!(json::parse_text::<RouteConfiguration>(" \n", UnknownFields::Refuse).unwrap().value, RouteConfiguration::default());
}
