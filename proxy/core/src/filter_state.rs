//! Filter state: named objects that filters leave for other filters, formatters and the upstream connection.
//! Source: Envoy's `envoy/stream_info/filter_state.h`.

use std::{any::Any, collections::BTreeMap, fmt, sync::Arc};

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

/// Named objects; empty costs nothing.
#[derive(Clone, Default)]
pub struct FilterState {
    entries: Option<Box<BTreeMap<Arc<str>, Arc<dyn StateObject>>>>,
}

impl FilterState {
    /// Sets `name`, replacing what was there.
    pub fn set(&mut self, name: impl Into<Arc<str>>, object: Arc<dyn StateObject>) {
        self.entries.get_or_insert_default().insert(name.into(), object);
    }
    /// The object called `name`.
    pub fn get(&self, name: &str) -> Option<&Arc<dyn StateObject>> {
        self.entries.as_ref()?.get(name)
    }
    /// The object called `name`, if it is a `T`.
    pub fn get_as<T: 'static>(&self, name: &str) -> Option<&T> {
        self.get(name)?.as_any().downcast_ref()
    }
    /// Every name and object.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<dyn StateObject>)> {
        self.entries.iter().flat_map(|m| m.iter())
    }
}
impl fmt::Debug for FilterState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(|(k, _)| k)).finish()
    }
}
