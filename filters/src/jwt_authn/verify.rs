//! Verification of the tokens of one request against one leaf of a requirement. Workers.
//! Source: Envoy's `jwt_authn/authenticator.h`.

use super::Config;
use super::extract::{Found, Locations};
use super::provider::{Audiences, Keys, Provider, object};
use super::status::Status;
use super::token::Jwt;
use super::{jwks::Jwks, key};
use http::{HeaderName, HeaderValue};
use nuncio_core::Exchange;
use nuncio_proto::{Struct, Value};
use prost_types::value::Kind;
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

/// A requirement without others below it.
#[derive(Debug)]
pub struct Leaf {
    /// Index of the provider; none: whichever the token's issuer belongs to.
    pub provider: Option<usize>,
    /// Instead of those of the provider.
    pub audiences: Option<Audiences>,
    pub locations: Locations,
    pub mode: Mode,
}

/// What is forgiven.
#[derive(Debug)]
pub enum Mode {
    Strict,
    AllowMissing,
    AllowFailed,
    /// As `AllowFailed`; the header tells the upstream of a failure.
    ExtractOnly(Option<HeaderName>),
}

/// Verifies every token that the request has where the leaf looks.
pub async fn leaf(config: &Config, leaf: &Leaf, ex: &mut Exchange, extracted: &mut Struct) -> Status {
    if !config.sanitize_all {
        match leaf.provider {
            Some(index) => config.provider(index).into_iter().for_each(|p| sanitize(p, ex)),
            None => config.providers.iter().for_each(|(_, p)| sanitize(p, ex)),
        }
    }
    if let Mode::ExtractOnly(Some(header)) = &leaf.mode {
        ex.request.headers.remove(header);
    }
    let mut tokens = leaf.locations.find(&ex.request);
    let mut status = Status::JwtMissed;
    if tokens.is_empty() {
        failed(config, None, status, extracted);
    }
    while let Some(found) = tokens.pop() {
        status = one(config, leaf, &found, ex, extracted).await;
        match &leaf.mode {
            // All of them must be good: an upstream might look at the bad one.
            Mode::Strict if status != Status::Ok => break,
            // Tells the upstream that it must not believe what it sees.
            Mode::ExtractOnly(Some(header)) if status != Status::Ok => {
                ex.request.headers.insert(header.clone(), HeaderValue::from_static("false"))
            }
            _ => {}
        }
    }
    match &leaf.mode {
        Mode::AllowFailed | Mode::ExtractOnly(_) => Status::Ok,
        Mode::AllowMissing if status == Status::JwtMissed => Status::Ok,
        Mode::Strict | Mode::AllowMissing => status,
    }
}

/// Removes what the client must not say in the provider's name.
pub fn sanitize(provider: &Provider, ex: &mut Exchange) {
    for name in &provider.own_headers {
        ex.request.headers.remove(name);
    }
}

/// Leaves the reason of a failure in the metadata, if the provider wants it there. Where no token says which provider it is for, the
/// only one there is counts.
fn failed(config: &Config, provider: Option<usize>, status: Status, extracted: &mut Struct) {
    let only = (config.providers.len() == 1).then_some(0);
    let Some(provider) = provider.or(only).and_then(|index| config.provider(index)).filter(|p| !p.failed_status.is_empty()) else { return };
    let value = |kind| Value { kind: Some(kind) };
    let code = value(Kind::NumberValue(f64::from(status as u32)));
    let fields = [("code".to_string(), code), ("message".to_string(), value(Kind::StringValue(status.text().into())))];
    extracted.fields.insert(provider.failed_status.to_string(), object(Struct { fields: fields.into() }));
}

async fn one(config: &Config, leaf: &Leaf, found: &Found, ex: &mut Exchange, extracted: &mut Struct) -> Status {
    let (mut index, mut cached) = (leaf.provider, None);
    if let Some(provider) = leaf.provider.and_then(|i| config.provider(i)) {
        cached = provider.cache.as_ref().and_then(|cache| cache.get(&found.token, provider.keys.load().get()?.id));
        if cached.is_some() { config.stats.cache_hit.inc() } else { config.stats.cache_miss.inc() }
    }
    let status = judge(config, leaf, &mut index, cached, found, ex, extracted).await;
    if status != Status::Ok {
        failed(config, index, status, extracted);
    }
    status
}

async fn judge(
    config: &Config,
    leaf: &Leaf,
    index: &mut Option<usize>,
    cached: Option<Rc<Jwt>>,
    found: &Found,
    ex: &mut Exchange,
    extracted: &mut Struct,
) -> Status {
    let from_cache = cached.is_some();
    let jwt = match cached.map_or_else(|| Jwt::parse(&found.token).map(Rc::new), Ok) {
        Ok(jwt) => jwt,
        Err(status) => return status,
    };
    if !leaf.locations.allows(found, &jwt.iss) {
        return Status::UnknownIssuer;
    }
    *index = index.or_else(|| config.by_issuer(&jwt.iss));
    let Some(provider) = index.and_then(|i| config.provider(i)) else { return Status::UnknownIssuer };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let time = jwt.check_time(now, provider.clock_skew);
    if time != Status::Ok {
        if let Some(cache) = provider.cache.as_ref().filter(|_| from_cache && time == Status::JwtExpired) {
            cache.remove(&found.token);
        }
        return time;
    }
    if !leaf.audiences.as_ref().unwrap_or(&provider.audiences).allow(&jwt.audiences) {
        return Status::AudienceNotAllowed;
    }
    if !provider.allows_subject(&jwt) || !provider.allows_lifetime(&jwt, now) {
        return Status::VerificationFail;
    }
    if !from_cache {
        if let Keys::Remote(remote) = &provider.keys
            && !remote.is_fresh()
            && !remote.fetch().await
        {
            return Status::JwksFetchFail;
        }
        let loaded = provider.keys.load();
        let Some(Jwks { keys, id }) = loaded.get().filter(|jwks| !jwks.keys.is_empty()) else { return Status::JwksNoValidKeys };
        let status = key::verify(keys, &jwt, &found.token);
        if status != Status::Ok {
            return status;
        }
        if let Some(cache) = provider.cache.as_ref().filter(|_| leaf.provider.is_some()) {
            cache.put(&found.token, jwt.clone(), *id);
        }
    }
    provider.pass_on(&jwt, found, &leaf.locations, ex, extracted);
    Status::Ok
}
