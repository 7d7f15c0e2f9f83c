"""Which stats a request is counted in, and which route table it gets by scope, host discovery or cluster specifier."""
from harness.config import cluster, endpoint, file_log, route, say, to
from harness.setup import Setup, reply

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


def setups():
    return [*groups(), *zones()]
