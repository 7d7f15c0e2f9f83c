"""Aggregate clusters and weights by load reports: which member and host takes a request, and whose counters count."""
import base64
import json
import struct
import time

from harness.config import cluster, endpoint, route, to, typed
from harness.setup import Setup, reply, request

from .balancing import QUIET, counts, locality, names, sequence
from .subsets import policy


def aggregate(name, *members, **fields):
    return {"name": name, "connect_timeout": "2s", "lb_policy": "CLUSTER_PROVIDED", "cluster_type": {"name": "envoy.clusters.aggregate", "typed_config": typed("clusters.aggregate.v3.ClusterConfig", clusters=list(members))}, **fields}


def host(name, status=None, **fields):
    return endpoint(name, **({"health_status": status} if status else {}), **fields)


def level(priority, *hosts):
    return {"priority": priority, "lb_endpoints": list(hosts)}


COUNTERS = [f"^cluster.{name}.(upstream_(rq|cx)_(total|2xx|200|completed|pending_total|none_healthy|retry|active)|membership_total|membership_healthy|external.upstream_rq_200|lb_healthy_panic)$" for name in ("all", "one", "two")]


def setups():
    made = []

    some = {"hosts": sequence(count=60, shape=names)}

    def one(name, first, second, scripts=None, clusters=(), routes=None, **fields):
        setup = Setup(name, clusters=[aggregate("all", "one", "two"), *([cluster("one", localities=first)] if first else []), *([cluster("two", localities=second)] if second else []), *clusters],
            routes=routes or [route("/", to("all"))], stats=() if scripts == some else COUNTERS, **fields)
        for case, script in (scripts or {"spread": sequence(shape=counts)}).items():
            setup.script(case, script, ignore=QUIET if scripts == some else tuple(aspect for aspect in QUIET if aspect != "log"))
        made.append(setup)

    down = "UNHEALTHY"
    one("first-member", [level(0, host("a"), host("b"))], [level(0, host("c"))])
    one("second-member", [level(0, host("a", down))], [level(0, host("c"))])
    one("second-priority", [level(0, host("a", down)), level(1, host("b"))], [level(0, host("c"))])
    one("spill", [level(0, host("a"), host("b", down))], [level(0, host("c"))], some)
    one("gap", [level(2, host("a"))], [level(0, host("c"))], {"hosts": sequence(shape=names)})
    one("none-left", [level(0, host("a", down))], [level(0, host("c", down))], some)
    one("degraded", [level(0, host("a", "DEGRADED"))], [level(0, host("c"))], some)
    one("missing-member", None, [level(0, host("c"))])
    one("no-member", None, None)
    one("empty-member", [], [level(0, host("c"))], clusters=[{"name": "one", "connect_timeout": "1s", "type": "STATIC"}])
    one("nested", None, [level(0, host("c"))], clusters=[aggregate("one", "three"), cluster("three", ["a"])])
    one("itself", None, [level(0, host("c"))], clusters=[aggregate("one", "one")])

    def retry(context):
        context.answers.load([reply(503, [], "x")])
        responses, _ = context.exchange(request("/"), source="127.0.0.1")
        return [responses[0].status(), [entry["upstream"] for entry in context.answers.taken()]]
    for priorities in (False, True):
        policy_fields = {"retry_on": "5xx", "num_retries": 1}
        if priorities:
            policy_fields["retry_priority"] = {"name": "envoy.retry_priorities.previous_priorities", "typed_config": typed("retry.priority.previous_priorities.v3.PreviousPrioritiesConfig", update_frequency=1)}
        one(f"retry-{'elsewhere' if priorities else 'same'}", [level(0, host("a"))], [level(0, host("c"))], {"retry": retry}, routes=[route("/", to("all", retry_policy=policy_fields))])
    hashed = [cluster(name, localities=[{"lb_endpoints": [endpoint(h, metadata={"filter_metadata": {"envoy.lb": {"hash_key": h}}}) for h in hosts]}], lb_policy="RING_HASH") for name, hosts in (("one", "ab"), ("two", "cd"))]
    one("hash", None, None, {"keys": sequence(count=20, headers=[("x-key", "keyN")])}, hashed, [route("/", to("all", hash_policy=[{"header": {"header_name": "x-key"}}]))])
    subsets = [{"lb_endpoints": [endpoint(h, metadata={"filter_metadata": {"envoy.lb": {"v": h}}}) for h in "ab"]}]
    one("subset", None, [level(0, host("c"))], {"match": sequence("/b"), "no match": sequence("/x")}, [cluster("one", localities=subsets, lb_subset_config={"subset_selectors": [{"keys": ["v"]}]})],
        [route(f"/{v}", to("all", metadata_match={"filter_metadata": {"envoy.lb": {"v": v}}})) for v in "bx"])
    tcp = Setup("tcp", clusters=[aggregate("all", "one", "two"), cluster("one", localities=[level(0, host("a", down))]), cluster("two", ["c"])], manager=False, log=None, stats=COUNTERS,
                network_filters=[{"name": "envoy.filters.network.tcp_proxy", "typed_config": typed("filters.network.tcp_proxy.v3.TcpProxy", stat_prefix="t", cluster="all")}])
    tcp.script("connections", sequence("/", 4), ignore=QUIET)
    made.append(tcp)

    def weight(headers, wanted):
        """The weight that a host has after it answered with these headers; waits for the one that is right, or for a few updates."""
        def run(context):
            context.answers.load([reply(200, headers, "x")])
            context.exchange(request("/"), source="127.0.0.1")
            context.answers.taken()
            shown, deadline = None, time.monotonic() + (4 if wanted else 0.5)
            while time.monotonic() < deadline and (shown is None or shown != wanted):
                hosts = json.loads(context.admin("/clusters?format=json")[1])["cluster_statuses"][0]["host_statuses"]
                shown = hosts[0].get("weight")
                time.sleep(0.02)
            return shown
        return run
    names_of = {"metric_names_for_computing_utilization": ["named_metrics.q", "utilization.*"]}
    for label, fields in (("plain", {}), ("named", names_of), ("penalty", {"error_utilization_penalty": 2})):
        own = policy("w", "client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin", blackout_period="0s", weight_update_period="0.1s", **fields)
        for outer, chosen in (("wrr", own), ("wrr-locality", policy("l", "wrr_locality.v3.WrrLocality", endpoint_picking_policy=own))):
            reports = Setup(f"{outer}-{label}", clusters=[cluster("a", localities=[locality("z1", ["a"], weight=1)], load_balancing_policy=chosen)], routes=[route("/", to("a"))])
            for number, (name, value, wanted) in enumerate((
                    ("text", "TEXT rps_fractional=10, application_utilization=0.5", {"penalty": 20}.get(label, 20)), ("colon", "TEXT rps_fractional:30,application_utilization:1", 30),
                    ("cpu", "TEXT rps_fractional=10,cpu_utilization=0.25", 40), ("both", "TEXT rps_fractional=10,cpu_utilization=0.25,application_utilization=0.125", 80),
                    ("errors", "TEXT rps_fractional=100,application_utilization=1,eps=50", 50 if label == "penalty" else 100),
                    ("named", "TEXT rps_fractional=100,application_utilization=0.5,named_metrics.q=0.25,named_metrics.r=7", 400 if label == "named" else 200),
                    ("map", "TEXT rps_fractional=100,application_utilization=1,utilization.x=0.1,utilization.y=0.2", None), ("json", 'JSON {"rps_fractional": 70, "application_utilization": 1}', 70),
                    ("json names", 'JSON {"rpsFractional": 71, "applicationUtilization": 1, "namedMetrics": {"z": 1}}', 71), ("json wrong", "JSON {", None), ("no format", "rps_fractional=3,application_utilization=1", None),
                    ("wrong", "TEXT rps_fractional=4,application_utilization=1,other=1", None), ("twice", "TEXT rps_fractional=5,rps_fractional=6,application_utilization=1", None), ("no rate", "TEXT application_utilization=1", None))):
                reports.script(name, weight([("endpoint-load-metrics", value)], wanted), ignore=QUIET)
            binary = base64.b64encode(struct.pack("<BdBd", 0x31, 90.0, 0x49, 1.0)).decode()
            for name, pairs in (("bin header", [("endpoint-load-metrics-bin", binary)]), ("bin format", [("endpoint-load-metrics", f"BIN {binary}")]), ("bin unpadded", [("endpoint-load-metrics-bin", binary.rstrip("="))]),
                                ("both headers", [("endpoint-load-metrics-bin", binary), ("endpoint-load-metrics", "TEXT rps_fractional=7,application_utilization=1")])):
                reports.script(f"{name} before", weight([("endpoint-load-metrics", "TEXT rps_fractional=12,application_utilization=1")], 12), ignore=QUIET)
                reports.script(name, weight(pairs, 90), ignore=QUIET)
            made.append(reports)
    return made
