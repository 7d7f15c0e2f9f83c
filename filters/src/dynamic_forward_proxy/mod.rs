//! envoy.filters.http.dynamic_forward_proxy: holds requests to dynamic forward proxy clusters until the host that they ask for is
//! resolved, and answers where it cannot be. Compiled on the control thread, run on workers.
//! Source: `envoy/extensions/filters/http/dynamic_forward_proxy/v3/dynamic_forward_proxy.proto`, docs "Dynamic forward proxy".

mod sni;
#[cfg(test)]
mod tests;

pub use sni::SniFactory;

use crate::config::{decode, duration};
use nuncio_core::diag::At;
use nuncio_core::filter::{FilterAction, FilterCx, HttpFilter, Needs, Outcome};
use nuncio_core::filter_state::StateObject;
use nuncio_core::registry::{FactoryCx, HttpFilterFactory};
use nuncio_core::{Address, ByteStr, Exchange, HeaderKey, LocalReply, ResponseFlags};
use nuncio_proto::envoy::extensions::filters::http::dynamic_forward_proxy::v3 as proto;
use nuncio_upstream::Cluster;
use nuncio_upstream::forward_proxy::{self, CacheEntry, DYNAMIC_HOST, DYNAMIC_PORT, DnsCache, DnsCaches, Lookup, SubLookup};
use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

/// How long a request waits for a sub cluster, if nothing says it.
const INIT_TIMEOUT: Duration = Duration::from_secs(5);
/// Filter state that `save_upstream_address` sets.
pub const UPSTREAM_ADDRESS: &str = "envoy.stream.upstream_address";

/// Factory of `envoy.extensions.filters.http.dynamic_forward_proxy.v3.FilterConfig`.
#[derive(Debug)]
pub struct Factory;

impl HttpFilterFactory for Factory {
    fn name(&self) -> &'static str {
        "envoy.filters.http.dynamic_forward_proxy"
    }
    fn types(&self) -> &'static [&'static str] {
        &["envoy.extensions.filters.http.dynamic_forward_proxy.v3.FilterConfig"]
    }
    fn route_types(&self) -> &'static [&'static str] {
        &["envoy.extensions.filters.http.dynamic_forward_proxy.v3.PerRouteConfig"]
    }
    fn compile(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn HttpFilter>> {
        use proto::filter_config::ImplementationSpecifier as Source;
        let proto: proto::FilterConfig = decode(config, at, cx.report)?;
        let (mut cache, mut patience) = (None, INIT_TIMEOUT);
        match &proto.implementation_specifier {
            Some(Source::DnsCacheConfig(config)) => {
                let at = at.field("dns_cache_config");
                cache = Some(DnsCaches::of(cx.server).cache(config, cx.server, &at, cx.report)?);
            }
            Some(Source::SubClusterConfig(config)) => {
                let at = at.field("sub_cluster_config");
                let at = at.field("cluster_init_timeout");
                if let Some(timeout) = &config.cluster_init_timeout {
                    patience = duration(timeout, &at, cx.report)?;
                }
                if patience.is_zero() {
                    cx.report.error(&at, "0s", "give a duration above zero");
                    return None;
                }
            }
            None => {
                cx.report.error(at, "nothing", "set dns_cache_config or sub_cluster_config");
                return None;
            }
        }
        let (save, from_state) = (proto.save_upstream_address, proto.allow_dynamic_host_from_filter_state);
        Some(Arc::new(Filter { cache, patience, save, from_state }))
    }
    fn compile_route(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn Any + Send + Sync>> {
        use proto::per_route_config::HostRewriteSpecifier as Rewrite;
        let proto: proto::PerRouteConfig = decode(config, at, cx.report)?;
        let rewrite = match proto.host_rewrite_specifier {
            Some(Rewrite::HostRewriteLiteral(host)) if !host.is_empty() => PerRoute::Literal(host.into()),
            Some(Rewrite::HostRewriteHeader(name)) if !name.is_empty() => match HeaderKey::parse(&name) {
                Some(key) => PerRoute::Header(key),
                None => {
                    cx.report.error(&at.field("host_rewrite_header"), name, "give a valid header name");
                    return None;
                }
            },
            _ => PerRoute::Keep,
        };
        Some(Arc::new(rewrite))
    }
}

/// What a route makes of the host.
#[derive(Debug)]
enum PerRoute {
    Keep,
    Literal(ByteStr),
    /// The first value of this header, if the request has it.
    Header(HeaderKey),
}

#[derive(Debug)]
struct Filter {
    /// None with sub clusters.
    cache: Option<Arc<DnsCache>>,
    /// `cluster_init_timeout`.
    patience: Duration,
    save: bool,
    from_state: bool,
}

/// `save_upstream_address`: where the name leads. Without text form, as in Envoy.
#[derive(Debug)]
pub struct UpstreamAddress(pub Address);

impl StateObject for UpstreamAddress {
    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn refuse(body: &'static str, details: &'static str) -> Box<LocalReply> {
    Box::new(LocalReply::new(503, body, details))
}

fn rewrite(ex: &mut Exchange, how: &PerRoute) {
    match how {
        PerRoute::Keep => {}
        PerRoute::Literal(host) => ex.request.authority = host.clone(),
        PerRoute::Header(HeaderKey::Name(name)) => {
            let first = ex.request.headers.get_str(name).map(ByteStr::from);
            if let Some(host) = first {
                ex.request.authority = host;
            }
        }
        PerRoute::Header(key) => {
            let value = ex.request.header(key).and_then(|v| String::from_utf8(v.into_owned()).ok());
            if let Some(host) = value {
                ex.request.authority = host.into();
            }
        }
    }
}

/// The dynamic forward proxy cluster that the request goes to; none if it goes elsewhere.
fn target(ex: &Exchange) -> Option<Arc<Cluster>> {
    ex.route.as_ref()?;
    let view: Arc<dyn Any + Send + Sync> = ex.cluster.clone()?;
    view.downcast::<Cluster>().ok().filter(|c| forward_proxy::is_forward_proxy(c))
}

impl Filter {
    /// Name and port of names without one.
    fn wanted(&self, ex: &Exchange, default: u16) -> (String, u16) {
        let said = |key: &str| ex.info.filter_state.get(key).and_then(|o| o.as_string()).filter(|_| self.from_state);
        let host = said(DYNAMIC_HOST).filter(|h| !h.is_empty()).unwrap_or_else(|| ex.request.authority.as_str().to_string());
        let port = said(DYNAMIC_PORT).and_then(|p| p.parse().ok()).filter(|p| *p > 0).unwrap_or(default);
        (host, port)
    }
    /// Goes on with a name that was looked up.
    fn resolved(&self, ex: &mut Exchange, entry: &CacheEntry) -> Outcome {
        match entry.address() {
            Some(address) => {
                if self.save {
                    ex.info.filter_state.set(UPSTREAM_ADDRESS, Arc::new(UpstreamAddress(address)));
                }
                Outcome::Continue
            }
            None => {
                let details = format!("dns_resolution_failure{{{}}}", entry.failure());
                let reply = LocalReply::new(503, "DNS resolution failure", details).flag(ResponseFlags::DNS_RESOLUTION_FAILED);
                Outcome::Respond(Box::new(reply))
            }
        }
    }
    fn sub_cluster<'a>(&'a self, cluster: &Cluster, ex: &Exchange) -> FilterAction<'a> {
        match forward_proxy::sub_cluster(cluster, ex.request.authority.as_str()) {
            Some(SubLookup::Loading(sub)) => FilterAction::Await(Box::pin(async move {
                match tokio::time::timeout(self.patience, sub.ready()).await {
                    Ok(()) => Outcome::Continue,
                    Err(_) => Outcome::Respond(refuse("Sub cluster warming timeout", "sub_cluster_warming_timeout")),
                }
            })),
            Some(SubLookup::Overflow) => FilterAction::Respond(refuse("Sub cluster overflow", "sub_cluster_overflow")),
            Some(SubLookup::Known) | None => FilterAction::Continue,
        }
    }
}

impl HttpFilter for Filter {
    fn needs(&self) -> Needs {
        Needs::REQUEST_HEADERS
    }
    fn on_request<'a>(&'a self, cx: FilterCx<'a>) -> FilterAction<'a> {
        let Some(cluster) = target(cx.ex) else { return FilterAction::Continue };
        if let Some(route) = cx.route_config::<PerRoute>() {
            rewrite(cx.ex, &route);
        }
        let ex = cx.ex;
        let Some(cache) = self.cache.as_ref().filter(|_| !forward_proxy::has_sub_clusters(&cluster)) else {
            return self.sub_cluster(&cluster, ex);
        };
        let Some(pending) = cache.admit() else {
            let details = "dynamic_forward_proxy_pending_request_overflow";
            return FilterAction::Respond(refuse("Dynamic forward proxy pending request overflow", details));
        };
        let (host, port) = self.wanted(ex, forward_proxy::default_port(&cluster));
        if host.is_empty() {
            return FilterAction::Respond(Box::new(LocalReply::new(400, "Empty host header", "empty_host_header")));
        }
        match cache.look_up(&host, port) {
            Lookup::Known(entry) => match self.resolved(ex, &entry) {
                Outcome::Continue => FilterAction::Continue,
                Outcome::Respond(reply) => FilterAction::Respond(reply),
            },
            Lookup::Loading(entry) => FilterAction::Await(Box::pin(async move {
                entry.ready().await;
                drop(pending);
                self.resolved(ex, &entry)
            })),
            Lookup::Overflow => FilterAction::Respond(refuse("DNS cache overflow", "dns_cache_overflow")),
        }
    }
}
