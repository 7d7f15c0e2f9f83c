//! HTTP/1: I/O-free machines (`head`, `request`, `response`, `chunked`, `body`, `encode`) and the drivers above them
//! (`server` with `conn` and `reply`, `client`).

pub mod body;
pub mod chunked;
pub mod client;
mod conn;
pub mod encode;
pub mod head;
mod io;
mod reply;
pub mod request;
pub mod response;
pub mod server;
#[cfg(test)]
mod tests;

pub use client::{Client, Stream};
