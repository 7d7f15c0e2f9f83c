//! Endpoints of DNS clusters: what names resolved to, in the form of the assignment that they stand in.

use crate::compile::{Builder, HostSource, health_check_target, resolve};
use crate::dns::{DnsSpec, DnsState};
use crate::host::HostState;
use crate::spec::Spec;
use crate::view::Endpoints;
use nuncio_core::Address;
use nuncio_core::diag::{At, Report};
use nuncio_proto::envoy::config::core::v3::Locality;
use std::net::SocketAddr;

/// The endpoints that `state`'s answers make. The assignment was checked when it was compiled.
pub(crate) fn endpoints(spec: &DnsSpec, state: &mut DnsState, cluster: &Spec, before: &Endpoints, local: Option<&Locality>) -> Endpoints {
    let mut builder = Builder::new(cluster, before, local);
    let mut unheard = Report::new();
    let mut index = 0;
    for locality in &spec.assignment.endpoints {
        builder.locality(locality);
        for lb_endpoint in &locality.lb_endpoints {
            let (target, answer) = (spec.targets.get(index), state.answers.get(index).cloned().flatten());
            index += 1;
            let (Some(target), Some(answer)) = (target, answer) else { continue };
            let Some(endpoint) = resolve(&spec.assignment, lb_endpoint, &At::Root, &mut unheard) else { continue };
            let hostname = if endpoint.hostname.is_empty() { target.name.as_ref() } else { &endpoint.hostname };
            let address = |ip| Address::Ip(SocketAddr::new(ip, target.port));
            let mut addresses = answer.into_iter().map(address);
            if spec.logical {
                // One host whatever the address: connections to former addresses live on.
                let Some(first) = addresses.next() else { continue };
                let logical = state.logical.get_or_insert_with(|| builder.state_of(&first).unwrap_or_else(HostState::new)).clone();
                let health_check = health_check_target(endpoint, &first, &At::Root, &mut unheard);
                let source = HostSource {
                    address: first,
                    additional: addresses.collect(),
                    hostname,
                    endpoint: lb_endpoint,
                    health_check,
                    state: Some(logical),
                };
                builder.host(locality, source);
                continue;
            }
            for address in addresses {
                let health_check = health_check_target(endpoint, &address, &At::Root, &mut unheard);
                let source = HostSource { address, additional: Box::default(), hostname, endpoint: lb_endpoint, health_check, state: None };
                builder.host(locality, source);
            }
        }
    }
    builder.finish(&spec.assignment)
}
