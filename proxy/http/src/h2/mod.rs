//! HTTP/2 over the `h2` crate: header conversion, flow control and the life of connections on both sides.

pub mod client;
pub mod server;

pub use client::{Client, Stream};
