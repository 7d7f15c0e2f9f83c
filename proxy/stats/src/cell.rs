//! The number behind a counter or gauge: a base that any thread may add to, and one slot per worker, found by a number that
//! is the same in the slot array of every worker. Arrays are made in chunks, by the worker that first writes there.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

const CHUNK: usize = 1024;
const CHUNKS: usize = 4096;
const SHARDS: usize = 256;
const NO_SLOT: u32 = u32::MAX;

type Chunk = Box<[AtomicU64; CHUNK]>;

/// The slot array of one worker.
struct Shard {
    index: usize,
    taken: AtomicBool,
    chunks: Box<[OnceLock<Chunk>]>,
}

impl Shard {
    fn new(index: usize) -> Self {
        Self { index, taken: AtomicBool::new(false), chunks: (0..CHUNKS).map(|_| OnceLock::new()).collect() }
    }
    #[inline]
    fn cell(&self, slot: u32) -> Option<&AtomicU64> {
        self.chunks.get(slot as usize / CHUNK)?.get()?.get(slot as usize % CHUNK)
    }
    fn cell_made(&self, slot: u32) -> Option<&AtomicU64> {
        let chunk = self.chunks.get(slot as usize / CHUNK)?.get_or_init(|| Box::new([const { AtomicU64::new(0) }; CHUNK]));
        chunk.get(slot as usize % CHUNK)
    }
}

static ALL: [OnceLock<Shard>; SHARDS] = [const { OnceLock::new() }; SHARDS];
/// Shards below this index may exist.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Numbers of slots: the next fresh one, and those given back.
struct Slots {
    next: u32,
    free: Vec<u32>,
}
static SLOTS: Mutex<Slots> = Mutex::new(Slots { next: 0, free: Vec::new() });
/// `set` reads all slots and then writes the base; two of them at once would disagree.
static SET: Mutex<()> = Mutex::new(());

thread_local! {
    static MINE: std::cell::Cell<Option<&'static Shard>> = const { std::cell::Cell::new(None) };
    static CLAIM: std::cell::RefCell<Option<Claim>> = const { std::cell::RefCell::new(None) };
}

/// Gives the shard back when the thread ends.
struct Claim(&'static Shard);
impl Drop for Claim {
    fn drop(&mut self) {
        MINE.set(None);
        self.0.taken.store(false, Ordering::Release);
    }
}

fn claim(index: usize) -> Option<&'static Shard> {
    let shard = ALL.get(index)?.get_or_init(|| Shard::new(index));
    COUNT.fetch_max(index + 1, Ordering::Release);
    (!shard.taken.swap(true, Ordering::AcqRel)).then_some(shard)
}

/// Makes this thread a writer of its own: call once at the start of worker `index`. Every other thread works too, only slower.
/// If another thread of the process has that index (several proxies in one test), the next free one is taken.
pub fn set_worker(index: usize) {
    if MINE.get().is_some() {
        return;
    }
    if let Some(shard) = std::iter::once(index).chain(0..SHARDS).find_map(claim) {
        CLAIM.with_borrow_mut(|c| *c = Some(Claim(shard)));
        MINE.set(Some(shard));
    }
}

/// A small number that differs between workers, for buffers and locks per worker; 0 on every other thread.
pub fn worker() -> usize {
    MINE.get().map_or(0, |s| s.index + 1)
}

/// The cells of `slot` in every shard.
fn cells(slot: u32) -> impl Iterator<Item = &'static AtomicU64> {
    ALL.iter().take(COUNT.load(Ordering::Acquire)).filter_map(move |s| s.get()?.cell(slot))
}

fn sum(slot: u32) -> u64 {
    cells(slot).fold(0, |all, c| all.wrapping_add(c.load(Ordering::Relaxed)))
}

/// A number that every thread may add to. All arithmetic wraps, so that it serves signed and unsigned numbers.
#[derive(Debug)]
pub(crate) struct Cell {
    base: AtomicU64,
    slot: AtomicU32,
    touched: AtomicBool,
}

impl Default for Cell {
    fn default() -> Self {
        Self { base: AtomicU64::new(0), slot: AtomicU32::new(NO_SLOT), touched: AtomicBool::new(false) }
    }
}

impl Cell {
    #[inline]
    pub fn add(&self, n: u64) {
        // Acquire: the zeros that the last user of this slot number left must be seen.
        let slot = self.slot.load(Ordering::Acquire);
        if slot != NO_SLOT
            && let Some(cell) = MINE.get().and_then(|s| s.cell(slot))
        {
            // No other thread writes this slot.
            cell.store(cell.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
            return;
        }
        self.add_slow(n);
    }
    #[cold]
    fn add_slow(&self, n: u64) {
        if let Some(shard) = MINE.get()
            && let Some(cell) = self.slot_made().and_then(|slot| shard.cell_made(slot))
        {
            cell.store(cell.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
            return;
        }
        self.base.fetch_add(n, Ordering::Relaxed);
        self.touched.store(true, Ordering::Relaxed);
    }
    /// The slot number, taken now if there was none; none if all are in use.
    fn slot_made(&self) -> Option<u32> {
        let mut slots = SLOTS.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.slot.load(Ordering::Acquire);
        if now != NO_SLOT {
            return Some(now);
        }
        let slot = match slots.free.pop() {
            Some(slot) => slot,
            None if (slots.next as usize) < CHUNK * CHUNKS => {
                slots.next += 1;
                slots.next - 1
            }
            None => return None,
        };
        self.slot.store(slot, Ordering::Release);
        Some(slot)
    }
    /// Sum over all threads.
    pub fn value(&self) -> u64 {
        let slot = self.slot.load(Ordering::Acquire);
        let base = self.base.load(Ordering::Relaxed);
        if slot == NO_SLOT { base } else { base.wrapping_add(sum(slot)) }
    }
    /// Makes the sum `n`; additions at the same time are kept.
    pub fn set(&self, n: u64) {
        let _one = SET.lock().unwrap_or_else(PoisonError::into_inner);
        self.base.fetch_add(n.wrapping_sub(self.value()), Ordering::Relaxed);
        self.touched.store(true, Ordering::Relaxed);
    }
    /// Whether it was ever written.
    pub fn used(&self) -> bool {
        self.slot.load(Ordering::Relaxed) != NO_SLOT || self.touched.load(Ordering::Relaxed)
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        let slot = *self.slot.get_mut();
        if slot != NO_SLOT {
            // Nobody holds this number any more, so no worker writes here now.
            cells(slot).for_each(|c| c.store(0, Ordering::Relaxed));
            SLOTS.lock().unwrap_or_else(PoisonError::into_inner).free.push(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn workers_and_others_add_up() {
        let cell = Arc::new(Cell::default());
        assert!(!cell.used());
        let threads: Vec<_> = (0..8)
            .map(|i| {
                let cell = cell.clone();
                std::thread::spawn(move || {
                    // Half of them claim the same index, half are no workers at all.
                    if i % 2 == 0 {
                        set_worker(3);
                    }
                    (0..10_000).for_each(|_| cell.add(1));
                })
            })
            .collect();
        threads.into_iter().for_each(|t| t.join().unwrap());
        assert_eq!(cell.value(), 80_000);
        assert!(cell.used());
        cell.set(5);
        assert_eq!(cell.value(), 5);
    }

    #[test]
    fn a_slot_used_again_starts_at_zero() {
        std::thread::spawn(|| {
            set_worker(0);
            for round in 0..3000_u64 {
                let cell = Cell::default();
                cell.add(round + 1);
                assert_eq!(cell.value(), round + 1);
            }
        })
        .join()
        .unwrap();
    }

    #[test]
    fn negative_sums_wrap() {
        let cell = Cell::default();
        cell.add(1);
        cell.add((-3_i64) as u64);
        assert_eq!(cell.value() as i64, -2);
    }
}
