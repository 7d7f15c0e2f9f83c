//! Ring hash (ketama) and Maglev tables with the very picks of Envoy: same keys, hashes, order and rounding, so that a mixed
//! fleet sends a session to the same host. Source: Envoy's `ring_hash_lb.cc`, `maglev_lb.cc`. Built when a view is first used.

use twox_hash::XxHash64;

/// `RingHashLbConfig.HashFunction`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum HashFunction {
    #[default]
    XxHash,
    MurmurHash2,
}

/// A host for a table: its key, its share of the whole (all shares sum up to 1).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Share<'a> {
    pub key: &'a str,
    pub weight: f64,
}

/// Points on a circle, each owned by the host with that index.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    points: Box<[(u64, u32)]>,
}

impl Ring {
    /// The ring of `shares`.
    pub(crate) fn new(shares: &[Share<'_>], min_size: u64, max_size: u64, function: HashFunction) -> Self {
        let Some(min_weight) = shares.iter().map(|s| s.weight).reduce(f64::min) else { return Self::default() };
        // The least host gets a whole number of points, unless that makes the ring too large.
        let scale = ((min_weight * min_size as f64).ceil() / min_weight).min(max_size as f64);
        let mut points = Vec::with_capacity(scale.ceil().min(1e7) as usize);
        let (mut current, mut target) = (0.0, 0.0);
        let mut key = String::new();
        for (index, share) in shares.iter().enumerate() {
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            target += scale * share.weight;
            let mut i = 0u64;
            while current < target {
                use std::fmt::Write;
                key.clear();
                // Writing to a string cannot fail.
                let _ = write!(key, "{}_{i}", share.key);
                let hash = match function {
                    HashFunction::XxHash => XxHash64::oneshot(0, key.as_bytes()),
                    HashFunction::MurmurHash2 => murmur2(key.as_bytes()),
                };
                points.push((hash, index));
                i += 1;
                current += 1.0;
            }
        }
        points.sort_by_key(|p| p.0);
        Self { points: points.into_boxed_slice() }
    }
    /// The host of `hash`; `attempt` moves on along the ring.
    pub(crate) fn pick(&self, hash: u64, attempt: u32) -> Option<usize> {
        if self.points.is_empty() {
            return None;
        }
        // First point at or after the hash, around the end to the first.
        let at = self.points.partition_point(|(point, _)| *point < hash);
        let at = (at % self.points.len() + attempt as usize) % self.points.len();
        self.points.get(at).map(|(_, host)| *host as usize)
    }
    /// Number of points.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.points.len()
    }
}

/// A Maglev lookup table of host indices.
#[derive(Debug, Default)]
pub(crate) struct Maglev {
    table: Box<[u32]>,
}

impl Maglev {
    /// The table of `shares`; `size` is prime.
    pub(crate) fn new(shares: &[Share<'_>], size: u64) -> Self {
        struct Build {
            offset: u64,
            skip: u64,
            weight: f64,
            target: f64,
            next: u64,
        }
        const FREE: u32 = u32::MAX;
        let max = shares.iter().map(|s| s.weight).fold(0.0, f64::max);
        if shares.is_empty() || max <= 0.0 || size < 2 {
            return Self::default();
        }
        let mut entries: Vec<Build> = shares
            .iter()
            .map(|s| Build {
                offset: XxHash64::oneshot(0, s.key.as_bytes()) % size,
                skip: XxHash64::oneshot(1, s.key.as_bytes()) % (size - 1) + 1,
                weight: s.weight,
                target: 0.0,
                next: 0,
            })
            .collect();
        let mut table = vec![FREE; usize::try_from(size).unwrap_or(0)].into_boxed_slice();
        let mut filled = 0u64;
        let mut iteration = 1u32;
        while filled < size {
            for (index, entry) in entries.iter_mut().enumerate() {
                if filled >= size {
                    break;
                }
                // The heaviest host is due in every round, one of a third of its weight in every third.
                if f64::from(iteration) * entry.weight < entry.target {
                    continue;
                }
                entry.target += max;
                // The permutation visits every place once, and a place is free, so that this ends.
                loop {
                    let at = (entry.offset + entry.skip * entry.next) % size;
                    entry.next += 1;
                    if let Some(place) = usize::try_from(at).ok().and_then(|at| table.get_mut(at))
                        && *place == FREE
                    {
                        *place = u32::try_from(index).unwrap_or(0);
                        break;
                    }
                }
                filled += 1;
            }
            iteration = iteration.saturating_add(1);
        }
        Self { table }
    }
    /// The host of `hash`; another one (probably) for another `attempt`.
    pub(crate) fn pick(&self, mut hash: u64, attempt: u32) -> Option<usize> {
        if self.table.is_empty() {
            return None;
        }
        if attempt > 0 {
            hash ^= u64::MAX - u64::from(attempt) + 1;
        }
        let at = hash % self.table.len() as u64;
        usize::try_from(at).ok().and_then(|at| self.table.get(at)).map(|host| *host as usize)
    }
}

/// The 64-bit MurmurHash2 of GNU's `std::hash`, which Envoy's MURMUR_HASH_2 is.
pub(crate) fn murmur2(bytes: &[u8]) -> u64 {
    const MUL: u64 = 0xc6a4_a793_5bd1_e995;
    const SEED: u64 = 0xc70f_6907;
    let mix = |v: u64| v ^ (v >> 47);
    let mut hash = SEED ^ (bytes.len() as u64).wrapping_mul(MUL);
    let mut chunks = bytes.chunks_exact(8);
    for chunk in &mut chunks {
        let word = chunk.iter().rev().fold(0u64, |w, b| (w << 8) | u64::from(*b));
        hash = (hash ^ mix(word.wrapping_mul(MUL)).wrapping_mul(MUL)).wrapping_mul(MUL);
    }
    let rest = chunks.remainder();
    if !rest.is_empty() {
        let word = rest.iter().rev().fold(0u64, |w, b| (w << 8) | u64::from(*b));
        hash = (hash ^ word).wrapping_mul(MUL);
    }
    mix(mix(hash).wrapping_mul(MUL))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(n: usize) -> Vec<String> {
        (0..n).map(|i| format!("127.0.0.1:{}", 90 + i)).collect()
    }
    fn even(keys: &[String]) -> Vec<Share<'_>> {
        keys.iter().map(|key| Share { key, weight: 1.0 / keys.len() as f64 }).collect()
    }

    #[test]
    fn ring_is_envoys() {
        // Six hosts on a ring of 12: points as Envoy's ring_hash_lb_test.cc ("Basic") lists them.
        let keys = keys(6);
        let ring = Ring::new(&even(&keys), 12, 8 << 20, HashFunction::XxHash);
        let points: Vec<_> = ring.points.iter().map(|(point, host)| (*point, host + 90)).collect();
        assert_eq!(
            points,
            [
                (833437586790550860, 94),
                (928266305478181108, 92),
                (1033482794131418490, 90),
                (3551244743356806947, 95),
                (3851675632748031481, 93),
                (5583722120771150861, 91),
                (6311230543546372928, 91),
                (7700377290971790572, 93),
                (13144177310400110813, 95),
                (13444792449719432967, 92),
                (15516499411664133160, 94),
                (16117243373044804889, 90),
            ]
        );
        for (hash, port) in [(0, 94), (u64::MAX, 94), (3551244743356806947, 95), (3551244743356806948, 93)] {
            assert_eq!(ring.pick(hash, 0), Some(port - 90), "{hash}");
        }
    }
    #[test]
    fn ring_goes_around_and_on() {
        let keys = keys(3);
        let ring = Ring::new(&even(&keys), 3, 1024, HashFunction::MurmurHash2);
        assert_eq!(ring.len(), 3);
        let all: std::collections::HashSet<_> = (0..3).map(|a| ring.pick(7, a)).collect();
        assert_eq!(all.len(), ring.points.iter().map(|p| p.1).collect::<std::collections::HashSet<_>>().len());
        assert_eq!(ring.pick(u64::MAX, 0), ring.pick(0, 0));
        assert_eq!(Ring::new(&[], 1024, 1024, HashFunction::XxHash).pick(1, 0), None);
    }
    #[test]
    fn ring_and_table_hold_on_to_hosts() {
        let keys = keys(10);
        let ring = |k: &[String]| Ring::new(&even(k), 1024, 8 << 20, HashFunction::XxHash);
        let table = |k: &[String]| Maglev::new(&even(k), 65537);
        let (r10, r9, m10, m9) = (ring(&keys), ring(&keys[..9]), table(&keys), table(&keys[..9]));
        let (mut moved_ring, mut moved_table) = (0, 0);
        for i in 0..10_000u64 {
            let h = XxHash64::oneshot(0, &i.to_le_bytes());
            let (a, b) = (r10.pick(h, 0).unwrap(), m10.pick(h, 0).unwrap());
            moved_ring += usize::from(a != 9 && r9.pick(h, 0) != Some(a));
            moved_table += usize::from(b != 9 && m9.pick(h, 0) != Some(b));
        }
        // Fewer hosts have more points each, which take a little from the others.
        assert!(moved_ring < 1200, "{moved_ring} of 10000 sessions moved");
        assert!(moved_table < 500, "{moved_table} of 10000 sessions moved");
    }
    #[test]
    fn maglev_shares_follow_weights() {
        let keys = keys(3);
        let shares: Vec<_> = keys.iter().zip([0.1, 0.3, 0.6]).map(|(key, weight)| Share { key, weight }).collect();
        let table = Maglev::new(&shares, 65537);
        let count = |i| table.table.iter().filter(|h| **h == i).count() as f64 / 65537.0;
        for (i, w) in [(0, 0.1), (1, 0.3), (2, 0.6)] {
            assert!((count(i) - w).abs() < 0.001, "{i}: {}", count(i));
        }
    }
    #[test]
    fn murmur_is_gnus() {
        // std::hash<std::string_view> of libstdc++ on 64-bit.
        assert_eq!(murmur2(b""), 6142509188972423790);
        assert_eq!(murmur2(b"a"), 4993892634952068459);
        assert_eq!(murmur2(b"abcdefgh"), 8664279048047335611);
        assert_eq!(murmur2(b"127.0.0.1:90_11"), 2398554009774155831);
    }
}
