"""ext_authz: what an authorization service is sent over HTTP and gRPC, and what becomes of its answers."""
import struct

from harness.config import cluster, extension, http2_options, route, say, to, typed
from harness.setup import Setup, reply, request

LOG = "code=[%RESPONSE_CODE%] details=[%RESPONSE_CODE_DETAILS%] flags=[%RESPONSE_FLAGS%] route=[%ROUTE_NAME%] cluster=[%UPSTREAM_CLUSTER%] meta=[%DYNAMIC_METADATA(envoy.filters.http.ext_authz:x-meta)%]"
STATS = ["ext_authz", r"^cluster\.auth\.upstream_rq_(total|\d+|completed|timeout|retry)", r"^cluster\.auth\.internal", r"^cluster\.a\.upstream_rq_(total|\d+|completed)", r"^cluster\.a\.internal"]


def authz(service=None, **fields):
    return extension("envoy.filters.http.ext_authz", "filters.http.ext_authz.v3.ExtAuthz", **(service or {"http_service": http()}), **fields)


def http(timeout="5s", **fields):
    return {"server_uri": {"uri": "http://auth.test:9191/ignored", "cluster": "auth", "timeout": timeout}, **fields}


def patterns(*names):
    return {"patterns": [{"exact": name} for name in names]}


def per_route(**fields):
    return {"envoy.filters.http.ext_authz": typed("filters.http.ext_authz.v3.ExtAuthzPerRoute", **fields)}


def setup(name, *filters, clusters=None, **fields):
    return Setup(name, filters=list(filters), clusters=clusters or [cluster("a"), cluster("auth")], stats=STATS, log=LOG, **fields)


def plain():
    s = setup("ext_authz plain", authz())
    s.get("allowed", "/cart?a=1", [("authorization", "k"), ("x-user", "ann"), ("cookie", "c=1")], upstream=[reply()])
    s.get("post", "/p", [("x-forwarded-for", "1.2.3.4")], "POST", b"body", upstream=[reply(headers=[("x-a", "1"), ("set-cookie", "s=1")])])
    s.get("options", "/", method="OPTIONS", upstream=[reply()])
    for code in (201, 204, 301, 400, 401, 403, 404, 429, 500, 503, 504):
        s.get(f"answer {code}", "/", upstream=[reply(code, [("x-why", "because"), ("location", "/login"), ("set-cookie", "a=1"), ("set-cookie", "b=2"), ("content-type", "text/html")],
                                                     b"" if code == 204 else b"<p>no</p>", length=code != 204)])
    s.get("empty denial", "/", upstream=[reply(403)])
    s.get("head", "/", method="HEAD", upstream=[reply(401, [], b"")])
    s.get("grpc denied", "/svc/m", [("content-type", "application/grpc"), ("te", "trailers")], "POST", b"\0\0\0\0\0", upstream=[reply(403, [("x-why", "1")], b"no entry")])
    s.get("closes", "/", upstream=[["close"]], ignore=("upstream",))
    s.get("garbage", "/", upstream=[b"nonsense\r\n\r\n"])
    s.get("hangs", "/", upstream=[["hang"]], ignore=("upstream",))
    s.get("slow body", "/", upstream=[[b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc", "hang"]])
    return s


def headers():
    service = http(path_prefix="/check", authorization_request={"headers_to_add": [{"key": "x-added", "value": "%REQ(:METHOD)%-%PROTOCOL%"}, {"key": "x-user", "value": "forced"}]}, authorization_response={
        "allowed_upstream_headers": {"patterns": [{"prefix": "x-up"}]}, "allowed_upstream_headers_to_append": patterns("x-more"), "allowed_client_headers": patterns("x-why"),
        "allowed_client_headers_on_success": patterns("x-ok", "set-cookie"), "dynamic_metadata_from_headers": patterns("x-meta")})
    s = setup("ext_authz headers", authz({"http_service": service}, allowed_headers=patterns("x-user", "cookie", "x-forwarded-for"), disallowed_headers=patterns("cookie"), clear_route_cache=True),
              routes=[route({"prefix": "/", "headers": [{"name": "x-up-route", "string_match": {"exact": "b"}}]}, to("b"), name="b"), route("/", name="a")],
              clusters=[cluster("a"), cluster("b"), cluster("auth")])
    sent = [("x-user", "ann"), ("cookie", "c=1"), ("x-up-a", "old"), ("x-more", "0"), ("x-drop", "1"), ("x-keep", "1")]
    s.get("changes", "/p?q=1", sent, upstream=[reply(headers=[("x-up-a", "new"), ("x-up-a", "new2"), ("x-more", "1"), ("x-other", "1"), ("x-ok", "yes"), ("set-cookie", "s=1"), ("set-cookie", "t=2"), ("x-meta", "m"),
                                                               ("x-envoy-auth-headers-to-remove", "x-drop, host, :path,,x-absent")])])
    s.get("routes anew", "/p", sent, upstream=[reply(headers=[("x-up-route", "b")])])
    s.get("denied", "/p", sent, upstream=[reply(401, [("x-why", "1"), ("x-hidden", "1"), ("www-authenticate", "Basic"), ("location", "/l"), ("x-ok", "1"), ("x-meta", "m")], b"denied")])
    s.get("spoofed", "/p", [("x-envoy-auth-partial-body", "true"), ("x-envoy-internal", "true"), ("x-forwarded-for", "9.9.9.9")], upstream=[reply()])
    return s


def bodies():
    found = []
    for name, body in (("whole", {"max_request_bytes": 10}), ("part", {"max_request_bytes": 4, "allow_partial_message": True})):
        s = setup(f"ext_authz body {name}", authz(with_request_body=body), routes=[
            route("/off", typed_per_filter_config=per_route(check_settings={"disable_request_body_buffering": True})),
            route("/more", typed_per_filter_config=per_route(check_settings={"with_request_body": {"max_request_bytes": 20}})), route("/")])
        for size in (0, 1, 4, 5, 10, 11, 100):
            s.get(f"{size} bytes", "/", method="POST", body=b"x" * size, upstream=[reply()] if name == "part" or size <= 10 else [])
        s.raw("chunked", request("/", [("transfer-encoding", "chunked")], "POST", b"3\r\nabc\r\n0\r\n\r\n"), methods=["POST"], upstream=[reply()])
        s.get("off", "/off", method="POST", body=b"x" * 15, upstream=[reply()])
        s.get("more", "/more", method="POST", body=b"x" * 15, upstream=[reply()])
        s.get("get", "/", upstream=[reply()])
        found.append(s)
    return found


def modes():
    failing = [("hangs", ["hang"]), ("500", reply(500)), ("closes", ["close"])]
    found = []
    for name, fields in (("allow", {"failure_mode_allow": True}), ("allow with header", {"failure_mode_allow": True, "failure_mode_allow_header_add": True}), ("status", {"status_on_error": {"code": 503}}),
                         ("status ok", {"status_on_error": {"code": 200}})):
        s = setup(f"ext_authz {name}", authz({"http_service": http("1.5s")}, stat_prefix="waf", **fields))
        for case, answer in failing:
            s.get(case, "/", upstream=[answer], ignore=("upstream",) if case != "500" else ())
        found.append(s)
    unknown = setup("ext_authz unknown cluster", authz({"http_service": {"server_uri": {"uri": "http://x", "cluster": "nowhere", "timeout": "1s"}}}), clusters=[cluster("a")])
    unknown.get("refused", "/")
    gone = setup("ext_authz refused", authz(), upstreams={"auth": "refused"})
    gone.get("refused", "/")
    retry = setup("ext_authz retries", authz({"http_service": http(retry_policy={"num_retries": 2, "retry_back_off": {"base_interval": "0.02s", "max_interval": "0.2s"}})}))
    retry.get("no condition", "/", upstream=[reply(503), reply()])
    retry.get("no reason", "/", upstream=[reply(404)])
    retry5 = setup("ext_authz retries 5xx", authz({"http_service": http(retry_policy={"retry_on": "5xx", "num_retries": 2, "retry_back_off": {"base_interval": "0.02s", "max_interval": "0.2s"}})}))
    retry5.get("second works", "/", upstream=[reply(503), reply()])
    retry5.get("third fails", "/", upstream=[reply(503), reply(502), reply(500)])
    return [*found, unknown, gone, retry, retry5]


def switches():
    off = setup("ext_authz disabled", authz(filter_enabled={"default_value": {"numerator": 0}}))
    off.get("passes", "/")
    deny = setup("ext_authz denied when disabled", authz(filter_enabled={"default_value": {"numerator": 0}}, deny_at_disable={"default_value": True, "runtime_key": "x"}, status_on_error={"code": 410}),
                 routes=[route("/off", typed_per_filter_config=per_route(disabled=True)), route("/")])
    deny.get("denied", "/")
    deny.get("off here", "/off")
    meta = setup("ext_authz by metadata", extension("set", "filters.http.set_metadata.v3.Config", metadata=[{"metadata_namespace": "ns", "value": {"check": "yes"}}]),
                 authz(filter_enabled_metadata={"filter": "ns", "path": [{"key": "check"}], "value": {"string_match": {"exact": "yes"}}}))
    meta.get("checked", "/", upstream=[reply(403)])
    other = setup("ext_authz by other metadata", authz(filter_enabled_metadata={"filter": "ns", "path": [{"key": "check"}], "value": {"string_match": {"exact": "yes"}}}))
    other.get("passes", "/")
    routes = setup("ext_authz routes", authz(), routes=[
        route("/off", typed_per_filter_config=per_route(disabled=True)), route("/direct", direct_response=say("here")), route("/redirect", redirect={"path_redirect": "/x"}),
        route("/other", typed_per_filter_config=per_route(check_settings={"http_service": {"server_uri": {"uri": "http://b", "cluster": "b", "timeout": "1s"}, "path_prefix": "/b"}})), route("/ok")],
        clusters=[cluster("a"), cluster("b"), cluster("auth")])
    for path in ("/off", "/direct", "/redirect", "/other", "/ok", "/nowhere"):
        routes.get(path, upstream=[reply(403)] if path not in ("/off", "/nowhere") else [])
    routes.get("direct allowed", "/direct", upstream=[reply()])
    override = setup("ext_authz path override", authz({"http_service": http(path_override="/fixed")}))
    override.get("asked", "/p?q=1", upstream=[reply()])
    return [off, deny, meta, other, routes, override]


# gRPC: messages by hand, as the harness has no protobuf.

def varint(n):
    out = b""
    while n > 0x7f:
        out, n = out + bytes([n & 0x7f | 0x80]), n >> 7
    return out + bytes([n])


def pb(*fields):
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            value = value.encode() if isinstance(value, str) else value
            out += varint(number << 3 | 2) + varint(len(value)) + value
    return out


def option(key, value, append=None, action=None):
    fields = [(1, pb((1, key), (2, value)))]
    if append is not None:
        fields.append((2, pb((1, 1)) if append else b""))
    if action is not None:
        fields.append((3, action))
    return pb(*fields)


def answer(*fields, status="0"):
    message = pb(*fields)
    return [("headers", [(":status", "200"), ("content-type", "application/grpc")], False), ("data", struct.pack(">BI", 0, len(message)) + message, False),
            ("headers", [("grpc-status", status)], True)]


def fields(data):
    """[(number, int or bytes)] of a message."""
    found, at = [], 0

    def number():
        nonlocal at
        value, shift = 0, 0
        while True:
            byte = data[at]
            at, value, shift = at + 1, value | (byte & 0x7f) << shift, shift + 7
            if byte < 0x80:
                return value
    while at < len(data):
        key = number()
        if key & 7 == 0:
            found.append((key >> 3, number()))
        else:
            size = number()
            found.append((key >> 3, data[at:at + size]))
            at += size
    return found


HEADERS = {1: "key", 2: "value"}
SCHEMA = {1: ("attributes", {
    1: ("source", {1: ("address", {1: ("socket", {2: "address"})}), 2: "service", 4: "principal", 5: "certificate"}),
    2: ("destination", {1: ("address", {1: ("socket", {2: "address"})}), 2: "service", 3: ("labels", HEADERS), 4: "principal"}),
    4: ("request", {2: ("http", {2: "method", 3: ("headers", HEADERS), 4: "path", 5: "host", 6: "scheme", 7: "query", 8: "fragment", 9: "size", 10: "protocol", 11: "body", 12: "raw_body",
                                 13: ("header_map", {1: ("headers", {1: "key", 2: "value", 3: "raw_value"})})})}),
    10: ("context_extensions", HEADERS), 11: ("metadata_context", {}), 13: ("route_metadata_context", {}), 12: ("tls_session", {1: "sni"})})}


def read(data, schema, names):
    """What a message says, as far as the schema goes; maps in the order of their keys."""
    found = {}
    for number, value in fields(data):
        entry = schema.get(number)
        if entry is None:
            continue
        name, inner = (entry, None) if isinstance(entry, str) else entry
        if inner is not None:
            value = read(value, inner, names)
        elif isinstance(value, bytes):
            value = names.text(value.decode("latin-1"))
        found.setdefault(name, []).append(value)
    return {name: sorted(values, key=str) for name, values in sorted(found.items())}


def ask(s, name, path="/", headers=(), method="GET", body=b"", **fields):
    """A request of which the service is asked over gRPC; compares what it was asked."""
    def run(context):
        responses, _ = context.exchange(request(path, headers, method, body), (method,))
        asked = [record for record in context.answers.taken() if record["upstream"] == "auth"]
        return {"answers": context.shown(responses), "asked": [[sorted(name for name, _ in record["headers"]), read(record["body"][5:], SCHEMA, context.names)] for record in asked]}
    s.script(name, run, ignore=("upstream",), **fields)


def grpc(**fields):
    return authz({"grpc_service": {"envoy_grpc": {"cluster_name": "auth"}, "timeout": "2.5s"}, "transport_api_version": "V3"}, **fields)


def over_grpc(name, *filters, **fields):
    return setup(name, *filters, clusters=[cluster("a"), cluster("auth", typed_extension_protocol_options=http2_options())], upstreams={"auth": "h2"}, **fields)


def service():
    s = over_grpc("ext_authz grpc", grpc(clear_route_cache=True))
    sent = [("x-user", "ann"), ("x-user", "bob"), ("cookie", "a=1"), ("x-drop", "1"), ("x-bytes", "caf\xe9"), ("x-envoy-downstream-service-cluster", "web")]
    ask(s, "allowed", "/p?a=1&b=2", sent, upstream=[answer()])
    ask(s, "post", "/p", sent, "POST", b"body", upstream=[answer((1, pb((1, 0))))])
    ok = pb((2, option("x-user", "eve", True)), (2, option("x-new", "1", True)), (2, option("x-set", "1")), (2, option("x-set", "2")), (2, option("x-drop", "kept")), (5, "x-drop"), (5, ":path"),
            (6, option("x-r", "1")), (6, option("x-r", "2", action=2)), (6, option("x-a", "1", action=1)), (6, option("x-b", "1", action=3)),
            (7, pb((1, "a"), (2, "9"))), (7, pb((1, "z"), (2, "1"))), (8, "b"))
    ask(s, "changes", "/p?b=1&a=1&c=%20&a=2", sent, upstream=[answer((3, ok))])
    s.get("changes seen", "/p?b=1&a=1&c=%20&a=2", sent, upstream=[answer((3, ok))], ignore=("upstream",))
    denied = pb((1, pb((1, 401))), (2, option("x-why", "1")), (2, option("set-cookie", "a")), (2, option("set-cookie", "b")), (3, "go away"))
    for name, said in (("denied", answer((1, pb((1, 7))), (2, denied))), ("denied plainly", answer((1, pb((1, 16))))), ("denied body only", answer((1, pb((1, 7))), (2, pb((3, "no"))))),
                       ("ok but denied", answer((1, pb((1, 0))), (2, denied))), ("denied but ok", answer((1, pb((1, 7))), (3, ok))), ("error response", answer((1, pb((1, 13))), (5, denied))),
                       ("status 14", [("headers", [(":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "14"), ("grpc-message", "x")], True)]),
                       ("http 503", [("headers", [(":status", "503")], True)]), ("reset", [("reset", 2)]), ("no message", [("headers", [(":status", "200"), ("content-type", "application/grpc")], False), ("headers", [("grpc-status", "0")], True)]),
                       ("garbage", [("headers", [(":status", "200"), ("content-type", "application/grpc")], False), ("data", b"\0\0\0\0\2\xff\xff", False), ("headers", [("grpc-status", "0")], True)]),
                       ("hangs", [6.0])):
        ask(s, name, "/", upstream=[said])
    every = over_grpc("ext_authz grpc more", grpc(encode_raw_headers=True, include_tls_session=True, include_peer_certificate=True, disallowed_headers=patterns("x-secret"), with_request_body={"max_request_bytes": 5, "allow_partial_message": True, "pack_as_bytes": True}),
                      routes=[route("/r", typed_per_filter_config=per_route(check_settings={"context_extensions": {"a": "route"}}), metadata={"filter_metadata": {"ns": {"k": "v"}}}), route("/")])
    ask(every, "raw", "/r", [("x-secret", "1"), ("x-user", "a"), ("x-user", "b")], "POST", b"0123456789", upstream=[answer()])
    ask(every, "exact", "/", [], "POST", b"01234", upstream=[answer()])
    strict = over_grpc("ext_authz grpc strict", grpc(validate_mutations=True))
    for name, said in (("bad name", pb((2, option("bad name", "x")))), ("bad value", pb((2, option("x", "a\nb")))), ("bad response", pb((6, option("bad name", "x")))), ("bad query", pb((7, pb((1, "a b"), (2, "x"))))),
                       ("bad removal", pb((5, "bad name"))), ("bad action", pb((6, option("x", "y", action=9))))):
        ask(strict, name, "/", upstream=[answer((3, said))])
    ask(strict, "bad denial", "/", upstream=[answer((1, pb((1, 7))), (2, pb((2, option("bad name", "x")))))])
    # What the service adds is held to the limits that the client is held to.
    limits = over_grpc("ext_authz grpc limits", grpc(), hcm={"max_request_headers_kb": 4, "common_http_protocol_options": {"max_headers_count": 20}})
    for name, options in (("few", [option(f"x-{n}", "1") for n in range(13)]), ("one more", [option(f"x-{n}", "1") for n in range(14)]), ("many", [option(f"x-{n}", "1") for n in range(30)]), ("large", [option("x-large", "y" * 5000)]), ("appended", [option("x-user", "y" * 4000, True)])):
        ask(limits, name, "/", [("x-user", "ann")], upstream=[answer((3, pb(*[(2, each) for each in options])))])
        limits.get(f"{name} seen", "/", [("x-user", "ann")], upstream=[answer((3, pb(*[(2, each) for each in options])))], ignore=("upstream",))
    return [s, every, strict, limits]


def setups():
    return [plain(), headers(), *bodies(), *modes(), *switches(), *service()]
