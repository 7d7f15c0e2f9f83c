//! JSON Web Key Sets, from configuration, files or servers. A set comes from outside: its size and the number of its keys are bounded,
//! keys that are no good are left out, and a set without a good key is an error. Control thread.
//! Source: Envoy's `source/common/jwt/jwks.h`, RFC 7517.

use super::key::{CURVES, Key};
use super::token::BASE64URL;
use base64::Engine;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Map, Value};
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of a set that are read. Envoy takes what its buffers take, 1 MiB by default.
pub const MAX_BYTES: usize = 1024 * 1024;
/// Keys of a set. A token without `kid` is tried with each of them.
const MAX_KEYS: usize = 256;

/// The keys of one issuer.
#[derive(Debug, Default)]
pub struct Jwks {
    pub keys: Box<[Key]>,
    /// Tells this set from every other that was ever read; what an earlier set verified is not taken from a cache.
    pub id: u64,
}

/// Number of the next set; 0 is that of the empty one.
static NEXT: AtomicU64 = AtomicU64::new(1);

impl Jwks {
    /// Reads a set. The error says what is wrong, without a byte of any key.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        if text.len() > MAX_BYTES {
            return Err(format!("Jwks has {} bytes, more than {MAX_BYTES}", text.len()));
        }
        let Ok(Value::Object(set)) = serde_json::from_slice(text) else { return Err("Jwks is an invalid JSON".into()) };
        let mut first_problem = None;
        let keys: Vec<Key> = match set.get("keys") {
            Some(Value::Array(keys)) if keys.len() > MAX_KEYS => return Err(format!("Jwks has {} keys, more than {MAX_KEYS}", keys.len())),
            Some(Value::Array(keys)) => {
                let keys = keys.iter().filter_map(Value::as_object).map(jwk);
                keys.filter_map(|key| key.map_err(|why| first_problem.get_or_insert(why).len()).ok()).collect()
            }
            Some(_) => return Err("[keys] in Jwks is not an array".into()),
            None => certificates(&set)?,
        };
        if keys.is_empty() {
            return Err(match first_problem {
                Some(why) => format!("Jwks doesn't have any valid public key: {why}"),
                None => "Jwks doesn't have any valid public key".into(),
            });
        }
        Ok(Self { keys: keys.into(), id: NEXT.fetch_add(1, Ordering::Relaxed) })
    }
}

/// A field that must be text; an empty one counts as text.
fn text<'a>(key: &'a Map<String, Value>, field: &str) -> Result<&'a str, String> {
    match key.get(field) {
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(format!("[{field}] field is not a string")),
        None => Err(format!("[{field}] field is missing")),
    }
}

fn decoded(key: &Map<String, Value>, field: &str) -> Result<Vec<u8>, String> {
    BASE64URL.decode(text(key, field)?).map_err(|_| format!("[{field}] field is an invalid Base64"))
}

fn jwk(key: &Map<String, Value>) -> Result<Key, String> {
    let kty = text(key, "kty")?;
    let optional = |field| key.get(field).and_then(Value::as_str).unwrap_or_default();
    let (kid, alg, crv) = (optional("kid"), optional("alg"), optional("crv"));
    match kty {
        "RSA" if !alg.is_empty() && !alg.starts_with("RS") && !alg.starts_with("PS") => {
            Err("[alg] is not started with [RS] or [PS] for an RSA key".into())
        }
        "RSA" => {
            let (n, e) = (decoded(key, "n")?, decoded(key, "e")?);
            let exponent = e.iter().skip_while(|b| **b == 0).try_fold(0u32, |all, b| all.checked_mul(256)?.checked_add(u32::from(*b)));
            let wrong = || "RSA [n] or [e] field is no key of 2048 to 8192 bits".to_string();
            let zeros = n.iter().take_while(|b| **b == 0).count();
            let bits = n.get(zeros).map_or(0, |first| (n.len() - zeros) * 8 - first.leading_zeros() as usize);
            if !matches!(exponent, Some(3 | 65537)) || !(2048..=8192).contains(&bits) {
                return Err(wrong());
            }
            Key::rsa(kid, alg, &rsa_der(&n, &e)).ok_or_else(wrong)
        }
        "EC" => {
            let named = |curve: &&super::key::Curve| match (alg, crv) {
                ("", "") => curve.name == "P-256",
                ("", crv) => curve.name == crv,
                (alg, "") => curve.algorithm.name() == alg,
                (alg, crv) => curve.algorithm.name() == alg && curve.name == crv,
            };
            let curve = CURVES.iter().find(named).ok_or("[crv] or [alg] field is not supported for an EC key")?;
            let mut point = vec![4];
            for field in ["x", "y"] {
                let raw = decoded(key, field)?;
                let zeros = raw.iter().take_while(|b| **b == 0).count();
                let raw = raw.get(zeros..).unwrap_or_default();
                let padding = curve.size.checked_sub(raw.len()).ok_or("EC [x] and [y] fields have a parse error")?;
                point.resize(point.len() + padding, 0);
                point.extend_from_slice(raw);
            }
            Key::ec(kid, alg, curve, &point).ok_or_else(|| "EC [x] and [y] fields have a parse error".into())
        }
        "oct" if !matches!(alg, "" | "HS256" | "HS384" | "HS512") => Err("[alg] does not start with [HS] for an HMAC key".into()),
        "oct" => match decoded(key, "k")? {
            secret if secret.is_empty() => Err("Oct key is empty".into()),
            secret => Ok(Key::oct(kid, alg, &secret)),
        },
        "OKP" if !matches!(alg, "" | "EdDSA") => Err("[alg] is not [EdDSA] for an OKP key".into()),
        "OKP" if text(key, "crv")? != "Ed25519" => Err("[crv] field is not supported for an OKP key".into()),
        "OKP" => match decoded(key, "x")? {
            raw if raw.len() != 32 => Err("OKP [x] field is wrong length".into()),
            raw => Key::ed25519(kid, alg, &raw).ok_or_else(|| "OKP [x] field is no key".into()),
        },
        _ => Err("[kty] is not supported in [keys]".into()),
    }
}

/// The other form: an object of PEM certificates by `kid`, each with an RSA key.
fn certificates(set: &Map<String, Value>) -> Result<Vec<Key>, String> {
    let is_certificate = |v: &Value| v.as_str().is_some_and(|v| v.starts_with("-----BEGIN CERTIFICATE-----\n"));
    if set.is_empty() || set.len() > MAX_KEYS || !set.iter().all(|(kid, v)| !kid.is_empty() && is_certificate(v)) {
        return Err("Jwks does not have [keys] field".into());
    }
    let key = |(kid, pem): (&String, &Value)| {
        let der = CertificateDer::from_pem_slice(pem.as_str().unwrap_or_default().as_bytes()).ok()?;
        let (_, certificate) = x509_parser::parse_x509_certificate(&der).ok()?;
        Key::rsa(kid, "", certificate.public_key().raw)
    };
    set.iter().map(key).collect::<Option<_>>().ok_or_else(|| "X509 parse pubkey fails".into())
}

/// RSAPublicKey of RFC 8017: a sequence of two integers.
fn rsa_der(n: &[u8], e: &[u8]) -> Vec<u8> {
    let (mut body, mut out) = (Vec::with_capacity(n.len() + 16), Vec::with_capacity(n.len() + 20));
    for number in [n, e] {
        let zeros = number.iter().take_while(|b| **b == 0).count();
        let number = number.get(zeros..).unwrap_or_default();
        // A first byte above 127 would make it negative.
        let sign = number.first().is_none_or(|b| *b > 127);
        tag(&mut body, 2, number.len() + usize::from(sign));
        body.extend(sign.then_some(0));
        body.extend_from_slice(number);
    }
    tag(&mut out, 0x30, body.len());
    out.extend_from_slice(&body);
    out
}

fn tag(out: &mut Vec<u8>, tag: u8, length: usize) {
    out.push(tag);
    let [.., high, low] = length.to_be_bytes();
    match (length, high, low) {
        (..=127, _, low) => out.push(low),
        (_, 0, low) => out.extend([0x81, low]),
        (_, high, low) => out.extend([0x82, high, low]),
    }
}
