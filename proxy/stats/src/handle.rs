//! Handles to stats: what the rest of the process writes to, on any thread. One pointer each; a disabled one (refused by the
//! stats matcher) is empty and costs a branch.

use crate::histogram::Recorder;
use crate::store::{Number, Text};
use std::sync::Arc;
use std::sync::PoisonError;

/// A number that only grows. Cheap to clone; a disabled one (stats matcher) costs a branch.
#[derive(Clone, Debug, Default)]
pub struct Counter(pub(crate) Option<Arc<Number>>);
impl Counter {
    /// Adds one.
    #[inline]
    pub fn inc(&self) {
        self.add(1);
    }
    /// Adds `n`.
    #[inline]
    pub fn add(&self, n: u64) {
        if let Some(c) = &self.0 {
            c.cell.add(n);
        }
    }
    /// Sum over all workers; 0 if disabled.
    pub fn value(&self) -> u64 {
        self.0.as_ref().map_or(0, |c| c.cell.value())
    }
    /// Whether writes are kept; false if the stats matcher refused the name.
    pub fn enabled(&self) -> bool {
        self.0.is_some()
    }
    /// Whether the store has dropped it as unused ([`crate::Store::evict_unused`]): holders of tagged stats ask for a new handle then.
    pub fn evicted(&self) -> bool {
        self.0.as_ref().is_some_and(|c| c.meta.evicted())
    }
}

/// A number that goes up and down.
#[derive(Clone, Debug, Default)]
pub struct Gauge(pub(crate) Option<Arc<Number>>);
impl Gauge {
    /// Adds one.
    #[inline]
    pub fn inc(&self) {
        self.add(1);
    }
    /// Subtracts one.
    #[inline]
    pub fn dec(&self) {
        self.add(-1);
    }
    /// Adds `n`, which may be negative.
    #[inline]
    pub fn add(&self, n: i64) {
        if let Some(g) = &self.0 {
            g.cell.add(n as u64);
        }
    }
    /// Sets the value. Takes a lock: for the control thread and rare events.
    pub fn set(&self, n: i64) {
        if let Some(g) = &self.0 {
            g.cell.set(n as u64);
        }
    }
    /// Sum over all workers; 0 if disabled.
    pub fn value(&self) -> i64 {
        self.0.as_ref().map_or(0, |g| g.cell.value() as i64)
    }
    /// Whether writes are kept; false if the stats matcher refused the name.
    pub fn enabled(&self) -> bool {
        self.0.is_some()
    }
}

/// A distribution of values.
#[derive(Clone, Debug, Default)]
pub struct Histogram(pub(crate) Option<Arc<Recorder>>);
impl Histogram {
    /// Adds a value (milliseconds or bytes, by the histogram's name).
    #[inline]
    pub fn record(&self, value: u64) {
        if let Some(h) = &self.0 {
            h.record(value);
        }
    }
    /// Number of values recorded; 0 if disabled.
    pub fn count(&self) -> u64 {
        self.0.as_ref().map_or(0, |h| h.count())
    }
    /// Whether writes are kept; false if the stats matcher refused the name.
    pub fn enabled(&self) -> bool {
        self.0.is_some()
    }
    /// As [`Counter::evicted`].
    pub fn evicted(&self) -> bool {
        self.0.as_ref().is_some_and(|h| h.meta.evicted())
    }
}

/// A text among the stats (`cluster_manager.cds.version_text`).
#[derive(Clone, Debug, Default)]
pub struct TextReadout(pub(crate) Option<Arc<Text>>);
impl TextReadout {
    /// Sets the text.
    pub fn set(&self, text: &str) {
        if let Some(t) = &self.0 {
            *t.value.lock().unwrap_or_else(PoisonError::into_inner) = Some(text.into());
        }
    }
    /// The text; empty if it was never set.
    pub fn value(&self) -> String {
        self.0.as_ref().and_then(|t| t.get()).map_or_else(String::new, |t| t.to_string())
    }
}
