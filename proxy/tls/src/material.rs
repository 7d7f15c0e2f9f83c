//! Secrets in the form that rustls uses: parsed, checked and ready. Made on the control thread when a secret arrives (or a context with
//! static certificates is compiled), so that bad PEM is refused with its name and handshakes parse nothing.

use crate::cert::{self, San};
use crate::pins::Validation;
use crate::session::TicketKeys;
use crate::{params, staple};
use nuncio_core::diag::{At, Report};
use nuncio_core::info::CertInfo;
use nuncio_proto::envoy::config::core::v3::{DataSource, data_source::Specifier};
use nuncio_proto::envoy::extensions::transport_sockets::tls::v3::{GenericSecret, Secret, TlsCertificate, TlsSessionTicketKeys, secret};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;
use std::time::SystemTime;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Most bytes that are read from a file that a data source names.
const MAX_FILE: u64 = 16 * 1024 * 1024;

/// A parsed secret.
#[derive(Debug)]
pub enum Material {
    Certificate(Arc<Identity>),
    Validation(Arc<Validation>),
    Tickets(TicketKeys),
    Generic(Generic),
}

/// `GenericSecret`.
#[derive(Clone, Default)]
pub struct Generic {
    pub secret: Vec<u8>,
    pub secrets: BTreeMap<String, Vec<u8>>,
}
impl std::fmt::Debug for Generic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Generic")
    }
}

/// One of our certificates with its key.
pub struct Identity {
    pub(crate) key: Arc<CertifiedKey>,
    /// The same without its OCSP response, for when that has expired; none if there is no response.
    pub(crate) unstapled: Option<Arc<CertifiedKey>>,
    pub(crate) staple_expires: Option<SystemTime>,
    /// The certificate asks for stapling (RFC 7633).
    pub(crate) must_staple: bool,
    /// Lower-case DNS names, or the common name if there are none; `*.` for wildcards.
    pub(crate) names: Vec<String>,
    pub info: Arc<CertInfo>,
    /// File of the chain, or `<inline>`.
    pub path: String,
}
impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("names", &self.names).field("path", &self.path).finish_non_exhaustive()
    }
}

impl Identity {
    /// DER of the leaf.
    pub(crate) fn leaf(&self) -> &[u8] {
        self.key.cert.first().map_or(&[], |c| c.as_ref())
    }

    /// Parses `proto`. Every problem goes to `report`; None means refused.
    pub fn compile(proto: &TlsCertificate, at: &At<'_>, report: &mut Report) -> Option<Arc<Self>> {
        let before = report.errors();
        if proto.pkcs12.is_some() {
            report.unsupported(&at.field("pkcs12"), "PKCS #12");
        }
        if proto.password.is_some() {
            report.unsupported(&at.field("password"), "an encrypted private key");
        }
        if let Some(provider) = &proto.private_key_provider {
            report.unsupported(&at.field("private_key_provider"), format_args!("private key provider `{}`", provider.provider_name));
        }
        if !proto.signed_certificate_timestamp.is_empty() {
            report.unsupported(&at.field("signed_certificate_timestamp"), "a signed certificate timestamp");
        }
        if proto.tls_params.is_some() {
            report.unsupported(&at.field("tls_params"), "tls_params of a single certificate");
        }
        let chain = required(proto.certificate_chain.as_ref(), &at.field("certificate_chain"), report);
        let key = required(proto.private_key.as_ref(), &at.field("private_key"), report);
        let ocsp = proto.ocsp_staple.as_ref().and_then(|s| required(Some(s), &at.field("ocsp_staple"), report)).filter(|s| !s.is_empty());
        let (Some(chain), Some(key)) = (chain, key) else { return None };
        let chain = certificates(&chain, &at.field("certificate_chain"), report);
        let key = match PrivateKeyDer::from_pem_slice(&key) {
            Ok(key) => Some(key),
            Err(e) => {
                let encrypted = key.windows(17).any(|w| w == b"ENCRYPTED PRIVATE");
                let why =
                    if encrypted { "the private key is encrypted".to_string() } else { format!("no private key in the PEM text ({e})") };
                report.error(&at.field("private_key"), why, "give an unencrypted PKCS #8, PKCS #1 or SEC 1 key in PEM");
                None
            }
        };
        let (chain, key) = (chain?, key?);
        let certified = CertifiedKey::from_der(chain, key, &params::BASE).map_err(|e| {
            let remedy =
                "give a supported key (RSA of 2048 to 8192 bits, ECDSA P-256/P-384/P-521, Ed25519) that belongs to the first certificate";
            report.error(&at.field("private_key"), format!("certificate and key cannot be used: {e}"), remedy);
        });
        let mut certified = certified.ok()?;
        let leaf = certified.cert.first()?.clone();
        let (mut names, mut must_staple) = (Vec::new(), false);
        if let Ok((_, parsed)) = X509Certificate::from_der(&leaf) {
            names = cert::names(&parsed)
                .into_iter()
                .filter_map(|n| if let San::Dns(n) = n { Some(n.to_ascii_lowercase()) } else { None })
                .collect();
            if names.is_empty() {
                names.extend(cert::common_name(&parsed).map(|cn| cn.to_ascii_lowercase()));
            }
            must_staple = parsed.extensions().iter().any(|e| e.oid.to_id_string() == "1.3.6.1.5.5.7.1.24");
        }
        let (mut unstapled, mut staple_expires) = (None, None);
        if let Some(ocsp) = ocsp {
            match staple::expiry(&ocsp) {
                Ok(expires) => {
                    unstapled = Some(Arc::new(certified.clone()));
                    staple_expires = expires;
                    certified.ocsp = Some(ocsp);
                }
                Err(why) => {
                    report.error(&at.field("ocsp_staple"), why, "give the DER of an OCSP response (status successful), or leave it out")
                }
            }
        }
        if report.errors() > before {
            return None;
        }
        let mut info = cert::parse(&leaf);
        info.url_pem = String::new(); // Nothing prints our own PEM; do not keep it.
        let path = path(proto.certificate_chain.as_ref());
        Some(Arc::new(Self { key: Arc::new(certified), unstapled, staple_expires, must_staple, names, info: Arc::new(info), path }))
    }
}

/// `filename`, or `<inline>` as Envoy's `/certs` says.
pub(crate) fn path(source: Option<&DataSource>) -> String {
    match source.and_then(|s| s.specifier.as_ref()) {
        Some(Specifier::Filename(f)) => f.clone(),
        _ => "<inline>".to_string(),
    }
}

/// The bytes of `source`.
pub fn load(source: &DataSource) -> Result<Vec<u8>, String> {
    match &source.specifier {
        None => Err("it has no specifier".to_string()),
        Some(Specifier::InlineBytes(b)) => Ok(b.clone()),
        Some(Specifier::InlineString(s)) => Ok(s.clone().into_bytes()),
        Some(Specifier::EnvironmentVariable(name)) => {
            std::env::var(name).map(String::into_bytes).map_err(|e| format!("environment variable `{name}`: {e}"))
        }
        Some(Specifier::Filename(name)) => {
            let mut bytes = Vec::new();
            let read = std::fs::File::open(name).and_then(|f| f.take(MAX_FILE + 1).read_to_end(&mut bytes));
            match read {
                Ok(n) if n as u64 > MAX_FILE => Err(format!("`{name}` is larger than {MAX_FILE} bytes")),
                Ok(_) => Ok(bytes),
                Err(e) => Err(format!("`{name}` cannot be read: {e}")),
            }
        }
    }
}

/// The bytes of `source`; an error if it is absent, empty or unreadable.
pub(crate) fn required(source: Option<&DataSource>, at: &At<'_>, report: &mut Report) -> Option<Vec<u8>> {
    let loaded = match source {
        None => Err("it is missing".to_string()),
        Some(source) => load(source).and_then(|bytes| match (bytes.is_empty(), &source.specifier) {
            (false, _) => Ok(bytes),
            (true, Some(Specifier::Filename(name))) => Err(format!("`{name}` is empty")),
            (true, _) => Err("it is empty".to_string()),
        }),
    };
    loaded.map_err(|why| report.error(at, why, "give a readable data source")).ok()
}

/// Every certificate of a PEM text; an error if there is none or one is broken.
pub(crate) fn certificates(pem: &[u8], at: &At<'_>, report: &mut Report) -> Option<Vec<CertificateDer<'static>>> {
    let mut all = Vec::new();
    for (i, cert) in CertificateDer::pem_slice_iter(pem).enumerate() {
        let cert = cert.map_err(|e| format!("certificate {i} is not valid PEM: {e}"));
        let cert = cert.and_then(|c| match X509Certificate::from_der(&c) {
            Ok(([], _)) => Ok(c),
            Ok(_) => Err(format!("certificate {i} has bytes after its end")),
            Err(e) => Err(format!("certificate {i} is not valid X.509: {e}")),
        });
        match cert {
            Ok(cert) => all.push(cert),
            Err(why) => {
                report.error(at, why, "give PEM certificates");
                return None;
            }
        }
    }
    if all.is_empty() {
        report.error(at, "no certificate in the text", "give PEM certificates");
        return None;
    }
    Some(all)
}

/// `TlsSessionTicketKeys`.
pub(crate) fn ticket_keys(proto: &TlsSessionTicketKeys, at: &At<'_>, report: &mut Report) -> Option<TicketKeys> {
    let mut keys = Vec::new();
    for (i, source) in proto.keys.iter().enumerate() {
        let (field, raw) = (at.field("keys"), load(source));
        match raw.map(<[u8; 80]>::try_from) {
            Ok(Ok(key)) => keys.push(key),
            Ok(Err(raw)) => report.error(&field.index(i), format!("a key of {} bytes", raw.len()), "give exactly 80 random bytes"),
            Err(why) => report.error(&field.index(i), why, "give a readable data source"),
        }
    }
    if proto.keys.is_empty() {
        report.error(&at.field("keys"), "no key", "give at least one key of 80 bytes");
    }
    (!keys.is_empty() && keys.len() == proto.keys.len()).then_some(TicketKeys(keys))
}

fn generic(proto: &GenericSecret, at: &At<'_>, report: &mut Report) -> Option<Generic> {
    let mut out = Generic::default();
    let before = report.errors();
    if let Some(source) = &proto.secret {
        out.secret = load(source).map_err(|why| report.error(&at.field("secret"), why, "give a readable data source")).ok()?;
    }
    for (name, source) in &proto.secrets {
        match load(source) {
            Ok(bytes) => {
                out.secrets.insert(name.clone(), bytes);
            }
            Err(why) => report.error(&at.field("secrets").key(name), why, "give a readable data source"),
        }
    }
    (report.errors() == before).then_some(out)
}

impl Material {
    /// Parses a secret. Every problem goes to `report`; None means refused.
    pub fn compile(proto: &Secret, at: &At<'_>, report: &mut Report) -> Option<Self> {
        match &proto.r#type {
            Some(secret::Type::TlsCertificate(p)) => Identity::compile(p, &at.field("tls_certificate"), report).map(Self::Certificate),
            Some(secret::Type::ValidationContext(p)) => {
                Validation::compile(p, &at.field("validation_context"), report).map(Self::Validation)
            }
            Some(secret::Type::SessionTicketKeys(p)) => ticket_keys(p, &at.field("session_ticket_keys"), report).map(Self::Tickets),
            Some(secret::Type::GenericSecret(p)) => generic(p, &at.field("generic_secret"), report).map(Self::Generic),
            None => {
                report.error(at, "a secret of no type", "give tls_certificate, validation_context, session_ticket_keys or generic_secret");
                None
            }
        }
    }
}
