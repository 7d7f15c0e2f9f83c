//! The response's body as it comes from the upstream, while the rest of the request still goes out.
//! Owned by the exchange's response body; belongs to one worker.
//!
//! A request that is not over when the response begins (WebSocket, CONNECT, gRPC both ways) is sent by a task of its own: this
//! body is not polled while the client does not read, and what the client says meanwhile must reach the upstream all the same.

use super::deadlines::{Deadline, Deadlines};
use super::errors;
use super::request_body::{PumpError, RequestPump};
use nuncio_core::{BodySource, Frame, StreamError, StreamInfo};
use nuncio_upstream::UpstreamStream;
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

/// What the end of the upstream stream tells its owner.
#[derive(Debug, Default)]
pub struct UpstreamMeter {
    pub tx_bytes: Cell<u64>,
    pub rx_bytes: Cell<u64>,
    /// When the request was sent to its end, where that was after the response began.
    pub sent: Cell<Option<Instant>>,
    /// When the body began and ended.
    pub first_rx: Cell<Option<Instant>>,
    pub last_rx: Cell<Option<Instant>>,
}

impl UpstreamMeter {
    /// Tells `info` what was measured.
    pub fn tell(&self, info: &mut StreamInfo) {
        let start = info.start_instant;
        let offset = |at: &Cell<Option<Instant>>| at.get().map(|at| at.saturating_duration_since(start));
        let upstream = info.upstream_mut();
        upstream.wire_tx_bytes = self.tx_bytes.get();
        upstream.wire_rx_bytes = self.rx_bytes.get();
        upstream.last_tx = offset(&self.sent).or(upstream.last_tx);
        upstream.first_rx_body = offset(&self.first_rx);
        upstream.last_rx = offset(&self.last_rx).or(upstream.last_rx);
    }
}

/// A response body from an upstream.
pub struct UpstreamBody {
    source: Source,
    deadlines: Deadlines,
    idle: Option<Duration>,
    meter: Rc<UpstreamMeter>,
    /// Bytes written upstream when the idle time last began.
    written: u64,
    ended: bool,
}

enum Source {
    /// The request was sent.
    Response(Box<UpstreamStream>),
    /// The request goes on.
    Both(Duplex),
}

/// A stream that this body reads and a task writes.
struct Duplex {
    shared: Rc<RefCell<Option<Shared>>>,
    wakers: Arc<Wakers>,
    /// Of `wakers`; whatever the stream waits for wakes both sides, because it remembers one waker only.
    waker: Waker,
    task: tokio::task::JoinHandle<()>,
}

struct Shared {
    stream: UpstreamStream,
    pump: RequestPump,
    /// The client's request broke off.
    failed: Option<StreamError>,
}

/// Who reads the response and who sends the request.
#[derive(Default)]
struct Wakers {
    reader: Mutex<Option<Waker>>,
    sender: Mutex<Option<Waker>>,
}

impl Wakers {
    fn set(slot: &Mutex<Option<Waker>>, waker: &Waker) {
        match &mut *slot.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(old) => old.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
    }
    fn wake_one(slot: &Mutex<Option<Waker>>) {
        let waker = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Wake for Wakers {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        Self::wake_one(&self.reader);
        Self::wake_one(&self.sender);
    }
}

impl Duplex {
    fn new(stream: UpstreamStream, pump: RequestPump, meter: Rc<UpstreamMeter>) -> Self {
        let shared = Rc::new(RefCell::new(Some(Shared { stream, pump, failed: None })));
        let wakers = Arc::new(Wakers::default());
        let waker = Waker::from(wakers.clone());
        let (theirs, both, waker_of_both) = (shared.clone(), wakers.clone(), waker.clone());
        let task = tokio::task::spawn_local(poll_fn(move |cx| {
            Wakers::set(&both.sender, cx.waker());
            let mut shared = theirs.borrow_mut();
            // None: the response is over, and with it the stream.
            let Some(Shared { stream, pump, failed }) = &mut *shared else { return Poll::Ready(()) };
            let mut cx = Context::from_waker(&waker_of_both);
            match pump.poll(stream, &mut cx) {
                Poll::Ready(Ok(())) => meter.sent.set(Some(Instant::now())),
                Poll::Ready(Err(PumpError::Downstream(error))) => *failed = Some(error),
                // The upstream may stop reading and still answer; its response says how it ends.
                Poll::Ready(Err(PumpError::Upstream)) => pump.abandon(),
                Poll::Pending => {
                    // What was handed over so far goes out while the client pauses. The response tells of a failure.
                    let _flushed = stream.poll_flush(&mut cx);
                    return Poll::Pending;
                }
            }
            drop(shared);
            Wakers::wake_one(&both.reader);
            Poll::Ready(())
        }));
        Self { shared, wakers, waker, task }
    }
}

impl Drop for Duplex {
    fn drop(&mut self) {
        self.task.abort();
        // The stream ends now, not when the task is next looked at.
        drop(self.shared.borrow_mut().take());
    }
}

impl UpstreamBody {
    /// The body of `stream`, whose head was read; `pump` still sends the request.
    pub fn new(stream: UpstreamStream, pump: RequestPump, deadlines: Deadlines, idle: Option<Duration>, meter: Rc<UpstreamMeter>) -> Self {
        let written = stream.bytes_written();
        let source =
            if pump.is_done() { Source::Response(Box::new(stream)) } else { Source::Both(Duplex::new(stream, pump, meter.clone())) };
        Self { source, deadlines, idle, meter, written, ended: false }
    }

    fn touch(&mut self) {
        if self.idle.is_some() {
            self.deadlines.set(Deadline::Idle, self.idle);
        }
    }

    fn fail(&mut self, error: StreamError) -> Poll<Option<Result<Frame, StreamError>>> {
        self.ended = true;
        Poll::Ready(Some(Err(error)))
    }

    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        match &mut self.source {
            Source::Response(stream) => stream.poll_frame(cx),
            Source::Both(duplex) => {
                Wakers::set(&duplex.wakers.reader, cx.waker());
                let mut shared = duplex.shared.borrow_mut();
                let Some(Shared { stream, failed, .. }) = &mut *shared else { return Poll::Ready(None) };
                if let Some(error) = failed.take() {
                    return Poll::Ready(Some(Err(error)));
                }
                stream.poll_frame(&mut Context::from_waker(&duplex.waker))
            }
        }
    }

    fn with_stream<R>(&self, look: impl FnOnce(&UpstreamStream) -> R) -> Option<R> {
        match &self.source {
            Source::Response(stream) => Some(look(stream)),
            Source::Both(duplex) => duplex.shared.borrow().as_ref().map(|s| look(&s.stream)),
        }
    }

    fn end(&mut self) {
        self.ended = true;
        self.meter.last_rx.set(Some(Instant::now()));
    }

    fn poll_deadlines(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        self.note_sent();
        self.deadlines.poll(cx).map(|which| {
            StreamError::LocalReset(match which {
                Deadline::Global => errors::RESPONSE_TIMEOUT,
                Deadline::PerTry => errors::PER_TRY_TIMEOUT,
                Deadline::PerTryIdle => errors::PER_TRY_IDLE_TIMEOUT,
                Deadline::Idle | Deadline::Request => errors::STREAM_IDLE_TIMEOUT,
                Deadline::MaxDuration => errors::MAX_DURATION,
                Deadline::UpstreamMaxDuration => errors::UPSTREAM_MAX_DURATION,
            })
        })
    }

    /// What the client sends keeps the stream from being idle too.
    fn note_sent(&mut self) {
        let written = self.with_stream(UpstreamStream::bytes_written).unwrap_or(self.written);
        if written != self.written {
            self.written = written;
            self.touch();
        }
    }
}

impl BodySource for UpstreamBody {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        match self.poll_source(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                self.touch();
                let first = &self.meter.first_rx;
                match frame {
                    Frame::Trailers(_) => self.end(),
                    Frame::Data(_) if first.get().is_none() => first.set(Some(Instant::now())),
                    Frame::Data(_) => {}
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => self.fail(error),
            Poll::Ready(None) => {
                self.end();
                Poll::Ready(None)
            }
            Poll::Pending => match self.poll_deadlines(cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(error) => self.fail(error),
            },
        }
    }

    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        if self.ended {
            return Poll::Pending;
        }
        self.poll_deadlines(cx)
    }

    fn remaining(&self) -> Option<u64> {
        self.with_stream(UpstreamStream::remaining).unwrap_or(Some(0))
    }

    fn is_end(&self) -> bool {
        self.ended || self.with_stream(UpstreamStream::is_end).unwrap_or(true)
    }
}

impl Drop for UpstreamBody {
    fn drop(&mut self) {
        let (tx, rx) = self.with_stream(|s| (s.bytes_written(), s.bytes_read())).unwrap_or_default();
        self.meter.tx_bytes.set(tx);
        self.meter.rx_bytes.set(rx);
        if self.meter.last_rx.get().is_none() && self.is_end() {
            self.meter.last_rx.set(Some(Instant::now()));
        }
    }
}
