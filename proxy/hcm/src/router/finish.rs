//! What a response means for stats and outlier detection, and what is kept of its upstream. Runs on a worker.

use super::attempt::Sent;
use super::groups::Groups;
use super::retry;
use crate::config::HcmConfig;
use crate::names::{X_ENVOY_INTERNAL, X_ENVOY_UPSTREAM_CANARY};
use nuncio_core::grpc::http_from_grpc;
use nuncio_core::info::UpstreamInfo;
use nuncio_core::views::HostView;
use nuncio_core::{Exchange, RequestHead, ResponseHead, StreamInfo};
use nuncio_proto::envoy::config::core::v3::Locality;
use nuncio_upstream::{Charge, Cluster, Host, UpstreamStream};
use std::sync::Arc;

/// The code that outlier detection counts: the HTTP status, or what a gRPC status in the headers stands for.
pub fn outlier_code(request: &RequestHead, head: &ResponseHead) -> u16 {
    match retry::grpc_status(head) {
        Some(status) if request.is_grpc() => http_from_grpc(status),
        _ => head.status.as_u16(),
    }
}

/// What a response is counted as. `head` is none for what the proxy answers itself.
fn kind<'a>(config: &'a HcmConfig, request: &RequestHead, host: Option<&'a Arc<Host>>, head: Option<&ResponseHead>) -> Charge<'a> {
    let said = head.and_then(|h| h.headers.get(&X_ENVOY_UPSTREAM_CANARY)).is_some_and(|v| v.as_bytes() == b"true");
    let zone = |locality: &'a Locality| Some(locality.zone.as_str()).filter(|z| !z.is_empty());
    let ours = config.server.node.locality.as_ref().and_then(zone);
    let theirs = host.and_then(|h| h.locality()).and_then(zone);
    Charge {
        internal: request.headers.contains(&X_ENVOY_INTERNAL),
        canary: said || host.is_some_and(|h| h.canary()),
        zones: ours.zip(theirs),
    }
}

/// Counts a response in the stats of its cluster and groups. `code` is what outlier detection counts.
pub fn charge(
    cluster: &Arc<Cluster>,
    groups: &Groups<'_>,
    config: &HcmConfig,
    ex: &Exchange,
    host: &Arc<Host>,
    code: u16,
    head: &ResponseHead,
) {
    if !config.router.dynamic_stats || ex.info.health_check {
        return;
    }
    let code = if config.router.suppress_grpc_failure_stats { head.status.as_u16() } else { code };
    let how = kind(config, &ex.request, Some(host), Some(head));
    let millis = u64::try_from(ex.info.elapsed().as_millis()).unwrap_or(u64::MAX);
    let stats = cluster.stats();
    stats.charge_response(code, &how);
    stats.charge_time(millis, &how);
    groups.each(|group| {
        group.charge_response(code);
        group.charge_time(millis);
    });
}

/// Counts a response that a retry replaces, under `retry.`.
pub fn charge_retried(cluster: &Arc<Cluster>, config: &HcmConfig, status: u16) {
    if config.router.dynamic_stats {
        cluster.stats().charge_retried(status);
    }
}

/// Counts what the proxy answers itself for a cluster (`Router::Filter::chargeUpstreamAbort`).
pub fn charge_reply(cluster: &Arc<Cluster>, groups: &Groups<'_>, config: &HcmConfig, ex: &Exchange, host: Option<&Arc<Host>>, status: u16) {
    if !config.router.dynamic_stats || ex.info.health_check {
        return;
    }
    cluster.stats().charge_response(status, &kind(config, &ex.request, host, None));
    groups.each(|group| group.charge_response(status));
}

/// Forgets the attempt before, but for what was tried: what is told of the upstream is told of this attempt.
pub fn begin_attempt(info: &mut StreamInfo, host: &Arc<Host>) {
    let upstream = info.upstream_mut();
    let mut attempted = std::mem::take(&mut upstream.attempted);
    attempted.push(host.clone());
    *upstream = UpstreamInfo { cluster: upstream.cluster.take(), host: Some(host.clone()), attempted, ..UpstreamInfo::default() };
}

/// Keeps when the request was sent.
pub fn note_sent(info: &mut StreamInfo, sent: &Sent) {
    let start = info.start_instant;
    let upstream = info.upstream_mut();
    upstream.first_tx = sent.first.map(|at| at.saturating_duration_since(start));
    upstream.last_tx = sent.last.map(|at| at.saturating_duration_since(start));
}

/// Keeps what formatters ask of the upstream connection.
pub fn note_upstream(info: &mut StreamInfo, stream: &UpstreamStream) {
    let (start, now) = (info.start_instant, info.elapsed());
    note_connection(info, stream);
    let upstream = info.upstream_mut();
    upstream.first_rx = Some(now);
    upstream.last_rx = stream.is_end().then(|| start.elapsed());
}

/// Keeps what is known of the connection as soon as there is a stream.
pub fn note_connection(info: &mut StreamInfo, stream: &UpstreamStream) {
    let facts = stream.info();
    let upstream = info.upstream_mut();
    upstream.local.clone_from(&facts.local);
    upstream.remote.clone_from(&facts.remote);
    upstream.tls.clone_from(&facts.tls);
    upstream.protocol = facts.protocol;
    upstream.connection_id = facts.connection_id;
    upstream.connection_streams = facts.connection_streams;
    upstream.connect_time = facts.connect_time;
    upstream.connect = facts.connect;
    upstream.wire_tx_bytes = stream.bytes_written();
    upstream.wire_rx_bytes = stream.bytes_read();
    upstream.filter_state = facts.filter_state.clone();
}
