//! nuncio.filters.http.signed_url: lets a request through if its link was signed with a key that is known here and has not expired, and
//! if the page that links may do so. Compiled on the control thread, run on the workers.
//! Source: `nuncio/filters/http/signed_url/v1/signed_url.proto`, docs/filters/signed_url.md.

#[cfg(test)]
mod tests;

use crate::config::{decode, duration, stat_scope};
use crate::secret::Made;
use crate::signing::{self, Keys, name_of, only, sorted_query};
use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{Method, header};
use nuncio_core::diag::{At, Report};
use nuncio_core::filter::{FilterAction, FilterCx, HttpFilter, Needs};
use nuncio_core::registry::{FactoryCx, HttpFilterFactory};
use nuncio_core::stats::Counter;
use nuncio_core::{Address, ByteStr, Exchange, LocalReply, RequestHead};
use nuncio_matcher::{StringMatcher, string::any_matches};
use nuncio_proto::nuncio::filters::http::signed_url::v1 as proto;
use nuncio_proto::{Struct, Value};
use prost_types::value::Kind;
use std::any::Any;
use std::sync::Arc;

/// Name of the filter's dynamic metadata, which says `key_id` and `expires`.
pub const NAMESPACE: &str = "nuncio.signed_url";

/// Factory of `nuncio.filters.http.signed_url.v1.SignedUrl`.
#[derive(Debug)]
pub struct Factory;

impl HttpFilterFactory for Factory {
    fn name(&self) -> &'static str {
        "nuncio.filters.http.signed_url"
    }
    fn types(&self) -> &'static [&'static str] {
        &["nuncio.filters.http.signed_url.v1.SignedUrl"]
    }
    fn route_types(&self) -> &'static [&'static str] {
        &["nuncio.filters.http.signed_url.v1.SignedUrlPerRoute"]
    }
    fn compile(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn HttpFilter>> {
        let config: proto::SignedUrl = decode(config, at, cx.report)?;
        let keys = signing::keys(config.keys.iter().map(|k| (k.id.as_str(), k.secret.as_ref())), &at.field("keys"), cx.report)?;
        let mut names: Vec<Box<str>> = Vec::new();
        for (field, value, default) in [
            ("expires_parameter", &config.expires_parameter, "expires"),
            ("key_parameter", &config.key_parameter, "key_id"),
            ("signature_parameter", &config.signature_parameter, "signature"),
        ] {
            let name = if value.is_empty() { default } else { value.as_str() };
            let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
            if !plain || names.iter().any(|n| **n == *name) {
                cx.report.error(&at.field(field), format!("{name:?}"), "give three different names of letters, digits, - _ and .");
            }
            names.push(Box::from(name));
        }
        let max_lifetime = match &config.max_lifetime {
            Some(max) => Some(duration(max, &at.field("max_lifetime"), cx.report)?.as_secs()),
            None => None,
        };
        let referer = Referer::compile(config.referer.as_ref(), &at.field("referer"), cx.report)?;
        let scope = stat_scope(cx.scope, "signed_url", &config.stat_prefix);
        let names = <[Box<str>; 3]>::try_from(names).ok()?;
        (!cx.report.has_errors()).then(|| {
            Arc::new(Filter {
                keys,
                names,
                max_lifetime,
                bind: config.bind_client_address,
                referer,
                forward: config.forward,
                allowed: scope.counter("allowed"),
                denied: scope.counter("denied"),
                expired: scope.counter("expired"),
                referer_denied: scope.counter("referer_denied"),
            }) as Arc<dyn HttpFilter>
        })
    }
    fn compile_route(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn Any + Send + Sync>> {
        let config: proto::SignedUrlPerRoute = decode(config, at, cx.report)?;
        let referer = match &config.referer {
            Some(_) => Some(Referer::compile(config.referer.as_ref(), &at.field("referer"), cx.report)?),
            None => None,
        };
        Some(Arc::new(PerRoute { disabled: config.disabled, referer }))
    }
}

#[derive(Debug)]
struct PerRoute {
    disabled: bool,
    referer: Option<Referer>,
}

/// Which pages may link.
#[derive(Debug)]
struct Referer {
    /// Empty: all.
    hosts: Box<[StringMatcher]>,
    required: bool,
}

impl Referer {
    fn compile(proto: Option<&proto::Referer>, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let Some(proto) = proto else { return Some(Self { hosts: Box::default(), required: false }) };
        Some(Self { hosts: StringMatcher::compile_list(&proto.hosts, &at.field("hosts"), report)?, required: proto.required })
    }
    fn allows(&self, request: &RequestHead) -> bool {
        let mut values = request.headers.get_all(&header::REFERER);
        match (values.next(), values.next()) {
            (None, _) => !self.required,
            (Some(_), _) if self.hosts.is_empty() => true,
            (Some(value), None) => {
                value.to_str().ok().and_then(host).is_some_and(|host| any_matches(&self.hosts, host.to_ascii_lowercase()))
            }
            (Some(_), Some(_)) => false,
        }
    }
}

/// The host of an absolute URL, without user and port.
fn host(url: &str) -> Option<&str> {
    let (scheme, rest) = url.split_once("://")?;
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return None;
    }
    let authority = rest.split(['/', '?', '#', '\\']).next()?;
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    if host.starts_with('[') {
        return host.split_inclusive(']').next();
    }
    host.split(':').next()
}

#[derive(Debug)]
struct Filter {
    keys: Arc<Made<Keys>>,
    /// Of the parameters that say when it expires, the key, and the signature.
    names: [Box<str>; 3],
    /// Seconds.
    max_lifetime: Option<u64>,
    bind: bool,
    referer: Referer,
    forward: bool,
    allowed: Counter,
    denied: Counter,
    expired: Counter,
    referer_denied: Counter,
}

/// Why a request is refused: text and detail. The status is 403.
type Refusal = (&'static str, &'static str);

impl HttpFilter for Filter {
    fn needs(&self) -> Needs {
        Needs::REQUEST_HEADERS
    }
    fn on_request<'a>(&'a self, cx: FilterCx<'a>) -> FilterAction<'a> {
        let route = cx.route_config::<PerRoute>();
        if route.as_ref().is_some_and(|r| r.disabled) {
            return FilterAction::Continue;
        }
        let referer = route.as_ref().and_then(|r| r.referer.as_ref()).unwrap_or(&self.referer);
        let result = match referer.allows(&cx.ex.request) {
            true => self.verify(cx.ex),
            false => {
                self.referer_denied.inc();
                Err(("This page may not link here", "referer"))
            }
        };
        match result {
            Ok(()) => {
                self.allowed.inc();
                FilterAction::Continue
            }
            Err((text, detail)) => {
                self.denied.inc();
                FilterAction::Respond(Box::new(LocalReply::new(403, text, format!("signed_url_denied{{{detail}}}"))))
            }
        }
    }
}

impl Filter {
    fn verify(&self, ex: &mut Exchange) -> Result<(), Refusal> {
        const TWICE: Refusal = ("Link has a parameter twice", "parameter_twice");
        const BAD: &str = "Link is not valid";
        let query = ex.request.query().unwrap_or_default();
        let [expires_name, key_name, signature_name] = &self.names;
        let get = |name| only(query, name).map_err(|()| TWICE);
        let (expires, key_id, signature) = (get(expires_name)?, get(key_name)?, get(signature_name)?);
        let (Some(expires), Some(key_id), Some(signature)) = (expires, key_id, signature) else {
            return Err(("Link is not signed", "missing"));
        };
        let expires: u64 = expires.parse().map_err(|_| (BAD, "malformed"))?;
        let mac = URL_SAFE_NO_PAD.decode(signature.trim_end_matches('=')).map_err(|_| (BAD, "malformed"))?;
        let keys = self.keys.load();
        let [key, ..] = keys.1.get(key_id).ok_or((BAD, "unknown_key"))?;
        // Its address would be signed as none at all.
        if self.bind && !matches!(ex.info.remote, Address::Ip(_)) {
            return Err((BAD, "no_client_address"));
        }
        // Compares in constant time.
        let signed = canonical(&ex.request, signature_name, self.bind.then_some(&ex.info.remote));
        hmac::verify(key, signed.as_bytes(), &mac).map_err(|_| (BAD, "bad_signature"))?;
        let now = signing::now();
        if expires < now {
            self.expired.inc();
            return Err(("Link has expired", "expired"));
        }
        if self.max_lifetime.is_some_and(|max| expires - now > max) {
            return Err(("Link is valid for too long", "lifetime"));
        }
        let fields = [
            ("key_id".to_string(), Value { kind: Some(Kind::StringValue(key_id.to_string())) }),
            ("expires".to_string(), Value { kind: Some(Kind::NumberValue(expires as f64)) }),
        ];
        if !self.forward {
            let kept: Vec<&str> = query.split('&').filter(|pair| !self.names.iter().any(|n| **n == *name_of(pair))).collect();
            let path = ex.request.path_only();
            let path = if kept.is_empty() { path.to_string() } else { format!("{path}?{}", kept.join("&")) };
            ex.request.path = ByteStr::from(path);
        }
        ex.info.set_metadata(NAMESPACE, Struct { fields: fields.into() });
        Ok(())
    }
}

/// What is signed, line by line: method (HEAD counts as GET), host, path, sorted query without the signature, and the client's address.
fn canonical(request: &RequestHead, signature_name: &str, client: Option<&Address>) -> String {
    let method = if request.method == Method::HEAD { "GET" } else { request.method.as_str() };
    let host = request.authority.as_str().to_ascii_lowercase();
    let query = sorted_query(request.query().unwrap_or_default(), signature_name);
    let client = match client {
        Some(Address::Ip(address)) => address.ip().to_canonical().to_string(),
        Some(_) | None => String::new(),
    };
    format!("{method}\n{host}\n{}\n{query}\n{client}", request.path_only())
}
