//! Upstream failures as clients and logs see them: status, flags, details. One match for all of them.
//! Source: Envoy's `Router::Filter::onUpstreamReset`, `StreamInfo::ResponseCodeDetails` and the docs of response flags.

use nuncio_core::{LocalReply, ResponseFlags, StreamError, StreamInfo};
use std::borrow::Cow;

/// Envoy's text of a reset reason, as in `upstream connect error or disconnect/reset before headers. reset reason: ...`.
pub fn reason(error: &StreamError) -> &'static str {
    match error {
        StreamError::RemoteReset(_) => "remote reset",
        StreamError::RemoteRefused => "remote refused stream reset",
        StreamError::ConnectionClosed(_) => "connection termination",
        StreamError::ConnectFailed(_) => "remote connection failure",
        StreamError::ConnectTimeout => "connection timeout",
        StreamError::Protocol(_) | StreamError::TooLarge(_) => "protocol error",
        StreamError::Overflow => "overflow",
        StreamError::LocalReset(_) => "local reset",
    }
}

/// The transport's own words, if it had any.
pub fn transport_reason(error: &StreamError) -> Option<&str> {
    match error {
        StreamError::ConnectionClosed(why) | StreamError::ConnectFailed(why) if !why.is_empty() => Some(why),
        _ => None,
    }
}

/// The response flag of a failure.
pub fn flag(error: &StreamError) -> ResponseFlags {
    match error {
        StreamError::RemoteReset(_) | StreamError::RemoteRefused => ResponseFlags::UPSTREAM_REMOTE_RESET,
        StreamError::ConnectionClosed(_) => ResponseFlags::UPSTREAM_CONNECTION_TERMINATION,
        StreamError::ConnectFailed(_) | StreamError::ConnectTimeout => ResponseFlags::UPSTREAM_CONNECTION_FAILURE,
        StreamError::Protocol(_) | StreamError::TooLarge(_) => ResponseFlags::UPSTREAM_PROTOCOL_ERROR,
        StreamError::Overflow => ResponseFlags::UPSTREAM_OVERFLOW,
        StreamError::LocalReset(_) => ResponseFlags::LOCAL_RESET,
    }
}

/// The status of the local reply for a failure: 502 when the upstream broke the protocol, 503 for everything else, as in Envoy.
pub fn status(error: &StreamError) -> u16 {
    if matches!(error, StreamError::Protocol(_) | StreamError::TooLarge(_)) { 502 } else { 503 }
}

/// The local reply for a failure before any response header. `retried`: there was an attempt before. What the transport said is for
/// logs only.
pub fn before_response(error: &StreamError, retried: bool) -> Box<LocalReply> {
    let reason = reason(error);
    let again = if retried { "retried and the latest " } else { "" };
    let body = format!("upstream connect error or disconnect/reset before headers. {again}reset reason: {reason}");
    let mut details = reason.replace(' ', "_");
    if let Some(why) = transport_reason(error) {
        details.push('|');
        details.push_str(&why.replace(char::is_whitespace, "_"));
    }
    let mut reply = LocalReply::new(status(error), body, format!("upstream_reset_before_response_started{{{details}}}")).flag(flag(error));
    if *error == StreamError::Overflow {
        reply.headers.insert(crate::names::X_ENVOY_OVERLOADED.clone(), http::HeaderValue::from_static("true"));
    }
    Box::new(reply)
}

/// Notes a failure after the response began; the stream is reset.
pub fn after_response_started(info: &mut StreamInfo, error: &StreamError) {
    match error {
        StreamError::LocalReset(detail) => {
            info.flags.set(local_flag(detail));
            info.details = Some(Cow::Borrowed(detail));
        }
        _ => {
            info.flags.set(flag(error));
            let mut details = reason(error).replace(' ', "_");
            if let Some(why) = transport_reason(error) {
                details.push('|');
                details.push_str(&why.replace(char::is_whitespace, "_"));
            }
            info.details = Some(Cow::Owned(format!("upstream_reset_after_response_started{{{details}}}")));
        }
    }
}

/// Details of resets that this proxy decides on after the response began.
pub const RESPONSE_TIMEOUT: &str = "response_timeout";
pub const STREAM_IDLE_TIMEOUT: &str = "stream_idle_timeout";
pub const MAX_DURATION: &str = "max_duration_timeout";
pub const UPSTREAM_MAX_DURATION: &str = "upstream_max_stream_duration_reached";
pub const PER_TRY_IDLE_TIMEOUT: &str = "upstream_per_try_idle_timeout";
pub const PER_TRY_TIMEOUT: &str = "upstream_per_try_timeout";

/// Whether the connection manager decides on this end, and not the router: it is not counted for the cluster.
pub fn is_managers(details: &str) -> bool {
    matches!(details, MAX_DURATION | UPSTREAM_MAX_DURATION | STREAM_IDLE_TIMEOUT | "request_overall_timeout")
}

fn local_flag(detail: &str) -> ResponseFlags {
    match detail {
        RESPONSE_TIMEOUT | PER_TRY_TIMEOUT | PER_TRY_IDLE_TIMEOUT => ResponseFlags::UPSTREAM_REQUEST_TIMEOUT,
        STREAM_IDLE_TIMEOUT => ResponseFlags::STREAM_IDLE_TIMEOUT,
        MAX_DURATION => ResponseFlags::default(),
        UPSTREAM_MAX_DURATION => ResponseFlags::UPSTREAM_MAX_STREAM_DURATION_REACHED,
        _ => ResponseFlags::LOCAL_RESET,
    }
}
