//! What a route does with requests that it forwards. Source: RouteAction.

use crate::cx::{RouteCx, duration};
use crate::hash::{HashPolicy, HashResult};
use crate::internal_redirect::InternalRedirectPolicy;
use crate::mirror::MirrorPolicy;
use crate::path::PathCondition;
use crate::retry::RetryPolicy;
use crate::rewrite::{HostRewrite, PathRewrite, update_authority};
use nuncio_core::diag::At;
use nuncio_core::{ByteStr, RequestHead, StreamInfo};
use nuncio_matcher::Fraction;
use nuncio_proto::envoy::config::core::v3::{ProxyProtocolConfig, RoutingPriority};
use nuncio_proto::envoy::config::route::v3 as proto;
use std::sync::Arc;
use std::time::Duration;

/// `RouteAction.priority`: which circuit breakers count the request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Priority {
    #[default]
    Default,
    High,
}

/// A compiled route action, apart from what depends on the chosen cluster.
#[derive(Debug)]
pub struct Forward {
    timeout: Option<Duration>,
    idle_timeout: Option<Option<Duration>>,
    flush_timeout: Option<Option<Duration>>,
    max_stream_duration: Option<Option<Duration>>,
    bounds_stream: bool,
    grpc: Option<GrpcTimeout>,
    retry: Option<Arc<RetryPolicy>>,
    hedge: Option<Arc<HedgePolicy>>,
    mirrors: Arc<[Arc<MirrorPolicy>]>,
    priority: Priority,
    hash: Option<HashPolicy>,
    upgrades: Box<[Upgrade]>,
    internal_redirect: Option<InternalRedirectPolicy>,
    not_found_status: u16,
    pub(crate) path_rewrite: Option<PathRewrite>,
    pub(crate) host_rewrite: Option<HostRewrite>,
    append_forwarded_host: bool,
    rate_limits: Box<[proto::RateLimit]>,
    include_vh_rate_limits: bool,
}

/// Limits on what `grpc-timeout` may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrpcTimeout {
    /// Zero is no limit.
    max: Duration,
    offset: Duration,
    stream_duration: bool,
}

impl GrpcTimeout {
    /// The timeout for a request whose `grpc-timeout` is `asked`; zero stands for infinite, as for a request without that header.
    /// None is no timeout.
    pub fn apply(&self, asked: Duration) -> Option<Duration> {
        let limited = |asked: Duration| match self.max.is_zero() || (!asked.is_zero() && asked <= self.max) {
            true => asked,
            false => self.max,
        };
        // The offset is left out where it would turn the timeout into "infinite".
        let shortened = |timeout: Duration| if self.offset < timeout { timeout - self.offset } else { timeout };
        // Envoy limits after the offset for the deprecated fields, and before it for max_stream_duration.
        let timeout = if self.stream_duration { shortened(limited(asked)) } else { limited(shortened(asked)) };
        (!timeout.is_zero()).then_some(timeout)
    }
    /// The duration of a stream whose `grpc-timeout` is `asked`, with the limits of `max_stream_duration`; zero ends it at once.
    pub fn stream_duration(&self, asked: Duration) -> Duration {
        let limited = if self.max.is_zero() { asked } else { asked.min(self.max) };
        limited.saturating_sub(self.offset)
    }
    /// Whether the result bounds the whole stream (`max_stream_duration`) instead of the time to the end of the response
    /// (deprecated `max_grpc_timeout`).
    pub fn is_stream_duration(&self) -> bool {
        self.stream_duration
    }
}

/// A compiled hedge policy.
#[derive(Clone, Debug)]
pub struct HedgePolicy {
    /// Default 1.
    pub initial_requests: u32,
    pub additional_request_chance: Fraction,
    pub hedge_on_per_try_timeout: bool,
}

impl HedgePolicy {
    /// Compiles `HedgePolicy`.
    pub(crate) fn compile(policy: &proto::HedgePolicy, at: &At<'_>, cx: &mut RouteCx<'_>) -> Option<Arc<Self>> {
        let initial_requests = policy.initial_requests.unwrap_or(1);
        if initial_requests == 0 {
            return cx.refuse(&at.field("initial_requests"), "0", "give at least 1");
        }
        if initial_requests > 1 {
            cx.report.warning(&at.field("initial_requests"), initial_requests.to_string(), "ignored: Envoy does not implement it either");
        }
        let additional_request_chance = match &policy.additional_request_chance {
            Some(chance) => {
                let at = at.field("additional_request_chance");
                cx.report.warning(&at, "additional_request_chance", "ignored: Envoy does not implement it either");
                Fraction::compile(chance, &at, cx.report)?
            }
            None => Fraction::NEVER,
        };
        Some(Arc::new(Self { initial_requests, additional_request_chance, hedge_on_per_try_timeout: policy.hedge_on_per_try_timeout }))
    }
}

/// One of `upgrade_configs`.
#[derive(Clone, Debug)]
pub struct Upgrade {
    /// Lower-case name: `websocket`, `connect`.
    pub kind: Box<str>,
    pub enabled: bool,
    /// CONNECT ends here and its payload is sent as TCP.
    pub connect: Option<ConnectConfig>,
}

/// How the payload of a terminated CONNECT is sent.
#[derive(Clone, Debug)]
pub struct ConnectConfig {
    /// PROXY protocol header in front of the payload.
    pub proxy_protocol: Option<ProxyProtocolConfig>,
    /// POST requests are sent as TCP payload too.
    pub allow_post: bool,
}

/// What a route action takes over from its virtual host if it says nothing itself.
pub(crate) struct Inherited<'a> {
    pub retry: &'a Option<Arc<RetryPolicy>>,
    pub hedge: &'a Option<Arc<HedgePolicy>>,
    pub mirrors: &'a Arc<[Arc<MirrorPolicy>]>,
}

const DEFAULT_EARLY_DATA: &str = "envoy.extensions.early_data.v3.DefaultEarlyDataPolicy";

impl Forward {
    /// Compiles `RouteAction` apart from its clusters.
    #[allow(deprecated)]
    pub(crate) fn compile(
        action: &proto::RouteAction,
        condition: &PathCondition,
        inherited: &Inherited<'_>,
        at: &At<'_>,
        cx: &mut RouteCx<'_>,
    ) -> Option<Self> {
        use proto::route_action::ClusterNotFoundResponseCode as Code;
        if let Some(config) = action.early_data_policy.as_ref().and_then(|p| p.typed_config.as_ref()) {
            // Early data is never accepted, so the policy has nothing to decide; another one is not ours to judge.
            let name = config.type_url.rsplit('/').next().unwrap_or_default();
            if name != DEFAULT_EARLY_DATA {
                cx.report.unsupported(&at.field("early_data_policy"), format_args!("early data policy {name}"));
                return None;
            }
        }
        if action.retry_policy_typed_config.is_some() {
            cx.report.unsupported(&at.field("retry_policy_typed_config"), "a retry policy extension");
            return None;
        }
        let not_found_status = match Code::try_from(action.cluster_not_found_response_code) {
            Ok(Code::ServiceUnavailable) => 503,
            Ok(Code::NotFound) => 404,
            Ok(Code::InternalServerError) => 500,
            Err(_) => {
                let found = action.cluster_not_found_response_code.to_string();
                return cx.refuse(&at.field("cluster_not_found_response_code"), found, "use a value of ClusterNotFoundResponseCode");
            }
        };
        let priority = match RoutingPriority::try_from(action.priority) {
            Ok(RoutingPriority::Default) => Priority::Default,
            Ok(RoutingPriority::High) => Priority::High,
            Err(_) => return cx.refuse(&at.field("priority"), action.priority.to_string(), "use DEFAULT or HIGH"),
        };
        let retry = match &action.retry_policy {
            Some(policy) => Some(RetryPolicy::compile(policy, &at.field("retry_policy"), cx)?),
            None => inherited.retry.clone(),
        };
        let hedge = match &action.hedge_policy {
            Some(policy) => Some(HedgePolicy::compile(policy, &at.field("hedge_policy"), cx)?),
            None => inherited.hedge.clone(),
        };
        let mirrors = match action.request_mirror_policies.as_slice() {
            [] => inherited.mirrors.clone(),
            policies => MirrorPolicy::compile_list(policies, &at.field("request_mirror_policies"), cx)?,
        };
        let limited = |d: Option<Duration>| d.map(nonzero);
        let timeout = duration(action.timeout.as_ref(), &at.field("timeout"), cx)?;
        let max_stream_duration = match &action.max_stream_duration {
            Some(m) => duration(m.max_stream_duration.as_ref(), &at.field("max_stream_duration").field("max_stream_duration"), cx)?,
            None => None,
        };
        Some(Self {
            timeout: timeout.map_or(Some(Duration::from_secs(15)), nonzero),
            idle_timeout: limited(duration(action.idle_timeout.as_ref(), &at.field("idle_timeout"), cx)?),
            flush_timeout: limited(duration(action.flush_timeout.as_ref(), &at.field("flush_timeout"), cx)?),
            max_stream_duration: limited(max_stream_duration),
            bounds_stream: action.max_stream_duration.is_some(),
            grpc: grpc_timeout(action, at, cx)?,
            retry,
            hedge,
            mirrors,
            priority,
            hash: HashPolicy::compile(&action.hash_policy, &at.field("hash_policy"), cx.report)?,
            upgrades: upgrades(&action.upgrade_configs, &at.field("upgrade_configs"), cx)?,
            internal_redirect: InternalRedirectPolicy::compile(action, at, cx)?,
            not_found_status,
            path_rewrite: PathRewrite::compile(action, condition, at, cx)?,
            host_rewrite: HostRewrite::compile(action, at, cx)?,
            append_forwarded_host: action.append_x_forwarded_host,
            rate_limits: action.rate_limits.as_slice().into(),
            include_vh_rate_limits: action.include_vh_rate_limits.unwrap_or(false),
        })
    }
    /// Time from the end of the request to the end of the response; none is no limit. Default 15 s.
    pub fn timeout(&self) -> Option<Duration> {
        self.timeout
    }
    /// Longest time without progress of the stream: the outer `None` leaves it to the connection manager, the inner one is no limit.
    pub fn idle_timeout(&self) -> Option<Option<Duration>> {
        self.idle_timeout
    }
    /// As [`Self::idle_timeout`], for writing to a client that does not read.
    pub fn flush_timeout(&self) -> Option<Option<Duration>> {
        self.flush_timeout
    }
    /// As [`Self::idle_timeout`], for the duration of the whole stream.
    pub fn max_stream_duration(&self) -> Option<Option<Duration>> {
        self.max_stream_duration
    }
    /// Whether the route sets `max_stream_duration`, even an empty one: then it has no response timeout.
    pub fn bounds_stream(&self) -> bool {
        self.bounds_stream
    }
    /// Whether and how `grpc-timeout` counts.
    pub fn grpc_timeout(&self) -> Option<GrpcTimeout> {
        self.grpc
    }
    /// The route's retry policy, else that of its virtual host.
    pub fn retry_policy(&self) -> Option<&Arc<RetryPolicy>> {
        self.retry.as_ref()
    }
    /// The route's hedge policy, else that of its virtual host.
    pub fn hedge_policy(&self) -> Option<&HedgePolicy> {
        self.hedge.as_deref()
    }
    /// The mirror policies of the most specific level that has any.
    pub fn mirrors(&self) -> &[Arc<MirrorPolicy>] {
        &self.mirrors
    }
    /// Which circuit breakers count the request.
    pub fn priority(&self) -> Priority {
        self.priority
    }
    /// Whether `priority` is HIGH.
    pub fn high_priority(&self) -> bool {
        self.priority == Priority::High
    }
    /// The hash of a request for consistent-hash balancing.
    pub fn hash(&self, request: &RequestHead, info: &StreamInfo) -> HashResult {
        self.hash.as_ref().map(|policy| policy.hash(request, info)).unwrap_or_default()
    }
    /// The hash policy, if there is one.
    pub fn hash_policy(&self) -> Option<&HashPolicy> {
        self.hash.as_ref()
    }
    /// Whether upgrade `kind` (in any case) is allowed; none leaves it to the connection manager.
    pub fn upgrade(&self, kind: &str) -> Option<bool> {
        self.upgrades.iter().find(|u| u.kind.eq_ignore_ascii_case(kind)).map(|u| u.enabled)
    }
    /// Every upgrade that the route mentions.
    pub fn upgrades(&self) -> &[Upgrade] {
        &self.upgrades
    }
    /// How CONNECT ends here, if it does.
    pub fn connect_config(&self) -> Option<&ConnectConfig> {
        self.upgrades.iter().find_map(|u| u.connect.as_ref())
    }
    /// Which redirects of the upstream are followed here.
    pub fn internal_redirect(&self) -> Option<&InternalRedirectPolicy> {
        self.internal_redirect.as_ref()
    }
    /// Status for requests whose cluster does not exist. Default 503.
    pub fn cluster_not_found_status(&self) -> u16 {
        self.not_found_status
    }
    /// Whether the host becomes that of the chosen endpoint ([`Self::rewrite_host`]).
    pub fn auto_host_rewrite(&self) -> bool {
        matches!(self.host_rewrite, Some(HostRewrite::Auto))
    }
    /// Sets the host, noting the old one as the route asks. `keep_original` is false with `suppress_envoy_headers`.
    pub fn rewrite_host(&self, request: &mut RequestHead, host: impl Into<ByteStr>, keep_original: bool) {
        update_authority(request, host.into(), self.append_forwarded_host, keep_original);
    }
    /// `rate_limits`, for the rate limit filters.
    pub fn rate_limits(&self) -> &[proto::RateLimit] {
        &self.rate_limits
    }
    /// Whether the virtual host's rate limits count too.
    pub fn include_vh_rate_limits(&self) -> bool {
        self.include_vh_rate_limits
    }
}

fn nonzero(duration: Duration) -> Option<Duration> {
    (!duration.is_zero()).then_some(duration)
}

#[allow(deprecated)]
fn grpc_timeout(action: &proto::RouteAction, at: &At<'_>, cx: &mut RouteCx<'_>) -> Option<Option<GrpcTimeout>> {
    let old_max = duration(action.max_grpc_timeout.as_ref(), &at.field("max_grpc_timeout"), cx)?;
    let old_offset = duration(action.grpc_timeout_offset.as_ref(), &at.field("grpc_timeout_offset"), cx)?;
    // Setting the new message switches the deprecated fields off, even if it is empty.
    let (max, offset, stream_duration) = match &action.max_stream_duration {
        None => (old_max, old_offset, false),
        Some(new) => {
            let at = at.field("max_stream_duration");
            let max = duration(new.grpc_timeout_header_max.as_ref(), &at.field("grpc_timeout_header_max"), cx)?;
            let offset = duration(new.grpc_timeout_header_offset.as_ref(), &at.field("grpc_timeout_header_offset"), cx)?;
            (max, offset, true)
        }
    };
    Some(max.map(|max| GrpcTimeout { max, offset: offset.unwrap_or_default(), stream_duration }))
}

fn has_tlvs(config: &ProxyProtocolConfig) -> bool {
    config.pass_through_tlvs.is_some() || !config.added_tlvs.is_empty()
}

fn upgrades(configs: &[proto::route_action::UpgradeConfig], at: &At<'_>, cx: &mut RouteCx<'_>) -> Option<Box<[Upgrade]>> {
    let mut all: Vec<Upgrade> = Vec::with_capacity(configs.len());
    for (i, config) in configs.iter().enumerate() {
        let at = at.index(i);
        let kind: Box<str> = config.upgrade_type.to_ascii_lowercase().into();
        if kind.is_empty() || all.iter().any(|u| u.kind == kind) {
            return cx.refuse(&at.field("upgrade_type"), format!("\"{}\"", config.upgrade_type), "name each upgrade once");
        }
        let connect = match &config.connect_config {
            None => None,
            Some(_) if kind.as_ref() != "connect" && kind.as_ref() != "connect-udp" => {
                return cx.refuse(&at.field("connect_config"), format!("connect_config of upgrade {kind}"), "only CONNECT has one");
            }
            Some(_) if kind.as_ref() == "connect-udp" && config.enabled.unwrap_or(true) => {
                cx.report.unsupported(&at.field("connect_config"), "ending CONNECT-UDP here");
                return None;
            }
            Some(connect) if connect.proxy_protocol_config.as_ref().is_some_and(has_tlvs) => {
                cx.report.unsupported(&at.field("connect_config").field("proxy_protocol_config"), "TLVs in the PROXY header");
                return None;
            }
            Some(connect) => Some(ConnectConfig { proxy_protocol: connect.proxy_protocol_config.clone(), allow_post: connect.allow_post }),
        };
        all.push(Upgrade { kind, enabled: config.enabled.unwrap_or(true), connect });
    }
    Some(all.into())
}
