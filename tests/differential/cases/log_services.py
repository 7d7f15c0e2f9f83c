"""Access loggers that call services: what both proxies send to an access log service and to an OpenTelemetry collector, message by message.
Times, ports and ids are told by their kind only."""
import socket
import ssl
import struct
import threading
import time

from harness import tls, wire2
from harness.config import cluster, extension, http2_options, route, say, to, typed
from harness.setup import Setup, reply, request

OK = [(":status", "200"), ("content-type", "application/grpc")]


class Collector:
    """A gRPC server on loopback that keeps every message it is sent. A stream of logs is never answered, a call is with an empty message."""

    def __init__(self):
        self.lock, self.messages = threading.Lock(), []
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.socket.listen(64)
        self.port, self.begun = self.socket.getsockname()[1], False

    def begin(self):
        """Serves from now on: in the process that runs the cases, which is another than the one that made them."""
        with self.lock:
            if not self.begun:
                self.begun = True
                threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            peer, _ = self.socket.accept()
            threading.Thread(target=self.serve, args=(peer,), daemon=True).start()

    def serve(self, peer):
        reader, taken, answered, start = wire2.Reader(), {}, set(), b""
        try:
            peer.sendall(wire2.settings(max_concurrent_streams=100, initial_window_size=1 << 20) + wire2.frame(wire2.WINDOW_UPDATE, 0, 0, struct.pack(">I", 1 << 24)))
            while len(start) < len(wire2.PREFACE):
                more = peer.recv(len(wire2.PREFACE) - len(start))
                if not more:
                    return
                start += more
            while more := peer.recv(65536):
                said = wire2.answers(reader.feed(more))
                if said:
                    peer.sendall(said)
                for number, stream in list(reader.streams.items()):
                    if not stream["heads"]:
                        continue
                    head, at = stream["heads"][0], taken.get(number, 0)
                    while len(stream["body"]) >= at + 5 and len(stream["body"]) >= at + 5 + (size := struct.unpack_from(">I", stream["body"], at + 1)[0]):
                        with self.lock:
                            self.messages.append(((id(peer), number), head, stream["body"][at + 5:at + 5 + size]))
                        at += 5 + size
                    taken[number] = at
                    if stream["ended"] and number not in answered:
                        answered.add(number)
                        peer.sendall(wire2.headers(number, OK) + wire2.data(number, b"\0\0\0\0\0") + wire2.headers(number, [("grpc-status", "0")], end=True))
        except OSError:
            pass

    def taken(self):
        self.begin()
        with self.lock:
            return list(self.messages)


def number(data, at):
    value, shift = 0, 0
    while True:
        byte = data[at]
        at, value, shift = at + 1, value | (byte & 0x7f) << shift, shift + 7
        if byte < 0x80:
            return value, at


def fields(data):
    """[(number, int or bytes)] of a message."""
    found, at = [], 0
    while at < len(data):
        key, at = number(data, at)
        if key & 7 == 0:
            value, at = number(data, at)
        else:
            size, at = {1: (8, at), 5: (4, at)}.get(key & 7) or number(data, at)
            value, at = data[at:at + size], at + size
        found.append((key >> 3, value))
    return found


# A name alone is a value; a pair is a name with the fields of the message inside; "<..>" masks what differs from run to run.
TIME = {1: "<seconds>", 2: "<nanos>"}
ADDRESS = {1: ("socket", {1: "protocol", 2: "address", 3: "port"}), 2: ("pipe", {1: "path"}), 3: ("internal", {1: "name"})}
STRINGS = {1: "key", 2: "value"}
STRUCT = {}
STRUCT[1] = ("fields", {1: "key", 2: ("value", {1: "null", 2: "<number>", 3: "string", 4: "bool", 5: ("struct", STRUCT)})})
METADATA = {1: ("filter_metadata", {1: "key", 2: ("value", STRUCT)})}
CERTIFICATE = {1: ("san", {1: "uri", 2: "dns"}), 2: "subject", 3: "issuer"}
# Which cipher wins in TLS 1.3 is the library's choice.
TLS = {1: "version", 2: ("cipher", {1: "<value>"}), 3: "sni", 4: ("local", CERTIFICATE), 5: ("peer", CERTIFICATE), 6: "<session>", 7: "ja3"}
FLAGS = dict(enumerate("""failed_local_healthcheck no_healthy_upstream upstream_request_timeout local_reset upstream_remote_reset upstream_connection_failure upstream_connection_termination upstream_overflow no_route_found delay_injected fault_injected
rate_limited unauthorized rate_limit_service_error downstream_connection_termination upstream_retry_limit_exceeded stream_idle_timeout invalid_envoy_request_headers downstream_protocol_error upstream_max_stream_duration_reached response_from_cache
no_filter_config duration_timeout upstream_protocol_error no_cluster overload_manager dns_resolution_failure downstream_remote_reset""".split(), 1))
COMMON = {1: "sample_rate", 2: ("downstream_remote", ADDRESS), 3: ("downstream_local", ADDRESS), 4: ("tls", TLS), 5: ("start_time", TIME), 6: ("last_rx", TIME), 7: ("first_upstream_tx", TIME), 8: ("last_upstream_tx", TIME), 9: ("first_upstream_rx", TIME),
          10: ("last_upstream_rx", TIME), 11: ("first_downstream_tx", TIME), 12: ("last_downstream_tx", TIME), 13: ("upstream_remote", ADDRESS), 14: ("upstream_local", ADDRESS), 15: "upstream_cluster", 16: ("flags", FLAGS), 17: ("metadata", METADATA),
          18: "upstream_failure", 19: "route_name", 20: ("downstream_direct_remote", ADDRESS), 21: ("filter_state", {1: "key", 2: ("value", {1: "type", 2: "bytes"})}), 22: ("custom_tags", STRINGS), 23: ("duration", TIME), 24: "attempts", 25: "termination",
          26: "stream_id", 27: "intermediate", 28: "downstream_failure", 29: "downstream_wire_sent", 30: "downstream_wire_received", 31: "upstream_wire_sent", 32: "upstream_wire_received", 33: "type"}
# Header bytes on the wire are compared, as far as they can be, by the family access_log.
REQUEST = {1: "method", 2: "scheme", 3: "authority", 4: ("port", {1: "value"}), 5: "path", 6: "user_agent", 7: "referer", 8: "forwarded_for", 9: "request_id", 10: "original_path", 11: "headers_bytes", 12: "body_bytes", 13: ("headers", STRINGS),
           14: None, 15: None}
RESPONSE = {1: ("code", {1: "value"}), 2: "headers_bytes", 3: "body_bytes", 4: ("headers", STRINGS), 5: ("trailers", STRINGS), 6: "details", 7: None, 8: None}
HTTP = {1: ("common", COMMON), 2: "version", 3: ("request", REQUEST), 4: ("response", RESPONSE)}
TCP = {1: ("common", COMMON), 2: ("connection", {1: "received", 2: "sent"})}
# What the proxy says of itself is not compared.
NODE = {6: None, 8: None, 9: None, 1: "id", 2: "cluster", 4: ("locality", {1: "region", 2: "zone", 3: "sub_zone"})}
LOGS = {1: ("identifier", {1: ("node", NODE), 2: "log_name"}), 2: ("http", {1: ("entry", HTTP)}), 3: ("tcp", {1: ("entry", TCP)})}
ANY = {1: "string", 2: "bool", 3: "int", 4: "double", 7: "bytes"}
PAIR = {1: "key", 2: ("value", ANY)}
ANY[5], ANY[6] = ("list", {1: ("item", ANY)}), ("map", {1: ("pair", PAIR)})
RECORD = {1: "<time>", 2: "severity", 3: "severity_text", 5: ("body", ANY), 6: ("attribute", PAIR), 7: "dropped", 8: "flags", 9: "trace", 10: "span", 11: "<observed>"}
EXPORT = {1: ("resource_logs", {1: ("resource", {1: ("attribute", PAIR)}), 2: ("scope_logs", {1: ("scope", {1: "name", 2: "version"}), 2: ("record", RECORD)}), 3: "schema"})}


def read(data, schema, names):
    """What a message says: {field: [values]}; what the schema does not know by its number. Sent zeros are as if they were not there."""
    found = {}
    for key, value in fields(data):
        entry = schema.get(key, f"field {key}")
        if entry is None:
            continue
        name, inner = (entry, None) if isinstance(entry, str) else entry
        if name.startswith("<"):
            value = "there"
        elif inner is not None:
            value = read(value, inner, names)
        elif name in ("headers_bytes", "downstream_wire_received", "downstream_wire_sent", "upstream_wire_sent", "upstream_wire_received"):
            value = "bytes" if value else "none"
        elif name == "port":
            value = names.ports.get(str(value), "<port>")
        elif isinstance(value, bytes):
            value = names.text(value.decode("latin-1"))
        found.setdefault(name, []).append(value)
    if "key" in found and set(found) <= {"key", "value"}:
        return [found["key"][0], *found.get("value", [""])]
    return {name: sorted(values, key=str) for name, values in sorted(found.items())}


def entries(context, collector, schema, path):
    """The messages of this side's proxy, whose directory is in the first message of a stream."""
    mine, streams = [], set()
    for stream, head, body in collector.taken():
        if context.proxy.directory.encode() in body:
            streams.add(stream)
        if stream in streams and dict(head).get(":path") == path:
            # The proxy's own address is that of the machine.
            shown = context.names.headers([(name, "<address>" if name == "x-forwarded-for" else value) for name, value in head if name != ":authority"])
            mine.append((sorted(shown), read(body, schema, context.names)))
    return mine


def waiting(context, collector, schema, path, count):
    """Once the collector has `count` entries of this side: what is in the messages that came since, without how they were batched."""
    def found():
        messages = entries(context, collector, schema, path)
        logs = []
        for _, message in messages:
            for kind in ("http", "tcp"):
                for batch in message.get(kind, []):
                    logs += [(kind, entry) for entry in batch.get("entry", [])]
            for resource in message.get("resource_logs", []):
                for scope in resource.get("scope_logs", []):
                    logs += [(str(resource.get("resource")), record) for record in scope.get("record", [])]
        return messages, logs

    def look():
        deadline = time.monotonic() + 15
        while len((state := found())[1]) < count and time.monotonic() < deadline:
            time.sleep(0.02)
        messages, logs = state
        return {"head": messages[0][0] if messages else None, "identifier": messages[0][1].get("identifier") if messages else None, "entries": logs[count - 1:count]}
    return look


def als(kind, collector, name, **fields):
    common = {"log_name": f"{name} @dir@", "transport_api_version": "V3", "buffer_flush_interval": "0.05s", "buffer_size_bytes": 1, "grpc_service": {"envoy_grpc": {"cluster_name": "als"}}, **fields.pop("common", {})}
    return extension(f"envoy.access_loggers.{kind}_grpc", f"access_loggers.grpc.v3.{kind.capitalize()}GrpcAccessLogConfig", common_config=common, **fields)


def service(collector):
    return {"name": "als", "type": "STATIC", "connect_timeout": "5s", "typed_extension_protocol_options": http2_options(), "load_assignment": {
        "cluster_name": "als", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": collector.port}}}}]}]}}


ALS = "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs"
OTLP = "/opentelemetry.proto.collector.logs.v1.LogsService/Export"
QUIET = ("status*", "headers*", "body*", "rest*", "fate*", "upstream", "trailers*")


def asked(setup, collector, schema, path, name, data, methods=("GET",), end=None, **fields):
    """One exchange and the entry that follows it."""
    count = len(setup.cases) + 1

    def run(context):
        connection = context.connect()
        connection.methods += list(methods)
        connection.send(data)
        connection.responses(connection.methods, 15)
        if end:
            if end == "peer":
                connection.until(lambda _: False, 15)
            connection.close()
            connection.fate = "closed by the client"
        return waiting(context, collector, schema, path, count)
    setup.script(name, run, ignore=QUIET, **fields)


def tags():
    return [{"tag": "literal", "literal": {"value": "v"}}, {"tag": "header", "request_header": {"name": "x-a", "default_value": "none"}}, {"tag": "missing", "request_header": {"name": "x-none", "default_value": "none"}}, {"tag": "gone", "request_header": {"name": "x-none"}},
            {"tag": "environment", "environment": {"name": "NUNCIO_NO_SUCH", "default_value": "unset"}}, {"tag": "format", "value": "%REQ(:METHOD)% %RESPONSE_CODE%"},
            {"tag": "route", "metadata": {"kind": {"route": {}}, "metadata_key": {"key": "meta", "path": [{"key": "r"}]}, "default_value": "none"}}]


def requests_over(collector, setup, schema, path):
    def ask(*arguments, **fields):
        asked(setup, collector, schema, path, *arguments, **fields)
    ask("get", request("/p?q=1", [("x-a", "abc"), ("user-agent", "me"), ("referer", "http://r/"), ("x-forwarded-for", "1.2.3.4"), ("x-two", "1"), ("x-two", "2")]), upstream=[reply(200, [("x-b", "resp"), ("content-type", "text/plain")], "body")])
    ask("post", request("/post", method="POST", body=b"hello"), ("POST",))
    ask("patch", request("/patch", method="PATCH", body=b"hello"), ("PATCH",))
    ask("odd method", request("/odd", method="PROPFIND"), ("PROPFIND",))
    ask("trailers", request("/t"), upstream=[[b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx-t: 1\r\n\r\n"]])
    ask("local", request("/local"))
    ask("missing", request("/p", host="none.test"))
    ask("rewritten", request("/rewrite/x"))
    ask("closed", request("/p"), upstream=[["close"]])
    ask("refused", request("/refused"))
    ask("late", request("/late"), upstream=[["hang"]])
    ask("retried", request("/retry"), upstream=[reply(503)])
    ask("http/1.0", b"GET /ten HTTP/1.0\r\nHost: host\r\n\r\n")


def base(collector, name, logs, **fields):
    vhosts = [{"name": "v", "domains": ["host"], "routes": [
        route("/local", name="local", direct_response=say("local", 418)), route("/rewrite", to(prefix_rewrite="/new"), name="rewritten"), route("/refused", to("x")), route("/late", to(timeout="0.3s")),
        route("/retry", to(retry_policy={"retry_on": "5xx", "num_retries": 1, "retry_back_off": {"base_interval": "0.001s"}})), route("/", to(), name="the-route", metadata={"filter_metadata": {"meta": {"r": "route value"}}})]}]
    return Setup(name, vhosts=vhosts, log="", clusters=[cluster("a"), cluster("x"), service(collector)], upstreams={"x": "refused"}, **{**fields, "hcm": {"access_log": logs, "http_protocol_options": {"accept_http_10": True, "enable_trailers": True}, **fields.get("hcm", {})}})


def grpc_services():
    collector = Collector()
    plain = base(collector, "als", [als("http", collector, "plain")])
    requests_over(collector, plain, LOGS, ALS)
    more = Collector()
    full = base(more, "als full", [als("http", more, "full", common={"custom_tags": tags(), "filter_state_objects_to_log": ["some.state", "none"]}, additional_request_headers_to_log=["x-a", "X-Two", "x-none", ":path"],
                                     additional_response_headers_to_log=["x-b", ":status", "content-type", "x-none"], additional_response_trailers_to_log=["x-t", "x-none"])],
                filters=[extension("s", "filters.http.set_filter_state.v3.Config", on_request_headers=[{"object_key": "some.state", "factory_key": "envoy.string", "format_string": {"text_format_source": {"inline_string": "%REQ(:PATH)%"}}}]),
                         extension("m", "filters.http.set_metadata.v3.Config", metadata=[{"metadata_namespace": "ns", "value": {"k": "v", "n": 1, "b": True, "o": {"i": "x"}}}])])
    requests_over(more, full, LOGS, ALS)
    options = Collector()
    started = base(options, "als options", [als("http", options, "options")], hcm={"access_log_options": {"flush_access_log_on_new_request": True}})
    # Two entries a request: the last one of the second is the fourth.
    for number, name in enumerate(("first", "second")):
        def run(context, count=2 * number + 2):
            connection = context.connect()
            connection.methods += ["GET"]
            connection.send(request("/p"))
            connection.responses(["GET"], 15)
            both = [waiting(context, options, LOGS, ALS, index) for index in (count - 1, count)]
            return lambda: [look() for look in both]
        started.script(name, run, ignore=QUIET)
    return [plain, full, started, secured(), *streams()]


def secured():
    tls.prepare()
    collector = Collector()
    context = {"tls_certificates": [{"certificate_chain": {"filename": tls.path("server.pem")}, "private_key": {"filename": tls.path("server.key")}}], "validation_context": {"trusted_ca": {"filename": tls.path("ca.pem")}}}
    setup = base(collector, "als tls", [als("http", collector, "tls")], listener={"listener_filters": [extension("t", "filters.listener.tls_inspector.v3.TlsInspector")]}, chain={"transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": typed("transport_sockets.tls.v3.DownstreamTlsContext", common_tls_context=context)}})
    for name, options in {"none": {}, "client": {"cert": "client"}, "1.2": {"cert": "client", "maximum": ssl.TLSVersion.TLSv1_2, "ciphers": "ECDHE-ECDSA-AES128-GCM-SHA256"}}.items():
        asked(setup, collector, LOGS, ALS, name, request("/p"), tls={"sni": "host.test", **options})
    return setup


def streams():
    made = []
    for name, arguments in {"ends": {}, "idle": {"idle_timeout": "3s"}, "refused": {"cluster": "x"}, "unknown": {"cluster": "nowhere"}}.items():
        collector = Collector()
        fields_ = {"stat_prefix": "t", "cluster": "a", **arguments, "access_log": [als("tcp", collector, name, common={"custom_tags": tags()[:1]})]}
        setup = Setup("als tcp " + name, log="", manager=False, network_filters=[extension("tcp", "filters.network.tcp_proxy.v3.TcpProxy", **fields_)], clusters=[cluster("a"), cluster("x"), service(collector)], upstreams={"x": "refused"})
        asked(setup, collector, LOGS, ALS, "stream", request("/"), ("GET",) if name in ("ends", "idle") else (), end="close" if name == "ends" else "peer")
        made.append(setup)
    return made


def telemetry():
    collector = Collector()
    body = {"string_value": "%REQ(:METHOD)% %REQ(X-NONE)% %RESPONSE_CODE% @dir@"}
    attributes = {"values": [{"key": "text", "value": {"string_value": "%PROTOCOL%"}}, {"key": "list", "value": {"array_value": {"values": [{"string_value": "%RESPONSE_CODE%"}, {"string_value": "fixed"}]}}},
                             {"key": "map", "value": {"kvlist_value": {"values": [{"key": "path", "value": {"string_value": "%REQ(:PATH)%"}}]}}}]}
    shared = {"log_name": "otel @dir@", "buffer_flush_interval": "0.05s", "buffer_size_bytes": 1, "body": body, "attributes": attributes}
    full = base(collector, "otel", [extension("envoy.access_loggers.open_telemetry", "access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig", grpc_service={"envoy_grpc": {"cluster_name": "als"}}, resource_attributes={"values": [{"key": "extra", "value": {"string_value": "x"}}]},
                                              custom_tags=tags()[:6], **shared)])
    requests_over(collector, full, EXPORT, OTLP)
    bare_ = Collector()
    bare = base(bare_, "otel bare", [extension("envoy.access_loggers.open_telemetry", "access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig", common_config={"log_name": "bare", "transport_api_version": "V3", "grpc_service": {"envoy_grpc": {"cluster_name": "als"}},
                                              "buffer_flush_interval": "0.05s"}, disable_builtin_labels=True, body=body, stat_prefix="p")])
    asked(bare, bare_, EXPORT, OTLP, "get", request("/p"))
    return [full, bare, over_http(shared)]


def over_http(shared):
    """The same over HTTP, to an upstream of the harness."""
    logger = extension("envoy.access_loggers.open_telemetry", "access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig", http_service={"http_uri": {"uri": "http://collector.test/v1/logs", "cluster": "otel", "timeout": "5s"},
                       "request_headers_to_add": [{"header": {"key": "x-token", "value": "secret"}}]}, **shared)
    setup = Setup("otel http", log="", clusters=[cluster("a"), cluster("otel")], hcm={"access_log": [logger]})

    def run(context):
        connection = context.connect()
        connection.methods += ["GET"]
        connection.send(request("/p"))
        connection.responses(["GET"], 15)

        def look():
            deadline = time.monotonic() + 15
            while not (seen := [record for record in context.answers.taken() if record["upstream"] == "otel" and not record.get("open")]) and time.monotonic() < deadline:
                time.sleep(0.02)
            return [[record["line"], sorted(header for header in context.names.headers(record["headers"]) if not header.lower().startswith(("content-length", "transfer-encoding", "user-agent", "x-envoy-expected", "x-forwarded-for"))), read(record["body"], EXPORT, context.names)] for record in seen]
        return look
    setup.script("get", run, ignore=QUIET)
    return setup


def setups():
    return [*grpc_services(), *telemetry()]
