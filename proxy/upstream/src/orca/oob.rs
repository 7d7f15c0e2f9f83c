//! Load reports out of band: one gRPC stream to each host (`xds.service.orca.v3.OpenRcaService`), on which it reports its load from time to
//! time. Control thread, one task per cluster that asks for it. Source: `client_side_weighted_round_robin.proto`,
//! `OrcaOobReportingConfig`, and Envoy's `orca_oob_manager.cc` for times and for what ends a stream for good.

use super::{OrcaSpec, Report, weight_of};
use crate::cluster::Cluster;
use crate::host::{Host, millis};
use crate::pool::connect;
use crate::pool::key::Speaks;
use crate::spec::Criteria;
use crate::stats::OobStats;
use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use nuncio_core::views::{ClusterView, HostView};
use nuncio_core::{Address, Frame, HttpVersion, RequestHead, ResponseHead};
use nuncio_http::{ClientStream, h2};
use nuncio_tls::Transport;
use prost::Message;
use std::collections::HashMap;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

/// Time between two looks at the set of hosts.
const LOOK: Duration = Duration::from_secs(1);
/// First and longest wait before a stream is made anew.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Reports that may be missing before a stream counts as stalled.
const MISSING: u32 = 3;
/// Longest report, in bytes.
const LONGEST: usize = 64 * 1024;
/// gRPC status of a server that does not know the service.
const UNIMPLEMENTED: u32 = 12;

/// `oob_reporting_period` and `OrcaOobReportingConfig`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct OobSpec {
    /// How often hosts are asked to report. Default 10 s.
    pub period: Duration,
    /// Instead of the host's own port.
    pub port: Option<u16>,
    /// `:authority`; empty for the host's name or address.
    pub authority: Box<str>,
    /// Which transport socket match the streams use; none for the host's.
    pub criteria: Option<Criteria>,
}

/// `xds.service.orca.v3.OrcaLoadReportRequest`.
#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(message, optional, tag = "1")]
    report_interval: Option<nuncio_proto::Duration>,
}

/// Keeps one stream to each host of `cluster` for as long as that lives.
pub(crate) async fn run(cluster: Weak<Cluster>) {
    let mut tasks = JoinSet::new();
    let mut sessions: HashMap<u64, AbortHandle> = HashMap::new();
    let mut stats = None;
    loop {
        let Some(strong) = cluster.upgrade().filter(|c| !c.is_retired()) else { return };
        let Some((orca, spec)) = strong.spec.lb.orca.as_ref().and_then(|o| Some((o, o.oob.as_ref()?))) else { return };
        let stats = stats.get_or_insert_with(|| Rc::new(OobStats::new(&strong.endpoint_stats().scope("lb_orca_oob."))));
        // A stream that ended for good is remembered, so that it is not begun again.
        while tasks.try_join_next().is_some() {}
        let hosts = strong.hosts();
        sessions.retain(|id, task| {
            let stays = hosts.iter().any(|h| h.id == *id);
            if !stays {
                task.abort();
            }
            stays
        });
        for host in hosts {
            sessions.entry(host.id).or_insert_with(|| {
                let first = spec.period.mul_f64(fastrand::f64());
                tasks.spawn_local(session(cluster.clone(), host, stats.clone(), first))
            });
        }
        stats.active_sessions.set(i64::try_from(sessions.values().filter(|t| !t.is_finished()).count()).unwrap_or(i64::MAX));
        let pause = LOOK.min(orca.update);
        drop(strong);
        sleep(pause).await;
    }
}

/// How a stream ended.
enum End {
    /// The host has no such service: it is not asked again.
    Terminal,
    Transient,
}

/// Streams to one host, one after the other.
async fn session(cluster: Weak<Cluster>, host: Arc<Host>, stats: Rc<OobStats>, first: Duration) {
    sleep(first).await;
    let mut wait = BACKOFF.0;
    loop {
        let Some(strong) = cluster.upgrade() else { return };
        let Some(orca) = strong.spec.lb.orca.as_deref() else { return };
        let Some(spec) = &orca.oob else { return };
        let mut reported = false;
        let end = stream(&strong, orca, spec, &host, |well| {
            reported = true;
            stats.reports_received.inc();
            stats.report_errors.add(u64::from(!well));
        });
        match end.await {
            Ok(End::Terminal) => {
                stats.stream_terminated.inc();
                stats.active_sessions.dec();
                log::info!("{}: {} does not report its load", ClusterView::name(strong.as_ref()), host.address());
                return;
            }
            Ok(End::Transient) => {}
            Err(why) => log::debug!("load reports of {}: {why}", host.address()),
        }
        stats.stream_failures.inc();
        drop(strong);
        if reported {
            wait = BACKOFF.0;
        }
        sleep(wait.mul_f64(fastrand::f64())).await;
        wait = wait.saturating_mul(2).min(BACKOFF.1);
    }
}

/// One stream from its connection to its end. `took` hears of each report, and whether it was understood.
async fn stream(
    cluster: &Arc<Cluster>,
    orca: &OrcaSpec,
    spec: &OobSpec,
    host: &Arc<Host>,
    mut took: impl FnMut(bool),
) -> Result<End, String> {
    let patience = spec.period.saturating_mul(MISSING);
    let address = match (spec.port, host.address()) {
        (Some(port), Address::Ip(ip)) => Address::Ip(SocketAddr::new(ip.ip(), port)),
        (_, own) => own.clone(),
    };
    let transport = cluster.spec.transport_for(host, spec.criteria.as_ref());
    let socket = transport.map(|t| &t.socket);
    let alpn = [b"h2".to_vec()];
    let connecting = connect::for_check(cluster, host, &address, socket, Some(&alpn), Some(Speaks::H2));
    let (io, tls) = timeout(cluster.connect_timeout(), connecting).await.map_err(|_| "connect timeout")??;
    let client = h2::Client::connect(io, cluster.codec().clone()).await.map_err(|e| e.to_string())?;
    let request = request(&authority(cluster, spec, host, &address), if tls.is_some() { "https" } else { "http" });
    let mut stream = client.send(&request, false).map(ClientStream::<Transport>::H2).map_err(|e| e.to_string())?;
    stream.send_data(question(spec), true).map_err(|e| e.to_string())?;
    let head = timeout(patience, answer(&mut stream)).await.map_err(|_| "no answer")??;
    if let Some(end) = refused(&head, stream.is_end()) {
        return Ok(end);
    }
    let mut bytes = BytesMut::new();
    let mut until = Instant::now() + patience;
    loop {
        let next = tokio::time::timeout_at(until.into(), poll_fn(|cx| stream.poll_frame(cx))).await;
        match next.map_err(|_| "no report in time")? {
            None => return Ok(End::Transient),
            Some(Err(why)) => return Err(why.to_string()),
            Some(Ok(Frame::Trailers(trailers))) => return Ok(ended(status(&trailers))),
            Some(Ok(Frame::Data(data))) => bytes.extend_from_slice(&data),
        }
        while let Some(message) = take_message(&mut bytes)? {
            until = Instant::now() + patience;
            let report = Report::decode(message).map_err(|e| e.to_string())?;
            let weight = weight_of(orca, &report);
            if let Some(weight) = weight {
                host.orca().report(weight, millis(Instant::now()));
            }
            took(weight.is_some());
        }
    }
}

fn request(authority: &str, scheme: &str) -> RequestHead {
    let mut request = RequestHead::new(Method::POST, authority, "/xds.service.orca.v3.OpenRcaService/StreamCoreMetrics");
    request.version = HttpVersion::Http2;
    request.scheme = scheme.into();
    for (name, value) in [("content-type", "application/grpc"), ("te", "trailers")] {
        request.headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    request
}

/// The configured name, the host's, its address, the cluster's name.
fn authority(cluster: &Cluster, spec: &OobSpec, host: &Host, address: &Address) -> String {
    match (&*spec.authority, host.hostname(), address) {
        ("", "", Address::Ip(ip)) => ip.to_string(),
        ("", "", _) => ClusterView::name(cluster).to_string(),
        ("", name, _) => name.to_string(),
        (name, ..) => name.to_string(),
    }
}

/// A length-prefixed [`Request`].
fn question(spec: &OobSpec) -> Bytes {
    let message = Request { report_interval: nuncio_proto::Duration::try_from(spec.period).ok() }.encode_to_vec();
    let mut out = vec![0];
    out.extend(u32::try_from(message.len()).unwrap_or(0).to_be_bytes());
    out.extend(message);
    out.into()
}

async fn answer(stream: &mut ClientStream<Transport>) -> Result<ResponseHead, String> {
    loop {
        let head = poll_fn(|cx| stream.poll_response(cx)).await.map_err(|e| e.to_string())?;
        if !head.status.is_informational() {
            return Ok(head);
        }
    }
}

/// What a head means that is not the beginning of reports.
fn refused(head: &ResponseHead, end: bool) -> Option<End> {
    let grpc = head.headers.get_str(&http::header::CONTENT_TYPE).is_some_and(|t| t.starts_with("application/grpc"));
    if head.status == StatusCode::OK && grpc {
        return end.then(|| ended(status(&head.headers)));
    }
    // 404 is what a server says that does not know the service, in HTTP.
    let plain = (head.status == StatusCode::NOT_FOUND).then_some(UNIMPLEMENTED);
    Some(ended(status(&head.headers).filter(|_| end).or(plain)))
}

fn status(headers: &nuncio_core::Headers) -> Option<u32> {
    headers.get_str(&HeaderName::from_static("grpc-status"))?.parse().ok()
}

fn ended(status: Option<u32>) -> End {
    if status == Some(UNIMPLEMENTED) { End::Terminal } else { End::Transient }
}

/// Takes the next message that is there as a whole; empty ones say nothing and are skipped.
fn take_message(bytes: &mut BytesMut) -> Result<Option<Bytes>, String> {
    loop {
        let Some([flags, a, b, c, d]) = bytes.first_chunk::<5>().copied() else { return Ok(None) };
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if flags != 0 || length > LONGEST {
            return Err(format!("a gRPC message with flags {flags} of {length} bytes"));
        }
        if bytes.len() < 5 + length {
            return Ok(None);
        }
        bytes.advance(5);
        if length > 0 {
            return Ok(Some(bytes.split_to(length).freeze()));
        }
    }
}

#[cfg(test)]
#[path = "../tests/oob.rs"]
mod tests;
