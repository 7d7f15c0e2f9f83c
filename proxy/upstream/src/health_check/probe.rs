//! One health check of one host: connect, ask, judge the answer. Control thread; none of it is in the cluster's traffic stats.

use super::{AddedHeader, Codec, GrpcCheck, HealthCheckSpec, HttpCheck, Kind, TcpCheck, holds};
use crate::cluster::Cluster;
use crate::host::Host;
use crate::pool::key::Speaks;
use crate::pool::{connect, proxy};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use nuncio_core::grpc::grpc_timeout_value;
use nuncio_core::views::{ClusterView, HostView};
use nuncio_core::{Address, Frame, HttpVersion, RequestHead, ResponseHead};
use nuncio_http::{ClientStream, h1, h2};
use nuncio_proto::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use nuncio_tls::Transport;
use std::future::poll_fn;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What a check found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    Healthy {
        /// `x-envoy-degraded`.
        degraded: bool,
    },
    /// The host answered, and not well: unhealthy at once.
    Unhealthy {
        /// `x-envoy-immediate-health-check-fail`: it does not count among the hosts either.
        immediate: bool,
        /// A status of `retriable_statuses`: counts like a network failure.
        retriable: bool,
        /// Of an HTTP check, 0 otherwise.
        status: u16,
    },
    /// No connection, no answer: unhealthy after `unhealthy_threshold` of these.
    Network { timeout: bool },
}

const NETWORK: Finding = Finding::Network { timeout: false };
const BAD: Finding = Finding::Unhealthy { immediate: false, retriable: false, status: 0 };

/// A connection kept from check to check.
#[derive(Default)]
pub(crate) struct Kept {
    h1: Option<h1::Client<Transport>>,
    h2: Option<h2::Client>,
}

/// Checks `host`.
pub(crate) async fn probe(cluster: &Cluster, spec: &HealthCheckSpec, host: &Host, kept: &mut Kept) -> Finding {
    let check = async {
        match &spec.kind {
            Kind::Http(check) => http(cluster, spec, check, host, kept).await,
            Kind::Tcp(check) => tcp(cluster, spec, check, host).await,
            Kind::Grpc(check) => grpc(cluster, spec, check, host, kept).await,
        }
    };
    let found = tokio::time::timeout(spec.timeout, check).await;
    let finding = found.ok().flatten().unwrap_or(Finding::Network { timeout: true });
    if !spec.reuse || matches!(finding, Finding::Network { .. }) {
        *kept = Kept::default();
    }
    finding
}

/// Where checks of `host` go.
fn target(spec: &HealthCheckSpec, host: &Host) -> Address {
    let address = host.health_check.as_ref().and_then(|h| h.address.clone()).unwrap_or_else(|| host.address().clone());
    match (spec.alt_port, &address) {
        (Some(port), Address::Ip(ip)) => Address::Ip(SocketAddr::new(ip.ip(), port)),
        _ => address,
    }
}

/// A new connection, and whether ALPN chose HTTP/2 on it, if it chose anything.
async fn dial(cluster: &Cluster, spec: &HealthCheckSpec, host: &Host, speaks: Option<Speaks>) -> Option<(Transport, Option<bool>)> {
    let transport = cluster.spec.transport_for(host, spec.criteria.as_ref());
    let address = target(spec, host);
    let dialled = connect::for_check(cluster, host, &address, transport.map(|t| &t.socket), spec.alpn.as_deref(), speaks).await;
    let (io, tls) = dialled.ok()?;
    Some((io, tls.and_then(|tls| tls.alpn.as_ref().map(|alpn| &**alpn == "h2"))))
}

/// The authority of checks: the endpoint's `health_check_config`, the check's, the cluster's name. Source: Envoy's `getHostname`.
fn authority(cluster: &Cluster, host: &Host, wanted: &str) -> String {
    let own = host.health_check.as_ref().map_or("", |h| h.hostname.as_str());
    [own, wanted, ClusterView::name(cluster)].into_iter().find(|n| !n.is_empty()).unwrap_or_default().to_string()
}

async fn http(cluster: &Cluster, spec: &HealthCheckSpec, check: &HttpCheck, host: &Host, kept: &mut Kept) -> Option<Finding> {
    let mut request = RequestHead::new(check.method.clone(), authority(cluster, host, &check.host), check.path.clone());
    request.headers.append(http::header::USER_AGENT, HeaderValue::from_static("Envoy/HC"));
    add(&mut request, &check.headers);
    check.remove.iter().for_each(|name| {
        request.headers.remove(name);
    });
    if let Some(body) = &check.send {
        request.headers.insert(http::header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    }
    let Some(mut stream) = begin(cluster, spec, host, kept, check.codec, &request, check.send.is_none()).await else {
        return Some(NETWORK);
    };
    if let Some(body) = &check.send {
        let sent = poll_fn(|cx| stream.poll_ready(cx)).await.and_then(|()| stream.send_data(body.clone(), true));
        if sent.is_err() {
            return Some(NETWORK);
        }
    }
    let Some((head, body)) = answer(&mut stream, check.buffer).await else { return Some(NETWORK) };
    keep(stream, kept);
    if check.service.is_some() {
        cluster.endpoint_stats().counter("health_check.verify_cluster").add(u64::from(expected(check, &head)));
    }
    Some(judge(check, &head, &body))
}

/// Adds the configured headers.
fn add(request: &mut RequestHead, headers: &[AddedHeader]) {
    for AddedHeader { name, value, action } in headers {
        let there = request.headers.contains(name);
        match action {
            HeaderAppendAction::AppendIfExistsOrAdd => request.headers.append(name.clone(), value.clone()),
            HeaderAppendAction::AddIfAbsent if !there => request.headers.append(name.clone(), value.clone()),
            HeaderAppendAction::OverwriteIfExists if !there => {}
            HeaderAppendAction::OverwriteIfExistsOrAdd | HeaderAppendAction::OverwriteIfExists => {
                request.headers.insert(name.clone(), value.clone());
            }
            HeaderAppendAction::AddIfAbsent => {}
        }
    }
}

fn expected(check: &HttpCheck, head: &ResponseHead) -> bool {
    check.expected.iter().any(|r| r.contains(&i64::from(head.status.as_u16())))
}

/// What an answer means. Source: Envoy's `HttpActiveHealthCheckSession::healthCheckResult`.
fn judge(check: &HttpCheck, head: &ResponseHead, body: &[u8]) -> Finding {
    let has = |name: &'static str| head.headers.contains(&HeaderName::from_static(name));
    let status = head.status.as_u16();
    // It says more about a failure; by itself it is none.
    let immediate = has("x-envoy-immediate-health-check-fail");
    if !check.receive.is_empty() && !holds(body, &check.receive) {
        return Finding::Unhealthy { immediate, retriable: false, status };
    }
    if !expected(check, head) {
        let retriable = check.retriable.iter().any(|r| r.contains(&i64::from(status)));
        return Finding::Unhealthy { immediate, retriable, status };
    }
    if let Some(service) = &check.service {
        let name = head.headers.get_str(&HeaderName::from_static("x-envoy-upstream-healthchecked-cluster")).unwrap_or_default();
        if !service.matches(name) {
            return Finding::Unhealthy { immediate: false, retriable: false, status };
        }
    }
    Finding::Healthy { degraded: has("x-envoy-degraded") }
}

/// Begins a stream, on the kept connection if it lives.
async fn begin(
    cluster: &Cluster,
    spec: &HealthCheckSpec,
    host: &Host,
    kept: &mut Kept,
    codec: Codec,
    request: &RequestHead,
    end: bool,
) -> Option<ClientStream<Transport>> {
    let options = cluster.codec().clone();
    let mut two = kept.h2.take().filter(|c| c.is_ready());
    let mut one = kept.h1.take();
    if two.is_none() && one.as_mut().is_none_or(|c| !c.is_reusable()) {
        one = None;
        let speaks = if codec.by_alpn {
            Speaks::Auto
        } else if codec.h2 {
            Speaks::H2
        } else {
            Speaks::H1
        };
        let (io, chosen) = dial(cluster, spec, host, Some(speaks)).await?;
        if chosen.filter(|_| codec.by_alpn).unwrap_or(codec.h2) {
            two = Some(h2::Client::connect(io, options).await.ok()?);
        } else {
            one = Some(h1::Client::new(io, options));
        }
    }
    if let Some(client) = two {
        kept.h2 = Some(client.clone());
        return client.send(request, end).ok().map(ClientStream::H2);
    }
    one?.send(request, end).ok().map(ClientStream::H1)
}

fn keep(stream: ClientStream<Transport>, kept: &mut Kept) {
    if stream.version() != HttpVersion::Http2 {
        kept.h1 = stream.into_client();
    }
}

/// The final head and the first `most` bytes of the body (0: all, up to a bound).
async fn answer(stream: &mut ClientStream<Transport>, most: usize) -> Option<(ResponseHead, Vec<u8>)> {
    let most = if most == 0 { 1 << 20 } else { most };
    let head = loop {
        let head = poll_fn(|cx| stream.poll_response(cx)).await.ok()?;
        if !head.status.is_informational() {
            break head;
        }
    };
    let mut body = Vec::new();
    while let Some(frame) = poll_fn(|cx| stream.poll_frame(cx)).await {
        if let Frame::Data(data) = frame.ok()? {
            let room = most.saturating_sub(body.len());
            body.extend_from_slice(data.get(..data.len().min(room)).unwrap_or_default());
        }
    }
    Some((head, body))
}

async fn tcp(cluster: &Cluster, spec: &HealthCheckSpec, check: &TcpCheck, host: &Host) -> Option<Finding> {
    let Some((mut io, _)) = dial(cluster, spec, host, None).await else { return Some(NETWORK) };
    if let Some(v2) = check.proxy
        && io.write_all(&proxy::proxy_header(v2, None)).await.is_err()
    {
        return Some(NETWORK);
    }
    if !check.send.is_empty() && io.write_all(&check.send).await.is_err() {
        return Some(NETWORK);
    }
    let mut seen = Vec::new();
    while !holds(&seen, &check.receive) {
        // Nobody needs more to find what is asked for.
        if seen.len() > 1 << 20 || !matches!(io.read_buf(&mut seen).await, Ok(n) if n > 0) {
            return Some(NETWORK);
        }
    }
    Some(Finding::Healthy { degraded: false })
}

async fn grpc(cluster: &Cluster, spec: &HealthCheckSpec, check: &GrpcCheck, host: &Host, kept: &mut Kept) -> Option<Finding> {
    let mut request = RequestHead::new(Method::POST, authority(cluster, host, &check.authority), "/grpc.health.v1.Health/Check");
    request.version = HttpVersion::Http2;
    for (name, value) in [("content-type", "application/grpc"), ("te", "trailers"), ("user-agent", "Envoy/HC")] {
        request.headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    if let Ok(value) = HeaderValue::from_str(&grpc_timeout_value(spec.timeout)) {
        request.headers.append(HeaderName::from_static("grpc-timeout"), value);
    }
    add(&mut request, &check.headers);
    let Some(mut stream) = begin(cluster, spec, host, kept, Codec { h2: true, by_alpn: false }, &request, false).await else {
        return Some(NETWORK);
    };
    if stream.send_data(grpc_request(&check.service), true).is_err() {
        return Some(NETWORK);
    }
    let _ = poll_fn(|cx| stream.poll_flush(cx)).await;
    let Ok(head) = poll_fn(|cx| stream.poll_response(cx)).await else { return Some(NETWORK) };
    let status = HeaderName::from_static("grpc-status");
    let mut code = head.headers.get_str(&status).map(str::to_string);
    let mut body = Vec::new();
    while let Some(frame) = poll_fn(|cx| stream.poll_frame(cx)).await {
        match frame {
            Ok(Frame::Data(data)) if body.len() < 1 << 16 => body.extend_from_slice(&data),
            Ok(Frame::Data(_)) => {}
            Ok(Frame::Trailers(trailers)) => code = trailers.get_str(&status).map(str::to_string).or(code),
            Err(_) => return Some(NETWORK),
        }
    }
    let served = head.status == StatusCode::OK && code.as_deref() == Some("0") && serving(&body);
    Some(if served { Finding::Healthy { degraded: false } } else { BAD })
}

/// A length-prefixed `grpc.health.v1.HealthCheckRequest { service = 1 }`.
fn grpc_request(service: &str) -> Bytes {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        prost::encoding::encode_varint(service.len() as u64, &mut message);
        message.extend_from_slice(service.as_bytes());
    }
    let mut out = vec![0];
    out.extend(u32::try_from(message.len()).unwrap_or(0).to_be_bytes());
    out.extend(message);
    out.into()
}

/// Whether a length-prefixed `HealthCheckResponse { status = 1 }` says SERVING (1).
fn serving(body: &[u8]) -> bool {
    matches!(body, [0, _, _, _, _, 0x08, 0x01])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_messages() {
        assert_eq!(&grpc_request("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(&grpc_request("")[..], [0, 0, 0, 0, 0]);
        assert!(serving(&[0, 0, 0, 0, 2, 8, 1]) && !serving(&[0, 0, 0, 0, 2, 8, 2]) && !serving(&[]));
    }
    #[test]
    fn blocks_in_order() {
        let blocks = |list: &[&str]| list.iter().map(|b| b.as_bytes().to_vec()).collect::<Vec<_>>();
        assert!(holds(b"hello world", &blocks(&["hello", "world"])));
        assert!(!holds(b"hello world", &blocks(&["world", "hello"])));
        assert!(!holds(b"aba", &blocks(&["ab", "ba"])), "no overlap");
        assert!(holds(b"", &[]));
    }
}
