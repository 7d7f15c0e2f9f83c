//! Keys of a JWKS, parsed once, and verification by them. Which algorithms a key may serve follows from the kind of the key, never
//! from the token alone: a public RSA key is never an HMAC secret. Parsed on the control thread, used by the workers.
//! Source: Envoy's `source/common/jwt/verify.h`, RFC 7518, RFC 8037.

use super::status::Status;
use super::token::{Algorithm, Jwt};
use aws_lc_rs::hmac;
use aws_lc_rs::signature::{self, ParsedPublicKey, VerificationAlgorithm};
use std::fmt;

/// One key.
pub struct Key {
    /// Empty if it has none: it is then tried for every token.
    pub kid: Box<str>,
    /// The only algorithm that it serves; empty: whatever its kind can.
    pub alg: Box<str>,
    material: Material,
}

enum Material {
    /// In the order of [`RSA`].
    Rsa(Box<[ParsedPublicKey]>),
    Ec(Algorithm, ParsedPublicKey),
    Ed25519(ParsedPublicKey),
    Oct(Box<[hmac::Key; 3]>),
}

/// What an RSA key can do. Keys below 2048 bits are refused, as RFC 7518 wants.
const RSA: [(Algorithm, &dyn VerificationAlgorithm); 6] = [
    (Algorithm::RS256, &signature::RSA_PKCS1_2048_8192_SHA256),
    (Algorithm::RS384, &signature::RSA_PKCS1_2048_8192_SHA384),
    (Algorithm::RS512, &signature::RSA_PKCS1_2048_8192_SHA512),
    (Algorithm::PS256, &signature::RSA_PSS_2048_8192_SHA256),
    (Algorithm::PS384, &signature::RSA_PSS_2048_8192_SHA384),
    (Algorithm::PS512, &signature::RSA_PSS_2048_8192_SHA512),
];

/// A curve of RFC 7518, which stands for one algorithm.
#[derive(Clone, Copy, Debug)]
pub struct Curve {
    pub name: &'static str,
    pub algorithm: Algorithm,
    /// Bytes of a coordinate.
    pub size: usize,
    verification: &'static dyn VerificationAlgorithm,
}

/// Every curve that is supported.
pub static CURVES: [Curve; 3] = [
    Curve { name: "P-256", algorithm: Algorithm::ES256, size: 32, verification: &signature::ECDSA_P256_SHA256_FIXED },
    Curve { name: "P-384", algorithm: Algorithm::ES384, size: 48, verification: &signature::ECDSA_P384_SHA384_FIXED },
    Curve { name: "P-521", algorithm: Algorithm::ES512, size: 66, verification: &signature::ECDSA_P521_SHA512_FIXED },
];

impl Key {
    /// An RSA key from DER: RSAPublicKey or SubjectPublicKeyInfo. None if it is no good key of 2048 to 8192 bits.
    pub fn rsa(kid: &str, alg: &str, der: &[u8]) -> Option<Self> {
        let keys: Result<_, _> = RSA.iter().map(|(_, algorithm)| ParsedPublicKey::new(*algorithm, der)).collect();
        Some(Self { kid: kid.into(), alg: alg.into(), material: Material::Rsa(keys.ok()?) })
    }
    /// An EC key from an uncompressed point. None if it is not on the curve.
    pub fn ec(kid: &str, alg: &str, curve: &Curve, point: &[u8]) -> Option<Self> {
        let key = ParsedPublicKey::new(curve.verification, point).ok()?;
        Some(Self { kid: kid.into(), alg: alg.into(), material: Material::Ec(curve.algorithm, key) })
    }
    /// An Ed25519 key of 32 bytes.
    pub fn ed25519(kid: &str, alg: &str, raw: &[u8]) -> Option<Self> {
        let key = ParsedPublicKey::new(&signature::ED25519, raw).ok()?;
        Some(Self { kid: kid.into(), alg: alg.into(), material: Material::Ed25519(key) })
    }
    /// A shared secret.
    pub fn oct(kid: &str, alg: &str, secret: &[u8]) -> Self {
        let keys = [hmac::HMAC_SHA256, hmac::HMAC_SHA384, hmac::HMAC_SHA512].map(|algorithm| hmac::Key::new(algorithm, secret));
        Self { kid: kid.into(), alg: alg.into(), material: Material::Oct(Box::new(keys)) }
    }
    /// Whether the token's `kid` and `alg` let this key be tried.
    fn fits(&self, jwt: &Jwt) -> bool {
        (jwt.kid.is_empty() || self.kid.is_empty() || *self.kid == *jwt.kid) && (self.alg.is_empty() || &*self.alg == jwt.algorithm.name())
    }
    fn verify(&self, jwt: &Jwt, signed: &[u8]) -> Status {
        let algorithm = jwt.algorithm;
        let good = match &self.material {
            Material::Rsa(keys) => {
                let key = RSA.iter().position(|(a, _)| *a == algorithm).and_then(|at| keys.get(at));
                key.is_some_and(|key| key.verify_sig(signed, &jwt.signature).is_ok())
            }
            Material::Ec(serves, key) => *serves == algorithm && key.verify_sig(signed, &jwt.signature).is_ok(),
            Material::Ed25519(_) if algorithm != Algorithm::EdDSA => false,
            Material::Ed25519(_) if jwt.signature.len() != 64 => return Status::Ed25519WrongLength,
            Material::Ed25519(key) => key.verify_sig(signed, &jwt.signature).is_ok(),
            Material::Oct(forms) => {
                let [sha256, sha384, sha512] = &**forms;
                let key = match algorithm {
                    Algorithm::HS256 => sha256,
                    Algorithm::HS384 => sha384,
                    Algorithm::HS512 => sha512,
                    _ => return Status::VerificationFail,
                };
                // Compares in constant time.
                hmac::verify(key, signed, &jwt.signature).is_ok()
            }
        };
        if good { Status::Ok } else { Status::VerificationFail }
    }
}

/// Verifies the signature of `jwt`, whose text is `token`, by the first of `keys` that can.
pub fn verify(keys: &[Key], jwt: &Jwt, token: &str) -> Status {
    let mut result = Status::JwksKidAlgMismatch;
    for key in keys.iter().filter(|key| key.fits(jwt)) {
        result = key.verify(jwt, jwt.signed(token));
        if matches!(result, Status::Ok | Status::Ed25519WrongLength) {
            break;
        }
    }
    result
}

impl fmt::Debug for Key {
    /// Never the key itself.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.material {
            Material::Rsa(_) => "RSA",
            Material::Ec(..) => "EC",
            Material::Ed25519(_) => "OKP",
            Material::Oct(_) => "oct",
        };
        f.debug_struct("Key").field("kid", &self.kid).field("alg", &self.alg).field("kty", &kind).finish_non_exhaustive()
    }
}
