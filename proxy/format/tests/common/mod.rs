//! One exchange, as Envoy saw it when the expected texts were taken.

// Each test binary uses some of this.
#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

use nuncio_core::diag::{At, Report};
use nuncio_core::filter_state::StringState;
use nuncio_core::info::{ConnectMoments, UpstreamInfo};
use nuncio_core::test_kit::{fields, list, metadata, object};
use nuncio_core::views::{ClusterView, HostView};
use nuncio_core::{Address, Body, Exchange, HttpVersion, RequestHead, ResponseHead, StreamInfo, test_kit};
use nuncio_format::{AccessLogType, FormatContext, Formatter};
use nuncio_proto::Value;
use nuncio_proto::envoy::config::core::v3::{Locality, Metadata};
use prost_types::value::Kind;
use std::any::Any;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

pub fn value(kind: Kind) -> Value {
    Value { kind: Some(kind) }
}
pub fn text(s: &str) -> Value {
    value(Kind::StringValue(s.to_string()))
}
pub fn number(n: f64) -> Value {
    value(Kind::NumberValue(n))
}

#[derive(Debug)]
struct Cluster {
    name: Arc<str>,
    alt: Arc<str>,
    metadata: Metadata,
}
impl ClusterView for Cluster {
    fn name(&self) -> &Arc<str> {
        &self.name
    }
    fn observability_name(&self) -> &Arc<str> {
        &self.alt
    }
    fn metadata(&self) -> Option<&Metadata> {
        Some(&self.metadata)
    }
    fn upstream_protocol(&self, downstream: HttpVersion) -> HttpVersion {
        downstream
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[derive(Debug)]
struct Host {
    address: Address,
    hostname: &'static str,
    metadata: Metadata,
}
impl HostView for Host {
    fn address(&self) -> &Address {
        &self.address
    }
    fn hostname(&self) -> &str {
        self.hostname
    }
    fn metadata(&self) -> Option<&Metadata> {
        Some(&self.metadata)
    }
    fn locality(&self) -> Option<&Locality> {
        None
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn address(text: &str) -> Address {
    Address::Ip(text.parse().unwrap())
}

pub fn exchange() -> Exchange {
    let mut connection = test_kit::connection();
    connection.filter_chain = "fc".into();
    connection.listener_metadata = Some(Arc::new(metadata("r", fields([("k", text("listenerv"))]))));
    let mut info = StreamInfo::new(Rc::new(connection), Some(HttpVersion::Http11));
    info.start = UNIX_EPOCH + Duration::from_millis(1_795_253_281_321);
    info.remote = address("127.0.0.1:53696");
    info.response_code = 200;
    info.details = Some("via_upstream a".into());
    info.route_name = Some("rn".into());
    info.request_id = Some("rid-1".into());
    info.attempts = 1;
    info.bytes_sent = 5;
    info.wire_tx_bytes = 141;
    info.wire_rx_bytes = 136;
    info.request_header_bytes = 94;
    info.response_header_bytes = 117;
    info.last_downstream_rx = Some(Duration::from_micros(100));
    info.last_downstream_tx = Some(Duration::from_micros(1498));
    info.duration = Some(Duration::from_micros(1500));
    info.filter_state.set("wasm.s", Arc::new(StringState("va\"l".into())));
    let cluster = Cluster {
        name: "a".into(),
        alt: "alt".into(),
        metadata: metadata(
            "com.test",
            fields([
                ("k", text("str\"q")),
                (
                    "o",
                    object(fields([
                        ("i", number(1.0)),
                        ("z", list(vec![number(1.0), text("x"), value(Kind::NullValue(0)), value(Kind::BoolValue(true))])),
                    ])),
                ),
                ("n", number(1.5)),
                ("b", value(Kind::BoolValue(true))),
                ("l", list(vec![number(1.0), text("two")])),
                ("nul", value(Kind::NullValue(0))),
            ]),
        ),
    };
    let first = Host { address: address("127.0.0.1:1"), hostname: "", metadata: Metadata::default() };
    let hostv = metadata("com.host", fields([("k", text("hostv"))]));
    let host = Arc::new(Host { address: address("127.0.0.1:18803"), hostname: "host.name:80", metadata: hostv });
    let connect = info.start_instant + Duration::from_micros(100);
    info.upstream = Some(Box::new(UpstreamInfo {
        cluster: Some(Arc::new(cluster)),
        host: Some(host.clone()),
        local: Some(address("127.0.0.1:47492")),
        remote: Some(address("[2001:db8:1234:5678:9abc:def0:1234:5678]:443")),
        protocol: Some(HttpVersion::Http11),
        connection_id: Some(2),
        connect_time: Some(Duration::from_nanos(20150)),
        connect: ConnectMoments {
            began: Some(connect),
            connected: Some(connect + Duration::from_nanos(20150)),
            secured: Some(connect + Duration::from_micros(70)),
        },
        first_rx_body: Some(Duration::from_micros(1150)),
        first_tx: Some(Duration::from_micros(200)),
        last_tx: Some(Duration::from_micros(210)),
        first_rx: Some(Duration::from_micros(1100)),
        last_rx: Some(Duration::from_micros(1200)),
        wire_tx_bytes: 200,
        wire_rx_bytes: 128,
        header_tx_bytes: 163,
        header_rx_bytes: 100,
        attempted: vec![Arc::new(first), host.clone()],
        ..Default::default()
    }));
    let mut request = RequestHead::new(http::Method::GET, "127.0.0.1:18802", "/p%20ath?a=1%2b2&b=x");
    for (name, value) in [
        ("user-agent", &b"curl/7.88.1"[..]),
        ("x-request-id", b"rid-1"),
        ("x-a", b"valueA\"q\\\xe9"),
        ("x-twice", b"first"),
        ("x-twice", b"second"),
    ] {
        request.headers.append(name.parse().unwrap(), http::HeaderValue::from_bytes(value).unwrap());
    }
    let mut ex = Exchange::new(request, Body::Empty, info);
    let mut response = ResponseHead::new(http::StatusCode::OK);
    response.headers.append("x-resp".parse().unwrap(), "R1".parse().unwrap());
    response.headers.append("x-envoy-upstream-service-time".parse().unwrap(), "0".parse().unwrap());
    ex.response = Some(response);
    let mut route = test_kit::FakeRoute::new("rn", "a");
    route.metadata = Some(metadata("r", fields([("k", text("routev"))])));
    ex.route = Some(Arc::new(route));
    ex
}

pub fn context(ex: &Exchange) -> FormatContext<'_> {
    FormatContext::exchange(ex).of_type(AccessLogType::DownstreamEnd)
}

pub fn shown(format: &str, cx: &FormatContext<'_>) -> String {
    let mut report = Report::new();
    let formatter = Formatter::text(format, &At::Root, &mut report);
    let formatter = formatter.unwrap_or_else(|| panic!("{format}: {}", report.summary()));
    let mut out = String::new();
    formatter.format(cx, &mut out);
    out
}
