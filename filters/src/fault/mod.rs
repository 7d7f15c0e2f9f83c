//! envoy.filters.http.fault: delays requests, answers them with errors, and slows responses down, for tests of resilience. The
//! filter in Istio's chains is an empty placeholder that costs a branch; routes bring what is injected.
//! Source: `envoy/extensions/filters/http/fault/v3/fault.proto`.

mod settings;
mod throttle;

use crate::config::decode;
use http::HeaderName;
use nuncio_core::diag::At;
use nuncio_core::filter::{FilterAction, FilterCx, HttpFilter, Needs, Outcome};
use nuncio_core::registry::{FactoryCx, HttpFilterFactory, Server};
use nuncio_core::stats::{Counter, Gauge, Scope};
use nuncio_core::{Body, Exchange, LocalReply, ResponseFlags};
use nuncio_proto::envoy::extensions::filters::http::fault::v3::HttpFault;
use settings::{Abort, Settings};
use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

const DOWNSTREAM_CLUSTER: HeaderName = HeaderName::from_static("x-envoy-downstream-service-cluster");
const DOWNSTREAM_NODE: HeaderName = HeaderName::from_static("x-envoy-downstream-service-node");
/// Downstream clusters with counters of their own: the name comes with the request.
const MAX_CLUSTERS: usize = 500;

/// Factory of `envoy.extensions.filters.http.fault.v3.HTTPFault`, on listeners and per route.
#[derive(Debug)]
pub struct Factory;

impl HttpFilterFactory for Factory {
    fn name(&self) -> &'static str {
        "envoy.filters.http.fault"
    }
    fn types(&self) -> &'static [&'static str] {
        &["envoy.extensions.filters.http.fault.v3.HTTPFault"]
    }
    fn route_types(&self) -> &'static [&'static str] {
        self.types()
    }
    fn compile(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn HttpFilter>> {
        let config: HttpFault = decode(config, at, cx.report)?;
        let settings = Arc::new(Settings::compile(&config, at, cx.report)?);
        let scope = cx.scope.scope("fault.");
        Some(Arc::new(Filter {
            settings,
            server: cx.server.clone(),
            delays: scope.counter("delays_injected"),
            aborts: scope.counter("aborts_injected"),
            overflow: scope.counter("faults_overflow"),
            throttled: scope.counter("response_rl_injected"),
            active: scope.gauge("active_faults"),
            clusters: Mutex::default(),
            scope,
        }))
    }
    fn compile_route(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn Any + Send + Sync>> {
        let config: HttpFault = decode(config, at, cx.report)?;
        Some(Arc::new(Settings::compile(&config, at, cx.report)?))
    }
}

#[derive(Debug)]
struct Filter {
    settings: Arc<Settings>,
    server: Arc<Server>,
    scope: Scope,
    delays: Counter,
    aborts: Counter,
    overflow: Counter,
    throttled: Counter,
    active: Gauge,
    /// Delays and aborts by downstream cluster.
    clusters: Mutex<HashMap<String, (Counter, Counter)>>,
}

/// State of a stream with a fault: one active fault, however many kinds.
struct Active {
    gauge: Gauge,
    /// KiB per second, if the response is slowed down.
    throttle: Option<u64>,
}

impl Drop for Active {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

impl HttpFilter for Filter {
    fn needs(&self) -> Needs {
        Needs::REQUEST_HEADERS.and(Needs::RESPONSE_HEADERS)
    }
    fn on_request<'a>(&'a self, mut cx: FilterCx<'a>) -> FilterAction<'a> {
        let settings = cx.route_config::<Settings>();
        let settings = settings.as_ref().unwrap_or(&self.settings);
        if settings.is_empty() || !settings.concerns(cx.ex) {
            return FilterAction::Continue;
        }
        let settings = settings.clone();
        let downstream = cx.ex.request.headers.get_str(&DOWNSTREAM_CLUSTER).filter(|c| !c.is_empty()).map(ToString::to_string);
        let runtime = &self.server.runtime;
        if let Some(rate) = settings.throttle(&cx.ex.request.headers, runtime)
            && self.activate(&mut cx, &settings)
        {
            self.throttled.inc();
            if let Some(active) = cx.state::<Active>() {
                active.throttle = Some(rate);
            }
        }
        let delay = settings.delay(&cx.ex.request.headers, downstream.as_deref(), runtime);
        if let Some(delay) = delay
            && self.activate(&mut cx, &settings)
        {
            self.delays.inc();
            self.count(&settings, downstream.as_deref(), false);
            cx.ex.info.flags.set(ResponseFlags::DELAY_INJECTED);
            return FilterAction::Await(Box::pin(async move {
                tokio::time::sleep(delay).await;
                match self.abort(&mut cx, &settings, downstream.as_deref()) {
                    Some(reply) => Outcome::Respond(reply),
                    None => Outcome::Continue,
                }
            }));
        }
        match self.abort(&mut cx, &settings, downstream.as_deref()) {
            Some(reply) => FilterAction::Respond(reply),
            None => FilterAction::Continue,
        }
    }
    fn on_response(&self, mut cx: FilterCx<'_>) {
        let Some(rate) = cx.state::<Active>().and_then(|a| a.throttle) else { return };
        let body = std::mem::take(&mut cx.ex.response_body);
        cx.ex.response_body = if body.is_end() { body } else { Body::Stream(Box::new(throttle::Throttled::new(body, rate))) };
    }
}

impl Filter {
    /// Counts an active fault, unless there are too many: then the request goes on untouched.
    fn activate(&self, cx: &mut FilterCx<'_>, settings: &Settings) -> bool {
        if cx.state::<Active>().is_some() {
            return true;
        }
        // Not exact under concurrency, as in Envoy.
        let active = u64::try_from(self.active.value()).unwrap_or(0);
        if settings.max_active(&self.server.runtime).is_some_and(|max| active >= max) {
            self.overflow.inc();
            return false;
        }
        self.active.inc();
        cx.set_state(Active { gauge: self.active.clone(), throttle: None });
        // Logs tell by it which fault this was; it is there, empty, where none is configured.
        cx.ex.info.set_metadata("envoy.filters.http.fault", settings.metadata.clone());
        true
    }
    fn abort(&self, cx: &mut FilterCx<'_>, settings: &Settings, downstream: Option<&str>) -> Option<Box<LocalReply>> {
        let abort = settings.abort(&cx.ex.request.headers, downstream, &self.server.runtime)?;
        if !self.activate(cx, settings) {
            return None;
        }
        self.aborts.inc();
        self.count(settings, downstream, true);
        let (status, grpc_status) = match abort {
            Abort::Http(status) => (status, None),
            Abort::Grpc(status) => (200, Some(status)),
        };
        let mut reply = LocalReply::new(status, settings.abort_body.clone(), "fault_filter_abort").flag(ResponseFlags::FAULT_INJECTED);
        reply.grpc_status = grpc_status;
        Some(Box::new(reply))
    }
    fn count(&self, settings: &Settings, downstream: Option<&str>, abort: bool) {
        let Some(cluster) = downstream.filter(|_| settings.cluster_stats) else { return };
        let mut clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        if !clusters.contains_key(cluster) {
            if clusters.len() >= MAX_CLUSTERS {
                return;
            }
            let scope = self.scope.scope(&format!("{cluster}."));
            clusters.insert(cluster.to_string(), (scope.counter("delays_injected"), scope.counter("aborts_injected")));
        }
        if let Some((delays, aborts)) = clusters.get(cluster) {
            if abort { aborts.inc() } else { delays.inc() }
        }
    }
}

impl Settings {
    /// Whether cluster, caller and headers are those that are meant.
    fn concerns(&self, ex: &Exchange) -> bool {
        let cluster = ex.route.as_ref().and_then(|r| r.cluster_name());
        if !self.upstream_cluster.is_empty() && cluster.is_none_or(|c| **c != *self.upstream_cluster) {
            return false;
        }
        let node = || ex.request.headers.get_str(&DOWNSTREAM_NODE);
        if !self.downstream_nodes.is_empty() && node().is_none_or(|n| !self.downstream_nodes.contains(n)) {
            return false;
        }
        nuncio_matcher::HeaderMatcher::all_match(&self.headers, &ex.request)
    }
}

/// How long a delay of `ms` milliseconds is.
fn millis(ms: u64) -> Option<Duration> {
    (ms > 0).then(|| Duration::from_millis(ms))
}

#[cfg(test)]
mod tests;
