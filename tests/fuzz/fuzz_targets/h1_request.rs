//! Request heads and bodies: nothing panics, it does not matter how the bytes arrive, and what is accepted is written as
//! exactly one request that reads the same (no smuggling through us).
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use nuncio_core::{HttpVersion, RequestHead};
use nuncio_http::h1::body::{BodyDecoder, Framing};
use nuncio_http::h1::chunked::Event;
use nuncio_http::h1::encode;
use nuncio_http::h1::request::{ParsedRequest, RequestParser, limits};
use nuncio_http::{H1Options, ServerOptions};

#[derive(Debug, PartialEq)]
enum Seen {
    Head(String, Framing),
    Body(Vec<u8>),
    Trailers(usize),
    End,
    Error(u16),
}

fn show(head: &RequestHead) -> String {
    let fields: Vec<_> = head.headers.iter().map(|(n, v)| (n.as_str().to_string(), v.as_bytes().to_vec())).collect();
    format!("{} {} {} {:?}", head.method, head.authority, head.path, fields)
}

fn run<'a>(pieces: impl Iterator<Item = &'a [u8]>, options: &ServerOptions) -> (Vec<Seen>, Vec<ParsedRequest>) {
    let (mut parser, mut buf) = (RequestParser::default(), BytesMut::new());
    let (mut seen, mut heads) = (Vec::new(), Vec::new());
    let mut body: Option<BodyDecoder> = None;
    for piece in pieces {
        buf.extend_from_slice(piece);
        loop {
            let Some(decoder) = &mut body else {
                match parser.parse(&mut buf, options) {
                    Ok(Some(parsed)) => {
                        seen.push(Seen::Head(show(&parsed.head), parsed.framing));
                        let upgrade = parsed.upgrade;
                        body = Some(BodyDecoder::new(parsed.framing));
                        heads.push(parsed);
                        if upgrade {
                            return (seen, heads);
                        }
                        continue;
                    }
                    Ok(None) => break,
                    Err(error) => {
                        seen.push(Seen::Error(error.status.as_u16()));
                        return (seen, heads);
                    }
                }
            };
            match decoder.decode(&mut buf, limits(options), true) {
                Ok(Some(Event::Data(data))) => match seen.last_mut() {
                    Some(Seen::Body(all)) => all.extend_from_slice(&data),
                    _ => seen.push(Seen::Body(data.to_vec())),
                },
                Ok(Some(Event::Trailers(trailers))) => {
                    seen.push(Seen::Trailers(trailers.len()));
                    body = None;
                }
                Ok(Some(Event::End)) => {
                    seen.push(Seen::End);
                    body = None;
                }
                Ok(None) => break,
                Err(_) => {
                    seen.push(Seen::Error(400));
                    return (seen, heads);
                }
            }
        }
    }
    (seen, heads)
}

fuzz_target!(|data: &[u8]| {
    let Some((&step, bytes)) = data.split_first() else { return };
    let mut options = ServerOptions { max_headers_kb: 1, max_headers_count: 20, ..ServerOptions::default() };
    options.h1.accept_http_10 = step & 0x80 != 0;
    options.h1.allow_chunked_length = step & 0x40 != 0;
    let (whole, heads) = run(std::iter::once(bytes), &options);
    let (split, _) = run(bytes.chunks(usize::from(step & 0x3f) + 1), &options);
    assert_eq!(whole, split);

    for parsed in heads {
        let mut out = Vec::new();
        let end = parsed.framing == Framing::None;
        let Ok((framing, _)) = encode::request(&mut out, &parsed.head, end, &H1Options::default()) else {
            continue;
        };
        assert_eq!(matches!(framing, Framing::None), end);
        let again = ServerOptions { max_headers_kb: 8, ..ServerOptions::default() };
        let mut buf = BytesMut::from(out.as_slice());
        match RequestParser::default().parse(&mut buf, &again) {
            Ok(Some(second)) => {
                assert!(buf.is_empty(), "more than one message: {:?}", String::from_utf8_lossy(&out));
                assert_eq!((&second.head.method, &second.head.path), (&parsed.head.method, &parsed.head.path));
                assert_eq!(second.head.authority, parsed.head.authority);
                assert_eq!(second.framing, framing);
                assert_eq!(second.upgrade, parsed.upgrade);
                assert_eq!(second.head.version, HttpVersion::Http11);
            }
            other => panic!("written but not read: {other:?}: {:?}", String::from_utf8_lossy(&out)),
        }
    }
});
