//! CEL: any text compiles or is refused, what compiles runs, gives the same twice, and printing never panics; expressions as control planes
//! send them likewise.
use http::{HeaderName, HeaderValue, Method, StatusCode};
use nuncio_core::{RequestHead, ResponseHead, test_kit};
use nuncio_istio::cel::{Attributes, Program};
use nuncio_proto::Message;
use nuncio_proto::google::api::expr::v1alpha1::Expr;

fn run(program: &Program) {
    let mut head = RequestHead::new(Method::GET, "a.test", "/p?q=1&q=2");
    head.headers.append(HeaderName::from_static("x"), HeaderValue::from_static("1.5e3"));
    let mut exchange = test_kit::exchange(head);
    exchange.response = Some(ResponseHead::new(StatusCode::OK));
    let response = exchange.response.as_ref();
    let attributes =
        Attributes { info: &exchange.info, request: Some(&exchange.request), response, trailers: None, route: None, server: None };
    let (mut first, mut second) = (String::new(), String::new());
    assert_eq!(program.print(&attributes, &mut first), program.print(&attributes, &mut second));
    assert_eq!(first, second);
}

/// Text.
pub fn text(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(program) = Program::compile(text) {
        run(&program);
    }
}

/// Wire bytes of an `Expr`.
pub fn parsed(data: &[u8]) {
    let Ok(expr) = Expr::decode(data) else { return };
    if let Ok(program) = Program::from_proto(&expr) {
        run(&program);
    }
}
