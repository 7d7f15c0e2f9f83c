//! What all clusters of a process share: compiled parts that many of them say alike, the local cluster, the DNS service, the
//! outlier event log, and the signal by which workers hear of changes.

use crate::compile;
use crate::dns::DnsService;
use crate::outlier::EventLog;
use crate::spec::{BindSpec, HttpSpec};
use crate::view::View;
use arc_swap::ArcSwapOption;
use nuncio_core::diag::{At, Report};
use nuncio_proto::envoy::config::bootstrap::v3::ClusterManager as ClusterManagerProto;
use nuncio_proto::envoy::config::core::v3::ConfigSource;
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::watch;

/// What clusters share. One per process; tests make their own.
#[derive(Debug)]
pub struct Shared {
    http: Mutex<HashMap<Vec<u8>, Weak<HttpSpec>>>,
    sources: Mutex<Vec<Weak<ConfigSource>>>,
    binds: Mutex<Vec<Weak<BindSpec>>>,
    default_bind: Option<Arc<BindSpec>>,
    local_name: Box<str>,
    local: ArcSwapOption<View>,
    local_epoch: AtomicU64,
    pub(crate) dns: Arc<DnsService>,
    pub(crate) event_log: Option<EventLog>,
    /// Counts changes that workers must act upon: hosts and clusters that left, health that failed.
    changes: watch::Sender<u64>,
}

impl Default for Shared {
    fn default() -> Self {
        Self::new(&ClusterManagerProto::default(), &mut Report::new())
    }
}

impl Shared {
    /// From `Bootstrap.cluster_manager`.
    pub fn new(proto: &ClusterManagerProto, report: &mut Report) -> Self {
        let at = At::Root;
        let at = at.field("cluster_manager");
        let default_bind =
            proto.upstream_bind_config.as_ref().map(|b| Arc::new(compile::bind(b, &at.field("upstream_bind_config"), report)));
        let path = proto.outlier_detection.as_ref().map(|o| o.event_log_path.as_str()).filter(|p| !p.is_empty());
        let event_log = path.and_then(|path| match EventLog::open(Path::new(path)) {
            Ok(log) => Some(log),
            Err(e) => {
                report.error(&at.field("outlier_detection"), format!("event_log_path {path}: {e}"), "a path that can be written");
                None
            }
        });
        if proto.outlier_detection.as_ref().is_some_and(|o| o.event_service.is_some()) {
            report.unsupported(&at.field("outlier_detection"), "event_service");
        }
        if proto.load_stats_config.is_some() {
            report.warning(&at.field("load_stats_config"), "set", "load reports are not sent");
        }
        Self {
            http: Mutex::default(),
            sources: Mutex::default(),
            binds: Mutex::default(),
            default_bind,
            local_name: proto.local_cluster_name.as_str().into(),
            local: ArcSwapOption::empty(),
            local_epoch: AtomicU64::new(0),
            dns: Arc::default(),
            event_log,
            changes: watch::Sender::new(0),
        }
    }
    /// The compiled options for `key`, if a living cluster has them.
    pub(crate) fn http_spec(&self, key: &[u8]) -> Option<Arc<HttpSpec>> {
        self.http.lock().unwrap_or_else(PoisonError::into_inner).get(key)?.upgrade()
    }
    pub(crate) fn keep_http_spec(&self, key: Vec<u8>, spec: &Arc<HttpSpec>) {
        let mut known = self.http.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() > 64 {
            known.retain(|_, spec| spec.strong_count() > 0);
        }
        known.insert(key, Arc::downgrade(spec));
    }
    pub(crate) fn intern_source(&self, source: ConfigSource) -> Arc<ConfigSource> {
        intern(&self.sources, source)
    }
    pub(crate) fn intern_bind(&self, bind: BindSpec) -> Arc<BindSpec> {
        intern(&self.binds, bind)
    }
    /// `cluster_manager.upstream_bind_config`.
    pub(crate) fn default_bind(&self) -> Option<Arc<BindSpec>> {
        self.default_bind.clone()
    }
    /// Whether `name` is `local_cluster_name`.
    pub(crate) fn is_local(&self, name: &str) -> bool {
        !name.is_empty() && *self.local_name == *name
    }
    /// Whether there is a local cluster at all.
    pub(crate) fn has_local(&self) -> bool {
        !self.local_name.is_empty()
    }
    /// The local cluster's hosts as they are now.
    pub(crate) fn local_view(&self) -> Option<Arc<View>> {
        self.local.load_full()
    }
    pub(crate) fn set_local_view(&self, view: Option<Arc<View>>) {
        self.local.store(view);
        self.local_epoch.fetch_add(1, Ordering::Release);
    }
    /// Grows when the local cluster changes.
    pub(crate) fn local_epoch(&self) -> u64 {
        self.local_epoch.load(Ordering::Acquire)
    }
    /// Wakes the housekeeping of every worker.
    pub(crate) fn signal(&self) {
        self.changes.send_modify(|n| *n = n.wrapping_add(1));
    }
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

fn intern<T: PartialEq>(known: &Mutex<Vec<Weak<T>>>, value: T) -> Arc<T> {
    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
    known.retain(|k| k.strong_count() > 0);
    if let Some(same) = known.iter().filter_map(Weak::upgrade).find(|k| **k == value) {
        return same;
    }
    let value = Arc::new(value);
    known.push(Arc::downgrade(&value));
    value
}
