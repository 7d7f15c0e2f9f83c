//! Numbers, names and states of the stream.

use super::{Written, decimal, joined};
use crate::FormatContext;
use nuncio_core::{Headers, ResponseFlags};

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
    RouteResolutions,
    /// In microseconds.
    RouteResolutionTime,
    /// Measured by QUIC only.
    Zero,
}

fn map_size(headers: Option<&Headers>) -> u64 {
    headers.map_or(0, |h| h.byte_size() as u64)
}

impl NumberOf {
    pub fn write(self, cx: &FormatContext<'_>, out: &mut Vec<u8>) -> Written {
        let info = cx.info;
        let upstream = info.upstream.as_deref();
        let n = match self {
            Self::BytesReceived => info.request_meter.bytes.get(),
            Self::BytesSent => info.bytes_sent,
            Self::RequestHeaders => cx.request_headers_bytes(),
            Self::ResponseHeaders => cx.response_headers_bytes(),
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
            // Envoy says 0 where there was none.
            Self::UpstreamConnectionId => upstream.and_then(|u| u.connection_id).unwrap_or_default(),
            Self::RouteResolutions => u64::from(info.route_resolutions),
            Self::RouteResolutionTime if info.route_resolutions == 0 => return Written::Missing,
            Self::RouteResolutionTime => u64::try_from(info.route_resolution_time.as_micros()).unwrap_or(u64::MAX),
            Self::Zero => 0,
        };
        decimal(out, n);
        Written::Json
    }
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
    /// Ids of the connections that were had.
    ConnectionsAttempted,
    UpstreamDetectedClose,
    UpstreamLocalClose,
    DownstreamDetectedClose,
    DownstreamLocalClose,
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
            // An attempt that got no connection has no id, and only the last attempt is told of.
            Self::ConnectionsAttempted => match upstream.and_then(|u| u.connection_id) {
                Some(id) => {
                    decimal(out, id);
                    true
                }
                None => false,
            },
            // A TCP stream has an upstream from its beginning, a request once the router chose a host.
            Self::UpstreamDetectedClose if info.protocol.is_none() || upstream.is_some_and(|u| u.host.is_some()) => {
                named(out, Some(upstream.map(|u| u.detected_close).unwrap_or_default().as_str()))
            }
            Self::UpstreamDetectedClose => false,
            Self::UpstreamLocalClose => named(out, upstream.and_then(|u| u.local_close)),
            Self::DownstreamDetectedClose => named(out, Some(info.connection.detected_close.get().as_str())),
            Self::DownstreamLocalClose => named(out, info.connection.local_close.get()),
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
