//! istio.metadata_exchange for HTTP: tells the other side who we are in `x-envoy-peer-metadata`, learns who it is, and leaves
//! that in filter state. Runs on workers for every request; what we say is encoded once, when the filter is compiled, and
//! what peers say is decoded once per worker and peer. Source: `io.istio.http.peer_metadata.Config`, Envoy contrib
//! `istio/filters/http/peer_metadata`.

use crate::baggage;
use crate::peer::{DOWNSTREAM_PEER, DOWNSTREAM_PEER_OBJ, Peer, PeerState, UPSTREAM_PEER, UPSTREAM_PEER_OBJ};
use base64::Engine;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use hashbrown::{Equivalent, HashMap};
use http::{HeaderName, HeaderValue};
use nuncio_core::diag::At;
use nuncio_core::filter::{FilterAction, FilterCx, HttpFilter, Needs};
use nuncio_core::filter_state::StateObject;
use nuncio_core::registry::{FactoryCx, HttpFilterFactory};
use nuncio_core::views::{ClusterView, filter_metadata};
use nuncio_core::{Headers, StreamInfo};
use nuncio_proto::Struct;
use nuncio_proto::io::istio::http::peer_metadata::Config;
use nuncio_proto::io::istio::http::peer_metadata::config::discovery_method::MethodSpecifier as Discover;
use nuncio_proto::io::istio::http::peer_metadata::config::propagation_method::MethodSpecifier as Propagate;
use nuncio_proto::io::istio::http::peer_metadata::config::{DiscoveryMethod, PropagationMethod};
use prost::Message;
use prost_types::value::Kind;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

/// Base64 of the workload's Struct.
pub const PEER_METADATA: HeaderName = HeaderName::from_static("x-envoy-peer-metadata");
/// Node id of the workload's proxy.
pub const PEER_METADATA_ID: HeaderName = HeaderName::from_static("x-envoy-peer-metadata-id");
const BAGGAGE: HeaderName = HeaderName::from_static("baggage");

/// Longest header that is decoded. Envoy's own limit is that of the headers of a request.
const MAX_ENCODED: usize = 64 * 1024;
/// Peers that a worker remembers.
const MAX_PEERS: usize = 500;

/// Peers write the padding; those that do not are understood, as in Envoy.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent).with_decode_allow_trailing_bits(true),
);

/// Factory of `io.istio.http.peer_metadata.Config`.
#[derive(Debug)]
pub struct Factory;

impl HttpFilterFactory for Factory {
    fn name(&self) -> &'static str {
        "istio.metadata_exchange"
    }
    fn types(&self) -> &'static [&'static str] {
        &["io.istio.http.peer_metadata.Config"]
    }
    fn compile(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn HttpFilter>> {
        let config = match Config::decode(config) {
            Ok(config) => config,
            Err(e) => {
                cx.report.error(at, format!("undecodable configuration ({e})"), "send io.istio.http.peer_metadata.Config");
                return None;
            }
        };
        if config.shared_with_upstream {
            cx.report.warning(
                &at.field("shared_with_upstream"),
                "true",
                "it only matters for internal listeners, which Nuncio does not have",
            );
        }
        let labels: Arc<[String]> = config.additional_labels.into();
        let local = Peer::of_node(cx.server.node_metadata(), cx.server.node.locality.as_ref(), &labels);
        Some(Arc::new(Filter {
            downstream_discovery: discovery(&config.downstream_discovery, true, &at.field("downstream_discovery"), cx),
            upstream_discovery: discovery(&config.upstream_discovery, false, &at.field("upstream_discovery"), cx),
            downstream_propagation: propagation(&config.downstream_propagation, &local, &at.field("downstream_propagation"), cx)?,
            upstream_propagation: propagation(&config.upstream_propagation, &local, &at.field("upstream_propagation"), cx)?,
            labels,
        }))
    }
}

#[derive(Debug)]
enum Discovery {
    Headers,
    Baggage,
    /// Filter state of the upstream connection.
    UpstreamState(String),
}

fn discovery(methods: &[DiscoveryMethod], downstream: bool, at: &At<'_>, cx: &mut FactoryCx<'_>) -> Vec<Discovery> {
    let mut out = Vec::new();
    for (i, method) in methods.iter().enumerate() {
        match &method.method_specifier {
            Some(Discover::IstioHeaders(_)) => out.push(Discovery::Headers),
            // Answers from the bootstrap extension metadata_discovery. Without it, which is Istio's default outside ambient,
            // the method yields nothing in Envoy either.
            Some(Discover::WorkloadDiscovery(_)) | None => {}
            Some(Discover::Baggage(_)) if downstream => out.push(Discovery::Baggage),
            Some(Discover::UpstreamFilterState(state)) if !downstream => {
                out.push(Discovery::UpstreamState(state.peer_metadata_key.clone()))
            }
            Some(Discover::Baggage(_)) => cx.report.warning(&at.index(i), "baggage", "it discovers downstream peers only; ignored"),
            Some(Discover::UpstreamFilterState(_)) => {
                cx.report.warning(&at.index(i), "upstream_filter_state", "it discovers upstream peers only; ignored");
            }
        }
    }
    out
}

#[derive(Debug)]
enum Propagation {
    Headers { id: HeaderValue, metadata: HeaderValue, skip_external: bool },
    Baggage(HeaderValue),
}

/// `text` for the life of the process. A static header value is copied into requests without counting references, which all
/// workers would count in one place. What we say of ourselves hardly changes while we run, so that this stays small.
fn interned(text: String) -> &'static str {
    static ALL: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = all.get(text.as_str()) {
        return known;
    }
    let kept: &'static str = Box::leak(text.into_boxed_str());
    all.insert(kept);
    kept
}

fn propagation(methods: &[PropagationMethod], local: &Peer, at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Vec<Propagation>> {
    let mut out = Vec::new();
    for (i, method) in methods.iter().enumerate() {
        let mut value = |text: String| {
            if HeaderValue::from_str(&text).is_err() {
                cx.report.error(&at.index(i), format!("{text:?} of the node"), "give the node an id and metadata that fit into a header");
                return None;
            }
            Some(HeaderValue::from_static(interned(text)))
        };
        match &method.method_specifier {
            Some(Propagate::IstioHeaders(headers)) => out.push(Propagation::Headers {
                id: value(cx.server.node.id.clone())?,
                metadata: value(BASE64.encode(local.to_struct().encode_to_vec()))?,
                skip_external: headers.skip_external_clusters,
            }),
            Some(Propagate::Baggage(_)) => out.push(Propagation::Baggage(value(baggage::encode(local))?)),
            None => {}
        }
    }
    Some(out)
}

#[derive(Debug)]
struct Filter {
    downstream_discovery: Vec<Discovery>,
    upstream_discovery: Vec<Discovery>,
    downstream_propagation: Vec<Propagation>,
    upstream_propagation: Vec<Propagation>,
    labels: Arc<[String]>,
}

/// Which of the two headers the request had: a server answers only what it was asked.
#[derive(Clone, Copy, Default)]
struct Asked {
    id: bool,
    metadata: bool,
}

impl HttpFilter for Filter {
    fn needs(&self) -> Needs {
        Needs::REQUEST_HEADERS.and(Needs::RESPONSE_HEADERS)
    }
    fn on_request<'a>(&'a self, mut cx: FilterCx<'a>) -> FilterAction<'a> {
        let ex = &mut *cx.ex;
        let headers = &mut ex.request.headers;
        if !self.downstream_discovery.is_empty() {
            let asked = Asked { id: headers.contains(&PEER_METADATA_ID), metadata: headers.contains(&PEER_METADATA) };
            self.discover(&self.downstream_discovery, &mut ex.info, headers, true);
            inject(&self.upstream_propagation, headers, ex.cluster.as_deref(), None);
            if asked.id || asked.metadata {
                cx.set_state(asked);
            }
        } else {
            inject(&self.upstream_propagation, headers, ex.cluster.as_deref(), None);
        }
        FilterAction::Continue
    }
    fn on_response(&self, mut cx: FilterCx<'_>) {
        let asked = cx.state::<Asked>().copied().unwrap_or_default();
        let ex = &mut *cx.ex;
        let Some(response) = &mut ex.response else { return };
        self.discover(&self.upstream_discovery, &mut ex.info, &mut response.headers, false);
        inject(&self.downstream_propagation, &mut response.headers, ex.cluster.as_deref(), Some(asked));
    }
}

impl Filter {
    /// The first method that yields a peer wins; the headers of every method go.
    fn discover(&self, methods: &[Discovery], info: &mut StreamInfo, headers: &mut Headers, downstream: bool) {
        if methods.is_empty() {
            return;
        }
        if let Some(peer) = methods.iter().find_map(|m| self.ask(m, info, headers)) {
            let (key, object_key) = if downstream { (DOWNSTREAM_PEER, DOWNSTREAM_PEER_OBJ) } else { (UPSTREAM_PEER, UPSTREAM_PEER_OBJ) };
            let taken = info.filter_state.get(key).is_some() || info.connection.filter_state.borrow().get(key).is_some();
            if !taken {
                let state: Arc<dyn StateObject> = Arc::new(PeerState(peer));
                info.filter_state.set(key, state.clone());
                info.filter_state.set(object_key, state);
            }
        }
        if methods.iter().any(|m| matches!(m, Discovery::Headers))
            && (headers.contains(&PEER_METADATA) || headers.contains(&PEER_METADATA_ID))
        {
            headers.retain(|name, _| *name != PEER_METADATA && *name != PEER_METADATA_ID);
        }
    }
    fn ask(&self, method: &Discovery, info: &StreamInfo, headers: &Headers) -> Option<Arc<Peer>> {
        match method {
            Discovery::Headers => from_headers(headers, &self.labels),
            Discovery::Baggage => headers.get_str(&BAGGAGE).map(|b| Arc::new(baggage::decode(b))),
            Discovery::UpstreamState(key) => {
                let state = info.upstream.as_ref()?.filter_state.get_as::<PeerState>(key)?;
                Some(state.0.clone())
            }
        }
    }
}

/// The peer that `headers` announce; none if they do not, or if what they say cannot be read.
pub(crate) fn from_headers(headers: &Headers, labels: &Arc<[String]>) -> Option<Arc<Peer>> {
    let encoded = headers.get(&PEER_METADATA)?.as_bytes();
    if encoded.is_empty() || encoded.len() > MAX_ENCODED {
        return None;
    }
    PEERS.with_borrow_mut(|peers| {
        if let Some(peer) = peers.get(&KeyRef { labels, encoded }) {
            return Some(peer.clone());
        }
        let metadata = Struct::decode(BASE64.decode(encoded).ok()?.as_slice()).ok()?;
        let peer = Arc::new(Peer::from_struct(&metadata, labels));
        // Mesh peers are few and stable. Forgetting all of them at once is simple, and bounds what a stranger can make us keep.
        if peers.len() >= MAX_PEERS {
            peers.clear();
        }
        peers.insert(Key { labels: labels.clone(), encoded: encoded.into() }, peer.clone());
        Some(peer)
    })
}

/// The value itself is the key, not the id beside it: a caller may write any id and must not decide what others are taken for.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    labels: Arc<[String]>,
    encoded: Box<[u8]>,
}
#[derive(Hash)]
struct KeyRef<'a> {
    labels: &'a Arc<[String]>,
    encoded: &'a [u8],
}
impl Equivalent<Key> for KeyRef<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        *self.encoded == *key.encoded && *self.labels == key.labels
    }
}

thread_local! {
    static PEERS: RefCell<HashMap<Key, Arc<Peer>, foldhash::fast::RandomState>> = RefCell::default();
}

/// Says who we are. `asked` is none towards the upstream, where we always say it.
fn inject(methods: &[Propagation], headers: &mut Headers, cluster: Option<&dyn ClusterView>, asked: Option<Asked>) {
    for method in methods {
        match method {
            Propagation::Headers { id, metadata, skip_external } => {
                if cluster.is_some_and(|c| is_skipped(c, *skip_external)) {
                    continue;
                }
                if asked.is_none_or(|a| a.id) {
                    headers.insert(PEER_METADATA_ID, id.clone());
                }
                if asked.is_none_or(|a| a.metadata) {
                    headers.insert(PEER_METADATA, metadata.clone());
                }
            }
            Propagation::Baggage(value) => headers.insert(BAGGAGE, value.clone()),
        }
    }
}

/// Whether the cluster must not learn who we are: `istio.disable_mx`, or, if asked for, anything outside of the mesh.
fn is_skipped(cluster: &dyn ClusterView, skip_external: bool) -> bool {
    if skip_external && &**cluster.name() == "PassthroughCluster" {
        return true;
    }
    let Some(istio) = filter_metadata(cluster.metadata(), "istio") else { return false };
    let is_true = |key: &str| matches!(istio.fields.get(key).and_then(|v| v.kind.as_ref()), Some(Kind::BoolValue(true)));
    (skip_external && is_true("external")) || is_true("disable_mx")
}

#[cfg(test)]
mod tests;
