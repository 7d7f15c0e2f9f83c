//! The access log service: one stream per worker that takes batches of entries. Source: `envoy/service/accesslog/v3/als.proto`,
//! `envoy/extensions/access_loggers/grpc/v3/als.proto`.

use crate::batch::{Batcher, Sender, Target};
use crate::common::{check, client, limits};
use crate::entry::{self, More};
use crate::tags::Tags;
use http::HeaderName;
use message::LogEntries;
use nuncio_callout::{GrpcClient, GrpcStream};
use nuncio_core::HeaderKey;
use nuncio_core::diag::{At, Report};
use nuncio_core::registry::Server;
use nuncio_format::{FormatContext, Logger};
use nuncio_proto::envoy::data::accesslog::v3::{HttpAccessLogEntry, TcpAccessLogEntry};
use nuncio_proto::envoy::extensions::access_loggers::grpc::v3 as proto;
use nuncio_proto::envoy::service::accesslog::v3::stream_access_logs_message as message;
use nuncio_proto::envoy::service::accesslog::v3::{StreamAccessLogsMessage, StreamAccessLogsResponse};
use prost::Message;
use std::fmt::Debug;
use std::future::poll_fn;
use std::marker::PhantomData;
use std::sync::Arc;

const STREAM: &str = "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs";

/// A kind of entry.
pub trait Entry: Message + Debug + 'static {
    fn batch(entries: Vec<Self>) -> LogEntries
    where
        Self: Sized;
}
impl Entry for HttpAccessLogEntry {
    fn batch(log_entry: Vec<Self>) -> LogEntries {
        LogEntries::HttpLogs(message::HttpAccessLogEntries { log_entry })
    }
}
impl Entry for TcpAccessLogEntry {
    fn batch(log_entry: Vec<Self>) -> LogEntries {
        LogEntries::TcpLogs(message::TcpAccessLogEntries { log_entry })
    }
}

/// A service that takes entries `E`.
#[derive(Debug)]
struct Service<E> {
    client: Arc<GrpcClient>,
    identifier: message::Identifier,
    entries: PhantomData<fn() -> E>,
}

impl<E: Entry> Target for Service<E> {
    type Entry = E;
    fn sender(&self) -> impl Sender<E> {
        Stream { client: self.client.clone(), identifier: self.identifier.clone(), stream: None }
    }
}

/// The stream of one worker.
struct Stream {
    client: Arc<GrpcClient>,
    identifier: message::Identifier,
    stream: Option<GrpcStream<StreamAccessLogsResponse>>,
}

impl<E: Entry> Sender<E> for Stream {
    async fn send(&mut self, entries: Vec<E>) {
        let mut identifier = None;
        if self.stream.is_none() {
            match self.client.stream(STREAM, None).await {
                Ok(stream) => self.stream = Some(stream),
                Err(error) => {
                    log::debug!(target: "grpc_access_log", "cluster '{}': {error}", self.client.cluster());
                    return;
                }
            }
            identifier = Some(self.identifier.clone());
        }
        let Some(stream) = &mut self.stream else { return };
        stream.send(&StreamAccessLogsMessage { identifier, log_entries: Some(E::batch(entries)) });
        // Until it went out, or the service broke the stream off; what it says otherwise is nothing.
        let broken = poll_fn(|cx| {
            while let std::task::Poll::Ready(said) = stream.poll_message(cx) {
                if !matches!(said, Ok(Some(_))) {
                    return std::task::Poll::Ready(true);
                }
            }
            stream.poll_send(cx).map(|()| false)
        })
        .await;
        if broken {
            self.stream = None;
        }
    }
    async fn idle(&mut self) {
        let Some(stream) = &mut self.stream else { return std::future::pending().await };
        while let Ok(Some(_)) = stream.message().await {}
        self.stream = None;
    }
    async fn finish(self) {
        let Some(mut stream) = self.stream else { return };
        stream.finish();
        while let Ok(Some(_)) = stream.message().await {}
    }
}

fn compile<E: Entry>(
    config: Option<&proto::CommonGrpcAccessLogConfig>,
    server: &Arc<Server>,
    at: &At<'_>,
    report: &mut Report,
) -> Option<(Batcher<Service<E>>, More)> {
    let at = at.field("common_config");
    let errors = report.errors();
    let Some(config) = config else {
        report.error(&at, "nothing", "name the log and the service");
        return None;
    };
    check(config, &at, report);
    if config.log_name.is_empty() {
        report.error(&at.field("log_name"), "an empty name", "name the log");
    }
    let client = client(config.grpc_service.as_ref(), server, &at, report)?;
    let limits = limits(config.buffer_flush_interval.as_ref(), config.buffer_size_bytes, &at, report)?;
    let tags = Tags::compile(&config.custom_tags, &at.field("custom_tags"), report)?;
    let more = More { filter_state: config.filter_state_objects_to_log.clone(), tags, ..More::default() };
    let identifier = message::Identifier { node: Some(server.node.clone()), log_name: config.log_name.clone() };
    let scope = server.stats.root().scope("access_logs.grpc_access_log.");
    let service = Service { client: Arc::new(client), identifier, entries: PhantomData };
    (report.errors() == errors).then(|| (Batcher::new(service, limits, &scope), more))
}

/// `envoy.access_loggers.http_grpc`.
#[derive(Debug)]
pub struct HttpGrpc {
    batcher: Batcher<Service<HttpAccessLogEntry>>,
    more: More,
}

impl HttpGrpc {
    pub fn compile(config: &proto::HttpGrpcAccessLogConfig, server: &Arc<Server>, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let (batcher, mut more) = compile(config.common_config.as_ref(), server, at, report)?;
        let keys = |names: &[String], field: &str, report: &mut Report| -> Option<Vec<HeaderKey>> {
            let at = at.field(field);
            let parse = |(i, name): (usize, &String)| {
                let key = HeaderKey::parse(name);
                if key.is_none() {
                    report.error(&at.index(i), format!("{name:?}"), "give a valid header name");
                }
                key
            };
            names.iter().enumerate().map(parse).collect()
        };
        more.request_headers = keys(&config.additional_request_headers_to_log, "additional_request_headers_to_log", report)?;
        more.response_headers = keys(&config.additional_response_headers_to_log, "additional_response_headers_to_log", report)?;
        let trailers = keys(&config.additional_response_trailers_to_log, "additional_response_trailers_to_log", report)?;
        let name = |key: HeaderKey| match key {
            HeaderKey::Name(name) => Some(name),
            _ => None,
        };
        more.response_trailers = trailers.into_iter().filter_map(name).collect::<Vec<HeaderName>>();
        Some(Self { batcher, more })
    }
}

impl Logger for HttpGrpc {
    fn log(&self, cx: &FormatContext<'_>) {
        self.batcher.push(Message::encoded_len, || entry::http(cx, &self.more));
    }
}

/// `envoy.access_loggers.tcp_grpc`.
#[derive(Debug)]
pub struct TcpGrpc {
    batcher: Batcher<Service<TcpAccessLogEntry>>,
    more: More,
}

impl TcpGrpc {
    pub fn compile(config: &proto::TcpGrpcAccessLogConfig, server: &Arc<Server>, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let (batcher, more) = compile(config.common_config.as_ref(), server, at, report)?;
        Some(Self { batcher, more })
    }
}

impl Logger for TcpGrpc {
    fn log(&self, cx: &FormatContext<'_>) {
        self.batcher.push(Message::encoded_len, || entry::tcp(cx, &self.more));
    }
}
