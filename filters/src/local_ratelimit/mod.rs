//! envoy.filters.http.local_ratelimit: token buckets that all workers share, for the listener, a route, a connection, or for what
//! a request counts as. Source: `envoy/extensions/filters/http/local_ratelimit/v3/local_rate_limit.proto`.

pub(crate) mod bucket;
mod limiter;

use crate::config::decode;
use crate::ext_authz::settings::http_status;
use crate::rate_limit::{Limit, RouteLimits};
use http::{HeaderName, HeaderValue, header};
use limiter::{Limiter, Verdict};
use nuncio_core::diag::At;
use nuncio_core::filter::{FilterAction, FilterCx, HttpFilter, Needs};
use nuncio_core::filter_state::StateObject;
use nuncio_core::registry::{FactoryCx, HttpFilterFactory, Server};
use nuncio_core::stats::Counter;
use nuncio_core::views::ClusterSlot;
use nuncio_core::{Exchange, Headers, LocalReply, ResponseFlags};
use nuncio_format::FormatContext;
use nuncio_matcher::RuntimeFraction;
use nuncio_proto::envoy::extensions::common::ratelimit::v3::{VhRateLimitsOptions, XRateLimitHeadersRfcVersion};
use nuncio_proto::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit;
use nuncio_route::HeaderParser;
use nuncio_upstream::Cluster;
use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// Factory of `envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit`, on listeners and per route.
#[derive(Debug)]
pub struct Factory;

impl HttpFilterFactory for Factory {
    fn name(&self) -> &'static str {
        "envoy.filters.http.local_ratelimit"
    }
    fn types(&self) -> &'static [&'static str] {
        &["envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit"]
    }
    fn route_types(&self) -> &'static [&'static str] {
        self.types()
    }
    fn compile(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn HttpFilter>> {
        Some(Arc::new(Filter(Arc::new(Config::compile(&decode(config, at, cx.report)?, at, cx)?))))
    }
    fn compile_route(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn Any + Send + Sync>> {
        let config: LocalRateLimit = decode(config, at, cx.report)?;
        if config.token_bucket.is_none() {
            cx.report.error(&at.field("token_bucket"), "nothing", "per-route configuration needs a token bucket");
            return None;
        }
        Some(Arc::new(Config::compile(&config, at, cx)?))
    }
}

#[derive(Debug)]
struct Filter(Arc<Config>);

#[derive(Debug)]
struct Config {
    id: u64,
    server: Arc<Server>,
    status: u16,
    grpc_status: Option<u32>,
    enabled: Option<RuntimeFraction>,
    enforced: Option<RuntimeFraction>,
    request_headers: HeaderParser,
    response_headers: HeaderParser,
    plan: Arc<limiter::Plan>,
    limiter: Limiter,
    /// The cluster among whose members the limit is shared.
    share: Option<Arc<ClusterSlot>>,
    per_connection: bool,
    stage: u32,
    virtual_host: VhRateLimitsOptions,
    limits: Vec<Limit>,
    show_headers: bool,
    retry_after: bool,
    on: Counter,
    ok: Counter,
    limited: Counter,
    refused: Counter,
    shadow: Counter,
}

impl Config {
    fn compile(p: &LocalRateLimit, at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Self> {
        static IDS: AtomicU64 = AtomicU64::new(0);
        let errors = cx.report.errors();
        let share = match p.local_cluster_rate_limit.is_some().then(|| cx.server.clusters.local()) {
            None => None,
            Some(Some(local)) if !p.local_rate_limit_per_downstream_connection => Some(local.clone()),
            Some(local) => {
                let (what, remedy) = match local {
                    None => ("without a local cluster", "name it in the bootstrap's cluster_manager.local_cluster_name"),
                    Some(_) => ("with local_rate_limit_per_downstream_connection", "set one of them"),
                };
                cx.report.error(&at.field("local_cluster_rate_limit"), what, remedy);
                None
            }
        };
        if p.stage > 10 {
            cx.report.error(&at.field("stage"), p.stage.to_string(), "give a stage from 0 to 10");
        }
        if p.stat_prefix.is_empty() {
            cx.report.error(&at.field("stat_prefix"), "an empty prefix", "name the stats of this filter");
        }
        let plan = limiter::Plan::compile(p, at, cx.report)?;
        let fraction =
            |p: Option<&_>, name: &str, cx: &mut FactoryCx<'_>| p.and_then(|f| RuntimeFraction::compile(f, &at.field(name), cx.report));
        let (enabled, enforced) =
            (fraction(p.filter_enabled.as_ref(), "filter_enabled", cx), fraction(p.filter_enforced.as_ref(), "filter_enforced", cx));
        let headers =
            |list: &[_], name: &str, cx: &mut FactoryCx<'_>| HeaderParser::compile(list, &at.field(name), &[], &At::Root, cx.report);
        let request_headers = headers(&p.request_headers_to_add_when_not_enforced, "request_headers_to_add_when_not_enforced", cx)?;
        let response_headers = headers(&p.response_headers_to_add, "response_headers_to_add", cx)?;
        let limits = Limit::compile_list(&p.rate_limits, cx.server, &at.field("rate_limits"), cx.report)?;
        for (i, _) in limits.iter().enumerate().filter(|(_, l)| l.needs_service()) {
            let what = "counting at the end of the stream, or negative hits, without a rate limit service";
            cx.report.unsupported(&at.field("rate_limits").index(i), what);
        }
        for (i, _) in p.rate_limits.iter().enumerate().filter(|(_, l)| l.limit.is_some()) {
            cx.report.warning(&at.field("rate_limits").index(i), "limit", "local limits come from the filter; ignored, as in Envoy");
        }
        let Ok(virtual_host) = VhRateLimitsOptions::try_from(p.vh_rate_limits) else {
            cx.report.error(&at.field("vh_rate_limits"), p.vh_rate_limits.to_string(), "use OVERRIDE, INCLUDE or IGNORE");
            return None;
        };
        let scope = cx.server.stats.root().scope(&format!("{}.http_local_rate_limit.", p.stat_prefix));
        let status = http_status(p.status.as_ref(), &at.field("status"), cx.report)?;
        (cx.report.errors() == errors).then(|| Self {
            id: IDS.fetch_add(1, Ordering::Relaxed),
            server: cx.server.clone(),
            // Anything that is no error becomes 429, as in Envoy.
            status: status.filter(|s| *s >= 400).unwrap_or(429),
            grpc_status: p.rate_limited_as_resource_exhausted.then_some(8),
            enabled,
            enforced,
            request_headers,
            response_headers,
            limiter: Limiter::new(&plan),
            plan: Arc::new(plan),
            share,
            per_connection: p.local_rate_limit_per_downstream_connection,
            stage: p.stage,
            virtual_host,
            limits,
            show_headers: p.enable_x_ratelimit_headers == XRateLimitHeadersRfcVersion::DraftVersion03 as i32,
            retry_after: p.enable_retry_after_header,
            on: scope.counter("enabled"),
            ok: scope.counter("ok"),
            limited: scope.counter("rate_limited"),
            refused: scope.counter("enforced"),
            shadow: scope.counter("shadow_mode"),
        })
    }
    fn judge(&self, ex: &Exchange) -> Verdict {
        let mut descriptors = Vec::new();
        if self.plan.has_descriptors() {
            let mut describe =
                |limits: &[Limit]| limits.iter().filter(|l| l.applies(self.stage)).for_each(|l| l.describe(ex, &mut descriptors));
            if !self.limits.is_empty() {
                describe(&self.limits);
            } else if let Some(limits) = RouteLimits::of(ex, &self.server) {
                describe(&limits.route);
                let include = limits.include_virtual_host
                    || match self.virtual_host {
                        VhRateLimitsOptions::Include => true,
                        VhRateLimitsOptions::Ignore => false,
                        VhRateLimitsOptions::Override => limits.route.is_empty(),
                    };
                if include {
                    describe(&limits.virtual_host);
                }
            }
        }
        match self.per_connection {
            true => self.of_connection(ex).0.judge(&descriptors, 1),
            false => self.limiter.judge(&descriptors, self.members()),
        }
    }
    /// Members of the cluster that shares the limit: a request costs as much as if each of them had let one through.
    fn members(&self) -> u64 {
        let Some(cluster) = self.share.as_ref().and_then(|slot| slot.get()) else { return 1 };
        let count = cluster.as_any().downcast_ref::<Cluster>().map_or(1, Cluster::member_count);
        u64::try_from(count).unwrap_or(1).max(1)
    }
    /// The buckets of the connection, made by its first request.
    fn of_connection(&self, ex: &Exchange) -> Arc<PerConnection> {
        let key = format!("per_connection_local_rate_limiter.{}", self.id);
        let mut state = ex.info.connection.filter_state.borrow_mut();
        let found = state.get(&key).and_then(|o| {
            let any: Arc<dyn Any + Send + Sync> = o.clone();
            any.downcast::<PerConnection>().ok()
        });
        found.unwrap_or_else(|| {
            let made = Arc::new(PerConnection(Limiter::new(&self.plan)));
            state.set(key, made.clone());
            made
        })
    }
}

struct PerConnection(Limiter);
impl StateObject for PerConnection {
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// State: the bucket that the answer tells of.
struct Told(Arc<bucket::Bucket>);

impl HttpFilter for Filter {
    fn needs(&self) -> Needs {
        Needs::REQUEST_HEADERS.and(Needs::RESPONSE_HEADERS)
    }
    fn on_request<'a>(&'a self, mut cx: FilterCx<'a>) -> FilterAction<'a> {
        let config = cx.route_config::<Config>().unwrap_or_else(|| self.0.clone());
        let runtime = &config.server.runtime;
        let hits = |f: &Option<RuntimeFraction>| f.as_ref().is_some_and(|f| f.contains(runtime, fastrand::u64(..)));
        if !hits(&config.enabled) {
            return FilterAction::Continue;
        }
        config.on.inc();
        let verdict = config.judge(cx.ex);
        if verdict.shadow {
            config.shadow.inc();
        }
        let bucket = verdict.bucket;
        if let Some(bucket) = bucket.as_ref().filter(|_| verdict.show_headers.unwrap_or(config.show_headers)) {
            cx.set_state(Told(bucket.clone()));
        }
        let ex = &mut *cx.ex;
        if verdict.allowed {
            config.ok.inc();
            return FilterAction::Continue;
        }
        config.limited.inc();
        if !hits(&config.enforced) {
            config.request_headers.apply_request(&mut ex.request, &ex.info, ex.route.as_deref());
            return FilterAction::Continue;
        }
        config.refused.inc();
        let mut reply = LocalReply::new(config.status, "local_rate_limited", "local_rate_limited").flag(ResponseFlags::RATE_LIMITED);
        reply.grpc_status = config.grpc_status;
        config.response_headers.apply(&mut reply.headers, &FormatContext::exchange(ex));
        if let Some(bucket) = bucket.filter(|_| config.retry_after) {
            reply.headers.insert(header::RETRY_AFTER, HeaderValue::from(bucket.reset_seconds()));
        }
        FilterAction::Respond(Box::new(reply))
    }
    fn on_response(&self, mut cx: FilterCx<'_>) {
        let Some(bucket) = cx.state::<Told>().map(|t| t.0.clone()) else { return };
        if let Some(response) = &mut cx.ex.response {
            tell(&bucket, &mut response.headers);
        }
    }
}

fn tell(bucket: &bucket::Bucket, headers: &mut Headers) {
    headers.append(LIMIT, HeaderValue::from(bucket.max()));
    headers.append(REMAINING, HeaderValue::from(bucket.remaining()));
    headers.append(RESET, HeaderValue::from(bucket.reset_seconds()));
}

#[cfg(test)]
mod tests;
