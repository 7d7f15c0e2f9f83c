//! TLS, PROXY protocol and `Cluster.filters` on real connections.

use super::*;
use crate::UpstreamConnection;
use bytes::{Buf, BytesMut};
use nuncio_core::diag::At;
use nuncio_core::filter_state::ApplicationProtocols;
use nuncio_core::network::{NetworkAction, NetworkFilter, NetworkFilterConfig};
use nuncio_core::registry::{FactoryCx, NetworkFilterFactory};
use nuncio_core::{ByteStr, ConnectionInfo, HttpVersion, StreamInfo, TlsInfo};
use nuncio_http::{ConnControl, Request, Response, ServerOptions, Service, serve_h1, serve_h2};
use nuncio_tls::{DownstreamTls, Transport};
use std::cell::RefCell;
use std::rc::Rc;
use tokio::net::TcpListener;

struct Hello;
impl Service for Hello {
    async fn call(self: Rc<Self>, _request: Request) -> Response {
        Response::new(ResponseHead::new(http::StatusCode::OK), nuncio_core::Body::Full("hi".into()))
    }
    fn malformed(&self, _error: &nuncio_http::Malformed) -> Response {
        Response::reset(1)
    }
}

/// A TLS server of both protocols; what its handshakes said.
async fn tls_server(alpn: &str) -> (SocketAddr, String, Rc<RefCell<Vec<Arc<TlsInfo>>>>) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["test.local".to_string()]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let cert = params.self_signed(&key).unwrap().pem();
    let indent = |pem: &str| pem.lines().map(|l| format!("      {l}\n")).collect::<String>();
    let yaml = format!(
        "common_tls_context:\n  alpn_protocols: [{alpn}]\n  tls_certificates:\n  - certificate_chain:\n     inline_string: |\n{}    private_key:\n     inline_string: |\n{}",
        indent(&cert),
        indent(&key.serialize_pem())
    );
    let context = parse_text(&yaml, UnknownFields::Refuse).unwrap_or_else(|e| panic!("{e:?}")).value;
    let mut report = Report::new();
    let scope = server().stats.root();
    let tls = DownstreamTls::compile(&context, &SecretStore::new(), &scope, &At::Root, &mut report)
        .unwrap_or_else(|| panic!("{}", report.summary()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Rc::new(RefCell::new(Vec::new()));
    let infos = seen.clone();
    tokio::task::spawn_local(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let (tls, infos) = (tls.clone(), infos.clone());
            tokio::task::spawn_local(async move {
                let Ok((io, info)) = tls.accept(Transport::Tcp(socket)).await else { return };
                infos.borrow_mut().push(info.clone());
                let (options, control) = (Arc::new(ServerOptions::default()), Rc::new(ConnControl::new()));
                if info.alpn.as_deref() == Some("h2") {
                    serve_h2(io, Default::default(), Rc::new(Hello), options, control).await;
                } else {
                    serve_h1(io, Default::default(), Rc::new(Hello), options, control).await;
                }
            });
        }
    });
    (address, cert, seen)
}

fn tls_cluster(address: SocketAddr, ca: &str, options: &str) -> Arc<Cluster> {
    let ca: String = ca.lines().map(|l| format!("          {l}\n")).collect();
    cluster(&static_cluster(
        &format!(
            "typed_extension_protocol_options: {{envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {{'@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, {options}}}}}\n\
             transport_socket:\n  name: tls\n  typed_config:\n    '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext\n    common_tls_context:\n      validation_context:\n        trusted_ca:\n         inline_string: |\n{ca}"
        ),
        &[(&address.to_string(), "")],
    ))
}

#[test]
fn alpn_chooses_the_protocol() {
    run(async {
        let (address, ca, seen) = tls_server("h2, http/1.1").await;
        let auto = "auto_config: {http_protocol_options: {}, http2_protocol_options: {}}";
        let c =
            tls_cluster(address, &ca, &format!("{auto}, upstream_http_protocol_options: {{auto_sni: true, auto_san_validation: true}}"));
        let host = c.hosts()[0].clone();
        let stream = open(&c, &host).await.unwrap();
        assert_eq!(stream.info().protocol, Some(HttpVersion::Http2));
        assert!(stream.info().tls.as_ref().unwrap().peer_validated);
        assert_eq!(finish(stream).await.unwrap().1, b"hi");
        assert_eq!(seen.borrow()[0].sni.as_deref(), Some("test.local"), "auto_sni takes it from the authority");
        // Another offer is another pool.
        let alpn = ApplicationProtocols(vec![ByteStr::from_static("http/1.1")]);
        let options = OpenOptions { alpn: Some(&alpn), ..OpenOptions::default() };
        for _ in 0..2 {
            let stream = Upstreams::current().open(&c, &host, &get(), true, &options).await.unwrap();
            assert_eq!(stream.info().protocol, Some(HttpVersion::Http11));
            finish(stream).await.unwrap();
        }
        assert_eq!(seen.borrow().len(), 2);
        // The certificate is not for this name.
        let mut request = get();
        request.authority = "other.local".into();
        let refused = Upstreams::current().open(&c, &host, &request, true, &OpenOptions::default()).await;
        assert!(matches!(refused.err(), Some(StreamError::ConnectFailed(why)) if why.contains("TLS")));
        let t = &c.stats().traffic;
        assert_eq!((t.upstream_cx_http1_total.value(), t.upstream_cx_http2_total.value(), t.upstream_cx_connect_fail.value()), (1, 1, 1));
    });
}

#[test]
fn plain_auto_is_http1_and_codecs_ask_for_their_alpn() {
    run(async {
        let server = TestServer::start(Manner::KeepAlive).await;
        let c = cluster(&static_cluster(
            "typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {'@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, auto_config: {}}}",
            &[(&server.address.to_string(), "")],
        ));
        assert_eq!(fetch(&c).await.unwrap().1, b"ok");
        let (address, ca, seen) = tls_server("h2, http/1.1").await;
        for (options, alpn) in [("http_protocol_options: {}", "http/1.1"), ("http2_protocol_options: {}", "h2")] {
            let c = tls_cluster(address, &ca, &format!("explicit_http_config: {{{options}}}"));
            assert_eq!(fetch(&c).await.unwrap().1, b"hi");
            assert_eq!(seen.borrow().last().unwrap().alpn.as_deref(), Some(alpn));
        }
    });
}

#[test]
fn proxy_protocol_goes_first() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let socket = "transport_socket: {name: p, typed_config: {'@type': type.googleapis.com/envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport, config: {version: V1}, transport_socket: {name: raw_buffer}}}";
        let c = cluster(&static_cluster(socket, &[(&address.to_string(), "")]));
        let downstream = Rc::new(kit::connection());
        let options = OpenOptions { downstream: Some(&downstream), ..OpenOptions::default() };
        let upstreams = Upstreams::current();
        let host = c.hosts()[0].clone();
        let (made, accepted) = tokio::join!(upstreams.connect(&c, &host, &options), listener.accept());
        let (_made, mut peer) = (made.unwrap(), accepted.unwrap().0);
        let mut line = [0; 41];
        peer.read_exact(&mut line).await.unwrap();
        assert_eq!(&line, b"PROXY TCP4 10.0.0.1 10.0.0.2 40000 8080\r\n");
    });
}

/// Says `>` first, takes `<` off what comes, keeps bytes until it came.
#[derive(Debug)]
struct Exchange;
impl NetworkFilterConfig for Exchange {
    fn create(&self, _connection: &Rc<ConnectionInfo>) -> Option<Box<dyn NetworkFilter>> {
        Some(Box::new(ExchangeFilter { waiting: true }))
    }
}
struct ExchangeFilter {
    waiting: bool,
}
impl NetworkFilter for ExchangeFilter {
    fn on_new(&mut self, info: &mut StreamInfo, write: &mut BytesMut) -> NetworkAction {
        assert!(info.upstream.as_ref().unwrap().host.is_some());
        write.extend_from_slice(b">>");
        NetworkAction::Continue
    }
    fn on_read(&mut self, info: &mut StreamInfo, data: &mut BytesMut, _end: bool) -> NetworkAction {
        if data.len() < 2 {
            return NetworkAction::Hold;
        }
        data.advance(2);
        self.waiting = false;
        let state = Arc::new(nuncio_core::filter_state::StringState("met".into()));
        info.upstream_mut().filter_state.set("peer", state);
        NetworkAction::Continue
    }
    fn wants_data(&self) -> bool {
        self.waiting
    }
}
struct ExchangeFactory;
impl NetworkFilterFactory for ExchangeFactory {
    fn name(&self) -> &'static str {
        "exchange"
    }
    fn types(&self) -> &'static [&'static str] {
        &["google.protobuf.Duration"]
    }
    fn compile(&self, _config: &[u8], _at: &At<'_>, _cx: &mut FactoryCx<'_>) -> Option<Arc<dyn NetworkFilterConfig>> {
        Some(Arc::new(Exchange))
    }
}

#[test]
fn upstream_filters_speak_first_and_step_aside() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let yaml = static_cluster(
            "filters: [{name: exchange, typed_config: {'@type': type.googleapis.com/google.protobuf.Duration, value: 1s}}]",
            &[(&address.to_string(), "")],
        );
        let (server, shared, secrets) = (server(), Arc::new(Shared::default()), SecretStore::new());
        let registry = Registry { upstream_network: vec![Box::new(ExchangeFactory)], ..Registry::default() };
        let mut report = Report::new();
        let mut cx = ClusterCx {
            server: &server,
            secrets: &secrets,
            registry: &registry,
            shared: &shared,
            report: &mut report,
            added_via_api: true,
        };
        let c = Cluster::compile(&proto(&yaml), &mut cx).unwrap();
        let upstreams = Upstreams::current();
        let host = c.hosts()[0].clone();
        let options = OpenOptions::default();
        let (made, accepted) = tokio::join!(upstreams.connect(&c, &host, &options), listener.accept());
        let (mut made, mut peer): (UpstreamConnection, _) = (made.unwrap(), accepted.unwrap().0);
        assert!(made.plain().is_none(), "the filter waits for the peer");
        made.write_all(b"hello").await.unwrap();
        made.flush().await.unwrap();
        let mut got = [0; 7];
        peer.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b">>hello");
        peer.write_all(b"<").await.unwrap();
        tokio::task::yield_now().await;
        peer.write_all(b"<world").await.unwrap();
        let mut got = [0; 5];
        made.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"world");
        assert!(made.plain().is_some());
        assert_eq!(made.info().filter_state.get("peer").unwrap().as_string().as_deref(), Some("met"));
    });
}

#[test]
fn checks_speak_what_alpn_chose() {
    run(async {
        for (offered, chosen) in [("h2, http/1.1", "h2"), ("http/1.1", "http/1.1")] {
            for codec in ["HTTP1", "HTTP2"] {
                let (address, ca, seen) = tls_server(offered).await;
                let tls = format!(
                    "transport_socket:\n  name: tls\n  typed_config:\n    '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext\n    common_tls_context:\n      validation_context:\n        trusted_ca:\n         inline_string: |\n{}",
                    ca.lines().map(|l| format!("          {l}\n")).collect::<String>()
                );
                let check = format!("http_health_check: {{path: /, use_alpn_protocol: true, codec_client_type: {codec}}}");
                let check = format!(
                    "health_checks: [{{timeout: 10s, interval: 0.02s, unhealthy_threshold: 1, healthy_threshold: 1, {check}}}]\n{tls}"
                );
                let m = manager("{}");
                let task = tokio::task::spawn_local(m.clone().run());
                let mut report = Report::new();
                m.apply(&proto(&static_cluster(&check, &[(&address.to_string(), "")])), true, &mut report)
                    .unwrap_or_else(|| panic!("{}", report.summary()));
                until("healthy", || m.get("test").is_some_and(|c| c.membership().healthy == 1)).await;
                assert!(seen.borrow().iter().all(|info| info.alpn.as_deref() == Some(chosen)), "{offered} {codec}");
                task.abort();
            }
        }
    });
}
