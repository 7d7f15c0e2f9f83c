//! How callers show who they are. Compiled on the control thread, run on the workers.

use super::table::{Consumer, Table};
use crate::hmac_auth;
use crate::signing::name_of;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderName, HeaderValue, header};
use nuncio_core::diag::{At, Report};
use nuncio_core::{ByteStr, Exchange};
use nuncio_matcher::metadata::value_at;
use nuncio_matcher::query::{cookie, decoded, parameter};
use nuncio_proto::nuncio::filters::http::consumer::v1::{self as proto, method, method::api_key::place};
use prost_types::value::Kind;
use std::borrow::Cow;
use std::sync::Arc;

/// A compiled `Method`.
#[derive(Debug)]
pub enum Method {
    ApiKey {
        places: Box<[Place]>,
        forward: bool,
    },
    BasicAuth {
        realm: Option<Box<str>>,
        forward: bool,
    },
    /// Path to the claim below jwt_authn's namespace.
    Jwt(Box<[Box<str>]>),
    Hmac,
    Certificate,
}

/// Where a key may be.
#[derive(Debug)]
pub enum Place {
    Header(HeaderName),
    Query(Box<str>),
    Cookie(Box<str>),
}

/// What a method found.
#[derive(Debug)]
pub enum Found {
    /// No credential of this kind.
    Nothing,
    /// One that nobody has.
    Unknown,
    /// Whose it is, and the method's name.
    Consumer(Arc<Consumer>, &'static str),
}

impl Found {
    fn new(consumer: Option<&Arc<Consumer>>, method: &'static str) -> Self {
        consumer.map_or(Self::Unknown, |c| Self::Consumer(c.clone(), method))
    }
}

impl Method {
    /// Compiles one method; `None` means refused.
    pub fn compile(proto: &proto::Method, at: &At<'_>, report: &mut Report) -> Option<Self> {
        Some(match &proto.method {
            Some(method::Method::ApiKey(key)) => {
                let (mut places, list) = (Vec::new(), at.field("api_key"));
                let list = list.field("places");
                for (i, place) in key.places.iter().enumerate() {
                    places.extend(match &place.place {
                        Some(place::Place::Header(name)) => {
                            HeaderName::from_bytes(name.to_ascii_lowercase().as_bytes()).ok().map(Place::Header)
                        }
                        Some(place::Place::Query(name)) if !name.is_empty() => Some(Place::Query(name.as_str().into())),
                        Some(place::Place::Cookie(name)) if !name.is_empty() => Some(Place::Cookie(name.as_str().into())),
                        _ => None,
                    });
                    if places.len() != i + 1 {
                        report.error(&list.index(i), "no place", "name a header, a query parameter or a cookie");
                        return None;
                    }
                }
                if places.is_empty() {
                    places.push(Place::Header(HeaderName::from_static("x-api-key")));
                }
                Self::ApiKey { places: places.into(), forward: key.forward }
            }
            Some(method::Method::BasicAuth(basic)) => {
                if basic.realm.contains(['"', '\\']) || basic.realm.chars().any(char::is_control) {
                    let at = at.field("basic_auth");
                    report.error(&at.field("realm"), format!("{:?}", basic.realm), "give text without quotes and backslashes");
                    return None;
                }
                Self::BasicAuth { realm: (!basic.realm.is_empty()).then(|| basic.realm.as_str().into()), forward: basic.forward }
            }
            Some(method::Method::Jwt(jwt)) => {
                let key = if jwt.payload_key.is_empty() { "payload" } else { jwt.payload_key.as_str() };
                let claim: Vec<&str> = if jwt.claim.is_empty() { vec!["sub"] } else { jwt.claim.iter().map(String::as_str).collect() };
                Self::Jwt(std::iter::once(key).chain(claim).map(Box::from).collect())
            }
            Some(method::Method::Hmac(_)) => Self::Hmac,
            Some(method::Method::Certificate(_)) => Self::Certificate,
            None => {
                report.error(at, "no method", "set api_key, basic_auth, jwt, hmac or certificate");
                return None;
            }
        })
    }
    /// Looks for a credential of this kind.
    pub fn find(&self, table: &Table, ex: &Exchange) -> Found {
        match self {
            Self::ApiKey { places, .. } => {
                let key = places.iter().find_map(|place| place.key(ex));
                match key {
                    None => Found::Nothing,
                    Some(Ok(key)) => Found::new(table.by_key(&key), "api_key"),
                    Some(Err(())) => Found::Unknown,
                }
            }
            Self::BasicAuth { .. } => {
                let mut values = ex.request.headers.get_all(&header::AUTHORIZATION);
                let Some(value) = values.next().map(HeaderValue::as_bytes) else { return Found::Nothing };
                let Some((scheme, encoded)) = value.split_at_checked(6).filter(|(s, _)| s.eq_ignore_ascii_case(b"basic ")) else {
                    return Found::Nothing;
                };
                let _basic = scheme;
                let decoded = STANDARD.decode(encoded.trim_ascii()).ok().filter(|_| values.next().is_none());
                let consumer = decoded.as_deref().and_then(|pair| {
                    let colon = pair.iter().position(|b| *b == b':')?;
                    let (user, password) = pair.split_at_checked(colon)?;
                    table.by_password(std::str::from_utf8(user).ok()?, password.get(1..)?)
                });
                Found::new(consumer, "basic_auth")
            }
            Self::Jwt(path) => {
                let Some(claims) = ex.info.metadata("envoy.filters.http.jwt_authn") else { return Found::Nothing };
                match value_at(claims, path).map(|v| &v.kind) {
                    Some(Some(Kind::StringValue(value))) => Found::new(table.by_claim(value), "jwt"),
                    Some(_) => Found::Unknown,
                    // A token without the claim is a credential; no token is none.
                    None if path.first().is_some_and(|key| claims.fields.contains_key(&**key)) => Found::Unknown,
                    None => Found::Nothing,
                }
            }
            Self::Hmac => {
                let Some(said) = ex.info.metadata(hmac_auth::NAMESPACE) else { return Found::Nothing };
                match said.fields.get("key_id").map(|v| &v.kind) {
                    Some(Some(Kind::StringValue(id))) => Found::new(table.by_hmac_key(id), "hmac"),
                    _ => Found::Nothing,
                }
            }
            Self::Certificate => {
                let tls = ex.info.connection.tls.as_ref().filter(|tls| tls.peer_validated);
                match tls.and_then(|tls| tls.peer_cert()) {
                    Some(certificate) => Found::new(table.by_certificate(certificate), "certificate"),
                    None => Found::Nothing,
                }
            }
        }
    }
    /// Takes every credential of this kind out of the request, wherever it is, unless the upstream shall see it.
    pub fn take(&self, ex: &mut Exchange) {
        match self {
            Self::ApiKey { places, forward: false } => {
                for place in places {
                    if place.key(ex).is_some() {
                        place.remove(ex);
                    }
                }
            }
            Self::BasicAuth { forward: false, .. } => {
                let basic = |value: &HeaderValue| value.as_bytes().get(..6).is_some_and(|s| s.eq_ignore_ascii_case(b"basic "));
                ex.request.headers.retain(|name, value| name != header::AUTHORIZATION || !basic(value));
            }
            _ => {}
        }
    }
    /// What to tell callers who should have authenticated in this way.
    pub fn challenge(&self, ex: &Exchange) -> Option<HeaderValue> {
        let Self::BasicAuth { realm, .. } = self else { return None };
        let realm = realm.as_deref().unwrap_or_else(|| ex.request.authority.as_str());
        let plain: String = realm.chars().filter(|c| !matches!(c, '"' | '\\')).collect();
        HeaderValue::try_from(format!("Basic realm=\"{plain}\"")).ok()
    }
}

impl Place {
    /// The key that is there; an error if there are several, because the upstream might look at another one.
    fn key<'a>(&'a self, ex: &'a Exchange) -> Option<Result<Cow<'a, [u8]>, ()>> {
        match self {
            Self::Header(name) => {
                let mut values = ex.request.headers.get_all(name);
                let value = values.next()?.as_bytes();
                if values.next().is_some() {
                    return Some(Err(()));
                }
                let bare = value.split_at_checked(7).filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer ")).map(|(_, key)| key);
                // Another scheme in `authorization` is a credential of another kind.
                if bare.is_none() && *name == header::AUTHORIZATION {
                    return None;
                }
                Some(Ok(Cow::Borrowed(bare.unwrap_or(value).trim_ascii())))
            }
            Self::Query(name) => {
                let query = ex.request.query()?;
                let value = parameter(query, name)?;
                match query.split('&').filter(|pair| name_of(pair) == &**name).count() {
                    1 => Some(Ok(decoded(value))),
                    _ => Some(Err(())),
                }
            }
            Self::Cookie(name) => Some(Ok(Cow::Borrowed(cookie(&ex.request.headers, name)?.as_bytes()))),
        }
    }
    fn remove(&self, ex: &mut Exchange) {
        let request = &mut ex.request;
        match self {
            Self::Header(name) => {
                request.headers.remove(name);
            }
            Self::Query(name) => {
                let kept: Vec<&str> = request.query().unwrap_or_default().split('&').filter(|pair| name_of(pair) != &**name).collect();
                let path = request.path_only();
                let path = if kept.is_empty() { path.to_string() } else { format!("{path}?{}", kept.join("&")) };
                request.path = ByteStr::from(path);
            }
            Self::Cookie(name) => {
                for (header, value) in request.headers.iter_mut().filter(|(h, _)| **h == header::COOKIE) {
                    let _cookie = header;
                    let Ok(text) = value.to_str() else { continue };
                    let kept = text.split(';').map(str::trim).filter(|pair| pair.split_once('=').is_none_or(|(n, _)| n != &**name));
                    if let Ok(new) = HeaderValue::try_from(kept.collect::<Vec<_>>().join("; ")) {
                        *value = new;
                    }
                }
                request.headers.retain(|name, value| name != header::COOKIE || !value.is_empty());
            }
        }
    }
}
