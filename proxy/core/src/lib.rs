//! What filter authors see: exchange, headers, body, response flags, stream info, diagnostics and the filter traits.
//! Every other crate depends on this one; it owns no socket and speaks no gRPC.
//!
//! Threads: configuration objects (`Arc`, `Send + Sync`) are compiled on the control thread and read by every worker;
//! request objects (`Exchange`, `Body`) belong to one worker and are not `Send`.

pub mod addr;
pub mod background;
pub mod body;
pub mod bytestr;
pub mod diag;
pub mod exchange;
pub mod filter;
pub mod filter_state;
pub mod flags;
pub mod grpc;
pub mod headers;
pub mod info;
pub mod local_address;
pub mod local_reply;
pub mod message;
pub mod network;
pub mod proxy_protocol;
pub mod registry;
#[cfg(feature = "test-kit")]
pub mod test_kit;
mod tls_info;
pub mod views;

pub use nuncio_stats as stats;

pub use addr::Address;
pub use body::{Body, BodySource, Frame, StreamError};
pub use bytestr::ByteStr;
pub use exchange::{Exchange, UpstreamOverride};
pub use flags::ResponseFlags;
pub use headers::{HeaderKey, Headers};
pub use info::{ConnectionInfo, StreamInfo, TlsInfo};
pub use local_reply::LocalReply;
pub use message::{HeaderLimits, HttpVersion, RequestHead, ResponseHead};
