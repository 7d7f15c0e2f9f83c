//! The client side: `UpstreamTlsContext`. Compiled on the control thread; rustls configurations are built from it at the first
//! connection and again when a secret changed, and shared by the workers.

// Fields that Envoy deprecated are still sent (Istio's match_subject_alt_names) and must be read or refused.
#![allow(deprecated)]

use crate::common::{self, Cached, Common};
use crate::secret::SecretStore;
use crate::stats::SslStats;
use crate::verify::{Peer, PeerCheck, ServerVerifier};
use crate::{TlsFailure, Transport, finish};
use nuncio_core::TlsInfo;
use nuncio_core::diag::{At, Report};
use nuncio_core::stats::Scope;
use nuncio_proto::envoy::extensions::transport_sockets::tls::v3::UpstreamTlsContext;
use rustls::ClientConfig;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::pki_types::{DnsName, ServerName};
use rustls::sign::CertifiedKey;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, OnceLock};
use tokio_rustls::TlsConnector;

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
pub struct UpstreamTls {
    common: Common,
    sni: Option<String>,
    auto_host_sni: bool,
    sni_san: bool,
    rsa_key_usage: bool,
    max_sessions: usize,
    stats: Arc<SslStats>,
    built: Cached<Built>,
}

#[derive(Debug)]
struct Built {
    config: Arc<ClientConfig>,
    check: Arc<PeerCheck>,
    /// For `verify_sans` that hold just the SNI (`auto_sni` with `auto_san_validation`), with sessions of its own: a resumed session is
    /// not verified again, so sessions are shared only among connections that verify the same.
    sni_checked: OnceLock<(Arc<ClientConfig>, Arc<PeerCheck>)>,
}

impl UpstreamTls {
    /// Compiles `context`. `scope` is `cluster.<name>.`; stats are made below it as `ssl.*`. None means refused.
    pub fn compile(
        context: &UpstreamTlsContext,
        secrets: &Arc<SecretStore>,
        scope: &Scope,
        at: &At<'_>,
        report: &mut Report,
    ) -> Option<Arc<Self>> {
        let before = report.errors();
        let common = Common::compile(context.common_tls_context.as_ref(), false, secrets, &at.field("common_tls_context"), report);
        if common.as_ref().is_some_and(|c| c.certs.len() > 1) {
            report.error(&at.field("common_tls_context"), "several TLS certificates", "give a client at most one");
        }
        if context.sni.len() > 255 {
            report.error(&at.field("sni"), format!("{} bytes", context.sni.len()), "give at most 255 bytes");
        } else if !context.sni.is_empty() && server_name(&context.sni).is_none() {
            report.error(&at.field("sni"), format!("`{}`", context.sni), "give a host name");
        }
        if context.allow_renegotiation {
            report.warning(&at.field("allow_renegotiation"), "TLS renegotiation is not done", "servers that ask for it are disconnected");
        }
        let common = common?;
        (report.errors() == before).then(|| {
            Arc::new(Self {
                common,
                sni: (!context.sni.is_empty()).then(|| context.sni.clone()),
                auto_host_sni: context.auto_host_sni,
                sni_san: context.auto_sni_san_validation,
                rsa_key_usage: context.enforce_rsa_key_usage.unwrap_or_default(),
                max_sessions: usize::try_from(context.max_session_keys.unwrap_or(1)).unwrap_or(usize::MAX).min(65_536),
                stats: Arc::new(SslStats::new(scope, false)),
                built: Cached::default(),
            })
        })
    }

    /// Shakes hands as the client. The future is large: box it if it lives in a long one.
    pub async fn connect(&self, io: Transport, options: &ConnectOptions<'_>) -> Result<(Transport, Arc<TlsInfo>), TlsFailure> {
        let built = self.current().inspect_err(|_| self.stats.not_ready.inc())?;
        let sni = self.sni(options);
        let name = match sni {
            Some(sni) => server_name(sni).ok_or_else(|| {
                self.stats.connection_error.inc();
                TlsFailure::Handshake(format!("TLS_error:`{sni}` cannot be sent as SNI"))
            })?,
            // rustls sends no SNI for an address, and keeps sessions by it.
            None => ServerName::from(io.peer_addr().ok().and_then(|a| a.socket()).map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |a| a.ip())),
        };
        let (config, check) = match options.verify_sans {
            None => (built.config.clone(), built.check.clone()),
            Some(sans) => self.verifying(&built, sans, sni),
        };
        let alpn = match options.alpn {
            Some(alpn) => alpn,
            None if self.common.alpn.is_empty() => options.alpn_fallback,
            None => &self.common.alpn,
        };
        let connector = TlsConnector::from(config);
        let connecting = connector.with_alpn(alpn.to_vec()).connect(name, io);
        let stream = connecting.await.map_err(|e| finish::failure(e, &self.stats))?;
        let mut info = finish::info(stream.get_ref().1, &self.stats);
        info.sni = sni.map(Into::into);
        info.local = self.local();
        info.peer_validated = finish::validated(Some(&check), &info);
        Ok((Transport::Tls(Box::new(stream.into())), Arc::new(info)))
    }
    /// Whether every SDS secret that the context names has arrived; for warming.
    pub fn ready(&self) -> bool {
        self.common.ready()
    }
    /// Protocols that the context offers by ALPN; empty for none.
    pub fn alpn(&self) -> &[Vec<u8>] {
        &self.common.alpn
    }
    /// The SNI that a connection with `options` sends; part of a pool's key together with ALPN and SANs.
    pub fn sni<'a>(&'a self, options: &ConnectOptions<'a>) -> Option<&'a str> {
        // Envoy's order: per connection, host name if asked for, the context's.
        let host = options.hostname.filter(|h| self.auto_host_sni && !h.is_empty());
        options.sni.filter(|s| !s.is_empty()).or(host).or(self.sni.as_deref())
    }

    fn local(&self) -> Option<Arc<nuncio_core::info::CertInfo>> {
        self.common.resolve().ok()?.identities.first().map(|i| i.info.clone())
    }
    fn current(&self) -> Result<Arc<Built>, TlsFailure> {
        self.built.current(&self.common, &self.stats, || self.common.generation(), || self.build())
    }
    fn build(&self) -> Result<Built, TlsFailure> {
        let resolved = self.common.resolve().map_err(|name| common::missing(&name))?;
        let provider = &self.common.params.provider;
        let check = Arc::new(PeerCheck {
            // Without a validation context Envoy verifies nothing.
            validation: resolved.validation.unwrap_or_default(),
            stats: self.stats.clone(),
            provider: provider.clone(),
            peer: Peer::Server,
            sans: None,
            sni_san: self.sni_san,
            rsa_key_usage: self.rsa_key_usage,
        });
        let builder = ClientConfig::builder_with_provider(provider.clone());
        let builder =
            builder.with_protocol_versions(&self.common.params.versions).map_err(|e| TlsFailure::Handshake(format!("TLS_error:{e}")))?;
        let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(ServerVerifier(check.clone())));
        let mut config = match resolved.identities.first() {
            Some(identity) => builder.with_client_cert_resolver(Arc::new(Ours(identity.key.clone()))),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = self.common.alpn.clone();
        config.resumption = self.resumption();
        Ok(Built { config: Arc::new(config), check, sni_checked: OnceLock::new() })
    }
    /// A configuration that wants one of `sans`.
    fn verifying(&self, built: &Built, sans: &[String], sni: Option<&str>) -> (Arc<ClientConfig>, Arc<PeerCheck>) {
        if matches!(sans, [only] if Some(only.as_str()) == sni) {
            let make = || self.with_check(built, None, true, self.resumption());
            return built.sni_checked.get_or_init(make).clone();
        }
        self.with_check(built, Some(sans.to_vec()), false, Resumption::disabled())
    }
    fn with_check(
        &self,
        built: &Built,
        sans: Option<Vec<String>>,
        sni_san: bool,
        resumption: Resumption,
    ) -> (Arc<ClientConfig>, Arc<PeerCheck>) {
        let (validation, provider) = (built.check.validation.clone(), built.check.provider.clone());
        let (stats, rsa_key_usage) = (self.stats.clone(), self.rsa_key_usage);
        let check = Arc::new(PeerCheck { validation, stats, provider, peer: Peer::Server, sans, sni_san, rsa_key_usage });
        let mut config = ClientConfig::clone(&built.config);
        config.dangerous().set_certificate_verifier(Arc::new(ServerVerifier(check.clone())));
        config.resumption = resumption;
        (Arc::new(config), check)
    }
    fn resumption(&self) -> Resumption {
        if self.max_sessions == 0 { Resumption::disabled() } else { Resumption::in_memory_sessions(self.max_sessions) }
    }
}

fn server_name(sni: &str) -> Option<ServerName<'static>> {
    if let Ok(ip) = sni.parse::<IpAddr>() {
        return Some(ServerName::from(ip));
    }
    DnsName::try_from(sni.to_string()).ok().map(ServerName::DnsName)
}

/// Our certificate, whatever CAs the server names: Envoy offers it always.
#[derive(Debug)]
struct Ours(Arc<CertifiedKey>);

impl ResolvesClientCert for Ours {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
    fn has_certs(&self) -> bool {
        true
    }
}
