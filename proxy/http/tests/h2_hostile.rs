//! HTTP/2 by hand against our server and our client: floods, malformed heads, and peers that answer and close.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may fail a test")]

mod common;

use bytes::BytesMut;
use common::h2::frame;
use common::{TestService, local, settle};
use http::Method;
use nuncio_core::{RequestHead, StreamError};
use nuncio_http::{ClientOptions, ConnControl, ConnectionEnd, FloodLimits, Request, Response, ServerOptions, auto, h2, serve_h2};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const HEADERS: u8 = 1;
/// `GET http://a/` with END_STREAM and END_HEADERS, from the static table but for the authority.
const GET: &[u8] = b"\x82\x86\x84\x01\x01a";

/// Sends these frames and closes when the server has nothing more to say: how the connection ended, and what the service was told.
async fn run(frames: &[Vec<u8>], options: ServerOptions) -> (ConnectionEnd, Rc<TestService>) {
    let (mut client, server) = duplex(1 << 20);
    let service = TestService::mirror();
    let control = Rc::new(ConnControl::new());
    let task = tokio::task::spawn_local(serve_h2(server, BytesMut::new(), service.clone(), Arc::new(options), control));
    client.write_all(auto::PREFACE).await.unwrap();
    client.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
    for frame in frames {
        if client.write_all(frame).await.is_err() {
            break;
        }
    }
    let mut buf = [0; 4096];
    while let Ok(Ok(n)) = timeout(Duration::from_millis(50), client.read(&mut buf)).await {
        if n == 0 {
            break;
        }
    }
    drop(client);
    (task.await.unwrap(), service)
}

#[tokio::test(start_paused = true)]
async fn a_flood_ends_the_connection() {
    local(async {
        let priority = frame(PRIORITY, 0, 5, &[0, 0, 0, 1, 5]);
        let (end, _) = run(&vec![priority.clone(); 101], ServerOptions::default()).await;
        assert_eq!(end, ConnectionEnd::Protocol("overload_error:Too_many_PRIORITY_frames"));
        let (end, _) = run(&vec![priority.clone(); 100], ServerOptions::default()).await;
        assert_eq!(end, ConnectionEnd::Remote);
        let mut options = ServerOptions::default();
        options.h2.flood = FloodLimits { max_priority_frames_per_stream: 1, ..FloodLimits::default() };
        let (end, _) = run(&vec![priority; 2], options).await;
        assert_eq!(end, ConnectionEnd::Protocol("overload_error:Too_many_PRIORITY_frames"));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_resets_most_of_its_streams_is_left() {
    local(async {
        for (answered, resets, ends) in [(0, 249, false), (0, 250, true), (300, 299, false), (300, 300, true)] {
            let (mut client, server) = duplex(1 << 20);
            let service = TestService::new(|request: Request| async move {
                match request.head.path.as_str() {
                    "/" => {
                        request.stream.closed().await;
                        Response::reset(0)
                    }
                    _ => common::ok(nuncio_core::Body::Empty),
                }
            });
            let control = Rc::new(ConnControl::new());
            let task = tokio::task::spawn_local(serve_h2(server, BytesMut::new(), service, Arc::default(), control));
            client.write_all(auto::PREFACE).await.unwrap();
            client.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
            for number in 0..answered + resets {
                let reset = number >= answered;
                let stream = number * 2 + 1;
                let path = if reset { GET } else { b"\x82\x86\x85\x01\x01a" };
                client.write_all(&frame(HEADERS, 5, stream, path)).await.unwrap();
                settle().await;
                if reset {
                    client.write_all(&frame(RST_STREAM, 0, stream, &8u32.to_be_bytes())).await.unwrap();
                    settle().await;
                }
            }
            assert_eq!(task.is_finished(), ends, "{answered} {resets}");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn requests_that_never_reach_the_service_are_told() {
    local(async {
        // Two methods; then a good request, whose answer ends with the connection.
        let frames = [frame(HEADERS, 5, 1, b"\x82\x82\x86\x84\x01\x01a"), frame(HEADERS, 5, 3, GET)];
        let (end, service) = run(&frames, ServerOptions::default()).await;
        assert_eq!((end, service.calls.get()), (ConnectionEnd::Remote, 1));
        assert_eq!(*service.unserved.borrow(), [(0, "http2.violation.of.messaging.rule")]);
        // A header block that does not decode breaks the connection.
        let (end, service) = run(&[frame(HEADERS, 5, 1, b"\xff\xff\xff")], ServerOptions::default()).await;
        assert!(matches!(end, ConnectionEnd::Protocol(_)), "{end:?}");
        assert_eq!(*service.unserved.borrow(), [(0, "http2.violation.of.messaging.rule")]);
        // A frame that is none's request is nobody's log line.
        let (end, service) = run(&[frame(SETTINGS, 0, 0, b"abc")], ServerOptions::default()).await;
        assert!(matches!(end, ConnectionEnd::Protocol(_)), "{end:?}");
        assert!(service.unserved.borrow().is_empty());
        // Over the limit of the header list.
        let mut large = GET.to_vec();
        for _ in 0..10 {
            large.extend(b"\x00\x01x\x7f\x81\x01");
            large.extend([b'y'; 256]);
        }
        let options = ServerOptions { max_headers_kb: 1, ..ServerOptions::default() };
        let (_, service) = run(&[frame(HEADERS, 5, 1, &large)], options).await;
        assert_eq!(*service.unserved.borrow(), [(431, "http2.header_list_size_too_large")]);
    })
    .await;
}

#[tokio::test]
async fn an_answer_counts_though_the_peer_has_closed() {
    local(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let client = TcpStream::connect(address).await.unwrap();
        let (mut peer, _) = listener.accept().await.unwrap();
        // The peer speaks HTTP/1 and closes, before our first frame is written: the first write resets the connection.
        peer.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        drop(peer);
        let client = h2::Client::connect(client, Arc::new(ClientOptions::default())).await.unwrap();
        let mut stream = client.send(&RequestHead::new(Method::GET, "a", "/"), true).unwrap();
        let error = timeout(Duration::from_secs(5), poll_fn(|cx| stream.poll_response(cx))).await.unwrap().unwrap_err();
        assert!(matches!(error, StreamError::Protocol(_)), "{error:?}");
    })
    .await;
}
