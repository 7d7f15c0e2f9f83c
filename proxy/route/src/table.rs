//! The route table: domains to virtual hosts to routes. Source: RouteConfiguration, VirtualHost; Envoy's `RouteMatcher`.

use crate::cx::RouteCx;
use crate::domains::{DomainIndex, split_port};
use crate::entry::RouteEntry;
use crate::filters::{self, FilterConfigs};
use crate::forward::HedgePolicy;
use crate::index::RouteIndex;
use crate::mirror::MirrorPolicy;
use crate::path::RequestPath;
use crate::redirect::{forwarded_proto, is_internal};
use crate::retry::RetryPolicy;
use crate::route::{LevelHeaders, Parents, RouteNode, header_fields, tls_redirect};
use crate::specifier::Plugins;
use crate::vhost::{TableInfo, VirtualHostInfo};
use http::HeaderName;
use nuncio_core::diag::At;
use nuncio_core::registry::Runtime;
use nuncio_core::{RequestHead, StreamInfo};
use nuncio_matcher::{MatchData, MatchTree};
use nuncio_proto::envoy::config::route::v3 as proto;
use nuncio_proto::envoy::config::route::v3::virtual_host::TlsRequirementType;
use std::sync::Arc;

/// Envoy's default of `max_direct_response_body_size_bytes`.
const MAX_DIRECT_RESPONSE: u32 = 4096;

/// A longer host, a domain name and a port with room to spare, is not asked for by VHDS.
const MAX_HOST: usize = 300;

/// A compiled route configuration.
#[derive(Debug)]
pub struct RouteTable {
    info: Arc<TableInfo>,
    domains: DomainIndex,
    hosts: Box<[Host]>,
    ignore_port: bool,
    /// Header that stands for the host (`vhost_header`).
    vhost_header: Option<HeaderName>,
    /// Virtual hosts may be added by VHDS.
    grows: bool,
    internal_only: Box<[HeaderName]>,
}

/// What matching needs to know besides the request.
pub struct RouteInput<'a> {
    pub info: &'a StreamInfo,
    /// The stream's random number: the same each time one request is matched.
    pub random: u64,
    pub runtime: &'a Runtime,
}

/// What a request was matched to.
#[derive(Clone, Debug)]
pub enum RouteMatch {
    Route(Arc<RouteEntry>),
    /// No virtual host, or none of its routes: 404 with flag NR.
    NotFound,
}

/// One virtual host.
#[derive(Debug)]
struct Host {
    info: Arc<VirtualHostInfo>,
    tls: TlsRequirementType,
    tls_redirect: Option<Arc<RouteEntry>>,
    routes: Routes,
}

#[derive(Debug)]
enum Routes {
    List { nodes: Box<[RouteNode]>, index: Option<RouteIndex> },
    Tree(MatchTree<Vec<RouteNode>>),
}

impl RouteTable {
    /// Compiles a route configuration found at `at`. Anything wrong refuses the whole table; the report says what.
    pub fn compile(config: &proto::RouteConfiguration, at: &At<'_>, cx: &mut RouteCx<'_>) -> Option<Arc<Self>> {
        let refused_before = cx.report.errors();
        let inherited_validation = cx.validate_clusters;
        cx.validate_clusters = config.validate_clusters.unwrap_or(inherited_validation);
        let table = Self::build(config, at, cx);
        cx.validate_clusters = inherited_validation;
        table.filter(|_| cx.report.errors() == refused_before).map(Arc::new)
    }
    fn build(config: &proto::RouteConfiguration, at: &At<'_>, cx: &mut RouteCx<'_>) -> Option<Self> {
        if !config.route_specifiers.is_empty() {
            cx.report.unsupported(&at.field("route_specifiers"), "a route specifier extension");
            return None;
        }
        let info = Arc::new(TableInfo {
            name: config.name.as_str().into(),
            metadata: config.metadata.clone(),
            clusters: cx.clusters.clone(),
            ignore_path_parameters: config.ignore_path_parameters_in_path_matching,
            specific_headers_win: config.most_specific_header_mutations_wins,
        });
        let shared = TableLevel {
            headers: LevelHeaders::compile(&header_fields!(config), at, cx)?,
            filters: FilterConfigs::default().with(filters::compile(&config.typed_per_filter_config, None, at, cx)?),
            mirrors: MirrorPolicy::compile_list(&config.request_mirror_policies, &at.field("request_mirror_policies"), cx)?,
            plugins: Plugins::compile(&config.cluster_specifier_plugins, &at.field("cluster_specifier_plugins"), cx)?,
            max_direct_response: config.max_direct_response_body_size_bytes.unwrap_or(MAX_DIRECT_RESPONSE),
            info,
        };
        let mut domains = DomainIndex::default();
        let mut hosts = Vec::with_capacity(config.virtual_hosts.len());
        let at_hosts = at.field("virtual_hosts");
        for (i, host) in config.virtual_hosts.iter().enumerate() {
            let at = at_hosts.index(i);
            let at_domains = at.field("domains");
            if host.domains.is_empty() {
                return cx.refuse(&at_domains, "no domains", "give at least one");
            }
            for (d, domain) in host.domains.iter().enumerate() {
                domains.insert(domain, u32::try_from(i).unwrap_or(u32::MAX), &at_domains.index(d), cx)?;
            }
            // All virtual hosts are looked at, so that one report names everything that is wrong.
            hosts.extend(Host::compile(host, &shared, &at, cx));
        }
        let vhost_header = match config.vhost_header.as_str() {
            "" => None,
            name => match HeaderName::from_bytes(name.as_bytes()) {
                Ok(name) => Some(name),
                Err(_) => return cx.refuse(&at.field("vhost_header"), format!("\"{name}\""), "give a valid header name"),
            },
        };
        let mut internal_only = Vec::with_capacity(config.internal_only_headers.len());
        for (i, name) in config.internal_only_headers.iter().enumerate() {
            match HeaderName::from_bytes(name.as_bytes()) {
                Ok(name) => internal_only.push(name),
                Err(_) => return cx.refuse(&at.field("internal_only_headers").index(i), format!("{name:?}"), "give a valid header name"),
            }
        }
        Some(Self {
            info: shared.info,
            domains,
            hosts: hosts.into(),
            ignore_port: config.ignore_port_in_host_matching,
            vhost_header,
            grows: config.vhds.is_some(),
            internal_only: internal_only.into(),
        })
    }
    /// `RouteConfiguration.name`.
    pub fn name(&self) -> &Arc<str> {
        &self.info.name
    }
    /// Matches a request. Allocates nothing in the common case.
    pub fn route(&self, request: &RequestHead, input: &RouteInput<'_>) -> RouteMatch {
        match self.find(request, input) {
            Some(entry) => RouteMatch::Route(entry.clone()),
            None => RouteMatch::NotFound,
        }
    }
    /// The virtual host that `request` belongs to.
    pub fn virtual_host(&self, request: &RequestHead) -> Option<&Arc<VirtualHostInfo>> {
        self.host(request).map(|host| &host.info)
    }
    /// Headers that only internal requests may carry (`internal_only_headers`).
    pub fn internal_only_headers(&self) -> &[HeaderName] {
        &self.internal_only
    }
    /// The host, in lower case, whose virtual host VHDS may know and this table does not have.
    pub fn missing_host(&self, request: &RequestHead) -> Option<String> {
        let host = request.authority.as_str();
        (self.grows && !host.is_empty() && host.len() <= MAX_HOST && self.host(request).is_none()).then(|| host.to_ascii_lowercase())
    }
    fn host(&self, request: &RequestHead) -> Option<&Host> {
        let host = match &self.vhost_header {
            Some(name) => request.headers.get_str(name).unwrap_or_default(),
            None => request.authority.as_str(),
        };
        let host = if self.ignore_port { split_port(host).0 } else { host };
        self.hosts.get(self.domains.find(host)? as usize)
    }
    fn find(&self, request: &RequestHead, input: &RouteInput<'_>) -> Option<&Arc<RouteEntry>> {
        let host = self.host(request)?;
        if let Some(redirect) = &host.tls_redirect {
            let exempt = host.tls == TlsRequirementType::ExternalOnly && is_internal(request);
            if forwarded_proto(request) != "https" && !exempt {
                return Some(redirect);
            }
        }
        let path = RequestPath::new(request, self.info.ignore_path_parameters);
        match &host.routes {
            Routes::List { nodes, index: None } => first(nodes.iter(), request, &path, input),
            Routes::List { nodes, index: Some(index) } => {
                first(index.candidates(&path.bare).filter_map(|i| nodes.get(i as usize)), request, &path, input)
            }
            Routes::Tree(tree) => first(tree.find(&MatchData::request(request, input.info))?.iter(), request, &path, input),
        }
    }
}

/// The entry of the first route that matches.
fn first<'a>(
    mut nodes: impl Iterator<Item = &'a RouteNode>,
    request: &RequestHead,
    path: &RequestPath<'_>,
    input: &RouteInput<'_>,
) -> Option<&'a Arc<RouteEntry>> {
    nodes.find(|node| node.matches(request, path, input))?.entry(request, input)
}

/// What a table gives to its virtual hosts.
struct TableLevel {
    info: Arc<TableInfo>,
    headers: LevelHeaders,
    filters: FilterConfigs,
    mirrors: Arc<[Arc<MirrorPolicy>]>,
    plugins: Plugins,
    max_direct_response: u32,
}

impl Host {
    fn compile(host: &proto::VirtualHost, table: &TableLevel, at: &At<'_>, cx: &mut RouteCx<'_>) -> Option<Self> {
        if !host.route_specifiers.is_empty() {
            cx.report.unsupported(&at.field("route_specifiers"), "a route specifier extension");
            return None;
        }
        if host.retry_policy_typed_config.is_some() {
            cx.report.unsupported(&at.field("retry_policy_typed_config"), "a retry policy extension");
            return None;
        }
        if host.matcher.is_some() && !host.routes.is_empty() {
            return cx.refuse(&at.field("matcher"), "matcher beside routes", "keep one of them");
        }
        let Ok(tls) = TlsRequirementType::try_from(host.require_tls) else {
            return cx.refuse(&at.field("require_tls"), host.require_tls.to_string(), "use NONE, EXTERNAL_ONLY or ALL");
        };
        let info = VirtualHostInfo::compile(host, &table.info, at, cx)?;
        let headers = LevelHeaders::compile(&header_fields!(host), at, cx)?;
        #[allow(deprecated)]
        let cors = host.cors.as_ref();
        let filters = table.filters.with(filters::compile(&host.typed_per_filter_config, cors, at, cx)?);
        let retry = match &host.retry_policy {
            Some(policy) => Some(RetryPolicy::compile(policy, &at.field("retry_policy"), cx)?),
            None => None,
        };
        let hedge = match &host.hedge_policy {
            Some(policy) => Some(HedgePolicy::compile(policy, &at.field("hedge_policy"), cx)?),
            None => None,
        };
        let mirrors = match host.request_mirror_policies.as_slice() {
            [] => table.mirrors.clone(),
            policies => MirrorPolicy::compile_list(policies, &at.field("request_mirror_policies"), cx)?,
        };
        let parents = Parents {
            vhost: &info,
            vhost_headers: &headers,
            table_headers: &table.headers,
            filters: &filters,
            retry: &retry,
            hedge: &hedge,
            mirrors: &mirrors,
            plugins: &table.plugins,
            max_direct_response: table.max_direct_response,
        };
        let routes = match &host.matcher {
            Some(matcher) => Routes::Tree(crate::tree::compile(matcher, &parents, &at.field("matcher"), cx)?),
            None => {
                let nodes = compile_routes(&host.routes, &parents, &at.field("routes"), cx)?;
                Routes::List { index: RouteIndex::new(nodes.iter().map(|n| &n.path)), nodes: nodes.into() }
            }
        };
        let tls_redirect = (tls != TlsRequirementType::None).then(|| tls_redirect(&parents));
        Some(Self { tls, tls_redirect, routes, info })
    }
}

/// Compiles every route, even after one that is refused.
pub(crate) fn compile_routes(routes: &[proto::Route], parents: &Parents<'_>, at: &At<'_>, cx: &mut RouteCx<'_>) -> Option<Vec<RouteNode>> {
    let nodes: Vec<_> = routes.iter().enumerate().filter_map(|(i, route)| RouteNode::compile(route, parents, &at.index(i), cx)).collect();
    (nodes.len() == routes.len()).then_some(nodes)
}
