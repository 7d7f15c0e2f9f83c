//! `CommonGrpcAccessLogConfig`: what the loggers have in common. Control thread.
//! Source: `envoy/extensions/access_loggers/grpc/v3/als.proto`.

use crate::batch::Limits;
use nuncio_callout::GrpcClient;
use nuncio_core::diag::{At, Report};
use nuncio_core::registry::Server;
use nuncio_proto::envoy::config::core::v3::{ApiVersion, GrpcService};
use nuncio_proto::envoy::extensions::access_loggers::grpc::v3::CommonGrpcAccessLogConfig;
use std::sync::Arc;
use std::time::Duration;

/// When batches go; Envoy's defaults are a second and 16 KiB.
pub fn limits(interval: Option<&nuncio_proto::Duration>, bytes: Option<u32>, at: &At<'_>, report: &mut Report) -> Option<Limits> {
    let interval = match interval.map(|i| Duration::try_from(*i)) {
        None => Duration::from_secs(1),
        Some(Ok(interval)) if !interval.is_zero() => interval,
        Some(_) => {
            report.error(&at.field("buffer_flush_interval"), format!("{interval:?}"), "give a positive duration");
            return None;
        }
    };
    Some(Limits { bytes: usize::try_from(bytes.unwrap_or(16_384)).unwrap_or(usize::MAX), interval })
}

/// The service of `config`.
pub fn client(service: Option<&GrpcService>, server: &Arc<Server>, at: &At<'_>, report: &mut Report) -> Option<GrpcClient> {
    match service {
        Some(service) => GrpcClient::compile(service, server, &at.field("grpc_service"), report),
        None => {
            report.error(&at.field("grpc_service"), "nothing", "name the service that takes the log");
            None
        }
    }
}

/// Checks what has no effect, or only one value.
pub fn check(config: &CommonGrpcAccessLogConfig, at: &At<'_>, report: &mut Report) {
    if ApiVersion::try_from(config.transport_api_version) != Ok(ApiVersion::V3) {
        report.error(
            &at.field("transport_api_version"),
            config.transport_api_version.to_string(),
            "use V3, the only version that there is",
        );
    }
    if config.grpc_stream_retry_policy.is_some() {
        report.warning(&at.field("grpc_stream_retry_policy"), "a policy", "a stream that broke is made anew with the next batch");
    }
}
