//! What route compilation is given. Control thread only.

use nuncio_core::diag::{At, Report};
use nuncio_core::info::TrafficDirection;
use nuncio_core::registry::{FactoryCx, Registry, Server};
use nuncio_core::stats::Scope;
use nuncio_core::views::ClusterSlots;
use nuncio_proto::Duration as ProtoDuration;
use std::sync::Arc;
use std::time::Duration;

/// What route compilation is given.
pub struct RouteCx<'a> {
    /// Where routes find their clusters, now and later.
    pub clusters: &'a Arc<ClusterSlots>,
    /// Compiles `typed_per_filter_config`.
    pub registry: &'a Registry,
    pub server: &'a Arc<Server>,
    /// Stats of the root; virtual clusters and routes with a `stat_prefix` count under `vhost.<name>.`.
    pub scope: &'a Scope,
    pub direction: TrafficDirection,
    /// Whether an unknown cluster refuses the table when `validate_clusters` is not set: true for a route table inside of a
    /// listener, false for RDS, as in Envoy.
    pub validate_clusters: bool,
    pub report: &'a mut Report,
}

impl RouteCx<'_> {
    /// The context of a filter factory.
    pub(crate) fn factory(&mut self) -> FactoryCx<'_> {
        FactoryCx { server: self.server, scope: self.scope, direction: self.direction, report: self.report }
    }
    /// Reports `found` at `at` and gives none, for `?`.
    pub(crate) fn refuse<T>(&mut self, at: &At<'_>, found: impl Into<String>, remedy: impl Into<String>) -> Option<T> {
        self.report.error(at, found, remedy);
        None
    }
}

/// A duration that is not negative; the outer `None` means refused.
pub(crate) fn duration(value: Option<&ProtoDuration>, at: &At<'_>, cx: &mut RouteCx<'_>) -> Option<Option<Duration>> {
    let Some(value) = value else { return Some(None) };
    match Duration::try_from(*value) {
        Ok(duration) => Some(Some(duration)),
        Err(_) => cx.refuse(at, format!("{}.{:09}s", value.seconds, value.nanos.unsigned_abs()), "give a duration that is not negative"),
    }
}
