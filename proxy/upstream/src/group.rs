//! Stats of requests that are counted together whatever their cluster: virtual clusters (`vhost.<virtual host>.vcluster.<name>.`)
//! and routes with a `stat_prefix` (`vhost.<virtual host>.route.<stat_prefix>.`). Made by the router on first use, counted on every
//! worker. Source: Envoy docs, "Router statistics", `Http::CodeStatsImpl`.

use crate::stats::{Responses, stats};
use nuncio_stats::{Counter, Scope};
use std::sync::OnceLock;

stats! {
    /// What the router counts besides responses.
    GroupTraffic {
        counter {
            upstream_rq_retry, upstream_rq_retry_limit_exceeded, upstream_rq_retry_overflow, upstream_rq_retry_success,
            upstream_rq_timeout, upstream_rq_total,
        }
    }
}

/// Stats of one virtual cluster or route.
#[derive(Debug)]
pub struct GroupStats {
    scope: Scope,
    pub traffic: GroupTraffic,
    responses: OnceLock<Box<Responses>>,
}

impl GroupStats {
    /// Makes the counters below `scope`; those of responses come with the first one.
    pub fn new(scope: &Scope) -> Self {
        Self { traffic: GroupTraffic::new(scope), responses: OnceLock::new(), scope: scope.clone() }
    }
    fn responses(&self) -> &Responses {
        self.responses.get_or_init(|| Box::new(Responses::new(&self.scope)))
    }
    /// Counts a response code: `upstream_rq_completed`, `upstream_rq_2xx`, `upstream_rq_200`.
    pub fn charge_response(&self, code: u16) {
        self.responses().charge(&self.scope, "", code);
    }
    /// Records how long a response took, in milliseconds: `upstream_rq_time`.
    pub fn charge_time(&self, millis: u64) {
        self.responses().time(millis);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nuncio_stats::Store;

    #[test]
    fn responses_are_counted_by_code_and_class() {
        let store = Store::new();
        let group = GroupStats::new(&store.root().scope("vhost.v.vcluster.c."));
        group.traffic.upstream_rq_total.inc();
        for code in [200, 200, 503] {
            group.charge_response(code);
            group.charge_time(3);
        }
        let value = |name: &str| store.root().counter(&format!("vhost.v.vcluster.c.{name}")).value();
        let names =
            ["upstream_rq_total", "upstream_rq_completed", "upstream_rq_2xx", "upstream_rq_200", "upstream_rq_5xx", "upstream_rq_503"];
        assert_eq!(names.map(value), [1, 3, 2, 2, 1, 1]);
    }
}
