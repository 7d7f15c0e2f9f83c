//! Log entries of the access log service, made of what is known of a stream. Workers.
//! Source: `envoy/data/accesslog/v3/accesslog.proto`, Envoy's `grpc_access_log_utils.cc` and `http_grpc_access_log_impl.cc`.

use crate::tags::Tags;
use crate::tls;
use data::http_access_log_entry::HttpVersion as Version;
use data::response_flags::{Unauthorized, unauthorized::Reason};
use http::HeaderName;
use nuncio_core::views::HostView;
use nuncio_core::{HeaderKey, Headers, HttpVersion, ResponseFlags};
use nuncio_format::{AccessLogType, FormatContext};
use nuncio_proto::envoy::config::core::v3::{Metadata, RequestMethod};
use nuncio_proto::envoy::data::accesslog::v3 as data;
use nuncio_proto::{Any, Timestamp};
use prost::Message;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

const REFERER: HeaderName = http::header::REFERER;
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const X_ENVOY_ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");

/// What an entry shows beside the usual.
#[derive(Debug, Default)]
pub struct More {
    pub filter_state: Vec<String>,
    pub tags: Tags,
    pub request_headers: Vec<HeaderKey>,
    pub response_headers: Vec<HeaderKey>,
    pub response_trailers: Vec<HeaderName>,
}

fn duration(duration: Duration) -> nuncio_proto::Duration {
    nuncio_proto::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn header(headers: Option<&Headers>, name: &HeaderName) -> String {
    headers.and_then(|h| h.get(name)).map(|v| text(v.as_bytes())).unwrap_or_default()
}

/// What entries of HTTP and TCP have in common.
#[allow(deprecated)] // Envoy still fills `intermediate_log_entry`.
pub fn common(cx: &FormatContext<'_>, more: &More) -> data::AccessLogCommon {
    let info = cx.info;
    let connection = &info.connection;
    let upstream = info.upstream.as_deref();
    let since = info.start.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let mut tags = BTreeMap::new();
    more.tags.write(cx, |name, value| drop(tags.insert(name.to_string(), value)));
    let termination = connection.termination_details.borrow();
    data::AccessLogCommon {
        downstream_remote_address: Some(info.remote.to_proto()),
        downstream_direct_remote_address: Some(connection.direct_remote.to_proto()),
        downstream_local_address: Some(connection.local.to_proto()),
        tls_properties: tls::properties(connection),
        start_time: Some(Timestamp {
            seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
        }),
        time_to_last_rx_byte: info.last_downstream_rx.map(duration),
        time_to_first_upstream_tx_byte: upstream.and_then(|u| u.first_tx).map(duration),
        time_to_last_upstream_tx_byte: upstream.and_then(|u| u.last_tx).map(duration),
        time_to_first_upstream_rx_byte: upstream.and_then(|u| u.first_rx).map(duration),
        time_to_last_upstream_rx_byte: upstream.and_then(|u| u.last_rx).map(duration),
        time_to_first_downstream_tx_byte: info.first_downstream_tx.map(duration),
        time_to_last_downstream_tx_byte: info.last_downstream_tx.map(duration),
        duration: info.duration.map(duration),
        upstream_remote_address: upstream.and_then(|u| u.host.as_ref()).map(|h| HostView::address(h.as_ref()).to_proto()),
        upstream_local_address: upstream.and_then(|u| u.local.as_ref()).map(|a| a.to_proto()),
        // As Envoy: that of the host, and so none before there is one.
        upstream_cluster: upstream
            .filter(|u| u.host.is_some())
            .and_then(|u| u.cluster.as_ref())
            .map(|c| c.name().to_string())
            .unwrap_or_default(),
        upstream_transport_failure_reason: upstream.and_then(|u| u.failure.clone()).unwrap_or_default(),
        upstream_request_attempt_count: info.attempts,
        response_flags: Some(flags(info.flags)).filter(|_| !info.flags.is_empty()),
        metadata: info
            .metadata
            .as_ref()
            .map(|all| Metadata { filter_metadata: all.iter().map(|(k, v)| (k.clone(), v.clone())).collect(), ..Default::default() }),
        route_name: info.route_name.as_ref().map(|n| n.to_string()).unwrap_or_default(),
        filter_state_objects: objects(cx, &more.filter_state),
        custom_tags: tags,
        connection_termination_details: termination.as_deref().unwrap_or_default().to_string(),
        downstream_transport_failure_reason: connection.transport_failure.borrow().clone().unwrap_or_default(),
        stream_id: info.request_id.as_ref().map(|id| id.to_string()).unwrap_or_default(),
        intermediate_log_entry: is_intermediate(cx.log_type),
        downstream_wire_bytes_sent: info.wire_tx_bytes,
        downstream_wire_bytes_received: info.wire_rx_bytes,
        upstream_wire_bytes_sent: upstream.map_or(0, |u| u.wire_tx_bytes),
        upstream_wire_bytes_received: upstream.map_or(0, |u| u.wire_rx_bytes),
        access_log_type: cx.log_type.into(),
        ..Default::default()
    }
}

/// Whether another entry of the same stream will follow.
fn is_intermediate(kind: AccessLogType) -> bool {
    matches!(
        kind,
        AccessLogType::TcpUpstreamConnected
            | AccessLogType::TcpPeriodic
            | AccessLogType::DownstreamStart
            | AccessLogType::DownstreamPeriodic
            | AccessLogType::UpstreamPoolReady
            | AccessLogType::UpstreamPeriodic
            | AccessLogType::DownstreamTunnelSuccessfullyEstablished
    )
}

/// Filter state of the stream, else of the upstream connection, as packed strings.
fn objects(cx: &FormatContext<'_>, names: &[String]) -> BTreeMap<String, Any> {
    let find = |name: &String| {
        let upstream = cx.info.upstream.as_ref();
        let connection = cx.info.connection.filter_state.borrow();
        let object = cx.info.filter_state.get(name).or_else(|| upstream?.filter_state.get(name)).or_else(|| connection.get(name))?;
        let value = object.as_string().or_else(|| object.as_json())?;
        let any = Any { type_url: "type.googleapis.com/google.protobuf.StringValue".to_string(), value: value.encode_to_vec() };
        Some((name.clone(), any))
    };
    names.iter().filter_map(find).collect()
}

fn flags(set: ResponseFlags) -> data::ResponseFlags {
    use ResponseFlags as F;
    data::ResponseFlags {
        failed_local_healthcheck: set.has(F::FAILED_LOCAL_HEALTH_CHECK),
        no_healthy_upstream: set.has(F::NO_HEALTHY_UPSTREAM),
        upstream_request_timeout: set.has(F::UPSTREAM_REQUEST_TIMEOUT),
        local_reset: set.has(F::LOCAL_RESET),
        upstream_remote_reset: set.has(F::UPSTREAM_REMOTE_RESET),
        upstream_connection_failure: set.has(F::UPSTREAM_CONNECTION_FAILURE),
        upstream_connection_termination: set.has(F::UPSTREAM_CONNECTION_TERMINATION),
        upstream_overflow: set.has(F::UPSTREAM_OVERFLOW),
        no_route_found: set.has(F::NO_ROUTE_FOUND),
        delay_injected: set.has(F::DELAY_INJECTED),
        fault_injected: set.has(F::FAULT_INJECTED),
        rate_limited: set.has(F::RATE_LIMITED),
        unauthorized_details: set.has(F::UNAUTHORIZED_EXTERNAL_SERVICE).then_some(Unauthorized { reason: Reason::ExternalService.into() }),
        rate_limit_service_error: set.has(F::RATE_LIMIT_SERVICE_ERROR),
        downstream_connection_termination: set.has(F::DOWNSTREAM_CONNECTION_TERMINATION),
        upstream_retry_limit_exceeded: set.has(F::UPSTREAM_RETRY_LIMIT_EXCEEDED),
        stream_idle_timeout: set.has(F::STREAM_IDLE_TIMEOUT),
        invalid_envoy_request_headers: set.has(F::INVALID_ENVOY_REQUEST_HEADERS),
        downstream_protocol_error: set.has(F::DOWNSTREAM_PROTOCOL_ERROR),
        upstream_max_stream_duration_reached: set.has(F::UPSTREAM_MAX_STREAM_DURATION_REACHED),
        response_from_cache_filter: set.has(F::RESPONSE_FROM_CACHE_FILTER),
        no_filter_config_found: set.has(F::NO_FILTER_CONFIG_FOUND),
        duration_timeout: set.has(F::DURATION_TIMEOUT),
        upstream_protocol_error: set.has(F::UPSTREAM_PROTOCOL_ERROR),
        no_cluster_found: set.has(F::NO_CLUSTER_FOUND),
        overload_manager: set.has(F::OVERLOAD_MANAGER),
        dns_resolution_failure: set.has(F::DNS_RESOLUTION_FAILED),
        downstream_remote_reset: set.has(F::DOWNSTREAM_REMOTE_RESET),
    }
}

/// The entry of an HTTP stream.
pub fn http(cx: &FormatContext<'_>, more: &More) -> data::HttpAccessLogEntry {
    let version = match cx.info.protocol {
        None => Version::ProtocolUnspecified,
        Some(HttpVersion::Http10) => Version::Http10,
        Some(HttpVersion::Http11) => Version::Http11,
        Some(HttpVersion::Http2) => Version::Http2,
        Some(HttpVersion::Http3) => Version::Http3,
    };
    data::HttpAccessLogEntry {
        common_properties: Some(common(cx, more)),
        protocol_version: version.into(),
        request: Some(request(cx, more)),
        response: Some(response(cx, more)),
    }
}

fn request(cx: &FormatContext<'_>, more: &More) -> data::HttpRequestProperties {
    let info = cx.info;
    let mut out = data::HttpRequestProperties {
        request_body_bytes: info.request_meter.bytes.get(),
        downstream_header_bytes_received: info.request_header_bytes,
        upstream_header_bytes_sent: info.upstream.as_ref().map_or(0, |u| u.header_tx_bytes),
        ..Default::default()
    };
    let Some(head) = cx.request else { return out };
    let headers = Some(&head.headers);
    out.request_method = RequestMethod::from_str_name(head.method.as_str()).unwrap_or_default().into();
    out.scheme = head.scheme.to_string();
    out.authority = head.authority.to_string();
    out.path = head.path.to_string();
    out.user_agent = header(headers, &http::header::USER_AGENT);
    out.referer = header(headers, &REFERER);
    out.forwarded_for = header(headers, &X_FORWARDED_FOR);
    out.request_id = header(headers, &X_REQUEST_ID);
    out.original_path = header(headers, &X_ENVOY_ORIGINAL_PATH);
    out.request_headers_bytes = cx.request_headers_bytes();
    let logged = more.request_headers.iter().filter_map(|key| Some((key.as_str().to_string(), text(&head.header(key)?))));
    out.request_headers = logged.collect();
    out
}

fn response(cx: &FormatContext<'_>, more: &More) -> data::HttpResponseProperties {
    let info = cx.info;
    let mut out = data::HttpResponseProperties {
        response_code: (info.response_code > 0).then_some(u32::from(info.response_code)),
        response_code_details: info.details.as_deref().unwrap_or_default().to_string(),
        response_body_bytes: info.bytes_sent,
        response_headers_bytes: cx.response_headers_bytes(),
        downstream_header_bytes_sent: info.response_header_bytes,
        upstream_header_bytes_received: info.upstream.as_ref().map_or(0, |u| u.header_rx_bytes),
        ..Default::default()
    };
    if let Some(head) = cx.response {
        let logged = more.response_headers.iter().filter_map(|key| Some((key.as_str().to_string(), text(&head.header(key)?))));
        out.response_headers = logged.collect();
    }
    if let Some(trailers) = cx.trailers {
        let logged = more.response_trailers.iter().filter_map(|n| Some((n.as_str().to_string(), text(trailers.get(n)?.as_bytes()))));
        out.response_trailers = logged.collect();
    }
    out
}

/// The entry of a TCP stream.
pub fn tcp(cx: &FormatContext<'_>, more: &More) -> data::TcpAccessLogEntry {
    data::TcpAccessLogEntry {
        common_properties: Some(common(cx, more)),
        connection_properties: Some(data::ConnectionProperties {
            received_bytes: cx.info.request_meter.bytes.get(),
            sent_bytes: cx.info.bytes_sent,
        }),
    }
}
