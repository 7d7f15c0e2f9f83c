//! Clusters, weights, timeouts, retries, hashing, mirroring, per-filter configuration and what else a route carries.

mod kit;

use http::Method;
use kit::{get, routes, table};
use nuncio_core::views::{PerFilterConfig, RouteView};
use nuncio_core::{RequestHead, test_kit};
use nuncio_proto::envoy::extensions::filters::http::buffer::v3::BufferPerRoute;
use nuncio_route::RetryOn;
use std::time::Duration;

#[allow(clippy::unwrap_used)]
fn cluster(lab: &kit::Lab, head: &RequestHead, random: u64) -> String {
    let entry = lab.find_with(head, &test_kit::stream_info(), random).unwrap();
    entry.cluster_name().map_or("-".to_string(), |n| n.to_string())
}

#[test]
fn weighted_clusters() {
    let lab = routes(
        "
- {match: {prefix: /w}, route: {weighted_clusters: {clusters: [{name: a, weight: 1}, {name: b, weight: 3}, {name: z, weight: 0}]}}}
- {match: {prefix: /h}, route: {weighted_clusters: {header_name: x-r, clusters: [{name: a, weight: 50}, {name: b, weight: 50}]}}}
- {match: {prefix: /r}, route: {weighted_clusters: {runtime_key_prefix: w, clusters: [{name: a, weight: 50}, {name: b, weight: 50}]}}}
- {match: {prefix: /p}, route: {hash_policy: [{header: {header_name: x-k}}], weighted_clusters: {use_hash_policy: true, clusters: [{name: a, weight: 50}, {name: b, weight: 50}]}}}",
    );
    let share = |path: &str, name: &str| (0..100).filter(|r| cluster(&lab, &get("h", path, &[]), *r) == name).count();
    assert_eq!((share("/w", "a"), share("/w", "b"), share("/w", "z")), (25, 75, 0));
    for (value, wanted) in [("0", "a"), ("49", "a"), ("50", "b"), ("150", "b"), ("x", "a")] {
        assert_eq!(cluster(&lab, &get("h", "/h", &[("x-r", value)]), 7), wanted, "{value}");
    }
    // Two values are no decision.
    assert_eq!(cluster(&lab, &get("h", "/h", &[("x-r", "99"), ("x-r", "99")]), 7), "a");
    assert_eq!((share("/r", "a"), share("/r", "b")), (50, 50));
    lab.server.runtime.set("w.a", "0");
    assert_eq!((share("/r", "a"), share("/r", "b")), (0, 100));
    let by_key = |key: &str, random| cluster(&lab, &get("h", "/p", &[("x-k", key)]), random);
    assert!((0..100).all(|r| by_key("one", r) == by_key("one", 0)));
    assert!((0..100).any(|i| by_key(&i.to_string(), 0) != by_key("one", 0)));
}

#[test]
fn clusters_by_header() {
    let lab = routes("- {match: {prefix: /}, route: {cluster_header: x-cluster, cluster_not_found_response_code: NOT_FOUND}}");
    let slot = lab.clusters.slot("known");
    slot.set(Some(std::sync::Arc::new(test_kit::FakeCluster::new("known"))));
    let found = |headers: &[(&str, &str)]| {
        let head = get("h", "/", headers);
        lab.must(&head).cluster_for(&head, &nuncio_core::test_kit::stream_info()).map(|slot| slot.name.to_string())
    };
    assert_eq!(found(&[("x-cluster", "known")]).as_deref(), Some("known"));
    assert_eq!(found(&[("x-cluster", "unknown")]), None);
    assert_eq!(found(&[]), None);
    let entry = lab.must(&get("h", "/", &[]));
    assert!(entry.cluster_slot().is_none());
    assert_eq!(entry.forward().unwrap().cluster_not_found_status(), 404);
}

#[test]
fn timeouts() {
    let lab = routes(
        "
- {match: {prefix: /default}, route: {cluster: c}}
- {match: {prefix: /zero}, route: {cluster: c, timeout: 0s, idle_timeout: 0s, max_stream_duration: {max_stream_duration: 0s}}}
- {match: {prefix: /set}, route: {cluster: c, timeout: 1.5s, idle_timeout: 2s, flush_timeout: 3s, max_stream_duration: {max_stream_duration: 4s, grpc_timeout_header_max: 10s, grpc_timeout_header_offset: 1s}}}
- {match: {prefix: /old}, route: {cluster: c, max_grpc_timeout: 10s, grpc_timeout_offset: 1s}}
- {match: {prefix: /istio}, route: {cluster: c, timeout: 0s, max_grpc_timeout: 0s, max_stream_duration: {max_stream_duration: 0s, grpc_timeout_header_max: 0s}}}",
    );
    let s = Duration::from_secs;
    let forward = |path: &str| lab.must(&get("h", path, &[]));
    let entry = forward("/default");
    let default = entry.forward().unwrap();
    assert_eq!((default.timeout(), default.idle_timeout(), default.max_stream_duration()), (Some(s(15)), None, None));
    assert!(default.grpc_timeout().is_none());
    let entry = forward("/zero");
    let zero = entry.forward().unwrap();
    assert_eq!((zero.timeout(), zero.idle_timeout(), zero.max_stream_duration()), (None, Some(None), Some(None)));
    let entry = forward("/set");
    let set = entry.forward().unwrap();
    assert_eq!((set.timeout(), set.idle_timeout()), (Some(Duration::from_millis(1500)), Some(Some(s(2)))));
    assert_eq!((set.flush_timeout(), set.max_stream_duration()), (Some(Some(s(3))), Some(Some(s(4)))));
    let grpc = set.grpc_timeout().unwrap();
    assert!(grpc.is_stream_duration());
    // Capped, then shortened, unless nothing would be left.
    assert_eq!([grpc.apply(s(5)), grpc.apply(s(20)), grpc.apply(s(1)), grpc.apply(s(0))], [Some(s(4)), Some(s(9)), Some(s(1)), Some(s(9))]);
    let entry = forward("/old");
    let grpc = entry.forward().unwrap().grpc_timeout().unwrap();
    assert!(!grpc.is_stream_duration());
    assert_eq!([grpc.apply(s(5)), grpc.apply(s(20)), grpc.apply(s(0))], [Some(s(4)), Some(s(10)), Some(s(10))]);
    let entry = forward("/istio");
    let grpc = entry.forward().unwrap().grpc_timeout().unwrap();
    assert_eq!([grpc.apply(s(5)), grpc.apply(s(0))], [Some(s(5)), None]);
}

#[test]
fn retries() {
    let lab = table(
        "
name: t
virtual_hosts:
- name: v
  domains: ['*']
  retry_policy: {retry_on: 5xx, num_retries: 7}
  hedge_policy: {hedge_on_per_try_timeout: true}
  include_request_attempt_count: true
  routes:
  - {match: {prefix: /inherits}, route: {cluster: c}}
  - match: {prefix: /own}
    route:
      cluster: c
      retry_policy:
        retry_on: connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes,nonsense
        num_retries: 2
        per_try_timeout: 1s
        retry_host_predicate: [{name: p, typed_config: {'@type': type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate}}]
        retry_priority: {name: p, typed_config: {'@type': type.googleapis.com/envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig, update_frequency: 2}}
        host_selection_retry_max_attempts: 5
        retriable_status_codes: [503, 429]
        retry_back_off: {base_interval: 0.1s}
        rate_limited_retry_back_off: {reset_headers: [{name: Retry-After}, {name: x-reset, format: UNIX_TIMESTAMP}], max_interval: 60s}
        retriable_headers: [{name: x-again}]
        retriable_request_headers: [{name: ':method', string_match: {exact: GET}}]
  - {match: {prefix: /defaults}, route: {cluster: c, retry_policy: {retry_on: reset}}}
",
    );
    let policy = |path: &str| lab.must(&get("h", path, &[])).forward().unwrap().retry_policy().cloned().unwrap();
    assert_eq!((policy("/inherits").num_retries, policy("/inherits").retry_on), (7, RetryOn::FIVE_XX));
    assert!(lab.must(&get("h", "/inherits", &[])).forward().unwrap().hedge_policy().unwrap().hedge_on_per_try_timeout);
    let own = policy("/own");
    for bit in [
        RetryOn::CONNECT_FAILURE,
        RetryOn::REFUSED_STREAM,
        RetryOn::GRPC_UNAVAILABLE,
        RetryOn::GRPC_CANCELLED,
        RetryOn::RETRIABLE_STATUS_CODES,
    ] {
        assert!(own.retry_on.has(bit));
    }
    assert!(!own.retry_on.has(RetryOn::FIVE_XX));
    assert_eq!((own.num_retries, own.per_try_timeout), (2, Some(Duration::from_secs(1))));
    assert!(own.previous_hosts && !own.omit_canary_hosts);
    assert_eq!((own.host_selection_attempts, own.previous_priorities_update_frequency), (5, Some(2)));
    assert_eq!(own.retriable_status_codes, [503, 429]);
    assert_eq!((own.base_interval, own.max_interval), (Duration::from_millis(100), Duration::from_secs(1)));
    let limited = own.rate_limited.as_ref().unwrap();
    assert_eq!((limited.reset_headers[0].name.as_str(), limited.reset_headers[1].unix_timestamp), ("retry-after", true));
    assert!(own.retriable_request(&get("h", "/", &[])) && !own.retriable_request(&RequestHead::new(Method::POST, "h", "/")));
    let defaults = policy("/defaults");
    assert_eq!(
        (defaults.num_retries, defaults.base_interval, defaults.max_interval),
        (1, Duration::from_millis(25), Duration::from_millis(250))
    );
    assert!(lab.warnings.iter().any(|w| w.contains("retry_on") && w.contains("nonsense")), "{:?}", lab.warnings);
    assert!(lab.must(&get("h", "/own", &[])).include_request_attempt_count());
}

#[test]
fn hashing() {
    let lab = routes(
        "
- {match: {prefix: /hdr}, route: {cluster: c, hash_policy: [{header: {header_name: x-h}}]}}
- {match: {prefix: /re}, route: {cluster: c, hash_policy: [{header: {header_name: x-h, regex_rewrite: {pattern: {regex: '[0-9]+'}, substitution: ''}}}]}}
- {match: {prefix: /ck}, route: {cluster: c, hash_policy: [{cookie: {name: s, ttl: 60s, path: /p, attributes: [{name: SameSite, value: Strict}, {name: Secure}]}}]}}
- {match: {prefix: /session}, route: {cluster: c, hash_policy: [{cookie: {name: s, ttl: 0s}}]}}
- {match: {prefix: /plain}, route: {cluster: c, hash_policy: [{cookie: {name: s}}]}}
- {match: {prefix: /ip}, route: {cluster: c, hash_policy: [{connection_properties: {source_ip: true}}]}}
- {match: {prefix: /q}, route: {cluster: c, hash_policy: [{query_parameter: {name: k}}]}}
- {match: {prefix: /term}, route: {cluster: c, hash_policy: [{header: {header_name: x-h}, terminal: true}, {connection_properties: {source_ip: true}}]}}
- {match: {prefix: /two}, route: {cluster: c, hash_policy: [{header: {header_name: x-h}}, {header: {header_name: x-h}}]}}",
    );
    let hash = |path: &str, headers: &[(&str, &str)]| {
        let head = get("h", path, headers);
        lab.must(&head).forward().unwrap().hash(&head, &test_kit::stream_info())
    };
    // XXH64 with seed 0, as Envoy and every other implementation has it.
    assert_eq!(hash("/hdr", &[("x-h", "a")]).hash, Some(0xd24e_c4f1_a98c_6e5b));
    assert_eq!(hash("/hdr", &[]).hash, None);
    assert_eq!(hash("/hdr", &[("x-h", "a"), ("x-h", "b")]).hash, hash("/hdr", &[("x-h", "b"), ("x-h", "a")]).hash);
    assert_eq!(hash("/re", &[("x-h", "a1")]).hash, hash("/hdr", &[("x-h", "a")]).hash);
    assert_eq!(hash("/q?k=a", &[]).hash, hash("/hdr", &[("x-h", "a")]).hash);
    assert_eq!(hash("/term", &[("x-h", "a")]).hash, hash("/hdr", &[("x-h", "a")]).hash);
    assert_eq!(hash("/term", &[]).hash, hash("/ip", &[]).hash);
    assert!(hash("/ip", &[]).hash.is_some());
    // The same value twice does not cancel itself out.
    assert_eq!(hash("/two", &[("x-h", "a")]).hash, Some(0xd24e_c4f1_a98c_6e5bu64.rotate_left(1) ^ 0xd24e_c4f1_a98c_6e5b));
    let made = hash("/ck", &[("cookie", "s=")]);
    let cookie = made.set_cookies[0].to_str().unwrap().to_string();
    let value = cookie.split('"').nth(1).unwrap();
    assert_eq!(cookie, format!("s=\"{value}\"; Max-Age=60; Path=/p; SameSite=Strict; Secure; HttpOnly"));
    assert_eq!(value.len(), 16);
    let again = hash("/ck", &[("cookie", &format!("s={value}"))]);
    assert_eq!((again.hash, again.set_cookies.len()), (made.hash, 0));
    assert!(hash("/session", &[]).set_cookies[0].to_str().unwrap().ends_with("\"; HttpOnly"));
    assert_eq!((hash("/plain", &[]).hash, hash("/plain", &[]).set_cookies.len()), (None, 0));
}

#[test]
fn mirrors() {
    let lab = table(
        "
name: t
request_mirror_policies: [{cluster: table}]
virtual_hosts:
- name: v
  domains: ['*']
  routes:
  - {match: {prefix: /inherits}, route: {cluster: c}}
  - match: {prefix: /own}
    route:
      cluster: c
      request_mirror_policies:
      - {cluster: m, runtime_fraction: {default_value: {numerator: 10}}, trace_sampled: false, request_headers_mutations: [{append: {header: {key: x-m, value: '1'}}}, {remove: x-gone}, {remove_on_match: {key_matcher: {prefix: x-private-}}}]}
      - {cluster_header: x-mirror, disable_shadow_host_suffix_append: true}
      - {cluster: n, host_rewrite_literal: shadow.example}
",
    );
    let entry = lab.must(&get("h", "/inherits", &[]));
    let inherited = &entry.forward().unwrap().mirrors()[0];
    assert_eq!(inherited.cluster(&get("h", "/", &[])).unwrap().name.as_ref(), "table");
    let entry = lab.must(&get("h", "/own", &[]));
    let own = entry.forward().unwrap().mirrors();
    assert_eq!((0..100).filter(|r| own[0].selects(&lab.server.runtime, *r)).count(), 10);
    assert_eq!(own[0].trace_sampled, Some(false));
    let copy = |i: usize, host: &str| {
        let mut head = get(host, "/own", &[("x-gone", "1"), ("x-private-a", "1")]);
        own[i].finalize(&mut head, &test_kit::stream_info());
        kit::shown(&head)
    };
    assert_eq!(copy(0, "h:80"), "h-shadow:80 /own [x-m: 1]");
    assert_eq!(copy(1, "h:80"), "h:80 /own [x-gone: 1, x-private-a: 1]");
    assert_eq!(copy(2, "h:80"), "shadow.example /own [x-gone: 1, x-private-a: 1]");
    assert!(own[1].cluster(&get("h", "/", &[])).is_none());
}

#[test]
fn per_filter_configuration() {
    let config = |n: u32| {
        format!(
            "{{'@type': type.googleapis.com/envoy.extensions.filters.http.buffer.v3.BufferPerRoute, buffer: {{max_request_bytes: {n}}}}}"
        )
    };
    let yaml = format!(
        "
name: t
typed_per_filter_config: {{f: {one}, table: {one}}}
virtual_hosts:
- name: v
  domains: ['*']
  typed_per_filter_config: {{f: {two}, off: {{'@type': type.googleapis.com/envoy.config.route.v3.FilterConfig, disabled: true}}}}
  routes:
  - match: {{prefix: /}}
    typed_per_filter_config:
      f: {{'@type': type.googleapis.com/envoy.config.route.v3.FilterConfig, config: {three}}}
      later: {{'@type': type.googleapis.com/envoy.config.route.v3.FilterConfig, is_optional: true, config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.csrf.v3.CsrfPolicy}}}}
    route: {{weighted_clusters: {{clusters: [{{name: a, weight: 1, typed_per_filter_config: {{f: {four}}}}}, {{name: b, weight: 1}}]}}}}
",
        one = config(1),
        two = config(2),
        three = config(3),
        four = config(4),
    );
    let lab = table(&yaml);
    let entry = |random| lab.find_with(&get("h", "/", &[]), &test_kit::stream_info(), random).unwrap();
    let number = |config: &PerFilterConfig| match config {
        PerFilterConfig::Disabled => 0,
        PerFilterConfig::Config(any) => match any.downcast_ref::<BufferPerRoute>().unwrap().r#override.as_ref().unwrap() {
            nuncio_proto::envoy::extensions::filters::http::buffer::v3::buffer_per_route::Override::Buffer(b) => {
                b.max_request_bytes.unwrap()
            }
            _ => 99,
        },
    };
    let all = |random, filter: &str| {
        let mut found = Vec::new();
        entry(random).filter_configs(filter, &mut |c| found.push(number(c)));
        found
    };
    assert_eq!(all(0, "f"), [1, 2, 3, 4]);
    assert_eq!(all(1, "f"), [1, 2, 3]);
    assert_eq!(entry(0).filter_config("f").map(number), Some(4));
    assert_eq!(entry(1).filter_config("f").map(number), Some(3));
    assert_eq!(entry(0).filter_config("off").map(number), Some(0));
    assert_eq!(entry(0).filter_config("table").map(number), Some(1));
    assert!(entry(0).filter_config("later").is_none() && entry(0).filter_config("x").is_none());
    assert!(lab.warnings.iter().any(|w| w.contains("later") && w.contains("CsrfPolicy")), "{:?}", lab.warnings);
}

#[test]
fn what_else_a_route_carries() {
    let lab = table(
        "
name: t
virtual_hosts:
- name: v
  domains: ['*']
  metadata: {filter_metadata: {istio: {config: vhost}}}
  request_body_buffer_limit: 1000
  virtual_clusters: [{name: posts, headers: [{name: ':method', string_match: {exact: POST}}]}]
  routes:
  - match: {prefix: /}
    name: r
    metadata: {filter_metadata: {istio: {config: route}}}
    decorator: {operation: 'op', propagate: false}
    tracing: {random_sampling: {numerator: 5}}
    stat_prefix: s
    per_request_buffer_limit_bytes: 10
    route:
      weighted_clusters: {clusters: [{name: c, weight: 1, metadata_match: {filter_metadata: {envoy.lb: {version: '2'}}}}]}
      metadata_match: {filter_metadata: {envoy.lb: {version: '1', stage: prod}}}
      priority: HIGH
      upgrade_configs: [{upgrade_type: WebSocket}, {upgrade_type: CONNECT, enabled: false, connect_config: {allow_post: true}}]
      internal_redirect_policy: {max_internal_redirects: 3, redirect_response_codes: [301, 302], response_headers_to_copy: [x-c]}
      rate_limits: [{actions: [{remote_address: {}}]}]
",
    );
    assert!(lab.warnings.is_empty(), "{:?}", lab.warnings);
    let entry = lab.must(&get("h", "/", &[]));
    assert_eq!((entry.name().as_ref(), entry.virtual_host().as_ref(), entry.route_config().as_ref()), ("r", "v", "t"));
    assert!(entry.metadata().is_some() && entry.virtual_host_metadata().is_some());
    let decorator = entry.decorator().unwrap();
    assert_eq!((decorator.operation.as_str(), decorator.propagate), ("op", false));
    assert!((entry.tracing().unwrap().random_sampling.ratio() - 0.05).abs() < 1e-9);
    assert_eq!(entry.buffer_limit(500), 1000);
    let wanted = test_kit::fields([("version", test_kit::text("2")), ("stage", test_kit::text("prod"))]);
    assert_eq!(entry.metadata_match(), Some(&wanted));
    let forward = entry.forward().unwrap();
    assert!(forward.high_priority());
    assert_eq!((forward.upgrade("websocket"), forward.upgrade("connect"), forward.upgrade("h2c")), (Some(true), Some(false), None));
    assert!(forward.connect_config().unwrap().allow_post);
    let redirects = forward.internal_redirect().unwrap();
    assert_eq!((redirects.max_internal_redirects, redirects.codes.as_slice()), (3, [301, 302].as_slice()));
    assert_eq!(forward.rate_limits().len(), 1);
    let name = |method| entry.virtual_cluster(&RequestHead::new(method, "h", "/")).map(|c| c.name.to_string());
    assert_eq!((name(Method::POST).as_deref(), name(Method::GET).as_deref()), (Some("posts"), Some("other")));
    let is_other = |method| entry.virtual_cluster(&RequestHead::new(method, "h", "/")).is_some_and(|c| c.is_other());
    assert_eq!((is_other(Method::POST), is_other(Method::GET)), (false, true));
    let prefix = entry.stats(|scope| scope.prefix().to_string()).unwrap();
    assert_eq!(prefix, "vhost.v.route.s.");
    let cluster = entry.virtual_cluster(&RequestHead::new(Method::POST, "h", "/")).unwrap();
    assert_eq!(cluster.stats(|scope| scope.prefix().to_string()).unwrap(), "vhost.v.vcluster.posts.");
}

#[test]
fn retries_change_between_weighted_clusters() {
    let lab = routes(
        "
- {match: {prefix: /}, route: {weighted_clusters: {clusters: [{name: a, weight: 1}, {name: b, weight: 1}, {name: c, weight: 0}]}, retry_policy: {retry_on: 5xx, refresh_cluster_on_retry: true}}}",
    );
    let (request, info) = (get("h", "/", &[]), test_kit::stream_info());
    let entry = lab.must(&request);
    let own = entry.cluster_slot().unwrap().name.to_string();
    let other = if own == "a" { "b" } else { "a" };
    let mut tried = Vec::new();
    for (turn, random) in [0, 1, 7, u64::MAX, 3].into_iter().enumerate() {
        let next = entry.refreshed_cluster(&request, &info, &mut tried, random).unwrap();
        assert_eq!(next.name.as_ref(), if turn % 2 == 0 { other } else { own.as_str() }, "attempt {turn}: never the one before");
    }
}
