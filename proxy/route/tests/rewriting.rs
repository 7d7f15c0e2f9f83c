//! What the upstream and the client see: header mutations, host and path rewrites, redirects, direct responses. Expectations were
//! taken from Envoy 1.40 with the same configuration.

mod kit;

use http::StatusCode;
use kit::{get, refused_routes, routes, shown, shown_response, table};
use nuncio_core::{ResponseHead, test_kit};
use nuncio_route::Action;

const LEVELS: &str = "
name: t
request_headers_to_add: [{header: {key: x-o, value: table}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}, {header: {key: x-a, value: table}}]
response_headers_to_add: [{header: {key: x-o, value: table}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}, {header: {key: x-a, value: table}}]
virtual_hosts:
- name: v
  domains: ['*']
  request_headers_to_add: [{header: {key: x-o, value: vhost}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}, {header: {key: x-a, value: vhost}}]
  response_headers_to_add: [{header: {key: x-o, value: vhost}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}, {header: {key: x-a, value: vhost}}]
  routes:
  - match: {prefix: /}
    request_headers_to_add: [{header: {key: x-o, value: route}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}, {header: {key: x-a, value: route}}]
    response_headers_to_add: [{header: {key: x-o, value: route}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}, {header: {key: x-a, value: route}}]
    route:
      weighted_clusters:
        clusters:
        - name: c
          weight: 1
          request_headers_to_add: [{header: {key: x-o, value: wc}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}, {header: {key: x-a, value: wc}}]
          response_headers_to_add: [{header: {key: x-o, value: wc}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}, {header: {key: x-a, value: wc}}]
";

#[test]
fn levels_run_in_envoys_order() {
    let head = get("h", "/", &[]);
    let order = |lab: &kit::Lab| {
        let upstream = lab.upstream(&head);
        let mut response = ResponseHead::new(StatusCode::OK);
        lab.must(&head).finalize_response(&mut response, &head, &test_kit::stream_info());
        let values = |headers: &nuncio_core::Headers, name: &str| {
            let all: Vec<_> = headers.iter().filter(|(n, _)| n.as_str() == name).map(|(_, v)| v.to_str().unwrap().to_string()).collect();
            all.join(" ")
        };
        for name in ["x-o", "x-a"] {
            assert_eq!(values(&upstream.headers, name), values(&response.headers, name));
        }
        format!("{} / {}", values(&upstream.headers, "x-o"), values(&upstream.headers, "x-a"))
    };
    assert_eq!(order(&table(LEVELS)), "table / wc route vhost table");
    assert_eq!(order(&table(&format!("{LEVELS}most_specific_header_mutations_wins: true\n"))), "route / wc table vhost route");
}

#[test]
fn append_actions() {
    let lab = routes(
        "
- match: {prefix: /}
  route: {cluster: c}
  request_headers_to_remove: [x-gone, X-Both]
  request_headers_to_add:
  - {header: {key: x-append, value: new}}
  - {header: {key: x-absent, value: new}, append_action: ADD_IF_ABSENT}
  - {header: {key: x-present, value: new}, append_action: ADD_IF_ABSENT}
  - {header: {key: x-over, value: new}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}
  - {header: {key: x-over2, value: new}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}
  - {header: {key: x-exists, value: new}, append_action: OVERWRITE_IF_EXISTS}
  - {header: {key: x-exists2, value: new}, append_action: OVERWRITE_IF_EXISTS}
  - {header: {key: x-old-append, value: new}, append: false}
  - {header: {key: x-both, value: new}}
  - {header: {key: x-empty, value: '%REQ(nothing)%'}}
  - {header: {key: x-kept, value: '%REQ(nothing)%'}, keep_empty_value: true}
  - {header: {key: x-req, value: 'a %REQ(x-in)% %REQ(:path)%'}}
  - {header: {key: x-raw, raw_value: cmF3}}
  - {header: {key: x-percent, value: '100%%'}}
",
    );
    let head = get(
        "h",
        "/p",
        &[
            ("x-gone", "1"),
            ("x-both", "old"),
            ("x-append", "old"),
            ("x-present", "old"),
            ("x-over", "old"),
            ("x-over", "older"),
            ("x-exists", "old"),
            ("x-old-append", "old"),
            ("x-in", "I"),
        ],
    );
    let upstream = lab.upstream(&head);
    let wanted = "h /p [x-append: old, x-present: old, x-in: I, x-over: new, x-over2: new, x-exists: new, x-old-append: new, \
                  x-append: new, x-absent: new, x-both: new, x-kept: , x-req: a I /p, x-raw: raw, x-percent: 100%]";
    assert_eq!(shown(&upstream), wanted);
}

#[test]
fn hosts() {
    let lab = routes(
        r"
- {match: {prefix: /lit}, route: {cluster: c, host_rewrite_literal: new, append_x_forwarded_host: true}}
- {match: {prefix: /hdr}, route: {cluster: c, host_rewrite_header: x-h}}
- {match: {prefix: /re}, route: {cluster: c, host_rewrite_path_regex: {pattern: {regex: '^/re/(.+)/.*$'}, substitution: '\1'}}}
- {match: {prefix: /fmt}, route: {cluster: c, host_rewrite: '%REQ(x-h)%.x'}}
- {match: {prefix: /auto}, route: {cluster: c, auto_host_rewrite: true, append_x_forwarded_host: true}}
- {match: {prefix: /both}, route: {weighted_clusters: {clusters: [{name: c, weight: 1, host_rewrite_literal: wc}]}, host_rewrite_literal: route, append_x_forwarded_host: true}}
- {match: {prefix: /wc}, route: {weighted_clusters: {clusters: [{name: c, weight: 1, host_rewrite_literal: wc}]}, append_x_forwarded_host: true}}",
    );
    for (path, header, wanted) in [
        ("/lit", None, "new /lit [x-envoy-original-host: h, x-forwarded-host: h]"),
        ("/lit", Some(("x-forwarded-host", "h")), "new /lit [x-forwarded-host: h, x-envoy-original-host: h]"),
        ("/lit", Some(("x-forwarded-host", "a, b")), "new /lit [x-forwarded-host: a, b,h, x-envoy-original-host: h]"),
        ("/lit", Some(("x-forwarded-host", "a,h")), "new /lit [x-forwarded-host: a,h, x-envoy-original-host: h]"),
        ("/lit", Some(("x-forwarded-host", "a, h")), "new /lit [x-forwarded-host: a, h,h, x-envoy-original-host: h]"),
        ("/hdr", Some(("x-h", "q")), "q /hdr [x-h: q, x-envoy-original-host: h]"),
        ("/hdr", None, "h /hdr []"),
        ("/re/foo/bar?z", None, "foo /re/foo/bar?z [x-envoy-original-host: h]"),
        ("/fmt", Some(("x-h", "q")), "q.x /fmt [x-h: q, x-envoy-original-host: h]"),
        ("/fmt", None, "-.x /fmt [x-envoy-original-host: h]"),
        ("/auto", None, "h /auto []"),
        ("/both", None, "route /both [x-envoy-original-host: wc, x-forwarded-host: wc]"),
        ("/wc", None, "wc /wc []"),
    ] {
        let head = get("h", path, header.as_slice());
        assert_eq!(shown(&lab.upstream(&head)), wanted, "{path} {header:?}");
    }
    // What the router does once it knows the endpoint.
    let mut head = get("h", "/auto", &[]);
    let entry = lab.must(&head);
    let forward = entry.forward().unwrap();
    assert!(forward.auto_host_rewrite());
    forward.rewrite_host(&mut head, "endpoint.example", false);
    assert_eq!(shown(&head), "endpoint.example /auto [x-forwarded-host: h]");
}

#[test]
fn paths() {
    let lab = routes(
        r"
- {match: {prefix: /p1}, route: {cluster: c, prefix_rewrite: /n}}
- {match: {prefix: /P2, case_sensitive: false}, route: {cluster: c, prefix_rewrite: /n}}
- {match: {safe_regex: {regex: '/p3.*'}}, route: {cluster: c, prefix_rewrite: /n}}
- {match: {path_separated_prefix: /p4}, route: {cluster: c, prefix_rewrite: /}}
- {match: {prefix: /p5}, route: {cluster: c, regex_rewrite: {pattern: {regex: '^/p5/([^/]+)(/.*)$'}, substitution: '\2/i/\1'}}}
- {match: {prefix: /p6}, route: {cluster: c, path_rewrite: '/new/%REQ(x-h)%'}}
- {match: {prefix: /p7}, route: {cluster: c, path_rewrite: '%REQ(x-none)%'}}
- {match: {prefix: /p8}, route: {cluster: c, regex_rewrite: {pattern: {regex: '.*'}, substitution: ''}}}
- {match: {path: /p9}, route: {cluster: c, prefix_rewrite: /n}}
- match: {path_match_policy: {name: t, typed_config: {'@type': type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig, path_template: '/t/{a}/{b=**}'}}}
  route: {cluster: c, path_rewrite_policy: {name: t, typed_config: {'@type': type.googleapis.com/envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig, path_template_rewrite: '/{b}/x/{a}'}}}",
    );
    for (path, wanted) in [
        ("/p1/a?b", "/n/a?b"),
        ("/p2/a?b", "/n/a?b"),
        ("/p3/a?b", "/n?b"),
        ("/p4?x", "/?x"),
        ("/p4/x?x", "//x?x"),
        ("/p5/foo/v1?q", "/v1/i/foo?q"),
        ("/p6?q", "/new/z?q"),
        ("/p7?q", ""),
        ("/p8?q", ""),
        ("/p9?q", "/n?q"),
        ("/t/1/2/3?q", "/2/3/x/1?q"),
    ] {
        let head = get("h", path, &[("x-h", "z")]);
        let wanted = match wanted {
            "" => format!("h {path} [x-h: z]"),
            new => format!("h {new} [x-h: z, x-envoy-original-path: {path}]"),
        };
        assert_eq!(shown(&lab.upstream(&head)), wanted, "{path}");
    }
    let mut head = get("h", "/p1", &[]);
    lab.must(&head).finalize_request(&mut head, &test_kit::stream_info(), false);
    assert_eq!(shown(&head), "h /n []");
}

#[test]
fn redirects() {
    let lab = routes(
        r"
- {match: {prefix: /https}, redirect: {https_redirect: true}}
- {match: {prefix: /port}, redirect: {port_redirect: 8443}}
- {match: {prefix: /sp}, redirect: {scheme_redirect: https, port_redirect: 443}}
- {match: {prefix: /host}, redirect: {host_redirect: new.example, response_code: FOUND}}
- {match: {prefix: /hp}, redirect: {host_redirect: 'new.example:81', port_redirect: 82}}
- {match: {prefix: /path1}, redirect: {path_redirect: /new}}
- {match: {prefix: /path2}, redirect: {path_redirect: '/new?own=1', strip_query: true}}
- {match: {prefix: /path3}, redirect: {path_redirect: '/new', strip_query: true}}
- {match: {prefix: /pre1}, redirect: {prefix_rewrite: /new}}
- {match: {prefix: /pre2}, redirect: {prefix_rewrite: /new, strip_query: true}}
- {match: {prefix: /re1}, redirect: {regex_rewrite: {pattern: {regex: '^/re1/(.*)$'}, substitution: '/x/\1'}}}
- {match: {prefix: /re2}, redirect: {regex_rewrite: {pattern: {regex: '.*'}, substitution: ''}}}
- {match: {prefix: /fmt}, redirect: {path_rewrite: '/f/%REQ(x-h)%'}}
- {match: {safe_regex: {regex: '/sr.*'}}, redirect: {prefix_rewrite: /new}}
- {match: {prefix: /strip}, redirect: {strip_query: true, host_redirect: z}}",
    );
    for (host, path, wanted) in [
        ("r", "/https?a", "https://r/https?a"),
        ("r", "/port?a", "http://r:8443/port?a"),
        ("r", "/sp?a", "https://r:443/sp?a"),
        ("r", "/host/b?a", "http://new.example/host/b?a"),
        ("r", "/hp?a", "http://new.example:81:82/hp?a"),
        ("r", "/path1/b?a", "http://r/new?a"),
        ("r", "/path1", "http://r/new"),
        ("r", "/path2?a", "http://r/new?own=1"),
        ("r", "/path3?a", "http://r/new"),
        ("r", "/pre1/b?a", "http://r/new/b?a"),
        ("r", "/pre2/b?a", "http://r/new/b"),
        ("r", "/re1/b?a", "http://r/x/b?a"),
        ("r", "/re2/b?a", "http://r/re2/b?a"),
        ("r", "/fmt/b?a", "http://r/f/z?a"),
        ("r", "/sra?a", "http://r/new?a"),
        ("r", "/strip/a?b=c", "http://z/strip/a"),
        ("r:80", "/https", "https://r/https"),
        ("r:443", "/https", "https://r:443/https"),
        ("r:8080", "/https", "https://r:8080/https"),
        ("[::1]:80", "/https", "https://[::1]/https"),
        ("r:80", "/port", "http://r:8443/port"),
        ("r:80", "/host", "http://new.example/host"),
        ("r:80", "/pre1", "http://r:80/new"),
        ("r:", "/https", "https://r:/https"),
    ] {
        let head = get(host, path, &[("x-forwarded-proto", "http"), ("x-h", "z")]);
        assert_eq!(lab.location(&head), wanted, "{host}{path}");
    }
    let entry = lab.must(&get("r", "/host", &[]));
    assert!(matches!(entry.action(), Action::Redirect(redirect) if redirect.status() == 302));
}

#[test]
fn direct_responses() {
    let lab = routes(
        "
- {match: {prefix: /d1}, direct_response: {status: 418, body: {inline_string: hi}}}
- {match: {prefix: /d2}, direct_response: {status: 204}}
- {match: {prefix: /d3}, direct_response: {status: 418, body: {inline_string: hi}, body_format: {text_format_source: {inline_string: '<%LOCAL_REPLY_BODY%> %REQ(x-h)%'}}}}
- {match: {prefix: /d4}, direct_response: {status: 418, body: {inline_string: hi}, body_format: {json_format: {b: '%LOCAL_REPLY_BODY%'}}}}
- {match: {prefix: /nf}, non_forwarding_action: {}}",
    );
    for (path, status, kind, wanted) in [
        ("/d1", 418, "text/plain", "hi"),
        ("/d2", 204, "text/plain", ""),
        ("/d3", 418, "text/plain", "<hi> z"),
        ("/d4", 418, "application/json", "{\"b\":\"hi\"}"),
    ] {
        let head = get("h", path, &[("x-h", "z")]);
        let entry = lab.must(&head);
        let Action::DirectResponse(direct) = entry.action() else { panic!("{path}") };
        assert_eq!(direct.status(), status);
        assert_eq!(direct.content_type(), kind);
        let body = direct.body(&head, &test_kit::stream_info());
        assert_eq!(String::from_utf8_lossy(&body).trim_end(), wanted, "{path}");
    }
    assert!(matches!(lab.must(&get("h", "/nf", &[])).action(), Action::NonForwarding));
    let long = format!("- {{match: {{prefix: /}}, direct_response: {{status: 200, body: {{inline_string: {}}}}}}}", "a".repeat(4097));
    assert!(refused_routes(&long).contains("4097 bytes; the limit is 4096"), "{}", refused_routes(&long));
}

#[test]
fn response_headers() {
    let lab = routes(
        "
- match: {prefix: /}
  route: {cluster: c}
  response_headers_to_remove: [x-secret]
  response_headers_to_add:
  - {header: {key: x-q, value: '%REQ(x-q)%'}}
  - {header: {key: x-s, value: '%RESP(x-up)%'}}",
    );
    let head = get("h", "/", &[("x-q", "Q")]);
    let mut response = ResponseHead::new(StatusCode::OK);
    response.headers.append(http::HeaderName::from_static("x-up"), http::HeaderValue::from_static("U"));
    response.headers.append(http::HeaderName::from_static("x-secret"), http::HeaderValue::from_static("1"));
    lab.must(&head).finalize_response(&mut response, &head, &test_kit::stream_info());
    assert_eq!(shown_response(&response), "x-up: U, x-q: Q, x-s: U");
}
