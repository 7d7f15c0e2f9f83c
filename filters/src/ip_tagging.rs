//! envoy.filters.http.ip_tagging: names the address ranges that the client belongs to, in a header that routes can match.
//! Source: `envoy/extensions/filters/http/ip_tagging/v3/ip_tagging.proto`.

use crate::config::decode;
use crate::watched::Watched;
use http::{HeaderName, HeaderValue};
use nuncio_core::diag::{At, Report};
use nuncio_core::filter::{FilterAction, FilterCx, HttpFilter, Needs};
use nuncio_core::message::joined;
use nuncio_core::registry::{FactoryCx, HttpFilterFactory, Server};
use nuncio_core::stats::{Counter, Scope};
use nuncio_matcher::IpSet;
use nuncio_proto::envoy::config::core::v3::data_source::Specifier;
use nuncio_proto::envoy::extensions::filters::http::ip_tagging::v3 as proto;
use nuncio_proto::json::{UnknownFields, parse_text};
use proto::ip_tagging::ip_tag_header::HeaderAction;
use proto::ip_tagging::{IpTag, IpTags, RequestType};
use std::net::IpAddr;
use std::sync::Arc;

const TAGS: HeaderName = HeaderName::from_static("x-envoy-ip-tags");
const INTERNAL: HeaderName = HeaderName::from_static("x-envoy-internal");
/// Most bytes of a file of tags.
const MAX_FILE: usize = 64 << 20;

/// Factory of `envoy.extensions.filters.http.ip_tagging.v3.IPTagging`.
#[derive(Debug)]
pub struct Factory;

impl HttpFilterFactory for Factory {
    fn name(&self) -> &'static str {
        "envoy.filters.http.ip_tagging"
    }
    fn types(&self) -> &'static [&'static str] {
        &["envoy.extensions.filters.http.ip_tagging.v3.IPTagging"]
    }
    fn compile(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn HttpFilter>> {
        let config: proto::IpTagging = decode(config, at, cx.report)?;
        let Ok(kind) = RequestType::try_from(config.request_type) else {
            cx.report.error(&at.field("request_type"), config.request_type.to_string(), "use BOTH, INTERNAL or EXTERNAL");
            return None;
        };
        let scope = cx.scope.scope("ip_tagging.");
        let tags = compile_tags(&config, &scope, at, cx.report)?;
        let (header, sanitize) = match &config.ip_tag_header {
            None => (TAGS, false),
            Some(header) => match HeaderName::from_bytes(header.header.as_bytes()) {
                Ok(name) => (name, header.action == HeaderAction::Sanitize as i32),
                Err(_) => {
                    let at = at.field("ip_tag_header");
                    cx.report.error(&at.field("header"), format!("\"{}\"", header.header), "give a valid header name");
                    return None;
                }
            },
        };
        Some(Arc::new(Filter {
            kind,
            tags,
            header,
            sanitize,
            server: cx.server.clone(),
            no_hit: scope.counter("no_hit"),
            total: scope.counter("total"),
        }))
    }
}

fn compile_tags(config: &proto::IpTagging, scope: &Scope, at: &At<'_>, report: &mut Report) -> Option<Tags> {
    match (&config.ip_tags_datasource, config.ip_tags.is_empty()) {
        (Some(_), false) => {
            report.error(&at.field("ip_tags_datasource"), "both ip_tags and ip_tags_datasource", "set one of them");
            None
        }
        (None, true) => {
            report.error(&at.field("ip_tags"), "nothing", "set ip_tags or ip_tags_datasource");
            None
        }
        (None, false) => {
            let at = at.field("ip_tags");
            nuncio_matcher::compile_all(&config.ip_tags, &at, report, |tag, at, report| Tag::compile(tag, scope, at, report))
                .map(Tags::Fixed)
        }
        (Some(source), true) => {
            let at = at.field("ip_tags_datasource");
            let Some(Specifier::Filename(name)) = &source.specifier else {
                report.error(&at, "no file", "set filename to a .yaml or .json file");
                return None;
            };
            if ![".yaml", ".yml", ".json"].iter().any(|end| name.ends_with(end)) {
                report.error(&at.field("filename"), format!("\"{name}\""), "name a .yaml or .json file");
                return None;
            }
            let scope = scope.clone();
            let parse = move |bytes: &[u8]| read_file(bytes, &scope);
            Watched::open(source, MAX_FILE, None, Box::new(parse), &at, report).map(Tags::File)
        }
    }
}

fn read_file(bytes: &[u8], scope: &Scope) -> Result<Box<[Tag]>, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "text that is not UTF-8".to_string())?;
    let tags: IpTags = parse_text(text, UnknownFields::Refuse).map_err(|e| e.to_string())?.value;
    let mut report = Report::new();
    let compiled =
        nuncio_matcher::compile_all(&tags.ip_tags, &At::Root, &mut report, |tag, at, report| Tag::compile(tag, scope, at, report));
    compiled.ok_or_else(|| report.summary())
}

#[derive(Debug)]
enum Tags {
    Fixed(Box<[Tag]>),
    File(Arc<Watched<Box<[Tag]>>>),
}

#[derive(Debug)]
struct Tag {
    name: HeaderValue,
    ranges: IpSet,
    hit: Counter,
}

impl Tag {
    fn compile(tag: &IpTag, scope: &Scope, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let Some(name) = HeaderValue::from_str(&tag.ip_tag_name).ok().filter(|n| !n.is_empty()) else {
            report.error(&at.field("ip_tag_name"), format!("\"{}\"", tag.ip_tag_name), "give a name that a header can hold");
            return None;
        };
        let ranges = IpSet::compile(&tag.ip_list, &at.field("ip_list"), report)?;
        Some(Self { hit: scope.counter(&format!("{}.hit", tag.ip_tag_name)), name, ranges })
    }
}

#[derive(Debug)]
struct Filter {
    kind: RequestType,
    tags: Tags,
    header: HeaderName,
    /// What the client put there is replaced, not added to.
    sanitize: bool,
    server: Arc<Server>,
    no_hit: Counter,
    total: Counter,
}

/// The names of the ranges that hold `ip`, joined by commas; empty if there is none.
fn names(tags: &[Tag], ip: IpAddr) -> Vec<u8> {
    let mut all = Vec::new();
    for tag in tags.iter().filter(|t| t.ranges.contains(ip)) {
        tag.hit.inc();
        if !all.is_empty() {
            all.push(b',');
        }
        all.extend_from_slice(tag.name.as_bytes());
    }
    all
}

impl HttpFilter for Filter {
    fn needs(&self) -> Needs {
        Needs::REQUEST_HEADERS
    }
    fn on_request<'a>(&'a self, cx: FilterCx<'a>) -> FilterAction<'a> {
        let ex = cx.ex;
        let internal = ex.request.headers.get(&INTERNAL).is_some_and(|v| v.as_bytes() == b"true");
        let concerned = match self.kind {
            RequestType::Both => true,
            RequestType::Internal => internal,
            RequestType::External => !internal,
        };
        if !concerned || self.server.runtime.integer("ip_tagging.http_filter_enabled", 100) == 0 {
            return FilterAction::Continue;
        }
        let tags = match (ex.info.remote.socket(), &self.tags) {
            (None, _) => Vec::new(),
            (Some(address), Tags::Fixed(tags)) => names(tags, address.ip()),
            (Some(address), Tags::File(tags)) => names(&tags.load(), address.ip()),
        };
        self.total.inc();
        let headers = &mut ex.request.headers;
        if tags.is_empty() {
            self.no_hit.inc();
            if self.sanitize && headers.remove(&self.header).is_some() {
                ex.route_cleared = true;
            }
            return FilterAction::Continue;
        }
        let all = match joined(headers, &self.header).filter(|v| !self.sanitize && !v.is_empty()) {
            Some(there) => [there.as_ref(), b",", &tags].concat(),
            None => tags,
        };
        if let Ok(value) = HeaderValue::from_bytes(&all) {
            // Appended to a field it stays where it was.
            if self.sanitize {
                headers.remove(&self.header);
            }
            headers.insert(self.header.clone(), value);
        }
        ex.route_cleared = true;
        FilterAction::Continue
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;
    use nuncio_core::{RequestHead, test_kit as kit};

    fn config(yaml: &str) -> proto::IpTagging {
        parse_text(yaml, UnknownFields::Refuse).unwrap_or_else(|e| panic!("{e}")).value
    }
    const TWO: &str = "
- {ip_tag_name: ten, ip_list: [{address_prefix: 10.0.0.0, prefix_len: 8}]}
- {ip_tag_name: one, ip_list: [{address_prefix: 10.0.0.1, prefix_len: 32}, {address_prefix: '::1', prefix_len: 128}]}
- {ip_tag_name: other, ip_list: [{address_prefix: 192.168.0.0, prefix_len: 16}]}";

    /// The header after a request from 10.0.0.1, and whether the route is matched again.
    async fn run(yaml: &str, fields: &[(&'static str, &'static str)], header: &'static str) -> (Option<String>, bool) {
        let filter = kit::compile(&Factory, &config(yaml), &kit::server(Default::default())).unwrap();
        let mut ex = kit::exchange(RequestHead::new(Method::GET, "host", "/"));
        for (name, value) in fields {
            ex.request.headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        assert!(kit::request(&*filter, "c", &mut ex).await.is_none());
        (ex.request.headers.get_str(&HeaderName::from_static(header)).map(Into::into), ex.route_cleared)
    }

    #[tokio::test]
    async fn every_range_is_named() {
        let tags = format!("ip_tags: {TWO}");
        assert_eq!(run(&tags, &[], "x-envoy-ip-tags").await, (Some("ten,one".into()), true));
        assert_eq!(run(&tags, &[("x-envoy-ip-tags", "mine")], "x-envoy-ip-tags").await.0.as_deref(), Some("mine,ten,one"));
        let clean = format!("ip_tag_header: {{header: x-t}}\n{tags}");
        assert_eq!(run(&clean, &[("x-t", "forged"), ("x-t", "twice")], "x-t").await.0.as_deref(), Some("ten,one"));
        let internal = format!("request_type: INTERNAL\n{tags}");
        assert_eq!(run(&internal, &[], "x-envoy-ip-tags").await, (None, false));
        assert!(run(&internal, &[("x-envoy-internal", "true")], "x-envoy-ip-tags").await.1);
        let none = "ip_tag_header: {header: x-t}\nip_tags: [{ip_tag_name: v6, ip_list: [{address_prefix: '::', prefix_len: 0}]}]";
        assert_eq!(run(none, &[("x-t", "forged")], "x-t").await, (None, true));
    }

    #[tokio::test]
    async fn tags_come_from_files() {
        let path = std::env::temp_dir().join(format!("nuncio-ip-tags-{}.yaml", std::process::id()));
        std::fs::write(&path, format!("ip_tags: {TWO}")).unwrap();
        let yaml = format!("ip_tags_datasource: {{filename: {}}}", path.display());
        assert_eq!(run(&yaml, &[], "x-envoy-ip-tags").await.0.as_deref(), Some("ten,one"));
        std::fs::write(&path, "ip_tags: [{ip_tag_name: x, ip_list: [{address_prefix: nonsense}]}]").unwrap();
        let why = kit::compile(&Factory, &config(&yaml), &kit::server(Default::default())).unwrap_err();
        assert!(why.contains("nonsense"), "{why}");
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn wrong_configurations_are_refused() {
        for yaml in
            ["{}", "ip_tags: [{ip_tag_name: ''}]", "ip_tags_datasource: {inline_string: x}", "ip_tags_datasource: {filename: /nowhere.txt}"]
        {
            assert!(kit::compile(&Factory, &config(yaml), &kit::server(Default::default())).is_err(), "{yaml}");
        }
    }
}
