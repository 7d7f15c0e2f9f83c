//! Entries on their way to a service: buffered per worker, sent by one task per worker, dropped when the service cannot keep up.
//! Source: Envoy's `GrpcAccessLogger`.

use nuncio_core::stats::{Counter, Scope};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt::Debug;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::Notify;

/// Bytes beyond the configured buffer that may wait while a batch is under way.
const SLACK: usize = 256 * 1024;
/// How long the last batch of a logger that is gone may take.
const FAREWELL: Duration = Duration::from_secs(2);

/// Sends batches. One per worker and logger; belongs to its task.
pub trait Sender<E>: 'static {
    /// Sends `entries`. Takes as long as the service does; entries that arrive meanwhile wait.
    fn send(&mut self, entries: Vec<E>) -> impl Future<Output = ()>;
    /// Runs between batches, for what the service says unasked. May never end.
    fn idle(&mut self) -> impl Future<Output = ()> {
        std::future::pending()
    }
    /// No batch will follow.
    fn finish(self) -> impl Future<Output = ()>;
}

/// What a logger sends with; shared by all workers.
pub trait Target: Debug + Send + Sync + Sized + 'static {
    type Entry: 'static;
    /// A sender for this worker.
    fn sender(&self) -> impl Sender<Self::Entry>;
}

/// When batches go.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// `buffer_size_bytes`: so many bytes go at once. 0: every entry.
    pub bytes: usize,
    /// `buffer_flush_interval`: whatever there is goes after this time.
    pub interval: Duration,
}

#[derive(Debug)]
struct Shared<T> {
    target: T,
    limits: Limits,
    written: Counter,
    dropped: Counter,
}

/// A logger's buffers.
#[derive(Debug)]
pub struct Batcher<T: Target> {
    id: u64,
    shared: Arc<Shared<T>>,
}

struct Buffer<E> {
    entries: RefCell<Vec<E>>,
    bytes: Cell<usize>,
    wake: Notify,
}

impl<E> Buffer<E> {
    fn take(&self) -> Vec<E> {
        self.bytes.set(0);
        self.entries.take()
    }
}

thread_local! {
    /// Buffers of this worker, by logger.
    static BUFFERS: RefCell<HashMap<u64, Rc<dyn std::any::Any>>> = RefCell::default();
}

impl<T: Target> Batcher<T> {
    /// A batcher that counts in `scope`: `logs_written`, `logs_dropped`.
    pub fn new(target: T, limits: Limits, scope: &Scope) -> Self {
        static IDS: AtomicU64 = AtomicU64::new(0);
        let (written, dropped) = (scope.counter("logs_written"), scope.counter("logs_dropped"));
        Self { id: IDS.fetch_add(1, Ordering::Relaxed), shared: Arc::new(Shared { target, limits, written, dropped }) }
    }
    /// Queues an entry of about `size` bytes; made only if there is room for it.
    pub fn push(&self, size: impl FnOnce(&T::Entry) -> usize, entry: impl FnOnce() -> T::Entry) {
        let shared = &self.shared;
        let buffer = self.buffer();
        if buffer.bytes.get() >= shared.limits.bytes.saturating_add(SLACK) {
            shared.dropped.inc();
            return;
        }
        let entry = entry();
        buffer.bytes.set(buffer.bytes.get().saturating_add(size(&entry)));
        buffer.entries.borrow_mut().push(entry);
        shared.written.inc();
        if buffer.bytes.get() >= shared.limits.bytes {
            buffer.wake.notify_one();
        }
    }
    /// This worker's buffer, with its task, made on first use.
    fn buffer(&self) -> Rc<Buffer<T::Entry>> {
        let known = BUFFERS.with_borrow(|all| all.get(&self.id).cloned());
        if let Some(Ok(buffer)) = known.map(Rc::downcast::<Buffer<T::Entry>>) {
            return buffer;
        }
        let buffer = Rc::new(Buffer { entries: RefCell::default(), bytes: Cell::new(0), wake: Notify::new() });
        BUFFERS.with_borrow_mut(|all| all.insert(self.id, buffer.clone()));
        tokio::task::spawn_local(empty(
            self.id,
            buffer.clone(),
            self.shared.limits.interval,
            Arc::downgrade(&self.shared),
            self.shared.target.sender(),
        ));
        buffer
    }
}

/// Sends what is in the buffer until the logger is gone.
async fn empty<T: Target>(
    id: u64,
    buffer: Rc<Buffer<T::Entry>>,
    interval: Duration,
    logger: Weak<Shared<T>>,
    mut sender: impl Sender<T::Entry>,
) {
    loop {
        let due = tokio::time::sleep(interval);
        tokio::pin!(due);
        loop {
            tokio::select! {
                biased;
                () = buffer.wake.notified() => break,
                () = &mut due => break,
                () = sender.idle() => {}
            }
        }
        let entries = buffer.take();
        if !entries.is_empty() {
            sender.send(entries).await;
        }
        if logger.strong_count() == 0 {
            BUFFERS.with_borrow_mut(|all| all.remove(&id));
            let _in_time = tokio::time::timeout(FAREWELL, sender.finish()).await;
            return;
        }
    }
}
