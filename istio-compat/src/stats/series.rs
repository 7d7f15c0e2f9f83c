//! Handles of label sets. Every worker remembers those that it used, so that a stream costs one lookup in its own map;
//! behind them is one map per configuration that bounds how many there can be. Handles of sets that the store dropped as
//! unused are made again when they come back.

use super::Config;
use super::facts::{Facts, Group, Key};
use super::labels::{self, Label};
use super::overrides::{METRICS, Metric};
use super::sink;
use crate::cel::Attributes;
use hashbrown::HashMap;
use nuncio_core::stats::{Counter, Gauge, Histogram};
use nuncio_proto::stats::MetricType;
use std::cell::RefCell;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Label sets of one configuration; those beyond share one whose labels say `overflow`.
pub const MAX_SETS: usize = if cfg!(test) { 200 } else { 10_000 };
/// Label sets that one worker remembers.
const MAX_WORKER_SETS: usize = 2_000;
/// Configurations that one worker remembers before it looks which are gone.
const MAX_CONFIGS: usize = 32;

type Map = HashMap<Arc<Key>, Arc<Series>, foldhash::fast::RandomState>;

/// The map behind those of the workers.
#[derive(Debug, Default)]
pub struct Shared {
    sets: Mutex<Map>,
}

/// Handles of one label set, those of its group filled.
#[derive(Debug)]
pub struct Series {
    counters: [Counter; METRICS.len()],
    histograms: [Histogram; METRICS.len()],
    custom: Vec<CustomHandle>,
}

#[derive(Debug)]
enum CustomHandle {
    Counter(Counter),
    Gauge(Gauge),
    Histogram(Histogram),
}

impl Series {
    pub fn add(&self, metric: Metric, n: u64) {
        if let Some(counter) = self.counters.get(metric as usize) {
            counter.add(n);
        }
    }
    pub fn record(&self, metric: Metric, value: u64) {
        if let Some(histogram) = self.histograms.get(metric as usize) {
            histogram.record(value);
        }
    }
    /// Reports the metrics that the user defined.
    pub fn report_custom(&self, config: &Config, attributes: &Attributes<'_>) {
        for (custom, handle) in config.overrides.custom.iter().zip(&self.custom) {
            let amount = custom.amount(attributes);
            match handle {
                CustomHandle::Counter(c) => c.add(amount),
                CustomHandle::Gauge(g) => g.set(i64::try_from(amount).unwrap_or(i64::MAX)),
                CustomHandle::Histogram(h) => h.record(amount),
            }
        }
    }
    /// Whether the store dropped any of these.
    pub fn evicted(&self) -> bool {
        self.counters.iter().any(Counter::evicted) || self.histograms.iter().any(Histogram::evicted)
    }
    fn new(config: &Config, facts: &Facts<'_>, labels: &[Label]) -> Self {
        let group: &[Metric] = match facts.group {
            Group::Http | Group::Grpc => &[Metric::Requests, Metric::Duration, Metric::RequestBytes, Metric::ResponseBytes],
            Group::Messages => &[Metric::RequestMessages, Metric::ResponseMessages],
            Group::Tcp => &[Metric::TcpOpened, Metric::TcpClosed, Metric::TcpSent, Metric::TcpReceived],
        };
        let mut out = Self { counters: Default::default(), histograms: Default::default(), custom: Vec::new() };
        for ((metric, name), (counter, histogram)) in METRICS.iter().zip(out.counters.iter_mut().zip(&mut out.histograms)) {
            if !group.contains(metric) || config.overrides.dropped(*metric) {
                continue;
            }
            let tags = config.overrides.labels(*metric, labels, facts.values);
            let name = format!("istio_{name}");
            match metric {
                Metric::Duration | Metric::RequestBytes | Metric::ResponseBytes => {
                    *histogram = sink::histogram(&config.scope, &name, &tags)
                }
                _ => *counter = sink::counter(&config.scope, &name, &tags),
            }
        }
        if facts.group != Group::Messages {
            out.custom.extend(config.overrides.custom.iter().map(|custom| {
                let tags = custom.labels(facts.values);
                match custom.kind {
                    MetricType::Counter => CustomHandle::Counter(sink::counter(&config.scope, &custom.name, &tags)),
                    MetricType::Gauge => CustomHandle::Gauge(sink::gauge(&config.scope, &custom.name, &tags)),
                    MetricType::Histogram => CustomHandle::Histogram(sink::histogram(&config.scope, &custom.name, &tags)),
                }
            }));
        }
        out
    }
}

struct Known {
    config: Weak<Config>,
    sets: Map,
}

thread_local! {
    static WORKER: RefCell<HashMap<usize, Known, foldhash::fast::RandomState>> = RefCell::default();
}

/// The handles of `facts`, for those that keep them.
pub fn series(config: &Arc<Config>, facts: &Facts<'_>) -> Arc<Series> {
    with_series(config, facts, Arc::clone)
}

/// Runs `report` with the handles of `facts`. Workers share them: not to count references keeps their caches quiet.
pub fn with_series<T>(config: &Arc<Config>, facts: &Facts<'_>, report: impl FnOnce(&Arc<Series>) -> T) -> T {
    WORKER.with_borrow_mut(|worker| {
        let id = Arc::as_ptr(config).addr();
        // A weak reference keeps the address from being used again, so that it names this configuration and no other.
        if worker.len() >= MAX_CONFIGS && !worker.contains_key(&id) {
            worker.retain(|_, known| known.config.strong_count() > 0);
        }
        let known = worker.entry(id).or_insert_with(|| Known { config: Arc::downgrade(config), sets: Map::default() });
        match known.sets.get(facts) {
            Some(series) if !series.evicted() => return report(series),
            _ => {}
        }
        let (key, series) = config.shared.find(config, facts);
        if known.sets.len() >= MAX_WORKER_SETS {
            known.sets.clear();
        }
        if let Some(key) = key {
            known.sets.insert(key, series.clone());
        }
        report(&series)
    })
}

impl Shared {
    /// The handles of `facts` and their key; no key for those that overflow, which nobody is to remember.
    fn find(&self, config: &Config, facts: &Facts<'_>) -> (Option<Arc<Key>>, Arc<Series>) {
        let mut sets = self.sets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((key, series)) = sets.get_key_value(facts)
            && !series.evicted()
        {
            return (Some(key.clone()), series.clone());
        }
        if sets.len() >= MAX_SETS {
            sets.retain(|_, series| !series.evicted());
        }
        let standard = labels::labels(config.reporter, &config.local, facts);
        if sets.len() >= MAX_SETS {
            let overflow = vec!["overflow".to_string(); facts.values.len()];
            return (None, Arc::new(Series::new(config, &Facts { values: &overflow, ..*facts }, &labels::overflow(standard))));
        }
        let key = Arc::new(Key::from(facts));
        let series = Arc::new(Series::new(config, facts, &standard));
        // Removed first, so that an evicted entry's key is replaced too and both maps share one.
        sets.remove(facts);
        sets.insert(key.clone(), series.clone());
        (Some(key), series)
    }
}
