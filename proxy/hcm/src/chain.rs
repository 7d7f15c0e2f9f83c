//! The HTTP filter chain of one connection manager: compiled entries and how they run over an exchange.
//! Compiled on the control thread; run on workers. Filters that need nothing of a phase are not called in it.

use bytes::BytesMut;
use nuncio_core::LocalReply;
use nuncio_core::exchange::Exchange;
use nuncio_core::filter::{FilterAction, FilterCx, HttpFilter, Needs, Outcome};
use nuncio_core::views::PerFilterConfig;
use nuncio_core::{Body, Frame, Headers};
use std::sync::Arc;

/// One filter of the chain.
#[derive(Debug)]
pub struct FilterEntry {
    /// `HttpFilter.name`; per-route configuration is looked up by it.
    pub name: Arc<str>,
    pub filter: Arc<dyn HttpFilter>,
    pub needs: Needs,
    /// `HttpFilter.disabled`: runs only where a route enables it.
    pub disabled: bool,
}

/// The filters before the terminal router, in chain order.
#[derive(Debug, Default)]
pub struct FilterChain {
    entries: Box<[FilterEntry]>,
    needs: Needs,
}

impl FilterChain {
    /// A chain of `entries`.
    pub fn new(entries: Vec<FilterEntry>) -> Self {
        let needs = entries.iter().fold(Needs::NONE, |all, e| all.and(e.needs));
        Self { entries: entries.into(), needs }
    }
    /// Whether any filter wants this phase.
    pub fn needs(&self, phase: Needs) -> bool {
        self.needs.has(phase)
    }
    /// Every filter.
    pub fn entries(&self) -> &[FilterEntry] {
        &self.entries
    }

    /// Runs the request phase from the first filter on. `Some` is a local reply that ends it.
    /// `reroute` is called when a filter cleared the route.
    pub async fn on_request(&self, ex: &mut Exchange, mut reroute: impl FnMut(&mut Exchange)) -> Option<Box<LocalReply>> {
        if !self.needs.has(Needs::REQUEST_HEADERS) {
            return None;
        }
        for (index, entry) in self.entries.iter().enumerate() {
            if !entry.needs.has(Needs::REQUEST_HEADERS) || entry.is_off(ex) {
                continue;
            }
            let outcome = match entry.filter.on_request(FilterCx { ex, name: &entry.name, index }) {
                FilterAction::Continue => Outcome::Continue,
                FilterAction::Respond(reply) => Outcome::Respond(reply),
                FilterAction::Await(wait) => wait.await,
            };
            if let Outcome::Respond(reply) = outcome {
                return Some(reply);
            }
            if std::mem::take(&mut ex.route_cleared) {
                reroute(ex);
            }
        }
        None
    }

    /// Waits for the body of the upstream's response, where a filter wants to see it with the head.
    pub async fn hold_response(&self, ex: &mut Exchange) {
        let mut wanted = None;
        for (index, entry) in self.entries.iter().enumerate() {
            if entry.needs.has(Needs::RESPONSE_BODY) && !entry.is_off(ex) {
                wanted = wanted.max(entry.filter.hold_response(FilterCx { ex, name: &entry.name, index }));
            }
        }
        let Some(limit) = wanted else { return };
        let mut body = std::mem::take(&mut ex.response_body);
        let mut held = BytesMut::new();
        while held.len() < limit {
            // What broke off, or has trailers, is told as far as it came.
            let Some(Ok(Frame::Data(data))) = body.frame().await else { break };
            held.extend_from_slice(data.get(..data.len().min(limit - held.len())).unwrap_or_default());
        }
        ex.response_body = if held.is_empty() { Body::Empty } else { Body::Full(held.freeze()) };
    }

    /// Runs the response phase, last filter first.
    pub fn on_response(&self, ex: &mut Exchange) {
        self.backwards(ex, Needs::RESPONSE_HEADERS, |filter, cx| filter.on_response(cx));
    }
    /// Shows the response's trailers, last filter first.
    pub fn on_response_trailers(&self, ex: &mut Exchange, trailers: &mut Headers) {
        self.backwards(ex, Needs::RESPONSE_TRAILERS, |filter, cx| filter.on_response_trailers(cx, trailers));
    }
    /// Tells that the stream is over.
    pub fn on_complete(&self, ex: &mut Exchange) {
        self.backwards(ex, Needs::COMPLETE, |filter, cx| filter.on_complete(cx));
    }

    fn backwards(&self, ex: &mut Exchange, phase: Needs, mut call: impl FnMut(&dyn HttpFilter, FilterCx<'_>)) {
        if !self.needs.has(phase) {
            return;
        }
        for (index, entry) in self.entries.iter().enumerate().rev() {
            if entry.needs.has(phase) && !entry.is_off(ex) {
                call(entry.filter.as_ref(), FilterCx { ex, name: &entry.name, index });
            }
        }
    }
}

impl FilterEntry {
    /// Whether the route switches this filter off (or nothing switches a disabled one on).
    fn is_off(&self, ex: &Exchange) -> bool {
        match ex.route.as_ref().and_then(|r| r.filter_config(&self.name)) {
            None => self.disabled,
            Some(PerFilterConfig::Disabled) => true,
            Some(PerFilterConfig::Config(_)) => false,
        }
    }
}
