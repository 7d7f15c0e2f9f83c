"""Upgrades and CONNECT: who may, what the upstream sees, and that bytes flow both ways and end together."""
from harness.config import cluster, route, to
from harness.setup import Setup, reply

ASK = "GET {path} HTTP/1.1\r\nHost: host\r\nConnection: {connection}\r\nUpgrade: {protocol}\r\nSec-WebSocket-Key: k\r\nSec-WebSocket-Version: 13\r\n{more}\r\n"
YES = [b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: a\r\nserver: up\r\n\r\n", "echo"]


def ask(path="/", connection="Upgrade", protocol="websocket", more=""):
    return ASK.format(path=path, connection=connection, protocol=protocol, more=more).encode()


def setups():
    setup = Setup("upgrade", hcm={"upgrade_configs": [{"upgrade_type": "websocket"}, {"upgrade_type": "foo"}, {"upgrade_type": "off", "enabled": False}]}, routes=[
        route("/no", to(upgrade_configs=[{"upgrade_type": "websocket", "enabled": False}])), route("/off", to(upgrade_configs=[{"upgrade_type": "off"}])), route("/retry", to(retry_policy={"retry_on": "5xx"})),
        route("/timeout", to(timeout="0.3s")), route("/", to())], stats=["^http.test.downstream_cx_upgrades_total", "^cluster.a.upstream_rq_"])
    for name, data in {"plain": ask(), "no on route": ask("/no"), "list": ask(connection="keep-alive, Upgrade"), "lower": ask(connection="upgrade"), "other allowed": ask(protocol="foo"), "not allowed": ask(protocol="bar"),
                       "off": ask(protocol="off"), "off but route": ask("/off", protocol="off"), "upper": ask(protocol="WebSocket"), "retry": ask("/retry"),
                       "with length": ask(more="Content-Length: 3\r\n") + b"abc", "chunked": ask(more="Transfer-Encoding: chunked\r\n") + b"3\r\nabc\r\n0\r\n\r\n",
                       "post": ask().replace(b"GET", b"POST"), "http10": ask().replace(b"HTTP/1.1", b"HTTP/1.0")}.items():
        setup.raw(name, data, upstream=[YES], wait=0.7)
    setup.raw("echo", ask(), 0.15, b"hello", 0.15, b"again", 0.15, upstream=[YES])
    setup.raw("early bytes", ask() + b"early", 0.2, b"late", 0.2, upstream=[YES])
    setup.raw("server speaks first", ask(), 0.2, upstream=[[YES[0] + b"welcome", "echo"]])
    setup.raw("server closes", ask(), 0.3, upstream=[[YES[0] + b"bye", 0.1, "close"]])
    setup.raw("client closes", ask(), 0.15, b"x", 0.15, upstream=[YES], close=True, settle=0.2)
    setup.raw("outlives timeout", ask("/timeout"), 0.15, b"one", 0.5, b"two", 0.2, upstream=[YES])
    setup.raw("refused by upstream", ask(), upstream=[reply(403, [], "no")])
    setup.raw("upstream says 200", ask(), upstream=[reply(200, [], "fine")])
    setup.raw("upstream says 426", ask(), upstream=[reply(426, [("upgrade", "websocket"), ("connection", "upgrade")], "no")])
    setup.raw("upstream closes", ask(), upstream=[["close"]])
    setup.raw("503 retried", ask("/retry"), 0.3, upstream=[reply(503, [], "x"), YES])

    # A 101 that nobody asked for spoils Envoy's next request on that connection, so each has its own process.
    spoiled = []
    for name, data, answer in (("no-connection", ask(connection="keep-alive"), YES), ("h2c", ask(protocol="h2c", connection="Upgrade, HTTP2-Settings"), YES), ("no-upgrade-header", ask(), [b"HTTP/1.1 101 Switching\r\n\r\n", "echo"])):
        alone = Setup(f"101-{name}", hcm={"upgrade_configs": [{"upgrade_type": "websocket"}]})
        alone.raw("request", data, upstream=[answer], wait=1.0)
        spoiled.append(alone)

    connect = Setup("connect", hcm={"upgrade_configs": [{"upgrade_type": "CONNECT"}]}, clusters=[cluster("tcp"), cluster("a")], upstreams={"tcp": "echo"}, routes=[
        route({"connect_matcher": {}, "headers": [{"name": "x-proxy", "present_match": True}]}, to("a")), route({"connect_matcher": {}}, to("tcp", upgrade_configs=[{"upgrade_type": "CONNECT", "connect_config": {}}])), route("/", to("a"))])
    for name, data in {"terminate": b"CONNECT host:80 HTTP/1.1\r\nHost: host:80\r\n\r\n", "no host": b"CONNECT host:80 HTTP/1.1\r\n\r\n", "no port": b"CONNECT host HTTP/1.1\r\nHost: host\r\n\r\n",
                       "path": b"CONNECT /path HTTP/1.1\r\nHost: host\r\n\r\n", "proxied": b"CONNECT host:80 HTTP/1.1\r\nHost: host:80\r\nX-Proxy: 1\r\n\r\n", "get": b"GET / HTTP/1.1\r\nHost: host\r\n\r\n"}.items():
        method = "GET" if name == "get" else "CONNECT"
        connect.raw(name, data, 0.2, b"ping" if name in ("terminate", "no host", "proxied") else b"", 0.2, methods=[method], upstream=[[b"HTTP/1.1 200 OK\r\n\r\n", "echo"]] if name == "proxied" else [], wait=1.0)
    none = Setup("connect-not-allowed", routes=[route({"connect_matcher": {}}, to()), route("/", to())])
    none.raw("connect", b"CONNECT host:80 HTTP/1.1\r\nHost: host:80\r\n\r\n", methods=["CONNECT"])
    return [setup, connect, none, *spoiled]
