//! envoy.filters.http.basic_auth: names and passwords in `authorization`, checked against htpasswd entries with SHA-1, which may come
//! from a watched file. What is compared is compared in constant time, and an unknown name costs what a wrong password costs.
//! Source: `envoy/extensions/filters/http/basic_auth/v3/basic_auth.proto`.

use crate::config::{BASE64, decode};
use crate::watched::Watched;
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine;
use http::{HeaderName, HeaderValue, header};
use nuncio_core::diag::{At, Report};
use nuncio_core::filter::{FilterAction, FilterCx, HttpFilter, Needs};
use nuncio_core::message::joined;
use nuncio_core::registry::{FactoryCx, HttpFilterFactory};
use nuncio_core::stats::Counter;
use nuncio_core::{LocalReply, RequestHead};
use nuncio_proto::envoy::config::core::v3::DataSource;
use nuncio_proto::envoy::extensions::filters::http::basic_auth::v3::{BasicAuth, BasicAuthPerRoute};
use nuncio_proto::{Struct, Value};
use prost_types::value::Kind;
use std::any::Any;
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

/// Most bytes of a file of users.
const MAX_FILE: usize = 16 << 20;
/// Base64 of 20 bytes of SHA-1.
const HASH: usize = 28;
/// Most bytes of the path that an answer quotes.
const MAX_PATH: usize = 256;
const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Factory of `envoy.extensions.filters.http.basic_auth.v3.BasicAuth`, per route `BasicAuthPerRoute`.
#[derive(Debug)]
pub struct Factory;

impl HttpFilterFactory for Factory {
    fn name(&self) -> &'static str {
        "envoy.filters.http.basic_auth"
    }
    fn types(&self) -> &'static [&'static str] {
        &["envoy.extensions.filters.http.basic_auth.v3.BasicAuth"]
    }
    fn route_types(&self) -> &'static [&'static str] {
        &["envoy.extensions.filters.http.basic_auth.v3.BasicAuthPerRoute"]
    }
    fn compile(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn HttpFilter>> {
        let config: BasicAuth = decode(config, at, cx.report)?;
        let policy = Policy::compile(config.users.as_ref(), &config.realm, at, cx.report)?;
        let authentication = header_name(&config.authentication_header, &at.field("authentication_header"), cx.report)?;
        let forward = header_name(&config.forward_username_header, &at.field("forward_username_header"), cx.report)?;
        let scope = cx.scope.scope("basic_auth.");
        Some(Arc::new(Filter {
            policy,
            authentication: authentication.unwrap_or(header::AUTHORIZATION),
            forward,
            allow_missing: config.allow_missing,
            metadata: config.emit_dynamic_metadata,
            allowed: scope.counter("allowed"),
            denied: scope.counter("denied"),
        }))
    }
    fn compile_route(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn Any + Send + Sync>> {
        let config: BasicAuthPerRoute = decode(config, at, cx.report)?;
        Some(Arc::new(Policy::compile(config.users.as_ref(), &config.realm, at, cx.report)?))
    }
}

/// The name of a header; the inner `None` means that none is given.
fn header_name(name: &str, at: &At<'_>, report: &mut Report) -> Option<Option<HeaderName>> {
    if name.is_empty() {
        return Some(None);
    }
    match HeaderName::from_bytes(name.as_bytes()) {
        Ok(name) => Some(Some(name)),
        Err(_) => {
            report.error(at, format!("\"{name}\""), "give a valid header name");
            None
        }
    }
}

/// Name and base64 of the password's SHA-1. Never printed.
type Users = HashMap<Vec<u8>, [u8; HASH]>;

/// Who may enter.
#[derive(Debug)]
struct Policy {
    users: Arc<Watched<Users>>,
    /// Empty for the listener's or, if that is empty too, for the request's URL.
    realm: Box<str>,
}

impl Policy {
    fn compile(users: Option<&DataSource>, realm: &str, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let at_users = at.field("users");
        let Some(users) = users else {
            report.error(&at_users, "nothing", "give htpasswd entries");
            return None;
        };
        let users = Watched::open(users, MAX_FILE, None, Box::new(read_users), &at_users, report)?;
        if HeaderValue::from_str(realm).is_err() {
            report.error(&at.field("realm"), "a control character", "give plain text");
            return None;
        }
        Some(Self { users, realm: realm.into() })
    }
    /// Whether `name` has this password.
    fn knows(&self, name: &[u8], password: &[u8]) -> bool {
        let users = self.users.load();
        let mut hash = [0; HASH];
        let digest = digest(&SHA1_FOR_LEGACY_USE_ONLY, password);
        if BASE64.encode_slice(digest.as_ref(), &mut hash).is_err() {
            return false;
        }
        // An unknown name is compared too, so that it takes as long.
        let (wanted, known) = users.get(name).map_or((&[0; HASH], false), |wanted| (wanted, true));
        verify_slices_are_equal(&hash, wanted).is_ok() && known
    }
}

/// Reads htpasswd lines. Errors name no user: the names are as secret as the file.
fn read_users(bytes: &[u8]) -> Result<Users, String> {
    let mut users = Users::new();
    for (number, line) in (1..).zip(bytes.split(|b| *b == b'\n')) {
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        let wrong = |what: &str| Err(format!("{what} in line {number}"));
        let Some(colon) = line.iter().position(|b| *b == b':') else { return wrong("an entry without a colon") };
        let (name, hash) = (line.get(..colon).unwrap_or_default(), line.get(colon + 1..).unwrap_or_default());
        if name.is_empty() || hash.is_empty() {
            return wrong("an empty name or password");
        }
        let Some(hash) = hash.strip_prefix(b"{SHA}") else { return wrong("a hash of another kind than {SHA}") };
        let Ok(hash) = <[u8; HASH]>::try_from(hash) else { return wrong("a hash of the wrong length") };
        if users.insert(name.to_vec(), hash).is_some() {
            return wrong("a name that was there before");
        }
    }
    Ok(users)
}

#[derive(Debug)]
struct Filter {
    policy: Policy,
    authentication: HeaderName,
    forward: Option<HeaderName>,
    allow_missing: bool,
    metadata: bool,
    allowed: Counter,
    denied: Counter,
}

impl HttpFilter for Filter {
    fn needs(&self) -> Needs {
        Needs::REQUEST_HEADERS
    }
    fn on_request<'a>(&'a self, cx: FilterCx<'a>) -> FilterAction<'a> {
        let route = cx.route_config::<Policy>();
        let policy = route.as_deref().unwrap_or(&self.policy);
        let ex = cx.ex;
        let sent = self.credentials(&ex.request);
        // Whoever says nothing, or something that is for another filter, may pass if that is allowed.
        if self.allow_missing && !sent.as_ref().is_some_and(|s| s.starts_with(b"Basic ")) {
            return FilterAction::Continue;
        }
        let Some(sent) = sent else {
            return self.refuse(policy, &ex.request, "Missing username and password.", "no_credential_for_basic_auth");
        };
        let Some(token) = sent.strip_prefix(b"Basic ") else {
            return self.refuse(policy, &ex.request, "Expected 'Basic' authentication scheme.", "invalid_scheme_for_basic_auth");
        };
        let decoded = BASE64.decode(token).unwrap_or_default();
        let Some(colon) = decoded.iter().position(|b| *b == b':') else {
            return self.refuse(policy, &ex.request, "Invalid basic credential format.", "invalid_format_for_basic_auth");
        };
        let (name, password) = (decoded.get(..colon).unwrap_or_default(), decoded.get(colon + 1..).unwrap_or_default());
        if !policy.knows(name, password) {
            return self.refuse(policy, &ex.request, "Invalid username/password combination.", "invalid_credential_for_basic_auth");
        }
        if let Some(forward) = &self.forward {
            ex.request.headers.remove(forward);
            if let Ok(value) = HeaderValue::from_bytes(name) {
                ex.request.headers.append(forward.clone(), value);
            }
        }
        if self.metadata {
            let name = Value { kind: Some(Kind::StringValue(String::from_utf8_lossy(name).into_owned())) };
            ex.info.set_metadata("envoy.filters.http.basic_auth", Struct { fields: [("username".to_string(), name)].into() });
        }
        self.allowed.inc();
        FilterAction::Continue
    }
}

impl Filter {
    /// `authorization` as Envoy sees it, joined if it came in several fields; of another header the first field.
    fn credentials<'a>(&self, request: &'a RequestHead) -> Option<Cow<'a, [u8]>> {
        if self.authentication == header::AUTHORIZATION {
            return joined(&request.headers, &self.authentication);
        }
        request.headers.get(&self.authentication).map(|v| Cow::Borrowed(v.as_bytes()))
    }
    fn refuse<'a>(&self, policy: &Policy, request: &RequestHead, text: &str, details: &'static str) -> FilterAction<'a> {
        self.denied.inc();
        let mut reply = LocalReply::new(401, format!("User authentication failed. {text}"), details);
        let realm = match (&*policy.realm, &*self.policy.realm) {
            ("", "") => url(request),
            ("", realm) | (realm, _) => realm.to_string(),
        };
        let quoted = realm.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("Basic realm=\"{quoted}\"")) {
            reply.headers.insert(header::WWW_AUTHENTICATE, value);
        }
        FilterAction::Respond(Box::new(reply))
    }
}

/// The URL that the client asked for, its path cut.
fn url(request: &RequestHead) -> String {
    let path = request.headers.get_str(&ORIGINAL_PATH).unwrap_or(&request.path);
    let cut = path.char_indices().map(|(i, c)| i + c.len_utf8()).take_while(|end| *end <= MAX_PATH).last().unwrap_or(0);
    let proto = request.headers.get_str(&FORWARDED_PROTO).unwrap_or_default();
    format!("{proto}://{}{}", request.authority, path.get(..cut).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;
    use nuncio_core::test_kit::{self as kit, FakeRoute};
    use nuncio_proto::envoy::config::core::v3::data_source::Specifier;

    // user1:test1, user2:test2
    const USERS: &str = "# comment\n\nuser1:{SHA}tESsBmE/yNY3lb6a0L6vVQEZNqw=\nuser2:{SHA}EJ9LPFDXsN9ynSmbxvjp75Bmlx8=\n";

    fn inline(text: &str) -> Option<DataSource> {
        Some(DataSource { specifier: Some(Specifier::InlineString(text.into())), ..Default::default() })
    }
    async fn run(config: &BasicAuth, fields: &[&str], route: Option<&BasicAuthPerRoute>) -> (Option<LocalReply>, nuncio_core::Exchange) {
        let server = kit::server(Default::default());
        let filter = kit::compile(&Factory, config, &server).unwrap();
        let mut ex = kit::exchange(RequestHead::new(Method::GET, "host", "/a?b"));
        for value in fields {
            ex.request.headers.append(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        }
        if let Some(route) = route {
            ex.route = Some(Arc::new(FakeRoute::new("r", "c").with("c", kit::compile_route(&Factory, route, &server).unwrap())));
        }
        let reply = kit::request(&*filter, "c", &mut ex).await;
        (reply, ex)
    }
    fn basic(text: &str) -> String {
        format!("Basic {}", BASE64.encode(text))
    }

    #[tokio::test]
    async fn names_and_passwords() {
        let config =
            BasicAuth { users: inline(USERS), forward_username_header: "x-user".into(), emit_dynamic_metadata: true, ..Default::default() };
        for (sent, details) in [
            (vec![basic("user1:test1")], None),
            (vec![basic("user2:test2").trim_end_matches('=').to_string()], None),
            (vec![basic("user1:test2")], Some("invalid_credential_for_basic_auth")),
            (vec![basic("nobody:test1")], Some("invalid_credential_for_basic_auth")),
            (vec![basic("user1:")], Some("invalid_credential_for_basic_auth")),
            (vec![basic("user1")], Some("invalid_format_for_basic_auth")),
            (vec!["Basic !".to_string()], Some("invalid_format_for_basic_auth")),
            (vec!["Bearer x".to_string()], Some("invalid_scheme_for_basic_auth")),
            // A second field makes both worthless.
            (vec![basic("user1:test1"), basic("user2:test2")], Some("invalid_format_for_basic_auth")),
            (vec![], Some("no_credential_for_basic_auth")),
        ] {
            let fields: Vec<&str> = sent.iter().map(String::as_str).collect();
            let (reply, ex) = run(&config, &fields, None).await;
            assert_eq!(reply.as_ref().map(|r| r.details.as_ref()), details, "{sent:?}");
            let user = ex.request.headers.get_str(&HeaderName::from_static("x-user"));
            assert_eq!(user.is_some(), details.is_none());
            match reply {
                Some(reply) => assert_eq!(reply.headers.get_str(&header::WWW_AUTHENTICATE), Some("Basic realm=\"://host/a?b\"")),
                None => assert!(ex.info.metadata("envoy.filters.http.basic_auth").is_some()),
            }
        }
        let lax = BasicAuth { allow_missing: true, ..config };
        assert!(run(&lax, &[], None).await.0.is_none());
        assert!(run(&lax, &["Bearer x"], None).await.0.is_none());
        assert!(run(&lax, &["Basic x"], None).await.0.is_some());
    }

    #[tokio::test]
    async fn routes_have_their_own_users() {
        let config = BasicAuth { users: inline(USERS), ..Default::default() };
        let route = BasicAuthPerRoute { users: inline("user1:{SHA}EJ9LPFDXsN9ynSmbxvjp75Bmlx8="), realm: "inner".into() };
        assert!(run(&config, &[&basic("user1:test2")], Some(&route)).await.0.is_none());
        let reply = run(&config, &[&basic("user1:test1")], Some(&route)).await.0.unwrap();
        assert_eq!(reply.headers.get_str(&header::WWW_AUTHENTICATE), Some("Basic realm=\"inner\""));
    }

    #[test]
    fn bad_files_are_refused_without_telling_them() {
        for text in [
            "secret",
            "secret:",
            ":secret",
            "secret:{MD5}x",
            "secret:{SHA}short",
            "secret:plain",
            &format!("{USERS}user1:{{SHA}}tESsBmE/yNY3lb6a0L6vVQEZNqw="),
        ] {
            let config = BasicAuth { users: inline(text), ..Default::default() };
            let why = kit::compile(&Factory, &config, &kit::server(Default::default())).unwrap_err();
            assert!(why.starts_with("users: ") && !why.contains("secret") && !why.contains("user1"), "{why}");
        }
        let config = BasicAuth { users: inline(USERS), ..Default::default() };
        let filter = kit::compile(&Factory, &config, &kit::server(Default::default())).unwrap();
        assert!(!format!("{filter:?}").contains("user1"));
    }
}
