//! The control thread: command line, bootstrap, subscriptions, warming, secrets, and the data behind the admin endpoints.
//! One current_thread runtime; nothing here is on the path of a request.

pub mod accounting;
mod admin;
pub mod args;
pub mod bootstrap;
mod clusters;
mod connector;
mod control;
mod cores;
mod init;
mod listeners;
pub mod log_format;
pub mod logger;
mod memory;
mod needs;
mod pages;
mod raw;
mod run;
mod scopes;
mod secrets;
mod source;
mod stats;
mod subscriptions;
mod sys;
mod validate;
mod vhds;

pub use args::{Args, Mode, Parsed};
pub use control::{Control, Shared};
pub use run::{Factories, run};
