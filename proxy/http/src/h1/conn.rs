//! One server connection as its driver, its request body and its handles share it: the transport, what was read ahead, what
//! waits to be written, and where the current exchange stands. One worker; nothing outside is called while it is borrowed.

use crate::h1::body::BodyDecoder;
use crate::h1::chunked::Event;
use crate::h1::head::HeadError;
use crate::h1::io::{FIRST_READ, OutBuf, poll_fill};
use crate::h1::{encode, request};
use crate::options::ServerOptions;
use crate::service::StreamOps;
use bytes::{Bytes, BytesMut};
use nuncio_core::{BodySource, Frame, ResponseHead, StreamError};
use smallvec::SmallVec;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use tokio::io::{AsyncRead, AsyncWrite};

/// What became of an upgrade.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upgrade {
    /// None was asked for, or it was refused, or its raw bytes came to their end.
    Over,
    /// Nothing but the framed body may be read yet.
    Asked,
    Raw,
}

/// The state behind the `RefCell`.
pub struct State<IO> {
    pub io: IO,
    /// Read and not yet used.
    pub buf: BytesMut,
    pub out: OutBuf,
    pub body: BodyDecoder,
    pub upgrade: Upgrade,
    /// The stream's body, or its raw bytes, still have a reader.
    pub body_held: bool,
    pub upgrade_held: bool,
    /// The peer closed its side.
    pub eof: bool,
    /// The current stream lost its client.
    pub closed: bool,
    /// The transport's reason, if it failed.
    pub failure: Option<String>,
    /// The peer broke framing inside a body: nothing after it can be understood.
    pub broken: Option<&'static str>,
    /// Counts streams; handles of earlier ones do nothing.
    pub serial: u64,
    /// 1xx heads may be sent.
    pub informational: bool,
    pub rx: u64,
    pub tx: u64,
    closed_wakers: SmallVec<[Waker; 1]>,
    upgrade_waker: Option<Waker>,
    driver: Option<Waker>,
}

/// One server connection.
pub struct Conn<IO> {
    pub state: RefCell<State<IO>>,
    pub options: Arc<ServerOptions>,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Conn<IO> {
    pub fn new(io: IO, buf: BytesMut, options: Arc<ServerOptions>) -> Self {
        let state = State {
            io,
            buf,
            out: OutBuf::default(),
            body: BodyDecoder::Done,
            upgrade: Upgrade::Over,
            body_held: false,
            upgrade_held: false,
            eof: false,
            closed: false,
            failure: None,
            broken: None,
            serial: 0,
            informational: false,
            rx: 0,
            tx: 0,
            closed_wakers: SmallVec::new(),
            upgrade_waker: None,
            driver: None,
        };
        Self { state: RefCell::new(state), options }
    }
    /// Reads once into the buffer. False: the peer closed or the transport failed, which `state` then tells.
    pub fn poll_read(&self, cx: &mut Context<'_>) -> Poll<bool> {
        let mut state = self.state.borrow_mut();
        let State { io, buf, body, .. } = &mut *state;
        let limit = if body.is_done() { FIRST_READ } else { usize::MAX };
        let read = match poll_fill(io, buf, limit, cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(read) => read,
        };
        match read {
            Ok(0) => state.eof = true,
            Ok(_) => return Poll::Ready(true),
            Err(error) => {
                state.eof = true;
                state.failure = Some(error.to_string());
            }
        }
        Poll::Ready(false)
    }
    /// Writes what waits. `Err`: the transport failed, which `state` then tells.
    pub fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<Result<(), ()>> {
        let mut state = self.state.borrow_mut();
        let State { io, out, tx, .. } = &mut *state;
        match out.poll_flush(io, tx, cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
            Poll::Ready(Err(error)) => {
                state.out.clear();
                state.failure = Some(error.to_string());
                Poll::Ready(Err(()))
            }
        }
    }
    /// Looks whether the client is still there while nothing of the request is left to read. Reads ahead at most once, so that
    /// a client that pipelines is throttled. True: it went away, and whoever waits for that was woken.
    pub fn poll_gone(&self, cx: &mut Context<'_>) -> bool {
        {
            let mut state = self.state.borrow_mut();
            if state.closed {
                return true;
            }
            match &mut state.driver {
                Some(waker) => waker.clone_from(cx.waker()),
                None => state.driver = Some(cx.waker().clone()),
            }
            if !state.body.is_done() || state.upgrade == Upgrade::Raw || !state.buf.is_empty() {
                return false;
            }
        }
        match self.poll_read(cx) {
            Poll::Ready(false) => {
                self.mark_closed();
                true
            }
            // More than one read is not taken ahead.
            Poll::Ready(true) | Poll::Pending => false,
        }
    }
    /// The current stream lost its client.
    pub fn mark_closed(&self) {
        let (wakers, upgrade) = {
            let mut state = self.state.borrow_mut();
            state.closed = true;
            (std::mem::take(&mut state.closed_wakers), state.upgrade_waker.take())
        };
        wakers.into_iter().chain(upgrade).for_each(Waker::wake);
    }
    /// The stream is over: its handles end.
    pub fn end_stream(&self) {
        let wakers = {
            let mut state = self.state.borrow_mut();
            state.serial += 1;
            state.informational = false;
            std::mem::take(&mut state.closed_wakers)
        };
        wakers.into_iter().for_each(Waker::wake);
    }
    /// The answer to an upgrade was written.
    pub fn settle_upgrade(&self, accepted: bool) {
        let waker = {
            let mut state = self.state.borrow_mut();
            if state.upgrade == Upgrade::Asked {
                state.upgrade = if accepted { Upgrade::Raw } else { Upgrade::Over };
            }
            state.upgrade_waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
    /// Takes the rest of the body if it was read already. Whether the request is complete.
    pub fn finish_buffered_body(&self) -> bool {
        let mut state = self.state.borrow_mut();
        let limits = request::limits(&self.options);
        loop {
            if state.broken.is_some() {
                return false;
            }
            if state.body.is_done() {
                return true;
            }
            // A reader may still want what is there.
            if state.body_held {
                return false;
            }
            let State { body, buf, .. } = &mut *state;
            match body.decode(buf, limits, false) {
                Ok(Some(_)) => {}
                Ok(None) => return false,
                Err(error) => state.broken = Some(detail(error)),
            }
        }
    }
    fn wake_driver(&self, cx: &Context<'_>) {
        let waker = self.state.borrow_mut().driver.take();
        if let Some(waker) = waker
            && !waker.will_wake(cx.waker())
        {
            waker.wake();
        }
    }
}

fn detail(error: HeadError) -> &'static str {
    match error {
        HeadError::Bad(detail) | HeadError::TooLarge(detail) | HeadError::NotImplemented(detail) => detail,
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> StreamOps for Conn<IO> {
    fn send_informational(&self, serial: u64, head: &ResponseHead) {
        let driver = {
            let mut state = self.state.borrow_mut();
            if state.serial != serial || !state.informational {
                return;
            }
            encode::informational(state.out.tail(), head, &self.options.h1);
            state.driver.take()
        };
        if let Some(driver) = driver {
            driver.wake();
        }
    }
    fn poll_closed(&self, serial: u64, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.borrow_mut();
        if state.serial != serial || state.closed {
            return Poll::Ready(());
        }
        if !state.closed_wakers.iter().any(|w| w.will_wake(cx.waker())) {
            state.closed_wakers.push(cx.waker().clone());
        }
        Poll::Pending
    }
    fn was_reset(&self, _serial: u64) -> bool {
        false
    }
    fn bytes_received(&self, serial: u64) -> u64 {
        let state = self.state.borrow();
        if state.serial == serial { state.rx } else { 0 }
    }
    fn bytes_sent(&self, serial: u64) -> u64 {
        let state = self.state.borrow();
        if state.serial == serial { state.tx } else { 0 }
    }
}

/// The body of a request, read from the transport as it is asked for.
pub struct RequestBody<IO: AsyncRead + AsyncWrite + Unpin> {
    pub conn: Rc<Conn<IO>>,
    pub serial: u64,
    pub done: bool,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> BodySource for RequestBody<IO> {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        let limits = request::limits(&self.conn.options);
        loop {
            {
                let mut state = self.conn.state.borrow_mut();
                if self.done {
                    return Poll::Ready(None);
                }
                if state.serial != self.serial {
                    self.done = true;
                    return Poll::Ready(Some(Err(StreamError::LocalReset("stream_over"))));
                }
                let State { body, buf, rx, .. } = &mut *state;
                let before = buf.len();
                let decoded = body.decode(buf, limits, self.conn.options.h1.enable_trailers);
                *rx += (before - buf.len()) as u64;
                let done = body.is_done();
                let frame = match decoded {
                    Ok(Some(Event::Data(data))) => Some(Some(Ok(Frame::Data(data)))),
                    Ok(Some(Event::Trailers(trailers))) => Some(Some(Ok(Frame::Trailers(trailers)))),
                    Ok(Some(Event::End)) => Some(None),
                    Ok(None) if state.eof || state.closed => {
                        let why = state.failure.clone().unwrap_or_default();
                        Some(Some(Err(StreamError::ConnectionClosed(why))))
                    }
                    Ok(None) => None,
                    Err(error) => {
                        state.broken = Some(detail(error));
                        Some(Some(Err(match error {
                            HeadError::TooLarge(detail) => StreamError::TooLarge(detail),
                            HeadError::Bad(detail) | HeadError::NotImplemented(detail) => StreamError::Protocol(detail),
                        })))
                    }
                };
                if let Some(frame) = frame {
                    drop(state);
                    let failed = matches!(frame, Some(Err(_)));
                    if matches!(frame, Some(Err(StreamError::ConnectionClosed(_)))) {
                        self.conn.mark_closed();
                    }
                    if done || failed {
                        self.done = true;
                        // The driver looks after the transport from now on.
                        self.conn.wake_driver(cx);
                    }
                    return Poll::Ready(frame);
                }
            }
            if self.conn.poll_read(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
    fn remaining(&self) -> Option<u64> {
        let state = self.conn.state.borrow();
        if self.done || state.serial != self.serial { Some(0) } else { state.body.remaining() }
    }
    fn is_end(&self) -> bool {
        self.done
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Drop for RequestBody<IO> {
    fn drop(&mut self) {
        let mut state = self.conn.state.borrow_mut();
        if state.serial == self.serial {
            state.body_held = false;
        }
    }
}

/// The raw bytes after an upgrade.
pub struct RawBody<IO: AsyncRead + AsyncWrite + Unpin> {
    pub conn: Rc<Conn<IO>>,
    pub serial: u64,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> BodySource for RawBody<IO> {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        loop {
            {
                let mut state = self.conn.state.borrow_mut();
                if state.serial != self.serial || state.upgrade == Upgrade::Over {
                    return Poll::Ready(None);
                }
                if state.closed && state.buf.is_empty() {
                    let why = state.failure.clone().unwrap_or_default();
                    return Poll::Ready(Some(Err(StreamError::ConnectionClosed(why))));
                }
                if state.upgrade == Upgrade::Asked {
                    state.upgrade_waker = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                if !state.buf.is_empty() {
                    let data: Bytes = state.buf.split().freeze();
                    state.rx += data.len() as u64;
                    return Poll::Ready(Some(Ok(Frame::Data(data))));
                }
                if state.eof {
                    let failure = state.failure.clone();
                    state.upgrade = Upgrade::Over;
                    drop(state);
                    self.conn.wake_driver(cx);
                    return Poll::Ready(failure.map(|why| Err(StreamError::ConnectionClosed(why))));
                }
            }
            if self.conn.poll_read(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Drop for RawBody<IO> {
    fn drop(&mut self) {
        let driver = {
            let mut state = self.conn.state.borrow_mut();
            if state.serial != self.serial {
                return;
            }
            state.upgrade_held = false;
            state.driver.take()
        };
        if let Some(driver) = driver {
            driver.wake();
        }
    }
}
