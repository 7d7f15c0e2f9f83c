//! One `JwtProvider`: whose tokens, from where, by which keys, and what of them is passed on. Compiled on the control thread, used by
//! the workers. Source: `envoy/extensions/filters/http/jwt_authn/v3/config.proto` JwtProvider.

use super::cache::TokenCache;
use super::extract::{Found, Locations};
use super::json;
use super::jwks::{self, Jwks};
use super::remote::Remote;
use super::token::Jwt;
use crate::config::duration;
use crate::watched::Watched;
use arc_swap::Guard;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderName, HeaderValue};
use nuncio_core::Exchange;
use nuncio_core::diag::At;
use nuncio_core::registry::FactoryCx;
use nuncio_matcher::StringMatcher;
use nuncio_proto::envoy::extensions::filters::http::jwt_authn::v3::{self as proto, jwt_provider::JwksSourceSpecifier};
use nuncio_proto::{Struct, Value};
use prost_types::{ListValue, value::Kind};
use std::sync::Arc;

/// A compiled provider.
#[derive(Debug)]
pub struct Provider {
    pub issuer: Box<str>,
    pub audiences: Audiences,
    pub locations: Locations,
    pub keys: Keys,
    pub cache: Option<TokenCache>,
    /// Seconds.
    pub clock_skew: u64,
    /// Key of the metadata that says why a token failed; empty: none.
    pub failed_status: Box<str>,
    /// Headers that a client must not set itself.
    pub own_headers: Box<[HeaderName]>,
    subjects: Option<StringMatcher>,
    lifetime: Lifetime,
    forward: bool,
    payload_header: Option<(HeaderName, bool)>,
    claims: Box<[(HeaderName, ClaimPath)]>,
    payload_key: Box<str>,
    header_key: Box<str>,
    space_delimited: Box<[Box<str>]>,
    clear_route_cache: bool,
}

/// The names that lead to a claim.
type ClaimPath = Box<[Box<str>]>;

/// How long a token may still live.
#[derive(Debug)]
enum Lifetime {
    Any,
    /// It must end some time.
    Ends,
    /// Less than this, in seconds.
    Below(f64),
}

/// Where the keys come from.
#[derive(Debug)]
pub enum Keys {
    Local(Arc<Watched<Jwks>>),
    Remote(Arc<Remote>),
}

/// The keys at one moment.
pub enum Loaded {
    Local(Guard<Arc<Jwks>>),
    Remote(Guard<Option<Arc<Jwks>>>),
}

impl Keys {
    /// The current keys; those of a server may be none, or out of date.
    pub fn load(&self) -> Loaded {
        match self {
            Self::Local(watched) => Loaded::Local(watched.load()),
            Self::Remote(remote) => Loaded::Remote(remote.load()),
        }
    }
}

impl Loaded {
    pub fn get(&self) -> Option<&Jwks> {
        match self {
            Self::Local(jwks) => Some(jwks),
            Self::Remote(jwks) => jwks.as_deref(),
        }
    }
}

/// Audiences that are allowed; none means all. Scheme and a slash at the end do not count.
#[derive(Debug, Default)]
pub struct Audiences(Box<[Box<str>]>);

impl Audiences {
    pub fn new(list: &[String]) -> Self {
        Self(list.iter().map(|a| bare_audience(a).into()).collect())
    }
    pub fn allow(&self, audiences: &[String]) -> bool {
        self.0.is_empty() || audiences.iter().any(|a| self.0.iter().any(|allowed| **allowed == *bare_audience(a)))
    }
}

fn bare_audience(audience: &str) -> &str {
    let bare = audience.strip_prefix("http://").or_else(|| audience.strip_prefix("https://")).unwrap_or(audience);
    bare.strip_suffix('/').unwrap_or(bare)
}

impl Provider {
    /// Compiles one provider; `None` means refused.
    pub fn compile(name: &str, p: &proto::JwtProvider, stats: super::Fetches, at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Self> {
        let errors = cx.report.errors();
        let keys = match &p.jwks_source_specifier {
            Some(JwksSourceSpecifier::LocalJwks(source)) => {
                let parse = Box::new(Jwks::parse);
                Keys::Local(Watched::open(source, jwks::MAX_BYTES, Some(Jwks::default()), parse, &at.field("local_jwks"), cx.report)?)
            }
            Some(JwksSourceSpecifier::RemoteJwks(remote)) => {
                Keys::Remote(Remote::compile(name, remote, stats, &at.field("remote_jwks"), cx)?)
            }
            None => {
                cx.report.error(at, "no source of keys", "set remote_jwks or local_jwks");
                return None;
            }
        };
        let subjects = match &p.subjects {
            Some(subjects) => Some(StringMatcher::compile(subjects, &at.field("subjects"), cx.report)?),
            None => None,
        };
        let lifetime = match &p.max_lifetime {
            Some(max) => Lifetime::Below(duration(max, &at.field("max_lifetime"), cx.report)?.as_secs_f64()),
            None if p.require_expiration => Lifetime::Ends,
            None => Lifetime::Any,
        };
        let mut header = |text: &str, at: &At<'_>| {
            let name = HeaderName::from_bytes(text.as_bytes());
            name.map_err(|_| cx.report.error(at, format!("{text:?}"), "give a header name")).ok()
        };
        let payload_header = match p.forward_payload_header.as_str() {
            "" => None,
            text => Some((header(text, &at.field("forward_payload_header"))?, p.pad_forward_payload_header)),
        };
        let (mut claims, list) = (Vec::new(), at.field("claim_to_headers"));
        for (i, claim) in p.claim_to_headers.iter().enumerate() {
            let at = list.index(i);
            claims.extend(header(&claim.header_name, &at.field("header_name")).map(|name| (name, claim_path(claim))));
        }
        for (i, claim) in p.claim_to_headers.iter().enumerate() {
            if claim.claim_name.is_empty() == claim.claim_path.is_empty() {
                cx.report.error(&list.index(i), "not exactly one of claim_name and claim_path", "set one of them");
            } else if claim.claim_path.iter().any(|s| s.key.is_empty()) {
                cx.report.error(&list.index(i).field("claim_path"), "an empty key", "name the claim");
            }
        }
        let own_headers = payload_header.iter().map(|(name, _)| name).chain(claims.iter().map(|(name, _)| name)).cloned().collect();
        let locations = Locations::compile(p, at, cx.report)?;
        let space_delimited = p.normalize_payload_in_metadata.iter().flat_map(|n| &n.space_delimited_claims);
        (cx.report.errors() == errors).then(|| Self {
            issuer: p.issuer.as_str().into(),
            audiences: Audiences::new(&p.audiences),
            locations,
            keys,
            cache: p.jwt_cache_config.map(TokenCache::new),
            clock_skew: if p.clock_skew_seconds == 0 { 60 } else { p.clock_skew_seconds.into() },
            failed_status: p.failed_status_in_metadata.as_str().into(),
            own_headers,
            subjects,
            lifetime,
            forward: p.forward,
            payload_header,
            claims: claims.into(),
            payload_key: p.payload_in_metadata.as_str().into(),
            header_key: p.header_in_metadata.as_str().into(),
            space_delimited: space_delimited.map(|c| c.as_str().into()).collect(),
            clear_route_cache: p.clear_route_cache,
        })
    }
    /// Whether the provider may speak for this subject.
    pub fn allows_subject(&self, jwt: &Jwt) -> bool {
        self.subjects.as_ref().is_none_or(|subjects| subjects.matches(&jwt.sub))
    }
    /// Whether the token ends soon enough after `now`, seconds since 1970.
    pub fn allows_lifetime(&self, jwt: &Jwt, now: u64) -> bool {
        match self.lifetime {
            Lifetime::Any => true,
            Lifetime::Ends => jwt.exp > 0,
            Lifetime::Below(max) => jwt.exp > 0 && jwt.exp as f64 - (now as f64) < max,
        }
    }
    /// Passes on what a good token says: headers, metadata into `extracted`; and takes the token itself away, unless it is forwarded.
    pub fn pass_on(&self, jwt: &Jwt, found: &Found, locations: &Locations, ex: &mut Exchange, extracted: &mut Struct) {
        let headers = &mut ex.request.headers;
        if let Some((name, pad)) = &self.payload_header {
            let payload = jwt.payload_text(&found.token);
            let padding = if *pad { "=".repeat((4 - payload.len() % 4) % 4) } else { String::new() };
            if let Ok(value) = HeaderValue::try_from(format!("{payload}{padding}")) {
                headers.append(name.clone(), value);
            }
        }
        let mut added = false;
        for (name, path) in &self.claims {
            let text = jwt.claim(path.iter().map(|p| &**p)).and_then(claim_text).filter(|text| !text.is_empty());
            if let Some(value) = text.and_then(|text| HeaderValue::try_from(text).ok()) {
                headers.append(name.clone(), value);
                added = true;
            }
        }
        if !self.forward {
            locations.remove(found, &mut ex.request);
        }
        if !self.header_key.is_empty() {
            extracted.fields.insert(self.header_key.to_string(), object(jwt.header.clone()));
        }
        if !self.payload_key.is_empty() {
            extracted.fields.insert(self.payload_key.to_string(), object(self.normalized(&jwt.payload)));
        }
        if self.clear_route_cache && (added || !self.payload_key.is_empty()) {
            ex.route_cleared = true;
        }
    }
    fn normalized(&self, payload: &Struct) -> Struct {
        let mut payload = payload.clone();
        for claim in &self.space_delimited {
            if let Some(value) = payload.fields.get_mut(&**claim)
                && let Some(Kind::StringValue(text)) = &value.kind
                && !text.is_empty()
            {
                let words = text.split(' ').filter(|word| !word.is_empty());
                let values = words.map(|word| Value { kind: Some(Kind::StringValue(word.into())) }).collect();
                value.kind = Some(Kind::ListValue(ListValue { values }));
            }
        }
        payload
    }
}

/// The names that lead to a claim: `claim_path`, or `claim_name` cut at its dots.
fn claim_path(claim: &proto::JwtClaimToHeader) -> ClaimPath {
    if claim.claim_path.is_empty() {
        return claim.claim_name.split('.').map(Into::into).collect();
    }
    claim.claim_path.iter().map(|segment| segment.key.as_str().into()).collect()
}

/// A claim as a header says it: lists and objects as base64 of their JSON.
fn claim_text(value: &Value) -> Option<String> {
    Some(match value.kind.as_ref()? {
        Kind::StringValue(text) => text.clone(),
        Kind::BoolValue(b) => b.to_string(),
        Kind::NumberValue(n) if *n < 0.0 || *n >= u64::MAX as f64 || n.fract() != 0.0 => format!("{n:.6}"),
        Kind::NumberValue(n) => (*n as u64).to_string(),
        Kind::ListValue(_) | Kind::StructValue(_) => STANDARD.encode(json::text(value)),
        Kind::NullValue(_) => return None,
    })
}

pub fn object(fields: Struct) -> Value {
    Value { kind: Some(Kind::StructValue(fields)) }
}
