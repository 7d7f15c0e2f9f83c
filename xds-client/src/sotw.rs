//! A state-of-the-world xDS session without I/O: responses and subscriptions in, requests out. Used for ADS with
//! `api_type: GRPC`, for `StreamSecrets` (pilot-agent's SDS server speaks nothing else) and other single-type streams.
//!
//! Each request carries all names, the last accepted version and the last nonce; so an acknowledgement and a change of the
//! subscription are one message. A resource absent from a response is removed for wildcard types, and unchanged for others.

use crate::resource::{Receipt, Refused, Resource, Update, error_detail, resource_name, types};
use bytes::Bytes;
use nuncio_proto::Message;
use nuncio_proto::envoy::config::core::v3::Node;
use nuncio_proto::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse, Resource as Wrapper};
use nuncio_proto::google::rpc::Status;
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

/// gRPC status code INTERNAL, which Envoy puts into NACKs.
const INTERNAL: i32 = 13;

#[derive(Debug, Default)]
struct TypeState {
    type_url: Arc<str>,
    wildcard: bool,
    names: BTreeSet<Arc<str>>,
    /// Resources accepted or held from before; for wildcard types only.
    held: HashSet<Arc<str>>,
    /// Last accepted version; survives reconnects.
    version: Arc<str>,
    /// Nonce of the last response on this stream.
    nonce: String,
    /// Set while a request is due.
    due: bool,
    error: Option<String>,
    /// Whether a request of this type went out on this stream; an empty list of names may then be sent.
    started: bool,
}

/// A state-of-the-world session.
#[derive(Debug)]
pub struct SotwSession {
    node: Node,
    types: Vec<TypeState>,
    stream: u64,
    connected: bool,
    node_sent: bool,
    /// False repeats the node in every request (`set_node_on_first_message_only: false`).
    pub node_on_first_only: bool,
}

impl SotwSession {
    /// A session that introduces itself as `node`.
    pub fn new(node: Node) -> Self {
        Self { node, types: Vec::new(), stream: 0, connected: false, node_sent: false, node_on_first_only: true }
    }
    /// Subscribes to every resource of a type.
    pub fn subscribe_all(&mut self, type_url: &str) {
        let state = self.state(type_url);
        state.due |= !state.wildcard;
        state.wildcard = true;
    }
    /// Subscribes to `names`. Names already subscribed to are left alone.
    pub fn subscribe<I: IntoIterator<Item = Arc<str>>>(&mut self, type_url: &str, names: I) {
        let state = self.state(type_url);
        for name in names {
            state.due |= state.names.insert(name);
        }
    }
    /// Gives `names` up.
    pub fn unsubscribe<I: IntoIterator<Item = Arc<str>>>(&mut self, type_url: &str, names: I) {
        let state = self.state(type_url);
        for name in names {
            if *name == *"*" {
                state.wildcard = false;
                state.held.clear();
                continue;
            }
            state.due |= state.names.remove(&name) && state.started;
        }
    }
    /// A new stream is open: everything is asked for again.
    pub fn connected(&mut self) {
        self.stream += 1;
        self.connected = true;
        self.node_sent = false;
        for state in &mut self.types {
            state.nonce.clear();
            state.error = None;
            state.started = false;
            state.due = state.wildcard || !state.names.is_empty();
        }
    }
    /// The stream is gone. Nothing is sent until [`Self::connected`].
    pub fn disconnected(&mut self) {
        self.connected = false;
    }
    /// Takes a response. None if nobody subscribed to its type: it is neither used nor acknowledged, as in Envoy.
    pub fn on_response(&mut self, response: DiscoveryResponse) -> Option<(Update, Receipt)> {
        let stream = self.stream;
        let state = self.types.iter().find(|s| *s.type_url == *response.type_url)?;
        let version: Arc<str> = response.version_info.into();
        let mut update = Update {
            type_url: state.type_url.clone(),
            version: version.clone(),
            control_plane: response.control_plane.map(|c| c.identifier).unwrap_or_default(),
            ..Update::default()
        };
        let mut seen: HashSet<Arc<str>> = HashSet::with_capacity(response.resources.len());
        for (index, any) in response.resources.into_iter().enumerate() {
            let (name, value) = match open(any.type_url, any.value, &state.type_url) {
                Ok(Some(found)) => found,
                Ok(None) => continue,
                Err((name, reason)) => {
                    // What cannot be named must not look removed: keep everything that is held.
                    let name = if name.is_empty() { format!("resource #{index}") } else { name };
                    update.refused.push(Refused { name: name.into(), reason });
                    continue;
                }
            };
            let name: Arc<str> = match state.names.get(name.as_ref()) {
                Some(known) => known.clone(),
                None if !state.wildcard => continue,
                None => name,
            };
            if !seen.insert(name.clone()) {
                update.resources.retain(|r| r.name != name);
                update.refused.push(Refused { name, reason: "duplicate name in the response".into() });
                continue;
            }
            update.resources.push(Resource { name, version: version.clone(), value });
        }
        let unreadable = update.refused.iter().any(|r| !seen.contains(&r.name));
        if state.wildcard && !unreadable {
            update.removed = state.held.iter().filter(|name| !seen.contains(*name)).cloned().collect();
            update.removed.sort();
        }
        for error in response.resource_errors {
            update.server_errors.push(Refused {
                name: error.resource_name.map(|n| n.name).unwrap_or_default().into(),
                reason: error.error_detail.map(|s| s.message).unwrap_or_default(),
            });
        }
        let receipt = Receipt {
            type_url: state.type_url.clone(),
            nonce: response.nonce,
            stream,
            versions: update.resources.iter().map(|r| (r.name.clone(), version.clone())).collect(),
            version,
            removed: update.removed.clone(),
            refused: update.refused.clone(),
        };
        Some((update, receipt))
    }
    /// The consumer applied an update, all but `refused`. Makes the ACK due, or the NACK that names each refused resource.
    pub fn finish(&mut self, receipt: Receipt, refused: Vec<Refused>) {
        let current = self.connected && receipt.stream == self.stream;
        let Some(state) = self.types.iter_mut().find(|s| s.type_url == receipt.type_url) else { return };
        let mut all = receipt.refused;
        all.extend(refused);
        if state.wildcard {
            let bad: HashSet<&str> = all.iter().map(|r| r.name.as_ref()).collect();
            state.held.extend(receipt.versions.into_iter().map(|(name, _)| name).filter(|name| !bad.contains(name.as_ref())));
            for name in receipt.removed.iter().filter(|name| !bad.contains(name.as_ref())) {
                state.held.remove(name);
            }
        }
        if all.is_empty() {
            state.version = receipt.version;
        }
        if current {
            state.nonce = receipt.nonce;
            state.error = (!all.is_empty()).then(|| error_detail(&all));
            state.due = true;
        }
    }
    /// The next request to send, if there is one.
    pub fn next_request(&mut self) -> Option<DiscoveryRequest> {
        if !self.connected {
            return None;
        }
        let state = self.types.iter_mut().find(|s| s.is_due())?;
        state.due = false;
        state.started = true;
        let mut names: Vec<String> = state.names.iter().map(|n| n.to_string()).collect();
        if state.wildcard && !names.is_empty() {
            names.insert(0, "*".to_string());
        }
        let mut request = DiscoveryRequest {
            version_info: state.version.to_string(),
            resource_names: names,
            type_url: state.type_url.to_string(),
            response_nonce: state.nonce.clone(),
            error_detail: state.error.take().map(|message| Status { code: INTERNAL, message, details: Vec::new() }),
            ..DiscoveryRequest::default()
        };
        if !self.node_sent || !self.node_on_first_only {
            self.node_sent = true;
            request.node = Some(self.node.clone());
        }
        Some(request)
    }
    /// Requests that wait to be sent.
    pub fn pending(&self) -> usize {
        self.types.iter().filter(|s| s.is_due()).count()
    }
    /// Whether anything of this type is subscribed to.
    pub fn is_subscribed(&self, type_url: &str) -> bool {
        self.types.iter().any(|s| *s.type_url == *type_url && (s.wildcard || !s.names.is_empty()))
    }

    fn state(&mut self, type_url: &str) -> &mut TypeState {
        let index = self.types.iter().position(|s| *s.type_url == *type_url).unwrap_or_else(|| {
            self.types.push(TypeState { type_url: type_url.into(), ..TypeState::default() });
            self.types.len() - 1
        });
        &mut self.types[index]
    }
}

impl TypeState {
    /// An empty list of names would mean everything, unless the server has seen names before.
    fn is_due(&self) -> bool {
        self.due && (self.wildcard || !self.names.is_empty() || self.started)
    }
}

/// Name and bytes of one resource, out of its wrapper if it has one. None for a heartbeat.
#[allow(clippy::type_complexity)]
fn open(type_url: String, value: Vec<u8>, expected: &str) -> Result<Option<(Arc<str>, Bytes)>, (String, String)> {
    if type_url == expected {
        let name = resource_name(&value).map_err(|e| (String::new(), e))?;
        return Ok(Some((name, Bytes::from(value))));
    }
    if type_url != types::WRAPPER {
        return Err((String::new(), format!("type URL {type_url} in a response of {expected}")));
    }
    let wrapper = Wrapper::decode(value.as_slice()).map_err(|e| (String::new(), e.to_string()))?;
    match wrapper.resource {
        Some(any) if any.type_url == expected => {
            let name =
                if wrapper.name.is_empty() { resource_name(&any.value).map_err(|e| (String::new(), e))? } else { wrapper.name.into() };
            Ok(Some((name, Bytes::from(any.value))))
        }
        Some(any) => Err((wrapper.name, format!("type URL {} in a response of {expected}", any.type_url))),
        None => Ok(None),
    }
}
