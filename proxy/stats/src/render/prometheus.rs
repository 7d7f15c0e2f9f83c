//! Prometheus exposition: counters, gauges, text readouts (if asked for), then histograms, each family under one `# TYPE`.

use super::{Chunks, HistogramBuckets, Kind, Query, number};
use crate::histogram::{QUANTILES, Recorder};
use crate::numbers::{general, shortest};
use crate::store::{Entry, Store};
use crate::tags::Tag;
use std::fmt::Write;

pub(super) fn render(store: &Store, query: &Query) -> Chunks {
    let namespaces = store.namespaces();
    let mut entries = query.select(store);
    entries.retain(|e| e.kind() != Kind::TextReadout || query.text_readouts);
    let rank = |e: &Entry| match e.kind() {
        Kind::Counter => 0,
        Kind::Gauge => 1,
        Kind::TextReadout => 2,
        Kind::Histogram => 3,
    };
    entries.sort_unstable_by(|a, b| {
        let by_name = || store.labels(a.meta()).name.cmp(&store.labels(b.meta()).name);
        rank(a).cmp(&rank(b)).then_with(by_name).then_with(|| a.meta().bytes().cmp(b.meta().bytes()))
    });
    let summary = query.histogram_buckets == HistogramBuckets::Summary;
    let store = store.clone();
    let mut entries = entries.into_iter();
    let mut family: Option<(usize, std::sync::Arc<str>)> = None;
    let mut name = String::new();
    let mut tags = String::new();
    Chunks::new(move |out| {
        let Some(entry) = entries.next() else { return false };
        let labels = store.labels(entry.meta());
        if family.as_ref().is_none_or(|(r, n)| *r != rank(&entry) || *n != labels.name) {
            family = Some((rank(&entry), labels.name.clone()));
            name.clear();
            metric_name(&mut name, &labels.name, &namespaces);
            let kind = match entry.kind() {
                Kind::Counter => "counter",
                Kind::Gauge | Kind::TextReadout => "gauge",
                Kind::Histogram if summary => "summary",
                Kind::Histogram => "histogram",
            };
            let _ = writeln!(out, "# TYPE {name} {kind}");
        }
        tags.clear();
        label_list(&mut tags, &labels.tags);
        match &entry {
            Entry::Number(_) => {
                let _ = write!(out, "{name}{{{tags}}} ");
                number(out, &entry);
                out.push('\n');
            }
            Entry::Text(t) => {
                label(&mut tags, "text_value", &t.get().unwrap_or_default());
                let _ = writeln!(out, "{name}{{{tags}}} 0");
            }
            Entry::Histogram(h) if summary => quantiles(out, &name, &mut tags, h),
            Entry::Histogram(h) => buckets(out, &name, &mut tags, h),
        }
        true
    })
}

/// `envoy_` and the name with every character that Prometheus forbids replaced; custom namespaces are cut off instead.
fn metric_name(out: &mut String, name: &str, namespaces: &[String]) {
    let custom = namespaces.iter().find_map(|n| name.strip_prefix(n.as_str()));
    let name = custom.unwrap_or(name);
    if custom.is_none() {
        out.push_str("envoy_");
    } else if name.starts_with(|c: char| c.is_ascii_digit()) {
        out.push('_');
    }
    sanitized(out, name);
}

fn sanitized(out: &mut String, name: &str) {
    out.extend(name.bytes().map(|b| if b.is_ascii_alphanumeric() { b as char } else { '_' }));
}

fn label(out: &mut String, name: &str, value: &str) {
    if !out.is_empty() {
        out.push(',');
    }
    sanitized(out, name);
    out.push_str("=\"");
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
    out.push('"');
}

fn label_list(out: &mut String, tags: &[Tag]) {
    tags.iter().for_each(|(name, value)| label(out, name, value));
}

fn sum_and_count(out: &mut String, name: &str, tags: &str, sum: f64, count: u64) {
    let _ = write!(out, "{name}_sum{{{tags}}} ");
    general(out, sum, 32);
    let _ = writeln!(out, "\n{name}_count{{{tags}}} {count}");
}

fn buckets(out: &mut String, name: &str, tags: &mut String, recorder: &Recorder) {
    let (_, total) = recorder.read();
    let count = total.count();
    let comma = if tags.is_empty() { "" } else { "," };
    for bound in recorder.buckets.iter() {
        let _ = write!(out, "{name}_bucket{{{tags}{comma}le=\"");
        general(out, *bound, 32);
        let _ = writeln!(out, "\"}} {}", total.below(*bound));
    }
    let _ = writeln!(out, "{name}_bucket{{{tags}{comma}le=\"+Inf\"}} {count}");
    sum_and_count(out, name, tags, total.sum(), count);
}

/// Envoy's summaries are those of the last interval.
fn quantiles(out: &mut String, name: &str, tags: &mut String, recorder: &Recorder) {
    let (interval, _) = recorder.read();
    let comma = if tags.is_empty() { "" } else { "," };
    for (q, value) in QUANTILES.iter().zip(interval.quantiles()) {
        let _ = write!(out, "{name}{{{tags}{comma}quantile=\"");
        shortest(out, *q);
        out.push_str("\"} ");
        general(out, value, 32);
        out.push('\n');
    }
    sum_and_count(out, name, tags, interval.sum(), interval.count());
}

#[cfg(test)]
mod tests {
    use super::*;
    use nuncio_proto::envoy::config::metrics::v3::{StatsConfig, TagSpecifier, tag_specifier::TagValue};

    fn istio() -> Store {
        let tag = |name: &str, regex: &str| TagSpecifier { tag_name: name.into(), tag_value: Some(TagValue::Regex(regex.into())) };
        let stats_tags = vec![
            tag("cluster_name", r"^cluster(\.(.+);)"),
            tag("response_code", r"_rq(_(\d{3}))$"),
            tag("http_conn_manager_listener_prefix", r"^listener(?=\.).*?\.http\.(((?:[_.[:digit:]]*|[_\[\]aAbBcCdDeEfF[:digit:]]*))\.)"),
        ];
        Store::with_config(&StatsConfig { stats_tags, use_all_default_tags: Some(false), ..Default::default() }).unwrap()
    }

    #[test]
    fn lines_are_those_of_envoy() {
        let store = istio();
        store.register_namespace("istiocustom");
        let root = store.root();
        root.counter("cluster.xds-grpc;.upstream_cx_total").add(1);
        root.counter("cluster.xds-grpc;.internal.upstream_rq_200").inc();
        root.counter("cluster_manager.cluster_added").add(4);
        root.gauge("server.live").set(1);
        root.scope("istiocustom.").counter_with_tags("istio_requests_total", &[("reporter", "source"), ("a.b", "x\"y\\")]).add(9);
        root.histogram("server.initialization_time_ms").record(80);
        root.text_readout("t").set("v");
        let shown = store.prometheus(&Query::default()).text();
        let numbers = "# TYPE envoy_cluster_internal_upstream_rq counter\n\
            envoy_cluster_internal_upstream_rq{cluster_name=\"xds-grpc\",response_code=\"200\"} 1\n\
            # TYPE envoy_cluster_upstream_cx_total counter\n\
            envoy_cluster_upstream_cx_total{cluster_name=\"xds-grpc\"} 1\n\
            # TYPE envoy_cluster_manager_cluster_added counter\n\
            envoy_cluster_manager_cluster_added{} 4\n\
            # TYPE istio_requests_total counter\n\
            istio_requests_total{reporter=\"source\",a_b=\"x\\\"y\\\\\"} 9\n\
            # TYPE envoy_server_live gauge\n\
            envoy_server_live{} 1\n\
            # TYPE envoy_server_initialization_time_ms histogram\n\
            envoy_server_initialization_time_ms_bucket{le=\"0.5\"} 0\n";
        assert!(shown.starts_with(numbers), "{shown}");
        let tail = "envoy_server_initialization_time_ms_bucket{le=\"50\"} 0\n\
            envoy_server_initialization_time_ms_bucket{le=\"100\"} 1\n";
        assert!(shown.contains(tail), "{shown}");
        let end = "envoy_server_initialization_time_ms_bucket{le=\"3600000\"} 1\n\
            envoy_server_initialization_time_ms_bucket{le=\"+Inf\"} 1\n\
            envoy_server_initialization_time_ms_sum{} 80.496894409937894465656427200884\n\
            envoy_server_initialization_time_ms_count{} 1\n";
        assert!(shown.ends_with(end), "{shown}");
        let texts = store.prometheus(&Query { text_readouts: true, ..Query::default() }).text();
        assert!(texts.contains("# TYPE envoy_t gauge\nenvoy_t{text_value=\"v\"} 0\n"), "{texts}");
        // Explicit tags are in the plain name too.
        assert_eq!(store.value("istiocustom.istio_requests_total.reporter.source.a.b.x\"y\\"), Some(9));
    }

    #[test]
    fn many_stats_come_in_chunks() {
        let store = istio();
        for i in 0..5000 {
            store.root().counter(&format!("cluster.c{i};.upstream_cx_total"));
        }
        let chunks: Vec<_> = store.prometheus(&Query::default()).collect();
        assert!(chunks.len() > 2 && chunks.iter().all(|c| c.len() < super::super::CHUNK + 1024));
        assert_eq!(chunks.concat().matches("# TYPE").count(), 1);
        assert_eq!(chunks.concat().lines().count(), 5001);
    }
}
