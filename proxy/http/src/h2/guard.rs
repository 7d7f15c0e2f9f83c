//! Watches frame headers as they pass in both directions, because the `h2` library tells only of what went well: floods that Envoy
//! ends a connection for, requests that the library refused by itself, and heads that it would show otherwise than they came. Owned by the
//! transport of one connection; one worker.

use crate::h2::heads::{Broken, Heads, Start};
use crate::h2::lend::Room;
use crate::options::{CodecStats, FloodLimits, H2Options};
use crate::validate::details;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::Instant;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const PUSH_PROMISE: u8 = 5;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const PADDED: u8 = 8;
const PROTOCOL_ERROR: u32 = 1;

/// Streams whose fate is followed at a time; of more, refusals are not told.
const MAX_OPENING: usize = 1024;

/// A frame header, and the first bytes of the payload that were asked for.
#[derive(Clone, Copy, Debug)]
struct Frame {
    length: u32,
    kind: u8,
    flags: u8,
    stream: u32,
    /// RST_STREAM: the error code. WINDOW_UPDATE: the increment. Padded frames: the length of the padding in the first byte.
    start: [u8; 4],
}

/// Finds the frames in one direction of a connection, without keeping their payload.
#[derive(Debug, Default)]
struct Scanner {
    /// Frame header and as much of the payload as is needed.
    held: [u8; 13],
    len: u8,
    /// Payload bytes that are still to be passed over.
    skip: u32,
}

impl Scanner {
    /// Bytes of a frame that are looked at, once its header is there.
    fn wanted(&self) -> usize {
        let length = u32::from_be_bytes([0, self.held[0], self.held[1], self.held[2]]) as usize;
        match (self.held[3], self.held[4] & PADDED != 0) {
            (RST_STREAM | WINDOW_UPDATE, _) => 9 + length.min(4),
            (DATA | HEADERS, true) => 9 + length.min(1),
            _ => 9,
        }
    }

    /// What there is of the payload of the frame that was given last.
    fn payload<'a>(&mut self, bytes: &mut &'a [u8]) -> &'a [u8] {
        let n = bytes.len().min(self.skip as usize);
        let (part, rest) = bytes.split_at_checked(n).unwrap_or_default();
        *bytes = rest;
        self.skip -= u32::try_from(n).unwrap_or(self.skip);
        part
    }

    /// The next frame of which enough has come; takes what it has seen off `bytes`.
    fn next(&mut self, bytes: &mut &[u8]) -> Option<Frame> {
        let pass = bytes.len().min(self.skip as usize);
        *bytes = bytes.get(pass..)?;
        self.skip -= u32::try_from(pass).unwrap_or(self.skip);
        loop {
            let len = usize::from(self.len);
            let wanted = if len < 9 { 9 } else { self.wanted() };
            if len >= 9 && len >= wanted {
                let h = self.held;
                let length = u32::from_be_bytes([0, h[0], h[1], h[2]]);
                self.skip = length.saturating_sub(u32::from(self.len) - 9);
                self.len = 0;
                let stream = u32::from_be_bytes([h[5], h[6], h[7], h[8]]) & 0x7fff_ffff;
                return Some(Frame { length, kind: h[3], flags: h[4], stream, start: [h[9], h[10], h[11], h[12]] });
            }
            let n = (wanted - len).min(bytes.len());
            if n == 0 {
                return None;
            }
            let (taken, rest) = bytes.split_at_checked(n)?;
            self.held.get_mut(len..len + n)?.copy_from_slice(taken);
            self.len += u8::try_from(n).unwrap_or(0);
            *bytes = rest;
        }
    }
}

/// What the library did with a request that it has not shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unshown {
    /// Malformed: the stream was reset.
    Malformed,
    /// The header list is over the limit: answered 431.
    TooLarge,
}

/// What Envoy ends a connection for at once, without GOAWAY (its `ProtocolConstraints`, and violations of messaging).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offence {
    /// A head that no message may have, and that the library would mend.
    Messaging,
    EmptyFrames,
    Priority,
    WindowUpdates,
    Resets,
}

impl From<Broken> for Offence {
    fn from(Broken: Broken) -> Self {
        Self::Messaging
    }
}

impl Offence {
    /// `%RESPONSE_CODE_DETAILS%` of the streams that it ends.
    pub fn details(self) -> &'static str {
        match self {
            Self::Messaging => details::H2_MESSAGING,
            Self::EmptyFrames => "overload_error:Too_many_consecutive_frames_with_an_empty_payload",
            Self::Priority => "overload_error:Too_many_PRIORITY_frames",
            Self::WindowUpdates => "overload_error:Too_many_WINDOW_UPDATE_frames",
            Self::Resets => "overload_error:Too_many_RST_STREAM_frames",
        }
    }
    /// Counts it.
    pub fn count(self, stats: &CodecStats) {
        match self {
            Self::Messaging => stats.rx_messaging_error.inc(),
            Self::EmptyFrames => stats.inbound_empty_frames_flood.inc(),
            Self::Priority => stats.inbound_priority_frames_flood.inc(),
            Self::WindowUpdates => stats.inbound_window_update_frames_flood.inc(),
            // Envoy has no counter for it.
            Self::Resets => {}
        }
    }
}

/// RST_STREAM frames that may still come; fills with whole seconds, as nghttp2's.
#[derive(Debug)]
struct Bucket {
    tokens: u64,
    filled: Option<Instant>,
}

impl Bucket {
    fn take(&mut self, limits: &FloodLimits) -> bool {
        let now = Instant::now();
        let filled = self.filled.get_or_insert(now);
        let seconds = now.duration_since(*filled).as_secs();
        if seconds > 0 {
            self.tokens = seconds.saturating_mul(limits.reset_rate).saturating_add(self.tokens).min(limits.reset_burst);
            *filled += Duration::from_secs(seconds);
        }
        match self.tokens.checked_sub(1) {
            Some(left) => {
                self.tokens = left;
                true
            }
            None => false,
        }
    }
}

/// The frames of one connection.
#[derive(Debug)]
pub struct Guard {
    limits: FloodLimits,
    resets: Bucket,
    /// We are the server: the peer opens streams.
    server: bool,
    inbound: Scanner,
    outbound: Scanner,
    /// Bytes of the preface that are still to come from a client, or to be written to a server.
    preface: usize,
    heads: Heads,
    /// The frame that is being received carries a header block.
    in_head: bool,
    opened: u64,
    last_opened: u32,
    empty_frames: u32,
    priority_frames: u64,
    window_updates: u64,
    data_frames_sent: u64,
    /// Server: streams that began and that the library has neither shown nor refused, in order.
    opening: VecDeque<u32>,
    /// Server: the last stream that the library reset before its request began, as for a PRIORITY frame that names itself.
    refused_early: u32,
    unshown: VecDeque<(u32, Unshown)>,
    offence: Option<Offence>,
    room: Room,
}

impl Guard {
    /// `max_list`: the limit of a header list in bytes.
    pub fn new(server: bool, options: &H2Options, max_list: u32) -> Self {
        let limits = options.flood;
        Self {
            limits,
            resets: Bucket { tokens: limits.reset_burst, filled: None },
            server,
            inbound: Scanner::default(),
            outbound: Scanner::default(),
            preface: crate::auto::PREFACE.len(),
            heads: Heads::new(server, max_list as usize, options.max_field_size as usize),
            in_head: false,
            opened: 0,
            last_opened: 0,
            empty_frames: 0,
            priority_frames: 0,
            window_updates: 0,
            data_frames_sent: 0,
            opening: VecDeque::new(),
            refused_early: 0,
            unshown: VecDeque::new(),
            offence: None,
            room: Room::default(),
        }
    }

    /// Bytes came from the peer. An error is an offence: the connection is to end at once.
    pub fn received(&mut self, mut bytes: &[u8]) -> Result<(), Offence> {
        if self.server {
            bytes = self.after_preface(bytes);
        }
        let judged = self.judge(bytes);
        self.offence = judged.err().or(self.offence);
        judged
    }

    fn judge(&mut self, mut bytes: &[u8]) -> Result<(), Offence> {
        loop {
            if self.in_head {
                let part = self.inbound.payload(&mut bytes);
                let end = self.inbound.skip == 0;
                self.heads.payload(part, end)?;
                if !end {
                    return Ok(());
                }
                self.in_head = false;
            }
            let Some(frame) = self.inbound.next(&mut bytes) else { return Ok(()) };
            if frame.kind == RST_STREAM && self.server && !self.resets.take(&self.limits) {
                return Err(Offence::Resets);
            }
            let before = self.last_opened;
            self.count(&frame);
            if let Some(flood) = self.over() {
                return Err(flood);
            }
            let padded = frame.kind == HEADERS && frame.flags & PADDED != 0;
            let (padding, pad_length) = if padded { (u32::from(frame.start[0]), 1) } else { (0, 0) };
            let start = Start { stream: frame.stream, flags: frame.flags, length: frame.length.saturating_sub(pad_length), padding };
            match frame.kind {
                HEADERS => self.heads.headers(start, self.last_opened != before)?,
                CONTINUATION => self.heads.continuation(start)?,
                kind => {
                    self.heads.interrupt(kind == PUSH_PROMISE);
                    let ends = kind == RST_STREAM || (kind == DATA && frame.flags & END_STREAM != 0);
                    if ends && !self.server {
                        self.heads.ended(frame.stream);
                    }
                }
            }
            self.in_head = matches!(frame.kind, HEADERS | CONTINUATION);
        }
    }

    /// Bytes were written to the peer.
    pub fn sent(&mut self, mut bytes: &[u8]) {
        if !self.server {
            bytes = self.after_preface(bytes);
        }
        while let Some(frame) = self.outbound.next(&mut bytes) {
            match frame.kind {
                DATA => self.data_frames_sent += 1,
                WINDOW_UPDATE if frame.stream == 0 => self.room.given(u32::from_be_bytes(frame.start) & 0x7fff_ffff),
                HEADERS if !self.server => self.opens(frame.stream),
                RST_STREAM if !self.server => self.heads.ended(frame.stream),
                HEADERS if self.settled(frame.stream) => self.unshown.push_back((frame.stream, Unshown::TooLarge)),
                RST_STREAM if self.server && frame.stream > self.last_opened => self.refused_early = frame.stream,
                RST_STREAM if self.settled(frame.stream) && u32::from_be_bytes(frame.start) == PROTOCOL_ERROR => {
                    self.unshown.push_back((frame.stream, Unshown::Malformed))
                }
                _ => {}
            }
        }
    }

    /// Server: the library has shown the request of this stream. Its body may have been refused before. True: its path had a
    /// fragment, which the library does not show.
    pub fn shown(&mut self, stream: u32) -> bool {
        if !self.settled(stream) {
            self.unshown.retain(|(refused, _)| *refused != stream);
        }
        self.heads.take_fragment(stream)
    }

    /// A request that the library dealt with by itself. To be asked when it has nothing more to show.
    pub fn take_unshown(&mut self) -> Option<Unshown> {
        self.unshown.pop_front().map(|(_, what)| what)
    }

    /// Server, once the connection broke by the peer's fault: whether the head of a request was what broke it.
    pub fn is_opening(&self) -> bool {
        !self.opening.is_empty()
    }

    /// Why the connection was ended, if it was.
    pub fn offence(&self) -> Option<Offence> {
        self.offence
    }

    /// What the peer may send on the connection.
    pub fn room(&self) -> &Room {
        &self.room
    }

    fn after_preface<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let n = self.preface.min(bytes.len());
        self.preface -= n;
        bytes.get(n..).unwrap_or_default()
    }

    fn opens(&mut self, stream: u32) {
        if stream % 2 == 1 && stream > self.last_opened {
            self.last_opened = stream;
            self.opened += 1;
            if !self.server {
                self.heads.opened(stream);
            }
            if stream == self.refused_early {
                self.unshown.push_back((stream, Unshown::Malformed));
            } else if self.server && self.opening.len() < MAX_OPENING {
                self.opening.push_back(stream);
            }
        }
    }

    /// Forgets a stream that was opening; whether it was.
    fn settled(&mut self, stream: u32) -> bool {
        // Mostly the first one: streams are shown in order.
        match self.opening.iter().position(|s| *s == stream) {
            Some(at) => self.opening.remove(at).is_some(),
            None => false,
        }
    }

    fn count(&mut self, frame: &Frame) {
        match frame.kind {
            HEADERS | CONTINUATION | DATA => {
                if frame.kind == HEADERS && self.server {
                    self.opens(frame.stream);
                }
                if frame.kind == DATA {
                    self.room.used(frame.length);
                }
                let padding = match frame.kind != CONTINUATION && frame.flags & PADDED != 0 {
                    true => u32::from(frame.start[0]) + 1,
                    false => 0,
                };
                let ends = frame.kind != CONTINUATION && frame.flags & END_STREAM != 0;
                let empty = frame.length <= padding && !ends;
                self.empty_frames = if empty { self.empty_frames.saturating_add(1) } else { 0 };
            }
            PRIORITY => self.priority_frames += 1,
            WINDOW_UPDATE => self.window_updates += 1,
            _ => {}
        }
    }

    fn over(&self) -> Option<Offence> {
        let limits = &self.limits;
        let per_data = u64::from(limits.max_window_updates_per_data_frame).saturating_mul(self.data_frames_sent);
        if self.empty_frames > limits.max_consecutive_empty_frames {
            Some(Offence::EmptyFrames)
        } else if self.priority_frames > u64::from(limits.max_priority_frames_per_stream).saturating_mul(1 + self.opened) {
            Some(Offence::Priority)
        } else if self.window_updates > per_data.saturating_add(self.opened).saturating_mul(2).saturating_add(5) {
            Some(Offence::WindowUpdates)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut out = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
        out.extend([kind, flags]);
        out.extend(stream.to_be_bytes());
        out.extend(payload);
        out
    }

    fn guard() -> Guard {
        let mut guard = Guard::new(true, &H2Options::default(), 60 * 1024);
        guard.received(crate::auto::PREFACE).unwrap();
        guard
    }

    #[test]
    fn frames_are_found_however_they_are_cut() {
        let wire = [
            frame(HEADERS, 5, 1, b"abc"),
            frame(DATA, 0, 1, &[7; 300]),
            frame(RST_STREAM, 0, 1, &8u32.to_be_bytes()),
            frame(DATA, PADDED, 3, &[2, 9, 0, 0]),
        ]
        .concat();
        for size in 1..wire.len() {
            let mut scanner = Scanner::default();
            let mut seen = Vec::new();
            for mut part in wire.chunks(size) {
                while let Some(frame) = scanner.next(&mut part) {
                    seen.push((frame.kind, frame.length, frame.stream));
                    if frame.kind == RST_STREAM {
                        assert_eq!(u32::from_be_bytes(frame.start), 8);
                    }
                    if frame.stream == 3 {
                        assert_eq!(frame.start[0], 2);
                    }
                }
            }
            assert_eq!(seen, [(HEADERS, 3, 1), (DATA, 300, 1), (RST_STREAM, 4, 1), (DATA, 4, 3)], "{size}");
        }
    }

    #[test]
    fn floods_end_the_connection_at_envoys_limits() {
        let mut priority = guard();
        for _ in 0..100 {
            priority.received(&frame(PRIORITY, 0, 1, &[0; 5])).unwrap();
        }
        assert!(priority.received(&frame(PRIORITY, 0, 1, &[0; 5])).is_err());
        assert!(priority.offence().is_some());

        let mut window = guard();
        window.received(&frame(HEADERS, 4, 1, b"\x82")).unwrap();
        for _ in 0..7 {
            window.received(&frame(WINDOW_UPDATE, 0, 0, &1u32.to_be_bytes())).unwrap();
        }
        window.sent(&frame(DATA, 0, 1, b"x"));
        for _ in 0..20 {
            window.received(&frame(WINDOW_UPDATE, 0, 0, &1u32.to_be_bytes())).unwrap();
        }
        assert!(window.received(&frame(WINDOW_UPDATE, 0, 0, &1u32.to_be_bytes())).is_err());

        let mut empty = guard();
        empty.received(&frame(HEADERS, 4, 1, b"\x82")).unwrap();
        empty.received(&frame(DATA, 0, 1, b"")).unwrap();
        empty.received(&frame(DATA, 0, 1, b"x")).unwrap();
        empty.received(&frame(DATA, 0, 1, b"")).unwrap();
        // All padding is empty too.
        assert!(empty.received(&frame(DATA, PADDED, 1, &[2, 0, 0])).is_err());

        let mut ends = guard();
        for stream in [1u32, 3, 5] {
            ends.received(&frame(HEADERS, 4, stream, b"\x82")).unwrap();
            ends.received(&frame(DATA, END_STREAM, stream, b"")).unwrap();
        }
    }

    #[test]
    fn requests_that_the_library_refuses_are_told() {
        let mut guard = guard();
        for stream in [1u32, 3, 5, 7] {
            guard.received(&frame(HEADERS, 5, stream, b"\x82")).unwrap();
        }
        guard.shown(1);
        guard.sent(&frame(HEADERS, 4, 1, b"x"));
        guard.sent(&frame(RST_STREAM, 0, 1, &1u32.to_be_bytes()));
        assert_eq!(guard.take_unshown(), None);
        guard.sent(&frame(RST_STREAM, 0, 3, &1u32.to_be_bytes()));
        guard.sent(&frame(HEADERS, 5, 5, b"x"));
        // Refused for want of room: the client may try again.
        guard.sent(&frame(RST_STREAM, 0, 7, &7u32.to_be_bytes()));
        assert_eq!(guard.take_unshown(), Some(Unshown::Malformed));
        assert_eq!(guard.take_unshown(), Some(Unshown::TooLarge));
        assert_eq!(guard.take_unshown(), None);
        assert!(!guard.is_opening());
        // A stream may be refused before its request comes: told once it has come.
        guard.sent(&frame(RST_STREAM, 0, 11, &1u32.to_be_bytes()));
        assert_eq!(guard.take_unshown(), None);
        guard.received(&frame(HEADERS, 5, 11, b"\x82")).unwrap();
        assert_eq!(guard.take_unshown(), Some(Unshown::Malformed));
        assert!(!guard.is_opening());
        let mut guard = self::guard();
        // A body that belies its head is refused before its request is shown.
        guard.received(&frame(HEADERS, 4, 9, b"\x82")).unwrap();
        guard.sent(&frame(RST_STREAM, 0, 9, &1u32.to_be_bytes()));
        guard.shown(9);
        assert_eq!(guard.take_unshown(), None);
    }
}
