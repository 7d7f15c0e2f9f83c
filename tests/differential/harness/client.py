"""The client side: raw sockets, and a reader of HTTP/1 responses that keeps what a browser would hide (order, case, framing)."""
import errno
import random
import socket
import time


class Response:
    """One response as it came: first line, header lines in order, decoded body, trailers."""

    def __init__(self, line, headers):
        self.line, self.headers, self.body, self.trailers, self.complete = line, headers, b"", [], False

    def status(self):
        parts = self.line.split(" ")
        return int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else 0

    def get(self, name):
        return [value for key, value in self.headers if key.lower() == name]


def parse_head(block):
    lines = block.decode("latin-1").split("\r\n")
    headers = []
    for line in lines[1:]:
        name, _, value = line.partition(":")
        headers.append((name, value[1:] if value.startswith(" ") else value))
    return lines[0], headers


def parse_chunks(data):
    """Decodes a chunked body: (body, trailers, rest) or None if it has not ended."""
    body, at = b"", 0
    while True:
        end = data.find(b"\r\n", at)
        if end < 0:
            return None
        try:
            size = int(data[at:end].split(b";")[0], 16)
        except ValueError:
            return body, [("malformed-chunk", repr(data[at:end]))], b""
        at = end + 2
        if size == 0:
            stop = data.find(b"\r\n\r\n", end)
            if data[at:at + 2] == b"\r\n":
                return body, [], data[at + 2:]
            if stop < 0:
                return None
            _, trailers = parse_head(b"\r\n" + data[at:stop])
            return body, trailers, data[stop + 4:]
        if len(data) < at + size + 2:
            return None
        body += data[at:at + size]
        at += size + 2


def parse_responses(data, methods, ended):
    """All responses in `data`: (finals, informational, rest). A response without framing ends with the connection."""
    finals, informational = [], []
    while data:
        stop = data.find(b"\r\n\r\n")
        if stop < 0 or not data.startswith(b"HTTP/"):
            break
        response = Response(*parse_head(data[:stop]))
        rest = data[stop + 4:]
        status = response.status()
        method = methods[len(finals)] if len(finals) < len(methods) else "GET"
        if 100 <= status < 200 and status != 101:
            informational.append(response)
            data = rest
            continue
        if status == 101 or (method == "CONNECT" and 200 <= status < 300):
            response.body, response.complete, data = rest, True, b""
        elif method == "HEAD" or status in (204, 304):
            response.complete, data = True, rest
        elif "chunked" in ",".join(response.get("transfer-encoding")):
            decoded = parse_chunks(rest)
            if decoded is None:
                if ended:
                    response.body, data = b"(cut) " + rest, b""
                    finals.append(response)
                break
            response.body, response.trailers, data = decoded
            response.complete = True
        elif response.get("content-length"):
            length = int(response.get("content-length")[0] or 0)
            if len(rest) < length:
                if ended:
                    response.body, data = b"(cut) " + rest, b""
                    finals.append(response)
                break
            response.body, data, response.complete = rest[:length], rest[length:], True
        else:
            if not ended:
                break
            response.body, data, response.complete = rest, b"", True
        finals.append(response)
    return finals, informational, data


def bind(sock, source):
    """Binds to a port that no other connection of this process had: lines of the access log are told apart by it. Ports that the system
    picks are free again as soon as the peer has reset a connection."""
    while True:
        port = random.randrange(10240, 32768)
        if port in USED:
            continue
        try:
            sock.bind((source, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            continue
        USED.add(port)
        return


# Ports of this process's connections; a worker ends long before there are none left.
USED = set()


class Connection:
    """A client connection. `received` keeps every byte; `fate` becomes closed or reset when the peer ends it."""

    def __init__(self, port, source="127.0.0.1", tls=None):
        # A source address of its own keeps trusted and untrusted peers apart.
        self.socket = socket.socket()
        bind(self.socket, source)
        self.socket.settimeout(20)
        self.socket.connect(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        host, number = self.socket.getsockname()[:2]
        self.name = f"{host}:{number}"
        self.received, self.fate, self.tls_error = b"", "kept", None
        if tls:
            context, server_name = tls
            try:
                self.socket = context.wrap_socket(self.socket, server_hostname=server_name)
            except OSError as error:
                self.fate, self.tls_error = "closed", type(error).__name__

    def send(self, data):
        try:
            self.socket.settimeout(20)
            self.socket.sendall(data)
        except OSError:
            pass

    def poll(self, timeout):
        """Reads once, for at most `timeout` seconds; False if nothing came."""
        if self.fate != "kept":
            return False
        self.socket.settimeout(max(timeout, 0.0005))
        try:
            data = self.socket.recv(65536)
        except (TimeoutError, BlockingIOError):
            return False
        except OSError as error:
            self.fate = "reset" if isinstance(error, ConnectionResetError) else "closed"
            return False
        if not data:
            self.fate = "closed"
            return False
        self.received += data
        return True

    def until(self, done, wait):
        """Reads until `done(received)` or the end of the connection or `wait` seconds."""
        deadline = time.monotonic() + wait
        while self.fate == "kept" and not done(self.received):
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self.poll(min(left, 0.2))
        return True

    def responses(self, methods, wait):
        self.until(lambda data: len(parse_responses(data, methods, False)[0]) >= len(methods), wait)

    def close(self):
        try:
            self.socket.close()
        except OSError:
            pass
