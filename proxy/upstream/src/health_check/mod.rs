//! Active health checks: HTTP, TCP and gRPC, from the control thread. Source: Envoy's `envoy/config/core/v3/health_check.proto` and
//! docs "Health checking". [`probe`] makes one check, [`session`] decides what it means for the host,
//! [`events`] writes it down.

mod events;
mod probe;
mod session;

pub(crate) use session::{fail_now, run};

use crate::compile::{duration, extension, ignore, positive, refuse};
use crate::outlier::EventLog;
use crate::spec::Criteria;
use bytes::Bytes;
use events::Events;
use http::{HeaderName, HeaderValue, Method};
use nuncio_core::ByteStr;
use nuncio_core::diag::{At, Report};
use nuncio_matcher::StringMatcher;
use nuncio_proto::Message;
use nuncio_proto::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use nuncio_proto::envoy::config::core::v3::health_check::payload::Payload as PayloadKind;
use nuncio_proto::envoy::config::core::v3::health_check::{GrpcHealthCheck, HealthChecker, HttpHealthCheck, Payload, TcpHealthCheck};
use nuncio_proto::envoy::config::core::v3::{HeaderValueOption, HealthCheck, ProxyProtocolConfig, RequestMethod};
use nuncio_proto::envoy::extensions::health_check::event_sinks::file::v3::HealthCheckEventFileSink;
use nuncio_proto::envoy::r#type::v3::{CodecClientType, Int64Range};
use std::path::Path;
use std::time::Duration;

/// One compiled `HealthCheck`.
#[derive(Debug)]
pub(crate) struct HealthCheckSpec {
    pub kind: Kind,
    pub timeout: Duration,
    pub interval: Duration,
    pub initial_jitter: Duration,
    pub interval_jitter: Duration,
    /// Of the interval, on top of `interval_jitter`.
    pub jitter_percent: u32,
    pub unhealthy_threshold: u32,
    pub healthy_threshold: u32,
    pub alt_port: Option<u16>,
    pub reuse: bool,
    pub no_traffic_interval: Duration,
    pub no_traffic_healthy_interval: Duration,
    pub unhealthy_interval: Duration,
    pub unhealthy_edge_interval: Duration,
    pub healthy_edge_interval: Duration,
    /// `tls_options.alpn_protocols`.
    pub alpn: Option<Box<[Vec<u8>]>>,
    /// `transport_socket_match_criteria`.
    pub criteria: Option<Criteria>,
    pub events: Events,
}

/// What is checked.
#[derive(Debug)]
pub(crate) enum Kind {
    Http(Box<HttpCheck>),
    Tcp(Box<TcpCheck>),
    Grpc(Box<GrpcCheck>),
}

/// Which HTTP a check speaks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Codec {
    pub h2: bool,
    /// `use_alpn_protocol`: what ALPN chose goes before `h2`.
    pub by_alpn: bool,
}

/// `HttpHealthCheck`.
#[derive(Debug)]
pub(crate) struct HttpCheck {
    /// Empty for the cluster's name.
    pub host: ByteStr,
    pub path: ByteStr,
    pub method: Method,
    pub headers: Box<[AddedHeader]>,
    pub remove: Box<[HeaderName]>,
    pub expected: Box<[std::ops::Range<i64>]>,
    pub retriable: Box<[std::ops::Range<i64>]>,
    pub receive: Box<[Vec<u8>]>,
    /// The request's body.
    pub send: Option<Bytes>,
    /// Bytes of the body that are looked at; 0 for all.
    pub buffer: usize,
    pub codec: Codec,
    pub service: Option<StringMatcher>,
}

/// `TcpHealthCheck`.
#[derive(Debug)]
pub(crate) struct TcpCheck {
    pub send: Vec<u8>,
    pub receive: Box<[Vec<u8>]>,
    /// PROXY protocol header to send first; true for version 2.
    pub proxy: Option<bool>,
}

/// `GrpcHealthCheck`.
#[derive(Debug)]
pub(crate) struct GrpcCheck {
    pub service: String,
    pub authority: ByteStr,
    pub headers: Box<[AddedHeader]>,
}

/// A header of the request, and what is done if it is there already.
#[derive(Debug)]
pub(crate) struct AddedHeader {
    pub name: HeaderName,
    pub value: HeaderValue,
    pub action: HeaderAppendAction,
}

/// Compiles `Cluster.health_checks`.
pub(crate) fn compile(protos: &[HealthCheck], at: &At<'_>, report: &mut Report) -> Box<[HealthCheckSpec]> {
    if protos.len() > 1 {
        // Envoy's words.
        report.error(at, format!("{} health checks", protos.len()), "multiple health checks not supported");
    }
    protos.iter().enumerate().filter_map(|(i, proto)| one(proto, &at.index(i), report)).collect()
}

// `event_log_path` is deprecated in the API, and must be answered all the same.
#[allow(deprecated)]
fn one(proto: &HealthCheck, at: &At<'_>, report: &mut Report) -> Option<HealthCheckSpec> {
    let zero = Duration::ZERO;
    for (missing, name) in [
        (proto.timeout.is_none(), "timeout"),
        (proto.interval.is_none(), "interval"),
        (proto.unhealthy_threshold.is_none(), "unhealthy_threshold"),
        (proto.healthy_threshold.is_none(), "healthy_threshold"),
    ] {
        if missing {
            report.error(&at.field(name), "missing", "required");
        }
    }
    ignore(report, at, &[(proto.event_service.is_some(), "event_service", "Envoy does not send health check events either")]);
    let interval = positive(proto.interval.as_ref(), Duration::from_secs(60), &at.field("interval"), report);
    let mut or = |name: &str, value: Option<&nuncio_proto::Duration>, default: Duration| positive(value, default, &at.field(name), report);
    let no_traffic_interval = or("no_traffic_interval", proto.no_traffic_interval.as_ref(), Duration::from_secs(60));
    let no_traffic_healthy_interval = or("no_traffic_healthy_interval", proto.no_traffic_healthy_interval.as_ref(), no_traffic_interval);
    let unhealthy_interval = or("unhealthy_interval", proto.unhealthy_interval.as_ref(), interval);
    let unhealthy_edge_interval = or("unhealthy_edge_interval", proto.unhealthy_edge_interval.as_ref(), unhealthy_interval);
    let healthy_edge_interval = or("healthy_edge_interval", proto.healthy_edge_interval.as_ref(), interval);
    let timeout = or("timeout", proto.timeout.as_ref(), Duration::from_secs(5));
    let alt_port = proto.alt_port.and_then(|port| {
        let port16 = u16::try_from(port).ok();
        if port16.is_none() {
            report.error(&at.field("alt_port"), port.to_string(), "0 to 65535");
        }
        port16
    });
    let kind = match &proto.health_checker {
        Some(HealthChecker::HttpHealthCheck(check)) => Kind::Http(Box::new(http(check, &at.field("http_health_check"), report)?)),
        Some(HealthChecker::TcpHealthCheck(check)) => Kind::Tcp(Box::new(tcp(check, &at.field("tcp_health_check"), report)?)),
        Some(HealthChecker::GrpcHealthCheck(check)) => Kind::Grpc(Box::new(grpc(check, &at.field("grpc_health_check"), report))),
        Some(HealthChecker::CustomHealthCheck(check)) => {
            report.unsupported(&at.field("custom_health_check"), format_args!("health check {}", check.name));
            return None;
        }
        None => {
            report.error(at, "no checker", "one of http_health_check, tcp_health_check, grpc_health_check");
            return None;
        }
    };
    Some(HealthCheckSpec {
        kind,
        timeout,
        interval,
        initial_jitter: duration(proto.initial_jitter.as_ref(), zero, &at.field("initial_jitter"), report),
        interval_jitter: duration(proto.interval_jitter.as_ref(), zero, &at.field("interval_jitter"), report),
        jitter_percent: proto.interval_jitter_percent,
        unhealthy_threshold: proto.unhealthy_threshold.unwrap_or(1).max(1),
        healthy_threshold: proto.healthy_threshold.unwrap_or(1).max(1),
        alt_port,
        reuse: proto.reuse_connection.unwrap_or(true),
        no_traffic_interval,
        no_traffic_healthy_interval,
        unhealthy_interval,
        unhealthy_edge_interval,
        healthy_edge_interval,
        alpn: proto.tls_options.as_ref().map(|t| t.alpn_protocols.iter().map(|p| p.as_bytes().to_vec()).collect()),
        criteria: proto
            .transport_socket_match_criteria
            .as_ref()
            .map(|s| s.fields.iter().map(|(k, v)| (k.as_str().into(), v.clone())).collect()),
        events: events(proto, at, report),
    })
}

/// Where events are logged. Source: `HealthCheck.event_log_path`, `event_logger`.
#[allow(deprecated)]
fn events(proto: &HealthCheck, at: &At<'_>, report: &mut Report) -> Events {
    let mut files = Vec::new();
    let mut open = |path: &str, at: &At<'_>, report: &mut Report| match EventLog::open(Path::new(path)) {
        Ok(file) => files.push(file),
        Err(e) => report.error(at, format!("{path}: {e}"), "a path that can be written"),
    };
    if !proto.event_log_path.is_empty() {
        open(&proto.event_log_path, &at.field("event_log_path"), report);
    }
    let list = at.field("event_logger");
    for (i, sink) in proto.event_logger.iter().enumerate() {
        let at = list.index(i);
        let Some(typed) = extension(sink, &at, report) else { continue };
        if typed.name != "envoy.extensions.health_check.event_sinks.file.v3.HealthCheckEventFileSink" {
            report.unsupported(&at, format_args!("event sink {}", sink.name));
            continue;
        }
        match HealthCheckEventFileSink::decode(typed.value.as_ref()) {
            Ok(file) => open(&file.event_log_path, &at.field("typed_config"), report),
            Err(why) => report.error(&at.field("typed_config"), why.to_string(), "a HealthCheckEventFileSink"),
        }
    }
    Events { files: files.into(), failures: proto.always_log_health_check_failures, successes: proto.always_log_health_check_success }
}

fn http(check: &HttpHealthCheck, at: &At<'_>, report: &mut Report) -> Option<HttpCheck> {
    if check.path.is_empty() || check.path.bytes().any(|b| b.is_ascii_control() || b == b' ') {
        report.error(&at.field("path"), check.path.as_str(), "a path");
    }
    let method = match RequestMethod::try_from(check.method) {
        Ok(RequestMethod::MethodUnspecified | RequestMethod::Get) => Method::GET,
        Ok(RequestMethod::Connect) | Err(_) => {
            report.error(&at.field("method"), check.method.to_string(), "a method without CONNECT");
            Method::GET
        }
        Ok(other) => Method::from_bytes(other.as_str_name().as_bytes()).unwrap_or(Method::GET),
    };
    let h2 = match CodecClientType::try_from(check.codec_client_type) {
        Ok(CodecClientType::Http1) => false,
        Ok(CodecClientType::Http2) => true,
        _ => {
            report.unsupported(&at.field("codec_client_type"), "a codec other than HTTP1 and HTTP2");
            false
        }
    };
    let send = check.send.as_ref().and_then(|p| payload(p, &at.field("send"), report));
    if send.is_some() && matches!(method, Method::GET | Method::HEAD | Method::DELETE | Method::TRACE) {
        report.error(&at.field("send"), format!("a body with {method}"), "a method that has a body: POST, PUT, PATCH or OPTIONS");
    }
    let receive = payloads(&check.receive, &at.field("receive"), report);
    let buffer = check.response_buffer_size.and_then(|n| usize::try_from(n).ok()).unwrap_or(1024);
    let wanted: usize = receive.iter().map(Vec::len).sum();
    if buffer != 0 && wanted > buffer {
        report.error(&at.field("receive"), format!("{wanted} bytes"), format!("at most response_buffer_size, {buffer}"));
    }
    let ranges = |list: &[Int64Range], name: &str, report: &mut Report| -> Box<[std::ops::Range<i64>]> {
        let at = at.field(name);
        for (i, r) in list.iter().enumerate() {
            if r.start >= r.end || r.start < 100 || r.end > 600 {
                report.error(&at.index(i), format!("[{}, {})", r.start, r.end), "a range within [100, 600)");
            }
        }
        list.iter().map(|r| r.start..r.end).collect()
    };
    let mut expected = ranges(&check.expected_statuses, "expected_statuses", report);
    if expected.is_empty() {
        expected = Box::new([std::ops::Range { start: 200, end: 201 }]);
    }
    let at_remove = at.field("request_headers_to_remove");
    let remove = check.request_headers_to_remove.iter().enumerate().filter_map(|(i, name)| {
        let parsed = HeaderName::from_bytes(name.to_ascii_lowercase().as_bytes()).ok();
        if parsed.is_none() {
            report.error(&at_remove.index(i), name.as_str(), "a header name");
        }
        parsed
    });
    let remove = remove.collect();
    let service = check.service_name_matcher.as_ref().and_then(|m| StringMatcher::compile(m, &at.field("service_name_matcher"), report));
    Some(HttpCheck {
        host: check.host.as_str().into(),
        path: check.path.as_str().into(),
        method,
        headers: headers(&check.request_headers_to_add, &at.field("request_headers_to_add"), report),
        remove,
        expected,
        retriable: ranges(&check.retriable_statuses, "retriable_statuses", report),
        receive,
        send: send.map(Bytes::from),
        buffer,
        codec: Codec { h2, by_alpn: check.use_alpn_protocol },
        service,
    })
}

fn tcp(check: &TcpHealthCheck, at: &At<'_>, report: &mut Report) -> Option<TcpCheck> {
    let send = check.send.as_ref().and_then(|p| payload(p, &at.field("send"), report)).unwrap_or_default();
    let proxy = check.proxy_protocol_config.as_ref().map(|p: &ProxyProtocolConfig| {
        let at = at.field("proxy_protocol_config");
        refuse(report, &at, &[(p.pass_through_tlvs.is_some(), "pass_through_tlvs"), (!p.added_tlvs.is_empty(), "added_tlvs")]);
        p.version == 1
    });
    Some(TcpCheck { send, receive: payloads(&check.receive, &at.field("receive"), report), proxy })
}

fn grpc(check: &GrpcHealthCheck, at: &At<'_>, report: &mut Report) -> GrpcCheck {
    GrpcCheck {
        service: check.service_name.clone(),
        authority: check.authority.as_str().into(),
        headers: headers(&check.initial_metadata, &at.field("initial_metadata"), report),
    }
}

/// Fixed header values; those with `%` commands need a stream, which a check has not.
#[allow(deprecated)]
fn headers(list: &[HeaderValueOption], at: &At<'_>, report: &mut Report) -> Box<[AddedHeader]> {
    let mut all = Vec::new();
    for (i, option) in list.iter().enumerate() {
        let at = at.index(i);
        let header = option.header.clone().unwrap_or_default();
        let name = HeaderName::from_bytes(header.key.to_ascii_lowercase().as_bytes());
        let bytes = if header.raw_value.is_empty() { header.value.into_bytes() } else { header.raw_value };
        let text = String::from_utf8_lossy(&bytes).replace("%%", "");
        if text.contains('%') {
            report.unsupported(&at.field("header"), "a substitution command in a health check's header");
            continue;
        }
        let plain = String::from_utf8_lossy(&bytes).replace("%%", "%");
        match (name, HeaderValue::from_str(&plain)) {
            (Ok(_), Ok(value)) if value.is_empty() && !option.keep_empty_value => {}
            (Ok(name), Ok(value)) => {
                // The field that came before the enum says the same with a boolean.
                let action = match option.append {
                    Some(false) => HeaderAppendAction::OverwriteIfExistsOrAdd,
                    _ => HeaderAppendAction::try_from(option.append_action).unwrap_or(HeaderAppendAction::AppendIfExistsOrAdd),
                };
                all.push(AddedHeader { name, value, action });
            }
            _ => report.error(&at.field("header"), header.key, "a valid header"),
        }
    }
    all.into_boxed_slice()
}

fn payloads(list: &[Payload], at: &At<'_>, report: &mut Report) -> Box<[Vec<u8>]> {
    list.iter().enumerate().filter_map(|(i, p)| payload(p, &at.index(i), report)).collect()
}

/// Text is hexadecimal, as in Envoy.
fn payload(payload: &Payload, at: &At<'_>, report: &mut Report) -> Option<Vec<u8>> {
    match &payload.payload {
        Some(PayloadKind::Binary(bytes)) if !bytes.is_empty() => Some(bytes.clone()),
        Some(PayloadKind::Text(text)) if !text.is_empty() => {
            let digits = text.as_bytes().chunks(2).map(|pair| {
                let pair = std::str::from_utf8(pair).ok().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()))?;
                u8::from_str_radix(pair, 16).ok()
            });
            let bytes: Option<Vec<u8>> = digits.collect();
            if bytes.is_none() {
                report.error(&at.field("text"), text.as_str(), "hexadecimal digits");
            }
            bytes
        }
        _ => {
            report.error(at, "empty", "text or binary");
            None
        }
    }
}

/// Whether `body` holds every block, in order and without overlap. Source: Envoy's `PayloadMatcher`.
pub(crate) fn holds(body: &[u8], blocks: &[Vec<u8>]) -> bool {
    let mut rest = body;
    for block in blocks {
        match rest.windows(block.len().max(1)).position(|w| w == block.as_slice()) {
            Some(at) => rest = rest.get(at + block.len()..).unwrap_or_default(),
            None => return false,
        }
    }
    true
}
