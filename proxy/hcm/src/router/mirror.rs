//! Request mirroring: a copy of the request goes to another cluster, its response is read and thrown away.
//! The copy never slows the request: its body is queued up to a bound, and a mirror that falls behind is dropped.
//! Source: RouteAction.request_mirror_policies. Belongs to one worker.

use crate::names::{X_ENVOY_INTERNAL, X_FORWARDED_FOR, append_joined};
use bytes::Bytes;
use http::HeaderValue;
use nuncio_core::info::StreamInfo;
use nuncio_core::local_address::local_address;
use nuncio_core::{BodySource, Frame, Headers, RequestHead, StreamError};
use nuncio_upstream::{Charge, Cluster, LbContext, OpenOptions, Upstreams};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// Bytes that a mirror may lag behind.
const LAG: usize = 1 << 20;
/// What a piece that waits costs beside its bytes.
const PIECE: usize = size_of::<Frame>();

#[derive(Default)]
struct Queue {
    frames: VecDeque<Frame>,
    bytes: usize,
    finished: bool,
    overflowed: bool,
    reader: Option<Waker>,
}

/// The sending half: what the request's pump copies into.
pub struct Tee(Rc<RefCell<Queue>>);

impl Tee {
    /// A tee and the body that reads from it.
    pub fn new() -> (Self, Box<dyn BodySource>) {
        let queue: Rc<RefCell<Queue>> = Rc::default();
        (Self(queue.clone()), Box::new(TeeBody(queue)))
    }
    /// Copies a frame (a reference count, not the bytes).
    pub fn push(&self, frame: &Frame) {
        let mut queue = self.0.borrow_mut();
        if queue.overflowed {
            return;
        }
        let copy = match frame {
            Frame::Data(data) => Frame::Data(Bytes::clone(data)),
            Frame::Trailers(trailers) => Frame::Trailers(Box::new(Headers::clone(trailers))),
        };
        if let Frame::Data(data) = &copy {
            queue.bytes += data.len() + PIECE;
            if queue.bytes > LAG {
                queue.overflowed = true;
                queue.frames.clear();
            }
        }
        if !queue.overflowed {
            queue.frames.push_back(copy);
        }
        if let Some(reader) = queue.reader.take() {
            reader.wake();
        }
    }
    /// The request is complete.
    pub fn finish(&self) {
        let mut queue = self.0.borrow_mut();
        queue.finished = true;
        if let Some(reader) = queue.reader.take() {
            reader.wake();
        }
    }
}

impl Drop for Tee {
    /// A request that broke off breaks its mirrors off.
    fn drop(&mut self) {
        let mut queue = self.0.borrow_mut();
        if !queue.finished {
            queue.overflowed = true;
            if let Some(reader) = queue.reader.take() {
                reader.wake();
            }
        }
    }
}

struct TeeBody(Rc<RefCell<Queue>>);

impl BodySource for TeeBody {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        let mut queue = self.0.borrow_mut();
        if queue.overflowed {
            return Poll::Ready(Some(Err(StreamError::LocalReset("mirror fell behind"))));
        }
        match queue.frames.pop_front() {
            Some(frame) => {
                if let Frame::Data(data) = &frame {
                    queue.bytes = queue.bytes.saturating_sub(data.len() + PIECE);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            None if queue.finished => Poll::Ready(None),
            None => {
                queue.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// One mirrored request.
pub struct Mirror {
    pub cluster: Arc<Cluster>,
    pub head: RequestHead,
    pub body: nuncio_core::Body,
    pub timeout: Option<Duration>,
}

impl Mirror {
    /// Sends the request on its own task of this worker.
    pub fn send(mut self, info: &StreamInfo, hash: Option<u64>) {
        // The copy is the proxy's own request, and says so (Envoy's `AsyncStreamImpl`).
        self.head.headers.insert(X_ENVOY_INTERNAL.clone(), HeaderValue::from_static("true"));
        append_joined(&mut self.head.headers, &X_FORWARDED_FOR, b",", local_address().to_string().as_bytes());
        let connection = info.connection.clone();
        let version = info.protocol;
        tokio::task::spawn_local(async move {
            let timeout = self.timeout;
            let run = self.run(connection, version, hash);
            match timeout {
                Some(limit) => {
                    // A mirror that takes too long is dropped; nobody waits for it.
                    let _ = tokio::time::timeout(limit, run).await;
                }
                None => run.await,
            }
        });
    }

    async fn run(self, connection: Rc<nuncio_core::ConnectionInfo>, version: Option<nuncio_core::HttpVersion>, hash: Option<u64>) {
        let upstreams = Upstreams::current();
        let lb = LbContext { hash, downstream: Some(&connection), request: Some(&self.head), ..LbContext::default() };
        let Some(host) = upstreams.pick(&self.cluster, &lb) else { return };
        let options = OpenOptions { downstream_protocol: version, downstream: Some(&connection), ..OpenOptions::default() };
        let mut pump = super::request_body::RequestPump::new(self.body, false, 0, Vec::new());
        let Ok(mut stream) = upstreams.open(&self.cluster, &host, &self.head, pump.is_empty(), &options).await else { return };
        let head = std::future::poll_fn(|cx| {
            let _ = pump.poll(&mut stream, cx);
            stream.poll_response(cx)
        })
        .await;
        let Ok(head) = head else { return };
        let status = head.status.as_u16();
        self.cluster.report_response(&host, status, &head.headers);
        self.cluster.stats().charge_response(status, &Charge { internal: true, canary: host.canary(), zones: None });
        while let Some(Ok(_)) = std::future::poll_fn(|cx| {
            let _ = pump.poll(&mut stream, cx);
            stream.poll_frame(cx)
        })
        .await
        {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_lagging_mirror_is_dropped() {
        let (tee, mut body) = Tee::new();
        for _ in 0..3 {
            tee.push(&Frame::Data(Bytes::from(vec![0; LAG / 2])));
        }
        let next = std::future::poll_fn(|cx| body.poll_frame(cx)).await;
        assert!(matches!(next, Some(Err(StreamError::LocalReset(_)))));
    }
}
