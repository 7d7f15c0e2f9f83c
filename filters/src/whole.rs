//! Collects a request's body for filters that must see it before the request goes on, and puts it back. Runs on a worker.

use bytes::{Bytes, BytesMut};
use nuncio_core::{Body, BodySource, Exchange, Frame, Headers, LocalReply, StreamError};
use std::collections::VecDeque;
use std::task::{Context, Poll};

/// What was collected. The body is back in its place but for `TooLong`.
#[derive(Debug)]
pub enum Collected {
    /// All of it, and whether trailers follow.
    Whole(Bytes, bool),
    /// As much as there is room for, and how many bytes came so far.
    Part(Bytes, usize),
    TooLong,
    /// The client is gone or broke the protocol: the stream ends as it would have, when the body is read again. Filters that guard
    /// something answer with [`broken`] instead of going on.
    Failed,
}

/// The answer to a body that is too long.
pub fn too_long() -> Box<LocalReply> {
    Box::new(LocalReply::new(413, "Payload Too Large", "request_payload_too_large"))
}

/// The answer to a body that broke off before it could be judged.
pub fn broken() -> Box<LocalReply> {
    Box::new(LocalReply::new(400, "Request body cannot be read", "request_body_failed"))
}

/// A body that fails at once.
#[cfg(test)]
pub fn failing() -> Body {
    Body::Stream(Box::new(Failed(Some(StreamError::Protocol("http1.codec_error")))))
}

/// [`collect`] for the request of an exchange, which then counts as read.
pub async fn collect_request(ex: &mut Exchange, limit: usize, part: bool) -> Collected {
    let found = collect(&mut ex.request_body, limit, part).await;
    ex.info.request_meter.awaited.set(matches!(found, Collected::Whole(..)));
    found
}

/// Reads `body` to its end, or until `limit` bytes are there. More is too long, or, if `part` will do, stays to be read.
pub async fn collect(body: &mut Body, limit: usize, part: bool) -> Collected {
    // An announced length that is too long need not be received.
    if !part && body.remaining().is_some_and(|n| n > limit as u64) {
        return Collected::TooLong;
    }
    let (mut pieces, mut total) = (VecDeque::new(), 0usize);
    let mut trailers = None;
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(Frame::Data(piece)) => {
                total = total.saturating_add(piece.len());
                if total > limit && !part {
                    return Collected::TooLong;
                }
                pieces.push_back(piece);
                if part && total >= limit {
                    let mut data = joined(&pieces, total);
                    data.truncate(limit);
                    let rest = std::mem::take(body);
                    *body = Body::Stream(Box::new(Replay { pieces, trailers: None, rest }));
                    return Collected::Part(data, total);
                }
            }
            Ok(Frame::Trailers(t)) => trailers = Some(t),
            Err(error) => {
                *body = Body::Stream(Box::new(Failed(Some(error))));
                return Collected::Failed;
            }
        }
    }
    let data = joined(&pieces, total);
    let trailed = trailers.is_some();
    *body = match trailers {
        None if data.is_empty() => Body::Empty,
        None => Body::Full(data.clone()),
        trailers => {
            let pieces = if data.is_empty() { VecDeque::new() } else { VecDeque::from([data.clone()]) };
            Body::Stream(Box::new(Replay { pieces, trailers, rest: Body::Empty }))
        }
    };
    Collected::Whole(data, trailed)
}

/// Most bodies come in one piece, which needs no copy.
fn joined(pieces: &VecDeque<Bytes>, total: usize) -> Bytes {
    if let (Some(first), 1) = (pieces.front(), pieces.len()) {
        return first.clone();
    }
    let mut all = BytesMut::with_capacity(total);
    pieces.iter().for_each(|p| all.extend_from_slice(p));
    all.freeze()
}

/// What was read already, then the rest.
struct Replay {
    pieces: VecDeque<Bytes>,
    trailers: Option<Box<Headers>>,
    rest: Body,
}

impl BodySource for Replay {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        if let Some(piece) = self.pieces.pop_front() {
            return Poll::Ready(Some(Ok(Frame::Data(piece))));
        }
        if let Some(trailers) = self.trailers.take() {
            return Poll::Ready(Some(Ok(Frame::Trailers(trailers))));
        }
        self.rest.poll_frame(cx)
    }
    fn remaining(&self) -> Option<u64> {
        if self.trailers.is_some() {
            return None;
        }
        let read: usize = self.pieces.iter().map(Bytes::len).sum();
        Some(self.rest.remaining()?.saturating_add(read as u64))
    }
    fn is_end(&self) -> bool {
        self.pieces.is_empty() && self.trailers.is_none() && self.rest.is_end()
    }
    fn inner(&mut self) -> Option<&mut Body> {
        Some(&mut self.rest)
    }
}

/// A body that failed.
struct Failed(Option<StreamError>);

impl BodySource for Failed {
    fn poll_frame(&mut self, _cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        Poll::Ready(self.0.take().map(Err))
    }
}
