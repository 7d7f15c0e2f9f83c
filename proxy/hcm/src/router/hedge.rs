//! Hedging: an attempt that runs into its per-try timeout goes on beside the retry that it causes, and the first good answer wins.
//! The newest attempt is an ordinary one; this keeps those before it. Belongs to one worker.
//! Source: HedgePolicy.hedge_on_per_try_timeout, Envoy's `Filter::onSoftPerTryTimeout`.

use super::attempt::{End, Try};
use super::request_body::{PumpError, RequestPump};
use super::retry::{Failure, RetryState};
use super::{errors, finish};
use nuncio_core::{RequestHead, ResponseHead, StreamError};
use nuncio_upstream::{Cluster, Host, Outcome, UpstreamStream};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Instant;

/// An attempt that took too long and was let run.
pub struct Flight {
    pub host: Arc<Host>,
    pub stream: UpstreamStream,
    /// What it must still send of the request, which is there in full.
    pub pump: RequestPump,
    /// When it began, for `x-envoy-upstream-service-time`.
    pub began: Instant,
    /// A retry was made for it.
    pub retried: bool,
}

/// Attempts of one request that run beside the newest one.
#[derive(Default)]
pub struct Hedges {
    flights: Vec<Flight>,
    /// Those that failed in silence, with the status that they would have been answered with.
    lost: Vec<(Arc<Host>, u16)>,
}

/// What judges the answers to them.
#[derive(Clone, Copy)]
pub struct Judge<'a> {
    pub cluster: &'a Arc<Cluster>,
    pub request: &'a RequestHead,
    pub retry: Option<&'a RetryState>,
    /// No newer attempt is running: the last answer counts whatever it is.
    pub alone: bool,
}

impl Judge<'_> {
    /// Whether a retry would be due to this answer, if there was not one already.
    pub fn is_bad(&self, head: &ResponseHead) -> bool {
        self.retry.is_some_and(|retry| retry.wants(&Failure::Response(head)))
    }
}

impl Hedges {
    /// Lets an attempt run on.
    pub fn add(&mut self, flight: Flight) {
        self.flights.push(flight);
    }
    /// Whether none runs.
    pub fn is_empty(&self) -> bool {
        self.flights.is_empty()
    }
    /// Takes those that failed in silence.
    pub fn take_lost(&mut self) -> Vec<(Arc<Host>, u16)> {
        std::mem::take(&mut self.lost)
    }
    /// Hosts of those that run.
    pub fn hosts(&self) -> impl Iterator<Item = &Arc<Host>> {
        self.flights.iter().map(|flight| &flight.host)
    }

    /// Ready with the first answer that is final, as [`End::Hedged`]. Bad ones and failures end their attempt in silence while others
    /// may still do better.
    pub fn poll(&mut self, cx: &mut Context<'_>, judge: Judge<'_>) -> Poll<End> {
        let mut at = 0;
        while let Some(flight) = self.flights.get_mut(at) {
            let Poll::Ready(answer) = flight.poll(cx) else {
                at += 1;
                continue;
            };
            let Flight { host, stream, pump, began, retried } = self.flights.swap_remove(at);
            let last = judge.alone && self.flights.is_empty();
            match answer {
                Ok(head) if last || !judge.is_bad(&head) => {
                    let answered = Try { head, stream, service_time: began.elapsed() };
                    return Poll::Ready(End::Hedged { answered: Box::new(answered), host, pump: Box::new(pump), retried });
                }
                Ok(head) => {
                    judge.cluster.report_response(&host, finish::outlier_code(judge.request, &head), &head.headers);
                    host.stats.rq_error.fetch_add(1, Relaxed);
                }
                // A retry was made already for this one.
                Err(error) if last => return Poll::Ready(End::Upstream { error, processed: true, stream: Some(Box::new(stream)) }),
                Err(error) => {
                    host.stats.rq_error.fetch_add(1, Relaxed);
                    judge.cluster.report(&host, Outcome::LocalOriginConnectFailed);
                    self.lost.push((host, errors::status(&error)));
                }
            }
        }
        Poll::Pending
    }
}

impl Flight {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<ResponseHead, StreamError>> {
        if !self.pump.is_done() && matches!(self.pump.poll(&mut self.stream, cx), Poll::Ready(Err(PumpError::Upstream))) {
            self.pump.abandon();
        }
        loop {
            match std::task::ready!(self.stream.poll_response(cx)) {
                Ok(head) if head.status.is_informational() && head.status != http::StatusCode::SWITCHING_PROTOCOLS => {}
                answer => return Poll::Ready(answer),
            }
        }
    }
}
