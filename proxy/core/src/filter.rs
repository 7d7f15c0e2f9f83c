//! The HTTP filter trait. A filter is an immutable, compiled configuration shared by all workers; what it remembers of one
//! request lives in the exchange. Bodies are changed or watched by wrapping `request_body` / `response_body`.

use crate::views::PerFilterConfig;
use crate::{Exchange, Headers, LocalReply};
use futures_util::future::LocalBoxFuture;
use std::any::Any;
use std::fmt::Debug;
use std::sync::Arc;

/// What a filter wants to see. What nobody wants costs nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs(u8);

impl Needs {
    pub const REQUEST_HEADERS: Self = Self(1);
    pub const RESPONSE_HEADERS: Self = Self(2);
    pub const RESPONSE_TRAILERS: Self = Self(4);
    pub const COMPLETE: Self = Self(8);
    /// [`HttpFilter::hold_response`].
    pub const RESPONSE_BODY: Self = Self(16);
    /// Requests may be held back for long while their bodies are not read ([`HttpFilter::on_request`] that waits).
    pub const HOLDS_REQUESTS: Self = Self(32);
    /// Nothing: an empty placeholder whose work is all per route.
    pub const NONE: Self = Self(0);
    /// Both.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
    /// Whether any of `other` is wanted.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// What follows a request callback.
pub enum FilterAction<'a> {
    /// The next filter.
    Continue,
    /// Answer now; later filters and the upstream see nothing.
    Respond(Box<LocalReply>),
    /// Wait for the future, which then says how to go on.
    Await(LocalBoxFuture<'a, Outcome>),
}

/// How a filter that waited goes on.
pub enum Outcome {
    Continue,
    Respond(Box<LocalReply>),
}

/// One filter's view of an exchange.
pub struct FilterCx<'a> {
    pub ex: &'a mut Exchange,
    /// Name of this instance in the chain (`HttpFilter.name`); not unique.
    pub name: &'a str,
    /// Position in the chain: key of this instance's state.
    pub index: usize,
}

impl FilterCx<'_> {
    /// This filter's most specific per-route configuration, if it is a `T`.
    pub fn route_config<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        match self.ex.route.as_ref()?.filter_config(self.name)? {
            PerFilterConfig::Config(any) => any.clone().downcast().ok(),
            PerFilterConfig::Disabled => None,
        }
    }
    /// State that this filter left in this exchange.
    pub fn state<T: 'static>(&mut self) -> Option<&mut T> {
        self.ex.slot(self.index)
    }
    /// Leaves state for later callbacks.
    pub fn set_state<T: 'static>(&mut self, state: T) {
        self.ex.set_slot(self.index, state);
    }
}

/// A compiled HTTP filter.
pub trait HttpFilter: Debug + Send + Sync {
    /// What this configuration wants to see; asked once, when the chain is compiled.
    fn needs(&self) -> Needs;
    /// The request's headers are there (the body may still arrive). In chain order.
    fn on_request<'a>(&'a self, _cx: FilterCx<'a>) -> FilterAction<'a> {
        FilterAction::Continue
    }
    /// How many bytes of the body the upstream's response must come with when [`Self::on_response`] sees it; none if its head need not
    /// wait. The body is then whole, and cut at that length.
    fn hold_response(&self, _cx: FilterCx<'_>) -> Option<usize> {
        None
    }
    /// `ex.response` is there, from the upstream or from a local reply. In reverse order.
    fn on_response(&self, _cx: FilterCx<'_>) {}
    /// The response's trailers pass. In reverse order.
    fn on_response_trailers(&self, _cx: FilterCx<'_>, _trailers: &mut Headers) {}
    /// The stream is over, however it ended; just before the access logs.
    fn on_complete(&self, _cx: FilterCx<'_>) {}
}
