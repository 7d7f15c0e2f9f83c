//! Nonces that were used. Shared by all workers in shards, each behind a short lock; bounded, and no key can take the room of the others:
//! half of it is set apart in equal shares, and of the rest a key may hold no more than is still free. Workers.

use std::collections::{HashSet, VecDeque};
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

const SHARDS: usize = 16;

/// What a nonce was found to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nonce {
    New,
    Used,
    /// There is no room to remember it, and so it cannot be let through.
    Full,
}

/// The store.
#[derive(Debug)]
pub struct Replay {
    /// Seeded, so that nobody can make nonces collide.
    hashers: [foldhash::quality::RandomState; 2],
    shards: [Mutex<Shard>; SHARDS],
    /// Sorted, each with the number of its nonces.
    keys: Box<[(String, AtomicUsize)]>,
    /// Nonces that every key has room for.
    share: usize,
    /// Room beyond the shares, and how much of it is in use.
    common: usize,
    common_used: AtomicUsize,
    /// Seconds for which a nonce counts.
    keep: u64,
}

#[derive(Debug, Default)]
struct Shard {
    used: HashSet<(u64, u64), foldhash::fast::RandomState>,
    /// In the order in which they came.
    order: VecDeque<Used>,
}

#[derive(Debug)]
struct Used {
    /// The second from which on it no longer counts.
    until: u64,
    id: (u64, u64),
    /// Index of its key.
    key: usize,
}

impl Replay {
    /// Room for `nonces` nonces of these keys, each of which counts for `keep` seconds.
    pub fn new(keys: &[&str], nonces: usize, keep: u64) -> Self {
        let hashers = [foldhash::quality::RandomState::default(), foldhash::quality::RandomState::default()];
        let mut keys: Vec<_> = keys.iter().map(|key| (key.to_string(), AtomicUsize::new(0))).collect();
        keys.sort_by(|a, b| a.0.cmp(&b.0));
        // A single key has all to itself.
        let share = if keys.len() < 2 { nonces } else { nonces / 2 / keys.len() };
        let common = nonces.saturating_sub(share * keys.len());
        Self { hashers, shards: Default::default(), keys: keys.into(), share, common, common_used: AtomicUsize::new(0), keep }
    }
    /// Takes note of a nonce of a key at second `now`.
    pub fn take(&self, key: &str, nonce: &str, now: u64) -> Nonce {
        let Ok(index) = self.keys.binary_search_by(|(k, _)| k.as_str().cmp(key)) else { return Nonce::Full };
        let [a, b] = &self.hashers;
        let id = (a.hash_one((key, nonce)), b.hash_one((key, nonce)));
        match self.enter(index, id, now) {
            // What is over in other shards makes room too.
            Nonce::Full => {
                self.shards.iter().for_each(|shard| self.forget(&mut shard.lock().unwrap_or_else(PoisonError::into_inner), now));
                self.enter(index, id, now)
            }
            found => found,
        }
    }
    fn enter(&self, key: usize, id: (u64, u64), now: u64) -> Nonce {
        let Some(shard) = self.shards.get(id.0 as usize % SHARDS) else { return Nonce::Full };
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        self.forget(&mut shard, now);
        if shard.used.contains(&id) {
            return Nonce::Used;
        }
        if !self.admit(key) {
            return Nonce::Full;
        }
        shard.used.insert(id);
        shard.order.push_back(Used { until: now.saturating_add(self.keep), id, key });
        Nonce::New
    }
    /// Takes room for a nonce of a key, if it may have it.
    fn admit(&self, key: usize) -> bool {
        let Some((_, used)) = self.keys.get(key) else { return false };
        let held = used.fetch_add(1, Ordering::Relaxed);
        if held < self.share {
            return true;
        }
        let taken = self.common_used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |all| {
            let free = self.common.saturating_sub(all);
            (held - self.share < free).then_some(all + 1)
        });
        if taken.is_err() {
            used.fetch_sub(1, Ordering::Relaxed);
        }
        taken.is_ok()
    }
    /// Drops what no longer counts.
    fn forget(&self, shard: &mut Shard, now: u64) {
        while shard.order.front().is_some_and(|used| used.until <= now) {
            let Some(Used { id, key, .. }) = shard.order.pop_front() else { return };
            shard.used.remove(&id);
            if let Some((_, used)) = self.keys.get(key)
                && used.fetch_sub(1, Ordering::Relaxed) > self.share
            {
                self.common_used.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(replay: &Replay, key: &str, count: usize, now: u64) -> usize {
        (0..count).filter(|i| replay.take(key, &format!("{now} {i}"), now) == Nonce::New).count()
    }

    #[test]
    fn once_per_key_until_it_no_longer_counts() {
        let replay = Replay::new(&["b", "a"], 1000, 10);
        assert_eq!(replay.take("a", "n", 100), Nonce::New);
        assert_eq!(replay.take("a", "n", 109), Nonce::Used);
        assert_eq!(replay.take("b", "n", 109), Nonce::New);
        assert_eq!(replay.take("a", "n", 110), Nonce::New);
        assert_eq!(replay.take("nobody", "n", 110), Nonce::Full);
    }

    #[test]
    fn full_is_full_until_something_is_old() {
        let replay = Replay::new(&["a"], 64, 10);
        assert_eq!(taken(&replay, "a", 1000, 100), 64);
        assert_eq!(taken(&replay, "a", 1000, 105), 0);
        assert_eq!(replay.take("a", "another", 105), Nonce::Full);
        assert_eq!(taken(&replay, "a", 1000, 110), 64, "all of it is free again");
    }

    #[test]
    fn a_key_leaves_room_for_the_others() {
        let keys = ["a", "b", "c", "d"];
        let replay = Replay::new(&keys, 800, 10);
        // Its share of 100, and half of the 400 that are for all.
        assert_eq!(taken(&replay, "a", 5000, 100), 300);
        // Half of what that left.
        assert_eq!(taken(&replay, "b", 5000, 100), 200);
        assert_eq!(taken(&replay, "c", 5000, 100), 150);
        assert!(taken(&replay, "d", 5000, 100) >= 100);
        assert!(keys.iter().all(|key| taken(&replay, key, 100, 110) == 100), "all of it is free again");
    }

    #[test]
    fn workers_never_take_more_than_there_is() {
        let replay = Replay::new(&["a", "b"], 400, 10);
        let all: usize = std::thread::scope(|s| {
            let workers = ["a", "b", "a", "b"].into_iter().enumerate().map(|(n, key)| {
                let replay = &replay;
                s.spawn(move || (0..1000).filter(|i| replay.take(key, &format!("{n} {i}"), 1) == Nonce::New).count())
            });
            workers.collect::<Vec<_>>().into_iter().map(|w| w.join().unwrap()).sum()
        });
        assert!((200..=400).contains(&all), "{all}");
        let held: usize = replay.keys.iter().map(|(_, used)| used.load(Ordering::Relaxed)).sum();
        assert_eq!(held, all);
    }
}
