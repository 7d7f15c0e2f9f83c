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
    /// The service was asked over HTTP: headers of a denial frame the service's own response.
    pub over_http: bool,
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
    /// Whether the request gets header fields or longer values.
    pub fn adds(&self) -> bool {
        !(self.set.is_empty() && self.add.is_empty() && self.append.is_empty() && self.query_set.is_empty())
    }
    /// Whether the request changes in a way that routing may depend on: in one of the headers `listed` (lower case), or in any if none
    /// is listed.
    pub fn changes_routing(&self, listed: &[String]) -> bool {
        let counts = |name: &str| listed.is_empty() || listed.iter().any(|l| l.eq_ignore_ascii_case(name));
        self.set.iter().chain(&self.append).any(|(name, _)| counts(name))
            || self.remove.iter().any(|name| counts(name))
            || !self.query_set.is_empty()
            || !self.query_remove.is_empty()
    }
    /// Headers of the service's response, as it sent them.
    pub fn sent_headers(&mut self) -> Vec<Pair> {
        let status = self.over_http.then(|| (":status".to_string(), Bytes::from(self.code.to_string())));
        status.into_iter().chain(std::mem::take(&mut self.set)).collect()
    }
    /// Leaves framing to the response that the client gets.
    pub fn reframe(&mut self) {
        if !self.over_http {
            return;
        }
        let (empty, length) = (self.body.is_empty(), self.body.len());
        self.set.retain(|(name, _)| !(name == "transfer-encoding" || name == "connection" || (name == "content-length" && empty)));
        for (_, value) in self.set.iter_mut().filter(|(name, _)| name == "content-length") {
            *value = length.to_string().into();
        }
    }
}
