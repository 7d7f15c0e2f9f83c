//! The event log of active health checks: one line of JSON for each `data.core.v3.HealthCheckEvent`, as Envoy writes them.
//! Written on the control thread; events are rare, so that lines are written at once.

use super::{HealthCheckSpec, Kind};
use crate::cluster::Cluster;
use crate::host::Host;
use crate::outlier::{EventLog, timestamp};
use nuncio_core::Address;
use nuncio_core::views::{ClusterView, HostView};
use nuncio_proto::Value;
use prost_types::value::Kind as ValueKind;
use serde_json::{Map, Value as Json, json};
use std::time::SystemTime;

/// Where events go, and which.
#[derive(Debug, Default)]
pub(crate) struct Events {
    pub files: Box<[EventLog]>,
    /// `always_log_health_check_failures`.
    pub failures: bool,
    /// `always_log_health_check_success`.
    pub successes: bool,
}

/// `HealthCheckFailureType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    Active,
    Passive,
    Network,
    NetworkTimeout,
}

impl Failure {
    fn name(self) -> &'static str {
        match self {
            Self::Active => "ACTIVE",
            Self::Passive => "PASSIVE",
            Self::Network => "NETWORK",
            Self::NetworkTimeout => "NETWORK_TIMEOUT",
        }
    }
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Eject { failure: Failure, status: u16 },
    Add { first: bool },
    Success,
    Failure { failure: Failure, status: u16, first: bool },
    Degraded,
    NoLongerDegraded,
}

impl Events {
    /// Writes one event, if anybody wants to know.
    pub(crate) fn log(&self, cluster: &Cluster, spec: &HealthCheckSpec, host: &Host, event: Event) {
        if self.files.is_empty() {
            return;
        }
        let line = format!("{}\n", Json::Object(message(cluster, spec, host, event)));
        self.files.iter().for_each(|file| file.write(&line));
    }
}

/// The event, fields in the order of their numbers as Envoy's JSON has them.
fn message(cluster: &Cluster, spec: &HealthCheckSpec, host: &Host, event: Event) -> Map<String, Json> {
    let mut all = Map::new();
    let mut put = |name: &str, value: Json| {
        all.insert(name.to_string(), value);
    };
    let checker = match spec.kind {
        Kind::Http(_) => "HTTP",
        Kind::Tcp(_) => "TCP",
        Kind::Grpc(_) => "GRPC",
    };
    put("health_checker_type", checker.into());
    put("host", address(host.address()));
    put("cluster_name", ClusterView::name(cluster).as_ref().into());
    match event {
        Event::Eject { failure, status } => {
            put("eject_unhealthy_event", json!({"failure_type": failure.name(), "http_status_code": status}))
        }
        Event::Add { first } => put("add_healthy_event", json!({"first_check": first})),
        _ => {}
    }
    put("timestamp", timestamp(SystemTime::now()).into());
    match event {
        Event::Failure { failure, status, first } => {
            let what = json!({"failure_type": failure.name(), "first_check": first, "http_status_code": status});
            put("health_check_failure_event", what);
        }
        Event::Degraded => put("degraded_healthy_host", json!({})),
        Event::NoLongerDegraded => put("no_longer_degraded_host", json!({})),
        _ => {}
    }
    if let Some(metadata) = host.metadata() {
        let fields = metadata.filter_metadata.iter().map(|(key, value)| (key.clone(), structure(value)));
        let fields: Map<String, Json> = fields.collect();
        put("metadata", json!({"filter_metadata": fields, "typed_filter_metadata": {}}));
    }
    let place = host.locality().cloned().unwrap_or_default();
    put("locality", json!({"region": place.region, "zone": place.zone, "sub_zone": place.sub_zone}));
    if event == Event::Success {
        put("successful_health_check_event", json!({}));
    }
    all
}

fn address(address: &Address) -> Json {
    match address {
        Address::Ip(ip) => json!({"socket_address": {
            "protocol": "TCP", "address": ip.ip().to_string(), "port_value": ip.port(), "resolver_name": "", "ipv4_compat": false,
            "network_namespace_filepath": "",
        }}),
        Address::Pipe(path) => json!({"pipe": {"path": path.as_ref(), "mode": 0}}),
        other => json!({"pipe": {"path": other.to_string(), "mode": 0}}),
    }
}

fn structure(fields: &nuncio_proto::Struct) -> Json {
    Json::Object(fields.fields.iter().map(|(key, value)| (key.clone(), json_of(value))).collect())
}

fn json_of(value: &Value) -> Json {
    match &value.kind {
        None | Some(ValueKind::NullValue(_)) => Json::Null,
        // Whole numbers without a point, as protobuf writes them.
        Some(ValueKind::NumberValue(n)) if n.fract() == 0.0 && n.abs() < 9e15 => (*n as i64).into(),
        Some(ValueKind::NumberValue(n)) => (*n).into(),
        Some(ValueKind::StringValue(text)) => text.as_str().into(),
        Some(ValueKind::BoolValue(is)) => (*is).into(),
        Some(ValueKind::StructValue(inner)) => structure(inner),
        Some(ValueKind::ListValue(list)) => Json::Array(list.values.iter().map(json_of).collect()),
    }
}
