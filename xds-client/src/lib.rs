//! xDS for the control thread: sessions as state machines without I/O ([`DeltaSession`], [`SotwSession`]), a thin gRPC
//! transport that drives one over a stream and reconnects ([`transport`]), and file sources ([`file`]).
//! Knows nothing of the proxy: resources are names, versions and bytes.

mod backoff;
mod delta;
pub mod file;
mod resource;
mod session;
mod sotw;
pub mod transport;

pub use backoff::{Backoff, TokenBucket};
pub use delta::DeltaSession;
pub use resource::{Receipt, Refused, Resource, Update, resource_name, types};
pub use session::Session;
pub use sotw::SotwSession;
