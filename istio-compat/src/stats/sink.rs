//! How Istio's metrics are named in the stats store: namespace `istiocustom`, which the Prometheus form leaves out together
//! with `envoy_`, and tags given instead of extracted. Handles expire when they are not used.

use nuncio_core::stats::{Counter, Gauge, Histogram, Scope};

/// Envoy's custom stat namespace of these metrics.
pub const NAMESPACE: &str = "istiocustom";

fn full(name: &str) -> String {
    format!("{NAMESPACE}.{name}")
}
pub fn counter(scope: &Scope, name: &str, tags: &[(&str, &str)]) -> Counter {
    scope.counter_with_tags(&full(name), tags)
}
pub fn gauge(scope: &Scope, name: &str, tags: &[(&str, &str)]) -> Gauge {
    scope.gauge_with_tags(&full(name), tags)
}
pub fn histogram(scope: &Scope, name: &str, tags: &[(&str, &str)]) -> Histogram {
    scope.histogram_with_tags(&full(name), tags)
}
