"""A relay for name servers on loopback addresses, such as Docker's 127.0.0.11.

Such a server listens inside the container's network namespace, where the supervisor is and the
guest is not. The agent sends each query over its channel; it is asked here, and the answer sent
back. One socket per query: each has a port of its own, so no answer can meet the wrong query.
"""

from __future__ import annotations

import _socket as socket  # socket proper imports selectors and enum, 5 ms
import struct

from cloche.base.loop import READ, WRITE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cloche.base.loop import Loop, Timer

EXPIRY_SECONDS = 10.0
MAX_PENDING = 256
_PORT = 53


# Docker's resolver, the only one that comes with a network while a container runs.
LATE_RESOLVER = "127.0.0.11"


def loopback_nameservers(resolv_conf_text: str) -> list[str]:
    """The loopback addresses among the `nameserver` lines of a resolv.conf(5), in their order.

    Addresses only: what looks like one might be a name, and looking that up would be waited for.
    """
    servers: list[str] = []
    for line in resolv_conf_text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            server = words[1]
            if _is_loopback(server) and server not in servers:
                servers.append(server)
    return servers


def _is_loopback(text: str) -> bool:
    try:
        return text == "::1" or socket.inet_pton(socket.AF_INET, text)[0] == 127
    except OSError:
        return False


class DnsRelay:
    """Asks *servers*, and no others, for the guest; calls *answer* with query id and DNS message.

    A query that cannot be asked, or is not answered within EXPIRY_SECONDS, is answered with no
    bytes. The process must be in the network namespace of the servers.
    """

    def __init__(
        self, loop: Loop, servers: Sequence[str], answer: Callable[[int, bytes], object]
    ) -> None:
        self._loop = loop
        self._servers = set(servers)
        self._answer = answer
        self._pending: dict[int, _Exchange] = {}

    def add(self, servers: Sequence[str]) -> list[str]:
        """Ask these as well from now on; returns those that are new."""
        new = [server for server in servers if server not in self._servers]
        self._servers.update(new)
        return new

    def query(self, query: int, server: str, tcp: bool, data: bytes) -> None:
        """Ask *server* the DNS message *data* (without TCP's length); the guest named all of it."""
        fits = 12 <= len(data) <= 0xFFFF and len(self._pending) < MAX_PENDING
        if server not in self._servers or not fits:
            self._answer(query, b"")
            return
        family = socket.AF_INET6 if ":" in server else socket.AF_INET
        kind = socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM
        connection = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        exchange = _Exchange(query, connection, struct.pack(">H", len(data)) + data if tcp else b"")
        fd = connection.fileno()
        self._pending[fd] = exchange
        exchange.timer = self._loop.call_later(EXPIRY_SECONDS, lambda: self._finish(fd, b""))
        try:
            error = connection.connect_ex((server, _PORT))
            if not tcp and error == 0:
                connection.send(data)
        except OSError:
            self._finish(fd, b"")
            return
        self._loop.watch(fd, WRITE if tcp else READ, lambda _events: self._on_ready(fd))

    def close(self) -> None:
        """Give up all open queries without answering them."""
        for fd in list(self._pending):
            self._release(fd)

    def _on_ready(self, fd: int) -> None:
        exchange = self._pending[fd]
        try:
            if exchange.unsent:
                sent = exchange.connection.send(exchange.unsent)
                exchange.unsent = exchange.unsent[sent:]
                if not exchange.unsent:
                    self._loop.watch(fd, READ, lambda _events: self._on_ready(fd))
                return
            message = exchange.receive()
        except BlockingIOError:
            return
        except OSError:
            message = b""  # refused or reset
        if message is not None:
            self._finish(fd, message)

    def _finish(self, fd: int, message: bytes) -> None:
        query = self._release(fd)
        self._answer(query, message)

    def _release(self, fd: int) -> int:
        exchange = self._pending.pop(fd)
        self._loop.unwatch(fd)
        if exchange.timer is not None:
            exchange.timer.cancel()
        exchange.connection.close()
        return exchange.query


class _Exchange:
    """One question on its way: *unsent* bytes, what has been *received* of a TCP answer."""

    __slots__ = ("connection", "query", "received", "timer", "unsent")

    def __init__(self, query: int, connection: socket.socket, unsent: bytes) -> None:
        self.query = query
        self.connection = connection
        self.unsent = unsent
        self.received = b""
        self.timer: Timer | None = None

    def receive(self) -> bytes | None:
        """The answer, None while it is incomplete, b"" when the server hung up."""
        chunk = self.connection.recv(0x10000)
        if self.connection.type == socket.SOCK_DGRAM:
            return chunk
        if not chunk:
            return b""
        self.received += chunk
        if len(self.received) < 2:
            return None
        (length,) = struct.unpack_from(">H", self.received)
        return self.received[2 : 2 + length] if len(self.received) >= 2 + length else None
