//! Istio's own filters: metadata exchange (HTTP and TCP), istio.alpn and istio.stats. Compiled on the control thread, run on
//! every worker; `register` is called once by `main`. Contract: Envoy contrib `istio/`, whose names and labels they keep.

pub mod alpn;
pub mod baggage;
pub mod cel;
pub mod http_mx;
pub mod peer;
pub mod preamble;
pub mod stats;
pub mod tcp_mx;

#[cfg(test)]
mod istiod_tests;

use nuncio_core::registry::Registry;

/// Adds every Istio filter to `registry`, and CEL to formats and log filters.
pub fn register(registry: &mut Registry) {
    nuncio_format::set_expressions(Box::new(cel::compile_for_formats));
    registry.http.push(Box::new(http_mx::Factory));
    registry.http.push(Box::new(alpn::Factory));
    registry.http.push(Box::new(stats::HttpFactory));
    registry.network.push(Box::new(tcp_mx::Factory::downstream()));
    registry.network.push(Box::new(stats::NetworkFactory));
    registry.upstream_network.push(Box::new(tcp_mx::Factory::upstream()));
}
