//! The server side of one HTTP/2 connection: accepts streams, pings, drains and ends it. Its task is the connection's; each
//! stream runs as a local task of its own.

use crate::h2::guard::{Guard, Offence, Unshown};
use crate::h2::io::{Heard, Io};
use crate::h2::keepalive::Pinger;
use crate::h2::lend::Lender;
use crate::h2::stream;
use crate::service::{Service, Unserved, WhyUnserved};
use crate::timer::Timer;
use crate::validate::details;
use crate::{ConnControl, ConnectionEnd, ServerOptions};
use bytes::{Bytes, BytesMut};
use h2::server::{Builder, Connection};
use nuncio_core::HttpVersion;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

/// How long a client may take to send its preface and settings, if no idle timeout says otherwise.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(60);

/// Drives one HTTP/2 connection to its end. `leftover`: bytes that were read before (protocol detection, PROXY protocol).
pub async fn serve_h2<IO, S>(
    io: IO,
    leftover: BytesMut,
    service: Rc<S>,
    options: Arc<ServerOptions>,
    control: Rc<ConnControl>,
) -> ConnectionEnd
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
    S: Service,
{
    let io = Io::new(io, leftover, Guard::new(true, &options.h2, options.max_headers_kb.saturating_mul(1024)));
    let heard = io.heard();
    let mut connection = match handshake(io, &options, &control).await {
        Ok(connection) => connection,
        Err(end) => return end,
    };
    let pinger = match options.h2.keepalive {
        Some(settings) => connection.ping_pong().map(|pings| Pinger::new(pings, settings, heard.clone())),
        None => None,
    };
    let h2 = &options.h2;
    let lender = (h2.extra_window > 0).then(|| Lender::new(h2.initial_connection_window_size, h2.extra_window));
    let mut driver = Driver {
        connection,
        service,
        options,
        control,
        pinger,
        heard,
        timer: Timer::default(),
        idle_since: None,
        draining: None,
        idle: false,
        streams: 0,
        lender,
    };
    poll_fn(|cx| driver.poll(cx)).await
}

async fn handshake<IO>(io: Io<IO>, options: &ServerOptions, control: &ConnControl) -> Result<Connection<Io<IO>, Bytes>, ConnectionEnd>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let h2 = &options.h2;
    let mut builder = Builder::new();
    builder
        .initial_window_size(h2.initial_stream_window_size)
        .initial_connection_window_size(h2.initial_connection_window_size)
        .max_concurrent_streams(h2.max_concurrent_streams)
        .max_frame_size(h2.max_frame_size)
        .max_header_list_size(options.max_headers_kb.saturating_mul(1024))
        .header_table_size(h2.hpack_table_size)
        .max_pending_accept_reset_streams(h2.max_pending_reset_streams)
        .max_send_buffer_size(h2.max_send_buffer);
    if h2.allow_connect {
        builder.enable_connect_protocol();
    }
    let mut handshake = pin!(builder.handshake(io));
    let deadline = Instant::now() + options.idle_timeout.unwrap_or(HANDSHAKE_TIMEOUT).min(HANDSHAKE_TIMEOUT);
    let mut timer = Timer::default();
    poll_fn(|cx| {
        control.register(cx);
        if control.is_closing() {
            return Poll::Ready(Err(ConnectionEnd::Local));
        }
        match handshake.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(done.map_err(|error| end_of(&error))),
            Poll::Pending if timer.poll_passed(deadline, cx) => Poll::Ready(Err(ConnectionEnd::IdleTimeout)),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

struct Driver<IO: AsyncRead + Unpin, S> {
    connection: Connection<Io<IO>, Bytes>,
    service: Rc<S>,
    options: Arc<ServerOptions>,
    control: Rc<ConnControl>,
    pinger: Option<Pinger>,
    heard: Rc<Heard>,
    timer: Timer,
    /// When the last stream ended.
    idle_since: Option<Instant>,
    /// GOAWAY was sent; without streams the client has until then to close.
    draining: Option<Instant>,
    /// Draining began because nothing happened.
    idle: bool,
    streams: u32,
    /// If the window may grow.
    lender: Option<Lender>,
}

impl<IO, S> Driver<IO, S>
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
    S: Service,
{
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ConnectionEnd> {
        loop {
            self.control.register(cx);
            if self.control.is_closing() {
                return Poll::Ready(ConnectionEnd::Local);
            }
            if self.control.is_draining() && self.draining.is_none() {
                self.drain();
            }
            if self.pinger.as_mut().is_some_and(|pinger| pinger.poll_dead(cx)) {
                self.options.stats.keepalive_timeout.inc();
                return Poll::Ready(ConnectionEnd::KeepAliveTimeout);
            }
            let accepted = self.connection.poll_accept(cx);
            if !matches!(accepted, Poll::Ready(Some(Ok(_)))) {
                self.tell_unshown();
            }
            match accepted {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    let fragment = self.heard.guard.borrow_mut().shown(respond.stream_id().as_u32());
                    self.streams = self.streams.saturating_add(1);
                    self.idle_since = None;
                    tokio::task::spawn_local(stream::serve(
                        self.service.clone(),
                        request,
                        fragment,
                        respond,
                        self.options.clone(),
                        self.control.clone(),
                    ));
                    if self.streams == self.options.max_requests_per_connection {
                        self.control.drain();
                    }
                }
                Poll::Ready(Some(Err(error))) => {
                    return Poll::Ready(match end_of(&error) {
                        // A client that closes because it was asked to.
                        ConnectionEnd::Remote => self.quiet_end(),
                        end => self.broken(end),
                    });
                }
                Poll::Ready(None) => return Poll::Ready(self.quiet_end()),
                Poll::Pending => {
                    // A stream that was accepted and has not yet run counts too.
                    if self.lend() {
                        continue;
                    }
                    if self.control.active_streams() > 0 || self.connection.has_streams() {
                        self.idle_since = None;
                        return Poll::Pending;
                    }
                    if self.poll_idle(cx) {
                        continue;
                    }
                    return match self.draining {
                        Some(deadline) if self.timer.poll_passed(deadline, cx) => Poll::Ready(self.quiet_end()),
                        _ => Poll::Pending,
                    };
                }
            }
        }
    }

    /// Gives the client more window, or takes it back. True: the connection is to be polled again, to tell the client.
    fn lend(&mut self) -> bool {
        let Some(lender) = &mut self.lender else { return false };
        let (hungry, streams) = (self.control.hungry_streams(), self.control.active_streams());
        let window = lender.next(self.heard.guard.borrow().room(), hungry, streams);
        if let Some(window) = window {
            self.connection.set_target_window_size(window);
        }
        window.is_some()
    }

    /// Tells of requests that the library refused by itself.
    fn tell_unshown(&self) {
        loop {
            let next = self.heard.guard.borrow_mut().take_unshown();
            match next {
                Some(Unshown::Malformed) => self.unserved(0, details::H2_MESSAGING, WhyUnserved::Malformed),
                Some(Unshown::TooLarge) => {
                    self.options.stats.header_overflow.inc();
                    self.unserved(431, details::H2_TOO_LARGE, WhyUnserved::Reset);
                }
                None => return,
            }
        }
    }

    fn unserved(&self, status: u16, details: &'static str, why: WhyUnserved) {
        if why == WhyUnserved::Malformed {
            self.options.stats.rx_messaging_error.inc();
        }
        self.service.unserved(&Unserved { version: HttpVersion::Http2, status, details, why });
    }

    /// The connection ends by the client's fault.
    fn broken(&self, end: ConnectionEnd) -> ConnectionEnd {
        let (offence, opening) = {
            let guard = self.heard.guard.borrow();
            (guard.offence(), guard.is_opening())
        };
        if let Some(offence) = offence {
            if offence == Offence::Messaging && opening {
                self.unserved(0, details::H2_MESSAGING, WhyUnserved::Malformed);
            } else {
                offence.count(&self.options.stats);
            }
            return ConnectionEnd::Protocol(offence.details());
        }
        // A head that does not decode, or says what no head may.
        if opening && matches!(end, ConnectionEnd::Protocol(_)) {
            self.unserved(0, details::H2_MESSAGING, WhyUnserved::Malformed);
        }
        end
    }

    /// How the connection ended when nothing went wrong.
    fn quiet_end(&self) -> ConnectionEnd {
        match (self.idle, self.draining) {
            (true, _) => ConnectionEnd::IdleTimeout,
            (false, Some(_)) => ConnectionEnd::Local,
            (false, None) => ConnectionEnd::Remote,
        }
    }

    /// Two GOAWAYs, the second one after the client has seen the first (by `h2`).
    fn drain(&mut self) {
        self.connection.graceful_shutdown();
        self.options.stats.goaway_sent.inc();
        self.draining = Some(Instant::now() + self.options.delayed_close_timeout);
        self.idle_since = None;
    }

    /// Without streams: begins to drain after the idle timeout, and sees that a client does not hold a drained connection.
    /// True: something changed and the connection is to be polled again.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> bool {
        let newly_idle = self.idle_since.is_none();
        let since = *self.idle_since.get_or_insert_with(Instant::now);
        if self.draining.is_some() {
            if newly_idle {
                self.draining = Some(since + self.options.delayed_close_timeout);
            }
            return false;
        }
        match self.options.idle_timeout {
            Some(timeout) if self.timer.poll_passed(since + timeout, cx) => {
                self.idle = true;
                self.drain();
                true
            }
            _ => false,
        }
    }
}

fn end_of(error: &h2::Error) -> ConnectionEnd {
    if let Some(io) = error.get_io() {
        return match io.kind() {
            std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::UnexpectedEof => {
                ConnectionEnd::Remote
            }
            _ => ConnectionEnd::Transport(io.to_string()),
        };
    }
    if error.is_remote() { ConnectionEnd::Remote } else { ConnectionEnd::Protocol(details::H2_MESSAGING) }
}
