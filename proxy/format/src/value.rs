//! Operators of formatter extensions whose values come from outside of the stream (files, secrets). This crate reads none: `main` says
//! once who compiles them.

use nuncio_core::diag::{At, Report};
use std::fmt::Debug;
use std::sync::OnceLock;

/// A value that is the same for all streams and changes now and then; shared by all workers.
pub trait OpValue: Debug + Send + Sync {
    /// Appends it; false if there is none. Never blocks.
    fn write(&self, out: &mut Vec<u8>) -> bool;
}

/// A compiled formatter extension.
pub trait ValueSource {
    /// The operator `name` with this argument and length, which are the extension's to obey; none if it knows no such operator.
    fn value(&self, name: &str, argument: &str, length: Option<usize>) -> Option<Result<Box<dyn OpValue>, String>>;
}

/// Compiles formatter extensions.
pub trait ValueFactory: Send + Sync {
    /// Type URLs of the extensions' configurations, without `type.googleapis.com/`.
    fn types(&self) -> &[&'static str];
    /// Compiles `config`, a message of the type `name`. None means refused.
    fn compile(&self, name: &str, config: &[u8], at: &At<'_>, report: &mut Report) -> Option<Box<dyn ValueSource>>;
}

static FACTORY: OnceLock<Box<dyn ValueFactory>> = OnceLock::new();

/// Says who compiles other formatter extensions, before any configuration is compiled. The first call counts.
pub fn set_values(factory: Box<dyn ValueFactory>) {
    let _ = FACTORY.set(factory);
}

/// The factory, if it knows extensions of this type.
pub(crate) fn factory(name: &str) -> Option<&'static dyn ValueFactory> {
    FACTORY.get().map(AsRef::as_ref).filter(|f| f.types().contains(&name))
}
