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
    /// The outer none leaves it to the connection manager.
    pub max_stream_duration: Option<Option<Duration>>,
}

/// Settles the timeouts and the header that tells the upstream of them.
pub fn settle(forward: &Forward, config: &RouterConfig, head: &mut RequestHead) -> Result<Timeouts, Box<LocalReply>> {
    strict(config, head)?;
    let grpc = head.is_grpc();
    let mut timeouts = Timeouts { global: forward.timeout(), max_stream_duration: forward.max_stream_duration(), ..Timeouts::default() };
    if let Some(retry) = forward.retry_policy() {
        timeouts.per_try = retry.per_try_timeout;
        timeouts.per_try_idle = retry.per_try_idle_timeout;
    }
    if grpc {
        if let Some(limits) = forward.grpc_timeout() {
            // Without the header the client asks for infinity.
            let bounded = limits.apply(grpc_timeout(head).unwrap_or_default());
            if limits.is_stream_duration() {
                timeouts.max_stream_duration = Some(bounded);
            } else {
                timeouts.global = bounded;
            }
        }
    }
    if config.respect_expected_rq_timeout {
        if let Some(expected) = milliseconds(head, &X_ENVOY_EXPECTED_RQ_TIMEOUT_MS) {
            timeouts.global = nonzero(expected);
        }
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
    let expected = timeouts.per_try.or(timeouts.global);
    if !config.suppress_envoy_headers {
        if let Some(expected) = expected {
            let millis = u64::try_from(expected.as_millis()).unwrap_or(u64::MAX);
            head.headers.insert(X_ENVOY_EXPECTED_RQ_TIMEOUT_MS.clone(), HeaderValue::from(millis));
        }
    }
    if grpc {
        if let (Some(expected), true) = (expected, forward.grpc_timeout().is_some()) {
            if let Ok(text) = HeaderValue::try_from(format!("{}m", expected.as_millis())) {
                head.headers.insert(GRPC_TIMEOUT.clone(), text);
            }
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
