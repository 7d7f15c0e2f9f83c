//! More window for a connection whose window is full of bodies that nobody reads yet, while a body that somebody waits for cannot come
//! because of them (`H2Options::extra_window`). Envoy would wait; with requests that are held back on purpose that wait might have no
//! end: those that run wait for window, and those that hold it for a place. Used by the task of a server connection.

use crate::ConnControl;
use std::cell::Cell;
use std::rc::Rc;

/// A peer with less room than this may wait for more before it sends. The largest frame that we accept by default.
const LITTLE: i64 = 16_384;
/// The least that is lent at a time, and twice what was lent so far at most: what is lent may go to bodies that nobody reads as well.
const STEP: u32 = 65_536;
const MAX_WINDOW: u32 = (1 << 31) - 1;

/// What the peer may send on the connection, by the frames of both sides.
#[derive(Debug)]
pub struct Room {
    bytes: i64,
    /// How often the peer was told of more.
    updates: u64,
}

impl Default for Room {
    fn default() -> Self {
        Self { bytes: 65_535, updates: 0 }
    }
}

impl Room {
    /// A DATA frame of this length came.
    pub fn used(&mut self, length: u32) {
        self.bytes = self.bytes.saturating_sub(i64::from(length));
    }
    /// The connection's window was enlarged for the peer.
    pub fn given(&mut self, increment: u32) {
        self.bytes = self.bytes.saturating_add(i64::from(increment));
        self.updates += 1;
    }
}

/// The window of one connection.
#[derive(Debug)]
pub struct Lender {
    base: u32,
    most: u32,
    lent: u32,
    /// `Room::updates` when something was lent last: no more before the peer was told of that.
    told: Option<u64>,
}

impl Lender {
    /// `base`: the configured window; `most`: what may be lent.
    pub fn new(base: u32, most: u32) -> Self {
        Self { base, most: most.min(MAX_WINDOW.saturating_sub(base)), lent: 0, told: None }
    }
    /// The window that the connection is to have from now on, if that changes. `hungry`: bodies that are waited for; `streams`: all
    /// that are open.
    pub fn next(&mut self, room: &Room, hungry: u32, streams: u32) -> Option<u32> {
        if streams == 0 && self.lent > 0 {
            (self.lent, self.told) = (0, None);
            return Some(self.base);
        }
        if hungry == 0 || room.bytes >= LITTLE || self.lent >= self.most || self.told == Some(room.updates) {
            return None;
        }
        self.lent = self.lent.saturating_add(self.lent.max(STEP)).min(self.most);
        self.told = Some(room.updates);
        Some(self.base.saturating_add(self.lent))
    }
}

/// A body that tells its connection while it is waited for.
#[derive(Debug)]
pub struct Hunger {
    control: Rc<ConnControl>,
    waits: Cell<bool>,
}

impl Hunger {
    pub fn new(control: &Rc<ConnControl>) -> Self {
        Self { control: control.clone(), waits: Cell::new(false) }
    }
    /// Whether somebody waits for a frame from now on.
    pub fn set(&self, waits: bool) {
        if self.waits.replace(waits) != waits {
            self.control.hungry(waits);
        }
    }
}

impl Drop for Hunger {
    fn drop(&mut self) {
        self.set(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lends_in_growing_steps_up_to_its_limit() {
        let (mut lender, mut room) = (Lender::new(65_535, 300_000), Room::default());
        assert_eq!(lender.next(&room, 1, 2), None, "there is room");
        room.used(60_000);
        assert_eq!(lender.next(&room, 0, 2), None, "nobody waits");
        assert_eq!(lender.next(&room, 1, 2), Some(65_535 + 65_536));
        assert_eq!(lender.next(&room, 1, 2), None, "the peer does not know yet");
        for wanted in [65_535 + 131_072, 65_535 + 262_144, 65_535 + 300_000] {
            room.given(65_536);
            room.used(65_536);
            assert_eq!(lender.next(&room, 1, 2), Some(wanted));
        }
        room.given(1);
        assert_eq!(lender.next(&room, 1, 2), None, "all is lent");
        assert_eq!(lender.next(&room, 0, 0), Some(65_535));
        assert_eq!(lender.next(&room, 0, 0), None);
    }

    #[test]
    fn windows_stay_within_the_protocol() {
        let mut room = Room::default();
        room.used(u32::MAX);
        assert_eq!(Lender::new(MAX_WINDOW - 10, 1 << 24).next(&room, 1, 1), Some(MAX_WINDOW));
        assert_eq!(Lender::new(MAX_WINDOW, 1 << 24).next(&room, 1, 1), None);
    }
}
