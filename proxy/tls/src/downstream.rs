//! The server side: `DownstreamTlsContext`.

use crate::secret::SecretStore;
use crate::{TlsFailure, Transport};
use nuncio_core::TlsInfo;
use nuncio_core::diag::{At, Report};
use nuncio_core::stats::Scope;
use nuncio_proto::envoy::extensions::transport_sockets::tls::v3::DownstreamTlsContext;
use std::sync::Arc;

/// A compiled `DownstreamTlsContext`. One per filter chain, shared by the workers.
#[derive(Debug)]
pub struct DownstreamTls {}

impl DownstreamTls {
    /// Compiles `context`. `scope` is `listener.<address>.`; stats are made below it as `ssl.*`. None means refused.
    pub fn compile(
        _context: &DownstreamTlsContext,
        _secrets: &Arc<SecretStore>,
        _scope: &Scope,
        _at: &At<'_>,
        _report: &mut Report,
    ) -> Option<Arc<Self>> {
        None
    }
    /// Shakes hands as the server. The future is large: box it if it lives in a long one.
    pub async fn accept(&self, _io: Transport) -> Result<(Transport, Arc<TlsInfo>), TlsFailure> {
        Err(TlsFailure::SecretMissing(String::new()))
    }
    /// Whether every SDS secret that the context names has arrived; for warming.
    pub fn ready(&self) -> bool {
        false
    }
    /// Protocols offered by ALPN.
    pub fn alpn(&self) -> &[Vec<u8>] {
        &[]
    }
}
