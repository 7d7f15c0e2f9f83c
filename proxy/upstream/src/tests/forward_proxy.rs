//! The dynamic forward proxy: names that come, change and go.

use super::*;
use crate::forward_proxy::{CacheEntry, DnsCache, DnsCaches, Lookup, SubLookup, sub_cluster};
use nuncio_core::diag::At;
use nuncio_proto::envoy::extensions::common::dynamic_forward_proxy::v3::DnsCacheConfig;

const CACHE: &str = "name: c, dns_lookup_family: V4_ONLY";

fn yaml(cache: &str, more: &str) -> String {
    let config = format!("'@type': type.googleapis.com/envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig, {cache}");
    format!(
        "name: dfp\nlb_policy: CLUSTER_PROVIDED\n{more}\ncluster_type: {{name: envoy.clusters.dynamic_forward_proxy, typed_config: {{{config}}}}}"
    )
}

fn with_cache(cache: &str) -> String {
    yaml(&format!("dns_cache_config: {{{cache}}}"), "")
}

/// The manager, the cluster, and the cache that a filter with the same configuration has.
fn start(cache: &str) -> (Arc<ClusterManager>, Arc<Cluster>, Arc<DnsCache>) {
    let server = server();
    let manager = manager_of(server.clone(), "{}");
    tokio::task::spawn_local(manager.clone().run());
    let mut report = Report::new();
    manager.apply(&proto(&with_cache(cache)), true, &mut report).unwrap_or_else(|| panic!("{}", report.summary()));
    let config: DnsCacheConfig = parse_text(&format!("{{{cache}}}"), UnknownFields::Refuse).unwrap_or_else(|e| panic!("{e:?}")).value;
    let cache = DnsCaches::of(&server).cache(&config, &server, &At::Root, &mut report).unwrap();
    let cluster = manager.get("dfp").unwrap();
    (manager, cluster, cache)
}

async fn resolved(cache: &Arc<DnsCache>, authority: &str) -> Arc<CacheEntry> {
    match cache.look_up(authority, 80) {
        Lookup::Known(entry) => entry,
        Lookup::Loading(entry) => {
            entry.ready().await;
            entry
        }
        Lookup::Overflow => panic!("overflow"),
    }
}

fn pick(cluster: &Arc<Cluster>, authority: &str) -> Option<String> {
    let request = RequestHead::new(http::Method::GET, authority.to_string(), "/");
    let host = Upstreams::current().pick(cluster, &LbContext { request: Some(&request), ..LbContext::default() })?;
    Some(format!("{} {}", host.address(), host.hostname()))
}

#[test]
fn names_become_hosts() {
    run(async {
        let (_manager, cluster, cache) = start(CACHE);
        assert_eq!(pick(&cluster, "127.0.0.1:8080"), None, "nobody asked for it yet");
        assert!(resolved(&cache, "127.0.0.1:8080").await.address().is_some());
        assert_eq!(pick(&cluster, "127.0.0.1:8080").as_deref(), Some("127.0.0.1:8080 127.0.0.1:8080"));
        resolved(&cache, "127.0.0.2").await;
        assert_eq!(pick(&cluster, "127.0.0.2").as_deref(), Some("127.0.0.2:80 127.0.0.2:80"));
        assert_eq!((cluster.host_count(), cluster.membership().total), (2, 2));
        assert!(matches!(cache.look_up("127.0.0.1:8080", 80), Lookup::Known(_)));
    });
}

#[test]
fn a_later_cluster_has_the_names_of_its_cache() {
    run(async {
        let (manager, _cluster, cache) = start(CACHE);
        resolved(&cache, "127.0.0.1").await;
        let mut second = proto(&with_cache(CACHE));
        second.name = "second".into();
        manager.apply(&second, true, &mut Report::new()).unwrap();
        assert!(pick(&manager.get("second").unwrap(), "127.0.0.1").is_some());
        // A replaced cluster keeps the states of its hosts.
        let id = manager.get("second").unwrap().hosts()[0].id;
        second.per_connection_buffer_limit_bytes = Some(5);
        manager.apply(&second, true, &mut Report::new()).unwrap();
        assert_eq!(manager.get("second").unwrap().hosts()[0].id, id);
    });
}

#[test]
fn too_many_names_are_refused() {
    run(async {
        let (_manager, _cluster, cache) =
            start("name: c, dns_lookup_family: V4_ONLY, max_hosts: 2, dns_cache_circuit_breaker: {max_pending_requests: 1}");
        for n in 1..=2 {
            resolved(&cache, &format!("127.0.0.{n}")).await;
        }
        assert!(matches!(cache.look_up("127.0.0.3", 80), Lookup::Overflow));
        let first = cache.admit();
        assert!(first.is_some() && cache.admit().is_none());
        drop(first);
        assert!(cache.admit().is_some());
    });
}

#[test]
fn unused_names_go() {
    run(async {
        let (_manager, cluster, cache) = start("name: c, dns_lookup_family: V4_ONLY, dns_refresh_rate: 0.02s, host_ttl: 0.05s");
        resolved(&cache, "127.0.0.1").await;
        let host = cluster.hosts()[0].clone();
        for _ in 0..500 {
            if cluster.host_count() == 0 {
                assert!(host.is_removed());
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        panic!("the name stays");
    });
}

#[test]
fn failures_are_told_and_do_not_become_hosts() {
    run(async {
        let (_manager, cluster, cache) = start("name: c, dns_lookup_family: V4_ONLY");
        let entry = resolved(&cache, "[::1]:80").await;
        assert_eq!((entry.address(), entry.failure().as_str()), (None, "address_of_another_family"));
        assert_eq!(cluster.host_count(), 0);
    });
}

#[test]
fn sub_clusters_come_and_go() {
    run(async {
        let manager = manager("{}");
        tokio::task::spawn_local(manager.clone().run());
        let config = yaml("sub_clusters_config: {max_sub_clusters: 1, sub_cluster_ttl: 0.05s}", "dns_lookup_family: V4_ONLY");
        let mut report = Report::new();
        manager.apply(&proto(&config), true, &mut report).unwrap_or_else(|| panic!("{}", report.summary()));
        let cluster = manager.get("dfp").unwrap();
        match sub_cluster(&cluster, "127.0.0.1:8080") {
            Some(SubLookup::Loading(sub)) => sub.ready().await,
            other => panic!("{other:?}"),
        }
        assert!(matches!(sub_cluster(&cluster, "127.0.0.1:8080"), Some(SubLookup::Known)));
        assert!(matches!(sub_cluster(&cluster, "127.0.0.2:8080"), Some(SubLookup::Overflow)));
        assert_eq!(pick(&cluster, "127.0.0.1:8080").as_deref(), Some("127.0.0.1:8080 127.0.0.1"));
        assert!(manager.get("DFPCluster:127.0.0.1:8080").is_some());
        for _ in 0..1000 {
            if manager.get("DFPCluster:127.0.0.1:8080").is_none() {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        panic!("the sub cluster stays");
    });
}

#[test]
fn configurations_are_checked() {
    let refused = |yaml: &str| compile_with(&server(), &Arc::default(), &proto(yaml)).err().map(|r| r.summary()).unwrap_or_default();
    let insecure = "typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {'@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {http_protocol_options: {}}}}";
    assert!(refused(&yaml(&format!("dns_cache_config: {{{CACHE}}}"), insecure)).contains("auto_sni"));
    assert_eq!(refused(&yaml(&format!("allow_insecure_cluster_options: true, dns_cache_config: {{{CACHE}}}"), insecure)), "");
    assert!(refused(&with_cache("name: ''")).contains("name"));
    assert!(
        refused(&with_cache("name: c, max_hosts: 1, preresolve_hostnames: [{address: a, port_value: 1}, {address: b, port_value: 1}]"))
            .contains("preresolve")
    );
    assert!(refused(&with_cache("name: c, key_value_config: {}")).contains("key_value_config"));
    assert!(refused(&with_cache(CACHE).replace("CLUSTER_PROVIDED", "RANDOM")).contains("CLUSTER_PROVIDED"));
    let server = server();
    let (shared, other) = (Arc::default(), with_cache("name: c, dns_lookup_family: V6_ONLY"));
    let _first = compile_with(&server, &shared, &proto(&with_cache(CACHE))).unwrap_or_else(|r| panic!("{}", r.summary()));
    assert!(compile_with(&server, &shared, &proto(&other)).err().unwrap().summary().contains("other settings"));
}
