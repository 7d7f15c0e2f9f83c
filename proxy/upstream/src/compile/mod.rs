//! From `envoy.config.cluster.v3.Cluster` to [`Spec`]: every field is taken, refused by name, or warned about. Control thread.

mod endpoints;
mod http;
mod lb;
mod limits;
mod socket;
mod subset;

pub(crate) use endpoints::{Builder, HostSource, address, check, endpoints, fresh, health_check_target, port, resolve, transport};
pub(crate) use socket::bind;

use crate::cluster::ClusterCx;
use crate::dns::DnsSpec;
use crate::forward_proxy;
use crate::health_check;
use crate::spec::{Discovery, MetadataPath, OriginalDstSpec, Spec};
use nuncio_core::HeaderKey;
use nuncio_core::diag::{At, Report};
use nuncio_core::registry::FactoryCx;
use nuncio_proto::Any;
use nuncio_proto::envoy::config::cluster::v3 as pb;
use nuncio_proto::envoy::config::core::v3::{ConfigSource, TypedExtensionConfig, UpstreamHttpProtocolOptions};
use nuncio_proto::envoy::extensions::clusters::aggregate::v3::ClusterConfig as AggregateConfig;
use nuncio_proto::envoy::extensions::clusters::dns::v3::DnsCluster;
use nuncio_proto::envoy::extensions::clusters::dynamic_forward_proxy::v3::ClusterConfig as ForwardProxyConfig;
use nuncio_proto::envoy::extensions::clusters::original_dst::v3::OriginalDstCluster;
use nuncio_proto::envoy::r#type::metadata::v3::{MetadataKey, metadata_key::path_segment::Segment};
use nuncio_proto::typed::{unpack, unpack_as};
use std::sync::Arc;
use std::time::Duration;

pub(crate) use limits::breakers;

/// A duration, `default` if absent; negative ones are errors.
pub(crate) fn duration(proto: Option<&nuncio_proto::Duration>, default: Duration, at: &At<'_>, report: &mut Report) -> Duration {
    proto.map_or(Some(default), |d| nuncio_http::compile::duration(d, at, report)).unwrap_or(default)
}

/// A duration that must be more than zero.
pub(crate) fn positive(proto: Option<&nuncio_proto::Duration>, default: Duration, at: &At<'_>, report: &mut Report) -> Duration {
    let value = duration(proto, default, at, report);
    if value.is_zero() {
        report.error(at, "duration 0s", "a duration above zero");
        return default;
    }
    value
}

/// Says that a field is not supported, if it is set.
pub(crate) fn refuse(report: &mut Report, at: &At<'_>, fields: &[(bool, &str)]) {
    for (_, name) in fields.iter().filter(|(set, _)| *set) {
        report.unsupported(&at.field(name), name);
    }
}

/// Says that a field is ignored, if it is set.
pub(crate) fn ignore(report: &mut Report, at: &At<'_>, fields: &[(bool, &str, &str)]) {
    for (_, name, why) in fields.iter().filter(|(set, _, _)| *set) {
        report.warning(&at.field(name), "set", *why);
    }
}

/// `MetadataKey`; only keys along a path.
pub(crate) fn metadata_path(key: &MetadataKey, at: &At<'_>, report: &mut Report) -> MetadataPath {
    let path = key.path.iter().filter_map(|s| match &s.segment {
        Some(Segment::Key(key)) => Some(key.as_str().into()),
        Some(Segment::Index(_)) => {
            report.unsupported(&at.field("path"), "an index");
            None
        }
        None => None,
    });
    MetadataPath { namespace: key.key.as_str().into(), path: path.collect() }
}

/// `cluster_type.name` of the dynamic forward proxy.
const FORWARD_PROXY: &str = "envoy.clusters.dynamic_forward_proxy";

/// The configuration of a dynamic forward proxy cluster; none if it is of another type.
fn forward_proxy_type(proto: &pb::Cluster) -> Option<&Any> {
    match &proto.cluster_discovery_type {
        Some(pb::cluster::ClusterDiscoveryType::ClusterType(custom)) if custom.name == FORWARD_PROXY => custom.typed_config.as_ref(),
        _ => None,
    }
}

/// Compiles all but name, stats and endpoints. None if anything was refused.
#[allow(deprecated)]
pub(crate) fn spec(proto: &pb::Cluster, at: &At<'_>, cx: &mut ClusterCx<'_>) -> Option<Spec> {
    let before = cx.report.errors();
    let named;
    let proto = match forward_proxy_type(proto) {
        // Who decides on the origin must be sure that it is the origin.
        Some(_) if proto.upstream_http_protocol_options.is_none() => {
            let options = UpstreamHttpProtocolOptions { auto_sni: true, auto_san_validation: true, ..Default::default() };
            named = pb::Cluster { upstream_http_protocol_options: Some(options), ..proto.clone() };
            &named
        }
        _ => proto,
    };
    if proto.name.is_empty() {
        cx.report.error(&at.field("name"), "empty", "a cluster needs a name");
    }
    account(proto, at, cx.report);
    let discovery = discovery(proto, at, cx);
    let provides = matches!(discovery, Some(Discovery::OriginalDst(_) | Discovery::Aggregate(_) | Discovery::Forward(_)));
    let lb = lb::compile(proto, provides, at, cx);
    let http = http::compile(proto, at, cx);
    if let Some(any) = forward_proxy_type(proto)
        && !(http.auto_sni && http.auto_san)
        && unpack_as::<ForwardProxyConfig>(any).is_ok_and(|c| !c.allow_insecure_cluster_options)
    {
        let remedy = "set auto_sni and auto_san_validation, or allow_insecure_cluster_options";
        cx.report.error(
            &at.field("typed_extension_protocol_options"),
            "a dynamic forward proxy without auto_sni and auto_san_validation",
            remedy,
        );
    }
    let transports = socket::transports(proto, at, cx);
    let socket = socket::compile(proto, at, cx);
    let filters = filters(proto, at, cx);
    let outlier = proto.outlier_detection.as_ref().map(|o| limits::outlier(o, &at.field("outlier_detection"), cx.report));
    let health_checks = health_check::compile(&proto.health_checks, &at.field("health_checks"), cx.report);
    let per_host_connections = limits::per_host(proto.circuit_breakers.as_ref(), &at.field("circuit_breakers"), cx.report);
    let connect_timeout = positive(proto.connect_timeout.as_ref(), Duration::from_secs(5), &at.field("connect_timeout"), cx.report);
    if cx.report.errors() > before {
        return None;
    }
    Some(Spec {
        discovery: discovery?,
        lb: lb?,
        http,
        connect_timeout,
        buffer_limit: proto.per_connection_buffer_limit_bytes.unwrap_or(1 << 20),
        transports: transports?,
        socket,
        filters,
        outlier: outlier.map(Box::new),
        health_checks,
        per_host_connections,
        ignore_new_hosts: proto.common_lb_config.as_ref().is_some_and(|c| c.ignore_new_hosts_until_first_hc),
        ignore_health_on_removal: proto.ignore_health_on_host_removal,
        close_on_host_set_change: proto.common_lb_config.as_ref().is_some_and(|c| c.close_connections_on_host_set_change),
        close_on_health_failure: proto.close_connections_on_host_health_failure,
        pool_per_downstream: proto.connection_pool_per_downstream_connection,
        preconnect: limits::preconnect(proto.preconnect_policy.as_ref(), &at.field("preconnect_policy"), cx.report),
        wait_for_warm: proto.wait_for_warm_on_init.unwrap_or(true),
    })
}

/// Fields that are neither compiled elsewhere nor harmless.
#[allow(deprecated)]
fn account(proto: &pb::Cluster, at: &At<'_>, report: &mut Report) {
    refuse(
        report,
        at,
        &[
            (proto.transport_socket_matcher.is_some(), "transport_socket_matcher"),
            (proto.stats_matcher.is_some(), "stats_matcher"),
            (proto.upstream_config.is_some(), "upstream_config"),
            (proto.queuing_policies.is_some(), "queuing_policies"),
        ],
    );
    ignore(
        report,
        at,
        &[
            (proto.lrs_server.is_some(), "lrs_server", "load reports are not sent"),
            (!proto.lrs_report_endpoint_metrics.is_empty(), "lrs_report_endpoint_metrics", "load reports are not sent"),
            (proto.track_timeout_budgets, "track_timeout_budgets", "timeout budget histograms are not kept"),
            (proto.track_cluster_stats.is_some(), "track_cluster_stats", "size, budget and endpoint histograms are not kept"),
            (
                proto.per_connection_buffer_high_watermark_timeout.is_some(),
                "per_connection_buffer_high_watermark_timeout",
                "a connection with full buffers is not closed",
            ),
        ],
    );
}

fn discovery(proto: &pb::Cluster, at: &At<'_>, cx: &mut ClusterCx<'_>) -> Option<Discovery> {
    use pb::cluster::ClusterDiscoveryType;
    use pb::cluster::DiscoveryType as Type;
    let kind = match &proto.cluster_discovery_type {
        None => Type::Static,
        Some(ClusterDiscoveryType::Type(number)) => match Type::try_from(*number) {
            Ok(kind) => kind,
            Err(_) => {
                cx.report.error(&at.field("type"), format!("value {number}"), "STATIC, STRICT_DNS, LOGICAL_DNS, EDS or ORIGINAL_DST");
                return None;
            }
        },
        Some(ClusterDiscoveryType::ClusterType(custom)) => return custom_type(proto, custom, at, cx),
    };
    if kind != Type::Eds && proto.eds_cluster_config.is_some() {
        cx.report.error(&at.field("eds_cluster_config"), "set in a cluster that is not EDS", "remove it, or set type: EDS");
    }
    match kind {
        Type::Static => Some(Discovery::Static),
        Type::Eds => eds(proto, at, cx),
        Type::StrictDns | Type::LogicalDns => {
            DnsSpec::compile(proto, kind == Type::LogicalDns, at, cx).map(|spec| Discovery::Dns(Box::new(spec)))
        }
        Type::OriginalDst => {
            let config = match &proto.lb_config {
                Some(pb::cluster::LbConfig::OriginalDstLbConfig(config)) => OriginalDstCluster {
                    use_http_header: config.use_http_header,
                    http_header_name: config.http_header_name.clone(),
                    upstream_port_override: config.upstream_port_override,
                    metadata_key: config.metadata_key.clone(),
                },
                _ => OriginalDstCluster::default(),
            };
            original_dst(proto, &config, &at.field("original_dst_lb_config"), at, cx)
        }
    }
}

fn eds(proto: &pb::Cluster, at: &At<'_>, cx: &mut ClusterCx<'_>) -> Option<Discovery> {
    let at_config = at.field("eds_cluster_config");
    let Some(config) = &proto.eds_cluster_config else {
        cx.report.error(&at_config, "missing", "an EDS cluster needs eds_cluster_config");
        return None;
    };
    if proto.load_assignment.is_some() {
        cx.report.warning(&at.field("load_assignment"), "set", "an EDS cluster takes its endpoints from EDS");
    }
    if proto.name.starts_with("xdstp:") && config.service_name.is_empty() {
        cx.report.error(&at_config.field("service_name"), "empty", "a cluster with an xdstp name needs a service_name");
    }
    let source = config.eds_config.clone().unwrap_or_else(|| {
        cx.report.error(&at_config.field("eds_config"), "missing", "say where endpoints come from");
        ConfigSource::default()
    });
    let name = if config.service_name.is_empty() { &proto.name } else { &config.service_name };
    Some(Discovery::Eds { name: name.as_str().into(), source: cx.shared.intern_source(source) })
}

fn original_dst(
    proto: &pb::Cluster,
    config: &OriginalDstCluster,
    at_config: &At<'_>,
    at: &At<'_>,
    cx: &mut ClusterCx<'_>,
) -> Option<Discovery> {
    if proto.load_assignment.as_ref().is_some_and(|a| !a.endpoints.is_empty()) {
        cx.report.error(&at.field("load_assignment"), "set", "an ORIGINAL_DST cluster has no endpoints of its own");
    }
    let header = config.use_http_header.then(|| match config.http_header_name.as_str() {
        "" => HeaderKey::parse("x-envoy-original-dst-host"),
        name => {
            let key = HeaderKey::parse(name);
            if key.is_none() {
                cx.report.error(&at_config.field("http_header_name"), name, "a valid header name");
            }
            key
        }
    });
    if !config.use_http_header && !config.http_header_name.is_empty() {
        cx.report.error(&at_config.field("http_header_name"), config.http_header_name.as_str(), "only together with use_http_header");
    }
    let port_override = match config.upstream_port_override {
        None => None,
        Some(port) => match u16::try_from(port) {
            Ok(port) => Some(port),
            Err(_) => {
                cx.report.error(&at_config.field("upstream_port_override"), port.to_string(), "0 to 65535");
                None
            }
        },
    };
    let interval = positive(proto.cleanup_interval.as_ref(), Duration::from_secs(5), &at.field("cleanup_interval"), cx.report);
    Some(Discovery::OriginalDst(Box::new(OriginalDstSpec {
        header: header.flatten(),
        metadata: config.metadata_key.as_ref().map(|k| metadata_path(k, &at_config.field("metadata_key"), cx.report)),
        port_override,
        cleanup_interval: interval,
    })))
}

/// `cluster_type`: extensions that say the same as `type`.
fn custom_type(proto: &pb::Cluster, custom: &pb::cluster::CustomClusterType, at: &At<'_>, cx: &mut ClusterCx<'_>) -> Option<Discovery> {
    let at = at.field("cluster_type");
    let any = custom.typed_config.clone().unwrap_or_default();
    match custom.name.as_str() {
        "envoy.cluster.static" | "envoy.clusters.static" => Some(Discovery::Static),
        "envoy.cluster.eds" | "envoy.clusters.eds" => eds(proto, &At::Root, cx),
        "envoy.cluster.strict_dns" | "envoy.clusters.strict_dns" => dns(proto, &any, Some(false), &at, cx),
        "envoy.cluster.logical_dns" | "envoy.clusters.logical_dns" => dns(proto, &any, Some(true), &at, cx),
        "envoy.cluster.dns" | "envoy.clusters.dns" => dns(proto, &any, None, &at, cx),
        "envoy.cluster.original_dst" | "envoy.clusters.original_dst" => {
            let at_config = at.field("typed_config");
            let config = if any.type_url.is_empty() { Ok(OriginalDstCluster::default()) } else { unpack_as(&any) };
            match config {
                Ok(config) => original_dst(proto, &config, &at_config, &At::Root, cx),
                Err(why) => {
                    cx.report.error(&at_config, why, "an OriginalDstCluster");
                    None
                }
            }
        }
        "envoy.clusters.aggregate" => aggregate(&any, &at.field("typed_config"), cx),
        FORWARD_PROXY => {
            let at = at.field("typed_config");
            match unpack_as::<ForwardProxyConfig>(&any) {
                Ok(config) => forward_proxy::cluster(proto, &config, &at, cx).map(Discovery::Forward),
                Err(why) => {
                    cx.report.error(&at, why, "a ClusterConfig of the dynamic forward proxy");
                    None
                }
            }
        }
        name => {
            cx.report.unsupported(&at, format_args!("cluster type {name}"));
            None
        }
    }
}

/// `envoy.clusters.aggregate`. Members need not exist yet.
fn aggregate(any: &Any, at: &At<'_>, cx: &mut ClusterCx<'_>) -> Option<Discovery> {
    match unpack_as::<AggregateConfig>(any) {
        Ok(config) if config.clusters.is_empty() => {
            cx.report.error(&at.field("clusters"), "empty", "at least one cluster");
            None
        }
        Ok(config) => Some(Discovery::Aggregate(config.clusters.iter().map(|name| name.as_str().into()).collect())),
        Err(why) => {
            cx.report.error(at, why, "a ClusterConfig of envoy.clusters.aggregate");
            None
        }
    }
}

fn dns(proto: &pb::Cluster, any: &Any, logical: Option<bool>, at: &At<'_>, cx: &mut ClusterCx<'_>) -> Option<Discovery> {
    let at = at.field("typed_config");
    let config = match unpack_as::<DnsCluster>(any) {
        Ok(config) => config,
        Err(_) if any.type_url.is_empty() && logical.is_some() => {
            return DnsSpec::compile(proto, logical == Some(true), &At::Root, cx).map(|spec| Discovery::Dns(Box::new(spec)));
        }
        Err(why) => {
            cx.report.error(&at, why, "a DnsCluster");
            return None;
        }
    };
    DnsSpec::compile_typed(proto, &config, &at, cx).map(|spec| Discovery::Dns(Box::new(spec)))
}

/// `Cluster.filters`: network filters on upstream connections.
fn filters(proto: &pb::Cluster, at: &At<'_>, cx: &mut ClusterCx<'_>) -> Box<[Arc<dyn nuncio_core::network::NetworkFilterConfig>]> {
    let at = at.field("filters");
    let scope = cx.server.stats.root();
    let compile = |(i, filter): (usize, &pb::Filter)| {
        let at = at.index(i);
        if filter.config_discovery.is_some() {
            cx.report.unsupported(&at.field("config_discovery"), "config_discovery of an upstream filter");
            return None;
        }
        let at = at.field("typed_config");
        let Some(any) = &filter.typed_config else {
            cx.report.error(&at, "missing", "a filter needs typed_config");
            return None;
        };
        let typed = match unpack(any) {
            Ok(typed) => typed,
            Err(why) => {
                cx.report.error(&at, why, "a filter configuration");
                return None;
            }
        };
        let Some(factory) = cx.registry.upstream_network(&typed.name) else {
            cx.report.unsupported(&at, format_args!("upstream network filter {} ({})", filter.name, typed.name));
            return None;
        };
        let direction = nuncio_core::info::TrafficDirection::Outbound;
        factory.compile(&typed.value, &at, &mut FactoryCx { server: cx.server, scope: &scope, direction, report: cx.report })
    };
    proto.filters.iter().enumerate().filter_map(compile).collect()
}

/// The type name and bytes of an extension; refuses one without configuration.
pub(crate) fn extension<'a>(config: &'a TypedExtensionConfig, at: &At<'_>, report: &mut Report) -> Option<nuncio_proto::typed::Typed<'a>> {
    let Some(any) = &config.typed_config else {
        report.error(&at.field("typed_config"), "missing", "an extension needs typed_config");
        return None;
    };
    match unpack(any) {
        Ok(typed) => Some(typed),
        Err(why) => {
            report.error(&at.field("typed_config"), why, "an extension configuration");
            None
        }
    }
}
