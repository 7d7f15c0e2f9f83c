"""Internal redirects (which are followed, what the target is asked, what is told), hedging, and what retries say of themselves."""
from harness.config import cluster, extension, http2_options, route, say, to, typed
from harness.setup import Setup, reply

STATS = ["internal_redirect", "^cluster.[abc].upstream_rq_[0-9]", "^cluster.[abc].upstream_rq_(total|completed|retry|timeout|per_try)", "^http.test.downstream_rq_([0-9]|total|completed|rx_reset|tx_reset)",
         "^http.test.(no_route|no_cluster|rq_)"]
BACK_OFF = {"retry_back_off": {"base_interval": "0.001s", "max_interval": "0.002s"}}


def away(location="http://host/target", status=302, headers=(), body=""):
    return reply(status, [*([("location", location)] if location is not None else []), *headers], body, reason="Found")


def follow(**fields):
    return to(internal_redirect_policy=fields)


def predicate(name, **fields):
    return extension(f"envoy.internal_redirect_predicates.{name}", f"internal_redirect.{name}.v3.{''.join(w.title() for w in name.split('_'))}Config", **fields)


def locations():
    setup = Setup("locations", vhosts=[
        {"name": "v", "domains": ["host", "host:80", "host:81"], "routes": [route("/from", follow(max_internal_redirects=2), name="from"), route("/chain", follow(max_internal_redirects=3), name="chain"), route("/target", to("b"), name="target"), route("/said", direct_response=say("said"), name="said"),
                                                                            route("/moved", redirect={"path_redirect": "/elsewhere"}), route("/lost", to("gone")), route("/none", non_forwarding_action={})]},
        {"name": "w", "domains": ["other"], "routes": [route("/x", to("b", prefix_rewrite="/rewritten"), name="x")]}], clusters=[cluster("a"), cluster("b")], route_config=None, stats=STATS)
    setup.vhosts[0]["routes"][5]["route"] = to("b", cluster_not_found_response_code="NOT_FOUND")
    for name, location in {"same host": "http://host/target", "query": "http://host/target?a=b&c", "fragment": "http://host/target#part", "query fragment": "http://host/target?a#b", "other host": "http://other/x/y", "port": "http://host:81/target", "port 80": "http://host:80/target",
                           "no path": "http://host", "no path query": "http://host?x=1", "relative": "/target", "relative dot": "target", "network path": "//host/target", "empty": "", "none": None, "https": "https://host/target", "upper": "HTTP://HOST/target", "ftp": "ftp://host/target",
                           "no route": "http://host/nowhere", "no host": "http://nobody/x", "direct": "http://host/said", "redirect": "http://host/moved", "lost": "http://host/lost", "none forwarding": "http://host/none", "user": "http://u:p@host/target", "bad port": "http://host:x/target",
                           "space": "http://host/tar get", "dots": "http://host/x/../target", "escaped": "http://host/t%61rget", "self": "http://host/from"}.items():
        setup.get(name, "/from?q=1", upstream=[away(location)])
    for name, count in {"chain 2": 2, "chain 3": 3, "chain 4": 4}.items():
        setup.get(name, "/chain", upstream=[away("http://host/chain")] * count)
    for code in (301, 303, 307, 308, 200, 404):
        setup.get(f"code {code}", "/from", upstream=[away(status=code)])
    setup.get("two locations", "/from", upstream=[reply(302, [("location", "http://host/target"), ("location", "http://other/x")])])
    setup.get("with body", "/from", upstream=[away(body="moved")])
    setup.get("with rest of body", "/from", upstream=[[b"HTTP/1.1 302 Found\r\nlocation: http://host/target\r\ncontent-length: 5\r\n\r\nmo", 0.1, b"ved"]])
    setup.get("head", "/from", method="HEAD", upstream=[away()])
    return setup


def policies():
    routes = [route("/target", to("b", internal_redirect_policy={"max_internal_redirects": 9, "predicates": [predicate("previous_routes")]}), name="target"), route("/other", to("b"), name="other")]
    for name, fields in {"default": {}, "zero": {"max_internal_redirects": 0}, "codes": {"redirect_response_codes": [301, 303, 307, 308]}, "odd": {"redirect_response_codes": [200, 404]}, "cross": {"allow_cross_scheme_redirect": True},
                         "safe": {"allow_cross_scheme_redirect": True, "predicates": [predicate("safe_cross_scheme")]}, "previous": {"max_internal_redirects": 9, "predicates": [predicate("previous_routes")]},
                         "listed": {"predicates": [predicate("allow_listed_routes", allowed_route_names=["other", "x"])]}, "copy": {"response_headers_to_copy": ["x-copy", "x-old", "x-gone"]},
                         "both": {"max_internal_redirects": 5, "predicates": [predicate("previous_routes"), predicate("allow_listed_routes", allowed_route_names=["target", "both"])]}}.items():
        routes.append(route(f"/{name}", to("a", internal_redirect_policy=fields, prefix_rewrite=f"/was-{name}"), name=name, request_headers_to_add=[{"header": {"key": "x-pass", "value": name}}], response_headers_to_add=[{"header": {"key": "x-out", "value": name}}]))
    routes.append(route("/old-action", to(internal_redirect_action="HANDLE_INTERNAL_REDIRECT"), name="old"))
    routes.append(route("/pass", to(internal_redirect_action="PASS_THROUGH_INTERNAL_REDIRECT"), name="pass"))
    routes.append(route("/retried", to(internal_redirect_policy={}, retry_policy={**BACK_OFF, "retry_on": "5xx", "num_retries": 2}), name="retried"))
    routes.append(route("/rewritten", to("a", internal_redirect_policy={}, host_rewrite_literal="inside", prefix_rewrite="/in"), name="rewritten"))
    setup = Setup("policies", vhosts=[{"name": "v", "domains": ["*"], "include_request_attempt_count": True, "include_attempt_count_in_response": True, "routes": routes}], clusters=[cluster("a"), cluster("b")], stats=STATS)
    for name in ("default", "zero", "codes", "odd", "cross", "safe", "previous", "listed", "copy", "both", "old-action", "pass", "retried", "rewritten"):
        setup.get(f"{name} 302", f"/{name}", [("x-old", "1")], upstream=[away(headers=[("x-copy", "one"), ("x-copy", "two")])])
        setup.get(f"{name} https", f"/{name}", upstream=[away("https://host/target")])
        setup.get(f"{name} other", f"/{name}", upstream=[away("http://host/other")])
    for code in (301, 303, 307, 308, 200, 404):
        setup.get(f"codes {code}", "/codes", upstream=[away(status=code)])
        setup.get(f"post {code}", "/codes", method="POST", body=b"hello", upstream=[away(status=code)])
        setup.get(f"odd {code}", "/odd", upstream=[away(status=code)])
    setup.get("put 303", "/codes", [("content-type", "text/plain")], method="PUT", body=b"hello", upstream=[away(status=303)])
    setup.get("head 303", "/codes", method="HEAD", upstream=[away(status=303)])
    setup.get("loop", "/previous", upstream=[away("http://host/target"), away("http://host/target"), away("http://host/target")])
    setup.get("back and forth", "/previous", upstream=[away("http://host/target"), away("http://host/previous"), away("http://host/target")])
    setup.get("retry then redirect", "/retried", upstream=[reply(503, [], "x"), away("http://host/target")])
    setup.get("redirect to retry", "/retried", upstream=[away("http://host/retried"), reply(503, [], "x"), reply(503, [], "y")])
    setup.get("redirected then fails", "/default", upstream=[away(), ["close"]])
    setup.get("chunked 307", "/codes", [("transfer-encoding", "chunked")], method="POST", body=b"5\r\nhello\r\n3\r\nabc\r\n0\r\n\r\n", upstream=[away(status=307)])
    setup.raw("slow body 307", b"POST /codes HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nhello", 0.1, b"world", upstream=[away(status=307)])
    setup.http2("h2", "/default", upstream=[away()])
    setup.http2("h2 post 307", "/codes", method="POST", body=b"hello", upstream=[away(status=307)])
    setup.http2("h2 trailers", "/codes", method="POST", body=b"hello", trailers=[("x-t", "1")], upstream=[away(status=307)])
    return setup


def filters():
    """Filters run again for the target, and see that it is another request."""
    setup = Setup("filters", filters=[extension("envoy.filters.http.header_mutation", "filters.http.header_mutation.v3.HeaderMutation", mutations={
        "request_mutations": [{"append": {"header": {"key": "x-seen", "value": "%REQ(:PATH)%"}, "append_action": "APPEND_IF_EXISTS_OR_ADD"}}], "response_mutations": [{"append": {"header": {"key": "x-answered", "value": "%ROUTE_NAME%"}, "append_action": "APPEND_IF_EXISTS_OR_ADD"}}]}),
        extension("cors", "filters.http.cors.v3.Cors")], hcm={"early_header_mutation_extensions": [extension("early", "http.early_header_mutation.header_mutation.v3.HeaderMutation", mutations=[{"append": {"header": {"key": "x-early", "value": "1"}, "append_action": "APPEND_IF_EXISTS_OR_ADD"}}])],
            "use_remote_address": True, "via": "proxy", "normalize_path": True, "strip_any_host_port": True},
        routes=[route("/from", follow(), name="from"), route("/target", to("b"), name="target"), route("/blocked", to("b"), name="blocked")], clusters=[cluster("a"), cluster("b")], stats=STATS)
    setup.get("twice", "/from", upstream=[away()])
    setup.get("forwarded", "/from", [("x-forwarded-for", "1.2.3.4"), ("x-request-id", "abc"), ("x-envoy-original-url", "forged")], upstream=[away()])
    setup.get("host port", "/from", upstream=[away("http://host:1234/a/../target")])
    setup.get("kept connection", "/from", upstream=[away()])
    limited = Setup("limited", vhosts=[{"name": "v", "domains": ["*"], "per_request_buffer_limit_bytes": 100, "routes": [route("/from", follow(redirect_response_codes=[302, 307])), route("/", to("b"))]}], clusters=[cluster("a"), cluster("b")], stats=STATS + ["shadow_abandoned"])
    limited.get("fits", "/from", method="POST", body=b"x" * 50, upstream=[away(status=307)])
    limited.get("too large", "/from", method="POST", body=b"x" * 500, upstream=[away(status=307)])
    limited.raw("answered early", b"POST /from HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nhello", 0.3, b"world", upstream=[away(status=302)], wait=1.0)
    return [setup, limited]


def hedges():
    """The first good answer wins. Answers come far apart, so that it does not matter how fast the machine is."""
    policy = {**BACK_OFF, "retry_on": "5xx", "num_retries": 2, "per_try_timeout": "0.75s"}
    late = [2.1, reply(200, [("x-who", "late")], "late")]
    setup = Setup("hedging", vhosts=[
        {"name": "v", "domains": ["*"], "include_request_attempt_count": True, "include_attempt_count_in_response": True, "include_is_timeout_retry_header": True, "routes": [
            route("/hedge", to("a", timeout="9s", hedge_policy={"hedge_on_per_try_timeout": True}, retry_policy=policy)), route("/brief", to("a", timeout="1.8s", hedge_policy={"hedge_on_per_try_timeout": True}, retry_policy={**policy, "num_retries": 1})),
            route("/once", to("a", timeout="9s", hedge_policy={"hedge_on_per_try_timeout": True}, retry_policy={**policy, "num_retries": 1})), route("/none", to("a", timeout="9s", hedge_policy={"hedge_on_per_try_timeout": True}, retry_policy={"per_try_timeout": "0.75s"})),
            route("/reset", to("a", timeout="9s", hedge_policy={"hedge_on_per_try_timeout": True}, retry_policy={**policy, "retry_on": "connect-failure"})), route("/plain", to("a", timeout="9s", retry_policy=policy)), route("/", to("a"))]}],
        stats=STATS + ["retry_success", "retry_limit", "upstream_rq_(tx|rx)_reset"])
    slow = [7.5, reply(200, [], "slow")]
    for path in ("/hedge", "/once", "/none", "/reset", "/plain"):
        setup.get(f"{path} in time", path)
        setup.get(f"{path} second wins", path, upstream=[slow])
        setup.get(f"{path} first wins", path, upstream=[late, slow, slow])
        setup.get(f"{path} 503 then fine", path, upstream=[reply(503, [], "x")])
    for path in ("/hedge", "/once"):
        setup.get(f"{path} second bad, first late", path, upstream=[late, reply(503, [], "x"), reply(503, [], "y")])
        setup.get(f"{path} first bad late, second", path, upstream=[[1.2, reply(503, [], "first")], [3.6, reply(200, [], "second")], slow])
        setup.get(f"{path} first closes, second", path, upstream=[[1.2, "close"], [3.6, reply(200, [], "second")], slow])
        setup.get(f"{path} second closes, first late", path, upstream=[late, ["close"], ["close"]])
        setup.get(f"{path} all bad", path, upstream=[[1.8, reply(503, [], "one")], reply(503, [], "two"), reply(503, [], "three")])
        setup.get(f"{path} post", path, method="POST", body=b"hello", upstream=[slow])
    setup.get("brief", "/brief", upstream=[slow, slow])
    for value in ("true", "false", "1", "no"):
        setup.get(f"header {value} plain", "/plain", [("x-envoy-hedge-on-per-try-timeout", value)], upstream=[late, slow, slow])
        setup.get(f"header {value} hedge", "/hedge", [("x-envoy-hedge-on-per-try-timeout", value)], upstream=[late, slow, slow])
    vhost = Setup("vhost-hedging", vhosts=[{"name": "v", "domains": ["*"], "hedge_policy": {"hedge_on_per_try_timeout": True}, "retry_policy": policy, "routes": [route("/", to("a", timeout="9s"))]}], stats=STATS)
    vhost.get("second wins", "/", upstream=[slow])
    vhost.http2("h2", "/", method="POST", body=b"hello", upstream=[slow])
    two = Setup("h2-hedging", clusters=[cluster("a", typed_extension_protocol_options=http2_options())], upstreams={"a": "h2"}, routes=[route("/", to("a", timeout="9s", hedge_policy={"hedge_on_per_try_timeout": True}, retry_policy=policy))], stats=STATS + ["upstream_rq_(tx|rx)_reset"])
    two.get("second wins", "/", upstream=[[7.5, ("headers", [(":status", "200")], True)]])
    two.get("first wins", "/", upstream=[[2.1, ("headers", [(":status", "200"), ("x-who", "late")], True)], [7.5, ("headers", [(":status", "200")], True)], [7.5, ("headers", [(":status", "200")], True)]])
    return [setup, vhost, two]


def refreshed():
    """Retries that change between weighted clusters; without weight there is nowhere to change to."""
    policy = {**BACK_OFF, "retry_on": "5xx", "num_retries": 3, "refresh_cluster_on_retry": True}
    setup = Setup("refresh-cluster", clusters=[cluster("a"), cluster("b"), cluster("c")], routes=[
        route("/two", to(None, weighted_clusters={"clusters": [{"name": "a", "weight": 1}, {"name": "b", "weight": 1}]}, retry_policy=policy)),
        route("/one", to(None, weighted_clusters={"clusters": [{"name": "a", "weight": 1}, {"name": "b", "weight": 0}]}, retry_policy=policy)),
        route("/stay", to(None, weighted_clusters={"clusters": [{"name": "a", "weight": 1}, {"name": "b", "weight": 1}]}, retry_policy={**policy, "refresh_cluster_on_retry": False})),
        route("/header", to(None, cluster_header="x-cluster", retry_policy=policy)), route("/", to("a", retry_policy=policy))])
    for entry in setup.routes[:4]:
        del entry["route"]["cluster"]

    def seen(context, path, failures):
        """Which clusters took part in each of four requests: the order is left to chance."""
        found = []
        for _ in range(4):
            context.answers.load([reply(503, [], "x")] * failures)
            context.exchange(f"GET {path} HTTP/1.1\r\nHost: h\r\nx-cluster: c\r\n\r\n".encode())
            taken = [record["upstream"] for record in context.answers.taken()]
            found.append([len(taken), len(set(taken)), "".join(sorted(set(taken))) if path != "/stay" else "", taken[0] == taken[-1]])
        return found
    for path in ("/two", "/one", "/header", "/"):
        for failures in (1, 2, 3):
            setup.script(f"{path} {failures}", lambda context, path=path, failures=failures: seen(context, path, failures), ignore=("upstream", "log", "headers*", "body*"))
    setup.script("/stay 3", lambda context: seen(context, "/stay", 3), ignore=("upstream", "log", "headers*", "body*"))
    return setup


def setups():
    return [refreshed(), locations(), policies(), *filters(), *hedges()]
