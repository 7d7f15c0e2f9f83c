//! Log-linear histograms: 90 bins per power of ten, as Envoy's (circllhist), so that quantiles and bucket counts agree with it.
//! Workers record into a stripe of their own; the control thread moves what was recorded into the interval and the total.

use crate::cell::worker;
use crate::store::Meta;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Quantiles that Envoy shows.
pub(crate) const QUANTILES: [f64; 10] = [0.0, 0.25, 0.5, 0.75, 0.90, 0.95, 0.99, 0.995, 0.999, 1.0];
/// Upper bounds of Envoy's default buckets.
pub(crate) const BUCKETS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1000.0,
    2500.0,
    5000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];
const STRIPES: usize = 16;

/// Values by bin, in ascending order of bins. Bin 0 holds zeros; others are `90 * exponent + digits - 9` with two leading digits.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bins(Vec<(u16, u64)>);

fn bin_of(value: u64) -> u16 {
    if value == 0 {
        return 0;
    }
    let exponent = value.ilog10() as u16;
    let digits = if exponent == 0 { value * 10 } else { value / 10_u64.pow(u32::from(exponent) - 1) };
    90 * exponent + digits as u16 - 9
}
fn power(bin: u16) -> f64 {
    10_f64.powi(i32::from((bin - 1) / 90))
}
fn lower(bin: u16) -> f64 {
    if bin == 0 { 0.0 } else { f64::from((bin - 1) % 90 + 10) / 10.0 * power(bin) }
}
fn width(bin: u16) -> f64 {
    if bin == 0 { 0.0 } else { power(bin) / 10.0 }
}

impl Bins {
    fn add(&mut self, bin: u16, count: u64) {
        match self.0.binary_search_by_key(&bin, |b| b.0) {
            Ok(at) => {
                if let Some(b) = self.0.get_mut(at) {
                    b.1 = b.1.saturating_add(count);
                }
            }
            Err(at) => self.0.insert(at, (bin, count)),
        }
    }
    fn merge(&mut self, other: &Bins) {
        other.0.iter().for_each(|&(bin, count)| self.add(bin, count));
    }
    /// Number of values.
    pub fn count(&self) -> u64 {
        self.0.iter().fold(0, |all, b| all.saturating_add(b.1))
    }
    /// Sum of values, each taken as the harmonic mean of its bin's bounds.
    pub fn sum(&self) -> f64 {
        let middle = |bin: u16| {
            let (low, high) = (lower(bin), lower(bin) + width(bin));
            if bin == 0 { 0.0 } else { low * high * 2.0 / (low + high) }
        };
        self.0.iter().fold(0.0, |all, &(bin, count)| all + middle(bin) * count as f64)
    }
    /// Number of values in bins that begin at or below `bound`.
    pub fn below(&self, bound: f64) -> u64 {
        self.0.iter().take_while(|b| lower(b.0) <= bound).fold(0, |all, b| all.saturating_add(b.1))
    }
    /// The value at each of [`QUANTILES`]; `nan` if there is none. Values of one bin are taken as spread evenly within it.
    pub fn quantiles(&self) -> [f64; 10] {
        let total = self.count();
        if total == 0 {
            return [f64::NAN; 10];
        }
        let mut bins = self.0.iter().filter(|b| b.1 > 0);
        let (mut before, mut bin, mut count) = (0.0, 0_u16, 0.0);
        QUANTILES.map(|q| {
            let rank = (total as f64 * q).ceil().max(1.0);
            while before + count < rank {
                let Some(next) = bins.next() else { break };
                before += count;
                (bin, count) = (next.0, next.1 as f64);
            }
            lower(bin) + (rank - before) / (count + 1.0) * width(bin)
        })
    }
    /// Lower bound, width and count of every bin.
    pub fn iter(&self) -> impl Iterator<Item = (f64, f64, u64)> {
        self.0.iter().map(|&(bin, count)| (lower(bin), width(bin), count))
    }
}

#[derive(Debug, Default)]
struct Merged {
    interval: Bins,
    total: Bins,
}

type Stripes = Box<[OnceLock<Box<Mutex<Bins>>>; STRIPES]>;

/// What stands behind a histogram handle.
#[derive(Debug)]
pub(crate) struct Recorder {
    pub meta: Meta,
    /// Upper bounds of the buckets shown.
    pub buckets: Arc<[f64]>,
    used: AtomicBool,
    stripes: OnceLock<Stripes>,
    merged: Mutex<Merged>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Recorder {
    pub fn new(meta: Meta, buckets: Arc<[f64]>) -> Self {
        Self { meta, buckets, used: AtomicBool::new(false), stripes: OnceLock::new(), merged: Mutex::default() }
    }
    pub fn record(&self, value: u64) {
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
        let stripes = self.stripes.get_or_init(|| Box::new([const { OnceLock::new() }; STRIPES]));
        if let Some(mine) = stripes.get(worker() % STRIPES) {
            lock(mine.get_or_init(Box::default)).add(bin_of(value), 1);
        }
    }
    pub fn used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }
    fn pending(&self) -> impl Iterator<Item = &Mutex<Bins>> {
        self.stripes.get().into_iter().flat_map(|s| s.iter()).filter_map(|s| s.get().map(AsRef::as_ref))
    }
    /// Ends the interval: what was recorded since the last call is the interval now.
    pub fn flush(&self) {
        if !self.used() {
            return;
        }
        let mut merged = lock(&self.merged);
        let mut interval = Bins::default();
        self.pending().for_each(|p| interval.merge(&std::mem::take(&mut *lock(p))));
        merged.total.merge(&interval);
        merged.interval = interval;
    }
    /// The last interval, and everything recorded so far.
    pub fn read(&self) -> (Bins, Bins) {
        // The lock is held throughout, or a flush in between would count twice.
        let merged = lock(&self.merged);
        let mut total = merged.total.clone();
        self.pending().for_each(|p| total.merge(&lock(p)));
        (merged.interval.clone(), total)
    }
    pub fn count(&self) -> u64 {
        self.read().1.count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bins(values: &[u64]) -> Bins {
        let mut b = Bins::default();
        values.iter().for_each(|v| b.add(bin_of(*v), 1));
        b
    }

    /// Expected values are those of Envoy 1.40 for the same values (request bodies of these sizes).
    #[test]
    fn quantiles_are_those_of_envoy() {
        let a = bins(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]).quantiles();
        assert_eq!(a, [1.05, 3.05, 5.05, 8.05, 9.05, 10.5, 10.5, 10.5, 10.5, 10.5]);
        let b = bins(&[100, 100, 100, 250, 1000, 1000, 12345, 5, 5, 5]);
        let expected = [5.025, 5.075, 105.0, 1033.3333333333333, 1066.6666666666667, 12500.0, 12500.0, 12500.0, 12500.0, 12500.0];
        assert_eq!(b.quantiles(), expected);
        assert_eq!(b.sum(), 15_159.574_285_159_608);
        let c = bins(&[5, 5, 5, 25, 25]).quantiles();
        assert_eq!(c[..5], [5.025, 5.05, 5.075, 25.333333333333332, 25.666666666666668]);
        let d = bins(&[100, 109, 0]);
        assert_eq!(d.quantiles()[..4], [0.0, 0.0, 103.33333333333333, 106.66666666666667]);
        assert_eq!([0.5, 50.0, 100.0, 250.0].map(|le| d.below(le)), [1, 1, 3, 3]);
    }

    #[test]
    fn bins_hold_their_values() {
        for v in [1, 9, 10, 11, 99, 100, 101, 999, 1000, 123_456, u64::MAX / 2, u64::MAX] {
            let bin = bin_of(v);
            let (low, high) = (lower(bin), lower(bin) + width(bin));
            assert!(low <= v as f64 && (v as f64) < high * 1.000_000_000_001, "{v} in [{low}, {high})");
        }
    }
}
