//! The outlier event log: `data.cluster.v3.OutlierDetectionEvent` as lines of JSON. Written where hosts are ejected and taken back, on
//! workers and on the control thread.

use super::HostMonitor;
use crate::cluster::Cluster;
use crate::host::{Host, millis};
use nuncio_core::views::{ClusterView, HostView};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::{Instant, SystemTime};

/// Seconds since the host was last ejected or taken back. `ejecting`: only the other kind of action counts as the last.
pub(super) fn since_last(monitor: &HostMonitor, now: Instant, ejecting: bool) -> Option<u64> {
    let last = if ejecting { &monitor.unejected_at } else { &monitor.ejected_at };
    let at = last.load(Ordering::Relaxed).checked_sub(1)?;
    Some(millis(now).saturating_sub(at) / 1000)
}

/// The common part of `data.cluster.v3.OutlierDetectionEvent` as JSON, without the closing brace.
pub(super) fn event(cluster: &Cluster, host: &Host, kind: &str, action: &str, since: Option<u64>, ejections: u32) -> String {
    let since = since.map_or_else(String::new, |s| format!("\"secs_since_last_action\":\"{s}\","));
    format!(
        "{{\"type\":\"{kind}\",\"timestamp\":\"{}\",{since}\"cluster_name\":\"{}\",\"upstream_url\":\"{}\",\"action\":\"{action}\",\"num_ejections\":{ejections}",
        timestamp(SystemTime::now()),
        escape(ClusterView::name(cluster)),
        escape(&host.address().to_string()),
    )
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out
}

/// RFC 3339 in UTC with milliseconds.
pub(crate) fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let stamp =
        nuncio_proto::Timestamp { seconds: i64::try_from(since.as_secs()).unwrap_or(0), nanos: (since.subsec_millis() * 1_000_000) as i32 };
    stamp.to_string()
}

/// `cluster_manager.outlier_detection.event_log_path`.
#[derive(Debug)]
pub(crate) struct EventLog {
    file: Mutex<std::fs::File>,
}

impl EventLog {
    pub(crate) fn open(path: &Path) -> std::io::Result<Self> {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self { file: Mutex::new(file) })
    }
    /// Appends one line. Events are rare enough to write at once; a full disk must not stop what they tell of.
    pub(crate) fn write(&self, line: &str) {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(e) = file.write_all(line.as_bytes()) {
            log::warn!("event log: {e}");
        }
    }
}
