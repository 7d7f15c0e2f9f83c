//! `tcp.<stat_prefix>.*`. Names are Envoy's.

use nuncio_stats::{Counter, Gauge, Scope};

/// Counters of one tcp_proxy filter.
#[derive(Debug)]
pub(crate) struct Stats {
    pub cx_total: Counter,
    pub cx_no_route: Counter,
    pub cx_drain_close: Counter,
    pub rx_bytes_total: Counter,
    pub tx_bytes_total: Counter,
    /// Bytes from the peer that the upstream has not taken yet.
    pub rx_bytes_buffered: Gauge,
    /// Bytes for the peer that it has not taken yet.
    pub tx_bytes_buffered: Gauge,
    /// The upstream takes bytes more slowly than the peer sends them.
    pub paused_reading: Counter,
    pub resumed_reading: Counter,
    pub early_data: Counter,
    pub idle_timeout: Counter,
    pub max_duration: Counter,
    pub upstream_flush_total: Counter,
    pub upstream_flush_active: Gauge,
}

impl Stats {
    /// The counters under `tcp.<prefix>.`.
    pub fn new(root: &Scope, prefix: &str) -> Self {
        let scope = root.scope(&format!("tcp.{prefix}."));
        // Always zero here: nothing waits for route updates, and there is no overload manager that closes TCP connections.
        scope.counter("route_delayed_total");
        scope.counter("downstream_cx_overload_close");
        Self {
            cx_total: scope.counter("downstream_cx_total"),
            cx_no_route: scope.counter("downstream_cx_no_route"),
            cx_drain_close: scope.counter("downstream_cx_drain_close"),
            rx_bytes_total: scope.counter("downstream_cx_rx_bytes_total"),
            tx_bytes_total: scope.counter("downstream_cx_tx_bytes_total"),
            rx_bytes_buffered: scope.gauge("downstream_cx_rx_bytes_buffered"),
            tx_bytes_buffered: scope.gauge("downstream_cx_tx_bytes_buffered"),
            paused_reading: scope.counter("downstream_flow_control_paused_reading_total"),
            resumed_reading: scope.counter("downstream_flow_control_resumed_reading_total"),
            early_data: scope.counter("early_data_received_count_total"),
            idle_timeout: scope.counter("idle_timeout"),
            max_duration: scope.counter("max_downstream_connection_duration"),
            upstream_flush_total: scope.counter("upstream_flush_total"),
            upstream_flush_active: scope.gauge("upstream_flush_active"),
        }
    }
}
