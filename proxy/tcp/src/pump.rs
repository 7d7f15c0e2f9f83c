//! Moves bytes in both directions until both have ended. Belongs to one worker's task; all state is one struct, polled as a
//! whole, so that the directions share it without locks.
//!
//! A direction holds a buffer only while bytes are in it ([`Chunk`]): buffers come from a pool of the worker, small ones until a read
//! fills one, so that idle connections hold none. Bulk bytes that nobody needs to see stay in the kernel.

use crate::bypass::Bypass;
use crate::chunk::{Chunk, read};
use crate::stats::Stats;
use bytes::BytesMut;
use nuncio_core::StreamInfo;
use nuncio_core::info::DetectedClose;
use nuncio_listener::{Filters, Passed};
use std::borrow::Cow;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;
use tokio::io::{AsyncRead, AsyncWrite};

/// One direction.
#[derive(Default)]
struct Pipe {
    chunk: Option<Chunk>,
    /// Bytes filled the last small buffer.
    large: bool,
    /// The reading side has ended.
    ended: bool,
    /// The end was passed on, or cannot be any more.
    finished: bool,
    /// Written since the last flush.
    dirty: bool,
    /// Bytes that the writer did not take, as counted in the gauge.
    blocked: usize,
}

impl Pipe {
    fn put(&mut self, bytes: BytesMut) {
        if !bytes.is_empty() {
            self.chunk = Some(Chunk::Own(bytes));
        }
    }
    fn waiting(&self) -> usize {
        self.chunk.as_ref().map_or(0, Chunk::len)
    }
}

/// The bytes of `chunk`, if any, in a buffer that filters may change.
fn own(chunk: Option<Chunk>) -> io::Result<BytesMut> {
    chunk.map_or_else(|| Ok(BytesMut::new()), Chunk::into_own)
}

/// Why both directions are over.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Both sides ended orderly.
    Done,
    /// The peer reset the connection or could not be written to.
    Downstream,
    /// The upstream reset the connection.
    UpstreamReset,
    /// The upstream failed otherwise.
    Upstream,
    /// A filter closed the connection.
    Filter(Cow<'static, str>),
}

/// What one connection's directions share.
pub(crate) struct Flow {
    pub info: StreamInfo,
    pub filters: Filters,
    /// When bytes last moved.
    pub moved: Instant,
    up: Pipe,
    down: Pipe,
    /// The downstream is gone; what it sent is still being delivered.
    flushing: bool,
}

impl Flow {
    pub fn new(info: StreamInfo, filters: Filters) -> Self {
        Self { info, filters, moved: Instant::now(), up: Pipe::default(), down: Pipe::default(), flushing: false }
    }
    /// Begins the filters.
    pub fn begin(&mut self) -> Passed {
        let mut out = BytesMut::new();
        let passed = self.filters.begin(&mut self.info, &mut out);
        self.down.put(out);
        passed
    }
    /// Takes bytes that were read from the downstream before the flow began.
    pub fn take_in(&mut self, bytes: BytesMut, stats: &Stats) -> Result<(), End> {
        if bytes.is_empty() { Ok(()) } else { self.arrived(Some(Chunk::Own(bytes)), stats) }
    }
    /// Bytes (or the end) from the downstream: counts them and passes them through the filters.
    fn arrived(&mut self, chunk: Option<Chunk>, stats: &Stats) -> Result<(), End> {
        let size = chunk.as_ref().map_or(0, Chunk::len);
        let connection = &self.info.connection;
        connection.rx_bytes.set(connection.rx_bytes.get() + size as u64);
        stats.rx_bytes_total.add(size as u64);
        self.moved = Instant::now();
        let end = chunk.is_none();
        if self.filters.want_data() {
            let mut data = own(chunk).map_err(|_| End::Downstream)?;
            let mut out = BytesMut::new();
            let passed = self.filters.read(&mut self.info, &mut data, end, &mut out);
            self.send(out)?;
            match passed {
                Passed::On => self.up.put(data),
                Passed::Held => {}
                Passed::Closed(why) => return Err(End::Filter(why)),
            }
        } else {
            self.up.chunk = chunk;
        }
        self.up.ended = end;
        self.count_taken();
        Ok(())
    }
    /// Counts bytes that filters let pass.
    fn count_taken(&mut self) {
        let taken = self.up.waiting() as u64;
        self.info.wire_rx_bytes += taken;
        let meter = &self.info.request_meter;
        meter.bytes.set(meter.bytes.get() + taken);
    }
    /// Puts what filters want to send behind what is on its way to the downstream.
    fn send(&mut self, out: BytesMut) -> Result<(), End> {
        if !out.is_empty() {
            let mut all = own(self.down.chunk.take()).map_err(|_| End::Downstream)?;
            all.unsplit(out);
            self.down.put(all);
        }
        Ok(())
    }
    /// Asks the filters that wait for a service. Ready when none waits any more; what they held is on its way then.
    pub fn poll_waiting(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        let (mut data, mut out) = (BytesMut::new(), BytesMut::new());
        let polled = self.filters.poll_waiting(cx, &mut self.info, &mut data, &mut out);
        self.send(out)?;
        match ready!(polled) {
            Passed::On => {
                self.up.put(data);
                self.count_taken();
                Poll::Ready(Ok(()))
            }
            Passed::Held => Poll::Ready(Ok(())),
            Passed::Closed(why) => Poll::Ready(Err(End::Filter(why))),
        }
    }
    /// Bytes (or the end) from the upstream.
    fn answered(&mut self, chunk: Option<Chunk>) -> Result<(), End> {
        let size = chunk.as_ref().map_or(0, Chunk::len) as u64;
        self.info.bytes_sent += size;
        self.info.upstream_mut().wire_rx_bytes += size;
        self.moved = Instant::now();
        let end = chunk.is_none();
        if self.filters.want_data() {
            let mut data = own(chunk).map_err(|_| End::Upstream)?;
            match self.filters.write(&mut self.info, &mut data, end) {
                Passed::On => self.down.put(data),
                Passed::Held => {}
                Passed::Closed(why) => return Err(End::Filter(why)),
            }
        } else {
            self.down.chunk = chunk;
        }
        self.down.ended = end;
        Ok(())
    }

    /// Reads from the downstream while filters hold the connection at its beginning and, if `data`, until there is something to
    /// send upstream (`upstream_connect_mode: ON_DOWNSTREAM_DATA`). What filters send meanwhile goes out.
    pub fn poll_first<D>(&mut self, cx: &mut Context<'_>, io: &mut D, data: bool, stats: &Stats) -> Poll<Result<(), End>>
    where
        D: AsyncRead + AsyncWrite + Bypass + Unpin,
    {
        loop {
            if self.poll_write_down(cx, io, stats)?.is_ready() && self.down.dirty {
                self.down.dirty = Pin::new(&mut *io).poll_flush(cx).is_pending();
            }
            if self.filters.is_waiting() && self.poll_waiting(cx)?.is_pending() {
                if !self.filters.wants_more() {
                    return Poll::Pending;
                }
            } else if self.up.ended || (!self.filters.holding() && (!data || self.up.chunk.is_some())) {
                return Poll::Ready(Ok(()));
            }
            match ready!(read(io, cx, &mut self.up.large, false)) {
                Ok(chunk) => self.arrived(chunk, stats)?,
                Err(e) => return Poll::Ready(Err(self.left(&e))),
            }
        }
    }
    /// The downstream failed: notes whether it was by a reset.
    fn left(&self, why: &io::Error) -> End {
        if why.kind() == io::ErrorKind::ConnectionReset {
            self.info.connection.detected_close.set(DetectedClose::RemoteReset);
        }
        End::Downstream
    }

    fn poll_write_down<D: AsyncWrite + Bypass + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut D,
        stats: &Stats,
    ) -> Poll<Result<(), End>> {
        while let Some(chunk) = &mut self.down.chunk {
            match chunk.poll_write(cx, io) {
                Poll::Ready(Ok(n)) if n > 0 => {
                    self.down.dirty = true;
                    self.moved = Instant::now();
                    let connection = &self.info.connection;
                    connection.tx_bytes.set(connection.tx_bytes.get() + n as u64);
                    self.info.wire_tx_bytes += n as u64;
                    stats.tx_bytes_total.add(n as u64);
                }
                Poll::Ready(_) => return Poll::Ready(Err(End::Downstream)),
                Poll::Pending => {
                    let waiting = chunk.len();
                    stats.tx_bytes_buffered.add(waiting as i64 - self.down.blocked as i64);
                    self.down.blocked = waiting;
                    return Poll::Pending;
                }
            }
            if chunk.len() == 0
                && let Some(done) = self.down.chunk.take()
            {
                done.release();
            }
        }
        if self.down.blocked > 0 {
            stats.tx_bytes_buffered.add(-(std::mem::take(&mut self.down.blocked) as i64));
        }
        Poll::Ready(Ok(()))
    }
    /// True when everything is written; false if the upstream takes nothing any more.
    fn poll_write_up<U: AsyncWrite + Bypass + Unpin>(&mut self, cx: &mut Context<'_>, upstream: &mut U, stats: &Stats) -> Poll<bool> {
        while let Some(chunk) = &mut self.up.chunk {
            match chunk.poll_write(cx, upstream) {
                Poll::Ready(Ok(n)) if n > 0 => {
                    self.up.dirty = true;
                    self.moved = Instant::now();
                    self.info.upstream_mut().wire_tx_bytes += n as u64;
                }
                Poll::Ready(_) => return Poll::Ready(false),
                Poll::Pending => {
                    let waiting = chunk.len();
                    if self.up.blocked == 0 {
                        stats.paused_reading.inc();
                    }
                    stats.rx_bytes_buffered.add(waiting as i64 - self.up.blocked as i64);
                    self.up.blocked = waiting;
                    return Poll::Pending;
                }
            }
            if chunk.len() == 0
                && let Some(done) = self.up.chunk.take()
            {
                done.release();
            }
        }
        self.unblock_up(stats);
        Poll::Ready(true)
    }
    fn unblock_up(&mut self, stats: &Stats) {
        if self.up.blocked > 0 {
            stats.rx_bytes_buffered.add(-(std::mem::take(&mut self.up.blocked) as i64));
            stats.resumed_reading.inc();
        }
    }

    /// Downstream to upstream, until its end was passed on.
    fn poll_up<D, U>(&mut self, cx: &mut Context<'_>, io: &mut D, upstream: &mut U, stats: &Stats) -> Poll<Result<(), End>>
    where
        D: AsyncRead + Bypass + Unpin,
        U: AsyncWrite + Bypass + Unpin,
    {
        loop {
            if self.up.finished {
                return Poll::Ready(Ok(()));
            }
            if self.filters.is_waiting() && self.poll_waiting(cx)?.is_pending() && !self.filters.wants_more() {
                return Poll::Pending;
            }
            if !ready!(self.poll_write_up(cx, upstream, stats)) {
                // The upstream reads no more; what it still has to say, or that it reset, is told by the other direction.
                self.unblock_up(stats);
                self.up.chunk = None;
                self.up.finished = true;
                continue;
            }
            if self.up.ended {
                // Fails only if the upstream is gone already, which the other direction tells.
                let _ = ready!(Pin::new(&mut *upstream).poll_shutdown(cx));
                self.up.finished = true;
                continue;
            }
            let bypass = !self.filters.want_data() && upstream.socket().is_some();
            match read(io, cx, &mut self.up.large, bypass) {
                Poll::Ready(Ok(chunk)) => self.arrived(chunk, stats)?,
                Poll::Ready(Err(e)) => return Poll::Ready(Err(self.left(&e))),
                Poll::Pending => {
                    if self.up.dirty && Pin::new(&mut *upstream).poll_flush(cx).is_ready() {
                        self.up.dirty = false;
                    }
                    return Poll::Pending;
                }
            }
        }
    }
    /// Upstream to downstream, until its end was passed on.
    fn poll_down<D, U>(&mut self, cx: &mut Context<'_>, io: &mut D, upstream: &mut U, stats: &Stats) -> Poll<Result<(), End>>
    where
        D: AsyncWrite + Bypass + Unpin,
        U: AsyncRead + Bypass + Unpin,
    {
        loop {
            if self.down.finished {
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_write_down(cx, io, stats))?;
            if self.down.ended {
                let shut = ready!(Pin::new(&mut *io).poll_shutdown(cx));
                self.down.finished = true;
                if shut.is_err() {
                    return Poll::Ready(Err(End::Downstream));
                }
                continue;
            }
            let bypass = !self.filters.want_data() && io.socket().is_some();
            match read(upstream, cx, &mut self.down.large, bypass) {
                Poll::Ready(Ok(chunk)) => self.answered(chunk)?,
                Poll::Ready(Err(e)) if e.kind() == io::ErrorKind::ConnectionReset => return Poll::Ready(Err(End::UpstreamReset)),
                Poll::Ready(Err(_)) => return Poll::Ready(Err(End::Upstream)),
                Poll::Pending => {
                    if self.down.dirty && Pin::new(&mut *io).poll_flush(cx).is_ready() {
                        self.down.dirty = false;
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    /// Moves what can be moved; ready when both directions are over. When the downstream goes away, what it sent before is still
    /// delivered.
    pub fn poll<D, U>(&mut self, cx: &mut Context<'_>, io: &mut D, upstream: &mut U, stats: &Stats) -> Poll<End>
    where
        D: AsyncRead + AsyncWrite + Bypass + Unpin,
        U: AsyncRead + AsyncWrite + Bypass + Unpin,
    {
        loop {
            let up = self.poll_up(cx, io, upstream, stats);
            let down = if self.flushing { Poll::Ready(Ok(())) } else { self.poll_down(cx, io, upstream, stats) };
            let end = match (up, down) {
                (Poll::Ready(Err(end)), _) | (_, Poll::Ready(Err(end))) => end,
                (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(if self.flushing { End::Downstream } else { End::Done }),
                _ => return Poll::Pending,
            };
            if end != End::Downstream || self.up.chunk.is_none() {
                return Poll::Ready(end);
            }
            self.flushing = true;
            self.up.ended = true;
            stats.upstream_flush_total.inc();
            stats.upstream_flush_active.inc();
        }
    }
    /// Takes back what the gauges hold of this connection.
    pub fn release(&mut self, stats: &Stats) {
        if self.down.blocked > 0 {
            stats.tx_bytes_buffered.add(-(std::mem::take(&mut self.down.blocked) as i64));
        }
        if self.up.blocked > 0 {
            stats.rx_bytes_buffered.add(-(std::mem::take(&mut self.up.blocked) as i64));
        }
        if std::mem::take(&mut self.flushing) {
            stats.upstream_flush_active.dec();
        }
        for pipe in [&mut self.up, &mut self.down] {
            if let Some(chunk) = pipe.chunk.take() {
                chunk.release();
            }
        }
    }
}
