//! What an authorization service says of a request, whether it said it over gRPC or HTTP. Made and used on a worker.

use bytes::Bytes;
use nuncio_proto::Struct;

/// A header as the service gave it: not checked yet.
pub type Pair = (String, Bytes);

/// What becomes of the request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Status {
    Ok,
    Denied,
    /// The service failed, or could not be asked.
    #[default]
    Error,
}

/// An answer. Source: Envoy's `Filters::Common::ExtAuthz::Response`.
#[derive(Debug, Default)]
pub struct Verdict {
    pub status: Status,
    /// Status, headers and body of the response to the client, where the service wants a certain one. 0: the filter's own.
    pub code: u16,
    pub body: Bytes,
    /// Request headers (of a denial or an error: response headers) to set.
    pub set: Vec<Pair>,
    pub add: Vec<Pair>,
    /// Appended to what the request has, if it has the header.
    pub append: Vec<Pair>,
    pub remove: Vec<String>,
    pub response: ResponseHeaders,
    pub query_set: Vec<(String, String)>,
    pub query_remove: Vec<String>,
    pub metadata: Struct,
    /// A header had an append action that does not exist.
    pub invalid_action: bool,
    /// An error for which the service chose the response itself.
    pub custom_error: bool,
}

/// Headers that an allowed request's response gets, by what is done if the header is there already.
#[derive(Debug, Default)]
pub struct ResponseHeaders {
    pub add: Vec<Pair>,
    pub set: Vec<Pair>,
    pub add_if_absent: Vec<Pair>,
    pub overwrite_if_exists: Vec<Pair>,
}

impl ResponseHeaders {
    /// Every header.
    pub fn all(&self) -> impl Iterator<Item = &Pair> {
        self.add.iter().chain(&self.set).chain(&self.add_if_absent).chain(&self.overwrite_if_exists)
    }
    pub fn is_empty(&self) -> bool {
        self.all().next().is_none()
    }
}

impl Verdict {
    /// The service could not be asked.
    pub fn error() -> Self {
        Self::default()
    }
    /// Whether the request changes in a way that routing may depend on.
    pub fn changes_routing(&self) -> bool {
        !(self.set.is_empty()
            && self.append.is_empty()
            && self.remove.is_empty()
            && self.query_set.is_empty()
            && self.query_remove.is_empty())
    }
}
