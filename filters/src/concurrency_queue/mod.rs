//! nuncio.filters.http.concurrency_queue, of our own: a bound on the requests in progress, and a fair line of those that wait for
//! a place, each with a deadline. A stall of an upstream then costs late answers and little memory: a waiting request's body
//! stays with its sender. Runs on workers; source and contract: `proto/nuncio/filters/http/concurrency_queue/v1/`.

mod config;
mod queue;

use crate::config::decode;
use config::Config;
use nuncio_core::diag::At;
use nuncio_core::filter::{FilterAction, FilterCx, HttpFilter, Needs, Outcome};
use nuncio_core::registry::{FactoryCx, HttpFilterFactory};
use nuncio_core::{LocalReply, ResponseFlags};
use nuncio_proto::nuncio::filters::http::concurrency_queue::v1::ConcurrencyQueue;
use queue::Asked;
use std::any::Any;
use std::sync::Arc;
use tokio::time::Instant;

/// Factory of `nuncio.filters.http.concurrency_queue.v1.ConcurrencyQueue`, on listeners and per route.
#[derive(Debug)]
pub struct Factory;

impl HttpFilterFactory for Factory {
    fn name(&self) -> &'static str {
        "nuncio.filters.http.concurrency_queue"
    }
    fn types(&self) -> &'static [&'static str] {
        &["nuncio.filters.http.concurrency_queue.v1.ConcurrencyQueue"]
    }
    fn route_types(&self) -> &'static [&'static str] {
        self.types()
    }
    fn compile(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn HttpFilter>> {
        let config: ConcurrencyQueue = decode(config, at, cx.report)?;
        Some(Arc::new(Filter(Arc::new(Config::compile(&config, at, cx)?))))
    }
    fn compile_route(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn Any + Send + Sync>> {
        let config: ConcurrencyQueue = decode(config, at, cx.report)?;
        Some(Arc::new(if config.disabled { Route(None) } else { Route(Some(Arc::new(Config::compile(&config, at, cx)?))) }))
    }
}

#[derive(Debug)]
struct Filter(Arc<Config>);

/// A route's own queue, or none.
#[derive(Debug)]
struct Route(Option<Arc<Config>>);

impl HttpFilter for Filter {
    fn needs(&self) -> Needs {
        Needs::REQUEST_HEADERS.and(Needs::HOLDS_REQUESTS)
    }
    fn on_request<'a>(&'a self, mut cx: FilterCx<'a>) -> FilterAction<'a> {
        let own = cx.route_config::<Route>();
        let Some(config) = own.map_or_else(|| Some(self.0.clone()), |route| route.0.clone()) else { return FilterAction::Continue };
        let consumer = config.consumer(cx.ex);
        let mut waiting = match config.queue(cx.ex, &consumer).enter(&consumer) {
            Asked::Admitted(place) => {
                // Held by the stream until it is over.
                cx.set_state(place);
                return FilterAction::Continue;
            }
            Asked::Full => return FilterAction::Respond(refusal(&config, "concurrency_queue_full")),
            Asked::Wait(waiting) => waiting,
        };
        drop(consumer);
        FilterAction::Await(Box::pin(async move {
            let began = Instant::now();
            let turn = tokio::time::timeout(config.max_wait, &mut waiting).await;
            config.wait_ms.record(u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX));
            match turn {
                Ok(Some(place)) => {
                    cx.set_state(place);
                    Outcome::Continue
                }
                Ok(None) | Err(_) => {
                    waiting.timed_out();
                    Outcome::Respond(refusal(&config, "concurrency_queue_timeout"))
                }
            }
        }))
    }
}

fn refusal(config: &Config, details: &'static str) -> Box<LocalReply> {
    let body = if details == "concurrency_queue_full" { "too many requests are waiting" } else { "waited too long for a turn" };
    Box::new(LocalReply::new(config.status, body, details).flag(ResponseFlags::CONCURRENCY_QUEUE))
}

#[cfg(test)]
mod tests;
