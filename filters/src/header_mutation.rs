//! envoy.filters.http.header_mutation: adds, changes and removes headers, query parameters and response trailers, for a listener
//! and for routes. Source: `envoy/extensions/filters/http/header_mutation/v3/header_mutation.proto`.

use crate::config::decode;
use nuncio_core::diag::{At, Report};
use nuncio_core::filter::{FilterAction, FilterCx, HttpFilter, Needs};
use nuncio_core::registry::{FactoryCx, HttpFilterFactory};
use nuncio_core::views::PerFilterConfig;
use nuncio_core::{Body, BodySource, Exchange, Frame, Headers, StreamError};
use nuncio_format::{FormatContext, Formatter};
use nuncio_proto::envoy::config::core::v3::KeyValueMutation;
use nuncio_proto::envoy::config::core::v3::key_value_append::KeyValueAppendAction as Append;
use nuncio_proto::envoy::extensions::filters::http::header_mutation::v3 as proto;
use nuncio_proto::typed;
use nuncio_route::HeaderMutations;
use prost_types::value::Kind;
use smallvec::SmallVec;
use std::any::Any;
use std::fmt::Write;
use std::sync::Arc;
use std::task::{Context, Poll};

/// Factory of `envoy.extensions.filters.http.header_mutation.v3.HeaderMutation`, per route `HeaderMutationPerRoute`.
#[derive(Debug)]
pub struct Factory;

impl HttpFilterFactory for Factory {
    fn name(&self) -> &'static str {
        "envoy.filters.http.header_mutation"
    }
    fn types(&self) -> &'static [&'static str] {
        &["envoy.extensions.filters.http.header_mutation.v3.HeaderMutation"]
    }
    fn route_types(&self) -> &'static [&'static str] {
        &["envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute"]
    }
    fn compile(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn HttpFilter>> {
        let config: proto::HeaderMutation = decode(config, at, cx.report)?;
        let mutations = Mutations::compile(&config.mutations.unwrap_or_default(), &at.field("mutations"), cx.report)?;
        Some(Arc::new(Filter { mutations, most_specific_wins: config.most_specific_header_mutations_wins }))
    }
    fn compile_route(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn Any + Send + Sync>> {
        let config: proto::HeaderMutationPerRoute = decode(config, at, cx.report)?;
        Some(Arc::new(Mutations::compile(&config.mutations.unwrap_or_default(), &at.field("mutations"), cx.report)?))
    }
}

#[derive(Debug)]
struct Filter {
    mutations: Mutations,
    most_specific_wins: bool,
}

#[derive(Debug)]
struct Mutations {
    request: HeaderMutations,
    query: Vec<QueryMutation>,
    request_trailers: HeaderMutations,
    response: HeaderMutations,
    trailers: HeaderMutations,
}

/// Formatter extensions whose operators every format has.
const BUILT_IN: [&str; 2] = ["envoy.extensions.formatter.metadata.v3.Metadata", "envoy.extensions.formatter.cel.v3.Cel"];

#[derive(Debug)]
enum QueryMutation {
    Remove(String),
    Set(String, Formatter, Append),
}

impl Mutations {
    fn compile(p: &proto::Mutations, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let errors = report.errors();
        let formatters = at.field("formatters");
        for (i, formatter) in p.formatters.iter().enumerate() {
            let at = formatters.index(i);
            match formatter.typed_config.as_ref().map(typed::unpack) {
                // Their operators are built in.
                Some(Ok(found)) if BUILT_IN.contains(&found.name.as_ref()) => {}
                Some(Ok(found)) => report.unsupported(&at, format_args!("formatter {:?} ({})", formatter.name, found.name)),
                Some(Err(why)) => report.error(&at, why, "correct the typed_config"),
                None => report.error(&at, format!("formatter {:?} without typed_config", formatter.name), "give its configuration"),
            }
        }
        let request = HeaderMutations::compile(&p.request_mutations, &at.field("request_mutations"), report);
        let request_trailers = HeaderMutations::compile(&p.request_trailers_mutations, &at.field("request_trailers_mutations"), report);
        let response = HeaderMutations::compile(&p.response_mutations, &at.field("response_mutations"), report);
        let trailers = HeaderMutations::compile(&p.response_trailers_mutations, &at.field("response_trailers_mutations"), report);
        let parameters = at.field("query_parameter_mutations");
        let each = p.query_parameter_mutations.iter().enumerate();
        let query = each.filter_map(|(i, m)| QueryMutation::compile(m, &parameters.index(i), report)).collect();
        if report.errors() != errors {
            return None;
        }
        Some(Self { request: request?, query, request_trailers: request_trailers?, response: response?, trailers: trailers? })
    }
    fn request(&self, ex: &mut Exchange) {
        if !self.request.is_empty() {
            self.request.apply_request(&mut ex.request, &ex.info, ex.route.as_deref());
        }
        if !self.query.is_empty() && !ex.request.path.is_empty() {
            let path = change_query(&self.query, ex);
            ex.request.path = path.into();
        }
    }
}

impl QueryMutation {
    #[allow(deprecated)]
    fn compile(p: &KeyValueMutation, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let Some(append) = &p.append else {
            if p.remove.is_empty() {
                report.error(at, "no mutation", "set append or remove");
                return None;
            }
            return Some(Self::Remove(p.remove.clone()));
        };
        let at = at.field("append");
        let Ok(action) = Append::try_from(append.action) else {
            report.error(&at.field("action"), append.action.to_string(), "use a value of KeyValueAppendAction");
            return None;
        };
        let record = match (&append.record, &append.entry) {
            (Some(record), _) => match record.value.as_ref().and_then(|v| v.kind.as_ref()) {
                Some(Kind::StringValue(text)) => Some((record.key.clone(), text.clone())),
                _ => None,
            },
            (None, Some(entry)) => String::from_utf8(entry.value.to_vec()).ok().map(|text| (entry.key.clone(), text)),
            (None, None) => None,
        };
        let Some((key, text)) = record else {
            report.error(&at.field("record"), "no key with a string value", "set record to a key and a string");
            return None;
        };
        let format = Formatter::header(&text, &at.field("record"), report)?;
        Some(Self::Set(key, format, action))
    }
}

/// The path with its query changed. Parameters that nothing touches stay as they were written.
fn change_query(mutations: &[QueryMutation], ex: &Exchange) -> String {
    let original = ex.request.path.as_str();
    let query = ex.request.query().unwrap_or_default();
    let mut pairs: Vec<(String, String)> = query.split('&').filter(|p| !p.is_empty()).map(|p| (name(p), p.to_string())).collect();
    for mutation in mutations {
        match mutation {
            QueryMutation::Remove(key) => pairs.retain(|(k, _)| k != key),
            QueryMutation::Set(key, format, action) => {
                let exists = pairs.iter().any(|(k, _)| k == key);
                match action {
                    Append::AddIfAbsent if exists => continue,
                    Append::OverwriteIfExists if !exists => continue,
                    _ => {}
                }
                let mut value = String::new();
                format.format(&FormatContext::exchange(ex), &mut value);
                let pair = format!("{}={}", encode(key), encode(&value));
                if matches!(action, Append::OverwriteIfExists | Append::OverwriteIfExistsOrAdd)
                    && let Some(at) = pairs.iter().position(|(k, _)| k == key)
                {
                    let mut index = 0;
                    pairs.retain(|(k, _)| {
                        index += 1;
                        index <= at + 1 || k != key
                    });
                    if let Some(first) = pairs.get_mut(at) {
                        first.1 = pair;
                    }
                } else {
                    pairs.push((key.clone(), pair));
                }
            }
        }
    }
    let mut out = original.split(['?', '#']).next().unwrap_or(original).to_string();
    for (i, (_, pair)) in pairs.iter().enumerate() {
        out.push(if i == 0 { '?' } else { '&' });
        out.push_str(pair);
    }
    out
}

/// The decoded name of a raw pair.
fn name(pair: &str) -> String {
    let raw = pair.split('=').next().unwrap_or(pair).as_bytes();
    let mut out = Vec::with_capacity(raw.len());
    let mut i = 0;
    while let Some(byte) = raw.get(i) {
        let decoded = raw
            .get(i + 1..i + 3)
            .filter(|_| *byte == b'%')
            .and_then(|h| std::str::from_utf8(h).ok())
            .and_then(|h| u8::from_str_radix(h, 16).ok());
        out.push(decoded.unwrap_or(*byte));
        i += if decoded.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Percent-encodes all but unreserved characters.
fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

impl Filter {
    /// The listener's mutations, then those of routes: the most specific last if it is to win, else first.
    fn each(&self, cx: &mut FilterCx<'_>, mut apply: impl FnMut(&Mutations, &mut Exchange)) {
        apply(&self.mutations, cx.ex);
        let mut routes: SmallVec<[Arc<Mutations>; 3]> = SmallVec::new();
        if let Some(route) = &cx.ex.route {
            route.filter_configs(cx.name, &mut |config| {
                if let PerFilterConfig::Config(any) = config
                    && let Ok(mutations) = any.clone().downcast::<Mutations>()
                {
                    routes.push(mutations);
                }
            });
        }
        if !self.most_specific_wins {
            routes.reverse();
        }
        for mutations in &routes {
            apply(mutations, cx.ex);
        }
    }
}

/// A request's body whose trailers, if it has some, are changed.
struct WithTrailers {
    inner: Body,
    mutations: SmallVec<[HeaderMutations; 1]>,
}

impl BodySource for WithTrailers {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        let mut frame = std::task::ready!(self.inner.poll_frame(cx));
        if let Some(Ok(Frame::Trailers(trailers))) = &mut frame {
            self.mutations.iter().for_each(|m| m.apply_resolved(trailers));
        }
        Poll::Ready(frame)
    }
    fn remaining(&self) -> Option<u64> {
        self.inner.remaining()
    }
    fn is_end(&self) -> bool {
        self.inner.is_end()
    }
    fn inner(&mut self) -> Option<&mut Body> {
        Some(&mut self.inner)
    }
}

impl HttpFilter for Filter {
    fn needs(&self) -> Needs {
        Needs::REQUEST_HEADERS.and(Needs::RESPONSE_HEADERS).and(Needs::RESPONSE_TRAILERS)
    }
    fn on_request<'a>(&'a self, mut cx: FilterCx<'a>) -> FilterAction<'a> {
        let mut trailers: SmallVec<[HeaderMutations; 1]> = SmallVec::new();
        self.each(&mut cx, |mutations, ex| {
            mutations.request(ex);
            if !mutations.request_trailers.is_empty() && !ex.request_body.is_end() {
                trailers.push(mutations.request_trailers.resolved(&FormatContext::exchange(ex)));
            }
        });
        if !trailers.is_empty() {
            let inner = std::mem::take(&mut cx.ex.request_body);
            cx.ex.request_body = Body::Stream(Box::new(WithTrailers { inner, mutations: trailers }));
        }
        FilterAction::Continue
    }
    fn on_response(&self, mut cx: FilterCx<'_>) {
        self.each(&mut cx, |mutations, ex| {
            if let Some(response) = &mut ex.response {
                mutations.response.apply_response(response, Some(&ex.request), &ex.info, ex.route.as_deref());
            }
        });
    }
    fn on_response_trailers(&self, mut cx: FilterCx<'_>, trailers: &mut Headers) {
        self.each(&mut cx, |mutations, ex| {
            if !mutations.trailers.is_empty() {
                mutations.trailers.apply(trailers, &FormatContext::exchange(ex));
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, Method, StatusCode};
    use nuncio_core::test_kit::{self as kit, FakeRoute};
    use nuncio_core::{RequestHead, ResponseHead};
    use nuncio_proto::envoy::config::common::mutation_rules::v3::{HeaderMutation, header_mutation::Action};
    use nuncio_proto::envoy::config::core::v3::header_value_option::HeaderAppendAction;
    use nuncio_proto::envoy::config::core::v3::{HeaderValue, HeaderValueOption, KeyValueAppend, KeyValuePair, TypedExtensionConfig};

    fn set(key: &str, value: &str) -> HeaderMutation {
        let header = Some(HeaderValue { key: key.into(), value: value.into(), ..Default::default() });
        let append_action = HeaderAppendAction::OverwriteIfExistsOrAdd.into();
        HeaderMutation { action: Some(Action::Append(HeaderValueOption { header, append_action, ..Default::default() })) }
    }
    fn query(key: &str, value: &str, action: Append) -> KeyValueMutation {
        let record = Some(KeyValuePair { key: key.into(), value: Some(kit::text(value)) });
        KeyValueMutation { append: Some(KeyValueAppend { record, action: action.into(), ..Default::default() }), remove: String::new() }
    }
    fn request_header(value: &str) -> proto::Mutations {
        proto::Mutations { request_mutations: vec![set("x-a", value)], ..Default::default() }
    }

    #[test]
    fn formatters_whose_operators_are_built_in_are_taken() {
        let server = kit::server(Default::default());
        let compile = |kind: &str| {
            let any = prost_types::Any { type_url: format!("type.googleapis.com/envoy.extensions.formatter.{kind}"), value: Vec::new() };
            let formatter = TypedExtensionConfig { name: "f".into(), typed_config: Some(any) };
            let mutations = proto::Mutations { formatters: vec![formatter], ..request_header("%METADATA(ROUTE:a:b)%") };
            kit::compile(&Factory, &proto::HeaderMutation { mutations: Some(mutations), ..Default::default() }, &server).err()
        };
        assert_eq!((compile("metadata.v3.Metadata"), compile("cel.v3.Cel")), (None, None));
        assert!(compile("req_without_query.v3.ReqWithoutQuery").is_some_and(|e| e.contains("ReqWithoutQuery")));
    }

    #[tokio::test]
    async fn headers_and_trailers() {
        let mutations = proto::Mutations {
            request_mutations: vec![set("x-a", "1"), HeaderMutation { action: Some(Action::Remove("x-b".into())) }],
            response_mutations: vec![set("x-r", "2")],
            response_trailers_mutations: vec![set("x-t", "3")],
            ..Default::default()
        };
        let config = proto::HeaderMutation { mutations: Some(mutations), ..Default::default() };
        let filter = kit::compile(&Factory, &config, &kit::server(Default::default())).unwrap();
        let mut ex = kit::exchange(RequestHead::new(Method::GET, "shop", "/"));
        ex.request.headers.append(HeaderName::from_static("x-b"), http::HeaderValue::from_static("gone"));
        kit::request(&*filter, "h", &mut ex).await;
        assert_eq!(ex.request.headers.len(), 1);
        assert_eq!(ex.request.headers.get_str(&HeaderName::from_static("x-a")), Some("1"));
        kit::respond(&*filter, "h", &mut ex, ResponseHead::new(StatusCode::OK), Body::Empty);
        assert_eq!(ex.response.as_ref().unwrap().headers.get_str(&HeaderName::from_static("x-r")), Some("2"));
        let mut trailers = Headers::new();
        kit::trailers(&*filter, "h", &mut ex, &mut trailers);
        assert_eq!(trailers.get_str(&HeaderName::from_static("x-t")), Some("3"));
    }

    #[tokio::test]
    async fn routes_in_the_order_asked_for() {
        let server = kit::server(Default::default());
        for (wins, value) in [(false, "vhost"), (true, "route")] {
            let config = proto::HeaderMutation { mutations: Some(request_header("listener")), most_specific_header_mutations_wins: wins };
            let filter = kit::compile(&Factory, &config, &server).unwrap();
            let route = ["vhost", "route"].iter().fold(FakeRoute::new("r", "c"), |route, value| {
                let config = proto::HeaderMutationPerRoute { mutations: Some(request_header(value)) };
                route.with("h", kit::compile_route(&Factory, &config, &server).unwrap())
            });
            let mut ex = kit::exchange(RequestHead::new(Method::GET, "shop", "/"));
            ex.route = Some(Arc::new(route));
            kit::request(&*filter, "h", &mut ex).await;
            assert_eq!(ex.request.headers.get_str(&HeaderName::from_static("x-a")), Some(value));
        }
    }

    #[tokio::test]
    async fn query_parameters() {
        for (path, mutation, expected) in [
            ("/p", query("a", "x y", Append::AppendIfExistsOrAdd), "/p?a=x%20y"),
            ("/p?a=1&b=%20", query("a", "2", Append::AppendIfExistsOrAdd), "/p?a=1&b=%20&a=2"),
            ("/p?a=1&b=2&a=3#f", query("a", "9", Append::OverwriteIfExistsOrAdd), "/p?a=9&b=2"),
            ("/p?b=2", query("a", "9", Append::OverwriteIfExists), "/p?b=2"),
            ("/p?%61=2", query("a", "9", Append::AddIfAbsent), "/p?%61=2"),
            ("/p?a=1&b&a", KeyValueMutation { append: None, remove: "a".into() }, "/p?b"),
        ] {
            let mutations = proto::Mutations { query_parameter_mutations: vec![mutation], ..Default::default() };
            let config = proto::HeaderMutation { mutations: Some(mutations), ..Default::default() };
            let filter = kit::compile(&Factory, &config, &kit::server(Default::default())).unwrap();
            let mut ex = kit::exchange(RequestHead::new(Method::GET, "shop", path));
            kit::request(&*filter, "h", &mut ex).await;
            assert_eq!(ex.request.path.as_str(), expected);
        }
    }

    #[test]
    fn refused() {
        let mutations = proto::Mutations { query_parameter_mutations: vec![Default::default()], ..Default::default() };
        let config = proto::HeaderMutation { mutations: Some(mutations), ..Default::default() };
        let error = kit::compile(&Factory, &config, &kit::server(Default::default())).unwrap_err();
        assert!(error.contains("query_parameter_mutations[0]"), "{error}");
    }

    #[tokio::test]
    async fn request_trailers() {
        let mutations =
            proto::Mutations { request_trailers_mutations: vec![set("x-a", "%REQ(:PATH)%"), set("x-b", "b")], ..Default::default() };
        let config = proto::HeaderMutation { mutations: Some(mutations), ..Default::default() };
        let filter = kit::compile(&Factory, &config, &kit::server(Default::default())).unwrap();
        for trailers in [true, false] {
            let mut ex = kit::exchange(RequestHead::new(Method::POST, "host", "/p"));
            let sent = || [(HeaderName::from_static("x-b"), http::HeaderValue::from_static("mine"))].into_iter().collect::<Headers>();
            let data = Frame::Data(bytes::Bytes::from_static(b"body"));
            ex.request_body = kit::body([data].into_iter().chain(trailers.then(|| Frame::Trailers(Box::new(sent())))));
            assert!(kit::request(&*filter, "m", &mut ex).await.is_none());
            let (data, found) = kit::collect(&mut ex.request_body).await.unwrap();
            assert_eq!(data, "body");
            let value = |name| found.as_ref().and_then(|t| t.get_str(&HeaderName::from_static(name)).map(str::to_string));
            let expected = |text: &str| trailers.then(|| text.to_string());
            assert_eq!((value("x-a"), value("x-b")), (expected("/p"), expected("b")));
        }
    }
}
