//! The machines of this module without a transport: hostile input, resumption at any byte, and what is written is what is
//! read again.

use crate::h1::body::{BodyDecoder, Framing};
use crate::h1::chunked::Event;
use crate::h1::encode;
use crate::h1::request::{self, RequestParser};
use crate::h1::response::{self, Asked, ResponseParser};
use crate::options::{ClientOptions, H1Options, HeaderKeyFormat, HeadersWithUnderscores, ServerOptions};
use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use nuncio_core::{Headers, HttpVersion, RequestHead, ResponseHead};
use proptest::prelude::*;

/// What came out of a byte stream.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Head(String),
    Body(Vec<u8>),
    Trailers(String),
    End,
    Error(u16, &'static str),
}

fn fields(headers: &Headers) -> String {
    headers.iter().map(|(n, v)| format!("{n}={};", String::from_utf8_lossy(v.as_bytes()))).collect()
}

/// Feeds `pieces` to the request side and tells what it saw.
fn requests<'a>(pieces: impl Iterator<Item = &'a [u8]>, options: &ServerOptions) -> Vec<Seen> {
    let (mut parser, mut buf, mut seen) = (RequestParser::default(), BytesMut::new(), Vec::new());
    let mut body: Option<BodyDecoder> = None;
    for piece in pieces {
        buf.extend_from_slice(piece);
        loop {
            match &mut body {
                None => match parser.parse(&mut buf, options) {
                    Ok(Some(p)) => {
                        let h = &p.head;
                        seen.push(Seen::Head(format!("{} {} {} {} {}", h.method, h.scheme, h.authority, h.path, fields(&h.headers))));
                        if p.upgrade {
                            return seen;
                        }
                        body = Some(BodyDecoder::new(p.framing));
                    }
                    Ok(None) => break,
                    Err(e) => {
                        seen.push(Seen::Error(e.status.as_u16(), e.details));
                        return seen;
                    }
                },
                Some(decoder) => match decoder.decode(&mut buf, request::limits(options), true) {
                    Ok(Some(Event::Data(data))) => match seen.last_mut() {
                        Some(Seen::Body(all)) => all.extend_from_slice(&data),
                        _ => seen.push(Seen::Body(data.to_vec())),
                    },
                    Ok(Some(Event::Trailers(t))) => {
                        seen.push(Seen::Trailers(fields(&t)));
                        body = None;
                    }
                    Ok(Some(Event::End)) => {
                        seen.push(Seen::End);
                        body = None;
                    }
                    Ok(None) => break,
                    Err(e) => {
                        let e = crate::service::Malformed::from(e);
                        seen.push(Seen::Error(e.status.as_u16(), e.details));
                        return seen;
                    }
                },
            }
        }
    }
    seen
}

fn whole(bytes: &[u8]) -> Vec<Seen> {
    requests(std::iter::once(bytes), &ServerOptions::default())
}

fn outcome(bytes: &[u8], options: &ServerOptions) -> Seen {
    requests(std::iter::once(bytes), options).pop().unwrap_or(Seen::End)
}

const H: &str = "Host: a\r\n";

fn with(line: &str, rest: &str) -> Vec<u8> {
    format!("{line}\r\n{H}{rest}\r\n").into_bytes()
}

/// Request, status, details; as Envoy 1.40 answered them, where `!` marks what Envoy lets through and we refuse.
fn hostile() -> Vec<(&'static str, Vec<u8>, u16, &'static str)> {
    let get = |rest: &str| with("GET / HTTP/1.1", rest);
    let post = |rest: &str, body: &str| [with("POST / HTTP/1.1", rest), body.as_bytes().to_vec()].concat();
    let chunked = |body: &str| post("Transfer-Encoding: chunked\r\n", body);
    const CODEC: &str = "http1.codec_error";
    const CHARS: &str = "http1.invalid_characters";
    const TE: &str = "http1.invalid_transfer_encoding";
    const BOTH: &str = "http1.content_length_and_chunked_not_allowed";
    vec![
        ("!bare LF", b"GET / HTTP/1.1\nHost: a\n\n".to_vec(), 400, CODEC),
        ("!one bare LF", b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n".to_vec(), 400, CODEC),
        ("!bare LF at the end", b"GET / HTTP/1.1\r\nHost: a\r\n\n".to_vec(), 400, CODEC),
        ("!LF first", b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), 400, CODEC),
        ("!fold", get("X: a\r\n b\r\n"), 400, CODEC),
        ("!CR in a value", get("X: a\rb\r\n"), 400, CHARS),
        ("!two hosts", get("Host: b\r\n"), 400, CODEC),
        ("!same host twice", get("Host: a\r\n"), 400, CODEC),
        ("!two spaces", with("GET  / HTTP/1.1", ""), 400, CODEC),
        ("!space at line end", with("GET / HTTP/1.1 ", ""), 400, CODEC),
        ("!tabs", with("GET\t/\tHTTP/1.1", ""), 400, CODEC),
        ("space before colon", get("X : a\r\n"), 400, CODEC),
        ("space before first field", b"GET / HTTP/1.1\r\n X: a\r\nHost: a\r\n\r\n".to_vec(), 400, CODEC),
        ("no colon", get("X\r\n"), 400, CODEC),
        ("empty name", get(": a\r\n"), 400, CODEC),
        ("bad name", get("X@: a\r\n"), 400, CODEC),
        ("high name", b"GET / HTTP/1.1\r\nHost: a\r\nX\xe9: a\r\n\r\n".to_vec(), 400, CODEC),
        ("pseudo-header", get(":path: /x\r\n"), 400, CODEC),
        ("NUL in value", get("X: a\0b\r\n"), 400, CHARS),
        ("control in value", get("X: a\x01b\r\n"), 400, CHARS),
        ("DEL in value", get("X: a\x7fb\r\n"), 400, CHARS),
        ("no host", b"GET / HTTP/1.1\r\n\r\n".to_vec(), 400, "missing_host_header"),
        ("host with space", b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n".to_vec(), 400, "http.invalid_authority"),
        ("host with slash", b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n".to_vec(), 400, "http.invalid_authority"),
        ("HTTP/1.0", b"GET / HTTP/1.0\r\n\r\n".to_vec(), 426, "low_version"),
        ("HTTP/0.9 with version", b"GET / HTTP/0.9\r\n\r\n".to_vec(), 426, "low_version"),
        ("HTTP/2.0", with("GET / HTTP/2.0", ""), 426, "low_version"),
        ("HTTP/1.2", with("GET / HTTP/1.2", ""), 426, "low_version"),
        ("HTTP/01.1", with("GET / HTTP/01.1", ""), 400, CODEC),
        ("lower-case http", with("GET / http/1.1", ""), 400, CODEC),
        ("no version", b"GET /\r\n\r\n".to_vec(), 426, "low_version"),
        ("unknown method", with("FOO / HTTP/1.1", ""), 400, CODEC),
        ("lower-case method", with("get / HTTP/1.1", ""), 400, CODEC),
        ("bad method", with("G@T / HTTP/1.1", ""), 400, CODEC),
        ("space in path", with("GET /a b HTTP/1.1", ""), 400, CODEC),
        ("high byte in path", b"GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), 400, CODEC),
        ("tab in path", with("GET /a\tb HTTP/1.1", ""), 400, CODEC),
        ("DEL in path", with("GET /\x7f HTTP/1.1", ""), 400, CHARS),
        ("control in path", with("GET /\x01 HTTP/1.1", ""), 400, CHARS),
        ("NUL in path", with("GET /a\0b HTTP/1.1", ""), 400, CHARS),
        ("relative path", with("GET a HTTP/1.1", ""), 400, CODEC),
        ("query only", with("GET ?a HTTP/1.1", ""), 400, CODEC),
        ("GET *", with("GET * HTTP/1.1", ""), 400, "http1.invalid_url"),
        ("ftp", with("GET ftp://h/p HTTP/1.1", ""), 400, "http1.invalid_scheme"),
        ("port too large", with("GET http://h:99999/ HTTP/1.1", ""), 400, "http1.invalid_url"),
        ("no host in URL", with("GET http:///p HTTP/1.1", ""), 400, "http1.invalid_url"),
        ("CONNECT without port", with("CONNECT h HTTP/1.1", ""), 400, "http1.invalid_url"),
        ("CONNECT with path", with("CONNECT h:80/p HTTP/1.1", ""), 400, "http1.invalid_url"),
        ("CONNECT with URL", with("CONNECT http://h:80 HTTP/1.1", ""), 400, "http1.invalid_url"),
        ("CONNECT /", with("CONNECT / HTTP/1.1", ""), 400, "http1.invalid_url"),
        ("CONNECT with body", with("CONNECT h:80 HTTP/1.1", "Content-Length: 3\r\n"), 400, "http1.body_disallowed"),
        ("CONNECT chunked", with("CONNECT h:80 HTTP/1.1", "Transfer-Encoding: chunked\r\n"), 501, TE),
        ("CL and TE", post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"), 400, BOTH),
        ("TE and CL", post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n"), 400, BOTH),
        ("same CL twice", post("Content-Length: 2\r\nContent-Length: 2\r\n", "ab"), 400, CODEC),
        ("two CL", post("Content-Length: 2\r\nContent-Length: 3\r\n", "ab"), 400, CODEC),
        ("CL list", post("Content-Length: 2, 2\r\n", "ab"), 400, CODEC),
        ("CL +", post("Content-Length: +2\r\n", "ab"), 400, CODEC),
        ("CL -", post("Content-Length: -2\r\n", "ab"), 400, CODEC),
        ("CL hex", post("Content-Length: 0x2\r\n", "ab"), 400, CODEC),
        ("CL empty", post("Content-Length:\r\n", ""), 400, CODEC),
        ("CL overflow", post("Content-Length: 18446744073709551616\r\n", "ab"), 400, CODEC),
        ("TE gzip", post("Transfer-Encoding: gzip\r\n", ""), 501, TE),
        ("TE list", post("Transfer-Encoding: gzip, chunked\r\n", ""), 501, TE),
        ("TE twice in one", post("Transfer-Encoding: chunked, chunked\r\n", ""), 501, TE),
        ("TE twice", post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", ""), 501, TE),
        ("TE and identity", post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", ""), 501, TE),
        ("TE empty", post("Transfer-Encoding: \r\n", ""), 501, TE),
        ("TE comma", post("Transfer-Encoding: ,chunked\r\n", ""), 501, TE),
        ("TE vertical tab", post("Transfer-Encoding: \x0bchunked\r\n", ""), 400, CHARS),
        ("nominated x-forwarded-for", get("Connection: x-forwarded-for\r\n"), 400, "http1.connection_header_rejected"),
        ("nominated pseudo-header", get("Connection: :path\r\n"), 400, "http1.connection_header_rejected"),
        ("too many nominated", get("Connection: a,b,c,d,e,f,g,h,i,j,k,l,m\r\n"), 400, "http1.connection_header_rejected"),
        ("101 fields", get(&"X: a\r\n".repeat(100)), 431, "http1.too_many_headers"),
        ("large head", get(&format!("X: {}\r\n", "a".repeat(62_000))), 431, "http1.headers_too_large"),
        ("large URL", with(&format!("GET /{} HTTP/1.1", "a".repeat(62_000)), ""), 431, "http1.headers_too_large"),
        ("TLS", b"\x16\x03\x01\x02\x00\x01".to_vec(), 400, CODEC),
        ("bad first line, no more", b"GET /a b HTTP/1.1\r\n".to_vec(), 400, CODEC),
        ("chunk: LF after extension", chunked("2;a\nab\r\n0\r\n\r\n"), 400, CODEC),
        ("chunk: CR in extension", chunked("2;a\rb\r\nab\r\n0\r\n\r\n"), 400, CODEC),
        ("chunk: bare LF", chunked("2\nab\r\n0\r\n\r\n"), 400, CODEC),
        ("!chunk: bare LF after data", chunked("2\r\nab\n0\r\n\r\n"), 400, CODEC),
        ("chunk: not hex", chunked("xx\r\nab\r\n0\r\n\r\n"), 400, CODEC),
        ("chunk: 0x", chunked("0x2\r\nab\r\n0\r\n\r\n"), 400, CODEC),
        ("chunk: negative", chunked("-2\r\nab\r\n0\r\n\r\n"), 400, CODEC),
        ("chunk: overflow", chunked("10000000000000002\r\nab\r\n0\r\n\r\n"), 400, CODEC),
        ("chunk: space first", chunked(" 2\r\nab\r\n0\r\n\r\n"), 400, CODEC),
        ("chunk: empty size", chunked("\r\n2\r\nab\r\n0\r\n\r\n"), 400, CODEC),
        ("!chunk: data too long", chunked("2\r\nabX\r\n0\r\n\r\n"), 400, CODEC),
        ("!chunk: long extension", chunked(&format!("2;{}\r\nab\r\n0\r\n\r\n", "a".repeat(20_000))), 400, CODEC),
        ("!chunk: many zeros", chunked(&format!("{}2\r\nab\r\n0\r\n\r\n", "0".repeat(20_000))), 400, CODEC),
        ("chunk: bad trailer", chunked("0\r\nT x\r\n\r\n"), 400, CODEC),
        ("chunk: large trailer", chunked(&format!("0\r\nT: {}\r\n\r\n", "x".repeat(70_000))), 431, "http1.headers_too_large"),
        ("!chunk: many trailers", chunked(&format!("0\r\n{}\r\n", "T: x\r\n".repeat(101))), 431, "http1.too_many_headers"),
    ]
}

#[test]
fn hostile_requests_are_refused_with_envoys_details() {
    for (name, bytes, status, details) in hostile() {
        let seen = outcome(&bytes, &ServerOptions::default());
        assert_eq!(seen, Seen::Error(status, details), "{name}");
    }
}

#[test]
fn hostile_requests_fed_byte_by_byte_are_refused_alike() {
    for (name, bytes, status, details) in hostile() {
        let seen = requests(bytes.chunks(1), &ServerOptions::default()).pop();
        assert_eq!(seen, Some(Seen::Error(status, details)), "{name}");
    }
}

#[test]
fn good_requests_pass() {
    let head = |bytes: &[u8]| match whole(bytes).into_iter().next() {
        Some(Seen::Head(head)) => head,
        other => panic!("{other:?}"),
    };
    assert_eq!(head(b"\r\n\r\nGET /a?b HTTP/1.1\r\nHost: h:80\r\nX-Y:  v \t\r\n\r\n"), "GET http h:80 /a?b x-y=v;");
    assert_eq!(head(b"GET / HTTP/1.1\r\nHost:\r\n\r\n"), "GET http  / ");
    assert_eq!(head(&with("GET http://h:80/p?q HTTP/1.1", "")), "GET http h:80 /p?q ");
    assert_eq!(head(b"GET HTTPS://h HTTP/1.1\r\n\r\n"), "GET https h / ");
    assert_eq!(head(&with("GET http://u:p@h/ HTTP/1.1", "")), "GET http h / ");
    assert_eq!(head(&with("OPTIONS http://h HTTP/1.1", "")), "OPTIONS http h / ");
    assert_eq!(head(&with("GET http://[::1]:8080/p HTTP/1.1", "")), "GET http [::1]:8080 /p ");
    assert_eq!(head(&with("OPTIONS * HTTP/1.1", "")), "OPTIONS http a * ");
    assert_eq!(head(b"CONNECT h:80 HTTP/1.1\r\n\r\n"), "CONNECT http h:80  ");
    assert_eq!(head(&with("CONNECT h:80 HTTP/1.1", "Content-Length: 0\r\n")), "CONNECT http h:80  ");
    assert_eq!(head(&with("PROPFIND / HTTP/1.1", "")), "PROPFIND http a / ");
    assert_eq!(head(&with("GET /<>\"`^{}|\\ HTTP/1.1", "")), "GET http a /<>\"`^{}|\\ ");
    assert_eq!(head(&with("GET / HTTP/1.1", &"X: a\r\n".repeat(99))).matches("x=a;").count(), 99);
    assert_eq!(head(&with("GET / HTTP/1.1", "Connection: keep-alive, x-a\r\nX-A: 1\r\nTE: gzip\r\nX-B: 2\r\n")), "GET http a / x-b=2;");
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    assert_eq!(head(&with("GET / HTTP/1.1", upgrade)), "GET http a / connection=Upgrade;upgrade=websocket;");
    let h2c = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n";
    assert_eq!(head(&with("GET / HTTP/1.1", h2c)), "GET http a / ");
    assert_eq!(head(b"GET / HTTP/1.1\r\nHost: a\r\nX: a\xe9b\r\n\r\n"), "GET http a / x=a\u{fffd}b;");
}

#[test]
fn bodies_and_pipelines() {
    let bytes =
        b"POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 0003\r\n\r\nabcPOST /2 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: CHUNKED\r\n\r\n\
        2;x=y \r\nde\r\n00a \t\r\n0123456789\r\n000\r\nT: 1\r\nContent-Length: 9\r\n\r\nGET /3 HTTP/1.1\r\nHost: a\r\n\r\n";
    let expected = vec![
        Seen::Head("POST http a /1 content-length=0003;".into()),
        Seen::Body(b"abc".to_vec()),
        Seen::End,
        Seen::Head("POST http a /2 ".into()),
        Seen::Body(b"de0123456789".to_vec()),
        Seen::Trailers("t=1;".into()),
        Seen::Head("GET http a /3 ".into()),
        Seen::End,
    ];
    assert_eq!(whole(bytes), expected);
    assert_eq!(requests(bytes.chunks(1), &ServerOptions::default()), expected);
}

#[test]
fn a_length_of_exabytes_is_only_a_number() {
    let bytes = with("POST / HTTP/1.1", "Content-Length: 18446744073709551615\r\n");
    let mut buf = BytesMut::from(bytes.as_slice());
    let parsed = RequestParser::default().parse(&mut buf, &ServerOptions::default()).unwrap().unwrap();
    assert_eq!(parsed.framing, Framing::Length(u64::MAX));
    let mut body = BodyDecoder::new(parsed.framing);
    let mut data = BytesMut::from(&b"ab"[..]);
    let limits = request::limits(&ServerOptions::default());
    assert!(matches!(body.decode(&mut data, limits, true), Ok(Some(Event::Data(d))) if d == "ab"));
    assert_eq!(body.remaining(), Some(u64::MAX - 2));
}

#[test]
fn server_options_are_heeded() {
    let mut options = ServerOptions::default();
    options.h1.accept_http_10 = true;
    options.h1.default_host_for_http_10 = "d".into();
    assert_eq!(outcome(b"GET / HTTP/1.0\r\n\r\n", &options), Seen::End);
    assert_eq!(requests([b"GET / HTTP/1.0\r\n\r\n".as_slice()].into_iter(), &options)[0], Seen::Head("GET http d / ".into()));
    assert_eq!(outcome(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", &options), Seen::Error(400, "http1.codec_error"));

    let both = with("POST / HTTP/1.1", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n");
    options.h1.allow_chunked_length = true;
    let seen = requests([both.as_slice(), b"0\r\n\r\n"].into_iter(), &options);
    assert_eq!(seen, vec![Seen::Head("POST http a / ".into()), Seen::End]);

    let odd = with("GET / HTTP/1.1", "X_y: 1\r\nA: 2\r\n");
    options.headers_with_underscores = HeadersWithUnderscores::RejectRequest;
    assert_eq!(outcome(&odd, &options), Seen::Error(400, "http1.unexpected_underscore"));
    options.headers_with_underscores = HeadersWithUnderscores::DropHeader;
    assert_eq!(requests([odd.as_slice()].into_iter(), &options)[0], Seen::Head("GET http a / a=2;".into()));

    options.h1.allow_custom_methods = true;
    assert_eq!(outcome(&with("foo / HTTP/1.1", ""), &options), Seen::End);
    options.h1.allow_absolute_url = false;
    assert_eq!(
        requests([with("GET http://h/ HTTP/1.1", "").as_slice()].into_iter(), &options)[0],
        Seen::Head("GET http a http://h/ ".into())
    );
    options.h1.ignore_upgrades = vec!["tls/1.0".into()];
    let tls = with("GET / HTTP/1.1", "Connection: upgrade\r\nUpgrade: TLS/1.0\r\n");
    assert_eq!(requests([tls.as_slice()].into_iter(), &options)[0], Seen::Head("GET http a / ".into()));
    options.max_headers_count = 200;
    assert_eq!(outcome(&with("GET / HTTP/1.1", &"X: a\r\n".repeat(199)), &options), Seen::End);
    assert_eq!(outcome(&with("GET / HTTP/1.1", &"X: a\r\n".repeat(200)), &options), Seen::Error(431, "http1.too_many_headers"));
}

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

/// Pieces of requests, good and bad, that a generator strings together.
const PIECES: &[&str] = &[
    "GET / HTTP/1.1\r\n",
    "POST /p?q HTTP/1.1\r\n",
    "GET http://h/x HTTP/1.1\r\n",
    "CONNECT h:1 HTTP/1.1\r\n",
    "Host: a\r\n",
    "Host: a\r\n",
    "Host: a\r\n\r\n",
    "Content-Length: 3\r\n",
    "Content-Length: 0\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding: chunked\r\n\r\n",
    "\r\n",
    "\r\n",
    "abc",
    "3\r\nabc\r\n",
    "0\r\n\r\n",
    "0\r\nt: 1\r\n\r\n",
    "a;b=c\r\n0123456789\r\n",
    "X: y\r\n",
    "X : y\r\n",
    "\n",
    "\r",
    " ",
    "\t",
    "\0",
    ":",
    "Connection: close\r\n",
    "Connection: x\r\n",
    "Expect: 100-continue\r\n",
    "FFFFFFFFFFFFFFFF\r\n",
    "\u{e9}",
];

proptest! {
    #[test]
    fn splits_do_not_matter(pieces in prop::collection::vec(0..PIECES.len(), 0..24), cuts in prop::collection::vec(1_usize..9, 1..40)) {
        let bytes: Vec<u8> = pieces.iter().flat_map(|i| PIECES[*i].bytes()).collect();
        let mut rest = bytes.as_slice();
        let mut split = Vec::new();
        for cut in cuts.iter().cycle() {
            if rest.is_empty() { break; }
            let (piece, tail) = rest.split_at((*cut).min(rest.len()));
            split.push(piece);
            rest = tail;
        }
        let options = ServerOptions::default();
        prop_assert_eq!(requests(split.into_iter(), &options), whole(&bytes));
    }

    #[test]
    fn what_is_written_is_read_again(
        path in "/[!-~]{0,40}",
        authority in "[a-z0-9.-]{1,20}(:[0-9]{1,4})?",
        fields_in in prop::collection::vec(("x-[a-z0-9-]{1,10}", prop::collection::vec(any::<u8>(), 0..30)), 0..10),
        body in prop::option::of(prop::collection::vec(prop::collection::vec(any::<u8>(), 1..50), 0..6)),
    ) {
        let mut head = RequestHead::new(Method::POST, authority.as_str(), path.as_str());
        for (name, value) in &fields_in {
            if let Ok(value) = HeaderValue::from_bytes(value.trim_ascii()) {
                head.headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value);
            }
        }
        let mut out = Vec::new();
        let options = H1Options::default();
        encode::request(&mut out, &head, body.is_none(), &options).unwrap();
        for chunk in body.iter().flatten() {
            encode::chunk_size(&mut out, chunk.len());
            out.extend_from_slice(chunk);
            out.extend_from_slice(b"\r\n");
        }
        if body.is_some() {
            encode::last_chunk(&mut out, None, &options);
        }
        let seen = whole(&out);
        let length = if body.is_none() { "content-length=0;" } else { "" };
        let mut expected = vec![Seen::Head(format!("POST http {authority} {path} {}{length}", fields(&head.headers)))];
        let all: Vec<u8> = body.iter().flatten().flatten().copied().collect();
        if !all.is_empty() {
            expected.push(Seen::Body(all));
        }
        expected.push(Seen::End);
        prop_assert_eq!(seen, expected);
    }

    #[test]
    fn responses_never_panic_and_splits_do_not_matter(pieces in prop::collection::vec(0..PIECES.len(), 0..16), status in 0_u16..700, cut in 1_usize..20) {
        let mut bytes = format!("HTTP/1.1 {status} x\r\n").into_bytes();
        bytes.extend(pieces.iter().flat_map(|i| PIECES[*i].bytes()));
        let read = |step: usize| {
            let (mut parser, mut buf, options) = (ResponseParser::default(), BytesMut::new(), ClientOptions::default());
            for piece in bytes.chunks(step) {
                buf.extend_from_slice(piece);
                match parser.parse(&mut buf, &options, Asked::default()) {
                    Ok(None) => {}
                    Ok(Some(p)) => return Ok(Some((p.head.status, p.framing, fields(&p.head.headers)))),
                    Err(e) => return Err(e),
                }
            }
            Ok(None)
        };
        prop_assert_eq!(read(cut).is_ok(), read(bytes.len()).is_ok());
        if let (Ok(a), Ok(b)) = (read(cut), read(bytes.len())) {
            prop_assert_eq!(a, b);
        }
    }
}

#[test]
fn bytes_are_not_copied_out_of_the_read_buffer() {
    let mut buf = BytesMut::from(&b"GET / HTTP/1.1\r\nHost: abc\r\n\r\n"[..]);
    let base = buf.as_ptr() as usize..buf.as_ptr() as usize + buf.len();
    let head = RequestParser::default().parse(&mut buf, &ServerOptions::default()).unwrap().unwrap().head;
    let host: &Bytes = head.authority.as_bytes();
    assert!(base.contains(&(host.as_ptr() as usize)));
}
