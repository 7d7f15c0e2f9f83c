#!/usr/bin/env python3
"""An upstream that stalls under many requests with bodies, in front of it `concurrency_queue` as examples/concurrency-queue.yaml has it.

Usage: stall.py [--requests 20000] [--body 100000] [--stall 3] [--connections 100] [--max-wait 60] [--places 32] [--http1]
Starts Nuncio (NUNCIO_BIN, else target/release/nuncio), an upstream that answers nothing at first, and a client that opens all requests at
once: over HTTP/2 on `--connections` connections, or over HTTP/1.1 on a connection each. Once all of them wait, the stall goes on for
`--stall` seconds. It fails unless
 - Nuncio's memory stays under what the windows, the places and 32 KB for each request come to, whatever the bodies are;
 - every request is answered, with 200 once the stall is over, or with 503 after `--max-wait`, not before;
 - each 503 has the flag CQ in the access log, and nothing else has;
 - afterwards nothing waits and no place is taken.
"""

import argparse
import asyncio
import collections
import json
import multiprocessing
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
NUNCIO = os.environ.get("NUNCIO_BIN", f"{ROOT}/target/release/nuncio")
STREAM_WINDOW, CONNECTION_WINDOW = 65536, 1048576
# What a waiting request costs beside its body, at most.
EACH = 32 << 10
FRAME = 16384
# Settings, a table of headers of no length (what is answered can be read without one), no push.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\x0c\x04\0\0\0\0\0" + struct.pack(">HIHI", 1, 0, 2, 0)


class Upstream(asyncio.Protocol):
    """Reads requests whole; answers none of them before `go`."""

    def __init__(self, go, waiting):
        self.go, self.waiting = go, waiting
        self.head, self.left, self.transport = b"", 0, None

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        while data:
            if self.left:
                taken = min(self.left, len(data))
                self.left, data = self.left - taken, data[taken:]
            else:
                self.head += data
                end = self.head.find(b"\r\n\r\n")
                if end < 0:
                    return
                head, data, self.head = self.head[:end].lower(), self.head[end + 4:], b""
                at = head.find(b"content-length:")
                self.left = int(head[at + 15:].split(b"\r\n")[0]) if at >= 0 else 0
            if not self.left:
                self.answer()

    def answer(self):
        if self.go.is_set():
            self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        else:
            self.waiting.append(self.answer)


def upstream(port, go):
    """The upstream's process."""
    async def main():
        waiting = []
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Upstream(go, waiting), "127.0.0.1", 0, backlog=4096)
        port.value = server.sockets[0].getsockname()[1]
        while not go.is_set():
            await asyncio.sleep(0.05)
        while True:
            for answer in waiting:
                answer()
            waiting.clear()
            await asyncio.sleep(0.05)
    asyncio.run(main())


def literal(name, value):
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def status_of(block):
    """The status in a header block: it comes first, and there is no dynamic table."""
    while block and block[0] & 0xE0 == 0x20:  # A new size of the table.
        block = block[1:]
    if block[0] & 0x80:
        return {8: 200, 9: 204, 10: 206, 11: 304, 12: 400, 13: 404, 14: 500}[block[0] & 0x7F]
    size, value = block[1] & 0x7F, block[2:2 + (block[1] & 0x7F)]
    if not block[1] & 0x80:
        return int(value)
    # Huffman: 0, 1 and 2 have 5 bits, the other digits 6.
    bits, out = "".join(f"{b:08b}" for b in value[:size]), ""
    while len(out) < 3:
        short = int(bits[:5], 2)
        out, bits = (out + str(short), bits[5:]) if short < 3 else (out + str(int(bits[:6], 2) - 0x16), bits[6:])
    return int(out)


class Client2(asyncio.Protocol):
    """An HTTP/2 connection that sends its requests at once, and their bodies as the windows let it, a frame of each in turn."""

    def __init__(self, run, numbers):
        self.run, self.numbers = run, numbers
        self.window, self.initial = 65535, 65535
        self.windows, self.left, self.began, self.buffer, self.transport = {}, {}, {}, b"", None

    def connection_made(self, transport):
        self.transport = transport
        out = [PREFACE]
        for i, number in enumerate(self.numbers):
            stream = 2 * i + 1
            block = b"\x83\x86\x84" + literal(b":authority", b"x") + literal(b"x-api-client", b"c%d" % (number % 7)) + literal(
                b"content-length", b"%d" % self.run.body)
            out.append(len(block).to_bytes(3, "big") + b"\x01\x04" + stream.to_bytes(4, "big") + block)
            self.windows[stream], self.left[stream], self.began[stream] = self.initial, self.run.body, time.monotonic()
        transport.write(b"".join(out))
        self.pump()

    def pump(self):
        out, moved = [], True
        while moved and self.window > 0:
            moved = False
            for stream in sorted(self.left, reverse=True) if self.run.last_first else list(self.left):
                size = min(self.left[stream], self.windows[stream], self.window, FRAME)
                if size <= 0:
                    continue
                moved = True
                self.window, self.windows[stream], self.left[stream] = self.window - size, self.windows[stream] - size, self.left[stream] - size
                out.append(size.to_bytes(3, "big") + (b"\0\0" if self.left[stream] else b"\0\x01") + stream.to_bytes(4, "big") + self.run.payload[:size])
                if not self.left[stream]:
                    del self.left[stream]
        if out:
            self.transport.write(b"".join(out))

    def data_received(self, data):
        self.buffer += data
        at, pump = 0, False
        while len(self.buffer) - at >= 9:
            size, kind, flags = int.from_bytes(self.buffer[at:at + 3], "big"), self.buffer[at + 3], self.buffer[at + 4]
            if len(self.buffer) - at < 9 + size:
                break
            stream, frame = int.from_bytes(self.buffer[at + 5:at + 9], "big"), self.buffer[at + 9:at + 9 + size]
            at += 9 + size
            if kind == 1:
                self.left.pop(stream, None)
                self.run.answered(status_of(frame), time.monotonic() - self.began.pop(stream))
            elif kind == 3 and stream in self.began:
                self.left.pop(stream, None)
                self.run.answered("reset", time.monotonic() - self.began.pop(stream))
            elif kind == 4 and not flags & 1:
                for i in range(0, size, 6):
                    name, value = struct.unpack(">HI", frame[i:i + 6])
                    if name == 4:
                        self.windows = {s: w + value - self.initial for s, w in self.windows.items()}
                        self.initial = value
                self.transport.write(b"\0\0\0\x04\x01\0\0\0\0")
                pump = True
            elif kind == 6 and not flags & 1:
                self.transport.write(b"\0\0\x08\x06\x01\0\0\0\0" + frame)
            elif kind == 8:
                more = int.from_bytes(frame, "big")
                if stream:
                    self.windows[stream] = self.windows.get(stream, 0) + more
                else:
                    self.window += more
                pump = True
        self.buffer = self.buffer[at:]
        if pump:
            self.pump()

    def connection_lost(self, _error):
        for _ in self.began:
            self.run.answered("closed", 0)
        self.began.clear()


class Client1(asyncio.Protocol):
    """An HTTP/1.1 connection with one request."""

    def __init__(self, run, numbers):
        self.run, self.number, self.began, self.transport, self.done = run, numbers[0], time.monotonic(), None, False

    def connection_made(self, transport):
        self.transport = transport
        transport.set_write_buffer_limits(0)
        transport.write(b"POST / HTTP/1.1\r\nhost: x\r\nx-api-client: c%d\r\ncontent-length: %d\r\n\r\n" % (self.number % 7, self.run.body))
        transport.write(self.run.payload)

    def data_received(self, data):
        if not self.done:
            self.done = True
            self.run.answered(int(data[9:12]), time.monotonic() - self.began)
            self.transport.abort()

    def connection_lost(self, _error):
        if not self.done:
            self.done = True
            self.run.answered("closed", 0)


class Run:
    """What the client saw."""

    def __init__(self, requests, body):
        self.requests, self.body, self.payload = requests, body, memoryview(b"x" * body)
        self.answers, self.early, self.slowest, self.over, self.max_wait, self.last_first = collections.Counter(), 0, 0.0, asyncio.Event(), 0.0, False

    def answered(self, status, after):
        self.answers[status] += 1
        self.slowest = max(self.slowest, after)
        if status == 503 and after < self.max_wait:
            self.early += 1
        if self.answers.total() == self.requests:
            self.over.set()


class Nuncio:
    """Nuncio with the example's configuration, on ports of its own."""

    def __init__(self, work, upstream_port, options):
        import socket
        with socket.socket() as a, socket.socket() as b:
            a.bind(("127.0.0.1", 0)), b.bind(("127.0.0.1", 0))
            self.admin, self.port = a.getsockname()[1], b.getsockname()[1]
        with open(f"{ROOT}/examples/concurrency-queue.yaml", encoding="utf-8") as file:
            text = file.read()
        for old, new in [("port_value: 9901", f"port_value: {self.admin}"), ("port_value: 8080", f"port_value: {self.port}"), ("port_value: 9001", f"port_value: {upstream_port}"),
                         ("max_wait: 10s", f"max_wait: {options.max_wait}s"), ("max_concurrency: 32", f"max_concurrency: {options.places}"),
                         ("timeout: 30s", "timeout: 600s"), ("max_queue: 20000", f"max_queue: {options.requests}")]:
            assert old in text, old
            text = text.replace(old, new)
        with open(f"{work}/config.yaml", "w", encoding="utf-8") as file:
            file.write(text)
        self.log = open(f"{work}/access.log", "wb")
        self.errors = open(f"{work}/log", "wb")
        self.process = subprocess.Popen([NUNCIO, "-c", f"{work}/config.yaml", "--concurrency", "2", "--drain-time-s", "1"], stdout=self.log, stderr=self.errors)
        self.until("readiness", lambda: self.get("/ready").startswith("LIVE"))

    def get(self, path):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}{path}", timeout=60) as answer:
                return answer.read().decode()
        except OSError:
            return ""

    def stat(self, name):
        found = json.loads(self.get(f"/stats?format=json&filter=^reports.concurrency_queue.{name}$") or "{}").get("stats", [])
        return found[0]["value"] if found else 0

    def until(self, what, condition, seconds=120):
        end = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"no {what}")
            time.sleep(0.1)

    def memory(self, field):
        with open(f"/proc/{self.process.pid}/status", encoding="utf-8") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(field)) / 1024


async def load(options, nuncio, go):
    run = Run(options.requests, options.body)
    run.max_wait, run.last_first = options.max_wait, options.last_first
    loop = asyncio.get_running_loop()
    connections = options.requests if options.http1 else options.connections
    for i in range(connections):
        numbers = range(i, options.requests, connections)
        await loop.create_connection(lambda n=numbers: (Client1 if options.http1 else Client2)(run, n), "127.0.0.1", nuncio.port)
    wanted = options.requests - options.places
    began = time.monotonic()
    await asyncio.to_thread(nuncio.until, f"{wanted} waiting requests", lambda: nuncio.stat("waiting") >= wanted or run.answers)
    began = time.monotonic() - began
    await asyncio.sleep(options.stall)
    stalled, early = nuncio.memory("VmRSS"), dict(run.answers)
    released = time.monotonic()
    go.set()
    await asyncio.wait_for(run.over.wait(), options.max_wait + 600)
    return run, stalled, early, time.monotonic() - released


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in [("requests", 20000), ("body", 100000), ("connections", 100), ("places", 32)]:
        parser.add_argument(f"--{name}", type=int, default=value)
    for name, value in [("stall", 3.0), ("max-wait", 60.0)]:
        parser.add_argument(f"--{name}", type=float, default=value)
    parser.add_argument("--http1", action="store_true")
    parser.add_argument("--last-first", action="store_true", help="bodies of the last streams first: those that wait longest use the window up")
    parser.add_argument("--max-mb", type=float, help="the bound of Nuncio's memory, instead of the one that is computed")
    options = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if options.http1 and options.requests > hard - 500:
        raise SystemExit(f"{options.requests} connections, but the limit of open files is {hard}; give --requests {hard - 500}")
    work = tempfile.mkdtemp(prefix="nuncio-stall-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    context = multiprocessing.get_context("fork")
    port, go = context.Value("i", 0), context.Event()
    peer = context.Process(target=upstream, args=(port, go), daemon=True)
    peer.start()
    while not port.value:
        time.sleep(0.01)
    nuncio = Nuncio(work, port.value, options)
    failures = []
    try:
        before = nuncio.memory("VmRSS")
        run, stalled, early, took = asyncio.run(load(options, nuncio, go))
        peak = nuncio.memory("VmHWM")
        windows = 0 if options.http1 else options.connections * CONNECTION_WINDOW
        if options.last_first:  # What is lent; a few steps of it do here.
            windows *= 2
        bound = options.max_mb or before + (windows + options.places * (STREAM_WINDOW + 1048576) + options.requests * EACH) / 1048576 + 16
        print(f"{options.requests} requests of {options.body} bytes, {options.places} places, {'HTTP/1.1' if options.http1 else f'HTTP/2 on {options.connections} connections'}")
        print(f"memory: {before:.0f} MB idle, {stalled:.0f} MB in the stall, {peak:.0f} MB at most; allowed {bound:.0f} MB; bodies {options.requests * options.body / 1048576:.0f} MB")
        print(f"answers: {dict(run.answers)}, the last {took:.1f} s after the stall, the slowest after {run.slowest:.1f} s")
        expect = lambda ok, what: ok or failures.append(what)
        expect(peak <= bound, f"memory: {peak:.0f} MB, more than {bound:.0f} MB")
        expect(set(early) <= {503}, f"answered during the stall: {early}")
        expect(set(run.answers) <= {200, 503}, f"other answers: {dict(run.answers)}")
        expect(run.early == 0, f"{run.early} were refused before {options.max_wait:.0f} s")
        nuncio.until("empty queue", lambda: nuncio.stat("active") == 0 and nuncio.stat("waiting") == 0)
        expect(nuncio.stat("overflow") == 0, "overflow was counted")
        expect(nuncio.stat("timeout") == run.answers[503], f"timeouts counted: {nuncio.stat('timeout')}")
        nuncio.process.send_signal(signal.SIGTERM)
        nuncio.process.wait(60)
        with open(f"{work}/access.log", encoding="utf-8", errors="replace") as file:
            flags = collections.Counter(line.split('" ', 1)[1].split()[1] for line in file if '"POST ' in line)
        print(f"flags in the access log: {dict(flags)}")
        expect(flags["CQ"] == run.answers[503] and flags["-"] == run.answers[200], f"flags: {dict(flags)}")
    finally:
        nuncio.process.kill()
        peer.kill()
        shutil.rmtree(work, ignore_errors=True)
    for failure in failures:
        print(f"FAILED: {failure}")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
