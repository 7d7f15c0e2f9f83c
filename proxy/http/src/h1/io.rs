//! Moving bytes between a transport and the machines of this module, with buffers that exist only while bytes move: reads go
//! through one scratch buffer per worker and are copied out at their true size, or share it if they nearly fill it; output is
//! gathered in vectors lent from a per-worker pool. An idle connection holds neither.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

/// What one read can take: 64 KB of body, which is what many senders write at a time, with the head before it.
const SCRATCH: usize = 80 * 1024;
/// A read of this size is handed on without a copy. Its reader then holds the whole buffer: less than three times what it needs.
const SHARE_MIN: usize = 32 * 1024;
/// Data up to this size is copied behind what waits already; more is written from where it is.
const COPY_MAX: usize = 4096;
/// Output that waits for one write. More frames are not asked for above this.
const GATHER_MAX: usize = 32 * 1024;
/// Vectors kept for reuse, and the largest one worth keeping.
const POOLED: usize = 16;
const POOLED_CAPACITY: usize = 64 * 1024;

thread_local! {
    // Taken while it is used: a transport may itself be a stream of this codec (CONNECT tunnels) and read in turn.
    static READ: Cell<Option<BytesMut>> = const { Cell::new(None) };
    static POOL: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// What is read at once of a request that has not begun: what comes of its body with it is kept however long a filter waits.
pub const FIRST_READ: usize = 16 * 1024;

/// Reads once, `limit` bytes at most, and appends to `buf`; 0 bytes is the end of the transport.
pub fn poll_fill<IO>(io: &mut IO, buf: &mut BytesMut, limit: usize, cx: &mut Context<'_>) -> Poll<io::Result<usize>>
where
    IO: AsyncRead + Unpin,
{
    let mut scratch = READ.take().unwrap_or_default();
    // Takes back what was shared if nobody holds it any more, as is usual; else the scratch buffer is a new one.
    scratch.reserve(SCRATCH);
    let result = pin!(io.read_buf(&mut (&mut scratch).limit(limit))).poll(cx);
    if scratch.len() >= SHARE_MIN && buf.is_empty() {
        *buf = scratch.split();
    } else {
        buf.extend_from_slice(&scratch);
        scratch.clear();
    }
    READ.set(Some(scratch));
    result
}

/// Output of one connection: small things gathered, then at most one large piece, then what follows it.
#[derive(Debug, Default)]
pub struct OutBuf {
    front: Vec<u8>,
    written: usize,
    body: Bytes,
    back: Vec<u8>,
    /// The transport may still hold some of what was written: TLS takes more than its socket does.
    unflushed: bool,
}

impl OutBuf {
    /// Whether everything was written and flushed.
    pub fn is_empty(&self) -> bool {
        self.is_written() && !self.unflushed
    }
    fn is_written(&self) -> bool {
        self.front.is_empty() && self.body.is_empty()
    }
    /// Whether more may be put in before the next write.
    pub fn has_room(&self) -> bool {
        self.body.is_empty() && self.front.len() - self.written.min(self.front.len()) < GATHER_MAX
    }
    /// Where small things are appended.
    pub fn tail(&mut self) -> &mut Vec<u8> {
        if !self.body.is_empty() {
            return &mut self.back;
        }
        if self.front.capacity() == 0 {
            self.front = POOL.with_borrow_mut(Vec::pop).unwrap_or_else(|| Vec::with_capacity(COPY_MAX));
        }
        &mut self.front
    }
    /// Appends body bytes, by copy if they are few.
    pub fn push(&mut self, data: Bytes) {
        if data.len() <= COPY_MAX || !self.body.is_empty() {
            self.tail().extend_from_slice(&data);
        } else {
            self.body = data;
        }
    }
    /// Drops everything that waits.
    pub fn clear(&mut self) {
        self.body = Bytes::new();
        self.back = Vec::new();
        (self.written, self.unflushed) = (0, false);
        give_back(std::mem::take(&mut self.front));
    }
    /// Writes everything and flushes the transport. `total` counts what was written.
    pub fn poll_flush<IO: AsyncWrite + Unpin>(&mut self, io: &mut IO, total: &mut u64, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_empty() {
            return Poll::Ready(Ok(()));
        }
        while !self.is_written() {
            self.unflushed = true;
            let front = self.front.get(self.written..).unwrap_or_default();
            let n = if self.body.is_empty() {
                ready!(Pin::new(&mut *io).poll_write(cx, front))?
            } else if front.is_empty() {
                ready!(Pin::new(&mut *io).poll_write(cx, &self.body))?
            } else {
                let parts = [IoSlice::new(front), IoSlice::new(&self.body)];
                ready!(Pin::new(&mut *io).poll_write_vectored(cx, &parts))?
            };
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            *total += n as u64;
            self.advance(n);
        }
        ready!(Pin::new(io).poll_flush(cx))?;
        self.unflushed = false;
        Poll::Ready(Ok(()))
    }
    fn advance(&mut self, n: usize) {
        let front = n.min(self.front.len() - self.written);
        self.written += front;
        let rest = (n - front).min(self.body.len());
        self.body.advance(rest);
        if self.written < self.front.len() {
            return;
        }
        self.written = 0;
        self.front.clear();
        if self.body.is_empty() {
            self.body = Bytes::new();
            let back = std::mem::take(&mut self.back);
            let front = std::mem::replace(&mut self.front, back);
            give_back(front);
        }
    }
}

impl Drop for OutBuf {
    fn drop(&mut self) {
        self.clear();
    }
}

fn give_back(mut buffer: Vec<u8>) {
    if buffer.capacity() == 0 || buffer.capacity() > POOLED_CAPACITY {
        return;
    }
    buffer.clear();
    // The pool is gone while a thread ends.
    let _ = POOL.try_with(|pool| {
        let mut pool = pool.borrow_mut();
        if pool.len() < POOLED {
            pool.push(buffer);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;

    /// Takes a given number of bytes per write.
    struct Slow(usize, Vec<u8>);
    impl AsyncWrite for Slow {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
            let n = self.0.min(data.len());
            self.1.extend_from_slice(&data[..n]);
            Poll::Ready(Ok(n))
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn large_reads_are_shared_and_survive_the_next_ones() {
        let mut cx = Context::from_waker(Waker::noop());
        let mut fill = |data: &[u8], buf: &mut BytesMut| {
            let mut io = data;
            assert!(matches!(poll_fill(&mut io, buf, usize::MAX, &mut cx), Poll::Ready(Ok(n)) if n == data.len()));
        };
        let (large, small) = (vec![b'l'; SHARE_MIN], [b's'; 10]);
        let (mut first, mut second, mut third) = (BytesMut::new(), BytesMut::new(), BytesMut::from(&b"third"[..]));
        fill(&large, &mut first);
        let at = first.as_ptr();
        // The first is still held: nothing that is read later may overwrite it.
        fill(&small, &mut second);
        fill(&large, &mut third);
        assert!(first == large && second == small[..] && third[..5] == *b"third" && third[5..] == large);
        assert!(second.capacity() < SHARE_MIN, "a small read does not hold a large buffer");
        let again = {
            drop(first);
            let mut buf = BytesMut::new();
            fill(&large, &mut buf);
            let at = buf.as_ptr();
            drop(buf);
            let mut buf = BytesMut::new();
            fill(&large, &mut buf);
            (at, buf.as_ptr())
        };
        assert_eq!(again.0, again.1, "what nobody holds is read into again");
        assert_ne!(at, again.0);
    }

    /// Takes everything at once and hands it on when flushed, at the second try: TLS over a socket that is full.
    #[derive(Default)]
    struct Sealed {
        held: Vec<u8>,
        tries: usize,
        sent: Vec<u8>,
    }
    impl AsyncWrite for Sealed {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
            self.held.extend_from_slice(data);
            Poll::Ready(Ok(data.len()))
        }
        fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.tries += 1;
            if self.tries % 2 == 1 {
                return Poll::Pending;
            }
            let held = std::mem::take(&mut self.held);
            self.sent.extend(held);
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn what_the_transport_holds_is_flushed_to_its_end() {
        let mut cx = Context::from_waker(Waker::noop());
        let (mut out, mut io, mut total) = (OutBuf::default(), Sealed::default(), 0);
        for round in 1..3 {
            out.tail().extend_from_slice(b"head");
            assert!(out.poll_flush(&mut io, &mut total, &mut cx).is_pending());
            assert!(!out.is_empty() && out.has_room(), "not all is sent, but more may come");
            assert!(out.poll_flush(&mut io, &mut total, &mut cx).is_ready());
            assert!(out.is_empty());
            assert_eq!(io.sent, b"head".repeat(round));
        }
        assert!(out.poll_flush(&mut io, &mut total, &mut cx).is_ready() && io.tries == 4, "nothing to flush");
    }

    #[test]
    fn order_survives_any_write_size() {
        for step in [1, 2, 3, 7, 100, 5000, 1 << 20] {
            let mut out = OutBuf::default();
            out.tail().extend_from_slice(b"head");
            out.push(Bytes::from_static(b"small"));
            let large = vec![b'x'; COPY_MAX + 1];
            out.push(Bytes::from(large.clone()));
            assert!(!out.has_room());
            out.tail().extend_from_slice(b"tail");
            out.push(Bytes::from_static(b"more"));
            let (mut io, mut total) = (Slow(step, Vec::new()), 0);
            assert!(out.poll_flush(&mut io, &mut total, &mut Context::from_waker(Waker::noop())).is_ready());
            let expected = [b"headsmall".as_slice(), &large, b"tailmore"].concat();
            assert!(io.1 == expected, "step {step}");
            assert_eq!(total, expected.len() as u64);
            assert!(out.is_empty() && out.has_room());
        }
    }
}
