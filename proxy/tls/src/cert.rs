//! What a certificate says, as formatters, x-forwarded-client-cert and `/certs` need it. Parsed on first use by whoever asks.

use aws_lc_rs::digest;
use nuncio_core::info::{CertDigests, CertInfo};
use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, SystemTime};
use x509_parser::der_parser::oid::Oid;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::time::ASN1Time;
use x509_parser::x509::X509Name;

/// Reads a DER chain, leaf first; what cannot be read is empty. `TlsInfo::parse_peer` points here.
pub fn parse_chain(chain: &[Vec<u8>]) -> CertInfo {
    let Some(leaf) = chain.first() else { return CertInfo::default() };
    let mut info = parse(leaf);
    info.url_pem_chain = chain.iter().map(|der| url_pem(der)).collect();
    info
}

/// Reads one DER certificate; what cannot be read is empty. `url_pem_chain` is left empty.
pub fn parse(der: &[u8]) -> CertInfo {
    let mut info = CertInfo {
        sha256: hex(digest::digest(&digest::SHA256, der).as_ref()),
        sha1: hex(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, der).as_ref()),
        url_pem: url_pem(der),
        ..CertInfo::default()
    };
    let Ok((_, cert)) = X509Certificate::from_der(der) else { return info };
    info.subject = rfc2253(cert.subject());
    info.issuer = rfc2253(cert.issuer());
    info.serial = serial(cert.raw_serial());
    info.not_before = system_time(&cert.validity().not_before);
    info.not_after = system_time(&cert.validity().not_after);
    for name in names(&cert) {
        match name {
            San::Dns(s) => info.dns_sans.push(s),
            San::Uri(s) => info.uri_sans.push(s),
            San::Ip(s) => info.ip_sans.push(s),
            San::Email(s) => info.email_sans.push(s),
            San::Other(oid, s) => {
                info.other_san_oids.push(oid);
                info.other_sans.push(s);
            }
        }
    }
    info
}

/// What tells a DER certificate from others; the serial number of what cannot be read is empty.
pub fn digests(der: &[u8]) -> CertDigests {
    CertDigests {
        sha256: hex(digest::digest(&digest::SHA256, der).as_ref()),
        sha1: hex(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, der).as_ref()),
        serial: X509Certificate::from_der(der).map(|(_, cert)| serial(cert.raw_serial())).unwrap_or_default(),
    }
}

/// Whether `issuer` may have signed `cert`, by its name and by the key identifiers if both have one. Not a verification.
pub(crate) fn issued(issuer: &[u8], cert: &[u8]) -> bool {
    let (Ok((_, issuer)), Ok((_, cert))) = (X509Certificate::from_der(issuer), X509Certificate::from_der(cert)) else { return false };
    if issuer.subject().as_raw() != cert.issuer().as_raw() {
        return false;
    }
    let key = |extension: &ParsedExtension<'_>| match extension {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
        _ => None,
    };
    let authority = |extension: &ParsedExtension<'_>| match extension {
        ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|id| id.0.to_vec()),
        _ => None,
    };
    let own = issuer.extensions().iter().find_map(|e| key(e.parsed_extension()));
    let named = cert.extensions().iter().find_map(|e| authority(e.parsed_extension()));
    own.zip(named).is_none_or(|(own, named)| own == named)
}

/// A subject alternative name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum San {
    Dns(String),
    Uri(String),
    Ip(String),
    Email(String),
    /// Dotted OID, and the value as text.
    Other(String, String),
}

/// The subject alternative names of `cert`, in its order; none if the extension is absent or broken.
pub fn names(cert: &X509Certificate<'_>) -> Vec<San> {
    let Ok(Some(extension)) = cert.subject_alternative_name() else { return Vec::new() };
    let names = extension.value.general_names.iter();
    names
        .filter_map(|name| match name {
            GeneralName::DNSName(s) => Some(San::Dns((*s).to_string())),
            GeneralName::URI(s) => Some(San::Uri((*s).to_string())),
            GeneralName::RFC822Name(s) => Some(San::Email((*s).to_string())),
            GeneralName::IPAddress(bytes) => ip(bytes).map(San::Ip),
            GeneralName::OtherName(oid, value) => Some(San::Other(oid.to_id_string(), other_name(value))),
            _ => None,
        })
        .collect()
}

/// The most specific common name of the subject.
pub fn common_name(cert: &X509Certificate<'_>) -> Option<String> {
    cert.subject().iter_common_name().last().and_then(|cn| cn.as_str().ok()).map(str::to_string)
}

fn ip(bytes: &[u8]) -> Option<String> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(|b| Ipv4Addr::from(b).to_string()),
        16 => <[u8; 16]>::try_from(bytes).ok().map(|b| Ipv6Addr::from(b).to_string()),
        _ => None,
    }
}

/// What stands inside `[0] EXPLICIT ANY` of an otherName, as text; what has no text of its own is shown by its bytes. Source: Envoy's
/// `Utility::generalNameAsString`.
fn other_name(value: &[u8]) -> String {
    let inner = crate::staple::element(value).map_or(value, |(tag, body, _)| if tag == 0xa0 { body } else { value });
    let Some((tag, body, _)) = crate::staple::element(inner) else { return String::new() };
    match tag {
        0x01 => if body.iter().any(|b| *b != 0) { "true" } else { "false" }.to_string(),
        0x02 | 0x0a => integer(body),
        // A bit string begins with the number of bits that do not count.
        0x03 => String::from_utf8_lossy(body.get(1..).unwrap_or_default()).into_owned(),
        0x05 => String::new(),
        0x06 => Oid::new(body.into()).to_id_string(),
        0x1c => {
            body.as_chunks::<4>().0.iter().map(|c| char::from_u32(u32::from_be_bytes(*c)).unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
        }
        0x1e => String::from_utf16_lossy(&body.as_chunks::<2>().0.iter().map(|c| u16::from_be_bytes(*c)).collect::<Vec<_>>()),
        // Other things made of parts are shown whole.
        tag if tag & 0x20 != 0 => String::from_utf8_lossy(inner).into_owned(),
        _ => String::from_utf8_lossy(body).into_owned(),
    }
}

/// A DER integer in decimal; one of more than 16 bytes, which nobody reads, in hex.
fn integer(body: &[u8]) -> String {
    let negative = body.first().is_some_and(|b| b & 0x80 != 0);
    if body.len() > 16 {
        return format!("0x{}", hex(body));
    }
    let start = if negative { -1_i128 } else { 0 };
    body.iter().fold(start, |n, b| (n << 8) | i128::from(*b)).to_string()
}

fn serial(raw: &[u8]) -> String {
    let start = raw.iter().position(|b| *b != 0).unwrap_or(raw.len());
    match raw.get(start..) {
        Some(bytes) if !bytes.is_empty() => hex(bytes),
        _ => "0".to_string(),
    }
}

fn system_time(time: &ASN1Time) -> Option<SystemTime> {
    let seconds = time.timestamp();
    match u64::try_from(seconds) {
        Ok(after) => SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(after)),
        Err(_) => SystemTime::UNIX_EPOCH.checked_sub(Duration::from_secs(seconds.unsigned_abs())),
    }
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, b| {
        // Writing to a String cannot fail.
        let _infallible = write!(out, "{b:02x}");
        out
    })
}

/// PEM with `\n`, space, `+`, `/` and `=` percent-encoded, as Envoy's `urlEncodedPemEncodedPeerCertificate`.
fn url_pem(der: &[u8]) -> String {
    use base64::Engine;
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    let mut out = String::with_capacity(body.len() * 5 / 4 + 100);
    out.push_str("-----BEGIN%20CERTIFICATE-----%0A");
    for (i, c) in body.chars().enumerate() {
        if i > 0 && i % 64 == 0 {
            out.push_str("%0A");
        }
        match c {
            '+' => out.push_str("%2B"),
            '/' => out.push_str("%2F"),
            '=' => out.push_str("%3D"),
            c => out.push(c),
        }
    }
    out.push_str("%0A-----END%20CERTIFICATE-----%0A");
    out
}

/// A name in OpenSSL's `XN_FLAG_RFC2253` form: most specific part first, bytes above 127 as `\XX`, unknown types as OID and `#` DER.
fn rfc2253(name: &X509Name<'_>) -> String {
    let mut out = String::new();
    let parts: Vec<_> = name.iter_rdn().collect();
    for (i, part) in parts.iter().rev().enumerate() {
        if i > 0 {
            out.push(',');
        }
        for (j, attribute) in part.iter().enumerate() {
            if j > 0 {
                out.push('+');
            }
            match (short_name(attribute.attr_type()), attribute.as_str()) {
                (Some(short), Ok(text)) => {
                    out.push_str(short);
                    out.push('=');
                    escape(text, &mut out);
                }
                (short, _) => {
                    match short {
                        Some(short) => out.push_str(short),
                        None => out.push_str(&attribute.attr_type().to_id_string()),
                    }
                    out.push_str("=#");
                    let value = attribute.attr_value();
                    let _infallible = write!(out, "{:02X}", value.header.tag().0);
                    let _infallible = write!(out, "{:02X}", value.data.len().min(255));
                    out.push_str(&hex(value.data).to_ascii_uppercase());
                }
            }
        }
    }
    out
}

/// OpenSSL's short names of attribute types.
fn short_name(oid: &Oid<'_>) -> Option<&'static str> {
    Some(match oid.to_id_string().as_str() {
        "2.5.4.3" => "CN",
        "2.5.4.4" => "SN",
        "2.5.4.5" => "serialNumber",
        "2.5.4.6" => "C",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.9" => "street",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "2.5.4.12" => "title",
        "2.5.4.17" => "postalCode",
        "2.5.4.41" => "name",
        "2.5.4.42" => "GN",
        "2.5.4.43" => "initials",
        "2.5.4.46" => "dnQualifier",
        "1.2.840.113549.1.9.1" => "emailAddress",
        "0.9.2342.19200300.100.1.1" => "UID",
        "0.9.2342.19200300.100.1.25" => "DC",
        _ => return None,
    })
}

fn escape(text: &str, out: &mut String) {
    let last = text.len().saturating_sub(1);
    for (i, byte) in text.bytes().enumerate() {
        match byte {
            b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';' => {
                out.push('\\');
                out.push(char::from(byte));
            }
            b'#' if i == 0 => out.push_str("\\#"),
            b' ' if i == 0 || i == last => out.push_str("\\ "),
            0x20..=0x7e => out.push(char::from(byte)),
            _ => {
                let _infallible = write!(out, "\\{byte:02X}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    #[test]
    fn reads_what_formatters_need() {
        let mut params = CertificateParams::new(vec!["a.example.com".to_string()]).unwrap();
        params.subject_alt_names.push(SanType::URI("spiffe://cluster.local/ns/a/sa/b".try_into().unwrap()));
        params.subject_alt_names.push(SanType::IpAddress("10.0.0.1".parse().unwrap()));
        params.subject_alt_names.push(SanType::Rfc822Name("me@example.com".try_into().unwrap()));
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CountryName, "DE");
        params.distinguished_name.push(DnType::OrganizationName, "Müller, Co");
        params.distinguished_name.push(DnType::CommonName, "#leaf ");
        params.serial_number = Some(vec![0x00, 0x0a, 0xff].into());
        let cert = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let info = parse_chain(&[cert.der().to_vec(), cert.der().to_vec()]);
        assert_eq!(info.subject, "CN=\\#leaf\\ ,O=M\\C3\\BCller\\, Co,C=DE");
        assert_eq!(info.serial, "0aff");
        assert_eq!(info.dns_sans, ["a.example.com"]);
        assert_eq!(info.uri_sans, ["spiffe://cluster.local/ns/a/sa/b"]);
        assert_eq!(info.ip_sans, ["10.0.0.1"]);
        assert_eq!(info.email_sans, ["me@example.com"]);
        assert_eq!(info.sha256.len(), 64);
        assert!(info.not_after > info.not_before);
        let decoded = info.url_pem.replace("%0A", "\n").replace("%20", " ").replace("%2B", "+").replace("%2F", "/").replace("%3D", "=");
        assert_eq!(decoded.replace('\n', ""), cert.pem().replace(['\n', '\r'], ""));
        assert_eq!(info.url_pem_chain, format!("{0}{0}", info.url_pem));
    }

    #[test]
    fn other_names_are_text() {
        let long = [[0x02, 17].as_slice(), &[1; 17]].concat();
        for (value, text) in [
            (&b"\x0c\x02hi"[..], "hi"),
            (b"\x01\x01\xff", "true"),
            (b"\x01\x01\x00", "false"),
            (b"\x02\x01\x05", "5"),
            (b"\x02\x03\xfe\xee\x90", "-70000"),
            (b"\x0a\x01\x03", "3"),
            (b"\x03\x03\x00ab", "ab"),
            (b"\x05\x00", ""),
            (b"\x06\x02\x2a\x03", "1.2.3"),
            (b"\x1e\x04\x00a\x00b", "ab"),
            (b"\x1c\x08\x00\x00\x00a\x00\x00\x00b", "ab"),
            (b"\x04\x03oct", "oct"),
            (b"\x17\x0d260101000000Z", "260101000000Z"),
            (b"\x30\x03\x02\x01\x01", "0\x03\x02\x01\x01"),
            (b"\x0c\x05hi", ""),
            (b"", ""),
            (&long, "0x0101010101010101010101010101010101"),
        ] {
            let tagged = [[0xa0, u8::try_from(value.len()).unwrap()].as_slice(), value].concat();
            assert_eq!(other_name(&tagged), text, "{value:02x?}");
        }
    }

    #[test]
    fn issuers_are_told_by_name_and_key() {
        let authority = |name: &str| {
            let mut params = CertificateParams::new(vec![]).unwrap();
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, name);
            params
        };
        let keys: Vec<_> = (0..2).map(|_| KeyPair::generate().unwrap()).collect();
        let certs: Vec<_> = keys.iter().map(|key| authority("ca").self_signed(key).unwrap()).collect();
        let mut params = CertificateParams::new(vec!["leaf".to_string()]).unwrap();
        params.use_authority_key_identifier_extension = true;
        let ca = authority("ca");
        let leaf = params.signed_by(&KeyPair::generate().unwrap(), &rcgen::Issuer::from_params(&ca, &keys[0])).unwrap();
        assert!(issued(certs[0].der(), leaf.der()));
        assert!(!issued(certs[1].der(), leaf.der()));
        assert!(!issued(authority("other").self_signed(&keys[0]).unwrap().der(), leaf.der()));
        assert!(!issued(b"x", leaf.der()));
        assert_eq!(digests(leaf.der()).sha256, parse(leaf.der()).sha256);
        assert_eq!(digests(leaf.der()).serial, parse(leaf.der()).serial);
    }

    #[test]
    fn garbage_is_empty_but_hashed() {
        let info = parse_chain(&[b"not a certificate".to_vec()]);
        assert!(info.subject.is_empty());
        assert_eq!(info.sha256.len(), 64);
        assert!(parse_chain(&[]).sha256.is_empty());
    }
}
