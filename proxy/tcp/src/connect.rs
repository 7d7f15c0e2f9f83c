//! From a new connection to one upstream: cluster, host, attempts. Runs on the worker that owns the connection.

use crate::config::{Config, Target, state};
use crate::upstream::Upstream;
use nuncio_core::filter_state::ApplicationProtocols;
use nuncio_core::views::ClusterView;
use nuncio_core::{ByteStr, ResponseFlags, StreamError, StreamInfo};
use nuncio_upstream::forward_proxy;
use nuncio_upstream::{Cluster, LbContext, OpenOptions, RoutingPriority, Upstreams, application_protocols};
use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

/// Filter state that the transport socket obeys, copied because it is needed across waits.
struct Wishes {
    alpn: Option<ApplicationProtocols>,
    sni: Option<String>,
    sans: Option<Vec<String>>,
}

impl Wishes {
    fn of(info: &StreamInfo) -> Self {
        let alpn = || application_protocols(&info.connection.filter_state.borrow()).cloned();
        let named = || {
            state(info, "envoy.network.application_protocols")
                .map(|list| ApplicationProtocols(list.split(',').map(|p| ByteStr::from(p.trim())).collect()))
        };
        Self {
            alpn: application_protocols(&info.filter_state).cloned().or_else(alpn).or_else(named),
            sni: state(info, "envoy.network.upstream_server_name"),
            sans: state(info, "envoy.network.upstream_subject_alt_names")
                .map(|list| list.split(',').map(|s| s.trim().to_string()).collect()),
        }
    }
}

fn cluster_of(target: &Target) -> Option<(Arc<dyn ClusterView>, Arc<Cluster>)> {
    let view = target.slot.get()?;
    let any: Arc<dyn Any + Send + Sync> = view.clone();
    Some((view, any.downcast().ok()?))
}

/// Pause before attempt number `attempt` (2 is the first that has one), with full jitter.
fn pause(backoff: Option<(Duration, Duration)>, attempt: u32) -> Duration {
    let Some((base, max)) = backoff else { return Duration::ZERO };
    let doubled = base.saturating_mul(1_u32.checked_shl(attempt.saturating_sub(2)).unwrap_or(u32::MAX));
    doubled.min(max).mul_f64(fastrand::f64())
}

/// Says why there will be no connection. The reasons are Envoy's, which spells them so.
fn fail(info: &mut StreamInfo, flag: ResponseFlags, reason: &'static str) -> Option<Upstream> {
    info.flags.set(flag);
    info.connection.local_close.set(Some(reason));
    None
}

/// Connects. None if that failed; `info` says why.
pub(crate) async fn connect(config: &Config, info: &mut StreamInfo) -> Option<Upstream> {
    let Some(target) = config.target(info) else {
        config.stats.cx_no_route.inc();
        return fail(info, ResponseFlags::NO_CLUSTER_FOUND, "tcp_initializion_failure:3");
    };
    forward_proxy::wait(info).await;
    if let Some(tlvs) = &config.tlvs {
        tlvs.apply(info);
    }
    let disabled = || state(info, "envoy.tcp_proxy.disable_tunneling").is_some_and(|said| said == "true");
    let tunneling = config.tunneling.as_ref().filter(|_| !disabled());
    let upstreams = Upstreams::current();
    let wishes = Wishes::of(info);
    let hash = config.hash.iter().find_map(|h| h.of(info));
    loop {
        // Asked anew for every attempt: the cluster may come, change or go in between.
        let Some((view, cluster)) = cluster_of(&target) else {
            config.stats.cx_no_route.inc();
            return fail(info, ResponseFlags::NO_CLUSTER_FOUND, "tcp_initializion_failure:3");
        };
        info.upstream_mut().cluster = Some(view.clone());
        if info.attempts >= config.max_attempts {
            cluster.stats().traffic.upstream_cx_connect_attempts_exceeded.inc();
            return fail(info, ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED, "tcp_initializion_failure:0");
        }
        if info.attempts > 0 && config.backoff.is_some() {
            tokio::time::sleep(pause(config.backoff, info.attempts + 1)).await;
        }
        let context = LbContext {
            hash: if cluster.hash_policy().is_some() { cluster.hash_of_stream(info) } else { hash },
            downstream: Some(&info.connection),
            stream: Some(info),
            metadata_match: target.metadata.as_deref(),
            ..LbContext::default()
        };
        forward_proxy::prepare(&cluster, &context).await;
        let Some(host) = upstreams.pick(&cluster, &context) else {
            return fail(info, ResponseFlags::NO_HEALTHY_UPSTREAM, "tcp_initializion_failure:1");
        };
        cluster.tell_selected(&host, info);
        let connection = info.connection.clone();
        let options = OpenOptions {
            priority: RoutingPriority::Default,
            downstream: Some(&connection),
            alpn: wishes.alpn.as_ref(),
            sni: wishes.sni.as_deref(),
            sans: wishes.sans.as_deref(),
            ..OpenOptions::default()
        };
        let result = match tunneling {
            None => upstreams.connect(&cluster, &host, &options).await.map(|c| Upstream::Plain(Box::new(c))),
            Some(tunneling) => tunneling.open(&upstreams, &cluster, &host, info, &options).await.map(|t| Upstream::Tunnel(Box::new(t))),
        };
        if matches!(result, Err(StreamError::Overflow)) {
            return fail(info, ResponseFlags::UPSTREAM_OVERFLOW, "tcp_initializion_failure:2");
        }
        info.attempts += 1;
        let upstream = info.upstream_mut();
        upstream.attempted.push(host.clone());
        upstream.host = Some(host.clone());
        match result {
            Ok(connection) => {
                let attempted = std::mem::take(&mut upstream.attempted);
                *upstream = connection.info().clone();
                upstream.attempted = attempted;
                // A tunnel's protocol is not that of the bytes in it.
                upstream.protocol = None;
                upstream.cluster = Some(view);
                upstream.host = Some(host);
                return Some(connection);
            }
            Err(error) => {
                if let StreamError::ConnectFailed(why) | StreamError::ConnectionClosed(why) = error {
                    upstream.failure = Some(why).filter(|w| !w.is_empty());
                }
                info.flags.set(ResponseFlags::UPSTREAM_CONNECTION_FAILURE);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_largest() {
        let backoff = Some((Duration::from_millis(10), Duration::from_millis(35)));
        for (attempt, limit) in [(2, 10), (3, 20), (4, 35), (40, 35), (4_000_000, 35)] {
            for _ in 0..50 {
                assert!(pause(backoff, attempt) <= Duration::from_millis(limit));
            }
        }
        assert_eq!(pause(None, 2), Duration::ZERO);
    }
}
