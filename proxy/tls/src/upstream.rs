//! The client side: `UpstreamTlsContext`.

use crate::secret::SecretStore;
use crate::{TlsFailure, Transport};
use nuncio_core::TlsInfo;
use nuncio_core::diag::{At, Report};
use nuncio_core::stats::Scope;
use nuncio_proto::envoy::extensions::transport_sockets::tls::v3::UpstreamTlsContext;
use std::sync::Arc;

/// What one connection may change of its context; Envoy's `TransportSocketOptions`.
#[derive(Clone, Copy, Debug, Default)]
pub struct ConnectOptions<'a> {
    /// SNI instead of the context's (`auto_sni`, filter state `envoy.network.upstream_server_name`).
    pub sni: Option<&'a str>,
    /// ALPN instead of the context's (filter state `envoy.network.application_protocols`, or what the pool's codec needs); empty for none.
    pub alpn: Option<&'a [Vec<u8>]>,
    /// ALPN if neither the context nor `alpn` gives any (Envoy's `applicationProtocolFallback`).
    pub alpn_fallback: &'a [Vec<u8>],
    /// The host's name, for `auto_host_sni`.
    pub hostname: Option<&'a str>,
    /// One of these must be among the certificate's SANs, instead of the context's matchers (`auto_san_validation`,
    /// filter state `envoy.network.upstream_subject_alt_names`).
    pub verify_sans: Option<&'a [String]>,
}

/// A compiled `UpstreamTlsContext`. One per cluster or transport socket match, shared by the workers.
#[derive(Debug)]
pub struct UpstreamTls {}

impl UpstreamTls {
    /// Compiles `context`. `scope` is `cluster.<name>.`; stats are made below it as `ssl.*`. None means refused.
    pub fn compile(
        _context: &UpstreamTlsContext,
        _secrets: &Arc<SecretStore>,
        _scope: &Scope,
        _at: &At<'_>,
        _report: &mut Report,
    ) -> Option<Arc<Self>> {
        None
    }
    /// Shakes hands as the client. The future is large: box it if it lives in a long one.
    pub async fn connect(&self, _io: Transport, _options: &ConnectOptions<'_>) -> Result<(Transport, Arc<TlsInfo>), TlsFailure> {
        Err(TlsFailure::SecretMissing(String::new()))
    }
    /// Whether every SDS secret that the context names has arrived; for warming.
    pub fn ready(&self) -> bool {
        false
    }
    /// Protocols that the context offers by ALPN; empty for none.
    pub fn alpn(&self) -> &[Vec<u8>] {
        &[]
    }
    /// The SNI that a connection with `options` sends; part of a pool's key together with ALPN and SANs.
    pub fn sni<'a>(&'a self, options: &ConnectOptions<'a>) -> Option<&'a str> {
        options.sni
    }
}
