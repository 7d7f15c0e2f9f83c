//! Small helpers that compile what many filters' configurations have in common. Control thread.

use nuncio_core::diag::{At, Report};
use prost::{Message, Name};
use std::time::Duration;

/// Decodes a configuration; an undecodable one is refused.
pub fn decode<M: Message + Name + Default>(bytes: &[u8], at: &At<'_>, report: &mut Report) -> Option<M> {
    match M::decode(bytes) {
        Ok(message) => Some(message),
        Err(e) => {
            report.error(at, format!("undecodable configuration ({e})"), format!("send {}", M::full_name()));
            None
        }
    }
}

/// A duration that is not negative; others are refused.
pub fn duration(proto: &nuncio_proto::Duration, at: &At<'_>, report: &mut Report) -> Option<Duration> {
    match Duration::try_from(*proto) {
        Ok(duration) => Some(duration),
        Err(_) => {
            report.error(at, format!("{proto:?}"), "give a duration that is not negative");
            None
        }
    }
}
