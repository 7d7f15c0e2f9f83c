"""The dynamic forward proxy: hosts that requests name, resolved by a small DNS server, and what clients see when that fails."""
from harness.config import V3, cluster, extension, file_log, route, to, typed
from harness.dns import DnsServer
from harness.setup import Setup, request

ZONE = {"host.test": ["127.0.0.1"], "good.test": ["127.0.0.1"], "two.test": ["127.0.0.1", "127.0.0.2"], "six.test": ["::1"], "both.test": ["::1", "127.0.0.1"], "empty.test": [], "refused.test": 5, "servfail.test": 2, "notimp.test": 4,
        "silent.test": "silent", "garbage.test": "garbage", "other.test": "other", "many.test": [f"127.0.{number // 200}.{number % 200 + 1}" for number in range(600)], **{f"n{number}.test": ["127.0.0.1"] for number in range(9)}}
SERVER = []
QUIET = ("headers*", "body*", "upstream", "fate*")


def resolver(**fields):
    if not SERVER:
        SERVER.append(DnsServer(ZONE))
    return {"name": "envoy.network.dns_resolver.cares", "typed_config": typed("network.dns_resolver.cares.v3.CaresDnsResolverConfig", resolvers=[
        {"socket_address": {"address": "127.0.0.1", "port_value": SERVER[0].port}}], dns_resolver_options={"no_default_search_domain": True}, query_timeout_seconds=1, query_tries=1, **fields)}


def cache(**fields):
    return {"name": "cache", "dns_lookup_family": "V4_ONLY", "typed_dns_resolver_config": resolver(), "dns_query_timeout": "2s", **fields}


def proxy_cluster(name="dfp", config=None, **fields):
    entry = cluster(name, lb_policy="CLUSTER_PROVIDED", cluster_type=extension("envoy.clusters.dynamic_forward_proxy", "clusters.dynamic_forward_proxy.v3.ClusterConfig", **(config or {"dns_cache_config": cache()})), **fields)
    for field in ("type", "load_assignment"):
        del entry[field]
    return entry


def http_filter(config=None, **fields):
    return extension("envoy.filters.http.dynamic_forward_proxy", "filters.http.dynamic_forward_proxy.v3.FilterConfig", **(config or {"dns_cache_config": cache()}), **fields)


def rewrite(**fields):
    return {"typed_per_filter_config": {"envoy.filters.http.dynamic_forward_proxy": typed("filters.http.dynamic_forward_proxy.v3.PerRouteConfig", **fields)}}


def ask(host, path="/", headers=(), times=1, port=True, upstream="a"):
    """A script: requests for `host` with the port of an upstream."""
    def run(context):
        seen = []
        for _ in range(times):
            authority = host + (f":{context.upstreams[upstream].port}" if port else "")
            pairs = [(name, value.replace("@port@", str(context.upstreams[upstream].port))) for name, value in headers]
            responses, _ = context.exchange(request(path, pairs, host=authority))
            seen.append([context.names.text(responses[0].line), context.names.body(responses[0].body)] if responses else "nothing")
        return seen
    return run


def at_once(*hosts):
    """Requests for names that are sent before any is answered."""
    def run(context):
        connections = [context.connect() for _ in hosts]
        for connection, host in zip(connections, hosts):
            connection.methods += ["GET"]
            connection.send(request("/", host=f"{host}:{context.upstreams['a'].port}"))
        return [context.shown(context_responses(connection))[0][0] for connection in connections]

    def context_responses(connection):
        from harness.client import parse_responses
        connection.responses(connection.methods, 5.0)
        return parse_responses(connection.received, connection.methods, connection.fate != "kept")[0]
    return run


STATS = ["^dns_cache\\.cache\\.(dns_query_attempt|dns_query_success|dns_query_failure|dns_query_timeout|host_|num_hosts|dns_rq)", "^cluster.dfp.(membership|upstream_cx_none_healthy|upstream_cx_total|upstream_rq_total)"]


def setups():
    made = []

    def one(name, scripts, config=None, filter_config=None, routes=None, stats=STATS, **fields):
        clusters = fields.pop("clusters", None) or [proxy_cluster(config=config, **fields.pop("cluster", {})), cluster("a")]
        setup = Setup(name, filters=[http_filter(filter_config or config, **fields.pop("options", {}))], clusters=clusters, routes=routes or [route("/a", to("a")), route("/", to("dfp"))], stats=stats, **fields)
        for case, script in scripts.items():
            setup.script(case, script, ignore=("upstream",))
        made.append(setup)
        return setup

    # Which words DNS failures have is the resolver's; which names fail, and how clients see it, is not.
    words = {"ignore": ("log",)}
    one("names", {"good": ask("good.test", times=2), "upper": ask("GOOD.test"), "two": ask("two.test"), "address": ask("127.0.0.1"), "v6 address": ask("[::1]"), "hosts file": ask("localhost"),
                  "no port": ask("good.test", port=False), "other cluster": ask("nx.test", "/a"), "many": ask("many.test")}, **words)
    for name in ("nx", "empty", "refused", "servfail", "notimp", "silent", "garbage", "other", "six"):
        one(f"fails-{name}", {"asked": ask(f"{name}.test", times=2)}, stats=["^dns_cache\\.cache\\.(host_|num_hosts)", "^cluster.dfp.(upstream_cx_none_healthy|upstream_cx_total|upstream_rq_total)"], **words)
    for family in ("AUTO", "V4_ONLY", "V6_ONLY", "V4_PREFERRED", "ALL"):
        config = {"dns_cache_config": cache(dns_lookup_family=family)}
        one(f"family-{family.lower()}", {"v4": ask("good.test"), "none": ask("nx.test"), "both": ask("both.test"), "six": ask("six.test"), "v4 literal": ask("127.0.0.1"), "v6 literal": ask("[::1]")}, config, stats=(), **words)
    few = {"dns_cache_config": cache(max_hosts=2)}
    one("max-hosts", {"first": ask("n0.test"), "second": ask("n1.test"), "third": ask("n2.test", times=2), "first again": ask("n0.test")}, few)
    one("pending", {"cached": ask("n0.test", times=2)}, {"dns_cache_config": cache(dns_cache_circuit_breaker={"max_pending_requests": 0})})
    one("pending-one", {"together": at_once("silent.test", "n1.test", "n2.test"), "after": ask("n1.test")}, {"dns_cache_config": cache(dns_cache_circuit_breaker={"max_pending_requests": 1})}, stats=("dns_rq_pending_overflow",), **words)
    one("preresolve", {"known": ask("n3.test")}, {"dns_cache_config": cache(preresolve_hostnames=[{"address": "n3.test", "port_value": "@port:a@"}, {"address": "n4.test", "port_value": 80}])})
    one("forget", {"fails": ask("nx.test", times=2), "refused": ask("refused.test", times=2)}, {"dns_cache_config": cache(disable_dns_refresh_on_failure=True)}, stats=("host_added", "host_removed", "num_hosts"), **words)
    one("save", {"saved": ask("good.test"), "not resolved": ask("nx.test")}, options={"save_upstream_address": True}, log="%FILTER_STATE(envoy.stream.upstream_address:PLAIN)% %RESPONSE_CODE% %RESPONSE_FLAGS%")
    one("rewrite", {"literal": ask("wrong.test", "/literal"), "header": ask("wrong.test", "/header", [("x-to", "good.test:@port@")]), "header twice": ask("wrong.test", "/header", [("x-to", "good.test:@port@"), ("x-to", "nx.test")]), "no header": ask("good.test", "/header"), "both": ask("wrong.test", "/both")}, routes=[
        route("/literal", to("dfp"), **rewrite(host_rewrite_literal="nx.test")), route("/header", to("dfp"), **rewrite(host_rewrite_header="x-to")), route("/both", to("dfp", host_rewrite_literal="other.test"), **rewrite(host_rewrite_literal="good.test")), route("/", to("dfp"))], **words)
    one("route-rewrite", {"late": ask("good.test", "/late")}, **words, routes=[route("/late", to("dfp", host_rewrite_literal="nx.test")), route("/", to("dfp"))])
    sub = {"sub_clusters_config": {"max_sub_clusters": 2}}
    one("sub-clusters", {"good": ask("127.0.0.1", times=2), "localhost": ask("localhost"), "third": ask("127.0.0.3")}, sub, {"sub_cluster_config": {}}, stats=(), cluster={"dns_lookup_family": "V4_ONLY"})
    with_state = [extension("envoy.filters.http.set_filter_state", "filters.http.set_filter_state.v3.Config", on_request_headers=[
        {"object_key": "envoy.upstream.dynamic_host", "format_string": {"text_format_source": {"inline_string": "%REQ(x-to)%"}, "omit_empty_values": True}, "skip_if_empty": True},
        {"object_key": "envoy.upstream.dynamic_port", "format_string": {"text_format_source": {"inline_string": "%REQ(x-port)%"}, "omit_empty_values": True}, "skip_if_empty": True}])]
    for allowed in (True, False):
        setup = one(f"state-{str(allowed).lower()}", {"host": ask("good.test", headers=[("x-to", "n5.test"), ("x-port", "@port@")]), "port": ask("good.test", headers=[("x-port", "@port@")], port=False), "none": ask("good.test")}, options={"allow_dynamic_host_from_filter_state": allowed}, stats=())
        setup.filters = [*with_state, *setup.filters]
    insecure = {"dns_cache_config": cache(), "allow_insecure_cluster_options": True}
    options = {"typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {"@type": V3 + "upstreams.http.v3.HttpProtocolOptions", "explicit_http_config": {"http_protocol_options": {}}}}}
    one("insecure", {"good": ask("good.test")}, insecure, {"dns_cache_config": cache()}, cluster=options)
    for name, sni, config in (("known", "host.test", {}), ("unknown", "nx.test", {}), ("none", None, {}), ("full", "host.test", {"max_hosts": 1, "preresolve_hostnames": [{"address": "n1.test", "port_value": 80}]}), ("pending", "host.test", {"dns_cache_circuit_breaker": {"max_pending_requests": 0}})):
        shared = cache(**config)
        sni_filter = extension("envoy.filters.network.sni_dynamic_forward_proxy", "filters.network.sni_dynamic_forward_proxy.v3.FilterConfig", dns_cache_config=shared, port_value="@port:secure@")
        tcp = extension("envoy.filters.network.tcp_proxy", "filters.network.tcp_proxy.v3.TcpProxy", stat_prefix="t", cluster="dfp", access_log=[file_log("flags=[%RESPONSE_FLAGS%] cluster=[%UPSTREAM_CLUSTER%] host=[%UPSTREAM_HOST%]")])
        setup = Setup(f"sni-{name}", manager=False, network_filters=[sni_filter, tcp], clusters=[proxy_cluster(config={"dns_cache_config": shared})], upstreams={"secure": "tls"}, stats=STATS,
                      listener={"listener_filters": [extension("envoy.filters.listener.tls_inspector", "filters.listener.tls_inspector.v3.TlsInspector")]})
        for case in ("first", "again"):
            setup.get(case, "/", tls={"sni": sni}, wait=1.5, ignore=("tls", "fate"))
        made.append(setup)
    return made
