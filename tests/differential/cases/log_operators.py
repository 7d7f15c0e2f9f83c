"""Operators of formats that tell of attempts, closes, certificate chains, route resolution, CEL with types, files and secrets: each in a
text and in a JSON format, of requests and of TCP streams. What is a time or an id is told by its kind only."""
import json
import re
import socket
import ssl
import struct
import time

from harness import tls
from harness.config import cluster, endpoint, extension, file_log, http2_options, route, say, to, typed
from harness.observe import run_http2
from harness.setup import Case, Setup, reply, request
from harness.validate import Validation

SEPARATOR = " <|> "
ATTEMPTS = """UPSTREAM_HOST UPSTREAM_HOST_NAME UPSTREAM_HOST_NAME_WITHOUT_PORT UPSTREAM_HOSTS_ATTEMPTED UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT UPSTREAM_HOST_NAMES_ATTEMPTED UPSTREAM_HOST_NAMES_ATTEMPTED_WITHOUT_PORT
UPSTREAM_CONNECTION_ID UPSTREAM_CONNECTION_IDS_ATTEMPTED UPSTREAM_REQUEST_ATTEMPT_COUNT""".split()
CLOSES = "RESPONSE_FLAGS CONNECTION_TERMINATION_DETAILS UPSTREAM_DETECTED_CLOSE_TYPE UPSTREAM_LOCAL_CLOSE_REASON DOWNSTREAM_DETECTED_CLOSE_TYPE DOWNSTREAM_LOCAL_CLOSE_REASON".split()
MEASURED = "ROUTE_RESOLUTION_COUNT ROUTE_RESOLUTION_TIME_US DOWNSTREAM_CX_RTT ROUNDTRIP_DURATION BYTES_RETRANSMITTED PACKETS_RETRANSMITTED STREAM_ID".split()
TIMES = [f"COMMON_DURATION({pair}:us)" for pair in """DS_CX_BEG:DS_RX_BEG DS_RX_BEG:DS_CX_BEG DS_RX_BEG:DS_RX_HDR_END DS_RX_BEG:DS_RX_END DS_RX_BEG:DS_TX_BEG DS_TX_BEG:DS_TX_END DS_TX_END:DS_TX_BEG US_TX_BEG:US_TX_END US_RX_BEG:US_RX_BODY_BEG
US_RX_BEG:US_RX_END US_RX_END:US_RX_BEG US_CX_BEG:US_CX_END US_CX_END:US_HS_END DS_CX_BEG:DS_HS_BEG DS_HS_BEG:DS_HS_END DS_CX_BEG:DS_CX_END DS_RX_BEG:US_TX_BEG NONE:DS_TX_END""".split()]
CEL = """response.code request.path request.nope 1+1 2.5 5u true null b'abc' [1,'a',2.5] {'a':1} {'b':[true],'a':{'c':null}} request.duration request.time request.headers request.headers['x-none']
response.headers upstream.address 'a"b'""".split()
TYPED = [f"TYPED_CEL({text})" for text in CEL] + [f"CEL({text})" for text in CEL] + ["TYPED_CEL(request.path):3", "CEL(request.path):3", "TYPED_CEL(1234):2"]
CHAIN = """DOWNSTREAM_LOCAL_OTHERNAME_SAN DOWNSTREAM_PEER_OTHERNAME_SAN DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_256 DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_1 DOWNSTREAM_PEER_CHAIN_SERIALS DOWNSTREAM_PEER_ISSUER_FINGERPRINT_256
DOWNSTREAM_PEER_ISSUER_SERIAL DOWNSTREAM_PEER_FINGERPRINT_256 DOWNSTREAM_PEER_SERIAL DOWNSTREAM_TLS_GROUP UPSTREAM_TLS_GROUP DOWNSTREAM_PEER_EMAIL_SAN UPSTREAM_TLS_VERSION""".split()
# Whose values differ from run to run: their kind is compared, and whether they are there.
VARIES = re.compile("COMMON_DURATION|ROUTE_RESOLUTION_TIME|CONNECTION_ID|HANDSHAKE_DURATION|STREAM_ID|request.duration|request.time|request.headers\\)|response.headers\\)")


def kind(operator, value):
    """A value as it is compared."""
    if not VARIES.search(operator):
        return value
    if isinstance(value, dict):
        return {name: "<varies>" if name in ("date", "x-request-id", "x-envoy-upstream-service-time", "x-envoy-expected-rq-timeout-ms") else item for name, item in value.items()}
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return "<zero>" if value == 0 and "CONNECTION_ID" in operator else "<number>"
    text = re.sub("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "<uuid>", str(value))
    text = re.sub("[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]+", "<time>", text)
    text = re.sub("^-?[1-9][0-9]*$|^0$" if "CONNECTION_ID" not in operator else "^[1-9][0-9]*$", "<digits>", text)
    return re.sub("^[0-9.]+(ns|us|ms|s)$", "<duration>", text) if value is not None else None


def loggers(operators, formatters=()):
    """A text and a JSON log of the same operators."""
    made = file_log("".join(f"{operator}=[%{operator}%]{SEPARATOR}" for operator in operators))
    fields = {"peer": "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%", **{operator: f"%{operator}%" for operator in operators}}
    both = [made, {"name": "json", "typed_config": typed("access_loggers.file.v3.FileAccessLog", path="@dir@/json.log", log_format={"json_format": fields})}]
    for log in both:
        if formatters:
            log["typed_config"]["log_format"]["formatters"] = list(formatters)
    return both


def masked(names, value):
    """A value of JSON with names for ports in its strings; numbers stay what they are."""
    if isinstance(value, dict):
        return {name: masked(names, item) for name, item in value.items()}
    return names.text(value) if isinstance(value, str) else value


def told(context, connections, count=1):
    """What both logs say of these connections, once there are `count` entries in each."""
    names = {connection.name for connection in connections}

    def look():
        entries = []
        for entry in context.proxy.log().split("@@127")[1:]:
            peer, _, rest = ("127" + entry).partition("@@ ")
            if peer in names:
                pairs = [field.partition("=[") for field in rest.split(SEPARATOR)[:-1]]
                entries.append({context.names.text(operator): kind(operator, context.names.text(value[:-1])) for operator, _, value in pairs})
        try:
            with open(context.proxy.directory + "/json.log", encoding="latin-1") as file:
                lines = [json.loads(line) for line in file.read().splitlines()]
        except (FileNotFoundError, ValueError):
            lines = []
        shown = [{operator: kind(operator, masked(context.names, value)) for operator, value in line.items() if operator != "peer"}
                 for line in lines if line["peer"] in names]
        return {"text": entries, "json": shown}

    def read():
        deadline = time.monotonic() + 15
        while True:
            found = look()
            if all(len(entries) >= count for entries in found.values()) or time.monotonic() > deadline:
                return found
            time.sleep(0.02)
    return read


def exchange(setup, name, *steps, methods=("GET",), end=None, seen=False, **fields):
    """Sends bytes over one connection, reads the responses, waits until an upstream has `seen` the request, ends the connection as `end` says, and compares the logs."""
    def run(context):
        connection = context.connect()
        connection.methods += list(methods)
        for step in steps:
            if isinstance(step, float):
                time.sleep(step)
            else:
                connection.send(step)
        if methods:
            connection.responses(connection.methods, 15)
        deadline = time.monotonic() + 15
        while seen and not context.answers.taken() and time.monotonic() < deadline:
            time.sleep(0.01)
        leave(connection, end)
        return told(context, [connection], max(len(methods), 1))
    setup.script(name, run, ignore=("status*", "headers*", "body*", "rest*", "fate*", "upstream", "tls*"), **fields)


def leave(connection, end):
    if end == "reset":
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if end == "peer":
        connection.until(lambda _: False, 15)
    if end:
        connection.close()
        connection.fate = "closed by the client"


def refused(name, hostname=None):
    made = endpoint(name)
    return {"endpoint": {**made["endpoint"], **({"hostname": hostname} if hostname else {})}}


def requests(operators):
    setup = Setup("requests", log="", hcm={"access_log": loggers(operators), "forward_client_cert_details": "ALWAYS_FORWARD_ONLY"}, upstreams={"x": "refused", "y": "refused"}, clusters=[
        cluster("a"), cluster("named", localities=[{"lb_endpoints": [refused("b", "one.test:80")]}]), cluster("plain", localities=[{"lb_endpoints": [refused("b", "two.test")]}]), cluster("x"), {**cluster("none"), "load_assignment": {"cluster_name": "none"}},
        # The second attempt goes to the other priority.
        cluster("again", localities=[{"priority": 0, "lb_endpoints": [refused("y", "y.test")]}, {"priority": 1, "lb_endpoints": [refused("b", "b.test")]}])],
        routes=[route("/local", direct_response=say("x")), route("/named", to("named")), route("/plain", to("plain")), route("/x", to("x")), route("/none", to("none")), route("/late", to("a", timeout="0.3s")), route("/unknown", {"cluster_header": "x-cluster"}),
                route("/retry", to("a", retry_policy={"retry_on": "5xx", "num_retries": 2, "retry_back_off": {"base_interval": "0.001s"}})), route("/a")])
    exchange(setup, "get", request("/a?q=1"))
    exchange(setup, "two", request("/a"), 0.05, request("/a"), methods=("GET", "GET"))
    exchange(setup, "post", request("/a", method="POST", body=b"hello"), methods=("POST",))
    exchange(setup, "chunked", request("/a"), upstream=[[b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", 0.05, b"0\r\n\r\n"]])
    exchange(setup, "empty", request("/a"), upstream=[reply(204, length=False)])
    for path in ("local", "named", "plain", "x", "none", "unknown"):
        exchange(setup, path, request("/" + path, [("x-cluster", "nowhere")]))
    exchange(setup, "missing", request("/nothing"))
    exchange(setup, "late", request("/late"), upstream=[["hang"]])
    exchange(setup, "closed", request("/a"), upstream=[["close"]])
    exchange(setup, "reset", request("/a"), upstream=[["reset"]])
    exchange(setup, "retried", request("/retry"), upstream=[reply(503), reply(503)])
    exchange(setup, "retried in vain", request("/retry"), upstream=[reply(503), reply(503), reply(503)])
    def two(context):
        run_http2(context, Case("http2", h2={"headers": [(":method", "GET"), (":scheme", "http"), (":authority", "host"), (":path", "/a")], "body": None, "trailers": None}, wait=15.0))
        return told(context, context.connections)
    setup.script("http2", two, ignore=("status*", "headers*", "body*", "rest*", "fate*", "upstream", "streams", "goaway"))
    return setup


def ends(operators):
    """Requests without a head, and without an answer. What is told of the upstream connection of the latter differs: see docs/envoy-coverage.md."""
    setup = Setup("ends", log="", hcm={"access_log": loggers(operators)})
    exchange(setup, "malformed", b"GET / HTTP/1.1\r\nbad\x00: a\r\n\r\n")
    exchange(setup, "left", request("/a"), methods=(), end="close", seen=True, upstream=[["hang"]])
    return setup


def xfcc():
    operators = [f"XFCC_VALUE({key})" for key in ("by", "Hash", "CERT", "chain", "subject", "uri", "dns")] + ["XFCC_VALUE(uri):2"]
    setup = Setup("xfcc", log="", hcm={"access_log": loggers(operators), "forward_client_cert_details": "ALWAYS_FORWARD_ONLY"})
    values = {"one": 'By=spiffe://a/b;Hash=12ab;Subject="CN=a,O=\\"b;c\\"";URI=spiffe://x', "two": "Hash=1;URI=first,By=b;URI=second", "later": "By=b;Hash=1,URI=second;DNS=d;DNS=e", "quotes": 'URI="a,b;c=d\\\\"', "open": 'By=b,Subject="never ends;URI=x',
              "empty": "URI=;By=", "bare": "URI", "spaces": " uri = a b ; by = \" c \" ", "equals": "URI=a=b=c", "escape": "URI=a\\b\\\"c", "odd": ",,;;=,URI=z"}
    for name, value in values.items():
        exchange(setup, name, request("/", [("x-forwarded-client-cert", value)]))
    exchange(setup, "twice", request("/", [("x-forwarded-client-cert", "URI=a"), ("x-forwarded-client-cert", "By=b")]))
    exchange(setup, "none", request("/"))
    return setup


NAMES = """[req]
distinguished_name=dn
[dn]
[v3]
basicConstraints=critical,CA:FALSE
subjectAltName=@alt
[alt]
otherName.1=1.3.6.1.4.1.311.20.2.3;UTF8:user@corp
otherName.2=1.2.3.4;UTF8:zwei,drei
otherName.3=1.2.3.5;BOOLEAN:TRUE
otherName.4=1.2.3.6;INTEGER:5
otherName.5=1.2.3.7;INTEGER:-70000
otherName.6=1.2.3.8;IA5STRING:ia5
otherName.7=1.2.3.9;OCTETSTRING:oct
otherName.8=1.2.3.10;NULL:
otherName.9=1.2.3.11;PRINTABLESTRING:prt
otherName.10=1.2.3.12;ENUMERATED:3
otherName.11=1.2.3.13;OID:1.2.3
otherName.12=1.2.3.14;BMPSTRING:bmp
otherName.13=1.2.3.15;UTCTIME:260101000000Z
otherName.14=1.2.3.16;GENERALIZEDTIME:20260101000000Z
otherName.15=1.2.3.17;VISIBLESTRING:vis
otherName.16=1.2.3.18;T61STRING:t61
otherName.17=1.2.3.19;UNIVERSALSTRING:uni
otherName.18=1.2.3.20;BITSTRING:bits
email.1=a@b.c
DNS.1=x.y
"""


def certificates():
    """A client with other names behind an intermediate that it sends along."""
    tls.prepare()
    if "log-leaf" in tls.MADE:
        return
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"]
    with open(tls.path("names.cnf"), "w") as file:
        file.write(NAMES)
    tls.openssl("req", "-x509", *key, "-keyout", "log-inter.key", "-out", "log-inter.pem", "-subj", "/CN=Inter", "-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "basicConstraints=critical,CA:TRUE")
    tls.openssl("req", "-x509", *key, "-keyout", "log-leaf.key", "-out", "log-only.pem", "-subj", "/CN=leaf", "-CA", "log-inter.pem", "-CAkey", "log-inter.key", "-config", "names.cnf", "-extensions", "v3")
    with open(tls.path("log-leaf.pem"), "w") as file:
        for part in ("log-only.pem", "log-inter.pem"):
            with open(tls.path(part)) as text:
                file.write(text.read())
    tls.MADE.add("log-leaf")


def chains():
    certificates()

    def socket_of(ca, **validation):
        context = {"tls_certificates": [{"certificate_chain": {"filename": tls.path("log-leaf.pem")}, "private_key": {"filename": tls.path("log-leaf.key")}}]}
        if ca:
            context["validation_context"] = {"trusted_ca": {"filename": tls.path(ca)}, **validation}
        return {"transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": typed("transport_sockets.tls.v3.DownstreamTlsContext", common_tls_context=context)}}
    upstream = {"name": "envoy.transport_sockets.tls", "typed_config": typed("transport_sockets.tls.v3.UpstreamTlsContext")}
    made = []
    operators = CHAIN + ["COMMON_DURATION(DS_HS_BEG:DS_HS_END:us)", "COMMON_DURATION(DS_CX_BEG:DS_HS_BEG:us)", "COMMON_DURATION(US_CX_BEG:US_HS_END:us)", "COMMON_DURATION(US_CX_END:US_HS_END:us)", "DOWNSTREAM_HANDSHAKE_DURATION"]
    for name, fields in (("trusted", ("ca.pem",)), ("asked by none", (None,)), ("untrusted", ("other-ca.pem",))):
        context = socket_of(*fields, **({"trust_chain_verification": "ACCEPT_UNTRUSTED"} if name == "untrusted" else {}))
        setup = Setup(f"chain {name}", log="", chain=context, hcm={"access_log": loggers(operators)}, clusters=[cluster("a", ["sec"], transport_socket=upstream), cluster("b")], upstreams={"sec": "tls"}, routes=[route("/b", to("b")), route("/")])
        for case, options in {"none": {}, "client": {"cert": "client"}, "leaf": {"cert": "log-leaf"}, "leaf 1.2": {"cert": "log-leaf", "maximum": ssl.TLSVersion.TLSv1_2}}.items():
            exchange(setup, case, request("/"), tls={"sni": "host.test", **options})
        exchange(setup, "plain upstream", request("/b"), tls={"sni": "host.test", "cert": "client"})
        made.append(setup)
    return made


def tcp(name, operators, cluster_fields=None, network_filters=(), upstreams=None, **fields):
    proxy = extension("tcp", "filters.network.tcp_proxy.v3.TcpProxy", stat_prefix="t", cluster="a", access_log=loggers(operators), **fields)
    return Setup("tcp " + name, log="", manager=False, network_filters=[*network_filters, proxy], clusters=[cluster_fields or cluster("a")], upstreams=upstreams or {})


def streams(operators):
    hello = request("/")
    answered = reply(200, [], "a")
    plain = tcp("ends", operators)
    exchange(plain, "client closes", hello, end="close")
    exchange(plain, "client resets", hello, end="reset")
    exchange(plain, "upstream closes", hello, end="peer", upstream=[[answered, "close"]])
    exchange(plain, "upstream resets", hello, end="peer", upstream=[[answered, 0.2, "reset"]])
    made = [plain]
    for name, arguments in {
        "idle": {"idle_timeout": "1s"}, "too long": {"max_downstream_connection_duration": "2s"},
        "refused": {"cluster_fields": cluster("a", ["x"]), "upstreams": {"x": "refused"}, "max_connect_attempts": 2},
        "second host": {"cluster_fields": cluster("a", localities=[{"priority": 0, "lb_endpoints": [refused("x", "x.test:1")]}]), "upstreams": {"x": "refused"}},
        "no host": {"cluster_fields": {**cluster("a"), "load_assignment": {"cluster_name": "a"}}},
        "unknown": {"cluster_fields": cluster("other")}, "overflow": {"cluster_fields": cluster("a", circuit_breakers={"thresholds": [{"max_connections": 0}]})},
        "rbac": {"network_filters": [extension("rbac", "filters.network.rbac.v3.RBAC", stat_prefix="r", rules={"action": "ALLOW", "policies": {}})]},
    }.items():
        setup = tcp(name, operators, **arguments)
        exchange(setup, "ends", hello if name != "no host" else b"", methods=("GET",) if name in ("idle", "too long") else (), end="peer")
        made.append(setup)
    for name, kind_, fields in (("rate", "filters.network.local_ratelimit.v3.LocalRateLimit", {"token_bucket": {"max_tokens": 1, "fill_interval": "1000s"}}), ("limit", "filters.network.connection_limit.v3.ConnectionLimit", {"max_connections": 1})):
        setup = tcp(name, operators, network_filters=[extension("f", kind_, stat_prefix="r", **fields)])

        def two(context):
            first = context.connect()
            first.send(hello)
            first.until(lambda data: data.endswith(b"a"), 15)
            second = context.connect()
            leave(second, "peer")
            leave(first, "close")
            return told(context, [second])
        setup.script("second", two, ignore=("status*", "headers*", "body*", "rest*", "fate*", "upstream"))
        made.append(setup)
    return made


def sources():
    """Files and secrets, and what happens to them."""
    both = [{"name": "f", "typed_config": typed("formatter.file_content.v3.FileContent")},
            {"name": "s", "typed_config": typed("formatter.generic_secret.v3.GenericSecret", secret_configs={"one": {"name": "stored", "sds_config": {"path_config_source": {"path": "@dir@/sds.json"}}},
                                                                                                              "none": {"name": "absent", "sds_config": {"path_config_source": {"path": "@dir@/none.json"}}}})}]
    operators = ["FILE_CONTENT(@dir@/content.txt)", "FILE_CONTENT(@dir@/content.txt):4", "FILE_CONTENT(@dir@/content.txt:@dir@)", "FILE_CONTENT(@dir@/empty.txt)", "SECRET(one)", "SECRET(one):3"]

    def secrets(name, value):
        return json.dumps({"version_info": value, "resources": [{"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret", "name": name, "generic_secret": {"secret": {"inline_string": value}}}]})
    setup = Setup("sources", log="", hcm={"access_log": loggers(operators, both)}, files={"content.txt": 'first "line"\nsecond\n', "empty.txt": "", "sds.json": secrets("stored", "s3cret value"), "none.json": secrets("absent", "")})
    exchange(setup, "read", request("/"))

    def changed(context):
        # Written in place: what is moved there Envoy sees only with a directory to watch, Nuncio always.
        with open(context.proxy.directory + "/content.txt", "w") as file:
            file.write("other")
        # Asked again until it shows; what is seen then is compared.
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            connection = context.connect()
            connection.methods += ["GET"]
            connection.send(request("/"))
            connection.responses(["GET"], 15)
            (line,) = told(context, [connection])()["json"]
            if line[operators[0]] == line[operators[2]] == "other":
                return line
            time.sleep(0.1)
        return "never"
    setup.script("changed", changed, ignore=("status*", "headers*", "body*", "rest*", "fate*", "upstream"))
    return setup


def refusals():
    made = Validation("formats")
    files = [{"name": "f", "typed_config": typed("formatter.file_content.v3.FileContent")}]
    secrets = [{"name": "s", "typed_config": typed("formatter.generic_secret.v3.GenericSecret", secret_configs={"one": {"name": "stored", "sds_config": {"path_config_source": {"path": "/dev/null"}}}})}]
    none = [{"name": "s", "typed_config": typed("formatter.generic_secret.v3.GenericSecret")}]
    for name, text, formatters in (
            ("file without extension", "%FILE_CONTENT(/etc/hostname)%", ()), ("file", "%FILE_CONTENT(/etc/hostname)%", files), ("no file", "%FILE_CONTENT(/no/such/file)%", files), ("file of nothing", "%FILE_CONTENT%", files), ("two colons", "%FILE_CONTENT(/a:/b:/c)%", files),
            ("secret without extension", "%SECRET(x)%", ()), ("unknown secret", "%SECRET(x)%", secrets), ("no secrets", "%PROTOCOL%", none), ("xfcc of nothing", "%XFCC_VALUE()%", ()), ("xfcc of what", "%XFCC_VALUE(nope)%", ()), ("xfcc", "%XFCC_VALUE(Uri):3%", ()),
            ("count with length", "%ROUTE_RESOLUTION_COUNT:3%", ()), ("group with argument", "%DOWNSTREAM_TLS_GROUP(a)%", ()), ("hosts with length", "%UPSTREAM_HOST_NAMES_ATTEMPTED:3%", ()), ("cel", "%TYPED_CEL(1 +)%", ()), ("cel of nothing", "%TYPED_CEL%", ()),
            ("points", "%COMMON_DURATION(US_CX_BEG:DS_TX_END:us)%", ()), ("points of filters", "%COMMON_DURATION(a:b)%", ()), ("unknown", "%DOWNSTREAM_NOTHING%", ())):
        log = file_log(text)
        log["typed_config"]["log_format"]["formatters"] = list(formatters)
        made.offer(name, hcm={"access_log": [log]})
    return made


def upstream_http2(operators):
    setup = Setup("upstream http2", log="", hcm={"access_log": loggers(operators)}, clusters=[cluster("a", typed_extension_protocol_options=http2_options())], upstreams={"a": "h2"})
    exchange(setup, "get", request("/"))
    exchange(setup, "again", request("/"))
    exchange(setup, "reset", request("/"), upstream=[[("reset", 2)]])
    return setup


def setups():
    operators = ATTEMPTS + CLOSES + MEASURED + TIMES
    unanswered = [name for name in CLOSES + MEASURED + TIMES if "(US_" not in name and "US_TX" not in name]
    return [requests(operators + TYPED), ends(unanswered), upstream_http2(operators), xfcc(), *chains(), *streams([*operators, "TYPED_CEL(connection.mtls)", "CEL(request.path)", "XFCC_VALUE(uri)"]), sources(), refusals()]
