//! What a response means for stats and outlier detection, and what is kept of its upstream. Runs on a worker.

use super::retry;
use crate::config::HcmConfig;
use crate::local_reply::http_from_grpc;
use crate::names::X_ENVOY_INTERNAL;
use nuncio_core::{RequestHead, ResponseHead, StreamInfo};
use nuncio_upstream::{Charge, Cluster, Host, UpstreamStream};
use std::sync::Arc;
use std::time::Duration;

/// The code that outlier detection counts: the HTTP status, or what a gRPC status in the headers stands for.
pub fn outlier_code(request: &RequestHead, head: &ResponseHead) -> u16 {
    match retry::grpc_status(head) {
        Some(status) if request.is_grpc() => http_from_grpc(status),
        _ => head.status.as_u16(),
    }
}

/// Counts a response in the stats of its cluster.
pub fn charge(
    cluster: &Arc<Cluster>,
    config: &HcmConfig,
    request: &RequestHead,
    host: &Arc<Host>,
    code: u16,
    status: u16,
    elapsed: Duration,
) {
    if !config.router.dynamic_stats {
        return;
    }
    let code = if config.router.suppress_grpc_failure_stats { status } else { code };
    let how = Charge { internal: request.headers.contains(&X_ENVOY_INTERNAL), canary: host.canary(), zones: None };
    let stats = cluster.stats();
    stats.charge_response(code, &how);
    stats.charge_time(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX), &how);
}

/// Counts a response that a retry replaces, under `retry.`.
pub fn charge_retried(cluster: &Arc<Cluster>, config: &HcmConfig, status: u16) {
    if config.router.dynamic_stats {
        cluster.stats().charge_retried(status);
    }
}

/// Counts what the proxy answers itself for a cluster (`Router::Filter::chargeUpstreamAbort`).
pub fn charge_reply(cluster: &Arc<Cluster>, config: &HcmConfig, request: &RequestHead, host: Option<&Arc<Host>>, status: u16) {
    if !config.router.dynamic_stats {
        return;
    }
    let canary = host.is_some_and(|h| h.canary());
    cluster.stats().charge_response(status, &Charge { internal: request.headers.contains(&X_ENVOY_INTERNAL), canary, zones: None });
}

/// Keeps what formatters ask of the upstream connection.
pub fn note_upstream(info: &mut StreamInfo, stream: &UpstreamStream) {
    let now = info.elapsed();
    note_connection(info, stream);
    let upstream = info.upstream_mut();
    upstream.first_rx = Some(now);
    upstream.last_rx = Some(now);
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
    upstream.filter_state = facts.filter_state.clone();
}
