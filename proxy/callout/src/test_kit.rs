//! Services to call, and clusters that reach them, for tests of whatever makes calls. Feature `test-kit`; never in the binary.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Response};
use nuncio_core::diag::Report;
use nuncio_core::registry::{Registry, Server};
use nuncio_core::views::ClusterView;
use nuncio_proto::envoy::config::cluster::v3::Cluster as Proto;
use nuncio_proto::json::{UnknownFields, parse_text};
use nuncio_tls::SecretStore;
use nuncio_upstream::{Cluster, ClusterCx};
use prost::Message;
use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Runs `test` on a thread that is like a worker.
pub fn run<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap_or_else(|e| panic!("{e}"));
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let limited = tokio::time::timeout(Duration::from_secs(30), test).await;
        assert!(limited.is_ok(), "the test hangs");
    });
}

/// Puts a STATIC cluster of one host into its slot; `more` is YAML of further fields, each line at the left margin.
pub fn cluster(server: &Arc<Server>, name: &str, address: SocketAddr, more: &str) -> Arc<Cluster> {
    let yaml = format!(
        "name: {name}\n{more}\nload_assignment:\n  cluster_name: {name}\n  endpoints:\n  - lb_endpoints:\n    - endpoint: {{address: \
         {{socket_address: {{address: {}, port_value: {}}}}}}}\n",
        address.ip(),
        address.port()
    );
    let proto: Proto = parse_text(&yaml, UnknownFields::Refuse).unwrap_or_else(|e| panic!("{e:?}")).value;
    let (secrets, registry, shared) = (SecretStore::new(), Registry::default(), Arc::default());
    let mut report = Report::new();
    let mut cx = ClusterCx { server, secrets: &secrets, registry: &registry, shared: &shared, report: &mut report, added_via_api: true };
    let cluster = Cluster::compile(&proto, &mut cx).unwrap_or_else(|| panic!("{}", report.summary()));
    server.clusters.slot(name).set(Some(Arc::clone(&cluster) as Arc<dyn ClusterView>));
    cluster
}

/// YAML of a cluster that speaks HTTP/2.
pub const HTTP2: &str = "typed_extension_protocol_options:\n  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:\n    \"@type\": \
                         type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions\n    explicit_http_config: \
                         {http2_protocol_options: {}}";

/// A message that a gRPC service got.
#[derive(Clone, Debug)]
pub struct Call {
    pub path: String,
    pub headers: HeaderMap,
    pub message: Bytes,
}

impl Call {
    /// The message, which must be an `M`.
    pub fn decode<M: Message + Default>(&self) -> M {
        M::decode(self.message.clone()).unwrap_or_else(|e| panic!("{e}"))
    }
}

/// What a gRPC service does with a message.
#[derive(Clone, Debug)]
pub enum Answer {
    /// A message back.
    Message(Bytes),
    /// Nothing, for now; status 0 at the end.
    Nothing,
    /// The end, with this status and message.
    Status(u32, &'static str),
    /// An HTTP response that is not gRPC.
    Http(u16),
    /// Bytes that are no message.
    Raw(&'static [u8]),
    /// RST_STREAM.
    Reset,
    /// No answer for as long as the client waits.
    Hang,
}

impl Answer {
    pub fn message(message: &impl Message) -> Self {
        Self::Message(message.encode_to_vec().into())
    }
}

/// A gRPC service on loopback. Ends when dropped.
pub struct GrpcServer {
    pub address: SocketAddr,
    pub calls: Rc<RefCell<Vec<Call>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for GrpcServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl GrpcServer {
    /// Starts one that does with each message what `handler` says.
    pub async fn start(handler: impl Fn(&Call) -> Answer + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap_or_else(|e| panic!("{e}"));
        let address = listener.local_addr().unwrap_or_else(|e| panic!("{e}"));
        let calls: Rc<RefCell<Vec<Call>>> = Rc::default();
        let (seen, handler) = (calls.clone(), Rc::new(handler));
        let task = tokio::task::spawn_local(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (seen, handler) = (seen.clone(), handler.clone());
                tokio::task::spawn_local(async move {
                    let Ok(mut connection) = h2::server::handshake(socket).await else { return };
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        tokio::task::spawn_local(serve(request, respond, seen.clone(), handler.clone()));
                    }
                });
            }
        });
        Self { address, calls, task }
    }
    /// Waits until `count` messages have come.
    pub async fn wait_for(&self, count: usize) {
        while self.calls.borrow().len() < count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

async fn serve(
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    calls: Rc<RefCell<Vec<Call>>>,
    handler: Rc<impl Fn(&Call) -> Answer>,
) {
    let (parts, mut body) = request.into_parts();
    let mut buffer = BytesMut::new();
    let mut stream: Option<h2::SendStream<Bytes>> = None;
    let head = |status: u16| {
        let mut head = Response::new(());
        *head.status_mut() = http::StatusCode::from_u16(status).unwrap_or_default();
        head.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        head
    };
    let trailers = |code: u32, message: &'static str| {
        HeaderMap::from_iter([
            (http::HeaderName::from_static("grpc-status"), HeaderValue::from(code)),
            (http::HeaderName::from_static("grpc-message"), HeaderValue::from_static(message)),
        ])
    };
    loop {
        while buffer.len() >= 5 {
            let length = buffer.get(1..5).map_or(0, |mut b| b.get_u32()) as usize;
            if buffer.len() < 5 + length {
                break;
            }
            buffer.advance(5);
            let call =
                Call { path: parts.uri.path().to_string(), headers: parts.headers.clone(), message: buffer.split_to(length).freeze() };
            let answer = handler(&call);
            calls.borrow_mut().push(call);
            let bytes = match answer {
                Answer::Nothing => continue,
                Answer::Message(message) => {
                    let mut framed = BytesMut::new();
                    framed.put_u8(0);
                    framed.put_u32(u32::try_from(message.len()).unwrap_or_default());
                    framed.extend_from_slice(&message);
                    framed.freeze()
                }
                Answer::Raw(bytes) => Bytes::from_static(bytes),
                Answer::Status(code, message) => {
                    if let Some(stream) = &mut stream {
                        let _ = stream.send_trailers(trailers(code, message));
                        return;
                    }
                    let mut head = head(200);
                    head.headers_mut().extend(trailers(code, message));
                    let _ = respond.send_response(head, true);
                    return;
                }
                Answer::Http(status) => {
                    let _ = respond.send_response(head(status), true);
                    return;
                }
                Answer::Reset => return respond.send_reset(h2::Reason::INTERNAL_ERROR),
                Answer::Hang => return std::future::pending().await,
            };
            if stream.is_none() {
                stream = respond.send_response(head(200), false).ok();
            }
            if let Some(stream) = &mut stream {
                let _ = stream.send_data(bytes, false);
            }
        }
        match body.data().await {
            Some(Ok(data)) => {
                let _ = body.flow_control().release_capacity(data.len());
                buffer.extend_from_slice(&data);
            }
            Some(Err(_)) => return,
            None => break,
        }
    }
    match &mut stream {
        Some(stream) => {
            let _ = stream.send_trailers(trailers(0, ""));
        }
        None => {
            let mut head = head(200);
            head.headers_mut().extend(trailers(0, ""));
            let _ = respond.send_response(head, true);
        }
    }
}

/// An HTTP/1 service on loopback that answers each request's bytes with bytes; none: never. Ends when dropped.
pub struct HttpServer {
    pub address: SocketAddr,
    /// Requests as they came, head and body.
    pub requests: Rc<RefCell<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl HttpServer {
    /// Starts one. An empty answer closes the connection.
    pub async fn start(handler: impl Fn(&str) -> Option<String> + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap_or_else(|e| panic!("{e}"));
        let address = listener.local_addr().unwrap_or_else(|e| panic!("{e}"));
        let requests: Rc<RefCell<Vec<String>>> = Rc::default();
        let (seen, handler) = (requests.clone(), Rc::new(handler));
        let task = tokio::task::spawn_local(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let (seen, handler) = (seen.clone(), handler.clone());
                tokio::task::spawn_local(async move {
                    let mut buffer = Vec::new();
                    loop {
                        let text = String::from_utf8_lossy(&buffer).into_owned();
                        let complete = text.split_once("\r\n\r\n").filter(|(head, body)| {
                            let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")?.parse::<usize>().ok());
                            body.len() >= length.unwrap_or(0)
                        });
                        if complete.is_some() {
                            buffer.clear();
                            let answer = handler(&text);
                            seen.borrow_mut().push(text);
                            match answer {
                                None => std::future::pending().await,
                                Some(answer) if answer.is_empty() => return,
                                Some(answer) => {
                                    let _ = socket.write_all(answer.as_bytes()).await;
                                    continue;
                                }
                            }
                        }
                        if !matches!(socket.read_buf(&mut buffer).await, Ok(n) if n > 0) {
                            return;
                        }
                    }
                });
            }
        });
        Self { address, requests, task }
    }
    /// The last request.
    pub fn last(&self) -> String {
        self.requests.borrow().last().cloned().unwrap_or_default()
    }
}
