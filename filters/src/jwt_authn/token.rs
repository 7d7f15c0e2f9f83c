//! A JSON Web Token taken apart: header, claims, signature. Nothing here is trusted until a key has verified it. Workers.
//! Source: Envoy's `source/common/jwt/jwt.h`, RFC 7519.

use super::json;
use super::status::Status;
use base64::Engine;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use nuncio_proto::{Struct, Value};
use prost_types::value::Kind;

/// Base64url with or without padding, as Envoy reads it.
pub const BASE64URL: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::URL_SAFE,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

macro_rules! algorithms {
    ($($name:ident)*) => {
        /// A signature algorithm of RFC 7518 and RFC 8037. `none` is not one.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Algorithm { $($name,)* }
        impl Algorithm {
            fn parse(name: &str) -> Option<Self> {
                match name { $(stringify!($name) => Some(Self::$name),)* _ => None }
            }
            /// Its name, as tokens and keys write it.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }
        }
    };
}
algorithms! { RS256 RS384 RS512 PS256 PS384 PS512 ES256 ES384 ES512 HS256 HS384 HS512 EdDSA }

/// A parsed token.
#[derive(Debug)]
pub struct Jwt {
    pub header: Struct,
    pub payload: Struct,
    pub algorithm: Algorithm,
    /// Empty if the header has none.
    pub kid: String,
    /// Claims; empty if there are none.
    pub iss: String,
    pub sub: String,
    pub audiences: Vec<String>,
    /// Seconds since 1970; 0 if there is no such claim.
    pub nbf: u64,
    pub exp: u64,
    pub signature: Vec<u8>,
    /// Where the payload ends in the token's text: all before it is signed.
    signed: usize,
    /// Where it begins.
    payload_start: usize,
}

/// What a claim is not.
enum Wrong {
    Type,
    Range,
}

impl Jwt {
    /// Takes `token` apart, with the first thing that is wrong in Envoy's order.
    pub fn parse(token: &str) -> Result<Self, Status> {
        let mut sections = token.split('.');
        let (Some(head), Some(body), Some(signature), None) = (sections.next(), sections.next(), sections.next(), sections.next()) else {
            return Err(Status::JwtBadFormat);
        };
        if head.is_empty() || body.is_empty() || signature.is_empty() {
            return Err(Status::JwtBadFormat);
        }
        let header = BASE64URL.decode(head).map_err(|_| Status::HeaderBadBase64)?;
        let header = json::object(&header).ok_or(Status::HeaderBadJson)?;
        let algorithm = string(&header, "alg").ok().flatten().ok_or(Status::HeaderBadAlg)?;
        let algorithm = Algorithm::parse(algorithm).ok_or(Status::HeaderUnknownAlg)?;
        let kid = string(&header, "kid").map_err(|()| Status::HeaderBadKid)?.unwrap_or_default().to_string();
        let payload = BASE64URL.decode(body).map_err(|_| Status::PayloadBadBase64)?;
        let payload = json::object(&payload).ok_or(Status::PayloadBadJson)?;
        let iss = string(&payload, "iss").map_err(|()| Status::IssNotString)?.unwrap_or_default().to_string();
        let sub = string(&payload, "sub").map_err(|()| Status::SubNotString)?.unwrap_or_default().to_string();
        let time = |name, not_number, out_of_range| {
            seconds(&payload, name).map_err(|wrong| match wrong {
                Wrong::Type => not_number,
                Wrong::Range => out_of_range,
            })
        };
        time("iat", Status::IatNotInteger, Status::IatOutOfRange)?;
        let nbf = time("nbf", Status::NbfNotInteger, Status::NbfOutOfRange)?;
        let exp = time("exp", Status::ExpNotInteger, Status::ExpOutOfRange)?;
        string(&payload, "jti").map_err(|()| Status::JtiNotString)?;
        let audiences = strings(&payload, "aud").ok_or(Status::AudNotString)?;
        let signature = BASE64URL.decode(signature).map_err(|_| Status::SignatureBadBase64)?;
        let payload_start = head.len() + 1;
        let signed = payload_start + body.len();
        Ok(Self { header, payload, algorithm, kid, iss, sub, audiences, nbf, exp, signature, signed, payload_start })
    }
    /// The part of `token`, the text that this was parsed from, that is signed.
    pub fn signed<'a>(&self, token: &'a str) -> &'a [u8] {
        token.as_bytes().get(..self.signed).unwrap_or_default()
    }
    /// The payload as `token` has it: base64url of JSON.
    pub fn payload_text<'a>(&self, token: &'a str) -> &'a str {
        token.get(self.payload_start..self.signed).unwrap_or_default()
    }
    /// Whether `now` (seconds since 1970) is between `nbf` and `exp`, give or take `skew` seconds.
    pub fn check_time(&self, now: u64, skew: u64) -> Status {
        if now.saturating_add(skew) < self.nbf {
            Status::JwtNotYetValid
        } else if self.exp > 0 && now > self.exp.saturating_add(skew) {
            Status::JwtExpired
        } else {
            Status::Ok
        }
    }
    /// The claim at `path`, names of objects inside objects.
    pub fn claim<'a>(&self, mut path: impl Iterator<Item = &'a str>) -> Option<&Value> {
        let mut value = self.payload.fields.get(path.next()?)?;
        for name in path {
            match &value.kind {
                Some(Kind::StructValue(object)) => value = object.fields.get(name)?,
                _ => return None,
            }
        }
        Some(value)
    }
}

/// A text field; none if there is no such field, an error if it is no text.
fn string<'a>(object: &'a Struct, name: &str) -> Result<Option<&'a str>, ()> {
    match object.fields.get(name).map(|v| &v.kind) {
        None => Ok(None),
        Some(Some(Kind::StringValue(text))) => Ok(Some(text)),
        Some(_) => Err(()),
    }
}

fn seconds(object: &Struct, name: &str) -> Result<u64, Wrong> {
    match object.fields.get(name).map(|v| &v.kind) {
        None => Ok(0),
        Some(Some(Kind::NumberValue(n))) if *n < 0.0 || *n >= u64::MAX as f64 => Err(Wrong::Range),
        Some(Some(Kind::NumberValue(n))) => Ok(*n as u64),
        Some(_) => Err(Wrong::Type),
    }
}

fn strings(object: &Struct, name: &str) -> Option<Vec<String>> {
    let text = |value: &Value| match &value.kind {
        Some(Kind::StringValue(text)) => Some(text.clone()),
        _ => None,
    };
    match object.fields.get(name) {
        None => Some(Vec::new()),
        Some(Value { kind: Some(Kind::ListValue(list)) }) => list.values.iter().map(text).collect(),
        Some(value) => Some(vec![text(value)?]),
    }
}
