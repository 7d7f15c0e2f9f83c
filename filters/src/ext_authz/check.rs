//! `CheckRequest`: what the authorization service is told of a request, or of a connection. Built on a worker.
//! Source: `envoy/service/auth/v3/attribute_context.proto`, Envoy's `CheckRequestUtils`.

use auth::attribute_context::{HttpRequest, Peer, Request, TlsSession};
use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use nuncio_core::info::CertInfo;
use nuncio_core::message::joined;
use nuncio_core::{ConnectionInfo, Exchange, RequestHead, StreamInfo};
use nuncio_matcher::StringMatcher;
use nuncio_matcher::string::any_matches;
use nuncio_proto::envoy::config::core::v3 as core;
use nuncio_proto::envoy::service::auth::v3 as auth;
use nuncio_proto::{Struct, Timestamp};
use prost_types::value::Kind;
use std::collections::BTreeMap;
use std::time::SystemTime;

pub const PARTIAL_BODY: HeaderName = HeaderName::from_static("x-envoy-auth-partial-body");
const SERVICE_CLUSTER: HeaderName = HeaderName::from_static("x-envoy-downstream-service-cluster");

/// Which attributes are sent.
#[derive(Debug, Default)]
pub struct Attributes {
    /// Request headers that are sent; none: all.
    pub allowed: Option<Box<[StringMatcher]>>,
    pub disallowed: Option<Box<[StringMatcher]>>,
    pub peer_certificate: bool,
    pub tls_session: bool,
    pub raw_headers: bool,
    pub pack_as_bytes: bool,
    pub labels: BTreeMap<String, String>,
    pub metadata: Vec<String>,
    pub route_metadata: Vec<String>,
    pub route_typed_metadata: Vec<String>,
}

/// The part of a body that is sent.
#[derive(Clone, Debug)]
pub struct Sent {
    pub data: Bytes,
    /// Bytes of it that came so far.
    pub size: usize,
}

impl Sent {
    /// What `x-envoy-auth-partial-body` says.
    pub fn partial(&self) -> &'static str {
        if self.size > self.data.len() { "true" } else { "false" }
    }
}

/// `labels` of the node's metadata under `key`.
pub fn labels(metadata: &Struct, key: &str) -> BTreeMap<String, String> {
    let Some(Kind::StructValue(labels)) = metadata.fields.get(key).and_then(|v| v.kind.as_ref()) else { return BTreeMap::new() };
    let text = |v: &nuncio_proto::Value| match &v.kind {
        Some(Kind::StringValue(text)) => text.clone(),
        _ => String::new(),
    };
    labels.fields.iter().map(|(k, v)| (k.clone(), text(v))).collect()
}

/// The name that a certificate speaks for: its first URI SAN, else its first DNS SAN, else its subject.
fn principal(cert: &CertInfo) -> String {
    cert.uri_sans.first().or(cert.dns_sans.first()).unwrap_or(&cert.subject).clone()
}

/// Both peers of a connection.
fn peers(connection: &ConnectionInfo, remote: &nuncio_core::Address, certificate: bool) -> (Peer, Peer) {
    let mut source = Peer { address: Some(remote.to_proto()), ..Peer::default() };
    let mut destination = Peer { address: Some(connection.local.to_proto()), ..Peer::default() };
    if let Some(tls) = &connection.tls {
        if let Some(cert) = tls.peer_cert() {
            source.principal = principal(cert);
            if certificate {
                source.certificate.clone_from(&cert.url_pem);
            }
        }
        if let Some(cert) = &tls.local {
            destination.principal = principal(cert);
        }
    }
    (source, destination)
}

fn session(connection: &ConnectionInfo) -> TlsSession {
    let sni = connection.requested_server_name.as_ref().map(|s| s.to_string()).unwrap_or_default();
    TlsSession { sni }
}

/// Text for a protobuf string: what is no UTF-8 becomes `!`, as in Envoy.
fn text(bytes: &[u8]) -> String {
    let lossy = String::from_utf8_lossy(bytes);
    if lossy.contains(char::REPLACEMENT_CHARACTER) { lossy.replace(char::REPLACEMENT_CHARACTER, "!") } else { lossy.into_owned() }
}

impl Attributes {
    /// Whether header `name` is sent.
    fn sends(&self, name: &str) -> bool {
        self.allowed.as_ref().is_none_or(|list| any_matches(list, name))
            && !self.disallowed.as_ref().is_some_and(|list| any_matches(list, name))
    }

    /// Calls `each` with every header that is sent, pseudo-headers first; values of one name are joined.
    pub fn headers(&self, head: &RequestHead, mut each: impl FnMut(&str, &[u8])) {
        let mut seen: Vec<&HeaderName> = Vec::new();
        self.pseudo_headers(head, &mut each);
        for (name, _) in self.sent_headers(head) {
            if seen.contains(&name) {
                continue;
            }
            seen.push(name);
            if let Some(value) = joined(&head.headers, name) {
                each(name.as_str(), &value);
            }
        }
    }

    /// As [`Self::headers`], each value by itself.
    fn each_header(&self, head: &RequestHead, mut each: impl FnMut(&str, &[u8])) {
        self.pseudo_headers(head, &mut each);
        self.sent_headers(head).for_each(|(name, value)| each(name.as_str(), value.as_bytes()));
    }

    /// Fields that are sent. A client does not say what part of its body the service sees.
    fn sent_headers<'a>(&'a self, head: &'a RequestHead) -> impl Iterator<Item = (&'a HeaderName, &'a HeaderValue)> {
        head.headers.iter().filter(|(name, _)| **name != PARTIAL_BODY && self.sends(name.as_str()))
    }

    fn pseudo_headers(&self, head: &RequestHead, each: &mut impl FnMut(&str, &[u8])) {
        let pseudo = [
            (":authority", head.authority.as_bytes().as_ref()),
            (":path", head.path.as_bytes().as_ref()),
            (":method", head.method.as_str().as_bytes()),
            (":scheme", head.scheme.as_bytes().as_ref()),
        ];
        for (name, value) in pseudo {
            if !value.is_empty() && self.sends(name) {
                each(name, value);
            }
        }
    }

    /// What the service is asked about a request.
    pub fn http(&self, ex: &Exchange, body: Option<&Sent>, extensions: BTreeMap<String, String>) -> auth::CheckRequest {
        let (info, head) = (&ex.info, &ex.request);
        let (mut source, mut destination) = peers(&info.connection, &info.remote, self.peer_certificate);
        source.service = head.headers.get(&SERVICE_CLUSTER).map(|v| text(v.as_bytes())).unwrap_or_default();
        destination.labels.clone_from(&self.labels);
        let mut http = HttpRequest {
            id: ex.random.to_string(),
            method: head.method.as_str().to_string(),
            path: head.path.to_string(),
            host: head.authority.to_string(),
            scheme: head.scheme.to_string(),
            size: body.map_or(0, |b| i64::try_from(b.size).unwrap_or(i64::MAX)),
            protocol: info.protocol.map(|p| p.as_str().to_string()).unwrap_or_default(),
            ..HttpRequest::default()
        };
        if let Some(body) = body {
            if self.pack_as_bytes {
                http.raw_body = body.data.to_vec();
            } else {
                http.body = text(&body.data);
            }
        }
        let partial = body.map(Sent::partial);
        if self.raw_headers {
            let mut headers = Vec::with_capacity(head.headers.len() + 5);
            let value =
                |key: &str, value: &[u8]| core::HeaderValue { key: key.to_string(), raw_value: value.to_vec(), ..Default::default() };
            self.each_header(head, |name, v| headers.push(value(name, v)));
            headers.extend(partial.map(|p| value(PARTIAL_BODY.as_str(), p.as_bytes())));
            http.header_map = Some(core::HeaderMap { headers });
        } else {
            self.headers(head, |name, v| drop(http.headers.insert(name.to_string(), text(v))));
            http.headers.extend(partial.map(|p| (PARTIAL_BODY.as_str().to_string(), p.to_string())));
        }
        let since = info.start.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let time = Timestamp {
            seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
        };
        let attributes = auth::AttributeContext {
            source: Some(source),
            destination: Some(destination),
            request: Some(Request { time: Some(time), http: Some(http) }),
            context_extensions: extensions,
            metadata_context: Some(self.stream_metadata(&ex.info)),
            route_metadata_context: Some(self.route_metadata(ex)),
            tls_session: self.tls_session.then(|| session(&info.connection)),
        };
        auth::CheckRequest { attributes: Some(attributes) }
    }

    /// What the service is asked about a connection. The destination goes by the name that the client asked for.
    pub fn tcp(&self, info: &StreamInfo) -> auth::CheckRequest {
        let connection = &info.connection;
        let (source, mut destination) = peers(connection, &info.remote, self.peer_certificate);
        destination.service = session(connection).sni;
        destination.labels.clone_from(&self.labels);
        let attributes = auth::AttributeContext {
            source: Some(source),
            destination: Some(destination),
            metadata_context: Some(self.stream_metadata(info)),
            tls_session: self.tls_session.then(|| session(connection)),
            ..auth::AttributeContext::default()
        };
        auth::CheckRequest { attributes: Some(attributes) }
    }

    /// Dynamic metadata of the stream, else of the connection.
    fn stream_metadata(&self, info: &StreamInfo) -> core::Metadata {
        let connection = info.connection.metadata.borrow();
        let find = |name: &String| Some((name.clone(), info.metadata(name).or_else(|| connection.get(name))?.clone()));
        core::Metadata { filter_metadata: self.metadata.iter().filter_map(find).collect(), ..Default::default() }
    }

    fn route_metadata(&self, ex: &Exchange) -> core::Metadata {
        let Some(all) = ex.route.as_ref().and_then(|r| r.metadata()) else { return core::Metadata::default() };
        core::Metadata {
            filter_metadata: self.route_metadata.iter().filter_map(|n| Some((n.clone(), all.filter_metadata.get(n)?.clone()))).collect(),
            typed_filter_metadata: self
                .route_typed_metadata
                .iter()
                .filter_map(|n| Some((n.clone(), all.typed_filter_metadata.get(n)?.clone())))
                .collect(),
        }
    }
}
