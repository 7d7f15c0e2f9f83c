//! Active health checks.

use nuncio_core::diag::{At, Report};
use nuncio_proto::envoy::config::core::v3::HealthCheck;

/// One compiled `HealthCheck`.
#[derive(Debug)]
pub(crate) struct HealthCheckSpec {}

pub(crate) fn compile(protos: &[HealthCheck], at: &At<'_>, report: &mut Report) -> Box<[HealthCheckSpec]> {
    if !protos.is_empty() {
        report.unsupported(at, "health_checks");
    }
    Box::default()
}

pub(crate) fn decides(_cluster: &crate::Cluster) -> bool {
    false
}
pub(crate) async fn run(_cluster: std::sync::Weak<crate::Cluster>, _manager: std::sync::Weak<crate::ClusterManager>) {}
