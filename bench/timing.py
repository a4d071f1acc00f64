"""Whole processes, timed from outside: wall time and CPU time from spawn to exit."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

TIMEOUT_S = 30.0
"""No command of the benchmark has a reason to take longer."""
_STDERR_TAIL = 600


class BenchError(Exception):
    """A contender or a case cannot be measured; the message says why, for the table."""


@dataclass(frozen=True)
class Sample:
    """One measurement. *cpu_ms* is None where the work is done in processes we cannot name."""

    wall_ms: float
    cpu_ms: float | None


class Command:
    """A process that was started, with its stderr kept for the case that it fails."""

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start *argv*; BenchError when there is no such program."""
        self.argv = list(argv)
        self._errors = os.memfd_create("stderr", os.MFD_CLOEXEC)
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
            (os.POSIX_SPAWN_DUP2, self._errors, 2),
        ]
        self.ended = False
        self.started = time.monotonic_ns()
        try:
            self.pid = os.posix_spawnp(self.argv[0], self.argv, environment, file_actions=actions)
        except OSError as error:
            os.close(self._errors)
            raise BenchError(f"{self.argv[0]}: {(error.strerror or '').lower()}") from None

    def finish(self, timeout: float = TIMEOUT_S) -> Sample:
        """Wait for the end; BenchError with stderr's tail when it fails or takes *timeout* s."""
        try:
            if not _ended_within(self.pid, timeout):
                self._kill()
                raise BenchError(f"{self._title()}: not done after {timeout:g} s{self._said()}")
            _, status, usage = os.wait4(self.pid, 0)
            wall = time.monotonic_ns() - self.started
            self.ended = True
            code = os.waitstatus_to_exitcode(status)
            if code != 0:
                raise BenchError(f"{self._title()}: exit status {code}{self._said()}")
        except BaseException:
            self._kill()
            raise
        finally:
            os.close(self._errors)
        return Sample(wall / 1e6, (usage.ru_utime + usage.ru_stime) * 1e3)

    def _kill(self) -> None:
        """End it at once, if it has not ended."""
        if not self.ended:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.ended = True

    def _title(self) -> str:
        return " ".join([os.path.basename(self.argv[0]), *self.argv[1:]])[:120]

    def _said(self) -> str:
        size = os.fstat(self._errors).st_size
        tail = os.pread(self._errors, _STDERR_TAIL, max(0, size - _STDERR_TAIL))
        lines = tail.decode(errors="replace").strip().splitlines()
        return f": {' | '.join(lines[-3:])}" if lines else ""


def _ended_within(pid: int, seconds: float) -> bool:
    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(seconds * 1000))
    finally:
        os.close(pidfd)


def timed(argv: Sequence[str], environment: Mapping[str, str]) -> Sample:
    """Run *argv* to its end. CPU time counts it and all descendants that were waited for."""
    return Command(argv, environment).finish()


def cpu_ns(pids: Iterable[int]) -> int:
    """CPU time that the processes *pids* have used so far, all threads; those gone count 0.

    The clock id is what clock_getcpuclockid(3) returns; /proc/PID/stat counts in steps of 10 ms.
    """
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            total += time.clock_gettime_ns((~pid << 3) | 2)
    return total
