//! The control thread with file sources: live changes, what happens to broken files, and what validation says.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may fail a test")]

mod kit;

use kit::{Folder, Proxy, eventually, factories, http, listener};
use nuncio_control::{Args, Mode, run};

fn bootstrap(dir: &Folder) -> String {
    format!(
        "{{node: {{id: me}}, admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}, \
         dynamic_resources: {{lds_config: {{path_config_source: {{path: \"{}\", poll_interval: 0.02s}}}}}}}}",
        dir.path("lds.yaml")
    )
}

fn lds(dir: &Folder, names: &[&str]) -> String {
    let path = dir.path("rds.yaml");
    let routes =
        format!("rds: {{route_config_name: r, config_source: {{path_config_source: {{path: \"{path}\", poll_interval: 0.02s}}}}}}");
    let mut text = "version_info: '1'\nresources:\n".to_string();
    for name in names {
        let fields = listener(name, 0, &routes, "");
        text.push_str(&format!("- {{\"@type\": type.googleapis.com/envoy.config.listener.v3.Listener, {fields}}}\n"));
    }
    text
}

fn rds(version: &str, body: &str) -> String {
    format!(
        r#"version_info: '{version}'
resources:
- "@type": type.googleapis.com/envoy.config.route.v3.RouteConfiguration
  name: r
  virtual_hosts:
  - name: v
    domains: ['*']
    routes:
    - match: {{prefix: /}}
      direct_response: {{status: 200, body: {{inline_string: "{body}"}}}}
"#
    )
}

#[test]
fn files_are_followed_and_broken_ones_leave_what_serves() {
    let dir = Folder::new("files");
    dir.write("lds.yaml", &lds(&dir, &["web"]));
    dir.write("rds.yaml", &rds("1", "one"));
    let proxy = Proxy::start(&dir.0, bootstrap(&dir));
    proxy.wait_live();
    let web = proxy.listener("web").unwrap();
    assert_eq!(http(&web, "GET", "/").unwrap(), (200, "one".to_string()));

    dir.write("rds.yaml", &rds("2", "two"));
    eventually("the new route", || http(&web, "GET", "/").filter(|r| r.1 == "two"));
    assert_eq!(proxy.stat("http.web.rds.r.update_success").as_deref(), Some("2"));
    assert_eq!(proxy.stat("http.web.rds.r.version_text").as_deref(), Some("\"2\""));

    dir.write("rds.yaml", "resources: [{");
    eventually("the failure", || proxy.stat("http.web.rds.r.update_failure").filter(|n| n != "0"));
    dir.write("rds.yaml", &rds("3", "three").replace("prefix: /", "safe_regex: {regex: '('}"));
    eventually("the refusal", || proxy.stat("http.web.rds.r.update_rejected").filter(|n| n == "1"));
    assert_eq!(http(&web, "GET", "/").unwrap().1, "two");
    let dump = proxy.get("/config_dump?resource=dynamic_route_configs");
    assert!(dump.contains("\"error_state\"") && dump.contains("\"version_info\": \"3\""), "{dump}");

    dir.write("lds.yaml", &lds(&dir, &["web", "more"]));
    eventually("another listener", || proxy.listener("more"));
    assert_eq!(proxy.listener("web").unwrap(), web, "the first keeps its socket");
    dir.write("lds.yaml", &lds(&dir, &["more"]));
    eventually("the removal", || proxy.listener("web").is_none().then_some(()));
    assert_eq!(proxy.stat("listener_manager.listener_removed").as_deref(), Some("1"));
    assert_eq!(proxy.quit(), 0);
}

#[test]
fn a_listener_waits_for_its_routes_and_is_not_live_without_them() {
    let dir = Folder::new("waits");
    dir.write("lds.yaml", &lds(&dir, &["web"]));
    let proxy = Proxy::start(&dir.0, bootstrap(&dir));
    eventually("warming", || proxy.stat("listener_manager.total_listeners_warming").filter(|n| n == "1"));
    assert!(proxy.listener("web").is_none());
    let (status, body) = http(&proxy.admin, "GET", "/ready").unwrap();
    assert_eq!(status, 503);
    assert!(body.contains("INITIALIZING") && body.contains("RDS r"), "{body}");
    assert!(proxy.get("/init_dump").contains("RDS r"));
    dir.write("rds.yaml", &rds("1", "one"));
    proxy.wait_live();
    assert_eq!(http(&proxy.listener("web").unwrap(), "GET", "/").unwrap().1, "one");
    assert_eq!(proxy.quit(), 0);
}

#[test]
fn validation_says_yes_or_no() {
    let dir = Folder::new("validate");
    dir.write("lds.yaml", &lds(&dir, &["web"]));
    dir.write("rds.yaml", &rds("1", "one"));
    let validate = |yaml: String| run(Args { config_yaml: yaml, mode: Mode::Validate, ..Args::default() }, factories());
    assert_eq!(validate(bootstrap(&dir)), 0);
    dir.write("rds.yaml", &rds("1", "one").replace("prefix: /", "safe_regex: {regex: '('}"));
    assert_eq!(validate(bootstrap(&dir)), 1, "route files are part of it");
    assert_eq!(validate("{header_prefix: x-other}".to_string()), 1);
    assert_eq!(validate("{dynamic_resources: {cds_config: {ads: {}}}}".to_string()), 1);
}

#[test]
fn a_static_listener_that_cannot_be_bound_ends_the_process() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let yaml = format!("{{static_resources: {{listeners: [{{{}}}]}}}}", listener("x", port, "route_config: {}", ""));
    assert_eq!(run(Args { config_yaml: yaml, concurrency: 1, ..Args::default() }, factories()), 1);
}
