//! What filters cost: allocations per request, which repeat exactly. A filter that is not configured, that is off on the route, or that
//! only other routes switch on costs none; each filter at work has its bound here. Who raises one says why; who gets below one lowers it.
//! `cargo test -p nuncio --test cost -- --nocapture` prints the table. CPU per request is measured by `make bench ROWS=filter`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use lab::allocations;
use std::time::{SystemTime, UNIX_EPOCH};

/// A filter at work.
struct Case {
    name: &'static str,
    /// The message without its type.
    config: String,
    type_name: &'static str,
    path: String,
    headers: Vec<(&'static str, String)>,
    method: &'static str,
    body: &'static str,
    /// Allocations that are added at most.
    bound: u64,
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn mac(secret: &str, text: &str) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()), text.as_bytes()).as_ref().to_vec()
}

fn token() -> String {
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let signed = format!("{}.{}", part(r#"{"alg":"HS256","kid":"k"}"#), part(r#"{"iss":"i","aud":"a","sub":"s","exp":4102444800}"#));
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(mac("0123456789abcdef0123456789abcdef", &signed)))
}

fn cases() -> Vec<Case> {
    let envoy = |name, type_name, config: &str, headers: &[(&'static str, &str)], bound| Case {
        name,
        config: config.to_string(),
        type_name,
        path: "/".to_string(),
        headers: headers.iter().map(|(n, v)| (*n, v.to_string())).collect(),
        method: "GET",
        body: "",
        bound,
    };
    let jwks = format!(
        r#"{{"keys":[{{"kty":"oct","kid":"k","alg":"HS256","k":"{}"}}]}}"#,
        URL_SAFE_NO_PAD.encode("0123456789abcdef0123456789abcdef")
    );
    let jwt = |more: &str| {
        format!(
            "providers: {{p: {{issuer: i, audiences: [a], local_jwks: {{inline_string: '{jwks}'}}{more}}}}}, rules: [{{match: {{prefix: /}}, requires: {{provider_name: p}}}}]"
        )
    };
    let bearer = format!("Bearer {}", token());
    let all = "{default_value: {numerator: 100}}";
    let bucket = "token_bucket: {max_tokens: 1000000, tokens_per_fill: 1000000, fill_interval: 1s}";
    let time = now();
    let text =
        format!("NUNCIO-HMAC-SHA256\n{time}\nn\nGET\nh\n/\n\n{}", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    let signature = STANDARD.encode(mac("the secret of the shop", &text));
    let signed = format!("NUNCIO-HMAC-SHA256 key_id=k, timestamp={time}, nonce=n, signature={signature}");
    let query = format!("expires={}&key_id=k", time + 3600);
    let link =
        format!("/film?{query}&signature={}", URL_SAFE_NO_PAD.encode(mac("the secret of the links", &format!("GET\nh\n/film\n{query}\n"))));
    vec![
        envoy("jwt_authn", "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication", &jwt(""), &[("authorization", &bearer)], 23),
        envoy(
            "jwt_authn, cached",
            "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
            &jwt(", jwt_cache_config: {jwt_cache_size: 100}"),
            &[("authorization", &bearer)],
            1,
        ),
        envoy(
            "rbac",
            "envoy.extensions.filters.http.rbac.v3.RBAC",
            "rules: {policies: {p: {permissions: [{url_path: {path: {prefix: /}}}], principals: [{and_ids: {ids: [{remote_ip: {address_prefix: 10.0.0.0, prefix_len: 8}}, {header: {name: x, string_match: {exact: y}}}]}}]}}}",
            &[("x", "y")],
            10,
        ),
        envoy(
            "local_ratelimit",
            "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
            &format!("stat_prefix: l, {bucket}, filter_enabled: {all}, filter_enforced: {all}"),
            &[],
            0,
        ),
        envoy(
            "local_ratelimit, descriptors",
            "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
            &format!(
                "stat_prefix: l, {bucket}, filter_enabled: {all}, filter_enforced: {all}, rate_limits: [{{actions: [{{request_headers: {{header_name: x, descriptor_key: k}}}}]}}], descriptors: [{{entries: [{{key: k, value: v}}], {bucket}}}]"
            ),
            &[("x", "v")],
            5,
        ),
        envoy(
            "basic_auth",
            "envoy.extensions.filters.http.basic_auth.v3.BasicAuth",
            r#"users: {inline_string: "user:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=\n"}"#,
            &[("authorization", &format!("Basic {}", STANDARD.encode("user:password")))],
            1,
        ),
        envoy(
            "api_key_auth",
            "envoy.extensions.filters.http.api_key_auth.v3.ApiKeyAuth",
            "credentials: [{key: k, client: c}], key_sources: [{header: x-key}]",
            &[("x-key", "k")],
            0,
        ),
        envoy(
            "consumer",
            "nuncio.filters.http.consumer.v1.ConsumerAuth",
            "methods: [{api_key: {places: [{header: x-key}]}}], consumers: [{name: c, credentials: [{api_key: {data_source: {inline_string: k}}}]}], upstream_headers: {name: x-consumer}",
            &[("x-key", "k")],
            13,
        ),
        envoy(
            "hmac_auth",
            "nuncio.filters.http.hmac_auth.v1.HmacAuth",
            "keys: [{id: k, secret: {data_source: {inline_string: the secret of the shop}}}], window: 3600s",
            &[("authorization", &signed)],
            18,
        ),
        Case {
            path: link,
            ..envoy(
                "signed_url",
                "nuncio.filters.http.signed_url.v1.SignedUrl",
                "keys: [{id: k, secret: {data_source: {inline_string: the secret of the links}}}]",
                &[],
                16,
            )
        },
        envoy(
            "concurrency_queue",
            "nuncio.filters.http.concurrency_queue.v1.ConcurrencyQueue",
            "stat_prefix: q, max_concurrency: 5, consumer: {header: x}",
            &[("x", "y")],
            2,
        ),
        Case {
            method: "POST",
            ..envoy(
                "csrf",
                "envoy.extensions.filters.http.csrf.v3.CsrfPolicy",
                &format!("filter_enabled: {all}"),
                &[("origin", "http://h")],
                0,
            )
        },
        envoy("cors", "envoy.extensions.filters.http.cors.v3.Cors", "", &[("origin", "http://a.test")], 0),
        envoy(
            "header_mutation",
            "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation",
            "mutations: {request_mutations: [{append: {header: {key: a, value: b}}}, {remove: c}], response_mutations: [{append: {header: {key: d, value: '%REQ(x)%'}}}]}",
            &[("x", "y"), ("c", "gone")],
            5,
        ),
        envoy(
            "header_to_metadata",
            "envoy.extensions.filters.http.header_to_metadata.v3.Config",
            "request_rules: [{header: x, on_header_present: {metadata_namespace: n, key: k}}]",
            &[("x", "y")],
            8,
        ),
        envoy(
            "set_metadata",
            "envoy.extensions.filters.http.set_metadata.v3.Config",
            "metadata: [{metadata_namespace: n, value: {k: v}}]",
            &[],
            6,
        ),
        envoy(
            "ip_tagging",
            "envoy.extensions.filters.http.ip_tagging.v3.IPTagging",
            "request_type: BOTH, ip_tags: [{ip_tag_name: t, ip_list: [{address_prefix: 10.0.0.0, prefix_len: 8}]}]",
            &[],
            2,
        ),
        Case {
            method: "POST",
            body: "body",
            ..envoy("buffer", "envoy.extensions.filters.http.buffer.v3.Buffer", "max_request_bytes: 1000", &[], 6)
        },
        envoy(
            "compressor",
            "envoy.extensions.filters.http.compressor.v3.Compressor",
            "compressor_library: {name: g, typed_config: {'@type': type.googleapis.com/envoy.extensions.compression.gzip.compressor.v3.Gzip}}",
            &[("accept-encoding", "gzip")],
            21,
        ),
        envoy("istio.stats", "stats.PluginConfig", "", &[], 1),
        envoy(
            "fault",
            "envoy.extensions.filters.http.fault.v3.HTTPFault",
            "abort: {http_status: 418, percentage: {numerator: 0}}, headers: [{name: x, present_match: true}]",
            &[("x", "y")],
            0,
        ),
    ]
}

impl Case {
    fn typed(&self) -> String {
        let rest = if self.config.is_empty() { String::new() } else { format!(", {}", self.config) };
        format!("typed_config: {{'@type': type.googleapis.com/{}{rest}}}", self.type_name)
    }
    /// The request, with its body or without: where nothing reads one the connection would not live on.
    fn request(&self, body: &str) -> Vec<u8> {
        let mut out = format!("{} {} HTTP/1.1\r\nhost: h\r\n", self.method, self.path);
        for (name, value) in &self.headers {
            out.push_str(&format!("{name}: {value}\r\n"));
        }
        if self.method == "POST" {
            out.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        (out + "\r\n" + body).into_bytes()
    }
}

/// What the route says where a filter needs it to be at work.
fn route(name: &str) -> &'static str {
    match name {
        "cors" => {
            "      typed_per_filter_config: {filter: {'@type': type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy, allow_origin_string_match: [{exact: 'http://a.test'}]}}"
        }
        _ => "",
    }
}

#[test]
fn filters_at_work_cost_what_they_may() {
    let mut over = Vec::new();
    for case in cases() {
        let base = allocations("", "", &case.request(""));
        let (status, all) = allocations(&case.typed(), route(case.name), &case.request(case.body));
        assert_eq!(status, 200, "{}", case.name);
        let added = all.saturating_sub(base.1);
        println!("{:<32} {added:>3} of {:>3} (without: {})", case.name, case.bound, base.1);
        if added > case.bound {
            over.push(format!("{}: {added} allocations, {} allowed", case.name, case.bound));
        }
    }
    assert!(over.is_empty(), "{over:#?}");
}

#[test]
fn filters_that_are_off_cost_nothing() {
    let off = "      typed_per_filter_config: {filter: {'@type': type.googleapis.com/envoy.config.route.v3.FilterConfig, disabled: true}}";
    for case in cases() {
        let request = case.request("");
        let base = allocations("", "", &request);
        // Where some filter sees the end of streams, the head of the response is kept for it; which ones it is off for is not known before.
        let (status, least) = base;
        let base = (status, least + u64::from(case.name == "istio.stats"));
        assert_eq!(allocations(&case.typed(), off, &request), base, "{}: off on the route", case.name);
        let elsewhere = format!("disabled: true, {}", case.typed());
        assert_eq!(allocations(&elsewhere, "", &request), base, "{}: on only where a route wants it", case.name);
    }
}
