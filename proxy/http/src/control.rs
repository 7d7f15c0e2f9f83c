//! Draining and closing one server connection from outside (listener drain, admin, max_connection_duration). One worker.

use std::cell::{Cell, RefCell};
use std::task::{Context, Waker};

/// How a server connection ended; the connection manager counts it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectionEnd {
    /// The client closed (`downstream_cx_destroy_remote`).
    Remote,
    /// We closed: `connection: close`, drain, max requests, or [`ConnControl::close`].
    Local,
    /// `idle_timeout` passed (`downstream_cx_idle_timeout`).
    IdleTimeout,
    /// The client broke the protocol (`downstream_cx_protocol_error`); the text is Envoy's detail.
    Protocol(&'static str),
    /// Keep-alive pings were not answered.
    KeepAliveTimeout,
    /// The transport failed; the text is its reason.
    Transport(String),
}

/// Streams of a connection after which the share of premature resets counts: Envoy's default of
/// `overload.premature_reset_total_stream_count`.
const PREMATURE_RESET_STREAMS: u32 = 500;

/// The switch between a connection's owner and its codec. The owner makes it and keeps a clone of the `Rc`.
#[derive(Debug, Default)]
pub struct ConnControl {
    drain: Cell<bool>,
    patient: Cell<bool>,
    next_is_last: Cell<bool>,
    close: Cell<bool>,
    active: Cell<u32>,
    last_write: Cell<bool>,
    /// HTTP/2 streams that have ended, and how many of them the client reset at once.
    ended: Cell<u32>,
    premature: Cell<u32>,
    /// HTTP/2 request bodies that somebody waits for.
    hungry: Cell<u32>,
    codec: RefCell<Option<Waker>>,
}

impl ConnControl {
    /// A control that neither drains nor closes.
    pub fn new() -> Self {
        Self::default()
    }
    /// No more requests after those that are running: HTTP/1 answers with `connection: close`, HTTP/2 sends GOAWAY. A
    /// connection without requests closes now.
    pub fn drain(&self) {
        self.drain.set(true);
        self.patient.set(false);
        self.wake();
    }
    /// The next response is the last one: as [`Self::drain`], but an HTTP/1 connection without a request waits for one.
    pub fn drain_patiently(&self) {
        if !self.drain.replace(true) {
            self.patient.set(true);
        }
    }
    /// The response to the next request is the last one; those that are running do not matter.
    pub fn drain_at_next(&self) {
        self.next_is_last.set(true);
    }
    /// Whether a connection without requests is to close.
    pub(crate) fn closes_when_idle(&self) -> bool {
        self.drain.get() && !self.patient.get()
    }
    /// Ends the connection at once; running streams see it as a client that went away.
    pub fn close(&self) {
        self.close.set(true);
        self.wake();
    }
    /// Whether `drain` was called (by the owner, or by the codec for max requests).
    pub fn is_draining(&self) -> bool {
        self.drain.get()
    }
    /// Whether `close` was called.
    pub fn is_closing(&self) -> bool {
        self.close.get()
    }
    /// Requests that are running now.
    pub fn active_streams(&self) -> u32 {
        self.active.get()
    }
    /// Whether the HTTP/1 codec is writing the end of the connection's last response and will shut the transport right behind it: a
    /// transport that holds back its last segment until then saves a packet.
    pub fn is_last_write(&self) -> bool {
        self.last_write.get()
    }
    pub(crate) fn begin_last_write(&self) {
        self.last_write.set(true);
    }
    pub(crate) fn stream_began(&self) {
        if self.next_is_last.get() {
            self.drain_patiently();
        }
        self.active.set(self.active.get().saturating_add(1));
    }
    pub(crate) fn stream_ended(&self) {
        self.active.set(self.active.get().saturating_sub(1));
    }
    /// An HTTP/2 stream has ended; `premature`: the client reset it soon, and before there was an answer. True if that was most of what
    /// the connection did, and often enough to be an attack (Envoy's `maybeDrainDueToPrematureResets`).
    pub(crate) fn stream_closed(&self, premature: bool) -> bool {
        self.ended.set(self.ended.get().saturating_add(1));
        if !premature {
            return false;
        }
        self.premature.set(self.premature.get().saturating_add(1));
        self.premature.get().saturating_mul(2) >= self.ended.get().max(PREMATURE_RESET_STREAMS)
    }
    /// Somebody waits, or waits no more, for a request body of HTTP/2.
    pub(crate) fn hungry(&self, waits: bool) {
        let now = self.hungry.get();
        self.hungry.set(if waits { now.saturating_add(1) } else { now.saturating_sub(1) });
        if waits {
            self.wake();
        }
    }
    /// How many request bodies are waited for.
    pub(crate) fn hungry_streams(&self) -> u32 {
        self.hungry.get()
    }
    /// The codec's task wants to hear of `drain` and `close`.
    pub(crate) fn register(&self, cx: &Context<'_>) {
        let mut codec = self.codec.borrow_mut();
        match &mut *codec {
            Some(waker) => waker.clone_from(cx.waker()),
            None => *codec = Some(cx.waker().clone()),
        }
    }
    /// Has the codec's task look again.
    pub(crate) fn wake(&self) {
        let waker = self.codec.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}
