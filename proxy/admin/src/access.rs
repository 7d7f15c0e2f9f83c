//! The admin port's access log and stats.

use http::{HeaderName, HeaderValue, Method, StatusCode};
use nuncio_core::{HttpVersion, RequestHead, ResponseFlags, ResponseHead, StreamInfo};
use nuncio_format::{AccessLogs, FormatContext};
use nuncio_stats::{Counter, Gauge, Scope};

use crate::reply::Reply;
use crate::request::Request;

/// Writes one entry; `cut` if the peer went away before the answer was written.
pub(crate) fn log(logs: &AccessLogs, mut info: StreamInfo, request: &Request, reply: &Reply<'_>, cut: bool) {
    let version = if request.http_10 { HttpVersion::Http10 } else { HttpVersion::Http11 };
    info.protocol = Some(version);
    info.response_code = reply.status;
    info.bytes_sent = reply.sent;
    info.request_meter.bytes.set(request.body.len() as u64);
    info.duration = Some(info.elapsed());
    if cut {
        info.flags.set(ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION);
    }
    let method = Method::from_bytes(request.method.as_bytes()).unwrap_or_default();
    let mut head = RequestHead::new(method, request.host.clone(), request.target.clone());
    head.version = version;
    for (name, value) in request.headers.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("host")) {
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(value)) {
            head.headers.append(name, value);
        }
    }
    let response = ResponseHead::new(StatusCode::from_u16(reply.status).unwrap_or_default());
    logs.log(&FormatContext { response: Some(&response), ..FormatContext::request(&info, &head) });
}

/// `http.admin.*` and `listener.admin.*`.
#[derive(Debug)]
pub(crate) struct AdminStats {
    http_cx_total: Counter,
    http_cx_active: Gauge,
    cx_total: Counter,
    cx_active: Gauge,
    rq_total: Counter,
    rq_active: Gauge,
    rq_completed: Counter,
    /// 1xx to 5xx.
    rq_class: [Counter; 5],
}

impl AdminStats {
    pub fn in_scope(root: &Scope) -> Self {
        let (http, listener) = (root.scope("http.admin."), root.scope("listener.admin."));
        Self {
            http_cx_total: http.counter("downstream_cx_total"),
            http_cx_active: http.gauge("downstream_cx_active"),
            cx_total: listener.counter("downstream_cx_total"),
            cx_active: listener.gauge("downstream_cx_active"),
            rq_total: http.counter("downstream_rq_total"),
            rq_active: http.gauge("downstream_rq_active"),
            rq_completed: http.counter("downstream_rq_completed"),
            rq_class: [1, 2, 3, 4, 5].map(|class| http.counter(&format!("downstream_rq_{class}xx"))),
        }
    }

    /// Counts a connection until the guard is dropped.
    pub fn connection(&self) -> impl Drop + use<'_> {
        self.http_cx_total.inc();
        self.cx_total.inc();
        self.http_cx_active.inc();
        self.cx_active.inc();
        OpenConnection(self)
    }

    /// Counts a request until the guard is done or dropped.
    pub fn request(&self) -> ActiveRequest<'_> {
        self.rq_total.inc();
        self.rq_active.inc();
        ActiveRequest(self)
    }
}

struct OpenConnection<'a>(&'a AdminStats);

impl Drop for OpenConnection<'_> {
    fn drop(&mut self) {
        self.0.http_cx_active.dec();
        self.0.cx_active.dec();
    }
}

pub(crate) struct ActiveRequest<'a>(&'a AdminStats);

impl ActiveRequest<'_> {
    /// The request was answered with `status`.
    pub fn done(self, status: u16) {
        self.0.rq_completed.inc();
        if let Some(counter) = usize::from(status / 100).checked_sub(1).and_then(|class| self.0.rq_class.get(class)) {
            counter.inc();
        }
    }
}

impl Drop for ActiveRequest<'_> {
    fn drop(&mut self) {
        self.0.rq_active.dec();
    }
}
