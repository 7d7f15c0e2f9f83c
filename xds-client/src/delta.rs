//! A delta (incremental) xDS session without I/O: responses and subscriptions in, requests out. One per stream target; lives
//! as long as the process and across reconnects. Called by the transport on the control thread.
//!
//! Rules, as istiod and Envoy expect them: the first request of a wildcard type subscribes to nothing; an acknowledgement
//! carries the nonce and no subscription change, a subscription change carries no nonce; a new stream starts with every name
//! and the versions held; a refused resource is not recorded as held at the version that was refused. Virtual hosts are subscribed
//! to by the name of their route table, whose resources are `<table>/<anything>`, and on demand as `<table>/<host>`, which the
//! answer names among its aliases.

use crate::resource::{Receipt, Refused, Resource, Update, error_detail, types};
use bytes::Bytes;
use nuncio_proto::envoy::config::core::v3::Node;
use nuncio_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use nuncio_proto::google::rpc::Status;
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

/// gRPC status code INTERNAL, which Envoy puts into NACKs.
const INTERNAL: i32 = 13;

#[derive(Debug, Default)]
struct TypeState {
    type_url: Arc<str>,
    wildcard: bool,
    names: BTreeSet<Arc<str>>,
    /// Versions of accepted resources, sent as `initial_resource_versions` on a new stream.
    held: HashMap<Arc<str>, Arc<str>>,
    added: BTreeSet<Arc<str>>,
    removed: BTreeSet<Arc<str>>,
    /// Whether the first request of this type went out on the current stream.
    started: bool,
}

#[derive(Debug)]
struct Ack {
    type_url: Arc<str>,
    nonce: String,
    error: Option<String>,
}

/// A delta session.
#[derive(Debug)]
pub struct DeltaSession {
    node: Node,
    types: Vec<TypeState>,
    acks: VecDeque<Ack>,
    /// Counts streams; a receipt of an earlier stream is not acknowledged on a later one.
    stream: u64,
    connected: bool,
    node_sent: bool,
}

impl DeltaSession {
    /// A session that introduces itself as `node`.
    pub fn new(node: Node) -> Self {
        Self { node, types: Vec::new(), acks: VecDeque::new(), stream: 0, connected: false, node_sent: false }
    }
    /// Subscribes to every resource of a type.
    pub fn subscribe_all(&mut self, type_url: &str) {
        let state = self.state(type_url);
        if !std::mem::replace(&mut state.wildcard, true) && state.started {
            state.removed.remove("*");
            state.added.insert("*".into());
        }
    }
    /// Subscribes to `names`. Names already subscribed to are left alone.
    pub fn subscribe<I: IntoIterator<Item = Arc<str>>>(&mut self, type_url: &str, names: I) {
        let state = self.state(type_url);
        for name in names {
            if state.names.insert(name.clone()) {
                // A name that was given up a moment ago is asked for again, so that the server sends it again.
                state.removed.remove(&name);
                state.added.insert(name);
            }
        }
    }
    /// Gives `names` up, and forgets what is held of them.
    pub fn unsubscribe<I: IntoIterator<Item = Arc<str>>>(&mut self, type_url: &str, names: I) {
        let state = self.state(type_url);
        for name in names {
            if *name == *"*" && std::mem::take(&mut state.wildcard) {
                state.held.retain(|held, _| state.names.contains(held));
                if state.started {
                    state.removed.insert(name);
                }
                continue;
            }
            if state.names.remove(&name) {
                state.held.remove(&name);
                if state.has_spaces() {
                    state.held.retain(|held, _| !in_space(held, &name));
                }
                if !state.added.remove(&name) || state.started {
                    state.removed.insert(name);
                }
            }
        }
    }
    /// A new stream is open: everything is asked for again.
    pub fn connected(&mut self) {
        self.stream += 1;
        self.connected = true;
        self.node_sent = false;
        self.acks.clear();
        for state in &mut self.types {
            state.started = false;
            state.added.clear();
            state.removed.clear();
        }
    }
    /// The stream is gone. Nothing is sent until [`Self::connected`].
    pub fn disconnected(&mut self) {
        self.connected = false;
        self.acks.clear();
    }
    /// Takes a response. None if nobody subscribed to its type: it is neither used nor acknowledged, as in Envoy.
    pub fn on_response(&mut self, response: DeltaDiscoveryResponse) -> Option<(Update, Receipt)> {
        let stream = self.stream;
        let state = self.types.iter_mut().find(|s| *s.type_url == *response.type_url)?;
        let mut answered: Vec<Arc<str>> = Vec::new();
        let mut update = Update {
            type_url: state.type_url.clone(),
            version: response.system_version_info.into(),
            control_plane: response.control_plane.map(|c| c.identifier).unwrap_or_default(),
            ..Update::default()
        };
        let mut versions = Vec::with_capacity(response.resources.len());
        let mut seen: HashSet<Arc<str>> = HashSet::with_capacity(response.resources.len());
        let mut last_version: Arc<str> = "".into();
        for resource in response.resources {
            let name: Arc<str> = match state.names.get(resource.name.as_str()) {
                Some(known) => known.clone(),
                // Left over from a subscription that was given up in the meantime.
                None if !state.accepts(&resource.name) => continue,
                None => resource.name.into(),
            };
            if state.has_spaces() {
                answered.push(name.clone());
                answered.extend(resource.aliases.into_iter().map(Arc::from));
            }
            if !seen.insert(name.clone()) {
                update.resources.retain(|r| r.name != name);
                versions.retain(|(n, _)| *n != name);
                update.refused.push(Refused { reason: "duplicate name among added and updated resources".into(), name });
                continue;
            }
            // Pushes give all resources one version: share its text.
            if *last_version != *resource.version {
                last_version = resource.version.into();
            }
            match resource.resource {
                Some(any) if *any.type_url == *state.type_url => {
                    versions.push((name.clone(), last_version.clone()));
                    update.resources.push(Resource { name, version: last_version.clone(), value: Bytes::from(any.value) });
                }
                Some(any) => {
                    let reason = format!("type URL {} in a response of {}", any.type_url, state.type_url);
                    update.refused.push(Refused { name, reason });
                }
                // A heartbeat: keeps a resource with a TTL alive. TTLs are ignored, so there is nothing to do.
                None if resource.ttl.is_some() || state.held.get(&name) == Some(&last_version) => {}
                // Nobody has the virtual host that was asked for.
                None if state.has_spaces() => {}
                None => update.refused.push(Refused { name, reason: "no resource in the response".into() }),
            }
        }
        for name in response.removed_resources {
            match state.names.get(name.as_str()) {
                Some(known) => update.removed.push(known.clone()),
                None if state.accepts(&name) => update.removed.push(name.into()),
                None => {}
            }
        }
        // A name both sent and removed exists.
        update.removed.retain(|name| !seen.contains(name));
        // What was asked for on demand was asked once.
        for name in answered.iter().chain(&update.removed).filter(|name| state.is_demand(name)).cloned().collect::<Vec<_>>() {
            state.names.remove(&name);
            state.added.remove(&name);
        }
        answered.extend(update.removed.iter().filter(|_| state.has_spaces()).cloned());
        update.answered = answered;
        for error in response.resource_errors {
            update.server_errors.push(Refused {
                name: error.resource_name.map(|n| n.name).unwrap_or_default().into(),
                reason: error.error_detail.map(|s| s.message).unwrap_or_default(),
            });
        }
        let receipt = Receipt {
            type_url: state.type_url.clone(),
            version: update.version.clone(),
            nonce: response.nonce,
            stream,
            versions,
            removed: update.removed.clone(),
            refused: update.refused.clone(),
        };
        Some((update, receipt))
    }
    /// The consumer applied an update, all but `refused`. Queues the ACK, or the NACK that names each refused resource.
    pub fn finish(&mut self, receipt: Receipt, refused: Vec<Refused>) {
        let Some(state) = self.types.iter_mut().find(|s| s.type_url == receipt.type_url) else { return };
        let mut all = receipt.refused;
        all.extend(refused);
        let bad: HashSet<&str> = all.iter().map(|r| r.name.as_ref()).collect();
        for (name, version) in receipt.versions {
            // The name may have been unsubscribed from while the update was applied.
            if !bad.contains(name.as_ref()) && (state.names.contains(&name) || state.accepts(&name)) {
                state.held.insert(name, version);
            }
        }
        for name in &receipt.removed {
            if !bad.contains(name.as_ref()) {
                state.held.remove(name);
            }
        }
        if self.connected && receipt.stream == self.stream {
            let error = (!all.is_empty()).then(|| error_detail(&all));
            self.acks.push_back(Ack { type_url: receipt.type_url, nonce: receipt.nonce, error });
        }
    }
    /// The next request to send, if there is one. Acknowledgements go first, in order; then one request per type with
    /// every change of its subscription since the last.
    pub fn next_request(&mut self) -> Option<DeltaDiscoveryRequest> {
        if !self.connected {
            return None;
        }
        let mut request = self.next_ack().or_else(|| self.next_change())?;
        if !self.node_sent {
            self.node_sent = true;
            request.node = Some(self.node.clone());
        }
        Some(request)
    }
    /// Requests that wait to be sent.
    pub fn pending(&self) -> usize {
        self.acks.len() + self.types.iter().filter(|s| s.has_change()).count()
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
    fn next_ack(&mut self) -> Option<DeltaDiscoveryRequest> {
        let ack = self.acks.pop_front()?;
        Some(DeltaDiscoveryRequest {
            type_url: ack.type_url.to_string(),
            response_nonce: ack.nonce,
            error_detail: ack.error.map(|message| Status { code: INTERNAL, message, details: Vec::new() }),
            ..DeltaDiscoveryRequest::default()
        })
    }
    fn next_change(&mut self) -> Option<DeltaDiscoveryRequest> {
        let state = self.types.iter_mut().find(|s| s.has_change())?;
        let mut request = DeltaDiscoveryRequest { type_url: state.type_url.to_string(), ..DeltaDiscoveryRequest::default() };
        if state.started {
            request.resource_names_subscribe = state.added.iter().map(|n| n.to_string()).collect();
            request.resource_names_unsubscribe = state.removed.iter().map(|n| n.to_string()).collect();
        } else {
            state.started = true;
            request.resource_names_subscribe = state.names.iter().map(|n| n.to_string()).collect();
            if state.has_spaces() {
                // The server knows from no name of a table which of its virtual hosts are there.
                let held = state.held.keys().filter(|n| !state.names.contains(*n));
                request.resource_names_subscribe.extend(held.map(|n| n.to_string()));
                request.resource_names_subscribe.sort();
            }
            // Only an empty list means everything by itself.
            if state.wildcard && !state.names.is_empty() {
                request.resource_names_subscribe.insert(0, "*".to_string());
            }
            request.initial_resource_versions = state.held.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
        }
        state.added.clear();
        state.removed.clear();
        Some(request)
    }
}

/// Whether `name` is `<space>/<anything>`.
fn in_space(name: &str, space: &str) -> bool {
    name.strip_prefix(space).is_some_and(|rest| rest.starts_with('/'))
}

impl TypeState {
    /// Whether a subscription is to everything below a name.
    fn has_spaces(&self) -> bool {
        *self.type_url == *types::VIRTUAL_HOST
    }
    /// Whether a resource that is not subscribed to by its name is wanted all the same.
    fn accepts(&self, name: &str) -> bool {
        self.wildcard || (self.has_spaces() && self.names.iter().any(|space| in_space(name, space)))
    }
    /// Whether `name` lies in a space that is subscribed to and was asked for by itself.
    fn is_demand(&self, name: &Arc<str>) -> bool {
        self.names.contains(name) && self.names.iter().any(|space| in_space(name, space))
    }
    fn has_change(&self) -> bool {
        if self.started { !self.added.is_empty() || !self.removed.is_empty() } else { self.wildcard || !self.names.is_empty() }
    }
}
