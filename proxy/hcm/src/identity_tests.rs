//! Identity against the tables of Envoy's docs ("HTTP header manipulation", x-forwarded-for).

use crate::identity::{Detection, Identity, Internal, Sampling};
use crate::names::*;
use crate::request_id::RequestIdPolicy;
use crate::xfcc::{ClientCert, ClientCertPolicy};
use http::{HeaderName, HeaderValue, Method};
use nuncio_core::diag::{At, Report};
use nuncio_core::registry::Runtime;
use nuncio_core::{RequestHead, StreamInfo, test_kit};
use nuncio_matcher::{Fraction, IpSet, RuntimeFraction};
use nuncio_proto::envoy::config::core::v3::CidrRange;
use nuncio_proto::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::ForwardClientCertDetails;
use std::rc::Rc;

fn ranges(prefix: &str, len: u32) -> IpSet {
    let range = CidrRange { address_prefix: prefix.to_string(), prefix_len: Some(len) };
    IpSet::compile(&[range], &At::Root, &mut Report::new()).unwrap()
}

fn edge() -> Identity {
    Identity {
        use_remote_address: true,
        xff_num_trusted_hops: 0,
        skip_xff_append: false,
        append_x_forwarded_port: false,
        internal: None,
        add_user_agent: None,
        via: None,
        generate_request_id: true,
        preserve_external_request_id: false,
        request_id: RequestIdPolicy { pack_trace_reason: true, use_for_sampling: true },
        tracing: None,
        client_cert: ClientCertPolicy {
            matched: None,
            fixed: ClientCert {
                mode: ForwardClientCertDetails::Sanitize,
                subject: false,
                cert: false,
                chain: false,
                dns: false,
                uri: false,
                issuer: false,
                json: false,
            },
        },
        scheme_to_overwrite: None,
        scheme_match_upstream: false,
        https_ports: Vec::new(),
        http_ports: Vec::new(),
        detection: Vec::new(),
    }
}

/// Applies `identity` to a request from 192.0.2.9 with `headers`.
fn apply(identity: &Identity, headers: &[(&'static str, &'static str)]) -> (RequestHead, StreamInfo) {
    let mut head = RequestHead::new(Method::GET, "host.example", "/");
    for (name, value) in headers {
        head.headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    let mut connection = test_kit::connection();
    connection.remote = nuncio_core::Address::Ip("192.0.2.9:1234".parse().unwrap());
    connection.direct_remote = connection.remote.clone();
    let mut info = StreamInfo::new(Rc::new(connection), None);
    identity.apply(&mut head, &mut info).unwrap();
    identity.sample(&mut head, &mut info, &Runtime::default(), None);
    (head, info)
}

#[test]
fn an_edge_trusts_the_connection_only() {
    let (head, info) = apply(
        &edge(),
        &[
            ("x-forwarded-for", "10.9.9.9"),
            ("x-forwarded-proto", "https"),
            ("x-envoy-internal", "true"),
            ("x-envoy-retry-on", "5xx"),
            ("x-request-id", "mine"),
        ],
    );
    assert_eq!(head.headers.get_str(&X_FORWARDED_FOR), Some("10.9.9.9,192.0.2.9"));
    assert_eq!(head.headers.get_str(&X_FORWARDED_PROTO), Some("http"));
    assert_eq!(head.headers.get_str(&X_ENVOY_EXTERNAL_ADDRESS), Some("192.0.2.9"));
    assert!(!head.headers.contains(&X_ENVOY_INTERNAL) && !head.headers.contains(&X_ENVOY_RETRY_ON));
    assert_ne!(head.headers.get_str(&X_REQUEST_ID), Some("mine"));
    assert_eq!(info.remote.without_port(), "192.0.2.9");
}

#[test]
fn trusted_hops_are_counted_from_the_end() {
    let identity = Identity { xff_num_trusted_hops: 1, ..edge() };
    let (head, info) = apply(&identity, &[("x-forwarded-for", "198.51.100.1, 203.0.113.7"), ("x-forwarded-proto", "https")]);
    assert_eq!(info.remote.without_port(), "203.0.113.7");
    assert_eq!(head.headers.get_str(&X_FORWARDED_PROTO), Some("https"), "a trusted hop's word counts");
    assert_eq!(head.scheme, "https");
}

#[test]
fn internal_addresses_keep_internal_headers() {
    let identity = Identity { internal: Some(Internal { unix_sockets: false, ranges: ranges("192.0.2.0", 24) }), ..edge() };
    let (head, _) = apply(&identity, &[("x-envoy-retry-on", "5xx")]);
    assert_eq!(head.headers.get_str(&X_ENVOY_INTERNAL), Some("true"));
    assert!(head.headers.contains(&X_ENVOY_RETRY_ON) && !head.headers.contains(&X_ENVOY_EXTERNAL_ADDRESS));
}

#[test]
fn an_inner_proxy_takes_the_last_forwarded_address() {
    let identity = Identity { use_remote_address: false, ..edge() };
    let (head, info) = apply(&identity, &[("x-forwarded-for", "198.51.100.1, 203.0.113.7"), ("x-request-id", "kept")]);
    assert_eq!(info.remote.without_port(), "203.0.113.7");
    assert_eq!(head.headers.get_str(&X_FORWARDED_FOR), Some("198.51.100.1, 203.0.113.7"), "nothing is appended");
    assert_eq!(head.headers.get_str(&X_REQUEST_ID), Some("kept"));
}

#[test]
fn detection_extensions_replace_the_default() {
    let custom = Detection::CustomHeader { name: HeaderName::from_static("x-real"), trusted: true, reject: Some(403) };
    let identity = Identity { use_remote_address: false, detection: vec![custom], ..edge() };
    let (_, info) = apply(&identity, &[("x-real", "203.0.113.5"), ("x-forwarded-for", "198.51.100.1")]);
    assert_eq!(info.remote.without_port(), "203.0.113.5");
    let mut head = RequestHead::new(Method::GET, "a", "/");
    let refused = identity.apply(&mut head, &mut test_kit::stream_info());
    assert_eq!(refused, Err(403));
}

#[test]
fn trusted_ranges_are_skipped() {
    let xff = Detection::Xff { trusted_hops: 0, trusted: Some(ranges("192.0.2.0", 24)), skip_append: true };
    let identity = Identity { use_remote_address: false, detection: vec![xff], ..edge() };
    let (_, info) = apply(&identity, &[("x-forwarded-for", "198.51.100.1, 203.0.113.7, 192.0.2.1")]);
    assert_eq!(info.remote.without_port(), "203.0.113.7");
}

#[test]
fn sampling_is_packed_into_the_request_id() {
    let always = || RuntimeFraction::fixed(Fraction::ALWAYS);
    let tracing = Some(Sampling { client: always(), random: always(), overall: always() });
    let (head, info) = apply(&Identity { tracing, ..edge() }, &[]);
    assert!(info.sampled);
    assert_eq!(head.headers.get_str(&X_REQUEST_ID).and_then(|id| id.get(14..15)), Some("9"));
}

#[test]
fn hostile_forwarded_for_is_no_address() {
    for text in ["", ",", "not-an-ip", "1.2.3.4.5", ", ,", "10.0.0.1;evil"] {
        let mut head = RequestHead::new(Method::GET, "a", "/");
        head.headers.append(X_FORWARDED_FOR.clone(), HeaderValue::from_static(text));
        let mut info = test_kit::stream_info();
        let before = info.remote.clone();
        Identity { use_remote_address: false, ..edge() }.apply(&mut head, &mut info).unwrap();
        assert_eq!(info.remote, before, "{text:?}");
    }
}
