"""A /proc of the guest's processes for those who enter the supervisor's mount namespace.

`podman top` goes there and reads /proc/<pid>/{stat,status,cmdline} (its library psgo,
internal/process). Those files are made when somebody asks for them: an open of the folder waits
for our permission (fanotify(7), FAN_OPEN_PERM), and gets it once the guest has told what runs. The
kernel gives it by itself when this process is gone.

Imported only where a container has a /proc, after its start.
"""

from __future__ import annotations

import os
import struct
import time

from cloche.base import syscalls
from cloche.base.loop import READ
from cloche.base.quick import suppress
from cloche.host.proc_files import files_of, host_boot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from cloche.base.loop import Future, Loop

# A guest that does not answer must not hold up whoever looks.
TIMEOUT_S = 3.0
SIZE = "16m"  # more than the files of as many processes as a guest's answer has room for
NOSUID, NODEV, NOEXEC = 2, 4, 8  # MOUNT_ATTR_*
_EVENT = struct.Struct("=IBBHQii")  # struct fanotify_event_metadata
_RESPONSE = struct.Struct("=iI")
_ALLOW = 1
# What a hostile guest's answer may lead to: it is not shown, and nobody falls over it.
_ODD = (OSError, KeyError, TypeError, ValueError, AttributeError, OverflowError)


class ProcView:
    """A folder that shows processes, those of the moment in which it is opened.

    *processes* asks the guest (cloche.heart.listing), *boot* is when it was booted (s since the
    epoch). OSError where the kernel has no fanotify with permissions.
    """

    def __init__(
        self, loop: Loop, folder: int, processes: Callable[[], Future], boot: Callable[[], float]
    ) -> None:
        self._loop = loop
        self._processes = processes
        self._boot = boot
        self._shown: set[str] = set()
        outside = syscalls.new_tmpfs(
            "cloche-proc", {"mode": "555", "size": SIZE}, NOSUID | NODEV | NOEXEC
        )
        # No name is looked up here: the guest may be putting other files there at this moment.
        syscalls.move_mount(outside, "", folder)
        # A second, unattached mount: opens there raise no event, so we write through that one.
        path = f"/proc/self/fd/{outside}"
        self._files = f"/proc/self/fd/{syscalls.open_tree(path, recursive=False)}"
        self._write("stat", f"btime {host_boot()}\n")
        self._inode = os.fstat(outside).st_ino
        self._queue = syscalls.fanotify_opens(path)
        os.close(outside)
        loop.watch(self._queue, READ, self._on_readable)

    def _on_readable(self, _: int) -> None:
        try:
            data = os.read(self._queue, 4096)
        except OSError:  # nothing there, or an open that the kernel itself has refused
            return
        waiting = []
        while len(data) >= _EVENT.size:
            length, _version, _reserved, _size, _mask, fd, _pid = _EVENT.unpack_from(data)
            data = data[length:]
            if fd >= 0 and os.fstat(fd).st_ino == self._inode:
                waiting.append(fd)
            elif fd >= 0:
                self._allow([fd])
        if waiting:
            self._refresh(waiting)

    def _refresh(self, waiting: list[int]) -> None:
        timer = self._loop.call_later(TIMEOUT_S, lambda: self._allow(waiting))

        def told(future: Future) -> None:
            timer.cancel()
            try:
                self._show([] if future.error else future.value)
            except _ODD:
                pass
            finally:
                self._allow(waiting)

        self._processes().on_done(told)

    def _allow(self, fds: list[int]) -> None:
        while fds:
            fd = fds.pop()
            with suppress(OSError):  # who waited was killed meanwhile
                os.write(self._queue, _RESPONSE.pack(fd, _ALLOW))
            os.close(fd)

    def _show(self, processes: list[dict[str, Any]]) -> None:
        inside = {process["pid"]: process["nspid"] for process in processes}
        pids = {str(pid) for pid in inside.values()}
        for gone in self._shown - pids:
            import shutil  # 5 ms, which no start has to wait for

            shutil.rmtree(f"{self._files}/{gone}", ignore_errors=True)
        self._shown = pids
        shift = self._boot() - host_boot()
        for process in processes:
            self._show_one(process, inside, shift)

    def _show_one(self, process: dict[str, Any], inside: dict[int, int], shift: float) -> None:
        pid = inside[process["pid"]]
        relatives = {
            name: inside.get(process[name], 0) for name in ("ppid", "pgrp", "session", "tpgid")
        }
        files = files_of(process, pid, relatives, process["start_ns"] / 1e9 + shift)
        for name, text in files.items():
            self._write(f"{pid}/{name}", text)
        self._write(f"{pid}/attr/current", "")
        if not os.path.lexists(link := f"{self._files}/{pid}/ns/pid"):
            os.makedirs(os.path.dirname(link), exist_ok=True)
            os.symlink("pid:[guest]", link)

    def _write(self, name: str, text: str) -> None:
        path = f"{self._files}/{name}"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8", errors="replace") as file:
            file.write(text)


def guest_boot(boot_ns: int, at: float) -> Callable[[], float]:
    """The time of a guest's boot, whose clock showed *boot_ns* at *at* (time.monotonic)."""
    return lambda: time.time() - (time.monotonic() - at) - boot_ns / 1e9
