//! Periodic work of clusters on the control thread, gathered so that thousands of clusters do not wake it thousands of times.

use crate::cluster::Cluster;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Due {
    /// `OutlierDetection.interval`.
    Outlier,
    /// `weight_update_period` of client_side_weighted_round_robin.
    Weights,
    /// ORIGINAL_DST `cleanup_interval`.
    Cleanup,
}

/// Timers that are due within this of each other fire together.
const GATHER: Duration = Duration::from_millis(50);

struct Timer {
    at: Instant,
    serial: u64,
    due: Due,
    interval: Duration,
    cluster: Weak<Cluster>,
}

impl PartialEq for Timer {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.serial) == (other.at, other.serial)
    }
}
impl Eq for Timer {}
impl PartialOrd for Timer {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Timer {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.serial).cmp(&(other.at, other.serial))
    }
}

/// All timers.
#[derive(Default)]
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<Timer>>,
    serial: u64,
}

impl Timers {
    /// Runs `due` of `cluster` every `interval`, for as long as the cluster lives.
    pub(crate) fn add(&mut self, cluster: &Arc<Cluster>, due: Due, interval: Duration, now: Instant) {
        self.push(Timer { at: now + interval, serial: 0, due, interval, cluster: Arc::downgrade(cluster) });
    }
    fn push(&mut self, mut timer: Timer) {
        self.serial += 1;
        timer.serial = self.serial;
        self.heap.push(Reverse(timer));
    }
    /// Resolves when something is due; never if nothing is.
    pub(crate) async fn next(&self) {
        match self.heap.peek() {
            Some(Reverse(timer)) => tokio::time::sleep_until((timer.at + GATHER.min(timer.interval)).into()).await,
            None => std::future::pending().await,
        }
    }
    /// Runs everything that is due at `now`; what `run` gives is the interval from now on, if it is another.
    pub(crate) fn fire(&mut self, now: Instant, run: impl Fn(&Arc<Cluster>, Due, Instant) -> Option<Duration>) {
        while self.heap.peek().is_some_and(|Reverse(t)| t.at <= now) {
            let Some(Reverse(timer)) = self.heap.pop() else { return };
            let Some(cluster) = timer.cluster.upgrade().filter(|c| !c.is_retired()) else { continue };
            let interval = run(&cluster, timer.due, now).unwrap_or(timer.interval);
            self.push(Timer { at: now + interval, interval, ..timer });
        }
    }
}
