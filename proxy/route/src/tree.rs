//! Virtual hosts whose routes hang in an xDS match tree (`VirtualHost.matcher`). Actions are `envoy.config.route.v3.Route` and
//! `envoy.config.route.v3.RouteList`.

use crate::cx::RouteCx;
use crate::route::{Parents, RouteNode};
use crate::table::compile_routes;
use nuncio_core::diag::At;
use nuncio_matcher::MatchTree;
use nuncio_proto::Name;
use nuncio_proto::envoy::config::route::v3 as proto;
use nuncio_proto::typed;
use nuncio_proto::xds::core::v3::TypedExtensionConfig;
use nuncio_proto::xds::r#type::matcher::v3::Matcher;

/// Compiles the match tree of a virtual host. Its actions are the routes to try, in order.
pub(crate) fn compile(matcher: &Matcher, parents: &Parents<'_>, at: &At<'_>, cx: &mut RouteCx<'_>) -> Option<MatchTree<Vec<RouteNode>>> {
    // Routes of a tree are not checked for unknown clusters, as in Envoy.
    let RouteCx { clusters, registry, server, scope, direction, report, .. } = cx;
    let (clusters, registry, server, scope, direction) = (*clusters, *registry, *server, *scope, *direction);
    MatchTree::compile(matcher, at, report, &mut |action, at, report| {
        let mut cx = RouteCx { clusters, registry, server, scope, direction, validate_clusters: false, report };
        routes(action, parents, at, &mut cx)
    })
}

fn routes(action: &TypedExtensionConfig, parents: &Parents<'_>, at: &At<'_>, cx: &mut RouteCx<'_>) -> Option<Vec<RouteNode>> {
    let at = at.field("typed_config");
    let Some(any) = &action.typed_config else {
        return cx.refuse(&at, "nothing", "give a Route or a RouteList");
    };
    let name = any.type_url.rsplit('/').next().unwrap_or_default();
    let list = if name == proto::RouteList::full_name() {
        typed::unpack_as::<proto::RouteList>(any).map(|list| list.routes)
    } else {
        typed::unpack_as::<proto::Route>(any).map(|route| vec![route])
    };
    match list {
        Ok(list) => compile_routes(&list, parents, &at, cx),
        Err(why) => cx.refuse(&at, why, "give an envoy.config.route.v3.Route or RouteList"),
    }
}
