"""What the upstream sees: path and host rewrites, header mutation in every place and order, internal redirects."""
from harness.config import cluster, endpoint, extension, route, to
from harness.setup import Setup, reply


def add(key, value, action=None, keep_empty=None):
    option = {"header": {"key": key, "value": value}}
    if action:
        option["append_action"] = action
    if keep_empty is not None:
        option["keep_empty_value"] = keep_empty
    return option


def paths():
    rows = {
        "prefix": ({"prefix": "/prefix"}, {"prefix_rewrite": "/new"}), "slash": ({"prefix": "/slash/"}, {"prefix_rewrite": "/"}), "whole": ({"path": "/whole"}, {"prefix_rewrite": "/other"}),
        "empty": ({"prefix": "/empty/"}, {"prefix_rewrite": "/x/"}), "regex": ({"prefix": "/regex"}, {"regex_rewrite": {"pattern": {"regex": "^/regex/([^/]+)(/.*)$"}, "substitution": "\\2/by/\\1"}}),
        "regex-all": ({"prefix": "/all"}, {"regex_rewrite": {"pattern": {"regex": "a"}, "substitution": "b"}}),
        "regex-none": ({"prefix": "/none"}, {"regex_rewrite": {"pattern": {"regex": "zzz"}, "substitution": "b"}}),
        "separated": ({"path_separated_prefix": "/sep"}, {"prefix_rewrite": "/new"}), "nocase": ({"prefix": "/NoCase", "case_sensitive": False}, {"prefix_rewrite": "/new"}),
        "regex-match": ({"safe_regex": {"regex": "/rm/[0-9]+"}}, {"prefix_rewrite": "/new"}),
        "template": ({"path_match_policy": extension("t", "path.match.uri_template.v3.UriTemplateMatchConfig", path_template="/tpl/{a}/{b=**}")},
                     {"path_rewrite_policy": extension("t", "path.rewrite.uri_template.v3.UriTemplateRewriteConfig", path_template_rewrite="/{b}/of/{a}")}),
        "host": ({"prefix": "/host"}, {"host_rewrite_literal": "new.test"}), "host-append": ({"prefix": "/happend"}, {"host_rewrite_literal": "new.test", "append_x_forwarded_host": True}),
        "host-header": ({"prefix": "/hheader"}, {"host_rewrite_header": "x-host"}), "host-auto": ({"prefix": "/hauto"}, {"cluster": "named", "auto_host_rewrite": True}),
        "host-regex": ({"prefix": "/hregex"}, {"host_rewrite_path_regex": {"pattern": {"regex": "^/hregex/(.+)$"}, "substitution": "\\1.test"}}),
        "host-auto-append": ({"prefix": "/haa"}, {"cluster": "named", "auto_host_rewrite": True, "append_x_forwarded_host": True}),
    }
    setup = Setup("paths", routes=[route(match, {"cluster": "a", **action}, name=name) for name, (match, action) in rows.items()],
                  clusters=[cluster("a"), cluster("named", localities=[{"lb_endpoints": [endpoint("a", ) | {"endpoint": {**endpoint("a")["endpoint"], "hostname": "the.host.name"}}]}])])
    for path in ["/prefix", "/prefix/", "/prefix/a", "/prefixa", "/prefix?q=/prefix", "/prefix/a?q#", "/slash/", "/slash/a", "/slash//a", "/whole", "/whole?q", "/empty/", "/empty/a",
                 "/regex/x/y", "/regex/x/y?q=1", "/regex", "/regex/x", "/all/aaa?a=a", "/none/a?b", "/sep", "/sep/", "/sep/a?q", "/nocase/a", "/NOCASE", "/rm/12", "/tpl/1/x/y", "/tpl/1/x?q=1",
                 "/host", "/happend", "/hheader", "/hauto", "/hregex/abc", "/hregex/abc?x", "/haa"]:
        if "#" not in path:
            setup.get(path)
    setup.get("host header given", "/hheader", [("x-host", "given.test")])
    setup.get("host header empty", "/hheader", [("x-host", "")])
    setup.get("append to existing", "/happend", [("x-forwarded-host", "first.test")])
    setup.http2("h2 prefix", "/prefix/a?q")
    setup.http2("h2 host", "/happend")
    return setup


def mutations():
    many = [add("x-static", "v"), add("x-append", "route"), add("x-over", "route", "OVERWRITE_IF_EXISTS_OR_ADD"), add("x-absent", "route", "ADD_IF_ABSENT"),
            add("x-exists", "route", "OVERWRITE_IF_EXISTS"), add("x-empty", ""), add("x-empty-kept", "", keep_empty=True), add("x-path", "%REQ(:PATH)%"), add("x-method", "%REQ(:METHOD)%"),
            add("x-missing", "%REQ(NONE)%"), add("x-alt", "%REQ(NONE?:AUTHORITY)%"), add("x-cut", "%REQ(X-LONG):3%"), add("x-percent", "100%%"), add("x-proto", "%PROTOCOL%"),
            add("x-cluster", "%UPSTREAM_CLUSTER%"), add("x-route", "%ROUTE_NAME%"), add("x-meta", "%DYNAMIC_METADATA(f:k)%"), add("x-host-name", "%ENVIRONMENT(NONE_SUCH)%"),
            add("x-remote", "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"), add("x-mixed", "a-%REQ(:METHOD)%-b"), add("X-Upper", "V"), add("x-local-port", "%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%"),
            add("x-vhost", "%VIRTUAL_CLUSTER_NAME%"), add("x-sni", "%REQUESTED_SERVER_NAME%"), add("x-stream", "%UPSTREAM_PROTOCOL%"), add("x-code", "%RESPONSE_CODE%")]
    levels = {"request_headers_to_add": [add("x-order", "LEVEL"), add("x-level-over", "LEVEL", "OVERWRITE_IF_EXISTS_OR_ADD"), add("x-level-absent", "LEVEL", "ADD_IF_ABSENT")],
              "response_headers_to_add": [add("x-order", "LEVEL"), add("x-level-over", "LEVEL", "OVERWRITE_IF_EXISTS_OR_ADD"), add("x-level-absent", "LEVEL", "ADD_IF_ABSENT")],
              "request_headers_to_remove": ["x-remove-LEVEL", "x-both"], "response_headers_to_remove": ["x-remove-LEVEL", "x-both"]}

    def at(level):
        import json
        return json.loads(json.dumps(levels).replace("LEVEL", level))
    made = []
    for specific in (False, True):
        table = {"name": "t", **at("table"), "most_specific_header_mutations_wins": specific, "virtual_hosts": [{"name": "v", "domains": ["*"], **at("vhost"), "routes": [
            route("/weighted", {"weighted_clusters": {"clusters": [{"name": "a", "weight": 1, **at("cluster")}]}}, **at("route")),
            route("/direct", direct_response={"status": 200, "body": {"inline_string": "x"}}, **at("route")),
            route("/", to("a"), **at("route"))]}]}
        setup = Setup("levels-specific" if specific else "levels", route_config=table)
        answer = [reply(200, [("x-remove-route", "1"), ("x-remove-vhost", "1"), ("x-remove-table", "1"), ("x-remove-cluster", "1"), ("x-both", "1"), ("x-level-over", "up"), ("x-level-absent", "up"),
                              ("x-order", "up")], "x")]
        for path in ("/", "/weighted", "/direct"):
            setup.get(f"{path} bare", path)
            setup.get(f"{path} full", path, [(f"x-remove-{level}", "1") for level in ("route", "vhost", "table", "cluster")] + [("x-both", "1"), ("x-level-over", "mine"), ("x-level-absent", "mine"),
                                                                                                                ("x-order", "mine")], upstream=answer)
        setup.get("not found keeps", "/direct/../x")
        made.append(setup)
    operators = Setup("operators", routes=[route("/", to("a"), name="the-route", request_headers_to_add=many, response_headers_to_add=many + [add("x-up", "%RESP(x-from-up)%"), add("x-uhost", "%UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%")],
                                                 request_headers_to_remove=["x-gone"], response_headers_to_remove=["x-gone"])])
    operators.get("bare", "/p?q")
    operators.get("full", "/p?q", [("x-append", "mine"), ("x-over", "mine"), ("x-absent", "mine"), ("x-exists", "mine"), ("x-long", "abcdef"), ("x-gone", "1"), ("x-gone", "2"), ("x-static", "a"), ("x-static", "b")],
                  upstream=[reply(200, [("x-append", "up"), ("x-over", "up"), ("x-absent", "up"), ("x-exists", "up"), ("x-gone", "1"), ("x-from-up", "u")], "x")])
    operators.http2("h2", "/p?q", [("x-append", "mine"), ("x-exists", "mine")])
    made.append(operators)
    return made


def redirects():
    policy = {"max_internal_redirects": 2, "redirect_response_codes": [301, 302, 303, 307, 308], "response_headers_to_copy": ["x-copy"]}
    setup = Setup("internal-redirects", vhosts=[{"name": "other", "domains": ["other.test"], "routes": [route("/", to("b", internal_redirect_policy=policy), name="other")]},
                                                {"name": "all", "domains": ["*"], "routes": [route("/plain", to("a"), name="plain"), route("/default", to("a", internal_redirect_policy={}), name="default"),
                                                 route("/previous", to("a", internal_redirect_policy={**policy, "predicates": [extension("envoy.internal_redirect_predicates.previous_routes",
                                                       "internal_redirect.previous_routes.v3.PreviousRoutesConfig")]}), name="previous"),
                                                 route("/scheme", to("a", internal_redirect_policy={**policy, "allow_cross_scheme_redirect": True}), name="scheme"),
                                                 route("/", to("a", internal_redirect_policy=policy), name="all")]}],
                  clusters=[cluster("a"), cluster("b")], stats=["internal_redirect"])

    def go(status, location):
        return reply(status, [("location", location), ("x-copy", "copied"), ("x-else", "e")], "moved", reason="Moved")
    setup.get("once", "/x", upstream=[go(302, "http://other.test/y?z")])
    for status in (301, 302, 303, 307, 308, 300, 304):
        setup.get(f"status {status}", "/x", upstream=[go(status, "http://other.test/y")])
    setup.get("twice", "/x", upstream=[go(302, "http://other.test/y"), go(302, "http://host/z")])
    setup.get("three times", "/x", upstream=[go(302, "http://other.test/y"), go(302, "http://host/z"), go(302, "http://host/w")])
    setup.get("relative", "/x/y", upstream=[go(302, "/rel?a")])
    setup.get("relative dot", "/x/y", upstream=[go(302, "../up")])
    setup.get("no location", "/x", upstream=[reply(302, [], "moved")])
    setup.get("https", "/x", upstream=[go(302, "https://other.test/y")])
    setup.get("https allowed", "/scheme", upstream=[go(302, "https://other.test/y")])
    setup.get("garbage", "/x", upstream=[go(302, "not a url")])
    setup.get("not enabled", "/plain", upstream=[go(302, "http://other.test/y")])
    setup.get("default 301", "/default", upstream=[go(301, "http://other.test/y")])
    setup.get("default 302", "/default", upstream=[go(302, "http://other.test/y")])
    setup.get("previous", "/previous", upstream=[go(302, "http://host/previous/2")])
    setup.get("post 302", "/x", method="POST", body=b"hello", upstream=[go(302, "http://other.test/y")])
    setup.get("post 303", "/x", method="POST", body=b"hello", upstream=[go(303, "http://other.test/y")])
    setup.get("post 307", "/x", method="POST", body=b"hello", upstream=[go(307, "http://other.test/y")])
    setup.get("head", "/x", method="HEAD", upstream=[go(302, "http://other.test/y").split(b"moved")[0].replace(b"Content-Length: 5", b"Content-Length: 0")])
    setup.get("fragment", "/x", upstream=[go(302, "http://other.test/y#frag")])
    return setup


def early():
    setup = Setup("early-mutation", hcm={"early_header_mutation_extensions": [extension("envoy.http.early_header_mutation.header_mutation", "http.early_header_mutation.header_mutation.v3.HeaderMutation",
        mutations=[{"append": add("x-early", "%REQ(:PATH)%")}, {"remove": "x-late"}, {"append": add("x-route-me", "yes")}])]},
        routes=[route({"prefix": "/", "headers": [{"name": "x-route-me", "string_match": {"exact": "yes"}}]}, to("a"), name="routed"), route("/", name="else", direct_response={"status": 404})])
    setup.get("plain", "/p", [("x-late", "1")])
    setup.get("twice", "/p", [("x-early", "mine")])
    return setup


def setups():
    return [paths(), *mutations(), redirects(), early()]
