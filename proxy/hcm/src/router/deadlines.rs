//! The deadlines of one stream behind one timer. The timer is made on the first wait, so a stream without deadlines, or one
//! that never waits, costs nothing. Belongs to one worker.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// What can run out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    /// Route timeout: 504 `response_timeout`.
    Global,
    /// `per_try_timeout`.
    PerTry,
    /// `per_try_idle_timeout`.
    PerTryIdle,
    /// Stream idle timeout of route or connection manager.
    Idle,
    /// Route or connection manager `max_stream_duration`.
    MaxDuration,
    /// The cluster's `max_stream_duration`.
    UpstreamMaxDuration,
    /// Connection manager `request_timeout`: the whole request must have arrived.
    Request,
}

const ALL: [Deadline; 7] = [
    Deadline::Global,
    Deadline::PerTry,
    Deadline::PerTryIdle,
    Deadline::Idle,
    Deadline::MaxDuration,
    Deadline::UpstreamMaxDuration,
    Deadline::Request,
];

/// The deadlines of one stream.
#[derive(Default)]
pub struct Deadlines {
    at: [Option<Instant>; ALL.len()],
    timer: Option<Pin<Box<Sleep>>>,
}

impl Deadlines {
    /// Arms `which` to run out after `after`; none disarms it.
    pub fn set(&mut self, which: Deadline, after: Option<Duration>) {
        // A duration too long for the clock is as good as none.
        let at = after.and_then(|d| Instant::now().checked_add(d));
        if let Some(slot) = self.at.get_mut(which as usize) {
            *slot = at;
        }
    }
    /// Whether `which` is armed.
    pub fn is_set(&self, which: Deadline) -> bool {
        self.at.get(which as usize).is_some_and(Option::is_some)
    }
    /// How long until `which` runs out, if it is armed.
    pub fn left(&self, which: Deadline) -> Option<Duration> {
        Some(self.at.get(which as usize).copied()??.saturating_duration_since(Instant::now()))
    }
    /// Ready when a deadline ran out; that one is disarmed.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Deadline> {
        loop {
            let Some((which, at)) = ALL.iter().zip(self.at).filter_map(|(w, at)| at.map(|at| (*w, at))).min_by_key(|(_, at)| *at) else {
                return Poll::Pending;
            };
            match &mut self.timer {
                None => self.timer = Some(Box::pin(tokio::time::sleep_until(at))),
                // An earlier wake-up is harmless; a later one is not.
                Some(timer) if timer.deadline() > at || timer.is_elapsed() => timer.as_mut().reset(at),
                Some(_) => {}
            }
            let Some(timer) = &mut self.timer else { return Poll::Pending };
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if at <= Instant::now() {
                self.set(which, None);
                return Poll::Ready(which);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    #[tokio::test(start_paused = true)]
    async fn the_nearest_runs_out_first() {
        let mut deadlines = Deadlines::default();
        deadlines.set(Deadline::Global, Some(Duration::from_secs(5)));
        deadlines.set(Deadline::Idle, Some(Duration::from_secs(1)));
        assert_eq!(poll_fn(|cx| deadlines.poll(cx)).await, Deadline::Idle);
        assert_eq!(poll_fn(|cx| deadlines.poll(cx)).await, Deadline::Global);
    }

    #[tokio::test(start_paused = true)]
    async fn rearming_moves_the_deadline() {
        let mut deadlines = Deadlines::default();
        let start = Instant::now();
        deadlines.set(Deadline::Idle, Some(Duration::from_secs(1)));
        assert!(futures_util::poll!(poll_fn(|cx| deadlines.poll(cx))).is_pending());
        deadlines.set(Deadline::Idle, Some(Duration::from_secs(3)));
        assert_eq!(poll_fn(|cx| deadlines.poll(cx)).await, Deadline::Idle);
        assert_eq!(start.elapsed().as_secs(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn endless_durations_never_run_out() {
        let mut deadlines = Deadlines::default();
        deadlines.set(Deadline::Global, Some(Duration::MAX));
        assert!(!deadlines.is_set(Deadline::Global));
    }
}
