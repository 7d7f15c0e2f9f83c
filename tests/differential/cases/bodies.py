"""Bodies and how they end, between every pair of protocols: slow bodies and flow control, trailers, 100-continue, HTTP/1.0, pipelining; gRPC-Web;
a PROXY header before all of it."""
import base64
import struct

from harness import wire2
from harness.config import cluster, extension, http2_options, route, to
from harness.setup import Setup, reply, request

LARGE = b"0123456789abcdef" * 20000
CHUNKED = ("transfer-encoding", "chunked")
OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
TRAILERS = {OPTIONS: {"@type": "type.googleapis.com/" + OPTIONS, "explicit_http_config": {"http_protocol_options": {"enable_trailers": True}}}}


def chunks(*parts, trailers=b""):
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n" + trailers + b"\r\n"


def pair(name, **fields):
    """A setup with both kinds of upstreams: /1 goes to HTTP/1, /2 to HTTP/2."""
    fields.setdefault("hcm", {"http_protocol_options": {"enable_trailers": True}})
    return Setup(name, clusters=[cluster("one", typed_extension_protocol_options=TRAILERS), cluster("two", typed_extension_protocol_options=http2_options())],
                 upstreams={"two": "h2"}, routes=[route("/1", to("one")), route("/2", to("two"))], **fields)


def slow():
    setup = pair("slow", stats=["^cluster.(one|two).upstream_rq_(total|completed|200)", "^http.test.downstream_rq_(total|completed|2xx)"])
    for path in ("/1", "/2"):
        head = request(path, [("content-length", "6")], method="POST")
        setup.raw(f"{path} length in pieces", head, 0.03, b"ab", 0.03, b"cd", 0.03, b"ef")
        head = request(path, [CHUNKED], method="POST")
        setup.raw(f"{path} chunks in pieces", head, 0.03, b"2\r\nab\r\n", 0.03, b"3\r\nc", 0.03, b"de\r\n0", 0.03, b"\r\n\r\n")
        setup.raw(f"{path} head in pieces", head[:20], 0.03, head[20:], 0.03, chunks(b"x"))
        setup.get(f"{path} large length", path, method="POST", body=LARGE)
        setup.get(f"{path} large chunked", path, [CHUNKED], method="POST", body=chunks(LARGE, b"x"))
        setup.get(f"{path} many chunks", path, [CHUNKED], method="POST", body=chunks(*[b"y"] * 2000))
        post = wire2.headers(1, [(":method", "POST"), (":scheme", "http"), (":authority", "host"), (":path", path)])
        setup.add(f"{path} h2 in pieces", h2={"frames": [post, 0.03, wire2.data(1, b"ab"), 0.03, wire2.data(1, b""), 0.03, wire2.data(1, b"cd", True)]})
        setup.add(f"{path} h2 end alone", h2={"frames": [post, 0.03, wire2.data(1, b"ab"), 0.03, wire2.data(1, b"", True)]})
        setup.add(f"{path} h2 padded", h2={"frames": [post, wire2.frame(wire2.DATA, wire2.PADDED | wire2.END_STREAM, 1, b"\x04abcd" + b"\0" * 4)]})
    setup.raw("/1 slow response", request("/1"), upstream=[[b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nab", 0.03, b"cd", 0.03, b"ef"]])
    setup.raw("/1 slow chunked response", request("/1"), upstream=[[b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\na", 0.03, b"b\r\n", 0.03, b"0\r\n\r\n"]])
    setup.raw("/1 until close", request("/1"), upstream=[[b"HTTP/1.1 200 OK\r\n\r\nab", 0.03, b"cd", "close"]])
    setup.raw("/1 large response", request("/1"), upstream=[reply(200, [], LARGE)])
    setup.raw("/2 slow response", request("/2"), upstream=[[("headers", [(":status", "200")], False), 0.03, ("data", b"ab", False), 0.03, ("data", b"cd", True)]])
    setup.http2("h2 from 1", "/1", upstream=[[b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nab", 0.03, b"cd"]])
    setup.http2("h2 from 1 large", "/1", upstream=[reply(200, [], LARGE[:60000])])
    setup.http2("h2 from 2", "/2", upstream=[[("headers", [(":status", "200")], False), 0.03, ("data", b"ab", False), 0.03, ("data", b"", True)]])
    windows = Setup("windows", hcm={"http2_protocol_options": {"initial_stream_window_size": 65535, "initial_connection_window_size": 65535}})
    windows.http2("within", method="POST", body=b"x" * 16000)
    get = wire2.headers(1, [(":method", "GET"), (":scheme", "http"), (":authority", "host"), (":path", "/")], True)
    # A window of five bytes holds the rest back until it is widened.
    windows.script("narrow", lambda context: narrow(context, get), upstream=[reply(200, [], "0123456789")])
    windows.script("no window", lambda context: narrow(context, get, 0), upstream=[reply(200, [], "0123456789")])
    return [setup, windows]


def narrow(context, get, window=5):
    """How much of the body comes before and after the stream's window is widened."""
    connection, reader = context.connect(), wire2.Reader()
    connection.send(wire2.PREFACE + wire2.settings(initial_window_size=window) + get)

    def body():
        stream = reader.streams.get(1)
        return stream["body"] if stream and stream["heads"] else None
    fed = [0]

    def read(done):
        def look(data):
            answer = wire2.answers([one for one in reader.feed(data[fed[0]:]) if one[0] != wire2.DATA])
            fed[0] = len(data)
            if answer:
                connection.send(answer)
            return done()
        connection.until(look, 3)
    read(lambda: body() is not None and len(body()) >= window)
    before = body().decode()
    connection.send(wire2.frame(wire2.WINDOW_UPDATE, 0, 1, struct.pack(">I", 100)))
    read(lambda: len(body() or b"") >= 10)
    connection.methods = []
    connection.reader, connection.fed = reader, fed[0]
    return [before, body().decode()]


def trailers():
    setup = pair("trailers")
    end = [("headers", [("x-t", "1"), ("grpc-status", "0")], True)]
    for path in ("/1", "/2"):
        setup.get(f"{path} request", path, [CHUNKED, ("te", "trailers")], method="POST", body=chunks(b"x", trailers=b"X-T: 1\r\nx-u: 2\r\n"))
        setup.http2(f"{path} h2 request", path, method="POST", headers=[("te", "trailers")], body=b"x", trailers=[("x-t", "1"), ("x-u", "2")])
        setup.http2(f"{path} h2 no body", path, method="POST", trailers=[("x-t", "1")])
    setup.get("/1 response", "/1", upstream=[[b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunks(b"x", trailers=b"X-T: 1\r\n")]])
    setup.get("/1 response announced", "/1", [("te", "trailers")], upstream=[[b"HTTP/1.1 200 OK\r\ntrailer: x-t\r\ntransfer-encoding: chunked\r\n\r\n" + chunks(b"x", trailers=b"X-T: 1\r\n")]])
    setup.get("/2 response", "/2", upstream=[[("headers", [(":status", "200")], False), ("data", b"x", False), *end]])
    setup.get("/2 response without body", "/2", upstream=[[("headers", [(":status", "200")], False), *end]])
    setup.http2("/1 h2 response", "/1", upstream=[[b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunks(b"x", trailers=b"X-T: 1\r\n")]])
    setup.http2("/2 h2 response", "/2", upstream=[[("headers", [(":status", "200")], False), ("data", b"x", False), *end]])
    setup.get("/2 http10", "/2", version="1.0", upstream=[[("headers", [(":status", "200")], False), ("data", b"x", False), *end]])
    setup.get("/1 head", "/1", method="HEAD", upstream=[b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"])
    off = Setup("trailers-off")
    off.get("request", "/", [CHUNKED], method="POST", body=chunks(b"x", trailers=b"X-T: 1\r\n"))
    off.get("response", "/", upstream=[[b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunks(b"x", trailers=b"X-T: 1\r\n")]])
    off.http2("h2 request", method="POST", body=b"x", trailers=[("x-t", "1")])
    return [setup, off]


def expectations():
    made = []
    for name, hcm in {"default": {}, "proxied": {"proxy_100_continue": True}}.items():
        setup = Setup(f"continue-{name}", hcm=hcm)
        head = request("/", [("expect", "100-continue"), ("content-length", "5")], method="POST")
        setup.raw("waits", head, 0.1, b"hello")
        setup.raw("does not wait", head + b"hello")
        setup.raw("upper", request("/", [("Expect", "100-Continue"), ("content-length", "5")], method="POST") + b"hello")
        setup.raw("chunked", request("/", [("expect", "100-continue"), CHUNKED], method="POST"), 0.1, chunks(b"hello"))
        setup.raw("other", request("/", [("expect", "something"), ("content-length", "5")], method="POST") + b"hello", wait=1.0)
        setup.raw("no body", request("/", [("expect", "100-continue")]))
        setup.raw("refused early", head, upstream=[["early", b"HTTP/1.1 417 Expectation Failed\r\ncontent-length: 0\r\nconnection: close\r\n\r\n", "close"]], wait=1.0, ignore=("upstream", "log", "fate"))
        setup.raw("upstream continues", head, 0.1, b"hello", upstream=[["early", b"HTTP/1.1 100 Continue\r\n\r\n", 0.2, reply(200, [("connection", "close")], "done"), "hang"]], ignore=("upstream",))
        setup.http2("h2", method="POST", headers=[("expect", "100-continue")], body=b"hello")
        made.append(setup)
    return made


def old():
    setup = Setup("http10", hcm={"http_protocol_options": {"accept_http_10": True, "default_host_for_http_10": "default"}})
    for keep in (None, "keep-alive", "close"):
        more = [("connection", keep)] if keep else []
        setup.get(f"get {keep}", "/", more, version="1.0")
        setup.get(f"post {keep}", "/", more, method="POST", body=b"hello", version="1.0")
        setup.get(f"no length back {keep}", "/", more, version="1.0", upstream=[[b"HTTP/1.1 200 OK\r\n\r\nabc", "close"]])
        setup.get(f"head {keep}", "/", more, method="HEAD", version="1.0")
    setup.get("no host", "/", host="", version="1.0")
    setup.get("two on one", "/", [("connection", "keep-alive")], version="1.0")
    setup.raw("pipelined", request("/", [("connection", "keep-alive")], version="1.0") * 3, methods=["GET"] * 3)
    setup.raw("pipelined without keep-alive", request("/", version="1.0") * 2, methods=["GET"] * 2, wait=0.5)
    setup.get("old upstream", "/", upstream=[[b"HTTP/1.0 200 OK\r\ncontent-length: 3\r\n\r\nabc", "close"]])
    setup.get("old upstream until close", "/", upstream=[[b"HTTP/1.0 200 OK\r\n\r\nabc", "close"]])
    setup.get("old upstream keeps", "/", upstream=[[b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 3\r\n\r\nabc"]])
    refused = Setup("http10-refused")
    refused.get("get", "/", version="1.0")
    refused.get("keep", "/", [("connection", "keep-alive")], version="1.0")
    return [setup, refused]


def pipelines():
    setup = Setup("pipelining", routes=[route("/local", direct_response={"status": 200, "body": {"inline_string": "local"}}), route("/", to("a"))])
    get, post = request("/g"), request("/p", method="POST", body=b"hello")
    setup.raw("get post get", get + post + get, methods=["GET"] * 3)
    setup.raw("chunked between", get + request("/c", [CHUNKED], method="POST") + chunks(b"a", b"b") + get, methods=["GET"] * 3)
    setup.raw("local between", get + request("/local") + get, methods=["GET"] * 3)
    setup.raw("local with body", request("/local", method="POST", body=b"hello") + get, methods=["GET"] * 2)
    setup.raw("head between", get + request("/h", method="HEAD") + get, methods=["GET", "HEAD", "GET"])
    setup.raw("first is slow", get + get, methods=["GET"] * 2, upstream=[[0.2, reply(200, [], "slow")], reply(200, [], "fast")])
    setup.raw("close in the middle", get + request("/", [("connection", "close")]) + get, methods=["GET"] * 3, wait=1.0)
    setup.raw("bad in the middle", get + b"NONSENSE\r\n\r\n" + get, methods=["GET"] * 3, wait=1.0)
    setup.raw("upstream closes first", get + get, methods=["GET"] * 2, upstream=[reply(200, [("connection", "close")], "x"), reply(200, [], "y")])
    setup.raw("split between", get[:-2], 0.05, get[-2:] + get[:5], 0.05, get[5:], methods=["GET"] * 2)
    setup.raw("error in the middle", get + get + get, methods=["GET"] * 3, upstream=[reply(200, [], "x"), ["close"], reply(200, [], "z")], wait=1.0)
    setup.raw("a hundred", get * 100, methods=["GET"] * 100)
    return [setup]


def grpc_web():
    web = extension("envoy.filters.http.grpc_web", "filters.http.grpc_web.v3.GrpcWeb")
    setup = Setup("grpc-web", filters=[web], clusters=[cluster("two", typed_extension_protocol_options=http2_options())], upstreams={"two": "h2"}, routes=[route("/", to("two"))],
                  stats=["^cluster.two.grpc"])
    message = b"\0\0\0\0\2hi"
    done = [("headers", [(":status", "200"), ("content-type", "application/grpc")], False), ("data", message, False), ("headers", [("grpc-status", "0"), ("x-t", "v")], True)]
    failed = [("headers", [(":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "5"), ("grpc-message", "gone")], True)]
    texts = base64.b64encode(message)
    for kind, body in {"application/grpc-web": message, "application/grpc-web+proto": message, "application/grpc-web-text": texts, "application/grpc-web-text+proto": texts}.items():
        headers = [("content-type", kind), ("accept", kind)]
        setup.get(f"{kind}", "/s/m", headers, method="POST", body=body, upstream=[done])
        setup.get(f"{kind} trailers only", "/s/m", headers, method="POST", body=body, upstream=[failed])
        setup.http2(f"{kind} h2", "/s/m", headers, method="POST", body=body, upstream=[done])
    setup.get("text in pieces", "/s/m", [("content-type", "application/grpc-web-text"), CHUNKED], method="POST", body=chunks(texts[:3], texts[3:]), upstream=[done])
    setup.get("text broken", "/s/m", [("content-type", "application/grpc-web-text")], method="POST", body=b"***", upstream=[done])
    setup.get("accepts text", "/s/m", [("content-type", "application/grpc-web"), ("accept", "application/grpc-web-text")], method="POST", body=message, upstream=[done])
    setup.get("plain grpc", "/s/m", [("content-type", "application/grpc"), ("te", "trailers")], method="POST", body=message, upstream=[done])
    setup.get("not grpc", "/s/m", [("content-type", "text/plain")], method="POST", body=b"x", upstream=[done])
    setup.get("upstream 503", "/s/m", [("content-type", "application/grpc-web")], method="POST", body=message, upstream=[[("headers", [(":status", "503")], True)]])
    setup.get("upstream resets", "/s/m", [("content-type", "application/grpc-web")], method="POST", body=message, upstream=[[("reset", 8)]])
    return [setup]


def proxy_header():
    listener = {"listener_filters": [{"name": "envoy.filters.listener.proxy_protocol", "typed_config": {"@type": "type.googleapis.com/" + "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol"}}]}
    text = "src=[%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%] dst=[%DOWNSTREAM_LOCAL_ADDRESS%] code=[%RESPONSE_CODE%] flags=[%RESPONSE_FLAGS%]"
    setup = Setup("proxy", listener=listener, hcm={"use_remote_address": True}, log=text, stats=["proxy_proto"])
    allow = {"listener_filters": [{"name": "envoy.filters.listener.proxy_protocol", "typed_config": {**listener["listener_filters"][0]["typed_config"], "allow_requests_without_proxy_protocol": True}}]}
    either = Setup("proxy-or-not", listener=allow, hcm={"use_remote_address": True}, log=text, stats=["proxy_proto"])
    get = request("/")
    signature = b"\r\n\r\n\0\r\nQUIT\n"

    def two(command, family, payload, length=None):
        return signature + bytes([0x20 | command, family]) + struct.pack(">H", len(payload) if length is None else length) + payload
    v4 = bytes([1, 2, 3, 4, 5, 6, 7, 8]) + struct.pack(">HH", 1000, 2000)
    v6 = bytes(15) + b"\1" + bytes(15) + b"\2" + struct.pack(">HH", 1000, 2000)
    rows = {"v1 tcp4": b"PROXY TCP4 1.2.3.4 5.6.7.8 1000 2000\r\n", "v1 tcp6": b"PROXY TCP6 1::2 5::6 1000 2000\r\n", "v1 unknown": b"PROXY UNKNOWN\r\n", "v1 unknown with text": b"PROXY UNKNOWN ff:: ff:: 1 2\r\n",
            "v1 bad address": b"PROXY TCP4 1.2.3 5.6.7.8 1000 2000\r\n", "v1 bad port": b"PROXY TCP4 1.2.3.4 5.6.7.8 1000 70000\r\n", "v1 mixed": b"PROXY TCP4 1::2 5.6.7.8 1000 2000\r\n", "v1 short": b"PROXY TCP4 1.2.3.4\r\n",
            "v1 long": b"PROXY TCP4 " + b"1" * 200 + b"\r\n", "v1 bare lf": b"PROXY TCP4 1.2.3.4 5.6.7.8 1000 2000\n", "v1 lower": b"proxy TCP4 1.2.3.4 5.6.7.8 1000 2000\r\n", "v1 two spaces": b"PROXY TCP4  1.2.3.4 5.6.7.8 1000 2000\r\n",
            "v1 leading zero": b"PROXY TCP4 01.2.3.4 5.6.7.8 1000 2000\r\n", "v1 udp": b"PROXY UDP4 1.2.3.4 5.6.7.8 1000 2000\r\n",
            "v2 tcp4": two(1, 0x11, v4), "v2 tcp6": two(1, 0x21, v6), "v2 local": two(0, 0, b""), "v2 local with address": two(0, 0x11, v4), "v2 tlv": two(1, 0x11, v4 + b"\xea\0\3abc"), "v2 cut tlv": two(1, 0x11, v4 + b"\xea\0\x09abc"),
            "v2 short address": two(1, 0x11, v4[:6]), "v2 udp": two(1, 0x12, v4), "v2 unspec": two(1, 0, b""), "v2 bad command": two(2, 0x11, v4), "v2 bad family": two(1, 0x51, v4), "v2 version 1": signature + b"\x11\x11\0\x0c" + v4, "none": b"",
            "half signature": signature[:6]}
    for name, header in rows.items():
        for target in (setup, either):
            target.raw(name, header + get, wait=0.6)
    setup.raw("v1 in pieces", b"PROXY TCP4 1.2.3.4 5.6", 0.05, b".7.8 1000 2000\r\n" + get[:9], 0.05, get[9:])
    setup.raw("v2 in pieces", two(1, 0x11, v4)[:14], 0.05, two(1, 0x11, v4)[14:] + get)
    setup.raw("twice", rows["v1 tcp4"] * 2 + get, wait=0.6)
    return [setup, either]


def floods():
    """Frames that get a client nowhere; and as many as are allowed."""
    made = []
    get = [(":method", "POST"), (":scheme", "http"), (":authority", "host"), (":path", "/")]
    head = wire2.headers(1, get)
    window = wire2.frame(wire2.WINDOW_UPDATE, 0, 0, struct.pack(">I", 1))
    priority = wire2.frame(wire2.PRIORITY, 0, 1, struct.pack(">IB", 0, 5))
    empty = wire2.data(1, b"")
    rows = {"priority allowed": ([head + priority * 200 + wire2.data(1, b"x", True)], True), "priority": ([head + priority * 201 + wire2.data(1, b"x", True)], False), "window allowed": ([head + window * 7 + wire2.data(1, b"x", True)], True),
            "window": ([head + window * 8 + wire2.data(1, b"x", True)], False), "empty allowed": ([head + empty + wire2.data(1, b"x") + empty + wire2.data(1, b"x", True)], True), "empty": ([head + empty * 2 + wire2.data(1, b"x", True)], False),
            "empty padded": ([head + wire2.frame(wire2.DATA, wire2.PADDED, 1, b"\2\0\0") * 2 + wire2.data(1, b"x", True)], False)}
    for name, hcm in {"default": {}, "limits": {"http2_protocol_options": {"max_inbound_priority_frames_per_stream": 1, "max_inbound_window_update_frames_per_data_frame_sent": 1, "max_consecutive_inbound_frames_with_empty_payload": 3}}}.items():
        setup = Setup(f"floods-{name}", hcm=hcm, stats=["^http2.inbound"])
        for case, (frames, passes) in rows.items():
            # What ends a flood may end it before or after its answer.
            setup.add(case, h2={"frames": frames}, wait=0.5, ignore=() if passes and name == "default" else ("upstream", "log"))
        made.append(setup)
    return made


def setups():
    return [*slow(), *trailers(), *expectations(), *old(), *pipelines(), *grpc_web(), *proxy_header(), *floods()]
