"""The control socket of a sandbox, on which the OCI verbs speak with its supervisor."""

from __future__ import annotations

import _socket  # socket proper imports selectors and enum, 5 ms
import os

from cloche.base.files import short_path
from cloche.base.loop import READ

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cloche.heart.connection import Connection
    from cloche.heart.sandbox import Sandbox


class ControlServer:
    """Listens on the sandbox's control socket."""

    def __init__(self, sandbox: Sandbox, path: str) -> None:
        self.sandbox = sandbox
        self.connections: set[Connection] = set()
        self._listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        self._listener.setblocking(False)
        # Bound under another name first: a socket that can be seen can be connected to.
        with short_path(path + ".new") as short:
            self._listener.bind(short)
        self._listener.listen(128)
        os.rename(path + ".new", path)
        sandbox.loop.watch(self._listener.fileno(), READ, self._accept)

    def _accept(self, _: int) -> None:
        from cloche.heart.connection import Connection

        try:
            fd, _address = self._listener._accept()  # type: ignore[attr-defined] # what socket.accept calls
        except BlockingIOError:
            return
        self.connections.add(Connection(self, _socket.socket(fileno=fd)))

    def finish(self) -> None:
        """Tell those who still wait that the container has ended."""
        for connection in list(self.connections):
            connection.container_ended()
