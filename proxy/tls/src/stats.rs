//! `ssl.*` stats of a listener or a cluster. Names that depend on what was negotiated are made on first use.

use nuncio_core::info::CertInfo;
use nuncio_core::stats::{Counter, Scope};
use std::sync::OnceLock;
use std::time::SystemTime;

/// (rustls name, OpenSSL name) of every suite that can be negotiated.
pub(crate) const CIPHERS: &[(rustls::CipherSuite, &str)] = &[
    (rustls::CipherSuite::TLS13_AES_128_GCM_SHA256, "TLS_AES_128_GCM_SHA256"),
    (rustls::CipherSuite::TLS13_AES_256_GCM_SHA384, "TLS_AES_256_GCM_SHA384"),
    (rustls::CipherSuite::TLS13_CHACHA20_POLY1305_SHA256, "TLS_CHACHA20_POLY1305_SHA256"),
    (rustls::CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, "ECDHE-ECDSA-AES128-GCM-SHA256"),
    (rustls::CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, "ECDHE-RSA-AES128-GCM-SHA256"),
    (rustls::CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, "ECDHE-ECDSA-AES256-GCM-SHA384"),
    (rustls::CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, "ECDHE-RSA-AES256-GCM-SHA384"),
    (rustls::CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, "ECDHE-ECDSA-CHACHA20-POLY1305"),
    (rustls::CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256, "ECDHE-RSA-CHACHA20-POLY1305"),
];

/// (rustls group, Envoy's curve name).
pub(crate) const CURVES: &[(rustls::NamedGroup, &str)] = &[
    (rustls::NamedGroup::X25519, "X25519"),
    (rustls::NamedGroup::secp256r1, "P-256"),
    (rustls::NamedGroup::secp384r1, "P-384"),
    (rustls::NamedGroup::X25519MLKEM768, "X25519MLKEM768"),
];

/// Envoy's names of the protocol versions.
pub(crate) const VERSIONS: &[(rustls::ProtocolVersion, &str)] =
    &[(rustls::ProtocolVersion::TLSv1_2, "TLSv1.2"), (rustls::ProtocolVersion::TLSv1_3, "TLSv1.3")];

/// What a handshake settled, in Envoy's names; empty where it has none.
pub(crate) struct Negotiated {
    pub version: &'static str,
    pub cipher: &'static str,
    pub group: &'static str,
}

/// Envoy: `ALL_SSL_STATS` and `SslSocketFactoryStats`.
#[derive(Debug)]
pub(crate) struct SslStats {
    scope: Scope,
    pub connection_error: Counter,
    pub handshake: Counter,
    pub session_reused: Counter,
    pub no_certificate: Counter,
    pub fail_verify_no_cert: Counter,
    pub fail_verify_error: Counter,
    pub fail_verify_san: Counter,
    pub fail_verify_cert_hash: Counter,
    pub ocsp_staple_failed: Counter,
    pub ocsp_staple_omitted: Counter,
    pub ocsp_staple_responses: Counter,
    /// `*_ssl_socket_factory.ssl_context_update_by_sds`.
    pub updated_by_sds: Counter,
    /// `*_ssl_socket_factory.{down,up}stream_context_secrets_not_ready`.
    pub not_ready: Counter,
    ciphers: [OnceLock<Counter>; CIPHERS.len()],
    curves: [OnceLock<Counter>; CURVES.len()],
    versions: [OnceLock<Counter>; VERSIONS.len()],
}

impl SslStats {
    /// Stats below `parent` (`listener.<address>.` or `cluster.<name>.`).
    pub(crate) fn new(parent: &Scope, server: bool) -> Self {
        let scope = parent.scope("ssl.");
        let factory = parent.scope(if server { "server_ssl_socket_factory." } else { "client_ssl_socket_factory." });
        // Envoy makes both of these on either side; only ours can ever count.
        let (ours, other) = ("downstream_context_secrets_not_ready", "upstream_context_secrets_not_ready");
        let (ours, other) = if server { (ours, other) } else { (other, ours) };
        factory.counter(other);
        // Which clients asked for a staple is not seen; the name shows as in Envoy.
        scope.counter("ocsp_staple_requests");
        Self {
            connection_error: scope.counter("connection_error"),
            handshake: scope.counter("handshake"),
            session_reused: scope.counter("session_reused"),
            no_certificate: scope.counter("no_certificate"),
            fail_verify_no_cert: scope.counter("fail_verify_no_cert"),
            fail_verify_error: scope.counter("fail_verify_error"),
            fail_verify_san: scope.counter("fail_verify_san"),
            fail_verify_cert_hash: scope.counter("fail_verify_cert_hash"),
            ocsp_staple_failed: scope.counter("ocsp_staple_failed"),
            ocsp_staple_omitted: scope.counter("ocsp_staple_omitted"),
            ocsp_staple_responses: scope.counter("ocsp_staple_responses"),
            updated_by_sds: factory.counter("ssl_context_update_by_sds"),
            not_ready: factory.counter(ours),
            ciphers: Default::default(),
            curves: Default::default(),
            versions: Default::default(),
            scope,
        }
    }
    /// Envoy makes it only where it is enforced.
    pub(crate) fn was_key_usage_invalid(&self) {
        self.scope.counter("was_key_usage_invalid").inc();
    }
    /// When our own certificates expire, for alarms.
    pub(crate) fn expiration(&self, secret: &str, info: &CertInfo) {
        let name = match secret {
            "" => format!("unnamed_cert_{}", info.sha256.get(..8).unwrap_or_default()),
            name => name.to_string(),
        };
        let end = info.not_after.and_then(|t| t.duration_since(SystemTime::UNIX_EPOCH).ok()).unwrap_or_default();
        self.scope.gauge(&format!("certificate.{name}.expiration_unix_time_seconds")).set(i64::try_from(end.as_secs()).unwrap_or(i64::MAX));
    }
    /// Counts what was negotiated and gives Envoy's names of version and cipher.
    pub(crate) fn negotiated(&self, common: &rustls::CommonState) -> Negotiated {
        let cipher = common.negotiated_cipher_suite().map(|s| s.suite());
        let cipher = self.count(CIPHERS, &self.ciphers, "ciphers.", cipher);
        let group = self.count(CURVES, &self.curves, "curves.", common.negotiated_key_exchange_group().map(|g| g.name()));
        Negotiated { version: self.count(VERSIONS, &self.versions, "versions.", common.protocol_version()), cipher, group }
    }
    fn count<T: PartialEq>(
        &self,
        names: &[(T, &'static str)],
        counters: &[OnceLock<Counter>],
        prefix: &str,
        found: Option<T>,
    ) -> &'static str {
        let Some(found) = found else { return "" };
        for ((value, name), counter) in names.iter().zip(counters) {
            if *value == found {
                counter.get_or_init(|| self.scope.counter(&format!("{prefix}{name}"))).inc();
                return name;
            }
        }
        ""
    }
}
