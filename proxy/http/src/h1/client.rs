//! The client side of HTTP/1: one connection that carries one stream at a time. Pulled by its user; between calls nothing
//! moves. A connection and its stream are one box that changes hands, so that a request allocates nothing here.

use crate::ClientOptions;
use crate::h1::body::{BodyDecoder, Framing};
use crate::h1::chunked::Event;
use crate::h1::encode;
use crate::h1::head::HeadError;
use crate::h1::io::{OutBuf, poll_fill};
use crate::h1::response::{self, Asked, ResponseParser};
use crate::validate::details;
use bytes::{Bytes, BytesMut};
use nuncio_core::{Frame, Headers, RequestHead, ResponseHead, StreamError};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use tokio::io::{AsyncRead, AsyncWrite};

struct Conn<IO> {
    io: IO,
    options: Arc<ClientOptions>,
    buf: BytesMut,
    out: OutBuf,
    parser: ResponseParser,
    /// Streams carried, the current one included.
    streams: u64,
    /// Wire bytes of the current stream.
    written: u64,
    read: u64,
    eof: bool,
    /// Why the connection is of no use any more.
    failure: Option<String>,
    /// Writing failed; reading goes on, because the peer may have answered before it closed.
    write_failed: bool,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Conn<IO> {
    /// Reads once; false at the end of the transport.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        match ready!(poll_fill(&mut self.io, &mut self.buf, usize::MAX, cx)) {
            Ok(0) => self.eof = true,
            Ok(_) => return Poll::Ready(true),
            Err(error) => {
                self.eof = true;
                self.failure.get_or_insert_with(|| failure_text(&error));
            }
        }
        Poll::Ready(false)
    }
    /// Writes what waits. A failure is kept for the reader, who knows whether there was an answer.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Err(error) = ready!(self.out.poll_flush(&mut self.io, &mut self.written, cx)) {
            self.write_failed = true;
            self.failure.get_or_insert_with(|| failure_text(&error));
            self.out.clear();
        }
        Poll::Ready(())
    }
    fn closed(&self) -> StreamError {
        StreamError::ConnectionClosed(self.failure.clone().unwrap_or_default())
    }
}

/// What a transport's failure adds to "connection termination": nothing if the peer just went away.
fn failure_text(error: &std::io::Error) -> String {
    use std::io::ErrorKind as Kind;
    match error.kind() {
        Kind::ConnectionReset | Kind::ConnectionAborted | Kind::BrokenPipe | Kind::UnexpectedEof | Kind::TimedOut => String::new(),
        _ => error.to_string(),
    }
}

/// An idle HTTP/1 connection.
pub struct Client<IO> {
    conn: Box<Conn<IO>>,
}

impl<IO: AsyncRead + AsyncWrite + Unpin + 'static> Client<IO> {
    /// Takes a connected transport.
    pub fn new(io: IO, options: Arc<ClientOptions>) -> Self {
        Self {
            conn: Box::new(Conn {
                io,
                options,
                buf: BytesMut::new(),
                out: OutBuf::default(),
                parser: ResponseParser::default(),
                streams: 0,
                written: 0,
                read: 0,
                eof: false,
                failure: None,
                write_failed: false,
            }),
        }
    }
    /// Whether the connection may carry another stream. Reads once without waiting: a peer that closed, or that sent bytes
    /// nobody asked for, is noticed here.
    pub fn is_reusable(&mut self) -> bool {
        !self.conn.eof && self.poll_idle_check(&mut Context::from_waker(Waker::noop())).is_pending()
    }
    /// To be polled while idle: ready when the peer closed, or sent bytes that nobody asked for. The connection is of no
    /// use then.
    pub fn poll_idle_check(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        if self.conn.eof {
            return Poll::Ready(self.conn.closed());
        }
        if ready!(self.conn.poll_read(cx)) {
            self.conn.eof = true;
            self.conn.buf = BytesMut::new();
            return Poll::Ready(StreamError::Protocol("http1.unsolicited_response"));
        }
        Poll::Ready(self.conn.closed())
    }
    /// Begins a stream. `end`: the request has no body. The head is encoded but written only with the first flush, so that
    /// a body chunk that is at hand shares its write. Fails with `LocalReset` if the head cannot be one HTTP/1 request.
    pub fn send(mut self, head: &RequestHead, end: bool) -> Result<Stream<IO>, StreamError> {
        let conn = &mut *self.conn;
        (conn.written, conn.read) = (0, 0);
        let (framing, asked) = match encode::request(conn.out.tail(), head, end, &conn.options.h1) {
            Ok(done) => done,
            Err(error) => {
                conn.out.clear();
                return Err(error);
            }
        };
        conn.streams += 1;
        let sending = match framing {
            Framing::None if !end && (asked.connect || asked.upgrade) => Sending::Held,
            Framing::None => Sending::Done,
            Framing::Length(n) => Sending::Length(n),
            Framing::Chunked => Sending::Chunked,
            Framing::UntilClose => Sending::Raw,
        };
        Ok(Stream {
            conn: self.conn,
            asked,
            sending,
            head_done: false,
            upgraded: false,
            keep_alive: true,
            body: BodyDecoder::Done,
            ended: false,
            waiting: None,
        })
    }
    /// Streams that the connection carried.
    pub fn streams(&self) -> u64 {
        self.conn.streams
    }
    /// The transport.
    pub fn io(&self) -> &IO {
        &self.conn.io
    }
    /// Closes in an orderly way (TLS close_notify, FIN).
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.conn.io).poll_shutdown(cx).map(drop)
    }
}

/// How the request body stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sending {
    Length(u64),
    Chunked,
    /// An upgrade that was not answered: raw bytes wait.
    Held,
    Raw,
    /// The raw direction ended; the transport is to be shut for writing.
    Shut,
    Done,
}

/// The one stream of an HTTP/1 connection. Methods as in [`crate::ClientStream`].
pub struct Stream<IO> {
    conn: Box<Conn<IO>>,
    asked: Asked,
    sending: Sending,
    /// The final head was given.
    head_done: bool,
    upgraded: bool,
    keep_alive: bool,
    body: BodyDecoder,
    /// The response was given to its end, or failed.
    ended: bool,
    /// Who waits in `poll_ready` for an upgrade to be answered.
    waiting: Option<Waker>,
}

impl<IO: AsyncRead + AsyncWrite + Unpin + 'static> Stream<IO> {
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        if self.sending == Sending::Held {
            self.waiting = Some(cx.waker().clone());
            let _ = self.conn.poll_flush(cx);
            return Poll::Pending;
        }
        if !self.conn.out.has_room() {
            ready!(self.conn.poll_flush(cx));
        }
        Poll::Ready(Ok(()))
    }

    pub fn send_data(&mut self, mut data: Bytes, end: bool) -> Result<(), StreamError> {
        if self.conn.write_failed {
            // Nobody reads it; the response, or its absence, tells the user.
            return Ok(());
        }
        let out = &mut self.conn.out;
        match &mut self.sending {
            Sending::Length(left) => {
                let n = data.len() as u64;
                if n > *left || (end && n < *left && !(self.asked.upgrade || self.asked.connect)) {
                    self.fail();
                    return Err(StreamError::LocalReset("http1.content_length_mismatch"));
                }
                *left -= n;
                let full = *left == 0;
                out.push(std::mem::take(&mut data));
                if full {
                    self.sending = if self.asked.upgrade && !end { self.after_framed() } else { Sending::Done };
                }
            }
            Sending::Chunked => {
                if !data.is_empty() {
                    encode::chunk_size(out.tail(), data.len());
                    out.push(data);
                    out.tail().extend_from_slice(b"\r\n");
                }
                if end {
                    encode::last_chunk(out.tail(), None, &self.conn.options.h1);
                    self.sending = Sending::Done;
                }
            }
            Sending::Raw => {
                out.push(data);
                if end {
                    self.sending = Sending::Shut;
                }
            }
            Sending::Held if data.is_empty() => {
                if end {
                    self.sending = Sending::Done;
                }
            }
            Sending::Held => return Err(StreamError::LocalReset("http1.upgrade_not_answered")),
            Sending::Done | Sending::Shut if data.is_empty() => {}
            Sending::Done | Sending::Shut => {
                self.fail();
                return Err(StreamError::LocalReset("http1.body_after_end"));
            }
        }
        Ok(())
    }

    pub fn send_trailers(&mut self, trailers: &Headers) -> Result<(), StreamError> {
        if self.sending != Sending::Chunked || self.conn.write_failed {
            return self.send_data(Bytes::new(), true);
        }
        let options = self.conn.options.clone();
        encode::last_chunk(self.conn.out.tail(), Some(trailers).filter(|_| options.h1.enable_trailers), &options.h1);
        self.sending = Sending::Done;
        Ok(())
    }

    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        ready!(self.conn.poll_flush(cx));
        if self.sending == Sending::Shut {
            let _ = ready!(Pin::new(&mut self.conn.io).poll_shutdown(cx));
            self.sending = Sending::Done;
        }
        Poll::Ready(Ok(()))
    }

    pub fn poll_response(&mut self, cx: &mut Context<'_>) -> Poll<Result<ResponseHead, StreamError>> {
        let _ = self.conn.poll_flush(cx);
        loop {
            if self.ended || self.head_done {
                return Poll::Ready(Err(StreamError::LocalReset("http1.response_taken")));
            }
            let conn = &mut *self.conn;
            if !conn.buf.is_empty() {
                match conn.parser.parse(&mut conn.buf, &conn.options, self.asked) {
                    Ok(Some(parsed)) => {
                        conn.read += parsed.bytes as u64;
                        if !parsed.informational {
                            self.accept(parsed.framing, parsed.upgraded, parsed.keep_alive);
                        }
                        return Poll::Ready(Ok(parsed.head));
                    }
                    Ok(None) => {}
                    Err(error) => return Poll::Ready(Err(self.broken(error))),
                }
            }
            if conn.eof {
                // Part of a head is an answer that began: the request was seen.
                conn.read += conn.buf.len() as u64;
                let error =
                    if conn.buf.is_empty() || conn.failure.is_some() { conn.closed() } else { StreamError::Protocol(details::CODEC_ERROR) };
                self.fail();
                return Poll::Ready(Err(error));
            }
            ready!(conn.poll_read(cx));
        }
    }

    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        if !self.conn.out.is_empty() {
            let _ = self.conn.poll_flush(cx);
        }
        loop {
            if self.ended {
                return Poll::Ready(None);
            }
            let conn = &mut *self.conn;
            let before = conn.buf.len();
            let decoded = self.body.decode(&mut conn.buf, response::limits(&conn.options), conn.options.h1.enable_trailers);
            conn.read += (before - conn.buf.len()) as u64;
            self.ended = self.body.is_done();
            match decoded {
                Ok(Some(Event::Data(data))) => return Poll::Ready(Some(Ok(Frame::Data(data)))),
                Ok(Some(Event::Trailers(trailers))) => return Poll::Ready(Some(Ok(Frame::Trailers(trailers)))),
                Ok(Some(Event::End)) => return Poll::Ready(None),
                Ok(None) => {}
                Err(error) => return Poll::Ready(Some(Err(self.broken(error)))),
            }
            if conn.eof {
                if conn.failure.is_none() && self.body.eof() {
                    self.ended = true;
                    return Poll::Ready(None);
                }
                let error = if conn.failure.is_some() { conn.closed() } else { StreamError::Protocol(details::CODEC_ERROR) };
                self.fail();
                return Poll::Ready(Some(Err(error)));
            }
            ready!(conn.poll_read(cx));
        }
    }

    pub fn remaining(&self) -> Option<u64> {
        if self.head_done { self.body.remaining() } else { None }
    }
    pub fn is_end(&self) -> bool {
        self.ended
    }
    pub fn is_sent(&self) -> bool {
        self.sending == Sending::Done && self.conn.out.is_empty()
    }
    pub fn bytes_written(&self) -> u64 {
        self.conn.written
    }
    pub fn bytes_read(&self) -> u64 {
        self.conn.read
    }
    /// Closes the connection.
    pub fn reset(self) {
        drop(self);
    }
    /// The connection, if the exchange is over on both sides and it may carry another stream.
    pub fn into_client(self) -> Option<Client<IO>> {
        let conn = &*self.conn;
        let reusable = self.ended
            && self.head_done
            && self.keep_alive
            && self.is_sent()
            && conn.buf.is_empty()
            && !conn.eof
            && !conn.write_failed
            && conn.failure.is_none();
        reusable.then(|| {
            let mut conn = self.conn;
            conn.buf = BytesMut::new();
            Client { conn }
        })
    }
    /// The transport.
    pub fn io(&self) -> &IO {
        &self.conn.io
    }
    /// Streams that the connection carried, this one included.
    pub fn streams(&self) -> u64 {
        self.conn.streams
    }

    /// A final head came.
    fn accept(&mut self, framing: Framing, upgraded: bool, keep_alive: bool) {
        self.head_done = true;
        self.body = BodyDecoder::new(framing);
        self.ended = self.body.is_done();
        self.upgraded = upgraded;
        // An upgrade that was refused leaves open what the client meant to send.
        self.keep_alive = keep_alive && !upgraded && !(self.asked.upgrade || self.asked.connect);
        if self.sending == Sending::Held {
            self.sending = if upgraded { Sending::Raw } else { Sending::Done };
        }
        if let Some(waker) = self.waiting.take() {
            waker.wake();
        }
    }
    /// The framed body of an upgrade is over.
    fn after_framed(&self) -> Sending {
        match (self.head_done, self.upgraded) {
            (false, _) => Sending::Held,
            (true, true) => Sending::Raw,
            (true, false) => Sending::Done,
        }
    }
    fn broken(&mut self, error: HeadError) -> StreamError {
        self.fail();
        match error {
            HeadError::TooLarge(detail) => StreamError::TooLarge(detail),
            HeadError::Bad(detail) | HeadError::NotImplemented(detail) => StreamError::Protocol(detail),
        }
    }
    fn fail(&mut self) {
        (self.ended, self.keep_alive) = (true, false);
        self.conn.out.clear();
    }
}
