//! JSON formats. The expected texts are those of Envoy 1.40 for the same formats.

// Helpers outside of test functions.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{context, exchange, number, text, value};
use nuncio_core::Exchange;
use nuncio_core::diag::{At, Report};
use nuncio_core::test_kit::{fields, list, object};
use nuncio_format::Formatter;
use nuncio_proto::Struct;
use nuncio_proto::envoy::config::core::v3::{SubstitutionFormatString, TypedExtensionConfig, substitution_format_string::Format};
use proptest::prelude::*;
use prost_types::value::Kind;

fn shown(format: Struct, omit: bool, ex: &Exchange) -> String {
    let mut report = Report::new();
    let config = SubstitutionFormatString { format: Some(Format::JsonFormat(format)), omit_empty_values: omit, ..Default::default() };
    let formatter = Formatter::compile(&config, &At::Root, &mut report).unwrap_or_else(|| panic!("{}", report.summary()));
    assert_eq!(formatter.content_type(), "application/json");
    let mut out = Vec::new();
    formatter.write(&context(ex), &mut out);
    String::from_utf8(out).unwrap()
}

fn format() -> Struct {
    fields([
        ("b", text("%REQ(x-a)%")),
        ("a", text("x%REQ(x-a)%y%RESPONSE_CODE%-%REQ(nope)%%%")),
        (
            "n",
            object(fields([
                ("z", number(1.0)),
                (
                    "y",
                    list(vec![
                        text("1.5"),
                        text("%REQ(x-b)%"),
                        value(Kind::BoolValue(true)),
                        value(Kind::NullValue(0)),
                        object(fields([])),
                    ]),
                ),
                ("e", object(fields([("q", text("%REQ(nope)%"))]))),
            ])),
        ),
        ("bo", value(Kind::BoolValue(false))),
        ("lit", text("a\"b\tc/<\u{e9}")),
        ("st", number(5.0)),
        ("%REQ(x-a)%", text("k")),
    ])
}

#[test]
fn values_are_typed_and_escaped() {
    let mut ex = exchange();
    let mut set = |name: &'static str, value: &[u8]| {
        ex.request.headers.insert(name.parse().unwrap(), http::HeaderValue::from_bytes(value).unwrap());
    };
    set("x-a", b"caf\xe9");
    set("x-b", b"d\"\\/<");
    let expected = r#"{"%REQ(x-a)%":"k","a":"xcaf\u00e9y200--%","b":"caf\u00e9","bo":false,"lit":"a\"b\tc/<é","n":{"e":{"q":null},"y":["1.5","d\"\\/<",true,null,{}],"z":1},"st":5}"#;
    assert_eq!(shown(format(), false, &ex), format!("{expected}\n"));
    let mut set = |name: &'static str, value: &[u8]| {
        ex.request.headers.insert(name.parse().unwrap(), http::HeaderValue::from_bytes(value).unwrap());
    };
    set("x-a", "caf\u{e9}\tq\u{1f600}".as_bytes());
    set("x-b", b"d\"\\/<\x80");
    let expected = r#"{"%REQ(x-a)%":"k","a":"xcafé\tq😀y200--%","b":"café\tq😀","bo":false,"lit":"a\"b\tc/<é","n":{"e":{"q":null},"y":["1.5","d\u0022\u005c/<\u0080",true,null,{}],"z":1},"st":5}"#;
    assert_eq!(shown(format(), false, &ex), format!("{expected}\n"));
}

#[test]
fn empty_values_can_be_left_out() {
    let format = fields([
        ("b", text("%REQ(nope)%")),
        ("a", text("x%REQ(nope)%y%RESPONSE_CODE%-%REQ(nope)%%%")),
        (
            "n",
            object(fields([
                ("z", number(1.0)),
                (
                    "y",
                    list(vec![
                        text("1.5"),
                        text("%REQ(nope)%"),
                        value(Kind::BoolValue(true)),
                        value(Kind::NullValue(0)),
                        object(fields([])),
                    ]),
                ),
                ("e", object(fields([("q", text("%REQ(nope)%"))]))),
            ])),
        ),
    ]);
    assert_eq!(shown(format, true, &exchange()), "{\"a\":\"xy200-%\",\"n\":{\"y\":[\"1.5\",true],\"z\":1}}\n");
    assert_eq!(shown(fields([("b", text("%REQ(nope)%"))]), true, &exchange()), "{}\n");
}

#[test]
fn operators_keep_their_types() {
    let format = fields([
        ("code", text("%RESPONSE_CODE%")),
        ("flags", text("%RESPONSE_FLAGS%")),
        ("meta", text("%CLUSTER_METADATA(com.test:o)%")),
        ("state", text("%FILTER_STATE(wasm.s)%")),
        ("text", text("%CLUSTER_METADATA(com.test:k)%")),
        ("upstream", text("%UPSTREAM_CONNECTION_ID%")),
        ("port", text("%DOWNSTREAM_REMOTE_PORT%")),
        ("sni", text("%REQUESTED_SERVER_NAME%")),
        ("body", text("%LOCAL_REPLY_BODY%")),
    ]);
    let expected = r#"{"body":"","code":200,"flags":"-","meta":{"i":1,"z":[1,"x",null,true]},"port":53696,"sni":null,"state":"va\"l","text":"str\"q","upstream":2}"#;
    assert_eq!(shown(format, false, &exchange()), format!("{expected}\n"));
}

#[test]
fn formatters_and_errors() {
    let mut report = Report::new();
    let req = nuncio_proto::envoy::extensions::formatter::req_without_query::v3::ReqWithoutQuery {};
    let extension = TypedExtensionConfig { name: "x".into(), typed_config: Some(nuncio_proto::typed::pack(&req)) };
    let formatter = Formatter::text_with("%REQ_WITHOUT_QUERY(:PATH):4%", &[extension], false, &At::Root, &mut report).unwrap();
    let mut out = String::new();
    formatter.format(&context(&exchange()), &mut out);
    assert_eq!(out, "/p%2");
    let content = nuncio_proto::envoy::extensions::formatter::file_content::v3::FileContent {};
    let extension = TypedExtensionConfig { name: "c".into(), typed_config: Some(nuncio_proto::typed::pack(&content)) };
    assert!(Formatter::text_with("", &[extension], false, &At::Root, &mut report).is_none());
    assert!(Formatter::json(&fields([("k", object(fields([("in", text("%NOPE%"))])))]), &[], false, &At::Root, &mut report).is_none());
    let said = report.summary();
    assert!(said.contains("formatters[0]") && said.contains("envoy.extensions.formatter.file_content.v3.FileContent"), "{said}");
    assert!(said.contains("[\"k\"]") && said.contains("[\"in\"]") && said.contains("NOPE"), "{said}");
}

proptest! {
    /// Whatever a header holds, the line is JSON, and the header's text is in it if it is UTF-8.
    #[test]
    fn any_header_gives_json(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
        let Ok(header) = http::HeaderValue::from_bytes(&bytes) else { return Ok(()) };
        let mut ex = exchange();
        ex.request.headers.insert("x-a".parse().unwrap(), header);
        let line = shown(fields([("k", text("%REQ(x-a)%")), ("c", text("<%REQ(x-a)%>"))]), false, &ex);
        let parsed: serde_json::Value = serde_json::from_str(&line).unwrap();
        if let Ok(text) = std::str::from_utf8(&bytes) {
            prop_assert_eq!(parsed["k"].as_str(), Some(text));
            prop_assert_eq!(parsed["c"].as_str().map(str::to_string), Some(format!("<{text}>")));
        }
    }

    /// No format makes the compiler or the formatter panic.
    #[test]
    fn any_format_is_handled(format in "[%A-Z_():?a-z0-9 ]{0,40}") {
        let mut report = Report::new();
        if let Some(f) = Formatter::text(&format, &At::Root, &mut report) {
            let mut out = String::new();
            f.format(&context(&exchange()), &mut out);
        } else {
            prop_assert!(report.has_errors());
        }
    }
}
