//! A body that counts gRPC messages as their first byte passes.

use nuncio_core::{Body, BodySource, Frame, StreamError};
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

/// A body with a counter.
pub struct Watched<F> {
    inner: Body,
    counter: Counter,
    on_messages: F,
}

impl<F: Fn(u64)> Watched<F> {
    /// Calls `on_messages` with the number of messages that begin in each piece of data, if any do.
    pub fn new(inner: Body, on_messages: F) -> Self {
        Self { inner, counter: Counter::default(), on_messages }
    }
}

impl<F: Fn(u64)> BodySource for Watched<F> {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        let frame = self.inner.poll_frame(cx);
        if let Poll::Ready(Some(Ok(Frame::Data(data)))) = &frame {
            let begun = self.counter.inspect(data);
            if begun > 0 {
                (self.on_messages)(begun);
            }
        }
        frame
    }
    fn remaining(&self) -> Option<u64> {
        self.inner.remaining()
    }
    fn is_end(&self) -> bool {
        self.inner.is_end()
    }
    fn on_sent(&mut self) {
        self.inner.on_sent();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
