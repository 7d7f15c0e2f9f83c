"""Options of HTTP filters that the families of the filters themselves leave out."""
import ssl

from harness import tls
from harness.config import cluster, file_log, route, to, typed
from harness.setup import Setup, reply

from .ext_authz import answer, ask as ask_authz, authz as authz_filter, http as http_service, option, over_grpc, patterns, pb, per_route, setup as authz_setup
from .filters import http as every
from .global_ratelimit import ask as ask_limit, limit as limit_filter, said, setup as global_setup, status
from .rbac import allow, by, call, constant, packed, select
from .tls import socket

ALWAYS = {"default_value": {"numerator": 100}}
STATE = "envoy.filters.http.ext_authz"
AUTHZ_LOG = "code=[%RESPONSE_CODE%] details=[%RESPONSE_CODE_DETAILS%] flags=[%RESPONSE_FLAGS%] route=[%ROUTE_NAME%] cluster=[%UPSTREAM_CLUSTER%]"


# Nothing here waits for a timeout of a service: no busy machine may run into one.
PATIENT = "60s"


def http(**fields):
    return http_service(PATIENT, **fields)


def authz(service=None, **fields):
    return authz_filter(service or {"http_service": http()}, **fields)


def grpc(**fields):
    return authz_filter({"grpc_service": {"envoy_grpc": {"cluster_name": "auth"}, "timeout": PATIENT}, "transport_api_version": "V3"}, **fields)


def limit(**fields):
    found = limit_filter(**fields)
    found["typed_config"]["timeout"] = PATIENT
    return found


def state(name, *fields):
    return f" json=[%FILTER_STATE({name})%] plain=[%FILTER_STATE({name}:PLAIN)%] " + " ".join(f"{field}=[%FILTER_STATE({name}:FIELD:{field})%]" for field in fields)


def shadow():
    found = []
    answers = (("allowed", reply(headers=[("x-up", "1"), ("x-ok", "1"), ("x-envoy-auth-headers-to-remove", "x-drop")])), ("denied", reply(403, [("x-why", "1"), ("x-empty", "")], b"no")), ("unauthorized", reply(401)),
               ("failed", reply(500)))
    service = http(authorization_response={"allowed_upstream_headers": patterns("x-up"), "allowed_client_headers_on_success": patterns("x-ok"), "allowed_client_headers": patterns("x-why", "x-empty")})
    for name, fields in (("", {}), (" failure allowed", {"failure_mode_allow": True, "failure_mode_allow_header_add": True}), (" status", {"status_on_error": {"code": 503}, "clear_route_cache": True})):
        s = authz_setup("ext_authz shadow" + name, authz({"http_service": service}, shadow_mode=True, **fields))
        s.log = AUTHZ_LOG + state(STATE + ".shadow", "check_result", "status_code")
        for case, said in answers:
            s.get(case, "/", [("x-drop", "1")], upstream=[said])
        s.get("closes", "/", upstream=[["close"]], ignore=("upstream",))
        found.append(s)
    off = authz_setup("ext_authz shadow off", authz(shadow_mode=True, filter_enabled={"default_value": {"numerator": 0}}, deny_at_disable={"default_value": True, "runtime_key": "x"}))
    off.log = AUTHZ_LOG + state(STATE + ".shadow")
    off.get("passes", "/")
    denied = pb((1, pb((1, 401))), (2, option("x-why", "1")), (2, option("set-cookie", "a")), (2, option("set-cookie", "b")), (3, "go away"))
    s = over_grpc("ext_authz shadow grpc", {**grpc(shadow_mode=True, validate_mutations=True, with_request_body={"max_request_bytes": 4}), "name": "my.authz"})
    s.log = AUTHZ_LOG + state("my.authz.shadow") + " meta=[%DYNAMIC_METADATA(envoy.filters.http.ext_authz)%]"
    for name, said in (("allowed", answer((1, pb((1, 0))))), ("denied", answer((1, pb((1, 7))), (2, denied))), ("denied plainly", answer((1, pb((1, 16))))), ("error response", answer((1, pb((1, 13))), (5, denied))),
                       ("bad name", answer((3, pb((2, option("bad name", "x")))))), ("bad denial", answer((1, pb((1, 7))), (2, pb((2, option("bad name", "x")), (2, option("good", "y")))))),
                       ("odd status", answer((1, pb((1, 7))), (2, pb((1, pb((1, 100))))))), ("metadata", answer((1, pb((1, 7))), (4, pb((1, pb((1, "k"), (2, pb((3, "v"))))))))), ("reset", [("reset", 2)])):
        s.get(name, "/", upstream=[said], ignore=("upstream",))
    s.get("too long", "/", method="POST", body=b"0123456789")
    return [*found, off, s]


def calls():
    """What a call took: that it is told, as times and lengths differ."""
    found = []
    for over, make, ok, no, gone in (("http", authz_setup, reply(), reply(403), ["close"]), ("grpc", over_grpc, answer(), answer((1, pb((1, 7)))), [("reset", 2)])):
        for name, fields in (("", {"emit_filter_state_stats": True, "filter_metadata": {"a": "b"}}), (" silent", {"filter_metadata": {"a": "b"}})):
            s = make(f"ext_authz calls {over}{name}", (authz if over == "http" else grpc)(**fields), routes=[route("/off", typed_per_filter_config=per_route(disabled=True)), route("/")])
            s.log = AUTHZ_LOG + state(STATE, "other") + "".join(f" {field}=[%CEL(size(filter_state['{STATE}'].{field}) > 0 || filter_state['{STATE}'].{field} >= 0)%]" for field in ("latency_us", "bytesSent", "bytesReceived"))
            s.get("allowed", "/", upstream=[ok], ignore=("upstream",))
            s.get("denied", "/", upstream=[no], ignore=("upstream",))
            s.get("fails", "/", upstream=[gone], ignore=("upstream",))
            s.get("off", "/off")
            found.append(s)
    return found


def clearing():
    service = http(authorization_response={"allowed_upstream_headers": {"patterns": [{"prefix": "x-up"}]}, "allowed_upstream_headers_to_append": {"patterns": [{"prefix": "x-more"}]}})
    found = []
    for name, fields in (("listed", {"clear_route_cache": True, "clear_route_cache_headers": ["X-Up-R", "x-more-r"]}), ("not cleared", {"clear_route_cache_headers": ["x-up-r"]})):
        routes = [route({"prefix": "/", "headers": [{"name": header, "present_match": True}]}, to("b"), name=header) for header in ("x-up-a", "x-more-r")]
        s = authz_setup("ext_authz clear " + name, authz({"http_service": service}, **fields), routes=[*routes, route("/", name="a")], clusters=[cluster("a"), cluster("b"), cluster("auth")])
        s.get("unlisted", "/", upstream=[reply(headers=[("x-up-a", "1")])])
        s.get("listed", "/", upstream=[reply(headers=[("x-up-a", "1"), ("x-up-r", "1")])])
        s.get("added", "/", upstream=[reply(headers=[("x-more-r", "1")])])
        s.get("removed", "/", upstream=[reply(headers=[("x-up-a", "1"), ("x-envoy-auth-headers-to-remove", "X-UP-R")])])
        found.append(s)
    return found


def peers():
    """Who the client is, by its certificate, as the service sees it."""
    tls.prepare()
    found = []
    for name, fields in (("told", {"include_peer_certificate": True, "include_tls_session": True}), ("not told", {})):
        context = {"tls_certificates": [{"certificate_chain": {"filename": tls.path("server.pem")}, "private_key": {"filename": tls.path("server.key")}}], "validation_context": {"trusted_ca": {"filename": tls.path("ca.pem")}}}
        socket = {"name": "envoy.transport_sockets.tls", "typed_config": typed("transport_sockets.tls.v3.DownstreamTlsContext", common_tls_context=context)}
        s = over_grpc(f"ext_authz peer {name}", grpc(**fields), chain={"transport_socket": socket})
        for case, options in (("certificate", {"sni": "host.test", "cert": "client"}), ("no certificate", {"sni": "host.test"}), ("no name", {"sni": None, "cert": "client"}),
                              ("old", {"sni": "host.test", "cert": "client", "maximum": ssl.TLSVersion.TLSv1_2})):
            ask_authz(s, case, tls=options, upstream=[answer()])
        found.append(s)
    return found


def retry_after():
    found = []
    for name, fields in (("retry-after", {}), ("retry-after with headers", {"enable_x_ratelimit_headers": "DRAFT_VERSION_03", "response_headers_to_add": [{"header": {"key": "retry-after", "value": "7"}}]}),
                         ("retry-after not 429", {"rate_limited_status": {"code": 503}}), ("retry-after not enforced", {"filter_enforced": {"default_value": {"numerator": 0}}})):
        s = global_setup("ratelimit " + name, limit(enable_retry_after_header=True, **fields))
        for case, said_so in (("longest", said(2, [status(2, 5, 2, "x", 0, 42), status(2, 5, 1, "y", 0, 3), status(1, 5, 1, "z", 3, 100)])), ("zero", said(2, [status(2, 5, 2, "x", 0, 0)])), ("unknown", said(2, [status(2, 5, 2, "x", 0)])),
                              ("nothing", said(2)), ("own", said(2, [status(2, 5, 2, "x", 0, 42)], [("retry-after", "99")])), ("within", said(1, [status(1, 5, 2, "x", 3, 42)])),
                              ("fraction", said(2, [pb((1, 2), (4, pb((1, 2), (2, 500000000))))]))):
            ask_limit(s, case, upstream=[said_so])
        found.append(s)
    return found


def shares():
    """A limit that the members of the local cluster share: buckets fill too slowly to matter."""
    found = []
    bucket = {"max_tokens": 10, "tokens_per_fill": 10, "fill_interval": "100000s"}
    descriptor = {"rate_limits": [{"actions": [{"generic_key": {"descriptor_value": "k"}}]}], "descriptors": [{"entries": [{"key": "generic_key", "value": "k"}], "token_bucket": {**bucket, "max_tokens": 6}}]}
    for name, members, fields in (("three", ["a", "x", "y"], {}), ("one", ["a"], {}), ("descriptor", ["a", "x"], descriptor), ("status", ["a", "x", "y", "z"], {"status": {"code": 503}, "enable_retry_after_header": False})):
        local = every("local_ratelimit", "LocalRateLimit", stat_prefix="rl", token_bucket=bucket, filter_enabled=ALWAYS, filter_enforced=ALWAYS, local_cluster_rate_limit={}, **fields)
        s = Setup("local_ratelimit shared by " + name, filters=[local], clusters=[cluster("a"), cluster("me", members)], bootstrap={"cluster_manager": {"local_cluster_name": "me"}}, upstreams={m: "refused" for m in members if m != "a"},
                  stats=["local_rate"])
        for i in range(6):
            s.get(f"request {i}", "/")
        found.append(s)
    return found


def compression():
    found = []
    library = {"name": "gz", "typed_config": typed("compression.gzip.compressor.v3.Gzip")}
    direction = {"common_config": {"min_content_length": 50, "content_type": ["text/plain"]}, "status_header_enabled": True, "disable_on_etag_header": True, "uncompressible_response_codes": [404]}
    s = Setup("compressor status", filters=[every("compressor", "Compressor", compressor_library=library, response_direction_config=direction)])
    text = b"x" * 100
    for name, status_code, headers, body in (("compressed", 200, [], text), ("short", 200, [], b"x" * 10), ("type", 200, [("content-type", "image/png")], text), ("etag", 200, [("etag", '"a"')], text), ("code", 404, [], text),
                                             ("encoded", 200, [("content-encoding", "br")], text), ("empty", 200, [], b"")):
        kind = [] if any(key == "content-type" for key, _ in headers) else [("content-type", "text/plain")]
        for accept in ("gzip", "br", None):
            s.get(f"{name} {accept}", "/", [("accept-encoding", accept)] if accept else [], upstream=[reply(status_code, [*kind, *headers], body)], ignore=("body", "log") if name == "compressed" and accept == "gzip" else ())
    found.append(s)
    return found


def formatters():
    mutations = {"formatters": [{"name": "envoy.formatter.metadata", "typed_config": typed("formatter.metadata.v3.Metadata")}, {"name": "envoy.formatter.cel", "typed_config": typed("formatter.cel.v3.Cel")}],
                 "request_mutations": [{"append": {"header": {"key": "x-route", "value": "%METADATA(ROUTE:ns:k)%"}}}, {"append": {"header": {"key": "x-cel", "value": "%CEL(request.method)%"}}}],
                 "response_mutations": [{"append": {"header": {"key": "x-code", "value": "%CEL(response.code)%"}}}]}
    s = Setup("header_mutation formatters", filters=[every("header_mutation", "HeaderMutation", mutations=mutations)], routes=[route("/", metadata={"filter_metadata": {"ns": {"k": "v"}}})])
    s.get("mutated", "/")
    return [s]


# What both take, with values that do not depend on the clock. `metadata.filter_metadata.ns` is {l: [a, b], m: {x: 1, y: 2}, s: v, n: 5}.
EXPRESSIONS = """{'a': 1}
{'a': 1}['a']
{'a': {'b': 2}}.a.b
{1: 'x'}[1]
{true: 'x'}[true]
{1: 2, true: 3}
{'a': 1, 'a': 2}
{1.5: 2}
{'a': 1}['b']
has({'a': 1}.b)
has(request.headers.host)
'a' in {'a': 1}
1u in {1: 2}
size({'a': 1, 'b': 2})
{'a': 1} == {'a': 1}
metadata.filter_metadata.ns.m == {'x': 1.0, 'y': 2.0}
{'a': 1, 'b': 2} == metadata.filter_metadata.ns.m
metadata.filter_metadata.ns.l[0]
'a' in metadata.filter_metadata.ns.l
size(metadata.filter_metadata.ns.m)
metadata.filter_metadata['ns']['m']['x'] + 1.0
request.headers
request.headers == request.headers
[1]
[1, 'a', true][2]
[1] == [1.0]
1 in [1.0]
null
type(1)
type(1) == int
type(request.headers) == map
dyn(1)
bool('true')
bool('1')
bool('yes')
.request.path
-9223372036854775808
int(1.9)
int('x')
1 == 1u
1 < 2.5
1 + 1.0
'a' < 1
timestamp('2024-01-02T03:04:05Z')
timestamp('2024-01-02T03:04:05.123456789Z')
timestamp('2024-01-02T03:04:05+02:00')
timestamp('1969-12-31T23:59:59Z')
timestamp('0001-01-01T00:00:00Z')
timestamp('2024-13-01T00:00:00Z')
timestamp('nonsense')
timestamp(0)
timestamp('2024-01-02T03:04:05Z') < request.time
int(timestamp('2024-01-02T03:04:05Z'))
timestamp('2024-01-02T03:04:05Z').getFullYear()
timestamp('2024-01-02T03:04:05Z').getMonth()
timestamp('2024-01-02T03:04:05Z').getDate()
timestamp('2024-01-02T03:04:05Z').getDayOfMonth()
timestamp('2024-01-02T03:04:05Z').getDayOfWeek()
timestamp('1969-12-31T23:59:59Z').getDayOfWeek()
timestamp('2024-12-31T03:04:05Z').getDayOfYear()
timestamp('2024-01-02T03:04:05Z').getHours()
timestamp('2024-01-02T03:04:05Z').getHours('-08:30')
timestamp('2024-01-02T03:04:05Z').getMinutes()
timestamp('2024-01-02T03:04:05Z').getSeconds()
timestamp('2024-01-02T03:04:05.678Z').getMilliseconds()
timestamp('2024-01-02T03:04:05Z') - timestamp('2024-01-01T03:04:05Z')
timestamp('2024-01-01T03:04:05Z') - timestamp('2024-01-02T03:04:05Z')
timestamp('2024-01-02T03:04:05Z') + duration('1h')
duration('1h1m1.5s')
duration('-1.5s')
duration('1d')
duration('5')
duration('3661.5s').getHours()
duration('-3661.5s').getMinutes()
duration('3661.5s').getSeconds()
duration('-1.5s').getMilliseconds()""".split("\n")


def expressions():
    values = {"l": ["a", "b"], "m": {"x": 1, "y": 2}, "s": "v", "n": 5}
    log = " ".join(f"{i}=[%CEL({expression})%]" for i, expression in enumerate(EXPRESSIONS))
    s = Setup("cel", filters=[every("set_metadata", "Config", metadata=[{"metadata_namespace": "ns", "value": values}])], log=log)
    s.get("values", "/a/b?c=d", [("x-team", "blue")])
    return [s]


# Texts of a header, in every condition that a filter of logs may ask.
TEXTS = ("'aBc'.lowerAscii() == 'abc'", "'aBc'.upperAscii() == 'ABC'", "'a,b,c'.split(',') == ['a', 'b', 'c']", "'a,b,c'.split(',', 2) == ['a', 'b,c']", "'a,b'.split(',', 0) == []", "'abc'.split('') == ['a', 'b', 'c']",
         "'abc'.split('', 2) == ['a', 'bc']", "['a', 'b'].join('-') == 'a-b'", "['a', 'b'].join() == 'ab'", "'aXbXc'.replace('X', '-') == 'a-b-c'", "'aXbXc'.replace('X', '-', 1) == 'a-bXc'", "'aXb'.replace('X', '-', 0) == 'aXb'",
         "'hello'.substring(1) == 'ello'", "'hello'.substring(1, 3) == 'el'", "'hello'.substring(3, 1) == ''", "'hello'.indexOf('l') == 2", "'hello'.indexOf('l', 3) == 3", "'hello'.indexOf('z') == -1", "'hello'.lastIndexOf('l') == 3",
         "'hello'.lastIndexOf('l', 2) == 2", "'hello'.lastIndexOf('lo', 2) == -1", "' a '.trim() == 'a'", "'abc'.charAt(1) == 'b'", "'abc'.charAt(3) == ''", "'abc'.charAt(4) == ''", "'abc'.reverse() == 'cba'",
         "'a' + 'b' == 'ab'", "string(1) == '1'", "request.headers['x-team'].split(',')[1] == 'red'")


def texts():
    """A log line for each condition that holds."""
    config = {"enable_string_conversion": True, "enable_string_concat": True, "enable_string_functions": True}
    logs = [file_log(f"{i}", filter={"extension_filter": {"name": "cel", "typed_config": typed("access_loggers.filters.cel.v3.ExpressionFilter", expression=text, cel_config=config)}}) for i, text in enumerate(TEXTS)]
    s = Setup("cel texts", hcm={"access_log": logs}, log="")
    s.get("holds", "/", [("x-team", "blue,red")])
    return [s]


def conditions():
    """Conditions of RBAC as a control plane parses them: maps and literal times."""
    def literal(**value):
        return {"const_expr": value}

    def make(name, text):
        return call(name, constant(text))
    table = {"struct_expr": {"entries": [{"map_key": constant("blue"), "value": constant(True)}, {"map_key": constant("red"), "value": constant(False)}]}}
    team = call("_[_]", select("request", "headers"), constant("x-team"))
    exprs = {"map": call("_[_]", table, team), "in-map": call("@in", team, table), "span": call("_==_", literal(duration_value="1.5s"), make("duration", "1500ms")), "later": call("_>_", select("request", "time"), literal(timestamp_value="2024-01-02T03:04:05Z")),
             "year": call("_>_", {"call_expr": {"target": select("request", "time"), "function": "getFullYear"}}, constant(2000)), "type": call("_==_", call("type", team), {"ident_expr": {"name": "string"}})}
    rules = {f"{name}-{action.lower()}": allow({"any": True}, action=action, condition=expr) for name, expr in exprs.items() for action in ("ALLOW", "DENY")}
    return [packed("more conditions", rules, [(str(team), {"headers": [("x-team", team)] if team else []}) for team in (None, "blue", "red", "green")])]


def other_names():
    """Principals by a name of a kind that an OID tells."""
    tls.prepare()
    oid = "1.3.6.1.4.1.311.20.2.3"
    tls.make("named", "/CN=named", f"otherName:{oid};UTF8:ann@test,otherName:1.2.3.4;UTF8:bob", "ca")

    def principal(oid, **matcher):
        return {"custom": {"name": "envoy.rbac.principals.mtls_authenticated", "typed_config": typed("rbac.principals.mtls_authenticated.v3.Config", san_matcher={"san_type": "OTHER_NAME", "oid": oid, "matcher": matcher})}}
    rules = {"exact": by(principal(oid, exact="ann@test")), "suffix": by(principal(oid, suffix="@test")), "second": by(principal("1.2.3.4", exact="bob")), "crossed": by(principal("1.2.3.4", exact="ann@test")),
             "nobody": by(principal("1.2.3", exact="bob"))}
    cases = [(cert, {"tls": {"sni": "host.test", "cert": cert}}) for cert in ("named", "client")]
    return [packed("other names", rules, cases, chain=socket("ca.pem"))]


def setups():
    found = [*other_names(), *shadow(), *calls(), *clearing(), *peers(), *retry_after(), *shares(), *compression(), *formatters(), *expressions(), *texts(), *conditions()]
    for case in (case for setup in found for case in setup.cases):
        case.wait = 60.0
    return found
