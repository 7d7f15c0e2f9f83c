//! Retries of a request; the decisions are made in nuncio-route, because calls of the proxy's own are retried by the same rules.

pub use nuncio_route::retry_state::{Failure, RetryState, grpc_status};
