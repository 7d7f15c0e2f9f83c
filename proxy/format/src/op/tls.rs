//! TLS facts of both sides.

use super::joined;
use crate::FormatContext;
use nuncio_core::TlsInfo;
use nuncio_core::info::{CertDigests, CertInfo};

/// Whose connection.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Side {
    Downstream,
    Upstream,
}

/// What of it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum CertField {
    PeerSubject,
    PeerIssuer,
    PeerSerial,
    PeerSha256,
    PeerSha1,
    PeerCert,
    PeerUriSan,
    PeerDnsSan,
    PeerIpSan,
    PeerEmailSan,
    LocalSubject,
    LocalUriSan,
    LocalDnsSan,
    LocalIpSan,
    LocalEmailSan,
    PeerOtherSan,
    LocalOtherSan,
    ChainSha256,
    ChainSha1,
    ChainSerials,
    IssuerSha256,
    IssuerSerial,
    Version,
    Cipher,
    Group,
    SessionId,
    Sni,
}

fn tls<'a>(cx: &FormatContext<'a>, side: Side) -> Option<&'a TlsInfo> {
    match side {
        Side::Downstream => cx.info.connection.tls.as_deref(),
        Side::Upstream => cx.info.upstream.as_deref()?.tls.as_deref(),
    }
}

/// The certificate that the peer showed.
pub(crate) fn peer<'a>(cx: &FormatContext<'a>, side: Side) -> Option<&'a CertInfo> {
    tls(cx, side)?.peer_cert()
}

impl CertField {
    /// Appends the text; false if there is none.
    pub fn write<'a>(self, cx: &FormatContext<'a>, side: Side, out: &mut Vec<u8>) -> bool {
        let Some(tls) = tls(cx, side) else { return false };
        let peer = || tls.peer_cert();
        let local = || tls.local.as_deref();
        let text = match self {
            Self::Version => Some(tls.version),
            Self::Cipher => Some(tls.cipher),
            Self::Group => Some(tls.group),
            Self::ChainSha256 | Self::ChainSha1 | Self::ChainSerials => {
                let of = |c: &'a CertDigests| match self {
                    Self::ChainSha256 => c.sha256.as_bytes(),
                    Self::ChainSha1 => c.sha1.as_bytes(),
                    _ => c.serial.as_bytes(),
                };
                return joined(out, tls.peer_chain().into_iter().flat_map(|chain| chain.certs.iter().map(of)));
            }
            Self::IssuerSha256 => tls.peer_chain().and_then(|chain| chain.issuer.as_ref()).map(|c| c.sha256.as_str()),
            Self::IssuerSerial => tls.peer_chain().and_then(|chain| chain.issuer.as_ref()).map(|c| c.serial.as_str()),
            Self::SessionId => Some(tls.session_id.as_str()),
            Self::Sni => tls.sni.as_deref(),
            Self::PeerSubject => peer().map(|c| c.subject.as_str()),
            Self::PeerIssuer => peer().map(|c| c.issuer.as_str()),
            Self::PeerSerial => peer().map(|c| c.serial.as_str()),
            Self::PeerSha256 => peer().map(|c| c.sha256.as_str()),
            Self::PeerSha1 => peer().map(|c| c.sha1.as_str()),
            Self::PeerCert => peer().map(|c| c.url_pem.as_str()),
            Self::LocalSubject => local().map(|c| c.subject.as_str()),
            _ => {
                let list = match self {
                    Self::PeerUriSan => peer().map(|c| &c.uri_sans),
                    Self::PeerDnsSan => peer().map(|c| &c.dns_sans),
                    Self::PeerIpSan => peer().map(|c| &c.ip_sans),
                    Self::PeerEmailSan => peer().map(|c| &c.email_sans),
                    Self::LocalUriSan => local().map(|c| &c.uri_sans),
                    Self::LocalDnsSan => local().map(|c| &c.dns_sans),
                    Self::LocalIpSan => local().map(|c| &c.ip_sans),
                    Self::PeerOtherSan => peer().map(|c| &c.other_sans),
                    Self::LocalOtherSan => local().map(|c| &c.other_sans),
                    _ => local().map(|c| &c.email_sans),
                };
                return joined(out, list.into_iter().flatten().map(|s| s.as_bytes()));
            }
        };
        let text = text.unwrap_or_default();
        out.extend_from_slice(text.as_bytes());
        !text.is_empty()
    }
}
