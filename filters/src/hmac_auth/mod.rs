//! nuncio.filters.http.hmac_auth: verifies that a request was signed with a key that is known here: method, path, query, headers and
//! body, at about this time, and never seen before. Compiled on the control thread, run on the workers.
//! Source: `nuncio/filters/http/hmac_auth/v1/hmac_auth.proto`, docs/filters/hmac_auth.md.

mod replay;
mod signature;
#[cfg(test)]
mod tests;

use crate::config::{decode, duration, stat_scope};
use crate::secret::Made;
use crate::shared::Shared;
use crate::signing::{self, Keys};
use crate::whole::{Collected, broken, collect_request, too_long};
use aws_lc_rs::hmac;
use http::{HeaderName, HeaderValue, header};
use nuncio_core::diag::At;
use nuncio_core::filter::{FilterAction, FilterCx, HttpFilter, Needs, Outcome};
use nuncio_core::registry::{FactoryCx, HttpFilterFactory};
use nuncio_core::stats::Counter;
use nuncio_core::{Exchange, LocalReply};
use nuncio_proto::nuncio::filters::http::hmac_auth::v1::{HmacAuth, HmacAuthPerRoute, hmac_auth};
use nuncio_proto::{Struct, Value};
use prost_types::value::Kind;
use replay::{Nonce, Replay};
use signature::Signature;
use std::any::Any;
use std::sync::Arc;

/// Name of the filter's dynamic metadata, which says `key_id` and `algorithm`.
pub const NAMESPACE: &str = "nuncio.hmac_auth";
const WINDOW: u64 = 300;
const MAX_WINDOW: u64 = 86_400;
const MAX_NONCES: u32 = 100_000;
const MAX_BODY: u32 = 1024 * 1024;

/// Nonces by the keys that they belong to.
static NONCES: Shared<Replay> = Shared::new();

/// Factory of `nuncio.filters.http.hmac_auth.v1.HmacAuth`.
#[derive(Debug)]
pub struct Factory;

impl HttpFilterFactory for Factory {
    fn name(&self) -> &'static str {
        "nuncio.filters.http.hmac_auth"
    }
    fn types(&self) -> &'static [&'static str] {
        &["nuncio.filters.http.hmac_auth.v1.HmacAuth"]
    }
    fn route_types(&self) -> &'static [&'static str] {
        &["nuncio.filters.http.hmac_auth.v1.HmacAuthPerRoute"]
    }
    fn compile(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn HttpFilter>> {
        let config: HmacAuth = decode(config, at, cx.report)?;
        let keys = signing::keys(config.keys.iter().map(|k| (k.id.as_str(), k.secret.as_ref())), &at.field("keys"), cx.report)?;
        let mut algorithms = [config.algorithms.is_empty(); 3];
        for algorithm in &config.algorithms {
            match usize::try_from(*algorithm).ok().and_then(|a| algorithms.get_mut(a)) {
                Some(allowed) => *allowed = true,
                None => cx.report.error(&at.field("algorithms"), algorithm.to_string(), "name HMAC_SHA256, HMAC_SHA384 or HMAC_SHA512"),
            }
        }
        let (mut required, list) = (Vec::new(), at.field("required_headers"));
        for (i, name) in config.required_headers.iter().enumerate() {
            match HeaderName::from_bytes(name.to_ascii_lowercase().as_bytes()) {
                Ok(name) if name != header::AUTHORIZATION => required.push(name),
                _ => cx.report.error(&list.index(i), format!("{name:?}"), "name a header other than authorization"),
            }
        }
        let window_at = at.field("window");
        let window = match &config.window {
            Some(window) => duration(window, &window_at, cx.report)?.as_secs(),
            None => WINDOW,
        };
        if !(1..=MAX_WINDOW).contains(&window) {
            cx.report.error(&window_at, format!("{window} s"), "give from one second to one day");
        }
        let body_at = at.field("body");
        let max_body = match hmac_auth::Body::try_from(config.body) {
            Ok(hmac_auth::Body::Signed) => Some(config.max_body_bytes.unwrap_or(MAX_BODY) as usize),
            Ok(hmac_auth::Body::Unsigned) => None,
            Err(_) => {
                cx.report.error(&body_at, config.body.to_string(), "say SIGNED or UNSIGNED");
                None
            }
        };
        let scope = stat_scope(cx.scope, "hmac_auth", &config.stat_prefix);
        // A signature may come a window early, and is good until a window after its time.
        let replay = config.replay.map(|r| {
            let (nonces, keep) = (r.max_nonces.unwrap_or(MAX_NONCES).max(1) as usize, window * 2 + 1);
            let ids: Vec<&str> = config.keys.iter().map(|k| k.id.as_str()).collect();
            // An update of the configuration forgets no nonce.
            NONCES.get(format!("{nonces} {keep} {}", ids.join(" ")), || Replay::new(&ids, nonces, keep))
        });
        (!cx.report.has_errors()).then(|| {
            Arc::new(Filter {
                keys,
                algorithms,
                required: required.into(),
                window,
                replay,
                max_body,
                allow_missing: config.allow_missing,
                forward: config.forward,
                allowed: scope.counter("allowed"),
                missing: scope.counter("missing"),
                denied: scope.counter("denied"),
                replayed: scope.counter("replayed"),
            }) as Arc<dyn HttpFilter>
        })
    }
    fn compile_route(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn Any + Send + Sync>> {
        let config: HmacAuthPerRoute = decode(config, at, cx.report)?;
        Some(Arc::new(PerRoute { disabled: config.disabled, keys: config.allow_keys.into() }))
    }
}

#[derive(Debug)]
struct PerRoute {
    disabled: bool,
    /// Keys that may sign; empty: all.
    keys: Box<[String]>,
}

#[derive(Debug)]
struct Filter {
    keys: Arc<Made<Keys>>,
    /// Which of [`signing::HASHES`] are allowed.
    algorithms: [bool; 3],
    required: Box<[HeaderName]>,
    /// Seconds.
    window: u64,
    replay: Option<Arc<Replay>>,
    /// Bytes; none if the body is not signed.
    max_body: Option<usize>,
    allow_missing: bool,
    forward: bool,
    allowed: Counter,
    missing: Counter,
    denied: Counter,
    replayed: Counter,
}

/// Why a request is refused: status, text and detail.
type Refusal = (u16, &'static str, &'static str);

const BAD: &str = "Signature is not valid";

impl HttpFilter for Filter {
    fn needs(&self) -> Needs {
        Needs::REQUEST_HEADERS
    }
    fn on_request<'a>(&'a self, cx: FilterCx<'a>) -> FilterAction<'a> {
        let route = cx.route_config::<PerRoute>();
        if route.as_ref().is_some_and(|r| r.disabled) {
            return FilterAction::Continue;
        }
        let ex = cx.ex;
        let signature = match Signature::parse(&ex.request.headers) {
            Ok(Some(signature)) => signature,
            Ok(None) => {
                self.missing.inc();
                if self.allow_missing {
                    return FilterAction::Continue;
                }
                return self.refuse((401, "Signature is missing", "missing"));
            }
            Err(()) => return self.refuse((401, "Signature cannot be read", "malformed")),
        };
        if let Err(refusal) = self.check(&signature, route.as_deref()) {
            return self.refuse(refusal);
        }
        let Some(max) = self.max_body else {
            return match self.verify(&signature, None, ex) {
                Ok(()) => FilterAction::Continue,
                Err(refusal) => self.refuse(refusal),
            };
        };
        if ex.request_body.is_end() {
            return match self.verify(&signature, Some(&[]), ex) {
                Ok(()) => FilterAction::Continue,
                Err(refusal) => self.refuse(refusal),
            };
        }
        FilterAction::Await(Box::pin(async move {
            let body = match collect_request(ex, max, false).await {
                Collected::Whole(body, _) => body,
                Collected::TooLong | Collected::Part(..) => return Outcome::Respond(too_long()),
                Collected::Failed => {
                    self.denied.inc();
                    return Outcome::Respond(broken());
                }
            };
            match self.verify(&signature, Some(&body), ex) {
                Ok(()) => Outcome::Continue,
                Err(refusal) => Outcome::Respond(self.reply(refusal)),
            }
        }))
    }
}

impl Filter {
    /// What can be said before the body is there, and without secrets.
    fn check(&self, signature: &Signature, route: Option<&PerRoute>) -> Result<(), Refusal> {
        if self.algorithms.get(signature.algorithm) != Some(&true) {
            return Err((401, BAD, "algorithm_not_allowed"));
        }
        if self.required.iter().any(|name| !signature.headers.contains(name)) {
            return Err((401, "Signature does not cover a required header", "header_not_signed"));
        }
        self.current(signature)?;
        if self.replay.is_some() && signature.nonce.is_empty() {
            return Err((401, "Signature has no nonce", "no_nonce"));
        }
        if route.is_some_and(|r| !r.keys.is_empty() && !r.keys.contains(&signature.key_id)) {
            return Err((403, "Key is not allowed here", "key_not_allowed"));
        }
        Ok(())
    }
    fn current(&self, signature: &Signature) -> Result<(), Refusal> {
        match signing::now().abs_diff(signature.timestamp) > self.window {
            true => Err((401, "Signature has expired", "expired")),
            false => Ok(()),
        }
    }
    fn verify(&self, signature: &Signature, body: Option<&[u8]>, ex: &mut Exchange) -> Result<(), Refusal> {
        let keys = self.keys.load();
        let key = keys.1.get(signature.key_id.as_str()).and_then(|forms| forms.get(signature.algorithm));
        let signed = signature.canonical(&ex.request, body);
        match key {
            // Compares in constant time.
            Some(key) if hmac::verify(key, &signed, &signature.mac).is_ok() => {}
            Some(_) => return Err((401, BAD, "bad_signature")),
            None => return Err((401, BAD, "unknown_key")),
        }
        // Once more: a body may take its time, but not until its nonce is forgotten.
        self.current(signature)?;
        // Only now, so that nobody without a key can fill the store.
        if let Some(replay) = &self.replay {
            match replay.take(&signature.key_id, &signature.nonce, signing::now()) {
                Nonce::New => {}
                Nonce::Used => {
                    self.replayed.inc();
                    return Err((401, "Signature was used before", "replayed"));
                }
                Nonce::Full => return Err((503, "Too many signed requests", "nonces_full")),
            }
        }
        if !self.forward {
            ex.request.headers.remove(&header::AUTHORIZATION);
        }
        let value = |text: &str| Value { kind: Some(Kind::StringValue(text.to_string())) };
        let fields = [("key_id".to_string(), value(&signature.key_id)), ("algorithm".to_string(), value(signature.scheme()))];
        ex.info.set_metadata(NAMESPACE, Struct { fields: fields.into() });
        self.allowed.inc();
        Ok(())
    }
    fn refuse(&self, refusal: Refusal) -> FilterAction<'static> {
        FilterAction::Respond(self.reply(refusal))
    }
    fn reply(&self, (status, text, detail): Refusal) -> Box<LocalReply> {
        self.denied.inc();
        let mut reply = LocalReply::new(status, text, format!("hmac_auth_denied{{{detail}}}"));
        if status == 401 {
            reply.headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(signature::SCHEMES[0]));
        }
        Box::new(reply)
    }
}
