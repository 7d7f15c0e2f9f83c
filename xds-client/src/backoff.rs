//! Envoy's jittered exponential back-off, and its token bucket for discovery requests. Pure: time and chance are given.

use std::time::{Duration, Instant};

/// Waits between attempts: uniform in `[0, interval)`, the interval doubling up to a maximum.
#[derive(Debug)]
pub struct Backoff {
    base: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    /// `base` and `max` as `RetryPolicy.retry_back_off`; Envoy's defaults for xDS are 500 ms and 30 s.
    pub fn new(base: Duration, max: Duration) -> Self {
        let base = base.max(Duration::from_millis(1));
        let max = max.max(base);
        Self { base, max, next: base }
    }
    /// The next wait; `chance` is uniform in `[0, 1)`.
    pub fn next(&mut self, chance: f64) -> Duration {
        let wait = self.next.mul_f64(chance.clamp(0.0, 1.0));
        self.next = self.next.saturating_mul(2).min(self.max);
        wait
    }
    /// The peer answered: the next failure starts over.
    pub fn reset(&mut self) {
        self.next = self.base;
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new(Duration::from_millis(500), Duration::from_secs(30))
    }
}

/// `RateLimitSettings`: a bucket of `max` tokens refilled at `fill` tokens a second.
#[derive(Debug)]
pub struct TokenBucket {
    max: f64,
    fill: f64,
    tokens: f64,
    last: Instant,
}

impl TokenBucket {
    /// Envoy's defaults are 100 tokens and 10 a second.
    pub fn new(max: u32, fill: f64, now: Instant) -> Self {
        let max = f64::from(max.max(1));
        Self { max, fill: if fill > 0.0 { fill } else { 10.0 }, tokens: max, last: now }
    }
    /// Takes a token, or says how long to wait for the next one.
    pub fn take(&mut self, now: Instant) -> Result<(), Duration> {
        self.tokens = (self.tokens + now.saturating_duration_since(self.last).as_secs_f64() * self.fill).min(self.max);
        self.last = now;
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64(((1.0 - self.tokens) / self.fill).clamp(0.001, 60.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_with_full_jitter_up_to_the_maximum_and_starts_over() {
        let mut b = Backoff::default();
        assert_eq!(b.next(0.0), Duration::ZERO);
        assert_eq!(b.next(1.0), Duration::from_secs(1));
        for _ in 0..10 {
            b.next(0.5);
        }
        assert_eq!(b.next(1.0), Duration::from_secs(30));
        b.reset();
        assert_eq!(b.next(1.0), Duration::from_millis(500));
    }

    #[test]
    fn bucket_empties_and_refills() {
        let t = Instant::now();
        let mut bucket = TokenBucket::new(2, 10.0, t);
        assert!(bucket.take(t).is_ok() && bucket.take(t).is_ok());
        let wait = bucket.take(t).unwrap_err();
        assert!(wait <= Duration::from_millis(100) && bucket.take(t + wait).is_ok());
    }
}
