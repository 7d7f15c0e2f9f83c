//! Stats of one connection manager: `http.<stat_prefix>.*`, `http.<stat_prefix>.downstream_*` and `listener.<addr>.http.*`.
//! Source: Envoy docs, "HTTP connection manager statistics". Handles are made when the configuration is compiled.

use nuncio_core::HttpVersion;
use nuncio_stats::{Counter, Gauge, Histogram, Scope};

macro_rules! stats {
    ($($kind:ident { $($field:ident),* $(,)? })*) => {
        /// Handles of one `stat_prefix`.
        #[derive(Debug)]
        pub struct HcmStats { $($(pub $field: stats!(@type $kind),)*)* }
        impl HcmStats {
            /// Makes the stats below `scope` (`http.<stat_prefix>.`).
            pub fn new(scope: &Scope) -> Self {
                Self { $($($field: scope.$kind(stringify!($field)),)*)* }
            }
        }
    };
    (@type counter) => { Counter };
    (@type gauge) => { Gauge };
    (@type histogram) => { Histogram };
}

stats! {
    counter {
        downstream_cx_total, downstream_cx_ssl_total, downstream_cx_http1_total, downstream_cx_http2_total, downstream_cx_upgrades_total,
        downstream_cx_destroy, downstream_cx_destroy_remote, downstream_cx_destroy_local, downstream_cx_destroy_active_rq,
        downstream_cx_destroy_remote_active_rq, downstream_cx_destroy_local_active_rq, downstream_cx_rx_bytes_total,
        downstream_cx_tx_bytes_total, downstream_cx_drain_close, downstream_cx_idle_timeout, downstream_cx_max_duration_reached,
        downstream_cx_max_requests_reached, downstream_cx_protocol_error, downstream_cx_delayed_close_timeout,
        downstream_rq_total, downstream_rq_http1_total, downstream_rq_http2_total, downstream_rq_rx_reset, downstream_rq_tx_reset,
        downstream_rq_non_relative_path, downstream_rq_too_large, downstream_rq_completed, downstream_rq_failed_path_normalization,
        downstream_rq_header_timeout, downstream_rq_idle_timeout, downstream_rq_max_duration_reached, downstream_rq_timeout,
        downstream_rq_overload_close, downstream_rq_redirected_with_normalized_path, downstream_rq_rejected_via_ip_detection,
        downstream_rq_response_before_rq_complete, downstream_rq_ws_on_non_ws_route, downstream_rq_too_many_premature_resets,
        downstream_rq_1xx, downstream_rq_2xx, downstream_rq_3xx, downstream_rq_4xx, downstream_rq_5xx,
        passthrough_internal_redirect_bad_location, passthrough_internal_redirect_no_route, passthrough_internal_redirect_predicate,
        passthrough_internal_redirect_too_many_redirects, passthrough_internal_redirect_unsafe_scheme,
        no_route, no_cluster, rq_direct_response, rq_redirect, rq_total, rq_reset_after_downstream_response_started, rq_retry_skipped_request_not_complete,
    }
    gauge {
        downstream_cx_active, downstream_cx_ssl_active, downstream_cx_http1_active, downstream_cx_http2_active,
        downstream_cx_upgrades_active, downstream_rq_active, downstream_cx_rx_bytes_buffered, downstream_cx_tx_bytes_buffered,
    }
    histogram { downstream_cx_length_ms, downstream_rq_time }
}

impl HcmStats {
    /// Counts a connection's codec.
    pub fn codec_opened(&self, version: HttpVersion) {
        if version == HttpVersion::Http2 {
            self.downstream_cx_http2_total.inc();
            self.downstream_cx_http2_active.inc();
        } else {
            self.downstream_cx_http1_total.inc();
            self.downstream_cx_http1_active.inc();
        }
    }
    /// Counts the end of a connection's codec.
    pub fn codec_closed(&self, version: HttpVersion) {
        if version == HttpVersion::Http2 {
            self.downstream_cx_http2_active.dec();
        } else {
            self.downstream_cx_http1_active.dec();
        }
    }
    /// Counts a request.
    pub fn request(&self, version: HttpVersion) {
        self.downstream_rq_total.inc();
        self.downstream_rq_active.inc();
        if version == HttpVersion::Http2 { self.downstream_rq_http2_total.inc() } else { self.downstream_rq_http1_total.inc() }
    }
    /// Counts a finished response by class; `downstream_rq_completed` too.
    pub fn response(&self, status: u16) {
        self.downstream_rq_completed.inc();
        self.class(status).inc();
    }
    fn class(&self, status: u16) -> &Counter {
        match status {
            100..=199 => &self.downstream_rq_1xx,
            200..=299 => &self.downstream_rq_2xx,
            300..=399 => &self.downstream_rq_3xx,
            400..=499 => &self.downstream_rq_4xx,
            _ => &self.downstream_rq_5xx,
        }
    }
}

/// Per listener: `listener.<addr>.http.<stat_prefix>.downstream_rq_*`.
#[derive(Debug)]
pub struct ListenerHttpStats {
    pub downstream_rq_completed: Counter,
    classes: [Counter; 5],
}

impl ListenerHttpStats {
    /// Makes the stats below `scope`.
    pub fn new(scope: &Scope) -> Self {
        let class = |n: u8| scope.counter(&format!("downstream_rq_{n}xx"));
        Self {
            downstream_rq_completed: scope.counter("downstream_rq_completed"),
            classes: [class(1), class(2), class(3), class(4), class(5)],
        }
    }
    /// Counts a finished response.
    pub fn response(&self, status: u16) {
        self.downstream_rq_completed.inc();
        if let Some(class) = self.classes.get(usize::from(status / 100).clamp(1, 5) - 1) {
            class.inc();
        }
    }
}
