//! Any input: splits change nothing, nothing panics, and what is written is what is read again.

use super::{Seen, fields, requests, whole};
use crate::h1::encode;
use crate::h1::response::{Asked, ResponseParser};
use crate::options::{ClientOptions, H1Options, ServerOptions};
use bytes::BytesMut;
use http::{HeaderName, HeaderValue, Method};
use nuncio_core::RequestHead;
use proptest::prelude::*;

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
