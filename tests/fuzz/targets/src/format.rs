//! Substitution formats: they compile or are refused, and JSON formats give one line of JSON.

use http::{Method, StatusCode};
use nuncio_core::diag::{At, Report};
use nuncio_core::{Exchange, RequestHead, ResponseHead, test_kit};
use nuncio_format::{FormatContext, Formatter};
use nuncio_proto::envoy::config::core::v3::SubstitutionFormatString;
use nuncio_proto::json::{UnknownFields, parse_text};

fn exchange() -> Exchange {
    let mut head = RequestHead::new(Method::GET, "a.test", "/p?q=\"1\"");
    head.headers.append(http::HeaderName::from_static("x"), http::HeaderValue::from_bytes(b"\"\\\xff\t").unwrap());
    let mut exchange = test_kit::exchange(head);
    exchange.response = Some(ResponseHead::new(StatusCode::OK));
    exchange
}

fn written(formatter: &Formatter) -> Vec<u8> {
    let exchange = exchange();
    let mut out = Vec::new();
    formatter.write(&FormatContext::exchange(&exchange), &mut out);
    out
}

/// A text format.
pub fn text(data: &[u8]) {
    let Ok(format) = std::str::from_utf8(data) else { return };
    let mut report = Report::new();
    match Formatter::text(format, &At::Root, &mut report) {
        Some(formatter) => drop(written(&formatter)),
        None => assert!(!report.items.is_empty(), "refused without a word"),
    }
}

/// A `SubstitutionFormatString` as JSON.
pub fn json(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(config) = parse_text::<SubstitutionFormatString>(text, UnknownFields::Refuse) else { return };
    let is_json = text.contains("json_format");
    let mut report = Report::new();
    let Some(formatter) = Formatter::compile(&config.value, &At::Root, &mut report) else {
        assert!(!report.items.is_empty(), "refused without a word");
        return;
    };
    let out = written(&formatter);
    if is_json {
        assert_eq!(out.iter().position(|byte| *byte == b'\n').unwrap_or(out.len().max(1) - 1), out.len().max(1) - 1, "more than one line");
    }
}
