"""Client of a sandbox's control socket; used by the short-lived verbs, so it imports little."""

from __future__ import annotations

import _socket  # socket proper imports selectors and enum, 5 ms
import os

from cloche.base.errors import ClocheError, ConfigError, StateError
from cloche.base.files import short_path
from cloche.base.limits import explained
from cloche.base.lines import MAX_LINE, LineReader, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from cloche.model.state import State


def supervisor_of(root: str, container_id: str) -> int:
    """The pid of the process that listens on a container's control socket; 0 when none does."""
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        with short_path(os.path.join(root, container_id, "control.sock")) as path:
            connection.connect(path)
        # struct ucred: pid, uid and gid of whoever called listen(2) (unix(7), SO_PEERCRED)
        credentials = connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
        return int.from_bytes(credentials[:4], "little")
    except OSError:
        return 0
    finally:
        connection.close()


class Client:
    """One request to a supervisor, and what follows it."""

    def __init__(self, state: State) -> None:
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        try:
            with short_path(os.path.join(state.directory, "control.sock")) as path:
                self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise explained(error) or StateError(
                f"container {state.id}: not running (its supervisor does not answer)",
                hint=f"cloche delete --force {state.id} clears what is left",
            ) from None
        self._id = state.id
        self._reader = LineReader(self._socket.fileno())

    def request(self, op: str, fds: Sequence[int] = (), **fields: Any) -> Any:  # noqa: ANN401
        """Send one request and return its value; the supervisor's error is raised."""
        line = encode({"op": op, "id": self._id, **fields})
        if len(line) > MAX_LINE:
            raise ConfigError(f"{op}: {len(line)} bytes are too much for a request: {MAX_LINE} fit")
        rights = []
        if fds:
            packed = b"".join(fd.to_bytes(4, "little") for fd in fds)
            rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, packed)]
        sent = self._socket.sendmsg([line], rights)
        while sent < len(line):
            sent += self._socket.send(line[sent:])
        answer = self.receive()
        if answer is None:
            raise ClocheError(
                f"container {self._id}: its supervisor ended before it answered {op}",
                hint=f"cloche state {self._id} tells what is left",
            )
        if "error" in answer:
            raise ClocheError(answer["error"], hint=answer.get("hint", ""))
        return answer["ok"]

    def tell(self, op: str, **fields: object) -> None:
        """Send a line that is not answered."""
        self._socket.send(encode({"op": op, **fields}))

    def receive(self) -> dict[str, Any] | None:
        """The next message; None at the end of the connection."""
        return self._reader.receive()

    def has_message(self) -> bool:
        """Whether a message has arrived already: poll would not tell."""
        return self._reader.has_message()

    def fileno(self) -> int:
        """The descriptor, for poll."""
        return self._socket.fileno()


def ask(state: State, op: str, **fields: Any) -> Any:  # noqa: ANN401 (whatever op returns)
    """One request, one answer."""
    return Client(state).request(op, **fields)
