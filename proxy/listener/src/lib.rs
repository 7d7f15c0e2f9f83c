//! Listeners: sockets, listener filters, filter-chain match, updates without loss, drain, and the worker threads.
//!
//! The control thread owns the [`ListenerManager`]; it compiles `envoy.config.listener.v3.Listener` into immutable objects, binds
//! sockets and tells the workers. Each worker accepts on its own sockets, looks at the first bytes (listener filters), chooses a
//! filter chain, does the TLS handshake and gives the connection to the chain's [`Terminal`].

mod chain_match;
mod config;
mod connection;
pub mod drain;
pub mod filters;
mod listener_filter;
pub mod manager;
pub mod proxy_header;
mod slot;
mod socket;
mod stats;
mod sys;
pub mod terminal;
pub mod worker;

pub use config::CompiledListener;
pub use drain::DrainWatch;
pub use filters::{Filters, Passed};
pub use manager::{DrainOptions, ListenerManager, ListenerManagerCx, ListenerStatus};
pub use terminal::{ChainCx, Connection, Terminal, TerminalFactory, TerminalRegistry};
pub use worker::{WorkerHandle, Workers, spawn_workers};
