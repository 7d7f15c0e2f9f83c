//! envoy.filters.network.local_ratelimit: at most so many new connections per time, over all workers, and over all filters that have
//! the same `share_key` and bucket. Source: `envoy/extensions/filters/network/local_ratelimit/v3/local_rate_limit.proto`.

use crate::config::{FeatureFlag, decode};
use crate::local_ratelimit::bucket::{Bucket, Rate};
use bytes::BytesMut;
use nuncio_core::diag::At;
use nuncio_core::network::{NetworkAction, NetworkFilter, NetworkFilterConfig};
use nuncio_core::registry::{FactoryCx, NetworkFilterFactory, Server};
use nuncio_core::stats::Counter;
use nuncio_core::{ConnectionInfo, ResponseFlags, StreamInfo};
use nuncio_proto::envoy::extensions::filters::network::local_ratelimit::v3::LocalRateLimit;
use std::borrow::Cow;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Factory of `envoy.extensions.filters.network.local_ratelimit.v3.LocalRateLimit`.
#[derive(Debug, Default)]
pub struct Factory {
    /// Buckets that have a key. Control thread only.
    shared: Mutex<Vec<(String, Rate, Weak<Bucket>)>>,
}

impl Factory {
    fn bucket(&self, key: String, rate: Rate) -> Arc<Bucket> {
        if key.is_empty() {
            return Arc::new(Bucket::new(rate));
        }
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.retain(|(_, _, bucket)| bucket.strong_count() > 0);
        let found = shared.iter().find(|(k, r, _)| *k == key && *r == rate).and_then(|(_, _, bucket)| bucket.upgrade());
        found.unwrap_or_else(|| {
            let made = Arc::new(Bucket::new(rate));
            shared.push((key, rate, Arc::downgrade(&made)));
            made
        })
    }
}

impl NetworkFilterFactory for Factory {
    fn name(&self) -> &'static str {
        "envoy.filters.network.local_ratelimit"
    }
    fn types(&self) -> &'static [&'static str] {
        &["envoy.extensions.filters.network.local_ratelimit.v3.LocalRateLimit"]
    }
    fn compile(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn NetworkFilterConfig>> {
        let config: LocalRateLimit = decode(config, at, cx.report)?;
        if config.stat_prefix.is_empty() {
            cx.report.error(&at.field("stat_prefix"), "nothing", "name the stats of this filter");
            return None;
        }
        let bucket_at = at.field("token_bucket");
        let Some(bucket) = &config.token_bucket else {
            cx.report.error(&bucket_at, "nothing", "give a token bucket");
            return None;
        };
        let rate = Rate::compile(bucket, &bucket_at, cx.report)?;
        let scope = cx.server.stats.root().scope(&format!("local_rate_limit.{}.", config.stat_prefix));
        Some(Arc::new(Config(Arc::new(Shared {
            bucket: self.bucket(config.share_key, rate),
            enabled: FeatureFlag::new(config.runtime_enabled.as_ref(), true),
            server: cx.server.clone(),
            limited: scope.counter("rate_limited"),
        }))))
    }
}

#[derive(Debug)]
struct Config(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    bucket: Arc<Bucket>,
    enabled: FeatureFlag,
    server: Arc<Server>,
    limited: Counter,
}

impl NetworkFilterConfig for Config {
    fn create(&self, _connection: &Rc<ConnectionInfo>) -> Option<Box<dyn NetworkFilter>> {
        Some(Box::new(Filter(self.0.clone())))
    }
}

struct Filter(Arc<Shared>);

impl NetworkFilter for Filter {
    fn on_new(&mut self, info: &mut StreamInfo, _write: &mut BytesMut) -> NetworkAction {
        let shared = &*self.0;
        if !shared.enabled.enabled(&shared.server.runtime) || shared.bucket.take(1) {
            return NetworkAction::Continue;
        }
        shared.limited.inc();
        info.flags.set(ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED);
        info.connection.local_close.set(Some("local_ratelimit_close_over_limit"));
        NetworkAction::Close(Cow::Borrowed(""))
    }
    fn wants_data(&self) -> bool {
        false
    }
}
