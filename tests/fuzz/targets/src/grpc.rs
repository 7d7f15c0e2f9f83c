//! gRPC's frames as clients and services send them: nothing panics, splits do not matter, and what is written is read again.

use bytes::Bytes;
use nuncio_callout::frame::{Decoder, encode};
use nuncio_core::{Body, Frame, test_kit};
use nuncio_filters::grpc_stats::frames::Counter;
use nuncio_filters::grpc_web::body::{Decoded, Encoded};
use nuncio_proto::Struct;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

/// The largest message that is taken.
const MAX: usize = 4096;

/// Messages that came, and the code of the error that ended them, if one did.
fn decoded<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<Struct>, Option<u32>) {
    let (mut decoder, mut messages) = (Decoder::new(MAX), Vec::new());
    for piece in pieces {
        decoder.push(piece);
        loop {
            match decoder.next_message::<Struct>() {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(error) => return (messages, Some(error.code)),
            }
        }
    }
    (messages, None)
}

fn counted<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> u64 {
    let mut counter = Counter::default();
    pieces.map(|piece| counter.inspect(piece)).sum()
}

/// What the proxy's own calls read, and what is counted of clients' streams. The first byte says how the bytes are cut.
pub fn frames(data: &[u8]) {
    let Some((&step, bytes)) = data.split_first() else { return };
    let step = usize::from(step) + 1;
    let whole = decoded(std::iter::once(bytes));
    // NaN is not equal to itself.
    let shown = |(messages, error): &(Vec<Struct>, Option<u32>)| format!("{messages:?} {error:?}");
    assert_eq!(shown(&whole), shown(&decoded(bytes.chunks(step))));
    assert_eq!(counted(std::iter::once(bytes)), counted(bytes.chunks(step)));
    let wire: Vec<u8> = whole.0.iter().flat_map(|message| encode(message).to_vec()).collect();
    assert_eq!(counted(std::iter::once(wire.as_slice())), whole.0.len() as u64);
    if whole.0.iter().all(|message| nuncio_proto::Message::encoded_len(message) <= MAX) {
        assert_eq!(shown(&(whole.0, None)), shown(&decoded(wire.chunks(step))));
    }
}

/// Everything that a body gives that is ready at all times; none if it fails.
fn collected(mut body: Body) -> Option<(Vec<u8>, Option<usize>)> {
    let mut future = pin!(test_kit::collect(&mut body));
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok((data, trailers))) => Some((data.to_vec(), trailers.map(|t| t.len()))),
        Poll::Ready(Err(_)) => None,
        Poll::Pending => panic!("nobody would wake it"),
    }
}

fn body<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Body {
    test_kit::body(pieces.map(|piece| Frame::Data(Bytes::copy_from_slice(piece))).collect::<Vec<_>>())
}

/// gRPC-Web: base64 of clients in, base64 out. The first byte says how the bytes are cut.
pub fn web(data: &[u8]) {
    let Some((&step, bytes)) = data.split_first() else { return };
    let step = usize::from(step) + 1;
    let decode = |pieces: Body| collected(Body::Stream(Box::new(Decoded::new(pieces))));
    let whole = decode(body(std::iter::once(bytes)));
    assert_eq!(whole, decode(body(bytes.chunks(step))));
    let text = collected(Body::Stream(Box::new(Encoded::new(body(bytes.chunks(step)), true, |_: &_| {})))).unwrap().0;
    let back = decode(body(text.chunks(step))).unwrap().0;
    assert!(back.starts_with(bytes), "{text:?}");
}
