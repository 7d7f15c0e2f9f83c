//! Factories that compile extension configuration, found by type URL, and what they are given.
//! Run on the control thread.

use crate::diag::{At, Report};
use crate::filter::HttpFilter;
use crate::info::TrafficDirection;
use crate::network::NetworkFilterConfig;
use crate::views::ClusterSlots;
use nuncio_proto::Struct;
use nuncio_proto::envoy::config::core::v3::Node;
use nuncio_stats::{Scope, Store};
use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Instant;

/// What every part of the process may know of it.
#[derive(Debug)]
pub struct Server {
    /// The node as it is sent to the control plane.
    pub node: Node,
    pub stats: Store,
    pub runtime: Runtime,
    pub started: Instant,
    /// Number of workers.
    pub concurrency: usize,
    /// `--drain-time-s`.
    pub drain_time: std::time::Duration,
    /// Where filters and loggers that call services find their clusters, as routes do.
    pub clusters: Arc<ClusterSlots>,
}

impl Server {
    /// `node.metadata`, empty if there is none.
    pub fn node_metadata(&self) -> &Struct {
        static EMPTY: OnceLock<Struct> = OnceLock::new();
        self.node.metadata.as_ref().unwrap_or_else(|| EMPTY.get_or_init(Struct::default))
    }
}

/// Layered runtime: the final value of each key. Source: `envoy/config/bootstrap/v3/bootstrap.proto` LayeredRuntime.
#[derive(Debug, Default)]
pub struct Runtime {
    values: RwLock<HashMap<String, String>>,
    health_failed: AtomicBool,
    watchers: Watchers,
}

type Watcher = Box<dyn Fn(&str) + Send + Sync>;

/// Who hears of changes.
#[derive(Default)]
struct Watchers(Mutex<Vec<Watcher>>);

impl fmt::Debug for Watchers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watchers")
    }
}

impl Runtime {
    /// `/healthcheck/fail` (true) and `/healthcheck/ok` (false).
    pub fn set_health_failed(&self, failed: bool) {
        self.health_failed.store(failed, Ordering::Relaxed);
    }
    /// Whether the operator made this server fail its health checks.
    pub fn health_failed(&self) -> bool {
        self.health_failed.load(Ordering::Relaxed)
    }
    /// Sets `key`; an empty value removes it (admin layer semantics).
    pub fn set(&self, key: &str, value: &str) {
        if let Ok(mut values) = self.values.write() {
            if value.is_empty() {
                values.remove(key);
            } else {
                values.insert(key.to_string(), value.to_string());
            }
        }
        for watcher in self.watchers.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            watcher(key);
        }
    }
    /// Calls `watcher` with each key that is set or removed from now on, on the thread that does so. It may read, but not watch.
    pub fn watch(&self, watcher: impl Fn(&str) + Send + Sync + 'static) {
        self.watchers.0.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(watcher));
    }
    /// The text of `key`.
    pub fn get(&self, key: &str) -> Option<String> {
        if key.is_empty() {
            return None;
        }
        self.values.read().ok()?.get(key).cloned()
    }
    /// An integer, or the default if absent or not a number.
    pub fn integer(&self, key: &str, default: u64) -> u64 {
        self.get(key).and_then(|v| v.parse().ok()).unwrap_or(default)
    }
    /// A boolean, or the default.
    pub fn boolean(&self, key: &str, default: bool) -> bool {
        self.get(key).and_then(|v| v.parse().ok()).unwrap_or(default)
    }
    /// Every key and value.
    pub fn all(&self) -> Vec<(String, String)> {
        let mut all: Vec<_> = self.values.read().map(|v| v.iter().map(|(k, v)| (k.clone(), v.clone())).collect()).unwrap_or_default();
        all.sort();
        all
    }
}

/// What a factory is given.
pub struct FactoryCx<'a> {
    pub server: &'a Arc<Server>,
    /// Stats of the place: `http.<stat_prefix>.` for HTTP filters, the root for network filters.
    pub scope: &'a Scope,
    pub direction: TrafficDirection,
    pub report: &'a mut Report,
}

/// Compiles one kind of HTTP filter. `config` is the message behind `type_url`, TypedStruct already unwrapped.
pub trait HttpFilterFactory: Send + Sync {
    /// Envoy's canonical name (`envoy.filters.http.cors`).
    fn name(&self) -> &'static str;
    /// Type URLs of the filter's configuration, without `type.googleapis.com/`.
    fn types(&self) -> &'static [&'static str];
    /// Type URLs of its per-route configuration.
    fn route_types(&self) -> &'static [&'static str] {
        &[]
    }
    /// Compiles; problems go to `cx.report`, and errors there refuse the listener. None means refused.
    fn compile(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn HttpFilter>>;
    /// Compiles per-route configuration.
    fn compile_route(&self, _config: &[u8], _at: &At<'_>, _cx: &mut FactoryCx<'_>) -> Option<Arc<dyn Any + Send + Sync>> {
        None
    }
}

/// Compiles one kind of network filter that is not terminal.
pub trait NetworkFilterFactory: Send + Sync {
    fn name(&self) -> &'static str;
    fn types(&self) -> &'static [&'static str];
    fn compile(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn NetworkFilterConfig>>;
}

/// Every factory of the process; built once in `main`.
#[derive(Default)]
pub struct Registry {
    pub http: Vec<Box<dyn HttpFilterFactory>>,
    pub network: Vec<Box<dyn NetworkFilterFactory>>,
    /// Non-terminal filters for `Cluster.filters`.
    pub upstream_network: Vec<Box<dyn NetworkFilterFactory>>,
}

impl Registry {
    /// The HTTP filter whose configuration is `type_name` (without `type.googleapis.com/`).
    pub fn http(&self, type_name: &str) -> Option<&dyn HttpFilterFactory> {
        self.http.iter().find(|f| f.types().contains(&type_name)).map(AsRef::as_ref)
    }
    /// The HTTP filter whose per-route configuration is `type_name`.
    pub fn http_route(&self, type_name: &str) -> Option<&dyn HttpFilterFactory> {
        self.http.iter().find(|f| f.route_types().contains(&type_name)).map(AsRef::as_ref)
    }
    /// The network filter whose configuration is `type_name`.
    pub fn network(&self, type_name: &str) -> Option<&dyn NetworkFilterFactory> {
        self.network.iter().find(|f| f.types().contains(&type_name)).map(AsRef::as_ref)
    }
    /// The upstream network filter whose configuration is `type_name`.
    pub fn upstream_network(&self, type_name: &str) -> Option<&dyn NetworkFilterFactory> {
        self.upstream_network.iter().find(|f| f.types().contains(&type_name)).map(AsRef::as_ref)
    }
}
