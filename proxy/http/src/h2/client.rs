//! The client side of HTTP/2: one connection, driven by its own local task, that carries many streams.

use crate::ClientOptions;
use crate::h2::guard::Guard;
use crate::h2::io::{Heard, Io};
use crate::h2::keepalive::Pinger;
use crate::h2::stream::poll_recv;
use crate::h2::{FRAME_HEADER, convert, stream_error};
use crate::validate;
use bytes::{Bytes, BytesMut};
use h2::client::{Builder, Connection, ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::header;
use nuncio_core::{ByteStr, Frame, Headers, RequestHead, ResponseHead, StreamError};
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use tokio::io::{AsyncRead, AsyncWrite};

/// Streams that we open before the peer's SETTINGS told its limit, at most.
const STREAMS_BEFORE_SETTINGS: usize = 100;

/// What the task, the handles and the streams of one connection share.
struct Shared {
    /// Gone once draining: when the last stream ends, the connection closes.
    send: RefCell<Option<SendRequest<Bytes>>>,
    options: Arc<ClientOptions>,
    active: Cell<usize>,
    streams: Cell<u64>,
    draining: Cell<bool>,
    closed: RefCell<Option<String>>,
    heard: Rc<Heard>,
    /// End now.
    kill: Cell<bool>,
    /// A stream begins; keep-alive may want to ask first.
    ping: Cell<bool>,
    driver: RefCell<Option<Waker>>,
    waiters: RefCell<Vec<Waker>>,
}

impl Shared {
    fn stop(&self) {
        self.draining.set(true);
        self.send.take();
        self.notify();
    }
    fn notify(&self) {
        let waiters = self.waiters.take();
        waiters.into_iter().for_each(Waker::wake);
    }
    fn wake_driver(&self) {
        let driver = self.driver.take();
        if let Some(driver) = driver {
            driver.wake();
        }
    }
    fn wait(&self, cx: &Context<'_>) {
        let mut waiters = self.waiters.borrow_mut();
        if !waiters.iter().any(|w| w.will_wake(cx.waker())) {
            waiters.push(cx.waker().clone());
        }
    }
}

/// The last handle closes the connection, once its streams are done.
struct Handle(Rc<Shared>);
impl Drop for Handle {
    fn drop(&mut self) {
        self.0.stop();
        self.0.wake_driver();
    }
}

/// A handle to an HTTP/2 connection; clones share it. The connection closes gracefully when the last handle and the last
/// stream are gone.
#[derive(Clone)]
pub struct Client {
    handle: Rc<Handle>,
}

impl Client {
    /// Sends the preface and spawns the connection's task on the current `LocalSet`.
    pub async fn connect<IO: AsyncRead + AsyncWrite + Unpin + 'static>(io: IO, options: Arc<ClientOptions>) -> Result<Self, StreamError> {
        let io = Io::new(io, BytesMut::new(), Guard::new(false, &options.h2, options.max_headers_kb.saturating_mul(1024)));
        let heard = io.heard();
        let h2 = &options.h2;
        let (send, mut connection) = Builder::new()
            .initial_window_size(h2.initial_stream_window_size)
            .initial_connection_window_size(h2.initial_connection_window_size)
            .initial_max_send_streams(STREAMS_BEFORE_SETTINGS.min(h2.max_concurrent_streams as usize))
            .max_frame_size(h2.max_frame_size)
            .max_header_list_size(options.max_headers_kb.saturating_mul(1024))
            .header_table_size(h2.hpack_table_size)
            .max_send_buffer_size(h2.max_send_buffer)
            .enable_push(false)
            .handshake::<_, Bytes>(io)
            .await
            .map_err(|error| StreamError::ConnectionClosed(error.to_string()))?;
        let pinger = match h2.keepalive {
            Some(settings) => connection.ping_pong().map(|pings| Pinger::new(pings, settings, heard.clone())),
            None => None,
        };
        let shared = Rc::new(Shared {
            send: RefCell::new(Some(send)),
            options,
            active: Cell::new(0),
            streams: Cell::new(0),
            draining: Cell::new(false),
            closed: RefCell::default(),
            heard,
            kill: Cell::new(false),
            ping: Cell::new(false),
            driver: RefCell::default(),
            waiters: RefCell::default(),
        });
        tokio::task::spawn_local(drive(connection, pinger, shared.clone()));
        Ok(Self { handle: Rc::new(Handle(shared)) })
    }
    fn shared(&self) -> &Rc<Shared> {
        &self.handle.0
    }
    /// Begins a stream. `end`: the request has no body. Fails with `RemoteRefused` if the connection takes no more streams
    /// (nothing was sent then), with `LocalReset` if the head cannot be told in HTTP/2.
    pub fn send(&self, head: &RequestHead, end: bool) -> Result<Stream, StreamError> {
        let shared = self.shared();
        // A handle of its own: `h2` lets each have one stream that waits to be opened.
        let Some(mut send) = shared.send.borrow().clone() else { return Err(StreamError::RemoteRefused) };
        let connect = head.method == http::Method::CONNECT;
        // As Envoy, which never looks: a WebSocket that opens the connection does not wait for the peer to say that it takes one.
        let extended = send.is_extended_connect_protocol_enabled() || !shared.heard.any.get();
        let (request, protocol) = convert::request_out(head, extended)?;
        let upgrade = connect || protocol.is_some();
        let bytes = convert::size(request.headers()) + (head.path.len() + head.authority.len() + 64) as u64 + FRAME_HEADER;
        let (response, send) = match send.send_request(request, end && !upgrade) {
            Ok(done) => done,
            Err(error) => {
                shared.stop();
                return Err(if error.get_io().is_some() { stream_error(&error) } else { StreamError::RemoteRefused });
            }
        };
        shared.active.set(shared.active.get() + 1);
        shared.streams.set(shared.streams.get() + 1);
        shared.ping.set(true);
        shared.wake_driver();
        Ok(Stream {
            shared: shared.clone(),
            response: Some(response),
            send,
            recv: None,
            protocol,
            sent: end && !upgrade,
            ended: false,
            data_done: false,
            remaining: None,
            written: bytes,
            read: 0,
            counted: true,
        })
    }
    /// Whether a stream may begin now: no GOAWAY, not closed, below [`Self::max_streams`].
    pub fn is_ready(&self) -> bool {
        !self.is_draining() && self.active_streams() < self.max_streams()
    }
    /// Whether the peer sent GOAWAY, or the connection closed, or `drain` was called: it takes no more streams.
    pub fn is_draining(&self) -> bool {
        self.shared().draining.get()
    }
    /// Takes no more streams and closes after the last one.
    pub fn drain(&self) {
        self.shared().stop();
        self.shared().wake_driver();
    }
    /// Closes now; streams fail with `ConnectionClosed`.
    pub fn close(&self) {
        self.shared().kill.set(true);
        self.drain();
    }
    /// Resolves when the connection is closed, with the reason; empty text if nothing went wrong.
    pub async fn closed(&self) -> String {
        poll_fn(|cx| self.poll_closed(cx)).await
    }
    /// As [`Self::closed`].
    pub fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<String> {
        let shared = self.shared();
        match &*shared.closed.borrow() {
            Some(why) => Poll::Ready(why.clone()),
            None => {
                shared.wait(cx);
                Poll::Pending
            }
        }
    }
    /// Resolves when the connection takes no more streams (GOAWAY, closed, drained).
    pub async fn draining(&self) {
        poll_fn(|cx| {
            if self.is_draining() {
                return Poll::Ready(());
            }
            self.shared().wait(cx);
            Poll::Pending
        })
        .await;
    }
    /// Streams that are open now.
    pub fn active_streams(&self) -> usize {
        self.shared().active.get()
    }
    /// The lesser of our option and the peer's SETTINGS_MAX_CONCURRENT_STREAMS.
    pub fn max_streams(&self) -> usize {
        let peer = self.shared().send.borrow().as_ref().map_or(0, SendRequest::current_max_send_streams);
        peer.min(self.shared().options.h2.max_concurrent_streams as usize)
    }
    /// Streams that the connection carried.
    pub fn streams(&self) -> u64 {
        self.shared().streams.get()
    }
}

/// Drives the connection until it is closed.
async fn drive<IO>(mut connection: Connection<Io<IO>, Bytes>, mut pinger: Option<Pinger>, shared: Rc<Shared>)
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let why = poll_fn(|cx| {
        {
            let mut driver = shared.driver.borrow_mut();
            match &mut *driver {
                Some(waker) => waker.clone_from(cx.waker()),
                None => *driver = Some(cx.waker().clone()),
            }
        }
        if shared.kill.get() {
            return Poll::Ready("closed locally".to_string());
        }
        if let Some(pinger) = &mut pinger {
            if shared.ping.replace(false) {
                pinger.stream_begins();
            }
            if pinger.poll_dead(cx) {
                shared.options.stats.keepalive_timeout.inc();
                return Poll::Ready("keepalive timeout".to_string());
            }
        }
        if let Poll::Ready(done) = Pin::new(&mut connection).poll(cx) {
            return Poll::Ready(done.err().map_or_else(String::new, |error| error.to_string()));
        }
        if !shared.draining.get() {
            // GOAWAY shows only in that a new stream would be refused.
            let refused = shared.send.borrow_mut().as_mut().is_some_and(|send| matches!(send.poll_ready(cx), Poll::Ready(Err(_))));
            if refused {
                shared.stop();
                cx.waker().wake_by_ref();
            }
        }
        Poll::Pending
    })
    .await;
    if let Some(offence) = shared.heard.guard.borrow().offence() {
        offence.count(&shared.options.stats);
    }
    // Dropping the connection fails its streams; then everyone hears of it.
    drop(connection);
    *shared.closed.borrow_mut() = Some(why);
    shared.stop();
}

/// One stream of an HTTP/2 connection. Methods as in [`crate::ClientStream`].
pub struct Stream {
    shared: Rc<Shared>,
    response: Option<ResponseFuture>,
    send: SendStream<Bytes>,
    recv: Option<RecvStream>,
    /// The request was an extended CONNECT.
    protocol: Option<ByteStr>,
    sent: bool,
    ended: bool,
    data_done: bool,
    remaining: Option<u64>,
    written: u64,
    read: u64,
    /// Counts among the connection's open streams.
    counted: bool,
}

impl Stream {
    /// The stream failed or gave everything; if the request is over too, it is no longer open.
    fn end(&mut self) {
        self.ended = true;
        if self.sent {
            self.release();
        }
    }
    fn release(&mut self) {
        if !std::mem::take(&mut self.counted) {
            return;
        }
        let shared = &self.shared;
        shared.active.set(shared.active.get().saturating_sub(1));
        // Whoever drains waits for the last stream.
        if shared.draining.get() {
            shared.notify();
        }
    }
    fn error(&self, error: &h2::Error) -> StreamError {
        if error.is_reset() && error.is_remote() {
            self.shared.options.stats.rx_reset.inc();
        }
        stream_error(error)
    }
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        if self.sent || self.send.capacity() > 0 {
            return Poll::Ready(Ok(()));
        }
        self.send.reserve_capacity(1);
        match ready!(self.send.poll_capacity(cx)) {
            Some(Ok(_)) => Poll::Ready(Ok(())),
            Some(Err(error)) => Poll::Ready(Err(self.error(&error))),
            None => {
                // The peer takes no more: it reset the stream, or the connection is gone. The response tells which, if there
                // is one; what is still to be sent is thrown away.
                self.sent = true;
                Poll::Ready(Ok(()))
            }
        }
    }
    pub fn send_data(&mut self, data: Bytes, end: bool) -> Result<(), StreamError> {
        if self.sent {
            return Ok(());
        }
        self.written += data.len() as u64 + FRAME_HEADER;
        // A stream that the peer has closed already shows its reason when it is read.
        self.sent = self.send.send_data(data, end).is_err() || end;
        if self.sent && self.ended {
            self.release();
        }
        Ok(())
    }
    pub fn send_trailers(&mut self, trailers: &Headers) -> Result<(), StreamError> {
        if self.sent {
            return Ok(());
        }
        self.sent = true;
        let map = convert::trailers_out(trailers);
        self.written += convert::size(&map) + FRAME_HEADER;
        let _ = self.send.send_trailers(map);
        if self.ended {
            self.release();
        }
        Ok(())
    }
    pub fn poll_flush(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        Poll::Ready(Ok(()))
    }
    pub fn poll_response(&mut self, cx: &mut Context<'_>) -> Poll<Result<ResponseHead, StreamError>> {
        let Some(response) = &mut self.response else { return Poll::Ready(Err(StreamError::LocalReset("http2.response_taken"))) };
        let result = match response.poll_informational(cx) {
            Poll::Ready(Some(Ok(informational)))
                if informational.status() == http::StatusCode::SWITCHING_PROTOCOLS
                    || informational.headers().contains_key(header::CONTENT_LENGTH)
                    || !convert::fields_fit(informational.headers(), &self.shared.options.h2) =>
            {
                self.sent = true;
                self.end();
                self.send.send_reset(Reason::PROTOCOL_ERROR);
                return Poll::Ready(Err(StreamError::Protocol(validate::details::H2_MESSAGING)));
            }
            Poll::Ready(Some(Ok(informational))) => {
                self.read += convert::size(informational.headers()) + FRAME_HEADER;
                return Poll::Ready(Ok(convert::response_in(informational.into_parts().0, None)));
            }
            Poll::Ready(Some(Err(error))) => Err(error),
            Poll::Pending => return Poll::Pending,
            Poll::Ready(None) => ready!(Pin::new(response).poll(cx)),
        };
        self.response = None;
        let response = match result {
            Ok(response) => response,
            Err(error) => {
                self.sent = true;
                self.end();
                return Poll::Ready(Err(self.error(&error)));
            }
        };
        self.read += convert::size(response.headers()) + FRAME_HEADER;
        if response.headers().len() > self.shared.options.max_headers_count as usize {
            self.shared.options.stats.header_overflow.inc();
            self.sent = true;
            self.end();
            self.send.send_reset(Reason::PROTOCOL_ERROR);
            return Poll::Ready(Err(StreamError::TooLarge(validate::details::H2_TOO_MANY_HEADERS)));
        }
        // There is no 101 in HTTP/2 (RFC 9113, section 8.6).
        let switching = response.status() == http::StatusCode::SWITCHING_PROTOCOLS;
        if switching || !convert::fields_fit(response.headers(), &self.shared.options.h2) {
            self.sent = true;
            self.end();
            self.send.send_reset(Reason::PROTOCOL_ERROR);
            return Poll::Ready(Err(StreamError::Protocol(validate::details::H2_MESSAGING)));
        }
        let (parts, recv) = response.into_parts();
        self.remaining = parts.headers.get(header::CONTENT_LENGTH).and_then(|v| validate::content_length(v.as_bytes()));
        if recv.is_end_stream() {
            self.end();
        }
        self.recv = Some(recv);
        Poll::Ready(Ok(convert::response_in(parts, self.protocol.as_ref())))
    }
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        let Some(recv) = self.recv.as_mut().filter(|_| !self.ended) else { return Poll::Ready(None) };
        let frame = ready!(poll_recv(recv, &mut self.data_done, (&self.shared.options.h2, self.shared.options.max_headers_count), cx));
        let last = match &frame {
            Some(Ok(Frame::Data(data))) => {
                let n = data.len() as u64;
                self.read += n + FRAME_HEADER;
                self.remaining = self.remaining.map(|left| left.saturating_sub(n));
                recv.is_end_stream()
            }
            Some(Ok(Frame::Trailers(trailers))) => {
                self.read += trailers.byte_size() as u64 + FRAME_HEADER;
                true
            }
            Some(Err(error)) => {
                if matches!(error, StreamError::RemoteReset(_) | StreamError::RemoteRefused) {
                    self.shared.options.stats.rx_reset.inc();
                }
                self.sent = true;
                true
            }
            None => true,
        };
        if last {
            self.end();
        }
        Poll::Ready(frame)
    }
    pub fn remaining(&self) -> Option<u64> {
        if self.ended { Some(0) } else { self.remaining }
    }
    pub fn is_end(&self) -> bool {
        self.ended
    }
    pub fn is_sent(&self) -> bool {
        self.sent
    }
    pub fn bytes_written(&self) -> u64 {
        self.written
    }
    pub fn bytes_read(&self) -> u64 {
        self.read
    }
    pub fn reset(mut self) {
        self.shared.options.stats.tx_reset.inc();
        self.send.send_reset(Reason::CANCEL);
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.release();
    }
}
