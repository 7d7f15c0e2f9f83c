//! The TLS gateway as OpenSSL and curl see it: certificates from files and from SDS, SNI, client certificates, rotation.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use nuncio_tests::{Authority, Gateway, Upstream, config, eventually, free_port};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// A filter chain that terminates TLS with `tls` (YAML of `common_tls_context`) and answers `says`.
fn chain(server_names: &str, tls: &str, more: &str, says: &str) -> String {
    format!(
        r#"
  - filter_chain_match: {{server_names: {server_names}}}
    transport_socket:
      name: envoy.transport_sockets.tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
        {more}
        common_tls_context: {tls}
    filters:
    - name: envoy.filters.network.http_connection_manager
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
        stat_prefix: tls
        forward_client_cert_details: SANITIZE_SET
        set_current_client_cert_details: {{uri: true, dns: true}}
        route_config: {{validate_clusters: false, virtual_hosts: [{{name: all, domains: ["*"], routes: [
          {{match: {{path: /echo}}, route: {{cluster: a}}}},
          {{match: {{prefix: /}}, direct_response: {{status: 200, body: {{inline_string: "{says}"}}}}}}]}}]}}
        http_filters: [{{name: router, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]"#
    )
}

fn listener(name: &str, port: u16, chains: &[String]) -> String {
    format!(
        r#"
- "@type": type.googleapis.com/envoy.config.listener.v3.Listener
  name: {name}
  address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
  listener_filters: [{{name: tls_inspector, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}}}}]
  filter_chains:{}"#,
        chains.concat()
    )
}

fn lds(version: &str, listeners: &[String]) -> String {
    format!("version_info: \"{version}\"\nresources:{}", listeners.concat())
}

fn files(ca: &Authority, name: &str) -> String {
    format!(
        "{{certificate_chain: {{filename: {}}}, private_key: {{filename: {}}}}}",
        ca.path(&format!("{name}.pem")),
        ca.path(&format!("{name}.key"))
    )
}

fn fixed(ca: &Authority, name: &str) -> String {
    format!("{{tls_certificates: [{}]}}", files(ca, name))
}

fn sds(name: &str) -> String {
    format!(
        "{{tls_certificate_sds_secret_configs: [{{name: {name}, sds_config: {{path_config_source: {{path: sds.yaml}}, resource_api_version: V3}}}}]}}"
    )
}

fn secret(version: &str, name: &str, ca: &Authority, certificate: &str) -> String {
    format!(
        "version_info: \"{version}\"\nresources:\n- \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret\n  name: {name}\n  tls_certificate: {}\n",
        files(ca, certificate)
    )
}

fn start(clusters: &[String], lds: String, sds: String) -> Gateway {
    let admin = free_port();
    let bootstrap = config::bootstrap(admin);
    Gateway::start(admin, &[("bootstrap.yaml", bootstrap), ("lds.yaml", lds), ("cds.yaml", config::cds("1", clusters)), ("sds.yaml", sds)])
}

/// The answer of curl, or why there is none.
fn curl(ca: &Authority, port: u16, host: &str, more: &[&str]) -> Result<String, String> {
    let (url, resolve) =
        (format!("https://{host}:{port}{}", if more.contains(&"echo") { "/echo" } else { "/" }), format!("{host}:{port}:127.0.0.1"));
    let done = Command::new("curl")
        .args(["-sS", "--max-time", "10", "--resolve", &resolve, "--cacert", &ca.path("ca.pem"), &url])
        .args(more.iter().filter(|m| **m != "echo"))
        .output()
        .unwrap();
    if done.status.success() { Ok(String::from_utf8_lossy(&done.stdout).into()) } else { Err(String::from_utf8_lossy(&done.stderr).into()) }
}

/// The subject of the certificate that a handshake shows; none if it fails.
fn subject(port: u16, sni: &str) -> Option<String> {
    let done = Command::new("openssl")
        .args(["s_client", "-connect", &format!("127.0.0.1:{port}"), "-servername", sni])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    text.lines().find_map(|l| l.strip_prefix("subject=")).map(|s| s.trim().replace("CN = ", "").replace("CN=", ""))
}

#[test]
fn sni_chooses_chain_and_certificate() {
    let ca = Authority::new("sni");
    ca.issue("exact", "DNS:a.example");
    ca.issue("wild", "DNS:*.shop.example");
    let port = free_port();
    let chains = [chain("[a.example]", &fixed(&ca, "exact"), "", "exact"), chain("[\"*.shop.example\"]", &sds("wild"), "", "wild")];
    let _gateway = start(&[], lds("1", &[listener("tls", port, &chains)]), secret("1", "wild", &ca, "wild"));
    assert_eq!(curl(&ca, port, "a.example", &[]).as_deref(), Ok("exact"));
    assert_eq!(curl(&ca, port, "b.shop.example", &[]).as_deref(), Ok("wild"));
    assert_eq!(curl(&ca, port, "b.shop.example", &["--tls-max", "1.2"]).as_deref(), Ok("wild"));
    assert!(curl(&ca, port, "other.test", &[]).is_err(), "no chain matches");
    assert_eq!(subject(port, "c.shop.example").as_deref(), Some("wild"));
}

#[test]
fn http2_by_alpn() {
    let ca = Authority::new("alpn");
    ca.issue("a", "DNS:a.example");
    let port = free_port();
    let tls = format!("{{alpn_protocols: [h2, http/1.1], tls_certificates: [{}]}}", files(&ca, "a"));
    let _gateway = start(&[], lds("1", &[listener("tls", port, &[chain("[a.example]", &tls, "", "x")])]), secret("1", "unused", &ca, "a"));
    for (flag, version) in [("--http2", "2"), ("--http1.1", "1.1")] {
        assert_eq!(curl(&ca, port, "a.example", &[flag, "-o", "/dev/null", "-w", "%{http_version}"]).as_deref(), Ok(version));
    }
}

#[test]
fn client_certificates_are_checked_and_named_upstream() {
    let (ca, other) = (Authority::new("mtls"), Authority::new("mtls-other"));
    ca.issue("server", "DNS:a.example");
    ca.issue("client", "URI:spiffe://cluster.local/ns/a/sa/b");
    other.issue("stranger", "URI:spiffe://cluster.local/ns/a/sa/b");
    ca.issue("wrong", "URI:spiffe://cluster.local/ns/a/sa/c");
    let a = Upstream::start("a");
    let port = free_port();
    let tls = format!(
        "{{tls_certificates: [{}], validation_context: {{trusted_ca: {{filename: {}}}, match_typed_subject_alt_names: [{{san_type: URI, matcher: {{exact: spiffe://cluster.local/ns/a/sa/b}}}}]}}}}",
        files(&ca, "server"),
        ca.path("ca.pem")
    );
    let chains = [chain("[a.example]", &tls, "require_client_certificate: true", "in")];
    let gateway =
        start(&[config::cluster("a", &[&a], "")], lds("1", &[listener("tls", port, &chains)]), secret("1", "unused", &ca, "server"));
    let with = |from: &Authority, name: &str| {
        let (pem, key) = (from.path(&format!("{name}.pem")), from.path(&format!("{name}.key")));
        curl(&ca, port, "a.example", &["echo", "--cert", &pem, "--key", &key])
    };
    let seen = with(&ca, "client").unwrap().to_lowercase();
    assert!(seen.contains("x-forwarded-client-cert: ") && seen.contains("uri=spiffe://cluster.local/ns/a/sa/b"), "{seen}");
    assert!(curl(&ca, port, "a.example", &[]).is_err(), "no certificate");
    assert!(with(&other, "stranger").is_err(), "another authority");
    assert!(with(&ca, "wrong").is_err(), "another name");
    let stats = gateway.admin("/stats?filter=ssl").text();
    for (name, at_least) in [("ssl.handshake", 1), ("ssl.fail_verify_no_cert", 1), ("ssl.fail_verify_san", 1), ("ssl.fail_verify_error", 1)]
    {
        let value = stats
            .lines()
            .find(|l| l.starts_with("listener.") && !l.contains(".worker_") && l.contains(&format!("{name}: ")))
            .and_then(|l| l.rsplit(' ').next()?.parse::<u64>().ok());
        assert!(value.is_some_and(|v| v >= at_least), "{name}: {value:?} in {stats}");
    }
}

#[test]
fn rotation_fails_no_handshake() {
    let ca = Authority::new("rotate");
    ca.issue("first", "DNS:a.example");
    ca.issue("second", "DNS:a.example");
    let port = free_port();
    let gateway =
        start(&[], lds("1", &[listener("tls", port, &[chain("[a.example]", &sds("cert"), "", "x")])]), secret("1", "cert", &ca, "first"));
    let (stop, failed, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let load = {
        let (stop, failed, made) = (stop.clone(), failed.clone(), made.clone());
        std::thread::spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                if subject(port, "a.example").is_none() {
                    failed.fetch_add(1, Ordering::SeqCst);
                }
                made.fetch_add(1, Ordering::SeqCst);
            }
        })
    };
    for (i, name) in ["second", "first", "second", "first", "second"].into_iter().enumerate() {
        let before = made.load(Ordering::SeqCst);
        gateway.write("sds.yaml", &secret(&format!("{}", i + 2), "cert", &ca, name));
        eventually("the new certificate", || subject(port, "a.example").as_deref() == Some(name));
        eventually("handshakes", || made.load(Ordering::SeqCst) > before + 2);
    }
    stop.store(true, Ordering::SeqCst);
    load.join().unwrap();
    assert_eq!(failed.load(Ordering::SeqCst), 0, "of {}", made.load(Ordering::SeqCst));
    // A secret that cannot be used is refused by name; the last one serves.
    gateway.write("sds.yaml", &secret("9", "cert", &ca, "missing"));
    eventually("the refusal", || gateway.log().contains("'cert' is refused"));
    assert_eq!(subject(port, "a.example").as_deref(), Some("second"));
}

#[test]
fn an_unreadable_certificate_refuses_its_listener_by_name_alone() {
    let ca = Authority::new("unreadable");
    ca.issue("good", "DNS:a.example");
    std::fs::write(ca.path("empty.pem"), "").unwrap();
    std::fs::copy(ca.path("good.key"), ca.path("empty.key")).unwrap();
    let (good, bad, worse) = (free_port(), free_port(), free_port());
    let listeners = [
        listener("good", good, &[chain("[a.example]", &fixed(&ca, "good"), "", "good")]),
        listener("absent", bad, &[chain("[a.example]", &fixed(&ca, "nowhere"), "", "bad")]),
        listener("hollow", worse, &[chain("[a.example]", &fixed(&ca, "empty"), "", "bad")]),
    ];
    let gateway = start(&[], lds("1", &listeners), secret("1", "unused", &ca, "good"));
    assert_eq!(curl(&ca, good, "a.example", &[]).as_deref(), Ok("good"));
    let log = gateway.log();
    assert!(log.contains("'absent' is refused") && log.contains("nowhere.pem"), "{log}");
    assert!(log.contains("'hollow' is refused") && log.contains("empty.pem"), "{log}");
    assert!(curl(&ca, bad, "a.example", &[]).is_err());
}

#[test]
fn passthrough_by_sni_leaves_tls_alone() {
    let ca = Authority::new("pass");
    ca.issue("inner", "DNS:inner.example");
    ca.issue("outer", "DNS:outer.example");
    let (front, back) = (free_port(), free_port());
    let pass = r#"
  - filter_chain_match: {server_names: [inner.example]}
    filters:
    - name: tcp
      typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: pass, cluster: back}"#;
    let listeners = [
        listener("front", front, &[pass.to_string(), chain("[outer.example]", &fixed(&ca, "outer"), "", "outer")]),
        listener("back", back, &[chain("[inner.example]", &fixed(&ca, "inner"), "", "inner")]),
    ];
    let cluster = format!(
        "- \"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster\n  name: back\n  type: STATIC\n  load_assignment: {{cluster_name: back, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {back}}}}}}}}}]}}]}}\n"
    );
    let gateway = start(&[cluster], lds("1", &listeners), secret("1", "unused", &ca, "inner"));
    assert_eq!(curl(&ca, front, "inner.example", &[]).as_deref(), Ok("inner"));
    assert_eq!(subject(front, "inner.example").as_deref(), Some("inner"));
    assert_eq!(curl(&ca, front, "outer.example", &[]).as_deref(), Ok("outer"));
    assert!(gateway.stat("tcp.pass.downstream_cx_total") >= 2);
}
