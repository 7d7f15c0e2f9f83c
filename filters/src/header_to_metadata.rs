//! envoy.filters.http.header_to_metadata: copies header and cookie values, or constants where they are missing, into dynamic metadata.
//! Source: `envoy/extensions/filters/http/header_to_metadata/v3/header_to_metadata.proto`.

use crate::config::{BASE64, decode};
use base64::Engine;
use http::HeaderName;
use nuncio_core::diag::{At, Report};
use nuncio_core::filter::{FilterAction, FilterCx, HttpFilter, Needs};
use nuncio_core::registry::{FactoryCx, HttpFilterFactory};
use nuncio_core::stats::{Counter, Scope};
use nuncio_core::{HeaderKey, Headers, RequestHead, StreamInfo};
use nuncio_matcher::{RegexRewrite, query};
use nuncio_proto::envoy::extensions::filters::http::header_to_metadata::v3 as proto;
use nuncio_proto::{Message, Struct, Value};
use prost_types::value::Kind;
use proto::config::{KeyValuePair, ValueEncode, ValueType};
use std::any::Any;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Longer values are left out.
const MAX_VALUE: usize = 8 * 1024;
/// Namespace of rules that name none.
const NAMESPACE: &str = "envoy.filters.http.header_to_metadata";

/// Factory of `envoy.extensions.filters.http.header_to_metadata.v3.Config`, on listeners and per route.
#[derive(Debug)]
pub struct Factory;

impl HttpFilterFactory for Factory {
    fn name(&self) -> &'static str {
        NAMESPACE
    }
    fn types(&self) -> &'static [&'static str] {
        &["envoy.extensions.filters.http.header_to_metadata.v3.Config"]
    }
    fn route_types(&self) -> &'static [&'static str] {
        self.types()
    }
    fn compile(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn HttpFilter>> {
        Some(Arc::new(Filter(Config::compile(&decode(config, at, cx.report)?, at, cx)?)))
    }
    fn compile_route(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn Any + Send + Sync>> {
        let config: proto::Config = decode(config, at, cx.report)?;
        if config.request_rules.is_empty() && config.response_rules.is_empty() {
            cx.report.error(at, "no rules", "a route needs request_rules or response_rules");
            return None;
        }
        Some(Arc::new(Config::compile(&config, at, cx)?))
    }
}

/// Compiled rules of both directions.
#[derive(Debug)]
struct Config {
    request: Box<[Rule]>,
    response: Box<[Rule]>,
    /// Only where `stat_prefix` is set.
    stats: Option<(Stats, Stats)>,
}

impl Config {
    fn compile(p: &proto::Config, at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Self> {
        let request = nuncio_matcher::compile_all(&p.request_rules, &at.field("request_rules"), cx.report, Rule::compile);
        let response = nuncio_matcher::compile_all(&p.response_rules, &at.field("response_rules"), cx.report, Rule::compile);
        let stats = (!p.stat_prefix.is_empty()).then(|| {
            let scope = cx.server.stats.root().scope(&format!("http_filter_name.{}.", p.stat_prefix));
            (Stats::new(&scope, "request_"), Stats::new(&scope, "response_"))
        });
        Some(Self { request: request?, response: response?, stats })
    }
}

#[derive(Debug)]
struct Stats {
    processed: Counter,
    added: Counter,
    not_found: Counter,
    bad_base64: Counter,
    too_long: Counter,
    vanished: Counter,
}

impl Stats {
    fn new(scope: &Scope, direction: &str) -> Self {
        let counter = |name: &str| scope.counter(&format!("{direction}{name}"));
        Self {
            processed: counter("rules_processed"),
            added: counter("metadata_added"),
            not_found: counter("header_not_found"),
            // Envoy does not tell the directions of these two apart.
            bad_base64: scope.counter("base64_decode_failed"),
            too_long: scope.counter("header_value_too_long"),
            vanished: counter("regex_substitution_failed"),
        }
    }
}

#[derive(Debug)]
enum Source {
    Header { key: HeaderKey, remove: bool },
    Cookie(Box<str>),
}

#[derive(Debug)]
struct Rule {
    source: Source,
    present: Option<Target>,
    missing: Option<Target>,
}

#[derive(Debug)]
struct Target {
    namespace: Box<str>,
    key: Box<str>,
    /// Instead of what was found; empty for that.
    value: Box<str>,
    rewrite: Option<RegexRewrite>,
    kind: ValueType,
    base64: bool,
}

impl Rule {
    fn compile(p: &proto::config::Rule, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let mut refuse = |found: &str, remedy: &str| {
            report.error(at, found, remedy);
            None
        };
        let source = match (p.header.is_empty(), p.cookie.is_empty()) {
            (false, false) => return refuse("both header and cookie", "set one of them"),
            (true, true) => return refuse("neither header nor cookie", "set one of them"),
            (true, false) if p.remove => return refuse("remove of a cookie", "only headers can be removed"),
            (true, false) => Source::Cookie(p.cookie.as_str().into()),
            (false, true) => match HeaderKey::parse(&p.header) {
                Some(HeaderKey::Name(name)) => Source::Header { key: HeaderKey::Name(name), remove: p.remove },
                Some(_) if p.remove => return refuse("remove of a pseudo header", "requests cannot do without it"),
                Some(key) => Source::Header { key, remove: false },
                None => return refuse("an invalid header name", "give a valid one"),
            },
        };
        let (present, missing) = (&p.on_header_present, &p.on_header_missing);
        if present.is_none() && missing.is_none() {
            return refuse("neither on_header_present nor on_header_missing", "set at least one");
        }
        if present.as_ref().is_some_and(|t| !t.value.is_empty() && t.regex_value_rewrite.is_some()) {
            return refuse("both value and regex_value_rewrite", "set one of them");
        }
        if missing.as_ref().is_some_and(|t| t.value.is_empty()) {
            return refuse("on_header_missing without a value", "give the value");
        }
        let mut target = |p: &Option<KeyValuePair>, name: &str| match p {
            Some(p) => Target::compile(p, &at.field(name), report).map(Some),
            None => Some(None),
        };
        let (present, missing) = (target(present, "on_header_present"), target(missing, "on_header_missing"));
        Some(Self { source, present: present?, missing: missing? })
    }
}

impl Target {
    fn compile(p: &KeyValuePair, at: &At<'_>, report: &mut Report) -> Option<Self> {
        if p.key.is_empty() {
            report.error(&at.field("key"), "nothing", "name the value");
            return None;
        }
        let (Ok(kind), Ok(encode)) = (ValueType::try_from(p.r#type), ValueEncode::try_from(p.encode)) else {
            report.error(at, format!("type {} and encode {}", p.r#type, p.encode), "use values of the enums");
            return None;
        };
        let rewrite = match &p.regex_value_rewrite {
            Some(rewrite) => Some(RegexRewrite::compile(rewrite, &at.field("regex_value_rewrite"), report)?),
            None => None,
        };
        let namespace = if p.metadata_namespace.is_empty() { NAMESPACE } else { &p.metadata_namespace };
        Some(Self {
            namespace: namespace.into(),
            key: p.key.as_str().into(),
            value: p.value.as_str().into(),
            rewrite,
            kind,
            base64: encode == ValueEncode::Base64,
        })
    }
    /// The value for what was found; none if there is nothing to add.
    fn value(&self, found: &[u8], stats: Option<&Stats>) -> Option<Value> {
        let count = |counter: fn(&Stats) -> &Counter| {
            if let Some(stats) = stats {
                counter(stats).inc();
            }
        };
        let mut value: Cow<'_, [u8]> = match (&*self.value, &self.rewrite) {
            ("", Some(rewrite)) => {
                let changed = rewrite.replace_all_bytes(found);
                if changed.is_empty() && !found.is_empty() {
                    count(|s| &s.vanished);
                }
                changed
            }
            ("", None) => Cow::Borrowed(found),
            (constant, _) => Cow::Borrowed(constant.as_bytes()),
        };
        if value.is_empty() {
            return None;
        }
        if value.len() >= MAX_VALUE {
            count(|s| &s.too_long);
            return None;
        }
        if self.base64 {
            value = match BASE64.decode(&value) {
                Ok(decoded) if !decoded.is_empty() => Cow::Owned(decoded),
                _ => {
                    count(|s| &s.bad_base64);
                    return None;
                }
            };
        }
        let kind = match self.kind {
            ValueType::String => Kind::StringValue(String::from_utf8_lossy(&value).into_owned()),
            ValueType::Number => Kind::NumberValue(number(&value)?),
            ValueType::ProtobufValue => return Value::decode(value.as_ref()).ok(),
        };
        Some(Value { kind: Some(kind) })
    }
}

/// A number as absl reads it: decimal or hexadecimal, with `inf` and `nan`, blanks around it ignored.
fn number(value: &[u8]) -> Option<f64> {
    let text = std::str::from_utf8(value).ok()?.trim_ascii();
    let (sign, digits) = text.strip_prefix('-').map_or((1.0, text), |digits| (-1.0, digits));
    match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hex) if hex.starts_with(|c: char| c.is_ascii_hexdigit()) => u64::from_str_radix(hex, 16).ok().map(|n| sign * n as f64),
        _ => text.parse().ok(),
    }
}

#[derive(Debug)]
struct Filter(Config);

impl HttpFilter for Filter {
    fn needs(&self) -> Needs {
        // Routes may have rules where the listener has none.
        Needs::REQUEST_HEADERS.and(Needs::RESPONSE_HEADERS)
    }
    fn on_request<'a>(&'a self, cx: FilterCx<'a>) -> FilterAction<'a> {
        let route = cx.route_config::<Config>();
        let config = route.as_deref().unwrap_or(&self.0);
        if !config.request.is_empty() {
            let ex = cx.ex;
            apply(&config.request, &mut ex.request, &mut ex.info, config.stats.as_ref().map(|s| &s.0));
        }
        FilterAction::Continue
    }
    fn on_response(&self, cx: FilterCx<'_>) {
        let route = cx.route_config::<Config>();
        let config = route.as_deref().unwrap_or(&self.0);
        if !config.response.is_empty()
            && let Some(response) = &mut cx.ex.response
        {
            apply(&config.response, response, &mut cx.ex.info, config.stats.as_ref().map(|s| &s.1));
        }
    }
}

/// Where rules look.
trait Fields {
    fn value(&self, key: &HeaderKey) -> Option<Cow<'_, [u8]>>;
    fn fields(&mut self) -> &mut Headers;
}
impl Fields for RequestHead {
    fn value(&self, key: &HeaderKey) -> Option<Cow<'_, [u8]>> {
        self.header(key)
    }
    fn fields(&mut self) -> &mut Headers {
        &mut self.headers
    }
}
impl Fields for nuncio_core::ResponseHead {
    fn value(&self, key: &HeaderKey) -> Option<Cow<'_, [u8]>> {
        self.header(key)
    }
    fn fields(&mut self) -> &mut Headers {
        &mut self.headers
    }
}

fn apply(rules: &[Rule], message: &mut impl Fields, info: &mut StreamInfo, stats: Option<&Stats>) {
    let mut made: BTreeMap<&str, Struct> = BTreeMap::new();
    for rule in rules {
        if let Some(stats) = stats {
            stats.processed.inc();
        }
        let (found, removed): (Option<Vec<u8>>, Option<&HeaderName>) = match &rule.source {
            Source::Header { key, remove } => {
                let name = if let HeaderKey::Name(name) = key { Some(name) } else { None };
                (message.value(key).map(Cow::into_owned), name.filter(|_| *remove))
            }
            Source::Cookie(name) => {
                let cookie = query::cookie(message.fields(), name).filter(|v| !v.is_empty());
                (cookie.map(|v| v.as_bytes().to_vec()), None)
            }
        };
        if let Some(name) = removed {
            message.fields().remove(name);
        }
        let target = match &found {
            Some(_) => &rule.present,
            None => {
                if let Some(stats) = stats.filter(|_| rule.missing.is_some()) {
                    stats.not_found.inc();
                }
                &rule.missing
            }
        };
        let Some(target) = target else { continue };
        if let Some(value) = target.value(found.as_deref().unwrap_or_default(), stats) {
            made.entry(&target.namespace).or_default().fields.insert(target.key.to_string(), value);
            if let Some(stats) = stats {
                stats.added.inc();
            }
        }
    }
    for (namespace, fields) in made {
        info.set_metadata(namespace, fields);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderValue, Method, StatusCode};
    use nuncio_core::test_kit::{self as kit, FakeRoute};
    use nuncio_core::{Body, Exchange, ResponseHead};
    use nuncio_proto::json::{UnknownFields, parse_text};

    fn config(yaml: &str) -> proto::Config {
        parse_text(yaml, UnknownFields::Refuse).unwrap_or_else(|e| panic!("{e}")).value
    }
    async fn run(yaml: &str, fields: &[(&'static str, &'static str)]) -> Exchange {
        let filter = kit::compile(&Factory, &config(yaml), &kit::server(Default::default())).unwrap();
        let mut ex = kit::exchange(RequestHead::new(Method::GET, "host", "/p"));
        for (name, value) in fields {
            ex.request.headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        assert!(kit::request(&*filter, "c", &mut ex).await.is_none());
        ex
    }
    fn value(ex: &Exchange, namespace: &str, key: &str) -> Option<Kind> {
        ex.info.metadata(namespace)?.fields.get(key)?.kind.clone()
    }
    fn text(s: &str) -> Option<Kind> {
        Some(Kind::StringValue(s.into()))
    }

    #[tokio::test]
    async fn values_become_metadata() {
        let ex = run(
            "request_rules:
- {header: x-a, on_header_present: {metadata_namespace: ns, key: a}, remove: true}
- {header: x-n, on_header_present: {metadata_namespace: ns, key: n, type: NUMBER}}
- {header: x-b, on_header_present: {metadata_namespace: ns, key: b, encode: BASE64}}
- {header: x-gone, on_header_missing: {metadata_namespace: ns, key: gone, value: 'yes'}}
- {header: ':path', on_header_present: {key: path, regex_value_rewrite: {pattern: {regex: '^/(.*)$'}, substitution: '<\\1>'}}}
- {cookie: c, on_header_present: {metadata_namespace: ns, key: c}}",
            &[("x-a", "1"), ("x-a", "2"), ("x-n", " 4.5 "), ("x-b", "aGk"), ("cookie", "a=b; c=d")],
        )
        .await;
        assert_eq!(value(&ex, "ns", "a"), text("1,2"));
        assert!(!ex.request.headers.contains(&HeaderName::from_static("x-a")));
        assert_eq!(value(&ex, "ns", "n"), Some(Kind::NumberValue(4.5)));
        assert_eq!(value(&ex, "ns", "b"), text("hi"));
        assert_eq!(value(&ex, "ns", "gone"), text("yes"));
        assert_eq!(value(&ex, "ns", "c"), text("d"));
        assert_eq!(value(&ex, NAMESPACE, "path"), text("<p>"));
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_left_out() {
        let rules = "request_rules:
- {header: x-n, on_header_present: {key: n, type: NUMBER}}
- {header: x-b, on_header_present: {key: b, encode: BASE64}}
- {header: x-p, on_header_present: {key: p, type: PROTOBUF_VALUE, encode: BASE64}}
- {header: x-empty, on_header_present: {key: e}}
stat_prefix: s";
        let ex = run(rules, &[("x-n", "four"), ("x-b", "!!"), ("x-p", "//8="), ("x-empty", "")]).await;
        assert!(ex.info.metadata(NAMESPACE).is_none());
    }

    #[test]
    fn routes_and_responses() {
        let server = kit::server(Default::default());
        let filter = kit::compile(&Factory, &config("{}"), &server).unwrap();
        let route = config("response_rules: [{header: x-up, on_header_present: {metadata_namespace: ns, key: up}}]");
        let mut ex = kit::exchange(RequestHead::new(Method::GET, "host", "/p"));
        ex.route = Some(Arc::new(FakeRoute::new("r", "c").with("c", kit::compile_route(&Factory, &route, &server).unwrap())));
        let mut head = ResponseHead::new(StatusCode::OK);
        head.headers.append(HeaderName::from_static("x-up"), HeaderValue::from_static("v"));
        kit::respond(&*filter, "c", &mut ex, head, Body::Empty);
        assert_eq!(value(&ex, "ns", "up"), text("v"));
        assert!(kit::compile_route(&Factory, &config("{}"), &server).is_err());
    }

    #[test]
    fn contradictions_are_refused() {
        for rule in [
            "{header: a, cookie: b, on_header_present: {key: k}}",
            "{on_header_present: {key: k}}",
            "{header: a}",
            "{cookie: a, remove: true, on_header_present: {key: k}}",
            "{header: a, on_header_missing: {key: k}}",
            "{header: a, on_header_present: {key: k, value: v, regex_value_rewrite: {pattern: {regex: a}}}}",
            "{header: 'a b', on_header_present: {key: k}}",
        ] {
            let yaml = format!("request_rules: [{rule}]");
            assert!(kit::compile(&Factory, &config(&yaml), &kit::server(Default::default())).is_err(), "{rule}");
        }
    }
}
