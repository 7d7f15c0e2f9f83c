//! From a command's name and argument to its operator. What Envoy refuses is refused here with the same words where it has any.

use super::address::{AddressForm, AddressOf};
use super::fields::{DurationOf, GrpcForm, NumberOf, Point, Precision, TextOf};
use super::metadata::{MetadataOf, StateForm};
use super::request::{From, Headers, HostChoice, HostSource, Name, PathSource, Sni};
use super::tls::{CertField, Side};
use super::{Limited, Op, TimeOf};
use crate::expression;
use crate::parse::Command;
use crate::time::TimeFormat;

/// Formatter extensions (`SubstitutionFormatString.formatters`) that a format may use beside the built-in operators.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Extensions {
    pub req_without_query: bool,
}

/// Operators of Envoy for which nothing is measured here.
const UNSUPPORTED: [&str; 22] = [
    "TYPED_CEL",
    "FILE_CONTENT",
    "SECRET",
    "ROUTE_RESOLUTION_COUNT",
    "ROUTE_RESOLUTION_TIME_US",
    "DOWNSTREAM_CX_RTT",
    "UPSTREAM_HOST_NAMES_ATTEMPTED",
    "UPSTREAM_HOST_NAMES_ATTEMPTED_WITHOUT_PORT",
    "UPSTREAM_CONNECTION_IDS_ATTEMPTED",
    "UPSTREAM_DETECTED_CLOSE_TYPE",
    "UPSTREAM_LOCAL_CLOSE_REASON",
    "DOWNSTREAM_DETECTED_CLOSE_TYPE",
    "DOWNSTREAM_LOCAL_CLOSE_REASON",
    "DOWNSTREAM_LOCAL_OTHERNAME_SAN",
    "DOWNSTREAM_PEER_OTHERNAME_SAN",
    "DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_256",
    "DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_1",
    "DOWNSTREAM_PEER_CHAIN_SERIALS",
    "DOWNSTREAM_PEER_ISSUER_FINGERPRINT_256",
    "DOWNSTREAM_PEER_ISSUER_SERIAL",
    "DOWNSTREAM_TLS_GROUP",
    "UPSTREAM_TLS_GROUP",
];

/// An operator without argument and length.
fn simple(name: &str) -> Option<Op> {
    use AddressForm::{EndpointId, Full, Port};
    use AddressOf as A;
    use Side::{Downstream, Upstream};
    Some(match name {
        "PROTOCOL" => Op::Text(TextOf::Protocol),
        "UPSTREAM_PROTOCOL" => Op::Text(TextOf::UpstreamProtocol),
        "CONNECTION_TERMINATION_DETAILS" => Op::Text(TextOf::TerminationDetails),
        "RESPONSE_FLAGS" => Op::Text(TextOf::Flags),
        "RESPONSE_FLAGS_LONG" => Op::Text(TextOf::FlagsLong),
        "ROUTE_NAME" => Op::Text(TextOf::RouteName),
        "VIRTUAL_CLUSTER_NAME" => Op::Text(TextOf::VirtualCluster),
        "UPSTREAM_CLUSTER" => Op::Text(TextOf::Cluster),
        "UPSTREAM_CLUSTER_RAW" => Op::Text(TextOf::ClusterRaw),
        "UPSTREAM_HOST_NAME" => Op::Text(TextOf::HostName),
        "UPSTREAM_HOST_NAME_WITHOUT_PORT" => Op::Text(TextOf::HostNameWithoutPort),
        "UPSTREAM_HOSTS_ATTEMPTED" => Op::Text(TextOf::HostsAttempted),
        "UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT" => Op::Text(TextOf::HostsAttemptedWithoutPort),
        "UPSTREAM_TRANSPORT_FAILURE_REASON" => Op::Text(TextOf::UpstreamFailure),
        "DOWNSTREAM_TRANSPORT_FAILURE_REASON" => Op::Text(TextOf::DownstreamFailure),
        "STREAM_ID" => Op::Text(TextOf::StreamId),
        "UNIQUE_ID" => Op::Text(TextOf::UniqueId),
        "FILTER_CHAIN_NAME" => Op::Text(TextOf::FilterChain),
        "LISTENER_NAME" => Op::Text(TextOf::Listener),
        "ACCESS_LOG_TYPE" => Op::Text(TextOf::LogType),
        "LOCAL_REPLY_BODY" => Op::Text(TextOf::LocalReplyBody),
        "CUSTOM_FLAGS" => Op::Text(TextOf::CustomFlags),
        "BYTES_RECEIVED" => Op::Number(NumberOf::BytesReceived),
        "BYTES_SENT" => Op::Number(NumberOf::BytesSent),
        "BYTES_RETRANSMITTED" | "PACKETS_RETRANSMITTED" => Op::Number(NumberOf::Zero),
        "REQUEST_HEADERS_BYTES" => Op::Number(NumberOf::RequestHeaders),
        "RESPONSE_HEADERS_BYTES" => Op::Number(NumberOf::ResponseHeaders),
        "RESPONSE_TRAILERS_BYTES" => Op::Number(NumberOf::ResponseTrailers),
        "RESPONSE_CODE" => Op::Number(NumberOf::ResponseCode),
        "UPSTREAM_REQUEST_ATTEMPT_COUNT" => Op::Number(NumberOf::Attempts),
        "UPSTREAM_WIRE_BYTES_SENT" => Op::Number(NumberOf::UpstreamWireSent),
        "UPSTREAM_WIRE_BYTES_RECEIVED" => Op::Number(NumberOf::UpstreamWireReceived),
        "UPSTREAM_HEADER_BYTES_SENT" | "UPSTREAM_DECOMPRESSED_HEADER_BYTES_SENT" => Op::Number(NumberOf::UpstreamHeadersSent),
        "UPSTREAM_HEADER_BYTES_RECEIVED" | "UPSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED" => Op::Number(NumberOf::UpstreamHeadersReceived),
        "DOWNSTREAM_WIRE_BYTES_SENT" => Op::Number(NumberOf::DownstreamWireSent),
        "DOWNSTREAM_WIRE_BYTES_RECEIVED" => Op::Number(NumberOf::DownstreamWireReceived),
        "DOWNSTREAM_HEADER_BYTES_SENT" | "DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_SENT" => Op::Number(NumberOf::DownstreamHeadersSent),
        "DOWNSTREAM_HEADER_BYTES_RECEIVED" | "DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED" => {
            Op::Number(NumberOf::DownstreamHeadersReceived)
        }
        "CONNECTION_ID" => Op::Number(NumberOf::ConnectionId),
        "UPSTREAM_CONNECTION_ID" => Op::Number(NumberOf::UpstreamConnectionId),
        "DURATION" => Op::Duration(DurationOf::Total),
        "REQUEST_DURATION" => Op::Duration(DurationOf::Request),
        "REQUEST_TX_DURATION" => Op::Duration(DurationOf::RequestSent),
        "RESPONSE_DURATION" => Op::Duration(DurationOf::Response),
        "RESPONSE_TX_DURATION" => Op::Duration(DurationOf::ResponseSent),
        "DOWNSTREAM_HANDSHAKE_DURATION" => Op::Duration(DurationOf::Handshake),
        "UPSTREAM_CONNECTION_POOL_READY_DURATION" => Op::Duration(DurationOf::PoolReady),
        "GRPC_STATUS_NUMBER" => Op::GrpcStatus(GrpcForm::Number),
        "UPSTREAM_HOST" => Op::Address(A::UpstreamHost, Full),
        "UPSTREAM_LOCAL_ADDRESS" => Op::Address(A::UpstreamLocal, Full),
        "UPSTREAM_LOCAL_PORT" => Op::Address(A::UpstreamLocal, Port),
        "UPSTREAM_REMOTE_ADDRESS" => Op::Address(A::UpstreamRemote, Full),
        "UPSTREAM_REMOTE_PORT" => Op::Address(A::UpstreamRemote, Port),
        "UPSTREAM_REMOTE_ADDRESS_ENDPOINT_ID" => Op::Address(A::UpstreamRemote, EndpointId),
        "DOWNSTREAM_REMOTE_ADDRESS" => Op::Address(A::DownstreamRemote, Full),
        "DOWNSTREAM_REMOTE_PORT" => Op::Address(A::DownstreamRemote, Port),
        "DOWNSTREAM_DIRECT_REMOTE_ADDRESS" => Op::Address(A::DownstreamDirectRemote, Full),
        "DOWNSTREAM_DIRECT_REMOTE_PORT" => Op::Address(A::DownstreamDirectRemote, Port),
        "DOWNSTREAM_LOCAL_ADDRESS" => Op::Address(A::DownstreamLocal, Full),
        "DOWNSTREAM_LOCAL_PORT" => Op::Address(A::DownstreamLocal, Port),
        "DOWNSTREAM_LOCAL_ADDRESS_ENDPOINT_ID" => Op::Address(A::DownstreamLocal, EndpointId),
        "DOWNSTREAM_DIRECT_LOCAL_ADDRESS" => Op::Address(A::DownstreamDirectLocal, Full),
        "DOWNSTREAM_DIRECT_LOCAL_PORT" => Op::Address(A::DownstreamDirectLocal, Port),
        "DOWNSTREAM_DIRECT_LOCAL_ADDRESS_ENDPOINT_ID" => Op::Address(A::DownstreamDirectLocal, EndpointId),
        "DOWNSTREAM_LOCAL_IP_SAN" => Op::Cert(Downstream, CertField::LocalIpSan),
        "DOWNSTREAM_LOCAL_DNS_SAN" => Op::Cert(Downstream, CertField::LocalDnsSan),
        "DOWNSTREAM_LOCAL_URI_SAN" => Op::Cert(Downstream, CertField::LocalUriSan),
        "DOWNSTREAM_LOCAL_EMAIL_SAN" => Op::Cert(Downstream, CertField::LocalEmailSan),
        "DOWNSTREAM_LOCAL_SUBJECT" => Op::Cert(Downstream, CertField::LocalSubject),
        "DOWNSTREAM_PEER_IP_SAN" => Op::Cert(Downstream, CertField::PeerIpSan),
        "DOWNSTREAM_PEER_DNS_SAN" => Op::Cert(Downstream, CertField::PeerDnsSan),
        "DOWNSTREAM_PEER_URI_SAN" => Op::Cert(Downstream, CertField::PeerUriSan),
        "DOWNSTREAM_PEER_EMAIL_SAN" => Op::Cert(Downstream, CertField::PeerEmailSan),
        "DOWNSTREAM_PEER_SUBJECT" => Op::Cert(Downstream, CertField::PeerSubject),
        "DOWNSTREAM_PEER_ISSUER" => Op::Cert(Downstream, CertField::PeerIssuer),
        "DOWNSTREAM_PEER_FINGERPRINT_256" => Op::Cert(Downstream, CertField::PeerSha256),
        "DOWNSTREAM_PEER_FINGERPRINT_1" => Op::Cert(Downstream, CertField::PeerSha1),
        "DOWNSTREAM_PEER_SERIAL" => Op::Cert(Downstream, CertField::PeerSerial),
        "DOWNSTREAM_PEER_CERT" => Op::Cert(Downstream, CertField::PeerCert),
        "DOWNSTREAM_TLS_SESSION_ID" => Op::Cert(Downstream, CertField::SessionId),
        "DOWNSTREAM_TLS_CIPHER" => Op::Cert(Downstream, CertField::Cipher),
        "DOWNSTREAM_TLS_VERSION" => Op::Cert(Downstream, CertField::Version),
        "UPSTREAM_PEER_SUBJECT" => Op::Cert(Upstream, CertField::PeerSubject),
        "UPSTREAM_PEER_ISSUER" => Op::Cert(Upstream, CertField::PeerIssuer),
        "UPSTREAM_PEER_CERT" => Op::Cert(Upstream, CertField::PeerCert),
        "UPSTREAM_PEER_URI_SAN" => Op::Cert(Upstream, CertField::PeerUriSan),
        "UPSTREAM_PEER_DNS_SAN" => Op::Cert(Upstream, CertField::PeerDnsSan),
        "UPSTREAM_PEER_IP_SAN" => Op::Cert(Upstream, CertField::PeerIpSan),
        "UPSTREAM_LOCAL_URI_SAN" => Op::Cert(Upstream, CertField::LocalUriSan),
        "UPSTREAM_LOCAL_DNS_SAN" => Op::Cert(Upstream, CertField::LocalDnsSan),
        "UPSTREAM_LOCAL_IP_SAN" => Op::Cert(Upstream, CertField::LocalIpSan),
        "UPSTREAM_TLS_SESSION_ID" => Op::Cert(Upstream, CertField::SessionId),
        "UPSTREAM_TLS_CIPHER" => Op::Cert(Upstream, CertField::Cipher),
        "UPSTREAM_TLS_VERSION" => Op::Cert(Upstream, CertField::Version),
        "UPSTREAM_SERVER_NAME" => Op::Cert(Upstream, CertField::Sni),
        // Fingerprints only if the TLS inspector computes them, round trips of QUIC, spans of a tracer: none of these exists here.
        "TLS_JA3_FINGERPRINT" | "TLS_JA4_FINGERPRINT" | "ROUNDTRIP_DURATION" | "TRACE_ID" | "SPAN_ID" => Op::Absent,
        "HOSTNAME" => Op::Constant(hostname().into()),
        _ => return None,
    })
}

fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").map_or_else(|_| "-".to_string(), |name| name.trim_end().to_string())
}

fn time(of: TimeOf, argument: Option<&str>, local: bool) -> Result<Op, String> {
    Ok(Op::Time(of, TimeFormat::compile(argument, local)?))
}

fn headers(from: From, argument: Option<&str>, name: &str) -> Result<Op, String> {
    let argument = argument.filter(|a| !a.is_empty()).ok_or_else(|| format!("{name} requires parameters"))?;
    let mut names = argument.split('?');
    let main = names.next().unwrap_or_default();
    let other = names.next().filter(|n| !n.is_empty());
    if names.next().is_some() {
        return Err(format!("More than 1 alternative header specified in token: {argument}"));
    }
    let parse = |text: &str| Name::parse(text).ok_or_else(|| format!("{text:?} is not a header name"));
    // An empty main name never matches, so the alternative is all there is.
    match (main, other) {
        ("", None) => Ok(Op::Absent),
        ("", Some(other)) => Ok(Op::Header(Headers { from, main: parse(other)?, other: None })),
        (main, other) => {
            // Names such as `:nope` are no header that could ever be there.
            if main.starts_with(':') && Name::parse(main).is_none() {
                return other.map_or(Ok(Op::Absent), |o| Ok(Op::Header(Headers { from, main: parse(o)?, other: None })));
            }
            Ok(Op::Header(Headers { from, main: parse(main)?, other: other.map(parse).transpose()? }))
        }
    }
}

fn address(of: AddressOf, argument: Option<&str>) -> Op {
    // Envoy ignores an argument that is no number.
    let bits = argument.and_then(|a| a.trim().parse::<u16>().ok());
    Op::Address(of, bits.map_or(AddressForm::WithoutPort, |b| AddressForm::Masked(u8::try_from(b).unwrap_or(u8::MAX))))
}

fn metadata(of: MetadataOf, argument: &str) -> Op {
    let mut parts = argument.split(':');
    let namespace = parts.next().unwrap_or_default().into();
    Op::Metadata { of, namespace, path: parts.map(Into::into).collect() }
}

fn filter_state(upstream: bool, argument: Option<&str>) -> Result<Op, String> {
    let mut parts = argument.unwrap_or_default().splitn(3, ':');
    let key = parts.next().unwrap_or_default();
    if key.is_empty() {
        return Err("Invalid filter state configuration, key cannot be empty.".to_string());
    }
    let form = match (parts.next(), parts.next()) {
        (None | Some("TYPED"), None) => StateForm::Typed,
        (Some("PLAIN"), None) => StateForm::Plain,
        (Some("FIELD"), Some(field)) if !field.is_empty() => StateForm::Field(field.into()),
        (Some("FIELD" | "PLAIN" | "TYPED"), _) => {
            return Err("Invalid filter state serialize type, FIELD should be used with the field name.".to_string());
        }
        _ => return Err("Invalid filter state serialize type, only support PLAIN/TYPED/FIELD.".to_string()),
    };
    Ok(Op::FilterState { upstream, key: key.into(), form })
}

fn common_duration(argument: &str) -> Result<Op, String> {
    let wrong = || format!("Invalid common duration configuration: {argument}.");
    let parts: Vec<_> = argument.split(':').collect();
    let (from, to, precision) = match parts.as_slice() {
        [from, to] => (*from, *to, "ms"),
        [from, to, precision] => (*from, *to, *precision),
        _ => return Err(wrong()),
    };
    let point = |name: &str| {
        Ok(match name {
            "DS_RX_BEG" => Point::DownstreamRxBegin,
            "DS_RX_END" => Point::DownstreamRxEnd,
            "DS_TX_BEG" => Point::DownstreamTxBegin,
            "DS_TX_END" => Point::DownstreamTxEnd,
            "US_TX_BEG" => Point::UpstreamTxBegin,
            "US_TX_END" => Point::UpstreamTxEnd,
            "US_RX_BEG" => Point::UpstreamRxBegin,
            "US_RX_END" => Point::UpstreamRxEnd,
            "US_CX_BEG" => Point::UpstreamConnectBegin,
            "US_CX_END" => Point::UpstreamConnectEnd,
            "DS_CX_BEG" => Point::DownstreamConnectionBegin,
            "DS_CX_END" => Point::DownstreamConnectionEnd,
            "US_HS_END" | "US_RX_BODY_BEG" => return Err(format!("time point {name} is not supported by Nuncio")),
            _ => Point::Custom,
        })
    };
    let precision = match precision {
        "ms" => Precision::Millis,
        "us" => Precision::Micros,
        "ns" => Precision::Nanos,
        other => return Err(format!("Invalid common duration precision: {other}.")),
    };
    let (from, to) = (point(from)?, point(to)?);
    let connect = |p: Point| matches!(p, Point::UpstreamConnectBegin | Point::UpstreamConnectEnd);
    if (connect(from) || connect(to)) && (from, to) != (Point::UpstreamConnectBegin, Point::UpstreamConnectEnd) {
        return Err("time points US_CX_BEG and US_CX_END are supported by Nuncio only together".to_string());
    }
    Ok(Op::CommonDuration(from, to, precision))
}

fn server_name(argument: Option<&str>) -> Result<Op, String> {
    let (sni, host) = argument.unwrap_or_default().split_once(':').unwrap_or((argument.unwrap_or_default(), ""));
    let sni = match sni {
        "" | "SNI_ONLY" => Sni::Only,
        "SNI_FIRST" => Sni::First,
        "HOST_FIRST" => Sni::Last,
        other => {
            return Err(format!("Invalid REQUESTED_SERVER_NAME option: '{other}', only 'SNI_ONLY'/'SNI_FIRST'/'HOST_FIRST' are allowed"));
        }
    };
    let host = match host {
        "" | "ORIG_OR_HOST" => HostSource::OriginalOrAuthority,
        "HOST" => HostSource::Authority,
        "ORIG" => HostSource::Original,
        other => return Err(format!("Invalid REQUESTED_SERVER_NAME option: '{other}', only 'ORIG_OR_HOST'/'HOST'/'ORIG' are allowed")),
    };
    Ok(Op::ServerName(HostChoice { sni, host }))
}

fn path(argument: Option<&str>) -> Result<Op, String> {
    let (query, source) = argument.unwrap_or_default().split_once(':').unwrap_or((argument.unwrap_or_default(), ""));
    let query = match query {
        "" | "WQ" => true,
        "NQ" => false,
        other => return Err(format!("Invalid PATH option: '{other}', only 'WQ'/'NQ' are allowed")),
    };
    let source = match source {
        "" | "ORIG_OR_PATH" => PathSource::OriginalOrPath,
        "ORIG" => PathSource::Original,
        "PATH" => PathSource::Path,
        other => return Err(format!("Invalid PATH option: '{other}', only 'ORIG'/'PATH'/'ORIG_OR_PATH' are allowed")),
    };
    Ok(Op::Path { query, source })
}

fn coalesce(argument: &str, extensions: Extensions) -> Result<Op, String> {
    let config: serde_json::Value =
        serde_json::from_str(argument).map_err(|e| format!("COALESCE: failed to parse JSON configuration: {e}"))?;
    let Some(operators) = config.get("operators").and_then(|o| o.as_array()) else {
        return Err("COALESCE: JSON configuration must contain 'operators' array".to_string());
    };
    if operators.is_empty() {
        return Err("COALESCE: 'operators' array must not be empty".to_string());
    }
    let mut all = Vec::with_capacity(operators.len());
    for (i, operator) in operators.iter().enumerate() {
        let text = |key: &str| operator.get(key).and_then(|v| v.as_str());
        let Some(name) = operator.as_str().or_else(|| text("command")) else {
            return Err(format!("COALESCE: operator at index {i} has no 'command'"));
        };
        let length = operator.get("max_length").and_then(|v| v.as_u64()).and_then(|n| usize::try_from(n).ok());
        let command = Command { name, argument: text("param"), length };
        if name == "COALESCE" {
            return Err(format!("COALESCE: operator at index {i} is COALESCE itself"));
        }
        all.push(compile(&command, extensions).map_err(|e| format!("COALESCE: failed to parse operator at index {i}: {e}"))?);
    }
    Ok(Op::Coalesce(all.into()))
}

/// Compiles one command; the error is a sentence that names it.
pub(crate) fn compile(command: &Command<'_>, extensions: Extensions) -> Result<Limited, String> {
    let Command { name, argument, length } = *command;
    if UNSUPPORTED.contains(&name) {
        return Err(format!("operator {name} is not supported by Nuncio"));
    }
    if let Some(op) = simple(name) {
        if argument.is_some_and(|a| !a.is_empty()) || length.is_some() {
            return Err(format!("{name} does not take any parameters or length"));
        }
        return Ok(Limited { op, length: None });
    }
    let required = || argument.filter(|a| !a.is_empty()).ok_or_else(|| format!("{name} requires parameters"));
    let mut may_limit = false;
    let op = match name {
        "START_TIME" => time(TimeOf::Start, argument, false)?,
        "START_TIME_LOCAL" => time(TimeOf::Start, argument, true)?,
        "EMIT_TIME" => time(TimeOf::Emit, argument, false)?,
        "EMIT_TIME_LOCAL" => time(TimeOf::Emit, argument, true)?,
        "DOWNSTREAM_PEER_CERT_V_START" => time(TimeOf::NotBefore(Side::Downstream), argument, false)?,
        "DOWNSTREAM_PEER_CERT_V_END" => time(TimeOf::NotAfter(Side::Downstream), argument, false)?,
        "UPSTREAM_PEER_CERT_V_START" => time(TimeOf::NotBefore(Side::Upstream), argument, false)?,
        "UPSTREAM_PEER_CERT_V_END" => time(TimeOf::NotAfter(Side::Upstream), argument, false)?,
        "RESPONSE_CODE_DETAILS" => Op::Text(TextOf::Details { spaces: argument == Some("ALLOW_WHITESPACES") }),
        "GRPC_STATUS" => Op::GrpcStatus(match argument.unwrap_or_default() {
            "" | "CAMEL_STRING" => GrpcForm::Camel,
            "SNAKE_STRING" => GrpcForm::Snake,
            "NUMBER" => GrpcForm::Number,
            other => return Err(format!("GrpcStatusFormatter only supports CAMEL_STRING, SNAKE_STRING or NUMBER. Got: {other}")),
        }),
        "COMMON_DURATION" => common_duration(required()?)?,
        "UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => address(AddressOf::UpstreamLocal, argument),
        "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => address(AddressOf::UpstreamRemote, argument),
        "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => address(AddressOf::DownstreamRemote, argument),
        "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT" => address(AddressOf::DownstreamDirectRemote, argument),
        "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => address(AddressOf::DownstreamLocal, argument),
        "DOWNSTREAM_DIRECT_LOCAL_ADDRESS_WITHOUT_PORT" => address(AddressOf::DownstreamDirectLocal, argument),
        "CLUSTER_METADATA" => metadata(MetadataOf::Cluster, required()?),
        "UPSTREAM_METADATA" => metadata(MetadataOf::UpstreamHost, required()?),
        "REQUESTED_SERVER_NAME" => server_name(argument)?,
        _ => {
            may_limit = true;
            match name {
                "REQ" | "REQUEST_HEADER" => headers(From::Request, argument, name)?,
                "RESP" | "RESPONSE_HEADER" => headers(From::Response, argument, name)?,
                "TRAILER" | "RESPONSE_TRAILER" => headers(From::Trailers, argument, name)?,
                "REQ_WITHOUT_QUERY" if extensions.req_without_query => headers(From::RequestWithoutQuery, argument, name)?,
                "DYNAMIC_METADATA" => metadata(MetadataOf::Dynamic, required()?),
                "METADATA" => {
                    let (kind, rest) = argument.unwrap_or_default().split_once(':').unwrap_or((argument.unwrap_or_default(), ""));
                    let of = match kind {
                        "DYNAMIC" => MetadataOf::Dynamic,
                        "CLUSTER" => MetadataOf::Cluster,
                        "ROUTE" => MetadataOf::Route,
                        "UPSTREAM_HOST" => MetadataOf::UpstreamHost,
                        "LISTENER" => MetadataOf::Listener,
                        "LISTENER_FILTER_CHAIN" => MetadataOf::FilterChain,
                        "VIRTUAL_HOST" => MetadataOf::VirtualHost,
                        other => return Err(format!("{other} is not supported type of metadata")),
                    };
                    metadata(of, rest)
                }
                "FILTER_STATE" => filter_state(false, argument)?,
                "UPSTREAM_FILTER_STATE" => filter_state(true, argument)?,
                "ENVIRONMENT" => Op::Constant(std::env::var(required()?).unwrap_or_else(|_| "-".to_string()).into()),
                "QUERY_PARAM" => Op::QueryParam(required()?.into()),
                "QUERY_PARAMS" => match argument.unwrap_or_default() {
                    "" | "ORIG" => Op::QueryParams { decoded: false },
                    "DECODED" => Op::QueryParams { decoded: true },
                    other => return Err(format!("Invalid QUERY_PARAMS option: '{other}', only 'ORIG'/'DECODED' are allowed")),
                },
                "PATH" => path(argument)?,
                "CEL" => Op::Expression(expression::compile(required()?)?),
                "COALESCE" => coalesce(required()?, extensions)?,
                _ => return Err(format!("Not supported field in StreamInfo: {name}")),
            }
        }
    };
    if length.is_some() && !may_limit {
        return Err(format!("{name} does not allow length to be specified."));
    }
    Ok(Limited { op, length })
}
