//! Requests: what is refused, as Envoy refuses it, and what passes.

use super::{Seen, outcome, requests, whole, with};
use crate::h1::body::{BodyDecoder, Framing};
use crate::h1::chunked::Event;
use crate::h1::request::{self, RequestParser};
use crate::options::{HeadersWithUnderscores, ServerOptions};
use bytes::{Bytes, BytesMut};

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

/// Streams live for days; what bounds extensions must not bound them.
#[test]
fn a_body_may_have_any_number_of_chunks() {
    let body = |chunk: &str, chunks: usize| {
        let head = with("POST / HTTP/1.1", "Transfer-Encoding: chunked\r\n");
        let bytes = [head, chunk.as_bytes().repeat(chunks), b"0\r\n\r\n".to_vec()].concat();
        requests(bytes.chunks(64 * 1024), &ServerOptions::default()).pop()
    };
    assert_eq!(body("1\r\nx\r\n", 100_000), Some(Seen::End));
    let signed = format!("40;chunk-signature={}\r\n{}\r\n", "f".repeat(64), "x".repeat(64));
    assert_eq!(body(&signed, 10_000), Some(Seen::End));
    assert_eq!(body("1;some-name=a-long-value-for-one-byte\r\nx\r\n", 10_000), Some(Seen::Error(400, "http1.codec_error")));
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

#[test]
fn bytes_are_not_copied_out_of_the_read_buffer() {
    let mut buf = BytesMut::from(&b"GET / HTTP/1.1\r\nHost: abc\r\n\r\n"[..]);
    let base = buf.as_ptr() as usize..buf.as_ptr() as usize + buf.len();
    let head = RequestParser::default().parse(&mut buf, &ServerOptions::default()).unwrap().unwrap().head;
    let host: &Bytes = head.authority.as_bytes();
    assert!(base.contains(&(host.as_ptr() as usize)));
}
