//! What the rate limit service says, and the headers that tell clients of it. Runs on workers.
//! Source: `envoy/service/ratelimit/v3/rls.proto`, Envoy's `XRateLimitHeaderUtils`.

use http::{HeaderName, HeaderValue};
use nuncio_core::Headers;
use nuncio_proto::envoy::config::core::v3::HeaderValue as Proto;
use nuncio_proto::envoy::service::ratelimit::v3::rate_limit_response::{Code, DescriptorStatus, RateLimit, rate_limit::Unit};
use std::fmt::Write;

const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// Appends headers of the service; those that no message can have are left out.
pub fn append(from: &[Proto], to: &mut Headers) {
    for header in from {
        let value = if header.value.is_empty() { header.raw_value.as_slice() } else { header.value.as_bytes() };
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(header.key.as_bytes()), HeaderValue::from_bytes(value)) {
            to.append(name, value);
        }
    }
}

/// Seconds of a limit's window; 0 if it has none.
fn window(limit: &RateLimit) -> u64 {
    let unit = match Unit::try_from(limit.unit).unwrap_or(Unit::Unknown) {
        Unit::Unknown => 0,
        Unit::Second => 1,
        Unit::Minute => 60,
        Unit::Hour => 3_600,
        Unit::Day => 86_400,
        Unit::Week => 7 * 86_400,
        Unit::Month => 30 * 86_400,
        Unit::Year => 365 * 86_400,
    };
    unit * u64::from(limit.unit_multiplier.unwrap_or(1).max(1))
}

/// Whole seconds, at least one, until the last of the limits that a request is over is open again; none if it is over none.
pub fn retry_after(statuses: &[DescriptorStatus]) -> Option<u64> {
    let over = statuses.iter().filter(|s| s.code == Code::OverLimit as i32);
    let seconds = over.map(|s| s.duration_until_reset.as_ref().map_or(0, |d| u64::try_from(d.seconds).unwrap_or(0)));
    seconds.max().map(|s| s.max(1))
}

/// Adds `x-ratelimit-*` of the limit that is nearest to its end. Source: draft-polli-ratelimit-headers-03.
pub fn tell(statuses: &[DescriptorStatus], to: &mut Headers) {
    let limited = statuses.iter().filter_map(|status| Some((status, status.current_limit.as_ref()?)));
    let Some((nearest, limit)) = limited.clone().min_by_key(|(status, _)| status.limit_remaining) else { return };
    let mut text = limit.requests_per_unit.to_string();
    for (_, limit) in limited {
        let window = window(limit);
        if window == 0 {
            continue;
        }
        let _ = write!(text, ", {};w={window}", limit.requests_per_unit);
        if !limit.name.is_empty() {
            let _ = write!(text, ";name=\"{}\"", limit.name);
        }
    }
    if let Ok(value) = HeaderValue::from_str(&text) {
        to.append(LIMIT, value);
    }
    to.append(REMAINING, HeaderValue::from(nearest.limit_remaining));
    let reset = nearest.duration_until_reset.map_or(0, |d| d.seconds);
    to.append(RESET, HeaderValue::from(reset));
}
