//! Fakes for tests of filters and of whatever else reads an exchange: a connection, a server, a route, a cluster, a host,
//! and helpers that run one filter over one exchange as the connection manager does. Feature `test-kit`; never in the binary.

use crate::diag::{At, Report};
use crate::filter::{FilterAction, FilterCx, HttpFilter, Outcome};
use crate::info::{TlsInfo, TrafficDirection, UpstreamInfo};
use crate::registry::{FactoryCx, HttpFilterFactory, Runtime, Server};
use crate::views::{ClusterView, HostView, PerFilterConfig, RouteView};
use crate::{Address, Body, BodySource, ConnectionInfo, Exchange, Frame, Headers, HttpVersion, LocalReply, RequestHead, ResponseHead};
use crate::{StreamError, StreamInfo};
use bytes::{Bytes, BytesMut};
use nuncio_proto::envoy::config::core::v3::{Locality, Metadata, Node};
use nuncio_proto::{Struct, Value};
use std::any::Any;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

/// A plain connection from 10.0.0.1:40000 to 10.0.0.2:8080 on listener `test`; change its fields before sharing it.
pub fn connection() -> ConnectionInfo {
    let remote = Address::Ip(SocketAddr::from(([10, 0, 0, 1], 40000)));
    let local = Address::Ip(SocketAddr::from(([10, 0, 0, 2], 8080)));
    ConnectionInfo {
        id: 1,
        start: SystemTime::now(),
        start_instant: Instant::now(),
        remote: remote.clone(),
        direct_remote: remote,
        local: local.clone(),
        direct_local: local,
        requested_server_name: None,
        tls: None,
        listener: "test".into(),
        direction: TrafficDirection::Unspecified,
        filter_chain: "".into(),
        listener_metadata: None,
        filter_chain_metadata: None,
        handshake: Default::default(),
        filter_state: Default::default(),
        metadata: Default::default(),
        termination_details: Default::default(),
        transport_failure: Default::default(),
        local_close: Default::default(),
        detected_close: Default::default(),
        flags: Default::default(),
        details: Default::default(),
        close_delay: Default::default(),
        requests: Default::default(),
        rx_bytes: Default::default(),
        tx_bytes: Default::default(),
    }
}

/// TLS facts of a peer whose certificate has these URI SANs.
pub fn tls(alpn: Option<&str>, peer: &[&str], local: &[&str]) -> Arc<TlsInfo> {
    let cert = |sans: &[&str]| crate::info::CertInfo { uri_sans: sans.iter().map(ToString::to_string).collect(), ..Default::default() };
    let info = TlsInfo {
        version: "TLSv1.3",
        alpn: alpn.map(Into::into),
        peer_chain: if peer.is_empty() { Vec::new() } else { vec![vec![0]] },
        peer_validated: !peer.is_empty(),
        local: (!local.is_empty()).then(|| Arc::new(cert(local))),
        ..Default::default()
    };
    let _ = info.peer.set(cert(peer));
    Arc::new(info)
}

/// A stream on [`connection`].
pub fn stream_info() -> StreamInfo {
    StreamInfo::new(Rc::new(connection()), Some(HttpVersion::Http11))
}

/// An exchange on [`connection`] without request body.
pub fn exchange(request: RequestHead) -> Exchange {
    Exchange::new(request, Body::Empty, stream_info())
}

/// A server with this node metadata, two workers and an empty runtime.
pub fn server(metadata: Struct) -> Arc<Server> {
    Arc::new(Server {
        node: Node { id: "router~10.0.0.2~gw.ns~ns.svc".into(), metadata: Some(metadata), ..Default::default() },
        stats: nuncio_stats::Store::new(),
        runtime: Runtime::default(),
        started: Instant::now(),
        concurrency: 2,
        drain_time: Duration::from_secs(1),
        clusters: Arc::default(),
    })
}

/// A string value.
pub fn text(s: &str) -> Value {
    Value { kind: Some(prost_types::value::Kind::StringValue(s.into())) }
}

/// A struct of these fields.
pub fn fields<const N: usize>(fields: [(&str, Value); N]) -> Struct {
    Struct { fields: fields.into_iter().map(|(k, v)| (k.to_string(), v)).collect() }
}

/// A struct as a value.
pub fn object(s: Struct) -> Value {
    Value { kind: Some(prost_types::value::Kind::StructValue(s)) }
}

/// A list as a value.
pub fn list(values: Vec<Value>) -> Value {
    Value { kind: Some(prost_types::value::Kind::ListValue(prost_types::ListValue { values })) }
}

/// Metadata with one namespace.
pub fn metadata(namespace: &str, value: Struct) -> Metadata {
    Metadata { filter_metadata: BTreeMap::from([(namespace.to_string(), value)]), ..Default::default() }
}

/// A fake cluster.
#[derive(Debug)]
pub struct FakeCluster {
    pub name: Arc<str>,
    pub metadata: Option<Metadata>,
    pub protocol: HttpVersion,
}
impl FakeCluster {
    /// A cluster that speaks HTTP/1.1.
    pub fn new(name: &str) -> Self {
        Self { name: name.into(), metadata: None, protocol: HttpVersion::Http11 }
    }
}
impl ClusterView for FakeCluster {
    fn name(&self) -> &Arc<str> {
        &self.name
    }
    fn observability_name(&self) -> &Arc<str> {
        &self.name
    }
    fn metadata(&self) -> Option<&Metadata> {
        self.metadata.as_ref()
    }
    fn upstream_protocol(&self, _downstream: HttpVersion) -> HttpVersion {
        self.protocol
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A fake host at 10.0.1.1:80.
#[derive(Debug)]
pub struct FakeHost {
    pub address: Address,
    pub metadata: Option<Metadata>,
}
impl FakeHost {
    /// A host with this metadata.
    pub fn new(metadata: Option<Metadata>) -> Self {
        Self { address: Address::Ip(SocketAddr::from(([10, 0, 1, 1], 80))), metadata }
    }
}
impl HostView for FakeHost {
    fn address(&self) -> &Address {
        &self.address
    }
    fn hostname(&self) -> &str {
        ""
    }
    fn metadata(&self) -> Option<&Metadata> {
        self.metadata.as_ref()
    }
    fn locality(&self) -> Option<&Locality> {
        None
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A fake route; `filters` holds each filter's configurations, least specific first.
#[derive(Debug)]
pub struct FakeRoute {
    pub name: Arc<str>,
    pub virtual_host: Arc<str>,
    pub cluster: Option<Arc<str>>,
    pub metadata: Option<Metadata>,
    pub filters: HashMap<String, Vec<PerFilterConfig>>,
}
impl FakeRoute {
    /// A route to `cluster` of virtual host `vh` in table `table`.
    pub fn new(name: &str, cluster: &str) -> Self {
        Self { name: name.into(), virtual_host: "vh".into(), cluster: Some(cluster.into()), metadata: None, filters: HashMap::new() }
    }
    /// Adds per-filter configuration, more specific than what is there.
    pub fn with(mut self, filter: &str, config: Arc<dyn Any + Send + Sync>) -> Self {
        self.filters.entry(filter.to_string()).or_default().push(PerFilterConfig::Config(config));
        self
    }
}
impl RouteView for FakeRoute {
    fn name(&self) -> &Arc<str> {
        &self.name
    }
    fn virtual_host(&self) -> &Arc<str> {
        &self.virtual_host
    }
    fn route_config(&self) -> &Arc<str> {
        &self.virtual_host
    }
    fn cluster_name(&self) -> Option<&Arc<str>> {
        self.cluster.as_ref()
    }
    fn metadata(&self) -> Option<&Metadata> {
        self.metadata.as_ref()
    }
    fn filter_config(&self, filter: &str) -> Option<&PerFilterConfig> {
        self.filters.get(filter)?.last()
    }
    fn filter_configs(&self, filter: &str, each: &mut dyn FnMut(&PerFilterConfig)) {
        for config in self.filters.get(filter).into_iter().flatten() {
            each(config);
        }
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Puts an exchange on `cluster` at `host` (with route `route` if the exchange has none).
pub fn send_to(ex: &mut Exchange, cluster: FakeCluster, host: Option<FakeHost>) {
    let cluster: Arc<dyn ClusterView> = Arc::new(cluster);
    ex.cluster = Some(cluster.clone());
    ex.info.upstream =
        Some(Box::new(UpstreamInfo { cluster: Some(cluster), host: host.map(|h| Arc::new(h) as Arc<dyn HostView>), ..Default::default() }));
}

/// Compiles a filter, in scope `http.test.`; the report's summary is the error.
pub fn compile<M: prost::Message>(
    factory: &dyn HttpFilterFactory,
    config: &M,
    server: &Arc<Server>,
) -> Result<Arc<dyn HttpFilter>, String> {
    compile_in(factory, config, server, TrafficDirection::Unspecified).map(|(filter, _)| filter)
}

/// As [`compile`], on a listener of this direction; gives the warnings too.
pub fn compile_in<M: prost::Message>(
    factory: &dyn HttpFilterFactory,
    config: &M,
    server: &Arc<Server>,
    direction: TrafficDirection,
) -> Result<(Arc<dyn HttpFilter>, Report), String> {
    let mut report = Report::new();
    let scope = server.stats.root().scope("http.test.");
    let filter =
        factory.compile(&config.encode_to_vec(), &At::Root, &mut FactoryCx { server, scope: &scope, direction, report: &mut report });
    match filter {
        Some(filter) if !report.has_errors() => Ok((filter, report)),
        _ => Err(report.summary()),
    }
}

/// Compiles per-route configuration.
pub fn compile_route<M: prost::Message>(
    factory: &dyn HttpFilterFactory,
    config: &M,
    server: &Arc<Server>,
) -> Result<Arc<dyn Any + Send + Sync>, String> {
    let mut report = Report::new();
    let scope = server.stats.root().scope("http.test.");
    let mut cx = FactoryCx { server, scope: &scope, direction: TrafficDirection::Unspecified, report: &mut report };
    let config = factory.compile_route(&config.encode_to_vec(), &At::Root, &mut cx);
    match config {
        Some(config) if !report.has_errors() => Ok(config),
        _ => Err(report.summary()),
    }
}

/// Runs `on_request` of `filter`, called `name`, to its end; gives the local reply if there was one.
pub async fn request(filter: &dyn HttpFilter, name: &str, ex: &mut Exchange) -> Option<LocalReply> {
    match filter.on_request(FilterCx { ex, name, index: 0 }) {
        FilterAction::Continue => None,
        FilterAction::Respond(reply) => Some(*reply),
        FilterAction::Await(future) => match future.await {
            Outcome::Continue => None,
            Outcome::Respond(reply) => Some(*reply),
        },
    }
}

/// Gives the exchange a response and runs `on_response`.
pub fn respond(filter: &dyn HttpFilter, name: &str, ex: &mut Exchange, head: ResponseHead, body: Body) {
    ex.info.response_code = head.status.as_u16();
    ex.response = Some(head);
    ex.response_body = body;
    filter.on_response(FilterCx { ex, name, index: 0 });
}

/// Runs `on_response_trailers`.
pub fn trailers(filter: &dyn HttpFilter, name: &str, ex: &mut Exchange, trailers: &mut Headers) {
    filter.on_response_trailers(FilterCx { ex, name, index: 0 }, trailers);
}

/// Ends the stream after 10 ms and runs `on_complete`.
pub fn complete(filter: &dyn HttpFilter, name: &str, ex: &mut Exchange) {
    ex.info.duration = Some(Duration::from_millis(10));
    filter.on_complete(FilterCx { ex, name, index: 0 });
}

/// A body of these frames.
pub fn body(frames: impl IntoIterator<Item = Frame>) -> Body {
    Body::Stream(Box::new(Frames(frames.into_iter().collect())))
}

/// A body of these pieces of data.
pub fn data(pieces: impl IntoIterator<Item = &'static [u8]>) -> Body {
    body(pieces.into_iter().map(|p| Frame::Data(Bytes::from_static(p))))
}

struct Frames(VecDeque<Frame>);
impl BodySource for Frames {
    fn poll_frame(&mut self, _cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        Poll::Ready(self.0.pop_front().map(Ok))
    }
    fn is_end(&self) -> bool {
        self.0.is_empty()
    }
}

/// Everything in a body.
pub async fn collect(body: &mut Body) -> Result<(Bytes, Option<Box<Headers>>), StreamError> {
    let mut all = BytesMut::new();
    let mut trailers = None;
    while let Some(frame) = body.frame().await {
        match frame? {
            Frame::Data(data) => all.extend_from_slice(&data),
            Frame::Trailers(t) => trailers = Some(t),
        }
    }
    Ok((all.freeze(), trailers))
}
