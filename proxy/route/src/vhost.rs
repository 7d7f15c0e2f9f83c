//! What routes of one virtual host share. Source: VirtualHost.

use crate::cx::RouteCx;
use crate::entry::StatsCell;
use nuncio_core::RequestHead;
use nuncio_core::diag::At;
use nuncio_core::stats::Scope;
use nuncio_core::views::ClusterSlots;
use nuncio_matcher::HeaderMatcher;
use nuncio_proto::envoy::config::core::v3::Metadata;
use nuncio_proto::envoy::config::route::v3 as proto;
use std::sync::Arc;

/// What all routes of a table share.
#[derive(Debug)]
pub(crate) struct TableInfo {
    pub name: Arc<str>,
    pub metadata: Option<Metadata>,
    pub clusters: Arc<ClusterSlots>,
    pub ignore_path_parameters: bool,
    pub specific_headers_win: bool,
}

/// What all routes of a virtual host share.
#[derive(Debug)]
pub struct VirtualHostInfo {
    pub name: Arc<str>,
    pub(crate) table: Arc<TableInfo>,
    /// `x-envoy-attempt-count` in requests to the upstream.
    pub include_request_attempt_count: bool,
    /// `x-envoy-attempt-count` in responses.
    pub include_attempt_count_in_response: bool,
    /// `x-envoy-is-timeout-retry` in retries.
    pub include_is_timeout_retry_header: bool,
    /// `rate_limits`, for the rate limit filters.
    pub rate_limits: Box<[proto::RateLimit]>,
    pub(crate) metadata: Option<Metadata>,
    pub(crate) buffer: BufferLimit,
    virtual_clusters: Box<[VirtualCluster]>,
    /// Counts requests that no virtual cluster matches.
    other: Option<Box<VirtualCluster>>,
}

/// A virtual cluster: requests that are counted together, under `vhost.<virtual host>.vcluster.<name>.`.
#[derive(Debug)]
pub struct VirtualCluster {
    pub name: Arc<str>,
    headers: Box<[HeaderMatcher]>,
    scope: Scope,
    stats: StatsCell,
}

impl VirtualCluster {
    /// Whether it counts what no other virtual cluster matches.
    pub fn is_other(&self) -> bool {
        self.headers.is_empty()
    }
    /// The caller's stats of this virtual cluster, made from its scope on first use.
    pub fn stats<T: Send + Sync + 'static>(&self, make: impl FnOnce(&Scope) -> T) -> Option<&T> {
        self.stats.get_or_make(|| make(&self.scope))
    }
}

/// How much of a request body is kept for retries and mirrors.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct BufferLimit {
    pub body: Option<u64>,
    pub per_request: Option<u32>,
}

impl VirtualHostInfo {
    /// Compiles what is shared. Routes, policies and per-filter configuration are the table's business.
    #[allow(deprecated)]
    pub(crate) fn compile(host: &proto::VirtualHost, table: &Arc<TableInfo>, at: &At<'_>, cx: &mut RouteCx<'_>) -> Option<Arc<Self>> {
        if host.name.is_empty() {
            return cx.refuse(&at.field("name"), "nothing", "name the virtual host");
        }
        let scope = cx.scope.scope(&format!("vhost.{}.vcluster.", host.name));
        let cluster = |name: &str, headers| VirtualCluster {
            name: name.into(),
            headers,
            scope: scope.scope(&format!("{name}.")),
            stats: StatsCell::default(),
        };
        let mut virtual_clusters = Vec::with_capacity(host.virtual_clusters.len());
        for (i, virtual_cluster) in host.virtual_clusters.iter().enumerate() {
            let at = at.field("virtual_clusters");
            let at = at.index(i);
            if virtual_cluster.name.is_empty() {
                return cx.refuse(&at.field("name"), "nothing", "name the virtual cluster");
            }
            if virtual_cluster.headers.is_empty() {
                return cx.refuse(&at.field("headers"), "no headers", "say which requests belong to it");
            }
            let headers = HeaderMatcher::compile_list(&virtual_cluster.headers, &at.field("headers"), cx.report)?;
            virtual_clusters.push(cluster(&virtual_cluster.name, headers));
        }
        Some(Arc::new(Self {
            name: host.name.as_str().into(),
            table: table.clone(),
            include_request_attempt_count: host.include_request_attempt_count,
            include_attempt_count_in_response: host.include_attempt_count_in_response,
            include_is_timeout_retry_header: host.include_is_timeout_retry_header,
            rate_limits: host.rate_limits.as_slice().into(),
            metadata: host.metadata.clone(),
            buffer: BufferLimit { body: host.request_body_buffer_limit, per_request: host.per_request_buffer_limit_bytes },
            other: (!virtual_clusters.is_empty()).then(|| Box::new(cluster("other", Box::default()))),
            virtual_clusters: virtual_clusters.into(),
        }))
    }
    /// The virtual cluster that counts `request`; none if the virtual host has none.
    pub fn virtual_cluster(&self, request: &RequestHead) -> Option<&VirtualCluster> {
        let found = self.virtual_clusters.iter().find(|c| HeaderMatcher::all_match(&c.headers, request));
        found.or(self.other.as_deref())
    }
    /// `RouteConfiguration.metadata`.
    pub fn table_metadata(&self) -> Option<&Metadata> {
        self.table.metadata.as_ref()
    }
}
