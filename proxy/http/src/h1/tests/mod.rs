//! The machines of this module without a transport: hostile input, resumption at any byte, and what is written is what is
//! read again.

mod properties;
mod requests;
mod responses;

use crate::h1::body::BodyDecoder;
use crate::h1::chunked::Event;
use crate::h1::request::{self, RequestParser};
use crate::options::ServerOptions;
use bytes::BytesMut;
use nuncio_core::Headers;

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
