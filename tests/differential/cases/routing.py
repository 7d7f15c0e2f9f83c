"""Route and virtual-host matching. Each route answers with its own name, so a case shows which one was taken."""
from harness.config import extension, route, say
from harness.setup import Setup


def named(name, match, **fields):
    return route(match, name=name, direct_response=say(name), **fields)


def rest():
    return named("rest", "/")


def header(name, **fields):
    return {"prefix": "/", "headers": [{"name": name, **fields}]}


def query(name, **fields):
    return {"prefix": "/", "query_parameters": [{"name": name, **fields}]}


def vhost(name, *domains, **fields):
    return {"name": name, "domains": list(domains), "routes": [named(name, "/")], **fields}


def domains():
    setup = Setup("domains", vhosts=[
        vhost("exact", "host.example.com", "exact.test"), vhost("suffix-long", "*.sub.example.com"), vhost("suffix", "*.example.com"),
        vhost("suffix-dash", "*-bar.example.com"), vhost("prefix", "foo.*"), vhost("prefix-long", "foo.bar.*"), vhost("prefix-dash", "foo-*"),
        vhost("port", "ported.test:8080"), vhost("any-port", "both.test", "both.test:81"), vhost("ip", "127.0.0.1"), vhost("v6", "[::1]"),
        vhost("case", "UPPER.test"), vhost("star", "*")])
    for host in ["host.example.com", "HOST.example.COM", "host.example.com:80", "host.example.com:8080", "a.example.com", "example.com",
                 ".example.com", "a.sub.example.com", "sub.example.com", "a.b.sub.example.com", "foo-bar.example.com", "-bar.example.com",
                 "foo.com", "foo.", "foo.bar.com", "foo.bar.", "foo-x", "foo-", "ported.test", "ported.test:8080", "ported.test:81", "both.test:81",
                 "both.test:82", "127.0.0.1", "127.0.0.1:80", "[::1]", "[::1]:80", "upper.test", "UPPER.test", "x", "exact.test.", "exact.test..",
                 "a..example.com", "*", "*.example.com", "foo.example.com", "foo.bar.example.com", "host_name.example.com"]:
        setup.get(host, "/", host=host)
    strip = Setup("strip-any-port", hcm={"strip_any_host_port": True}, vhosts=[
        vhost("exact", "host.test"), vhost("port", "host.test:81"), vhost("v6", "[::1]"), vhost("star", "*")])
    matching = Setup("strip-matching-port", hcm={"strip_matching_host_port": True}, vhosts=[vhost("exact", "host.test"), vhost("star", "*")])
    ignore = Setup("ignore-port", route_config={"name": "t", "ignore_port_in_host_matching": True, "virtual_hosts": [
        vhost("exact", "host.test"), vhost("suffix", "*.test"), vhost("star", "*")]})
    dot = Setup("strip-dot", hcm={"strip_trailing_host_dot": True}, vhosts=[vhost("exact", "host.test"), vhost("star", "*")])
    for one in (strip, matching, ignore, dot):
        for host in ["host.test", "host.test:81", "host.test:80", "host.test.", "host.test.:80", "host.test:", "host.test:x", "[::1]:80", "[::1]",
                     "HOST.test:443", "a.test:1"]:
            one.get(host, "/", host=host)
    none = Setup("no-star", vhosts=[vhost("only", "only.test")])
    none.table([("known", {"host": "only.test"}), ("unknown", {"host": "else.test"}), ("empty-path", {"host": "only.test", "path": "*"})], path="/")
    return [setup, strip, matching, ignore, dot, none]


def paths():
    setup = Setup("paths", routes=[
        named("exact", {"path": "/exact"}), named("exact-nocase", {"path": "/NoCase", "case_sensitive": False}),
        named("prefix", {"prefix": "/pre"}), named("prefix-nocase", {"prefix": "/PNC", "case_sensitive": False}),
        named("separated", {"path_separated_prefix": "/sep"}), named("separated-deep", {"path_separated_prefix": "/deep/er"}),
        named("separated-nocase", {"path_separated_prefix": "/SNC", "case_sensitive": False}),
        named("regex", {"safe_regex": {"regex": "/re/[0-9]+"}}), named("regex-alt", {"safe_regex": {"regex": "/alt/(a|bb)"}}),
        named("regex-class", {"safe_regex": {"regex": "/w/\\w+\\.txt"}}), named("regex-icase", {"safe_regex": {"regex": "(?i)/icase"}}),
        named("template", {"path_match_policy": extension("t", "path.match.uri_template.v3.UriTemplateMatchConfig",
                                                          path_template="/tpl/{id}/x/{rest=**}")}),
        named("template-star", {"path_match_policy": extension("t", "path.match.uri_template.v3.UriTemplateMatchConfig",
                                                               path_template="/star/*/end")}),
        rest()])
    for path in ["/exact", "/exact/", "/exact?x=1", "/exactly", "/EXACT", "/exact#x", "/nocase", "/NOCASE", "/nocase/", "/NoCase?q", "/pre", "/prefix",
                 "/pre/x", "/PRE", "/pnc/x", "/sep", "/sep/", "/sep/a", "/sepx", "/sep?x", "/sep?/x", "/SEP", "/deep/er", "/deep/er/x", "/deep/erx", "/snc",
                 "/snc/x", "/sncx", "/re/12", "/re/", "/re/12x", "/re/12?x", "/re/12/", "/xre/12", "/alt/a", "/alt/bb", "/alt/b", "/w/a_1.txt", "/w/a-1.txt",
                 "/ICASE", "/tpl/1/x/a/b", "/tpl/1/x/", "/tpl/1/x", "/tpl/1/2/x/a", "/tpl/1/x/a?q=1", "/tpl//x/a", "/star/a/end", "/star/a/b/end", "/star//end",
                 "/star/a/end?x"]:
        setup.get(path)
    return [setup]


def headers():
    rows = {
        "exact": {"string_match": {"exact": "v"}}, "prefix": {"string_match": {"prefix": "v"}}, "suffix": {"string_match": {"suffix": "v"}},
        "contains": {"string_match": {"contains": "v"}}, "icase": {"string_match": {"exact": "VaL", "ignore_case": True}},
        "prefix-icase": {"string_match": {"prefix": "Va", "ignore_case": True}},
        "regex": {"string_match": {"safe_regex": {"regex": "v[0-9]*"}}}, "present": {"present_match": True}, "absent": {"present_match": False},
        "range": {"range_match": {"start": "-5", "end": "10"}}, "invert": {"string_match": {"exact": "v"}, "invert_match": True},
        "invert-present": {"present_match": True, "invert_match": True},
        "treat-missing": {"string_match": {"exact": ""}, "treat_missing_header_as_empty": True},
        "treat-missing-invert": {"string_match": {"exact": "v"}, "treat_missing_header_as_empty": True, "invert_match": True},
        "range-invert": {"range_match": {"start": 1, "end": 3}, "invert_match": True},
        "range-missing": {"range_match": {"start": 1, "end": 3}, "treat_missing_header_as_empty": True},
        "old-exact": {"exact_match": "v"}, "old-regex": {"safe_regex_match": {"regex": "v.*"}}, "old-prefix": {"prefix_match": "v"},
        "old-suffix": {"suffix_match": "v"}, "old-contains": {"contains_match": "v"}, "none": {},
    }
    setup = Setup("headers", routes=[*(route({"path": f"/{name}", "headers": [{"name": "x", **fields}]}, name=name, direct_response=say(name))
                                       for name, fields in rows.items()), rest()])
    values = {"v": [("x", "v")], "none": [], "empty": [("x", "")], "val": [("X", "val")], "number": [("x", "7")], "two": [("x", "v"), ("x", "w")],
              "negative": [("x", "-5")], "end": [("x", "10")], "spaces": [("x", "  v  ")]}
    for name in rows:
        for value in values:
            setup.get(f"{name} {value}", f"/{name}", values[value])
    pseudo = Setup("pseudo-headers", routes=[
        named("method", {"prefix": "/", "headers": [{"name": ":method", "string_match": {"exact": "PUT"}}]}),
        named("authority", {"prefix": "/", "headers": [{"name": ":authority", "string_match": {"prefix": "auth."}}]}),
        named("host", {"prefix": "/", "headers": [{"name": "host", "string_match": {"prefix": "via-host."}}]}),
        named("path", {"prefix": "/", "headers": [{"name": ":path", "string_match": {"suffix": "?end"}}]}),
        named("scheme", {"prefix": "/", "headers": [{"name": ":scheme", "string_match": {"exact": "https"}}]}),
        named("cookie", {"prefix": "/", "headers": [{"name": "cookie", "string_match": {"contains": "a=1"}}]}),
        named("forwarded", {"prefix": "/", "headers": [{"name": "x-forwarded-proto", "string_match": {"exact": "https"}}]}), rest()])
    pseudo.table([("put", {"method": "PUT"}), ("auth", {"host": "auth.x"}), ("host", {"host": "via-host.x"}), ("path", {"path": "/x?end"}),
                  ("cookie", {"headers": [("Cookie", "b=2; a=1")]}), ("proto", {"headers": [("X-Forwarded-Proto", "https")]}), ("none", {})], path="/")
    multi = Setup("several-conditions", routes=[
        named("and", {"prefix": "/", "headers": [{"name": "x", "string_match": {"exact": "1"}}, {"name": "y", "string_match": {"exact": "2"}}]}),
        named("two-values", {"prefix": "/", "headers": [{"name": "z", "string_match": {"exact": "a,b"}}]}), rest()])
    multi.table([("x", {"headers": [("x", "1")]}), ("both", {"headers": [("y", "2"), ("x", "1")]}), ("joined", {"headers": [("z", "a"), ("z", "b")]}),
                 ("as-one", {"headers": [("z", "a,b")]}), ("with-space", {"headers": [("z", "a, b")]})], path="/")
    return [setup, pseudo, multi]


def queries():
    rows = {"exact": {"string_match": {"exact": "v"}}, "prefix": {"string_match": {"prefix": "v"}}, "regex": {"string_match": {"safe_regex": {"regex": "v+"}}},
            "present": {"present_match": True}, "absent": {"present_match": False}, "none": {},
            "icase": {"string_match": {"exact": "V", "ignore_case": True}}, "contains": {"string_match": {"contains": "v"}}}
    setup = Setup("queries", routes=[*(route({"path": f"/{name}", "query_parameters": [{"name": "q", **fields}]}, name=name, direct_response=say(name))
                                       for name, fields in rows.items()), rest()])
    for name in rows:
        for text in ["", "?", "?q", "?q=", "?q=v", "?q=vv", "?Q=v", "?p=1&q=v", "?q=v&q=w", "?q=w&q=v", "?q=%76", "?%71=v", "?q=v#f", "?q=a=v", "?qq=v", "?;q=v",
                     "?q=v;x"]:
            setup.get(f"{name} {text}", f"/{name}{text}")
    return [setup]


def others():
    setup = Setup("kinds", routes=[
        named("connect", {"connect_matcher": {}}), named("grpc", {"prefix": "/grpc", "grpc": {}}),
        named("fraction-all", {"prefix": "/all", "runtime_fraction": {"default_value": {"numerator": 100}}}),
        named("fraction-none", {"prefix": "/zero", "runtime_fraction": {"default_value": {"numerator": 0}}}),
        named("fraction-runtime", {"prefix": "/rt", "runtime_fraction": {"default_value": {"numerator": 0}, "runtime_key": "my.key"}}),
        named("tls-presented", {"prefix": "/tls", "tls_context": {"presented": True}}),
        named("tls-not-presented", {"prefix": "/notls", "tls_context": {"presented": False}}),
        named("tls-validated", {"prefix": "/val", "tls_context": {"validated": False}}),
        named("metadata", {"prefix": "/meta", "dynamic_metadata": [{"filter": "f", "path": [{"key": "k"}], "value": {"present_match": True}}]}),
        named("metadata-not", {"prefix": "/nometa", "dynamic_metadata": [{"filter": "f", "path": [{"key": "k"}], "value": {"present_match": True}, "invert": True}]}),
        named("cookie", {"prefix": "/cookie", "cookies": [{"name": "c", "string_match": {"exact": "1"}}]}),
        rest()], bootstrap={"layered_runtime": {"layers": [{"name": "static", "static_layer": {"my": {"key": 100}}}]}})
    setup.get("grpc", "/grpc", [("content-type", "application/grpc")], method="POST")
    setup.get("grpc proto", "/grpc", [("content-type", "application/grpc+proto")], method="POST")
    setup.get("grpc-web", "/grpc", [("content-type", "application/grpc-web")], method="POST")
    setup.get("grpc upper", "/grpc", [("content-type", "Application/grpc")], method="POST")
    setup.get("grpc no type", "/grpc", method="POST")
    for path in ["/all", "/zero", "/rt", "/tls", "/notls", "/val", "/meta", "/nometa"]:
        setup.get(path)
    for name, value in {"one": "c=1", "other": "c=2", "second": "b=2; c=1", "quoted": 'c="1"', "spaces": "c = 1", "none": "x"}.items():
        setup.get(f"cookie {name}", "/cookie", [("cookie", value)])
    setup.get("cookie two headers", "/cookie", [("cookie", "b=2"), ("cookie", "c=1")])
    setup.raw("connect", "CONNECT host:80 HTTP/1.1\r\nHost: host:80\r\n\r\n")
    methods = Setup("methods", routes=[named("rest", "/")])
    for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "PURGE", "PROPFIND", "M-SEARCH", "QUERY", "ACL", "LINK", "BREW", "get",
                   "G@T", "G,T", "X" * 40]:
        methods.get(method, "/", method=method)
    matcher = Setup("matcher", vhosts=[{"name": "all", "domains": ["*"], "matcher": {
        "matcher_tree": {
            "input": extension("request-headers", "envoy.type.matcher.v3.HttpRequestHeaderMatchInput", header_name=":path"),
            "prefix_match_map": {"map": {
                "/new": {"action": extension("route", "envoy.config.route.v3.Route", match={"prefix": "/"}, name="new", direct_response=say("new"))},
                "/new/list": {"action": extension("route", "envoy.config.route.v3.Route", match={"prefix": "/"}, name="list", direct_response=say("list"))},
            }}},
        "on_no_match": {"action": extension("route", "envoy.config.route.v3.Route", match={"prefix": "/"}, name="other", direct_response=say("other"))}}}])
    for path in ["/new", "/new/list", "/newer", "/old", "/new/list/1"]:
        matcher.get(path)
    tls_required = Setup("require-tls", vhosts=[
        {**vhost("all", "all.test"), "require_tls": "ALL"}, {**vhost("external", "external.test"), "require_tls": "EXTERNAL_ONLY"},
        {**vhost("none", "*"), "require_tls": "NONE"}], hcm={"use_remote_address": True})
    for host in ["all.test", "all.test:80", "external.test", "other.test"]:
        tls_required.get(host, "/p?q=1", host=host)
        tls_required.get(f"{host} https", "/p", [("x-forwarded-proto", "https")], host=host)
    return [setup, methods, matcher, tls_required]


def setups():
    return domains() + paths() + headers() + queries() + others()
