"""The program that serves a sandbox's share to its VM: cloche-files (docs/files.md)."""

from __future__ import annotations

import os
import select
import sys

from cloche.base.errors import ClocheError
from cloche.base.files import read_text
from cloche.base.loop import read_some
from cloche.base.quick import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

NAME = "cloche-files"
_KILL = 9
_SIGNALS = range(1, 65)
_LAST_WORDS = 300


class FileServerError(ClocheError):
    """Nothing serves the files of a VM."""


def find_file_server() -> str:
    """The program: the installed one, else the checkout's; ClocheError where there is none."""
    checkout = os.path.abspath(os.path.join(os.path.dirname(__file__), *[os.pardir] * 3))
    candidates = [
        os.path.join(sys.prefix, "libexec", "cloche", NAME),
        os.path.join(checkout, "fileserver", "target", "release", NAME),
    ]
    for path in candidates:
        if os.access(path, os.X_OK):
            return path
    raise ClocheError(
        f"files: {NAME} is nowhere, but `files = fuse` asks for it", hint="`make agent` builds it"
    )


class FileServer:
    """Serves the folder *share* through *socket* and the *bulk* file; says what fails to *log*.

    It ends with the VM, with this process, or when it is killed. *pidfd* is readable at its end.
    """

    def __init__(self, share: str, socket: int, bulk: int, log: str) -> None:
        program = find_file_server()
        self._log = log
        numbers: Sequence[int] = (socket, bulk)
        for number in numbers:
            os.set_inheritable(number, True)
        self._begun, begins = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._has_begun = False
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        try:
            self.pid = os.posix_spawn(
                program,
                [NAME, *map(str, numbers), share],
                {},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, begins, 1),
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 2, log, flags, 0o600),
                ],
                setsigmask=(),
                setsigdef=[number for number in _SIGNALS if number not in (9, 19, 32, 33)],
            )
            self.pidfd = os.pidfd_open(self.pid)
        except OSError as error:
            cause = (error.strerror or "").lower()
            raise FileServerError(
                f"files: cannot start {program}: {cause}", hint="`make agent` builds it anew"
            ) from None
        finally:
            os.close(begins)
            for number in numbers:
                os.set_inheritable(number, False)

    def has_begun(self) -> bool:
        """Whether it has come so far that it reads requests."""
        if self._begun >= 0 and (said := read_some(self._begun)) is not None:
            self._has_begun = bool(said)
            os.close(self._begun)
            self._begun = -1
        return self._has_begun

    def has_ended(self, seconds: float = 0) -> bool:
        """Whether it has ended, or does so within that time."""
        return not self.pid or bool(select.select([self.pidfd], [], [], seconds)[0])

    def reap(self) -> FileServerError | None:
        """Let go of it after its end; the error, unless it ended since its VM is gone."""
        with suppress(ChildProcessError):
            status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        pid, self.pid = self.pid, 0
        has_begun = self.has_begun()
        os.close(self.pidfd)
        if status == 0 and has_begun:
            return None
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        words = (read_text(self._log) or "").strip().rpartition("\n")[2][-_LAST_WORDS:]
        words = f"; it said: {words}" if words else ""
        if has_begun:
            return FileServerError(
                f"files: {NAME} (process {pid}) ended with {how}, and nothing else serves the "
                f"files of this VM{words}",
                hint="delete the container and start it anew; dmesg tells if memory ran out",
            )
        return FileServerError(
            f"files: {NAME} ended with {how} before it served any file{words}",
            hint="`make agent` builds it anew",
        )

    def kill(self) -> None:
        """End it, which takes its time: one that waits for a disk of the host's ends after that."""
        if self.pid:
            with suppress(ProcessLookupError):
                os.kill(self.pid, _KILL)
