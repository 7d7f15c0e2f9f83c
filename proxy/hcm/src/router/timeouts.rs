//! The timeouts of one request, from route and headers. Runs on a worker, once per forwarded request.
//! Source: Envoy's `FilterUtility::finalTimeout`, RouteAction.timeout, max_stream_duration, docs "Router" headers.

use super::config::{RouterConfig, Strict};
use crate::names::*;
use http::{HeaderName, HeaderValue};
use nuncio_core::{LocalReply, RequestHead};
use nuncio_route::Forward;
use std::time::Duration;

/// What bounds one request; none is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    pub global: Option<Duration>,
    pub per_try: Option<Duration>,
    pub per_try_idle: Option<Duration>,
    /// Of the whole stream, as route, client and connection manager have it.
    pub max_stream_duration: Option<Duration>,
    /// The client asked for a 204 in the place of a 504.
    pub alt_response: bool,
    /// An attempt that runs into its per-try timeout goes on beside the retry. The upstream is told what is left of the whole time, not of a
    /// try.
    pub hedged: bool,
    tell_expected: bool,
}

impl Timeouts {
    /// Tells the upstream how long it has, `elapsed` after the request was complete. Source: `FilterUtility::setTimeoutHeaders`.
    pub fn tell(&self, head: &mut RequestHead, elapsed: Duration) -> Option<Duration> {
        let expected = if self.hedged { self.global } else { self.per_try.or(self.global) }?;
        let left = self.global.map_or(expected, |global| expected.min(global.saturating_sub(elapsed)));
        // None left would read as no limit.
        let left = left.max(Duration::from_millis(1));
        if self.tell_expected {
            let millis = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
            head.headers.insert(X_ENVOY_EXPECTED_RQ_TIMEOUT_MS.clone(), HeaderValue::from(millis));
        }
        Some(left)
    }
}

/// Settles the timeouts and the header that tells the upstream of them.
pub fn settle(
    forward: &Forward,
    config: &RouterConfig,
    manager_max: Option<Duration>,
    head: &mut RequestHead,
) -> Result<Timeouts, Box<LocalReply>> {
    strict(config, head)?;
    let grpc = head.is_grpc();
    // A route with `max_stream_duration` has no response timeout unless a header asks for one.
    let global = if forward.bounds_stream() { None } else { forward.timeout() };
    let max_stream_duration = forward.max_stream_duration().unwrap_or(manager_max);
    let mut timeouts = Timeouts { global, max_stream_duration, ..Timeouts::default() };
    if let Some(retry) = forward.retry_policy() {
        timeouts.per_try = retry.per_try_timeout;
        timeouts.per_try_idle = retry.per_try_idle_timeout;
    }
    let limits = forward.grpc_timeout();
    match limits {
        Some(limits) if limits.is_stream_duration() => {
            if let Some(asked) = grpc_timeout(head) {
                timeouts.max_stream_duration = Some(limits.stream_duration(asked));
            }
        }
        // Without the header the client asks for infinity.
        Some(limits) if grpc => timeouts.global = limits.apply(grpc_timeout(head).unwrap_or_default()),
        _ => {}
    }
    if config.respect_expected_rq_timeout
        && let Some(expected) = milliseconds(head, &X_ENVOY_EXPECTED_RQ_TIMEOUT_MS)
    {
        timeouts.global = nonzero(expected);
    }
    if let Some(asked) = milliseconds(head, &X_ENVOY_UPSTREAM_RQ_TIMEOUT_MS) {
        timeouts.global = nonzero(asked);
        head.headers.remove(&X_ENVOY_UPSTREAM_RQ_TIMEOUT_MS);
    }
    if let Some(asked) = milliseconds(head, &X_ENVOY_UPSTREAM_RQ_PER_TRY_TIMEOUT_MS) {
        timeouts.per_try = nonzero(asked);
        head.headers.remove(&X_ENVOY_UPSTREAM_RQ_PER_TRY_TIMEOUT_MS);
    }
    if timeouts.per_try >= timeouts.global && timeouts.global.is_some() {
        timeouts.per_try = None;
    }
    // Headers for this proxy, not for the upstream.
    let mut taken = |name: &HeaderName| head.headers.remove(name).is_some_and(|v| v.as_bytes() == b"true" || v.as_bytes() == b"1");
    timeouts.alt_response = taken(&X_ENVOY_UPSTREAM_RQ_TIMEOUT_ALT_RESPONSE);
    taken(&X_ENVOY_UPSTREAM_ALT_STAT_NAME);
    timeouts.hedged = match head.headers.remove(&X_ENVOY_HEDGE_ON_PER_TRY_TIMEOUT).as_ref().map(HeaderValue::as_bytes) {
        Some(b"true") => true,
        Some(b"false") => false,
        _ => forward.hedge_policy().is_some_and(|hedge| hedge.hedge_on_per_try_timeout),
    };
    timeouts.tell_expected = !config.suppress_envoy_headers;
    let expected = timeouts.tell(head, Duration::ZERO);
    if grpc {
        // The upstream shall know how long it has.
        let left = match limits {
            _ if timeouts.max_stream_duration.is_some() => timeouts.max_stream_duration,
            Some(limits) if !limits.is_stream_duration() => expected,
            _ => None,
        };
        if let Some(text) = left.and_then(|left| HeaderValue::try_from(format!("{}m", left.as_millis())).ok()) {
            head.headers.insert(GRPC_TIMEOUT.clone(), text);
        }
    }
    Ok(timeouts)
}

fn nonzero(d: Duration) -> Option<Duration> {
    Some(d).filter(|d| !d.is_zero())
}

fn milliseconds(head: &RequestHead, name: &HeaderName) -> Option<Duration> {
    Some(Duration::from_millis(head.headers.get_str(name)?.parse().ok()?))
}

/// `grpc-timeout`: up to eight digits and a unit. None if absent or malformed.
fn grpc_timeout(head: &RequestHead) -> Option<Duration> {
    let text = head.headers.get_str(&GRPC_TIMEOUT)?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(n * 3600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return None,
    })
}

/// `strict_check_headers`: a malformed one refuses the request.
fn strict(config: &RouterConfig, head: &RequestHead) -> Result<(), Box<LocalReply>> {
    for check in &config.strict_check {
        let (name, number) = match check {
            Strict::RqTimeoutMs => (&X_ENVOY_UPSTREAM_RQ_TIMEOUT_MS, true),
            Strict::PerTryTimeoutMs => (&X_ENVOY_UPSTREAM_RQ_PER_TRY_TIMEOUT_MS, true),
            Strict::MaxRetries => (&X_ENVOY_MAX_RETRIES, true),
            Strict::RetryOn => (&X_ENVOY_RETRY_ON, false),
            Strict::RetryGrpcOn => (&X_ENVOY_RETRY_GRPC_ON, false),
        };
        let Some(value) = head.headers.get(name) else { continue };
        let text = value.to_str().unwrap_or_default();
        let fine = match check {
            _ if number => text.parse::<u64>().is_ok(),
            Strict::RetryGrpcOn => nuncio_route::RetryOn::parse_grpc(text).is_ok(),
            _ => nuncio_route::RetryOn::parse(text).is_ok(),
        };
        if !fine {
            let body = format!("invalid header '{name}' with value '{text}'");
            let reply = LocalReply::new(400, body, format!("request_headers_failed_strict_check{{{name}}}"));
            return Err(Box::new(reply.flag(nuncio_core::ResponseFlags::INVALID_ENVOY_REQUEST_HEADERS)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(text: &'static str) -> Option<Duration> {
        let mut head = RequestHead::new(http::Method::POST, "a", "/");
        head.headers.insert(GRPC_TIMEOUT.clone(), HeaderValue::from_static(text));
        grpc_timeout(&head)
    }

    #[test]
    fn grpc_timeouts_parse() {
        assert_eq!(asked("5S"), Some(Duration::from_secs(5)));
        assert_eq!(asked("100m"), Some(Duration::from_millis(100)));
        assert_eq!(asked("1H"), Some(Duration::from_secs(3600)));
        assert_eq!(asked("99999999n"), Some(Duration::from_nanos(99_999_999)));
        for bad in ["", "S", "5", "5s", "123456789m", "-1S", "1.5S"] {
            assert_eq!(asked(bad), None, "{bad:?}");
        }
    }
}
