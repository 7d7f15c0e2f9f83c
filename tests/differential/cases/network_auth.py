"""Network filters that ask a service about connections (ext_authz, ratelimit), before tcp_proxy and before http_connection_manager."""
import socket
import ssl
import struct
import time

from harness import tls
from harness.config import cluster, extension, file_log, http2_options, typed
from harness.setup import Setup, request

from .ext_authz import SCHEMA, answer, pb, read
from .global_ratelimit import asked as limits_asked
from .tls import socket as secure

LOG = " ".join(f"{name}=[%{operator}%]" for name, operator in {
    "flags": "RESPONSE_FLAGS", "details": "RESPONSE_CODE_DETAILS", "term": "CONNECTION_TERMINATION_DETAILS", "auth": "DYNAMIC_METADATA(envoy.filters.network.ext_authz:team)",
    "limit": "DYNAMIC_METADATA(envoy.filters.network.ratelimit)", "plain": "FILTER_STATE(envoy.filters.network.ext_authz:PLAIN)", "typed": "FILTER_STATE(envoy.filters.network.ext_authz)",
    "result": "FILTER_STATE(envoy.filters.network.ext_authz:FIELD:check_result)", "code": "FILTER_STATE(envoy.filters.network.ext_authz:FIELD:status_code)"}.items())
STATS = [r"^ext_authz\.", r"^ratelimit\.", r"^cluster\.(auth|limits)\.upstream_rq_(total|completed|timeout|\d+)", r"^cluster\.a\.upstream_cx_total"]
PATIENCE = 20.0
GRPC = [(":status", "200"), ("content-type", "application/grpc")]
FAILURES = {
    "status 14": [("headers", [*GRPC, ("grpc-status", "14"), ("grpc-message", "x")], True)], "http 503": [("headers", [(":status", "503")], True)], "reset": [("reset", 2)],
    "no message": [("headers", GRPC, False), ("headers", [("grpc-status", "0")], True)],
    "garbage": [("headers", GRPC, False), ("data", b"\0\0\0\0\2\xff\xff", False), ("headers", [("grpc-status", "0")], True)]}


def metadata(key, value):
    return pb((1, pb((1, key), (2, pb((3, value))))))


def auth(timeout="15s", **fields):
    return extension("envoy.filters.network.ext_authz", "filters.network.ext_authz.v3.ExtAuthz", **{
        "stat_prefix": "p", "grpc_service": {"envoy_grpc": {"cluster_name": "auth"}, "timeout": timeout}, "transport_api_version": "V3", **fields})


def limit(timeout="15s", values=(("kind", "plain"),), **fields):
    descriptors = [{"entries": [{"key": key, "value": value} for key, value in values]}]
    return extension("envoy.filters.network.ratelimit", "filters.network.ratelimit.v3.RateLimit", **{
        "stat_prefix": "p", "domain": "shop", "descriptors": descriptors, "timeout": timeout,
        "rate_limit_service": {"grpc_service": {"envoy_grpc": {"cluster_name": "limits"}}, "transport_api_version": "V3"}, **fields})


def setup(name, *filters, http=False, upstreams=None, tcp=None, inspect=False, **fields):
    """`filters` in front of tcp_proxy to an echo, or of http_connection_manager; connections are logged by the listener, and by tcp_proxy."""
    filters = list(filters)
    if not http:
        filters.append(extension("envoy.filters.network.tcp_proxy", "filters.network.tcp_proxy.v3.TcpProxy", stat_prefix="t", cluster="a", access_log=[file_log("tcp " + LOG)], **(tcp or {})))
    # Envoy tells the name that a client asked for only if tls_inspector saw it.
    inspector = [extension("tls_inspector", "filters.listener.tls_inspector.v3.TlsInspector")] if inspect else []
    services = [cluster(service, typed_extension_protocol_options=http2_options()) for service in ("auth", "limits")]
    return Setup(f"{'http' if http else 'tcp'} {name}", network_filters=filters, manager=http, clusters=[cluster("a"), *services], stats=STATS,
                 upstreams={"a": "http" if http else "echo", "auth": "h2", "limits": "h2", **(upstreams or {})},
                 listener={"access_log": [file_log("listener " + LOG)], "listener_filters": inspector}, **fields)


def both(name, *filters, **fields):
    return [setup(name, *filters, http=http, **fields) for http in (False, True)]


def questions(context):
    """What the services were asked."""
    found = []
    for record in context.answers.taken():
        if record["upstream"] == "auth":
            found.append(["auth", sorted(name for name, _ in record["headers"]), read(record["body"][5:], SCHEMA, context.names)])
        elif record["upstream"] == "limits":
            found.append(["limits", limits_asked(record, context.names)])
    return found


def until(done):
    deadline = time.monotonic() + PATIENCE
    while not done() and time.monotonic() < deadline:
        time.sleep(0.01)


def taken(context, count=1):
    """Waits until the services were asked so often."""
    until(lambda: sum(record["upstream"] != "a" for record in context.answers.taken()) >= count)


def end(connection):
    """The client says that it is done, and waits for the end. Whether that is orderly depends on what the proxy had read by then."""
    if connection.fate == "kept":
        try:
            connection.socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        connection.until(lambda data: False, PATIENCE)
    ended = connection.fate != "kept"
    connection.fate = "over" if ended else "kept"
    return "gone" if ended else "kept"


def talks(http, *parts, between=None):
    """A script: a client that sends all of `parts` and wants them back (over HTTP: an answer), then leaves."""
    def run(context):
        connection = context.connect()
        sent = [request()] if http else list(parts or [b"hello"])
        for number, part in enumerate(sent):
            if number and between:
                between(context)
            connection.send(part)
        whole = b"".join(sent)
        connection.until(lambda data: data.endswith(b"\r\n\r\na") if http else len(data) >= len(whole), PATIENCE)
        got = connection.received
        connection.received = b""
        return {"asked": questions(context), "got": got.split(b"\r\n")[0].decode() if http else got.decode("latin-1"), "end": end(connection)}
    return run


QUIET = ("upstream", "fate*", "rest*", "status*", "headers*", "body*")


def case(made, name, run, **fields):
    made.script(name, run, ignore=QUIET, **fields)


def is_http(made):
    return made.manager


def allowed(*more, code=None):
    return [answer(*([(1, pb((1, code)))] if code is not None else []), *more)]


def verdicts():
    found = []
    denied = pb((1, pb((1, 401))), (2, pb((1, pb((1, "x-why"), (2, "1"))))), (3, "go away"))
    answers = {"allowed": allowed(), "allowed by status": allowed(code=0), "metadata": allowed((4, metadata("team", "red"))), "denied": allowed(code=7), "denied with response": allowed((2, denied), code=7),
               "denied with metadata": allowed((4, metadata("team", "blue")), code=16), "ok with denial": allowed((2, denied), code=0), "error response": allowed((5, denied), code=13),
               **{name: [actions] for name, actions in FAILURES.items()}}
    for name, fields in (("closed", {}), ("open", {"failure_mode_allow": True}), ("shadow", {"shadow_mode": True})):
        for made in both(f"ext_authz {name}", auth(**fields)):
            for label, script in answers.items():
                case(made, label, talks(is_http(made)), upstream=script)
            found.append(made)
    for name, fields in (("closed", {}), ("open", {"failure_mode_allow": True})):
        for made in both(f"ext_authz slow {name}", auth("0.3s", **fields)):
            case(made, "hangs", talks(is_http(made)), upstream=[[5.0]])
            found.append(made)
        for made in both(f"ext_authz refused {name}", auth(**fields), upstreams={"auth": "refused"}):
            case(made, "refused", talks(is_http(made)))
            found.append(made)
        for made in both(f"ext_authz unknown {name}", auth(grpc_service={"envoy_grpc": {"cluster_name": "nowhere"}}, **fields)):
            case(made, "unknown", talks(is_http(made)))
            found.append(made)
    return found


def clients():
    """When the service is asked, and of clients that do not wait for the answer."""
    def silent(context):
        connection = context.connect()
        time.sleep(0.05)
        asked = questions(context)
        return [asked, end(connection)]

    def banner(context):
        connection = context.connect()
        connection.until(lambda data: len(data) > 9, PATIENCE)
        first, asked = bool(connection.received), questions(context)
        connection.received = b""
        connection.send(b"hello")
        connection.until(lambda data: False, PATIENCE)
        connection.received = b""
        return [first, asked, questions(context), end(connection)]

    def leaves(context):
        connection = context.connect()
        connection.send(request() if context.http else b"hello")
        taken(context)
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        connection.fate = "left"
        return questions(context)

    found = []
    for made in both("ext_authz clients", auth()):
        http = is_http(made)

        def gone(context, http=http):
            context.http = http
            return leaves(context)
        case(made, "silent", silent, upstream=allowed())
        case(made, "in pieces", talks(http, b"he", b"llo", between=taken), upstream=[[0.3, *allowed()[0]]])
        case(made, "much", talks(http, *[b"x" * 10000 for _ in range(20)]), upstream=[[0.3, *allowed()[0]]])
        case(made, "leaves", gone, upstream=[[4.0]])
        found.append(made)
    first = setup("ext_authz server first", auth(), upstreams={"a": "h2"})
    case(first, "denied later", banner, upstream=allowed(code=7))
    late = setup("ext_authz connects late", auth(), tcp={"upstream_connect_mode": "ON_DOWNSTREAM_DATA", "max_early_data_bytes": 1024})
    case(late, "allowed", talks(False), upstream=allowed())
    case(late, "denied", talks(False), upstream=allowed(code=7))
    return [*found, first, late]


def passes_hello(context):
    """A handshake that is not the proxy's: its first bytes come back from the echo."""
    source, sink = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(source, sink, server_hostname="host.test")
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        pass
    hello = sink.read()
    connection = context.connect()
    connection.send(hello)
    connection.until(lambda data: len(data) >= len(hello), PATIENCE)
    same = connection.received == hello
    connection.received = b""
    return [questions(context), same, end(connection)]


def attributes():
    tls_fields = {"include_peer_certificate": True, "include_tls_session": True}
    found = []
    for name, fields in (("plain", {}), ("full", tls_fields)):
        for made in both(f"ext_authz tls {name}", auth(**fields), chain=secure("ca.pem"), inspect=True):
            for cert in (None, "client"):
                case(made, str(cert), talks(is_http(made)), upstream=allowed(), tls={"sni": "host.test", **({"cert": cert} if cert else {})})
            case(made, "no name", talks(is_http(made)), upstream=allowed(), tls={"sni": None, "cert": "client"})
            case(made, "denied", talks(is_http(made)), upstream=allowed(code=7), tls={"sni": "host.test"})
            found.append(made)
    node = {"node": {"id": "node", "cluster": "test", "metadata": {"LABELS": {"app": "shop"}}}}
    found += both("ext_authz labels", auth(bootstrap_metadata_labels_key="LABELS", **tls_fields), bootstrap=node)
    shadow = extension("envoy.filters.network.rbac", "filters.network.rbac.v3.RBAC", stat_prefix="r", shadow_rules_stat_prefix="istio_", shadow_rules={"action": "DENY", "policies": {
        "ns-policy": {"permissions": [{"any": True}], "principals": [{"direct_remote_ip": {"address_prefix": "127.0.0.2", "prefix_len": 32}}]}}})
    enabled = {"filter": "envoy.filters.network.rbac", "path": [{"key": "istio_shadow_effective_policy_id"}], "value": {"string_match": {"prefix": "ns-"}}}
    for made in both("ext_authz metadata", shadow, auth(filter_enabled_metadata=enabled, metadata_context_namespaces=["envoy.filters.network.rbac", "none"])):
        case(made, "enabled", talks(is_http(made)), upstream=allowed(code=7), source="127.0.0.2")
        case(made, "not enabled", talks(is_http(made)), upstream=[])
        found.append(made)
    through = setup("ext_authz tls passed through", auth(**tls_fields), inspect=True)
    case(through, "hello", passes_hello, upstream=allowed())
    found.append(through)
    for made in found:
        if "labels" in made.name:
            case(made, "labels", talks(is_http(made)), upstream=allowed())
    return found


def limits():
    found = []
    values = (("ip", "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"), ("sni", "[%REQUESTED_SERVER_NAME%]"), ("header", "%REQ(x-user)%"), ("plain", "100%%"))
    said = {"ok": [answer((1, 1))], "over": [answer((1, 2))], "unknown": [answer((1, 0))], "metadata": [answer((1, 1), (6, metadata("left", "3")))], "over with metadata": [answer((1, 2), (6, metadata("left", "0")), (5, "no"))],
            **{name: [actions] for name, actions in FAILURES.items()}}
    for name, fields in (("open", {}), ("closed", {"failure_mode_deny": True})):
        for made in both(f"ratelimit {name}", limit(values=values, **fields)):
            for label, script in said.items():
                case(made, label, talks(is_http(made)), upstream=script)
            found.append(made)
        for made in both(f"ratelimit slow {name}", limit("0.3s", **fields)):
            case(made, "hangs", talks(is_http(made)), upstream=[[5.0]])
            found.append(made)
        for made in both(f"ratelimit refused {name}", limit(**fields), upstreams={"limits": "refused"}):
            case(made, "refused", talks(is_http(made)))
            found.append(made)
    runtime = {"layered_runtime": {"layers": [{"name": "x", "static_layer": {"ratelimit.tcp_filter_enabled": 0}}]}}
    found += both("ratelimit off", limit(), bootstrap=runtime)
    runtime = {"layered_runtime": {"layers": [{"name": "x", "static_layer": {"ratelimit.tcp_filter_enforcing": 0}}]}}
    found += both("ratelimit not enforced", limit(), bootstrap=runtime)
    for made in found:
        if "off" in made.name or "enforced" in made.name:
            case(made, "over", talks(is_http(made)), upstream=said["over"])

    def silent(context):
        connection = context.connect()
        connection.until(lambda data: False, PATIENCE)
        return [questions(context), end(connection)]

    def leaves(context):
        connection = context.connect()
        taken(context)
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        connection.fate = "left"
        return questions(context)
    for made in both("ratelimit clients", limit()):
        case(made, "silent and refused", silent, upstream=said["over"])
        case(made, "in pieces", talks(is_http(made), b"he", b"llo", between=taken), upstream=[[0.3, *said["ok"][0]]])
        if is_http(made):
            case(made, "leaves", leaves, upstream=[[4.0]])
        found.append(made)
    for made in both("ratelimit tls", limit(values=values), chain=secure("ca.pem"), inspect=True):
        case(made, "named", talks(is_http(made)), upstream=said["ok"], tls={"sni": "host.test"})
        # Envoy asks before the handshake, which a refused client then does not finish.
        made.script("refused", talks(is_http(made)), upstream=said["over"], tls={"sni": "host.test"}, ignore=(*QUIET, "tls"))
        found.append(made)
    return found


def together():
    """Both filters. In front of http_connection_manager Envoy lets bytes pass ext_authz while it waits, once ratelimit after it has decided; Nuncio
    does not, and asks both services at once: which is asked first is chance."""
    found = []
    for made in [setup("auth first", auth(), limit()), *both("limit first", limit(), auth())]:
        case(made, "both allow", talks(is_http(made)), upstream=[answer((1, 1)), *allowed()])
        case(made, "limit refuses", talks(is_http(made)), upstream=[answer((1, 2))])
        case(made, "service refuses", talks(is_http(made)), upstream=[answer((1, 1)), *allowed(code=7)])
        found.append(made)
    return found


def setups():
    tls.prepare()
    return [*verdicts(), *clients(), *attributes(), *limits(), *together()]
