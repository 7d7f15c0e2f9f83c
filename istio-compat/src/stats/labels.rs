//! Labels of facts, in the order in which Envoy writes them. Workers, once per new label set.

use super::facts::{Facts, Group};
use super::{Local, Reporter};

/// Every label of the standard metrics.
pub const STANDARD: [&str; 25] = [
    "reporter",
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_service",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_service_name",
    "destination_service_namespace",
    "destination_cluster",
    "request_protocol",
    "response_code",
    "grpc_response_status",
    "response_flags",
    "connection_security_policy",
];

/// A label: name and value.
pub type Label = (&'static str, String);

fn or<'a>(value: &'a str, fallback: &'a str) -> &'a str {
    if value.is_empty() { fallback } else { value }
}
const UNKNOWN: &str = "unknown";

/// The namespace in `spiffe://<domain>/ns/<namespace>/sa/<account>`; empty if there is none.
fn namespace_of(san: &str) -> &str {
    san.split_once("/ns/").map(|(_, rest)| rest.split('/').next().unwrap_or(rest)).unwrap_or_default()
}

/// The labels of `facts`.
pub fn labels(reporter: Reporter, local: &Local, facts: &Facts<'_>) -> Vec<Label> {
    let mut out: Vec<Label> = Vec::with_capacity(STANDARD.len());
    let mut add = |name, value: &str| out.push((name, value.to_string()));
    add(
        "reporter",
        match reporter {
            Reporter::Client => "source",
            Reporter::Server => "destination",
            Reporter::Waypoint => "waypoint",
        },
    );
    let peer = facts.peer.unwrap_or_default();
    let peer_namespace = or(namespace_of(facts.peer_san), peer.namespace);
    match reporter {
        Reporter::Client => {
            add("source_workload", &local.workload);
            add("source_canonical_service", &local.canonical_name);
            add("source_canonical_revision", &local.canonical_revision);
            add("source_workload_namespace", &local.namespace);
            add("source_principal", or(facts.local_san, UNKNOWN));
            add("source_app", &local.app);
            add("source_version", &local.version);
            add("source_cluster", &local.cluster);
            add("destination_workload", or(peer.workload, UNKNOWN));
            add("destination_workload_namespace", or(peer_namespace, UNKNOWN));
            add("destination_principal", or(facts.peer_san, UNKNOWN));
            add("destination_app", or(peer.app, UNKNOWN));
            add("destination_version", or(peer.version, UNKNOWN));
            add("destination_service", or(facts.service_host, UNKNOWN));
            add("destination_canonical_service", or(peer.canonical_name, UNKNOWN));
            add("destination_canonical_revision", or(peer.canonical_revision, "latest"));
            add("destination_service_name", or(facts.service_name, UNKNOWN));
            add("destination_service_namespace", or(or(facts.service_namespace, peer_namespace), UNKNOWN));
            add("destination_cluster", or(peer.cluster, UNKNOWN));
        }
        Reporter::Server | Reporter::Waypoint => {
            add("source_workload", or(peer.workload, UNKNOWN));
            add("source_canonical_service", or(peer.canonical_name, UNKNOWN));
            add("source_canonical_revision", or(peer.canonical_revision, "latest"));
            add("source_workload_namespace", or(peer_namespace, UNKNOWN));
            add("source_principal", or(facts.peer_san, UNKNOWN));
            add("source_app", or(peer.app, UNKNOWN));
            add("source_version", or(peer.version, UNKNOWN));
            add("source_cluster", or(peer.cluster, UNKNOWN));
            if reporter == Reporter::Waypoint {
                let to = facts.upstream_peer.unwrap_or_default();
                add("destination_workload", or(to.workload, UNKNOWN));
                add("destination_workload_namespace", or(to.namespace, UNKNOWN));
                add("destination_principal", or(to.identity, UNKNOWN));
                add("destination_app", or(to.app, UNKNOWN));
                add("destination_version", or(to.version, UNKNOWN));
                add("destination_service", or(facts.service_host, UNKNOWN));
                add("destination_canonical_service", or(to.canonical_name, UNKNOWN));
                add("destination_canonical_revision", or(to.canonical_revision, UNKNOWN));
                add("destination_service_name", or(facts.service_name, UNKNOWN));
                add("destination_service_namespace", or(facts.service_namespace, UNKNOWN));
                add("destination_cluster", or(to.cluster, UNKNOWN));
            } else {
                add("destination_workload", &local.workload);
                add("destination_workload_namespace", &local.namespace);
                add("destination_principal", or(facts.local_san, UNKNOWN));
                add("destination_app", &local.app);
                add("destination_version", &local.version);
                add("destination_service", or(facts.service_host, &local.canonical_name));
                add("destination_canonical_service", &local.canonical_name);
                add("destination_canonical_revision", &local.canonical_revision);
                add("destination_service_name", or(facts.service_name, &local.canonical_name));
                add("destination_service_namespace", &local.namespace);
                add("destination_cluster", &local.cluster);
            }
        }
    }
    let protocol = match facts.group {
        Group::Messages => return out,
        Group::Http => "http",
        Group::Grpc => "grpc",
        Group::Tcp => "tcp",
    };
    add("request_protocol", protocol);
    if facts.group != Group::Tcp {
        add("response_code", &facts.code.to_string());
        add("grpc_response_status", &facts.grpc_status.map(|s| s.to_string()).unwrap_or_default());
    }
    add("response_flags", &facts.flags.short());
    add(
        "connection_security_policy",
        match facts.mutual_tls {
            Some(true) => "mutual_tls",
            Some(false) => "none",
            None => UNKNOWN,
        },
    );
    out
}

/// The labels of everything beyond the limit of label sets: the same names, so that queries that sum still see it.
pub fn overflow(mut labels: Vec<Label>) -> Vec<Label> {
    for (name, value) in &mut labels {
        if !matches!(*name, "reporter" | "request_protocol" | "connection_security_policy") {
            *value = "overflow".to_string();
        }
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_of_identities() {
        assert_eq!(namespace_of("spiffe://cluster.local/ns/demo/sa/shop"), "demo");
        assert_eq!(namespace_of("spiffe://cluster.local/ns/demo"), "demo");
        assert_eq!(namespace_of("spiffe://cluster.local/sa/shop"), "");
        assert_eq!(namespace_of(""), "");
    }
}
