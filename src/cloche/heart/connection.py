"""One client of a control socket: what an OCI verb asks of a supervisor.

Its connection carries JSON lines both ways; the first line is the request, descriptors come with
it. Every request is answered by `{"ok": …}` or `{"error": …}`; `exec` is followed by
`{"exit": code}`, and hears `resize` and `signal` lines until then.
"""

from __future__ import annotations

import _socket  # socket proper imports selectors and enum, 5 ms
import os

from cloche.base import fastjson
from cloche.base.errors import ClocheError
from cloche.base.lines import MAX_LINE
from cloche.base.loop import READ, WRITE, Future
from cloche.heart.operations import OPERATIONS
from cloche.heart.pulse import SilentError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cloche.heart.control import ControlServer
    from cloche.heart.member import Member
    from cloche.heart.news import OomNews
    from cloche.heart.process import GuestProcess

MAX_FDS = 250  # SCM_MAX_FD is 253; a container that joins hands over one per bind


class Connection:
    """One client."""

    def __init__(self, server: ControlServer, connection: _socket.socket) -> None:
        self.sandbox = server.sandbox
        self.process: GuestProcess | Member | None = None
        self.watched: OomNews | None = None
        self.is_closed = False
        self._server = server
        self._socket = connection
        self._buffer = bytearray()
        self._unsent = b""
        self._fds: list[int] = []
        self._op = ""
        connection.setblocking(False)
        self.sandbox.loop.watch(connection.fileno(), READ, self._on_ready)

    def send(self, message: dict[str, Any]) -> None:
        """Answer, as fast as the client reads; one that is gone is not an error."""
        if not self.is_closed:
            self._unsent += fastjson.dumps(message).encode() + b"\n"
            self._send_more()

    def _send_more(self) -> None:
        try:
            sent = self._socket.send(self._unsent)
        except BlockingIOError:
            sent = 0
        except OSError:
            sent = len(self._unsent)
        self._unsent = self._unsent[sent:]
        events = READ | (WRITE if self._unsent else 0)
        self.sandbox.loop.watch(self._socket.fileno(), events, self._on_ready)

    def notify(self, message: dict[str, Any]) -> None:
        """Tell a watcher; one that does not read is not told any more."""
        line = fastjson.dumps(message).encode() + b"\n"
        try:
            told = 0 if self._unsent else self._socket.send(line)
        except OSError:
            told = 0
        if told < len(line):
            self.close()

    def _on_ready(self, events: int) -> None:
        if events & WRITE:
            self._send_more()
        if events & ~WRITE:
            self._on_readable()

    def _on_readable(self) -> None:
        try:
            data, ancillary, _flags, _address = self._socket.recvmsg(
                65536, _socket.CMSG_SPACE(MAX_FDS * 4), _socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError:
            data, ancillary = b"", []
        for level, kind, payload in ancillary:
            if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
                self._fds += _numbers(payload)
        if not data or len(self._buffer) > MAX_LINE:
            self.close()
            return
        self._buffer += data
        if b"\n" in data:
            *lines, self._buffer = self._buffer.split(b"\n")
            for line in lines:
                self._on_line(bytes(line))

    def _on_line(self, line: bytes) -> None:
        try:
            message = fastjson.loads(line)
            op = str(message.get("op"))
        except (ValueError, AttributeError):
            self.send({"error": "control: malformed request", "hint": ""})
            return
        if self._op:
            self._while_running(op, message)
            return
        self._op = op
        operation = OPERATIONS.get(op)
        if operation is None:
            self.send({"error": f"control: unknown operation {op!r}", "hint": ""})
            return
        fds, self._fds = self._fds, []
        done = self.sandbox.loop.start(operation(self, message, fds))
        done.on_done(self._answer)

    def _answer(self, done: Future) -> None:
        if done.error is None:
            self.send({"ok": done.value})
            if self.process is not None:
                self.process.exited.on_done(self._on_exit)
        elif isinstance(done.error, ClocheError):
            step = f"{self._op}: " if isinstance(done.error, SilentError) else ""
            self.send({"error": step + done.error.message, "hint": done.error.hint})
        else:
            self.send({"error": f"internal error: {done.error!r}", "hint": ""})

    def _on_exit(self, exited: Future) -> None:
        self.send({"exit": 137 if exited.error else exited.value})
        self.process = None

    def _while_running(self, op: str, message: dict[str, Any]) -> None:
        process = self.process
        if process is None:
            return
        if op == "signal":
            process.signal(int(message["signal"]))
        elif op == "resize":
            process.resize(*process.size)

    def container_ended(self) -> None:
        """The VM is about to go, and with it whatever this client waits for."""
        if self.process is not None:
            self.send({"exit": 137})

    def close(self) -> None:
        """The client has gone; an exec'ed process whose client is killed is killed too."""
        self.is_closed = True
        self.sandbox.loop.unwatch(self._socket.fileno())
        self._socket.close()
        for fd in self._fds:
            os.close(fd)
        self._server.connections.discard(self)
        if self.watched is not None:
            self.watched.watchers.discard(self)
        if self.process is not None:
            self.process.signal(9)


def _numbers(payload: bytes) -> list[int]:
    """Descriptors as SCM_RIGHTS has them."""
    return [int.from_bytes(payload[at : at + 4], "little") for at in range(0, len(payload) - 3, 4)]
