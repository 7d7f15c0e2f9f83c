//! Load reports out of band, from servers on loopback.

use super::*;
use crate::tests::{cluster, run as worker, static_cluster, until};
use bytes::BufMut;
use nuncio_core::{Body, BodySource, StreamError};
use nuncio_http::{ConnControl, Malformed, Response, ServerOptions, Service, serve_h2};
use std::cell::{Cell, RefCell};
use std::task::{Context, Poll};

fn framed(message: &[u8]) -> Vec<u8> {
    let mut out = vec![0];
    out.put_u32(message.len() as u32);
    out.extend_from_slice(message);
    out
}

#[test]
fn messages_are_taken_whole_and_bounded() {
    let mut bytes = BytesMut::new();
    for part in [&framed(b"ab")[..], &framed(b"")[..], &framed(b"c")[..3]] {
        bytes.extend_from_slice(part);
    }
    assert_eq!(take_message(&mut bytes), Ok(Some(Bytes::from_static(b"ab"))));
    assert_eq!(take_message(&mut bytes), Ok(None));
    bytes.extend_from_slice(&framed(b"c")[3..]);
    assert_eq!(take_message(&mut bytes), Ok(Some(Bytes::from_static(b"c"))));
    assert!(take_message(&mut BytesMut::from(&[1, 0, 0, 0, 0][..])).is_err(), "compressed");
    assert!(take_message(&mut BytesMut::from(&[0, 0, 1, 0, 1][..])).is_err(), "too long");
}

/// What a server does with a question.
#[derive(Clone, Copy)]
enum Manner {
    /// Reports this weight (requests per second at full load), then says nothing more.
    Weight(u32),
    /// Does not know the service.
    Unknown,
    /// Ends the stream with this status.
    Status(&'static str),
}

struct Server {
    manner: Cell<Manner>,
    asked: Cell<usize>,
    request: RefCell<Vec<String>>,
}

/// A report, and no end.
struct Reports(Option<Bytes>);

impl BodySource for Reports {
    fn poll_frame(&mut self, _: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        match self.0.take() {
            Some(data) => Poll::Ready(Some(Ok(Frame::Data(data)))),
            None => Poll::Pending,
        }
    }
}

impl Service for Server {
    async fn call(self: Rc<Self>, request: nuncio_http::Request) -> Response {
        self.asked.set(self.asked.get() + 1);
        let head = &request.head;
        *self.request.borrow_mut() = vec![head.path.to_string(), head.authority.to_string(), head.scheme.to_string()];
        let mut head = ResponseHead::new(StatusCode::OK);
        head.headers.append(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        let status =
            |head: &mut ResponseHead, code| head.headers.append(HeaderName::from_static("grpc-status"), HeaderValue::from_static(code));
        let body = match self.manner.get() {
            Manner::Weight(weight) => {
                let report = Report { rps_fractional: f64::from(weight), application_utilization: 1.0, ..Report::default() };
                Body::Stream(Box::new(Reports(Some(framed(&report.encode_to_vec()).into()))))
            }
            Manner::Unknown => {
                head = ResponseHead::new(StatusCode::NOT_FOUND);
                Body::Empty
            }
            Manner::Status(code) => {
                status(&mut head, code);
                Body::Empty
            }
        };
        Response::new(head, body)
    }
    fn malformed(&self, _: &Malformed) -> Response {
        Response::new(ResponseHead::new(StatusCode::BAD_REQUEST), Body::Empty)
    }
}

async fn serve(manner: Manner) -> (SocketAddr, Rc<Server>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = Rc::new(Server { manner: Cell::new(manner), asked: Cell::default(), request: RefCell::default() });
    let service = server.clone();
    tokio::task::spawn_local(async move {
        while let Ok((io, _)) = listener.accept().await {
            let options = Arc::new(ServerOptions::default());
            tokio::task::spawn_local(serve_h2(
                Transport::Tcp(io),
                BytesMut::new(),
                service.clone(),
                options,
                Rc::new(ConnControl::default()),
            ));
        }
    });
    (address, server)
}

fn asking(hosts: &[SocketAddr], more: &str) -> Arc<Cluster> {
    let policy = format!(
        "load_balancing_policy: {{policies: [{{typed_extension_config: {{name: w, typed_config: {{'@type': type.googleapis.com/envoy.extensions.load_balancing_policies.client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin, enable_oob_load_report: true, oob_reporting_period: 0.05s, blackout_period: 0s, weight_update_period: 0.1s{more}}}}}}}]}}"
    );
    let hosts: Vec<_> = hosts.iter().map(|h| (h.to_string(), "")).collect();
    cluster(&static_cluster(&policy, &hosts.iter().map(|(h, m)| (h.as_str(), *m)).collect::<Vec<_>>()))
}

fn stat(cluster: &Cluster, name: &str) -> u64 {
    cluster.endpoint_stats().scope("lb_orca_oob.").counter(name).value()
}

#[test]
fn reports_become_weights() {
    worker(async {
        let ((a, one), (b, _)) = (serve(Manner::Weight(300)).await, serve(Manner::Weight(100)).await);
        let c = asking(&[a, b], "");
        tokio::task::spawn_local(run(Arc::downgrade(&c)));
        let weights = || {
            c.update_orca_weights(Instant::now());
            c.hosts().iter().map(|h| h.weight()).collect::<Vec<_>>()
        };
        until("both reported", || weights() == [300, 100]).await;
        assert!(stat(&c, "reports_received") >= 2 && stat(&c, "report_errors") == 0);
        let asked = one.request.borrow().clone();
        assert_eq!(asked, ["/xds.service.orca.v3.OpenRcaService/StreamCoreMetrics", &a.to_string(), "http"]);
        // One report and no other: the stream is stalled, and made anew.
        until("the stall is seen", || stat(&c, "stream_failures") > 0).await;
        until("another stream", || one.asked.get() > 1).await;
    });
}

#[test]
fn who_does_not_know_the_service_is_not_asked_again() {
    worker(async {
        let ((a, one), (b, two), (d, three)) =
            (serve(Manner::Unknown).await, serve(Manner::Status("12")).await, serve(Manner::Status("14")).await);
        let c = asking(&[a, b, d], ", oob_reporting_config: {authority: orca.test}");
        tokio::task::spawn_local(run(Arc::downgrade(&c)));
        until("two are given up", || stat(&c, "stream_terminated") == 2).await;
        until("the third is asked again", || three.asked.get() > 1).await;
        assert_eq!((one.asked.get(), two.asked.get()), (1, 1));
        assert_eq!(three.request.borrow()[1], "orca.test");
        assert_eq!(c.endpoint_stats().scope("lb_orca_oob.").gauge("active_sessions").value(), 1);
    });
}

#[test]
fn another_port_and_hosts_that_leave() {
    worker(async {
        let (a, one) = serve(Manner::Weight(5)).await;
        let host = SocketAddr::new(a.ip(), 1);
        let c = asking(&[host], &format!(", oob_reporting_config: {{port_value: {}}}", a.port()));
        tokio::task::spawn_local(run(Arc::downgrade(&c)));
        until("it reports on the other port", || stat(&c, "reports_received") > 0).await;
        c.update_endpoints(&crate::tests::assignment("cluster_name: test")).unwrap_or_else(|e| panic!("{}", e.summary()));
        until("nobody is left", || c.endpoint_stats().scope("lb_orca_oob.").gauge("active_sessions").value() == 0).await;
        let asked = one.asked.get();
        assert!(asked >= 1);
    });
}
