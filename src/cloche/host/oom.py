"""Out-of-memory events on the host for what a guest's kernel has killed for want of memory.

Engines learn of such a kill from the host's kernel alone: on cgroup v1 by an eventfd on the
container's own memory.oom_control, on v2 by `oom_kill` in its memory.events. So a real event is
made there, with a process of ours as its only victim (docs/engines.md has the measurements).
Best effort: where it cannot be had, the engine merely does not say that memory was the reason.
"""

from __future__ import annotations

import mmap
import os
import select
import signal
from time import monotonic

from cloche.base import syscalls
from cloche.base.files import read_text
from cloche.base.quick import suppress
from cloche.host.cgroup import ROOT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20
LIMIT_V1 = "memory.limit_in_bytes"
# The whole of it takes 5-20 ms; a host that has to write pages back first is not waited for.
STOP_TIMEOUT_S = 0.02
KILL_TIMEOUT_S = 0.1
# What the victim may have before it is killed, and what it gives up after.
HEADROOM = 2 * MIB
MOST = 64 * MIB
PIECE = 256 * 1024
MAP_LOCKED = 0x2000  # not swapped out in place of a kill (mmap(2))


def tell(path: str, vm_pid: int) -> bool:
    """Make an out-of-memory event in the cgroup *path*, of which this process is a member.

    *vm_pid*, a child of this process, is stopped meanwhile where its own limit has to be touched.
    Takes at most about KILL_TIMEOUT_S; returns whether there was an event.
    """
    try:
        if os.path.exists(os.path.join(ROOT, "cgroup.controllers")):
            return _tell_v2(os.path.join(ROOT, path))
        return _tell_v1(os.path.join(ROOT, "memory", path), vm_pid)
    except OSError:
        return False


def _tell_v1(directory: str, vm_pid: int) -> bool:
    """Only an event of the very cgroup, or of one above it, is told: its limit is lowered.

    A stopped VM allocates nothing, so it is neither killed nor refused memory in that moment.
    """
    limit = read_text(os.path.join(directory, LIMIT_V1))
    if limit is None:
        return False
    os.kill(vm_pid, signal.SIGSTOP)
    try:
        return _has_stopped(vm_pid) and _sacrifice(lambda: _lower(directory), lambda pid: None)
    finally:
        try:
            _write(os.path.join(directory, LIMIT_V1), limit)
        finally:
            os.kill(vm_pid, signal.SIGCONT)


def _has_stopped(pid: int) -> bool:
    """Whether all threads of the child *pid* are stopped, within STOP_TIMEOUT_S."""
    deadline = monotonic() + STOP_TIMEOUT_S
    flags = os.WSTOPPED | os.WNOHANG  # without WEXITED: its end is somebody else's to hear of
    while os.waitid(os.P_PID, pid, flags) is None:
        if monotonic() > deadline:
            return False
        select.select([], [], [], 0.001)
    return True


def _lower(directory: str) -> None:
    """Set the limit just above what cannot be reclaimed: page cache would only delay the kill."""
    usage = int(read_text(os.path.join(directory, "memory.usage_in_bytes")) or 0)
    words = (read_text(os.path.join(directory, "memory.stat")) or "").split()
    stat = dict(zip(words[::2], words[1::2], strict=True))
    cache = int(stat.get("total_inactive_file", 0)) + int(stat.get("total_active_file", 0))
    for limit in (usage - cache + HEADROOM, usage + HEADROOM):
        with suppress(OSError):  # EBUSY: not all of the cache can go
            _write(os.path.join(directory, LIMIT_V1), str(limit))
            return


def _tell_v2(directory: str) -> bool:
    """Events count for all cgroups above: one is made in a small cgroup below, for the victim.

    A cgroup that passes memory on to others may have no processes of its own (cgroups(7)), so
    those of the VM move down, for good: what engines read counts for all that is below.
    """
    room, cell = os.path.join(directory, "vm"), os.path.join(directory, "oom")
    os.makedirs(room, exist_ok=True)
    for pid in (read_text(os.path.join(directory, "cgroup.procs")) or "").split():
        with suppress(ProcessLookupError):
            _write(os.path.join(room, "cgroup.procs"), pid)
    _write(os.path.join(directory, "cgroup.subtree_control"), "+memory")
    os.makedirs(cell, exist_ok=True)
    try:
        _write(os.path.join(cell, "memory.max"), str(HEADROOM))
        return _sacrifice(lambda: None, lambda pid: _write(f"{cell}/cgroup.procs", pid))
    finally:
        os.rmdir(cell)


def _sacrifice(prepare: Callable[[], None], admit: Callable[[str], None]) -> bool:
    """Let a child take memory until the kernel kills it; whether it did.

    The child calls *prepare* once it is the one that the kernel would choose; *admit* is called
    here with its pid before that.
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
    try:
        os.close(go_read)
        admit(str(pid))
        os.write(go_write, b"g")
        killed = bool(select.select([pidfd], [], [], KILL_TIMEOUT_S)[0])
    finally:
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        os.close(pidfd)
        os.close(go_write)
    return killed and os.WIFSIGNALED(status)


def _be_the_victim(go: int, prepare: Callable[[], None]) -> None:
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    _write("/proc/self/oom_score_adj", "1000")
    if not os.read(go, 1):
        return
    prepare()
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE | MAP_LOCKED
    kept: list[mmap.mmap] = []
    while len(kept) * PIECE < MOST:
        kept.append(mmap.mmap(-1, PIECE, flags=flags))


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
