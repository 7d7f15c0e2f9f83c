"""Retries: which failures are tried again, how often, what is sent, and what is told about it."""
from harness.config import cluster, route, to
from harness.setup import Setup, reply

OK = reply(200, [], "fine")
FAILURES = {
    "500": [reply(500, [], "bad", reason="Internal Server Error")], "502": [reply(502, [], "bad", reason="x")], "503": [reply(503, [], "bad", reason="x")], "504": [reply(504, [], "bad", reason="x")],
    "404": [reply(404, [], "bad", reason="x")], "409": [reply(409, [], "bad", reason="x")], "418": [reply(418, [], "bad", reason="x")], "429": [reply(429, [("x-envoy-ratelimited", "true")], "slow", reason="x")],
    "header": [reply(200, [("x-retry-me", "1")], "bad")], "close": [["close"]], "reset": [["reset"]], "garbage": [[b"nonsense\r\n\r\n", "close"]],
    "half head": [[b"HTTP/1.1 200 OK\r\nx", "close"]], "grpc": [reply(200, [("content-type", "application/grpc"), ("grpc-status", "14")])], "503 twice": [reply(503, [], "one"), reply(503, [], "two")],
    "503 thrice": [reply(503, [], "one"), reply(503, [], "two"), reply(503, [], "three")],
}
POLICIES = {
    "5xx": {"retry_on": "5xx"}, "gateway-error": {"retry_on": "gateway-error"}, "reset": {"retry_on": "reset"}, "connect-failure": {"retry_on": "connect-failure"},
    "retriable-4xx": {"retry_on": "retriable-4xx"}, "refused-stream": {"retry_on": "refused-stream"}, "envoy-ratelimited": {"retry_on": "envoy-ratelimited"},
    "reset-before-request": {"retry_on": "reset-before-request"}, "codes": {"retry_on": "retriable-status-codes", "retriable_status_codes": [418, 404]},
    "headers": {"retry_on": "retriable-headers", "retriable_headers": [{"name": "x-retry-me", "present_match": True}]}, "grpc": {"retry_on": "unavailable,cancelled"},
    "two": {"retry_on": "5xx", "num_retries": 2}, "zero": {"retry_on": "5xx", "num_retries": 0}, "unknown": {"retry_on": "nonsense"}, "many": {"retry_on": "5xx,reset,connect-failure,retriable-4xx", "num_retries": 3},
    "only-get": {"retry_on": "5xx", "retriable_request_headers": [{"name": ":method", "string_match": {"exact": "GET"}}]},
    "http3": {"retry_on": "http3-post-connect-failure"},
}
BACK_OFF = {"retry_back_off": {"base_interval": "0.001s", "max_interval": "0.002s"}}
STATS = ["^cluster.a.upstream_rq_(retry|total|completed|[0-9]|timeout|per_try)", "^cluster.a.(external|retry).upstream", "^http.test.downstream_rq_[0-9]"]


def policies():
    made = []
    for name, policy in POLICIES.items():
        setup = Setup(f"on-{name}", routes=[route("/", to("a", retry_policy={**BACK_OFF, **policy}))], stats=STATS)
        for failure, answers in FAILURES.items():
            setup.get(failure, "/", upstream=[*answers, *([OK] * 3 if "twice" not in failure else [])])
        setup.get("post 503", "/", method="POST", body=b"hello", upstream=[*FAILURES["503"]])
        setup.get("post reset", "/", method="POST", body=b"hello", upstream=[*FAILURES["reset"]])
        setup.get("chunked 503", "/", [("transfer-encoding", "chunked")], method="POST", body=b"5\r\nhello\r\n0\r\n\r\n", upstream=[*FAILURES["503"]])
        made.append(setup)
    none = Setup("none", stats=STATS)
    for failure, answers in FAILURES.items():
        none.get(failure, "/", upstream=[*answers, OK, OK])
    for name, headers in {"retry-on": [("x-envoy-retry-on", "5xx")], "retry-on max": [("x-envoy-retry-on", "5xx"), ("x-envoy-max-retries", "2")], "grpc-on": [("x-envoy-retry-grpc-on", "unavailable")],
                          "codes": [("x-envoy-retry-on", "retriable-status-codes"), ("x-envoy-retriable-status-codes", "503,418")],
                          "names": [("x-envoy-retry-on", "retriable-headers"), ("x-envoy-retriable-header-names", "x-retry-me,x-b")], "max only": [("x-envoy-max-retries", "3")],
                          "unknown": [("x-envoy-retry-on", "nope")], "max zero": [("x-envoy-retry-on", "5xx"), ("x-envoy-max-retries", "0")]}.items():
        for failure in ("503", "503 twice", "header", "grpc"):
            none.get(f"by header {name} {failure}", "/", headers, upstream=[*FAILURES[failure]])
    made.append(none)
    return made


def others():
    counted = Setup("attempt-count", vhosts=[{"name": "v", "domains": ["*"], "include_request_attempt_count": True, "include_attempt_count_in_response": True,
                                              "retry_policy": {"retry_on": "5xx,connect-failure", "num_retries": 2, **BACK_OFF}, "routes": [route("/refused", to("refused")), route("/", to("a"))]}],
                    clusters=[cluster("a"), cluster("refused")], upstreams={"refused": "refused"}, stats=STATS + ["^cluster.refused.upstream_(rq|cx)_(retry|total|connect)"])
    counted.get("first", "/")
    counted.get("second", "/", upstream=[*FAILURES["503"]])
    counted.get("exhausted", "/", upstream=[*FAILURES["503 thrice"]])
    counted.get("local", "/refused")
    counted.get("existing", "/", [("x-envoy-attempt-count", "9")])
    previous = Setup("previous-hosts", clusters=[cluster("a", ["a", "b"])], routes=[route("/", to("a", retry_policy={
        **BACK_OFF, "retry_on": "5xx", "num_retries": 1, "host_selection_retry_max_attempts": 5,
        "retry_host_predicate": [{"name": "envoy.retry_host_predicates.previous_hosts", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"}}]}))])

    def both(context):
        seen = []
        for _ in range(4):
            context.answers.load([reply(503, [], "x")])
            context.exchange(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
            seen.append(len({record["upstream"] for record in context.answers.taken()}))
        return seen
    previous.script("both hosts", both, ignore=("upstream", "log", "headers*", "body*"))
    large = Setup("buffer-limit", vhosts=[{"name": "v", "domains": ["*"], "per_request_buffer_limit_bytes": 100, "routes": [route("/", to("a", retry_policy={**BACK_OFF, "retry_on": "5xx"}))]}], stats=["shadow_abandoned", "upstream_rq_retry"])
    large.get("fits", "/", method="POST", body=b"x" * 50, upstream=[*FAILURES["503"]])
    large.get("too large", "/", method="POST", body=b"x" * 500, upstream=[*FAILURES["503"]])
    breaker = Setup("breaker", clusters=[cluster("a", circuit_breakers={"thresholds": [{"max_retries": 0}]})], routes=[route("/", to("a", retry_policy={**BACK_OFF, "retry_on": "5xx"}))], stats=STATS + ["overflow"])
    breaker.get("503", "/", upstream=[*FAILURES["503"]])
    refuse = Setup("no-requests", clusters=[cluster("a", circuit_breakers={"thresholds": [{"max_requests": 0}]})], stats=STATS + ["overflow"])
    refuse.get("get", "/")
    refuse.get("grpc", "/", [("content-type", "application/grpc")], method="POST")
    connections = Setup("no-connections", clusters=[cluster("a", circuit_breakers={"thresholds": [{"max_pending_requests": 0}]})], stats=STATS + ["overflow"])
    connections.get("get", "/")
    mirror = Setup("mirror", clusters=[cluster("a"), cluster("b")], routes=[route("/all", to("a", request_mirror_policies=[{"cluster": "b"}])), route("/none", to("a", request_mirror_policies=[{"cluster": "b", "runtime_fraction": {"default_value": {"numerator": 0}}}])),
                   route("/plain", to("a", request_mirror_policies=[{"cluster": "b", "disable_shadow_host_suffix_append": True}]))], stats=["^cluster.b.upstream_rq_(total|completed|200)"])
    for path in ("/all", "/none", "/plain"):
        mirror.script(path, lambda context, path=path: mirrored(context, path), ignore=("upstream",))
    return [counted, previous, large, breaker, refuse, connections, mirror]


def mirrored(context, path):
    import time
    context.exchange(b"POST " + path.encode() + b" HTTP/1.1\r\nHost: h:80\r\nContent-Length: 3\r\n\r\nabc")
    time.sleep(0.2)
    return sorted([record["upstream"], record["line"], sorted(context.names.headers(record["headers"])), record["body"].decode()] for record in context.answers.taken())


def setups():
    return policies() + others()
