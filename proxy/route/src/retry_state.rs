//! Whether and when a failed attempt is tried again: the router's requests, and those that the proxy makes itself. Runs on a worker.
//! Source: Envoy's `RetryStateImpl`, RetryPolicy in `route_components.proto`, docs "x-envoy-retry-on".

use crate::{RateLimitedReset, RetryOn, RetryPolicy};
use http::HeaderName;
use nuncio_core::{RequestHead, ResponseHead, StreamError};
use std::sync::Arc;
use std::time::Duration;

const X_ENVOY_RETRY_ON: HeaderName = HeaderName::from_static("x-envoy-retry-on");
const X_ENVOY_RETRY_GRPC_ON: HeaderName = HeaderName::from_static("x-envoy-retry-grpc-on");
const X_ENVOY_RETRIABLE_STATUS_CODES: HeaderName = HeaderName::from_static("x-envoy-retriable-status-codes");
const X_ENVOY_RETRIABLE_HEADER_NAMES: HeaderName = HeaderName::from_static("x-envoy-retriable-header-names");
const X_ENVOY_MAX_RETRIES: HeaderName = HeaderName::from_static("x-envoy-max-retries");
const X_ENVOY_RATELIMITED: HeaderName = HeaderName::from_static("x-envoy-ratelimited");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// The retries of one request.
#[derive(Debug)]
pub struct RetryState {
    on: RetryOn,
    remaining: u32,
    tried: u32,
    statuses: Vec<u16>,
    header_names: Vec<HeaderName>,
    policy: Option<Arc<RetryPolicy>>,
}

/// What ended an attempt.
#[derive(Debug)]
pub enum Failure<'a> {
    /// The upstream answered; its response may be retriable.
    Response(&'a ResponseHead),
    /// The stream failed before a response. `processed` is false if the upstream cannot have seen the request.
    Reset {
        error: &'a StreamError,
        processed: bool,
    },
    PerTryTimeout,
    /// The per-try timeout passed, and the attempt runs on beside its retry.
    Slow,
}

impl RetryState {
    /// The state for a request whose route has `policy`; retry headers are taken off the request. None if nothing is retried.
    pub fn new(policy: Option<&Arc<RetryPolicy>>, head: &mut RequestHead) -> Option<Self> {
        let mut on = RetryOn::default();
        let mut remaining = 1;
        let mut statuses = Vec::new();
        if let Some(policy) = policy {
            if policy.retriable_request(head) {
                on = policy.retry_on;
            }
            remaining = policy.num_retries;
            statuses.clone_from(&policy.retriable_status_codes);
        }
        if let Some(text) = take(head, &X_ENVOY_RETRY_ON) {
            on = on.union(RetryOn::parse_lenient(&text));
        }
        if let Some(text) = take(head, &X_ENVOY_RETRY_GRPC_ON) {
            on = on.union(RetryOn::parse_grpc_lenient(&text));
        }
        if let Some(text) = take(head, &X_ENVOY_RETRIABLE_STATUS_CODES) {
            statuses.extend(text.split(',').filter_map(|s| s.trim().parse::<u16>().ok()));
        }
        let header_names = take(head, &X_ENVOY_RETRIABLE_HEADER_NAMES)
            .map(|text| text.split(',').filter_map(|n| HeaderName::from_bytes(n.trim().as_bytes()).ok()).collect())
            .unwrap_or_default();
        if let Some(max) = take(head, &X_ENVOY_MAX_RETRIES).and_then(|t| t.parse().ok()) {
            remaining = max;
        }
        (!on.is_empty()).then(|| Self { on, remaining, tried: 0, statuses, header_names, policy: policy.cloned() })
    }

    /// Whether the policy wants another attempt after `failure`. Says nothing of budgets and breakers.
    pub fn wants(&self, failure: &Failure<'_>) -> bool {
        match failure {
            Failure::Response(head) => self.wants_response(head),
            // Nothing was reset, so no condition has to name it (`shouldHedgeRetryPerTryTimeout`).
            Failure::Slow => true,
            Failure::PerTryTimeout => self.on.has(RetryOn::FIVE_XX) || self.on.has(RetryOn::GATEWAY_ERROR) || self.on.has(RetryOn::RESET),
            Failure::Reset { error, processed } => match error {
                // Not retried as a failure of the upstream: nobody there would have more room.
                StreamError::Overflow => false,
                StreamError::RemoteRefused if self.on.has(RetryOn::REFUSED_STREAM) => true,
                StreamError::ConnectFailed(_) | StreamError::ConnectTimeout if self.on.has(RetryOn::CONNECT_FAILURE) => true,
                _ if self.on.has(RetryOn::RESET_BEFORE_REQUEST) && !processed => true,
                _ => self.on.has(RetryOn::FIVE_XX) || self.on.has(RetryOn::GATEWAY_ERROR) || self.on.has(RetryOn::RESET),
            },
        }
    }

    fn wants_response(&self, head: &ResponseHead) -> bool {
        let status = head.status.as_u16();
        if head.headers.contains(&X_ENVOY_RATELIMITED) && !self.on.has(RetryOn::ENVOY_RATELIMITED) {
            return false;
        }
        let by_status = (self.on.has(RetryOn::FIVE_XX) && (500..600).contains(&status))
            || (self.on.has(RetryOn::GATEWAY_ERROR) && (502..=504).contains(&status))
            || (self.on.has(RetryOn::RETRIABLE_4XX) && status == 409)
            || (self.on.has(RetryOn::ENVOY_RATELIMITED) && head.headers.contains(&X_ENVOY_RATELIMITED))
            || (self.on.has(RetryOn::RETRIABLE_STATUS_CODES) && self.statuses.contains(&status));
        by_status
            || (self.on.has(RetryOn::RETRIABLE_HEADERS)
                && (self.header_names.iter().any(|n| head.headers.contains(n))
                    || self.policy.as_ref().is_some_and(|p| p.retriable_response(head))))
            || grpc_status(head).is_some_and(|status| self.on.has_grpc(status))
    }

    /// Whether a try is left; counts it.
    pub fn take(&mut self) -> bool {
        if self.remaining == 0 {
            return false;
        }
        self.remaining -= 1;
        self.tried += 1;
        true
    }

    /// Whether a try was taken.
    pub fn retried(&self) -> bool {
        self.tried > 0
    }
    /// Whether a try is left.
    pub fn is_exhausted(&self) -> bool {
        self.remaining == 0
    }

    /// How long to wait before the next attempt: what the response asks for by a rate-limit header, else fully jittered exponential.
    pub fn back_off(&self, response: Option<&ResponseHead>) -> Duration {
        if let (Some(policy), Some(head)) = (&self.policy, response)
            && let Some(asked) =
                policy.rate_limited.as_ref().and_then(|limited| rate_limited(&limited.reset_headers, limited.max_interval, head))
        {
            // Up to half as much again, so that clients do not come back together (Envoy's JitteredLowerBoundBackOffStrategy).
            return asked.mul_f64(1.0 + fastrand::f64() / 2.0);
        }
        let (base, max) =
            self.policy.as_ref().map_or((Duration::from_millis(25), Duration::from_millis(250)), |p| (p.base_interval, p.max_interval));
        let factor = 2u32.saturating_pow(self.tried.min(31)).saturating_sub(1).max(1);
        base.saturating_mul(factor).min(max).mul_f64(fastrand::f64())
    }
}

fn rate_limited(headers: &[RateLimitedReset], max: Duration, head: &ResponseHead) -> Option<Duration> {
    headers.iter().find_map(|reset| {
        let seconds: u64 = head.headers.get_str(&reset.name)?.trim().parse().ok()?;
        let wait = if reset.unix_timestamp {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).ok()?.as_secs();
            seconds.checked_sub(now)?
        } else {
            seconds
        };
        Some(Duration::from_secs(wait)).filter(|w| *w <= max)
    })
}

fn take(head: &mut RequestHead, name: &HeaderName) -> Option<String> {
    head.headers.remove(name).and_then(|v| v.to_str().ok().map(str::to_string))
}

/// `grpc-status` of a trailers-only response.
pub fn grpc_status(head: &ResponseHead) -> Option<u32> {
    head.headers.get_str(&GRPC_STATUS)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderValue, Method, StatusCode};

    fn state(headers: &[(&HeaderName, &'static str)]) -> Option<RetryState> {
        let mut head = RequestHead::new(Method::GET, "a", "/");
        for (name, value) in headers {
            head.headers.append((*name).clone(), HeaderValue::from_static(value));
        }
        let state = RetryState::new(None, &mut head);
        assert!(head.headers.is_empty(), "retry headers do not go upstream");
        state
    }

    fn answered(status: u16) -> ResponseHead {
        ResponseHead::new(StatusCode::from_u16(status).unwrap())
    }

    #[test]
    fn nothing_is_retried_by_default() {
        assert!(state(&[]).is_none());
    }

    #[test]
    fn conditions_match_what_envoy_documents() {
        let five = state(&[(&X_ENVOY_RETRY_ON, "5xx")]).unwrap();
        assert!(five.wants(&Failure::Response(&answered(500))) && !five.wants(&Failure::Response(&answered(404))));
        assert!(five.wants(&Failure::Reset { error: &StreamError::ConnectTimeout, processed: false }));
        assert!(!five.wants(&Failure::Reset { error: &StreamError::Overflow, processed: false }), "overflow is never retried");
        let gateway = state(&[(&X_ENVOY_RETRY_ON, "gateway-error")]).unwrap();
        assert!(gateway.wants(&Failure::Response(&answered(503))) && !gateway.wants(&Failure::Response(&answered(500))));
        let connect = state(&[(&X_ENVOY_RETRY_ON, "connect-failure")]).unwrap();
        assert!(connect.wants(&Failure::Reset { error: &StreamError::ConnectFailed(String::new()), processed: false }));
        let closed = StreamError::ConnectionClosed(String::new());
        assert!(!connect.wants(&Failure::Reset { error: &closed, processed: true }), "a processed request is not tried again");
        let before = state(&[(&X_ENVOY_RETRY_ON, "reset-before-request")]).unwrap();
        assert!(before.wants(&Failure::Reset { error: &closed, processed: false }));
        assert!(!before.wants(&Failure::Reset { error: &closed, processed: true }));
        let codes = state(&[(&X_ENVOY_RETRY_ON, "retriable-status-codes"), (&X_ENVOY_RETRIABLE_STATUS_CODES, "418, 503")]).unwrap();
        assert!(codes.wants(&Failure::Response(&answered(418))) && !codes.wants(&Failure::Response(&answered(500))));
        let mut grpc = answered(200);
        grpc.headers.append(GRPC_STATUS.clone(), HeaderValue::from_static("14"));
        assert!(state(&[(&X_ENVOY_RETRY_GRPC_ON, "unavailable")]).unwrap().wants(&Failure::Response(&grpc)));
    }

    #[test]
    fn tries_are_counted() {
        let mut state = state(&[(&X_ENVOY_RETRY_ON, "5xx"), (&X_ENVOY_MAX_RETRIES, "2")]).unwrap();
        assert!(state.take() && state.take() && !state.take() && state.is_exhausted());
    }

    #[test]
    fn back_off_is_bounded() {
        let mut state = state(&[(&X_ENVOY_RETRY_ON, "5xx"), (&X_ENVOY_MAX_RETRIES, "100")]).unwrap();
        for _ in 0..100 {
            state.take();
            assert!(state.back_off(None) <= Duration::from_millis(250));
        }
    }
}
