//! A response that the proxy makes itself. Envoy's `sendLocalReply`; the connection manager turns it into gRPC where the
//! request is gRPC, applies local-reply mapping and runs the encoder filters.

use crate::{Headers, ResponseFlags};
use bytes::Bytes;
use std::borrow::Cow;

/// A local response.
#[derive(Clone, Debug)]
pub struct LocalReply {
    /// HTTP status, 200 to 599.
    pub status: u16,
    /// Text body; empty sends none. `content-type: text/plain` unless `headers` say otherwise.
    pub body: Bytes,
    /// `%RESPONSE_CODE_DETAILS%`.
    pub details: Cow<'static, str>,
    /// Flags to set on the stream.
    pub flags: ResponseFlags,
    /// Headers to set on the response.
    pub headers: Headers,
    /// gRPC status for gRPC requests; none maps it from `status` as Envoy does.
    pub grpc_status: Option<u32>,
}

impl LocalReply {
    /// A reply with `status` and `body`.
    pub fn new(status: u16, body: impl Into<Bytes>, details: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            body: body.into(),
            details: details.into(),
            flags: ResponseFlags::default(),
            headers: Headers::new(),
            grpc_status: None,
        }
    }
    /// Adds a response flag.
    pub fn flag(mut self, flag: ResponseFlags) -> Self {
        self.flags.set(flag);
        self
    }
}
