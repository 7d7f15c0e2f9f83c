//! The admin endpoints of Envoy, over a [`Backend`] that the control thread provides. HTTP/1 on the bootstrap's admin address;
//! answers are written in pieces, so that a dump of any size takes the memory of its largest element.

mod access;
mod backend;
mod clusters;
mod config_dump;
mod dump_elements;
mod endpoints;
mod help;
mod listen;

mod logging;
mod reply;
mod request;
mod server;
mod stats;

pub use backend::*;
pub use server::{AdminOptions, AdminServer};
