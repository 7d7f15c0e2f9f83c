//! Route matching and rewriting with any path, host and header: nothing panics, and what is sent on is a path that no server could read as two.

use http::{HeaderValue, Method};
use nuncio_core::diag::{At, Report};
use nuncio_core::info::TrafficDirection;
use nuncio_core::registry::Registry;
use nuncio_core::views::ClusterSlots;
use nuncio_core::{ByteStr, RequestHead, test_kit};
use nuncio_proto::envoy::config::route::v3::RouteConfiguration;
use nuncio_proto::json::{UnknownFields, parse_text};
use nuncio_route::{Action, RouteCx, RouteInput, RouteMatch, RouteTable};
use std::sync::Arc;

const TABLE: &str = r#"
name: t
virtual_hosts:
- name: some
  domains: ['a.test', '*.b.test', 'c.*', '[::1]']
  routes:
  - match: {path: /exact, case_sensitive: false}
    route: {cluster: a, prefix_rewrite: /other}
  - match: {path_separated_prefix: /sep}
    route: {cluster: a, prefix_rewrite: /}
  - match: {safe_regex: {regex: '/re/([a-z]*)/(.*)'}}
    route: {cluster: a, regex_rewrite: {pattern: {regex: '/re/([^/]*)/(.*)'}, substitution: '/\2/\1'}}
  - match: {path_match_policy: {name: t, typed_config: {'@type': type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig, path_template: '/t/{one}/{two=**}'}}}
    route: {cluster: a, path_rewrite_policy: {name: t, typed_config: {'@type': type.googleapis.com/envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig, path_template_rewrite: '/{two}/{one}'}}}
  - match: {prefix: /query, query_parameters: [{name: q, string_match: {prefix: x}}]}
    route: {cluster: a, host_rewrite_path_regex: {pattern: {regex: '^/query/(.*)$'}, substitution: '\1'}}
  - match: {prefix: /go}
    redirect: {prefix_rewrite: /gone, https_redirect: true, strip_query: false}
  - match: {prefix: /, headers: [{name: x, string_match: {contains: y}}]}
    route: {cluster_header: x}
- name: all
  domains: ['*']
  routes:
  - match: {prefix: /p}
    route: {cluster: a, prefix_rewrite: /q}
  - match: {prefix: /}
    route: {cluster: a}
"#;

struct Lab {
    table: Arc<RouteTable>,
    server: Arc<nuncio_core::registry::Server>,
}

fn lab() -> Lab {
    let config: RouteConfiguration = parse_text(TABLE, UnknownFields::Refuse).unwrap().value;
    let server = test_kit::server(Default::default());
    let mut report = Report::new();
    let table = compile(&config, &server, &mut report);
    Lab { table: table.unwrap_or_else(|| panic!("{:?}", report.items)), server }
}

/// Compiles a table as RDS would.
pub fn compile(config: &RouteConfiguration, server: &Arc<nuncio_core::registry::Server>, report: &mut Report) -> Option<Arc<RouteTable>> {
    let clusters: Arc<ClusterSlots> = Arc::default();
    let mut cx = RouteCx {
        clusters: &clusters,
        registry: &Registry::default(),
        server,
        scope: &server.stats.root(),
        direction: TrafficDirection::Unspecified,
        validate_clusters: false,
        report,
    };
    RouteTable::compile(config, &At::Root, &mut cx)
}

/// Routes one request and finishes it as the router would.
pub fn route(table: &RouteTable, server: &nuncio_core::registry::Server, mut head: RequestHead) {
    let info = test_kit::stream_info();
    let input = RouteInput { info: &info, random: 7, runtime: &server.runtime };
    let RouteMatch::Route(entry) = table.route(&head, &input) else { return };
    match entry.action() {
        Action::Redirect(redirect) => {
            let location = redirect.location(&head, &info);
            assert!(!format!("{location:?}").contains(['\r', '\n']));
        }
        Action::Forward(_) => {
            entry.finalize_request(&mut head, &info, true);
            let path = head.path.as_bytes();
            assert!(path.iter().all(|byte| *byte > b' ' && *byte != 0x7f), "{:?}", head.path);
        }
        _ => {}
    }
}

thread_local! {
    static LAB: Lab = lab();
}

/// Host, path and a header value, by lines; as the codec would have let them through.
pub fn check(data: &[u8]) {
    let mut lines = data.splitn(3, |byte| *byte == b'\n');
    let mut text = || std::str::from_utf8(lines.next().unwrap_or_default()).unwrap_or("/");
    let (host, path, value) = (text(), text(), text());
    if !nuncio_http::validate::is_valid_target(path.as_bytes()) || !nuncio_http::validate::is_valid_authority(host.as_bytes()) {
        return;
    }
    let mut head = RequestHead::new(Method::GET, host, "/");
    head.path = ByteStr::from(path);
    if let Ok(value) = HeaderValue::from_str(value) {
        head.headers.append(http::HeaderName::from_static("x"), value);
    }
    LAB.with(|lab| route(&lab.table, &lab.server, head));
}
