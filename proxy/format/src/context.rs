//! What a formatter and an access log may see of one stream. Built on the worker that owns the stream, borrowed while formatting.

use nuncio_core::views::RouteView;
use nuncio_core::{Exchange, Headers, RequestHead, ResponseHead, StreamInfo};
pub use nuncio_proto::envoy::data::accesslog::v3::AccessLogType;

/// One stream (HTTP or TCP) as formatters see it. Cheap to copy.
#[derive(Clone, Copy, Debug)]
pub struct FormatContext<'a> {
    pub info: &'a StreamInfo,
    /// None for TCP.
    pub request: Option<&'a RequestHead>,
    /// None before the first response header, and for TCP.
    pub response: Option<&'a ResponseHead>,
    pub trailers: Option<&'a Headers>,
    /// The matched route, for `%METADATA(ROUTE:...)%`.
    pub route: Option<&'a dyn RouteView>,
    /// `%LOCAL_REPLY_BODY%`; empty except in local replies.
    pub local_reply_body: &'a str,
    /// `%ACCESS_LOG_TYPE%`.
    pub log_type: AccessLogType,
}

impl<'a> FormatContext<'a> {
    /// A context that knows only the stream: TCP, and headers added before there is a request.
    pub fn new(info: &'a StreamInfo) -> Self {
        Self { info, request: None, response: None, trailers: None, route: None, local_reply_body: "", log_type: AccessLogType::NotSet }
    }
    /// A context with the request, for request header mutation.
    pub fn request(info: &'a StreamInfo, request: &'a RequestHead) -> Self {
        Self { request: Some(request), ..Self::new(info) }
    }
    /// Everything of an exchange.
    pub fn exchange(exchange: &'a Exchange) -> Self {
        Self {
            request: Some(&exchange.request),
            response: exchange.response.as_ref(),
            trailers: exchange.response_trailers.as_deref(),
            route: exchange.route.as_deref(),
            ..Self::new(&exchange.info)
        }
    }
    /// `%REQUEST_HEADERS_BYTES%`: Envoy's byteSize of the request headers, pseudo-headers included.
    pub fn request_headers_bytes(&self) -> u64 {
        let Some(request) = self.request else { return 0 };
        let pseudo = |name: &str, value: &str| if value.is_empty() { 0 } else { (name.len() + value.len()) as u64 };
        request.headers.byte_size() as u64
            + pseudo(":method", request.method.as_str())
            + pseudo(":scheme", &request.scheme)
            + pseudo(":authority", &request.authority)
            + pseudo(":path", &request.path)
            + request.protocol.as_ref().map_or(0, |p| pseudo(":protocol", p))
    }
    /// `%RESPONSE_HEADERS_BYTES%`.
    pub fn response_headers_bytes(&self) -> u64 {
        self.response.map_or(0, |r| (r.headers.byte_size() + ":status".len() + 3) as u64)
    }
    /// This context for a log entry of kind `log_type`.
    pub fn of_type(self, log_type: AccessLogType) -> Self {
        Self { log_type, ..self }
    }
}
