//! What decides the labels of a stream, borrowed for the lookup and owned as a key. Workers.

use crate::peer::Peer;
use hashbrown::Equivalent;
use nuncio_core::ResponseFlags;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// The group of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Group {
    Http,
    Grpc,
    /// gRPC message counters: labels known before the end of the stream.
    Messages,
    Tcp,
}

/// Those parts of a peer that become labels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PeerFacts<'a> {
    pub workload: &'a str,
    pub namespace: &'a str,
    pub canonical_name: &'a str,
    pub canonical_revision: &'a str,
    pub cluster: &'a str,
    pub app: &'a str,
    pub version: &'a str,
    pub identity: &'a str,
}

impl<'a> PeerFacts<'a> {
    pub fn of(peer: &'a Peer) -> Self {
        Self {
            workload: &peer.workload,
            namespace: &peer.namespace,
            canonical_name: &peer.canonical_name,
            canonical_revision: &peer.canonical_revision,
            cluster: &peer.cluster,
            app: &peer.app,
            version: &peer.version,
            identity: &peer.identity,
        }
    }
    /// From endpoint metadata, as [`Peer::from_endpoint`] but without a copy.
    pub fn endpoint(encoded: &'a str) -> Option<Self> {
        let mut parts = encoded.split(';');
        Some(Self {
            workload: parts.next()?,
            namespace: parts.next()?,
            canonical_name: parts.next()?,
            canonical_revision: parts.next()?,
            cluster: parts.next()?,
            ..Self::default()
        })
    }
    fn fields(&self) -> [&'a str; 8] {
        [self.workload, self.namespace, self.canonical_name, self.canonical_revision, self.cluster, self.app, self.version, self.identity]
    }
}

/// Everything that becomes a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Facts<'a> {
    pub group: Group,
    pub peer: Option<PeerFacts<'a>>,
    /// Waypoints know both sides.
    pub upstream_peer: Option<PeerFacts<'a>>,
    pub service_host: &'a str,
    pub service_name: &'a str,
    pub service_namespace: &'a str,
    pub peer_san: &'a str,
    pub local_san: &'a str,
    pub mutual_tls: Option<bool>,
    pub code: u16,
    pub grpc_status: Option<i32>,
    pub flags: ResponseFlags,
    /// Values of the label expressions, in their order.
    pub values: &'a [String],
}

/// Facts that own their text.
#[derive(Debug)]
pub struct Key {
    group: Group,
    peer: Option<[Box<str>; 8]>,
    upstream_peer: Option<[Box<str>; 8]>,
    texts: [Box<str>; 5],
    mutual_tls: Option<bool>,
    code: u16,
    grpc_status: Option<i32>,
    flags: ResponseFlags,
    values: Box<[String]>,
}

impl From<&Facts<'_>> for Key {
    fn from(f: &Facts<'_>) -> Self {
        let peer = |p: PeerFacts<'_>| p.fields().map(Box::from);
        Self {
            group: f.group,
            peer: f.peer.map(peer),
            upstream_peer: f.upstream_peer.map(peer),
            texts: [f.service_host, f.service_name, f.service_namespace, f.peer_san, f.local_san].map(Box::from),
            mutual_tls: f.mutual_tls,
            code: f.code,
            grpc_status: f.grpc_status,
            flags: f.flags,
            values: f.values.into(),
        }
    }
}

impl Key {
    pub fn facts(&self) -> Facts<'_> {
        fn peer(p: &[Box<str>; 8]) -> PeerFacts<'_> {
            let [workload, namespace, canonical_name, canonical_revision, cluster, app, version, identity] = p;
            PeerFacts { workload, namespace, canonical_name, canonical_revision, cluster, app, version, identity }
        }
        let [service_host, service_name, service_namespace, peer_san, local_san] = &self.texts;
        Facts {
            group: self.group,
            peer: self.peer.as_ref().map(peer),
            upstream_peer: self.upstream_peer.as_ref().map(peer),
            service_host,
            service_name,
            service_namespace,
            peer_san,
            local_san,
            mutual_tls: self.mutual_tls,
            code: self.code,
            grpc_status: self.grpc_status,
            flags: self.flags,
            values: &self.values,
        }
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.facts().hash(state);
    }
}
impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.facts() == other.facts()
    }
}
impl Eq for Key {}
impl Equivalent<Arc<Key>> for Facts<'_> {
    fn equivalent(&self, key: &Arc<Key>) -> bool {
        *self == key.facts()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hash::BuildHasher;

    #[test]
    fn keys_find_their_facts() {
        let values = vec!["v".to_string()];
        let facts = Facts {
            group: Group::Http,
            peer: PeerFacts::endpoint("w;n;c;r;k"),
            upstream_peer: None,
            service_host: "h",
            service_name: "s",
            service_namespace: "ns",
            peer_san: "p",
            local_san: "l",
            mutual_tls: None,
            code: 200,
            grpc_status: None,
            flags: ResponseFlags::default(),
            values: &values,
        };
        let key = Arc::new(Key::from(&facts));
        let state = foldhash::fast::RandomState::default();
        assert!(facts.equivalent(&key));
        assert_eq!(state.hash_one(facts), state.hash_one(&key));
        assert!(!Facts { code: 201, ..facts }.equivalent(&key));
        assert!(!Facts { peer: None, ..facts }.equivalent(&key));
        assert!(!Facts { peer_san: "", ..facts }.equivalent(&key));
    }
}
