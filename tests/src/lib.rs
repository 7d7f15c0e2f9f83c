//! What end-to-end tests and the demo are made of: the binary under test, upstreams that do as they are told, and a plain
//! HTTP client. Blocking and small on purpose: nothing of Nuncio's own code judges Nuncio.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod certs;
pub mod client;
pub mod config;
pub mod gateway;
pub mod load;
pub mod upstream;

pub use certs::Authority;
pub use client::{Connection, Reply, get, request};
pub use gateway::Gateway;
pub use load::Load;
pub use upstream::{Behaviour, Upstream};

use std::net::TcpListener;
use std::time::{Duration, Instant};

/// A loopback port that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Waits until `done`, looking every 20 ms; panics after 20 s, saying what was waited for.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < end, "{what} did not happen within 20 s");
        std::thread::sleep(Duration::from_millis(20));
    }
}
