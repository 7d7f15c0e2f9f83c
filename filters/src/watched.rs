//! Values read from a `DataSource`; one that is a file is looked at every second and read again when it changed. A file that went bad
//! changes nothing: what was read last stays in use, and the log says so. Opened and refreshed on the control thread, read by the workers.
//! Source: `envoy/config/core/v3/base.proto` DataSource.

use arc_swap::{ArcSwap, Guard};
use nuncio_core::diag::{At, Report};
use nuncio_proto::envoy::config::core::v3::{DataSource, data_source::Specifier};
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

/// Counts every change of every watched file.
static GENERATION: AtomicU64 = AtomicU64::new(0);

/// How often a watched file changed so far: what is made of one has to be made again when this is another number.
pub fn generation() -> u64 {
    GENERATION.load(Ordering::Acquire)
}

/// How often files are looked at.
const INTERVAL: Duration = Duration::from_secs(1);

/// Reads a value from bytes; the error must not quote them, because they may be secret.
type Parse<T> = Box<dyn Fn(&[u8]) -> Result<T, String> + Send + Sync>;

/// The current value of a data source.
pub struct Watched<T> {
    current: ArcSwap<T>,
    parse: Parse<T>,
    limit: usize,
}

impl<T> fmt::Debug for Watched<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watched")
    }
}

impl<T: Send + Sync + 'static> Watched<T> {
    /// Reads `source`, at most `limit` bytes, and goes on watching it if it is a file. What cannot be read is refused; what cannot be
    /// parsed is replaced by `fallback` with a warning, or refused if there is none.
    pub fn open(
        source: &DataSource,
        limit: usize,
        fallback: Option<T>,
        parse: Parse<T>,
        at: &At<'_>,
        report: &mut Report,
    ) -> Option<Arc<Self>> {
        let (stamp, bytes) = match &source.specifier {
            Some(Specifier::Filename(name)) => (stamp(Path::new(name)), read(Path::new(name), limit)),
            Some(Specifier::InlineBytes(bytes)) => (None, Ok(bytes.to_vec())),
            Some(Specifier::InlineString(text)) => (None, Ok(text.clone().into_bytes())),
            Some(Specifier::EnvironmentVariable(name)) => {
                (None, std::env::var(name).map(String::into_bytes).map_err(|_| format!("environment variable {name}, which is not set")))
            }
            None => (None, Err("nothing".to_string())),
        };
        let bytes = match bytes {
            Ok(bytes) => bytes,
            Err(why) => {
                report.error(at, why, "name a readable file, a variable, or give the value inline");
                return None;
            }
        };
        let value = match (parse(&bytes), fallback) {
            (Ok(value), _) => value,
            (Err(why), Some(fallback)) => {
                report.warning(at, why, "it is used as if it were empty, as Envoy does");
                fallback
            }
            (Err(why), None) => {
                report.error(at, why, "correct it");
                return None;
            }
        };
        let watched = Arc::new(Self { current: ArcSwap::from_pointee(value), parse, limit });
        if let Some(Specifier::Filename(name)) = &source.specifier
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(watch(Arc::downgrade(&watched), PathBuf::from(name), stamp));
        }
        Some(watched)
    }
    /// The current value.
    pub fn load(&self) -> Guard<Arc<T>> {
        self.current.load()
    }
    fn refresh(&self, path: &Path) {
        match read(path, self.limit).and_then(|bytes| (self.parse)(&bytes)) {
            Ok(value) => {
                self.current.store(Arc::new(value));
                GENERATION.fetch_add(1, Ordering::Release);
            }
            Err(why) => log::warn!("{}: {why}; what was read before stays in use", path.display()),
        }
    }
}

async fn watch<T: Send + Sync + 'static>(watched: Weak<Watched<T>>, path: PathBuf, mut seen: Option<Stamp>) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        let Some(watched) = watched.upgrade() else { return };
        let now = stamp(&path);
        // A file that is gone is about to be replaced.
        if now.is_some() && now != seen {
            seen = now;
            watched.refresh(&path);
        }
    }
}

/// What changes when a file does: its length, its time, and which file it is (a rename or a symbolic link that points elsewhere).
type Stamp = (u64, Option<SystemTime>, u64);

fn stamp(path: &Path) -> Option<Stamp> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.len(), metadata.modified().ok(), metadata.ino()))
}

fn read(path: &Path, limit: usize) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|e| format!("file {} ({e})", path.display()))?;
    file.take(limit as u64 + 1).read_to_end(&mut bytes).map_err(|e| format!("file {} ({e})", path.display()))?;
    if bytes.len() > limit {
        return Err(format!("file {} of more than {limit} bytes", path.display()));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(bytes: &[u8]) -> Result<u32, String> {
        std::str::from_utf8(bytes).ok().and_then(|t| t.trim().parse().ok()).ok_or_else(|| "no number".into())
    }
    fn source(specifier: Specifier) -> DataSource {
        DataSource { specifier: Some(specifier), watched_directory: None }
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_is_read_again_and_a_bad_one_is_not_taken() {
        let path = std::env::temp_dir().join(format!("nuncio-watched-{}", std::process::id()));
        std::fs::write(&path, "1").unwrap();
        let source = source(Specifier::Filename(path.display().to_string()));
        let watched = Watched::open(&source, 100, None, Box::new(number), &At::Root, &mut Report::new()).unwrap();
        assert_eq!(**watched.load(), 1);
        for (text, value) in [("22", 22), ("none", 22), ("333", 333)] {
            std::fs::write(&path, text).unwrap();
            tokio::time::sleep(INTERVAL * 2).await;
            assert_eq!(**watched.load(), value, "{text}");
        }
        std::fs::remove_file(&path).unwrap();
        tokio::time::sleep(INTERVAL * 2).await;
        assert_eq!(**watched.load(), 333);
    }

    #[test]
    fn what_cannot_be_used_is_refused_without_being_quoted() {
        for bad in [
            Specifier::Filename("/no/such/file".into()),
            Specifier::EnvironmentVariable("NUNCIO_NO_SUCH".into()),
            Specifier::InlineString("hunter2".into()),
        ] {
            let mut report = Report::new();
            assert!(Watched::open(&source(bad), 100, None, Box::new(number), &At::Root, &mut report).is_none());
            assert!(report.has_errors() && !report.summary().contains("hunter2"));
        }
    }
}
