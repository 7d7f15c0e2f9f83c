//! The gRPC authorization service: `envoy.service.auth.v3.Authorization/Check`. Called on a worker.
//! Source: `envoy/service/auth/v3/external_auth.proto`, Envoy's `GrpcClientImpl`.

use super::verdict::{Pair, Status, Verdict};
use bytes::Bytes;
use nuncio_callout::{GrpcClient, Meter};
use nuncio_format::FormatContext;
use nuncio_proto::envoy::config::core::v3::HeaderValueOption;
use nuncio_proto::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use nuncio_proto::envoy::service::auth::v3::{
    CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse, check_response::HttpResponse,
};

const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";

/// Asks the service; `meter` is told what is on the wire.
pub async fn check(client: &GrpcClient, request: &CheckRequest, cx: &FormatContext<'_>, meter: Option<&Meter>) -> Verdict {
    match client.unary_metered::<CheckResponse>(CHECK, request, Some(cx), meter).await {
        Ok(response) => verdict(response),
        Err(error) => {
            log::debug!(target: "ext_authz", "authorization service of cluster '{}': {error}", client.cluster());
            Verdict::error()
        }
    }
}

#[allow(deprecated)]
fn verdict(response: CheckResponse) -> Verdict {
    let allowed = response.status.as_ref().is_none_or(|s| s.code == 0);
    let mut verdict = Verdict { metadata: response.dynamic_metadata.unwrap_or_default(), ..Verdict::default() };
    match response.http_response {
        Some(HttpResponse::ErrorResponse(error)) => {
            custom(&mut verdict, error);
            verdict.custom_error = true;
        }
        Some(HttpResponse::OkResponse(ok)) if allowed => {
            verdict.status = Status::Ok;
            allow(&mut verdict, ok);
        }
        _ if allowed => verdict.status = Status::Ok,
        Some(HttpResponse::DeniedResponse(denied)) => {
            verdict.status = Status::Denied;
            verdict.code = 403;
            custom(&mut verdict, denied);
        }
        _ => {
            verdict.status = Status::Denied;
            verdict.code = 403;
        }
    }
    verdict
}

/// Name and value of a header, whichever form the value has.
fn pair(option: HeaderValueOption) -> Option<Pair> {
    let header = option.header?;
    let value = if header.value.is_empty() { Bytes::from(header.raw_value) } else { Bytes::from(header.value) };
    Some((header.key, value))
}

/// The response that the service wants.
fn custom(verdict: &mut Verdict, response: DeniedHttpResponse) {
    if let Some(code) = response.status.and_then(|s| u16::try_from(s.code).ok()).filter(|c| *c > 0) {
        verdict.code = code;
    }
    verdict.set.extend(response.headers.into_iter().filter_map(pair));
    verdict.body = response.body.into();
}

#[allow(deprecated)]
fn allow(verdict: &mut Verdict, ok: OkHttpResponse) {
    for header in ok.headers {
        // In this message an append that is not set means false.
        let append = header.append.unwrap_or(false);
        let list = if append { &mut verdict.append } else { &mut verdict.set };
        list.extend(pair(header));
    }
    for header in ok.response_headers_to_add {
        let response = &mut verdict.response;
        let list = match (header.append, HeaderAppendAction::try_from(header.append_action)) {
            (Some(true), _) | (None, Ok(HeaderAppendAction::AppendIfExistsOrAdd)) => &mut response.add,
            (Some(false), _) | (None, Ok(HeaderAppendAction::OverwriteIfExistsOrAdd)) => &mut response.set,
            (None, Ok(HeaderAppendAction::AddIfAbsent)) => &mut response.add_if_absent,
            (None, Ok(HeaderAppendAction::OverwriteIfExists)) => &mut response.overwrite_if_exists,
            (None, Err(_)) => {
                verdict.invalid_action = true;
                continue;
            }
        };
        list.extend(pair(header));
    }
    verdict.remove = ok.headers_to_remove;
    verdict.query_set = ok.query_parameters_to_set.into_iter().map(|p| (p.key, p.value)).collect();
    verdict.query_remove = ok.query_parameters_to_remove;
    // The deprecated place wins while it is there.
    if let Some(metadata) = ok.dynamic_metadata {
        verdict.metadata = metadata;
    }
}
