//! HTTP/1 messages of both directions: nothing panics, it does not matter how the bytes arrive, and what is accepted is written as exactly
//! one message that reads the same (no smuggling, no splitting through us).

use bytes::BytesMut;
use nuncio_core::{Headers, HttpVersion};
use nuncio_http::h1::body::{BodyDecoder, Framing};
use nuncio_http::h1::chunked::Event;
use nuncio_http::h1::encode::{self, After};
use nuncio_http::h1::head::Limits;
use nuncio_http::h1::request::{self, ParsedRequest, RequestParser};
use nuncio_http::h1::response::{self, Asked, ParsedResponse, ResponseParser};
use nuncio_http::{ClientOptions, H1Options, ServerOptions};

/// What a connection shows, in order.
#[derive(Debug, PartialEq)]
enum Seen {
    Head(String, Framing),
    Body(Vec<u8>),
    Trailers(usize),
    End,
    Error(u16),
}

/// A head that was read: what is shown of it, its body (none: another head follows at once), and whether the connection is HTTP no more.
struct Read {
    shown: String,
    framing: Framing,
    body: bool,
    last: bool,
}

fn fields(headers: &Headers) -> String {
    let fields: Vec<_> = headers.iter().map(|(n, v)| (n.as_str().to_string(), v.as_bytes().to_vec())).collect();
    format!("{fields:?}")
}

/// Reads messages from `pieces` until they end or one is refused.
fn run<'a>(
    pieces: impl Iterator<Item = &'a [u8]>,
    limits: Limits,
    mut head: impl FnMut(&mut BytesMut) -> Result<Option<Read>, u16>,
) -> Vec<Seen> {
    let (mut buf, mut seen) = (BytesMut::new(), Vec::new());
    let mut body: Option<BodyDecoder> = None;
    for piece in pieces {
        buf.extend_from_slice(piece);
        loop {
            let Some(decoder) = &mut body else {
                match head(&mut buf) {
                    Ok(Some(read)) => {
                        seen.push(Seen::Head(read.shown, read.framing));
                        body = read.body.then(|| BodyDecoder::new(read.framing));
                        if read.last {
                            return seen;
                        }
                        continue;
                    }
                    Ok(None) => break,
                    Err(status) => {
                        seen.push(Seen::Error(status));
                        return seen;
                    }
                }
            };
            match decoder.decode(&mut buf, limits, true) {
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
                    return seen;
                }
            }
        }
    }
    seen
}

fn requests<'a>(pieces: impl Iterator<Item = &'a [u8]>, options: &ServerOptions) -> (Vec<Seen>, Vec<ParsedRequest>) {
    let (mut parser, mut heads) = (RequestParser::default(), Vec::new());
    let seen = run(pieces, request::limits(options), |buf| match parser.parse(buf, options) {
        Ok(Some(parsed)) => {
            let h = &parsed.head;
            let shown = format!("{} {} {} {}", h.method, h.authority, h.path, fields(&h.headers));
            let read = Read { shown, framing: parsed.framing, body: true, last: parsed.upgrade };
            heads.push(parsed);
            Ok(Some(read))
        }
        Ok(None) => Ok(None),
        Err(error) => Err(error.status.as_u16()),
    });
    (seen, heads)
}

fn responses<'a>(pieces: impl Iterator<Item = &'a [u8]>, options: &ClientOptions, asked: Asked) -> (Vec<Seen>, Vec<ParsedResponse>) {
    let (mut parser, mut heads) = (ResponseParser::default(), Vec::new());
    let seen = run(pieces, response::limits(options), |buf| match parser.parse(buf, options, asked) {
        Ok(Some(parsed)) => {
            let shown = format!("{} {}", parsed.head.status, fields(&parsed.head.headers));
            let read = Read { shown, framing: parsed.framing, body: !parsed.informational, last: false };
            heads.push(parsed);
            Ok(Some(read))
        }
        Ok(None) => Ok(None),
        Err(_) => Err(502),
    });
    (seen, heads)
}

/// Requests. The first byte chooses options and how the bytes are cut.
pub fn request(data: &[u8]) {
    let Some((&step, bytes)) = data.split_first() else { return };
    let mut options = ServerOptions { max_headers_kb: 1, max_headers_count: 20, ..ServerOptions::default() };
    options.h1.accept_http_10 = step & 0x80 != 0;
    options.h1.allow_chunked_length = step & 0x40 != 0;
    let (whole, heads) = requests(std::iter::once(bytes), &options);
    let (split, _) = requests(bytes.chunks(usize::from(step & 0x3f) + 1), &options);
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
}

/// Responses. The first byte chooses what was asked and how the bytes are cut.
pub fn response(data: &[u8]) {
    let Some((&step, bytes)) = data.split_first() else { return };
    let options = ClientOptions { max_headers_kb: 1, max_headers_count: 20, ..ClientOptions::default() };
    let asked = Asked { head: step & 0xc0 == 0x40, connect: step & 0xc0 == 0x80, upgrade: step & 0xc0 == 0xc0 };
    let (whole, heads) = responses(std::iter::once(bytes), &options, asked);
    let (split, _) = responses(bytes.chunks(usize::from(step & 0x3f) + 1), &options, asked);
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
}
