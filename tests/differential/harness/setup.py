"""What a case is: a configuration (`Setup`) and the requests that are made under it. Case modules build these; nothing here does I/O."""
from dataclasses import dataclass, field

from .config import LOG, cluster


@dataclass
class Case:
    """One check. `steps` are sent over one connection (bytes, or a float: seconds to wait); `run` replaces them by a function."""
    name: str
    steps: list = field(default_factory=list)
    run: object = None
    methods: list = field(default_factory=lambda: ["GET"])
    upstream: list = field(default_factory=list)
    ignore: tuple = ()
    wait: float = 10.0
    settle: float = 0.0
    close: bool = False
    h2: object = None
    tls: object = None
    source: str = "127.0.0.1"


class Setup:
    """One process of each proxy, and the cases that run on it one after another.

    `routes` or `vhosts` or `route_config`: the route table; `hcm`, `router`, `listener`, `chain`, `bootstrap`: fields laid over the defaults;
    `filters`: HTTP filters before the router; `clusters`: clusters (one named "a" if not given); `upstreams`: kinds of upstreams that are
    not plain HTTP/1 ("refused", "h2", "tls", ..) by name; `stats`: regular expressions of counters and gauges to compare at the end;
    `log`: the access-log format; `linger`: seconds to watch connections after the last case, to learn their fate; `ignore`: aspects that
    are not compared; `resets`: whether a reset is told from a close; `tls`: how clients handshake; `files`: texts by name in the proxy's directory; `args`: more of its command line."""

    def __init__(self, name, *, routes=None, vhosts=None, route_config=None, hcm=None, router=None, filters=(), clusters=None, upstreams=None,
                 listener=None, chain=None, bootstrap=None, network_filters=(), manager=True, stats=(), log=LOG, linger=0.35, ignore=(),
                 host="host", files=None, args=(), tls=None, resets=False):
        self.name, self.routes, self.vhosts, self.route_config = name, routes, vhosts, route_config
        self.hcm, self.router, self.filters = hcm or {}, router or {}, list(filters)
        self.clusters = [cluster("a")] if clusters is None else clusters
        self.upstreams, self.listener, self.chain, self.bootstrap = upstreams or {}, listener or {}, chain or {}, bootstrap or {}
        self.network_filters, self.manager = list(network_filters), manager
        self.stats, self.log, self.linger, self.ignore, self.host = list(stats), log, linger, tuple(ignore), host
        self.files, self.args, self.tls = files or {}, list(args), tls
        self.resets, self.cases = resets, []

    def add(self, name, **fields):
        if any(case.name == name for case in self.cases):
            raise ValueError(f"{self.name}: two cases are named {name!r}")
        fields.setdefault("tls", self.tls)
        self.cases.append(Case(name, **fields))

    def raw(self, name, *steps, **fields):
        """Sends these bytes as they are; `methods` says how many responses end the case, and which are to HEAD or CONNECT."""
        self.add(name, steps=[step.encode("latin-1") if isinstance(step, str) else step for step in steps], **fields)

    def get(self, name, path=None, headers=(), method="GET", body=b"", host=None, version="1.1", **fields):
        """One HTTP/1 request. `path` is the name if not given; headers are pairs, in order, after Host."""
        host = self.host if host is None else host
        self.add(name, steps=[request(path or name, headers, method, body, host, version)], methods=[method], **fields)

    def table(self, rows, **fields):
        """Many requests that differ in few things: rows of (name, {arguments of `get`})."""
        for name, arguments in rows:
            self.get(name, **{**fields, **arguments})

    def http2(self, name, path="/", headers=(), method="GET", body=None, trailers=None, host=None, scheme="http", pseudo=None, **fields):
        """One HTTP/2 request with prior knowledge; `pseudo` replaces the pseudo headers."""
        start = pseudo if pseudo is not None else [(":method", method), (":scheme", scheme), (":authority", host or self.host), (":path", path)]
        self.add(name, h2={"headers": [*start, *headers], "body": body, "trailers": trailers}, **fields)

    def script(self, name, function, **fields):
        """Runs `function(context)`; what it returns is compared, and all that it sends through `context`. If it returns a function,
        that is called until both proxies say the same: for gauges, counters and whatever else is only true after a while."""
        self.add(name, run=function, **fields)


def request(path="/", headers=(), method="GET", body=b"", host="host", version="1.1"):
    """The bytes of one HTTP/1 request; content-length is added for a body unless headers frame it."""
    lines = [f"{method} {path} HTTP/{version}"]
    if host:
        lines.append(f"Host: {host}")
    lines += [f"{name}: {value}" for name, value in headers]
    framed = any(name.lower() in ("content-length", "transfer-encoding") for name, _ in headers)
    if body and not framed:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def reply(status=200, headers=(), body=b"", reason="OK", length=True):
    """The bytes of an upstream's HTTP/1 response."""
    body = body.encode() if isinstance(body, str) else body
    lines = [f"HTTP/1.1 {status} {reason}", *(f"{name}: {value}" for name, value in headers)]
    if length:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body
