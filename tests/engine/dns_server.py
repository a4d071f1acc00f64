"""A DNS server with one name, run as a program on the "host" that containers see.

``dns_server.py ADDRESS NAME ANSWER``: A queries for NAME get ANSWER, all else NXDOMAIN. Answers to
A queries for ``big.NAME`` are truncated over UDP and complete (40 addresses) over TCP, as large
answers are on the Internet. It prints a line when it listens.
"""

from __future__ import annotations

import ipaddress
import socketserver
import struct
import sys
import threading

DNS_PORT = 53
TYPE_A = 1
BIG_ANSWERS = 40
_ANSWERED, _TRUNCATED, _NO_SUCH_NAME = 0x8180, 0x8380, 0x8183
_COMPRESSED_NAME = 0xC00C


def reply(query: bytes, name: str, answer: str, *, tcp: bool) -> bytes:
    """The reply to one *query*, which has one question."""
    asked, question = _question(query)
    wanted = {name: 1, f"big.{name}": BIG_ANSWERS}.get(asked, 0)
    (kind,) = struct.unpack("!H", question[-4:-2])
    if not wanted:
        return query[:2] + struct.pack("!5H", _NO_SUCH_NAME, 1, 0, 0, 0) + question
    if wanted > 1 and not tcp:
        return query[:2] + struct.pack("!5H", _TRUNCATED, 1, 0, 0, 0) + question
    count = wanted if kind == TYPE_A else 0
    first = int(ipaddress.IPv4Address(answer))
    records = b"".join(
        struct.pack("!HHHIHI", _COMPRESSED_NAME, TYPE_A, 1, 60, 4, first + number)
        for number in range(count)
    )
    return query[:2] + struct.pack("!5H", _ANSWERED, 1, count, 0, 0) + question + records


def _question(query: bytes) -> tuple[str, bytes]:
    """The name that *query* asks for, and the bytes of its question section."""
    labels, position = [], 12
    while length := query[position]:
        labels.append(query[position + 1 : position + 1 + length].decode())
        position += 1 + length
    return ".".join(labels).lower(), query[12 : position + 5]


def main(address: str, name: str, answer: str) -> None:
    """Serve UDP and TCP until killed."""

    class Udp(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            data, sender = self.request
            sender.sendto(reply(data, name, answer, tcp=False), self.client_address)

    class Tcp(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while header := self.rfile.read(2):
                query = self.rfile.read(struct.unpack("!H", header)[0])
                data = reply(query, name, answer, tcp=True)
                self.wfile.write(struct.pack("!H", len(data)) + data)

    socketserver.TCPServer.allow_reuse_address = True
    udp = socketserver.ThreadingUDPServer((address, DNS_PORT), Udp)
    tcp = socketserver.ThreadingTCPServer((address, DNS_PORT), Tcp)
    threading.Thread(target=tcp.serve_forever, daemon=True).start()
    print("listening", flush=True)
    udp.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
