//! gRPC calls through a cluster: `core.v3.GrpcService` with `envoy_grpc`. Compiled on the control thread, called on workers.
//! Source: `envoy/config/core/v3/grpc_service.proto`, Envoy's `Grpc::AsyncClientImpl`.

use crate::fetch::{self, FetchOptions};
use crate::frame::{self, Decoder};
use crate::headers::AddedHeaders;
use crate::retry::compile_retry;
use crate::stream::GrpcStream;
use crate::{CalloutError, Meter, attempt};
use http::{HeaderName, HeaderValue, Method, header};
use nuncio_core::diag::{At, Report};
use nuncio_core::grpc::{grpc_from_http, grpc_timeout_value};
use nuncio_core::registry::Server;
use nuncio_core::views::ClusterSlot;
use nuncio_core::{ByteStr, Headers, HttpVersion, RequestHead, ResponseHead};
use nuncio_format::FormatContext;
use nuncio_proto::envoy::config::core::v3::{GrpcService, grpc_service::TargetSpecifier};
use nuncio_route::RetryPolicy;
use prost::Message;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// Largest message that is taken where the configuration names no limit; Envoy has none.
const MAX_MESSAGE: usize = 16 << 20;

/// A call that did not end with status OK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrpcError {
    /// gRPC status code, never 0.
    pub code: u32,
    pub message: String,
    /// Why there was no answer at all; none if the service answered with this status.
    pub cause: Option<CalloutError>,
}

impl GrpcError {
    pub const UNKNOWN: u32 = 2;
    pub const DEADLINE_EXCEEDED: u32 = 4;
    pub const RESOURCE_EXHAUSTED: u32 = 8;
    pub const INTERNAL: u32 = 13;
    pub const UNAVAILABLE: u32 = 14;

    pub(crate) fn new(code: u32, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), cause: None }
    }
    pub(crate) fn internal(message: &str) -> Self {
        Self::new(Self::INTERNAL, message)
    }
}

impl From<CalloutError> for GrpcError {
    fn from(cause: CalloutError) -> Self {
        let code = match cause {
            CalloutError::Timeout => Self::DEADLINE_EXCEEDED,
            CalloutError::TooLarge => Self::RESOURCE_EXHAUSTED,
            _ => Self::UNAVAILABLE,
        };
        Self { code, message: cause.to_string(), cause: Some(cause) }
    }
}

impl fmt::Display for GrpcError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gRPC status {}: {}", self.code, self.message)
    }
}
impl std::error::Error for GrpcError {}

/// A compiled `GrpcService`.
#[derive(Debug)]
pub struct GrpcClient {
    slot: Arc<ClusterSlot>,
    authority: ByteStr,
    metadata: AddedHeaders,
    /// `GrpcService.timeout`; none: no limit.
    timeout: Option<Duration>,
    retry: Option<Arc<RetryPolicy>>,
    max_message: usize,
    envoy_headers: bool,
}

impl GrpcClient {
    /// Compiles `service`. None means refused. A cluster that is not known (yet) is no error: calls fail until it is.
    pub fn compile(service: &GrpcService, server: &Arc<Server>, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let errors = report.errors();
        let envoy = match &service.target_specifier {
            Some(TargetSpecifier::EnvoyGrpc(envoy)) => envoy,
            Some(TargetSpecifier::GoogleGrpc(_)) => {
                report.unsupported(&at.field("google_grpc"), "google_grpc (use envoy_grpc with a cluster)");
                return None;
            }
            None => {
                report.error(at, "no target", "set envoy_grpc");
                return None;
            }
        };
        let at_envoy = at.field("envoy_grpc");
        if envoy.cluster_name.is_empty() {
            report.error(&at_envoy.field("cluster_name"), "empty", "name the cluster to call");
        }
        if HeaderValue::from_str(&envoy.authority).is_err() {
            report.error(&at_envoy.field("authority"), format!("{:?}", envoy.authority), "give a valid authority");
        }
        let timeout = match service.timeout.map(Duration::try_from) {
            None => None,
            Some(Ok(timeout)) => Some(timeout).filter(|t| !t.is_zero()),
            Some(Err(_)) => {
                report.error(&at.field("timeout"), format!("{:?}", service.timeout), "give a timeout that is not negative");
                None
            }
        };
        let metadata = AddedHeaders::compile(&service.initial_metadata, &at.field("initial_metadata"), report)?;
        // The retries of envoy_grpc are about streams that are made anew, which their owners do.
        let retry = compile_retry(service.retry_policy.as_ref(), Some(""), server, &at.field("retry_policy"), report)?;
        let limit = envoy.max_receive_message_length.and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
        let authority = if envoy.authority.is_empty() { envoy.cluster_name.clone() } else { envoy.authority.clone() };
        let slot = server.clusters.slot(&envoy.cluster_name);
        (report.errors() == errors).then(|| Self {
            slot,
            authority: authority.into(),
            metadata,
            timeout,
            retry,
            max_message: limit.unwrap_or(MAX_MESSAGE),
            envoy_headers: !envoy.skip_envoy_headers,
        })
    }
    /// `GrpcService.timeout`.
    pub fn timeout(&self) -> Option<Duration> {
        self.timeout
    }
    /// The name of the cluster.
    pub fn cluster(&self) -> &Arc<str> {
        &self.slot.name
    }
    /// The same service with another timeout for calls.
    pub fn with_timeout(self, timeout: Option<Duration>) -> Self {
        Self { timeout, ..self }
    }

    /// The head of a call of `path` (`/package.Service/Method`).
    fn head(&self, path: &'static str, timeout: Option<Duration>, cx: Option<&FormatContext<'_>>) -> RequestHead {
        let mut head = RequestHead::new(Method::POST, self.authority.clone(), ByteStr::from_static(path));
        head.version = HttpVersion::Http2;
        head.headers.append(header::TE, HeaderValue::from_static("trailers"));
        if let Some(timeout) = timeout
            && let Ok(value) = HeaderValue::from_str(&grpc_timeout_value(timeout))
        {
            head.headers.append(GRPC_TIMEOUT, value);
        }
        head.headers.append(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        self.metadata.append(cx, &mut head.headers);
        head
    }

    /// One call with one answer. `cx` is what formats in `initial_metadata` may see.
    pub async fn unary<A: Message + Default>(
        &self,
        path: &'static str,
        question: &impl Message,
        cx: Option<&FormatContext<'_>>,
    ) -> Result<A, GrpcError> {
        self.unary_metered(path, question, cx, None).await
    }

    /// As [`Self::unary`]; `meter` is told what is on the wire, also of calls that fail.
    pub async fn unary_metered<A: Message + Default>(
        &self,
        path: &'static str,
        question: &impl Message,
        cx: Option<&FormatContext<'_>>,
        meter: Option<&Meter>,
    ) -> Result<A, GrpcError> {
        let head = self.head(path, self.timeout, cx);
        let options = FetchOptions {
            timeout: self.timeout,
            max_body: self.max_message.saturating_add(64),
            retry: self.retry.clone(),
            envoy_headers: self.envoy_headers,
            forwarded_for: self.envoy_headers,
        };
        let answer = fetch::exchange(&self.slot, head, frame::encode(question), &options, meter).await?;
        read(&answer, self.max_message)
    }

    /// Begins a stream, in which both sides may send any number of messages. The timeout of the service does not apply.
    pub async fn stream<A: Message + Default>(
        &self,
        path: &'static str,
        cx: Option<&FormatContext<'_>>,
    ) -> Result<GrpcStream<A>, GrpcError> {
        let mut head = self.head(path, None, cx);
        if self.envoy_headers {
            fetch::envoy_headers(&mut head);
            fetch::forwarded_for(&mut head);
        }
        GrpcStream::open(&self.slot, head, self.max_message).await
    }
}

/// The answer of a unary call.
fn read<A: Message + Default>(answer: &attempt::Answer, max: usize) -> Result<A, GrpcError> {
    status(&answer.head, answer.trailers.as_deref())?;
    let mut decoder = Decoder::new(max);
    decoder.push(&answer.body);
    match decoder.next_message()? {
        Some(message) if decoder.is_empty() => Ok(message),
        _ => Err(GrpcError::internal("not exactly one message")),
    }
}

/// Whether a response ended well. Source: gRPC over HTTP/2, Envoy's `Grpc::Common::getGrpcStatus`.
pub(crate) fn status(head: &ResponseHead, trailers: Option<&Headers>) -> Result<(), GrpcError> {
    if head.status != http::StatusCode::OK {
        let code = grpc_from_http(head.status.as_u16());
        return Err(GrpcError::new(code, format!("HTTP status {}", head.status.as_u16())));
    }
    let found = trailers.into_iter().chain([&head.headers]).find_map(|headers| Some((headers, headers.get_str(&GRPC_STATUS)?)));
    match found {
        Some((_, "0")) => Ok(()),
        Some((headers, text)) => {
            // Codes that nobody knows are Envoy's InvalidCode, which means as much as unknown.
            let code = text.parse().ok().filter(|code| (1..=16).contains(code)).unwrap_or(GrpcError::UNKNOWN);
            Err(GrpcError::new(code, headers.get_str(&GRPC_MESSAGE).map(percent_decode).unwrap_or_default()))
        }
        None => Err(GrpcError::new(GrpcError::UNKNOWN, "no grpc-status")),
    }
}

fn percent_decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let hex = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
        if byte == b'%'
            && let [high, low, tail @ ..] = after
            && let (Some(high), Some(low)) = (hex(*high), hex(*low))
        {
            out.push(high << 4 | low);
            rest = tail;
        } else {
            out.push(byte);
            rest = after;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
