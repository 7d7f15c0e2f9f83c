//! Work that compiled configuration goes on doing by itself (fetching keys again before they expire) and that needs a worker's
//! runtime, pools and clusters. It runs on the first worker. `install` is called by nuncio-listener when workers start, `spawn` by
//! factories on the control thread. Where no workers run, as in `--mode validate` and most tests, nothing is started.

use std::sync::{Mutex, PoisonError};

/// A closure that starts the work, on the worker, inside its `LocalSet`.
pub type Work = Box<dyn FnOnce() + Send>;

/// How work gets to the worker.
type Run = Box<dyn Fn(Work) + Send>;

static RUN: Mutex<Option<Run>> = Mutex::new(None);

/// Says how to get work to a worker; replaces what was said before.
pub fn install(run: impl Fn(Work) + Send + 'static) {
    *RUN.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(run));
}

/// Runs `work` on the first worker; false if there is none.
pub fn spawn(work: impl FnOnce() + Send + 'static) -> bool {
    match &*RUN.lock().unwrap_or_else(PoisonError::into_inner) {
        Some(run) => {
            run(Box::new(work));
            true
        }
        None => false,
    }
}
