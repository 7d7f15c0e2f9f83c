//! The OpenTelemetry logger: records with formats in body and attributes, sent in batches by unary gRPC or by HTTP.
//! Source: `envoy/extensions/access_loggers/open_telemetry/v3/logs_service.proto`.

use crate::batch::{Batcher, Sender, Target};
use crate::common::{check, client, limits};
use crate::otlp::{ExportRequest, ExportResponse, LogRecord, Resource, ResourceLogs, ScopeLogs};
use crate::tags::Tags;
use bytes::Bytes;
use http::{HeaderValue, Method, header};
use nuncio_callout::{AddedHeaders, FetchOptions, GrpcClient, HttpTarget, fetch};
use nuncio_core::RequestHead;
use nuncio_core::diag::{At, Report};
use nuncio_core::registry::Server;
use nuncio_format::{FormatContext, Formatter, Logger};
use nuncio_proto::envoy::config::core::v3::substitution_format_string::Format;
use nuncio_proto::envoy::config::core::v3::{
    DataSource, HttpService, SubstitutionFormatString, TypedExtensionConfig, data_source::Specifier,
};
use nuncio_proto::envoy::extensions::access_loggers::open_telemetry::v3::OpenTelemetryAccessLogConfig as Proto;
use nuncio_proto::opentelemetry::proto::common::v1::any_value::Value;
use nuncio_proto::opentelemetry::proto::common::v1::{AnyValue, ArrayValue, KeyValue, KeyValueList};
use prost::Message;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

const EXPORT: &str = "/opentelemetry.proto.collector.logs.v1.LogsService/Export";
/// How long an export may take if nobody says so; a batch that takes longer is lost.
const TIMEOUT: Duration = Duration::from_secs(10);

/// As OTLP wants exporters to name themselves.
const USER_AGENT: &str = concat!("OTel-OTLP-Exporter-Nuncio/", env!("CARGO_PKG_VERSION"));

/// A value with formats in its strings.
#[derive(Debug)]
enum Template {
    Text(Box<Formatter>),
    List(Vec<Template>),
    Map(Vec<(String, Template)>),
    /// A value that is always the same.
    Fixed(AnyValue),
}

impl Template {
    fn compile(value: &AnyValue, formatters: &[TypedExtensionConfig], at: &At<'_>, report: &mut Report) -> Option<Self> {
        Some(match &value.value {
            Some(Value::StringValue(text)) => {
                let source = DataSource { specifier: Some(Specifier::InlineString(text.clone())), ..Default::default() };
                let format = SubstitutionFormatString {
                    format: Some(Format::TextFormatSource(source)),
                    formatters: formatters.to_vec(),
                    ..Default::default()
                };
                Self::Text(Box::new(Formatter::compile(&format, at, report)?))
            }
            Some(Value::ArrayValue(list)) => {
                let compile = |(i, v)| Self::compile(v, formatters, &at.index(i), report);
                Self::List(list.values.iter().enumerate().map(compile).collect::<Option<_>>()?)
            }
            Some(Value::KvlistValue(map)) => Self::Map(Self::map(map, formatters, at, report)?),
            _ => Self::Fixed(value.clone()),
        })
    }
    fn map(map: &KeyValueList, formatters: &[TypedExtensionConfig], at: &At<'_>, report: &mut Report) -> Option<Vec<(String, Self)>> {
        let compile = |kv: &KeyValue| {
            let value = kv.value.clone().unwrap_or_default();
            Some((kv.key.clone(), Self::compile(&value, formatters, &at.key(&kv.key), report)?))
        };
        map.values.iter().map(compile).collect()
    }
    fn value(&self, cx: &FormatContext<'_>) -> AnyValue {
        let value = match self {
            Self::Text(format) => {
                let mut text = String::new();
                format.format(cx, &mut text);
                Value::StringValue(text)
            }
            Self::List(list) => Value::ArrayValue(ArrayValue { values: list.iter().map(|t| t.value(cx)).collect() }),
            Self::Map(map) => Value::KvlistValue(KeyValueList { values: pairs(map, cx) }),
            Self::Fixed(value) => return value.clone(),
        };
        AnyValue { value: Some(value) }
    }
}

fn pairs(map: &[(String, Template)], cx: &FormatContext<'_>) -> Vec<KeyValue> {
    map.iter().map(|(key, template)| KeyValue { key: key.clone(), value: Some(template.value(cx)), ..Default::default() }).collect()
}

fn pair(key: &str, text: impl Into<String>) -> KeyValue {
    let value = AnyValue { value: Some(Value::StringValue(text.into())) };
    KeyValue { key: key.to_string(), value: Some(value), ..Default::default() }
}

/// How batches travel.
#[derive(Clone, Debug)]
enum Transport {
    Grpc(Arc<GrpcClient>),
    Http(Arc<Http>),
}

#[derive(Debug)]
struct Http {
    target: HttpTarget,
    headers: AddedHeaders,
    options: FetchOptions,
}

#[derive(Debug)]
struct Collector {
    transport: Transport,
    resource: Resource,
}

impl Target for Collector {
    type Entry = LogRecord;
    fn sender(&self) -> impl Sender<LogRecord> {
        Exporter { transport: self.transport.clone(), resource: self.resource.clone() }
    }
}

struct Exporter {
    transport: Transport,
    resource: Resource,
}

impl Sender<LogRecord> for Exporter {
    async fn send(&mut self, log_records: Vec<LogRecord>) {
        let scope_logs = vec![ScopeLogs { scope: None, log_records }];
        let request = ExportRequest { resource_logs: vec![ResourceLogs { resource: Some(self.resource.clone()), scope_logs }] };
        let failed = match &self.transport {
            Transport::Grpc(client) => {
                let export = client.unary::<ExportResponse>(EXPORT, &request, None);
                // The collector is told of a time limit only if it is configured.
                match tokio::time::timeout(client.timeout().unwrap_or(TIMEOUT), export).await {
                    Ok(answer) => answer.err().map(|e| e.to_string()),
                    Err(_) => Some("no answer in time".to_string()),
                }
            }
            Transport::Http(http) => http.send(request.encode_to_vec().into()).await.err(),
        };
        if let Some(why) = failed {
            log::debug!(target: "open_telemetry_access_log", "a batch was lost: {why}");
        }
    }
    async fn finish(self) {}
}

impl Http {
    fn compile(p: &HttpService, server: &Arc<Server>, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let Some(uri) = &p.http_uri else {
            report.error(&at.field("http_uri"), "nothing", "name the collector");
            return None;
        };
        if !p.formatters.is_empty() {
            report.unsupported(&at.field("formatters"), "formatters of request headers");
            return None;
        }
        let target = HttpTarget::compile(uri, server, &at.field("http_uri"), report)?;
        let list: Vec<_> = p.request_headers_to_add.iter().filter_map(|h| h.header.clone()).collect();
        let headers = AddedHeaders::compile(&list, &at.field("request_headers_to_add"), report)?;
        let timeout = if target.timeout.is_zero() { TIMEOUT } else { target.timeout };
        Some(Self { target, headers, options: FetchOptions { timeout: Some(timeout), ..FetchOptions::default() } })
    }
    async fn send(&self, body: Bytes) -> Result<(), String> {
        let mut head: RequestHead = self.target.request(Method::POST);
        head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        head.headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        self.headers.set(None, &mut head.headers);
        match fetch(&self.target.slot, head, body, &self.options).await {
            Ok((head, _)) if head.status.is_success() => Ok(()),
            Ok((head, _)) => Err(format!("HTTP status {}", head.status.as_u16())),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// `envoy.access_loggers.open_telemetry`.
#[derive(Debug)]
pub struct OpenTelemetry {
    batcher: Batcher<Collector>,
    body: Option<Template>,
    attributes: Vec<(String, Template)>,
    filter_state: Vec<String>,
    tags: Tags,
}

impl OpenTelemetry {
    #[allow(deprecated)] // `common_config` is the old place of the service.
    pub fn compile(p: &Proto, server: &Arc<Server>, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let errors = report.errors();
        if let Some(first) = p.resource_detectors.first() {
            report.unsupported(&at.field("resource_detectors").index(0), format_args!("resource detector {}", first.name));
        }
        let common = p.common_config.clone().unwrap_or_default();
        let at_common = at.field("common_config");
        if p.common_config.is_some() {
            check(&common, &at_common, report);
        }
        let transport = transport(p, server, at, report)?;
        // Fields of the message itself win over those of common_config.
        let interval = p.buffer_flush_interval.as_ref().or(common.buffer_flush_interval.as_ref());
        let limits = limits(interval, p.buffer_size_bytes.or(common.buffer_size_bytes), at, report)?;
        let log_name = if p.log_name.is_empty() { &common.log_name } else { &p.log_name };
        let (tags, filter_state) = if p.custom_tags.is_empty() && p.filter_state_objects_to_log.is_empty() {
            (&common.custom_tags, common.filter_state_objects_to_log.clone())
        } else {
            (&p.custom_tags, p.filter_state_objects_to_log.clone())
        };
        let tags = Tags::compile(tags, &at.field("custom_tags"), report)?;
        let body = match &p.body {
            Some(body) => Some(Template::compile(body, &p.formatters, &at.field("body"), report)?),
            None => None,
        };
        let attributes = match &p.attributes {
            Some(map) => Template::map(map, &p.formatters, &at.field("attributes"), report)?,
            None => Vec::new(),
        };
        let prefix = match p.stat_prefix.as_str() {
            "" => "access_logs.open_telemetry_access_log.".to_string(),
            prefix => format!("access_logs.open_telemetry_access_log.{prefix}."),
        };
        let resource = resource(p, log_name, server);
        let batcher = Batcher::new(Collector { transport, resource }, limits, &server.stats.root().scope(&prefix));
        (report.errors() == errors).then(|| Self { batcher, body, attributes, filter_state, tags })
    }

    fn record(&self, cx: &FormatContext<'_>) -> LogRecord {
        let since = cx.info.start.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let mut attributes = pairs(&self.attributes, cx);
        for name in &self.filter_state {
            let object = cx.info.filter_state.get(name);
            if let Some(text) = object.and_then(|o| o.as_string().or_else(|| o.as_json())) {
                attributes.push(pair(name, text));
            }
        }
        self.tags.write(cx, |name, value| attributes.push(pair(name, value)));
        LogRecord {
            time_unix_nano: u64::try_from(since.as_nanos()).unwrap_or(u64::MAX),
            body: self.body.as_ref().map(|b| b.value(cx)),
            attributes,
        }
    }
}

/// The one service that is named; `common_config` is the old place.
#[allow(deprecated)]
fn transport(p: &Proto, server: &Arc<Server>, at: &At<'_>, report: &mut Report) -> Option<Transport> {
    let old = p.common_config.as_ref().and_then(|c| c.grpc_service.as_ref());
    let named = [p.http_service.is_some(), p.grpc_service.is_some(), old.is_some()].into_iter().filter(|n| *n).count();
    if named != 1 {
        report.error(at, format!("{named} services"), "name one: grpc_service, http_service or common_config.grpc_service");
        return None;
    }
    if let Some(http) = &p.http_service {
        return Http::compile(http, server, &at.field("http_service"), report).map(|h| Transport::Http(Arc::new(h)));
    }
    let at_common = at.field("common_config");
    let at = if old.is_some() { &at_common } else { at };
    let client = client(p.grpc_service.as_ref().or(old), server, at, report)?;
    Some(Transport::Grpc(Arc::new(client)))
}

/// What every record is of: this process, and what the configuration adds.
fn resource(p: &Proto, log_name: &str, server: &Server) -> Resource {
    let node = &server.node;
    let zone = node.locality.as_ref().map(|l| l.zone.clone()).unwrap_or_default();
    let mut attributes = Vec::new();
    if !p.disable_builtin_labels {
        attributes.push(pair("log_name", log_name));
        attributes.push(pair("zone_name", zone));
        attributes.push(pair("cluster_name", node.cluster.clone()));
        attributes.push(pair("node_name", node.id.clone()));
    }
    attributes.extend(p.resource_attributes.clone().unwrap_or_default().values);
    Resource { attributes }
}

impl Logger for OpenTelemetry {
    fn log(&self, cx: &FormatContext<'_>) {
        self.batcher.push(Message::encoded_len, || self.record(cx));
    }
}
