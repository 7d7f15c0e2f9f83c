//! Who the request comes from: trusted addresses, x-forwarded-*, x-envoy-* sanitising, x-request-id, via and
//! x-forwarded-client-cert. Called once per request on a worker, before routing.
//! Source: Envoy's `ConnectionManagerUtility::mutateRequestHeaders` and `docs/configuration/http/http_conn_man/headers`.

use crate::names::{self, *};
use crate::request_id::{self, RequestIdPolicy, TraceReason};
use crate::xfcc::ClientCertPolicy;
use http::{HeaderName, HeaderValue, header};
use nuncio_core::headers::value;
use nuncio_core::registry::Runtime;
use nuncio_core::{Address, ByteStr, ConnectionInfo, RequestHead, StreamInfo};
use nuncio_matcher::{Fraction, IpSet, RuntimeFraction};
use nuncio_route::entry::RouteTracing;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// Compiled identity part of the connection manager's configuration.
#[derive(Debug)]
pub struct Identity {
    pub use_remote_address: bool,
    pub xff_num_trusted_hops: u32,
    pub skip_xff_append: bool,
    pub append_x_forwarded_port: bool,
    /// `internal_address_config`: none means Envoy's default (no address is internal).
    pub internal: Option<Internal>,
    pub add_user_agent: Option<(HeaderValue, HeaderValue)>,
    pub via: Option<HeaderValue>,
    pub generate_request_id: bool,
    pub preserve_external_request_id: bool,
    pub request_id: RequestIdPolicy,
    pub tracing: Option<Sampling>,
    pub client_cert: ClientCertPolicy,
    /// `scheme_header_transformation.scheme_to_overwrite`.
    pub scheme_to_overwrite: Option<ByteStr>,
    /// `scheme_header_transformation.match_upstream`.
    pub scheme_match_upstream: bool,
    /// `forward_proto_config` ports.
    pub https_ports: Vec<u32>,
    pub http_ports: Vec<u32>,
    /// `original_ip_detection_extensions`, in order; empty means x-forwarded-for with `xff_num_trusted_hops`.
    pub detection: Vec<Detection>,
}

/// An original IP detection extension.
#[derive(Debug)]
pub enum Detection {
    /// `envoy.http.original_ip_detection.xff`.
    Xff { trusted_hops: u32, trusted: Option<IpSet>, skip_append: bool },
    /// `envoy.http.original_ip_detection.custom_header`.
    CustomHeader { name: HeaderName, trusted: bool, reject: Option<u16> },
}

/// `internal_address_config`.
#[derive(Debug)]
pub struct Internal {
    pub unix_sockets: bool,
    pub ranges: IpSet,
}

/// `tracing` sampling percentages.
#[derive(Debug)]
pub struct Sampling {
    pub client: RuntimeFraction,
    pub random: RuntimeFraction,
    pub overall: RuntimeFraction,
}

/// Headers that only an internal client may set.
const EXTERNAL_STRIPPED: &[&HeaderName] = &[
    &X_ENVOY_RETRIABLE_STATUS_CODES,
    &X_ENVOY_RETRIABLE_HEADER_NAMES,
    &X_ENVOY_RETRY_ON,
    &X_ENVOY_RETRY_GRPC_ON,
    &X_ENVOY_MAX_RETRIES,
    &X_ENVOY_UPSTREAM_ALT_STAT_NAME,
    &X_ENVOY_UPSTREAM_RQ_TIMEOUT_MS,
    &X_ENVOY_UPSTREAM_RQ_PER_TRY_TIMEOUT_MS,
    &X_ENVOY_UPSTREAM_RQ_TIMEOUT_ALT_RESPONSE,
    &X_ENVOY_EXPECTED_RQ_TIMEOUT_MS,
    &X_ENVOY_FORCE_TRACE,
    &X_ENVOY_IP_TAGS,
    &X_ENVOY_ORIGINAL_URL,
    &X_ENVOY_HEDGE_ON_PER_TRY_TIMEOUT,
];

/// Headers that an edge proxy takes from nobody.
const EDGE_STRIPPED: &[&HeaderName] = &[
    &X_ENVOY_DECORATOR_OPERATION,
    &X_ENVOY_DOWNSTREAM_SERVICE_CLUSTER,
    &X_ENVOY_DOWNSTREAM_SERVICE_NODE,
    &X_ENVOY_ORIGINAL_PATH,
    &X_ENVOY_ORIGINAL_HOST,
];

impl Identity {
    /// Settles addresses and headers of `head`, and tells whether the request is internal. `Err` is a status to refuse it with (custom
    /// header detection).
    pub fn apply(&self, head: &mut RequestHead, info: &mut StreamInfo) -> Result<bool, u16> {
        let connection = info.connection.clone();
        join_forwarded_for(head);
        let forwarded = head.headers.contains(&X_FORWARDED_FOR);
        let tls = connection.tls.is_some();
        let mut trusted = true;
        if self.use_remote_address {
            self.trust_connection(head, info, &connection);
        } else {
            trusted = self.detect(head, info)?;
        }
        if head.headers.get(&X_FORWARDED_PROTO).is_none() {
            head.headers.insert(X_FORWARDED_PROTO.clone(), self.connection_proto(&connection, tls));
        }
        if self.append_x_forwarded_port && head.headers.get(&X_FORWARDED_PORT).is_none() {
            self.set_port(head, &connection);
        }
        self.settle_scheme(head, tls);

        // With `use_remote_address` only a request that nobody forwarded can be internal, else only one with a lone address.
        let internal = trusted && (!self.use_remote_address || !forwarded) && self.is_single(head) && self.is_internal(&info.remote);
        let edge = !internal && self.use_remote_address;
        self.sanitize(head, internal, edge);
        if let Some((cluster, node)) = &self.add_user_agent {
            head.headers.insert(X_ENVOY_DOWNSTREAM_SERVICE_CLUSTER.clone(), cluster.clone());
            if !head.headers.contains(&header::USER_AGENT) {
                head.headers.insert(header::USER_AGENT, cluster.clone());
            }
            if !node.is_empty() {
                head.headers.insert(X_ENVOY_DOWNSTREAM_SERVICE_NODE.clone(), node.clone());
            }
        }
        if let Some(via) = &self.via {
            names::append_comma(&mut head.headers, &header::VIA, via.as_bytes());
        }
        if edge
            && let Address::Ip(remote) = &info.remote
            && let Some(text) = value(remote.ip().to_string())
        {
            head.headers.insert(X_ENVOY_EXTERNAL_ADDRESS.clone(), text);
        }
        self.settle_request_id(head, edge);
        self.client_cert.apply(head, info);
        Ok(internal)
    }

    /// `use_remote_address`: the connection is the truth; x-forwarded-for only counts behind trusted hops.
    fn trust_connection(&self, head: &mut RequestHead, info: &mut StreamInfo, connection: &ConnectionInfo) {
        if self.xff_num_trusted_hops > 0
            && let Some((address, _)) = last_address(head, self.xff_num_trusted_hops - 1)
        {
            info.remote = Address::Ip(SocketAddr::new(address, 0));
        }
        if !self.skip_xff_append {
            append_forwarded_for(head, &connection.remote);
        }
        if self.xff_num_trusted_hops == 0 {
            head.headers.insert(X_FORWARDED_PROTO.clone(), self.connection_proto(connection, connection.tls.is_some()));
            if self.append_x_forwarded_port {
                self.set_port(head, connection);
            }
        }
    }

    /// Without `use_remote_address`: detection extensions, by default x-forwarded-for. Gives whether the address may count as internal.
    fn detect(&self, head: &mut RequestHead, info: &mut StreamInfo) -> Result<bool, u16> {
        if self.detection.is_empty() {
            return Ok(match last_address(head, self.xff_num_trusted_hops) {
                Some((address, single)) => {
                    info.remote = Address::Ip(SocketAddr::new(address, 0));
                    single
                }
                None => true,
            });
        }
        for extension in &self.detection {
            match extension {
                Detection::Xff { trusted_hops, trusted, skip_append } => {
                    let found = match trusted {
                        Some(ranges) => first_untrusted(head, &info.connection.direct_remote, ranges).map(|a| (a, false)),
                        None => last_address(head, *trusted_hops),
                    };
                    if let Some((address, single)) = found {
                        info.remote = Address::Ip(SocketAddr::new(address, 0));
                        if !skip_append {
                            append_forwarded_for(head, &info.connection.remote);
                        }
                        return Ok(single);
                    }
                }
                Detection::CustomHeader { name, trusted, reject } => {
                    match head.headers.get_str(name).and_then(|v| IpAddr::from_str(v.trim()).ok()) {
                        Some(address) => {
                            info.remote = Address::Ip(SocketAddr::new(address, 0));
                            return Ok(*trusted);
                        }
                        None => {
                            if let Some(status) = reject {
                                return Err(*status);
                            }
                        }
                    }
                }
            }
        }
        Ok(false)
    }

    fn connection_proto(&self, connection: &ConnectionInfo, tls: bool) -> HeaderValue {
        let port = connection.local.socket().map_or(0, |a| u32::from(a.port()));
        let https = if self.https_ports.contains(&port) {
            true
        } else if self.http_ports.contains(&port) {
            false
        } else {
            tls
        };
        HeaderValue::from_static(if https { "https" } else { "http" })
    }

    fn set_port(&self, head: &mut RequestHead, connection: &ConnectionInfo) {
        if let Address::Ip(local) = &connection.local {
            head.headers.insert(X_FORWARDED_PORT.clone(), HeaderValue::from(local.port()));
        }
    }

    fn settle_scheme(&self, head: &mut RequestHead, tls: bool) {
        if let Some(scheme) = &self.scheme_to_overwrite {
            head.scheme = scheme.clone();
            if let Some(proto) = value(scheme.clone()) {
                head.headers.insert(X_FORWARDED_PROTO.clone(), proto);
            }
            return;
        }
        head.scheme = match head.headers.get(&X_FORWARDED_PROTO).map(HeaderValue::as_bytes) {
            Some(proto) if proto.eq_ignore_ascii_case(b"https") => ByteStr::from_static("https"),
            Some(proto) if proto.eq_ignore_ascii_case(b"http") => ByteStr::from_static("http"),
            _ => ByteStr::from_static(if tls { "https" } else { "http" }),
        };
    }

    fn is_single(&self, head: &RequestHead) -> bool {
        self.use_remote_address || !head.headers.get(&X_FORWARDED_FOR).is_some_and(|v| v.as_bytes().contains(&b','))
    }

    fn is_internal(&self, address: &Address) -> bool {
        match (&self.internal, address) {
            (Some(internal), Address::Ip(ip)) => internal.ranges.contains(ip.ip()),
            (Some(internal), Address::Pipe(_)) => internal.unix_sockets,
            _ => false,
        }
    }

    fn sanitize(&self, head: &mut RequestHead, internal: bool, edge: bool) {
        if internal {
            head.headers.remove(&X_ENVOY_INTERNAL);
            head.headers.insert(X_ENVOY_INTERNAL.clone(), HeaderValue::from_static("true"));
            return;
        }
        head.headers.retain(|name, _| {
            !name.as_str().starts_with("x-envoy-")
                || !(*name == X_ENVOY_INTERNAL || EXTERNAL_STRIPPED.contains(&name) || (edge && EDGE_STRIPPED.contains(&name)))
        });
    }

    fn settle_request_id(&self, head: &mut RequestHead, edge: bool) {
        let existing = head.headers.get(&X_REQUEST_ID);
        if self.generate_request_id && (existing.is_none() || (edge && !self.preserve_external_request_id)) {
            head.headers.insert(X_REQUEST_ID.clone(), request_id::generate());
        }
    }

    /// Decides whether the request is traced, which its route may override, and notes its id. Called once the route is known.
    pub fn sample(&self, head: &mut RequestHead, info: &mut StreamInfo, runtime: &Runtime, route: Option<&RouteTracing>) {
        if let Some(sampling) = &self.tracing {
            self.decide_trace(sampling, route, head, info, runtime);
        }
        if let Some(id) = head.headers.get(&X_REQUEST_ID) {
            info.request_id = ByteStr::from_utf8(bytes::Bytes::copy_from_slice(id.as_bytes())).ok();
        }
    }

    /// Client trace id, forced trace, then random sampling; overall sampling has the last word
    /// (`ConnectionManagerUtility::mutateTracingRequestHeader`).
    fn decide_trace(
        &self,
        sampling: &Sampling,
        route: Option<&RouteTracing>,
        head: &mut RequestHead,
        info: &mut StreamInfo,
        runtime: &Runtime,
    ) {
        if !self.request_id.use_for_sampling {
            // The id neither decides nor is changed; who traces decides.
            info.sampled = true;
            return;
        }
        let Some(id) = head.headers.get(&X_REQUEST_ID).cloned() else { return };
        let Some(number) = request_id::sampling_number(&id) else { return };
        let chosen = |ours: &RuntimeFraction, theirs: fn(&RouteTracing) -> Fraction, number| match route {
            Some(route) => theirs(route).contains(number),
            None => ours.contains(runtime, number),
        };
        let mut reason = request_id::trace_reason(&id).unwrap_or(TraceReason::NotTraced);
        if reason == TraceReason::NotTraced {
            if head.headers.contains(&X_CLIENT_TRACE_ID) && chosen(&sampling.client, |r| r.client_sampling, fastrand::u64(..)) {
                reason = TraceReason::Client;
            } else if head.headers.contains(&X_ENVOY_FORCE_TRACE) {
                reason = TraceReason::Forced;
            } else if chosen(&sampling.random, |r| r.random_sampling, number) {
                reason = TraceReason::Sampled;
            }
        }
        if reason != TraceReason::NotTraced && !chosen(&sampling.overall, |r| r.overall_sampling, number) {
            reason = TraceReason::NotTraced;
        }
        if self.request_id.pack_trace_reason
            && let Some(packed) = request_id::pack(&id, reason)
        {
            head.headers.insert(X_REQUEST_ID.clone(), packed);
        }
        info.sampled = reason != TraceReason::NotTraced;
    }
}

/// Several x-forwarded-for fields become one, as in Envoy's header map.
fn join_forwarded_for(head: &mut RequestHead) {
    if head.headers.get_all(&X_FORWARDED_FOR).nth(1).is_none() {
        return;
    }
    if let Some(all) = nuncio_core::message::joined(&head.headers, &X_FORWARDED_FOR).and_then(|all| HeaderValue::from_bytes(&all).ok()) {
        head.headers.insert(X_FORWARDED_FOR.clone(), all);
    }
}

/// Adds the peer to x-forwarded-for. A peer on this machine's loopback is this machine to everybody else.
fn append_forwarded_for(head: &mut RequestHead, peer: &Address) {
    let Address::Ip(peer) = peer else { return };
    let ip = if peer.ip().is_loopback() { nuncio_core::local_address::local_address() } else { peer.ip() };
    names::append_joined(&mut head.headers, &X_FORWARDED_FOR, b",", ip.to_string().as_bytes());
}

/// The address `skip` places from the end of x-forwarded-for, and whether it is the only one.
fn last_address(head: &RequestHead, skip: u32) -> Option<(IpAddr, bool)> {
    let all = nuncio_core::message::joined(&head.headers, &X_FORWARDED_FOR)?;
    let text = std::str::from_utf8(&all).ok()?;
    let address = text.rsplit(',').nth(skip as usize)?.trim();
    Some((IpAddr::from_str(address).ok()?, !text.contains(',')))
}

/// The last address of x-forwarded-for that is not in `trusted`, if the direct peer is.
fn first_untrusted(head: &RequestHead, direct: &Address, trusted: &IpSet) -> Option<IpAddr> {
    if !trusted.contains(direct.socket()?.ip()) {
        return None;
    }
    let all = nuncio_core::message::joined(&head.headers, &X_FORWARDED_FOR)?;
    let text = std::str::from_utf8(&all).ok()?;
    let mut last = None;
    for part in text.rsplit(',') {
        let address = IpAddr::from_str(part.trim()).ok()?;
        last = Some(address);
        if !trusted.contains(address) {
            break;
        }
    }
    last
}
