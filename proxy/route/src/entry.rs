//! The route that a request was matched to, its weighted cluster already chosen. Compiled on the control thread, one for each
//! route and cluster; shared by the requests of all workers.

use crate::action::Action;
use crate::filters::FilterConfigs;
use crate::forward::Forward;
use crate::headers::HeaderParser;
use crate::refresh::Alternatives;
use crate::rewrite::X_ENVOY_ORIGINAL_PATH;
use crate::route::LevelHeaders;
use crate::target::ClusterRef;
use crate::vhost::{BufferLimit, VirtualCluster, VirtualHostInfo};
use http::HeaderValue;
use nuncio_core::stats::Scope;
use nuncio_core::views::{ClusterSlot, PerFilterConfig, RouteView};
use nuncio_core::{ByteStr, RequestHead, ResponseHead, StreamInfo};
use nuncio_format::FormatContext;
use nuncio_matcher::Fraction;
use nuncio_proto::Struct;
use nuncio_proto::envoy::config::core::v3::Metadata;
use nuncio_proto::envoy::r#type::tracing::v3::CustomTag;
use std::any::Any;
use std::sync::{Arc, OnceLock};

/// Stats that another crate makes on first use and keeps here.
#[derive(Default)]
pub(crate) struct StatsCell(OnceLock<Box<dyn Any + Send + Sync>>);

impl StatsCell {
    /// What was made first; none if that was another type.
    pub fn get_or_make<T: Send + Sync + 'static>(&self, make: impl FnOnce() -> T) -> Option<&T> {
        self.0.get_or_init(|| Box::new(make())).downcast_ref()
    }
}
impl std::fmt::Debug for StatsCell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StatsCell")
    }
}

/// `Route.decorator`.
#[derive(Clone, Debug)]
pub struct Decorator {
    /// Operation name of spans, and `x-envoy-decorator-operation`.
    pub operation: ByteStr,
    /// Whether the header is sent. Default true.
    pub propagate: bool,
}

/// `Route.tracing`: overrides of the connection manager's sampling.
#[derive(Clone, Debug)]
pub struct RouteTracing {
    pub client_sampling: Fraction,
    pub random_sampling: Fraction,
    pub overall_sampling: Fraction,
    pub custom_tags: Box<[CustomTag]>,
    /// Formats of span names; empty if not set.
    pub operation: Box<str>,
    pub upstream_operation: Box<str>,
}

/// What the entries of one route share.
#[derive(Debug)]
pub(crate) struct Route {
    pub name: Arc<str>,
    pub vhost: Arc<VirtualHostInfo>,
    pub action: Action,
    pub metadata: Option<Metadata>,
    pub decorator: Option<Decorator>,
    pub tracing: Option<RouteTracing>,
    pub buffer: BufferLimit,
    pub stats: Option<(Scope, StatsCell)>,
    /// Set while the route is compiled.
    pub alternatives: OnceLock<Alternatives>,
}

/// What a weighted cluster adds to its route.
#[derive(Debug)]
pub(crate) struct Weighted {
    pub headers: LevelHeaders,
    pub host: Option<ByteStr>,
}

/// A matched route.
#[derive(Debug)]
pub struct RouteEntry {
    pub(crate) route: Arc<Route>,
    pub(crate) cluster: Option<ClusterRef>,
    /// Header mutations and host of the chosen weighted cluster; they come before everything else.
    pub(crate) weighted: Option<Box<Weighted>>,
    /// Parsers that have something to do, in the order in which they run.
    pub(crate) request_headers: Box<[Arc<HeaderParser>]>,
    pub(crate) response_headers: Box<[Arc<HeaderParser>]>,
    pub(crate) filters: FilterConfigs,
    pub(crate) metadata_match: Option<Struct>,
}

impl RouteEntry {
    /// What the route does.
    pub fn action(&self) -> &Action {
        &self.route.action
    }
    /// The forwarding part, if the route forwards.
    pub fn forward(&self) -> Option<&Forward> {
        match &self.route.action {
            Action::Forward(forward) => Some(forward),
            _ => None,
        }
    }
    /// The virtual host.
    pub fn vhost(&self) -> &Arc<VirtualHostInfo> {
        &self.route.vhost
    }
    /// The slot of the route's cluster; none if the route has no cluster or takes its name from a header.
    pub fn cluster_slot(&self) -> Option<&Arc<ClusterSlot>> {
        match &self.cluster {
            Some(ClusterRef::Slot(slot)) => Some(slot),
            _ => None,
        }
    }
    /// The slot of the cluster for `request`, which `cluster_header` or a plugin may name; none if there is no such cluster.
    pub fn cluster_for(&self, request: &RequestHead, info: &StreamInfo) -> Option<Arc<ClusterSlot>> {
        self.cluster.as_ref()?.resolve(&self.route.vhost.table.clusters, request, Some(info))
    }
    /// `path` (without query) as routes were matched by it: without path parameters if the table ignores them. Authorization by path
    /// must see what routing sees.
    pub fn match_path<'a>(&self, path: &'a str) -> std::borrow::Cow<'a, str> {
        match self.route.vhost.table.ignore_path_parameters {
            true => crate::path::without_parameters(path),
            false => std::borrow::Cow::Borrowed(path),
        }
    }
    /// `metadata_match` under `envoy.lb`, with that of the weighted cluster over that of the route.
    pub fn metadata_match(&self) -> Option<&Struct> {
        self.metadata_match.as_ref()
    }
    /// `Route.decorator`.
    pub fn decorator(&self) -> Option<&Decorator> {
        self.route.decorator.as_ref()
    }
    /// `Route.tracing`.
    pub fn tracing(&self) -> Option<&RouteTracing> {
        self.route.tracing.as_ref()
    }
    /// Whether requests to the upstream say which attempt they are.
    pub fn include_request_attempt_count(&self) -> bool {
        self.route.vhost.include_request_attempt_count
    }
    /// Whether responses say how many attempts were made.
    pub fn include_attempt_count_in_response(&self) -> bool {
        self.route.vhost.include_attempt_count_in_response
    }
    /// How many bytes of the request body are kept for retries and mirrors, where the connection's buffers hold `connection_limit`.
    pub fn buffer_limit(&self, connection_limit: u64) -> u64 {
        let (route, host) = (&self.route.buffer, &self.route.vhost.buffer);
        match route.body.or(host.body) {
            Some(limit) => limit,
            None => route.per_request.or(host.per_request).map_or(connection_limit, |limit| u64::from(limit).min(connection_limit)),
        }
    }
    /// The caller's stats of this route (`stat_prefix`), made from the scope `vhost.<virtual host>.route.<stat_prefix>.` on first
    /// use; none if the route has no `stat_prefix`.
    pub fn stats<T: Send + Sync + 'static>(&self, make: impl FnOnce(&Scope) -> T) -> Option<&T> {
        let (scope, cell) = self.route.stats.as_ref()?;
        cell.get_or_make(|| make(scope))
    }
    /// The virtual cluster that counts `request`.
    pub fn virtual_cluster(&self, request: &RequestHead) -> Option<&VirtualCluster> {
        self.route.vhost.virtual_cluster(request)
    }
    /// Prepares the request for the upstream: header mutations, then host, then path. `keep_original` leaves the old host and path in
    /// `x-envoy-original-host` and `x-envoy-original-path`; it is false with `suppress_envoy_headers`.
    pub fn finalize_request(&self, request: &mut RequestHead, info: &StreamInfo, keep_original: bool) {
        if let Some(weighted) = &self.weighted {
            if let Some(parser) = &weighted.headers.request {
                parser.apply_request(request, info, Some(self));
            }
            if let Some(host) = &weighted.host {
                request.authority = host.clone();
            }
        }
        for parser in &self.request_headers {
            parser.apply_request(request, info, Some(self));
        }
        let Some(forward) = self.forward() else { return };
        if let Some(rewrite) = &forward.host_rewrite {
            let host = rewrite.apply(request, |format| format(&self.context(request, info)));
            if let Some(host) = host {
                forward.rewrite_host(request, host, keep_original);
            }
        }
        if let Some(rewrite) = &forward.path_rewrite {
            let path = rewrite.apply(request.path.as_str(), |format| format(&self.context(request, info)));
            if let Some(path) = path {
                let old = std::mem::replace(&mut request.path, ByteStr::from(path));
                if keep_original && let Ok(old) = HeaderValue::from_maybe_shared(old.into_bytes()) {
                    request.headers.insert(X_ENVOY_ORIGINAL_PATH.clone(), old);
                }
            }
        }
    }
    fn context<'a>(&'a self, request: &'a RequestHead, info: &'a StreamInfo) -> FormatContext<'a> {
        FormatContext { route: Some(self), ..FormatContext::request(info, request) }
    }
    /// Applies the route's response header mutations.
    pub fn finalize_response(&self, response: &mut ResponseHead, request: &RequestHead, info: &StreamInfo) {
        let weighted = self.weighted.as_ref().and_then(|w| w.headers.response.as_ref());
        for parser in weighted.into_iter().chain(&self.response_headers) {
            parser.apply_response(response, Some(request), info, Some(self));
        }
    }
}

impl RouteView for RouteEntry {
    fn name(&self) -> &Arc<str> {
        &self.route.name
    }
    fn virtual_host(&self) -> &Arc<str> {
        &self.route.vhost.name
    }
    fn route_config(&self) -> &Arc<str> {
        &self.route.vhost.table.name
    }
    fn cluster_name(&self) -> Option<&Arc<str>> {
        self.cluster_slot().map(|slot| &slot.name)
    }
    fn metadata(&self) -> Option<&Metadata> {
        self.route.metadata.as_ref()
    }
    fn virtual_host_metadata(&self) -> Option<&Metadata> {
        self.route.vhost.metadata.as_ref()
    }
    fn filter_config(&self, filter: &str) -> Option<&PerFilterConfig> {
        self.filters.of(filter).last()
    }
    fn filter_configs(&self, filter: &str, each: &mut dyn FnMut(&PerFilterConfig)) {
        self.filters.of(filter).iter().for_each(each);
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}
