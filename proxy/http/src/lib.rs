//! The HTTP codecs of both sides under one seam: HTTP/1 by a codec of our own over `httparse`, HTTP/2 by the `h2` crate.
//!
//! Server side (called by nuncio-hcm, on a worker): [`serve_h1`] and [`serve_h2`] drive one connection to its end and call a
//! [`Service`] once per stream. Client side (called by nuncio-upstream, on a worker): [`h1::Client`] and [`h2::Client`] give
//! a [`ClientStream`]. Nothing here is `Send`; a connection and its streams stay on the worker that made them.
//!
//! The HTTP/1 parsers and encoders are I/O-free (`h1::request`, `h1::response`, `h1::body`, `h1::chunked`, `h1::encode`):
//! bytes in, events out. They are what the fuzz targets of `tests/fuzz` drive.

pub mod auto;
pub mod client;
pub mod compile;
pub mod control;
pub mod h1;
pub mod h2;
pub mod options;
mod reason;
pub mod service;
mod timer;
pub mod validate;

pub use client::ClientStream;
pub use control::{ConnControl, ConnectionEnd};
pub use h1::server::serve_h1;
pub use h2::server::serve_h2;
pub use options::{
    ClientOptions, CodecStats, FloodLimits, H1Options, H2Options, HeaderKeyFormat, HeadersWithUnderscores, KeepAlive, ServerOptions,
};
pub use reason::reason_phrase;
pub use service::{Informational, Malformed, Request, Response, Service, StreamControl, Unserved, WhyUnserved};
