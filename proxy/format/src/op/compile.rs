//! From a command's name and argument to its operator. What Envoy refuses is refused here with the same words where it has any.

use super::address::{AddressForm, AddressOf};
use super::duration::{Point, Precision};
use super::fields::{GrpcForm, TextOf};
use super::metadata::{MetadataOf, StateForm};
use super::request::{From, Headers, HostChoice, HostSource, Name, PathSource, Sni};
use super::tls::Side;
use super::xfcc::XfccKey;
use super::{Limited, Op, TimeOf, names};
use crate::expression;
use crate::parse::Command;
use crate::time::TimeFormat;
use crate::value::{OpValue, ValueSource};

/// Formatter extensions (`SubstitutionFormatString.formatters`) that a format may use beside the built-in operators.
#[derive(Clone, Copy, Default)]
pub(crate) struct Extensions<'a> {
    pub req_without_query: bool,
    /// Those that another crate compiled.
    pub sources: &'a [Box<dyn ValueSource>],
}

impl Extensions<'_> {
    fn value(&self, name: &str, argument: Option<&str>, length: Option<usize>) -> Option<Result<Box<dyn OpValue>, String>> {
        self.sources.iter().find_map(|source| source.value(name, argument.unwrap_or_default(), length))
    }
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
    let precision = match precision {
        "ms" => Precision::Millis,
        "us" => Precision::Micros,
        "ns" => Precision::Nanos,
        other => return Err(format!("Invalid common duration precision: {other}.")),
    };
    Ok(Op::CommonDuration(Point::named(from), Point::named(to), precision))
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

fn coalesce(argument: &str, extensions: Extensions<'_>) -> Result<Op, String> {
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
pub(crate) fn compile(command: &Command<'_>, extensions: Extensions<'_>) -> Result<Limited, String> {
    let Command { name, argument, length } = *command;
    if let Some(op) = names::simple(name) {
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
                "CEL" => Op::Expression { expression: expression::compile(required()?)?, typed: false },
                "TYPED_CEL" => Op::Expression { expression: expression::compile(required()?)?, typed: true },
                // Its length is taken and has no effect, as in Envoy.
                "XFCC_VALUE" => return Ok(Limited { op: Op::Xfcc(XfccKey::parse(argument.unwrap_or_default())?), length: None }),
                "COALESCE" => coalesce(required()?, extensions)?,
                _ => match extensions.value(name, argument, length) {
                    Some(value) => return Ok(Limited { op: Op::Value(value?), length: None }),
                    None => return Err(format!("Not supported field in StreamInfo: {name}")),
                },
            }
        }
    };
    if length.is_some() && !may_limit {
        return Err(format!("{name} does not allow length to be specified."));
    }
    Ok(Limited { op, length })
}
