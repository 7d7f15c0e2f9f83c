//! Retry policies. What is retried is a bit set, parsed from `retry_on` and from `x-envoy-retry-on` alike.
//! Source: `envoy/config/route/v3/route_components.proto` RetryPolicy, Envoy's `router/retry_state_impl.cc`.

use crate::cx::{RouteCx, duration};
use core::Metadata;
use http::HeaderName;
use nuncio_core::diag::{At, Report};
use nuncio_core::info::TrafficDirection;
use nuncio_core::registry::{Registry, Server};
use nuncio_core::{RequestHead, ResponseHead};
use nuncio_matcher::HeaderMatcher;
use nuncio_proto::envoy::config::core::v3 as core;
use nuncio_proto::envoy::config::route::v3 as proto;
use nuncio_proto::envoy::extensions::retry::host::omit_host_metadata::v3::OmitHostMetadataConfig;
use nuncio_proto::envoy::extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig;
use std::sync::Arc;
use std::time::Duration;

/// A set of conditions under which an attempt is repeated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetryOn(u32);

impl RetryOn {
    pub const FIVE_XX: Self = Self(1);
    pub const GATEWAY_ERROR: Self = Self(1 << 1);
    pub const RESET: Self = Self(1 << 2);
    pub const RESET_BEFORE_REQUEST: Self = Self(1 << 3);
    pub const CONNECT_FAILURE: Self = Self(1 << 4);
    pub const ENVOY_RATELIMITED: Self = Self(1 << 5);
    pub const RETRIABLE_4XX: Self = Self(1 << 6);
    pub const REFUSED_STREAM: Self = Self(1 << 7);
    pub const RETRIABLE_STATUS_CODES: Self = Self(1 << 8);
    pub const RETRIABLE_HEADERS: Self = Self(1 << 9);
    pub const HTTP3_POST_CONNECT_FAILURE: Self = Self(1 << 10);
    pub const GRPC_CANCELLED: Self = Self(1 << 11);
    pub const GRPC_DEADLINE_EXCEEDED: Self = Self(1 << 12);
    pub const GRPC_RESOURCE_EXHAUSTED: Self = Self(1 << 13);
    pub const GRPC_UNAVAILABLE: Self = Self(1 << 14);
    pub const GRPC_INTERNAL: Self = Self(1 << 15);

    const HTTP: &'static [(&'static str, Self)] = &[
        ("5xx", Self::FIVE_XX),
        ("gateway-error", Self::GATEWAY_ERROR),
        ("reset", Self::RESET),
        ("reset-before-request", Self::RESET_BEFORE_REQUEST),
        ("connect-failure", Self::CONNECT_FAILURE),
        ("envoy-ratelimited", Self::ENVOY_RATELIMITED),
        ("retriable-4xx", Self::RETRIABLE_4XX),
        ("refused-stream", Self::REFUSED_STREAM),
        ("retriable-status-codes", Self::RETRIABLE_STATUS_CODES),
        ("retriable-headers", Self::RETRIABLE_HEADERS),
        ("http3-post-connect-failure", Self::HTTP3_POST_CONNECT_FAILURE),
    ];
    const GRPC: &'static [(&'static str, Self)] = &[
        ("cancelled", Self::GRPC_CANCELLED),
        ("deadline-exceeded", Self::GRPC_DEADLINE_EXCEEDED),
        ("resource-exhausted", Self::GRPC_RESOURCE_EXHAUSTED),
        ("unavailable", Self::GRPC_UNAVAILABLE),
        ("internal", Self::GRPC_INTERNAL),
    ];

    /// Parses a comma-separated list of HTTP conditions (`x-envoy-retry-on`). The error is the first one that is unknown.
    pub fn parse(text: &str) -> Result<Self, &str> {
        Self::parse_in(text, Self::HTTP)
    }
    /// Parses a list of gRPC conditions (`x-envoy-retry-grpc-on`).
    pub fn parse_grpc(text: &str) -> Result<Self, &str> {
        Self::parse_in(text, Self::GRPC)
    }
    /// As [`Self::parse`], unknown conditions ignored.
    pub fn parse_lenient(text: &str) -> Self {
        Self::known(text, Self::HTTP)
    }
    /// As [`Self::parse_grpc`], unknown conditions ignored.
    pub fn parse_grpc_lenient(text: &str) -> Self {
        Self::known(text, Self::GRPC)
    }
    fn parse_in<'a>(text: &'a str, names: &[(&str, Self)]) -> Result<Self, &'a str> {
        let mut all = Self::default();
        for name in words(text) {
            match names.iter().find(|(n, _)| *n == name) {
                Some((_, bit)) => all = all.union(*bit),
                None => return Err(name),
            }
        }
        Ok(all)
    }
    fn known(text: &str, names: &[(&str, Self)]) -> Self {
        words(text).filter_map(|name| names.iter().find(|(n, _)| *n == name)).fold(Self::default(), |all, (_, bit)| all.union(*bit))
    }
    /// Both.
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
    /// Whether any of `other` is in the set.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
    /// Whether the set names the gRPC status `status`.
    pub fn has_grpc(self, status: u32) -> bool {
        match status {
            1 => self.has(Self::GRPC_CANCELLED),
            4 => self.has(Self::GRPC_DEADLINE_EXCEEDED),
            8 => self.has(Self::GRPC_RESOURCE_EXHAUSTED),
            13 => self.has(Self::GRPC_INTERNAL),
            14 => self.has(Self::GRPC_UNAVAILABLE),
            _ => false,
        }
    }
    /// Whether nothing is retried.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim_ascii).filter(|w| !w.is_empty())
}

/// Which hosts a retry avoids.
#[derive(Debug, Default)]
struct HostPredicates {
    previous_hosts: bool,
    omit_canary_hosts: bool,
    omit_host_metadata: Vec<Metadata>,
}

/// `rate_limited_retry_back_off`.
#[derive(Clone, Debug)]
pub struct RateLimitedBackOff {
    /// Looked at in this order; the first that parses wins.
    pub reset_headers: Vec<RateLimitedReset>,
    /// A longer wait is ignored. Default 300 s.
    pub max_interval: Duration,
}

/// A response header that says when to come back.
#[derive(Clone, Debug)]
pub struct RateLimitedReset {
    pub name: HeaderName,
    /// The value is a moment (seconds since 1970), not a number of seconds.
    pub unix_timestamp: bool,
}

/// A compiled `RetryPolicy`.
#[derive(Debug)]
pub struct RetryPolicy {
    pub retry_on: RetryOn,
    /// Default 1.
    pub num_retries: u32,
    /// None if the global timeout is the only one.
    pub per_try_timeout: Option<Duration>,
    pub per_try_idle_timeout: Option<Duration>,
    /// Back-off between attempts: exponential with full jitter from this, 25 ms by default ...
    pub base_interval: Duration,
    /// ... up to this, ten times the base by default.
    pub max_interval: Duration,
    pub rate_limited: Option<RateLimitedBackOff>,
    /// Retries avoid hosts that were tried for this request.
    pub previous_hosts: bool,
    /// Retries avoid hosts whose metadata has `canary: true` under `envoy.lb`.
    pub omit_canary_hosts: bool,
    /// Retries avoid hosts whose metadata has all values of one of these.
    pub omit_host_metadata: Vec<Metadata>,
    /// `host_selection_retry_max_attempts`: how often another host is selected while the three above refuse it. Default 1.
    pub host_selection_attempts: u32,
    /// `previous_priorities`: load goes away from tried priorities after so many attempts. None if not configured.
    pub previous_priorities_update_frequency: Option<u32>,
    pub retriable_status_codes: Vec<u16>,
    pub retriable_headers: Box<[HeaderMatcher]>,
    pub retriable_request_headers: Box<[HeaderMatcher]>,
    /// Whether a retry evaluates the route's cluster again (`refresh_cluster_on_retry`).
    pub refresh_cluster_on_retry: bool,
}

impl RetryPolicy {
    /// Whether the request may be retried at all: one of `retriable_request_headers` matches, or there are none.
    pub fn retriable_request(&self, request: &RequestHead) -> bool {
        self.retriable_request_headers.is_empty() || self.retriable_request_headers.iter().any(|m| m.matches(request))
    }
    /// Whether one of `retriable_headers` matches the response.
    pub fn retriable_response(&self, response: &ResponseHead) -> bool {
        self.retriable_headers.iter().any(|m| m.matches(response))
    }
    /// Compiles the retry policy of a call that the proxy makes itself (`core.v3.RetryPolicy`). `retry_on` counts if the policy names no
    /// condition. Source: Envoy's `Http::Utility::convertCoreToRouteRetryPolicy`.
    pub fn from_core(
        policy: &core::RetryPolicy,
        retry_on: &str,
        server: &Arc<Server>,
        at: &At<'_>,
        report: &mut Report,
    ) -> Option<Arc<Self>> {
        use core::retry_policy::{retry_host_predicate, retry_priority};
        use proto::retry_policy as route;
        let hosts = policy.retry_host_predicate.iter().map(|p| route::RetryHostPredicate {
            name: p.name.clone(),
            config_type: p
                .config_type
                .clone()
                .map(|retry_host_predicate::ConfigType::TypedConfig(any)| route::retry_host_predicate::ConfigType::TypedConfig(any)),
        });
        let priority = policy.retry_priority.as_ref().map(|p| route::RetryPriority {
            name: p.name.clone(),
            config_type: p
                .config_type
                .clone()
                .map(|retry_priority::ConfigType::TypedConfig(any)| route::retry_priority::ConfigType::TypedConfig(any)),
        });
        // Unlike a route's: a second between attempts by default, and an attempt takes no longer than the longest pause.
        let default = nuncio_proto::Duration { seconds: 1, nanos: 0 };
        let back_off = policy.retry_back_off.unwrap_or_default();
        let base = back_off.base_interval.unwrap_or(default);
        let tenfold = Duration::try_from(base).ok().and_then(|b| nuncio_proto::Duration::try_from(b.saturating_mul(10)).ok());
        let max = back_off.max_interval.or(tenfold);
        let converted = proto::RetryPolicy {
            per_try_timeout: max,
            retry_on: if policy.retry_on.is_empty() { retry_on.to_string() } else { policy.retry_on.clone() },
            num_retries: policy.num_retries,
            retry_back_off: Some(route::RetryBackOff { base_interval: Some(base), max_interval: max }),
            retry_priority: priority,
            retry_host_predicate: hosts.collect(),
            host_selection_retry_max_attempts: policy.host_selection_retry_max_attempts,
            ..Default::default()
        };
        let (registry, scope) = (Registry::default(), server.stats.root());
        let mut cx = RouteCx {
            clusters: &server.clusters,
            registry: &registry,
            server,
            scope: &scope,
            direction: TrafficDirection::Unspecified,
            validate_clusters: false,
            report,
        };
        Self::compile(&converted, at, &mut cx)
    }
    /// Compiles `RetryPolicy`.
    pub(crate) fn compile(policy: &proto::RetryPolicy, at: &At<'_>, cx: &mut RouteCx<'_>) -> Option<Arc<Self>> {
        let retry_on = RetryOn::parse_lenient(&policy.retry_on).union(RetryOn::parse_grpc_lenient(&policy.retry_on));
        for word in words(&policy.retry_on) {
            if RetryOn::parse(word).is_err() && RetryOn::parse_grpc(word).is_err() {
                let remedy = "ignored, as Envoy does; see x-envoy-retry-on in Envoy's router documentation";
                cx.report.warning(&at.field("retry_on"), format!("unknown condition \"{word}\""), remedy);
            }
        }
        let (base_interval, max_interval) = back_off(policy.retry_back_off.as_ref(), &at.field("retry_back_off"), cx)?;
        let mut hosts = HostPredicates::default();
        for (i, predicate) in policy.retry_host_predicate.iter().enumerate() {
            let at = at.field("retry_host_predicate");
            hosts.add(predicate, &at.index(i), cx)?;
        }
        if let Some(first) = policy.retry_options_predicates.first() {
            let at = at.field("retry_options_predicates");
            cx.report.unsupported(&at.index(0), format_args!("retry options predicate {}", first.name));
            return None;
        }
        let mut retriable_status_codes = Vec::with_capacity(policy.retriable_status_codes.len());
        for (i, code) in policy.retriable_status_codes.iter().enumerate() {
            match u16::try_from(*code) {
                Ok(code) => retriable_status_codes.push(code),
                Err(_) => return cx.refuse(&at.field("retriable_status_codes").index(i), code.to_string(), "give an HTTP status code"),
            }
        }
        let attempts = u32::try_from(policy.host_selection_retry_max_attempts.max(1)).unwrap_or(u32::MAX);
        Some(Arc::new(Self {
            retry_on,
            num_retries: policy.num_retries.unwrap_or(1),
            per_try_timeout: duration(policy.per_try_timeout.as_ref(), &at.field("per_try_timeout"), cx)?.filter(|d| !d.is_zero()),
            per_try_idle_timeout: duration(policy.per_try_idle_timeout.as_ref(), &at.field("per_try_idle_timeout"), cx)?
                .filter(|d| !d.is_zero()),
            base_interval,
            max_interval,
            rate_limited: match &policy.rate_limited_retry_back_off {
                None => None,
                Some(limited) => Some(rate_limited(limited, &at.field("rate_limited_retry_back_off"), cx)?),
            },
            previous_hosts: hosts.previous_hosts,
            omit_canary_hosts: hosts.omit_canary_hosts,
            omit_host_metadata: hosts.omit_host_metadata,
            host_selection_attempts: attempts,
            previous_priorities_update_frequency: priority(policy.retry_priority.as_ref(), &at.field("retry_priority"), cx)?,
            retriable_status_codes,
            retriable_headers: HeaderMatcher::compile_list(&policy.retriable_headers, &at.field("retriable_headers"), cx.report)?,
            retriable_request_headers: HeaderMatcher::compile_list(
                &policy.retriable_request_headers,
                &at.field("retriable_request_headers"),
                cx.report,
            )?,
            refresh_cluster_on_retry: policy.refresh_cluster_on_retry,
        }))
    }
}

fn back_off(back_off: Option<&proto::retry_policy::RetryBackOff>, at: &At<'_>, cx: &mut RouteCx<'_>) -> Option<(Duration, Duration)> {
    let default = Duration::from_millis(25);
    let Some(back_off) = back_off else { return Some((default, default * 10)) };
    let at_base = at.field("base_interval");
    let Some(base) = duration(back_off.base_interval.as_ref(), &at_base, cx)?.filter(|d| !d.is_zero()) else {
        return cx.refuse(&at_base, "nothing or zero", "give an interval of at least 1 ms");
    };
    // Envoy rounds up, so that a base of some microseconds does not become a busy loop.
    let base = base.max(Duration::from_millis(1));
    let max = duration(back_off.max_interval.as_ref(), &at.field("max_interval"), cx)?;
    let max = max.map_or(base.saturating_mul(10), |m| m.max(Duration::from_millis(1)));
    if max < base {
        return cx.refuse(&at.field("max_interval"), format!("{max:?}"), format!("give at least base_interval ({base:?})"));
    }
    Some((base, max))
}

fn rate_limited(limited: &proto::retry_policy::RateLimitedRetryBackOff, at: &At<'_>, cx: &mut RouteCx<'_>) -> Option<RateLimitedBackOff> {
    use proto::retry_policy::ResetHeaderFormat;
    let at_headers = at.field("reset_headers");
    if limited.reset_headers.is_empty() {
        return cx.refuse(&at_headers, "no headers", "give at least one");
    }
    let mut reset_headers = Vec::with_capacity(limited.reset_headers.len());
    for (i, header) in limited.reset_headers.iter().enumerate() {
        let at = at_headers.index(i);
        let Ok(name) = HeaderName::from_bytes(header.name.as_bytes()) else {
            return cx.refuse(&at.field("name"), format!("\"{}\"", header.name), "give a valid header name");
        };
        let Ok(format) = ResetHeaderFormat::try_from(header.format) else {
            return cx.refuse(&at.field("format"), header.format.to_string(), "use SECONDS or UNIX_TIMESTAMP");
        };
        reset_headers.push(RateLimitedReset { name, unix_timestamp: format == ResetHeaderFormat::UnixTimestamp });
    }
    let max_interval = duration(limited.max_interval.as_ref(), &at.field("max_interval"), cx)?;
    Some(RateLimitedBackOff { reset_headers, max_interval: max_interval.unwrap_or(Duration::from_secs(300)) })
}

const PREVIOUS_HOSTS: &str = "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate";
const OMIT_HOST_METADATA: &str = "envoy.extensions.retry.host.omit_host_metadata.v3.OmitHostMetadataConfig";
const OMIT_CANARY_HOSTS: &str = "envoy.extensions.retry.host.omit_canary_hosts.v3.OmitCanaryHostsPredicate";

impl HostPredicates {
    fn add(&mut self, predicate: &proto::retry_policy::RetryHostPredicate, at: &At<'_>, cx: &mut RouteCx<'_>) -> Option<()> {
        use proto::retry_policy::retry_host_predicate::ConfigType;
        let at_config = at.field("typed_config");
        let Some(ConfigType::TypedConfig(any)) = &predicate.config_type else {
            // Envoy finds these two by name if there is no configuration.
            match predicate.name.as_str() {
                "envoy.retry_host_predicates.previous_hosts" => self.previous_hosts = true,
                "envoy.retry_host_predicates.omit_canary_hosts" => self.omit_canary_hosts = true,
                name => return cx.refuse(at, format!("retry host predicate \"{name}\" without configuration"), "set typed_config"),
            }
            return Some(());
        };
        let name = match nuncio_proto::typed::unpack(any) {
            Ok(typed) => typed.name,
            Err(why) => return cx.refuse(&at_config, why, "give a valid configuration"),
        };
        match name.as_str() {
            PREVIOUS_HOSTS => self.previous_hosts = true,
            OMIT_CANARY_HOSTS => self.omit_canary_hosts = true,
            OMIT_HOST_METADATA => match nuncio_proto::typed::unpack_as::<OmitHostMetadataConfig>(any) {
                Ok(config) => self.omit_host_metadata.extend(config.metadata_match),
                Err(why) => return cx.refuse(&at_config, why, "give a valid configuration"),
            },
            other => {
                cx.report.unsupported(&at_config, format_args!("retry host predicate {other}"));
                return None;
            }
        }
        Some(())
    }
}

/// The update frequency of `previous_priorities`; the outer `None` means refused.
fn priority(priority: Option<&proto::retry_policy::RetryPriority>, at: &At<'_>, cx: &mut RouteCx<'_>) -> Option<Option<u32>> {
    let Some(priority) = priority else { return Some(None) };
    let at_config = at.field("typed_config");
    let Some(proto::retry_policy::retry_priority::ConfigType::TypedConfig(any)) = &priority.config_type else {
        return cx.refuse(at, format!("retry priority \"{}\" without configuration", priority.name), "set typed_config");
    };
    match nuncio_proto::typed::unpack_as::<PreviousPrioritiesConfig>(any) {
        Err(why) => cx.refuse(&at_config, why, "only previous_priorities is supported"),
        Ok(config) => match u32::try_from(config.update_frequency) {
            Ok(frequency) if frequency > 0 => Some(Some(frequency)),
            _ => cx.refuse(&at_config.field("update_frequency"), config.update_frequency.to_string(), "give a positive number"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_on_of_every_kind() {
        for (name, bit) in RetryOn::HTTP {
            assert_eq!(RetryOn::parse(name), Ok(*bit));
        }
        for (name, bit) in RetryOn::GRPC {
            assert_eq!(RetryOn::parse_grpc(name), Ok(*bit));
        }
        let both = RetryOn::parse(" 5xx , reset,").unwrap();
        assert!(both.has(RetryOn::FIVE_XX) && both.has(RetryOn::RESET) && !both.has(RetryOn::CONNECT_FAILURE));
        assert_eq!(RetryOn::parse("5xx,nope"), Err("nope"));
        assert_eq!(RetryOn::parse_lenient("5xx,nope"), RetryOn::FIVE_XX);
        assert!(RetryOn::parse("").unwrap().is_empty());
        assert!(RetryOn::parse_grpc("unavailable").unwrap().has_grpc(14));
        assert!(!RetryOn::parse_grpc("unavailable").unwrap().has_grpc(13));
    }
}
