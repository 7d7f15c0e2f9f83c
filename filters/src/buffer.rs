//! envoy.filters.http.buffer: waits for the whole request before it goes on, and answers 413 if it is too long.
//! Source: `envoy/extensions/filters/http/buffer/v3/buffer.proto`.

use crate::config::decode;
use crate::whole::{Collected, collect_request, too_long};
use http::{HeaderValue, header};
use nuncio_core::diag::{At, Report};
use nuncio_core::filter::{FilterAction, FilterCx, HttpFilter, Needs, Outcome};
use nuncio_core::registry::{FactoryCx, HttpFilterFactory};
use nuncio_proto::envoy::extensions::filters::http::buffer::v3 as proto;
use std::any::Any;
use std::sync::Arc;

/// Factory of `envoy.extensions.filters.http.buffer.v3.Buffer`, per route `BufferPerRoute`.
#[derive(Debug)]
pub struct Factory;

impl HttpFilterFactory for Factory {
    fn name(&self) -> &'static str {
        "envoy.filters.http.buffer"
    }
    fn types(&self) -> &'static [&'static str] {
        &["envoy.extensions.filters.http.buffer.v3.Buffer"]
    }
    fn route_types(&self) -> &'static [&'static str] {
        &["envoy.extensions.filters.http.buffer.v3.BufferPerRoute"]
    }
    fn compile(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn HttpFilter>> {
        Some(Arc::new(Filter(max(&decode(config, at, cx.report)?, at, cx.report)?)))
    }
    fn compile_route(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn Any + Send + Sync>> {
        use proto::buffer_per_route::Override;
        let config: proto::BufferPerRoute = decode(config, at, cx.report)?;
        Some(Arc::new(match &config.r#override {
            Some(Override::Disabled(true)) => PerRoute(None),
            Some(Override::Buffer(buffer)) => PerRoute(Some(max(buffer, &at.field("buffer"), cx.report)?)),
            _ => {
                cx.report.error(at, "neither disabled nor buffer", "set disabled: true or buffer");
                return None;
            }
        }))
    }
}

fn max(buffer: &proto::Buffer, at: &At<'_>, report: &mut Report) -> Option<usize> {
    let max = buffer.max_request_bytes.filter(|m| *m > 0).and_then(|m| usize::try_from(m).ok());
    if max.is_none() {
        report.error(&at.field("max_request_bytes"), "nothing", "give at least 1");
    }
    max
}

#[derive(Debug)]
struct Filter(usize);

/// The limit of a route; none if the filter is off there.
#[derive(Debug)]
struct PerRoute(Option<usize>);

impl HttpFilter for Filter {
    fn needs(&self) -> Needs {
        Needs::REQUEST_HEADERS
    }
    fn on_request<'a>(&'a self, cx: FilterCx<'a>) -> FilterAction<'a> {
        let limit = match cx.route_config::<PerRoute>() {
            Some(route) => route.0,
            None => Some(self.0),
        };
        let Some(limit) = limit else { return FilterAction::Continue };
        if cx.ex.request_body.is_end() {
            return FilterAction::Continue;
        }
        FilterAction::Await(Box::pin(async move {
            let ex = &mut *cx.ex;
            match collect_request(ex, limit, false).await {
                Collected::TooLong => return Outcome::Respond(too_long()),
                Collected::Whole(data, false) if !ex.request.headers.contains(&header::CONTENT_LENGTH) => {
                    ex.request.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(data.len()));
                    ex.request.headers.remove(&header::TRANSFER_ENCODING);
                }
                Collected::Whole(..) | Collected::Part(..) | Collected::Failed => {}
            }
            Outcome::Continue
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use http::Method;
    use nuncio_core::test_kit::{self as kit, FakeRoute};
    use nuncio_core::{Body, Exchange, Frame, LocalReply, RequestHead};

    async fn run(body: Body, route: Option<proto::BufferPerRoute>) -> (Option<LocalReply>, Exchange) {
        let server = kit::server(Default::default());
        let filter = kit::compile(&Factory, &proto::Buffer { max_request_bytes: Some(8) }, &server).unwrap();
        let mut ex = kit::exchange(RequestHead::new(Method::POST, "shop", "/"));
        ex.request_body = body;
        if let Some(route) = route {
            ex.route = Some(Arc::new(FakeRoute::new("r", "c").with("b", kit::compile_route(&Factory, &route, &server).unwrap())));
        }
        let reply = kit::request(&*filter, "b", &mut ex).await;
        (reply, ex)
    }

    #[tokio::test]
    async fn holds_the_whole_request() {
        let (reply, ex) = run(kit::data([b"abc".as_slice(), b"de", b"f"]), None).await;
        assert!(reply.is_none());
        assert!(matches!(&ex.request_body, Body::Full(b) if **b == *b"abcdef"));
        assert_eq!(ex.request.headers.get_str(&header::CONTENT_LENGTH), Some("6"));
    }

    #[tokio::test]
    async fn keeps_trailers() {
        let frames = [Frame::Data(Bytes::from_static(b"abc")), Frame::Trailers(Box::default())];
        let (_, mut ex) = run(kit::body(frames), None).await;
        let (data, trailers) = kit::collect(&mut ex.request_body).await.unwrap();
        assert!(data == "abc" && trailers.is_some() && !ex.request.headers.contains(&header::CONTENT_LENGTH));
    }

    #[tokio::test]
    async fn refuses_what_is_too_long() {
        let (reply, _) = run(kit::data([b"abcde".as_slice(), b"fghi"]), None).await;
        let reply = reply.unwrap();
        assert_eq!((reply.status, reply.details.as_ref()), (413, "request_payload_too_large"));
        assert!(run(Body::Full(Bytes::from_static(b"123456789")), None).await.0.is_some());
    }

    #[tokio::test]
    async fn per_route() {
        use proto::buffer_per_route::Override;
        let off = proto::BufferPerRoute { r#override: Some(Override::Disabled(true)) };
        let (reply, ex) = run(kit::data([b"123456789".as_slice()]), Some(off)).await;
        assert!(reply.is_none() && matches!(ex.request_body, Body::Stream(_)));
        let more = proto::BufferPerRoute { r#override: Some(Override::Buffer(proto::Buffer { max_request_bytes: Some(9) })) };
        assert!(run(kit::data([b"123456789".as_slice()]), Some(more)).await.0.is_none());
    }
}
