//! Bulk bytes from socket to socket through a pipe of the kernel (splice(2)), never copied into this process. Used by the pump, on
//! workers, for a direction that moves much and whose bytes no filter and no TLS needs to see.
//!
//! Pipes are pooled by worker. Where none is to be had (descriptors, `pipe-user-pages-soft`), the pump copies.

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags};
use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::task::{Context, Poll, ready};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// What a pipe is asked to hold, and so what a slow reader can keep in the kernel; 64 KiB where the kernel refuses.
pub(crate) const CAPACITY: usize = 128 * 1024;
/// Spare pipes that a worker keeps.
const SPARE: usize = 16;

thread_local! {
    static POOL: RefCell<Vec<KernelPipe>> = const { RefCell::new(Vec::new()) };
}

/// A stream whose bytes may go past it.
pub(crate) trait Bypass {
    /// The socket, if nothing stands between it and the reader or writer of this stream now.
    fn socket(&mut self) -> Option<&TcpStream>;
    /// Counts bytes that were taken from or given to [`Self::socket`].
    fn bypassed(&self, received: usize, sent: usize);
}

impl Bypass for TcpStream {
    fn socket(&mut self) -> Option<&TcpStream> {
        Some(self)
    }
    fn bypassed(&self, _: usize, _: usize) {}
}

impl Bypass for nuncio_tls::Transport {
    fn socket(&mut self) -> Option<&TcpStream> {
        match self {
            Self::Tcp(socket) => Some(socket),
            _ => None,
        }
    }
    fn bypassed(&self, _: usize, _: usize) {}
}

impl Bypass for nuncio_upstream::UpstreamConnection {
    fn socket(&mut self) -> Option<&TcpStream> {
        self.plain().and_then(Bypass::socket)
    }
    fn bypassed(&self, received: usize, sent: usize) {
        self.count(received as u64, sent as u64);
    }
}

/// A pipe and how much is in it.
#[derive(Debug)]
pub(crate) struct KernelPipe {
    read: OwnedFd,
    write: OwnedFd,
    len: usize,
}

impl KernelPipe {
    /// An empty pipe of the pool, or a new one.
    pub fn take() -> Option<Self> {
        POOL.with_borrow_mut(Vec::pop).or_else(Self::new)
    }
    fn new() -> Option<Self> {
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
        // Refused where the user's pipes hold too many pages already; a small pipe does as well, in more steps.
        let _ = rustix::pipe::fcntl_setpipe_size(&write, CAPACITY);
        Some(Self { read, write, len: 0 })
    }
    /// Gives an empty pipe back to the pool; one with bytes in it is closed.
    pub fn release(self) {
        POOL.with_borrow_mut(|pool| {
            if self.len == 0 && pool.len() < SPARE {
                pool.push(self);
            }
        });
    }
    pub fn len(&self) -> usize {
        self.len
    }
    /// Moves what has come on `socket` into the pipe, which must be empty. 0 is the end.
    pub fn fill(&mut self, cx: &mut Context<'_>, socket: &TcpStream) -> Poll<io::Result<usize>> {
        loop {
            ready!(socket.poll_read_ready(cx))?;
            match socket.try_io(Interest::READABLE, || splice(socket.as_fd(), self.write.as_fd(), CAPACITY)) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                result => {
                    self.len = *result.as_ref().unwrap_or(&0);
                    return Poll::Ready(result);
                }
            }
        }
    }
    /// Moves what `socket` takes out of the pipe.
    pub fn drain(&mut self, cx: &mut Context<'_>, socket: &TcpStream) -> Poll<io::Result<usize>> {
        loop {
            ready!(socket.poll_write_ready(cx))?;
            match socket.try_io(Interest::WRITABLE, || splice(self.read.as_fd(), socket.as_fd(), self.len)) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                result => {
                    let taken = *result.as_ref().unwrap_or(&0);
                    self.len = self.len.saturating_sub(taken);
                    return Poll::Ready(result);
                }
            }
        }
    }
    /// Takes the bytes out, for a filter that wants them after all.
    pub fn into_bytes(mut self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.len];
        let mut at = 0;
        while let Some(rest) = bytes.get_mut(at..).filter(|r| !r.is_empty()) {
            match rustix::io::read(&self.read, rest) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => at += n,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        self.len = 0;
        self.release();
        Ok(bytes)
    }
}

fn splice(from: BorrowedFd<'_>, to: BorrowedFd<'_>, len: usize) -> io::Result<usize> {
    loop {
        match rustix::pipe::splice(from, None, to, None, len, SpliceFlags::NONBLOCK | SpliceFlags::MOVE) {
            Err(Errno::INTR) => {}
            result => return result.map_err(io::Error::from),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn bytes_come_out_as_they_went_in_or_back_to_us() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (mut client, near) =
            tokio::join!(async { TcpStream::connect(address).await.unwrap() }, async { listener.accept().await.unwrap().0 });
        client.write_all(b"hello").await.unwrap();
        let mut pipe = KernelPipe::take().unwrap();
        assert_eq!(poll_fn(|cx| pipe.fill(cx, &near)).await.unwrap(), 5);
        assert_eq!(poll_fn(|cx| pipe.drain(cx, &near)).await.unwrap(), 5);
        assert_eq!(pipe.len(), 0);
        let mut back = [0; 5];
        client.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, b"hello");

        client.write_all(b"again").await.unwrap();
        assert_eq!(poll_fn(|cx| pipe.fill(cx, &near)).await.unwrap(), 5);
        assert_eq!(pipe.into_bytes().unwrap(), b"again");
        let mut pipe = KernelPipe::take().unwrap();
        drop(client);
        assert_eq!(poll_fn(|cx| pipe.fill(cx, &near)).await.unwrap(), 0);
    }

    /// A pipe with bytes in it must not serve another connection.
    #[tokio::test]
    async fn a_pipe_that_is_not_empty_is_not_pooled() {
        POOL.with_borrow_mut(Vec::clear);
        KernelPipe { len: 1, ..KernelPipe::take().unwrap() }.release();
        assert_eq!(POOL.with_borrow(Vec::len), 0);
        KernelPipe::take().unwrap().release();
        assert_eq!(POOL.with_borrow(Vec::len), 1);
    }
}
