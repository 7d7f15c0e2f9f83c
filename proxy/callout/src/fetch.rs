//! One HTTP request of the proxy's own: prepared, tried, tried again where the policy says so, and read to its end within bounds.
//! Called by filters and loggers, on a worker. Source: Envoy's `Http::AsyncClientImpl`, which runs the router for such requests.

use crate::CalloutError;
use crate::attempt::{Answer, Attempts, Meter};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, header};
use nuncio_core::local_address::local_address;
use nuncio_core::message::joined;
use nuncio_core::views::{ClusterSlot, ClusterView};
use nuncio_core::{RequestHead, ResponseHead};
use nuncio_route::RetryPolicy;
use nuncio_upstream::Cluster;
use std::sync::Arc;
use std::time::Duration;

const X_ENVOY_INTERNAL: HeaderName = HeaderName::from_static("x-envoy-internal");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_ENVOY_EXPECTED_RQ_TIMEOUT_MS: HeaderName = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");

/// How a request is made.
#[derive(Clone, Debug)]
pub struct FetchOptions {
    /// Time for the whole call, retries included; none: no limit.
    pub timeout: Option<Duration>,
    /// Largest response body in bytes; one that is larger fails the call.
    pub max_body: usize,
    /// When to try again; see [`crate::compile_retry`].
    pub retry: Option<Arc<RetryPolicy>>,
    /// Whether `x-envoy-internal` and `x-envoy-expected-rq-timeout-ms` are added, as Envoy does.
    pub envoy_headers: bool,
    /// Whether our address is appended to `x-forwarded-for`.
    pub forwarded_for: bool,
}

impl Default for FetchOptions {
    /// No retries, 1 MiB of body, and the timeout that Envoy's router has if nobody sets one.
    fn default() -> Self {
        Self { timeout: Some(Duration::from_secs(15)), max_body: 1 << 20, retry: None, envoy_headers: true, forwarded_for: true }
    }
}

/// The cluster behind `slot`.
pub(crate) fn cluster_of(slot: &ClusterSlot) -> Result<Arc<Cluster>, CalloutError> {
    let current = slot.load();
    let view = current.as_ref().ok_or(CalloutError::UnknownCluster)?;
    let view: Arc<dyn std::any::Any + Send + Sync> = Arc::<dyn ClusterView>::clone(view.as_ref());
    view.downcast().map_err(|_| CalloutError::UnknownCluster)
}

/// Adds what Envoy adds to requests of its own.
pub(crate) fn envoy_headers(head: &mut RequestHead) {
    head.headers.insert(X_ENVOY_INTERNAL, HeaderValue::from_static("true"));
}

/// Tells the upstream how long the answer is waited for, as Envoy's router does when all other headers are there.
fn expected_timeout(head: &mut RequestHead, timeout: Option<Duration>) {
    if let Some(timeout) = timeout {
        let millis = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        head.headers.insert(X_ENVOY_EXPECTED_RQ_TIMEOUT_MS, HeaderValue::from(millis));
    }
}

/// Appends our address to `x-forwarded-for`.
pub(crate) fn forwarded_for(head: &mut RequestHead) {
    let mut forwarded = joined(&head.headers, &X_FORWARDED_FOR).map(std::borrow::Cow::into_owned).unwrap_or_default();
    if !forwarded.is_empty() {
        forwarded.push(b',');
    }
    forwarded.extend_from_slice(local_address().to_string().as_bytes());
    if let Ok(value) = HeaderValue::from_bytes(&forwarded) {
        head.headers.insert(X_FORWARDED_FOR, value);
    }
}

/// Sends `request` with `body` to the cluster in `slot` and gives the response once it is complete, whatever its status.
/// `content-length` is set for a body. Dropping the future resets the stream.
pub async fn fetch(
    slot: &ClusterSlot,
    mut request: RequestHead,
    body: Bytes,
    options: &FetchOptions,
) -> Result<(ResponseHead, Bytes), CalloutError> {
    // A caller may want a length of 0 to be said.
    if !body.is_empty() || request.headers.contains(&header::CONTENT_LENGTH) {
        request.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    }
    exchange(slot, request, body, options, None).await.map(|answer| (answer.head, answer.body))
}

/// As [`fetch`], with trailers, and without touching `content-length`.
pub(crate) async fn exchange(
    slot: &ClusterSlot,
    mut request: RequestHead,
    body: Bytes,
    options: &FetchOptions,
    meter: Option<&Meter>,
) -> Result<Answer, CalloutError> {
    let cluster = cluster_of(slot)?;
    if cluster.should_drop() {
        return Err(CalloutError::Dropped);
    }
    if options.envoy_headers {
        envoy_headers(&mut request);
    }
    if options.forwarded_for {
        forwarded_for(&mut request);
    }
    if options.envoy_headers {
        let per_try = options.retry.as_ref().and_then(|r| r.per_try_timeout);
        expected_timeout(&mut request, options.timeout.into_iter().chain(per_try).min());
    }
    let attempts = Attempts::new(&cluster, options, meter);
    let run = attempts.run(request, body);
    let Some(limit) = options.timeout else { return run.await };
    match tokio::time::timeout(limit, run).await {
        Ok(result) => result,
        Err(_) => {
            attempts.timed_out();
            Err(CalloutError::Timeout)
        }
    }
}
