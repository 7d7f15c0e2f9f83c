//! What proxies tell each other about their workloads: the metadata object behind `upstream_peer` and `downstream_peer`.
//! Made by metadata exchange (HTTP and TCP) and from endpoint metadata; read by istio.stats, formatters and CEL.
//! Source: Envoy contrib `istio/filters/common` (WorkloadMetadataObject), Istio's endpoint metadata `istio.workload`.

use nuncio_core::StreamInfo;
use nuncio_core::filter_state::StateObject;
use nuncio_core::views::{HostView, filter_metadata};
use nuncio_proto::envoy::config::core::v3::Locality;
use nuncio_proto::{Struct, Value};
use prost_types::value::Kind;
use std::any::Any;
use std::fmt::Write;
use std::sync::Arc;

/// Filter state of the workload that sent the request.
pub const DOWNSTREAM_PEER: &str = "downstream_peer";
/// Filter state of the workload that answered.
pub const UPSTREAM_PEER: &str = "upstream_peer";
/// The same objects under the names that `%FILTER_STATE(..:FIELD:..)%` uses.
pub const DOWNSTREAM_PEER_OBJ: &str = "downstream_peer_obj";
pub const UPSTREAM_PEER_OBJ: &str = "upstream_peer_obj";
/// Filter state that says that TCP metadata exchange ended without a peer.
pub const NO_PEER: &str = "peer_not_found";

const OWNER_PREFIX: &str = "kubernetes://apis/apps/v1/namespaces/";

/// Kind of the controller of a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum WorkloadKind {
    #[default]
    Unknown,
    Pod,
    Deployment,
    Job,
    CronJob,
}

impl WorkloadKind {
    /// From `deployment`, `pod`, `job` or `cronjob`.
    pub fn parse(name: &str) -> Self {
        match name {
            "pod" => Self::Pod,
            "deployment" => Self::Deployment,
            "job" => Self::Job,
            "cronjob" => Self::CronJob,
            _ => Self::Unknown,
        }
    }
    /// The name; none if unknown.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::Unknown => None,
            Self::Pod => Some("pod"),
            Self::Deployment => Some("deployment"),
            Self::Job => Some("job"),
            Self::CronJob => Some("cronjob"),
        }
    }
    /// From an owner URL `kubernetes://apis/apps/v1/namespaces/<ns>/<kind>s/<workload>`.
    fn of_owner(owner: &str, workload: &str) -> Self {
        let kind = owner.strip_suffix(workload).and_then(|o| o.strip_suffix("s/")).and_then(|o| o.rsplit_once('/'));
        kind.map_or(Self::Unknown, |(_, kind)| Self::parse(kind))
    }
}

/// A workload. Empty strings mean unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Peer {
    /// Pod name.
    pub instance: String,
    pub cluster: String,
    pub namespace: String,
    pub workload: String,
    pub canonical_name: String,
    pub canonical_revision: String,
    pub app: String,
    pub version: String,
    pub kind: WorkloadKind,
    /// SPIFFE identity.
    pub identity: String,
    pub region: String,
    pub zone: String,
    /// Labels asked for by `additional_labels`, in the order of their names.
    pub labels: Vec<(String, String)>,
}

/// The text of a value; empty if it is not a string.
pub(crate) fn text(value: &Value) -> &str {
    match &value.kind {
        Some(Kind::StringValue(s)) => s,
        _ => "",
    }
}

/// The struct of a value.
pub(crate) fn object(value: &Value) -> Option<&Struct> {
    match &value.kind {
        Some(Kind::StructValue(s)) => Some(s),
        _ => None,
    }
}

fn string(s: &str) -> Value {
    Value { kind: Some(Kind::StringValue(s.to_string())) }
}

impl Peer {
    /// From the form that is exchanged, which is also that of `node.metadata`. Keeps labels named in `additional`.
    pub fn from_struct(metadata: &Struct, additional: &[String]) -> Self {
        let get = |key: &str| metadata.fields.get(key).map(text).unwrap_or_default().to_string();
        let mut peer = Self {
            instance: get("NAME"),
            cluster: get("CLUSTER_ID"),
            namespace: get("NAMESPACE"),
            workload: get("WORKLOAD_NAME"),
            identity: get("IDENTITY"),
            region: get("REGION"),
            zone: get("AVAILABILITY_ZONE"),
            ..Self::default()
        };
        peer.kind = WorkloadKind::of_owner(&get("OWNER"), &peer.workload);
        for (name, value) in metadata.fields.get("LABELS").and_then(object).into_iter().flat_map(|l| &l.fields) {
            let value = text(value);
            match name.as_str() {
                "service.istio.io/canonical-name" => peer.canonical_name = value.to_string(),
                "service.istio.io/canonical-revision" => peer.canonical_revision = value.to_string(),
                "app.kubernetes.io/name" => peer.app = value.to_string(),
                "app" if peer.app.is_empty() => peer.app = value.to_string(),
                "app.kubernetes.io/version" => peer.version = value.to_string(),
                "version" if peer.version.is_empty() => peer.version = value.to_string(),
                "app" | "version" => {}
                _ if additional.contains(name) => peer.labels.push((name.clone(), value.to_string())),
                _ => {}
            }
        }
        peer
    }
    /// The local workload: node metadata, with the node's locality where the metadata has none.
    pub fn of_node(metadata: &Struct, locality: Option<&Locality>, additional: &[String]) -> Self {
        let mut peer = Self::from_struct(metadata, additional);
        if let Some(locality) = locality {
            if peer.region.is_empty() {
                peer.region.clone_from(&locality.region);
            }
            if peer.zone.is_empty() {
                peer.zone.clone_from(&locality.zone);
            }
        }
        peer
    }
    /// The form that is exchanged.
    pub fn to_struct(&self) -> Struct {
        let mut out = Struct::default();
        let mut labels = Struct::default();
        let mut set = |key: &str, value: &str| {
            if !value.is_empty() {
                out.fields.insert(key.to_string(), string(value));
            }
        };
        set("NAME", &self.instance);
        set("NAMESPACE", &self.namespace);
        set("WORKLOAD_NAME", &self.workload);
        set("CLUSTER_ID", &self.cluster);
        set("IDENTITY", &self.identity);
        set("REGION", &self.region);
        set("AVAILABILITY_ZONE", &self.zone);
        set("OWNER", &self.owner().unwrap_or_default());
        let known = [
            ("service.istio.io/canonical-name", &self.canonical_name),
            ("service.istio.io/canonical-revision", &self.canonical_revision),
            ("app", &self.app),
            ("version", &self.version),
        ];
        labels.fields.extend(known.iter().filter(|(_, v)| !v.is_empty()).map(|(k, v)| (k.to_string(), string(v))));
        labels.fields.extend(self.labels.iter().map(|(k, v)| (k.clone(), string(v))));
        out.fields.insert("LABELS".to_string(), Value { kind: Some(Kind::StructValue(labels)) });
        out
    }
    /// `kubernetes://apis/apps/v1/namespaces/<ns>/<kind>s/<workload>`; none if the kind is unknown.
    pub fn owner(&self) -> Option<String> {
        self.kind.name().map(|kind| format!("{OWNER_PREFIX}{}/{kind}s/{}", self.namespace, self.workload))
    }
    /// From endpoint metadata `istio.workload`: `workload;namespace;canonical name;canonical revision;cluster`.
    pub fn from_endpoint(encoded: &str) -> Option<Self> {
        let mut parts = encoded.split(';');
        Some(Self {
            workload: parts.next()?.to_string(),
            namespace: parts.next()?.to_string(),
            canonical_name: parts.next()?.to_string(),
            canonical_revision: parts.next()?.to_string(),
            cluster: parts.next()?.to_string(),
            ..Self::default()
        })
    }
    /// Endpoint metadata `istio.workload` of a host, not yet parsed.
    pub fn endpoint_text(host: &dyn HostView) -> Option<&str> {
        filter_metadata(host.metadata(), "istio")?.fields.get("workload").map(text)
    }
    /// A field by the name that Envoy's accessors use.
    pub fn get(&self, name: &str) -> Option<&str> {
        Some(match name {
            "namespace" => &self.namespace,
            "cluster" => &self.cluster,
            "service" => &self.canonical_name,
            "revision" => &self.canonical_revision,
            "app" => &self.app,
            "version" => &self.version,
            "workload" => &self.workload,
            "type" => self.kind.name().unwrap_or("unknown"),
            "name" => &self.instance,
            "identity" => &self.identity,
            "region" => &self.region,
            "availability_zone" => &self.zone,
            _ => return None,
        })
    }
    /// A label of `labels`.
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
    }
    /// Fields that are known, in the order in which Envoy writes them.
    fn pairs(&self) -> impl Iterator<Item = (&'static str, &str)> {
        [
            ("type", self.kind.name().unwrap_or_default()),
            ("workload", &self.workload),
            ("name", &self.instance),
            ("cluster", &self.cluster),
            ("namespace", &self.namespace),
            ("service", &self.canonical_name),
            ("revision", &self.canonical_revision),
            ("app", &self.app),
            ("version", &self.version),
            ("region", &self.region),
            ("availability_zone", &self.zone),
        ]
        .into_iter()
        .filter(|(_, v)| !v.is_empty())
    }
    /// The peer in filter state `key`: of the stream, else of the upstream connection (for upstream peers), else of the
    /// downstream connection.
    pub fn find(info: &StreamInfo, key: &str) -> Option<Arc<Peer>> {
        if let Some(object) = info.filter_state.get(key) {
            return downcast(object);
        }
        if let Some(object) = info.upstream.as_ref().and_then(|u| u.filter_state.get(key)) {
            return downcast(object);
        }
        info.connection.filter_state.borrow().get(key).and_then(downcast)
    }
    /// Whether filter state says who the peer is, or that there is none.
    pub fn settled(info: &StreamInfo, key: &str) -> bool {
        let has = |state: &nuncio_core::filter_state::FilterState| state.get(key).is_some() || state.get(NO_PEER).is_some();
        has(&info.filter_state)
            || info.upstream.as_ref().is_some_and(|u| has(&u.filter_state))
            || has(&info.connection.filter_state.borrow())
    }
}

fn downcast(object: &Arc<dyn StateObject>) -> Option<Arc<Peer>> {
    object.as_any().downcast_ref::<PeerState>().map(|p| p.0.clone())
}

/// A peer as filter state.
#[derive(Clone, Debug)]
pub struct PeerState(pub Arc<Peer>);

impl StateObject for PeerState {
    fn as_string(&self) -> Option<String> {
        let mut out = String::new();
        for (key, value) in self.0.pairs() {
            let _ = write!(out, "{}{key}={value}", if out.is_empty() { "" } else { "," });
        }
        for (key, value) in &self.0.labels {
            let _ = write!(out, "{}labels[]{key}={value}", if out.is_empty() { "" } else { "," });
        }
        Some(out)
    }
    fn field(&self, name: &str) -> Option<String> {
        self.0.get(name).map(ToString::to_string)
    }
    fn as_json(&self) -> Option<String> {
        let mut fields: Vec<(&str, &str)> = self.0.pairs().collect();
        if !self.0.identity.is_empty() {
            fields.push(("identity", &self.0.identity));
        }
        fields.sort_unstable();
        let mut out = String::from("{");
        for (key, value) in fields {
            push_member(&mut out, key, value);
        }
        if !self.0.labels.is_empty() {
            out.push_str(if out.len() > 1 { ",\"labels\":{" } else { "\"labels\":{" });
            for (key, value) in &self.0.labels {
                push_member(&mut out, key, value);
            }
            out.push('}');
        }
        out.push('}');
        Some(out)
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn push_member(out: &mut String, key: &str, value: &str) {
    if !out.ends_with('{') {
        out.push(',');
    }
    push_quoted(out, key);
    out.push(':');
    push_quoted(out, value);
}

fn push_quoted(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            c if u32::from(c) < 0x20 => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use nuncio_core::test_kit::{fields, object, text};
    use prost::Message;

    fn node() -> Struct {
        fields([
            ("NAME", text("shop-1")),
            ("NAMESPACE", text("demo")),
            ("WORKLOAD_NAME", text("shop")),
            ("CLUSTER_ID", text("Kubernetes")),
            ("OWNER", text("kubernetes://apis/apps/v1/namespaces/demo/deployments/shop")),
            (
                "LABELS",
                object(fields([
                    ("app", text("shop")),
                    ("version", text("v1")),
                    ("service.istio.io/canonical-name", text("shop")),
                    ("service.istio.io/canonical-revision", text("v1")),
                    ("role", text("front")),
                    ("secret", text("x")),
                ])),
            ),
            ("ISTIO_VERSION", text("1.30")),
        ])
    }

    #[test]
    fn exchange_form_goes_round_and_leaves_out_what_is_not_asked_for() {
        let labels = vec!["role".to_string()];
        let peer = Peer::of_node(&node(), Some(&Locality { region: "r".into(), zone: "z".into(), sub_zone: String::new() }), &labels);
        assert_eq!(peer.kind, WorkloadKind::Deployment);
        assert_eq!((peer.region.as_str(), peer.zone.as_str()), ("r", "z"));
        let wire = peer.to_struct();
        assert!(!wire.fields.contains_key("ISTIO_VERSION"));
        assert_eq!(super::text(&wire.fields["OWNER"]), "kubernetes://apis/apps/v1/namespaces/demo/deployments/shop");
        assert_eq!(wire.encode_to_vec(), peer.to_struct().encode_to_vec());
        assert_eq!(Peer::from_struct(&wire, &labels), peer);
        assert_eq!(peer.label("role"), Some("front"));
        assert_eq!(peer.label("secret"), None);
    }

    #[test]
    fn qualified_labels_win() {
        let labels = fields([
            ("app", text("a")),
            ("app.kubernetes.io/name", text("b")),
            ("version", text("1")),
            ("app.kubernetes.io/version", text("2")),
        ]);
        let peer = Peer::from_struct(&fields([("LABELS", object(labels))]), &[]);
        assert_eq!((peer.app.as_str(), peer.version.as_str()), ("b", "2"));
    }

    #[test]
    fn endpoint_metadata_needs_five_fields() {
        let peer = Peer::from_endpoint("shop;demo;shop-canon;v2;Kubernetes").unwrap();
        assert_eq!((peer.workload.as_str(), peer.namespace.as_str(), peer.canonical_name.as_str()), ("shop", "demo", "shop-canon"));
        assert_eq!((peer.canonical_revision.as_str(), peer.cluster.as_str()), ("v2", "Kubernetes"));
        assert!(Peer::from_endpoint("a;b;c;d").is_none());
        assert!(Peer::from_endpoint(";;;;").is_some());
    }

    #[test]
    fn owner_kinds() {
        let kind = |owner: &str| WorkloadKind::of_owner(owner, "w");
        assert_eq!(kind("kubernetes://apis/apps/v1/namespaces/n/cronjobs/w"), WorkloadKind::CronJob);
        assert_eq!(kind("kubernetes://apis/apps/v1/namespaces/n/statefulsets/w"), WorkloadKind::Unknown);
        assert_eq!(kind(""), WorkloadKind::Unknown);
        assert_eq!(kind("s/w"), WorkloadKind::Unknown);
    }

    #[test]
    fn filter_state_forms() {
        let state = PeerState(Arc::new(Peer {
            workload: "w\"".into(),
            namespace: "n".into(),
            labels: vec![("l".into(), "v".into())],
            ..Peer::default()
        }));
        assert_eq!(state.field("workload").as_deref(), Some("w\""));
        assert_eq!(state.field("type").as_deref(), Some("unknown"));
        assert_eq!(state.field("nothing"), None);
        assert_eq!(state.as_json().as_deref(), Some(r#"{"namespace":"n","workload":"w\"","labels":{"l":"v"}}"#));
        assert_eq!(state.as_string().as_deref(), Some("workload=w\",namespace=n,labels[]l=v"));
    }
}
