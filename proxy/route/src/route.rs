//! One route of a virtual host: the conditions of its match, and its entries. Source: Route, RouteMatch.

use crate::action::Action;
use crate::cx::RouteCx;
use crate::entry::{Decorator, Route, RouteEntry, RouteTracing, StatsCell, Weighted};
use crate::filters::{self, FilterConfigs};
use crate::forward::{Forward, HedgePolicy, Inherited};
use crate::headers::HeaderParser;
use crate::mirror::MirrorPolicy;
use crate::path::{PathCondition, RequestPath};
use crate::redirect::Redirect;
use crate::refresh::Alternatives;
use crate::respond::DirectResponse;
use crate::retry::RetryPolicy;
use crate::specifier::{Plugins, specifier};
use crate::table::RouteInput;
use crate::target::{ClusterRef, WeightedChoice};
use crate::vhost::{BufferLimit, VirtualHostInfo};
use nuncio_core::RequestHead;
use nuncio_core::diag::At;
use nuncio_matcher::{
    CookieMatcher, FilterStateMatcher, Fraction, HeaderMatcher, MetadataMatcher, QueryParameterMatcher, RuntimeFraction, compile_all,
};
use nuncio_proto::Struct;
use nuncio_proto::envoy::config::core::v3::{HeaderValueOption, Metadata};
use nuncio_proto::envoy::config::route::v3 as proto;
use nuncio_proto::envoy::config::route::v3::route_action::ClusterSpecifier;
use nuncio_proto::envoy::config::route::v3::weighted_cluster::ClusterWeight;
use nuncio_proto::envoy::r#type::v3::FractionalPercent;
use std::sync::{Arc, OnceLock};

/// Header mutations of one level; none if there is nothing to do.
#[derive(Clone, Debug, Default)]
pub(crate) struct LevelHeaders {
    pub request: Option<Arc<HeaderParser>>,
    pub response: Option<Arc<HeaderParser>>,
}

/// The four fields that every level has.
pub(crate) struct HeaderFields<'a> {
    pub request_add: &'a [HeaderValueOption],
    pub request_remove: &'a [String],
    pub response_add: &'a [HeaderValueOption],
    pub response_remove: &'a [String],
}

/// The fields of a message that has them under their usual names.
macro_rules! header_fields {
    ($message:expr) => {
        $crate::route::HeaderFields {
            request_add: &$message.request_headers_to_add,
            request_remove: &$message.request_headers_to_remove,
            response_add: &$message.response_headers_to_add,
            response_remove: &$message.response_headers_to_remove,
        }
    };
}
pub(crate) use header_fields;

impl LevelHeaders {
    /// Compiles the header mutations of one level.
    pub fn compile(fields: &HeaderFields<'_>, at: &At<'_>, cx: &mut RouteCx<'_>) -> Option<Self> {
        let mut parser = |add, add_name, remove, remove_name| {
            let parser = HeaderParser::compile(add, &at.field(add_name), remove, &at.field(remove_name), cx.report)?;
            Some((!parser.is_empty()).then(|| Arc::new(parser)))
        };
        let request = parser(fields.request_add, "request_headers_to_add", fields.request_remove, "request_headers_to_remove");
        let response = parser(fields.response_add, "response_headers_to_add", fields.response_remove, "response_headers_to_remove");
        Some(Self { request: request?, response: response? })
    }
}

/// What routes take over from their virtual host and table.
pub(crate) struct Parents<'a> {
    pub vhost: &'a Arc<VirtualHostInfo>,
    pub vhost_headers: &'a LevelHeaders,
    pub table_headers: &'a LevelHeaders,
    pub filters: &'a FilterConfigs,
    pub retry: &'a Option<Arc<RetryPolicy>>,
    pub hedge: &'a Option<Arc<HedgePolicy>>,
    pub mirrors: &'a Arc<[Arc<MirrorPolicy>]>,
    pub plugins: &'a Plugins,
    pub max_direct_response: u32,
}

/// A route of a virtual host.
#[derive(Debug)]
pub(crate) struct RouteNode {
    pub path: PathCondition,
    conditions: Option<Box<Conditions>>,
    entries: Box<[Arc<RouteEntry>]>,
    /// How one of several entries is chosen.
    choice: Option<WeightedChoice>,
}

/// Conditions apart from the path. Most routes have none.
#[derive(Debug)]
struct Conditions {
    fraction: Option<RuntimeFraction>,
    grpc: bool,
    headers: Box<[HeaderMatcher]>,
    query: Box<[QueryParameterMatcher]>,
    cookies: Box<[CookieMatcher]>,
    tls_presented: Option<bool>,
    tls_validated: Option<bool>,
    metadata: Box<[MetadataMatcher]>,
    filter_state: Box<[FilterStateMatcher]>,
}

impl Conditions {
    /// The outer `None` means refused, the inner one that there are no conditions.
    fn compile(matched: &proto::RouteMatch, at: &At<'_>, cx: &mut RouteCx<'_>) -> Option<Option<Box<Self>>> {
        let fraction = match &matched.runtime_fraction {
            Some(fraction) => Some(RuntimeFraction::compile(fraction, &at.field("runtime_fraction"), cx.report)?),
            None => None,
        };
        let tls = matched.tls_context.as_ref();
        let all = Self {
            fraction,
            grpc: matched.grpc.is_some(),
            headers: HeaderMatcher::compile_list(&matched.headers, &at.field("headers"), cx.report)?,
            query: QueryParameterMatcher::compile_list(&matched.query_parameters, &at.field("query_parameters"), cx.report)?,
            cookies: CookieMatcher::compile_list(&matched.cookies, &at.field("cookies"), cx.report)?,
            tls_presented: tls.and_then(|t| t.presented),
            tls_validated: tls.and_then(|t| t.validated),
            metadata: compile_all(&matched.dynamic_metadata, &at.field("dynamic_metadata"), cx.report, MetadataMatcher::compile)?,
            filter_state: compile_all(&matched.filter_state, &at.field("filter_state"), cx.report, FilterStateMatcher::compile)?,
        };
        let needed = all.fraction.is_some()
            || all.grpc
            || !all.headers.is_empty()
            || !all.query.is_empty()
            || !all.cookies.is_empty()
            || all.tls_presented.is_some()
            || all.tls_validated.is_some()
            || !all.metadata.is_empty()
            || !all.filter_state.is_empty();
        Some(needed.then(|| Box::new(all)))
    }
    fn match_request(&self, request: &RequestHead, input: &RouteInput<'_>) -> bool {
        let info = input.info;
        let tls = info.connection.tls.as_ref();
        let presented = || tls.is_some_and(|t| !t.peer_chain.is_empty());
        let validated = || tls.is_some_and(|t| t.peer_validated);
        self.fraction.as_ref().is_none_or(|f| f.contains(input.runtime, input.random))
            && (!self.grpc || request.is_grpc())
            && HeaderMatcher::all_match(&self.headers, request)
            && QueryParameterMatcher::all_match(&self.query, request)
            && self.cookies.iter().all(|c| c.matches(&request.headers))
            && self.tls_presented.is_none_or(|wanted| wanted == presented())
            && self.tls_validated.is_none_or(|wanted| wanted == validated())
            && self.metadata.iter().all(|m| m.matches(info))
            && self.filter_state.iter().all(|m| m.matches(info))
    }
}

impl RouteNode {
    /// Compiles one route.
    #[allow(deprecated)]
    pub fn compile(route: &proto::Route, parents: &Parents<'_>, at: &At<'_>, cx: &mut RouteCx<'_>) -> Option<Self> {
        if !route.route_specifiers.is_empty() {
            cx.report.unsupported(&at.field("route_specifiers"), "a route specifier extension");
            return None;
        }
        let at_match = at.field("match");
        let Some(matched) = &route.r#match else {
            return cx.refuse(&at_match, "nothing", "say which requests the route is for");
        };
        let path = PathCondition::compile(matched, &at_match, cx)?;
        let conditions = Conditions::compile(matched, &at_match, cx)?;
        let headers = LevelHeaders::compile(&header_fields!(route), at, cx)?;
        let (action, forwarded) = action(route, &path, parents, at, cx)?;
        let cors = forwarded.and_then(|(action, _)| action.cors.as_ref());
        let filters = parents.filters.with(filters::compile(&route.typed_per_filter_config, cors, at, cx)?);
        let stats = (!route.stat_prefix.is_empty()).then(|| {
            let name = format!("vhost.{}.route.{}.", parents.vhost.name, route.stat_prefix);
            (cx.scope.scope(&name), StatsCell::default())
        });
        let shared = Arc::new(Route {
            name: route.name.as_str().into(),
            vhost: parents.vhost.clone(),
            action,
            metadata: route.metadata.clone(),
            decorator: decorator(route.decorator.as_ref(), &at.field("decorator"), cx)?,
            tracing: tracing(route.tracing.as_ref(), &at.field("tracing"), cx)?,
            buffer: BufferLimit { body: route.request_body_buffer_limit, per_request: route.per_request_buffer_limit_bytes },
            stats,
            alternatives: OnceLock::new(),
        });
        let build = Build { route: shared, parents, headers, filters };
        let (entries, choice) = match forwarded {
            Some((action, field)) => targets(action, &build, &at.field(field), cx)?,
            None => ([Arc::new(build.entry(None, None))].into(), None),
        };
        Some(Self { path, conditions, entries, choice })
    }
    /// The entry for a request that satisfies path and conditions.
    pub fn matches(&self, request: &RequestHead, path: &RequestPath<'_>, input: &RouteInput<'_>) -> bool {
        self.path.matches(path) && self.conditions.as_ref().is_none_or(|c| c.match_request(request, input))
    }
    /// The entry of a matched request; none if runtime weights leave no cluster.
    pub fn entry(&self, request: &RequestHead, input: &RouteInput<'_>) -> Option<&Arc<RouteEntry>> {
        let first = self.entries.first()?;
        let Some(choice) = &self.choice else { return Some(first) };
        let hash = || first.forward().and_then(|f| f.hash_policy()).and_then(|p| p.hash(request, input.info).hash);
        self.entries.get(choice.pick(request, input.runtime, input.random, hash)?)
    }
}

/// A route action and the field that holds it, for routes that have clusters.
type Forwarded<'a> = Option<(&'a proto::RouteAction, &'static str)>;

fn action<'a>(
    route: &'a proto::Route,
    path: &PathCondition,
    parents: &Parents<'_>,
    at: &At<'_>,
    cx: &mut RouteCx<'_>,
) -> Option<(Action, Forwarded<'a>)> {
    use proto::route::Action as A;
    Some(match &route.action {
        Some(A::Route(action)) => {
            let inherited = Inherited { retry: parents.retry, hedge: parents.hedge, mirrors: parents.mirrors };
            let forward = Forward::compile(action, path, &inherited, &at.field("route"), cx)?;
            (Action::Forward(Box::new(forward)), Some((action, "route")))
        }
        Some(A::Redirect(redirect)) => (Action::Redirect(Redirect::compile(redirect, path, &at.field("redirect"), cx.report)?), None),
        Some(A::DirectResponse(direct)) => {
            let direct = DirectResponse::compile(direct, parents.max_direct_response, &at.field("direct_response"), cx)?;
            (Action::DirectResponse(direct), None)
        }
        Some(A::NonForwardingAction(_)) => (Action::NonForwarding, None),
        Some(A::FilterAction(_)) => {
            cx.report.unsupported(&at.field("filter_action"), "filter_action");
            return None;
        }
        None => return cx.refuse(at, "no action", "set route, redirect, direct_response or non_forwarding_action"),
    })
}

/// Everything that the entries of one route are made of.
struct Build<'a> {
    route: Arc<Route>,
    parents: &'a Parents<'a>,
    headers: LevelHeaders,
    filters: FilterConfigs,
}

impl Build<'_> {
    fn entry(&self, cluster: Option<ClusterRef>, metadata_match: Option<Struct>) -> RouteEntry {
        RouteEntry {
            cluster,
            weighted: None,
            request_headers: self.ordered(|l| l.request.as_ref()),
            response_headers: self.ordered(|l| l.response.as_ref()),
            filters: self.filters.clone(),
            metadata_match,
            route: self.route.clone(),
        }
    }
    /// The parsers of route, virtual host and table; the last one to run wins.
    fn ordered(&self, part: fn(&LevelHeaders) -> Option<&Arc<HeaderParser>>) -> Box<[Arc<HeaderParser>]> {
        let levels = [&self.headers, self.parents.vhost_headers, self.parents.table_headers];
        let mut parsers: Vec<_> = levels.into_iter().filter_map(|l| part(l).cloned()).collect();
        if self.route.vhost.table.specific_headers_win {
            parsers.reverse();
        }
        parsers.into()
    }
}

impl Route {
    /// Whether retries ask for the cluster again.
    fn refreshes_cluster(&self) -> bool {
        match &self.action {
            Action::Forward(forward) => forward.retry_policy().is_some_and(|policy| policy.refresh_cluster_on_retry),
            _ => false,
        }
    }
}

type Targets = (Box<[Arc<RouteEntry>]>, Option<WeightedChoice>);

fn targets(action: &proto::RouteAction, build: &Build<'_>, at: &At<'_>, cx: &mut RouteCx<'_>) -> Option<Targets> {
    let metadata_match = lb_metadata(action.metadata_match.as_ref());
    let single = |cluster| -> Targets { ([Arc::new(build.entry(Some(cluster), metadata_match.cloned()))].into(), None) };
    match &action.cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) => Some(single(ClusterRef::named(name, &at.field("cluster"), cx)?)),
        Some(ClusterSpecifier::ClusterHeader(name)) => Some(single(ClusterRef::header(name, &at.field("cluster_header"), cx)?)),
        Some(ClusterSpecifier::WeightedClusters(weighted)) => {
            let at = at.field("weighted_clusters");
            let choice = WeightedChoice::compile(weighted, &at, cx)?;
            let mut entries = Vec::with_capacity(weighted.clusters.len());
            for (i, cluster) in weighted.clusters.iter().enumerate() {
                let at = at.field("clusters");
                entries.push(Arc::new(weighted_entry(cluster, metadata_match, build, &at.index(i), cx)?));
            }
            if build.route.refreshes_cluster() {
                let clusters = entries.iter().zip(&weighted.clusters);
                let all = clusters.filter_map(|(e, c)| Some((c.weight.unwrap_or(0), e.cluster.clone()?))).collect();
                // Nobody else sets it.
                let _first = build.route.alternatives.set(Alternatives(all));
            }
            Some((entries.into(), Some(choice)))
        }
        Some(ClusterSpecifier::ClusterSpecifierPlugin(name)) => {
            Some(single(build.parents.plugins.get(name, &at.field("cluster_specifier_plugin"), cx)?))
        }
        Some(ClusterSpecifier::InlineClusterSpecifierPlugin(plugin)) => {
            Some(single(specifier(plugin, &at.field("inline_cluster_specifier_plugin"), cx)?))
        }
        None => cx.refuse(at, "no cluster_specifier", "set cluster, cluster_header or weighted_clusters"),
    }
}

fn weighted_entry(
    weight: &ClusterWeight,
    route_metadata: Option<&Struct>,
    build: &Build<'_>,
    at: &At<'_>,
    cx: &mut RouteCx<'_>,
) -> Option<RouteEntry> {
    use proto::weighted_cluster::cluster_weight::HostRewriteSpecifier;
    let cluster = match (weight.name.as_str(), weight.cluster_header.as_str()) {
        ("", "") => return cx.refuse(at, "neither name nor cluster_header", "set one of them"),
        (name, "") => ClusterRef::named(name, &at.field("name"), cx)?,
        ("", header) => ClusterRef::header(header, &at.field("cluster_header"), cx)?,
        _ => return cx.refuse(at, "name and cluster_header", "set one of them"),
    };
    let headers = LevelHeaders::compile(&header_fields!(weight), at, cx)?;
    let filters = build.filters.with(filters::compile(&weight.typed_per_filter_config, None, at, cx)?);
    let host = match &weight.host_rewrite_specifier {
        Some(HostRewriteSpecifier::HostRewriteLiteral(host)) => {
            crate::rewrite::literal(host, &at.field("host_rewrite_literal"), cx.report)?
        }
        None => None,
    };
    let metadata_match = match (route_metadata, lb_metadata(weight.metadata_match.as_ref())) {
        (None, own) => own.cloned(),
        (route, None) => route.cloned(),
        (Some(route), Some(own)) => {
            let mut merged = route.clone();
            merged.fields.extend(own.fields.clone());
            Some(merged)
        }
    };
    let weighted =
        (host.is_some() || headers.request.is_some() || headers.response.is_some()).then(|| Box::new(Weighted { headers, host }));
    Some(RouteEntry { weighted, filters, ..build.entry(Some(cluster), metadata_match) })
}

/// Subset load balancing looks at this namespace only.
fn lb_metadata(metadata: Option<&Metadata>) -> Option<&Struct> {
    nuncio_core::views::filter_metadata(metadata, "envoy.lb")
}

fn decorator(decorator: Option<&proto::Decorator>, at: &At<'_>, cx: &mut RouteCx<'_>) -> Option<Option<Decorator>> {
    let Some(decorator) = decorator else { return Some(None) };
    if decorator.operation.is_empty() {
        return cx.refuse(&at.field("operation"), "nothing", "name the operation");
    }
    Some(Some(Decorator { operation: decorator.operation.as_str().into(), propagate: decorator.propagate.unwrap_or(true) }))
}

fn tracing(tracing: Option<&proto::Tracing>, at: &At<'_>, cx: &mut RouteCx<'_>) -> Option<Option<RouteTracing>> {
    let Some(tracing) = tracing else { return Some(None) };
    let mut fraction = |fraction: Option<&FractionalPercent>, name| match fraction {
        Some(fraction) => Fraction::compile(fraction, &at.field(name), cx.report),
        None => Some(Fraction::ALWAYS),
    };
    Some(Some(RouteTracing {
        client_sampling: fraction(tracing.client_sampling.as_ref(), "client_sampling")?,
        random_sampling: fraction(tracing.random_sampling.as_ref(), "random_sampling")?,
        overall_sampling: fraction(tracing.overall_sampling.as_ref(), "overall_sampling")?,
        custom_tags: tracing.custom_tags.as_slice().into(),
        operation: tracing.operation.as_str().into(),
        upstream_operation: tracing.upstream_operation.as_str().into(),
    }))
}

/// The entry that answers what `require_tls` redirects.
pub(crate) fn tls_redirect(parents: &Parents<'_>) -> Arc<RouteEntry> {
    let route = Arc::new(Route {
        name: "".into(),
        vhost: parents.vhost.clone(),
        action: Action::Redirect(Redirect::tls()),
        metadata: None,
        decorator: None,
        tracing: None,
        buffer: BufferLimit::default(),
        stats: None,
        alternatives: OnceLock::new(),
    });
    Arc::new(RouteEntry {
        route,
        cluster: None,
        weighted: None,
        request_headers: Box::default(),
        response_headers: Box::default(),
        filters: FilterConfigs::default(),
        metadata_match: None,
    })
}
