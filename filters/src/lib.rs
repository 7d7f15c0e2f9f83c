//! Envoy's filters and our own, one file or folder each. Compiled on the control thread, run on every worker; `register` is called once
//! by `main`. Filters that are not here are not registered: a listener that uses one is refused by name, never served without it.

pub mod admission_control;
pub mod api_key_auth;
pub mod bandwidth_limit;
pub mod basic_auth;
pub mod buffer;
pub mod compressor;
pub mod concurrency_queue;
pub mod connection;
pub mod consumer;
pub mod cors;
pub mod csrf;
pub mod custom_response;
pub mod decompressor;
pub mod dynamic_forward_proxy;
pub mod ext_authz;
pub mod fault;
pub mod format_values;
pub mod grpc_stats;
pub mod grpc_web;
pub mod header_mutation;
pub mod header_to_metadata;
pub mod health_check;
pub mod hmac_auth;
pub mod ip_tagging;
pub mod jwt_authn;
pub mod local_ratelimit;
pub mod rate_limit;
pub mod ratelimit;
pub mod rbac;
pub mod secret;
pub mod set_filter_state;
pub mod set_metadata;
pub mod signed_url;
pub mod stateful_session;

mod cluster_stats;
mod config;
mod shared;
mod signing;
mod watched;
mod whole;

use nuncio_core::registry::Registry;

/// Adds every filter of this crate to `registry`.
pub fn register(registry: &mut Registry) {
    registry.http.push(Box::new(admission_control::Factory));
    registry.http.push(Box::new(api_key_auth::Factory));
    registry.http.push(Box::new(bandwidth_limit::Factory));
    registry.http.push(Box::new(basic_auth::Factory));
    registry.http.push(Box::new(buffer::Factory));
    registry.http.push(Box::new(compressor::Factory));
    registry.http.push(Box::new(concurrency_queue::Factory));
    registry.http.push(Box::new(cors::Factory));
    registry.http.push(Box::new(csrf::Factory));
    registry.http.push(Box::new(custom_response::Factory));
    registry.http.push(Box::new(decompressor::Factory));
    registry.http.push(Box::new(dynamic_forward_proxy::Factory));
    registry.network.push(Box::new(dynamic_forward_proxy::SniFactory));
    registry.http.push(Box::new(ext_authz::Factory));
    registry.http.push(Box::new(fault::Factory));
    registry.http.push(Box::new(grpc_stats::Factory));
    registry.http.push(Box::new(grpc_web::Factory));
    registry.http.push(Box::new(header_mutation::Factory));
    registry.http.push(Box::new(header_to_metadata::Factory));
    registry.http.push(Box::new(health_check::Factory));
    registry.http.push(Box::new(ip_tagging::Factory));
    registry.http.push(Box::new(jwt_authn::Factory));
    registry.http.push(Box::new(local_ratelimit::Factory));
    registry.http.push(Box::new(rbac::HttpFactory));
    registry.http.push(Box::new(ratelimit::Factory));
    registry.http.push(Box::new(set_filter_state::Factory));
    registry.http.push(Box::new(set_metadata::Factory));
    registry.http.push(Box::new(signed_url::Factory));
    registry.http.push(Box::new(hmac_auth::Factory));
    registry.http.push(Box::new(consumer::Factory));
    registry.network.push(Box::new(connection::ExtAuthzFactory));
    registry.network.push(Box::new(connection::LimitFactory));
    registry.network.push(Box::<connection::RateFactory>::default());
    registry.network.push(Box::new(connection::RateLimitFactory));
    registry.network.push(Box::new(rbac::NetworkFactory));
    registry.http.push(Box::new(stateful_session::Factory));
}
