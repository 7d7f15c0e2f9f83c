//! A response body that yields at most so many bytes per second, in slices of a sixteenth of a second. After silence a second's
//! worth may burst, but not at the beginning. Source: Envoy's `StreamRateLimiter`.

use bytes::Bytes;
use nuncio_core::{Body, BodySource, Frame, StreamError};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep_until};

/// Slices per second.
const SLICES: u32 = 16;

pub struct Throttled {
    inner: Body,
    /// Bytes per slice.
    slice: usize,
    /// Data that waits for its turn.
    waiting: Bytes,
    /// Slices that may be sent now.
    tokens: u32,
    /// When `tokens` was right; none before the first data.
    filled: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Throttled {
    /// `kib` is KiB per second, at least 1.
    pub fn new(inner: Body, kib: u64) -> Self {
        let slice = usize::try_from(kib.saturating_mul(1024) / u64::from(SLICES)).unwrap_or(usize::MAX).max(1);
        Self { inner, slice, waiting: Bytes::new(), tokens: 1, filled: None, timer: None }
    }
    fn fill(&mut self) {
        let interval = Duration::from_secs(1) / SLICES;
        let now = Instant::now();
        let filled = *self.filled.get_or_insert(now);
        let passed = u32::try_from(now.duration_since(filled).as_nanos() / interval.as_nanos()).unwrap_or(u32::MAX);
        if passed > 0 {
            self.tokens = self.tokens.saturating_add(passed).min(SLICES);
            self.filled = Some(if self.tokens == SLICES { now } else { filled + interval * passed });
        }
    }
}

impl BodySource for Throttled {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        if self.waiting.is_empty() {
            match self.inner.poll_frame(cx) {
                Poll::Ready(Some(Ok(Frame::Data(data)))) => self.waiting = data,
                other => return other,
            }
        }
        loop {
            self.fill();
            if self.tokens > 0 {
                let wanted = u32::try_from(self.waiting.len().div_ceil(self.slice)).unwrap_or(u32::MAX);
                let taken = wanted.min(self.tokens);
                self.tokens -= taken;
                let length = self.slice.saturating_mul(taken as usize).min(self.waiting.len());
                self.timer = None;
                return Poll::Ready(Some(Ok(Frame::Data(self.waiting.split_to(length)))));
            }
            let next = self.filled.unwrap_or_else(Instant::now) + Duration::from_secs(1) / SLICES;
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(next)));
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.timer = None;
        }
    }
    fn remaining(&self) -> Option<u64> {
        self.inner.remaining().map(|n| n + self.waiting.len() as u64)
    }
    fn is_end(&self) -> bool {
        self.waiting.is_empty() && self.inner.is_end()
    }
    fn inner(&mut self) -> Option<&mut Body> {
        Some(&mut self.inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nuncio_core::test_kit as kit;

    #[tokio::test(start_paused = true)]
    async fn bytes_take_their_time() {
        let start = Instant::now();
        let mut body = Body::Stream(Box::new(Throttled::new(kit::data([[7; 4096].as_slice()]), 1)));
        let (all, _) = kit::collect(&mut body).await.unwrap();
        assert_eq!(all.len(), 4096);
        // 64 slices of 64 bytes, of which the first is free.
        let passed = start.elapsed();
        assert!(passed >= Duration::from_millis(3900) && passed <= Duration::from_millis(4100), "{passed:?}");
    }
}
