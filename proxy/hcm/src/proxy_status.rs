//! The Proxy-Status response header (RFC 9209). Set on a worker when a response head is finished, for responses whose flags say that
//! something went wrong. Source: HttpConnectionManager.proxy_status_config, Envoy's `ProxyStatusUtils`.

use crate::names::{self, PROXY_STATUS};
use http::{HeaderValue, StatusCode};
use nuncio_core::diag::At;
use nuncio_core::registry::FactoryCx;
use nuncio_core::{ResponseFlags, ResponseHead, StreamInfo};
use nuncio_proto::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    ProxyStatusConfig, proxy_status_config::ProxyName,
};

/// Compiled `proxy_status_config`.
#[derive(Debug)]
pub struct ProxyStatus {
    name: Box<str>,
    details: bool,
    termination_details: bool,
    flags: bool,
    set_status: bool,
}

/// An error type of RFC 9209 and the status code that it recommends.
type ErrorType = (&'static str, Option<StatusCode>);

const DESTINATION_NOT_FOUND: ErrorType = ("destination_not_found", Some(StatusCode::INTERNAL_SERVER_ERROR));
const DESTINATION_UNAVAILABLE: ErrorType = ("destination_unavailable", Some(StatusCode::SERVICE_UNAVAILABLE));
const CONNECTION_REFUSED: ErrorType = ("connection_refused", Some(StatusCode::BAD_GATEWAY));
const CONNECTION_TERMINATED: ErrorType = ("connection_terminated", Some(StatusCode::BAD_GATEWAY));
const CONNECTION_TIMEOUT: ErrorType = ("connection_timeout", Some(StatusCode::GATEWAY_TIMEOUT));
const CONNECTION_LIMIT: ErrorType = ("connection_limit_reached", Some(StatusCode::SERVICE_UNAVAILABLE));
const RESPONSE_TIMEOUT: ErrorType = ("http_response_timeout", Some(StatusCode::GATEWAY_TIMEOUT));
const REQUEST_ERROR: ErrorType = ("http_request_error", None);
const PROTOCOL_ERROR: ErrorType = ("http_protocol_error", Some(StatusCode::BAD_GATEWAY));
const CONFIGURATION_ERROR: ErrorType = ("proxy_configuration_error", Some(StatusCode::INTERNAL_SERVER_ERROR));
const DNS_ERROR: ErrorType = ("dns_error", Some(StatusCode::BAD_GATEWAY));

/// What a flag stands for; the first that is set counts, as in Envoy.
const ERRORS: &[(ResponseFlags, ErrorType)] = &[
    (ResponseFlags::FAILED_LOCAL_HEALTH_CHECK, DESTINATION_UNAVAILABLE),
    (ResponseFlags::NO_HEALTHY_UPSTREAM, DESTINATION_UNAVAILABLE),
    (ResponseFlags::UPSTREAM_REQUEST_TIMEOUT, RESPONSE_TIMEOUT),
    (ResponseFlags::DURATION_TIMEOUT, CONNECTION_TIMEOUT),
    (ResponseFlags::LOCAL_RESET, CONNECTION_TIMEOUT),
    (ResponseFlags::UPSTREAM_REMOTE_RESET, CONNECTION_TERMINATED),
    (ResponseFlags::UPSTREAM_CONNECTION_FAILURE, CONNECTION_REFUSED),
    (ResponseFlags::UNAUTHORIZED_EXTERNAL_SERVICE, CONNECTION_REFUSED),
    (ResponseFlags::UPSTREAM_CONNECTION_TERMINATION, CONNECTION_TERMINATED),
    (ResponseFlags::OVERLOAD_MANAGER, CONNECTION_LIMIT),
    (ResponseFlags::DROP_OVERLOAD, CONNECTION_LIMIT),
    (ResponseFlags::FAULT_INJECTED, REQUEST_ERROR),
    (ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION, CONNECTION_TERMINATED),
    (ResponseFlags::DOWNSTREAM_REMOTE_RESET, CONNECTION_TERMINATED),
    (ResponseFlags::UPSTREAM_OVERFLOW, CONNECTION_LIMIT),
    (ResponseFlags::NO_ROUTE_FOUND, DESTINATION_NOT_FOUND),
    (ResponseFlags::RATE_LIMITED, CONNECTION_LIMIT),
    (ResponseFlags::RATE_LIMIT_SERVICE_ERROR, CONNECTION_LIMIT),
    (ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED, DESTINATION_UNAVAILABLE),
    (ResponseFlags::STREAM_IDLE_TIMEOUT, RESPONSE_TIMEOUT),
    (ResponseFlags::INVALID_ENVOY_REQUEST_HEADERS, REQUEST_ERROR),
    (ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR, REQUEST_ERROR),
    (ResponseFlags::UPSTREAM_MAX_STREAM_DURATION_REACHED, RESPONSE_TIMEOUT),
    (ResponseFlags::NO_FILTER_CONFIG_FOUND, CONFIGURATION_ERROR),
    (ResponseFlags::UPSTREAM_PROTOCOL_ERROR, PROTOCOL_ERROR),
    (ResponseFlags::NO_CLUSTER_FOUND, DESTINATION_UNAVAILABLE),
    (ResponseFlags::DNS_RESOLUTION_FAILED, DNS_ERROR),
];

impl ProxyStatus {
    /// Compiles; `server_name` is the name of a proxy that gives no other.
    pub fn compile(config: &ProxyStatusConfig, server_name: &str, at: &At<'_>, cx: &mut FactoryCx<'_>) -> Self {
        let name = match &config.proxy_name {
            Some(ProxyName::UseNodeId(_)) => cx.server.node.id.as_str(),
            Some(ProxyName::LiteralProxyName(name)) => name.as_str(),
            None => server_name,
        };
        if HeaderValue::from_str(name).is_err() {
            cx.report.error(&at.field("proxy_name"), format!("{name:?}"), "must be a valid header value");
        }
        Self {
            name: name.into(),
            details: !config.remove_details,
            termination_details: !config.remove_connection_termination_details,
            flags: !config.remove_response_flags,
            set_status: config.set_recommended_response_code,
        }
    }
    /// Tells in `head` what went wrong with its stream, if anything did.
    pub fn apply(&self, head: &mut ResponseHead, info: &StreamInfo) {
        let Some((_, (error, status))) = ERRORS.iter().find(|(flag, _)| info.flags.has(*flag)) else { return };
        let mut text = format!("{}; error={error}", self.name);
        if let Some(details) = info.details.as_deref().filter(|_| self.details) {
            let mut all = details.to_string();
            let termination = info.connection.termination_details.borrow();
            if let Some(termination) = termination.as_deref().filter(|_| self.termination_details) {
                all.push_str("; ");
                all.push_str(termination);
            }
            if self.flags {
                all.push_str("; ");
                all.push_str(&info.flags.short());
            }
            text.push_str("; details=\"");
            for c in all.chars() {
                match c {
                    '"' | '\\' | '\'' => text.extend(['\\', c]),
                    '\r' => text.push_str("\\r"),
                    '\n' => text.push_str("\\n"),
                    '\t' => text.push_str("\\t"),
                    c => text.push(c),
                }
            }
            text.push('"');
        }
        names::append_comma(&mut head.headers, &PROXY_STATUS, text.as_bytes());
        if let Some(status) = status.filter(|_| self.set_status) {
            head.status = status;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nuncio_core::test_kit;

    const PLAIN: fn() -> ProxyStatus =
        || ProxyStatus { name: "p".into(), details: true, termination_details: true, flags: true, set_status: false };

    fn told(status: &ProxyStatus, flag: Option<ResponseFlags>) -> (Option<String>, u16) {
        let mut info = test_kit::stream_info();
        info.details = Some("say \"why\"".into());
        flag.into_iter().for_each(|f| info.flags.set(f));
        let mut head = ResponseHead::new(StatusCode::SERVICE_UNAVAILABLE);
        status.apply(&mut head, &info);
        (head.headers.get_str(&PROXY_STATUS).map(str::to_string), head.status.as_u16())
    }

    #[test]
    fn errors_are_told_with_their_details() {
        assert_eq!(told(&PLAIN(), None), (None, 503));
        let text = "p; error=connection_refused; details=\"say \\\"why\\\"; UF\"";
        assert_eq!(told(&PLAIN(), Some(ResponseFlags::UPSTREAM_CONNECTION_FAILURE)), (Some(text.into()), 503));
        let short = ProxyStatus { details: false, set_status: true, ..PLAIN() };
        assert_eq!(told(&short, Some(ResponseFlags::NO_ROUTE_FOUND)), (Some("p; error=destination_not_found".into()), 500));
    }
}
