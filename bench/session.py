"""A shell in a running container: scripts go into its stdin, and what they print comes back.

One shell for all of a container's measurements, so that what `exec` costs is no part of them: a
script costs one round trip through stdin and stdout, and one fork.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from bench.timing import BenchError

_CHUNK = 1 << 16
_STDERR_TAIL = 600
# Where a script's stderr goes: memory of the container's, which costs the same everywhere.
_SAID = "/dev/shm/bench-said"
_END_SECONDS = 5.0


@dataclass(frozen=True)
class Answer:
    """What a script printed on stdout, and the ms from its sending to its end."""

    output: str
    wall_ms: float


class Session:
    """The shell; to be closed."""

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start it with *argv*; BenchError when there is no such program."""
        self._title = os.path.basename(argv[0])
        self._errors = os.memfd_create("stderr", os.MFD_CLOEXEC)
        self._token = f"done-{os.getpid()}-{id(self):x}"
        try:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=dict(environment),
                bufsize=0,
            )
        except OSError as error:
            os.close(self._errors)
            raise BenchError(f"{argv[0]}: {(error.strerror or '').lower()}") from None

    def run(self, script: str, timeout: float) -> Answer:
        """Run *script* in a shell of its own; BenchError when it fails, Lost after *timeout* s."""
        answer, status = self._run(f"(\nset -eu\n{script}\n) </dev/null 2>{_SAID}", timeout)
        if status != 0:
            raise BenchError(f"exit status {status}{self._what_it_said()}")
        return answer

    def define(self, name: str, value: str) -> None:
        """Have the variable *name* in all scripts from now on."""
        self._send(f"export {name}={shlex.quote(value)}\n".encode())

    def close(self) -> None:
        """End the command that leads to the shell."""
        with contextlib.suppress(OSError):
            self._pipe(0).close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._pipe(1).close()
        os.close(self._errors)

    def _run(self, command: str, timeout: float) -> tuple[Answer, int]:
        began = time.monotonic()
        self._send(f"{command}; printf '\\n{self._token} %d\\n' $?\n".encode())
        output, status = self._receive(began + timeout, timeout)
        return Answer(output, (time.monotonic() - began) * 1e3), status

    def _pipe(self, number: int) -> IO[bytes]:
        stream = (self._process.stdin, self._process.stdout)[number]
        assert stream is not None
        return stream

    def _send(self, data: bytes) -> None:
        try:
            self._pipe(0).write(data)
        except OSError:
            raise Lost(f"the shell has ended{self._last_words()}") from None

    def _receive(self, deadline: float, timeout: float) -> tuple[str, int]:
        """What is printed until the token, and the status behind it."""
        fd = self._pipe(1).fileno()
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        received = bytearray()
        mark = f"\n{self._token} ".encode()
        while True:
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not poll.poll(remaining * 1e3):
                raise Lost(f"not done after {timeout:g} s")
            data = os.read(fd, _CHUNK)
            if not data:
                raise Lost(f"the shell has ended{self._last_words()}")
            received += data
            at = received.find(mark, max(0, len(received) - len(data) - len(mark)))
            if at >= 0 and received.endswith(b"\n", at + len(mark)):
                return received[:at].decode(errors="replace"), int(received[at + len(mark) :])

    def _what_it_said(self) -> str:
        try:
            answer, _ = self._run(f"tail -c {_STDERR_TAIL} {_SAID}", _END_SECONDS)
        except BenchError:
            return ""
        return _tail(answer.output)

    def _last_words(self) -> str:
        size = os.fstat(self._errors).st_size
        said = os.pread(self._errors, _STDERR_TAIL, max(0, size - _STDERR_TAIL))
        return _tail(said.decode(errors="replace"))


class NoContainer(BenchError):
    """There is no container to run anything in."""


class Lost(BenchError):
    """The shell has ended, or is busy with a script that was not done in time."""


def _tail(text: str) -> str:
    lines = text.strip().splitlines()
    return f": {' | '.join(lines[-3:])}" if lines else ""
