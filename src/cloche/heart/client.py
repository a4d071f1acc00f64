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
        return peer_of(connection)
    except OSError:
        return 0
    finally:
        connection.close()


def peer_of(connection: _socket.socket) -> int:
    """The process that called listen(2): struct ucred begins with it (unix(7), SO_PEERCRED)."""
    credentials = connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
    return int.from_bytes(credentials[:4], "little")


def _is_stopped(pid: int) -> bool:
    """Whether a signal, or a tracer, has stopped process *pid*."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            return (file.read(256) or b"").rpartition(b") ")[2][:1] in (b"T", b"t")
    except OSError:
        return False


class EndedError(ClocheError):
    """The supervisor ended before it answered."""


class DeafError(StateError):
    """The supervisor is there, and does not answer: it is stopped, or its cgroup frozen."""


# A supervisor answers within ms, or is waiting for its guest, for a hook in it, say. After this
# long it is asked whether it is there at all, which it has to answer within DEAF_S.
ANSWER_S = 10
DEAF_S = 3


def _connected(directory: str, seconds: int) -> _socket.socket:
    """A connection to the control socket in *directory*; each wait is *seconds* at most."""
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    limit = seconds.to_bytes(8, "little") + bytes(8)  # struct timeval
    for option in (_socket.SO_RCVTIMEO, _socket.SO_SNDTIMEO):
        connection.setsockopt(_socket.SOL_SOCKET, option, limit)
    try:
        with short_path(os.path.join(directory, "control.sock")) as path:
            connection.connect(path)
    except OSError:
        connection.close()
        raise
    return connection


class Client:
    """One request to a supervisor, and what follows it."""

    def __init__(self, state: State) -> None:
        try:
            self._socket = _connected(state.directory, ANSWER_S)
        except BlockingIOError:  # so many wait for it already
            raise self._deaf("connecting", state) from None
        except OSError as error:
            raise explained(error) or StateError(
                f"container {state.id}: not running (its supervisor does not answer)",
                hint=f"cloche delete --force {state.id} clears what is left",
            ) from None
        self._id = state.id
        self._state = state
        self._reader = LineReader(self._socket.fileno())

    def request(self, op: str, fds: Sequence[int] = (), **fields: Any) -> Any:  # noqa: ANN401
        """Send one request and return its value; the supervisor's error is raised."""
        line = encode({"op": op, "id": self._id, **fields})
        if len(line) > MAX_LINE:
            raise ConfigError(f"{op}: {len(line)} bytes are too much for a request: {MAX_LINE} fit")
        rights = []
        if fds:
            # What is sent to one that is stopped stays open in its queue, even when we are gone.
            if _is_stopped(peer_of(self._socket)):
                raise self._deaf(op, self._state)
            packed = b"".join(fd.to_bytes(4, "little") for fd in fds)
            rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, packed)]
        try:
            sent = self._socket.sendmsg([line], rights)
            while sent < len(line):
                sent += self._socket.send(line[sent:])
        except BlockingIOError:
            raise self._deaf(op, self._state) from None
        answer = self._answer_to(op)
        if answer is None:
            raise EndedError(
                f"container {self._id}: its supervisor ended before it answered {op}",
                hint=f"cloche state {self._id} tells what is left",
            )
        if "error" in answer:
            raise ClocheError(answer["error"], hint=answer.get("hint", ""))
        return answer["ok"]

    def _answer_to(self, op: str) -> dict[str, Any] | None:
        while True:
            try:
                return self.receive()
            except BlockingIOError:
                if not _is_there(self._state):
                    raise self._deaf(op, self._state) from None

    @staticmethod
    def _deaf(op: str, state: State) -> DeafError:
        pid = supervisor_of(state.root, state.id)
        return DeafError(
            f"container {state.id}: {op}: its supervisor (process {pid}) does not answer: it is "
            "stopped, or its cgroup is frozen",
            hint=f"let it go on, or end it with `cloche delete --force {state.id}`",
        )

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


def _is_there(state: State) -> bool:
    """Whether a supervisor is there and answers, or there is none any longer.

    One that others keep from a processor, on a busy host or in an idle cgroup, is there.
    """
    from cloche.base.cputime import has_run, is_kept_waiting

    pid = supervisor_of(state.root, state.id)
    before = has_run(pid)
    return _answers(state) or (before is not None and is_kept_waiting(pid, before, DEAF_S))


def _answers(state: State) -> bool:
    try:
        connection = _connected(state.directory, DEAF_S)
    except BlockingIOError:
        return False
    except OSError:
        return True  # the next read tells of its end
    try:
        connection.send(encode({"op": "ping"}))
        return connection.recv(1) is not None
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        connection.close()


def ask(state: State, op: str, **fields: Any) -> Any:  # noqa: ANN401 (whatever op returns)
    """One request, one answer."""
    return Client(state).request(op, **fields)
