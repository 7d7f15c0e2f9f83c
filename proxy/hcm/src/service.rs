//! One downstream HTTP connection: codec choice, timers and drain, and the life of each request on it.
//! Runs on the worker that accepted the connection.

use crate::config::{Codec, HcmConfig, LocalConfig, ServerHeader};
use crate::hcm::HcmSlot;
use crate::local_reply;
use crate::names::*;
use crate::path::Normalized;
use crate::router::{self, Answered};
use crate::stream::{Active, MeteredBody};
use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use nuncio_core::filter::Needs;
use nuncio_core::info::measures_route_time;
use nuncio_core::{Body, ByteStr, ConnectionInfo, Exchange, HttpVersion, LocalReply, RequestHead, ResponseFlags, ResponseHead, StreamInfo};
use nuncio_format::AccessLogType;
use nuncio_http::{ConnControl, Malformed, Request, Response, Service, Unserved, WhyUnserved};
use nuncio_listener::DrainWatch;
use nuncio_route::{RouteEntry, RouteInput, RouteMatch};
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

/// Serves the requests of one connection.
pub struct HttpConnection {
    slot: Arc<HcmSlot>,
    /// The configuration as this connection saw it last; compared by pointer so that shared counts are not touched per request.
    config: RefCell<LocalConfig>,
    info: Rc<ConnectionInfo>,
    control: Rc<ConnControl>,
    drain: DrainWatch,
    /// The current HTTP/1 request has waited for something, so that the codec could read its body meanwhile.
    suspended: Cell<bool>,
}

/// What comes of a response.
enum Answer {
    Response(Response),
    /// A filter wants another target to be asked for the same client.
    Again(Active),
}

impl HttpConnection {
    /// A connection with the slot's current configuration.
    pub fn new(slot: Arc<HcmSlot>, info: Rc<ConnectionInfo>, control: Rc<ConnControl>, drain: DrainWatch) -> Self {
        let config = RefCell::new(Rc::new(slot.load()));
        Self { slot, config, info, control, drain, suspended: Cell::new(false) }
    }

    /// The newest configuration: a change of routes or filters applies to the next request of a living connection.
    fn config(&self) -> LocalConfig {
        let mut mine = self.config.borrow_mut();
        self.slot.refresh(&mut mine);
        mine.clone()
    }

    async fn handle(&self, request: Request) -> Response {
        let config = self.config();
        let Request { head, body, upgrade, informational, stream } = request;
        self.info.requests.set(self.info.requests.get() + 1);
        let mut info = StreamInfo::new(self.info.clone(), Some(head.version));
        info.request_header_bytes = head.headers.byte_size() as u64;
        let has_body = !matches!(body, Body::Empty);
        let body = MeteredBody::wrap(body, &info.request_meter);
        let complete = !matches!(body, Body::Stream(_));
        if complete {
            info.last_downstream_rx = Some(info.elapsed());
        }
        let mut active = Active::new(Box::new(Exchange::new(head, body, info)), config.clone());
        active.has_body = has_body;
        active.ex.header_limits = config.options.header_limits();
        active.control = stream.clone();
        let mut streams = router::Streams { informational, upgrade: None };
        let mut upgrade = upgrade;
        loop {
            let refused = match self.admit(&mut active, upgrade.take(), &mut streams) {
                None => {
                    let filters = config.chain(active.upgrade);
                    filters.on_request(&mut active.ex, |ex| resolve_route(&config, ex)).await
                }
                refused => refused,
            };
            let answered = match refused {
                Some(reply) => Err(reply),
                None => router::run(&mut active, &mut streams).await,
            };
            let answer = match answered {
                Ok(Answered::Response) => {
                    let filters = config.chain(active.upgrade);
                    if filters.needs(Needs::RESPONSE_BODY) {
                        filters.hold_response(&mut active.ex).await;
                    }
                    self.respond(active)
                }
                Ok(Answered::Redirected(body)) => Answer::Again(active.redirected(body)),
                Err(reply) => self.reply(active, *reply),
            };
            match answer {
                Answer::Response(response) => return response,
                Answer::Again(next) => active = next,
            }
        }
    }

    /// Everything before the filters: sanity, identity, path, route, upgrade.
    fn admit(&self, active: &mut Active, upgrade: Option<Body>, streams: &mut router::Streams) -> Option<Box<LocalReply>> {
        let config = active.config.clone();
        let ex = &mut *active.ex;
        // HTTP/1's codec tells an empty Host from none.
        if ex.request.authority.is_empty() && ex.request.version.is_multiplexed() {
            return refuse(400, "", "missing_host_header");
        }
        if ex.request.path.is_empty() && ex.request.method != Method::CONNECT {
            return refuse(404, "", "missing_path_rejected");
        }
        if !ex.request.path.is_empty() && !ex.request.path.starts_with('/') {
            config.stats.downstream_rq_non_relative_path.inc();
            return refuse(404, "", "absolute_path_rejected");
        }
        if ex.request.method.as_str() == "QUERY" && !ex.request.headers.contains(&header::CONTENT_TYPE) {
            return refuse(400, "", "query_missing_content_type");
        }
        if let Some(at) = ex.request.path.find('#') {
            if config.reject_fragment {
                config.stats.downstream_rq_failed_path_normalization.inc();
                return refuse(400, "", "path_normalization_failed");
            }
            ex.request.path = ByteStr::from(ex.request.path.get(..at).unwrap_or_default());
        }
        match config.path.apply(&ex.request.path) {
            Normalized::Same => {}
            Normalized::Changed(path) => ex.request.path = path.into(),
            Normalized::Reject(path) => {
                if let Some(path) = path {
                    ex.request.path = path.into();
                }
                config.stats.downstream_rq_failed_path_normalization.inc();
                return refuse(400, "", "path_normalization_failed");
            }
            Normalized::Redirect(path) => {
                config.stats.downstream_rq_redirected_with_normalized_path.inc();
                let mut reply = LocalReply::new(307, "", "path_normalization_failed");
                reply.headers.insert(header::LOCATION, HeaderValue::try_from(path.as_str()).ok()?);
                ex.request.path = path.into();
                return Some(Box::new(reply));
            }
        }
        if let Some(authority) = config.host.apply(&ex.request.authority, &self.info) {
            ex.request.authority = authority;
        }
        // A request that follows a redirect was looked at when it came.
        if active.redirects.is_none() {
            for mutation in &config.early_mutations {
                mutation.apply_request(&mut ex.request, &ex.info, None);
            }
            let internal = match config.identity.apply(&mut ex.request, &mut ex.info) {
                Ok(internal) => internal,
                Err(status) => {
                    config.stats.downstream_rq_rejected_via_ip_detection.inc();
                    return refuse(status, "", "rejecting_because_detection_failed");
                }
            };
            first_route(&config, ex, internal);
        } else {
            resolve_route(&config, ex);
        }
        if config.log_options.on_new_request {
            // Of the body nothing has been seen yet, even if it is there.
            let received = active.ex.info.request_meter.bytes.replace(0);
            active.ex.info.wire_rx_bytes = active.control.bytes_received();
            active.log(AccessLogType::DownstreamStart);
            active.ex.info.request_meter.bytes.set(received);
        }
        self.settle_upgrade(active, upgrade, streams)
    }

    /// An upgrade goes on only where the connection manager or the route allows its type.
    fn settle_upgrade(&self, active: &mut Active, upgrade: Option<Body>, streams: &mut router::Streams) -> Option<Box<LocalReply>> {
        let body = upgrade?;
        let ex = &mut *active.ex;
        // The router says that there is no route.
        ex.route.as_ref()?;
        let kind = if ex.request.method == Method::CONNECT { "CONNECT" } else { ex.request.protocol.as_deref().unwrap_or_default() };
        let by_route = entry(ex).and_then(|e| e.forward()).and_then(|f| f.upgrade(kind));
        if by_route.unwrap_or_else(|| active.config.upgrade_allowed(kind)) {
            streams.upgrade = Some(body);
            active.upgrade = active.config.upgrades.iter().position(|u| u.kind.eq_ignore_ascii_case(kind));
            active.begin_upgrade();
            None
        } else {
            active.config.stats.downstream_rq_ws_on_non_ws_route.inc();
            refuse(403, "", "upgrade_failed")
        }
    }

    fn reply(&self, mut active: Active, reply: LocalReply) -> Answer {
        if reply.status == 0 {
            // Nobody is there to read a reply.
            return Answer::Response(Response::reset(0));
        }
        let config = active.config.clone();
        // A bad request may have been read wrongly, and so may be what follows it (`ActiveStream::onLocalReply`).
        let close =
            reply.status == 400 && !active.ex.request.version.is_multiplexed() && !config.options.h1.stream_error_on_invalid_http_message;
        local_reply::install(&config.local_reply, &config.server.runtime, &mut active.ex, reply, true);
        let mut answer = self.respond(active);
        if let Answer::Response(response) = &mut answer {
            response.close |= close;
        }
        answer
    }

    /// The response phase: filters, Envoy's response headers, connection fate.
    fn respond(&self, mut active: Active) -> Answer {
        let config = active.config.clone();
        let ex = &mut *active.ex;
        let filters = config.chain(active.upgrade);
        if filters.needs(Needs::RESPONSE_HEADERS) {
            filters.on_response(ex);
            if ex.again.is_some() && router::again(&config, ex) {
                return Answer::Again(active.redirected(Body::Empty));
            }
        }
        if let Some(reply) = ex.replacement.take() {
            local_reply::install(&config.local_reply, &config.server.runtime, ex, *reply, true);
        }
        let Some(mut head) = ex.response.take() else {
            // The router always leaves a response; this stands for a bug and is visible as a 500.
            return Answer::Response(Response {
                head: ResponseHead::new(http::StatusCode::INTERNAL_SERVER_ERROR),
                body: active.into_body(),
                close: true,
                reset: None,
                flush_timeout: None,
            });
        };
        self.response_headers(&config, ex, &mut head);
        ex.info.response_code = head.status.as_u16();
        ex.info.response_header_bytes = head.headers.byte_size() as u64;
        ex.info.first_downstream_tx = Some(ex.info.elapsed());
        // As Envoy, which reads the body after the head: what is answered at once is answered before the body.
        let early =
            active.has_body && !self.suspended.get() && !ex.info.request_meter.awaited.get() && !ex.request.version.is_multiplexed();
        if early {
            config.stats.downstream_rq_rx_reset.inc();
            ex.info.last_downstream_rx = None;
            // A body that was read and found too large counts.
            if ex.info.details.as_deref() != Some("request_payload_too_large") {
                ex.info.request_meter.bytes.set(0);
            }
        }
        if early || ex.info.last_downstream_rx.is_none() && ex.info.request_meter.last.get().is_none() {
            config.stats.downstream_rq_response_before_rq_complete.inc();
        }
        let drained = self.drain.should_close();
        if drained && !self.control.is_draining() {
            config.stats.downstream_cx_drain_close.inc();
        }
        // Formatters and completion callbacks read the response after the codec took its head.
        if filters.needs(Needs::COMPLETE) || !config.access_logs.is_empty() {
            ex.response = Some(head.clone());
        }
        let tunnel = || is_upgrade_response(&head) || active.ex.request.method == Method::CONNECT && head.status == StatusCode::OK;
        if config.log_options.on_tunnel && tunnel() {
            active.log(AccessLogType::DownstreamTunnelSuccessfullyEstablished);
        }
        active.charge();
        let flush_timeout = entry(&active.ex).and_then(|e| e.forward()).and_then(|f| f.flush_timeout().or(f.idle_timeout()));
        Answer::Response(Response { head, body: active.into_body(), close: drained || early, reset: None, flush_timeout })
    }

    fn response_headers(&self, config: &HcmConfig, ex: &mut Exchange, head: &mut ResponseHead) {
        if !is_upgrade_response(head) {
            head.headers.remove(&header::CONNECTION);
        }
        head.headers.remove(&KEEP_ALIVE);
        head.headers.remove(&PROXY_CONNECTION);
        if !head.headers.contains(&header::DATE) {
            head.headers.append(header::DATE, crate::date::now());
        }
        match config.server_header {
            ServerHeader::Overwrite => head.headers.insert(header::SERVER, config.server_name.clone()),
            ServerHeader::AppendIfAbsent if !head.headers.contains(&header::SERVER) => {
                head.headers.append(header::SERVER, config.server_name.clone())
            }
            ServerHeader::AppendIfAbsent | ServerHeader::PassThrough => {}
        }
        if let Some(via) = &config.identity.via {
            append_comma(&mut head.headers, &header::VIA, via.as_bytes());
        }
        if (config.always_set_request_id_in_response || ex.request.headers.contains(&X_ENVOY_FORCE_TRACE))
            && let Some(id) = ex.request.headers.get(&X_REQUEST_ID)
        {
            head.headers.insert(X_REQUEST_ID.clone(), id.clone());
        }
        if let Some(status) = &config.proxy_status {
            status.apply(head, &ex.info);
        }
    }
}

impl Service for HttpConnection {
    async fn call(self: Rc<Self>, request: Request) -> Response {
        let control = request.stream.clone();
        let this = self.clone();
        self.suspended.set(false);
        let mut work = pin!(async move { this.handle(request).await });
        // The codec keeps this future when the client goes away; dropping the work ends its exchange and its upstream.
        poll_fn(|cx| match work.as_mut().poll(cx) {
            Poll::Ready(response) => Poll::Ready(response),
            Poll::Pending => {
                self.suspended.set(true);
                control.poll_closed(cx).map(|()| Response::reset(0))
            }
        })
        .await
    }

    fn malformed(&self, error: &Malformed) -> Response {
        let config = self.config();
        let head = error.head.as_deref().cloned();
        let headless = head.is_none();
        let head = head.unwrap_or_else(|| RequestHead::new(Method::GET, "", ""));
        let info = StreamInfo::new(self.info.clone(), Some(head.version));
        let mut active = Active::new(Box::new(Exchange::new(head, Body::Empty, info)), config.clone());
        active.headless = headless;
        let late = error.status == StatusCode::REQUEST_TIMEOUT;
        // In Envoy the connection manager misses the host, not the codec, and says nothing.
        let unhosted = error.details == nuncio_http::validate::details::MISSING_HOST;
        let text = match unhosted {
            true => "",
            false if late => "request header timeout",
            false => nuncio_http::reason_phrase(error.status),
        };
        local_reply::install(
            &config.local_reply,
            &config.server.runtime,
            &mut active.ex,
            LocalReply::new(error.status.as_u16(), text, error.details),
            !headless,
        );
        // Set when the connection ends, so that the reply's formats do not show it.
        if late {
            config.stats.downstream_rq_header_timeout.inc();
        } else if !unhosted {
            config.stats.downstream_cx_protocol_error.inc();
            active.ex.info.flags.set(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR);
        }
        match self.respond(active) {
            Answer::Response(response) => response,
            // No filter saw a request that could be asked anew.
            Answer::Again(_) => Response::reset(0),
        }
    }

    fn unserved(&self, request: &Unserved) {
        let config = self.config();
        let mut info = StreamInfo::new(self.info.clone(), Some(request.version));
        info.response_code = request.status;
        info.details = Some(request.details.into());
        let flag = match request.why {
            WhyUnserved::Disconnected => ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION,
            WhyUnserved::Malformed => ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR,
            WhyUnserved::Reset => ResponseFlags::DOWNSTREAM_REMOTE_RESET,
        };
        info.flags.set(flag);
        config.stats.downstream_rq_rx_reset.inc();
        if request.why == WhyUnserved::Malformed {
            config.stats.downstream_cx_protocol_error.inc();
        }
        let head = RequestHead::new(Method::GET, "", "");
        Active::new(Box::new(Exchange::new(head, Body::Empty, info)), config).unserved();
    }
}

fn refuse(status: u16, body: &'static str, details: &'static str) -> Option<Box<LocalReply>> {
    Some(Box::new(LocalReply::new(status, body, details)))
}

fn is_upgrade_response(head: &ResponseHead) -> bool {
    head.status == http::StatusCode::SWITCHING_PROTOCOLS
}

/// The route of the exchange as the router knows it.
pub fn entry(ex: &Exchange) -> Option<&RouteEntry> {
    ex.route.as_ref()?.as_any().downcast_ref()
}

/// Matches the route of a request that just came: its table says which headers only internal requests may carry, and its route
/// whether it is traced.
fn first_route(config: &HcmConfig, ex: &mut Exchange, internal: bool) {
    let stripped = match_route(config, ex, internal);
    if !stripped.is_empty() {
        for name in &stripped {
            ex.request.headers.remove(name);
        }
        match_route(config, ex, true);
    }
    let route = ex.route.clone();
    let tracing = route.as_ref().and_then(|r| r.as_any().downcast_ref::<RouteEntry>()).and_then(RouteEntry::tracing);
    config.identity.sample(&mut ex.request, &mut ex.info, &config.server.runtime, tracing);
}

/// Matches the route and looks its cluster up.
pub fn resolve_route(config: &HcmConfig, ex: &mut Exchange) {
    match_route(config, ex, true);
}

/// The same; gives the headers that a request that is not internal must not carry.
fn match_route(config: &HcmConfig, ex: &mut Exchange, internal: bool) -> Vec<HeaderName> {
    ex.route = None;
    ex.cluster = None;
    let Exchange { request, info, random, .. } = &mut *ex;
    let mut stripped = Vec::new();
    let began = (config.route_resolution.is_some() || measures_route_time()).then(Instant::now);
    let found = config.routes.with_table(request, |table| {
        if !internal {
            stripped.extend_from_slice(table.internal_only_headers());
        }
        let input = RouteInput { info, random: *random, runtime: &config.server.runtime };
        table.route(request, &input)
    });
    info.route_resolutions += 1;
    if let Some(began) = began {
        info.route_resolution_time += began.elapsed();
    }
    match found {
        Some(RouteMatch::Route(entry)) => {
            ex.info.route_name = Some(nuncio_core::views::RouteView::name(entry.as_ref()).clone()).filter(|n| !n.is_empty());
            ex.info.virtual_host = Some(nuncio_core::views::RouteView::virtual_host(entry.as_ref()).clone());
            ex.cluster = match entry.cluster_slot() {
                Some(slot) => slot.get(),
                None => entry.cluster_for(&ex.request, &ex.info).and_then(|slot| slot.get()),
            };
            if ex.cluster.is_some() {
                ex.info.upstream_mut().cluster.clone_from(&ex.cluster);
            }
            ex.route = Some(entry);
        }
        Some(RouteMatch::NotFound) | None => {}
    }
    stripped
}

/// Which codec a connection speaks, from configuration, ALPN and the first bytes.
pub fn codec(config: &HcmConfig, info: &ConnectionInfo) -> Option<HttpVersion> {
    match config.codec {
        Codec::Http1 => Some(HttpVersion::Http11),
        Codec::Http2 => Some(HttpVersion::Http2),
        Codec::Auto => match info.tls.as_ref().and_then(|t| t.alpn.as_ref()).map(ByteStr::as_str) {
            Some("h2" | "istio-h2") => Some(HttpVersion::Http2),
            Some("http/1.1" | "http/1.0" | "istio-http/1.1" | "istio-http/1.0") => Some(HttpVersion::Http11),
            _ => None,
        },
    }
}
