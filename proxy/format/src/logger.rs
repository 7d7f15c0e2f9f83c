//! Access loggers that are not files: this crate knows none of them. `main` says once who compiles them.

use crate::FormatContext;
use nuncio_core::diag::{At, Report};
use nuncio_core::registry::Server;
use std::fmt::Debug;
use std::sync::{Arc, OnceLock};

/// A compiled logger; shared by all workers.
pub trait Logger: Debug + Send + Sync {
    /// Takes one entry. On a worker, inside its `LocalSet`; never blocks.
    fn log(&self, cx: &FormatContext<'_>);
}

/// Compiles loggers.
pub trait LoggerFactory: Send + Sync {
    /// Type URLs of the loggers' configurations, without `type.googleapis.com/`.
    fn types(&self) -> &[&'static str];
    /// Compiles `config`, a message of the type `name`. None means refused.
    fn compile(&self, name: &str, config: &[u8], server: &Arc<Server>, at: &At<'_>, report: &mut Report) -> Option<Arc<dyn Logger>>;
}

static FACTORY: OnceLock<Box<dyn LoggerFactory>> = OnceLock::new();

/// Says who compiles other loggers, before any configuration is compiled. The first call counts.
pub fn set_loggers(factory: Box<dyn LoggerFactory>) {
    let _ = FACTORY.set(factory);
}

/// The factory, if it knows loggers of this type.
pub(crate) fn factory(name: &str) -> Option<&'static dyn LoggerFactory> {
    FACTORY.get().map(AsRef::as_ref).filter(|f| f.types().contains(&name))
}
