//! Secrets of Nuncio's own filters: inline, from files that are watched, from the environment or over SDS, and what is made of them
//! (tables of keys). A table is made anew when a secret changed, with the first request that comes then. Compiled on the control
//! thread, read on the workers. Nothing here is ever logged or shown. Source: `nuncio/common/v1/secret.proto`.

use crate::watched::{self, Watched};
use arc_swap::{ArcSwap, Guard};
use nuncio_core::diag::{At, Report};
use nuncio_proto::envoy::config::core::v3::ConfigSource;
use nuncio_proto::nuncio::common::v1::{self as proto, secret::Source};
use nuncio_tls::{SecretKind, SecretSlot, SecretStore};
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, TryLockError};

/// Bytes of one secret.
const MAX_BYTES: usize = 1024 * 1024;

static STORE: OnceLock<Arc<SecretStore>> = OnceLock::new();

/// Says where secrets of SDS are. Called once at start; without it they are refused.
pub fn install(store: Arc<SecretStore>) {
    // A second store would be a second process.
    let _first_counts = STORE.set(store);
}

/// A compiled `Secret`.
#[derive(Clone)]
pub struct Secret(Inner);

#[derive(Clone)]
enum Inner {
    Data(Arc<Watched<Vec<u8>>>),
    Sds(Arc<SecretSlot>),
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl Secret {
    /// Compiles one secret; `None` means refused. An empty one is refused.
    pub fn compile(secret: Option<&proto::Secret>, at: &At<'_>, report: &mut Report) -> Option<Self> {
        match secret.and_then(|s| s.source.as_ref()) {
            Some(Source::DataSource(source)) => {
                let parse = |bytes: &[u8]| match bytes.trim_ascii() {
                    [] => Err("an empty secret".to_string()),
                    secret => Ok(secret.to_vec()),
                };
                let watched = Watched::open(source, MAX_BYTES, None, Box::new(parse), &at.field("data_source"), report)?;
                Some(Self(Inner::Data(watched)))
            }
            Some(Source::Sds(sds)) => {
                let at = at.field("sds");
                if sds.name.is_empty() {
                    report.error(&at.field("name"), "nothing", "name the secret");
                    return None;
                }
                stored(&sds.name, sds.sds_config.as_ref(), &at, report)
            }
            None => {
                report.error(at, "no secret", "set data_source or sds");
                None
            }
        }
    }
    /// The secret; none if it has not arrived.
    pub fn get(&self) -> Option<Vec<u8>> {
        match &self.0 {
            Inner::Data(watched) => Some(watched.load().to_vec()),
            Inner::Sds(slot) => slot.generic().map(|s| s.trim_ascii().to_vec()).filter(|s| !s.is_empty()),
        }
    }
}

/// How often secrets of any kind changed so far.
/// The secret `name` of SDS, or one of the bootstrap's if there is no `source`; `None` means refused.
pub(crate) fn stored(name: &str, source: Option<&ConfigSource>, at: &At<'_>, report: &mut Report) -> Option<Secret> {
    match STORE.get() {
        Some(store) => Some(Secret(Inner::Sds(store.slot(name, SecretKind::Generic, source)))),
        None => {
            report.error(at, format!("secret {name}"), "secrets of SDS cannot be had here; use data_source");
            None
        }
    }
}

fn generation() -> u64 {
    watched::generation().wrapping_add(STORE.get().map_or(0, |store| store.generation()))
}

/// Something made of secrets, and made again when they change.
pub struct Made<T> {
    current: ArcSwap<(u64, T)>,
    make: Box<dyn Fn() -> T + Send + Sync>,
    /// Held by whoever makes it again; the others go on with the old one.
    turn: Mutex<()>,
}

impl<T> fmt::Debug for Made<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Made")
    }
}

impl<T> Made<T> {
    /// Makes it for the first time.
    pub fn new(make: impl Fn() -> T + Send + Sync + 'static) -> Self {
        let current = ArcSwap::from_pointee((generation(), make()));
        Self { current, make: Box::new(make), turn: Mutex::new(()) }
    }
    /// What was made of the current secrets.
    pub fn load(&self) -> Guard<Arc<(u64, T)>> {
        let current = self.current.load();
        let now = generation();
        if current.0 == now {
            return current;
        }
        match self.turn.try_lock() {
            Ok(_turn) => self.current.store(Arc::new((now, (self.make)()))),
            Err(TryLockError::Poisoned(_)) => self.current.store(Arc::new((now, (self.make)()))),
            Err(TryLockError::WouldBlock) => return current,
        }
        self.current.load()
    }
}
