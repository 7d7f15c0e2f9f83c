"""Load reports out of band, and connections: how they are made (happy eyeballs, bound sources, ahead of requests) and how long they last.
Nothing here is timed: scripts wait for what they compare, for as long as a slow machine needs."""
import struct
import threading
import time

from harness.config import cluster, endpoint, extension, http2_options, route, typed
from harness.setup import Setup, request

from .balancing import QUIET
from .upstream_more import PATIENCE, ask, number, policy, until


# Load reports.

def load(rate, utilization):
    """A length-prefixed OrcaLoadReport: `rps_fractional` and `application_utilization`."""
    message = b"\x31" + struct.pack("<d", rate) + b"\x49" + struct.pack("<d", utilization)
    return b"\0" + len(message).to_bytes(4, "big") + message


class Loads:
    """Stands in for the upstreams' script: answers streams of load reports by host, counts them, keeps what they asked."""

    def __init__(self, context, answers):
        self.context, self.answers, self.lock, self.asked, self.heads = context, answers, threading.Lock(), {}, {}
        for upstream in context.upstreams.values():
            upstream.script = self

    def next(self, record):
        pairs = dict(record["headers"])
        if not pairs.get(":path", "").endswith("/StreamCoreMetrics"):
            return self.context.answers.next(record)
        with self.lock:
            name = record["upstream"]
            self.asked[name] = self.asked.get(name, 0) + 1
            self.heads[name] = [sorted(record["headers"]), record["body"].hex()]
            answers = self.answers[name]
            return answers[min(self.asked[name], len(answers)) - 1]


GRPC = [(":status", "200"), ("content-type", "application/grpc")]


def reports(*messages):
    return [("headers", GRPC, False), *[("data", message, False) for message in messages]]


def weights(context):
    port = {str(upstream.port): key for key, upstream in context.upstreams.items()}
    lines = [line.split("::") for line in context.admin("/clusters")[1].splitlines()]
    return sorted((port[parts[1].rpartition(":")[2]], int(parts[3])) for parts in lines if len(parts) == 4 and parts[0] == "a" and parts[2] == "weight")


def loads():
    made = []
    kind = "client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin"

    def one(name, script, hosts="ab", **fields):
        fields = {"enable_oob_load_report": True, "oob_reporting_period": "0.1s", "blackout_period": "0s", "weight_update_period": "0.1s", **fields}
        setup = Setup(f"oob-{name}", clusters=[cluster("a", list(hosts), **policy("w", kind, **fields), typed_extension_protocol_options=http2_options())], upstreams={host: "h2" for host in hosts}, routes=[route("/")], log=None)
        setup.script("story", script, ignore=QUIET)
        made.append(setup)

    def stat(context, name):
        return number(context, f"cluster.a.lb_orca_oob.{name}")

    def weighed(context):
        seen = Loads(context, {"a": [reports(load(300, 1.0))], "b": [reports(load(10, 1.0), load(100, 1.0))]})
        until(lambda: weights(context) == [("a", 300), ("b", 100)])
        heads = [[[name, value if name != ":authority" else context.names.text(value)] for name, value in seen.heads["a"][0]], seen.heads["a"][1]]
        return [weights(context), heads, stat(context, "report_errors"), stat(context, "stream_terminated"), stat(context, "active_sessions")]
    one("weights", weighed)

    def fates(context):
        """What ends a stream for good, and what makes another."""
        seen = Loads(context, {"a": [[("headers", [*GRPC, ("grpc-status", "12")], True)]], "b": [[("headers", [*GRPC, ("grpc-status", "14")], True)]], "c": [[("headers", [(":status", "404")], True)]],
                               "d": [[("reset", 8)], [*reports(load(1, 1.0)), ("headers", [("grpc-status", "0")], True)], [*reports(load(1, 1.0)), ("headers", [("grpc-status", "12")], True)]], "e": [reports(b"\1\0\0\0\0")]})

        def over():
            enough = stat(context, "reports_received") >= 1 and stat(context, "stream_failures") >= 4
            return enough and stat(context, "stream_terminated") == 3 and stat(context, "active_sessions") == 2 and all(seen.asked.get(host, 0) >= 2 for host in "be")
        # A stream that says nothing for three periods is given up, which no slow machine must come near.
        return [until(over, 2 * PATIENCE), [seen.asked.get(host) for host in "acd"]]
    one("fates", fates, hosts="abcde", oob_reporting_period="5s")

    def useless(context):
        """Reports that say nothing of the load are counted, and weigh nothing."""
        Loads(context, {"a": [reports(load(0, 1.0), load(5, 0.0), load(7, 1.0))], "b": [reports(load(9, 1.0))]})
        until(lambda: stat(context, "report_errors") >= 2 and weights(context) == [("a", 7), ("b", 9)])
        return [weights(context), stat(context, "report_errors") >= 2]
    one("useless", useless)
    return made


# Connections: how they are made, and how long they last.

def crowded(upstream):
    """Makes a listener take no more connections: those who connect wait for ever."""
    import socket
    upstream.socket.listen(0)
    waiting = []
    for _ in range(8):
        peer = socket.socket()
        peer.setblocking(False)
        peer.connect_ex(("127.0.0.1", upstream.port))
        waiting.append(peer)
    return waiting


def connections():
    made = []

    def several(first, *others, host="127.0.0.1"):
        def at(name, ip="127.0.0.1"):
            return {"socket_address": {"address": ip, "port_value": f"@port:{name}@"}}
        return {"endpoint": {"address": at(first, host), "additional_addresses": [{"address": at(name)} for name in others]}}

    def eyes(name, hosts, crowd=(), **fields):
        kinds = {host: "refused" for host in "rs"}
        setup = Setup(f"eyeballs-{name}", clusters=[cluster("a", localities=[{"lb_endpoints": [hosts]}], **{"connect_timeout": "30s", **fields})], upstreams=kinds, routes=[route("/")], log=None)

        def run(context):
            held = [crowded(context.upstreams[host]) for host in crowd]
            try:
                return ask(context)
            finally:
                for peer in [peer for peers in held for peer in peers]:
                    peer.close()
        setup.script("ask", run, ignore=QUIET)
        made.append(setup)
    eyes("first", several("a", "b"))
    eyes("refused", several("r", "b"))
    eyes("refused-v6", several("a", "b", host="::1"))
    eyes("two-refused", several("r", "s", "b"))
    eyes("all-refused", several("r", "s"))
    eyes("hangs", several("r", "b"), crowd="r")
    eyes("hangs-and-refused", several("r", "s", "b"), crowd="r")
    eyes("hangs-v4-first", several("b", "c", host="::1"), upstream_connection_options={"happy_eyeballs_config": {"first_address_family_version": "V4", "first_address_family_count": 1}})

    # A jitter of nothing, and of everything: connections end, and not before their time.
    for jitter in (None, {"value": 100.0}):
        options = {"max_connection_duration": "0.3s", **({"max_connection_duration_jitter": jitter} if jitter else {})}
        label = "jitter" if jitter else "plain"

        def lasts(context):
            began = time.monotonic()
            ask(context)
            until(lambda: number(context, "cluster.a.upstream_cx_destroy") == 1)
            early = time.monotonic() - began < 0.2
            return [early, number(context, "cluster.a.upstream_cx_max_duration_reached"), ask(context), number(context, "cluster.a.upstream_cx_total")]
        setup = Setup(f"duration-upstream-{label}", clusters=[cluster("a", typed_extension_protocol_options={"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": typed("upstreams.http.v3.HttpProtocolOptions", explicit_http_config={"http_protocol_options": {}}, common_http_protocol_options=options)})],
                      routes=[route("/")], log=None)
        setup.script("idle", lasts, ignore=QUIET)
        made.append(setup)

        def kept(context):
            began = time.monotonic()
            connection = context.connect()
            context.exchange(request("/"), connection=connection, wait=PATIENCE)
            until(lambda: connection.fate != "kept" or connection.poll(0.05))
            return [time.monotonic() - began < 0.2, connection.fate, number(context, "http.test.downstream_cx_max_duration_reached")]
        setup = Setup(f"duration-downstream-{label}", hcm={"common_http_protocol_options": options, "drain_timeout": "0.05s"}, routes=[route("/")], log=None)
        setup.script("idle", kept, ignore=QUIET)
        made.append(setup)

    # Connections that are made ahead, and those that are not.
    eager = {"metadata": {"filter_metadata": {"pool": {"eager": True}}}}
    wanted = {"filter": "pool", "path": [{"key": "eager"}], "value": {"bool_match": True}}

    def ahead(context):
        ask(context)
        ask(context)
        until(lambda: number(context, "cluster.a.upstream_cx_total") >= 4, 1 if context.case.name == "nobody" else PATIENCE)
        return [number(context, "cluster.a.upstream_cx_total"), number(context, "cluster.a.upstream_cx_preconnect_skipped") > 0]
    for case, hosts in (("everybody", [endpoint("a", **eager), endpoint("b", **eager)]), ("nobody", ["a", "b"])):
        setup = Setup(f"preconnect-{case}", clusters=[cluster("a", localities=[{"lb_endpoints": [host if isinstance(host, dict) else endpoint(host) for host in hosts]}], preconnect_policy={"per_upstream_preconnect_ratio": 2.0, "preconnect_enabled_metadata": wanted})], routes=[route("/")], log=None)
        setup.script(case, ahead, ignore=QUIET)
        made.append(setup)
    own = {"upstream_bind_config": {"source_address": {"address": "127.0.0.3", "port_value": 0}, "local_address_selector": extension("s", "envoy.config.upstream.local_address_selector.v3.DefaultLocalAddressSelector"),
                                    "extra_source_addresses": [{"address": {"address": "::1", "port_value": 0}, "socket_options": {"socket_options": [{"level": 6, "name": 1, "int_value": 1, "state": "STATE_PREBIND"}]}}]}}
    bound = Setup("bound", clusters=[cluster("a", **own)], routes=[route("/")], log="%UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%")
    bound.get("source", "/")
    made.append(bound)
    return made


def setups():
    return [*loads(), *connections()]
