"""CONNECT that ends in the proxy, WebSocket over HTTP/2, and what bounds streams and connections, with the log lines of those that go on."""
import struct
import time

from harness import wire2
from harness.config import cluster, http2_options, route, to
from harness.setup import Setup, reply, request

ASK = b"GET / HTTP/1.1\r\nHost: host\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\nSec-WebSocket-Version: 13\r\n\r\n"
YES = [b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: a\r\n\r\n", "echo"]
CONNECT = b"CONNECT host:80 HTTP/1.1\r\nHost: host:80\r\n\r\n"
STATS = ["^http.test.downstream_(cx_upgrades|rq_[0-9]|rq_total|rq_completed|rq_tx_reset)", "^cluster.(tcp|gone|a).upstream_rq_([0-9]|total|retry|completed)", "^cluster.(tcp|gone).upstream_cx_(total|connect_fail)"]
LOG = "type=[%ACCESS_LOG_TYPE%] code=[%RESPONSE_CODE%] details=[%RESPONSE_CODE_DETAILS%] flags=[%RESPONSE_FLAGS%] path=[%REQ(:PATH)%] method=[%REQ(:METHOD)%] cluster=[%UPSTREAM_CLUSTER%] rx=[%BYTES_RECEIVED%] tx=[%BYTES_SENT%]"


def ends(**config):
    return {"upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": config}]}


def connect():
    made = []
    for name, hcm in {"connect": {}, "connect-h2": {"http2_protocol_options": {"allow_connect": True}}}.items():
        setup = Setup(name, hcm={"upgrade_configs": [{"upgrade_type": "CONNECT"}], **hcm}, clusters=[cluster("tcp"), cluster("gone"), cluster("a")], upstreams={"tcp": "echo", "gone": "refused"}, stats=STATS, routes=[
            route({"connect_matcher": {}, "headers": [{"name": "x-gone", "present_match": True}]}, to("gone", retry_policy={"retry_on": "connect-failure", "num_retries": 2, "retry_back_off": {"base_interval": "0.001s"}}, **ends())),
            route({"connect_matcher": {}, "headers": [{"name": "x-v1", "present_match": True}]}, to("tcp", **ends(proxy_protocol_config={"version": "V1"}))),
            route({"connect_matcher": {}, "headers": [{"name": "x-v2", "present_match": True}]}, to("tcp", **ends(proxy_protocol_config={"version": "V2"}))),
            route({"connect_matcher": {}, "headers": [{"name": "x-idle", "present_match": True}]}, to("tcp", idle_timeout="0.3s", **ends())),
            route({"connect_matcher": {}}, to("tcp", **ends()), response_headers_to_add=[{"header": {"key": "x-out", "value": "1"}}]),
            route("/post", to("tcp", **ends(allow_post=True))), route("/nopost", to("a", **ends())), route("/", to("a"))])
        made.append(setup)
    setup, two = made
    setup.raw("ends", CONNECT, 0.2, b"ping", 0.2, b"pong", methods=["CONNECT"], wait=0.5, close=True, settle=0.2)
    setup.raw("early bytes", CONNECT + b"early", 0.3, methods=["CONNECT"], wait=0.5, close=True, settle=0.2)
    setup.raw("refused", CONNECT.replace(b"\r\n\r\n", b"\r\nx-gone: 1\r\n\r\n"), methods=["CONNECT"])
    setup.raw("idle", CONNECT.replace(b"\r\n\r\n", b"\r\nx-idle: 1\r\n\r\n"), 0.1, b"x", methods=["CONNECT"], settle=1.0)
    setup.raw("post", request("/post", method="POST", body=b"hello"), methods=["POST"], wait=0.7)
    setup.raw("post chunked", request("/post", [("transfer-encoding", "chunked")], "POST", b"5\r\nhello\r\n0\r\n\r\n"), methods=["POST"], wait=0.7, ignore=("fate", "headers"))
    setup.raw("nopost", request("/nopost", method="POST", body=b"hello"), methods=["POST"])
    setup.raw("get", request("/post"), methods=["GET"])
    for version in ("v1", "v2"):
        setup.script(f"proxy protocol {version}", lambda context, version=version: proxied(context, version), ignore=("body", "body*", "rest", "rest*"))
    pseudo = [(":method", "CONNECT"), (":authority", "host:80")]
    two.add("ends", h2={"frames": [wire2.headers(1, pseudo), 0.2, wire2.data(1, b"ping"), 0.2, wire2.data(1, b"pong", True), 0.2]}, wait=1.0)
    two.add("refused", h2={"frames": [wire2.headers(1, [*pseudo, ("x-gone", "1")])]}, ignore=("streams",))
    two.add("post", h2={"frames": [wire2.headers(1, [(":method", "POST"), (":scheme", "http"), (":authority", "host"), (":path", "/post")]), wire2.data(1, b"hello"), 0.2, wire2.data(1, b"more", True)]}, wait=1.0)
    return made


def proxied(context, version):
    """The echo of what came before the payload, without ports."""
    connection = context.connect()
    connection.methods = ["CONNECT"]
    connection.send(CONNECT.replace(b"\r\n\r\n", b"\r\nx-" + version.encode() + b": 1\r\n\r\n"))
    deadline = time.monotonic() + 2
    while b"\r\n\r\n" not in connection.received and time.monotonic() < deadline:
        connection.poll(0.02)
    connection.send(b"payload")
    while b"payload" not in connection.received and time.monotonic() < deadline:
        connection.poll(0.02)
    tail = connection.received.partition(b"\r\n\r\n")[2]
    return [word for word in tail.decode("latin-1").split() if not word.isdigit()] if version == "v1" else [tail[:16].hex(), len(tail)]


def websockets():
    """The same upgrade between HTTP/1 and HTTP/2, both ways."""
    extended = [(":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "http"), (":authority", "host"), (":path", "/"), ("sec-websocket-version", "13")]
    down = Setup("ws-h2-down", hcm={"upgrade_configs": [{"upgrade_type": "websocket"}], "http2_protocol_options": {"allow_connect": True}}, stats=STATS, routes=[route("/retry", to(retry_policy={"retry_on": "5xx"})), route("/", to())])
    down.add("echo", h2={"frames": [wire2.headers(1, extended), 0.2, wire2.data(1, b"hello"), 0.2, wire2.data(1, b"again")]}, upstream=[YES], wait=0.7)
    down.add("refused", h2={"frames": [wire2.headers(1, extended)]}, upstream=[reply(403, [], "no")])
    down.add("retried", h2={"frames": [wire2.headers(1, [pair if pair[0] != ":path" else (":path", "/retry") for pair in extended]), 0.3, wire2.data(1, b"hello")]}, upstream=[reply(503, [], "x"), YES], wait=0.7)
    up = Setup("ws-h2-up", hcm={"upgrade_configs": [{"upgrade_type": "websocket"}]}, clusters=[cluster("a", typed_extension_protocol_options=http2_options(allow_connect=True))], upstreams={"a": "h2"}, stats=STATS)
    up.raw("accepted", ASK, 0.2, b"hello", 0.2, upstream=[[("headers", [(":status", "200")], False), ("data", b"welcome", False), 0.6, ("data", b"bye", True)]], wait=1.0)
    up.raw("refused", ASK, upstream=[[("headers", [(":status", "403")], True)]])
    return [down, up]


def logs():
    """Lines at the start, at intervals, and when a tunnel stands."""
    start = Setup("log-start", hcm={"access_log_options": {"flush_access_log_on_new_request": True}}, log=LOG, routes=[route("/from", to(internal_redirect_policy={})), route("/", to())])
    start.get("plain", "/x")
    start.get("not found", "/x", host="")
    start.get("redirected", "/from", upstream=[reply(302, [("location", "http://host/target")])])
    start.get("post", "/x", method="POST", body=b"hello")
    old = Setup("log-start-deprecated", hcm={"flush_access_log_on_new_request": True}, log=LOG)
    old.get("plain", "/x")
    periodic = Setup("log-periodic", hcm={"access_log_options": {"access_log_flush_interval": "0.4s"}}, log=LOG)
    periodic.get("short", "/")
    periodic.get("late head", "/", upstream=[[1.0, reply(200, [], "late")]])
    periodic.get("late body", "/", upstream=[[b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nla", 1.0, b"te"]])
    tunnel = Setup("log-tunnel", hcm={"access_log_options": {"flush_log_on_tunnel_successfully_established": True}, "upgrade_configs": [{"upgrade_type": "CONNECT"}, {"upgrade_type": "websocket"}]}, log=LOG, clusters=[cluster("tcp"), cluster("a")], upstreams={"tcp": "echo"},
                   routes=[route({"connect_matcher": {}}, to("tcp", **ends())), route("/", to("a"))])
    tunnel.raw("connect", CONNECT, 0.2, b"ping", 0.2, methods=["CONNECT"], wait=0.3, close=True, settle=0.2)
    tunnel.raw("websocket", ASK, 0.2, b"ping", 0.2, upstream=[YES], wait=0.3, close=True, settle=0.2)
    tunnel.get("plain", "/")
    return [start, old, periodic, tunnel]


def unread():
    """A client that takes nothing more does not keep its stream for ever."""
    big = [b"HTTP/1.1 200 OK\r\ncontent-length: 60000000\r\n\r\n" + b"x" * 60000000]
    setup = Setup("unread", hcm={"stream_idle_timeout": "0.5s"}, log="code=[%RESPONSE_CODE%] details=[%RESPONSE_CODE_DETAILS%] flags=[%RESPONSE_FLAGS%]", stats=["downstream_rq_idle_timeout", "downstream_rq_max_duration"], routes=[route("/max", to(max_stream_duration={"max_stream_duration": "0.5s"}, idle_timeout="0s")), route("/", to())])
    setup.script("http1", lambda context: stall(context, "/"), upstream=[big], ignore=("status", "headers", "body", "fate", "rest", "upstream"))
    setup.script("http1 max", lambda context: stall(context, "/max"), upstream=[big], ignore=("status", "headers", "body", "fate", "rest", "upstream"))
    window = {"settings": {"initial_window_size": 1000}, "frames": [wire2.headers(1, [(":method", "GET"), (":scheme", "http"), (":authority", "host"), (":path", "/")], True)]}
    setup.add("http2", h2={**window, "frames": [wire2.settings(initial_window_size=1000) + window["frames"][0]]}, upstream=[[b"HTTP/1.1 200 OK\r\ncontent-length: 60000000\r\n\r\n" + b"x" * 60000000]], wait=3.0, ignore=("upstream",))
    flush = Setup("flush", hcm={"stream_flush_timeout": "0.4s", "stream_idle_timeout": "0s"}, log="code=[%RESPONSE_CODE%]", stats=["http2.tx_flush_timeout"], ignore=("upstream", "log"))
    flush.add("end unread", h2={"frames": [wire2.settings(initial_window_size=1000) + window["frames"][0]]}, upstream=[reply(200, [], b"x" * 4000)], wait=3.0)
    return [setup, flush]


def stall(context, path):
    connection = context.connect()
    connection.methods = ["GET"]
    connection.send(request(path))
    time.sleep(2.0)
    return None


def lifetimes():
    """What max_connection_duration does to a connection that is idle, busy, or asked again."""
    made = []
    for name, hcm in {"plain": {}, "safe": {"http1_safe_max_connection_duration": True}}.items():
        setup = Setup(f"duration-{name}", hcm={"common_http_protocol_options": {"max_connection_duration": "0.8s"}, "drain_timeout": "1.2s", **hcm}, stats=["downstream_cx_max_duration"], linger=3.0)
        setup.raw("idle", request("/"), 1.4)
        setup.raw("asked again", request("/"), 1.4, request("/"), methods=["GET"] * 2)
        setup.raw("busy", request("/"), upstream=[[3.0, reply(200, [], "late")]], wait=6.0)
        made.append(setup)
    return made


def setups():
    return [*connect(), *websockets(), *logs(), *unread(), *lifetimes()]
