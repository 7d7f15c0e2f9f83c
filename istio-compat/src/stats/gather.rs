//! Reads from a stream what decides its labels: the peer, the service, identities. Workers, once per stream.

use super::facts::{Facts, Group, PeerFacts};
use super::{Config, Reporter};
use crate::peer::{DOWNSTREAM_PEER, Peer, UPSTREAM_PEER, object, text};
use nuncio_core::filter_state::FilterState;
use nuncio_core::views::{ClusterView, filter_metadata};
use nuncio_core::{RequestHead, ResponseFlags, StreamInfo, TlsInfo};
use prost_types::value::Kind;
use std::borrow::Cow;
use std::sync::Arc;

/// What is only known at the end of a stream.
#[derive(Clone, Copy, Default)]
pub struct End {
    pub code: u16,
    pub grpc_status: Option<i32>,
    pub flags: ResponseFlags,
}

/// What was read, with what owns it.
pub struct Gathered<'a> {
    peer: Option<Arc<Peer>>,
    endpoint: Option<&'a str>,
    upstream_peer: Option<Arc<Peer>>,
    service: Service<'a>,
    peer_san: Cow<'a, str>,
    local_san: Cow<'a, str>,
    mutual_tls: Option<bool>,
}

#[derive(Default)]
struct Service<'a> {
    host: &'a str,
    name: &'a str,
    namespace: &'a str,
}

/// The filter state that holds the peer of this reporter.
pub fn peer_key(reporter: Reporter) -> &'static str {
    match reporter {
        Reporter::Client => UPSTREAM_PEER,
        Reporter::Server | Reporter::Waypoint => DOWNSTREAM_PEER,
    }
}

impl<'a> Gathered<'a> {
    /// Reads a stream. `peer` is what filter state says, or will say, of the peer; `cluster` is that of the route.
    pub fn read(
        config: &Config,
        info: &'a StreamInfo,
        request: Option<&'a RequestHead>,
        cluster: Option<&'a dyn ClusterView>,
        peer: Option<Arc<Peer>>,
    ) -> Self {
        let cluster = cluster.or_else(|| info.upstream.as_ref().and_then(|u| u.cluster.as_deref()));
        let host = request.filter(|_| config.host_fallback).map(|r| r.authority.as_str()).unwrap_or_default();
        let mut out = Self {
            endpoint: None,
            upstream_peer: None,
            service: service(info, cluster, host),
            peer_san: Cow::Borrowed(""),
            local_san: Cow::Borrowed(""),
            mutual_tls: None,
            peer,
        };
        match config.reporter {
            Reporter::Client => {
                if out.peer.is_none() {
                    out.endpoint = info.upstream.as_ref().and_then(|u| u.host.as_deref()).and_then(Peer::endpoint_text);
                }
                let tls = info.upstream.as_ref().and_then(|u| u.tls.as_deref());
                (out.peer_san, out.local_san) = sans(tls);
                if let (true, Some(peer)) = (out.peer_san.is_empty(), &out.peer) {
                    out.peer_san = Cow::Owned(peer.identity.clone());
                }
            }
            Reporter::Server | Reporter::Waypoint => {
                // Set where the identity is not that of this connection's TLS: behind a tunnel.
                let principal = |state: &FilterState, key| state.get(key).and_then(|o| o.as_string()).unwrap_or_default();
                let either = |key| match principal(&info.filter_state, key) {
                    found if found.is_empty() => principal(&info.connection.filter_state.borrow(), key),
                    found => found,
                };
                out.peer_san = Cow::Owned(either("io.istio.peer_principal"));
                out.local_san = Cow::Owned(either("io.istio.local_principal"));
                if out.peer_san.is_empty() && out.local_san.is_empty() {
                    (out.peer_san, out.local_san) = sans(info.connection.tls.as_deref());
                }
                out.mutual_tls = Some(!out.peer_san.is_empty() && !out.local_san.is_empty());
                if config.reporter == Reporter::Waypoint {
                    out.upstream_peer = Peer::find(info, UPSTREAM_PEER);
                }
            }
        }
        out
    }
    /// The facts.
    pub fn facts<'s>(&'s self, group: Group, end: End, values: &'s [String]) -> Facts<'s> {
        let peer = match &self.peer {
            Some(peer) => Some(PeerFacts::of(peer)),
            None => self.endpoint.and_then(PeerFacts::endpoint),
        };
        let End { code, grpc_status, flags } = end;
        Facts {
            group,
            peer,
            upstream_peer: self.upstream_peer.as_deref().map(PeerFacts::of),
            service_host: self.service.host,
            service_name: self.service.name,
            service_namespace: self.service.namespace,
            peer_san: &self.peer_san,
            local_san: &self.local_san,
            mutual_tls: self.mutual_tls,
            code,
            grpc_status,
            flags,
            values,
        }
    }
}

/// First URI SANs of the peer's and of our certificate.
fn sans(tls: Option<&TlsInfo>) -> (Cow<'_, str>, Cow<'_, str>) {
    let peer = tls.and_then(TlsInfo::peer_cert).and_then(|c| c.uri_sans.first());
    let local = tls.and_then(|t| t.local.as_deref()).and_then(|c| c.uri_sans.first());
    (Cow::Borrowed(peer.map(String::as_str).unwrap_or_default()), Cow::Borrowed(local.map(String::as_str).unwrap_or_default()))
}

/// The destination service: of the route name and the cluster that stand for none, else of the cluster's metadata, else the host.
fn service<'a>(info: &'a StreamInfo, cluster: Option<&'a dyn ClusterView>, host: &'a str) -> Service<'a> {
    let mut out = Service { host, name: host, namespace: "" };
    match info.route_name.as_deref() {
        Some("block_all") => {
            out.name = "BlackHoleCluster";
            return out;
        }
        Some("allow_any") => {
            out.name = "PassthroughCluster";
            return out;
        }
        _ => {}
    }
    let Some(cluster) = cluster else { return out };
    let name: &str = cluster.name();
    if let "BlackHoleCluster"
    | "PassthroughCluster"
    | "InboundPassthroughCluster"
    | "InboundPassthroughClusterIpv4"
    | "InboundPassthroughClusterIpv6" = name
    {
        out.name = name;
        return out;
    }
    let services = filter_metadata(cluster.metadata(), "istio").and_then(|i| i.fields.get("services")).and_then(|v| v.kind.as_ref());
    let Some(Kind::ListValue(services)) = services else { return out };
    let Some(service) = services.values.first().and_then(object) else { return out };
    let get = |key: &str| service.fields.get(key).map(text);
    if let Some(host) = get("host") {
        out.host = host;
    }
    out.namespace = get("namespace").unwrap_or_default();
    out.name = get("name").unwrap_or_else(|| out.host.split('.').next().unwrap_or_default());
    out
}
