//! Files that access logs are written to. Workers append to a buffer of their own; one thread of the process writes the
//! buffers out, so that a slow disk or reader never holds up a worker. A file is open once, however many logs name it.
//! Source of names and statistics: Envoy's `access_log/access_log_manager_impl.cc`.

use nuncio_stats::{Counter, Gauge, Scope};
use std::collections::HashMap;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread::Thread;
use std::time::Duration;

/// From this size on a buffer is written out at once, if `--file-flush-min-size-kb` says nothing else.
const FLUSH_SIZE: usize = 64 * 1024;
/// Beyond this size, or twice that of a flush, a buffer takes no more: lines are dropped and counted.
const LIMIT: usize = 1024 * 1024;
/// Buffers of a file; workers beyond that number share them.
const BUFFERS: usize = 32;

static OPEN: Mutex<Option<HashMap<String, Weak<LogFile>>>> = Mutex::new(None);
static WRITER: OnceLock<Thread> = OnceLock::new();
static WOKEN: AtomicBool = AtomicBool::new(false);
static FLUSH_AT: AtomicUsize = AtomicUsize::new(FLUSH_SIZE);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `filesystem.*` statistics.
#[derive(Debug)]
struct Stats {
    write_buffered: Counter,
    write_completed: Counter,
    write_failed: Counter,
    /// Not in Envoy, whose buffers have no limit.
    write_dropped: Counter,
    flushed_by_timer: Counter,
    reopen_failed: Counter,
    write_total_buffered: Gauge,
}

impl Stats {
    fn new(root: &Scope) -> Self {
        let scope = root.scope("filesystem.");
        Self {
            write_buffered: scope.counter("write_buffered"),
            write_completed: scope.counter("write_completed"),
            write_failed: scope.counter("write_failed"),
            write_dropped: scope.counter("write_dropped"),
            flushed_by_timer: scope.counter("flushed_by_timer"),
            reopen_failed: scope.counter("reopen_failed"),
            write_total_buffered: scope.gauge("write_total_buffered"),
        }
    }
}

/// Buffers of different workers are on different cache lines.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Buffer(Mutex<Vec<u8>>);

#[derive(Debug)]
struct Handle {
    file: File,
    /// The last write failed; said in the log once.
    failing: bool,
}

/// A file that logs are written to.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: String,
    buffers: Box<[Buffer]>,
    handle: Mutex<Handle>,
    reopen: AtomicBool,
    stats: Stats,
}

fn open_path(path: &str) -> std::io::Result<File> {
    // The standard streams may be pipes or sockets that this user cannot open by name.
    match path {
        "/dev/stdout" => Ok(std::io::stdout().as_fd().try_clone_to_owned()?.into()),
        "/dev/stderr" => Ok(std::io::stderr().as_fd().try_clone_to_owned()?.into()),
        _ => File::options().append(true).create(true).open(Path::new(path)),
    }
}

/// Writes everything, waiting where a standard stream was set to non-blocking.
fn write_all(file: &mut File, mut data: &[u8]) -> std::io::Result<()> {
    while !data.is_empty() {
        match file.write(data) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(n) => data = data.get(n..).unwrap_or_default(),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(5)),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

impl LogFile {
    /// The open file of `path`, opened now if no log has it open.
    pub fn open(path: &str, root: &Scope) -> std::io::Result<Arc<Self>> {
        let mut open = lock(&OPEN);
        let open = open.get_or_insert_default();
        if let Some(file) = open.get(path).and_then(Weak::upgrade) {
            return Ok(file);
        }
        let handle = Mutex::new(Handle { file: open_path(path)?, failing: false });
        let buffers = (0..BUFFERS).map(|_| Buffer::default()).collect();
        let file = Arc::new(Self { path: path.to_string(), buffers, handle, reopen: AtomicBool::new(false), stats: Stats::new(root) });
        open.retain(|_, f| f.strong_count() > 0);
        open.insert(path.to_string(), Arc::downgrade(&file));
        Ok(file)
    }
    /// Appends what `write` appends. Never waits for the disk.
    pub fn append(&self, write: impl FnOnce(&mut Vec<u8>)) {
        let Some(buffer) = self.buffers.get(nuncio_stats::worker() % BUFFERS) else { return };
        let mut bytes = lock(&buffer.0);
        let flush_at = FLUSH_AT.load(Ordering::Relaxed);
        if bytes.len() >= LIMIT.max(flush_at.saturating_mul(2)) {
            drop(bytes);
            return self.stats.write_dropped.inc();
        }
        let before = bytes.len();
        write(&mut bytes);
        let added = bytes.len() - before;
        let full = bytes.len() >= flush_at;
        drop(bytes);
        self.stats.write_buffered.inc();
        self.stats.write_total_buffered.add(added as i64);
        if full
            && !WOKEN.swap(true, Ordering::AcqRel)
            && let Some(writer) = WRITER.get()
        {
            writer.unpark();
        }
    }
    /// Writes out what is buffered.
    fn flush(&self) -> bool {
        let mut handle = lock(&self.handle);
        if self.reopen.swap(false, Ordering::AcqRel) {
            match open_path(&self.path) {
                Ok(file) => handle.file = file,
                Err(e) => {
                    self.stats.reopen_failed.inc();
                    log::warn!("access log {:?} cannot be opened again: {e}; the old file stays in use", self.path);
                }
            }
        }
        let mut any = false;
        for buffer in &self.buffers {
            let mut bytes = std::mem::take(&mut *lock(&buffer.0));
            if bytes.is_empty() {
                continue;
            }
            any = true;
            match write_all(&mut handle.file, &bytes) {
                Ok(()) => {
                    self.stats.write_completed.inc();
                    handle.failing = false;
                }
                Err(e) => {
                    self.stats.write_failed.inc();
                    if !std::mem::replace(&mut handle.failing, true) {
                        log::error!("access log {:?} cannot be written: {e}; lines are lost until it can", self.path);
                    }
                }
            }
            self.stats.write_total_buffered.add(-(bytes.len() as i64));
            // The room goes back to the worker, unless it grew too much or the worker has begun another.
            if bytes.capacity() <= 2 * FLUSH_SIZE {
                bytes.clear();
                let mut now = lock(&buffer.0);
                if now.capacity() == 0 {
                    *now = bytes;
                }
            }
        }
        any
    }
}

impl Drop for LogFile {
    fn drop(&mut self) {
        self.flush();
    }
}

fn open_files() -> Vec<Arc<LogFile>> {
    lock(&OPEN).iter().flat_map(|open| open.values().filter_map(Weak::upgrade)).collect()
}

/// The log files of the process.
#[derive(Debug)]
pub struct Files(());

impl Files {
    /// Starts the thread that writes what workers buffered, every `interval` (`--file-flush-interval-msec`), and a buffer of
    /// `flush_at` bytes (`--file-flush-min-size-kb`) at once. Call once, in main. Without it nothing is written until [`Self::flush`].
    pub fn start(interval: Duration, flush_at: usize) {
        FLUSH_AT.store(flush_at, Ordering::Relaxed);
        let run = move || {
            let _ = WRITER.set(std::thread::current());
            loop {
                std::thread::park_timeout(interval);
                let by_size = WOKEN.swap(false, Ordering::AcqRel);
                for file in open_files() {
                    if file.flush() && !by_size {
                        file.stats.flushed_by_timer.inc();
                    }
                }
            }
        };
        if let Err(e) = std::thread::Builder::new().name("access-log".to_string()).spawn(run) {
            log::error!("no thread for access logs: {e}; they are written at exit only");
        }
    }
    /// Opens every file again before its next write (`/reopen_logs`, SIGUSR1).
    pub fn reopen() {
        open_files().iter().for_each(|f| f.reopen.store(true, Ordering::Release));
    }
    /// Writes everything that is buffered; call at exit, after the workers have stopped.
    pub fn flush() {
        open_files().iter().for_each(|f| {
            f.flush();
        });
    }
}
