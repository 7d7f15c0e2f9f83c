//! Earliest deadline first: weighted round robin whose weights may change at every pick. Parity with Envoy's `edf_scheduler.h`:
//! an entry's deadline is the current time plus 1/weight, ties go to the entry that was added first. Per worker.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

#[derive(Debug)]
struct Entry {
    deadline: f64,
    order: u64,
    index: usize,
}
impl Ord for Entry {
    /// Greatest is next, because the heap is a max-heap.
    fn cmp(&self, other: &Self) -> Ordering {
        other.deadline.total_cmp(&self.deadline).then(other.order.cmp(&self.order))
    }
}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Entry {}

/// A scheduler over the indices of a list.
#[derive(Debug, Default)]
pub(crate) struct Edf {
    now: f64,
    order: u64,
    heap: BinaryHeap<Entry>,
}

/// Weights of zero would never be due; Envoy's are at least this by validation of the proto, ours by this bound.
const LEAST: f64 = 1e-9;

impl Edf {
    /// All of `0..len`, as after `picks` picks, so that workers do not all begin with the same host.
    pub(crate) fn new(len: usize, picks: u32, weight: impl Fn(usize) -> f64) -> Self {
        // As Envoy: enough picks to be random, few enough for exact floating point.
        let picks = f64::from(picks % 429_496_729);
        let weights: Vec<f64> = (0..len).map(|i| weight(i).max(LEAST)).collect();
        let sum: f64 = weights.iter().sum();
        let mut edf = Self { now: 0.0, order: 0, heap: BinaryHeap::with_capacity(len) };
        let mut done = 0.0;
        for (index, w) in weights.iter().enumerate() {
            // What this entry was surely picked; the fractions follow one by one.
            let whole = (picks * w / sum).floor();
            done += whole;
            edf.now = edf.now.max(whole / w);
            edf.heap.push(Entry { deadline: (whole + 1.0) / w, order: edf.order, index });
            edf.order += 1;
        }
        // Time only moves by picks. Each entry leaves less than one pick over; without entries there is nothing to pick.
        edf.now = 0.0;
        let mut rest = if len == 0 { 0.0 } else { picks - done };
        while rest >= 1.0 {
            rest -= 1.0;
            edf.pick(|i| weights.get(i).copied().unwrap_or(1.0));
        }
        edf
    }
    /// The next index, put back with `weight` as it is now.
    pub(crate) fn pick(&mut self, weight: impl FnOnce(usize) -> f64) -> Option<usize> {
        let mut next = self.heap.peek_mut()?;
        let index = next.index;
        self.now = next.deadline;
        next.deadline = self.now + 1.0 / weight(index).max(LEAST);
        next.order = self.order;
        self.order += 1;
        Some(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_follow_weights_exactly() {
        let weights = [1.0, 2.0, 5.0];
        let mut edf = Edf::new(3, 0, |i| weights[i]);
        let mut count = [0; 3];
        for _ in 0..800 {
            count[edf.pick(|i| weights[i]).unwrap()] += 1;
        }
        assert_eq!(count, [100, 200, 500]);
    }
    #[test]
    fn equal_weights_are_round_robin() {
        let mut edf = Edf::new(3, 0, |_| 1.0);
        let picks: Vec<_> = (0..6).map(|_| edf.pick(|_| 1.0).unwrap()).collect();
        assert_eq!(picks, [0, 1, 2, 0, 1, 2]);
    }
    #[test]
    fn beginning_late_is_the_same_sequence() {
        let weights = [3.0, 1.0, 7.0, 2.0];
        for skip in 0..40u32 {
            let mut early = Edf::new(4, 0, |i| weights[i]);
            for _ in 0..skip {
                early.pick(|i| weights[i]);
            }
            let mut late = Edf::new(4, skip, |i| weights[i]);
            // Ties may fall differently; the number of picks of each may differ by one at most.
            let mut count = [[0i32; 4]; 2];
            for _ in 0..130 {
                count[0][early.pick(|i| weights[i]).unwrap()] += 1;
                count[1][late.pick(|i| weights[i]).unwrap()] += 1;
            }
            assert!(count[0].iter().zip(&count[1]).all(|(a, b)| (a - b).abs() <= 1), "{skip}: {count:?}");
        }
    }
    #[test]
    fn nothing_gives_nothing() {
        let began = std::time::Instant::now();
        assert_eq!(Edf::new(0, u32::MAX, |_| 1.0).pick(|_| 1.0), None);
        assert!(began.elapsed().as_secs() < 1, "it must not count down all picks");
    }
}
