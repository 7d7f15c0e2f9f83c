"""HTTP/2 on the wire, by hand: HPACK (RFC 7541) and frames (RFC 9113), enough for a client that can misbehave and a scripted server."""
import struct
import threading
import time

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS, ACK, PADDED, HAS_PRIORITY = 1, 4, 1, 8, 32
STATIC = [pair.partition("=")[::2] for pair in """:authority :method=GET :method=POST :path=/ :path=/index.html :scheme=http :scheme=https
:status=200 :status=204 :status=206 :status=304 :status=400 :status=404 :status=500 accept-charset accept-encoding=gzip,_deflate accept-language
accept-ranges accept access-control-allow-origin age allow authorization cache-control content-disposition content-encoding content-language
content-length content-location content-range content-type cookie date etag expect expires from host if-match if-modified-since if-none-match
if-range if-unmodified-since last-modified link location max-forwards proxy-authenticate proxy-authorization range referer refresh retry-after
server set-cookie strict-transport-security transfer-encoding user-agent vary via www-authenticate""".split()]
STATIC[15] = ("accept-encoding", "gzip, deflate")
# The length in bits of each byte's Huffman code (RFC 7541 appendix B), A = 5; the code is canonical, so the lengths define it.
LENGTHS = ("ISXXXXXXXTZXXZXXXXXXXXZXXXXXXXXXBFFHIBDGFFDGDBBBAAABBBBBBBCDKBHFIBCCCCCCCCCCCCCCCCCCCCCCDCDIOIJBKABABABBBACCBBBABCBAABCCCCCKGJIX"
           "PRPPRRRSRSSSSSTSTTRSTSSSSQRSRSSTRQPRRSSQSRRTQRSSQQRQSRSSPRRRSRRSVVPORSRUVVVWWVTUOQVWWVWTQQVVXWWWPTPQRQQSRRUUTTVSVWVVWWWWWXWWWWWV")


def huffman():
    codes, code, before = {}, 0, 5
    for length, symbol in sorted((ord(letter) - 60, symbol) for symbol, letter in enumerate(LENGTHS)):
        code <<= length - before
        before = length
        codes[(length, code)] = symbol
        code += 1
    return codes


CODES = huffman()


def unhuffman(data):
    out, code, length = bytearray(), 0, 0
    for byte in data:
        for bit in range(7, -1, -1):
            code, length = (code << 1) | ((byte >> bit) & 1), length + 1
            symbol = CODES.get((length, code))
            if symbol is not None:
                out.append(symbol)
                code, length = 0, 0
    return bytes(out)


class Decoder:
    """Reads header blocks of one direction of one connection."""

    def __init__(self):
        self.table, self.size, self.limit = [], 0, 4096

    def integer(self, data, at, bits):
        mask = (1 << bits) - 1
        value, at = data[at] & mask, at + 1
        if value < mask:
            return value, at
        shift = 0
        while True:
            value, shift, more, at = value + ((data[at] & 127) << shift), shift + 7, data[at] & 128, at + 1
            if not more:
                return value, at

    def string(self, data, at):
        coded = data[at] & 128
        length, at = self.integer(data, at, 7)
        text = data[at:at + length]
        return (unhuffman(text) if coded else bytes(text)).decode("latin-1"), at + length

    def entry(self, index):
        return STATIC[index - 1] if index <= 61 else self.table[index - 62]

    def remember(self, name, value):
        self.table.insert(0, (name, value))
        self.size += len(name) + len(value) + 32
        while self.size > self.limit:
            name, value = self.table.pop()
            self.size -= len(name) + len(value) + 32

    def decode(self, data):
        headers, at = [], 0
        while at < len(data):
            first = data[at]
            if first & 128:
                index, at = self.integer(data, at, 7)
                headers.append(self.entry(index))
            elif first & 0xE0 == 0x20:
                self.limit, at = self.integer(data, at, 5)
                while self.size > self.limit:
                    name, value = self.table.pop()
                    self.size -= len(name) + len(value) + 32
            else:
                index, at = self.integer(data, at, 6 if first & 64 else 4)
                if index:
                    name = self.entry(index)[0]
                else:
                    name, at = self.string(data, at)
                value, at = self.string(data, at)
                headers.append((name, value))
                if first & 64:
                    self.remember(name, value)
        return headers


def encode(headers):
    """A header block of literals without indexing and without Huffman: says exactly what is asked for."""
    out = bytearray()
    for name, value in headers:
        out.append(0)
        for text in (name, value):
            text = text if isinstance(text, bytes) else text.encode("latin-1")
            if len(text) < 127:
                out.append(len(text))
            else:
                out.append(127)
                left = len(text) - 127
                while left >= 128:
                    out.append((left & 127) | 128)
                    left >>= 7
                out.append(left)
            out += text
    return bytes(out)


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def settings(**values):
    """A SETTINGS frame; names as in h2: header_table_size=1, enable_push, max_concurrent_streams, initial_window_size, max_frame_size, ..."""
    names = {"header_table_size": 1, "enable_push": 2, "max_concurrent_streams": 3, "initial_window_size": 4, "max_frame_size": 5,
             "max_header_list_size": 6, "enable_connect_protocol": 8}
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", names[name], value) for name, value in values.items()))


def headers(stream, pairs, end=False):
    return frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), stream, encode(pairs))


def data(stream, body, end=False):
    return frame(DATA, END_STREAM if end else 0, stream, body)


def split(buffer):
    """Whole frames at the start of `buffer`: ([(kind, flags, stream, payload)], rest)."""
    frames = []
    while len(buffer) >= 9:
        length = int.from_bytes(buffer[:3], "big")
        if len(buffer) < 9 + length:
            break
        frames.append((buffer[3], buffer[4], int.from_bytes(buffer[5:9], "big") & 0x7FFFFFFF, buffer[9:9 + length]))
        buffer = buffer[9 + length:]
    return frames, buffer


class Reader:
    """Collects frames of one direction into streams."""

    def __init__(self):
        self.buffer, self.decoder, self.block = b"", Decoder(), b""
        self.streams, self.goaway, self.settings = {}, None, None

    def stream(self, number):
        return self.streams.setdefault(number, {"heads": [], "body": b"", "reset": None, "ended": False})

    def feed(self, data):
        """Takes bytes; gives frames that the peer must answer (SETTINGS, PING) or count (DATA)."""
        frames, self.buffer = split(self.buffer + data)
        for kind, flags, number, payload in frames:
            if kind in (HEADERS, DATA) and flags & PADDED:
                payload = payload[1:len(payload) - payload[0]]
            if kind == HEADERS and flags & HAS_PRIORITY:
                payload = payload[5:]
            if kind in (HEADERS, CONTINUATION):
                self.block += payload
                stream = self.stream(number)
                if flags & END_HEADERS:
                    stream["heads"].append(self.decoder.decode(self.block))
                    self.block = b""
                if kind == HEADERS and flags & END_STREAM:
                    stream["ended"] = True
            elif kind == DATA:
                stream = self.stream(number)
                stream["body"] += payload
                stream["ended"] = stream["ended"] or bool(flags & END_STREAM)
            elif kind == RST_STREAM:
                self.stream(number)["reset"] = struct.unpack(">I", payload)[0]
            elif kind == GOAWAY:
                self.goaway = struct.unpack(">II", payload[:8])[1], payload[8:].decode("latin-1")
            elif kind == SETTINGS and not flags & ACK:
                self.settings = payload
        return frames


def answers(frames):
    """What a polite peer answers: SETTINGS and PING acknowledgements, and window for the data that came."""
    out, window = b"", 0
    for kind, flags, _, payload in frames:
        if kind == SETTINGS and not flags & ACK:
            out += frame(SETTINGS, ACK, 0)
        elif kind == PING and not flags & ACK:
            out += frame(PING, ACK, 0, payload)
        elif kind == DATA:
            window += len(payload)
    return out + (frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", window)) if window else b"")


def serve(peer, name, script):
    """A scripted HTTP/2 upstream. An answer is None (its own), or a list of actions: ("headers", pairs, end), ("data", bytes, end),
    ("reset", code), ("goaway", code), ("raw", bytes of the stream's number), "close", or seconds to wait. Streams are answered in the order in which they end."""
    reader, answered = Reader(), set()
    lock = threading.Lock()
    peer.sendall(settings(max_concurrent_streams=100, initial_window_size=1 << 20, enable_connect_protocol=1) + frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1 << 24)))
    start = b""
    while len(start) < len(PREFACE):
        more = peer.recv(len(PREFACE) - len(start))
        if not more:
            return
        start += more
    while more := peer.recv(65536):
        reply = answers(reader.feed(more))
        if reply:
            with lock:
                peer.sendall(reply)
        for number, stream in list(reader.streams.items()):
            if number in answered or not stream["heads"] or not (stream["ended"] or dict(stream["heads"][0]).get(":method") == "CONNECT"):
                continue
            answered.add(number)
            head = stream["heads"][0]
            record = {"upstream": name, "line": "h2", "headers": head, "body": stream["body"],
                      "trailers": stream["heads"][1] if len(stream["heads"]) > 1 else []}
            threading.Thread(target=answer, args=(peer, lock, number, script.next(record), name), daemon=True).start()


def answer(peer, lock, number, actions, name):
    if actions is None:
        actions = [("headers", [(":status", "200"), ("x-upstream", name)], False), ("data", name.encode(), True)]
    try:
        for action in actions:
            if isinstance(action, (int, float)):
                time.sleep(action)
                continue
            with lock:
                if action == "close":
                    peer.close()
                elif action[0] == "headers":
                    peer.sendall(headers(number, action[1], action[2]))
                elif action[0] == "raw":
                    peer.sendall(action[1](number))
                elif action[0] == "data":
                    peer.sendall(data(number, action[1], action[2]))
                elif action[0] == "reset":
                    peer.sendall(frame(RST_STREAM, 0, number, struct.pack(">I", action[1])))
                elif action[0] == "goaway":
                    peer.sendall(frame(GOAWAY, 0, 0, struct.pack(">II", number, action[1])))
    except OSError:
        pass
