//! From `DnsCacheConfig` and the cluster's `ClusterConfig` to what runs. Control thread.
//! Source: `envoy/extensions/common/dynamic_forward_proxy/v3/dns_cache.proto`,
//! `envoy/extensions/clusters/dynamic_forward_proxy/v3/cluster.proto`.

use super::cache::CacheSpec;
use super::{DnsCache, DnsCaches};
use crate::cluster::ClusterCx;
use crate::compile::{ignore, positive, refuse};
use crate::dns::{Family, ResolverSpec};
use nuncio_core::diag::{At, Report};
use nuncio_proto::envoy::config::cluster::v3 as pb;
use nuncio_proto::envoy::config::core::v3::{SocketAddress, socket_address::PortSpecifier};
use nuncio_proto::envoy::extensions::clusters::dns::v3::DnsCluster;
use nuncio_proto::envoy::extensions::clusters::dynamic_forward_proxy::v3::{
    ClusterConfig, SubClustersConfig, cluster_config::ClusterImplementationSpecifier,
};
use nuncio_proto::envoy::extensions::common::dynamic_forward_proxy::v3::DnsCacheConfig;
use nuncio_proto::{Any, Message};
use prost::Name;
use std::sync::Arc;
use std::time::Duration;

/// Hosts and sub clusters that may be there, if nothing says how many.
const MOST: u32 = 1024;

/// The dynamic forward proxy's side of a cluster.
#[derive(Debug)]
pub(crate) enum ForwardSpec {
    /// Hosts come from this cache.
    Cache(Arc<DnsCache>),
    /// Each name is a cluster of its own.
    Sub(Box<SubSpec>),
}

/// `SubClustersConfig`.
#[derive(Debug)]
pub(crate) struct SubSpec {
    /// What sub clusters are made of; their name and endpoint are filled in.
    pub template: pb::Cluster,
    pub max: usize,
    pub ttl: Duration,
    pub preresolve: Box<[(String, u16)]>,
    pub caches: Arc<DnsCaches>,
}

fn names(protos: &[SocketAddress], at: &At<'_>, report: &mut Report) -> Box<[(String, u16)]> {
    let mut one = |(i, proto): (usize, &SocketAddress)| {
        let port = match &proto.port_specifier {
            Some(PortSpecifier::PortValue(port)) => u16::try_from(*port).ok(),
            _ => None,
        };
        match port.filter(|_| !proto.address.is_empty()) {
            Some(port) => Some((proto.address.clone(), port)),
            None => {
                report.error(&at.index(i), format!("{:?}", proto.address), "a name and a port_value");
                None
            }
        }
    };
    protos.iter().enumerate().filter_map(&mut one).collect()
}

/// Compiles a cache; none if anything was refused.
#[allow(deprecated)]
pub(super) fn cache(config: &DnsCacheConfig, at: &At<'_>, report: &mut Report) -> Option<CacheSpec> {
    let errors = report.errors();
    if config.name.is_empty() {
        report.error(&at.field("name"), "empty", "name the DNS cache");
    }
    refuse(
        report,
        at,
        &[(config.key_value_config.is_some(), "key_value_config"), (config.resolved_address_filter.is_some(), "resolved_address_filter")],
    );
    let refresh = positive(config.dns_refresh_rate.as_ref(), Duration::from_secs(60), &at.field("dns_refresh_rate"), report);
    let min_at = at.field("dns_min_refresh_rate");
    let min_refresh = positive(config.dns_min_refresh_rate.as_ref(), Duration::from_secs(5), &min_at, report);
    if min_refresh < Duration::from_secs(1) {
        report.error(&min_at, format!("{min_refresh:?}"), "at least 1 s");
    }
    let failure_at = at.field("dns_failure_refresh_rate");
    let failure = config
        .dns_failure_refresh_rate
        .as_ref()
        .and_then(|f| crate::dns::failure(f.base_interval.as_ref(), f.max_interval.as_ref(), &failure_at, report));
    let resolver = match (&config.typed_dns_resolver_config, &config.dns_resolution_config) {
        (Some(typed), _) => crate::dns::typed_resolver(typed, &at.field("typed_dns_resolver_config"), report),
        (None, Some(old)) => crate::dns::old_resolver(old, &at.field("dns_resolution_config"), report),
        (None, None) => ResolverSpec::over_tcp(config.use_tcp_for_dns_lookups),
    };
    let max_hosts = config.max_hosts.unwrap_or(MOST);
    if max_hosts == 0 {
        report.error(&at.field("max_hosts"), "0", "at least 1");
    }
    let preresolve = names(&config.preresolve_hostnames, &at.field("preresolve_hostnames"), report);
    if preresolve.len() > max_hosts as usize {
        let found = format!("{} names, max_hosts is {max_hosts}", preresolve.len());
        report.error(&at.field("preresolve_hostnames"), found, "no more names than max_hosts");
    }
    let spec = CacheSpec {
        family: Family::compile(config.dns_lookup_family, &at.field("dns_lookup_family"), report),
        resolver,
        refresh,
        min_refresh,
        failure,
        forget_failed: config.disable_dns_refresh_on_failure,
        host_ttl: positive(config.host_ttl.as_ref(), Duration::from_secs(300), &at.field("host_ttl"), report),
        max_hosts: max_hosts as usize,
        max_pending: config.dns_cache_circuit_breaker.and_then(|b| b.max_pending_requests).unwrap_or(MOST),
        preresolve,
        timeout: positive(config.dns_query_timeout.as_ref(), Duration::from_secs(5), &at.field("dns_query_timeout"), report),
    };
    (report.errors() == errors).then_some(spec)
}

/// Compiles the cluster's own part.
pub(crate) fn cluster(proto: &pb::Cluster, config: &ClusterConfig, at: &At<'_>, cx: &mut ClusterCx<'_>) -> Option<ForwardSpec> {
    ignore(
        cx.report,
        at,
        &[(config.allow_coalesced_connections, "allow_coalesced_connections", "every origin has connections of its own")],
    );
    if proto.load_assignment.is_some() {
        cx.report.error(&At::Root.field("load_assignment"), "set", "hosts of a dynamic forward proxy are what requests ask for");
    }
    let caches = DnsCaches::of(cx.server);
    match &config.cluster_implementation_specifier {
        Some(ClusterImplementationSpecifier::DnsCacheConfig(cache)) => {
            caches.cache(cache, cx.server, &at.field("dns_cache_config"), cx.report).map(ForwardSpec::Cache)
        }
        Some(ClusterImplementationSpecifier::SubClustersConfig(sub)) => {
            sub_clusters(proto, sub, caches, &at.field("sub_clusters_config"), cx.report).map(|s| ForwardSpec::Sub(Box::new(s)))
        }
        None => {
            cx.report.error(at, "nothing", "set dns_cache_config or sub_clusters_config");
            None
        }
    }
}

fn sub_clusters(
    proto: &pb::Cluster,
    config: &SubClustersConfig,
    caches: Arc<DnsCaches>,
    at: &At<'_>,
    report: &mut Report,
) -> Option<SubSpec> {
    use pb::cluster::{ClusterDiscoveryType, CustomClusterType, DiscoveryType};
    let max = config.max_sub_clusters.unwrap_or(MOST);
    if max == 0 {
        report.error(&at.field("max_sub_clusters"), "0", "at least 1");
        return None;
    }
    if config.lb_policy == pb::cluster::LbPolicy::ClusterProvided as i32 {
        report.error(&at.field("lb_policy"), "CLUSTER_PROVIDED", "a policy that picks among hosts");
        return None;
    }
    let mut template = pb::Cluster { lb_policy: config.lb_policy, load_balancing_policy: None, ..proto.clone() };
    template.cluster_discovery_type = Some(match &config.dns_cluster_config {
        None => ClusterDiscoveryType::Type(DiscoveryType::StrictDns as i32),
        Some(dns) => {
            let typed_config = Some(Any { type_url: DnsCluster::type_url(), value: dns.encode_to_vec() });
            ClusterDiscoveryType::ClusterType(CustomClusterType { name: "envoy.clusters.dns".into(), typed_config })
        }
    });
    let preresolve = names(&config.preresolve_clusters, &at.field("preresolve_clusters"), report);
    if preresolve.len() > max as usize {
        report.error(&at.field("preresolve_clusters"), format!("{} names", preresolve.len()), "no more names than max_sub_clusters");
        return None;
    }
    let ttl = positive(config.sub_cluster_ttl.as_ref(), Duration::from_secs(300), &at.field("sub_cluster_ttl"), report);
    Some(SubSpec { template, max: max as usize, ttl, preresolve, caches })
}
