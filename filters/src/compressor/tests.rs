//! Tests of the filter: what is compressed and what is left alone, quality values, routes.

use super::*;
use http::{Method, StatusCode};
use nuncio_core::test_kit::{self as kit, FakeRoute};
use nuncio_core::{BodySource, Exchange, Frame, RequestHead, ResponseHead, StreamError};
use nuncio_proto::envoy::config::core::v3::{RuntimeFeatureFlag, TypedExtensionConfig};
use nuncio_proto::envoy::extensions::compression::{
    brotli::compressor::v3::Brotli, gzip::compressor::v3::Gzip, zstd::compressor::v3::Zstd,
};
use nuncio_proto::typed::pack;
use proto::compressor::{CommonDirectionConfig, RequestDirectionConfig, ResponseDirectionConfig};
use std::io::Read;
use std::task::{Context, Poll};

const TEXT: &[u8] = b"the quick brown fox jumps over the lazy dog, the quick brown fox jumps over the lazy dog";

fn library(name: &str) -> Option<TypedExtensionConfig> {
    let any = match name {
        "gzip" => pack(&Gzip::default()),
        "br" => pack(&Brotli::default()),
        _ => pack(&Zstd::default()),
    };
    Some(TypedExtensionConfig { name: "lib".into(), typed_config: Some(any) })
}
fn config(name: &str) -> proto::Compressor {
    proto::Compressor {
        compressor_library: library(name),
        response_direction_config: Some(ResponseDirectionConfig::default()),
        ..Default::default()
    }
}
fn unpack(encoding: &str, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    match encoding {
        "gzip" => flate2::read::GzDecoder::new(data).read_to_end(&mut out).unwrap(),
        "br" => brotli::Decompressor::new(data, 4096).read_to_end(&mut out).unwrap(),
        _ => zstd::Decoder::new(data).unwrap().read_to_end(&mut out).unwrap(),
    };
    out
}
fn exchange(accept: &'static str) -> Exchange {
    let mut ex = kit::exchange(RequestHead::new(Method::GET, "shop", "/"));
    if !accept.is_empty() {
        ex.request.headers.append(header::ACCEPT_ENCODING, HeaderValue::from_static(accept));
    }
    ex
}
fn head(content_type: &'static str) -> ResponseHead {
    let mut head = ResponseHead::new(StatusCode::OK);
    head.headers.append(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    head.headers.append(header::CONTENT_LENGTH, HeaderValue::from_static("88"));
    head
}
async fn run(config: &proto::Compressor, accept: &'static str, head: ResponseHead) -> (Arc<Server>, Exchange) {
    let server = kit::server(Default::default());
    let filter = kit::compile(&Factory, config, &server).unwrap();
    let mut ex = exchange(accept);
    kit::request(&*filter, "c", &mut ex).await;
    kit::respond(&*filter, "c", &mut ex, head, kit::data([TEXT]));
    (server, ex)
}
fn encoding(ex: &Exchange) -> Option<&str> {
    ex.response.as_ref().unwrap().headers.get_str(&header::CONTENT_ENCODING)
}

#[tokio::test]
async fn every_library_makes_what_it_says() {
    for name in ["gzip", "br", "zstd"] {
        let (server, mut ex) = run(&config(name), name_static(name), head("text/plain; charset=utf-8")).await;
        assert_eq!(encoding(&ex), Some(name));
        let headers = &ex.response.as_ref().unwrap().headers;
        assert!(!headers.contains(&header::CONTENT_LENGTH));
        assert_eq!(headers.get_str(&header::VARY), Some("Accept-Encoding"));
        let (data, _) = kit::collect(&mut ex.response_body).await.unwrap();
        assert!(data.len() < TEXT.len());
        assert_eq!(unpack(name, &data), TEXT);
        let library = if name == "br" { "brotli" } else { name };
        let count = |n: &str| server.stats.root().counter(&format!("http.test.compressor.lib.{library}.{n}")).value();
        assert_eq!((count("response.compressed"), count("response.total_uncompressed_bytes")), (1, TEXT.len() as u64));
        assert_eq!((count("header_compressor_used"), count("request.not_compressed")), (1, 1));
        assert_eq!(count("response.total_compressed_bytes"), data.len() as u64);
    }
}
fn name_static(name: &str) -> &'static str {
    ["gzip", "br", "zstd"].into_iter().find(|n| *n == name).unwrap()
}

#[tokio::test]
async fn left_alone() {
    let with = |name: HeaderName, value: &'static str| {
        let mut head = head("text/plain");
        head.headers.insert(name, HeaderValue::from_static(value));
        head
    };
    for (accept, head) in [
        ("", head("text/plain")),
        ("deflate", head("text/plain")),
        ("gzip", head("image/png")),
        ("gzip", with(header::CONTENT_LENGTH, "29")),
        ("gzip", with(header::CONTENT_ENCODING, "br")),
        ("gzip", with(header::CACHE_CONTROL, "max-age=1, No-Transform")),
        ("gzip", with(header::TRANSFER_ENCODING, "gzip, chunked")),
    ] {
        let (_, mut ex) = run(&config("gzip"), accept, head).await;
        assert_ne!(encoding(&ex), Some("gzip"));
        assert_eq!(kit::collect(&mut ex.response_body).await.unwrap().0, TEXT);
    }
}

#[tokio::test]
async fn entity_tags() {
    let tagged = |tag: &'static str| {
        let mut head = head("text/plain");
        head.headers.append(header::ETAG, HeaderValue::from_static(tag));
        head.headers.append(header::VARY, HeaderValue::from_static("cookie"));
        head
    };
    let etag = |ex: &Exchange| ex.response.as_ref().unwrap().headers.get_str(&header::ETAG).map(ToString::to_string);
    let (_, ex) = run(&config("gzip"), "gzip", tagged("\"strong\"")).await;
    assert_eq!(etag(&ex), None);
    assert_eq!(ex.response.as_ref().unwrap().headers.get_str(&header::VARY), Some("cookie, Accept-Encoding"));
    let (_, ex) = run(&config("gzip"), "gzip", tagged("W/\"weak\"")).await;
    assert_eq!(etag(&ex).as_deref(), Some("W/\"weak\""));
    let mut weaken = config("gzip");
    weaken.response_direction_config =
        Some(ResponseDirectionConfig { weaken_etag_on_compress: true, disable_on_etag_header: true, ..Default::default() });
    let (_, ex) = run(&weaken, "gzip", tagged("\"strong\"")).await;
    assert_eq!(etag(&ex).as_deref(), Some("W/\"strong\""));
    let mut disable = config("gzip");
    disable.response_direction_config = Some(ResponseDirectionConfig { disable_on_etag_header: true, ..Default::default() });
    let (_, ex) = run(&disable, "gzip", tagged("\"strong\"")).await;
    assert_eq!((etag(&ex).as_deref(), encoding(&ex)), (Some("\"strong\""), None));
}

#[tokio::test]
async fn the_status_header_says_why() {
    let mut config = config("gzip");
    let response = ResponseDirectionConfig {
        status_header_enabled: true,
        disable_on_etag_header: true,
        uncompressible_response_codes: vec![206],
        ..Default::default()
    };
    config.response_direction_config = Some(response);
    let with = |name: HeaderName, value: &'static str| {
        let mut head = head("text/plain");
        head.headers.insert(name, HeaderValue::from_static(value));
        head
    };
    let partial = ResponseHead { status: StatusCode::PARTIAL_CONTENT, ..head("text/plain") };
    for (accept, head, status) in [
        ("gzip", head("text/plain"), Some("gzip;Compressed;OriginalLength=88")),
        ("gzip", with(header::CONTENT_LENGTH, "5"), Some("gzip;ContentLengthTooSmall")),
        ("gzip", head("image/png"), Some("gzip;ContentTypeNotAllowed")),
        ("gzip", with(header::ETAG, "x"), Some("gzip;EtagNotAllowed")),
        ("gzip", partial, Some("gzip;StatusCodeNotAllowed")),
        ("gzip", with(header::CONTENT_ENCODING, "br"), None),
        ("identity", head("text/plain"), None),
        ("", head("text/plain"), None),
        // What forbids it is told whatever is accepted.
        ("identity", head("image/png"), Some("gzip;ContentTypeNotAllowed")),
    ] {
        let (_, ex) = run(&config, accept, head).await;
        assert_eq!(ex.response.as_ref().unwrap().headers.get_str(&STATUS), status);
    }
}

#[tokio::test]
async fn compressors_of_a_chain_agree() {
    let server = kit::server(Default::default());
    let filters = ["br", "zstd", "gzip"].map(|n| kit::compile(&Factory, &config(n), &server).unwrap());
    for (accept, chosen) in [("gzip;q=0.5, zstd", "zstd"), ("gzip", "gzip"), ("*", "br")] {
        let mut ex = exchange(accept);
        for (index, filter) in filters.iter().enumerate() {
            let _ = filter.on_request(FilterCx { ex: &mut ex, name: "c", index });
        }
        ex.response = Some(head("text/plain"));
        ex.response_body = kit::data([TEXT]);
        for (index, filter) in filters.iter().enumerate().rev() {
            filter.on_response(FilterCx { ex: &mut ex, name: "c", index });
        }
        assert_eq!(encoding(&ex), Some(chosen));
        assert_eq!(unpack(chosen, &kit::collect(&mut ex.response_body).await.unwrap().0), TEXT);
    }
}

/// Yields data, then nothing for now, then the end.
struct Slow(u8);
impl BodySource for Slow {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        self.0 += 1;
        match self.0 {
            1 | 3 => Poll::Ready(Some(Ok(Frame::Data("hello".into())))),
            2 | 4 => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            5 => Poll::Ready(Some(Ok(Frame::Trailers(Box::default())))),
            _ => Poll::Ready(None),
        }
    }
}

#[tokio::test]
async fn streams_keep_their_pace_and_trailers() {
    for name in ["gzip", "br", "zstd"] {
        let (_, mut ex) = run(&config(name), name_static(name), ResponseHead::new(StatusCode::OK)).await;
        let filter = kit::compile(&Factory, &config(name), &kit::server(Default::default())).unwrap();
        ex.response_body = Body::Stream(Box::new(Slow(0)));
        ex.response.as_mut().unwrap().headers.clear();
        filter.on_response(FilterCx { ex: &mut ex, name: "c", index: 0 });
        let mut pieces = Vec::new();
        let mut trailers = false;
        while let Some(frame) = ex.response_body.frame().await {
            match frame.unwrap() {
                Frame::Data(data) => pieces.push(data),
                Frame::Trailers(_) => trailers = true,
            }
        }
        assert!(trailers && pieces.len() == 3, "{name}: {}", pieces.len());
        assert_eq!(unpack(name, &pieces.concat()), b"hellohello");
    }
}

#[tokio::test]
async fn requests_if_asked_for() {
    let enabled = Some(RuntimeFeatureFlag { default_value: Some(true), runtime_key: String::new() });
    let common = CommonDirectionConfig { enabled, ..Default::default() };
    let config =
        proto::Compressor { request_direction_config: Some(RequestDirectionConfig { common_config: Some(common) }), ..config("gzip") };
    let filter = kit::compile(&Factory, &config, &kit::server(Default::default())).unwrap();
    let mut ex = exchange("");
    ex.request_body = kit::data([TEXT]);
    ex.request.headers.append(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    kit::request(&*filter, "c", &mut ex).await;
    assert_eq!(ex.request.headers.get_str(&header::CONTENT_ENCODING), Some("gzip"));
    assert_eq!(unpack("gzip", &kit::collect(&mut ex.request_body).await.unwrap().0), TEXT);
}

#[tokio::test]
async fn per_route() {
    use proto::compressor_per_route::Override;
    let server = kit::server(Default::default());
    let mut removing = config("gzip");
    removing.response_direction_config = Some(ResponseDirectionConfig { remove_accept_encoding_header: true, ..Default::default() });
    let filter = kit::compile(&Factory, &removing, &server).unwrap();
    let disabled = proto::CompressorPerRoute { r#override: Some(Override::Disabled(true)) };
    let mut ex = exchange("gzip");
    ex.route = Some(Arc::new(FakeRoute::new("r", "c").with("c", kit::compile_route(&Factory, &disabled, &server).unwrap())));
    kit::request(&*filter, "c", &mut ex).await;
    assert!(ex.request.headers.contains(&header::ACCEPT_ENCODING));
    kit::respond(&*filter, "c", &mut ex, head("text/plain"), kit::data([TEXT]));
    assert_eq!(encoding(&ex), None);
    let mut ex = exchange("gzip");
    kit::request(&*filter, "c", &mut ex).await;
    assert!(!ex.request.headers.contains(&header::ACCEPT_ENCODING));
    kit::respond(&*filter, "c", &mut ex, head("text/plain"), kit::data([TEXT]));
    assert_eq!(encoding(&ex), Some("gzip"));
}

#[test]
fn refused() {
    let server = kit::server(Default::default());
    assert!(kit::compile(&Factory, &proto::Compressor::default(), &server).unwrap_err().contains("compressor_library"));
    let unknown = TypedExtensionConfig {
        name: "x".into(),
        typed_config: Some(nuncio_proto::Any { type_url: "type.googleapis.com/a.B".into(), value: vec![] }),
    };
    let config = proto::Compressor { compressor_library: Some(unknown), ..Default::default() };
    assert!(kit::compile(&Factory, &config, &server).unwrap_err().contains("a.B"));
    let brotli = TypedExtensionConfig { name: "x".into(), typed_config: Some(pack(&Brotli { quality: Some(12), ..Default::default() })) };
    let config = proto::Compressor { compressor_library: Some(brotli), ..Default::default() };
    assert!(kit::compile(&Factory, &config, &server).unwrap_err().contains("quality"));
}
