"""How callers get hold of the process that stands for a container, or for an exec'ed process."""

from __future__ import annotations

import os

from cloche.base.errors import ClocheError
from cloche.base.files import short_path, write_atomically
from cloche.cli.flags import TEXT, Flag

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket

    from cloche.cli.flags import Flags

FLAGS = (
    Flag("pid-file", TEXT, "file to write the process id to"),
    Flag("pidfd-socket", TEXT, "AF_UNIX socket that receives a pidfd of the process"),
)
# What comes along with a pidfd: the kind of process, as runc 1.2 names them.
INIT, EXEC = b"standard", b"setns"


class Handles:
    """The handles that *flags* ask for. ClocheError where nobody listens on the pidfd's socket."""

    def __init__(self, flags: Flags) -> None:
        self._pid_file = flags.text("pid-file")
        self._socket_path = flags.text("pidfd-socket")
        self._socket = self._connect() if self._socket_path else None

    @property
    def descriptors(self) -> list[int]:
        """What must stay open until they are handed over."""
        return [self._socket.fileno()] if self._socket is not None else []

    def _connect(self) -> _socket.socket:
        import _socket

        channel = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        try:
            with short_path(self._socket_path) as path:
                channel.connect(path)
        except OSError as error:
            raise self._failure("pidfd-socket", self._socket_path, error) from None
        return channel

    def hand_over(self, pid: int, kind: bytes) -> None:
        """Process *pid* is the one that was asked for; ClocheError where that cannot be told."""
        if self._socket is not None:
            self._send_pidfd(self._socket, pid, kind)
        if self._pid_file:
            try:
                write_atomically(self._pid_file, str(pid).encode(), 0o644)
            except OSError as error:
                raise self._failure("pid-file", self._pid_file, error) from None

    def _send_pidfd(self, channel: _socket.socket, pid: int, kind: bytes) -> None:
        import _socket

        pidfd = os.pidfd_open(pid)
        rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, pidfd.to_bytes(4, "little"))
        try:
            channel.sendmsg([kind], [rights], _socket.MSG_NOSIGNAL)
        except OSError as error:
            raise self._failure("pidfd-socket", self._socket_path, error) from None
        finally:
            os.close(pidfd)
            channel.close()

    @staticmethod
    def _failure(flag: str, path: str, error: OSError) -> ClocheError:
        return ClocheError(f"--{flag} {path}: {(error.strerror or str(error)).lower()}")
