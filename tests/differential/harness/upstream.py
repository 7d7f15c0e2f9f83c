"""Upstreams: small servers that record what a proxy sends them and answer by script. Each setup has its own, once per proxy."""
import socket
import struct
import threading
import time

from . import wire2
from .client import parse_chunks, parse_head


class Script:
    """Answers for the next requests, in order of their arrival at any upstream of one side; then the upstream's own answer."""

    def __init__(self):
        self.lock, self.queue, self.seen = threading.Lock(), [], []

    def load(self, answers):
        with self.lock:
            self.queue, self.seen = list(answers), []

    def next(self, record):
        with self.lock:
            self.seen.append(record)
            return self.queue.pop(0) if self.queue else None

    def taken(self):
        with self.lock:
            return list(self.seen)

    def settle(self):
        """Waits until the bodies of all requests that were seen have ended or broken off; a body that stays open is told as it is."""
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline and any(record.get("open") for record in self.taken()):
            time.sleep(0.002)


class Upstream:
    """One listening upstream. `kind`: "http" (HTTP/1), "h2" (HTTP/2 with prior knowledge), "tls" (HTTP/1 in TLS), "h2tls", "refused", "echo"."""

    def __init__(self, name, kind, script, tls=None):
        self.name, self.kind, self.script, self.tls = name, kind, script, tls
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.open, self.closed = [], False
        if kind != "refused":
            self.socket.listen(128)
            threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while not self.closed:
            try:
                peer, _ = self.socket.accept()
            except OSError:
                return
            self.open.append(peer)
            threading.Thread(target=self.serve, args=(peer,), daemon=True).start()

    def stop(self):
        self.closed = True
        for peer in [self.socket, *self.open]:
            try:
                peer.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            peer.close()

    def serve(self, peer):
        try:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.kind in ("tls", "h2tls"):
                peer = self.tls.wrap_socket(peer, server_side=True)
                self.open.append(peer)
            if self.kind in ("h2", "h2tls"):
                wire2.serve(peer, self.name, self)
            elif self.kind == "echo":
                while data := peer.recv(65536):
                    peer.sendall(data)
            else:
                self.http1(peer)
        except (OSError, ValueError, IndexError):
            pass
        finally:
            peer.close()

    def next(self, record):
        """The answer to a request, by the script of the moment: a connection may live longer than a script."""
        return self.script.next(record)

    def http1(self, peer):
        data = b""
        while True:
            while (stop := data.find(b"\r\n\r\n")) < 0:
                more = peer.recv(65536)
                if not more:
                    return
                data += more
            line, headers = parse_head(data[:stop])
            data = data[stop + 4:]
            record = {"upstream": self.name, "line": line, "headers": headers, "body": b"", "trailers": [], "open": True}
            answer = self.next(record)
            if answer is None:
                answer = default(self.name, line)
            actions = answer if isinstance(answer, list) else [answer]
            try:
                if actions[0] != "early":
                    data = self.body(peer, headers, data, record)
                    if data is None:
                        return
                else:
                    actions = actions[1:]
            finally:
                record["open"] = False
            if not perform(peer, actions, data):
                return

    def body(self, peer, headers, data, record):
        """Reads the request's body into the record; what is left after it."""
        named = {name.lower(): value for name, value in headers}
        if "chunked" in named.get("transfer-encoding", ""):
            while (decoded := parse_chunks(data)) is None:
                more = peer.recv(65536)
                if not more:
                    record["body"] = b"(cut) " + data
                    return None
                data += more
            record["body"], record["trailers"], data = decoded
        elif "content-length" in named:
            length = int(named["content-length"])
            while len(data) < length:
                more = peer.recv(65536)
                if not more:
                    record["body"] = b"(cut) " + data
                    return None
                data += more
            record["body"], data = data[:length], data[length:]
        return data


def perform(peer, actions, data):
    """Bytes are sent, numbers waited; "close", "reset", "hang" and "echo" end the connection. True if it can serve another request."""
    for action in actions:
        if isinstance(action, bytes):
            peer.sendall(action)
        elif isinstance(action, (int, float)):
            time.sleep(action)
        elif action == "close":
            peer.shutdown(socket.SHUT_RDWR)
            return False
        elif action == "fin":
            peer.shutdown(socket.SHUT_WR)
        elif action == "reset":
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        elif action == "hang":
            while peer.recv(65536):
                pass
            return False
        elif action == "echo":
            if data:
                peer.sendall(data)
            while more := peer.recv(65536):
                peer.sendall(more)
            return False
        else:
            raise ValueError(action)
    return True


def default(name, line):
    body = b"" if line.startswith("HEAD ") else name.encode()
    return b"HTTP/1.1 200 OK\r\nx-upstream: " + name.encode() + b"\r\ncontent-length: %d\r\n\r\n" % len(name) + body
