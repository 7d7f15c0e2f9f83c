//! Forwarding: one or more attempts until a response begins. Runs on the worker that owns the stream.

use super::Streams;
use super::attempt::{self, End, Try};
use super::deadlines::{Deadline, Deadlines};
use super::groups::Groups;
use super::mirror::{Mirror, Tee};
use super::request_body::RequestPump;
use super::retry::{Failure, RetryState};
use super::timeouts;
use super::upstream_body::{UpstreamBody, UpstreamMeter};
use super::{errors, finish};
use crate::names::*;
use crate::stream::{Active, MeteredBody};
use http::{HeaderValue, StatusCode, header};
use nuncio_core::exchange::Exchange;
use nuncio_core::views::{self, HostView};
use nuncio_core::{Body, LocalReply, ResponseFlags, ResponseHead, StreamError};
use nuncio_route::{Forward, HashResult, RetryPolicy, RouteEntry};
use nuncio_upstream::{Cluster, Host, LbContext, OpenOptions, OverrideHost, PriorityRetry, RetryGuard, RoutingPriority, Upstreams};
use std::any::Any;
use std::rc::Rc;
use std::sync::Arc;

/// The gRPC status of a stream that took too long.
const DEADLINE_EXCEEDED: u32 = 4;

/// The cluster behind a view.
pub fn cluster_of(view: Arc<dyn views::ClusterView>) -> Option<Arc<Cluster>> {
    let any: Arc<dyn Any + Send + Sync> = view;
    any.downcast().ok()
}

/// One request on its way upstream.
struct Forwarding<'a> {
    active: &'a mut Active,
    entry: &'a RouteEntry,
    forward: &'a Forward,
    cluster: Arc<Cluster>,
    groups: Groups<'a>,
    upstreams: Rc<Upstreams>,
    priority: RoutingPriority,
    retry: Option<RetryState>,
    pump: RequestPump,
    deadlines: Deadlines,
    timeouts: timeouts::Timeouts,
    /// Hosts tried so far, for `previous_hosts`.
    tried: Vec<Arc<Host>>,
    tried_priorities: Vec<u32>,
    hash: Option<u64>,
    /// Held while a retry runs.
    guard: Option<RetryGuard>,
}

/// Forwards the request; on `Ok` the exchange holds the upstream's response.
pub async fn forward(active: &mut Active, streams: &mut Streams, entry: &RouteEntry, forward: &Forward) -> Result<(), Box<LocalReply>> {
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
    entry.finalize_request(&mut ex.request, &ex.info, !config.router.suppress_envoy_headers);
    let HashResult { hash, set_cookies } = forward.hash(&ex.request, &ex.info);
    continue_early(&config, ex, streams);

    let mut body = std::mem::take(&mut ex.request_body);
    let keep = retry.is_some() && streams.upgrade.is_none();
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
        hash,
        guard: None,
    };
    let response = match this.attempts(streams).await {
        Ok(response) => response,
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
    this.finish(response, set_cookies, upgrading);
    Ok(())
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
    /// Attempts until one gives a response that is final.
    async fn attempts(&mut self, streams: &Streams) -> Result<Try, Box<LocalReply>> {
        loop {
            self.active.ex.info.attempts += 1;
            let host = self.pick()?;
            let end = self.attempt(&host, streams).await;
            self.tried_priorities.push(host.priority());
            self.tried.push(host.clone());
            let (failure_reply, delay) = match end {
                End::Response(response) => {
                    self.report_response(&host, &response);
                    match self.retry_response(&response.head) {
                        Some(delay) => {
                            finish::charge_retried(&self.cluster, &self.active.config, response.head.status.as_u16());
                            (None, delay)
                        }
                        None => return Ok(*response),
                    }
                }
                End::Upstream { error, processed, .. } => {
                    self.report_reset(&host, &error);
                    let delay = self.retry_after(&Failure::Reset { error: &error, processed });
                    match delay {
                        Some(delay) => (None, delay),
                        None => (Some(errors::before_response(&error, self.active.ex.info.attempts > 1)), std::time::Duration::ZERO),
                    }
                }
                End::Deadline(which, _) => {
                    self.report_timeout(&host, which);
                    let delay = match which {
                        Deadline::PerTry | Deadline::PerTryIdle => self.retry_after(&Failure::PerTryTimeout),
                        _ => None,
                    };
                    match delay {
                        Some(delay) => (None, delay),
                        None => (Some(self.timed_out(which)), std::time::Duration::ZERO),
                    }
                }
                End::Downstream(error) => return Err(downstream_failed(&error)),
            };
            if let Some(reply) = failure_reply {
                return Err(reply);
            }
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            if !self.pump.rewind() {
                return Err(errors::before_response(&StreamError::LocalReset("request_body_not_kept"), true));
            }
        }
    }

    /// Hosts that retry host predicates reject. The first attempt takes any.
    fn avoided(&self, policy: &RetryPolicy) -> Vec<Arc<Host>> {
        let mut avoided = Vec::new();
        if self.tried.is_empty() {
            return avoided;
        }
        if policy.previous_hosts {
            avoided.extend(self.tried.iter().cloned());
        }
        if policy.omit_canary_hosts {
            avoided.extend(self.cluster.hosts().into_iter().filter(|h| h.canary()));
        }
        for unwanted in &policy.omit_host_metadata {
            let unwanted = views::filter_metadata(Some(unwanted), "envoy.lb");
            avoided.extend(self.cluster.hosts().into_iter().filter(|h| {
                let mine = views::filter_metadata(HostView::metadata(h.as_ref()), "envoy.lb");
                unwanted.zip(mine).is_some_and(|(u, m)| u.fields.iter().all(|(k, v)| m.fields.get(k) == Some(v)))
            }));
        }
        avoided
    }

    fn pick(&self) -> Result<Arc<Host>, Box<LocalReply>> {
        let policy = self.forward.retry_policy();
        let ex = &*self.active.ex;
        let avoid = policy.map(|p| self.avoided(p)).unwrap_or_default();
        let retry_priority = policy
            .and_then(|p| p.previous_priorities_update_frequency)
            .filter(|_| !self.tried.is_empty())
            .map(|update_frequency| PriorityRetry { update_frequency, attempted: &self.tried_priorities });
        // A retry is free to go elsewhere, as in Envoy.
        let wanted = ex.override_host.as_deref().filter(|_| self.tried.is_empty());
        let lb = LbContext {
            hash: self.hash,
            downstream: Some(&ex.info.connection),
            stream: Some(&ex.info),
            request: Some(&ex.request),
            metadata_match: self.entry.metadata_match(),
            avoid: &avoid,
            attempts: policy.map_or(1, |p| p.host_selection_attempts),
            override_host: wanted.map(|w| OverrideHost { address: &w.address, strict: w.strict }),
            retry_priority,
        };
        match self.upstreams.pick(&self.cluster, &lb) {
            Some(host) => Ok(host),
            None => {
                let status = wanted.filter(|w| w.strict).map_or(503, |w| w.status);
                Err(Box::new(
                    LocalReply::new(status, "no healthy upstream", "no_healthy_upstream").flag(ResponseFlags::NO_HEALTHY_UPSTREAM),
                ))
            }
        }
    }

    async fn attempt(&mut self, host: &Arc<Host>, streams: &Streams) -> End {
        let config = self.active.config.clone();
        let ex = &mut *self.active.ex;
        if ex.info.attempts > 1 {
            let global = self.timeouts.global.unwrap_or_default();
            let elapsed = self.deadlines.left(Deadline::Global).map_or(std::time::Duration::ZERO, |left| global.saturating_sub(left));
            self.timeouts.tell(&mut ex.request, elapsed);
        }
        if self.entry.include_request_attempt_count() && !config.router.suppress_envoy_headers {
            ex.request.headers.insert(X_ENVOY_ATTEMPT_COUNT.clone(), HeaderValue::from(ex.info.attempts));
        }
        if self.forward.auto_host_rewrite() {
            let name = HostView::hostname(host.as_ref());
            if !name.is_empty() {
                self.forward.rewrite_host(&mut ex.request, name, !config.router.suppress_envoy_headers);
            }
        }
        let upstream = ex.info.upstream_mut();
        upstream.host = Some(host.clone());
        upstream.failure = None;
        upstream.attempted.push(HostView::address(host.as_ref()).clone());
        let options = OpenOptions::from_stream(&ex.info, self.priority);
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
        };
        let mut end = run.run(&options).await;
        if let End::Upstream { stream, .. } | End::Deadline(_, stream) = &mut end
            && let Some(stream) = stream.take()
        {
            finish::note_connection(&mut ex.info, &stream);
        }
        if let End::Upstream { error, .. } = &end {
            ex.info.upstream_mut().failure = errors::transport_reason(error).map(str::to_string);
        }
        end
    }

    /// The delay before another attempt, if the policy, the body and the budgets allow one.
    fn retry_response(&mut self, head: &ResponseHead) -> Option<std::time::Duration> {
        let wait = self.retry.as_ref().map(|r| r.back_off(Some(head)));
        self.allow(&Failure::Response(head)).then_some(wait).flatten()
    }

    fn retry_after(&mut self, failure: &Failure<'_>) -> Option<std::time::Duration> {
        let allowed = self.allow(failure);
        allowed.then(|| self.retry.as_ref().map_or(std::time::Duration::ZERO, |r| r.back_off(None)))
    }

    fn allow(&mut self, failure: &Failure<'_>) -> bool {
        let traffic = &self.cluster.stats().traffic;
        let Some(retry) = &mut self.retry else { return unseen(failure) && self.once_for_reuse() };
        if !retry.wants(failure) {
            return unseen(failure) && self.once_for_reuse();
        }
        if !self.pump.can_replay() {
            traffic.retry_or_shadow_abandoned.inc();
            return false;
        }
        if retry.is_exhausted() {
            traffic.upstream_rq_retry_limit_exceeded.inc();
            self.groups.each(|group| group.traffic.upstream_rq_retry_limit_exceeded.inc());
            self.active.ex.info.flags.set(ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED);
            return false;
        }
        self.guard = None;
        self.guard = self.cluster.try_retry(self.priority);
        if self.guard.is_none() {
            traffic.upstream_rq_retry_overflow.inc();
            self.groups.each(|group| group.traffic.upstream_rq_retry_overflow.inc());
            self.active.ex.info.flags.set(ResponseFlags::UPSTREAM_OVERFLOW);
            return false;
        }
        traffic.upstream_rq_retry.inc();
        self.groups.each(|group| group.traffic.upstream_rq_retry.inc());
        traffic.upstream_rq_retry_backoff_exponential.inc();
        retry.take()
    }

    /// A request that no upstream can have seen may go again once without a policy: a reused connection that the server closed
    /// in the same moment is nobody's fault.
    fn once_for_reuse(&mut self) -> bool {
        self.active.ex.info.attempts == 1 && self.pump.rewind()
    }

    fn report_response(&mut self, host: &Arc<Host>, response: &Try) {
        let status = finish::outlier_code(&self.active.ex.request, &response.head);
        self.cluster.report(host, nuncio_upstream::Outcome::HttpCode(status));
        let stats = &host.stats;
        let counter = if status >= 500 { &stats.rq_error } else { &stats.rq_success };
        counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }

    fn report_reset(&mut self, host: &Arc<Host>, error: &StreamError) {
        let traffic = &self.cluster.stats().traffic;
        match error {
            StreamError::Overflow => return,
            StreamError::RemoteReset(_) | StreamError::RemoteRefused => traffic.upstream_rq_rx_reset.inc(),
            _ => {}
        }
        host.stats.rq_error.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        // Connection failures were reported when they happened.
        if !matches!(error, StreamError::ConnectFailed(_) | StreamError::ConnectTimeout) {
            self.cluster.report(host, nuncio_upstream::Outcome::LocalOriginConnectFailed);
        }
    }

    fn report_timeout(&mut self, host: &Arc<Host>, which: Deadline) {
        let traffic = &self.cluster.stats().traffic;
        match which {
            Deadline::Global => {
                traffic.upstream_rq_timeout.inc();
                self.groups.each(|group| group.traffic.upstream_rq_timeout.inc());
            }
            Deadline::PerTry => traffic.upstream_rq_per_try_timeout.inc(),
            Deadline::PerTryIdle => traffic.upstream_rq_per_try_idle_timeout.inc(),
            Deadline::UpstreamMaxDuration => return traffic.upstream_rq_max_duration_reached.inc(),
            Deadline::Idle | Deadline::Request | Deadline::MaxDuration => return,
        }
        host.stats.rq_timeout.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.cluster.report(host, nuncio_upstream::Outcome::LocalOriginTimeout);
    }

    fn timed_out(&self, which: Deadline) -> Box<LocalReply> {
        let stats = &self.active.config.stats;
        let upstream = |details| LocalReply::new(504, "upstream request timeout", details).flag(ResponseFlags::UPSTREAM_REQUEST_TIMEOUT);
        let reply = match which {
            Deadline::Global if self.timeouts.alt_response => {
                LocalReply::new(204, "", errors::RESPONSE_TIMEOUT).flag(ResponseFlags::UPSTREAM_REQUEST_TIMEOUT)
            }
            Deadline::Global => upstream(errors::RESPONSE_TIMEOUT),
            Deadline::PerTry => upstream(errors::PER_TRY_TIMEOUT),
            Deadline::PerTryIdle => upstream(errors::PER_TRY_IDLE_TIMEOUT),
            Deadline::Idle => {
                stats.downstream_rq_idle_timeout.inc();
                let status = if self.pump.received_all() { 504 } else { 408 };
                LocalReply::new(status, "stream timeout", errors::STREAM_IDLE_TIMEOUT).flag(ResponseFlags::STREAM_IDLE_TIMEOUT)
            }
            Deadline::MaxDuration => {
                stats.downstream_rq_max_duration_reached.inc();
                let mut reply = LocalReply::new(504, "downstream duration timeout", errors::MAX_DURATION);
                reply.grpc_status = Some(DEADLINE_EXCEEDED);
                reply
            }
            Deadline::UpstreamMaxDuration => LocalReply::new(504, "upstream max stream duration reached", errors::UPSTREAM_MAX_DURATION)
                .flag(ResponseFlags::UPSTREAM_MAX_STREAM_DURATION_REACHED),
            Deadline::Request => {
                stats.downstream_rq_timeout.inc();
                LocalReply::new(408, "request timeout", "request_overall_timeout")
            }
        };
        Box::new(reply)
    }

    /// Puts the final response into the exchange.
    fn finish(self, response: Try, cookies: impl IntoIterator<Item = HeaderValue>, upgrading: bool) {
        let Self { active, entry, mut pump, mut deadlines, cluster, groups, forward, retry, .. } = self;
        let config = active.config.clone();
        let ex = &mut *active.ex;
        if retry.is_some() && ex.info.attempts > 1 && response.head.status.as_u16() < 500 {
            cluster.stats().traffic.upstream_rq_retry_success.inc();
            groups.each(|group| group.traffic.upstream_rq_retry_success.inc());
        }
        pump.forget();
        deadlines.set(Deadline::PerTry, None);
        let Try { mut head, stream, service_time } = response;
        let status = finish::outlier_code(&ex.request, &head);
        finish::charge(&cluster, &groups, &config, ex, stream.host(), status, &head);
        if !config.router.suppress_envoy_headers {
            // Of an upgrade there is no end of the request to count from.
            if !upgrading {
                let millis = u64::try_from(service_time.as_millis()).unwrap_or(0);
                head.headers.insert(X_ENVOY_UPSTREAM_SERVICE_TIME.clone(), HeaderValue::from(millis));
            }
            if entry.include_attempt_count_in_response() {
                head.headers.insert(X_ENVOY_ATTEMPT_COUNT.clone(), HeaderValue::from(ex.info.attempts));
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

/// Whether the upstream cannot have seen anything of the request.
fn unseen(failure: &Failure<'_>) -> bool {
    matches!(failure, Failure::Reset { error: StreamError::ConnectionClosed(_), processed: false })
}

/// The reply to a request whose body broke off; status 0 if the client is gone.
fn downstream_failed(error: &StreamError) -> Box<LocalReply> {
    let (status, body, details) = match error {
        StreamError::Protocol(detail) => (400, "Bad Request", *detail),
        StreamError::TooLarge(detail) => (413, "Payload Too Large", *detail),
        _ => return Box::new(LocalReply::new(0, "", "downstream_remote_disconnect")),
    };
    Box::new(LocalReply::new(status, body, details).flag(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR))
}
