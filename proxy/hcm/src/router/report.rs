//! What the end of an attempt means: for outlier detection and stats, and for the client. Runs on the worker that owns the stream.

use super::attempt::Try;
use super::deadlines::Deadline;
use super::forward::Forwarding;
use super::{errors, finish};
use nuncio_core::{LocalReply, ResponseFlags, StreamError};
use nuncio_upstream::{Host, Outcome};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// The gRPC status of a stream that took too long.
const DEADLINE_EXCEEDED: u32 = 4;

impl Forwarding<'_> {
    /// An upstream answered.
    pub(super) fn report_response(&mut self, host: &Arc<Host>, response: &Try) {
        let status = finish::outlier_code(&self.active.ex.request, &response.head);
        self.cluster.report_response(host, status, &response.head.headers);
        let stats = &host.stats;
        let counter = if status >= 500 { &stats.rq_error } else { &stats.rq_success };
        counter.fetch_add(1, Relaxed);
    }

    /// An attempt failed before it was answered.
    pub(super) fn report_reset(&mut self, host: &Arc<Host>, error: &StreamError) {
        let traffic = &self.cluster.stats().traffic;
        match error {
            StreamError::Overflow => return,
            StreamError::RemoteReset(_) | StreamError::RemoteRefused => traffic.upstream_rq_rx_reset.inc(),
            _ => {}
        }
        host.stats.rq_error.fetch_add(1, Relaxed);
        // Connection failures were reported when they happened.
        if !matches!(error, StreamError::ConnectFailed(_) | StreamError::ConnectTimeout) {
            self.cluster.report(host, Outcome::LocalOriginConnectFailed);
        }
    }

    /// A deadline ended the attempt at `host`.
    pub(super) fn report_timeout(&mut self, host: &Arc<Host>, which: Deadline) {
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
        host.stats.rq_timeout.fetch_add(1, Relaxed);
        self.cluster.report(host, Outcome::LocalOriginTimeout);
    }

    /// What the client is told when `which` ran out.
    pub(super) fn timed_out(&self, which: Deadline) -> Box<LocalReply> {
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
}

/// The reply to a request whose body broke off; status 0 if the client is gone.
pub fn downstream_failed(error: &StreamError) -> Box<LocalReply> {
    let (status, body, details) = match error {
        StreamError::Protocol(detail) => (400, "Bad Request", *detail),
        // Trailers; limits of bodies are the filters' business.
        StreamError::TooLarge(detail) => (431, "Request Header Fields Too Large", *detail),
        StreamError::RemoteReset(_) | StreamError::RemoteRefused => return Box::new(LocalReply::new(0, "", "http2.remote_reset")),
        _ => return Box::new(LocalReply::new(0, "", "downstream_remote_disconnect")),
    };
    Box::new(LocalReply::new(status, body, details).flag(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR))
}
