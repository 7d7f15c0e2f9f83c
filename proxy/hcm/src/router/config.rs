//! The router filter's own configuration. Compiled on the control thread.

use nuncio_core::diag::{At, Report};
use nuncio_proto::Message;
use nuncio_proto::envoy::extensions::filters::http::router::v3::Router;

/// A compiled router filter.
#[derive(Debug, PartialEq, Eq)]
pub struct RouterConfig {
    /// `dynamic_stats`: upstream stats per cluster; default true.
    pub dynamic_stats: bool,
    /// Leave out `x-envoy-upstream-service-time`, `x-envoy-attempt-count` and their kind.
    pub suppress_envoy_headers: bool,
    /// `respect_expected_rq_timeout`: an incoming `x-envoy-expected-rq-timeout-ms` is the timeout.
    pub respect_expected_rq_timeout: bool,
    /// `suppress_grpc_request_failure_code_stats`.
    pub suppress_grpc_failure_stats: bool,
    /// Headers that must be well formed or the request is refused with 400.
    pub strict_check: Vec<Strict>,
}

/// `strict_check_headers` values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strict {
    RqTimeoutMs,
    PerTryTimeoutMs,
    MaxRetries,
    RetryOn,
    RetryGrpcOn,
}

impl RouterConfig {
    /// Type name of the configuration.
    pub const TYPE: &'static str = "envoy.extensions.filters.http.router.v3.Router";

    /// Compiles wire bytes.
    pub fn compile(config: &[u8], at: &At<'_>, report: &mut Report) -> Option<Self> {
        let proto = match Router::decode(config) {
            Ok(proto) => proto,
            Err(error) => {
                report.error(at, format!("not a Router message: {error}"), "send a valid Router");
                return None;
            }
        };
        let mut strict_check = Vec::new();
        for (i, name) in proto.strict_check_headers.iter().enumerate() {
            strict_check.push(match name.to_ascii_lowercase().as_str() {
                "x-envoy-upstream-rq-timeout-ms" => Strict::RqTimeoutMs,
                "x-envoy-upstream-rq-per-try-timeout-ms" => Strict::PerTryTimeoutMs,
                "x-envoy-max-retries" => Strict::MaxRetries,
                "x-envoy-retry-on" => Strict::RetryOn,
                "x-envoy-retry-grpc-on" => Strict::RetryGrpcOn,
                _ => {
                    let list = at.field("strict_check_headers");
                    report.error(&list.index(i), format!("header {name:?}"), "one of the x-envoy-* headers that Router's proto lists");
                    continue;
                }
            });
        }
        for (i, filter) in proto.upstream_http_filters.iter().enumerate() {
            if filter.name != "envoy.filters.http.upstream_codec" {
                let list = at.field("upstream_http_filters");
                report.unsupported(&list.index(i), format!("upstream HTTP filter {:?}", filter.name));
            }
        }
        #[allow(deprecated)] // Istio still sets it.
        if proto.start_child_span {
            report.warning(&at.field("start_child_span"), "true", "without a tracing provider there is no span to start");
        }
        if proto.upstream_log_options.is_some() {
            report.warning(&at.field("upstream_log_options"), "set", "upstream logs are written when the attempt ends");
        }
        // Nothing writes logs of single attempts; the connection manager's access log tells the last one.
        if !proto.upstream_log.is_empty() {
            report.unsupported(&at.field("upstream_log"), "a log of upstream attempts");
        }
        if proto.reject_connect_request_early_data == Some(true) {
            report.unsupported(&at.field("reject_connect_request_early_data"), "true");
        }
        Some(Self {
            dynamic_stats: proto.dynamic_stats.unwrap_or(true),
            suppress_envoy_headers: proto.suppress_envoy_headers,
            respect_expected_rq_timeout: proto.respect_expected_rq_timeout,
            suppress_grpc_failure_stats: proto.suppress_grpc_request_failure_code_stats,
            strict_check,
        })
    }
}
