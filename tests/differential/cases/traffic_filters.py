"""Filters that shape traffic: decompression, limits of connections and of bandwidth, admission control, custom responses, health by the
health of clusters, mutation of trailers."""
import gzip
import time
import zlib

from harness.config import LOG, cluster, endpoint, extension, route, to, typed
from harness.setup import Setup, reply, request

from cases.filters import http, per_route, percent


def library(kind, **fields):
    return {"name": "lib", "typed_config": typed(f"compression.{kind}.decompressor.v3.{kind.capitalize()}", **fields)}


def raw_deflate(data):
    return zlib.compress(data)


def decompress():
    text = b"hello " * 100
    packed = gzip.compress(text, mtime=0)
    made = []
    off = {"common_config": {"enabled": {"default_value": False, "runtime_key": "off"}}}
    for name, fields in {"plain": {}, "quiet": {"request_direction_config": {"advertise_accept_encoding": False}}, "request-off": {"request_direction_config": off}, "response-off": {"response_direction_config": off},
                         "transform": {"request_direction_config": {"common_config": {"ignore_no_transform_header": True}}, "response_direction_config": {"common_config": {"ignore_no_transform_header": True}}}}.items():
        setup = Setup(f"decompress-{name}", filters=[http("decompressor", "Decompressor", decompressor_library=library("gzip"), **fields)], stats=[r"decompressor\..*compress"])
        for case, headers in {"gzip": [("content-encoding", "gzip")], "upper": [("content-encoding", "GZIP")], "two": [("content-encoding", "gzip, br")], "second": [("content-encoding", "br, gzip")], "none": [], "other": [("content-encoding", "br")],
                              "no-transform": [("content-encoding", "gzip"), ("cache-control", "no-transform")], "twice": [("content-encoding", "gzip"), ("content-encoding", "gzip")]}.items():
            # Envoy passes several fields of this name on joined.
            ignore = ("upstream", "headers") if case == "twice" else ()
            setup.get(f"request {case}", "/", headers, method="POST", body=packed, ignore=ignore)
            setup.get(f"response {case}", "/", upstream=[reply(200, headers, packed)], ignore=ignore)
        for accept in ("br", "gzip", "gzip;q=0.1, br", "*", "identity;q=0"):
            setup.get(f"accept {accept}", "/", [("accept-encoding", accept)])
        setup.get("head", "/", method="HEAD", upstream=[b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 100\r\n\r\n"])
        setup.get("no body", "/", upstream=[reply(200, [("content-encoding", "gzip")], b"")])
        setup.get("chunked", "/", upstream=[b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(packed), packed)])
        made.append(setup)
    return made


def limits():
    def limit(name, manager, **fields):
        filters = [extension("envoy.filters.network.connection_limit", "filters.network.connection_limit.v3.ConnectionLimit", stat_prefix="cl", **fields)]
        if not manager:
            filters.append(extension("envoy.filters.network.tcp_proxy", "filters.network.tcp_proxy.v3.TcpProxy", stat_prefix="t", cluster="a"))
        return Setup(name, network_filters=filters, manager=manager, stats=["connection_limit", "local_rate_limit"], linger=0.6)

    def crowd(context):
        held = [context.connect() for _ in range(2)]
        shown = []
        for connection in held:
            shown.append(context.shown(context.exchange(request("/"), connection=connection)[0]))
        third = context.connect()
        third.send(request("/"))
        third.until(lambda data: False, 1.0)
        # Whether the end comes as a reset depends on what has arrived by then.
        shown.append([third.fate != "kept", context.names.raw(third.received)])
        held[0].close()
        held[0].fate = "closed by the client"
        for _ in range(100):
            time.sleep(0.02)
            if "active_connections: 1" in context.admin("/stats?filter=connection_limit")[1]:
                break
        shown.append(context.shown(context.exchange(request("/"))[0]))
        return shown
    made = []
    for manager in (False, True):
        for name, fields in {"plain": {"max_connections": 2}, "delay": {"max_connections": 2, "delay": "0.2s"}, "off": {"max_connections": 1, "runtime_enabled": {"default_value": False, "runtime_key": "x"}}}.items():
            setup = limit(f"connections-{name}-{'http' if manager else 'tcp'}", manager, **fields)
            setup.script("crowd", crowd, ignore=("log*", "fate*"))
            made.append(setup)
        rate = limit(f"rate-{'http' if manager else 'tcp'}", manager, max_connections=100)
        # Alone: Envoy's connection limit gives back connections that another filter closed before it counted them.
        rate.network_filters[0:1] = [extension("envoy.filters.network.local_ratelimit", "filters.network.local_ratelimit.v3.LocalRateLimit", stat_prefix="rl", token_bucket={"max_tokens": 2, "tokens_per_fill": 1, "fill_interval": "600s"})]
        for case in ("first", "second", "third", "fourth"):
            rate.get(case, "/", wait=1.0, ignore=("fate",))
        made.append(rate)
    return made


def bandwidth():
    setup = Setup("bandwidth", filters=[http("bandwidth_limit", "BandwidthLimit", stat_prefix="bw", enable_mode="REQUEST_AND_RESPONSE", limit_kbps=100, fill_interval="0.02s")], stats=["http_bandwidth_limit.*(enabled|total_size|pending)"], routes=[
        route("/off", to(), **per_route("bandwidth_limit", "BandwidthLimit", stat_prefix="off", enable_mode="DISABLED", limit_kbps=1)), route("/request", to(), **per_route("bandwidth_limit", "BandwidthLimit", stat_prefix="rq", enable_mode="REQUEST", limit_kbps=100)),
        route("/response", to(), **per_route("bandwidth_limit", "BandwidthLimit", stat_prefix="rs", enable_mode="RESPONSE", limit_kbps=100)), route("/", to())])
    for path in ("/", "/off", "/request", "/response"):
        setup.get(f"{path} none", path)
        setup.get(f"{path} body", path, method="POST", body=b"x" * 5000, upstream=[reply(200, [], b"y" * 6000)])
        setup.get(f"{path} chunked", path, [("transfer-encoding", "chunked")], method="POST", body=b"5\r\nhello\r\n0\r\n\r\n")
    return [setup]


def admission():
    made = []
    for name, fields in {"plain": {}, "criteria": {"success_criteria": {"http_criteria": {"http_success_status": [{"start": 200, "end": 300}]}, "grpc_criteria": {"grpc_success_status": [0]}}}, "off": {"enabled": {"default_value": False, "runtime_key": "x"}},
                         "never": {"max_rejection_probability": {"default_value": {"value": 0}, "runtime_key": "x"}}}.items():
        setup = Setup(f"admission-{name}", filters=[http("admission_control", "AdmissionControl", **{"success_criteria": {}, "rps_threshold": {"default_value": 1000000, "runtime_key": "rps"} if name != "never" else {"default_value": 0, "runtime_key": "rps"}, **fields})],
                      stats=["admission_control"], routes=[route("/local", direct_response={"status": 503}), route("/", to())])
        for status in (200, 302, 404, 499, 500, 503):
            setup.get(f"status {status}", "/", upstream=[reply(status, [], "x")])
        for code in (0, 1, 4, 5, 8, 10, 13, 14, 16):
            setup.get(f"grpc {code}", "/", [("content-type", "application/grpc")], method="POST", upstream=[reply(200, [("content-type", "application/grpc"), ("grpc-status", str(code))], "")])
        setup.get("local", "/local")
        setup.get("no route", "/", host="host")
        made.append(setup)
    return made


def health():
    clusters = [cluster("a"), cluster("half", hosts=[{**endpoint("a"), "health_status": "HEALTHY"}, {**endpoint("a2"), "health_status": "UNHEALTHY"}]), cluster("degraded", hosts=[{**endpoint("a"), "health_status": "DEGRADED"}, {**endpoint("a2"), "health_status": "UNHEALTHY"}]),
                {"name": "empty", "connect_timeout": "2s", "type": "STATIC", "load_assignment": {"cluster_name": "empty"}}]
    made = []
    for name, wanted in {"all": {"a": {"value": 100}}, "half-ok": {"half": {"value": 50}}, "half-bad": {"half": {"value": 51}}, "degraded": {"degraded": {"value": 50}}, "empty": {"empty": {"value": 1}}, "empty-zero": {"empty": {"value": 0}},
                         "unknown": {"nothing": {"value": 1}}, "two": {"a": {"value": 1}, "half": {"value": 90}}}.items():
        setup = Setup(f"health-{name}", filters=[http("health_check", "HealthCheck", pass_through_mode=False, headers=[{"name": ":path", "string_match": {"exact": "/healthz"}}], cluster_min_healthy_percentages=wanted)], clusters=clusters, stats=[r"^http\.test\.health_check"])
        setup.get("check", "/healthz")
        setup.get("other", "/")
        made.append(setup)
    return made


def mutation():
    def append(key, value, action="APPEND_IF_EXISTS_OR_ADD"):
        return {"append": {"header": {"key": key, "value": value}, "append_action": action}}
    lists = [append("x-new", "n"), append("x-over", "o", "OVERWRITE_IF_EXISTS_OR_ADD"), append("x-absent", "a", "ADD_IF_ABSENT"), {"remove": "x-gone"}, append("x-path", "%REQ(:PATH)%")]
    h1 = {"http_protocol_options": {"enable_trailers": True}}
    from harness.config import http2_options
    setup = Setup("trailers", hcm=h1, clusters=[cluster("a", typed_extension_protocol_options=http2_options())], upstreams={"a": "h2"}, filters=[http("header_mutation", "HeaderMutation", mutations={"request_trailers_mutations": lists, "response_trailers_mutations": lists})])
    for name, trailers in {"some": [("x-over", "mine"), ("x-absent", "mine"), ("x-gone", "1"), ("x-other", "1")], "none": None, "one": [("x-one", "1")]}.items():
        setup.http2(name, "/", method="POST", body=b"body", trailers=trailers)
    return [setup]


def custom():
    def status(value, action):
        return {"custom_response_matcher": {"matcher_list": {"matchers": [{"predicate": {"single_predicate": {"input": extension("in", "envoy.type.matcher.v3.HttpResponseStatusCodeMatchInput"), "value_match": value}}, "on_match": {"action": action}}]}}}

    def local(**fields):
        return extension("action", "http.custom_response.local_response_policy.v3.LocalResponsePolicy", **fields)
    made = []
    for name, fields in {"body": {"body": {"inline_string": "custom"}}, "status": {"body": {"inline_string": "custom"}, "status_code": 418}, "headers": {"body": {"inline_string": "custom"}, "response_headers_to_add": [{"header": {"key": "x-custom", "value": "%RESPONSE_CODE%"}}]},
                         "format": {"body_format": {"text_format_source": {"inline_string": "was %RESPONSE_CODE% %REQ(:PATH)% %LOCAL_REPLY_BODY%"}}}, "json": {"body": {"inline_string": "b"}, "body_format": {"json_format": {"code": "%RESPONSE_CODE%", "body": "%LOCAL_REPLY_BODY%"}}},
                         "nothing": {}, "type": {"body": {"inline_string": "<p>"}, "response_headers_to_add": [{"header": {"key": "content-type", "value": "text/html"}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}]},
                         "keep-details": {"body": {"inline_string": "k"}, "preserve_response_code_details": True}, "own-details": {"body": {"inline_string": "k"}, "response_code_details": "mine"}}.items():
        # Envoy tells empty details, Nuncio none.
        setup = Setup(f"custom-{name}", ignore=() if "details" in name else ("log",), filters=[http("custom_response", "CustomResponse", **status({"exact": "503"}, local(**fields)))], routes=[
            route("/local", direct_response={"status": 503, "body": {"inline_string": "original"}}), route("/route", to(), **per_route("custom_response", "CustomResponse", **status({"exact": "404"}, local(body={"inline_string": "of the route"})))),
            route("/off", to(), typed_per_filter_config={"envoy.filters.http.custom_response": {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": True}}), route("/", to())])
        for code in (200, 404, 503):
            for path in ("/", "/route", "/off"):
                ignore = ("log",) if (path, code) == ("/route", 404) else ()
                setup.get(f"{path} {code}", path, upstream=[reply(code, [("x-up", "u"), ("content-type", "text/css"), ("etag", "e")], "original")], ignore=ignore)
        setup.get("head", "/", method="HEAD", upstream=[b"HTTP/1.1 503 No\r\ncontent-length: 10\r\n\r\n"])
        setup.get("/local")
        setup.get("grpc", "/", [("content-type", "application/grpc")], method="POST", upstream=[reply(503, [], "x")])
        setup.http2("h2", "/", upstream=[reply(503, [], "x")])
        # Envoy 1.40 keeps details here that it has freed.
        setup.get("reset", "/", upstream=["close"], ignore=("log",))
        made.append(setup)
    return made


def setups():
    return [*decompress(), *limits(), *bandwidth(), *admission(), *health(), *mutation(), *custom()]
