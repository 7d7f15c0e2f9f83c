//! What both sides do when a handshake has ended, well or badly.

use crate::TlsFailure;
use crate::stats::{Negotiated, SslStats};
use crate::verify::{self, PeerCheck};
use nuncio_core::{ByteStr, TlsInfo};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::{CommonState, Error, HandshakeKind};
use std::io;

/// Counts a good handshake and says what came of it.
pub(crate) fn info(common: &CommonState, stats: &SslStats) -> TlsInfo {
    stats.handshake.inc();
    if common.handshake_kind() == Some(HandshakeKind::Resumed) {
        stats.session_reused.inc();
    }
    let Negotiated { version, cipher, group } = stats.negotiated(common);
    let peer_chain: Vec<Vec<u8>> = common.peer_certificates().unwrap_or_default().iter().map(|c| c.as_ref().to_vec()).collect();
    if peer_chain.is_empty() {
        stats.no_certificate.inc();
    }
    let alpn = common.alpn_protocol().and_then(|p| std::str::from_utf8(p).ok()).map(ByteStr::from);
    TlsInfo { version, cipher, group, alpn, peer_chain, parse_peer: Some(crate::cert::parse_chain), ..TlsInfo::default() }
}

/// Whether the peer's certificate was verified against something. Only ACCEPT_UNTRUSTED has to look again: everywhere else a
/// handshake that was finished is one that was verified.
pub(crate) fn validated(check: Option<&PeerCheck>, info: &TlsInfo) -> bool {
    let (Some(check), Some((leaf, rest))) = (check, info.peer_chain.split_first()) else { return false };
    if !check.validation.accept_untrusted {
        return check.validation.asks() || check.sans.is_some() || check.sni_san;
    }
    if check.validation.ca.is_none() {
        return false;
    }
    let rest: Vec<_> = rest.iter().map(|c| CertificateDer::from(c.as_slice())).collect();
    check.chain_ok(&CertificateDer::from(leaf.as_slice()), &rest, UnixTime::now()).is_ok()
}

/// Counts a failed handshake and puts it into words. Envoy counts refused certificates by cause and everything else that the TLS
/// library calls an error as `connection_error`; a peer that just goes away is neither.
pub(crate) fn failure(e: io::Error, stats: &SslStats) -> TlsFailure {
    let Some(tls) = e.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) else {
        return TlsFailure::Io(match e.kind() {
            io::ErrorKind::UnexpectedEof => "connection closed during the TLS handshake".to_string(),
            _ => format!("connection failed during the TLS handshake: {e}"),
        });
    };
    TlsFailure::Handshake(match tls {
        Error::InvalidCertificate(why) => {
            // The verifiers counted it, except for a bad proof of possession.
            format!("TLS_error:CERTIFICATE_VERIFY_FAILED: {}", verify::describe(why))
        }
        Error::NoCertificatesPresented => {
            stats.fail_verify_no_cert.inc();
            "TLS_error:PEER_DID_NOT_RETURN_A_CERTIFICATE: a client certificate is required".to_string()
        }
        Error::AlertReceived(alert) => {
            stats.connection_error.inc();
            format!("TLS_error:ALERT_RECEIVED: the peer refused the handshake ({alert:?})")
        }
        other => {
            stats.connection_error.inc();
            format!("TLS_error:{other}")
        }
    })
}
