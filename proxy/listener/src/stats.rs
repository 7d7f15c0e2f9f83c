//! Stats of a listener (`listener.<address>.*`), of its workers and of the manager. Source: Envoy's `active_tcp_listener.h`,
//! `connection_handler.h` and `listener_manager_impl.h`.

use nuncio_stats::{Counter, Gauge, Histogram, Scope};

/// `listener.<address>.*`.
#[derive(Debug)]
pub(crate) struct ListenerStats {
    pub cx_total: Counter,
    pub cx_destroy: Counter,
    pub cx_active: Gauge,
    pub cx_length_ms: Histogram,
    pub cx_overflow: Counter,
    pub cx_overload_reject: Counter,
    pub global_cx_overflow: Counter,
    pub pre_cx_active: Gauge,
    pub pre_cx_timeout: Counter,
    pub transport_socket_connect_timeout: Counter,
    pub no_filter_chain_match: Counter,
    pub listener_filter_remote_close: Counter,
    pub listener_filter_error: Counter,
    pub accepted_per_event: Histogram,
    pub workers: Vec<WorkerStats>,
}

/// `listener.<address>.worker_<n>.*`.
#[derive(Debug)]
pub(crate) struct WorkerStats {
    pub cx_total: Counter,
    pub cx_active: Gauge,
}

impl ListenerStats {
    pub(crate) fn new(scope: &Scope, workers: usize) -> Self {
        let worker = |i: usize| {
            let scope = scope.scope(&format!("worker_{i}."));
            WorkerStats { cx_total: scope.counter("downstream_cx_total"), cx_active: scope.gauge("downstream_cx_active") }
        };
        // Nothing here is discovered (ECDS of network filters is refused); the names show as in Envoy.
        scope.counter("extension_config_missing");
        scope.counter("network_extension_config_missing");
        Self {
            cx_total: scope.counter("downstream_cx_total"),
            cx_destroy: scope.counter("downstream_cx_destroy"),
            cx_active: scope.gauge("downstream_cx_active"),
            cx_length_ms: scope.histogram("downstream_cx_length_ms"),
            cx_overflow: scope.counter("downstream_cx_overflow"),
            cx_overload_reject: scope.counter("downstream_cx_overload_reject"),
            global_cx_overflow: scope.counter("downstream_global_cx_overflow"),
            pre_cx_active: scope.gauge("downstream_pre_cx_active"),
            pre_cx_timeout: scope.counter("downstream_pre_cx_timeout"),
            transport_socket_connect_timeout: scope.counter("downstream_cx_transport_socket_connect_timeout"),
            no_filter_chain_match: scope.counter("no_filter_chain_match"),
            listener_filter_remote_close: scope.counter("downstream_listener_filter_remote_close"),
            listener_filter_error: scope.counter("downstream_listener_filter_error"),
            accepted_per_event: scope.histogram("connections_accepted_per_socket_event"),
            workers: (0..workers).map(worker).collect(),
        }
    }
}

/// `listener_manager.*`.
#[derive(Debug)]
pub(crate) struct ManagerStats {
    pub listener_added: Counter,
    pub listener_modified: Counter,
    pub listener_removed: Counter,
    pub listener_stopped: Counter,
    pub listener_create_success: Counter,
    pub listener_create_failure: Counter,
    pub listener_in_place_updated: Counter,
    pub total_filter_chains_draining: Gauge,
    pub total_listeners_active: Gauge,
    pub total_listeners_draining: Gauge,
    pub workers_started: Gauge,
}

impl ManagerStats {
    pub(crate) fn new(root: &Scope) -> Self {
        let scope = root.scope("listener_manager.");
        // Set by whoever warms listeners; made here so that it shows.
        scope.gauge("total_listeners_warming");
        // Workers are not pinned to cores.
        scope.gauge("workers_pinned");
        Self {
            listener_added: scope.counter("listener_added"),
            listener_modified: scope.counter("listener_modified"),
            listener_removed: scope.counter("listener_removed"),
            listener_stopped: scope.counter("listener_stopped"),
            listener_create_success: scope.counter("listener_create_success"),
            listener_create_failure: scope.counter("listener_create_failure"),
            listener_in_place_updated: scope.counter("listener_in_place_updated"),
            total_filter_chains_draining: scope.gauge("total_filter_chains_draining"),
            total_listeners_active: scope.gauge("total_listeners_active"),
            total_listeners_draining: scope.gauge("total_listeners_draining"),
            workers_started: scope.gauge("workers_started"),
        }
    }
}
