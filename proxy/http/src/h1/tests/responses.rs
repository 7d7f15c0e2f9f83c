//! Responses of servers, and the encoders of both sides.

use super::fields;
use crate::h1::body::Framing;
use crate::h1::request::RequestParser;
use crate::h1::response::{Asked, ResponseParser};
use crate::h1::{encode, response};
use crate::options::{ClientOptions, H1Options, HeaderKeyFormat, ServerOptions};
use bytes::BytesMut;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use nuncio_core::{HttpVersion, RequestHead, ResponseHead};

fn parse_response(bytes: &[u8], asked: Asked) -> Result<response::ParsedResponse, crate::h1::head::HeadError> {
    let mut buf = BytesMut::from(bytes);
    ResponseParser::default().parse(&mut buf, &ClientOptions::default(), asked).map(|p| p.expect("complete"))
}

#[test]
fn response_framing() {
    let get = Asked::default();
    let head = Asked { head: true, ..get };
    let connect = Asked { connect: true, ..get };
    let upgrade = Asked { upgrade: true, ..get };
    let table: &[(&str, Asked, Framing, bool)] = &[
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", get, Framing::Length(5), true),
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", get, Framing::None, true),
        ("HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\n", get, Framing::Chunked, true),
        ("HTTP/1.1 200 \r\n\r\n", get, Framing::UntilClose, false),
        ("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\n", get, Framing::Length(5), false),
        ("HTTP/1.1 200 OK\r\nProxy-Connection: close\r\nContent-Length: 5\r\n\r\n", get, Framing::Length(5), false),
        ("HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", get, Framing::Length(5), false),
        ("HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\n", get, Framing::Length(5), true),
        ("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n", get, Framing::Chunked, false),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", head, Framing::None, true),
        ("HTTP/1.1 204 No\r\n\r\n", get, Framing::None, true),
        ("HTTP/1.1 204 No\r\nContent-Length: 0\r\n\r\n", get, Framing::None, true),
        ("HTTP/1.1 304 Not\r\nContent-Length: 5\r\n\r\n", get, Framing::None, true),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", connect, Framing::UntilClose, false),
        ("HTTP/1.1 404 No\r\nContent-Length: 5\r\n\r\n", connect, Framing::Length(5), true),
        ("HTTP/1.1 101 Sw\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", upgrade, Framing::UntilClose, false),
        ("HTTP/1.1 100 Continue\r\n\r\n", get, Framing::None, true),
        ("HTTP/1.1 200 OK\nContent-Length: 5\nX: a\n b\n\n", get, Framing::Length(5), true),
    ];
    for (text, asked, framing, keep_alive) in table {
        let parsed = parse_response(text.as_bytes(), *asked).expect(text);
        assert_eq!((parsed.framing, parsed.keep_alive), (*framing, *keep_alive), "{text}");
    }
    let folded = parse_response(b"HTTP/1.1 200 OK\r\nX: a\r\n\t b\r\nY: c\r\n\r\n", get).unwrap();
    assert_eq!(fields(&folded.head.headers), "x=a   \t b;y=c;".replace("   \t", "  \t"));
}

#[test]
fn hostile_responses_are_refused() {
    let long = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "a".repeat(82_000));
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: a\r\n".repeat(101));
    for (text, details) in [
        ("HTTP/2 200 OK\r\n\r\n", "http1.codec_error"),
        ("HTTP/1.2 200 OK\r\n\r\n", "http1.codec_error"),
        ("http/1.1 200 OK\r\n\r\n", "http1.codec_error"),
        ("HTTP/1.1 20 OK\r\n\r\n", "http1.codec_error"),
        ("HTTP/1.1 2000 OK\r\n\r\n", "http1.codec_error"),
        ("HTTP/1.1 099 OK\r\n\r\n", "http1.codec_error"),
        ("HTTP/1.1  200 OK\r\n\r\n", "http1.codec_error"),
        ("HTTP/1.1 200 O\0K\r\n\r\n", "http1.codec_error"),
        ("garbage\r\n\r\n", "http1.codec_error"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", "http1.codec_error"),
        ("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "http1.codec_error"),
        ("HTTP/1.1 200 OK\r\nX : a\r\n\r\n", "http1.codec_error"),
        ("HTTP/1.1 200 OK\r\nX: \0\r\n\r\n", "http1.invalid_characters"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", "http1.content_length_and_chunked_not_allowed"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", "http1.invalid_transfer_encoding"),
        ("HTTP/1.1 204 No\r\nTransfer-Encoding: chunked\r\n\r\n", "http1.transfer_encoding_not_allowed"),
        ("HTTP/1.1 100 C\r\nContent-Length: 5\r\n\r\n", "http1.content_length_not_allowed"),
        ("HTTP/1.1 101 Sw\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", "http1.codec_error"),
        (&long, "http1.headers_too_large"),
        (&many, "http1.too_many_headers"),
    ] {
        let error = parse_response(text.as_bytes(), Asked::default()).expect_err(text);
        let error = crate::service::Malformed::from(error);
        assert_eq!(error.details, details, "{}", text.get(..40).unwrap_or(text));
    }
}

#[test]
fn names_are_written_as_configured() {
    let mut options = ServerOptions::default();
    options.h1.header_key_format = HeaderKeyFormat::PreserveCase { proper_case_unknown: true };
    let mut buf = BytesMut::from(&b"GET / HTTP/1.1\r\nHOST: a\r\nX-fOO: 1\r\n\r\n"[..]);
    let mut head = RequestParser::default().parse(&mut buf, &options).unwrap().unwrap().head;
    head.headers.append(HeaderName::from_static("x-new-name"), HeaderValue::from_static("2"));
    let write = |head: &RequestHead, options: &H1Options| {
        let mut out = Vec::new();
        encode::request(&mut out, head, true, options).unwrap();
        String::from_utf8(out).unwrap()
    };
    assert_eq!(write(&head, &options.h1), "GET / HTTP/1.1\r\nHOST: a\r\nX-fOO: 1\r\nX-New-Name: 2\r\n\r\n");
    options.h1.header_key_format = HeaderKeyFormat::ProperCase;
    assert_eq!(write(&head, &options.h1), "GET / HTTP/1.1\r\nHost: a\r\nX-Foo: 1\r\nX-New-Name: 2\r\n\r\n");
    options.h1.header_key_format = HeaderKeyFormat::Lower;
    options.h1.send_fully_qualified_url = true;
    assert_eq!(write(&head, &options.h1), "GET http://a/ HTTP/1.1\r\nhost: a\r\nx-foo: 1\r\nx-new-name: 2\r\n\r\n");
    // What a rewrite made of the authority may not break the request line.
    head.authority = "a b".into();
    assert!(encode::request(&mut Vec::new(), &head, true, &options.h1).is_err());
}

#[test]
fn a_reason_is_passed_on_if_wanted() {
    let mut options = ClientOptions::default();
    let answer = |options: &ClientOptions, line: &str| {
        let mut buf = BytesMut::from(format!("{line}\r\ncontent-length: 0\r\n\r\n").as_bytes());
        let head = ResponseParser::default().parse(&mut buf, options, Asked::default()).unwrap().unwrap().head;
        let mut out = Vec::new();
        let (version, after) = (HttpVersion::Http11, encode::After::KeepAlive);
        encode::response(&mut out, &head, Asked::default(), version, Some(0), after, &H1Options::default());
        String::from_utf8(out).unwrap().lines().next().unwrap().to_string()
    };
    assert_eq!(answer(&options, "HTTP/1.1 200 Fine  Thanks"), "HTTP/1.1 200 OK");
    options.h1.header_key_format = HeaderKeyFormat::PreserveCase { proper_case_unknown: false };
    assert_eq!(answer(&options, "HTTP/1.1 200 Fine  Thanks"), "HTTP/1.1 200 OK");
    options.h1.forward_reason_phrase = true;
    assert_eq!(answer(&options, "HTTP/1.1 200 Fine  Thanks"), "HTTP/1.1 200 Fine  Thanks");
    assert_eq!(answer(&options, "HTTP/1.1 404 "), "HTTP/1.1 404 Not Found");
    assert_eq!(answer(&options, "HTTP/1.1 299"), "HTTP/1.1 299 Unknown");
}

#[test]
fn encoders_own_the_framing() {
    let mut head = RequestHead::new(Method::POST, "a", "/");
    for (name, value) in [
        ("transfer-encoding", "gzip"),
        ("connection", "close"),
        ("content-length", "5"),
        ("content-length", "6"),
        ("host", "evil"),
        ("keep-alive", "1"),
    ] {
        head.headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    let mut out = Vec::new();
    let (framing, _) = encode::request(&mut out, &head, false, &H1Options::default()).unwrap();
    assert_eq!(framing, Framing::Chunked);
    assert_eq!(String::from_utf8(out).unwrap(), "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n");
    let mut out = Vec::new();
    encode::request(&mut out, &RequestHead::new(Method::POST, "a", "/"), true, &H1Options::default()).unwrap();
    assert_eq!(String::from_utf8(out).unwrap(), "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n");
    for (authority, path) in [
        ("a", "/ HTTP/1.1\r\nx: y"),
        ("a", ""),
        ("a", "?x"),
        ("a", "*"),
        ("a", "http://b/"),
        ("", "/\0"),
        ("a\r\nx: y", "/"),
        ("a", "/\u{e9}"),
    ] {
        assert!(encode::request(&mut Vec::new(), &RequestHead::new(Method::GET, authority, path), true, &H1Options::default()).is_err());
    }
    let write = |status: u16, headers: &[(&'static str, &'static str)], asked: Asked, version, remaining, after| {
        let mut head = ResponseHead::new(StatusCode::from_u16(status).unwrap());
        head.headers = headers.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect();
        let mut out = Vec::new();
        let framing = encode::response(&mut out, &head, asked, version, remaining, after, &H1Options::default());
        (String::from_utf8(out).unwrap(), framing)
    };
    use encode::After::{Close, KeepAlive, Upgraded};
    let (get, v11, v10) = (Asked::default(), HttpVersion::Http11, HttpVersion::Http10);
    let response = |text: &str| text.replace('|', "\r\n");
    for (got, text, framing) in [
        (write(200, &[], get, v11, None, KeepAlive), "HTTP/1.1 200 OK|transfer-encoding: chunked||", Framing::Chunked),
        (write(200, &[], get, v11, Some(0), Close), "HTTP/1.1 200 OK|connection: close|content-length: 0||", Framing::Length(0)),
        (write(204, &[("content-length", "5")], get, v11, None, KeepAlive), "HTTP/1.1 204 No Content||", Framing::None),
        (write(304, &[("content-length", "5")], get, v11, None, KeepAlive), "HTTP/1.1 304 Not Modified|content-length: 5||", Framing::None),
        (
            write(200, &[("content-length", "5")], Asked { head: true, ..get }, v11, None, KeepAlive),
            "HTTP/1.1 200 OK|content-length: 5||",
            Framing::None,
        ),
        (write(200, &[], get, v10, None, KeepAlive), "HTTP/1.0 200 OK|connection: close||", Framing::UntilClose),
        (write(200, &[], get, v10, Some(3), KeepAlive), "HTTP/1.0 200 OK|connection: keep-alive|content-length: 3||", Framing::Length(3)),
        (
            write(
                101,
                &[("upgrade", "x"), ("connection", "upgrade"), ("content-length", "1")],
                Asked { upgrade: true, ..get },
                v11,
                None,
                Upgraded,
            ),
            "HTTP/1.1 101 Switching Protocols|upgrade: x|connection: upgrade||",
            Framing::UntilClose,
        ),
        (
            write(200, &[("transfer-encoding", "gzip"), ("content-length", "x")], get, v11, None, KeepAlive),
            "HTTP/1.1 200 OK|transfer-encoding: chunked||",
            Framing::Chunked,
        ),
    ] {
        assert_eq!(got, (response(text), framing));
    }
}

#[test]
fn chunk_sizes_are_hex() {
    for n in [1, 9, 10, 15, 16, 255, 256, 4096, 65_535, usize::MAX] {
        let mut out = Vec::new();
        encode::chunk_size(&mut out, n);
        assert_eq!(out, format!("{n:x}\r\n").into_bytes());
    }
}
