//! The server side: `DownstreamTlsContext`. Compiled on the control thread; rustls configurations are built from it at the first
//! handshake and again when a secret changed, and shared by the workers.

use crate::common::{self, Cached, Common};
use crate::material::{Identity, Material};
use crate::secret::{Live, SecretKind, SecretSlot, SecretStore};
use crate::session::{Sessions, TicketKeys, Tickets};
use crate::stats::SslStats;
use crate::verify::{ClientVerifier, Peer, PeerCheck};
use crate::{TlsFailure, Transport, finish};
use aws_lc_rs::digest;
use nuncio_core::TlsInfo;
use nuncio_core::diag::{At, Report};
use nuncio_core::info::ReadChain;
use nuncio_core::stats::Scope;
use nuncio_proto::envoy::extensions::transport_sockets::tls::v3::DownstreamTlsContext;
use nuncio_proto::envoy::extensions::transport_sockets::tls::v3::downstream_tls_context::{OcspStaplePolicy, SessionTicketKeysType};
use rustls::server::{Acceptor, ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, SignatureAlgorithm, SignatureScheme};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};
use tokio_rustls::LazyConfigAcceptor;

/// BoringSSL's `SSL_DEFAULT_SESSION_TIMEOUT`.
const SESSION_TIMEOUT: Duration = Duration::from_secs(7200);

/// Where ticket keys come from.
#[derive(Debug)]
enum TicketSource {
    /// Random ones of the context's own.
    Own,
    Fixed(TicketKeys),
    Slot(Arc<SecretSlot>),
    Disabled,
}

/// A compiled `DownstreamTlsContext`. One per filter chain, shared by the workers.
#[derive(Debug)]
pub struct DownstreamTls {
    common: Common,
    require_client_certificate: bool,
    require_sni: bool,
    stateful: bool,
    tickets: TicketSource,
    session_timeout: Duration,
    policy: OcspStaplePolicy,
    full_scan: bool,
    prefer_client_ciphers: bool,
    stats: Arc<SslStats>,
    /// SHA-256 of the configuration, the fixed part of what tickets are bound to.
    digest: [u8; 32],
    built: Cached<Built>,
}

/// rustls configurations of one generation of secrets.
#[derive(Debug)]
struct Built {
    config: Arc<ServerConfig>,
    /// The same without ALPN, for clients that offer only protocols that we do not: Envoy goes on without, rustls would refuse.
    plain: OnceLock<Arc<ServerConfig>>,
    choice: Arc<Choice>,
    check: Option<Arc<PeerCheck>>,
}

impl DownstreamTls {
    /// Compiles `context`. `scope` is `listener.<address>.`; stats are made below it as `ssl.*`. None means refused.
    pub fn compile(
        context: &DownstreamTlsContext,
        secrets: &Arc<SecretStore>,
        scope: &Scope,
        at: &At<'_>,
        report: &mut Report,
    ) -> Option<Arc<Self>> {
        let before = report.errors();
        let common = Common::compile(context.common_tls_context.as_ref(), true, secrets, &at.field("common_tls_context"), report);
        if common.as_ref().is_some_and(|c| c.certs.is_empty()) {
            report.error(
                &at.field("common_tls_context"),
                "no TLS certificate",
                "give tls_certificates or tls_certificate_sds_secret_configs",
            );
        }
        let tickets = match &context.session_ticket_keys_type {
            None | Some(SessionTicketKeysType::DisableStatelessSessionResumption(false)) => Some(TicketSource::Own),
            Some(SessionTicketKeysType::DisableStatelessSessionResumption(true)) => Some(TicketSource::Disabled),
            Some(SessionTicketKeysType::SessionTicketKeys(keys)) => {
                crate::material::ticket_keys(keys, &at.field("session_ticket_keys"), report).map(TicketSource::Fixed)
            }
            Some(SessionTicketKeysType::SessionTicketKeysSdsSecretConfig(config)) => {
                let at = at.field("session_ticket_keys_sds_secret_config");
                common::slot(config, SecretKind::SessionTicketKeys, secrets, &at, report).map(TicketSource::Slot)
            }
        };
        let session_timeout = match &context.session_timeout {
            None => SESSION_TIMEOUT,
            Some(d) if (0..=i64::from(u32::MAX)).contains(&d.seconds) && d.nanos >= 0 => Duration::from_secs(d.seconds.unsigned_abs()),
            Some(d) => {
                report.error(&at.field("session_timeout"), format!("{} s", d.seconds), "give 0 to 4294967295 seconds");
                SESSION_TIMEOUT
            }
        };
        let Ok(policy) = OcspStaplePolicy::try_from(context.ocsp_staple_policy) else {
            report.error(&at.field("ocsp_staple_policy"), context.ocsp_staple_policy.to_string(), "give a known policy");
            return None;
        };
        let (common, tickets) = (common?, tickets?);
        let mut digest_of = [0; 32];
        digest_of.copy_from_slice(digest::digest(&digest::SHA256, &prost::Message::encode_to_vec(context)).as_ref());
        (report.errors() == before).then(|| {
            Arc::new(Self {
                common,
                require_client_certificate: context.require_client_certificate.unwrap_or_default(),
                require_sni: context.require_sni.unwrap_or_default(),
                stateful: !context.disable_stateful_session_resumption,
                tickets,
                session_timeout,
                policy,
                full_scan: context.full_scan_certs_on_sni_mismatch.unwrap_or_default(),
                prefer_client_ciphers: context.prefer_client_ciphers,
                stats: Arc::new(SslStats::new(scope, true)),
                digest: digest_of,
                built: Cached::default(),
            })
        })
    }

    /// Shakes hands as the server. The future is large: box it if it lives in a long one.
    pub async fn accept(&self, io: Transport) -> Result<(Transport, Arc<TlsInfo>), TlsFailure> {
        let built = self.current().inspect_err(|_| self.stats.not_ready.inc())?;
        let start = LazyConfigAcceptor::new(Acceptor::default(), io).await.map_err(|e| finish::failure(e, &self.stats))?;
        let heard = Instant::now();
        let hello = start.client_hello();
        if self.require_sni && hello.server_name().is_none() {
            self.stats.connection_error.inc();
            return Err(TlsFailure::Handshake("TLS_error:MISSING_SNI: the client sent no server name and require_sni is set".to_string()));
        }
        let overlap = hello.alpn().is_none_or(|mut offered| offered.any(|p| self.common.alpn.iter().any(|ours| ours == p)));
        let local = built.choice.choose(hello.server_name(), hello.signature_schemes()).map(|i| i.info.clone());
        let config = if overlap { built.config.clone() } else { built.plain() };
        let stream = start.into_stream(config).await.map_err(|e| finish::failure(e, &self.stats))?;
        let sni = stream.get_ref().1.server_name().map(Into::into);
        let mut info = finish::info(stream.get_ref().1, &self.stats);
        info.sni = sni;
        info.local = local;
        info.hello = Some(heard);
        info.peer_validated = finish::validated(built.check.as_deref(), &info);
        info.chain_reader = built.check.as_ref().map(|check| check.validation.clone() as Arc<dyn ReadChain>);
        Ok((Transport::Tls(Box::new(stream.into())), Arc::new(info)))
    }
    /// Whether every SDS secret that the context names has arrived; for warming.
    pub fn ready(&self) -> bool {
        self.common.ready()
    }
    /// Whether `other` was compiled from the same configuration with the same contents of files.
    pub fn same(&self, other: &Self) -> bool {
        self.digest == other.digest && self.common.same_material(&other.common)
    }
    /// Protocols offered by ALPN.
    pub fn alpn(&self) -> &[Vec<u8>] {
        &self.common.alpn
    }

    fn generation(&self) -> Vec<Option<Arc<Live>>> {
        let mut generation = self.common.generation();
        if let TicketSource::Slot(slot) = &self.tickets {
            generation.push(slot.get());
        }
        generation
    }
    fn current(&self) -> Result<Arc<Built>, TlsFailure> {
        self.built.current(&self.common, &self.stats, || self.generation(), || self.build())
    }
    fn build(&self) -> Result<Built, TlsFailure> {
        let broken = |e: String| TlsFailure::Handshake(format!("TLS_error:{e}"));
        let resolved = self.common.resolve().map_err(|name| common::missing(&name))?;
        let keys = match &self.tickets {
            TicketSource::Own | TicketSource::Disabled => None,
            TicketSource::Fixed(keys) => Some(keys.clone()),
            TicketSource::Slot(slot) => match slot.get().as_deref().map(|l| &l.material) {
                Some(Material::Tickets(keys)) => Some(keys.clone()),
                _ => return Err(common::missing(&slot.name)),
            },
        };
        let provider = &self.common.params.provider;
        let mut bound = digest::Context::new(&digest::SHA256);
        bound.update(&self.digest);
        for identity in &resolved.identities {
            bound.update(identity.leaf());
        }
        if let Some(validation) = &resolved.validation {
            bound.update(&validation.digest);
        }
        let mut context = [0; 32];
        context.copy_from_slice(bound.finish().as_ref());

        let asks = self.require_client_certificate || resolved.validation.as_ref().is_some_and(|v| v.asks());
        let check = asks.then(|| {
            Arc::new(PeerCheck {
                validation: resolved.validation.clone().unwrap_or_default(),
                stats: self.stats.clone(),
                provider: provider.clone(),
                peer: Peer::Client,
                sans: None,
                sni_san: false,
                rsa_key_usage: false,
            })
        });
        let builder = ServerConfig::builder_with_provider(provider.clone());
        let builder = builder.with_protocol_versions(&self.common.params.versions).map_err(|e| broken(e.to_string()))?;
        let builder = match &check {
            Some(check) => builder
                .with_client_cert_verifier(Arc::new(ClientVerifier { check: check.clone(), mandatory: self.require_client_certificate })),
            None => builder.with_client_cert_verifier(WebPkiClientVerifier::no_client_auth()),
        };
        let choice =
            Arc::new(Choice { identities: resolved.identities, policy: self.policy, full_scan: self.full_scan, stats: self.stats.clone() });
        let mut config = builder.with_cert_resolver(choice.clone());
        config.ignore_client_order = !self.prefer_client_ciphers;
        config.alpn_protocols = self.common.alpn.clone();
        if !matches!(self.tickets, TicketSource::Disabled) {
            let tickets = Tickets::new(keys.as_ref(), context, self.session_timeout)
                .ok_or_else(|| broken("no randomness for ticket keys".to_string()))?;
            config.ticketer = Arc::new(tickets);
        }
        config.session_storage = if self.stateful { Arc::new(Sessions::default()) } else { Arc::new(NoServerSessionStorage {}) };
        Ok(Built { config: Arc::new(config), plain: OnceLock::new(), choice, check })
    }
}

impl Built {
    fn plain(&self) -> Arc<ServerConfig> {
        let make = || {
            let mut config = ServerConfig::clone(&self.config);
            config.alpn_protocols = Vec::new();
            Arc::new(config)
        };
        self.plain.get_or_init(make).clone()
    }
}

/// Chooses among the certificates of a context: by SNI (exact, then wildcard), among those by what the client can verify, ECDSA first.
#[derive(Debug)]
struct Choice {
    identities: Vec<Arc<Identity>>,
    policy: OcspStaplePolicy,
    full_scan: bool,
    stats: Arc<SslStats>,
}

impl Choice {
    fn choose(&self, sni: Option<&str>, schemes: &[SignatureScheme]) -> Option<&Arc<Identity>> {
        if let ([only], OcspStaplePolicy::LenientStapling) = (self.identities.as_slice(), self.policy) {
            return Some(only);
        }
        let usable: Vec<_> = self.identities.iter().filter(|i| self.may_serve(i)).collect();
        let best = |of: &dyn Fn(&Identity) -> bool| {
            let mut fitting = usable.iter().filter(|i| of(i) && i.key.key.choose_scheme(schemes).is_some());
            let ecdsa = fitting.clone().find(|i| i.key.key.algorithm() == SignatureAlgorithm::ECDSA);
            ecdsa.or_else(|| fitting.next()).copied()
        };
        if let Some(sni) = sni {
            let sni = sni.to_ascii_lowercase();
            let wildcard = sni.split_once('.').map(|(_, parent)| format!("*.{parent}"));
            let named = best(&|i| i.names.contains(&sni)).or_else(|| wildcard.and_then(|w| best(&|i| i.names.contains(&w))));
            if named.is_some() {
                return named;
            }
            // Nobody's name: the first certificate, as Envoy, unless the client could not verify it anyway.
            let first = usable.first().filter(|i| !self.full_scan && i.key.key.choose_scheme(schemes).is_some());
            if let Some(first) = first {
                return Some(first);
            }
        }
        best(&|_| true)
    }
    /// Envoy's table of staple policies.
    fn may_serve(&self, identity: &Identity) -> bool {
        let stapled = identity.unstapled.is_some();
        let fresh = stapled && fresh(identity);
        match self.policy {
            OcspStaplePolicy::LenientStapling => true,
            OcspStaplePolicy::StrictStapling => {
                if stapled {
                    fresh
                } else {
                    !identity.must_staple
                }
            }
            OcspStaplePolicy::MustStaple => fresh,
        }
    }
}

fn fresh(identity: &Identity) -> bool {
    identity.staple_expires.is_none_or(|end| end > SystemTime::now())
}

impl ResolvesServerCert for Choice {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let Some(identity) = self.choose(hello.server_name(), hello.signature_schemes()) else {
            if self.policy != OcspStaplePolicy::LenientStapling {
                self.stats.ocsp_staple_failed.inc();
            }
            return None;
        };
        match &identity.unstapled {
            Some(plain) if !fresh(identity) => {
                self.stats.ocsp_staple_omitted.inc();
                Some(plain.clone())
            }
            Some(_) => {
                self.stats.ocsp_staple_responses.inc();
                Some(identity.key.clone())
            }
            None => Some(identity.key.clone()),
        }
    }
}
