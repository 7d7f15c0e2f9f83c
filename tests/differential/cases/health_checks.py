"""Active health checks: what a probe looks like, and what each answer does to the host. A probe that arrives tells what became of the
answers to those before it: health flags and counters are read then, so that nothing depends on time."""
import os
import re
import threading
import time

from harness.config import cluster, http2_options, route, typed
from harness.setup import Setup, reply, request

from .balancing import QUIET

# Not "degraded": Envoy counts it up and never down.
COUNTED = ("success", "failure", "network_failure", "passive_failure", "verify_cluster", "healthy")


def state(context):
    """(health flags of the one host, counters of its checks)."""
    flags = [line.rpartition("::")[2] for line in context.admin("/clusters")[1].splitlines() if "::health_flags::" in line]
    counters = {}
    for line in context.admin("/stats?filter=cluster.a.health_check")[1].splitlines():
        name, _, value = line.partition(": ")
        counters[name.rpartition(".")[2]] = int(value)
    return flags, [counters.get(name, 0) for name in COUNTED]


class Probes:
    """Stands in for the script of upstreams: answers probes in order, remembers what they found."""

    def __init__(self, context, answers):
        self.context, self.answers, self.lock = context, answers, threading.Lock()
        self.heads, self.states, self.done = [], [], threading.Event()

    def next(self, record):
        probe = record["line"] != "h2" and "/hc" in record["line"] or any(value in ("/hc", "/grpc.health.v1.Health/Check") for _, value in record["headers"])
        if not probe:
            return self.context.answers.next(record)
        with self.lock:
            number = len(self.states)
            if number > len(self.answers):
                return self.answers[-1] if self.answers else None
            self.heads.append(record)
            self.states.append(state(self.context))
            if number == len(self.answers):
                self.done.set()
                return self.answers[-1] if self.answers else None
            return self.answers[number]


def probed(answers, head=False, traffic=0):
    """A script: the host's state at each probe while the answers are given, relative to the first; with `head` what a probe says."""
    def run(context):
        probes = Probes(context, answers)
        for upstream in context.upstreams.values():
            upstream.script = probes
        if not probes.done.wait(30):
            raise RuntimeError(f"only {len(probes.states)} probes of {len(answers) + 1} came")
        first = probes.states[0][1]
        shown = [[flags, [now - before for now, before in zip(counters[:-1], first)], counters[-1]] for flags, counters in probes.states]
        if head:
            record = probes.heads[0]
            shown.append([record["line"], sorted((name.lower(), value) for name, value in record["headers"]), record["body"].hex()])
        for _ in range(traffic):
            context.answers.load([])
            responses, _ = context.exchange(request("/"), source="127.0.0.1")
            shown.append(responses[0].status())
        return shown
    return run


def checked(fields, **more):
    check = {"timeout": "2s", "interval": "0.03s", "no_traffic_interval": "0.03s", "unhealthy_threshold": 2, "healthy_threshold": 2, **fields}
    return cluster("a", health_checks=[check], **more)


OK, BAD = reply(200), reply(503)


def setups():
    made = []

    def one(name, check, cases, upstreams=None, **fields):
        setup = Setup(name, clusters=[checked(check, **fields)], routes=[route("/")], upstreams=upstreams or {}, log=None)
        for case, script in cases.items():
            setup.script(case, script, ignore=QUIET)
        made.append(setup)

    def http(**fields):
        return {"http_health_check": {"path": "/hc", **fields}}
    fates = {"timeout": [3], "closed": ["close"], "reset": ["reset"], "cut": [b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc", "close"], "garbage": [b"nonsense\r\n\r\n", "close"]}
    one("http-codes", http(), {"good": probed([OK, OK], head=True), "bad": probed([BAD, OK, OK, OK], traffic=1), "bad twice": probed([BAD, BAD, OK, OK, OK]), "not found": probed([reply(404), OK, OK]),
                               "redirect": probed([reply(302, [("location", "/")]), OK, OK]), "no content": probed([reply(204, length=False), OK, OK]), "flapping": probed([BAD, OK, BAD, OK, OK, OK])})
    for fate, actions in fates.items():
        one(f"http-{fate}", http(), {"once": probed([actions, OK, OK]), "twice": probed([actions, actions, OK, OK, OK]), "between": probed([actions, OK, actions, OK])})
    one("http-immediate", http(), {"with 200": probed([reply(200, [("x-envoy-immediate-health-check-fail", "true")]), OK, OK, OK]), "with 503": probed([reply(503, [("x-envoy-immediate-health-check-fail", "true")]), OK, OK, OK])})
    one("http-degraded", http(), {"header": probed([reply(200, [("x-envoy-degraded", "true")]), reply(200, [("x-envoy-degraded", "")]), OK, OK], traffic=1), "with 503": probed([reply(503, [("x-envoy-degraded", "true")]), OK, OK])})
    one("http-close", http(), {"close": probed([reply(200, [("connection", "close")]), OK, reply(503, [("connection", "close")]), OK, OK])})
    one("http-no-reuse", {**http(), "reuse_connection": False}, {"codes": probed([OK, BAD, OK, OK], head=True)})
    ranges = http(expected_statuses=[{"start": 200, "end": 205}, {"start": 404, "end": 405}], retriable_statuses=[{"start": 500, "end": 504}, {"start": 204, "end": 210}])
    one("http-statuses", ranges, {"expected": probed([reply(204, length=False), reply(404), OK]), "retriable once": probed([BAD, OK, OK]), "retriable twice": probed([BAD, reply(500), OK, OK, OK]), "other": probed([reply(504), OK, OK]),
                                  "retriable then other": probed([BAD, reply(504), OK, OK])})
    one("http-thresholds", {**http(retriable_statuses=[{"start": 503, "end": 504}]), "unhealthy_threshold": 3, "healthy_threshold": 3}, {"count": probed([BAD, BAD, OK, BAD, BAD, BAD, OK, OK, BAD, OK, OK, OK, OK])})
    one("http-request", http(host="check.test", method="HEAD", request_headers_to_add=[{"header": {"key": "x-a", "value": "1"}}, {"header": {"key": "x-a", "value": "2"}}, {"header": {"key": "user-agent", "value": "own"}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}],
                             request_headers_to_remove=["x-envoy-gone"]), {"head": probed([reply(200, length=False)], head=True)})
    one("http-removed", http(request_headers_to_remove=["user-agent"]), {"head": probed([OK], head=True)})
    one("http-post", http(method="POST"), {"head": probed([OK], head=True)})
    one("http-send", http(method="POST", send={"text": "68656c6c6f"}), {"head": probed([OK, OK], head=True)})
    one("http-options", http(method="OPTIONS"), {"head": probed([OK], head=True)})
    named = [{"lb_endpoints": [{"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": "@port:a@"}}, "hostname": "endpoint.test"}}]}]
    one("http-hostname", http(), {"head": probed([OK], head=True)}, localities=named)
    own = [{"lb_endpoints": [{"endpoint": {**named[0]["lb_endpoints"][0]["endpoint"], "health_check_config": {"hostname": "config.test"}}}]}]
    one("http-config-hostname", http(host="check.test"), {"head": probed([OK], head=True)}, localities=own)
    one("http-receive", http(receive=[{"text": "6f6b"}, {"text": "796573"}]), {"both": probed([reply(200, body="ok or yes"), OK, reply(200, body="ok yes"), reply(200, body="ok yes"), reply(200, body="ok yes")]),
                                                                              "order": probed([reply(200, body="yes ok"), reply(200, body="okyes"), reply(200, body="okyes")])})
    one("http-buffer", http(receive=[{"text": "6f6b"}], response_buffer_size=4), {"far": probed([reply(200, body="....ok"), reply(200, body="..ok."), reply(200, body="..ok.")])})
    one("http-service", http(service_name_matcher={"prefix": "svc"}), {"names": probed([reply(200, [("x-envoy-upstream-healthchecked-cluster", "svc-1")]), OK, reply(200, [("x-envoy-upstream-healthchecked-cluster", "other")]), *[reply(200, [("x-envoy-upstream-healthchecked-cluster", "svc")])] * 3])})
    h2 = {"status": lambda code, *pairs: [("headers", [(":status", str(code)), *pairs], True)]}
    good, bad = h2["status"](200), h2["status"](503)
    one("http2", http(codec_client_type="HTTP2"), {"codes": probed([good, bad, good, good], head=True), "reset": probed([[("reset", 8)], [("reset", 8)], good, good, good]), "goaway": probed([[("goaway", 0), ("headers", [(":status", "200")], True)], good, good])},
        {"a": "h2"}, typed_extension_protocol_options=http2_options())
    tcp = {"tcp_health_check": {"send": {"text": b"GET /hc HTTP/1.1\r\nhost: t\r\n\r\n".hex()}, "receive": [{"text": b"200 OK".hex()}]}}
    one("tcp", tcp, {"good": probed([OK, OK]), "wrong": probed([BAD, OK, OK, OK])})
    for fate in ("timeout", "closed", "reset"):
        one(f"tcp-{fate}", tcp, {"once": probed([fates[fate], OK, OK]), "twice": probed([fates[fate], fates[fate], OK, OK, OK])})

    def serving(number, status="0", code="200", early=False):
        message = b"\0\0\0\0\2\x08" + bytes([number]) if number is not None else b""
        start = [(":status", code), ("content-type", "application/grpc")]
        if early:
            return [("headers", [*start, ("grpc-status", status)], True)]
        return [("headers", start, False), *([("data", message, False)] if message else []), ("headers", [("grpc-status", status)], True)]
    up = serving(1)
    one("grpc", {"grpc_health_check": {"service_name": "svc", "authority": "auth.test", "initial_metadata": [{"header": {"key": "x-m", "value": "1"}}]}}, {
        "serving": probed([up, up], head=True), "not serving": probed([serving(2), up, up, up]), "unknown": probed([serving(0), up, up, up]), "service unknown": probed([serving(3), up, up, up]), "status": probed([serving(1, "14"), up, up, up]),
        "trailers only": probed([serving(None, "12", early=True), up, up, up]), "no message": probed([serving(None), up, up, up]), "http 503": probed([[("headers", [(":status", "503")], True)], up, up, up]),
        "reset": probed([[("reset", 8)], [("reset", 8)], up, up, up])}, {"a": "h2"}, typed_extension_protocol_options=http2_options())
    sinks = {"event_logger": [{"name": "sink", "typed_config": typed("health_check.event_sinks.file.v3.HealthCheckEventFileSink", event_log_path="@dir@/sink")}], "event_log_path": "@dir@/path"}
    story = [reply(503), OK, OK, [3], ["close"], ["close"], reply(200, [("x-envoy-degraded", "1")]), OK, OK, OK]
    described = [{"locality": {"region": "r", "zone": "z"}, "lb_endpoints": [{"endpoint": {**named[0]["lb_endpoints"][0]["endpoint"]}, "metadata": {"filter_metadata": {"envoy.lb": {"v": ["1", 2, 2.5, None, True, {"k": "\"q\""}]}}}}]}]

    def logged(context):
        """The lines that are there once the story is told; more checks may follow, so that as many are compared as there are for sure."""
        probed(story)(context)
        lines, deadline = {}, time.monotonic() + 15
        for name in ("sink", "path"):
            while time.monotonic() < deadline:
                with open(os.path.join(context.proxy.directory, name)) as file:
                    lines[name] = re.sub(r'"timestamp":"[^"]*"', '"timestamp":""', file.read()).replace(str(context.upstreams["a"].port), "<a>").splitlines()
                if len(lines[name]) >= 4:
                    break
                time.sleep(0.02)
        # What was there before the story began: as many successes as there were probes.
        return {name: [line for line in found if "successful_health_check_event" not in line] for name, found in lines.items()}
    for label, fields in (("quiet", {}), ("always", {"always_log_health_check_failures": True, "always_log_health_check_success": True})):
        one(f"events-{label}", {**http(retriable_statuses=[]), **sinks, **fields}, {"story": logged}, localities=described)

    def passive(context):
        """A response of traffic says that the host fails: it is out at once, and back when checks pass."""
        seen = []
        for header in ([], [("x-envoy-immediate-health-check-fail", "true")]):
            context.answers.load([reply(200, header, "x")])
            context.exchange(request("/"), source="127.0.0.1")
            deadline = time.monotonic() + 15
            while header and time.monotonic() < deadline and not state(context)[1][3]:
                time.sleep(0.01)
            flags, counters = state(context)
            seen.append([flags if not header else [], counters[3]])
        return seen
    slow = Setup("passive", clusters=[checked({**http(), "interval": "0.2s", "no_traffic_interval": "0.2s"}, common_lb_config={"healthy_panic_threshold": {"value": 0}})], routes=[route("/")], log=None)
    slow.script("immediate", passive, ignore=QUIET)
    made.append(slow)
    refused = Setup("refused", clusters=[checked(http(), common_lb_config={"healthy_panic_threshold": {"value": 0}})], routes=[route("/")], upstreams={"a": "refused"}, log=None)

    def unreachable(context):
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline:
            flags, counters = state(context)
            if counters[2] >= 3:
                break
            time.sleep(0.02)
        responses, _ = context.exchange(request("/"), source="127.0.0.1")
        return [flags, counters[0], responses[0].status()]
    refused.script("state", unreachable, ignore=QUIET)
    made.append(refused)
    return made
