//! Tests of what the filter does before a name is resolved.

use super::*;
use http::{HeaderName, HeaderValue, Method};
use nuncio_core::RequestHead;
use nuncio_core::test_kit::{self as kit, FakeCluster, FakeRoute};
use nuncio_proto::envoy::extensions::common::dynamic_forward_proxy::v3::DnsCacheConfig;

fn config() -> proto::FilterConfig {
    let cache = DnsCacheConfig { name: "c".into(), ..Default::default() };
    let source = proto::filter_config::ImplementationSpecifier::DnsCacheConfig(cache);
    proto::FilterConfig { implementation_specifier: Some(source), ..Default::default() }
}

fn route_of(rewrite: proto::per_route_config::HostRewriteSpecifier) -> PerRoute {
    let server = kit::server(Default::default());
    let proto = proto::PerRouteConfig { host_rewrite_specifier: Some(rewrite) };
    let any = kit::compile_route(&Factory, &proto, &server).unwrap();
    Arc::into_inner(any.downcast::<PerRoute>().unwrap()).unwrap()
}

#[test]
fn routes_rewrite_the_host() {
    use proto::per_route_config::HostRewriteSpecifier as Rewrite;
    let mut ex = kit::exchange(RequestHead::new(Method::GET, "first.test", "/"));
    rewrite(&mut ex, &route_of(Rewrite::HostRewriteHeader("x-to".into())));
    assert_eq!(ex.request.authority.as_str(), "first.test");
    for value in ["second.test", "third.test"] {
        ex.request.headers.append(HeaderName::from_static("x-to"), HeaderValue::from_static(value));
    }
    rewrite(&mut ex, &route_of(Rewrite::HostRewriteHeader("x-to".into())));
    assert_eq!(ex.request.authority.as_str(), "second.test");
    rewrite(&mut ex, &route_of(Rewrite::HostRewriteLiteral("fourth.test:80".into())));
    assert_eq!(ex.request.authority.as_str(), "fourth.test:80");
}

#[tokio::test]
async fn other_clusters_are_let_through() {
    let server = kit::server(Default::default());
    let filter = kit::compile(&Factory, &config(), &server).unwrap();
    let mut ex = kit::exchange(RequestHead::new(Method::GET, "nowhere.test", "/"));
    assert!(kit::request(&*filter, "d", &mut ex).await.is_none());
    ex.route = Some(Arc::new(FakeRoute::new("r", "c")));
    kit::send_to(&mut ex, FakeCluster::new("c"), None);
    assert!(kit::request(&*filter, "d", &mut ex).await.is_none());
}

#[test]
fn wrong_configurations_are_refused() {
    let server = kit::server(Default::default());
    let refused = |config: &proto::FilterConfig| kit::compile(&Factory, config, &server).unwrap_err();
    assert!(refused(&proto::FilterConfig::default()).contains("dns_cache_config"));
    let zero = proto::SubClusterConfig { cluster_init_timeout: Some(Default::default()) };
    let source = proto::filter_config::ImplementationSpecifier::SubClusterConfig(zero);
    assert!(refused(&proto::FilterConfig { implementation_specifier: Some(source), ..Default::default() }).contains("above zero"));
    // One cache, one configuration.
    let _kept = kit::compile(&Factory, &config(), &server).unwrap();
    let cache = DnsCacheConfig { name: "c".into(), max_hosts: Some(5), ..Default::default() };
    let source = proto::filter_config::ImplementationSpecifier::DnsCacheConfig(cache);
    assert!(refused(&proto::FilterConfig { implementation_specifier: Some(source), ..Default::default() }).contains("other settings"));
}
