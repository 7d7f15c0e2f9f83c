//! envoy.filters.http.grpc_stats: counts gRPC messages and results per cluster, per method if asked for, and leaves the counts
//! in filter state, from where istio.stats takes them. Watches bodies of gRPC streams; other streams cost one look at the
//! content type. Source: `envoy/extensions/filters/http/grpc_stats/v3/config.proto`, Envoy's `Grpc::ContextImpl`.

use crate::config::decode;
use http::HeaderName;
use nuncio_core::diag::At;
use nuncio_core::filter::{FilterAction, FilterCx, HttpFilter, Needs};
use nuncio_core::filter_state::StateObject;
use nuncio_core::registry::{FactoryCx, HttpFilterFactory, Server};
use nuncio_core::stats::{Counter, Histogram};
use nuncio_core::{Body, Headers};
use nuncio_proto::envoy::extensions::filters::http::grpc_stats::v3::FilterConfig;
use nuncio_proto::envoy::extensions::filters::http::grpc_stats::v3::filter_config::PerMethodStatSpecifier;
use std::any::Any;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

mod frames;

/// Filter state of [`GrpcStatsObject`].
pub const GRPC_STATS: &str = "envoy.filters.http.grpc_stats";
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// Methods that get counters of their own when all methods do: callers choose the names.
const MAX_METHODS: usize = 1_000;

/// Messages seen so far in both directions of one stream.
#[derive(Debug, Default)]
pub struct GrpcStatsObject {
    requests: AtomicU64,
    responses: AtomicU64,
}

impl GrpcStatsObject {
    /// Request messages begun.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
    /// Response messages begun.
    pub fn responses(&self) -> u64 {
        self.responses.load(Ordering::Relaxed)
    }
    /// The object behind filter state, if it is one of these.
    pub fn of(object: &Arc<dyn StateObject>) -> Option<Arc<Self>> {
        let any: Arc<dyn Any + Send + Sync> = object.clone();
        any.downcast().ok()
    }
}

impl StateObject for GrpcStatsObject {
    fn as_string(&self) -> Option<String> {
        Some(format!("{},{}", self.requests(), self.responses()))
    }
    fn field(&self, name: &str) -> Option<String> {
        match name {
            "request_message_count" => Some(self.requests().to_string()),
            "response_message_count" => Some(self.responses().to_string()),
            _ => None,
        }
    }
    fn as_json(&self) -> Option<String> {
        // Numbers of 64 bits are strings in protobuf's JSON.
        Some(format!(r#"{{"request_message_count":"{}","response_message_count":"{}"}}"#, self.requests(), self.responses()))
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Factory of `envoy.extensions.filters.http.grpc_stats.v3.FilterConfig`.
#[derive(Debug)]
pub struct Factory;

impl HttpFilterFactory for Factory {
    fn name(&self) -> &'static str {
        "envoy.filters.http.grpc_stats"
    }
    fn types(&self) -> &'static [&'static str] {
        &["envoy.extensions.filters.http.grpc_stats.v3.FilterConfig"]
    }
    fn compile(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn HttpFilter>> {
        let config: FilterConfig = decode(config, at, cx.report)?;
        let methods = match &config.per_method_stat_specifier {
            Some(PerMethodStatSpecifier::StatsForAllMethods(true)) => Methods::All,
            Some(PerMethodStatSpecifier::IndividualMethodStatsAllowlist(list)) => Methods::Some(
                list.services
                    .iter()
                    .flat_map(|s| s.method_names.iter().map(|m| format!("/{}/{m}", s.name)))
                    .collect::<std::collections::HashSet<_>>(),
            ),
            Some(PerMethodStatSpecifier::StatsForAllMethods(false)) | None => Methods::None,
        };
        Some(Arc::new(Filter {
            emit: config.emit_filter_state,
            upstream_stats: config.enable_upstream_stats,
            replace_dots: config.replace_dots_in_grpc_service_name,
            methods,
            server: cx.server.clone(),
            handles: Mutex::default(),
        }))
    }
}

#[derive(Debug)]
enum Methods {
    None,
    All,
    /// By `/service/method`.
    Some(std::collections::HashSet<String>),
}

#[derive(Debug)]
struct Filter {
    emit: bool,
    upstream_stats: bool,
    replace_dots: bool,
    methods: Methods,
    server: Arc<Server>,
    /// By cluster, then by path (empty for all methods together). Locked once per gRPC stream, for a lookup.
    handles: Mutex<HashMap<Arc<str>, HashMap<Box<str>, Arc<Handles>>>>,
}

/// Stats below `cluster.<name>.grpc.[<service>.<method>.]`.
#[derive(Debug)]
struct Handles {
    status: [Counter; 17],
    success: Counter,
    failure: Counter,
    total: Counter,
    requests: Counter,
    responses: Counter,
    upstream_time: Histogram,
}

/// What is remembered of one gRPC stream.
struct State {
    handles: Option<Arc<Handles>>,
    object: Option<Arc<GrpcStatsObject>>,
    charged: bool,
}

impl HttpFilter for Filter {
    fn needs(&self) -> Needs {
        Needs::REQUEST_HEADERS.and(Needs::RESPONSE_HEADERS).and(Needs::RESPONSE_TRAILERS).and(Needs::COMPLETE)
    }
    fn on_request<'a>(&'a self, mut cx: FilterCx<'a>) -> FilterAction<'a> {
        let ex = &mut *cx.ex;
        if !ex.request.is_grpc() {
            return FilterAction::Continue;
        }
        let handles = ex.cluster.as_ref().and_then(|c| self.handles(c.name(), ex.request.path_only()));
        let object = self.emit.then(Arc::<GrpcStatsObject>::default);
        if let Some(object) = &object {
            ex.info.filter_state.set(GRPC_STATS, object.clone());
        }
        watch(&mut ex.request_body, object.clone(), handles.as_ref().map(|h| h.requests.clone()), |o| &o.requests);
        cx.set_state(State { handles, object, charged: false });
        FilterAction::Continue
    }
    fn on_response(&self, mut cx: FilterCx<'_>) {
        let Some(state) = cx.state::<State>() else { return };
        let (object, responses) = (state.object.clone(), state.handles.as_ref().map(|h| h.responses.clone()));
        let ex = &mut *cx.ex;
        let Some(response) = &ex.response else { return };
        if nuncio_core::message::is_grpc_content_type(&response.headers) && response.status.as_u16() == 200 {
            watch(&mut ex.response_body, object, responses, |o| &o.responses);
        }
        let status = response.headers.get(&GRPC_STATUS).cloned();
        if let (Some(state), Some(status)) = (cx.state::<State>(), status) {
            state.charge(status.as_bytes());
        }
    }
    fn on_response_trailers(&self, mut cx: FilterCx<'_>, trailers: &mut Headers) {
        if let (Some(state), Some(status)) = (cx.state::<State>(), trailers.get(&GRPC_STATUS)) {
            state.charge(status.as_bytes());
        }
    }
    fn on_complete(&self, mut cx: FilterCx<'_>) {
        if !self.upstream_stats {
            return;
        }
        let Some(handles) = cx.state::<State>().and_then(|s| s.handles.clone()) else { return };
        let times = cx.ex.info.upstream.as_ref().and_then(|u| Some((u.last_tx?, u.last_rx?)));
        if let Some((sent, received)) = times {
            handles.upstream_time.record(u64::try_from(received.saturating_sub(sent).as_millis()).unwrap_or(u64::MAX));
        }
    }
}

impl State {
    /// Counts the result of the stream, once.
    fn charge(&mut self, status: &[u8]) {
        let Some(handles) = self.handles.as_ref().filter(|_| !self.charged) else { return };
        self.charged = true;
        let code = std::str::from_utf8(status).ok().and_then(|s| s.parse::<usize>().ok());
        // Codes that gRPC does not have get no counter of their own: the peer could invent any number of them.
        if let Some(counter) = code.and_then(|c| handles.status.get(c)) {
            counter.inc();
        }
        if code == Some(0) {
            handles.success.inc()
        } else {
            handles.failure.inc()
        }
        handles.total.inc();
    }
}

fn watch(body: &mut Body, object: Option<Arc<GrpcStatsObject>>, counter: Option<Counter>, which: fn(&GrpcStatsObject) -> &AtomicU64) {
    if body.is_end() || (object.is_none() && counter.is_none()) {
        return;
    }
    let inner = std::mem::take(body);
    *body = Body::Stream(Box::new(frames::Watched::new(inner, move |n| {
        if let Some(object) = &object {
            which(object).fetch_add(n, Ordering::Relaxed);
        }
        if let Some(counter) = &counter {
            counter.add(n);
        }
    })));
}

impl Filter {
    /// The handles of a request; none if all methods are counted and this path is not one.
    fn handles(&self, cluster: &Arc<str>, path: &str) -> Option<Arc<Handles>> {
        let name = path
            .strip_prefix('/')
            .and_then(|p| p.split_once('/'))
            .filter(|(service, method)| !service.is_empty() && !method.is_empty() && !method.contains('/'));
        let key = match &self.methods {
            Methods::None => "",
            Methods::Some(listed) => {
                if listed.contains(path) {
                    path
                } else {
                    ""
                }
            }
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
        let scope = match name.filter(|_| !key.is_empty()) {
            Some((service, method)) => {
                let service = if self.replace_dots { service.replace('.', "_") } else { service.to_string() };
                format!("cluster.{cluster}.grpc.{service}.{method}.")
            }
            None => format!("cluster.{cluster}.grpc."),
        };
        let scope = self.server.stats.root().scope(&scope);
        let made = Arc::new(Handles {
            status: std::array::from_fn(|code| scope.counter(&code.to_string())),
            success: scope.counter("success"),
            failure: scope.counter("failure"),
            total: scope.counter("total"),
            requests: scope.counter("request_message_count"),
            responses: scope.counter("response_message_count"),
            upstream_time: if self.upstream_stats { scope.histogram("upstream_rq_time") } else { Histogram::default() },
        });
        methods.insert(key.into(), made.clone());
        Some(made)
    }
}

#[cfg(test)]
mod tests;
