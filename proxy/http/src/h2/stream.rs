//! One stream of an HTTP/2 server connection: a local task that calls the service and writes its response.

use crate::ConnControl;
use crate::h2::convert::{self, Incoming, Refused};
use crate::h2::lend::Hunger;
use crate::h2::{FRAME_HEADER, stream_error};
use crate::options::{H2Options, ServerOptions};
use crate::service::{Informational, Request, Response, Service, StreamControl, StreamOps, Unserved, WhyUnserved};
use crate::timer::Timer;
use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{Method, StatusCode, header};
use nuncio_core::{Body, BodySource, Frame, HttpVersion, ResponseHead, StreamError};
use smallvec::SmallVec;
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::time::Instant;

/// A reset before this is premature: Envoy's default of `overload.premature_reset_min_stream_lifetime_seconds`, which counts whole seconds.
const PREMATURE: Duration = Duration::from_secs(2);

/// What became of an upgrade (CONNECT).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Gate {
    Asked,
    Open,
    Refused,
}

/// What the task, the handles and the request body of one stream share.
struct Shared {
    respond: RefCell<SendResponse<Bytes>>,
    /// The final head was sent.
    answered: Cell<bool>,
    closed: Cell<bool>,
    /// The client reset the stream; its connection goes on.
    reset: Cell<bool>,
    rx: Cell<u64>,
    tx: Cell<u64>,
    gate: Cell<Gate>,
    gate_waker: RefCell<Option<Waker>>,
    closed_wakers: RefCell<SmallVec<[Waker; 1]>>,
}

impl Shared {
    fn mark_closed(&self) {
        self.closed.set(true);
        let wakers = self.closed_wakers.take();
        wakers.into_iter().for_each(Waker::wake);
    }
    fn open_gate(&self, accepted: bool) {
        self.gate.set(if accepted { Gate::Open } else { Gate::Refused });
        if let Some(waker) = self.gate_waker.take() {
            waker.wake();
        }
    }
    /// Whether the client reset the stream or is gone; registers this task for it.
    fn poll_reset(&self, cx: &mut Context<'_>) -> bool {
        let polled = self.respond.borrow_mut().poll_reset(cx);
        self.reset.set(self.reset.get() || matches!(polled, Poll::Ready(Ok(_))));
        polled.is_ready()
    }
    fn sent(&self, n: u64) {
        self.tx.set(self.tx.get() + n + FRAME_HEADER);
    }
}

impl StreamOps for Shared {
    fn send_informational(&self, _serial: u64, head: &ResponseHead) {
        if self.answered.get() || self.closed.get() {
            return;
        }
        let response = convert::response_out(head, false);
        self.sent(convert::size(response.headers()));
        if let Err(error) = self.respond.borrow_mut().send_informational(response) {
            log::debug!("informational response not sent: {error}");
        }
    }
    fn poll_closed(&self, _serial: u64, cx: &mut Context<'_>) -> Poll<()> {
        if self.closed.get() {
            return Poll::Ready(());
        }
        let mut wakers = self.closed_wakers.borrow_mut();
        if !wakers.iter().any(|w| w.will_wake(cx.waker())) {
            wakers.push(cx.waker().clone());
        }
        Poll::Pending
    }
    fn was_reset(&self, _serial: u64) -> bool {
        self.reset.get()
    }
    fn bytes_received(&self, _serial: u64) -> u64 {
        self.rx.get()
    }
    fn bytes_sent(&self, _serial: u64) -> u64 {
        self.tx.get()
    }
}

/// The request body, or the raw bytes of an upgrade. Window is given back as frames are taken.
struct RequestBody {
    recv: RecvStream,
    shared: Rc<Shared>,
    options: Arc<ServerOptions>,
    upgrade: bool,
    remaining: Option<u64>,
    data_done: bool,
    done: bool,
    /// If the connection's window may grow for bodies that are waited for.
    hunger: Option<Hunger>,
}

impl BodySource for RequestBody {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        if self.done {
            return Poll::Ready(None);
        }
        if self.upgrade {
            match self.shared.gate.get() {
                Gate::Open => {}
                Gate::Refused => {
                    self.done = true;
                    return Poll::Ready(None);
                }
                Gate::Asked => {
                    *self.shared.gate_waker.borrow_mut() = Some(cx.waker().clone());
                    return Poll::Pending;
                }
            }
        }
        let result = poll_recv(&mut self.recv, &mut self.data_done, (&self.options.h2, self.options.max_headers_count), cx);
        if let Some(hunger) = &self.hunger {
            hunger.set(result.is_pending());
        }
        match &result {
            Poll::Ready(Some(Ok(Frame::Data(data)))) => {
                let n = data.len() as u64;
                self.shared.rx.set(self.shared.rx.get() + n + FRAME_HEADER);
                self.remaining = self.remaining.map(|left| left.saturating_sub(n));
            }
            Poll::Ready(frame) => {
                self.done = true;
                if matches!(frame, Some(Err(StreamError::RemoteReset(_) | StreamError::RemoteRefused))) {
                    self.shared.reset.set(true);
                }
            }
            Poll::Pending => {}
        }
        result
    }
    fn remaining(&self) -> Option<u64> {
        if self.done { Some(0) } else { self.remaining }
    }
    fn is_end(&self) -> bool {
        self.done || self.recv.is_end_stream()
    }
}

/// The next frame of a received stream, with its window given back.
/// `max_trailers`: the most fields of trailers.
pub fn poll_recv(
    recv: &mut RecvStream,
    data_done: &mut bool,
    (h2, max_trailers): (&H2Options, u32),
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame, StreamError>>> {
    while !*data_done {
        match recv.poll_data(cx) {
            Poll::Ready(Some(Ok(data))) => {
                // Fails only if more is given back than came.
                let _ = recv.flow_control().release_capacity(data.len());
                if data.is_empty() && !recv.is_end_stream() {
                    continue;
                }
                return Poll::Ready(Some(Ok(Frame::Data(data))));
            }
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(stream_error(&error)))),
            Poll::Ready(None) => *data_done = true,
            Poll::Pending => return Poll::Pending,
        }
    }
    recv.poll_trailers(cx).map(|result| match result {
        Ok(Some(trailers)) => Some(convert::trailers_in(trailers, h2, max_trailers).map(Frame::Trailers)),
        Ok(None) => None,
        Err(error) => Some(Err(stream_error(&error))),
    })
}

/// Serves one stream to its end. `fragment`: the path had one, which `request` does not show.
pub async fn serve<S: Service>(
    service: Rc<S>,
    request: http::Request<RecvStream>,
    fragment: bool,
    respond: SendResponse<Bytes>,
    options: Arc<ServerOptions>,
    control: Rc<ConnControl>,
) {
    let (parts, recv) = request.into_parts();
    let shared = Rc::new(Shared {
        respond: RefCell::new(respond),
        answered: Cell::new(false),
        closed: Cell::new(false),
        reset: Cell::new(false),
        rx: Cell::new(0),
        tx: Cell::new(0),
        gate: Cell::new(Gate::Asked),
        gate_waker: RefCell::default(),
        closed_wakers: RefCell::default(),
    });
    let _count = Count { control: control.clone(), shared: shared.clone(), options: options.clone(), began: Instant::now() };
    control.stream_began();
    let mut extended = false;
    let mut connect = false;
    let mut to_head = false;
    let response = match convert::request_in(parts, fragment, &options) {
        Err(Refused::Reset(reason, details)) => {
            options.stats.tx_reset.inc();
            let why = if reason == Reason::PROTOCOL_ERROR { WhyUnserved::Malformed } else { WhyUnserved::Reset };
            service.unserved(&Unserved { version: HttpVersion::Http2, status: 0, details, why });
            shared.respond.borrow_mut().send_reset(reason);
            return;
        }
        Err(Refused::Malformed(error)) => {
            options.stats.rx_messaging_error.inc();
            service.malformed(&error)
        }
        Ok(Incoming { head, upgrade, extended: is_extended, bytes }) => {
            shared.rx.set(bytes + FRAME_HEADER);
            (extended, connect) = (is_extended, upgrade && !is_extended);
            to_head = head.method == Method::HEAD;
            let remaining = head.headers.get(&header::CONTENT_LENGTH).and_then(|v| crate::validate::content_length(v.as_bytes()));
            let end = recv.is_end_stream();
            let hunger = (options.h2.extra_window > 0).then(|| Hunger::new(&control));
            let source = || {
                let (shared, options) = (shared.clone(), options.clone());
                Body::Stream(Box::new(RequestBody { recv, shared, options, upgrade, remaining, data_done: false, done: false, hunger }))
            };
            let (body, upgrade) = match (upgrade, end) {
                (true, _) => (Body::Empty, Some(source())),
                (false, true) => (Body::Empty, None),
                (false, false) => (source(), None),
            };
            let ops: Rc<dyn StreamOps> = shared.clone();
            let informational = Informational { ops: Some(ops.clone()), serial: 0 };
            let stream = StreamControl { ops: Some(ops), serial: 0 };
            call(&shared, service.call(Request { head, body, upgrade, informational, stream })).await
        }
    };
    if response.close {
        control.drain();
    }
    let accepted =
        (extended && response.head.status == http::StatusCode::SWITCHING_PROTOCOLS) || (connect && response.head.status.is_success());
    reply(&shared, response, extended, accepted, to_head, &options).await;
    shared.mark_closed();
    shared.open_gate(false);
}

/// Counts a running stream of its connection, whatever way its task ends.
struct Count {
    control: Rc<ConnControl>,
    shared: Rc<Shared>,
    options: Arc<ServerOptions>,
    began: Instant,
}
impl Drop for Count {
    fn drop(&mut self) {
        let premature = self.shared.reset.get() && !self.shared.answered.get() && self.began.elapsed() < PREMATURE;
        if self.control.stream_closed(premature) {
            self.options.too_many_premature_resets.inc();
            self.control.close();
        }
        self.control.stream_ended();
        self.control.wake();
    }
}

/// Polls the service and, when it waits, looks whether the client is still there.
async fn call(shared: &Shared, call: impl Future<Output = Response>) -> Response {
    let mut call = std::pin::pin!(call);
    poll_fn(|cx| {
        loop {
            if let Poll::Ready(response) = call.as_mut().poll(cx) {
                return Poll::Ready(response);
            }
            if shared.closed.get() || !shared.poll_reset(cx) {
                return Poll::Pending;
            }
            shared.mark_closed();
        }
    })
    .await
}

async fn reply(shared: &Shared, response: Response, extended: bool, accepted: bool, bodiless: bool, options: &ServerOptions) {
    let Response { head, mut body, reset, flush_timeout, .. } = response;
    if shared.closed.get() {
        return;
    }
    let unsendable = head.status.is_informational() && !accepted;
    if let Some(code) = reset.or(unsendable.then_some(u32::from(Reason::INTERNAL_ERROR))) {
        options.stats.tx_reset.inc();
        shared.respond.borrow_mut().send_reset(Reason::from(code));
        return;
    }
    let bodiless = !accepted && (bodiless || head.status == StatusCode::NO_CONTENT || head.status == StatusCode::NOT_MODIFIED);
    let end = (body.is_end() || bodiless) && !accepted;
    let message = convert::response_out(&head, extended);
    shared.sent(convert::size(message.headers()) + 8);
    shared.answered.set(true);
    let sent = shared.respond.borrow_mut().send_response(message, end);
    let mut send = match sent {
        Ok(send) => send,
        Err(error) => {
            log::debug!("response not sent: {error}");
            return;
        }
    };
    shared.open_gate(accepted);
    if end || pump(shared, &mut send, &mut body, options, flush_timeout.unwrap_or(options.stream_flush_timeout)).await {
        body.on_sent();
    }
}

/// Moves the body into the stream. True if it was handed over to its end, and the client's windows have taken it.
async fn pump(shared: &Shared, send: &mut SendStream<Bytes>, body: &mut Body, options: &ServerOptions, flush: Option<Duration>) -> bool {
    loop {
        let frame = poll_fn(|cx| {
            // Room first: what cannot be sent is not asked for.
            match poll_room(send, cx) {
                Poll::Ready(true) => {}
                Poll::Ready(false) => return Poll::Ready(None),
                Poll::Pending => return body.poll_stalled(cx).map(|error| Some(Some(Err(error)))),
            }
            if let Poll::Ready(end) = send.poll_reset(cx) {
                shared.reset.set(end.is_ok());
                return Poll::Ready(None);
            }
            body.poll_frame(cx).map(Some)
        })
        .await;
        let Some(frame) = frame else {
            shared.mark_closed();
            return false;
        };
        let (result, end) = match frame {
            Some(Ok(Frame::Data(data))) => {
                let end = body.is_end();
                shared.sent(data.len() as u64);
                let room = data.len() <= send.capacity();
                let result = send.send_data(data, end && room);
                if end && !room && result.is_ok() {
                    return finish(shared, send, options, flush).await;
                }
                (result, end)
            }
            Some(Ok(Frame::Trailers(trailers))) => {
                options.stats.trailers.inc();
                let trailers = convert::trailers_out(&trailers);
                shared.sent(convert::size(&trailers));
                (send.send_trailers(trailers), true)
            }
            None => {
                shared.sent(0);
                (send.send_data(Bytes::new(), true), true)
            }
            Some(Err(error)) => {
                log::debug!("response body failed: {error}");
                options.stats.tx_reset.inc();
                send.send_reset(match error {
                    StreamError::RemoteReset(code) => Reason::from(code),
                    _ => Reason::INTERNAL_ERROR,
                });
                return false;
            }
        };
        if result.is_err() {
            return false;
        }
        if end {
            return true;
        }
    }
}

/// Ready when the stream has room for more than it holds, or (`false`) is over.
fn poll_room(send: &mut SendStream<Bytes>, cx: &mut Context<'_>) -> Poll<bool> {
    if send.capacity() > 0 {
        return Poll::Ready(true);
    }
    send.reserve_capacity(1);
    send.poll_capacity(cx).map(|room| matches!(room, Some(Ok(_))))
}

/// Ends the stream once the client has made room for all of it, which it must within `flush`.
async fn finish(shared: &Shared, send: &mut SendStream<Bytes>, options: &ServerOptions, flush: Option<Duration>) -> bool {
    let mut timer = Timer::default();
    let deadline = flush.map(|limit| Instant::now() + limit);
    let mut stuck = false;
    let room = poll_fn(|cx| {
        let room = poll_room(send, cx);
        stuck = room.is_pending() && deadline.is_some_and(|deadline| timer.poll_passed(deadline, cx));
        if stuck { Poll::Ready(false) } else { room }
    })
    .await;
    if room {
        return send.send_data(Bytes::new(), true).is_ok();
    }
    if stuck {
        options.tx_flush_timeout.inc();
        options.stats.tx_reset.inc();
        send.send_reset(Reason::INTERNAL_ERROR);
    }
    shared.mark_closed();
    false
}
