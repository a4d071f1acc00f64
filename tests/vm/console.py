"""The engine's side of ``--console-socket``: it is sent the master of a terminal."""

from __future__ import annotations

import array
import os
import re
import select
import socket
import termios
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from engine.patience import PATIENCE_SECONDS

TIMEOUT_SECONDS = PATIENCE_SECONDS


class ConsoleSocket:
    """Listens; `receive` hands out the terminal that came."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._listener.settimeout(TIMEOUT_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._listener.close()

    def receive(self) -> Master:
        """The terminal of the next connection."""
        connection, _ = self._listener.accept()
        with connection:
            name, ancillary, _, _ = connection.recvmsg(4096, socket.CMSG_SPACE(4))
        ((level, kind, data),) = ancillary
        assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        return Master(array.array("i", data)[0], name.decode())


class Master:
    """The master of a terminal, as an engine holds it; *name* came along with it."""

    def __init__(self, fd: int, name: str) -> None:
        self.fd = fd
        self.name = name
        self._seen = b""

    def send(self, data: bytes) -> None:
        """Type *data*."""
        os.write(self.fd, data)

    def resize(self, rows: int, columns: int) -> None:
        """Change the window's size."""
        termios.tcsetwinsize(self.fd, (rows, columns))

    def expect(self, pattern: str) -> str:
        """Wait until what *pattern* matches is printed, after the last match; the match."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not (match := re.search(pattern.encode(), self._seen)):
            data = self._read(deadline)
            assert data, f"no {pattern!r} in {self._seen!r}"
            self._seen += data
        self._seen = self._seen[match.end() :]
        return match[0].decode()

    def rest(self) -> bytes:
        """All that is printed until the terminal's end."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while data := self._read(deadline):
            self._seen += data
        return self._seen

    def close(self) -> None:
        """Hang up."""
        os.close(self.fd)

    def _read(self, deadline: float) -> bytes:
        ready, _, _ = select.select([self.fd], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"nothing more came after {self._seen!r}"
        try:
            return os.read(self.fd, 65536)
        except OSError:  # EIO: nobody holds the other side any more
            return b""
