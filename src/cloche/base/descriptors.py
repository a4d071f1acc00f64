"""Descriptors that a caller left open, and that are none of ours: a lock of its, the end of a pipe.

Who keeps one holds the caller's lock, or keeps a reader of the pipe waiting. Imported by all verbs.
"""

from __future__ import annotations

import os

from cloche.base.quick import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

_OWN = "/proc/self/fd"


def keep_from_programs() -> None:
    """No program that we execute from now on gets one; its own 0, 1 and 2 it gets."""
    for fd in _beyond_stdio():
        with suppress(OSError):  # that of the listing itself
            os.set_inheritable(fd, False)


def close_others(kept: Collection[int] = ()) -> None:
    """Close all but 0, 1, 2 and *kept*, in a process that outlives its caller's command."""
    for fd in _beyond_stdio():
        if fd not in kept:
            with suppress(OSError):
                os.close(fd)


def open_all(paths: Iterable[str], folder: int | None = None) -> list[int]:
    """Open files, below the *folder* if there is one, for reading.

    OSError where one cannot be opened; none of the others is left open then.
    """
    fds: list[int] = []
    try:
        for path in paths:
            fds.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder))
    except OSError:
        for fd in fds:
            os.close(fd)
        raise
    return fds


def _beyond_stdio() -> Iterator[int]:
    """A list in /proc, not close_range(2): a kernel before 5.9, or a sandbox, may not have that."""
    return (fd for fd in map(int, os.listdir(_OWN)) if fd > 2)
