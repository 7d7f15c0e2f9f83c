//! Codec options of both sides, as compiled from `HttpConnectionManager`, `HttpProtocolOptions`, `Http1ProtocolOptions` and
//! `Http2ProtocolOptions`. Built on the control thread, shared by every worker behind an `Arc`.

use http::HeaderName;
use nuncio_core::{ByteStr, HeaderLimits};
use nuncio_stats::Counter;
use std::time::Duration;

/// `core.v3.HttpProtocolOptions.HeadersWithUnderscoresAction`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeadersWithUnderscores {
    #[default]
    Allow,
    /// 400 `http1.unexpected_underscore`, or a stream reset in HTTP/2.
    RejectRequest,
    DropHeader,
}

/// `core.v3.Http1ProtocolOptions.HeaderKeyFormat`: how names are written in HTTP/1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeaderKeyFormat {
    /// As Envoy stores them: lower case.
    #[default]
    Lower,
    /// `proper_case_words`: first letter and every letter after a non-letter in upper case.
    ProperCase,
    /// `envoy.http.stateful_header_formatters.preserve_case`: as the peer wrote them. The names travel with
    /// [`nuncio_core::Headers`]; names that the peer did not write are lower case, or proper case if `proper_case_unknown`.
    PreserveCase { proper_case_unknown: bool },
}

/// `core.v3.Http1ProtocolOptions`. Used by both sides; fields that concern one side only say so.
#[derive(Clone, Debug)]
pub struct H1Options {
    /// Server: absolute-form targets are split into authority, scheme and path. Default true.
    pub allow_absolute_url: bool,
    /// Server: HTTP/1.0 is served; otherwise answered 426. Default false.
    pub accept_http_10: bool,
    /// Server: authority of HTTP/1.0 requests without Host; empty for none.
    pub default_host_for_http_10: ByteStr,
    pub header_key_format: HeaderKeyFormat,
    /// Client, with `PreserveCase` (`forward_reason_phrase`): clients of HTTP/1 get the reason phrase that the server wrote. Default false.
    pub forward_reason_phrase: bool,
    /// Trailers are passed on; otherwise they are checked and dropped. Default false.
    pub enable_trailers: bool,
    /// `Content-Length` beside `Transfer-Encoding: chunked` is dropped; otherwise the message is refused. Default false.
    pub allow_chunked_length: bool,
    /// `override_stream_error_on_invalid_http_message` (or the manager's `stream_error_on_invalid_http_message`): a refused
    /// request that is completely received does not close the connection. Framing errors close it always. Default false.
    pub stream_error_on_invalid_http_message: bool,
    /// Client: the target is written in absolute form. Default false.
    pub send_fully_qualified_url: bool,
    /// Methods that Envoy does not know are let through; otherwise 400. Default false.
    pub allow_custom_methods: bool,
    /// Server: `Upgrade` tokens (lower case) that are ignored, as `h2c` always is (`ignore_http_11_upgrade`).
    pub ignore_upgrades: Vec<String>,
}

impl Default for H1Options {
    fn default() -> Self {
        Self {
            allow_absolute_url: true,
            accept_http_10: false,
            default_host_for_http_10: ByteStr::default(),
            header_key_format: HeaderKeyFormat::Lower,
            forward_reason_phrase: false,
            enable_trailers: false,
            allow_chunked_length: false,
            stream_error_on_invalid_http_message: false,
            send_fully_qualified_url: false,
            allow_custom_methods: false,
            ignore_upgrades: Vec::new(),
        }
    }
}

/// `core.v3.KeepaliveSettings`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KeepAlive {
    /// Time between pings; none sends no periodic pings.
    pub interval: Option<Duration>,
    /// How long to wait for the answer before the connection is closed.
    pub timeout: Duration,
    /// Random part added to `interval`, in percent of it. Envoy's default is 15.
    pub interval_jitter_percent: f64,
    /// If nothing was received for this long, a new stream is preceded by a ping.
    pub connection_idle_interval: Option<Duration>,
}

/// Limits of what a peer may send without getting anywhere (`core.v3.Http2ProtocolOptions`); more ends the connection.
#[derive(Clone, Copy, Debug)]
pub struct FloodLimits {
    /// `max_consecutive_inbound_frames_with_empty_payload`: HEADERS, CONTINUATION and DATA without payload or END_STREAM. Default 1.
    pub max_consecutive_empty_frames: u32,
    /// `max_inbound_priority_frames_per_stream`, for each stream that was opened and one more. Default 100.
    pub max_priority_frames_per_stream: u32,
    /// `max_inbound_window_update_frames_per_data_frame_sent`: twice that many, and two for each stream, and five. Default 10.
    pub max_window_updates_per_data_frame: u32,
    /// Server: `stream_reset_burst`, RST_STREAM frames at once. Default 1000.
    pub reset_burst: u64,
    /// Server: `stream_reset_rate`, how many more each second. Default 33.
    pub reset_rate: u64,
}

impl Default for FloodLimits {
    fn default() -> Self {
        Self {
            max_consecutive_empty_frames: 1,
            max_priority_frames_per_stream: 100,
            max_window_updates_per_data_frame: 10,
            reset_burst: 1000,
            reset_rate: 33,
        }
    }
}

/// `core.v3.Http2ProtocolOptions`. Windows in bytes.
#[derive(Clone, Debug)]
pub struct H2Options {
    /// Header compression table of our decoder. Default 4096.
    pub hpack_table_size: u32,
    /// Streams that the peer may have open; for clients, the most that we open. Default 1024 (Envoy 1.40).
    pub max_concurrent_streams: u32,
    /// Default 16 MiB (Envoy 1.40); 65535..=2^31-1.
    pub initial_stream_window_size: u32,
    /// Default 24 MiB (Envoy 1.40); 65535..=2^31-1.
    pub initial_connection_window_size: u32,
    /// Server: bytes that the connection's window may grow by while a body is waited for and unread ones fill the window. Default 0.
    pub extra_window: u32,
    /// Server: extended CONNECT (RFC 8441) is offered. Default false.
    pub allow_connect: bool,
    pub keepalive: Option<KeepAlive>,
    pub flood: FloodLimits,
    /// `max_header_field_size_kb`, in bytes: the most that a name or a value may have on the wire; more ends the connection. Default 64 KiB.
    pub max_field_size: u32,
    /// Values with bytes above 0x7f are malformed. Default false.
    pub disallow_obs_text: bool,
    /// The most streams that the peer may have reset before they were looked at; more ends the connection with ENHANCE_YOUR_CALM.
    pub max_pending_reset_streams: usize,
    /// Largest DATA frame that we accept, in bytes. Default 16384.
    pub max_frame_size: u32,
    /// Bytes that one stream may buffer towards the peer before it must wait. Default 1 MiB.
    pub max_send_buffer: usize,
}

impl Default for H2Options {
    fn default() -> Self {
        Self {
            hpack_table_size: 4096,
            max_concurrent_streams: 1024,
            initial_stream_window_size: 16 << 20,
            initial_connection_window_size: 24 << 20,
            extra_window: 0,
            allow_connect: false,
            keepalive: None,
            flood: FloodLimits::default(),
            max_field_size: 64 * 1024,
            disallow_obs_text: false,
            max_pending_reset_streams: 100,
            max_frame_size: 16_384,
            max_send_buffer: 1 << 20,
        }
    }
}

/// Counters of the codecs: `http1.*` and `http2.*`, of the whole process or under a cluster. The default ones count nothing.
#[derive(Clone, Debug, Default)]
pub struct CodecStats {
    pub dropped_headers_with_underscores: Counter,
    pub requests_rejected_with_underscores_in_headers: Counter,
    pub h2_dropped_headers_with_underscores: Counter,
    pub h2_requests_rejected_with_underscores_in_headers: Counter,
    /// HTTP/2: header list over the limits.
    pub header_overflow: Counter,
    pub keepalive_timeout: Counter,
    /// HTTP/2: resets received and sent, protocol errors of the peer, messages with trailers.
    pub rx_reset: Counter,
    pub tx_reset: Counter,
    pub rx_messaging_error: Counter,
    pub trailers: Counter,
    pub goaway_sent: Counter,
    /// Connections that were ended for a flood, by what it was of.
    pub inbound_empty_frames_flood: Counter,
    pub inbound_priority_frames_flood: Counter,
    pub inbound_window_update_frames_flood: Counter,
}

/// Options of a downstream connection.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    pub h1: H1Options,
    pub h2: H2Options,
    /// Largest request head in KiB (`max_request_headers_kb`), 1..=8192; more is answered 431. Default 60.
    pub max_headers_kb: u32,
    /// Most header fields of a request (`max_headers_count`), trailers counted apart. Default 100.
    pub max_headers_count: u32,
    /// `common_http_protocol_options.idle_timeout`: a connection without streams for this long is drained. Default 1 h.
    pub idle_timeout: Option<Duration>,
    /// From the first byte of a request head to its last; 408 after that. Default none.
    pub request_headers_timeout: Option<Duration>,
    /// How long to wait for the peer to close after our last byte when it may still be sending. Default 1 s.
    pub delayed_close_timeout: Duration,
    /// `stream_flush_timeout`: how long a client may leave the end of a response unread; then its stream (HTTP/1: connection) is reset.
    /// Before its end the body itself knows ([`nuncio_core::BodySource::poll_stalled`]).
    /// Default 5 min, as `stream_idle_timeout`.
    pub stream_flush_timeout: Option<Duration>,
    /// Counts those (`http2.tx_flush_timeout`; Envoy has no such counter for HTTP/1).
    pub tx_flush_timeout: Counter,
    /// HTTP/2 connections that were ended because clients reset most streams at once (`downstream_rq_too_many_premature_resets`).
    pub too_many_premature_resets: Counter,
    /// `max_requests_per_connection`; 0 for no limit.
    pub max_requests_per_connection: u32,
    pub headers_with_underscores: HeadersWithUnderscores,
    /// Whether the connection is TLS; the scheme of requests that name none.
    pub tls: bool,
    pub stats: CodecStats,
}

impl ServerOptions {
    /// What the head of a request is held to.
    pub fn header_limits(&self) -> HeaderLimits {
        HeaderLimits { bytes: self.max_headers_kb as usize * 1024, count: self.max_headers_count as usize }
    }
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            h1: H1Options::default(),
            h2: H2Options::default(),
            max_headers_kb: 60,
            max_headers_count: 100,
            idle_timeout: Some(Duration::from_secs(3600)),
            request_headers_timeout: None,
            delayed_close_timeout: Duration::from_secs(1),
            stream_flush_timeout: Some(Duration::from_secs(300)),
            tx_flush_timeout: Counter::default(),
            too_many_premature_resets: Counter::default(),
            max_requests_per_connection: 0,
            headers_with_underscores: HeadersWithUnderscores::Allow,
            tls: false,
            stats: CodecStats::default(),
        }
    }
}

/// Options of an upstream connection.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    pub h1: H1Options,
    pub h2: H2Options,
    /// Largest response head in KiB (`max_response_headers_kb`). Default 80.
    pub max_headers_kb: u32,
    /// Most header fields of a response. Default 100.
    pub max_headers_count: u32,
    pub stats: CodecStats,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            h1: H1Options::default(),
            h2: H2Options::default(),
            max_headers_kb: 80,
            max_headers_count: 100,
            stats: CodecStats::default(),
        }
    }
}

/// `proxy-connection`, which `http` has no constant for.
pub(crate) const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
/// `keep-alive`, likewise.
pub(crate) const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
/// `http2-settings`, likewise.
pub(crate) const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
