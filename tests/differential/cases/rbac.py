"""RBAC of requests and of connections: every permission and principal, conditions, match trees, shadow rules, routes, statistics, and
the tricks that would pass a careless check: several fields of one name, encoded and dotted paths, case, path parameters."""
from harness import tls
from harness.config import LOG, cluster, extension, route, to, typed
from harness.setup import Setup, request

from cases.filters import http, per_route
from cases.tls import socket

ANY = [{"any": True}]
METADATA = " rbac=[%DYNAMIC_METADATA(envoy.filters.http.rbac)%] hint=[%DYNAMIC_METADATA(envoy.common:access_log_hint)%]"


def allow(*permissions, principals=ANY, action="ALLOW", **fields):
    return {"action": action, "policies": {"p": {"permissions": list(permissions), "principals": principals, **fields}}}


def by(*principals, action="ALLOW", **fields):
    return allow({"any": True}, principals=list(principals), action=action, **fields)


def rbac(name, rules, **fields):
    """A listener whose requests `rules` decide."""
    config = {key: fields.pop(key) for key in list(fields) if key in ("shadow_rules", "shadow_rules_stat_prefix", "rules_stat_prefix", "track_per_rule_stats", "matcher", "shadow_matcher")}
    return Setup(name, filters=[*fields.pop("before", []), http("rbac", "RBAC", **({"rules": rules} if rules else {}), **config)], stats=["rbac"], log=LOG + METADATA, **fields)


def packed(name, rules, requests, **fields):
    """Many rules in one process: each has a virtual host of its name. `requests` are rows of (name, {arguments of `get`})."""
    table = fields.pop("table", {})
    hosts = [{"name": key, "domains": [key], "routes": fields.get("routes") or [route("/")], **per_route("rbac", "RBACPerRoute", rbac=rule if "rules" in rule else {"rules": rule})} for key, rule in rules.items()]
    fields.pop("routes", None)
    setup = rbac(name, None, route_config={"name": "table", "virtual_hosts": hosts, **table}, **fields)
    for key in rules:
        for case, arguments in requests:
            setup.get(f"{key} {case}", **{"path": "/", **arguments, "host": key})
    return setup


def path(**matcher):
    return {"url_path": {"path": matcher}}


def header(name, **matcher):
    return {"header": {"name": name, **matcher}}


def template(text):
    return {"uri_template": extension("envoy.path.match.uri_template.uri_template_matcher", "path.match.uri_template.v3.UriTemplateMatchConfig", path_template=text)}


PATHS = ("/admin", "/admin/", "/admin/x", "/ADMIN", "/%61dmin", "/admin%2f", "/admin%2Fx", "/x/../admin", "/./admin", "//admin", "/admin?x=1", "/admin;a=1", "/x?/admin", "/admin%00", "/admin/%2e%2e/x",
         "/admin\\x", "/admin%5cx", "/open", "/a/b/c", "/a/b", "/adminx")


def paths():
    made = []
    rules = {"exact": path(exact="/admin"), "prefix": path(prefix="/admin/"), "suffix": path(suffix="x"), "regex": path(safe_regex={"regex": "/admin(/.*)?"}), "nocase": path(exact="/admin", ignore_case=True),
             "not": {"not_rule": path(prefix="/admin")}, "contains": path(contains="min"), "header-path": header(":path", string_match={"exact": "/admin"}), "template": template("/a/*/{rest=**}"),
             "template-one": template("/admin/{x}")}
    both = {f"{kind}-{action.lower()}": allow(rule, action=action) for kind, rule in rules.items() for action in ("ALLOW", "DENY")}
    made.append(packed("paths", both, [(text, {"path": text}) for text in PATHS]))
    connect = rbac("connect", allow(rules["regex"], action="DENY"))
    connect.http2("h2 connect", pseudo=[(":method", "CONNECT"), (":authority", "host:80")])
    made.append(connect)
    for name, fields in {"normalised": {"normalize_path": True, "merge_slashes": True}, "unescaped": {"normalize_path": True, "path_with_escaped_slashes_action": "UNESCAPE_AND_FORWARD"},
                         "reject": {"normalize_path": True, "path_with_escaped_slashes_action": "REJECT_REQUEST"}}.items():
        setup = rbac(f"path-{name}", allow(path(prefix="/admin"), action="DENY"), hcm=fields)
        for text in PATHS:
            setup.get(text)
        made.append(setup)
    texts = (*PATHS, "/admin;x/y", "/admin;x?y", "/admin/;x", "/admin/y;x", "/a;b/../admin", "/admin;?x", "/admin;#f")
    made.append(packed("path-parameters", {kind: allow(rules[kind], action="DENY") for kind in ("exact", "prefix", "template-one", "header-path")}, [(text, {"path": text}) for text in texts],
                       table={"ignore_path_parameters_in_path_matching": True}))
    return made


def headers():
    made = []
    tests = {"exact": {"string_match": {"exact": "admin"}}, "prefix": {"string_match": {"prefix": "ad"}}, "suffix": {"string_match": {"suffix": "min"}}, "contains": {"string_match": {"contains": "dmi"}},
             "regex": {"string_match": {"safe_regex": {"regex": "a.*n"}}}, "present": {"present_match": True}, "absent": {"present_match": False}, "range": {"range_match": {"start": 1, "end": 10}},
             "inverted": {"string_match": {"exact": "admin"}, "invert_match": True}, "missing-empty": {"string_match": {"exact": ""}, "treat_missing_header_as_empty": True},
             "inverted-missing-empty": {"string_match": {"exact": "admin"}, "invert_match": True, "treat_missing_header_as_empty": True}, "nocase": {"string_match": {"exact": "admin", "ignore_case": True}}}
    values = {"none": [], "admin": ["admin"], "user": ["user"], "both": ["user", "admin"], "swapped": ["admin", "user"], "joined": ["user,admin"], "spaced": ["admin, user"], "empty": [""], "case": ["ADMIN"],
              "number": ["5"], "numbers": ["50", "5"], "twice": ["admin", "admin"], "empty first": ["", "admin"]}
    rules = {f"{kind}-{form}-{action.lower()}": allow(rule, action=action) for kind, test in tests.items() for form, rule in (("plain", header("x-role", **test)), ("not", {"not_rule": header("x-role", **test)}))
             for action in ("ALLOW", "DENY")}
    made.append(packed("headers", rules, [(name, {"headers": [("x-role", value) for value in sent]}) for name, sent in values.items()]))
    inline = rbac("header-inline", allow(header("accept", string_match={"exact": "a"}), header("authorization", string_match={"exact": "Bearer x"}), header("cookie", string_match={"exact": "a=1"}),
                                         header(":authority", string_match={"exact": "host"}), action="DENY"))
    for name in ("accept", "authorization", "cookie"):
        for sent in (["a"], ["a", "b"], ["b", "a"], ["Bearer x"], ["Bearer x", "Bearer y"], ["a=1"], ["b=2", "a=1"]):
            # Envoy passes these on joined, Nuncio as they came.
            inline.get(f"{name} {sent}", "/", [(name, value) for value in sent], host="other", ignore=("upstream",))
    inline.get("host", "/")
    inline.get("host case", "/", host="HOST")
    made.append(inline)
    methods = rbac("header-method", {"action": "DENY", "policies": {"p": {"permissions": [header(":method", string_match={"exact": "DELETE"})], "principals": ANY}}})
    for method in ("GET", "DELETE", "delete", "POST"):
        methods.get(method, "/", method=method)
    methods.get("override", "/", [("x-http-method-override", "DELETE")], method="POST")
    made.append(methods)
    return made


def sets():
    """and, or, not, and what empty policies and rules mean."""
    put, no = header(":method", string_match={"exact": "PUT"}), path(exact="/no")
    trees = {"and": {"and_rules": {"rules": [put, no]}}, "or": {"or_rules": {"rules": [put, no]}}, "not": {"not_rule": {"or_rules": {"rules": [put, no]}}},
             "nested": {"and_rules": {"rules": [{"or_rules": {"rules": [put, no]}}, {"not_rule": {"and_rules": {"rules": [put, no]}}}]}}}
    rules = {f"{name}-{action.lower()}": allow(tree, action=action) for name, tree in trees.items() for action in ("ALLOW", "DENY", "LOG")}
    made = [packed("sets", rules, [(f"{method} {text}", {"path": text, "method": method}) for method in ("GET", "PUT") for text in ("/no", "/yes")])]
    for action in ("ALLOW", "DENY", "LOG"):
        made.append(rbac(f"empty-{action.lower()}", {"action": action}))
    made.append(rbac("nothing", None))
    made.append(rbac("empty-shadow", None, shadow_rules={"action": "ALLOW"}, shadow_rules_stat_prefix="dry_"))
    made.append(rbac("never", {"action": "ALLOW", "policies": {"ns[a]-policy[b]-rule[0]": {"permissions": [{"not_rule": {"any": True}}], "principals": [{"not_id": {"any": True}}]}}}))
    for setup in made[-6:]:
        setup.get("/")
        setup.get("grpc", "/", [("content-type", "application/grpc")], method="POST")
        setup.http2("h2", "/")
    order = rbac("order", {"action": "DENY", "policies": {name: {"permissions": [path(prefix=prefix)], "principals": ANY} for name, prefix in {"b": "/x", "a": "/x/y", "c": "/", "with space": "/sp", "B": "/x"}.items()}}, track_per_rule_stats=True)
    for text in ("/x", "/x/y", "/sp", "/other"):
        order.get(text)
    spaces = rbac("name-with-spaces", {"action": "DENY", "policies": {"a b\tc\nd": {"permissions": ANY, "principals": ANY}}})
    spaces.get("/")
    return [*made, order, spaces]


def addresses():
    loopback, other, ten = ({"address_prefix": address, "prefix_len": bits} for address, bits in (("127.0.0.0", 8), ("192.168.0.0", 16), ("10.0.0.0", 8)))
    made = []
    cidrs = {"loopback": loopback, "ten": ten, "one": {"address_prefix": "127.0.0.2", "prefix_len": 32}, "all": {"address_prefix": "0.0.0.0", "prefix_len": 0}, "v6": {"address_prefix": "::", "prefix_len": 0},
             "mapped": {"address_prefix": "::ffff:127.0.0.0", "prefix_len": 104}}
    rules = {f"{kind}-{name}".replace("_", "-"): by({kind: cidr}) for kind in ("source_ip", "direct_remote_ip", "remote_ip") for name, cidr in cidrs.items()}
    requests = [("bare", {}), ("second", {"source": "127.0.0.2", "ignore": ("upstream",)}), ("xff twice", {"headers": [("x-forwarded-for", "192.168.1.1"), ("x-forwarded-for", "10.1.2.3")]}),
                *((f"xff {value}", {"headers": [("x-forwarded-for", value)]}) for value in ("10.1.2.3", "10.1.2.3, 192.168.1.1", "192.168.1.1,10.1.2.3", "garbage", "10.1.2.3:80"))]
    for mode, hcm in {"plain": {}, "trusted": {"use_remote_address": True, "xff_num_trusted_hops": 1}, "xff": {"xff_num_trusted_hops": 1}}.items():
        made.append(packed(f"addresses-{mode}", rules, requests, hcm=hcm))
    made.append(packed("destinations", {name: allow(rule) for name, rule in {"ip": {"destination_ip": loopback}, "other-ip": {"destination_ip": other}, "port": {"destination_port": 1}, "any-port": {"destination_port_range": {"start": 1, "end": 65536}},
                       "low-port": {"destination_port_range": {"start": 0, "end": 1024}}}.items()}, [("get", {})]))
    return made


def identities():
    made = []
    names = {"any": {}, "uri": {"principal_name": {"exact": "spiffe://test/ns/a/sa/b"}}, "dns": {"principal_name": {"exact": "client.test"}}, "subject": {"principal_name": {"contains": "CN=client"}},
             "other": {"principal_name": {"exact": "spiffe://other"}}, "prefix": {"principal_name": {"prefix": "spiffe://"}}, "suffix": {"principal_name": {"suffix": "/sa/b"}}, "empty": {"principal_name": {"exact": ""}},
             "regex": {"principal_name": {"safe_regex": {"regex": ".*/ns/a/.*"}}}}
    principals = {name: {"authenticated": fields} for name, fields in names.items()}

    def mtls(**fields):
        return {"custom": extension("envoy.rbac.principals.mtls_authenticated", "rbac.principals.mtls_authenticated.v3.Config", **fields)}
    principals["mtls-any"] = mtls(any_validated_client_certificate=True)
    for kind, text in (("URI", "spiffe://test/ns/a/sa/b"), ("DNS", "client.test"), ("DNS", "CLIENT.test"), ("DNS", "x.client.test"), ("EMAIL", "a@b"), ("IP_ADDRESS", "127.0.0.1")):
        principals[f"mtls-{kind}-{text}".replace("/", "").replace(":", "").lower() + ("-upper" if "CLIENT" in text else "")] = mtls(san_matcher={"san_type": kind, "matcher": {"exact": text}})
    rules = {f"{name}-{form}": by(value) for name, principal in principals.items() for form, value in (("is", principal), ("not", {"not_id": principal}))}
    for kind, authority in (("checked", "ca.pem"), ("unchecked", None)):
        made.append(packed(f"identities-{kind}", rules, [(cert, {"tls": {"sni": "host.test", **({"cert": cert} if cert != "none" else {})}}) for cert in ("none", "client")], chain=socket(authority)))
    made.append(packed("identities-plaintext", rules, [("get", {})]))
    names = {name: allow({"requested_server_name": matcher}) for name, matcher in {"exact": {"exact": "host.test"}, "suffix": {"suffix": ".test"}, "empty": {"exact": ""}}.items()}
    made.append(packed("sni", names, [(str(sni), {"tls": {"sni": sni}}) for sni in ("host.test", "HOST.test", "other", None)], chain=socket(),
                       listener={"listener_filters": [extension("envoy.filters.listener.tls_inspector", "filters.listener.tls_inspector.v3.TlsInspector")]}))
    made.append(packed("sni-plaintext", names, [("get", {})]))
    return made


def metadata():
    made = []
    before = [http("set_metadata", "Config", metadata=[{"metadata_namespace": "ns", "value": {"a": {"b": "v"}, "list": ["x", "y"], "n": 3}}])]

    def matcher(*keys, value, **fields):
        return {"filter": "ns", "path": [{"key": key} for key in keys], "value": value, **fields}
    tests = {"string": matcher("a", "b", value={"string_match": {"exact": "v"}}), "wrong": matcher("a", "b", value={"string_match": {"exact": "w"}}), "list": matcher("list", value={"list_match": {"one_of": {"string_match": {"exact": "y"}}}}),
             "number": matcher("n", value={"double_match": {"exact": 3}}), "missing": matcher("none", value={"present_match": True}), "missing-absent": matcher("none", value={"present_match": False}),
             "inverted": matcher("a", "b", value={"string_match": {"exact": "v"}}, invert=True), "inverted-missing": matcher("none", value={"string_match": {"exact": "v"}}, invert=True)}
    route_metadata = [route("/", to(), metadata={"filter_metadata": {"ns": {"a": {"b": "v"}}}})]
    rules = {f"{name}-{source}": allow(rule) for name, test in tests.items() for source, rule in {
        "old": {"metadata": test}, "dynamic": {"sourced_metadata": {"metadata_matcher": test}}, "route": {"sourced_metadata": {"metadata_matcher": test, "metadata_source": "ROUTE"}}}.items()}
    made.append(packed("metadata", rules, [("get", {})], before=before, routes=route_metadata))
    state = http("set_filter_state", "Config", on_request_headers=[{"object_key": "my.key", "factory_key": "envoy.string", "format_string": {"text_format_source": {"inline_string": "%REQ(x-state)%"}}}])
    rules = {name: by({"filter_state": {"key": "my.key", **fields}}) for name, fields in {
        "string": {"string_match": {"exact": "v"}}, "address": {"address_match": {"ranges": [{"address_prefix": "10.0.0.0", "prefix_len": 8}]}}}.items()}
    made.append(packed("filter-state", rules, [(value, {"headers": [("x-state", value)]}) for value in ("v", "w", "10.1.1.1")], before=[state]))
    return made


def select(*names):
    """request.a.b as a parsed expression."""
    expr = {"ident_expr": {"name": names[0]}}
    for name in names[1:]:
        expr = {"select_expr": {"operand": expr, "field": name}}
    return expr


def call(function, *arguments, target=None):
    return {"call_expr": {"function": function, "args": list(arguments), **({"target": target} if target else {})}}


def constant(value):
    kind = "bool_value" if isinstance(value, bool) else "int64_value" if isinstance(value, int) else "string_value"
    return {"const_expr": {kind: value}}


def conditions():
    field = call("_[_]", select("request", "headers"), constant("x-team"))
    has = {"select_expr": {"operand": select("request", "headers"), "field": "x-team", "test_only": True}}
    exprs = {"true": constant(True), "false": constant(False), "number": constant(1), "header": call("_==_", field, constant("blue")), "not-header": call("!_", call("_==_", field, constant("blue"))), "has": has,
             "path": call("startsWith", constant("/a"), target=select("request", "path")), "url-path": call("_==_", select("request", "url_path"), constant("/a")),
             "or": call("_||_", call("_==_", field, constant("blue")), call("_==_", select("request", "method"), constant("PUT"))),
             "and": call("_&&_", call("_==_", field, constant("blue")), call("_==_", select("request", "method"), constant("PUT"))), "in": call("@in", field, {"list_expr": {"elements": [constant("blue"), constant("red")]}}),
             "host": call("startsWith", constant("host"), target=select("request", "host")), "matches": call("matches", constant("^/a.*"), target=select("request", "path")), "unknown": select("nothing"), "unknown-field": select("request", "nothing"),
             "conditional": call("_?_:_", has, call("_==_", field, constant("blue")), constant(True)), "source": call("startsWith", constant("127."), target=select("source", "address")), "tls": select("connection", "mtls"),
             "size": call("_>_", call("size", select("request", "path")), constant(2))}
    rules = {f"{name}-{action.lower()}": allow({"any": True}, action=action, condition=expr) for name, expr in exprs.items() for action in ("ALLOW", "DENY")}
    return [packed("conditions", rules, [(f"{team} {method}", {"path": text, "method": method, "headers": [("x-team", team)] if team else []})
                                         for team in (None, "blue", "red") for method, text in (("GET", "/a"), ("PUT", "/b?x"))])]


def leaf(name, action):
    return {"action": {"name": "action", "typed_config": typed("envoy.config.rbac.v3.Action", name=name, action=action)}}


def source(kind, **fields):
    return extension("input", kind, **fields)


def trees():
    by_path = source("envoy.type.matcher.v3.HttpRequestHeaderMatchInput", header_name=":path")
    tree = {"matcher_tree": {"input": by_path, "exact_match_map": {"map": {"/allow": leaf("yes", "ALLOW"), "/deny": leaf("no one", "DENY"), "/log": leaf("seen", "LOG")}}}}
    plain = {"matcher_tree": {"input": by_path, "exact_match_map": {"map": {"/allow": leaf("yes", "ALLOW"), "/deny": leaf("no", "DENY")}}}, "on_no_match": leaf("rest", "ALLOW")}
    ip = {"matcher_list": {"matchers": [{"predicate": {"single_predicate": {"input": source("matching.common_inputs.network.v3.SourceIPInput"), "value_match": {"prefix": "127."}}}, "on_match": leaf("local", "ALLOW")}]}}
    made = []
    for name, matcher in {"tree": tree, "plain": plain, "ip": ip}.items():
        for fields in ({"matcher": matcher}, {"shadow_matcher": matcher}, {"matcher": plain, "shadow_matcher": matcher, "shadow_rules_stat_prefix": "dry"}):
            setup = rbac("tree-" + name + "-" + "-".join(fields), None, track_per_rule_stats=True, **fields)
            for text in ("/allow", "/deny", "/log", "/other"):
                setup.get(text)
            made.append(setup)
    return made


def shadows():
    shadow = allow(path(prefix="/x"), action="DENY")
    made = []
    for name, fields in {"plain": {}, "prefix": {"shadow_rules_stat_prefix": "istio_dry_run_allow_"}, "dotted": {"shadow_rules_stat_prefix": "dry.", "rules_stat_prefix": "real."}, "rules-prefix": {"rules_stat_prefix": "real_"},
                         "tracked": {"track_per_rule_stats": True}, "tracked-prefix": {"track_per_rule_stats": True, "shadow_rules_stat_prefix": "dry_", "rules_stat_prefix": "real_"}}.items():
        for kind in ("both", "shadow"):
            for action in ("ALLOW", "DENY", "LOG"):
                setup = rbac(f"shadow-{name}-{kind}-{action.lower()}", allow(path(prefix="/y"), action="DENY") if kind == "both" else None, shadow_rules={**shadow, "action": action}, **fields)
                for text in ("/x", "/y", "/"):
                    setup.get(text)
                made.append(setup)
    twice = Setup("two-filters", filters=[http("rbac", "RBAC", rules=allow(path(prefix="/a"), action="LOG")), http("rbac", "RBAC", rules=allow(path(prefix="/d"), action="DENY")), http("rbac", "RBAC", rules=allow(path(prefix="/a"), path(prefix="/d")))],
                  stats=["rbac"], log=LOG + METADATA)
    for text in ("/a", "/d", "/x"):
        twice.get(text)
    return [*made, twice]


def routes():
    def override(**fields):
        return per_route("rbac", "RBACPerRoute", **fields)
    deny = allow(path(prefix="/"), action="DENY")
    setup = rbac("routes", deny, track_per_rule_stats=True, rules_stat_prefix="main_", routes=[
        route("/off", to(), **override()), route("/empty", to(), **override(rbac={})), route("/allow", to(), **override(rbac={"rules": allow({"any": True})})), route("/shadow", to(), **override(rbac={"shadow_rules": deny})),
        route("/prefix", to(), **override(rbac={"rules": deny, "rules_stat_prefix": "own_", "shadow_rules": deny, "shadow_rules_stat_prefix": "dry_", "track_per_rule_stats": True})),
        route("/tracked", to(), **override(rbac={"rules": deny, "track_per_rule_stats": True})),
        route("/disabled", to(), typed_per_filter_config={"envoy.filters.http.rbac": {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": True}}), route("/local", direct_response={"status": 200}),
        route("/redirect", redirect={"path_redirect": "/x"}), route("/", to())])
    for text in ("/off", "/empty", "/allow", "/shadow", "/prefix", "/tracked", "/disabled", "/local", "/redirect", "/"):
        setup.get(text)
    none = rbac("no-route", deny, vhosts=[{"name": "v", "domains": ["known"], "routes": [route("/")]}])
    none.get("unknown host", "/")
    none.get("known host", "/", host="known")
    return [setup, none]


def many():
    """As many policies as a large mesh has: those found by index decide as if each was tried."""
    policies = {f"ns[{n % 7}]-policy[{n}]": {"permissions": [{"and_rules": {"rules": [{"or_rules": {"rules": [path(exact=f"/p{n}"), path(exact=f"/q{n % 10}")]}}]}}], "principals": [{"and_ids": {"ids": [{"any": True}]}}]} for n in range(0, 300, 3)}
    policies |= {f"ns[x]-policy[{n}]": {"permissions": [path(prefix=f"/p{n}")], "principals": [{"direct_remote_ip": {"address_prefix": f"127.0.0.{n % 3}", "prefix_len": 32}}]} for n in range(1, 300, 30)}
    made = []
    for action in ("ALLOW", "DENY"):
        setup = rbac(f"many-{action.lower()}", {"action": action, "policies": policies})
        for text in ("/p0", "/p3", "/p3/x", "/p299", "/q1", "/q9", "/p31", "/p61/x", "/none", "/P3", "/p3?q", "/p30"):
            setup.get(text)
        made.append(setup)
    return made


def network(name, config, manager=False, **fields):
    filters = [extension("envoy.filters.network.rbac", "filters.network.rbac.v3.RBAC", stat_prefix="tcp.", **config)]
    details = {"name": "envoy.access_loggers.file", "typed_config": typed("access_loggers.file.v3.FileAccessLog", path="@log@", log_format={"text_format_source": {
        "inline_string": "@@%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%@@ term=[%CONNECTION_TERMINATION_DETAILS%] flags=[%RESPONSE_FLAGS%] rbac=[%DYNAMIC_METADATA(envoy.filters.network.rbac)%]\n"}})}
    if not manager:
        filters.append(extension("envoy.filters.network.tcp_proxy", "filters.network.tcp_proxy.v3.TcpProxy", stat_prefix="t", cluster="a", access_log=[details]))
    return Setup(name, network_filters=filters, manager=manager, stats=["rbac"], listener={"access_log": [details]} if manager else {}, **fields)


def connections():
    made = []
    loopback = {"direct_remote_ip": {"address_prefix": "127.0.0.1", "prefix_len": 32}}
    for manager in (False, True):
        kind = "http" if manager else "tcp"
        for name, config in {"allow": {"rules": by(loopback)}, "deny": {"rules": by(loopback, action="DENY")}, "log": {"rules": by(loopback, action="LOG")}, "empty": {"rules": {"action": "ALLOW"}}, "nothing": {},
                             "shadow": {"shadow_rules": by(loopback, action="DENY"), "shadow_rules_stat_prefix": "dry_"}, "both": {"rules": by(loopback), "shadow_rules": by(loopback, action="DENY")},
                             "port": {"rules": allow({"destination_port_range": {"start": 0, "end": 1000}})}, "path": {"rules": allow(path(prefix="/"), action="DENY")}, "path-allow": {"rules": allow(path(prefix="/"))},
                             "delay": {"rules": {"action": "ALLOW"}, "delay_deny": "0.2s"},
                             "tree": {"matcher": {"matcher_tree": {"input": source("matching.common_inputs.network.v3.SourceIPInput"), "exact_match_map": {"map": {"127.0.0.1": leaf("here", "ALLOW"), "127.0.0.2": leaf("there", "DENY")}}}}}}.items():
            setup = network(f"{kind}-{name}", config, manager)
            setup.get("first", "/", wait=1.0)
            setup.get("second source", "/", source="127.0.0.2", wait=1.0)
            setup.raw("silent", methods=[], wait=0.1)
            made.append(setup)
        secure = network(f"{kind}-identity", {"rules": by({"authenticated": {"principal_name": {"exact": "spiffe://test/ns/a/sa/b"}}})}, manager, chain=socket("ca.pem"))
        for cert in (None, "client"):
            secure.get(str(cert), "/", tls={"sni": "host.test", **({"cert": cert} if cert else {})}, wait=1.0)
        made.append(secure)
    always = network("tcp-continuous", {"rules": by(loopback), "enforcement_type": "CONTINUOUS"})
    always.raw("pieces", request("/one"), 0.2, request("/two"), methods=["GET", "GET"])
    made.append(always)
    return made


def setups():
    tls.prepare()
    return [*paths(), *headers(), *sets(), *addresses(), *identities(), *metadata(), *conditions(), *trees(), *shadows(), *routes(), *many(), *connections()]
