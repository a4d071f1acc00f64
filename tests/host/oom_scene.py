"""A cgroup with a process that stands for a VM, in which `oom.tell` is called; run as a program.

``oom_scene.py NAME [SECONDS]`` makes the cgroup NAME below the root, joins it and prints what came
of it as JSON. It runs on the host, and in a guest's container too, where there is cgroup v2 on any
machine, but little speed: SECONDS are what the kill may take there.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import select
import signal
import sys
import tempfile
import time
from pathlib import Path

from cloche.host import oom
from cloche.host.cgroup import ROOT

MIB = 1 << 20
LIMIT = 256 * MIB
VM_MEMORY = 80 * MIB
FOREIGN = 100 * MIB  # mapped, but paid for by another cgroup: QEMU has its template
PAGE_CACHE = 40 * MIB


class V1:
    """The memory hierarchy of cgroup v1; its events come by an eventfd."""

    def __init__(self, name: str) -> None:
        self.directory = Path(ROOT, "memory", name)
        self.limit_file = self.directory / "memory.limit_in_bytes"

    def listen(self) -> None:
        """Do what containerd's shim does."""
        self._event = os.eventfd(0, os.EFD_NONBLOCK)
        control = os.open(self.directory / "memory.oom_control", os.O_RDONLY)
        (self.directory / "cgroup.event_control").write_text(f"{self._event} {control}")

    def events(self) -> int:
        """How many there were."""
        with contextlib.suppress(BlockingIOError):
            return os.eventfd_read(self._event)
        return 0


class V2:
    """The one hierarchy of cgroup v2; its events are counted."""

    def __init__(self, name: str) -> None:
        self.directory = Path(ROOT, name)
        self.limit_file = self.directory / "memory.max"
        self._pass_memory_on()

    def _pass_memory_on(self) -> None:
        """A container's own cgroup has processes: they have to move down first."""
        control = Path(ROOT, "cgroup.subtree_control")
        if "memory" not in control.read_text().split():
            leaf = Path(ROOT, "leaf")
            leaf.mkdir()
            for pid in Path(ROOT, "cgroup.procs").read_text().split():
                (leaf / "cgroup.procs").write_text(pid)
            control.write_text("+memory")

    def listen(self) -> None:
        """Nothing is needed."""

    def events(self) -> int:
        """How many there were."""
        words = (self.directory / "memory.events").read_text().split()
        return int(dict(zip(words[::2], words[1::2], strict=True))["oom_kill"])


def cached_file(size: int) -> int:
    """The descriptor of a new file of zeros, in the page cache and on the disk."""
    fd = os.open(tempfile.gettempdir(), os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(fd, bytes(size))
    os.fsync(fd)
    return fd


def stand_for_a_vm(progress: mmap.mmap, foreign: int) -> None:
    """Hold memory and count; never returns."""
    flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
    mapped = mmap.mmap(foreign, FOREIGN, flags=flags, prot=mmap.PROT_READ)
    held = bytearray(VM_MEMORY)
    while True:
        for at in range(0, VM_MEMORY, mmap.PAGESIZE):
            held[at] = 1
        progress[0] = (progress[0] + 1) % 256 + mapped[0]


def goes_on(progress: mmap.mmap) -> bool:
    """Whether the VM is counting."""
    before, deadline = progress[0], time.monotonic() + 300
    while progress[0] == before and time.monotonic() < deadline:
        select.select([], [], [], 0.01)
    return progress[0] != before


def play(name: str) -> dict[str, object]:
    """Set the scene, tell of a kill, look what has changed."""
    unified = os.path.exists(os.path.join(ROOT, "cgroup.controllers"))
    cgroup = V2(name) if unified else V1(name)
    foreign = cached_file(FOREIGN)
    cgroup.directory.mkdir()
    cgroup.limit_file.write_text(str(LIMIT))
    (cgroup.directory / "cgroup.procs").write_text(str(os.getpid()))
    cgroup.listen()
    progress = mmap.mmap(-1, mmap.PAGESIZE)
    vm = os.fork()
    if vm == 0:
        stand_for_a_vm(progress, foreign)
    cached = cached_file(PAGE_CACHE)
    found: dict[str, object] = {"before": goes_on(progress), "unified": unified}
    found["told"] = [oom.tell(name), oom.tell(name)]
    os.close(cached)
    found["events"] = cgroup.events()
    found["vm goes on"] = goes_on(progress) and os.waitpid(vm, os.WNOHANG) == (0, 0)
    found["limit"] = int(cgroup.limit_file.read_text())
    os.kill(vm, signal.SIGKILL)
    os.waitpid(vm, 0)
    return found


if __name__ == "__main__":
    if len(sys.argv) > 2:
        oom.TIMEOUT_S = float(sys.argv[2])
    print(json.dumps(play(sys.argv[1])))
