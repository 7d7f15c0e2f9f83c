"""Zone-aware routing in its corners, limits and thresholds that runtime changes, and outlier detection's gauges."""
from harness.config import cluster, endpoint, route, to
from harness.setup import Setup, reply, request

from .balancing import QUIET, counts, locality, names, sequence
from .subsets import policy

HOSTS = "abcdefgh"


def here(zone, hosts, priority=0, **more):
    """A locality; the proxy itself is in region r, zone z, sub-zone s."""
    entry = locality(zone, [], priority, **more)
    entry["locality"]["sub_zone"] = "s"
    entry["lb_endpoints"] = [endpoint(host.strip("-~"), **({"health_status": "UNHEALTHY"} if "-" in host else {"health_status": "DEGRADED"} if "~" in host else {})) for host in hosts]
    return entry


def me(*zones):
    """The local cluster: how many proxies stand in each zone."""
    entries = []
    for zone, hosts in zones:
        entry = here(zone, [])
        entry["lb_endpoints"] = [{"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 9000 + len(entries) * 10 + i}}}, **({"health_status": "UNHEALTHY"} if bad else {})} for i, bad in enumerate(hosts)]
        entries.append(entry)
    return cluster("me", localities=entries)


def two(first=1, second=1):
    return me(("z", [False] * first), ("y", [False] * second))


# Not how often zones were computed: Envoy counts that per thread.
STATS = ["^cluster.a.lb_(zone_(routing|no_cap)|local|healthy)"]
LOCAL = {"cluster_manager": {"local_cluster_name": "me"}}


def setups():
    made = []

    def one(name, localities, local, zone=None, cases=None, stats=STATS, typed=False, count=24, shape=counts, **fields):
        if typed:
            fields = {**fields, "load_balancing_policy": policy("rr", "round_robin.v3.RoundRobin", locality_lb_config={"zone_aware_lb_config": zone or {}})}
        else:
            fields = {**fields, "common_lb_config": {**({"zone_aware_lb_config": zone} if zone is not None else {}), **fields.get("common_lb_config", {})}}
        setup = Setup(name, clusters=[cluster("a", localities=localities, **fields), *([local] if local else [])], bootstrap=LOCAL if local else {}, routes=[route("/", to("a"))], stats=stats)
        for case, script in (cases or {"spread": sequence(count=count, shape=shape)}).items():
            setup.script(case, script, ignore=QUIET)
        made.append(setup)

    even = [here("z", "abc"), here("y", "def")]
    for form in (False, True):
        label = "typed-" if form else ""
        one(f"{label}direct", even, two(), typed=form)
        one(f"{label}no-local-cluster", even, None, typed=form)
        one(f"{label}too-small", [here("z", "ab"), here("y", "cd")], two(), typed=form)
        one(f"{label}small-allowed", [here("z", "ab"), here("y", "cd")], two(), {"min_cluster_size": 2}, typed=form)
        one(f"{label}unhealthy-count", [here("z", ["a", "b", "c-"]), here("y", "def")], two(), typed=form, count=25)
        one(f"{label}disabled", even, two(), {"routing_enabled": {"value": 0}}, typed=form)
        one(f"{label}panic", [here("z", ["a", "b-", "c-"]), here("y", ["d-", "e-", "f-"])], two(), {"min_cluster_size": 1}, typed=form)
        one(f"{label}panic-fails", [here("z", ["a", "b-", "c-"]), here("y", ["d-", "e-", "f-"])], two(), {"min_cluster_size": 1, "fail_traffic_on_panic": True}, typed=form)
    one("other-zones-only", [here("x", "abc"), here("y", "def")], two(), stats=(), shape=names, count=80)
    one("one-zone", [here("z", "abcdef")], two())
    one("nobody-here", even, me(("y", [False, False])))
    one("local-unhealthy", even, me(("z", [True]), ("y", [False])))
    one("local-half-unhealthy", even, me(("z", [False, True, True]), ("y", [False, True, True])))
    one("local-no-panic", even, me(("z", [False, True, True]), ("y", [False, True, True])), common_lb_config={"healthy_panic_threshold": {"value": 0}})
    one("crowded-here", [here("z", "ab"), here("y", "cdefgh")], two(), stats=(), shape=names, count=120)
    one("no-room-elsewhere", [here("z", "a"), here("y", "bcdefg")], me(("z", [False] * 3), ("y", [False])), stats=(), shape=names, count=160)
    one("degraded-not-by-zone", [here("z", ["a~", "b~", "c~"]), here("y", ["d~", "e~", "f~"])], two())
    one("second-priority-not-by-zone", [here("z", ["g-"]), here("z", "abc", 1), here("y", "def", 1)], two())
    one("forced", [here("z", "a"), here("y", "bcdefg")], two(), {"force_locality_direct_routing": True}, typed=True, stats=())
    one("forced-min", [here("z", "a"), here("y", "bcdefg")], two(), {"force_local_zone": {"min_size": 2}}, typed=True, stats=(), shape=names, count=160)
    one("forced-enough", [here("z", "ab"), here("y", "cdefgh")], two(), {"force_local_zone": {"min_size": 2}}, typed=True, stats=())
    one("by-weight", [{**here("z", "ab"), "lb_endpoints": [endpoint(h, load_balancing_weight=5) for h in "ab"]}, here("y", "cdef")], two(), {"locality_basis": "HEALTHY_HOSTS_WEIGHT"}, typed=True)
    one("least-request", even, two(), lb_policy="LEAST_REQUEST", shape=names)
    one("random", even, two(), lb_policy="RANDOM", shape=names)

    def modified(keys, then, path="/runtime_modify?"):
        """Sets runtime keys, then runs a script."""
        def run(context):
            status = context.admin(path + "&".join(f"{key}={value}" for key, value in keys.items()), "POST")[0]
            result = then(context)
            return (lambda: [status, result()]) if callable(result) else [status, result]
        return run
    layers = {"layered_runtime": {"layers": [{"name": "static", "static_layer": {}}, {"name": "admin", "admin_layer": {}}]}}
    runtime = Setup("runtime-zones", clusters=[cluster("a", localities=even), two()], bootstrap={**LOCAL, **layers}, routes=[route("/", to("a"))], stats=())
    spread = sequence(count=24, shape=names)
    for case, keys in (("as configured", {"x": "1"}), ("disabled", {"upstream.zone_routing.enabled": "0"}), ("enabled", {"upstream.zone_routing.enabled": ""})):
        runtime.script(case, modified(keys, spread), ignore=QUIET)
    made.append(runtime)
    limits = Setup("runtime-limits", clusters=[cluster("a", circuit_breakers={"thresholds": [{"max_requests": 3, "max_connections": 7, "track_remaining": True}]})], bootstrap=layers, routes=[route("/", to("a"))],
                   stats=["^cluster.a.(circuit_breakers.default.(.*open|remaining_(cx$|rq|pending|retries))|upstream_rq_pending_overflow|upstream_rq_active_overflow|upstream_rq_total)"])
    ask = sequence(count=2)

    def gauges(context):
        taken = ask(context)
        if [name for name in taken if name != "a"]:
            # Envoy sets the gauges with the next request that gets through.
            return taken
        def shown():
            text = context.admin("/stats?filter=cluster.a.circuit_breakers.default")[1]
            return sorted(line for line in text.splitlines() if ("remaining" in line or "open" in line) and "pool" not in line)
        return shown
    for case, keys in (("as configured", {"x": "1"}), ("closed", {"circuit_breakers.a.default.max_requests": "0"}), ("open", {"circuit_breakers.a.default.max_requests": "9"}), ("pending", {"circuit_breakers.a.default.max_pending_requests": "0"}),
                       ("back", {"circuit_breakers.a.default.max_requests": "", "circuit_breakers.a.default.max_pending_requests": ""})):
        # Envoy sets a gauge when its resource is used next, which pending requests are not as long as the connection lives.
        limits.script(case, modified(keys, ask if case == "pending" else gauges), ignore=QUIET)
    made.append(limits)

    budget = Setup("retry-budget", clusters=[cluster("a", circuit_breakers={"thresholds": [{"retry_budget": {"budget_percent": {"value": 0}, "min_retry_concurrency": 0}}]})], bootstrap=layers,
                   routes=[route("/", to("a", retry_policy={"retry_on": "5xx", "num_retries": 2}))], stats=["^cluster.a.upstream_rq_retry"])

    def tries(context):
        context.answers.load([reply(503), reply(503), reply(503)])
        responses, _ = context.exchange(request("/"), source="127.0.0.1")
        return [responses[0].status(), len(context.answers.taken())]
    for case, keys in (("none", {"x": "1"}), ("some", {"circuit_breakers.a.default.retry_budget.min_retry_concurrency": "1"}), ("percent", {"circuit_breakers.a.default.retry_budget.budget_percent": "100", "circuit_breakers.a.default.retry_budget.min_retry_concurrency": ""})):
        budget.script(case, modified(keys, tries), ignore=QUIET)
    made.append(budget)
    return made
