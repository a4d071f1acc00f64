"""The program that serves a sandbox's share to its VM: cloche-files (docs/files.md)."""

from __future__ import annotations

import os
import sys

from cloche.base.errors import ClocheError
from cloche.base.quick import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

NAME = "cloche-files"
_KILL = 9
_SIGNALS = range(1, 65)


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

    It ends with the VM, with this process, or when it is told to.
    """

    def __init__(self, share: str, socket: int, bulk: int, log: str) -> None:
        program = find_file_server()
        numbers: Sequence[int] = (socket, bulk)
        for number in numbers:
            os.set_inheritable(number, True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        try:
            self.pid = os.posix_spawn(
                program,
                [NAME, *map(str, numbers), share],
                {},
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, log, flags, 0o600),
                    (os.POSIX_SPAWN_DUP2, 1, 2),
                ],
                setsigmask=(),
                setsigdef=[number for number in _SIGNALS if number not in (9, 19, 32, 33)],
            )
        except OSError as error:
            cause = (error.strerror or "").lower()
            raise ClocheError(f"files: cannot start {program}: {cause}") from None
        finally:
            for number in numbers:
                os.set_inheritable(number, False)

    def end(self) -> None:
        """End it, and wait until it is gone."""
        if self.pid:
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(self.pid, _KILL)
                os.waitpid(self.pid, 0)
        self.pid = 0
