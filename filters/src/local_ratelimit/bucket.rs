//! A token bucket that workers share without a lock: one atomic holds the moment at which the bucket was empty, tokens are what
//! has dripped in since. Source: Envoy's `AtomicTokenBucketImpl`.

use crate::config::duration;
use nuncio_core::diag::{At, Report};
use nuncio_proto::envoy::r#type::v3::TokenBucket;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// Rates of a `TokenBucket`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    max: u32,
    /// Tokens per second.
    fill: f64,
}

impl Rate {
    /// Compiles `TokenBucket`.
    pub fn compile(p: &TokenBucket, at: &At<'_>, report: &mut Report) -> Option<Self> {
        if p.max_tokens == 0 {
            report.error(&at.field("max_tokens"), "0", "give at least 1");
            return None;
        }
        let interval_at = at.field("fill_interval");
        let interval = match &p.fill_interval {
            Some(d) => duration(d, &interval_at, report)?,
            None => Duration::ZERO,
        };
        if interval < Duration::from_millis(50) {
            report.error(&interval_at, format!("{interval:?}"), "give at least 50ms");
            return None;
        }
        let tokens = p.tokens_per_fill.unwrap_or(1);
        if tokens == 0 {
            report.error(&at.field("tokens_per_fill"), "0", "give at least 1");
            return None;
        }
        Some(Self { max: p.max_tokens, fill: f64::from(tokens) / interval.as_secs_f64() })
    }
    /// Stricter rates order first.
    pub fn fill(self) -> f64 {
        self.fill
    }
}

/// A bucket.
#[derive(Debug)]
pub struct Bucket {
    rate: Rate,
    base: Instant,
    /// Bits of the f64 seconds since `base` at which the bucket was empty.
    empty: AtomicU64,
}

impl Bucket {
    /// A full bucket.
    pub fn new(rate: Rate) -> Self {
        Self { rate, base: Instant::now(), empty: AtomicU64::new((-f64::from(rate.max) / rate.fill).to_bits()) }
    }
    fn now(&self) -> f64 {
        self.base.elapsed().as_secs_f64()
    }
    fn tokens(&self, empty: u64, now: f64) -> f64 {
        ((now - f64::from_bits(empty)) * self.rate.fill).min(f64::from(self.rate.max))
    }
    /// Takes `n` tokens; false, and none taken, if there are not so many.
    pub fn take(&self, n: u64) -> bool {
        let (now, wanted) = (self.now(), n as f64);
        // Seconds that rounding may have lost since the bucket was filled must not cost a token.
        let slack = 1e-9;
        let taken = self.empty.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |empty| {
            let tokens = self.tokens(empty, now);
            (tokens + slack >= wanted).then(|| (now - (tokens - wanted).max(0.0) / self.rate.fill).to_bits())
        });
        taken.is_ok()
    }
    /// Size of the bucket.
    pub fn max(&self) -> u32 {
        self.rate.max
    }
    /// Whole tokens that are left.
    pub fn remaining(&self) -> u64 {
        (self.tokens(self.empty.load(Ordering::Relaxed), self.now()) + 1e-9).max(0.0) as u64
    }
    /// Whole seconds, rounded up, until there is a token again; 0 if there is one.
    pub fn reset_seconds(&self) -> u64 {
        let tokens = self.tokens(self.empty.load(Ordering::Relaxed), self.now());
        if tokens + 1e-9 >= 1.0 { 0 } else { ((1.0 - tokens) / self.rate.fill).ceil() as u64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn empties_and_fills() {
        let bucket = Bucket::new(Rate { max: 3, fill: 2.0 });
        assert_eq!((bucket.take(1), bucket.take(2), bucket.take(1)), (true, true, false));
        assert_eq!((bucket.remaining(), bucket.reset_seconds()), (0, 1));
        tokio::time::advance(Duration::from_millis(500)).await;
        assert_eq!((bucket.remaining(), bucket.reset_seconds()), (1, 0));
        assert_eq!((bucket.take(1), bucket.take(1)), (true, false));
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(bucket.remaining(), 3);
        assert!(!bucket.take(4));
    }

    #[test]
    fn workers_share_it() {
        let bucket = Bucket::new(Rate { max: 1000, fill: 1e-9 });
        let taken: usize = std::thread::scope(|s| {
            let workers: Vec<_> = (0..4).map(|_| s.spawn(|| (0..500).filter(|_| bucket.take(1)).count())).collect();
            workers.into_iter().map(|w| w.join().unwrap()).sum()
        });
        assert_eq!(taken, 1000);
    }
}
