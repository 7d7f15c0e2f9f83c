//! Tables from YAML, requests, and a filter that takes per-route configuration.
#![allow(dead_code, clippy::panic, clippy::unwrap_used, clippy::expect_used)]

use http::{HeaderName, HeaderValue, Method};
use nuncio_core::diag::{At, Report, Severity};
use nuncio_core::filter::HttpFilter;
use nuncio_core::info::TrafficDirection;
use nuncio_core::registry::{FactoryCx, HttpFilterFactory, Registry, Server};
use nuncio_core::views::{ClusterSlots, RouteView};
use nuncio_core::{RequestHead, ResponseHead, StreamInfo, test_kit};
use nuncio_proto::Message;
use nuncio_proto::envoy::config::route::v3::RouteConfiguration;
use nuncio_proto::envoy::extensions::filters::http::buffer::v3::BufferPerRoute;
use nuncio_proto::json::{UnknownFields, parse_text};
use nuncio_route::{RouteCx, RouteEntry, RouteInput, RouteMatch, RouteTable};
use std::any::Any;
use std::sync::Arc;

/// Takes `BufferPerRoute` and keeps it as it is.
struct KeepConfig;
impl HttpFilterFactory for KeepConfig {
    fn name(&self) -> &'static str {
        "envoy.filters.http.buffer"
    }
    fn types(&self) -> &'static [&'static str] {
        &[]
    }
    fn route_types(&self) -> &'static [&'static str] {
        &[
            "envoy.extensions.filters.http.buffer.v3.BufferPerRoute",
            "envoy.extensions.filters.http.cors.v3.CorsPolicy",
            "envoy.extensions.filters.http.fault.v3.HTTPFault",
        ]
    }
    fn compile(&self, _: &[u8], _: &At<'_>, _: &mut FactoryCx<'_>) -> Option<Arc<dyn HttpFilter>> {
        None
    }
    fn compile_route(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn Any + Send + Sync>> {
        match BufferPerRoute::decode(config) {
            Ok(config) => Some(Arc::new(config)),
            Err(why) => {
                cx.report.error(at, why.to_string(), "give a BufferPerRoute");
                None
            }
        }
    }
}

/// A compiled table and what it was compiled with.
pub struct Lab {
    pub table: Arc<RouteTable>,
    pub server: Arc<Server>,
    pub clusters: Arc<ClusterSlots>,
    pub warnings: Vec<String>,
}

/// Reads YAML or JSON.
pub fn config(yaml: &str) -> RouteConfiguration {
    parse_text(yaml, UnknownFields::Refuse).unwrap_or_else(|e| panic!("{e}")).value
}

/// Compiles `config` and gives the table and the report.
pub fn compile(config: &RouteConfiguration, validate_clusters: bool) -> (Option<Lab>, Report) {
    let server = test_kit::server(Default::default());
    let clusters: Arc<ClusterSlots> = Arc::default();
    let mut report = Report::new();
    let mut registry = Registry::default();
    registry.http.push(Box::new(KeepConfig));
    let mut cx = RouteCx {
        clusters: &clusters,
        registry: &registry,
        server: &server,
        scope: &server.stats.root(),
        direction: TrafficDirection::Unspecified,
        validate_clusters,
        report: &mut report,
    };
    let table = RouteTable::compile(config, &At::Root, &mut cx);
    let warnings = report.items.iter().filter(|d| d.severity == Severity::Warning).map(ToString::to_string).collect();
    (table.map(|table| Lab { table, server, clusters, warnings }), report)
}

/// A table that must compile.
pub fn table(yaml: &str) -> Lab {
    let (lab, report) = compile(&config(yaml), false);
    lab.unwrap_or_else(|| panic!("{}", report.summary()))
}

/// A table of one virtual host for every domain, whose `routes` are given as a YAML list.
pub fn routes(routes: &str) -> Lab {
    table(&format!("name: t\nvirtual_hosts:\n- name: v\n  domains: ['*']\n  routes:\n{}", indent(routes, 2)))
}

/// What a table that must be refused is refused for.
pub fn refused(yaml: &str) -> String {
    let (lab, report) = compile(&config(yaml), false);
    assert!(lab.is_none(), "accepted: {yaml}");
    report.summary()
}

/// As [`refused`], for the routes of one virtual host.
pub fn refused_routes(routes: &str) -> String {
    refused(&format!("name: t\nvirtual_hosts:\n- name: v\n  domains: ['*']\n  routes:\n{}", indent(routes, 2)))
}

pub fn indent(text: &str, by: usize) -> String {
    text.lines().map(|l| format!("{:by$}{l}\n", "")).collect()
}

/// A GET request with headers.
pub fn get(host: &str, path: &str, headers: &[(&str, &str)]) -> RequestHead {
    let mut head = RequestHead::new(Method::GET, host, path);
    for (name, value) in headers {
        head.headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
    }
    head
}

/// Every header of a request as text, pseudo-headers first.
pub fn shown(head: &RequestHead) -> String {
    let headers: Vec<_> = head.headers.iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap_or("?"))).collect();
    format!("{} {} [{}]", head.authority, head.path, headers.join(", "))
}

/// Every header of a response as text.
pub fn shown_response(head: &ResponseHead) -> String {
    head.headers.iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap_or("?"))).collect::<Vec<_>>().join(", ")
}

impl Lab {
    pub fn find_with(&self, head: &RequestHead, info: &StreamInfo, random: u64) -> Option<Arc<RouteEntry>> {
        match self.table.route(head, &RouteInput { info, random, runtime: &self.server.runtime }) {
            RouteMatch::Route(entry) => Some(entry),
            RouteMatch::NotFound => None,
        }
    }
    pub fn find(&self, head: &RequestHead) -> Option<Arc<RouteEntry>> {
        self.find_with(head, &test_kit::stream_info(), 0)
    }
    pub fn must(&self, head: &RequestHead) -> Arc<RouteEntry> {
        self.find(head).unwrap_or_else(|| panic!("nothing matches {}", shown(head)))
    }
    /// Name of the route, or of its cluster if it has no name; `-` if nothing matches.
    pub fn name(&self, head: &RequestHead) -> String {
        match self.find(head) {
            Some(entry) if entry.name().is_empty() => entry.cluster_name().map_or("?".to_string(), |n| n.to_string()),
            Some(entry) => entry.name().to_string(),
            None => "-".to_string(),
        }
    }
    /// The request as the upstream would see it.
    pub fn upstream(&self, head: &RequestHead) -> RequestHead {
        let mut head = head.clone();
        self.must(&head).finalize_request(&mut head, &test_kit::stream_info(), true);
        head
    }
    /// The `location` of a redirect.
    pub fn location(&self, head: &RequestHead) -> String {
        match self.must(head).action() {
            nuncio_route::Action::Redirect(redirect) => redirect.location(head, &test_kit::stream_info()),
            other => panic!("{other:?}"),
        }
    }
}
