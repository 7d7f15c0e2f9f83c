//! The HTTP connection manager and the router filter.
//!
//! [`HcmFactory`] compiles on the control thread; [`hcm::Hcm`] serves connections on workers. The life of a request:
//! `service` (admit: sanity, path, identity, route) -> `chain` (filters) -> `router` (attempts) -> `service` (respond) ->
//! `stream` (body, end, access log).

mod chain;
mod client_io;
mod compile;
mod compile_identity;
mod compile_lifetime;
pub mod config;
mod date;
pub mod ecds;
pub mod hcm;
mod host;
mod identity;
#[cfg(test)]
mod identity_tests;
mod local_reply;
mod names;
pub mod on_demand;
mod path;
mod proxy_status;
mod request_id;
mod router;
mod routes;
mod service;
mod stats;
mod stream;
mod xfcc;

pub use compile::HcmFactory;
pub use ecds::EcdsSlots;
pub use hcm::Hcm;
pub use on_demand::RouteDiscovery;
