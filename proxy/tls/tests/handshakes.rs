//! Handshakes over loopback sockets between our two sides, with certificates made on the spot.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests

use nuncio_core::diag::{At, Report};
use nuncio_core::stats::{Scope, Store};
use nuncio_core::{ByteStr, TlsInfo};
use nuncio_proto::envoy::config::core::v3::{ConfigSource, DataSource, data_source::Specifier};
use nuncio_proto::envoy::extensions::transport_sockets::tls::v3::certificate_validation_context::TrustChainVerification;
use nuncio_proto::envoy::extensions::transport_sockets::tls::v3::common_tls_context::{
    CombinedCertificateValidationContext, ValidationContextType,
};
use nuncio_proto::envoy::extensions::transport_sockets::tls::v3::subject_alt_name_matcher::SanType;
use nuncio_proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig, Secret, SubjectAltNameMatcher, TlsCertificate,
    TlsParameters, UpstreamTlsContext, secret, tls_parameters::TlsProtocol,
};
use nuncio_proto::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};
use nuncio_tls::{ConnectOptions, DownstreamTls, SecretStore, TlsFailure, Transport, UpstreamTls};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod,
    KeyPair, KeyUsagePurpose, RevokedCertParams, SanType as RcgenSan, date_time_ymd,
};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}
fn ca(name: &str) -> Ca {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    params.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    Ca { issuer: Issuer::new(params, key), pem }
}
/// A leaf; names with `://` become URIs.
fn leaf_with(ca: &Ca, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
    let (uris, dns): (Vec<&str>, Vec<&str>) = names.iter().partition(|n| n.contains("://"));
    let mut params = CertificateParams::new(dns.iter().map(|n| n.to_string()).collect::<Vec<_>>()).unwrap();
    params.subject_alt_names.extend(uris.iter().map(|u| RcgenSan::URI((*u).try_into().unwrap())));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    (params.signed_by(&key, &ca.issuer).unwrap().pem(), key.serialize_pem())
}
fn leaf(ca: &Ca, names: &[&str]) -> (String, String) {
    leaf_with(ca, names, |_| {})
}
fn inline(text: &str) -> Option<DataSource> {
    Some(DataSource { specifier: Some(Specifier::InlineString(text.to_string())), ..Default::default() })
}
fn certificate((chain, key): &(String, String)) -> TlsCertificate {
    TlsCertificate { certificate_chain: inline(chain), private_key: inline(key), ..Default::default() }
}
fn trust(ca: &Ca) -> CertificateValidationContext {
    CertificateValidationContext { trusted_ca: inline(&ca.pem), ..Default::default() }
}
fn with_validation(mut common: CommonTlsContext, context: CertificateValidationContext) -> CommonTlsContext {
    common.validation_context_type = Some(ValidationContextType::ValidationContext(context));
    common
}
fn common(certs: &[&(String, String)]) -> CommonTlsContext {
    CommonTlsContext { tls_certificates: certs.iter().map(|c| certificate(c)).collect(), tls_params: thirteen(), ..Default::default() }
}
fn exact(text: &str) -> StringMatcher {
    StringMatcher { match_pattern: Some(MatchPattern::Exact(text.to_string())), ..Default::default() }
}
fn scope() -> Scope {
    Store::new().root().scope("test.")
}
fn server(secrets: &Arc<SecretStore>, context: DownstreamTlsContext) -> Arc<DownstreamTls> {
    let mut report = Report::new();
    DownstreamTls::compile(&context, secrets, &scope(), &At::Root, &mut report).unwrap_or_else(|| panic!("{}", report.summary()))
}
fn client(secrets: &Arc<SecretStore>, context: UpstreamTlsContext) -> Arc<UpstreamTls> {
    let mut report = Report::new();
    UpstreamTls::compile(&context, secrets, &scope(), &At::Root, &mut report).unwrap_or_else(|| panic!("{}", report.summary()))
}
fn plain_server(certs: &[&(String, String)]) -> DownstreamTlsContext {
    DownstreamTlsContext { common_tls_context: Some(common(certs)), ..Default::default() }
}
/// Clients speak TLS 1.2 unless they are told; most tests are about 1.3.
fn thirteen() -> Option<TlsParameters> {
    Some(TlsParameters { tls_maximum_protocol_version: TlsProtocol::TlSv13 as i32, ..Default::default() })
}
fn trusting(ca: &Ca) -> UpstreamTlsContext {
    UpstreamTlsContext {
        common_tls_context: Some(with_validation(common(&[]), trust(ca))),
        sni: "a.example.com".into(),
        ..Default::default()
    }
}

type Outcome = Result<Arc<TlsInfo>, TlsFailure>;
/// One handshake; both sides then exchange a byte, so that a late refusal by the server (TLS 1.3) is seen by the client.
async fn handshake(server: &DownstreamTls, client: &UpstreamTls, options: &ConnectOptions<'_>) -> (Outcome, Outcome) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serve = async {
        let (tcp, _) = listener.accept().await.unwrap();
        let (mut io, info) = server.accept(Transport::Tcp(tcp)).await?;
        io.write_all(b"!").await.map_err(|e| TlsFailure::Io(e.to_string()))?;
        io.flush().await.map_err(|e| TlsFailure::Io(e.to_string()))?;
        let mut end = [0; 1];
        let _client_closes = io.read(&mut end).await;
        Ok(info)
    };
    let connect = async {
        let tcp = TcpStream::connect(address).await.unwrap();
        let (mut io, info) = client.connect(Transport::Tcp(tcp), options).await?;
        let mut byte = [0; 1];
        io.read_exact(&mut byte).await.map_err(|e| TlsFailure::Io(e.to_string()))?;
        let _best_effort = io.shutdown().await;
        Ok(info)
    };
    tokio::join!(serve, connect)
}
fn reason(outcome: &Outcome) -> String {
    outcome.as_ref().err().map(|e| e.reason().to_string()).unwrap_or_default()
}

#[tokio::test]
async fn certificate_is_chosen_by_sni() {
    let ca = ca("root");
    let (a, wild, first) = (leaf(&ca, &["a.example.com"]), leaf(&ca, &["*.example.com"]), leaf(&ca, &["first.org"]));
    let secrets = SecretStore::new();
    let server = server(&secrets, plain_server(&[&first, &a, &wild]));
    let client = client(&secrets, trusting(&ca));
    for (sni, want) in [
        ("a.example.com", "a.example.com"),
        ("b.example.com", "*.example.com"),
        ("x.y.example.com", "first.org"),
        ("B.example.COM", "*.example.com"),
    ] {
        let (s, c) = handshake(&server, &client, &ConnectOptions { sni: Some(sni), ..Default::default() }).await;
        assert_eq!(c.unwrap().peer_cert().unwrap().dns_sans, [want], "{sni}");
        let s = s.unwrap();
        assert_eq!(s.local.as_ref().unwrap().dns_sans, [want]);
        assert_eq!(s.version, "TLSv1.3");
        assert!(s.cipher.starts_with("TLS_"));
    }
}

#[tokio::test]
async fn client_certificate_with_spiffe_uri() {
    let (root, other) = (ca("root"), ca("other"));
    let ours = leaf(&root, &["a.example.com"]);
    let secrets = SecretStore::new();
    let mut context = plain_server(&[&ours]);
    context.common_tls_context = Some(with_validation(
        common(&[&ours]),
        CertificateValidationContext {
            match_typed_subject_alt_names: vec![SubjectAltNameMatcher {
                san_type: SanType::Uri as i32,
                matcher: Some(StringMatcher {
                    match_pattern: Some(MatchPattern::Prefix("spiffe://cluster.local/".into())),
                    ..Default::default()
                }),
                oid: String::new(),
            }],
            ..trust(&root)
        },
    ));
    context.require_client_certificate = Some(true);
    let server = server(&secrets, context);
    let dial = |cert: Option<&(String, String)>| {
        let mut context = trusting(&root);
        context.common_tls_context = Some(with_validation(common(&cert.into_iter().collect::<Vec<_>>()), trust(&root)));
        client(&secrets, context)
    };
    let good = leaf(&root, &["spiffe://cluster.local/ns/a/sa/b"]);
    let (s, c) = handshake(&server, &dial(Some(&good)), &ConnectOptions::default()).await;
    let s = s.unwrap();
    assert!(s.peer_validated && c.unwrap().peer_validated);
    assert_eq!(s.peer_cert().unwrap().uri_sans, ["spiffe://cluster.local/ns/a/sa/b"]);
    assert_eq!(s.sni, Some(ByteStr::from("a.example.com")));

    for (cert, why) in [
        (Some(leaf(&root, &["spiffe://elsewhere/ns/a/sa/b"])), "subject alternative name"),
        (Some(leaf(&other, &["spiffe://cluster.local/ns/a/sa/b"])), "no chain to trusted_ca"),
        (Some(leaf_with(&root, &["spiffe://cluster.local/ns/a/sa/b"], |p| p.not_after = date_time_ymd(2020, 1, 1))), "expired"),
        (
            Some(leaf_with(&root, &["spiffe://cluster.local/ns/a/sa/b"], |p| {
                p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]
            })),
            "purpose",
        ),
        (None, "PEER_DID_NOT_RETURN_A_CERTIFICATE"),
    ] {
        let (s, c) = handshake(&server, &dial(cert.as_ref()), &ConnectOptions::default()).await;
        assert!(reason(&s).contains(why), "{} does not say {why}", reason(&s));
        assert!(reason(&s).starts_with("TLS_error:"));
        assert!(c.is_err());
    }
}

#[tokio::test]
async fn optional_mutual_accepts_anything_but_knows_what_it_verified() {
    let (root, other) = (ca("root"), ca("other"));
    let ours = leaf(&root, &["a.example.com"]);
    let secrets = SecretStore::new();
    let mut context = plain_server(&[&ours]);
    let validation =
        CertificateValidationContext { trust_chain_verification: TrustChainVerification::AcceptUntrusted as i32, ..trust(&root) };
    context.common_tls_context = Some(with_validation(common(&[&ours]), validation));
    let server = server(&secrets, context);
    for (cert, present, validated) in
        [(Some(leaf(&root, &["c.example.com"])), true, true), (Some(leaf(&other, &["c.example.com"])), true, false), (None, false, false)]
    {
        let mut context = trusting(&root);
        context.common_tls_context = Some(with_validation(common(&cert.iter().collect::<Vec<_>>()), trust(&root)));
        let (s, c) = handshake(&server, &client(&secrets, context), &ConnectOptions::default()).await;
        let s = s.unwrap();
        assert!(c.is_ok());
        assert_eq!(!s.peer_chain.is_empty(), present);
        assert_eq!(s.peer_validated, validated);
    }
}

#[tokio::test]
async fn upstream_verifies_what_it_is_told() {
    let (root, other) = (ca("root"), ca("other"));
    let secrets = SecretStore::new();
    let right = server(&secrets, plain_server(&[&leaf(&root, &["a.example.com"])]));
    // No validation context: anything goes, as Envoy.
    let careless = client(&secrets, UpstreamTlsContext { sni: "x.org".into(), ..Default::default() });
    let (_, c) = handshake(&right, &careless, &ConnectOptions::default()).await;
    assert!(!c.unwrap().peer_validated);

    let (_, c) = handshake(&right, &client(&secrets, trusting(&other)), &ConnectOptions::default()).await;
    assert!(reason(&c).starts_with("TLS_error:CERTIFICATE_VERIFY_FAILED: unable to get local issuer"), "{}", reason(&c));

    let expired = server(&secrets, plain_server(&[&leaf_with(&root, &["a.example.com"], |p| p.not_after = date_time_ymd(2020, 1, 1))]));
    let (_, c) = handshake(&expired, &client(&secrets, trusting(&root)), &ConnectOptions::default()).await;
    assert!(reason(&c).contains("expired"), "{}", reason(&c));
    let mut lenient = trusting(&root);
    lenient.common_tls_context =
        Some(with_validation(common(&[]), CertificateValidationContext { allow_expired_certificate: true, ..trust(&root) }));
    assert!(handshake(&expired, &client(&secrets, lenient), &ConnectOptions::default()).await.1.is_ok());

    // The deprecated matcher list, which Istio sends.
    #[allow(deprecated)]
    let matching = |san: &str| {
        let validation = CertificateValidationContext { match_subject_alt_names: vec![exact(san)], ..trust(&root) };
        client(&secrets, UpstreamTlsContext { common_tls_context: Some(with_validation(common(&[]), validation)), ..trusting(&root) })
    };
    assert!(handshake(&right, &matching("a.example.com"), &ConnectOptions::default()).await.1.is_ok());
    let (_, c) = handshake(&right, &matching("b.example.com"), &ConnectOptions::default()).await;
    assert!(reason(&c).contains("the certificate has a.example.com"), "{}", reason(&c));

    // Per connection.
    let strict = client(&secrets, UpstreamTlsContext { auto_sni_san_validation: true, ..trusting(&root) });
    assert!(handshake(&right, &strict, &ConnectOptions::default()).await.1.is_ok());
    assert!(handshake(&right, &strict, &ConnectOptions { sni: Some("b.org"), ..Default::default() }).await.1.is_err());
    let trusting_client = client(&secrets, trusting(&root));
    let wrong = ["b.example.com".to_string()];
    assert!(handshake(&right, &trusting_client, &ConnectOptions::default()).await.1.is_ok());
    assert!(handshake(&right, &trusting_client, &ConnectOptions { verify_sans: Some(&wrong), ..Default::default() }).await.1.is_err());
    assert!(
        handshake(
            &right,
            &trusting_client,
            &ConnectOptions { sni: Some("b.example.com"), verify_sans: Some(&wrong), ..Default::default() }
        )
        .await
        .1
        .is_err()
    );
    let sans = ["a.example.com".to_string()];
    assert!(handshake(&right, &trusting_client, &ConnectOptions { verify_sans: Some(&sans), ..Default::default() }).await.1.is_ok());
}

#[tokio::test]
async fn a_self_signed_server_trusted_as_its_own_ca() {
    let mut params = CertificateParams::new(vec!["a.example.com".to_string()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    let secrets = SecretStore::new();
    let server = server(&secrets, plain_server(&[&(pem.clone(), key.serialize_pem())]));
    let validation = CertificateValidationContext { trusted_ca: inline(&pem), ..Default::default() };
    let context = UpstreamTlsContext { common_tls_context: Some(with_validation(common(&[]), validation)), ..Default::default() };
    assert!(handshake(&server, &client(&secrets, context), &ConnectOptions::default()).await.1.is_ok());
}

#[tokio::test]
async fn alpn_agrees_or_goes_on_without() {
    let root = ca("root");
    let secrets = SecretStore::new();
    let mut context = plain_server(&[&leaf(&root, &["a.example.com"])]);
    context.common_tls_context.as_mut().unwrap().alpn_protocols = vec!["h2,http/1.1".into()];
    let server = server(&secrets, context);
    assert_eq!(server.alpn(), [b"h2".to_vec(), b"http/1.1".to_vec()]);
    let client = client(&secrets, trusting(&root));
    let list = |names: &[&str]| names.iter().map(|n| n.as_bytes().to_vec()).collect::<Vec<_>>();
    for (offered, want) in
        [(list(&["http/1.1", "h2"]), Some("h2")), (list(&["http/1.1"]), Some("http/1.1")), (list(&["istio"]), None), (list(&[]), None)]
    {
        let (s, c) = handshake(&server, &client, &ConnectOptions { alpn: Some(&offered), ..Default::default() }).await;
        assert_eq!(s.unwrap().alpn.as_deref(), want);
        assert_eq!(c.unwrap().alpn.as_deref(), want);
    }
}

fn source(name: &str) -> ConfigSource {
    ConfigSource { authorities: vec![nuncio_proto::xds::core::v3::Authority { name: name.into() }], ..Default::default() }
}
fn sds(name: &str) -> SdsSecretConfig {
    SdsSecretConfig { name: name.into(), sds_config: Some(source("ads")) }
}
fn tls_secret(name: &str, cert: &(String, String)) -> Secret {
    Secret { name: name.into(), r#type: Some(secret::Type::TlsCertificate(certificate(cert))) }
}

#[tokio::test]
async fn secrets_arrive_rotate_and_go() {
    let (old, new) = (ca("old"), ca("new"));
    let secrets = SecretStore::new();
    let mut tls = CommonTlsContext { tls_certificate_sds_secret_configs: vec![sds("kubernetes://cert")], ..Default::default() };
    tls.validation_context_type = Some(ValidationContextType::CombinedValidationContext(CombinedCertificateValidationContext {
        default_validation_context: Some(CertificateValidationContext {
            match_typed_subject_alt_names: vec![SubjectAltNameMatcher {
                san_type: SanType::Dns as i32,
                matcher: Some(exact("c.org")),
                oid: String::new(),
            }],
            ..Default::default()
        }),
        validation_context_sds_secret_config: Some(sds("kubernetes://cert-cacert")),
        ..Default::default()
    }));
    let server = server(
        &secrets,
        DownstreamTlsContext { common_tls_context: Some(tls), require_client_certificate: Some(true), ..Default::default() },
    );
    let wanted: Vec<_> = secrets.wanted().iter().map(|w| (w.name.to_string(), w.ready)).collect();
    assert_eq!(wanted, [("kubernetes://cert".to_string(), false), ("kubernetes://cert-cacert".to_string(), false)]);
    assert!(!server.ready());

    let dial = |ca: &Ca, name: &str| {
        let context = with_validation(common(&[&leaf(ca, &[name])]), trust(ca));
        client(
            &secrets,
            UpstreamTlsContext {
                common_tls_context: Some(context),
                sni: "a.org".into(),
                max_session_keys: Some(8u32),
                ..Default::default()
            },
        )
    };
    let old_client = dial(&old, "c.org");
    let (s, _) = handshake(&server, &old_client, &ConnectOptions::default()).await;
    assert_eq!(s.unwrap_err(), TlsFailure::SecretMissing("TLS_error:Secret is not supplied by SDS: `kubernetes://cert`".into()));

    let ads = source("ads");
    let validation = |ca: &Ca| Secret { name: "kubernetes://cert-cacert".into(), r#type: Some(secret::Type::ValidationContext(trust(ca))) };
    secrets.apply(&tls_secret("kubernetes://cert", &leaf(&old, &["a.org"])), Some(&ads)).unwrap();
    secrets.apply(&validation(&old), Some(&ads)).unwrap();
    assert!(server.ready());
    let (s, c) = handshake(&server, &old_client, &ConnectOptions::default()).await;
    assert!(s.unwrap().peer_validated && c.is_ok());
    // The default context's matcher holds beside the CA from SDS.
    assert!(handshake(&server, &dial(&old, "d.org"), &ConnectOptions::default()).await.0.is_err());

    // A bad secret is refused by name and changes nothing.
    let bad =
        Secret { name: "kubernetes://cert".into(), r#type: Some(secret::Type::TlsCertificate(certificate(&("x".into(), "y".into())))) };
    let report = secrets.apply(&bad, Some(&ads)).unwrap_err();
    assert!(report.summary().contains("certificate_chain"), "{}", report.summary());
    let mismatched = (leaf(&old, &["a.org"]).0, leaf(&old, &["a.org"]).1);
    assert!(secrets.apply(&tls_secret("kubernetes://cert", &mismatched), Some(&ads)).unwrap_err().summary().contains("private_key"));
    assert!(handshake(&server, &old_client, &ConnectOptions::default()).await.0.is_ok());

    // Rotation: the next handshake sees it, and a ticket from before does not get around the new CA.
    secrets.apply(&tls_secret("kubernetes://cert", &leaf(&new, &["a.org"])), Some(&ads)).unwrap();
    secrets.apply(&validation(&new), Some(&ads)).unwrap();
    let (s, c) = handshake(&server, &old_client, &ConnectOptions::default()).await;
    assert!(s.is_err() && c.is_err());
    assert!(handshake(&server, &dial(&new, "c.org"), &ConnectOptions::default()).await.0.is_ok());

    secrets.remove("kubernetes://cert", Some(&ads));
    assert!(matches!(handshake(&server, &dial(&new, "c.org"), &ConnectOptions::default()).await.0, Err(TlsFailure::SecretMissing(_))));
    drop(server);
    assert!(secrets.wanted().is_empty());
}

#[tokio::test]
async fn rotation_under_handshakes_fails_none() {
    let root = ca("root");
    let secrets = SecretStore::new();
    let tls = CommonTlsContext { tls_certificate_sds_secret_configs: vec![sds("c")], ..Default::default() };
    let server = server(&secrets, DownstreamTlsContext { common_tls_context: Some(tls), ..Default::default() });
    let ads = source("ads");
    let certs = [leaf(&root, &["a.example.com"]), leaf(&root, &["a.example.com"])];
    secrets.apply(&tls_secret("c", &certs[0]), Some(&ads)).unwrap();
    let client = client(&secrets, trusting(&root));
    for i in 0..40 {
        let options = ConnectOptions::default();
        let both = handshake(&server, &client, &options);
        let rotate = async {
            tokio::task::yield_now().await;
            secrets.apply(&tls_secret("c", &certs[i % 2]), Some(&ads)).unwrap();
        };
        let ((s, c), ()) = tokio::join!(both, rotate);
        assert!(s.is_ok() && c.is_ok(), "{} {}", reason(&s), reason(&c));
    }
}

#[tokio::test]
async fn tls12_and_revocation() {
    let root = ca("root");
    let serial = rcgen::SerialNumber::from(vec![7u8]);
    let revoked = leaf_with(&root, &["c.org"], |p| p.serial_number = Some(serial.clone()));
    let crl = CertificateRevocationListParams {
        this_update: date_time_ymd(2024, 1, 1),
        next_update: date_time_ymd(2099, 1, 1),
        crl_number: rcgen::SerialNumber::from(vec![1u8]),
        issuing_distribution_point: None,
        revoked_certs: vec![RevokedCertParams {
            serial_number: serial,
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        }],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let crl = crl.signed_by(&root.issuer).unwrap().pem().unwrap();
    let ours = leaf(&root, &["a.example.com"]);
    let mut tls = with_validation(common(&[&ours]), CertificateValidationContext { crl: inline(&crl), ..trust(&root) });
    tls.tls_params = Some(TlsParameters {
        tls_maximum_protocol_version: TlsProtocol::TlSv12 as i32,
        cipher_suites: vec!["ECDHE-ECDSA-AES256-GCM-SHA384".into()],
        ..Default::default()
    });
    let secrets = SecretStore::new();
    let server = server(
        &secrets,
        DownstreamTlsContext { common_tls_context: Some(tls), require_client_certificate: Some(true), ..Default::default() },
    );
    let dial = |cert: &(String, String)| {
        let context = with_validation(common(&[cert]), trust(&root));
        client(&secrets, UpstreamTlsContext { common_tls_context: Some(context), ..trusting(&root) })
    };
    let (s, _) = handshake(&server, &dial(&leaf(&root, &["c.org"])), &ConnectOptions::default()).await;
    let s = s.unwrap();
    assert_eq!((s.version, s.cipher), ("TLSv1.2", "ECDHE-ECDSA-AES256-GCM-SHA384"));
    let (s, _) = handshake(&server, &dial(&revoked), &ConnectOptions::default()).await;
    assert!(reason(&s).contains("revoked"), "{}", reason(&s));
}

#[tokio::test]
async fn istios_sni_and_plaintext() {
    let root = ca("root");
    let secrets = SecretStore::new();
    let tls = server(&secrets, DownstreamTlsContext { require_sni: Some(true), ..plain_server(&[&leaf(&root, &["a.example.com"])]) });
    let client = client(&secrets, UpstreamTlsContext::default());
    let sni = "outbound_.8080_.v1_.httpbin.ns.svc.cluster.local";
    let (s, _) = handshake(&tls, &client, &ConnectOptions { sni: Some(sni), ..Default::default() }).await;
    assert_eq!(s.unwrap().sni.as_deref(), Some(sni));
    let (s, _) = handshake(&tls, &client, &ConnectOptions::default()).await;
    assert!(reason(&s).contains("MISSING_SNI"));

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    tcp.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let (accepted, _) = listener.accept().await.unwrap();
    assert!(matches!(tls.accept(Transport::Tcp(accepted)).await, Err(TlsFailure::Handshake(_))));
    let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (accepted, _) = listener.accept().await.unwrap();
    drop(tcp);
    assert!(matches!(tls.accept(Transport::Tcp(accepted)).await, Err(TlsFailure::Io(_))));
}

#[test]
fn certificates_show_in_certs_and_files_are_refreshed() {
    let root = ca("root");
    let dir = std::env::temp_dir().join(format!("nuncio-tls-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let file = |name: &str| dir.join(name).to_string_lossy().into_owned();
    let write = |cert: &(String, String)| {
        std::fs::write(file("cert"), &cert.0).unwrap();
        std::fs::write(file("key"), &cert.1).unwrap();
    };
    let named = |name: &str| Some(DataSource { specifier: Some(Specifier::Filename(file(name))), ..Default::default() });
    write(&leaf(&root, &["one.org"]));
    let secrets = SecretStore::new();
    let cert = TlsCertificate { certificate_chain: named("cert"), private_key: named("key"), ..Default::default() };
    secrets.apply(&Secret { name: "files".into(), r#type: Some(secret::Type::TlsCertificate(cert)) }, None).unwrap();
    let shown =
        |secrets: &SecretStore| secrets.certificates().iter().map(|c| (c.path.clone(), c.info.dns_sans.clone())).collect::<Vec<_>>();
    assert_eq!(shown(&secrets), [(file("cert"), vec!["one.org".to_string()])]);
    assert!(secrets.refresh_files().is_empty());
    write(&leaf(&root, &["two.org"]));
    assert!(secrets.refresh_files().is_empty());
    assert_eq!(shown(&secrets), [(file("cert"), vec!["two.org".to_string()])]);
    std::fs::write(file("cert"), "broken").unwrap();
    assert_eq!(secrets.refresh_files().len(), 1);
    assert_eq!(shown(&secrets), [(file("cert"), vec!["two.org".to_string()])]);
    let slot = secrets.slots().remove(0);
    let redacted = format!("{:?}", slot.get().unwrap().redacted);
    assert!(redacted.contains("[redacted]") && redacted.contains(&file("cert")) && !redacted.contains(&file("key")));
    std::fs::remove_dir_all(&dir).unwrap();
}
