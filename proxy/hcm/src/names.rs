//! Header names that the data path uses often, as constants.

use http::{HeaderName, HeaderValue};
use nuncio_core::Headers;

macro_rules! names {
    ($($konst:ident $text:literal;)*) => { $(#[doc = $text] pub static $konst: HeaderName = HeaderName::from_static($text);)* };
}

names! {
    X_FORWARDED_FOR "x-forwarded-for";
    X_FORWARDED_PROTO "x-forwarded-proto";
    X_FORWARDED_PORT "x-forwarded-port";
    X_FORWARDED_CLIENT_CERT "x-forwarded-client-cert";
    X_REQUEST_ID "x-request-id";
    X_CLIENT_TRACE_ID "x-client-trace-id";
    X_ENVOY_INTERNAL "x-envoy-internal";
    X_ENVOY_EXTERNAL_ADDRESS "x-envoy-external-address";
    X_ENVOY_ORIGINAL_PATH "x-envoy-original-path";
    X_ENVOY_ORIGINAL_HOST "x-envoy-original-host";
    X_ENVOY_DECORATOR_OPERATION "x-envoy-decorator-operation";
    X_ENVOY_DOWNSTREAM_SERVICE_CLUSTER "x-envoy-downstream-service-cluster";
    X_ENVOY_DOWNSTREAM_SERVICE_NODE "x-envoy-downstream-service-node";
    X_ENVOY_RETRIABLE_STATUS_CODES "x-envoy-retriable-status-codes";
    X_ENVOY_RETRIABLE_HEADER_NAMES "x-envoy-retriable-header-names";
    X_ENVOY_RETRY_ON "x-envoy-retry-on";
    X_ENVOY_RETRY_GRPC_ON "x-envoy-retry-grpc-on";
    X_ENVOY_MAX_RETRIES "x-envoy-max-retries";
    X_ENVOY_UPSTREAM_CANARY "x-envoy-upstream-canary";
    X_ENVOY_UPSTREAM_ALT_STAT_NAME "x-envoy-upstream-alt-stat-name";
    X_ENVOY_UPSTREAM_RQ_TIMEOUT_MS "x-envoy-upstream-rq-timeout-ms";
    X_ENVOY_UPSTREAM_RQ_PER_TRY_TIMEOUT_MS "x-envoy-upstream-rq-per-try-timeout-ms";
    X_ENVOY_UPSTREAM_RQ_TIMEOUT_ALT_RESPONSE "x-envoy-upstream-rq-timeout-alt-response";
    X_ENVOY_EXPECTED_RQ_TIMEOUT_MS "x-envoy-expected-rq-timeout-ms";
    X_ENVOY_FORCE_TRACE "x-envoy-force-trace";
    X_ENVOY_IP_TAGS "x-envoy-ip-tags";
    X_ENVOY_ORIGINAL_URL "x-envoy-original-url";
    X_ENVOY_HEDGE_ON_PER_TRY_TIMEOUT "x-envoy-hedge-on-per-try-timeout";
    X_ENVOY_ATTEMPT_COUNT "x-envoy-attempt-count";
    X_ENVOY_IS_TIMEOUT_RETRY "x-envoy-is-timeout-retry";
    X_ENVOY_UPSTREAM_SERVICE_TIME "x-envoy-upstream-service-time";
    X_ENVOY_OVERLOADED "x-envoy-overloaded";
    X_ENVOY_IMMEDIATE_HEALTH_CHECK_FAIL "x-envoy-immediate-health-check-fail";
    GRPC_TIMEOUT "grpc-timeout";
    GRPC_STATUS "grpc-status";
    GRPC_MESSAGE "grpc-message";
    KEEP_ALIVE "keep-alive";
    PROXY_CONNECTION "proxy-connection";
    PROXY_STATUS "proxy-status";
}

/// Appends `text` to the header, joined by `, ` as in Via; adds the header if it is absent.
pub fn append_comma(headers: &mut Headers, name: &HeaderName, text: &[u8]) {
    append_joined(headers, name, b", ", text);
}

/// Appends `text` to the header with `separator`; adds the header if it is absent.
pub fn append_joined(headers: &mut Headers, name: &HeaderName, separator: &[u8], text: &[u8]) {
    let joined = match nuncio_core::message::joined(headers, name) {
        Some(old) if !old.is_empty() => [&old, separator, text].concat(),
        _ => text.to_vec(),
    };
    if let Ok(value) = HeaderValue::from_maybe_shared(bytes::Bytes::from(joined)) {
        headers.insert(name.clone(), value);
    }
}
