//! envoy.filters.http.decompressor: gzip, brotli and zstd bodies of requests and responses are passed on plain. A body that is broken,
//! or makes more of itself than it may, ends its stream.
//! Source: `envoy/extensions/filters/http/decompressor/v3/decompressor.proto`.

mod body;
mod decoder;

use crate::compressor::has_token;
use crate::config::{FeatureFlag, decode};
use body::Decompressed;
use decoder::Library;
use http::{HeaderName, HeaderValue, header};
use nuncio_core::diag::At;
use nuncio_core::filter::{FilterAction, FilterCx, HttpFilter, Needs};
use nuncio_core::message::joined;
use nuncio_core::registry::{FactoryCx, HttpFilterFactory, Server};
use nuncio_core::stats::{Counter, Scope};
use nuncio_core::{Body, Headers};
use nuncio_proto::envoy::extensions::filters::http::decompressor::v3 as proto;
use proto::decompressor::CommonDirectionConfig;
use std::sync::Arc;

/// Factory of `envoy.extensions.filters.http.decompressor.v3.Decompressor`.
#[derive(Debug)]
pub struct Factory;

impl HttpFilterFactory for Factory {
    fn name(&self) -> &'static str {
        "envoy.filters.http.decompressor"
    }
    fn types(&self) -> &'static [&'static str] {
        &["envoy.extensions.filters.http.decompressor.v3.Decompressor"]
    }
    fn compile(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn HttpFilter>> {
        let config: proto::Decompressor = decode(config, at, cx.report)?;
        let library_at = at.field("decompressor_library");
        let Some(extension) = &config.decompressor_library else {
            cx.report.error(&library_at, "nothing", "set it to gzip, brotli or zstd");
            return None;
        };
        let library = Library::compile(extension, &library_at, cx.report)?;
        let names = ["compressed", "uncompressed"]
            .map(|kind| HeaderName::from_bytes(format!("x-envoy-decompressor-{}-{kind}-bytes", extension.name).as_bytes()));
        let [Ok(compressed), Ok(uncompressed)] = names else {
            cx.report.error(&library_at.field("name"), format!("\"{}\"", extension.name), "give a name that a header's name may contain");
            return None;
        };
        let trailers = [compressed, uncompressed];
        let scope = cx.scope.scope(&format!("decompressor.{}.{}.", extension.name, library.stats));
        let errors = scope.scope("decompressor_library.").counter(library.error);
        let request = config.request_direction_config.unwrap_or_default();
        let response = config.response_direction_config.unwrap_or_default();
        let direction = |common: Option<&CommonDirectionConfig>, name: &str| {
            Arc::new(Direction::new(common, &scope.scope(name), errors.clone(), trailers.clone()))
        };
        Some(Arc::new(Filter {
            request: direction(request.common_config.as_ref(), "request."),
            response: direction(response.common_config.as_ref(), "response."),
            advertise: request.advertise_accept_encoding.unwrap_or(true),
            library,
            server: cx.server.clone(),
        }))
    }
}

/// Settings and counters of one direction.
#[derive(Debug)]
struct Direction {
    flag: FeatureFlag,
    ignore_no_transform: bool,
    /// Names of the trailers that tell the sizes before and after.
    trailers: [HeaderName; 2],
    decompressed: Counter,
    not_decompressed: Counter,
    uncompressed_bytes: Counter,
    compressed_bytes: Counter,
    errors: Counter,
}

impl Direction {
    fn new(common: Option<&CommonDirectionConfig>, scope: &Scope, errors: Counter, trailers: [HeaderName; 2]) -> Self {
        Self {
            flag: FeatureFlag::new(common.and_then(|c| c.enabled.as_ref()), true),
            ignore_no_transform: common.is_some_and(|c| c.ignore_no_transform_header),
            trailers,
            decompressed: scope.counter("decompressed"),
            not_decompressed: scope.counter("not_decompressed"),
            uncompressed_bytes: scope.counter("total_uncompressed_bytes"),
            compressed_bytes: scope.counter("total_compressed_bytes"),
            errors,
        }
    }
}

#[derive(Debug)]
struct Filter {
    library: Library,
    request: Arc<Direction>,
    response: Arc<Direction>,
    advertise: bool,
    server: Arc<Server>,
}

impl HttpFilter for Filter {
    fn needs(&self) -> Needs {
        Needs::REQUEST_HEADERS.and(Needs::RESPONSE_HEADERS)
    }
    fn on_request<'a>(&'a self, cx: FilterCx<'a>) -> FilterAction<'a> {
        let ex = cx.ex;
        let headers = &mut ex.request.headers;
        if self.advertise && self.response.flag.enabled(&self.server.runtime) {
            advertise(headers, self.library.encoding);
        }
        if !ex.request_body.is_end() {
            self.decompress(&self.request, headers, &mut ex.request_body);
        }
        FilterAction::Continue
    }
    fn on_response(&self, cx: FilterCx<'_>) {
        let ex = cx.ex;
        if let Some(response) = &mut ex.response
            && !ex.response_body.is_end()
        {
            self.decompress(&self.response, &mut response.headers, &mut ex.response_body);
        }
    }
}

impl Filter {
    fn decompress(&self, direction: &Arc<Direction>, headers: &mut Headers, body: &mut Body) {
        let wanted = direction.flag.enabled(&self.server.runtime)
            && (direction.ignore_no_transform || !has_token(headers, &header::CACHE_CONTROL, "no-transform"));
        let rest = wanted.then(|| inner_encodings(headers, self.library.encoding)).flatten();
        let (Some(rest), Some(decoder)) = (rest, self.library.decoder()) else {
            direction.not_decompressed.inc();
            return;
        };
        direction.decompressed.inc();
        headers.remove(&header::CONTENT_LENGTH);
        match rest {
            Some(rest) => headers.insert(header::CONTENT_ENCODING, rest),
            None => {
                headers.remove(&header::CONTENT_ENCODING);
            }
        }
        let inner = std::mem::take(body);
        *body = Body::Stream(Box::new(Decompressed::new(inner, decoder, self.library.ratio, direction.clone())));
    }
}

/// What `content-encoding` says behind `encoding`, if that comes first.
fn inner_encodings(headers: &Headers, encoding: &str) -> Option<Option<HeaderValue>> {
    let all = joined(headers, &header::CONTENT_ENCODING)?;
    let text = std::str::from_utf8(&all).ok()?;
    let (first, rest) = text.split_once(',').map_or((text, None), |(first, rest)| (first, Some(rest.trim())));
    if !first.trim().eq_ignore_ascii_case(encoding) {
        return None;
    }
    Some(rest.and_then(|rest| HeaderValue::from_str(rest).ok()))
}

/// Adds `encoding` to `accept-encoding`, once and without a weight.
fn advertise(headers: &mut Headers, encoding: &str) {
    let sent = joined(headers, &header::ACCEPT_ENCODING).unwrap_or_default();
    let sent = String::from_utf8_lossy(&sent);
    let others = sent.split(',').map(str::trim).filter(|t| !t.is_empty() && t.split(';').next() != Some(encoding));
    let all: Vec<&str> = others.chain([encoding]).collect();
    if let Ok(value) = HeaderValue::from_str(&all.join(",")) {
        headers.insert(header::ACCEPT_ENCODING, value);
    }
}

#[cfg(test)]
mod tests;
