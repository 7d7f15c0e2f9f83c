"""HTTP/2 from clients and to upstreams; gRPC over both; protocol bridging."""
import struct

from harness import wire2
from harness.config import cluster, http2_options, route, to
from harness.setup import Setup, reply

GET = [(":method", "GET"), (":scheme", "http"), (":authority", "host"), (":path", "/")]


def without(name):
    return [pair for pair in GET if pair[0] != name]


def heads():
    setup = Setup("heads", hcm={"http2_protocol_options": {"allow_connect": True}})
    setup.http2("plain")
    setup.http2("post", method="POST", body=b"hello")
    setup.http2("post empty", method="POST", body=b"")
    setup.http2("post trailers", method="POST", body=b"hello", trailers=[("x-t", "1")])
    setup.http2("head", method="HEAD")
    setup.http2("content-length", method="POST", headers=[("content-length", "5")], body=b"hello")
    setup.http2("cookies", headers=[("cookie", "a=1"), ("cookie", "b=2")])
    setup.http2("te trailers", headers=[("te", "trailers")])
    setup.http2("host header too", headers=[("host", "other")])
    setup.http2("no authority", pseudo=without(":authority"))
    setup.http2("host instead", pseudo=without(":authority"), headers=[("host", "viahost")])
    setup.http2("delete", method="DELETE")
    setup.http2("custom method", method="BREW")
    setup.http2("upstream trailers", upstream=[[b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nx-t: 1\r\n\r\n"]])
    setup.http2("upstream 204", upstream=[reply(204, [], b"", length=False)])
    setup.http2("upstream 304", upstream=[[b"HTTP/1.1 304 Not Modified\r\netag: x\r\n\r\n"]])
    setup.http2("upstream connection headers", upstream=[reply(200, [("connection", "close"), ("keep-alive", "x"), ("upgrade", "y"), ("transfer-encoding-x", "z")], "x")])
    setup.http2("upstream 103", upstream=[[b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx"]])
    setup.http2("upstream closes", upstream=[["close"]])
    setup.http2("upstream half", upstream=[[b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", 0.1, "close"]])
    setup.http2("expect", method="POST", headers=[("expect", "100-continue")], body=b"x")
    setup.http2("large body", method="POST", body=b"x" * 16000)
    return setup


def hostile():
    setup = Setup("hostile")
    rows = {"no method": without(":method"), "no scheme": without(":scheme"), "no path": without(":path"), "empty path": [*without(":path"), (":path", "")], "two paths": [*GET, (":path", "/x")], "unknown pseudo": [*GET, (":what", "x")],
            "pseudo after": [*GET[:3], ("a", "b"), GET[3]], "status": [*GET, (":status", "200")], "upper name": [*GET, ("X-Upper", "v")], "connection": [*GET, ("connection", "close")], "keep-alive": [*GET, ("keep-alive", "x")],
            "transfer-encoding": [*GET, ("transfer-encoding", "chunked")], "upgrade": [*GET, ("upgrade", "x")], "te gzip": [*GET, ("te", "gzip")], "proxy-connection": [*GET, ("proxy-connection", "x")], "space name": [*GET, ("a b", "c")],
            "colon name": [*GET, ("a:b", "c")], "empty name": [*GET, ("", "c")], "nul value": [*GET, ("a", "b\0c")], "cr value": [*GET, ("a", "b\rc")], "lf value": [*GET, ("a", "b\nc")], "crlf value": [*GET, ("a", "b\r\nx: y")],
            "space value": [*GET, ("a", " b ")], "high value": [*GET, ("a", "\xe9")], "authority user": [*without(":authority"), (":authority", "u@h")], "authority space": [*without(":authority"), (":authority", "a b")],
            "authority crlf": [*without(":authority"), (":authority", "a\r\nx: y")], "method crlf": [*without(":method"), (":method", "GET / HTTP/1.1\r\nx: y")], "method space": [*without(":method"), (":method", "G T")],
            "path crlf": [*without(":path"), (":path", "/ HTTP/1.1\r\nx: y")], "scheme odd": [*without(":scheme"), (":scheme", "ftp")], "length wrong": [*GET, ("content-length", "5")], "length bad": [*GET, ("content-length", "x")],
            "two lengths": [*GET, ("content-length", "0"), ("content-length", "1")], "connect with path": [(":method", "CONNECT"), (":authority", "h:1"), (":path", "/")], "connect": [(":method", "CONNECT"), (":authority", "h:1")],
            "protocol without connect": [*GET, (":protocol", "websocket")]}
    for name, pairs in rows.items():
        setup.http2(name, pseudo=pairs)
    frames = {
        "data on idle stream": [wire2.data(1, b"x", True)], "headers on stream 2": [wire2.headers(2, GET, True)], "headers on stream 0": [wire2.headers(0, GET, True)], "window overflow": [wire2.frame(8, 0, 0, struct.pack(">I", 0x7FFFFFFF))],
        "window zero": [wire2.frame(8, 0, 0, struct.pack(">I", 0))], "ping short": [wire2.frame(6, 0, 0, b"x")], "settings odd": [wire2.frame(4, 0, 0, b"abc")], "settings push 2": [wire2.settings(enable_push=2)],
        "push promise": [wire2.frame(5, 4, 1, struct.pack(">I", 2) + wire2.encode(GET))], "continuation alone": [wire2.frame(9, 4, 1, wire2.encode(GET))], "rst idle": [wire2.frame(3, 0, 1, struct.pack(">I", 8))],
        "too large frame": [wire2.frame(0, 0, 1, b"x" * 20000)], "bad huffman": [wire2.frame(1, 5, 1, b"\x82\x86\x84\x41\x84\xff\xff\xff\xff")], "bad index": [wire2.frame(1, 5, 1, b"\xff\xff\xff")], "unknown frame": [wire2.frame(99, 0, 0, b"x"), wire2.headers(1, GET, True)],
        "priority self": [wire2.frame(2, 0, 1, struct.pack(">IB", 1, 5)), wire2.headers(1, GET, True)], "body past length": [wire2.headers(1, [(":method", "POST"), *GET[1:], ("content-length", "2")]) + wire2.data(1, b"hello", True)],
        "body short of length": [wire2.headers(1, [(":method", "POST"), *GET[1:], ("content-length", "9")]) + wire2.data(1, b"hello", True)], "data after end": [wire2.headers(1, GET, True) + wire2.data(1, b"x", True)],
        "reset": [wire2.headers(1, [(":method", "POST"), *GET[1:]]) + wire2.frame(3, 0, 1, struct.pack(">I", 8))], "goaway": [wire2.headers(1, GET, True) + wire2.frame(7, 0, 0, struct.pack(">II", 0, 0))],
        "two streams": [wire2.headers(1, GET, True) + wire2.headers(3, [*GET[:3], (":path", "/two")], True)],
    }
    wire = Setup("frames")
    for name, parts in frames.items():
        wire.add(name, ignore=("upstream",) if name.startswith(("body", "reset", "goaway", "data after")) else (), h2={"frames": parts, "streams": [1, 3] if name == "two streams" else [1]}, wait=0.5)
    return [setup, wire]


def upstream():
    setup = Setup("upstream", clusters=[cluster("two", typed_extension_protocol_options=http2_options())], upstreams={"two": "h2"}, routes=[route("/try", to("two", retry_policy={"retry_on": "refused-stream,reset"})), route("/", to("two"))],
                  stats=["^cluster.two.(http2|upstream_rq_(rx|tx)_reset)"])
    ok = [("headers", [(":status", "200"), ("x-a", "1")], False), ("data", b"two", True)]
    setup.get("get", "/p?q")
    setup.get("post", "/p", method="POST", body=b"hello")
    setup.get("chunked", "/p", [("transfer-encoding", "chunked")], method="POST", body=b"5\r\nhello\r\n0\r\n\r\n")
    setup.get("head", "/", method="HEAD", upstream=[[("headers", [(":status", "200"), ("content-length", "5")], True)]])
    setup.get("headers", "/", [("connection", "x-a"), ("x-a", "1"), ("te", "trailers"), ("X-Upper", "V"), ("cookie", "a=1; b=2")])
    setup.get("empty answer", "/", upstream=[[("headers", [(":status", "204")], True)]])
    setup.get("trailers", "/", upstream=[[("headers", [(":status", "200")], False), ("data", b"x", False), ("headers", [("x-t", "1")], True)]])
    setup.get("reset", "/", upstream=[[("reset", 8)]])
    setup.get("refused", "/", upstream=[[("reset", 7)]])
    setup.get("refused retried", "/try", upstream=[[("reset", 7)], ok])
    setup.get("reset after head", "/", upstream=[[("headers", [(":status", "200")], False), ("data", b"x", False), 0.1, ("reset", 2)]])
    setup.get("no status", "/", upstream=[[("headers", [("x", "y")], True)]])
    setup.get("connection header back", "/", upstream=[[("headers", [(":status", "200"), ("connection", "close")], True)]])
    setup.get("goaway", "/", upstream=[[*ok, ("goaway", 0)]])
    setup.get("after goaway", "/")
    setup.get("103", "/", upstream=[[("headers", [(":status", "103"), ("link", "x")], False), *ok]])
    setup.http2("h2", "/p", headers=[("cookie", "a=1"), ("cookie", "b=2")])
    setup.http2("h2 trailers", "/p", method="POST", body=b"x", trailers=[("x-t", "1")])
    grpc = [("content-type", "application/grpc"), ("te", "trailers")]
    message = b"\0\0\0\0\2hi"
    setup.http2("grpc", "/s/m", method="POST", headers=grpc, body=message, upstream=[[("headers", [(":status", "200"), ("content-type", "application/grpc")], False), ("data", message, False), ("headers", [("grpc-status", "0")], True)]])
    setup.http2("grpc error", "/s/m", method="POST", headers=grpc, body=message, upstream=[[("headers", [(":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "14"), ("grpc-message", "gone")], True)]])
    setup.http2("grpc reset", "/s/m", method="POST", headers=grpc, body=message, upstream=[[("reset", 8)]])
    setup.http2("grpc http error", "/s/m", method="POST", headers=grpc, body=message, upstream=[[("headers", [(":status", "503")], True)]])
    setup.http2("grpc timeout header", "/s/m", method="POST", headers=[*grpc, ("grpc-timeout", "5S")], body=message)
    setup.get("grpc over http1", "/s/m", grpc, method="POST", body=message)
    auto = Setup("downstream-protocol", clusters=[cluster("a", typed_extension_protocol_options={"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions", "use_downstream_protocol_config": {"http_protocol_options": {}, "http2_protocol_options": {}}}})])
    auto.get("http1", "/")
    refused = Setup("upstream-is-http1", clusters=[cluster("a", typed_extension_protocol_options=http2_options())])
    refused.script("get", lambda context: context.shown(context.exchange(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", wait=2.0)[0]), upstream=[[b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n", "close"]], ignore=("upstream",))
    return [setup, auto, refused]


def setups():
    return [heads(), *hostile(), *upstream()]
