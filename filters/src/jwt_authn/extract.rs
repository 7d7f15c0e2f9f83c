//! Where tokens are looked for in a request, and their removal from it. Compiled on the control thread, run on the workers.
//! Source: Envoy's `jwt_authn/extractor.h`, `JwtProvider.from_*`.

use http::{HeaderName, header};
use nuncio_core::diag::{At, Report};
use nuncio_core::message::joined;
use nuncio_core::{ByteStr, RequestHead};
use nuncio_matcher::query::{self, cookie};
use nuncio_proto::envoy::extensions::filters::http::jwt_authn::v3::JwtProvider;
use smallvec::SmallVec;
use std::borrow::Cow;

/// A place to look at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// The header, and what must stand before the token in its value.
    Header {
        key: String,
        name: HeaderKey,
        prefix: String,
    },
    Param(String),
    Cookie(String),
}

/// A header name that has an order.
#[derive(Clone, Debug, PartialEq, Eq)]
struct HeaderKey(HeaderName);
impl PartialOrd for HeaderKey {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for HeaderKey {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.as_str().cmp(other.0.as_str())
    }
}

#[derive(Clone, Debug)]
struct Location {
    place: Place,
    /// Issuers whose tokens may come this way; one that is empty allows all.
    issuers: Vec<Box<str>>,
}

/// Every place of one provider, or of several.
#[derive(Clone, Debug, Default)]
pub struct Locations(Vec<Location>);

/// A token as the request had it.
#[derive(Debug)]
pub struct Found {
    pub token: String,
    location: usize,
}

impl Locations {
    /// The places of `provider`; the defaults of Envoy if it names none.
    pub fn compile(provider: &JwtProvider, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let mut places = Vec::new();
        let mut header = |name: &str, prefix: &str, at: &At<'_>| {
            match HeaderName::from_bytes(name.as_bytes()) {
                // Envoy's order is that of name and prefix together.
                Ok(name) => {
                    places.push(Place::Header { key: format!("{name}{prefix}"), name: HeaderKey(name), prefix: prefix.to_string() })
                }
                Err(_) => report.error(&at.field("name"), format!("{name:?}"), "give a header name"),
            }
        };
        let list = at.field("from_headers");
        for (i, from) in provider.from_headers.iter().enumerate() {
            header(&from.name, &from.value_prefix, &list.index(i));
        }
        if provider.from_headers.is_empty() && provider.from_params.is_empty() && provider.from_cookies.is_empty() {
            header(header::AUTHORIZATION.as_str(), "Bearer ", at);
            places.push(Place::Param("access_token".into()));
        }
        places.extend(provider.from_params.iter().cloned().map(Place::Param));
        places.extend(provider.from_cookies.iter().cloned().map(Place::Cookie));
        let mut all = Self::default();
        for place in places {
            all.add(place, &provider.issuer);
        }
        (!report.has_errors()).then_some(all)
    }
    /// The places of several providers together.
    pub fn union<'a>(all: impl Iterator<Item = &'a Self>) -> Self {
        let mut union = Self::default();
        for location in all.flat_map(|l| &l.0) {
            for issuer in &location.issuers {
                union.add(location.place.clone(), issuer);
            }
        }
        union
    }
    fn add(&mut self, place: Place, issuer: &str) {
        let at = match self.0.binary_search_by(|l| l.place.cmp(&place)) {
            Ok(at) => at,
            Err(at) => {
                self.0.insert(at, Location { place, issuers: Vec::new() });
                at
            }
        };
        if let Some(location) = self.0.get_mut(at)
            && !location.issuers.iter().any(|i| **i == *issuer)
        {
            location.issuers.push(issuer.into());
        }
    }
    /// Every token of `request`: those of headers first, then parameters, then cookies. The last one is verified first.
    pub fn find(&self, request: &RequestHead) -> SmallVec<[Found; 1]> {
        let mut found = SmallVec::new();
        for (location, Location { place, .. }) in self.0.iter().enumerate() {
            match place {
                Place::Header { name, prefix, .. } => {
                    // Envoy joins repeated values of this one; two credentials are then no token at all.
                    let whole = if name.0 == header::AUTHORIZATION { joined(&request.headers, &name.0) } else { None };
                    let each = request.headers.get_all(&name.0).filter(|_| whole.is_none()).map(|v| v.as_bytes());
                    for value in whole.as_deref().into_iter().chain(each) {
                        let text = String::from_utf8_lossy(value);
                        if prefix.is_empty() {
                            found.push(Found { token: text.into_owned(), location });
                        } else if let Some(token) = after(&text, prefix) {
                            found.push(Found { token: token.to_string(), location });
                        }
                    }
                }
                Place::Param(name) => {
                    let pairs = request.query().unwrap_or_default().split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
                    if let Some((_, value)) = pairs.into_iter().find(|(key, _)| decoded(key) == name.as_str()) {
                        found.push(Found { token: decoded(value).into_owned(), location });
                    }
                }
                Place::Cookie(name) => {
                    if let Some(value) = cookie(&request.headers, name) {
                        found.push(Found { token: value.to_string(), location });
                    }
                }
            }
        }
        found
    }
    /// Whether a token that was found there may be of `issuer`.
    pub fn allows(&self, found: &Found, issuer: &str) -> bool {
        let issuers = self.0.get(found.location).map(|l| l.issuers.as_slice()).unwrap_or_default();
        issuers.iter().any(|i| i.is_empty() || **i == *issuer)
    }
    /// Takes a token out of the request; one of a cookie stays, as in Envoy.
    pub fn remove(&self, found: &Found, request: &mut RequestHead) {
        match self.0.get(found.location).map(|l| &l.place) {
            Some(Place::Header { name, .. }) => {
                request.headers.remove(&name.0);
            }
            Some(Place::Param(name)) => remove_param(request, name),
            Some(Place::Cookie(_)) | None => {}
        }
    }
}

/// What follows `prefix`, which may stand anywhere in `value`, from the first character on that a token can have.
fn after<'a>(value: &'a str, prefix: &str) -> Option<&'a str> {
    let rest = value.split_at_checked(value.find(prefix)? + prefix.len())?.1;
    let start = rest.find(|c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    Some(start.and_then(|at| rest.get(at..)).unwrap_or(value))
}

/// Removes every parameter called `name`; the others stay as they were sent.
fn remove_param(request: &mut RequestHead, name: &str) {
    let Some((path, query)) = request.path.as_str().split_once('?') else { return };
    let kept: Vec<&str> = query.split('&').filter(|pair| decoded(pair.split_once('=').map_or(*pair, |(key, _)| key)) != name).collect();
    let path = if kept.is_empty() { path.to_string() } else { format!("{path}?{}", kept.join("&")) };
    request.path = ByteStr::from(path);
}

/// Percent-decoded text; bytes that are not UTF-8 become the replacement character.
fn decoded(text: &str) -> Cow<'_, str> {
    match query::decoded(text) {
        Cow::Borrowed(_) => Cow::Borrowed(text),
        Cow::Owned(bytes) => Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()),
    }
}
