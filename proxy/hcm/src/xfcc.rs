//! `x-forwarded-client-cert`. Called once per request on a worker.
//! Source: HttpConnectionManager.forward_client_cert_details and set_current_client_cert_details.

use crate::names::{self, X_FORWARDED_CLIENT_CERT};
use http::HeaderValue;
use nuncio_core::{RequestHead, TlsInfo};
use nuncio_proto::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::ForwardClientCertDetails as Mode;
use std::fmt::Write;

/// What to do with the header, and which parts of the peer's certificate it tells.
#[derive(Clone, Copy, Debug)]
pub struct ClientCert {
    pub mode: Mode,
    pub subject: bool,
    pub cert: bool,
    pub chain: bool,
    pub dns: bool,
    pub uri: bool,
    pub issuer: bool,
}

impl ClientCert {
    /// Sets, appends, keeps or removes the header.
    pub fn apply(&self, head: &mut RequestHead, tls: Option<&TlsInfo>) {
        let peer = tls.and_then(|t| t.peer_cert().map(|p| (t, p)));
        match (self.mode, peer) {
            (Mode::AlwaysForwardOnly, _) | (Mode::ForwardOnly, Some(_)) => {}
            (Mode::Sanitize, _) | (_, None) => {
                head.headers.remove(&X_FORWARDED_CLIENT_CERT);
            }
            (Mode::AppendForward, Some((tls, peer))) => {
                let element = self.element(tls, peer);
                names::append_joined(&mut head.headers, &X_FORWARDED_CLIENT_CERT, b",", element.as_bytes());
            }
            (Mode::SanitizeSet, Some((tls, peer))) => {
                if let Ok(element) = HeaderValue::try_from(self.element(tls, peer)) {
                    head.headers.insert(X_FORWARDED_CLIENT_CERT.clone(), element);
                }
            }
        }
    }

    fn element(&self, tls: &TlsInfo, peer: &nuncio_core::info::CertInfo) -> String {
        let mut out = String::new();
        let mut part = |name: &str, value: &str, quote: bool| {
            if !out.is_empty() {
                out.push(';');
            }
            let quote = if quote { "\"" } else { "" };
            // Writing to a String cannot fail.
            let _ = write!(out, "{name}={quote}{value}{quote}");
        };
        for uri in tls.local.iter().flat_map(|c| &c.uri_sans) {
            part("By", uri, false);
        }
        if !peer.sha256.is_empty() {
            part("Hash", &peer.sha256, false);
        }
        if self.cert {
            part("Cert", &peer.url_pem, true);
        }
        if self.chain {
            part("Chain", &peer.url_pem_chain, true);
        }
        if self.subject {
            part("Subject", &peer.subject, true);
        }
        if self.issuer {
            part("Issuer", &peer.issuer, true);
        }
        if self.uri {
            for uri in &peer.uri_sans {
                part("URI", uri, false);
            }
        }
        if self.dns {
            for dns in &peer.dns_sans {
                part("DNS", dns, false);
            }
        }
        out
    }
}
