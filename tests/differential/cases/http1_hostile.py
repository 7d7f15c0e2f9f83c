"""Hostile and odd HTTP/1 bytes: what is refused, how, and what becomes of the connection. Everything that gets through is shown by the
upstream that saw it, so a smuggled request would be a second one there."""
from harness.setup import Setup, reply

GOOD = b"GET /next HTTP/1.1\r\nHost: host\r\n\r\n"


def lines(*fields, start="GET / HTTP/1.1", body=""):
    return "\r\n".join([start, *fields]) + "\r\n\r\n" + body


def heads():
    """Request lines and fields of a request without a body; a second request follows on the same connection if the first was fine."""
    rows = {
        "plain": lines("Host: host"), "lower name": lines("host: host"), "no space": lines("Host:host"), "tabs": lines("Host:\thost\t"), "spaces": lines("Host:   host   "),
        "no host": lines(), "empty host": lines("Host:"), "two hosts": lines("Host: a", "Host: b"), "same host twice": lines("Host: a", "Host: a"),
        "host list": lines("Host: a, b"), "host with space": lines("Host: a b"), "host with slash": lines("Host: a/b"), "host with user": lines("Host: u@a"),
        "host with bad port": lines("Host: a:b"), "host with big port": lines("Host: a:99999"), "host with empty port": lines("Host: a:"),
        "host with quote": lines('Host: a"b'), "host with nul": lines("Host: a\0b"), "host percent": lines("Host: a%20b"), "host v6": lines("Host: [::1]"),
        "host broken v6": lines("Host: [::1"), "host underscore": lines("Host: a_b"), "host comma": lines("Host: a,b"),
        "space before colon": lines("Host: a", "X : y"), "tab before colon": lines("Host: a", "X\t: y"), "space in name": lines("Host: a", "X y: z"),
        "empty name": lines("Host: a", ": y"), "no colon": lines("Host: a", "broken"), "only colon": lines("Host: a", ":"), "fold": lines("Host: a", "X: y", " z"),
        "tab fold": lines("Host: a", "X: y", "\tz"), "fold first": lines(" X: y", "Host: a"), "fold on host": lines("Host: a", " b"),
        "nul in value": lines("Host: a", "X: y\0z"), "nul in name": lines("Host: a", "X\0: y"), "bell in value": lines("Host: a", "X: y\x07z"),
        "escape in value": lines("Host: a", "X: y\x1bz"), "del in value": lines("Host: a", "X: y\x7fz"), "high byte value": lines("Host: a", "X: \xe9"),
        "high byte name": lines("Host: a", "X\xe9: y"), "cr in value": lines("Host: a", "X: y\rz"), "cr end": lines("Host: a", "X: y\r"),
        "lf in value": "GET / HTTP/1.1\r\nHost: a\r\nX: y\nZ: w\r\n\r\n", "bare lf all": "GET / HTTP/1.1\nHost: a\n\n", "bare lf line": "GET / HTTP/1.1\nHost: a\r\n\r\n",
        "bare lf end": "GET / HTTP/1.1\r\nHost: a\r\n\n", "bare cr line": "GET / HTTP/1.1\rHost: a\r\r",
        "paren name": lines("Host: a", "X(y): z"), "quote name": lines("Host: a", 'X"y": z'), "slash name": lines("Host: a", "X/y: z"), "brace name": lines("Host: a", "X{y}: z"),
        "token name": lines("Host: a", "X!#$%&'*+-.^_`|~9: z"), "underscore name": lines("Host: a", "X_y: z"), "empty value": lines("Host: a", "X:"),
        "long name": lines("Host: a", "X" * 300 + ": y"), "pseudo": lines("Host: a", ":path: /evil"), "pseudo authority": lines("Host: a", ":authority: evil"),
        "leading empty line": "\r\n" + lines("Host: a"), "leading empty lines": "\r\n\r\n\r\n" + lines("Host: a"), "leading lf": "\n" + lines("Host: a"),
        "leading space": " " + lines("Host: a"), "two spaces": lines("Host: a", start="GET  / HTTP/1.1"), "tab separator": lines("Host: a", start="GET\t/\tHTTP/1.1"),
        "space end": lines("Host: a", start="GET / HTTP/1.1 "), "space in target": lines("Host: a", start="GET /a b HTTP/1.1"), "no version": lines("Host: a", start="GET /"),
        "no target": lines("Host: a", start="GET HTTP/1.1"), "only method": lines("Host: a", start="GET"), "empty line only": "\r\n\r\n",
        "http/1.0": lines("Host: a", start="GET / HTTP/1.0"), "http/1.2": lines("Host: a", start="GET / HTTP/1.2"), "http/2.0": lines("Host: a", start="GET / HTTP/2.0"),
        "http/0.9": lines("Host: a", start="GET / HTTP/0.9"), "http/11": lines("Host: a", start="GET / HTTP/11"), "http/1.10": lines("Host: a", start="GET / HTTP/1.10"),
        "http/1": lines("Host: a", start="GET / HTTP/1"), "lower version": lines("Host: a", start="GET / http/1.1"), "icy": lines("Host: a", start="GET / ICY/1.1"),
        "version with space": lines("Host: a", start="GET / HTTP/1. 1"), "nul in target": lines("Host: a", start="GET /\0 HTTP/1.1"),
        "high target": lines("Host: a", start="GET /\xe9 HTTP/1.1"), "del target": lines("Host: a", start="GET /\x7f HTTP/1.1"), "quote target": lines("Host: a", start='GET /" HTTP/1.1'),
        "options star": lines("Host: a", start="OPTIONS * HTTP/1.1"), "get star": lines("Host: a", start="GET * HTTP/1.1"), "absolute": lines("Host: a", start="GET http://b/ HTTP/1.1"),
        "absolute no host": lines(start="GET http://b/ HTTP/1.1"), "absolute two": lines("Host: a", start="GET http://b/http://c/ HTTP/1.1"),
        "lower method": lines("Host: a", start="get / HTTP/1.1"), "tls hello": "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "garbage": "\x00\x01\x02\x03\r\n\r\n",
        "connection close": lines("Host: a", "Connection: close"), "connection keep-alive": lines("Host: a", "Connection: keep-alive"),
        "proxy-connection": lines("Host: a", "Proxy-Connection: close"), "connection upper": lines("Host: a", "Connection: CLOSE"),
        "connection list": lines("Host: a", "Connection: foo, close", "Foo: bar"), "connection nominates": lines("Host: a", "Connection: x-a", "X-A: 1", "X-B: 2"),
        "connection host": lines("Host: a", "Connection: host"), "connection xff": lines("Host: a", "Connection: x-forwarded-for", "X-Forwarded-For: 1.2.3.4"),
        "connection path": lines("Host: a", "Connection: :path"), "connection te": lines("Host: a", "Connection: te", "TE: trailers"),
        "te gzip": lines("Host: a", "TE: gzip"), "te trailers": lines("Host: a", "TE: trailers"), "te both": lines("Host: a", "TE: trailers, gzip"),
        "keep-alive": lines("Host: a", "Keep-Alive: timeout=5"), "http2-settings": lines("Host: a", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"),
        "upgrade websocket": lines("Host: a", "Connection: upgrade", "Upgrade: websocket"), "upgrade other": lines("Host: a", "Connection: upgrade", "Upgrade: foo"),
        "upgrade alone": lines("Host: a", "Upgrade: websocket"), "expect": lines("Host: a", "Expect: 100-continue"), "expect other": lines("Host: a", "Expect: whatever"),
        "many fields": lines("Host: a", *(f"X-{n}: y" for n in range(99))), "too many fields": lines("Host: a", *(f"X-{n}: y" for n in range(100))),
        "large": lines("Host: a", "X: " + "y" * 50000), "too large": lines("Host: a", "X: " + "y" * 62000), "large target": lines("Host: a", start="GET /" + "y" * 50000 + " HTTP/1.1"),
        "too large target": lines("Host: a", start="GET /" + "y" * 62000 + " HTTP/1.1"),
    }
    setup = Setup("heads", stats=["^http.test.downstream_(cx|rq)_(protocol|total|too|overload)"])
    for name, data in rows.items():
        setup.raw(name, data, wait=2.0)
    again = Setup("heads-then-next")
    for name in ["plain", "leading empty line", "te gzip", "http/1.0", "http/1.2", "no host", "connection close", "connection nominates", "too many fields", "fold", "upgrade other",
                 "absolute", "options star", "expect"]:
        again.raw(name, rows[name].encode("latin-1") + GOOD, methods=["GET", "GET"], wait=1.0)
    return [setup, again]


def bodies():
    """Framing. A request follows each body on the same connection."""
    def post(*fields, body=b"", start="POST / HTTP/1.1"):
        return lines("Host: a", *fields, start=start).encode("latin-1") + body
    chunked = "Transfer-Encoding: chunked"
    rows = {
        "length": post("Content-Length: 5", body=b"hello"), "zero": post("Content-Length: 0"), "no length": post(), "leading zeros": post("Content-Length: 0005", body=b"hello"),
        "plus": post("Content-Length: +5", body=b"hello"), "minus": post("Content-Length: -5", body=b"hello"), "hex": post("Content-Length: 0x5", body=b"hello"),
        "text": post("Content-Length: five", body=b"hello"), "empty": post("Content-Length:", body=b"hello"), "list same": post("Content-Length: 5, 5", body=b"hello"),
        "list other": post("Content-Length: 5, 6", body=b"hello"), "twice same": post("Content-Length: 5", "Content-Length: 5", body=b"hello"),
        "twice other": post("Content-Length: 5", "Content-Length: 6", body=b"hello!"), "huge": post("Content-Length: 99999999999999999999", body=b"hello"),
        "inner space": post("Content-Length: 5 5", body=b"hello"), "trailing space": post("Content-Length: 5 ", body=b"hello"), "decimal": post("Content-Length: 5.0", body=b"hello"),
        "max": post("Content-Length: 18446744073709551615", body=b"hello"),
        "chunked": post(chunked, body=b"5\r\nhello\r\n0\r\n\r\n"), "chunked upper": post("Transfer-Encoding: CHUNKED", body=b"5\r\nhello\r\n0\r\n\r\n"),
        "chunked two": post(chunked, body=b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"), "chunk extension": post(chunked, body=b"5;a=b\r\nhello\r\n0\r\n\r\n"),
        "chunk extension quoted": post(chunked, body=b'5;a="b;c"\r\nhello\r\n0\r\n\r\n'), "chunk extension lf": post(chunked, body=b"5;a\nhello\r\n0\r\n\r\n"),
        "chunk space": post(chunked, body=b"5 \r\nhello\r\n0\r\n\r\n"), "chunk leading space": post(chunked, body=b" 5\r\nhello\r\n0\r\n\r\n"),
        "chunk plus": post(chunked, body=b"+5\r\nhello\r\n0\r\n\r\n"), "chunk 0x": post(chunked, body=b"0x5\r\nhello\r\n0\r\n\r\n"), "chunk upper hex": post(chunked, body=b"A\r\n0123456789\r\n0\r\n\r\n"),
        "chunk zeros": post(chunked, body=b"0005\r\nhello\r\n000\r\n\r\n"), "chunk empty size": post(chunked, body=b"\r\nhello\r\n0\r\n\r\n"),
        "chunk overflow": post(chunked, body=b"fffffffffffffffff\r\nhello\r\n0\r\n\r\n"), "chunk bad": post(chunked, body=b"xyz\r\nhello\r\n0\r\n\r\n"),
        "chunk short": post(chunked, body=b"5\r\nhel\r\n0\r\n\r\n"), "chunk long": post(chunked, body=b"3\r\nhello\r\n0\r\n\r\n"), "chunk bare lf": post(chunked, body=b"5\nhello\n0\n\n"),
        "chunk lf after data": post(chunked, body=b"5\r\nhello\n0\r\n\r\n"), "chunk cr": post(chunked, body=b"5\rhello\r0\r\r"),
        "trailers": post(chunked, body=b"5\r\nhello\r\n0\r\nX-T: v\r\n\r\n"), "bad trailer": post(chunked, body=b"5\r\nhello\r\n0\r\nbroken\r\n\r\n"),
        "trailer length": post(chunked, body=b"5\r\nhello\r\n0\r\nContent-Length: 3\r\n\r\n"), "trailer fold": post(chunked, body=b"5\r\nhello\r\n0\r\nX: y\r\n z\r\n\r\n"),
        "te and length": post("Content-Length: 5", chunked, body=b"5\r\nhello\r\n0\r\n\r\n"), "length and te": post(chunked, "Content-Length: 5", body=b"5\r\nhello\r\n0\r\n\r\n"),
        "te zero length": post("Content-Length: 0", chunked, body=b"5\r\nhello\r\n0\r\n\r\n"), "te identity": post("Transfer-Encoding: identity", "Content-Length: 5", body=b"hello"),
        "te gzip": post("Transfer-Encoding: gzip", body=b"x"), "te gzip chunked": post("Transfer-Encoding: gzip, chunked", body=b"5\r\nhello\r\n0\r\n\r\n"),
        "te chunked gzip": post("Transfer-Encoding: chunked, gzip", body=b"5\r\nhello\r\n0\r\n\r\n"), "te chunked twice": post("Transfer-Encoding: chunked, chunked", body=b"5\r\nhello\r\n0\r\n\r\n"),
        "te two fields": post(chunked, chunked, body=b"5\r\nhello\r\n0\r\n\r\n"), "te xchunked": post("Transfer-Encoding: xchunked", body=b"5\r\nhello\r\n0\r\n\r\n"),
        "te space": post("Transfer-Encoding : chunked", body=b"5\r\nhello\r\n0\r\n\r\n"), "te tab": post("Transfer-Encoding:\tchunked", body=b"5\r\nhello\r\n0\r\n\r\n"),
        "te vt": post("Transfer-Encoding: \x0bchunked", body=b"5\r\nhello\r\n0\r\n\r\n"), "te fold": post("Transfer-Encoding:", " chunked", body=b"5\r\nhello\r\n0\r\n\r\n"),
        "te comma": post("Transfer-Encoding: chunked,", body=b"5\r\nhello\r\n0\r\n\r\n"), "te quoted": post('Transfer-Encoding: "chunked"', body=b"5\r\nhello\r\n0\r\n\r\n"),
        "te param": post("Transfer-Encoding: chunked;x=y", body=b"5\r\nhello\r\n0\r\n\r\n"), "te empty": post("Transfer-Encoding:", body=b"5\r\nhello\r\n0\r\n\r\n"),
        "te nominated": post(chunked, "Connection: transfer-encoding", body=b"5\r\nhello\r\n0\r\n\r\n"),
        "length nominated": post("Content-Length: 5", "Connection: content-length", body=b"hello"), "te 1.0": post(chunked, start="POST / HTTP/1.0", body=b"5\r\nhello\r\n0\r\n\r\n"),
        "get with length": post("Content-Length: 5", start="GET / HTTP/1.1", body=b"hello"), "get chunked": post(chunked, start="GET / HTTP/1.1", body=b"5\r\nhello\r\n0\r\n\r\n"),
        "head with body": post("Content-Length: 5", start="HEAD / HTTP/1.1", body=b"hello"), "delete with body": post("Content-Length: 5", start="DELETE / HTTP/1.1", body=b"hello"),
        "trace with body": post("Content-Length: 5", start="TRACE / HTTP/1.1", body=b"hello"), "put empty": post(start="PUT / HTTP/1.1"), "options empty": post(start="OPTIONS / HTTP/1.1"),
        "patch empty": post(start="PATCH / HTTP/1.1"), "delete empty": post(start="DELETE / HTTP/1.1"), "post length zero chunk": post(chunked, body=b"0\r\n\r\n"),
        "upgrade with length": post("Connection: upgrade", "Upgrade: websocket", "Content-Length: 5", body=b"hello"), "connect with length": post("Content-Length: 5", start="CONNECT a:1 HTTP/1.1", body=b"hello"),
        "expect with body": post("Expect: 100-continue", "Content-Length: 5", body=b"hello"),
    }
    def loose(name):
        # Whether an upstream has begun to see a body that breaks off is a matter of microseconds.
        return {"ignore": ("upstream",), "settle": 0.05} if name.startswith(("chunk ", "bad trailer")) else {}
    setup = Setup("bodies")
    for name, data in rows.items():
        method = "HEAD" if name.startswith("head") else "GET"
        setup.raw(name, data, wait=1.0, methods=[method], **loose(name))
    pipelined = Setup("bodies-then-next")
    for name, data in rows.items():
        if name in ("huge", "max", "chunk overflow", "chunk short", "no length"):
            continue
        method = "HEAD" if name.startswith("head") else "GET"
        pipelined.raw(name, data + GOOD, wait=0.7, methods=[method, "GET"], **loose(name))
    pieces = Setup("pieces")
    whole = rows["chunked"]
    pieces.raw("byte by byte head", *[part for byte in lines("Host: host").encode() for part in (bytes([byte]), 0.001)])
    pieces.raw("chunked in two", whole[:60], 0.02, whole[60:])
    pieces.raw("chunked byte by byte", *[part for byte in whole for part in (bytes([byte]), 0.0005)])
    pieces.raw("pipelined three", GOOD * 3, methods=["GET"] * 3)
    pieces.raw("pipelined ten", GOOD * 10, methods=["GET"] * 10)
    pieces.raw("bad then good", b"BAD\r\n\r\n" + GOOD, wait=1.0)
    pieces.raw("good then bad", GOOD + b"BAD\r\n\r\n", methods=["GET"] * 2)
    pieces.raw("half head then close", b"GET / HTTP/1.1\r\nHost", 0.05, close=True, wait=0.05)
    pieces.raw("half body then close", rows["length"][:-2], 0.05, close=True, wait=0.05)
    pieces.raw("close before response", GOOD, close=True, wait=0.05, upstream=[[0.3, reply(body="late")]], settle=0.4)
    pieces.raw("sequential", GOOD, 0.05, GOOD, methods=["GET"] * 2)
    return [setup, pipelined, pieces]


def options():
    accept = Setup("http10", hcm={"http_protocol_options": {"accept_http_10": True, "default_host_for_http_10": "default.test"}})
    for name, data in {"plain": lines("Host: a", start="GET / HTTP/1.0"), "no host": lines(start="GET / HTTP/1.0"), "keep-alive": lines("Host: a", "Connection: keep-alive", start="GET / HTTP/1.0"),
                       "close": lines("Host: a", "Connection: close", start="GET / HTTP/1.0"), "1.2": lines("Host: a", start="GET / HTTP/1.2"), "0.9": lines("Host: a", start="GET / HTTP/0.9"),
                       "head": lines("Host: a", start="HEAD / HTTP/1.0"), "post": lines("Host: a", "Content-Length: 2", start="POST / HTTP/1.0", body="ab"),
                       "absolute": lines(start="GET http://b/ HTTP/1.0"), "chunked": lines("Host: a", "Transfer-Encoding: chunked", start="POST / HTTP/1.0", body="1\r\nx\r\n0\r\n\r\n"),
                       "expect": lines("Host: a", "Expect: 100-continue", "Content-Length: 1", start="POST / HTTP/1.0", body="x")}.items():
        accept.raw(name, data, methods=["HEAD" if name == "head" else "GET"], wait=1.5)
    accept.raw("chunked response", lines("Host: a", start="GET / HTTP/1.0"), upstream=[b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"])
    accept.raw("chunked response keep-alive", lines("Host: a", "Connection: keep-alive", start="GET / HTTP/1.0"),
               upstream=[b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"], wait=1.0)
    underscores = []
    for action in ("REJECT_REQUEST", "DROP_HEADER", "ALLOW"):
        setup = Setup(f"underscores-{action.lower()}", hcm={"common_http_protocol_options": {"headers_with_underscores_action": action}}, stats=["underscore"])
        setup.raw("with", lines("Host: a", "X_Y: z", "X-Y: w"))
        setup.raw("without", lines("Host: a", "X-Y: w"))
        setup.http2("h2 with", headers=[("x_y", "z"), ("x-y", "w")])
        underscores.append(setup)
    custom = Setup("custom-methods", hcm={"http_protocol_options": {"allow_custom_methods": True}})
    for method in ["BREW", "get", "M-SEARCH", "G@T", "X_Y", "G\x01T", "LONG" * 20]:
        custom.raw(repr(method), lines("Host: a", start=f"{method} / HTTP/1.1"), wait=1.0)
    stream = Setup("stream-errors", hcm={"stream_error_on_invalid_http_message": True})
    for name, data in {"no host": lines(), "bad field": lines("Host: a", "broken"), "fragment": lines("Host: a", start="GET /#x HTTP/1.1"), "two lengths": lines("Host: a", "Content-Length: 1", "Content-Length: 2")}.items():
        stream.raw(name, data.encode() + GOOD, methods=["GET", "GET"], wait=1.0)
    limits = Setup("limits", hcm={"common_http_protocol_options": {"max_headers_count": 5}, "max_request_headers_kb": 2})
    limits.raw("five", lines("Host: a", "A: 1", "B: 1", "C: 1", "D: 1"), wait=1.0)
    limits.raw("six", lines("Host: a", "A: 1", "B: 1", "C: 1", "D: 1", "E: 1"), wait=1.0)
    limits.raw("seven", lines("Host: a", "A: 1", "B: 1", "C: 1", "D: 1", "E: 1", "F: 1"), wait=1.0)
    limits.raw("large", lines("Host: a", "A: " + "x" * 2100), wait=1.0)
    limits.raw("fits", lines("Host: a", "A: " + "x" * 1800), wait=1.0)
    limits.http2("h2 large", headers=[("a", "x" * 2100)])
    limits.http2("h2 many", headers=[(f"a{n}", "x") for n in range(10)])
    chunked = Setup("allow-chunked-length", hcm={"http_protocol_options": {"allow_chunked_length": True}})
    chunked.raw("both", lines("Host: a", "Content-Length: 3", "Transfer-Encoding: chunked", start="POST / HTTP/1.1", body="5\r\nhello\r\n0\r\n\r\n"), wait=1.0)
    trailers = Setup("trailers", hcm={"http_protocol_options": {"enable_trailers": True}})
    trailers.clusters[0]["typed_extension_protocol_options"] = {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions", "explicit_http_config": {"http_protocol_options": {"enable_trailers": True}}}}
    trailers.raw("request", lines("Host: a", "Transfer-Encoding: chunked", start="POST / HTTP/1.1", body="1\r\nx\r\n0\r\nX-T: 1\r\nY-T: 2\r\n\r\n"))
    trailers.raw("forbidden", lines("Host: a", "Transfer-Encoding: chunked", start="POST / HTTP/1.1", body="1\r\nx\r\n0\r\nContent-Length: 1\r\nHost: x\r\n\r\n"), wait=1.0)
    trailers.raw("response", GOOD, upstream=[b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX-T: 1\r\n\r\n"])
    case = []
    for name, format_ in {"proper": {"proper_case_words": {}}, "preserve": {"stateful_formatter": {"name": "preserve_case", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig", "forward_reason_phrase": True}}}}.items():
        setup = Setup(f"case-{name}", hcm={"http_protocol_options": {"header_key_format": format_}})
        setup.clusters[0]["typed_extension_protocol_options"] = {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions", "explicit_http_config": {"http_protocol_options": {"header_key_format": format_}}}}
        setup.raw("request", lines("HOST: a", "X-ABC: 1", "x-Def: 2", "cookie: c"), upstream=[reply(200, [("X-ReSp", "1"), ("server", "s")], "x", reason="Fine Thanks")])
        setup.raw("local", lines("hOsT: a", start="GET /#frag HTTP/1.1"))
        setup.raw("post", lines("Host: a", "CONTENT-length: 1", start="POST / HTTP/1.1", body="x"))
        case.append(setup)
    return [accept, *underscores, custom, stream, limits, chunked, trailers, *case]


def setups():
    return heads() + bodies() + options()
