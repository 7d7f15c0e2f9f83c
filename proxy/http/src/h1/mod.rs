//! HTTP/1: I/O-free machines and the two drivers above them.

pub mod client;
pub mod server;

pub use client::{Client, Stream};
