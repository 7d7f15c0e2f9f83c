//! Session resumption on the server: tickets, and a bounded cache for clients of TLS 1.2 that know no tickets.
//! Tickets are bound to the context that made them (its configuration, certificates and CAs), so that one from before a rotation, or
//! from another listener that shares the keys, leads to a full handshake and never around the verification.

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::rand;
use rustls::server::{ProducesTickets, StoresServerSessions};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const NAME: usize = 16;
/// Sessions of ticketless clients kept per context.
const MAX_SESSIONS: usize = 1024;

/// `DownstreamTlsContext.session_ticket_keys`: 80 bytes each (name, HMAC key, AES key); the first one encrypts, all decrypt.
#[derive(Clone)]
pub struct TicketKeys(pub(crate) Vec<[u8; 80]>);
impl std::fmt::Debug for TicketKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TicketKeys({})", self.0.len())
    }
}

struct Key {
    name: [u8; NAME],
    aead: RandomizedNonceKey,
}
impl Key {
    fn new(name: [u8; NAME], key: &[u8]) -> Option<Self> {
        Some(Self { name, aead: RandomizedNonceKey::new(&AES_256_GCM, key).ok()? })
    }
    fn random() -> Option<Self> {
        let (mut name, mut key) = ([0; NAME], [0; 32]);
        rand::fill(&mut name).ok()?;
        rand::fill(&mut key).ok()?;
        Self::new(name, &key)
    }
}

struct Ring {
    keys: Vec<Key>,
    /// When our own keys are replaced; none for configured keys.
    rotate: Option<Instant>,
}

/// A ticketer.
pub(crate) struct Tickets {
    ring: Mutex<Ring>,
    context: [u8; 32],
    lifetime: u32,
}
impl std::fmt::Debug for Tickets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tickets")
    }
}

impl Tickets {
    /// A ticketer of the context with digest `context`, with `configured` keys or its own. Errors: no randomness.
    pub(crate) fn new(configured: Option<&TicketKeys>, context: [u8; 32], lifetime: Duration) -> Option<Self> {
        let keys = match configured {
            Some(configured) => configured.0.iter().map(parse).collect::<Option<Vec<_>>>()?,
            None => vec![Key::random()?],
        };
        let rotate = configured.is_none().then(|| Instant::now() + lifetime);
        let lifetime = u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX);
        Some(Self { ring: Mutex::new(Ring { keys, rotate }), context, lifetime })
    }
}

fn parse(raw: &[u8; 80]) -> Option<Key> {
    let (name, rest) = raw.split_first_chunk::<NAME>()?;
    Key::new(*name, rest.get(32..)?)
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }
    fn lifetime(&self) -> u32 {
        self.lifetime
    }
    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        if ring.rotate.is_some_and(|at| Instant::now() >= at) {
            // Two generations: a ticket stays good for at least its lifetime.
            ring.keys.insert(0, Key::random()?);
            ring.keys.truncate(2);
            ring.rotate = Some(Instant::now() + Duration::from_secs(u64::from(self.lifetime)));
        }
        let key = ring.keys.first()?;
        let mut sealed = plain.to_vec();
        let nonce = key.aead.seal_in_place_append_tag(Aad::from(self.context), &mut sealed).ok()?;
        let mut ticket = Vec::with_capacity(NAME + NONCE_LEN + sealed.len());
        ticket.extend_from_slice(&key.name);
        ticket.extend_from_slice(nonce.as_ref());
        ticket.extend_from_slice(&sealed);
        Some(ticket)
    }
    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (name, rest) = ticket.split_first_chunk::<NAME>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let key = ring.keys.iter().find(|k| k.name == *name)?;
        let mut plain = sealed.to_vec();
        let len = key.aead.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(self.context), &mut plain).ok()?.len();
        plain.truncate(len);
        Some(plain)
    }
}

/// Sessions by id; grows with use, forgets at random when full.
#[derive(Debug, Default)]
pub(crate) struct Sessions(Mutex<HashMap<Vec<u8>, Vec<u8>>>);

impl StoresServerSessions for Sessions {
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MAX_SESSIONS
            && let Some(victim) = all.keys().next().cloned()
        {
            all.remove(&victim);
        }
        all.insert(key, value);
        true
    }
    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }
    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key)
    }
    fn can_cache(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tickets_open_only_in_their_context() {
        let keys = TicketKeys(vec![[1; 80], [2; 80]]);
        let here = Tickets::new(Some(&keys), [1; 32], Duration::from_secs(60)).unwrap();
        let twin = Tickets::new(Some(&TicketKeys(vec![[2; 80], [1; 80]])), [1; 32], Duration::from_secs(60)).unwrap();
        let other = Tickets::new(Some(&keys), [2; 32], Duration::from_secs(60)).unwrap();
        let ticket = here.encrypt(b"session").unwrap();
        assert_eq!(twin.decrypt(&ticket).as_deref(), Some(&b"session"[..]));
        assert_eq!(other.decrypt(&ticket), None);
        let mut bent = ticket.clone();
        *bent.last_mut().unwrap() ^= 1;
        assert_eq!(here.decrypt(&bent), None);
        for len in 0..ticket.len() {
            assert_eq!(here.decrypt(&ticket[..len]), None);
        }
    }

    #[test]
    fn own_keys_roll_and_keep_one_generation() {
        let tickets = Tickets::new(None, [0; 32], Duration::ZERO).unwrap();
        let first = tickets.encrypt(b"1").unwrap();
        assert!(tickets.decrypt(&first).is_some());
        tickets.encrypt(b"2").unwrap();
        assert!(tickets.decrypt(&first).is_some());
        tickets.encrypt(b"3").unwrap();
        assert!(tickets.decrypt(&first).is_none());
    }

    #[test]
    fn the_cache_is_bounded() {
        let sessions = Sessions::default();
        for i in 0..(MAX_SESSIONS as u32 + 100) {
            sessions.put(i.to_be_bytes().to_vec(), vec![0]);
        }
        assert_eq!(sessions.0.lock().unwrap().len(), MAX_SESSIONS);
    }
}
