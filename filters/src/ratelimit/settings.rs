//! Compiled configuration of ratelimit, of the listener and per route. Control thread.
//! Source: `envoy/extensions/filters/http/ratelimit/v3/rate_limit.proto`.

use crate::config::{decode, duration};
use crate::ext_authz::settings::{check_version, http_status};
use crate::rate_limit::{Limit, percent};
use nuncio_callout::GrpcClient;
use nuncio_core::diag::{At, Report};
use nuncio_core::registry::{FactoryCx, Server};
use nuncio_matcher::RuntimeFraction;
use nuncio_proto::envoy::config::core::v3::RuntimeFractionalPercent;
use nuncio_proto::envoy::config::ratelimit::v3::RateLimitServiceConfig;
use nuncio_proto::envoy::extensions::filters::http::ratelimit::v3 as proto;
use nuncio_proto::envoy::r#type::v3::HttpStatus;
use nuncio_route::HeaderParser;
use proto::rate_limit_per_route::{OverrideOptions, VhRateLimitsOptions};
use std::sync::Arc;
use std::time::Duration;

/// Which requests count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requests {
    Both,
    Internal,
    External,
}

/// The filter's configuration.
#[derive(Debug)]
pub struct Settings {
    pub server: Arc<Server>,
    pub client: Arc<GrpcClient>,
    pub domain: String,
    pub stage: u32,
    pub requests: Requests,
    pub deny: Deny,
    pub grpc_status: Option<u32>,
    pub show_headers: bool,
    pub show_limited: bool,
    /// Tell refused clients when to come again.
    pub retry_after: bool,
    pub status: u16,
    pub status_on_error: u16,
    pub response_headers: HeaderParser,
    pub enabled: Option<RuntimeFraction>,
    pub enforced: Option<RuntimeFraction>,
    pub limits: Vec<Limit>,
    pub namespace: String,
    /// `ratelimit.<stat_prefix>.`, below the scope of the request's cluster.
    pub prefix: String,
}

/// What happens if the service cannot be asked.
#[derive(Debug)]
pub enum Deny {
    Fixed(bool),
    Fraction(RuntimeFraction),
}

/// Per-route configuration.
#[derive(Debug)]
pub struct PerRoute {
    pub domain: String,
    pub virtual_host: VhRateLimitsOptions,
    pub limits: Vec<Limit>,
}

/// The service, with `timeout`, or `default` if there is none.
pub fn service(
    p: Option<&RateLimitServiceConfig>,
    timeout: Option<&nuncio_proto::Duration>,
    server: &Arc<Server>,
    at: &At<'_>,
    report: &mut Report,
) -> Option<GrpcClient> {
    let timeout = match timeout {
        Some(timeout) => duration(timeout, &at.field("timeout"), report)?,
        None => Duration::from_millis(20),
    };
    let at = at.field("rate_limit_service");
    let Some((p, grpc)) = p.and_then(|p| Some((p, p.grpc_service.as_ref()?))) else {
        report.error(&at.field("grpc_service"), "nothing", "name the rate limit service");
        return None;
    };
    check_version(p.transport_api_version, &at, report);
    let client = GrpcClient::compile(grpc, server, &at.field("grpc_service"), report)?;
    Some(client.with_timeout(Some(timeout).filter(|t| !t.is_zero())))
}

/// An error status, or `default` if it is none, as Envoy's `toErrorCode`. None: refused.
fn error_code(status: Option<&HttpStatus>, default: u16, at: &At<'_>, report: &mut Report) -> Option<u16> {
    Some(http_status(status, at, report)?.filter(|s| (400..600).contains(s)).unwrap_or(default))
}

impl Settings {
    pub fn compile(p: &proto::RateLimit, at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Self> {
        let errors = cx.report.errors();
        let (server, report) = (cx.server, &mut *cx.report);
        if p.domain.is_empty() {
            report.error(&at.field("domain"), "an empty domain", "name the domain of the limits");
        }
        if p.stage > 10 {
            report.error(&at.field("stage"), p.stage.to_string(), "give a stage from 0 to 10");
        }
        let requests = match p.request_type.as_str() {
            "" | "both" => Requests::Both,
            "internal" => Requests::Internal,
            "external" => Requests::External,
            other => {
                report.error(&at.field("request_type"), format!("{other:?}"), "use internal, external or both");
                Requests::Both
            }
        };
        let fraction = |p: &Option<RuntimeFractionalPercent>, name: &str, report: &mut Report| match p {
            Some(f) => RuntimeFraction::compile(f, &at.field(name), report).map(Some),
            None => Some(None),
        };
        let enabled = fraction(&p.filter_enabled, "filter_enabled", report)?;
        let enforced = fraction(&p.filter_enforced, "filter_enforced", report)?;
        let deny = match fraction(&p.failure_mode_deny_percent, "failure_mode_deny_percent", report)? {
            Some(fraction) => Deny::Fraction(fraction),
            None => Deny::Fixed(p.failure_mode_deny),
        };
        let status = error_code(p.rate_limited_status.as_ref(), 429, &at.field("rate_limited_status"), report)?;
        let status_on_error = http_status(p.status_on_error.as_ref(), &at.field("status_on_error"), report)?;
        let status_on_error = status_on_error.filter(|code| *code >= 200).unwrap_or(500);
        let client = service(p.rate_limit_service.as_ref(), p.timeout.as_ref(), server, at, report)?;
        let limits = Limit::compile_list(&p.rate_limits, server, &at.field("rate_limits"), report)?;
        let response_headers =
            HeaderParser::compile(&p.response_headers_to_add, &at.field("response_headers_to_add"), &[], &At::Root, report)?;
        (report.errors() == errors).then(|| Self {
            server: server.clone(),
            client: Arc::new(client),
            domain: p.domain.clone(),
            stage: p.stage,
            requests,
            deny,
            grpc_status: p.rate_limited_as_resource_exhausted.then_some(8),
            show_headers: p.enable_x_ratelimit_headers == proto::rate_limit::XRateLimitHeadersRfcVersion::DraftVersion03 as i32,
            show_limited: !p.disable_x_envoy_ratelimited_header,
            // Only 429 says when to come again, as in Envoy.
            retry_after: p.enable_retry_after_header && status == 429,
            status,
            status_on_error,
            response_headers,
            enabled,
            enforced,
            limits,
            namespace: Some(p.metadata_namespace.clone()).filter(|n| !n.is_empty()).unwrap_or_else(|| super::NAME.to_string()),
            prefix: if p.stat_prefix.is_empty() { "ratelimit.".to_string() } else { format!("ratelimit.{}.", p.stat_prefix) },
        })
    }
    /// Whether the filter looks at this request.
    pub fn is_enabled(&self) -> bool {
        self.hits(&self.enabled, "ratelimit.http_filter_enabled")
    }
    /// Whether a limited request is refused.
    pub fn is_enforced(&self) -> bool {
        self.hits(&self.enforced, "ratelimit.http_filter_enforcing")
    }
    fn hits(&self, fraction: &Option<RuntimeFraction>, key: &str) -> bool {
        let runtime = &self.server.runtime;
        fraction.as_ref().map_or_else(|| percent(runtime, key), |f| f.contains(runtime, fastrand::u64(..)))
    }
    /// Whether a request is refused because the service cannot be asked.
    pub fn denies(&self) -> bool {
        match &self.deny {
            Deny::Fixed(deny) => *deny,
            Deny::Fraction(fraction) => fraction.contains(&self.server.runtime, fastrand::u64(..)),
        }
    }
}

impl PerRoute {
    pub fn compile(config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Self> {
        let p: proto::RateLimitPerRoute = decode(config, at, cx.report)?;
        let Ok(virtual_host) = VhRateLimitsOptions::try_from(p.vh_rate_limits) else {
            cx.report.error(&at.field("vh_rate_limits"), p.vh_rate_limits.to_string(), "use OVERRIDE, INCLUDE or IGNORE");
            return None;
        };
        if p.override_option != OverrideOptions::Default as i32 {
            cx.report.warning(
                &at.field("override_option"),
                p.override_option.to_string(),
                "ignored, as in Envoy, which does not implement it",
            );
        }
        let limits = Limit::compile_list(&p.rate_limits, cx.server, &at.field("rate_limits"), cx.report)?;
        Some(Self { domain: p.domain, virtual_host, limits })
    }
}
