//! The life of an HTTP/1 connection to our server: clients that leave or do not read, drain, limits and timeouts.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may fail a test")]

mod common;

use bytes::{Bytes, BytesMut};
use common::h1::{start, start_with};
use common::{Channel, TestService, collect, local, ok, settle};
use http::StatusCode;
use nuncio_core::{Body, BodySource, Frame, ResponseHead, StreamError};
use nuncio_http::{ConnControl, ConnectionEnd, Request, ServerOptions, serve_h1};
use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncReadExt, duplex};
use tokio::time::timeout;

#[tokio::test(start_paused = true)]
async fn the_transport_hears_of_the_last_write() {
    local(async {
        let mut s = start(TestService::mirror(), ServerOptions::default());
        s.send("GET /1 HTTP/1.1\r\nHost: a\r\n\r\n").await;
        s.until("GET a /1 [] ").await;
        assert!(!s.control.is_last_write(), "another response may follow");
        s.send("GET /2 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        s.rest().await;
        assert!(s.control.is_last_write());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn connection_close_is_heeded() {
    local(async {
        let mut s = start(TestService::mirror(), ServerOptions::default());
        s.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        let all = s.rest().await;
        assert!(all.contains("\r\nconnection: close\r\n"), "{all}");
        assert_eq!(s.end().await, ConnectionEnd::Local);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_service_hears_of_a_client_that_left() {
    local(async {
        let left = Rc::new(Cell::new(false));
        let seen = left.clone();
        let service = TestService::new(move |request: Request| {
            let seen = seen.clone();
            async move {
                request.stream.closed().await;
                seen.set(true);
                ok(Body::Empty)
            }
        });
        let mut s = start(service, ServerOptions::default());
        s.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        settle().await;
        assert!(!left.get());
        assert_eq!(s.end().await, ConnectionEnd::Remote);
        assert!(left.get());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_body_cut_by_the_client_is_an_error() {
    local(async {
        let result = Rc::new(RefCell::new(None));
        let seen = result.clone();
        let service = TestService::new(move |mut request: Request| {
            let seen = seen.clone();
            async move {
                *seen.borrow_mut() = Some(collect(&mut request.body).await);
                request.stream.closed().await;
                ok(Body::Empty)
            }
        });
        let mut s = start(service, ServerOptions::default());
        s.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc").await;
        s.end().await;
        assert_eq!(result.take(), Some(Err(StreamError::ConnectionClosed(String::new()))));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_a_streaming_response_drops_the_body() {
    local(async {
        let channel = Channel::default();
        let body = channel.clone();
        let service = TestService::new(move |_| {
            let body = body.clone();
            async move { ok(body.body()) }
        });
        let mut s = start(service, ServerOptions::default());
        s.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        channel.data("one");
        s.until("3\r\none\r\n").await;
        assert!(!channel.state().dropped.get());
        assert_eq!(s.end().await, ConnectionEnd::Remote);
        assert!(channel.state().dropped.get() && !channel.state().sent.get());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_client_throttles_the_body() {
    local(async {
        let channel = Channel::default();
        for _ in 0..100 {
            channel.data(vec![b'z'; 10_000]);
        }
        channel.end();
        let body = channel.clone();
        let service = TestService::new(move |_| {
            let body = body.clone();
            async move { ok(body.body()) }
        });
        let mut s = start_with(service, ServerOptions::default(), 20_000, "");
        s.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        settle().await;
        assert!(channel.state().polls.get() < 6, "{}", channel.state().polls.get());
        assert!(!channel.state().sent.get());
        assert!(s.rest().await.len() > 1_000_000);
        assert!(channel.state().sent.get());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn drain_and_close() {
    local(async {
        // Idle: at once.
        let s = start(TestService::mirror(), ServerOptions::default());
        settle().await;
        s.control.drain();
        assert_eq!(timeout(Duration::from_secs(1), s.task).await.unwrap().unwrap(), ConnectionEnd::Local);

        // With a request: after its response, which says so.
        let channel = Channel::default();
        let body = channel.clone();
        let slow = TestService::new(move |request: Request| {
            let body = body.clone();
            async move {
                if request.head.path == "/wait" {
                    let (all, _) = collect(&mut body.body()).await.unwrap();
                    return ok(Body::Full(all.into()));
                }
                request.stream.closed().await;
                ok(Body::Empty)
            }
        });
        let mut s = start(slow.clone(), ServerOptions::default());
        s.send("GET /wait HTTP/1.1\r\nHost: a\r\n\r\n").await;
        settle().await;
        assert_eq!(s.control.active_streams(), 1);
        s.control.drain();
        settle().await;
        channel.data("x");
        channel.end();
        assert_eq!(s.rest().await, "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 1\r\n\r\nx");

        // Close ends what runs.
        let mut s = start(slow, ServerOptions::default());
        s.send("GET /close HTTP/1.1\r\nHost: a\r\n\r\n").await;
        settle().await;
        s.control.close();
        assert_eq!(s.rest().await, "");
        assert_eq!(s.end().await, ConnectionEnd::Local);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn max_requests_per_connection() {
    local(async {
        let options = ServerOptions { max_requests_per_connection: 2, ..ServerOptions::default() };
        let mut s = start(TestService::mirror(), options);
        s.send("GET /1 HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(!s.until("/1 [] ").await.contains("close"));
        s.send("GET /2 HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(s.rest().await.contains("connection: close"));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn timeouts() {
    local(async {
        let options = ServerOptions {
            idle_timeout: Some(Duration::from_secs(30)),
            request_headers_timeout: Some(Duration::from_secs(5)),
            ..ServerOptions::default()
        };
        let mut s = start(TestService::mirror(), options.clone());
        tokio::time::sleep(Duration::from_secs(20)).await;
        s.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        s.until("/ [] ").await;
        tokio::time::sleep(Duration::from_secs(29)).await;
        settle().await;
        assert!(!s.task.is_finished());
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(s.end().await, ConnectionEnd::IdleTimeout);

        let mut s = start(TestService::mirror(), options);
        s.send("GET / HTTP/1.1\r\n").await;
        tokio::time::sleep(Duration::from_secs(4)).await;
        s.send("X: y\r\n").await;
        let text = s.rest().await;
        assert!(text.starts_with("HTTP/1.1 408 Request Timeout\r\n") && text.ends_with("request_header_timeout"), "{text}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_nothing_is_left() {
    local(async {
        let channel = Channel::default();
        // All at once: before the end, the body has a clock of its own.
        channel.data(vec![b'z'; 40_000]);
        channel.end();
        channel.state().whole.set(true);
        let body = channel.clone();
        let service = TestService::new(move |_| {
            let body = body.clone();
            async move { ok(body.body()) }
        });
        let options = ServerOptions { stream_flush_timeout: Some(Duration::from_secs(60)), ..ServerOptions::default() };
        let mut s = start_with(service, options, 20_000, "");
        s.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        tokio::time::sleep(Duration::from_secs(50)).await;
        // Some progress buys time.
        let mut some = [0; 5000];
        s.io.read_exact(&mut some).await.unwrap();
        tokio::time::sleep(Duration::from_secs(50)).await;
        settle().await;
        assert!(!channel.state().dropped.get());
        tokio::time::sleep(Duration::from_secs(11)).await;
        settle().await;
        assert!(channel.state().dropped.get());
    })
    .await;
}

/// Always has more, and gives up when nobody has read for a second.
struct Impatient {
    timer: Option<Pin<Box<tokio::time::Sleep>>>,
    gone: Rc<Cell<bool>>,
}

impl BodySource for Impatient {
    fn poll_frame(&mut self, _cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        self.timer = None;
        Poll::Ready(Some(Ok(Frame::Data(Bytes::from(vec![b'z'; 10_000])))))
    }
    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(Duration::from_secs(1))));
        timer.as_mut().poll(cx).map(|()| StreamError::LocalReset("stalled"))
    }
}

impl Drop for Impatient {
    fn drop(&mut self) {
        self.gone.set(true);
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_nobody_reads_may_give_up() {
    local(async {
        let gone = Rc::new(Cell::new(false));
        let seen = gone.clone();
        let service = TestService::new(move |_| {
            let gone = seen.clone();
            async move { ok(Body::Stream(Box::new(Impatient { timer: None, gone }))) }
        });
        let options = ServerOptions { stream_flush_timeout: None, ..ServerOptions::default() };
        let mut s = start_with(service, options, 20_000, "");
        s.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        tokio::time::sleep(Duration::from_millis(900)).await;
        settle().await;
        assert!(!gone.get());
        tokio::time::sleep(Duration::from_millis(200)).await;
        settle().await;
        assert!(gone.get());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn handles_of_an_earlier_request_do_nothing() {
    local(async {
        let kept: Rc<RefCell<Vec<Request>>> = Rc::default();
        let keep = kept.clone();
        let service = TestService::new(move |request: Request| {
            keep.borrow_mut().push(request);
            async { ok(Body::Empty) }
        });
        let mut s = start(service, ServerOptions::default());
        s.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        s.until("\r\n\r\n").await;
        settle().await;
        let request = kept.borrow_mut().pop().unwrap();
        request.informational.send(&ResponseHead::new(StatusCode::CONTINUE));
        request.stream.closed().await;
        assert_eq!(request.stream.bytes_sent(), 0);
        s.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(s.until("\r\n\r\n").await.starts_with("HTTP/1.1 200"));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_small() {
    // The task of an idle connection: no buffers, no service future, less than 1 KB.
    let (_io, server) = duplex(64);
    let service = TestService::mirror();
    let future = serve_h1(server, BytesMut::new(), service, Arc::new(ServerOptions::default()), Rc::new(ConnControl::new()));
    assert!(std::mem::size_of_val(&future) < 1024, "{}", std::mem::size_of_val(&future));
}
