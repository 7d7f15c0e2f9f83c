//! The HTTP/1 client over an in-memory transport, against bytes written by hand and against our own server.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may fail a test")]

mod common;

use bytes::{Bytes, BytesMut};
use common::{Channel, TestService, collect, headers, local, ok};
use http::{Method, StatusCode};
use nuncio_core::{Body, Frame, RequestHead, ResponseHead, StreamError};
use nuncio_http::{ClientOptions, ClientStream, ConnControl, Request, ServerOptions, h1, serve_h1};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

type Stream = ClientStream<DuplexStream>;

fn client() -> (h1::Client<DuplexStream>, DuplexStream) {
    client_with(ClientOptions::default())
}

fn client_with(options: ClientOptions) -> (h1::Client<DuplexStream>, DuplexStream) {
    let (ours, theirs) = duplex(1 << 20);
    (h1::Client::new(ours, Arc::new(options)), theirs)
}

fn get() -> RequestHead {
    RequestHead::new(Method::GET, "a", "/")
}

async fn sent(peer: &mut DuplexStream, end: &str) -> String {
    let mut all = Vec::new();
    while !all.ends_with(end.as_bytes()) {
        all.push(peer.read_u8().await.unwrap());
    }
    String::from_utf8(all).unwrap()
}

async fn flush(stream: &mut Stream) {
    poll_fn(|cx| stream.poll_flush(cx)).await.unwrap();
}

async fn response(stream: &mut Stream) -> Result<ResponseHead, StreamError> {
    poll_fn(|cx| stream.poll_response(cx)).await
}

async fn body(stream: &mut Stream) -> Result<(String, String), StreamError> {
    let (mut all, mut trailers) = (Vec::new(), String::new());
    while let Some(frame) = poll_fn(|cx| stream.poll_frame(cx)).await {
        match frame? {
            Frame::Data(data) => all.extend_from_slice(&data),
            Frame::Trailers(t) => trailers = format!("{:?}", t.iter().map(|(n, _)| n.as_str().to_string()).collect::<Vec<_>>()),
        }
    }
    Ok((String::from_utf8(all).unwrap(), trailers))
}

#[tokio::test]
async fn one_connection_carries_many_exchanges() {
    let (mut client, mut peer) = client();
    for n in 1..4_u64 {
        let mut head = get();
        head.method = Method::POST;
        let mut stream = ClientStream::H1(client.send(&head, false).unwrap());
        assert_eq!(stream.bytes_written(), 0);
        stream.send_data(Bytes::from_static(b"abc"), false).unwrap();
        stream.send_data(Bytes::from_static(b"de"), true).unwrap();
        assert!(!stream.is_sent());
        flush(&mut stream).await;
        assert!(stream.is_sent());
        let expected = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        assert_eq!(sent(&mut peer, "0\r\n\r\n").await, expected);
        assert_eq!(stream.bytes_written(), expected.len() as u64);
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
        peer.write_all(answer).await.unwrap();
        assert_eq!(response(&mut stream).await.unwrap().status, StatusCode::OK);
        assert_eq!(stream.remaining(), Some(5));
        assert_eq!(body(&mut stream).await.unwrap().0, "hello");
        assert!(stream.is_end());
        assert_eq!(stream.bytes_read(), answer.len() as u64);
        client = stream.into_client().unwrap();
        assert_eq!(client.streams(), n);
        assert!(client.is_reusable());
    }
}

#[tokio::test]
async fn head_and_first_bytes_share_a_write() {
    let (client, mut peer) = client();
    let mut head = get();
    head.headers = headers(&[("content-length", "3")]);
    let mut stream = ClientStream::H1(client.send(&head, false).unwrap());
    stream.send_data(Bytes::from_static(b"abc"), false).unwrap();
    flush(&mut stream).await;
    let mut buf = [0; 200];
    let n = peer.read(&mut buf).await.unwrap();
    assert_eq!(&buf[..n], b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc");
}

#[tokio::test]
async fn informational_heads_come_first() {
    let (client, mut peer) = client();
    let mut stream = ClientStream::H1(client.send(&get(), true).unwrap());
    peer.write_all(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nlink: x\r\n\r\nHTTP/1.1 204 No\r\n\r\n").await.unwrap();
    assert_eq!(response(&mut stream).await.unwrap().status, StatusCode::CONTINUE);
    assert_eq!(response(&mut stream).await.unwrap().status, StatusCode::EARLY_HINTS);
    assert_eq!(response(&mut stream).await.unwrap().status, StatusCode::NO_CONTENT);
    assert!(stream.is_end());
    assert!(response(&mut stream).await.is_err());
    assert!(stream.into_client().is_some());
}

#[tokio::test]
async fn what_ends_a_response() {
    let mut options = ClientOptions::default();
    options.h1.enable_trailers = true;
    for (answer, close, expected, reusable) in [
        ("HTTP/1.1 200 OK\r\n\r\nabc", true, Ok(("abc", "")), false),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nt: 1\r\n\r\n", false, Ok(("abc", "[\"t\"]")), true),
        ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabcHTTP/1.1 200 OK\r\n\r\n", false, Ok(("abc", "")), false),
        ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\nconnection: close\r\n\r\nabc", false, Ok(("abc", "")), false),
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabc", true, Err(StreamError::Protocol("http1.codec_error")), false),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n", true, Err(StreamError::Protocol("http1.codec_error")), false),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n", false, Err(StreamError::Protocol("http1.codec_error")), false),
    ] {
        let (client, mut peer) = client_with(options.clone());
        let mut stream = ClientStream::H1(client.send(&get(), true).unwrap());
        flush(&mut stream).await;
        peer.write_all(answer.as_bytes()).await.unwrap();
        let peer = (!close).then_some(peer);
        assert_eq!(response(&mut stream).await.unwrap().status, StatusCode::OK);
        let got = body(&mut stream).await;
        assert_eq!(got, expected.map(|(b, t)| (b.to_string(), t.to_string())), "{answer}");
        assert!(stream.is_end());
        assert_eq!(stream.into_client().is_some(), reusable, "{answer}");
        drop(peer);
    }
}

#[tokio::test]
async fn no_answer_is_told_from_half_an_answer() {
    let half = StreamError::Protocol("http1.codec_error");
    for (answer, read, error) in [("", 0, StreamError::ConnectionClosed(String::new())), ("HTTP/1.1 200 O", 14, half)] {
        let (client, mut peer) = client();
        let mut stream = ClientStream::H1(client.send(&get(), true).unwrap());
        flush(&mut stream).await;
        peer.write_all(answer.as_bytes()).await.unwrap();
        drop(peer);
        assert_eq!(response(&mut stream).await.unwrap_err(), error);
        assert_eq!(stream.bytes_read(), read);
        assert!(stream.bytes_written() > 0);
    }
}

#[tokio::test]
async fn an_answer_that_overtakes_the_request_is_heard() {
    let (client, mut peer) = client();
    let mut head = get();
    head.headers = headers(&[("content-length", "1000000000")]);
    let mut stream = ClientStream::H1(client.send(&head, false).unwrap());
    flush(&mut stream).await;
    peer.write_all(b"HTTP/1.1 413 Large\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno").await.unwrap();
    drop(peer);
    // Writing fails from now on, and is not what the user is told.
    for _ in 0..100 {
        poll_fn(|cx| stream.poll_ready(cx)).await.unwrap();
        stream.send_data(Bytes::from(vec![0; 100_000]), false).unwrap();
    }
    assert_eq!(response(&mut stream).await.unwrap().status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(body(&mut stream).await.unwrap().0, "no");
    assert!(stream.into_client().is_none());
}

#[tokio::test]
async fn bodies_must_fit_their_length() {
    for (pieces, good) in [(&["abc", ""][..], true), (&["abcd"], false), (&["ab", ""], false), (&["abc", "d"], false)] {
        let (client, _peer) = client();
        let mut head = get();
        head.headers = headers(&[("content-length", "3")]);
        let mut stream = ClientStream::H1(client.send(&head, false).unwrap());
        let result = pieces.iter().enumerate().try_for_each(|(i, piece)| stream.send_data(Bytes::from(*piece), i + 1 == pieces.len()));
        assert_eq!(result.is_ok(), good, "{pieces:?}");
    }
}

#[tokio::test]
async fn idle_connections_are_watched() {
    let (mut client, peer) = client();
    assert!(client.is_reusable());
    drop(peer);
    assert!(!client.is_reusable());
    assert_eq!(poll_fn(|cx| client.poll_idle_check(cx)).await, StreamError::ConnectionClosed(String::new()));

    let (mut client, mut peer) = self::client();
    peer.write_all(b"HTTP/1.1 408 Request Timeout\r\n\r\n").await.unwrap();
    assert!(!client.is_reusable());
}

#[tokio::test]
async fn upgrades() {
    let mut head = get();
    head.headers = headers(&[("connection", "upgrade"), ("upgrade", "websocket")]);
    let (client, mut peer) = client();
    let mut stream = ClientStream::H1(client.send(&head, false).unwrap());
    let waits = poll_fn(|cx| std::task::Poll::Ready(stream.poll_ready(cx).is_pending())).await;
    assert!(waits && stream.send_data(Bytes::from_static(b"early"), false).is_err());
    assert_eq!(sent(&mut peer, "\r\n\r\n").await, "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n");
    peer.write_all(b"HTTP/1.1 101 Switching\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\nhi").await.unwrap();
    let head101 = response(&mut stream).await.unwrap();
    assert_eq!(head101.status, StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(head101.headers.get_str(&http::header::UPGRADE), Some("websocket"));
    poll_fn(|cx| stream.poll_ready(cx)).await.unwrap();
    stream.send_data(Bytes::from_static(b"raw"), true).unwrap();
    flush(&mut stream).await;
    let mut all = Vec::new();
    peer.read_to_end(&mut all).await.unwrap();
    assert_eq!(all, b"raw");
    drop(peer);
    assert_eq!(body(&mut stream).await.unwrap().0, "hi");
    assert!(stream.into_client().is_none());

    // Refused: the connection is not used again.
    let (client, mut peer) = self::client();
    let mut stream = ClientStream::H1(client.send(&head, false).unwrap());
    peer.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    assert_eq!(response(&mut stream).await.unwrap().status, StatusCode::OK);
    assert!(stream.into_client().is_none());
}

#[tokio::test]
async fn both_sides_together() {
    local(async {
        let mut options = ServerOptions::default();
        options.h1.enable_trailers = true;
        let mut client_options = ClientOptions::default();
        client_options.h1.enable_trailers = true;
        let service = TestService::new(|mut request: Request| async move {
            let (body, trailers) = collect(&mut request.body).await.unwrap();
            let channel = Channel::default();
            channel.data(body);
            channel.data(trailers);
            channel.put(Some(Ok(Frame::Trailers(Box::new(headers(&[("r", "2")]))))));
            ok(if request.head.path == "/empty" { Body::Empty } else { channel.body() })
        });
        let (ours, theirs) = duplex(3000);
        tokio::task::spawn_local(serve_h1(theirs, BytesMut::new(), service, Arc::new(options), Rc::new(ConnControl::new())));
        let mut client = h1::Client::new(ours, Arc::new(client_options));
        for n in 0..20 {
            let path = if n % 3 == 0 { "/empty" } else { "/" };
            let mut stream = ClientStream::H1(client.send(&RequestHead::new(Method::POST, "a", path), false).unwrap());
            let data = vec![b'x'; n * 997];
            for piece in data.chunks(1000) {
                poll_fn(|cx| stream.poll_ready(cx)).await.unwrap();
                stream.send_data(Bytes::copy_from_slice(piece), false).unwrap();
            }
            stream.send_trailers(&headers(&[("t", "1")])).unwrap();
            assert_eq!(response(&mut stream).await.unwrap().status, StatusCode::OK);
            let (got, trailers) = body(&mut stream).await.unwrap();
            if n % 3 == 0 {
                assert_eq!(got, "");
            } else {
                assert_eq!(got.len(), data.len() + "t=1 ".len());
                assert_eq!(trailers, "[\"r\"]");
            }
            client = stream.into_client().unwrap();
        }
    })
    .await;
}
