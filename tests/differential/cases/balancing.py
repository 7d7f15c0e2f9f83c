"""Load balancing: which upstream takes which request. Random choices are compared as sets; weights by the exact schedule where there is one."""
from harness.config import cluster, endpoint, route, to
from harness.setup import Setup, request

HOSTS = ["a", "b", "c", "d"]


def sequence(path="/", count=12, headers=(), shape=list):
    """A script: the upstreams of `count` requests, in order, or what `shape` makes of them. Where names are compared, chance may pick: there
    are so many requests that a share of a twentieth is missed once in five million runs."""
    if shape is names:
        count = max(count, 300)

    def run(context):
        seen = []
        for number in range(count):
            context.answers.load([])
            pairs = [(name, value.replace("N", str(number))) for name, value in headers]
            responses, _ = context.exchange(request(path, pairs), source="127.0.0.1")
            taken = context.answers.taken()
            seen.append(taken[0]["upstream"] if taken else str(responses[0].status()) if responses else "nothing")
        return shape(seen)
    return run


def counts(seen):
    return sorted((name, seen.count(name)) for name in set(seen))


def near(shares):
    """A shape: whether each upstream took its share. The schedule begins at a random place and its fractions are rounded, so one more or less is none's fault."""
    return lambda seen: all(abs(seen.count(name) - share) <= 1 for name, share in shares.items())


def names(seen):
    return sorted(set(seen))


def policy(name, **fields):
    return {"load_balancing_policy": {"policies": [{"typed_extension_config": {"name": name, "typed_config": {
        "@type": f"type.googleapis.com/envoy.extensions.load_balancing_policies.{name}.v3.{''.join(part.capitalize() for part in name.split('_'))}", **fields}}}]}}


def weighted(pairs):
    return [{"lb_endpoints": [endpoint(name, load_balancing_weight=weight) for name, weight in pairs]}]


def locality(zone, hosts, priority=0, weight=None, health=None):
    entry = {"locality": {"region": "r", "zone": zone}, "priority": priority, "lb_endpoints": [endpoint(host, **({"health_status": health} if health else {})) for host in hosts]}
    if weight:
        entry["load_balancing_weight"] = weight
    return entry


def healths(**statuses):
    return [{"lb_endpoints": [endpoint(name, health_status=status) for name, status in statuses.items()]}]


QUIET = ("headers*", "body*", "upstream", "status*", "fate*", "log")


def setups():
    made = []

    def one(name, clusters, scripts, action=None, **fields):
        setup = Setup(name, clusters=[clusters], routes=[route("/", action or to("a"))], **fields)
        for case, script in scripts.items():
            setup.script(case, script, ignore=QUIET)
        made.append(setup)

    both = {"spread": sequence(shape=counts)}
    one("round-robin", cluster("a", HOSTS), both)
    one("round-robin-typed", cluster("a", HOSTS, **policy("round_robin")), both)
    one("round-robin-weighted", cluster("a", localities=weighted([("a", 1), ("b", 2), ("c", 3)])), {"spread": sequence(count=24, shape=near({"a": 4, "b": 8, "c": 12}))})
    one("least-request", cluster("a", HOSTS, lb_policy="LEAST_REQUEST"), {"hosts": sequence(count=60, shape=names)})
    one("random", cluster("a", HOSTS, lb_policy="RANDOM"), {"hosts": sequence(count=60, shape=names)})
    for lb in ("RING_HASH", "MAGLEV"):
        hashed = to("a", hash_policy=[{"header": {"header_name": "x-key"}}])
        one(f"{lb.lower()}-header", cluster("a", HOSTS, lb_policy=lb), {"same key": sequence(headers=[("x-key", "fixed")], shape=lambda seen: len(set(seen))),
            "no key": sequence(count=40, shape=lambda seen: len(set(seen)) > 1)}, hashed)
        one(f"{lb.lower()}-hostnames", cluster("a", localities=[{"lb_endpoints": [{"endpoint": {**endpoint(name)["endpoint"], "hostname": f"{name}.test"}} for name in HOSTS]}], lb_policy=lb,
            common_lb_config={"consistent_hashing_lb_config": {"use_hostname_for_hashing": True}}, type="STRICT_DNS"), {"keys": sequence(count=40, headers=[("x-key", "keyN")]), "other keys": sequence(count=20, headers=[("x-key", "user-N@test")])}, hashed)
        metadata = [{"lb_endpoints": [endpoint(name, metadata={"filter_metadata": {"envoy.lb": {"hash_key": f"host-{name}"}}}) for name in HOSTS]}]
        one(f"{lb.lower()}-hash-key", cluster("a", localities=metadata, lb_policy=lb), {"keys": sequence(count=40, headers=[("x-key", "keyN")])}, hashed)
        for kind, hash_policy, path, headers in (("query", {"query_parameter": {"name": "k"}}, "/?k=value", ()), ("cookie", {"cookie": {"name": "c"}}, "/", [("cookie", "c=valN")]),
                                                 ("source", {"connection_properties": {"source_ip": True}}, "/", ()), ("regex", {"header": {"header_name": "x-key", "regex_rewrite": {"pattern": {"regex": "[0-9]"}, "substitution": "#"}}}, "/", [("x-key", "keyN")])):
            one(f"{lb.lower()}-{kind}", cluster("a", localities=metadata, lb_policy=lb), {"keys": sequence(path, 12, headers)}, to("a", hash_policy=[hash_policy]))
        one(f"{lb.lower()}-terminal", cluster("a", localities=metadata, lb_policy=lb), {"first": sequence(headers=[("x-first", "N"), ("x-key", "K")]), "second": sequence(headers=[("x-key", "keyN")])},
            to("a", hash_policy=[{"header": {"header_name": "x-first"}, "terminal": True}, {"header": {"header_name": "x-key"}}]))
        one(f"{lb.lower()}-several", cluster("a", localities=metadata, lb_policy=lb), {"both": sequence(headers=[("x-first", "N"), ("x-key", "K")]), "two values": sequence(headers=[("x-key", "aN"), ("x-key", "b")])},
            to("a", hash_policy=[{"header": {"header_name": "x-first"}}, {"header": {"header_name": "x-key"}}]))
    one("ring-typed", cluster("a", localities=[{"lb_endpoints": [endpoint(name, metadata={"filter_metadata": {"envoy.lb": {"hash_key": name}}}) for name in HOSTS]}], **policy("ring_hash", minimum_ring_size=64)),
        {"keys": sequence(count=20, headers=[("x-key", "N")])}, to("a", hash_policy=[{"header": {"header_name": "x-key"}}]))
    one("unhealthy", cluster("a", localities=healths(a="HEALTHY", b="UNHEALTHY", c="DRAINING", d="HEALTHY")), both)
    one("degraded", cluster("a", localities=healths(a="HEALTHY", b="DEGRADED")), {"hosts": sequence(count=40, shape=names)})
    one("only-degraded", cluster("a", localities=healths(a="UNHEALTHY", b="DEGRADED")), both)
    one("panic", cluster("a", localities=healths(a="UNHEALTHY", b="UNHEALTHY", c="HEALTHY")), {"hosts": sequence(count=12, shape=counts)}, stats=["lb_healthy_panic"])
    one("no-panic", cluster("a", localities=healths(a="UNHEALTHY", b="UNHEALTHY", c="HEALTHY"), common_lb_config={"healthy_panic_threshold": {"value": 0}}), both)
    one("all-unhealthy-no-panic", cluster("a", localities=healths(a="UNHEALTHY"), common_lb_config={"healthy_panic_threshold": {"value": 0}}), both)
    one("fail-on-panic", cluster("a", localities=healths(a="UNHEALTHY", b="UNHEALTHY", c="HEALTHY"), common_lb_config={"zone_aware_lb_config": {"fail_traffic_on_panic": True}}), both)
    one("priorities", cluster("a", localities=[locality("z1", ["a", "b"]), locality("z2", ["c"], priority=1)]), both)
    one("priority-failed", cluster("a", localities=[locality("z1", ["a", "b"], health="UNHEALTHY"), locality("z2", ["c", "d"], priority=1)]), both)
    one("locality-weights", cluster("a", localities=[locality("z1", ["a"], weight=1), locality("z2", ["b"], weight=3)], common_lb_config={"locality_weighted_lb_config": {}}), {"hosts": sequence(count=40, shape=names)})
    one("locality-zero", cluster("a", localities=[locality("z1", ["a"], weight=1), locality("z2", ["b"])], common_lb_config={"locality_weighted_lb_config": {}}), both)
    subset_hosts = [{"lb_endpoints": [endpoint(name, metadata={"filter_metadata": {"envoy.lb": meta}}) for name, meta in (("a", {"v": "1", "s": "x"}), ("b", {"v": "1", "s": "y"}), ("c", {"v": "2", "s": "x"}), ("d", {}))]}]
    for fallback in ("NO_FALLBACK", "ANY_ENDPOINT", "DEFAULT_SUBSET"):
        subset = {"fallback_policy": fallback, "default_subset": {"v": "2"}, "subset_selectors": [{"keys": ["v"]}, {"keys": ["v", "s"]}]}

        def meta(**values):
            return to("a", metadata_match={"filter_metadata": {"envoy.lb": values}})
        setup = Setup(f"subset-{fallback.lower()}", clusters=[cluster("a", localities=subset_hosts, lb_subset_config=subset)], stats=["^cluster.a.lb_subsets"], routes=[
            route("/v1x", meta(v="1", s="x")), route("/v1", meta(v="1")), route("/v2", meta(v="2")), route("/v9", meta(v="9")), route("/s", meta(s="x")), route("/", to("a"))])
        for path in ("/v1", "/v2", "/v1x", "/v9", "/s", "/none"):
            setup.script(path, sequence(path, shape=counts), ignore=QUIET)
        made.append(setup)
    split = Setup("weighted-clusters", clusters=[cluster("a"), cluster("b")], routes=[
        route("/header", {"weighted_clusters": {"header_name": "x-random", "clusters": [{"name": "a", "weight": 30}, {"name": "b", "weight": 70}]}}),
        route("/zero", {"weighted_clusters": {"clusters": [{"name": "a", "weight": 0}, {"name": "b", "weight": 1}]}}), route("/", {"weighted_clusters": {"clusters": [{"name": "a", "weight": 1}, {"name": "b", "weight": 1}]}})])
    split.script("zero", sequence("/zero"), ignore=QUIET)
    split.script("half", sequence("/", 60, shape=names), ignore=QUIET)
    for value in ("0", "29", "30", "99", "100", "130", "abc", ""):
        split.get(f"random {value}", "/header", [("x-random", value)], **({"ignore": ("upstream", "log", "headers", "body")} if value in ("abc", "") else {}))
    made.append(split)
    cookies = Setup("hash-cookie-made", clusters=[cluster("a", HOSTS, lb_policy="RING_HASH")], routes=[
        route("/ttl", to("a", hash_policy=[{"cookie": {"name": "sid", "ttl": "60s", "path": "/p"}}])), route("/zero", to("a", hash_policy=[{"cookie": {"name": "sid", "ttl": "0s"}}])),
        route("/attributes", to("a", hash_policy=[{"cookie": {"name": "sid", "ttl": "5s", "attributes": [{"name": "SameSite", "value": "Strict"}, {"name": "Secure", "value": ""}]}}])), route("/none", to("a", hash_policy=[{"cookie": {"name": "sid"}}]))])

    def cookie(path, sent=None):
        def run(context):
            import re
            responses, _ = context.exchange(request(path, [("cookie", sent)] if sent else []))
            return [re.sub(r'="[0-9a-f]+"', '="<hash>"', value) for value in responses[0].get("set-cookie")]
        return run
    for path in ("/ttl", "/zero", "/attributes", "/none"):
        cookies.script(f"{path} none", cookie(path), ignore=QUIET)
        cookies.script(f"{path} sent", cookie(path, "sid=known"), ignore=QUIET)
    made.append(cookies)
    outlier = Setup("outlier", clusters=[cluster("a", HOSTS[:2], outlier_detection={"consecutive_5xx": 2, "max_ejection_percent": 50, "base_ejection_time": "30s", "interval": "30s"})], stats=["outlier_detection.(ejections_(active|total|enforced|overflow|consecutive|detected)|.*5xx)"])
    from harness.setup import reply

    def eject(context):
        seen = []
        for _ in range(12):
            context.answers.load([reply(503, [], "x")] if len(seen) < 8 else [])
            context.exchange(request("/"))
            seen.append(context.answers.taken()[0]["upstream"])
            # The main thread ejects: by its answer it has.
            context.admin("/clusters")
        return len(set(seen[-4:]))
    outlier.script("ejects one", eject, ignore=QUIET)
    made.append(outlier)
    return made
