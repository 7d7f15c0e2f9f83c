"""custom_response's redirects: which target is asked in place of an answer, and what becomes of both."""
from harness.config import cluster, extension, http2_options, route, say, to, typed
from harness.setup import Setup, reply, request

STATS = ["custom_response", r"^http\.test\.(downstream_rq_(\dxx|total|completed)|passthrough)", r"^cluster\.[ab]\.upstream_rq_(total|completed|\d+)"]


def matcher(**rules):
    """{status: RedirectPolicy fields}."""
    value = {"name": "i", "typed_config": {"@type": "type.googleapis.com/envoy.type.matcher.v3.HttpResponseStatusCodeMatchInput"}}
    return {"custom_response_matcher": {"matcher_list": {"matchers": [
        {"predicate": {"single_predicate": {"input": value, "value_match": {"exact": status.removeprefix("s")}}},
         "on_match": {"action": extension("r", "http.custom_response.redirect_policy.v3.RedirectPolicy", **fields)}} for status, fields in rules.items()]}}}


def responses(**rules):
    return extension("envoy.filters.http.custom_response", "filters.http.custom_response.v3.CustomResponse", **matcher(**rules))


def added(name, value, **more):
    return {"header": {"key": name, "value": value}, **more}


def setups():
    rules = responses(
        s503={"uri": "http://errors.test/sorry?x=1#part", "request_headers_to_add": [added("x-why", "%RESPONSE_CODE% %REQ(:PATH)%"), added("x-user", "proxy")],
              "response_headers_to_add": [added("x-custom", "%RESPONSE_CODE%"), added("x-upstream", "hidden", append_action="OVERWRITE_IF_EXISTS_OR_ADD")]},
        s502={"uri": "http://errors.test/plain", "status_code": 299}, s504={"uri": "http://nowhere.test/"}, s500={"uri": "http://errors.test/again"},
        s418={"redirect_action": {"host_redirect": "errors.test", "path_redirect": "/moved"}}, s419={"redirect_action": {"host_redirect": "errors.test", "https_redirect": True, "strip_query": True}},
        s420={"redirect_action": {"path_redirect": "/own"}}, s421={"redirect_action": {"host_redirect": "not a host"}})
    vhosts = [{"name": "main", "domains": ["host"], "routes": [route("/local", direct_response=say("x", 503)), route("/own", to("b"), name="own"), route("/gone", to("x")), route("/", to("a"), name="first")]},
              {"name": "errors", "domains": ["errors.test"], "routes": [route("/say", direct_response=say("said", 200)), route("/", to("b"), name="errors")]}]
    main = Setup("redirects", filters=[rules], vhosts=vhosts, clusters=[cluster("a"), cluster("b"), cluster("x")], upstreams={"x": "refused"}, stats=STATS, router={"suppress_envoy_headers": True})
    fine = reply(200, [("x-b", "1"), ("content-type", "text/html")], "sorry")
    for status in (503, 502, 504, 418, 419, 420, 421, 404):
        main.get(f"{status}", "/p?q=1", [("x-user", "ann")], upstream=[reply(status, [("x-a", "1")], "first"), fine])
    for status in (200, 204, 201, 301, 404, 500, 503):
        main.get(f"target says {status}", "/p", upstream=[reply(503, [], "first"), reply(status, [("x-b", "1")], "", length=status != 204)])
    main.get("target fails", "/p", upstream=[reply(503, [], "first"), ["close"]])
    main.get("again and again", "/p", upstream=[reply(500, [], "first"), reply(500, [], "second"), reply(500, [], "third")])
    main.get("post", "/p", method="POST", body=b"hello", upstream=[reply(503, [], "first"), fine])
    main.get("head", "/p", method="HEAD", upstream=[b"HTTP/1.1 503 No\r\ncontent-length: 5\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nsorry"])
    main.get("local", "/local")
    main.get("refused", "/gone")
    main.get("no route", "/p", host="other.test")
    main.get("trailers", "/p", upstream=[[b"HTTP/1.1 503 No\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n0\r\nx-t: 1\r\n\r\n"], fine])
    main.http2("h2", "/p", upstream=[reply(503, [], "first"), fine])
    main.http2("h2 post", "/p", method="POST", body=b"hello", upstream=[reply(502, [], "first"), fine])
    main.raw("next request", request("/p") + request("/p"), methods=["GET"] * 2, upstream=[reply(503, [], "first"), fine, reply(200, [], "second")])

    own = {"envoy.filters.http.custom_response": typed("filters.http.custom_response.v3.CustomResponse", **matcher(s503={"uri": "http://errors.test/route"}))}
    routed = Setup("per-route", filters=[responses(s503={"uri": "http://errors.test/listener"}, s502={"uri": "http://errors.test/listener"})], clusters=[cluster("a"), cluster("b", typed_extension_protocol_options=http2_options())], upstreams={"b": "h2"}, stats=STATS, vhosts=[
        {"name": "main", "domains": ["host"], "routes": [route("/off", to("a"), typed_per_filter_config={"envoy.filters.http.custom_response": {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": True}}), route("/own", to("a"), typed_per_filter_config=own), route("/", to("a"))]},
        {"name": "errors", "domains": ["errors.test"], "routes": [route("/", to("b"))]}])
    for path in ("/", "/own", "/off"):
        for status in (503, 502):
            routed.get(f"{path} {status}", path, upstream=[reply(status, [], "first")])
    return [main, routed]
