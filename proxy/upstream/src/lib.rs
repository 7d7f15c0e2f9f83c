//! Clusters, endpoints, load balancing, outlier detection, health, DNS and connection pools.
//!
//! Control thread: [`ClusterManager`] compiles clusters, takes endpoint updates, resolves names, checks health, and puts
//! [`Cluster`]s into their slots. Workers: [`Upstreams`] picks hosts and owns the connections to them. The two meet in the
//! `Cluster` (immutable but for endpoints, which are swapped as a whole, and atomics) and in nothing else.

pub mod breaker;
pub mod cluster;
pub mod connection;
pub mod context;
pub mod host;
pub mod manager;
pub mod outlier;
pub mod stats;
pub mod stream;
pub mod upstreams;

pub use breaker::{CircuitBreakers, Thresholds};
pub use cluster::{Cluster, ClusterCx, RetryGuard};
pub use connection::UpstreamConnection;
pub use context::{LbContext, OpenOptions, OverrideHost, PriorityRetry, RoutingPriority, application_protocols};
pub use host::{Health, HealthFlags, Host};
pub use manager::{ClusterManager, EdsWanted, ManagerOptions};
pub use outlier::Outcome;
pub use stats::{Charge, ClusterStats};
pub use stream::UpstreamStream;
pub use upstreams::Upstreams;
