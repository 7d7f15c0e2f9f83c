//! Puts received header blocks together, out of HEADERS and CONTINUATION frames, and judges what the `h2` library would let pass.
//! Called by the guard of one connection, on its worker.

use crate::h2::hpack::Watch;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PRIORITY: u8 = 0x20;

/// Streams with a fragment in their path that the library has not shown; more ends the connection.
const MAX_FRAGMENTS: usize = 1024;

/// The peer broke a rule of HTTP/2 that the library does not see: the connection is to end at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

/// The frame header of HEADERS, CONTINUATION or PUSH_PROMISE, without the pad length.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    pub stream: u32,
    pub flags: u8,
    /// Bytes of the payload after the pad length.
    pub length: u32,
    /// Bytes of padding at its end.
    pub padding: u32,
}

/// A stream that we opened and that has not ended.
#[derive(Clone, Copy, Debug)]
struct Open {
    stream: u32,
    /// The final head of the response has come: what comes next are trailers.
    answered: bool,
}

/// Received heads of one connection.
#[derive(Debug)]
pub struct Heads {
    /// We are the server.
    server: bool,
    watch: Watch,
    /// The block does not follow: the library ends the connection. If it does not, we do.
    lost: bool,
    /// A block is being received, of this stream and with these flags of its first frame.
    open: Option<(u32, u8)>,
    /// Of the frame that is being received: what comes before the block, the block, whether it ends the block.
    before: u32,
    left: u32,
    last: bool,
    dependency: u32,
    trailers: bool,
    frames: u32,
    /// Of a block that did not come in one piece.
    held: Vec<u8>,
    max_held: usize,
    /// Client: by number, which only grows.
    streams: Vec<Open>,
    /// Server: requests with a fragment in their path.
    fragments: Vec<u32>,
}

impl Heads {
    /// `max_list`: the limit of a header list in bytes that the library has. `max_text`: that of a name or value on the wire.
    pub fn new(server: bool, max_list: usize, max_text: usize) -> Self {
        Self {
            server,
            watch: Watch::new(max_text),
            lost: false,
            open: None,
            before: 0,
            left: 0,
            last: false,
            dependency: 0,
            trailers: false,
            frames: 0,
            held: Vec::new(),
            // More than the library takes before it ends the connection.
            max_held: max_list.saturating_mul(2).saturating_add(128 * 1024),
            streams: Vec::new(),
            fragments: Vec::new(),
        }
    }

    /// Client: a request was sent.
    pub fn opened(&mut self, stream: u32) {
        if self.streams.last().is_none_or(|last| last.stream < stream) {
            self.streams.push(Open { stream, answered: false });
        }
    }
    /// Client: nothing more comes of the stream.
    pub fn ended(&mut self, stream: u32) {
        if let Ok(at) = self.find(stream) {
            self.streams.remove(at);
        }
    }
    fn find(&self, stream: u32) -> Result<usize, usize> {
        self.streams.binary_search_by_key(&stream, |open| open.stream)
    }
    /// Server: whether the path of this request, which the library now shows, had a fragment. Streams are shown in order.
    pub fn take_fragment(&mut self, stream: u32) -> bool {
        if self.fragments.is_empty() {
            return false;
        }
        let had = self.fragments.contains(&stream);
        self.fragments.retain(|earlier| *earlier > stream);
        had
    }

    /// A frame of another type, or PUSH_PROMISE, which we never allow: no block may be open.
    pub fn interrupt(&mut self, pushed: bool) {
        self.lost |= pushed || self.open.is_some();
    }

    /// HEADERS begins. `opens`: server, it opens the stream.
    pub fn headers(&mut self, start: Start, opens: bool) -> Result<(), Broken> {
        self.check(self.open.is_none())?;
        self.open = Some((start.stream, start.flags));
        self.before = if start.flags & PRIORITY != 0 { 5 } else { 0 };
        self.dependency = 0;
        self.trailers = match self.server {
            true => !opens,
            false => self.find(start.stream).is_ok_and(|at| self.streams.get(at).is_some_and(|open| open.answered)),
        };
        self.frames = 0;
        self.frame(start);
        Ok(())
    }
    /// CONTINUATION begins.
    pub fn continuation(&mut self, start: Start) -> Result<(), Broken> {
        self.check(self.open.is_some_and(|(stream, _)| stream == start.stream))?;
        self.before = 0;
        self.frame(start);
        Ok(())
    }
    /// Once the library was to end the connection, it gets no further block.
    fn check(&mut self, fits: bool) -> Result<(), Broken> {
        if self.lost {
            return Err(Broken);
        }
        self.lost = !fits;
        Ok(())
    }
    fn frame(&mut self, start: Start) {
        self.last = start.flags & END_HEADERS != 0;
        self.frames = self.frames.saturating_add(1);
        match start.length.checked_sub(self.before + start.padding) {
            Some(left) => self.left = left + self.before,
            None => self.lost = true,
        }
    }

    /// More of the frame's payload; `end`: all of it has come.
    pub fn payload(&mut self, mut part: &[u8], end: bool) -> Result<(), Broken> {
        if self.lost {
            return Ok(());
        }
        part = part.get(..part.len().min(self.left as usize)).unwrap_or_default();
        self.left -= u32::try_from(part.len()).unwrap_or(self.left);
        while self.before > 0
            && let Some((byte, rest)) = part.split_first()
        {
            // The stream that this one depends on, and a weight.
            if self.before > 1 {
                self.dependency = self.dependency << 8 | u32::from(*byte);
            }
            self.before -= 1;
            part = rest;
        }
        let whole = end && self.last;
        if whole && self.held.is_empty() {
            return self.judge(part);
        }
        if self.held.len() + part.len() > self.max_held {
            return Err(Broken);
        }
        self.held.extend_from_slice(part);
        if whole {
            let held = std::mem::take(&mut self.held);
            return self.judge(&held);
        }
        Ok(())
    }

    fn judge(&mut self, block: &[u8]) -> Result<(), Broken> {
        let Some((stream, flags)) = self.open.take() else { return Err(Broken) };
        // The library skips such a block, and knows a different table than the peer ever after.
        if flags & PRIORITY != 0 && self.dependency & 0x7fff_ffff == stream {
            return Err(Broken);
        }
        let Ok(summary) = self.watch.block(block) else {
            self.lost = true;
            return Ok(());
        };
        let misplaced = (self.trailers && summary.pseudo) || (!self.server && summary.request);
        if misplaced || summary.too_long || (self.frames > 1 && summary.malformed) {
            return Err(Broken);
        }
        if summary.fragment {
            if self.fragments.len() >= MAX_FRAGMENTS {
                return Err(Broken);
            }
            self.fragments.push(stream);
        }
        if flags & END_STREAM != 0 {
            self.ended(stream);
        } else if !summary.informational
            && let Ok(at) = self.find(stream)
            && let Some(open) = self.streams.get_mut(at)
        {
            open.answered = true;
        }
        Ok(())
    }
}
