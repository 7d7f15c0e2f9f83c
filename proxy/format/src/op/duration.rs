//! Durations, and the points in time between which `%COMMON_DURATION%` measures.

use super::{Written, decimal};
use crate::FormatContext;
use nuncio_core::ResponseFlags;
use std::time::Instant;

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
            Self::Handshake => return handshake(cx, out),
            Self::PoolReady => upstream.and_then(|u| u.connect_time),
        };
        let Some(duration) = duration else { return Written::Missing };
        decimal(out, duration.as_millis() as u64);
        Written::Json
    }
}

/// The end of the handshake as seen from the begin of the stream, which is negative for requests that came later.
fn handshake(cx: &FormatContext<'_>, out: &mut Vec<u8>) -> Written {
    let Some(end) = Point::DownstreamHandshakeEnd.moment(cx) else { return Written::Missing };
    decimal(out, nanos(cx.info.start_instant, end) / 1_000_000);
    Written::Json
}

/// A point in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Point {
    DownstreamRxBegin,
    DownstreamRxHeadersEnd,
    DownstreamRxEnd,
    DownstreamTxBegin,
    DownstreamTxEnd,
    UpstreamTxBegin,
    UpstreamTxEnd,
    UpstreamRxBegin,
    UpstreamRxBodyBegin,
    UpstreamRxEnd,
    UpstreamConnectBegin,
    UpstreamConnectEnd,
    UpstreamHandshakeEnd,
    DownstreamConnectionBegin,
    DownstreamConnectionEnd,
    DownstreamHandshakeBegin,
    DownstreamHandshakeEnd,
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
    /// The point of that name. Names that Envoy does not know are those of filters.
    pub fn named(name: &str) -> Self {
        match name {
            "DS_RX_BEG" => Self::DownstreamRxBegin,
            "DS_RX_HDR_END" => Self::DownstreamRxHeadersEnd,
            "DS_RX_END" => Self::DownstreamRxEnd,
            "DS_TX_BEG" => Self::DownstreamTxBegin,
            "DS_TX_END" => Self::DownstreamTxEnd,
            "US_TX_BEG" => Self::UpstreamTxBegin,
            "US_TX_END" => Self::UpstreamTxEnd,
            "US_RX_BEG" => Self::UpstreamRxBegin,
            "US_RX_BODY_BEG" => Self::UpstreamRxBodyBegin,
            "US_RX_END" => Self::UpstreamRxEnd,
            "US_CX_BEG" => Self::UpstreamConnectBegin,
            "US_CX_END" => Self::UpstreamConnectEnd,
            "US_HS_END" => Self::UpstreamHandshakeEnd,
            "DS_CX_BEG" => Self::DownstreamConnectionBegin,
            "DS_CX_END" => Self::DownstreamConnectionEnd,
            "DS_HS_BEG" => Self::DownstreamHandshakeBegin,
            "DS_HS_END" => Self::DownstreamHandshakeEnd,
            _ => Self::Custom,
        }
    }
    fn moment(self, cx: &FormatContext<'_>) -> Option<Instant> {
        let info = cx.info;
        let connection = &info.connection;
        let upstream = info.upstream.as_deref();
        let offset = match self {
            Self::DownstreamRxBegin => return Some(info.start_instant),
            // A stream begins when its headers are there; one without them never had any.
            Self::DownstreamRxHeadersEnd => return cx.request.map(|_| info.start_instant),
            Self::DownstreamConnectionBegin => return Some(connection.start_instant),
            Self::DownstreamHandshakeBegin => return connection.tls.as_ref()?.hello,
            Self::DownstreamHandshakeEnd => return connection.start_instant.checked_add(connection.handshake.get()?),
            Self::UpstreamConnectBegin => return upstream?.connect.began,
            Self::UpstreamConnectEnd => return upstream?.connect.connected,
            Self::UpstreamHandshakeEnd => return upstream?.connect.secured,
            // A request outlives its connection only if the client left.
            Self::DownstreamConnectionEnd => {
                let over = info.protocol.is_none() || info.flags.has(ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION);
                info.duration.filter(|_| over)
            }
            Self::DownstreamRxEnd => info.last_downstream_rx,
            Self::DownstreamTxBegin => info.first_downstream_tx,
            Self::DownstreamTxEnd => info.last_downstream_tx,
            Self::UpstreamTxBegin => upstream?.first_tx,
            Self::UpstreamTxEnd => upstream?.last_tx,
            Self::UpstreamRxBegin => upstream?.first_rx,
            Self::UpstreamRxBodyBegin => upstream?.first_rx_body,
            Self::UpstreamRxEnd => upstream?.last_rx,
            Self::Custom => None,
        };
        info.start_instant.checked_add(offset?)
    }
}

/// From one moment to another, in nanoseconds.
fn nanos(from: Instant, to: Instant) -> i64 {
    let count = |d: std::time::Duration| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX);
    match to.checked_duration_since(from) {
        Some(after) => count(after),
        None => -count(from.saturating_duration_since(to)),
    }
}

/// Appends the time between two points; none if the second came first.
pub(crate) fn between(cx: &FormatContext<'_>, from: Point, to: Point, precision: Precision, out: &mut Vec<u8>) -> Written {
    let Some((from, to)) = from.moment(cx).zip(to.moment(cx)).filter(|(from, to)| from <= to) else { return Written::Missing };
    let unit = match precision {
        Precision::Millis => 1_000_000,
        Precision::Micros => 1000,
        Precision::Nanos => 1,
    };
    decimal(out, nanos(from, to) / unit);
    Written::Json
}
