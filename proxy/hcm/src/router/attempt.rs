//! One attempt: open a stream, send the request, wait for the response's head. Belongs to one worker.

use super::Streams;
use super::deadlines::{Deadline, Deadlines};
use super::groups::Groups;
use super::hedge::{Hedges, Judge};
use super::request_body::{PumpError, RequestPump};
use super::retry::RetryState;
use super::timeouts::Timeouts;
use nuncio_core::{RequestHead, ResponseHead, StreamError};
use nuncio_upstream::{Cluster, Host, OpenOptions, UpstreamStream, Upstreams};
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// A response that began.
pub struct Try {
    pub head: ResponseHead,
    pub stream: UpstreamStream,
    /// From the complete request (or the start of the attempt) to the response's head.
    pub service_time: Duration,
}

/// How an attempt ended; with the stream, if there was one, for what logs say of it.
pub enum End {
    Response(Box<Try>),
    /// An earlier attempt, let run beside this one, answered first.
    Hedged {
        answered: Box<Try>,
        host: Arc<Host>,
        pump: Box<RequestPump>,
        /// A retry was made for it.
        retried: bool,
    },
    /// The upstream failed. `processed` is false if it cannot have seen the request.
    Upstream {
        error: StreamError,
        processed: bool,
        stream: Option<Box<UpstreamStream>>,
    },
    Deadline(Deadline, Option<Box<UpstreamStream>>),
    /// The client failed.
    Downstream(StreamError),
}

/// Why a stream gave no response.
enum Failed {
    Upstream {
        error: StreamError,
        processed: bool,
    },
    Deadline(Deadline),
    Downstream(StreamError),
    /// Something else ended the request's attempts.
    Other(End),
}

/// What an attempt works with.
pub struct Attempt<'a> {
    pub request: &'a RequestHead,
    pub cluster: &'a Arc<Cluster>,
    pub groups: Groups<'a>,
    pub host: &'a Arc<Host>,
    pub upstreams: &'a Upstreams,
    pub pump: &'a mut RequestPump,
    pub deadlines: &'a mut Deadlines,
    pub timeouts: &'a Timeouts,
    pub idle: Option<Duration>,
    pub streams: &'a Streams,
    pub proxy_continue: bool,
    /// Attempts that run beside this one.
    pub hedges: Option<&'a mut Hedges>,
    pub retry: Option<&'a RetryState>,
    pub sent: &'a mut Sent,
}

/// When an attempt began and ended sending its request.
#[derive(Default)]
pub struct Sent {
    pub first: Option<Instant>,
    pub last: Option<Instant>,
}

impl Attempt<'_> {
    /// Runs to the response's head or a failure.
    pub async fn run(mut self, options: &OpenOptions<'_>) -> End {
        let mut began = Instant::now();
        self.deadlines.set(Deadline::PerTry, None);
        self.deadlines.set(Deadline::PerTryIdle, self.timeouts.per_try_idle);
        let mut complete = self.pump.received_all();
        if complete {
            self.request_complete();
        }
        let mut stream = match self.open(options).await {
            Ok(stream) => stream,
            Err(end) => return end,
        };
        self.sent.first = Some(Instant::now());
        if complete {
            // As Envoy: a try begins on its connection; until then the cluster's connect_timeout counts.
            self.deadlines.set(Deadline::PerTry, self.timeouts.per_try);
        }
        self.groups.each(|group| group.traffic.upstream_rq_total.inc());
        let mut sending = true;
        let end = poll_fn(|cx| {
            if sending {
                let before = self.pump.frames();
                let polled = self.pump.poll(&mut stream, cx);
                if self.pump.frames() > before {
                    self.deadlines.set(Deadline::Idle, self.idle);
                }
                match polled {
                    Poll::Pending => {}
                    Poll::Ready(Ok(())) => {
                        sending = false;
                        self.sent.last = Some(Instant::now());
                    }
                    Poll::Ready(Err(PumpError::Downstream(error))) => return Poll::Ready(Err(Failed::Downstream(error))),
                    // The response may be there all the same: the upstream may refuse a body and say why.
                    Poll::Ready(Err(PumpError::Upstream)) => sending = false,
                }
                if !complete && self.pump.received_all() {
                    complete = true;
                    began = Instant::now();
                    self.request_complete();
                    self.deadlines.set(Deadline::PerTry, self.timeouts.per_try);
                }
            }
            loop {
                match stream.poll_response(cx) {
                    Poll::Ready(Ok(head)) if head.status.is_informational() && head.status != http::StatusCode::SWITCHING_PROTOCOLS => {
                        self.touch();
                        if head.status == http::StatusCode::CONTINUE && std::mem::take(&mut self.proxy_continue) {
                            self.streams.informational.send(&head);
                        }
                    }
                    Poll::Ready(Ok(head)) => return Poll::Ready(Ok(head)),
                    Poll::Ready(Err(error)) => {
                        let processed = stream.bytes_written() > 0 && error != StreamError::RemoteRefused;
                        return Poll::Ready(Err(Failed::Upstream { processed, error }));
                    }
                    Poll::Pending => break,
                }
            }
            if let Poll::Ready(end) = self.poll_hedges(cx) {
                return Poll::Ready(Err(Failed::Other(end)));
            }
            self.deadlines.poll(cx).map(|which| Err(Failed::Deadline(which)))
        })
        .await;
        match end {
            Ok(head) => End::Response(Box::new(Try { head, stream, service_time: began.elapsed() })),
            Err(Failed::Upstream { error, processed }) => End::Upstream { error, processed, stream: Some(Box::new(stream)) },
            Err(Failed::Deadline(which)) => End::Deadline(which, Some(Box::new(stream))),
            Err(Failed::Downstream(error)) => End::Downstream(error),
            Err(Failed::Other(end)) => end,
        }
    }

    /// Waits for a stream, no longer than the deadlines allow.
    async fn open(&mut self, options: &OpenOptions<'_>) -> Result<UpstreamStream, End> {
        let mut open = pin!(self.upstreams.open(self.cluster, self.host, self.request, self.pump.is_empty(), options));
        let deadlines = &mut *self.deadlines;
        let judge = Judge { cluster: self.cluster, request: self.request, retry: self.retry, alone: false };
        let hedges = &mut self.hedges;
        poll_fn(|cx| {
            match open.as_mut().poll(cx) {
                Poll::Ready(Ok(stream)) => return Poll::Ready(Ok(stream)),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(End::Upstream { error, processed: false, stream: None })),
                Poll::Pending => {}
            }
            if let Some(Poll::Ready(end)) = hedges.as_mut().map(|hedges| hedges.poll(cx, judge)) {
                return Poll::Ready(Err(end));
            }
            deadlines.poll(cx).map(|which| Err(End::Deadline(which, None)))
        })
        .await
    }

    fn poll_hedges(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let judge = Judge { cluster: self.cluster, request: self.request, retry: self.retry, alone: false };
        match &mut self.hedges {
            Some(hedges) => hedges.poll(cx, judge),
            None => Poll::Pending,
        }
    }

    /// The client's request is complete: the route timeout begins.
    fn request_complete(&mut self) {
        self.deadlines.set(Deadline::Request, None);
        if !self.deadlines.is_set(Deadline::Global) {
            self.deadlines.set(Deadline::Global, self.timeouts.global);
        }
    }

    fn touch(&mut self) {
        self.deadlines.set(Deadline::Idle, self.idle);
        self.deadlines.set(Deadline::PerTryIdle, self.timeouts.per_try_idle);
    }
}
