//! Small helpers that compile what many filters' configurations have in common. Control thread.

use nuncio_core::diag::{At, Report};
use nuncio_core::registry::Runtime;
use nuncio_proto::envoy::config::core::v3::RuntimeFeatureFlag;
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

/// A boolean that the runtime may override.
#[derive(Debug)]
pub struct FeatureFlag {
    default: bool,
    key: String,
}

impl FeatureFlag {
    /// The flag, or `default` if there is none or it has no default of its own.
    pub fn new(p: Option<&RuntimeFeatureFlag>, default: bool) -> Self {
        match p {
            Some(flag) => Self { default: flag.default_value.unwrap_or(default), key: flag.runtime_key.clone() },
            None => Self { default, key: String::new() },
        }
    }
    /// Its value now.
    pub fn enabled(&self, runtime: &Runtime) -> bool {
        if self.key.is_empty() { self.default } else { runtime.boolean(&self.key, self.default) }
    }
}
