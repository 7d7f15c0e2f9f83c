"""HTTP filters whose answers clients see: CORS, fault injection, header mutation, buffer, CSRF, local rate limit, RBAC, health check."""
from harness.config import extension, route, say, to, typed
from harness.setup import Setup, reply


def http(name, kind, **fields):
    return extension(f"envoy.filters.http.{name}", f"filters.http.{name}.v3.{kind}", **fields)


def per_route(name, kind, **fields):
    return {"typed_per_filter_config": {f"envoy.filters.http.{name}": typed(f"filters.http.{name}.v3.{kind}", **fields)}}


def percent(number):
    return {"numerator": number, "denominator": "HUNDRED"}


def cors():
    policy = {"allow_origin_string_match": [{"exact": "http://good.test"}, {"suffix": ".suffix.test"}, {"safe_regex": {"regex": "https://re[0-9]+\\.test"}}], "allow_methods": "GET,POST", "allow_headers": "x-a,x-b",
              "expose_headers": "x-c", "max_age": "600", "allow_credentials": True}
    setup = Setup("cors", filters=[http("cors", "Cors")], vhosts=[{"name": "v", "domains": ["*"], **per_route("cors", "CorsPolicy", **policy), "routes": [
        route("/star", to(), **per_route("cors", "CorsPolicy", allow_origin_string_match=[{"safe_regex": {"regex": ".*"}}], allow_methods="GET")),
        route("/off", to(), **per_route("cors", "CorsPolicy", **{**policy, "filter_enabled": {"default_value": percent(0)}})),
        route("/shadow", to(), **per_route("cors", "CorsPolicy", **{**policy, "filter_enabled": {"default_value": percent(0)}, "shadow_enabled": {"default_value": percent(100)}})),
        route("/private", to(), **per_route("cors", "CorsPolicy", **{**policy, "allow_private_network_access": True})),
        route("/strict", to(), **per_route("cors", "CorsPolicy", **{**policy, "forward_not_matching_preflights": False})), route("/local", direct_response=say("local", 403)), route("/", to())]}],
        stats=["cors"])
    for path in ("/", "/star", "/off", "/shadow", "/private", "/strict", "/local"):
        for origin in ("http://good.test", "http://a.suffix.test", "https://re1.test", "http://bad.test", None):
            headers = [("origin", origin)] if origin else []
            setup.get(f"{path} {origin}", path, headers)
            setup.get(f"{path} {origin} preflight", path, [*headers, ("access-control-request-method", "GET"), ("access-control-request-private-network", "true")], method="OPTIONS")
    setup.get("options without method", "/", [("origin", "http://good.test")], method="OPTIONS")
    setup.get("upstream sets", "/", [("origin", "http://good.test")], upstream=[reply(200, [("access-control-allow-origin", "*"), ("access-control-expose-headers", "mine")], "x")])
    return setup


def fault():
    setup = Setup("fault", filters=[http("fault", "HTTPFault")], routes=[
        route("/abort", to(), **per_route("fault", "HTTPFault", abort={"http_status": 555, "percentage": percent(100)})), route("/zero", to(), **per_route("fault", "HTTPFault", abort={"http_status": 555, "percentage": percent(0)})),
        route("/grpc", to(), **per_route("fault", "HTTPFault", abort={"grpc_status": 5, "percentage": percent(100)})), route("/delay", to(), **per_route("fault", "HTTPFault", delay={"fixed_delay": "0.05s", "percentage": percent(100)})),
        route("/both", to(), **per_route("fault", "HTTPFault", delay={"fixed_delay": "0.05s", "percentage": percent(100)}, abort={"http_status": 503, "percentage": percent(100)})),
        route("/header", to(), **per_route("fault", "HTTPFault", abort={"header_abort": {}, "percentage": percent(100)}, delay={"header_delay": {}, "percentage": percent(100)})),
        route("/match", to(), **per_route("fault", "HTTPFault", abort={"http_status": 500, "percentage": percent(100)}, headers=[{"name": "x-fault", "present_match": True}])),
        route("/node", to(), **per_route("fault", "HTTPFault", abort={"http_status": 500, "percentage": percent(100)}, downstream_nodes=["n1"])),
        route("/cluster", to(), **per_route("fault", "HTTPFault", abort={"http_status": 500, "percentage": percent(100)}, upstream_cluster="other")), route("/", to())], stats=["fault"])
    for path in ("/abort", "/zero", "/grpc", "/delay", "/both", "/header", "/match", "/node", "/cluster", "/"):
        setup.get(path)
        setup.get(f"{path} grpc", path, [("content-type", "application/grpc")], method="POST")
        setup.get(f"{path} headers", path, [("x-envoy-fault-abort-request", "429"), ("x-envoy-fault-delay-request", "20"), ("x-fault", "1"), ("x-envoy-downstream-service-node", "n1")])
        setup.http2(f"{path} h2", path)
    setup.get("bad abort header", "/header", [("x-envoy-fault-abort-request", "99999")])
    setup.get("grpc abort header", "/header", [("x-envoy-fault-abort-grpc-request", "7")])
    setup.get("percentage header", "/header", [("x-envoy-fault-abort-request", "418"), ("x-envoy-fault-abort-request-percentage", "0")])
    return setup


def mutation():
    def append(key, value, action="APPEND_IF_EXISTS_OR_ADD"):
        return {"append": {"header": {"key": key, "value": value}, "append_action": action}}
    every = [append("x-append", "f"), append("x-over", "f", "OVERWRITE_IF_EXISTS_OR_ADD"), append("x-absent", "f", "ADD_IF_ABSENT"), append("x-exists", "f", "OVERWRITE_IF_EXISTS"), {"remove": "x-gone"},
             append("x-path", "%REQ(:PATH)%"), append("x-code", "%RESPONSE_CODE%")]
    setup = Setup("header-mutation", filters=[http("header_mutation", "HeaderMutation", mutations={"request_mutations": every, "response_mutations": every})], routes=[
        route("/route", to(), **per_route("header_mutation", "HeaderMutationPerRoute", mutations={"request_mutations": [append("x-append", "route"), append("x-over", "route", "OVERWRITE_IF_EXISTS_OR_ADD")],
                                                                                               "response_mutations": [append("x-append", "route")]})),
        route("/local", direct_response=say("local")), route("/", to())])
    full = [("x-append", "mine"), ("x-over", "mine"), ("x-absent", "mine"), ("x-exists", "mine"), ("x-gone", "1"), ("x-other", "o")]
    for path in ("/", "/route", "/local", "/none"):
        setup.get(f"{path} bare", path)
        setup.get(f"{path} full", path, full, upstream=[reply(200, [*full], "x")])
    return setup


def others():
    buffer = Setup("buffer", filters=[http("buffer", "Buffer", max_request_bytes=10)], routes=[route("/direct", direct_response=say("d")), route("/off", to(), **per_route("buffer", "BufferPerRoute", disabled=True)), route("/more", to(), **per_route("buffer", "BufferPerRoute", buffer={"max_request_bytes": 20})), route("/", to())])
    for path in ("/", "/off", "/more", "/direct"):
        for size in (0, 5, 10, 11, 15, 25):
            buffer.get(f"{path} {size}", path, method="POST", body=b"x" * size)
            if size:
                buffer.get(f"{path} {size} chunked", path, [("transfer-encoding", "chunked")], method="POST", body=b"%x\r\n%s\r\n0\r\n\r\n" % (size, b"x" * size))
    csrf = Setup("csrf", filters=[http("csrf", "CsrfPolicy", filter_enabled={"default_value": percent(100)}, additional_origins=[{"exact": "extra.test"}])], stats=["csrf"])
    for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"):
        for name, headers in {"same": [("origin", "http://host")], "other": [("origin", "http://evil.test")], "extra": [("origin", "http://extra.test")], "none": [], "referer": [("referer", "http://host/page")], "null": [("origin", "null")]}.items():
            csrf.get(f"{method} {name}", "/", headers, method=method)
    limit = Setup("local-ratelimit", filters=[http("local_ratelimit", "LocalRateLimit", stat_prefix="rl", token_bucket={"max_tokens": 2, "tokens_per_fill": 2, "fill_interval": "60s"}, filter_enabled={"default_value": percent(100)},
                  filter_enforced={"default_value": percent(100)}, response_headers_to_add=[{"header": {"key": "x-limited", "value": "yes"}}], enable_x_ratelimit_headers="DRAFT_VERSION_03")], stats=["rl.http_local"])
    for name in ("first", "second", "third", "fourth"):
        limit.get(name, "/")
    limit.get("grpc", "/", [("content-type", "application/grpc")], method="POST")
    rbac = Setup("rbac", filters=[http("rbac", "RBAC", rules={"action": "ALLOW", "policies": {
        "paths": {"permissions": [{"url_path": {"path": {"prefix": "/open"}}}], "principals": [{"any": True}]}, "header": {"permissions": [{"header": {"name": "x-key", "string_match": {"exact": "1"}}}], "principals": [{"any": True}]},
        "and": {"permissions": [{"and_rules": {"rules": [{"header": {"name": ":method", "string_match": {"exact": "PUT"}}}, {"not_rule": {"url_path": {"path": {"exact": "/no"}}}}]}}], "principals": [{"direct_remote_ip": {"address_prefix": "127.0.0.1", "prefix_len": 32}}]},
        "ip": {"permissions": [{"url_path": {"path": {"exact": "/ip"}}}], "principals": [{"remote_ip": {"address_prefix": "10.0.0.0", "prefix_len": 8}}]}}}, shadow_rules={"action": "DENY", "policies": {"s": {"permissions": [{"any": True}], "principals": [{"any": True}]}}})], stats=["rbac"])
    for name, path, fields in (("open", "/open/x", {}), ("closed", "/closed", {}), ("key", "/x", {"headers": [("x-key", "1")]}), ("put", "/x", {"method": "PUT"}), ("put no", "/no", {"method": "PUT"}), ("ip", "/ip", {}),
                               ("ip xff", "/ip", {"headers": [("x-forwarded-for", "10.1.2.3")]}), ("query", "/open?x", {}), ("grpc", "/closed", {"method": "POST", "headers": [("content-type", "application/grpc")]}), ("dots", "/open/../closed", {})):
        rbac.get(name, path, **fields)
    deny = Setup("rbac-deny", filters=[http("rbac", "RBAC", rules={"action": "DENY", "policies": {"p": {"permissions": [{"url_path": {"path": {"prefix": "/secret"}}}], "principals": [{"any": True}]}}})],
                 routes=[route("/secret/open", to(), **per_route("rbac", "RBACPerRoute")), route("/", to())])
    for path in ("/secret", "/secret/open", "/public"):
        deny.get(path)
    health = Setup("health-check", filters=[http("health_check", "HealthCheck", pass_through_mode=False, headers=[{"name": ":path", "string_match": {"exact": "/healthz"}}])])
    for path in ("/healthz", "/healthz/x", "/"):
        health.get(path)
        health.get(f"{path} head", path, method="HEAD")
    compress = Setup("compressor", filters=[http("compressor", "Compressor", compressor_library={"name": "text_optimized", "typed_config": typed("compression.gzip.compressor.v3.Gzip")})])
    big = b"hello " * 50
    for name, headers in {"gzip": [("accept-encoding", "gzip")], "none": [], "other": [("accept-encoding", "br")], "q0": [("accept-encoding", "gzip;q=0")], "star": [("accept-encoding", "*")], "identity": [("accept-encoding", "identity")]}.items():
        for kind, answer in {"text": [("content-type", "text/plain")], "image": [("content-type", "image/png")], "encoded": [("content-type", "text/plain"), ("content-encoding", "br")], "etag": [("content-type", "text/plain"), ("etag", '"x"')],
                             "no-transform": [("content-type", "text/plain"), ("cache-control", "no-transform")]}.items():
            compress.get(f"{name} {kind}", "/", headers, upstream=[reply(200, answer, big)], ignore=("body", "log"))
    compress.get("small", "/", [("accept-encoding", "gzip")], upstream=[reply(200, [("content-type", "text/plain")], b"tiny")])
    return [buffer, csrf, limit, rbac, deny, health, compress]


def setups():
    return [cors(), fault(), mutation(), *others()]
