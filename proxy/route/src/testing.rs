//! A compile context for unit tests.

use crate::RouteCx;
use nuncio_core::diag::Report;
use nuncio_core::info::TrafficDirection;
use nuncio_core::registry::Registry;
use nuncio_core::test_kit;
use std::sync::Arc;

/// Runs `f` with a context that knows no clusters and no filters, and gives its report.
pub fn with_cx<T>(f: impl FnOnce(&mut RouteCx<'_>) -> T) -> Report {
    let server = test_kit::server(Default::default());
    let mut report = Report::new();
    let mut cx = RouteCx {
        clusters: &Arc::default(),
        registry: &Registry::default(),
        server: &server,
        scope: &server.stats.root(),
        direction: TrafficDirection::Unspecified,
        validate_clusters: false,
        report: &mut report,
    };
    f(&mut cx);
    report
}
