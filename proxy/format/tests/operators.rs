//! What each operator writes. The expected texts are those of Envoy 1.40 for a request with the same facts.

// Helpers outside of test functions.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{context, exchange, shown};
use nuncio_core::diag::{At, Report};
use nuncio_core::filter_state::StringState;
use nuncio_core::info::DetectedClose;
use nuncio_core::{Address, Headers, ResponseFlags};
use nuncio_format::{DEFAULT_FORMAT, FormatContext, Formatter};
use std::sync::Arc;
use std::time::Duration;

#[test]
fn the_default_format() {
    let ex = exchange();
    let expected = "[2026-11-21T09:28:01.321Z] \"GET /p%20ath?a=1%2b2&b=x HTTP/1.1\" 200 - 0 5 1 0 \"-\" \"curl/7.88.1\" \"rid-1\" \
        \"127.0.0.1:18802\" \"127.0.0.1:18803\"\n";
    assert_eq!(shown(DEFAULT_FORMAT, &context(&ex)), expected);
    let empty = FormatContext::new(&ex.info);
    assert!(shown(DEFAULT_FORMAT, &empty).contains("] \"- - HTTP/1.1\" 200 - 0 5 1 - \"-\" \"-\" \"-\" \"-\" \"127.0.0.1:18803\"\n"));
}

#[test]
fn every_operator() {
    let ex = exchange();
    let cx = context(&ex);
    for (operator, expected) in [
        ("START_TIME", "2026-11-21T09:28:01.321Z"),
        ("START_TIME(%Y/%m/%dT%H:%M:%S%z)", "2026/11/21T09:28:01+0000"),
        ("START_TIME(%s.%3f)", "1795253281.321"),
        ("REQUEST_HEADERS_BYTES", "147"),
        ("BYTES_RECEIVED", "0"),
        ("BYTES_RETRANSMITTED", "0"),
        ("PROTOCOL", "HTTP/1.1"),
        ("PROTOCOL()", "HTTP/1.1"),
        ("UPSTREAM_PROTOCOL", "HTTP/1.1"),
        ("RESPONSE_CODE", "200"),
        ("RESPONSE_CODE_DETAILS", "via_upstream_a"),
        ("RESPONSE_CODE_DETAILS(ALLOW_WHITESPACES)", "via_upstream a"),
        ("CONNECTION_TERMINATION_DETAILS", "-"),
        ("RESPONSE_HEADERS_BYTES", "48"),
        ("RESPONSE_TRAILERS_BYTES", "0"),
        ("BYTES_SENT", "5"),
        ("UPSTREAM_REQUEST_ATTEMPT_COUNT", "1"),
        ("UPSTREAM_WIRE_BYTES_SENT", "200"),
        ("UPSTREAM_WIRE_BYTES_RECEIVED", "128"),
        ("UPSTREAM_HEADER_BYTES_SENT", "163"),
        ("UPSTREAM_HEADER_BYTES_RECEIVED", "100"),
        ("DOWNSTREAM_WIRE_BYTES_SENT", "141"),
        ("DOWNSTREAM_WIRE_BYTES_RECEIVED", "136"),
        ("DOWNSTREAM_HEADER_BYTES_SENT", "117"),
        ("DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED", "94"),
        ("DURATION", "1"),
        ("COMMON_DURATION(DS_RX_BEG:DS_TX_END:us)", "1498"),
        ("COMMON_DURATION(DS_RX_BEG:DS_TX_END)", "1"),
        ("COMMON_DURATION(DS_TX_END:DS_RX_BEG:ns)", "-"),
        ("COMMON_DURATION(DS_RX_BEG:XX:ms)", "-"),
        ("COMMON_DURATION(US_CX_BEG:US_CX_END:ns)", "20150"),
        ("COMMON_DURATION(US_CX_BEG:US_HS_END:us)", "70"),
        ("COMMON_DURATION(DS_RX_BEG:US_CX_BEG:us)", "100"),
        ("COMMON_DURATION(DS_RX_BEG:DS_RX_HDR_END:us)", "0"),
        ("COMMON_DURATION(US_RX_BEG:US_RX_BODY_BEG:us)", "50"),
        ("COMMON_DURATION(DS_HS_BEG:DS_HS_END:us)", "-"),
        ("COMMON_DURATION(DS_CX_BEG:DS_CX_END:ms)", "-"),
        ("REQUEST_DURATION", "0"),
        ("REQUEST_TX_DURATION", "0"),
        ("RESPONSE_DURATION", "1"),
        ("RESPONSE_TX_DURATION", "0"),
        ("ROUNDTRIP_DURATION", "-"),
        ("DOWNSTREAM_HANDSHAKE_DURATION", "-"),
        ("UPSTREAM_CONNECTION_POOL_READY_DURATION", "0"),
        ("RESPONSE_FLAGS", "-"),
        ("RESPONSE_FLAGS_LONG", "-"),
        ("ROUTE_NAME", "rn"),
        ("VIRTUAL_CLUSTER_NAME", "-"),
        ("UPSTREAM_HOST", "127.0.0.1:18803"),
        ("UPSTREAM_HOST_NAME", "host.name:80"),
        ("UPSTREAM_HOST_NAME_WITHOUT_PORT", "host.name"),
        ("UPSTREAM_HOSTS_ATTEMPTED", "127.0.0.1:18803"),
        ("UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT", "127.0.0.1"),
        ("UPSTREAM_HOST_NAMES_ATTEMPTED", "host.name:80"),
        ("UPSTREAM_HOST_NAMES_ATTEMPTED_WITHOUT_PORT", "host.name"),
        ("UPSTREAM_CONNECTION_IDS_ATTEMPTED", "2"),
        ("UPSTREAM_DETECTED_CLOSE_TYPE", "Normal"),
        ("UPSTREAM_LOCAL_CLOSE_REASON", "-"),
        ("DOWNSTREAM_DETECTED_CLOSE_TYPE", "Normal"),
        ("DOWNSTREAM_LOCAL_CLOSE_REASON", "-"),
        ("DOWNSTREAM_CX_RTT", "0"),
        ("ROUTE_RESOLUTION_COUNT", "0"),
        ("ROUTE_RESOLUTION_TIME_US", "-"),
        ("XFCC_VALUE(uri)", "-"),
        ("DOWNSTREAM_PEER_CHAIN_SERIALS", "-"),
        ("DOWNSTREAM_PEER_ISSUER_SERIAL", "-"),
        ("DOWNSTREAM_LOCAL_OTHERNAME_SAN", "-"),
        ("DOWNSTREAM_TLS_GROUP", "-"),
        ("UPSTREAM_CLUSTER", "alt"),
        ("UPSTREAM_CLUSTER_RAW", "a"),
        ("UPSTREAM_LOCAL_ADDRESS", "127.0.0.1:47492"),
        ("UPSTREAM_LOCAL_PORT", "47492"),
        ("UPSTREAM_REMOTE_ADDRESS", "[2001:db8:1234:5678:9abc:def0:1234:5678]:443"),
        ("UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", "2001:db8:1234:5678:9abc:def0:1234:5678"),
        ("UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(64)", "2001:db8:1234:5678::/64"),
        ("UPSTREAM_REMOTE_ADDRESS_ENDPOINT_ID", ""),
        ("UPSTREAM_TRANSPORT_FAILURE_REASON", "-"),
        ("DOWNSTREAM_TRANSPORT_FAILURE_REASON", "-"),
        ("DOWNSTREAM_REMOTE_ADDRESS", "127.0.0.1:53696"),
        ("DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", "127.0.0.1"),
        ("DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(8)", "127.0.0.0/8"),
        ("DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(33)", "127.0.0.1/32"),
        ("DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(0)", "0.0.0.0/0"),
        ("DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(x)", "127.0.0.1"),
        ("DOWNSTREAM_REMOTE_PORT", "53696"),
        ("DOWNSTREAM_DIRECT_REMOTE_ADDRESS", "10.0.0.1:40000"),
        ("DOWNSTREAM_LOCAL_ADDRESS", "10.0.0.2:8080"),
        ("DOWNSTREAM_DIRECT_LOCAL_PORT", "8080"),
        ("DOWNSTREAM_LOCAL_ADDRESS_ENDPOINT_ID", ""),
        ("CONNECTION_ID", "1"),
        ("UPSTREAM_CONNECTION_ID", "2"),
        ("STREAM_ID", "rid-1"),
        ("GRPC_STATUS", "-"),
        ("GRPC_STATUS_NUMBER", "-"),
        ("REQ(X-A?:PATH):3", "val"),
        ("REQ(X-NOPE?:PATH):3", "/p%"),
        ("REQ(?:PATH):1", "/"),
        ("REQ(x-twice)", "first"),
        ("REQ(x-forwarded-for?nope)", "-"),
        ("REQUEST_HEADER(:method)", "GET"),
        ("REQ(Host)", "127.0.0.1:18802"),
        ("RESP(:status)", "200"),
        ("RESPONSE_HEADER(x-resp)", "R1"),
        ("TRAILER(x)", "-"),
        ("DYNAMIC_METADATA(a:b)", "-"),
        ("CLUSTER_METADATA(com.test)", r#"{"b":true,"k":"str\"q","l":[1,"two"],"n":1.5,"nul":null,"o":{"i":1,"z":[1,"x",null,true]}}"#),
        ("CLUSTER_METADATA(com.test:k)", "str\"q"),
        ("CLUSTER_METADATA(com.test:o)", r#"{"i":1,"z":[1,"x",null,true]}"#),
        ("CLUSTER_METADATA(com.test:o:i)", "1"),
        ("CLUSTER_METADATA(com.test:b)", "true"),
        ("CLUSTER_METADATA(com.test:l)", "[1,\"two\"]"),
        ("CLUSTER_METADATA(com.test:nul)", "-"),
        ("METADATA(CLUSTER:com.test:k):2", "st"),
        ("METADATA(ROUTE:r:k)", "routev"),
        ("METADATA(LISTENER:r:k)", "listenerv"),
        ("METADATA(LISTENER_FILTER_CHAIN:r:k)", "-"),
        ("METADATA(UPSTREAM_HOST:com.host:k)", "hostv"),
        ("UPSTREAM_METADATA(com.host:k)", "hostv"),
        ("FILTER_STATE(a)", "-"),
        ("FILTER_STATE(wasm.s:PLAIN)", "va\"l"),
        ("FILTER_STATE(wasm.s:PLAIN):2", "va"),
        ("FILTER_STATE(wasm.s)", "\"va\\\"l\""),
        ("FILTER_STATE(wasm.s:TYPED)", "\"va\\\"l\""),
        ("FILTER_STATE(wasm.s:FIELD:x)", "-"),
        ("UPSTREAM_FILTER_STATE(a)", "-"),
        ("REQUESTED_SERVER_NAME", "-"),
        ("REQUESTED_SERVER_NAME(SNI_FIRST)", "127.0.0.1:18802"),
        ("REQUESTED_SERVER_NAME(HOST_FIRST:HOST)", "127.0.0.1:18802"),
        ("REQUESTED_SERVER_NAME(HOST_FIRST:ORIG)", "-"),
        ("DOWNSTREAM_PEER_URI_SAN", "-"),
        ("DOWNSTREAM_TLS_VERSION", "-"),
        ("DOWNSTREAM_PEER_CERT_V_START", "-"),
        ("UPSTREAM_PEER_SUBJECT", "-"),
        ("LOCAL_REPLY_BODY", ""),
        ("FILTER_CHAIN_NAME", "fc"),
        ("LISTENER_NAME", "test"),
        ("ACCESS_LOG_TYPE", "DownstreamEnd"),
        ("ENVIRONMENT(NO_SUCH_VARIABLE_HERE)", "-"),
        ("TRACE_ID", "-"),
        ("QUERY_PARAM(a)", "1+2"),
        ("QUERY_PARAM(a):1", "1"),
        ("QUERY_PARAM(c)", "-"),
        ("QUERY_PARAMS", "a=1%2b2&b=x"),
        ("QUERY_PARAMS(DECODED)", "a=1+2&b=x"),
        ("PATH", "/p%20ath?a=1%2b2&b=x"),
        ("PATH(NQ)", "/p%20ath"),
        ("PATH(WQ:ORIG)", "-"),
        ("PATH(NQ:PATH):2", "/p"),
        ("CUSTOM_FLAGS", ""),
        (r#"COALESCE({"operators": ["REQUESTED_SERVER_NAME", {"command": "REQ", "param": ":authority"}]})"#, "127.0.0.1:18802"),
        (r#"COALESCE({"operators": ["REQUESTED_SERVER_NAME", {"command": "REQ", "param": ":authority", "max_length": 5}]}):3"#, "127"),
    ] {
        assert_eq!(shown(&format!("[%{operator}%]"), &cx), format!("[{expected}]"), "{operator}");
    }
    let uuid = shown("%UNIQUE_ID%", &cx);
    assert!(uuid.len() == 36 && uuid.as_bytes()[14] == b'4' && b"89ab".contains(&uuid.as_bytes()[19]), "{uuid}");
}

#[test]
fn other_facts() {
    let mut ex = exchange();
    ex.info.flags.set(ResponseFlags::UPSTREAM_CONNECTION_FAILURE);
    ex.info.flags.set(ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED);
    ex.info.upstream_mut().failure = Some("delayed connect error: Connection refused".into());
    ex.info.remote = Address::Pipe("@sock".into());
    ex.request.headers.insert("content-type".parse().unwrap(), "application/grpc".parse().unwrap());
    ex.request.headers.append("x-forwarded-for".parse().unwrap(), "1.1.1.1".parse().unwrap());
    ex.request.headers.append("x-forwarded-for".parse().unwrap(), "2.2.2.2".parse().unwrap());
    ex.info.response_code = 403;
    let cx = context(&ex);
    for (format, expected) in [
        ("%RESPONSE_FLAGS% %RESPONSE_FLAGS_LONG%", "UF,URX UpstreamConnectionFailure,UpstreamRetryLimitExceeded"),
        ("%UPSTREAM_TRANSPORT_FAILURE_REASON%", "delayed_connect_error:_Connection_refused"),
        ("%DOWNSTREAM_REMOTE_ADDRESS% %DOWNSTREAM_REMOTE_PORT%", "@sock -"),
        ("%REQ(X-FORWARDED-FOR)%", "1.1.1.1,2.2.2.2"),
        ("%GRPC_STATUS% %GRPC_STATUS(SNAKE_STRING)% %GRPC_STATUS(NUMBER)%", "PermissionDenied PERMISSION_DENIED 7"),
    ] {
        assert_eq!(shown(format, &cx), expected);
    }
    let mut trailers = Headers::new();
    trailers.insert("grpc-status".parse().unwrap(), "3".parse().unwrap());
    let cx = FormatContext { trailers: Some(&trailers), ..cx };
    assert_eq!(shown("%GRPC_STATUS% %TRAILER(grpc-status)% %RESPONSE_TRAILERS_BYTES%", &cx), "InvalidArgument 3 12");
}

#[test]
fn tcp_streams() {
    let mut ex = exchange();
    ex.info.protocol = None;
    ex.info.response_code = 0;
    ex.info.duration = Some(Duration::from_millis(12));
    ex.info.connection.filter_state.borrow_mut().set("c", Arc::new(StringState("conn".into())));
    let cx = FormatContext::new(&ex.info);
    let format = "%PROTOCOL% %RESPONSE_CODE% %DURATION% %COMMON_DURATION(DS_CX_BEG:DS_CX_END)% %REQ(x)% %FILTER_STATE(c:PLAIN)%";
    assert_eq!(shown(format, &cx), "- 0 12 12 - conn");
    assert_eq!(
        shown("%UPSTREAM_HOSTS_ATTEMPTED% %UPSTREAM_HOST_NAMES_ATTEMPTED%", &cx),
        "127.0.0.1:1,127.0.0.1:18803 127.0.0.1:1,host.name:80"
    );
    let connection = ex.info.connection.clone();
    connection.local_close.set(Some("tcp_session_idle_timeout"));
    connection.detected_close.set(DetectedClose::RemoteReset);
    let upstream = ex.info.upstream_mut();
    (upstream.local_close, upstream.detected_close) = (Some("why"), DetectedClose::LocalReset);
    upstream.connection_id = None;
    let cx = FormatContext::new(&ex.info);
    let format = "%DOWNSTREAM_LOCAL_CLOSE_REASON% %DOWNSTREAM_DETECTED_CLOSE_TYPE% %UPSTREAM_LOCAL_CLOSE_REASON% \
        %UPSTREAM_DETECTED_CLOSE_TYPE% %UPSTREAM_CONNECTION_ID% %UPSTREAM_CONNECTION_IDS_ATTEMPTED%";
    assert_eq!(shown(format, &cx), "tcp_session_idle_timeout RemoteReset why LocalReset 0 -");
}

#[test]
fn routes_are_timed_once_a_format_shows_it() {
    let mut ex = exchange();
    (ex.info.route_resolutions, ex.info.route_resolution_time) = (2, Duration::from_micros(7));
    assert_eq!(shown("%ROUTE_RESOLUTION_COUNT% %ROUTE_RESOLUTION_TIME_US%", &context(&ex)), "2 7");
    assert!(nuncio_core::info::measures_route_time());
}

/// All that Envoy 1.40 takes without an argument: every word of its binary, offered to it as an operator.
#[test]
fn no_operator_is_missing() {
    for name in include_str!("operators.txt").split_whitespace() {
        let mut report = Report::new();
        assert!(Formatter::text(&format!("%{name}%"), &At::Root, &mut report).is_some(), "{name}: {}", report.summary());
    }
}

/// The words are those of Envoy 1.40 where it has any.
#[test]
fn what_is_refused() {
    for (format, words) in [
        ("%NOPE%", "Not supported field in StreamInfo: NOPE"),
        ("%PROTOCOL(x)%", "PROTOCOL does not take any parameters or length"),
        ("%PROTOCOL:2%", "PROTOCOL does not take any parameters or length"),
        ("%CLUSTER_METADATA(a:b):2%", "CLUSTER_METADATA does not allow length to be specified."),
        ("%START_TIME:3%", "START_TIME does not allow length to be specified."),
        ("%REQ%", "REQ requires parameters"),
        ("%REQ()%", "REQ requires parameters"),
        ("%REQ(a?b?c)%", "More than 1 alternative header specified in token: a?b?c"),
        ("%REQ(a b)%", "\"a b\" is not a header name"),
        ("%GRPC_STATUS(X)%", "GrpcStatusFormatter only supports CAMEL_STRING, SNAKE_STRING or NUMBER. Got: X"),
        ("%FILTER_STATE%", "Invalid filter state configuration, key cannot be empty."),
        ("%FILTER_STATE(a:X)%", "Invalid filter state serialize type, only support PLAIN/TYPED/FIELD."),
        ("%FILTER_STATE(a:FIELD)%", "Invalid filter state serialize type, FIELD should be used with the field name."),
        ("%FILTER_STATE(a:PLAIN:b)%", "Invalid filter state serialize type, FIELD should be used with the field name."),
        ("%REQUESTED_SERVER_NAME(X)%", "Invalid REQUESTED_SERVER_NAME option: 'X', only 'SNI_ONLY'/'SNI_FIRST'/'HOST_FIRST' are allowed"),
        ("%QUERY_PARAMS(X)%", "Invalid QUERY_PARAMS option: 'X', only 'ORIG'/'DECODED' are allowed"),
        ("%PATH(X)%", "Invalid PATH option: 'X', only 'WQ'/'NQ' are allowed"),
        ("%PATH(NQ:X)%", "Invalid PATH option: 'X', only 'ORIG'/'PATH'/'ORIG_OR_PATH' are allowed"),
        ("%COMMON_DURATION(DS_RX_BEG)%", "Invalid common duration configuration: DS_RX_BEG."),
        ("%COMMON_DURATION(A:B:s)%", "Invalid common duration precision: s."),
        ("%COALESCE({})%", "COALESCE: JSON configuration must contain 'operators' array"),
        ("%COALESCE({\"operators\": []})%", "COALESCE: 'operators' array must not be empty"),
        ("%COALESCE({\"operators\": [\"REQ\"]})%", "COALESCE: failed to parse operator at index 0: REQ requires parameters"),
        ("%METADATA(X:r)%", "X is not supported type of metadata"),
        ("%REQ_WITHOUT_QUERY(:path)%", "Not supported field in StreamInfo: REQ_WITHOUT_QUERY"),
        ("%CEL(request.path)%", "CEL is not supported by this build of Nuncio"),
        ("100%", "no valid command at position 3"),
    ] {
        let mut report = Report::new();
        assert!(Formatter::text(format, &At::Root, &mut report).is_none(), "{format}");
        assert!(report.summary().contains(words), "{format}: {}", report.summary());
    }
}

#[test]
fn literals_are_known() {
    let mut report = Report::new();
    let mut literal = |f: &str| Formatter::text(f, &At::Root, &mut report).unwrap().literal().map(str::to_string);
    assert_eq!(literal("a%%b"), Some("a%b".into()));
    assert_eq!(literal(""), Some("".into()));
    assert_eq!(literal("a %PROTOCOL%"), None);
    assert!(literal("h=%HOSTNAME%").is_some());
}

#[test]
fn header_values_leave_out_what_is_missing() {
    let ex = exchange();
    let mut report = Report::new();
    let format = Formatter::header("%REQ(nope)%|%REQ(x-a)%", &At::Root, &mut report).unwrap();
    let mut out = Vec::new();
    format.write(&context(&ex), &mut out);
    assert_eq!(out, b"|valueA\"q\\\xe9");
}
