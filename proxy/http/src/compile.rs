//! Codec options from `core.v3` protobuf, for both sides. Called on the control thread by nuncio-hcm and nuncio-upstream.

use crate::options::{FloodLimits, H1Options, H2Options, HeaderKeyFormat, HeadersWithUnderscores, KeepAlive};
use nuncio_core::diag::{At, Report};
use nuncio_proto::envoy::config::core::v3::http_protocol_options::HeadersWithUnderscoresAction;
use nuncio_proto::envoy::config::core::v3::http1_protocol_options::header_key_format::HeaderFormat;
use nuncio_proto::envoy::config::core::v3::{Http1ProtocolOptions, Http2ProtocolOptions, KeepaliveSettings};
use nuncio_proto::envoy::extensions::http::header_formatters::preserve_case::v3::PreserveCaseFormatterConfig;
use nuncio_proto::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use std::time::Duration;

/// A protobuf duration; negative ones are errors, as in Envoy.
pub fn duration(proto: &nuncio_proto::Duration, at: &At<'_>, report: &mut Report) -> Option<Duration> {
    match Duration::try_from(*proto) {
        Ok(d) => Some(d),
        Err(_) => {
            report.error(at, format!("duration {}.{:09}s", proto.seconds, proto.nanos.abs()), "durations must not be negative");
            None
        }
    }
}

/// An optional duration where 0 means none; `default` if it is absent.
pub fn timeout(proto: Option<&nuncio_proto::Duration>, default: Option<Duration>, at: &At<'_>, report: &mut Report) -> Option<Duration> {
    match proto {
        None => default,
        Some(d) => duration(d, at, report).filter(|d| !d.is_zero()),
    }
}

/// `HeadersWithUnderscoresAction` by number; unknown numbers are errors.
pub fn underscores(action: i32, at: &At<'_>, report: &mut Report) -> HeadersWithUnderscores {
    match HeadersWithUnderscoresAction::try_from(action) {
        Ok(HeadersWithUnderscoresAction::Allow) => HeadersWithUnderscores::Allow,
        Ok(HeadersWithUnderscoresAction::RejectRequest) => HeadersWithUnderscores::RejectRequest,
        Ok(HeadersWithUnderscoresAction::DropHeader) => HeadersWithUnderscores::DropHeader,
        Err(_) => {
            report.error(at, format!("value {action}"), "one of ALLOW, REJECT_REQUEST, DROP_HEADER");
            HeadersWithUnderscores::Allow
        }
    }
}

/// HTTP/1 options.
pub fn h1(proto: &Http1ProtocolOptions, at: &At<'_>, report: &mut Report) -> H1Options {
    let mut options = H1Options {
        allow_absolute_url: proto.allow_absolute_url.unwrap_or(true),
        accept_http_10: proto.accept_http_10,
        default_host_for_http_10: proto.default_host_for_http_10.as_str().into(),
        enable_trailers: proto.enable_trailers,
        allow_chunked_length: proto.allow_chunked_length,
        stream_error_on_invalid_http_message: proto.override_stream_error_on_invalid_http_message.unwrap_or(false),
        send_fully_qualified_url: proto.send_fully_qualified_url,
        allow_custom_methods: proto.allow_custom_methods,
        ..H1Options::default()
    };
    // `use_balsa_parser` chooses between parsers of Envoy; ours is the only one here, so either value is honoured.
    let format_at = at.field("header_key_format");
    match proto.header_key_format.as_ref().and_then(|f| f.header_format.as_ref()) {
        None => {}
        Some(HeaderFormat::ProperCaseWords(_)) => options.header_key_format = HeaderKeyFormat::ProperCase,
        Some(HeaderFormat::StatefulFormatter(extension)) => {
            let any = extension.typed_config.clone().unwrap_or_default();
            match nuncio_proto::typed::unpack_as::<PreserveCaseFormatterConfig>(&any) {
                Ok(config) => {
                    options.forward_reason_phrase = config.forward_reason_phrase;
                    options.header_key_format =
                        HeaderKeyFormat::PreserveCase { proper_case_unknown: config.formatter_type_on_envoy_headers == 1 }
                }
                Err(why) => report.error(
                    &format_at.field("stateful_formatter"),
                    why,
                    "only envoy.http.stateful_header_formatters.preserve_case is supported",
                ),
            }
        }
    }
    for (i, matcher) in proto.ignore_http_11_upgrade.iter().enumerate() {
        match &matcher.match_pattern {
            Some(MatchPattern::Exact(token)) => options.ignore_upgrades.push(token.to_ascii_lowercase()),
            _ => {
                let list = at.field("ignore_http_11_upgrade");
                report.unsupported(&list.index(i), "a matcher other than `exact`");
            }
        }
    }
    options
}

/// HTTP/2 options. Windows and stream counts are checked against the bounds in the proto.
pub fn h2(proto: &Http2ProtocolOptions, at: &At<'_>, report: &mut Report) -> H2Options {
    const WINDOW: std::ops::RangeInclusive<u32> = 65_535..=2_147_483_647;
    let defaults = H2Options::default();
    let mut bounded = |name: &str, value: Option<u32>, range: std::ops::RangeInclusive<u32>, default: u32| match value {
        None => default,
        Some(v) if range.contains(&v) => v,
        Some(v) => {
            report.error(&at.field(name), format!("value {v}"), format!("{} to {}", range.start(), range.end()));
            default
        }
    };
    for (value, name) in
        [(proto.max_outbound_frames, "max_outbound_frames"), (proto.max_outbound_control_frames, "max_outbound_control_frames")]
    {
        // Nothing to hold to it: no frame is queued for a peer that does not read, and no more frames are taken from it.
        let _ = bounded(name, value, 1..=u32::MAX, 1);
    }
    let options = H2Options {
        hpack_table_size: proto.hpack_table_size.unwrap_or(defaults.hpack_table_size),
        max_concurrent_streams: bounded(
            "max_concurrent_streams",
            proto.max_concurrent_streams,
            1..=2_147_483_647,
            defaults.max_concurrent_streams,
        ),
        initial_stream_window_size: bounded(
            "initial_stream_window_size",
            proto.initial_stream_window_size,
            WINDOW,
            defaults.initial_stream_window_size,
        ),
        initial_connection_window_size: bounded(
            "initial_connection_window_size",
            proto.initial_connection_window_size,
            WINDOW,
            defaults.initial_connection_window_size,
        ),
        flood: FloodLimits {
            max_consecutive_empty_frames: proto
                .max_consecutive_inbound_frames_with_empty_payload
                .unwrap_or(defaults.flood.max_consecutive_empty_frames),
            max_priority_frames_per_stream: proto
                .max_inbound_priority_frames_per_stream
                .unwrap_or(defaults.flood.max_priority_frames_per_stream),
            max_window_updates_per_data_frame: bounded(
                "max_inbound_window_update_frames_per_data_frame_sent",
                proto.max_inbound_window_update_frames_per_data_frame_sent,
                1..=u32::MAX,
                defaults.flood.max_window_updates_per_data_frame,
            ),
            reset_burst: proto.stream_reset_burst.map_or(defaults.flood.reset_burst, u64::from),
            reset_rate: proto.stream_reset_rate.map_or(defaults.flood.reset_rate, u64::from),
        },
        max_field_size: bounded("max_header_field_size_kb", proto.max_header_field_size_kb, 64..=256, 64) * 1024,
        disallow_obs_text: proto.disallow_obs_text.unwrap_or(false),
        allow_connect: proto.allow_connect,
        ..defaults
    };
    let keepalive_at = at.field("connection_keepalive");
    let keepalive = proto.connection_keepalive.as_ref().and_then(|k| keepalive(k, &keepalive_at, report));
    if proto.allow_metadata {
        report.unsupported(&at.field("allow_metadata"), "METADATA frames");
    }
    if !proto.custom_settings_parameters.is_empty() {
        report.unsupported(&at.field("custom_settings_parameters"), "setting parameters by number");
    }
    if proto.enable_huffman_encoding == Some(false) {
        report.warning(&at.field("enable_huffman_encoding"), "false", "header values are Huffman-coded where that is shorter");
    }
    H2Options { keepalive, ..options }
}

fn keepalive(proto: &KeepaliveSettings, at: &At<'_>, report: &mut Report) -> Option<KeepAlive> {
    for (field, value) in
        [("interval", &proto.interval), ("timeout", &proto.timeout), ("connection_idle_interval", &proto.connection_idle_interval)]
    {
        if value.as_ref().is_some_and(|d| d.seconds == 0 && d.nanos < 1_000_000) {
            report.error(&at.field(field), "less than 1ms", "a duration of at least 1ms is required");
        }
    }
    let interval = timeout(proto.interval.as_ref(), None, &at.field("interval"), report);
    let idle = timeout(proto.connection_idle_interval.as_ref(), None, &at.field("connection_idle_interval"), report);
    let timeout_at = at.field("timeout");
    let Some(timeout) = timeout(proto.timeout.as_ref(), None, &timeout_at, report) else {
        report.error(&timeout_at, "missing", "a duration of at least 1ms is required");
        return None;
    };
    let jitter = proto.interval_jitter.map_or(15.0, |p| p.value);
    Some(KeepAlive { interval, timeout, interval_jitter_percent: jitter, connection_idle_interval: idle })
}
