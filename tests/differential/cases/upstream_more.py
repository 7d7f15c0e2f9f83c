"""Upstream details: TLVs that hosts are told, hosts that say they are degraded, thresholds that runtime changes, connections that close with
the set of hosts, picks that leave a trace, hashing that the policy itself configures. Nothing here is timed: scripts wait for what they compare, for as
long as a slow machine needs."""
import base64
import json
import os
import threading
import time

from harness.config import cluster, endpoint, extension, route, to
from harness.setup import Setup, reply, request

from .balancing import QUIET, names, sequence

# How long a condition may take on a machine that is busy with other things.
PATIENCE = 30.0
LAYERS = {"layered_runtime": {"layers": [{"name": "static", "static_layer": {}}, {"name": "admin", "admin_layer": {}}]}}


def until(condition, patience=PATIENCE):
    """The first true value of `condition`, or its last one."""
    deadline = time.monotonic() + patience
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return value


def policy(name, kind, **fields):
    return {"load_balancing_policy": {"policies": [{"typed_extension_config": extension(name, f"load_balancing_policies.{kind}", **fields)}]}}


def number(context, name):
    """The value of one counter or gauge; 0 if it is not there."""
    for line in context.admin(f"/stats?filter=^{name.replace('.', '[.]')}$")[1].splitlines():
        return int(line.rpartition(": ")[2])
    return 0


def flags(context, name="a"):
    """Health flags of a cluster's hosts, by the name of the upstream."""
    port = {str(upstream.port): key for key, upstream in context.upstreams.items()}
    found = {}
    for line in context.admin("/clusters")[1].splitlines():
        parts = line.split("::")
        if len(parts) == 4 and parts[0] == name and parts[2] == "health_flags":
            found[port.get(parts[1].rpartition(":")[2], parts[1])] = parts[3]
    return sorted(found.items())


def modify(context, **keys):
    return context.admin("/runtime_modify?" + "&".join(f"{key.replace('__', '.')}={value}" for key, value in keys.items()), "POST")[0]


# TLVs.

def text(value):
    return base64.b64encode(value.encode()).decode()


def tlvs(*entries):
    """Entries of added_tlvs: (type, value) or (type, a format that starts with `%`)."""
    return [{"type": kind, "format_string": {"text_format_source": {"inline_string": value}}} if "%" in value else {"type": kind, "value": text(value)} for kind, value in entries]


def told(header):
    """The TLVs of a PROXY header of version 2."""
    if header[:12] != b"\r\n\r\n\0\r\nQUIT\n":
        return header.decode("latin-1").split()[:4]
    length = int.from_bytes(header[14:16], "big")
    rest, found = header[16 + {0x11: 12, 0x21: 36}.get(header[13], 0):16 + length], []
    while len(rest) >= 3:
        size = int.from_bytes(rest[1:3], "big")
        value = rest[3:3 + size].decode("latin-1")
        found.append([rest[0], value if size < 100 else [value[:1], size]])
        rest = rest[3 + size:]
    return [header[12], header[13], found]


class Tap:
    """Stands in for the upstreams of one side: keeps what came on a connection before its first request, then answers."""

    def __init__(self, context):
        self.lock, self.before = threading.Lock(), []
        for upstream in context.upstreams.values():
            upstream.http1 = lambda peer, name=upstream.name: self.serve(peer, name)

    def serve(self, peer, name):
        data, first = b"", True
        while more := peer.recv(65536):
            data += more
            at = data.find(b"GET ")
            if at < 0 or b"\r\n\r\n" not in data[at:]:
                continue
            if first:
                with self.lock:
                    self.before.append([name, told(data[:at])])
            first, data = False, data[data.index(b"\r\n\r\n", at) + 4:]
            peer.sendall(reply(200, [("x-upstream", name)], name))


def taps(*asks):
    """A script: what connections began with, for requests with these paths and headers, each from a client of its own."""
    def run(context):
        tap, statuses = Tap(context), []
        for path, headers in asks:
            responses, connection = context.exchange(request(path, headers), wait=PATIENCE)
            statuses += [response.status() for response in responses]
        return [statuses, sorted(tap.before, key=repr)]
    return run


def proxied(**config):
    return extension("envoy.transport_sockets.upstream_proxy_protocol", "transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport", config={"version": "V2", **config},
                     transport_socket=extension("envoy.transport_sockets.raw_buffer", "transport_sockets.raw_buffer.v3.RawBuffer"))


def host_tlvs(*entries):
    return {"metadata": {"typed_filter_metadata": {"envoy.transport_sockets.proxy_protocol": {"@type": "type.googleapis.com/envoy.config.core.v3.PerHostConfig", "added_tlvs": tlvs(*entries)}}}}


def told_tlvs():
    made = []

    def one(name, hosts, config=None, asks=(("/", []),), listener=None, **fields):
        setup = Setup(name, clusters=[cluster("a", localities=[{"lb_endpoints": hosts}], transport_socket=proxied(**(config or {})))], routes=[route("/")], listener=listener or {}, log=None, stats=["tlvs_exceed"], **fields)
        setup.script("told", taps(*asks), ignore=QUIET)
        made.append(setup)
    own = endpoint("a", **host_tlvs((0xE0, "host"), (0xE1, "second")))
    one("tlvs-host", [own])
    one("tlvs-host-and-config", [own], {"added_tlvs": tlvs((0xE1, "config"), (0xE2, "more"))})
    one("tlvs-host-twice", [endpoint("a", **host_tlvs((0xE0, "one"), (0xE0, "two"), (0xE3, "x")))], {"added_tlvs": tlvs((0xE0, "config"), (0xE2, "once"), (0xE2, "again"))})
    one("tlvs-two-hosts", [own, endpoint("b", **host_tlvs((0xE0, "other"))), endpoint("c")], {"added_tlvs": tlvs((0xE2, "all"))}, asks=[("/", [])] * 3)
    one("tlvs-host-other-type", [endpoint("a", metadata={"typed_filter_metadata": {"envoy.transport_sockets.proxy_protocol": {"@type": "type.googleapis.com/envoy.config.core.v3.Pipe", "path": "x"}}})], {"added_tlvs": tlvs((0xE2, "all"))})
    one("tlvs-host-empty", [endpoint("a", **host_tlvs())], {"added_tlvs": tlvs((0xE2, "all"))})
    one("tlvs-host-v1", [own], {"version": "V1"})
    many = [(0xE0 + i, "x" * 30000) for i in range(3)]
    one("tlvs-too-long", [endpoint("a", **host_tlvs(*many))], {"added_tlvs": tlvs((0xEA, "y" * 10), (0xEB, "z" * 6000))})
    one("tlvs-format", [endpoint("a")], {"added_tlvs": tlvs((0xE0, "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"), (0xE1, "%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%"), (0xE2, "%UPSTREAM_CLUSTER%"), (0xE3, "%REQ(x-a)%"), (0xE4, "%PROTOCOL%"),
                                                            (0xE5, "%UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%"), (0xE6, "%UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"), (0xE7, "%ROUTE_NAME%"), (0xE8, "%DYNAMIC_METADATA(a:b)%"), (0xE9, "v=%CONNECTION_ID%!"[:2] + "%ENVIRONMENT(NO_SUCH)%"),
                                                            (0xEA, "%RESPONSE_CODE%"), (0xEB, "%UPSTREAM_HOST_NAME_WITHOUT_PORT%"), (0xEC, "%FILTER_STATE(x:PLAIN)%"), (0xED, "%UPSTREAM_METADATA(m:k)%"))}, asks=[("/", [("x-a", "1")])])
    return made


# Hosts that say they are degraded.

DEGRADED = reply(200, [("x-envoy-degraded", "true")], "x")


def ask(context, answers=(), path="/", headers=()):
    """(upstream, status) of one request."""
    context.answers.load(list(answers))
    responses, connection = context.exchange(request(path, headers), wait=PATIENCE)
    connection.close()
    connection.fate = "closed by the client"
    taken = context.answers.taken()
    return [taken[0]["upstream"] if taken else None, responses[0].status() if responses else None]


def marked(context, count):
    """Waits until `count` hosts are not healthy; their flags."""
    until(lambda: sum(flag != "healthy" for _, flag in flags(context)) == count)
    return sorted(flag for _, flag in flags(context))


def detected(context, *names_):
    return [number(context, f"cluster.a.outlier_detection.{name}") for name in names_]


def events(context, count):
    """Lines of the outlier event log, once there are so many, without what differs from run to run."""
    def read():
        try:
            with open(os.path.join(context.proxy.directory, "events")) as file:
                return [json.loads(line) for line in file.read().splitlines()]
        except (OSError, ValueError):
            return []
    lines = until(lambda: len(read()) >= count and read()) or read()
    for line in lines:
        line["upstream_url"] = "host" if line.get("upstream_url") else ""
        line["timestamp"] = bool(line.get("timestamp"))
        if "secs_since_last_action" in line:
            line["secs_since_last_action"] = "some"
    return lines


def degraded():
    made = []
    quick = {"interval": "0.2s", "base_ejection_time": "0.2s"}
    slow = {"interval": "600s", "base_ejection_time": "600s", "max_ejection_time": "600s"}
    log = {"cluster_manager": {"outlier_detection": {"event_log_path": "@dir@/events"}}}

    def one(name, scripts, hosts=("a", "b", "c", "d"), bootstrap=None, **detection):
        setup = Setup(name, clusters=[cluster("a", list(hosts), outlier_detection=detection)], routes=[route("/")], log=None, bootstrap=bootstrap or log)
        for case, script in scripts.items():
            setup.script(case, script, ignore=QUIET)
        made.append(setup)

    def avoided(context):
        """One host says so: the others take it all."""
        ask(context, [DEGRADED])
        found = marked(context, 1)
        bad = [host for host, flag in flags(context) if flag != "healthy"]

        def others():
            seen = [ask(context)[0] for _ in range(12)]
            return bad[0] not in seen and sorted(seen.count(host) for host in set(seen))
        return [found, until(others), number(context, "cluster.a.membership_degraded"), number(context, "cluster.a.membership_healthy"),
                detected(context, "ejections_detected_degradation", "ejections_active", "ejections_enforced_total", "ejections_total"), events(context, 1)]
    one("degraded-avoided", {"avoided": avoided}, detect_degraded_hosts=True, **slow)

    def everybody(context):
        """No percentage bounds how many."""
        until(lambda: ask(context, [DEGRADED]) and detected(context, "ejections_detected_degradation") == [3])
        return [marked(context, 3), detected(context, "ejections_detected_degradation", "ejections_overflow")]
    one("degraded-all", {"all": everybody}, hosts=("a", "b", "c"), detect_degraded_hosts=True, max_ejection_percent=0, **slow)

    def which(code, value):
        def run(context):
            ask(context, [reply(code, [("x-envoy-degraded", value)], "x")])
            # Failures are counted, by which time the rest of the answer has been looked at as well.
            until(lambda: detected(context, "ejections_detected_consecutive_5xx" if code >= 500 else "ejections_detected_degradation") == [1])
            return [ask(context), flags(context), detected(context, "ejections_detected_degradation")]
        return run
    for code, value in ((200, ""), (200, "false"), (404, "true"), (503, "true"), (500, "true")):
        one(f"degraded-by-{code}-{value or 'empty'}", {"marked": which(code, value)}, hosts=("a",), detect_degraded_hosts=True, consecutive_5xx=1, enforcing_consecutive_5xx=0, max_ejection_percent=100, **slow)
    one("degraded-not-asked", {"none": lambda context: [ask(context, [DEGRADED]), ask(context), flags(context), detected(context, "ejections_detected_degradation")]}, hosts=("a",), **slow)

    def recovers(context):
        ask(context, [DEGRADED])
        until(lambda: detected(context, "ejections_detected_degradation") == [1])
        return [marked(context, 0), number(context, "cluster.a.membership_degraded"), events(context, 2)]
    one("degraded-recovers", {"recovers": recovers}, hosts=("a",), detect_degraded_hosts=True, **quick)

    def both(context):
        """Degraded, then ejected as well: both are shown, and each comes back."""
        ask(context, [DEGRADED])
        first = marked(context, 1)
        ask(context, [reply(503, [], "x")])
        until(lambda: detected(context, "ejections_active") == [1])
        second = marked(context, 1)
        return [first, second, detected(context, "ejections_detected_degradation", "ejections_enforced_consecutive_5xx"), events(context, 2)]
    one("degraded-and-ejected", {"both": both}, hosts=("a",), detect_degraded_hosts=True, consecutive_5xx=1, max_ejection_percent=100, **slow)

    def back(context):
        ask(context, [reply(503, [], "x")])
        until(lambda: detected(context, "ejections_enforced_total") == [1])
        return [marked(context, 0), events(context, 2)]
    one("ejected-recovers", {"events": back}, hosts=("a",), consecutive_5xx=1, max_ejection_percent=100, **quick)

    # Runtime.

    def limits(context):
        """Thresholds are those of runtime, soon."""
        def count(name):
            return detected(context, name)[0]

        def again(name):
            """Failures in a row until a counter grows."""
            before = count(name)
            return bool(until(lambda: ask(context) and ask(context, [reply(500, [], "x")]) and count(name) > before))
        seen = [ask(context, [reply(500, [], "x")]), ask(context, [reply(500, [], "x")]), count("ejections_detected_consecutive_5xx")]
        modify(context, outlier_detection__consecutive_5xx=1, outlier_detection__enforcing_consecutive_5xx=0)
        seen += [again("ejections_detected_consecutive_5xx"), count("ejections_enforced_consecutive_5xx"), count("ejections_overflow")]
        modify(context, outlier_detection__enforcing_consecutive_5xx="", outlier_detection__max_ejection_percent=0)
        seen += [again("ejections_overflow"), count("ejections_enforced_consecutive_5xx")]
        modify(context, outlier_detection__max_ejection_percent=100)
        return [*seen, again("ejections_enforced_consecutive_5xx"), marked(context, 1)]
    one("runtime-outlier", {"thresholds": limits}, hosts=("a",), bootstrap=LAYERS, consecutive_5xx=3, max_ejection_percent=100, **slow)

    def times(context):
        ask(context, [reply(500, [], "x")])
        until(lambda: detected(context, "ejections_active") == [1])
        modify(context, outlier_detection__base_ejection_time_ms=1)
        return marked(context, 0)
    one("runtime-outlier-times", {"taken back": times}, hosts=("a",), bootstrap=LAYERS, consecutive_5xx=1, max_ejection_percent=100, interval="0.3s", base_ejection_time="300s")
    return made


# Hashing by the policy, and what is told of picks.

def picks():
    made = []
    hosts = [endpoint(name, metadata={"filter_metadata": {"envoy.lb": {"hash_key": name}}}) for name in "abcd"]

    def header(name):
        return {"header": {"header_name": name}}
    for kind, message in (("ring_hash", "RingHash"), ("maglev", "Maglev")):
        def one(name, hash_policy, asks, action=None):
            setup = Setup(f"{kind.replace('_', '-')}-{name}", clusters=[cluster("a", localities=[{"lb_endpoints": hosts}], **policy("p", f"{kind}.v3.{message}", consistent_hashing_lb_config={"hash_policy": hash_policy}))], routes=[route("/", to("a", **(action or {})))], log=None)
            setup.script("hosts", lambda context: [ask(context, path=path, headers=headers) for path, headers in asks], ignore=QUIET)
            made.append(setup)
            return setup
        several = [("/", [("x-a", str(i)), ("x-b", "1")]) for i in range(8)] + [("/", [("x-a", "1"), ("x-b", str(i))]) for i in range(4)]
        one("own", [header("x-a")], several)
        one("own-not-the-route's", [header("x-a")], several, {"hash_policy": [header("x-b")]})
        one("route's", [], several, {"hash_policy": [header("x-b")]})
        one("query", [{"query_parameter": {"name": "q"}}], [(f"/?q={i}", []) for i in range(6)])
        one("terminal", [{**header("x-a"), "terminal": True}, header("x-b")], several)
        one("source", [{"connection_properties": {"source_ip": True}}], [("/", [])] * 3)
        cookies = one("cookie", [{"cookie": {"name": "c", "ttl": "60s", "path": "/p"}}], [("/", [("cookie", f"c={i}")]) for i in range(6)])

        def made_cookie(context):
            import re
            responses, _ = context.exchange(request("/"), wait=PATIENCE)
            return [re.sub(r'="[0-9a-f]+"', '="<hash>"', value) for value in responses[0].get("set-cookie")]
        cookies.script("is made", made_cookie, ignore=QUIET)
    chosen = "%DYNAMIC_METADATA(envoy.lb:served)% %DYNAMIC_METADATA(envoy.lb:deep:er)%"
    for name, path in (("flat", ["served"]), ("deep", ["deep", "er"])):
        override = policy("o", "override_host.v3.OverrideHost", override_host_sources=[{"header": "x-host"}], selected_host_key={"key": "envoy.lb", "path": [{"key": key} for key in path]},
                          fallback_policy={"policies": [{"typed_extension_config": extension("rr", "load_balancing_policies.round_robin.v3.RoundRobin")}]})
        setup = Setup(f"selected-{name}", clusters=[cluster("a", ["a"], **override), cluster("b")], routes=[route("/b", to("b")), route("/retry", to("a", retry_policy={"retry_on": "5xx", "num_retries": 1}), response_headers_to_add=[{"header": {"key": "x-served", "value": chosen}}]),
                      route("/", response_headers_to_add=[{"header": {"key": "x-served", "value": chosen}}])], log=chosen)
        setup.get("named", "/", [("x-host", "127.0.0.1:1")])
        setup.get("fallback", "/")
        setup.get("retried", "/retry", upstream=[reply(503, [], "x")])
        setup.get("other cluster", "/b")
        made.append(setup)
    return made


# Sets of hosts that change.

def assignment(context, hosts):
    """Writes the EDS file: hosts by name, or (name, {fields of the endpoint})."""
    endpoints = []
    for host in hosts:
        name, fields = host if isinstance(host, tuple) else (host, {})
        endpoints.append({"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": context.upstreams[name].port}}}, **fields})
    body = {"version_info": "1", "resources": [{"@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment", "cluster_name": "a", "endpoints": [{"lb_endpoints": endpoints}]}]}
    path = os.path.join(context.proxy.directory, "eds.json")
    before = number(context, "cluster.a.update_success")
    with open(path + ".new", "w") as file:
        json.dump(body, file)
    os.rename(path + ".new", path)
    return until(lambda: number(context, "cluster.a.update_success") > before)


def eds(**fields):
    return {"name": "a", "connect_timeout": "10s", "type": "EDS", "eds_cluster_config": {"eds_config": {"path_config_source": {"path": "@dir@/eds.json"}}}, **fields}


EMPTY = json.dumps({"version_info": "0", "resources": [{"@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment", "cluster_name": "a"}]})


def changes():
    made = []
    steps = [["a", ("b", {"load_balancing_weight": 2})], ["a", ("b", {"health_status": "UNHEALTHY"})], ["a", "b"], ["a", "b", "c"]]

    def closes(context):
        """Connections that live after each change; at least one did before."""
        assignment(context, ["a", "b"])
        seen = []
        for hosts in steps:
            until(lambda: ask(context)[0] and number(context, "cluster.a.upstream_cx_active"))
            assignment(context, hosts)
            seen.append(bool(until(lambda: not number(context, "cluster.a.upstream_cx_active"))))
        return seen

    def keeps(context):
        """Only the connection to a host that is gone is closed."""
        assignment(context, ["a", "b"])
        until(lambda: ask(context)[0] and number(context, "cluster.a.upstream_cx_active") == 2)
        for hosts in (*steps, ["b", "c"]):
            assignment(context, hosts)
        until(lambda: number(context, "cluster.a.upstream_cx_destroy"))
        return [number(context, f"cluster.a.upstream_cx_{name}") for name in ("total", "active", "destroy")]
    for name, script, on in (("closes", closes, True), ("keeps", keeps, False)):
        setup = Setup(f"host-set-{name}", clusters=[eds(common_lb_config={"close_connections_on_host_set_change": on}), cluster("x", ["a", "b", "c"])], routes=[route("/", to("a"))], log=None, files={"eds.json": EMPTY})
        setup.script("connections", script, ignore=QUIET)
        made.append(setup)

    def churn(context):
        """Every assignment is used at once and as a whole, however often it changes."""
        names_, seen = "abcdefgh", []
        for round_ in range(12):
            hosts = [name for i, name in enumerate(names_) if (round_ * 7 + i * 3) % 5 < 3] or ["a"]
            assignment(context, hosts)
            until(lambda: number(context, "cluster.a.membership_total") == len(hosts))
            used = until(lambda: sorted({ask(context)[0] for _ in range(len(hosts))}) == sorted(hosts))
            seen.append([used, number(context, "cluster.a.membership_total")])
        return [seen, number(context, "cluster.a.update_rejected"), number(context, "cluster.a.upstream_rq_5xx")]
    big = Setup("churn", clusters=[eds(), cluster("x", list("abcdefgh"))], routes=[route("/", to("a"))], log=None, files={"eds.json": EMPTY})
    big.script("rounds", churn, ignore=QUIET)
    made.append(big)
    return made


def draining():
    """Hosts that drain count neither as unhealthy nor among all, so that they drive no load to the next priority. Every share here is all, nothing, or
    so large that 60 requests do not miss it."""
    made = []
    for name, statuses in (("one", "HHD"), ("all-but-one", "HDDD"), ("unhealthy-too", "HUUD"), ("only", "DD"), ("degraded", "GDDH")):
        words = {"H": "HEALTHY", "U": "UNHEALTHY", "D": "DRAINING", "G": "DEGRADED"}
        hosts = [endpoint("abcd"[i], health_status=words[letter]) for i, letter in enumerate(statuses)]
        setup = Setup(f"draining-{name}", clusters=[cluster("a", localities=[{"lb_endpoints": hosts}, {"priority": 1, "lb_endpoints": [endpoint("e")]}], common_lb_config={"healthy_panic_threshold": {"value": 60}})], routes=[route("/")], log=None,
                      stats=["^cluster.a.membership_(total|healthy|degraded|excluded)$"])
        setup.script("hosts", sequence(count=60, shape=names), ignore=QUIET)
        setup.script("flags", lambda context: flags(context), ignore=QUIET)
        made.append(setup)
    return made


def setups():
    return [*told_tlvs(), *degraded(), *picks(), *changes(), *draining()]
