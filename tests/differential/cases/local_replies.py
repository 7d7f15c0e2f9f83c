"""Direct responses, redirects, and replies made by the proxy itself, with mappers and body formats."""
from harness.config import cluster, route, say, to
from harness.setup import Setup


def direct():
    routes = [route({"path": f"/{status}"}, direct_response=say(f"body {status}", status)) for status in (200, 201, 204, 205, 301, 304, 400, 404, 418, 429, 500, 503, 599)]
    routes += [
        route({"path": "/empty"}, direct_response={"status": 200}), route({"path": "/empty-404"}, direct_response={"status": 404}),
        route({"path": "/json"}, direct_response={"status": 200, "body": {"inline_string": '{"a":1}'}},
              response_headers_to_add=[{"header": {"key": "content-type", "value": "application/json"}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}]),
        route({"path": "/append"}, direct_response=say("x"), response_headers_to_add=[{"header": {"key": "x-a", "value": "1"}}, {"header": {"key": "x-a", "value": "2"}}]),
        route({"path": "/bytes"}, direct_response={"status": 200, "body": {"inline_bytes": "AAEC/w=="}}),
        route({"path": "/remove"}, direct_response=say("x"), response_headers_to_remove=["content-type", "server"]),
        route({"path": "/format"}, direct_response={"status": 200, "body": {"inline_string": "unused"},
              "body_format": {"text_format_source": {"inline_string": "%REQ(:METHOD)% %REQ(:PATH)% %RESPONSE_CODE% %LOCAL_REPLY_BODY%"}}}),
        route({"path": "/format-json"}, direct_response={"status": 203, "body": {"inline_string": "text"},
              "body_format": {"json_format": {"m": "%REQ(:METHOD)%", "c": "%RESPONSE_CODE%", "b": "%LOCAL_REPLY_BODY%", "n": "%REQ(none)%"}}}),
    ]
    setup = Setup("direct", routes=routes, stats=["^http.test.downstream_rq_", "^http.test.rq_"])
    for entry in routes:
        path = entry["match"]["path"]
        setup.get(path)
    setup.get("head", "/200", method="HEAD")
    setup.get("post", "/200", method="POST", body=b"hello")
    setup.get("http10", "/200", version="1.0")
    setup.get("not found", "/nope")
    setup.get("not found head", "/nope", method="HEAD")
    setup.get("connection close", "/200", [("Connection", "close")])
    setup.get("grpc", "/404", [("content-type", "application/grpc")], method="POST")
    setup.get("grpc not found", "/nope", [("content-type", "application/grpc")], method="POST")
    setup.get("grpc 200", "/200", [("content-type", "application/grpc")], method="POST")
    setup.http2("h2", "/200")
    setup.http2("h2 head", "/200", method="HEAD")
    setup.http2("h2 grpc", "/503", [("content-type", "application/grpc"), ("te", "trailers")], method="POST")
    setup.http2("h2 grpc not found", "/nope", [("content-type", "application/grpc"), ("te", "trailers")], method="POST")
    setup.http2("h2 post body", "/200", method="POST", body=b"hello")
    setup.http2("h2 not found", "/nope")
    return setup


def redirects():
    rows = {
        "path": {"path_redirect": "/new"}, "path-query": {"path_redirect": "/new?x=1"}, "path-strip": {"path_redirect": "/new", "strip_query": True},
        "host": {"host_redirect": "new.test"}, "host-port": {"host_redirect": "new.test:99"}, "port": {"port_redirect": 8443}, "scheme": {"scheme_redirect": "https"},
        "https": {"https_redirect": True}, "prefix": {"prefix_rewrite": "/n"}, "regex": {"regex_rewrite": {"pattern": {"regex": "^/regex/(.*)$"}, "substitution": "/\\1/x"}},
        "strip": {"strip_query": True}, "all": {"host_redirect": "new.test", "port_redirect": 1, "scheme_redirect": "ftp", "path_redirect": "/z", "strip_query": True},
        "found": {"response_code": "FOUND"}, "see-other": {"response_code": "SEE_OTHER"}, "temporary": {"response_code": "TEMPORARY_REDIRECT"},
        "permanent": {"response_code": "PERMANENT_REDIRECT"}, "https-port": {"https_redirect": True, "port_redirect": 443},
        "http-port": {"scheme_redirect": "http", "port_redirect": 80},
    }
    setup = Setup("redirects", routes=[route({"prefix": f"/{name}"}, redirect=fields) for name, fields in rows.items()])
    for name in rows:
        setup.get(name, f"/{name}/a?q=1")
        setup.get(f"{name} with port", f"/{name}/a?q=1", host="host:8080")
    setup.get("prefix exact", "/prefix")
    setup.get("https port 80", "/https/x", host="host:80")
    setup.get("https port 443", "/https/x", host="host:443")
    setup.get("https v6", "/https/x", host="[::1]:80")
    setup.get("already https", "/https/x", [("x-forwarded-proto", "https")])
    setup.get("fragment", "/path/a#frag")
    setup.get("head", "/host/a", method="HEAD")
    setup.get("post", "/host/a", method="POST", body=b"x")
    setup.http2("h2", "/host/a?b")
    setup.http2("h2 https", "/https/a?b", scheme="https")
    return setup


def mapped():
    mappers = [
        {"filter": {"status_code_filter": {"comparison": {"op": "EQ", "value": {"default_value": 404, "runtime_key": "k"}}}}, "status_code": 410,
         "body": {"inline_string": "gone"}, "headers_to_add": [{"header": {"key": "x-mapped", "value": "%RESPONSE_CODE%"}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}]},
        {"filter": {"header_filter": {"header": {"name": "x-map", "string_match": {"exact": "json"}}}},
         "body_format_override": {"json_format": {"code": "%RESPONSE_CODE%", "body": "%LOCAL_REPLY_BODY%", "details": "%RESPONSE_CODE_DETAILS%"}}},
        {"filter": {"response_flag_filter": {"flags": ["UF", "UH"]}}, "status_code": 509, "body": {"inline_string": "flagged %RESPONSE_FLAGS%"}},
        {"filter": {"header_filter": {"header": {"name": "x-map", "string_match": {"exact": "html"}}}},
         "body_format_override": {"text_format_source": {"inline_string": "<p>%LOCAL_REPLY_BODY%</p>"}, "content_type": "text/html; charset=UTF-8"}},
    ]
    setup = Setup("mapped", routes=[route("/direct", direct_response=say("direct", 501)), route("/refused", to("refused")), route("/none", to("none")),
                                    route("/missing", to("no-such-cluster")), route("/404", direct_response=say("own 404", 404))],
                  clusters=[cluster("refused"), cluster("none", localities=[{"lb_endpoints": []}])], upstreams={"refused": "refused"},
                  route_config=None,
                  hcm={"local_reply_config": {"mappers": mappers, "body_format": {"text_format_source": {"inline_string": "%LOCAL_REPLY_BODY%|%RESPONSE_CODE%|%RESPONSE_FLAGS%|%REQ(:path)%"}}}})
    setup.route_config = {"name": "t", "validate_clusters": False, "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": setup.routes}]}
    for path in ["/direct", "/refused", "/none", "/missing", "/404", "/else"]:
        setup.get(path)
        setup.get(f"{path} json", path, [("x-map", "json")])
        setup.get(f"{path} html", path, [("x-map", "html")])
        setup.get(f"{path} grpc", path, [("content-type", "application/grpc")], method="POST")
    setup.raw("bad request", "GET / HTTP/1.1\r\nbroken\r\n\r\n")
    setup.raw("bad http", "GET / HTTP/9.9\r\nHost: x\r\n\r\n")
    return setup


def upstream_failures():
    plain = Setup("failures", clusters=[cluster("refused"), cluster("none", localities=[{"lb_endpoints": []}]), cluster("a")], upstreams={"refused": "refused"},
                  stats=["^cluster.refused.upstream_(cx|rq)", "^cluster.none.", "^http.test.downstream_rq"])
    plain.route_config = {"name": "t", "validate_clusters": False, "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
        route("/refused", to("refused")), route("/none", to("none")), route("/missing", to("no-such-cluster")),
        route("/missing-404", to("no-such-cluster", cluster_not_found_response_code="NOT_FOUND")),
        route("/m404", to("no-such-cluster", cluster_not_found_response_code="NOT_FOUND")),
        route("/m500", to("no-such-cluster", cluster_not_found_response_code="INTERNAL_SERVER_ERROR")),
        route("/header", {"cluster_header": "x-cluster"}), route("/", to("a"))]}]}
    for path in ["/refused", "/none", "/missing", "/m404", "/m500", "/header"]:
        plain.get(path)
        plain.get(f"{path} post", path, method="POST", body=b"12345")
        plain.get(f"{path} grpc", path, [("content-type", "application/grpc")], method="POST")
        plain.get(f"{path} head", path, method="HEAD")
        plain.http2(f"{path} h2", path)
        plain.http2(f"{path} h2 grpc", path, [("content-type", "application/grpc"), ("te", "trailers")], method="POST")
    plain.get("header a", "/header", [("x-cluster", "a")])
    plain.get("header unknown", "/header", [("x-cluster", "zz")])
    plain.get("header empty", "/header", [("x-cluster", "")])
    plain.get("close", "/x", upstream=[["close"]])
    plain.get("reset", "/x", upstream=[["reset"]])
    plain.get("garbage", "/x", upstream=[[b"what is this\r\n\r\n"]])
    plain.get("bad status", "/x", upstream=[[b"HTTP/1.1 abc OK\r\n\r\n", "close"]])
    plain.get("half head", "/x", upstream=[[b"HTTP/1.1 200 OK\r\nx: y\r\n", "close"]])
    plain.get("half body", "/x", upstream=[[b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n12345", 0.1, "close"]])
    plain.get("half chunked", "/x", upstream=[[b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n12345\r\n", 0.1, "close"]])
    plain.get("bad chunk", "/x", upstream=[[b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n12345\r\n", 0.1, b"zz\r\n", 0.1, "close"]])
    plain.get("until close", "/x", upstream=[[b"HTTP/1.1 200 OK\r\n\r\nall of it", "close"]])
    plain.get("http10 upstream", "/x", upstream=[[b"HTTP/1.0 200 OK\r\n\r\nold", "close"]])
    plain.get("http10 keep-alive", "/x", upstream=[[b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 3\r\n\r\nold"]])
    plain.get("length and chunked", "/x", upstream=[[b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", "close"]])
    plain.get("two lengths", "/x", upstream=[[b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd", "close"]])
    plain.get("too long", "/x", upstream=[[b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabcdef", 0.1, "close"]])
    plain.get("204 with body", "/x", upstream=[[b"HTTP/1.1 204 No Content\r\ncontent-length: 3\r\n\r\nabc", 0.1, "close"]])
    plain.get("304 with length", "/x", upstream=[[b"HTTP/1.1 304 Not Modified\r\ncontent-length: 3\r\n\r\n"]])
    plain.get("100 continue", "/x", upstream=[[b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx"]])
    plain.get("103 early hints", "/x", upstream=[[b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx"]])
    plain.get("102 processing", "/x", upstream=[[b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx"]])
    plain.get("large head", "/x", upstream=[[b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70000 + b"\r\n\r\n", "close"]])
    plain.get("many headers", "/x", upstream=[[b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 150 + b"\r\n", "close"]])
    plain.get("status 999", "/x", upstream=[[b"HTTP/1.1 999 What\r\ncontent-length: 0\r\n\r\n"]])
    plain.get("status 600", "/x", upstream=[[b"HTTP/1.1 600 What\r\ncontent-length: 0\r\n\r\n"]])
    plain.get("no reason", "/x", upstream=[[b"HTTP/1.1 200 \r\ncontent-length: 0\r\n\r\n"]])
    plain.get("own reason", "/x", upstream=[[b"HTTP/1.1 200 My Reason\r\ncontent-length: 0\r\n\r\n"]])
    return plain


def strange_upstreams():
    """Answers that Envoy passes on and Nuncio refuses; each on a process of its own, because what follows depends on them."""
    switching = Setup("unasked-101")
    switching.get("101", "/x", upstream=[[b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", 0.1, "close"]])
    low = Setup("status-99")
    low.get("99", "/x", upstream=[[b"HTTP/1.1 099 What\r\ncontent-length: 0\r\n\r\n", "close"]])
    return [switching, low]


def statuses():
    """The reason phrase of every status."""
    setup = Setup("statuses", routes=[route({"path": f"/{status}"}, direct_response=say("x", status)) for status in range(200, 600) if status not in (204, 304)])
    for status in [*range(200, 227), *range(300, 309), *range(400, 452), *range(500, 512), 299, 399, 499, 520, 598, 599]:
        if status not in (204, 304):
            setup.get(f"/{status}")
    return setup


def setups():
    return [direct(), redirects(), mapped(), upstream_failures(), *strange_upstreams(), statuses()]
