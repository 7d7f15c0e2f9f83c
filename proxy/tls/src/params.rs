//! `TlsParameters`: versions, cipher suites and curves by their OpenSSL names.

use crate::stats::{CIPHERS, CURVES};
use nuncio_core::diag::{At, Report};
use nuncio_proto::envoy::extensions::transport_sockets::tls::v3::TlsParameters;
use nuncio_proto::envoy::extensions::transport_sockets::tls::v3::tls_parameters::{CompliancePolicy, TlsProtocol};
use rustls::SupportedProtocolVersion;
use rustls::crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs};
use rustls::version::{TLS12, TLS13};
use std::sync::{Arc, LazyLock};

/// The provider that every configuration names: nothing depends on a process-wide default.
pub(crate) static BASE: LazyLock<CryptoProvider> = LazyLock::new(aws_lc_rs::default_provider);

/// Names that BoringSSL knows and rustls leaves out on purpose (no forward secrecy, CBC, SHA-1).
const LEFT_OUT: &[&str] = &[
    "ECDHE-ECDSA-AES128-SHA",
    "ECDHE-RSA-AES128-SHA",
    "ECDHE-ECDSA-AES256-SHA",
    "ECDHE-RSA-AES256-SHA",
    "ECDHE-ECDSA-AES128-SHA256",
    "ECDHE-RSA-AES128-SHA256",
    "ECDHE-ECDSA-AES256-SHA384",
    "ECDHE-RSA-AES256-SHA384",
    "ECDHE-PSK-AES128-CBC-SHA",
    "ECDHE-PSK-AES256-CBC-SHA",
    "ECDHE-PSK-CHACHA20-POLY1305",
    "AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-SHA256",
    "AES256-SHA256",
    "AES128-SHA",
    "AES256-SHA",
    "PSK-AES128-CBC-SHA",
    "PSK-AES256-CBC-SHA",
    "DES-CBC3-SHA",
];

/// Compiled parameters.
#[derive(Debug)]
pub(crate) struct Params {
    pub provider: Arc<CryptoProvider>,
    pub versions: Vec<&'static SupportedProtocolVersion>,
}

impl Params {
    /// Compiles the parameters of a server or a client; None means refused.
    pub(crate) fn compile(proto: Option<&TlsParameters>, server: bool, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let empty = TlsParameters::default();
        let proto = proto.unwrap_or(&empty);
        let before = report.errors();
        if !proto.signature_algorithms.is_empty() {
            report.unsupported(&at.field("signature_algorithms"), "a list of signature algorithms");
        }
        let mut fips = false;
        for (i, policy) in proto.compliance_policies.iter().enumerate() {
            match CompliancePolicy::try_from(*policy) {
                Ok(CompliancePolicy::Fips202205) => fips = true,
                other => report.unsupported(
                    &at.field("compliance_policies").index(i),
                    format_args!("compliance policy {}", other.map_or("?", |p| p.as_str_name())),
                ),
            }
        }
        let versions = versions(proto, server, at, report);
        let mut suites = suites(&proto.cipher_suites, &at.field("cipher_suites"), report);
        let mut groups = groups(&proto.ecdh_curves, &at.field("ecdh_curves"), report);
        if fips {
            // BoringSSL's ssl_compliance_policy_fips_202205 sets suites and curves itself.
            suites = CIPHERS.iter().map(|(_, name)| *name).filter(|name| name.contains("GCM")).collect();
            groups = vec![aws_lc_rs::kx_group::SECP256R1, aws_lc_rs::kx_group::SECP384R1];
        }
        if report.errors() > before {
            return None;
        }
        let mut provider = BASE.clone();
        // TLS 1.3 suites first and always (`cipher_suites` is about TLS 1.2), then the configured order.
        let all = std::mem::take(&mut provider.cipher_suites);
        let name = |suite: &rustls::SupportedCipherSuite| CIPHERS.iter().find(|(s, _)| *s == suite.suite()).map_or("", |(_, n)| *n);
        // AES-128 first: our order counts, and it costs the least.
        let tls13 = CIPHERS.iter().filter_map(|(suite, _)| all.iter().find(|s| s.suite() == *suite && s.tls13().is_some()));
        provider.cipher_suites = tls13.filter(|s| !fips || name(s).contains("GCM")).copied().collect();
        for wanted in suites {
            provider.cipher_suites.extend(all.iter().filter(|s| s.tls13().is_none() && name(s) == wanted).copied());
        }
        provider.kx_groups = groups;
        Some(Self { provider: Arc::new(provider), versions: versions? })
    }
}

fn versions(proto: &TlsParameters, server: bool, at: &At<'_>, report: &mut Report) -> Option<Vec<&'static SupportedProtocolVersion>> {
    let minimum = TlsProtocol::try_from(proto.tls_minimum_protocol_version).unwrap_or_default();
    let maximum = match TlsProtocol::try_from(proto.tls_maximum_protocol_version).unwrap_or_default() {
        // common.proto: "By default, it's TLSv1_2 for clients and TLSv1_3 for servers."
        TlsProtocol::TlsAuto if server || minimum == TlsProtocol::TlSv13 => TlsProtocol::TlSv13,
        TlsProtocol::TlsAuto => TlsProtocol::TlSv12,
        set => set,
    };
    if matches!(minimum, TlsProtocol::TlSv10 | TlsProtocol::TlSv11) {
        let found = format!("{} is older than what Nuncio speaks", minimum.as_str_name());
        report.warning(&at.field("tls_minimum_protocol_version"), found, "TLS 1.2 is the oldest version that is offered");
    }
    if matches!(maximum, TlsProtocol::TlSv10 | TlsProtocol::TlSv11) {
        report.error(
            &at.field("tls_maximum_protocol_version"),
            maximum.as_str_name(),
            "allow TLSv1_2 or TLSv1_3; Nuncio speaks nothing older",
        );
        return None;
    }
    let mut versions = Vec::new();
    if maximum != TlsProtocol::TlSv12 {
        versions.push(&TLS13);
    }
    if minimum != TlsProtocol::TlSv13 {
        versions.push(&TLS12);
    }
    if versions.is_empty() {
        report.error(&at.field("tls_minimum_protocol_version"), "the minimum is above the maximum", "let them overlap");
        return None;
    }
    Some(versions)
}

/// OpenSSL's names of the wanted TLS 1.2 suites in order; `[A|B]` groups are taken as `A`, `B`.
fn suites(names: &[String], at: &At<'_>, report: &mut Report) -> Vec<&'static str> {
    let known = |wanted: &str| CIPHERS.iter().map(|(_, n)| *n).find(|n| *n == wanted && n.contains('-'));
    if names.is_empty() {
        return CIPHERS.iter().map(|(_, n)| *n).filter(|n| n.contains('-')).collect();
    }
    let (mut all, mut left_out) = (Vec::new(), Vec::new());
    for (i, text) in names.iter().enumerate() {
        for name in text.trim_start_matches('[').trim_end_matches(']').split(['|', ':']) {
            if let Some(known) = known(name) {
                all.push(known);
            } else if LEFT_OUT.contains(&name) {
                left_out.push(name);
            } else if CIPHERS.iter().any(|(_, n)| *n == name) {
                report.warning(
                    &at.index(i),
                    format!("`{name}` is a TLS 1.3 suite, which this list does not govern"),
                    "remove it; it is always offered",
                );
            } else {
                report.error(&at.index(i), format!("unknown cipher suite `{name}`"), "give names as OpenSSL writes them");
            }
        }
    }
    if !left_out.is_empty() {
        // One finding for the list: Istio sends some of these with every mutual TLS chain.
        let found = format!("cipher suites {} are not offered (no forward secrecy, CBC or SHA-1)", left_out.join(", "));
        report.warning(at, found, "the others of the list are");
    }
    if all.is_empty() && !report.has_errors() {
        // As BoringSSL: a list of which nothing can be used is an error, even though TLS 1.3 would remain.
        let usable: Vec<_> = CIPHERS.iter().map(|(_, n)| *n).filter(|n| n.contains('-')).collect();
        report.error(at, "no cipher suite of the list can be used", format!("add one of {}", usable.join(", ")));
    }
    all
}

fn groups(names: &[String], at: &At<'_>, report: &mut Report) -> Vec<&'static dyn SupportedKxGroup> {
    if names.is_empty() {
        // Envoy's default (`DEFAULT_CURVES`).
        return vec![aws_lc_rs::kx_group::X25519, aws_lc_rs::kx_group::SECP256R1];
    }
    let mut all: Vec<&'static dyn SupportedKxGroup> = Vec::new();
    for (i, name) in names.iter().enumerate() {
        match name.as_str() {
            "X25519" => all.push(aws_lc_rs::kx_group::X25519),
            "P-256" | "prime256v1" => all.push(aws_lc_rs::kx_group::SECP256R1),
            "P-384" | "secp384r1" => all.push(aws_lc_rs::kx_group::SECP384R1),
            "X25519MLKEM768" => all.push(aws_lc_rs::kx_group::X25519MLKEM768),
            "P-521" | "secp521r1" | "P-224" | "X25519Kyber768Draft00" | "MLKEM1024" => {
                report.warning(&at.index(i), format!("curve `{name}` is not offered"), "the others of the list are");
            }
            _ => {
                let known: Vec<_> = CURVES.iter().map(|(_, n)| *n).collect();
                report.error(&at.index(i), format!("unknown curve `{name}`"), format!("give one of {}", known.join(", ")));
            }
        }
    }
    if all.is_empty() && !report.has_errors() {
        report.error(at, "no curve of the list can be used", "add X25519, P-256 or P-384");
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compile(proto: &TlsParameters) -> (Option<Params>, Report) {
        let mut report = Report::new();
        (Params::compile(Some(proto), true, &At::Root, &mut report), report)
    }
    fn tls12(params: &Params) -> Vec<String> {
        params.provider.cipher_suites.iter().filter(|s| s.tls13().is_none()).map(|s| format!("{:?}", s.suite())).collect()
    }

    #[test]
    fn istios_list_keeps_its_order_and_warns_of_what_is_left_out() {
        let names = ["ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-RSA-AES256-GCM-SHA384", "ECDHE-ECDSA-AES128-GCM-SHA256", "AES256-GCM-SHA384"];
        let (params, report) = compile(&TlsParameters { cipher_suites: names.map(String::from).to_vec(), ..Default::default() });
        let params = params.unwrap();
        assert_eq!(
            tls12(&params),
            ["TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"]
        );
        assert_eq!(report.items.len(), 1);
        assert!(report.items[0].to_string().contains("AES256-GCM-SHA384"));
        assert_eq!(params.provider.cipher_suites.iter().filter(|s| s.tls13().is_some()).count(), 3);
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        for (proto, name) in [
            (TlsParameters { cipher_suites: vec!["NOPE".into()], ..Default::default() }, "NOPE"),
            (TlsParameters { cipher_suites: vec!["AES128-SHA".into()], ..Default::default() }, "no cipher suite"),
            (TlsParameters { ecdh_curves: vec!["P-999".into()], ..Default::default() }, "P-999"),
            (TlsParameters { tls_maximum_protocol_version: TlsProtocol::TlSv11 as i32, ..Default::default() }, "TLSv1_1"),
            (
                TlsParameters {
                    tls_minimum_protocol_version: TlsProtocol::TlSv13 as i32,
                    tls_maximum_protocol_version: TlsProtocol::TlSv12 as i32,
                    ..Default::default()
                },
                "minimum",
            ),
        ] {
            let (params, report) = compile(&proto);
            assert!(params.is_none());
            assert!(report.summary().contains(name), "{}", report.summary());
        }
    }

    #[test]
    fn clients_speak_tls12_unless_told_otherwise() {
        let versions =
            |proto: &TlsParameters, server| Params::compile(Some(proto), server, &At::Root, &mut Report::new()).unwrap().versions;
        assert_eq!(versions(&TlsParameters::default(), true), [&TLS13, &TLS12]);
        assert_eq!(versions(&TlsParameters::default(), false), [&TLS12]);
        let thirteen = |n: TlsProtocol| TlsParameters { tls_minimum_protocol_version: n as i32, ..Default::default() };
        assert_eq!(versions(&thirteen(TlsProtocol::TlSv13), false), [&TLS13]);
    }

    #[test]
    fn versions_and_groups() {
        let (params, report) = compile(&TlsParameters {
            tls_minimum_protocol_version: TlsProtocol::TlSv10 as i32,
            tls_maximum_protocol_version: TlsProtocol::TlSv12 as i32,
            ecdh_curves: vec!["P-256".into(), "X25519".into()],
            ..Default::default()
        });
        let params = params.unwrap();
        assert_eq!(params.versions, [&TLS12]);
        assert!(!report.has_errors() && report.items.len() == 1);
        assert_eq!(
            params.provider.kx_groups.iter().map(|g| g.name()).collect::<Vec<_>>(),
            [rustls::NamedGroup::secp256r1, rustls::NamedGroup::X25519]
        );
    }
}
