//! Forwarding: one or more attempts until a response begins. Runs on the worker that owns the stream.

use super::attempt::{self, End, Try};
use super::deadlines::{Deadline, Deadlines};
use super::groups::Groups;
use super::hedge::Hedges;
use super::mirror::{Mirror, Tee};
use super::request_body::RequestPump;
use super::retry::RetryState;
use super::timeouts;
use super::upstream_body::{UpstreamBody, UpstreamMeter};
use super::{Answered, Streams, errors, finish, tunnel};
use crate::names::*;
use crate::stream::{Active, MeteredBody};
use http::{HeaderValue, StatusCode, header};
use nuncio_core::exchange::Exchange;
use nuncio_core::views::{self, HostView};
use nuncio_core::{Body, LocalReply, ResponseFlags, ResponseHead};
use nuncio_route::{ConnectConfig, Forward, HashResult, RouteEntry};
use nuncio_upstream::{Cluster, Host, OpenOptions, RetryGuard, RoutingPriority, UpstreamConnection, Upstreams};
use std::any::Any;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;

/// The cluster behind a view.
pub fn cluster_of(view: Arc<dyn views::ClusterView>) -> Option<Arc<Cluster>> {
    let any: Arc<dyn Any + Send + Sync> = view;
    any.downcast().ok()
}

/// One request on its way upstream.
pub(super) struct Forwarding<'a> {
    pub(super) active: &'a mut Active,
    pub(super) entry: &'a RouteEntry,
    pub(super) forward: &'a Forward,
    pub(super) cluster: Arc<Cluster>,
    pub(super) groups: Groups<'a>,
    pub(super) upstreams: Rc<Upstreams>,
    pub(super) priority: RoutingPriority,
    pub(super) retry: Option<RetryState>,
    pub(super) pump: RequestPump,
    pub(super) deadlines: Deadlines,
    pub(super) timeouts: timeouts::Timeouts,
    /// Hosts tried so far, for `previous_hosts`.
    pub(super) tried: Vec<Arc<Host>>,
    pub(super) tried_priorities: Vec<u32>,
    /// Positions of weighted clusters that attempts went to, for `refresh_cluster_on_retry`.
    pub(super) tried_clusters: Vec<usize>,
    pub(super) hash: Option<u64>,
    /// Held while a retry runs.
    pub(super) guard: Option<RetryGuard>,
    /// Attempts that run beside the newest one, where the route hedges.
    pub(super) hedges: Option<Hedges>,
    /// The attempt before this one ran into a timeout.
    pub(super) timed_out_try: bool,
}

/// What the attempts led to.
enum Reached<'a> {
    Response(Box<Try>),
    /// A connection for the payload of a request that ends here.
    Tunnel(&'a ConnectConfig, Box<UpstreamConnection>),
}

/// Forwards the request; on `Ok` the exchange holds the upstream's response.
pub async fn forward(
    active: &mut Active,
    streams: &mut Streams,
    entry: &RouteEntry,
    forward: &Forward,
) -> Result<Answered, Box<LocalReply>> {
    let config = active.config.clone();
    let Some(cluster) = active.ex.cluster.clone().and_then(cluster_of) else {
        config.stats.no_cluster.inc();
        let reply = LocalReply::new(forward.cluster_not_found_status(), "", "cluster_not_found");
        return Err(Box::new(reply.flag(ResponseFlags::NO_CLUSTER_FOUND)));
    };
    if cluster.should_drop() {
        let mut reply = LocalReply::new(503, "drop overload", "drop_overload").flag(ResponseFlags::DROP_OVERLOAD);
        reply.headers.insert(X_ENVOY_OVERLOADED.clone(), HeaderValue::from_static("true"));
        return Err(Box::new(reply));
    }
    let ex = &mut *active.ex;
    ex.info.upstream_mut().cluster = ex.cluster.clone();
    let groups = Groups::of(entry, &ex.request, &mut ex.info);
    let timeouts = timeouts::settle(forward, &config.router, config.timeouts.max_stream_duration, &mut ex.request)?;
    let retry = RetryState::new(forward.retry_policy(), &mut ex.request);
    if entry.include_request_attempt_count() && !config.router.suppress_envoy_headers {
        ex.request.headers.insert(X_ENVOY_ATTEMPT_COUNT.clone(), HeaderValue::from(1));
    }
    entry.finalize_request(&mut ex.request, &ex.info, !config.router.suppress_envoy_headers);
    let HashResult { hash, set_cookies } = match cluster.hash_policy() {
        Some(policy) => policy.hash(&ex.request, &ex.info),
        None => forward.hash(&ex.request, &ex.info),
    };
    continue_early(&config, ex, streams);

    let mut body = std::mem::take(&mut ex.request_body);
    let keep = retry.is_some() || forward.internal_redirect().is_some();
    let upgrading = streams.upgrade.is_some();
    if let Some(upgrade) = streams.upgrade.take() {
        body = MeteredBody::wrap(upgrade, &ex.info.request_meter);
    }
    let tees = start_mirrors(forward, ex, &body, timeouts.global, hash, &config);
    let limit = usize::try_from(entry.buffer_limit(u64::from(cluster.buffer_limit()))).unwrap_or(usize::MAX);
    let pump = RequestPump::new(body, keep, limit, tees);
    let mut deadlines = Deadlines::default();
    deadlines.set(Deadline::Idle, forward.idle_timeout().unwrap_or(config.timeouts.stream_idle));
    deadlines.set(Deadline::MaxDuration, timeouts.max_stream_duration);
    deadlines.set(Deadline::UpstreamMaxDuration, cluster.max_stream_duration());
    if !pump.received_all() {
        deadlines.set(Deadline::Request, config.timeouts.request);
    }
    let priority = if forward.high_priority() { RoutingPriority::High } else { RoutingPriority::Default };
    let mut this = Forwarding {
        active,
        entry,
        forward,
        cluster,
        groups,
        upstreams: Upstreams::current(),
        priority,
        retry,
        pump,
        deadlines,
        timeouts,
        tried: Vec::new(),
        tried_priorities: Vec::new(),
        tried_clusters: Vec::new(),
        hash,
        guard: None,
        hedges: (timeouts.hedged && timeouts.per_try.is_some()).then(Hedges::default),
        timed_out_try: false,
    };
    let connect = forward.connect_config().filter(|config| tunnel::ends(config, &this.active.ex.request));
    let reached = match connect {
        None => this.attempts(streams).await.map(Reached::Response),
        Some(config) => Box::pin(this.connected()).await.map(|connection| Reached::Tunnel(config, Box::new(connection))),
    };
    if this.pump.overflowed() {
        this.cluster.stats().traffic.retry_or_shadow_abandoned.inc();
    }
    let response = match reached {
        Ok(Reached::Response(response)) => response,
        Ok(Reached::Tunnel(config, connection)) => return Box::pin(this.tunnel(config, *connection)).await.map(|()| Answered::Response),
        Err(mut reply) => {
            if entry.include_attempt_count_in_response() && !config.router.suppress_envoy_headers {
                reply.headers.insert(X_ENVOY_ATTEMPT_COUNT.clone(), HeaderValue::from(this.active.ex.info.attempts));
            }
            // As Envoy, which counts what it answers for a cluster like what the cluster answers.
            if reply.status >= 500 && !errors::is_managers(&reply.details) {
                finish::charge_reply(&this.cluster, &groups, &config, &this.active.ex, this.tried.last(), reply.status);
            }
            return Err(reply);
        }
    };
    if let Some(policy) = forward.internal_redirect().filter(|policy| policy.codes.contains(&response.head.status.as_u16()))
        && let Some(body) = this.follow(policy, &response)
    {
        return Ok(Answered::Redirected(body));
    }
    this.finish(response, set_cookies, upgrading);
    Ok(Answered::Response)
}

/// Without `proxy_100_continue` the proxy itself says 100 and the upstream never sees the expectation.
fn continue_early(config: &crate::config::HcmConfig, ex: &mut Exchange, streams: &Streams) {
    if config.proxy_100_continue
        || !ex.request.headers.get(&header::EXPECT).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"100-continue"))
    {
        return;
    }
    ex.request.headers.remove(&header::EXPECT);
    streams.informational.send(&ResponseHead::new(StatusCode::CONTINUE));
}

/// Sends the copies that the route asks for and gives the tees that feed them.
fn start_mirrors(
    forward: &Forward,
    ex: &Exchange,
    body: &Body,
    timeout: Option<std::time::Duration>,
    hash: Option<u64>,
    config: &crate::config::HcmConfig,
) -> Vec<Tee> {
    let mut tees = Vec::new();
    for policy in forward.mirrors() {
        if !policy.selects(&config.server.runtime, fastrand::u64(..)) {
            continue;
        }
        let Some(cluster) = policy.cluster(&ex.request).and_then(|slot| slot.get()).and_then(cluster_of) else { continue };
        let mut head = ex.request.clone();
        policy.finalize(&mut head, &ex.info);
        let body = match body {
            Body::Empty => Body::Empty,
            Body::Full(data) => Body::Full(data.clone()),
            Body::Stream(_) => {
                let (tee, source) = Tee::new();
                tees.push(tee);
                Body::Stream(source)
            }
        };
        Mirror { cluster, head, body, timeout }.send(&ex.info, hash);
    }
    tees
}

impl Forwarding<'_> {
    /// Runs one attempt at `host`.
    pub(super) async fn attempt(&mut self, host: &Arc<Host>, streams: &Streams) -> End {
        let config = self.active.config.clone();
        let ex = &mut *self.active.ex;
        if ex.info.attempts > 1 {
            let global = self.timeouts.global.unwrap_or_default();
            let elapsed = self.deadlines.left(Deadline::Global).map_or(std::time::Duration::ZERO, |left| global.saturating_sub(left));
            self.timeouts.tell(&mut ex.request, elapsed);
            if self.entry.vhost().include_is_timeout_retry_header {
                let why = if self.timed_out_try { "true" } else { "false" };
                ex.request.headers.insert(X_ENVOY_IS_TIMEOUT_RETRY.clone(), HeaderValue::from_static(why));
            }
            if self.entry.include_request_attempt_count() && !config.router.suppress_envoy_headers {
                ex.request.headers.insert(X_ENVOY_ATTEMPT_COUNT.clone(), HeaderValue::from(ex.info.attempts));
            }
        }
        if self.forward.auto_host_rewrite() {
            let name = HostView::hostname(host.as_ref());
            if !name.is_empty() {
                self.forward.rewrite_host(&mut ex.request, name, !config.router.suppress_envoy_headers);
            }
        }
        finish::begin_attempt(&mut ex.info, host);
        let (ex, ticks) = self.active.ticking();
        let options = OpenOptions::from_stream(&ex.info, self.priority);
        let mut sent = attempt::Sent::default();
        let run = attempt::Attempt {
            request: &ex.request,
            cluster: &self.cluster,
            groups: self.groups,
            host,
            upstreams: &self.upstreams,
            pump: &mut self.pump,
            deadlines: &mut self.deadlines,
            timeouts: &self.timeouts,
            idle: self.forward.idle_timeout().unwrap_or(config.timeouts.stream_idle),
            streams,
            proxy_continue: config.proxy_100_continue,
            hedges: self.hedges.as_mut(),
            retry: self.retry.as_ref(),
            sent: &mut sent,
        };
        let end = if config.log_options.interval.is_none() {
            run.run(&options).await
        } else {
            let mut run = Box::pin(run.run(&options));
            poll_fn(|cx| {
                ticks.poll(ex, &config, cx);
                run.as_mut().poll(cx)
            })
            .await
        };
        let ex = &mut *self.active.ex;
        finish::note_sent(&mut ex.info, &sent);
        if let End::Upstream { stream: Some(stream), .. } | End::Deadline(_, Some(stream)) = &end {
            finish::note_connection(&mut ex.info, stream);
        }
        if let End::Upstream { error, .. } = &end {
            ex.info.upstream_mut().failure = errors::transport_reason(error).map(str::to_string);
        }
        end
    }

    /// Puts the final response into the exchange.
    fn finish(self, response: Box<Try>, cookies: impl IntoIterator<Item = HeaderValue>, upgrading: bool) {
        let Self { active, entry, mut pump, mut deadlines, cluster, groups, forward, .. } = self;
        let config = active.config.clone();
        let ex = &mut *active.ex;
        pump.forget();
        deadlines.set(Deadline::PerTry, None);
        let Try { mut head, stream, service_time } = *response;
        let status = finish::outlier_code(&ex.request, &head);
        finish::charge(&cluster, &groups, &config, ex, stream.host(), status, &head);
        if !config.router.suppress_envoy_headers {
            // It counts from the end of the request, which an upgrade does not have and an early answer does not wait for.
            if !upgrading && pump.received_all() {
                let millis = u64::try_from(service_time.as_millis()).unwrap_or(0);
                head.headers.insert(X_ENVOY_UPSTREAM_SERVICE_TIME.clone(), HeaderValue::from(millis));
            }
        }
        head.headers.remove(&X_ENVOY_IMMEDIATE_HEALTH_CHECK_FAIL);
        for cookie in cookies {
            head.headers.append(header::SET_COOKIE, cookie);
        }
        ex.info.details = Some("via_upstream".into());
        ex.info.response_code = head.status.as_u16();
        finish::note_upstream(&mut ex.info, &stream);
        entry.finalize_response(&mut head, &ex.request, &ex.info);
        if entry.include_attempt_count_in_response() && !config.router.suppress_envoy_headers {
            head.headers.insert(X_ENVOY_ATTEMPT_COUNT.clone(), HeaderValue::from(ex.info.attempts));
        }
        let idle = forward.idle_timeout().unwrap_or(config.timeouts.stream_idle);
        if stream.is_end() && pump.is_done() {
            let upstream = ex.info.upstream_mut();
            upstream.wire_tx_bytes = stream.bytes_written();
            upstream.wire_rx_bytes = stream.bytes_read();
            ex.response_body = Body::Empty;
        } else {
            let meter = Rc::new(UpstreamMeter::default());
            active.upstream_meter = Some(meter.clone());
            active.ex.response_body = Body::Stream(Box::new(UpstreamBody::new(stream, pump, deadlines, idle, meter)));
        }
        active.ex.response = Some(head);
    }
}
