//! Who may call: the examples of keys, tokens, signed requests and signed links, and keys of a server that fails.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use aws_lc_rs::{digest, hmac};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use nuncio_tests::client::{get, request};
use nuncio_tests::gateway::Gateway;
use nuncio_tests::upstream::{Behaviour, Upstream};
use nuncio_tests::{eventually, free_port};
use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

const HOST: &str = "localhost:8080";

fn example(name: &str) -> String {
    std::fs::read_to_string(format!("{}/../examples/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// A gateway with this configuration, its ports replaced by free ones.
fn start(text: &str) -> (Gateway, SocketAddr) {
    let (admin, port) = (free_port(), free_port());
    let mut text = text.to_string();
    for (from, to) in [(9901, admin), (8080, port)] {
        text = text.replace(&format!("port_value: {from}"), &format!("port_value: {to}"));
    }
    (Gateway::start(admin, &[("bootstrap.yaml", text)]), ([127, 0, 0, 1], port).into())
}

fn status(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> u16 {
    request(address, "GET", HOST, path, headers, b"").unwrap().status
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn mac(secret: &str, text: &str) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()), text.as_bytes()).as_ref().to_vec()
}

#[test]
fn keys_and_limits_per_consumer() {
    let (gateway, address) = start(&example("api-keys.yaml"));
    let call = |key: &str| status(address, "/", &[("x-api-key", key)]);
    assert_eq!((status(address, "/", &[]), call("wrong"), status(address, "/healthz", &[])), (401, 401, 200));
    assert_eq!((1..=4).map(|_| call("bob-key")).collect::<Vec<_>>(), [200, 200, 429, 429]);
    assert_eq!((1..=3).map(|_| call("carol-key")).collect::<Vec<_>>(), [200, 200, 429], "limits of her own");
    let keys = ["acme-key-2024", "acme-key-2025"];
    assert_eq!((0..7).map(|i| call(keys[i % 2])).collect::<Vec<_>>(), [200, 200, 200, 200, 200, 429, 429], "one consumer, two keys");
    assert_eq!(status(address, "/?api_key=bob-key", &[]), 429);
    assert_eq!(
        (status(address, "/admin", &[("x-api-key", "bob-key")]), status(address, "/admin", &[("x-api-key", "acme-key-2024")])),
        (403, 200)
    );
    assert_eq!(gateway.stat("http.web.consumer.consumer.acme.requests"), 8);
    eventually("the access log", || gateway.stdout().contains("consumer=carol"));
    // No key is to be seen anywhere.
    let seen = [gateway.admin("/config_dump").text(), gateway.admin("/stats").text(), gateway.stdout(), gateway.log()].join("\n");
    for key in ["acme-key-2024", "acme-key-2025", "bob-key", "carol-key"] {
        assert!(!seen.contains(key), "{key}");
    }
    assert!(seen.contains("[redacted]"));
}

#[test]
fn tokens_choose_the_way() {
    let text = example("jwt-claims.yaml");
    let token = |who: &str| text.lines().find_map(|l| l.strip_prefix(&format!("# {who}: "))).unwrap().to_string();
    let (gateway, address) = start(&text);
    let call = |token: &str| request(address, "GET", HOST, "/", &[("authorization", &format!("Bearer {token}"))], b"").unwrap();
    assert_eq!(call(&token("admin")).text(), "for admins");
    assert_eq!(call(&token("user")).text(), "for everybody");
    assert_eq!((status(address, "/", &[]), status(address, "/healthz", &[])), (401, 200));
    // The user's claims with the admin's signature.
    let (user, admin) = (token("user"), token("admin"));
    let forged = format!("{}.{}", user.rsplit_once('.').unwrap().0, admin.rsplit_once('.').unwrap().1);
    let reply = call(&forged);
    assert_eq!((reply.status, reply.text().as_str()), (401, "Jwt verification fails"));
    eventually("the access log", || {
        let log = gateway.stdout();
        log.contains("200 direct_response sub=alice") && log.contains("401 jwt_authn_access_denied{Jwt_verification_fails} sub=-")
    });
}

#[test]
fn requests_are_signed_and_count_once() {
    let (gateway, address) = start(&example("signed-requests.yaml"));
    let sign = |time: u64, nonce: &str, body: &str| {
        let digest: String = digest::digest(&digest::SHA256, body.as_bytes()).as_ref().iter().map(|b| format!("{b:02x}")).collect();
        let text = format!("NUNCIO-HMAC-SHA256\n{time}\n{nonce}\nPOST\n{HOST}\n/orders\na=1&b=2\ncontent-type:application/json\n{digest}");
        let mac = STANDARD.encode(mac("the secret of the web shop", &text));
        format!("NUNCIO-HMAC-SHA256 key_id=web-1, timestamp={time}, nonce={nonce}, headers=content-type, signature={mac}")
    };
    let call = |authorization: &str, body: &str| {
        let headers = [("content-type", "application/json"), ("authorization", authorization)];
        request(address, "POST", HOST, "/orders?b=2&a=1", &headers, body.as_bytes()).unwrap().status
    };
    let good = sign(now(), "n-1", "{}");
    assert_eq!(call(&good, "{\"changed\":1}"), 401);
    assert_eq!((call(&good, "{}"), call(&good, "{}")), (200, 401));
    assert_eq!(call(&sign(now() - 600, "n-2", "{}"), "{}"), 401);
    assert_eq!(call(&sign(now(), "n-3", "{}"), "{}"), 200);
    eventually("the access log", || {
        let log = gateway.stdout();
        log.contains("consumer=web-shop") && log.contains("401 hmac_auth_denied{replayed}") && log.contains("401 hmac_auth_denied{expired}")
    });
    assert!(!gateway.admin("/config_dump").text().contains("the secret of"));
}

#[test]
fn links_expire() {
    let (gateway, address) = start(&example("signed-links.yaml"));
    let link = |path: &str, expires: u64| {
        let text = format!("GET\n{HOST}\n{path}\nexpires={expires}&key_id=k1\n");
        format!("{path}?expires={expires}&key_id=k1&signature={}", URL_SAFE_NO_PAD.encode(mac("the secret of the links", &text)))
    };
    let good = link("/films/1.mp4", now() + 300);
    assert_eq!(request(address, "GET", HOST, &good, &[], b"").unwrap().text(), "a film");
    assert_eq!(status(address, &good, &[("referer", "https://www.shop.example.com/")]), 200);
    assert_eq!(status(address, &good, &[("referer", "https://elsewhere.example.com/")]), 403);
    assert_eq!(status(address, &good.replace("1.mp4", "2.mp4"), &[]), 403);
    assert_eq!(status(address, &link("/films/1.mp4", now() - 1), &[]), 403);
    assert_eq!(status(address, &link("/films/1.mp4", now() + 100_000), &[]), 403);
    assert_eq!((status(address, "/films/1.mp4", &[]), status(address, "/public/x", &[])), (403, 200));
    assert_eq!(gateway.stat("http.web.signed_url.expired"), 1);
}

/// The example of tokens with its keys on a server.
fn remote(keys: &Upstream, more: &str) -> String {
    let text = example("jwt-claims.yaml");
    let line = text.lines().find(|l| l.contains("local_jwks:")).unwrap();
    let set = line.split_once("inline_string: '").unwrap().1.strip_suffix("'}").unwrap();
    keys.behave(Behaviour { body: Some(set.as_bytes().to_vec()), ..Behaviour::default() });
    let there = "                  remote_jwks: {http_uri: {uri: http://keys/jwks, cluster: keys, timeout: 2s}";
    let cluster = format!(
        "  clusters:\n  - {{name: keys, type: STATIC, connect_timeout: 1s, load_assignment: {{cluster_name: keys, endpoints: [{{lb_endpoints: \
         [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}}}}}]}}]}}}}\n",
        keys.address.port()
    );
    format!("{}{cluster}", text.replace(line, &format!("{there}{more}}}")))
}

fn user_token() -> (&'static str, String) {
    let text = example("jwt-claims.yaml");
    ("authorization", format!("Bearer {}", text.lines().find_map(|l| l.strip_prefix("# user: ")).unwrap()))
}

#[test]
fn keys_of_a_server_that_fails_stay_in_use() {
    let keys = Upstream::start("keys");
    let (gateway, address) = start(&remote(&keys, ", cache_duration: 0.2s"));
    let (name, value) = user_token();
    let call = || status(address, "/", &[(name, &value)]);
    assert_eq!(gateway.stat("http.web.jwt_authn.jwks_fetch_success"), 0, "nobody asked yet");
    assert_eq!(call(), 200);
    assert_eq!(gateway.stat("http.web.jwt_authn.jwks_fetch_success"), 1);
    keys.behave(Behaviour { status: 500, ..Behaviour::default() });
    eventually("a request by keys that are out of date", || {
        assert_eq!(call(), 200);
        gateway.stat("http.web.jwt_authn.jwks_stale") > 0
    });
    assert!(gateway.log().contains("the keys of the last fetch stay in use"));
    // Keys that are no keys change nothing either.
    keys.behave(Behaviour { body: Some(b"{\"keys\":[]}".to_vec()), ..Behaviour::default() });
    let failed = gateway.stat("http.web.jwt_authn.jwks_fetch_failed");
    eventually("another fetch", || {
        assert_eq!(call(), 200);
        gateway.stat("http.web.jwt_authn.jwks_fetch_failed") > failed
    });
}

#[test]
fn keys_are_fetched_before_anybody_asks() {
    let keys = Upstream::start("keys");
    let text = remote(&keys, ", cache_duration: 0.2s, async_fetch: {failed_refetch_duration: 0.1s}");
    keys.behave(Behaviour { status: 503, ..Behaviour::default() });
    let (gateway, address) = start(&text);
    let (name, value) = user_token();
    eventually("two fetches that fail", || gateway.stat("http.web.jwt_authn.jwks_fetch_failed") >= 2);
    assert_eq!(get(address, HOST, "/healthz").unwrap().status, 200);
    let refused = request(address, "GET", HOST, "/", &[(name, &value)], b"").unwrap();
    assert_eq!((refused.status, refused.text().as_str()), (401, "Jwks remote fetch is failed"));
    remote(&keys, "");
    eventually("fetches that succeed", || gateway.stat("http.web.jwt_authn.jwks_fetch_success") >= 2);
    assert_eq!(status(address, "/", &[(name, &value)]), 200);
}

#[test]
fn a_key_of_the_control_plane_rotates_at_once() {
    let secret = |version: u32, key: &str| {
        format!(
            "version_info: \"{version}\"\nresources:\n- {{\"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret, name: bob, \
             generic_secret: {{secret: {{inline_string: {key}}}}}}}\n"
        )
    };
    let source = "{sds: {name: bob, sds_config: {path_config_source: {path: sds.yaml}, resource_api_version: V3}}}";
    let text = example("api-keys.yaml").replace("{data_source: {inline_string: bob-key}}", source);
    assert!(text.contains(source));
    let (admin, port) = (free_port(), free_port());
    let text =
        text.replace("port_value: 9901", &format!("port_value: {admin}")).replace("port_value: 8080", &format!("port_value: {port}"));
    let gateway = Gateway::start(admin, &[("sds.yaml", secret(1, "first-key")), ("bootstrap.yaml", text)]);
    let address = ([127, 0, 0, 1], port).into();
    let knows = |key: &str| status(address, "/", &[("x-api-key", key)]) != 401;
    eventually("the secret", || knows("first-key"));
    gateway.write("sds.yaml", &secret(2, "second-key"));
    eventually("the new secret", || knows("second-key"));
    assert!(!knows("first-key") && knows("acme-key-2024"));
    let dump = gateway.admin("/config_dump").text();
    assert!(!dump.contains("first-key") && !dump.contains("second-key"));
}
