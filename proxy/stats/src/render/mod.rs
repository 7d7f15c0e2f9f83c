//! Text forms of the stats, for the admin endpoints. Each is an iterator of chunks, so that a response never holds the whole
//! text; what is held is one pointer per stat shown. Runs on the control thread.

mod json;
mod prometheus;
mod text;

use crate::store::{Entry, Store};
use regex::Regex;

/// Kinds of stats, as `type=` of `/stats` names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    TextReadout,
    Counter,
    Gauge,
    Histogram,
}

/// `histogram_buckets=` of `/stats`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HistogramBuckets {
    /// Quantiles in text and JSON, cumulative buckets in Prometheus form.
    #[default]
    Default,
    Cumulative,
    Disjoint,
    Detailed,
    /// Quantiles.
    Summary,
}

impl HistogramBuckets {
    /// Parses the parameter's value.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "none" | "" => Self::Default,
            "cumulative" => Self::Cumulative,
            "disjoint" => Self::Disjoint,
            "detailed" => Self::Detailed,
            "summary" => Self::Summary,
            _ => return None,
        })
    }
}

/// Which stats to show and how.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// Only stats that were ever written (`usedonly`).
    pub used_only: bool,
    /// Only stats of whose full name a part matches (`filter`).
    pub filter: Option<Regex>,
    /// Only stats that the filter does not match (`invert_filter`).
    pub invert_filter: bool,
    /// Only this kind (`type`).
    pub kind: Option<Kind>,
    pub histogram_buckets: HistogramBuckets,
    /// Text readouts in Prometheus form too, as gauges (`text_readouts`).
    pub text_readouts: bool,
}

impl Query {
    /// Sets the filter; the error is the regex's.
    pub fn filter(mut self, regex: &str) -> Result<Self, String> {
        self.filter = Some(Regex::new(regex).map_err(|e| e.to_string())?);
        Ok(self)
    }
    fn select(&self, store: &Store) -> Vec<Entry> {
        let name = std::cell::RefCell::new(String::new());
        store.entries(|entry| {
            if self.kind.is_some_and(|k| k != entry.kind()) || (self.used_only && !entry.used()) {
                return false;
            }
            self.filter.as_ref().is_none_or(|regex| {
                let mut name = name.borrow_mut();
                name.clear();
                entry.meta().write_name(&mut name);
                regex.is_match(&name) != self.invert_filter
            })
        })
    }
}

const CHUNK: usize = 64 * 1024;

/// Text in pieces of about 64 KiB.
pub struct Chunks {
    /// Appends some text; false at the end.
    next: Box<dyn FnMut(&mut String) -> bool + Send>,
    done: bool,
}

impl Chunks {
    fn new(next: impl FnMut(&mut String) -> bool + Send + 'static) -> Self {
        Self { next: Box::new(next), done: false }
    }
    /// Everything in one text.
    pub fn text(self) -> String {
        self.collect()
    }
}

impl std::fmt::Debug for Chunks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chunks").field("done", &self.done).finish_non_exhaustive()
    }
}

impl Iterator for Chunks {
    type Item = String;
    fn next(&mut self) -> Option<String> {
        if self.done {
            return None;
        }
        let mut out = String::new();
        while out.len() < CHUNK && !self.done {
            self.done = !(self.next)(&mut out);
        }
        (!out.is_empty()).then_some(out)
    }
}

impl Store {
    /// `/stats`: `name: value` lines; text readouts, then counters and gauges, then histograms, each sorted by name.
    pub fn text(&self, query: &Query) -> Chunks {
        text::render(self, query)
    }
    /// `/stats?format=json`.
    pub fn json(&self, query: &Query) -> Chunks {
        json::render(self, query)
    }
    /// `/stats/prometheus`. `Disjoint` and `Detailed` buckets do not exist there and are shown as cumulative.
    pub fn prometheus(&self, query: &Query) -> Chunks {
        prometheus::render(self, query)
    }
    /// The value of one counter or gauge by full name, for checks.
    pub fn value(&self, name: &str) -> Option<i64> {
        let found = self.entries(|e| e.meta().bytes().eq(name.bytes()));
        found.iter().find_map(|e| match e {
            Entry::Number(n) => Some(n.cell.value() as i64),
            _ => None,
        })
    }
}

/// Sorts as `/stats` does.
fn sort(entries: &mut [Entry]) {
    let rank = |e: &Entry| match e.kind() {
        Kind::TextReadout => 0,
        Kind::Counter | Kind::Gauge => 1,
        Kind::Histogram => 2,
    };
    entries.sort_unstable_by(|a, b| rank(a).cmp(&rank(b)).then_with(|| a.meta().bytes().cmp(b.meta().bytes())));
}

/// A counter's or gauge's value in decimal.
fn number(out: &mut String, entry: &Entry) {
    use std::fmt::Write;
    if let Entry::Number(n) = entry {
        let value = n.cell.value();
        let _ = if entry.kind() == Kind::Counter { write!(out, "{value}") } else { write!(out, "{}", value as i64) };
    }
}

/// Appends `text` as a JSON string.
fn json_string(out: &mut String, text: &str) {
    use std::fmt::Write;
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if (c as u32) < 0x20 => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
}
