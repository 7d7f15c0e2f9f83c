//! Endpoints from `ClusterLoadAssignment` (EDS, STATIC) or from resolved names (DNS), with hosts that were there before taken over.

use super::refuse;
use crate::host::{HealthCheckTarget, HealthFlags, Host, HostState, LazyMetadata, clock};
use crate::spec::{Spec, TransportMatch};
use crate::view::{EndpointLocality, EndpointSet, Endpoints};
use hashbrown::HashMap;
use nuncio_core::Address;
use nuncio_core::diag::{At, Report};
use nuncio_proto::envoy::config::core::v3::address::Address as AddressKind;
use nuncio_proto::envoy::config::core::v3::envoy_internal_address::AddressNameSpecifier;
use nuncio_proto::envoy::config::core::v3::socket_address::{PortSpecifier, Protocol};
use nuncio_proto::envoy::config::core::v3::{Address as AddressProto, HealthStatus, Locality, Metadata};
use nuncio_proto::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use nuncio_proto::envoy::config::endpoint::v3::{ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints};
use nuncio_proto::envoy::r#type::v3::fractional_percent::DenominatorType;
use nuncio_proto::{Message, Struct, Value};
use prost_types::value::Kind;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// An address as configuration writes it. Names are errors: only DNS clusters resolve.
pub(crate) fn address(proto: Option<&AddressProto>, at: &At<'_>, report: &mut Report) -> Option<Address> {
    match proto.and_then(|p| p.address.as_ref()) {
        None => {
            report.error(at, "missing", "an address");
            None
        }
        Some(AddressKind::Pipe(pipe)) => Some(Address::Pipe(pipe.path.as_str().into())),
        Some(AddressKind::EnvoyInternalAddress(internal)) => {
            let listener = match &internal.address_name_specifier {
                Some(AddressNameSpecifier::ServerListenerName(name)) => name.as_str(),
                None => "",
            };
            report.unsupported(at, format_args!("internal listener address envoy://{listener}/{}", internal.endpoint_id));
            None
        }
        Some(AddressKind::SocketAddress(socket)) => {
            let at = at.field("socket_address");
            if socket.protocol == Protocol::Udp as i32 {
                report.unsupported(&at.field("protocol"), "UDP");
                return None;
            }
            if !socket.resolver_name.is_empty() {
                report.unsupported(&at.field("resolver_name"), format_args!("resolver {}", socket.resolver_name));
                return None;
            }
            if !socket.network_namespace_filepath.is_empty() {
                report.unsupported(&at.field("network_namespace_filepath"), "network_namespace_filepath");
                return None;
            }
            let port = port(&socket.port_specifier, &at, report)?;
            match socket.address.parse::<IpAddr>() {
                Ok(ip) => Some(Address::Ip(SocketAddr::new(ip, port))),
                Err(_) => {
                    // Envoy's words, which people search for.
                    let found = format!("malformed IP address: {}", socket.address);
                    report.error(&at.field("address"), found, "an IP address; STRICT_DNS and LOGICAL_DNS clusters resolve names");
                    None
                }
            }
        }
    }
}

/// A port number.
pub(crate) fn port(specifier: &Option<PortSpecifier>, at: &At<'_>, report: &mut Report) -> Option<u16> {
    match specifier {
        Some(PortSpecifier::PortValue(port)) => match u16::try_from(*port) {
            Ok(port) => Some(port),
            Err(_) => {
                report.error(&at.field("port_value"), port.to_string(), "0 to 65535");
                None
            }
        },
        Some(PortSpecifier::NamedPort(name)) => {
            report.unsupported(&at.field("named_port"), format_args!("port name {name}"));
            None
        }
        None => {
            report.error(&at.field("port_value"), "missing", "a port");
            None
        }
    }
}

/// Makes hosts, taking over the state of those that were there before.
pub(crate) struct Builder<'a> {
    spec: &'a Spec,
    before: Map<Address, Arc<Host>>,
    seen: Map<Address, ()>,
    /// Equal metadata, localities and names are kept once.
    metadata: Map<Vec<u8>, Arc<LazyMetadata>>,
    localities: Vec<Arc<Locality>>,
    local: Option<&'a Locality>,
    sets: Vec<Vec<Place>>,
}

/// A locality that is being filled.
struct Place {
    locality: Option<Arc<Locality>>,
    weight: u32,
    hosts: Vec<Arc<Host>>,
}

/// One host to be made.
pub(crate) struct HostSource<'a> {
    pub address: Address,
    pub additional: Box<[Address]>,
    pub hostname: &'a str,
    pub endpoint: &'a LbEndpoint,
    pub health_check: Option<Box<HealthCheckTarget>>,
    /// The state to go on with, whatever the address (LOGICAL_DNS).
    pub state: Option<Arc<HostState>>,
}

impl<'a> Builder<'a> {
    /// `before`: the hosts that were there; `local`: this proxy's locality.
    pub(crate) fn new(spec: &'a Spec, before: &Endpoints, local: Option<&'a Locality>) -> Self {
        Self {
            spec,
            before: before.hosts().map(|h| (h.address.clone(), h.clone())).collect(),
            seen: Map::default(),
            metadata: Map::default(),
            localities: Vec::new(),
            local,
            sets: Vec::new(),
        }
    }
    /// Begins a locality; its hosts follow.
    pub(crate) fn locality(&mut self, proto: &LocalityLbEndpoints) {
        let priority = proto.priority as usize;
        if self.sets.len() <= priority {
            self.sets.resize_with(priority + 1, Vec::new);
        }
        let locality = proto.locality.as_ref().map(|l| self.shared_locality(l));
        if let Some(set) = self.sets.get_mut(priority) {
            // The same locality twice is one locality, with the later weight, as in Envoy.
            match set.iter_mut().find(|l| l.locality == locality) {
                Some(known) => known.weight = proto.load_balancing_weight.unwrap_or(known.weight),
                None => set.push(Place { locality, weight: proto.load_balancing_weight.unwrap_or(0), hosts: Vec::new() }),
            }
        }
    }
    fn shared_locality(&mut self, locality: &Locality) -> Arc<Locality> {
        if let Some(known) = self.localities.iter().find(|l| l.as_ref() == locality) {
            return known.clone();
        }
        let before = self.before.values().find_map(|h| h.locality.as_ref().filter(|l| l.as_ref() == locality));
        let shared = before.cloned().unwrap_or_else(|| Arc::new(locality.clone()));
        self.localities.push(shared.clone());
        shared
    }
    fn shared_metadata(&mut self, metadata: Option<&Metadata>) -> Arc<LazyMetadata> {
        let key = metadata.map(Message::encode_to_vec).unwrap_or_default();
        self.metadata.entry(key).or_insert_with(|| Arc::new(LazyMetadata::new(metadata))).clone()
    }
    /// Adds a host to the locality of `proto`; a second one of the same address is left out, as in Envoy.
    pub(crate) fn host(&mut self, proto: &LocalityLbEndpoints, source: HostSource<'_>) {
        if self.seen.insert(source.address.clone(), ()).is_some() {
            return;
        }
        let before = self.before.get(&source.address).cloned();
        let locality = proto.locality.as_ref().map(|l| self.shared_locality(l));
        let endpoint = source.endpoint;
        let eds_health = HealthStatus::try_from(endpoint.health_status).unwrap_or(HealthStatus::Unknown);
        let state = source.state.or_else(|| before.as_ref().map(|h| h.state.clone())).unwrap_or_else(|| fresh(self.spec, eds_health));
        set_eds_health(&state, eds_health);
        state.clear_flag(HealthFlags::PENDING_DYNAMIC_REMOVAL);
        state.set_removed(false);
        let same_metadata = before.as_ref().filter(|h| {
            let bytes = h.metadata.bytes();
            endpoint.metadata.as_ref().map_or(bytes.is_empty(), |m| m.encoded_len() == bytes.len() && m.encode_to_vec() == bytes)
        });
        let metadata = same_metadata.map(|h| h.metadata.clone()).unwrap_or_else(|| self.shared_metadata(endpoint.metadata.as_ref()));
        let same_name = before.as_ref().filter(|h| *h.hostname == *source.hostname);
        let host = Host {
            state,
            hostname: same_name.map_or_else(|| source.hostname.into(), |h| h.hostname.clone()),
            transport: transport(&self.spec.transports, endpoint.metadata.as_ref()),
            metadata,
            weight: endpoint.load_balancing_weight.unwrap_or(1).max(1),
            priority: proto.priority,
            canary: canary(endpoint.metadata.as_ref()),
            eds_health,
            additional: source.additional,
            health_check: source.health_check,
            address: source.address,
            locality: locality.clone(),
        };
        // Nothing new about it: keep the object that others already hold.
        let host = before.filter(|b| b.same_description(&host)).unwrap_or_else(|| Arc::new(host));
        let set = self.sets.get_mut(proto.priority as usize);
        if let Some(place) = set.and_then(|s| s.iter_mut().find(|l| l.locality == locality)) {
            place.hosts.push(host);
        }
    }
    /// The state of the host that was at `address` before.
    pub(crate) fn state_of(&self, address: &Address) -> Option<Arc<HostState>> {
        self.before.get(address).map(|h| h.state.clone())
    }
    /// The hosts, priorities without any included; localities in Envoy's order, the local one first.
    pub(crate) fn finish(self, assignment: &ClusterLoadAssignment) -> Endpoints {
        let policy = assignment.policy.clone().unwrap_or_default();
        let local = self.local.filter(|l| **l != Locality::default());
        let set = |mut places: Vec<Place>| {
            let key = |l: &Place| l.locality.as_deref().map(|l| (l.region.clone(), l.zone.clone(), l.sub_zone.clone()));
            let is_local = |l: &Place| local.is_some() && l.locality.as_deref() == local;
            places.retain(|l| !l.hosts.is_empty());
            places.sort_by(|a, b| is_local(b).cmp(&is_local(a)).then_with(|| key(a).cmp(&key(b))));
            let has_local = places.first().is_some_and(is_local);
            let done = |l: Place| EndpointLocality { locality: l.locality, weight: l.weight, hosts: l.hosts.into_boxed_slice() };
            EndpointSet { localities: places.into_iter().map(done).collect(), has_local }
        };
        let mut sets: Vec<EndpointSet> = self.sets.into_iter().map(set).collect();
        if sets.is_empty() {
            sets.push(EndpointSet::default());
        }
        Endpoints {
            sets: sets.into_boxed_slice(),
            overprovisioning: policy.overprovisioning_factor.unwrap_or(140),
            weighted_health: policy.weighted_priority_health,
            drop_overload: drop_overload(&policy),
        }
    }
}

/// The state of a host that was not there before.
pub(crate) fn fresh(spec: &Spec, eds_health: HealthStatus) -> Arc<HostState> {
    let state = HostState::new();
    set_eds_health(&state, eds_health);
    if spec.health_checks.is_empty() {
        state.set_healthy_since(clock());
    } else {
        // Unhealthy until the first check passed.
        state.set_flag(HealthFlags::FAILED_ACTIVE_HC);
        state.set_unchecked(true);
        if spec.ignore_new_hosts {
            state.set_flag(HealthFlags::PENDING_ACTIVE_HC);
        }
    }
    state
}

type Policy = nuncio_proto::envoy::config::endpoint::v3::cluster_load_assignment::Policy;

fn drop_overload(policy: &Policy) -> f64 {
    let Some(percent) = policy.drop_overloads.first().and_then(|d| d.drop_percentage.as_ref()) else { return 0.0 };
    let whole = match DenominatorType::try_from(percent.denominator) {
        Ok(DenominatorType::TenThousand) => 10_000.0,
        Ok(DenominatorType::Million) => 1_000_000.0,
        _ => 100.0,
    };
    (f64::from(percent.numerator) / whole).min(1.0)
}

/// Puts the status that EDS sent into the flags.
fn set_eds_health(state: &HostState, status: HealthStatus) {
    let set = match status {
        HealthStatus::Unhealthy | HealthStatus::Timeout => HealthFlags::FAILED_EDS_HEALTH,
        HealthStatus::Draining => HealthFlags::EDS_STATUS_DRAINING,
        HealthStatus::Degraded => HealthFlags::DEGRADED_EDS_HEALTH,
        HealthStatus::Unknown | HealthStatus::Healthy => 0,
    };
    let all = HealthFlags::FAILED_EDS_HEALTH | HealthFlags::EDS_STATUS_DRAINING | HealthFlags::DEGRADED_EDS_HEALTH;
    state.clear_flag(all & !set);
    state.set_flag(set);
}

/// Index of the first transport socket match whose criteria the endpoint's metadata meets; 0 for the cluster's own.
pub(crate) fn transport(transports: &[TransportMatch], metadata: Option<&Metadata>) -> u16 {
    let fields = metadata.and_then(|m| m.filter_metadata.get("envoy.transport_socket_match"));
    let meets = |t: &TransportMatch| t.criteria.iter().all(|(k, v)| fields.and_then(|f| f.fields.get(k.as_ref())) == Some(v));
    transports.iter().enumerate().skip(1).find(|(_, t)| meets(t)).and_then(|(i, _)| u16::try_from(i).ok()).unwrap_or(0)
}

fn canary(metadata: Option<&Metadata>) -> bool {
    let lb: Option<&Struct> = metadata.and_then(|m| m.filter_metadata.get("envoy.lb"));
    matches!(lb.and_then(|s| s.fields.get("canary")), Some(Value { kind: Some(Kind::BoolValue(true)) }))
}

/// `Endpoint.health_check_config`; none if it says nothing.
pub(crate) fn health_check_target(endpoint: &Endpoint, host: &Address, at: &At<'_>, report: &mut Report) -> Option<Box<HealthCheckTarget>> {
    let config = endpoint.health_check_config.as_ref()?;
    let at = at.field("health_check_config");
    let mut target = config.address.as_ref().and_then(|a| address(Some(a), &at.field("address"), report));
    if config.port_value != 0 {
        match (u16::try_from(config.port_value), target.as_ref().unwrap_or(host)) {
            (Ok(port), Address::Ip(ip)) => target = Some(Address::Ip(SocketAddr::new(ip.ip(), port))),
            _ => report.error(&at.field("port_value"), config.port_value.to_string(), "a port of an IP address"),
        }
    }
    let target = HealthCheckTarget { address: target, hostname: config.hostname.clone(), disabled: config.disable_active_health_check };
    (target != HealthCheckTarget::default()).then(|| Box::new(target))
}

/// The endpoint of an `LbEndpoint`, by name if it is one.
pub(crate) fn resolve<'p>(
    assignment: &'p ClusterLoadAssignment,
    endpoint: &'p LbEndpoint,
    at: &At<'_>,
    report: &mut Report,
) -> Option<&'p Endpoint> {
    match &endpoint.host_identifier {
        Some(HostIdentifier::Endpoint(endpoint)) => Some(endpoint),
        Some(HostIdentifier::EndpointName(name)) => {
            let found = assignment.named_endpoints.get(name);
            if found.is_none() {
                report.error(&at.field("endpoint_name"), name.as_str(), "a name in named_endpoints");
            }
            found
        }
        None => {
            report.error(at, "no endpoint", "endpoint or endpoint_name");
            None
        }
    }
}

/// Fields of a locality and of the policy that every kind of cluster treats alike.
pub(crate) fn check(assignment: &ClusterLoadAssignment, at: &At<'_>, report: &mut Report) {
    let list = at.field("endpoints");
    for (i, locality) in assignment.endpoints.iter().enumerate() {
        let at = list.index(i);
        refuse(report, &at, &[(locality.lb_config.is_some(), "leds_cluster_locality_config")]);
        if locality.priority > 128 {
            report.error(&at.field("priority"), locality.priority.to_string(), "0 to 128");
        }
        let list = at.field("lb_endpoints");
        for (j, endpoint) in locality.lb_endpoints.iter().enumerate() {
            if endpoint.load_balancing_weight == Some(0) {
                report.error(&list.index(j).field("load_balancing_weight"), "0", "at least 1");
            }
            if HealthStatus::try_from(endpoint.health_status).is_err() {
                report.error(&list.index(j).field("health_status"), endpoint.health_status.to_string(), "a HealthStatus");
            }
        }
    }
    let Some(policy) = &assignment.policy else { return };
    let at = at.field("policy");
    if policy.overprovisioning_factor == Some(0) {
        report.error(&at.field("overprovisioning_factor"), "0", "above 0");
    }
    if policy.drop_overloads.len() > 1 {
        report.error(&at.field("drop_overloads"), format!("{} entries", policy.drop_overloads.len()), "one at most, as in Envoy");
    }
    if policy.endpoint_stale_after.is_some() {
        report.warning(&at.field("endpoint_stale_after"), "set", "endpoints are kept until they are replaced");
    }
}

/// The endpoints of an assignment with addresses (EDS, STATIC). None, with errors in `report`, if it is refused.
pub(crate) fn endpoints(
    assignment: &ClusterLoadAssignment,
    spec: &Spec,
    before: &Endpoints,
    local: Option<&Locality>,
    at: &At<'_>,
    report: &mut Report,
) -> Option<Endpoints> {
    let errors = report.errors();
    check(assignment, at, report);
    if report.errors() > errors {
        return None;
    }
    let mut sources = Vec::new();
    let list = at.field("endpoints");
    for (i, locality) in assignment.endpoints.iter().enumerate() {
        let at = list.index(i);
        let list = at.field("lb_endpoints");
        for (j, lb_endpoint) in locality.lb_endpoints.iter().enumerate() {
            let at = list.index(j);
            let Some(endpoint) = resolve(assignment, lb_endpoint, &at, report) else { continue };
            let at = at.field("endpoint");
            if !endpoint.observability_name.is_empty() {
                report.warning(
                    &at.field("observability_name"),
                    endpoint.observability_name.as_str(),
                    "stats and logs show address and hostname",
                );
            }
            let Some(first) = address(endpoint.address.as_ref(), &at.field("address"), report) else { continue };
            let more = at.field("additional_addresses");
            let additional = endpoint.additional_addresses.iter().enumerate();
            let additional = additional.filter_map(|(k, a)| address(a.address.as_ref(), &more.index(k).field("address"), report)).collect();
            let health_check = health_check_target(endpoint, &first, &at, report);
            let source =
                HostSource { address: first, additional, hostname: &endpoint.hostname, endpoint: lb_endpoint, health_check, state: None };
            sources.push((locality, source));
        }
    }
    if report.errors() > errors {
        return None;
    }
    let mut builder = Builder::new(spec, before, local);
    for locality in &assignment.endpoints {
        builder.locality(locality);
    }
    for (locality, source) in sources {
        builder.host(locality, source);
    }
    Some(builder.finish(assignment))
}
