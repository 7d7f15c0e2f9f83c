//! Verified tokens, remembered per worker so that the same token is not verified again for every request. Least recently used ones
//! go first. Workers. Source: `JwtCacheConfig`.

use super::token::Jwt;
use nuncio_proto::envoy::extensions::filters::http::jwt_authn::v3::JwtCacheConfig;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, Weak};

/// Size and bounds of one provider's cache. Each worker has its own entries.
#[derive(Debug)]
pub struct TokenCache {
    entries: usize,
    max_token: usize,
    /// Tells caches apart; the workers forget one that is gone.
    identity: Arc<()>,
}

type Worker = Vec<(Weak<()>, Entries)>;

thread_local! {
    static WORKER: RefCell<Worker> = const { RefCell::new(Vec::new()) };
}

#[derive(Default)]
struct Entries {
    tokens: HashMap<Box<str>, Entry, foldhash::fast::RandomState>,
    clock: u64,
}

struct Entry {
    jwt: Rc<Jwt>,
    /// Which keys verified it: an entry is worth nothing once they changed.
    keys: u64,
    used: u64,
}

impl TokenCache {
    /// Envoy's defaults: 100 tokens of up to 4 KiB.
    pub fn new(config: JwtCacheConfig) -> Self {
        let or = |value: u32, default: u32| if value == 0 { default } else { value } as usize;
        Self { entries: or(config.jwt_cache_size, 100), max_token: or(config.jwt_max_token_size, 4096), identity: Arc::default() }
    }
    fn with<R>(&self, then: impl FnOnce(&mut Entries) -> R) -> Option<R> {
        WORKER.with(|worker| {
            let mut worker = worker.try_borrow_mut().ok()?;
            let mine = |(w, _): &(Weak<()>, Entries)| std::ptr::eq(w.as_ptr(), Arc::as_ptr(&self.identity));
            let at = worker.iter().position(mine).unwrap_or_else(|| {
                worker.retain(|(w, _)| w.strong_count() > 0);
                worker.push((Arc::downgrade(&self.identity), Entries::default()));
                worker.len() - 1
            });
            worker.get_mut(at).map(|(_, entries)| then(entries))
        })
    }
    /// The token, if the keys numbered `keys` verified it before.
    pub fn get(&self, token: &str, keys: u64) -> Option<Rc<Jwt>> {
        self.with(|entries| {
            entries.clock += 1;
            let entry = entries.tokens.get_mut(token)?;
            if entry.keys != keys {
                entries.tokens.remove(token);
                return None;
            }
            entry.used = entries.clock;
            Some(entry.jwt.clone())
        })?
    }
    /// Forgets a token.
    pub fn remove(&self, token: &str) {
        self.with(|entries| entries.tokens.remove(token));
    }
    /// Remembers that the keys numbered `keys` verified `token`.
    pub fn put(&self, token: &str, jwt: Rc<Jwt>, keys: u64) {
        if token.len() > self.max_token {
            return;
        }
        self.with(|entries| {
            if entries.tokens.len() >= self.entries {
                // A pass over all of them, but once per new token only, which costs a signature check anyway.
                let oldest = entries.tokens.iter().min_by_key(|(_, e)| e.used).map(|(t, _)| t.clone());
                oldest.and_then(|token| entries.tokens.remove(&token));
            }
            entries.clock += 1;
            let used = entries.clock;
            entries.tokens.insert(token.into(), Entry { jwt, keys, used });
        });
    }
}
