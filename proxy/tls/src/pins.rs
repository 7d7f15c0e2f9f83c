//! `CertificateValidationContext`: trust anchors, revocation lists and what else a peer's certificate must satisfy. Parsed once, shared
//! by every context that names the same secret.

// Fields that Envoy deprecated are still sent (Istio's match_subject_alt_names) and must be read or refused.
#![allow(deprecated)]

use crate::cert::{self, San};
use crate::material;
use aws_lc_rs::digest;
use base64::Engine;
use nuncio_core::diag::{At, Report};
use nuncio_core::info::{CertInfo, PeerChain, ReadChain};
use nuncio_matcher::StringMatcher;
use nuncio_proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, SubjectAltNameMatcher, certificate_validation_context::TrustChainVerification,
    subject_alt_name_matcher::SanType,
};
use nuncio_proto::envoy::r#type::matcher::v3::{StringMatcher as StringMatcherProto, string_matcher::MatchPattern};
use rustls::DistinguishedName;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, TrustAnchor};
use std::sync::Arc;
use webpki::{CertRevocationList, OwnedCertRevocationList};
use x509_parser::prelude::X509Certificate;

/// Where distributions keep the CA certificates of the system, most common first.
const SYSTEM_ROOTS: &[&str] =
    &["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem", "/etc/ssl/ca-bundle.pem"];

/// `trusted_ca`.
#[derive(Debug)]
pub struct TrustedCa {
    pub(crate) anchors: Vec<TrustAnchor<'static>>,
    /// The certificates themselves: a peer may present one of them as its own (self-signed servers).
    pub(crate) certs: Vec<CertificateDer<'static>>,
    pub(crate) subjects: Vec<DistinguishedName>,
    pub infos: Vec<CertInfo>,
    pub path: String,
}

/// A compiled validation context.
#[derive(Clone, Debug, Default)]
pub struct Validation {
    pub ca: Option<Arc<TrustedCa>>,
    pub(crate) crls: Option<Arc<Vec<CertRevocationList<'static>>>>,
    pub(crate) sans: Vec<Arc<SanMatch>>,
    pub(crate) spkis: Vec<[u8; 32]>,
    pub(crate) hashes: Vec<[u8; 32]>,
    pub(crate) allow_expired: bool,
    pub(crate) accept_untrusted: bool,
    pub(crate) leaf_crl_only: bool,
    pub(crate) max_depth: Option<u32>,
    pub(crate) suppress_client_ca_list: bool,
    /// SHA-256 of the configuration and of the certificates behind it; part of what session tickets are bound to.
    pub(crate) digest: [u8; 32],
}

impl ReadChain for Validation {
    fn read(&self, chain: &[Vec<u8>], validated: bool) -> PeerChain {
        let certs = chain.iter().map(|der| cert::digests(der)).collect();
        let issuer = chain.split_first().filter(|_| validated).and_then(|(leaf, rest)| {
            let sent = rest.iter().map(Vec::as_slice);
            let trusted = self.ca.iter().flat_map(|ca| ca.certs.iter().map(|c| c.as_ref()));
            sent.chain(trusted).find(|der| *der != leaf.as_slice() && cert::issued(der, leaf)).map(cert::digests)
        });
        PeerChain { certs, issuer }
    }
}

/// One matcher of subject alternative names.
#[derive(Debug)]
pub(crate) struct SanMatch {
    kind: SanType,
    /// Dotted OID of OTHER_NAME.
    oid: String,
    matcher: StringMatcher,
    /// Lower-case exact DNS name, which wildcards of the certificate may satisfy.
    exact_dns: Option<String>,
}

impl SanMatch {
    fn matches(&self, san: &San) -> bool {
        match (self.kind, san) {
            (SanType::Dns, San::Dns(name)) => match &self.exact_dns {
                Some(wanted) => dns_matches(wanted, name),
                None => self.matcher.matches(name),
            },
            (SanType::Uri, San::Uri(s)) | (SanType::Email, San::Email(s)) | (SanType::IpAddress, San::Ip(s)) => self.matcher.matches(s),
            (SanType::OtherName, San::Other(oid, value)) => *oid == self.oid && self.matcher.matches(value),
            _ => false,
        }
    }
}

/// Whether the certificate's `name`, perhaps `*.rest`, covers host `wanted`; a wildcard covers exactly one label.
pub(crate) fn dns_matches(wanted: &str, name: &str) -> bool {
    if wanted.eq_ignore_ascii_case(name) {
        return true;
    }
    match (name.strip_prefix("*."), wanted.split_once('.')) {
        (Some(rest), Some((label, parent))) => !label.is_empty() && rest.contains('.') && parent.eq_ignore_ascii_case(rest),
        _ => false,
    }
}

impl Validation {
    /// Parses `proto`. Every problem goes to `report`; None means refused.
    pub fn compile(proto: &CertificateValidationContext, at: &At<'_>, report: &mut Report) -> Option<Arc<Self>> {
        let before = report.errors();
        for (set, name) in [
            (proto.ca_certificate_provider_instance.is_some(), "ca_certificate_provider_instance"),
            (proto.require_signed_certificate_timestamp.unwrap_or_default(), "require_signed_certificate_timestamp"),
            (proto.custom_validator_config.is_some(), "custom_validator_config"),
        ] {
            if set {
                report.unsupported(&at.field(name), name);
            }
        }
        let mut out = Self {
            allow_expired: proto.allow_expired_certificate,
            accept_untrusted: proto.trust_chain_verification == TrustChainVerification::AcceptUntrusted as i32,
            leaf_crl_only: proto.only_verify_leaf_cert_crl,
            max_depth: proto.max_verify_depth,
            suppress_client_ca_list: proto.suppress_client_ca_list,
            ..Self::default()
        };
        let mut hash = digest::Context::new(&digest::SHA256);
        hash.update(&prost::Message::encode_to_vec(proto));
        if let Some(source) = &proto.trusted_ca {
            let at = at.field("trusted_ca");
            let pem = material::required(Some(source), &at, report);
            out.ca = pem.and_then(|pem| trusted_ca(&pem, material::path(Some(source)), &at, report));
        } else if proto.system_root_certs.is_some() {
            out.ca = system_roots(&at.field("system_root_certs"), report);
        }
        for cert in out.ca.iter().flat_map(|ca| &ca.certs) {
            hash.update(cert);
        }
        if let Some(source) = &proto.crl {
            let at = at.field("crl");
            if let Some(pem) = material::required(Some(source), &at, report) {
                hash.update(&pem);
                out.crls = crls(&pem, &at, report);
            }
        }
        let field = at.field("match_typed_subject_alt_names");
        for (i, matcher) in proto.match_typed_subject_alt_names.iter().enumerate() {
            out.sans.extend(typed_san(matcher, &field.index(i), report).map(Arc::new));
        }
        // The deprecated list names no type: it stands for one matcher of each.
        let field = at.field("match_subject_alt_names");
        for (i, matcher) in proto.match_subject_alt_names.iter().enumerate() {
            for kind in [SanType::Dns, SanType::Uri, SanType::Email, SanType::IpAddress] {
                match san(kind, String::new(), matcher, &field.index(i), report) {
                    Some(san) => out.sans.push(Arc::new(san)),
                    None => break,
                }
            }
        }
        let field = at.field("verify_certificate_spki");
        for (i, text) in proto.verify_certificate_spki.iter().enumerate() {
            match base64::engine::general_purpose::STANDARD.decode(text).ok().and_then(|b| b.try_into().ok()) {
                Some(pin) => out.spkis.push(pin),
                None => report.error(&field.index(i), format!("`{text}`"), "give the base64 of a SHA-256"),
            }
        }
        let field = at.field("verify_certificate_hash");
        for (i, text) in proto.verify_certificate_hash.iter().enumerate() {
            match unhex(text) {
                Some(pin) => out.hashes.push(pin),
                None => report.error(&field.index(i), format!("`{text}`"), "give a SHA-256 in hex, with or without colons"),
            }
        }
        out.digest.copy_from_slice(hash.finish().as_ref());
        (report.errors() == before).then(|| Arc::new(out))
    }

    /// `self` with `over` merged in, as protobuf merges messages: lists add up, what is set in `over` wins.
    pub(crate) fn merged(&self, over: &Self) -> Self {
        let mut hash = digest::Context::new(&digest::SHA256);
        hash.update(&self.digest);
        hash.update(&over.digest);
        let mut out = self.clone();
        out.ca = over.ca.clone().or(out.ca);
        out.crls = over.crls.clone().or(out.crls);
        out.sans.extend(over.sans.iter().cloned());
        out.spkis.extend_from_slice(&over.spkis);
        out.hashes.extend_from_slice(&over.hashes);
        out.allow_expired |= over.allow_expired;
        out.accept_untrusted |= over.accept_untrusted;
        out.leaf_crl_only |= over.leaf_crl_only;
        out.max_depth = over.max_depth.or(out.max_depth);
        out.suppress_client_ca_list |= over.suppress_client_ca_list;
        out.digest.copy_from_slice(hash.finish().as_ref());
        out
    }
    /// Whether anything is asked of a peer's certificate.
    pub(crate) fn asks(&self) -> bool {
        self.ca.is_some() || self.accept_untrusted || !self.sans.is_empty() || self.pinned()
    }
    pub(crate) fn pinned(&self) -> bool {
        !self.spkis.is_empty() || !self.hashes.is_empty()
    }
    /// Whether the leaf is one of the pinned ones.
    pub(crate) fn pin_matches(&self, der: &[u8], cert: &X509Certificate<'_>) -> bool {
        let is = |bytes: &[u8], pins: &[[u8; 32]]| {
            !pins.is_empty() && pins.iter().any(|pin| digest::digest(&digest::SHA256, bytes).as_ref() == pin)
        };
        is(der, &self.hashes) || is(cert.public_key().raw, &self.spkis)
    }
    /// Whether one of the names satisfies one of the matchers.
    pub(crate) fn san_matches(&self, names: &[San]) -> bool {
        self.sans.iter().any(|m| names.iter().any(|n| m.matches(n)))
    }
}

fn trusted_ca(pem: &[u8], path: String, at: &At<'_>, report: &mut Report) -> Option<Arc<TrustedCa>> {
    let certs = material::certificates(pem, at, report)?;
    let mut anchors = Vec::with_capacity(certs.len());
    let mut subjects = Vec::with_capacity(certs.len());
    for (i, cert) in certs.iter().enumerate() {
        match webpki::anchor_from_trusted_cert(cert) {
            Ok(anchor) => {
                subjects.push(DistinguishedName::in_sequence(&anchor.subject));
                anchors.push(anchor.to_owned());
            }
            Err(e) => report.error(at, format!("certificate {i} cannot be a trust anchor: {e}"), "give CA certificates of X.509 version 3"),
        }
    }
    let infos = certs.iter().map(|c| CertInfo { url_pem: String::new(), ..cert::parse(c) }).collect();
    (anchors.len() == certs.len()).then(|| Arc::new(TrustedCa { anchors, certs, subjects, infos, path }))
}

fn system_roots(at: &At<'_>, report: &mut Report) -> Option<Arc<TrustedCa>> {
    let Some((path, pem)) = SYSTEM_ROOTS.iter().find_map(|path| std::fs::read(path).ok().map(|pem| (*path, pem))) else {
        report.error(at, "no CA certificates of the system were found", format!("install them at one of {}", SYSTEM_ROOTS.join(", ")));
        return None;
    };
    trusted_ca(&pem, path.to_string(), at, report)
}

fn crls(pem: &[u8], at: &At<'_>, report: &mut Report) -> Option<Arc<Vec<CertRevocationList<'static>>>> {
    let mut all = Vec::new();
    for (i, crl) in CertificateRevocationListDer::pem_slice_iter(pem).enumerate() {
        let crl = crl.map_err(|e| e.to_string()).and_then(|der| OwnedCertRevocationList::from_der(&der).map_err(|e| e.to_string()));
        match crl {
            Ok(crl) => all.push(CertRevocationList::from(crl)),
            Err(e) => {
                report.error(at, format!("revocation list {i} cannot be used: {e}"), "give complete X.509 version 2 CRLs in PEM");
                return None;
            }
        }
    }
    if all.is_empty() {
        report.error(at, "no revocation list in the text", "give CRLs in PEM");
        return None;
    }
    Some(Arc::new(all))
}

fn typed_san(proto: &SubjectAltNameMatcher, at: &At<'_>, report: &mut Report) -> Option<SanMatch> {
    let kind = SanType::try_from(proto.san_type).unwrap_or_default();
    if kind == SanType::Unspecified {
        report.error(&at.field("san_type"), "SAN_TYPE_UNSPECIFIED", "give EMAIL, DNS, URI, IP_ADDRESS or OTHER_NAME");
        return None;
    }
    if kind == SanType::OtherName && proto.oid.is_empty() {
        report.error(&at.field("oid"), "OTHER_NAME without an oid", "give the OID");
        return None;
    }
    let Some(matcher) = &proto.matcher else {
        report.error(&at.field("matcher"), "it is missing", "give a string matcher");
        return None;
    };
    san(kind, proto.oid.clone(), matcher, &at.field("matcher"), report)
}

fn san(kind: SanType, oid: String, matcher: &StringMatcherProto, at: &At<'_>, report: &mut Report) -> Option<SanMatch> {
    let exact_dns = match (&matcher.match_pattern, kind) {
        (Some(MatchPattern::Exact(name)), SanType::Dns) => Some(name.to_ascii_lowercase()),
        _ => None,
    };
    Some(SanMatch { kind, oid, matcher: StringMatcher::compile(matcher, at, report)?, exact_dns })
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let digits: Vec<u8> = text.bytes().filter(|b| *b != b':').collect();
    let mut out = [0; 32];
    if digits.len() != 64 {
        return None;
    }
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_cover_one_label() {
        assert!(dns_matches("a.example.com", "A.example.com"));
        assert!(dns_matches("a.example.com", "*.Example.com"));
        assert!(!dns_matches("example.com", "*.example.com"));
        assert!(!dns_matches("a.b.example.com", "*.example.com"));
        assert!(!dns_matches("a.com", "*.com"));
        assert!(!dns_matches(".example.com", "*.example.com"));
    }

    #[test]
    fn pins_are_hex_with_or_without_colons() {
        let plain = "ab".repeat(32);
        let colons = vec!["AB"; 32].join(":");
        assert_eq!(unhex(&plain), unhex(&colons));
        assert!(unhex(&plain).is_some());
        assert!(unhex("ab").is_none());
        assert!(unhex(&"zz".repeat(32)).is_none());
    }
}
