//! The attempts of one call: a host, a stream, the response's head, and what it means for stats, outlier detection and retries.
//! Runs on a worker. Source: Envoy's `Router::Filter` and `Router::RetryStateImpl`.

use crate::CalloutError;
use crate::fetch::FetchOptions;
use bytes::{Bytes, BytesMut};
use http::{HeaderName, StatusCode};
use nuncio_core::grpc::http_from_grpc;
use nuncio_core::{Frame, Headers, HttpVersion, RequestHead, ResponseHead, StreamError};
use nuncio_route::retry_state::{Failure, RetryState, grpc_status};
use nuncio_upstream::{Charge, Cluster, Host, LbContext, OpenOptions, Outcome, RetryGuard, RoutingPriority, UpstreamStream, Upstreams};
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::Instant;

const X_ENVOY_INTERNAL: HeaderName = HeaderName::from_static("x-envoy-internal");
const X_ENVOY_UPSTREAM_SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");
const X_ENVOY_UPSTREAM_CANARY: HeaderName = HeaderName::from_static("x-envoy-upstream-canary");
/// Body bytes for which room is made at once; a larger announced length is not trusted.
const TRUSTED: usize = 64 * 1024;

/// A complete response.
#[derive(Debug)]
pub struct Answer {
    pub head: ResponseHead,
    pub body: Bytes,
    pub trailers: Option<Box<Headers>>,
}

/// Tells stats and outlier detection how calls to a cluster do.
pub struct Reporter<'a> {
    pub cluster: &'a Arc<Cluster>,
    started: Instant,
}

impl<'a> Reporter<'a> {
    pub fn new(cluster: &'a Arc<Cluster>) -> Self {
        Self { cluster, started: Instant::now() }
    }
    /// A response began, and it is the caller's.
    pub fn response(&self, request: &RequestHead, host: &Host, head: &ResponseHead) {
        self.judge(request, host, head);
        let canary = host.canary() || head.headers.get(&X_ENVOY_UPSTREAM_CANARY).is_some_and(|v| v.as_bytes() == b"true");
        let charge = Charge { internal: request.headers.contains(&X_ENVOY_INTERNAL), canary, zones: None };
        let stats = self.cluster.stats();
        // Unlike the router's requests, those of the proxy's own count as their HTTP status, whatever gRPC says.
        stats.charge_response(head.status.as_u16(), &charge);
        stats.charge_time(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX), &charge);
    }
    /// What a response says of its host.
    fn judge(&self, request: &RequestHead, host: &Host, head: &ResponseHead) {
        let code = match grpc_status(head) {
            Some(status) if request.is_grpc() => http_from_grpc(status),
            _ => head.status.as_u16(),
        };
        self.cluster.report_response(host, code, &head.headers);
        let counter = if code >= 500 { &host.stats.rq_error } else { &host.stats.rq_success };
        counter.fetch_add(1, Relaxed);
    }
    /// The router would have answered with `code` itself.
    pub fn local(&self, request: Option<&RequestHead>, host: Option<&Host>, code: u16) {
        let internal = request.is_none_or(|r| r.headers.contains(&X_ENVOY_INTERNAL));
        self.cluster.stats().charge_response(code, &Charge { internal, canary: host.is_some_and(Host::canary), zones: None });
    }
    /// A stream failed before it was answered.
    pub fn reset(&self, host: &Host, error: &StreamError) {
        match error {
            StreamError::Overflow => return,
            StreamError::RemoteReset(_) | StreamError::RemoteRefused => self.cluster.stats().traffic.upstream_rq_rx_reset.inc(),
            _ => {}
        }
        host.stats.rq_error.fetch_add(1, Relaxed);
        // Connection failures were reported when they happened.
        if !matches!(error, StreamError::ConnectFailed(_) | StreamError::ConnectTimeout) {
            self.cluster.report(host, Outcome::LocalOriginConnectFailed);
        }
    }
}

/// The attempts of one call.
pub struct Attempts<'a> {
    reporter: Reporter<'a>,
    options: &'a FetchOptions,
    upstreams: Rc<Upstreams>,
    tried: RefCell<Vec<Arc<Host>>>,
    /// Whether the response's head is there: a timeout after that is not the host's to answer for a second time.
    answered: Cell<bool>,
    meter: Option<&'a Meter>,
}

/// Bytes on the wire of a call's last attempt, also of one that failed or was given up: Envoy's `StreamInfo::getUpstreamBytesMeter`.
#[derive(Debug, Default)]
pub struct Meter {
    pub sent: Cell<u64>,
    pub received: Cell<u64>,
}

impl Meter {
    fn read(&self, stream: &UpstreamStream) {
        self.sent.set(stream.bytes_written());
        self.received.set(stream.bytes_read());
    }
}

/// An attempt that failed; `processed` is false if the upstream cannot have seen the request.
struct Failed {
    error: StreamError,
    processed: bool,
}

impl<'a> Attempts<'a> {
    pub fn new(cluster: &'a Arc<Cluster>, options: &'a FetchOptions, meter: Option<&'a Meter>) -> Self {
        let reporter = Reporter::new(cluster);
        Self { reporter, options, upstreams: Upstreams::current(), tried: RefCell::default(), answered: Cell::new(false), meter }
    }

    /// Runs to a response or to the last failure.
    pub async fn run(&self, mut request: RequestHead, body: Bytes) -> Result<Answer, CalloutError> {
        let mut retry = self.options.retry.as_ref().and_then(|policy| RetryState::new(Some(policy), &mut request));
        // The place of a retry among the cluster's, held until the call ends.
        let mut guard: Option<RetryGuard> = None;
        loop {
            let Some(host) = self.pick(&request) else {
                self.reporter.local(Some(&request), None, 503);
                return Err(CalloutError::NoHealthyHost);
            };
            self.tried.borrow_mut().push(host.clone());
            let per_try = self.options.retry.as_ref().and_then(|p| p.per_try_timeout);
            let began = Instant::now();
            let attempt = self.begin(&host, &request, &body);
            let result = match per_try {
                None => Ok(attempt.await),
                Some(limit) => tokio::time::timeout(limit, attempt).await,
            };
            match result {
                Ok(Ok((mut head, stream))) => {
                    if self.again(&mut retry, &Failure::Response(&head), &mut guard) {
                        self.reporter.judge(&request, &host, &head);
                        self.reporter.cluster.stats().charge_retried(head.status.as_u16());
                        drop(stream);
                        self.pause(&retry, Some(&head)).await;
                        continue;
                    }
                    self.reporter.response(&request, &host, &head);
                    self.answered.set(true);
                    if self.options.envoy_headers {
                        let millis = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                        head.headers.insert(X_ENVOY_UPSTREAM_SERVICE_TIME, millis.into());
                    }
                    return self.collect(head, stream).await;
                }
                Ok(Err(Failed { error, processed })) => {
                    self.reporter.reset(&host, &error);
                    if !self.again(&mut retry, &Failure::Reset { error: &error, processed }, &mut guard) {
                        let protocol = matches!(error, StreamError::Protocol(_) | StreamError::TooLarge(_));
                        self.reporter.local(Some(&request), Some(&host), if protocol { 502 } else { 503 });
                        return Err(CalloutError::Stream(error));
                    }
                }
                Err(_) => {
                    self.reporter.cluster.stats().traffic.upstream_rq_per_try_timeout.inc();
                    self.too_late(&host);
                    if !self.again(&mut retry, &Failure::PerTryTimeout, &mut guard) {
                        self.reporter.local(Some(&request), Some(&host), 504);
                        return Err(CalloutError::Timeout);
                    }
                }
            }
            self.pause(&retry, None).await;
        }
    }

    /// The time of the whole call is over.
    pub fn timed_out(&self) {
        self.reporter.cluster.stats().traffic.upstream_rq_timeout.inc();
        if self.answered.get() {
            return;
        }
        let tried = self.tried.borrow();
        if let Some(host) = tried.last() {
            self.too_late(host);
        }
        self.reporter.local(None, tried.last().map(AsRef::as_ref), 504);
    }

    fn measure(&self, stream: &UpstreamStream) {
        if let Some(meter) = self.meter {
            meter.read(stream);
        }
    }

    fn too_late(&self, host: &Host) {
        host.stats.rq_timeout.fetch_add(1, Relaxed);
        self.reporter.cluster.report(host, Outcome::LocalOriginTimeout);
    }

    fn pick(&self, request: &RequestHead) -> Option<Arc<Host>> {
        let tried = self.tried.borrow();
        let policy = self.options.retry.as_ref();
        let avoid = if policy.is_some_and(|p| p.previous_hosts) { tried.as_slice() } else { &[] };
        let attempts = policy.map_or(1, |p| p.host_selection_attempts);
        self.upstreams.pick(self.reporter.cluster, &LbContext { request: Some(request), avoid, attempts, ..LbContext::default() })
    }

    /// Whether to try once more; takes a place among the cluster's retries.
    fn again(&self, retry: &mut Option<RetryState>, failure: &Failure<'_>, guard: &mut Option<RetryGuard>) -> bool {
        let traffic = &self.reporter.cluster.stats().traffic;
        let Some(state) = retry.as_mut().filter(|s| s.wants(failure)) else {
            if guard.is_some() {
                traffic.upstream_rq_retry_success.inc();
            }
            return false;
        };
        if state.is_exhausted() {
            traffic.upstream_rq_retry_limit_exceeded.inc();
            return false;
        }
        // The place of the retry that just failed is free again before another is asked for.
        *guard = None;
        *guard = self.reporter.cluster.try_retry(RoutingPriority::Default);
        if guard.is_none() {
            traffic.upstream_rq_retry_overflow.inc();
            return false;
        }
        traffic.upstream_rq_retry.inc();
        traffic.upstream_rq_retry_backoff_exponential.inc();
        state.take()
    }

    async fn pause(&self, retry: &Option<RetryState>, head: Option<&ResponseHead>) {
        if let Some(state) = retry {
            tokio::time::sleep(state.back_off(head)).await;
        }
    }

    /// Sends the request and waits for the final head.
    async fn begin(&self, host: &Arc<Host>, request: &RequestHead, body: &Bytes) -> Result<(ResponseHead, UpstreamStream), Failed> {
        let version = if request.is_grpc() { HttpVersion::Http2 } else { HttpVersion::Http11 };
        let options = OpenOptions { downstream_protocol: Some(version), ..OpenOptions::default() };
        let opened = self.upstreams.open(self.reporter.cluster, host, request, body.is_empty(), &options).await;
        let mut stream = opened.map_err(|error| Failed { error, processed: false })?;
        let mut unsent = (!body.is_empty()).then_some(body);
        let head = poll_fn(|cx| {
            if let Some(body) = unsent {
                match stream.poll_ready(cx) {
                    Poll::Pending => {}
                    Poll::Ready(room) => {
                        unsent = None;
                        // A host that takes no body may still say why: its response tells.
                        if room.is_ok() {
                            let _sent = stream.send_data(body.clone(), true);
                        }
                    }
                }
            }
            let head = loop {
                match stream.poll_response(cx) {
                    Poll::Ready(Ok(head)) if head.status.is_informational() && head.status != StatusCode::SWITCHING_PROTOCOLS => {}
                    other => break other,
                }
            };
            self.measure(&stream);
            head
        })
        .await;
        match head {
            Ok(head) => Ok((head, stream)),
            Err(error) => {
                let processed = stream.bytes_written() > 0 && error != StreamError::RemoteRefused;
                Err(Failed { error, processed })
            }
        }
    }

    /// Reads the rest of the response.
    async fn collect(&self, head: ResponseHead, mut stream: UpstreamStream) -> Result<Answer, CalloutError> {
        let announced = stream.remaining().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
        if announced > self.options.max_body {
            return Err(CalloutError::TooLarge);
        }
        let mut body = BytesMut::with_capacity(announced.min(TRUSTED));
        let mut trailers = None;
        let next = |stream: &mut UpstreamStream, cx: &mut std::task::Context<'_>| {
            // What is left of the request goes out meanwhile; the response tells of a failure.
            let _flushed = stream.poll_flush(cx);
            let frame = stream.poll_frame(cx);
            self.measure(stream);
            frame
        };
        while let Some(frame) = poll_fn(|cx| next(&mut stream, cx)).await {
            match frame.map_err(CalloutError::Stream)? {
                Frame::Data(data) => {
                    if body.len() + data.len() > self.options.max_body {
                        return Err(CalloutError::TooLarge);
                    }
                    body.extend_from_slice(&data);
                }
                Frame::Trailers(all) => trailers = Some(all),
            }
        }
        Ok(Answer { head, body: body.freeze(), trailers })
    }
}
