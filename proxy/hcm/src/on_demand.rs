//! Tables and virtual hosts that are loaded when a request needs them: the filter `envoy.filters.http.on_demand`, and how workers
//! ask the control thread. Source: `envoy/extensions/filters/http/on_demand/v3/on_demand.proto`, docs "VHDS" and "SRDS".

use crate::routes::Routes;
use nuncio_core::diag::At;
use nuncio_core::filter::{FilterAction, FilterCx, HttpFilter, Needs, Outcome};
use nuncio_core::registry::FactoryCx;
use nuncio_proto::Message;
use nuncio_proto::envoy::extensions::filters::http::on_demand::v3::OnDemand;
use nuncio_route::scopes::ScopesSlots;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{mpsc, oneshot};

/// Requests that may wait to be heard by the control thread; more go on without what they miss.
const QUEUE: usize = 1024;

/// What a request misses.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Missing {
    /// A virtual host of an RDS table that has `vhds`.
    Host { table: Arc<str>, host: String },
    /// The table of a scope with `on_demand`.
    Scope { name: Arc<str>, table: Arc<str> },
}

/// One request that waits.
#[derive(Debug)]
pub struct Demand {
    pub missing: Missing,
    /// Told when what it waits for came, or will not come.
    pub done: oneshot::Sender<()>,
}

/// What route discovery shares between control thread and workers.
#[derive(Debug)]
pub struct RouteDiscovery {
    /// Scopes that come by SRDS.
    pub scopes: ScopesSlots,
    sender: mpsc::Sender<Demand>,
    receiver: Mutex<Option<mpsc::Receiver<Demand>>>,
}

impl Default for RouteDiscovery {
    fn default() -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        Self { scopes: ScopesSlots::default(), sender, receiver: Mutex::new(Some(receiver)) }
    }
}

impl RouteDiscovery {
    /// What workers ask for; the control thread takes it once.
    pub fn take_demands(&self) -> Option<mpsc::Receiver<Demand>> {
        self.receiver.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
    /// Asks for what is missing; none if too many ask already.
    fn ask(&self, missing: Missing) -> Option<oneshot::Receiver<()>> {
        let (done, wait) = oneshot::channel();
        self.sender.try_send(Demand { missing, done }).ok().map(|()| wait)
    }
}

/// `envoy.filters.http.on_demand`.
#[derive(Debug)]
pub struct OnDemandFilter {
    discovery: Arc<RouteDiscovery>,
    routes: Arc<Routes>,
}

impl OnDemandFilter {
    /// Type of its configuration.
    pub const TYPE: &str = "envoy.extensions.filters.http.on_demand.v3.OnDemand";

    /// Compiles the filter for a connection manager with `routes`.
    pub fn compile(
        config: &[u8],
        discovery: &Arc<RouteDiscovery>,
        routes: &Arc<Routes>,
        at: &At<'_>,
        cx: &mut FactoryCx<'_>,
    ) -> Option<Arc<dyn HttpFilter>> {
        match OnDemand::decode(config) {
            Ok(config) if config.odcds.is_some() => {
                cx.report.unsupported(&at.field("odcds"), "on-demand discovery of clusters");
                None
            }
            Ok(_) => Some(Arc::new(Self { discovery: discovery.clone(), routes: routes.clone() })),
            Err(why) => {
                cx.report.error(at, format!("no OnDemand message: {why}"), "send a valid one");
                None
            }
        }
    }
}

impl HttpFilter for OnDemandFilter {
    fn needs(&self) -> Needs {
        Needs::REQUEST_HEADERS
    }
    fn on_request<'a>(&'a self, cx: FilterCx<'a>) -> FilterAction<'a> {
        if cx.ex.route.is_some() {
            return FilterAction::Continue;
        }
        let Some(wait) = self.routes.missing(&cx.ex.request).and_then(|missing| self.discovery.ask(missing)) else {
            return FilterAction::Continue;
        };
        FilterAction::Await(Box::pin(async move {
            // An error means that nobody will answer, which is an answer.
            let _ = wait.await;
            cx.ex.route_cleared = true;
            Outcome::Continue
        }))
    }
}
