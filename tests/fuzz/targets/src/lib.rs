//! What fuzzers run: each target is a function of bytes that panics where something is wrong. `tests/fuzz` searches with them, and
//! `tests/seeds.rs` runs what was found and what shows the way.
#![allow(clippy::panic, clippy::unwrap_used, reason = "a panic is how a target tells of a fault")]

mod cel;
mod chunked;
mod client_hello;
mod config;
mod discovery;
mod format;
mod grpc;
mod h1;
mod mutation;
mod preamble;
mod proxy_header;
mod resource;
mod routing;
mod template;

/// A target: it returns if the bytes were treated well.
pub type Target = fn(&[u8]);

/// All of them, by name.
pub const TARGETS: &[(&str, Target)] = &[
    ("h1_request", h1::request),
    ("h1_response", h1::response),
    ("chunked", chunked::check),
    ("client_hello", client_hello::check),
    ("mx_preamble", preamble::check),
    ("proxy_header", proxy_header::check),
    ("grpc_frames", grpc::frames),
    ("grpc_web", grpc::web),
    ("routing", routing::check),
    ("path_template", template::check),
    ("mutation", mutation::check),
    ("format_text", format::text),
    ("format_json", format::json),
    ("cel_text", cel::text),
    ("cel_parsed", cel::parsed),
    ("config", config::check),
    ("listener", resource::listener),
    ("cluster", resource::cluster),
    ("xds_delta", discovery::delta),
    ("xds_sotw", discovery::sotw),
];

/// Runs the target of this name.
pub fn run(name: &str, data: &[u8]) {
    let (_, target) = TARGETS.iter().find(|(known, _)| *known == name).unwrap();
    target(data);
}
