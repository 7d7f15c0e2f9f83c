//! Every other endpoint, compared with what Envoy 1.40 answered.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // It is a test.

mod kit;

use std::rc::Rc;

use kit::*;
use nuncio_admin::*;
use nuncio_core::Address;
use nuncio_proto::envoy::config::bootstrap::v3::Admin;
use nuncio_proto::envoy::r#type::matcher::v3::StringMatcher;
use nuncio_proto::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use serde_json::Value;

fn local(name: &str) -> String {
    std::fs::read_to_string(format!("{}/tests/data/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

#[test]
fn texts_and_statuses_of_envoy() {
    let fake = Rc::new(Fake::default());
    with_admin(fake.clone(), |at| async move {
        for (method, target, status, body) in [
            ("GET", "/ready", 200, "LIVE\n"),
            ("PUT", "//ready#x", 200, "LIVE\n"),
            ("GET", "http://localhost:15000/ready?x", 200, "LIVE\n"),
            ("GET", "/hot_restart_version", 200, "disabled"),
            ("GET", "/init_dump", 200, "{}\n"),
            ("GET", "/logging", 405, "Method GET not allowed, POST required."),
            ("HEAD", "/quitquitquit", 405, ""),
            ("POST", "/drain_listeners", 200, "OK\n"),
            ("POST", "/drain_listeners?graceful", 200, "OK\n"),
            ("POST", "/drain_listeners?inboundonly&graceful&skip_exit", 200, "OK\n"),
            ("POST", "/healthcheck/fail", 200, "OK\n"),
            ("POST", "/healthcheck/ok", 200, "OK\n"),
            ("POST", "/reset_counters", 200, "OK\n"),
            ("POST", "/reopen_logs", 200, "OK\n"),
            ("POST", "/stats/recentlookups/enable", 200, "OK\n"),
            ("POST", "/cpuprofiler", 400, "?enable=<y|n>\n"),
            ("POST", "/cpuprofiler?enable=y", 501, "The current build does not support cpu profiler\n"),
            ("POST", "/heapprofiler", 501, "The current build does not support heap profiler\n"),
            ("GET", "/clusters", 200, ""),
            ("GET", "/clusters?format=json", 200, "{}\n"),
            ("GET", "/clusters?filter=(", 400, "Invalid re2 regex\n"),
            ("GET", "/stats?type=foo", 400, "invalid &type= param\n"),
            ("GET", "/stats?format=foo", 400, "usage: /stats?format=(html|active-html|json|prometheus|text)\n\n"),
            ("GET", "/stats?hidden=foo", 400, "usage: /stats?hidden=(include|only|exclude)\n\n"),
            ("POST", "/runtime_modify?a=1&b=", 200, "OK\n"),
            ("POST", "/runtime_modify?refused=1", 503, "No admin layer specified\n"),
            ("POST", "/quitquitquit", 200, "OK\n"),
        ] {
            let answer = send(&at, method, target).await;
            assert_eq!((answer.status, answer.body.as_str()), (status, body), "{method} {target}");
        }
        let nothing = get(&at, "/nope").await;
        assert_eq!((nothing.status, nothing.body), (404, format!("invalid path. {}", local("help.txt"))));
        assert_eq!(get(&at, "/help").await.body, local("help.txt"));
        assert!(get(&at, "/").await.head.contains("content-type: text/html"));
    });
    let asked = fake.asked.borrow();
    let drain = |graceful, inbound_only, skip_exit| format!("{:?}", Drain { graceful, inbound_only, skip_exit });
    assert_eq!(
        *asked,
        [
            &drain(false, false, false),
            &drain(true, false, false),
            &drain(true, true, true),
            "health true",
            "health false",
            "reopen",
            "runtime [(\"a\", \"1\"), (\"b\", \"\")]",
            "runtime [(\"refused\", \"1\")]",
            "quit",
        ]
    );
}

#[test]
fn not_ready_says_why() {
    let fake = Rc::new(Fake::default());
    *fake.state.borrow_mut() = State::PreInitializing;
    with_admin(fake, |at| async move {
        let answer = get(&at, "/ready").await;
        assert_eq!((answer.status, answer.body.as_str()), (503, "PRE_INITIALIZING\nwaiting for the first CDS response\n"));
        let dump: Value = serde_json::from_str(&get(&at, "/init_dump").await.body).unwrap();
        assert_eq!(dump["unready_targets_dumps"][0]["target_names"][0], "CDS");
        let dump: Value = serde_json::from_str(&get(&at, "/init_dump?mask=listener").await.body).unwrap();
        assert_eq!(dump["unready_targets_dumps"].as_array().unwrap().len(), 1);
    });
}

#[test]
fn messages_are_laid_out_as_envoys() {
    with_admin(Rc::new(Fake::default()), |at| async move {
        for file in ["server_info", "certs", "memory"] {
            let (ours, envoys) = (get(&at, &format!("/{file}")).await.body, reference(&format!("{file}.json")));
            let values: (Value, Value) = (serde_json::from_str(&ours).unwrap(), serde_json::from_str(&envoys).unwrap());
            assert_eq!(values.0, values.1);
            assert_eq!(ours.lines().count(), envoys.lines().count());
        }
        assert_eq!(get(&at, "/memory").await.body, reference("memory.json"));
        let runtime = "{\n \"layers\": [\n  \"static\",\n  \"admin\"\n ],\n \"entries\": {\n  \"a\\\"b\": {\n   \"layer_values\": [\n    \"1\",\n    \"7\"\n   ],\n   \"final_value\": \"7\"\n  }\n }\n}\n";
        assert_eq!(get(&at, "/runtime").await.body, runtime);
    });
}

#[test]
fn log_levels() {
    with_admin(Rc::new(Fake::default()), |at| async move {
        assert_eq!(post(&at, "/logging").await.body, "active loggers:\n  admin: info\n  http: info\n\n");
        assert_eq!(post(&at, "/logging?http=debug").await.body, "active loggers:\n  admin: info\n  http: debug\n\n");
        assert_eq!(post(&at, "/logging?level=warn").await.body, "active loggers:\n  admin: warning\n  http: warning\n\n");
        assert_eq!(post(&at, "/logging?paths=http:off,admin:trace").await.body, "active loggers:\n  admin: trace\n  http: off\n\n");
        for (query, error) in [
            ("level=foo", "unknown logger level"),
            ("foo=debug", "unknown logger name"),
            ("paths=bad", "empty logger name or empty logger level"),
            ("paths=http:info,nope:debug", "unknown logger name"),
            ("group=http:debug", "group parameter requires fine-grain logging to be enabled"),
            ("level=info&http=debug", "invalid number of parameters"),
        ] {
            let answer = post(&at, &format!("/logging?{query}")).await;
            assert_eq!(answer.status, 400, "{query}");
            assert!(
                answer.body.starts_with(&format!("error: {error}\n\nusage: /logging?<name>=<level> (change single level)\n")),
                "{}",
                answer.body
            );
            assert!(answer.body.ends_with("active loggers:\n  admin: trace\n  http: off\n\n"), "nothing changed");
        }
    });
}

fn host(address: &str) -> HostStatus {
    HostStatus {
        address: Address::Ip(address.parse().unwrap()),
        hostname: String::new(),
        stats: HostStats::default(),
        health: HostHealth::default(),
        weight: 1,
        region: "region1".into(),
        zone: "zone1".into(),
        sub_zone: String::new(),
        canary: false,
        priority: 0,
        success_rate: -1.0,
        local_origin_success_rate: -1.0,
    }
}

/// The reference's clusters, read back from its text form.
fn clusters() -> Vec<ClusterStatus> {
    let mut all: Vec<ClusterStatus> = Vec::new();
    for line in local("clusters.txt").lines() {
        let (name, rest) = line.split_once("::").unwrap();
        let (key, value) = rest.rsplit_once("::").unwrap();
        if all.last().is_none_or(|c| &*c.name != name) {
            let limits = Limits { max_connections: 0, max_pending_requests: 0, max_requests: 0, max_retries: 0 };
            all.push(ClusterStatus {
                name: name.into(),
                observability_name: value.into(),
                added_via_api: false,
                eds_service_name: String::new(),
                outlier: None,
                default_priority: limits,
                high_priority: limits,
                hosts: Vec::new(),
            });
        }
        let cluster = all.last_mut().unwrap();
        match key.split_once("::") {
            Some(("outlier", _)) => cluster.outlier = Some(OutlierStatus::default()),
            Some((priority @ ("default_priority" | "high_priority"), limit)) => {
                let limits = if priority == "high_priority" { &mut cluster.high_priority } else { &mut cluster.default_priority };
                let value = value.parse().unwrap();
                match limit {
                    "max_connections" => limits.max_connections = value,
                    "max_pending_requests" => limits.max_pending_requests = value,
                    "max_requests" => limits.max_requests = value,
                    _ => limits.max_retries = value,
                }
            }
            Some((address, key)) => {
                let parsed = || Address::Ip(address.parse().unwrap());
                let known = |h: &HostStatus| h.address.to_string() == address;
                if !cluster.hosts.iter().any(known) {
                    let at = address.parse::<std::net::SocketAddr>();
                    let address = if at.is_ok() { parsed() } else { Address::Pipe(address.into()) };
                    cluster.hosts.push(HostStatus { address, ..host("127.0.0.1:1") });
                }
                let host = cluster.hosts.last_mut().unwrap();
                let stats = &mut host.stats;
                match key {
                    "cx_active" => stats.cx_active = value.parse().unwrap(),
                    "cx_connect_fail" => stats.cx_connect_fail = value.parse().unwrap(),
                    "cx_total" => stats.cx_total = value.parse().unwrap(),
                    "rq_active" => stats.rq_active = value.parse().unwrap(),
                    "rq_error" => stats.rq_error = value.parse().unwrap(),
                    "rq_pending_active" => stats.rq_pending_active = value.parse().unwrap(),
                    "rq_success" => stats.rq_success = value.parse().unwrap(),
                    "rq_timeout" => stats.rq_timeout = value.parse().unwrap(),
                    "rq_total" => stats.rq_total = value.parse().unwrap(),
                    "hostname" => host.hostname = value.into(),
                    "weight" => host.weight = value.parse().unwrap(),
                    "region" => host.region = value.into(),
                    "zone" => host.zone = value.into(),
                    _ => {}
                }
            }
            None if key == "added_via_api" => cluster.added_via_api = value == "true",
            None if key == "eds_service_name" => cluster.eds_service_name = value.into(),
            None => {}
        }
    }
    all
}

#[test]
fn clusters_in_text_and_json() {
    let fake = Fake { clusters: clusters(), ..Fake::default() };
    with_admin(Rc::new(fake), |at| async move {
        assert_eq!(get(&at, "/clusters").await.body, local("clusters.txt"));
        let json = |text: &str| {
            let mut all = serde_json::from_str::<Value>(text).unwrap()["cluster_statuses"].as_array().unwrap().clone();
            all.sort_by_key(|c| c["name"].to_string());
            for cluster in &mut all {
                if let Some(hosts) = cluster.get_mut("host_statuses").and_then(Value::as_array_mut) {
                    hosts.sort_by_key(|h| h["address"].to_string());
                    // The two answers were recorded at different moments.
                    hosts.iter_mut().for_each(|h| h["stats"] = h["stats"].as_array().unwrap().iter().map(|s| s["name"].clone()).collect());
                }
            }
            all
        };
        let ours = get(&at, "/clusters?format=json").await.body;
        assert_eq!(json(&ours), json(&local("clusters.json")));
        let one = get(&at, "/clusters?filter=^agent$").await.body;
        assert!(one.starts_with("agent::observability_name::agent;\n") && one.lines().all(|l| l.starts_with("agent::")));
    });
}

#[test]
fn health_flags_and_rates() {
    let mut sick = host("10.0.0.1:80");
    sick.health =
        HostHealth { failed_active_health_check: true, failed_outlier_check: true, eds_health_status: 3, ..HostHealth::default() };
    (sick.success_rate, sick.stats.rq_total) = (99.5, 3);
    let mut cluster = clusters().remove(0);
    cluster.outlier = Some(OutlierStatus { success_rate_ejection_threshold: 50.0, ..OutlierStatus::default() });
    cluster.hosts = vec![sick];
    with_admin(Rc::new(Fake { clusters: vec![cluster], ..Fake::default() }), |at| async move {
        let text = get(&at, "/clusters").await.body;
        assert!(text.contains("::10.0.0.1:80::health_flags::/failed_active_hc/failed_outlier_check/eds_status_draining\n"), "{text}");
        assert!(text.contains("::10.0.0.1:80::success_rate::99.5\n") && text.contains("::outlier::success_rate_ejection_threshold::50\n"));
        let json: Value = serde_json::from_str(&get(&at, "/clusters?format=json").await.body).unwrap();
        let cluster = &json["cluster_statuses"][0];
        assert_eq!(cluster["success_rate_ejection_threshold"]["value"], 50);
        let health = &cluster["host_statuses"][0]["health_status"];
        assert_eq!((&health["failed_outlier_check"], &health["eds_health_status"]), (&Value::Bool(true), &Value::from("DRAINING")));
        assert_eq!(cluster["host_statuses"][0]["stats"][5]["value"], "3");
    });
}

#[test]
fn listeners_in_text_and_json() {
    let listener = |name: &str, at: &str| ListenerStatus {
        name: name.into(),
        local_address: Address::Ip(at.parse().unwrap()),
        additional_local_addresses: Vec::new(),
    };
    let listeners = [("0.0.0.0_15090", "0.0.0.0:15090"), ("0.0.0.0_15021", "0.0.0.0:15021"), ("0.0.0.0_8080", "0.0.0.0:8080")]
        .map(|(n, a)| listener(n, a));
    with_admin(Rc::new(Fake { listeners: listeners.to_vec(), ..Fake::default() }), |at| async move {
        assert_eq!(get(&at, "/listeners").await.body, local("listeners.txt"));
        assert_eq!(get(&at, "/listeners?format=json").await.body, local("listeners.json"));
    });
}

#[test]
fn stats_as_pilot_agent_asks() {
    let fake = Rc::new(Fake::default());
    let root = fake.stats.root();
    root.counter("cluster_manager.cds.update_success").inc();
    root.counter("listener_manager.lds.update_success").inc();
    root.counter("listener_manager.lds.update_rejected");
    root.gauge("server.state").set(0);
    root.gauge("listener_manager.workers_started").set(1);
    with_admin(fake, |at| async move {
        let target = r"/stats?usedonly&filter=^(cluster_manager\.cds|listener_manager\.lds)\.(update_success|update_rejected)$";
        assert_eq!(get(&at, target).await.body, "cluster_manager.cds.update_success: 1\nlistener_manager.lds.update_success: 1\n");
        let target = r"/stats?usedonly&filter=^(server\.state|listener_manager\.workers_started)";
        assert_eq!(get(&at, target).await.body, "listener_manager.workers_started: 1\nserver.state: 0\n");
        let answer = get(&at, "/stats?format=json&filter=server.state").await;
        assert_eq!(answer.body, r#"{"stats":[{"name":"server.state","value":0}]}"#);
        let answer = get(&at, "/stats/prometheus?filter=server.state").await;
        assert_eq!(answer.body, "# TYPE envoy_server_state gauge\nenvoy_server_state{} 0\n");
        assert_eq!(
            get(&at, "/stats?type=Gauges&filter=cds&invert_filter&usedonly&type=Gauges")
                .await
                .body
                .lines()
                .filter(|l| l.contains("cds"))
                .count(),
            0
        );
        let html = get(&at, "/stats?format=html&filter=server.state").await;
        assert!(html.head.contains("text/html") && html.body.contains("server.state: 0"));
        let bad = get(&at, "/stats?filter=(").await;
        assert_eq!(bad.status, 400);
        assert!(bad.body.starts_with("Invalid re2 regex: ") && bad.body.ends_with(": (\n"), "{}", bad.body);
        post(&at, "/reset_counters").await;
        assert_eq!(get(&at, "/stats?filter=cds.update_success").await.body, "cluster_manager.cds.update_success: 0\n");
        assert_ne!(get(&at, "/stats?filter=http.admin.downstream_rq_2xx").await.body, "http.admin.downstream_rq_2xx: 0\n");
    });
}

#[test]
fn connections_are_kept_and_bounded_answers_have_a_length() {
    with_admin(Rc::new(Fake::default()), |at| async move {
        let text = raw(&at, "GET /ready HTTP/1.1\r\nHost: x\r\n\r\nHEAD /help HTTP/1.1\r\nHost: x\r\n\r\nGET /ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
        assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 3, "{text}");
        assert_eq!(text.matches("content-length: 5\r\n").count(), 2);
        assert!(!text.contains("admin commands"));
        for header in ["cache-control: no-cache, max-age=0", "x-content-type-options: nosniff", "server: envoy"] {
            assert!(text.contains(header), "{header}");
        }
        assert!(raw(&at, "GET /ready HTTP/1.0\r\n\r\n").await.ends_with("connection: close\r\n\r\nLIVE\n"));
        assert!(raw(&at, "NONSENSE\r\n\r\n").await.starts_with("HTTP/1.1 400 Bad Request\r\n"));
    });
}

#[test]
fn only_allowed_paths() {
    let matcher = StringMatcher { match_pattern: Some(MatchPattern::Exact("/ready".into())), ..Default::default() };
    let config = Admin { allow_paths: vec![matcher], ..Default::default() };
    let mut report = nuncio_core::diag::Report::new();
    let options = AdminOptions::compile(&config, &server(), &nuncio_core::diag::At::Root, &mut report).unwrap();
    with_options(Rc::new(Fake::default()), options, |at| async move {
        assert_eq!(get(&at, "/ready").await.status, 200);
        let refused = get(&at, "/stats?x").await;
        assert_eq!((refused.status, refused.body.as_str()), (403, "request to path /stats not allowed"));
    });
}

#[test]
fn requests_are_logged() {
    let path = std::env::temp_dir().join(format!("nuncio-admin-{}.log", std::process::id()));
    #[allow(deprecated)]
    let config = Admin { access_log_path: path.to_str().unwrap().into(), ..Default::default() };
    let mut report = nuncio_core::diag::Report::new();
    let options = AdminOptions::compile(&config, &server(), &nuncio_core::diag::At::Root, &mut report);
    let options = options.unwrap_or_else(|| panic!("{}", report.summary()));
    with_options(Rc::new(Fake::default()), options, |at| async move {
        get(&at, "/ready?a^b").await;
        post(&at, "/nope").await;
    });
    nuncio_format::Files::flush();
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(text.contains("\"GET /ready?a^b HTTP/1.1\" 200 - 0 5 "), "{text}");
    assert!(text.contains("\"POST /nope HTTP/1.1\" 404 "), "{text}");
}

fn server() -> std::sync::Arc<nuncio_core::registry::Server> {
    std::sync::Arc::new(nuncio_core::registry::Server {
        node: Default::default(),
        stats: nuncio_stats::Store::new(),
        runtime: Default::default(),
        started: std::time::Instant::now(),
        concurrency: 1,
        drain_time: std::time::Duration::ZERO,
        clusters: Default::default(),
    })
}

#[test]
fn unix_sockets() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let path = std::env::temp_dir().join(format!("nuncio-admin-{}.sock", std::process::id()));
        let address = Address::Pipe(path.to_str().unwrap().into());
        drop(AdminServer::bind(&address, 0).unwrap());
        let bound = AdminServer::bind(&address, 0o600).unwrap();
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions()) & 0o777, 0o600);
        let client = async {
            let mut io = tokio::net::UnixStream::connect(&path).await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut io, b"GET /ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
            let mut text = String::new();
            tokio::io::AsyncReadExt::read_to_string(&mut io, &mut text).await.unwrap();
            assert!(text.ends_with("LIVE\n"));
        };
        tokio::select! {
            () = bound.run(Rc::new(Fake::default()), AdminOptions::open()) => {}
            () = client => {}
        }
        std::fs::remove_file(&path).unwrap();
        let name = format!("@nuncio-admin-{}", std::process::id());
        assert!(AdminServer::bind(&Address::Pipe(name.as_str().into()), 0).is_ok(), "abstract");
        std::fs::write(&path, "not a socket").unwrap();
        assert!(AdminServer::bind(&address, 0).is_err(), "a file is not removed");
        std::fs::remove_file(&path).unwrap();
    });
}
