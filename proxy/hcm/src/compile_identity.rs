//! Compiles the identity part of HttpConnectionManager: addresses, x-forwarded-*, request id, client certificates, tracing
//! decisions. Control thread.

use crate::identity::{Detection, Identity, Internal, Sampling};
use crate::request_id::RequestIdPolicy;
use crate::xfcc::{ClientCert, ClientCertPolicy};
use http::{HeaderName, HeaderValue};
use nuncio_core::diag::{At, Report};
use nuncio_core::registry::FactoryCx;
use nuncio_matcher::{Fraction, IpSet, MatchTree, RuntimeFraction};
use nuncio_proto::envoy::config::core::v3::scheme_header_transformation::Transformation;
use nuncio_proto::envoy::config::core::v3::{CidrRange, Node};
use nuncio_proto::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use nuncio_proto::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    ForwardClientCertConfig, ForwardClientCertDetails, ForwardClientCertFormat, SetCurrentClientCertDetails, Tracing,
};
use nuncio_proto::envoy::extensions::http::original_ip_detection::custom_header::v3::CustomHeaderConfig;
use nuncio_proto::envoy::extensions::http::original_ip_detection::xff::v3::XffConfig;
use nuncio_proto::envoy::extensions::request_id::uuid::v3::UuidRequestIdConfig;
use nuncio_proto::envoy::r#type::v3::Percent;
use nuncio_proto::typed;

/// Compiles; None if something was refused.
pub fn identity(proto: &HttpConnectionManager, at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Identity> {
    let errors = cx.report.errors();
    let internal = proto.internal_address_config.as_ref().and_then(|config| {
        let ranges = if config.cidr_ranges.is_empty() { private_ranges() } else { config.cidr_ranges.clone() };
        let ranges = IpSet::compile(&ranges, &at.field("internal_address_config").field("cidr_ranges"), cx.report)?;
        Some(Internal { unix_sockets: config.unix_sockets, ranges })
    });
    let via = header_value(&proto.via, &at.field("via"), cx);
    let add_user_agent = if proto.add_user_agent == Some(true) { named(&cx.server.node) } else { None };
    let request_id = request_id(proto, at, cx);
    let tracing = proto.tracing.as_ref().map(sampling);
    let detection = detection(proto, at, cx);
    let scheme = proto.scheme_header_transformation.as_ref();
    let scheme_to_overwrite = scheme.and_then(|s| s.transformation.as_ref()).map(|Transformation::SchemeToOverwrite(s)| s.as_str().into());
    if let Some(Transformation::SchemeToOverwrite(scheme)) = scheme.and_then(|s| s.transformation.as_ref())
        && scheme != "http"
        && scheme != "https"
    {
        cx.report.error(&at.field("scheme_header_transformation").field("scheme_to_overwrite"), format!("{scheme:?}"), "http or https");
    }
    let client_cert = client_cert(proto, at, cx);
    let ports = proto.forward_proto_config.as_ref();
    if cx.report.errors() > errors {
        return None;
    }
    Some(Identity {
        use_remote_address: proto.use_remote_address.unwrap_or(false),
        xff_num_trusted_hops: proto.xff_num_trusted_hops,
        skip_xff_append: proto.skip_xff_append,
        append_x_forwarded_port: proto.append_x_forwarded_port,
        internal,
        add_user_agent,
        via,
        generate_request_id: proto.generate_request_id.unwrap_or(true),
        preserve_external_request_id: proto.preserve_external_request_id,
        request_id,
        tracing,
        client_cert,
        scheme_to_overwrite,
        scheme_match_upstream: scheme.is_some_and(|s| s.match_upstream),
        https_ports: ports.map(|p| p.https_destination_ports.clone()).unwrap_or_default(),
        http_ports: ports.map(|p| p.http_destination_ports.clone()).unwrap_or_default(),
        detection,
    })
}

fn header_value(text: &str, at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<HeaderValue> {
    if text.is_empty() {
        return None;
    }
    match HeaderValue::from_str(text) {
        Ok(value) => Some(value),
        Err(_) => {
            cx.report.error(at, format!("{text:?}"), "must be a valid header value");
            None
        }
    }
}

fn request_id(proto: &HttpConnectionManager, at: &At<'_>, cx: &mut FactoryCx<'_>) -> RequestIdPolicy {
    let mut policy = RequestIdPolicy { pack_trace_reason: true, use_for_sampling: true };
    if let Some(any) = proto.request_id_extension.as_ref().and_then(|e| e.typed_config.as_ref()) {
        match typed::unpack_as::<UuidRequestIdConfig>(any) {
            Ok(config) => {
                policy.pack_trace_reason = config.pack_trace_reason.unwrap_or(true);
                policy.use_for_sampling = config.use_request_id_for_trace_sampling.unwrap_or(true);
            }
            Err(why) => {
                cx.report.error(&at.field("request_id_extension").field("typed_config"), why, "only envoy.request_id.uuid is supported");
            }
        }
    }
    policy
}

fn sampling(tracing: &Tracing) -> Sampling {
    // Percentages have two decimals in Envoy.
    let percent = |p: Option<Percent>| {
        let hundredths = p.map_or(10_000.0, |p| (p.value.clamp(0.0, 100.0) * 100.0).round());
        RuntimeFraction::fixed(Fraction::ten_thousandths(hundredths as u32))
    };
    Sampling {
        client: percent(tracing.client_sampling),
        random: percent(tracing.random_sampling),
        overall: percent(tracing.overall_sampling),
    }
}

fn detection(proto: &HttpConnectionManager, at: &At<'_>, cx: &mut FactoryCx<'_>) -> Vec<Detection> {
    let list = at.field("original_ip_detection_extensions");
    if !proto.original_ip_detection_extensions.is_empty() && proto.use_remote_address == Some(true) {
        cx.report.error(&list, "set beside use_remote_address: true", "use one or the other");
    }
    if !proto.original_ip_detection_extensions.is_empty() && proto.xff_num_trusted_hops > 0 {
        cx.report.error(&list, "set beside xff_num_trusted_hops", "use one or the other");
    }
    let mut all = Vec::new();
    for (i, extension) in proto.original_ip_detection_extensions.iter().enumerate() {
        let here = list.index(i);
        let any = extension.typed_config.clone().unwrap_or_default();
        let name = typed::unpack(&any).map(|t| t.name).unwrap_or_default();
        let compiled = match name.as_str() {
            "envoy.extensions.http.original_ip_detection.xff.v3.XffConfig" => xff(&any, &here, cx),
            "envoy.extensions.http.original_ip_detection.custom_header.v3.CustomHeaderConfig" => custom_header(&any, &here, cx),
            _ => {
                cx.report.unsupported(&here, format!("original IP detection {:?} of type {name}", extension.name));
                None
            }
        };
        all.extend(compiled);
    }
    all
}

fn xff(any: &nuncio_proto::Any, at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Detection> {
    match typed::unpack_as::<XffConfig>(any) {
        Ok(config) => {
            let trusted = match &config.xff_trusted_cidrs {
                Some(cidrs) => Some(IpSet::compile(&cidrs.cidrs, &at.field("xff_trusted_cidrs").field("cidrs"), cx.report)?),
                None => None,
            };
            Some(Detection::Xff { trusted_hops: config.xff_num_trusted_hops, trusted, skip_append: config.skip_xff_append.unwrap_or(true) })
        }
        Err(why) => {
            cx.report.error(at, why, "send a valid XffConfig");
            None
        }
    }
}

fn custom_header(any: &nuncio_proto::Any, at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Detection> {
    let config = match typed::unpack_as::<CustomHeaderConfig>(any) {
        Ok(config) => config,
        Err(why) => {
            cx.report.error(at, why, "send a valid CustomHeaderConfig");
            return None;
        }
    };
    let Ok(name) = HeaderName::from_bytes(config.header_name.to_ascii_lowercase().as_bytes()) else {
        cx.report.error(&at.field("header_name"), format!("{:?}", config.header_name), "must be a valid header name");
        return None;
    };
    // Envoy answers 403 where the given status is not an error.
    let reject = config.reject_with_status.map(|s| u16::try_from(s.code).ok().filter(|c| (400..512).contains(c)).unwrap_or(403));
    Some(Detection::CustomHeader { name, trusted: config.allow_extension_to_set_address_as_trusted, reject })
}

fn client_cert(proto: &HttpConnectionManager, at: &At<'_>, cx: &mut FactoryCx<'_>) -> ClientCertPolicy {
    let mode_at = at.field("forward_client_cert_details");
    let fixed = cert_details(proto.forward_client_cert_details, proto.set_current_client_cert_details.as_ref(), &mode_at, cx.report);
    let matched = proto.forward_client_cert_matcher.as_ref().and_then(|matcher| {
        MatchTree::compile(matcher, &at.field("forward_client_cert_matcher"), cx.report, &mut |action, at, report| {
            let at = at.field("typed_config");
            match typed::unpack_as::<ForwardClientCertConfig>(&action.typed_config.clone().unwrap_or_default()) {
                Ok(config) => Some(cert_details(
                    config.forward_client_cert_details,
                    config.set_current_client_cert_details.as_ref(),
                    &at.field("forward_client_cert_details"),
                    report,
                )),
                Err(why) => {
                    report.error(&at, why, "give a ForwardClientCertConfig");
                    None
                }
            }
        })
    });
    ClientCertPolicy { fixed, matched }
}

fn cert_details(mode: i32, details: Option<&SetCurrentClientCertDetails>, at: &At<'_>, report: &mut Report) -> ClientCert {
    let mode = ForwardClientCertDetails::try_from(mode).unwrap_or_else(|_| {
        report.error(at, format!("value {mode}"), "a mode of ForwardClientCertDetails");
        ForwardClientCertDetails::Sanitize
    });
    let details = details.copied().unwrap_or_default();
    ClientCert {
        mode,
        subject: details.subject.unwrap_or(false),
        cert: details.cert,
        chain: details.chain,
        dns: details.dns,
        uri: details.uri,
        issuer: details.issuer,
        json: details.format() == ForwardClientCertFormat::Json,
    }
}

/// The node's cluster and id, as `add_user_agent` tells them.
fn named(node: &Node) -> Option<(HeaderValue, HeaderValue)> {
    Some((HeaderValue::from_str(&node.cluster).ok()?, HeaderValue::from_str(&node.id).ok()?))
}

/// What counts as internal without `cidr_ranges`: RFC 1918, RFC 4193 and loopback (`Network::Utility::isInternalAddress`).
fn private_ranges() -> Vec<CidrRange> {
    [("10.0.0.0", 8), ("172.16.0.0", 12), ("192.168.0.0", 16), ("127.0.0.1", 32), ("fd00::", 8), ("::1", 128)]
        .map(|(prefix, length)| CidrRange { address_prefix: prefix.to_string(), prefix_len: Some(length) })
        .to_vec()
}
