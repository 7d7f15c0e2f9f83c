//! Writing one response of a server connection: head and first bytes in one write, the body as it comes, and the decision
//! how the connection goes on.

use crate::ConnControl;
use crate::h1::body::Framing;
use crate::h1::conn::{Conn, Upgrade};
use crate::h1::encode::{self, After};
use crate::h1::response::Asked;
use crate::service::Response;
use crate::timer::Timer;
use crate::validate;
use bytes::Bytes;
use http::{StatusCode, header};
use nuncio_core::{Body, Frame, Headers, HttpVersion};
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

/// What the request was, as far as the response depends on it.
#[derive(Clone, Copy)]
pub struct Exchange {
    pub asked: Asked,
    pub version: HttpVersion,
    pub keep_alive: bool,
}

/// How the connection goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    KeepAlive,
    /// Close in an orderly way.
    Close,
    /// Drop the transport: the client is gone, or must see that the message is cut.
    Abort,
}

/// Writes `response` to its end.
pub async fn reply<IO>(conn: &Conn<IO>, control: &ConnControl, exchange: Exchange, response: Response) -> Outcome
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let Response { head, mut body, close, reset, flush_timeout } = response;
    let Exchange { asked, version, keep_alive } = exchange;
    if reset.is_some() || conn.state.borrow().closed {
        return Outcome::Abort;
    }
    let switching = head.status == StatusCode::SWITCHING_PROTOCOLS;
    if head.status.is_informational() && !(switching && asked.upgrade) {
        log::error!("a service answered {} where a final response was due", head.status);
        return Outcome::Abort;
    }
    let accepted = switching || (asked.connect && head.status.is_success());
    // As Envoy: a response that overtakes its request ends the connection, and so does a refused upgrade, because nobody
    // knows whether the client's next bytes are a request.
    let complete = conn.finish_buffered_body();
    let refused = (asked.upgrade || asked.connect) && !accepted;
    let close = close
        || !keep_alive
        || !complete
        || refused
        || control.is_draining()
        || validate::has_token(&head.headers, &header::CONNECTION, b"close");
    let after = match (accepted, close) {
        (true, _) => After::Upgraded,
        (false, true) => After::Close,
        (false, false) => After::KeepAlive,
    };
    // Asked before the connection is borrowed: the body may be the request's own.
    let remaining = body.remaining();
    let framing = {
        let mut state = conn.state.borrow_mut();
        state.informational = false;
        encode::response(state.out.tail(), &head, asked, version, remaining, after, &conn.options.h1)
    };
    conn.settle_upgrade(accepted);
    let done = framing == Framing::None;
    let last = !accepted && (close || framing == Framing::UntilClose);
    let flush_timeout = flush_timeout.unwrap_or(conn.options.stream_flush_timeout);
    let mut pump = Pump { framing, done, failed: false, last, flush_timeout, timer: Timer::default(), blocked: None };
    let sent = poll_fn(|cx| pump.poll(conn, control, &mut body, cx)).await;
    if sent.is_err() || pump.failed {
        return Outcome::Abort;
    }
    body.on_sent();
    drop(body);
    if accepted {
        poll_fn(|cx| poll_upgrade_end(conn, control, cx)).await;
        return Outcome::Abort;
    }
    if last { Outcome::Close } else { Outcome::KeepAlive }
}

struct Pump {
    framing: Framing,
    /// The body gave everything.
    done: bool,
    /// It ended too early, or with an error.
    failed: bool,
    /// The connection closes behind this response.
    last: bool,
    flush_timeout: Option<Duration>,
    timer: Timer,
    /// The client takes nothing: since when, and how much it had taken.
    blocked: Option<(Instant, u64)>,
}

impl Pump {
    /// Moves the body until it is written, or the client is gone (`Err`).
    fn poll<IO>(&mut self, conn: &Conn<IO>, control: &ConnControl, body: &mut Body, cx: &mut Context<'_>) -> Poll<Result<(), ()>>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        loop {
            let mut starved = false;
            while !self.done && conn.state.borrow().out.has_room() {
                match body.poll_frame(cx) {
                    Poll::Ready(frame) => self.write(conn, frame, body.is_end()),
                    Poll::Pending => {
                        starved = true;
                        break;
                    }
                }
            }
            if self.done && self.last {
                control.begin_last_write();
            }
            let flushed = conn.poll_flush(cx);
            if control.is_closing() {
                conn.mark_closed();
                return Poll::Ready(Err(()));
            }
            control.register(cx);
            let failed = match flushed {
                Poll::Ready(flushed) => flushed.is_err(),
                Poll::Pending if self.done => match self.is_stuck(conn, cx) {
                    true => true,
                    false => return Poll::Pending,
                },
                // The body was asked and has its own clock.
                Poll::Pending if starved => return Poll::Pending,
                Poll::Pending => {
                    let error = ready!(body.poll_stalled(cx));
                    log::debug!("response body given up: {error}");
                    true
                }
            };
            if failed {
                conn.mark_closed();
                return Poll::Ready(Err(()));
            }
            self.blocked = None;
            if self.done {
                return Poll::Ready(Ok(()));
            }
            if starved {
                return if conn.poll_gone(cx) { Poll::Ready(Err(())) } else { Poll::Pending };
            }
        }
    }
    /// Whether the client has taken nothing of the end for `flush_timeout`.
    fn is_stuck<IO>(&mut self, conn: &Conn<IO>, cx: &mut Context<'_>) -> bool {
        let Some(timeout) = self.flush_timeout else { return false };
        let taken = conn.state.borrow().tx;
        let since = match self.blocked {
            Some((since, before)) if before == taken => since,
            _ => {
                let now = Instant::now();
                self.blocked = Some((now, taken));
                now
            }
        };
        let stuck = self.timer.poll_passed(since + timeout, cx);
        if stuck {
            conn.options.tx_flush_timeout.inc();
        }
        stuck
    }
    fn write<IO>(&mut self, conn: &Conn<IO>, frame: Option<Result<Frame, nuncio_core::StreamError>>, last: bool)
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        match frame {
            Some(Ok(Frame::Data(data))) => {
                self.data(conn, data);
                if last && !self.done {
                    self.finish(conn, None);
                }
            }
            Some(Ok(Frame::Trailers(trailers))) => self.finish(conn, Some(&trailers)),
            None => self.finish(conn, None),
            Some(Err(error)) => {
                log::debug!("response body failed: {error}");
                (self.done, self.failed) = (true, true);
            }
        }
    }
    fn data<IO>(&mut self, conn: &Conn<IO>, mut data: Bytes)
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        if data.is_empty() {
            return;
        }
        let out = &mut conn.state.borrow_mut().out;
        match &mut self.framing {
            Framing::None => {}
            Framing::UntilClose => out.push(data),
            Framing::Chunked => {
                encode::chunk_size(out.tail(), data.len());
                out.push(data);
                out.tail().extend_from_slice(b"\r\n");
            }
            Framing::Length(left) => {
                if data.len() as u64 > *left {
                    // What exceeds the announced length would be read as the next response.
                    data.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                    (self.done, self.failed) = (true, true);
                }
                *left -= data.len() as u64;
                out.push(data);
            }
        }
    }
    fn finish<IO>(&mut self, conn: &Conn<IO>, trailers: Option<&Headers>)
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        self.done = true;
        match self.framing {
            Framing::Chunked => {
                let trailers = trailers.filter(|_| conn.options.h1.enable_trailers);
                encode::last_chunk(conn.state.borrow_mut().out.tail(), trailers, &conn.options.h1);
            }
            Framing::Length(left) => self.failed = left > 0,
            Framing::None | Framing::UntilClose => {}
        }
    }
}

/// After the raw bytes to the client ended: closes that direction and waits for the other one.
fn poll_upgrade_end<IO>(conn: &Conn<IO>, control: &ConnControl, cx: &mut Context<'_>) -> Poll<()>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    if control.is_closing() {
        conn.mark_closed();
        return Poll::Ready(());
    }
    control.register(cx);
    let shut = Pin::new(&mut conn.state.borrow_mut().io).poll_shutdown(cx);
    if conn.poll_gone(cx) {
        return Poll::Ready(());
    }
    let _ = ready!(shut);
    let state = conn.state.borrow();
    if state.upgrade_held && state.upgrade == Upgrade::Raw && !state.eof { Poll::Pending } else { Poll::Ready(()) }
}
