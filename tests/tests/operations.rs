//! The process as operators meet it: command line, validation, admin, broken surroundings.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use nuncio_tests::gateway::binary;
use nuncio_tests::{Connection, Gateway, Upstream, config, eventually, free_port, get};
use std::process::Command;

fn run(args: &[&str]) -> (Option<i32>, String) {
    let out = Command::new(binary()).args(args).output().unwrap();
    (out.status.code(), format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr)))
}

#[test]
fn version_is_readable() {
    let (code, text) = run(&["--version"]);
    assert_eq!(code, Some(0));
    assert!(text.contains("version:") && text.contains(env!("CARGO_PKG_VERSION")), "{text}");
}

#[test]
fn the_line_of_pilot_agent_is_accepted() {
    let yaml = "admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}";
    let (code, text) = run(&[
        "--mode",
        "validate",
        "--config-yaml",
        yaml,
        "--drain-time-s",
        "45",
        "--drain-strategy",
        "immediate",
        "--local-address-ip-version",
        "v4",
        "--file-flush-interval-msec",
        "1000",
        "--disable-hot-restart",
        "--allow-unknown-static-fields",
        "-l",
        "warning",
        "--component-log-level",
        "misc:error",
        "--skip-deprecated-logs",
        "--concurrency",
        "2",
        "--enable-core-dump",
        "--log-format",
        "%v",
        "--parent-shutdown-time-s=900",
    ]);
    assert_eq!(code, Some(0), "{text}");
}

#[test]
fn validation_names_every_problem() {
    let yaml = r#"
static_resources:
  clusters:
  - {name: a, type: STATIC, lb_policy: NONSENSE}
"#;
    let (code, text) = run(&["--mode", "validate", "--config-yaml", yaml]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("lb_policy") && text.contains("NONSENSE"), "{text}");
    let yaml = r#"
static_resources:
  listeners:
  - name: one
    address: {socket_address: {address: 127.0.0.1, port_value: 1}}
    filter_chains: [{filters: [{name: x, typed_config: {"@type": type.googleapis.com/google.protobuf.Empty}}]}]
  clusters:
  - {name: two, type: STATIC, max_requests_per_connection: 0, lb_subset_config: {subset_selectors: [{keys: [a], fallback_policy: 99}]}}
"#;
    let (code, text) = run(&["--mode", "validate", "--config-yaml", yaml]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("one") && text.contains("filters[0]") && text.contains("two") && text.contains("lb_subset_config"), "{text}");
}

#[test]
fn broken_files_and_flags_are_clear() {
    for (args, expect) in [
        (vec!["-c", "/nonexistent/bootstrap.yaml"], "/nonexistent/bootstrap.yaml"),
        (vec!["--config-yaml", "{: ["], "yaml"),
        (vec!["--no-such-flag"], "no-such-flag"),
        (vec!["--mode", "validate", "--config-yaml", "{}", "--concurrency", "many"], "concurrency"),
    ] {
        let (code, text) = run(&args);
        assert_eq!(code, Some(1), "{args:?}: {text}");
        assert!(text.to_lowercase().contains(&expect.to_lowercase()), "{args:?} should say {expect:?}: {text}");
    }
}

fn gateway(a: &Upstream) -> (Gateway, u16) {
    let (admin, port) = (free_port(), free_port());
    let gateway = Gateway::start(
        admin,
        &[
            ("bootstrap.yaml", config::bootstrap(admin)),
            ("lds.yaml", config::lds("1", port, "")),
            ("cds.yaml", config::cds("1", &[config::cluster("a", &[a], "")])),
            ("rds.yaml", config::rds("1", "    - match: {prefix: /}\n      route: {cluster: a}")),
        ],
    );
    (gateway, port)
}

#[test]
fn admin_answers_as_envoy() {
    let a = Upstream::start("a");
    let (gateway, port) = gateway(&a);
    get(([127, 0, 0, 1], port).into(), "x", "/").unwrap();
    assert_eq!(gateway.admin("/ready").text(), "LIVE\n");
    let dump: serde_json::Value = serde_json::from_slice(&gateway.admin("/config_dump?include_eds").body).unwrap();
    let kinds: Vec<_> =
        dump["configs"].as_array().unwrap().iter().map(|c| c["@type"].as_str().unwrap().rsplit('.').next().unwrap().to_string()).collect();
    for kind in
        ["BootstrapConfigDump", "ClustersConfigDump", "EndpointsConfigDump", "ListenersConfigDump", "RoutesConfigDump", "SecretsConfigDump"]
    {
        assert!(kinds.iter().any(|k| k == kind), "{kind} is missing in {kinds:?}");
    }
    // The agent sends its filters without percent-encoding.
    let mut raw = Connection::open(gateway.admin).unwrap();
    raw.send(b"GET /stats?usedonly&filter=^(server\\.state|listener_manager\\.workers_started) HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    let stats = raw.read(false).unwrap().text();
    assert!(stats.contains("server.state: 0\n") && stats.contains("listener_manager.workers_started: 1\n"), "{stats}");
    for path in [
        "/",
        "/help",
        "/certs",
        "/clusters",
        "/clusters?format=json",
        "/listeners",
        "/listeners?format=json",
        "/logging",
        "/memory",
        "/runtime",
        "/server_info",
        "/stats",
        "/stats?format=json",
        "/stats/prometheus",
        "/init_dump",
        "/hot_restart_version",
        "/config_dump?mask=bootstrap",
    ] {
        let reply = if path == "/logging" { gateway.admin_post(path) } else { gateway.admin(path) };
        assert_eq!(reply.status, 200, "{path}: {}", reply.text());
        assert!(!reply.body.is_empty(), "{path}");
    }
    assert_eq!(gateway.admin("/no/such").status, 404);
    assert_eq!(gateway.admin("/quitquitquit").status, 405, "changes need POST");
    gateway.admin_post("/healthcheck/fail");
    assert_eq!(get(([127, 0, 0, 1], port).into(), "x", "/").unwrap().header("connection"), Some("close"));
    gateway.admin_post("/healthcheck/ok");
}

#[test]
fn a_port_in_use_refuses_that_listener_alone() {
    let a = Upstream::start("a");
    let (gateway, port) = gateway(&a);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let other = config::lds("2", taken.local_addr().unwrap().port(), "").replace("name: web\n  address", "name: other\n  address");
    let both = config::lds("2", port, "") + other.split_once("resources:").unwrap().1;
    gateway.write("lds.yaml", &both);
    eventually("the refusal", || {
        gateway.stat("listener_manager.lds.update_rejected") + gateway.stat("listener_manager.listener_create_failure") > 0
    });
    assert_eq!(get(([127, 0, 0, 1], port).into(), "x", "/").unwrap().status, 200);
    assert!(gateway.log().contains("other"), "the log names the listener: {}", gateway.log());
}

#[test]
fn quitquitquit_ends_the_process() {
    let a = Upstream::start("a");
    let (mut gateway, _) = gateway(&a);
    gateway.admin_post("/quitquitquit");
    assert_eq!(gateway.exit_code(), Some(0));
}
