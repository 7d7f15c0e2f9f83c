"""tcp_proxy through HTTP tunnels (CONNECT and POST, HTTP/1 and HTTP/2), and the PROXY protocol towards upstreams."""
from harness.config import V3, cluster, endpoint, extension, file_log, http2_options, typed
from harness.setup import Setup

LOG_TCP = "flags=[%RESPONSE_FLAGS%] term=[%CONNECTION_TERMINATION_DETAILS%] cluster=[%UPSTREAM_CLUSTER%] host=[%UPSTREAM_HOST%] rx=[%BYTES_RECEIVED%] tx=[%BYTES_SENT%] attempts=[%UPSTREAM_REQUEST_ATTEMPT_COUNT%] uproto=[%UPSTREAM_PROTOCOL%] " \
    "answer=[%FILTER_STATE(envoy.tcp_proxy.propagate_response_headers:TYPED)%]"


def proxy(name="a", log=LOG_TCP, **fields):
    return extension("envoy.filters.network.tcp_proxy", "filters.network.tcp_proxy.v3.TcpProxy", stat_prefix="t", cluster=name, access_log=[file_log(log)] if log else [], **fields)


def state(*pairs):
    return extension("envoy.filters.network.set_filter_state", "filters.network.set_filter_state.v3.Config", on_new_connection=[
        {"object_key": key, "factory_key": factory, "format_string": {"text_format_source": {"inline_string": value}}} for key, factory, value in pairs])


YES = b"HTTP/1.1 200 OK\r\n\r\n"


def answer(status=200, headers=(), rest="echo"):
    head = "\r\n".join([f"HTTP/1.1 {status} Some", *(f"{name}: {value}" for name, value in headers)]).encode() + b"\r\n\r\n"
    return [head, rest]


def talk(*steps, wait=0.3, upstream=()):
    """A script: bytes sent one after another, and all that came back; with what upstreams saw."""
    def run(context):
        import time
        context.answers.load(list(upstream))
        connection = context.connect()
        for step in steps:
            connection.send(step)
            deadline = time.monotonic() + wait
            while connection.fate == "kept" and time.monotonic() < deadline:
                connection.poll(0.03)
        # Whether the end is orderly depends on which bytes the proxy had read by then.
        return [context.names.body(bytes(connection.received)), "kept" if connection.fate == "kept" else "gone"]
    return run


def raw(*steps, header=0, wait=0.4):
    """A script for an upstream that echoes: what it was sent first, as hexadecimal text, addresses of clients left out."""
    def run(context):
        import time
        connection = context.connect()
        for step in steps:
            connection.send(step)
            deadline = time.monotonic() + wait
            while connection.fate == "kept" and time.monotonic() < deadline:
                connection.poll(0.03)
        data = bytes(connection.received)
        port = connection.name.rsplit(":", 1)[1] if hasattr(connection, "name") else ""
        if data.startswith(b"PROXY "):
            return [context.names.text(data.decode().replace(f" {port} ", " <client> ")), connection.fate]
        return [data[:header].hex() if header else "", (data[:24] + b"PPPP" + data[28:]).hex() if data.startswith(b"\r\n\r\n\0") and data[13] == 0x11 else data.hex(), connection.fate]
    return run


def options(h1=True, **fields):
    if h1:
        return {}
    return {"typed_extension_protocol_options": http2_options(allow_connect=True)}


QUIET = ("headers*", "body*", "status*", "fate*", "rest*")
STATS = ["^tcp.t.(downstream_cx_(total|no_route)|early)", "^cluster.a.(upstream_cx_(connect_attempts_exceeded|connect_fail|overflow|total)|upstream_rq_(total|[0-9x]+$|pending_failure|retry))"]


def setups():
    made = []

    def one(name, tunneling, scripts, h2=False, ignore=(), network=(), upstreams=None, clusters=None, log=LOG_TCP, tcp=None, **fields):
        entry = clusters or [cluster("a", **options(not h2))]
        setup = Setup(name, manager=False, resets=True, network_filters=[*network, proxy(log=log, tunneling_config=tunneling, **(tcp or {}))], clusters=entry, upstreams=upstreams or {"a": "h2" if h2 else "http"}, stats=STATS, **fields)
        for case, script in scripts.items():
            setup.script(case, script, ignore=(*QUIET, *ignore))
        made.append(setup)
        return setup

    connect = {"hostname": "host.test:80"}
    post = {"hostname": "host.test:80", "use_post": True}
    ok = {"echo": talk(b"hello", b"again", upstream=[answer()]), "server first": talk(b"", b"x", upstream=[[YES + b"banner", "echo"]]), "201": talk(b"hello", upstream=[answer(201)]), "206": talk(b"x", upstream=[answer(206)]), "100 first": talk(b"x", upstream=[[b"HTTP/1.1 100 Continue\r\n\r\n" + YES, "echo"]]),
          "refused": talk(b"hello", upstream=[answer(403, [("content-length", "0")], "hang")]), "refused, body": talk(b"hello", upstream=[answer(503, [("content-length", "3")], b"abc")]), "301": talk(b"x", upstream=[answer(301, [("content-length", "0")], "hang")]),
          "server closes": talk(b"x", upstream=[[YES + b"bye", 0.1, "close"]]), "closes at once": talk(b"x", upstream=[["close"]]), "garbage": talk(b"x", upstream=[[b"garbage\r\n\r\n", "hang"]]), "length": talk(b"x", upstream=[answer(200, [("content-length", "3")])]), "chunked": talk(b"x", upstream=[answer(200, [("transfer-encoding", "chunked")])]),
          "101": talk(b"x", upstream=[answer(101, [("upgrade", "foo"), ("connection", "upgrade")])])}
    one("connect", connect, ok)
    # The body of a POST does not end before the connection does: the upstream must not wait for it.
    early = {"echo": talk(b"hello", b"again", upstream=[["early", *answer()]]), "refused": talk(b"hello", upstream=[["early", *answer(403, [("content-length", "0")], "hang")]]), "server closes": talk(b"x", upstream=[["early", YES + b"bye", 0.1, "close"]]),
             "201": talk(b"x", upstream=[["early", *answer(201)]]), "length": talk(b"x", upstream=[["early", *answer(200, [("content-length", "3")])]]), "chunked": talk(b"x", upstream=[["early", answer(200, [("transfer-encoding", "chunked")])[0] + b"3\r\nabc\r\n", "hang"]])}
    # When Envoy logs a tunnel whose request never ends is chance.
    one("post", {**post, "post_path": "/p"}, early, ignore=("log",))
    one("post-default-path", post, {"echo": early["echo"]}, ignore=("log",))
    one("connect-attempts", connect, {"second": talk(b"hello", upstream=[answer(503, [("content-length", "0")], "hang"), answer()], wait=0.5), "never": talk(b"x", upstream=[answer(503, [("content-length", "0")], "hang") for _ in range(5)], wait=0.5), "closed": talk(b"x", upstream=[["close"], answer()], wait=0.5)}, tcp={"max_connect_attempts": 3})
    headers = {**connect, "headers_to_add": [{"header": {"key": "x-static", "value": "one"}}, {"header": {"key": "x-addr", "value": "%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%"}}, {"header": {"key": "x-static", "value": "two"}}, {"header": {"key": "x-empty", "value": "%REQ(x)%"}}]}
    one("headers", headers, {"echo": ok["echo"]})
    one("hostname-format", {"hostname": "%DYNAMIC_METADATA(a:b)%.test:%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%"}, {"echo": ok["echo"]})
    one("propagate", {**connect, "propagate_response_headers": True, "propagate_response_trailers": True}, {"ok": talk(b"hello", upstream=[answer(200, [("x-a", "1"), ("x-b", "2")])]), "refused": talk(b"hello", upstream=[answer(403, [("x-a", "1"), ("content-length", "0")], "hang")])})
    one("no-host", connect, {"refused": talk(b"x")}, upstreams={"a": "refused"})
    one("h2-connect", connect, {"echo": talk(b"hello", upstream=[]), "again": talk(b"x", b"y")}, h2=True)
    one("h2-post", {**post, "post_path": "/p"}, {"echo": talk(b"hello"), "again": talk(b"x")}, h2=True, ignore=("log",))
    one("h2-headers", {**headers, "headers_to_add": headers["headers_to_add"][:2]}, {"echo": talk(b"hello")}, h2=True)
    for version in ("V1", "V2"):
        def through(name, scripts, config=None, tcp=None, listener=None, inner=None, **more):
            socket = extension("envoy.transport_sockets.upstream_proxy_protocol", "transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport", config={"version": version, **(config or {})},
                               transport_socket=extension("envoy.transport_sockets.raw_buffer", "transport_sockets.raw_buffer.v3.RawBuffer"), **more)
            setup = Setup(f"proxy-{version.lower()}-{name}", manager=False, network_filters=[proxy(log=None, **(tcp or {}))], clusters=[cluster("a", transport_socket=socket)], upstreams={"a": "echo"}, listener=listener or {}, log=None,
                          stats=["^cluster.a.upstream_cx_total", "tlvs_exceed"])
            for case, script in scripts.items():
                setup.script(case, script, ignore=QUIET)
            made.append(setup)
        accept = {"listener_filters": [extension("envoy.filters.listener.proxy_protocol", "filters.listener.proxy_protocol.v3.ProxyProtocol", allow_requests_without_proxy_protocol=True, pass_through_tlvs={"match_type": "INCLUDE_ALL"})]}
        some = {"listener_filters": [extension("envoy.filters.listener.proxy_protocol", "filters.listener.proxy_protocol.v3.ProxyProtocol", pass_through_tlvs={"match_type": "INCLUDE", "tlv_type": [2, 200]})]}
        tlvs = b"\x02\x00\x04host" + b"\xc8\x00\x03abc" + b"\xc9\x00\x00" + b"\xc8\x00\x01d"
        v4 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11" + (12 + len(tlvs)).to_bytes(2, "big") + bytes([10, 1, 2, 3, 10, 9, 8, 7, 3, 232, 0, 80]) + tlvs
        v6 = b"\r\n\r\n\0\r\nQUIT\n\x21\x21" + (36 + len(tlvs)).to_bytes(2, "big") + bytes(15) + b"\x01" + bytes(15) + b"\x02" + b"\x03\xe8\x00\x50" + tlvs
        local = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00"
        through("plain", {"direct": raw(b"hello")})
        for name, listener in (("all", accept), ("some", some)):
            for pass_name, passing in (("none", None), ("all", {"match_type": "INCLUDE_ALL"}), ("include", {"match_type": "INCLUDE", "tlv_type": [200, 201]})):
                through(f"pass-{name}-{pass_name}", {"v4": raw(v4 + b"x"), "v6": raw(v6 + b"x"), "v1": raw(b"PROXY TCP4 1.2.3.4 5.6.7.8 1000 80\r\nx"), "local": raw(local + b"x"), "unknown": raw(b"PROXY UNKNOWN\r\nx")}, {"pass_through_tlvs": passing} if passing else {}, listener=listener)
        added = [{"type": 200, "value": "YWRkZWQ="}, {"type": 250, "value": "AA=="}]
        through("added", {"v4": raw(v4 + b"x"), "direct": raw(b"PROXY UNKNOWN\r\nx")}, {"added_tlvs": added, "pass_through_tlvs": {"match_type": "INCLUDE_ALL"}}, listener=accept)
        through("added-alone", {"direct": raw(b"hello")}, {"added_tlvs": added})
        for policy in ("ADD_IF_ABSENT", "OVERWRITE_BY_TYPE_IF_EXISTS_OR_ADD", "APPEND_IF_EXISTS_OR_ADD"):
            through(f"tcp-{policy.split('_')[0].lower()}", {"v4": raw(v4 + b"x"), "direct": raw(b"hello")}, {"pass_through_tlvs": {"match_type": "INCLUDE_ALL"}}, {"proxy_protocol_tlvs": [{"type": 2, "value": "bmV3"}, {"type": 251, "value": "eA=="}], "proxy_protocol_tlv_merge_policy": policy}, accept)
        through("key", {"v4": raw(v4 + b"x")}, {"pass_through_tlvs": {"match_type": "INCLUDE_ALL"}}, listener=accept, tlv_as_pool_key=True)
    return made
