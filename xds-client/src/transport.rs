//! Drives one session over a gRPC stream, for ever: connects, opens the stream, sends what the session wants to send, hands
//! updates to the handler, reconnects with Envoy's back-off. One local task per target on the control thread.

use crate::backoff::{Backoff, TokenBucket};
use crate::resource::{Receipt, Refused, Update, types};
use crate::session::Session;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::poll_fn;
use hyper::client::conn::http2;
use hyper_util::rt::TokioIo;
use nuncio_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse};
use std::cell::RefCell;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, mpsc};
use tonic::metadata::{MetadataKey, MetadataValue};

/// A byte stream to the control plane: TCP, Unix socket, with or without TLS.
pub trait Io: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Io for T {}

/// Opens connections to the control plane; h2 is spoken by prior knowledge on what it returns.
pub trait Connector {
    /// Opens one connection; the error's text is logged and counted as a failed update.
    fn connect(&self) -> LocalBoxFuture<'static, io::Result<Box<dyn Io>>>;
}

/// What consumes a session's updates. Called on the control thread.
pub trait Handler {
    /// Applies an update and says which resources were refused, each with its reason. The stream is not read meanwhile, and the
    /// acknowledgement goes out when this returns; subscriptions made meanwhile go out after it.
    fn on_update(&self, update: Update) -> LocalBoxFuture<'_, Vec<Refused>>;
    /// The stream opened (true) or is gone (false): `control_plane.connected_state`.
    fn on_connected(&self, _connected: bool) {}
    /// Connecting or the stream failed; called once per attempt.
    fn on_failure(&self, _reason: &str) {}
    /// Requests held back by the rate limit: `control_plane.pending_requests`.
    fn on_pending(&self, _requests: usize) {}
    /// A request had to wait: `control_plane.rate_limit_enforced`.
    fn on_rate_limited(&self) {}
}

/// How to talk to one target.
pub struct Options {
    pub connector: Rc<dyn Connector>,
    /// `:authority` of the stream: `envoy_grpc.authority`, else the cluster's name.
    pub authority: String,
    /// gRPC method: see [`ads_method`] and [`service_method`].
    pub method: &'static str,
    /// `GrpcService.initial_metadata`.
    pub metadata: Vec<(String, String)>,
    /// `ApiConfigSource.rate_limit_settings`; none for no limit, as Envoy's default.
    pub rate_limit: Option<(u32, f64)>,
    /// `envoy_grpc.retry_policy.retry_back_off`.
    pub backoff: Backoff,
}

/// The method of an aggregated stream.
pub fn ads_method(delta: bool) -> &'static str {
    if delta {
        "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
    } else {
        "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
    }
}

/// The method of a type's own discovery service; none if the type has no service.
pub fn service_method(type_url: &str, delta: bool) -> Option<&'static str> {
    Some(match (type_url, delta) {
        (types::CLUSTER, true) => "/envoy.service.cluster.v3.ClusterDiscoveryService/DeltaClusters",
        (types::CLUSTER, false) => "/envoy.service.cluster.v3.ClusterDiscoveryService/StreamClusters",
        (types::ENDPOINT, true) => "/envoy.service.endpoint.v3.EndpointDiscoveryService/DeltaEndpoints",
        (types::ENDPOINT, false) => "/envoy.service.endpoint.v3.EndpointDiscoveryService/StreamEndpoints",
        (types::LISTENER, true) => "/envoy.service.listener.v3.ListenerDiscoveryService/DeltaListeners",
        (types::LISTENER, false) => "/envoy.service.listener.v3.ListenerDiscoveryService/StreamListeners",
        (types::ROUTE, true) => "/envoy.service.route.v3.RouteDiscoveryService/DeltaRoutes",
        (types::ROUTE, false) => "/envoy.service.route.v3.RouteDiscoveryService/StreamRoutes",
        (types::SCOPED_ROUTE, true) => "/envoy.service.route.v3.ScopedRoutesDiscoveryService/DeltaScopedRoutes",
        (types::SCOPED_ROUTE, false) => "/envoy.service.route.v3.ScopedRoutesDiscoveryService/StreamScopedRoutes",
        (types::VIRTUAL_HOST, true) => "/envoy.service.route.v3.VirtualHostDiscoveryService/DeltaVirtualHosts",
        (types::SECRET, true) => "/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets",
        (types::SECRET, false) => "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets",
        (types::EXTENSION, true) => "/envoy.service.extension.v3.ExtensionConfigDiscoveryService/DeltaExtensionConfigs",
        (types::EXTENSION, false) => "/envoy.service.extension.v3.ExtensionConfigDiscoveryService/StreamExtensionConfigs",
        _ => return None,
    })
}

/// A session and its place on the control thread. Subscriptions are changed through it at any time.
#[derive(Debug)]
pub struct Client {
    session: RefCell<Session>,
    wake: Notify,
}

impl Client {
    /// A client that is not driven yet; see [`run`].
    pub fn new(session: Session) -> Rc<Self> {
        Rc::new(Self { session: RefCell::new(session), wake: Notify::new() })
    }
    /// Subscribes to every resource of a type.
    pub fn subscribe_all(&self, type_url: &str) {
        self.session.borrow_mut().subscribe_all(type_url);
        self.wake.notify_one();
    }
    /// Subscribes to `names`.
    pub fn subscribe<I: IntoIterator<Item = Arc<str>>>(&self, type_url: &str, names: I) {
        self.session.borrow_mut().subscribe(type_url, names);
        self.wake.notify_one();
    }
    /// Gives `names` up.
    pub fn unsubscribe<I: IntoIterator<Item = Arc<str>>>(&self, type_url: &str, names: I) {
        self.session.borrow_mut().unsubscribe(type_url, names);
        self.wake.notify_one();
    }
}

/// Drives `client` over streams to its target until the future is dropped.
pub async fn run(client: Rc<Client>, mut options: Options, handler: Rc<dyn Handler>) {
    loop {
        let reason = match attempt(&client, &mut options, &handler).await {
            Ok(()) => "the server closed the stream".to_string(),
            Err(reason) => reason,
        };
        client.session.borrow_mut().disconnected();
        handler.on_connected(false);
        handler.on_failure(&reason);
        let wait = options.backoff.next(fastrand::f64());
        tokio::time::sleep(wait).await;
    }
}

/// One connection and one stream, to its end.
async fn attempt(client: &Rc<Client>, options: &mut Options, handler: &Rc<dyn Handler>) -> Result<(), String> {
    let connection = connect(options).await?;
    let delta = matches!(&*client.session.borrow(), Session::Delta(_));
    if delta {
        let next = |s: &mut Session| if let Session::Delta(s) = s { s.next_request() } else { None };
        let take = |s: &mut Session, r: DeltaDiscoveryResponse| if let Session::Delta(s) = s { s.on_response(r) } else { None };
        stream::<DeltaDiscoveryRequest, DeltaDiscoveryResponse>(client, options, handler, &connection, next, take).await
    } else {
        let next = |s: &mut Session| if let Session::Sotw(s) = s { s.next_request() } else { None };
        let take = |s: &mut Session, r: DiscoveryResponse| if let Session::Sotw(s) = s { s.on_response(r) } else { None };
        stream::<DiscoveryRequest, DiscoveryResponse>(client, options, handler, &connection, next, take).await
    }
}

async fn stream<Q, R>(
    client: &Rc<Client>,
    options: &mut Options,
    handler: &Rc<dyn Handler>,
    connection: &Connection,
    next: impl Fn(&mut Session) -> Option<Q>,
    take: impl Fn(&mut Session, R) -> Option<(Update, Receipt)>,
) -> Result<(), String>
where
    Q: prost::Message + Send + 'static,
    R: prost::Message + Default + Send + 'static,
{
    let (requests, mut outgoing) = mpsc::unbounded_channel::<Q>();
    let mut request = tonic::Request::new(poll_fn(move |cx| outgoing.poll_recv(cx)));
    for (key, value) in &options.metadata {
        if let (Ok(key), Ok(value)) = (MetadataKey::from_bytes(key.as_bytes()), MetadataValue::try_from(value.as_str())) {
            request.metadata_mut().append(key, value);
        }
    }
    let origin = http::Uri::builder().scheme("http").authority(options.authority.as_str()).path_and_query("/").build();
    let origin = origin.unwrap_or_else(|_| http::Uri::from_static("http://xds"));
    let mut grpc = tonic::client::Grpc::with_origin(Service(connection.sender.clone()), origin)
        .max_decoding_message_size(usize::MAX)
        .max_encoding_message_size(usize::MAX);
    grpc.ready().await.map_err(|e| describe(&e))?;
    client.session.borrow_mut().connected();
    handler.on_connected(true);
    let path = http::uri::PathAndQuery::from_static(options.method);
    let mut limit = options.rate_limit.map(|(max, fill)| TokenBucket::new(max, fill, Instant::now()));
    // Servers send response headers with their first message: requests must flow while the call is still being opened.
    let mut call = pin!(grpc.streaming(request, path, tonic_prost::ProstCodec::<Q, R>::default()));
    let mut incoming = loop {
        tokio::select! {
            biased;
            opened = &mut call => break opened.map_err(|s| status(&s))?.into_inner(),
            _ = send(client, &requests, &mut limit, handler, &next) => {}
        }
    };
    loop {
        let message = tokio::select! {
            biased;
            message = incoming.message() => message.map_err(|s| status(&s))?,
            _ = send(client, &requests, &mut limit, handler, &next) => continue,
        };
        let Some(response) = message else { return Ok(()) };
        options.backoff.reset();
        let taken = take(&mut client.session.borrow_mut(), response);
        let Some((update, receipt)) = taken else {
            log::debug!(target: "config", "a response of a type that nobody subscribed to was ignored");
            continue;
        };
        let refused = handler.on_update(update).await;
        client.session.borrow_mut().finish(receipt, refused);
        client.wake.notify_one();
    }
}

/// Sends what is due, then waits until something may be due again. Never loses a request when dropped: it holds none across an await.
async fn send<Q>(
    client: &Rc<Client>,
    requests: &mpsc::UnboundedSender<Q>,
    limit: &mut Option<TokenBucket>,
    handler: &Rc<dyn Handler>,
    next: &impl Fn(&mut Session) -> Option<Q>,
) {
    loop {
        let pending = client.session.borrow().pending();
        if pending == 0 {
            handler.on_pending(0);
            client.wake.notified().await;
            continue;
        }
        if let Some(wait) = limit.as_mut().and_then(|bucket| bucket.take(Instant::now()).err()) {
            handler.on_rate_limited();
            handler.on_pending(pending);
            tokio::time::sleep(wait).await;
            continue;
        }
        let request = next(&mut client.session.borrow_mut());
        // A closed channel means that the call ended, which the caller is about to see.
        if request.is_none_or(|r| requests.send(r).is_err()) {
            client.wake.notified().await;
        }
    }
}

/// One HTTP/2 connection, driven by a local task until it closes or the caller is done.
struct Connection {
    sender: http2::SendRequest<tonic::body::Body>,
    driver: tokio::task::JoinHandle<()>,
}
impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

async fn connect(options: &Options) -> Result<Connection, String> {
    let io = options.connector.connect().await.map_err(|e| describe(&e))?;
    let (sender, driver) = http2::Builder::new(LocalExecutor)
        .timer(hyper_util::rt::TokioTimer::new())
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(2 << 20)
        .max_header_list_size(1 << 16)
        .handshake(TokioIo::new(io))
        .await
        .map_err(|e| describe(&e))?;
    let driver = tokio::task::spawn_local(async move {
        if let Err(e) = driver.await {
            log::debug!(target: "grpc", "connection to the control plane: {}", describe(&e));
        }
    });
    Ok(Connection { sender, driver })
}

/// Spawns hyper's tasks on the control thread, so that connections need not be `Send`.
#[derive(Clone, Copy)]
struct LocalExecutor;
impl<F: Future + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, task: F) {
        tokio::task::spawn_local(async move {
            task.await;
        });
    }
}

/// hyper's sender as the service that tonic calls.
struct Service(http2::SendRequest<tonic::body::Body>);

impl tower_service::Service<http::Request<tonic::body::Body>> for Service {
    type Response = http::Response<hyper::body::Incoming>;
    type Error = hyper::Error;
    type Future = LocalBoxFuture<'static, Result<Self::Response, hyper::Error>>;
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(cx)
    }
    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

/// An error with its causes, because tonic's own text is `transport error`.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

fn status(status: &tonic::Status) -> String {
    format!("gRPC status {:?}: {}", status.code(), describe(status))
}
