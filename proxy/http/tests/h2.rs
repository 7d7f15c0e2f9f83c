//! HTTP/2: our client against our server over an in-memory transport, and the `h2` crate's own client and server where a
//! peer must misbehave.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may fail a test")]

mod common;

use bytes::{Bytes, BytesMut};
use common::{Channel, TestService, collect, headers, local, ok};
use http::{Method, StatusCode};
use nuncio_core::{Body, Frame, RequestHead, ResponseHead, StreamError};
use nuncio_http::{ClientOptions, ClientStream, ConnControl, ConnectionEnd, KeepAlive, Request, Response, ServerOptions, h2, serve_h2};
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::JoinHandle;
use tokio::time::timeout;

type Stream = ClientStream<DuplexStream>;

struct Pair {
    client: h2::Client,
    control: Rc<ConnControl>,
    task: JoinHandle<ConnectionEnd>,
}

fn serve(io: DuplexStream, service: Rc<TestService>, options: ServerOptions) -> (Rc<ConnControl>, JoinHandle<ConnectionEnd>) {
    let control = Rc::new(ConnControl::new());
    let task = tokio::task::spawn_local(serve_h2(io, BytesMut::new(), service, Arc::new(options), control.clone()));
    (control, task)
}

async fn pair(service: Rc<TestService>, options: ServerOptions, client: ClientOptions) -> Pair {
    let (ours, theirs) = duplex(1 << 16);
    let (control, task) = serve(theirs, service, options);
    let client = h2::Client::connect(ours, Arc::new(client)).await.unwrap();
    settle().await;
    Pair { client, control, task }
}

async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

fn head(method: Method, path: &str) -> RequestHead {
    RequestHead::new(method, "a.b:80", path)
}

fn open(client: &h2::Client, head: &RequestHead, end: bool) -> Stream {
    ClientStream::H2(client.send(head, end).unwrap())
}

async fn response(stream: &mut Stream) -> Result<ResponseHead, StreamError> {
    timeout(Duration::from_secs(500), poll_fn(|cx| stream.poll_response(cx))).await.unwrap()
}

async fn body(stream: &mut Stream) -> Result<(Vec<u8>, usize), StreamError> {
    let (mut all, mut trailers) = (Vec::new(), 0);
    while let Some(frame) = poll_fn(|cx| stream.poll_frame(cx)).await {
        match frame? {
            Frame::Data(data) => all.extend_from_slice(&data),
            Frame::Trailers(t) => trailers = t.len(),
        }
    }
    Ok((all, trailers))
}

async fn text(stream: &mut Stream) -> String {
    assert_eq!(response(stream).await.unwrap().status, StatusCode::OK);
    String::from_utf8(body(stream).await.unwrap().0).unwrap()
}

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
        let source = channel.clone();
        let service = TestService::new(move |_| {
            let source = source.clone();
            async move { ok(source.body()) }
        });
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
async fn drain_lets_streams_finish_and_takes_no_more() {
    local(async {
        let channel = Channel::default();
        let source = channel.clone();
        let service = TestService::new(move |_| {
            let source = source.clone();
            async move { ok(source.body()) }
        });
        let p = pair(service, ServerOptions::default(), ClientOptions::default()).await;
        let mut stream = open(&p.client, &head(Method::GET, "/"), true);
        response(&mut stream).await.unwrap();
        p.control.drain();
        p.client.draining().await;
        assert!(!p.client.is_ready());
        assert!(matches!(p.client.send(&head(Method::GET, "/"), true), Err(StreamError::RemoteRefused)));
        channel.data("late");
        channel.end();
        assert_eq!(body(&mut stream).await.unwrap().0, b"late");
        drop(stream);
        assert_eq!(p.client.closed().await, "");
        assert_eq!(p.task.await.unwrap(), ConnectionEnd::Local);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_ignores_goaway_is_left() {
    local(async {
        let (mut ours, theirs) = duplex(1 << 16);
        let options = ServerOptions { idle_timeout: Some(Duration::from_secs(30)), ..ServerOptions::default() };
        let (_control, task) = serve(theirs, TestService::mirror(), options);
        ours.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        let mut all = Vec::new();
        let _ = timeout(Duration::from_secs(60), ours.read_to_end(&mut all)).await.unwrap();
        assert_eq!(task.await.unwrap(), ConnectionEnd::IdleTimeout);

        // Nor is one waited for that never speaks.
        let (_ours, theirs) = duplex(1 << 16);
        let (_control, task) = serve(theirs, TestService::mirror(), ServerOptions::default());
        assert_eq!(timeout(Duration::from_secs(100), task).await.unwrap().unwrap(), ConnectionEnd::IdleTimeout);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn idle_timeout_counts_from_the_last_stream() {
    local(async {
        let service = TestService::new(|_| async {
            tokio::time::sleep(Duration::from_secs(100)).await;
            ok(Body::Empty)
        });
        let options = ServerOptions { idle_timeout: Some(Duration::from_secs(30)), ..ServerOptions::default() };
        let p = pair(service, options, ClientOptions::default()).await;
        let mut stream = open(&p.client, &head(Method::GET, "/"), true);
        assert_eq!(response(&mut stream).await.unwrap().status, StatusCode::OK);
        drop(stream);
        tokio::time::sleep(Duration::from_secs(29)).await;
        settle().await;
        assert!(!p.client.is_draining());
        tokio::time::sleep(Duration::from_secs(3)).await;
        p.client.draining().await;
        assert_eq!(p.task.await.unwrap(), ConnectionEnd::IdleTimeout);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn max_requests_drain_the_connection() {
    local(async {
        let options = ServerOptions { max_requests_per_connection: 2, ..ServerOptions::default() };
        let p = pair(TestService::mirror(), options, ClientOptions::default()).await;
        for _ in 0..2 {
            let mut stream = open(&p.client, &head(Method::GET, "/"), true);
            text(&mut stream).await;
        }
        p.client.draining().await;
        assert_eq!(p.task.await.unwrap(), ConnectionEnd::Local);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn pings_find_a_dead_peer() {
    local(async {
        let keepalive = Some(KeepAlive {
            interval: Some(Duration::from_secs(10)),
            timeout: Duration::from_secs(5),
            interval_jitter_percent: 0.0,
            connection_idle_interval: None,
        });
        // A peer that answers is kept.
        let mut options = ServerOptions::default();
        options.h2.keepalive = keepalive;
        let mut client = ClientOptions::default();
        client.h2.keepalive = keepalive;
        let p = pair(TestService::mirror(), options.clone(), client.clone()).await;
        tokio::time::sleep(Duration::from_secs(1000)).await;
        assert!(p.client.is_ready() && !p.task.is_finished());

        // One that does not is not.
        let (mut ours, theirs) = duplex(1 << 16);
        let (_control, task) = serve(theirs, TestService::mirror(), options);
        ours.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        assert_eq!(timeout(Duration::from_secs(16), task).await.unwrap().unwrap(), ConnectionEnd::KeepAliveTimeout);

        let (ours, _theirs) = duplex(1 << 16);
        let dead = h2::Client::connect(ours, Arc::new(client)).await.unwrap();
        assert_eq!(timeout(Duration::from_secs(16), dead.closed()).await.unwrap(), "keepalive timeout");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_quiet_connection_is_asked_before_a_stream() {
    local(async {
        let mut client = ClientOptions::default();
        client.h2.keepalive = Some(KeepAlive {
            interval: None,
            timeout: Duration::from_secs(5),
            interval_jitter_percent: 0.0,
            connection_idle_interval: Some(Duration::from_secs(60)),
        });
        let (ours, mut theirs) = duplex(1 << 16);
        let quiet = h2::Client::connect(ours, Arc::new(client)).await.unwrap();
        theirs.write_all(b"\0\0\0\x04\0\0\0\0\0").await.unwrap();
        settle().await;
        let first = open(&quiet, &head(Method::GET, "/"), true);
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert!(!quiet.is_draining());
        tokio::time::sleep(Duration::from_secs(31)).await;
        let _second = open(&quiet, &head(Method::GET, "/"), true);
        assert_eq!(timeout(Duration::from_secs(6), quiet.closed()).await.unwrap(), "keepalive timeout");
        drop(first);
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
async fn a_goaway_refuses_what_the_peer_did_not_look_at() {
    local(async {
        let (ours, theirs) = duplex(1 << 16);
        // Takes one stream, then says that it took none after it.
        let peer = tokio::task::spawn_local(async move {
            let mut connection = ::h2::server::handshake(theirs).await.unwrap();
            let (_request, respond) = connection.accept().await.unwrap().unwrap();
            connection.graceful_shutdown();
            let held = RefCell::new(Some(respond));
            while let Some(next) = poll_fn(|cx| connection.poll_accept(cx)).await {
                drop(next);
                if let Some(mut respond) = held.take() {
                    respond.send_response(http::Response::new(()), true).unwrap();
                }
            }
        });
        let client = h2::Client::connect(ours, Arc::new(ClientOptions::default())).await.unwrap();
        let mut first = open(&client, &head(Method::GET, "/"), true);
        client.draining().await;
        assert!(matches!(client.send(&head(Method::GET, "/"), true), Err(StreamError::RemoteRefused)));
        peer.abort();
        // The one that was taken may have run.
        assert!(matches!(response(&mut first).await, Err(StreamError::ConnectionClosed(_))));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_peers_stream_limit_is_known() {
    local(async {
        let mut options = ServerOptions::default();
        options.h2.max_concurrent_streams = 3;
        let hold = TestService::new(|request: Request| async move {
            request.stream.closed().await;
            ok(Body::Empty)
        });
        let p = pair(hold, options, ClientOptions::default()).await;
        assert_eq!(p.client.max_streams(), 3);
        let streams: Vec<_> = (0..3).map(|_| open(&p.client, &head(Method::GET, "/"), true)).collect();
        assert!(!p.client.is_ready());
        assert_eq!(p.client.active_streams(), 3);
        drop(streams);
        settle().await;
        assert!(p.client.is_ready());
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
