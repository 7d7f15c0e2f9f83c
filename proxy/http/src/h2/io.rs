//! The transport as the `h2` crate sees it: bytes that were read before come first, reads are noted for keep-alive, frames are watched,
//! and a write that fails does not hide what the peer said before it closed.

use crate::h2::guard::Guard;
use bytes::BytesMut;
use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// Of what a peer sends while its connection is closed, this many kilobytes are read.
const MOST_READS_AT_END: usize = 64;

/// What was seen of a connection.
#[derive(Debug)]
pub struct Heard {
    /// Something was read: the peer's SETTINGS, which come first.
    pub any: Cell<bool>,
    /// When something was last received; only kept if somebody asks (`connection_idle_interval`).
    pub at: Cell<Option<Instant>>,
    pub wanted: Cell<bool>,
    pub guard: RefCell<Guard>,
}

/// A transport with a prefix.
pub struct Io<IO: AsyncRead + Unpin> {
    io: IO,
    prefix: BytesMut,
    heard: Rc<Heard>,
    /// A write failed: what is written since goes nowhere, and this is the end once everything is read that came before.
    unwritable: Option<io::Error>,
}

impl<IO: AsyncRead + Unpin> Io<IO> {
    pub fn new(io: IO, prefix: BytesMut, guard: Guard) -> Self {
        let heard = Heard { any: Cell::default(), at: Cell::default(), wanted: Cell::default(), guard: RefCell::new(guard) };
        Self { io, prefix, heard: Rc::new(heard), unwritable: None }
    }
    pub fn heard(&self) -> Rc<Heard> {
        self.heard.clone()
    }
    /// A peer that answers, closes and is written to again resets the connection: its answer (GOAWAY, or what is no HTTP/2 at all)
    /// is still there to be read, and decides what becomes of the streams.
    fn wrote(&mut self, done: Poll<io::Result<usize>>, offered: usize) -> Poll<io::Result<usize>> {
        match done {
            Poll::Ready(Err(error)) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                self.unwritable = Some(error);
                Poll::Ready(Ok(offered))
            }
            done => done,
        }
    }
    fn watch(&self, bytes: &[u8]) -> io::Result<()> {
        self.heard.guard.borrow_mut().received(bytes).map_err(|offence| io::Error::other(offence.details()))
    }
}

/// Closing on unread bytes would reset the connection, and take a GOAWAY that is on its way with it: what has come is read first.
impl<IO: AsyncRead + Unpin> Drop for Io<IO> {
    fn drop(&mut self) {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut room = [std::mem::MaybeUninit::uninit(); 1024];
        for _ in 0..MOST_READS_AT_END {
            let mut buf = ReadBuf::uninit(&mut room);
            let read = Pin::new(&mut self.io).poll_read(&mut cx, &mut buf);
            if !matches!(read, Poll::Ready(Ok(()))) || buf.filled().is_empty() {
                return;
            }
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Io<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.prefix.is_empty() {
            let n = self.prefix.len().min(buf.remaining());
            let taken = self.prefix.split_to(n);
            buf.put_slice(&taken);
            if self.prefix.is_empty() {
                self.prefix = BytesMut::new();
            }
            return Poll::Ready(self.watch(&taken));
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        if read.is_ready() {
            self.heard.any.set(true);
            if self.heard.wanted.get() {
                self.heard.at.set(Some(Instant::now()));
            }
        }
        let new = buf.filled().get(before..).unwrap_or_default();
        if new.is_empty()
            && let Some(error) = self.unwritable.take()
        {
            return Poll::Ready(Err(error));
        }
        match read {
            Poll::Ready(Ok(())) => Poll::Ready(self.watch(new)),
            read => read,
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Io<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if self.unwritable.is_some() {
            return Poll::Ready(Ok(data.len()));
        }
        let done = Pin::new(&mut self.io).poll_write(cx, data);
        if let Poll::Ready(Ok(n)) = &done {
            self.heard.guard.borrow_mut().sent(data.get(..*n).unwrap_or_default());
        }
        self.wrote(done, data.len())
    }
    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let offered = data.iter().map(|part| part.len()).sum();
        if self.unwritable.is_some() {
            return Poll::Ready(Ok(offered));
        }
        let done = Pin::new(&mut self.io).poll_write_vectored(cx, data);
        if let Poll::Ready(Ok(n)) = &done {
            let mut left = *n;
            let mut guard = self.heard.guard.borrow_mut();
            for part in data {
                let n = left.min(part.len());
                guard.sent(part.get(..n).unwrap_or_default());
                left -= n;
            }
        }
        self.wrote(done, offered)
    }
    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.unwritable.is_some() {
            return Poll::Ready(Ok(()));
        }
        let done = Pin::new(&mut self.io).poll_flush(cx).map_ok(|()| 0);
        self.wrote(done, 0).map_ok(|_| ())
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
