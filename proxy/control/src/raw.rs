//! Resources as they were received: what config_dump and `istioctl proxy-status` compare, unchanged byte for byte. Control thread.

use bytes::Bytes;
use nuncio_admin::{Resource, UpdateFailure, Version};
use nuncio_xds::{Refused, Resource as Received};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::time::SystemTime;

/// One state of a resource.
#[derive(Clone, Debug)]
pub struct Raw {
    pub value: Bytes,
    pub version: Arc<str>,
    pub updated: SystemTime,
}

/// One resource by name.
#[derive(Clone, Debug, Default)]
pub struct Entry {
    pub is_static: bool,
    pub active: Option<Raw>,
    pub warming: Option<Raw>,
    pub error: Option<Box<UpdateFailure>>,
}

impl Entry {
    /// The newest accepted bytes.
    pub fn latest(&self) -> Option<&Raw> {
        self.warming.as_ref().or(self.active.as_ref())
    }
}

/// The resources of one type.
#[derive(Debug)]
pub struct TypeStore {
    type_url: Arc<str>,
    /// Version of the last update that was accepted as a whole.
    pub version: Arc<str>,
    entries: BTreeMap<Arc<str>, Entry>,
}

/// How a pushed resource stands to what is held under its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The bootstrap has it; a push does not change it.
    Static,
    /// The same bytes were accepted last.
    Unchanged,
    /// It is new, other, or was refused.
    Changed,
}

impl TypeStore {
    /// An empty store.
    pub fn new(type_url: &str) -> Self {
        Self { type_url: type_url.into(), version: "".into(), entries: BTreeMap::new() }
    }
    /// The entry of `name`.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }
    /// Whether `bytes` are what was accepted last under `name`.
    pub fn is_unchanged(&self, name: &str, bytes: &[u8]) -> bool {
        self.get(name).and_then(Entry::latest).is_some_and(|raw| raw.value == bytes)
    }
    /// How a pushed resource stands to what is held under `name`.
    pub fn standing(&self, name: &str, bytes: &[u8]) -> Standing {
        match self.get(name) {
            Some(entry) if entry.is_static => Standing::Static,
            Some(entry) if entry.error.is_none() && self.is_unchanged(name, bytes) => Standing::Unchanged,
            _ => Standing::Changed,
        }
    }
    /// A resource of the bootstrap.
    pub fn put_static(&mut self, name: &str, value: Bytes) {
        let raw = Raw { value, version: "".into(), updated: SystemTime::now() };
        self.entries.insert(name.into(), Entry { is_static: true, active: Some(raw), ..Entry::default() });
    }
    /// A resource was accepted: it serves, or it waits while the one before serves.
    pub fn accept(&mut self, received: &Received, warming: bool) {
        let raw = Raw { value: received.value.clone(), version: received.version.clone(), updated: SystemTime::now() };
        let entry = self.entries.entry(received.name.clone()).or_default();
        entry.error = None;
        if warming {
            entry.warming = Some(raw);
        } else {
            entry.active = Some(raw);
            entry.warming = None;
        }
    }
    /// What waited serves now.
    pub fn activate(&mut self, name: &str) {
        if let Some(entry) = self.entries.get_mut(name)
            && let Some(raw) = entry.warming.take()
        {
            entry.active = Some(raw);
        }
    }
    /// Activates everything that waits and is not among `warming` (sorted).
    pub fn activate_except(&mut self, warming: &[Arc<str>]) {
        for (name, entry) in &mut self.entries {
            if entry.warming.is_some() && warming.binary_search(name).is_err() {
                entry.active = entry.warming.take();
            }
        }
    }
    /// The newest update of `name` was refused; what was there before stays.
    pub fn refuse(&mut self, refused: &Refused, value: Option<Bytes>, version: &str) {
        let entry = self.entries.entry(refused.name.clone()).or_default();
        entry.error = Some(Box::new(UpdateFailure {
            configuration: value.map(|v| (self.type_url.clone(), v)),
            at: SystemTime::now(),
            details: refused.reason.clone(),
            version_info: version.to_string(),
        }));
    }
    /// What waited failed after it was accepted (an address in use): it is shown as refused.
    pub fn fail_warming(&mut self, name: &str, details: String) {
        if let Some(entry) = self.entries.get_mut(name)
            && let Some(raw) = entry.warming.take()
        {
            entry.error = Some(Box::new(UpdateFailure {
                configuration: Some((self.type_url.clone(), raw.value)),
                at: SystemTime::now(),
                details,
                version_info: raw.version.to_string(),
            }));
        }
    }
    /// Forgets `name`, unless it is static.
    pub fn remove(&mut self, name: &str) {
        if self.entries.get(name).is_some_and(|e| !e.is_static) {
            self.entries.remove(name);
        }
    }
    /// Names of all entries that did not come from the bootstrap.
    pub fn dynamic(&self) -> impl Iterator<Item = &Arc<str>> {
        self.entries.iter().filter(|(_, e)| !e.is_static).map(|(name, _)| name)
    }
    /// The first resource after `last` in the order of names, for admin's cursors.
    pub fn after(&self, last: Option<&str>) -> Option<Resource> {
        let from = last.map_or(Bound::Unbounded, Bound::Excluded);
        let (name, entry) = self.entries.range::<str, _>((from, Bound::Unbounded)).next()?;
        let version = |raw: &Raw| Version {
            version_info: raw.version.clone(),
            last_updated: raw.updated,
            type_url: self.type_url.clone(),
            value: raw.value.clone(),
        };
        Some(Resource {
            name: name.clone(),
            is_static: entry.is_static,
            active: entry.active.as_ref().map(version),
            warming: entry.warming.as_ref().map(version),
            draining: None,
            error: entry.error.as_deref().cloned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(name: &str, value: &'static str) -> Received {
        Received { name: name.into(), version: "1".into(), value: Bytes::from_static(value.as_bytes()) }
    }

    #[test]
    fn the_old_one_shows_as_active_while_the_new_one_warms() {
        let mut store = TypeStore::new("t");
        store.accept(&received("a", "old"), false);
        store.accept(&received("a", "new"), true);
        assert!(store.is_unchanged("a", b"new") && !store.is_unchanged("a", b"old"));
        let shown = store.after(None).unwrap();
        assert_eq!((shown.active.unwrap().value, shown.warming.unwrap().value), (Bytes::from("old"), Bytes::from("new")));
        store.activate_except(&["a".into()]);
        assert!(store.get("a").unwrap().warming.is_some());
        store.activate_except(&[]);
        assert_eq!(store.get("a").unwrap().active.as_ref().unwrap().value, "new");
    }

    #[test]
    fn a_refusal_leaves_what_serves_and_goes_away_with_the_next_good_update() {
        let mut store = TypeStore::new("t");
        store.accept(&received("a", "good"), false);
        store.refuse(&Refused { name: "a".into(), reason: "why".into() }, Some(Bytes::from("bad")), "2");
        let shown = store.after(None).unwrap();
        assert_eq!((shown.active.unwrap().value.as_ref(), shown.error.unwrap().details.as_str()), (b"good".as_slice(), "why"));
        store.accept(&received("a", "better"), false);
        assert!(store.after(None).unwrap().error.is_none());
    }

    #[test]
    fn cursors_go_by_name_and_static_entries_stay() {
        let mut store = TypeStore::new("t");
        store.put_static("b", Bytes::new());
        store.accept(&received("a", "x"), false);
        store.remove("b");
        store.remove("a");
        assert_eq!(store.after(None).unwrap().name.as_ref(), "b");
        assert!(store.after(Some("b")).is_none() && store.dynamic().next().is_none());
    }
}
