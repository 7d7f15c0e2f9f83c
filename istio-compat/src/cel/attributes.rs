//! Envoy's attributes: names at compile time, reads of the stream at run time.

use super::value::{Failed, Map, Value};
use nuncio_core::info::{CertInfo, TrafficDirection};
use nuncio_core::registry::Server;
use nuncio_core::views::RouteView;
use nuncio_core::{Address, Headers, RequestHead, ResponseHead, StreamInfo, TlsInfo};
use std::borrow::Cow;

/// What expressions may see. Parts that do not exist yet, or never will (TCP), are none.
#[derive(Clone, Copy)]
pub struct Attributes<'a> {
    pub info: &'a StreamInfo,
    pub request: Option<&'a RequestHead>,
    pub response: Option<&'a ResponseHead>,
    pub trailers: Option<&'a Headers>,
    pub route: Option<&'a dyn RouteView>,
    /// For `xds.node`; none where the caller does not know it (formats).
    pub server: Option<&'a Server>,
}

/// A variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Root {
    Request,
    Response,
    Connection,
    Source,
    Destination,
    Upstream,
    Xds,
    Metadata,
    FilterState,
    UpstreamFilterState,
}

macro_rules! attributes {
    ($($root:ident $variant:ident $name:literal;)*) => {
        /// One attribute.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Attribute { $($variant,)* }
        /// The attribute `name` of `root`.
        pub fn attribute(root: Root, name: &str) -> Option<Attribute> {
            match (root, name) {
                $((Root::$root, $name) => Some(Attribute::$variant),)*
                _ => None,
            }
        }
    };
}

attributes! {
    Request Path "path";
    Request UrlPath "url_path";
    Request Host "host";
    Request Scheme "scheme";
    Request Method "method";
    Request RequestHeaders "headers";
    Request Referer "referer";
    Request UserAgent "useragent";
    Request Time "time";
    Request Id "id";
    Request Protocol "protocol";
    Request Query "query";
    Request RequestDuration "duration";
    Request RequestSize "size";
    Request RequestTotalSize "total_size";
    Response Code "code";
    Response CodeDetails "code_details";
    Response Flags "flags";
    Response GrpcStatus "grpc_status";
    Response ResponseHeaders "headers";
    Response Trailers "trailers";
    Response ResponseSize "size";
    Response ResponseTotalSize "total_size";
    Response BackendLatency "backend_latency";
    Connection ConnectionId "id";
    Connection Mtls "mtls";
    Connection RequestedServerName "requested_server_name";
    Connection TlsVersion "tls_version";
    Connection SubjectLocal "subject_local_certificate";
    Connection SubjectPeer "subject_peer_certificate";
    Connection DnsSanLocal "dns_san_local_certificate";
    Connection DnsSanPeer "dns_san_peer_certificate";
    Connection UriSanLocal "uri_san_local_certificate";
    Connection UriSanPeer "uri_san_peer_certificate";
    Connection Sha256Peer "sha256_peer_certificate_digest";
    Connection TransportFailure "transport_failure_reason";
    Connection TerminationDetails "termination_details";
    Source SourceAddress "address";
    Source SourcePort "port";
    Destination DestinationAddress "address";
    Destination DestinationPort "port";
    Upstream UpstreamAddress "address";
    Upstream UpstreamPort "port";
    Upstream UpstreamTlsVersion "tls_version";
    Upstream UpstreamSubjectLocal "subject_local_certificate";
    Upstream UpstreamSubjectPeer "subject_peer_certificate";
    Upstream UpstreamDnsSanLocal "dns_san_local_certificate";
    Upstream UpstreamDnsSanPeer "dns_san_peer_certificate";
    Upstream UpstreamUriSanLocal "uri_san_local_certificate";
    Upstream UpstreamUriSanPeer "uri_san_peer_certificate";
    Upstream UpstreamSha256Peer "sha256_peer_certificate_digest";
    Upstream UpstreamLocalAddress "local_address";
    Upstream UpstreamTransportFailure "transport_failure_reason";
    Upstream AttemptCount "request_attempt_count";
    Upstream PoolReady "cx_pool_ready_duration";
    Xds ClusterName "cluster_name";
    Xds ClusterMetadata "cluster_metadata";
    Xds ListenerDirection "listener_direction";
    Xds RouteName "route_name";
    Xds RouteMetadata "route_metadata";
    Xds VirtualHostName "virtual_host_name";
    Xds UpstreamHostMetadata "upstream_host_metadata";
    Xds FilterChainName "filter_chain_name";
    Xds Node "node";
}

/// The variable `name`.
pub fn root(name: &str) -> Option<Root> {
    ROOTS.iter().find(|(_, n)| *n == name).map(|(r, _)| *r)
}
/// The name of a variable.
pub fn name(root: Root) -> &'static str {
    ROOTS.iter().find(|(r, _)| *r == root).map_or("", |(_, n)| n)
}
/// Whether any name may follow.
pub fn is_open(root: Root) -> bool {
    matches!(root, Root::Metadata | Root::FilterState | Root::UpstreamFilterState)
}
const ROOTS: [(Root, &str); 10] = [
    (Root::Request, "request"),
    (Root::Response, "response"),
    (Root::Connection, "connection"),
    (Root::Source, "source"),
    (Root::Destination, "destination"),
    (Root::Upstream, "upstream"),
    (Root::Xds, "xds"),
    (Root::Metadata, "metadata"),
    (Root::FilterState, "filter_state"),
    (Root::UpstreamFilterState, "upstream_filter_state"),
];

fn address<'a>(address: Option<&Address>) -> Result<Value<'a>, Failed> {
    address.map(|a| Value::Str(Cow::Owned(a.to_string()))).ok_or(Failed)
}
fn port<'a>(address: Option<&Address>) -> Result<Value<'a>, Failed> {
    address.and_then(Address::socket).map(|a| Value::Int(i64::from(a.port()))).ok_or(Failed)
}
fn text(s: Option<&str>) -> Result<Value<'_>, Failed> {
    s.filter(|s| !s.is_empty()).map(Value::text).ok_or(Failed)
}
fn span<'a>(duration: Option<std::time::Duration>) -> Result<Value<'a>, Failed> {
    duration.and_then(|d| i128::try_from(d.as_nanos()).ok()).map(Value::Duration).ok_or(Failed)
}
fn uint<'a>(n: u64) -> Result<Value<'a>, Failed> {
    Ok(Value::Int(i64::try_from(n).unwrap_or(i64::MAX)))
}

impl<'a> Attributes<'a> {
    fn header(&self, name: &'static str) -> Result<Value<'a>, Failed> {
        let request = self.request.ok_or(Failed)?;
        request.headers.get(&http::HeaderName::from_static(name)).map(|v| Value::header(Cow::Borrowed(v.as_bytes()))).ok_or(Failed)
    }
    fn certificate(&self, upstream: bool, peer: bool) -> Option<&'a CertInfo> {
        let tls = self.tls(upstream)?;
        if peer { tls.peer_cert() } else { tls.local.as_deref() }
    }
    fn tls(&self, upstream: bool) -> Option<&'a TlsInfo> {
        if upstream { self.info.upstream.as_ref()?.tls.as_deref() } else { self.info.connection.tls.as_deref() }
    }
    fn san(&self, upstream: bool, peer: bool, dns: bool) -> Result<Value<'a>, Failed> {
        let sans = self.certificate(upstream, peer).map(|c| if dns { &c.dns_sans } else { &c.uri_sans });
        text(sans.and_then(|s| s.first()).map(String::as_str))
    }
    /// A variable as a map.
    pub fn root(&self, root: Root) -> Result<Value<'a>, Failed> {
        static NONE: std::collections::BTreeMap<String, nuncio_proto::Struct> = std::collections::BTreeMap::new();
        Ok(Value::Map(match root {
            Root::Metadata => Map::Dynamic(self.info.metadata.as_deref().unwrap_or(&NONE)),
            Root::FilterState => Map::State(&self.info.filter_state),
            Root::UpstreamFilterState => Map::State(&self.info.upstream.as_ref().ok_or(Failed)?.filter_state),
            other => Map::Root(other),
        }))
    }
    /// Reads an attribute.
    pub fn get(&self, attribute: Attribute) -> Result<Value<'a>, Failed> {
        let info = self.info;
        let upstream = info.upstream.as_deref();
        match attribute {
            Attribute::Path => text(self.request.map(|r| r.path.as_str())),
            Attribute::UrlPath => text(self.request.map(RequestHead::path_only)),
            Attribute::Host => text(self.request.map(|r| r.authority.as_str())),
            Attribute::Scheme => text(self.request.map(|r| r.scheme.as_str())),
            Attribute::Method => text(self.request.map(|r| r.method.as_str())),
            Attribute::RequestHeaders => self.request.map(|r| Value::Map(Map::Request(r))).ok_or(Failed),
            Attribute::Referer => self.header("referer"),
            Attribute::UserAgent => self.header("user-agent"),
            Attribute::Id => self.header("x-request-id"),
            Attribute::Time => Ok(Value::Time(super::time::since_epoch(info.start))),
            Attribute::Protocol => text(info.protocol.map(|p| p.as_str())),
            Attribute::Query => Ok(Value::text(self.request.and_then(RequestHead::query).unwrap_or_default())),
            Attribute::RequestDuration => span(info.duration),
            Attribute::RequestSize => match self.header("content-length") {
                Ok(Value::Str(length)) if length.parse::<i64>().is_ok() => length.parse().map(Value::Int).map_err(|_| Failed),
                _ => uint(info.request_meter.bytes.get()),
            },
            Attribute::RequestTotalSize => uint(info.request_meter.bytes.get() + info.request_header_bytes),
            Attribute::Code if info.response_code == 0 => Err(Failed),
            Attribute::Code => Ok(Value::Int(i64::from(info.response_code))),
            Attribute::CodeDetails => text(info.details.as_deref()),
            Attribute::Flags => uint(info.flags.bits()),
            Attribute::GrpcStatus => {
                let headers = self.response.map(|r| &r.headers);
                crate::stats::grpc_status(self.trailers, headers, info).map(|s| Value::Int(i64::from(s))).ok_or(Failed)
            }
            Attribute::ResponseHeaders => self.response.map(|r| Value::Map(Map::Response(r))).ok_or(Failed),
            Attribute::Trailers => self.trailers.map(|t| Value::Map(Map::Trailers(t))).ok_or(Failed),
            Attribute::ResponseSize => uint(info.bytes_sent),
            Attribute::ResponseTotalSize => uint(info.bytes_sent + info.response_header_bytes),
            Attribute::BackendLatency => {
                let times = upstream.and_then(|u| Some((u.first_tx?, u.last_rx?)));
                span(times.and_then(|(sent, received)| received.checked_sub(sent)))
            }
            Attribute::ConnectionId => Ok(Value::Uint(info.connection.id)),
            Attribute::Mtls => Ok(Value::Bool(info.connection.tls.as_ref().is_some_and(|t| !t.peer_chain.is_empty()))),
            Attribute::RequestedServerName => text(info.connection.requested_server_name.as_deref()),
            Attribute::TlsVersion => text(self.tls(false).map(|t| t.version)),
            Attribute::SubjectLocal => text(self.certificate(false, false).map(|c| c.subject.as_str())),
            Attribute::SubjectPeer => text(self.certificate(false, true).map(|c| c.subject.as_str())),
            Attribute::DnsSanLocal => self.san(false, false, true),
            Attribute::DnsSanPeer => self.san(false, true, true),
            Attribute::UriSanLocal => self.san(false, false, false),
            Attribute::UriSanPeer => self.san(false, true, false),
            Attribute::Sha256Peer => text(self.certificate(false, true).map(|c| c.sha256.as_str())),
            Attribute::TransportFailure => {
                info.connection.transport_failure.borrow().clone().map(|s| Value::Str(Cow::Owned(s))).ok_or(Failed)
            }
            Attribute::TerminationDetails => info.connection.termination_details.borrow().clone().map(Value::Str).ok_or(Failed),
            Attribute::SourceAddress => address(Some(&info.remote)),
            Attribute::SourcePort => port(Some(&info.remote)),
            Attribute::DestinationAddress => address(Some(&info.connection.local)),
            Attribute::DestinationPort => port(Some(&info.connection.local)),
            Attribute::UpstreamAddress => address(upstream.and_then(|u| u.host.as_ref()).map(|h| h.address())),
            Attribute::UpstreamPort => port(upstream.and_then(|u| u.host.as_ref()).map(|h| h.address())),
            Attribute::UpstreamTlsVersion => text(self.tls(true).map(|t| t.version)),
            Attribute::UpstreamSubjectLocal => text(self.certificate(true, false).map(|c| c.subject.as_str())),
            Attribute::UpstreamSubjectPeer => text(self.certificate(true, true).map(|c| c.subject.as_str())),
            Attribute::UpstreamDnsSanLocal => self.san(true, false, true),
            Attribute::UpstreamDnsSanPeer => self.san(true, true, true),
            Attribute::UpstreamUriSanLocal => self.san(true, false, false),
            Attribute::UpstreamUriSanPeer => self.san(true, true, false),
            Attribute::UpstreamSha256Peer => text(self.certificate(true, true).map(|c| c.sha256.as_str())),
            Attribute::UpstreamLocalAddress => address(upstream.and_then(|u| u.local.as_ref())),
            Attribute::UpstreamTransportFailure => text(upstream.and_then(|u| u.failure.as_deref())),
            Attribute::AttemptCount => Ok(Value::Uint(u64::from(info.attempts))),
            Attribute::PoolReady => span(upstream.and_then(|u| u.connect_time)),
            Attribute::ClusterName => text(upstream.and_then(|u| u.cluster.as_ref()).map(|c| &**c.name())),
            Attribute::ClusterMetadata => {
                let metadata = upstream.and_then(|u| u.cluster.as_ref()).and_then(|c| c.metadata());
                metadata.map(|m| Value::Map(Map::Metadata(m))).ok_or(Failed)
            }
            Attribute::ListenerDirection => Ok(Value::Int(match info.connection.direction {
                TrafficDirection::Unspecified => 0,
                TrafficDirection::Inbound => 1,
                TrafficDirection::Outbound => 2,
            })),
            Attribute::RouteName => text(info.route_name.as_deref()),
            Attribute::RouteMetadata => self.route.and_then(|r| r.metadata()).map(|m| Value::Map(Map::Metadata(m))).ok_or(Failed),
            Attribute::VirtualHostName => text(info.virtual_host.as_deref()),
            Attribute::UpstreamHostMetadata => {
                let metadata = upstream.and_then(|u| u.host.as_ref()).and_then(|h| h.metadata());
                metadata.map(|m| Value::Map(Map::Metadata(m))).ok_or(Failed)
            }
            Attribute::FilterChainName => text(Some(&info.connection.filter_chain)),
            Attribute::Node => self.server.map(|s| Value::Map(Map::Node(&s.node))).ok_or(Failed),
        }
    }
}
