//! Clusters, endpoints, load balancing, outlier detection, health, DNS and connection pools.
//!
//! Control thread: [`ClusterManager`] compiles clusters, takes endpoint updates, resolves names, checks health, and puts
//! [`Cluster`]s into their slots. Workers: [`Upstreams`] picks hosts and owns the connections to them. The two meet in the
//! `Cluster` (immutable but for endpoints, which are swapped as a whole, and atomics) and in nothing else.

mod aggregate;
pub mod breaker;
pub mod cluster;
mod compile;
pub mod connection;
pub mod context;
mod dns;
pub mod forward_proxy;
mod group;
mod health_check;
pub mod host;
mod lb;
pub mod manager;
mod orca;
mod original_dst;
pub mod outlier;
mod pool;
mod priority;
mod resolved;
pub mod shared;
mod spec;
pub mod stats;
pub mod stream;
#[cfg(test)]
mod tests;
mod timers;
pub mod upstreams;
mod view;

pub use breaker::{CircuitBreakers, Thresholds};
pub use cluster::{Cluster, ClusterCx, RetryGuard};
pub use connection::UpstreamConnection;
pub use context::{LbContext, OpenOptions, OverrideHost, PriorityRetry, RoutingPriority, application_protocols};
pub use group::{GroupStats, GroupTraffic};
pub use host::{Health, HealthFlags, Host};
pub use manager::{ClusterManager, EdsWanted, ManagerOptions};
pub use outlier::Outcome;
pub use pool::proxy::proxy_header;
pub use stats::{Charge, ClusterStats};
pub use stream::UpstreamStream;
pub use upstreams::Upstreams;
