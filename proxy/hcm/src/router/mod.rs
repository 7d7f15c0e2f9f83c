//! The router filter: the end of every chain. Answers redirects and direct responses, forwards everything else with
//! timeouts, retries and mirrors. Runs on the worker that owns the stream.
//! Source: `envoy/extensions/filters/http/router/v3/router.proto`, docs "Router" and "HTTP route management".

pub mod config;
mod attempt;
mod deadlines;
pub mod errors;
mod finish;
mod forward;
mod mirror;
mod request_body;
mod retry;
mod timeouts;
mod upstream_body;

pub use config::RouterConfig;
pub use upstream_body::UpstreamMeter;

use crate::service::entry;
use crate::stream::Active;
use http::{HeaderValue, StatusCode, header};
use nuncio_core::{Body, LocalReply, ResponseFlags, ResponseHead};
use nuncio_http::{Informational, StreamControl};
use nuncio_route::Action;

/// The client's side of a stream, apart from its exchange.
pub struct Streams {
    pub informational: Informational,
    pub control: StreamControl,
    /// Raw bytes of an accepted upgrade.
    pub upgrade: Option<Body>,
}

/// Answers the request. On `Ok` the exchange holds the response; `Err` is a local reply.
pub async fn run(active: &mut Active, streams: &mut Streams) -> Result<(), Box<LocalReply>> {
    let stats = &active.config.stats;
    stats.rq_total.inc();
    let Some(route) = active.ex.route.clone() else {
        stats.no_route.inc();
        return Err(Box::new(LocalReply::new(404, "", "route_not_found").flag(ResponseFlags::NO_ROUTE_FOUND)));
    };
    let Some(entry) = entry(&active.ex).map(|_| ()).and(route.as_any().downcast_ref::<nuncio_route::RouteEntry>()) else {
        return Err(Box::new(LocalReply::new(404, "", "route_not_found").flag(ResponseFlags::NO_ROUTE_FOUND)));
    };
    match entry.action() {
        Action::Redirect(redirect) => {
            stats.rq_redirect.inc();
            let location = redirect.location(&active.ex.request, &active.ex.info);
            let mut head = ResponseHead::new(StatusCode::from_u16(redirect.status()).unwrap_or(StatusCode::MOVED_PERMANENTLY));
            if let Ok(location) = HeaderValue::try_from(location) {
                head.headers.insert(header::LOCATION, location);
            }
            entry.finalize_response(&mut head, &active.ex.request, &active.ex.info);
            active.ex.info.details = Some("direct_response".into());
            active.ex.response_body = Body::Empty;
            active.ex.response = Some(head);
            Ok(())
        }
        Action::DirectResponse(direct) => {
            stats.rq_direct_response.inc();
            let body = direct.body(&active.ex.request, &active.ex.info);
            let mut head = ResponseHead::new(StatusCode::from_u16(direct.status()).unwrap_or(StatusCode::OK));
            if !body.is_empty() {
                head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
                if let Ok(kind) = HeaderValue::from_str(direct.content_type()) {
                    head.headers.insert(header::CONTENT_TYPE, kind);
                }
            }
            entry.finalize_response(&mut head, &active.ex.request, &active.ex.info);
            active.ex.info.details = Some("direct_response".into());
            active.ex.response_body = if body.is_empty() { Body::Empty } else { Body::Full(body) };
            active.ex.response = Some(head);
            Ok(())
        }
        Action::NonForwarding => Err(Box::new(LocalReply::new(404, "", "route_not_found").flag(ResponseFlags::NO_ROUTE_FOUND))),
        Action::Forward(forward) => forward::forward(active, streams, entry, forward).await,
    }
}
