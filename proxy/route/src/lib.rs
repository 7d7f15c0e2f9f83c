//! Compiled route tables: virtual hosts, route matching, rewriting, redirects, header mutation, retry and hash policies.
//!
//! `RouteTable::compile` runs on the control thread and turns one `RouteConfiguration` into an immutable table; workers call
//! `RouteTable::route` for each request and keep the `Arc<RouteEntry>` that it gives. Matching allocates nothing.
//! Source: `envoy/config/route/v3/*.proto`, Envoy's `router/config_impl.cc`.

mod absolute_url;
pub mod action;
pub mod cx;
mod domains;
pub mod entry;
mod filters;
pub mod forward;
pub mod hash;
pub mod headers;
mod index;
pub mod internal_redirect;
pub mod mirror;
pub mod mutation_rules;
pub mod mutations;
mod path;
pub mod redirect;
mod refresh;
pub mod respond;
pub mod retry;
pub mod retry_state;
pub mod rewrite;
mod route;
pub mod scopes;
pub mod slots;
mod specifier;
pub mod table;
mod target;
#[cfg(test)]
mod testing;
mod tree;
pub mod vhost;

pub use absolute_url::AbsoluteUrl;
pub use action::Action;
pub use cx::RouteCx;
pub use domains::split_port;
pub use entry::RouteEntry;
pub use filters::DEPRECATED_CORS;
pub use forward::{ConnectConfig, Forward, GrpcTimeout, HedgePolicy, Priority, Upgrade};
pub use hash::{Cookie, HashPolicy, HashResult};
pub use headers::HeaderParser;
pub use internal_redirect::InternalRedirectPolicy;
pub use mirror::MirrorPolicy;
pub use mutation_rules::{MutationRules, Permit};
pub use mutations::HeaderMutations;
pub use redirect::Redirect;
pub use respond::DirectResponse;
pub use retry::{RateLimitedBackOff, RateLimitedReset, RetryOn, RetryPolicy};
pub use slots::{RouteSlot, RouteSlots};
pub use table::{RouteInput, RouteMatch, RouteTable};
pub use vhost::{VirtualCluster, VirtualHostInfo};
