"""ratelimit: what the service of global limits is asked, and what becomes of its answers."""
from harness.config import cluster, extension, http2_options, route, to, typed
from harness.setup import Setup, request

from .ext_authz import answer, fields, pb

LOG = "code=[%RESPONSE_CODE%] details=[%RESPONSE_CODE_DETAILS%] flags=[%RESPONSE_FLAGS%]"
STATS = ["ratelimit", r"^cluster\.limits\.upstream_rq_(total|\d+|completed|timeout)", r"^cluster\.limits\.internal", r"^cluster\.a\.upstream_rq_(total|\d+|completed)", r"^cluster\.a\.internal"]


def limit(**more):
    service = {"grpc_service": {"envoy_grpc": {"cluster_name": "limits"}}, "transport_api_version": "V3"}
    return extension("envoy.filters.http.ratelimit", "filters.http.ratelimit.v3.RateLimit", domain="shop", timeout="2.5s", rate_limit_service=service, **more)


def setup(name, *filters, **more):
    routes = more.pop("routes", None) or [route("/", to("a", rate_limits=[{"actions": [{"request_headers": {"header_name": "x-user", "descriptor_key": "user"}}]}]))]
    return Setup(name, filters=list(filters), clusters=[cluster("a"), cluster("limits", typed_extension_protocol_options=http2_options())], upstreams={"limits": "h2"}, stats=STATS, log=LOG, routes=routes, **more)


def said(code, statuses=(), response=(), request_headers=(), body=None):
    more = [(2, status) for status in statuses] + [(3, pb((1, k), (2, v))) for k, v in response] + [(4, pb((1, k), (2, v))) for k, v in request_headers]
    return answer((1, code), *more, *([(5, body)] if body else []))


def status(code, requests=None, unit=1, name="", left=0, reset=None):
    found = [(1, code)]
    if requests is not None:
        found.append((2, pb((1, requests), (2, unit), *([(3, name)] if name else []))))
    found.append((3, left))
    if reset is not None:
        found.append((4, pb((1, reset))))
    return pb(*found)


def asked(record, names):
    """Domain, descriptors (entries, limit, hits) and hits of a question."""
    def descriptor(data):
        found = []
        for number, value in fields(data):
            found.append([number, [v.decode() for _, v in fields(value)] if number == 1 else fields(value) if isinstance(value, bytes) else value])
        return found
    told = [[number, descriptor(value) if number == 2 else names.text(value.decode()) if isinstance(value, bytes) else value] for number, value in fields(record["body"][5:])]
    return [sorted(name for name, _ in record["headers"]), told]


def ask(s, name, path="/", headers=(("x-user", "ann"),), **more):
    def run(context):
        responses, _ = context.exchange(request(path, headers), ("GET",))
        taken = context.answers.taken()
        backend = [context.names.headers(record["headers"]) for record in taken if record["upstream"] == "a"]
        return {"answers": context.shown(responses), "asked": [asked(record, context.names) for record in taken if record["upstream"] == "limits"], "backend": backend}
    s.script(name, run, ignore=("upstream",), **more)


def answers():
    s = setup("ratelimit", limit(enable_x_ratelimit_headers="DRAFT_VERSION_03", response_headers_to_add=[{"header": {"key": "x-limited", "value": "%REQ(x-user)%"}}]))
    both = [status(1, 5, 2, "per-user", 3, 42), status(1, 9, 3, left=8, reset=100)]
    ask(s, "ok", upstream=[said(1, both, [("x-plan", "free"), ("set-cookie", "a")], [("x-left", "3"), ("x-user", "b")])])
    ask(s, "over", upstream=[said(2, [status(2, 5, 1, left=0, reset=1)], [("content-type", "application/json"), ("x-plan", "free")], [("x-left", "0")], b"{}")])
    ask(s, "over plainly", upstream=[said(2)])
    ask(s, "over without limits", upstream=[said(2, [status(2)])])
    for unit in (1, 2, 3, 4, 5, 6, 7):
        ask(s, f"unit {unit}", upstream=[said(1, [status(1, 7, unit, "n", 2, 9)])])
    ask(s, "unknown code", upstream=[said(0)])
    ask(s, "no descriptor", headers=())
    ask(s, "grpc", headers=(("x-user", "a"), ("content-type", "application/grpc")), upstream=[said(2, body=b"slow")])
    ask(s, "fails", upstream=[[("headers", [(":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "14")], True)]])
    ask(s, "hangs", upstream=[[6.0]])
    ask(s, "reset", upstream=[[("reset", 2)]])
    deny = setup("ratelimit deny", limit(failure_mode_deny=True, status_on_error={"code": 503}, stat_prefix="edge", rate_limited_status={"code": 508}, rate_limited_as_resource_exhausted=True, disable_x_envoy_ratelimited_header=True))
    ask(deny, "fails", upstream=[[("headers", [(":status", "503")], True)]])
    ask(deny, "over", upstream=[said(2)])
    ask(deny, "over grpc", headers=(("x-user", "a"), ("content-type", "application/grpc")), upstream=[said(2)])
    odd = setup("ratelimit odd status", limit(rate_limited_status={"code": 200}, status_on_error={"code": 200}, failure_mode_deny=True))
    ask(odd, "over", upstream=[said(2)])
    ask(odd, "fails", upstream=[[("reset", 2)]])
    shadow = setup("ratelimit not enforced", limit(filter_enforced={"default_value": {"numerator": 0}}))
    ask(shadow, "over", upstream=[said(2, request_headers=[("x-left", "0")])])
    return [s, deny, odd, shadow]


def per_route(**more):
    return {"envoy.filters.http.ratelimit": typed("filters.http.ratelimit.v3.RateLimitPerRoute", **more)}


def key(value, **more):
    return {"actions": [{"generic_key": {"descriptor_value": value}}], **more}


def routes():
    table = [
        route("/stage", to(rate_limits=[key("one", stage=1), key("zero")])), route("/hits", to(rate_limits=[key("h", hits_addend={"number": 3}), key("f", hits_addend={"format": "%REQ(x-hits)%"})])),
        route("/domain", to(rate_limits=[key("d")]), typed_per_filter_config=per_route(domain="other")), route("/own", to(rate_limits=[key("route")]), typed_per_filter_config=per_route(rate_limits=[key("own")])),
        route("/include", to(rate_limits=[key("route")], include_vh_rate_limits=True)), route("/includes", to(rate_limits=[key("route")]), typed_per_filter_config=per_route(vh_rate_limits="INCLUDE")),
        route("/ignore", to(), typed_per_filter_config=per_route(vh_rate_limits="IGNORE")), route("/none", to()), route("/limit", to(rate_limits=[key("l", limit={"dynamic_metadata": {"metadata_key": {
            "key": "ns", "path": [{"key": "limit"}]}}})])), route("/direct", direct_response={"status": 200})]
    hosts = [{"name": "all", "domains": ["*"], "routes": table, "rate_limits": [key("host")]}]
    meta = extension("set", "filters.http.set_metadata.v3.Config", metadata=[{"metadata_namespace": "ns", "value": {"limit": {"requests_per_unit": 7, "unit": "HOUR"}}}])
    s = Setup("ratelimit routes", filters=[meta, limit()], clusters=[cluster("a"), cluster("limits", typed_extension_protocol_options=http2_options())], upstreams={"limits": "h2"}, stats=STATS, log=LOG, vhosts=hosts)
    for path in ("/stage", "/domain", "/own", "/include", "/includes", "/ignore", "/none", "/limit", "/direct"):
        ask(s, path, path, upstream=[said(1)] if path not in ("/ignore", "/direct") else [])
    ask(s, "/hits", "/hits", headers=(("x-hits", "12"),), upstream=[said(1)])
    ask(s, "/hits wrong", "/hits", headers=(("x-hits", "many"),), upstream=[said(1)])
    return [s]


def setups():
    return answers() + routes()
