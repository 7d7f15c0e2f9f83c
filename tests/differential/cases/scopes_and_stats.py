"""Which stats a request is counted in, and which route table it gets by scope, host discovery or cluster specifier."""
import json

from cases.tls import socket as tls_socket
from harness.config import cluster, endpoint, extension, route, router, say, to, typed
from harness.setup import Setup, reply
from harness.validate import Validation

OK = reply(200, [], "fine")
BAD = reply(503, [], "bad", reason="x")
BACK_OFF = {"retry_back_off": {"base_interval": "0.001s", "max_interval": "0.002s"}}


def named(*matchers):
    return [{"name": name, "headers": [{"name": header, **match}]} for name, header, match in matchers]


def groups():
    clusters = named(("put", ":method", {"string_match": {"exact": "PUT"}}), ("users", ":path", {"string_match": {"prefix": "/users"}}),
                     ("beta", "x-beta", {"present_match": True}))
    setup = Setup("groups", clusters=[cluster("a"), cluster("refused")], upstreams={"refused": "refused"}, vhosts=[
        {"name": "v", "domains": ["host"], "virtual_clusters": clusters, "routes": [
            route("/retry", to("a", retry_policy={"retry_on": "5xx", "num_retries": 1, **BACK_OFF}), stat_prefix="again"),
            route("/slow", to("a", timeout="0.2s"), stat_prefix="slow"), route("/refused", to("refused"), stat_prefix="gone"),
            route("/direct", direct_response=say("hello"), stat_prefix="direct"), route("/none", to("nowhere"), stat_prefix="none"),
            route("/rewritten", to("a", prefix_rewrite="/users/x")), route("/")]},
        {"name": "plain.v", "domains": ["*"], "routes": [route("/", stat_prefix="only.route")]}],
        stats=[r"^vhost\.", "^cluster.a.(external|internal|canary|upstream_rq_[0-9])"], bootstrap={})
    setup.route_config = {"name": "table", "validate_clusters": False, "virtual_hosts": setup.vhosts}
    setup.get("put", "/users", method="PUT", body=b"x")
    setup.get("users", "/users/1?x=1")
    setup.get("beta", "/", [("x-beta", "1")])
    setup.get("other", "/")
    setup.get("rewritten", "/rewritten")
    setup.get("404 of upstream", "/users/2", upstream=[reply(404, [], "no", reason="x")])
    setup.get("retried", "/retry", upstream=[BAD, OK])
    setup.get("retried in vain", "/retry", upstream=[BAD, BAD])
    setup.get("post retried", "/retry", [("x-beta", "1")], method="POST", body=b"x", upstream=[BAD, OK])
    setup.get("slow", "/slow", upstream=[1.0, OK])
    setup.get("refused", "/refused")
    setup.get("direct", "/direct")
    setup.get("no cluster", "/none")
    setup.get("plain", "/", host="else")
    setup.get("canary by header", "/users/3", upstream=[reply(200, [("x-envoy-upstream-canary", "true")], "tweet")])
    setup.get("canary by wrong header", "/users/3", upstream=[reply(200, [("x-envoy-upstream-canary", "1")], "tweet")])
    off = Setup("groups-off", router={"dynamic_stats": False}, vhosts=[
        {"name": "v", "domains": ["*"], "virtual_clusters": clusters, "routes": [route("/", stat_prefix="r")]}],
        stats=[r"^vhost\.", "^cluster.a.(external|upstream_rq_[0-9])"])
    off.get("beta", "/", [("x-beta", "1")])
    off.get("other", "/")
    return [setup, off]


def zones():
    def locality(zone, name):
        return {"locality": {"region": "r", "zone": zone}, "lb_endpoints": [endpoint(name)]}
    made = []
    for name, zone in {"same": "z", "other": "y.1", "none": ""}.items():
        setup = Setup(f"zone-{name}", clusters=[cluster("a", localities=[locality(zone, "a")])], stats=[r"^cluster\.a\.zone"])
        setup.get("one", "/")
        setup.get("error", "/", upstream=[BAD])
        made.append(setup)
    return made


def tracing():
    def fraction(percent):
        return {"numerator": percent, "denominator": "HUNDRED"}
    shown = {"status": 200, "body": {"inline_string": "%REQ(X-REQUEST-ID):15% %TRACE_ID%|"}, "body_format": {"text_format_source": {
        "inline_string": "%LOCAL_REPLY_BODY% %REQ(X-REQUEST-ID):15%"}}}
    ids = {"low": "00000001-0000-4000-8000-000000000000", "high": "ffffffff-0000-4000-8000-000000000000", "sampled": "00000001-0000-9000-8000-000000000000",
           "forced": "00000001-0000-a000-8000-000000000000", "short": "1234", "no hex": "zzzzzzzz-0000-4000-8000-000000000000"}
    made = []
    for name, hcm in {"all": {}, "none": {"random_sampling": {"value": 0}}, "no overall": {"overall_sampling": {"value": 0}},
                      "no client": {"client_sampling": {"value": 0}, "random_sampling": {"value": 0}}}.items():
        setup = Setup(f"tracing-{name}", hcm={"tracing": hcm, "always_set_request_id_in_response": True, "preserve_external_request_id": True}, routes=[
            route("/all", direct_response=shown, tracing={"random_sampling": fraction(100)}),
            route("/none", direct_response=shown, tracing={"random_sampling": fraction(0), "client_sampling": fraction(0)}),
            route("/never", direct_response=shown, tracing={"overall_sampling": fraction(0)}),
            route("/default", direct_response=shown, tracing={}), route("/", direct_response=shown)])
        for path in ("/", "/all", "/none", "/never", "/default"):
            for kind, value in ids.items():
                setup.get(f"{path} {kind}", path, [("x-request-id", value)])
            setup.get(f"{path} client", path, [("x-request-id", ids["high"]), ("x-client-trace-id", "1")])
            setup.get(f"{path} force", path, [("x-request-id", ids["high"]), ("x-envoy-force-trace", "1")])
        made.append(setup)
    for name, fields in {"unused": {"use_request_id_for_trace_sampling": False}, "unpacked": {"pack_trace_reason": False}}.items():
        setup = Setup(f"tracing-{name}", routes=[route("/", direct_response=shown)], hcm={"tracing": {}, "request_id_extension": {"typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig", **fields}}})
        for kind, value in ids.items():
            setup.get(kind, "/", [("x-request-id", value)])
        made.append(setup)
    return made


def internal_only():
    made = []
    for name, hcm in {"edge": {"use_remote_address": True}, "hop": {}, "internal": {"use_remote_address": True, "internal_address_config": {
            "cidr_ranges": [{"address_prefix": "127.0.0.0", "prefix_len": 8}]}}}.items():
        setup = Setup(f"internal-only-{name}", hcm=hcm, route_config={"name": "t", "internal_only_headers": ["x-secret", "X-Route"], "virtual_hosts": [
            {"name": "v", "domains": ["*"], "routes": [route({"prefix": "/", "headers": [{"name": "x-route", "present_match": True}]}, direct_response=say("routed")), route("/")]}]})
        setup.get("plain", "/", [("x-secret", "1"), ("x-other", "1")])
        setup.get("twice", "/", [("x-secret", "1"), ("X-Secret", "2")])
        setup.get("route", "/", [("x-route", "1")])
        setup.get("forwarded", "/", [("x-route", "1"), ("x-secret", "1"), ("x-forwarded-for", "10.0.0.1")])
        made.append(setup)
    return made


def table(name, *routes, **fields):
    return {"name": name, "virtual_hosts": [{"name": f"v-{name}", "domains": ["*"], "routes": list(routes) or [route("/", direct_response=say(name))]}], **fields}


def scope(name, *keys, **fields):
    if "route_configuration_name" not in fields:
        fields.setdefault("route_configuration", table(name))
    return {"name": name, "key": {"fragments": [{"string_key": key} for key in keys]}, **fields}


def extractor(name, **fields):
    return {"header_value_extractor": {"name": name, **fields}}


def scoped(name, fragments, scopes, **fields):
    hcm = {"route_config": None, "scoped_routes": {"name": "scopes", "scope_key_builder": {"fragments": fragments}, **scopes}}
    files = {"rds.yaml": "{}", **fields.pop("files", {})}
    return Setup(name, hcm={**hcm, **fields.pop("hcm", {})}, files=files, **fields)


def inline(*scopes):
    return {"scoped_route_configurations_list": {"scoped_route_configurations": list(scopes)}, "rds_config_source": {"path_config_source": {"path": "@dir@/rds.yaml"}}}


def scopes():
    made = []
    element = scoped("scope-element", [extractor("x-scope", element_separator=";", element={"separator": "=", "key": "v"})], inline(
        scope("one", "1"), scope("two", "2"), scope("empty", ""), scope("equal", "a=b")))
    for value in ["v=1", "v=2", "v=", "v", "v=a=b", "a=1;v=2", "v=3;v=1", "v=1;v=2", " v=1", "V=1", "", ";v=1", "v=1;", "x=1"]:
        element.get(f"<{value}>", "/", [("x-scope", value)])
    element.get("none")
    element.get("two headers", "/", [("x-scope", "a=1"), ("x-scope", "v=1")])
    element.get("two headers, first", "/", [("x-scope", "v=2"), ("x-scope", "v=1")])
    made.append(element)
    index = scoped("scope-index", [extractor("x-scope", element_separator=",", index=1), extractor(":authority", index=0)], inline(
        scope("one", "1", "host"), scope("other", "1", "other"), scope("blank", " 2", "host"), scope("empty", "", "host")))
    for value in ["a,1", "a,1,2", "1", "a, 2", "a,", "a,2", ""]:
        index.get(f"<{value}>", "/", [("x-scope", value)])
    index.get("other", "/", [("x-scope", "a,1")], host="other")
    made.append(index)
    # Internal headers go by the scope's table; a filter or a rewrite may not move a request to another scope's table by accident.
    fields = scoped("scope-fields", [extractor("x-scope", index=0)], inline(
        scope("one", "1", route_configuration=table("one", route("/gone", to("nowhere")), route("/"), internal_only_headers=["x-secret"], validate_clusters=False)),
        scope("two", "2", route_configuration=table("two", route("/a", redirect={"path_redirect": "/b"})))))
    for value in "123":
        for path in ("/", "/gone", "/a"):
            fields.get(f"{value} {path}", path, [("x-scope", value), ("x-secret", "1")])
    made.append(fields)
    by_file = scoped("scope-files", [extractor("x-scope", index=0)], {
        "scoped_rds": {"scoped_rds_config_source": {"path_config_source": {"path": "@dir@/srds.yaml"}}}, "rds_config_source": {"path_config_source": {"path": "@dir@/rds.yaml"}}},
        files={"rds.yaml": resources("RouteConfiguration", table("t1")),
               "srds.yaml": resources("ScopedRouteConfiguration", scope("one", "1", route_configuration_name="t1"), scope("two", "2", route_configuration_name="t1"),
                                      scope("inline", "3"))},
        stats=[r"^http.test.scoped_rds.*(update_success|scopes)$", r"^http.test.rds.*update_success$"])
    for value in "12345":
        by_file.get(value, "/", [("x-scope", value)])
    made.append(by_file)
    on_demand = scoped("scope-on-demand", [extractor("x-scope", index=0)], {
        "scoped_rds": {"scoped_rds_config_source": {"path_config_source": {"path": "@dir@/srds.yaml"}}}, "rds_config_source": {"path_config_source": {"path": "@dir@/rds.yaml"}}},
        filters=[extension("envoy.filters.http.on_demand", "filters.http.on_demand.v3.OnDemand")], stats=[r"^http.test.scoped_rds.*(update_success|scopes)$"],
        files={"rds.yaml": resources("RouteConfiguration", table("t1")),
               "srds.yaml": resources("ScopedRouteConfiguration", scope("one", "1"), scope("late", "2", route_configuration_name="t1", on_demand=True))})
    for value in "1223":
        on_demand.get(f"{value} {len(on_demand.cases)}", "/", [("x-scope", value)])
    made.append(on_demand)
    asleep = scoped("scope-not-demanded", [extractor("x-scope", index=0)], {
        "scoped_rds": {"scoped_rds_config_source": {"path_config_source": {"path": "@dir@/srds.yaml"}}}, "rds_config_source": {"path_config_source": {"path": "@dir@/rds.yaml"}}},
        files={"rds.yaml": resources("RouteConfiguration", table("t1")),
               "srds.yaml": resources("ScopedRouteConfiguration", scope("one", "1"), scope("late", "2", route_configuration_name="t1", on_demand=True))})
    for value in "12":
        asleep.get(value, "/", [("x-scope", value)])
    made.append(asleep)
    return made


def proxy_status():
    made = []
    routes = [route("/up"), route("/slow", to("a", timeout="0.2s")), route("/refused", to("refused")), route("/none", to("nowhere")), route("/say", direct_response=say("x", 503)),
              route("/retry", to("refused", retry_policy={"retry_on": "5xx", "num_retries": 1, **BACK_OFF})), route("/empty", to("empty")),
              route("/fault", to("a"), typed_per_filter_config={"envoy.filters.http.fault": typed("filters.http.fault.v3.HTTPFault", abort={"http_status": 418, "percentage": {"numerator": 100}})})]
    for name, config in {"default": {}, "bare": {"remove_details": True}, "literal": {"literal_proxy_name": "my proxy", "remove_response_flags": True}, "node": {"use_node_id": True, "remove_connection_termination_details": True},
                         "status": {"set_recommended_response_code": True}, "no id": {"use_node_id": False}}.items():
        setup = Setup(f"proxy-status-{name}", hcm={"proxy_status_config": config, "server_name": "edge", "http_protocol_options": {"accept_http_10": False}},
                      filters=[extension("envoy.filters.http.fault", "filters.http.fault.v3.HTTPFault")], clusters=[cluster("a"), cluster("refused"), cluster("empty", localities=[])], upstreams={"refused": "refused"},
                      route_config={"name": "t", "validate_clusters": False, "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": routes}]}, stats=["^http.test.downstream_rq_[0-9]xx"])
        for path in ("/up", "/refused", "/none", "/say", "/retry", "/empty", "/fault", "/nothing"):
            setup.get(path)
        setup.get("timeout", "/slow", upstream=[1.0, OK])
        setup.get("reset", "/up", upstream=["reset"])
        setup.get("close", "/up", upstream=["close"])
        setup.get("garbage", "/up", upstream=[b"nonsense\r\n\r\n", "close"])
        setup.get("appended", "/up", upstream=[reply(503, [("proxy-status", "origin; error=dns_error")], "bad", reason="x")])
        setup.get("bad path", "/up#x")
        setup.get("post refused", "/refused", method="POST", body=b"x")
        made.append(setup)
    return made


def client_certs():
    def action(mode, **details):
        return {"on_match": {"action": {"name": "a", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.ForwardClientCertConfig",
                                                                      "forward_client_cert_details": mode, "set_current_client_cert_details": details}}}}

    def header(value):
        return {"predicate": {"single_predicate": {"input": extension("x", "envoy.type.matcher.v3.HttpRequestHeaderMatchInput", header_name="x-mode"), "value_match": {"exact": value}}}}
    made = []
    every = {"subject": True, "cert": True, "chain": True, "dns": True, "uri": True, "issuer": True}
    chain = tls_socket("ca.pem")
    rows = {"json-set": {"forward_client_cert_details": "SANITIZE_SET", "set_current_client_cert_details": {**every, "format": "JSON"}},
            "json-append": {"forward_client_cert_details": "APPEND_FORWARD", "set_current_client_cert_details": {"uri": True, "format": "JSON"}},
            "json-nothing": {"forward_client_cert_details": "APPEND_FORWARD", "set_current_client_cert_details": {"format": "JSON"}},
            "matcher": {"forward_client_cert_details": "FORWARD_ONLY", "forward_client_cert_matcher": {"matcher_list": {"matchers": [
                {**header("set"), **action("SANITIZE_SET", uri=True)}, {**header("append"), **action("APPEND_FORWARD", subject=True)}, {**header("sanitize"), **action("SANITIZE")},
                {**header("always"), **action("ALWAYS_FORWARD_ONLY")}]}}}}
    for name, hcm in rows.items():
        setup = Setup(f"client-cert-{name}", chain=chain, hcm=hcm)
        for case, options in (("none", {"sni": "host.test"}), ("client", {"sni": "host.test", "cert": "client"})):
            for mode in ("", "set", "append", "sanitize", "always") if name == "matcher" else ("",):
                setup.get(f"{case} {mode} bare", "/", [("x-mode", mode)], tls=options)
                setup.get(f"{case} {mode} given", "/", [("x-mode", mode), ("x-forwarded-client-cert", "By=spiffe://x;Hash=ab")], tls=options)
                setup.get(f"{case} {mode} json given", "/", [("x-mode", mode), ("x-forwarded-client-cert", '[{"hash":"ab"}]')], tls=options)
        made.append(setup)
    return made


def specifiers():
    def specifier(name, matchers, **fields):
        return {"extension": extension(name, "router.cluster_specifiers.matcher.v3.MatcherClusterSpecifier", cluster_matcher={"matcher_list": {"matchers": matchers}, **fields})}

    def chosen(name):
        return {"action": extension("c", "router.cluster_specifiers.matcher.v3.ClusterAction", cluster=name)}

    def by(value, name):
        return {"predicate": {"single_predicate": {"input": extension("x", "envoy.type.matcher.v3.HttpRequestHeaderMatchInput", header_name="x-to"), "value_match": {"exact": value}}}, "on_match": chosen(name)}
    optional = {"is_optional": True, "extension": extension("gone", "filters.http.nope.v3.Nope")}
    setup = Setup("specifiers", clusters=[cluster("a"), cluster("b")], filters=[extension("envoy.filters.http.header_mutation", "filters.http.header_mutation.v3.HeaderMutation", mutations={
        "request_mutations": [{"append": {"header": {"key": "x-to", "value": "b"}, "append_action": "OVERWRITE_IF_EXISTS"}}]})], route_config={
            "name": "t", "cluster_specifier_plugins": [specifier("one", [by("a", "a"), by("b", "b"), by("n", "nowhere")]), specifier("else", [by("a", "a")], on_no_match=chosen("b"))], "virtual_hosts": [
                {"name": "v", "domains": ["*"], "routes": [route("/one", {"cluster_specifier_plugin": "one"}), route("/else", {"cluster_specifier_plugin": "else"}),
                                                           route("/inline", {"inline_cluster_specifier_plugin": specifier("x", [by("b", "b")])})]}]})
    still = Setup("specifiers-still", clusters=setup.clusters, route_config=setup.route_config)
    for one in (setup, still):
        for path in ("/one", "/else", "/inline"):
            for value in ("a", "b", "n", "z"):
                one.get(f"{path} {value}", path, [("x-to", value)])
            one.get(f"{path} none", path)
    refused = Validation("specifiers-refused")
    for name, table_of in {"unknown name": {"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [route("/", {"cluster_specifier_plugin": "one"})]}]},
                           "twice": {"cluster_specifier_plugins": [specifier("one", [by("a", "a")]), specifier("one", [by("a", "a")])], "virtual_hosts": []},
                           "optional": {"cluster_specifier_plugins": [optional], "virtual_hosts": []},
                           "unknown type": {"cluster_specifier_plugins": [{**optional, "is_optional": False}], "virtual_hosts": []},
                           "no matcher": {"cluster_specifier_plugins": [{"extension": extension("one", "router.cluster_specifiers.matcher.v3.MatcherClusterSpecifier")}], "virtual_hosts": []},
                           "no cluster": {"cluster_specifier_plugins": [specifier("one", [by("a", "")])], "virtual_hosts": []}}.items():
        refused.offer(name, route_config={"name": "t", **table_of})
    return [setup, still, refused]


def oddities():
    """Fields that Envoy accepts and does nothing for."""
    rows = {"path options": {"path_normalization_options": {"forwarding_transformation": {"operations": [{"normalize_path_rfc_3986": {}}, {"merge_slashes": {}}]},
                                                            "http_filter_transformation": {"operations": [{"merge_slashes": {}}]}}},
            "mapped": {"represent_ipv4_remote_address_as_ipv4_mapped_ipv6": True, "use_remote_address": True, "xff_num_trusted_hops": 1},
            "resolution": {"record_route_resolution_stats": True}}
    made = []
    for name, hcm in rows.items():
        setup = Setup(f"odd-{name}", hcm=hcm, log="%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %REQ(:PATH)%", stats=["downstream_rq_route"])
        setup.get("path", "/a/../b//c")
        setup.get("forwarded", "/", [("x-forwarded-for", "1.2.3.4")])
        made.append(setup)
    table_of = Validation("odd-refused")
    table_of.offer("header validation", hcm={"typed_header_validation_config": extension("x", "http.header_validators.envoy_default.v3.HeaderValidatorConfig")})
    port = {"address": "127.0.0.1", "port_value": 0}
    for name, fields in {"plain": {}, "udp": {"protocol": "UDP"}, "resolver": {"resolver_name": "nope"}, "compat": {"address": "::1", "ipv4_compat": True}}.items():
        table_of.offer(f"admin {name}", bootstrap={"admin": {"address": {"socket_address": {**port, **fields}}}})
    six = Setup("odd-local-address", hcm={"use_remote_address": True}, args=["--local-address-ip-version", "v6"])
    six.get("/")
    six.get("forwarded", "/", [("x-forwarded-for", "1.2.3.4")])
    hosts = Setup("odd-ports", hcm={"strip_any_host_port": True}, vhosts=[{"name": "v", "domains": ["*"], "routes": [route("/", direct_response={"status": 200, "body_format": {
        "text_format_source": {"inline_string": "<%REQ(:AUTHORITY)%>"}}})]}])
    for host in ("a:80", "a:", "a:x", "a:80x", "a:-1", "[::1]:80", "[::1]", "[::1]:", "a:1:2", "a:99999", "a:4294967296"):
        hosts.get(host, "/", host=host)
    return [*made, table_of, six, hosts]


def upgrade_chains():
    def tag(value):
        return extension("envoy.filters.http.header_mutation", "filters.http.header_mutation.v3.HeaderMutation", mutations={
            "request_mutations": [{"append": {"header": {"key": "x-chain", "value": value}}}], "response_mutations": [{"append": {"header": {"key": "x-chain", "value": value}}}]})
    setup = Setup("upgrade-chains", filters=[tag("main")], hcm={"upgrade_configs": [
        {"upgrade_type": "websocket", "filters": [tag("ws"), router()]}, {"upgrade_type": "other"}, {"upgrade_type": "bare", "filters": [router()]}]})
    switch = reply(101, [("connection", "upgrade"), ("upgrade", "x")], reason="Switching Protocols", length=False)
    for kind in ("websocket", "WebSocket", "other", "bare", "none"):
        setup.get(kind, "/", [("connection", "upgrade"), ("upgrade", kind)], upstream=[switch, "close"])
        setup.get(f"{kind} refused", "/", [("connection", "upgrade"), ("upgrade", kind)], upstream=[BAD])
    setup.get("plain", "/")
    refused = Validation("upgrade-chains-refused")
    refused.offer("no router", hcm={"upgrade_configs": [{"upgrade_type": "websocket", "filters": [tag("ws")]}]})
    return [setup, refused]


def resources(kind, *messages):
    return json.dumps({"version_info": "1", "resources": [{"@type": f"type.googleapis.com/envoy.config.route.v3.{kind}", **message} for message in messages]})


def refusals():
    table_of = Validation("scopes-refused")

    def offer(name, fragments, given):
        table_of.offer(name, hcm=scoped("", fragments, given).hcm)
    good = [extractor("x", index=0)]
    offer("fine", good, inline(scope("a", "1")))
    offer("no fragments", [], inline(scope("a", "1")))
    offer("index without separator", [extractor("x", index=1)], inline(scope("a", "1")))
    offer("no extract type", [extractor("x")], inline(scope("a", "1")))
    offer("no element key", [extractor("x", element={"separator": "="})], inline(scope("a", "1")))
    offer("no header", [extractor("", index=0)], inline(scope("a", "1")))
    offer("same key", good, inline(scope("a", "1"), scope("b", "1")))
    offer("same name", good, inline(scope("a", "1"), scope("a", "2")))
    offer("no key", good, inline({"name": "a", "route_configuration": table("a")}))
    offer("no table", good, inline({"name": "a", "key": {"fragments": [{"string_key": "1"}]}}))
    offer("two tables", good, inline(scope("a", "1", route_configuration=table("a"), route_configuration_name="b")))
    offer("no scopes", good, inline())
    offer("no scope name", good, inline(scope("", "1", route_configuration=table("a"))))
    offer("no source", good, {})
    return [table_of]


def setups():
    return [*groups(), *zones(), *tracing(), *internal_only(), *scopes(), *refusals(), *proxy_status(), *client_certs(), *specifiers(), *oddities(), *upgrade_chains()]
