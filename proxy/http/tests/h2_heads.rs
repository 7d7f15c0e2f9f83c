//! Heads that the `h2` library would mend, and a peer that must not be let: pseudo-headers among trailers, fragments, blocks in several
//! frames. And the other way: that whatever a proper peer encodes is understood, whichever way it is cut.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "helpers of tests may fail a test")]

mod common;

use bytes::{Bytes, BytesMut};
use common::h2::frame;
use common::{TestService, collect, local, ok};
use http::Method;
use nuncio_core::{Body, Frame, Headers, RequestHead, StreamError};
use nuncio_http::{ClientOptions, ConnControl, ConnectionEnd, Request, ServerOptions, auto, h2, serve_h2};
use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;
const MESSAGING: &str = "http2.violation.of.messaging.rule";
/// `GET http://a/` from the static table but for the authority.
const GET: &[u8] = b"\x82\x86\x84\x01\x01a";
const POST: &[u8] = b"\x83\x86\x84\x01\x01a";

/// Sends these frames in pieces of `size` and closes: how the connection ended, and what each request was (path, or how its body failed).
async fn run(frames: &[Vec<u8>], size: usize) -> (ConnectionEnd, Vec<String>) {
    run_with(frames, size, ServerOptions::default()).await
}

async fn run_with(frames: &[Vec<u8>], size: usize, options: ServerOptions) -> (ConnectionEnd, Vec<String>) {
    let (mut client, server) = duplex(1 << 20);
    let seen: Rc<RefCell<Vec<String>>> = Rc::default();
    let log = seen.clone();
    let service = TestService::new(move |mut request: Request| {
        let log = log.clone();
        async move {
            let path = request.head.path.to_string();
            let body = collect(&mut request.body).await;
            let trailers = request.head.headers.iter().map(|(n, _)| format!(" {n}")).collect::<String>();
            log.borrow_mut().push(match body {
                Ok((body, _)) => format!("{path}{trailers} {}", body.len()),
                Err(_) => format!("{path}{trailers} broken"),
            });
            ok(Body::Empty)
        }
    });
    let task = tokio::task::spawn_local(serve_h2(server, BytesMut::new(), service, Arc::new(options), Rc::new(ConnControl::new())));
    let wire = [auto::PREFACE, &frame(SETTINGS, 0, 0, &[]), &frames.concat()].concat();
    for part in wire.chunks(size) {
        if client.write_all(part).await.is_err() {
            break;
        }
        tokio::task::yield_now().await;
    }
    let _ = client.shutdown().await;
    let mut answer = Vec::new();
    let _ = client.read_to_end(&mut answer).await;
    let end = task.await.unwrap();
    let seen = seen.borrow().clone();
    (end, seen)
}

#[tokio::test]
async fn trailers_with_pseudo_headers_end_the_connection() {
    local(async {
        let head = frame(HEADERS, 4, 1, POST);
        let body = frame(DATA, 0, 1, b"x");
        for trailers in [&b"\x84"[..], b"\x04\x05/evil", b"\x00\x05:path\x05/evil", b"\x41\x01b", b"\x00\x84\xb9\x58\xd3\x3f\x01/"] {
            for size in [1, 7, 1 << 20] {
                let (end, seen) = run(&[head.clone(), body.clone(), frame(HEADERS, 5, 1, trailers)], size).await;
                assert_eq!(end, ConnectionEnd::Protocol(MESSAGING), "{trailers:x?} {size}");
                assert!(seen.is_empty() || seen == ["/ broken"], "{seen:?}");
            }
        }
        // From the dynamic table, where a request put it.
        let first = frame(HEADERS, 5, 1, b"\x82\x86\x44\x02/x\x01\x01a");
        let frames = [first.clone(), frame(HEADERS, 4, 3, POST), body3(), frame(HEADERS, 5, 3, b"\xbe")];
        assert_eq!(run(&frames, 1 << 20).await.0, ConnectionEnd::Protocol(MESSAGING));
        // Proper ones, of the table too.
        let frames = [
            frame(HEADERS, 4, 1, POST),
            body.clone(),
            frame(HEADERS, 5, 1, b"\x40\x01a\x01b"),
            frame(HEADERS, 4, 3, POST),
            body3(),
            frame(HEADERS, 5, 3, b"\xbe"),
        ];
        assert_eq!(run(&frames, 5).await, (ConnectionEnd::Remote, vec!["/ 1".into(), "/ 1".into()]));
    })
    .await;
}

fn body3() -> Vec<u8> {
    frame(DATA, 0, 3, b"x")
}

#[tokio::test]
async fn fragments_are_shown() {
    local(async {
        let huffman = b"\x82\x86\x04\x83\x63\xfe\xbf\x01\x01a"; // "/#"
        let plain = b"\x82\x86\x44\x06/p?q#r\x01\x01a";
        // The third takes its path of the table.
        let frames = [
            frame(HEADERS, 5, 1, huffman),
            frame(HEADERS, 5, 3, plain),
            frame(HEADERS, 5, 5, GET),
            frame(HEADERS, 5, 7, b"\x82\x86\xbe\x01\x01a"),
        ];
        for size in [1, 1 << 20] {
            let (end, mut seen) = run(&frames, size).await;
            seen.sort();
            assert_eq!(end, ConnectionEnd::Remote);
            assert_eq!(seen, ["/ 0", "/# 0", "/p?q# 0", "/p?q# 0"]);
        }
    })
    .await;
}

#[tokio::test]
async fn what_is_malformed_is_so_in_several_frames_too() {
    local(async {
        // The frame ends within the next field, at which the library forgets what it saw.
        for block in [
            &b"\x82\x86\x84\x84\x01\x01a\x00\x01x\x01y"[..],
            b"\x82\x86\x84\x01\x01a\x00\x0aconnection\x01x\x00\x01x\x01y",
            b"\x82\x86\x84\x01\x01a\x0f\x2a\x07chunked\x00\x01x\x01y",
            b"\x82\x86\x84\x01\x01a\x00\x02te\x04gzip\x00\x01x\x01y",
            b"\x82\x86\x00\x01z\x01y\x84\x01\x01a\x00\x01x\x01y",
        ] {
            let (first, second) = block.split_at(block.len() - 2);
            let (end, seen) = run(&[frame(HEADERS, 1, 1, first), frame(CONTINUATION, 4, 1, second)], 1 << 20).await;
            assert!(matches!(end, ConnectionEnd::Protocol(_)), "{end:?} {block:x?}");
            assert!(seen.is_empty(), "{seen:?}");
        }
        let good = b"\x82\x86\x84\x01\x01a\x00\x01x\x01y";
        for at in 0..good.len() {
            let (first, second) = good.split_at(at);
            let (end, seen) = run(&[frame(HEADERS, 1, 1, first), frame(CONTINUATION, 4, 1, second)], 1 << 20).await;
            assert_eq!((end, seen), (ConnectionEnd::Remote, vec!["/ x 0".to_string()]), "{at}");
        }
        // A block that the library would skip, and know another table than the peer after it.
        let (end, seen) = run(&[frame(HEADERS, 0x25, 1, &[b"\0\0\0\x01\x05", GET].concat()), frame(HEADERS, 5, 3, GET)], 1 << 20).await;
        assert_eq!((end, seen), (ConnectionEnd::Protocol(MESSAGING), vec![]));
    })
    .await;
}

#[tokio::test]
async fn limits_of_fields_hold() {
    local(async {
        let field = |value: &[u8]| {
            let mut block = [GET, b"\x00\x01x"].concat();
            let n = value.len();
            match n.checked_sub(127) {
                None => block.push(u8::try_from(n).unwrap()),
                Some(left) => {
                    let bits = |shift: usize| u8::try_from(left >> shift & 0x7f).unwrap();
                    block.extend([127, bits(0) | 0x80, bits(7) | 0x80, bits(14)]);
                }
            }
            block.extend(value);
            let mut frames: Vec<_> = block.chunks(16_000).map(|part| frame(CONTINUATION, 0, 1, part)).collect();
            frames[0][3..5].copy_from_slice(&[HEADERS, 1]);
            let last = frames.len() - 1;
            frames[last][4] |= 4;
            frames
        };
        let large = || ServerOptions { max_headers_kb: 300, ..ServerOptions::default() };
        let (end, seen) = run_with(&field(&[b'y'; 65_536]), 1 << 20, large()).await;
        assert_eq!((end, seen), (ConnectionEnd::Remote, vec!["/ x 0".to_string()]));
        assert_eq!(run_with(&field(&[b'y'; 65_537]), 1 << 20, large()).await, (ConnectionEnd::Protocol(MESSAGING), vec![]));
        let mut options = large();
        options.h2.max_field_size = 128 * 1024;
        assert_eq!(run_with(&field(&[b'y'; 65_537]), 1 << 20, options).await.1, ["/ x 0"]);
        // Bytes that are not ASCII, in heads and in trailers.
        let trailers = || [frame(HEADERS, 4, 1, POST), frame(HEADERS, 5, 1, b"\x00\x01x\x01\xe9")];
        assert_eq!(run(&field(b"\xe9"), 1 << 20).await.1, ["/ x 0"]);
        assert_eq!(run(&trailers(), 1 << 20).await.1, ["/ 0"]);
        let strict = || {
            let mut options = ServerOptions::default();
            options.h2.disallow_obs_text = true;
            options
        };
        assert!(run_with(&field(b"\xe9"), 1 << 20, strict()).await.1.is_empty());
        assert_eq!(run_with(&trailers(), 1 << 20, strict()).await.1, ["/ broken"]);
        assert_eq!(run_with(&field(b"e"), 1 << 20, strict()).await.1, ["/ x 0"]);
        // As many trailers as there may be header fields.
        for (n, seen) in [(100, "/ 0"), (101, "/ broken")] {
            let frames = [frame(HEADERS, 4, 1, POST), frame(HEADERS, 5, 1, &b"\x00\x01x\x01y".repeat(n))];
            assert_eq!(run(&frames, 1 << 20).await.1, [seen], "{n}");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn resets_fill_a_bucket() {
    local(async {
        let reset = |n: u32| [frame(HEADERS, 4, n * 2 + 1, POST), frame(3, 0, n * 2 + 1, &8u32.to_be_bytes())].concat();
        let mut options = ServerOptions::default();
        (options.h2.flood.reset_burst, options.h2.flood.reset_rate) = (5, 1);
        for (n, ends) in [(5, false), (6, true)] {
            let frames: Vec<_> = (0..n).map(reset).collect();
            let (end, _) = run_with(&frames, 1 << 20, options.clone()).await;
            assert_eq!(matches!(end, ConnectionEnd::Protocol(_)), ends, "{n} {end:?}");
        }
    })
    .await;
}

/// An upstream that answers its first request with these frames.
async fn answer(frames: Vec<Vec<u8>>) -> Result<(u16, Vec<u8>, String), StreamError> {
    let (client, mut server): (DuplexStream, DuplexStream) = duplex(1 << 20);
    server.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
    let client = h2::Client::connect(client, Arc::new(ClientOptions::default())).await.unwrap();
    let mut stream = client.send(&RequestHead::new(Method::GET, "a", "/"), true).unwrap();
    // Once the request is there: an answer that comes before is another fault.
    let mut got = Vec::new();
    while !got.windows(5).any(|w| w == [HEADERS, 5, 0, 0, 0]) {
        got.push(server.read_u8().await.unwrap());
    }
    server.write_all(&frames.concat()).await.unwrap();
    let mut status = 0;
    while status < 200 {
        status = poll_fn(|cx| stream.poll_response(cx)).await?.status.as_u16();
    }
    let (mut body, mut trailers) = (Vec::new(), String::new());
    while let Some(frame) = poll_fn(|cx| stream.poll_frame(cx)).await {
        match frame? {
            Frame::Data(data) => body.extend_from_slice(&data),
            Frame::Trailers(t) => trailers = t.iter().map(|(n, _)| n.to_string()).collect(),
        }
    }
    Ok((status, body, trailers))
}

#[tokio::test]
async fn answers_are_held_to_it_too() {
    local(async {
        let head = frame(HEADERS, 4, 1, b"\x88");
        let data = frame(DATA, 0, 1, b"x");
        let good = vec![frame(HEADERS, 4, 1, b"\x08\x03103"), head.clone(), data.clone(), frame(HEADERS, 5, 1, b"\x40\x01t\x01u")];
        assert_eq!(answer(good).await.unwrap(), (200, b"x".to_vec(), "t".to_string()));
        for trailers in [&b"\x88"[..], b"\x84", b"\x48\x03500", b"\x00\x07:status\x03200\x40\x01t\x01u"] {
            assert!(answer(vec![head.clone(), data.clone(), frame(HEADERS, 5, 1, trailers)]).await.is_err(), "{trailers:x?}");
        }
        // A request's, on an answer.
        assert!(answer(vec![frame(HEADERS, 5, 1, b"\x88\x84")]).await.is_err());
        assert!(answer(vec![frame(HEADERS, 5, 1, b"\x88\x00\x01a\x01b")]).await.is_ok());
    })
    .await;
}

/// Many messages of all kinds of names, values and sizes through the library's own encoder: none may be refused.
#[tokio::test]
async fn what_a_proper_peer_says_is_understood() {
    local(async {
        let (client, server) = duplex(1 << 16);
        let service = TestService::new(|mut request: Request| async move {
            let trailers = loop {
                match request.body.frame().await {
                    Some(Ok(Frame::Trailers(trailers))) => break trailers,
                    Some(Ok(Frame::Data(_))) => {}
                    other => panic!("no trailers: {other:?}"),
                }
            };
            let mut response = ok(Body::Full(Bytes::from(format!("{} {}", request.head.path, trailers.len()))));
            response.head.headers = request.head.headers.clone();
            response
        });
        let options = Arc::new(ServerOptions { max_headers_kb: 500, max_headers_count: 1000, ..ServerOptions::default() });
        tokio::task::spawn_local(serve_h2(server, BytesMut::new(), service, options, Rc::new(ConnControl::new())));
        let options = Arc::new(ClientOptions { max_headers_kb: 500, max_headers_count: 1000, ..ClientOptions::default() });
        let client = h2::Client::connect(client, options).await.unwrap();
        let mut random = fastrand::Rng::with_seed(7);
        for n in 0..400 {
            let mut head = RequestHead::new(Method::POST, format!("host{}", random.u8(..4)), format!("/{}", path(&mut random)));
            head.headers = fields(&mut random, if n % 50 == 0 { 20_000 } else { 60 });
            let trailers = fields(&mut random, 40);
            let mut stream = client.send(&head, false).unwrap();
            stream.send_trailers(&trailers).unwrap();
            let answer = poll_fn(|cx| stream.poll_response(cx)).await.unwrap();
            assert_eq!(answer.headers.len(), head.headers.len(), "{n}");
            let mut body = Vec::new();
            while let Some(frame) = poll_fn(|cx| stream.poll_frame(cx)).await {
                if let Frame::Data(data) = frame.unwrap() {
                    body.extend_from_slice(&data);
                }
            }
            assert_eq!(String::from_utf8(body).unwrap(), format!("{} {}", head.path, trailers.len()));
        }
    })
    .await;
}

fn path(random: &mut fastrand::Rng) -> String {
    (0..random.usize(..30)).map(|_| char::from(random.u8(b'a'..=b'z'))).collect()
}

fn fields(random: &mut fastrand::Rng, longest: usize) -> Headers {
    const NAMES: [&str; 12] = [
        "accept",
        "user-agent",
        "cache-control",
        "x-request-id",
        "grpc-status",
        "x-a",
        "x-b",
        "cookie-like",
        "via",
        "etag",
        "te-like",
        "x-very-long-name-of-a-field",
    ];
    let mut headers = Headers::new();
    for _ in 0..random.usize(1..12) {
        let name = http::HeaderName::from_static(NAMES[random.usize(..NAMES.len())]);
        let value: Vec<u8> = (0..random.usize(..longest)).map(|_| random.u8(0x21..=0xff)).filter(|b| *b != 0x7f).collect();
        headers.append(name, http::HeaderValue::from_bytes(&value).unwrap());
    }
    headers
}
