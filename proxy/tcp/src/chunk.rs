//! Bytes on their way through the pump, and where they are meanwhile: in a buffer of the worker's pool, in one of their own, or in
//! a pipe of the kernel. Used on workers.

use crate::bypass::{Bypass, KernelPipe};
use bytes::{Buf, BytesMut};
use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const SMALL: usize = 8 * 1024;
const LARGE: usize = 64 * 1024;
/// Spare buffers that a worker keeps of each size.
const SPARE: usize = 16;

thread_local! {
    static POOL: RefCell<[Vec<Box<[u8]>>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
}

fn take(large: bool) -> Box<[u8]> {
    let spare = POOL.with_borrow_mut(|pool| pool.get_mut(usize::from(large)).and_then(Vec::pop));
    spare.unwrap_or_else(|| vec![0; if large { LARGE } else { SMALL }].into())
}

fn give_back(buffer: Box<[u8]>) {
    POOL.with_borrow_mut(|pool| {
        if let Some(spares) = pool.get_mut(usize::from(buffer.len() == LARGE))
            && spares.len() < SPARE
        {
            spares.push(buffer);
        }
    });
}

/// Bytes on their way.
pub(crate) enum Chunk {
    Pooled { buffer: Box<[u8]>, start: usize, end: usize },
    Own(BytesMut),
    Kernel(KernelPipe),
}

impl Chunk {
    pub fn len(&self) -> usize {
        match self {
            Self::Pooled { start, end, .. } => end - start,
            Self::Own(bytes) => bytes.len(),
            Self::Kernel(pipe) => pipe.len(),
        }
    }
    /// Gives `io` what it takes; how much that was.
    pub fn poll_write<W: AsyncWrite + Bypass + Unpin>(&mut self, cx: &mut Context<'_>, io: &mut W) -> Poll<io::Result<usize>> {
        match self {
            Self::Pooled { buffer, start, end } => {
                let n = ready!(Pin::new(io).poll_write(cx, buffer.get(*start..*end).unwrap_or_default()))?;
                *start += n;
                Poll::Ready(Ok(n))
            }
            Self::Own(bytes) => {
                let n = ready!(Pin::new(io).poll_write(cx, bytes))?;
                bytes.advance(n.min(bytes.len()));
                Poll::Ready(Ok(n))
            }
            Self::Kernel(pipe) => {
                let Some(socket) = io.socket() else { return Poll::Ready(Err(io::ErrorKind::Unsupported.into())) };
                let n = ready!(pipe.drain(cx, socket))?;
                io.bypassed(0, n);
                Poll::Ready(Ok(n))
            }
        }
    }
    /// The bytes in a buffer that filters may change.
    pub fn into_own(self) -> io::Result<BytesMut> {
        Ok(match self {
            Self::Own(bytes) => bytes,
            Self::Pooled { buffer, start, end } => {
                let bytes = BytesMut::from(buffer.get(start..end).unwrap_or_default());
                give_back(buffer);
                bytes
            }
            Self::Kernel(pipe) => BytesMut::from(pipe.into_bytes()?.as_slice()),
        })
    }
    pub fn release(self) {
        match self {
            Self::Pooled { buffer, .. } => give_back(buffer),
            Self::Kernel(pipe) => pipe.release(),
            Self::Own(_) => {}
        }
    }
}

/// Reads what has come: into a pipe of the kernel if much comes and `bypass` says that nobody wants to see it, otherwise into a
/// buffer of the pool. `None` is the end. A peer that closes without TLS close_notify has ended too.
pub(crate) fn read<R>(reader: &mut R, cx: &mut Context<'_>, large: &mut bool, bypass: bool) -> Poll<io::Result<Option<Chunk>>>
where
    R: AsyncRead + Bypass + Unpin,
{
    if *large
        && bypass
        && let Some(socket) = reader.socket()
        && let Some(mut pipe) = KernelPipe::take()
    {
        match pipe.fill(cx, socket) {
            Poll::Ready(Ok(n)) if n > 0 => {
                *large = n >= SMALL;
                reader.bypassed(n, 0);
                return Poll::Ready(Ok(Some(Chunk::Kernel(pipe))));
            }
            Poll::Pending => {
                pipe.release();
                return Poll::Pending;
            }
            // The end or an error: the read below tells it to whoever counts.
            Poll::Ready(_) => pipe.release(),
        }
    }
    let mut buffer = take(*large);
    let mut space = ReadBuf::new(&mut buffer);
    let result = Pin::new(reader).poll_read(cx, &mut space);
    let end = space.filled().len();
    match result {
        Poll::Ready(Ok(())) if end > 0 => {
            *large = end == buffer.len() || (*large && end >= SMALL);
            Poll::Ready(Ok(Some(Chunk::Pooled { buffer, start: 0, end })))
        }
        other => {
            give_back(buffer);
            match ready!(other) {
                Err(e) if e.kind() != io::ErrorKind::UnexpectedEof => Poll::Ready(Err(e)),
                _ => Poll::Ready(Ok(None)),
            }
        }
    }
}
