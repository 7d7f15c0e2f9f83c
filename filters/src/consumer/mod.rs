//! nuncio.filters.http.consumer: who is calling. Finds the consumer by an API key, basic authentication, a verified token, a verified
//! signature or a client certificate, and tells everybody after it: dynamic metadata, filter state, request headers, stats.
//! Compiled on the control thread, run on the workers. Source: `nuncio/filters/http/consumer/v1/consumer.proto`, docs/filters/consumer.md.

mod method;
mod table;
#[cfg(test)]
mod tests;

use crate::config::{decode, stat_scope};
use crate::secret::Made;
use http::{HeaderName, HeaderValue, header};
use method::{Found, Method};
use nuncio_core::diag::{At, Report};
use nuncio_core::filter::{FilterAction, FilterCx, HttpFilter, Needs};
use nuncio_core::filter_state::StringState;
use nuncio_core::registry::{FactoryCx, HttpFilterFactory};
use nuncio_core::stats::Counter;
use nuncio_core::{Exchange, LocalReply};
use nuncio_proto::nuncio::filters::http::consumer::v1 as proto;
use nuncio_proto::{Struct, Value};
use prost_types::value::Kind;
use std::any::Any;
use std::sync::Arc;
use table::{Consumer, Table};

/// Name of the filter's dynamic metadata (`name`, `method`, `attributes`) and of its filter state (the name).
pub const NAMESPACE: &str = "nuncio.consumer";

/// Factory of `nuncio.filters.http.consumer.v1.ConsumerAuth`.
#[derive(Debug)]
pub struct Factory;

impl HttpFilterFactory for Factory {
    fn name(&self) -> &'static str {
        "nuncio.filters.http.consumer"
    }
    fn types(&self) -> &'static [&'static str] {
        &["nuncio.filters.http.consumer.v1.ConsumerAuth"]
    }
    fn route_types(&self) -> &'static [&'static str] {
        &["nuncio.filters.http.consumer.v1.ConsumerAuthPerRoute"]
    }
    fn compile(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn HttpFilter>> {
        let config: proto::ConsumerAuth = decode(config, at, cx.report)?;
        let scope = stat_scope(cx.scope, "consumer", &config.stat_prefix);
        let errors = cx.report.errors();
        let table = Table::compile(&config, &scope, at, cx.report)?;
        let (mut methods, list) = (Vec::new(), at.field("methods"));
        for (i, method) in config.methods.iter().enumerate() {
            methods.extend(Method::compile(method, &list.index(i), cx.report));
        }
        if config.methods.is_empty() {
            cx.report.error(&list, "no method", "say how callers show who they are");
        }
        let headers = UpstreamHeaders::compile(config.upstream_headers.as_ref(), &at.field("upstream_headers"), cx.report);
        (cx.report.errors() == errors).then(|| {
            Arc::new(Filter {
                table,
                methods: methods.into(),
                anonymous: config.anonymous.unwrap_or_default().into(),
                headers,
                identified: scope.counter("identified"),
                anonymous_passed: scope.counter("anonymous"),
                missing: scope.counter("missing"),
                unknown: scope.counter("unknown"),
                forbidden: scope.counter("forbidden"),
            }) as Arc<dyn HttpFilter>
        })
    }
    fn compile_route(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn Any + Send + Sync>> {
        let config: proto::ConsumerAuthPerRoute = decode(config, at, cx.report)?;
        Some(Arc::new(PerRoute {
            disabled: config.disabled,
            allow: config.allow.into(),
            deny: config.deny.into(),
            anonymous: config.anonymous.map(Into::into),
        }))
    }
}

#[derive(Debug)]
struct PerRoute {
    disabled: bool,
    allow: Box<[String]>,
    deny: Box<[String]>,
    anonymous: Option<Anonymous>,
}

/// What happens to requests without a credential.
#[derive(Debug)]
struct Anonymous {
    allow: bool,
    name: Box<str>,
}

impl From<proto::Anonymous> for Anonymous {
    fn from(proto: proto::Anonymous) -> Self {
        Self { allow: proto.allow, name: proto.name.into() }
    }
}

/// Headers that the upstream gets.
#[derive(Debug, Default)]
struct UpstreamHeaders {
    name: Option<HeaderName>,
    method: Option<HeaderName>,
    attributes: Vec<(String, HeaderName)>,
}

impl UpstreamHeaders {
    fn compile(proto: Option<&proto::UpstreamHeaders>, at: &At<'_>, report: &mut Report) -> Self {
        let Some(proto) = proto else { return Self::default() };
        let mut header = |text: &str, at: &At<'_>| {
            let name = HeaderName::from_bytes(text.to_ascii_lowercase().as_bytes());
            name.map_err(|_| report.error(at, format!("{text:?}"), "give a header name")).ok()
        };
        let map = at.field("attributes");
        Self {
            name: if proto.name.is_empty() { None } else { header(&proto.name, &at.field("name")) },
            method: if proto.method.is_empty() { None } else { header(&proto.method, &at.field("method")) },
            attributes: proto.attributes.iter().filter_map(|(k, h)| Some((k.clone(), header(h, &map.key(k))?))).collect(),
        }
    }
    /// Removes what the client said; nobody but this filter may.
    fn clean(&self, ex: &mut Exchange) {
        for name in self.name.iter().chain(&self.method).chain(self.attributes.iter().map(|(_, h)| h)) {
            ex.request.headers.remove(name);
        }
    }
    fn set(&self, ex: &mut Exchange, name: &str, method: &'static str, attributes: &[(String, String)]) {
        let mut set = |header: &HeaderName, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                ex.request.headers.insert(header.clone(), value);
            }
        };
        if let Some(header) = &self.name {
            set(header, name);
        }
        if let Some(header) = &self.method {
            set(header, method);
        }
        for (attribute, header) in &self.attributes {
            if let Some((_, value)) = attributes.iter().find(|(k, _)| k == attribute) {
                set(header, value);
            }
        }
    }
}

#[derive(Debug)]
struct Filter {
    table: Made<Table>,
    methods: Box<[Method]>,
    anonymous: Anonymous,
    headers: UpstreamHeaders,
    identified: Counter,
    anonymous_passed: Counter,
    missing: Counter,
    unknown: Counter,
    forbidden: Counter,
}

impl HttpFilter for Filter {
    fn needs(&self) -> Needs {
        Needs::REQUEST_HEADERS
    }
    fn on_request<'a>(&'a self, cx: FilterCx<'a>) -> FilterAction<'a> {
        let route = cx.route_config::<PerRoute>();
        let ex = cx.ex;
        self.headers.clean(ex);
        // A redirect that the proxy followed brings filter state along: who called before is not who calls now.
        ex.info.filter_state.remove(NAMESPACE);
        if route.as_ref().is_some_and(|r| r.disabled) {
            return FilterAction::Continue;
        }
        let table = self.table.load();
        let mut found = Found::Nothing;
        for method in &self.methods {
            found = method.find(&table.1, ex);
            if !matches!(found, Found::Nothing) {
                break;
            }
        }
        let (consumer, method) = match found {
            Found::Consumer(consumer, method) => {
                // Also those by which nobody was found: they are as good at another gateway.
                self.methods.iter().for_each(|m| m.take(ex));
                (Some(consumer), method)
            }
            Found::Unknown => {
                self.unknown.inc();
                return self.refuse(401, "Credentials are not valid", "unknown", ex);
            }
            Found::Nothing => (None, "anonymous"),
        };
        let anonymous = route.as_ref().and_then(|r| r.anonymous.as_ref()).unwrap_or(&self.anonymous);
        let name: &str = match &consumer {
            Some(consumer) => &consumer.name,
            None if anonymous.allow => &anonymous.name,
            None => {
                self.missing.inc();
                return self.refuse(401, "Credentials are missing", "missing", ex);
            }
        };
        if let Some(route) = &route {
            let listed = |list: &[String]| list.iter().any(|n| n == name);
            if listed(&route.deny) || (!route.allow.is_empty() && !listed(&route.allow)) {
                self.forbidden.inc();
                return self.refuse(403, "This consumer may not call here", "forbidden", ex);
            }
        }
        match &consumer {
            Some(consumer) => {
                self.identified.inc();
                consumer.requests.inc();
            }
            None => self.anonymous_passed.inc(),
        }
        if !name.is_empty() {
            self.tell(ex, name, method, consumer.as_deref());
        }
        FilterAction::Continue
    }
}

impl Filter {
    fn tell(&self, ex: &mut Exchange, name: &str, method: &'static str, consumer: Option<&Consumer>) {
        let attributes = consumer.map(|c| c.attributes.as_slice()).unwrap_or_default();
        let text = |text: &str| Value { kind: Some(Kind::StringValue(text.to_string())) };
        let mut fields = vec![("name".to_string(), text(name)), ("method".to_string(), text(method))];
        if !attributes.is_empty() {
            let attributes = attributes.iter().map(|(k, v)| (k.clone(), text(v))).collect();
            fields.push(("attributes".to_string(), Value { kind: Some(Kind::StructValue(Struct { fields: attributes })) }));
        }
        ex.info.set_metadata(NAMESPACE, Struct { fields: fields.into_iter().collect() });
        ex.info.filter_state.set(NAMESPACE, Arc::new(StringState(name.to_string())));
        self.headers.set(ex, name, method, attributes);
    }
    fn refuse(&self, status: u16, text: &'static str, detail: &'static str, ex: &Exchange) -> FilterAction<'static> {
        let mut reply = LocalReply::new(status, text, format!("consumer_denied{{{detail}}}"));
        if status == 401
            && let Some(challenge) = self.methods.iter().find_map(|m| m.challenge(ex))
        {
            reply.headers.insert(header::WWW_AUTHENTICATE, challenge);
        }
        FilterAction::Respond(Box::new(reply))
    }
}
