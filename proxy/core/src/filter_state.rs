//! Filter state: named objects that filters leave for other filters, formatters and the upstream connection.
//! Source: Envoy's `envoy/stream_info/filter_state.h`.

use crate::ByteStr;
use std::{any::Any, borrow::Cow, fmt, sync::Arc};

/// An object of filter state.
pub trait StateObject: Any + Send + Sync {
    /// `%FILTER_STATE(key:PLAIN)%`; none if the object has no string form.
    fn as_string(&self) -> Option<String> {
        None
    }
    /// `%FILTER_STATE(key:FIELD:name)%`.
    fn field(&self, _name: &str) -> Option<String> {
        None
    }
    /// JSON form, the default of `%FILTER_STATE(key)%`; none if the object has no such form.
    fn as_json(&self) -> Option<String> {
        None
    }
    /// For downcasts.
    fn as_any(&self) -> &dyn Any;
}

/// A plain string, what `set_filter_state` makes.
#[derive(Clone, Debug)]
pub struct StringState(pub String);
impl StateObject for StringState {
    fn as_string(&self) -> Option<String> {
        Some(self.0.clone())
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Key of [`ApplicationProtocols`].
pub const APPLICATION_PROTOCOLS: &str = "envoy.network.application_protocols";

/// ALPN to offer on the upstream connection instead of what the transport socket says. Set by istio.alpn; read by
/// nuncio-upstream, which must also keep connections of different offers in different pools.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ApplicationProtocols(pub Vec<ByteStr>);
impl StateObject for ApplicationProtocols {
    fn as_string(&self) -> Option<String> {
        let all: Vec<&str> = self.0.iter().map(ByteStr::as_str).collect();
        Some(all.join(","))
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Named objects; empty costs nothing, and known names (`&'static str`) are never copied. A stream has a handful, so
/// lookups are linear.
#[derive(Clone, Default)]
pub struct FilterState {
    entries: Vec<(Cow<'static, str>, Arc<dyn StateObject>)>,
}

impl FilterState {
    /// Sets `name`, replacing what was there.
    pub fn set(&mut self, name: impl Into<Cow<'static, str>>, object: Arc<dyn StateObject>) {
        let name = name.into();
        match self.entries.iter_mut().find(|(n, _)| *n == name) {
            Some((_, existing)) => *existing = object,
            None => self.entries.push((name, object)),
        }
    }
    /// Removes `name`.
    pub fn remove(&mut self, name: &str) {
        self.entries.retain(|(n, _)| n != name);
    }
    /// The object called `name`.
    pub fn get(&self, name: &str) -> Option<&Arc<dyn StateObject>> {
        self.entries.iter().find(|(n, _)| n == name).map(|(_, object)| object)
    }
    /// The object called `name`, if it is a `T`.
    pub fn get_as<T: 'static>(&self, name: &str) -> Option<&T> {
        self.get(name)?.as_any().downcast_ref()
    }
    /// Every name and object, in the order in which they were first set.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Arc<dyn StateObject>)> {
        self.entries.iter().map(|(n, o)| (n.as_ref(), o))
    }
}
impl fmt::Debug for FilterState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(|(k, _)| k)).finish()
    }
}

/// What the listener filter `envoy.filters.listener.original_src` leaves in the connection's filter state: upstream connections are
/// bound to the downstream peer's address (transparently), with this SO_MARK if it is not 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OriginalSource {
    pub address: std::net::IpAddr,
    pub mark: u32,
}
impl OriginalSource {
    /// Its name in the filter state.
    pub const KEY: &'static str = "envoy.filters.listener.original_src";
}
impl StateObject for OriginalSource {
    fn as_string(&self) -> Option<String> {
        Some(self.address.to_string())
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}
