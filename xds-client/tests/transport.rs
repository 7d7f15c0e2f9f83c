//! A session over real gRPC: requests flow before the server answers, updates are acknowledged, a lost stream is resumed.

#![allow(clippy::unwrap_used)] // Helpers outside of test functions.

use futures_util::future::LocalBoxFuture;
use nuncio_proto::envoy::config::core::v3::Node;
use nuncio_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use nuncio_proto::{Any, Message};
use nuncio_xds::transport::{Client, Connector, Handler, Io, Options, ads_method, run};
use nuncio_xds::{Backoff, Refused, Session, Update, types};
use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;

/// Connections arrive at the test as the server's ends of pipes.
struct Pipes(mpsc::UnboundedSender<DuplexStream>);
impl Connector for Pipes {
    fn connect(&self) -> LocalBoxFuture<'static, io::Result<Box<dyn Io>>> {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let sent = self.0.send(theirs);
        Box::pin(async move {
            sent.map_err(|_| io::Error::other("no server"))?;
            Ok(Box::new(ours) as Box<dyn Io>)
        })
    }
}

#[derive(Default)]
struct Seen {
    updates: RefCell<Vec<Update>>,
    events: RefCell<Vec<String>>,
}
impl Handler for Seen {
    fn on_update(&self, update: Update) -> LocalBoxFuture<'_, Vec<Refused>> {
        let refused =
            update.resources.iter().filter(|r| r.name.starts_with("bad")).map(|r| Refused { name: r.name.clone(), reason: "no".into() });
        let refused = refused.collect();
        self.updates.borrow_mut().push(update);
        Box::pin(async { refused })
    }
    fn on_connected(&self, connected: bool) {
        self.events.borrow_mut().push(format!("connected {connected}"));
    }
    fn on_failure(&self, reason: &str) {
        self.events.borrow_mut().push(reason.to_string());
    }
}

/// One stream, seen from the server.
struct Stream {
    requests: mpsc::UnboundedReceiver<DeltaDiscoveryRequest>,
    responses: Option<mpsc::UnboundedSender<DeltaDiscoveryResponse>>,
    path: String,
}

fn frame(message: &impl Message) -> bytes::Bytes {
    let body = message.encode_to_vec();
    let mut all = vec![0];
    all.extend_from_slice(&(body.len() as u32).to_be_bytes());
    all.extend_from_slice(&body);
    all.into()
}

/// Serves HTTP/2 on `io` by hand: one gRPC stream, with response headers only once there is a response, as Go servers do.
async fn accept(io: DuplexStream) -> Stream {
    let mut connection = h2::server::handshake(io).await.unwrap();
    let (request, mut respond) = connection.accept().await.unwrap().unwrap();
    tokio::task::spawn_local(async move { while connection.accept().await.is_some() {} });
    let path = request.uri().path().to_string();
    let (tx, requests) = mpsc::unbounded_channel();
    let (responses, mut rx) = mpsc::unbounded_channel::<DeltaDiscoveryResponse>();
    tokio::task::spawn_local(async move {
        let mut body = request.into_body();
        let mut buffer = Vec::new();
        while let Some(Ok(data)) = body.data().await {
            let _ = body.flow_control().release_capacity(data.len());
            buffer.extend_from_slice(&data);
            while buffer.len() >= 5 {
                let len = u32::from_be_bytes(buffer[1..5].try_into().unwrap()) as usize;
                if buffer.len() < 5 + len {
                    break;
                }
                let rest = buffer.split_off(5 + len);
                let _ = tx.send(DeltaDiscoveryRequest::decode(&buffer[5..]).unwrap());
                buffer = rest;
            }
        }
    });
    tokio::task::spawn_local(async move {
        let mut stream = None;
        while let Some(response) = rx.recv().await {
            let head = http::Response::builder().header("content-type", "application/grpc").body(()).unwrap();
            let stream: &mut h2::SendStream<bytes::Bytes> = stream.get_or_insert_with(|| respond.send_response(head, false).unwrap());
            let mut data = frame(&response);
            while !data.is_empty() {
                stream.reserve_capacity(data.len());
                let room = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await.unwrap().unwrap();
                stream.send_data(data.split_to(room.min(data.len())), false).unwrap();
            }
        }
        if let Some(mut stream) = stream {
            let mut trailers = http::HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            stream.send_trailers(trailers).unwrap();
        }
    });
    Stream { requests, responses: Some(responses), path }
}

fn options(pipes: Pipes) -> Options {
    Options {
        connector: Rc::new(pipes),
        authority: "xds-grpc".into(),
        method: ads_method(true),
        metadata: vec![("x-key".into(), "value".into())],
        rate_limit: None,
        backoff: Backoff::new(Duration::from_millis(1), Duration::from_millis(2)),
    }
}

#[tokio::test]
async fn a_session_survives_its_stream_and_messages_may_be_large() {
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            let (tx, mut connections) = mpsc::unbounded_channel();
            let client = Client::new(Session::delta(Node { id: "me".into(), ..Node::default() }));
            client.subscribe_all(types::CLUSTER);
            let seen = Rc::new(Seen::default());
            let driver = tokio::task::spawn_local(run(client.clone(), options(Pipes(tx)), seen.clone()));

            let mut stream = accept(connections.recv().await.unwrap()).await;
            assert_eq!(stream.path, ads_method(true));
            let first = stream.requests.recv().await.unwrap();
            assert!(first.type_url == types::CLUSTER && first.node.is_some());
            client.subscribe(types::ENDPOINT, ["e".into()]);
            assert_eq!(stream.requests.recv().await.unwrap().resource_names_subscribe, ["e"], "before any response");
            let resource = |name: &str| Resource {
                name: name.into(),
                version: "1".into(),
                resource: Some(Any { type_url: types::CLUSTER.into(), value: vec![b'x'; 5 << 20] }),
                ..Resource::default()
            };
            let response = DeltaDiscoveryResponse {
                type_url: types::CLUSTER.into(),
                nonce: "n1".into(),
                resources: vec![resource("good"), resource("bad")],
                ..Default::default()
            };
            stream.responses.as_ref().unwrap().send(response).unwrap();
            let nack = stream.requests.recv().await.unwrap();
            assert_eq!((nack.response_nonce.as_str(), nack.error_detail.unwrap().message.as_str()), ("n1", "bad: no"));
            assert_eq!(seen.updates.borrow()[0].resources.len(), 2);

            stream.responses = None;
            let mut stream = accept(connections.recv().await.unwrap()).await;
            let again = stream.requests.recv().await.unwrap();
            assert!(again.node.is_some());
            assert_eq!(again.initial_resource_versions.into_iter().collect::<Vec<_>>(), [("good".to_string(), "1".to_string())]);
            assert_eq!(*seen.events.borrow(), ["connected true", "connected false", "the server closed the stream", "connected true"]);
            driver.abort();
        })
        .await;
}

#[tokio::test]
async fn failing_to_connect_is_told_and_tried_again() {
    struct Never(RefCell<u32>, mpsc::UnboundedSender<u32>);
    impl Connector for Never {
        fn connect(&self) -> LocalBoxFuture<'static, io::Result<Box<dyn Io>>> {
            *self.0.borrow_mut() += 1;
            let _ = self.1.send(*self.0.borrow());
            Box::pin(async { Err(io::Error::other("nobody there")) })
        }
    }
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            let (tx, mut attempts) = mpsc::unbounded_channel();
            let (unused, _) = mpsc::unbounded_channel();
            let client = Client::new(Session::sotw(Node::default()));
            let seen = Rc::new(Seen::default());
            let options = Options { connector: Rc::new(Never(RefCell::new(0), tx)), ..options(Pipes(unused)) };
            let driver = tokio::task::spawn_local(run(client, options, seen.clone()));
            while attempts.recv().await.unwrap() < 3 {}
            assert!(seen.events.borrow().iter().filter(|e| e.contains("nobody there")).count() >= 2);
            driver.abort();
        })
        .await;
}
