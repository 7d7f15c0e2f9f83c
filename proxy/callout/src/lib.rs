//! Calls that filters and loggers make to other services through Nuncio's own clusters, as Envoy's `AsyncClient` does: load balancing,
//! pools, TLS, circuit breakers, outlier detection and stats of the cluster apply. Everything here is compiled on the control thread
//! and run on a worker, inside its `LocalSet`; futures are not `Send`, and dropping one cancels the call.
//!
//! [`fetch`] is one HTTP request; [`HttpTarget`] compiles `HttpUri`. [`GrpcClient`] compiles `GrpcService` and makes unary calls and
//! streams. A cluster is found by name when the call is made, so that it may come, change and go.

mod attempt;
mod fetch;
pub mod frame;
mod grpc;
mod headers;
mod retry;
mod stream;
mod target;
#[cfg(feature = "test-kit")]
#[allow(clippy::panic)] // Tests stop where something is wrong.
pub mod test_kit;

pub use attempt::Meter;
pub use fetch::{FetchOptions, fetch};
pub use grpc::{GrpcClient, GrpcError};
pub use headers::AddedHeaders;
pub use retry::compile_retry;
pub use stream::GrpcStream;
pub use target::HttpTarget;

use nuncio_core::StreamError;
use std::fmt;

/// Why a call gave no response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CalloutError {
    /// There is no cluster of this name.
    UnknownCluster,
    /// The cluster has no host to call.
    NoHealthyHost,
    /// `drop_overloads` of the cluster dropped the call.
    Dropped,
    /// No answer within the timeout.
    Timeout,
    /// The response's body is larger than the caller takes.
    TooLarge,
    /// The stream failed: connecting, circuit breakers, resets, protocol errors.
    Stream(StreamError),
}

impl fmt::Display for CalloutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownCluster => f.write_str("unknown cluster"),
            Self::NoHealthyHost => f.write_str("no healthy upstream"),
            Self::Dropped => f.write_str("drop overload"),
            Self::Timeout => f.write_str("timeout"),
            Self::TooLarge => f.write_str("response too large"),
            Self::Stream(error) => error.fmt(f),
        }
    }
}
impl std::error::Error for CalloutError {}
