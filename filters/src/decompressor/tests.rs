//! Tests of the filter: bodies in any pieces, bombs, both directions.

use super::*;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{Method, StatusCode};
use nuncio_core::test_kit as kit;
use nuncio_core::{Exchange, Frame, RequestHead, ResponseHead, StreamError};
use nuncio_proto::json::{UnknownFields, parse_text};
use proptest::prelude::*;
use std::io::Write;

const LIBRARIES: [(&str, &str); 3] =
    [("gzip", "gzip.decompressor.v3.Gzip"), ("br", "brotli.decompressor.v3.Brotli"), ("zstd", "zstd.decompressor.v3.Zstd")];

fn config(encoding: &str, more: &str) -> proto::Decompressor {
    let kind = LIBRARIES.iter().find(|(e, _)| *e == encoding).unwrap().1;
    let yaml = format!(
        "decompressor_library: {{name: lib, typed_config: {{'@type': type.googleapis.com/envoy.extensions.compression.{kind}}}}}\n{more}"
    );
    parse_text(&yaml, UnknownFields::Refuse).unwrap_or_else(|e| panic!("{e}")).value
}

fn compressed(encoding: &str, data: &[u8]) -> Vec<u8> {
    match encoding {
        "gzip" => {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
            encoder.write_all(data).unwrap();
            encoder.finish().unwrap()
        }
        "br" => {
            let mut encoder = brotli::CompressorWriter::new(Vec::new(), 4096, 9, 22);
            encoder.write_all(data).unwrap();
            encoder.into_inner()
        }
        _ => zstd::encode_all(data, 3).unwrap(),
    }
}

fn pieces(data: &[u8], size: usize) -> Body {
    let frames: Vec<Frame> = data.chunks(size.max(1)).map(|c| Frame::Data(Bytes::copy_from_slice(c))).collect();
    kit::body(frames)
}

fn response(encoding: &str, more: &str, headers: &[(&'static str, &str)], body: Body) -> Exchange {
    let filter = kit::compile(&Factory, &config(encoding, more), &kit::server(Default::default())).unwrap();
    let mut ex = kit::exchange(RequestHead::new(Method::GET, "host", "/"));
    let mut head = ResponseHead::new(StatusCode::OK);
    for (name, value) in headers {
        head.headers.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
    }
    kit::respond(&*filter, "d", &mut ex, head, body);
    ex
}

#[tokio::test]
async fn bodies_come_out_plain() {
    let text: Vec<u8> = (0..40_000u32).flat_map(|n| n.to_string().into_bytes()).collect();
    for (encoding, _) in LIBRARIES {
        let empty = kit::body([Frame::Trailers(Box::default())]);
        let mut ex = response(encoding, "", &[("content-encoding", encoding)], empty);
        assert!(kit::collect(&mut ex.response_body).await.unwrap().0.is_empty());
        let packed = compressed(encoding, &text);
        for size in [1, 7, 1000, packed.len()] {
            let length = packed.len().to_string();
            let mut ex = response(encoding, "", &[("content-encoding", encoding), ("content-length", &length)], pieces(&packed, size));
            let head = ex.response.as_ref().unwrap();
            assert!(!head.headers.contains(&header::CONTENT_ENCODING) && !head.headers.contains(&header::CONTENT_LENGTH));
            let (data, trailers) = kit::collect(&mut ex.response_body).await.unwrap();
            assert!(data == text, "{encoding} in pieces of {size}");
            let told = trailers.unwrap();
            let told = told.get_str(&HeaderName::from_static("x-envoy-decompressor-lib-uncompressed-bytes")).map(str::to_string);
            assert_eq!(told, Some(text.len().to_string()));
        }
    }
}

#[tokio::test]
async fn bombs_end_their_stream() {
    let zeros = vec![0; 64 << 20];
    for (encoding, _) in LIBRARIES {
        let packed = compressed(encoding, &zeros);
        let mut ex = response(encoding, "", &[("content-encoding", encoding)], pieces(&packed, packed.len()));
        let mut made = 0;
        let error = loop {
            match ex.response_body.frame().await.unwrap() {
                Ok(Frame::Data(data)) => made += data.len(),
                Ok(Frame::Trailers(_)) => panic!("{encoding}: the bomb went off"),
                Err(error) => break error,
            }
        };
        assert_eq!(error, StreamError::LocalReset("decompressor_failed"));
        assert!(made <= (packed.len() * 100).max(64 * 1024), "{encoding}: {made} of {}", packed.len());
    }
}

#[tokio::test]
async fn broken_bodies_end_their_stream() {
    let text = b"hello hello hello hello".repeat(50);
    for (encoding, _) in LIBRARIES {
        let packed = compressed(encoding, &text);
        let mut garbled = packed.clone();
        for byte in garbled.iter_mut().skip(4) {
            *byte ^= 0x5a;
        }
        for (what, data) in [("cut", packed[..packed.len() - 1].to_vec()), ("garbled", garbled), ("plain", text.clone())] {
            let mut ex = response(encoding, "", &[("content-encoding", encoding)], pieces(&data, 100));
            assert!(kit::collect(&mut ex.response_body).await.is_err(), "{encoding} {what}");
        }
    }
}

#[tokio::test]
async fn only_what_is_asked_for() {
    let packed = compressed("gzip", b"hello");
    for (more, headers, plain, rest) in [
        ("", vec![("content-encoding", "GZIP")], true, None),
        ("", vec![("content-encoding", "gzip, br")], true, Some("br")),
        ("", vec![("content-encoding", "br, gzip")], false, Some("br, gzip")),
        ("", vec![("content-encoding", "gzip"), ("cache-control", "no-cache, No-Transform")], false, Some("gzip")),
        (
            "response_direction_config: {common_config: {ignore_no_transform_header: true}}",
            vec![("content-encoding", "gzip"), ("cache-control", "no-transform")],
            true,
            None,
        ),
        (
            "response_direction_config: {common_config: {enabled: {default_value: false, runtime_key: x}}}",
            vec![("content-encoding", "gzip")],
            false,
            Some("gzip"),
        ),
        ("", vec![], false, None),
    ] {
        let mut ex = response("gzip", more, &headers, pieces(&packed, 1000));
        let head = ex.response.as_ref().unwrap();
        assert_eq!(head.headers.get_str(&header::CONTENT_ENCODING), rest, "{headers:?}");
        let (data, _) = kit::collect(&mut ex.response_body).await.unwrap();
        assert_eq!(data == "hello", plain, "{headers:?}");
    }
}

#[tokio::test]
async fn requests_are_decompressed_and_responses_invited() {
    let filter = kit::compile(&Factory, &config("gzip", ""), &kit::server(Default::default())).unwrap();
    for (sent, wanted) in [(None, "gzip"), (Some("br, gzip;q=0.3"), "br,gzip"), (Some("gzip"), "gzip"), (Some("*"), "*,gzip")] {
        let mut ex = kit::exchange(RequestHead::new(Method::POST, "host", "/"));
        if let Some(sent) = sent {
            ex.request.headers.append(header::ACCEPT_ENCODING, HeaderValue::from_static(sent));
        }
        ex.request.headers.append(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        ex.request_body = pieces(&compressed("gzip", b"hello"), 3);
        assert!(kit::request(&*filter, "d", &mut ex).await.is_none());
        assert_eq!(ex.request.headers.get_str(&header::ACCEPT_ENCODING), Some(wanted));
        assert_eq!(kit::collect(&mut ex.request_body).await.unwrap().0, "hello");
    }
}

#[test]
fn wrong_settings_are_refused() {
    let server = kit::server(Default::default());
    for yaml in [
        "{}",
        "decompressor_library: {name: x, typed_config: {'@type': type.googleapis.com/envoy.extensions.compression.gzip.compressor.v3.Gzip}}",
        "decompressor_library: {name: x, typed_config: {'@type': type.googleapis.com/envoy.extensions.compression.gzip.decompressor.v3.Gzip, window_bits: 8}}",
        "decompressor_library: {name: 'a b', typed_config: {'@type': type.googleapis.com/envoy.extensions.compression.gzip.decompressor.v3.Gzip}}",
    ] {
        let config: proto::Decompressor = parse_text(yaml, UnknownFields::Refuse).unwrap_or_else(|e| panic!("{e}")).value;
        assert!(kit::compile(&Factory, &config, &server).is_err(), "{yaml}");
    }
}

proptest! {
    #[test]
    fn no_input_does_harm(data in proptest::collection::vec(any::<u8>(), 0..2000), size in 1usize..300) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for (encoding, _) in LIBRARIES {
            let mut ex = response(encoding, "", &[("content-encoding", encoding)], pieces(&data, size));
            let _ = runtime.block_on(kit::collect(&mut ex.response_body));
        }
    }
}
