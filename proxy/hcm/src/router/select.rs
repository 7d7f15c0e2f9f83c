//! Which host takes the next attempt. Runs on the worker that owns the stream.
//! Source: RetryPolicy.retry_host_predicate and retry_priority, docs "Router" (host selection of retries).

use super::forward::Forwarding;
use nuncio_core::views::{self, HostView};
use nuncio_core::{LocalReply, ResponseFlags};
use nuncio_route::RetryPolicy;
use nuncio_upstream::forward_proxy;
use nuncio_upstream::{Host, LbContext, OverrideHost, PriorityRetry};
use std::sync::Arc;

impl Forwarding<'_> {
    /// Hosts that retry host predicates reject. The first attempt takes any.
    fn avoided(&self, policy: &RetryPolicy) -> Vec<Arc<Host>> {
        let mut avoided = Vec::new();
        if self.tried.is_empty() {
            return avoided;
        }
        if policy.previous_hosts {
            avoided.extend(self.tried.iter().cloned());
        }
        if policy.omit_canary_hosts {
            avoided.extend(self.cluster.candidates().into_iter().filter(|h| h.canary()));
        }
        for unwanted in &policy.omit_host_metadata {
            let unwanted = views::filter_metadata(Some(unwanted), "envoy.lb");
            avoided.extend(self.cluster.candidates().into_iter().filter(|h| {
                let mine = views::filter_metadata(HostView::metadata(h.as_ref()), "envoy.lb");
                unwanted.zip(mine).is_some_and(|(u, m)| u.fields.iter().all(|(k, v)| m.fields.get(k) == Some(v)))
            }));
        }
        avoided
    }

    /// Looks up the name that a dynamic forward proxy goes to, if no filter did; the reply if it does not resolve.
    pub(super) async fn resolve(&self) -> Result<(), Box<LocalReply>> {
        let ex = &*self.active.ex;
        let lb =
            LbContext { downstream: Some(&ex.info.connection), stream: Some(&ex.info), request: Some(&ex.request), ..LbContext::default() };
        match forward_proxy::prepare(&self.cluster, &lb).await {
            None => Ok(()),
            Some(why) => {
                let reply = LocalReply::new(503, "no healthy upstream", format!("dns_resolution_failure{{{why}}}"));
                Err(Box::new(reply.flag(ResponseFlags::NO_HEALTHY_UPSTREAM)))
            }
        }
    }

    /// The host of the next attempt; the reply if there is none.
    pub(super) fn pick(&mut self) -> Result<Arc<Host>, Box<LocalReply>> {
        let policy = self.forward.retry_policy();
        let ex = &*self.active.ex;
        let avoid = policy.map(|p| self.avoided(p)).unwrap_or_default();
        let retry_priority = policy
            .and_then(|p| p.previous_priorities_update_frequency)
            .filter(|_| !self.tried.is_empty())
            .map(|update_frequency| PriorityRetry { update_frequency, attempted: &self.tried_priorities, hosts: &self.tried });
        // A retry is free to go elsewhere, as in Envoy.
        let wanted = ex.override_host.as_deref().filter(|_| self.tried.is_empty());
        let lb = LbContext {
            hash: self.hash,
            downstream: Some(&ex.info.connection),
            stream: Some(&ex.info),
            request: Some(&ex.request),
            metadata_match: self.entry.metadata_match(),
            avoid: &avoid,
            attempts: policy.map_or(1, |p| p.host_selection_attempts),
            override_host: wanted.map(|w| OverrideHost { address: &w.address, strict: w.strict }),
            retry_priority,
        };
        match self.upstreams.pick(&self.cluster, &lb) {
            Some(host) => {
                self.cluster.tell_selected(&host, &mut self.active.ex.info);
                Ok(host)
            }
            None => Err(no_healthy_upstream(wanted.filter(|w| w.strict).map_or(503, |w| w.status))),
        }
    }
}

/// The reply to a request that no host can take.
pub fn no_healthy_upstream(status: u16) -> Box<LocalReply> {
    Box::new(LocalReply::new(status, "no healthy upstream", "no_healthy_upstream").flag(ResponseFlags::NO_HEALTHY_UPSTREAM))
}
