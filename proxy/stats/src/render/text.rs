//! `name: value` lines.

use super::{Chunks, HistogramBuckets, Query, number, sort};
use crate::histogram::{Bins, QUANTILES, Recorder};
use crate::numbers::{general, shortest};
use crate::store::{Entry, Store};
use std::fmt::Write;

pub(super) fn render(store: &Store, query: &Query) -> Chunks {
    let mut entries = query.select(store);
    sort(&mut entries);
    let mut entries = entries.into_iter();
    let buckets = query.histogram_buckets;
    Chunks::new(move |out| {
        let Some(entry) = entries.next() else { return false };
        entry.meta().write_name(out);
        match &entry {
            Entry::Number(_) => {
                out.push_str(": ");
                number(out, &entry);
            }
            Entry::Text(t) => {
                let _ = write!(out, ": \"{}\"", t.get().unwrap_or_default());
            }
            Entry::Histogram(h) => histogram(out, h, buckets),
        }
        out.push('\n');
        true
    })
}

fn histogram(out: &mut String, recorder: &Recorder, buckets: HistogramBuckets) {
    let (interval, total) = recorder.read();
    if total.count() == 0 {
        out.push_str(": No recorded values");
        return;
    }
    match buckets {
        HistogramBuckets::Default | HistogramBuckets::Summary => {
            out.push_str(": ");
            summary(out, &interval, &total);
        }
        HistogramBuckets::Cumulative | HistogramBuckets::Disjoint => {
            out.push(':');
            let mut before = (0, 0);
            for bound in recorder.buckets.iter() {
                let now = (interval.below(*bound), total.below(*bound));
                out.push_str(" B");
                general(out, *bound, 6);
                let _ = write!(out, "({},{})", now.0 - before.0, now.1 - before.1);
                if buckets == HistogramBuckets::Disjoint {
                    before = now;
                }
            }
        }
        HistogramBuckets::Detailed => {
            out.push(':');
            for (title, bins) in [("totals", &total), ("intervals", &interval)] {
                let _ = write!(out, "\n  {title}=");
                for (i, (lower, width, count)) in bins.iter().enumerate() {
                    out.push_str(if i == 0 { "" } else { ", " });
                    general(out, lower, 6);
                    out.push(',');
                    general(out, width, 6);
                    let _ = write!(out, ":{count}");
                }
            }
            out.push_str("\n  summary=");
            summary(out, &interval, &total);
        }
    }
}

fn summary(out: &mut String, interval: &Bins, total: &Bins) {
    let values = interval.quantiles().into_iter().zip(total.quantiles());
    for (i, (q, (interval, total))) in QUANTILES.iter().zip(values).enumerate() {
        out.push_str(if i == 0 { "P" } else { " P" });
        general(out, q * 100.0, 6);
        out.push('(');
        shortest(out, interval);
        out.push(',');
        shortest(out, total);
        out.push(')');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_those_of_envoy() {
        let store = Store::new();
        let root = store.root();
        root.counter("cluster.c.upstream_cx_total").add(2);
        root.counter("cluster.b.unused");
        root.gauge("server.state").set(0);
        root.text_readout("lds.version_text").set("v1");
        root.histogram("idle_ms");
        let sizes = root.histogram("cluster.c.upstream_rq_body_size");
        [5, 5, 5, 25, 25].into_iter().for_each(|v| sizes.record(v));
        let quantiles = "P0(nan,5.025) P25(nan,5.05) P50(nan,5.075) P75(nan,25.333333333333332) P90(nan,25.666666666666668) \
            P95(nan,25.666666666666668) P99(nan,25.666666666666668) P99.5(nan,25.666666666666668) P99.9(nan,25.666666666666668) \
            P100(nan,25.666666666666668)";
        let used = format!(
            "lds.version_text: \"v1\"\ncluster.c.upstream_cx_total: 2\nserver.state: 0\ncluster.c.upstream_rq_body_size: {quantiles}\n"
        );
        assert_eq!(store.text(&Query { used_only: true, ..Query::default() }).text(), used);
        let all = store.text(&Query::default()).text();
        assert!(all.contains("\ncluster.b.unused: 0\n") && all.ends_with("\nidle_ms: No recorded values\n"), "{all}");
        let query = Query { histogram_buckets: HistogramBuckets::Detailed, ..Query::default() }.filter("body_size$").unwrap();
        let detailed = format!("cluster.c.upstream_rq_body_size:\n  totals=5,0.1:3, 25,1:2\n  intervals=\n  summary={quantiles}\n");
        assert_eq!(store.text(&query).text(), detailed);
        let query = Query { histogram_buckets: HistogramBuckets::Disjoint, ..query };
        let disjoint = "cluster.c.upstream_rq_body_size: B0.5(0,0) B1(0,0) B5(0,3) B10(0,0) B25(0,2) B50(0,0) B100(0,0) B250(0,0) \
            B500(0,0) B1000(0,0) B2500(0,0) B5000(0,0) B10000(0,0) B30000(0,0) B60000(0,0) B300000(0,0) B600000(0,0) B1.8e+06(0,0) \
            B3.6e+06(0,0)\n";
        assert_eq!(store.text(&query).text(), disjoint);
        store.flush();
        let query = Query { histogram_buckets: HistogramBuckets::Summary, ..query };
        assert!(store.text(&query).text().contains("P0(5.025,5.025)"));
        store.flush();
        assert!(store.text(&query).text().contains("P0(nan,5.025)"));
    }
}
