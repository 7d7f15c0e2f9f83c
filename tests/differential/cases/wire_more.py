"""More hostile bytes, in both directions and both versions of HTTP. The rule is: never laxer than Envoy. Ideas come from the corpora that
proxies and their testers publish (smuggling by framing, by line ends, by what HTTP/2 can say and HTTP/1 cannot); the cases are our own.

Only what is decided here is compared: what is served, what the upstream and the client see of it, and what becomes of HTTP/1 connections. How a
refusal is logged and told in HTTP/2 is compared by `http1_hostile` and `http2`. Where Nuncio refuses more than Envoy, differences.json says
so and why."""
import struct
import time

from harness import wire2
from harness.config import cluster, to
from harness.setup import Setup, reply

NEXT = b"GET /next HTTP/1.1\r\nHost: host\r\n\r\n"
CHUNKED = "Transfer-Encoding: chunked"
GET = [(":method", "GET"), (":scheme", "http"), (":authority", "host"), (":path", "/")]
POST = [(":method", "POST"), *GET[1:]]
# Bytes that are no token, and controls, by what they are called in a case's name.
ODD = {f"{byte:02x}": chr(byte) for byte in [*range(0x00, 0x21), 0x7f, 0x80, 0xa0, 0xff, *b"\"(),/:;<=>?@[\\]{}"]}
CONTROLS = {name: char for name, char in ODD.items() if int(name, 16) < 0x20 or int(name, 16) >= 0x7f}


def asks(*frames, streams=(1,)):
    """A script that sends frames and tells which streams were answered, and how: anything but 2xx is a refusal, told in whatever way."""
    def run(context):
        connection, reader, fed = context.connect(), wire2.Reader(), 0
        connection.send(wire2.PREFACE + wire2.settings() + b"".join(frames))
        deadline = time.monotonic() + 15

        def settled(number):
            stream = reader.streams.get(number)
            return stream is not None and (stream["ended"] or stream["reset"] is not None)
        while connection.fate == "kept" and reader.goaway is None and not all(map(settled, streams)) and time.monotonic() < deadline:
            connection.poll(0.05)
            if len(connection.received) > fed:
                answer = wire2.answers(reader.feed(connection.received[fed:]))
                fed = len(connection.received)
                if answer:
                    connection.send(answer)
        def served(number):
            stream = reader.stream(number)
            status = dict(stream["heads"][-1]).get(":status", "") if stream["heads"] else ""
            return "served" if status.startswith("2") and stream["ended"] else "refused"
        return {str(number): served(number) for number in streams}
    return run


def tells(method="GET"):
    """A script that asks once and tells what came, if that was a whole answer which is not the proxy's own; anything else is a refusal, however
    much of the answer had been passed on before."""
    def run(context):
        finals, _ = context.exchange(head("Host: a", start=f"{method} / HTTP/1.1"), methods=[method], wait=15.0)
        if not finals or not finals[0].complete or finals[0].status() >= 500:
            return "refused"
        return [*context.shown(finals)[0], [list(pair) for pair in finals[0].trailers]]
    return run


# How HTTP/2 is told no is another family's matter.
HOW = ("log", "fate", "goaway", "streams", "rest")
# What `tells` shows itself.
SHOWN = (*HOW, "status", "headers", "body", "trailers")


def head(*fields, start="GET / HTTP/1.1", body=b""):
    return "\r\n".join([start, *fields]).encode("latin-1") + b"\r\n\r\n" + body


def post(*fields, body=b""):
    return head("Host: a", *fields, start="POST / HTTP/1.1", body=body)


def lines():
    """Request lines and targets."""
    setup = Setup("lines", ignore=("log",))
    for name, char in ODD.items():
        if name not in ("0a", "0d", "20"):
            setup.raw(f"target {name}", head("Host: a", start=f"GET /a{char}b HTTP/1.1"), wait=3.0)
    for name in ["http://u:p@b/", "http:///x", "http://", "http:/x", "http:x", "https://b/", "ftp://b/", "HTTP://B/", "//b/c", "http://b?x", "http://b#f", "b:80", "b", "http://b\\@c/", "http://b:080/", "http://b:x/",
                 "http://[::1]/", "http://[::1/", "http://b,c/", "http://b%20c/", "http://b//c", "*", "*x", "/*", "?x", "/?", "/%", "/%zz", "/%00", "/..", "/../..", "/a/../../b", "/;x", "/a#", "/#", "/a?b#c", "http://b/#f",
                 "javascript:x", "/\\b", "\\b", "@b", "http://@b/", "http://b@/", ":80"]:
        setup.raw(f"get {name}", head("Host: a", start=f"GET {name} HTTP/1.1"), wait=3.0)
    for name in ["*", "*?x", "http://b", "http://b/", "/", "b:80"]:
        setup.raw(f"options {name}", head("Host: a", start=f"OPTIONS {name} HTTP/1.1"), wait=3.0)
    for name in ["a:80", "a", "/", "http://a/", "a:99999", "a:x", "[::1]:80", "u@a:80", ":80", "a:80/x", "*"]:
        setup.raw(f"connect {name}", head("Host: a", start=f"CONNECT {name} HTTP/1.1"), methods=["CONNECT"], wait=3.0)
    for name in ["HTTP/1.1x", "HTTP/1.01", "HTTP/01.1", "HTTP/1,1", "HTTP/+1.1", "HTTP/1.1\t", "HTTP /1.1", "HTTPS/1.1", "HTTP/3.0", "HTTP/1.", "HTTP/.1", "HTTP/a.b", "HTTP\\1.1", "/1.1", "HTTP/1.1 HTTP/1.1", "RTSP/1.0"]:
        setup.raw(f"version {name!r}", head("Host: a", start=f"GET / {name}"), wait=3.0)
    for name in ["GE\0T", "(GET)", "GET:", "G\x7fT", "\"GET\"", "G/T", "GET,", "GET\xa0", "PRI", "CONNECTX", "get", "Get", "G" * 100]:
        setup.raw(f"method {name!r}", head("Host: a", start=f"{name} / HTTP/1.1"), wait=3.0)
    setup.raw("preface cut", b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", wait=3.0)
    setup.raw("preface as request", b"PRI * HTTP/1.1\r\nHost: a\r\n\r\n", wait=3.0)
    return setup


def fields():
    """Header fields: every odd byte in names and values, ends of lines, hosts, hop-by-hop fields."""
    setup = Setup("fields", ignore=("log",))
    for name, char in ODD.items():
        if name not in ("0a", "3a"):
            setup.raw(f"name {name}", head("Host: a", f"X{char}Y: z"), wait=3.0)
            setup.raw(f"name end {name}", head("Host: a", f"X{char}: z"), wait=3.0)
    for name, char in CONTROLS.items():
        if name != "0a":
            setup.raw(f"value {name}", head("Host: a", f"X: y{char}z"), wait=3.0)
            setup.raw(f"value begin {name}", head("Host: a", f"X: {char}z"), wait=3.0)
            setup.raw(f"value end {name}", head("Host: a", f"X: z{char}"), wait=3.0)
    ends = {"cr cr lf": b"GET / HTTP/1.1\r\r\nHost: a\r\r\n\r\r\n", "lf cr": b"GET / HTTP/1.1\n\rHost: a\n\r\n\r", "cr lf cr": b"GET / HTTP/1.1\r\nHost: a\r\n\r", "field cr cr lf": b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\r\n\r\n",
            "nothing then field": b"GET / HTTP/1.1\r\n\r\nHost: a\r\n\r\n", "space line": b"GET / HTTP/1.1\r\nHost: a\r\n \r\n\r\n", "tab line": b"GET / HTTP/1.1\r\nHost: a\r\n\t\r\n\r\n", "space before end": b"GET / HTTP/1.1\r\nHost: a\r\n \r\nX: y\r\n\r\n",
            "nul line": b"GET / HTTP/1.1\r\nHost: a\r\n\0\r\n\r\n", "fold te": b"POST / HTTP/1.1\r\nHost: a\r\nX: y\r\n Transfer-Encoding: chunked\r\n\r\n", "fold of nothing": b"GET / HTTP/1.1\r\nHost: a\r\nX:\r\n y\r\n\r\n",
            "field in first line": b"GET / HTTP/1.1 \nHost: a\r\n\r\n", "vertical tab line": b"GET / HTTP/1.1\r\nHost: a\x0bX: y\r\n\r\n"}
    for name, data in ends.items():
        setup.raw(f"ends {name}", data, wait=3.0)
    hosts = ["http://a", "a:80:80", "[::1]:x", "[::1]a", "a\\b", ".a", "a.", "-", "*", "a%00", "a%zz", "\"\"", "a;b", "a\tb", "a&b", "a=b", "a'b", "(a)", "<a>", "a{b}", "a|b", "a^b", "a`b", "\xe9", "a:", ":80", "a:-1", "a:+80", "a: 80",
             "@a", "a@", "a/../b", "a?b", "a#b", "[a]", "[]", "::1", "[::ffff:1.2.3.4]", "1.2.3.4.5", "a" * 256]
    for host in hosts:
        setup.raw(f"host {host!r}", head(f"Host: {host}"), wait=3.0)
    for name, rows in {"two cases": ["Host: a", "HOST: b"], "empty then one": ["Host:", "Host: a"], "one then empty": ["Host: a", "Host:"], "last": ["X: y", "Z: w", "Host: a"], "among": ["Host: a", "X: y", "Host: b"]}.items():
        setup.raw(f"hosts {name}", head(*rows), wait=3.0)
    for value in ["close, keep-alive", "keep-alive, close", "cookie", "authorization", "x-forwarded-host", "x-envoy-internal", "x-request-id", ":method", "\x01", "transfer-encoding, close", "close;x", "\"close\"", "close close", "x-a,,x-b", ",",
                  "", "te, x-a", "upgrade", "keep-alive, x-a, upgrade", "x_a", "content-type", "via", "X-A"]:
        setup.raw(f"connection {value!r}", head("Host: a", f"Connection: {value}", "X-A: 1", "X-B: 2", "Cookie: c=1", "Authorization: b", "Via: v", "Content-Type: t", "TE: trailers", "X-Forwarded-Host: h"), wait=3.0)
    for value in ["trailers;q=0.5", "trailers, deflate;q=0.5", "Trailers", "TRAILERS", "\"trailers\"", "", ","]:
        setup.raw(f"te {value!r}", head("Host: a", f"TE: {value}"), wait=3.0)
    for value in ["websocket, h2c", "h2c", "H2C", "TLS/1.0", "HTTP/2.0", "", ",", "websocket\x01", "h2c, websocket", "h2"]:
        setup.raw(f"upgrade {value!r}", head("Host: a", "Connection: upgrade", f"Upgrade: {value}"), wait=3.0)
    for value in ["100-continue, 100-continue", "200-ok", "100-CONTINUE", "", "100-continue;x"]:
        setup.raw(f"expect {value!r}", post(f"Expect: {value}", "Content-Length: 1", body=b"x"), wait=3.0)
    return setup


def lengths():
    """What says how long a request is; a request follows on the same connection, and must not be found within the body of the first."""
    rows = {}
    for value in ["5\x0b", "\x0b5", "\t5", "5\t", "5,", ",5", ",", "5;5", "5;", "5 , 5", "5,5,5", "5, 05", "5\0", "-0", "+0", "-5", "0x05", "5e0", "5.", "18446744073709551617", "4294967301", "9223372036854775808", "\xb2", "5\xa0", "0 5", "\"5\"", "5\x0c", "005", "five", "00", "5'"]:
        rows[f"length {value!r}"] = post(f"Content-Length: {value}", body=b"hello")
    for value in ["identity, chunked", "chunked, identity", "\x0cchunked", "chunked\0", "chunked\x0b", " chunked ", "chunked\t", "Chunked", "chunked;", "chunked;q=1", ";chunked", ",chunked", "chunked,,", "chunked chunked", "'chunked'",
                  "chunke", "chunkedd", "cow", "trailers", "deflate, chunked", "x-chunked", "chunked\xa0", "chunk\x65d", "chunked, chunked", "identity", "compress", "chunked\x7f"]:
        rows[f"te {value!r}"] = post(f"Transfer-Encoding: {value}", body=b"5\r\nhello\r\n0\r\n\r\n")
        rows[f"te and length {value!r}"] = post("Content-Length: 15", f"Transfer-Encoding: {value}", body=b"5\r\nhello\r\n0\r\n\r\n")
    for name, these in {"te twice other": [CHUNKED, "Transfer-Encoding: identity"], "te other twice": ["Transfer-Encoding: identity", CHUNKED], "te cases": [CHUNKED, "TRANSFER-ENCODING: chunked"], "te underscore": ["Transfer_Encoding: chunked", "Content-Length: 15"],
                        "length underscore": ["Content_Length: 5", "Content-Length: 15"], "te space before colon and length": ["Transfer-Encoding : chunked", "Content-Length: 15"], "te tab before colon": ["Transfer-Encoding\t: chunked", "Content-Length: 15"],
                        "te vertical tab before colon": ["Transfer-Encoding\x0b: chunked", "Content-Length: 15"], "te nul before colon": ["Transfer-Encoding\0: chunked", "Content-Length: 15"], "length space before colon": ["Content-Length : 5"],
                        "te folded name": ["X: y", " Transfer-Encoding: chunked", "Content-Length: 15"], "te by cr": ["X: y\rTransfer-Encoding: chunked", "Content-Length: 15"], "te by lf": ["X: y\nTransfer-Encoding: chunked", "Content-Length: 15"],
                        "te by nul": ["X: y\0Transfer-Encoding: chunked", "Content-Length: 15"], "two lengths and te": ["Content-Length: 5", "Content-Length: 5", CHUNKED], "length nominated and te": ["Connection: content-length", "Content-Length: 15", CHUNKED],
                        "te empty and length": ["Transfer-Encoding:", "Content-Length: 15"], "length and empty length": ["Content-Length: 15", "Content-Length:"], "trailer names length": [CHUNKED, "Trailer: content-length"]}.items():
        rows[name] = post(*these, body=b"5\r\nhello\r\n0\r\n\r\n")
    for method in ["GET", "HEAD", "DELETE", "OPTIONS", "TRACE", "CONNECT"]:
        rows[f"{method.lower()} chunked"] = head("Host: a", CHUNKED, start=f"{method} {'a:80' if method == 'CONNECT' else '/'} HTTP/1.1", body=b"5\r\nhello\r\n0\r\n\r\n")
        rows[f"{method.lower()} chunked and length"] = head("Host: a", CHUNKED, "Content-Length: 0", start=f"{method} {'a:80' if method == 'CONNECT' else '/'} HTTP/1.1", body=b"0\r\n\r\n")
    setup = Setup("lengths", ignore=("log",))
    for name, data in rows.items():
        method = name.split(" ")[0].upper() if name.split(" ")[0] in ("head", "connect") else "GET"
        # Which of the two notices first that a body breaks off is a matter of microseconds.
        setup.raw(name, data + NEXT, methods=[method, "GET"], wait=3.0, settle=0.05)
    return setup


def chunks():
    """The chunked coding. As (name, body, trailers are passed on)."""
    rows = {}
    for size in ["5\x0b", "5\x0c", "5\0", "-5", "+5", "5_", "0_5", "5.", "5h", "0x5", "0X5", "5 5", "\t5", "5\t", "5 \t ", "00000000000000000005", "0000000000000005", "10000000000000005", "fffffffffffffffb", "8000000000000005", "\xb5", "5,", "5\xa0", "'5'", "\"5\"", "V", ""]:
        rows[f"size {size!r}"] = size.encode("latin-1") + b"\r\nhello\r\n0\r\n\r\n"
    for ext in [";", ";a", ";a=", ";a=b;c", ";;", "; a=b", " ;a=b", ";a=\"b\"", ";a=\"b", ";a=\"\\\"\"", ";a=\0", ";a=\x01", ";a=\x7f", ";a=\xff", ";a\rb", ";a\r", ";a\tb", "a", ",a", ";" + "a" * 5000, ";" + "a" * 20000]:
        rows[f"extension {ext[:12]!r} {len(ext)}"] = b"5" + ext.encode("latin-1") + b"\r\nhello\r\n0\r\n\r\n"
    for name, body in {"extension lf inside": b"5;\nhello\r\n0\r\n\r\n", "data then lf": b"5\r\nhello\n0\r\n\r\n", "data then cr": b"5\r\nhello\r0\r\n\r\n", "data then nothing": b"5\r\nhello0\r\n\r\n", "data then two": b"5\r\nhello\r\n\r\n0\r\n\r\n", "data too long": b"5\r\nhello!\r\n0\r\n\r\n",
                       "last lf": b"5\r\nhello\r\n0\n\r\n", "last lf lf": b"5\r\nhello\r\n0\n\n", "end lf": b"5\r\nhello\r\n0\r\n\n", "end cr": b"5\r\nhello\r\n0\r\n\r", "last extension": b"5\r\nhello\r\n0;a=b\r\n\r\n", "last zeros": b"5\r\nhello\r\n0000\r\n\r\n", "last space": b"5\r\nhello\r\n0 \r\n\r\n",
                       "size lf": b"5\nhello\r\n0\r\n\r\n", "size cr": b"5\rhello\r\n0\r\n\r\n", "size cr cr lf": b"5\r\r\nhello\r\n0\r\n\r\n", "leading crlf": b"\r\n5\r\nhello\r\n0\r\n\r\n", "leading lf": b"\n5\r\nhello\r\n0\r\n\r\n", "leading space": b" 5\r\nhello\r\n0\r\n\r\n"}.items():
        rows[name] = body
    trailers = {"plain": b"X: y\r\n", "length": b"Content-Length: 3\r\n", "te": b"Transfer-Encoding: chunked\r\n", "host": b"Host: evil\r\n", "no colon": b"broken\r\n", "space before colon": b"X : y\r\n", "empty name": b": y\r\n", "nul": b"X: a\0b\r\n", "cr": b"X: a\rb\r\n", "lf": b"X: a\nY: b\r\n",
                "fold": b"X: a\r\n b\r\n", "fold first": b" X: a\r\n", "pseudo": b":path: /evil\r\n", "bad name": b"X(y): z\r\n", "many": b"".join(b"X-%d: y\r\n" % n for n in range(150)), "large": b"X: " + b"y" * 70000 + b"\r\n", "connection": b"Connection: close\r\n",
                "authorization": b"Authorization: x\r\n", "lf end": b"X: y\n", "forwarded": b"X-Forwarded-For: 1.2.3.4\r\n", "te trailers": b"TE: trailers\r\n", "underscore": b"X_Y: z\r\n"}
    for name, fields in trailers.items():
        rows[f"trailer {name}"] = b"5\r\nhello\r\n0\r\n" + fields + b"\r\n"
    return rows


def once(name="a", **options):
    """A cluster that asks once on each connection: what is left of a case, or a close that is on its way, is none to the next case."""
    extension = {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {"@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions", "explicit_http_config": options,
                                                                            "common_http_protocol_options": {"max_requests_per_connection": 1}}}
    return cluster(name, typed_extension_protocol_options=extension)


def h1_trailers():
    options = {"http_protocol_options": {"enable_trailers": True}}
    return {"hcm": options, "clusters": [once(**options)]}


def requests():
    plain, passed = Setup("chunks", ignore=("log",)), Setup("chunks-trailers", ignore=("log",), **h1_trailers())
    for name, body in chunks().items():
        plain.raw(name, post(CHUNKED, body=body) + NEXT, methods=["GET", "GET"], wait=3.0, settle=0.05, ignore=("upstream",))
        if name.startswith("trailer"):
            passed.raw(name, post(CHUNKED, body=body) + NEXT, methods=["GET", "GET"], wait=3.0, settle=0.05, ignore=("upstream",))
    return [plain, passed]


def answers():
    """What an HTTP/1 upstream says."""
    def ok(*fields, start="HTTP/1.1 200 OK", body=b"ok"):
        return [head(*fields, start=start, body=body), "fin"]
    rows = {}
    for start in ["HTTP/1.1 200", "HTTP/1.1 200 ", "HTTP/1.1  200 OK", "HTTP/1.1 20 OK", "HTTP/1.1 2000 OK", "HTTP/1.1 099 X", "HTTP/1.1 600 X", "HTTP/1.1 999 X", "HTTP/1.1 000 X", "HTTP/1.1 1000 X", "HTTP/2.0 200 OK", "HTTP/1.0 200 OK", "HTTP/0.9 200 OK", "HTTP/1.2 200 OK", "http/1.1 200 OK",
                  "ICY 200 OK", "200 OK", "HTTP/1.1 +200 OK", "HTTP/1.1 -200 OK", "HTTP/1.1 2x0 OK", "HTTP/1.1 200 O\0K", "HTTP/1.1 200 O\x7fK", "HTTP/1.1 200 O\xe9K", "HTTP/1.1 200 O\x01K", "HTTP/1.1\t200\tOK", "HTTP/1.1 200\tOK", "HTTP/1.1 200OK", " HTTP/1.1 200 OK", "HTTP/1.1", "garbage", "GET / HTTP/1.1",
                  "HTTP/1.1 200 OK\r", "HTTP/1.1 200.0 OK", "HTTP/1.1 0200 OK", "HTTP/11 200 OK", "HTTP/1.10 200 OK", "HTTP /1.1 200 OK"]:
        rows[f"start {start!r}"] = ok("Content-Length: 2", start=start)
    for value in ["", "+2", "-2", "0x2", "2,", "2, 2", "2, 3", "2 2", "2.0", "18446744073709551618", "99999999999999999999", "2\x0b", "2;", "02", "2\0", "\xb2"]:
        rows[f"length {value!r}"] = ok(f"Content-Length: {value}")
    for name, these in {"two same": ["Content-Length: 2", "Content-Length: 2"], "two other": ["Content-Length: 2", "Content-Length: 3"], "other first": ["Content-Length: 3", "Content-Length: 2"], "and chunked": ["Content-Length: 2", CHUNKED], "and identity": ["Content-Length: 2", "Transfer-Encoding: identity"],
                        "and empty te": ["Content-Length: 2", "Transfer-Encoding:"], "and spaced te": ["Content-Length: 2", "Transfer-Encoding : chunked"]}.items():
        rows[f"framing {name}"] = ok(*these)
    for value in ["gzip", "gzip, chunked", "chunked, gzip", "chunked, chunked", "identity", "xchunked", "chunked;a=b", "\x0bchunked", "\"chunked\"", "CHUNKED", "chunked,", "", "chunked\0", "identity, chunked"]:
        rows[f"te {value!r}"] = ok(f"Transfer-Encoding: {value}", body=b"2\r\nok\r\n0\r\n\r\n")
    rows["te twice"] = ok(CHUNKED, CHUNKED, body=b"2\r\nok\r\n0\r\n\r\n")
    rows["te 1.0"] = ok(CHUNKED, start="HTTP/1.0 200 OK", body=b"2\r\nok\r\n0\r\n\r\n")
    for name, char in ODD.items():
        if name not in ("0a", "3a"):
            rows[f"name {name}"] = ok(f"X{char}Y: z", "Content-Length: 2")
    for name, char in CONTROLS.items():
        if name != "0a":
            rows[f"value {name}"] = ok(f"X: y{char}z", "Content-Length: 2")
    for name, data in {"space before colon": b"X : y\r\n", "fold": b"X: y\r\n z\r\n", "fold first": b" X: y\r\n", "no colon": b"broken\r\n", "empty name": b": y\r\n", "bare lf": b"X: y\nZ: w\r\n", "bare cr": b"X: y\rZ: w\r\n", "cr cr lf": b"X: y\r\r\n", "pseudo": b":status: 500\r\n", "long name": b"X" * 300 + b": y\r\n",
                       "many": b"".join(b"X-%d: y\r\n" % n for n in range(120)), "large": b"X: " + b"y" * 90000 + b"\r\n", "splitting": b"Location: /\r\nX: y\r\n\tContent-Length: 9\r\n", "set-cookie lf": b"Set-Cookie: a\nContent-Length: 9\r\n"}.items():
        rows[f"field {name}"] = [b"HTTP/1.1 200 OK\r\n" + data + b"Content-Length: 2\r\n\r\nok", "fin"]
    for name, data in {"leading crlf": b"\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "leading lf": b"\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "bare lf all": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok", "no end": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n", "nothing": b"",
                       "100 with length": b"HTTP/1.1 100 Continue\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "103 chunked": b"HTTP/1.1 103 Hints\r\nTransfer-Encoding: chunked\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
                       "199": b"HTTP/1.1 199 X\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "102": b"HTTP/1.1 102 X\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "100 only": b"HTTP/1.1 100 Continue\r\n\r\n", "101 chunked": b"HTTP/1.1 101 X\r\nTransfer-Encoding: chunked\r\n\r\n",
                       "204 with length": b"HTTP/1.1 204 No\r\nContent-Length: 2\r\n\r\nok", "204 chunked": b"HTTP/1.1 204 No\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", "205 with body": b"HTTP/1.1 205 Reset\r\nContent-Length: 2\r\n\r\nok", "304 with length": b"HTTP/1.1 304 Not\r\nContent-Length: 2\r\n\r\n",
                       "304 chunked": b"HTTP/1.1 304 Not\r\nTransfer-Encoding: chunked\r\n\r\n", "short": b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok", "second answer": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"}.items():
        rows[f"whole {name}"] = [data, "fin"]
    for name, body in chunks().items():
        rows[f"chunks {name}"] = [head(CHUNKED, start="HTTP/1.1 200 OK", body=body), "fin"]
    setup, passed = Setup("answers", ignore=SHOWN, clusters=[once(http_protocol_options={})]), Setup("answers-trailers", ignore=SHOWN, **h1_trailers())
    for name, actions in rows.items():
        setup.script(name, tells(), upstream=[actions])
        if name.startswith("chunks trailer"):
            passed.script(name, tells(), upstream=[actions])
    setup.raw("head with body", head("Host: a", start="HEAD / HTTP/1.1"), methods=["HEAD"], upstream=[[b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "fin"]])
    setup.raw("head chunked", head("Host: a", start="HEAD / HTTP/1.1"), methods=["HEAD"], upstream=[[b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "fin"]])
    # The rest of an answer that was too long lies on a connection that is kept: it answers nobody.
    poisoned = Setup("answers-kept", ignore=(*SHOWN, "upstream"))

    def again(context):
        first, connection = context.exchange(head("Host: a"), wait=15.0)
        second, _ = context.exchange(NEXT, wait=15.0, connection=connection)
        # Whether the connection upstream was found to be spoilt before the next request took it is a matter of microseconds.
        return [[answer.status() for answer in first], all(answer.body == b"good" or answer.status() == 503 for answer in second)]
    for name, data in {"after length": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "after chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", "after 204": b"HTTP/1.1 204 No\r\n\r\n", "after 304": b"HTTP/1.1 304 Not\r\n\r\n"}.items():
        poisoned.script(name, again, upstream=[data + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", reply(body="good")])
    return [setup, passed, poisoned]


def h2_heads():
    setup = Setup("h2-heads", ignore=HOW)

    def ask(name, pseudo=GET, headers=()):
        setup.script(name, asks(wire2.headers(1, [*pseudo, *headers], True)))

    def change(name, value):
        return [(key, value) if key == name else (key, old) for key, old in GET]
    for value in ["*", "x", "//h/", "/a b", "/\t", "/\x7f", "/\xe9", "/#f", "/a?b#c", "#", "/#", "http://h/", "/\\", "/\"", "/<>", "/{}", "/|", "/^", "/`", "?", " /", "/ ", "/%", "/%00", "/..", "/../x", "/a/../b", "/\0", "/\x01"]:
        ask(f"path {value!r}", pseudo=change(":path", value))
    for value in ["", "a,b", "a:b", "a:99999", "a/b", "a?b", "a#b", "a\\b", "[::1]", "[::1", "a\"b", "a%20b", " a", "a ", "a:", ":80", "\xe9", "a\0b", "a;b", "*", "a|b", "a{b"]:
        ask(f"authority {value!r}", pseudo=change(":authority", value))
    for value in ["", "HTTP", "https", "ht tp", "http\r\n", "javascript", "a:b", "http:", "9", "\xe9"]:
        ask(f"scheme {value!r}", pseudo=change(":scheme", value))
    for value in ["", "get", "GET\0", "G,T", "PRI", "G T", "G\tT", "(", "\xe9", "GET\r\n"]:
        ask(f"method {value!r}", pseudo=change(":method", value))
    for name, char in ODD.items():
        if name not in ("3a",):
            ask(f"name {name}", headers=[(f"x{char}y", "z")])
    for name, char in CONTROLS.items():
        ask(f"value {name}", headers=[("x", f"y{char}z")])
    for value in [" z", "z ", "\tz", "z\t", " ", ""]:
        ask(f"value space {value!r}", headers=[("x", value)])
    for name, pairs in {"two hosts": [("host", "a"), ("host", "b")], "bad host": [("host", "a b")], "host and crlf": [("host", "a\r\nx: y")], "empty host": [("host", "")], "host like authority": [("host", "host")], "te list": [("te", "trailers, gzip")], "te upper": [("te", "Trailers")], "te empty": [("te", "")],
                        "te identity": [("transfer-encoding", "identity")], "te empty coding": [("transfer-encoding", "")], "http2-settings": [("http2-settings", "x")], "trailer": [("trailer", "x")], "expect": [("expect", "x")], "proxy-connection": [("proxy-connection", "keep-alive")],
                        "cookie lf": [("cookie", "a\nb")], "upper": [("X-Y", "z")], "upper later": [("x-Y", "z")], "connection empty": [("connection", "")], "two te": [("te", "trailers"), ("te", "trailers")], "colon": [(":", "x")], "colon name": [(":x", "y")], "space name": [(" x", "y")]}.items():
        ask(f"field {name}", headers=pairs)
        if "host" in name:
            ask(f"field {name} without authority", pseudo=[pair for pair in GET if pair[0] != ":authority"], headers=pairs)
    for value in ["", "+0", "-0", "0x0", "0,0", "0, 0", " 0", "00", "18446744073709551616", "1", "x", "0\0"]:
        ask(f"length {value!r}", headers=[("content-length", value)])
    for name, values in {"same": ["0", "0"], "other": ["0", "5"]}.items():
        ask(f"lengths {name}", headers=[("content-length", value) for value in values])
    for name, pseudo in {"connect no port": [(":method", "CONNECT"), (":authority", "a")], "connect scheme": [(":method", "CONNECT"), (":authority", "a:80"), (":scheme", "http")], "connect nothing": [(":method", "CONNECT")], "extended not allowed": [(":method", "CONNECT"), *GET[1:], (":protocol", "websocket")],
                         "protocol empty": [(":method", "CONNECT"), *GET[1:], (":protocol", "")], "options star": [(":method", "OPTIONS"), *GET[1:3], (":path", "*")], "options star query": [(":method", "OPTIONS"), *GET[1:3], (":path", "*?x")], "two methods": [GET[0], *GET], "two authorities": [*GET, (":authority", "b")],
                         "two schemes": [*GET, (":scheme", "http")], "status too": [*GET, (":status", "200")], "none": [], "only method": GET[:1]}.items():
        ask(f"pseudo {name}", pseudo=pseudo)
    return setup


def literal(*pairs, first=0):
    """A header block; `first` 0x40 puts every field into the table."""
    return b"".join(bytes([first, len(name)]) + name.encode("latin-1") + bytes([len(value)]) + value.encode("latin-1") for name, value in pairs)


def h2_frames():
    # What an upstream saw of a body that breaks off is a matter of microseconds.
    setup = Setup("h2-frames", ignore=(*HOW, "upstream"))

    def add(name, *frames, streams=(1,)):
        setup.script(name, asks(*frames, streams=streams))
    open_, body = wire2.headers(1, POST), wire2.data(1, b"x")
    for name, pairs in {"path": [(":path", "/evil")], "status": [(":status", "200")], "authority": [(":authority", "b")], "unknown": [(":x", "y")], "after field": [("a", "b"), (":path", "/")], "connection": [("connection", "close")], "te": [("te", "gzip")], "upper": [("X", "y")], "value lf": [("x", "a\nb")], "empty name": [("", "x")],
                        "transfer-encoding": [("transfer-encoding", "chunked")], "space name": [("a b", "c")]}.items():
        add(f"trailers {name}", open_, body, wire2.headers(1, pairs, True))
        add(f"trailers {name} no body", open_, wire2.headers(1, pairs, True))
    for name, pairs in {"length": [("content-length", "5")], "host": [("host", "evil")], "te trailers": [("te", "trailers")], "plain": [("x", "y")], "authorization": [("authorization", "x")], "none": []}.items():
        add(f"trailers ok {name}", open_, body, wire2.headers(1, pairs, True))
    add("trailers without end", open_, body, wire2.headers(1, [("x", "y")]))
    add("trailers twice", open_, wire2.headers(1, [("x", "y")], True), wire2.headers(1, [("x", "y")], True))
    add("data after trailers", open_, wire2.headers(1, [("x", "y")], True), wire2.data(1, b"x", True))
    table = wire2.frame(1, 4, 1, b"\x83\x86\x44\x02/x\x41\x04host")
    # After that, 62 is the authority and 63 the path.
    add("trailers of the table", table, body, wire2.frame(1, 5, 1, b"\xbf"))
    add("trailers name of the table", table, body, wire2.frame(1, 5, 1, b"\x0f\x30\x01y"))
    add("fragment huffman", wire2.frame(1, 5, 1, b"\x82\x86\x04\x83\x63\xfe\xbf\x41\x04host"))
    add("fragment of the table", wire2.frame(1, 5, 1, b"\x82\x86\x44\x04/x#y\x01\x04host"), wire2.frame(1, 5, 3, b"\x82\x86\xbe\x01\x04host"), streams=[1, 3])
    block = b"\x82\x86\x84\x01\x04host"
    for name, more in {"two paths": b"\x84", "connection": literal(("connection", "x")), "transfer-encoding": b"\x0f\x2a\x07chunked", "te": literal(("te", "gzip")), "pseudo after": literal(("x", "y")) + b"\x82"}.items():
        add(f"split {name}", wire2.frame(1, 1, 1, block + more + b"\0\1"), wire2.frame(9, 4, 1, b"z\1w"))
        add(f"split whole {name}", wire2.frame(1, 1, 1, block + more), wire2.frame(9, 4, 1, literal(("z", "w"))))
    add("split good", wire2.frame(1, 1, 1, block + b"\0\1"), wire2.frame(9, 4, 1, b"z\1w"))
    add("split interrupted", wire2.frame(1, 1, 1, block), wire2.frame(6, 0, 0, b"12345678"), wire2.frame(9, 4, 1))
    add("split other stream", wire2.frame(1, 1, 1, block), wire2.frame(9, 4, 3))
    add("continuation flood", wire2.frame(1, 1, 1, block), *[wire2.frame(9, 0, 1, b"\0\1a\1b") for _ in range(300)])
    add("continuation empty flood", wire2.frame(1, 1, 1, block), *[wire2.frame(9, 0, 1) for _ in range(50)])
    add("streams go down", wire2.headers(3, GET, True), wire2.headers(1, GET, True), streams=[3])
    add("padded", wire2.frame(1, 5 | 8, 1, b"\x05" + block + b"\0" * 5))
    add("padded too much", wire2.frame(1, 5 | 8, 1, b"\xff" + block))
    add("padded nothing", wire2.frame(1, 5 | 8, 1, b""))
    add("data padded too much", open_, wire2.frame(0, 9, 1, b"\xff" + b"x"))
    add("priority in head", wire2.frame(1, 5 | 32, 1, struct.pack(">IB", 0, 5) + block))
    add("priority cut", wire2.frame(1, 5 | 32, 1, b"\0\0"))
    add("priority short", wire2.frame(2, 0, 1, b"abc"), wire2.headers(1, GET, True))
    add("priority on 0", wire2.frame(2, 0, 0, b"abcde"))
    for name, code in {"size update too large": b"\x3f\xff\xff\x7f", "size update": b"\x20", "size update late": None, "index 0": b"\x80", "integer overflow": b"\xff\xff\xff\xff\xff\xff\x0f", "integer long": b"\x7f\x80\x80\x80\x80\x00", "huffman eos": b"\0\x84\xff\xff\xff\xff\1x", "huffman padding": b"\0\x82\x1f\xff\1x", "huffman zero padding": b"\0\x81\x00\1x",
                       "string too long": b"\0\x7f\xff\xff\x7f", "never indexed": b"\x10\1x\1y", "index past table": b"\xbe"}.items():
        add(f"hpack {name}", wire2.frame(1, 5, 1, block + b"\x20" if code is None else code + block if name.startswith("size") else block + code))
    for name, values in {"window": [(4, 0x80000000)], "frame small": [(5, 100)], "frame large": [(5, 0x1000000)], "push": [(2, 2)], "connect 2": [(8, 2)], "unknown": [(99, 1)], "list 0": [(6, 0)], "streams 0": [(3, 0)], "table 0": [(1, 0)], "table max": [(1, 0xffffffff)]}.items():
        add(f"settings {name}", wire2.frame(4, 0, 0, b"".join(struct.pack(">HI", *value) for value in values)), wire2.headers(1, GET, True))
    add("settings on stream", wire2.frame(4, 0, 1))
    add("settings ack with payload", wire2.frame(4, 1, 0, b"\0" * 6))
    add("ping on stream", wire2.frame(6, 0, 1, b"12345678"))
    add("goaway on stream", wire2.frame(7, 0, 1, b"\0" * 8))
    add("goaway short", wire2.frame(7, 0, 0, b"\0" * 4))
    add("reset on 0", wire2.frame(3, 0, 0, b"\0" * 4))
    add("reset short", open_, wire2.frame(3, 0, 1, b"\0"))
    add("data on 0", wire2.data(0, b"x"))
    add("window short", wire2.frame(8, 0, 0, b"\0"))
    add("window zero on stream", open_, wire2.frame(8, 0, 1, b"\0" * 4))
    add("window overflow on stream", open_, wire2.frame(8, 0, 1, b"\x7f\xff\xff\xff"))
    add("unknown within block", wire2.frame(1, 1, 1, block), wire2.frame(99, 0, 0, b"x"), wire2.frame(9, 4, 1))
    add("reserved bit", wire2.frame(1, 5, 1 | 0x80000000, block))
    for name, frames in {"empty data": [wire2.data(1, b"")] * 10, "settings": [wire2.frame(4, 0, 0)] * 1500, "pings": [wire2.frame(6, 0, 0, b"12345678")] * 1500, "priorities": [wire2.frame(2, 0, 1, b"\0\0\0\3\5")] * 300}.items():
        add(f"flood {name}", open_, *frames)
    return setup


def h2_answers():
    """What an HTTP/2 upstream says."""
    rows = {}

    def raw(name, build):
        rows[name] = [("raw", build)]
    for value in ["abc", "0200", "20", "099", "1000", "000", "200 ", " 200", "+200", "2xx", "", "101", "600", "999", "200\0", "204"]:
        rows[f"status {value!r}"] = [("headers", [(":status", value)], True)]
    for name, pairs in {"two statuses": [(":status", "200"), (":status", "200")], "path": [(":status", "200"), (":path", "/")], "method": [(":method", "GET"), (":status", "200")], "status late": [("a", "b"), (":status", "200")], "unknown": [(":status", "200"), (":x", "y")], "upper": [(":status", "200"), ("X", "y")], "connection": [(":status", "200"), ("connection", "x")],
                        "transfer-encoding": [(":status", "200"), ("transfer-encoding", "chunked")], "te": [(":status", "200"), ("te", "gzip")], "upgrade": [(":status", "200"), ("upgrade", "x")], "keep-alive": [(":status", "200"), ("keep-alive", "x")], "value crlf": [(":status", "200"), ("x", "a\r\nb: c")], "value nul": [(":status", "200"), ("x", "a\0b")], "value lf": [(":status", "200"), ("x", "a\nb")],
                        "name crlf": [(":status", "200"), ("a\r\nb", "c")], "name space": [(":status", "200"), ("a b", "c")], "name empty": [(":status", "200"), ("", "c")], "name colon": [(":status", "200"), ("a:b", "c")], "value space": [(":status", "200"), ("x", " y ")], "value high": [(":status", "200"), ("x", "\xe9")], "value del": [(":status", "200"), ("x", "a\x7fb")], "value bell": [(":status", "200"), ("x", "a\x07b")],
                        "many": [(":status", "200"), *((f"x{n}", "y") for n in range(120))], "large": [(":status", "200"), *((f"x{n}", "y" * 1000) for n in range(100))]}.items():
        if name == "large":
            # Of a frame's size, each.
            raw(name, lambda number, pairs=pairs: wire2.frame(1, 1, number, wire2.encode(pairs[:10])) + b"".join(wire2.frame(9, 4 if at == 90 else 0, number, wire2.encode(pairs[at:at + 11 if at == 90 else at + 10])) for at in range(10, 100, 10)))
        else:
            rows[name] = [("headers", pairs, True)]
    start = ("headers", [(":status", "200")], False)
    for name, value, body in [("short", "9", b"ok"), ("long", "1", b"ok"), ("empty", "", b"ok"), ("plus", "+2", b"ok"), ("list", "2, 2", b"ok"), ("text", "x", b"ok"), ("zero", "0", b"ok"), ("huge", "18446744073709551618", b"ok")]:
        rows[f"length {name}"] = [("headers", [(":status", "200"), ("content-length", value)], False), ("data", body, True)]
    rows["length two"] = [("headers", [(":status", "200"), ("content-length", "2"), ("content-length", "3")], False), ("data", b"ok", True)]
    rows["length two same"] = [("headers", [(":status", "200"), ("content-length", "2"), ("content-length", "2")], False), ("data", b"ok", True)]
    rows["length at end"] = [("headers", [(":status", "200"), ("content-length", "2")], True)]
    for name, pairs in {"status": [(":status", "500")], "path": [(":path", "/")], "unknown": [(":x", "y")], "after field": [("a", "b"), (":status", "200")], "connection": [("connection", "x")], "upper": [("X", "y")], "value lf": [("x", "a\nb")], "length": [("content-length", "5")], "te": [("transfer-encoding", "chunked")], "plain": [("x", "y")]}.items():
        rows[f"trailers {name}"] = [start, ("data", b"ok", False), ("headers", pairs, True)]
    rows["trailers without end"] = [start, ("data", b"ok", False), ("headers", [("x", "y")], False)]
    rows["1xx after"] = [start, ("headers", [(":status", "103")], False), ("data", b"ok", True)]
    rows["100 at end"] = [("headers", [(":status", "100")], True)]
    rows["103 with length"] = [("headers", [(":status", "103"), ("content-length", "5")], False), start, ("data", b"ok", True)]
    rows["101 at end"] = [("headers", [(":status", "101")], True)]
    rows["204 with body"] = [("headers", [(":status", "204")], False), ("data", b"ok", True)]
    rows["304 with body"] = [("headers", [(":status", "304")], False), ("data", b"ok", True)]
    rows["101 then data"] = [("headers", [(":status", "101")], False), ("data", b"ok", True)]
    rows["data first"] = [("data", b"ok", True)]
    raw("push", lambda number: wire2.frame(5, 4, number, struct.pack(">I", 2) + wire2.encode(GET)) + wire2.headers(number, [(":status", "200")], True))
    raw("even stream", lambda number: wire2.headers(2, [(":status", "200")], True) + wire2.headers(number, [(":status", "200")], True))
    raw("future stream", lambda number: wire2.headers(number + 100, [(":status", "200")], True) + wire2.headers(number, [(":status", "200")], True))
    raw("bad huffman", lambda number: wire2.frame(1, 5, number, b"\x88\0\x84\xff\xff\xff\xff\1x"))
    raw("split connection", lambda number: wire2.frame(1, 1, number, b"\x88" + literal(("connection", "x")) + b"\0\1") + wire2.frame(9, 4, number, b"z\1w"))
    raw("split status", lambda number: wire2.frame(1, 1, number, b"\x88" + literal(("x", "y")) + b"\x88\0\1") + wire2.frame(9, 4, number, b"z\1w"))
    raw("split good", lambda number: wire2.frame(1, 1, number, b"\x88\0\1") + wire2.frame(9, 4, number, b"z\1w"))
    raw("trailers of the table", lambda number: wire2.frame(1, 4, number, b"\x48\x03200") + wire2.data(number, b"ok") + wire2.frame(1, 5, number, b"\xbe"))
    raw("settings bad", lambda number: wire2.frame(4, 0, 0, b"abc"))
    raw("window overflow", lambda number: wire2.frame(8, 0, 0, b"\x7f\xff\xff\xff") + wire2.headers(number, [(":status", "200")], True))
    raw("frame too large", lambda number: wire2.headers(number, [(":status", "200")]) + wire2.data(number, b"x" * 20000, True))
    raw("http/1", lambda number: b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    setup = Setup("h2-answers", clusters=[once("two", http2_protocol_options={})], upstreams={"two": "h2"}, ignore=SHOWN, routes=[{"match": {"prefix": "/"}, "route": to("two")}])
    for name, actions in rows.items():
        setup.script(name, tells(), upstream=[actions])
    return setup


def setups():
    return [lines(), fields(), lengths(), *requests(), *answers(), h2_heads(), h2_frames(), h2_answers()]
