//! The admin endpoints of Envoy, over a [`Backend`] that the control thread provides. HTTP/1 on the bootstrap's admin address;
//! answers are written in pieces, so that a dump of any size takes the memory of its largest element.

mod backend;

pub use backend::*;
