//! One request and its response on their way through the proxy. Made by the connection manager, seen by every filter,
//! dropped at the true end of the stream, when the access log and the stats are written. Belongs to one worker.

use crate::filter_state::StateObject;
use crate::views::{ClusterView, RouteView};
use crate::{Body, ByteStr, HeaderLimits, Headers, LocalReply, RequestHead, ResponseHead, StreamInfo};
use nuncio_stats::Counter;
use std::any::Any;
use std::fmt;
use std::sync::Arc;

/// A host that a filter (stateful_session) wants the request to go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamOverride {
    /// `ip:port`, or the path of a pipe.
    pub address: String,
    /// Without this host the request fails.
    pub strict: bool,
    /// Status of that failure, 503 if the filter does not care.
    pub status: u16,
}

/// What a filter wants to be asked in place of a response (custom_response's redirects). Source: Envoy's `recreateStream`.
pub struct Again {
    pub scheme: ByteStr,
    pub authority: ByteStr,
    pub path: ByteStr,
    /// Adds to the request's headers; sees its new target.
    pub change: Box<dyn FnOnce(&mut Exchange)>,
    /// Counts targets that no route matches; the response then goes to the client.
    pub no_route: Counter,
    /// What the filter will find in filter state when the answer comes.
    pub state: (&'static str, Arc<dyn StateObject>),
}

/// One request and its response.
pub struct Exchange {
    pub request: RequestHead,
    /// Limits of its header fields.
    pub header_limits: HeaderLimits,
    /// Taken by the router when it sends the request; a filter may read and put back, or wrap, before that.
    pub request_body: Body,
    /// Present from the first response header on.
    pub response: Option<ResponseHead>,
    /// A filter may wrap it in `on_response_headers`.
    pub response_body: Body,
    /// Kept for logs and gRPC status once they passed.
    pub response_trailers: Option<Box<Headers>>,
    pub info: StreamInfo,
    /// The matched route; none if nothing matched.
    pub route: Option<Arc<dyn RouteView>>,
    /// The cluster of the route, if it is known.
    pub cluster: Option<Arc<dyn ClusterView>>,
    /// A filter's answer in place of `response`: the connection manager makes it the response once all filters have seen the old one.
    pub replacement: Option<Box<LocalReply>>,
    /// A filter's request in place of `response`, from its response callback: the connection manager begins the stream anew with it, by
    /// GET and without a body.
    pub again: Option<Box<Again>>,
    /// Set by a filter that changed what routing depends on; the connection manager matches again before the next filter.
    pub route_cleared: bool,
    /// The stream's random number: weighted clusters and fractions decide by it, so that matching again decides the same.
    pub random: u64,
    /// The host that the first attempt goes to, if a filter wants a certain one. Source: Envoy's `setUpstreamOverrideHost`.
    pub override_host: Option<Box<UpstreamOverride>>,
    slots: Vec<Option<Box<dyn Any>>>,
}

impl Exchange {
    /// An exchange at its beginning.
    pub fn new(request: RequestHead, request_body: Body, info: StreamInfo) -> Self {
        Self {
            request,
            header_limits: HeaderLimits::default(),
            request_body,
            response: None,
            response_body: Body::Empty,
            response_trailers: None,
            info,
            route: None,
            cluster: None,
            replacement: None,
            again: None,
            route_cleared: false,
            random: fastrand::u64(..),
            override_host: None,
            slots: Vec::new(),
        }
    }
    /// State that the filter at `index` of the chain left earlier.
    pub fn slot<T: 'static>(&mut self, index: usize) -> Option<&mut T> {
        self.slots.get_mut(index)?.as_mut()?.downcast_mut()
    }
    /// Leaves state for later callbacks of the filter at `index`.
    pub fn set_slot<T: 'static>(&mut self, index: usize, state: T) {
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, || None);
        }
        if let Some(slot) = self.slots.get_mut(index) {
            *slot = Some(Box::new(state));
        }
    }
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange").field("request", &self.request).field("response", &self.response).finish_non_exhaustive()
    }
}
