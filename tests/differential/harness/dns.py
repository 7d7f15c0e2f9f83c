"""A small DNS server: answers from a table of names, well or badly. One for all setups of a family; it lives as long as the process."""
import socket
import struct
import threading


class DnsServer:
    """`zone`: name -> list of addresses, an rcode (int), "silent", "garbage" or "other" (an answer to another question). UDP and TCP."""

    def __init__(self, zone, ttl=60):
        self.zone, self.ttl, self.asked = zone, ttl, []
        while True:
            self.udp, self.tcp = socket.socket(type=socket.SOCK_DGRAM), socket.socket()
            self.udp.bind(("127.0.0.1", 0))
            self.port = self.udp.getsockname()[1]
            try:
                self.tcp.bind(("127.0.0.1", self.port))
                break
            except OSError:
                self.udp.close()
        self.tcp.listen(16)
        threading.Thread(target=self.serve_udp, daemon=True).start()
        threading.Thread(target=self.serve_tcp, daemon=True).start()

    def serve_udp(self):
        while True:
            query, peer = self.udp.recvfrom(4096)
            reply = self.answer(query, 512)
            if reply:
                self.udp.sendto(reply, peer)

    def serve_tcp(self):
        while True:
            peer, _ = self.tcp.accept()
            threading.Thread(target=self.serve_one, args=(peer,), daemon=True).start()

    def serve_one(self, peer):
        try:
            while len(head := peer.recv(2)) == 2:
                reply = self.answer(peer.recv(struct.unpack("!H", head)[0]), 65535)
                if reply:
                    peer.sendall(struct.pack("!H", len(reply)) + reply)
        except OSError:
            pass
        finally:
            peer.close()

    def answer(self, query, limit):
        labels, at = [], 12
        while query[at]:
            labels.append(query[at + 1:at + 1 + query[at]].decode().lower())
            at += query[at] + 1
        name, kind, question = ".".join(labels), struct.unpack("!H", query[at + 1:at + 3])[0], query[12:at + 5]
        self.asked.append((name, kind))
        entry = self.zone.get(name, 3)
        if entry == "silent":
            return None
        if entry == "garbage":
            return query[:2] + b"\x81\x80" + b"\xff" * 20
        if isinstance(entry, int):
            return query[:2] + struct.pack("!HHHHH", 0x8180 | entry, 1, 0, 0, 0) + question
        if entry == "other":
            # Somebody else's answer: it must not count.
            question, entry = b"\x05other\x04test\x00" + question[-4:], ["127.0.0.1"]
        family = socket.AF_INET6 if kind == 28 else socket.AF_INET
        found = [socket.inet_pton(family, address) for address in entry if (":" in address) == (kind == 28)] if kind in (1, 28) else []
        body = b"".join(b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, self.ttl, len(data)) + data for data in found)
        flags, count = 0x8180, len(found)
        if 12 + len(question) + len(body) > limit:
            flags, count, body = flags | 0x0200, 0, b""
        return query[:2] + struct.pack("!HHHHH", flags, 1, count, 0, 0) + question + body
