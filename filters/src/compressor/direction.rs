//! Settings that both directions have: what is compressed at all.

use crate::config::FeatureFlag;
use http::header;
use nuncio_core::Headers;
use nuncio_core::diag::{At, Report};
use nuncio_core::registry::Runtime;
use nuncio_core::stats::{Counter, Scope};
use nuncio_matcher::StringMatcher;
use nuncio_proto::envoy::extensions::filters::http::compressor::v3::compressor::CommonDirectionConfig;

/// Content types without a list of one's own.
const TYPES: [&str; 8] = [
    "application/javascript",
    "application/json",
    "application/xhtml+xml",
    "image/svg+xml",
    "text/css",
    "text/html",
    "text/plain",
    "text/xml",
];
/// Shorter messages gain nothing.
const MIN_LENGTH: u64 = 30;

#[derive(Debug)]
pub struct Stats {
    pub compressed: Counter,
    pub not_compressed: Counter,
    pub uncompressed_bytes: Counter,
    pub compressed_bytes: Counter,
    too_small: Counter,
}

#[derive(Debug)]
pub struct Direction {
    flag: FeatureFlag,
    min_length: u64,
    types: Vec<String>,
    matchers: Box<[StringMatcher]>,
    pub stats: Stats,
}

impl Direction {
    #[allow(deprecated)]
    pub fn compile(p: &CommonDirectionConfig, default: bool, at: &At<'_>, report: &mut Report, scope: &Scope) -> Option<Self> {
        let matchers = StringMatcher::compile_list(&p.content_type_matcher, &at.field("content_type_matcher"), report)?;
        let types = match (p.content_type.is_empty(), matchers.is_empty()) {
            (true, true) => TYPES.iter().map(ToString::to_string).collect(),
            _ => p.content_type.clone(),
        };
        Some(Self {
            flag: FeatureFlag::new(p.enabled.as_ref(), default),
            min_length: p.min_content_length.map_or(MIN_LENGTH, u64::from),
            types,
            matchers,
            stats: Stats {
                compressed: scope.counter("compressed"),
                not_compressed: scope.counter("not_compressed"),
                uncompressed_bytes: scope.counter("total_uncompressed_bytes"),
                compressed_bytes: scope.counter("total_compressed_bytes"),
                too_small: scope.counter("content_length_too_small"),
            },
        })
    }
    pub fn enabled(&self, runtime: &Runtime) -> bool {
        self.flag.enabled(runtime)
    }
    /// Whether the message is long enough; one of unknown length is.
    pub fn is_long_enough(&self, headers: &Headers) -> bool {
        let Some(length) = headers.get(&header::CONTENT_LENGTH) else { return true };
        let enough = length.to_str().ok().and_then(|l| l.parse::<u64>().ok()).is_some_and(|l| l >= self.min_length);
        if !enough {
            self.stats.too_small.inc();
        }
        enough
    }
    /// Whether the content type is one that is compressed; a message without one is.
    pub fn accepts(&self, headers: &Headers) -> bool {
        let Some(value) = headers.get_str(&header::CONTENT_TYPE) else { return true };
        let bare = value.split(';').next().unwrap_or(value).trim();
        self.types.iter().any(|t| t.eq_ignore_ascii_case(bare)) || self.matchers.iter().any(|m| m.matches(bare))
    }
}
