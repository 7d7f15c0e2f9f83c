//! envoy.filters.http.compressor: gzip, brotli and zstd for responses, and for requests where asked for. Several compressors in a
//! chain agree on the encoding that the client likes best. Envoy puts three before its own stats for Istio.
//! Source: `envoy/extensions/filters/http/compressor/v3/compressor.proto`.

mod body;
mod direction;
mod encoder;
mod negotiate;

use crate::config::decode;
use direction::Direction;
use encoder::Library;
use http::{HeaderName, HeaderValue, header};
use negotiate::{Decision, Registry};
use nuncio_core::diag::At;
use nuncio_core::filter::{FilterAction, FilterCx, HttpFilter, Needs};
use nuncio_core::registry::{FactoryCx, HttpFilterFactory, Server};
use nuncio_core::stats::Counter;
use nuncio_core::{Body, Headers};
use nuncio_proto::envoy::extensions::filters::http::compressor::v3 as proto;
use std::any::Any;
use std::sync::Arc;

const STATUS: HeaderName = HeaderName::from_static("x-envoy-compression-status");

/// Factory of `envoy.extensions.filters.http.compressor.v3.Compressor`, per route `CompressorPerRoute`.
#[derive(Debug)]
pub struct Factory;

impl HttpFilterFactory for Factory {
    fn name(&self) -> &'static str {
        "envoy.filters.http.compressor"
    }
    fn types(&self) -> &'static [&'static str] {
        &["envoy.extensions.filters.http.compressor.v3.Compressor"]
    }
    fn route_types(&self) -> &'static [&'static str] {
        &["envoy.extensions.filters.http.compressor.v3.CompressorPerRoute"]
    }
    #[allow(deprecated)]
    fn compile(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn HttpFilter>> {
        let config: proto::Compressor = decode(config, at, cx.report)?;
        let library_at = at.field("compressor_library");
        let Some(extension) = &config.compressor_library else {
            cx.report.error(&library_at, "nothing", "set compressor_library to gzip, brotli or zstd");
            return None;
        };
        let library = Library::compile(extension, &library_at, cx.report)?;
        let name = library.encoding.to_str().unwrap_or_default();
        let stats_name = if name == "br" { "brotli" } else { name };
        let scope = cx.scope.scope(&format!("compressor.{}.{stats_name}.", extension.name));
        // Requests are only compressed where their direction is configured; they are counted anyway.
        let request_at = at.field("request_direction_config");
        let common = config.request_direction_config.as_ref().and_then(|r| r.common_config.clone()).unwrap_or_default();
        let configured = config.request_direction_config.is_some();
        let request = Direction::compile(&common, configured, &request_at.field("common_config"), cx.report, &scope.scope("request."))?;
        let response = match &config.response_direction_config {
            Some(response) => {
                let at = at.field("response_direction_config");
                let common = response.common_config.clone().unwrap_or_default();
                let common_at = at.field("common_config");
                let direction = Direction::compile(&common, true, &common_at, cx.report, &scope.scope("response."))?;
                Response::new(response, direction, &scope)
            }
            // The older form: the same fields in the filter itself, stats without `response.`.
            None => {
                let common = proto::compressor::CommonDirectionConfig {
                    enabled: config.runtime_enabled.clone(),
                    min_content_length: config.content_length,
                    content_type: config.content_type.clone(),
                    content_type_matcher: Vec::new(),
                };
                let response = proto::compressor::ResponseDirectionConfig {
                    disable_on_etag_header: config.disable_on_etag_header,
                    remove_accept_encoding_header: config.remove_accept_encoding_header,
                    ..Default::default()
                };
                Response::new(&response, Direction::compile(&common, true, at, cx.report, &scope)?, &scope)
            }
        };
        Some(Arc::new(Filter(Arc::new(Inner { library, request, response, choose_first: config.choose_first, server: cx.server.clone() }))))
    }
    fn compile_route(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn Any + Send + Sync>> {
        let config: proto::CompressorPerRoute = decode(config, at, cx.report)?;
        use proto::compressor_per_route::Override;
        Some(Arc::new(match &config.r#override {
            Some(Override::Disabled(_)) => PerRoute { disabled: true, ..PerRoute::default() },
            Some(Override::Overrides(overrides)) => {
                let at = at.field("overrides");
                let library = match &overrides.compressor_library {
                    Some(extension) => Some(Library::compile(extension, &at.field("compressor_library"), cx.report)?),
                    None => None,
                };
                let response = overrides.response_direction_config.as_ref();
                PerRoute {
                    disabled: false,
                    enabled: response.is_some(),
                    remove_accept: response.and_then(|r| r.remove_accept_encoding_header),
                    library,
                }
            }
            None => {
                cx.report.error(at, "neither disabled nor overrides", "set one of them");
                return None;
            }
        }))
    }
}

#[derive(Debug, Default)]
struct PerRoute {
    disabled: bool,
    /// Overrides of the response direction switch it on.
    enabled: bool,
    remove_accept: Option<bool>,
    library: Option<Library>,
}

#[derive(Debug)]
struct Filter(Arc<Inner>);

/// A compiled compressor; also what other compressors of the chain see of it.
#[derive(Debug)]
struct Inner {
    library: Library,
    request: Direction,
    response: Response,
    choose_first: bool,
    server: Arc<Server>,
}

#[derive(Debug)]
struct Response {
    direction: Direction,
    disable_on_etag: bool,
    weaken_etag: bool,
    remove_accept: bool,
    uncompressible: Box<[u16]>,
    status_header: bool,
    no_accept_header: Counter,
    identity: Counter,
    used: Counter,
    overshadowed: Counter,
    wildcard: Counter,
    not_valid: Counter,
    etag: Counter,
}

impl Response {
    fn new(p: &proto::compressor::ResponseDirectionConfig, direction: Direction, scope: &nuncio_core::stats::Scope) -> Self {
        Self {
            direction,
            disable_on_etag: p.disable_on_etag_header && !p.weaken_etag_on_compress,
            weaken_etag: p.weaken_etag_on_compress,
            remove_accept: p.remove_accept_encoding_header,
            uncompressible: p.uncompressible_response_codes.iter().filter_map(|c| u16::try_from(*c).ok()).collect(),
            status_header: p.status_header_enabled,
            no_accept_header: scope.counter("no_accept_header"),
            identity: scope.counter("header_identity"),
            used: scope.counter("header_compressor_used"),
            overshadowed: scope.counter("header_compressor_overshadowed"),
            wildcard: scope.counter("header_wildcard"),
            not_valid: scope.counter("header_not_valid"),
            etag: scope.counter("not_compressed_etag"),
        }
    }
}

/// What the client accepts, as it said before another filter removed it.
struct Accept(Option<HeaderValue>);

impl HttpFilter for Filter {
    fn needs(&self) -> Needs {
        Needs::REQUEST_HEADERS.and(Needs::RESPONSE_HEADERS)
    }
    fn on_request<'a>(&'a self, mut cx: FilterCx<'a>) -> FilterAction<'a> {
        let inner = &*self.0;
        let route = cx.route_config::<PerRoute>();
        let accept = cx.ex.request.headers.get(&header::ACCEPT_ENCODING).cloned();
        if accept.is_some() {
            Registry::add(&mut cx.ex.info.filter_state, &self.0);
        }
        let ex = &mut *cx.ex;
        if self.response_enabled(route.as_deref()) {
            let remove = route.as_ref().and_then(|r| r.remove_accept).unwrap_or(inner.response.remove_accept);
            if remove {
                ex.request.headers.remove(&header::ACCEPT_ENCODING);
            }
        }
        let direction = &inner.request;
        let headers = &mut ex.request.headers;
        let wanted = !ex.request_body.is_end()
            && !route.as_ref().is_some_and(|r| r.disabled)
            && direction.enabled(&inner.server.runtime)
            && direction.is_long_enough(headers)
            && direction.accepts(headers)
            && !headers.contains(&header::CONTENT_ENCODING)
            && transfer_allows(headers);
        match wanted.then(|| inner.library.encoder()).flatten() {
            Some(encoder) => {
                headers.remove(&header::CONTENT_LENGTH);
                headers.insert(header::CONTENT_ENCODING, inner.library.encoding.clone());
                direction.stats.compressed.inc();
                wrap(&mut ex.request_body, encoder, direction);
            }
            None => direction.stats.not_compressed.inc(),
        }
        cx.set_state(Accept(accept));
        FilterAction::Continue
    }
    fn on_response(&self, mut cx: FilterCx<'_>) {
        let inner = &*self.0;
        let route = cx.route_config::<PerRoute>();
        let accept = cx.state::<Accept>().and_then(|a| a.0.clone());
        let ex = &mut *cx.ex;
        let Some(response) = &mut ex.response else { return };
        let direction = &inner.response.direction;
        let headers = &mut response.headers;
        let switched_on = self.response_enabled(route.as_deref());
        let long_enough = switched_on && direction.is_long_enough(headers);
        let library = route.as_ref().and_then(|r| r.library.as_ref()).unwrap_or(&inner.library);
        let (type_allows, etag_allows) = (direction.accepts(headers), self.etag_allows(headers));
        let compressible = long_enough
            && response.status.as_u16() != 101
            && type_allows
            && !has_token(headers, &header::CACHE_CONTROL, "no-transform")
            && etag_allows
            && !headers.contains(&header::CONTENT_ENCODING);
        let code_allows = !inner.response.uncompressible.contains(&response.status.as_u16());
        let compressors = Registry::of(&ex.info.filter_state);
        let wanted = long_enough
            && !ex.response_body.is_end()
            && self.is_accepted(accept.as_ref(), compressors, headers)
            && compressible
            && transfer_allows(headers)
            && code_allows;
        let status = (inner.response.status_header && switched_on && !ex.response_body.is_end())
            .then(|| match (long_enough, type_allows, etag_allows, code_allows) {
                (false, ..) => Some("ContentLengthTooSmall"),
                (_, false, ..) => Some("ContentTypeNotAllowed"),
                (_, _, false, _) => Some("EtagNotAllowed"),
                (.., false) => Some("StatusCodeNotAllowed"),
                _ => wanted.then_some("Compressed"),
            })
            .flatten()
            .and_then(|why| status(headers, library, why));
        // Caches must know that the answer depends on what was accepted, compressed or not. The order is Envoy's.
        let (varies, first) = (compressible && code_allows, inner.response.status_header);
        if varies && first {
            vary(headers);
        }
        match wanted.then(|| library.encoder()).flatten() {
            Some(encoder) => {
                self.change_etag(headers);
                headers.remove(&header::CONTENT_LENGTH);
                headers.insert(header::CONTENT_ENCODING, library.encoding.clone());
                direction.stats.compressed.inc();
                wrap(&mut ex.response_body, encoder, direction);
            }
            None => direction.stats.not_compressed.inc(),
        }
        if varies && !first {
            vary(headers);
        }
        // One value for each compressor of the chain.
        if let Some(status) = status {
            headers.append(STATUS, status);
        }
    }
}

impl Filter {
    fn response_enabled(&self, route: Option<&PerRoute>) -> bool {
        match route {
            Some(route) if route.disabled => false,
            Some(route) if route.enabled => true,
            _ => self.0.response.direction.enabled(&self.0.server.runtime),
        }
    }
    fn etag_allows(&self, headers: &Headers) -> bool {
        let forbidden = self.0.response.disable_on_etag && headers.contains(&header::ETAG);
        if forbidden {
            self.0.response.etag.inc();
        }
        !forbidden
    }
    /// A strong entity tag names exact bytes, which compression changes.
    fn change_etag(&self, headers: &mut Headers) {
        let Some(etag) = headers.get(&header::ETAG).map(|e| e.as_bytes()) else { return };
        if etag.starts_with(b"W/") || etag.starts_with(b"w/") {
            return;
        }
        let weak = HeaderValue::from_bytes(&[b"W/", etag].concat()).ok().filter(|_| self.0.response.weaken_etag);
        match weak {
            Some(weak) => headers.insert(header::ETAG, weak),
            None => {
                headers.remove(&header::ETAG);
            }
        }
    }
    fn is_accepted(&self, accept: Option<&HeaderValue>, compressors: &[Arc<Inner>], headers: &Headers) -> bool {
        let stats = &self.0.response;
        let Some(accept) = accept else {
            stats.no_accept_header.inc();
            return false;
        };
        let usable = compressors.iter().filter(|c| c.response.direction.accepts(headers)).map(|c| c.library.encoding.as_bytes());
        let decision = negotiate::choose(accept.as_bytes(), usable, self.0.choose_first);
        let mine = |encoding: &[u8]| *encoding == *self.0.library.encoding.as_bytes();
        match decision {
            Decision::NotValid => stats.not_valid.inc(),
            Decision::Identity => stats.identity.inc(),
            Decision::Wildcard(encoding) => {
                stats.wildcard.inc();
                return mine(encoding);
            }
            Decision::Compressor(encoding) if mine(encoding) => {
                stats.used.inc();
                return true;
            }
            Decision::Compressor(_) => stats.overshadowed.inc(),
        }
        false
    }
}

/// `gzip;Compressed;OriginalLength=64`, or the reason why not. A length that nobody announced is empty.
fn status(headers: &Headers, library: &Library, why: &str) -> Option<HeaderValue> {
    let length = (why == "Compressed").then(|| headers.get_str(&header::CONTENT_LENGTH).unwrap_or_default());
    let length = length.map(|l| format!(";OriginalLength={l}")).unwrap_or_default();
    HeaderValue::from_str(&format!("{};{why}{length}", library.encoding.to_str().unwrap_or_default())).ok()
}

fn wrap(body: &mut Body, encoder: encoder::Encoder, direction: &Direction) {
    let inner = std::mem::take(body);
    let (from, to) = (direction.stats.uncompressed_bytes.clone(), direction.stats.compressed_bytes.clone());
    *body = Body::Stream(Box::new(body::Compressed::new(inner, encoder, from, to)));
}

fn tokens<'a>(headers: &'a Headers, name: &'a HeaderName) -> impl Iterator<Item = &'a str> {
    headers.get_all(name).filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(',')).map(str::trim)
}

pub(crate) fn has_token(headers: &Headers, name: &HeaderName, token: &str) -> bool {
    tokens(headers, name).any(|t| t.eq_ignore_ascii_case(token))
}

/// A transfer coding that compresses already must not be compressed again.
fn transfer_allows(headers: &Headers) -> bool {
    !tokens(headers, &header::TRANSFER_ENCODING)
        .any(|t| ["gzip", "deflate", "compress", "br", "zstd"].iter().any(|c| t.eq_ignore_ascii_case(c)))
}

fn vary(headers: &mut Headers) {
    let Some(current) = headers.get(&header::VARY).cloned() else {
        headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
        return;
    };
    if !has_token(headers, &header::VARY, "accept-encoding") && !has_token(headers, &header::VARY, "*") {
        let all = HeaderValue::from_bytes(&[current.as_bytes(), b", Accept-Encoding"].concat());
        headers.insert(header::VARY, all.unwrap_or(current));
    }
}

#[cfg(test)]
mod tests;
