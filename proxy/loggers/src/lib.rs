//! Access loggers that call services: Envoy's gRPC access log service (`http_grpc`, `tcp_grpc`) and OpenTelemetry (gRPC and HTTP).
//! Compiled on the control thread; every worker has its own buffer and its own task that empties it. [`Loggers`] is handed to
//! `nuncio_format::set_loggers` once, by `main`.

mod batch;
mod common;
mod entry;
mod grpc;
mod open_telemetry;
mod otlp;
mod tags;
mod tls;

use nuncio_core::diag::{At, Report};
use nuncio_core::registry::Server;
use nuncio_format::{Logger, LoggerFactory};
use nuncio_proto::envoy::extensions::access_loggers::grpc::v3::{HttpGrpcAccessLogConfig, TcpGrpcAccessLogConfig};
use nuncio_proto::envoy::extensions::access_loggers::open_telemetry::v3::OpenTelemetryAccessLogConfig;
use prost::{Message, Name};
use std::sync::Arc;

/// Compiles the loggers of this crate.
#[derive(Debug)]
pub struct Loggers;

const HTTP: &str = "envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig";
const TCP: &str = "envoy.extensions.access_loggers.grpc.v3.TcpGrpcAccessLogConfig";
const OPEN_TELEMETRY: &str = "envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig";

impl LoggerFactory for Loggers {
    fn types(&self) -> &[&'static str] {
        &[HTTP, TCP, OPEN_TELEMETRY]
    }
    fn compile(&self, name: &str, config: &[u8], server: &Arc<Server>, at: &At<'_>, report: &mut Report) -> Option<Arc<dyn Logger>> {
        match name {
            HTTP => {
                let config: HttpGrpcAccessLogConfig = decode(config, at, report)?;
                Some(Arc::new(grpc::HttpGrpc::compile(&config, server, at, report)?))
            }
            TCP => {
                let config: TcpGrpcAccessLogConfig = decode(config, at, report)?;
                Some(Arc::new(grpc::TcpGrpc::compile(&config, server, at, report)?))
            }
            _ => {
                let config: OpenTelemetryAccessLogConfig = decode(config, at, report)?;
                Some(Arc::new(open_telemetry::OpenTelemetry::compile(&config, server, at, report)?))
            }
        }
    }
}

fn decode<M: Message + Name + Default>(bytes: &[u8], at: &At<'_>, report: &mut Report) -> Option<M> {
    M::decode(bytes).map_err(|e| report.error(at, format!("{}: {e}", M::full_name()), "correct the bytes")).ok()
}
