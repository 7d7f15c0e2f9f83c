//! STRICT_DNS and LOGICAL_DNS: names resolved again and again on the control thread. What was resolved stays while resolving
//! fails. `/etc/hosts` goes first, as in c-ares. Source: Envoy docs "Service discovery", `strict_dns_cluster.cc`,
//! `logical_dns_cluster.cc`, `envoy/extensions/clusters/dns/v3/dns_cluster.proto`.

mod service;
#[cfg(test)]
mod tests;

pub(crate) use service::{Answer, DnsService};

use crate::cluster::{Cluster, ClusterCx};
use crate::compile::{self, duration, extension, ignore, positive, refuse};
use crate::host::HostState;
use crate::manager::ClusterManager;
use nuncio_core::diag::{At, Report};
use nuncio_core::views::ClusterView;
use nuncio_proto::Message;
use nuncio_proto::envoy::config::cluster::v3 as pb;
use nuncio_proto::envoy::config::core::v3::address::Address as AddressKind;
use nuncio_proto::envoy::config::core::v3::{Address as AddressProto, DnsResolutionConfig, TypedExtensionConfig};
use nuncio_proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use nuncio_proto::envoy::extensions::clusters::common::dns::v3::DnsLookupFamily as TypedFamily;
use nuncio_proto::envoy::extensions::clusters::dns::v3::DnsCluster;
use nuncio_proto::envoy::extensions::network::dns_resolver::cares::v3::CaresDnsResolverConfig;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// `DnsLookupFamily`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// IPv6, or IPv4 if there is none.
    Auto,
    V4Only,
    V6Only,
    /// IPv4, or IPv6 if there is none.
    V4Preferred,
    All,
}

impl Family {
    /// From `Cluster.DnsLookupFamily`.
    pub(crate) fn compile(number: i32, at: &At<'_>, report: &mut Report) -> Self {
        use pb::cluster::DnsLookupFamily as F;
        match F::try_from(number) {
            Ok(F::Auto) => Self::Auto,
            Ok(F::V4Only) => Self::V4Only,
            Ok(F::V6Only) => Self::V6Only,
            Ok(F::V4Preferred) => Self::V4Preferred,
            Ok(F::All) => Self::All,
            Err(_) => {
                report.error(at, number.to_string(), "a DnsLookupFamily");
                Self::Auto
            }
        }
    }
}

/// Who resolves.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ResolverSpec {
    /// Servers to ask; empty for those of `/etc/resolv.conf`.
    servers: Vec<SocketAddr>,
    /// `use_resolvers_as_fallback`: `servers` only if resolv.conf names none.
    fallback: bool,
    tcp: bool,
    no_search: bool,
    timeout: Duration,
    tries: usize,
    rotate: bool,
    edns_payload: Option<u16>,
    /// `getaddrinfo` instead of our own queries.
    system: bool,
}

impl ResolverSpec {
    /// The system's servers, over TCP alone if `tcp`.
    pub(crate) fn over_tcp(tcp: bool) -> Self {
        Self { tcp, ..Self::default() }
    }
}

impl Default for ResolverSpec {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            fallback: false,
            tcp: false,
            no_search: false,
            timeout: Duration::from_secs(5),
            tries: 4,
            rotate: false,
            edns_payload: None,
            system: false,
        }
    }
}

/// One name to resolve.
#[derive(Debug)]
pub(crate) struct Target {
    pub name: Box<str>,
    pub port: u16,
}

/// The DNS side of a cluster.
#[derive(Debug)]
pub(crate) struct DnsSpec {
    /// LOGICAL_DNS, or `all_addresses_in_single_endpoint`.
    pub logical: bool,
    pub refresh: Duration,
    pub min_refresh: Duration,
    pub respect_ttl: bool,
    pub jitter: Duration,
    /// `dns_failure_refresh_rate`: base and maximum.
    pub failure: Option<(Duration, Duration)>,
    pub family: Family,
    pub resolver: ResolverSpec,
    /// In the order of the assignment's endpoints.
    pub targets: Box<[Target]>,
    pub assignment: Box<ClusterLoadAssignment>,
}

impl DnsSpec {
    /// From the fields of `Cluster`.
    #[allow(deprecated)]
    pub(crate) fn compile(proto: &pb::Cluster, logical: bool, at: &At<'_>, cx: &mut ClusterCx<'_>) -> Option<Self> {
        let family = Family::compile(proto.dns_lookup_family, &at.field("dns_lookup_family"), cx.report);
        let refresh = positive(proto.dns_refresh_rate.as_ref(), Duration::from_secs(5), &at.field("dns_refresh_rate"), cx.report);
        let failure = proto
            .dns_failure_refresh_rate
            .as_ref()
            .and_then(|f| failure(f.base_interval.as_ref(), f.max_interval.as_ref(), &at.field("dns_failure_refresh_rate"), cx.report));
        let resolver = match (&proto.typed_dns_resolver_config, &proto.dns_resolution_config) {
            (Some(config), _) => typed_resolver(config, &at.field("typed_dns_resolver_config"), cx.report),
            (None, Some(config)) => old_resolver(config, &at.field("dns_resolution_config"), cx.report),
            (None, None) => ResolverSpec {
                servers: servers(&proto.dns_resolvers, &at.field("dns_resolvers"), cx.report),
                tcp: proto.use_tcp_for_dns_lookups,
                ..ResolverSpec::default()
            },
        };
        let spec = Self {
            logical,
            refresh,
            min_refresh: Duration::from_secs(1),
            respect_ttl: proto.respect_dns_ttl,
            jitter: duration(proto.dns_jitter.as_ref(), Duration::ZERO, &at.field("dns_jitter"), cx.report),
            failure,
            family,
            resolver,
            targets: Box::default(),
            assignment: Box::default(),
        };
        spec.with_targets(proto, &At::Root, cx)
    }
    /// From the `DnsCluster` extension.
    pub(crate) fn compile_typed(proto: &pb::Cluster, config: &DnsCluster, at: &At<'_>, cx: &mut ClusterCx<'_>) -> Option<Self> {
        let family = match TypedFamily::try_from(config.dns_lookup_family) {
            Ok(TypedFamily::Unspecified | TypedFamily::Auto) => Family::Auto,
            Ok(TypedFamily::V4Only) => Family::V4Only,
            Ok(TypedFamily::V6Only) => Family::V6Only,
            Ok(TypedFamily::V4Preferred) => Family::V4Preferred,
            Ok(TypedFamily::All) => Family::All,
            Err(_) => {
                cx.report.error(&at.field("dns_lookup_family"), config.dns_lookup_family.to_string(), "a DnsLookupFamily");
                Family::Auto
            }
        };
        let failure = config
            .dns_failure_refresh_rate
            .as_ref()
            .and_then(|f| failure(f.base_interval.as_ref(), f.max_interval.as_ref(), &at.field("dns_failure_refresh_rate"), cx.report));
        let resolver = config.typed_dns_resolver_config.as_ref();
        let spec = Self {
            logical: config.all_addresses_in_single_endpoint,
            refresh: positive(config.dns_refresh_rate.as_ref(), Duration::from_secs(5), &at.field("dns_refresh_rate"), cx.report),
            min_refresh: positive(
                config.dns_min_refresh_rate.as_ref(),
                Duration::from_secs(1),
                &at.field("dns_min_refresh_rate"),
                cx.report,
            ),
            respect_ttl: config.respect_dns_ttl,
            jitter: duration(config.dns_jitter.as_ref(), Duration::ZERO, &at.field("dns_jitter"), cx.report),
            failure,
            family,
            resolver: resolver.map_or_else(ResolverSpec::default, |c| typed_resolver(c, &at.field("typed_dns_resolver_config"), cx.report)),
            targets: Box::default(),
            assignment: Box::default(),
        };
        spec.with_targets(proto, &At::Root, cx)
    }
    fn with_targets(mut self, proto: &pb::Cluster, at: &At<'_>, cx: &mut ClusterCx<'_>) -> Option<Self> {
        let at = at.field("load_assignment");
        let assignment = proto.load_assignment.clone().unwrap_or_default();
        let errors = cx.report.errors();
        compile::check(&assignment, &at, cx.report);
        let endpoints: usize = assignment.endpoints.iter().map(|l| l.lb_endpoints.len()).sum();
        if self.logical && (assignment.endpoints.len() != 1 || endpoints != 1) {
            let found = format!("{} localities, {endpoints} endpoints", assignment.endpoints.len());
            cx.report.error(&at, found, "a LOGICAL_DNS cluster has one locality with one endpoint");
        }
        let mut targets = Vec::new();
        let list = at.field("endpoints");
        for (i, locality) in assignment.endpoints.iter().enumerate() {
            let at = list.index(i);
            let list = at.field("lb_endpoints");
            for (j, endpoint) in locality.lb_endpoints.iter().enumerate() {
                let at = list.index(j);
                let Some(endpoint) = compile::resolve(&assignment, endpoint, &at, cx.report) else { continue };
                let at = at.field("endpoint");
                refuse(cx.report, &at, &[(!endpoint.additional_addresses.is_empty(), "additional_addresses")]);
                targets.extend(target(endpoint.address.as_ref(), &at.field("address"), cx.report));
            }
        }
        if cx.report.errors() > errors {
            return None;
        }
        self.targets = targets.into_boxed_slice();
        self.assignment = Box::new(assignment);
        Some(self)
    }
}

fn target(address: Option<&AddressProto>, at: &At<'_>, report: &mut Report) -> Option<Target> {
    let Some(AddressKind::SocketAddress(socket)) = address.and_then(|a| a.address.as_ref()) else {
        report.error(at, "not a socket_address", "a DNS cluster resolves socket addresses");
        return None;
    };
    let at = at.field("socket_address");
    // Envoy's default resolver has this name; custom ones are not for DNS clusters there either.
    if !socket.resolver_name.is_empty() {
        report.error(&at.field("resolver_name"), socket.resolver_name.as_str(), "DNS clusters use their own resolver");
    }
    if socket.address.is_empty() {
        report.error(&at.field("address"), "empty", "a name");
    }
    let port = compile::port(&socket.port_specifier, &at, report)?;
    Some(Target { name: socket.address.as_str().into(), port })
}

/// `RefreshRate`: base and maximum.
pub(crate) fn failure(
    base: Option<&nuncio_proto::Duration>,
    max: Option<&nuncio_proto::Duration>,
    at: &At<'_>,
    report: &mut Report,
) -> Option<(Duration, Duration)> {
    let base_at = at.field("base_interval");
    if base.is_none() {
        report.error(&base_at, "missing", "a duration");
        return None;
    }
    let base = positive(base, Duration::from_secs(5), &base_at, report);
    let max_at = at.field("max_interval");
    let max = positive(max, base.saturating_mul(10), &max_at, report);
    if max < base {
        report.error(&max_at, format!("{max:?}"), "at least base_interval");
    }
    Some((base, max))
}

fn servers(protos: &[AddressProto], at: &At<'_>, report: &mut Report) -> Vec<SocketAddr> {
    let one = |(i, proto): (usize, &AddressProto)| {
        let address = compile::address(Some(proto), &at.index(i), report)?;
        let socket = address.socket();
        if socket.is_none() {
            report.error(&at.index(i), address.to_string(), "an IP address");
        }
        // Port 0 is DNS's own.
        socket.map(|s| if s.port() == 0 { SocketAddr::new(s.ip(), 53) } else { s })
    };
    protos.iter().enumerate().filter_map(one).collect()
}

/// `DnsResolutionConfig`.
pub(crate) fn old_resolver(config: &DnsResolutionConfig, at: &At<'_>, report: &mut Report) -> ResolverSpec {
    let options = config.dns_resolver_options.unwrap_or_default();
    ResolverSpec {
        servers: servers(&config.resolvers, &at.field("resolvers"), report),
        tcp: options.use_tcp_for_dns_lookups,
        no_search: options.no_default_search_domain,
        ..ResolverSpec::default()
    }
}

/// `typed_dns_resolver_config`.
pub(crate) fn typed_resolver(config: &TypedExtensionConfig, at: &At<'_>, report: &mut Report) -> ResolverSpec {
    let Some(typed) = extension(config, at, report) else { return ResolverSpec::default() };
    let at = at.field("typed_config");
    match typed.name.as_str() {
        "envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig" => {
            match CaresDnsResolverConfig::decode(typed.value.as_ref()) {
                Ok(config) => cares(&config, &at, report),
                Err(e) => {
                    report.error(&at, format!("cannot be decoded: {e}"), "a CaresDnsResolverConfig");
                    ResolverSpec::default()
                }
            }
        }
        "envoy.extensions.network.dns_resolver.getaddrinfo.v3.GetAddrInfoDnsResolverConfig" => {
            // All that its message has is retries and threads.
            if !typed.value.is_empty() {
                report.warning(&at, "settings of getaddrinfo", "the system's resolver has retries and threads of its own");
            }
            ResolverSpec { system: true, ..ResolverSpec::default() }
        }
        other => {
            report.unsupported(&at, format_args!("DNS resolver {} ({other})", config.name));
            ResolverSpec::default()
        }
    }
}

fn cares(config: &CaresDnsResolverConfig, at: &At<'_>, report: &mut Report) -> ResolverSpec {
    let options = config.dns_resolver_options.unwrap_or_default();
    ignore(
        report,
        at,
        &[
            (config.filter_unroutable_families, "filter_unroutable_families", "set dns_lookup_family instead"),
            (config.max_udp_channel_duration.is_some(), "max_udp_channel_duration", "every query has a socket of its own"),
            (config.reinit_channel_on_timeout, "reinit_channel_on_timeout", "every query has a socket of its own"),
            (config.qcache_max_ttl.is_some_and(|ttl| ttl > 0), "qcache_max_ttl", "answers are not cached beyond the cluster"),
        ],
    );
    // `udp_max_queries` bounds the use of one socket; every query has one of its own, which satisfies any bound.
    ResolverSpec {
        servers: servers(&config.resolvers, &at.field("resolvers"), report),
        fallback: config.use_resolvers_as_fallback,
        tcp: options.use_tcp_for_dns_lookups,
        no_search: options.no_default_search_domain,
        timeout: Duration::from_secs(config.query_timeout_seconds.unwrap_or(5).clamp(1, 3600)),
        tries: config.query_tries.unwrap_or(4).clamp(1, 100) as usize,
        rotate: config.rotate_nameservers,
        edns_payload: config.edns0_max_payload_size.and_then(|s| u16::try_from(s).ok()),
        system: false,
    }
}

/// What was resolved so far, in the cluster.
#[derive(Clone, Debug, Default)]
pub(crate) struct DnsState {
    /// By target; none before the first answer.
    pub answers: Vec<Option<Vec<IpAddr>>>,
    /// Of LOGICAL_DNS, the state of the one host.
    pub logical: Option<Arc<HostState>>,
    /// Last failure by target, for admin.
    pub errors: Vec<Option<String>>,
}

/// Resolves target `index` of `cluster` for as long as the cluster lives. Runs on the control thread.
pub(crate) async fn run(cluster: Weak<Cluster>, index: usize, service: Arc<DnsService>, manager: Weak<ClusterManager>) {
    let mut failures = 0u32;
    loop {
        let Some(this) = cluster.upgrade().filter(|c| !c.is_retired()) else { return };
        let Some((spec, target)) = this.dns_spec().and_then(|spec| Some((spec, spec.targets.get(index)?))) else { return };
        this.endpoint_stats().counter("update_attempt").inc();
        let answer = service.resolve(&target.name, spec.family, &spec.resolver).await;
        let pause = match &answer {
            Ok(answer) => {
                failures = 0;
                let ttl = answer.ttl.filter(|ttl| spec.respect_ttl && !ttl.is_zero());
                ttl.map_or(spec.refresh, |ttl| ttl.max(spec.min_refresh))
            }
            Err(why) => {
                log::debug!("DNS resolution of {} for cluster {} failed: {why}", target.name, this.name());
                failures = failures.saturating_add(1);
                spec.failure.map_or(spec.refresh, |(base, max)| backoff(base, max, failures))
            }
        };
        let pause = pause + spec.jitter.mul_f64(fastrand::f64());
        this.dns_answer(index, answer);
        if let Some(manager) = manager.upgrade() {
            manager.settle_one(&this);
        }
        // Only a weak reference waits, so that a cluster that goes is not held.
        drop(this);
        tokio::time::sleep(pause).await;
    }
}

/// Fully jittered exponential back-off, as Envoy's `JitteredExponentialBackOffStrategy`.
pub(crate) fn backoff(base: Duration, max: Duration, failures: u32) -> Duration {
    let window = base.saturating_mul(1u32.checked_shl(failures.saturating_sub(1).min(31)).unwrap_or(u32::MAX)).min(max);
    window.mul_f64(fastrand::f64()).max(Duration::from_millis(1))
}
