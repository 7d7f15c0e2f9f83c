//! The loggers against real collectors: what they send, when, and what becomes of entries that nobody takes.
#![allow(clippy::panic)] // A test that cannot go on stops.

use http::{HeaderName, HeaderValue, Method, StatusCode};
use nuncio_callout::test_kit::{Answer, GrpcServer, HTTP2, HttpServer, cluster, run};
use nuncio_core::diag::{At, Report};
use nuncio_core::filter_state::StringState;
use nuncio_core::registry::Server;
use nuncio_core::test_kit::{self as kit, FakeCluster, FakeHost};
use nuncio_core::{Exchange, RequestHead, ResponseFlags, ResponseHead};
use nuncio_format::{AccessLogType, FormatContext, Logger, LoggerFactory};
use nuncio_loggers::Loggers;
use nuncio_proto::envoy::extensions::access_loggers::grpc::v3::{HttpGrpcAccessLogConfig, TcpGrpcAccessLogConfig};
use nuncio_proto::envoy::extensions::access_loggers::open_telemetry::v3::OpenTelemetryAccessLogConfig;
use nuncio_proto::envoy::service::accesslog::v3::StreamAccessLogsMessage;
use nuncio_proto::envoy::service::accesslog::v3::stream_access_logs_message::LogEntries;
use nuncio_proto::json::{UnknownFields, parse_text};
use nuncio_proto::{Message, Name};
use std::sync::Arc;
use std::time::Duration;

fn compile<M: Message + Name + Default>(server: &Arc<Server>, yaml: &str) -> Result<Arc<dyn Logger>, String> {
    let config: M = parse_text(yaml, UnknownFields::Refuse).unwrap_or_else(|e| panic!("{e:?}")).value;
    let mut report = Report::new();
    let logger = Loggers.compile(&M::full_name(), &config.encode_to_vec(), server, &At::Root, &mut report);
    logger.filter(|_| !report.has_errors()).ok_or(report.summary())
}

fn exchange() -> Exchange {
    let mut head = RequestHead::new(Method::PUT, "shop.test", "/cart?x=1");
    for (name, value) in [("user-agent", "curl"), ("x-tenant", "red"), ("x-request-id", "id-1")] {
        head.headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    let mut ex = kit::exchange(head);
    kit::send_to(&mut ex, FakeCluster::new("backend"), Some(FakeHost::new(None)));
    let mut response = ResponseHead::new(StatusCode::IM_A_TEAPOT);
    response.headers.append(HeaderName::from_static("x-answer"), HeaderValue::from_static("tea"));
    ex.info.response_code = 418;
    ex.response = Some(response);
    ex.info.flags.set(ResponseFlags::UPSTREAM_OVERFLOW);
    ex.info.flags.set(ResponseFlags::UNAUTHORIZED_EXTERNAL_SERVICE);
    ex.info.bytes_sent = 12;
    ex.info.duration = Some(Duration::from_millis(1500));
    ex.info.filter_state.set("who", Arc::new(StringState("ann".into())));
    ex.info.set_metadata("ns", kit::fields([("plan", kit::text("free"))]));
    ex
}

fn log(logger: &Arc<dyn Logger>, ex: &Exchange) {
    logger.log(&FormatContext::exchange(ex).of_type(AccessLogType::DownstreamEnd));
}

fn counter(server: &Server, name: &str) -> u64 {
    server.stats.root().scope("access_logs.").counter(name).value()
}

fn common(more: &str) -> String {
    format!("common_config: {{log_name: edge, transport_api_version: V3, grpc_service: {{envoy_grpc: {{cluster_name: logs}}}}{more}}}")
}

#[test]
fn http_entries() {
    run(async {
        let service = GrpcServer::start(|_| Answer::Nothing).await;
        let server = kit::server(kit::fields([]));
        cluster(&server, "logs", service.address, HTTP2);
        let more = ", buffer_size_bytes: 0, filter_state_objects_to_log: [who, nobody], custom_tags: [{tag: env, literal: {value: 100%}}, {tag: tenant, request_header: \
                    {name: x-tenant}}, {tag: none, request_header: {name: x-none, default_value: d}}, {tag: plan, metadata: {kind: {request: {}}, metadata_key: {key: ns, path: [{key: plan}]}}}]";
        let yaml = format!(
            "{{{}, additional_request_headers_to_log: [x-tenant, x-none], additional_response_headers_to_log: [x-answer]}}",
            common(more)
        );
        let logger = compile::<HttpGrpcAccessLogConfig>(&server, &yaml).unwrap();
        log(&logger, &exchange());
        service.wait_for(1).await;
        log(&logger, &exchange());
        service.wait_for(2).await;
        let messages: Vec<StreamAccessLogsMessage> = service.calls.borrow().iter().map(|c| c.decode()).collect();
        assert_eq!(service.calls.borrow()[0].path, "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs");
        let identifier = messages[0].identifier.as_ref().unwrap();
        assert_eq!((identifier.log_name.as_str(), identifier.node.as_ref().unwrap().id.as_str()), ("edge", "router~10.0.0.2~gw.ns~ns.svc"));
        assert!(messages[1].identifier.is_none(), "a stream is named once");
        let Some(LogEntries::HttpLogs(logs)) = &messages[0].log_entries else { panic!("{messages:?}") };
        let entry = &logs.log_entry[0];
        let (common, request, response) =
            (entry.common_properties.as_ref().unwrap(), entry.request.as_ref().unwrap(), entry.response.as_ref().unwrap());
        let tags: Vec<_> = common.custom_tags.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(tags, ["env=100%", "none=d", "plan=free", "tenant=red"]);
        assert_eq!(
            (common.upstream_cluster.as_str(), common.stream_id.as_str(), common.access_log_type),
            ("backend", "", AccessLogType::DownstreamEnd as i32)
        );
        assert_eq!(common.duration.map(|d| (d.seconds, d.nanos)), Some((1, 500_000_000)));
        let flags = common.response_flags.as_ref().unwrap();
        assert!(flags.upstream_overflow && flags.unauthorized_details.is_some() && !flags.local_reset);
        assert!(common.filter_state_objects.contains_key("who") && common.filter_state_objects.len() == 1);
        assert!(common.metadata.as_ref().unwrap().filter_metadata.contains_key("ns") && common.tls_properties.is_none());
        assert_eq!(
            (request.request_method, request.path.as_str(), request.user_agent.as_str(), request.request_id.as_str()),
            (4, "/cart?x=1", "curl", "id-1")
        );
        assert_eq!(request.request_headers.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>(), ["x-tenant=red"]);
        assert_eq!((response.response_code, response.response_body_bytes, response.response_headers.len()), (Some(418), 12, 1));
        assert_eq!((counter(&server, "grpc_access_log.logs_written"), counter(&server, "grpc_access_log.logs_dropped")), (2, 0));
    });
}

#[test]
fn tcp_entries_wait_for_their_batch() {
    run(async {
        let service = GrpcServer::start(|_| Answer::Nothing).await;
        let server = kit::server(kit::fields([]));
        cluster(&server, "logs", service.address, HTTP2);
        let logger = compile::<TcpGrpcAccessLogConfig>(&server, &format!("{{{}}}", common(", buffer_flush_interval: 0.02s"))).unwrap();
        let ex = exchange();
        for _ in 0..3 {
            logger.log(&FormatContext::new(&ex.info).of_type(AccessLogType::TcpConnectionEnd));
        }
        service.wait_for(1).await;
        let message: StreamAccessLogsMessage = service.calls.borrow()[0].decode();
        let Some(LogEntries::TcpLogs(logs)) = message.log_entries else { panic!("{message:?}") };
        assert_eq!((logs.log_entry.len(), logs.log_entry[0].connection_properties.as_ref().unwrap().sent_bytes), (3, 12));
    });
}

#[test]
fn a_stream_that_broke_is_made_anew() {
    run(async {
        let service = GrpcServer::start(|_| Answer::Status(14, "restart")).await;
        let server = kit::server(kit::fields([]));
        cluster(&server, "logs", service.address, HTTP2);
        let logger = compile::<HttpGrpcAccessLogConfig>(&server, &format!("{{{}}}", common(", buffer_size_bytes: 0"))).unwrap();
        let named = || service.calls.borrow().iter().filter(|c| c.decode::<StreamAccessLogsMessage>().identifier.is_some()).count();
        while named() < 2 {
            log(&logger, &exchange());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
}

#[test]
fn memory_is_bounded_without_a_collector() {
    run(async {
        // It takes the stream and reads nothing more.
        let service = GrpcServer::start(|_| Answer::Hang).await;
        let server = kit::server(kit::fields([]));
        cluster(&server, "logs", service.address, HTTP2);
        let logger = compile::<HttpGrpcAccessLogConfig>(&server, &format!("{{{}}}", common(""))).unwrap();
        let ex = exchange();
        while counter(&server, "grpc_access_log.logs_dropped") == 0 {
            for _ in 0..100 {
                log(&logger, &ex);
            }
            tokio::task::yield_now().await;
        }
        // What is written but cannot have been taken: the buffer, the batch under way and HTTP/2's windows.
        let written = counter(&server, "grpc_access_log.logs_written");
        assert!(written < 20_000, "{written}");
    });
}

#[test]
fn open_telemetry_over_grpc_and_http() {
    run(async {
        let grpc = GrpcServer::start(|_| Answer::Message(Default::default())).await;
        let http = HttpServer::start(|_| Some("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_string())).await;
        let server = kit::server(kit::fields([]));
        cluster(&server, "logs", grpc.address, HTTP2);
        cluster(&server, "otlp", http.address, "");
        let more = "buffer_size_bytes: 0, log_name: edge, stat_prefix: shop, resource_attributes: {values: [{key: team, value: {string_value: '%literal'}}]}, \
                    body: {string_value: '%REQ(:METHOD)% %RESPONSE_CODE%'}, attributes: {values: [{key: path, value: {string_value: '%REQ(:PATH)%'}}, {key: n, value: {int_value: '7'}}]}, \
                    custom_tags: [{tag: tenant, request_header: {name: x-tenant}}], filter_state_objects_to_log: [who]";
        let by_grpc = format!("{{grpc_service: {{envoy_grpc: {{cluster_name: logs}}}}, {more}}}");
        let logger = compile::<OpenTelemetryAccessLogConfig>(&server, &by_grpc).unwrap();
        log(&logger, &exchange());
        grpc.wait_for(1).await;
        let call = grpc.calls.borrow()[0].clone();
        assert_eq!(call.path, "/opentelemetry.proto.collector.logs.v1.LogsService/Export");
        let wire = String::from_utf8_lossy(&call.message).into_owned();
        for text in ["log_name", "edge", "team", "%literal", "PUT 418", "/cart?x=1", "tenant", "red", "who", "ann"] {
            assert!(wire.contains(text), "{text} in {wire:?}");
        }
        let by_http = format!(
            "{{http_service: {{http_uri: {{uri: 'http://otlp.test/v1/logs', cluster: otlp, timeout: 1s}}, request_headers_to_add: [{{header: {{key: x-key, value: k}}}}]}}, {more}}}"
        );
        let logger = compile::<OpenTelemetryAccessLogConfig>(&server, &by_http).unwrap();
        log(&logger, &exchange());
        while http.last().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let seen = http.last();
        assert!(seen.starts_with("POST /v1/logs HTTP/1.1\r\nhost: otlp.test\r\n") && seen.contains("PUT 418"), "{seen}");
        assert!(seen.contains("content-type: application/x-protobuf\r\n") && seen.contains("x-key: k\r\n"), "{seen}");
        assert_eq!(counter(&server, "open_telemetry_access_log.shop.logs_written"), 2);
    });
}

#[test]
fn wrong_configurations_are_refused() {
    let server = kit::server(kit::fields([]));
    let grpc = |yaml: &str| compile::<HttpGrpcAccessLogConfig>(&server, yaml).err().unwrap_or_default();
    assert!(grpc("{}").contains("common_config"));
    assert!(grpc("{common_config: {transport_api_version: V3, grpc_service: {envoy_grpc: {cluster_name: a}}}}").contains("log_name"));
    assert!(grpc(&format!("{{{}}}", common(", buffer_flush_interval: 0s"))).contains("buffer_flush_interval"));
    assert!(grpc(&format!("{{{}, additional_request_headers_to_log: ['a b']}}", common(""))).contains("additional_request_headers_to_log"));
    let google = "{common_config: {log_name: a, transport_api_version: V3, grpc_service: {google_grpc: {target_uri: a, stat_prefix: b}}}}";
    assert!(grpc(google).contains("google_grpc"));
    let otel = |yaml: &str| compile::<OpenTelemetryAccessLogConfig>(&server, yaml).err().unwrap_or_default();
    assert!(otel("{}").contains("services"));
    assert!(otel("{grpc_service: {envoy_grpc: {cluster_name: a}}, body: {string_value: '%NOPE%'}}").contains("body"));
}
