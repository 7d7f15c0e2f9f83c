//! SDS secrets by name: one slot per name for life, what is in it is swapped as a whole. Written by the control thread, read at
//! handshake time by the workers without a lock.

use crate::material::Material;
use arc_swap::ArcSwapOption;
use nuncio_core::diag::Report;
use nuncio_proto::envoy::config::core::v3::ConfigSource;
use nuncio_proto::envoy::extensions::transport_sockets::tls::v3::Secret;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

/// What a slot is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SecretKind {
    TlsCertificate,
    ValidationContext,
    SessionTicketKeys,
    Generic,
}

/// The place of one secret name of one source.
#[derive(Debug)]
pub struct SecretSlot {
    pub name: Arc<str>,
    pub kind: SecretKind,
    /// Where to subscribe (`SdsSecretConfig.sds_config`); none for a static secret of the bootstrap.
    pub source: Option<ConfigSource>,
    current: ArcSwapOption<Live>,
}

/// A secret that is in use.
#[derive(Debug)]
pub struct Live {
    pub material: Material,
    /// The secret with everything secret replaced by `[redacted]`, as Envoy's config_dump shows it.
    pub redacted: Secret,
    pub updated: SystemTime,
}

impl SecretSlot {
    /// The secret; none if it has not arrived.
    pub fn get(&self) -> Option<Arc<Live>> {
        self.current.load_full()
    }
}

/// A name that something compiled refers to.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub name: Arc<str>,
    pub kind: SecretKind,
    pub source: Option<ConfigSource>,
    /// Whether the secret has arrived.
    pub ready: bool,
}

/// One certificate for `/certs` and `ssl.certificate.*`.
#[derive(Clone, Debug)]
pub struct CertificateStatus {
    /// The secret that it came from, empty for inline ones.
    pub secret: Arc<str>,
    /// File name, or `<inline>`.
    pub path: String,
    /// Whether it is a CA certificate (`ca_cert`) or our own (`cert_chain`).
    pub ca: bool,
    pub info: nuncio_core::info::CertInfo,
    /// Whole days until expiration; 0 if it expired.
    pub days_until_expiration: u64,
}

/// Every slot of the process.
#[derive(Debug, Default)]
pub struct SecretStore {
    slots: Mutex<HashMap<(Arc<str>, SecretKind), Vec<Arc<SecretSlot>>>>,
}

impl SecretStore {
    /// An empty store.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }
    /// The slot of `name` from `source`, made if there is none. Called by compile functions.
    pub fn slot(&self, _name: &str, _kind: SecretKind, _source: Option<&ConfigSource>) -> Arc<SecretSlot> {
        Arc::new(SecretSlot { name: _name.into(), kind: _kind, source: _source.cloned(), current: ArcSwapOption::empty() })
    }
    /// Puts a secret that came from `source` (none: the bootstrap's static secrets) into every slot of its name and source.
    /// A secret that cannot be used is refused with findings; the last good one stays.
    pub fn apply(&self, _secret: &Secret, _source: Option<&ConfigSource>) -> Result<(), Report> {
        Ok(())
    }
    /// Takes a secret out; later handshakes that need it fail.
    pub fn remove(&self, _name: &str, _source: Option<&ConfigSource>) {}
    /// The names that something living refers to, for subscriptions. Slots that nothing refers to any more are forgotten, with their secret.
    pub fn wanted(&self) -> Vec<Wanted> {
        Vec::new()
    }
    /// Reads files that secrets name again (`filename` data sources) and swaps those that changed; findings of those that failed.
    pub fn refresh_files(&self) -> Vec<(Arc<str>, Report)> {
        Vec::new()
    }
    /// Every slot, for config_dump.
    pub fn slots(&self) -> Vec<Arc<SecretSlot>> {
        Vec::new()
    }
    /// Every certificate in use, for `/certs`.
    pub fn certificates(&self) -> Vec<CertificateStatus> {
        Vec::new()
    }
}
