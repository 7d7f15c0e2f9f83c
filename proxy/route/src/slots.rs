//! The place of an RDS name. Listeners keep the slot; the table in it comes, changes and goes.

use crate::RouteTable;
use arc_swap::{ArcSwapOption, Guard};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The place of one route configuration.
#[derive(Debug)]
pub struct RouteSlot {
    /// `route_config_name`.
    pub name: Arc<str>,
    current: ArcSwapOption<RouteTable>,
}

impl RouteSlot {
    /// A slot with `table` in it, for a route table inside of a listener.
    pub fn fixed(table: Arc<RouteTable>) -> Arc<Self> {
        Arc::new(Self { name: table.name().clone(), current: ArcSwapOption::new(Some(table)) })
    }
    /// The table; none if it has not arrived or was removed.
    pub fn get(&self) -> Option<Arc<RouteTable>> {
        self.current.load_full()
    }
    /// The table without touching its reference count.
    pub fn load(&self) -> Guard<Option<Arc<RouteTable>>> {
        self.current.load()
    }
    /// Puts a table into the slot, or takes it out. Control thread only.
    pub fn set(&self, table: Option<Arc<RouteTable>>) {
        self.current.store(table);
    }
}

/// Every slot by RDS name.
#[derive(Debug, Default)]
pub struct RouteSlots {
    slots: Mutex<HashMap<Arc<str>, Arc<RouteSlot>, foldhash::fast::RandomState>>,
}

impl RouteSlots {
    /// The slot of `name`, made if there is none.
    pub fn slot(&self, name: &str) -> Arc<RouteSlot> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.get(name) {
            return slot.clone();
        }
        let name: Arc<str> = name.into();
        let slot = Arc::new(RouteSlot { name: name.clone(), current: ArcSwapOption::empty() });
        slots.insert(name, slot.clone());
        slot
    }
    /// Every slot, by name.
    pub fn all(&self) -> Vec<Arc<RouteSlot>> {
        let mut all: Vec<_> = self.slots.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }
    /// Forgets slots without a table that nothing else holds.
    pub fn sweep(&self) {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, slot| Arc::strong_count(slot) > 1 || slot.load().is_some());
    }
}
