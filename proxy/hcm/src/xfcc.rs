//! `x-forwarded-client-cert`. Called once per request on a worker.
//! Source: HttpConnectionManager.forward_client_cert_details, set_current_client_cert_details and forward_client_cert_matcher.

use crate::names::{self, X_FORWARDED_CLIENT_CERT};
use http::HeaderValue;
use nuncio_core::info::CertInfo;
use nuncio_core::{RequestHead, StreamInfo, TlsInfo};
use nuncio_matcher::query::decoded;
use nuncio_matcher::{MatchData, MatchTree};
use nuncio_proto::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::ForwardClientCertDetails as Mode;
use serde_json::Value;
use std::fmt::Write;

/// How each certificate of a chain ends.
const PEM_END: &str = "-----END CERTIFICATE-----\n";

/// What is done with the header of each request.
#[derive(Debug)]
pub struct ClientCertPolicy {
    /// What no match decides.
    pub fixed: ClientCert,
    /// `forward_client_cert_matcher`.
    pub matched: Option<MatchTree<ClientCert>>,
}

impl ClientCertPolicy {
    /// Sets, appends, keeps or removes the header.
    pub fn apply(&self, head: &mut RequestHead, info: &StreamInfo) {
        let found = self.matched.as_ref().and_then(|tree| tree.find(&MatchData::request(head, info)).copied());
        found.unwrap_or(self.fixed).apply_to(head, info.connection.tls.as_deref());
    }
}

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
    /// `format: JSON`, for a header that is not there yet.
    pub json: bool,
}

impl ClientCert {
    fn apply_to(&self, head: &mut RequestHead, tls: Option<&TlsInfo>) {
        let peer = tls.and_then(|t| t.peer_cert().map(|p| (t, p)));
        match (self.mode, peer) {
            (Mode::AlwaysForwardOnly, _) | (Mode::ForwardOnly, Some(_)) => {}
            (Mode::Sanitize, _) | (_, None) => {
                head.headers.remove(&X_FORWARDED_CLIENT_CERT);
            }
            (Mode::AppendForward, Some((tls, peer))) => {
                // What is there already decides in which format more is said.
                let old = nuncio_core::message::joined(&head.headers, &X_FORWARDED_CLIENT_CERT).filter(|old| !old.is_empty());
                match old.as_deref().map(json_array) {
                    Some(Some(elements)) => {
                        let comma: &[u8] = if elements.is_empty() { b"" } else { b"," };
                        let all = [b"[", elements, comma, self.json_element(tls, peer).as_bytes(), b"]"].concat();
                        self.set(head, all);
                    }
                    Some(None) => {
                        let element = self.element(tls, peer);
                        names::append_joined(&mut head.headers, &X_FORWARDED_CLIENT_CERT, b",", element.as_bytes());
                    }
                    None => self.set(head, self.first(tls, peer)),
                }
            }
            (Mode::SanitizeSet, Some((tls, peer))) => self.set(head, self.first(tls, peer)),
        }
    }

    fn set(&self, head: &mut RequestHead, value: Vec<u8>) {
        if let Ok(value) = HeaderValue::try_from(value) {
            head.headers.insert(X_FORWARDED_CLIENT_CERT.clone(), value);
        }
    }

    fn first(&self, tls: &TlsInfo, peer: &CertInfo) -> Vec<u8> {
        if self.json { format!("[{}]", self.json_element(tls, peer)).into() } else { self.element(tls, peer).into() }
    }

    /// One object; empty parts are left out.
    fn json_element(&self, tls: &TlsInfo, peer: &CertInfo) -> String {
        let list = |values: &[String]| Value::from(values);
        let pems = |encoded: &str| -> Vec<String> {
            let text = String::from_utf8_lossy(&decoded(encoded)).into_owned();
            text.split_inclusive(PEM_END).filter(|pem| pem.contains(PEM_END)).map(str::to_string).collect()
        };
        let by = tls.local.as_ref().map(|local| list(&local.uri_sans));
        let parts = [
            ("by", by),
            ("hash", Some(peer.sha256.as_str().into())),
            ("cert", self.cert.then(|| pems(&peer.url_pem).concat().into())),
            ("chain", self.chain.then(|| list(&pems(&peer.url_pem_chain)))),
            ("subject", self.subject.then(|| peer.subject.as_str().into())),
            ("uri", self.uri.then(|| list(&peer.uri_sans))),
            ("dns", self.dns.then(|| list(&peer.dns_sans))),
            ("issuer", self.issuer.then(|| peer.issuer.as_str().into())),
        ];
        let is_empty = |value: &Value| value.as_str() == Some("") || value.as_array().is_some_and(Vec::is_empty);
        let object = parts.into_iter().filter_map(|(name, value)| Some((name.to_string(), value.filter(|v| !is_empty(v))?)));
        Value::Object(object.collect()).to_string()
    }

    fn element(&self, tls: &TlsInfo, peer: &CertInfo) -> String {
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

/// The elements of a JSON array, as they stand between its brackets.
fn json_array(value: &[u8]) -> Option<&[u8]> {
    let value = value.trim_ascii();
    let elements = value.strip_prefix(b"[")?.strip_suffix(b"]")?;
    serde_json::from_slice::<Vec<serde::de::IgnoredAny>>(value).is_ok().then(|| elements.trim_ascii())
}
