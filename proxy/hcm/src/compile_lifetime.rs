//! Compiles what bounds connections and streams of an HttpConnectionManager, and when their log lines are written. Control thread.

use crate::config::{LogOptions, Timeouts};
use nuncio_core::diag::{At, Report};
use nuncio_http::compile::timeout;
use nuncio_proto::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use nuncio_proto::envoy::r#type::v3::Percent;
use std::time::Duration;

/// Timeouts and durations.
pub fn timeouts(proto: &HttpConnectionManager, at: &At<'_>, report: &mut Report) -> Timeouts {
    let common = proto.common_http_protocol_options.unwrap_or_default();
    let common_at = at.field("common_http_protocol_options");
    let mut of = |proto: Option<&nuncio_proto::Duration>, default, at: &At<'_>| timeout(proto, default, at, report);
    let five_minutes = Some(Duration::from_secs(300));
    let stream_idle = of(proto.stream_idle_timeout.as_ref(), five_minutes, &at.field("stream_idle_timeout"));
    Timeouts {
        stream_idle,
        flush: of(proto.stream_flush_timeout.as_ref(), stream_idle, &at.field("stream_flush_timeout")),
        request: of(proto.request_timeout.as_ref(), None, &at.field("request_timeout")),
        max_stream_duration: of(common.max_stream_duration.as_ref(), None, &common_at.field("max_stream_duration")),
        max_connection_duration: of(common.max_connection_duration.as_ref(), None, &common_at.field("max_connection_duration")),
        drain: of(proto.drain_timeout.as_ref(), Some(Duration::from_secs(5)), &at.field("drain_timeout")).unwrap_or_default(),
        max_connection_jitter: jitter(
            common.max_connection_duration_jitter.as_ref(),
            &common_at.field("max_connection_duration_jitter"),
            report,
        ),
        drain_jitter: jitter(proto.drain_timeout_jitter.as_ref(), &at.field("drain_timeout_jitter"), report),
        http1_safe: proto.http1_safe_max_connection_duration,
    }
}

/// The part by which a duration may grow at random, 0 to 1.
fn jitter(percent: Option<&Percent>, at: &At<'_>, report: &mut Report) -> f64 {
    let percent = percent.map_or(0.0, |p| p.value);
    if !(0.0..=100.0).contains(&percent) {
        report.error(at, percent.to_string(), "0 to 100");
        return 0.0;
    }
    percent / 100.0
}

/// `access_log_options`, or the deprecated fields in its place.
#[allow(deprecated)]
pub fn log_options(proto: &HttpConnectionManager, at: &At<'_>, report: &mut Report) -> LogOptions {
    let interval_of = |proto: Option<&nuncio_proto::Duration>, at: &At<'_>, report: &mut Report| {
        let interval = timeout(proto, None, at, report);
        if proto.is_some() && interval.is_none_or(|i| i < Duration::from_millis(1)) {
            report.error(at, "less than 1 ms", "give at least 1 ms");
        }
        interval
    };
    let Some(options) = &proto.access_log_options else {
        return LogOptions {
            interval: interval_of(proto.access_log_flush_interval.as_ref(), &at.field("access_log_flush_interval"), report),
            on_new_request: proto.flush_access_log_on_new_request,
            on_tunnel: false,
        };
    };
    for (set, name) in [
        (proto.access_log_flush_interval.is_some(), "access_log_flush_interval"),
        (proto.flush_access_log_on_new_request, "flush_access_log_on_new_request"),
    ] {
        if set {
            report.error(&at.field(name), "beside access_log_options", "keep access_log_options alone");
        }
    }
    let at = at.field("access_log_options");
    LogOptions {
        interval: interval_of(options.access_log_flush_interval.as_ref(), &at.field("access_log_flush_interval"), report),
        on_new_request: options.flush_access_log_on_new_request,
        on_tunnel: options.flush_log_on_tunnel_successfully_established,
    }
}
