//! HTTP protocol options, in the typed form (`HttpProtocolOptions`) and the old fields of `Cluster`.

use super::refuse;
use crate::cluster::ClusterCx;
use crate::spec::{HttpSpec, ProtocolMode};
use nuncio_core::HeaderKey;
use nuncio_core::diag::At;
use nuncio_http::compile::timeout;
use nuncio_http::options::{H1Options, H2Options};
use nuncio_proto::Message;
use nuncio_proto::envoy::config::cluster::v3 as pb;
use nuncio_proto::envoy::config::core::v3::{Http1ProtocolOptions, Http2ProtocolOptions, HttpProtocolOptions as Common};
use nuncio_proto::envoy::config::core::v3::{UpstreamHttpProtocolOptions, http_protocol_options::HeadersWithUnderscoresAction};
use nuncio_proto::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use nuncio_proto::envoy::extensions::upstreams::http::v3::http_protocol_options::UpstreamProtocolOptions;
use nuncio_proto::envoy::extensions::upstreams::http::v3::http_protocol_options::explicit_http_config::ProtocolConfig;
use nuncio_proto::typed::unpack_as;
use std::sync::Arc;
use std::time::Duration;

/// Key of the typed options, which is also their type name.
const TYPED: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// The options of `proto`. Clusters that say the same share one object.
#[allow(deprecated)]
pub(super) fn compile(proto: &pb::Cluster, at: &At<'_>, cx: &mut ClusterCx<'_>) -> Arc<HttpSpec> {
    let said = pb::Cluster {
        typed_extension_protocol_options: proto.typed_extension_protocol_options.clone(),
        max_requests_per_connection: proto.max_requests_per_connection,
        upstream_http_protocol_options: proto.upstream_http_protocol_options.clone(),
        common_http_protocol_options: proto.common_http_protocol_options,
        http_protocol_options: proto.http_protocol_options.clone(),
        http2_protocol_options: proto.http2_protocol_options.clone(),
        protocol_selection: proto.protocol_selection,
        ..pb::Cluster::default()
    };
    let key = said.encode_to_vec();
    if let Some(known) = cx.shared.http_spec(&key) {
        return known;
    }
    let before = cx.report.items.len();
    let spec = Arc::new(build(&said, at, cx));
    if cx.report.items.len() == before {
        // What was talked about is built anew for each cluster, so that each is talked about.
        cx.shared.keep_http_spec(key, &spec);
    }
    spec
}

#[allow(deprecated)]
fn build(proto: &pb::Cluster, at: &At<'_>, cx: &mut ClusterCx<'_>) -> HttpSpec {
    let options_at = at.field("typed_extension_protocol_options");
    let mut typed = None;
    for (name, any) in &proto.typed_extension_protocol_options {
        let at = options_at.key(name);
        match name.as_str() {
            TYPED => match unpack_as::<HttpProtocolOptions>(any) {
                Ok(options) => typed = Some(options),
                Err(why) => cx.report.error(&at, why, "HttpProtocolOptions"),
            },
            "envoy.extensions.upstreams.tcp.v3.TcpProtocolOptions" => {
                cx.report.warning(&at, "set", "idle TCP connections are not pooled, so that its idle_timeout has nothing to end");
            }
            other => cx.report.unsupported(&at, other),
        }
    }
    let mut spec = match &typed {
        Some(options) => from_typed(options, &options_at.key(TYPED), cx),
        None => from_fields(proto, at, cx),
    };
    if spec.max_requests == 0 {
        spec.max_requests = proto.max_requests_per_connection.unwrap_or(0);
    }
    spec
}

fn from_typed(options: &HttpProtocolOptions, at: &At<'_>, cx: &mut ClusterCx<'_>) -> HttpSpec {
    refuse(
        cx.report,
        at,
        &[
            (options.header_validation_config.is_some(), "header_validation_config"),
            (options.outlier_detection.as_ref().is_some_and(|o| o.error_matcher.is_some()), "outlier_detection"),
            (!options.request_mirror_policies.is_empty(), "request_mirror_policies"),
            (!options.hash_policy.is_empty(), "hash_policy"),
            (options.retry_policy.is_some(), "retry_policy"),
        ],
    );
    let filters_at = at.field("http_filters");
    for (i, filter) in options.http_filters.iter().enumerate() {
        // The codec filter only says where the chain ends.
        if filter.name != "envoy.filters.http.upstream_codec" {
            cx.report.unsupported(&filters_at.index(i), format_args!("upstream HTTP filter {}", filter.name));
        }
    }
    let mut spec = common(options.common_http_protocol_options.as_ref(), &at.field("common_http_protocol_options"), cx);
    upstream(options.upstream_http_protocol_options.as_ref(), &mut spec, &at.field("upstream_http_protocol_options"), cx);
    match &options.upstream_protocol_options {
        None => cx.report.error(at, "no protocol", "one of explicit_http_config, use_downstream_protocol_config, auto_config"),
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(config)) => {
            let at = at.field("explicit_http_config");
            match &config.protocol_config {
                None => cx.report.error(&at, "no protocol", "http_protocol_options or http2_protocol_options"),
                Some(ProtocolConfig::HttpProtocolOptions(h1)) => {
                    codecs(&mut spec, ProtocolMode::H1, Some(h1), None, &at, cx);
                }
                Some(ProtocolConfig::Http2ProtocolOptions(h2)) => {
                    codecs(&mut spec, ProtocolMode::H2, None, Some(h2), &at, cx);
                }
                Some(ProtocolConfig::Http3ProtocolOptions(_)) => cx.report.unsupported(&at, "HTTP/3"),
            }
        }
        Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(config)) => {
            let at = at.field("use_downstream_protocol_config");
            if config.http3_protocol_options.is_some() {
                cx.report.warning(&at.field("http3_protocol_options"), "set", "no downstream speaks HTTP/3, so that it is never used");
            }
            let (h1, h2) = (config.http_protocol_options.as_ref(), config.http2_protocol_options.as_ref());
            codecs(&mut spec, ProtocolMode::UseDownstream, h1, h2, &at, cx);
        }
        Some(UpstreamProtocolOptions::AutoConfig(config)) => {
            let at = at.field("auto_config");
            refuse(
                cx.report,
                &at,
                &[
                    (config.http3_protocol_options.is_some(), "http3_protocol_options"),
                    (config.alternate_protocols_cache_options.is_some(), "alternate_protocols_cache_options"),
                ],
            );
            let (h1, h2) = (config.http_protocol_options.as_ref(), config.http2_protocol_options.as_ref());
            codecs(&mut spec, ProtocolMode::Auto, h1, h2, &at, cx);
        }
    }
    spec
}

/// The old fields: HTTP/2 if its options are there, HTTP/1 otherwise.
#[allow(deprecated)]
fn from_fields(proto: &pb::Cluster, at: &At<'_>, cx: &mut ClusterCx<'_>) -> HttpSpec {
    let mut spec = common(proto.common_http_protocol_options.as_ref(), &at.field("common_http_protocol_options"), cx);
    upstream(proto.upstream_http_protocol_options.as_ref(), &mut spec, &at.field("upstream_http_protocol_options"), cx);
    let mode = if proto.protocol_selection == pb::cluster::ClusterProtocolSelection::UseDownstreamProtocol as i32 {
        ProtocolMode::UseDownstream
    } else if proto.http2_protocol_options.is_some() {
        ProtocolMode::H2
    } else {
        ProtocolMode::H1
    };
    codecs(&mut spec, mode, proto.http_protocol_options.as_ref(), proto.http2_protocol_options.as_ref(), at, cx);
    spec
}

fn codecs(
    spec: &mut HttpSpec,
    mode: ProtocolMode,
    h1: Option<&Http1ProtocolOptions>,
    h2: Option<&Http2ProtocolOptions>,
    at: &At<'_>,
    cx: &mut ClusterCx<'_>,
) {
    spec.mode = mode;
    if let Some(h1) = h1 {
        spec.h1 = nuncio_http::compile::h1(h1, &at.field("http_protocol_options"), cx.report);
    }
    if let Some(h2) = h2 {
        spec.h2 = nuncio_http::compile::h2(h2, &at.field("http2_protocol_options"), cx.report);
    }
}

fn common(proto: Option<&Common>, at: &At<'_>, cx: &mut ClusterCx<'_>) -> HttpSpec {
    let none = Common::default();
    let c = proto.unwrap_or(&none);
    let hour = Some(Duration::from_secs(3600));
    let jitter = c.max_connection_duration_jitter.map_or(0.0, |p| p.value);
    if !(0.0..=100.0).contains(&jitter) {
        cx.report.error(&at.field("max_connection_duration_jitter"), jitter.to_string(), "0 to 100");
    }
    if c.headers_with_underscores_action != HeadersWithUnderscoresAction::Allow as i32 {
        cx.report.warning(&at.field("headers_with_underscores_action"), "set", "it concerns requests of clients only");
    }
    HttpSpec {
        mode: ProtocolMode::H1,
        h1: H1Options::default(),
        h2: H2Options::default(),
        max_headers_kb: c.max_response_headers_kb.unwrap_or(80),
        max_headers_count: c.max_headers_count.unwrap_or(100),
        idle_timeout: timeout(c.idle_timeout.as_ref(), hour, &at.field("idle_timeout"), cx.report),
        max_connection_duration: timeout(c.max_connection_duration.as_ref(), None, &at.field("max_connection_duration"), cx.report),
        max_connection_duration_jitter: jitter,
        max_requests: c.max_requests_per_connection.unwrap_or(0),
        max_stream_duration: timeout(c.max_stream_duration.as_ref(), None, &at.field("max_stream_duration"), cx.report),
        auto_sni: false,
        auto_sni_header: None,
        auto_san: false,
    }
}

fn upstream(proto: Option<&UpstreamHttpProtocolOptions>, spec: &mut HttpSpec, at: &At<'_>, cx: &mut ClusterCx<'_>) {
    let Some(proto) = proto else { return };
    spec.auto_sni = proto.auto_sni;
    spec.auto_san = proto.auto_san_validation;
    if !proto.override_auto_sni_header.is_empty() {
        spec.auto_sni_header = HeaderKey::parse(&proto.override_auto_sni_header);
        if spec.auto_sni_header.is_none() {
            cx.report.error(&at.field("override_auto_sni_header"), proto.override_auto_sni_header.as_str(), "a valid header name");
        }
    }
}
