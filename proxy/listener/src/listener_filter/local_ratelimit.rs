//! `envoy.filters.listener.local_ratelimit`: a token bucket of connections, shared by the workers.

use super::Verdict;
use nuncio_core::diag::{At, Report};
use nuncio_core::registry::Server;
use nuncio_proto::envoy::extensions::filters::listener::local_ratelimit::v3::LocalRateLimit as Proto;
use nuncio_stats::Counter;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

#[derive(Debug)]
pub(super) struct LocalRateLimit {
    max: u64,
    fill: u64,
    interval: Duration,
    /// Tokens, and when they were last filled up.
    bucket: Mutex<(u64, Instant)>,
    enabled: Option<(Arc<Server>, String, bool)>,
    rate_limited: Counter,
}

impl LocalRateLimit {
    pub(super) fn compile(proto: &Proto, server: &Arc<Server>, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let field = at.field("token_bucket");
        let Some(bucket) = &proto.token_bucket else {
            report.error(&field, "it is missing", "give a token bucket");
            return None;
        };
        let interval = bucket.fill_interval.as_ref().and_then(|d| Duration::try_from(*d).ok()).filter(|d| *d >= Duration::from_millis(50));
        let Some(interval) = interval else {
            report.error(&field.field("fill_interval"), "less than 50 ms", "give at least 50 ms");
            return None;
        };
        if bucket.max_tokens == 0 {
            report.error(&field.field("max_tokens"), "0", "give at least 1");
            return None;
        }
        let enabled =
            proto.runtime_enabled.as_ref().map(|flag| (server.clone(), flag.runtime_key.clone(), flag.default_value.unwrap_or(true)));
        let scope = server.stats.root().scope(&format!("listener_local_ratelimit.{}.", proto.stat_prefix));
        Some(Self {
            max: bucket.max_tokens.into(),
            fill: bucket.tokens_per_fill.unwrap_or(1).into(),
            interval,
            bucket: Mutex::new((bucket.max_tokens.into(), Instant::now())),
            enabled,
            rate_limited: scope.counter("rate_limited"),
        })
    }
    pub(super) fn run(&self) -> Verdict {
        if self.enabled.as_ref().is_some_and(|(server, key, default)| !server.runtime.boolean(key, *default)) || self.take(Instant::now()) {
            return Verdict::Continue;
        }
        self.rate_limited.inc();
        Verdict::Close("local_rate_limited")
    }
    fn take(&self, now: Instant) -> bool {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let (tokens, filled) = &mut *bucket;
        let fills = now.saturating_duration_since(*filled).as_nanos() / self.interval.as_nanos().max(1);
        if let Ok(fills) = u32::try_from(fills) {
            *tokens = self.max.min(tokens.saturating_add(self.fill.saturating_mul(fills.into())));
            *filled += self.interval * fills;
        } else {
            (*tokens, *filled) = (self.max, now);
        }
        match tokens.checked_sub(1) {
            Some(left) => {
                *tokens = left;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fills_in_steps() {
        let start = Instant::now();
        let limit = LocalRateLimit {
            max: 2,
            fill: 1,
            interval: Duration::from_secs(1),
            bucket: Mutex::new((2, start)),
            enabled: None,
            rate_limited: Counter::default(),
        };
        assert!(limit.take(start) && limit.take(start) && !limit.take(start));
        assert!(!limit.take(start + Duration::from_millis(999)));
        assert!(limit.take(start + Duration::from_millis(1001)) && !limit.take(start + Duration::from_millis(1002)));
        let late = start + Duration::from_secs(1000);
        assert!(limit.take(late) && limit.take(late) && !limit.take(late));
    }
}
