"""Deadlines: who answers what when something takes too long. Times are far apart so that a busy machine does not change the outcome."""
from harness.config import cluster, route, to
from harness.setup import Setup, reply, request

SLOW = [[4.5, reply(200, [], "late")]]
HALF = [[b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n12345", 4.5, b"67890"]]
STATS = ["timeout", "^cluster.a.upstream_rq_([0-9]|per_try|max)", "max_duration"]


def setups():
    route_ = Setup("route", routes=[route("/none", to("a", timeout="0s")), route("/idle", to("a", timeout="15s", idle_timeout="0.9s")), route("/max", to("a", max_stream_duration={"max_stream_duration": "0.9s"})),
                                    route("/try", to("a", timeout="9s", retry_policy={"retry_on": "5xx", "num_retries": 1, "per_try_timeout": "0.9s"})),
                                    route("/tryidle", to("a", timeout="9s", retry_policy={"retry_on": "connect-failure", "per_try_idle_timeout": "0.9s"})),
                                    route("/grpc", to("a", max_stream_duration={"grpc_timeout_header_max": "1.2s"})), route("/grpc0", to("a", timeout="0.9s", max_stream_duration={"grpc_timeout_header_max": "0s"})),
                                    route("/oldgrpc", to("a", max_grpc_timeout="1.2s")), route("/offset", to("a", max_stream_duration={"grpc_timeout_header_max": "0s", "grpc_timeout_header_offset": "0.15s"})),
                                    route("/hedge", to("a", timeout="9s", hedge_policy={"hedge_on_per_try_timeout": True}, retry_policy={"retry_on": "5xx", "num_retries": 1, "per_try_timeout": "0.9s"})),
                                    route("/", to("a", timeout="0.9s"))], stats=STATS)
    for path in ["/", "/idle", "/max", "/try", "/tryidle"]:
        route_.get(f"{path} slow", path, upstream=SLOW * 2)
        route_.get(f"{path} half", path, upstream=HALF)
        route_.get(f"{path} fast", path)
        route_.get(f"{path} post", path, method="POST", body=b"hello", upstream=SLOW * 2)
        route_.get(f"{path} grpc", path, [("content-type", "application/grpc")], method="POST", upstream=SLOW * 2)
        route_.http2(f"{path} h2 slow", path, upstream=SLOW * 2)
    route_.get("none header", "/none", [("x-envoy-upstream-rq-timeout-ms", "900")], upstream=SLOW)
    route_.get("header shorter", "/idle", [("x-envoy-upstream-rq-timeout-ms", "600")], upstream=SLOW)
    route_.get("header garbage", "/", [("x-envoy-upstream-rq-timeout-ms", "abc")], upstream=SLOW)
    route_.get("header zero", "/", [("x-envoy-upstream-rq-timeout-ms", "0")], upstream=[[1.8, reply(200, [], "late")]])
    route_.get("per try header", "/try", [("x-envoy-upstream-rq-per-try-timeout-ms", "300")], upstream=SLOW)
    route_.get("alt response", "/", [("x-envoy-upstream-rq-timeout-alt-response", "1")], upstream=SLOW)
    route_.get("expected", "/none", [("x-envoy-expected-rq-timeout-ms", "900")])
    for path in ("/grpc", "/grpc0", "/oldgrpc", "/offset"):
        for value in ("300m", "10S", "bad", "", None):
            headers = [("content-type", "application/grpc")] + ([("grpc-timeout", value)] if value is not None else [])
            route_.get(f"{path} {value}", path, headers, method="POST")
    route_.get("grpc expires", "/grpc", [("content-type", "application/grpc"), ("grpc-timeout", "10S")], method="POST", upstream=SLOW)
    route_.get("hedge", "/hedge", upstream=[[3.0, reply(200, [], "slow")], reply(200, [], "fast")], ignore=("upstream",))

    expected = Setup("expected-header", router={"respect_expected_rq_timeout": True}, routes=[route("/", to("a", timeout="9s"))])
    expected.get("shorter", "/", [("x-envoy-expected-rq-timeout-ms", "900")], upstream=SLOW)
    expected.get("plain", "/")

    manager = Setup("manager", hcm={"stream_idle_timeout": "1.2s", "request_timeout": "1.5s", "request_headers_timeout": "1.2s", "common_http_protocol_options": {"idle_timeout": "1.8s"}}, stats=STATS, linger=3.6)
    manager.raw("idle connection", b"", methods=[], wait=0.3)
    manager.raw("half a head", b"GET / HTTP/1.1\r\nHost:", wait=4.5)
    manager.raw("half a body", b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nabc", wait=4.5)
    manager.raw("slow body", b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\n\r\n", 0.6, b"a", 0.6, b"b", 0.6, b"c", 0.6, b"d", wait=4.5)
    manager.raw("slow upstream", b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", upstream=SLOW, wait=6.0)
    manager.raw("half response", b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", upstream=HALF, wait=6.0)
    manager.raw("after response", b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")

    duration = Setup("durations", hcm={"common_http_protocol_options": {"max_stream_duration": "1.2s"}}, stats=STATS)
    duration.get("stream", "/", upstream=SLOW)
    duration.get("half", "/", upstream=HALF)
    duration.get("fast", "/")
    lifetime = Setup("lifetime", hcm={"common_http_protocol_options": {"max_connection_duration": "1.2s", "max_requests_per_connection": 2}, "drain_timeout": "0.6s"}, stats=STATS + ["downstream_cx_(max|drain|total)"], linger=3.0)
    get = request("/")
    lifetime.raw("idle", get)
    lifetime.raw("two", get + get, methods=["GET"] * 2)
    lifetime.raw("three", get + get + get, methods=["GET"] * 3, wait=3.0)
    lifetime.raw("late", get, 2.1, get, methods=["GET"] * 2, wait=3.0)
    connect = Setup("cluster", clusters=[cluster("a", typed_extension_protocol_options={"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions", "common_http_protocol_options": {"max_stream_duration": "1.2s", "max_requests_per_connection": 1}, "explicit_http_config": {"http_protocol_options": {}}}})],
        stats=STATS + ["^cluster.a.upstream_cx_(total|max)"])
    connect.get("slow", "/", upstream=SLOW)
    connect.get("one", "/")
    connect.get("two", "/")
    return [route_, expected, manager, duration, lifetime, connect]
