//! Verification of the peer's certificate as Envoy's `DefaultCertValidator`: chain against the trusted CA with revocation lists, then
//! pins, then subject alternative names. Chains are built and checked by rustls-webpki; nothing of that is done here.

use crate::cert::{self, San};
use crate::pins::{TrustedCa, Validation, dns_matches};
use crate::stats::SslStats;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme};
use std::fmt;
use std::sync::Arc;
use webpki::{EndEntityCert, ExpirationPolicy, KeyUsage, RevocationCheckDepth, RevocationOptionsBuilder, UnknownStatusPolicy};
use x509_parser::prelude::{FromDer, X509Certificate};

/// A refusal in our own words.
#[derive(Debug)]
struct Refusal(String);
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::error::Error for Refusal {}

/// A certificate error that carries our words; the alert is `certificate_unknown`.
fn refuse(text: impl Into<String>) -> CertificateError {
    CertificateError::Other(OtherError(Arc::new(Refusal(text.into()))))
}

/// Whose certificate it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    Client,
    Server,
}

/// What a peer's certificate must satisfy in one TLS context.
#[derive(Debug)]
pub(crate) struct PeerCheck {
    pub validation: Arc<Validation>,
    pub stats: Arc<SslStats>,
    pub provider: Arc<CryptoProvider>,
    pub peer: Peer,
    /// One of these must be a SAN, instead of the matchers.
    pub sans: Option<Vec<String>>,
    /// The server name must be a SAN, instead of the matchers (`auto_sni_san_validation`).
    pub sni_san: bool,
    /// `enforce_rsa_key_usage`.
    pub rsa_key_usage: bool,
}

impl PeerCheck {
    /// Whether the chain leads to the trusted CA; true if there is none to lead to.
    pub(crate) fn chain_ok(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), CertificateError> {
        match &self.validation.ca {
            Some(ca) => self.chain(ca, leaf, intermediates, now),
            None => Ok(()),
        }
    }

    fn chain(
        &self,
        ca: &TrustedCa,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), CertificateError> {
        // A certificate that is itself trusted (a self-signed server whose certificate was given as the CA) needs no path; webpki would
        // refuse it if it says `CA:TRUE`, as OpenSSL's self-signed ones do.
        if ca.certs.iter().any(|c| c == leaf) {
            return if self.validation.allow_expired { Ok(()) } else { in_time(leaf, now) };
        }
        let entity = EndEntityCert::try_from(leaf).map_err(|e| readable(&e))?;
        let crls: Vec<_> = self.validation.crls.iter().flat_map(|all| all.iter()).collect();
        let depth = self.validation.max_depth.and_then(|d| usize::try_from(d).ok());
        let within = |path: &webpki::VerifiedPath<'_>| match depth {
            Some(depth) if path.intermediate_certificates().count() > depth => Err(webpki::Error::MaximumPathDepthExceeded),
            _ => Ok(()),
        };
        let mut time = now;
        // With expired certificates allowed, the path is looked at from a moment at which they were valid; windows that do not overlap
        // would need another moment each time, so there are few tries.
        for _ in 0..8 {
            let revocation = RevocationOptionsBuilder::new(&crls).ok().map(|options| {
                let depth = if self.validation.leaf_crl_only { RevocationCheckDepth::EndEntity } else { RevocationCheckDepth::Chain };
                options
                    .with_depth(depth)
                    .with_status_policy(UnknownStatusPolicy::Deny)
                    .with_expiration_policy(ExpirationPolicy::Enforce)
                    .build()
            });
            let usage = match self.peer {
                Peer::Client => KeyUsage::client_auth(),
                Peer::Server => KeyUsage::server_auth(),
            };
            let algorithms = self.provider.signature_verification_algorithms.all;
            match entity.verify_for_usage(algorithms, &ca.anchors, intermediates, time, usage, revocation, Some(&within)) {
                Ok(_) => return Ok(()),
                Err(webpki::Error::CertExpired { not_after, .. }) if self.validation.allow_expired => time = not_after,
                Err(webpki::Error::CertNotValidYet { not_before, .. }) if self.validation.allow_expired => time = not_before,
                Err(e) => return Err(readable(&e)),
            }
        }
        Err(refuse("the validity periods of the chain do not overlap"))
    }

    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        sni: Option<&str>,
        now: UnixTime,
    ) -> Result<(), CertificateError> {
        let validation = &self.validation;
        let result = self.checked(leaf, intermediates, sni, now);
        // ACCEPT_UNTRUSTED: whatever is wrong is counted, not refused.
        if validation.accept_untrusted { Ok(()) } else { result }
    }

    fn checked(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        sni: Option<&str>,
        now: UnixTime,
    ) -> Result<(), CertificateError> {
        let validation = &self.validation;
        self.chain_ok(leaf, intermediates, now).inspect_err(|_| self.stats.fail_verify_error.inc())?;
        let wants_san = self.sans.is_some() || self.sni_san || !validation.sans.is_empty();
        if !wants_san && !validation.pinned() && !self.rsa_key_usage {
            return Ok(());
        }
        let Ok((_, parsed)) = X509Certificate::from_der(leaf) else {
            self.stats.fail_verify_error.inc();
            return Err(CertificateError::BadEncoding);
        };
        if validation.pinned() && !validation.pin_matches(leaf, &parsed) {
            self.stats.fail_verify_cert_hash.inc();
            return Err(refuse("the certificate is none of verify_certificate_hash and verify_certificate_spki"));
        }
        if wants_san {
            let names = cert::names(&parsed);
            let matched = match (&self.sans, self.sni_san) {
                (Some(wanted), _) => wanted.iter().any(|w| names.iter().any(|n| covers(n, w))),
                (None, true) => sni.is_some_and(|w| names.iter().any(|n| covers(n, w))),
                (None, false) => validation.san_matches(&names),
            };
            if !matched {
                self.stats.fail_verify_san.inc();
                return Err(refuse(format!("no subject alternative name matches; the certificate has {}", list(&names))));
            }
        }
        if self.rsa_key_usage && !signs(&parsed) {
            self.stats.was_key_usage_invalid();
            return Err(refuse("KEY_USAGE_BIT_INCORRECT: the RSA certificate's keyUsage does not allow digitalSignature"));
        }
        Ok(())
    }
}

/// Whether a SAN covers `wanted`; only DNS names may hold wildcards.
fn covers(name: &San, wanted: &str) -> bool {
    match name {
        San::Dns(n) => dns_matches(wanted, n),
        San::Uri(n) | San::Ip(n) | San::Email(n) => n == wanted,
        San::Other(..) => false,
    }
}

/// A few names for a message.
fn list(names: &[San]) -> String {
    let shown = names.iter().take(4).map(|n| match n {
        San::Dns(s) | San::Uri(s) | San::Ip(s) | San::Email(s) | San::Other(_, s) => s.as_str(),
    });
    let shown: Vec<_> = shown.collect();
    match names.len() {
        0 => "none".to_string(),
        n if n > shown.len() => format!("{} and {} more", shown.join(", "), n - shown.len()),
        _ => shown.join(", "),
    }
}

/// Whether an RSA key may sign (keyUsage absent, or with digitalSignature); other keys are not asked.
fn signs(cert: &X509Certificate<'_>) -> bool {
    let rsa = cert.public_key().algorithm.algorithm.to_id_string() == "1.2.840.113549.1.1.1";
    !rsa || cert.key_usage().ok().flatten().is_none_or(|usage| usage.value.digital_signature())
}

fn in_time(leaf: &CertificateDer<'_>, now: UnixTime) -> Result<(), CertificateError> {
    let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| CertificateError::BadEncoding)?;
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    if now > parsed.validity().not_after.timestamp() {
        return Err(CertificateError::Expired);
    }
    if now < parsed.validity().not_before.timestamp() {
        return Err(CertificateError::NotValidYet);
    }
    Ok(())
}

/// webpki's errors with the alerts that rustls sends for them.
fn readable(e: &webpki::Error) -> CertificateError {
    use webpki::Error;
    match e {
        Error::BadDer | Error::BadDerTime | Error::TrailingData(_) => CertificateError::BadEncoding,
        Error::CertNotValidYet { .. } => CertificateError::NotValidYet,
        Error::CertExpired { .. } | Error::InvalidCertValidity => CertificateError::Expired,
        Error::UnknownIssuer => CertificateError::UnknownIssuer,
        Error::CertRevoked => CertificateError::Revoked,
        Error::CrlExpired { .. } => CertificateError::ExpiredRevocationList,
        Error::UnknownRevocationStatus => CertificateError::UnknownRevocationStatus,
        Error::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        Error::CaUsedAsEndEntity => refuse("a CA certificate is used as the peer's own, and it is not itself in trusted_ca"),
        Error::MaximumPathDepthExceeded => refuse("the chain is longer than max_verify_depth allows"),
        Error::RequiredEkuNotFoundContext(_) => CertificateError::InvalidPurpose,
        other => refuse(other.to_string()),
    }
}

/// The words for a certificate error.
pub(crate) fn describe(e: &CertificateError) -> String {
    match e {
        CertificateError::UnknownIssuer => "unable to get local issuer certificate: no chain to trusted_ca".to_string(),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "certificate has expired".to_string(),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "certificate is not yet valid".to_string(),
        CertificateError::Revoked => "certificate revoked".to_string(),
        CertificateError::UnknownRevocationStatus => "unable to get certificate CRL: no revocation list of the issuer".to_string(),
        CertificateError::ExpiredRevocationList | CertificateError::ExpiredRevocationListContext { .. } => "CRL has expired".to_string(),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "unsupported certificate purpose: extended key usage".to_string()
        }
        CertificateError::Other(other) => other.0.to_string(),
        other => other.to_string(),
    }
}

macro_rules! signatures {
    ($self:ident => $provider:expr) => {
        fn verify_tls12_signature(&$self, message: &[u8], cert: &CertificateDer<'_>, dss: &DigitallySignedStruct) -> Result<HandshakeSignatureValid, Error> {
            verify_tls12_signature(message, cert, dss, &$provider.signature_verification_algorithms)
        }
        fn verify_tls13_signature(&$self, message: &[u8], cert: &CertificateDer<'_>, dss: &DigitallySignedStruct) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(message, cert, dss, &$provider.signature_verification_algorithms)
        }
        fn supported_verify_schemes(&$self) -> Vec<SignatureScheme> {
            $provider.signature_verification_algorithms.supported_schemes()
        }
    };
}

/// The server's look at clients.
#[derive(Debug)]
pub(crate) struct ClientVerifier {
    pub check: Arc<PeerCheck>,
    pub mandatory: bool,
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        match &self.check.validation.ca {
            Some(ca) if !self.check.validation.suppress_client_ca_list => &ca.subjects,
            _ => &[],
        }
    }
    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check.check(leaf, intermediates, None, now)?;
        Ok(ClientCertVerified::assertion())
    }
    signatures!(self => self.check.provider);
}

/// The client's look at servers.
#[derive(Debug)]
pub(crate) struct ServerVerifier(pub Arc<PeerCheck>);

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let sni = match server_name {
            ServerName::DnsName(name) => Some(name.as_ref()),
            _ => None,
        };
        self.0.check(leaf, intermediates, sni, now)?;
        Ok(ServerCertVerified::assertion())
    }
    signatures!(self => self.0.provider);
}
