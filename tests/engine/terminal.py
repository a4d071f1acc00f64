"""A program on a terminal of its own, driven by what it prints."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import termios
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from .patience import PATIENCE_SECONDS

TIMEOUT_SECONDS = PATIENCE_SECONDS
CTRL_C = b"\x03"
DETACH = b"\x10\x11"
"""Ctrl-P Ctrl-Q, docker's default keys to leave a container running."""


def shown_size(rows: int, columns: int) -> str:
    """A line for a shell that shows this size of its terminal, as soon as it has it."""
    # Not as it is typed: what is echoed is no answer.
    return f'until [ "$(stty size | tr " " x)" = {rows}x{columns} ]; do sleep 0.1; done; stty size'


class Terminal:
    """Context manager; on leaving it, the program is killed if it still runs."""

    def __init__(self, argv: Sequence[str], *, rows: int = 24, columns: int = 80) -> None:
        self._pid, self._master = pty.fork()
        if self._pid == 0:
            # The size is set before the program can ask for it.
            termios.tcsetwinsize(0, (rows, columns))
            try:
                os.execvpe(argv[0], list(argv), {**os.environ, "TERM": "dumb"})
            finally:
                os._exit(127)
        self._code: int | None = None
        self._seen = b""
        self.transcript = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        os.close(self._master)

    def send(self, data: bytes) -> None:
        """Type *data*."""
        os.write(self._master, data)

    def line(self, text: str) -> None:
        """Type *text* and Enter."""
        self.send(text.encode() + b"\r")

    def resize(self, rows: int, columns: int) -> None:
        """Change the window's size; the kernel sends SIGWINCH to the program."""
        termios.tcsetwinsize(self._master, (rows, columns))

    def expect(self, pattern: str, seconds: float = TIMEOUT_SECONDS) -> str:
        """Wait until the program prints what *pattern* matches, after the last match; the match."""
        deadline = time.monotonic() + seconds
        while not (match := re.search(pattern.encode(), self._seen)):
            if not self._read(deadline):
                raise AssertionError(f"no {pattern!r} in what was printed:\n{self._text()}")
        self._seen = self._seen[match.end() :]
        return match[0].decode(errors="replace")

    def wait(self, seconds: float = TIMEOUT_SECONDS) -> int:
        """Read to the end; the program's exit code (negative: a signal)."""
        deadline = time.monotonic() + seconds
        while self._read(deadline):
            pass
        if time.monotonic() > deadline:
            raise AssertionError(f"not ended after {seconds:g} s; it printed:\n{self._text()}")
        self._code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        return self._code

    def _read(self, deadline: float) -> bool:
        """Read something before *deadline*; False at the end, or when it has passed."""
        if not select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:  # EIO: the last process has closed the terminal
            return False
        self._seen += data
        self.transcript += data
        return bool(data)

    def _text(self) -> str:
        return self.transcript.decode(errors="replace")
