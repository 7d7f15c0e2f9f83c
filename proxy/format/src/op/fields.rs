//! Numbers, durations, names and states of the stream.

use super::{Written, address, decimal, joined};
use crate::FormatContext;
use nuncio_core::{Headers, ResponseFlags};
use std::time::Duration;

/// Counts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum NumberOf {
    BytesReceived,
    BytesSent,
    RequestHeaders,
    ResponseHeaders,
    ResponseTrailers,
    ResponseCode,
    Attempts,
    UpstreamWireSent,
    UpstreamWireReceived,
    UpstreamHeadersSent,
    UpstreamHeadersReceived,
    DownstreamWireSent,
    DownstreamWireReceived,
    DownstreamHeadersSent,
    DownstreamHeadersReceived,
    ConnectionId,
    UpstreamConnectionId,
    /// Counted by QUIC only.
    Zero,
}

fn map_size(headers: Option<&Headers>) -> u64 {
    headers.map_or(0, |h| h.byte_size() as u64)
}

/// Envoy's byteSize of the request headers, pseudo-headers included.
fn request_size(cx: &FormatContext<'_>) -> u64 {
    let Some(request) = cx.request else { return 0 };
    let pseudo = |name: &str, value: &str| if value.is_empty() { 0 } else { (name.len() + value.len()) as u64 };
    map_size(Some(&request.headers))
        + pseudo(":method", request.method.as_str())
        + pseudo(":scheme", &request.scheme)
        + pseudo(":authority", &request.authority)
        + pseudo(":path", &request.path)
        + request.protocol.as_ref().map_or(0, |p| pseudo(":protocol", p))
}

impl NumberOf {
    pub fn write(self, cx: &FormatContext<'_>, out: &mut Vec<u8>) -> Written {
        let info = cx.info;
        let upstream = info.upstream.as_deref();
        let n = match self {
            Self::BytesReceived => info.request_meter.bytes.get(),
            Self::BytesSent => info.bytes_sent,
            Self::RequestHeaders => request_size(cx),
            Self::ResponseHeaders => cx.response.map_or(0, |r| map_size(Some(&r.headers)) + (":status".len() + 3) as u64),
            Self::ResponseTrailers => map_size(cx.trailers),
            Self::ResponseCode => u64::from(info.response_code),
            Self::Attempts => u64::from(info.attempts),
            Self::UpstreamWireSent => upstream.map_or(0, |u| u.wire_tx_bytes),
            Self::UpstreamWireReceived => upstream.map_or(0, |u| u.wire_rx_bytes),
            Self::UpstreamHeadersSent => upstream.map_or(0, |u| u.header_tx_bytes),
            Self::UpstreamHeadersReceived => upstream.map_or(0, |u| u.header_rx_bytes),
            Self::DownstreamWireSent => info.wire_tx_bytes,
            Self::DownstreamWireReceived => info.wire_rx_bytes,
            Self::DownstreamHeadersSent => info.response_header_bytes,
            Self::DownstreamHeadersReceived => info.request_header_bytes,
            Self::ConnectionId => info.connection.id,
            Self::UpstreamConnectionId => match upstream.and_then(|u| u.connection_id) {
                Some(id) => id,
                None => return Written::Missing,
            },
            Self::Zero => 0,
        };
        decimal(out, n);
        Written::Json
    }
}

/// Durations in whole milliseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) enum DurationOf {
    Total,
    /// Until the request was received.
    Request,
    /// Until the request was sent.
    RequestSent,
    /// Until the response began.
    Response,
    /// From the first byte of the response to the last byte sent.
    ResponseSent,
    Handshake,
    PoolReady,
}

impl DurationOf {
    pub fn write(self, cx: &FormatContext<'_>, out: &mut Vec<u8>) -> Written {
        let info = cx.info;
        let upstream = info.upstream.as_deref();
        let duration = match self {
            Self::Total => Some(info.duration.unwrap_or_else(|| info.elapsed())),
            Self::Request => info.last_downstream_rx,
            Self::RequestSent => upstream.and_then(|u| u.last_tx),
            Self::Response => upstream.and_then(|u| u.first_rx),
            Self::ResponseSent => upstream.and_then(|u| u.first_rx).and_then(|first| Some(info.last_downstream_tx?.saturating_sub(first))),
            // Envoy tells it to TCP only.
            Self::Handshake => cx.request.is_none().then(|| info.connection.handshake.get()).flatten(),
            Self::PoolReady => upstream.and_then(|u| u.connect_time),
        };
        let Some(duration) = duration else { return Written::Missing };
        decimal(out, duration.as_millis() as u64);
        Written::Json
    }
}

/// Points in time of `%COMMON_DURATION%`, as offsets from the start of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Point {
    DownstreamRxBegin,
    DownstreamRxEnd,
    DownstreamTxBegin,
    DownstreamTxEnd,
    UpstreamTxBegin,
    UpstreamTxEnd,
    UpstreamRxBegin,
    UpstreamRxEnd,
    UpstreamConnectBegin,
    UpstreamConnectEnd,
    DownstreamConnectionBegin,
    DownstreamConnectionEnd,
    /// Named by a filter; none here does.
    Custom,
}

/// Unit of `%COMMON_DURATION%`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Precision {
    Millis,
    Micros,
    Nanos,
}

impl Point {
    fn offset(self, cx: &FormatContext<'_>) -> Option<Duration> {
        let info = cx.info;
        let upstream = info.upstream.as_deref();
        match self {
            Self::DownstreamRxBegin => cx.request.map(|_| Duration::ZERO),
            Self::DownstreamRxEnd => info.last_downstream_rx,
            Self::DownstreamTxBegin => info.first_downstream_tx,
            Self::DownstreamTxEnd => info.last_downstream_tx,
            Self::UpstreamTxBegin => upstream?.first_tx,
            Self::UpstreamTxEnd => upstream?.last_tx,
            Self::UpstreamRxBegin => upstream?.first_rx,
            Self::UpstreamRxEnd => upstream?.last_rx,
            // Only their distance is known: see `between`.
            Self::UpstreamConnectBegin | Self::UpstreamConnectEnd | Self::Custom => None,
            Self::DownstreamConnectionBegin => cx.request.is_none().then_some(Duration::ZERO),
            Self::DownstreamConnectionEnd => cx.request.is_none().then_some(info.duration).flatten(),
        }
    }
}

/// Appends the time between two points, which may be negative.
pub(crate) fn between(cx: &FormatContext<'_>, from: Point, to: Point, precision: Precision, out: &mut Vec<u8>) -> Written {
    let found = if (from, to) == (Point::UpstreamConnectBegin, Point::UpstreamConnectEnd) {
        let time = cx.info.upstream.as_deref().and_then(|u| u.connect_time);
        time.map(|t| (Duration::ZERO, t))
    } else {
        from.offset(cx).zip(to.offset(cx))
    };
    let Some((from, to)) = found else { return Written::Missing };
    let nanos = to.as_nanos() as i128 - from.as_nanos() as i128;
    let unit = match precision {
        Precision::Millis => 1_000_000,
        Precision::Micros => 1000,
        Precision::Nanos => 1,
    };
    decimal(out, (nanos / unit) as i64);
    Written::Json
}

/// Names and states.
#[derive(Clone, Copy, Debug)]
pub(crate) enum TextOf {
    Protocol,
    UpstreamProtocol,
    /// `spaces`: whether they stay.
    Details {
        spaces: bool,
    },
    TerminationDetails,
    Flags,
    FlagsLong,
    RouteName,
    VirtualCluster,
    Cluster,
    ClusterRaw,
    HostName,
    HostNameWithoutPort,
    HostsAttempted,
    HostsAttemptedWithoutPort,
    UpstreamFailure,
    DownstreamFailure,
    StreamId,
    UniqueId,
    FilterChain,
    Listener,
    LogType,
    LocalReplyBody,
    /// Flags that filters set; none here does.
    CustomFlags,
}

fn flags(out: &mut Vec<u8>, flags: ResponseFlags, long: bool) {
    let names = flags.names().map(|(short, full)| if long { full } else { short }.as_bytes());
    if !joined(out, names) {
        out.push(b'-');
    }
}

/// A random UUID of version 4.
pub(crate) fn uuid(out: &mut Vec<u8>) {
    let random = fastrand::u128(..) & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62);
    const HEX: &[u8; 16] = b"0123456789abcdef";
    for place in 0..32_u32 {
        if matches!(place, 8 | 12 | 16 | 20) {
            out.push(b'-');
        }
        let digit = (random >> (124 - 4 * place)) as usize & 0xf;
        out.push(HEX.get(digit).copied().unwrap_or(b'0'));
    }
}

/// Appends `text` if it is not empty.
fn named(out: &mut Vec<u8>, text: Option<&str>) -> bool {
    let text = text.unwrap_or_default();
    out.extend_from_slice(text.as_bytes());
    !text.is_empty()
}

/// Appends `text` with white space as `_`.
fn unspaced(out: &mut Vec<u8>, text: Option<&str>) -> bool {
    let start = out.len();
    let found = named(out, text);
    if let Some(tail) = out.get_mut(start..) {
        tail.iter_mut().filter(|b| b.is_ascii_whitespace()).for_each(|b| *b = b'_');
    }
    found
}

impl TextOf {
    /// Appends the text; false if there is none.
    pub fn write(self, cx: &FormatContext<'_>, out: &mut Vec<u8>) -> bool {
        let info = cx.info;
        let upstream = info.upstream.as_deref();
        match self {
            Self::Protocol => named(out, info.protocol.map(|p| p.as_str())),
            Self::UpstreamProtocol => named(out, upstream.and_then(|u| u.protocol).map(|p| p.as_str())),
            Self::Details { spaces: true } => named(out, info.details.as_deref()),
            Self::Details { spaces: false } => unspaced(out, info.details.as_deref()),
            Self::TerminationDetails => named(out, info.connection.termination_details.borrow().as_deref()),
            Self::Flags | Self::FlagsLong => {
                flags(out, info.flags, matches!(self, Self::FlagsLong));
                true
            }
            Self::RouteName => named(out, info.route_name.as_deref()),
            Self::VirtualCluster => named(out, info.virtual_cluster.as_deref()),
            Self::Cluster => named(out, upstream.and_then(|u| u.cluster.as_ref()).map(|c| c.observability_name().as_ref())),
            Self::ClusterRaw => named(out, upstream.and_then(|u| u.cluster.as_ref()).map(|c| c.name().as_ref())),
            Self::HostName | Self::HostNameWithoutPort => {
                let Some(host) = upstream.and_then(|u| u.host.as_ref()) else { return false };
                let with_port = matches!(self, Self::HostName);
                match host.hostname() {
                    "" if with_port => address::full(out, host.address()),
                    "" => address::without_port(out, host.address()),
                    name => {
                        let port = name.rsplit_once(':').filter(|(_, p)| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()));
                        let bare = port.map_or(name, |(host, _)| host);
                        out.extend_from_slice(if with_port { name } else { bare }.as_bytes());
                    }
                }
                true
            }
            Self::HostsAttempted | Self::HostsAttemptedWithoutPort => {
                let all = upstream.map_or(&[][..], |u| u.attempted.as_slice());
                for (i, host) in all.iter().enumerate() {
                    if i > 0 {
                        out.push(b',');
                    }
                    if matches!(self, Self::HostsAttempted) { address::full(out, host) } else { address::without_port(out, host) }
                }
                !all.is_empty()
            }
            Self::UpstreamFailure => unspaced(out, upstream.and_then(|u| u.failure.as_deref())),
            Self::DownstreamFailure => unspaced(out, info.connection.transport_failure.borrow().as_deref()),
            Self::StreamId => named(out, info.request_id.as_deref()),
            Self::UniqueId => {
                uuid(out);
                true
            }
            Self::FilterChain => named(out, Some(&info.connection.filter_chain)),
            Self::Listener => named(out, Some(&info.connection.listener)),
            Self::LogType => named(out, Some(cx.log_type.as_str_name())),
            Self::LocalReplyBody => {
                out.extend_from_slice(cx.local_reply_body.as_bytes());
                true
            }
            Self::CustomFlags => true,
        }
    }
}

/// How `%GRPC_STATUS%` is written.
#[derive(Clone, Copy, Debug)]
pub(crate) enum GrpcForm {
    Camel,
    Snake,
    Number,
}

const GRPC: [(&str, &str); 17] = [
    ("OK", "OK"),
    ("Canceled", "CANCELLED"),
    ("Unknown", "UNKNOWN"),
    ("InvalidArgument", "INVALID_ARGUMENT"),
    ("DeadlineExceeded", "DEADLINE_EXCEEDED"),
    ("NotFound", "NOT_FOUND"),
    ("AlreadyExists", "ALREADY_EXISTS"),
    ("PermissionDenied", "PERMISSION_DENIED"),
    ("ResourceExhausted", "RESOURCE_EXHAUSTED"),
    ("FailedPrecondition", "FAILED_PRECONDITION"),
    ("Aborted", "ABORTED"),
    ("OutOfRange", "OUT_OF_RANGE"),
    ("Unimplemented", "UNIMPLEMENTED"),
    ("Internal", "INTERNAL"),
    ("Unavailable", "UNAVAILABLE"),
    ("DataLoss", "DATA_LOSS"),
    ("Unauthenticated", "UNAUTHENTICATED"),
];

/// The gRPC status of a stream: trailers, then headers, then what the proxy knows, then by HTTP status. None without a response.
pub(crate) fn grpc_status(cx: &FormatContext<'_>) -> Option<i64> {
    let name = http::HeaderName::from_static("grpc-status");
    let of = |headers: Option<&Headers>| headers?.get_str(&name)?.trim().parse::<i64>().ok();
    of(cx.trailers).or_else(|| of(cx.response.map(|r| &r.headers))).or_else(|| cx.info.grpc_status.map(i64::from)).or(
        match cx.info.response_code {
            0 => None,
            400 => Some(13),
            401 => Some(16),
            403 => Some(7),
            404 => Some(12),
            429 | 502 | 503 | 504 => Some(14),
            _ => Some(2),
        },
    )
}

impl GrpcForm {
    pub fn write(self, cx: &FormatContext<'_>, out: &mut Vec<u8>) -> Written {
        if !cx.request.is_some_and(|r| r.is_grpc()) {
            return Written::Missing;
        }
        let Some(status) = grpc_status(cx) else { return Written::Missing };
        let known = usize::try_from(status).ok().and_then(|s| GRPC.get(s));
        match (self, known) {
            (Self::Camel, Some((camel, _))) => out.extend_from_slice(camel.as_bytes()),
            (Self::Snake, Some((_, snake))) => out.extend_from_slice(snake.as_bytes()),
            _ => {
                decimal(out, status);
                return if matches!(self, Self::Number) { Written::Json } else { Written::Text };
            }
        }
        Written::Text
    }
}
