//! istio.metadata_exchange for TCP: on connections that negotiated the ALPN `istio-peer-exchange` each side sends a preamble
//! that says who it is. One half is a network filter of inbound listeners, the other sits in `Cluster.filters`.
//! Runs on workers, once per connection. Source: `envoy.tcp.metadataexchange.config.MetadataExchange`.

use crate::peer::{DOWNSTREAM_PEER, DOWNSTREAM_PEER_OBJ, NO_PEER, Peer, PeerState, UPSTREAM_PEER, UPSTREAM_PEER_OBJ};
use crate::preamble::{self, Preamble};
use bytes::{Bytes, BytesMut};
use nuncio_core::diag::At;
use nuncio_core::filter_state::{FilterState, StateObject, StringState};
use nuncio_core::network::{NetworkAction, NetworkFilter, NetworkFilterConfig};
use nuncio_core::registry::{FactoryCx, NetworkFilterFactory};
use nuncio_core::stats::Counter;
use nuncio_core::{ConnectionInfo, StreamInfo, TlsInfo};
use nuncio_proto::envoy::tcp::metadataexchange::config::MetadataExchange;
use prost::Message;
use std::rc::Rc;
use std::sync::Arc;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Downstream,
    Upstream,
}

/// Factory of `envoy.tcp.metadataexchange.config.MetadataExchange`, for one of its two places.
#[derive(Debug)]
pub struct Factory(Side);

impl Factory {
    /// For listeners.
    pub fn downstream() -> Self {
        Self(Side::Downstream)
    }
    /// For `Cluster.filters`.
    pub fn upstream() -> Self {
        Self(Side::Upstream)
    }
}

impl NetworkFilterFactory for Factory {
    fn name(&self) -> &'static str {
        "istio.metadata_exchange"
    }
    fn types(&self) -> &'static [&'static str] {
        &["envoy.tcp.metadataexchange.config.MetadataExchange"]
    }
    fn compile(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn NetworkFilterConfig>> {
        let config = match MetadataExchange::decode(config) {
            Ok(config) => config,
            Err(e) => {
                cx.report.error(at, format!("undecodable configuration ({e})"), "send envoy.tcp.metadataexchange.config.MetadataExchange");
                return None;
            }
        };
        if config.protocol.is_empty() {
            cx.report.error(
                &at.field("protocol"),
                "an empty protocol",
                "name the ALPN on which metadata is exchanged (istio-peer-exchange)",
            );
            return None;
        }
        // enable_discovery asks the bootstrap extension metadata_discovery, which Istio only configures in ambient; without it
        // Envoy finds nobody either.
        let local = Peer::from_struct(cx.server.node_metadata(), &config.additional_labels);
        let stats = cx.server.stats.root().scope("metadata_exchange.");
        Some(Arc::new(Config(Arc::new(Shared {
            side: self.0,
            preamble: preamble::encode(&local, &cx.server.node.id),
            protocol: config.protocol,
            labels: config.additional_labels,
            alpn_found: stats.counter("alpn_protocol_found"),
            alpn_not_found: stats.counter("alpn_protocol_not_found"),
            initial_header_not_found: stats.counter("initial_header_not_found"),
            header_not_found: stats.counter("header_not_found"),
            metadata_added: stats.counter("metadata_added"),
        }))))
    }
}

#[derive(Debug)]
struct Config(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    side: Side,
    protocol: String,
    preamble: Bytes,
    labels: Vec<String>,
    alpn_found: Counter,
    alpn_not_found: Counter,
    initial_header_not_found: Counter,
    header_not_found: Counter,
    metadata_added: Counter,
}

impl Shared {
    fn negotiated(&self, tls: Option<&TlsInfo>) -> bool {
        tls.and_then(|t| t.alpn.as_ref()).is_some_and(|alpn| *alpn == self.protocol.as_str())
    }
}

impl NetworkFilterConfig for Config {
    fn create(&self, connection: &Rc<ConnectionInfo>) -> Option<Box<dyn NetworkFilter>> {
        // Upstream, the handshake that decides is that of the upstream connection, which is only known in `on_new`.
        if self.0.side == Side::Downstream && !self.0.negotiated(connection.tls.as_deref()) {
            self.0.alpn_not_found.inc();
            set_absent(&mut connection.filter_state.borrow_mut());
            return None;
        }
        Some(Box::new(Filter { shared: self.0.clone(), reading: false }))
    }
}

fn set_absent(state: &mut FilterState) {
    state.set(NO_PEER, Arc::new(StringState("true".to_string())));
}

struct Filter {
    shared: Arc<Shared>,
    /// Whether the peer's preamble is still to come.
    reading: bool,
}

impl Filter {
    fn with_state(&self, info: &mut StreamInfo, change: impl FnOnce(&mut FilterState)) {
        match self.shared.side {
            Side::Downstream => change(&mut info.connection.filter_state.borrow_mut()),
            Side::Upstream => change(&mut info.upstream_mut().filter_state),
        }
    }
    fn set_peer(&self, info: &mut StreamInfo, peer: Peer) {
        let state: Arc<dyn StateObject> = Arc::new(PeerState(Arc::new(peer)));
        let (key, object_key) = match self.shared.side {
            Side::Downstream => (DOWNSTREAM_PEER, DOWNSTREAM_PEER_OBJ),
            Side::Upstream => (UPSTREAM_PEER, UPSTREAM_PEER_OBJ),
        };
        self.with_state(info, |s| {
            s.set(key, state.clone());
            s.set(object_key, state);
        });
    }
}

impl NetworkFilter for Filter {
    fn on_new(&mut self, info: &mut StreamInfo, write: &mut BytesMut) -> NetworkAction {
        let tls = match self.shared.side {
            Side::Downstream => info.connection.tls.as_deref(),
            Side::Upstream => info.upstream.as_ref().and_then(|u| u.tls.as_deref()),
        };
        if self.shared.negotiated(tls) {
            self.shared.alpn_found.inc();
            self.shared.metadata_added.inc();
            write.extend_from_slice(&self.shared.preamble);
            self.reading = true;
        } else {
            self.shared.alpn_not_found.inc();
            self.with_state(info, set_absent);
        }
        NetworkAction::Continue
    }
    fn on_read(&mut self, info: &mut StreamInfo, data: &mut BytesMut, end: bool) -> NetworkAction {
        if !self.reading {
            return NetworkAction::Continue;
        }
        match preamble::take(data, &self.shared.labels) {
            // A peer that closes early gets what it sent forwarded, as in Envoy.
            Preamble::Incomplete if end => {
                self.reading = false;
                self.with_state(info, set_absent);
                return NetworkAction::Continue;
            }
            Preamble::Incomplete => return NetworkAction::Hold,
            Preamble::Absent => {
                self.shared.initial_header_not_found.inc();
                self.with_state(info, set_absent);
            }
            Preamble::Unreadable => {
                self.shared.header_not_found.inc();
                self.with_state(info, set_absent);
            }
            Preamble::Peer(Some(peer)) => self.set_peer(info, *peer),
            Preamble::Peer(None) => self.with_state(info, set_absent),
            Preamble::TooLong(length) => {
                self.shared.header_not_found.inc();
                log::warn!("connection {}: metadata exchange announces {length} bytes; closing", info.connection.id);
                return NetworkAction::Close("metadata_exchange_preamble_too_long".into());
            }
        }
        self.reading = false;
        NetworkAction::Continue
    }
    fn wants_data(&self) -> bool {
        self.reading
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nuncio_core::diag::Report;
    use nuncio_core::test_kit as kit;

    fn config(factory: &Factory) -> Arc<dyn NetworkFilterConfig> {
        let server = kit::server(kit::fields([("WORKLOAD_NAME", kit::text("me"))]));
        let scope = server.stats.root();
        let mut report = Report::new();
        let mut cx = FactoryCx { server: &server, scope: &scope, direction: Default::default(), report: &mut report };
        let config = MetadataExchange { protocol: "istio-peer-exchange".into(), enable_discovery: true, additional_labels: vec![] };
        factory.compile(&config.encode_to_vec(), &At::Root, &mut cx).unwrap()
    }

    fn downstream(alpn: &str) -> (Rc<ConnectionInfo>, StreamInfo) {
        let mut connection = kit::connection();
        connection.tls = Some(kit::tls(Some(alpn), &[], &[]));
        let connection = Rc::new(connection);
        (connection.clone(), StreamInfo::new(connection, None))
    }

    #[test]
    fn exchanges_and_takes_the_preamble_off() {
        let (connection, mut info) = downstream("istio-peer-exchange");
        let mut filter = config(&Factory::downstream()).create(&connection).unwrap();
        let mut write = BytesMut::new();
        filter.on_new(&mut info, &mut write);
        assert!(matches!(preamble::take(&mut write, &[]), Preamble::Peer(Some(p)) if p.workload == "me"));
        let theirs = preamble::encode(&Peer { workload: "you".into(), ..Peer::default() }, "id");
        let (first, second) = theirs.split_at(11);
        let mut data = BytesMut::from(first);
        assert_eq!(filter.on_read(&mut info, &mut data, false), NetworkAction::Hold);
        data.extend_from_slice(second);
        data.extend_from_slice(b"app");
        assert_eq!(filter.on_read(&mut info, &mut data, false), NetworkAction::Continue);
        assert_eq!(data, b"app"[..]);
        assert!(!filter.wants_data());
        assert_eq!(Peer::find(&info, DOWNSTREAM_PEER).unwrap().workload, "you");
    }

    #[test]
    fn other_alpn_costs_nothing() {
        let (connection, info) = downstream("h2");
        assert!(config(&Factory::downstream()).create(&connection).is_none());
        assert!(Peer::settled(&info, DOWNSTREAM_PEER));
    }

    #[test]
    fn upstream_half_goes_by_the_upstream_handshake() {
        let (connection, mut info) = downstream("h2");
        info.upstream_mut().tls = Some(kit::tls(Some("istio-peer-exchange"), &[], &[]));
        let mut filter = config(&Factory::upstream()).create(&connection).unwrap();
        let mut write = BytesMut::new();
        filter.on_new(&mut info, &mut write);
        assert!(!write.is_empty());
        let mut data = BytesMut::from(&preamble::encode(&Peer { workload: "you".into(), ..Peer::default() }, "")[..]);
        assert_eq!(filter.on_read(&mut info, &mut data, false), NetworkAction::Continue);
        assert_eq!(Peer::find(&info, UPSTREAM_PEER).unwrap().workload, "you");

        let mut info = StreamInfo::new(connection.clone(), None);
        let mut filter = config(&Factory::upstream()).create(&connection).unwrap();
        let mut write = BytesMut::new();
        filter.on_new(&mut info, &mut write);
        assert!(write.is_empty() && !filter.wants_data());
        assert!(Peer::settled(&info, UPSTREAM_PEER));
    }

    #[test]
    fn hostile_peers() {
        let (connection, mut info) = downstream("istio-peer-exchange");
        let mut filter = config(&Factory::downstream()).create(&connection).unwrap();
        filter.on_new(&mut info, &mut BytesMut::new());
        let mut data = BytesMut::from(&[0x3d, 0x23, 0x04, 0x67, 0xff, 0xff, 0xff, 0xff][..]);
        assert!(matches!(filter.on_read(&mut info, &mut data, false), NetworkAction::Close(_)));

        let mut filter = config(&Factory::downstream()).create(&connection).unwrap();
        filter.on_new(&mut info, &mut BytesMut::new());
        let mut data = BytesMut::from(&[0x3d, 0x23][..]);
        assert_eq!(filter.on_read(&mut info, &mut data, true), NetworkAction::Continue);
        assert_eq!(data.len(), 2);
    }
}
