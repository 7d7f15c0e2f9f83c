//! The HTTP authorization service: the request's head (and body, if configured) is sent to it, 200 allows. Compiled on the control
//! thread, called on workers. Source: `HttpService` in `ext_authz.proto`, Envoy's `RawHttpClientImpl`.

use super::check::{Attributes, PARTIAL_BODY, Sent};
use super::verdict::{Pair, Status, Verdict};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, header};
use nuncio_callout::{AddedHeaders, FetchOptions, HttpTarget, compile_retry, fetch};
use nuncio_core::diag::{At, Report};
use nuncio_core::registry::Server;
use nuncio_core::{ByteStr, Exchange, Headers, RequestHead, ResponseHead};
use nuncio_format::FormatContext;
use nuncio_matcher::StringMatcher;
use nuncio_matcher::string::any_matches;
use nuncio_proto::envoy::extensions::filters::http::ext_authz::v3::HttpService as Proto;
use nuncio_proto::envoy::r#type::matcher::v3::ListStringMatcher;
use prost_types::value::Kind;
use std::sync::Arc;

static HEADERS_TO_REMOVE: HeaderName = HeaderName::from_static("x-envoy-auth-headers-to-remove");
/// Largest answer that is taken; Envoy's limit is the cluster's buffer.
const MAX_ANSWER: usize = 1 << 20;

/// A compiled `HttpService`.
#[derive(Debug)]
pub struct HttpService {
    target: HttpTarget,
    options: FetchOptions,
    prefix: String,
    replaced: Option<String>,
    headers_to_add: AddedHeaders,
    upstream: Box<[StringMatcher]>,
    upstream_append: Box<[StringMatcher]>,
    /// Response headers of a denial that reach the client; none: all.
    client: Option<Box<[StringMatcher]>>,
    client_on_success: Box<[StringMatcher]>,
    metadata: Box<[StringMatcher]>,
}

/// Patterns of a list; an absent list has none.
pub fn patterns(list: Option<&ListStringMatcher>, at: &At<'_>, report: &mut Report) -> Option<Box<[StringMatcher]>> {
    StringMatcher::compile_list(list.map(|l| l.patterns.as_slice()).unwrap_or_default(), &at.field("patterns"), report)
}

fn with(list: Box<[StringMatcher]>, always: &[&str]) -> Box<[StringMatcher]> {
    list.into_iter().chain(always.iter().map(|name| StringMatcher::exact(name))).collect()
}

/// Headers that the service is always sent.
pub fn always_sent(list: Box<[StringMatcher]>) -> Box<[StringMatcher]> {
    with(list, &["authorization", ":method", ":path", ":authority"])
}

impl HttpService {
    pub fn compile(p: &Proto, server: &Arc<Server>, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let Some(uri) = &p.server_uri else {
            report.error(&at.field("server_uri"), "nothing", "name the authorization service");
            return None;
        };
        let target = HttpTarget::compile(uri, server, &at.field("server_uri"), report)?;
        // A policy that names no condition retries nothing.
        let retry = compile_retry(p.retry_policy.as_ref(), Some(""), server, &at.field("retry_policy"), report)?;
        for (name, path) in [("path_prefix", &p.path_prefix), ("path_override", &p.path_override)] {
            if !path.is_empty() && (!path.starts_with('/') || path.parse::<http::uri::PathAndQuery>().is_err()) {
                report.error(&at.field(name), format!("{path:?}"), "give a path that begins with /");
                return None;
            }
        }
        if !p.path_prefix.is_empty() && !p.path_override.is_empty() {
            report.error(&at.field("path_override"), "both path_prefix and path_override", "set one of them");
            return None;
        }
        let request = p.authorization_request.clone().unwrap_or_default();
        let response = p.authorization_response.clone().unwrap_or_default();
        let (at_request, at_response) = (at.field("authorization_request"), at.field("authorization_response"));
        let list =
            |list: &Option<ListStringMatcher>, name: &str, report: &mut Report| patterns(list.as_ref(), &at_response.field(name), report);
        let client = list(&response.allowed_client_headers, "allowed_client_headers", report)?;
        Some(Self {
            options: FetchOptions {
                timeout: Some(target.timeout).filter(|t| !t.is_zero()),
                max_body: MAX_ANSWER,
                retry,
                forwarded_for: false,
                ..FetchOptions::default()
            },
            target,
            prefix: p.path_prefix.clone(),
            replaced: Some(p.path_override.clone()).filter(|p| !p.is_empty()),
            headers_to_add: AddedHeaders::compile(&request.headers_to_add, &at_request.field("headers_to_add"), report)?,
            upstream: list(&response.allowed_upstream_headers, "allowed_upstream_headers", report)?,
            upstream_append: list(&response.allowed_upstream_headers_to_append, "allowed_upstream_headers_to_append", report)?,
            client_on_success: list(&response.allowed_client_headers_on_success, "allowed_client_headers_on_success", report)?,
            metadata: list(&response.dynamic_metadata_from_headers, "dynamic_metadata_from_headers", report)?,
            client: (!client.is_empty()).then(|| with(client, &[":status", "content-length", "www-authenticate", "location"])),
        })
    }

    /// Asks the service.
    pub async fn check(&self, ex: &Exchange, attributes: &Attributes, body: Option<&Sent>) -> Verdict {
        let head = self.request(ex, attributes, body);
        let data = body.map(|b| b.data.clone()).unwrap_or_default();
        match fetch(&self.target.slot, head, data, &self.options).await {
            Ok((head, body)) => self.verdict(head, body),
            Err(error) => {
                log::debug!(target: "ext_authz", "authorization service of cluster '{}': {error}", self.target.slot.name);
                Verdict::error()
            }
        }
    }

    fn request(&self, ex: &Exchange, attributes: &Attributes, body: Option<&Sent>) -> RequestHead {
        let mut head = RequestHead::new(Method::GET, self.target.authority.clone(), "/");
        head.headers.append(header::CONTENT_LENGTH, HeaderValue::from(body.map_or(0, |b| b.data.len())));
        head.scheme = self.target.scheme.clone();
        attributes.headers(&ex.request, |name, value| match name {
            ":method" => head.method = ex.request.method.clone(),
            ":path" => {}
            ":authority" => head.authority = ex.request.authority.clone(),
            ":scheme" => head.scheme = ex.request.scheme.clone(),
            // Set for what is really sent.
            "content-length" | "transfer-encoding" => {}
            _ => {
                if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(value)) {
                    head.headers.append(name, value);
                }
            }
        });
        head.path = match &self.replaced {
            Some(path) => path.as_str().into(),
            None if self.prefix.is_empty() => ex.request.path.clone(),
            None => ByteStr::from(format!("{}{}", self.prefix, ex.request.path)),
        };
        if let Some(body) = body {
            head.headers.insert(PARTIAL_BODY, HeaderValue::from_static(body.partial()));
        }
        self.headers_to_add.set(Some(&FormatContext::exchange(ex)), &mut head.headers);
        head
    }

    fn verdict(&self, mut head: ResponseHead, body: Bytes) -> Verdict {
        let code = head.status.as_u16();
        if code >= 500 {
            return Verdict::error();
        }
        let removed = removals(&head.headers);
        head.headers.retain(|name, _| *name != HEADERS_TO_REMOVE);
        let mut verdict = Verdict { code, over_http: true, ..Verdict::default() };
        let pick = |names: &[StringMatcher]| -> Vec<Pair> {
            let wanted = head.headers.iter().filter(|(name, _)| any_matches(names, name.as_str()));
            wanted.map(|(name, value)| (name.as_str().to_string(), Bytes::copy_from_slice(value.as_bytes()))).collect()
        };
        for (name, value) in pick(&self.metadata) {
            let value = nuncio_proto::Value { kind: Some(Kind::StringValue(String::from_utf8_lossy(&value).into_owned())) };
            verdict.metadata.fields.insert(name, value);
        }
        if code == 200 {
            verdict.status = Status::Ok;
            verdict.remove = removed;
            verdict.set = pick(&self.upstream);
            verdict.add = pick(&self.upstream_append);
            verdict.response.add = pick(&self.client_on_success);
            return verdict;
        }
        verdict.status = Status::Denied;
        verdict.set = match &self.client {
            Some(names) => pick(names),
            None => pick(&[StringMatcher::prefix("")]),
        };
        verdict.body = body;
        verdict
    }
}

/// Names that the service lists for removal.
fn removals(headers: &Headers) -> Vec<String> {
    let lists = headers.get_all(&HEADERS_TO_REMOVE).filter_map(|v| v.to_str().ok());
    lists.flat_map(|list| list.split(',')).map(str::trim).filter(|n| !n.is_empty()).map(str::to_string).collect()
}
