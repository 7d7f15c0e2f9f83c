//! Stats of gRPC calls, per cluster and, where asked for, per method: `cluster.<name>.<protocol>.[<service>.<method>.]`.

use nuncio_core::registry::Server;
use nuncio_core::stats::{Counter, Histogram};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

/// Methods that get counters of their own where all do: callers choose the names.
const MAX_METHODS: usize = 1_000;

/// Methods that have counters of their own.
#[derive(Debug)]
pub enum Methods {
    None,
    All,
    /// By `/service/method`.
    Some(HashSet<String>),
}

/// Stats of one method, or of all together.
#[derive(Debug)]
pub struct Handles {
    status: [Counter; 17],
    success: Counter,
    failure: Counter,
    total: Counter,
    pub requests: Counter,
    pub responses: Counter,
    pub upstream_time: Histogram,
}

impl Handles {
    /// Counts a result by its `grpc-status`.
    pub fn charge(&self, status: &[u8]) {
        let code = std::str::from_utf8(status).ok().and_then(|s| s.parse::<usize>().ok());
        // Codes that gRPC does not have get no counter of their own: the peer could invent any number of them.
        if let Some(counter) = code.and_then(|c| self.status.get(c)) {
            counter.inc();
        }
        if code == Some(0) {
            self.success.inc()
        } else {
            self.failure.inc()
        }
        self.total.inc();
    }
}

type ByPath = HashMap<Box<str>, Arc<Handles>>;

/// Handles by cluster and path; locked once per gRPC stream, for a lookup.
#[derive(Debug)]
pub struct Cache {
    protocol: &'static str,
    methods: Methods,
    replace_dots: bool,
    upstream_time: bool,
    server: Arc<Server>,
    /// The path is empty for all methods together.
    handles: Mutex<HashMap<Arc<str>, ByPath>>,
}

impl Cache {
    pub fn new(protocol: &'static str, methods: Methods, replace_dots: bool, upstream_time: bool, server: &Arc<Server>) -> Self {
        Self { protocol, methods, replace_dots, upstream_time, server: server.clone(), handles: Mutex::default() }
    }
    /// The handles of a request; none if all methods are counted and this path is not one.
    pub fn get(&self, cluster: &Arc<str>, path: &str) -> Option<Arc<Handles>> {
        let is_method = |(service, method): &(&str, &str)| !service.is_empty() && !method.is_empty() && !method.contains('/');
        let name = path.strip_prefix('/').and_then(|p| p.split_once('/')).filter(is_method);
        let key = match &self.methods {
            Methods::Some(listed) if listed.contains(path) => path,
            Methods::None | Methods::Some(_) => "",
            Methods::All => {
                name?;
                path
            }
        };
        let mut handles = self.handles.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = handles.get(cluster).and_then(|methods| methods.get(key)) {
            return Some(found.clone());
        }
        // Forgetting handles loses no count: the store keeps them.
        if handles.values().map(HashMap::len).sum::<usize>() >= 4 * MAX_METHODS {
            handles.clear();
        }
        let methods = handles.entry(cluster.clone()).or_default();
        let key = if methods.len() >= MAX_METHODS && matches!(self.methods, Methods::All) { "" } else { key };
        if let Some(found) = methods.get(key) {
            return Some(found.clone());
        }
        let made = Arc::new(self.make(cluster, name.filter(|_| !key.is_empty())));
        methods.insert(key.into(), made.clone());
        Some(made)
    }
    fn make(&self, cluster: &str, method: Option<(&str, &str)>) -> Handles {
        let mut prefix = format!("cluster.{cluster}.{}.", self.protocol);
        if let Some((service, method)) = method {
            let service = if self.replace_dots { service.replace('.', "_") } else { service.to_string() };
            prefix.push_str(&format!("{service}.{method}."));
        }
        let scope = self.server.stats.root().scope(&prefix);
        Handles {
            status: std::array::from_fn(|code| scope.counter(&code.to_string())),
            success: scope.counter("success"),
            failure: scope.counter("failure"),
            total: scope.counter("total"),
            requests: scope.counter("request_message_count"),
            responses: scope.counter("response_message_count"),
            upstream_time: if self.upstream_time { scope.histogram("upstream_rq_time") } else { Histogram::default() },
        }
    }
}
