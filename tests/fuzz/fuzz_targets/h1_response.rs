//! Response heads and bodies: nothing panics, it does not matter how the bytes arrive, and what is accepted is written to a
//! client as exactly one response that reads the same (no splitting through us).
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use nuncio_core::HttpVersion;
use nuncio_http::h1::body::{BodyDecoder, Framing};
use nuncio_http::h1::chunked::Event;
use nuncio_http::h1::encode::{self, After};
use nuncio_http::h1::response::{Asked, ParsedResponse, ResponseParser, limits};
use nuncio_http::{ClientOptions, H1Options};

#[derive(Debug, PartialEq)]
enum Seen {
    Head(u16, Vec<(String, Vec<u8>)>, Framing),
    Body(Vec<u8>),
    Trailers(usize),
    End,
    Error,
}

fn run<'a>(pieces: impl Iterator<Item = &'a [u8]>, options: &ClientOptions, asked: Asked) -> (Vec<Seen>, Vec<ParsedResponse>) {
    let (mut parser, mut buf) = (ResponseParser::default(), BytesMut::new());
    let (mut seen, mut heads) = (Vec::new(), Vec::new());
    let mut body: Option<BodyDecoder> = None;
    for piece in pieces {
        buf.extend_from_slice(piece);
        loop {
            let Some(decoder) = &mut body else {
                match parser.parse(&mut buf, options, asked) {
                    Ok(Some(parsed)) => {
                        let fields = parsed.head.headers.iter().map(|(n, v)| (n.as_str().to_string(), v.as_bytes().to_vec())).collect();
                        seen.push(Seen::Head(parsed.head.status.as_u16(), fields, parsed.framing));
                        if !parsed.informational {
                            body = Some(BodyDecoder::new(parsed.framing));
                        }
                        heads.push(parsed);
                        continue;
                    }
                    Ok(None) => break,
                    Err(_) => {
                        seen.push(Seen::Error);
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
                    seen.push(Seen::Error);
                    return (seen, heads);
                }
            }
        }
    }
    (seen, heads)
}

fuzz_target!(|data: &[u8]| {
    let Some((&step, bytes)) = data.split_first() else { return };
    let options = ClientOptions { max_headers_kb: 1, max_headers_count: 20, ..ClientOptions::default() };
    let asked = Asked { head: step & 0xc0 == 0x40, connect: step & 0xc0 == 0x80, upgrade: step & 0xc0 == 0xc0 };
    let (whole, heads) = run(std::iter::once(bytes), &options, asked);
    let (split, _) = run(bytes.chunks(usize::from(step & 0x3f) + 1), &options, asked);
    assert_eq!(whole, split);

    for parsed in heads.into_iter().filter(|p| !p.informational && !p.upgraded) {
        let mut out = Vec::new();
        let framing = encode::response(&mut out, &parsed.head, asked, HttpVersion::Http11, None, After::KeepAlive, &H1Options::default());
        let again = ClientOptions { max_headers_kb: 8, ..ClientOptions::default() };
        let mut buf = BytesMut::from(out.as_slice());
        match ResponseParser::default().parse(&mut buf, &again, asked) {
            Ok(Some(second)) => {
                assert!(buf.is_empty(), "more than one message: {:?}", String::from_utf8_lossy(&out));
                assert_eq!(second.head.status, parsed.head.status);
                let same = second.framing == framing || (framing == Framing::Length(0) && second.framing == Framing::None);
                assert!(same, "{framing:?} written, {:?} read", second.framing);
            }
            other => panic!("written but not read: {other:?}: {:?}", String::from_utf8_lossy(&out)),
        }
    }
});
