"""Whether a process got the processor time that it wanted: who was kept waiting is not to blame.

Read from /proc/<pid>/task/*/{stat,schedstat}, for all threads (proc(5), and the kernel's
Documentation/scheduler/sched-stats.rst: ns on a processor, ns of waiting for one).
"""

from __future__ import annotations

import os
from time import monotonic

# Of a thread's state: stopped by a signal, or by a tracer.
_STOPPED = "Tt"


class CpuTime:
    """How long the threads of a process have waited for a processor, since the last look."""

    def __init__(self) -> None:
        self._pid = 0
        self._before: dict[str, tuple[int, int]] = {}
        self.is_stopped = False
        # A thread waits for a disk, or for what else ends in its own time.
        self.waits_for_disk = False
        # Of one thread at most, in s.
        self.used = 0.0

    def look(self, pid: int, elapsed: float) -> float:
        """The s of the last *elapsed* ones in which *pid* could not go on; all if that is unknown.

        It could not where a thread waited for a processor, or for a disk that does not answer.
        """
        before = self._before if pid == self._pid else {}
        self._pid, self._before = pid, {}
        self.used = waited = 0.0
        states, is_kept = "", not before
        for thread, state, on, waiting in threads(pid):
            states += state
            self._before[thread] = on, waiting
            if thread not in before:
                continue
            ran, kept = on - before[thread][0], waiting - before[thread][1]
            if state in "RD" and ran == kept == 0:
                is_kept = True  # what it waits for now is counted at its end only
            self.used = max(self.used, ran / 1e9)
            waited = max(waited, kept / 1e9)
        self.is_stopped = bool(states) and set(states) <= set(_STOPPED)
        self.waits_for_disk = "D" in states
        return elapsed if is_kept else min(waited, elapsed)


def threads(pid: int) -> list[tuple[str, str, int, int]]:
    """Number, state, ns on a processor and ns of waiting for one, of each thread; gone: none."""
    found = []
    folder = f"/proc/{pid}/task"
    try:
        for thread in os.listdir(folder):
            with open(f"{folder}/{thread}/stat", encoding="utf-8", errors="replace") as file:
                state = file.read().rpartition(")")[2].split()[0]
            found.append((thread, state, *_times(f"{folder}/{thread}/schedstat")))
    except OSError:  # a thread, or the process, has ended meanwhile
        pass
    return found


def has_run(pid: int) -> int | None:
    """The ns that the first thread of *pid* has had a processor; None where that is not told."""
    return next((on for thread, _, on, _ in threads(pid) if int(thread) == pid and on), None)


def is_kept_waiting(pid: int, before: int, seconds: float) -> bool:
    """Whether *pid* wants a processor, and had one for less than half of the last *seconds*.

    *before* is what has_run told then. One that has ended is waited for no longer: True.
    """
    for thread, state, on, _ in threads(pid):
        if int(thread) == pid:
            return state == "R" and on - before < seconds * 500_000_000
    return True


class OwnTime:
    """Seconds in which the process *pid* was not kept waiting for a processor by others."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._at = monotonic()
        self._delays = self._read()

    def passed(self) -> float:
        """Since the last question. Of its threads the one that waited longest counts."""
        at, delays = monotonic(), self._read()
        waited = max((delays[tid] - self._delays.get(tid, 0) for tid in delays), default=0)
        passed = max(0.0, at - self._at - waited / 1e9)
        self._at, self._delays = at, delays
        return passed

    def _read(self) -> dict[str, int]:
        """Thread → ns that it waited on a run queue."""
        return {thread: waiting for thread, _, _, waiting in threads(self._pid)}


def _times(path: str) -> tuple[int, int]:
    """A kernel without schedstat says nothing: no thread is seen to wait."""
    try:
        with open(path, encoding="ascii") as file:
            on, waiting, _ = file.read().split()
    except FileNotFoundError:
        return 0, 0
    return int(on), int(waiting)
