//! The server side of one HTTP/1 connection: reads a head, calls the service, writes its response, and again. Runs as part of
//! the connection's own task on its worker; nothing is spawned. Between requests it holds no buffers.

use crate::h1::body::{BodyDecoder, Framing};
use crate::h1::conn::{Conn, RawBody, RequestBody, Upgrade};
use crate::h1::reply::{Exchange, Outcome, reply};
use crate::h1::request::{ParsedRequest, RequestParser};
use crate::h1::response::Asked;
use crate::service::{Informational, Malformed, Request, Response, Service, StreamControl, StreamOps, Unserved, WhyUnserved};
use crate::timer::Timer;
use crate::validate::details;
use crate::{ConnControl, ConnectionEnd, ServerOptions};
use bytes::BytesMut;
use http::{Method, StatusCode};
use nuncio_core::{Body, HttpVersion};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

/// Drives one HTTP/1 connection to its end. `leftover`: bytes that were read before (protocol detection, PROXY protocol).
pub async fn serve_h1<IO, S>(
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
    let conn = Rc::new(Conn::new(io, leftover, options));
    let mut driver = Driver {
        conn,
        control,
        parser: RequestParser::default(),
        timer: Timer::default(),
        idle_since: Instant::now(),
        begun: None,
        touched: false,
    };
    let end = driver.run(&service).await;
    driver.conn.mark_closed();
    driver.conn.end_stream();
    end
}

struct Driver<IO> {
    conn: Rc<Conn<IO>>,
    control: Rc<ConnControl>,
    parser: RequestParser,
    timer: Timer,
    idle_since: Instant,
    /// When the first byte of the head came that is being read.
    begun: Option<Instant>,
    /// Anything came since the last request.
    touched: bool,
}

/// What came instead of a request head.
enum NoHead {
    Malformed(Box<Malformed>),
    End(ConnectionEnd),
}

impl<IO: AsyncRead + AsyncWrite + Unpin + 'static> Driver<IO> {
    async fn run<S: Service>(&mut self, service: &Rc<S>) -> ConnectionEnd {
        let mut served: u32 = 0;
        loop {
            let parsed = match poll_fn(|cx| self.poll_head(cx)).await {
                Ok(parsed) => parsed,
                Err(NoHead::End(end)) => {
                    if self.touched && matches!(end, ConnectionEnd::Remote | ConnectionEnd::Transport(_)) {
                        service.unserved(&Unserved {
                            version: HttpVersion::Http11,
                            status: 0,
                            details: details::REMOTE_DISCONNECT,
                            why: WhyUnserved::Disconnected,
                        });
                    }
                    return end;
                }
                Err(NoHead::Malformed(error)) => {
                    if self.refuse(service, &error).await == Outcome::KeepAlive {
                        continue;
                    }
                    return ConnectionEnd::Protocol(error.details);
                }
            };
            served = served.saturating_add(1);
            if self.conn.options.max_requests_per_connection == served {
                self.control.drain();
            }
            let exchange = Exchange {
                asked: Asked {
                    head: parsed.head.method == Method::HEAD,
                    connect: parsed.head.method == Method::CONNECT,
                    upgrade: parsed.upgrade && parsed.head.method != Method::CONNECT,
                },
                version: parsed.head.version,
                keep_alive: parsed.keep_alive,
            };
            self.control.stream_began();
            let request = self.begin(parsed);
            // Boxed, so that an idle connection does not carry the size of the service's future and of the response.
            let outcome = Box::pin(answer(self.conn.clone(), self.control.clone(), service.clone(), request, exchange)).await;
            self.conn.end_stream();
            self.control.stream_ended();
            self.idle_since = Instant::now();
            match outcome {
                Outcome::KeepAlive => {}
                Outcome::Close => return self.close().await,
                Outcome::Abort => return self.end_reason(),
            }
        }
    }

    /// The next request head. While nothing of it has come, no buffer is held and the idle timeout runs.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<ParsedRequest, NoHead>> {
        loop {
            if self.control.is_closing() {
                return Poll::Ready(Err(NoHead::End(ConnectionEnd::Local)));
            }
            let begun = {
                let mut state = self.conn.state.borrow_mut();
                if !state.buf.is_empty() {
                    self.touched = true;
                    match self.parser.parse(&mut state.buf, &self.conn.options) {
                        Ok(Some(parsed)) => {
                            (self.begun, self.touched) = (None, false);
                            return Poll::Ready(Ok(parsed));
                        }
                        Ok(None) => {}
                        Err(error) => return Poll::Ready(Err(NoHead::Malformed(Box::new(error)))),
                    }
                }
                let begun = !state.buf.is_empty();
                if !begun {
                    state.buf = BytesMut::new();
                }
                begun
            };
            if !begun && self.control.closes_when_idle() {
                return Poll::Ready(Err(NoHead::End(ConnectionEnd::Local)));
            }
            if self.conn.state.borrow().eof {
                return Poll::Ready(Err(NoHead::End(self.end_reason())));
            }
            if self.conn.poll_read(cx).is_ready() {
                continue;
            }
            self.control.register(cx);
            return match self.deadline(begun) {
                Some(deadline) if self.timer.poll_passed(deadline, cx) => Poll::Ready(Err(if self.begun.is_some() {
                    NoHead::Malformed(Box::new(Malformed {
                        status: StatusCode::REQUEST_TIMEOUT,
                        details: details::REQUEST_HEADER_TIMEOUT,
                        head: None,
                        recoverable: false,
                    }))
                } else {
                    NoHead::End(ConnectionEnd::IdleTimeout)
                })),
                _ => Poll::Pending,
            };
        }
    }

    fn deadline(&mut self, begun: bool) -> Option<Instant> {
        match self.conn.options.request_headers_timeout {
            Some(timeout) if begun => Some(*self.begun.get_or_insert_with(Instant::now) + timeout),
            _ => self.conn.options.idle_timeout.map(|timeout| self.idle_since + timeout),
        }
    }

    /// Makes the request object of a head.
    fn begin(&mut self, parsed: ParsedRequest) -> Request {
        let ParsedRequest { head, framing, upgrade, bytes, .. } = parsed;
        let serial = {
            let mut state = self.conn.state.borrow_mut();
            state.rx = bytes as u64;
            state.tx = 0;
            state.closed = false;
            state.informational = head.version == HttpVersion::Http11;
            state.upgrade = if upgrade { Upgrade::Asked } else { Upgrade::Over };
            state.upgrade_held = upgrade;
            state.body = BodyDecoder::new(framing);
            state.body_held = false;
            state.serial
        };
        let ops: Rc<dyn StreamOps> = self.conn.clone();
        Request {
            body: self.body(framing, serial),
            upgrade: upgrade.then(|| Body::Stream(Box::new(RawBody { conn: self.conn.clone(), serial }))),
            informational: Informational { ops: Some(ops.clone()), serial },
            stream: StreamControl { ops: Some(ops), serial },
            head,
        }
    }

    /// A body that was read with its head is handed over as a whole.
    fn body(&self, framing: Framing, serial: u64) -> Body {
        let mut state = self.conn.state.borrow_mut();
        match framing {
            Framing::None => Body::Empty,
            Framing::Length(n) if n <= state.buf.len() as u64 => {
                let n = usize::try_from(n).unwrap_or(usize::MAX).min(state.buf.len());
                state.rx += n as u64;
                state.body = BodyDecoder::Done;
                Body::Full(state.buf.split_to(n).freeze())
            }
            _ => {
                state.body_held = true;
                Body::Stream(Box::new(RequestBody { conn: self.conn.clone(), serial, done: false }))
            }
        }
    }

    /// Answers what the codec refused.
    async fn refuse<S: Service>(&mut self, service: &Rc<S>, error: &Malformed) -> Outcome {
        (self.begun, self.touched) = (None, false);
        let keep_alive = error.recoverable && self.conn.options.h1.stream_error_on_invalid_http_message;
        let mut response = service.malformed(error);
        response.close |= !keep_alive;
        {
            let mut state = self.conn.state.borrow_mut();
            (state.rx, state.tx, state.closed) = (0, 0, false);
            (state.body, state.body_held, state.upgrade) = (BodyDecoder::Done, false, Upgrade::Over);
        }
        let head = error.head.as_ref();
        let exchange = Exchange {
            asked: Asked { head: head.is_some_and(|h| h.method == Method::HEAD), ..Asked::default() },
            // As Envoy: a refused protocol version is answered in the current one.
            version: HttpVersion::Http11,
            keep_alive,
        };
        let outcome = Box::pin(reply(&self.conn, &self.control, exchange, response)).await;
        self.conn.end_stream();
        self.idle_since = Instant::now();
        if outcome == Outcome::Close {
            self.shut_down(true).await;
        }
        outcome
    }

    /// Ends the connection after its last response. Waits for a client that may still be sending: closing on unread bytes
    /// would reset the connection and take the response with it.
    async fn close(&mut self) -> ConnectionEnd {
        let (broken, unread) = {
            let state = self.conn.state.borrow();
            (state.broken, !state.body.is_done() || !state.buf.is_empty())
        };
        self.shut_down(unread || broken.is_some()).await;
        broken.map_or(ConnectionEnd::Local, ConnectionEnd::Protocol)
    }

    /// Shuts our side. `linger`, Envoy's delayed close: what the client still sends is thrown away until it closes. Both take
    /// `delayed_close_timeout` at most.
    async fn shut_down(&mut self, linger: bool) {
        let deadline = Instant::now() + self.conn.options.delayed_close_timeout;
        let mut shut = false;
        poll_fn(|cx| {
            loop {
                if !shut {
                    shut = Pin::new(&mut self.conn.state.borrow_mut().io).poll_shutdown(cx).is_ready();
                }
                if (shut && !linger) || self.control.is_closing() || self.timer.poll_passed(deadline, cx) {
                    return Poll::Ready(());
                }
                self.control.register(cx);
                if !linger {
                    return Poll::Pending;
                }
                self.conn.state.borrow_mut().buf = BytesMut::new();
                match self.conn.poll_read(cx) {
                    Poll::Ready(true) => {}
                    Poll::Ready(false) => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await;
    }

    fn end_reason(&self) -> ConnectionEnd {
        let state = self.conn.state.borrow();
        match (&state.failure, state.broken) {
            (_, Some(detail)) => ConnectionEnd::Protocol(detail),
            (Some(why), _) => ConnectionEnd::Transport(why.clone()),
            (None, None) if state.eof && !self.control.is_closing() => ConnectionEnd::Remote,
            (None, None) => ConnectionEnd::Local,
        }
    }
}

/// One exchange, from request to the end of its response, inside the connection's task.
async fn answer<IO, S>(conn: Rc<Conn<IO>>, control: Rc<ConnControl>, service: Rc<S>, request: Request, exchange: Exchange) -> Outcome
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
    S: Service,
{
    let response = call(&conn, &control, service.call(request)).await;
    reply(&conn, &control, exchange, response).await
}

/// Polls the service and, when it waits, looks whether the client is still there.
async fn call<IO>(conn: &Conn<IO>, control: &ConnControl, call: impl Future<Output = Response>) -> Response
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let mut call = pin!(call);
    poll_fn(|cx| {
        loop {
            if let Poll::Ready(response) = call.as_mut().poll(cx) {
                return Poll::Ready(response);
            }
            if conn.state.borrow().closed {
                return Poll::Pending;
            }
            control.register(cx);
            let failed = matches!(conn.poll_flush(cx), Poll::Ready(Err(())));
            if failed || control.is_closing() {
                conn.mark_closed();
            } else if !conn.poll_gone(cx) {
                return Poll::Pending;
            }
            // The client is gone: the service hears of it now.
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shared_part_of_a_connection_is_small() {
        // Beside the task (see tests/h1_server.rs); buffers come and go.
        let size = size_of::<Conn<tokio::net::TcpStream>>();
        assert!(size <= 512, "{size}");
    }
}
