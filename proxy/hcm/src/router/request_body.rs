//! The request's body on its way upstream: pumped frame by frame as the upstream takes it, kept for a retry while the route
//! may still retry and the limit allows, and copied to mirrors. Belongs to one worker.

use super::mirror::Tee;
use bytes::{Bytes, BytesMut};
use nuncio_core::{Body, Frame, Headers, StreamError};
use nuncio_upstream::UpstreamStream;
use std::collections::VecDeque;
use std::task::{Context, Poll};

/// Who failed while the body was pumped.
#[derive(Debug)]
pub enum PumpError {
    /// The client: its body broke off.
    Downstream(StreamError),
    /// The upstream: it takes no more.
    Upstream,
}

/// Sends the request's body.
pub struct RequestPump {
    source: Body,
    /// What the current attempt must still send before it reads on: the replay of a retry, or a frame that had no room.
    queue: VecDeque<Frame>,
    /// What was read so far, for a retry; none once it may not be kept.
    kept: Option<Kept>,
    /// The source has ended.
    ended: bool,
    /// The end was sent on the current attempt.
    sent_end: bool,
    /// Frames that came from the client.
    frames: u64,
    overflowed: bool,
    tees: Vec<Tee>,
}

/// Pieces up to this size are put together when they are kept: many one-byte chunks would cost many times their bytes.
const SMALL: usize = 512;

#[derive(Default)]
struct Kept {
    data: Vec<Bytes>,
    /// Small pieces that follow `data`.
    tail: BytesMut,
    trailers: Option<Box<Headers>>,
    bytes: usize,
    limit: usize,
}

impl Kept {
    /// Adds a piece. False if that is more than may be kept.
    fn push(&mut self, piece: &Bytes) -> bool {
        self.bytes += piece.len();
        // The first piece is mostly the only one, and is not copied.
        if piece.len() <= SMALL && !self.data.is_empty() {
            self.tail.extend_from_slice(piece);
        } else {
            self.close_tail();
            self.data.push(piece.clone());
        }
        self.bytes <= self.limit
    }
    fn close_tail(&mut self) {
        if !self.tail.is_empty() {
            self.data.push(std::mem::take(&mut self.tail).freeze());
        }
    }
    /// All pieces in order.
    fn pieces(&mut self) -> &mut Vec<Bytes> {
        self.close_tail();
        &mut self.data
    }
}

impl RequestPump {
    /// A pump of `source`; up to `limit` bytes are kept for retries if `keep`.
    pub fn new(source: Body, keep: bool, limit: usize, tees: Vec<Tee>) -> Self {
        let ended = source.is_end() && !matches!(source, Body::Full(ref b) if !b.is_empty());
        Self {
            source,
            queue: VecDeque::new(),
            kept: keep.then(|| Kept { limit, ..Kept::default() }),
            ended,
            sent_end: ended,
            frames: 0,
            overflowed: false,
            tees,
        }
    }
    /// Whether there is no body at all: the head ends the request.
    pub fn is_empty(&self) -> bool {
        self.ended && self.queue.is_empty() && self.kept.as_ref().is_none_or(|k| k.data.is_empty() && k.trailers.is_none())
    }
    /// Frames that came from the client so far: more of them is progress of the stream.
    pub fn frames(&self) -> u64 {
        self.frames
    }
    /// Whether all of the body is there, sent or not.
    pub fn is_whole(&self) -> bool {
        self.ended || matches!(self.source, Body::Full(_))
    }
    /// Whether the client's request is complete.
    pub fn received_all(&self) -> bool {
        self.ended
    }
    /// Whether everything was handed to the current attempt.
    pub fn is_done(&self) -> bool {
        self.sent_end
    }
    /// Whether another attempt could send the whole body again.
    pub fn can_replay(&self) -> bool {
        self.kept.is_some()
    }
    /// Whether the body was to be kept, and was too large for that.
    pub fn overflowed(&self) -> bool {
        self.overflowed
    }
    /// Starts over for another attempt. False if what was read is gone.
    pub fn rewind(&mut self) -> bool {
        let Some(kept) = &mut self.kept else { return false };
        self.queue = kept.pieces().iter().cloned().map(Frame::Data).collect();
        if let Some(trailers) = &kept.trailers {
            self.queue.push_back(Frame::Trailers(trailers.clone()));
        }
        self.sent_end = self.is_empty();
        true
    }
    /// Splits off what the current attempt must still send of a complete request, so that this pump can serve another attempt.
    pub fn detach(&mut self) -> Self {
        Self {
            source: Body::Empty,
            queue: std::mem::take(&mut self.queue),
            kept: None,
            ended: self.ended,
            sent_end: self.sent_end,
            frames: self.frames,
            overflowed: false,
            tees: Vec::new(),
        }
    }
    /// Takes the body of a complete request that was kept in full, for a request that follows this one. Trailers do not go with it.
    pub fn take_kept(&mut self) -> Body {
        let Some(mut kept) = self.kept.take() else { return Body::Empty };
        let pieces = kept.pieces();
        match (pieces.pop(), pieces.is_empty()) {
            (None, _) => Body::Empty,
            (Some(only), true) => Body::Full(only),
            (Some(last), false) => {
                pieces.push(last);
                Body::Full(pieces.concat().into())
            }
        }
    }
    /// The body itself, of which nothing was sent yet.
    pub fn into_source(self) -> Body {
        self.source
    }
    /// The upstream takes no more of the body: the rest is not read.
    pub fn abandon(&mut self) {
        self.sent_end = true;
        self.queue.clear();
    }
    /// No retry will come: what was kept may go.
    pub fn forget(&mut self) {
        self.kept = None;
    }

    /// Moves frames until the upstream has no room, the client has no data, or the end was sent (`Ready(Ok)`).
    pub fn poll(&mut self, upstream: &mut UpstreamStream, cx: &mut Context<'_>) -> Poll<Result<(), PumpError>> {
        while !self.sent_end {
            if self.queue.is_empty() && !self.ended {
                match std::task::ready!(self.source.poll_frame(cx)) {
                    Some(Ok(frame)) => self.accept(frame),
                    Some(Err(error)) => return Poll::Ready(Err(PumpError::Downstream(error))),
                    None => self.end(),
                }
                continue;
            }
            std::task::ready!(upstream.poll_ready(cx)).map_err(|_| PumpError::Upstream)?;
            let sent = match self.queue.pop_front() {
                Some(Frame::Data(data)) => {
                    let end = self.ended && self.queue.is_empty();
                    self.sent_end = end;
                    upstream.send_data(data, end)
                }
                Some(Frame::Trailers(trailers)) => {
                    self.sent_end = true;
                    upstream.send_trailers(&trailers)
                }
                None => {
                    self.sent_end = true;
                    upstream.send_data(Bytes::new(), true)
                }
            };
            sent.map_err(|_| PumpError::Upstream)?;
        }
        upstream.poll_flush(cx).map_err(|_| PumpError::Upstream)
    }

    fn accept(&mut self, frame: Frame) {
        self.frames += 1;
        for tee in &self.tees {
            tee.push(&frame);
        }
        match &frame {
            Frame::Data(data) => {
                if self.kept.as_mut().is_some_and(|kept| !kept.push(data)) {
                    self.overflowed = true;
                    self.kept = None;
                }
            }
            Frame::Trailers(trailers) => {
                if let Some(kept) = &mut self.kept {
                    kept.trailers = Some(trailers.clone());
                }
                self.end();
            }
        }
        self.queue.push_back(frame);
        if self.source.is_end() {
            self.end();
        }
    }

    fn end(&mut self) {
        self.ended = true;
        for tee in &self.tees {
            tee.finish();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_small_pieces_are_kept_as_one() {
        let mut kept = Kept { limit: 10_000, ..Kept::default() };
        let mut sent = Vec::new();
        for n in 0..5000u32 {
            let piece = if n == 2500 { Bytes::from(vec![7; SMALL + 1]) } else { Bytes::from(vec![n as u8]) };
            assert!(kept.push(&piece));
            sent.extend_from_slice(&piece);
        }
        let pieces = kept.pieces();
        assert_eq!((pieces.len(), pieces.concat()), (4, sent));
        assert!(kept.push(&Bytes::from_static(b"x")), "what was put together may grow again");
        assert_eq!(kept.pieces().len(), 5);
        assert!(!kept.push(&Bytes::from(vec![0; 10_000])));
    }
}
