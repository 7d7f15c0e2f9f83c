//! TLS facts of a connection as the access log service wants them. Workers. Source: `envoy/data/accesslog/v3/accesslog.proto`.

use nuncio_core::ConnectionInfo;
use nuncio_core::info::CertInfo;
use nuncio_proto::envoy::data::accesslog::v3::TlsProperties;
use nuncio_proto::envoy::data::accesslog::v3::tls_properties::certificate_properties::{SubjectAltName, subject_alt_name::San};
use nuncio_proto::envoy::data::accesslog::v3::tls_properties::{CertificateProperties, TlsVersion};

/// IANA's numbers of the suites that rustls negotiates, by OpenSSL's names.
fn suite(name: &str) -> Option<u32> {
    Some(match name {
        "TLS_AES_128_GCM_SHA256" => 0x1301,
        "TLS_AES_256_GCM_SHA384" => 0x1302,
        "TLS_CHACHA20_POLY1305_SHA256" => 0x1303,
        "ECDHE-ECDSA-AES128-GCM-SHA256" => 0xc02b,
        "ECDHE-ECDSA-AES256-GCM-SHA384" => 0xc02c,
        "ECDHE-RSA-AES128-GCM-SHA256" => 0xc02f,
        "ECDHE-RSA-AES256-GCM-SHA384" => 0xc030,
        "ECDHE-RSA-CHACHA20-POLY1305" => 0xcca8,
        "ECDHE-ECDSA-CHACHA20-POLY1305" => 0xcca9,
        _ => return None,
    })
}

/// Of names Envoy tells URIs only, and the issuer only of the peer's certificate.
fn certificate(cert: &CertInfo, issuer: bool) -> CertificateProperties {
    let uri = cert.uri_sans.iter().map(|s| SubjectAltName { san: Some(San::Uri(s.clone())) });
    let issuer = if issuer { cert.issuer.clone() } else { String::new() };
    CertificateProperties { subject_alt_name: uri.collect(), subject: cert.subject.clone(), issuer }
}

/// TLS of the downstream connection; none if it is plain.
pub fn properties(connection: &ConnectionInfo) -> Option<TlsProperties> {
    let tls = connection.tls.as_ref()?;
    let version = match tls.version {
        "TLSv1" => TlsVersion::TlSv1,
        "TLSv1.1" => TlsVersion::TlSv11,
        "TLSv1.2" => TlsVersion::TlSv12,
        "TLSv1.3" => TlsVersion::TlSv13,
        _ => TlsVersion::VersionUnspecified,
    };
    Some(TlsProperties {
        tls_version: version.into(),
        tls_cipher_suite: suite(tls.cipher),
        tls_sni_hostname: connection.requested_server_name.as_ref().map(|s| s.to_string()).unwrap_or_default(),
        local_certificate_properties: Some(tls.local.as_deref().map(|c| certificate(c, false)).unwrap_or_default()),
        peer_certificate_properties: Some(tls.peer_cert().map(|c| certificate(c, true)).unwrap_or_default()),
        tls_session_id: tls.session_id.clone(),
        ja3_fingerprint: String::new(),
    })
}
