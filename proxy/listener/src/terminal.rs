//! The seam to terminal network filters (http_connection_manager, tcp_proxy, ...): what they implement and what they are given.

use crate::drain::DrainWatch;
use bytes::BytesMut;
use futures_util::future::LocalBoxFuture;
use nuncio_core::ConnectionInfo;
use nuncio_core::diag::At;
use nuncio_core::network::NetworkFilter;
use nuncio_core::registry::FactoryCx;
use nuncio_proto::envoy::config::core::v3::Metadata;
use nuncio_stats::Scope;
use nuncio_tls::{SecretStore, Transport};
use std::any::Any;
use std::fmt::Debug;
use std::rc::Rc;
use std::sync::Arc;

/// An accepted connection, past listener filters and handshake.
pub struct Connection {
    pub io: Transport,
    pub info: Rc<ConnectionInfo>,
    /// The chain's network filters before the terminal one, in order; those that this connection does not concern are left out.
    /// The terminal drives them (`on_new` first) and calls `on_close` at the end.
    pub filters: Vec<Box<dyn NetworkFilter>>,
    /// Bytes that were read ahead of the terminal; to be consumed before `io`.
    pub leftover: BytesMut,
    pub drain: DrainWatch,
}

/// The last filter of a chain, compiled; shared by the workers.
pub trait Terminal: Debug + Send + Sync {
    /// Serves one connection to its end. Dropping the future ends the connection at once; that happens a second after
    /// `DrainWatch::closing` if it has not ended by itself.
    fn serve(self: Arc<Self>, connection: Connection) -> LocalBoxFuture<'static, ()>;
    /// Takes over the configuration of `new` for connections that `self` is serving: their next request sees it. False if it cannot
    /// (`new` is of another kind, or differs in what is fixed per connection); such connections are drained.
    /// Control thread. New connections are served by `new` itself, so it may be called on several generations.
    fn adopt(&self, new: &Arc<dyn Terminal>) -> bool;
    /// For downcasts in `adopt`.
    fn as_any(&self) -> &dyn Any;
    /// What must arrive before the listener may go live (RDS names), for warming. Empty if ready.
    fn pending(&self) -> Vec<String> {
        Vec::new()
    }
}

/// What a terminal filter's factory may know of the place of its chain.
#[derive(Debug)]
pub struct ChainCx<'a> {
    /// `Listener.name`.
    pub listener: &'a Arc<str>,
    /// `FilterChain.name`, empty if none.
    pub chain: &'a str,
    /// `listener.<address>.`: parent of `http.<stat_prefix>.downstream_rq_*` of the listener.
    pub listener_scope: &'a Scope,
    /// `Listener.metadata`.
    pub listener_metadata: Option<&'a Arc<Metadata>>,
    /// `FilterChain.metadata`.
    pub chain_metadata: Option<&'a Metadata>,
    /// Whether the chain terminates TLS.
    pub tls: bool,
    /// Bytes buffered per connection and direction before reading stops (`per_connection_buffer_limit_bytes`, 1 MiB by default).
    pub buffer_limit: u32,
    /// `Listener.drain_type` is MODIFY_ONLY: `/healthcheck/fail` does not drain.
    pub drain_modify_only: bool,
    pub secrets: &'a Arc<SecretStore>,
}

/// Compiles one kind of terminal filter. Names of RDS, clusters and so on are resolved with what the factory was made with.
pub trait TerminalFactory: Send + Sync {
    /// Type names of the configuration, without `type.googleapis.com/`.
    fn types(&self) -> &[&str];
    /// Compiles; problems go to `cx.report`, and errors there refuse the listener. None means refused. `config` is the message's
    /// wire bytes, TypedStruct already unwrapped.
    fn compile(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>, chain: &ChainCx<'_>) -> Option<Arc<dyn Terminal>>;
}

/// Every terminal factory of the process; built once in `main`.
#[derive(Default)]
pub struct TerminalRegistry {
    pub factories: Vec<Box<dyn TerminalFactory>>,
}

impl TerminalRegistry {
    /// The factory of `type_name` (without `type.googleapis.com/`).
    pub fn get(&self, type_name: &str) -> Option<&dyn TerminalFactory> {
        self.factories.iter().find(|f| f.types().contains(&type_name)).map(AsRef::as_ref)
    }
}
impl Debug for TerminalRegistry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.factories.iter().map(|t| t.types())).finish()
    }
}
