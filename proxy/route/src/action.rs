//! What a route does. Source: Route.action.

use crate::{DirectResponse, Forward, Redirect};

/// What a route does.
#[derive(Debug)]
pub enum Action {
    /// Send the request to a cluster.
    Forward(Box<Forward>),
    /// Answer with a redirect.
    Redirect(Redirect),
    /// Answer with a configured response.
    DirectResponse(DirectResponse),
    /// Some filter answers; the router must not see the request.
    NonForwarding,
}
