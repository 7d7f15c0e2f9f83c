//! Access logs: filters, formats and sinks.

use crate::FormatContext;
use nuncio_core::diag::{At, Report};
use nuncio_core::registry::Server;
use nuncio_proto::envoy::config::accesslog::v3::AccessLog;
use std::sync::Arc;
use std::time::Duration;

/// The `access_log` list of a listener, connection manager, router or tcp_proxy. Shared by all workers.
#[derive(Debug, Default)]
pub struct AccessLogs {
    _server: Option<Arc<Server>>,
}

impl AccessLogs {
    /// Compiles `logs`. Files are opened here; problems go to `report`. None means refused.
    pub fn compile(_logs: &[AccessLog], server: &Arc<Server>, _at: &At<'_>, _report: &mut Report) -> Option<Self> {
        Some(Self { _server: Some(server.clone()) })
    }
    /// Whether there are no logs.
    pub fn is_empty(&self) -> bool {
        true
    }
    /// Writes one entry to each log whose filter lets it through. Never blocks.
    pub fn log(&self, _cx: &FormatContext<'_>) {}
}

/// The log files of the process.
#[derive(Debug)]
pub struct Files(());

impl Files {
    /// Starts the thread that writes what workers buffered, every `interval` (`--file-flush-interval-msec`). Call once, in main.
    pub fn start(_interval: Duration) {}
    /// Opens every file again (`/reopen_logs`, SIGUSR1).
    pub fn reopen() {}
    /// Writes everything that is buffered; call at exit, after the workers have stopped.
    pub fn flush() {}
}
