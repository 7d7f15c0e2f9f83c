//! Small helpers that compile what many filters' configurations have in common. Control thread.

use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use nuncio_core::diag::{At, Report};
use nuncio_core::registry::Runtime;
use nuncio_core::stats::Scope;
use nuncio_proto::envoy::config::core::v3::{DataSource, RuntimeFeatureFlag, data_source::Specifier};
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

/// What a source holds, read once; `watched_directory` is warned about.
pub fn read_source(source: &DataSource, at: &At<'_>, report: &mut Report) -> Option<Vec<u8>> {
    if source.watched_directory.is_some() {
        report.warning(&at.field("watched_directory"), "a value", "the file is read once, when the filter is compiled");
    }
    let data = match &source.specifier {
        Some(Specifier::Filename(name)) => std::fs::read(name).map_err(|e| format!("{name} ({e})")),
        Some(Specifier::InlineBytes(bytes)) => Ok(bytes.to_vec()),
        Some(Specifier::InlineString(text)) => Ok(text.clone().into_bytes()),
        Some(Specifier::EnvironmentVariable(name)) => std::env::var(name).map(String::into_bytes).map_err(|e| format!("${name} ({e})")),
        None => Err("nothing".to_string()),
    };
    data.map_err(|why| report.error(at, why, "name a readable file, a variable, or give the value inline")).ok()
}

/// Base64 as Envoy decodes it without minding padding.
pub const BASE64: GeneralPurpose =
    GeneralPurpose::new(&STANDARD, GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent));

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

/// Where the stats of `filter` go: `<filter>.`, or `<filter>.<prefix>.` if its configuration has a prefix.
pub fn stat_scope(base: &Scope, filter: &str, prefix: &str) -> Scope {
    match prefix {
        "" => base.scope(&format!("{filter}.")),
        _ => base.scope(&format!("{filter}.{prefix}.")),
    }
}
