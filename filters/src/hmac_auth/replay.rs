//! Nonces that were used. Shared by all workers in shards, each behind a short lock; bounded. Workers.

use std::collections::{HashSet, VecDeque};
use std::hash::BuildHasher;
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
    per_shard: usize,
    /// Seconds for which a nonce counts.
    keep: u64,
}

#[derive(Debug, Default)]
struct Shard {
    used: HashSet<(u64, u64), foldhash::fast::RandomState>,
    /// In the order in which they came, with the second from which on they no longer count.
    order: VecDeque<(u64, (u64, u64))>,
}

impl Replay {
    /// Room for about `nonces` nonces, each of which counts for `keep` seconds.
    pub fn new(nonces: usize, keep: u64) -> Self {
        let hashers = [foldhash::quality::RandomState::default(), foldhash::quality::RandomState::default()];
        Self { hashers, shards: Default::default(), per_shard: nonces.div_ceil(SHARDS).max(1), keep }
    }
    /// Takes note of a nonce of a key at second `now`.
    pub fn take(&self, key: &str, nonce: &str, now: u64) -> Nonce {
        let [a, b] = &self.hashers;
        let id = (a.hash_one((key, nonce)), b.hash_one((key, nonce)));
        let Some(shard) = self.shards.get(id.0 as usize % SHARDS) else { return Nonce::Full };
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((until, old)) = shard.order.front().copied().filter(|(until, _)| *until <= now) {
            let _over = until;
            shard.order.pop_front();
            shard.used.remove(&old);
        }
        if shard.used.contains(&id) {
            return Nonce::Used;
        }
        if shard.used.len() >= self.per_shard {
            return Nonce::Full;
        }
        shard.used.insert(id);
        shard.order.push_back((now.saturating_add(self.keep), id));
        Nonce::New
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn once_per_key_until_it_no_longer_counts() {
        let replay = Replay::new(1000, 10);
        assert_eq!(replay.take("a", "n", 100), Nonce::New);
        assert_eq!(replay.take("a", "n", 109), Nonce::Used);
        assert_eq!(replay.take("b", "n", 109), Nonce::New);
        assert_eq!(replay.take("a", "n", 110), Nonce::New);
    }

    #[test]
    fn full_is_full_until_something_is_old() {
        let replay = Replay::new(SHARDS * 4, 10);
        let taken = |now| (0..1000).filter(|i| replay.take("a", &i.to_string(), now) == Nonce::New).count();
        assert_eq!(taken(100), SHARDS * 4);
        assert_eq!(taken(105), 0);
        assert_eq!(replay.take("a", "another", 105), Nonce::Full);
        assert_eq!(taken(110), SHARDS * 4);
    }
}
