//! `/stats?format=json`: counters, gauges and text readouts as objects, then one object with all histograms.

use super::{Chunks, HistogramBuckets, Query, json_string, number, sort};
use crate::histogram::{Bins, QUANTILES, Recorder};
use crate::numbers::json as double;
use crate::store::{Entry, Store};
use std::fmt::Write;
use std::sync::Arc;

pub(super) fn render(store: &Store, query: &Query) -> Chunks {
    let mut entries = query.select(store);
    sort(&mut entries);
    let histograms_from = entries.iter().position(|e| matches!(e, Entry::Histogram(_))).unwrap_or(entries.len());
    let histograms: Vec<_> = entries
        .split_off(histograms_from)
        .into_iter()
        .filter_map(|e| match e {
            Entry::Histogram(h) => Some(h),
            _ => None,
        })
        .collect();
    let mode = query.histogram_buckets;
    let mut entries = entries.into_iter();
    let mut histograms = histograms.into_iter();
    let (mut begun, mut in_histograms) = (false, false);
    Chunks::new(move |out| {
        if !begun {
            out.push_str("{\"stats\":[");
        }
        if let Some(entry) = entries.next() {
            out.push_str(if begun { ",{\"name\":" } else { "{\"name\":" });
            begun = true;
            name(out, entry.meta());
            out.push_str(",\"value\":");
            match &entry {
                Entry::Text(t) => json_string(out, &t.get().unwrap_or_default()),
                _ => number(out, &entry),
            }
            out.push('}');
            return true;
        }
        if let Some(h) = histograms.next() {
            if !in_histograms {
                out.push_str(if begun { ",{\"histograms\":" } else { "{\"histograms\":" });
                open(out, mode);
            } else {
                out.push(',');
            }
            (begun, in_histograms) = (true, true);
            histogram(out, &h, mode);
            return true;
        }
        if in_histograms {
            out.push_str(if bucketed(mode) { "]}" } else { "]}}" });
        }
        out.push_str("]}");
        false
    })
}

fn bucketed(mode: HistogramBuckets) -> bool {
    matches!(mode, HistogramBuckets::Cumulative | HistogramBuckets::Disjoint)
}

fn open(out: &mut String, mode: HistogramBuckets) {
    if bucketed(mode) {
        out.push('[');
        return;
    }
    let (quantiles, list) = if mode == HistogramBuckets::Detailed {
        ("supported_percentiles", "details")
    } else {
        ("supported_quantiles", "computed_quantiles")
    };
    let _ = write!(out, "{{\"{quantiles}\":[");
    for (i, q) in QUANTILES.iter().enumerate() {
        out.push_str(if i == 0 { "" } else { "," });
        double(out, q * 100.0);
    }
    let _ = write!(out, "],\"{list}\":[");
}

fn name(out: &mut String, meta: &crate::store::Meta) {
    let mut full = String::new();
    meta.write_name(&mut full);
    json_string(out, &full);
}

fn quantiles(out: &mut String, interval: &Bins, total: &Bins) {
    out.push('[');
    for (i, (interval, total)) in interval.quantiles().into_iter().zip(total.quantiles()).enumerate() {
        out.push_str(if i == 0 { "{\"cumulative\":" } else { ",{\"cumulative\":" });
        double(out, total);
        out.push_str(",\"interval\":");
        double(out, interval);
        out.push('}');
    }
    out.push(']');
}

fn bins(out: &mut String, bins: &Bins) {
    out.push('[');
    for (i, (lower, width, count)) in bins.iter().enumerate() {
        out.push_str(if i == 0 { "{\"lower_bound\":" } else { ",{\"lower_bound\":" });
        double(out, lower);
        out.push_str(",\"width\":");
        double(out, width);
        let _ = write!(out, ",\"count\":{count}}}");
    }
    out.push(']');
}

fn histogram(out: &mut String, recorder: &Arc<Recorder>, mode: HistogramBuckets) {
    let (interval, total) = recorder.read();
    out.push_str("{\"name\":");
    name(out, &recorder.meta);
    match mode {
        HistogramBuckets::Default | HistogramBuckets::Summary => {
            out.push_str(",\"values\":");
            quantiles(out, &interval, &total);
        }
        HistogramBuckets::Detailed => {
            out.push_str(",\"totals\":");
            bins(out, &total);
            out.push_str(",\"intervals\":");
            bins(out, &interval);
            out.push_str(",\"percentiles\":");
            quantiles(out, &interval, &total);
        }
        HistogramBuckets::Cumulative | HistogramBuckets::Disjoint => {
            out.push_str(",\"buckets\":[");
            let mut before = (0, 0);
            for (i, bound) in recorder.buckets.iter().enumerate() {
                let now = (interval.below(*bound), total.below(*bound));
                out.push_str(if i == 0 { "{\"upper_bound\":" } else { ",{\"upper_bound\":" });
                double(out, *bound);
                let _ = write!(out, ",\"interval\":{},\"cumulative\":{}}}", now.0 - before.0, now.1 - before.1);
                if mode == HistogramBuckets::Disjoint {
                    before = now;
                }
            }
            out.push(']');
        }
    }
    out.push('}');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_those_of_envoy() {
        let store = Store::new();
        assert_eq!(store.json(&Query::default()).text(), "{\"stats\":[]}");
        store.root().counter("a").add(3);
        store.root().text_readout("t").set("q\"");
        store.root().histogram("h");
        let nothing = ["{\"cumulative\":null,\"interval\":null}"; 10].join(",");
        let expected = format!(
            "{{\"stats\":[{{\"name\":\"t\",\"value\":\"q\\\"\"}},{{\"name\":\"a\",\"value\":3}},{{\"histograms\":{{\"supported_quantiles\":\
             [0,25,50,75,90,95,99,99.5,99.9,100],\"computed_quantiles\":[{{\"name\":\"h\",\"values\":[{nothing}]}}]}}}}]}}"
        );
        assert_eq!(store.json(&Query::default()).text(), expected);
        let query =
            Query { histogram_buckets: HistogramBuckets::Cumulative, kind: Some(super::super::Kind::Histogram), ..Query::default() };
        let shown = store.json(&query).text();
        assert!(shown.starts_with("{\"stats\":[{\"histograms\":[{\"name\":\"h\",\"buckets\":[{\"upper_bound\":0.5,"), "{shown}");
        assert!(shown.contains("{\"upper_bound\":3e+05,\"interval\":0,\"cumulative\":0}") && shown.ends_with("}]}]}]}"), "{shown}");
        let query = Query { histogram_buckets: HistogramBuckets::Detailed, ..query };
        let detailed = store.json(&query).text();
        let tail = format!("\"details\":[{{\"name\":\"h\",\"totals\":[],\"intervals\":[],\"percentiles\":[{nothing}]}}]}}}}]}}");
        assert!(detailed.ends_with(&tail), "{detailed}");
    }
}
