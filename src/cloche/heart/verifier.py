"""Reading an image in the background, at the lowest priority, after a start from it."""

from __future__ import annotations

import fcntl
import os
import sys
from typing import TYPE_CHECKING

from cloche.base import syscalls
from cloche.base.descriptors import close_others
from cloche.base.errors import DamagedError
from cloche.base.quick import suppress
from cloche.host.cgroup import leave
from cloche.vmm.integrity import Image

if TYPE_CHECKING:
    from collections.abc import Sequence

# The caller's arguments name its container, and are seen in ps(1): this is a program of its own.
_PROGRAM = "import sys; sys.path[:0] = {path!r}; from cloche.heart import verifier; verifier.main()"
_NICEST = 19
_IOPRIO_IDLE = 3 << 13  # <linux/ioprio.h>


def begin(image: Image) -> None:
    """Have *image* verified by a process that is nobody's child, unless one is at it already.

    It has nothing of its caller: no descriptors, no terminal, no cgroup, no container's name. Where
    the result could not be kept, on a read-only file system, nothing is read.
    """
    if not os.access(image.folder, os.W_OK):
        return
    with suppress(OSError):  # it is not due now, then; the next start tries again
        lock = os.open(image.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _detach(image, lock)
        finally:
            os.close(lock)


def _detach(image: Image, lock: int) -> None:
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        os.setsid()
        if os.fork() == 0:
            _become(image, lock)
    finally:
        os._exit(0)


def _become(image: Image, lock: int) -> None:
    close_others({lock})
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    os.set_inheritable(lock, True)  # held until it ends
    program = _PROGRAM.format(path=[entry for entry in sys.path if entry])
    words = [sys.executable, "-IS", "-c", program, image.folder, *image.names]
    os.execv(sys.executable, words)


def main(words: Sequence[str] = ()) -> None:
    """The program: verify the image whose folder and files are its arguments."""
    folder, *names = words or sys.argv[1:]
    syscalls.prctl_name("cloche-verify")
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, _NICEST)  # whatever the caller has
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        syscalls.set_io_priority(_IOPRIO_IDLE)
    leave()
    with suppress(DamagedError):  # the next start says so
        Image(folder, names).verify()
