//! envoy.filters.network.connection_limit: at most so many connections at a time, over all workers.
//! Source: `envoy/extensions/filters/network/connection_limit/v3/connection_limit.proto`.

use crate::config::{FeatureFlag, decode, duration};
use bytes::BytesMut;
use nuncio_core::diag::At;
use nuncio_core::network::{NetworkAction, NetworkFilter, NetworkFilterConfig};
use nuncio_core::registry::{FactoryCx, NetworkFilterFactory, Server};
use nuncio_core::stats::{Counter, Gauge};
use nuncio_core::{ConnectionInfo, StreamInfo};
use nuncio_proto::envoy::extensions::filters::network::connection_limit::v3::ConnectionLimit;
use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Factory of `envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit`.
#[derive(Debug)]
pub struct Factory;

impl NetworkFilterFactory for Factory {
    fn name(&self) -> &'static str {
        "envoy.filters.network.connection_limit"
    }
    fn types(&self) -> &'static [&'static str] {
        &["envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit"]
    }
    fn compile(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn NetworkFilterConfig>> {
        let config: ConnectionLimit = decode(config, at, cx.report)?;
        if config.stat_prefix.is_empty() {
            cx.report.error(&at.field("stat_prefix"), "nothing", "name the stats of this filter");
            return None;
        }
        let Some(max) = config.max_connections.filter(|max| *max > 0) else {
            cx.report.error(&at.field("max_connections"), "nothing or 0", "give at least 1");
            return None;
        };
        let delay = match &config.delay {
            Some(delay) => duration(delay, &at.field("delay"), cx.report)?,
            None => Duration::ZERO,
        };
        let scope = cx.server.stats.root().scope(&format!("connection_limit.{}.", config.stat_prefix));
        Some(Arc::new(Config(Arc::new(Shared {
            max,
            delay,
            enabled: FeatureFlag::new(config.runtime_enabled.as_ref(), true),
            server: cx.server.clone(),
            open: AtomicU64::new(0),
            active: scope.gauge("active_connections"),
            limited: scope.counter("limited_connections"),
        }))))
    }
}

#[derive(Debug)]
struct Config(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    max: u64,
    delay: Duration,
    enabled: FeatureFlag,
    server: Arc<Server>,
    /// Connections of all workers, refused ones included until they are closed.
    open: AtomicU64,
    active: Gauge,
    limited: Counter,
}

impl NetworkFilterConfig for Config {
    fn create(&self, _connection: &Rc<ConnectionInfo>) -> Option<Box<dyn NetworkFilter>> {
        Some(Box::new(Filter { shared: self.0.clone(), counted: false }))
    }
}

struct Filter {
    shared: Arc<Shared>,
    counted: bool,
}

impl Filter {
    fn uncount(&mut self) {
        if std::mem::take(&mut self.counted) {
            self.shared.open.fetch_sub(1, Ordering::Relaxed);
            self.shared.active.dec();
        }
    }
}

impl NetworkFilter for Filter {
    fn on_new(&mut self, info: &mut StreamInfo, _write: &mut BytesMut) -> NetworkAction {
        let shared = self.shared.clone();
        if !shared.enabled.enabled(&shared.server.runtime) {
            return NetworkAction::Continue;
        }
        self.counted = true;
        shared.active.inc();
        if shared.open.fetch_add(1, Ordering::Relaxed) < shared.max {
            return NetworkAction::Continue;
        }
        shared.limited.inc();
        info.connection.close_delay.set(shared.delay);
        info.connection.local_close.set(Some("over_connection_limit"));
        NetworkAction::Close(Cow::Borrowed(""))
    }
    fn wants_data(&self) -> bool {
        false
    }
    fn on_close(&mut self, _info: &mut StreamInfo) {
        self.uncount();
    }
}

impl Drop for Filter {
    fn drop(&mut self) {
        self.uncount();
    }
}
