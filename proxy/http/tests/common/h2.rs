//! Our HTTP/2 client and server over an in-memory transport.

use super::{TestService, settle};
use bytes::BytesMut;
use http::{Method, StatusCode};
use nuncio_core::{Frame, RequestHead, ResponseHead, StreamError};
use nuncio_http::{ClientOptions, ClientStream, ConnControl, ConnectionEnd, ServerOptions, h2, serve_h2};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{DuplexStream, duplex};
use tokio::task::JoinHandle;
use tokio::time::timeout;

pub type Stream = ClientStream<DuplexStream>;

pub struct Pair {
    pub client: h2::Client,
    pub control: Rc<ConnControl>,
    pub task: JoinHandle<ConnectionEnd>,
}

pub fn serve(io: DuplexStream, service: Rc<TestService>, options: ServerOptions) -> (Rc<ConnControl>, JoinHandle<ConnectionEnd>) {
    let control = Rc::new(ConnControl::new());
    let task = tokio::task::spawn_local(serve_h2(io, BytesMut::new(), service, Arc::new(options), control.clone()));
    (control, task)
}

pub async fn pair(service: Rc<TestService>, options: ServerOptions, client: ClientOptions) -> Pair {
    let (ours, theirs) = duplex(1 << 16);
    let (control, task) = serve(theirs, service, options);
    let client = h2::Client::connect(ours, Arc::new(client)).await.unwrap();
    settle().await;
    Pair { client, control, task }
}

pub fn head(method: Method, path: &str) -> RequestHead {
    RequestHead::new(method, "a.b:80", path)
}

pub fn open(client: &h2::Client, head: &RequestHead, end: bool) -> Stream {
    ClientStream::H2(client.send(head, end).unwrap())
}

pub async fn response(stream: &mut Stream) -> Result<ResponseHead, StreamError> {
    timeout(Duration::from_secs(500), poll_fn(|cx| stream.poll_response(cx))).await.unwrap()
}

pub async fn body(stream: &mut Stream) -> Result<(Vec<u8>, usize), StreamError> {
    let (mut all, mut trailers) = (Vec::new(), 0);
    while let Some(frame) = poll_fn(|cx| stream.poll_frame(cx)).await {
        match frame? {
            Frame::Data(data) => all.extend_from_slice(&data),
            Frame::Trailers(t) => trailers = t.len(),
        }
    }
    Ok((all, trailers))
}

pub async fn text(stream: &mut Stream) -> String {
    assert_eq!(response(stream).await.unwrap().status, StatusCode::OK);
    String::from_utf8(body(stream).await.unwrap().0).unwrap()
}

/// The bytes of a frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}
