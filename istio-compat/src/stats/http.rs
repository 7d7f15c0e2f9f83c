//! istio.stats for HTTP and gRPC. Workers; most of it runs once, when the stream is complete.

use super::Config;
use super::facts::Group;
use super::gather::{End, Gathered, peer_key};
use super::overrides::Metric;
use super::series::{Series, series, with_series};
use crate::cel::Attributes;
use crate::http_mx;
use crate::peer::Peer;
use nuncio_core::filter::{FilterAction, FilterCx, HttpFilter, Needs};
use nuncio_core::{Body, BodySource, Exchange, Frame, StreamError};
use nuncio_filters::grpc_stats::{GRPC_STATS, GrpcStatsObject};
use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::Duration;

#[derive(Debug)]
pub struct Filter(pub Arc<Config>);

/// State of a gRPC stream: messages that are reported already, (request, response).
type Reported = Rc<Cell<(u64, u64)>>;

impl HttpFilter for Filter {
    fn needs(&self) -> Needs {
        Needs::REQUEST_HEADERS.and(Needs::RESPONSE_HEADERS).and(Needs::COMPLETE)
    }
    fn on_request<'a>(&'a self, mut cx: FilterCx<'a>) -> FilterAction<'a> {
        if cx.ex.request.is_grpc() {
            cx.set_state::<Reported>(Rc::default());
        }
        FilterAction::Continue
    }
    fn on_response(&self, mut cx: FilterCx<'_>) {
        // Only long gRPC streams report before they end, and only once it is known who the peer is.
        let Some(reported) = cx.state::<Reported>().cloned() else { return };
        let Some(interval) = self.0.interval else { return };
        let ex = &mut *cx.ex;
        let Some(counts) = grpc_counts(ex) else { return };
        let key = peer_key(self.0.reporter);
        let mut peer = Peer::find(&ex.info, key);
        if peer.is_none() && self.0.reporter == super::Reporter::Client {
            // Metadata exchange stands before us in the chain, thus after us on the way back: read what it will read.
            static NO_LABELS: LazyLock<Arc<[String]>> = LazyLock::new(|| Vec::new().into());
            peer = ex.response.as_ref().and_then(|r| http_mx::from_headers(&r.headers, &NO_LABELS));
        }
        if peer.is_none() && !Peer::settled(&ex.info, key) {
            return;
        }
        let series = self.messages(ex, peer);
        let inner = std::mem::take(&mut ex.response_body);
        if inner.is_end() {
            ex.response_body = inner;
            return;
        }
        let timer = Box::pin(tokio::time::sleep(interval));
        ex.response_body = Body::Stream(Box::new(Reporting { inner, timer, interval, counts, reported, series }));
    }
    fn on_complete(&self, mut cx: FilterCx<'_>) {
        let reported = cx.state::<Reported>().cloned();
        let ex = &*cx.ex;
        let peer = Peer::find(&ex.info, peer_key(self.0.reporter));
        // A call that failed before any message has none to report, not even zero.
        let counts = grpc_counts(ex).filter(|c| c.requests() + c.responses() > 0);
        if let (Some(reported), Some(counts)) = (&reported, counts) {
            report_messages(&self.messages(ex, peer.clone()), &counts, reported);
        }
        let end = End { code: ex.info.response_code, grpc_status: reported.as_ref().and_then(|_| status(ex)), flags: ex.info.flags };
        let group = if reported.is_some() { Group::Grpc } else { Group::Http };
        let attributes = self.attributes(ex);
        let values = self.0.overrides.values(&attributes);
        let gathered = self.gather(ex, peer);
        with_series(&self.0, &gathered.facts(group, end, &values), |series| {
            series.add(Metric::Requests, 1);
            if let Some(duration) = ex.info.duration {
                series.record(Metric::Duration, u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
            }
            series.record(Metric::RequestBytes, ex.info.wire_rx_bytes);
            series.record(Metric::ResponseBytes, ex.info.wire_tx_bytes);
            series.report_custom(&self.0, &attributes);
        });
    }
}

impl Filter {
    fn attributes<'a>(&'a self, ex: &'a Exchange) -> Attributes<'a> {
        Attributes {
            info: &ex.info,
            request: Some(&ex.request),
            response: ex.response.as_ref(),
            trailers: ex.response_trailers.as_deref(),
            route: ex.route.as_deref(),
            server: Some(&self.0.server),
        }
    }
    fn gather<'a>(&self, ex: &'a Exchange, peer: Option<Arc<Peer>>) -> Gathered<'a> {
        Gathered::read(&self.0, &ex.info, Some(&ex.request), ex.cluster.as_deref(), peer)
    }
    fn messages(&self, ex: &Exchange, peer: Option<Arc<Peer>>) -> Arc<Series> {
        let values = self.0.overrides.values(&self.attributes(ex));
        series(&self.0, &self.gather(ex, peer).facts(Group::Messages, End::default(), &values))
    }
}

/// The gRPC status. Where gRPC-Web turned the trailers into data, grpc_stats has seen them before.
fn status(ex: &Exchange) -> Option<i32> {
    let seen = || grpc_counts(ex)?.status();
    let trailers = ex.response_trailers.as_deref();
    let headers = ex.response.as_ref().map(|r| &r.headers);
    if trailers.is_none()
        && let Some(status) = seen()
    {
        return Some(status);
    }
    super::grpc_status(trailers, headers, &ex.info)
}

fn grpc_counts(ex: &Exchange) -> Option<Arc<GrpcStatsObject>> {
    GrpcStatsObject::of(ex.info.filter_state.get(GRPC_STATS)?)
}

fn report_messages(series: &Series, counts: &GrpcStatsObject, reported: &Cell<(u64, u64)>) {
    let now = (counts.requests(), counts.responses());
    let before = reported.replace(now);
    series.add(Metric::RequestMessages, now.0.saturating_sub(before.0));
    series.add(Metric::ResponseMessages, now.1.saturating_sub(before.1));
}

/// A response body that reports messages from time to time while it runs.
struct Reporting {
    inner: Body,
    timer: Pin<Box<tokio::time::Sleep>>,
    interval: Duration,
    counts: Arc<GrpcStatsObject>,
    reported: Reported,
    series: Arc<Series>,
}

impl BodySource for Reporting {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        while self.timer.as_mut().poll(cx).is_ready() {
            report_messages(&self.series, &self.counts, &self.reported);
            self.timer.as_mut().reset(tokio::time::Instant::now() + self.interval);
        }
        self.inner.poll_frame(cx)
    }
    fn remaining(&self) -> Option<u64> {
        self.inner.remaining()
    }
    fn is_end(&self) -> bool {
        self.inner.is_end()
    }
    fn inner(&mut self) -> Option<&mut Body> {
        Some(&mut self.inner)
    }
}
