//! `envoy.filters.network.tcp_proxy`: bytes between a downstream connection and one to a host of a cluster.
//!
//! Compiled on the control thread by [`TcpProxyFactory`]; each connection is one task on its worker: choose a cluster, connect,
//! copy in both directions until both sides have ended. Source: `envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.proto`.

mod bypass;
mod chunk;
mod config;
mod connect;
mod pump;
#[cfg(test)]
mod pump_tests;
mod session;
mod stats;
mod tlvs;
mod tunnel;
mod upstream;

pub use config::TcpProxyFactory;
