//! State that outlives a configuration update: whoever is compiled for the same thing gets the same state, as long as somebody living has
//! it. The configuration that is replaced lives until the new one serves, so that nothing is forgotten in between. Control thread.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// States by what they are for.
#[derive(Debug)]
pub struct Shared<T>(Mutex<Option<HashMap<String, Weak<T>>>>);

impl<T> Shared<T> {
    /// None yet.
    pub const fn new() -> Self {
        Self(Mutex::new(None))
    }
    /// The state for `what`, made if nobody has it.
    pub fn get(&self, what: String, make: impl FnOnce() -> T) -> Arc<T> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all = all.get_or_insert_default();
        if let Some(living) = all.get(&what).and_then(Weak::upgrade) {
            return living;
        }
        all.retain(|_, state| state.strong_count() > 0);
        let state = Arc::new(make());
        all.insert(what, Arc::downgrade(&state));
        state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_as_long_as_somebody_has_it() {
        static ALL: Shared<u32> = Shared::new();
        let first = ALL.get("a".into(), || 1);
        assert_eq!((*ALL.get("a".into(), || 2), *ALL.get("b".into(), || 3)), (1, 3));
        drop(first);
        assert_eq!(*ALL.get("a".into(), || 4), 4);
    }
}
