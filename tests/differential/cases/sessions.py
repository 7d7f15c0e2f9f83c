"""Stateful sessions: which host a session goes to, what clients are told of it, and what happens when the host cannot take it."""
import base64

from harness.config import cluster, endpoint, extension, route, to, typed
from harness.setup import Setup, reply, request

HOSTS = ["a", "b", "c"]


def state(kind, message, /, **fields):
    return extension(f"envoy.http.stateful_session.{kind}", f"http.stateful_session.{kind}.v3.{message}", **fields)


def cookie(name="sid", **fields):
    return state("cookie", "CookieBasedSessionState", cookie={"name": name, **fields})


def header(name="x-host"):
    return state("header", "HeaderBasedSessionState", name=name)


def envelope(name="mcp-session"):
    return state("envelope", "EnvelopeSessionState", header={"name": name})


def filter(session, **fields):
    return extension("envoy.filters.http.stateful_session", "filters.http.stateful_session.v3.StatefulSession", session_state=session, stat_prefix="s", **fields)


def per_route(**fields):
    return {"typed_per_filter_config": {"envoy.filters.http.stateful_session": typed("filters.http.stateful_session.v3.StatefulSessionPerRoute", **fields)}}


def encoded(address, expires=0):
    value = b"\x0a" + bytes([len(address)]) + address.encode()
    if expires:
        value += b"\x10"
        while expires > 127:
            value, expires = value + bytes([expires & 127 | 128]), expires >> 7
        value += bytes([expires])
    return base64.b64encode(value).decode()


def address(context, name):
    return f"127.0.0.1:{context.upstreams[name].port}"


def ask(context, path="/", headers=(), answers=()):
    """One request: (status line, upstream, set-cookie and session headers with hosts by name)."""
    context.answers.load(list(answers))
    responses, _ = context.exchange(request(path, headers))
    taken = context.answers.taken()
    shown = []
    for name, value in responses[0].headers if responses else []:
        if name.lower() in ("set-cookie", "x-host", "mcp-session"):
            for host in HOSTS:
                for form in (encoded(address(context, host)), base64.b64encode(address(context, host).encode()).decode()):
                    value = value.replace(form, f"<{host}>")
            shown.append(f"{name}: {value}")
    # Which host the balancer took is chance at the first request.
    return responses[0].line if responses else "nothing", [entry["upstream"] for entry in taken], shown, [
        [value for name, value in entry["headers"] if name.lower() == "mcp-session"] for entry in taken]


def to_host(host, make, path="/", answers=(), times=4):
    """A script: `times` requests whose session is `host`."""
    def run(context):
        return [ask(context, path, make(context, host), answers) for _ in range(times)]
    return run


def with_cookie(context, host, form="sid={}"):
    return [("cookie", form.format(encoded(address(context, host))))]


def with_header(context, host):
    return [("x-host", base64.b64encode(address(context, host).encode()).decode())]


def with_envelope(context, host):
    return [("mcp-session", base64.b64encode(address(context, host).encode()).decode() + ";UV:" + base64.b64encode(b"theirs").decode())]


QUIET = ("headers*", "body*", "upstream", "status*", "fate*")
STATS = ["stateful_session", "^cluster.a.upstream_cx_none_healthy", "^cluster.a.upstream_rq_2xx", "^cluster.a.upstream_rq_5"]


def healths(**statuses):
    return [{"lb_endpoints": [endpoint(name, health_status=status) for name, status in statuses.items()]}]


def first(path="/", answers=(), headers=()):
    """A request without session; the host is chance, so it is named by what the client is told of it."""
    def run(context):
        line, taken, shown, _ = ask(context, path, headers, answers)
        return line, [text.replace(f"<{taken[0]}>", "<it>") for text in shown] if taken else shown
    return run


def setups():
    made = []

    def one(name, session, scripts, clusters=None, routes=None, **fields):
        setup = Setup(name, filters=[filter(session, **fields)], clusters=[clusters or cluster("a", HOSTS)], routes=routes or [route("/", to("a"))], stats=STATS, log=None)
        for case, script in scripts.items():
            setup.script(case, script, ignore=QUIET)
        made.append(setup)
        return setup

    bad = {f"bad {text}": first(headers=[("cookie", f"sid={text}")]) for text in ("", "!!!", "AAAA", base64.b64encode(b"junk").decode(), encoded("10.9.9.9:1"), encoded(""), encoded("not an address"))}
    old = {"old form": to_host("b", lambda context, host: [("cookie", "sid=" + base64.b64encode(address(context, host).encode()).decode())])}
    one("cookie", cookie(), {"first": first(), "to b": to_host("b", with_cookie), "to c": to_host("c", with_cookie), "quoted": to_host("b", lambda c, h: with_cookie(c, h, 'x=1; sid="{}"; y=2')),
                             "with expiry": to_host("b", lambda c, h: [("cookie", "sid=" + encoded(address(c, h), 99999999999))]), "upstream sets cookies": first(answers=[reply(200, [("set-cookie", "own=1")], "x")]), **bad, **old})
    one("cookie-ttl", cookie(ttl="100s", path="/p"), {"no expiry": to_host("b", with_cookie, "/p", times=1) and first("/other"), "elsewhere": first("/pp"), "elsewhere named": lambda c: [line for line, *_ in [ask(c, "/other", with_cookie(c, "b"))]]})
    one("cookie-path", cookie(path="/p"), {"on path": first("/p"), "below": first("/p/q"), "query": first("/p?x"), "beside": first("/pq"), "fragment": first("/p/"), "named": to_host("c", with_cookie, "/p")})
    one("cookie-dir", cookie(path="/p/"), {"on path": first("/p/"), "below": first("/p/q"), "without": first("/p"), "named": to_host("c", with_cookie, "/p/")})
    one("cookie-attributes", cookie(path="/", attributes=[{"name": "SameSite", "value": "Strict"}, {"name": "Secure"}]), {"first": first()})
    one("header", header(), {"first": first(), "to b": to_host("b", with_header), "junk": first(headers=[("x-host", "junk")]), "empty": first(headers=[("x-host", "")]), "upstream sets": first(answers=[reply(200, [("x-host", "own")], "x")]),
                             "upstream sets, same": to_host("b", with_header, answers=[reply(200, [("x-host", "own")], "x")])})
    sealed = [reply(200, [("mcp-session", "theirs")], "x")]
    one("envelope", envelope(), {"first": first(), "first sealed": first(answers=sealed), "to b": to_host("b", with_envelope), "to b sealed": to_host("b", with_envelope, answers=sealed), "twice": first(answers=[reply(200, [("mcp-session", "1"), ("mcp-session", "2")], "x")]),
                                 **{f"bad {text}": first(headers=[("mcp-session", text)], answers=sealed) for text in ("", ";", "AAAA", "AAAA;UV:", "AAAA;UV:!", "plain", ";;AAAA;x;UV:QUJD")}})
    one("no-state", None, {"first": first(), "named": first(headers=[("cookie", "sid=x")])})
    gone = {"gone": lambda c: [ask(c, "/", [("cookie", f"sid={encoded('127.0.0.1:1')}")])[::3] for _ in range(2)], "there": to_host("b", with_cookie), "none": first()}
    one("strict", cookie(), gone, strict=True)
    one("strict-status", cookie(), gone, strict=True, status_on_strict_destination_not_found=410)
    one("lax", cookie(), {"gone": lambda c: [ask(c, "/", [("cookie", f"sid={encoded('127.0.0.1:1')}")])[0] for _ in range(2)], "there": to_host("b", with_cookie)}, status_on_strict_destination_not_found=410)
    for label, statuses in (("default", None), ("healthy", ["HEALTHY"]), ("drain", ["HEALTHY", "UNKNOWN", "DRAINING"]), ("degraded", ["DEGRADED"]), ("all", ["UNKNOWN", "HEALTHY", "UNHEALTHY", "DRAINING", "DEGRADED", "TIMEOUT"])):
        for status in ("UNKNOWN", "HEALTHY", "UNHEALTHY", "DRAINING", "DEGRADED", "TIMEOUT"):
            lb = {"common_lb_config": {"override_host_status": {"statuses": statuses}}} if statuses else {}
            one(f"status-{label}-{status.lower()}", cookie(), {"named": to_host("b", with_cookie, times=2)}, cluster("a", localities=healths(a="HEALTHY", b=status, c="HEALTHY"), **lb), strict=True)
    one("routes", cookie(), {"off": to_host("b", lambda c, h: [("cookie", "sid=junk")], "/off", times=1) and first("/off"), "other": first("/other"), "other named": to_host("c", with_header, "/other"), "other, cookie": first("/other"), "rest": first("/")},
        routes=[route("/off", to("a"), **per_route(disabled=True)), route("/other", to("a"), **per_route(stateful_session={"session_state": header(), "strict": True})), route("/", to("a"))])
    # The retry may go to the same host again, by chance.
    one("retry", cookie(), {"elsewhere": lambda c: (lambda r: (r[0], r[1][0], len(r[1])))(ask(c, "/", with_cookie(c, "b"), [reply(503, [], "x")]))}, routes=[route("/", to("a", retry_policy={"retry_on": "5xx"}))]).stats = []
    refused = one("refused", cookie(), {"connection refused": lambda c: ask(c, "/", with_cookie(c, "b"))[::2]})
    refused.upstreams = {"b": "refused"}
    return made
