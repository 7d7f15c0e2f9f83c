//! The router filter: the end of every chain. Answers redirects and direct responses, forwards everything else with
//! timeouts, retries and mirrors. Runs on the worker that owns the stream.
//! Source: `envoy/extensions/filters/http/router/v3/router.proto`, docs "Router" and "HTTP route management".

mod attempt;
mod attempts;
pub mod config;
mod deadlines;
pub mod errors;
mod finish;
mod forward;
mod groups;
mod hedge;
mod mirror;
mod redirect;
mod report;
mod request_body;
mod retry;
mod select;
mod timeouts;
mod tunnel;
mod upstream_body;

pub use config::RouterConfig;
pub use redirect::{Redirects, again};
pub use upstream_body::UpstreamMeter;

use crate::service::entry;
use crate::stream::Active;
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use nuncio_core::{Body, LocalReply, ResponseFlags, ResponseHead};
use nuncio_http::Informational;
use nuncio_route::{Action, RouteEntry};

/// The client's side of a stream, apart from its exchange.
pub struct Streams {
    pub informational: Informational,
    /// Raw bytes of an accepted upgrade.
    pub upgrade: Option<Body>,
}

/// How the router was done with a request.
pub enum Answered {
    /// The exchange holds the response.
    Response,
    /// The upstream redirected, and the proxy follows: the exchange's request now asks for the target, with this body.
    Redirected(Body),
}

/// Answers the request. `Err` is a local reply.
pub async fn run(active: &mut Active, streams: &mut Streams) -> Result<Answered, Box<LocalReply>> {
    let stats = &active.config.stats;
    stats.rq_total.inc();
    let Some(route) = active.ex.route.clone() else {
        stats.no_route.inc();
        return Err(Box::new(LocalReply::new(404, "", "route_not_found").flag(ResponseFlags::NO_ROUTE_FOUND)));
    };
    let Some(entry) = entry(&active.ex).map(|_| ()).and(route.as_any().downcast_ref::<RouteEntry>()) else {
        return Err(Box::new(LocalReply::new(404, "", "route_not_found").flag(ResponseFlags::NO_ROUTE_FOUND)));
    };
    match entry.action() {
        Action::Redirect(redirect) => {
            // Envoy's `rq_redirect` never counts.
            stats.rq_direct_response.inc();
            let location = redirect.location(&active.ex.request, &active.ex.info);
            Err(Box::new(answer(active, entry, redirect.status(), Bytes::new(), Some(location), None)))
        }
        Action::DirectResponse(direct) => {
            stats.rq_direct_response.inc();
            let (request, info) = (&active.ex.request, &active.ex.info);
            let body = direct.body(request, info);
            // As Envoy: a created or moved resource is where it was asked for.
            let status = direct.status();
            let location = (status == 201 || (300..400).contains(&status))
                .then(|| format!("{}://{}{}", request.scheme, request.authority, request.path));
            let kind = Some(direct.content_type()).filter(|kind| direct.is_formatted() && *kind != "text/plain");
            Err(Box::new(answer(active, entry, status, body, location, kind)))
        }
        // As Envoy, where such a route names the empty cluster.
        Action::NonForwarding => {
            stats.no_cluster.inc();
            Err(Box::new(LocalReply::new(503, "", "cluster_not_found").flag(ResponseFlags::NO_CLUSTER_FOUND)))
        }
        Action::Forward(forward) => forward::forward(active, streams, entry, forward).await,
    }
}

/// A reply that the route itself gives. Its headers come before those of the body, as in `sendLocalReply`.
fn answer(
    active: &Active,
    entry: &RouteEntry,
    status: u16,
    body: Bytes,
    location: Option<String>,
    content_type: Option<&str>,
) -> LocalReply {
    let mut head = ResponseHead::new(StatusCode::from_u16(status).unwrap_or(StatusCode::OK));
    if let Some(location) = location.and_then(|l| HeaderValue::try_from(l).ok()) {
        head.headers.insert(header::LOCATION, location);
    }
    if let Some(kind) = content_type.and_then(|k| HeaderValue::from_str(k).ok()) {
        head.headers.insert(header::CONTENT_TYPE, kind);
    }
    entry.finalize_response(&mut head, &active.ex.request, &active.ex.info);
    let mut reply = LocalReply::new(status, body, "direct_response");
    reply.headers = head.headers;
    reply
}
