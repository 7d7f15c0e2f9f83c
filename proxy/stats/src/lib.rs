//! Counters, gauges, histograms, tags and their text forms (stats, JSON, Prometheus). Used by every crate: handles are made
//! at compile time of a configuration object and used on any thread.
//!
//! A counter or gauge written by workers has one slot per worker, written by that worker alone (`set_worker`), so that a
//! write is a plain load and store without contention; reading sums the slots. What no worker ever writes has no slots.
//! Source of names and shapes: Envoy's `/stats` and `/stats/prometheus` (`envoy/config/metrics/v3/stats.proto`).

mod cell;
mod config;
mod handle;
mod histogram;
mod numbers;
mod render;
mod store;
mod tags;

pub use cell::{set_worker, worker};
pub use config::Problem;
pub use handle::{Counter, Gauge, Histogram, TextReadout};
pub use render::{Chunks, HistogramBuckets, Kind, Query};
pub use store::{Scope, Store};
