"""Out-of-memory events on the host for what a guest's kernel has killed for want of memory.

Engines learn of such a kill from the host's kernel alone: on cgroup v1 by an eventfd on the
container's own memory.oom_control, on v2 by `oom_kill` in its memory.events. So a real event is
made there, by a process of ours that is the only one which the kernel can choose: those of the VM
are elsewhere meanwhile (QEMU's resident memory includes pages that others pay for, and outweighs
any oom_score_adj). Best effort: where it cannot be had, the engine merely does not say that memory
was the reason.
"""

from __future__ import annotations

import mmap
import os
import select

from cloche.base import syscalls
from cloche.base.files import read_text
from cloche.base.quick import suppress
from cloche.host.cgroup import ROOT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20
_SIGKILL = 9  # signal proper makes enumerations of them all, 2 ms
# The whole of it takes 15-50 ms, of a processor; what has to be written back first may not be done
# in time, and is not waited for.
TIMEOUT_S = 1.0
# What the victim may have before it is killed, and what it gives up after.
HEADROOM = 2 * MIB
MOST = 64 * MIB
PIECE = 256 * 1024


def tell(path: str) -> bool:
    """Make an out-of-memory event in the cgroup *path*, of which this process is a member.

    Takes at most about TIMEOUT_S; returns whether there was an event.
    """
    try:
        if os.path.exists(os.path.join(ROOT, "cgroup.controllers")):
            return _tell_v2(os.path.join(ROOT, path))
        return _tell_v1(os.path.join(ROOT, "memory", path))
    except OSError:
        return False


def _tell_v1(directory: str) -> bool:
    """Only an event of the very cgroup, or of one above it, is told: its own limit is lowered.

    What the VM has stays charged to it while its processes are in the cgroup above. Without
    swappiness nothing of that is swapped out; what goes is page cache.
    """
    members = _processes(directory)
    changed = ("memory.limit_in_bytes", "memory.swappiness")
    before = [_read(directory, name) for name in changed]
    try:
        _move(members, os.path.dirname(directory))
        _write(directory, "memory.swappiness", "0")
        return _sacrifice(directory, lambda: _lower(directory))
    finally:
        for name, value in zip(changed, before, strict=True):
            with suppress(OSError):
                _write(directory, name, value)
        _move(members, directory)


def _lower(directory: str) -> None:
    """Set the limit just above what cannot be reclaimed: page cache would only delay the kill."""
    usage = int(_read(directory, "memory.usage_in_bytes"))
    words = _read(directory, "memory.stat").split()
    stat = dict(zip(words[::2], words[1::2], strict=True))
    cache = int(stat.get("total_inactive_file", 0)) + int(stat.get("total_active_file", 0))
    for limit in (usage - cache + HEADROOM, usage + HEADROOM):
        with suppress(OSError):  # EBUSY: not all of the cache can go
            _write(directory, "memory.limit_in_bytes", str(limit))
            return


def _tell_v2(directory: str) -> bool:
    """Events count for all cgroups above: one is made in a small cgroup below, for the victim.

    A cgroup that passes memory on to others may have no processes of its own (cgroups(7)), so
    those of the VM move down, for good: what engines read counts for all that is below.
    """
    room, cell = os.path.join(directory, "vm"), os.path.join(directory, "oom")
    os.makedirs(room, exist_ok=True)
    _move(_processes(directory), room)
    _write(directory, "cgroup.subtree_control", "+memory")
    os.makedirs(cell, exist_ok=True)
    try:
        _write(cell, "memory.max", str(HEADROOM))
        with suppress(FileNotFoundError):  # a kernel without swap accounting
            _write(cell, "memory.swap.max", "0")
        return _sacrifice(cell, lambda: None)
    finally:
        os.rmdir(cell)


def _sacrifice(directory: str, prepare: Callable[[], None]) -> bool:
    """Let a child in the cgroup *directory* take memory until it is killed; whether it was.

    The child calls *prepare* first, so that it can be killed in that as well.
    """
    go_read, go_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(go_write)
            _be_the_victim(go_read, prepare)
        finally:
            os._exit(0)
    pidfd = os.pidfd_open(pid)
    killed = False
    try:
        os.close(go_read)
        _write(directory, "cgroup.procs", str(pid))
        os.write(go_write, b"g")
        killed = bool(select.select([pidfd], [], [], TIMEOUT_S)[0])
    finally:
        os.kill(pid, _SIGKILL)
        _, status = os.waitpid(pid, 0)
        os.close(pidfd)
        os.close(go_write)
    return killed and os.WIFSIGNALED(status)


def _be_the_victim(go: int, prepare: Callable[[], None]) -> None:
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, _SIGKILL)
    if not os.read(go, 1):
        return
    prepare()
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    kept: list[mmap.mmap] = []
    while len(kept) * PIECE < MOST:
        kept.append(mmap.mmap(-1, PIECE, flags=flags))


def _processes(directory: str) -> list[str]:
    return _read(directory, "cgroup.procs").split()


def _move(pids: list[str], directory: str) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            _write(directory, "cgroup.procs", pid)


def _read(directory: str, name: str) -> str:
    """The text of a file; FileNotFoundError where there is none."""
    path = os.path.join(directory, name)
    text = read_text(path)
    if text is None:
        raise FileNotFoundError(path)
    return text


def _write(directory: str, name: str, text: str) -> None:
    fd = os.open(os.path.join(directory, name), os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
