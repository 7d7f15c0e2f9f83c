"""Subset load balancing: which subset a request falls on, and every fallback. Sets of hosts are compared, and exact hosts where hashing decides."""
from harness.config import V3, cluster, endpoint, extension, route, to, typed
from harness.setup import Setup, request

from .balancing import QUIET, counts, locality, names, sequence

HOSTS = (("a", {"v": "1", "s": "x"}), ("b", {"v": "1", "s": "y"}), ("c", {"v": "2", "s": "x"}), ("d", {"v": ["2", "3"], "n": 7, "o": {"k": True}}))


def hosts(pairs=HOSTS, **fields):
    return [{"lb_endpoints": [endpoint(name, metadata={"filter_metadata": {"envoy.lb": meta}}, **fields.get(name, {})) for name, meta in pairs]}]


def meta(*lists, **values):
    return to("a", metadata_match={"filter_metadata": {"envoy.lb": {**values, **({"fallback_list": lists[0]} if lists else {})}}})


def policy(name, kind, **fields):
    return {"policies": [{"typed_extension_config": {"name": name, "typed_config": {"@type": f"{V3}load_balancing_policies.{kind}", **fields}}}]}


ROUTES = [
    route("/v1x", meta(v="1", s="x")), route("/v1", meta(v="1")), route("/v2x", meta(v="2", s="x")), route("/v2", meta(v="2")), route("/v3", meta(v="3")), route("/v9x", meta(v="9", s="x")),
    route("/v9", meta(v="9")), route("/vlist", meta(v=["2", "3"])), route("/s", meta(s="x")), route("/n", meta(n=7)), route("/m", meta(n=8)), route("/o", meta(o={"k": True})),
    route("/more", meta(v="1", s="y", z="z")), route("/empty", meta()), route("/other", to("a", metadata_match={"filter_metadata": {"other": {"v": "1"}}})), route("/", to("a"))]
PATHS = ("/v1", "/v1x", "/v2", "/v2x", "/v3", "/v9", "/v9x", "/vlist", "/s", "/n", "/m", "/o", "/more", "/empty", "/other", "/none")
SELECTORS = [{"keys": ["v"]}, {"keys": ["v", "s"]}, {"keys": ["n"]}, {"keys": ["o"]}]


def setups():
    made = []

    def one(name, localities, fields, paths=PATHS, routes=None, count=8, shape=counts, **more):
        clusters = [cluster("a", localities=localities, **({"lb_subset_config": fields} if "subset_selectors" in fields else fields))]
        setup = Setup(name, clusters=clusters, routes=routes or ROUTES, stats=["^cluster.a.lb_subsets_(selected|fallback)"], **more)
        for path in paths:
            setup.script(path, sequence(path, count, shape=shape), ignore=QUIET)
        made.append(setup)

    for fallback in ("NO_FALLBACK", "ANY_ENDPOINT", "DEFAULT_SUBSET"):
        base = {"fallback_policy": fallback, "default_subset": {"v": "1", "s": "y"}, "subset_selectors": SELECTORS}
        one(f"cluster-{fallback.lower()}", hosts(), base)
        one(f"lists-{fallback.lower()}", hosts(), {**base, "list_as_any": True})
    one("default-empty", hosts(), {"fallback_policy": "DEFAULT_SUBSET", "subset_selectors": SELECTORS})
    one("default-nobody", hosts(), {"fallback_policy": "DEFAULT_SUBSET", "default_subset": {"v": "nobody"}, "subset_selectors": SELECTORS})
    one("panic-any", hosts(), {"fallback_policy": "DEFAULT_SUBSET", "default_subset": {"v": "nobody"}, "panic_mode_any": True, "subset_selectors": SELECTORS})
    one("panic-any-unused", hosts(), {"fallback_policy": "NO_FALLBACK", "panic_mode_any": True, "subset_selectors": SELECTORS})
    for own in ("NOT_DEFINED", "NO_FALLBACK", "ANY_ENDPOINT", "DEFAULT_SUBSET", "KEYS_SUBSET"):
        keys = {"fallback_keys_subset": ["v"]} if own == "KEYS_SUBSET" else {}
        for cluster_policy in ("NO_FALLBACK", "ANY_ENDPOINT"):
            one(f"selector-{own.lower()}-{cluster_policy.lower()}", hosts(), {"fallback_policy": cluster_policy, "default_subset": {"v": "2"}, "subset_selectors": [
                {"keys": ["v"]}, {"keys": ["v", "s"], "fallback_policy": own, **keys}]}, ("/v1", "/v1x", "/v9", "/v9x", "/v2x", "/s", "/none"))
    one("selector-chain", hosts(), {"fallback_policy": "NO_FALLBACK", "default_subset": {"v": "2"}, "subset_selectors": [
        {"keys": ["v"], "fallback_policy": "DEFAULT_SUBSET"}, {"keys": ["s", "v"], "fallback_policy": "KEYS_SUBSET", "fallback_keys_subset": ["v"]}]}, ("/v9x", "/v9", "/v2x", "/none"))
    # Envoy forgets the fallback of a selector that begins another one before it.
    one("selector-order", hosts(), {"fallback_policy": "NO_FALLBACK", "subset_selectors": [
        {"keys": ["n", "v"]}, {"keys": ["n"], "fallback_policy": "ANY_ENDPOINT"}, {"keys": ["v"], "fallback_policy": "ANY_ENDPOINT"}]}, ("/n", "/m", "/v1", "/v9"))
    one("selector-twice", hosts(), {"fallback_policy": "NO_FALLBACK", "subset_selectors": [
        {"keys": ["v"], "fallback_policy": "ANY_ENDPOINT"}, {"keys": ["v"], "fallback_policy": "NO_FALLBACK"}]}, ("/v1", "/v9"))
    one("selector-empty", hosts(), {"fallback_policy": "ANY_ENDPOINT", "subset_selectors": [{"keys": []}]}, ("/v1", "/none"))
    one("single-host", hosts((("a", {"v": "1"}), ("b", {"v": "2"}), ("c", {"v": "2"}), ("d", {}))), {"fallback_policy": "NO_FALLBACK", "subset_selectors": [
        {"keys": ["v"], "single_host_per_subset": True}]}, ("/v1", "/v2", "/v9", "/none"))
    one("single-host-unhealthy", hosts((("a", {"v": "1"}), ("b", {"v": "2"})), a={"health_status": "UNHEALTHY"}), {"fallback_policy": "ANY_ENDPOINT", "subset_selectors": [
        {"keys": ["v"], "single_host_per_subset": True}]}, ("/v1", "/v2"))
    for threshold in (0, 50):
        one(f"unhealthy-{threshold}", hosts(a={"health_status": "UNHEALTHY"}, b={"health_status": "UNHEALTHY"}, c={"health_status": "DEGRADED"}), {
            "lb_subset_config": {"fallback_policy": "ANY_ENDPOINT", "subset_selectors": SELECTORS}, "common_lb_config": {"healthy_panic_threshold": {"value": threshold}}}, ("/v1", "/v1x", "/v2", "/v9"), shape=names, count=40)
    lists = [route("/first", meta([{"v": "9"}, {"v": "2"}])), route("/none", meta([{"v": "9"}, {"v": "8"}])), route("/empty-list", meta([], v="1")), route("/merge", meta([{"s": "z"}, {"s": "y"}], v="1")),
             route("/instead", meta([{"v": "2"}, {}], v="1")), route("/itself", meta([{"v": "9"}, {}], v="1")), route("/plain", meta(v="1")), route("/", to("a"))]
    for kind in ("FALLBACK_LIST", "METADATA_NO_FALLBACK"):
        for fallback in ("NO_FALLBACK", "ANY_ENDPOINT"):
            one(f"{kind.lower()}-{fallback.lower()}", hosts(), {"fallback_policy": fallback, "metadata_fallback_policy": kind, "subset_selectors": SELECTORS[:2]},
                ("/first", "/none", "/empty-list", "/merge", "/instead", "/itself", "/plain", "/x"), lists)
    spread = [locality("z1", []), locality("z2", []), locality("z3", [])]
    for place, weight, members in zip(spread, (1, 3, 100), (HOSTS[:2], HOSTS[2:3], HOSTS[3:])):
        place.update(load_balancing_weight=weight, lb_endpoints=hosts(members)[0]["lb_endpoints"])
    for aware in (False, True):
        one(f"locality-{str(aware).lower()}", spread, {"lb_subset_config": {"fallback_policy": "ANY_ENDPOINT", "locality_weight_aware": aware, "scale_locality_weight": aware, "subset_selectors": [{"keys": ["v"]}, {"keys": ["s"]}]},
            "common_lb_config": {"locality_weighted_lb_config": {}}}, ("/v1", "/v2", "/s"), shape=names, count=40)
    levels = [locality("z1", []), locality("z2", [], priority=1)]
    levels[0]["lb_endpoints"] = hosts((("a", {"v": "1"}), ("b", {"v": "2"})), a={"health_status": "UNHEALTHY"})[0]["lb_endpoints"]
    levels[1]["lb_endpoints"] = hosts((("c", {"v": "1"}), ("d", {"v": "3"})))[0]["lb_endpoints"]
    one("priorities", levels, {"fallback_policy": "DEFAULT_SUBSET", "default_subset": {"v": "3"}, "subset_selectors": SELECTORS[:1]}, ("/v1", "/v2", "/v3", "/v9"))

    hashed = [route(f"/{v}", {**meta(v=v), "hash_policy": [{"header": {"header_name": "x-key"}}]}) for v in ("1", "2")] + [route("/", to("a", hash_policy=[{"header": {"header_name": "x-key"}}]))]
    keyed = hosts(tuple((name, {"v": "1" if name in "abc" else "2", "hash_key": f"host-{name}"}) for name in "abcd"))
    for lb in ("RING_HASH", "MAGLEV"):
        setup = Setup(f"{lb.lower()}", clusters=[cluster("a", localities=keyed, lb_policy=lb, lb_subset_config={"fallback_policy": "ANY_ENDPOINT", "subset_selectors": [{"keys": ["v"]}]})], routes=hashed)
        for path in ("/1", "/2", "/none"):
            setup.script(path, sequence(path, 24, [("x-key", "keyN")]), ignore=QUIET)
        made.append(setup)

    random = policy("random", "random.v3.Random")
    for redundant in (False, True):
        one(f"typed-redundant-{str(redundant).lower()}", hosts(), {"load_balancing_policy": policy("subset", "subset.v3.Subset", fallback_policy="ANY_ENDPOINT", allow_redundant_keys=redundant, subset_lb_policy=random, subset_selectors=[
            {"keys": ["s", "z"]}, {"keys": ["s", "v"]}, {"keys": ["v"]}])}, ("/more", "/v1x", "/v1", "/s", "/n"), shape=names, count=30)
    one("typed-no-selectors", hosts(), {"load_balancing_policy": policy("subset", "subset.v3.Subset", fallback_policy="DEFAULT_SUBSET", default_subset={"v": "1"}, subset_lb_policy=random)}, ("/v2", "/none"), shape=names, count=30)

    weighted = Setup("weighted-clusters", clusters=[cluster("a", localities=hosts(), lb_subset_config={"fallback_policy": "NO_FALLBACK", "subset_selectors": SELECTORS})], routes=[route("/", {
        "weighted_clusters": {"header_name": "x-random", "clusters": [
            {"name": "a", "weight": 1, "metadata_match": {"filter_metadata": {"envoy.lb": {"v": "1"}}}}, {"name": "a", "weight": 1, "metadata_match": {"filter_metadata": {"envoy.lb": {"s": "y"}}}},
            {"name": "a", "weight": 1}]}, "metadata_match": {"filter_metadata": {"envoy.lb": {"v": "1", "s": "x"}}}})])
    for value in ("0", "1", "2"):
        weighted.script(f"cluster {value}", sequence("/", 8, [("x-random", value)], counts), ignore=QUIET)
    made.append(weighted)

    written = extension("envoy.filters.http.set_metadata", "filters.http.set_metadata.v3.Config", metadata=[{"metadata_namespace": "envoy.lb", "value": {"v": "2"}}])
    one("dynamic", hosts(), {"fallback_policy": "ANY_ENDPOINT", "subset_selectors": SELECTORS}, ("/v1", "/v1x", "/n", "/none"), filters=[written])
    tcp = Setup("tcp", clusters=[cluster("a", localities=hosts(), lb_subset_config={"fallback_policy": "NO_FALLBACK", "subset_selectors": SELECTORS})], manager=False, log=None,
                network_filters=[{"name": "envoy.filters.network.tcp_proxy", "typed_config": typed("filters.network.tcp_proxy.v3.TcpProxy", stat_prefix="t", cluster="a", metadata_match={"filter_metadata": {"envoy.lb": {"v": "1", "s": "y"}}})}])
    tcp.script("connections", sequence("/", 4, shape=names), ignore=QUIET)
    made.append(tcp)
    return made
