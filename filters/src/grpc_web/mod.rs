//! envoy.filters.http.grpc_web: lets browsers speak gRPC. Requests become gRPC; trailers of responses become the last message of the
//! body, and in text mode both bodies are base64. Source: `envoy/extensions/filters/http/grpc_web/v3/grpc_web.proto`, gRPC's
//! `PROTOCOL-WEB.md`.

pub mod body;

use crate::config::decode;
use crate::grpc_stats::{Cache, Methods};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, header};
use nuncio_core::diag::At;
use nuncio_core::filter::{FilterAction, FilterCx, HttpFilter, Needs};
use nuncio_core::message::is_grpc_content_type;
use nuncio_core::registry::{FactoryCx, HttpFilterFactory};
use nuncio_core::{Body, Headers, ResponseHead};
use nuncio_proto::envoy::extensions::filters::http::grpc_web::v3::GrpcWeb;
use std::cell::Cell;
use std::fmt::Write;
use std::rc::Rc;
use std::sync::Arc;

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const WEB_PROTO: HeaderValue = HeaderValue::from_static("application/grpc-web+proto");
const WEB_TEXT_PROTO: HeaderValue = HeaderValue::from_static("application/grpc-web-text+proto");
const ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");
const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// Longest body of a response that is not gRPC that becomes its message.
const MAX_MESSAGE: usize = 16_384;

/// Factory of `envoy.extensions.filters.http.grpc_web.v3.GrpcWeb`.
#[derive(Debug)]
pub struct Factory;

impl HttpFilterFactory for Factory {
    fn name(&self) -> &'static str {
        "envoy.filters.http.grpc_web"
    }
    fn types(&self) -> &'static [&'static str] {
        &["envoy.extensions.filters.http.grpc_web.v3.GrpcWeb"]
    }
    fn compile(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn HttpFilter>> {
        let GrpcWeb {} = decode(config, at, cx.report)?;
        Some(Arc::new(Filter(Cache::new("grpc-web", Methods::All, false, false, cx.server))))
    }
}

#[derive(Debug)]
struct Filter(Cache);

/// State of a gRPC-Web stream.
#[derive(Clone)]
struct State {
    text: bool,
    /// `grpc-status` of the trailers, once they passed.
    status: Rc<Cell<Option<u32>>>,
}

fn is_text(value: &[u8]) -> bool {
    matches!(value, b"application/grpc-web-text" | b"application/grpc-web-text+proto")
}

impl HttpFilter for Filter {
    fn needs(&self) -> Needs {
        Needs::REQUEST_HEADERS.and(Needs::RESPONSE_HEADERS).and(Needs::RESPONSE_BODY).and(Needs::COMPLETE)
    }
    fn on_request<'a>(&'a self, mut cx: FilterCx<'a>) -> FilterAction<'a> {
        let ex = &mut *cx.ex;
        let headers = &mut ex.request.headers;
        let Some(content_type) = headers.get(&header::CONTENT_TYPE).map(|v| v.as_bytes()) else { return FilterAction::Continue };
        let text_request = is_text(content_type);
        if !text_request && !matches!(content_type, b"application/grpc-web" | b"application/grpc-web+proto") {
            return FilterAction::Continue;
        }
        let text = headers.get(&header::ACCEPT).is_some_and(|a| is_text(a.as_bytes()));
        // The length is that of the HTTP/1 body, which HTTP/2 and base64 change.
        headers.remove(&header::CONTENT_LENGTH);
        headers.insert(header::CONTENT_TYPE, GRPC);
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        if !headers.contains(&ACCEPT_ENCODING) {
            headers.append(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        if text_request && !ex.request_body.is_end() {
            let inner = std::mem::take(&mut ex.request_body);
            ex.request_body = Body::Stream(Box::new(body::Decoded::new(inner)));
        }
        cx.set_state(State { text, status: Rc::default() });
        FilterAction::Continue
    }
    fn hold_response(&self, mut cx: FilterCx<'_>) -> Option<usize> {
        cx.state::<State>()?;
        let response = cx.ex.response.as_ref()?;
        (!understood(response) && !cx.ex.response_body.is_end()).then_some(MAX_MESSAGE)
    }
    fn on_response(&self, mut cx: FilterCx<'_>) {
        let Some(state) = cx.state::<State>().cloned() else { return };
        let ex = &mut *cx.ex;
        let handles = ex.cluster.as_ref().and_then(|c| self.0.get(c.name(), ex.request.path_only()));
        let Some(response) = &mut ex.response else { return };
        let understood = understood(response);
        if let (Some(handles), Some(status)) = (&handles, response.headers.get(&STATUS)) {
            handles.charge(status.as_bytes());
        }
        response.headers.remove(&header::CONTENT_LENGTH);
        response.headers.insert(header::CONTENT_TYPE, if state.text { WEB_TEXT_PROTO } else { WEB_PROTO });
        if !understood && ex.response_body.is_end() {
            return;
        }
        if !understood {
            explain(response, &mut ex.response_body);
            return;
        }
        if ex.response_body.is_end() {
            return;
        }
        let status = state.status;
        let on_trailers = move |trailers: &Headers| {
            let Some(value) = trailers.get(&STATUS) else { return };
            status.set(value.to_str().ok().and_then(|v| v.parse().ok()));
            if let Some(handles) = &handles {
                handles.charge(value.as_bytes());
            }
        };
        let inner = std::mem::take(&mut ex.response_body);
        ex.response_body = Body::Stream(Box::new(body::Encoded::new(inner, state.text, on_trailers)));
    }
    fn on_complete(&self, mut cx: FilterCx<'_>) {
        // Logs find no trailers, because they went into the body.
        let status = cx.state::<State>().and_then(|s| s.status.get());
        if status.is_some() {
            cx.ex.info.grpc_status = status;
        }
    }
}

/// Whether a response is gRPC in one of its forms.
fn understood(response: &ResponseHead) -> bool {
    response.status.as_u16() == 200 && (is_grpc_content_type(&response.headers) || is_web(&response.headers))
}

fn is_web(headers: &Headers) -> bool {
    let value = headers.get_str(&header::CONTENT_TYPE).unwrap_or_default();
    let bare = value.split(';').next().unwrap_or(value).trim_end();
    bare.eq_ignore_ascii_case("application/grpc-web") || bare.eq_ignore_ascii_case("application/grpc-web+proto")
}

/// Turns a response that is not gRPC (an error page, a local reply) into a status that gRPC-Web clients understand. Its body was waited
/// for.
fn explain(response: &mut ResponseHead, body: &mut Body) {
    let text = match std::mem::take(body) {
        Body::Full(text) => text,
        _ => Bytes::new(),
    };
    let message = percent_encode(text.get(..text.len().min(MAX_MESSAGE)).unwrap_or_default());
    if let Ok(message) = HeaderValue::from_maybe_shared(Bytes::from(message)) {
        response.headers.insert(MESSAGE, message);
    }
    let status = match response.status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    };
    response.headers.insert(STATUS, HeaderValue::from(status));
    response.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(0));
}

/// gRPC's percent-encoding of messages.
fn percent_encode(text: &[u8]) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text {
        match byte {
            b' '..=b'~' if *byte != b'%' => out.push(char::from(*byte)),
            _ => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

#[cfg(test)]
mod tests;
