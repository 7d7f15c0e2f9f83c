//! Attempts one after another, or beside each other with hedging, until one gives a final response. Runs on the worker that owns
//! the stream. Source: Envoy's `Router::Filter` (`maybeRetryReset`, `onUpstreamHeaders`, `onPerTryTimeout`).

use super::Streams;
use super::attempt::{End, Try};
use super::deadlines::Deadline;
use super::errors;
use super::finish;
use super::forward::{Forwarding, cluster_of};
use super::hedge::{Flight, Hedges, Judge};
use super::report::downstream_failed;
use super::retry::Failure;
use super::select::no_healthy_upstream;
use nuncio_core::{LocalReply, ResponseFlags, ResponseHead, StreamError};
use nuncio_upstream::forward_proxy;
use nuncio_upstream::{Host, UpstreamStream};
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::{Duration, Instant};

/// What the end of an attempt leads to.
enum Verdict {
    Final(Box<Try>),
    /// Another attempt, after this long.
    Again(Duration),
}

impl Forwarding<'_> {
    /// Attempts until one gives a response that is final.
    pub(super) async fn attempts(&mut self, streams: &Streams) -> Result<Box<Try>, Box<LocalReply>> {
        loop {
            self.active.ex.info.attempts += 1;
            if forward_proxy::is_forward_proxy(&self.cluster) {
                self.resolve().await?;
            }
            let host = self.pick()?;
            let end = self.attempt(&host, streams).await;
            self.tried_priorities.push(host.priority());
            self.tried.push(host.clone());
            self.timed_out_try = false;
            let mut verdict = self.judge(&host, end, true)?;
            loop {
                match verdict {
                    Some(Verdict::Final(response)) => return Ok(response),
                    Some(Verdict::Again(delay)) => match self.back_off(delay).await {
                        None => break,
                        Some(end) => verdict = self.judge(&host, end, false)?,
                    },
                    // Attempts that were let run before this one may do better.
                    None => {
                        let end = Box::pin(self.hedged_end(None)).await;
                        verdict = match end {
                            Some(end) => self.judge(&host, end, false)?,
                            None => None,
                        };
                    }
                }
            }
            if !self.pump.rewind() {
                return Err(errors::before_response(&StreamError::LocalReset("request_body_not_kept"), true));
            }
            self.refresh_cluster()?;
        }
    }

    /// Where the policy says so, a retry may go to another cluster.
    fn refresh_cluster(&mut self) -> Result<(), Box<LocalReply>> {
        if !self.forward.retry_policy().is_some_and(|policy| policy.refresh_cluster_on_retry) {
            return Ok(());
        }
        let ex = &mut *self.active.ex;
        let slot = self.entry.refreshed_cluster(&ex.request, &ex.info, &mut self.tried_clusters, fastrand::u64(..));
        let view = slot.and_then(|slot| slot.get());
        let Some(cluster) = view.clone().and_then(cluster_of) else { return Err(no_healthy_upstream(503)) };
        self.cluster = cluster;
        ex.info.upstream_mut().cluster.clone_from(&view);
        ex.cluster = view;
        Ok(())
    }

    /// What follows from the end of an attempt; none if it gave nothing and others still run. `flying`: it is the end of the newest attempt,
    /// which is at `host`.
    fn judge(&mut self, host: &Arc<Host>, end: End, flying: bool) -> Result<Option<Verdict>, Box<LocalReply>> {
        let lost = self.hedges.as_mut().map(Hedges::take_lost).unwrap_or_default();
        for (host, status) in &lost {
            self.charge_lost(host, *status);
        }
        match end {
            End::Response(response) => {
                self.report_response(host, &response);
                if let Some(delay) = self.retry_response(&response.head) {
                    finish::charge_retried(&self.cluster, &self.active.config, response.head.status.as_u16());
                    return Ok(Some(Verdict::Again(delay)));
                }
                Ok((!self.is_hedged() || !self.judge_of(true).is_bad(&response.head)).then_some(Verdict::Final(response)))
            }
            End::Hedged { answered, host, pump, retried } => {
                self.report_response(&host, &answered);
                if !retried && !self.judge_of(true).is_bad(&answered.head) {
                    self.note_retry_success();
                }
                self.active.ex.info.upstream_mut().host = Some(host);
                self.pump = *pump;
                Ok(Some(Verdict::Final(answered)))
            }
            End::Upstream { error, processed, .. } => {
                self.report_reset(host, &error);
                if let Some(delay) = self.retry_after(&Failure::Reset { error: &error, processed }) {
                    return Ok(Some(Verdict::Again(delay)));
                }
                if self.is_hedged() {
                    self.charge_lost(host, errors::status(&error));
                    return Ok(None);
                }
                Err(errors::before_response(&error, self.active.ex.info.attempts > 1))
            }
            End::Deadline(Deadline::PerTry | Deadline::PerTryIdle, Some(stream)) if self.hedges.is_some() => {
                Ok(self.let_run(host, *stream).map(Verdict::Again))
            }
            End::Deadline(which, _) => {
                if flying {
                    self.report_timeout(host, which);
                }
                self.report_hedges(which, flying);
                self.timed_out_try = true;
                let delay = match which {
                    Deadline::PerTry | Deadline::PerTryIdle => self.retry_after(&Failure::PerTryTimeout),
                    _ => None,
                };
                delay.map(|delay| Some(Verdict::Again(delay))).ok_or_else(|| self.timed_out(which))
            }
            End::Downstream(error) => Err(downstream_failed(&error)),
        }
    }

    /// Whether attempts run beside the newest one.
    fn is_hedged(&self) -> bool {
        self.hedges.as_ref().is_some_and(|hedges| !hedges.is_empty())
    }

    fn judge_of(&self, alone: bool) -> Judge<'_> {
        Judge { cluster: &self.cluster, request: &self.active.ex.request, retry: self.retry.as_ref(), alone }
    }

    /// Keeps an attempt that took too long; the delay before the retry that it causes, if one is left.
    fn let_run(&mut self, host: &Arc<Host>, stream: UpstreamStream) -> Option<Duration> {
        self.cluster.report(host, nuncio_upstream::Outcome::LocalOriginTimeout);
        self.timed_out_try = true;
        let again = self.retry_after(&Failure::Slow);
        let pump = self.pump.detach();
        if let Some(hedges) = &mut self.hedges {
            let now = Instant::now();
            let began = self.timeouts.per_try.and_then(|ran| now.checked_sub(ran)).unwrap_or(now);
            hedges.add(Flight { host: host.clone(), stream, pump, began, retried: again.is_some() });
        }
        again
    }

    /// A timeout of the whole request meets every attempt that runs. One of them, the newest if it is `flying`, is what the reply counts for.
    fn report_hedges(&mut self, which: Deadline, flying: bool) {
        let Some(hedges) = self.hedges.as_ref().filter(|_| which == Deadline::Global) else { return };
        let status = if self.timeouts.alt_response { 204 } else { 504 };
        for (at, host) in hedges.hosts().enumerate() {
            if flying || at > 0 {
                finish::charge_reply(&self.cluster, &self.groups, &self.active.config, &self.active.ex, Some(host), status);
            }
            self.cluster.stats().traffic.upstream_rq_timeout.inc();
            self.groups.each(|group| group.traffic.upstream_rq_timeout.inc());
            host.stats.rq_timeout.fetch_add(1, Relaxed);
        }
    }

    /// Waits before the next attempt. The end of the request, if that comes first.
    async fn back_off(&mut self, delay: Duration) -> Option<End> {
        if delay.is_zero() {
            return None;
        }
        Box::pin(self.hedged_end(Some(delay))).await
    }

    /// Waits, for `limit` at most, for a deadline or for what was let run.
    async fn hedged_end(&mut self, limit: Option<Duration>) -> Option<End> {
        // No try is running that these could end.
        self.deadlines.set(Deadline::PerTry, None);
        self.deadlines.set(Deadline::PerTryIdle, None);
        let judge = Judge { cluster: &self.cluster, request: &self.active.ex.request, retry: self.retry.as_ref(), alone: limit.is_none() };
        let (deadlines, hedges) = (&mut self.deadlines, &mut self.hedges);
        let mut sleep = pin!(limit.map(tokio::time::sleep));
        poll_fn(|cx| {
            if let Some(Poll::Ready(end)) = hedges.as_mut().map(|hedges: &mut Hedges| hedges.poll(cx, judge)) {
                return Poll::Ready(Some(end));
            }
            if let Poll::Ready(which) = deadlines.poll(cx) {
                return Poll::Ready(Some(End::Deadline(which, None)));
            }
            match sleep.as_mut().as_pin_mut() {
                Some(sleep) => sleep.poll(cx).map(|()| None),
                None => Poll::Pending,
            }
        })
        .await
    }

    /// The delay before another attempt, if the policy, the body and the budgets allow one.
    fn retry_response(&mut self, head: &ResponseHead) -> Option<Duration> {
        let wait = self.retry.as_ref().map(|r| r.back_off(Some(head)));
        self.allow(&Failure::Response(head)).then_some(wait).flatten()
    }

    pub(super) fn retry_after(&mut self, failure: &Failure<'_>) -> Option<Duration> {
        let allowed = self.allow(failure);
        allowed.then(|| self.retry.as_ref().map_or(Duration::ZERO, |r| r.back_off(None)))
    }

    fn allow(&mut self, failure: &Failure<'_>) -> bool {
        if !self.retry.as_ref().is_some_and(|retry| retry.wants(failure)) {
            self.note_retry_success();
            return unseen(failure) && self.once_for_reuse();
        }
        if !self.pump.can_replay() {
            return false;
        }
        let traffic = &self.cluster.stats().traffic;
        let Some(retry) = self.retry.as_mut().filter(|retry| !retry.is_exhausted()) else {
            traffic.upstream_rq_retry_limit_exceeded.inc();
            self.groups.each(|group| group.traffic.upstream_rq_retry_limit_exceeded.inc());
            self.active.ex.info.flags.set(ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED);
            return false;
        };
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

    /// As Envoy: what is good enough after a retry makes that one a success.
    fn note_retry_success(&self) {
        if self.retry.as_ref().is_some_and(|retry| retry.retried()) {
            self.cluster.stats().traffic.upstream_rq_retry_success.inc();
            self.groups.each(|group| group.traffic.upstream_rq_retry_success.inc());
        }
    }

    /// Counts an attempt that failed while others may still do better.
    fn charge_lost(&self, host: &Arc<Host>, status: u16) {
        finish::charge_reply(&self.cluster, &self.groups, &self.active.config, &self.active.ex, Some(host), status);
    }

    /// A request that no upstream can have seen may go again once without a policy: a reused connection that the server closed
    /// in the same moment is nobody's fault.
    fn once_for_reuse(&mut self) -> bool {
        self.active.ex.info.attempts == 1 && self.pump.rewind()
    }
}

/// Whether the upstream cannot have seen anything of the request.
fn unseen(failure: &Failure<'_>) -> bool {
    matches!(failure, Failure::Reset { error: StreamError::ConnectionClosed(_), processed: false })
}
