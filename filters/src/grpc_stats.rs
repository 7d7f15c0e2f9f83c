//! envoy.filters.http.grpc_stats: counts gRPC messages and results per cluster, per method if asked for, and leaves the counts
//! in filter state, from where istio.stats takes them. Watches bodies of gRPC streams; other streams cost one look at the
//! content type. Source: `envoy/extensions/filters/http/grpc_stats/v3/config.proto`, Envoy's `Grpc::ContextImpl`.

use crate::config::decode;
use http::HeaderName;
use nuncio_core::diag::At;
use nuncio_core::filter::{FilterAction, FilterCx, HttpFilter, Needs};
use nuncio_core::filter_state::StateObject;
use nuncio_core::registry::{FactoryCx, HttpFilterFactory};
use nuncio_proto::envoy::extensions::filters::http::grpc_stats::v3::FilterConfig;
use nuncio_proto::envoy::extensions::filters::http::grpc_stats::v3::filter_config::PerMethodStatSpecifier;
use std::any::Any;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

pub mod frames;
mod handles;

use frames::Seen;
use handles::Handles;
pub(crate) use handles::{Cache, Methods};

/// Filter state of [`GrpcStatsObject`].
pub const GRPC_STATS: &str = "envoy.filters.http.grpc_stats";
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// No status has passed yet.
const NO_STATUS: i32 = -2;

/// Messages seen so far in both directions of one stream.
#[derive(Debug)]
pub struct GrpcStatsObject {
    requests: AtomicU64,
    responses: AtomicU64,
    status: AtomicI32,
}

impl Default for GrpcStatsObject {
    fn default() -> Self {
        Self { requests: AtomicU64::new(0), responses: AtomicU64::new(0), status: AtomicI32::new(NO_STATUS) }
    }
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
    /// `grpc-status` of headers or trailers, once it passed; -1 if gRPC has no such status.
    pub fn status(&self) -> Option<i32> {
        Some(self.status.load(Ordering::Relaxed)).filter(|s| *s != NO_STATUS)
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
            handles: Cache::new("grpc", methods, config.replace_dots_in_grpc_service_name, config.enable_upstream_stats, cx.server),
        }))
    }
}

#[derive(Debug)]
struct Filter {
    emit: bool,
    upstream_stats: bool,
    handles: Cache,
}

/// What is remembered of one gRPC stream.
struct State {
    handles: Option<Arc<Handles>>,
    object: Option<Arc<GrpcStatsObject>>,
    charged: Rc<Cell<bool>>,
}

impl HttpFilter for Filter {
    fn needs(&self) -> Needs {
        let needs = Needs::REQUEST_HEADERS.and(Needs::RESPONSE_HEADERS);
        if self.upstream_stats { needs.and(Needs::COMPLETE) } else { needs }
    }
    fn on_request<'a>(&'a self, mut cx: FilterCx<'a>) -> FilterAction<'a> {
        let ex = &mut *cx.ex;
        if !ex.request.is_grpc() {
            return FilterAction::Continue;
        }
        let handles = ex.cluster.as_ref().and_then(|c| self.handles.get(c.name(), ex.request.path_only()));
        let object = self.emit.then(Arc::<GrpcStatsObject>::default);
        if let Some(object) = &object {
            ex.info.filter_state.set(GRPC_STATS, object.clone());
        }
        if !ex.request_body.is_end() && (object.is_some() || handles.is_some()) {
            let inner = std::mem::take(&mut ex.request_body);
            let (object, handles) = (object.clone(), handles.clone());
            ex.request_body = frames::watch(inner, move |seen| {
                if let Seen::Messages(n) = seen {
                    if let Some(object) = &object {
                        object.requests.fetch_add(n, Ordering::Relaxed);
                    }
                    if let Some(handles) = &handles {
                        handles.requests.add(n);
                    }
                }
            });
        }
        cx.set_state(State { handles, object, charged: Rc::default() });
        FilterAction::Continue
    }
    fn on_response(&self, mut cx: FilterCx<'_>) {
        let Some(state) = cx.state::<State>() else { return };
        let (object, handles, charged) = (state.object.clone(), state.handles.clone(), state.charged.clone());
        let ex = &mut *cx.ex;
        let Some(response) = &ex.response else { return };
        if let Some(status) = response.headers.get(&GRPC_STATUS) {
            charge(status.as_bytes(), object.as_deref(), handles.as_deref(), &charged);
        }
        let grpc = nuncio_core::message::is_grpc_content_type(&response.headers) && response.status.as_u16() == 200;
        if ex.response_body.is_end() || (object.is_none() && handles.is_none()) {
            return;
        }
        // Trailers are taken here and not in their callback: behind this filter gRPC-Web may turn them into data.
        let inner = std::mem::take(&mut ex.response_body);
        ex.response_body = frames::watch(inner, move |seen| match seen {
            Seen::Messages(n) if grpc => {
                if let Some(object) = &object {
                    object.responses.fetch_add(n, Ordering::Relaxed);
                }
                if let Some(handles) = &handles {
                    handles.responses.add(n);
                }
            }
            Seen::Messages(_) => {}
            Seen::Trailers(trailers) => {
                if let Some(status) = trailers.get(&GRPC_STATUS) {
                    charge(status.as_bytes(), object.as_deref(), handles.as_deref(), &charged);
                }
            }
        });
    }
    fn on_complete(&self, mut cx: FilterCx<'_>) {
        let Some(handles) = cx.state::<State>().and_then(|s| s.handles.clone()) else { return };
        let times = cx.ex.info.upstream.as_ref().and_then(|u| Some((u.last_tx?, u.last_rx?)));
        if let Some((sent, received)) = times {
            handles.upstream_time.record(u64::try_from(received.saturating_sub(sent).as_millis()).unwrap_or(u64::MAX));
        }
    }
}

/// Counts the result of the stream, once.
fn charge(status: &[u8], object: Option<&GrpcStatsObject>, handles: Option<&Handles>, charged: &Cell<bool>) {
    if charged.replace(true) {
        return;
    }
    if let Some(object) = object {
        let code = std::str::from_utf8(status).ok().and_then(|s| s.parse::<u8>().ok()).filter(|c| *c <= 16);
        object.status.store(code.map_or(-1, i32::from), Ordering::Relaxed);
    }
    if let Some(handles) = handles {
        handles.charge(status);
    }
}

#[cfg(test)]
mod tests;
