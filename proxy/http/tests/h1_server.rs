//! The HTTP/1 server loop over an in-memory transport, with time under the tests' control.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may fail a test")]

mod common;

use bytes::{Bytes, BytesMut};
use common::{Channel, TestService, collect, headers, local, ok};
use http::StatusCode;
use nuncio_core::{Body, BodySource, Frame, ResponseHead, StreamError};
use nuncio_http::{ConnControl, ConnectionEnd, Request, Response, ServerOptions, serve_h1};
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::JoinHandle;
use tokio::time::timeout;

struct Server {
    io: DuplexStream,
    control: Rc<ConnControl>,
    task: JoinHandle<ConnectionEnd>,
}

fn start(service: Rc<TestService>, options: ServerOptions) -> Server {
    start_with(service, options, 1 << 20, "")
}

fn start_with(service: Rc<TestService>, options: ServerOptions, buffer: usize, leftover: &str) -> Server {
    let (io, server) = duplex(buffer);
    let control = Rc::new(ConnControl::new());
    let task = tokio::task::spawn_local(serve_h1(server, BytesMut::from(leftover), service, Arc::new(options), control.clone()));
    Server { io, control, task }
}

impl Server {
    async fn send(&mut self, text: &str) {
        self.io.write_all(text.as_bytes()).await.unwrap();
    }
    /// Everything up to the end of the connection.
    async fn rest(&mut self) -> String {
        let mut all = Vec::new();
        let _ = timeout(Duration::from_secs(100), self.io.read_to_end(&mut all)).await;
        String::from_utf8(all).unwrap()
    }
    /// Reads until `end` was seen.
    async fn until(&mut self, end: &str) -> String {
        let mut all = Vec::new();
        while !all.ends_with(end.as_bytes()) {
            match timeout(Duration::from_secs(5), self.io.read_u8()).await {
                Ok(Ok(byte)) => all.push(byte),
                other => panic!("{other:?} after {:?}", String::from_utf8_lossy(&all)),
            }
        }
        String::from_utf8(all).unwrap()
    }
    async fn end(self) -> ConnectionEnd {
        drop(self.io);
        self.task.await.unwrap()
    }
}

async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn keep_alive_and_pipelining() {
    local(async {
        let service = TestService::mirror();
        let mut s = start_with(service.clone(), ServerOptions::default(), 1 << 20, "GET /0 HTTP/1.1\r\nhost: a\r\n\r\n");
        assert!(s.until("GET a /0 [] ").await.starts_with("HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n"));
        s.send(
            "POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET /2 HTTP/1.1\r\nHost: b\r\n\r\nPOST /3 HTTP/1.1\r\nHost: a\r\n",
        )
        .await;
        s.until("POST a /1 content-length=3 [abc] ").await;
        s.until("GET b /2 [] ").await;
        s.send("Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n").await;
        s.until("POST a /3 [abcde] ").await;
        assert_eq!(service.calls.get(), 4);
        assert_eq!(s.end().await, ConnectionEnd::Remote);
    })
    .await;
}

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
async fn a_large_body_streams_through_a_small_window() {
    local(async {
        let mut s = start_with(TestService::mirror(), ServerOptions::default(), 1000, "");
        let body = "x".repeat(300_000);
        s.send(&format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len())).await;
        let text = s.until("] ").await;
        assert!(text.contains(&format!("[{body}]")));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn response_forms() {
    local(async {
        let service = TestService::new(|request: Request| async move {
            let channel = Channel::default();
            channel.data("hello");
            match request.head.path.as_str() {
                "/chunked" => {
                    channel.data(vec![b'y'; 5000]);
                    channel.end();
                    ok(channel.body())
                }
                "/trailers" => {
                    channel.put(Some(Ok(Frame::Trailers(Box::new(headers(&[("t", "1"), ("content-length", "9")]))))));
                    ok(channel.body())
                }
                "/failing" => {
                    channel.put(Some(Err(StreamError::RemoteReset(2))));
                    ok(channel.body())
                }
                "/long" => {
                    let mut response = ok(channel.body());
                    response.head.headers = headers(&[("content-length", "3")]);
                    response
                }
                "/short" => {
                    channel.end();
                    let mut response = ok(channel.body());
                    response.head.headers = headers(&[("content-length", "7")]);
                    response
                }
                _ => Response::new(ResponseHead::new(StatusCode::NO_CONTENT), Body::Empty),
            }
        });
        let mut options = ServerOptions::default();
        options.h1.enable_trailers = true;
        options.h1.accept_http_10 = true;
        let run = async |text: &str| {
            let mut s = start(service.clone(), options.clone());
            s.send(text).await;
            s.rest().await
        };
        let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let head = "HTTP/1.1 200 OK\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
        assert_eq!(run(&get("/chunked")).await, format!("{head}5\r\nhello\r\n1388\r\n{}\r\n0\r\n\r\n", "y".repeat(5000)));
        assert_eq!(run(&get("/trailers")).await, format!("{head}5\r\nhello\r\n0\r\nt: 1\r\n\r\n"));
        assert_eq!(run(&get("/failing")).await, format!("{head}5\r\nhello\r\n"));
        assert_eq!(run(&get("/empty")).await, "HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n");
        let cut = run("GET /long HTTP/1.1\r\nHost: a\r\n\r\nGET /empty HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(cut, "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nhel");
        let cut = run("GET /short HTTP/1.1\r\nHost: a\r\n\r\nGET /empty HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(cut, "HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\nhello");
        let head = run("HEAD /chunked HTTP/1.1\r\nHost: a\r\n\r\nGET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        assert_eq!(head, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nHTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n");
        let old = run("GET /trailers HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n").await;
        assert_eq!(old, "HTTP/1.0 200 OK\r\nconnection: close\r\n\r\nhello");
        let old = run("GET /x HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\nGET /x HTTP/1.0\r\nHost: a\r\n\r\n").await;
        assert_eq!(old, "HTTP/1.0 204 No Content\r\nconnection: keep-alive\r\n\r\nHTTP/1.0 204 No Content\r\nconnection: close\r\n\r\n");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn refused_requests_close_after_their_answer() {
    local(async {
        let service = TestService::mirror();
        let mut s = start(service.clone(), ServerOptions::default());
        s.send("GET / HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let text = s.rest().await;
        assert_eq!(text, "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 17\r\n\r\nhttp1.codec_error");
        assert_eq!(s.end().await, ConnectionEnd::Protocol("http1.codec_error"));
        assert_eq!(service.calls.get(), 0);

        let mut options = ServerOptions::default();
        options.h1.stream_error_on_invalid_http_message = true;
        let mut s = start(service.clone(), options);
        s.send("GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        s.until("missing_host_header").await;
        s.until("GET a / [] ").await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn broken_chunks_fail_the_body_and_the_connection() {
    local(async {
        let service = TestService::new(|mut request: Request| async move {
            let error = collect(&mut request.body).await.unwrap_err();
            let status = if matches!(error, StreamError::TooLarge(_)) { 431 } else { 400 };
            Response::new(ResponseHead::new(StatusCode::from_u16(status).unwrap()), Body::Full(Bytes::from(error.to_string())))
        });
        for (body, expected) in
            [("2\r\nabX\r\n", "http1.codec_error"), (&format!("0\r\nt: {}\r\n", "x".repeat(70_000)), "http1.headers_too_large")]
        {
            let mut s = start(service.clone(), ServerOptions::default());
            s.send(&format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}")).await;
            let text = s.rest().await;
            assert!(text.ends_with(expected) && text.contains("connection: close"), "{text}");
            assert!(matches!(s.end().await, ConnectionEnd::Protocol(d) if d == expected));
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn continue_is_sent_by_the_service() {
    local(async {
        let service = TestService::new(|mut request: Request| async move {
            request.informational.send(&ResponseHead::new(StatusCode::CONTINUE));
            let (body, _) = collect(&mut request.body).await.unwrap();
            ok(Body::Full(body.into()))
        });
        let mut s = start(service, ServerOptions::default());
        s.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n").await;
        assert_eq!(s.until("\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
        s.send("abc").await;
        assert_eq!(s.until("abc").await, "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn upgrade_turns_into_raw_bytes() {
    local(async {
        let service = TestService::new(|mut request: Request| async move {
            let accept = request.head.path == "/ws" || request.head.method == http::Method::CONNECT;
            let mut raw = request.upgrade.take().unwrap();
            let channel = Channel::default();
            let status = match (accept, request.head.method == http::Method::CONNECT) {
                (true, false) => StatusCode::SWITCHING_PROTOCOLS,
                (true, true) => StatusCode::OK,
                _ => StatusCode::FORBIDDEN,
            };
            let echo = channel.clone();
            tokio::task::spawn_local(async move {
                while let Some(Ok(Frame::Data(data))) = raw.frame().await {
                    echo.data(data);
                }
                echo.end();
            });
            let mut head = ResponseHead::new(status);
            head.headers = headers(&[("upgrade", "websocket"), ("connection", "upgrade")]);
            Response::new(head, if accept { channel.body() } else { Body::Empty })
        });
        let upgrade = "Host: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
        let mut s = start(service.clone(), ServerOptions::default());
        s.send(&format!("GET /ws HTTP/1.1\r\n{upgrade}early")).await;
        let head = s.until("\r\n\r\n").await;
        assert_eq!(head, "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n");
        assert_eq!(s.until("early").await, "early");
        s.send("GET / HTTP/1.1\r\n\r\n").await;
        assert_eq!(s.until("\r\n\r\n").await, "GET / HTTP/1.1\r\n\r\n");
        s.io.shutdown().await.unwrap();
        assert_eq!(s.rest().await, "");

        let mut s = start(service.clone(), ServerOptions::default());
        s.send("CONNECT h:80 HTTP/1.1\r\n\r\n").await;
        assert_eq!(s.until("\r\n\r\n").await, "HTTP/1.1 200 OK\r\n\r\n");
        s.send("raw").await;
        assert_eq!(s.until("raw").await, "raw");

        // Refused: what follows is not taken for a request.
        let mut s = start(service.clone(), ServerOptions::default());
        let before = service.calls.get();
        s.send(&format!("GET /no HTTP/1.1\r\n{upgrade}GET / HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        let text = s.rest().await;
        assert_eq!(text, "HTTP/1.1 403 Forbidden\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
        assert_eq!(service.calls.get(), before + 1);
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
async fn a_body_read_by_another_task_hands_the_transport_back() {
    local(async {
        let left = Rc::new(Cell::new(false));
        let seen = left.clone();
        let service = TestService::new(move |mut request: Request| {
            let seen = seen.clone();
            async move {
                let mut body = std::mem::take(&mut request.body);
                let reader = tokio::task::spawn_local(async move { collect(&mut body).await });
                assert_eq!(reader.await.unwrap().unwrap().0, b"abcdef");
                request.stream.closed().await;
                seen.set(true);
                ok(Body::Empty)
            }
        });
        let mut s = start(service, ServerOptions::default());
        s.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nabc").await;
        settle().await;
        s.send("def").await;
        settle().await;
        s.end().await;
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
async fn a_response_that_overtakes_its_request_closes() {
    local(async {
        let service = TestService::new(|_| async { Response::new(ResponseHead::new(StatusCode::FORBIDDEN), Body::Empty) });
        let mut s = start(service.clone(), ServerOptions::default());
        s.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nabc").await;
        let text = s.until("\r\n\r\n").await;
        assert!(text.contains("connection: close"), "{text}");
        // What is still on its way is thrown away, not answered with a reset.
        s.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(s.rest().await, "");
        assert_eq!(service.calls.get(), 1);

        // A body that has come already does not cost the connection.
        let mut s = start(service.clone(), ServerOptions::default());
        s.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n")
            .await;
        assert!(!s.until("\r\n\r\n").await.contains("close"));
        s.until("\r\n\r\n").await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn full_duplex_echo() {
    local(async {
        let service = TestService::new(|mut request: Request| async move { ok(std::mem::take(&mut request.body)) });
        let mut s = start(service, ServerOptions::default());
        s.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n").await;
        s.until("3\r\nabc\r\n").await;
        s.send("2\r\nde\r\n").await;
        s.until("2\r\nde\r\n").await;
        s.send("0\r\n\r\n").await;
        s.until("0\r\n\r\n").await;
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
async fn wire_bytes_are_counted() {
    local(async {
        let seen = Rc::new(Cell::new((0, 0)));
        let cell = seen.clone();
        let service = TestService::new(move |mut request: Request| {
            let cell = cell.clone();
            async move {
                collect(&mut request.body).await.unwrap();
                let channel = Channel::default();
                channel.data("hello");
                channel.end();
                let stream = request.stream.clone();
                tokio::task::spawn_local(async move {
                    settle().await;
                    cell.set((stream.bytes_received(), stream.bytes_sent()));
                });
                let hold = Channel::default();
                hold.data("hello");
                ok(hold.body())
            }
        });
        let mut s = start(service, ServerOptions::default());
        let request = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
        s.send(request).await;
        let got = s.until("hello\r\n").await;
        settle().await;
        settle().await;
        assert_eq!(seen.get(), (request.len() as u64, got.len() as u64));
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
