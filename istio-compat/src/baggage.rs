//! Workload metadata as W3C baggage: `k8s.deployment.name=shop,service.name=shop,..`. Used by metadata exchange where the
//! configuration asks for baggage instead of Istio's own headers (ambient, multi-cluster).
//! Source: Envoy contrib `istio/filters/common/source/metadata_object.cc`.

use crate::peer::{Peer, WorkloadKind};

/// The baggage value of a workload.
pub fn encode(peer: &Peer) -> String {
    let mut parts = Vec::new();
    if !peer.workload.is_empty() {
        parts.push(format!("k8s.{}.name={}", peer.kind.name().unwrap_or("pod"), peer.workload));
    }
    let mut add = |key: &str, value: &str| {
        if !value.is_empty() {
            parts.push(format!("{key}={value}"));
        }
    };
    add("service.name", &peer.canonical_name);
    add("app.name", if peer.app == peer.canonical_name { "" } else { &peer.app });
    add("service.version", &peer.canonical_revision);
    add("app.version", if peer.version == peer.canonical_revision { "" } else { &peer.version });
    add("k8s.namespace.name", &peer.namespace);
    add("k8s.cluster.name", &peer.cluster);
    add("k8s.instance.name", &peer.instance);
    add("cloud.region", &peer.region);
    add("cloud.availability_zone", &peer.zone);
    parts.join(",")
}

/// The workload that a baggage value names; members that are not known are ignored.
pub fn decode(baggage: &str) -> Peer {
    let mut peer = Peer::default();
    for member in baggage.split(',') {
        let (key, value) = member.split_once('=').unwrap_or((member, ""));
        let value = value.to_string();
        match key {
            "k8s.namespace.name" => peer.namespace = value,
            "k8s.cluster.name" => peer.cluster = value,
            "service.name" => {
                if peer.app.is_empty() {
                    peer.app.clone_from(&value);
                }
                peer.canonical_name = value;
            }
            "service.version" => {
                if peer.version.is_empty() {
                    peer.version.clone_from(&value);
                }
                peer.canonical_revision = value;
            }
            "app.name" => {
                if peer.canonical_name.is_empty() {
                    peer.canonical_name.clone_from(&value);
                }
                peer.app = value;
            }
            "app.version" => {
                if peer.canonical_revision.is_empty() {
                    peer.canonical_revision.clone_from(&value);
                }
                peer.version = value;
            }
            "k8s.instance.name" => peer.instance = value,
            "cloud.region" => peer.region = value,
            "cloud.availability_zone" => peer.zone = value,
            "k8s.deployment.name" | "k8s.pod.name" | "k8s.cronjob.name" | "k8s.job.name" => {
                let kind = key.strip_prefix("k8s.").and_then(|k| k.strip_suffix(".name")).unwrap_or_default();
                peer.kind = WorkloadKind::parse(kind);
                peer.workload = value;
            }
            _ => {}
        }
    }
    peer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goes_round() {
        let peer = Peer {
            workload: "shop".into(),
            kind: WorkloadKind::Deployment,
            canonical_name: "s".into(),
            app: "a".into(),
            canonical_revision: "v1".into(),
            version: "v1".into(),
            namespace: "n".into(),
            cluster: "c".into(),
            region: "r".into(),
            zone: "z".into(),
            instance: "i".into(),
            ..Peer::default()
        };
        let text = encode(&peer);
        assert_eq!(
            text,
            "k8s.deployment.name=shop,service.name=s,app.name=a,service.version=v1,k8s.namespace.name=n,k8s.cluster.name=c,\
             k8s.instance.name=i,cloud.region=r,cloud.availability_zone=z"
        );
        assert_eq!(decode(&text), peer);
    }

    #[test]
    fn hostile_members_are_ignored() {
        assert_eq!(decode("=,,==,k8s..name=x,garbage;\u{0}"), Peer::default());
    }
}
