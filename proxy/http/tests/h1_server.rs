//! Requests and responses through the HTTP/1 server loop, over an in-memory transport and with time under the tests' control.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may fail a test")]

mod common;

use bytes::Bytes;
use common::h1::{start, start_with};
use common::{Channel, TestService, collect, headers, local, ok, settle};
use http::StatusCode;
use nuncio_core::{Body, Frame, ResponseHead, StreamError};
use nuncio_http::{ConnectionEnd, Request, Response, ServerOptions};
use std::cell::Cell;
use std::rc::Rc;
use tokio::io::AsyncWriteExt;

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
