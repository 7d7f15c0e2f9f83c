//! Tests of the filter: both encodings there and back, broken input.

use super::*;
use http::{Method, StatusCode};
use nuncio_core::registry::Server;
use nuncio_core::test_kit::{self as kit, FakeCluster};
use nuncio_core::{Exchange, Frame, RequestHead};

fn setup(content_type: &'static str, accept: &'static str) -> (Arc<dyn HttpFilter>, Exchange, Arc<Server>) {
    let server = kit::server(Default::default());
    let filter = kit::compile(&Factory, &GrpcWeb {}, &server).unwrap();
    let mut ex = kit::exchange(RequestHead::new(Method::POST, "shop", "/pkg.Shop/Buy"));
    ex.request.headers.append(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    ex.request.headers.append(header::CONTENT_LENGTH, HeaderValue::from_static("8"));
    if !accept.is_empty() {
        ex.request.headers.append(header::ACCEPT, HeaderValue::from_static(accept));
    }
    kit::send_to(&mut ex, FakeCluster::new("c"), None);
    (filter, ex, server)
}
fn grpc_response() -> (ResponseHead, Body) {
    let mut head = ResponseHead::new(StatusCode::OK);
    head.headers.append(header::CONTENT_TYPE, GRPC);
    let mut trailers = Headers::new();
    trailers.append(STATUS, HeaderValue::from_static("0"));
    (head, kit::body([Frame::Data(Bytes::from_static(b"\0\0\0\0\x01a")), Frame::Trailers(Box::new(trailers))]))
}

#[tokio::test]
async fn binary() {
    let (filter, mut ex, server) = setup("application/grpc-web+proto", "");
    ex.request_body = kit::data([b"\0\0\0\0\0".as_slice()]);
    kit::request(&*filter, "w", &mut ex).await;
    assert!(ex.request.is_grpc() && !ex.request.headers.contains(&header::CONTENT_LENGTH));
    assert_eq!(ex.request.headers.get_str(&header::TE), Some("trailers"));
    assert_eq!(kit::collect(&mut ex.request_body).await.unwrap().0, b"\0\0\0\0\0".as_slice());
    let (head, body) = grpc_response();
    kit::respond(&*filter, "w", &mut ex, head, body);
    assert_eq!(ex.response.as_ref().unwrap().headers.get(&header::CONTENT_TYPE), Some(&WEB_PROTO));
    let (data, trailers) = kit::collect(&mut ex.response_body).await.unwrap();
    assert!(trailers.is_none());
    assert_eq!(data, b"\0\0\0\0\x01a\x80\0\0\0\x0fgrpc-status:0\r\n".as_slice());
    kit::complete(&*filter, "w", &mut ex);
    assert_eq!(ex.info.grpc_status, Some(0));
    assert_eq!(server.stats.root().counter("cluster.c.grpc-web.pkg.Shop.Buy.success").value(), 1);
}

#[tokio::test]
async fn text() {
    let (filter, mut ex, _) = setup("application/grpc-web-text", "application/grpc-web-text");
    ex.request_body = kit::data([b"AAAA".as_slice(), b"AA", b"A="]);
    kit::request(&*filter, "w", &mut ex).await;
    assert_eq!(kit::collect(&mut ex.request_body).await.unwrap().0, b"\0\0\0\0\0".as_slice());
    let (head, body) = grpc_response();
    kit::respond(&*filter, "w", &mut ex, head, body);
    assert_eq!(ex.response.as_ref().unwrap().headers.get(&header::CONTENT_TYPE), Some(&WEB_TEXT_PROTO));
    let (data, _) = kit::collect(&mut ex.response_body).await.unwrap();
    assert_eq!(data, b"AAAAAAFhgAAAAA9ncnBjLXN0YXR1czowDQo=".as_slice());
}

#[tokio::test]
async fn bad_base64_ends_the_stream() {
    for (piece, details) in [(b"AAA".as_slice(), "grpc_base_64_decode_failed_bad_size"), (b"????", "grpc_base_64_decode_failed")] {
        let (filter, mut ex, _) = setup("application/grpc-web-text", "");
        ex.request_body = kit::data([piece]);
        kit::request(&*filter, "w", &mut ex).await;
        assert_eq!(kit::collect(&mut ex.request_body).await.unwrap_err(), nuncio_core::StreamError::Protocol(details));
    }
}

#[tokio::test]
async fn other_responses_are_explained() {
    let (filter, mut ex, _) = setup("application/grpc-web", "");
    kit::request(&*filter, "w", &mut ex).await;
    let body = Body::Full(Bytes::from_static(b"no healthy upstream\n"));
    kit::respond(&*filter, "w", &mut ex, ResponseHead::new(StatusCode::SERVICE_UNAVAILABLE), body);
    let headers = &ex.response.as_ref().unwrap().headers;
    assert_eq!((headers.get_str(&STATUS), headers.get_str(&MESSAGE)), (Some("14"), Some("no healthy upstream%0A")));
    assert!(ex.response_body.is_end());
}

#[tokio::test]
async fn only_other_responses_are_waited_for() {
    let (filter, mut ex, _) = setup("application/grpc-web", "");
    kit::request(&*filter, "w", &mut ex).await;
    let (head, body) = grpc_response();
    (ex.response, ex.response_body) = (Some(head), body);
    assert_eq!(filter.hold_response(FilterCx { ex: &mut ex, name: "w", index: 0 }), None);
    ex.response = Some(ResponseHead::new(StatusCode::BAD_GATEWAY));
    ex.response_body = Body::Full(Bytes::from_static(b"why"));
    assert_eq!(filter.hold_response(FilterCx { ex: &mut ex, name: "w", index: 0 }), Some(MAX_MESSAGE));
}

#[tokio::test]
async fn other_requests_pass() {
    let (filter, mut ex, _) = setup("application/grpc", "");
    kit::request(&*filter, "w", &mut ex).await;
    assert_eq!(ex.request.headers.get_str(&header::CONTENT_LENGTH), Some("8"));
}
