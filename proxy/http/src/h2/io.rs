//! The transport as the `h2` crate sees it: bytes that were read before come first, and reads are noted for keep-alive.

use bytes::{Buf, BytesMut};
use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// When something was last received; only kept if somebody asks (`connection_idle_interval`).
#[derive(Debug, Default)]
pub struct Heard {
    /// Something was read: the peer's SETTINGS, which come first.
    pub any: Cell<bool>,
    pub at: Cell<Option<Instant>>,
    pub wanted: Cell<bool>,
}

/// A transport with a prefix.
pub struct Io<IO> {
    io: IO,
    prefix: BytesMut,
    heard: Rc<Heard>,
}

impl<IO> Io<IO> {
    pub fn new(io: IO, prefix: BytesMut) -> Self {
        Self { io, prefix, heard: Rc::default() }
    }
    pub fn heard(&self) -> Rc<Heard> {
        self.heard.clone()
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Io<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.prefix.is_empty() {
            let n = self.prefix.len().min(buf.remaining());
            buf.put_slice(self.prefix.get(..n).unwrap_or_default());
            self.prefix.advance(n);
            if self.prefix.is_empty() {
                self.prefix = BytesMut::new();
            }
            return Poll::Ready(Ok(()));
        }
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        if read.is_ready() {
            self.heard.any.set(true);
            if self.heard.wanted.get() {
                self.heard.at.set(Some(Instant::now()));
            }
        }
        read
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Io<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, data)
    }
    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, data)
    }
    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
