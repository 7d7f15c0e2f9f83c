//! What is known of a TLS connection: what the handshake settled, and certificates in the forms that formatters, filters and loggers
//! need. Made by nuncio-tls, read on workers; what a peer sent is parsed when it is first asked for.

use crate::ByteStr;
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime};

/// What a certificate says, in the forms that formatters and x-forwarded-client-cert need. Built by nuncio-tls.
#[derive(Clone, Debug, Default)]
pub struct CertInfo {
    /// RFC 2253 subject, as `%DOWNSTREAM_PEER_SUBJECT%`.
    pub subject: String,
    /// RFC 2253 issuer.
    pub issuer: String,
    /// Lower-case hex serial number.
    pub serial: String,
    /// Lower-case hex SHA-256 of the DER certificate.
    pub sha256: String,
    /// Lower-case hex SHA-1 of the DER certificate.
    pub sha1: String,
    pub uri_sans: Vec<String>,
    pub dns_sans: Vec<String>,
    pub ip_sans: Vec<String>,
    pub email_sans: Vec<String>,
    /// Values of otherName entries, as text.
    pub other_sans: Vec<String>,
    /// Dotted OIDs of these.
    pub other_san_oids: Vec<String>,
    pub not_before: Option<SystemTime>,
    pub not_after: Option<SystemTime>,
    /// URL-encoded PEM of the certificate, as x-forwarded-client-cert's `Cert=`.
    pub url_pem: String,
    /// URL-encoded PEM of the whole chain, as `Chain=`.
    pub url_pem_chain: String,
}

/// A finished TLS handshake.
#[derive(Debug, Default)]
pub struct TlsInfo {
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: &'static str,
    /// OpenSSL's cipher name (`TLS_AES_128_GCM_SHA256`, `ECDHE-RSA-AES128-GCM-SHA256`).
    pub cipher: &'static str,
    /// The group of the key exchange as BoringSSL names it (`X25519`, `P-256`); empty if there was no exchange.
    pub group: &'static str,
    pub sni: Option<ByteStr>,
    pub alpn: Option<ByteStr>,
    /// Hex session id, empty if none.
    pub session_id: String,
    /// The peer's certificate chain in DER, leaf first; empty if it sent none.
    pub peer_chain: Vec<Vec<u8>>,
    /// Whether the peer's certificate was verified against a CA (`peerCertificateValidated`).
    pub peer_validated: bool,
    /// Parsed on first use, because most requests never ask.
    pub peer: OnceLock<CertInfo>,
    /// Parser of `peer_chain`, set by nuncio-tls.
    pub parse_peer: Option<ParsePeer>,
    /// Reader of the whole of `peer_chain`, which knows what the peer was verified against; set by nuncio-tls.
    pub chain_reader: Option<Arc<dyn ReadChain>>,
    /// Read on first use.
    pub chain: OnceLock<Box<PeerChain>>,
    /// Our own certificate.
    pub local: Option<Arc<CertInfo>>,
    /// When the client's hello had come; none upstream.
    pub hello: Option<Instant>,
}

/// Reads a DER chain, leaf first.
pub type ParsePeer = fn(&[Vec<u8>]) -> CertInfo;

/// What tells one certificate from others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CertDigests {
    /// Lower-case hex of the DER certificate.
    pub sha256: String,
    pub sha1: String,
    /// Lower-case hex serial number.
    pub serial: String,
}

/// A peer's certificates.
#[derive(Clone, Debug, Default)]
pub struct PeerChain {
    /// All that it sent, leaf first.
    pub certs: Vec<CertDigests>,
    /// The certificate that the leaf was verified with; none if it was not verified.
    pub issuer: Option<CertDigests>,
}

/// Reads a peer's chain of DER certificates, leaf first.
pub trait ReadChain: std::fmt::Debug + Send + Sync {
    fn read(&self, chain: &[Vec<u8>], validated: bool) -> PeerChain;
}

impl TlsInfo {
    /// The peer's whole chain, read once; none if it sent none.
    pub fn peer_chain(&self) -> Option<&PeerChain> {
        if self.peer_chain.is_empty() {
            return None;
        }
        let read = || self.chain_reader.as_ref().map(|r| r.read(&self.peer_chain, self.peer_validated)).unwrap_or_default();
        Some(self.chain.get_or_init(|| Box::new(read())))
    }
    /// The peer's certificate, parsed once; none if it sent none.
    pub fn peer_cert(&self) -> Option<&CertInfo> {
        if self.peer_chain.is_empty() {
            return None;
        }
        Some(self.peer.get_or_init(|| self.parse_peer.map_or_else(CertInfo::default, |parse| parse(&self.peer_chain))))
    }
}
