"""Runs the cases of one setup on one side, and turns what happened into plain values that can be compared. Driven by `pair.py`."""
import itertools
import os
import re
import tempfile
import time

from . import tls, wire2
from .client import Connection, parse_responses
from .config import bootstrap
from .proxy import MEMORY, Proxy
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
    connection.fed = len(connection.received)
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


class Side:
    """One proxy of a setup with its upstreams. `pair.Pair` drives two of them side by side; what a method gives is read again and
    again until both agree, so nothing hangs on how soon a proxy writes a log or counts."""

    def __init__(self, setup, side):
        self.setup, self.script = setup, Script()
        self.directory = tempfile.mkdtemp(prefix=f"nuncio-diff-{side}-", dir=MEMORY)
        config = bootstrap(setup)
        kinds = {name: setup.upstreams.get(name, "http") for name in sorted(set(re.findall(r"@port:([\w.-]+)@", repr(config) + repr(setup.files))))}
        self.upstreams = {name: Upstream(name, kind, self.script, tls.server_context() if "tls" in kind else None) for name, kind in kinds.items()}
        self.ports = {name: upstream.port for name, upstream in self.upstreams.items()}
        for name, text in setup.files.items():
            with open(os.path.join(self.directory, name), "w") as file:
                file.write(text.replace("@dir@", self.directory))
        self.proxy = Proxy(side, config, self.directory, self.ports, setup.args)
        self.connections, self.values, self.context, self.names = {}, {}, None, None

    def start(self):
        self.proxy.start()
        self.names = Names({**self.ports, **{f"listener {name}": port for name, port in self.proxy.ports.items()}}, self.directory)
        self.context = Context(self.proxy.side, self.proxy, self.script, self.upstreams, self.names)

    def run(self, case):
        """The client's part of a case."""
        context = self.context
        self.script.load(case.upstream)
        context.connections, context.case = [], case
        self.connections[case.name], self.values[case.name] = context.connections, {}
        if case.run:
            result = case.run(context)
            if result is not None:
                self.values[case.name]["result"] = result
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

    def close(self, case):
        """The client closes the connections of a case."""
        for connection in self.connections[case.name]:
            connection.poll(0.01)
            connection.close()
            connection.fate = "closed by the client"

    def told(self, case):
        """What a script returned, looked up now if it is a function."""
        return {aspect: value() if callable(value) else value for aspect, value in self.values[case.name].items()}

    def client(self, case):
        """What the clients of a case have seen up to now."""
        for connection in self.connections[case.name]:
            connection.poll(0.0005)
        values = self.told(case)
        show_connections(values, self.connections[case.name], self.names, self.setup.resets)
        return values

    def upstream(self, case):
        """What the upstreams have seen of the case that ran last."""
        self.script.settle()
        return {"upstream": show_upstream(self.script.taken(), self.names, case)}

    def keep(self, case):
        """The case is over: its upstream's view is final, and so is what a script looked up."""
        self.values[case.name] = self.told(case)
        self.values[case.name].update(self.upstream(case))

    def linger(self):
        """Watches connections until nothing happened on any of them for the setup's time."""
        deadline = time.monotonic() + self.setup.linger
        while time.monotonic() < deadline:
            for connection in itertools.chain(*self.connections.values()):
                if connection.fate == "kept" and connection.poll(0.0005):
                    deadline = time.monotonic() + self.setup.linger
            time.sleep(0.02)

    def seen(self):
        """What clients and upstreams of all cases have seen up to now: ({case name: {aspect: value}}, {counter: value})."""
        return {case.name: self.client(case) for case in self.setup.cases}, read_stats(self.proxy, self.setup.stats)

    def leave(self):
        """All clients go; then the log has all there is to tell, once it is quiet."""
        for connection in itertools.chain(*self.connections.values()):
            connection.close()
        text, quiet = None, 0
        while self.setup.log and quiet < 6:
            time.sleep(0.03)
            now = self.proxy.log()
            quiet, text = (quiet + 1 if now == text else 0), now

    def logs(self):
        """{case name: {"log": lines of its connections}}."""
        return attach_log(self.proxy.log(), self.names, self.connections) if self.setup.log else {}

    def stop(self):
        self.proxy.stop()
        for upstream in self.upstreams.values():
            upstream.stop()


def show_connections(values, connections, names, resets):
    for number, connection in enumerate(connections):
        suffix = "" if number == 0 else f" {number + 1}"
        if connection.tls_error:
            values["tls" + suffix] = connection.tls_error
        shown = show_http2(connection, names) if hasattr(connection, "reader") else show_http1(connection, names)
        for aspect, value in shown.items():
            values[aspect + suffix] = value
        # Whether a close is seen as a reset hangs on whether the client's last bytes had come, which is nobody's behaviour.
        values["fate" + suffix] = "closed" if connection.fate == "reset" and not resets else connection.fate


def attach_log(text, names, connections):
    """Gives each case the lines of its connections."""
    owner = {connection.name: case for case, owned in connections.items() for connection in owned}
    lines = {case: [] for case in connections}
    for line in text.split("\n@@") if text else []:
        address, _, rest = line.removeprefix("@@").rstrip("\n").partition("@@ ")
        if address in owner:
            lines[owner[address]].append(names.text(rest))
    return {case: {"log": sorted(said)} for case, said in lines.items()}


def read_stats(proxy, patterns):
    if not patterns:
        return {}
    counters = {}
    for line in proxy.admin("/stats?usedonly")[1].splitlines():
        name, _, value = line.partition(": ")
        if value.isdigit() and any(re.search(pattern, name) for pattern in patterns):
            counters[name] = int(value)
    return counters
