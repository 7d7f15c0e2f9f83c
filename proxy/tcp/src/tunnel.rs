//! `tunneling_config`: the connection goes to the upstream as the body of a CONNECT or POST request. Compiled on the control thread; a
//! tunnel belongs to one connection. Source: `TcpProxy.TunnelingConfig`, Envoy's `tcp_proxy/upstream.cc`.

use crate::bypass::Bypass;
use bytes::{Buf, Bytes};
use http::{HeaderName, HeaderValue, Method};
use nuncio_core::diag::{At, Report};
use nuncio_core::filter_state::StateObject;
use nuncio_core::{ByteStr, Frame, Headers, HttpVersion, RequestHead, ResponseHead, StreamError, StreamInfo};
use nuncio_format::{FormatContext, Formatter};
use nuncio_proto::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::TunnelingConfig as Proto;
use nuncio_proto::{Struct, Value};
use nuncio_route::HeaderParser;
use nuncio_upstream::{Cluster, Host, OpenOptions, UpstreamStream, Upstreams};
use std::any::Any;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Bytes that are queued on the stream at once.
const CHUNK: usize = 16 * 1024;
/// Namespace and default key of the request id in dynamic metadata.
const NAMESPACE: &str = "envoy.filters.network.tcp_proxy";
const REQUEST_ID_KEY: &str = "tunnel_request_id";
/// Filter state that answers are kept in.
const RESPONSE_HEADERS: &str = "envoy.tcp_proxy.propagate_response_headers";
const RESPONSE_TRAILERS: &str = "envoy.tcp_proxy.propagate_response_trailers";

/// A compiled `TunnelingConfig`.
#[derive(Debug)]
pub(crate) struct Tunneling {
    hostname: Formatter,
    /// Path of a POST; none for CONNECT.
    post: Option<ByteStr>,
    headers: HeaderParser,
    keep_headers: bool,
    keep_trailers: bool,
    request_id: Option<RequestId>,
}

/// `request_id_extension`: where a new UUID goes.
#[derive(Debug)]
struct RequestId {
    header: HeaderName,
    key: String,
}

impl Tunneling {
    /// None if anything was refused.
    pub fn compile(proto: &Proto, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let errors = report.errors();
        if proto.hostname.is_empty() {
            report.error(&at.field("hostname"), "empty", "say which host the proxy is to connect to");
        }
        if !proto.post_path.is_empty() && !proto.use_post {
            report.error(&at.field("post_path"), proto.post_path.as_str(), "only together with use_post");
        }
        let hostname = Formatter::text_with(&proto.hostname, &proto.formatters, false, &at.field("hostname"), report);
        let headers = HeaderParser::compile(&proto.headers_to_add, &at.field("headers_to_add"), &[], at, report);
        let request_id = request_id(proto, at, report);
        let path = if proto.post_path.is_empty() { "/" } else { proto.post_path.as_str() };
        let post = proto.use_post.then(|| ByteStr::from(path));
        let (keep_headers, keep_trailers) = (proto.propagate_response_headers, proto.propagate_response_trailers);
        let (hostname, headers) = (hostname?, headers?);
        (report.errors() == errors).then_some(Self { hostname, post, headers, keep_headers, keep_trailers, request_id })
    }
    /// The request that opens the tunnel.
    fn request(&self, info: &mut StreamInfo, secure: bool) -> RequestHead {
        let mut host = String::new();
        self.hostname.format(&FormatContext::new(info), &mut host);
        let mut head = match &self.post {
            Some(path) => RequestHead::new(Method::POST, host, path.clone()),
            None => RequestHead::new(Method::CONNECT, host, ""),
        };
        head.scheme = ByteStr::from_static(if secure { "https" } else { "http" });
        if let Some(id) = &self.request_id {
            let uuid = crate::session::uuid();
            let value = Value { kind: Some(prost_types::value::Kind::StringValue(uuid.clone())) };
            info.set_metadata(NAMESPACE, Struct { fields: [(id.key.clone(), value)].into() });
            if let Ok(value) = HeaderValue::try_from(uuid) {
                head.headers.insert(id.header.clone(), value);
            }
        }
        self.headers.apply(&mut head.headers, &FormatContext::new(info));
        head
    }
    /// Opens a tunnel through `host`. Failures of the proxy behind it count as failures to connect.
    pub async fn open(
        &self,
        upstreams: &Upstreams,
        cluster: &Arc<Cluster>,
        host: &Arc<Host>,
        info: &mut StreamInfo,
        options: &OpenOptions<'_>,
    ) -> Result<Tunnel, StreamError> {
        let head = self.request(info, info.connection.tls.is_some());
        let mut stream = upstreams.open(cluster, host, &head, false, options).await?;
        let answer = poll_fn(|cx| {
            if let Poll::Ready(Err(error)) = stream.poll_flush(cx) {
                return Poll::Ready(Err(error));
            }
            loop {
                match ready!(stream.poll_response(cx))? {
                    interim if interim.status.is_informational() && interim.status != http::StatusCode::SWITCHING_PROTOCOLS => {}
                    head => return Poll::Ready(Ok(head)),
                }
            }
        })
        .await?;
        if self.keep_headers {
            info.filter_state.set(RESPONSE_HEADERS, Arc::new(Answer::head(&answer)));
        }
        let good = match stream.version() {
            HttpVersion::Http10 | HttpVersion::Http11 => answer.status.is_success(),
            HttpVersion::Http2 | HttpVersion::Http3 => answer.status == http::StatusCode::OK,
        };
        if !good {
            return Err(StreamError::ConnectFailed(String::new()));
        }
        Ok(Tunnel { stream, read: Bytes::new(), shut: false, trailers: None, keep_trailers: self.keep_trailers })
    }
}

fn request_id(proto: &Proto, at: &At<'_>, report: &mut Report) -> Option<RequestId> {
    let extension = proto.request_id_extension.as_ref()?;
    let at_extension = at.field("request_id_extension");
    let named = extension.typed_config.as_ref().map(|any| any.type_url.rsplit('/').next().unwrap_or_default());
    if !named.unwrap_or_default().ends_with(".UuidRequestIdConfig") {
        report.unsupported(&at_extension, "a request id that is not a UUID");
        return None;
    }
    let name = if proto.request_id_header.is_empty() { "x-request-id" } else { proto.request_id_header.as_str() };
    let key = if proto.request_id_metadata_key.is_empty() { REQUEST_ID_KEY } else { proto.request_id_metadata_key.as_str() };
    match HeaderName::try_from(name) {
        Ok(header) => Some(RequestId { header, key: key.to_string() }),
        Err(_) => {
            report.error(&at.field("request_id_header"), name, "a valid header name");
            None
        }
    }
}

/// What the upstream proxy answered (`propagate_response_headers`, `propagate_response_trailers`).
#[derive(Debug)]
struct Answer(Vec<(String, String)>);

impl Answer {
    fn head(head: &ResponseHead) -> Self {
        let mut all = Self::fields(&head.headers);
        all.0.insert(0, (":status".to_string(), head.status.as_str().to_string()));
        all
    }
    fn fields(headers: &Headers) -> Self {
        Self(headers.iter().map(|(n, v)| (n.as_str().to_string(), String::from_utf8_lossy(v.as_bytes()).into_owned())).collect())
    }
}

impl StateObject for Answer {
    fn as_json(&self) -> Option<String> {
        let mut out = String::from("{\"headers\":[");
        for (i, (name, value)) in self.0.iter().enumerate() {
            if i > 0 {
                out.push(',');
            }
            out.push_str("{\"key\":");
            quote(name, &mut out);
            if !value.is_empty() {
                out.push_str(",\"value\":");
                quote(value, &mut out);
            }
            out.push('}');
        }
        out.push_str("]}");
        Some(out)
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn quote(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c < ' ' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
}

/// An open tunnel as a byte stream.
pub(crate) struct Tunnel {
    stream: UpstreamStream,
    read: Bytes,
    shut: bool,
    /// Trailers of the answer, until somebody takes them.
    trailers: Option<Box<Headers>>,
    keep_trailers: bool,
}

impl Tunnel {
    /// The stream beneath.
    pub fn stream(&self) -> &UpstreamStream {
        &self.stream
    }
    /// Puts trailers that came into `info`.
    pub fn note(&mut self, info: &mut StreamInfo) {
        if let Some(trailers) = self.trailers.take() {
            info.filter_state.set(RESPONSE_TRAILERS, Arc::new(Answer::fields(&trailers)));
        }
    }
}

fn broken(error: &StreamError) -> io::Error {
    let kind = match error {
        StreamError::RemoteReset(_) | StreamError::RemoteRefused => io::ErrorKind::ConnectionReset,
        _ => io::ErrorKind::ConnectionAborted,
    };
    io::Error::new(kind, format!("{error:?}"))
}

impl AsyncRead for Tunnel {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.read.is_empty() {
            match ready!(this.stream.poll_frame(cx)) {
                Some(Ok(Frame::Data(data))) => this.read = data,
                Some(Ok(Frame::Trailers(trailers))) => this.trailers = Some(trailers).filter(|_| this.keep_trailers),
                Some(Err(error)) => return Poll::Ready(Err(broken(&error))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let n = this.read.len().min(buf.remaining());
        buf.put_slice(this.read.get(..n).unwrap_or_default());
        this.read.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.stream.poll_ready(cx)).map_err(|e| broken(&e))?;
        let data = Bytes::copy_from_slice(buf.get(..buf.len().min(CHUNK)).unwrap_or_default());
        let n = data.len();
        this.stream.send_data(data, false).map_err(|e| broken(&e))?;
        Poll::Ready(Ok(n))
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().stream.poll_flush(cx).map_err(|e| broken(&e))
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.shut {
            ready!(this.stream.poll_ready(cx)).map_err(|e| broken(&e))?;
            this.stream.send_data(Bytes::new(), true).map_err(|e| broken(&e))?;
            this.shut = true;
        }
        this.stream.poll_flush(cx).map_err(|e| broken(&e))
    }
}

impl Bypass for Tunnel {
    fn socket(&mut self) -> Option<&TcpStream> {
        None
    }
    fn bypassed(&self, _: usize, _: usize) {}
}
