//! Header fields in the order in which they arrived (Envoy's HeaderMap), and compiled header names.
//! Pseudo-headers live in [`crate::RequestHead`] and [`crate::ResponseHead`]; `host` is `:authority`.

use crate::ByteStr;
use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use std::sync::Arc;

/// Ordered header fields. Lookups are linear: requests carry tens of fields, not thousands (limits are the codec's).
#[derive(Clone, Debug, Default)]
pub struct Headers {
    entries: Vec<(HeaderName, HeaderValue)>,
    original: Option<Arc<OriginalNames>>,
}

/// Field names as the peer wrote them, for Envoy's `preserve_case` formatter. Filled by the HTTP/1 codec when asked for.
#[derive(Clone, Debug, Default)]
pub struct OriginalNames {
    names: Vec<(HeaderName, Bytes)>,
    reason: Bytes,
}

impl OriginalNames {
    /// Remembers that `name` was written as `text`. The first writing of a name wins.
    pub fn add(&mut self, name: HeaderName, text: Bytes) {
        if self.get(&name).is_none() {
            self.names.push((name, text));
        }
    }
    /// How `name` was written.
    pub fn get(&self, name: &HeaderName) -> Option<&[u8]> {
        self.names.iter().find(|(n, _)| n == name).map(|(_, text)| text.as_ref())
    }
    /// Remembers the reason phrase of a response (`forward_reason_phrase`): no control characters but tabs.
    pub fn set_reason(&mut self, phrase: Bytes) {
        self.reason = phrase;
    }
    /// The reason phrase that the server wrote; empty if it is not to be passed on, or there was none.
    pub fn reason(&self) -> &[u8] {
        &self.reason
    }
}

impl Headers {
    /// No fields, nothing allocated.
    pub const fn new() -> Self {
        Self { entries: Vec::new(), original: None }
    }
    /// No fields, room for `n`.
    pub fn with_capacity(n: usize) -> Self {
        Self { entries: Vec::with_capacity(n), original: None }
    }
    /// Number of fields, counting repeated names each time.
    pub fn len(&self) -> usize {
        self.entries.len()
    }
    /// Whether there are no fields.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
    /// First value of `name`.
    pub fn get(&self, name: &HeaderName) -> Option<&HeaderValue> {
        self.entries.iter().find(|(n, _)| n == name).map(|(_, v)| v)
    }
    /// First value of `name` (lower case) as text; none if absent or not visible ASCII.
    pub fn get_str(&self, name: &HeaderName) -> Option<&str> {
        self.get(name).and_then(|v| v.to_str().ok())
    }
    /// Every value of `name`, in order.
    pub fn get_all<'a>(&'a self, name: &'a HeaderName) -> impl Iterator<Item = &'a HeaderValue> + 'a {
        self.entries.iter().filter(move |(n, _)| n == name).map(|(_, v)| v)
    }
    /// Whether `name` is present.
    pub fn contains(&self, name: &HeaderName) -> bool {
        self.get(name).is_some()
    }
    /// Adds a field at the end, keeping others of the same name.
    pub fn append(&mut self, name: HeaderName, value: HeaderValue) {
        self.entries.push((name, value));
    }
    /// Replaces every field of `name` by one, at the place of the first; at the end if there was none.
    pub fn insert(&mut self, name: HeaderName, value: HeaderValue) {
        match self.entries.iter().position(|(n, _)| *n == name) {
            Some(at) => {
                let mut index = 0;
                self.entries.retain(|(n, _)| {
                    let keep = index <= at || *n != name;
                    index += 1;
                    keep
                });
                if let Some(entry) = self.entries.get_mut(at) {
                    entry.1 = value;
                }
            }
            None => self.entries.push((name, value)),
        }
    }
    /// Removes every field of `name`; gives the first value.
    pub fn remove(&mut self, name: &HeaderName) -> Option<HeaderValue> {
        let at = self.entries.iter().position(|(n, _)| n == name)?;
        let first = self.entries.remove(at).1;
        self.entries.retain(|(n, _)| n != name);
        Some(first)
    }
    /// Keeps the fields for which `keep` is true.
    pub fn retain(&mut self, mut keep: impl FnMut(&HeaderName, &HeaderValue) -> bool) {
        self.entries.retain(|(n, v)| keep(n, v));
    }
    /// Every field, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&HeaderName, &HeaderValue)> + ExactSizeIterator {
        self.entries.iter().map(|(n, v)| (n, v))
    }
    /// Every value, in order, for change in place.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&HeaderName, &mut HeaderValue)> {
        self.entries.iter_mut().map(|(n, v)| (&*n, v))
    }
    /// Removes every field.
    pub fn clear(&mut self) {
        self.entries.clear();
    }
    /// Names as the peer wrote them, if the codec kept them.
    pub fn original_names(&self) -> Option<&OriginalNames> {
        self.original.as_deref()
    }
    /// Attaches the names as the peer wrote them.
    pub fn set_original_names(&mut self, names: Arc<OriginalNames>) {
        self.original = Some(names);
    }
    /// Sum of name and value lengths, as Envoy's `byteSize()`.
    pub fn byte_size(&self) -> usize {
        self.entries.iter().map(|(n, v)| n.as_str().len() + v.len()).sum()
    }
}

impl IntoIterator for Headers {
    type Item = (HeaderName, HeaderValue);
    type IntoIter = std::vec::IntoIter<(HeaderName, HeaderValue)>;
    fn into_iter(self) -> Self::IntoIter {
        self.entries.into_iter()
    }
}
impl FromIterator<(HeaderName, HeaderValue)> for Headers {
    fn from_iter<T: IntoIterator<Item = (HeaderName, HeaderValue)>>(iter: T) -> Self {
        Self { entries: iter.into_iter().collect(), original: None }
    }
}

/// A header name as configuration writes it, pseudo-headers included; `host` means `:authority`, as in Envoy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderKey {
    Method,
    Scheme,
    Authority,
    Path,
    Protocol,
    Status,
    Name(HeaderName),
}

impl HeaderKey {
    /// Parses `name` in any case; `None` if it is not a valid field name.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            ":method" => Self::Method,
            ":scheme" => Self::Scheme,
            ":authority" | "host" => Self::Authority,
            ":path" => Self::Path,
            ":protocol" => Self::Protocol,
            ":status" => Self::Status,
            other => Self::Name(HeaderName::from_bytes(other.as_bytes()).ok()?),
        })
    }
    /// The name as Envoy writes it (lower case, pseudo-headers with colon).
    pub fn as_str(&self) -> &str {
        match self {
            Self::Method => ":method",
            Self::Scheme => ":scheme",
            Self::Authority => ":authority",
            Self::Path => ":path",
            Self::Protocol => ":protocol",
            Self::Status => ":status",
            Self::Name(n) => n.as_str(),
        }
    }
}

/// A header value from text that may hold anything: bytes that HTTP forbids make it `None`.
pub fn value(text: impl Into<ByteStr>) -> Option<HeaderValue> {
    HeaderValue::from_maybe_shared(text.into().into_bytes()).ok()
}
