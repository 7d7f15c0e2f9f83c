//! envoy.filters.http.api_key_auth: keys of clients in a header, a query parameter or a cookie. Only digests of keys are kept: a look-up
//! by digest tells nothing by its time, and no dump can show a key.
//! Source: `envoy/extensions/filters/http/api_key_auth/v3/api_key_auth.proto`.

use crate::config::decode;
use aws_lc_rs::digest::{SHA256, digest};
use http::{HeaderName, HeaderValue, header};
use nuncio_core::diag::{At, Report};
use nuncio_core::filter::{FilterAction, FilterCx, HttpFilter, Needs};
use nuncio_core::registry::{FactoryCx, HttpFilterFactory};
use nuncio_core::stats::Counter;
use nuncio_core::{LocalReply, RequestHead};
use nuncio_matcher::query;
use nuncio_proto::envoy::extensions::filters::http::api_key_auth::v3 as proto;
use std::any::Any;
use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

/// Factory of `envoy.extensions.filters.http.api_key_auth.v3.ApiKeyAuth`, per route `ApiKeyAuthPerRoute`.
#[derive(Debug)]
pub struct Factory;

impl HttpFilterFactory for Factory {
    fn name(&self) -> &'static str {
        "envoy.filters.http.api_key_auth"
    }
    fn types(&self) -> &'static [&'static str] {
        &["envoy.extensions.filters.http.api_key_auth.v3.ApiKeyAuth"]
    }
    fn route_types(&self) -> &'static [&'static str] {
        &["envoy.extensions.filters.http.api_key_auth.v3.ApiKeyAuthPerRoute"]
    }
    fn compile(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn HttpFilter>> {
        let config: proto::ApiKeyAuth = decode(config, at, cx.report)?;
        let policy = Policy::compile(&config.credentials, &config.key_sources, config.forwarding.as_ref(), at, cx.report)?;
        let scope = cx.scope.scope("api_key_auth.");
        Some(Arc::new(Filter {
            policy,
            allowed: scope.counter("allowed"),
            unauthorized: scope.counter("unauthorized"),
            forbidden: scope.counter("forbidden"),
        }))
    }
    fn compile_route(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn Any + Send + Sync>> {
        let config: proto::ApiKeyAuthPerRoute = decode(config, at, cx.report)?;
        let policy = Policy::compile(&config.credentials, &config.key_sources, config.forwarding.as_ref(), at, cx.report)?;
        Some(Arc::new(PerRoute { policy, allowed: config.allowed_clients.into_iter().collect() }))
    }
}

type Digest = [u8; 32];

fn hash(key: &[u8]) -> Digest {
    let mut out = [0; 32];
    let all = digest(&SHA256, key);
    out.iter_mut().zip(all.as_ref()).for_each(|(to, from)| *to = *from);
    out
}

/// Clients by the digest of their key. Never printed.
struct Credentials(HashMap<Digest, Arc<str>>);
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({})", self.0.len())
    }
}

#[derive(Debug)]
enum Source {
    Header(HeaderName),
    Query(Box<str>),
    Cookie(Box<str>),
}

#[derive(Debug)]
struct Forwarding {
    header: Option<HeaderName>,
    hide: bool,
}

/// What a listener or a route says; what a route does not say the listener does.
#[derive(Debug)]
struct Policy {
    credentials: Option<Credentials>,
    sources: Box<[Source]>,
    forwarding: Option<Forwarding>,
}

#[derive(Debug)]
struct PerRoute {
    policy: Policy,
    /// Empty for all.
    allowed: BTreeSet<String>,
}

impl Policy {
    fn compile(
        credentials: &[proto::Credential],
        sources: &[proto::KeySource],
        forwarding: Option<&proto::Forwarding>,
        at: &At<'_>,
        report: &mut Report,
    ) -> Option<Self> {
        let errors = report.errors();
        let list = at.field("credentials");
        let mut known = HashMap::new();
        for (i, credential) in credentials.iter().enumerate() {
            let at = list.index(i);
            // Errors name the place, never the key.
            if credential.key.is_empty() || credential.client.is_empty() {
                report.error(&at, "an empty key or client", "give both");
            } else if known.insert(hash(credential.key.as_bytes()), Arc::from(credential.client.as_str())).is_some() {
                report.error(&at.field("key"), "a key that was there before", "give each key once");
            }
        }
        let list = at.field("key_sources");
        let mut compiled = Vec::with_capacity(sources.len());
        for (i, source) in sources.iter().enumerate() {
            let at = list.index(i);
            if !source.header.is_empty() {
                match HeaderName::from_bytes(source.header.as_bytes()) {
                    Ok(name) => compiled.push(Source::Header(name)),
                    Err(_) => report.error(&at.field("header"), format!("\"{}\"", source.header), "give a valid header name"),
                }
            } else if !source.query.is_empty() {
                compiled.push(Source::Query(source.query.as_str().into()));
            } else if !source.cookie.is_empty() {
                compiled.push(Source::Cookie(source.cookie.as_str().into()));
            } else {
                report.error(&at, "no source", "set header, query or cookie");
            }
        }
        let forwarding = match forwarding {
            None => None,
            Some(f) if f.header.is_empty() => Some(Forwarding { header: None, hide: f.hide_credentials }),
            Some(f) => match HeaderName::from_bytes(f.header.as_bytes()) {
                Ok(name) => Some(Forwarding { header: Some(name), hide: f.hide_credentials }),
                Err(_) => {
                    report.error(&at.field("forwarding").field("header"), format!("\"{}\"", f.header), "give a valid header name");
                    None
                }
            },
        };
        let credentials = (!known.is_empty()).then_some(Credentials(known));
        (report.errors() == errors).then(|| Self { credentials, sources: compiled.into(), forwarding })
    }
}

impl Source {
    /// The key, if it is there and not empty. Of several headers of one name the first counts.
    fn key<'a>(&self, request: &'a RequestHead) -> Option<Cow<'a, [u8]>> {
        let key = match self {
            Self::Header(name) => {
                let value = request.headers.get(name)?.as_bytes();
                Cow::Borrowed(value.strip_prefix(b"Bearer ").unwrap_or(value))
            }
            Self::Query(name) => {
                let (_, value) = parameters(request.query()?).find(|(key, _)| query::decoded(key) == name.as_bytes())?;
                query::decoded(value)
            }
            Self::Cookie(name) => Cow::Borrowed(query::cookie(&request.headers, name)?.as_bytes()),
        };
        (!key.is_empty()).then_some(key)
    }
    fn remove(&self, request: &mut RequestHead) {
        match self {
            Self::Header(name) => {
                request.headers.remove(name);
            }
            Self::Query(name) => {
                let (path, Some(text)) = (request.path_only(), request.query()) else { return };
                let kept: Vec<&str> =
                    text.split('&').filter(|pair| query::decoded(pair.split('=').next().unwrap_or(pair)) != name.as_bytes()).collect();
                request.path = match kept.is_empty() {
                    true => path.into(),
                    false => format!("{path}?{}", kept.join("&")).into(),
                };
            }
            Self::Cookie(name) => {
                let pairs = request.headers.get_all(&header::COOKIE).filter_map(|v| std::str::from_utf8(v.as_bytes()).ok());
                let pairs = pairs.flat_map(|text| text.split(';')).map(str::trim);
                let kept: Vec<&str> = pairs.filter(|pair| !pair.is_empty() && pair.split('=').next() != Some(name)).collect();
                let kept = HeaderValue::from_str(&kept.join("; ")).ok().filter(|v| !v.is_empty());
                request.headers.remove(&header::COOKIE);
                if let Some(kept) = kept {
                    request.headers.append(header::COOKIE, kept);
                }
            }
        }
    }
}

fn parameters(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

#[derive(Debug)]
struct Filter {
    policy: Policy,
    allowed: Counter,
    unauthorized: Counter,
    forbidden: Counter,
}

impl HttpFilter for Filter {
    fn needs(&self) -> Needs {
        Needs::REQUEST_HEADERS
    }
    fn on_request<'a>(&'a self, cx: FilterCx<'a>) -> FilterAction<'a> {
        let route = cx.route_config::<PerRoute>();
        let own = route.as_deref().map(|r| &r.policy);
        let listener = &self.policy;
        let sources = own.map(|p| &*p.sources).filter(|s| !s.is_empty()).unwrap_or(&listener.sources);
        let credentials = own.and_then(|p| p.credentials.as_ref()).or(listener.credentials.as_ref());
        let forwarding = own.and_then(|p| p.forwarding.as_ref()).or(listener.forwarding.as_ref());
        let request = &mut cx.ex.request;
        if sources.is_empty() {
            return self.unauthorized("missing_key_sources");
        }
        let Some(credentials) = credentials else { return self.unauthorized("missing_credentials") };
        let Some(key) = sources.iter().find_map(|s| s.key(request)) else { return self.unauthorized("missing_api_key") };
        let Some(client) = credentials.0.get(&hash(&key)) else { return self.unauthorized("unknown_api_key") };
        if route.as_ref().is_some_and(|r| !r.allowed.is_empty() && !r.allowed.contains(&**client)) {
            self.forbidden.inc();
            return FilterAction::Respond(Box::new(LocalReply::new(403, "Client is forbidden.", "client_not_allowed")));
        }
        if let Some(forwarding) = forwarding {
            if let Some(name) = &forwarding.header {
                // Whatever the client's name is made of: nobody calls itself by another one.
                request.headers.remove(name);
                if let Ok(value) = HeaderValue::from_bytes(client.as_bytes()) {
                    request.headers.append(name.clone(), value);
                }
            }
            if forwarding.hide {
                sources.iter().for_each(|s| s.remove(request));
            }
        }
        self.allowed.inc();
        FilterAction::Continue
    }
}

impl Filter {
    fn unauthorized<'a>(&self, details: &'static str) -> FilterAction<'a> {
        self.unauthorized.inc();
        FilterAction::Respond(Box::new(LocalReply::new(401, "Client authentication failed.", details)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;
    use nuncio_core::test_kit::{self as kit, FakeRoute};

    fn credential(key: &str, client: &str) -> proto::Credential {
        proto::Credential { key: key.into(), client: client.into() }
    }
    fn sources() -> Vec<proto::KeySource> {
        let source = |header: &str, query: &str, cookie: &str| proto::KeySource {
            header: header.into(),
            query: query.into(),
            cookie: cookie.into(),
        };
        vec![source("x-key", "", ""), source("", "key", ""), source("", "", "key")]
    }
    fn config() -> proto::ApiKeyAuth {
        let forwarding = Some(proto::Forwarding { header: "x-client".into(), hide_credentials: true });
        proto::ApiKeyAuth {
            credentials: vec![credential("secret1", "one"), credential("secret2", "two")],
            key_sources: sources(),
            forwarding,
        }
    }
    async fn run(
        path: &str,
        fields: &[(&'static str, &'static str)],
        route: Option<proto::ApiKeyAuthPerRoute>,
    ) -> (Option<LocalReply>, nuncio_core::Exchange) {
        let server = kit::server(Default::default());
        let filter = kit::compile(&Factory, &config(), &server).unwrap();
        let mut ex = kit::exchange(RequestHead::new(Method::GET, "host", path));
        for (name, value) in fields {
            ex.request.headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        if let Some(route) = route {
            ex.route = Some(Arc::new(FakeRoute::new("r", "c").with("c", kit::compile_route(&Factory, &route, &server).unwrap())));
        }
        let reply = kit::request(&*filter, "c", &mut ex).await;
        (reply, ex)
    }

    #[tokio::test]
    async fn keys_are_found_and_hidden() {
        for (path, fields, client) in [
            ("/", vec![("x-key", "secret1")], Some("one")),
            ("/", vec![("x-key", "Bearer secret2")], Some("two")),
            ("/?a=1&key=secret%31&b=%20", vec![], Some("one")),
            ("/", vec![("cookie", "a=b; key=secret2; c=d")], Some("two")),
            ("/", vec![("x-key", "wrong"), ("x-key", "secret1")], None),
            ("/?key=wrong", vec![], None),
            ("/", vec![("x-key", "")], None),
            ("/", vec![("x-key", "secret1 ")], None),
        ] {
            let (reply, ex) = run(path, &fields, None).await;
            assert_eq!(reply.is_none(), client.is_some(), "{path} {fields:?}");
            assert_eq!(ex.request.headers.get_str(&HeaderName::from_static("x-client")), client);
            if client.is_some() {
                let shown = format!("{} {:?}", ex.request.path, ex.request.headers);
                assert!(!shown.contains("secret"), "{shown}");
            }
        }
        let (_, ex) = run("/?a=1&key=secret1&b=%20", &[("cookie", "a=b; key=x; c=d")], None).await;
        assert_eq!(ex.request.path, "/?a=1&b=%20");
        assert_eq!(ex.request.headers.get_str(&header::COOKIE), Some("a=b; c=d"));
    }

    #[tokio::test]
    async fn a_name_of_any_letters_replaces_what_the_client_says() {
        let own = proto::ApiKeyAuthPerRoute { credentials: vec![credential("other", "Zo\u{eb}")], ..Default::default() };
        let (reply, ex) = run("/", &[("x-key", "other"), ("x-client", "admin")], Some(own)).await;
        assert!(reply.is_none());
        let name = HeaderName::from_static("x-client");
        let said: Vec<_> = ex.request.headers.get_all(&name).map(HeaderValue::as_bytes).collect();
        assert_eq!(said, ["Zo\u{eb}".as_bytes()]);
    }

    #[tokio::test]
    async fn routes_restrict_and_replace() {
        let only = |client: &str| Some(proto::ApiKeyAuthPerRoute { allowed_clients: vec![client.into()], ..Default::default() });
        assert!(run("/", &[("x-key", "secret1")], only("one")).await.0.is_none());
        let reply = run("/", &[("x-key", "secret1")], only("two")).await.0.unwrap();
        assert_eq!((reply.status, reply.details.as_ref()), (403, "client_not_allowed"));
        let own = || Some(proto::ApiKeyAuthPerRoute { credentials: vec![credential("other", "three")], ..Default::default() });
        assert!(run("/", &[("x-key", "other")], own()).await.0.is_none());
        assert_eq!(run("/", &[("x-key", "secret1")], own()).await.0.unwrap().details, "unknown_api_key");
    }

    #[test]
    fn nothing_shows_a_key() {
        let server = kit::server(Default::default());
        let filter = kit::compile(&Factory, &config(), &server).unwrap();
        assert!(!format!("{filter:?}").contains("secret"));
        let twice = proto::ApiKeyAuth {
            credentials: vec![credential("secret1", "one"), credential("secret1", "two")],
            key_sources: sources(),
            forwarding: None,
        };
        let why = kit::compile(&Factory, &twice, &server).unwrap_err();
        assert!(why.contains("credentials[1].key") && !why.contains("secret"), "{why}");
    }
}
