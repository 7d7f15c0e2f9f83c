//! Retry policies of calls, compiled on the control thread.

use nuncio_core::diag::{At, Report};
use nuncio_core::registry::Server;
use nuncio_proto::envoy::config::core::v3::RetryPolicy as Proto;
use nuncio_route::RetryPolicy;
use std::sync::Arc;

/// What Envoy retries for HTTP services whose policy names no condition.
pub(crate) const HTTP_RETRY_ON: &str = "5xx,gateway-error,connect-failure,reset";

/// Compiles `core.v3.RetryPolicy` for a call; `retry_on` counts if the policy names no condition (none: Envoy's for HTTP services).
/// The outer `None` means refused.
pub fn compile_retry(
    policy: Option<&Proto>,
    retry_on: Option<&str>,
    server: &Arc<Server>,
    at: &At<'_>,
    report: &mut Report,
) -> Option<Option<Arc<RetryPolicy>>> {
    let Some(policy) = policy else { return Some(None) };
    let compiled = RetryPolicy::from_core(policy, retry_on.unwrap_or(HTTP_RETRY_ON), server, at, report)?;
    if compiled.omit_canary_hosts || !compiled.omit_host_metadata.is_empty() {
        report.unsupported(&at.field("retry_host_predicate"), "a predicate other than previous_hosts for calls of the proxy's own");
        return None;
    }
    if compiled.previous_priorities_update_frequency.is_some() {
        report.unsupported(&at.field("retry_priority"), "a retry priority for calls of the proxy's own");
        return None;
    }
    Some(Some(compiled))
}
