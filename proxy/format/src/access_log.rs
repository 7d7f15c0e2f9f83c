//! Access logs of a listener, connection manager, router or tcp_proxy. Compiled on the control thread, written by workers.
//! Source: `envoy/config/accesslog/v3/accesslog.proto`, `envoy/extensions/access_loggers`.

use crate::FormatContext;
use crate::file::LogFile;
use crate::filter::LogFilter;
use crate::formatter::{DEFAULT_FORMAT, Formatter};
use crate::logger::Logger;
use nuncio_core::diag::{At, Report};
use nuncio_core::registry::Server;
use nuncio_proto::envoy::config::accesslog::v3::{AccessLog, access_log::ConfigType};
use nuncio_proto::envoy::config::core::v3::SubstitutionFormatString;
use nuncio_proto::envoy::extensions::access_loggers::file::v3::{FileAccessLog, file_access_log::AccessLogFormat};
use nuncio_proto::envoy::extensions::access_loggers::stream::v3 as stream;
use nuncio_proto::{Message, Name, typed};
use std::sync::Arc;

#[derive(Debug)]
struct Log {
    filter: Option<LogFilter>,
    sink: Sink,
}

/// Where entries go.
#[derive(Debug)]
enum Sink {
    File { format: Formatter, file: Arc<LogFile> },
    Logger(Arc<dyn Logger>),
}

/// The `access_log` list of a listener, connection manager, router or tcp_proxy. Shared by all workers.
#[derive(Debug)]
pub struct AccessLogs {
    logs: Box<[Log]>,
    server: Arc<Server>,
}

fn default_format(at: &At<'_>, report: &mut Report) -> Option<Formatter> {
    Formatter::text(DEFAULT_FORMAT, at, report)
}

/// The format of a stream logger; Envoy's default if there is none.
fn log_format(config: Option<&SubstitutionFormatString>, at: &At<'_>, report: &mut Report) -> Option<Formatter> {
    match config {
        Some(config) => Formatter::compile(config, &at.field("log_format"), report),
        None => default_format(at, report),
    }
}

#[allow(deprecated)]
fn file_format(config: &FileAccessLog, at: &At<'_>, report: &mut Report) -> Option<Formatter> {
    match &config.access_log_format {
        Some(AccessLogFormat::Format(text)) if text.is_empty() => default_format(at, report),
        Some(AccessLogFormat::Format(text)) => Formatter::text(text, &at.field("format"), report),
        // Both are typed since Envoy 1.33.
        Some(AccessLogFormat::JsonFormat(fields)) => Formatter::json(fields, &[], false, &at.field("json_format"), report),
        Some(AccessLogFormat::TypedJsonFormat(fields)) => Formatter::json(fields, &[], false, &at.field("typed_json_format"), report),
        Some(AccessLogFormat::LogFormat(config)) => log_format(Some(config), at, report),
        None => default_format(at, report),
    }
}

impl Log {
    fn compile(config: &AccessLog, server: &Arc<Server>, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let filter = config.filter.as_ref().map(|filter| LogFilter::compile(filter, &at.field("filter"), report));
        let sink = Self::sink(config, server, &at.field("typed_config"), report)?;
        let filter = match filter {
            Some(None) => return None,
            Some(filter) => filter,
            None => None,
        };
        Some(Self { filter, sink })
    }
    fn sink(config: &AccessLog, server: &Arc<Server>, at: &At<'_>, report: &mut Report) -> Option<Sink> {
        let Some(ConfigType::TypedConfig(any)) = &config.config_type else {
            report.error(at, format!("access log {:?} without typed_config", config.name), "give its configuration");
            return None;
        };
        let unpacked = typed::unpack(any).map_err(|e| report.error(at, e, "correct the typed_config")).ok()?;
        if let Some(factory) = crate::logger::factory(&unpacked.name) {
            return factory.compile(&unpacked.name, unpacked.value.as_ref(), server, at, report).map(Sink::Logger);
        }
        let (path, format) = Self::file(&config.name, &unpacked.name, unpacked.value.as_ref(), at, report)?;
        let file = LogFile::open(&path, &server.stats.root());
        let file = file.map_err(|e| report.error(at, format!("{path:?} cannot be opened: {e}"), "give a path that can be written")).ok()?;
        Some(Sink::File { format, file })
    }
    /// The path and format of a logger.
    fn file(logger: &str, name: &str, bytes: &[u8], at: &At<'_>, report: &mut Report) -> Option<(String, Formatter)> {
        let bad = |report: &mut Report, e: prost::DecodeError| report.error(at, format!("{name}: {e}"), "correct the bytes");
        if name == FileAccessLog::full_name() {
            let file = FileAccessLog::decode(bytes).map_err(|e| bad(report, e)).ok()?;
            if file.path.is_empty() {
                report.error(&at.field("path"), "an empty path", "give a path");
                return None;
            }
            let format = file_format(&file, at, report)?;
            return Some((file.path, format));
        }
        if name == stream::StdoutAccessLog::full_name() {
            use stream::stdout_access_log::AccessLogFormat::LogFormat;
            let log = stream::StdoutAccessLog::decode(bytes).map_err(|e| bad(report, e)).ok()?;
            let config = log.access_log_format.as_ref().map(|LogFormat(f)| f);
            return Some(("/dev/stdout".to_string(), log_format(config, at, report)?));
        }
        if name == stream::StderrAccessLog::full_name() {
            use stream::stderr_access_log::AccessLogFormat::LogFormat;
            let log = stream::StderrAccessLog::decode(bytes).map_err(|e| bad(report, e)).ok()?;
            let config = log.access_log_format.as_ref().map(|LogFormat(f)| f);
            return Some(("/dev/stderr".to_string(), log_format(config, at, report)?));
        }
        report.unsupported(at, format_args!("access log {logger:?} ({name})"));
        None
    }
}

impl AccessLogs {
    /// Compiles `logs`. Files are opened here; problems go to `report`. None means refused.
    pub fn compile(logs: &[AccessLog], server: &Arc<Server>, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let logs = nuncio_matcher::compile_all(logs, at, report, |log, at, report| Log::compile(log, server, at, report))?;
        Some(Self { logs, server: server.clone() })
    }
    /// Whether there are no logs.
    pub fn is_empty(&self) -> bool {
        self.logs.is_empty()
    }
    /// Writes one entry to each log whose filter lets it through. Never blocks.
    pub fn log(&self, cx: &FormatContext<'_>) {
        for log in &self.logs {
            if log.filter.as_ref().is_none_or(|f| f.passes(cx, &self.server.runtime)) {
                match &log.sink {
                    Sink::File { format, file } => file.append(|out| format.write(cx, out)),
                    Sink::Logger(logger) => logger.log(cx),
                }
            }
        }
    }
}
