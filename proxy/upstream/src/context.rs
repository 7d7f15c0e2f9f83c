//! What a request or a connection brings to host selection and to connecting. Built on the stack by the router and tcp_proxy
//! on a worker, once per attempt.

use crate::host::Host;
use nuncio_core::filter_state::{APPLICATION_PROTOCOLS, ApplicationProtocols, FilterState, StringState};
use nuncio_core::{ConnectionInfo, HttpVersion, RequestHead, StreamInfo};
use nuncio_proto::Struct;
use std::rc::Rc;
use std::sync::Arc;

/// `core.v3.RoutingPriority`: which circuit breakers count the request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RoutingPriority {
    #[default]
    Default,
    High,
}

/// `envoy.retry_priorities.previous_priorities`: priorities of hosts that were tried get no load.
#[derive(Clone, Copy, Debug)]
pub struct PriorityRetry<'a> {
    /// `PreviousPrioritiesConfig.update_frequency`, at least 1.
    pub update_frequency: u32,
    /// Priorities of the hosts tried so far, in order.
    pub attempted: &'a [u32],
    /// Those hosts, in the same order: aggregate clusters have priorities of their own.
    pub hosts: &'a [Arc<Host>],
}

/// A host that the request must or should go to (stateful session, override_host).
#[derive(Clone, Copy, Debug)]
pub struct OverrideHost<'a> {
    /// `ip:port`, or the path of a pipe.
    pub address: &'a str,
    /// No other host is picked if this one cannot be.
    pub strict: bool,
}

/// What host selection may look at. Source: Envoy's `LoadBalancerContext`.
#[derive(Clone, Copy, Debug, Default)]
pub struct LbContext<'a> {
    /// Hash of the route's (or tcp_proxy's) hash policy; none picks at random.
    pub hash: Option<u64>,
    /// The downstream connection: original destination, filter state.
    pub downstream: Option<&'a ConnectionInfo>,
    /// The stream: dynamic metadata and filter state for original_dst and override_host.
    pub stream: Option<&'a StreamInfo>,
    pub request: Option<&'a RequestHead>,
    /// `metadata_match` of the route (or tcp_proxy) under `envoy.lb`: which subset is meant. The stream's dynamic metadata wins.
    pub metadata_match: Option<&'a Struct>,
    /// Hosts that retry host predicates reject (`previous_hosts`).
    pub avoid: &'a [Arc<Host>],
    /// `host_selection_retry_max_attempts`: how often another host is tried when `avoid` rejects one. Envoy's default is 1.
    pub attempts: u32,
    pub override_host: Option<OverrideHost<'a>>,
    pub retry_priority: Option<PriorityRetry<'a>>,
}

/// How to reach a host that was picked. Everything here that changes the connection is part of the pool's key.
/// Source: Envoy's `TransportSocketOptions` and `Http::ConnectionPool`.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenOptions<'a> {
    pub priority: RoutingPriority,
    /// Protocol of the downstream request, for `use_downstream_protocol_config`; none means HTTP/1.1.
    pub downstream_protocol: Option<HttpVersion>,
    /// The downstream connection: PROXY protocol addresses, connection_pool_per_downstream_connection.
    pub downstream: Option<&'a Rc<ConnectionInfo>>,
    /// ALPN to offer instead of the transport socket's (filter state `envoy.network.application_protocols`).
    pub alpn: Option<&'a ApplicationProtocols>,
    /// SNI (filter state `envoy.network.upstream_server_name`); wins over `auto_sni`.
    pub sni: Option<&'a str>,
    /// SANs to accept (filter state `envoy.network.upstream_subject_alt_names`); wins over `auto_san_validation`.
    pub sans: Option<&'a [String]>,
}

impl<'a> OpenOptions<'a> {
    /// Options with what the stream's filter state asks of the transport socket: ALPN and SNI. SANs are the caller's to set.
    pub fn from_stream(info: &'a StreamInfo, priority: RoutingPriority) -> Self {
        Self {
            priority,
            downstream_protocol: info.protocol,
            downstream: Some(&info.connection),
            alpn: application_protocols(&info.filter_state),
            sni: server_name(&info.filter_state),
            sans: None,
        }
    }
}

/// Filter state that names the SNI to send.
const SERVER_NAME: &str = "envoy.network.upstream_server_name";

/// The SNI that a filter (`set_filter_state`) left in `state`.
fn server_name(state: &FilterState) -> Option<&str> {
    state.get_as::<StringState>(SERVER_NAME).map(|s| s.0.as_str()).filter(|s| !s.is_empty())
}

/// The ALPN override that a filter left in `state`.
pub fn application_protocols(state: &FilterState) -> Option<&ApplicationProtocols> {
    state.get_as::<ApplicationProtocols>(APPLICATION_PROTOCOLS)
}
