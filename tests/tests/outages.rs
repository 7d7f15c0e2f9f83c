//! Broken surroundings: control planes that are gone, disks that are full, files that are no configuration, signals.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use nuncio_tests::gateway::binary;
use nuncio_tests::{Connection, Gateway, Load, Upstream, config, eventually, free_port, get};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

const TO_A: &str = "    - match: {prefix: /}\n      route: {cluster: a}";

fn files(admin: u16, port: u16, a: &Upstream) -> Vec<(&'static str, String)> {
    vec![
        ("bootstrap.yaml", config::bootstrap(admin)),
        ("lds.yaml", config::lds("1", port, "")),
        ("cds.yaml", config::cds("1", &[config::cluster("a", &[a], "")])),
        ("rds.yaml", config::rds("1", TO_A)),
    ]
}

fn start(a: &Upstream) -> (Gateway, SocketAddr) {
    let (admin, port) = (free_port(), free_port());
    (Gateway::start(admin, &files(admin, port, a)), ([127, 0, 0, 1], port).into())
}

fn signal(gateway: &Gateway, name: &str) {
    assert!(Command::new("kill").args([format!("-{name}"), gateway.pid().to_string()]).status().unwrap().success());
}

/// A log line for each request into `path`.
fn access_log(path: &str) -> String {
    format!(
        "        access_log: [{{name: file, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: {path}, log_format: {{json_format: {{status: \"%RESPONSE_CODE%\", path: \"%REQ(:PATH)%\", took: \"%DURATION%\", none: \"%REQ(x-none)%\"}}}}}}}}]\n"
    )
}

fn with_log(lds: &str, path: &str) -> String {
    let (before, rest) = lds.split_once("        access_log:\n").unwrap();
    let after = rest.split_once("        rds:").unwrap().1;
    format!("{before}{}        rds:{after}", access_log(path))
}

#[test]
fn a_full_disk_stops_no_request() {
    let a = Upstream::start("a");
    let (admin, port) = (free_port(), free_port());
    let mut files = files(admin, port, &a);
    files[1].1 = with_log(&files[1].1, "/dev/full");
    let gateway = Gateway::start(admin, &files);
    let mut client = Connection::open(([127, 0, 0, 1], port).into()).unwrap();
    for _ in 0..200 {
        assert_eq!(client.request("GET", "x", "/", &[], &[]).unwrap().status, 200);
    }
    eventually("the failures are counted", || gateway.stat("filesystem.write_failed") > 0);
    assert_eq!(client.request("GET", "x", "/", &[], &[]).unwrap().status, 200);
    // Elsewhere there is room.
    let good = gateway.dir.join("access.log").display().to_string();
    gateway.write("lds.yaml", &with_log(&config::lds("2", port, ""), &good));
    eventually("a line", || {
        client.request("GET", "x", "/said", &[], &[]).unwrap();
        std::fs::read_to_string(&good).is_ok_and(|t| t.contains("/said"))
    });
    let line = std::fs::read_to_string(&good).unwrap();
    let line: serde_json::Value = serde_json::from_str(line.lines().next().unwrap()).unwrap();
    assert_eq!((line["status"].as_i64(), line["path"].as_str(), &line["none"]), (Some(200), Some("/said"), &serde_json::Value::Null));
    // A log that is moved away is written anew after SIGUSR1.
    let moved = gateway.dir.join("moved.log");
    std::fs::rename(&good, &moved).unwrap();
    signal(&gateway, "USR1");
    eventually("the new file", || {
        client.request("GET", "x", "/again", &[], &[]).unwrap();
        std::fs::read_to_string(&good).is_ok_and(|t| t.contains("/again"))
    });
}

#[test]
fn a_log_that_cannot_be_opened_refuses_its_listener() {
    let a = Upstream::start("a");
    let (gateway, address) = start(&a);
    gateway.write("lds.yaml", &with_log(&config::lds("2", address.port(), ""), "/nonexistent/folder/access.log"));
    eventually("the refusal", || gateway.log().contains("'web' is refused"));
    assert!(gateway.log().contains("/nonexistent/folder/access.log"));
    assert_eq!(get(address, "x", "/").unwrap().status, 200);
}

#[test]
fn files_that_are_no_configuration_change_nothing() {
    let a = Upstream::start("a");
    let (gateway, address) = start(&a);
    let load = Load::start(address, "x", "/", 1);
    for (i, bad) in [
        "",
        "# nothing",
        "resources: [",
        "{\"resources\": 7}",
        "resources: [{\"@type\": type.googleapis.com/no.such.Type, name: x}]",
        "resources: [{name: x}]",
        "\0\u{1}\u{2}",
    ]
    .into_iter()
    .enumerate()
    {
        for file in ["lds.yaml", "cds.yaml", "rds.yaml"] {
            gateway.write(file, bad);
        }
        eventually(&format!("a word about {bad:?}"), || {
            gateway.stat("listener_manager.lds.update_rejected") + gateway.stat("listener_manager.lds.update_failure") > i as u64
        });
    }
    load.pass(20);
    // Something in the right form, cut off.
    let whole = config::lds("3", address.port(), "");
    for cut in [whole.len() / 3, whole.len() / 2, whole.len() - 30] {
        gateway.write("lds.yaml", &whole[..cut]);
    }
    load.pass(20);
    let failed = load.stop();
    assert!(failed.is_empty(), "{failed:?}");
    gateway.write("rds.yaml", &config::rds("4", "    - match: {prefix: /}\n      direct_response: {status: 204}"));
    gateway.write("lds.yaml", &whole);
    eventually("recovery", || get(address, "x", "/").is_ok_and(|r| r.status == 204));
}

#[test]
fn a_control_plane_that_is_not_there_is_asked_again_and_serving_goes_on() {
    let a = Upstream::start("a");
    let (admin, port) = (free_port(), free_port());
    let bootstrap = format!(
        r#"
node: {{id: demo, cluster: demo}}
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {admin}}}}}}}
dynamic_resources:
  lds_config: {{ads: {{}}, initial_fetch_timeout: 0.2s, resource_api_version: V3}}
  cds_config: {{ads: {{}}, initial_fetch_timeout: 0.2s, resource_api_version: V3}}
  ads_config: {{api_type: DELTA_GRPC, transport_api_version: V3, grpc_services: [{{envoy_grpc: {{cluster_name: xds}}}}]}}
static_resources:
  clusters:
  - name: xds
    type: STATIC
    http2_protocol_options: {{}}
    load_assignment: {{cluster_name: xds, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{pipe: {{path: ./nobody.sock}}}}}}}}]}}]}}
{}
  listeners:
{}
"#,
        config::cluster("a", &[&a], "")
            .lines()
            .map(|l| format!("  {l}\n"))
            .collect::<String>()
            .replace("- \"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster\n    name: a", "- name: a"),
        config::lds("1", port, "")
            .split_once("resources:\n")
            .unwrap()
            .1
            .lines()
            .map(|l| format!("  {l}\n"))
            .collect::<String>()
            .replace("- \"@type\": type.googleapis.com/envoy.config.listener.v3.Listener\n    name: web", "- name: web"),
    );
    let gateway = Gateway::start(admin, &[("bootstrap.yaml", bootstrap), ("rds.yaml", config::rds("1", TO_A))]);
    assert_eq!(get(([127, 0, 0, 1], port).into(), "x", "/").unwrap().status, 200);
    eventually("another attempt", || {
        gateway.stat("cluster.xds.upstream_cx_connect_fail") + gateway.stat("cluster.xds.upstream_rq_pending_failure_eject") >= 1
            || gateway.log().contains("nobody.sock")
    });
    assert_eq!(gateway.stat("control_plane.connected_state"), 0);
}

#[test]
fn signals_mean_what_envoy_says() {
    let a = Upstream::start("a");
    let (mut gateway, address) = start(&a);
    signal(&gateway, "HUP");
    signal(&gateway, "USR1");
    assert_eq!(get(address, "x", "/").unwrap().status, 200);
    signal(&gateway, "INT");
    assert_eq!(gateway.exit_code(), Some(0));
}

#[test]
fn nobody_on_a_read_only_root_is_enough() {
    let a = Upstream::start("a");
    let (admin, port) = (free_port(), free_port());
    let dir = std::env::temp_dir().join(format!("nuncio-nobody-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    for (name, text) in files(admin, port, &a) {
        std::fs::write(dir.join(name), text).unwrap();
    }
    // As root: another user and a folder that nobody may write to. Otherwise the folder alone.
    let root = Command::new("id").arg("-u").output().unwrap().stdout.starts_with(b"0\n");
    let copy = dir.join("nuncio");
    std::fs::copy(binary(), &copy).unwrap();
    assert!(Command::new("chmod").args(["-R", "a-w,a+rX"]).arg(&dir).status().unwrap().success());
    let trace = std::env::temp_dir().join(format!("nuncio-nobody-{}.strace", std::process::id()));
    let mut command = if Command::new("strace").arg("-V").output().is_ok() {
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-e", "trace=openat,open,creat,mkdir,mkdirat,unlink,rename", "-o"]).arg(&trace);
        if root {
            command.args(["setpriv", "--reuid=1337", "--regid=1337", "--clear-groups"]);
        }
        command.arg(&copy);
        command
    } else {
        Command::new(&copy)
    };
    let mut child = command.current_dir(&dir).args(["-c", "bootstrap.yaml"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let up = std::panic::catch_unwind(|| {
        eventually("readiness", || get(([127, 0, 0, 1], admin).into(), "a", "/ready").is_ok_and(|r| r.status == 200));
        assert_eq!(get(([127, 0, 0, 1], port).into(), "x", "/").unwrap().status, 200);
    });
    let _quit = nuncio_tests::request(([127, 0, 0, 1], admin).into(), "POST", "a", "/quitquitquit", &[("content-length", "0")], &[]);
    std::thread::sleep(Duration::from_millis(50));
    let status = child.wait().unwrap();
    let calls = std::fs::read_to_string(&trace).unwrap_or_default();
    let _cleaned =
        (Command::new("chmod").args(["-R", "u+w"]).arg(&dir).status(), std::fs::remove_dir_all(&dir), std::fs::remove_file(&trace));
    up.unwrap();
    assert!(status.success());
    let writes: Vec<_> = calls
        .lines()
        .filter(|l| ["O_WRONLY", "O_RDWR", "O_CREAT", "creat(", "mkdir", "unlink", "rename("].iter().any(|w| l.contains(w)))
        .filter(|l| !["/dev/null", "/proc/", "/dev/stdout", "/dev/stderr"].iter().any(|p| l.contains(p)))
        .collect();
    assert!(writes.is_empty(), "{writes:#?}");
}

#[test]
fn four_gigabytes_are_announced_and_never_come() {
    let a = Upstream::start("a");
    let (gateway, address) = start(&a);
    let before = gateway.stat("server.memory_physical_size");
    for length in ["4294967296", "18446744073709551615"] {
        let mut client = Connection::open(address).unwrap();
        client.send(format!("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\nabc").as_bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(100));
    }
    let mut client = Connection::open(address).unwrap();
    client.send(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 18446744073709551616\r\n\r\nabc").unwrap();
    assert_eq!(client.read(false).unwrap().status, 400);
    assert_eq!(get(address, "x", "/").unwrap().status, 200);
    assert!(gateway.stat("server.memory_physical_size") < before + (64 << 20), "nothing is set aside for what was announced");
}
