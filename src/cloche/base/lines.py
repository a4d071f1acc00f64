"""Messages as JSON lines over a blocking descriptor: the control socket and `create`'s channel."""

from __future__ import annotations

import os

from cloche.base import fastjson

# Most that a supervisor reads of one request: the 6 MiB of arguments and environment that an exec
# takes at most, with each byte escaped.
MAX_LINE = 40 << 20

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def encode(message: dict[str, Any]) -> bytes:
    """One message as a line."""
    return fastjson.dumps(message).encode() + b"\n"


class LineReader:
    """Reads messages from *fd*, which stays the caller's."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._buffer = b""

    def has_message(self) -> bool:
        """Whether a message has arrived already: poll would not tell."""
        return b"\n" in self._buffer

    def receive(self) -> dict[str, Any] | None:
        """The next message; None at the end of the stream."""
        while not self.has_message():
            try:
                data = os.read(self._fd, 65536)
            except ConnectionResetError:
                data = b""
            if not data:
                return None
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: dict[str, Any] = fastjson.loads(line)
        return message
