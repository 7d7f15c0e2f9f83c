"""Runs the cases of one setup on one side, and turns what happened into plain values that can be compared."""
import os
import re
import tempfile
import time

from . import tls, wire2
from .client import Connection, parse_responses
from .config import bootstrap
from .proxy import Proxy
from .upstream import Script, Upstream

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
DATE = re.compile(r"^\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT$")
TIMES = ("x-envoy-upstream-service-time", "x-envoy-expected-rq-timeout-ms")


class Names:
    """Names for what differs from run to run: ports, directories, ids and times."""

    def __init__(self, ports, directory):
        self.ports, self.directory = {str(port): name for name, port in ports.items()}, directory
        self.pattern = re.compile("(?<!\\d)(" + "|".join(self.ports) + ")(?!\\d)") if self.ports else None

    def text(self, text):
        if self.pattern:
            text = self.pattern.sub(lambda match: f"<{self.ports[match.group(1)]}>", text)
        return UUID.sub("<uuid>", text.replace(self.directory, "<dir>"))

    def header(self, name, value):
        lower = name.lower()
        if lower == "date" and DATE.match(value):
            value = "<date>"
        elif lower in TIMES and value.isdigit():
            # A retry is told what is left; a few milliseconds are nobody's behaviour.
            step = 1000 if int(value) > 1000 else 100
            value = "<ms>" if lower == TIMES[0] else str(-(-int(value) // step) * step)
        return f"{name}: {self.text(value)}"

    def headers(self, pairs):
        return [self.header(name, value) for name, value in pairs]

    def body(self, data):
        return self.text(data.decode("latin-1"))

    def raw(self, data):
        """Bytes that are no whole response: lines that look like fields are told as fields."""
        lines = (re.fullmatch("([A-Za-z-]+): (.*)", line) for line in data.decode("latin-1").split("\r\n"))
        return "\r\n".join(self.header(*match.groups()) if match else self.text(line)
                           for match, line in zip(lines, data.decode("latin-1").split("\r\n")))


class Context:
    """What a scripted case may use: `connect`, `exchange`, `admin`, and `upstreams` by name."""

    def __init__(self, side, proxy, script, upstreams, names):
        self.side, self.proxy, self.answers, self.upstreams, self.names = side, proxy, script, upstreams, names
        self.connections, self.case = [], None

    @property
    def port(self):
        return self.proxy.ports["main"]

    def connect(self, source=None, tls_options=None, listener="main"):
        options = tls_options or (self.case.tls if self.case else None)
        connection = Connection(self.proxy.ports[listener], source or self.case.source, tls.client(options) if options else None)
        connection.methods = []
        self.connections.append(connection)
        return connection

    def exchange(self, data, methods=("GET",), wait=5.0, connection=None, **options):
        """Sends bytes and reads as many responses as there are methods: (responses, connection)."""
        connection = connection or self.connect(**options)
        connection.methods += methods
        connection.send(data)
        connection.responses(connection.methods, wait)
        finals, _, _ = parse_responses(connection.received, connection.methods, connection.fate != "kept")
        return finals[len(connection.methods) - len(methods):], connection

    def admin(self, path, method="GET"):
        return self.proxy.admin(path, method)

    def shown(self, responses):
        """Responses as values to compare."""
        return [[response.line, self.names.headers(response.headers), self.names.body(response.body)] for response in responses]


def run_http2(context, case):
    """One HTTP/2 request, or raw frames (`frames`) that are sent after the settings."""
    connection = context.connect()
    reader = wire2.Reader()
    plan = case.h2
    connection.reader = reader
    out = wire2.PREFACE + (wire2.settings(**plan.get("settings", {})))
    if "frames" in plan:
        parts = [out + plan["frames"][0], *plan["frames"][1:]] if plan["frames"] else [out]
    else:
        body, trailers = plan["body"], plan["trailers"]
        out += wire2.headers(1, plan["headers"], end=body is None and trailers is None)
        if body is not None:
            out += wire2.data(1, body, end=trailers is None)
        if trailers is not None:
            out += wire2.headers(1, trailers, end=True)
        parts = [out]
    wanted = plan.get("streams", [1])
    fed = 0

    def settled():
        return reader.goaway or all(number in reader.streams and (reader.streams[number]["ended"] or reader.streams[number]["reset"] is not None)
                                    for number in wanted)
    for part in parts:
        if isinstance(part, float):
            time.sleep(part)
            continue
        connection.send(part)
    deadline = time.monotonic() + case.wait
    while connection.fate == "kept" and not settled() and time.monotonic() < deadline:
        connection.poll(0.05)
        if len(connection.received) > fed:
            reply = wire2.answers(reader.feed(connection.received[fed:]))
            fed = len(connection.received)
            if reply:
                connection.send(reply)
    connection.fed = fed


def show_http2(connection, names):
    reader = connection.reader
    reader.feed(connection.received[connection.fed:])
    streams = {}
    for number, stream in sorted(reader.streams.items()):
        if not stream["heads"] and stream["reset"] is None and not stream["body"]:
            continue
        streams[str(number)] = {"heads": [names.headers(head) for head in stream["heads"]], "body": names.body(stream["body"]),
                                "reset": stream["reset"], "ended": stream["ended"]}
    return {"streams": streams, "goaway": reader.goaway and list(reader.goaway)}


def show_http1(connection, names):
    finals, informational, rest = parse_responses(connection.received, connection.methods, connection.fate != "kept")
    shown = {
        "status": [response.line for response in finals],
        "headers": [names.headers(response.headers) for response in finals],
        "body": [names.body(response.body) for response in finals],
    }
    if any(response.trailers for response in finals):
        shown["trailers"] = [names.headers(response.trailers) for response in finals]
    if informational:
        shown["informational"] = [[response.line, names.headers(response.headers)] for response in informational]
    if rest:
        shown["rest"] = names.raw(rest)
    return shown


def show_upstream(seen, names, case):
    shown = [[record["upstream"], names.text(record["line"]), names.headers(in_order(record["headers"])), names.body(record["body"]),
             names.headers(record["trailers"])] for record in seen]
    # Streams of one connection reach the upstream over connections of their own, in any order.
    return sorted(shown, key=str) if case.h2 and len(case.h2.get("streams", [])) > 1 else shown


def in_order(pairs):
    """HTTP/2 gives the order of pseudo headers no meaning."""
    return sorted(pair for pair in pairs if pair[0].startswith(":")) + [pair for pair in pairs if not pair[0].startswith(":")]


def observe(setup, side):
    """All cases of `setup` on one side: ({case name: {aspect: value}}, {counter: value})."""
    directory = tempfile.mkdtemp(prefix=f"nuncio-diff-{side}-")
    script = Script()
    wanted = set(re.findall(r"@port:([\w.-]+)@", repr(bootstrap(setup)) + repr(setup.files)))
    upstreams = {name: Upstream(name, setup.upstreams.get(name, "http"), script, tls.server_context()
                                if "tls" in setup.upstreams.get(name, "http") else None) for name in sorted(wanted)}
    ports = {name: upstream.port for name, upstream in upstreams.items()}
    for name, text in setup.files.items():
        with open(os.path.join(directory, name), "w") as file:
            file.write(text.replace("@dir@", directory))
    proxy = Proxy(side, bootstrap(setup), directory, ports, setup.args)
    try:
        proxy.start()
        names = Names({**ports, **{f"listener {name}": port for name, port in proxy.ports.items()}}, directory)
        context = Context(side, proxy, script, upstreams, names)
        seen = {}
        for case in setup.cases:
            seen[case.name] = run_case(context, script, case, names)
        linger([connection for _, connections in seen.values() for connection in connections], setup.linger)
        counters = read_stats(proxy, setup.stats)
        results = {}
        for case in setup.cases:
            values, connections = seen[case.name]
            show_connections(values, connections, names)
            for connection in connections:
                connection.close()
            results[case.name] = values
        if setup.log:
            attach_log(proxy, names, {name: connections for name, (_, connections) in seen.items()}, results)
        return results, counters
    finally:
        proxy.stop()
        for upstream in upstreams.values():
            upstream.stop()


def run_case(context, script, case, names):
    script.load(case.upstream)
    context.connections, context.case = [], case
    values = {}
    if case.run:
        result = case.run(context)
        if result is not None:
            values["result"] = result
    elif case.h2 is not None:
        run_http2(context, case)
    else:
        connection = context.connect()
        connection.methods += case.methods
        for step in case.steps:
            if isinstance(step, float):
                time.sleep(step)
            else:
                connection.send(step)
        connection.responses(case.methods, case.wait)
    if case.settle:
        time.sleep(case.settle)
    if case.close:
        for connection in context.connections:
            connection.poll(0.01)
            connection.close()
            connection.fate = "closed by the client"
    script.settle()
    values["upstream"] = show_upstream(script.taken(), names, case)
    return values, context.connections


def linger(connections, seconds):
    """Watches connections for `seconds` after the last thing that happened on any of them."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for connection in connections:
            if connection.fate == "kept" and connection.poll(0.0005):
                deadline = time.monotonic() + seconds
        time.sleep(0.02)


def show_connections(values, connections, names):
    for number, connection in enumerate(connections):
        suffix = "" if number == 0 else f" {number + 1}"
        if connection.tls_error:
            values["tls" + suffix] = connection.tls_error
        shown = show_http2(connection, names) if hasattr(connection, "reader") else show_http1(connection, names)
        for aspect, value in shown.items():
            values[aspect + suffix] = value
        values["fate" + suffix] = connection.fate


def attach_log(proxy, names, connections, results):
    """Gives each case the lines of its connections, once the log has been quiet for a while."""
    text, quiet = None, 0
    deadline = time.monotonic() + 3
    while quiet < 6 and time.monotonic() < deadline:
        time.sleep(0.03)
        now = proxy.log()
        quiet = quiet + 1 if now == text else 0
        text = now
    owner = {connection.name: case for case, owned in connections.items() for connection in owned}
    for result in results.values():
        result["log"] = []
    for line in text.split("\n@@") if text else []:
        address, _, rest = line.removeprefix("@@").rstrip("\n").partition("@@ ")
        case = owner.get(address)
        if case:
            results[case]["log"].append(names.text(rest))
    for result in results.values():
        result["log"].sort()


def read_stats(proxy, patterns):
    if not patterns:
        return {}
    counters = {}
    for line in proxy.admin("/stats?usedonly")[1].splitlines():
        name, _, value = line.partition(": ")
        if value.isdigit() and any(re.search(pattern, name) for pattern in patterns):
            counters[name] = int(value)
    return counters
