//! SDS secrets by name: one slot per name and source for life, what is in it is swapped as a whole. Written by the control thread, read
//! at handshake time by the workers without a lock.

use crate::material::{Identity, Material};
use crate::pins::TrustedCa;
use arc_swap::ArcSwapOption;
use aws_lc_rs::digest;
use nuncio_core::diag::{At, Report};
use nuncio_core::info::CertInfo;
use nuncio_proto::envoy::config::core::v3::{ConfigSource, DataSource, data_source::Specifier};
use nuncio_proto::envoy::extensions::transport_sockets::tls::v3::{Secret, secret};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
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
    /// The secret as it came, if it names files, with the SHA-256 of what they held.
    files: Option<(Secret, [u8; 32])>,
}

impl SecretSlot {
    /// The secret; none if it has not arrived.
    pub fn get(&self) -> Option<Arc<Live>> {
        self.current.load_full()
    }
    /// `GenericSecret.secret`; none if it has not arrived or is of another type.
    pub fn generic(&self) -> Option<Vec<u8>> {
        match &self.get()?.material {
            Material::Generic(generic) => Some(generic.secret.clone()),
            _ => None,
        }
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
    pub info: CertInfo,
    /// Whole days until expiration; 0 if it expired.
    pub days_until_expiration: u64,
}

#[derive(Debug, Default)]
struct Inner {
    slots: HashMap<Arc<str>, Vec<Arc<SecretSlot>>>,
    /// Slots of static certificates in watched directories; they have no name.
    watched: Vec<Weak<SecretSlot>>,
    /// Static certificates of living contexts, for `/certs`.
    identities: Vec<Weak<Identity>>,
    cas: Vec<Weak<TrustedCa>>,
}

/// Every slot of the process.
#[derive(Debug, Default)]
pub struct SecretStore {
    inner: Mutex<Inner>,
    generation: AtomicU64,
}

impl SecretStore {
    /// An empty store.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }
    /// How often a secret came, changed or went: what is made of secrets has to be made again when this is another number.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }
    fn changed(&self) {
        self.generation.fetch_add(1, Ordering::Release);
    }
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// The slot of `name` from `source`, made if there is none. Called by compile functions.
    pub fn slot(&self, name: &str, kind: SecretKind, source: Option<&ConfigSource>) -> Arc<SecretSlot> {
        let mut inner = self.inner();
        if let Some(found) = inner.slots.get(name).and_then(|all| all.iter().find(|s| s.kind == kind && s.source.as_ref() == source)) {
            return found.clone();
        }
        let name: Arc<str> = name.into();
        let slot = Arc::new(SecretSlot { name: name.clone(), kind, source: source.cloned(), current: ArcSwapOption::empty() });
        inner.slots.entry(name).or_default().push(slot.clone());
        slot
    }
    /// Puts a secret that came from `source` (none: the bootstrap's static secrets) into every slot of its name and source.
    /// A secret that cannot be used is refused with findings; the last good one stays. One that nothing wants is dropped.
    pub fn apply(&self, secret: &Secret, source: Option<&ConfigSource>) -> Result<(), Report> {
        let mut report = Report::new();
        let Some(kind) = kind(secret) else {
            report.error(
                &At::Root,
                format!("secret `{}` is of no type", secret.name),
                "give tls_certificate, validation_context, session_ticket_keys or generic_secret",
            );
            return Err(report);
        };
        if secret.name.is_empty() {
            report.error(&At::Root.field("name"), "it is empty", "give the secret's name");
            return Err(report);
        }
        if source.is_none() {
            self.slot(&secret.name, kind, None);
        }
        let named: Vec<_> =
            self.inner().slots.get(secret.name.as_str()).into_iter().flatten().filter(|s| s.source.as_ref() == source).cloned().collect();
        let (slots, others): (Vec<_>, Vec<_>) = named.into_iter().partition(|s| s.kind == kind);
        if let (true, Some(other)) = (slots.is_empty(), others.first()) {
            let found = format!("secret `{}` is a {}", secret.name, label(kind));
            report.error(&At::Root, found, format!("a {} is expected", label(other.kind)));
            return Err(report);
        }
        if slots.is_empty() {
            return Ok(());
        }
        let live = Arc::new(live(secret, &At::Root, &mut report).ok_or(report)?);
        for slot in slots {
            slot.current.store(Some(live.clone()));
        }
        self.changed();
        Ok(())
    }
    /// Takes a secret out; later handshakes that need it fail.
    pub fn remove(&self, name: &str, source: Option<&ConfigSource>) {
        for slot in self.inner().slots.get(name).into_iter().flatten().filter(|s| s.source.as_ref() == source) {
            slot.current.store(None);
        }
        self.changed();
    }
    /// The names that something living refers to, for subscriptions. Slots that nothing refers to any more are forgotten, with their secret.
    pub fn wanted(&self) -> Vec<Wanted> {
        let mut inner = self.inner();
        inner.slots.retain(|_, all| {
            all.retain(|slot| slot.source.is_none() || Arc::strong_count(slot) > 1);
            !all.is_empty()
        });
        let slots = inner.slots.values().flatten().filter(|s| s.source.is_some());
        let mut wanted: Vec<_> = slots
            .map(|s| Wanted { name: s.name.clone(), kind: s.kind, source: s.source.clone(), ready: s.current.load().is_some() })
            .collect();
        wanted.sort_by(|a, b| a.name.cmp(&b.name));
        wanted
    }
    /// Reads files that secrets name again (`filename` data sources) and swaps those that changed; findings of those that failed, whose
    /// last good state stays. The control thread calls it when a watched directory changes, or periodically.
    pub fn refresh_files(&self) -> Vec<(Arc<str>, Report)> {
        let mut failed = Vec::new();
        let watched: Vec<_> = self.inner().watched.iter().filter_map(Weak::upgrade).collect();
        for slot in self.slots().into_iter().chain(watched) {
            let Some(old) = slot.get() else { continue };
            let Some((secret, digest)) = &old.files else { continue };
            let mut report = Report::new();
            if files_digest(secret).is_some_and(|d| d != *digest) {
                match live(secret, &At::Root, &mut report) {
                    Some(new) => {
                        slot.current.store(Some(Arc::new(new)));
                        self.changed();
                    }
                    None => failed.push((slot.name.clone(), report)),
                }
            }
        }
        failed
    }
    /// Every slot, for config_dump, sorted by name.
    pub fn slots(&self) -> Vec<Arc<SecretSlot>> {
        let mut slots: Vec<_> = self.inner().slots.values().flatten().cloned().collect();
        slots.sort_by(|a, b| a.name.cmp(&b.name));
        slots
    }
    /// Every certificate in use, for `/certs`.
    pub fn certificates(&self) -> Vec<CertificateStatus> {
        let now = SystemTime::now();
        let status = |secret: &Arc<str>, path: &str, ca, info: &CertInfo| {
            let left = info.not_after.and_then(|end| end.duration_since(now).ok()).unwrap_or_default();
            CertificateStatus {
                secret: secret.clone(),
                path: path.to_string(),
                ca,
                info: info.clone(),
                days_until_expiration: left.as_secs() / 86_400,
            }
        };
        let nameless: Arc<str> = "".into();
        let mut all = Vec::new();
        let watched: Vec<_> = self.inner().watched.iter().filter_map(Weak::upgrade).collect();
        for slot in self.slots().into_iter().chain(watched) {
            match slot.get().as_deref().map(|l| &l.material) {
                Some(Material::Certificate(identity)) => all.push(status(&slot.name, &identity.path, false, &identity.info)),
                Some(Material::Validation(validation)) => {
                    let ca = validation.ca.iter();
                    all.extend(ca.flat_map(|ca| ca.infos.iter().map(|info| status(&slot.name, &ca.path, true, info))));
                }
                _ => {}
            }
        }
        let mut inner = self.inner();
        inner.identities.retain(|i| i.strong_count() > 0);
        inner.cas.retain(|c| c.strong_count() > 0);
        inner.watched.retain(|s| s.strong_count() > 0);
        all.extend(inner.identities.iter().filter_map(Weak::upgrade).map(|i| status(&nameless, &i.path, false, &i.info)));
        for ca in inner.cas.iter().filter_map(Weak::upgrade) {
            all.extend(ca.infos.iter().map(|info| status(&nameless, &ca.path, true, info)));
        }
        all
    }
    /// A slot for a static certificate whose files are watched. None, with findings, if it cannot be used now.
    pub(crate) fn watched(&self, secret: &Secret, at: &At<'_>, report: &mut Report) -> Option<Arc<SecretSlot>> {
        let live = live(secret, at, report)?;
        let kind = SecretKind::TlsCertificate;
        let slot = Arc::new(SecretSlot { name: "".into(), kind, source: None, current: ArcSwapOption::from_pointee(live) });
        self.inner().watched.push(Arc::downgrade(&slot));
        Some(slot)
    }
    pub(crate) fn remember(&self, identity: &Arc<Identity>) {
        self.inner().identities.push(Arc::downgrade(identity));
    }
    pub(crate) fn remember_ca(&self, ca: &Arc<TrustedCa>) {
        self.inner().cas.push(Arc::downgrade(ca));
    }
}

fn kind(secret: &Secret) -> Option<SecretKind> {
    Some(match secret.r#type.as_ref()? {
        secret::Type::TlsCertificate(_) => SecretKind::TlsCertificate,
        secret::Type::ValidationContext(_) => SecretKind::ValidationContext,
        secret::Type::SessionTicketKeys(_) => SecretKind::SessionTicketKeys,
        secret::Type::GenericSecret(_) => SecretKind::Generic,
    })
}

fn label(kind: SecretKind) -> &'static str {
    match kind {
        SecretKind::TlsCertificate => "tls_certificate",
        SecretKind::ValidationContext => "validation_context",
        SecretKind::SessionTicketKeys => "session_ticket_keys",
        SecretKind::Generic => "generic_secret",
    }
}

fn live(secret: &Secret, at: &At<'_>, report: &mut Report) -> Option<Live> {
    // Before parsing: a file that changes in between is then noticed by the next refresh.
    let digest = files_digest(secret);
    let material = Material::compile(secret, at, report)?;
    Some(Live { material, redacted: redacted(secret), updated: SystemTime::now(), files: digest.map(|d| (secret.clone(), d)) })
}

/// Every data source of a secret.
fn sources(secret: &Secret) -> Vec<&DataSource> {
    match &secret.r#type {
        Some(secret::Type::TlsCertificate(c)) => [&c.certificate_chain, &c.private_key, &c.ocsp_staple].into_iter().flatten().collect(),
        Some(secret::Type::ValidationContext(v)) => [&v.trusted_ca, &v.crl].into_iter().flatten().collect(),
        Some(secret::Type::SessionTicketKeys(k)) => k.keys.iter().collect(),
        Some(secret::Type::GenericSecret(g)) => g.secret.iter().chain(g.secrets.values()).collect(),
        None => Vec::new(),
    }
}

/// SHA-256 of the files that a secret names; none if it names no file. An unreadable file counts as empty.
fn files_digest(secret: &Secret) -> Option<[u8; 32]> {
    let mut files = sources(secret).into_iter().filter(|s| matches!(s.specifier, Some(Specifier::Filename(_)))).peekable();
    files.peek()?;
    let mut hash = digest::Context::new(&digest::SHA256);
    for file in files {
        let bytes = crate::material::load(file).unwrap_or_default();
        hash.update(&(bytes.len() as u64).to_be_bytes());
        hash.update(&bytes);
    }
    hash.finish().as_ref().try_into().ok()
}

/// Envoy redacts fields that the API marks `sensitive`: text becomes `[redacted]`, whatever kind of data source it is.
fn redacted(secret: &Secret) -> Secret {
    const MARK: &str = "[redacted]";
    fn hide(source: &mut DataSource) {
        match &mut source.specifier {
            Some(Specifier::InlineBytes(b)) => *b = MARK.as_bytes().to_vec(),
            Some(Specifier::Filename(s) | Specifier::InlineString(s) | Specifier::EnvironmentVariable(s)) => *s = MARK.to_string(),
            None => {}
        }
    }
    let mut secret = secret.clone();
    match &mut secret.r#type {
        Some(secret::Type::TlsCertificate(c)) => [&mut c.private_key, &mut c.password, &mut c.pkcs12].into_iter().flatten().for_each(hide),
        Some(secret::Type::SessionTicketKeys(k)) => k.keys.iter_mut().for_each(hide),
        Some(secret::Type::GenericSecret(g)) => g.secret.iter_mut().chain(g.secrets.values_mut()).for_each(hide),
        Some(secret::Type::ValidationContext(_)) | None => {}
    }
    secret
}
