//! A body that counts gRPC messages as their first byte passes.

use nuncio_core::{Body, BodySource, Frame, Headers, StreamError};
use std::task::{Context, Poll};

/// Flags and length.
const HEADER: u64 = 5;

/// Where in the message stream we are.
#[derive(Debug, Default)]
pub struct Counter {
    /// Bytes of the current message's header that were seen.
    header: u64,
    /// Length so far, then bytes of the message that are still to come.
    length: u64,
}

impl Counter {
    /// Takes the next bytes; gives the number of messages that begin in them.
    pub fn inspect(&mut self, mut data: &[u8]) -> u64 {
        let mut begun = 0;
        loop {
            if self.header == HEADER {
                let skip = usize::try_from(self.length).unwrap_or(usize::MAX).min(data.len());
                self.length -= skip as u64;
                data = data.get(skip..).unwrap_or_default();
                if self.length > 0 {
                    return begun;
                }
                self.header = 0;
            }
            let Some((byte, rest)) = data.split_first() else { return begun };
            data = rest;
            if self.header == 0 {
                begun += 1;
                self.length = 0;
            } else {
                self.length = self.length << 8 | u64::from(*byte);
            }
            self.header += 1;
        }
    }
}

/// What passes in a body.
pub enum Seen<'a> {
    /// So many messages begin.
    Messages(u64),
    Trailers(&'a Headers),
}

/// Calls `see` for what passes in `inner`.
pub fn watch(inner: Body, see: impl FnMut(Seen<'_>) + 'static) -> Body {
    Body::Stream(Box::new(Watched { inner, counter: Counter::default(), see }))
}

struct Watched<F> {
    inner: Body,
    counter: Counter,
    see: F,
}

impl<F: FnMut(Seen<'_>)> BodySource for Watched<F> {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        let frame = self.inner.poll_frame(cx);
        match &frame {
            Poll::Ready(Some(Ok(Frame::Data(data)))) => {
                let begun = self.counter.inspect(data);
                if begun > 0 {
                    (self.see)(Seen::Messages(begun));
                }
            }
            Poll::Ready(Some(Ok(Frame::Trailers(trailers)))) => (self.see)(Seen::Trailers(trailers)),
            _ => {}
        }
        frame
    }
    fn remaining(&self) -> Option<u64> {
        self.inner.remaining()
    }
    fn is_end(&self) -> bool {
        self.inner.is_end()
    }
    fn inner(&mut self) -> Option<&mut Body> {
        Some(&mut self.inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A body that gives up as soon as nobody reads, and knows that it was sent.
    struct Impatient(std::rc::Rc<std::cell::Cell<bool>>);
    impl BodySource for Impatient {
        fn poll_frame(&mut self, _cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
            Poll::Pending
        }
        fn poll_stalled(&mut self, _cx: &mut Context<'_>) -> Poll<StreamError> {
            Poll::Ready(StreamError::LocalReset("stalled"))
        }
        fn on_sent(&mut self) {
            self.0.set(true);
        }
    }

    #[test]
    fn the_body_inside_hears_that_nobody_reads() {
        let sent = std::rc::Rc::default();
        let mut body = watch(Body::Stream(Box::new(Impatient(std::rc::Rc::clone(&sent)))), |_| {});
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert_eq!(body.poll_stalled(&mut cx), Poll::Ready(StreamError::LocalReset("stalled")));
        body.on_sent();
        assert!(sent.get());
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(messages in proptest::collection::vec(0usize..40, 0..8), cut in 1usize..9) {
            let mut wire = Vec::new();
            for length in &messages {
                wire.extend_from_slice(&[0, 0, 0, 0, *length as u8]);
                wire.resize(wire.len() + length, 0xff);
            }
            let mut counter = Counter::default();
            let counted: u64 = wire.chunks(cut).map(|piece| counter.inspect(piece)).sum();
            prop_assert_eq!(counted, messages.len() as u64);
        }
        #[test]
        fn any_bytes(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut counter = Counter::default();
            prop_assert!(counter.inspect(&data) <= data.len() as u64);
        }
    }
}
