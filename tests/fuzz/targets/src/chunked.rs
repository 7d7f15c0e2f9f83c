//! Chunked bodies: nothing panics, splits do not matter, what is decoded survives encoding, and no byte is taken beyond the
//! end of the body.
use bytes::{Bytes, BytesMut};
use nuncio_http::H1Options;
use nuncio_http::h1::chunked::{ChunkDecoder, Event};
use nuncio_http::h1::encode;
use nuncio_http::h1::head::Limits;

const LIMITS: Limits = Limits { bytes: 1024, count: 20 };

/// Body, trailers and the bytes that were left; none if it was refused or is not complete.
fn run<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Option<(Vec<u8>, usize, Bytes)> {
    let (mut decoder, mut buf, mut body) = (ChunkDecoder::default(), BytesMut::new(), Vec::new());
    let mut end = None;
    for piece in pieces {
        buf.extend_from_slice(piece);
        while end.is_none() {
            match decoder.decode(&mut buf, LIMITS, true) {
                Ok(Some(Event::Data(data))) => {
                    assert!(!data.is_empty());
                    body.extend_from_slice(&data);
                }
                Ok(Some(Event::Trailers(trailers))) => end = Some(trailers.len()),
                Ok(Some(Event::End)) => end = Some(0),
                Ok(None) => break,
                Err(_) => return None,
            }
        }
    }
    end.map(|trailers| (body, trailers, buf.freeze()))
}

/// The target.
pub fn check(data: &[u8]) {
    let Some((&step, bytes)) = data.split_first() else { return };
    let whole = run(std::iter::once(bytes));
    assert_eq!(whole, run(bytes.chunks(usize::from(step) + 1)));
    let Some((body, _, rest)) = whole else { return };
    assert!(bytes.ends_with(&rest));
    let mut out = Vec::new();
    for chunk in body.chunks(usize::from(step) + 1) {
        encode::chunk_size(&mut out, chunk.len());
        out.extend_from_slice(chunk);
        out.extend_from_slice(b"\r\n");
    }
    encode::last_chunk(&mut out, None, &H1Options::default());
    assert_eq!(run(std::iter::once(out.as_slice())), Some((body, 0, Bytes::new())));
}
