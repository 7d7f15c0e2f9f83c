//! HTTP/2 streams: our client against our server over an in-memory transport, and the `h2` crate's own client and server where a
//! peer must misbehave.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may fail a test")]

mod common;

use bytes::Bytes;
use common::h2::{body, head, open, pair, response, serve, text};
use common::{Channel, TestService, collect, headers, local, ok, settle};
use http::{Method, StatusCode};
use nuncio_core::{Body, Frame, RequestHead, ResponseHead, StreamError};
use nuncio_http::{ClientOptions, ConnectionEnd, Request, Response, ServerOptions};
use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;
use tokio::io::duplex;
use tokio::time::timeout;

#[tokio::test(start_paused = true)]
async fn heads_bodies_and_trailers() {
    local(async {
        let p = pair(TestService::mirror(), ServerOptions::default(), ClientOptions::default()).await;
        let mut get = head(Method::GET, "/x?<y>");
        get.headers = headers(&[
            ("cookie", "a=1"),
            ("cookie", "b=2"),
            ("connection", "close"),
            ("te", "gzip"),
            ("x-a", "1"),
            ("x-a", "2"),
            ("host", "evil"),
        ]);
        let mut stream = open(&p.client, &get, true);
        assert_eq!(text(&mut stream).await, "GET a.b:80 /x?%3Cy%3E x-a=1 x-a=2 cookie=a=1; b=2 [] ");
        assert!(stream.is_end() && stream.bytes_read() > 0 && stream.bytes_written() > 0);
        drop(stream);

        let mut stream = open(&p.client, &head(Method::POST, "/"), false);
        poll_fn(|cx| stream.poll_ready(cx)).await.unwrap();
        stream.send_data(Bytes::from_static(b"abc"), false).unwrap();
        stream.send_trailers(&headers(&[("t", "1")])).unwrap();
        assert!(stream.is_sent());
        assert_eq!(text(&mut stream).await, "POST a.b:80 / [abc] t=1 ");
        assert_eq!(p.client.streams(), 2);
        drop(stream);
        settle().await;
        assert_eq!((p.client.active_streams(), p.control.active_streams()), (0, 0));
        drop(p.client);
        assert_eq!(p.task.await.unwrap(), ConnectionEnd::Remote);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_response_streams_with_trailers_and_informational_heads() {
    local(async {
        let channel = Channel::default();
        let source = channel.clone();
        let service = TestService::new(move |request: Request| {
            let source = source.clone();
            async move {
                request.informational.send(&ResponseHead::new(StatusCode::EARLY_HINTS));
                tokio::time::sleep(Duration::from_millis(1)).await;
                ok(source.body())
            }
        });
        let p = pair(service, ServerOptions::default(), ClientOptions::default()).await;
        let mut stream = open(&p.client, &head(Method::GET, "/"), true);
        assert_eq!(response(&mut stream).await.unwrap().status, StatusCode::EARLY_HINTS);
        assert_eq!(response(&mut stream).await.unwrap().status, StatusCode::OK);
        assert!(response(&mut stream).await.is_err());
        channel.data("one");
        let frame = poll_fn(|cx| stream.poll_frame(cx)).await;
        assert!(matches!(frame, Some(Ok(Frame::Data(d))) if d == "one"));
        assert!(!stream.is_end());
        channel.put(Some(Ok(Frame::Trailers(Box::new(headers(&[("t", "1"), ("connection", "x")]))))));
        assert_eq!(body(&mut stream).await.unwrap(), (Vec::new(), 1));
        assert!(stream.is_end() && channel.state().sent.get());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn flow_control_reaches_from_end_to_end() {
    local(async {
        let channel = Channel::default();
        for _ in 0..200 {
            channel.data(vec![b'z'; 10_000]);
        }
        channel.end();
        let source = channel.clone();
        let service = TestService::new(move |request: Request| {
            let source = source.clone();
            async move {
                match request.head.path.as_str() {
                    "/whole" => ok(Body::Full(vec![b'z'; 2_000_000].into())),
                    _ => ok(source.body()),
                }
            }
        });
        let mut options = ClientOptions::default();
        options.h2.initial_stream_window_size = 65_535;
        options.h2.initial_connection_window_size = 65_535;
        let p = pair(service, ServerOptions::default(), options).await;
        let mut stream = open(&p.client, &head(Method::GET, "/"), true);
        response(&mut stream).await.unwrap();
        settle().await;
        // Nothing is read: the sender stops near the window.
        assert!(channel.state().polls.get() < 12, "{}", channel.state().polls.get());
        assert_eq!(body(&mut stream).await.unwrap().0.len(), 2_000_000);

        // Nor is a client waited for that never reads the end. (Before the end, the body has a clock of its own.)
        let mut stream = open(&p.client, &head(Method::GET, "/whole"), true);
        response(&mut stream).await.unwrap();
        tokio::time::sleep(Duration::from_secs(301)).await;
        assert_eq!(body(&mut stream).await.unwrap_err(), StreamError::RemoteReset(2));

        // And in the other direction: the handler does not read.
        let hold = TestService::new(|mut request: Request| async move {
            tokio::time::sleep(Duration::from_secs(10)).await;
            let (all, _) = collect(&mut request.body).await.unwrap();
            ok(Body::Full(all.len().to_string().into()))
        });
        let mut options = ServerOptions::default();
        options.h2.initial_stream_window_size = 65_535;
        options.h2.initial_connection_window_size = 65_535;
        let p = pair(hold, options, ClientOptions::default()).await;
        let mut stream = open(&p.client, &head(Method::POST, "/"), false);
        let mut sent = 0;
        while let Ok(ready) = timeout(Duration::from_secs(1), poll_fn(|cx| stream.poll_ready(cx))).await {
            ready.unwrap();
            stream.send_data(Bytes::from(vec![0; 10_000]), false).unwrap();
            sent += 10_000;
            settle().await;
        }
        assert!(sent <= 80_000, "{sent}");
        for _ in 0..20 {
            poll_fn(|cx| stream.poll_ready(cx)).await.unwrap();
            stream.send_data(Bytes::from(vec![0; 10_000]), false).unwrap();
            sent += 10_000;
        }
        stream.send_data(Bytes::new(), true).unwrap();
        assert_eq!(text(&mut stream).await, sent.to_string());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn resets_are_told_both_ways() {
    local(async {
        let left = Rc::new(Cell::new(0));
        let seen = left.clone();
        let service = TestService::new(move |mut request: Request| {
            let seen = seen.clone();
            async move {
                match request.head.path.as_str() {
                    "/refuse" => return Response::reset(7),
                    "/internal" => return Response::reset(2),
                    "/fail" => {
                        let channel = Channel::default();
                        channel.data("x");
                        let body = channel.body();
                        tokio::task::spawn_local(async move {
                            settle().await;
                            channel.put(Some(Err(StreamError::ConnectionClosed(String::new()))));
                        });
                        return ok(body);
                    }
                    "/body" => assert_eq!(collect(&mut request.body).await.unwrap_err(), StreamError::RemoteReset(8)),
                    _ => {}
                }
                request.stream.closed().await;
                seen.set(seen.get() + 1);
                ok(Body::Empty)
            }
        });
        let p = pair(service, ServerOptions::default(), ClientOptions::default()).await;
        for (path, error) in [("/refuse", StreamError::RemoteRefused), ("/internal", StreamError::RemoteReset(2))] {
            let mut stream = open(&p.client, &head(Method::GET, path), true);
            assert_eq!(response(&mut stream).await.unwrap_err(), error);
        }
        let mut stream = open(&p.client, &head(Method::GET, "/fail"), true);
        response(&mut stream).await.unwrap();
        assert_eq!(body(&mut stream).await.unwrap_err(), StreamError::RemoteReset(2));
        // Reset and drop by the client.
        let stream = open(&p.client, &head(Method::GET, "/wait"), true);
        settle().await;
        stream.reset();
        let stream = open(&p.client, &head(Method::POST, "/body"), false);
        settle().await;
        drop(stream);
        settle().await;
        assert_eq!(left.get(), 2);
        assert_eq!(p.client.active_streams(), 0);
        // The connection goes away.
        let mut stream = open(&p.client, &head(Method::GET, "/wait"), true);
        settle().await;
        p.control.close();
        assert!(matches!(response(&mut stream).await, Err(StreamError::ConnectionClosed(_))));
        settle().await;
        assert_eq!(left.get(), 3);
        assert!(p.client.is_draining());
        p.client.closed().await;
        assert_eq!(p.task.await.unwrap(), ConnectionEnd::Local);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_dropped_response_body_source_is_dropped_when_the_client_resets() {
    local(async {
        let channel = Channel::default();
        let service = TestService::answering(&channel);
        let p = pair(service, ServerOptions::default(), ClientOptions::default()).await;
        let mut stream = open(&p.client, &head(Method::GET, "/"), true);
        response(&mut stream).await.unwrap();
        drop(stream);
        settle().await;
        assert!(channel.state().dropped.get() && !channel.state().sent.get());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn extended_connect_is_an_upgrade() {
    local(async {
        let service = TestService::new(|mut request: Request| async move {
            let connect = request.head.method == Method::CONNECT;
            if !connect {
                assert_eq!(request.head.method, Method::GET);
                assert_eq!(request.head.protocol.as_ref().unwrap(), "websocket");
                assert_eq!(request.head.headers.get_str(&http::header::UPGRADE), Some("websocket"));
                assert_eq!(request.head.headers.get_str(&http::header::CONNECTION), Some("upgrade"));
            } else {
                assert_eq!(request.head.path, "");
            }
            let mut raw = request.upgrade.take().unwrap();
            let channel = Channel::default();
            let echo = channel.clone();
            tokio::task::spawn_local(async move {
                while let Some(Ok(Frame::Data(data))) = raw.frame().await {
                    echo.data(data);
                }
                echo.end();
            });
            if request.head.path == "/no" {
                return Response::new(ResponseHead::new(StatusCode::FORBIDDEN), Body::Empty);
            }
            let mut head = ResponseHead::new(if connect { StatusCode::OK } else { StatusCode::SWITCHING_PROTOCOLS });
            head.headers = headers(&[("upgrade", "websocket"), ("connection", "upgrade"), ("x", "y")]);
            Response::new(head, channel.body())
        });
        let mut options = ServerOptions::default();
        options.h2.allow_connect = true;
        let p = pair(service, options, ClientOptions::default()).await;
        let mut upgrade = head(Method::GET, "/ws");
        upgrade.headers = headers(&[("upgrade", "websocket"), ("connection", "upgrade")]);
        let mut connect = head(Method::CONNECT, "");
        connect.path = "".into();
        for (request, status) in [(&upgrade, StatusCode::SWITCHING_PROTOCOLS), (&connect, StatusCode::OK)] {
            let mut stream = open(&p.client, request, false);
            stream.send_data(Bytes::from_static(b"early"), false).unwrap();
            let answer = response(&mut stream).await.unwrap();
            assert_eq!(answer.status, status);
            assert_eq!(answer.headers.contains(&http::header::UPGRADE), status != StatusCode::OK);
            stream.send_data(Bytes::from_static(b" late"), true).unwrap();
            assert_eq!(body(&mut stream).await.unwrap().0, b"early late");
        }
        upgrade.path = "/no".into();
        let mut stream = open(&p.client, &upgrade, false);
        assert_eq!(response(&mut stream).await.unwrap().status, StatusCode::FORBIDDEN);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn limits_and_hostile_heads() {
    local(async {
        let service = TestService::mirror();
        let options = ServerOptions { max_headers_count: 10, max_headers_kb: 4, ..ServerOptions::default() };
        let (ours, theirs) = duplex(1 << 20);
        let (_control, _task) = serve(theirs, service.clone(), options);
        let (send, connection) = ::h2::client::handshake(ours).await.unwrap();
        tokio::task::spawn_local(connection);
        let get = |fields: &[(&str, &str)], uri: &str| {
            let mut request = http::Request::builder().uri(uri).version(http::Version::HTTP_2);
            for (name, value) in fields {
                request = request.header(*name, *value);
            }
            request.body(()).unwrap()
        };
        let long = "x".repeat(5000);
        for (request, expected) in [
            (get(&[("x", "y"); 11], "http://a/"), Ok((431, "http2.too_many_headers"))),
            (get(&[("x", &long)], "http://a/"), Ok((431, ""))),
            (get(&[("host", "a b")], "/"), Err(())),
            (get(&[("transfer-encoding", "chunked")], "http://a/"), Err(())),
            (get(&[("connection", "close")], "http://a/"), Err(())),
            (get(&[("te", "gzip")], "http://a/"), Err(())),
            (get(&[("te", "trailers")], "http://a/"), Ok((200, "GET a / te=trailers [] "))),
        ] {
            let mut request = request;
            if request.uri().authority().is_none() {
                *request.version_mut() = http::Version::HTTP_11;
            }
            let sent = send.clone().send_request(request, true);
            let answer = match sent {
                Ok((answer, _)) => answer.await,
                Err(error) => Err(error),
            };
            match (answer, expected) {
                (Ok(answer), Ok((status, text))) => {
                    assert_eq!(answer.status().as_u16(), status);
                    let mut body = answer.into_body();
                    let mut all = Vec::new();
                    while let Some(Ok(data)) = body.data().await {
                        all.extend_from_slice(&data);
                    }
                    assert_eq!(String::from_utf8_lossy(&all), text);
                }
                (Ok(answer), Err(())) => assert_eq!(answer.status(), StatusCode::BAD_REQUEST),
                (Err(_), Err(())) => {}
                (Err(error), Ok(expected)) => panic!("{error} for {expected:?}"),
            }
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn underscores_are_treated_as_configured() {
    use nuncio_http::HeadersWithUnderscores::{DropHeader, RejectRequest};
    local(async {
        let mut request = head(Method::GET, "/");
        request.headers = headers(&[("x_y", "1"), ("z", "2")]);
        let options = ServerOptions { headers_with_underscores: DropHeader, ..ServerOptions::default() };
        let p = pair(TestService::mirror(), options, ClientOptions::default()).await;
        assert_eq!(text(&mut open(&p.client, &request, true)).await, "GET a.b:80 / z=2 [] ");
        let options = ServerOptions { headers_with_underscores: RejectRequest, ..ServerOptions::default() };
        let p = pair(TestService::mirror(), options, ClientOptions::default()).await;
        assert_eq!(response(&mut open(&p.client, &request, true)).await.unwrap_err(), StreamError::RemoteReset(2));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn bad_heads_never_leave() {
    local(async {
        let p = pair(TestService::mirror(), ServerOptions::default(), ClientOptions::default()).await;
        for (authority, path) in [("a b", "/"), ("", "/"), ("a", ""), ("a", "/ x"), ("a", "/\r\n")] {
            let request = RequestHead::new(Method::GET, authority, path);
            assert!(matches!(p.client.send(&request, true), Err(StreamError::LocalReset(_))), "{authority} {path}");
        }
        let mut upgrade = head(Method::GET, "/");
        upgrade.headers = headers(&[("upgrade", "websocket"), ("connection", "upgrade")]);
        assert!(matches!(p.client.send(&upgrade, false), Err(StreamError::LocalReset("http2.extended_connect_not_supported"))));
        let poll = poll_fn(|_| Poll::Ready(p.client.is_ready())).await;
        assert!(poll && p.client.active_streams() == 0);
    })
    .await;
}
