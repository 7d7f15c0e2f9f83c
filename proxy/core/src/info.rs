//! Stream info: what is known of one stream and of the connection that carried it. Filled by the connection manager, the
//! router and tcp_proxy; read by formatters, access logs, filters and stats. Source: Envoy's `envoy/stream_info/stream_info.h`.

use crate::filter_state::FilterState;
pub use crate::tls_info::{CertDigests, CertInfo, ParsePeer, PeerChain, ReadChain, TlsInfo};
use crate::views::{ClusterView, HostView};
use crate::{Address, ByteStr, HttpVersion, ResponseFlags};
use nuncio_proto::Struct;
use nuncio_proto::envoy::config::core::v3::Metadata;
use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// Listener.traffic_direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrafficDirection {
    #[default]
    Unspecified,
    Inbound,
    Outbound,
}

/// How the end of a connection showed. Source: Envoy's `StreamInfo::DetectedCloseType`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DetectedClose {
    #[default]
    Normal,
    LocalReset,
    RemoteReset,
}

impl DetectedClose {
    /// As `%DOWNSTREAM_DETECTED_CLOSE_TYPE%` shows it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::LocalReset => "LocalReset",
            Self::RemoteReset => "RemoteReset",
        }
    }
}

/// One downstream connection; shared by its streams on one worker.
#[derive(Debug)]
pub struct ConnectionInfo {
    /// Process-wide unique id (`%CONNECTION_ID%`).
    pub id: u64,
    pub start: SystemTime,
    pub start_instant: Instant,
    /// Peer after proxy_protocol or original_src; the direct one of a plain connection.
    pub remote: Address,
    /// The socket's peer.
    pub direct_remote: Address,
    /// Local address after original_dst; `%DOWNSTREAM_LOCAL_ADDRESS%`.
    pub local: Address,
    /// The address that the socket was accepted on.
    pub direct_local: Address,
    /// SNI seen by tls_inspector or the handshake.
    pub requested_server_name: Option<ByteStr>,
    pub tls: Option<Arc<TlsInfo>>,
    pub listener: Arc<str>,
    pub direction: TrafficDirection,
    pub filter_chain: Arc<str>,
    /// `Listener.metadata` and `FilterChain.metadata`, for `%METADATA(LISTENER:...)%`.
    pub listener_metadata: Option<Arc<Metadata>>,
    pub filter_chain_metadata: Option<Arc<Metadata>>,
    /// Time from accept to the end of the TLS handshake (`%DOWNSTREAM_HANDSHAKE_DURATION%`); none without TLS.
    pub handshake: Cell<Option<Duration>>,
    /// Filter state with connection lifetime.
    pub filter_state: RefCell<FilterState>,
    /// Dynamic metadata of listener filters (proxy_protocol TLVs).
    pub metadata: RefCell<BTreeMap<String, Struct>>,
    /// `%CONNECTION_TERMINATION_DETAILS%`.
    pub termination_details: RefCell<Option<Cow<'static, str>>>,
    /// `%DOWNSTREAM_TRANSPORT_FAILURE_REASON%`.
    pub transport_failure: RefCell<Option<String>>,
    /// `%DOWNSTREAM_LOCAL_CLOSE_REASON%`: why this side closed the connection.
    pub local_close: Cell<Option<&'static str>>,
    /// `%DOWNSTREAM_DETECTED_CLOSE_TYPE%`.
    pub detected_close: Cell<DetectedClose>,
    /// Response flags and details of the connection itself, for the listener's access log; see [`Self::learn`].
    pub flags: Cell<ResponseFlags>,
    pub details: RefCell<Option<Cow<'static, str>>>,
    /// How long the connection stays open, with nothing passed on, after a network filter closed it: a filter sets it so that
    /// refused clients do not come back at once.
    pub close_delay: Cell<Duration>,
    /// Requests carried so far.
    pub requests: Cell<u64>,
    /// Bytes read from and written to the socket, after TLS: `%DOWNSTREAM_WIRE_BYTES_RECEIVED%` of TCP streams.
    pub rx_bytes: Cell<u64>,
    pub tx_bytes: Cell<u64>,
}

impl ConnectionInfo {
    /// A connection that begins now, without TLS and of which no filter has said anything. Its id is unique in the process.
    pub fn plain(remote: Address, local: Address, listener: Arc<str>) -> Self {
        Self {
            id: next_connection_id(),
            start: SystemTime::now(),
            start_instant: Instant::now(),
            direct_remote: remote.clone(),
            remote,
            direct_local: local.clone(),
            local,
            requested_server_name: None,
            tls: None,
            listener,
            direction: TrafficDirection::Unspecified,
            filter_chain: Arc::from(""),
            listener_metadata: None,
            filter_chain_metadata: None,
            handshake: Cell::default(),
            filter_state: RefCell::default(),
            metadata: RefCell::default(),
            termination_details: RefCell::default(),
            transport_failure: RefCell::default(),
            local_close: Cell::default(),
            detected_close: Cell::default(),
            flags: Cell::default(),
            details: RefCell::default(),
            close_delay: Cell::default(),
            requests: Cell::default(),
            rx_bytes: Cell::default(),
            tx_bytes: Cell::default(),
        }
    }
    /// Takes over what network filters found out and left in `info`, the stream info that they were given: metadata is the connection's
    /// from then on, flags and details are for the listener's access log. May be called more than once.
    pub fn learn(&self, info: &mut StreamInfo) {
        if let Some(found) = info.metadata.take() {
            self.metadata.borrow_mut().extend(*found);
        }
        let mut flags = self.flags.get();
        flags.set(info.flags);
        self.flags.set(flags);
        if let Some(details) = &info.details {
            self.details.replace(Some(details.clone()));
        }
    }
}

/// Whether anything shows how long routes take to find.
static ROUTE_TIME: AtomicBool = AtomicBool::new(false);

/// Has the time of route resolution measured from now on: a format shows it. Called on the control thread.
pub fn measure_route_time() {
    ROUTE_TIME.store(true, Ordering::Relaxed);
}

/// Whether [`measure_route_time`] was called.
pub fn measures_route_time() -> bool {
    ROUTE_TIME.load(Ordering::Relaxed)
}

/// The next value of `%CONNECTION_ID%`; upstream connections have ids of their own.
pub fn next_connection_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// When a connection was made.
#[derive(Clone, Copy, Debug, Default)]
pub struct ConnectMoments {
    pub began: Option<Instant>,
    /// The socket was connected.
    pub connected: Option<Instant>,
    /// The TLS handshake ended; none without TLS.
    pub secured: Option<Instant>,
}

/// What is known of the upstream of one stream.
#[derive(Clone, Debug, Default)]
pub struct UpstreamInfo {
    pub cluster: Option<Arc<dyn ClusterView>>,
    pub host: Option<Arc<dyn HostView>>,
    /// Our side of the upstream connection.
    pub local: Option<Address>,
    pub remote: Option<Address>,
    pub tls: Option<Arc<TlsInfo>>,
    pub protocol: Option<HttpVersion>,
    /// Process-wide unique id (`%UPSTREAM_CONNECTION_ID%`), none before a connection was had.
    pub connection_id: Option<u64>,
    /// Streams that the connection carried, this one included.
    pub connection_streams: u64,
    /// `%UPSTREAM_TRANSPORT_FAILURE_REASON%`.
    pub failure: Option<String>,
    /// How long connecting took; zero on reuse.
    pub connect_time: Option<Duration>,
    /// Moments of the connection's own beginning, also on reuse.
    pub connect: ConnectMoments,
    /// `%UPSTREAM_LOCAL_CLOSE_REASON%`.
    pub local_close: Option<&'static str>,
    /// `%UPSTREAM_DETECTED_CLOSE_TYPE%`.
    pub detected_close: DetectedClose,
    /// Moments, as offsets from the stream's start.
    pub first_tx: Option<Duration>,
    pub last_tx: Option<Duration>,
    pub first_rx: Option<Duration>,
    pub last_rx: Option<Duration>,
    /// First byte of the response's body.
    pub first_rx_body: Option<Duration>,
    pub wire_tx_bytes: u64,
    pub wire_rx_bytes: u64,
    /// Bytes of headers on the wire (`%UPSTREAM_HEADER_BYTES_*%`).
    pub header_tx_bytes: u64,
    pub header_rx_bytes: u64,
    /// Every host that was tried, in order.
    pub attempted: Vec<Arc<dyn HostView>>,
    /// Filter state on the upstream connection (metadata exchange).
    pub filter_state: FilterState,
}

/// Progress of the request body, shared between the stream and the body while the request is sent.
#[derive(Debug, Default)]
pub struct BodyMeter {
    pub bytes: Cell<u64>,
    pub last: Cell<Option<Instant>>,
    /// A filter read the body to its end before the request went on: whatever answers comes after the body.
    pub awaited: Cell<bool>,
}

/// What is known of one stream.
#[derive(Debug)]
pub struct StreamInfo {
    pub start: SystemTime,
    pub start_instant: Instant,
    pub connection: Rc<ConnectionInfo>,
    pub protocol: Option<HttpVersion>,
    /// Peer as the connection manager settled it (x-forwarded-for); starts as the connection's.
    pub remote: Address,
    pub flags: ResponseFlags,
    /// Response code sent downstream; 0 before there is one.
    pub response_code: u16,
    /// `%RESPONSE_CODE_DETAILS%`.
    pub details: Option<Cow<'static, str>>,
    pub route_name: Option<Arc<str>>,
    pub virtual_host: Option<Arc<str>>,
    pub virtual_cluster: Option<Arc<str>>,
    /// How often the route was looked for, and how long that took, where `record_route_resolution_stats` or a format asks for it.
    pub route_resolutions: u32,
    pub route_resolution_time: Duration,
    pub request_id: Option<ByteStr>,
    /// Whether trace sampling chose this stream (%TRACE_REASON%-like decisions are Envoy's UUID nibble).
    pub sampled: bool,
    pub health_check: bool,
    /// The client asked in gRPC, before any filter touched the request: local replies answer so.
    pub grpc_request: bool,
    /// Upstream attempts made; `%UPSTREAM_REQUEST_ATTEMPT_COUNT%`.
    pub attempts: u32,
    pub upstream: Option<Box<UpstreamInfo>>,
    pub filter_state: FilterState,
    pub metadata: Option<Box<BTreeMap<String, Struct>>>,
    /// Request body progress.
    pub request_meter: Rc<BodyMeter>,
    /// Body bytes sent downstream (`%BYTES_SENT%`).
    pub bytes_sent: u64,
    /// Header bytes as Envoy's byteSize of the maps.
    pub request_header_bytes: u64,
    pub response_header_bytes: u64,
    /// Wire bytes downstream; set by the codec where known.
    pub wire_rx_bytes: u64,
    pub wire_tx_bytes: u64,
    /// Offsets from start.
    pub first_downstream_tx: Option<Duration>,
    pub last_downstream_tx: Option<Duration>,
    /// When the whole request was received; `%REQUEST_DURATION%`.
    pub last_downstream_rx: Option<Duration>,
    /// Set at the true end of the stream.
    pub duration: Option<Duration>,
    /// `%GRPC_STATUS%` source if no trailers or headers carry it (local replies).
    pub grpc_status: Option<u32>,
}

impl StreamInfo {
    /// A stream that begins now.
    pub fn new(connection: Rc<ConnectionInfo>, protocol: Option<HttpVersion>) -> Self {
        Self {
            start: SystemTime::now(),
            start_instant: Instant::now(),
            remote: connection.remote.clone(),
            connection,
            protocol,
            flags: ResponseFlags::default(),
            response_code: 0,
            details: None,
            route_name: None,
            virtual_host: None,
            virtual_cluster: None,
            route_resolutions: 0,
            route_resolution_time: Duration::ZERO,
            request_id: None,
            sampled: false,
            health_check: false,
            grpc_request: false,
            attempts: 0,
            upstream: None,
            filter_state: FilterState::default(),
            metadata: None,
            request_meter: Rc::default(),
            bytes_sent: 0,
            request_header_bytes: 0,
            response_header_bytes: 0,
            wire_rx_bytes: 0,
            wire_tx_bytes: 0,
            first_downstream_tx: None,
            last_downstream_tx: None,
            last_downstream_rx: None,
            duration: None,
            grpc_status: None,
        }
    }
    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        self.start_instant.elapsed()
    }
    /// The upstream part, made on first use.
    pub fn upstream_mut(&mut self) -> &mut UpstreamInfo {
        self.upstream.get_or_insert_default()
    }
    /// Merges `value` into the dynamic metadata of `namespace` as protobuf merge does (top-level keys replaced).
    pub fn set_metadata(&mut self, namespace: &str, value: Struct) {
        let all = self.metadata.get_or_insert_default();
        match all.get_mut(namespace) {
            Some(existing) => existing.fields.extend(value.fields),
            None => {
                all.insert(namespace.to_string(), value);
            }
        }
    }
    /// Dynamic metadata of `namespace`.
    pub fn metadata(&self, namespace: &str) -> Option<&Struct> {
        self.metadata.as_ref()?.get(namespace)
    }
}
